"Training against more than the batch's targets, and the best step kept."

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pair_encoders import Colours, HashedWords

from vlm2rec_lab.base.checkpoint import read_checkpoint
from vlm2rec_lab.base.errors import DataError, warned
from vlm2rec_lab.base.ragged import is_member
from vlm2rec_lab.cli import main, make_parser
from vlm2rec_lab.commands.train import Plan, plan_of
from vlm2rec_lab.model.heads import SEQUENCES
from vlm2rec_lab.model.pair import PairEmbedder
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.shop.rows import warm_items
from vlm2rec_lab.train import encode_split, train
from vlm2rec_lab.training.batches import candidates, drawn_items, make_batch, training_rows
from vlm2rec_lab.training.losses import LOSSES
from vlm2rec_lab.training.options import Saving
from vlm2rec_lab.training.step import step_gradients
from vlm2rec_lab.training.works import works_of


@pytest.fixture(scope='module')
def split():
    return make_studio('balanced', seed=0, items=60, users=80, length=8).split(train=50, valid=15, test=15, history=6)


def pair(sequence='mean', lora=None):
    return PairEmbedder({'text': HashedWords(), 'image': Colours()}, 16, sequence=sequence, lora=lora, device='cpu')


def values(embedder):
    return {n: p.detach().clone() for n, p in embedder.adapter_parameters()}


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in a)


HOW = dict(batch=6, positions='all', eval_every=0, progress=False)


def test_all_candidates_by_hand(split):
    rows = training_rows(split, 'all')[:5]
    warm = warm_items(split)
    b = make_batch(split, rows, 'all', among=drawn_items(warm, 'all'))
    assert b.items.tolist() == np.flatnonzero(warm).tolist()
    users = np.repeat(split.train.users[rows], (b.history >= 0).sum(1))
    negative = ~is_member(split, users, b.items)  # all other items of the user are none
    assert (b.items[b.positives] == b.targets).all()
    negative[np.arange(len(users)), b.positives] = True  # the target's own column stays
    assert np.array_equal(~b.exclude.numpy(), negative)


def test_the_loss_is_the_softmax_over_all_warm_items(split):
    embedder, rows = pair(), training_rows(split, 'all')[:4]
    bank = embedder.bank(split.catalogue, False)
    b = make_batch(split, rows, 'all', among=drawn_items(warm_items(split), 'all'))
    named = embedder.adapter_parameters()
    how = works_of(embedder, bank, b, 'all'), *b.asks(embedder.device), [p for _, p in named]
    loss, _ = step_gradients(partial(LOSSES['sft'], fuse='concat'), *how)
    items, told = embedder.encode_items(split.catalogue, progress=False), embedder.prefix_vectors(bank, b.history)
    scores = sum(F.normalize(told[m], dim=-1) @ items[m][b.items].T for m in items) / len(items) / 0.07
    wanted = F.cross_entropy(scores.masked_fill(b.exclude, -torch.inf), b.positives)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_drawn_negatives_are_uniform_whatever_the_batch_asks_for(split):
    "An item that is a target of the batch is a negative as often as one that is not."
    warm, user = warm_items(split), int(split.train.users[0])
    own = is_member(split, [user], np.arange(60))[0]
    others = np.flatnonzero(warm & ~own)
    users, targets = np.array([user, 1, 1]), np.array([np.flatnonzero(own)[0], others[0], others[1]])
    seen = np.zeros(60)
    for step in range(1500):
        items, positives, exclude = candidates(split, users, targets, among=drawn_items(warm, 12, 0, step))
        kept = ~exclude[0].numpy()
        kept[positives[0]] = False
        seen[items[kept]] += 1
    assert seen[~(warm & ~own)].sum() == 0
    assert abs(seen[others] / 1500 - 12 / warm.sum()).max() < 0.05


def test_as_many_as_there_are_is_all(split):
    runs = [train(pair(), split, steps=3, candidates=c, **HOW).frame.loss.tolist() for c in ('all', 10_000, 'batch', 8)]
    assert runs[0] == runs[1]
    assert len({tuple(r) for r in runs}) == 3


@pytest.mark.parametrize('asked', ['all', 12])
@pytest.mark.parametrize('loss', LOSSES)
def test_every_loss_trains_against_more(split, loss, asked):
    embedder = pair()
    before = values(embedder)
    run = train(embedder, split, loss, steps=3, candidates=asked, **HOW)
    assert np.isfinite(run.frame.loss).all()
    assert not same(before, values(embedder))


