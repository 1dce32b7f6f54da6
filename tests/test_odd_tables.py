"""Cells, columns, times and files that are odd in one way each: what is read of them, and what is said."""

import gzip
import json
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
from reader_files import lines, png, put, sequences
from test_cli_commands import said

from vlm2rec_lab.data import DataError, load_folder
from vlm2rec_lab.ranking.vectors import read_vectors
from vlm2rec_lab.shop.readers import hugging_face, log_file, movielens, sequence_file

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')

BUYS = pd.DataFrame({'user_id': ['a', 'a', 'b'], 'item_id': ['1', '2', '1'], 'timestamp': [1, 2, 3]})
GOODS = pd.DataFrame({'item_id': ['1', '2'], 'title': ['x', 'y']})
CLICK = {'user_id': 'a', 'item_id': '1', 'timestamp': 1}


def shop(folder, goods=GOODS, buys=BUYS, form='parquet'):
    "A folder of two tables, one picture in it."
    folder.mkdir(exist_ok=True)
    (folder / 'a.png').write_bytes(png())
    for name, table in (('items', goods), ('interactions', buys)):
        if form == 'parquet':
            table.to_parquet(folder / f'{name}.parquet')
        else:
            table.to_csv(folder / f'{name}.csv', index=False)
    return folder


def refused(f, *words):
    "`f()` is a `DataError` with these words."
    with pytest.raises(DataError) as e:
        f()
    for w in words:
        assert w in str(e.value)


def readers(tmp_path, goods, buys=BUYS):
    "The same tables by a folder and by data frames."
    return [
        lambda: load_folder(shop(tmp_path / 'shop', goods, buys)),
        lambda: hugging_face(buys, goods),
        lambda: log_file(shop(tmp_path / 'shop', goods, buys) / 'interactions.parquet', goods),
    ]


# ---- cells


@pytest.mark.parametrize('way', range(3))
def test_lists_and_bytes_are_texts(tmp_path, way):
    goods = GOODS.assign(categories=[['Toys', 'Games'], None], genres=['Café'.encode(), b'B'])
    ds = readers(tmp_path, goods)[way]()
    assert ds.catalogue.content['text'] == ['x. categories: Toys, Games. genres: Café', 'y. genres: B']
    assert any("1 list in column 'categories' read as text with commas" in n for n in ds.notes)


@pytest.mark.parametrize('way', range(3))
@pytest.mark.parametrize(
    ('cells', 'why'),
    [
        ([[0.5, 0.25], None], 'a list of 2 numbers, not a text'),
        ([{'a': 1}, None], 'a record'),
        ([b'\xff', b'b'], 'bytes that are not UTF-8'),
    ],
)
def test_what_is_no_text_is_named(tmp_path, way, cells, why):
    row = 'row 0' if way else 'row 1'
    refused(readers(tmp_path, GOODS.assign(genres=cells))[way], "column 'genres'", row, why, 'items')


def test_nested_lists_of_json(tmp_path):
    items = [{'item_id': '1', 'title': 'x', 'categories': [['A', 'B'], ['C']], 'tags': ['t', 'u']}, {'item_id': '2'}]
    put(tmp_path, 'items.jsonl', lines(items))
    put(tmp_path, 'interactions.jsonl', lines([CLICK]))
    ds = load_folder(tmp_path)
    assert ds.catalogue.content['text'][0] == 'x. categories: A, B, C'
    assert ds.catalogue.table['tags'].tolist()[0] == 't, u'


@pytest.mark.parametrize('way', range(3))
@pytest.mark.parametrize('kind', ['bytes', 'record', 'list of records'])
def test_pictures_in_cells(tmp_path, way, kind):
    record = {'bytes': png(), 'path': 'a.png'}
    cell = {'bytes': png(), 'record': record, 'list of records': [record, record]}[kind]
    ds = readers(tmp_path, GOODS.assign(image=[cell, None]))[way]()
    assert ds.catalogue.missing()['image'].tolist() == [False, True]
    assert ds.catalogue.image('image', 0).size == (6, 4)
    several = [n for n in ds.notes if 'several pictures' in n]
    assert len(several) == (kind == 'list of records')
    assert not several or '1 item with several pictures' in several[0] and '1 more in the table' in several[0]


