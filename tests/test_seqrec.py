"""Sequential recommenders on cases of any shape: ranking against ir-measures and plain loops, losses in value and
gradient, batches, cropping, runs cut off anywhere."""

import itertools
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.data import PAD, Catalogue, Dataset, Interactions, leave_one_out
from vlm2rec_lab.metrics import with_negatives
from vlm2rec_lab.recommenders.fit import draw_negatives, figures, fit, rank_rows, represent
from vlm2rec_lab.recommenders.seqrec import (
    ITEMS,
    LOSSES,
    MODELS,
    ItemTable,
    ce,
    gbce,
    item_vectors,
    lessons,
    sampled,
    to_left,
)
from vlm2rec_lab.training.lengths import EVEN, pooled_batches

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10_000)


def shop(seed, users=40, items=25, repeats=True):
    "Sequences of 3 to 30 items; with repeats, the same item may come again."
    rng = np.random.default_rng(seed)
    rows = [
        rng.integers(0, items, n) if repeats else rng.permutation(items)[:n]
        for n in rng.integers(3, 15 if not repeats else 30, users)
    ]
    return Dataset(Catalogue([f'i{k}' for k in range(items)], {}, {}), Interactions.of_sequences(rows), f'shop {seed}')


def net(name, split, seed=0, dim=8, dropout=0.0, **table):
    return MODELS[name](
        ItemTable(len(split.catalogue), dim, seed=seed, **table),
        dropout=dropout,
        length=split.train.history.shape[1],
        seed=seed,
    )


@few
@given(seeds, st.integers(1, 12), st.sampled_from(list(MODELS)))
def test_ranking_is_that_of_a_loop(seed, history, name):
    split = leave_one_out(shop(seed), history=history)
    model = net(name, split, seed)
    for part in ('valid', 'test'):
        rows, (u, v), found = getattr(split, part), represent(model, split, part), rank_rows(model, split, part)
        for r in range(len(rows)):
            seen = set(rows.seen_items[rows.seen_offsets[r] : rows.seen_offsets[r + 1]].tolist())
            s = v.astype(float) @ u[r].astype(float)
            others = [j for j in range(len(v)) if j not in seen and j != rows.targets[r]]
            assert found.candidates[r] == len(others) + 1
            clear = [j for j in others if abs(s[j] - s[rows.targets[r]]) > 1e-5]
            low = sum(s[j] > s[rows.targets[r]] for j in clear)
            assert low <= found.greater[r] <= low + len(others) - len(clear)


@few
@given(seeds, st.sampled_from(list(MODELS)), st.sampled_from(['test', 'valid']))
def test_figures_are_those_of_ir_measures(seed, name, part):
    ir = pytest.importorskip('ir_measures')
    split = leave_one_out(shop(seed, items=40, repeats=False), history=8)
    model = net(name, split, seed)
    assume(
        not rank_rows(model, split, part).ties.any()
    )  # ir-measures breaks ties by name, the lab takes their expected value
    rows, (u, v) = getattr(split, part), represent(model, split, part)
    qrels, run = [], []
    for r in range(len(rows)):
        seen = set(rows.seen_items[rows.seen_offsets[r] : rows.seen_offsets[r + 1]].tolist())
        scores = v.astype(float) @ u[r].astype(float)
        qrels.append(ir.Qrel(str(r), str(rows.targets[r]), 1))
        run += [ir.ScoredDoc(str(r), str(j), float(scores[j])) for j in range(len(v)) if j not in seen]
    told = ir.calc_aggregate([ir.nDCG @ 10, ir.nDCG @ 20, ir.Success @ 10, ir.Success @ 20], qrels, run)
    found = figures(model, split, part).loc['all']
    for k in (10, 20):
        assert found[f'NDCG@{k}'] == pytest.approx(told[ir.nDCG @ k], abs=1e-6) and found[f'HR@{k}'] == pytest.approx(
            told[ir.Success @ k], abs=1e-6
        )


