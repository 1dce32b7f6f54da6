"""The live widgets in a real browser: the bench in JupyterLab on loopback, and what was saved as HTML.

VLM2REC_SHOTS=folder keeps screenshots."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from access import hindrances

from vlm2rec_lab.show.gradients import GradientWidget

ROOT = Path(__file__).resolve().parent.parent
TITLE = '<script>window.planted = 1</script>'
START = (
    '''
import tempfile, torch, transformers
from dataclasses import replace
from pathlib import Path
transformers.utils.logging.disable_progress_bar()
from vlm2rec_lab.embed import VLMEmbedder
from vlm2rec_lab.show.bench import Bench
from vlm2rec_lab.show.gradients import GradientWidget
from vlm2rec_lab.show.shelf import recommend
from vlm2rec_lab.studio import make_studio
from vlm2rec_lab.model.tiny import build_tiny, build_tokenizer, save_tiny, studio_corpus
from vlm2rec_lab.train import train
folder = Path(tempfile.mkdtemp()) / 'tiny'
tiny = build_tiny(tokenizer=build_tokenizer(studio_corpus(300)), hidden=32, layers=1, vision=32, vision_layers=1)
save_tiny(folder, *tiny, dtype=torch.float32)
toy = make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)
titles = toy.catalogue.table.title.where(toy.catalogue.table.index %% 3 > 0, %r)
toy = replace(toy, catalogue=replace(toy.catalogue, table=toy.catalogue.table.assign(title=titles)))
def fresh(seed=0):
    return VLMEmbedder.from_pretrained(folder, lora=4, device='cpu', seed=seed)
'''
    % TITLE
)
BENCH = "bench = Bench(fresh(), toy, steps=3000, batch=8, eval_every=100, folder='kept')\nbench"
STATE = '''alphas = sorted(set(c['alpha'] for c in bench.run.history.controls))
print('bench', bench.run.state, len(bench.run.records), alphas, bench.run.checkpoint.exists())'''


def notebook(path, *cells):
    import nbformat

    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(c) for c in cells],
            metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}},
        ),
        path,
    )


@pytest.fixture(scope='module')
def lab(lab):
    "JupyterLab with the bench in a notebook: (address, folder of notebooks)."
    notebook(lab[1] / 'bench.ipynb', START, BENCH, STATE)
    return lab


def shot(page, name, what='.v2l'):
    if os.environ.get('VLM2REC_SHOTS'):
        page.locator(what).first.screenshot(path=Path(os.environ['VLM2REC_SHOTS']) / f'{name}.png')


def harmless(page):
    "Nothing was asked of the outside, no script of the data ran, nothing went wrong."
    assert not page.outside and page.evaluate('window.planted') is None, page.outside
    ours = [
        e for e in page.errors if 'favicon' not in e and 'status of 404' not in e
    ]  # JupyterLab asks its own server for things that are not there
    assert not ours, ours


def menu(page, *names):
    for n in names:
        page.get_by_role('menuitem', name=n, exact=True).click()


@pytest.mark.slow
@pytest.mark.browser
def test_bench_in_jupyterlab(lab, open_page, axe):
    url, root = lab
    page = open_page(height=1500)
    page.goto(f'{url}/doc/tree/bench.ipynb?token=t&reset')
    page.locator('#jp-main-statusbar', has_text='| Idle').wait_for()
    menu(page, 'Run', 'Run All Cells')
    page.locator('.v2l-start').wait_for()
    status, line = page.locator('.v2l .soft[role=status]').first, page.locator('[data-line="ratio/image / text"]')
    alpha = page.locator('.v2l-alpha .noUi-handle')
    page.locator('.v2l-start').click()
    line.wait_for()
    first = line.get_attribute('d')
    alpha.focus()
    for _ in range(10):
        page.keyboard.press('ArrowRight')
    page.locator('.v2l-alpha .widget-readout', has_text='1.00').wait_for()
    page.wait_for_function(
        'd => document.querySelector(\'[data-line="ratio/image / text"]\').getAttribute("d") !== d',
        arg=first,
    )
    page.locator('.v2l .turn').first.wait_for(state='attached')  # the change of alpha is drawn

    def steps():
        return int(re.search(r'(\d+) of 3000', status.text_content())[1])

    page.locator('.v2l-pause').click()
    status.filter(has_text='paused').wait_for()
    page.wait_for_timeout(900)
    held = steps()
    page.wait_for_timeout(1200)
    assert steps() == held, 'it goes on while it is paused'
    shot(page, 'bench_lab_paused', '.jp-OutputArea-output .widget-vbox')
    page.locator('.v2l-recommend').click()
    page.get_by_text('Bought so far, oldest first').wait_for()
    assert page.get_by_text(TITLE).count() > 0, 'a title that looks like a script is not shown as text'
    page.get_by_role('button', name='next →').click()
    page.get_by_text('(2 of 15)').wait_for()
    page.locator('.v2l[role=region]').focus()
    page.keyboard.press('ArrowLeft')
    page.get_by_text('(1 of 15)').wait_for()
    page.locator('.v2l-resume').click()
    page.wait_for_function(
        'n => Number(document.querySelector(".v2l .soft[role=status]").textContent.match(/(\\d+) of 3000/)[1]) > n',
        arg=held,
    )
    page.get_by_text(re.compile('print\\(.bench')).first.click()  # the notebook is usable while it trains
    page.keyboard.press('Control+Enter')
    page.locator('.jp-OutputArea-output', has_text=re.compile(r'bench running \d+ \[0.5.*1.0\] ')).wait_for()
    page.locator('.v2l-stop').click()
    status.filter(has_text='stopped').wait_for()
    assert list((root / 'kept').glob('*.safetensors')), 'no checkpoint after a stop'
    for name, width in (('Dark', 1200), ('Dark', 390), ('Light', 390), ('Light', 1200)):
        page.evaluate(f'window.jupyterapp.commands.execute("apputils:change-theme", {{theme: "JupyterLab {name}"}})')
        page.wait_for_function(
            'c => getComputedStyle(document.querySelector(".v2l")).backgroundColor === c',
            arg='rgb(18, 21, 28)' if name == 'Dark' else 'rgb(255, 255, 255)',
        )
        page.set_viewport_size({'width': width, 'height': 2600})
        page.wait_for_timeout(800)
        assert page.evaluate('[...document.querySelectorAll(".v2l")].every(e => e.scrollWidth <= e.clientWidth + 1)'), (
            f'wider than its place at {width}'
        )
        shot(page, f'bench_lab_{name.lower()}_{width}', '.jp-OutputArea-output .widget-vbox')
        assert not (found := hindrances(page, axe, '.jp-OutputArea-output .widget-vbox')), (name, width, found)
    harmless(page)
    page.context.close()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "Saved pages, made in a process of their own."
    out = tmp_path_factory.mktemp('saved')
    made = (
        START
        + f'''
kw = dict(steps=40, batch=8, eval_every=10, progress=False)
controls = {{'alpha': .5}}
def turn(records):
    if len(records) == 15:
        controls['alpha'] = 2.
runs = {{'sft': [train(fresh(s), toy, 'sft', seed=s, **kw) for s in range(3)]}}
runs[{TITLE!r}] = train(fresh(), toy, 'vlm2rec', controls=controls, callback=turn, **kw)
GradientWidget(runs).to_html({str(out / 'gradients.html')!r})
recommend(fresh(), toy).to_html({str(out / 'shelf.html')!r}, customers=5)
'''
    )
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', made], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1200, 390])
def test_saved_pages(saved, open_page, axe, dark, width):
    page = open_page(width, 1000, dark)
    fits = 'document.documentElement.scrollWidth <= window.innerWidth'

    def background():
        css = page.evaluate('getComputedStyle(document.querySelector(".v2l")).backgroundColor')
        return [int(x) for x in re.findall(r'\d+', css)][:3]

    page.goto((saved / 'gradients.html').as_uri())
    for kind in ('ratio/image / text', 'grad/text', 'grad/image', 'loss/', 'valid/fused', 'valid/image'):
        assert page.locator(f'[data-line="{kind}"]').count() == 2, kind
    assert page.evaluate(fits) and (max(background()) < 80) == dark
    assert not (found := hindrances(page, axe)), found
    assert (
        page.locator('button', has_text=TITLE).count() == 1
        and '3 seeds' in page.locator('.keys').inner_text()
        and page.locator('.turn').count() == 1
    )
    share = page.locator('svg .name', has_text='as a share of its first value')
    assert share.count() == 1  # the losses of two runs, on one scale
    page.locator('[role=group]').focus()
    page.keyboard.press('Home')
    assert 'step 0:' in page.locator('.read').inner_text() and 'alpha = 0.5' in page.locator('.read').inner_text()
    for _ in range(20):
        page.keyboard.press('ArrowRight')
    assert 'step 20:' in page.locator('.read').inner_text() and 'alpha = 2' in page.locator('.read').inner_text()
    shot(page, f'gradients_{"dark" if dark else "light"}_{width}')
    page.locator('.keys button').first.focus()
    page.keyboard.press('Enter')
    assert (
        page.locator('[data-line="loss/"]').count() == 1
        and page.locator('.keys button').first.get_attribute('aria-pressed') == 'false'
        and share.count() == 0
    )
    harmless(page)

    page.goto((saved / 'shelf.html').as_uri())
    assert (
        page.evaluate(fits)
        and page.locator('.col').count() == 3
        and page.locator('li.truth').count() == 3
        and page.get_by_text(TITLE).count() > 0
    )
    assert (
        page.evaluate('[...document.images].every(i => i.complete && i.naturalWidth > 0)')
        and page.locator('img').count() > 15
    )
    page.locator('[role=region]').focus()
    for n in (2, 3, 4, 5, 5):
        page.keyboard.press('ArrowRight')
        assert f'({n} of 5)' in page.locator('nav').inner_text()
    page.locator('button', has_text='previous').click()
    assert '(4 of 5)' in page.locator('nav').inner_text() and page.locator('.tile.truth .mark').inner_text() == '✓ next'
    shot(page, f'shelf_{"dark" if dark else "light"}_{width}')
    harmless(page)
    page.context.close()


@pytest.mark.browser
def test_a_modality_without_gradient_in_several_seeds_is_drawn_without_errors(tmp_path, page):
    "On a scale of powers there is no place for zero, and so no band."
    shown = GradientWidget()
    for seed in range(2):
        shown.add('sft', [{'step': s, 'loss': 1.0, 'grad/text': 1.0 + seed, 'grad/image': 0.0} for s in range(5)], seed)
    page.goto(shown.to_html(tmp_path / 'x.html').as_uri())
    assert page.locator('[data-line="grad/text"]').count() == 1 and not page.errors


ORDER = """() => {
  const words = [...document.querySelectorAll('.read span')].at(-1).firstChild
  const left = what => {
    const at = words.data.indexOf(what)
    const range = document.createRange()
    range.setStart(words, at)
    range.setEnd(words, at + what.length)
    return range.getBoundingClientRect().left
  }
  return left('\\u05e7\\u05d5\\u05dc') < left('/ text')
}"""


@pytest.mark.browser
def test_a_ratio_reads_the_same_way_in_any_script(tmp_path, page):
    "A name from right to left above the line does not change places with the one below it."
    shown = GradientWidget()
    shown.add('x', [{'step': s, 'loss': 1.0, 'grad/text': 1.0, 'grad/קול': 0.5} for s in range(5)])
    page.goto(shown.to_html(tmp_path / 'x.html').as_uri())
    assert '/ text' in page.locator('.read').inner_text() and page.evaluate(ORDER)


@pytest.mark.browser
def test_the_colours_of_modalities_are_there_where_colours_are_forced(tmp_path, page):
    shown = GradientWidget()
    shown.add('x', [{'step': s, 'loss': 1.0, 'grad/text': 1.0, 'grad/image': 0.5} for s in range(5)])
    page.emulate_media(forced_colors='active')
    page.goto(shown.to_html(tmp_path / 'x.html').as_uri())
    marks = page.locator('.swatch').evaluate_all('x => x.map(e => getComputedStyle(e).backgroundColor)')
    assert marks == ['rgb(0, 114, 178)', 'rgb(213, 94, 0)']