def test_a_path_in_a_record_and_a_number(tmp_path):
    ds = load_folder(shop(tmp_path / 'shop', GOODS.assign(image=[{'bytes': None, 'path': 'a.png'}, None])))
    assert ds.catalogue.content['image'][0].name == 'a.png'
    refused(lambda: load_folder(shop(tmp_path / 'shop', GOODS.assign(image=[7, 8]))), "column 'image'", "row 1 ('7'")


# ---- columns of one kind in another shape


def test_the_care_of_a_folder_is_taken_of_a_log(tmp_path):
    text = 'user_id;item_id;timestamp\na;1;2\n'
    refused(lambda: log_file(put(tmp_path, 'x.csv', text)), "x.csv has one column, 'user_id;item_id;timestamp'", "';'")
    utf_16 = 'user_id,item_id,timestamp\na,1,2\n'.encode('utf-16')
    refused(lambda: log_file(put(tmp_path, 'x.csv', utf_16)), 'x.csv is not UTF-8 but UTF-16')
    refused(lambda: sequence_file(put(tmp_path, 'x.txt', 'a b\n'.encode('utf-16'))), 'x.txt is not UTF-8 but UTF-16')
    put(tmp_path, 'items.csv', 'item_id,title\n1,x\n'.encode('utf-16'))
    refused(lambda: load_folder(tmp_path), 'items.csv is not UTF-8 but UTF-16')
    refused(lambda: log_file(put(tmp_path, 'x.tsv', 'user_id,item_id,timestamp\na,1,2\n')), "','", 'save it with tabs')


def test_lines_that_end_as_on_old_macintoshes(tmp_path):
    ds = sequence_file(put(tmp_path, 's.txt', ''.join(f'u{k} a b\r' for k in range(8))))
    assert len(ds.interactions) == 8
    put(tmp_path, 'ml/u.data', '1\t7\t5\t10\n2\t8\t4\t11\n')
    put(tmp_path, 'ml/u.item', ''.join(f'{k}|F{k}|||{"|0" * 18}|1\r' for k in (7, 8)))
    assert movielens(tmp_path / 'ml').catalogue.content['text'] == ['F7. genres: Western', 'F8. genres: Western']


@pytest.mark.parametrize('cell', ['NaN', 'Infinity', 'true', '["a"]', '{"a": 1}'])
def test_what_is_no_id_in_json(tmp_path, cell):
    text = lines([CLICK]) + f'{{"user_id": {cell}, "item_id": "1", "timestamp": 2}}\n'
    put(tmp_path, 'items.jsonl', lines([{'item_id': '1', 'title': 'x'}]))
    path = put(tmp_path, 'interactions.jsonl', text)
    refused(lambda: log_file(path), 'interactions.jsonl', 'line 2')
    refused(lambda: load_folder(tmp_path), 'interactions.jsonl', 'row 2')


def test_yes_and_no_are_no_ids(tmp_path):
    for way in readers(tmp_path, GOODS, BUYS.assign(user_id=[True, False, True])):
        refused(way, 'interactions', '3 rows whose user id is neither a text nor a number')


LONG = {
    'beyond 2**53': [2**60 + 1, 2**60, 5],
    'extremes': [2**63 - 1, 2**63 - 2, -(2**63)],
    'dates': pd.to_datetime([1_700_000_000_000_000_001, 1_700_000_000_000_000_000, 5]),
}


@pytest.mark.parametrize('way', range(3))
@pytest.mark.parametrize('kind', LONG)
def test_long_times_keep_their_order(tmp_path, way, kind):
    goods = pd.concat([GOODS, pd.DataFrame({'item_id': ['3'], 'title': ['z']})])
    buys = pd.DataFrame({'user_id': 'a', 'item_id': ['1', '2', '3'], 'timestamp': LONG[kind]})
    ds = readers(tmp_path, goods, buys)[way]()
    assert sequences(ds) == {'a': ['3', '2', '1']}
    close = any('1 row at a time too close to the one before for 64 bits' in n for n in ds.notes)
    assert close or kind == 'dates'  # these depend on the unit in which pandas keeps dates


