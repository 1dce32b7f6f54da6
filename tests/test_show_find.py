"""Finding products in the spaces and taking them along: search, filters, grid, CSV, PNG, SVG and a link."""

import base64
import csv
import io
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlm2rec_lab.base.cells import is_formula, read_csv
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.show.drawing import spaces_drawing

N = 120
PLANTED = '<img src=x onerror=window.planted=1>, "quoted"'
VIEW = "document.querySelector('.v2w').view"
KINDS = [f'kind {i % 20}' for i in range(N)]  # more values than colours
PRICES = [None if i == 7 else 19.99 + i for i in range(N)]


@pytest.fixture(scope='module')
def drawing():
    rng = np.random.default_rng(0)
    images = [None if i % 10 == 3 else np.full((24, 24, 3), 2 * i, np.uint8) for i in range(N)]
    texts = [None if i == 5 else f'text {i}' for i in range(N)]
    titles = [PLANTED if i == 0 else f'Product {i} of kind {i % 20}' for i in range(N)]
    cat = Catalogue(
        ids=tuple(f'sku-{i}' for i in range(N)),
        content={'text': texts, 'image': images},
        kinds={'text': 'text', 'image': 'image'},
        table=pd.DataFrame({'title': titles, 'kind': KINDS, 'price': PRICES}),
    )
    return spaces_drawing({m: rng.normal(size=(N, 6)) for m in ('text', 'image')}, cat, colour='kind')


@pytest.fixture(scope='module')
def saved(drawing, tmp_path_factory):
    return drawing.to_html(tmp_path_factory.mktemp('find') / 'spaces.html')


@pytest.fixture
def tab(saved, open_page):
    page = open_page()
    page.goto(saved.as_uri())
    page.locator('.v2w .plot').first.wait_for()
    yield page
    assert not page.errors and not page.outside and page.evaluate('window.planted') is None, page.errors


def shot(page, name):
    if os.environ.get('VLM2REC_SHOTS'):
        page.locator('.v2w').first.screenshot(path=Path(os.environ['VLM2REC_SHOTS']) / f'{name}.png')


def selected(page):
    return page.evaluate(f'[...{VIEW}.state.mask.keys()].filter(i => {VIEW}.state.mask[i])')


def test_all_values_come_along_and_not_only_their_colours(drawing):
    words = drawing.blobs['words0'].decode().split('\n')
    place = np.frombuffer(drawing.blobs['value0'], np.uint32)
    assert [words[k] for k in place] == KINDS
    prices = np.frombuffer(drawing.blobs['value1'])
    assert np.isnan(prices[7]) and prices[8] == 27.99
    lacking = np.frombuffer(drawing.blobs['lacking'], np.uint8).reshape(2, N)
    assert drawing.meta['lacking'] == ['text', 'image'] and lacking.sum(1).tolist() == [1, 12]


def test_a_whole_catalogue_lacks_nothing():
    cat = Catalogue(tuple('abcd'), {'text': ['x'] * 4}, {'text': 'text'})
    whole = spaces_drawing({'text': np.random.default_rng(0).normal(size=(4, 3))}, cat)
    assert whole.meta['lacking'] == [] and 'lacking' not in whole.blobs


@pytest.mark.browser
def test_search_by_title_and_id(tab):
    box = tab.locator('.find input[type=search]')
    box.fill('of kind 4')  # every word, anywhere
    assert tab.locator('.find [role=status]').text_content() == '21 of 120 found'
    box.fill('product "KIND 4"')  # these together
    assert tab.locator('.find [role=status]').text_content() == '6 of 120 found'
    box.press('Enter')
    assert selected(tab) == [4, 24, 44, 64, 84, 104]
    box.fill('sku-119')
    assert tab.locator('.find [role=status]').text_content() == '1 of 120 found'
    box.fill('no such thing')
    assert tab.locator('.find [role=status]').text_content() == '0 of 120 found'
    assert not tab.locator('.find button', has_text='Select these').is_visible()
    box.press('Escape')
    assert tab.locator('.find [role=status]').text_content() == '' and len(selected(tab)) == 6


@pytest.mark.browser
def test_filters_by_words_numbers_and_missing_contents(tab):
    tab.locator('.filters summary').click()
    kind = tab.locator('[data-filter="0"]')
    kind.focus()
    kind.select_option('kind 13')  # a value without a colour of its own
    tab.locator('.find button', has_text='Select these').click()
    assert selected(tab) == [13, 33, 53, 73, 93, 113]
    tab.locator('[data-filter="1-low"]').fill('70')
    tab.locator('[data-filter="1-high"]').fill('113')
    tab.locator('.find button', has_text='Select these').click()
    assert selected(tab) == [53, 73, 93]  # 19.99 + place
    tab.locator('.find button', has_text='Show all again').click()
    tab.locator('[data-filter=lacking]').select_option('without image')
    tab.locator('.find button', has_text='Select these').click()
    assert selected(tab) == list(range(3, N, 10))
    tab.locator('[data-filter=lacking]').select_option('complete')
    assert tab.locator('.find [role=status]').text_content() == '107 of 120 found'


