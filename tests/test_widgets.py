"""The linked views in a real browser: in JupyterLab on loopback, and as saved pages."""

import os
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from access import hindrances

ROOT = Path(__file__).resolve().parent.parent
PLANTED = '<img src=x onerror=window.planted=1>&lt;b></script>'  # under 60 characters, where titles are cut
SHOP = f'''
import numpy as np, pandas as pd, time
from vlm2rec_lab.data import Catalogue
def shop(n, planted={PLANTED!r}):
    "Products of one colour each: (catalogue, vectors)."
    rng = np.random.default_rng(0)
    images = np.zeros((n, 24, 24, 3), np.uint8)
    images[:] = colour(np.arange(n))[:, None, None]
    titles = [planted if i == 0 else f'product {{i}}' for i in range(n)]
    kinds = [planted if i % 5 == 0 else f'kind {{i % 5}}' for i in range(n)]
    cat = Catalogue(
        ids=tuple(f'id{{i}}' for i in range(n)),
        content={{'image': images}},
        kinds={{'image': 'image'}},
        table=pd.DataFrame({{'title': titles, 'kind': kinds}}),
    )
    centre = rng.normal(size=(5, 16))
    spaces = {{m: 3 * np.roll(centre, k, 1)[np.arange(n) % 5] for k, m in enumerate(('text', 'image'))}}
    return cat, {{m: z + rng.normal(size=(n, 16)) for m, z in spaces.items()}}
def colour(i):
    return np.stack([40 + i * 37 % 200, 40 + i * 91 % 200, 40 + i * 53 % 200], -1).astype(np.uint8)
'''
NAMES = {}
exec(SHOP, NAMES)  # a notebook's cell, and used here too
shop, colour = NAMES['shop'], NAMES['colour']
VIEW = "document.querySelectorAll('.v2w')"
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def run_notebook(page, lab, name, *cells):
    "Open a notebook made of these cells and run them all."
    url, root = lab
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(c) for c in cells],
            metadata={'kernelspec': dict(name='python3', display_name='Python 3', language='python')},
        ),
        root / name,
    )
    page.goto(f'{url}/doc/tree/{name}?token=t&reset')
    page.wait_for_selector('.jp-Notebook .jp-Cell')
    page.locator('#jp-main-statusbar', has_text='| Idle').wait_for()
    if page.locator('.jp-Dialog .jp-mod-accept').count():
        page.locator('.jp-Dialog .jp-mod-accept').first.click()
    page.errors.clear()  # what JupyterLab said while it started
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()


def place(page, panel, *item, view=0):
    "Where an item lies on the screen, brought into view."
    page.locator('.v2w').nth(view).locator('.plot').nth(panel).scroll_into_view_if_needed()
    return page.evaluate(f'([p, i]) => {VIEW}[{view}].view.place(p, ...i)', [panel, list(item)])


def until(page, sign, act, *args, **kwargs):
    "Repeat what a hand does until the page answers: what it aims at may move as long as a busy page settles."
    from playwright.sync_api import TimeoutError

    for left in reversed(range(60)):
        act(page, *args, **kwargs)
        try:
            return page.wait_for_function(sign, timeout=10_000)
        except TimeoutError:
            if not left:
                raise


def point(page, panel, item):
    "The pointer comes to an item from outside."
    page.mouse.move(1, 1)
    page.locator('.v2w .tip.on').wait_for(state='detached')
    page.mouse.move(*place(page, panel, item))


def look(page, panel, item, sign="() => document.querySelector('.v2w .tip.on canvas[data-ready=picture]')"):
    "The pointer rests on an item until its picture is beside it."
    until(page, sign, point, panel, item)


def circle(page, panel, item, r=9):
    "Draw a lasso around one item."
    x, y = place(page, panel, item)
    page.mouse.move(x + r, y)
    page.mouse.down()
    for a in np.linspace(0, 2 * np.pi, 12):
        page.mouse.move(x + r * np.cos(a), y + r * np.sin(a))
    page.mouse.up()


