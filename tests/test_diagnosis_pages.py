"""Pages of a report: parts, signs and tables."""

import re
from pathlib import Path

import pytest

from vlm2rec_lab.base.theme import figures_html
from vlm2rec_lab.diagnosis import pages
from vlm2rec_lab.diagnosis.compare import side_by_side
from vlm2rec_lab.diagnosis.decision import signed
from vlm2rec_lab.diagnosis.headline import by_how_much
from vlm2rec_lab.diagnosis.missing_shown import HIGH, TOP, curve_chart, missing_html
from vlm2rec_lab.diagnosis.pages import figure
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.diagnosis.verdict import VERDICTS
from vlm2rec_lab.diagnosis.worlds import world
from vlm2rec_lab.ranking.evaluate import Estimate

ESTIMATE = dict(value=0.2, low=0.18, high=0.22)
REPORT = dict(
    name='<b>|x',
    verdict='healthy',
    summary='All fine.',
    k=10,
    best='text',
    weights=None,
    fusion='',
    ceiling='none',
    protocol='10 users & 5 items.',
    notes=['careful'],
    examples=[dict(user=0, title='<script>alert(2)</script>', places={'text': 1, 'fused': 2})],
    modalities={'text': dict(verdict='healthy', reason='used', sentence='s', advice='a', evidence=dict(ndcg=ESTIMATE))},
    evidence=dict(fused_ndcg=ESTIMATE, chance_ndcg=dict(value=0.02, low=None, high=None)),
    downstream={
        '<b>ids</b>': {'NDCG@10 all': 0.1, 'NDCG@10 all spread': 0.01, 'seeds': 3},
        'text': {'NDCG@10 all': 0.25, 'NDCG@10 all spread': None, 'seeds': 1},
    },
)


@pytest.mark.parametrize('part', ['cards', 'charts', 'table', 'examples', 'downstream'])
def test_parts_are_html(part):
    assert getattr(pages, f'{part}_html')(REPORT).startswith('<d')


def test_downstream_table_has_a_heading():
    assert pages.downstream_rows(REPORT)[0] == ['downstream', 'NDCG@10 all', 'seeds']


def test_downstream_columns_are_aligned_in_text():
    assert 'text        0.2500           1' in pages.report_text(REPORT)


def test_the_style_knows_every_verdict():
    assert all(f'.{v} {{' in pages.STYLE or f'.{v},' in pages.STYLE for v in (*VERDICTS, 'damaged'))
    assert set(pages.SIGNS) == {*VERDICTS, 'damaged'}


def test_a_stored_line_that_is_no_longer_there_is_shown_by_its_name():
    old = {**REPORT, 'modalities': {'text': {**REPORT['modalities']['text'], 'evidence': dict(forgotten=ESTIMATE)}}}
    assert 'forgotten' in pages.report_text(old)
    assert 'forgotten' in pages.report_markdown(old)
    assert '<td>forgotten (context)</td>' in pages.table_html(old)


LONG = 'title_and_description_in_three_languages'
TITLES = [f'A rather long title of a product, number {i}, with a matching bag' for i in range(200)]
TITLES[::2] = ['https://' + 'x' * 300] * 100  # nothing to break a line at


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "Pages of reports of two, three and four modalities, with long names, and of three reports side by side."
    folder = tmp_path_factory.mktemp('pages')
    how = dict(permutations=2, bootstrap=100, progress=False, titles=TITLES)
    noises = {
        'two': {'text': 0.3, 'image': 6},
        'three': {'text': 0.3, 'image': 0.5, 'audio': 0.4},
        'four': {LONG: 0.3, 'photograph_of_the_front_side': 0.5, 'audio': 0.4, 'video_embedding_v2': 6},
        'six': {m: 0.3 + 0.01 * k for k, m in enumerate(('text', 'image', 'audio', 'video', 'price', 'brand'))},
    }
    names = {'four': 'a_very_long_name_without_any_space_' * 4}
    made = {k: collapse_report(**world(noise=noise), name=names.get(k, k), **how) for k, noise in noises.items()}
    for k, report in made.items():
        report.save(folder / f'{k}.html')
    side_by_side({'first': made['two'], LONG: made['two'], 'third': made['three']}).save(folder / 'pair.html')
    return folder


