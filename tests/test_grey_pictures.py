"""Grey of other numbers than 8 bits: read as the shades that it shows, or refused; never black without a word."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from vlm2rec_lab.shop.pictures import image_trouble, open_image

KINDS = {  # type -> what may be white
    np.float32: (1.0, 255.0, 65535.0),
    np.uint16: (65535,),
    np.int32: (255, 65535),
}


def stored(pixels, kind='TIFF', **how):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **how)
    return out.getvalue()


@given(
    st.sampled_from([(kind, white) for kind, whites in KINDS.items() for white in whites]),
    arrays.arrays(np.float64, (5, 7), elements=st.floats(0, 1)),
)
def test_shades_are_those_of_the_numbers(of, shades):
    kind, white = of
    shades[0, :2] = 0, 1
    found = np.asarray(open_image(stored((shades * white).astype(kind))), float)
    assert np.abs(found / 255 - shades[..., None]).max() < 1.01 / 255 + (kind is not np.float32) / white


def test_what_resizing_adds_beyond_white_is_white():
    sharp = Image.fromarray(np.kron(np.eye(4), np.ones((8, 8))).astype(np.float32)).resize((50, 50), Image.LANCZOS)
    low, high = np.asarray(sharp).min(), np.asarray(sharp).max()
    found = np.asarray(open_image(stored(np.asarray(sharp))))
    assert low < 0 and high > 1 and found.max() == 255 and found.min() == 0 and 40 < found.mean() < 90


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM'])
def test_a_dark_picture_of_sixteen_bits_is_dark(kind):
    "What is white is said by the format, not by the brightest number."
    found = np.asarray(open_image(stored(np.array([[0, 257 * 2, 200]], np.uint16), kind)))
    assert found[0, :, 0].tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    'numbers',
    [[-1, 1], [0, 1.5], [0, 5], [0, 40], [0, 1000], [0, np.nan], [0, np.inf], [0, 1e6], [-1000.0, 3000.0]],
    ids=str,
)
def test_numbers_that_are_no_shades_are_refused(numbers, tmp_path):
    (tmp_path / 'x.tif').write_bytes(stored(np.array([numbers], np.float32)))
    assert 'shades of grey from' in image_trouble(tmp_path / 'x.tif')
    with pytest.raises(ValueError, match='0 to 1, 255 or 65,535 is read: scale them'):
        open_image(tmp_path / 'x.tif')


@pytest.mark.parametrize('numbers', [[-5, 100], [0, 70_000]], ids=str)
def test_whole_numbers_that_are_no_shades_are_refused(numbers):
    with pytest.raises(ValueError, match='shades of grey from'):
        open_image(stored(np.array([numbers], np.int32)))


def test_the_clear_shade_of_sixteen_bits_is_white():
    found = open_image(stored(np.array([[0, 30_000]], np.uint16), 'PNG', transparency=0))
    assert np.asarray(found)[0, :, 0].tolist() == [255, 116]