def marked(page, panel, item, view=0):
    "Is something drawn on the upper canvas where an item lies?"
    return page.evaluate(
        f'''([p, i]) => {{
            const q = {VIEW}[{view}].view.panels[p]
            const [x, y] = q.to(i)
            const d = q.top.width / q.top.clientWidth
            const data = q.top.getContext('2d').getImageData((x - 12) * d, (y - 12) * d, 24 * d, 24 * d).data
            return data.some(v => v > 0)
        }}''',
        [panel, item],
    )


def seen(page, selector):
    "The middle pixel of a picture, when it is there."
    page.wait_for_selector(f'{selector}[data-ready=picture]')
    return np.array(
        page.locator(selector).first.evaluate(
            "c => [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data].slice(0, 3)"
        )
    )


def look_and_lasso(page, items=(3, 0)):
    "What both a notebook and a page can do."
    for item in items:
        look(page, 0, item)
        item = page.evaluate(f'{VIEW}[0].view.state.hover')  # another may lie on top
        title = PLANTED if item == 0 else f'product {item}'
        page.locator('.v2w .tip.on', has_text=title).wait_for()
        assert page.locator('.v2w .tip.on').text_content() == title
        assert np.abs(seen(page, f'.v2w .tip.on canvas[data-item="{item}"]') - colour(item).astype(int)).max() < 25, (
            'the wrong picture'
        )
        page.wait_for_function(f'(i) => {VIEW}[0].view.state.told === i', arg=item)  # its neighbours came
        page.wait_for_timeout(100)
        assert marked(page, 1, item) and marked(page, 2, item), 'not marked in the other spaces'
        assert (
            page.locator('.v2w').first.locator('.near .row').count() == 3
            and page.locator('.v2w').first.locator('.near .row button').count() == 18
        )
    until(page, f'() => {VIEW}[0].view.state.count > 0', circle, 0, 3)
    chosen = page.evaluate(f'[...{VIEW}[0].view.state.mask.keys()].filter(i => {VIEW}[0].view.state.mask[i])')
    assert (
        3 in chosen
        and len(chosen) < 60
        and f'{len(chosen)} selected' in page.locator('.v2w .strip').first.text_content()
    )
    return chosen


def keyboard(page):
    "Tab to a panel, walk, pin, select, clear."
    panel = page.locator('.v2w').first.locator('.plot').first
    panel.focus()
    page.keyboard.press('Escape')
    assert page.evaluate(f'{VIEW}[0].view.state.count') == 0

    def state():
        return page.evaluate(f'[{VIEW}[0].view.state.hover, {VIEW}[0].view.state.pin]')

    page.keyboard.press('ArrowRight')
    first = state()[0]
    page.keyboard.press('ArrowRight')
    second = state()[0]
    assert first >= 0 and second >= 0 and first != second
    page.keyboard.press('Enter')
    assert state()[1] == second and page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == 'solid', (
        'the focus cannot be seen'
    )
    page.wait_for_function("() => /Nearest in text/.test(document.querySelector('.v2w .live').textContent)")
    page.keyboard.press(' ')
    assert page.evaluate(f'{VIEW}[0].view.state.count') == 1
    page.keyboard.press('Escape')
    assert state() == [-1, -1] and page.evaluate(f'{VIEW}[0].view.state.count') == 0
    page.keyboard.press('Tab')
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith('image space')


def pairs(page, view):
    "A click on a cell opens the pair with both pictures; the cell is marked in every map."
    until(page, f'() => {VIEW}[{view}].view.state.pin', lambda page: page.mouse.click(*place(page, 2, 4, 9, view=view)))
    assert page.evaluate(f'{VIEW}[{view}].view.state.pin') == [4, 9]
    card = page.locator('.v2w').nth(view).locator('.duet')
    assert (
        card.locator('canvas[data-ready=picture]').count() == 2
        or card.locator('canvas[data-ready=picture]').nth(1).wait_for() is None
    )
    assert page.locator('.v2w').nth(view).locator('tbody tr').count() == 3
    page.wait_for_timeout(100)
    drawn = f'''(p) => {{
        const g = {VIEW}[{view}].view.panels[p].top.getContext('2d')
        return g.getImageData(0, 0, 2000, 2000).data.some(v => v > 0)
    }}'''
    assert all(page.evaluate(drawn, p) for p in range(4))
    page.locator('.v2w').nth(view).locator('.plot').nth(0).focus()
    page.keyboard.press('ArrowDown')
    page.keyboard.press('Enter')
    assert page.evaluate(f'{VIEW}[{view}].view.state.pin') == [5, 9]