@pytest.mark.browser
def test_what_is_missing_is_shown_as_missing(tab):
    tab.locator('.find input[type=search]').fill('sku-3')
    tab.evaluate(f'{VIEW}.finder.view.pin(7)')
    assert 'price' in tab.locator('.item dl').text_content() and 'missing' in tab.locator('.item dl').text_content()
    tab.evaluate(f'{VIEW}.finder.view.pin(13)')
    assert re.sub(r'\s', '', tab.locator('.item dl').text_content()).endswith('imagemissing')
    tab.wait_for_selector('.item canvas[data-ready=none]')


@pytest.mark.browser
def test_the_selection_as_a_grid_and_as_csv(tab):
    tab.locator('.find input[type=search]').fill('product')
    tab.locator('.find button', has_text='Select these').click()
    tab.locator('.strip button', has_text='Grid').click()
    assert tab.locator('.gallery li').count() == 60
    tab.locator('.gallery button', has_text='Show more (59 left)').click()
    assert tab.locator('.gallery li').count() == 119
    assert tab.locator('.gallery li', has_text='Product 3 of').locator('.lack').text_content() == 'no image'
    shot(tab, 'find_grid')
    tab.locator('.gallery li button').nth(1).click()
    assert tab.locator('.item .name').text_content() == 'Product 2 of kind 2'
    tab.locator('.gallery button', has_text='Close').click()
    assert not tab.locator('.gallery').is_visible()
    rows = list(csv.reader(io.StringIO(tab.evaluate(f'{VIEW}.finder.csv([0, 7, 13])'))))
    assert rows == [
        ['id', 'title', 'kind', 'price'],
        ['sku-0', PLANTED, 'kind 0', '19.99'],
        ['sku-7', 'Product 7 of kind 7', 'kind 7', ''],
        ['sku-13', 'Product 13 of kind 13', 'kind 13', '32.989999999999995'],
    ]


@pytest.mark.browser
def test_png_and_svg(tab, tmp_path):
    for name in ('PNG', 'SVG'):
        with tab.expect_download() as got:
            tab.locator('.files button', has_text=name).click()
        got.value.save_as(tmp_path / f'x.{name.lower()}')
    img = Image.open(tmp_path / 'x.png')
    assert img.width > 1500 and len(img.convert('RGB').getcolors(1 << 24)) > 8
    svg = ET.parse(tmp_path / 'x.svg').getroot()
    name = '{http://www.w3.org/2000/svg}'
    assert len(svg.findall(f'.//{name}circle')) == 3 * N
    assert [t.text for t in svg.findall(f'{name}text')] == ['text', 'image', 'fused']


@pytest.mark.browser
def test_a_link_restores_the_view(tab, saved, open_page):
    tab.locator('.find input[type=search]').fill('kind 1')
    tab.locator('.filters summary').click()
    tab.locator('[data-filter="1-low"]').fill('100')
    tab.evaluate(f'{VIEW}.finder.view.select(Uint8Array.from({{length: {N}}}, (_, i) => i % 50 === 2))')
    tab.evaluate(f'{VIEW}.finder.view.pin(2)')
    tab.locator('[data-tool=in]').click()
    tab.locator('.bar select').first.select_option('1')
    tab.locator('.legend').wait_for()
    found = tab.locator('.find [role=status]').text_content()
    asked = tab.evaluate(f'{VIEW}.finder.hash()')
    other = open_page()
    other.goto(f'{saved.as_uri()}#{asked}')
    other.locator('.v2w .plot').first.wait_for()
    assert selected(other) == [2, 52, 102] and other.evaluate(f'{VIEW}.state.pin') == 2
    assert other.locator('.find [role=status]').text_content() == found and found.startswith('22 of') is False
    assert other.locator('[data-filter="1-low"]').input_value() == '100'
    assert other.evaluate(f'{VIEW}.panels[0].view.k') == 1.5 and other.evaluate(f'{VIEW}.state.column') == 1
    assert not other.errors


FORMULAS = ['=1+1', '+cmd', '- none', '@name', '\t=x', "'=1", '\uff1d1', "'tis", '-12', 'mug, "blue"', ' =1']


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    "A page of 3,000 products, some of whose titles a spreadsheet would compute."
    n = 3000
    rng = np.random.default_rng(0)
    titles = [FORMULAS[i] if i < len(FORMULAS) else f'Product {i}' for i in range(n)]
    cat = Catalogue(
        ids=tuple(f'{i - 5}' for i in range(n)),
        content={'text': titles},
        kinds={'text': 'text'},
        table=pd.DataFrame({'title': titles, '=price': np.arange(n) - 5.5, 'of': titles}),
    )
    drawing = spaces_drawing({'text': rng.normal(size=(n, 4))}, cat)
    return drawing.to_html(tmp_path_factory.mktemp('large') / 'spaces.html')


