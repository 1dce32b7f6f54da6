"""The catalogue and the interactions: what is refused, and the cases at the edge."""

import io
from datetime import date, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.pictures import LazyImage

REFUSED = {  # name: (arguments of the catalogue, words of the error)
    'a text that is NaN': ((['a'], {'text': [float('nan')]}, {'text': 'text'}), 'None where it is missing'),
    'bytes for a text, shortened': ((['a'], {'t': [b'x' * 999]}, {'t': 'text'}), "xx as 't': use None"),
    'the name of the fusion': ((['a'], {'fused': ['x']}, {'fused': 'text'}), 'name of the fusion'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_catalogue_is_refused(name):
    arguments, why = REFUSED[name]
    with pytest.raises(DataError) as e:
        Catalogue(*arguments)
    assert why in str(e.value)
    assert len(str(e.value)) < 300


def test_ids_alone_make_a_catalogue():
    bare = Catalogue(['a', 'b<'], {}, {})
    assert (bare.missing(), bare.title(0)) == ({}, 'a')
    with pytest.raises(DataError, match='There is: nothing'):
        bare.image('image', 0)


def test_a_blank_id_is_its_own_title():
    assert Catalogue((' ',), {'text': [None]}, {'text': 'text'}).title(0) == ' '


def test_pictures_as_bytes_and_from_elsewhere():
    out = io.BytesIO()
    Image.new('RGB', (20, 40)).save(out, 'PNG')
    pictures = [out.getvalue(), LazyImage('box.zip/a.png', out.getvalue)]
    cat = Catalogue(['a', 'b'], {'i': pictures}, {'i': 'image'})
    assert [cat.image('i', k).size for k in (0, 1)] == [(20, 40), (20, 40)]


def test_three_modalities_of_two_kinds():
    content = {'t': ['x'], 'u': [None], 'i': [Image.new('RGB', (4, 4))]}
    assert len(Catalogue(['a'], content, {'t': 'text', 'u': 'text', 'i': 'image'}).modalities) == 3


def test_users_without_interactions():
    assert len(Interactions(['a', 'b'], [0, 0, 2], [0, 1], [1, 2])) == 2
    assert len(Interactions.of_sequences([])) == 0


# seconds since 1970, beyond what nanoseconds reach: pandas before 3 reads no such texts, and we refuse them by row
FAR = {'1500-01-01': -14831769600.0, '2500-01-01': 16725225600.0}
FAR = FAR if int(pd.__version__.split('.')[0]) > 2 else {'1900-01-01': -2208988800.0, '2200-01-01': 7258118400.0}
KEPT = {  # kind of a column of Arrow: how it holds a date
    'texts': lambda d: pa.array(d),
    'dictionary': lambda d: pa.array(d).dictionary_encode(),
    'days': lambda d: pa.array([date.fromisoformat(x) for x in d]),
    'moments': lambda d: pa.array([datetime.fromisoformat(x) for x in d], pa.timestamp('us')),
    'moments of a zone': lambda d: pa.array([datetime.fromisoformat(x) for x in d], pa.timestamp('us', 'UTC')),
}


@pytest.mark.parametrize('kind', KEPT)
def test_a_table_that_pandas_keeps_in_arrow_has_its_dates(kind):
    "Of any year, as the same table of numpy has them."
    dates = list(FAR)
    table = pd.DataFrame(dict(user_id=['a', 'b'], item_id=['x', 'x'], timestamp=dates))
    items = Catalogue(['x'], {}, {})
    np.testing.assert_array_equal(Interactions.from_frame(table, items).times, list(FAR.values()))
    table = table.convert_dtypes(dtype_backend='pyarrow')
    table['timestamp'] = pd.arrays.ArrowExtensionArray(KEPT[kind](dates))
    np.testing.assert_array_equal(Interactions.from_frame(table, items).times, list(FAR.values()))
