"""Ranks against a brute-force loop in float64 under the stated rule for ties.

Scores are exact in every precision; any number of threads gives the same numbers.
"""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.metrics import evaluate, metric_at_k, ranks, sample_negatives, scores, seen_items, tally
from vlm2rec_lab.ranking.fusions import fuse_vectors
from vlm2rec_lab.ranking.ranks import Mix, mixed_ranks, score_power
from vlm2rec_lab.ranking.task import _row_keys


def brute(items, sequences, targets, tol, candidates):
    "Greater, ties and candidates, one pair of user and item at a time, in float64."
    found = []
    for u, t in enumerate(targets):
        score = {i: sum(float(a) * float(b) for a, b in zip(sequences[u], items[i])) for i in candidates[u]}
        rest = [x - score[t] for i, x in score.items() if i != t]
        found.append((sum(d > tol for d in rest), sum(-tol <= d <= tol for d in rest), len(score)))
    return np.array(found, np.int64).reshape(-1, 3).T


@settings(max_examples=150, deadline=None)
@given(
    st.data(),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.integers(0, 9),
    st.integers(1, 30),
    st.integers(1, 3),
    st.integers(0, 10**6),
)
def test_ranks_are_those_of_a_loop(data, dtype, users, n_items, dims, seed):
    """Copies, zero vectors, one item, seen targets, sampled negatives.

    Scores are whole multiples of half the tolerance, so that they and the edges of a tie are exact. Where nearly all
    vectors are short, the tolerance is so much the smaller.
    """
    rng, tol = np.random.default_rng(seed), 8 * float(np.finfo(dtype).eps)
    items = (rng.integers(-1, 2, (n_items, dims)) + rng.integers(-6, 7, (n_items, dims)) * tol / 2).astype(dtype)
    items = items[rng.integers(0, n_items, n_items)] * (rng.random((n_items, 1)) > 0.1).astype(
        dtype
    )  # copies and zero vectors
    sequences, targets = rng.integers(-1, 2, (users, dims)).astype(dtype), rng.integers(0, n_items, users)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of seen targets and short negatives
        seen = seen_items(
            [rng.integers(0, n_items, rng.integers(0, n_items + 1)) for _ in range(users)], targets, n_items
        )
        drawn = sample_negatives(seen, targets, n_items, data.draw(st.integers(1, 12)), seed)
    tol *= 16.0 ** score_power(items, sequences)
    free = [set(range(n_items)) - set(seen[1][a:b].tolist()) for a, b in zip(seen[0], seen[0][1:])]
    some = [{int(t), *(int(i) for i in row if i >= 0)} for t, row in zip(targets, drawn)]
    for chunk, threads in ((None, None), (data.draw(st.integers(1, 10)), data.draw(st.integers(1, 4)))):
        for how, candidates in (
            (dict(seen=seen), free),
            (dict(negatives=drawn), some),
            (dict(), [set(range(n_items))] * users),
        ):
            r = ranks(items, sequences, targets, chunk=chunk, threads=threads, progress=False, **how)
            np.testing.assert_array_equal(
                [r.greater, r.ties, r.candidates], brute(items, sequences, targets, tol, candidates)
            )
            assert r.greater.dtype == r.ties.dtype == np.int64


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_threads_and_blocks_change_nothing(dtype):
    "More than one block: the comparison written out over whole chunks, and a sort, give the same counts."
    rng = np.random.default_rng(0)
    items, sequences = (rng.normal(size=(n, 16)) for n in (20_000, 401))
    # Of length one, as vectors are ranked: the tolerance of ties is that of scores up to one.
    items, sequences = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype) for x in (items, sequences))
    items[1000:1200] = items[:200]
    targets = rng.integers(0, 1500, 401)
    seen = seen_items([np.setdiff1d(rng.integers(0, 20_000, 8), [t]) for t in targets], targets, 20_000)
    tol = 8 * np.finfo(dtype).eps
    for chunk in (None, 150):
        found = [
            ranks(items, sequences, targets, seen, chunk=chunk, threads=t, progress=False) for t in (None, 1, 2, 5)
        ]
        for a in range(0, 401, chunk or 401):
            rows = np.arange(a, min(a + (chunk or 401), 401))
            s = scores(items, sequences[rows], (seen[0][a : rows[-1] + 2], seen[1]))
            at = s[np.arange(len(rows)), targets[rows]][:, None]
            g, level = (s > at + tol).sum(1), (s >= at - tol).sum(1)
            for r in found:
                np.testing.assert_array_equal(r.greater[rows], g)
                np.testing.assert_array_equal(r.ties[rows], level - g - 1)
            assert (g == [(np.sort(row)[::-1] > x + tol).argmin() for row, x in zip(s, at[:, 0])]).all()
    assert (found[0].ties > 0).sum() > 20  # the copies tie


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('how', [{}, dict(chunk=70, threads=3), dict(block=(16, 40), threads=2)])
def test_blocks_rank_as_one_product_does(dtype, how):
    rng = np.random.default_rng(3)
    items, users = rng.normal(size=(500, 6)).round(1).astype(dtype), rng.normal(size=(230, 6)).round(1).astype(dtype)
    items[250:] = items[:250]  # every item twice
    targets = rng.integers(0, 500, 230)
    lists = [rng.choice(np.delete(np.arange(500), t), t % 90, replace=False) for t in targets]
    for seen in (None, seen_items(lists, targets, 500)):
        plain = ranks(items, users, targets, seen, progress=False)
        assert plain.ties.min() >= 0 and (plain.ties > 0).any()
        for enough in (None, 25):
            both = mixed_ranks(
                [(items, users), (items, -users)], [Mix((1, 0)), Mix((2, 1))], targets, seen, enough=enough, **how
            )
            for found in both:  # 2 s - s = s
                here = plain.greater < (enough or 1e9)
                assert (found.greater[here] == plain.greater[here]).all() and (
                    found.ties[here] == plain.ties[here]
                ).all()
                assert (found.greater[~here] >= (enough or 0)).all() and (found.candidates == plain.candidates).all()
                assert (metric_at_k(found, 10) == metric_at_k(plain, 10)).all()


