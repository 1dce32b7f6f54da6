"""What a page of the linked views holds."""

import base64
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlm2rec_lab.base.theme import DARK_RAMP, PALETTE, RAMP, asset
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.show import drawing as drawing_room
from vlm2rec_lab.show.drawing import (
    _tints,
    colour_column,
    neighbours_of,
    script,
    spaces_drawing,
    style,
    titles_of,
    topology_drawing,
)
from vlm2rec_lab.show.figures import _unit
from vlm2rec_lab.show.views import spaces_view, topology_view


@pytest.fixture(scope='module')
def shop():
    return make_studio('text-easy', seed=0, items=60, users=20)


@pytest.fixture(scope='module')
def two():
    rng = np.random.default_rng(0)
    return {m: rng.normal(size=(60, 8)) for m in ('text', 'image')}


@pytest.fixture(scope='module')
def page(shop, two):
    return spaces_drawing(two, shop.catalogue, colour='category').fragment()


def catalogue(titles, **columns):
    n = len(titles)
    table = pd.DataFrame({'title': titles, **columns})
    return Catalogue(ids=tuple('abcd'[:n]), content={'text': ['a text'] * n}, kinds={'text': 'text'}, table=table)


def blob(page, name):
    return base64.b64decode(re.search(rf'data-blob="{name}">([^<]*)<', page)[1])


def test_titles_are_those_of_the_catalogue():
    cat = catalogue(['<script>' + 'x' * 99, None])
    assert titles_of(None, [3]) == ['item 3']
    assert titles_of(cat, [0, 1]) == [cat.title(0), 'a text']


def test_neighbours_in_a_page_are_those_of_the_vectors(page, two):
    near = np.frombuffer(blob(page, 'near'), np.uint32).reshape(3, 60, 6)
    assert near[1, 5].tolist() == neighbours_of(_unit(two['image']), 5, 6).tolist()


def test_titles_and_maps_in_a_page(page, shop):
    assert blob(page, 'titles').decode().split('\n')[3] == shop.catalogue.title(3)
    assert len(np.frombuffer(blob(page, 'map-pca'), np.float32)) == 3 * 60 * 2


def test_words_of_data_are_no_markup():
    bad = catalogue(['</script><script>alert(1)</script>'] * 4, kind=['<img src=x onerror=alert(1)>'] * 4)
    page = spaces_drawing({'a': np.random.default_rng(0).random((4, 3))}, bad).fragment()
    assert '<img src=x' not in page and '<script>alert' not in page


def test_a_page_carries_its_script_and_style(page):
    assert script() in page and style() in page and page.count('mountPage()') == 2


def test_the_catalogue_must_have_the_same_items(two):
    with pytest.raises(ValueError, match='exactly its items'):
        spaces_drawing(two, catalogue(['a'] * 4))


def test_an_unknown_method_is_refused(shop, two):
    with pytest.raises(ValueError, match='umap'):
        spaces_drawing(two, shop.catalogue, method='tsne')


def test_a_page_of_a_topology_is_small(two):
    assert len(topology_drawing(two, sample=50).fragment()) < 200_000


@pytest.mark.parametrize(('values', 'colours'), [(3, 3), (8, 8), (9, 7), (40, 7)])
def test_named_values_have_colours_and_the_rest_is_grey(values, colours):
    column, code = colour_column(pd.Series([f'kind {k % values}' for k in range(120)], name='kind'))
    tints = _tints(column)
    assert tints[:colours] == list(PALETTE[:colours]) and len(tints) == colours + 1 > code.max()


def test_a_still_picture_of_eight_values(two):
    table = catalogue(['a title']).table
    cat = Catalogue(
        ids=tuple(f'p{i}' for i in range(60)),
        content={'text': ['a text'] * 60},
        kinds={'text': 'text'},
        table=pd.DataFrame({'title': list(table.title) * 60, 'kind': [f'kind {k % 8}' for k in range(60)]}),
    )
    drawing = spaces_drawing(two, cat, colour='kind')
    img = drawing.drawn(drawing)
    last = tuple(int(PALETTE[7][k : k + 2], 16) for k in (1, 3, 5))
    assert isinstance(img, Image.Image) and last in {c for _, c in img.getcolors(1 << 24)}


