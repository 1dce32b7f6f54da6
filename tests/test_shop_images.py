"""Pictures of a small shop: what each kind of source holds, how it is matched to items, and what the cache keeps."""

import io
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.base.store import INDEX, VALUES
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.images import (
    ImageFault,
    ImageSource,
    PixelCache,
    decode_images,
    find_images,
    read_manifest,
    with_images,
)

IDS = [f'p{i}' for i in range(8)]
COLOURS = [(200, 60, 50), (40, 110, 160), (60, 140, 80), (220, 170, 40)]


def draw(i, size=(160, 120)):
    img = Image.new('RGB', size, (250, 245, 230))
    ImageDraw.Draw(img).ellipse((20, 10, size[0] - 30, size[1] - 10), fill=COLOURS[i % 4])
    return img


def encode(img, kind='JPEG', **how):
    out = io.BytesIO()
    img.save(out, kind, **how)
    return out.getvalue()


def quiet(f, *a, **k):
    "The value of a call, and what it warned of."
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        out = f(*a, **k)
    return out, [str(w.message) for w in heard]


def folder_of(cache):
    return next(p for p in Path(cache).iterdir() if p.is_dir())


@pytest.fixture
def shop():
    items = Catalogue(IDS, {'text': [f'product {i}' for i in range(8)]}, {'text': 'text'})
    return Dataset(items, Interactions(('u1', 'u2'), [0, 3, 6], [0, 1, 2, 3, 4, 5]), 'shop')


@pytest.fixture
def box(tmp_path):
    "Photographs in a folder, a zip and a table; the seventh is broken, and the eighth has none."
    photos = tmp_path / 'photos'
    for i in range(6):
        suffix, kind = (('jpg', 'JPEG'), ('png', 'PNG'))[i % 2]
        (photos / str(i % 2)).mkdir(parents=True, exist_ok=True)
        (photos / str(i % 2) / f'p{i}.{suffix}').write_bytes(encode(draw(i), kind))
    (photos / '0' / 'p6.jpg').write_bytes(encode(draw(6))[:900])
    files = sorted(photos.rglob('*.*'))
    with zipfile.ZipFile(tmp_path / 'photos.zip', 'w') as z:
        for p in files:
            z.write(p, p.relative_to(photos).as_posix())
    cells = [{'bytes': p.read_bytes(), 'path': p.name} for p in files]
    table = pa.table({'item_id': [p.stem for p in files], 'image': cells})
    pq.write_table(table, tmp_path / 'photos.parquet', row_group_size=3)
    return tmp_path


# sources


@pytest.mark.parametrize('source, name', [('photos.zip', '0/p2.jpg'), ('photos.parquet', 'p2')])
def test_nothing_larger_is_read(box, source, name):
    with pytest.raises(ImageFault, match='more than 99'):
        find_images(box / source, max_bytes=99).files[name].read()


@pytest.mark.parametrize('name, data', [('bad.zip', b'PK'), ('bad.parquet', b'PAR1')])
def test_a_damaged_source_is_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f'{name} cannot be read'):
        find_images(tmp_path / name)


@pytest.mark.parametrize(
    'image, words', [('imgae', "did you mean 'image'"), ('item_id', "column 'item_id' holds bytes")]
)
def test_a_column_that_holds_no_pictures(box, image, words):
    with pytest.raises(DataError, match=words):
        find_images(box / 'photos.parquet', image=image)


def test_a_table_without_ids_goes_by_path(box):
    assert list(find_images(box / 'photos.parquet', item='nr').files)[0] == 'p0.jpg'


def test_a_dictionary_is_a_source():
    found = find_images({'a': b''})
    assert isinstance(found, ImageSource)
    assert find_images(found) is found


# pictures for items


@pytest.mark.parametrize('source', ['photos', 'photos.zip', 'photos.parquet', 'mapping'])
@pytest.mark.parametrize('kind', ['dataset', 'catalogue'])
def test_every_source_gives_the_same(shop, box, source, kind):
    data = shop if kind == 'dataset' else shop.catalogue
    pictures = {f'p{i}': draw(i) for i in range(6)} if source == 'mapping' else box / source
    got, _ = quiet(with_images, data, pictures)
    assert type(got) is type(data)
    c = getattr(got, 'catalogue', got)
    assert c.missing()['image'].sum() == 2
    assert c.image('image', 3).size == (160, 120)


def test_an_image_goes_before_another_file_and_a_shallow_one_before_a_deep_one(shop, box):
    (box / 'photos/p0.webp').write_bytes(encode(draw(1), 'WEBP'))
    (box / 'photos/p1.txt').write_text('x')
    got, heard = quiet(with_images, shop, box / 'photos', check=False)
    assert '2 items with more than one file' in heard[0]
    assert [p.name for p in got.catalogue.content['image'][:2]] == ['p0.webp', 'p1.png']


