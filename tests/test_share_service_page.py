"""The page of the service in a real browser: by mouse and by keyboard, with text that would like to be markup, and
without a request to anybody else."""

import time

import numpy as np
import pandas as pd
import pytest
from access import hindrances
from PIL import Image
from share_servers import BEARER, TOKEN, server, small_index

from vlm2rec_lab.share.index import build_index

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.processes]
FIRST = '#offers li:first-child'


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "A folder with an index, and with pictures of some of its items."
    work = tmp_path_factory.mktemp('shop')
    (work / 'images').mkdir()
    rng = np.random.default_rng(0)
    for k in range(9, 40):
        Image.fromarray(rng.integers(0, 255, (30, 30, 3)).astype(np.uint8)).save(work / 'images' / f'i{k}.png')
    small_index(work / 'index')
    return work


@pytest.fixture(scope='module')
def running(shop):
    with server(shop / 'index', '--port', 0, '--images', shop / 'images', '--rate', 1000) as found:
        yield found


def begin(page, address):
    "The page, with two items in the history."
    page.goto(address)
    page.wait_for_selector('#found li')
    for k in (9, 12):
        page.click(f'button[aria-label="Add thing {k} to the history"]')
    page.wait_for_selector(FIRST)
    page.wait_for_load_state('networkidle')


def until(page, expression):
    "Wait until it is true; the policy of the page forbids Playwright's own way."
    end = time.monotonic() + 300
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(30)


def numbers(page, where):
    "Numbers of some elements."
    return [float(t.replace('−', '-')) for t in page.locator(where).all_inner_texts()]


def test_items_are_recommended_and_explained(page, running):
    begin(page, running.address)
    assert page.inner_text('#about') == '40 items, text and image, version 1 of the index'
    parts, (score,) = numbers(page, f'{FIRST} .bars .number'), numbers(page, f'{FIRST} .card > .number')
    assert len(parts) == 2 and abs(sum(parts) - score) < 0.0016
    widths = [page.locator(f'{FIRST} .bar').nth(n).bounding_box()['width'] for n in range(2)]
    assert (widths[0] > widths[1]) == (abs(parts[0]) > abs(parts[1]))
    page.click(f'{FIRST} button:has-text("Why?")')
    page.wait_for_selector(f'{FIRST} table')
    rows = numbers(page, f'{FIRST} tbody td')
    assert page.locator(f'{FIRST} tbody th').all_inner_texts() == ['thing 9', 'thing 12']
    assert abs(rows[2] + rows[5] - score) < 0.0016
    assert page.locator('#found li').first.locator('img').count() == 0  # a/b has no picture
    assert page.locator('#history img').first.evaluate('i => i.naturalWidth') > 0
    assert page.outside == [] and page.errors == []  # no picture is asked for that is not there


def test_a_modality_has_the_colour_that_it_has_in_a_report(page, tmp_path):
    rng = np.random.default_rng(0)
    vectors = {m: rng.normal(size=(12, 4)) for m in ('image', 'audio', 'text')}
    build_index(tmp_path / 'index', vectors, pd.DataFrame(dict(item_id=[f'i{k}' for k in range(12)])))
    with server(tmp_path / 'index', '--port', 0) as found:
        page.goto(found.address)
        page.click('#found button')
        page.wait_for_selector(FIRST)
        names = page.locator(f'{FIRST} .bars .name').all_inner_texts()
        bars = [b.get_attribute('class').split()[1] for b in page.locator(f'{FIRST} .bar').all()]
        page.emulate_media(forced_colors='active')  # nothing else draws a bar
        drawn = page.locator(f'{FIRST} .bar').evaluate_all('x => x.map(e => getComputedStyle(e).backgroundColor)')
    assert 'rgb(255, 255, 255)' not in drawn
    assert dict(zip(names, bars)) == {'text': 'm1', 'image': 'm2', 'audio': 'm3'}


def test_text_is_never_markup(page, running):
    page.goto(running.address)
    page.fill('#find', '<i>')
    until(page, "document.querySelectorAll('#found li').length === 1")
    assert page.inner_text('#found h3') == '<img src=x onerror="document.title=1">'
    page.click('#found button')
    page.wait_for_selector(FIRST)
    page.click(f'{FIRST} button:has-text("Why?")')
    page.wait_for_selector(f'{FIRST} table')
    assert page.inner_text(f'{FIRST} tbody th') == '<img src=x onerror="document.title=1">'
    assert page.title() == 'vlm2rec: recommendations'
    assert page.locator('img[src="x"], i').count() == 0


