"""Pages of a report: parts, signs and tables."""

import pytest

from vlm2rec_lab.diagnosis import pages
from vlm2rec_lab.diagnosis.verdict import VERDICTS

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
    assert all(f'.{v} {{' in pages.STYLE for v in VERDICTS)
    assert set(pages.SIGNS) >= set(VERDICTS)


def test_a_stored_line_that_is_no_longer_there_is_shown_by_its_name():
    old = {**REPORT, 'modalities': {'text': {**REPORT['modalities']['text'], 'evidence': dict(forgotten=ESTIMATE)}}}
    assert 'forgotten' in pages.report_text(old)
    assert 'forgotten' in pages.report_markdown(old)
    assert '<td>forgotten (context)</td>' in pages.table_html(old)
