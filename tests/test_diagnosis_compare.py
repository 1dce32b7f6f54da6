"""Reports side by side."""

import pytest

from vlm2rec_lab.diagnosis.compare import SideBySide, pair_html, side_by_side
from vlm2rec_lab.diagnosis.report import collapse_report
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