def test_ir_measures_notices_a_wrong_rank():
    "The comparison above can fail: seen items left in change the figures."
    from dataclasses import replace

    split = leave_one_out(shop(1, repeats=False), history=8)
    model = net('SASRec', split, 1)
    rows = replace(split.test, seen_offsets=np.zeros(len(split.test) + 1, np.int64), seen_items=np.zeros(0, np.int64))
    assert figures(model, split).loc['all', 'NDCG@10'] > figures(model, replace(split, test=rows)).loc['all', 'NDCG@10']


@few
@given(seeds, st.integers(1, 40), st.integers(2, 50), st.integers(1, 9), st.integers(1, 50), st.floats(0.1, 30))
def test_full_loss_is_that_of_torch(seed, places, items, dim, chunk, far):
    g = torch.Generator().manual_seed(seed)
    h, t, y = (
        torch.randn(places, dim, generator=g, dtype=torch.float64) * far,
        torch.randn(items, dim, generator=g, dtype=torch.float64),
        torch.randint(0, items, (places,), generator=g),
    )
    a, b = ([v.clone().requires_grad_() for v in (h, t)] for _ in range(2))
    l1, l2 = ce(*a, y, chunk), F.cross_entropy(b[0] @ b[1].T, y)
    l1.backward()
    l2.backward()
    assert torch.allclose(l1, l2, rtol=1e-9, atol=1e-9) and all(
        torch.allclose(u.grad, v.grad, rtol=1e-8, atol=1e-10) for u, v in zip(a, b)
    )


@pytest.mark.parametrize('scale', [0.05, 0.2, 0.5])
def test_full_loss_in_bfloat16_knows_what_is_learned(scale):
    "Where the next item is all but certain, the gradient is small, and as exact as elsewhere."
    torch.manual_seed(0)
    table, nxt, grads = torch.randn(500, 64) * scale, torch.randint(0, 500, (200,)), []
    hidden = 0.2 * torch.randn(200, 64) + 8 * F.normalize(table[nxt], dim=1)
    for kind in (None, 'bfloat16'):
        h, t = hidden.clone().requires_grad_(), table.clone().requires_grad_()
        ce(h, t, nxt, autocast=kind).backward()
        grads.append((h.grad, t.grad))
    for exact, rounded in zip(*grads):
        assert (exact - rounded).norm() < 0.15 * exact.norm()


def test_full_loss_keeps_no_scores():
    "Its graph holds two gradients, not an array of places x items, and a frozen side gets no gradient."
    h, t, y = torch.randn(512, 8, requires_grad=True), torch.randn(1000, 8), torch.randint(0, 1000, (512,))
    loss = ce(h, t, y)
    assert sum(v.numel() for v in loss.grad_fn.saved_tensors) == 512 * 8 + 1000 * 8
    loss.backward()
    assert t.grad is None and h.grad is not None


@few
@given(seeds, st.integers(1, 60))
def test_sampled_loss_estimates_the_full_sum(seed, k):
    "With the correction the estimated sum over the others is right on average, whatever items are drawn with."
    g = torch.Generator().manual_seed(seed)
    h, t, y = torch.randn(1, 4, generator=g), torch.randn(12, 4, generator=g), torch.randint(0, 12, (1,), generator=g)
    log_q = torch.log_softmax(torch.randn(12, generator=g), 0)
    s = (h @ t.T)[0].double()

    def total(negatives):  # the estimated sum over the others, from the loss
        loss = float(sampled(h, t, y, negatives, log_q))
        return (np.exp(loss) - 1) * float(s[y].exp())

    mean = sum(
        float(log_q[j].exp()) * total(torch.full((k,), j)) for j in range(12)
    )  # all k draws alike: the mean over draws is exact
    assert mean == pytest.approx(float(s.exp().sum() - s[y].exp().sum()), rel=1e-3)