@pytest.mark.parametrize('name', ['x.csv', 'x.csv.gz', 'x.jsonl'])
@pytest.mark.parametrize('blank', ['', '\n'])
def test_nanoseconds_of_a_log(tmp_path, name, blank):
    times = [1_700_000_000_000_000_001, 1_700_000_000_000_000_000]
    rows = [json.dumps(CLICK | {'item_id': str(k), 'timestamp': t}) for k, t in enumerate(times)]
    if '.csv' in name:
        rows = ['user_id,item_id,timestamp', *(f'a,{k},{t}' for k, t in enumerate(times))]
    path = put(tmp_path, name, '\n'.join(rows[:-1]) + '\n' + blank + rows[-1] + '\n')
    assert sequences(log_file(path)) == {'a': ['1', '0']}


def test_times_of_32_bits_are_said(tmp_path):
    buys = BUYS.assign(timestamp=np.array([1_700_000_001, 1_700_000_000, 5], np.float32))
    for way in readers(tmp_path, GOODS, buys):
        assert any('float32' in n and '1 row with the same time' in n for n in way().notes)


DATES = 'user_id,item_id,timestamp\na,1,{}\na,2,{}\n'


def test_dates_with_the_day_first(tmp_path):
    path = put(tmp_path, 'x.csv', DATES.format('31.12.2023', '01.02.2023'))
    refused(lambda: log_file(path), "row 2 ('31.12.2023')", "time_format='%d.%m.%Y' (day first);")
    assert sequences(log_file(path, time_format='%d.%m.%Y')) == {'a': ['2', '1']}
    path = put(tmp_path, 'x.csv', DATES.format('05/06/2023', '01/02/2023'))
    refused(lambda: log_file(path), "'%d/%m/%Y' (day first) or time_format='%m/%d/%Y' (month first)")
    refused(lambda: log_file(path, time_format='dd'), "time_format='dd' is no format")
    ds = load_folder(shop(tmp_path / 's', buys=BUYS.assign(timestamp='31.12.2023')), time_format='%d.%m.%Y')
    assert ds.interactions.times.tolist() == [1_703_980_800.0] * 3
    path = put(tmp_path, 'x.jsonl', lines([CLICK | {'timestamp': '31.12.2023'}]))
    refused(lambda: log_file(path), 'line 1', "time_format='%d.%m.%Y'")
    assert log_file(path, time_format='%d.%m.%Y').interactions.times.tolist() == [1_703_980_800.0]


def test_dates_of_json_lines_are_read_as_those_of_a_table(tmp_path):
    path = put(tmp_path, 'x.jsonl', lines([CLICK | {'timestamp': '2023-12-31'}]))
    assert log_file(path).interactions.times.tolist() == [1_703_980_800.0]
    path = put(tmp_path, 'x.jsonl', lines([CLICK, CLICK | {'timestamp': '2023-12-31'}]))
    refused(lambda: log_file(path), '1 line with a date and others with a number', 'line 2')


@pytest.mark.parametrize('name', ['x.csv', 'x.jsonl', 'x.txt'])
def test_blank_rows_are_counted(tmp_path, name):
    text = {'x.csv': 'user_id,item_id,timestamp\na,1,2\n\nb,1,3\n\n', 'x.jsonl': lines([CLICK]) + '\n' + lines([CLICK])}
    path = put(tmp_path, name, text.get(name, 'a 1\n\nb 1\n\n'))
    ds = sequence_file(path) if name == 'x.txt' else log_file(path)
    row = 3 if name == 'x.csv' else 2
    assert f'{name}: 1 row without anything skipped: row {row}' in ds.notes


# ---- names of columns

