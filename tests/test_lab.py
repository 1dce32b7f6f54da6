"""The training notebook as a user steps through it: JupyterLab on loopback, all cells, the widgets by hand.

VLM2REC_SHOTS=nbs/images python -m pytest tests/test_lab.py makes the pictures of the docs again. That of the gradients
is the one that the training notebook keeps: the training is shorter here, and what is drawn while it goes on moves."""

import base64
import os
import shutil
from pathlib import Path

import nbformat
import pytest
from test_widgets import ROOT, VIEW, circle, look, until

pytestmark = [pytest.mark.slow, pytest.mark.browser]
SHORTER = {  # the demo runs it as it stands; here it is the widgets that are looked at
    'train=400, valid=200, test=1000': 'train=120, valid=60, test=200',
    'settings = dict(steps=120': 'settings = dict(steps=24',
    'eval_every=0 if name == \'experts\' else 40': 'eval_every=0 if name == \'experts\' else 8',
}
EARS = '''
from ipywidgets import Label
heard = Label('none')
heard.add_class('t-ids')
before_after.observe(lambda c: setattr(heard, 'value', ' '.join(c.new) or 'none'), 'selected')
heard'''


def shot(what, name):
    if os.environ.get('VLM2REC_SHOTS'):
        Path(os.environ['VLM2REC_SHOTS']).mkdir(parents=True, exist_ok=True)
        what.screenshot(path=Path(os.environ['VLM2REC_SHOTS']) / f'{name}.png')


def kept_gradients():
    "The picture of the gradients that the training notebook keeps."
    nb = nbformat.read(ROOT / 'nbs' / '03_train.ipynb', 4)
    (cell,) = [c for c in nb.cells if c.cell_type == 'code' and 'live = GradientWidget(' in c.source]
    return base64.b64decode(cell.outputs[0].data['image/png'])


def test_the_docs_show_the_gradients_that_the_training_notebook_keeps():
    if os.environ.get('VLM2REC_SHOTS'):
        (Path(os.environ['VLM2REC_SHOTS']) / 'gradients.png').write_bytes(kept_gradients())
    shown = (ROOT / 'nbs' / 'images' / 'gradients.png').read_bytes()
    assert shown == kept_gradients(), (
        'VLM2REC_SHOTS=nbs/images python -m pytest tests/test_lab.py -k gradients takes it over'
    )


def test_training_notebook(page, lab):
    url, root = lab
    (root / 'nbs').mkdir()
    nb = nbformat.read(ROOT / 'nbs' / '03_train.ipynb', 4)
    for c in nb.cells:
        if c.cell_type == 'code':
            c.outputs, c.execution_count = [], None
            for whole, part in SHORTER.items():
                c.source = c.source.replace(whole, part)
    assert all(part in '\n'.join(c.source for c in nb.cells) for part in SHORTER.values())
    nb.cells.append(nbformat.v4.new_code_cell(EARS))
    nbformat.write(nb, root / 'nbs' / '03_train.ipynb')
    page.goto(f'{url}/doc/tree/nbs/03_train.ipynb?token=t&reset')
    page.wait_for_selector('.jp-Notebook .jp-Cell')
    page.locator('#jp-main-statusbar', has_text='| Idle').wait_for()
    if page.locator('.jp-Dialog .jp-mod-accept').count():
        page.locator('.jp-Dialog .jp-mod-accept').first.click()
    page.errors.clear()
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    page.locator('.t-ids').wait_for(state='attached')  # the last cell has run
    assert 'Error' not in ' '.join(
        page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]').all_text_contents()
    )
    assert (root / 'report.html').stat().st_size > 1e6

    # a product in one space and its place in the others; a lasso, of which Python hears
    charts = page.locator('.v2l:not(.v2r-saved *)')  # of the story: curves, bench; below: curves, bench
    assert charts.count() == 4
    page.wait_for_function(f'() => {VIEW}.length >= 2')
    look(page, 0, 5)
    until(page, "() => /^p\\d{4}/.test(document.querySelector('.t-ids').textContent)", circle, 0, 5, r=12)
    chosen = page.evaluate(f'{VIEW}[0].view.state.count')
    assert len(page.locator('.t-ids').text_content().split()) == chosen > 0

    # the bench: start, turn a slider, pause, go on, stop
    def button(name):
        return page.locator('.jupyter-button', has_text=name).first

    button('start').scroll_into_view_if_needed()
    button('start').click()
    page.wait_for_function("() => /running, [1-9]/.test(document.body.textContent)")
    slider = page.locator('.widget-slider .noUi-handle').first
    slider.focus()
    for _ in range(3):
        slider.press('ArrowRight')
    button('pause').click()
    page.wait_for_function("() => /paused, \\d+ of/.test(document.body.textContent)")
    at = page.evaluate("() => +document.body.textContent.match(/paused, (\\d+) of/)[1]")
    button('resume').click()
    page.wait_for_function(
        "(n) => { const m = document.body.textContent.match(/running, (\\d+) of/); return m && +m[1] > n }",
        arg=at + 20,
    )
    button('stop').click()
    page.wait_for_function("() => /stopped, \\d+ of/.test(document.body.textContent)")
    shot(charts.nth(1), 'bench')
    button('recommend').click()
    page.locator('.v2l', has_text='would rank').wait_for()
    page.wait_for_timeout(500)
    shot(page.locator('.v2l', has_text='would rank'), 'recommend')
    ours = [e for e in page.errors if 'favicon' not in e and '404' not in e]
    assert not page.outside and not ours, (page.outside, ours)
    shutil.rmtree(root / 'nbs')
