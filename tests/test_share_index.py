"""The index of item vectors: answers as a plain full sort gives them, and what cannot be used is told."""

import copy
import json
import pickle
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from share_shops import part, plain_order, plain_parts, shop

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.ranking.fusions import fuse_vectors
from vlm2rec_lab.share import answers
from vlm2rec_lab.share.conditions import OPERATORS, parse_where
from vlm2rec_lab.share.diverse import marginal
from vlm2rec_lab.share.index import Index, build_index, history_vectors
from vlm2rec_lab.share.query import check_weights, where_mask
from vlm2rec_lab.share.segments import OWN, plan, unit_rows

ONE = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "An index of some segments with rows taken out, the items that are in it, and queries of which some lack something."
    vectors, table = shop(80)
    index = build_index(tmp_path_factory.mktemp('index') / 'shop', *part(vectors, table, slice(50)))
    index.add(*part(vectors, table, slice(50, 70)))
    index.add(*part(vectors, table, slice(70, 75)))
    gone = [1, 3, 52, 53, 71]
    index.remove([f'i{k}' for k in gone])
    index.add(*part(vectors, table, slice(75, 80)))
    index.add(*part(vectors, table, [7]), replace=True)
    kept = [k for k in range(80) if k not in [*gone, 7]] + [7]
    assert len(index._version.segments) > 1 and any(s.live is not None for s in index._version.segments)
    queries = {m: x[::9] + 0.1 for m, x in vectors.items()}
    queries['image'][0] = queries['text'][1] = 0
    return index, *part(vectors, table, kept), queries


# ---- answers


@settings(max_examples=60, **ONE)
@given(
    k=st.integers(1, 90),
    block=st.integers(1, 2000),
    weights=st.tuples(st.integers(0, 3), st.integers(1, 3)),
    where=st.sampled_from([None, [('price', '<', 50)], [('kind', '=', 'hat')], [('kind', '=', 'none such')]]),
    seen=st.booleans(),
)
def test_answers_are_those_of_a_plain_full_sort(made, k, block, weights, where, seen):
    index, vectors, table, queries = made
    weights = dict(zip(vectors, weights))
    parts = plain_parts(vectors, queries, weights)
    scores = sum(parts.values())
    if where:
        scores[:, ~where_mask(table, where)] = -np.inf
    lists = [list(table.item_id[u : u + 7]) for u in range(len(scores))] if seen else None
    for u in range(len(scores) if seen else 0):
        scores[u, u : u + 7] = -np.inf
    found = index.query(queries, k, weights, where, lists, block=block)
    rows = plain_order(scores, k)
    assert (found.rows == rows).all()
    there = found.there
    for m in vectors:
        expected = np.take_along_axis(parts[m], np.maximum(rows, 0), 1)
        assert (found.parts[m][there] == expected[there]).all()  # to the last bit
    assert (sum(found.parts.values()) == found.scores).all()
    assert (found.ids[there] == table.item_id.to_numpy(object)[found.rows[there]]).all()


@settings(max_examples=30, **ONE)
@given(block=st.integers(1, 400), copies=st.integers(1, 6), k=st.integers(1, 40))
def test_ties_come_in_the_order_of_the_rows_whatever_the_block(tmp_path_factory, block, copies, k):
    vectors, table = shop(6, (('text', 64),), lack=0)
    rows = np.arange(6 * copies) % 6  # each item as often as there are copies
    vectors, table = part(vectors, table, rows)
    index = build_index(
        tmp_path_factory.mktemp('ties'), vectors, table.assign(item_id=[f'{i}' for i in range(len(rows))])
    )
    found = index.query(vectors, k, block=block)
    scores = sum(plain_parts(vectors, vectors, dict(text=1)).values())
    assert (found.rows == plain_order(scores, k)).all()


def test_scores_that_only_rounding_tells_apart_are_in_their_true_order(tmp_path):
    "Products of matrices in float32 would put them in another one."
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(1, 200)), 3000, 0) + 2e-6 * rng.normal(size=(3000, 200))
    index = build_index(tmp_path / 'i', dict(text=x), pd.DataFrame(dict(item_id=[f'{i}' for i in range(3000)])))
    asked = dict(text=rng.normal(size=(3, 200)) + x[:1])
    scores = plain_parts(dict(text=x), asked, dict(text=1))['text']
    for block in (500, 9000):
        found = index.query(asked, 12, block=block)
        best = -np.sort(-scores, 1)[:, :12]
        assert (found.scores == best).all()
        assert (found.rows == plain_order(scores, 12)).all()