def test_weights_and_diversity_change_what_is_offered(page, running):
    begin(page, running.address)
    titles, images = '#offers h3', '#offers .bars .number:nth-child(6)'
    both = page.locator(titles).all_inner_texts()
    page.locator('#slide-m1').fill('0')
    until(page, f'[...document.querySelectorAll("{images}")].every(e => +e.textContent === 0)')
    text = page.locator(titles).all_inner_texts()
    assert text != both and len(text) == 12
    page.locator('#slide-diversity').fill('0.9')
    until(page, f'[...document.querySelectorAll("{titles}")].map(e => e.textContent).join() !== "{",".join(text)}"')
    page.locator('#slide-m0').fill('0')
    page.wait_for_selector('#said.alarm')
    assert 'All weights are 0' in page.inner_text('#said')


def test_a_long_title_leaves_room_for_other_items(page, tmp_path):
    titles = ['x' * 3000, 'word ' * 600, *(f'thing {k}' for k in range(2, 40))]
    small_index(tmp_path / 'index', title=titles)
    with server(tmp_path / 'index', '--port', 0) as found:
        page.goto(found.address)
        page.wait_for_selector('#found li')
        heights = [h.bounding_box()['height'] for h in page.locator('#found h3').all()[:3]]
        for k in range(3):
            page.locator('#found button').nth(k).click()
        page.wait_for_selector(FIRST)
        page.click(f'{FIRST} button:has-text("Why?")')
        page.wait_for_selector(f'{FIRST} table')
        rows = [r.bounding_box()['height'] for r in page.locator(f'{FIRST} tbody tr').all()[:3]]
    assert max(heights) < 4 * heights[2] and max(rows) < 4 * rows[2]


def test_by_keyboard_alone(page, running):
    page.goto(running.address)
    page.wait_for_selector('#found li')
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.id') == 'find'
    page.keyboard.type('thing 10')
    until(page, "document.querySelectorAll('#found li').length === 1")
    page.keyboard.press('Tab')
    page.keyboard.press('Tab')
    page.keyboard.press('Enter')
    page.wait_for_selector(FIRST)
    assert 'thing 10 is in the history. 12 recommendations' in page.inner_text('#said')
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.getAttribute("aria-label")') == 'Remove thing 10 from the history'
    page.keyboard.press('Enter')
    page.wait_for_selector('#empty:visible')
    assert page.evaluate('document.activeElement.id') == 'find'  # the focus is not lost with the button
    assert page.locator('#offers li').count() == 0


def test_more_items_are_shown(page, running):
    page.goto(running.address)
    page.wait_for_selector('#more:visible')
    assert page.inner_text('#count') == '24 of 40 items'
    page.click('#more')
    page.wait_for_selector('#more', state='hidden')
    assert page.locator('#found li').count() == 40


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_the_page_hinders_nobody(open_page, axe, running, width, dark):
    page = open_page(width, 900, dark)
    begin(page, running.address)
    page.click(f'{FIRST} button:has-text("Why?")')
    page.wait_for_selector(f'{FIRST} table')
    ground = page.evaluate("getComputedStyle(document.querySelector('.v2s')).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(','))) < 120) == dark
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    # the policy forbids scripts from elsewhere, the judge's too: it is given to a copy of what is shown
    copy = open_page(width, 900, dark)
    copy.set_content(page.content().replace('<script src="serve.js" defer=""></script>', ''))
    copy.add_style_tag(
        content=page.evaluate(
            "[...document.styleSheets].map(s => [...s.cssRules].map(r => r.cssText).join(' ')).join(' ')"
        )
    )
    assert not (found := hindrances(copy, axe)), found


def test_without_pictures_and_with_a_token(page, shop, tmp_path):
    (tmp_path / 'token').write_text(TOKEN)
    argv = (shop / 'index', '--port', 0, '--host', '0.0.0.0', '--token-file', tmp_path / 'token', '--rate', 1000)
    with server(*argv) as running:
        page.goto(running.address.replace('0.0.0.0', '127.0.0.1'))
        page.wait_for_selector('#key:visible')
        assert page.inner_text('#said') == 'This service asks for its token.'
        page.fill('#token', 'wrong-wrong-wrong')
        page.keyboard.press('Enter')
        page.wait_for_selector('#said.alarm')
        assert 'not the token' in page.inner_text('#said')
        page.fill('#token', BEARER['Authorization'].split()[1])
        page.keyboard.press('Enter')
        page.wait_for_selector('#found li')
        page.click('#found button')
        page.wait_for_selector(FIRST)
        assert page.locator('img').count() == 0
        assert page.outside == []
