"""The first minutes of the training notebook in JupyterLab: the story at its top, and controls that answer in sight.

VLM2REC_SHOTS=folder keeps screenshots."""

import os
from pathlib import Path

import nbformat
import pytest
from test_widgets import ROOT, VIEW, place, run_notebook, until

pytestmark = [pytest.mark.slow, pytest.mark.browser]
BUSY = "import time\nprint('now', 'busy')\ntime.sleep(20)"

DRAWN = '''() => {
    const c = document.querySelector('.v2w .plot canvas')
    return c.width && c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0)
}'''


def story():
    "The cells of the section, the one that says what follows left out."
    cells = nbformat.read(ROOT / 'nbs' / '03_train.ipynb', 4).cells
    heads = [k for k, c in enumerate(cells) if c.cell_type == 'markdown' and c.source.startswith('## ')]
    first = next(k for k in heads if cells[k].source.startswith('## In five minutes'))
    return first, cells[first : heads[heads.index(first) + 1]]


def shot(page, name):
    if os.environ.get('VLM2REC_SHOTS'):
        page.screenshot(path=Path(os.environ['VLM2REC_SHOTS']) / f'{name}.png')


def dark(page, on):
    name = 'JupyterLab Dark' if on else 'JupyterLab Light'
    page.evaluate(f'window.jupyterapp.commands.execute("apputils:change-theme", {{theme: "{name}"}})')
    page.wait_for_timeout(600)


def in_sight(page, selector):
    "Is the top of an element on the screen, below the toolbar?"
    return page.evaluate(
        '''s => {
            const b = [...document.querySelectorAll(s)].at(-1).getBoundingClientRect()
            return b.top > 30 && b.top < innerHeight - 60
        }''',
        selector,
    )


def test_the_story_comes_first():
    first, cells = story()
    assert first == 1 and len(cells) <= 10
    code = [c.source for c in cells if c.cell_type == 'code']
    assert not any('default_exp' in c or '#| export' in c for c in code)
    assert 'spaces_view(' in code[1] and any('Bench(' in c for c in code) and any('GradientWidget(' in c for c in code)


@pytest.fixture(scope='module')
def told(open_lasting_page, lab):
    "The story, run in JupyterLab: the page."
    page = open_lasting_page(1280, 1000)
    _, cells = story()
    run_notebook(page, lab, 'story.ipynb', *(c.source for c in cells if c.cell_type == 'code'), BUSY)
    return page


def test_buttons_answer_while_a_cell_runs(told):
    page = told
    page.locator('.v2l-start').wait_for()
    page.locator('.jp-OutputArea-output', has_text='now busy').wait_for()
    page.locator('.v2l-start').click()
    said = page.locator('.v2l .pressed').filter(visible=True)
    said.filter(has_text='start: queued').wait_for(timeout=5_000)
    assert in_sight(page, '.v2l-bench .pressed')
    shot(page, 'story_queued')
    page.wait_for_function("() => /running, [1-9]/.test(document.body.textContent)")
    assert said.count() == 0


def test_recommendations_come_into_sight(told):
    page = told
    page.locator('.v2l-stop').click()
    page.wait_for_function("() => /stopped, \\d+ of/.test(document.body.textContent)")
    for name, width, height in (('phone', 390, 800), ('desk', 1280, 900)):
        page.set_viewport_size({'width': width, 'height': height})
        button = page.locator('.v2l-recommend')
        button.scroll_into_view_if_needed()
        page.wait_for_timeout(800)
        button.click()
        page.wait_for_function("() => !document.querySelector('.v2l-bench').dataset.wants")
        page.wait_for_timeout(1500)
        assert in_sight(page, '.v2l-bench .v2l[role=region]'), name
        for on in (False, True):
            dark(page, on)
            shot(page, f'story_recommend_{"dark" if on else "light"}_{width}')
        dark(page, False)


def test_a_tapped_product_comes_into_sight(told):
    page = told
    for name, width, height in (('phone', 390, 800), ('desk', 1280, 760)):
        page.set_viewport_size({'width': width, 'height': height})
        place(page, 0, [5])
        page.wait_for_timeout(1500)  # cells above it are drawn, and move it
        until(page, f'() => {VIEW}[0].view.state.pin >= 0', lambda page: page.mouse.click(*place(page, 0, [5])))
        page.wait_for_timeout(1500)
        card = page.locator('.v2w .item.one').first
        box = card.bounding_box()
        assert box['y'] > 0 and box['y'] + min(box['height'], 150) <= height, (name, box)
        for on in (False, True):
            dark(page, on)
            page.wait_for_function(DRAWN)
            shot(page, f'story_card_{"dark" if on else "light"}_{width}')
        dark(page, False)
        page.evaluate(f'{VIEW}[0].view.state.pin = -1')


def test_the_first_screen(told):
    page = told
    for width, height in ((390, 800), (1280, 1000)):
        page.set_viewport_size({'width': width, 'height': height})
        page.locator('.jp-Cell').first.evaluate("e => e.scrollIntoView({block: 'start'})")
        page.wait_for_timeout(1000)
        for on in (False, True):
            dark(page, on)
            page.wait_for_function(DRAWN)  # JupyterLab hides all while it changes its theme
            shot(page, f'story_top_{"dark" if on else "light"}_{width}')
        dark(page, False)
    wide = '[...document.querySelectorAll(".v2l, .v2w")].every(e => e.scrollWidth <= e.clientWidth + 1)'
    assert page.evaluate(wide)