def test_items_by_rising_score_are_found_block_after_block(tmp_path):
    "Every block is better than all before: what may be an answer is thinned out."
    angle = np.linspace(np.pi, 0, 20_000)
    vectors = dict(text=np.stack([np.cos(angle), np.sin(angle)], 1))
    index = build_index(tmp_path / 'i', vectors, pd.DataFrame(dict(item_id=[f'{i}' for i in range(20_000)])))
    for block in (700, 20_000):
        found = index.query(dict(text=[[1.0, 0.0]]), k=3, block=block)
        assert found.rows.tolist()[0][0] <= 19_999 and (np.diff(found.scores[0]) <= 0).all()
        assert found.scores[0].min() >= np.float32(np.cos(angle[-3]))


@pytest.mark.parametrize('dims', [1, 3])
def test_scores_are_those_of_the_rankings(tmp_path, dims):
    "The fusion {modality: weight} of `ranking.fusions`, where queries have every modality."
    names = [(m, d) for m, d in (('text', 6), ('image', 4), ('sound', 9))][:dims]
    vectors, table = shop(70, names)
    table, vectors = table[vectors['text'].any(1)], {m: x[vectors['text'].any(1)] for m, x in vectors.items()}
    index = build_index(tmp_path / 'i', vectors, table)
    queries = {m: np.random.default_rng(1).normal(size=(5, d)) for m, d in names}
    weights = {m: j + 1 for j, m in enumerate(vectors)}
    i, s = fuse_vectors(*({m: unit_rows(x) for m, x in side.items()} for side in (vectors, queries)), weights)
    found = index.query(queries, len(table), weights)
    assert found.there.all()
    assert np.abs(np.take_along_axis(s @ i.T, found.rows, 1) - found.scores).max() < 1e-6
    even = index.query(queries, len(table))
    i, s = fuse_vectors(*({m: unit_rows(x) for m, x in side.items()} for side in (vectors, queries)), 'concat')
    assert np.abs(np.take_along_axis(s @ i.T, even.rows, 1) - even.scores).max() < 1e-6


def test_items_that_share_nothing_with_a_query_are_no_answers(tmp_path):
    vectors = dict(text=np.eye(3), image=np.eye(3))
    vectors['text'][0] = vectors['image'][1] = vectors['text'][2] = vectors['image'][2] = 0
    index = build_index(tmp_path / 'i', vectors, pd.DataFrame(dict(item_id=list('abc'))))
    assert index.query(dict(text=np.ones((1, 3))), 3).ids.tolist() == [['b', '', '']]
    assert index.query(dict(image=-np.ones((1, 3))), 3).ids.tolist() == [['a', '', '']]
    both = index.query(dict(text=np.ones((1, 3)), image=np.ones((1, 3))), 3, dict(text=1, image=0))
    assert both.ids.tolist() == [['b', '', '']]
    nothing = index.query(dict(text=np.zeros((2, 3))), 3)
    assert not nothing.there.any() and np.isneginf(nothing.scores).all() and nothing.to_dict()['queries'] == [[], []]


# ---- diversity


def plain_marginal(scores, alike, k, weight):
    "The definition, word for word."
    left, taken = list(range(len(scores))), []
    while left and len(taken) < k:
        worth = [(1 - weight) * scores[i] - weight * max((alike[i][j] for j in taken), default=0) for i in left]
        taken.append(left.pop(int(np.argmax(worth))))
    return taken


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 12), st.integers(1, 14), st.floats(0, 1), st.integers(0, 10**6))
def test_marginal_relevance_is_the_plain_loop(n, k, weight, seed):
    rng = np.random.default_rng(seed)
    scores, x = -np.sort(-rng.normal(size=n)), unit_rows(rng.normal(size=(n, 3)))
    alike = (x @ x.T).astype(float)
    assert marginal(scores, alike, k, weight).tolist() == plain_marginal(scores, alike, k, weight)


@pytest.mark.parametrize('by', [None, 'kind'])
def test_diverse_answers_are_those_of_the_plain_loop(made, by):
    index, vectors, table, queries = made
    found = index.query(queries, 8, diverse=dict(by=by, weight=0.4, pool=20))
    pool = index.query(queries, 20)
    both = plain_parts(vectors, vectors, dict(text=1, image=1))
    alike = np.where(np.isneginf(sum(both.values())), 0, sum(both.values())).astype(float)
    if by:
        alike = np.array([[float(a is not None and a == b) for b in table.kind.where(table.kind.notna(), None)]
                          for a in table.kind.where(table.kind.notna(), None)])  # fmt: skip
    for u in range(len(found)):
        rows = pool.rows[u][pool.there[u]]
        taken = plain_marginal(pool.scores[u][: len(rows)].astype(float), alike[np.ix_(rows, rows)], 8, 0.4)
        assert found.rows[u][: len(taken)].tolist() == rows[taken].tolist()
        assert (found.scores[u][: len(taken)] == pool.scores[u][taken]).all()
    assert (sum(found.parts.values()) == found.scores).all()


