"Blocks of time: nothing is lost, nothing comes too early, and what cannot be cut is refused."

import numpy as np
import pytest
from federated_worlds import DAY, drawn_shop, shop_of
from hypothesis import given
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated.blocks import PARTS, Pairs, blocks, joined
from vlm2rec_lab.federated.rank import asking

EVENTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), min_size=1, max_size=12)
LOGS = st.dictionaries(st.sampled_from('abcdefgh'), EVENTS, min_size=2)


@pytest.fixture(scope='module')
def drawn():
    return drawn_shop(items=40, users=120, length=12)


def first_times(dataset):  # -> {(user, item of the catalogue): time}
    inter, found = dataset.interactions, {}
    for u, (a, b) in enumerate(zip(inter.offsets[:-1], inter.offsets[1:])):
        for i, t in zip(inter.items[a:b], inter.times[a:b]):
            found.setdefault((inter.user_ids[u], int(i)), t)
    return found


def check(made, dataset):
    "What every cut must keep."
    times, before, whole = first_times(dataset), -np.inf, set()
    for k, block in enumerate(made):
        parts = {p: pairs_of(made, getattr(block, p)) for p in PARTS}
        every = [pair for p in parts.values() for pair in p]
        assert len(set(every)) == len(every) and not whole & set(every)
        when = [times[pair] for pair in every]
        assert min(when) >= before
        before, whole = max(when), whole | set(every)
        assert max(made[k].users, made[k].items) <= max(len(made.user_ids), len(made.catalogue))
        for user in {u for u, _ in every}:
            mine = {p: [times[pair] for pair in parts[p] if pair[0] == user] for p in PARTS}
            assert mine['train'] and len(mine['valid']) <= len(mine['test']) + (len(mine['test']) > 0)
            if k:
                in_order = [t for p in PARTS for t in sorted(mine[p])]
                assert in_order == sorted(in_order)
    assert set(made.user_ids) == {u for u, _ in whole} and set(made.catalogue.tolist()) == {i for _, i in whole}
    return whole


def pairs_of(made, pairs):  # -> list of (user id, item of the catalogue)
    return [(made.user_ids[u], int(made.catalogue[i])) for u, i in zip(pairs.users, pairs.items)]


@given(LOGS, st.integers(1, 3), st.integers(0, 2), st.integers(0, 3))
def test_any_log_is_cut_by_time_and_nothing_is_lost(log, parts, core, seed):
    log = {u: sorted(((i, day) for i, day in events), key=lambda e: e[1]) for u, events in log.items()}
    dataset = shop_of(log)
    try:
        made = blocks(dataset, 0.5, parts, core, seed=seed)
    except DataError as e:
        assert 'ask for fewer' in str(e) or 'too few' in str(e) or 'no times' in str(e)
        return
    whole = check(made, dataset)
    assert len(whole) == made.frame.pairs.sum()
    if core <= 1:
        assert whole == set(first_times(dataset))
    users, items = zip(*whole)
    assert min(users.count(u) for u in users) >= core and min(items.count(i) for i in items) >= core


def test_the_drawn_studio(drawn):
    made = blocks(drawn, core=5)
    check(made, drawn)
    sizes = made.frame.pairs.tolist()
    assert sizes[0] == int(0.6 * sum(sizes)) and sizes[1] == sizes[2] == int(0.4 * sum(sizes) / 3)
    assert made.frame.users.is_monotonic_increasing and made.frame['items'].is_monotonic_increasing
    assert 'blocks, 5-core (seed 0)' in made.name and 'train' in repr(made)


def test_only_the_lottery_of_the_base_block_depends_on_the_seed(drawn):
    a, b = blocks(drawn, core=5), blocks(drawn, core=5, seed=1)
    assert a.fingerprint != b.fingerprint == blocks(drawn, core=5, seed=1).fingerprint
    assert a[0].test.items.tolist() != b[0].test.items.tolist()
    for k in range(1, 4):
        assert all(getattr(a[k], p).items.tolist() == getattr(b[k], p).items.tolist() for p in PARTS)


def test_ties_stand_in_the_order_of_users():
    same = {u: [(i, 1) for i in range(6)] for u in 'ab'}
    made = blocks(shop_of(same | {'c': [(0, 2), (1, 3), (2, 4)]}), 0.4, 2, 0)
    assert pairs_of(made, joined(*(getattr(made[0], p) for p in PARTS)))[0][0] == 'a'
    assert {u for u, _ in pairs_of(made, made[0].train)} == {'a'}


@pytest.mark.parametrize(
    ('how', 'said'),
    [
        (dict(base=0), 'base=0: give the share'),
        (dict(parts=0), 'parts=0: give a whole number, 1 or more'),
        (dict(parts=1.5), 'parts=1.5'),
        (dict(core=-1), 'core=-1'),
        (dict(valid=0), 'valid=0'),
        (dict(valid=0.5, test=0.5), 'each needs a share'),
        (dict(core=99), 'ask for fewer'),
        (dict(core=1, parts=5000), 'too few for 5001 blocks'),
    ],
)
def test_what_cannot_be_cut_is_refused(drawn, how, said):
    with pytest.raises(DataError, match=said.replace('(', r'\(')):
        blocks(drawn, **{'core': 5, **how})


def test_repeats_count_once_the_first_time():
    log = {u: [(i, 2 * i + k) for i in range(8)] + [(0, 90)] for k, u in enumerate('abc')}
    made = blocks(shop_of(log), 0.5, 1, 2)
    assert made.frame.pairs.sum() == 24 and any('3 repeats' in n for n in made.notes)
    assert max(first_times(shop_of(log)).values()) == 16 * DAY


PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, unique=True)


@pytest.mark.filterwarnings('ignore:.*no candidate left', 'error:.*their own target')
@given(PAIRS, PAIRS)
def test_what_is_asked_for_is_never_left_out(asked, seen):
    a, s = (Pairs(*np.array(p).T) for p in (asked, seen))
    found = asking(a, [s], 6)
    for u, asks, out in zip(found.users, zip(found.sets[0], found.sets[0][1:]), zip(found.seen[0], found.seen[0][1:])):
        mine = {i for w, i in asked if w == u}
        assert set(found.sets[1][slice(*asks)].tolist()) == mine
        assert set(found.seen[1][slice(*out)].tolist()) == {i for w, i in seen if w == u} - mine


def test_blocks_that_end_within_one_time_are_noted():
    same = shop_of({u: [(i, 3.0) for i in range(6)] for u in 'abcd'})
    assert any('end within one time' in n for n in blocks(same, core=1, parts=2).notes)
    apart = shop_of({u: [(i, 10.0 * k + i) for i in range(6)] for k, u in enumerate('abcd')})
    assert not any('end within one time' in n for n in blocks(apart, core=1, parts=2).notes)
