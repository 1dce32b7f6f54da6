"""The gallery: small notebooks, each with a picture on the page, in the README and among the site's pages."""

import json
import re
from pathlib import Path

import gallery
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / 'nbs' / '20_gallery').glob('*.ipynb'))


def cells(path):
    "The cells of a notebook."
    return json.loads(path.read_text())['cells']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_an_example_is_small_and_holds_its_picture(path):
    assert len(cells(path)) <= 12 and gallery.shown(path)
    assert not any('default_exp' in ''.join(c['source']) for c in cells(path)), 'an example exports nothing'
    with Image.open(gallery.pictures()[path.stem]) as picture:
        assert picture.size == gallery.SIZE


def test_every_example_stands_on_the_page_and_in_the_readme():
    page, readme = (ROOT / 'docs' / 'gallery.md').read_text(), (ROOT / 'README.md').read_text()
    assert len(NOTEBOOKS) == 5
    for path in NOTEBOOKS:
        title = re.search(r'^# (.+)$', ''.join(cells(path)[0]['source']), re.M)[1]
        picture = gallery.pictures()[path.stem].name
        assert f'## {title}\n' in page and f'(../nbs/images/{picture})](../nbs/20_gallery/{path.name})' in page
        assert f'\n../nbs/20_gallery/{path.stem}\n' in page, 'the site has no way to it'
        assert f'](nbs/20_gallery/{path.name})' in readme
    assert 'nbs/images/gallery.png' in readme and '](docs/gallery.md)' in readme


def test_pictures_are_light():
    for path in [*gallery.pictures().values(), gallery.IMAGES / 'gallery.png']:
        assert path.stat().st_size < gallery.LARGEST, path.name


def test_a_notebook_without_a_picture_is_named(tmp_path):
    path = tmp_path / 'bare.ipynb'
    said = dict(cell_type='markdown', source=['## The picture\n'])
    path.write_text(json.dumps(dict(cells=[said, dict(cell_type='code', source=['x'], outputs=[])])))
    with pytest.raises(ValueError, match='bare.ipynb shows nothing'):
        gallery.shown(path)