# ---- filters


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(['=', '!=', '<', '<=', '>', '>=']), st.integers(0, 90))
def test_what_is_missing_lets_only_unequal_through(op, value):
    _, table = shop(60)
    mask = where_mask(table, [('price', op, value)])
    assert (mask[table.price.isna()] == (op == '!=')).all()
    assert (mask == where_mask(table, [('price', op, str(value))])).all()
    there = table.price.notna().to_numpy()
    assert (mask[there] == OPERATORS[op](table.price[there], value)).all()


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1).filter(lambda t: t.strip() == t), st.sampled_from(list(OPERATORS)), st.text())
def test_a_condition_of_the_shell_is_read_back_where_the_columns_are_known(column, op, value):
    value = value.strip()
    said = f'{column} {op} {value}'
    if op == 'in':
        assert parse_where(said, [column])[:2] == (column, op)
    elif value[:1] not in '=':
        assert parse_where(said, [column]) == (column, op, value)


@pytest.mark.parametrize(
    'where, said',
    [
        ([('prize', '<', 1)], "did you mean 'price'"),
        ([('price', '~', 1)], "there is no operator '~'"),
        ([('price', '<', 'x')], "column 'price' holds numbers, and 'x' is none"),
        ([('price', '<', None)], 'a number'),
        ([('price', '<', float('nan'))], 'a number'),
        ([('kind', '<', 3)], "column 'kind' holds text"),
        ([('kind', 'in', 'hat')], 'give a list of values'),
        ([('kind', 'in', [3])], 'holds text'),
        (['kind=hat'], 'give a list of (column, operator, value)'),
        (np.ones(3, bool), 'give a bool array of 75'),
        (np.ones(75), 'give a bool array of 75'),
    ],
)
def test_filters_that_cannot_be_used(made, where, said):
    index, _, _, queries = made
    with pytest.raises(DataError) as e:
        index.query(queries, where=where)
    assert said in str(e.value)


def test_columns_of_every_kind(tmp_path):
    table = pd.DataFrame(
        dict(
            item_id=list('abcd'),
            new=[True, False, None, True],
            day=pd.to_datetime(['2026-01-01', None, '2026-03-01', '2026-02-01']),
            zoned=pd.to_datetime(['2026-01-01', None, '2026-03-01', '2026-02-01'], utc=True),
            big=[2**60 + 1, 2**60, 5, 6],
            kind=pd.Categorical(['x', 'y', None, 'x']),
            tags=[['a'], [], None, ['b', 'c']],
            nothing=[None] * 4,
        )
    )
    index = build_index(tmp_path / 'i', dict(text=np.eye(4)), table)

    def ids(*where):
        return ''.join(sorted(i for i in index.query(dict(text=np.ones((1, 4))), where=list(where)).ids[0] if i))

    assert ids(('new', '=', True)) == ids(('new', '=', 'yes')) == 'ad'
    assert ids(('new', '!=', True)) == 'bc'
    assert ids(('day', '>=', '2026-02-01')) == 'cd'
    assert ids(('big', '=', str(2**60 + 1))) == 'a' and ids(('big', '>', 5), ('big', '<', 7)) == 'd'
    assert ids(('kind', 'in', ['x', 'z'])) == 'ad' and ids(('kind', '!=', 'x')) == 'bc'
    assert ids(('nothing', '=', 'a')) == '' and ids(('nothing', '!=', 'a')) == 'abcd'
    assert ids(('item_id', 'in', ['b', 'q'])) == 'b'
    for where, said in (
        (('tags', '=', 'a'), 'cannot be compared'),
        (('zoned', '<', '2026-02-01'), 'cannot be compared'),
        (('day', '<', 'soon'), 'a date'),
        (('new', '=', 'maybe'), 'true or false'),
    ):
        with pytest.raises(DataError, match=said):
            ids(where)
    assert ids(('zoned', '<', '2026-02-01T00:00Z')) == 'a'
    assert list(index.table.tags[3]) == ['b', 'c']


# ---- what cannot be used


def bad(x, row, value):
    "A copy with one row that is something else."
    x = np.array(x, float)
    x[row] = value
    return x


VECTORS, TABLE = shop(5)


