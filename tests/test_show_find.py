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