@pytest.mark.browser
def test_on_paper_there_is_nothing_to_press(tmp_path, open_page):
    rng = np.random.default_rng(0)
    vectors = {m: rng.normal(size=(60, 6)) for m in ('text', 'image')}
    titles = [f'item {i}' for i in range(60)]
    cat = Catalogue(titles, {'text': titles, 'image': titles}, dict(text='text', image='text'))
    parts = [spaces_view(vectors, cat, method='pca').fragment(), topology_view(vectors, cat, sample=40).fragment()]
    (tmp_path / 'x.html').write_text('<!doctype html><meta charset="utf-8">' + ''.join(parts), encoding='utf-8')
    page = open_page(width=718)
    page.goto((tmp_path / 'x.html').as_uri())
    page.locator('.v2w .plot').first.wait_for()
    assert page.locator('.tools button:visible').count() >= 5 and page.locator('text=Point at a product').is_visible()
    page.emulate_media(media='print')
    assert not page.locator('.tools button:visible, .strip > button:not(.duo):visible').count()
    assert not page.locator('text=Point at a product').is_visible() and page.locator('.v2w .plot').first.is_visible()
    assert page.locator('.v2w select').first.evaluate('e => getComputedStyle(e).borderTopWidth') == '0px'
    assert not page.errors


def test_lists_are_coloured_by_what_comes_first(two):
    "Sixty films of sixty lists of genres have three first genres; titles and makers have none that are shared."
    first = ['Drama', 'Comedy', 'War']
    table = pd.DataFrame(
        dict(
            title=[f'film {k}, the {k}th' for k in range(60)],
            genres=[f'{first[k % 3]}, genre {k}' for k in range(60)],
            maker=[f'maker {k}' for k in range(60)],
        )
    )
    cat = Catalogue(tuple(f'p{i}' for i in range(60)), {'text': ['a text'] * 60}, {'text': 'text'}, table)
    found = {c['name']: c.get('labels') for _, c, _ in drawing_room._columns(cat, None)[0]}
    assert list(found) == ['genres, first'] and sorted(found['genres, first']) == sorted(first)
    assert 'genres, first' in spaces_drawing(two, cat).fragment()


COLOURED = {'kind': 'words', 'price': 'number'}


@pytest.fixture(scope='module')
def coloured(tmp_path_factory):
    "A view of forty products far apart, by five kinds and a price; its page and its still pictures."
    rng = np.random.default_rng(0)
    n = 40
    cat = Catalogue(
        ids=tuple(f'p{i}' for i in range(n)),
        content={'text': ['a text'] * n},
        kinds={'text': 'text'},
        table=pd.DataFrame({'title': [f'p {i}' for i in range(n)], 'kind': [f'kind {i % 5}' for i in range(n)]}).assign(
            price=np.arange(n) * 1.5
        ),
    )
    z = {m: rng.normal(size=(n, 5)) for m in ('text', 'image')}
    folder = tmp_path_factory.mktemp('coloured')
    out = {}
    for column in COLOURED:
        drawing = spaces_drawing(z, cat, colour=column)
        out[column] = drawing, drawing.to_html(folder / f'{column}.html')
    return out


def point_colours(image):
    "How many pixels there are of each colour that is no grey, the most frequent first."
    found = sorted(Image.open(image).convert('RGB').getcolors(1 << 24), reverse=True)
    return {c: k for k, c in found if max(c) - min(c) > 24}


@pytest.mark.browser
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('column', COLOURED)
def test_the_still_picture_has_the_colours_of_the_living_one(coloured, column, dark, open_page, tmp_path):
    drawing, file = coloured[column]
    page = open_page(1280, 1000, dark)
    page.goto(file.as_uri())
    page.locator('.v2w .plot').first.wait_for()
    page.wait_for_timeout(300)
    page.locator('.v2w .panels').screenshot(path=tmp_path / 'live.png')
    (tmp_path / 'still.png').write_bytes(drawing.png(dark))
    live, still = point_colours(tmp_path / 'live.png'), point_colours(tmp_path / 'still.png')
    most = [c for c in list(live)[: 5 if column == 'kind' else 12]]
    far = {c: min(max(abs(a - b) for a, b in zip(c, other)) for other in still) for c in most}
    assert max(far.values()) <= 3, far
    said = page.evaluate(
        "[...document.querySelectorAll('.v2w .legend .dot')].map(d => getComputedStyle(d).backgroundColor)"
    )
    for rgb in said:
        c = tuple(map(int, re.findall('[0-9]+', rgb)))
        assert min(max(abs(a - b) for a, b in zip(c, other)) for other in still) <= 3, (c, list(still)[:12])
    paper = Image.open(tmp_path / 'still.png').convert('RGB').getpixel((2, 2))
    assert '#%02x%02x%02x' % paper == ('#12151c' if dark else '#ffffff')
    assert not page.errors


