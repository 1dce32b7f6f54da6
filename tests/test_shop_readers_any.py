"""Readers on anything that may stand in a file: every interaction is in the dataset or counted in a note, or a
`DataError` names the file. No other error is raised, and no process ends."""

import csv
import gzip
import io
import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reader_files import lines, malformed, put, repeats, review_14

from vlm2rec_lab.data import DataError, DataWarning, load_folder
from vlm2rec_lab.shop.lines import Malformed
from vlm2rec_lab.shop.log_files import _fast_block, _plain_block
from vlm2rec_lab.shop.readers import amazon, hugging_face, log_file, sequence_file

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
LOOSE = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

WORDS = ['', 'a', 'b', 'c', ' a', '7', '7.0', '0', '-1', 'nan', 'NaN', 'inf', 'null', '1e400', '"', "'", ',', 'a,b']
WORDS += ['a\nb', '\r', '\0', '2024-01-05', '2024-13-45', '::', '=1+1', '\ufeff', '\u202e', 'é', '𝄞', '9' * 30, 'True']
words = st.one_of(st.sampled_from(WORDS), st.text(max_size=4))
cells = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.integers(-(10**30), 10**30), st.floats(), words)
good = st.tuples(st.sampled_from('abc'), st.sampled_from('xyz'), st.integers(0, 4).map(str))
three_words = st.lists(words, min_size=3, max_size=3)
FOLDER = ('user_id', 'item_id', 'timestamp')


def read_quietly(read, name):
    "The dataset, or None where a `DataError` names the file."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)
        try:
            return read()
        except DataError as e:
            assert name in str(e), e


def accounted(read, n, name):
    "Every one of `n` interactions is in the dataset or counted; or a DataError that names the file."
    ds = read_quietly(read, name)
    if ds is None:
        return
    assert len(ds.interactions.items) + repeats(ds.notes) + malformed(ds.notes) == n, ds.notes
    assert all(i and i == i.strip() for i in ds.catalogue.ids)
    assert (np.bincount(ds.interactions.items, minlength=len(ds.catalogue)) > 0).all()
    assert repr(ds) and ds.catalogue._repr_html_()


def csv_text(rows):
    "Rows as the text of a CSV file."
    out = io.StringIO(newline='')
    csv.writer(out, lineterminator='\n').writerows(rows)
    return out.getvalue()


def filled(rows):
    "How many rows have a cell that is not empty."
    return sum(any(c != '' for c in r) for r in rows)


# ---- blocks of JSON lines: the fast way is the plain way

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.just({'a': 1}),
)
fine = {'u': st.sampled_from(['a', 'b', 3, ' c']), 'i': st.sampled_from(['x', 'y']), 't': st.integers(0, 9)}
rows_of_json = st.one_of(
    st.fixed_dictionaries(fine, optional={'z': values}),
    st.dictionaries(st.sampled_from(['u', 'i', 't', 'r']), values),
    values,
    st.just(''),
)


def stripped(row):
    "A row whose texts have no blanks at their ends."
    return {k: v.strip() if isinstance(v, str) else v for k, v in row.items()}


@LOOSE
@given(st.lists(rows_of_json, max_size=8))
def test_json_fast_block_is_the_plain_block(rows):
    block = b''.join((b'' if r == '' else json.dumps(r).encode()) + b'\n' for r in rows)
    fields = {'user': 'u', 'item': 'i', 'time': 't'}
    fast, bad = _fast_block(1, block, fields), Malformed('x', 1.0)
    plain = _plain_block(1, block, fields, bad)
    assert plain[0].num_rows + len(bad.lines) == plain[2] == sum(r != '' for r in rows)
    if fast is not None:
        assert not bad.lines
        assert [stripped(r) for r in fast[0].to_pylist()] == plain[0].to_pylist()
        assert list(fast[1]) == list(plain[1])


# ---- logs


@LOOSE
@given(st.lists(st.one_of(good, three_words), min_size=1, max_size=8))
def test_any_csv(tmp_path, rows):
    path = put(tmp_path, 'log.csv', csv_text([FOLDER, *rows]))
    accounted(lambda: log_file(path), filled(rows), 'log.csv')


raw_rows = st.one_of(
    good.map(','.join),
    st.text(alphabet='abxy01,",\'\n\r\t ;', max_size=12),
    st.just('a,x,1,extra'),
    st.just('a,x'),
)


@LOOSE
@given(st.lists(raw_rows, min_size=1, max_size=8), st.booleans())
def test_any_raw_csv(tmp_path, rows, packed):
    "Ragged rows and stray quotation marks: what is read are records with all three cells."
    path = put(tmp_path, 'log.csv' + '.gz' * packed, '\n'.join([','.join(FOLDER), *rows]) + '\n')
    ds = read_quietly(lambda: log_file(path), 'log.csv')
    if ds is None:
        return
    text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
    parsed = [r for r in csv.reader(io.StringIO(text, newline='')) if any(r)][1:]
    assert len(ds.interactions.items) + repeats(ds.notes) == len(parsed)