def quiet(page):
    assert not page.evaluate('window.planted') and not page.outside and not page.errors, (page.outside, page.errors)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "Both views as pages."
    from vlm2rec_lab.widgets import spaces_drawing, topology_drawing

    out = tmp_path_factory.mktemp('pages')
    cat, vectors = shop(300)
    return spaces_drawing(vectors, cat, colour='kind').to_html(out / 'spaces.html'), topology_drawing(
        vectors, cat, sample=40
    ).to_html(out / 'topology.html')


def test_page_of_spaces(page, saved):
    page.goto(saved[0].as_uri())
    page.wait_for_selector('.v2w .plot')
    look_and_lasso(page)
    keyboard(page)
    page.locator('button[data-tool=box]').click()
    x, y = place(page, 1, 3)
    page.mouse.move(x - 15, y - 15)
    page.mouse.down()
    page.mouse.move(x, y)
    page.mouse.move(x + 15, y + 15)
    page.mouse.up()
    assert page.evaluate(f'{VIEW}[0].view.state.mask[3]') == 1
    page.locator('button[data-tool=lines]').click()
    page.wait_for_timeout(100)
    assert page.evaluate('''() => {
        const c = document.querySelector('.wires')
        return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0)
    }''')
    page.locator('.v2w select').first.select_option(label='nothing')
    page.wait_for_function("() => !document.querySelector('.legend button')")
    quiet(page)


def test_page_of_topology(page, saved):
    page.goto(saved[1].as_uri())
    page.wait_for_selector('.v2w .plot')
    pairs(page, 0)
    page.locator('.strip .duo').first.click()
    assert page.locator('.duet .name').count() == 2
    quiet(page)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_pages_on_a_phone(browser, saved, scheme):
    "Nothing is wider than the screen, nothing lies on top of something else, and colours follow the system."
    for path in saved:
        context = browser.new_context(viewport={'width': 390, 'height': 800}, color_scheme=scheme)
        page = context.new_page()
        page.goto(path.as_uri())
        page.wait_for_selector('.v2w .plot')
        assert page.evaluate('document.documentElement.scrollWidth') <= 390
        boxes = page.evaluate('''() => [...document.querySelectorAll('.panel')].map(e => {
            const b = e.getBoundingClientRect()
            return [b.left, b.top, b.right, b.bottom]
        })''')
        assert all(b[2] - b[0] > 120 and b[3] - b[1] > 120 for b in boxes)
        assert all(
            a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 1 or b[3] <= a[1] + 1
            for k, a in enumerate(boxes)
            for b in boxes[:k]
        )
        assert (
            sum(
                page.evaluate(
                    "getComputedStyle(document.querySelector('.v2w')).backgroundColor.match(/\\d+/g).map(Number)"
                )[:3]
            )
            < 200
        ) == (scheme == 'dark')
        context.close()


def test_both_views_on_one_page(page, tmp_path):
    "Fragments of several views live beside each other."
    from vlm2rec_lab.widgets import spaces_drawing, topology_drawing

    cat, vectors = shop(60)
    (tmp_path / 'both.html').write_text(
        '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body>'
        + spaces_drawing(vectors, cat).fragment()
        + topology_drawing(vectors, cat).fragment()
    )
    page.goto((tmp_path / 'both.html').as_uri())
    page.wait_for_selector('.v2w .panel.thin')
    look_and_lasso(page, items=(3,))
    pairs(page, 1)
    quiet(page)


