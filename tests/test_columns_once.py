"""A Parquet file tells its columns apart by name: one that comes twice is named, wherever the file is read."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.cli import main
from vlm2rec_lab.ranking.vectors import read_side
from vlm2rec_lab.share.handover import read_catalogue
from vlm2rec_lab.shop.images import find_images
from vlm2rec_lab.shop.log_files import log_columns, read_log
from vlm2rec_lab.shop.tables import load_folder, read_table

ITEMS = 'item_id,title\nx,one\ny,two\n'


def twice(path, name, **columns):
    "A Parquet file with a column twice, and others."
    names = [name, *columns]
    parquet.write_table(pa.Table.from_arrays([columns[name], *columns.values()], names), path)
    return path


def log(folder, stem='interactions'):
    "A log with two columns of users, beside a table of items."
    (folder / 'items.csv').write_text(ITEMS)
    ids = dict(user_id=pa.array(['a', 'b']), item_id=pa.array(['x', 'y']), timestamp=pa.array([1, 2]))
    return twice(folder / f'{stem}.parquet', 'user_id', **ids)


def vectors(path):
    "Vectors with one modality twice."
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(4.0)), 2)
    return twice(path, 'image', item_id=pa.array(['x', 'y']), image=numbers)


def refused(f, name):
    "`f()` is a DataError about two columns of this name."
    with pytest.raises(DataError, match=f'two columns of the same name: {name}; rename one'):
        f()


def test_a_log(tmp_path):
    path = log(tmp_path)
    refused(lambda: read_log(path), 'user_id')
    refused(lambda: log_columns(path, dict(user='user_id', item='item_id'), []), 'user_id')
    refused(lambda: load_folder(tmp_path), 'user_id')


@pytest.mark.parametrize('source', ['{0}', 'log:{0}/interactions.parquet,{0}/items.csv'])
def test_a_log_of_the_command_line(tmp_path, capsys, source):
    log(tmp_path)
    assert main(['profile', '--data', source.format(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert 'two columns of the same name: user_id; rename one' in said
    assert len(said.splitlines()) == 1


def test_items_and_pictures(tmp_path):
    ids = pa.array(['x', 'y'])
    refused(
        lambda: read_table(tmp_path, twice(tmp_path / 'items.parquet', 'title', item_id=ids, title=ids).name), 'title'
    )
    pictures = pa.array([b'1', b'2'])
    refused(lambda: find_images(twice(tmp_path / 'p.parquet', 'image', item_id=ids, image=pictures)), 'image')


def test_vectors(tmp_path):
    path = vectors(tmp_path / 'v.parquet')
    refused(lambda: read_side(path, 'items'), 'image')
    refused(lambda: read_catalogue(path), 'image')


def test_what_is_known_beside_the_vectors(tmp_path):
    np.savez(tmp_path / 'items.npz', item_id=np.array(['x', 'y']), **{'items/text': np.eye(2)})
    ids = pa.array(['x', 'y'])
    about = twice(tmp_path / 'about.parquet', 'price', item_id=ids, price=pa.array([1, 2]))
    refused(lambda: read_catalogue(tmp_path / 'items.npz', about), 'price')
    (tmp_path / 'about.csv').write_text('item_id,price,price\nx,1,2\ny,3,4\n')
    refused(lambda: read_catalogue(tmp_path / 'items.npz', tmp_path / 'about.csv'), 'price')
