"""The last basket against a plain loop, and what must not change it; warnings where a test has few rows."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm2rec_lab.data import (
    PAD,
    Catalogue,
    DataError,
    Dataset,
    DataWarning,
    Interactions,
    Ragged,
    baskets,
    check_split,
    cold_items,
    hold_out_users,
    last_basket,
    last_day,
    leave_one_out,
    read_split,
    temporal_split,
)
from vlm2rec_lab.shop.splits import _hash, _mix, describe_split, settle_repeats, time_leak

DAY, ITEMS = 86400.0, 7
CATALOGUE = Catalogue([f'i{k}' for k in range(ITEMS)], {'text': [None] * ITEMS}, {'text': 'text'})
quiet = pytest.mark.filterwarnings('ignore::vlm2rec_lab.base.errors.DataWarning')
events = st.lists(st.tuples(st.integers(0, 4), st.integers(0, ITEMS - 1), st.integers(0, 9)), min_size=1, max_size=45)
many = settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.filter_too_much])


def dataset(rows, shift=20_000, step=DAY, catalogue=CATALOGUE):
    "A dataset from (user, item, time), in the order given where times are the same; an item may come twice at a time."
    df = pd.DataFrame(rows, columns=['u', 'i', 't']).sort_values(['u', 't'], kind='stable')
    ids = sorted(set(df.u))
    offsets = np.searchsorted(df.u.to_numpy(), [*ids, len(df) + 99])
    items = [catalogue.ids.index(f'i{i}') for i in df.i]
    inter = Interactions([f'u{u}' for u in ids], offsets, items, (df.t.to_numpy() + shift) * step)
    return Dataset(catalogue, inter, 'generated')


def plain_baskets(data, gap):
    "[users] of lists of baskets of (place, item), one user after the other."
    inter, out = data.interactions, []
    for u in range(len(inter)):
        mine = []
        for p in range(inter.offsets[u], inter.offsets[u + 1]):
            if not mine or inter.times[p] - inter.times[p - 1] > gap:
                mine.append([])
            mine[-1].append((p, int(inter.items[p])))
        out.append(mine)
    return out


def plain(data, gap, new, history, seed):
    "Rows of each part: {part: [(user, history, set, seen, stands for it)]}, and the training items of each user."
    names, ids, rows, items = data.interactions.user_ids, CATALOGUE.ids, {'valid': [], 'test': []}, []
    rows['train'] = []
    for u, mine in enumerate(plain_baskets(data, gap)):
        n = len(mine)
        trained = [i for b in (mine[:-2] if n > 2 else mine[:1]) for _, i in b]
        items.append(sorted({*trained}))
        rows['train'] += [(u, trained[max(0, k - history) : k], trained[k]) for k in range(1, len(trained))]
        for part, at in (('valid', n - 2), ('test', n - 1)):
            if at < 1:
                continue
            before = [i for b in mine[:at] for _, i in b]
            want = sorted({i for _, i in mine[at]} - ({*before} if new else set()))
            if want:
                mixed = {i: _mix(_hash([names[u]], seed) ^ _hash([ids[i]], seed + 1))[0] for i in want}
                stands = min(want, key=mixed.get)
                rows[part].append((u, before[-history:], want, sorted({*before} - {*want}), stands))
    return rows, items


def told(rows):
    "The same of Rows that ask for sets."
    window = [[int(i) for i in h if i != PAD] for h in rows.history]
    parts = rows.users.tolist(), window, rows.sets, rows.seen, rows.targets.tolist()
    return [(u, h, s.tolist(), x.tolist(), t) for u, h, s, x, t in zip(*parts)]


@quiet
@many
@given(events, st.integers(0, 3), st.booleans(), st.integers(1, 4), st.integers(0, 5))
def test_last_basket_is_the_plain_loop(rows, gap, new, history, seed):
    data = dataset(rows)
    want, items = plain(data, gap * DAY, new, history, seed)
    try:
        split = last_basket(data, gap * DAY, new, history, seed, train_seen=False)
    except DataError as e:
        assert not want['test']
        assert ('two baskets' in str(e)) == all(len(b) < 2 for b in plain_baskets(data, gap * DAY))
        return
    for part in ('valid', 'test'):
        assert told(getattr(split, part)) == want[part], part
    asks = zip(split.train.users.tolist(), split.train.history.tolist(), split.train.targets.tolist())
    assert [(u, [i for i in h if i != PAD], t) for u, h, t in asks] == want['train']
    assert [x.tolist() for x in Ragged(*split.user_items)] == items
    check_split(split)
    inter = data.interactions
    assert (inter.items[split.test.places] == split.test.targets).all()
    assert sum(split.about['interactions'].values()) == len(inter.items)
    assert 'asked by no row' not in split.about['interactions']


@quiet
@many
@given(events, st.randoms(use_true_random=False), st.booleans(), st.integers(-5000, 5000))
def test_no_order_has_a_say_in_what_is_asked(rows, random, new, shift):
    "Lines of the file, users, items of the catalogue, and the date: the questions are the same."
    other = random.sample(rows, len(rows))
    ids = random.sample([*CATALOGUE.ids], ITEMS)
    turned = dataset(other, 20_000 + shift, catalogue=Catalogue(ids, {'text': [None] * ITEMS}, {'text': 'text'}))
    made = []
    for data in (dataset(rows), turned):
        try:
            split = last_basket(data, new=new)
        except DataError:
            made.append(None)
            continue
        named, users = data.catalogue.ids, data.interactions.user_ids
        made.append(
            {
                (part, users[u]): ({named[i] for i in s}, {named[i] for i in x}, named[t])
                for part in ('valid', 'test')
                for r in [getattr(split, part)]
                for u, s, x, t in zip(r.users, r.sets, r.seen, r.targets)
            }
        )
    assert made[0] == made[1]


@quiet
@many
@given(events, st.integers(0, 23), st.integers(0, 23))
def test_a_day_is_a_day_at_any_hour(rows, first, second):
    "With within='day' the hours of a day make one basket, in any unit."
    data = dataset(rows)
    hours = np.sort(np.array([first, second]))[np.arange(len(data.interactions.items)) % 2]
    who = np.repeat(np.arange(len(data.interactions)), data.interactions.lengths)
    late = data.interactions.times + hours * 3600
    order = np.lexsort((late, who))
    inter = data.interactions
    for scale in (1, 1000):
        moved = Interactions(inter.user_ids, inter.offsets, inter.items[order], late[order] * scale)
        own = baskets(Dataset(CATALOGUE, moved, 'hours'), 'day', unit={1: 's', 1000: 'ms'}[scale])
        assert own.tolist() == baskets(data)[order].tolist()


def a_shop(users=3, baskets_each=3, size=2):
    "Users with so many baskets of so many items."
    rows = [(u, (u + b * size + k) % ITEMS, b) for u in range(users) for b in range(baskets_each) for k in range(size)]
    return dataset(rows)


@quiet
def test_a_saved_split_of_sets_comes_back(tmp_path):
    split = last_basket(a_shop(), new=True)
    split.save(tmp_path / 's.safetensors')
    back = read_split(tmp_path / 's.safetensors', a_shop())
    assert back.fingerprint == split.fingerprint
    assert told(back.test) == told(split.test)
    assert back.about == split.about
    taken = split.test.take([2, 0])
    assert told(taken) == [told(split.test)[2], told(split.test)[0]]


@quiet
def test_what_else_reads_a_split_of_sets():
    data = a_shop()
    split = last_basket(data)
    assert describe_split(split, data)['tied'] == 0
    assert describe_split(leave_one_out(data), data)['tied'] == 1
    assert time_leak(split, data).rows == 0
    assert '6 targets in sets' in repr(split.test)
    with pytest.raises(DataError, match='new=True'):
        settle_repeats(split, data, 'drop_targets')


@pytest.mark.parametrize(
    'kw, why',
    [
        (dict(within='week'), "or 'day'"),
        (dict(within=-1), 'within=-1'),
        (dict(within=True), 'within=True'),
        (dict(within=float('nan')), 'within=nan'),
        (dict(history=0), 'at least 1 item'),
        (dict(within=DAY * 30), 'smaller within='),
    ],
)
def test_last_basket_refuses(kw, why):
    with pytest.raises(DataError, match=why):
        last_basket(a_shop(), **kw)


def test_places_in_a_list_are_no_times():
    ranked = Dataset(CATALOGUE, Interactions(('a',), [0, 4], [0, 1, 2, 3], [0, 1, 2, 3]), 'ranked')
    with pytest.raises(DataError, match='positions'):
        last_basket(ranked, within=1)
    with pytest.raises(DataError, match='no times'):
        last_basket(Dataset(CATALOGUE, Interactions.of_sequences([[0, 1, 2]]), 'ordered'))
    with pytest.warns(DataWarning, match='1 test row, fewer than 100'):
        assert last_basket(ranked).test.sets[0].tolist() == [3]  # one item each: leave-one-out


# ---- few test rows


@pytest.mark.parametrize(
    'cut',
    [
        leave_one_out,
        lambda d: hold_out_users(d, 5, 5, 5),
        lambda d: temporal_split(d, 0.3, 0.3),
        last_day,
        lambda d: cold_items(d, 0.3),
        last_basket,
    ],
    ids=['leave_one_out', 'hold_out_users', 'temporal_split', 'last_day', 'cold_items', 'last_basket'],
)
def test_every_split_says_that_it_has_few_test_rows(cut):
    with pytest.warns(DataWarning) as heard:
        split = cut(a_shop(users=20))
    n = len(split.test)
    said = f'{n} test rows, fewer than 100: a hit rate near one half is known to ±{0.98 / n**0.5:.2f}'
    assert [said in str(w.message) for w in heard].count(True) == 1
    assert [said in note for note in split.notes].count(True) == 1


def test_enough_rows_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter('error', DataWarning)
        assert len(leave_one_out(a_shop(users=100)).test) == 100
        assert len(last_basket(a_shop(users=100)).test) == 100


def test_rows_that_repeats_take_away_are_warned_of():
    lines = [(u, i, t) for u in range(120) for t, i in enumerate((0, 1, 2, 0 if u < 30 else 3))]
    data = dataset(lines)
    with warnings.catch_warnings():
        warnings.simplefilter('error', DataWarning)
        split = leave_one_out(data)
        assert len(settle_repeats(split, data, 'keep').test) == 120
    with pytest.warns(DataWarning, match='90 test rows, fewer than 100'):
        fewer = settle_repeats(split, data, 'drop_targets')
    assert '90 test rows, fewer than 100' in fewer.notes[-1]


@quiet
def test_a_million_choices():
    rng, n, users = np.random.default_rng(0), 1_000_000, 100_000
    who = np.sort(rng.integers(0, users, n))
    times = rng.integers(18_000, 18_060, n) * DAY
    times = times[np.lexsort((times, who))]
    catalogue = Catalogue([f'i{k}' for k in range(20_000)], {'text': [None] * 20_000}, {'text': 'text'})
    offsets = np.searchsorted(who, np.arange(users + 1))
    inter = Interactions(tuple(map(str, range(users))), offsets, rng.integers(0, 20_000, n), times)
    split = last_basket(Dataset(catalogue, inter, 'a million'), new=True)
    assert len(split.test) > 90_000