def test_in_jupyterlab(page, lab, axe):
    run_notebook(
        page,
        lab,
        'views.ipynb',
        SHOP,
        '''
from ipywidgets import Button, Label
from vlm2rec_lab.widgets import spaces_view, topology_view
cat, vectors = shop(1200)  # more than travel with the widget: pictures are asked for
view, heard = spaces_view(vectors, cat, method='pca', colour='kind'), Label('none')
heard.add_class('t-ids')
view.observe(lambda c: setattr(heard, 'value', ' '.join(c.new) or 'none'), 'selected')
button = Button(description='choose')
button.add_class('t-choose')
button.on_click(lambda _: setattr(view, 'selected', ('id7', 'id8')))
display(view, heard, button)''',
        '''
t, pair = topology_view(vectors, cat, sample=40), Label('none')
pair.add_class('t-pair')
t.observe(lambda c: setattr(pair, 'value', ' '.join(c.new)), 'selected')
display(t, pair)''',
        '''
umap = spaces_view(*reversed(shop(80)), method='umap')
umap''',
    )
    page.wait_for_selector('.v2w .panel.thin')
    chosen = look_and_lasso(page)
    page.locator('.t-ids', has_text=' '.join(f'id{i}' for i in chosen)).wait_for()
    page.locator('.t-choose').click()
    page.wait_for_function(f'() => {VIEW}[0].view.state.count === 2 && {VIEW}[0].view.state.mask[7]')
    keyboard(page)
    page.locator('.t-ids', has_text='none').wait_for()
    page.locator('.v2w').first.locator('.plot').first.focus()
    for key in ('0', '0', 'd', 'd'):
        page.keyboard.press(key)  # JupyterLab's own: restart the kernel, delete the cell
    page.wait_for_timeout(300)
    assert page.locator('.jp-Dialog').count() == 0 and page.locator('.t-ids').count() == 1
    pairs(page, 1)
    page.wait_for_function("() => document.querySelector('.t-pair').textContent.split(' ').length === 2")
    page.wait_for_function(f"() => [...{VIEW}[2].querySelectorAll('option')].some(o => o.value === 'umap')")
    page.wait_for_function(f"() => !{VIEW}[2].textContent.includes('being computed')")
    assert page.evaluate(f'{VIEW}[2].view.state.method') == 'umap'
    quiet(page)
    for theme, width in (('Dark', 1280), ('Dark', 390), ('Light', 390), ('Light', 1280)):
        page.evaluate(f'window.jupyterapp.commands.execute("apputils:change-theme", {{theme: "JupyterLab {theme}"}})')
        page.wait_for_function(f'() => document.body.dataset.jpThemeLight === "{str(theme == "Light").lower()}"')
        page.set_viewport_size({'width': width, 'height': 1600})
        page.wait_for_timeout(800)
        assert not (found := hindrances(page, axe, '.v2w')), (theme, width, found)


BIG = '''
import time, tempfile
from pathlib import Path
from vlm2rec_lab.studio import make_studio
from vlm2rec_lab.widgets import spaces_view, spaces_drawing
def big_shop(n, d=64):
    "The studio's pictures again and again, as files, under names of their own."
    from PIL import Image
    few = make_studio('text-easy', seed=0, items=300, users=20).catalogue
    rng, folder = np.random.default_rng(0), Path(tempfile.mkdtemp())
    for i, a in enumerate(few.content['image']):
        Image.fromarray(a).save(folder / f'{i}.jpg', quality=90)
    kind = rng.integers(0, 40, n)
    centre = 2 * rng.normal(size=(40, d)).astype(np.float32)
    spaces = {m: np.roll(centre, k, 1)[kind] for k, m in enumerate(('text', 'image'))}
    vectors = {m: z + rng.normal(size=(n, d)).astype(np.float32) for m, z in spaces.items()}
    titles = [f'{few.table.title[i % 300]} {i}' for i in range(n)]
    table = pd.DataFrame({'title': titles, 'kind': [f'kind {k}' for k in kind], 'price': rng.normal(size=n)})
    files = [str(folder / f'{i % 300}.jpg') for i in range(n)]
    ids = tuple(f'id{i}' for i in range(n))
    return Catalogue(ids=ids, content={'image': files}, kinds={'image': 'image'}, table=table), vectors
'''


# Starts a clock at the pointer's next move, and stops it when the picture of what it came to is there.
CLOCK = '''() => {
    const state = document.querySelector('.v2w').view.state
    const before = state.hover
    window.took = null
    addEventListener('pointermove', () => {
        const start = performance.now()
        const look = () => {
            const picture = `.v2w .tip.on canvas[data-item="${state.hover}"][data-ready=picture]`
            if (state.hover !== before && document.querySelector(picture)) window.took = performance.now() - start
            else requestAnimationFrame(look)
        }
        requestAnimationFrame(look)
    }, {once: true, capture: true})
}'''


