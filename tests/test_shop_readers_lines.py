"""Lines and files of logs: what cannot be parsed, blocks that need a closer look, and files that cannot be read."""

import numpy as np
import pytest
from reader_files import put

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.shop.lines import Malformed, blocks, parse_line
from vlm2rec_lab.shop.log_files import _fast_block, _plain_block, csv_log
from vlm2rec_lab.shop.sources import _picture_url

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
FIELDS = {'user': 'u', 'item': 'i', 'time': 't'}
BLOCK = b'{"u": "ann", "i": "tea", "t": 5, "x": [1]}\n{"i": "cup", "u": "bob", "t": 7}\n'
COLUMNS = {'user': 'user_id', 'item': 'item_id', 'time': 'timestamp'}


DEEP = {
    'objects': b'{"a":' * 100_000,
    'signs': b'-' * 100_000 + b'1',
    'sums': b'1+' * 50_000 + b'1',
    'brackets': b'(' * 500,
    'digits': b"{'a': " + b'9' * 6000 + b'}',
    'a null byte': b'\0',
    'a list as a key': b'{[1]: 2}',
    'a set as a key': b'{{1}: 2}',
}


@pytest.mark.parametrize('name', DEEP)
def test_no_line_ends_the_process(name):
    with pytest.raises(ValueError):
        parse_line(DEEP[name], python=True)


def test_a_line_may_span_many_blocks(tmp_path):
    path = put(tmp_path, 'x.txt', 'a' * 100 + '\nb\n')
    assert list(blocks(path, 7)) == [(1, b'a' * 100 + b'\nb\n')]


@pytest.mark.parametrize(
    'odd',
    [
        b'\n',
        b'7\n',
        b'null\n',
        b'{"u": "a", "i": "b", "t": NaN}\n',
        b'{"u": null, "i": "b", "t": 1}\n',
        b'{"u": 3, "i": "b", "t": 1}\n',
        b'{"u": "\xff", "i": "b", "t": 1}\n',
        b'{"u": "a"}{"u": "b"}\n',
    ],
)
def test_the_fast_way_declines_what_is_odd(odd):
    assert _fast_block(1, BLOCK + odd, FIELDS) is None


@pytest.mark.parametrize('block', [b'null\n' + BLOCK, b'{}'])
def test_the_fast_way_declines_a_block(block):
    assert _fast_block(1, block, FIELDS) is None


@pytest.mark.parametrize(
    'odd, why',
    [
        (b'{"u": null, "i": "b", "t": 1}', 'None is no id'),
        (b'{"u": true, "i": "b", "t": 1}', 'True is no id'),
        (b'{"u": "a", "i": "b"}', 'None is no number'),
        (b'{"u": "a", "i": "b", "t": 1e999}', 'inf is no number'),
        (b'{"u": "a", "i": "\\ud800", "t": 1}', 'no text'),
        (b'{"u": "a", "i": "b", "t": 1' + b'0' * 400 + b'}', 'is no number'),
        (b'{"u": "a", "i": ["b"], "t": 1}', 'is no id'),
    ],
)
def test_the_plain_way_names_what_is_malformed(odd, why):
    with pytest.raises(DataError, match='line 3 is malformed'):
        _plain_block(1, BLOCK + odd, FIELDS, Malformed('x', 0))
    bad = Malformed('x', 0.9)
    _plain_block(1, BLOCK + odd, FIELDS, bad)
    assert why in str(bad.lines[0][1]), bad.lines


def test_the_plain_way_mends_ids_and_numbers():
    table, _, _ = _plain_block(1, b'{"u": 7.0, "i": 8, "t": "5"}', FIELDS, Malformed('x', 0))
    assert table.to_pylist() == [{'user': '7', 'item': '8', 'time': 5.0}]


def test_both_ways_give_the_same_lines():
    fast, plain = _fast_block(4, BLOCK, FIELDS), _plain_block(4, BLOCK, FIELDS, Malformed('x', 0))
    assert fast[0].equals(plain[0])
    assert np.array_equal(fast[1], plain[1])
    assert fast[2] == plain[2]


@pytest.mark.parametrize(
    'content, why',
    [
        ('', 'is empty'),
        ('user_id,item_id,timestamp\na,b,1\nc,d,2,3\n', 'line 3'),
        (b'user_id,item_id,timestamp\na,\xff,1\n', 'not UTF-8'),
        ('user_id,user_id\na,b\n', 'same name'),
    ],
)
def test_csv_files_that_cannot_be_read(tmp_path, content, why):
    with pytest.raises(DataError, match=why):
        csv_log(put(tmp_path, 'q.csv', content), COLUMNS)


@pytest.mark.parametrize(
    'row',
    [
        {},
        {'images': 'x'},
        {'images': [3]},
        {'imUrl': 'file:///etc/passwd'},
        {'imUrl': 3},
        {'imageURL': []},
        {'images': {'large': 3}},
    ],
)
def test_a_product_without_a_picture_has_no_address(row):
    assert _picture_url(row) is None