@few
@given(seeds, st.integers(1, 8), st.floats(0, 1))
def test_binary_losses_by_hand(seed, k, t):
    g = torch.Generator().manual_seed(seed)
    h, table, y, neg = (
        torch.randn(6, 3, generator=g),
        torch.randn(9, 3, generator=g),
        torch.randint(0, 9, (6,), generator=g),
        torch.randint(0, 9, (6, k), generator=g),
    )
    s, alpha = (h @ table.T).double().numpy(), k / 8
    beta, sig = alpha * (t * (1 - 1 / alpha) + 1 / alpha), lambda v: 1 / (1 + np.exp(-v))
    wanted = np.mean(
        [-(beta * np.log(sig(s[p, y[p]])) + sum(np.log(1 - sig(s[p, j])) for j in neg[p])) / (k + 1) for p in range(6)]
    )
    assert float(gbce(h, table, y, neg, t)) == pytest.approx(wanted, rel=1e-4)


@few
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=200),
    st.integers(1, 30),
    st.integers(1, 20),
    st.sampled_from(EVEN),
    seeds,
)
def test_batches_hold_everybody_once(lengths, size, pool, even, seed):
    lengths = np.array(lengths)
    cut = pooled_batches(lengths, size, pool, seed, even)
    assert sorted(np.concatenate(cut)) == list(range(len(lengths))) and all(map(len, cut))
    if even == 'sequences' or pool == 1:
        assert sorted(map(len, cut))[1:] == [size] * (len(cut) - 1)
    if pool > 1:
        assert all((np.diff(lengths[b]) >= 0).all() for b in cut)
    assert len(cut) <= -(-len(lengths) // size)


@few
@given(seeds, st.integers(1, 9))
def test_lessons_ask_for_every_training_row(seed, history):
    split = leave_one_out(shop(seed), history=history)
    users, x, y = lessons(split)
    assert (np.diff((x != PAD).astype(int), axis=1) >= 0).all() and ((x == PAD) == (y == PAD)).all()
    there = x != PAD
    last = split.train.history[np.arange(len(split.train)), (split.train.history != PAD).sum(1) - 1]
    assert sorted(zip(np.repeat(users, there.sum(1)), x[there], y[there])) == sorted(
        zip(split.train.users, last, split.train.targets)
    )
    assert (x[:, 1:] == y[:, :-1])[there[:, :-1]].all()


@few
@given(seeds, st.integers(1, 4), st.integers(2, 12))
def test_negatives_are_nobodys_own(seed, k, items):
    rng = np.random.default_rng(seed)
    users, targets = rng.integers(0, 5, 30), rng.integers(0, items, 30)
    keys = np.unique(
        np.concatenate([users * items + targets, rng.integers(0, 5, 8) * items + rng.integers(0, items, 8)])
    )
    out = draw_negatives(
        torch.from_numpy(users),
        torch.from_numpy(targets),
        k,
        items,
        torch.from_numpy(keys),
        torch.Generator().manual_seed(seed),
    ).numpy()
    assert out.shape == (30, k) and out.min() >= 0 and out.max() < items and (out != targets[:, None]).all()
    free = items - np.array([np.isin(np.arange(u * items, (u + 1) * items), keys).sum() for u in range(5)])
    roomy = free[users] >= items / 2
    assert not np.isin((users[:, None] * items + out)[roomy], keys).any()


@few
@given(seeds, st.sampled_from(list(MODELS)), st.integers(0, 5), st.sampled_from(ITEMS))
def test_fillers_change_nothing(seed, name, more, how):
    "Fillers in front change neither the vectors nor the gradients."
    rng = np.random.default_rng(seed)
    split, vectors = leave_one_out(shop(seed), history=10), None if how == 'ids' else rng.normal(size=(25, 6))
    x = to_left(np.where(np.arange(4) < rng.integers(1, 5, (6, 1)), rng.integers(0, 25, (6, 4)), PAD))
    out, grads = [], []
    for width in (0, more):
        model = net(name, split, seed, how=how, vectors=vectors)
        hidden = model(model.ask(F.pad(torch.from_numpy(x), (width, 0), value=PAD)))[:, -1]
        ce(hidden, model.items(), torch.arange(6)).backward()
        out.append(hidden.detach())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*out, atol=1e-5) and torch.allclose(*grads, atol=1e-5)


