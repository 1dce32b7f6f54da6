"""Tables and folders that are not in order: every defect is named with its row and its remedy."""

import gzip
import json
import warnings

import pandas as pd
import pytest
from PIL import Image

from vlm2rec_lab.base.errors import DataError, DataWarning
from vlm2rec_lab.shop.readers import log_file
from vlm2rec_lab.shop.tables import load_folder, read_table

BAD_CSV = {  # name: (bytes of the file, words of the error)
    'empty': (b'', 'is empty'),
    'a header alone': (b'item_id\n', 'no rows'),
    'rows of several lengths': (b'a,b\n1,2,3\n4,5,6,7\n', 'cannot be read'),
    'a row longer than the header': (b'a,b\n1,2,3\n', 'row 2 has more cells'),
    'an open quotation mark': (b'a,b\n1,2\n3,"4\n5,6\n', 'row 3 opens a quotation mark'),
    'not UTF-8': (b'item_id\n\xff\n', 'not UTF-8'),
    'a name twice': (b'a,b,a\n1,2,3\n', 'two columns of the same name: a'),
    'semicolons': (b'a;b\n1;2\n', "cells lie between ';'"),
}
BAD_LINES = {  # name: (second line of JSON, words of the error)
    'a list': ('[1]', 'line 2 is a list'),
    'half an object': ('{"a"', 'line 2 is not JSON'),
    'brackets without end': ('[' * 100_000, 'line 2 is not JSON'),
    'nested too deep': ('{"a": ' + '[' * 5000 + ']' * 5000 + '}', 'line 2 is'),
    'a number': ('3', 'line 2 is a int'),
}


def refused(f, why):
    "`f()` is a `DataError` with these words."
    with pytest.raises(DataError) as e:
        f()
    assert why in str(e.value)


@pytest.mark.parametrize('name', BAD_CSV)
def test_a_csv_file_that_cannot_be_used(name, tmp_path):
    content, why = BAD_CSV[name]
    (tmp_path / 'items.csv').write_bytes(content)
    refused(lambda: read_table(tmp_path, 'items'), why)


@pytest.mark.parametrize('first', ['0', '1', 'x'])
def test_a_column_without_a_name_moves_no_other(tmp_path, first):
    "As some programs number the rows; pandas would take it for an index, and a range of numbers for its own."
    rows = [first, '1' if first == '0' else '2']
    (tmp_path / 'items.csv').write_text('item_id,title\n' + ''.join(f'{r},a{r},Tea {r}\n' for r in rows))
    (tmp_path / 'interactions.csv').write_text('user_id,item_id,timestamp\n' + ''.join(f'{r},u,a{r},3\n' for r in rows))
    for read in (lambda: load_folder(tmp_path), lambda: log_file(tmp_path / 'interactions.csv')):
        refused(read, 'row 2 has more cells than the header')


def test_commas_at_the_end_of_rows_are_no_column(tmp_path):
    (tmp_path / 'items.csv').write_text('item_id,title\n0,Tea,\n1,Mug,\n')
    (tmp_path / 'interactions.csv').write_text('user_id,item_id,timestamp\n7,0,3,\n7,1,4,\n')
    shop = load_folder(tmp_path)
    assert shop.catalogue.ids == ('0', '1') and shop.catalogue.content['text'] == ['Tea', 'Mug']
    for inter in (shop.interactions, log_file(tmp_path / 'interactions.csv').interactions):
        assert inter.user_ids == ('7',) and inter.items.tolist() == [0, 1] and inter.times.tolist() == [3, 4]


@pytest.mark.parametrize('name', BAD_LINES)
def test_a_line_of_json_that_cannot_be_used(name, tmp_path):
    line, why = BAD_LINES[name]
    (tmp_path / 'items.jsonl').write_text('{"item_id": 1}\n' + line + '\n')
    refused(lambda: read_table(tmp_path, 'items'), why)


def test_broken_parquet_and_broken_gzip(tmp_path):
    (tmp_path / 'items.parquet').write_bytes(b'x')
    refused(lambda: read_table(tmp_path, 'items'), 'items.parquet cannot be read')
    packed = gzip.compress(b'item_id,title\n01,Tea\n')
    (tmp_path / 'others.csv.gz').write_bytes(packed[:-9])
    refused(lambda: read_table(tmp_path, 'others'), 'others.csv.gz cannot be read')


