"""How long people wait for what they see: one table.

python benchmarks/screens.py [--items 20000,100000] [--notebook PATH] [--rounds 3] [--out FILE]

From Run All to the first widget of the training notebook; then, for catalogues of each size: the first picture of the
spaces, their page until its points are drawn, from the pointer's arrival at a product until its name stands beside it,
from the end of a lasso until its products are selected in every space; and what pages weigh. Chromium is needed. Say
nothing of a busy machine: the load at the beginning and at the end stands in the result.
"""

import argparse
import os
import tempfile
from pathlib import Path

import nbformat
import numpy as np
from common import machine, quiet, say, table, write
from first_widget import NOTEBOOK, first_widget
from pictures import measure, opened

DIMS = 64  # of the spaces
CLOCK = """() => {
  window.took = null
  const state = document.querySelector('.v2w').view.state, before = state.hover
  addEventListener('pointermove', () => {
    const start = performance.now()
    const look = () => {
      if (state.hover !== before && document.querySelector('.v2w .tip.on')) window.took = performance.now() - start
      else if (performance.now() - start < 3000) requestAnimationFrame(look)
    }
    requestAnimationFrame(look)
  }, {once: true, capture: true})
}"""
LASSO = """() => {
  window.lasso = null
  const state = document.querySelector('.v2w').view.state
  addEventListener('pointerup', () => {
    const start = performance.now()
    const look = () => {
      if (state.count) window.lasso = [performance.now() - start, state.count]
      else requestAnimationFrame(look)
    }
    requestAnimationFrame(look)
  }, {once: true, capture: true})
}"""


def hovers(page, tries=9):  # -> milliseconds
    "From the pointer's arrival to the name beside it, at several places of the first space."
    found, b = [], page.locator('.v2w .plot').first.bounding_box()
    rng = np.random.default_rng(1)
    for _ in range(4 * tries):
        u, v = rng.uniform(0.3, 0.7, 2)
        page.mouse.move(b['x'] + 3, b['y'] + 3)
        page.wait_for_timeout(60)
        page.evaluate(CLOCK)
        page.mouse.move(b['x'] + u * b['width'], b['y'] + v * b['height'])
        page.wait_for_timeout(250)
        took = page.evaluate('window.took')
        found += [took] if took is not None else []
        if len(found) == tries:
            break
    return found


def lasso(page):  # -> (seconds, how many were selected)
    "From the end of a lasso around the left half of the first space until its products are selected."
    b = page.locator('.v2w .plot').first.bounding_box()
    page.mouse.move(b['x'] + 0.03 * b['width'], b['y'] + 0.5 * b['height'])
    page.mouse.down()
    for u, v in [(0.03, 0.03), (0.5, 0.03), (0.5, 0.97), (0.03, 0.97)]:
        page.mouse.move(b['x'] + u * b['width'], b['y'] + v * b['height'], steps=6)
    page.evaluate(LASSO)
    page.mouse.up()
    page.wait_for_function('() => window.lasso', polling=50)
    took, count = page.evaluate('window.lasso')
    return took / 1000, count


def waited(path):  # -> dict
    "What a page asks of a patient reader."
    with opened(path) as (page, drawn):
        page.wait_for_timeout(1500)
        found = hovers(page)
        took, count = lasso(page)
    hover = [float(np.median(found)), max(found), len(found)] if found else None
    return dict(drawn_s=drawn, hover_ms=hover, lasso_s=took, selected=count)


def weights():  # -> {page: megabytes}
    "What the pages weigh that people send to each other."
    from vlm2rec_lab.diagnosis.report import collapse_report
    from vlm2rec_lab.diagnosis.worlds import world
    from vlm2rec_lab.shop.drawn import make_studio
    from vlm2rec_lab.show.drawing import spaces_drawing
    from vlm2rec_lab.show.frames import spaces_over

    task = world(users=1000, n_items=600, seed=0)
    catalogue = make_studio('text-easy', seed=0).catalogue
    with tempfile.TemporaryDirectory() as folder:
        pages = {name: Path(folder) / f'{k}.html' for k, name in enumerate(('report', 'spaces', 'before and after'))}
        collapse_report(**task, progress=False).save(pages['report'])
        spaces_drawing(task['items'], catalogue).to_html(pages['spaces'])
        spaces_over({'before': task['items'], 'after': task['items']}, catalogue).to_html(pages['before and after'])
        return {name: path.stat().st_size / 1e6 for name, path in pages.items()}


def run_all(notebook, rounds):  # -> dict
    "From a fresh kernel to the first widget, median of the rounds."
    took = []
    for k in range(rounds):
        took.append(first_widget(nbformat.read(notebook, 4), notebook))
        say(f'{Path(notebook).name}: round {k + 1} of {rounds}')
    clock, cpu = np.median(took, axis=0)
    return dict(notebook=Path(notebook).name, rounds=rounds, seconds=float(clock), cpu=float(cpu))


def rows(found):  # dict of `main` -> [dict of words]
    "The table: what is waited for, how long, and of that the processor."
    first = found['first_widget']
    out = [(f'first widget of {first["notebook"]} after Run All', f'{first["seconds"]:.1f} s', f'{first["cpu"]:.1f} s')]
    for r in found['sizes']:
        of = f'{r["items"]:,} products'
        out += [(f'first picture, {of}', f'{r["first_s"]:.2f} s', f'{r["first_cpu"]:.2f} s')]
        out += [(f'page written, {of}, {r["page_mb"]:.1f} MB', f'{r["page_s"]:.1f} s', f'{r["page_cpu"]:.1f} s')]
        out += [(f'points drawn from the page, {of}', f'{r["drawn_s"]:.1f} s', '')]
        if r['hover_ms']:
            middle, most, n = r['hover_ms']
            out += [(f'name beside the pointer, {of}', f'{middle:.0f} ms (largest of {n}: {most:.0f})', '')]
        out += [(f'lasso of {r["selected"]:,}, {of}', f'{r["lasso_s"]:.2f} s', '')]
    out += [(f'page: {name}, 600 products', f'{mb:.2f} MB', '') for name, mb in found['pages_mb'].items()]
    return [{'what': a, 'how long, or how large': b, 'of the processor': c} for a, b, c in out]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--items', default='20000,100000')
    p.add_argument('--notebook', default=str(NOTEBOOK))
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--out')
    args = p.parse_args()
    quiet()
    before = [round(x, 2) for x in os.getloadavg()]
    found = dict(first_widget=run_all(args.notebook, args.rounds), sizes=[])
    measure(1000, DIMS, waited)  # libraries load
    for n in map(int, args.items.split(',')):
        found['sizes'].append(measure(n, DIMS, waited))
        say(f'{n:,} products measured')
    found = dict(machine=machine() | dict(load_before=before), **found, pages_mb=weights())
    print(table(rows(found)))
    write(args.out, found)


if __name__ == '__main__':
    main()
