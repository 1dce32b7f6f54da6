"The drawn shop in time: what is stated is so, what cannot be drawn is refused, and nothing needs a table of all pairs."

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated.blocks import PARTS, blocks, joined
from vlm2rec_lab.federated.drift import drifting, kept_taste

DAY = 86400.0


@settings(max_examples=25)
@given(
    st.integers(1, 30),
    st.integers(1, 4),
    st.floats(0, 1),
    st.floats(0, 0.5),
    st.floats(0, 1),
    st.integers(1, 8),
    st.integers(0, 3),
)
def test_what_is_stated_is_so(users, parts, drift, launches, newcomers, purchases, seed):
    how = dict(drift=drift, launches=launches, newcomers=newcomers, purchases=purchases, rank=4, seed=seed)
    drawn = drifting(users, 40, parts, **how)
    inter, n = drawn.dataset.interactions, users * purchases
    who, days = np.repeat(np.arange(users), purchases), inter.times / DAY
    assert inter.lengths.tolist() == [purchases] * users
    assert len(np.unique(who * 40 + inter.items)) == n
    assert (drawn.launched[inter.items] <= days).all() and days.min() >= 0 and days.max() <= 365
    late = drawn.launched > 0
    assert late.sum() == round(40 * launches) and (drawn.launched[late] > drawn.ends[0]).all()
    assert drawn.vectors.shape == (40, 4) and drawn.tastes.shape == (parts + 1, users, 4)
    assert np.allclose(np.linalg.norm(drawn.tastes, axis=2), 1)
    assert np.allclose((drawn.tastes[1:] * drawn.tastes[:-1]).sum(2), 1 - drift)
    assert len(drawn.ends) == parts and (np.diff(drawn.ends) >= 0).all()


def test_tastes_stay_without_drift_and_nothing_is_left_with_a_drift_of_one():
    how = dict(launches=0, newcomers=0, purchases=40)
    kept = {d: kept_taste(drifting(500, 1500, 3, drift=d, **how))[1:] for d in (0, 0.5, 1)}
    assert kept[0].min() > 0.6 and np.ptp(kept[0]) < 0.06
    assert np.abs(kept[1]).max() < 0.06
    assert (np.diff(kept[0.5]) < -0.05).all() and kept[0.5].max() < 0.45


def test_taste_decides_as_much_as_it_is_told_to():
    def liked(strength):
        drawn = drifting(300, 300, 1, drift=0, launches=0, newcomers=0, purchases=10, strength=strength)
        who = np.repeat(np.arange(300), 10)
        return (drawn.tastes[0][who] * drawn.vectors[drawn.dataset.interactions.items]).sum(1).mean()

    none, some, much = map(liked, (0.0, 3.0, 8.0))
    assert abs(none) < 0.05 < some < much


def test_shops_that_differ_by_drift_have_the_same_past_and_equal_seeds_the_same_shop():
    a, b, again = (drifting(60, 100, 2, drift=d, purchases=10, seed=4).dataset.interactions for d in (0, 1, 1))
    ends = drifting(60, 100, 2, purchases=10, seed=4).ends
    past = a.times <= ends[0] * DAY
    assert (a.times == b.times).all() and (a.items[past] == b.items[past]).all()
    assert (a.items[~past] != b.items[~past]).mean() > 0.5 and (b.items == again.items).all()
    assert (b.items != drifting(60, 100, 2, drift=1, purchases=10, seed=5).dataset.interactions.items).mean() > 0.5


def test_a_block_is_a_time():
    drawn = drifting(200, 150, 3, launches=0.2, purchases=12)
    made, inter = blocks(drawn.dataset, core=0), drawn.dataset.interactions
    who = np.repeat(np.arange(200), 12)
    time = dict(zip(zip(who, inter.items), np.searchsorted(drawn.ends, inter.times / DAY)))
    found = []
    for k, block in enumerate(made):
        pairs = joined(*(getattr(block, part) for part in PARTS))
        users = [int(made.user_ids[u][1:]) for u in pairs.users]
        found += [time[u, i] == k for u, i in zip(users, made.catalogue[pairs.items])]
    assert np.mean(found) > 0.999 and len(found) == len(inter.items)
    assert made[3].items > made[0].items and made[3].users > made[0].users


def test_no_table_of_all_customers_and_items():
    users, items = 4000, 3000
    tracemalloc.start()
    drifting(users, items, 2, purchases=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < users * items * 4 / 2  # half of a table of one time in float32


@pytest.mark.parametrize(
    'wrong, said',
    [
        (dict(users=0), 'users=0'),
        (dict(items=1), 'items=1'),
        (dict(parts=2.5), 'parts=2.5'),
        (dict(purchases=0), 'purchases=0'),
        (dict(drift=-0.1), 'drift=-0.1'),
        (dict(launches=1.2), 'launches=1.2'),
        (dict(newcomers=2), 'newcomers=2'),
        (dict(base=0.0), 'base=0.0'),
        (dict(strength=99), 'strength=99'),
        (dict(rank=1), 'rank=1'),
        (dict(length=0.0), 'length=0.0'),
        (dict(items=20, launches=0.5, purchases=6), 'fewer launches'),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong, said):
    with pytest.raises(DataError, match=said):
        drifting(**dict(users=10, items=100, parts=3) | wrong)