@pytest.mark.parametrize(
    'vectors, table, said',
    [
        ({'text': bad(VECTORS['text'], 3, np.nan)}, TABLE, 'the first is row 3'),
        ({'text': bad(VECTORS['text'], 1, np.inf)}, TABLE, 'the first is row 1'),
        ({'text': VECTORS['text'][:4]}, TABLE, 'has 4 rows and the table 5'),
        ({'text': VECTORS['text'][0]}, TABLE, 'pass [rows, dims]'),
        ({'text': np.zeros((5, 0))}, TABLE, 'at least one dimension'),
        ({'text': [['a']] * 5}, TABLE, 'not numbers'),
        ({}, TABLE, 'one modality or more'),
        ({'fused': VECTORS['text']}, TABLE, 'call it something else'),
        ({'__metadata__': VECTORS['text']}, TABLE, 'call it something else'),
        ({3: VECTORS['text']}, TABLE, 'call it something else'),
        ({'kind': VECTORS['text']}, TABLE, 'a modality and a column'),
        (VECTORS, TABLE.drop(columns='item_id'), 'one is item_id'),
        (VECTORS, TABLE.assign(item_id=range(5)), 'item_id of row 0 is 0'),
        (VECTORS, TABLE.assign(item_id=['a', 'b', 'a', 'c', 'd']), "'a' stands in rows 0 and 2"),
        (VECTORS, TABLE.assign(item_id=['a', '', 'b', 'c', 'd']), "row 1 is ''"),
        (VECTORS, TABLE.assign(item_id=['a', None, 'b', 'c', 'd']), 'item_id of row 1'),
        (
            VECTORS,
            TABLE.astype({'item_id': object}).assign(item_id=pd.Series(['a', '\ud83d', 'b', 'c', 'd'], dtype=object)),
            'cannot be written as UTF-8',
        ),
        (VECTORS, TABLE.assign(odd=[1, 'a', None, 2.0, []]), 'cannot be kept'),
        (VECTORS, pd.concat([TABLE, TABLE[['kind']]], axis=1), 'each needs its own name'),
    ],
)
def test_items_that_cannot_be_kept(tmp_path, vectors, table, said):
    with pytest.raises((ValueError, TypeError)) as e:
        build_index(tmp_path / 'i', vectors, table)
    assert said in str(e.value)
    assert not (tmp_path / 'i').exists()  # nothing was begun


@pytest.mark.parametrize(
    'queries, how, said',
    [
        ({}, {}, 'vectors of one modality or more'),
        ([[1.0]], {}, 'a query is {modality'),
        ({'txt': VECTORS['text']}, {}, "did you mean 'text'"),
        ({'text': VECTORS['image']}, {}, 'has 4 dimensions, and the index has 6'),
        ({'text': bad(VECTORS['text'], 2, np.nan)}, {}, 'the first is row 2'),
        ({'text': VECTORS['text'], 'image': VECTORS['image'][:2]}, {}, 'differ in rows'),
        (VECTORS, dict(k=0), 'k is 0'),
        (VECTORS, dict(k=True), 'k is True'),
        (VECTORS, dict(k=2.5), 'k is 2.5'),
        (VECTORS, dict(weights=dict(text=1)), 'none for image'),
        (VECTORS, dict(weights=dict(text=1, imag=1)), "did you mean 'image'"),
        (VECTORS, dict(weights=dict(text=float('nan'), image=1)), 'finite numbers'),
        (VECTORS, dict(weights=[1, 2]), 'weights is list'),
        (VECTORS, dict(seen=[[]]), 'has 1 lists and there are 5 queries'),
        (VECTORS, dict(seen=[[99], [], [], [], []]), 'a row from 0 to 74'),
        (VECTORS, dict(diverse=dict(by='knd')), "did you mean 'kind'"),
        (VECTORS, dict(diverse=dict(lambd=1)), "there is no setting 'lambd'"),
        (VECTORS, dict(diverse=0.3), 'give True, or some of'),
    ],
)
def test_queries_that_cannot_be_answered(made, queries, how, said):
    with pytest.raises((ValueError, TypeError)) as e:
        made[0].query(queries, **how)
    assert said in str(e.value)


def test_a_query_of_no_rows_has_no_answers(made):
    found = made[0].query({'text': np.zeros((0, 6))}, 3)
    assert found.rows.shape == (0, 3) and found.to_dict()['queries'] == [] and '0 answers to 0 queries' in repr(found)


def test_additions_that_do_not_fit_change_nothing(tmp_path):
    vectors, table = shop(10)
    index = build_index(tmp_path / 'i', *part(vectors, table, slice(8)))
    v, t = part(vectors, table, slice(8, 10))
    for x, y, said in (
        (v, t.assign(item_id=['i3', 'i9']), "has 'i3' already"),
        (v, t.assign(more=1), 'differ in columns (more)'),
        (v, t.drop(columns='price'), 'differ in columns (price)'),
        (v, t.assign(price='dear'), 'cannot be kept'),
        (dict(v, text=v['image']), t, 'the index has 6'),
        (dict(v, sound=v['image']), t, "there is no modality 'sound'"),
        (dict(v, text=v['text'] * np.nan), t, 'NaN'),
    ):
        with pytest.raises(ValueError) as e:
            index.add(x, y)
        assert said in str(e.value)
    with pytest.raises(DataError, match="there is no item 'i8' in the index; did you mean"):
        index.remove(['i0', 'i8'])
    again = Index(tmp_path / 'i')
    assert (index.version, again.version, len(again)) == (1, 1, 8)
    index.add(v, t.assign(price=[3, 4]))  # whole numbers are numbers
    assert index.table.price.iloc[-2:].tolist() == [3, 4]