@pytest.mark.parametrize('fuse', ['sum', 'concat', dict(text=0.3, image=0.7)], ids=str)
@pytest.mark.parametrize('loss', LOSSES)
def test_what_is_masked_is_not_there_for_any_loss(split, loss, fuse):
    "A pair among drawn items costs what it costs, value and gradient, where masked items do not exist at all."
    embedder, rows = pair(), training_rows(split, 'all')[:5]
    groups = np.arange(60) // 3
    b = make_batch(split, rows, 'all', groups, drawn_items(warm_items(split), 12, 3, 1))
    items, told = (
        embedder.encode_items(split.catalogue, progress=False),
        embedder.prefix_vectors(embedder.bank(split.catalogue, False), b.history),
    )
    items['image'][b.items[:4]] = 0  # some lack a picture
    objective = partial(LOSSES[loss], fuse=fuse)
    for k in (0, 7, len(b.targets) - 1):
        keep = (~b.exclude[k]).nonzero()[:, 0]
        assert len(keep) < len(b.items)
        costs = []
        for columns, masks in ((torch.arange(len(b.items)), b.exclude[k : k + 1]), (keep, None)):
            users = {m: z[k : k + 1].detach().requires_grad_() for m, z in told.items()}
            shown = {m: z[torch.as_tensor(b.items)[columns]] for m, z in items.items()}
            cost = objective(users, shown, (columns == b.positives[k]).nonzero()[0], masks)
            slopes = torch.autograd.grad(cost, list(users.values()), allow_unused=True)
            costs.append([cost.detach()[None], *(s[0] for s in slopes if s is not None)])
        assert all(torch.allclose(one, two, rtol=1e-4, atol=1e-6) for one, two in zip(*costs, strict=True))


def test_chunks_change_nothing(split):
    ways = [train(pair('recent'), split, steps=3, candidates='all', seed=3, **HOW, **kw) for kw in ({}, dict(chunk=4))]
    assert ways[0].frame.loss.tolist() == pytest.approx(ways[1].frame.loss.tolist(), abs=1e-5)


@pytest.mark.parametrize('bad', ['al', 0, -1, 2.5, True, None])
def test_other_candidates_are_refused(split, bad):
    with pytest.raises(DataError, match='candidates='):
        train(pair(), split, steps=1, candidates=bad, **HOW)


def test_dear_items_are_refused_with_the_remedy(split):
    with pytest.raises(DataError, match='lora='):
        train(pair(lora=2), split, steps=1, candidates='all', **HOW)
    assert len(train(pair(lora=2), split, steps=1, candidates=5, **HOW).frame) == 1


def test_candidates_are_settings_of_a_run(split, tmp_path):
    saving = dict(checkpoint=tmp_path / 'run.safetensors', resume=True)
    train(pair(), split, steps=2, candidates=8, **HOW, saving=Saving(**saving))
    with pytest.raises(ValueError, match='candidates'):
        train(pair(), split, steps=3, candidates='all', **HOW, saving=Saving(**saving))


BEST = HOW | dict(steps=12, candidates='all', lr=0.3, eval_every=2, keep='best')


def test_the_best_step_is_put_back(split):
    embedder, states = pair(), []
    run = train(embedder, split, callback=lambda r: states.append(values(embedder)), **BEST)
    scores = run.frame['valid/fused']
    assert run.best == scores.idxmax() < 11, 'the last step is the best: the test shows nothing'
    assert same(values(embedder), states[run.best])
    assert not same(values(embedder), states[-1])


@pytest.mark.parametrize('sequence', SEQUENCES)
@pytest.mark.parametrize('after', [3, 9])
def test_the_best_step_outlives_a_stop(split, tmp_path, sequence, after):
    whole, parts = pair(sequence), pair(sequence)
    run = train(whole, split, **BEST)
    saving = Saving(tmp_path / 'run.safetensors', every=1, resume=True)
    train(parts, split, saving=saving, callback=lambda r: 'stop' if len(r) == after else None, **BEST)
    parts = pair(sequence)
    again = train(parts, split, saving=saving, **BEST)
    assert run.frame.equals(again.frame)
    assert same(values(whole), values(parts))
    finished = pair(sequence)  # a run that is done already gives its best step too
    train(finished, split, saving=saving, **BEST)
    assert same(values(whole), values(finished))


def test_the_fusion_of_the_best_step_is_the_one_that_is_told(split):
    run = train(pair(), split, fuse='learned', **BEST)
    row = run.frame.loc[run.best]
    assert run.fuse == {m: row[f'weight/{m}'] for m in ('text', 'image')}