def test_halves_run_over_a_doubled_sequence():
    """Embedding and encoder are modules: two embeddings side by side under a mask of their own, each half as it would
    be alone where it may not read the other."""
    from vlm2rec_lab.recommenders.seqrec import readable

    split = leave_one_out(shop(3), history=6)
    a, b = net('SASRec', split, 1).eval(), net('SASRec', split, 2).eval()
    x = torch.from_numpy(lessons(split)[1][:9])
    one, two, mask = a.embedding(x, a.items()), b.embedding(x, b.items()), readable(x)
    apart = torch.zeros(len(x), 1, 12, 12, dtype=torch.bool)
    apart[..., :6, :6], apart[..., 6:, 6:] = mask, mask
    both = a.encoder(torch.cat([one, two], 1), apart)
    assert torch.allclose(both[:, :6], a(x), atol=1e-6) and torch.allclose(both[:, 6:], a.encoder(two, mask), atol=1e-6)
    open_ = a.encoder(torch.cat([one, two], 1), mask.repeat(1, 1, 2, 2))
    assert not torch.allclose(open_[:, 5], both[:, 5], atol=1e-3)


@pytest.mark.parametrize(
    'name, loss', [*itertools.product(MODELS, ['ce']), *itertools.product(['SASRec'], sorted(set(LOSSES) - {'ce'}))]
)
def test_learns_what_cannot_be_guessed(name, loss):
    "A larger circle: far above the list of best sellers."
    rng = np.random.default_rng(0)
    rows = (
        rng.integers(0, 60, (250, 1))
        + np.cumsum(np.where(rng.random((250, 9)) < 0.1, rng.integers(2, 60, (250, 9)), 1), 1)
    ) % 60
    split = leave_one_out(
        Dataset(Catalogue([f'i{k}' for k in range(60)], {}, {}), Interactions.of_sequences(rows), 'circle'), history=8
    )
    model = net(name, split, dim=16, dropout=0.1)
    fit(
        model,
        split,
        loss,
        negatives=16 if loss == 'sampled' else 1,
        epochs=40,
        patience=8,
        batch=32,
        lr=1e-2,
        progress=False,
    )
    assert figures(model, split).loc['all', 'NDCG@10'] > 0.7