def test_the_steps_of_numbers_are_those_of_the_view():
    said = asset('show', 'views.js')
    for name, dark in (('light', False), ('dark', True)):
        assert f'{name}: [{", ".join(map(repr, (DARK_RAMP if dark else RAMP)))}]' in said


def test_a_text_without_a_letter_has_a_word_in_the_legend():
    column, code = colour_column(pd.Series(['a', '', ' ', None, 'a']))
    assert set(column['labels']) == {'a', 'empty', 'missing'} and len(set(code)) == 3


INKS = """() => [...document.querySelectorAll('.v2w .plot canvas')].map(c => c.toDataURL())"""


@pytest.mark.browser
@pytest.mark.parametrize('kind', ['spaces', 'topology'])
def test_what_is_printed_from_a_dark_screen_is_light_maps_and_words(shop, two, tmp_path, open_page, kind):
    "A canvas keeps the colours it was drawn in, when all around it has become light."
    made = spaces_drawing(two, shop.catalogue) if kind == 'spaces' else topology_drawing(two, shop.catalogue)
    url = made.to_html(tmp_path / 'x.html').as_uri()

    def opened(dark):
        page = open_page(dark=dark)
        page.goto(url)
        page.wait_for_selector('.v2w .panel')
        page.wait_for_timeout(500)
        return page

    light, dark = opened(False), opened(True)
    on_screen = dark.evaluate(INKS)
    dark.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert dark.evaluate(INKS) == light.evaluate(INKS) != on_screen
    dark.evaluate("dispatchEvent(new Event('afterprint'))")
    assert dark.evaluate(INKS) == on_screen and dark.evaluate('document.documentElement.dataset.theme') is None


@pytest.mark.browser
def test_a_long_name_of_a_colour_stays_in_the_window(shop, two, tmp_path, open_page):
    kinds = ['x' * 90 if i % 2 else 'short' for i in range(60)]
    named = replace(shop.catalogue, table=shop.catalogue.table.assign(kind=kinds))
    page = open_page(width=390)
    page.goto(spaces_drawing(two, named, colour='kind').to_html(tmp_path / 'x.html').as_uri())
    page.locator('.v2w .legend button', has_text='xxx').wait_for()
    assert page.evaluate('document.documentElement.scrollWidth') == 390


@pytest.mark.browser
def test_of_more_than_two_spaces_it_is_said_which_two_are_compared(shop, two, tmp_path, open_page):
    three = two | {'audio': two['text'][:, ::-1] + 1}
    page = open_page()
    page.goto(topology_drawing(three, shop.catalogue).to_html(tmp_path / 'x.html').as_uri())
    page.get_by_text('Consistency and agreement are those of text and image.').wait_for()


@pytest.mark.browser
@pytest.mark.parametrize('width', [1200, 800, 640])
def test_bars_of_agreement_stand_beside_the_rows_of_the_maps(shop, two, tmp_path, open_page, width):
    "Names that take two lines move the maps down, and the bars with them."
    named = dict(zip(('title and description in three languages', 'photograph of the front side'), two.values()))
    page = open_page(width=width)
    page.goto(topology_drawing(named, shop.catalogue).to_html(tmp_path / 'x.html').as_uri())
    page.wait_for_function("() => document.querySelector('.v2w .thin .plot').style.height")
    page.wait_for_timeout(200)
    last, bars = page.locator('.v2w .plot').nth(-2).bounding_box(), page.locator('.v2w .thin .plot').bounding_box()
    assert bars['height'] == pytest.approx(max(last['height'], 150), abs=1)
    if bars['y'] < last['y'] + last['height']:  # in one row
        assert bars['y'] == pytest.approx(last['y'], abs=1)
