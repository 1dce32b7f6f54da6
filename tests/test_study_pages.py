"""The pages of `vlm2rec study` and `vlm2rec downstream`: on a telephone, on paper and on a dark screen."""

import numpy as np
import pandas as pd
import pytest
from access import hindrances
from test_diagnosis_pages import BROKEN

from vlm2rec_lab.recommenders.downstream import write_downstream
from vlm2rec_lab.studies.cell import TRAINING
from vlm2rec_lab.studies.study import write_study
from vlm2rec_lab.studies.table import readable, study_table

MODALITIES = ('text', 'image', 'specs')
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def cell(remedy, seed):
    "A cell of three modalities, as `run_cell` gives it, with drawn ranks."
    rng = np.random.default_rng([seed, *remedy.encode()])
    ranks = {
        v: [rng.integers(0, 30, 50).tolist(), [0] * 50, [60] * 50] for v in (*MODALITIES, 'fused', 'sum', 'concat')
    }
    terms = {f'{a}-{b}': rng.random(2).tolist() for a in MODALITIES for b in MODALITIES}
    asked = dict(condition='three', remedy=remedy, seed=seed, missing={}, settings={}, training=TRAINING)
    return asked | dict(ranks=ranks, cold=[False] * 40 + [True] * 10, terms=terms, agreement={'text-image': 0.1})


CELLS = [cell(r, s) for r in ('sft', 'vlm2rec', 'experts', 'per-modality, apart') for s in range(2)]
ITEMS = [('ids', 'random ids'), *((how, f'{s} fused') for how in ('init', 'frozen') for s in ('raw', 'sft', '<b>'))]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Both pages."
    out, rng = tmp_path_factory.mktemp('pages'), np.random.default_rng(0)
    write_study(CELLS, out, 'vlm2rec study')
    runs = [
        dict(items=items, how=how, seed=s, group=g) | {'NDCG@10': rng.random() / 10}
        for how, items in ITEMS
        for s in range(3)
        for g in ('all', 'warm', 'cold')
    ]
    write_downstream(pd.DataFrame(runs), out, 'a shop', 'vlm2rec downstream')
    return out


@pytest.mark.parametrize('name', ['study', 'downstream'])
def test_on_a_telephone_the_page_stays_in_the_window_and_figures_stay_whole(folder, open_page, name):
    page = open_page(width=390)
    page.goto((folder / f'{name}.html').as_uri())
    page.wait_for_selector('.js-plotly-plot .main-svg')
    assert page.evaluate('document.documentElement.scrollWidth') == 390
    assert page.locator('.folds').count() and page.evaluate(BROKEN) == []


@pytest.mark.parametrize('name', ['study', 'downstream'])
def test_paper_is_wide_enough(folder, open_page, name):
    "The figure was drawn as wide as a large screen."
    page = open_page(width=1600)
    page.goto((folder / f'{name}.html').as_uri())
    page.wait_for_selector('.js-plotly-plot .main-svg')
    wide = "document.querySelector('.main-svg').getBoundingClientRect().width"
    before = page.evaluate(wide)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media='print')
    assert before > 1000 and page.evaluate(wide) <= 700
    page.emulate_media(media='screen')
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(wide) == before
    page.set_viewport_size(dict(width=718, height=1000))
    page.emulate_media(media='print')
    tables = page.locator('table').evaluate_all('es => es.map(e => e.getBoundingClientRect().right)')
    assert tables and max(tables) <= 718


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('name', ['study', 'downstream'])
def test_the_page_hinders_nobody(folder, open_page, axe, name, dark):
    page = open_page(dark=dark)
    page.goto((folder / f'{name}.html').as_uri())
    page.wait_for_selector('.js-plotly-plot .main-svg')
    assert not (found := hindrances(page, axe)), found


def test_figures_are_those_of_the_table_beside_them(folder, open_page):
    page = open_page()
    page.goto((folder / 'downstream.html').as_uri())
    shown = [row.split('\t') for row in page.locator('table').inner_text().split('\n')]
    beside = pd.read_csv(folder / 'table.csv')
    assert shown[0] == ['items', 'how', 'NDCG@10 all', 'NDCG@10 warm', 'NDCG@10 cold', 'seeds']
    for row, (_, want) in zip(shown[1:], beside.iterrows(), strict=True):
        assert row[:2] == [want['items'], want['how']]
        figures = [float(x) for x in row[2].split(' ± ')]
        assert figures == pytest.approx([want['NDCG@10 all'], want['NDCG@10 all spread']], abs=6e-5)


def test_what_every_modality_keeps_is_shown_and_no_zero_has_a_minus():
    shown = readable(study_table(CELLS, draws=50))
    assert {f'{m} kept, %' for m in MODALITIES} <= set(shown)
    assert readable(pd.DataFrame({'fused': [-0.0002]}))['fused'].tolist() == ['0.000']
