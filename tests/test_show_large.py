"""Spaces of very many products: how soon they are seen, what a page weighs, and what it shows before it has arrived."""

import base64
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.show.drawing import MANY, all_neighbours, near_by_cells, spaces_drawing
from vlm2rec_lab.show.views import spaces_view

VIEW = "document.querySelector('.v2w').view"
N = 60_000


def shop(n, d):
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 20, n)
    spaces = {m: (2 * rng.normal(size=(20, d))[kind] + rng.normal(size=(n, d))).astype(np.float32) for m in 'ab'}
    titles = [f'product {i}' for i in range(n)]
    table = pd.DataFrame({'title': titles, 'kind': [f'kind {k}' for k in kind]})
    return Catalogue(tuple(f'id{i}' for i in range(n)), {'text': titles}, {'text': 'text'}, table=table), spaces


@pytest.fixture(scope='module')
def large():
    cat, spaces = shop(N, 8)
    return spaces_drawing(spaces, cat, fuse=None, colour='kind')


@pytest.fixture(scope='module')
def page(large):
    return large.fragment()


def blob(page, name):
    return base64.b64decode(re.search(rf'data-blob="{name}">([^<]*)<', page)[1])


def test_the_first_picture_of_100_000_waits_for_no_map():
    cat, spaces = shop(100_000, 64)
    drawing = spaces_drawing(spaces, cat, colour='kind')
    assert list(drawing.positions) == ['pca'] and drawing.meta['n'] == 100_000


def test_places_in_a_large_page_are_those_of_the_map_in_16_bits(large, page):
    packed = np.frombuffer(blob(page, 'map-pca'), np.uint16).reshape(2, N, 2).astype(float)
    true = np.frombuffer(large.positions['pca']['xy'], np.float32).reshape(2, N, 2)
    for p, t in zip(packed, true):
        span = np.ptp(t, axis=0).max()
        assert np.abs(p / 65535 * span + t.min(0) - t).max() < span / 65535
    assert len(page) < 9e6


def test_neighbours_nearby_are_mostly_the_true_ones(large):
    z = large.vectors['a'][:8000]
    found, true = near_by_cells(z, 6), all_neighbours(z, 6)
    share = np.mean([len(set(a) & set(b)) / 6 for a, b in zip(found.tolist(), true.tolist())])
    assert share > 0.85 and not (found == np.arange(8000)[:, None]).any()
    s = np.einsum('nkd,nd->nk', z[found], z)
    assert (np.diff(s, axis=1) <= 1e-6).all()


def test_equal_vectors_are_no_burden():
    found = near_by_cells(np.tile(np.eye(1, 4, dtype=np.float32), (20_000, 1)), 6)
    assert found.shape == (20_000, 6) and found.max() < 20_000 and not (found == np.arange(20_000)[:, None]).any()


def test_a_page_says_what_it_shows(large):
    assert 'how many products lie where' in large.meta['note'] and 'may miss some' in large.meta['note']
    few = spaces_drawing({'a': large.vectors['a'][:100]})
    assert 'may miss some' not in few.meta['note'] and few.fragment().index('data-v2r-view=') > few.fragment().index(
        'data-blob="near"'
    )


def test_umap_of_many_is_made_only_when_asked(large, monkeypatch):
    import vlm2rec_lab.show.views as views

    pytest.importorskip('anywidget', reason='a view in a notebook needs anywidget')
    monkeypatch.setattr(views, 'maps_elsewhere', lambda *_: pytest.fail('UMAP was computed'))
    view = spaces_view({'a': large.vectors['a']}, fuse=None)
    assert view.thread is None and "method='umap'" in view.status and len(view.drawing.rows) > MANY


class Slow(BaseHTTPRequestHandler):
    "Sends a page up to its late parts, waits for `go`, and sends the rest."

    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Type', 'text/html')
        self.end_headers()
        if self.path != '/':
            return
        first, rest = self.server.parts
        self.wfile.write(first)
        self.wfile.flush()
        self.server.go.wait(60)
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.mark.browser
def test_points_are_drawn_before_the_rest_of_a_page_has_arrived(page, open_page):
    whole = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">' + page
    cut = whole.index('</script>', whole.index('<script type="module" async>')) + 9
    server = ThreadingHTTPServer(('127.0.0.1', 0), Slow)
    server.parts, server.go = (whole[:cut].encode(), whole[cut:].encode()), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        tab = open_page()
        tab.goto(f'http://127.0.0.1:{server.server_port}/', wait_until='commit')
        tab.wait_for_function('() => document.querySelector(".v2w")?.view?.panels[1].dense')
        assert tab.evaluate('document.readyState') == 'loading'
        dark = f"""() => {{
            const c = {VIEW}.panels[0].base
            return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v < 200)
        }}"""
        assert tab.evaluate(dark), 'nothing was drawn'
        server.go.set()
        tab.wait_for_function('() => document.readyState === "complete"')
        tab.locator('.plot').first.focus()
        tab.keyboard.press('ArrowRight')
        tab.locator('.near .row button').first.wait_for()
        assert tab.locator('.item .name').text_content().startswith('product ')
        assert not tab.errors and not tab.outside
    finally:
        server.go.set()
        server.shutdown()


@pytest.mark.browser
def test_zoomed_in_there_are_single_products_again(page, open_page, tmp_path):
    (tmp_path / 'x.html').write_text('<!doctype html><meta charset="utf-8">' + page)
    tab = open_page()
    tab.goto((tmp_path / 'x.html').as_uri())
    tab.wait_for_function('() => document.querySelector(".v2w")?.view?.panels[0].dense')
    for _ in range(9):
        tab.locator('[data-tool=in]').click()
    tab.wait_for_function(f'() => !{VIEW}.panels[0].dense')
    tab.locator('[data-tool=whole]').click()
    tab.wait_for_function(f'() => {VIEW}.panels[0].dense')
    tab.locator('.legend button').first.click()
    tab.wait_for_timeout(200)
    assert not tab.errors
