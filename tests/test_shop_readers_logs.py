"""Logs: ids of every kind and shape, and the largest core."""

import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from vlm2rec_lab.base.errors import DataError, DataWarning, counted, few, warn
from vlm2rec_lab.shop.catalogue import as_ids
from vlm2rec_lab.shop.lines import blocks
from vlm2rec_lab.shop.log_files import csv_log, json_log, read_log
from vlm2rec_lab.shop.logs import coded, k_core
from vlm2rec_lab.shop.readers import hugging_face, log_file


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


IDS = st.lists(
    st.none() | st.text('ab \n\xe9', max_size=3) | st.from_regex(r'B00[0-9]{4}', fullmatch=True) | st.text(max_size=12),
    max_size=60,
)


@settings(deadline=None, max_examples=40)
@given(IDS, st.sampled_from([pa.string(), pa.large_string()]), st.sampled_from([0, 30, 10**6]), st.integers(1, 20))
def test_texts_in_pieces_are_numbered_as_arrow_numbers_them(ids, kind, most, step):
    from vlm2rec_lab.shop.log_files import _Texts

    column = pa.array(ids, kind)
    for few_rows in (0, 10**6):  # in 256 dictionaries, and in one
        texts = _Texts(kind, most, few_rows)
        for start in range(0, len(ids), step):
            texts.add(pa.chunked_array([column.slice(start, step)]))
        found = texts.column().chunk(0)
        found.validate(full=True)
        assert found.equals(column.dictionary_encode())


@given(st.lists(st.text('0123456789', min_size=4, max_size=4), min_size=1, max_size=80))
def test_texts_of_one_length_move_as_rows_of_bytes(ids):
    from vlm2rec_lab.shop import log_files as room

    texts = pa.array(['gone', *ids]).slice(1)
    table = room._table_of(*room._letters(texts))
    order = np.random.default_rng(0).permutation(len(ids))
    assert room._reordered(texts, order, table).equals(room._reordered(texts, order, None))
    shelves = room._shelves(*room._letters(texts))
    longer = pa.array([*ids, 'longer'])  # of two lengths
    assert shelves.tolist() == room._shelves(*room._letters(longer))[:-1].tolist()


PLAIN = st.text('aB7-~', min_size=1, max_size=4)
ODD = st.text('aB \t\xa0\xe9\x7f', max_size=3)


@given(st.lists(PLAIN, min_size=1, max_size=30) | st.lists(PLAIN | ODD, min_size=1, max_size=30))
def test_ids_known_to_be_clean_are_those_of_a_close_look(ids):
    column = pa.array(ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('vlm2rec_lab.shop.logs._clean', lambda dictionary: False)
        try:
            slow = numbers(column)
        except DataError as e:
            slow = str(e)
    try:
        fast = numbers(column)
    except DataError as e:
        fast = str(e)
    assert fast == slow


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_numbers_in_the_order_of_their_ids_are_told_from_others(codes):
    from vlm2rec_lab.shop.logs import _by_appearance

    codes = np.int32(codes)
    whole = list(dict.fromkeys(codes.tolist())) == list(range(5))
    assert _by_appearance(codes, range(5)) == whole


def test_a_dictionary_that_names_an_id_twice_still_gives_one_number():
    twice = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), pa.array(['x', 'x', 'y']))
    assert numbers(twice) == ([0, 0, 1], ['x', 'y'])


TIMES = st.integers(-9, 9) | st.integers(-(2**60), 2**60) | st.floats(-1e300, 1e300)


@given(st.lists(st.tuples(st.integers(0, 6), TIMES), max_size=60), st.booleans(), st.integers(1, 70))
def test_rows_sorted_in_parts_are_those_of_a_plain_sort(rows, whole, size):
    from vlm2rec_lab.shop.logs import time_order

    users = np.array([u for u, _ in rows], np.int32)
    times = np.array([t for _, t in rows], float)
    times = np.floor(times) if whole else times
    assert time_order(users, times, size).tolist() == np.lexsort((times, users)).tolist()


