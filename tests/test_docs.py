"""The documentation's site: it builds without a warning, leads everywhere it says, asks for nothing outside itself,
and looks right in a browser."""

import io
import json
import os
import re
import shlex
import shutil
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import site_access
import site_sidebar
import site_terminal
from access import hindrances

import docs
import site_api
import site_cells
import site_scripts

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / 'docs').glob('*.md'))


@contextmanager
def served(folder):
    "A folder on loopback: its address."
    with docs.server(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, built once; Sphinx takes every warning for an error."
    folder = tmp_path_factory.mktemp('docs') / 'site'
    made = docs.build(folder)
    print(f'site: {made["pages"]} pages, {made["bytes"] / 1e6:.1f} MB, {made["seconds"]:.0f} s')
    return folder


class Page(HTMLParser):
    "What a page refers to, and what can be referred to in it."

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids, self.style = [], [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k) and (k == 'id' or tag == 'a')}
        if tag in ('a', 'area') and a.get('href') is not None:
            self.links.append(a['href'])
        if tag == 'link' and not {'next', 'prev', 'search', 'index', 'canonical'} & set(a.get('rel', '').split()):
            self.loads.append(a.get('href', ''))
        if tag in ('script', 'img', 'iframe', 'source', 'video', 'audio', 'embed', 'input', 'track'):
            self.loads += filter(None, [a.get('src')])
        if tag == 'object':
            self.loads += filter(None, [a.get('data')])
        self.loads += [part.split()[0] for part in (a.get('srcset') or '').split(',') if part.strip()]
        self.style.append(a.get('style') or '')
        self.raw = tag == 'style'

    def handle_data(self, data):
        if getattr(self, 'raw', False):
            self.style.append(data)


@pytest.fixture(scope='module')
def pages(site):
    return {p: Page(p) for p in sorted(site.rglob('*.html')) if '_static' not in p.relative_to(site).parts}


def foreign(url):
    return bool(urlsplit(url).netloc) or urlsplit(url).scheme not in ('', 'data', 'mailto')


@pytest.mark.slow
def test_every_link_and_anchor(site, pages):
    lost = []
    for path, page in pages.items():
        for link in page.links:
            if foreign(link) or link.startswith('mailto:'):
                continue
            where, _, anchor = link.partition('#')
            to = (path.parent / unquote(where.split('?')[0])).resolve() if where else path
            if to.is_dir():
                to /= 'index.html'
            if not to.is_file():
                lost.append((path.name, link))
            elif anchor and to in pages and unquote(anchor) not in pages[to].ids:
                lost.append((path.name, link))
    assert not lost, lost[:20]
    assert sum(len(p.links) for p in pages.values()) > 2000


@pytest.mark.slow
def test_nothing_from_outside(site, pages):
    for path, page in pages.items():
        assert not [u for u in page.loads if foreign(u)], path.name
        for u in page.loads:
            assert u.startswith('data:') or (path.parent / unquote(u.split('?')[0].split('#')[0])).exists(), (
                path.name,
                u,
            )
        assert not re.search(r'url\(\s*["\']?(?:https?:)?//|@import\s+["\']?(?:https?:)?//', ' '.join(page.style)), (
            path.name
        )
    for css in site.rglob('*.css'):
        assert not re.search(
            r'url\(\s*["\']?(?:https?:)?//|@import\s+(?:url\()?["\']?(?:https?:)?//', css.read_text()
        ), css.name


@pytest.mark.slow
def test_no_folder_of_the_machine_and_no_code_of_a_terminal(site):
    for f in site.rglob('*'):
        if f.suffix in ('.html', '.js') and f.is_file():
            assert str(ROOT) not in f.read_text(errors='ignore'), f.name
        if f.suffix == '.html':
            assert '\x1b' not in f.read_text(), f'{f.name} shows codes of colours as letters'


@pytest.mark.slow
def test_every_notebook_figure_and_function_is_there(site, pages):
    rooms = site_api.rooms()
    for notebook in rooms.values():
        assert site / 'nbs' / f'{notebook}.html' in pages
    for path in docs.sources():
        nb = json.loads(path.read_text())
        figures = sum(site_cells.PLOTLY in o.get('data', {}) for c in nb['cells'] for o in c.get('outputs', []))
        here = path.relative_to(ROOT).with_suffix('.html')
        built = site / ('index.html' if path.stem == 'index' else here)
        assert built.read_text().count('class="lab-figure"') == figures, path.stem
    for room in rooms:
        there = api(site, room)
        ids = pages[there].ids
        assert not [n for n in site_api.own(room) if f'{docs.PACKAGE}.{room}.{n}' not in ids], room
        links = pages[there].links
        for name, to in site_api.handed_on(room).items():
            assert any(link.endswith(f'#{docs.PACKAGE}.{to}.{name}') for link in links), (room, name)
    said = api(site, 'diagnosis.report').read_text()
    assert 'of each modality across items' in said
    assert any(
        link.endswith('#diagnosis.report.collapse_report') for link in pages[api(site, 'diagnosis.report')].links
    )
    for room, method in (
        ('shop.catalogue', 'Interactions.from_frame'),
        ('model.embedder', 'VLMEmbedder.from_pretrained'),
        ('show.drawing', 'Drawing.to_html'),
    ):  # added to their classes later
        assert f'{docs.PACKAGE}.{room}.{method}' in pages[api(site, room)].ids, method


