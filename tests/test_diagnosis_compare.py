"""Reports side by side."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm2rec_lab.diagnosis import pages
from vlm2rec_lab.diagnosis.compare import SideBySide, _pair_action, pair_html, side_by_side
from vlm2rec_lab.diagnosis.pages import figure, report_html
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.diagnosis.tables import flagged
from vlm2rec_lab.diagnosis.worlds import world

QUICK = dict(permutations=3, bootstrap=200)


@pytest.fixture(scope='module')
def one():
    "A report of one modality."
    w = world()
    sides = {k: {'text': w[k]['text']} for k in ('items', 'sequences')}
    return collapse_report(**sides, targets=w['targets'], **QUICK)


@pytest.fixture(scope='module')
def three():
    "A report of three modalities."
    return collapse_report(**world(noise={'text': 0.3, 'image': 0.5, 'audio': 0.4}), **QUICK)


def test_reports_with_other_modalities_stand_side_by_side(one, three):
    pair = side_by_side({'<script>': one, 'three': three})
    assert isinstance(pair, SideBySide)
    assert pair_html(pair).count('<script>') == 0
    assert 'NDCG of image' in repr(pair)
    assert pair._repr_html_().startswith('<style>')


def test_what_a_report_lacks_is_not_available(one, three):
    assert 'n/a' in repr(side_by_side({'a': one, 'b': three}))


def test_what_missing_contents_cost_stands_in_the_table(three):
    "Central figures: half of a modality gone, and one modality per item; a report that has not looked has none."
    pair = side_by_side({'a': three, 'b': replace(three, data={**three.data, 'missing': None})})
    found = three.data['missing']
    half = found['curve']['image'][list(found['shares']).index(0.5)]['ndcg']
    text, html = repr(pair), pair_html(pair)
    row = next(line for line in text.splitlines() if line.startswith('NDCG, half of image missing'))
    assert row.split()[5:] == [*figure(half).split(), 'n/a']
    assert f'{found["one_each"]["ndcg"]["value"]:.3f}' in next(x for x in text.splitlines() if 'one modality per' in x)
    head, rest = html.split('<td>NDCG@10, half of image missing</td>')
    assert rest.startswith(f'<td data-of="a">{figure(half)}</td><td data-of="b">n/a</td>')
    assert 'NDCG@10, one modality per item' in rest and 'half of audio missing' in rest


def test_of_two_that_help_alike_the_healthy_one_is_advised():
    gain = dict(value=0.1, low=0.05, high=0.15)
    verdicts = {'sft': 'collapsed', 'wpcl': 'under-used', 'per-modality': 'healthy'}
    stub = SimpleNamespace(
        changes=lambda: {n: {'text': gain, 'image': gain} for n in list(verdicts)[1:]},
        reports={n: SimpleNamespace(data=dict(modalities={'text': dict(verdict=v)})) for n, v in verdicts.items()},
    )
    assert _pair_action(stub).startswith('Go on with per-modality,')
    more = {'wpcl': {'text': gain, 'image': gain, 'fused': gain}, 'per-modality': {'text': gain, 'image': gain}}
    stub.changes = lambda: more
    assert _pair_action(stub).startswith('Go on with wpcl,')


def changed(**changes):
    "Side by side what each changed: {view: (value, low, high)}; all modalities are under-used."
    found = {n: {v: dict(zip(('value', 'low', 'high'), d)) for v, d in x.items()} for n, x in changes.items()}
    data = dict(modalities={'text': dict(verdict='under-used')})
    return SimpleNamespace(changes=lambda: found, reports={n: SimpleNamespace(data=data) for n in ('sft', *found)})


def test_the_larger_clear_gain_is_advised_and_not_the_larger_number_of_gains():
    small, large, none = (0.005, 0.001, 0.009), (0.06, 0.04, 0.08), (0.01, -0.01, 0.03)
    one_large = changed(vlm2rec={'text': small, 'image': small}, other={'text': none, 'image': large})
    assert _pair_action(one_large).startswith('Go on with other,')
    in_fused = changed(vlm2rec={'fused': small, 'image': large}, other={'fused': large, 'image': small})
    assert _pair_action(in_fused).startswith('Go on with other,')
    unclear = changed(vlm2rec={'fused': small, 'image': small}, other={'fused': (0.1, -0.1, 0.3), 'image': small})
    assert _pair_action(unclear).startswith('Go on with vlm2rec,')


def test_a_larger_gain_at_a_price_is_named():
    small, large, loss = (0.005, 0.001, 0.009), (0.06, 0.04, 0.08), (-0.02, -0.03, -0.01)
    with_price = changed(vlm2rec={'fused': small}, other={'fused': large, 'text': loss})
    assert _pair_action(with_price).endswith('. other gains more in the fused ranking, at a price: a trade.')
    assert _pair_action(with_price).startswith('Go on with vlm2rec,')
    both = changed(vlm2rec={'fused': small, 'text': loss}, other={'fused': large, 'text': loss})
    assert _pair_action(both).startswith('other is a trade')
    less = changed(vlm2rec={'fused': large}, other={'fused': small, 'text': loss})
    assert 'trade' not in _pair_action(less)


def test_options_in_advice_are_not_broken_over_lines(three):
    told = {m: dict(x, advice='Give --text-columns.') for m, x in three.data['modalities'].items()}
    page = report_html(dict(three.data, modalities=told))
    assert page.count('Give <span class="flag">--text-columns</span>.') == 3
    assert flagged('give --fuse concat, not a--b') == 'give <span class="flag">--fuse</span> concat, not a--b'
    assert flagged('<b> & --apart') == '&lt;b&gt; &amp; <span class="flag">--apart</span>'


def test_a_row_without_a_figure_has_no_empty_line_where_a_table_folds():
    css = (Path(pages.__file__).parent / 'report.css').read_text()
    assert '.folds td:not(:first-child):empty {\n    display: none;' in css
    assert '.v2r .flag {\n  white-space: nowrap;' in css


def test_a_modality_has_one_colour_in_all_reports_that_stand_side_by_side(one, three):
    "Those of the one alone are given beside those of the other, which has more."
    named = {'text': 'plot', 'image': 'sound', 'audio': 'text'}
    data = three.data
    other = {named[m]: x for m, x in data['modalities'].items()}
    missing = {**data['missing'], 'curve': {named[m]: x for m, x in data['missing']['curve'].items()}}
    html = pair_html(
        side_by_side({'a': one, 'b': replace(three, data={**data, 'modalities': other, 'missing': missing})})
    )
    bars = re.findall(r'<title>(\w+)</title>\w+</text><rect [^>]*class="rail"/><rect [^>]*class="(c\d)"', html)
    assert {m for m, _ in bars} == {'text', 'plot', 'sound', 'fused'} and len(set(bars)) == 4
    assert dict(bars)['text'] == 'c1' and dict(bars)['fused'] == 'c0'
