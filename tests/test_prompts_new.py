"New items ranked by hand."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.prompts.new import new_item_figures
from vlm2rec_lab.shop.rows import Rows


def drawn(seed, n=12, users=9):
    "Rows with what each has seen, coarse scores with ties, and which items are new."
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(n), (users, 1)), axis=1)
    had = [np.sort(o[1 : 1 + rng.integers(0, 5)]) for o in order]
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in had])])
    rows = Rows(np.arange(users), np.full((users, 1), -1), order[:, 0], offsets, np.concatenate(had))
    return rows, rng.integers(0, 4, (users, n)).astype(float), rng.random(n) < rng.choice([0.2, 0.7])


def by_hand(rows, scores, mine, among, k):
    "Share of random orders of ties that show the target, and of random orders of everything."
    hits, chances = [], []
    for row in mine:
        seen = set(rows.seen_items[rows.seen_offsets[row] : rows.seen_offsets[row + 1]].tolist())
        left = [i for i in among if i not in seen]
        own = scores[row, rows.targets[row]]
        above = sum(scores[row, i] > own for i in left)
        level = sum(scores[row, i] == own for i in left)
        hits.append(min(max(k - above, 0) / level, 1))
        chances.append(min(k / len(left), 1))
    return np.mean(hits), np.mean(chances)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_figures_are_those_counted_by_hand(seed, k):
    rows, scores, new = drawn(seed)
    found = new_item_figures(lambda at: scores[at], rows, new, ks=(k,), metrics=('HR',))
    fresh, every = np.flatnonzero(new[rows.targets]), np.arange(len(new))
    known = np.setdiff1d(np.arange(len(rows)), fresh)
    for at, (mine, among) in enumerate([(fresh, every), (fresh, np.flatnonzero(new)), (known, every)]):
        assert found.rows[at] == len(mine) and found['items'][at] == len(among)
        told = found[f'HR@{k}'][at], found[f'chance HR@{k}'][at]
        if len(mine):
            assert np.allclose(told, by_hand(rows, scores, mine, among, k))
        else:
            assert np.isnan(told).all()


def test_what_does_not_fit_is_told():
    rows, scores, new = drawn(0)
    for wrong in (new.astype(int), new[:3], new[None]):
        with pytest.raises(DataError, match='a bool for each item'):
            new_item_figures(lambda at: scores[at], rows, wrong)
    sets = Rows(
        rows.users, rows.history, rows.targets, rows.seen_offsets, rows.seen_items, None, None, range(10), rows.targets
    )
    with pytest.raises(DataError, match='ask for one item'):
        new_item_figures(lambda at: scores[at], sets, new)
