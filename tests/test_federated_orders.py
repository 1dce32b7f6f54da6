"Blocks in another order: the same pairs under other numbers, and nobody is known too early or too late."

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated.blocks import PARTS, Block, Blocks, Pairs, blocks, check_blocks
from vlm2rec_lab.federated.continual import run_blocks, task_of
from vlm2rec_lab.federated.continual import test_of as asked_of
from vlm2rec_lab.federated.drift import drifting
from vlm2rec_lab.federated.orders import reordered

PAIR = st.tuples(st.integers(0, 5), st.integers(0, 6))
PART = st.lists(PAIR, min_size=1, max_size=5)


def numbered(values):
    "Numbers by first appearance, and what they stand for."
    found = list(dict.fromkeys(values))
    return [found.index(v) for v in values], found


@st.composite
def any_blocks(draw):
    "Blocks of free pairs, with users and items numbered as `blocks` does it."
    sizes = draw(st.lists(st.tuples(PART, PART, PART), min_size=2, max_size=4))
    pairs = [p for block in sizes for part in block for p in part]
    (users, who), (items, what) = (numbered([p[side] for p in pairs]) for side in (0, 1))
    made, at = [], 0
    for block in sizes:
        parts = []
        for part in block:
            parts.append(Pairs(np.array(users[at : at + len(part)]), np.array(items[at : at + len(part)])))
            at += len(part)
        made.append(Block(*parts, max(users[:at]) + 1, max(items[:at]) + 1))
    return Blocks(tuple(made), tuple(f'u{u}' for u in who), np.array(what), 'free')


def by_ids(made, pairs):  # -> list of (user id, item of the catalogue), in their order
    return [(made.user_ids[u], int(made.catalogue[i])) for u, i in zip(pairs.users, pairs.items)]


@given(any_blocks(), st.randoms(use_true_random=False))
def test_the_same_pairs_come_in_the_asked_order_and_everybody_is_known_in_time(old, random):
    order = random.sample(range(len(old)), len(old))
    new = reordered(old, order)
    seen = {'users': set(), 'items': set()}
    for k, n in zip(order, range(len(old))):
        for part in PARTS:
            mine, theirs = getattr(new[n], part), getattr(old[k], part)
            assert by_ids(new, mine) == by_ids(old, theirs)
            for side in seen:
                seen[side] |= set(getattr(mine, side).tolist())
        for side, numbers in seen.items():
            assert numbers == set(range(getattr(new[n], side)))
    assert sorted(new.user_ids) == sorted(old.user_ids)
    assert sorted(new.catalogue.tolist()) == sorted(old.catalogue.tolist())


@given(any_blocks())
def test_the_order_that_was_changes_nothing(old):
    for order in (range(len(old)), range(1, len(old))):
        same = reordered(old, order)
        assert same.fingerprint == old.fingerprint and same.name == old.name
        assert same.user_ids == old.user_ids and same.catalogue.tolist() == old.catalogue.tolist()
        assert same.frame.equals(old.frame)


@given(any_blocks(), st.lists(st.integers(-1, 4), max_size=5))
def test_an_order_names_each_block_once(old, order):
    whole = order if 0 in order else [0, *order]
    if sorted(whole) == list(range(len(old))):
        assert len(reordered(old, order)) == len(old)
    else:
        with pytest.raises(DataError, match='order='):
            reordered(old, order)


def test_by_hand():
    def pairs(*both):
        return Pairs(*np.array(both, int).reshape(-1, 2).T)

    none = pairs()
    first = Block(pairs((0, 0), (1, 1)), none, none, 2, 2)
    second = Block(pairs((2, 0), (0, 2)), none, none, 3, 3)
    third = Block(pairs((3, 3), (1, 2)), none, none, 4, 4)
    old = Blocks((first, second, third), ('ann', 'bob', 'cid', 'dan'), np.array([10, 11, 12, 13]), 'by hand')
    new = reordered(old, (2, 1))
    assert new.user_ids == ('ann', 'bob', 'dan', 'cid') and new.catalogue.tolist() == [10, 11, 12, 13]
    assert [b.users for b in new] == [2, 3, 4] and [b.items for b in new] == [2, 4, 4]
    assert new[1].train.users.tolist() == [2, 1] and new[1].train.items.tolist() == [3, 2]
    assert new[2].train.users.tolist() == [3, 0] and new[2].train.items.tolist() == [0, 2]
    assert new.name == 'by hand, in the order 0, 2, 1'
    last = reordered(old, (2, 0, 1))
    assert last.user_ids == ('bob', 'dan', 'ann', 'cid') and last.catalogue.tolist() == [12, 13, 10, 11]
    assert old[1].train.users.tolist() == [2, 0]


def test_a_federation_learns_them_and_its_base_block_is_the_same():
    shop = blocks(drifting(80, 60, 3, purchases=15).dataset, core=2)
    turned = reordered(shop, (3, 1, 2))
    check_blocks(turned)
    quick = dict(dim=4, rounds=2, cut=5, progress=False)
    old, new = (run_blocks(b, memory=True, temporal=True, **quick) for b in (shop, turned))
    assert new.runs[0].frame[['loss', 'NDCG@5']].equals(old.runs[0].frame[['loss', 'NDCG@5']])
    assert not new.runs[1].frame.loss.equals(old.runs[1].frame.loss)
    assert len(task_of(turned, 1).clients.items) == len(shop[3].train)
    assert len(asked_of(turned, 3, 1)) == len(np.unique(shop[3].test.users))
