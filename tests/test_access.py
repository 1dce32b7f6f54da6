"""Nothing serious hinders those who read a report, or look at the pages of the views, by axe-core, in light and dark,
on a screen and on a phone. The site is judged in test_docs.py, live widgets in test_live.py and test_widgets.py."""

import numpy as np
import pandas as pd
import pytest
from access import hindrances

from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.diagnosis.compare import compare
from vlm2rec_lab.diagnosis.worlds import hurt, world
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.show.drawing import spaces_drawing, topology_drawing
from vlm2rec_lab.show.frames import spaces_over

pytestmark = [pytest.mark.slow, pytest.mark.browser]
PAGES = ('report', 'pair', 'profile', 'spaces', 'topology', 'film')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A page of each kind."
    out, how = tmp_path_factory.mktemp('pages'), dict(bootstrap=100, progress=False)
    before = world(users=400, n_items=120, seed=0)
    after = hurt(before, 'image', 'noise', 1)
    reference = {side: before[side] for side in ('items', 'sequences')}
    report = collapse_report(**after, reference=reference, **how)
    report.save(out / 'report.html')
    compare(report, collapse_report(**before, **how)).save(out / 'pair.html')
    studio = make_studio('text-easy', seed=0, items=120, users=60)
    studio.profile().save(out / 'profile.html')
    spaces_drawing(before['items'], studio.catalogue, colour='category').to_html(out / 'spaces.html')
    topology_drawing(before['items'], studio.catalogue).to_html(out / 'topology.html')
    frames = {'before': before['items'], 'after': after['items']}
    spaces_over(frames, studio.catalogue).to_html(out / 'film.html')
    return out


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('name', PAGES)
def test_a_page_hinders_nobody(folder, open_page, axe, name, width, dark):
    page = open_page(width, 900, dark)
    page.goto((folder / f'{name}.html').as_uri())
    if name in ('spaces', 'topology', 'film'):
        page.wait_for_selector('.v2w .panel')
        page.wait_for_timeout(500)
    assert not (found := hindrances(page, axe)), found


def test_colours_that_say_something_are_there_where_colours_are_forced(folder, page):
    page.emulate_media(forced_colors='active')
    page.goto((folder / 'spaces.html').as_uri())
    page.wait_for_selector('.v2w .legend .dot')
    ground = 'x => x.map(e => getComputedStyle(e).backgroundColor)'
    assert len(set(page.locator('.v2w .legend .dot').evaluate_all(ground))) == page.locator('.v2w .legend .dot').count()
    chosen, *others = page.locator('.v2w .tools button[aria-pressed]').evaluate_all(ground)
    assert chosen not in others  # the tool in hand
    page.goto((folder / 'topology.html').as_uri())
    page.wait_for_selector('.v2w .scale i')
    assert 'gradient' in page.locator('.v2w .scale i').evaluate('e => getComputedStyle(e).backgroundImage')


def test_long_names_of_groups_leave_room_for_the_maps(open_page, tmp_path):
    rng, long = np.random.default_rng(0), ('x' * 300, 'word ' * 80, 'short')
    table = pd.DataFrame({'title': [f't{i}' for i in range(30)], 'kind': [long[i % 3] for i in range(30)]})
    ids = tuple(f'i{i}' for i in range(30))
    shop = Catalogue(ids=ids, content={'text': list(table.title)}, kinds={'text': 'text'}, table=table)
    spaces_drawing({'text': rng.normal(size=(30, 4))}, shop, colour='kind').to_html(tmp_path / 'x.html')
    page = open_page(390, 900)
    page.goto((tmp_path / 'x.html').as_uri())
    page.wait_for_selector('.v2w .legend button')
    assert max(b['height'] for b in boxes(page, '.v2w .legend button')) < 60
    keys = page.locator('.v2w .legend button')
    assert keys.filter(has_text=long[0]).get_attribute('title').startswith(long[0])  # all of it is there
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')


def boxes(page, where):
    return [e.bounding_box() for e in page.locator(where).all()]


def test_a_hindrance_is_found(page, axe):
    page.set_content('<html lang="en"><title>x</title><main><h1>x</h1><button></button></main>')
    assert any('button-name' in line for line in hindrances(page, axe))