@given(st.lists(st.integers(0, 2**62), max_size=40))
def test_keys_with_and_without_room_for_the_row(keys):
    from vlm2rec_lab.shop.logs import _key_order

    keys = np.array(keys, np.int64)
    for some in (keys, keys % 7, keys % 7 + 2**61):
        assert _key_order(some).tolist() == np.argsort(some, kind='stable').tolist()


@given(st.lists(st.integers(0, 9), max_size=40))
def test_rising_numbers_are_counted_as_any_others(found):
    from vlm2rec_lab.shop.logs import _counts

    for some in (np.int32(found), np.sort(np.int32(found))):
        assert _counts(some).tolist() == np.bincount(some).tolist()


OPEN = 'user_id,item_id,timestamp,text\nu,a,1,ok\nu,b,2,"never closed\n'


@pytest.mark.parametrize('rows', [1, 3, 20_000])
@pytest.mark.parametrize('end', ['', '\n'])
def test_an_open_quotation_mark_swallows_nothing(tmp_path, rows, end):
    "Rows behind it would be words of a column that nobody asked for; a mark that is closed may hold line breaks."
    file, more = tmp_path / 'log.csv', '\n'.join(f'u{k},i{k},{k},x' for k in range(rows))
    file.write_text(OPEN + more + end)
    with pytest.raises(DataError, match='row 3 opens a quotation mark that is never closed'):
        read_log(file, progress=False)
    file.write_text(OPEN.replace('never closed', 'closed\n\n"') + more + end)
    assert len(read_log(file, progress=False)) == rows + 2
    file.write_text('user_id,item_id\nu,a\nu,"b\nu,c' + end)
    with pytest.raises(DataError, match='never closed'):
        read_log(file, time=None, progress=False)


@pytest.mark.parametrize('end', ['', '\n', '\r\n', '\r'])
@pytest.mark.parametrize('columns', ['user_id,item_id,timestamp', 'timestamp,text,item_id,user_id'])
def test_the_last_row_is_read_however_it_ends(tmp_path, end, columns):
    break_ = end or '\n'
    cells = dict(user_id='u', item_id='i', timestamp='5', text='')
    row = ','.join(cells[c] for c in columns.split(','))
    (tmp_path / 'log.csv').write_bytes(break_.join([columns, row]).encode() + end.encode())
    log = read_log(tmp_path / 'log.csv', progress=False, max_rows=1)
    assert (list(log.user_ids), list(log.item_ids), log.times.tolist()) == (['u'], ['i'], [5.0])


def in_form(folder, form, times):
    "A user with an item at each time, in a CSV file or in lines of JSON."
    if form == 'csv':
        text = 'user_id,item_id,timestamp\n' + ''.join(f'u,i{k},{t}\n' for k, t in enumerate(times))
    else:
        text = ''.join(json.dumps(dict(user_id='u', item_id=f'i{k}', timestamp=t)) + '\n' for k, t in enumerate(times))
    file = folder / f'log.{form}'
    file.write_text(text)
    return read_log(file, progress=False)


LATE = 1_700_000_000_000_000_000
FINE = [
    [LATE + 3, LATE + 2, LATE + 1],
    [str(LATE + 3), str(LATE + 2), str(LATE + 1)],
    [f'2024-01-01T10:00:00.00000000{k}' for k in (3, 2, 1)],
    [f'2024-01-01 10:00:00.{k}' for k in ('0000021', '000002', '00000199')],
    ['1600-01-01', '1500-01-01T00:00:01', '1500-01-01'],
    [2**53 + 3, 2**53 + 1, 5],
]


@pytest.mark.parametrize('times', FINE, ids=str)
@pytest.mark.parametrize('form', ['csv', 'jsonl'])
@pytest.mark.filterwarnings('ignore::vlm2rec_lab.base.errors.DataWarning')
def test_times_keep_their_order_to_the_nanosecond(tmp_path, form, times):
    log = in_form(tmp_path, form, times)
    assert log.item_ids[log.items].tolist() == ['i2', 'i1', 'i0'] and (np.diff(log.times) >= 0).all()