def hover_times(page, n, tries=12):
    "Milliseconds from the pointer's arrival to the picture beside it, median and largest."
    out = []
    for item in np.random.default_rng(1).integers(0, n, tries):
        x, y = place(page, int(item) % 3, int(item))
        page.mouse.move(x - 150, y + 220 if y < 300 else y - 220)
        page.wait_for_timeout(150)
        page.evaluate(CLOCK)
        page.mouse.move(x, y)
        page.wait_for_timeout(400)
        took = page.evaluate('window.took')
        if took:
            out.append(took)  # none where the pointer was on this product before
    assert len(out) > tries / 2
    return f'picture beside the pointer after {np.median(out):.0f} ms (median of {len(out)}; largest {max(out):.0f})'


def big_lasso(page):
    "Around the left half of the first panel."
    b = page.locator('.v2w .plot').first.bounding_box()
    path = [(0.03, 0.03), (0.5, 0.03), (0.5, 0.97), (0.03, 0.97)]
    page.mouse.move(b['x'] + 0.03 * b['width'], b['y'] + 0.5 * b['height'])
    page.mouse.down()
    for u, v in path:
        page.mouse.move(b['x'] + u * b['width'], b['y'] + v * b['height'], steps=6)
    start = time.time()
    page.mouse.up()
    return start


def test_twenty_thousand_in_a_page(page, tmp_path):
    names = {}
    exec(SHOP + BIG, names)
    cat, vectors = names['big_shop'](20_000)
    start = time.time()
    path = names['spaces_drawing'](vectors, cat).to_html(tmp_path / 'big.html')
    wrote, size = time.time() - start, path.stat().st_size
    start = time.time()
    page.goto(path.as_uri())
    page.wait_for_function(f'() => {VIEW}[0]?.view?.panels[2].w')
    shown = time.time() - start
    hover = hover_times(page, 20_000)
    start = big_lasso(page)
    page.wait_for_function(f'() => {VIEW}[0].view.state.count > 1000')
    took, count = time.time() - start, page.evaluate(f'{VIEW}[0].view.state.count')
    print(
        f'20,000 products in a page: {size / 1e6:.1f} MB, written in {wrote:.1f} s, drawn after {shown:.1f} s, '
        f'{hover}, lasso of {count:,} in all panels after {took:.2f} s'
    )
    assert size < 25e6
    quiet(page)


def test_a_hundred_thousand_in_jupyterlab(page, lab):
    run_notebook(
        page,
        lab,
        'big.ipynb',
        SHOP
        + BIG
        + '''
from ipywidgets import Label
cat, vectors = big_shop(100_000)
import anywidget, sklearn.decomposition, sklearn.manifold
heard = Label('none')
heard.add_class('t-ids')
display(heard)''',
        '''
start = time.time()
view = spaces_view(vectors, cat, method='pca')
view.observe(lambda c: setattr(heard, 'value', f'{len(c.new)} ids'), 'selected')
made = Label(f'{start} {time.time()}')
made.add_class('t-made')
display(made, view)''',
    )
    page.wait_for_function(f'() => {VIEW}[0]?.view?.panels[2].w', polling=20)
    seen_at = time.time()
    began, made = map(float, page.locator('.t-made').text_content().split())
    page.wait_for_timeout(1000)
    hover = hover_times(page, 100_000)
    start = big_lasso(page)
    page.locator('.t-ids', has_text='ids').wait_for()
    took, said = time.time() - start, page.locator('.t-ids').text_content()
    if os.environ.get('SHOT'):
        page.screenshot(path=os.environ['SHOT'])
    print(
        f'100,000 products in JupyterLab: made in {made - began:.1f} s, '
        f'seen {seen_at - began:.1f} s after the cell began, {hover}, lasso of {said} in Python after {took:.2f} s'
    )
    assert said == f'{page.evaluate(VIEW + "[0].view.state.count")} ids'
    quiet(page)
