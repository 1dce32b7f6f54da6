"""Before and after: the spaces over the checkpoints of a training, as numbers, as a page and in JupyterLab."""

import base64
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.show.drawing import neighbours_of
from vlm2rec_lab.show.figures import _unit
from vlm2rec_lab.show.frames import Checkpoints, film_of, spaces_over
from vlm2rec_lab.show.views import spaces_over_view

PLANTED = '<img src=x onerror=window.planted=1>'
N = 90


def vectors(wide, seed):
    "Five kinds around one direction that all share: [items, 9]."
    rng = np.random.default_rng(seed)
    own = np.eye(5)[np.arange(N) % 5] + 0.2 * rng.normal(size=(N, 5))
    return np.concatenate([wide * own, np.ones((N, 1))], 1)


@pytest.fixture(scope='module')
def shop():
    images = np.zeros((N, 24, 24, 3), np.uint8) + np.arange(N, dtype=np.uint8)[:, None, None, None]
    titles = [PLANTED if i == 0 else f'product {i}' for i in range(N)]
    table = pd.DataFrame({'title': titles, 'kind': [f'kind {i % 5}' for i in range(N)]})
    return Catalogue(tuple(f'id{i}' for i in range(N)), {'image': images}, {'image': 'image'}, table=table)


@pytest.fixture(scope='module')
def life():
    wide = {'before': 1.0, PLANTED: 0.1, 'after': 0.8}
    return {name: {'text': vectors(1, 7), 'image': vectors(w, k)} for k, (name, w) in enumerate(wide.items())}


@pytest.fixture(scope='module')
def alone(life):
    return {name: {'text': 0.3, 'image': x} for name, x in zip(life, (0.2, 0.02, 0.15))}


def places(drawing):
    film = drawing.meta['film']
    xy = np.frombuffer(drawing.blobs['film'], np.uint16).reshape(
        len(film['frames']), len(drawing.meta['spaces']), -1, 2
    )
    return xy / 65535 - 0.5


def radius(xy):
    return np.sqrt((xy**2).sum(-1).mean(-1))


def test_a_space_that_shrinks_in_its_vectors_shrinks_in_the_picture(life, shop):
    r = radius(places(spaces_over(life, shop)))
    true = [np.sqrt(((z := _unit(s['image'])) - z.mean(0)).var(0).sum()) for s in life.values()]
    assert r[1, 1] / r[0, 1] == pytest.approx(true[1] / true[0], rel=0.35) and r[1, 1] < 0.25 * r[0, 1]
    assert np.ptp(r[:, 0]) < 1e-4  # the text did not move, and its scale is its own
    assert np.abs(places(spaces_over(life, shop))).max((0, 2, 3)) == pytest.approx([0.5, 0.5], abs=1e-4)


def test_two_models_share_the_scale_of_a_space(life):
    small = {name: {m: vectors(0.1, 3) for m in spaces} for name, spaces in life.items()}
    r = radius(places(spaces_over({'a': life, 'b': small})))
    assert r[0, 2] < 0.25 * r[0, 0] and r[0, 3] < 0.25 * r[0, 1]


def test_a_checkpoint_that_was_only_turned_does_not_move():
    z = vectors(1, 0)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    a, b = film_of([_unit(z), _unit(z @ turn)])
    assert np.allclose(a, b, atol=1e-4)


def test_a_dead_space_is_one_point_and_vectors_that_lack_are_left_out(life):
    dead = {k: dict(v, image=np.ones((N, 3)) if k == 'after' else v['image']) for k, v in life.items()}
    d = spaces_over(dead)
    assert np.abs(places(d)[2, 1]).max() < 1e-4 and d.meta['film']['figures'][0]['values'][2][1] == pytest.approx(
        0, abs=1e-6
    )
    lacking = {k: dict(v, image=np.where(np.arange(N)[:, None] == 4, 0, v['image'])) for k, v in life.items()}
    lacks = spaces_over(lacking)
    assert lacks.meta['n'] == N - 1 and '1 of 90 items are left out' in lacks.meta['note'] and '4' not in lacks.ids


def test_neighbours_are_those_of_the_checkpoint(life, shop):
    page = spaces_over(life, shop).fragment()
    blob = base64.b64decode(re.search('data-blob="near">([^<]*)<', page)[1])
    near = np.frombuffer(blob, np.uint16).reshape(3, 2, N, 6)
    for f, spaces in enumerate(life.values()):
        assert near[f, 1, 5].tolist() == neighbours_of(_unit(spaces['image']), 5, 6).tolist()


