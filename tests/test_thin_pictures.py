"""Pictures that the models refuse: counted and named where data are loaded, and named where they reach a model."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlm2rec_lab.base.errors import DataError, warned
from vlm2rec_lab.model.bank import make_bank
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.images import with_images
from vlm2rec_lab.shop.pictures import MAX_RATIO, image_trouble, open_image
from vlm2rec_lab.shop.readers import log_file
from vlm2rec_lab.shop.tables import load_folder

THIN = [(800, 3), (4000, 3), (3, 800), (1, 201)]
FINE = [(600, 3), (3, 600), (1, 200), (1, 1), (28, 28)]


@pytest.fixture
def shop(tmp_path):
    "A folder with a picture of each size, and purchases of them."
    (tmp_path / 'img').mkdir()
    sizes = THIN + FINE
    for k, size in enumerate(sizes):
        Image.new('RGB', size, 'red').save(tmp_path / f'img/{k}.{"jpg" if k % 2 else "png"}')
    ids = [f'i{k}' for k in range(len(sizes))]
    files = [f'img/{k}.{"jpg" if k % 2 else "png"}' for k in range(len(sizes))]
    pd.DataFrame(dict(item_id=ids, title=ids, image=files)).to_csv(tmp_path / 'items.csv', index=False)
    rows = [(f'u{u}', ids[(u + t) % len(ids)], t) for u in range(9) for t in range(4)]
    pd.DataFrame(rows, columns=['user_id', 'item_id', 'timestamp']).to_csv(tmp_path / 'interactions.csv', index=False)
    return tmp_path


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
@pytest.mark.parametrize('size', THIN)
def test_a_thin_picture_is_refused_with_the_remedy(size, kind, tmp_path):
    Image.new('RGB', size).save(tmp_path / 'x', kind)
    why = image_trouble(tmp_path / 'x')
    assert why.startswith(
        f'{size[0]:,} x {size[1]:,} pixels: the model refuses sides that differ by more than 200 times'
    )
    assert why.endswith('crop or pad it')
    for source in (Image.new('RGB', size), np.zeros((*size[::-1], 3), np.uint8)):
        with pytest.raises(ValueError, match='crop or pad'):
            open_image(source, ratio=MAX_RATIO)
        assert open_image(source).size == size  # to look at it is no fault


@pytest.mark.parametrize('size', FINE)
def test_a_narrow_picture_is_none_of_them_and_the_model_takes_it(size, tmp_path, checkpoint):
    Image.new('RGB', size).save(tmp_path / 'x.png')
    assert image_trouble(tmp_path / 'x.png') == ''
    embedder = VLMEmbedder.from_pretrained(checkpoint, device='cpu')
    c = Catalogue(['a'], {'image': [tmp_path / 'x.png']}, {'image': 'image'})
    assert np.isfinite(np.asarray(embedder.encode_items(c, progress=False)['image'])).all()


def thin_and_named(messages, found):
    "One message counts the thin pictures and names the first; the items have none, and the others have theirs."
    (message,) = [m for m in messages if 'crop or pad' in m]
    assert message.count('800 x 3 pixels') == 1 and '4 images' in message, message
    gone = found.catalogue.missing()['image'] if hasattr(found, 'catalogue') else found.missing()['image']
    assert gone.tolist() == [True] * len(THIN) + [False] * len(FINE)


def test_thin_pictures_are_counted_where_data_are_loaded(shop):
    out = []
    messages = warned(lambda: out.append(load_folder(shop, progress=False)))
    thin_and_named(messages, out[0])
    out = []
    how = dict(image='image', progress=False)
    messages = warned(lambda: out.append(log_file(shop / 'interactions.csv', shop / 'items.csv', **how)))
    assert out[0].catalogue.missing()['image'].sum() == len(THIN), messages
    bare = Catalogue([str(k) for k in range(9)], {'text': list('abcdefghi')}, {'text': 'text'})
    out = []
    messages = warned(lambda: out.append(with_images(bare, shop / 'img', progress=False)))
    thin_and_named(messages, out[0])


def test_one_that_reaches_the_model_is_named_there(checkpoint, tmp_path):
    embedder = VLMEmbedder.from_pretrained(checkpoint, device='cpu')
    pictures = [Image.new('RGB', (60, 60))] * 70 + [np.zeros((3, 800, 3), np.uint8), Image.new('RGB', (50, 60))]
    c = Catalogue([f'item {k}' for k in range(72)], {'photo': pictures}, {'photo': 'image'})
    for vision in (None, 'live', str(tmp_path / 'features')):
        with pytest.raises(
            DataError, match=r"the 'photo' of item 'item 70' \(800 x 3 pixels\) is refused by .*crop or pad"
        ):
            make_bank(embedder, c, progress=False, vision=vision)


def test_one_that_is_gone_since_it_was_loaded_is_named_too(checkpoint, tmp_path):
    Image.new('RGB', (60, 60)).save(tmp_path / 'x.png')
    c = Catalogue(['a', 'b'], {'image': [Image.new('RGB', (9, 9)), tmp_path / 'x.png']}, {'image': 'image'})
    (tmp_path / 'x.png').write_bytes(b'no picture')
    with pytest.raises(DataError, match="the 'image' of item 'b' cannot be read: .*leave it out"):
        make_bank(VLMEmbedder.from_pretrained(checkpoint, device='cpu'), c, progress=False)
