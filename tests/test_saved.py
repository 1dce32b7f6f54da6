"""Widgets in notebooks that are saved: run, save, end the kernel, open again, in JupyterLab and as nbconvert's page.

VLM2REC_SHOTS=folder keeps screenshots."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import nbformat
import pytest
from test_live import START
from test_widgets import SHOP, run_notebook

pytestmark = [pytest.mark.slow, pytest.mark.browser]
VIEWS = '''
from vlm2rec_lab.widgets import spaces_view, topology_view
cat, vectors = shop(300, planted='plain')
spaces_view(vectors, cat, method='pca', colour='kind')'''
CURVES = '''
kw = dict(steps=30, batch=8, eval_every=10, progress=False)
live = GradientWidget()
live'''
CELLS = (
    SHOP + START,
    VIEWS,
    'topology_view(vectors, cat, sample=40)',
    CURVES,
    "h = train(fresh(), toy, 'sft', callback=live.watch('sft'), **kw)",
    "bench = Bench(fresh(), toy, steps=30, batch=8, eval_every=10, folder='kept')\nbench",
    'bench.start(); bench.wait(); bench.recommend()',
    "time.sleep(6); print('all', 'done')",
)
# what is seen of each widget's three outputs, in the order of the notebook
SEEN = '''() => [...document.querySelectorAll('.v2r-saved')].map(host => {
    const linked = host.closest('.jp-OutputArea-child'), picture = linked.previousElementSibling
    const widget = picture.previousElementSibling
    return [widget, picture, linked].map(e => Boolean(e?.offsetHeight > 20 && e.offsetParent))
})'''


def shot(page, name):
    if os.environ.get('VLM2REC_SHOTS'):
        page.screenshot(path=Path(os.environ['VLM2REC_SHOTS']) / f'{name}.png')


def run_and_save(page, lab):
    "Run all, save, end the kernel: the notebook's path."
    url, root = lab
    run_notebook(page, lab, 'saved.ipynb', *CELLS)
    page.locator('.jp-OutputArea-output', has_text='all done').wait_for()
    page.wait_for_timeout(1500)
    wrong = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_text_contents()
    assert not wrong, wrong
    alive = page.evaluate(SEEN)
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(1500)
    kernels = json.load(urllib.request.urlopen(f'{url}/api/kernels?token=t'))
    for k in kernels:
        urllib.request.urlopen(urllib.request.Request(f'{url}/api/kernels/{k["id"]}?token=t', method='DELETE'))
    return root / 'saved.ipynb', alive


def reopen(page, lab, name, width=1200, height=1100, dark=False):
    "Open a notebook in a fresh window, without a kernel."
    url, _ = lab
    page.set_viewport_size({'width': width, 'height': height})
    page.goto(f'{url}/doc/tree/{name}?token=t&reset')
    page.wait_for_selector('.jp-Notebook .jp-Cell')
    name = 'JupyterLab Dark' if dark else 'JupyterLab Light'
    page.evaluate(f'window.jupyterapp.commands.execute("apputils:change-theme", {{theme: "{name}"}})')


def walk(page, wait=400):
    "Scroll through the notebook, so that all of it is drawn and comes into sight."
    for selector in ('.jp-Cell', '.v2r-saved'):
        for place in page.locator(selector).all():
            place.evaluate("e => e.scrollIntoView({block: 'center'})")
            page.wait_for_timeout(wait)


def check_linked(page):
    "Each view is there, linked, and nothing else of it; it answers."
    for _ in range(4):  # a widget counts as gone after two seconds
        walk(page)
        seen = page.evaluate(SEEN)
        if seen == [[False, False, True]] * 5:
            break
    assert seen == [[False, False, True]] * 5, seen
    assert page.get_by_text('Error displaying widget').filter(visible=True).count() == 0
    view = page.locator('.v2r-saved .v2w').first
    view.locator('.plot').first.focus()
    page.keyboard.press('ArrowRight')
    page.wait_for_function("() => document.querySelector('.v2r-saved .v2w').view.state.hover >= 0")
    page.wait_for_function("() => document.querySelectorAll('.v2r-saved .near .row button').length === 18")
    curves = page.locator('.v2r-saved .v2l').first
    assert curves.locator('[data-line="ratio/image / text"]').count() == 1
    shelf = page.locator('.v2r-saved .v2l[role=region]').first
    shelf.get_by_role('button', name='next →').click()
    assert '(2 of 4)' in shelf.inner_text()


@pytest.fixture(scope='module')
def kept(open_lasting_page, lab):
    "The saved notebook: (path, what was seen while the widgets lived)."
    page = open_lasting_page()
    found = run_and_save(page, lab)
    page.close()
    return found


def test_alive(kept):
    "While the kernel lives, the widgets are seen and nothing beside them."
    path, alive = kept
    assert alive == [[True, False, False]] * 5, alive
    sizes = {}
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get('outputs', ()):
            for mime, data in output.get('data', {}).items():
                sizes[mime] = sizes.get(mime, []) + [len(str(data))]
                if mime == 'image/png':
                    assert len(output.metadata[mime]['alt']) > 30
    print({mime: s for mime, s in sizes.items()}, f'{path.stat().st_size / 1e6:.2f} MB')
    assert path.stat().st_size < 1.5e6 and len(sizes['image/png']) == 4


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_opened_again(kept, lab, page, dark, width):
    reopen(page, lab, 'saved.ipynb', width=width, dark=dark)
    check_linked(page)
    for k, host in enumerate(page.locator('.v2r-saved').all()):
        host.evaluate("e => e.scrollIntoView({block: 'start'})")
        page.wait_for_timeout(300)
        shot(page, f'saved_{k}_{"dark" if dark else "light"}_{width}')


def test_not_trusted(kept, lab, page):
    "Somebody else's notebook: no script runs, and the pictures are there."
    path, _ = kept
    nb = nbformat.read(path, 4)
    nb.cells[0].source += '\n# changed elsewhere'
    for cell in nb.cells:
        cell.metadata.pop('trusted', None)
    nbformat.write(nb, path.with_name('strange.ipynb'))
    reopen(page, lab, 'strange.ipynb')
    walk(page)
    pictures = page.locator('.jp-RenderedImage img').filter(visible=True)
    assert pictures.count() == 4 and page.evaluate(
        "[...document.querySelectorAll('.jp-RenderedImage img')].every(i => i.naturalWidth > 400)"
    )
    assert page.get_by_text('the truth at place').filter(visible=True).count() >= 1  # the table of recommendations
    assert page.locator('.v2r-saved .v2w').count() == 0
    assert page.get_by_text('Error displaying widget').count() == 0
    shot(page, 'saved_not_trusted')


def test_nbconvert(kept, page, tmp_path):
    "A page made by nbconvert shows the linked views, and asks nobody for anything of theirs."
    path, _ = kept
    command = [sys.executable, '-m', 'nbconvert', '--to', 'html', str(path), '--output-dir', str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    page.goto((tmp_path / 'saved.html').as_uri())
    check_linked(page)
    shot(page, 'saved_nbconvert')


def test_nbconvert_without_scripts(kept, browser, tmp_path):
    "What GitHub and other strict viewers leave: pictures, with words for those who cannot see them."
    path, _ = kept
    subprocess.run([sys.executable, '-m', 'nbconvert', '--to', 'html', str(path), '--output-dir', str(tmp_path)])
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / 'saved.html').as_uri())
    pictures = page.locator('.jp-RenderedImage img').filter(visible=True)
    svg = page.locator('.jp-RenderedSVG svg').filter(visible=True)
    assert pictures.count() + svg.count() == 4
    assert all(len(p.get_attribute('alt') or '') > 30 for p in pictures.all())
    context.close()