def api(site, room):
    "The API page of a room."
    return site / 'api' / f'{site_api.place_of(room)}.html'


def test_tables_of_contents_of_the_api_name_pages_that_are_there(tmp_path):
    site_api.write_api(tmp_path / 'api')
    there, named = {p for p in (tmp_path / 'api').rglob('*.md')}, []
    for page in there:
        entries = page.read_text().partition(':hidden:\n')[2].partition('```')[0].split()
        named += [page.parent / f'{e}.md' for e in entries]
    assert len(named) == len(set(named)) and set(named) == there - {tmp_path / 'api' / 'index.md'}


def test_every_exported_name_has_a_place_in_the_api():
    for room in site_api.rooms():
        places = {*site_api.own(room), *site_api.handed_on(room), *site_api.late(room)}
        assert set(site_api.exported(room)) == places, room


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize('width', (1200, 390))
@pytest.mark.parametrize('theme', ('light', 'dark'))
def test_in_a_browser(site, open_page, width, theme):
    page = open_page(width, 900, theme == 'dark')
    page.on('response', lambda r: page.errors.append(f'{r.status} {r.url}') if r.status >= 400 else None)
    with served(site) as base:
        for name in (
            'index',
            'docs/start',
            'docs/alive',
            'docs/pictures',
            'docs/watch',
            'docs/method',
            'docs/own_vectors',
            'docs/house',
            'nbs/06_widgets',
            'nbs/11_studies/04_study',
            'api/diagnosis/report',
        ):
            page.goto(f'{base}{name}.html')
            assert page.evaluate('document.documentElement.dataset.theme') == theme
            assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth + 1'), (
                f'{name} is wider than the window'
            )
            for k in range(page.locator('.lab-figure').count()):
                figure = page.locator('.lab-figure').nth(k)
                figure.scroll_into_view_if_needed()
                figure.locator('.main-svg').first.wait_for()
            for frame in page.locator('iframe.lab-page').all():
                assert (
                    frame.evaluate('f => f.contentDocument.documentElement.dataset.theme') == theme
                    and frame.bounding_box()['height'] > 200
                )
            if 'watch' in name:
                assert page.locator('iframe.lab-page').count() == 2
            if 'method' in name:
                page.locator('mjx-container svg').first.wait_for()
            assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth + 1'), (
                f'{name} with its figures is wider than the window'
            )
            assert readable(page), f'{name}: text and ground are too alike'
    assert not page.outside and not page.errors, (page.outside, page.errors)


READABLE = '''() => {
  const rgb = s => (s.match(/[\\d.]+/g) || []).map(Number);
  const linear = x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = c => .2126 * linear(c[0]) + .7152 * linear(c[1]) + .0722 * linear(c[2]);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > .9) return c;
    }
    return [255, 255, 255];
  };
  const where = '.bd-article p, .bd-article td, .bd-article h2, .v2r h4, .v2r figcaption, .v2r .card';
  const shown = e => e.offsetParent && e.innerText.trim() && getComputedStyle(e).color.startsWith('rgb');
  return [...document.querySelectorAll(where)].filter(shown).every(e => {
    const a = light(rgb(getComputedStyle(e).color)), b = light(ground(e));
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) > 3;
  });
}'''


def readable(page):
    "Contrast of the page's own text and of reports, against the nearest ground that is not transparent."
    return page.evaluate(READABLE)


@pytest.mark.slow
@pytest.mark.browser
def test_search_finds(site, page):
    with served(site) as base:
        page.goto(f'{base}search.html?q=collapse_report')
        page.locator('ul.search li a[href*="api/diagnosis/report.html"]').first.wait_for()  # the list grows
        found = page.locator('ul.search li a').evaluate_all('links => links.map(a => a.getAttribute("href"))')
        page.goto(f'{base}search.html?q=knockout')
        page.locator('ul.search li a').first.wait_for()
        words = page.locator('ul.search li').all_inner_texts()
    assert any('api/diagnosis/report.html' in f for f in found), found[:10]
    assert any('Evidence' in w for w in words), words[:10]