def test_an_index_of_no_items(tmp_path):
    vectors, table = shop(3)
    index = build_index(tmp_path / 'i', *part(vectors, table, slice(0)))
    assert len(index) == 0 and index.query(vectors).rows.shape == (3, 0)
    assert index.query(vectors, where=[('price', '<', 3)], diverse=True).rows.shape == (3, 0)
    assert 'index of 0 items' in repr(index)
    index.remove([])
    index.add(vectors, table)
    assert index.ids.tolist() == table.item_id.tolist()


# ---- ids and places


ODD = [
    '../../outside', '/etc/passwd', '..', '.', 'a/b\\c', "it's", '"quoted"', 'line\nbreak', '\x1b[31mred', 'Ünïcödé',
    '鞋子', '👟', 'e\u0301', '\u00e9', ' space ', '<script>alert(1)</script>', '=1+1', '%s{0}', 'a' * 100_000,
    '\u202eleft', 'nan', '-1', '\x00',
]  # fmt: skip


def test_odd_ids_are_only_text(tmp_path):
    folder = tmp_path / 'deep' / 'i'
    n = len(ODD)
    index = build_index(folder, dict(text=np.eye(n)), pd.DataFrame(dict(item_id=ODD)))
    index.remove(ODD[:3])
    index.add(dict(text=np.eye(n)[:3]), pd.DataFrame(dict(item_id=ODD[:3])))
    again = Index(folder)
    assert sorted(again.ids) == sorted(ODD)
    assert again.query(dict(text=np.eye(n)), 1).ids[:, 0].tolist() == ODD
    assert [p.name for p in tmp_path.iterdir()] == ['deep'] and [p.name for p in folder.parent.iterdir()] == ['i']
    assert all(OWN.fullmatch(p.name) for p in folder.iterdir())
    found = again.query(dict(text=np.eye(n)), 1)
    assert '\x1b' not in repr(found) and '<script>' not in found._repr_html_() and '\u202e' not in repr(found)
    json.dumps(found.to_dict())
    assert (history_vectors(again, ODD)['text'] > 0).all()


@settings(max_examples=40, **ONE)
@given(st.lists(st.text(st.characters(exclude_categories=['Cs']), min_size=1), min_size=1, max_size=8, unique=True))
def test_any_text_is_an_id(tmp_path_factory, ids):
    index = build_index(tmp_path_factory.mktemp('ids'), dict(text=np.eye(len(ids))), pd.DataFrame(dict(item_id=ids)))
    assert index.ids.tolist() == ids and index.rows(ids).tolist() == list(range(len(ids)))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'seg-00000001.txt').write_text('mine')
    with pytest.raises(DataError, match='seg-00000001.txt'):
        build_index(tmp_path / 'mine', VECTORS, TABLE)
    assert [p.name for p in (tmp_path / 'mine').iterdir()] == ['seg-00000001.txt']
    with pytest.raises(DataError, match='is a file'):
        build_index(tmp_path / 'mine' / 'seg-00000001.txt', VECTORS, TABLE)
    index = build_index(tmp_path / 'i', VECTORS, TABLE)
    (tmp_path / 'i' / 'note.txt').write_text('mine')
    index.remove(['i0'])  # what comes later is left alone too
    assert (tmp_path / 'i' / 'note.txt').read_text() == 'mine'
    for folder in ('nowhere', 'mine', 'mine/seg-00000001.txt'):
        with pytest.raises(FileNotFoundError, match='there is no index in'):
            Index(tmp_path / folder)


@pytest.mark.parametrize(
    'file, text, said',
    [
        ('index.json', b'', 'damaged'),
        ('index.json', b'[]', 'damaged'),
        ('index.json', b'{"format": 2}', 'damaged'),
        ('seg-*.safetensors', b'', 'damaged'),
        ('seg-*.safetensors', b'\xff' * 64, 'damaged'),
        ('seg-*.safetensors', None, 'is lacking'),
        ('seg-*.parquet', None, 'is lacking'),
    ],
)
def test_damage_is_told(tmp_path, file, text, said):
    build_index(tmp_path / 'i', VECTORS, TABLE)
    (path,) = (tmp_path / 'i').glob(file)
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(DataError, match=said):
        Index(tmp_path / 'i')
    assert len(build_index(tmp_path / 'i', VECTORS, TABLE)) == 5  # and a new one takes its place


def test_a_manifest_leads_nowhere_else(tmp_path):
    build_index(tmp_path / 'i', VECTORS, TABLE)
    file = tmp_path / 'i' / 'index.json'
    found = json.loads(file.read_text())
    for name in ('../i/seg-00000001000', '/etc/passwd', 'seg-1\n', 'seg-00000001000/../x'):
        file.write_text(json.dumps({**found, 'segments': [{**found['segments'][0], 'name': name}]}))
        with pytest.raises(DataError, match='damaged'):
            Index(tmp_path / 'i')
    gone = {**found['segments'][0], 'gone': 1, 'file': 'seg-00000001000.gone-00000002.npy'}
    file.write_text(json.dumps({**found, 'segments': [gone]}))
    for rows in (np.array([{}], object), np.array([0, 1]), np.array([99]), np.array(['a'])):
        np.save(tmp_path / 'i' / gone['file'], rows, allow_pickle=True)
        with pytest.raises((DataError, ValueError, IndexError, pickle.UnpicklingError)):
            Index(tmp_path / 'i')


