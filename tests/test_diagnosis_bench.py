"""What a report costs: the table, its file, and small sizes."""

import json

import pytest

from vlm2rec_lab.diagnosis import evidence
from vlm2rec_lab.diagnosis.bench import PARTS, Bare, Costs, Stopwatch, bench, synthetic_task


@pytest.fixture(scope='module')
def small():
    return bench(500, 300, dims=32, permutations=3, bootstrap=100, progress=False)


def tiny(modalities):
    "A bench that takes next to no time."
    return bench(40, 35, modalities, 4, permutations=2, bootstrap=20, progress=False)


def test_modalities_are_numbered():
    assert list(synthetic_task(500, 300, dims=32)['items']) == ['m1', 'm2']


def test_columns_and_verdict(small):
    assert isinstance(small, Costs)
    assert list(small.frame.columns) == ['calls', 'seconds', 'ratio', 'peak']
    assert small.verdict == 'healthy'


def test_the_file_holds_the_plain_data(small, tmp_path):
    small.save(tmp_path / 'x.json')
    kept = json.loads((tmp_path / 'x.json').read_text())
    assert kept == json.loads(json.dumps(small.to_dict(), allow_nan=False))
    assert set(kept) == {'parts', 'bare', 'peak_gb', 'before_gb', 'protocol', 'verdict'}


def test_text_and_html(small):
    assert 'whole report' in repr(small)
    assert '<table' in small._repr_html_()


def test_three_modalities_have_all_parts():
    assert set(tiny(3).frame.index) == {*PARTS, 'whole report'}


def test_one_modality_has_no_fused_ranking_of_its_own():
    assert 'fused ranking' not in tiny(1).frame.query('calls > 1').index


def test_the_watch_leaves_the_rooms_as_they_were(small):
    assert evidence.ranks.__module__ == 'vlm2rec_lab.ranking.ranks'


def test_an_error_leaves_the_watch_in_order():
    task = synthetic_task(50, 30, dims=4)
    watch = Stopwatch(Bare(task['items']['m1'], task['sequences']['m1']))
    with pytest.raises(ZeroDivisionError):
        watch.watch(lambda x: 1 / 0, 'probes')(0)
    assert watch.stack == ['rest']