ANSWERS = [  # what is asked, the page that answers, among the first so many
    ('collapse', 'docs/alive.html', 1),
    ('out of memory', 'docs/troubleshooting.html', 1),
    ('troubleshooting', 'docs/troubleshooting.html', 1),
    ('glossary', 'docs/glossary.html', 1),
    ('install cuda', 'docs/gpu.html', 1),
    ('offline', 'docs/troubleshooting.html', 2),
    ('own model', 'docs/your_model.html', 1),
    ('compare tools', 'docs/compare.html', 3),
]


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_that_answers_comes_first(site, page):
    found = {}
    with served(site) as base:
        for words, _, _ in ANSWERS:
            page.goto(f'{base}search.html?q={words.replace(" ", "+")}')
            page.locator('ul.search li a').first.wait_for()
            page.wait_for_function(
                'document.querySelector("#search-progress, .search-summary")?.innerText.match(/found|match/i)'
            )
            page.wait_for_timeout(500)  # the list grows
            links = page.locator('ul.search li a').evaluate_all('all => all.map(a => a.getAttribute("href"))')
            found[words] = list(dict.fromkeys(link.split('?')[0].split('#')[0] for link in links))
    wrong = {w: found[w][:5] for w, to, n in ANSWERS if not any(link.endswith(to) for link in found[w][:n])}
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize('width', (1280, 390))
def test_the_first_screen_says_what_it_is_and_what_to_do(site, open_page, width):
    page = open_page(width, 900)
    with served(site) as base:
        page.goto(f'{base}index.html')
        front = page.locator('.lab-front')
        assert 'image collapsed' in front.locator('.lab-verdict').inner_text()
        lines = front.locator('pre').all_inner_texts()
        assert 'collapse_report' in lines[0] and len(lines[0].strip().splitlines()) == 3
        assert [line.split()[0] for line in lines[1].strip().splitlines()] == ['make', 'vlm2rec']
        spaces = page.frame_locator('iframe.lab-page').locator('.panel')
        spaces.nth(1).wait_for()
        assert spaces.count() == 2 and not page.frame_locator('iframe.lab-page').locator('.bar').is_visible()
        assert all(p.bounding_box()['y'] < 900 for p in front.locator('pre').all())
        if width == 1280:
            box = spaces.nth(1).bounding_box()
            assert box['y'] + box['height'] < 960, box
    assert not page.errors and not page.outside


@pytest.mark.slow
@pytest.mark.browser
def test_print_has_all_figures_on_white(site, open_page):
    page = open_page(1200, 900, True)
    with served(site) as base:
        page.goto(f'{base}docs/alive.html')
        there = page.locator('.lab-figure').count()
        assert there == 2
        page.pdf()
        assert page.locator('.lab-figure:has(.main-svg)').count() == there
        page.emulate_media(media='print')
        page.evaluate('dispatchEvent(new Event("beforeprint"))')
        inks = page.evaluate(
            "[...document.querySelectorAll('.lab-figure .xtick text')].map(t => getComputedStyle(t).fill)"
        )
        assert set(inks) == {'rgb(50, 50, 50)'}, set(inks)


@pytest.mark.slow
@pytest.mark.browser
def test_code_in_tables_breaks_between_words_only(site, open_page):
    page = open_page(390, 800)
    with served(site) as base:
        for name in ('docs/fast', 'docs/your_model', 'docs/house', 'api/index'):
            page.goto(f'{base}{name}.html')
            heights = page.evaluate(
                "[...document.querySelectorAll('.bd-article td code span.pre')]"
                '.filter(e => e.getClientRects().length > 1).map(e => e.textContent)'
            )
            assert not heights, (name, heights[:5])


@pytest.mark.slow
@pytest.mark.browser
def test_a_page_that_is_not_there(site, page):
    with served(site) as base:
        assert page.goto(f'{base}nbs/02_old_model.html').status == 404
        page.get_by_role('heading', name='No such page').wait_for()
        assert page.get_by_label('Search the documentation').input_value() == 'old model'
        page.get_by_role('button', name='Search').click()
        page.locator('ul.search li a').first.wait_for()
        page.goto(f'{base}docs/nowhere/at/all.html')
        page.get_by_text('To the first page').click()
        page.wait_for_url(f'{base}index.html')


def test_an_executed_page_is_kept_by_content(tmp_path, monkeypatch):
    """A second clone takes it from the shared folder, without this one's folders in it, and old versions go."""
    page, cache = tmp_path / 'kept.md', tmp_path / 'pages'
    page.write_text("# Kept\n\n```python\nimport os\n\nprint(os.environ['LAB_ROOT'] + '/data')\n```\n")
    said = site_cells.execute_page(page, cache).cells[1].outputs[0].text
    monkeypatch.setattr(site_cells, 'run_page', lambda nb, name: pytest.fail('it ran again'))
    again = site_cells.execute_page(page, cache).cells[1].outputs[0].text
    assert said == f'{ROOT}/data\n' and again == 'data\n'
    for k in range(site_cells.KEPT + 2):
        site_cells.keep_page(cache / f'kept-{k:016x}.ipynb', site_cells.page_notebook('# Kept'), 'kept')
    assert len(list(cache.glob('kept-*.ipynb'))) == site_cells.KEPT


def test_a_page_follows_scripts_and_shipped_vectors(monkeypatch):
    page = ROOT / 'docs' / 'cite.md'
    before, seen = site_cells.fingerprint(page), []
    read = Path.read_bytes
    monkeypatch.setattr(Path, 'read_bytes', lambda self: seen.append(self.name) or read(self))
    assert site_cells.fingerprint(page) == before
    assert {'spaces.js', 'report.css', 'sft.npz', 'report.csv.gz', 'cite.md'} <= set(seen)


CODE = """
```python
from vlm2rec_lab.ranking.fusions import fuse
```
"""
COMMAND = """
```console
$ vlm2rec evaluate x.npz
```
"""