# ---- many versions


@settings(max_examples=25, **ONE)
@given(st.lists(st.tuples(st.sampled_from(['add', 'remove', 'replace']), st.sets(st.integers(0, 29))), max_size=12))
def test_any_course_of_changes_ends_as_if_built_at_once(tmp_path_factory, course):
    "The items and their order are those of a plain list, whatever was put together on the way."
    vectors, table = shop(30)
    index = build_index(tmp_path_factory.mktemp('course'), *part(vectors, table, slice(0, 10)))
    here = list(range(10))
    for what, rows in course:
        rows = sorted(rows & set(here)) if what == 'remove' else sorted(rows if what == 'replace' else rows - set(here))
        if what == 'remove':
            index.remove([f'i{k}' for k in rows])
        else:
            index.add(*part(vectors, table, rows), replace=what == 'replace')
        here = [k for k in here if k not in rows] + (rows if what != 'remove' else [])
    assert index.ids.tolist() == [f'i{k}' for k in here]
    for m, x in vectors.items():
        assert (np.asarray(index.vectors[m]) == unit_rows(x)[here]).all()
    kept = {s.entry['name'] for s in index._version.segments}
    assert {p.name.split('.')[0] for p in index.folder.glob('seg-*')} == kept  # nothing else is left in the folder
    fresh = build_index(index.folder.parent / f'{index.folder.name}-once', *part(vectors, table, here))
    a, b = index.query(vectors, 7), fresh.query(vectors, 7)
    assert (a.rows == b.rows).all() and (a.scores == b.scores).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1000), max_size=30))
def test_segments_stay_few_and_in_order(live):
    groups = plan(live)
    assert [s for g in groups for s in g] == list(range(len(live)))
    sizes = [sum(live[s] for s in g) for g in groups]
    assert all(2 * b < a for a, b in zip(sizes, sizes[1:])) and len(sizes) <= 2 + np.log2(1 + sum(live))


def test_a_reader_keeps_its_version_after_all_its_files_are_gone(tmp_path):
    vectors, table = shop(40)
    build_index(tmp_path / 'i', vectors, table)
    reader = Index(tmp_path / 'i')
    before = reader.query(vectors, 3)
    build_index(tmp_path / 'i', *part(vectors, table, slice(5)))
    assert not (tmp_path / 'i' / f'{reader._version.segments[0].entry["name"]}.parquet').exists()
    assert reader.table.shape == (40, 3) and (reader.query(vectors, 3).scores == before.scores).all()
    assert reader.refresh() and len(reader) == 5 and not reader.refresh()


def test_a_reader_takes_over_what_an_addition_left(tmp_path):
    vectors, table = shop(40)
    index = build_index(tmp_path / 'shop', *part(vectors, table, slice(30)))
    first = index._version.segments[0]
    assert first.ids[3] == 'i3'
    index.add(*part(vectors, table, slice(30, 32)))
    assert index._version.segments[0] is first
    assert (index._version.shared(index._version), len(index._version.segments)) == (2, 2)
    index.remove(['i0'])
    assert index._version.segments[0] is not first, 'a row less is another segment'
    assert index.ids.tolist() == Index(index.folder).ids.tolist() == [f'i{k}' for k in range(1, 32)]
    assert first.ids[0] == 'i0'


def test_a_segment_of_the_same_name_in_an_index_built_anew_is_not_taken_over(tmp_path):
    vectors, table = shop(40)
    index = build_index(tmp_path / 'shop', *part(vectors, table, slice(20)))
    names = [s.entry['name'] for s in index._version.segments]
    shutil.rmtree(index.folder)
    other = build_index(tmp_path / 'shop', *part(vectors, table, slice(20, 40)))
    assert [s.entry['name'] for s in other._version.segments] == names
    index._stamp = None  # a reader who looks just now
    assert index.refresh()
    assert index.ids.tolist() == [f'i{k}' for k in range(20, 40)]
    assert all((np.asarray(index.vectors[m]) == np.asarray(other.vectors[m])).all() for m in vectors)


