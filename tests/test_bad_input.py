"""What does not fit, or fits and says little, through arrays, files and the command.

Each case is an error that names the place, or a note with a count in the report.
"""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError, known
from vlm2rec_lab.cli import main
from vlm2rec_lab.diagnose import VERDICTS, collapse_report
from vlm2rec_lab.ranking.vectors import write_vectors

USERS, ITEMS, DIMS = 120, 60, 8
QUICK = dict(permutations=2, bootstrap=50, progress=False)


def world():
    "A healthy task: two modalities that see the same taste through noise."
    rng = np.random.default_rng(0)
    items = rng.normal(size=(ITEMS, 6))
    taste = rng.normal(size=(USERS, 6))
    turn = np.linalg.qr(rng.normal(size=(DIMS, DIMS)))[0][:6]
    targets = (taste @ items.T + 0.3 * rng.gumbel(size=(USERS, ITEMS))).argmax(1)

    def see(x, noise):
        return (x @ turn + noise * rng.normal(size=(len(x), DIMS))).astype(np.float32)

    return dict(
        items={'text': see(items, 0.2), 'image': see(items, 0.4)},
        sequences={'text': see(taste, 0.2), 'image': see(taste, 0.4)},
        targets=targets,
        seen=[[int(t + 1) % ITEMS] for t in targets],
    )


# What can go wrong: each of these makes a function that damages a task in place.


def put(side, m, where, value):
    "Write a value into the vectors of a modality."

    def damage(w):
        w[side][m][where] = value

    return damage


def cut(side, m=None):
    "Take the last row away, of one modality or of targets or seen items."

    def damage(w):
        if m is None:
            w[side] = w[side][:-1]
        else:
            w[side][m] = w[side][m][:-1]

    return damage


def targets(f):
    "Change the targets."

    def damage(w):
        w['targets'] = f(w['targets'])

    return damage


def at(row, value):
    "Write one target."
    return targets(lambda t: np.where(np.arange(len(t)) == row, value, t))


def seen(f):
    "Change the lists of seen items."

    def damage(w):
        w['seen'] = f(w)

    return damage


def keep(side, n):
    "Keep the first rows of one side; with fewer items, the first one is everybody's target."

    def damage(w):
        w[side] = {m: x[:n] for m, x in w[side].items()}
        if side == 'sequences':
            w['targets'], w['seen'] = w['targets'][:n], w['seen'][:n]
        else:
            w['targets'], w['seen'] = w['targets'] * 0, [[] for _ in w['seen']]

    return damage


def twice(w):
    "Ten users stand there twice."
    for x in w['sequences'].values():
        x[10:20] = x[:10]
    w['targets'][10:20] = w['targets'][:10]
    w['seen'][10:20] = w['seen'][:10]


def half(w):
    "Every second item has no picture."
    w['items']['image'][::2] = 0


def lone(w):
    "Nobody has a candidate but the target."
    w['targets'][:] = np.arange(USERS) % ITEMS
    w['seen'] = [[i for i in range(ITEMS) if i != t] for t in w['targets']]