def test_a_mix_adds_what_it_says():
    rng = np.random.default_rng(4)
    items, users, targets = rng.normal(size=(90, 3)), rng.normal(size=(40, 3)), rng.integers(0, 90, 40)
    item, user, times = rng.normal(size=90), rng.normal(size=40), rng.random(90) + 0.5
    s = (0.25 * users @ items.T + item + user[:, None]) * times
    found = mixed_ranks([(items, users)], [Mix((0.25,), user, item, times)], targets, block=(7, 24))[0]
    assert (found.greater == (s > s[np.arange(40), targets][:, None]).sum(1)).all() and (found.ties == 0).all()


@pytest.mark.parametrize('enough', [None, 5])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('noise', [0.1, 1.0, 9.0])
def test_rows_that_are_not_looked_at_count_nothing(noise, dtype, enough):
    "Good and bad rankings with copies and seen items, for every kind of mix, beside a count of all scores."
    rng = np.random.default_rng(6)
    items, targets = rng.normal(size=(400, 6)).astype(dtype), rng.integers(0, 400, 150)
    items[200:] = items[:200]
    users = [(items[targets] + noise * rng.normal(size=(150, 6))).astype(dtype) for _ in 'ab']
    item, user, times = (x.astype(dtype) for x in (rng.normal(size=400), rng.normal(size=150), rng.random(400) + 0.5))
    item[200:], times[200:] = item[:200], times[:200]
    seen = seen_items([rng.choice(np.delete(np.arange(400), t), 9, replace=False) for t in targets], targets, 400)
    mixes = [Mix((1, 0)), Mix((0, 3)), Mix((1, 2)), Mix((1, 1), user, item, times), Mix((0, 1), user)]
    found = mixed_ranks([(items, u) for u in users], mixes, targets, seen, enough=enough, block=(40, 64))
    shown = np.ones((150, 400), bool)
    shown[np.repeat(np.arange(150), np.diff(seen[0])), seen[1]] = False
    for m, r in zip(mixes, found):
        s = m([u.astype(float) @ items.T.astype(float) for u in users], np.arange(150)[:, None], np.arange(400))
        more = np.where(shown, s - s[np.arange(150), targets][:, None], -np.inf)
        greater, ties = (more > 1e-5).sum(1), (np.abs(more) <= 1e-5).sum(1) - 1
        here = greater < (enough or 1e9)
        assert here.any() and (r.greater[here] == greater[here]).all() and (r.ties[here] == ties[here]).all()
        assert (r.greater[~here] >= (enough or 0)).all()


def test_ties_are_as_wide_as_the_scores_are_large():
    items, users = np.array([[1.0], [1 + 1e-5], [2.0]], np.float32), np.ones((1, 1), np.float32)
    for size, ties in ((None, 0), (np.array([100.0]), 1)):
        assert mixed_ranks([(items, users)], [Mix(size=size)], np.array([0]))[0].ties == [ties]


def test_a_block_smaller_than_a_row():
    s = np.arange(12.0).reshape(3, 4)
    for block in (1, 3, 4, 5, 100):
        assert tally(s, s[:, 1:2], block=block).tolist() == [[2, 2, 2], [3, 3, 3]]


