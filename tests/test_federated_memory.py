"What clients remember and what the server holds: counts, weights and switches."

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated.memory import discrepancy, keep_counts, places, remembered, replay_pushes
from vlm2rec_lab.federated.temporal import holding, old_weights, temporal_mean

SCORES = arrays(np.float32, (3, 7), elements=st.integers(-2, 2).map(float))  # with many ties
LISTS = st.permutations(range(7)).map(lambda p: torch.tensor([p[:4]] * 3))
NUMBERS = st.floats(-3, 3, width=32)


@given(SCORES, LISTS)
def test_places_are_those_of_a_stable_order(scores, lists):
    scores = torch.from_numpy(scores)
    order = scores.argsort(dim=1, descending=True, stable=True)
    expected = [[row.tolist().index(i) for i in listed.tolist()] for row, listed in zip(order, lists)]
    assert places(scores, lists).tolist() == expected
    assert discrepancy(scores, lists).tolist() == [sum(abs(p - k) for k, p in enumerate(e)) for e in expected]


@given(st.integers(0, 999), st.integers(1, 9), st.booleans())
def test_places_of_few_ties_are_those_of_a_stable_order(seed, length, one_tie):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(5, 40, generator=g)
    lists = torch.rand(5, 40, generator=g).argsort(1)[:, :length]
    if one_tie:
        scores[2, 7] = scores[2, lists[2, 0]]
    standing = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
    assert torch.equal(places(scores, lists), standing.gather(1, lists))


@given(st.integers(0, 3000), st.integers(1, 60), st.floats(0, 0.1))
def test_keep_counts_are_the_floor(apart, length, eps):
    found = int(keep_counts(torch.tensor([apart]), length, eps))
    assert 0 <= found <= length and abs(found - math.floor(length * math.exp(-eps * apart) + 1e-9)) == 0
    assert found == length or apart * eps > 0


@given(SCORES, LISTS, st.floats(0, 0.3), st.integers(0, 99))
def test_as_many_are_taught_as_are_kept_and_no_others(scores, lists, eps, seed):
    scores, lots = torch.from_numpy(scores), torch.rand(3, 4, generator=torch.Generator().manual_seed(seed))
    pushes = replay_pushes(scores, lists, scores.gather(1, lists) + 5, lots, eps, 1.0)
    counts = keep_counts(discrepancy(scores, lists), 4, eps)
    assert (pushes != 0).sum(1).tolist() == counts.tolist()
    listed = torch.zeros_like(scores).scatter_(1, lists, 1.0)
    assert not bool(pushes[listed == 0].any())
    for row, count in enumerate(counts.tolist()):
        lowest = lists[row][lots[row].argsort()[:count]]
        assert set(pushes[row].nonzero()[:, 0].tolist()) == set(lowest.tolist())


def test_who_is_taught_what_it_scores_already_is_left_alone():
    scores, lists = torch.randn(3, 7), torch.tensor([[1, 2, 3]] * 3)
    assert not bool(replay_pushes(scores, lists, scores.gather(1, lists), torch.rand(3, 3), 0.0, 1.0).any())


def test_lists_are_made_anew_for_those_of_the_block_and_old_scores_for_all():
    g = torch.Generator().manual_seed(0)
    heads, offsets, items = (torch.randn(s, generator=g) for s in ((4, 3), (4,), (9, 3)))
    first = remembered(heads[:3], offsets[:3], items[:8], torch.tensor([0, 1, 2]), length=5)
    later = remembered(-heads, offsets, items, torch.tensor([0, 3]), first, at_once=9)
    best = (-heads @ items.T).argsort(dim=1, descending=True, stable=True)[:, :5]
    assert later.lists[[0, 3]].tolist() == best[[0, 3]].tolist()
    assert later.lists[[1, 2]].tolist() == first.lists[[1, 2]].tolist() and first.lists.shape == (3, 5)
    assert torch.allclose(later.old, (-heads @ items.T + offsets[:, None]).gather(1, later.lists), atol=1e-6)
    assert remembered(heads, offsets, items, torch.arange(4), length=50).lists.shape == (4, 9)


@pytest.mark.parametrize('how', [dict(length=0), dict(length=2.5), dict(eps=-1), dict(weight=-1)])
def test_a_memory_that_is_none_is_refused(how):
    with pytest.raises(DataError, match='nothing below 0'):
        remembered(torch.eye(2), torch.zeros(2), torch.eye(2), torch.arange(2), **how)


VECTORS = arrays(np.float32, (4, 3), elements=NUMBERS)


@given(VECTORS, VECTORS, st.floats(0, 1))
def test_an_item_ends_between_its_old_and_its_new_place(mean, old, beta):
    mean, old = torch.from_numpy(mean), torch.from_numpy(old)[:3]
    w = old_weights(mean[:3], old, beta)
    expected = [beta / (1 + float(((o - q).double() ** 2).sum()) / 3**0.5) for q, o in zip(mean, old)]
    assert torch.allclose(w.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6)
    held = temporal_mean(mean, old, beta)
    assert torch.equal(held[3], mean[3]) and held.shape == mean.shape
    low, high = torch.minimum(mean[:3], old), torch.maximum(mean[:3], old)
    assert bool(((held[:3] >= low - 1e-5) & (held[:3] <= high + 1e-5)).all())


def test_a_server_keeps_its_own_copy():
    old = torch.ones(2, 3)
    server = holding(old, 1.0)
    old.zero_()
    assert torch.equal(server(torch.ones(2, 3)), torch.ones(2, 3))
    with pytest.raises(DataError, match='beta=-0.1'):
        temporal_mean(old, old, -0.1)