# name: (damage, words of the error from arrays, words of the error of the command on one file; None: the same)
ERRORS = {
    'NaN': (
        put('items', 'image', (3, 1), np.nan),
        "items['image'] has NaN or infinity in 1 of 60 rows, the first is row 3",
        None,
    ),
    'infinity': (
        put('sequences', 'text', (7, 2), np.inf),
        "sequences['text'] has NaN or infinity in 1 of 120 rows, the first is row 7",
        None,
    ),
    'an item less in one modality': (
        cut('items', 'image'),
        "items['image'] has shape (59, 8) but items['text'] has (60, 8)",
        None,
    ),
    'a user less in one modality': (
        cut('sequences', 'image'),
        "sequences['image'] has shape (119, 8) but sequences['text'] has (120, 8)",
        None,
    ),
    'a target less': (cut('targets'), 'targets has shape (119,) but sequences have 120 rows', None),
    'a list of seen items less': (
        cut('seen'),
        'seen has 119 rows but targets has 120',
        'offsets have shape (120,) for 120 users; there must be 121',
    ),
    'negative target': (at(5, -1), 'targets: row 5 is -1, outside 0..59 (1 such rows): leave these users out', None),
    'target too large': (at(5, 60), 'targets: row 5 is 60, outside 0..59 (1 such rows)', None),
    'target far too large': (at(5, 1e30), 'targets: row 5 is 1000000000000000', None),
    'half a target': (at(5, 2.5), 'targets: row 5 is 2.5, not a whole number', None),
    'NaN as target': (at(5, np.nan), 'targets: row 5 is nan', None),
    'yes and no as targets': (
        targets(lambda t: t > 9),
        'targets holds bool: pass row numbers of items',
        "the array 'targets' has shape (120,) of bool",
    ),
    'ids as targets': (targets(lambda t: t.astype(str)), 'not ids', "the array 'targets'"),
    'seen item outside': (seen(lambda w: [[60], *w['seen'][1:]]), 'seen: user 0 lists item 60, outside 0..59', None),
    'negative seen item': (seen(lambda w: [*w['seen'][:-1], [-4]]), 'seen: user 119 lists item -4', None),
    'half a seen item': (seen(lambda w: [[0.5], *w['seen'][1:]]), 'user 0 lists 0.5', None),
    'mask as seen': (
        seen(lambda w: np.zeros((USERS, ITEMS), bool)),
        'np.flatnonzero of each mask',
        "the array 'seen_items'",
    ),
    'text as seen': (
        seen(lambda w: [['a']] * USERS),
        'seen holds <U1: pass row numbers of items, not ids',
        "the array 'seen_items'",
    ),
    'other dimensions': (
        lambda w: w['items'].update(image=w['items']['image'][:, :5]),
        "items['image'] has shape (60, 5) but sequences['image'] has (120, 8)",
        None,
    ),
    'modality on one side': (
        lambda w: w['items'].pop('image'),
        "modality 'image' is missing from items, which has ['text']: give it vectors on both sides, or on none",
        None,
    ),
}
# name: (damage, words of the note, verdict of the image; None: any)
NOTES = {
    'zero items': (
        put('items', 'image', slice(0, 3), 0),
        "items['image']: 3 of 60 (5 %) vectors are zero (first: row 0)",
        'healthy',
    ),
    'zero sequences': (
        put('sequences', 'image', slice(4, 7), 0),
        "sequences['image']: 3 of 120 (2 %) vectors are zero (first: row 4)",
        'healthy',
    ),
    'a constant dimension': (
        put('items', 'image', (slice(None), 2), 5),
        "items['image']: 1 of 8 dimensions are the same in all rows (first: dimension 2)",
        None,
    ),
    'a dimension of zeros': (
        put('sequences', 'text', (slice(None), 0), 0),
        "sequences['text']: 1 of 8 dimensions are the same in all rows (first: dimension 0)",
        None,
    ),
    'equal items': (
        put('items', 'image', slice(None), np.arange(1, 9)),
        "items['image']: all 60 vectors point the same way",
        'collapsed',
    ),
    'equal sequences': (
        put('sequences', 'image', slice(None), np.arange(1, 9)),
        "sequences['image']: all 120 vectors point the same way",
        'collapsed',
    ),
    'targets seen': (
        seen(lambda w: [[int(t)] if u in (4, 9) else s for u, (s, t) in enumerate(zip(w['seen'], w['targets']))]),
        'seen: 2 of 120 (2 %) users list their own target as seen (first: user 4)',
        'healthy',
    ),
    'users twice': (
        twice,
        '10 of 120 (8 %) users have the vectors and the next item of an earlier one (first: row 10, like row 0)',
        'healthy',
    ),
    'one item': (keep('items', 1), 'items: there is one only', 'undecided'),
    'no other candidate': (lone, 'seen: 120 of 120 (100 %) users have no candidate left but their target', 'undecided'),
    'half of the items without a picture': (
        half,
        "items['image']: 30 of 60 (50 %) vectors are zero (first: row 0): rows without this modality",
        'healthy',
    ),
    'no item with a picture': (
        put('items', 'image', slice(None), 0),
        "items['image']: 60 of 60 (100 %) vectors are zero",
        None,
    ),
}