def test_places_and_titles_from_version_to_version_are_those_of_a_fresh_reader(tmp_path):
    rng, (vectors, table) = np.random.default_rng(0), shop(80)
    table = table.assign(title=[None if k % 7 == 0 else f'thing {k}' for k in range(80)])
    index = build_index(tmp_path / 'shop', *part(vectors, table, slice(30)))
    shelf = answers.shelf_of(index)
    there, taken_over = set(range(30)), 0
    for turn in range(25):
        if turn % 4 == 3:
            some = rng.choice(sorted(there), 1 + turn % 3, replace=False)
            index.remove([f'i{k}' for k in some])
            there -= set(some.tolist())
        else:
            some = rng.choice(80, 1 + turn % 2, replace=False)
            index.add(*part(vectors, table, some), replace=True)
            there |= set(some.tolist())
        taken_over += index._version.shared(shelf._version) > 0
        shelf = answers.shelf_of(copy.copy(index) if turn % 2 else index, shelf)
        fresh = answers.shelf_of(Index(index.folder))
        assert shelf.titles == fresh.titles
        assert shelf.places == fresh.places
        assert shelf.index.table.equals(fresh.index.table)
        assert [fresh.titles[shelf.places[i]] for i in fresh.index.ids] == list(fresh.titles)
        assert set(shelf.places) == {f'i{k}' for k in there}
    assert taken_over > 5


def test_threads_share_a_reader_that_takes_new_versions(tmp_path):
    vectors, table = shop(40, lack=0)
    index = build_index(tmp_path / 'i', vectors, table)
    wrong, done = [], threading.Event()

    def ask():
        while not done.is_set():
            found = index.query(vectors, 1, where=[('item_id', '!=', 'none')])
            if found.ids[1:, 0].tolist() != table.item_id.tolist()[1:]:
                wrong.append(found)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for t in threads:
        t.start()
    writer = Index(tmp_path / 'i')
    try:
        for _ in range(15):
            writer.remove(['i0'])
            writer.add(*part(vectors, table, slice(1)))
            index.refresh()
    finally:  # where something fails here, nobody goes on asking
        done.set()
        for t in threads:
            t.join()
    assert not wrong and index.version == 31


# ---- answers that would be wrong without a word


def odd_table(n=6):
    "A table of columns that are easily compared wrongly."
    return pd.DataFrame(
        dict(
            item_id=[f'i{k}' for k in range(n)],
            seller=pd.array([2**53 + 1, 2**53, None, 3, 4, 5], dtype='Int64'),
            single=np.arange(1, n + 1, dtype='float32') / 10,
            there=pd.to_datetime(['2026-01-01'] * n, utc=True),
            here=pd.to_datetime(['2026-01-01', None] * 3),
            words=['9', '10', '100', None, '3', '5'],
            day=['2026-01-02', '2026-02-01', '2025', None, '2026-01-02', 'soon'],
            tags=[['a', 'b']] * n,
        )
    )


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    rng = np.random.default_rng(0)
    vectors = dict(text=rng.normal(size=(6, 4)), image=rng.normal(size=(6, 3)))
    vectors['text'][4] = 0
    return build_index(tmp_path_factory.mktemp('odd') / 'shop', vectors, odd_table())


@pytest.mark.parametrize(
    ('condition', 'said'),
    [
        (('seller', '=', 2**53 + 1), 'look alike'),
        (('seller', 'in', [str(2**53 + 1)]), 'look alike'),
        (('there', '=', '2026-01-01'), 'has the time zone UTC'),
        (('there', 'in', ['2026-01-01']), 'has the time zone UTC'),
        (('here', 'in', ['2026-01-01T00:00Z']), 'has no time zone'),
        (('here', '!=', '2026-01-01T00:00Z'), 'has no time zone'),
        (('here', '<', 20), 'a date like'),
        (('words', '<', '20'), 'numbers as text'),
        (('words', '>=', '20'), 'numbers as text'),
    ],
)
def test_conditions_that_would_mislead_are_refused(odd, condition, said):
    with pytest.raises(DataError, match=said):
        where_mask(odd.table, [condition])


@pytest.mark.parametrize(
    ('condition', 'rows'),
    [
        (('seller', '=', 3), [3]),
        (('single', '=', 0.1), [0]),
        (('single', 'in', [0.1, 0.3]), [0, 2]),
        (('there', 'in', ['2026-01-01T00:00Z']), [0, 1, 2, 3, 4, 5]),
        (('here', 'in', ['2026-01-01']), [0, 2, 4]),
        (('words', '=', '10'), [1]),
        (('words', 'in', ['10', '3']), [1, 4]),
        (('day', '<', '2026'), [2]),
    ],
)
def test_conditions_on_odd_columns(odd, condition, rows):
    assert np.flatnonzero(where_mask(odd.table, [condition])).tolist() == rows


@pytest.mark.parametrize('text', [' ' * 8000, 'x' + ' ' * 8000 + 'y', ' ' * 4000 + 'x' + ' ' * 4000, 'in' * 4000])
def test_long_conditions_are_read_at_once(text):
    begun = time.process_time()
    with pytest.raises(DataError, match='no condition'):
        parse_where(text, ['x'])
    assert time.process_time() - begun < 1