@pytest.fixture
def wide(large, open_page):
    page = open_page()
    page.goto(large.as_uri())
    page.locator('.v2w .plot').first.wait_for()
    return page


@pytest.mark.browser
def test_copied_cells_are_text_to_a_spreadsheet_and_come_back(wide):
    told = wide.evaluate(f'{VIEW}.finder.csv([...Array({len(FORMULAS)}).keys()])')
    head, *rows = csv.reader(io.StringIO(told, newline=''))
    at = head.index("'=price")
    assert [r[0] for r in rows] == [str(i - 5) for i in range(len(FORMULAS))]  # ids that are numbers stay so
    assert [r[at] for r in rows] == [str(i - 5.5) for i in range(len(FORMULAS))]
    assert not [c for r in rows for c in (r[1], *r[2:]) if is_formula(c) and not c.startswith("'")]
    back = read_csv(io.StringIO(told, newline=''))
    shown = wide.evaluate(f'{VIEW}.finder.view.titles().slice(0, {len(FORMULAS)})')
    assert back['title'].tolist() == shown and sum(map(is_formula, shown)) > 6 and '=price' in back
    assert not wide.errors


@pytest.mark.browser
@pytest.mark.parametrize(
    'chosen', ['i % 7 === 3', 'i % 2 === 1', 'i >= 100', 'i % 200 === 150', 'i === 2999 || i === 0', 'false', 'true']
)
def test_a_link_holds_a_large_selection(wide, large, open_page, chosen):
    wide.evaluate(f'{VIEW}.finder.view.select(Uint8Array.from({{length: 3000}}, (_, i) => {chosen}))')
    was, asked = selected(wide), wide.evaluate(f'{VIEW}.finder.hash()')
    other = open_page()
    other.goto(f'{large.as_uri()}#{asked}')
    other.locator('.v2w .plot').first.wait_for()
    assert selected(other) == was and len(asked) < 1200
    assert not other.errors


@pytest.mark.browser
def test_a_link_says_what_it_leaves_out(wide, large, open_page):
    wide.evaluate(f'{VIEW}.finder.constructor.most = 100')
    wide.evaluate(f'{VIEW}.finder.view.select(Uint8Array.from({{length: 3000}}, (_, i) => i % 2))')
    wide.locator('.files button', has_text='Copy link').click()
    assert 'all but the selection: 1,500 products do not fit' in wide.locator('.v2w .note').text_content()
    other = open_page()
    other.goto(wide.url)
    other.locator('.v2w .plot').first.wait_for()
    assert selected(other) == [] and 'without its selection of 1,500' in other.locator('.v2w .note').text_content()
    assert not wide.errors and not other.errors


@pytest.mark.browser
@pytest.mark.parametrize('chosen', ['"g****"', '"b"', '"x"', '"g_____w"', '""', '{"a":1}', '7'])
def test_a_damaged_selection_does_no_harm(wide, large, open_page, chosen):
    name = wide.evaluate(f'{VIEW}.finder.view.link')
    made = base64.urlsafe_b64encode(f'{{"chosen":{chosen}}}'.encode()).decode().rstrip('=')
    page = open_page()
    page.goto(f'{large.as_uri()}#{name}={made}')
    page.locator('.v2w .plot').first.wait_for()
    assert selected(page) == [] and not page.errors


@pytest.mark.browser
@pytest.mark.parametrize(
    'made',
    [
        'e30',
        '!!',
        base64.b64encode(
            b'{"chosen":[1e9,-3,"x"],"views":[["a"]],"pin":"<b>","lit":9999,"filters":{"0":"<img src=x>"}}'
        )
        .decode()
        .rstrip('='),
    ],
)
def test_a_damaged_link_does_no_harm(saved, open_page, made):
    page = open_page()
    page.goto(saved.as_uri())
    name = page.evaluate(f'{VIEW}.finder.view.link')
    page.goto('about:blank')
    page.goto(f'{saved.as_uri()}#{name}={made}')
    page.locator('.v2w .plot').first.wait_for()
    assert selected(page) == [] and page.evaluate(f'{VIEW}.state.pin') == -1 and not page.errors
    assert ('damaged' in page.locator('.v2w .note').text_content()) == (made == '!!')


@pytest.mark.browser
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_it_fits(saved, open_page, width, dark):
    page = open_page(width, 1200, dark)
    page.goto(saved.as_uri())
    page.locator('.filters summary').click()
    page.locator('.find input[type=search]').fill('kind 1')
    page.locator('.find button', has_text='Select these').click()
    page.locator('.strip button', has_text='Grid').click()
    page.wait_for_timeout(300)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    shot(page, f'find_{width}_{"dark" if dark else "light"}')
    assert not page.errors