def ask(w, **kw):
    "The report of a task, without its warnings."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return collapse_report(**{**QUICK, **w, **kw})


def flat(w):
    "The task with `seen` as offsets, for a file."
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in w['seen']])])
    return {**w, 'seen': (offsets, np.concatenate([np.asarray(s) for s in w['seen']]))}


def cells(x):
    "Vectors as cells of a table; a zero vector is an empty cell."
    return [v if v.any() else None for v in x]


def tables(w, ids=True):
    "The two tables of a task, with ids or with row numbers."
    name = 'p{}'.format if ids else int
    items = {m: cells(x) for m, x in w['items'].items()}
    if ids:
        items |= {'item_id': [name(i) for i in range(len(w['items']['text']))]}
    users = {'target': [name(t) for t in w['targets']], 'seen': [[name(i) for i in s] for s in w['seen']]}
    users |= {m: cells(x) for m, x in w['sequences'].items()}
    return pd.DataFrame(items), pd.DataFrame(users)


def command(capsys, *argv):
    "Exit status and lines on the error stream."
    status = main(['report', *argv])
    return status, capsys.readouterr().err.strip().splitlines()


@pytest.mark.parametrize('name', ERRORS)
def test_error(name, tmp_path, capsys):
    damage, why, of_the_command = ERRORS[name]
    w = world()
    damage(w)
    with pytest.raises((ValueError, TypeError)) as e:
        ask(w)
    assert why in str(e.value)
    write_vectors(tmp_path / 'v.npz', flat(w))
    status, said = command(capsys, tmp_path / 'v.npz', '--out', tmp_path / 'r.md')
    assert status == 2, said
    assert len([line for line in said if 'note:' not in line]) == 1, said
    assert (of_the_command or why) in said[-1]
    assert not (tmp_path / 'r.md').exists()


@pytest.mark.parametrize('name', NOTES)
def test_note(name):
    damage, note, verdict = NOTES[name]
    w = world()
    damage(w)
    found = ask(w).to_dict()
    assert any(note in n for n in found['notes']), found['notes']
    assert verdict in (None, found['modalities']['image']['verdict'])
    with pytest.warns(UserWarning):
        collapse_report(**w, **QUICK)  # said at once, too
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize('name', [n for n in NOTES if n != 'no item with a picture'])
def test_note_from_tables(name, tmp_path, capsys):
    "Parquet and the command give the report of the arrays."
    w = world()
    NOTES[name][0](w)
    for side, t in zip(('items', 'sequences'), tables(w)):
        t.to_parquet(tmp_path / f'{side}.parquet')
    files = {side: tmp_path / f'{side}.parquet' for side in ('items', 'sequences')}
    assert ask(files).to_dict() == ask(w).to_dict()
    both = '--items', files['items'], '--sequences', files['sequences']
    status, said = command(capsys, *both, '--out', tmp_path / 'r.json')
    assert status == 0
    assert any(NOTES[name][1] in line for line in said)
    assert all(line.startswith('vlm2rec: note: ') for line in said)
    assert any(NOTES[name][1] in n for n in json.loads((tmp_path / 'r.json').read_text())['notes'])


def change(side, **columns):
    "Write columns of one of the two tables: values, or a function of the table that makes them."

    def f(items, users):
        for name, value in columns.items():
            t = items if side == 'items' else users
            t[name] = value(t) if callable(value) else value

    return f


