"""Logs: ids of every kind and shape, and the largest core."""

import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError, DataWarning, counted, few, warn
from vlm2rec_lab.shop.logs import coded, k_core


def numbers(column):
    "The numbers and the ids of a column, as lists."
    codes, ids = coded(column)
    return codes.tolist(), ids.tolist()


def test_large_numbers_are_ids_in_full():
    assert numbers(pa.array([1, 2**60]))[1] == ['1', str(2**60)]


def test_an_empty_column_has_no_ids():
    assert numbers(pa.array([], pa.string())) == ([], [])


def test_chunks_share_their_ids():
    assert numbers(pa.chunked_array([['a', 'b'], [], ['c', 'b']])) == ([0, 1, 2, 1], ['a', 'b', 'c'])


def test_chunks_with_dictionaries_of_their_own_share_their_ids():
    first, second = pa.array(['a', 'b']).dictionary_encode(), pa.array(['c', 'b']).dictionary_encode()
    assert numbers(pa.chunked_array([first, second])) == ([0, 1, 2, 1], ['a', 'b', 'c'])


@pytest.mark.parametrize(
    'column, why',
    [
        (['a', None], 'row 6'),
        (['a', ' '], 'row 6'),
        (['a', 'b\nc'], 'line break inside the item id: row 6'),
        ([1.0, None], 'row 6'),
        ([['a'], ['b']], 'not ids'),
        ([b'a', b'\xff'], 'cannot be read'),
    ],
)
def test_what_is_no_id_is_named(column, why):
    with pytest.raises(DataError, match=why):
        coded(pa.array(column), rows=np.array([5, 6]))


@pytest.mark.parametrize('column', [['a', None], ['a', ' ']])
def test_what_is_no_id_is_named_in_a_dictionary_too(column):
    with pytest.raises(DataError, match='row 6'):
        coded(pa.array(column).dictionary_encode(), rows=np.array([5, 6]))


pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60)


@settings(deadline=None, max_examples=60)
@given(pairs, st.integers(1, 4), st.integers(1, 4))
def test_k_core_is_the_largest(pairs, ku, ki):
    u, i = np.array(pairs, np.int64).reshape(-1, 2).T
    keep, _ = k_core(u, i, ku, ki)
    left = set(range(len(u)))
    while gone := {k for k in left if sum(u[j] == u[k] for j in left) < ku or sum(i[j] == i[k] for j in left) < ki}:
        left -= gone
    assert set(np.flatnonzero(keep)) == left


def test_what_is_warned_of_is_a_note_too():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        warn(notes := [], 'two rows lost')
    assert notes == ['two rows lost']
    assert said[0].category is DataWarning


def test_numbers_in_words():
    assert few([1, 2, 3, 4, 5]) == '1, 2, 3 and 2 more'
    assert counted(1, 'row') == '1 row'
    assert counted(2000, 'row') == '2,000 rows'


@pytest.mark.parametrize('kind', ['csv', 'parquet', 'jsonl'])
@pytest.mark.parametrize('loose', [1, 40, 1 << 23])
def test_a_log_is_the_same_however_often_its_ids_are_joined(tmp_path, monkeypatch, kind, loose):
    import pandas as pd

    from vlm2rec_lab.shop import log_files

    whole = log_files._Gathered.__init__
    monkeypatch.setattr(log_files._Gathered, '__init__', lambda self, names: whole(self, names, loose))
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(user=rng.integers(0, 60, 900), item=rng.integers(0, 40, 900), time=rng.permutation(900)))
    df = df.assign(user='u' + df.user.astype(str), item='i' + df.item.astype(str), rating=rng.integers(1, 6, 900))
    path = tmp_path / f'log.{kind}'
    if kind == 'csv':
        df.to_csv(path, index=False)
    elif kind == 'parquet':
        df.to_parquet(path, row_group_size=50)
    else:
        df.to_json(path, orient='records', lines=True)
    monkeypatch.setattr(log_files, 'BATCH', 64)
    log = log_files.read_log(path, 'user', 'item', 'time', 'rating', per_second=1000)
    order = df.assign(code=pd.factorize(df.user)[0]).sort_values(['code', 'time'])
    assert [log.user_ids[u] for u in log.users] == order.user.tolist()
    assert [log.item_ids[i] for i in log.items] == order.item.tolist()
    assert log.times.tolist() == (order.time / 1000).tolist()
    assert log.ratings.tolist() == order.rating.tolist()
