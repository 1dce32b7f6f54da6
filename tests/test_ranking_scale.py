"""What the length of vectors does to a ranking: nothing, where all of one side are multiplied by the same number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.diagnosis.adds import added_gain
from vlm2rec_lab.diagnosis.evidence import Task
from vlm2rec_lab.diagnosis.missing import chosen_gain
from vlm2rec_lab.ranking.baseline_scores import ranks_of_scores
from vlm2rec_lab.ranking.candidates import seen_items
from vlm2rec_lab.ranking.evaluate import evaluate
from vlm2rec_lab.ranking.fusions import fuse_vectors
from vlm2rec_lab.ranking.ranks import Mix, levelled, mixed_ranks, ranks
from vlm2rec_lab.ranking.sets import set_ranks
from vlm2rec_lab.share.shards import encode_shards, rank_shards


def drawn(dtype, items=300, users=200, seed=0):
    "A shop whose two modalities both tell the next item, through noise."
    r = np.random.default_rng(seed)
    i = {m: r.normal(size=(items, 16)).astype(dtype) for m in ('text', 'image')}
    y = r.integers(0, items, users)
    s = {m: (x[y] + 1.5 * r.normal(size=(users, 16))).astype(dtype) for m, x in i.items()}
    return i, s, y


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('c', [1e-15, 1e-9, 1e-4, 1e-3, 1e-2, 10, 1e4, 1e9])
def test_a_fusion_of_ones_own_ranks_the_same_at_any_scale(dtype, c):
    i, s, y = drawn(dtype)
    found = [evaluate(i, s, y, fuse=lambda v, f=dtype(f): f * sum(v.values())) for f in (1, c)]
    for view in ('text', 'image', 'fused'):
        a, b = (f.ranks[view] for f in found)
        assert np.abs(a.greater - b.greater).max() <= 1 and (a.greater != b.greater).mean() < 0.01
    assert found[0]['fused']['NDCG@10'] == pytest.approx(found[1]['fused']['NDCG@10'], abs=2e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(-40, 40), st.integers(-40, 40), st.integers(0, 99))
def test_powers_of_two_change_nothing_at_all(a, b, seed):
    "Every item twice, so that there are ties; by all candidates, by blocks, by samples, and in sets."
    r = np.random.default_rng(seed)
    x, u = (r.normal(size=(n, 8)).astype(np.float32) for n in (40, 30))
    x, y = np.concatenate([x, x]), r.integers(0, 80, 30)
    x[5] = 0
    beside = np.stack([r.choice(80, 9, replace=False) for _ in y])
    sets = np.arange(0, 61, 2), np.stack([y, (y + 1) % 80], 1).ravel()

    def found(i, s):
        every = ranks(i, s, y), ranks(i, s, y, large=1), ranks(i, s, y, negatives=beside), set_ranks(i, s, sets)
        return [z for f in every for z in (f.greater, f.ties)]

    for was, now in zip(found(x, u), found(np.ldexp(x, a), np.ldexp(u, b))):
        np.testing.assert_array_equal(was, now)


def test_doubles_are_ties_at_any_scale():
    r = np.random.default_rng(0)
    x, u = (r.normal(size=(n, 16)).astype(np.float32) for n in (2000, 100))
    for c in (1e-6, 1e-2, 1, 1e6):
        found = ranks(np.concatenate([x, x]) * np.float32(c), u * np.float32(c), r.integers(0, 4000, 100))
        assert (found.ties == 1).mean() > 0.98, (c, found.ties.mean())


def test_unit_vectors_are_ranked_as_they_are():
    "Bit by bit what the plain product gives."
    r = np.random.default_rng(1)
    x, u = (r.normal(size=(n, 16)).astype(np.float32) for n in (500, 100))
    x, u = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, u))
    assert levelled(x, u) is u and levelled(x * np.float32(1.9), u) is not None
    y = r.integers(0, 500, 100)
    a, (b,) = ranks(x, u, y), mixed_ranks([(x, u)], [Mix()], y)
    np.testing.assert_array_equal(a.greater, b.greater)


@pytest.mark.parametrize('c', [1e-9, 1e-3, 1e6])
def test_a_report_says_the_same_at_any_scale(c):
    i, s, y = drawn(np.float32, users=300)
    said = [
        collapse_report(items=i, sequences=s, targets=y, fuse=lambda v, f=f: f * sum(v.values()), bootstrap=200)
        for f in (1.0, c)
    ]
    assert said[0].verdict == said[1].verdict == 'healthy'
    for name, was in said[0].evidence.items():
        now = said[1].evidence[name]
        if was['value'] is not None:
            assert now['value'] == pytest.approx(was['value'], abs=3e-3), name
    for m, x in said[0].modalities.items():
        for name, was in x['evidence'].items():
            now = said[1].modalities[m]['evidence'][name]
            if was['value'] is not None:
                assert now['value'] == pytest.approx(was['value'], abs=3e-3), (m, name)
    assert repr(said[0]).count('missing') == repr(said[1]).count('missing') > 0
    for was, now in zip(figures(said[0].data['missing']), figures(said[1].data['missing']), strict=True):
        assert now == pytest.approx(was, abs=5e-3)


def figures(d):
    "All numbers of a dictionary, in its order."
    if isinstance(d, dict):
        return [x for v in d.values() for x in figures(v)]
    if isinstance(d, (list, tuple)):
        return [x for v in d for x in figures(v)]
    return [d] if isinstance(d, float) else []


@pytest.mark.parametrize('c', [1e-9, 1e-4, 1e6])
def test_what_a_modality_adds_and_what_is_lost_where_it_lacks_at_any_scale(c):
    i, s, y = drawn(np.float32, users=300)
    tasks = [Task.of(i, s, y, fuse=lambda v, f=f: f * sum(v.values())) for f in (1.0, c)]
    for was, now in zip(*(added_gain(t, 'image') for t in tasks)):
        np.testing.assert_allclose(now, was, atol=0.02)
    every = np.random.default_rng(0).integers(0, 2, (3, 300))
    variants = [[fuse_vectors(x, s, t.fuse)[0] for x in (i, i | dict(image=0 * i['image']))] for t in tasks]
    was, now = (chosen_gain(t, v, every) for t, v in zip(tasks, variants))
    assert abs(was - now).mean() < 2e-3 and was.mean() > 0.2


@pytest.mark.parametrize('c', [2.0**-20, 2.0**20])
def test_shards_measure_ties_alike(tmp_path, c):
    i, s, y = drawn(np.float32)
    i = {m: np.concatenate([x, x]) for m, x in i.items()}
    cut = {'a': (0, 250), 'b': (250, 600)}
    shards = encode_shards(tmp_path, cut, lambda ab: {m: x[slice(*ab)] for m, x in i.items()})

    def fuse(v, f=np.float32(c)):
        return f * sum(v.values())

    there, here = rank_shards(shards, s, y, fuse=fuse), evaluate(i, s, y, fuse=fuse).ranks['fused']
    np.testing.assert_array_equal(there.greater, here.greater)
    np.testing.assert_array_equal(there.ties, here.ties)
    assert (here.ties >= 1).all()


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_scores_of_ones_own_may_be_probabilities_of_many_items(dtype):
    "As their logarithms rank, of which none is small."
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 20_000))
    logits[:, 10_000:] = logits[:, :10_000]  # every item twice
    shares = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True) * 1e-3).astype(dtype)
    y, nothing = rng.integers(0, 20_000, 50), seen_items(None, np.zeros(50, int), 20_000)
    sets = np.arange(0, 101, 2), np.stack([y, (y + 1) % 20_000], 1).ravel()
    for how in ({}, dict(sets=sets)):
        was, now = (ranks_of_scores(lambda at, x=x: x[at], y, 20_000, nothing, **how) for x in (logits, shares))
        assert np.abs(was.greater - now.greater).max() <= 2
        assert (now.ties >= 1).all() and now.ties.mean() < 1.2
    zeros = ranks_of_scores(lambda at: np.zeros((len(at), 20_000), dtype), y, 20_000, nothing)
    assert (zeros.ties == 19_999).all()