def cell(name, row, value):
    "The column with another value in one row."
    return lambda t: [value if r == row else x for r, x in enumerate(t[name])]


# name: (change of the two tables, words of the error)
TABLES = {
    'no picture at all': (change('items', image=None), "modality 'image' is missing from items"),
    'a shorter vector': (
        change('items', image=cell('image', 5, [1.0, 2.0])),
        "column 'image' row 5 has 2 dimensions, others have 8",
    ),
    'a word among vectors': (change('items', image=cell('image', 5, 'x')), "column 'image' row 5 holds 'x'"),
    'a number among vectors': (change('sequences', image=cell('image', 5, 3.5)), "column 'image' row 5 holds '3.5'"),
    'words in a vector': (
        change('items', image=cell('image', 5, ['a'] * 8)),
        "column 'image' holds something else than numbers",
    ),
    'matrices': (change('items', image=lambda t: [np.ones((2, 4))] * len(t)), "column 'image' row 0 holds"),
    'NaN in a vector': (
        change('items', image=cell('image', 5, [np.nan] * 8)),
        "items['image'] has NaN or infinity in 1 of 60 rows, the first is row 5",
    ),
    'unknown target': (
        change('sequences', target=cell('target', 5, 'p60')),
        "column 'target' row 5: 'p60' is no item_id of the items",
    ),
    'no target': (
        change('sequences', target=cell('target', 5, None)),
        "column 'target' row 5 names no item (1 such): leave it out",
    ),
    'numbers for words': (
        change('sequences', target=lambda t: [int(x[1:]) for x in t['target']]),
        'is no item_id of the items',
    ),
    'unknown seen item': (
        change('sequences', seen=cell('seen', 5, ['p60'])),
        "column 'seen' row 5: 'p60' is no item_id",
    ),
    'seen is a single id': (
        change('sequences', seen='p1'),
        "column 'seen' row 0 is 'p1': give every user a list of items",
    ),
    'an id twice': (change('items', item_id=cell('item_id', 5, 'p4')), "item_id 'p4' stands in more than one row"),
}


@pytest.mark.parametrize('name', TABLES)
def test_error_in_a_table(name, tmp_path, capsys):
    items, users = tables(world())
    TABLES[name][0](items, users)
    with pytest.raises(ValueError) as e:
        ask(dict(items=items, sequences=users))
    assert TABLES[name][1] in str(e.value)
    try:
        for side, t in (('items', items), ('sequences', users)):
            t.to_parquet(tmp_path / f'{side}.parquet')
    except Exception:
        # Parquet holds one type per column: such a table cannot be a file
        return
    both = '--items', tmp_path / 'items.parquet', '--sequences', tmp_path / 'sequences.parquet'
    status, said = command(capsys, *both, '--out', tmp_path / 'r.md')
    assert status == 2, said
    assert TABLES[name][1] in said[-1], said


def test_tables_without_ids():
    items, users = tables(world(), ids=False)
    assert ask(dict(items=items, sequences=users)).to_dict() == ask(world()).to_dict()
    for column, value, why in (
        ('target', users.target > 3, 'holds bool, not row numbers'),
        ('target', users.target + 0.5, 'holds float64, not row numbers'),
        ('target', [*users.target[1:], -1], 'row 119 is -1'),
        ('target', [*users.target[1:], 60], 'row 119 is 60'),
        ('seen', [[1.5]] * USERS, 'holds float64, not row numbers'),
    ):
        with pytest.raises(ValueError) as e:
            ask(dict(items=items, sequences=users.assign(**{column: value})))
        assert why in str(e.value)
    with pytest.raises(ValueError, match='sequences has no rows'):
        ask(dict(items=items, sequences=users[:0]))


def test_one_user():
    w = world()
    keep('sequences', 1)(w)
    found = ask(w).to_dict()
    assert {x['reason'] for x in found['modalities'].values()} == {'few users'}
    assert found['evidence']['fused_ndcg']['low'] is None