OWN = pd.DataFrame({'sku': ['01', '02'], 'name': ['x', 'y'], 'photo': ['a.png', '']})
BOUGHT = pd.DataFrame(
    {'customer': list('7778'), 'sku': ['02', '01', '02', '02'], 'when': [f'2023-01-0{k}' for k in (2, 1, 3, 3)]}
)


def test_well_known_names(tmp_path):
    ds = load_folder(shop(tmp_path / 'shop', OWN, BOUGHT, 'csv'))
    assert sequences(ds) == {'7': ['01', '02', '02'], '8': ['02']}
    assert ds.catalogue.missing()['image'].tolist() == [False, True]
    assert sum('is read as the' in n for n in ds.notes) == 5
    put(tmp_path, 'buys.csv', 'date,customer_id,article_id\n2023-01-01,7,0108\n')
    put(tmp_path, 'goods.csv', 'article_id,prod_name,detail_desc\n0108,Top,A long top\n')
    ds = log_file(tmp_path / 'buys.csv', tmp_path / 'goods.csv')
    assert ds.catalogue.content['text'] == ['prod_name: Top. detail_desc: A long top']
    assert ds.catalogue.ids == ('0108',)
    refused(
        lambda: log_file(put(tmp_path, 'x.csv', 'user_id,item_id,date,time\na,1,2,3\n')),
        'date, time could each be the time',
    )


@pytest.mark.parametrize('reader', ['folder', 'log', 'hub'])
def test_all_names_that_are_missing_in_one_message(tmp_path, reader, monkeypatch):
    decoded = []
    monkeypatch.setattr('vlm2rec_lab.shop.tables.picture_trouble', lambda *a: decoded.append(a) or '')
    goods, buys = OWN.rename(columns={'sku': 'nr'}), BOUGHT.rename(columns={'sku': 'nr', 'customer': 'x', 'when': 'at'})
    folder = shop(tmp_path / 'shop', goods, buys, 'csv')
    read = {
        'folder': lambda: load_folder(folder, image='picture'),
        'log': lambda: log_file(folder / 'interactions.csv', folder / 'items.csv', image='picture'),
        'hub': lambda: hugging_face(buys, goods, image='picture'),
    }[reader]
    words = ("item 'item_id'", "user 'user_id'", "time 'timestamp'", "image 'picture'", '(in the shell --')
    refused(read, '5 columns are missing', 'x, nr, at', 'nr, name, photo', *words)
    assert not decoded


def test_pictures_that_are_not_read_are_said(tmp_path):
    ds = load_folder(shop(tmp_path / 'shop', GOODS.assign(cover=['a.png', 'b.jpg'])))
    assert any("'cover' looks like pictures ('a.png')" in n and "image='cover'" in n for n in ds.notes)
    ds = load_folder(shop(tmp_path / 'shop', GOODS.assign(cover=['a.png', 'b.jpg'])), image={})
    assert not ds.notes


# ---- the shell


def test_the_shell_names_columns(tmp_path):
    goods, buys = (
        OWN.rename(columns={'sku': 'nr', 'photo': 'front'}),
        BOUGHT.rename(columns={'sku': 'nr', 'when': 'at'}),
    )
    folder, out = shop(tmp_path / 'shop', goods, buys, 'csv'), tmp_path / 'p.json'
    status, _, err = said('profile', '--data', folder, '--out', out)
    assert status == 2 and '3 columns are missing' in err and '--item' in err
    words = ['--item', 'nr', '--time', 'at', '--text', 'name', '--image', 'front', '--out', out]
    status, text, err = said('profile', '--data', folder, *words)
    assert status == 0, err
    assert "items.csv: 1 item of 2 without 'front': row 3" in text
    log = f'log:{folder / "interactions.csv"},{folder / "items.csv"}'
    assert said('profile', '--data', log, *words)[0] == 0
    status, _, err = said('profile', '--data', f'amazon:{folder / "items.csv"}', '--image', 'front', '--out', out)
    assert status == 2 and '--image: the reader amazon has no such option' in err
    status, _, err = said('profile', '--data', 'studio:balanced', '--item', 'x', '--out', out)
    assert status == 2 and 'leave --item out' in err