# what sticks out of the window or of its box, and texts of a drawing that lie on each other
FAULTS = """() => {
  const out = [], wide = document.documentElement.clientWidth
  if (document.documentElement.scrollWidth > wide) out.push('the page')
  for (const e of document.querySelectorAll('.v2r *')) {
    const box = e.getBoundingClientRect()
    if (box.width && (box.right > wide + 1 || box.left < -1)) out.push(e.tagName + ' ' + e.textContent.slice(0, 40))
    if (e.matches('.scroll') && e.scrollWidth > e.clientWidth + 1) out.push('scrolls: ' + e.textContent.slice(0, 40))
  }
  for (const figure of document.querySelectorAll('.v2r figure')) {
    const edge = figure.getBoundingClientRect()
    const boxes = [...figure.querySelectorAll('svg text')].map(t => [t.textContent, t.getBoundingClientRect()])
    boxes.forEach(([a, p], i) => {
      if (p.left < edge.left || p.right > edge.right) out.push(`${a} leaves its figure`)
      boxes.slice(i + 1).forEach(([b, q]) => {
        const x = Math.min(p.right, q.right) - Math.max(p.left, q.left)
        const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top)
        if (x > 1 && y > 2) out.push(`${a} on ${b}`)
      })
    })
  }
  return out
}"""


@pytest.mark.browser
@pytest.mark.parametrize('name', ['two', 'three', 'four', 'six', 'pair'])
@pytest.mark.parametrize('where', ['telephone', 'paper', 'desk, dark'])
def test_nothing_is_cut_and_nothing_overprints(saved, open_page, name, where):
    width = {'telephone': 390, 'paper': 718, 'desk, dark': 1280}[where]
    page = open_page(width=width, dark='dark' in where)
    page.emulate_media(media='print' if where == 'paper' else 'screen')
    page.goto((saved / f'{name}.html').as_uri())
    if where != 'paper':
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert page.evaluate(FAULTS) == []
    assert not page.outside and not page.errors


# figures of a folded table that are broken over more than one line, though they would fit in one
BROKEN = """() => [...document.querySelectorAll('.v2r .folds td:not(:first-child)')].filter(td => {
  const words = document.createRange()
  words.selectNodeContents(td)
  return td.textContent.length < 30 && words.getBoundingClientRect().height > 30
}).map(td => td.textContent)"""


@pytest.mark.browser
def test_a_figure_beside_a_long_name_stays_whole(saved, open_page):
    page = open_page(width=390)
    page.goto((saved / 'four.html').as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert page.locator('.folds').count() and page.evaluate(BROKEN) == []


def drawn_figures(**layout):
    "A page with a figure of plotly."
    import plotly.graph_objects as go

    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name='a'), dict(title='Some title', showlegend=True) | layout)
    figure.add_scatter(x=[1, 2], y=[4, 3], name='b')
    return pages.page('x', ''.join(figures_html({'a figure': figure}).values()))


@pytest.mark.browser
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('template', ['plotly_white', 'simple_white'])
def test_a_figure_of_plotly_can_be_read_on_any_paper(tmp_path, open_page, template, dark):
    "Its letters have the colour of the page's, it has no ground of its own, and it is as wide as it is."
    (tmp_path / 'x.html').write_text(drawn_figures(template=template))
    page = open_page(dark=dark)
    page.goto((tmp_path / 'x.html').as_uri())
    page.wait_for_selector('.js-plotly-plot .legend text')
    style = "(es, what) => [...new Set(es.map(e => getComputedStyle(e)[what]))]"
    ink = page.locator('.v2r').evaluate('e => getComputedStyle(e).color')
    assert page.locator('.js-plotly-plot text').evaluate_all(style, 'fill') == [ink]
    assert page.locator('.js-plotly-plot .main-svg').evaluate_all(style, 'backgroundColor') == ['rgba(0, 0, 0, 0)']
    assert page.locator('.js-plotly-plot rect.bg').evaluate_all(style, 'fill') == ['none']
    whole, drawing = page.locator('.js-plotly-plot').bounding_box(), page.locator('.main-svg').first.bounding_box()
    assert drawing['width'] == pytest.approx(whole['width'], abs=2)