FILMS = """item_id,title,genres,year,image
01,Red dot,"Drama, Dots",1999,posters/a.png
02,Teal dot,Comedy,2001,posters/b.png
03,Gold dot,,2003,posters/c.png
"""
CHOICES = 'user_id,item_id,timestamp\nann,01,10\nann,03,30\nann,02,20\nbob,02,5\nbob,01,7\n'


def write_folder(folder, items=FILMS, interactions=CHOICES):
    "Three films, a poster each, five choices."
    (folder / 'posters').mkdir(parents=True)
    for name in ('a', 'b', 'c'):
        Image.new('RGB', (48, 48), 'teal').save(folder / 'posters' / f'{name}.png')
    (folder / 'items.csv').write_text(items)
    (folder / 'interactions.csv').write_text(interactions)
    return folder


ERRORS = {  # name: (the defective parts, words of the error)
    'duplicate id': (dict(items=FILMS + '01,Again,,1990,\n'), "'01' in rows 2, 5"),
    'empty item id': (dict(items=FILMS + ',Nameless,,1990,\n'), 'row without item id: row 5'),
    'unknown item': (dict(interactions=CHOICES + 'ann,99,40\n'), "row 7 ('99')"),
    'empty user': (dict(interactions=CHOICES + ',01,40\n'), 'row 7'),
    'NaN time': (dict(interactions=CHOICES + 'ann,01,NaN\n'), "row 7 ('NaN')"),
    'unreadable time': (dict(interactions=CHOICES + 'ann,01,yesterday\n'), "row 7 ('yesterday')"),
    'no time': (dict(interactions='user_id,item_id\nann,01\n'), "time='...'"),
    'misspelt user column': (dict(interactions=CHOICES.replace('user_id', 'userid')), "did you mean 'userid'"),
    'path out of the folder': (dict(items=FILMS.replace('posters/a', '../a')), 'row 2'),
}
WARNINGS = {  # name: (the defective parts, words of the warning)
    'misspelt image column': (dict(items=FILMS.replace(',image', ',imgae')), "image='imgae'"),
    'missing image': (dict(items=FILMS.replace('posters/a', 'posters/z')), 'row 2 (posters/z.png)'),
    'not an image': (dict(items=FILMS.replace('posters/a.png', 'items.csv')), 'row 2 (items.csv: not an image)'),
    'empty image cell': (dict(items=FILMS.replace('posters/a.png', '')), "without 'image': row 2"),
    'empty text': (dict(items=FILMS.replace('Gold dot', '')), "without 'text' (title, genres): row 4"),
    'never chosen': (dict(items=FILMS + '04,New dot,,2024,posters/a.png\n'), '(04)'),
    'repeated row': (dict(interactions=CHOICES + 'bob,01,7\n'), 'row 7; the first'),
}


@pytest.mark.parametrize('name', ERRORS)
def test_a_folder_that_cannot_be_used(name, tmp_path):
    parts, why = ERRORS[name]
    folder = write_folder(tmp_path / 'shop', **parts)
    refused(lambda: load_folder(folder), why)


def test_a_misspelt_text_column(tmp_path):
    folder = write_folder(tmp_path / 'shop')
    refused(lambda: load_folder(folder, text=['titles']), "did you mean 'title'")


@pytest.mark.parametrize('name', WARNINGS)
def test_a_folder_that_loses_something(name, tmp_path):
    parts, why = WARNINGS[name]
    folder = write_folder(tmp_path / 'shop', **parts)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        notes = load_folder(folder).notes
    assert why in ' | '.join(notes)
    assert [str(w.message) for w in caught if w.category is DataWarning] == list(notes)


def test_a_folder_in_order_is_not_remarked_on(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load_folder(write_folder(tmp_path / 'shop')).notes == ()


def test_parquet_and_json_lines_are_read_like_csv(tmp_path):
    folder = write_folder(tmp_path / 'shop')
    shop = load_folder(folder)
    pd.read_csv(folder / 'items.csv', dtype=str).to_parquet(folder / 'items.parquet')
    (folder / 'items.csv').unlink()
    assert load_folder(folder).catalogue.content['text'] == shop.catalogue.content['text']
    frame = pd.read_csv(folder / 'interactions.csv', dtype={'item_id': str})
    (folder / 'log.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in frame.to_dict('records')))
    again = load_folder(folder, interactions='log')
    assert [x.tolist() for x in again.interactions.sequences] == [[0, 1, 2], [1, 0]]
    assert (again.interactions.times == shop.interactions.times).all()
    refused(lambda: load_folder(folder, interactions='log', user='user'), "did you mean 'user_id'")