def test_nothing_fits(shop, box):
    listed = replace(shop.catalogue, table=pd.DataFrame({'picture': ['x.jpg'] * 8}))
    with pytest.raises(DataError, match=r"none of 7 files .* fits the column 'picture' of 8 items"):
        with_images(listed, box / 'photos', column='picture')


# the cache


@pytest.fixture
def twins():
    "Two modalities; the first two pictures of each are alike."
    pictures = [encode(draw(0)), encode(draw(0)), encode(draw(1))]
    back = [draw(2), np.asarray(draw(2)), None]
    return Catalogue('abc', {'image': pictures, 'back': back}, {'image': 'image', 'back': 'image'})


def test_twins_are_stored_once(twins, tmp_path):
    got, heard = quiet(decode_images, twins, tmp_path, workers=1)
    assert heard == []
    assert len(PixelCache(folder_of(tmp_path))) == 3
    assert np.array_equal(got.content['back'][0], got.content['back'][1])
    assert got.content['back'][2] is None


def test_one_modality_alone_is_decoded(twins, tmp_path):
    assert decode_images(twins, tmp_path, 'back').content['image'] == twins.content['image']
    assert len(PixelCache(folder_of(tmp_path))) == 1


def test_settings_and_names_that_do_not_fit(twins, tmp_path):
    with pytest.raises(DataError, match='square of 28'):
        decode_images(twins, tmp_path, max_pixels=500)
    with pytest.raises(DataError, match="did you mean 'image'"):
        decode_images(twins, tmp_path, 'imag')


def test_shapes_that_the_model_sizes_once_more_are_counted(twins, tmp_path):
    _, heard = quiet(decode_images, twins, tmp_path, max_pixels=3136)
    assert 'sizes once more' in heard[0]


def test_an_index_that_is_damaged(twins, tmp_path):
    "What no writer can have left is refused; half a record, or records without pixels, are made again."
    want = decode_images(twins, tmp_path)
    place = folder_of(tmp_path)
    index = (place / INDEX).read_bytes()
    (place / INDEX).write_bytes(b'\xff' * 80)
    with pytest.raises(DataError, match='delete the folder'):
        PixelCache(place)
    for left, keys in ((b'x', 0), (b'x' * 80, 0), (index[:-1], 2), (index + b'x' * 80, 3)):
        (place / INDEX).write_bytes(left)
        assert len(PixelCache(place)) == keys
        got = decode_images(twins, tmp_path)
        assert all(np.array_equal(a, b) for m in want.content for a, b in zip(want.content[m], got.content[m]))
        (place / VALUES).write_bytes((place / VALUES).read_bytes() + b'x' * 9)


def test_a_cache_of_an_earlier_version_is_made_again(twins, tmp_path):
    "Its files are not read, and go as soon as something is written."
    want = decode_images(twins, tmp_path / 'new')
    place = tmp_path / 'old' / folder_of(tmp_path / 'new').name
    place.mkdir(parents=True)
    (place / 'pixels.bin').write_bytes(bytes(100_000))
    np.save(place / 'index.npy', np.zeros(3, 'u8'))
    assert len(PixelCache(place)) == 0
    got = decode_images(twins, tmp_path / 'old')
    assert all(np.array_equal(a, b) for m in want.content for a, b in zip(want.content[m], got.content[m]))
    assert not (place / 'pixels.bin').exists() and not (place / 'index.npy').exists()


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    "What was saved stays, what could not be added is named, and with room it is added after all."
    cache, picture = PixelCache(tmp_path, checkpoint=1), np.full((2, 3, 3), 7, np.uint8)
    cache.add(b'a' * 32, picture)
    cache.checkpoint = 1000
    cache.add(b'b' * 32, picture)
    monkeypatch.setattr('os.fsync', _full)
    with pytest.raises(OSError, match='keeps the 1 keys that it has, and 1 could not be added'):
        cache.save()
    assert b'b' * 32 not in cache
    assert (tmp_path / VALUES).stat().st_size == picture.nbytes
    monkeypatch.undo()
    cache.add(b'b' * 32, picture + 1)
    cache.close()
    assert np.array_equal(PixelCache(tmp_path).get(b'b' * 32), picture + 1)


def _full(f):
    raise OSError(28, 'No space left on device')


def test_the_manifest_of_a_cache(shop, box):
    got, _ = quiet(with_images, shop, box / 'photos', check=False)
    quiet(decode_images, got, box / 'cache')
    assert read_manifest(box / 'cache').counts() == {'ok': 6, 'broken': 1}