def test_there_must_be_room_for_the_best_step_too(split, tmp_path, monkeypatch):
    "Values, two numbers of the optimiser for each, and the values that are set aside."
    size = sum(p.numel() * p.element_size() for _, p in pair().adapter_parameters())
    how = HOW | dict(steps=2, eval_every=1, checkpoint=tmp_path / 'run.safetensors')
    monkeypatch.setattr('shutil.disk_usage', lambda folder: SimpleNamespace(free=3 * size))
    assert len(train(pair(), split, **how).frame) == 2
    with pytest.raises(OSError, match=f'takes {4 * size / 1e6:.2f} MB'):
        train(pair(), split, **how, keep='best')
    monkeypatch.setattr('shutil.disk_usage', lambda folder: SimpleNamespace(free=4 * size))
    train(pair(), split, **how, keep='best')
    held = sum(t.numel() * t.element_size() for t in read_checkpoint(tmp_path / 'run.safetensors')[0].values())
    assert 4 * size <= held < 4.1 * size


def test_a_checkpoint_without_a_best_step_goes_on(split, tmp_path):
    "As all were before there was `keep`: no entry of the best step, no word of it in the settings."
    file = tmp_path / 'run.safetensors'
    saving, how = Saving(file, every=1, resume=True), dict(steps=4, loss='sft')
    whole = train(pair(), split, **how, **HOW)
    train(pair(), split, **how, **HOW, saving=saving, callback=lambda r: 'stop' if len(r) == 2 else None)
    state, run = read_checkpoint(file)
    assert not any(k.startswith('best/') for k in state) and not {'keep', 'candidates'} & set(run['settings'])
    assert train(pair(), split, **how, **HOW, saving=saving).frame.equals(whole.frame)
    with pytest.raises(ValueError, match='keep'):
        train(pair(), split, **how, **HOW | dict(eval_every=1), saving=saving, keep='best')


@pytest.mark.parametrize('every', [None, 0, 3])
def test_the_best_of_one_is_refused(split, every):
    with pytest.raises(DataError, match='eval_every='):
        train(pair(), split, steps=2, keep='best', **HOW | dict(eval_every=every))
    with pytest.raises(DataError, match="did you mean 'best'"):
        train(pair(), split, steps=2, keep='bets', **HOW)


def test_dropout_is_for_learning_alone(split):
    embedder = pair('recent')
    train(embedder, split, steps=6, candidates='all', **HOW)
    first, second = (encode_split(embedder, split, progress=False) for _ in range(2))
    assert all(np.array_equal(first['sequences'][m], second['sequences'][m]) for m in first['sequences'])
    pairs, losses = [pair('recent') for _ in range(2)], []
    for p in pairs:
        state = torch.get_rng_state()
        losses.append(train(p, split, steps=3, candidates='all', **HOW).frame.loss.tolist())
        assert torch.equal(state, torch.get_rng_state())  # takes nothing from anybody else's draws
        torch.rand(1)
    assert losses[0] == losses[1]
    assert embedder.dropout == 0.2 and pair('causal').dropout == 0
    head = embedder.sequences['text']
    x, there = F.normalize(torch.randn(2, 4, 16), dim=-1), torch.ones(2, 4).bool()
    with embedder.learning():
        assert not torch.equal(head(x, there), head(x, there))
    assert torch.equal(head(x, there), head(x, there))


@pytest.mark.parametrize(
    'args', [['--candidates', '2048'], ['--candidates', 'all', '--keep', 'best', '--eval-every', '9']]
)
def test_the_command_line_has_them(args):
    o = make_parser().parse_args(['train', '--data', 'studio:balanced', *args])
    plan = plan_of(o)
    wanted = {'candidates': 2048} if '2048' in args else dict(candidates='all', keep='best', eval_every=9)
    assert plan.unusual == wanted


@pytest.mark.parametrize(
    'args, said', [(['--candidates', 'al'], "did you mean 'all'"), (['--keep', 'best'], 'give --eval-every')]
)
def test_the_command_line_refuses(args, said, capsys):
    assert main(['train', '--data', 'studio:balanced', *args]) == 2
    assert said in capsys.readouterr().err


def test_a_batch_of_one_that_has_candidates_learns_and_is_not_warned_of(split):
    embedder, found = pair(), []
    how = dict(steps=1, batch=1, eval_every=0, progress=False, candidates=8)
    assert not [m for m in warned(lambda: found.append(train(embedder, split, **how))) if 'batch=1' in m]
    assert found[0].frame.loss[0] > 0
    assert warned(lambda: Plan(batch=1, candidates=8)) == [] != warned(lambda: Plan(batch=1))