def test_a_list_that_cannot_be_read_is_told():
    with pytest.raises(DataError, match='no list of values'):
        parse_where('kind in a\rb')


@pytest.mark.parametrize('weight', ['1', None, 1e-50, 10**400])
def test_weights_that_are_no_weights(odd, weight):
    with pytest.raises(DataError, match='weights'):
        odd.query(dict(text=np.ones((1, 4))), weights=dict(text=1, image=weight))


def test_a_weight_that_is_just_large_enough_still_answers(odd):
    queries = dict(text=np.ones((1, 4)), image=np.ones((1, 3)))
    assert 'i4' in odd.query(queries, weights=dict(text=1, image=1e-29)).ids[0]


def test_columns_of_lists(odd):
    with pytest.raises(DataError, match='cannot be compared'):
        odd.query(dict(text=np.ones((1, 4))), diverse=dict(by='tags'))
    assert answers.card(answers.shelf_of(odd), 'i0')['columns']['tags'] == 'a, b'


def test_titles_that_are_lists(tmp_path):
    index = build_index(tmp_path / 'shop', dict(text=np.eye(6)), odd_table().assign(title=[['a', 'b']] * 5 + [None]))
    assert answers.shelf_of(index).titles == ('a, b',) * 5 + ('i5',)


def test_a_column_whose_number_is_a_modality(tmp_path):
    with pytest.raises(DataError, match='a modality and a column'):
        build_index(tmp_path / 'shop', {'0': np.eye(2)}, pd.DataFrame({'item_id': ['a', 'b'], 0: 1}))


# ---- what lies in the folder


@pytest.mark.parametrize('writer', ['build', 'add', 'remove'])
def test_what_killed_writers_left_goes_before_anything_is_written(tmp_path, monkeypatch, writer):
    index = build_index(tmp_path / 'shop', dict(text=np.eye(6)), odd_table())
    left = [tmp_path / 'shop' / f'seg-{7000 + k:011d}.safetensors' for k in range(3)]
    for f in left:
        f.write_bytes(b'x')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('vlm2rec_lab.share.index.write_segment', full)
    monkeypatch.setattr('vlm2rec_lab.share.index.put_manifest', full)
    with pytest.raises(OSError, match='No space'):
        if writer == 'build':
            build_index(tmp_path / 'shop', dict(text=np.eye(6)), odd_table())
        elif writer == 'add':
            index.add(dict(text=np.eye(6)), odd_table().assign(item_id=list('abcdef')))
        else:
            index.remove(['i0'])
    assert not any(f.exists() for f in left)
    assert len(Index(tmp_path / 'shop')) == 6


@pytest.mark.parametrize('full', ['write_matrices', 'write_table'])
def test_a_full_disk_leaves_no_half_of_an_index_and_names_the_file(tmp_path, monkeypatch, full):
    "Neither of a new one, nor beside one that is there."

    def half(path, *_):
        path.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    def build(name):
        return build_index(tmp_path / name, dict(text=np.eye(6)), odd_table())

    build('old')
    monkeypatch.setattr(f'vlm2rec_lab.share.segments.{full}', half)
    for name in ('new', 'old'):
        before = {f.name for f in (tmp_path / name).glob('*')} | {'writer.lock'}
        with pytest.raises(OSError, match='No space.*seg-') as told:
            build(name)
        assert Path(told.value.filename).parent == tmp_path / name
        assert {f.name for f in (tmp_path / name).glob('*')} == before
    assert len(Index(tmp_path / 'old')) == 6


@pytest.mark.parametrize('table', [odd_table().head(5), odd_table().drop(columns='item_id'), None])
def test_a_table_of_another_index_is_told(tmp_path, table):
    build_index(tmp_path / 'shop', dict(text=np.eye(6)), odd_table())
    (path,) = (tmp_path / 'shop').glob('*.parquet')
    path.write_bytes(b'no table at all') if table is None else table.to_parquet(path)
    with pytest.raises(DataError, match='not what the index says'):
        Index(tmp_path / 'shop')


@pytest.mark.parametrize('text', ['[' * 100_000, '{"format": 1, "version": 1, "modalities": {}, "segments": [{}]}'])
def test_manifests_that_are_none(tmp_path, text):
    build_index(tmp_path / 'shop', dict(text=np.eye(6)), odd_table())
    (tmp_path / 'shop' / 'index.json').write_text(text)
    with pytest.raises(DataError, match='damaged'):
        Index(tmp_path / 'shop')


def test_a_weight_too_small_to_be_seen_is_refused_and_none_is_not():
    with pytest.raises(DataError, match='too little to be seen'):
        check_weights({'text': 1, 'image': 1e-31}, ['text', 'image'])
    assert check_weights({'text': 1, 'image': 0}, ['text', 'image']) == {'text': 1, 'image': 0}
    assert check_weights({'text': 1, 'image': 1e-20}, ['text', 'image'])['image'] > 0