fine_click = {'user_id': st.sampled_from('abc'), 'item_id': st.sampled_from('xyz'), 'timestamp': st.integers(0, 4)}
any_click = st.one_of(
    st.fixed_dictionaries(fine_click),
    st.dictionaries(st.sampled_from([*FOLDER, 'z']), cells),
    cells,
)


@LOOSE
@given(st.lists(any_click, min_size=1, max_size=8), st.sampled_from([0.0, 1.0]))
def test_any_json_lines(tmp_path, rows, share):
    path = put(tmp_path, 'log.jsonl', lines(rows))
    accounted(lambda: log_file(path, malformed=share), len(rows), 'log.jsonl')


COLUMNS = (
    st.sampled_from(['a', 'b']),
    st.integers(0, 3),
    st.floats(),
    st.one_of(st.none(), words),
    st.booleans(),
    st.binary(max_size=3),
    st.datetimes(),
    st.dates(),
    st.lists(st.integers(0, 9), max_size=2),
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.decimals(0, 9, places=2),
)


@LOOSE
@given(st.data())
def test_any_parquet(tmp_path, data):
    "Columns of one type each, some of them strange."
    n = data.draw(st.integers(0, 6))
    kinds = [st.lists(x, min_size=n, max_size=n) for x in COLUMNS]
    try:
        table = pa.table({c: data.draw(st.one_of(kinds)) for c in FOLDER})
    except (pa.ArrowException, UnicodeEncodeError):
        return  # no Parquet file holds it
    pq.write_table(table, tmp_path / 'log.parquet')
    accounted(lambda: log_file(tmp_path / 'log.parquet'), n, 'log.parquet')
    accounted(lambda: hugging_face(table), n, 'interactions')


@LOOSE
@given(st.lists(st.lists(words, max_size=4), max_size=6), st.sampled_from([None, 'pairs', 'sequences']))
def test_any_sequence_file(tmp_path, rows, form):
    path = put(tmp_path, 'log.txt', '\n'.join(' '.join(r) for r in rows))
    ds = read_quietly(lambda: sequence_file(path, form=form), 'log.txt')
    if ds is None:
        return
    whole = path.read_bytes().decode('utf-8-sig').replace('\r\n', '\n').replace('\r', '\n')  # as all readers of lines
    text = [line.split() for line in whole.split('\n')]
    assert len(ds.interactions.items) == sum(max(len(w) - 1, 0) for w in text)


@LOOSE
@given(st.lists(three_words, min_size=1, max_size=6), st.lists(st.one_of(good, three_words), min_size=1, max_size=6))
def test_any_folder(tmp_path, items, rows):
    items = [('item_id', 'title', 'image'), *items, ('x', 'X', ''), ('y', 'Y', ''), ('z', '', '')]
    put(tmp_path, 'shop/items.csv', csv_text(items))
    put(tmp_path, 'shop/interactions.csv', csv_text([FOLDER, *rows]))
    ds = read_quietly(lambda: load_folder(tmp_path / 'shop'), '.csv')
    if ds is not None:
        assert len(ds.interactions.items) + repeats(ds.notes) == filled(rows)


# ---- metadata

a_field = st.one_of(
    cells,
    st.lists(cells, max_size=2),
    st.dictionaries(st.sampled_from(['large', 'variant']), cells),
)
FIELDS = ('title', 'brand', 'store', 'category', 'categories', 'description', 'images', 'imUrl', 'imageURL')
a_product = st.fixed_dictionaries(
    {'asin': st.sampled_from(['B1', 'B2', 7])}, optional={name: a_field for name in FIELDS}
)


@LOOSE
@given(st.lists(st.one_of(a_product, cells), min_size=1, max_size=6), st.booleans())
def test_any_metadata(tmp_path, rows, python):
    "Whatever stands in the metadata, no interaction is lost and no other error is raised."
    clicks = [review_14('a', 'B1', 1), review_14('b', 'B2', 2), review_14('b', '7', 3)]
    reviews = put(tmp_path, 'reviews_X_5.json', lines(clicks))
    text = ''.join((repr(r).replace('\n', ' ') if python else json.dumps(r)) + '\n' for r in rows)
    meta = put(tmp_path, 'meta_X.json', text)
    ds = read_quietly(lambda: amazon(reviews, meta, malformed=1.0), 'meta_X.json')
    if ds is None:
        return
    assert len(ds.interactions.items) == 3
    assert set(ds.catalogue.ids) == {'B1', 'B2', '7'}
    assert all(u is None or u != u or u.startswith('http') for u in ds.catalogue.table['image_url'])