def test_words_of_data_are_no_markup_and_the_page_stays_small(life, shop, alone):
    page = spaces_over({PLANTED: life, 'b': life}, shop, {PLANTED: alone}).fragment()
    assert '<img src=x' not in page
    big = {k: {m: np.tile(z, (40, 1)) for m, z in v.items()} for k, v in life.items()}
    drawing = spaces_over(big, most=2000)
    assert drawing.meta['n'] == 2000 and 'sampled from 3,600' in drawing.meta['note']
    assert len(drawing.fragment()) < 600_000 and len(drawing.png()) < 300_000


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'alone': {'befor': {}}}, 'before'),
        ({'alone': {'before': {'images': 1}}}, 'image'),
        ({'colour': 'kinds'}, 'kind'),
        ({'picture': 'text'}, 'image modality'),
    ],
)
def test_unknown_names_are_named(life, shop, change, said):
    with pytest.raises(DataError, match=said):
        spaces_over(life, shop, **change)


def test_checkpoints_look_and_never_steer(request):
    pytest.importorskip('torch', reason='training needs torch')
    checkpoint = request.getfixturevalue('checkpoint')
    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.studio import make_studio
    from vlm2rec_lab.train import train

    split = make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)
    how = dict(steps=6, batch=8, eval_every=0, progress=False)
    plain = train(VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu', seed=0), split, 'sft', **how)
    embedder = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu', seed=0)
    seen = Checkpoints(embedder, split).note('before')
    watched = train(embedder, split, 'sft', callback=seen.watch('SFT', 3), **how)
    assert watched.frame.loss.tolist() == plain.frame.loss.tolist()
    assert list(seen.items) == ['before', 'SFT 3', 'SFT 6'] == list(seen.alone)
    assert np.array_equal(seen.items['SFT 6']['text'], np.asarray(embedder.encode_items(split.catalogue)['text']))
    figure = seen.drawing().meta['film']['figures'][0]
    assert figure['name'] == 'NDCG@10 alone' and figure['values'][0][1] == seen.alone['before']['image']
    with pytest.raises(DataError, match='already'):
        seen.note('before')
    with pytest.raises(ValueError, match='every=0'):
        seen.watch('SFT', 0)


VIEW = "document.querySelector('.v2w').view"


def shot(page, name):
    if os.environ.get('VLM2REC_SHOTS'):
        page.locator('.v2w').first.screenshot(path=Path(os.environ['VLM2REC_SHOTS']) / f'{name}.png')


def settled(page):
    "Wait for the points to arrive, and give the mean distance of the second panel's points from its middle."
    page.wait_for_timeout(800)
    return page.evaluate(f'{VIEW}.panels.map(p => [...p.xy].reduce((a, v) => a + Math.abs(v - 0.5), 0) / p.xy.length)')


def slide(page):
    "What a notebook and a page can do: the slider, its keys, stops, and what stays linked."
    assert page.locator('.film .frame').text_content() == 'before'
    wide = settled(page)
    page.locator('.film input[type=range]').focus()
    page.keyboard.press('ArrowRight')
    assert page.locator('.film .frame').text_content() == PLANTED
    assert page.locator('.film input').get_attribute('aria-valuetext') == f'{PLANTED}, 2 of 3'
    dead = settled(page)
    assert dead[1] < 0.3 * wide[1] and dead[0] == pytest.approx(wide[0], rel=0.01)
    assert page.locator('.panel').nth(1).locator('dl.figures dd').first.text_content() == '0.020'
    assert 'image 0.020' in page.locator('.v2w .live').text_content()
    page.keyboard.press('ArrowLeft')
    assert page.locator('.film .frame').text_content() == 'before'
    page.locator('.stops button', has_text='after').click()
    assert page.locator('.stops button', has_text='after').get_attribute('aria-pressed') == 'true'
    assert settled(page)[1] > 2 * dead[1]


def linked(page):
    "A product that is pinned and one that is selected stay so, and the nearest products are those of the frame."
    page.locator('.plot').first.focus()
    page.keyboard.press('ArrowRight')
    page.keyboard.press('Enter')
    page.keyboard.press(' ')
    page.wait_for_function(f'() => {VIEW}.state.told === {VIEW}.state.pin')
    pinned = page.evaluate(f'{VIEW}.state.pin')

    def listed():
        name = '.near > div:nth-child(2) .row button'
        return page.evaluate(f"[...document.querySelectorAll('{name}')].map(b => b.getAttribute('aria-label'))")

    last = listed()
    page.locator('.stops button').nth(1).click()
    assert page.evaluate(f'[{VIEW}.state.pin, {VIEW}.state.count]') == [pinned, 1]
    assert len(listed()) == 6 and listed() != last


def harmless(page):
    assert not page.errors and not page.outside and page.evaluate('window.planted') is None, page.errors


@pytest.fixture(scope='module')
def saved(tmp_path_factory, life, shop, alone):
    out = tmp_path_factory.mktemp('film')
    spaces_over(life, shop, alone, colour='kind').to_html(out / 'one.html')
    spaces_over({'SFT': life, PLANTED: life}, shop, {'SFT': alone}, colour='kind').to_html(out / 'two.html')
    return out


@pytest.mark.browser
def test_a_page_shows_a_space_die_and_recover(saved, open_page):
    page = open_page()
    page.goto((saved / 'one.html').as_uri())
    page.locator('.v2w .plot').first.wait_for()
    slide(page)
    linked(page)
    shot(page, 'film_page')
    harmless(page)


@pytest.mark.browser
def test_it_plays_to_the_end_and_can_be_paused(saved, open_page):
    page = open_page()
    page.goto((saved / 'one.html').as_uri())
    play = page.locator('.film .play')
    play.click()
    assert play.text_content() == 'Pause'
    page.wait_for_function(f'() => {VIEW}.film.now === 1')
    play.click()
    assert play.text_content() == 'Play'
    page.wait_for_timeout(1800)
    assert page.evaluate(f'{VIEW}.film.now') == 1
    play.click()
    page.wait_for_function(f'() => {VIEW}.film.now === 2')
    page.wait_for_function(f'() => !{VIEW}.film.timer')
    play.click()  # again from the first
    page.wait_for_function(f'() => {VIEW}.film.now === 0')
    harmless(page)


@pytest.mark.browser
def test_nothing_moves_for_whoever_asked_for_calm(saved, open_page):
    page = open_page()
    page.goto((saved / 'one.html').as_uri())
    page.locator('.v2w .plot').first.wait_for()
    half = f"""() => {{
        const view = {VIEW}
        const to = view.film.at(1, 1)
        view.film.go(1)
        return view.panels[1].xy.every((v, k) => v === to[k])
    }}"""
    assert not page.evaluate(half)
    page.emulate_media(reduced_motion='reduce')
    page.reload()
    page.locator('.v2w .plot').first.wait_for()
    assert page.evaluate(half)


@pytest.mark.browser
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_two_models_fit_beside_each_other(saved, open_page, width, dark):
    page = open_page(width, 1500, dark)
    page.goto((saved / 'two.html').as_uri())
    page.locator('.v2w .plot').nth(3).wait_for()
    assert page.locator('.model h3').all_text_contents() == ['SFT', PLANTED]
    assert page.locator('.model').nth(1).locator('dl.figures dd').first.text_content() == 'unknown'
    page.locator('.stops button').nth(1).click()
    settled(page)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    shot(page, f'film_two_{width}_{"dark" if dark else "light"}')
    harmless(page)


@pytest.mark.slow
@pytest.mark.browser
def test_in_jupyterlab(open_page, lab):
    from test_widgets import SHOP, run_notebook

    page = open_page(height=1400)
    cells = (
        f"""{SHOP}
cat, z = shop(90)
from vlm2rec_lab.show.views import spaces_over_view
from collections import namedtuple
def wide(w):
    own = np.eye(5)[np.arange(90) % 5] + 0.2 * np.random.default_rng(0).normal(size=(90, 5))
    return np.concatenate([w * own, np.ones((90, 1))], 1)
text = wide(1)
names = ('before', {PLANTED!r}, 'after')
life = {{name: dict(text=text, image=wide(w)) for name, w in zip(names, (1, .1, .8))}}
alone = {{name: dict(text=.3, image=x) for name, x in zip(names, (.2, .02, .15))}}
view = spaces_over_view(life, cat, alone, colour='kind')
view""",
        'print(len(view.selected), "selected")',
    )
    run_notebook(page, lab, 'film.ipynb', *cells)
    page.locator('.v2w .film').wait_for()
    slide(page)
    linked(page)
    assert page.locator('.jp-Cell.jp-mod-selected .v2w, .v2w').count() == 1
    assert page.evaluate('window.planted') is None


def test_the_page_says_what_it_holds(life, shop, alone):
    page = spaces_over(life, shop, alone).fragment()
    meta = json.loads(re.search('data-blob="meta">([^<]*)<', page)[1])
    assert meta['film']['frames'][1] == PLANTED and 'one scale for all checkpoints' in meta['note']
    pytest.importorskip('anywidget', reason='a view in a notebook needs anywidget')
    assert spaces_over_view(life, shop, alone)._repr_mimebundle_()[0]['image/png']