@pytest.mark.parametrize(
    ('text', 'follows', 'stays'),
    [
        ('# Nothing runs', (), ('cli', 'ranking.fusions', 'share.door')),
        (CODE, ('ranking.fusions', 'base.errors'), ('cli', 'share.door', 'training.step')),
        (COMMAND, ('cli', 'commands.vectors', 'ranking.ranks'), ('commands.train', 'share.door')),
        (CODE + COMMAND, ('ranking.fusions', 'commands.vectors'), ('share.door',)),
        (COMMAND.replace('evaluate x.npz', '--help'), ('commands.train', 'share.door'), ()),
        (COMMAND.replace('vlm2rec', 'python script.py'), ('commands.train', 'share.door'), ()),
        (CODE.replace('ranking.fusions import fuse', 'nowhere import it'), ('commands.train', 'share.door'), ()),
        (CODE.replace('import fuse', 'import'), ('share.door',), ()),
        (CODE.replace('from', "import os; os.system('vlm2rec')\nfrom"), ('share.door',), ()),
        (
            CODE.replace('ranking.fusions import fuse', 'diagnose import collapse_report'),
            ('diagnosis.report',),
            ('cli',),
        ),
        (COMMAND.replace('x.npz\n', 'x.npz\n$ \n'), ('commands.vectors',), ('share.door',)),
        (CODE.replace('from', "import os; print(os.environ['LAB_ROOT'])\nfrom"), ('share.door',), ()),
    ],
)
def test_a_page_follows_the_rooms_that_it_imports_or_calls(tmp_path, text, follows, stays):
    page = tmp_path / 'p.md'
    page.write_text(text)
    behind = site_cells.rooms_behind(page)
    assert not {*follows} - {*behind} and not {*stays} & {*behind}


READ = ('index', 'docs/walk', 'docs/gallery', 'docs/troubleshooting', 'api/diagnosis/report')


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize('width', (1280, 390))
@pytest.mark.parametrize('theme', ('light', 'dark'))
def test_nothing_keeps_people_from_reading(site, open_page, axe, width, theme):
    page, wrong = open_page(width, 900, theme == 'dark'), {}
    with served(site) as base:
        for name in READ:
            page.goto(f'{base}{name}.html')
            page.wait_for_timeout(800)  # scripts of the theme give what scrolls the focus
            if found := hindrances(page, axe):
                wrong[name] = found
    assert not wrong, wrong


def test_pages_are_mended():
    fold = '<a class="reference internal" href="x.html">the <code>shop</code></a><details><summary><span></span>'
    assert '<summary aria-label="Pages under the shop"><span>' in site_access.mended(fold)
    search = '<button class="btn search-button-field x" title="Search" aria-label="Search" data-x="1">Search</button>'
    assert 'aria-label' not in site_access.mended(search) and 'data-x="1"' in site_access.mended(search)
    lines = '<span class="sig-paren">(</span>\n\n<dl>\n<dd><em class="sig-param">a</em>,</dd>\n</dl>\n\n'
    made = site_access.mended(f'{lines}<span class="sig-paren">)</span>')
    assert '<dl>' not in made and '<span class="lab-parameter"><em class="sig-param">a</em>,</span>' in made
    assert site_access.mended('<dl><dt>a</dt><dd>b</dd></dl>') == '<dl><dt>a</dt><dd>b</dd></dl>'


def test_the_tree_beside_a_page():
    tree = (
        '<p class="caption">Begin</p><ul><li class="toctree-l1"><a class="reference internal" href="a.html">A</a></li>'
        '<li class="toctree-l1"><a class="reference internal" href="b/index.html">B</a><ul><li class="toctree-l2">'
        '<a class="reference internal" href="b/c.html">C</a></li></ul></li></ul>'
    )
    beside = site_sidebar.tree_at(tree, 'b/c.html')
    assert beside == (
        '<p class="caption">Begin</p><ul class="current"><li class="toctree-l1"><a class="reference internal" '
        'href="../a.html">A</a></li><li class="toctree-l1 current"><a class="reference internal" href="index.html">B'
        '</a><ul class="current"><li class="toctree-l2 current"><a class="current reference internal" href="#">C</a>'
        '</li></ul></li></ul>'
    )
    assert site_sidebar.tree_at(tree, 'search.html') == tree, 'a page outside the tree'


def test_sources_that_are_the_same_keep_their_time(tmp_path):
    new, kept = tmp_path / 'new', tmp_path / 'kept'

    def put(folder, files):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    put(kept, {'same.md': 'a', 'other.md': 'b', 'gone/x.md': 'c'})
    (kept / 'data').symlink_to(tmp_path / 'far')
    for p in kept.rglob('*.md'):
        os.utime(p, (1, 1))
    put(new, {'same.md': 'a', 'other.md': 'B', 'deep/y.md': 'd'})
    (new / 'data').symlink_to(tmp_path / 'far')
    docs.put_in_step(new, kept)
    found = {str(p.relative_to(kept)): p.read_text() for p in kept.rglob('*.md')}
    assert found == {'same.md': 'a', 'other.md': 'B', 'deep/y.md': 'd'}
    assert (kept / 'same.md').stat().st_mtime == 1
    assert (kept / 'other.md').stat().st_mtime > 1
    assert (kept / 'data').is_symlink()
    assert not new.exists()