@pytest.mark.parametrize('times', [[2**53 + 3, 5, 2.5], [5.0, 2.5, 2**53 + 1], ['2300-01-01', '2024-01-01']], ids=str)
def test_blocks_of_several_kinds_of_times_are_one_column(tmp_path, times):
    "The last line, without a line feed, is a block of its own."
    text = '\n'.join(json.dumps(dict(user_id='u', item_id=f'i{k}', timestamp=t)) for k, t in enumerate(times))
    (tmp_path / 'log.jsonl').write_text(text)
    log = read_log(tmp_path / 'log.jsonl', progress=False)
    assert len(log) == len(times) and (np.diff(log.times) > 0).all()


def test_a_block_without_a_row_changes_no_time(tmp_path):
    "Blanks behind the last line feed, and a last line that is malformed and left out."
    line = '{"user_id": "u", "item_id": "%s", "timestamp": "2024-05-31T10:00:00.12345600%d"}\n'
    for tail, share in (('', 0), ('  ', 0), ('{bad}', 0.5)):
        (tmp_path / 'log.jsonl').write_text(line % ('b', 2) + line % ('a', 1) + line % ('a', 2) + tail)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            log = read_log(tmp_path / 'log.jsonl', malformed=share, progress=False)
        assert log.item_ids[log.items].tolist() == ['a', 'b', 'a']


def test_one_field_of_json_has_two_roles(tmp_path):
    (tmp_path / 'log.jsonl').write_text('{"user_id": "u", "n": 1, "timestamp": 5}\n')
    log = read_log(tmp_path / 'log.jsonl', item='n', rating='n', progress=False)
    assert (list(log.item_ids), log.ratings.tolist()) == (['1'], [1.0])


def test_dates_are_no_ratings_and_marks_mean_nothing_where_told(tmp_path):
    file = tmp_path / 'log.csv'
    file.write_text('user_id,item_id,r\nu,a,2024-03-12\n')
    with pytest.raises(DataError, match='1 row with a rating that is no number'):
        read_log(file, time=None, rating='r', progress=False)
    file.write_text('"timestamp",user_id,item_id\n5,u,a\n')
    for slow in (False, True):
        with pytest.raises(DataError, match="'timestamp'"):
            csv_log(file, dict(user='user_id', item='item_id', time='timestamp'), quote=False, slow=slow)


def test_a_block_ends_without_a_blank_line(tmp_path):
    fields, notes = dict(user='u', item='i', time='t'), []
    lines = [json.dumps(dict(u=str(k % 7), i=str(k), t=f'2024-01-{1 + k % 28:02}')) for k in range(300)]
    (tmp_path / 'log.jsonl').write_text('\n'.join(lines) + '\n')
    json_log(tmp_path / 'log.jsonl', fields, 0, notes, False, size=500)
    assert not notes
    (tmp_path / 'log.jsonl').write_text('\n'.join([*lines[:9], '', *lines[9:]]) + '\n')
    with pytest.warns(DataWarning, match='1 row without anything skipped: row 10$'):
        json_log(tmp_path / 'log.jsonl', fields, 0, notes, False, size=500)


def test_headers_and_ratings_read_alike_on_both_ways(tmp_path):
    "A header of two lines; one column in two roles; `nan`, which is no rating, wherever the odd row stands."
    file = tmp_path / 'log.csv'
    file.write_text('"x\ny",user_id,item_id\n1,u,a\n2,u,b\n')
    assert len(read_log(file, time=None, progress=False)) == 2
    file.write_text('user_id,item_id,timestamp\nu,a,1\nu,b,2\n')
    log = read_log(file, rating='timestamp', progress=False)
    assert log.ratings.tolist() == log.times.tolist() == [1, 2]
    for odd in ('', 'v,c,3 ,4\n'):
        file.write_text('user_id,item_id,timestamp,rating\nu,a,1,nan\nu,b,2,3\n' + odd)
        with pytest.raises(DataError, match="row 2 .'nan'"):
            read_log(file, rating='rating', progress=False)