def test_tensors_rank_as_arrays_do():
    rng = np.random.default_rng(1)
    items, users = ({m: rng.normal(size=(n, 8)).astype(np.float32) for m in 'ab'} for n in (300, 70))
    targets, seen = rng.integers(0, 300, 70), rng.integers(0, 300, (70, 5))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        plain = evaluate(items, users, targets, seen)
        tensors = evaluate(
            *({m: torch.from_numpy(x) for m, x in side.items()} for side in (items, users)),
            torch.from_numpy(targets),
            torch.from_numpy(seen),
        )
    for v in plain:
        np.testing.assert_array_equal(plain.ranks[v].greater, tensors.ranks[v].greater)
        np.testing.assert_array_equal(plain.ranks[v].ties, tensors.ranks[v].ties)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_rows_have_equal_keys_only_where_they_are_equal(dtype):
    "Vectors of signs, of which many differ in one bit or two, with copies."
    rng = np.random.default_rng(0)
    x, y = rng.choice([-1.0, 1.0], (4000, 9)).astype(dtype), rng.integers(0, 3, 4000)
    rows = np.column_stack([y, x, -x[:, ::-1]])
    keys = _row_keys(y, {'a': x, 'b': np.ascontiguousarray(-x[:, ::-1])})
    assert (keys == _row_keys(y, {'a': x, 'b': np.ascontiguousarray(-x[:, ::-1])}, most=100)).all()
    same, by_key = np.unique(rows, axis=0, return_inverse=True)[1].ravel(), np.unique(keys, return_inverse=True)[1]
    assert same.max() == by_key.max() and len(set(zip(same, by_key))) == same.max() + 1


def test_what_was_seen_stays_out_under_weights_and_factors_below_zero():
    items, users, seen = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0]]), (np.array([0, 1]), np.array([2]))
    for mix, target in ((Mix((-1,)), 0), (Mix(times=np.array([1.0, 1.0, -1.0])), 1)):
        assert mixed_ranks([(items, users)], [mix], np.array([target]), seen, progress=False)[0].greater == [0]
    two = [(items, users), (items, 2 * users)]
    assert mixed_ranks(two, [Mix((1, -1))], np.array([0]), seen, progress=False)[0].greater == [0]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1,), (-1,), (1, -2), (-1, -0.5), (0, 1)]), st.booleans())
def test_mixes_of_any_sign_are_those_of_a_plain_sum(seed, weights, left_out):
    rng = np.random.default_rng(seed)
    n, users = int(rng.integers(1, 30)), int(rng.integers(1, 9))
    products = [(rng.normal(size=(n, 3)), rng.normal(size=(users, 3))) for _ in weights]
    times = rng.choice([-2.0, -1.0, 0.0, 0.5, 3.0], n)
    targets = rng.integers(0, n, users)
    seen = [np.setdiff1d(rng.choice(n, n // 2, replace=False), t) if left_out else np.zeros(0, int) for t in targets]
    flat = np.cumsum([0, *map(len, seen)]), np.concatenate(seen)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = mixed_ranks(products, [Mix(weights, times=times)], targets, flat, progress=False, block=(4, 5))[0]
    s = sum(w * (u @ i.T) for w, (i, u) in zip(weights, products)) * times
    own = s[np.arange(users), targets][:, None]
    for u, left in enumerate(seen):
        s[u, left] = -np.inf
    assert (found.greater == (s > own + 1e-12).sum(1)).all()
    assert (found.ties == (abs(s - own) < 1e-12).sum(1) - 1).all()


def test_vectors_whose_products_would_overflow_are_refused():
    x = {'a': np.eye(4, dtype=np.float32), 'b': np.eye(4, dtype=np.float32)}

    def long(sides):
        return np.concatenate(list(sides.values()), 1) * np.float32(1e30)

    with pytest.raises(ValueError, match='up to 1e.30, whose products do not fit into float32'):
        fuse_vectors(x, x, long)


@pytest.mark.parametrize('name', [0, None, ('text', 1), ''])
def test_a_modality_is_called_by_a_word(name):
    some = np.random.default_rng(0).normal(size=(8, 4))
    with pytest.raises(TypeError, match='items: the modality .* has no name'):
        evaluate({name: some}, {name: some}, np.arange(8))


@pytest.mark.parametrize('weight', ['2', None, [1]])
def test_a_weight_is_a_number(weight):
    some = {m: np.random.default_rng(0).normal(size=(8, 4)) for m in ('text', 'image')}
    with pytest.raises(TypeError, match='the weight of image is .*, which is no number'):
        evaluate(some, some, np.arange(8), fuse={'text': 1, 'image': weight})


@pytest.mark.parametrize('fuse', ['sum', 'concat', dict(text=1, image=3)])
def test_sides_that_name_their_modalities_in_another_order_fuse_alike(fuse):
    rng = np.random.default_rng(0)
    items, users = ({m: rng.normal(size=(n, 4)) for m in ('text', 'image')} for n in (9, 5))
    i, u = fuse_vectors(items, dict(reversed(users.items())), fuse)
    j, v = fuse_vectors(items, users, fuse)
    assert np.allclose(u @ i.T, v @ j.T)