def test_what_all_pages_show_marks_a_build(tmp_path):
    def mark(**files):
        folder = tmp_path / 'src'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, text in files.items():
            (folder / f'{name}.md').write_text(text)
        return docs.outline(folder)

    first = mark(a='# A\n\nx', b='# B\n\n```{toctree}\na\n```')
    assert mark(a='# A\n\ny', b='# B\n\n```{toctree}\na\n```') == first, 'a line of a page is its own matter'
    others = (
        mark(a='# A2\n\nx', b='# B\n\n```{toctree}\na\n```'),
        mark(a='# A\n\n## Part\n\nx', b='# B\n\n```{toctree}\na\n```'),
        mark(a='# A\n\nx', b='# B\n\n```{toctree}\na\nc\n```'),
        mark(a='# A\n\nx', b='# B\n\n```{toctree}\na\n```', c='# C'),
    )
    assert first not in others


@pytest.mark.parametrize('maker', ['tools/x.py', 'docs/conf.py', 'docs/_static/x.css', 'docs/_templates/x.html'])
def test_what_makes_pages_marks_a_build(maker, tmp_path, monkeypatch):
    monkeypatch.setattr(docs, 'ROOT', tmp_path)
    (tmp_path / 'src').mkdir()
    before = docs.outline(tmp_path / 'src')
    (tmp_path / maker).parent.mkdir(parents=True)
    (tmp_path / maker).write_text('made so')
    assert docs.outline(tmp_path / 'src') != before


LEAVES = ('a', 'd', 'e', 'f', 'no page of it')


@pytest.mark.parametrize('page', LEAVES)
@pytest.mark.parametrize('level', (1, 2))
def test_the_folds_beside_a_page_are_those_of_the_theme(page, level):
    bs4, theme = pytest.importorskip('bs4'), pytest.importorskip('pydata_sphinx_theme.toctree')

    def entry(name, depth, *below):
        inner = f'\n<ul>\n{"".join(below)}</ul>\n' if below else ''
        link = f'<a class="reference internal" href="x/{name}.html">{name} <code>c</code></a>'
        return f'<li class="toctree-l{depth}">{link}{inner}</li>\n'

    deep = entry('c', 2, entry('d', 3), entry('e', 3))
    tree = f'<p class="caption">One</p>\n<ul>\n{entry("a", 1)}{entry("b", 1, deep, entry("f", 2))}</ul>\n'
    far = '<li class="toctree-l1"><a class="reference external" href="https://x.y/">z</a></li>'
    tree += f'<p class="caption">Two</p>\n<ul>\n{entry("g", 1)}{far}</ul>'
    app = SimpleNamespace(
        builder=SimpleNamespace(
            get_target_uri=lambda name: f'x/{name}.html', _get_local_toctree=lambda root, **how: tree
        ),
        config=SimpleNamespace(root_doc='index'),
    )
    settings = dict(theme_max_navbar_depth='4', theme_collapse_navbar='False', theme_show_navbar_depth=str(level))
    asked = dict(kind='sidebar', startdepth=0, show_nav_level=level, titles_only=True)
    asked |= dict(maxdepth=4, collapse=False, includehidden=True)

    def parsed(html):
        soup = bs4.BeautifulSoup(str(html), 'html.parser')
        for tag in soup.find_all(class_=True):
            tag['class'] = sorted(tag['class'])
        for tag in soup.find_all('details', open=True):
            tag['open'] = 'open'
        return soup.decode(formatter='minimal')

    found = []
    for shared in (False, True):
        for name in ('other', page):
            context = dict(pagename=name, **settings)
            site_sidebar.share_the_tree(app, name, '', context, None)
            site_sidebar.share_the_folds(app, name, '', context, None)
            theme.add_toctree_functions(app, name, '', context, None)
            made = context['folded_tree']() if shared else context['generate_toctree_html'](**asked)
        found.append(parsed(made))
    assert found[0] == found[1]
    assert ('active' in found[1]) is (page in LEAVES[:4])


def is_silent(image):
    "Does a picture say nothing to those who do not see it? Marks and small pictures beside their own titles may."
    said, width = re.search(r'\balt="([^"]*)"', image), re.search(r'\bwidth="(\d+)"', image)
    beside = 'logo__image' in image or (width and int(width[1]) <= 160)
    named = said and re.fullmatch(r'\S*\.(png|jpe?g|svg|gif)', said[1].strip())  # what a page has where nobody said
    return said is None or bool(named) or not (said[1].strip() or beside)


@pytest.mark.parametrize(
    ('image', 'silent'),
    [
        ('<img src="a.png"/>', True),
        ('<img alt="../_images/0a1b.png" src="../_images/0a1b.png"/>', True),
        ('<img alt="" src="a.png" width="900"/>', True),
        ('<img alt="Two spaces side by side" src="a.png"/>', False),
        ('<img alt="" src="a.png" width="96"/>', False),
    ],
)
def test_the_name_of_a_file_is_no_text(image, silent):
    assert is_silent(image) == silent


@pytest.mark.slow
def test_every_picture_has_a_text(site):
    for path in sorted(site.rglob('*.html')):
        if '_static' not in path.parts:
            silent = [i[:120] for i in re.findall(r'<img\b[^>]*>', path.read_text()) if is_silent(i)]
            assert not silent, (path.relative_to(site), silent[:3])