def test_killed_run_goes_on(tmp_path):
    "A process that is killed in the middle of training leaves a state that another goes on from, to the same numbers."
    script = textwrap.dedent('''
        import os, signal, sys, torch
        sys.path.insert(0, sys.argv[2])
        from test_seqrec import course
        torch.set_num_threads(int(sys.argv[3]))
        course(sys.argv[1], lambda r: os.kill(os.getpid(), signal.SIGKILL) if len(r) == 3 else None)
    ''')
    killed = subprocess.run(
        [sys.executable, '-c', script, str(tmp_path), str(Path(__file__).parent), str(torch.get_num_threads())],
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole = course(None)
    assert course(tmp_path) == whole and len(whole[0]) == 5
    file = tmp_path / 'fit.safetensors'
    file.write_bytes(file.read_bytes()[:300])
    with pytest.warns(UserWarning, match='going on from the checkpoint before'):
        assert course(tmp_path) == whole, 'a damaged state: the one before it'


def course(folder, callback=None):  # -> (losses and figures, sum of the weights)
    split = leave_one_out(shop(5), history=6)
    model = net('SASRec', split, dropout=0.3)
    run = fit(model, split, 'bce', epochs=5, patience=None, batch=16, progress=False, folder=folder, callback=callback)
    return run.frame[['loss', 'NDCG@10']].values.tolist(), float(sum(p.double().sum() for p in model.parameters()))


@pytest.mark.parametrize(
    'name, one, other',
    [
        ('SASRec', dict(heads=2), dict(heads=4)),
        ('SASRec', dict(dropout=0.3), dict(dropout=0.6)),
        ('BERT4Rec', dict(share=0.3), dict(share=0.6)),
        ('GRU4Rec', dict(dropout=0.3), dict(dropout=0.6)),
        ('GRU4Rec', dict(layers=2, dropout=0.3), dict(layers=2, dropout=0.0)),
    ],
)
def test_a_folder_of_another_network_is_refused_though_their_weights_begin_alike(name, one, other, tmp_path):
    split = leave_one_out(shop(5), history=6)

    def run(made):
        model = MODELS[name](ItemTable(len(split.catalogue), 8), length=6, **made)
        return fit(model, split, epochs=1, progress=False, folder=tmp_path)

    assert run(one).frame.equals(run(one).frame)
    with pytest.raises(DataError, match=r"holds a run with start=.*\(the model was '.*' \(now '") as told:
        run(other)
    was, now = re.search(r"the model was '(.*?)' \(now '(.*?)'\)", str(told.value)).groups()
    assert was != now


def test_a_folder_says_which_tensor_began_otherwise(tmp_path):
    split = leave_one_out(shop(5), history=6)
    for seed, said in ((0, None), (3, 'other values of items.rows: another seed=')):
        torch.manual_seed(0)
        model = MODELS['SASRec'](ItemTable(len(split.catalogue), 8, seed=seed), length=6)
        if said is None:
            fit(model, split, epochs=1, progress=False, folder=tmp_path)
            continue
        with pytest.raises(DataError, match=said):
            fit(model, split, epochs=1, progress=False, folder=tmp_path)


def test_a_folder_of_before_goes_on_though_it_does_not_say_what_it_began_with(tmp_path, monkeypatch):
    split = leave_one_out(shop(5), history=6)

    def run(epochs):
        torch.manual_seed(0)
        model = MODELS['SASRec'](ItemTable(len(split.catalogue), 8), length=6)
        return fit(model, split, epochs=epochs, progress=False, folder=tmp_path)

    monkeypatch.setattr('vlm2rec_lab.recommenders.fit.begun', lambda *_: None)
    run(1)
    monkeypatch.undo()
    assert len(run(2).frame) == 2


@pytest.mark.parametrize(
    'wrong',
    [
        dict(epochs=0),
        dict(every=0),
        dict(every=-1),
        dict(patience=0),
        dict(patience=-3),
        dict(clip=-1.0),  # gradients that are cut so point the other way
        dict(clip=0),
        dict(lr=-1.0),
        dict(lr=float('nan')),
        dict(decay=-0.1),
        dict(negatives=0, loss='bce'),
        dict(negatives=0, loss='sampled'),
        dict(negatives=-1, loss='gbce'),
        dict(negatives=1.5, loss='bce'),
    ],
)
def test_settings_that_cannot_be_are_refused_by_their_name(wrong):
    split = leave_one_out(shop(5), history=6)
    model, name = net('SASRec', split), next(iter(wrong))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(DataError, match=f'^{name}(=| is ){wrong[name]}: give '):
        fit(model, split, progress=False, **dict(epochs=2) | wrong)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_training_looks_at_no_test_row():
    "Whatever the test rows ask for, the run and the vectors are the same."
    from dataclasses import replace

    split = leave_one_out(shop(7), history=6)
    rows = replace(
        split.test,
        targets=(split.test.targets + 1) % 25,
        seen_offsets=np.zeros(len(split.test) + 1, np.int64),
        seen_items=np.zeros(0, np.int64),
    )
    runs = []
    for s in (split, replace(split, test=rows)):
        model = net('SASRec', s, dropout=0.2)
        runs.append(
            (
                fit(model, s, epochs=4, batch=16, progress=False).frame[['loss', 'NDCG@10']].values.tolist(),
                represent(model, s)[1].tolist(),
            )
        )
    assert runs[0] == runs[1]


@pytest.mark.parametrize('name', MODELS)
def test_every_row_is_taught_in_every_epoch(name):
    "Batches are cut to their longest sequence, and nothing else is cut away."
    split, taught = leave_one_out(shop(11), history=8), []
    model = net(name, split)
    lesson = type(model).lesson

    class Told(type(model)):
        def lesson(self, x, y, generator):
            taught.append((int((x != PAD).sum()), bool((x[:, 0] != PAD).any())))
            return lesson(self, x, y, generator)

    model.__class__ = Told
    fit(model, split, epochs=2, patience=None, batch=16, progress=False)
    assert sum(n for n, _ in taught) == 2 * int((lessons(split)[1] != PAD).sum()) and all(full for _, full in taught), (
        'no batch begins with a column of fillers'
    )


def test_the_best_state_is_kept():
    "Not the last one: a rate that is far too high makes the last epochs worse than the best."
    split = leave_one_out(shop(12, users=80), history=8)
    model = net('SASRec', split)
    run = fit(model, split, epochs=12, patience=None, batch=16, lr=0.1, progress=False)
    assert run.best < 12 and figures(model, split, 'valid', 10, ('NDCG',)).loc['all', 'NDCG@10'] == pytest.approx(
        run.frame['NDCG@10'].max()
    ) != pytest.approx(run.frame['NDCG@10'].iloc[-1])


def test_items_without_a_vector_stay_at_zero():
    x = np.random.default_rng(0).normal(size=(7, 4)) + 3
    x[2] = 0
    z = item_vectors(x)
    assert not z[2].any() and torch.allclose(z[[0, 1, 3, 4, 5, 6]].mean(0), torch.zeros(4, dtype=z.dtype), atol=1e-9)


def test_small_tables_are_heard():  # a table of any size gives the network the same items to read
    split = leave_one_out(shop(13), history=6)
    x, out = torch.from_numpy(lessons(split)[1][:9]), []
    for scale in (1.0, 0.1):
        model = net('SASRec', split).eval()
        with torch.no_grad():
            model.embedding.places.zero_()
            out.append(model(x, model.items() * 50 * scale)[:, -1])
    assert torch.allclose(*out, atol=1e-2) and out[0].std(0).min() > 0.1


def test_each_seed_has_an_embedder_of_its_own(monkeypatch):
    "The seed reaches split, adapters and batches."
    from vlm2rec_lab import train
    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.recommenders.downstream import source_vectors

    given, load = [], VLMEmbedder.from_pretrained.__func__

    class Enough(Exception):
        pass

    def stop(*args, **how):
        given.append(how['seed'])
        raise Enough

    monkeypatch.setattr(
        VLMEmbedder,
        'from_pretrained',
        classmethod(lambda cls, *args, **how: (given.append(how['seed']), load(cls, *args, **how))[1]),
    )
    monkeypatch.setattr(train, 'train', stop)
    split = leave_one_out(shop(3), history=6)
    for seed in (4, 5):
        with pytest.raises(Enough):
            source_vectors(lambda s, history: (given.append(s), split)[1], 'sft', seed, progress=False)
    assert given == [4, 4, 4, 5, 5, 5]


def test_every_source_is_asked_for(monkeypatch):
    from vlm2rec_lab.recommenders import downstream

    asked, rng = [], np.random.default_rng(0)
    monkeypatch.setattr(
        downstream,
        'source_vectors',
        lambda tasks, source, seed, *rest: (asked.append((source, seed)), {'text': rng.normal(size=(25, 4))})[1],
    )
    runs = downstream.downstream_runs(
        lambda seed, history: leave_one_out(shop(3), history=history),
        seeds=(0, 1),
        history=6,
        dim=8,
        epochs=1,
        batch=16,
        progress=False,
    )
    assert asked == [(s, k) for k in (0, 1) for s in downstream.SOURCES] and set(runs['items']) == {
        'random ids',
        *(f'{s} text' for s in downstream.SOURCES),
    }


def test_negatives_of_the_split_are_heeded():
    split = with_negatives(leave_one_out(shop(2, repeats=False), history=6), 5, seed=3)
    model = net('GRU4Rec', split)
    assert (rank_rows(model, split).candidates == 6).all() and fit(
        model, split, epochs=1, batch=16, metric='HR@2', progress=False
    ).frame['HR@2'].iloc[0] > 0


def test_vectors_of_any_kind_of_number():
    x = np.random.default_rng(0).normal(size=(7, 4))
    for kind in (np.float16, np.float32, np.float64):
        assert torch.allclose(item_vectors(x.astype(kind)), item_vectors(x), atol=5e-3)
    assert torch.allclose(item_vectors(torch.from_numpy(x)), item_vectors({'text': x}, 'text'))
    assert torch.allclose(item_vectors(3 * x), item_vectors(x)), 'length is no information'


def test_worth_is_resumed_and_reported(tmp_path):
    """Runs that are done are read; the table goes into a report, with a name from the data escaped, and changes no
    verdict."""
    from vlm2rec_lab.diagnose import collapse_report
    from vlm2rec_lab.recommenders.fit import mean_and_spread, worth_runs

    rng = np.random.default_rng(0)
    split = leave_one_out(shop(4), history=6)
    vectors = {'text': rng.normal(size=(25, 6)), '<i>image</i>': rng.normal(size=(25, 3))}
    how = dict(seeds=(0, 1), dim=8, k=5, batch=16, epochs=2, metric='NDCG@5', progress=False)
    runs, trained = worth_runs(split, vectors, folder=tmp_path, **how), []
    again = worth_runs(split, vectors, folder=tmp_path, callback=trained.append, **how)
    assert all(p.parent == tmp_path for p in tmp_path.rglob('*') if p.is_dir()), 'a name is no path'
    assert (
        runs.equals(again)
        and not trained
        and list(dict.fromkeys(runs['items'])) == ['random ids', 'text', '<i>image</i>', 'fused']
        and len(runs) == 8
    )
    assert runs.equals(worth_runs(split, vectors, **how))
    table, rows = mean_and_spread(runs, 'NDCG@5'), split.test
    given = dict(
        items=vectors,
        sequences={m: v[rows.targets] + rng.normal(size=(len(rows), v.shape[1])) for m, v in vectors.items()},
        targets=rows.targets,
        bootstrap=50,
        permutations=2,
        fuse='concat',
    )
    bare, told = collapse_report(**given), collapse_report(**given, downstream=table)
    assert told.verdict == bare.verdict and told.to_dict()['downstream']['text']['NDCG@5 all'] == pytest.approx(
        table.loc['text', 'NDCG@5 all']
    )

    def cut(records):
        if len(records) == 1:
            raise KeyboardInterrupt

    with pytest.raises(
        KeyboardInterrupt,
        match='random ids, seed 0: stopped after 1 epochs, which is no result; the same call goes on',
    ):
        worth_runs(split, vectors, folder=tmp_path / 'cut', callback=cut, **how)
    assert runs.equals(worth_runs(split, vectors, folder=tmp_path / 'cut', **how)), 'a run that was cut off goes on'
    assert (
        '<i>image' not in told._repr_html_()
        and 'downstream' in repr(told)
        and 'downstream' not in repr(bare)
        and 'downstream' not in bare.to_dict()
    )