REFERENCES = {  # name: (damage, words of the error)
    'an item less': (
        cut('items', 'image'),
        "reference['items']['image'] has 59 rows but items has 60",
    ),
    'a user less': (
        cut('sequences', 'text'),
        "reference['sequences']['text'] has 119 rows but sequences has 120",
    ),
    'NaN': (
        put('items', 'text', (3, 1), np.nan),
        "reference['items']['text'] has NaN or infinity in 1 of 60 rows, the first is row 3",
    ),
    'modality on one side': (
        lambda r: r['sequences'].pop('image'),
        "modality 'image' is missing from reference['sequences']",
    ),
}


def reference(damage):
    "The vectors of a damaged world, to compare with."
    other = world()
    damage(other)
    return {side: other[side] for side in ('items', 'sequences')}


@pytest.mark.parametrize('name', REFERENCES)
def test_error_in_the_reference(name):
    damage, why = REFERENCES[name]
    with pytest.raises(ValueError) as e:
        ask(world(), reference=reference(damage))
    assert why in str(e.value)


def test_note_on_the_reference():
    notes = ask(world(), reference=reference(half)).to_dict()['notes']
    assert any("reference['items']['image']: 30 of 60 (50 %) vectors are zero" in n for n in notes)


def test_nothing_is_noted_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert collapse_report(**world(), **QUICK).to_dict()['notes'] == []


numbers = st.sampled_from([0, 1, -1, 2.5, 1e30, 1e-30, np.nan, np.inf, -np.inf])


places = st.tuples(
    st.sampled_from(['items', 'sequences']),
    st.sampled_from(['text', 'image']),
    st.one_of(st.none(), st.integers(0, ITEMS - 1)),
    st.one_of(st.none(), st.integers(0, DIMS - 1)),
    numbers,
)
moves = st.tuples(st.integers(0, USERS - 1), st.integers(-2, ITEMS + 1))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(places, max_size=4),
    st.lists(moves, max_size=2),
    st.integers(0, USERS),
    st.sampled_from(['sum', 'concat']),
)
def test_anything(writes, moved, users, fuse):
    """Whatever is written into the vectors, rows, columns or single numbers:
    an error of ours or a report of plain numbers, never a NaN that spreads."""
    w = world()
    for side, m, row, column, value in writes:
        w[side][m][slice(None) if row is None else row, slice(None) if column is None else column] = value
    for row, target in moved:
        w['targets'][row] = target
    keep('sequences', users)(w)
    infinite = any(not np.isfinite(x).all() for side in ('items', 'sequences') for x in w[side].values())
    bad = infinite or ((w['targets'] < 0) | (w['targets'] >= ITEMS)).any()
    try:
        found = ask(w, fuse=fuse).to_dict()
    except ValueError as e:
        assert bad
        assert str(e).startswith(('items', 'sequences', 'targets'))
        return
    assert not bad
    assert found['verdict'] in VERDICTS
    json.dumps(found, allow_nan=False)
    assert users == 0 or found['evidence']['fused_ndcg']['value'] is not None


def test_of_hundreds_of_names_the_nearest_are_told():
    names = [f'setting {k}' for k in range(300)]
    with pytest.raises(DataError, match="did you mean 'setting 123'") as said:
        known('seting 123', names, 'setting')
    assert 'setting 123,' in str(said.value) and 'and 288 more' in str(said.value) and len(str(said.value)) < 400
    with pytest.raises(DataError) as said:
        known('x', names[:80], 'setting')
    assert 'setting 79' in str(said.value) and 'more' not in str(said.value)


def test_in_the_shell_flags_are_said_once(tmp_path, capsys):
    (tmp_path / 'items.csv').write_text('nr,name\n1,a\n')
    (tmp_path / 'interactions.csv').write_text('x,nr,at\n1,1,1\n')
    assert main(['profile', '--data', str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert 'name yours with --item ..., --user ..., --time ...' in said and 'in the shell' not in said