@pytest.mark.slow
def test_the_pages_of_the_api_begin_with_what_people_import(site):
    for room, first in (
        ('train', 'train'),
        ('diagnosis.report', 'Report'),
        ('ranking.evaluate', 'evaluate'),
    ):
        text = api(site, room).read_text()
        names = re.findall(rf'<dt class="sig sig-object py" id="{docs.PACKAGE}.{re.escape(room)}.(\w+)"', text)
        assert names[0] == first, (room, names[:4])


@pytest.mark.slow
@pytest.mark.browser
def test_widgets_live_without_a_kernel(tmp_path, page):
    "A notebook that was stored with its widgets: linked controls still work on the page, a FigureWidget is a figure."
    import nbformat
    from run_nbs import Runner

    try:
        docs.vendor(tmp_path / 'static', True, docs.BUILD / 'vendor')
    except docs.NotToBeHad as e:
        pytest.skip(str(e))
    linked = (
        'import ipywidgets as w\na, b = w.IntSlider(value=3), w.IntText()\n'
        "link = w.jslink((a, 'value'), (b, 'value'))\nw.VBox([a, b])"
    )
    figure = (
        "import numpy as np\nimport plotly.graph_objects as go\ngo.FigureWidget(go.Scatter(y=np.array([1., 3., 2.])))"
    )
    own = (
        'import anywidget\nclass Own(anywidget.AnyWidget):\n'
        '    _esm = \'export default { render: ({el}) => { el.textContent = "drawn by " + "itself" } };\''
        " + '//' + 'x' * 100_001\nOwn()"
    )
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell('# Widgets'),
            nbformat.v4.new_code_cell(linked),
            nbformat.v4.new_code_cell(figure),
            nbformat.v4.new_code_cell(own),
        ]
    )
    nb = docs.convert(Runner(nb, kernel_name='python3').execute(), {}, static=tmp_path / 'static')
    assert 'widgets' in nb.metadata and len(json.dumps(nb)) < 100_000
    (tmp_path / 'src').mkdir()
    nbformat.write(nb, tmp_path / 'src' / 'index.ipynb')
    assert docs.sphinx(tmp_path / 'src', tmp_path / 'site', tmp_path / 'static') == 0
    with served(tmp_path / 'site') as base:
        page.goto(base)
        page.locator('.lab-figure .main-svg').first.wait_for()
        assert page.evaluate('Array.from(document.querySelector(".lab-figure").calcdata[0], p => p.y)') == [1, 3, 2]
        page.get_by_text('drawn by itself').wait_for()
        page.locator('.noUi-handle').wait_for()
        page.locator('.noUi-handle').focus()
        page.keyboard.press('ArrowRight')
        page.wait_for_timeout(300)
        value = page.locator('input[type=number]').input_value()
    assert value == '4' and not page.outside, (value, page.outside)


def test_a_script_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(site_scripts.shutil, 'which', lambda name: None)
    monkeypatch.setattr(site_scripts, 'MATHJAX_WHEEL', 'no-such-distribution-of-ours==0')
    with pytest.raises(docs.NotToBeHad, match='npm is not installed; pip download'):
        site_scripts.fetch('mathjax', tmp_path)
    with pytest.raises(docs.NotToBeHad, match='html-manager.*npm is not installed'):
        site_scripts.fetch('widgets', tmp_path)


def test_a_script_that_was_changed_is_refused(tmp_path, monkeypatch):
    import io
    import tarfile

    def wrong(spec, folder):
        with tarfile.open(Path(folder) / 'x.tgz', 'w:gz') as t:
            info = tarfile.TarInfo('package/es5/tex-svg.js')
            info.size = 2
            t.addfile(info, io.BytesIO(b'//'))

    monkeypatch.setattr(site_scripts, 'npm', wrong)
    with pytest.raises(docs.NotToBeHad, match='integrity'):
        site_scripts.fetch('mathjax', tmp_path)
    assert not list(tmp_path.glob('*.js'))


