"""Seconds to the first picture of the spaces, and what their page weighs.

python benchmarks/pictures.py [--items 20000,100000] [--dims 64] [--browser] [--out FILE]

Vectors in 40 clusters, in two spaces and their fused one, with titles and two columns and without pictures. The first
picture is what `spaces_drawing` gives: PCA, which a notebook draws at once. The page adds the nearest products of all.
`--browser` also measures, in Chromium, how long the page takes until its points are drawn.
"""

import argparse
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from common import Clock, machine, quiet, say, table, write


def shop(n, dims, seed=0):  # -> Catalogue, {space: [items, dims]}
    "Products of 40 kinds."
    import pandas as pd

    from vlm2rec_lab.shop.catalogue import Catalogue

    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 40, n)
    spaces = {m: 2 * rng.normal(size=(40, dims))[kind] + rng.normal(size=(n, dims)) for m in ('text', 'image')}
    titles = [f'product {i}' for i in range(n)]
    columns = pd.DataFrame({'title': titles, 'kind': [f'kind {k}' for k in kind], 'price': rng.random(n)})
    cat = Catalogue(tuple(f'id{i}' for i in range(n)), {'text': titles}, {'text': 'text'}, table=columns)
    return cat, {m: z.astype(np.float32) for m, z in spaces.items()}


@contextmanager
def opened(path):  # -> (page of Playwright, seconds until its points are drawn)
    "A page of linked spaces in Chromium."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chrome = os.environ.get('CHROME', '/usr/bin/chromium')
        browser = p.chromium.launch(executable_path=chrome, args=['--no-sandbox', '--disable-gpu'])
        page = browser.new_page(viewport=dict(width=1280, height=1000))
        start = time.perf_counter()
        page.goto(path.as_uri(), wait_until='commit')
        page.wait_for_function('() => document.querySelector(".v2w")?.view?.panels.every(p => p.w && p.xy)', polling=20)
        yield page, time.perf_counter() - start
        browser.close()


def drawn_after(path):  # -> dict
    "Seconds until the points of a page are drawn."
    with opened(path) as (_, seconds):
        return dict(drawn_s=seconds)


def measure(n, dims, look):  # function of a page's path -> dict
    "One size of catalogue."
    from vlm2rec_lab.show.drawing import spaces_drawing

    cat, vectors = shop(n, dims)
    first, page = Clock(), Clock()
    with first:
        drawing = spaces_drawing(vectors, cat, colour='kind')
    with tempfile.TemporaryDirectory() as folder:
        with page:
            path = drawing.to_html(Path(folder) / 'spaces.html')
        size, seen = path.stat().st_size, look(path)
    out = dict(items=n, dims=dims, first_cpu=first.cpu, first_s=first.wall, page_cpu=page.cpu, page_s=page.wall)
    return out | dict(page_mb=size / 1e6) | seen


def shown(r):  # dict of `measure` -> dict of words
    "A row of the table."
    return {
        'products': f'{r["items"]:,}',
        'dims': r['dims'],
        'first picture, s (CPU s)': f'{r["first_s"]:.1f} ({r["first_cpu"]:.1f})',
        'page, s (CPU s)': f'{r["page_s"]:.1f} ({r["page_cpu"]:.1f})',
        'page, MB': f'{r["page_mb"]:.1f}',
        'drawn in the browser, s': 'not measured' if r['drawn_s'] is None else f'{r["drawn_s"]:.1f}',
    }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--items', default='20000,100000')
    p.add_argument('--dims', type=int, default=64)
    p.add_argument('--browser', action='store_true')
    p.add_argument('--out')
    args = p.parse_args()
    quiet()
    look = drawn_after if args.browser else lambda path: dict(drawn_s=None)
    measure(1000, args.dims, look)  # libraries load
    rows = []
    for n in map(int, args.items.split(',')):
        rows.append(measure(n, args.dims, look))
        say(f'{n:,} items measured')
    print(table([shown(r) for r in rows]))
    write(args.out, dict(machine=machine(), pictures=rows))


if __name__ == '__main__':
    main()