@pytest.mark.parametrize('size', [1, 4, 50, 1 << 20])
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path, size):
    lines = b'{"user_id": "u", "item_id": "b", "timestamp": 2}\n{"user_id": "u", "item_id": "a", "timestamp": 1}'
    (tmp_path / 'log.jsonl').write_bytes(b'\xef\xbb\xbf' + lines)
    log = read_log(tmp_path / 'log.jsonl', progress=False)
    assert log.item_ids[log.items].tolist() == ['a', 'b']
    found = list(blocks(tmp_path / 'log.jsonl', size))
    assert b''.join(block for _, block in found) == lines
    (tmp_path / 'log.jsonl').write_bytes(b'\xef\xbb\xbf')
    assert list(blocks(tmp_path / 'log.jsonl', size)) == []


def test_whole_numbers_beside_others_have_one_form_in_every_file(tmp_path):
    "An item 2.0 of a table with 2.5 is the item 2 of another, in Parquet and in JSON lines."
    numbers, found = [1.0, 2.0, 2.5, 1e20], []
    parquet.write_table(pa.table(dict(user_id=list('abcd'), item_id=numbers)), tmp_path / 'log.parquet')
    rows = [json.dumps(dict(user_id=u, item_id=i)) + '\n' for u, i in zip('abcd', numbers)]
    (tmp_path / 'log.jsonl').write_text(''.join(rows))
    for name in ('log.parquet', 'log.jsonl'):
        found.append(read_log(tmp_path / name, time=None).item_ids.tolist())
    assert found == [['1', '2', '2.5', '1e+20']] * 2
    for kind in ('float32', 'Float64', object):
        assert as_ids(pd.Series([1.0, 2.5], dtype=kind)).tolist() == ['1', '2.5']


TIMES = {  # cells: the end of the error behind 'without a readable time: '
    (
        'nan',
        'nan',
        '1.0',
    ): "row 2 ('nan'), row 3 ('nan'); write a number or a date such as 2024-05-31, or delete the row",
    (
        'x',
        '1.0',
        '2024-01-01',
        '2024-01-02',
    ): "row 2 ('x'), row 3 ('1.0'); it is a column of dates, in which a number is "
    'none; write all times in one form, or delete the row',
    ('7', '9', '2024-01-01'): "row 4 ('2024-01-01'); it is a column of numbers, in which a date is none; write all "
    'times in one form, or delete the row',
}


@pytest.mark.parametrize('cells', TIMES)
def test_rows_without_a_time_are_those_that_have_none_or_it_is_said_why(tmp_path, cells):
    path = tmp_path / 'log.csv'
    path.write_text('user_id,item_id,timestamp\n' + ''.join(f'a,{k},{c}\n' for k, c in enumerate(cells)))
    with pytest.raises(DataError) as e:
        read_log(path)
    assert str(e.value).endswith(TIMES[cells])


@pytest.mark.parametrize('form', ['csv', 'parquet', 'frame'])
def test_the_column_of_times_is_called_by_its_name(tmp_path, form):
    path, table = tmp_path / f'log.{form}', pd.DataFrame(dict(user_id=['a', 'a'], item_id=['x', 'y'], when=['1', None]))
    if form != 'frame':
        getattr(table, f'to_{form}')(path, index=False)
    with pytest.raises(DataError, match="1 row of column 'when' without a readable time"):
        hugging_face(table, time='when') if form == 'frame' else log_file(path, time='when')


@pytest.mark.parametrize('wrong', [0, -1, np.nan, np.inf, 'a', None, True])
def test_units_that_make_no_second_are_refused(tmp_path, wrong):
    path = tmp_path / 'log.csv'
    with pytest.raises(DataError, match='per_second=.*: give how many units of the times make a second, 1 for seconds'):
        read_log(path, per_second=wrong)
    path.write_text('user_id,item_id,timestamp\na,b,1500\n')
    assert read_log(path, per_second=np.float32(1000)).times.tolist() == [1.5]