def test_a_page_that_fails_stops_the_build(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('# A page\n\n```python\n1 / 0\n```\n')
    with pytest.raises(docs.PageError, match='(?s)page.md.*ZeroDivisionError'):
        docs.execute_page(page)


def test_a_page_is_executed(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(
        '# A page\n\n```python\n#| echo: false\nx = 6\nprint(x * 7)\n```\n\nThen `known` and\n\n```console\n$ echo '
        '"$((6 * 8))"\n$ vlm2rec --help | head -1\n```\n\n```sh\nnot run\n```\n'
    )
    nb = docs.convert(docs.execute_page(page), {'known': 'data'})
    text = json.dumps(nb)
    assert '42' in text and '48' in text and 'usage: vlm2rec' in text and str(ROOT) not in text
    assert (
        nb.cells[1].metadata.tags == ['remove-input']
        and '{py:obj}`known <vlm2rec_lab.data.known>`' in nb.cells[2].source
    )


def cut_cells(html):
    "Cells of tables that end in three dots; what a page sets as code, such as `user item ...`, ends as it should."
    cells = re.findall(r'<(t[dh])\b[^>]*>(.*?)</\1>', html, re.S)
    words = (re.sub(r'<[^>]+>', '', text).strip() for _, text in cells if '<code' not in text)
    return [w for w in words if w.endswith(('...', '…', '&hellip;'))]


@pytest.mark.slow
def test_no_cell_of_a_table_is_cut(site):
    for path in sorted([*(site / 'docs').glob('*.html'), site / 'index.html']):
        cut = cut_cells(path.read_text())
        assert not cut, (path.name, cut[:3])


def test_commands_of_a_page_run_in_a_terminal_and_their_errors_are_heard(tmp_path):
    page = tmp_path / 'page.md'
    asked = ['test -t 1 && echo "a terminal, $COLUMNS wide"', 'test -t 2 || echo wrong >&2', 'echo last | cat']
    page.write_text('# A page\n\n```console\n' + '\n'.join(f'$ {line}' for line in asked) + '\n```\n')
    shown = docs.execute_page(page).cells[1].source
    printed = shown.partition('```text\n')[2].partition('\n```')[0].splitlines()
    assert sorted(printed) == [f'a terminal, {site_cells.COLUMNS} wide', 'last', 'wrong'] and '\r' not in shown
    page.write_text('# A page\n\n```console\n$ echo before\n$ exit 3\n```\n')
    with pytest.raises(docs.PageError, match='3'):
        docs.execute_page(page)


def test_a_terminal_is_heard_before_the_errors_that_follow(monkeypatch):
    "A system may hand on what a terminal was given later than what a pipe was given after it."
    (shown, terminal), (told, errors), out = os.pipe(), os.pipe(), io.BytesIO()
    monkeypatch.setattr(site_terminal, 'LATE', 60)
    os.write(errors, b'second\n')
    os.close(errors)

    def late():
        os.write(terminal, b'first\r\n')
        os.close(terminal)

    teller = threading.Timer(0.2, late)
    teller.start()
    site_terminal.copy([shown, told], out)
    teller.join()
    assert out.getvalue() == b'first\nsecond\n'


def test_a_page_shows_tables_whole(tmp_path):
    page, long = tmp_path / 'page.md', ' '.join(['a sentence'] * 12)
    made = f"import pandas as pd\n\npd.DataFrame(dict(a=[1.25], words=['{long}']), index=['{long}'])"
    page.write_text(f'# A page\n\n```python\n{made}\n```\n')
    nb = docs.convert(docs.execute_page(page), {})
    html = nb.cells[1].outputs[0].data['text/html']
    assert not cut_cells(html) and cut_cells(html.replace('sentence</td>', 'sent...</td>'))
    assert html.count('class="lab-words"') == 2 and 'class="dataframe lab-words"' in html and '<td>1.25</td>' in html
    assert site_cells.folding('<table class="dataframe"><td>1.25</td></table>').count('lab-words') == 0


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize('width', (1100, 1200))
def test_tables_and_outputs_of_commands_fit(site, open_page, width):
    "Tables of pandas are not wider than their box, and the box of an output has room for the columns of a command."
    page = open_page(width, 900)
    with served(site) as base:
        for name in ('own_data', 'own_vectors', 'your_model', 'serve'):
            page.goto(f'{base}docs/{name}.html')
            tables = page.locator('.cell_output table.dataframe')
            wide = tables.evaluate_all('all => all.map(t => [t.scrollWidth, t.clientWidth])')
            assert wide and all(inner <= outer for inner, outer in wide), (name, wide)
            room = page.locator('.highlight-text pre, .cell_output pre').first.evaluate(ROOM, site_cells.COLUMNS)
            assert room, (name, 'an output has no room for its columns')
    assert not page.errors


ROOM = '''(box, columns) => {
  const line = document.createElement('span'), style = getComputedStyle(box);
  line.style.whiteSpace = 'pre';
  line.textContent = 'x'.repeat(columns);
  box.append(line);
  const wide = line.getBoundingClientRect().width;
  line.remove();
  return wide <= box.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
}'''


TOY = '''"""A toy. Its `names` are <odd>."""

__all__ = ['GO', 'f', 'Box']
GO = {'a': 1}  # where to go


def f(
    a,  # the first, as of `Box`
    b=1,  # the second
    *,
    # what stands above a line
    c: int = 2,
    **kw,  # the rest
):  # -> a sum
    "Adds `a` to <b> and x_ to *y*."


class Box(list):
    "Holds things."

    def empty(self, slowly=False):  # slowly or at once -> the box
        "Takes all out."
'''


def test_signatures_and_docments(tmp_path, monkeypatch):
    "Signatures, comments, defaults as they are written, literal signs, constants: through autodoc, as on the site."
    from sphinx.application import Sphinx

    (tmp_path / 'vlm2rec_lab_toys').mkdir()
    (tmp_path / 'vlm2rec_lab_toys' / '__init__.py').write_text('')
    (tmp_path / 'vlm2rec_lab_toys' / 'toy.py').write_text(TOY)
    page = ['Toy', '===', '', '.. automodule:: vlm2rec_lab_toys.toy', '   :members: f, Box', '']
    (tmp_path / 'index.rst').write_text('\n'.join([*page, '.. autodata:: vlm2rec_lab_toys.toy.GO', '']))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(site_api, 'PACKAGE', 'vlm2rec_lab_toys')
    monkeypatch.setattr(site_api, 'source', lambda room: TOY)
    monkeypatch.setattr(site_api, 'linked_names', lambda: {'Box': 'toy'})
    settings = dict(
        extensions=['sphinx.ext.autodoc'],
        autodoc_default_options={'members': True, 'undoc-members': True, 'no-value': True},
        autodoc_preserve_defaults=True,
        add_module_names=False,
    )
    app = Sphinx(
        tmp_path, None, tmp_path / 'out', tmp_path / 'trees', 'text', settings, status=None, warningiserror=True
    )
    app.connect('autodoc-process-docstring', site_api.docstring)
    app.connect('autodoc-skip-member', site_api.skip)
    app.build()
    assert app.statuscode == 0
    said = (tmp_path / 'out' / 'index.txt').read_text()
    for expected in (
        'f(a, b=1, *, c: int = 2, **kw)',
        'the first, as of "Box"',
        'what stands above a line',
        'the rest',
        'a sum',
        'Adds "a" to <b> and x_ to *y*.',
        "GO = {'a': 1}",
        'where to go',
        'A kind of "list".',
        'empty(slowly=False)',
        'slowly or at once',
        'the box',
        'Its "names" are <odd>.',
    ):
        assert expected in said, f'{expected}\n{said}'


def test_commands_that_pages_name():
    "Every make target is there, and the options of every vlm2rec command are known to its parser."
    from vlm2rec_lab.cli import make_parser

    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M))
    used, parsed = set(), 0
    for path in [*PAGES, ROOT / 'CONTRIBUTING.md']:
        text = path.read_text()
        spans = re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', text, flags=re.S)) + [
            line.removeprefix('$ ')
            for block in re.findall(r'```(?:sh|console)\n(.*?)```', text, re.S)
            for line in block.replace("\\\n", " ").splitlines()
        ]
        for s in spans:
            if m := re.match(r'make ([a-z-]+)$', s):
                used.add(m[1])
            if s.startswith('vlm2rec ') and '|' not in s.split('||')[0]:
                make_parser().parse_args(shlex.split(re.split(r'\s*(?:\|\||;)\s*', s)[0])[1:])
                parsed += 1
    assert used <= targets and {'demo', 'docs', 'docs-serve'} <= used and parsed >= 5, used - targets


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_no_measured_figure_by_hand(path):
    "A page's prose gives no measured figure: those are read or computed while it is built."
    prose = ''.join(s for k, s in site_cells.page_cells(path.read_text()) if k == 'prose')
    prose = re.sub(
        r'```.*?```|`[^`\n]*`|\$[^$]*\$|95 %|\d+\.\d+ or \d+\.\d+|arXiv \d+\.\d+|\]\([^)]*\)', '', prose, flags=re.S
    )
    assert not re.findall(r'\b\d*\.\d{2,}\b|\b\d+(?:\.\d+)? ?%', prose)


