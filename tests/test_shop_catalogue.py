"""The catalogue and the interactions: what is refused, and the cases at the edge."""

import io

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