@pytest.mark.parametrize('command', ['train', 'profile', 'downstream', 'fetch'])
def test_every_command_that_opens_data_names_columns(command):
    assert all(
        f'--{name} ' in said(command, '--help')[1] for name in ('user', 'item', 'time', 'text', 'image', 'max-rows')
    )


def test_dates_and_bounds_in_the_shell(tmp_path):
    buys = pd.DataFrame({'user_id': 'a', 'item_id': list('121'), 'timestamp': [f'{k}.12.2023' for k in (29, 30, 31)]})
    folder = shop(tmp_path / 'shop', buys=buys, form='csv')
    argv = ['profile', '--data', folder, '--out', tmp_path / 'p.json']
    assert said(*argv)[0] == 2
    assert said(*argv, '--time-format', '%d.%m.%Y')[0] == 0
    status, _, err = said(*argv, '--time-format', '%d.%m.%Y', '--max-rows', '2')
    assert status == 2 and 'interactions.csv has more than --max-rows 2: raise it' in err


# ---- files that would take all memory, or lie


@pytest.mark.parametrize(
    'name', ['interactions.csv.gz', 'interactions.csv', 'interactions.jsonl.gz', 'interactions.parquet']
)
def test_bounds(tmp_path, name):
    path, frame = tmp_path / name, pd.DataFrame([CLICK] * 1000)
    if name.endswith('parquet'):
        frame.assign(item_id=[str(k) for k in range(1000)]).to_parquet(path)
    else:
        put(tmp_path, name, lines([CLICK] * 1000) if 'jsonl' in name else frame.to_csv(index=False))
    put(tmp_path, 'items.csv', 'item_id,title\n' + ''.join(f'{k},x\n' for k in range(1000)))
    for read in (lambda **how: log_file(path, **how), lambda **how: load_folder(tmp_path, **how)):
        refused(lambda: read(max_rows=999), 'has more than max_rows=999')
        refused(lambda: read(max_bytes=1000), 'holds more than max_bytes=1,000')
        assert len(read(max_rows=1000, max_bytes=10**6).interactions) == 1
    text = put(tmp_path, 's.txt', 'a b\n' * 1000)
    refused(lambda: sequence_file(text, max_rows=999), 'max_rows=999')
    refused(lambda: sequence_file(text, max_bytes=999), 'max_bytes=999')


def test_a_small_file_of_many_rows_takes_little_memory(tmp_path):
    rows = b'user_id,item_id,timestamp\n' + b'a,b,1\n' * 2_000_000
    path = put(tmp_path, 'x.csv.gz', rows)
    assert path.stat().st_size < 50_000
    refused(lambda: log_file(path, max_rows=1000), 'max_rows=1,000')
    ds = log_file(path)
    assert 'x.csv.gz: 1,999,999 rows repeating' in ds.notes[0]


def test_times_of_400_digits(tmp_path):
    digits = '9' * 400
    put(tmp_path, 'items.csv', 'item_id,title\n1,x\n')
    for name, text in (
        ('interactions.csv', f'user_id,item_id,timestamp\na,1,{digits}\n'),
        ('interactions.jsonl', '{"user_id": "a", "item_id": "1", "timestamp": ' + digits + '}\n'),
    ):
        path = put(tmp_path, name, text)
        refused(lambda: log_file(path), name)
        refused(lambda: load_folder(tmp_path), name, 'without a readable time')
        path.unlink()


def test_links_in_a_circle(tmp_path):
    folder = shop(tmp_path / 'shop', GOODS.assign(image=['x.png', 'x/a.png']), form='csv')
    for a, b in (('x', 'y'), ('x.png', 'y.png')):
        (folder / a).symlink_to(folder / b)
        (folder / b).symlink_to(folder / a)
    for check in (True, False):
        ds = load_folder(folder, check=check)
        assert ds.catalogue.missing()['image'].all()
        assert "2 images of column 'image' not found: row 2 (x.png), row 3 (x/a.png)" in ds.notes[0]
    status, _, err = said('profile', '--data', folder / 'x')
    assert status == 2 and 'there is no folder' in err