def test_quarto_files_are_valid():
    import yaml
    from nbdev import quarto
    from nbdev.config import get_config

    settings = get_config(path=ROOT)
    theirs = yaml.safe_load((ROOT / 'nbs' / '_quarto.yml').read_text())
    assert theirs['project']['type'] == 'website' and theirs['metadata-files'] == ['nbdev.yml', 'sidebar.yml']
    want = {k: settings[k] for k in ('title', 'description', 'branch', 'git_url', 'doc_host', 'doc_baseurl')} | {
        'doc_path': settings.doc_path.name
    }
    assert yaml.safe_load((ROOT / 'nbs' / 'nbdev.yml').read_text()) == yaml.safe_load(
        quarto._nbdev_yml.format(**want)
    ), 'nbs/nbdev.yml does not say what settings.ini says'


def test_docs_dependencies_are_asked_for():
    from configparser import ConfigParser

    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini')
    names = [re.split(r'[<>=]', n)[0] for n in config['DEFAULT']['docs_requirements'].split()]
    pinned = Counter(
        line.split('==')[0] for line in (ROOT / 'constraints.txt').read_text().splitlines() if '==' in line
    )
    assert all(pinned[n] == 1 for n in names) and max(pinned.values()) == 1
    assert 'docs' in (ROOT / 'tools' / 'setup_env.py').read_text() and sys.version_info >= (3, 11)


@pytest.mark.slow
@pytest.mark.browser
def test_linked_views_on_the_site(site, page):
    "Without a kernel: a product under the pointer is marked in the other spaces, and a lasso selects in all of them."
    from test_widgets import VIEW, circle, look, marked, until

    with served(site) as base:
        page.goto(f'{base}docs/pictures.html')
        page.wait_for_function(f'() => {VIEW}.length === 3')
        look(page, 0, 7)
        item = page.evaluate(f'{VIEW}[0].view.state.hover')
        assert marked(page, 1, item) and marked(page, 2, item)
        until(page, f'() => {VIEW}[0].view.state.count > 0', circle, 0, 7)
        assert 'selected' in page.locator('.v2w .strip').first.text_content()