@pytest.mark.browser
def test_on_paper_the_figures_are_there_though_nobody_can_open_them(saved, open_page):
    page = open_page(width=718)
    page.emulate_media(media='print')
    page.goto((saved / 'two.html').as_uri())
    assert page.locator('details td').first.bounding_box()['height'] > 5


def test_no_zero_has_a_minus():
    tiny = dict(value=2e-4, low=-1e-5, high=3e-4)
    said = [
        by_how_much(tiny),
        by_how_much(dict(value=-2e-4, low=-3e-4, high=1e-5)),
        signed(Estimate(-2e-4, -3e-4, -1e-5)),
        str(Estimate(1e-5, -1e-5, 2e-5)),
        figure(tiny),
        figure(tiny, percent=True),
    ]
    assert not [x for x in said if re.search(r'-0\.?0*(?![\d.])', x)], said


def six_alike():
    "What `missing_curve` gives, of six modalities whose lines end at one place near the floor."
    each = [dict(ndcg=dict(value=v, low=v - 0.01, high=v + 0.01), lost=ESTIMATE) for v in (0.3, 0.02)]
    curve = {m: each for m in ('text', 'image', 'audio', 'video', 'price', 'brand')}
    return dict(shares=[0.0, 1.0], curve=curve, one_each=None, k=10, sides='items', draws=1, users=9, seed=0)


def test_every_line_leads_to_its_name_in_its_colour_and_names_stay_in_the_field():
    svg = curve_chart(six_alike())
    leads = re.findall(r'<path d="M\S+ (\S+)L\S+ (\S+)" class="leads" style="[^"]*var\(--c(\d)\)"', svg)
    names = [float(y) for y in re.findall(r'y="(\S+)" class="lab"', svg)]
    assert len({c for *_, c in leads}) == 6 and len({y for y, *_ in leads}) == 1
    assert len(set(names)) == 6 and max(names) < TOP + HIGH + 10


def test_lines_of_missing_contents_stand_on_one_scale_beside_each_other_and_their_table_has_intervals(saved):
    assert '0.300 [0.290, 0.310]' in missing_html(dict(missing=six_alike()))
    tops = re.findall(rf'y="{TOP + 4}" text-anchor="end" class="note">([\d.]+)<', (saved / 'pair.html').read_text())
    assert len(tops) == 3 and len(set(tops)) == 1


def test_figures_with_a_sign_are_written_without_a_minus_before_zero_everywhere():
    package = Path(pages.__file__).parent.parent
    left = [p.name for p in package.rglob('*.py') if re.search(r':\+\.\df\}', p.read_text())]
    assert not left, f'{left}: write {{x:+z.3f}}, where a figure that rounds to zero has no minus'


def test_the_line_of_zero_leaves_out_names_above_bars():
    rows = [('a name of its own', dict(value=-0.2, low=None, high=None), 1), ('image', ESTIMATE, 2)]
    path = re.search(r'<path d="([^"]+)" class="zero"', pages.bar_chart(rows, 'lost'))[1]
    assert path.count('v24') == 2 and 'V' not in path


def test_a_page_says_when_it_was_written():
    assert re.search(r'Written on \d{4}-\d\d-\d\d by vlm2rec_lab', pages.page('x', 'y'))


