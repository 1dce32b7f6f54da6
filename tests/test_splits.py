"""Splits against plain loops: cuts by time, items held out, repeats, ties, leaks, and files."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base import files
from vlm2rec_lab.data import (
    PAD,
    Catalogue,
    DataError,
    Dataset,
    DataWarning,
    Interactions,
    Ragged,
    check_split,
    hold_out_users,
    leave_one_out,
    read_split,
    warm_items,
)
from vlm2rec_lab.metrics import evaluate, with_negatives
from vlm2rec_lab.shop import splits
from vlm2rec_lab.shop.rows import split_difference
from vlm2rec_lab.shop.splits import (
    REPEATS,
    break_ties,
    cold_items,
    cold_rows,
    compare_splits,
    first_only,
    last_day,
    repeated,
    settle_repeats,
    split_at,
    temporal_split,
    tied,
    time_leak,
)

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.base.errors.DataWarning')
ITEMS = 7
# nothing to see: splits need ids alone
CATALOGUE = Catalogue([f'i{k}' for k in range(ITEMS)], {'text': [None] * ITEMS}, {'text': 'text'})
events = st.lists(st.tuples(st.integers(0, 4), st.integers(0, ITEMS - 1), st.integers(0, 9)), min_size=4, max_size=45)
many = settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.filter_too_much])


def dataset(rows, order=None):
    "A dataset from (user, item, time); `order` shuffles the file."
    df = pd.DataFrame(rows, columns=['user_id', 'item_id', 'timestamp']).drop_duplicates()
    ids = dict(user_id=[f'u{u}' for u in df.user_id], item_id=[f'i{i}' for i in df.item_id])
    df = df.assign(**ids, timestamp=df.timestamp + 100)
    if order is not None:
        df = df.sample(frac=1, random_state=order)
    return Dataset(CATALOGUE, Interactions.from_frame(df, CATALOGUE), 'generated')


def sequences(data, without_repeats=False):
    "[users] of [(place, item, time)], by a plain loop."
    out = []
    for u in range(len(data.interactions)):
        had, mine = set(), []
        for p in range(data.interactions.offsets[u], data.interactions.offsets[u + 1]):
            i = int(data.interactions.items[p])
            if not (without_repeats and i in had):
                mine.append((p, i, None if data.interactions.times is None else float(data.interactions.times[p])))
            had.add(i)
        out.append(mine)
    return out


def told(rows):
    "Of a Rows: (user, place, history, target, seen), sorted."
    return sorted(
        (int(u), int(p), [int(i) for i in h if i != PAD], int(t), s.tolist())
        for u, p, h, t, s in zip(rows.users, rows.places, rows.history, rows.targets, rows.seen)
    )


def row(u, mine, k, history, seen=True):
    before = [i for _, i, _ in mine[:k]]
    return u, mine[k][0], before[-history:], mine[k][1], sorted({*before} - {mine[k][1]}) if seen else []


def plain_by_time(data, early, late, history, ask, new_users, new_items, repeats):
    "Rows of each part, training items and the number of interactions without a row, one user after the other."
    seqs, rows = sequences(data, repeats == 'first_only'), {'train': [], 'valid': [], 'test': []}
    train = [[x for x in mine if x[2] < early] for mine in seqs]
    warm = {i for mine in train if len(mine) > 1 for _, i, _ in mine}
    for u, mine in enumerate(seqs):
        rows['train'] += [row(u, train[u], k, history, False) for k in range(1, len(train[u]))]
        for part, low, high in (('valid', early, late), ('test', late, np.inf)):
            for k, (_, item, t) in enumerate(mine):
                if not low <= t < high or k == 0:
                    continue
                if repeats == 'drop_targets' and item in {i for _, i, _ in mine[:k]}:
                    continue
                if new_users == 'drop' and not train[u] or new_items == 'drop' and item not in warm:
                    continue
                if ask == 'first' and any(r[0] == u for r in rows[part]):
                    continue
                rows[part].append(row(u, mine, k, history))
    return rows, [sorted({i for _, i, _ in mine}) for mine in train]


choices = dict(
    ask=st.sampled_from(['first', 'every']),
    new_users=st.sampled_from(['keep', 'drop']),
    new_items=st.sampled_from(['keep', 'drop']),
    repeats=st.sampled_from(REPEATS),
)


@many
@given(events, st.integers(101, 108), st.integers(0, 4), st.integers(1, 4), st.fixed_dictionaries(choices))
def test_temporal_split_is_the_plain_loop(rows, early, gap, history, kw):
    data = dataset(rows)
    assume(data.interactions.timed)
    want, items = plain_by_time(data, early, early + gap, history, **kw)
    try:
        split = temporal_split(data, early, early + gap, history=history, **kw)
    except DataError:
        assert not want['train'] or not want['test']
        return
    for part in want:
        assert told(getattr(split, part)) == sorted(want[part]), part
    assert [x.tolist() for x in Ragged(*split.user_items)] == items
    check_split(split)
    check_times(split, data, early, early + gap)
    counts = split.about['interactions']
    check_fates(split, data)
    removed = repeated(data.interactions).sum() if kw['repeats'] == 'first_only' else 0
    assert counts.get('repeats removed', 0) == removed
    assert counts['asked in the test'] == len(want['test'])
    assert counts.get('asked in validation', 0) == len(want['valid'])
    assert counts['trained on'] == sum(len(m) for m in sequences_before(data, early, kw) if len(m) > 1)


def check_times(split, data, early, late):
    "Every part lies between its moments, and nothing leaks."
    times = data.interactions.times
    assert (times[split.train.places] < early).all()
    assert (times[split.valid.places] >= early).all()
    assert (times[split.valid.places] < late).all()
    assert (times[split.test.places] >= late).all()
    assert time_leak(split, data).rows == 0


def check_fates(split, data):
    "Every interaction has one fate, with a name; the sums are in a note."
    n, counts = len(data.interactions.items), split.about['interactions']
    assert sum(counts.values()) == n
    assert 'asked by no row' not in counts
    assert all(c > 0 for c in counts.values())
    assert any(f'{n:,} interactions: ' in note for note in split.notes)


def sequences_before(data, early, kw):
    "Each user's interactions before a moment."
    return [[x for x in mine if x[2] < early] for mine in sequences(data, kw['repeats'] == 'first_only')]


@many
@given(events, st.floats(0.05, 0.6), st.floats(0.05, 0.6), st.sampled_from(REPEATS))
def test_shares_keep_equal_times_together(rows, valid, test, repeats):
    data = dataset(rows)
    assume(data.interactions.timed)
    try:
        split = temporal_split(data, valid, test, ask='every', repeats=repeats)
    except DataError:
        return
    times = data.interactions.times
    times = np.sort(times[~repeated(data.interactions)] if repeats == 'first_only' else times)
    early, late = split.about['moments']
    assert late == times[len(times) - round(test * len(times))]
    assert {early, late} <= {*times}
    before = times[times < late]
    assert early == before[len(before) - round(valid * len(before))]


def plain_cold(data, of_test, of_valid, history, repeats):
    "Rows of each part where these items are held out, one user after the other."
    want = {'train': [], 'valid': [], 'test': []}
    for u, mine in enumerate(sequences(data, repeats == 'first_only')):
        whole = len(mine) >= 3
        train = [x for x in (mine[:-2] if whole else mine) if x[1] not in of_test | of_valid]
        want['train'] += [row(u, train, j, history, False) for j in range(1, len(train))]
        if not whole:
            continue
        for part, j, wrong in (('test', len(mine) - 1, of_valid), ('valid', len(mine) - 2, of_test)):
            again = mine[j][1] in {i for _, i, _ in mine[:j]}
            if mine[j][1] not in wrong and not (repeats == 'drop_targets' and again):
                want[part].append(row(u, mine, j, history))
    return want


@many
@given(events, st.sampled_from([0.15, 0.3, 0.45]), st.integers(0, 5), st.integers(1, 4), st.sampled_from(REPEATS))
def test_cold_items_are_never_trained_on(rows, share, seed, history, repeats):
    data = dataset(rows)
    chosen = {int(i) for i in data.interactions.items}
    bought = sorted(chosen, key=lambda i: (int(splits._hash([f'i{i}'], seed)[0]), f'i{i}'))
    k = round(share * len(bought))
    try:
        split = cold_items(data, share, history=history, seed=seed, repeats=repeats)
    except DataError:
        split = None
    if k < 1 or 2 * k >= len(bought):
        assert split is None
        return
    of_test, of_valid = {*bought[-k:]}, {*bought[:k]}
    want = plain_cold(data, of_test, of_valid, history, repeats)
    if split is None:
        assert not want['train'] or not any(r[3] in of_test for r in want['test'])
        return
    for part in want:
        assert told(getattr(split, part)) == sorted(want[part]), part
    check_split(split)
    check_fates(split, data)
    trained = {i for r in want['train'] for i in (*r[2], r[3])}
    assert not trained & (of_test | of_valid)
    assert not {*split.user_items[1].tolist()} & (of_test | of_valid)
    assert not {*split.test.targets.tolist()} & of_valid
    assert not {*split.valid.targets.tolist()} & of_test
    cold = cold_rows(split).tolist()
    assert cold == [t not in trained for t in split.test.targets.tolist()]
    assert cold == (~warm_items(split)[split.test.targets]).tolist()


@many
@given(events, st.integers(0, 3))
def test_repeats_and_ties_are_the_plain_loop(rows, seed):
    data = dataset(rows)
    n = len(data.interactions.items)
    again, alike = np.zeros(n, bool), np.zeros(n, bool)
    for mine in sequences(data):
        for k, (p, i, t) in enumerate(mine):
            again[p] = i in [x[1] for x in mine[:k]]
            alike[p] = sum(x[2] == t for x in mine) > 1
    assert (repeated(data.interactions) == again).all()
    assert (tied(data.interactions) == alike).all()
    once = sequences(first_only(data))
    assert [without_places(m) for m in once] == [without_places(m) for m in sequences(data, True)]
    ordered = break_ties(data, 'item', seed)
    assert by_user(ordered) == by_user(data)
    named = zip(ordered.interactions.user_ids, sequences(ordered))
    assert [(u, without_places(m)) for u, m in named] == by_user(data)


def without_places(mine):
    "[(time, item id)] of one user."
    return [(t, f'i{i}') for _, i, t in mine]


def by_user(data):
    "[(user id, [(time, item id)])], both in the order of ids and times."
    return [(u, sorted(without_places(m))) for u, m in sorted(zip(data.interactions.user_ids, sequences(data)))]


@many
@given(events)
def test_dropped_repeats_are_the_plain_loop(rows):
    data = dataset(rows)
    again = repeated(data.interactions)
    try:
        split = leave_one_out(data)
    except DataError:
        return
    if all(again[p] for p in split.test.places):
        with pytest.raises(DataError):
            settle_repeats(split, data, 'drop_targets')
        return
    fewer = settle_repeats(split, data, 'drop_targets')
    assert told(fewer.train) == told(split.train)
    for part in ('valid', 'test'):
        assert told(getattr(fewer, part)) == [r for r in told(getattr(split, part)) if not again[r[1]]]


SCHEMES = {
    'leave one out': leave_one_out,
    'held-out users': lambda d: hold_out_users(d, 1, 1, 1),
    'by time': lambda d: temporal_split(d, 0.2, 0.3, history=3),
    'every target': lambda d: temporal_split(d, 0.2, 0.2, ask='every', new_items='drop'),
    'cold items': lambda d: cold_items(d, 0.2, history=4, seed=2),
    'two days': lambda d: last_day(d, 2, 2, unit='D'),
}


def made(scheme, data):
    "The split, or None where there is none."
    try:
        return SCHEMES[scheme](data)
    except DataError:
        return None


@pytest.mark.parametrize('by', ['item', 'random'])
@settings(max_examples=60, deadline=None, database=None)
@given(events, st.integers(0, 99), st.integers(0, 3))
def test_the_order_of_the_file_does_not_matter(by, rows, order, seed):
    a, b = (break_ties(dataset(rows, o), by, seed) for o in (None, order))
    for name in SCHEMES:
        x, y = made(name, a), made(name, b)
        assert (x is None) == (y is None), name
        if x is not None:
            assert x.fingerprint == y.fingerprint, name
            assert (split_difference(x, y), x.about) == ('', y.about), name


def trained_places(split, data):
    "Places of all interactions that training holds: targets, and the item that each user's first row looks back on."
    places, starts = [int(p) for p in split.train.places], data.interactions.offsets
    trained = {*places}
    for u, mine in enumerate(sequences(data)):
        own = [p for p in places if starts[u] <= p < starts[u + 1]]
        if own:
            first = split.train.history[places.index(min(own))][0]
            trained.add(next(p for p, i, _ in mine if i == first))
    return trained


@many
@given(events, st.sampled_from(['leave one out', 'held-out users', 'by time', 'cold items']))
def test_leak_is_the_plain_loop(rows, scheme):
    data = dataset(rows)
    assume(data.interactions.timed)
    split = made(scheme, data)
    assume(split is not None and len(split.test) and len(split.train))
    times = data.interactions.times
    ours, asked = [times[p] for p in trained_places(split, data)], [times[p] for p in split.test.places]
    leak = time_leak(split, data)

    def late(t):
        return sum(x > t for x in ours) / len(ours)

    shares = [late(t) for t in asked]
    want = [np.mean([s > 0 for s in shares]), np.mean(shares), late(np.median(asked)), late(min(asked))]
    assert np.allclose([leak.rows, leak.later, leak.after_median, leak.after_first], want)
    assert (leak.tested, leak.trained) == (len(asked), len(ours))
    if scheme == 'leave one out':
        assert f'for {leak.rows:.1%} of' in split.notes[-1]


@settings(max_examples=40, deadline=None, database=None)
@given(events, st.sampled_from([*SCHEMES]), st.booleans())
def test_saved_and_read(tmp_path_factory, rows, scheme, negatives):
    data = dataset(rows)
    split = made(scheme, data)
    assume(split is not None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if negatives:
            split = with_negatives(split, 3, seed=1, by='popularity')
    file = tmp_path_factory.mktemp('split') / 'a.safetensors'
    split.save(file)
    for within in (data, CATALOGUE):
        back = read_split(file, within)
        assert (back.fingerprint, split_difference(back, split)) == (split.fingerprint, '')
        for name in ('name', 'about', 'notes', 'user_ids'):
            assert getattr(back, name) == getattr(split, name)
        for part in ('train', 'valid', 'test'):
            assert told(getattr(back, part)) == told(getattr(split, part))
            assert getattr(back, part).history.dtype == np.int64
    assert compare_splits({'a': split}, data).equals(compare_splits({'a': back}, data))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    data = dataset([(u, (u * 3 + k * k) % ITEMS, k) for u in range(5) for k in range(8)])
    split = temporal_split(data, 0.2, 0.2, history=3)
    file = tmp_path_factory.mktemp('saved') / 's.safetensors'
    split.save(file)
    return data, split, file


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_file_is_noticed(saved, data):
    "Any byte changed, or the end cut off: an error, or the same split (where only words were touched)."
    own, split, file = saved
    raw = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    bad = file.with_name('bad')
    bad.write_bytes(raw)
    try:
        back = read_split(bad, own)
    except DataError:
        return
    assert (back.fingerprint, split_difference(back, split)) == (split.fingerprint, '')


def test_a_killed_writer_leaves_the_old_file(saved, monkeypatch):
    _, split, file = saved
    before, half = file.read_bytes(), []

    def killed(name, mode):
        half.append(Path(name))
        Path(name).write_bytes(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, 'chmod', killed)
    with pytest.raises(KeyboardInterrupt):
        split.save(file)
    assert len(half) == 1 and half[0].parent == file.parent and not half[0].exists()
    assert file.read_bytes() == before
    assert not [p for p in file.parent.iterdir() if p.name.startswith('.')]


PINNED = """
import warnings; warnings.simplefilter('ignore')
import pandas as pd
from vlm2rec_lab.data import Catalogue, Dataset, Interactions, leave_one_out
from vlm2rec_lab.shop.splits import break_ties, cold_items, temporal_split
films = Catalogue([f'f{i}' for i in range(12)], {'text': [f'film {i}' for i in range(12)]}, {'text': 'text'})
columns = {
    'user_id': [f'\\u00fc{k * 7 % 5}' for k in range(60)],
    'item_id': [f'f{(k * k + k // 7) % 12}' for k in range(60)],
    'timestamp': [k // 9 + 100 for k in range(60)],
}
log = Interactions.from_frame(pd.DataFrame(columns).drop_duplicates(), films)
data = break_ties(Dataset(films, log, 'formula'), 'random', seed=7)
splits = leave_one_out(data), temporal_split(data, .2, .2), cold_items(data, .2, seed=3)
print(*(s.fingerprint[:12] for s in splits))
"""


def test_fingerprints_are_the_same_in_every_process():
    "The digits that the notebook pins, in processes with other seeds for Python's own hashes."
    for seed in '0', '12345':
        done = subprocess.run(
            [sys.executable, '-c', PINNED],
            cwd=ROOT,
            env={**os.environ, 'PYTHONHASHSEED': seed},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == ['dce6b3304925', '5e0165aaeabf', 'e91a241550aa'], done.stderr


def test_milliseconds_are_no_seconds():
    rows = [(u, (u + k) % ITEMS, k * 40000 + u) for u in range(5) for k in range(12)]
    seconds = dataset(rows).interactions
    days = dict(valid='2020-09-16', test='2020-09-17')

    def cut(scale, scheme, **kw):
        times = (seconds.times + 1.6e9) * scale
        return scheme(Dataset(CATALOGUE, replace(seconds, times=times), 'x'), **kw)

    for scale in (1e3, 1e6, 1e9):
        assert cut(1, last_day).fingerprint == cut(scale, last_day).fingerprint
        assert cut(1, temporal_split, **days).fingerprint == cut(scale, temporal_split, **days).fingerprint
    assert '2020-09-1' in cut(1e3, last_day).name
    with pytest.raises(DataError, match="unit='s'"):
        cut(1e-3, temporal_split, test='2020-09-17')


@pytest.mark.parametrize(
    'f',
    [temporal_split, last_day, break_ties, lambda d: time_leak(leave_one_out(d), d)],
    ids=['temporal_split', 'last_day', 'break_ties', 'time_leak'],
)
def test_without_times(f):
    data = Dataset(CATALOGUE, Interactions.of_sequences([[0, 1, 2, 3], [2, 3, 4], [5, 6, 0]]), 'untimed')
    with pytest.raises(
        DataError, match=r"'untimed' has an order but no times: read it with a column of times \(time='...'\)"
    ):
        f(data)
    lists = [[u % 7, (u + 2) % 7, (u + 3) % 7, (u + 5) % 7] for u in range(7)]
    more = Dataset(CATALOGUE, Interactions.of_sequences(lists), 'untimed')
    assert cold_rows(cold_items(more, 0.3, 0.2)).sum() >= 2
    assert [n for n in leave_one_out(more).notes if 'test rows, fewer than' not in n] == []


def test_no_interactions():
    none = Dataset(CATALOGUE, Interactions((), [0], [], []), 'none')
    for f in (temporal_split, last_day, cold_items, leave_one_out):
        with pytest.raises(DataError):
            f(none)
    with pytest.raises(DataError):
        split_at(none, *[np.zeros(0, bool)] * 3, 'x')


def test_a_loss_is_said_aloud():
    data = dataset([(0, 0, 0), (0, 1, 1), (0, 2, 8), (1, 3, 8), (1, 4, 9)])
    why = "no row asks for 1 of the interactions after the cut, for they are their user's first"
    with pytest.warns(DataWarning, match=why) as said:
        split = temporal_split(data, None, 105)
    assert said[0].filename == __file__
    assert any('their user' in n for n in split.notes)


def test_negatives_of_a_split_are_those_of_evaluate():
    rng = np.random.default_rng(0)
    catalogue = Catalogue([str(i) for i in range(80)], {'text': [None] * 80}, {'text': 'text'})
    lists = [rng.choice(80, 9, replace=False) for _ in range(120)]
    split = leave_one_out(Dataset(catalogue, Interactions.of_sequences(lists), 'x'))
    own = with_negatives(split, 25, seed=5)
    items, users = {'text': rng.normal(size=(80, 6))}, {'text': rng.normal(size=(120, 6))}
    for part in ('valid', 'test'):
        rows, kept = getattr(split, part), getattr(own, part)
        a = evaluate(items, users, rows.targets, rows.seen, negatives=25, seed=5)
        b = evaluate(items, users, kept.targets, kept.seen, negatives=kept.negatives, seed=5)
        assert a.to_dict()['views'] == b.to_dict()['views']
        assert a['text'] != evaluate(items, users, rows.targets, rows.seen)['text']
    take = own.test.take([5, 3])
    assert (take.negatives == own.test.negatives[[5, 3]]).all()
    assert own.fingerprint != split.fingerprint