HEAD = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
HEADS = {
    'larger than memory': HEAD % '(1000000000000, 8)',
    'larger than a number': HEAD % '(10000000000000000000000, 8)',
    'negative': HEAD % '(-3, 8)',
    'longer than the file': HEAD % '(100, 8)',
    'no dictionary': '{{{',
    'no array': None,
}


def npy(head):
    "The bytes of an array with a header that says this."
    if head is None:
        return b'nothing'
    head = head.ljust(127 - 10).encode() + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(head)) + head + bytes(64)


@pytest.mark.parametrize('name', HEADS)
def test_headers_that_lie(tmp_path, name):
    path = tmp_path / 'v.npz'
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr('items/text.npy', npy(HEADS[name]))
    with pytest.raises(ValueError, match="the array 'items/text' is damaged, or its header is untrue"):
        read_vectors(path)
    status, _, err = said('report', path)
    assert status == 2 and 'v.npz' in err


def test_damaged_bytes_of_an_array(tmp_path):
    path = tmp_path / 'v.npz'
    np.savez(path, **{'items/text': np.ones((50, 8))})
    data = bytearray(path.read_bytes())
    data[500] ^= 255
    path.write_bytes(data)
    status, _, err = said('report', path)
    assert status == 2 and 'Bad CRC-32' in err


def test_a_packed_file_under_a_plain_name(tmp_path):
    path = put(tmp_path, 'x.csv', gzip.compress(b'user_id,item_id,timestamp\na,1,2\n'))
    assert len(log_file(path).interactions) == 1


@pytest.mark.parametrize('ends', [b'\r\n', b'\r', b'\n\r'])
def test_line_ends_that_are_mixed_keep_users_apart(tmp_path, ends):
    path = tmp_path / 's.txt'
    path.write_bytes(b'1 2 3' + ends + b'2 3 4\n5 6 7')
    assert sequences(sequence_file(path)) == {'1': ['2', '3'], '2': ['3', '4'], '5': ['6', '7']}


def test_html_is_cleaned_from_the_shell(tmp_path):
    buys = pd.DataFrame({'user_id': 'a', 'item_id': list('121'), 'timestamp': [1, 2, 3]})
    folder = shop(tmp_path / 'shop', GOODS.assign(title='Salt &amp; <b>pepper</b>'), buys, form='csv')
    argv = ['profile', '--data', folder, '--out', tmp_path / 'p.json']
    with_html, clean = said(*argv), said(*argv, '--clean')
    assert (with_html[0], clean[0]) == (0, 0)
    assert 'hold HTML' in with_html[1] and '--clean' in with_html[1]
    assert 'hold HTML' not in clean[1] and '2 cells of text cleaned of HTML' in clean[1]


def test_yes_and_no_are_no_times(tmp_path):
    for way in readers(tmp_path, GOODS, BUYS.assign(timestamp=[True, False, True])):
        refused(way, '3 rows', 'without a readable time')
    mixed = BUYS.assign(timestamp=pd.Series([True, 5, 6], dtype=object))
    refused(lambda: hugging_face(mixed, GOODS), '1 row', "row 0 ('True')", 'without a readable time')


@pytest.mark.parametrize('wrong', [dict(max_rows='3'), dict(max_rows=-1), dict(max_rows=1.5), dict(max_bytes='1MB')])
def test_bounds_that_are_none_are_named(tmp_path, wrong):
    folder = shop(tmp_path / 'shop', form='csv')
    name = next(iter(wrong))
    refused(lambda: load_folder(folder, **wrong), f'{name}={wrong[name]!r}: give a whole number of at least 1')
    refused(lambda: log_file(folder / 'interactions.csv', **wrong), f'{name}={wrong[name]!r}')