def test_memory_folds_beside_a_report_without_it():
    kind = dict(kind='content', sentence='<b> is content.', ndcg=ESTIMATE)
    known = dict(REPORT, memory={'<b>': kind})
    assert '<h3>Content or memory?</h3>' in pages.report_html(known)
    folded = pages.report_html(known, 2)
    assert '<details><summary>Content or memory? &lt;b&gt; content</summary>' in folded
    assert '<h3>Content or memory?</h3>' not in folded and '<b>' not in folded


def colours_in(html):
    "modality -> class of its bar, of the first drawing of a report."
    svg = html.partition('<svg')[2].partition('</svg>')[0]
    names, bars = re.findall(r'</title>([^<]+)</text>', svg), re.findall(r'rx="4" class="(c\d)"', svg)
    return dict(zip(names, bars, strict=True))


def of(*modalities):
    "A report of these modalities."
    return {**REPORT, 'modalities': {m: REPORT['modalities']['text'] for m in modalities}}


def test_a_modality_has_the_same_colour_in_every_report():
    one, other = (colours_in(pages.charts_html(of(*m))) for m in (('text', 'image'), ('audio', 'image', 'text')))
    assert one == {'text': 'c1', 'image': 'c2', 'fused': 'c0'}
    assert one.items() <= other.items() and len(set(other.values())) == 4


def test_reports_side_by_side_share_their_colours():
    "Alone, `plot` and `sound` have the same colour; beside each other they do not."
    alone = [colours_in(pages.charts_html(of('text', m)))[m] for m in ('plot', 'sound')]
    scales = dict(modalities=['text', 'plot', 'sound'])
    beside = [colours_in(pages.charts_html(of('text', m), scales))[m] for m in ('plot', 'sound')]
    assert alone[0] == alone[1] and beside[0] != beside[1]


def test_as_many_modalities_as_there_are_colours_are_told_apart():
    assert len(set(colours_in(pages.charts_html(of('x', 'y', 'z', 'w', 'v', 'u', 'image', 'text'))).values())) == 9


def test_the_lines_of_missing_contents_have_the_colours_of_their_modalities():
    w = world(users=60, n_items=40)
    found = collapse_report(**w, permutations=3, bootstrap=50).data["missing"]
    turned = {**found, 'curve': dict(reversed(found['curve'].items()))}
    for each in (found, turned):
        ends = dict(re.findall(r'var\(--c(\d)\)"/><text [^>]*class="lab"><title>(\w+)<', curve_chart(each)))
        assert ends == {'1': 'text', '2': 'image'}


OVER = """() => {
  const boxes = [...document.querySelectorAll('.js-plotly-plot .main-svg text')].map(e => e.getBoundingClientRect())
  const cut = (a, b) => a.left < b.right - 2 && b.left < a.right - 2 && a.top < b.bottom - 2 && b.top < a.bottom - 2
  return boxes.filter(a => a.width && boxes.some(b => b !== a && b.width && cut(a, b))).length
}"""


@pytest.mark.browser
def test_words_of_a_wide_figure_lie_apart_on_a_telephone(tmp_path, open_page):
    "The figure keeps its width, and is moved sideways, by keyboard too, without the page."
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, subplot_titles=['all items', 'new items'], shared_yaxes=True)
    for column in (1, 2):
        figure.add_bar(
            y=['random ids', 'fused, of the recommended training'], x=[1, 2], orientation='h', col=column, row=1
        )
    figure.update_layout(width=None, height=260, showlegend=False)
    (tmp_path / 'x.html').write_text(pages.page('x', ''.join(figures_html({'a "figure"': figure}).values())))
    page = open_page(390, 800)
    page.goto((tmp_path / 'x.html').as_uri())
    page.wait_for_selector('.js-plotly-plot .main-svg text')
    assert page.evaluate(OVER) == 0 and page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    page.get_by_role('group', name='a "figure"').focus()
    page.keyboard.press('End')
    page.keyboard.press('ArrowRight')
    page.wait_for_function("document.activeElement.scrollLeft > 0")
