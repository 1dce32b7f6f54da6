"""Cases with known truth: their vectors, and how they are judged in other processes."""

import pandas as pd
import pytest

from vlm2rec_lab.diagnosis.calibrate import errors, hit_class, judge_case, rates, rates_table, run_calibration
from vlm2rec_lab.diagnosis.settings import SETTINGS, Setting, make_case

PLANTED = [n for n, s in SETTINGS.items() if not isinstance(s.base, str)]
TWO = ['healthy: pair', 'collapsed without reference: noise 1, image']


@pytest.mark.parametrize('name', PLANTED)
def test_a_case_has_the_modalities_of_its_truth(name):
    assert isinstance(SETTINGS[name], Setting)
    task, _ = make_case(name, 5)
    assert set(task.items) == set(SETTINGS[name].truth)
    assert len(task.targets) == 5


@pytest.mark.processes
def test_processes_say_the_same_as_one(tmp_path):
    one = run_calibration(tmp_path / 'one', TWO, {100: 2}, jobs=1, progress=False)
    two = run_calibration(tmp_path / 'two', TWO, {100: 2}, jobs=2, progress=False)
    assert two.equals(one)


def test_vectors_that_are_missing_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='three: experts'):
        run_calibration(tmp_path, ['trained: three, experts'], {100: 1}, jobs=1, progress=False)


def test_missing_vectors_are_made_first(tmp_path):
    asked = []

    def make(name, seed, out):
        asked.append((name, seed))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run_calibration(tmp_path, ['trained: three, experts'], {100: 3}, jobs=1, progress=False, make=make)
    assert asked == [('three: experts', 0)]


def cases(*rows):
    "A table of verdicts: (truth, verdict, hits)."
    made = [dict(setting=f's{i}', truth=t, verdict=v, hits=h) for i, (t, v, h) in enumerate(rows)]
    return pd.DataFrame(made).assign(users=1000, modality='image', reference=True, value=0.5, reason='x')


def rate(row, name='wrong'):
    "One rate of one case."
    return rates(cases(row)).loc[1000, name]


@pytest.mark.parametrize(
    'truth, verdict, wrong',
    [
        ('collapsed', 'collapsed', 0),
        ('collapsed', 'undecided', 0),
        ('collapsed', 'damaged', 0),
        ('collapsed', 'under-used', 1),
        ('under-used', 'damaged', 0),
        ('collapsed/under-used', 'under-used', 0),
        ('collapsed/under-used', 'collapsed', 0),
        ('collapsed/under-used', 'damaged', 0),
        ('collapsed/under-used', 'healthy', 1),
        ('healthy/under-used', 'damaged', 0),
        ('healthy', 'damaged', 1),
        ('uninformative', 'healthy', 1),
        ('under-used', 'healthy', 1),
    ],
)
def test_a_verdict_is_wrong_where_it_is_none_of_the_right_ones(truth, verdict, wrong):
    assert rate((truth, verdict, 100)) == wrong
    assert len(errors(cases((truth, verdict, 100)))) == (wrong or (verdict == 'undecided'))


@pytest.mark.parametrize(
    'truth, verdict, alarm',
    [
        ('healthy', 'collapsed', 1),
        ('healthy', 'damaged', 1),
        ('uninformative', 'under-used', 1),
        ('healthy', 'undecided', 0),
        ('healthy', 'uninformative', 0),
    ],
)
def test_a_false_alarm(truth, verdict, alarm):
    assert rate((truth, verdict, 100), 'false alarms') == alarm


def test_where_damage_may_be_right_there_is_no_false_alarm():
    found = rates(cases(('healthy/under-used', 'under-used', 100))).loc[1000]
    assert (found['of (false alarms)'], found['of (wrong)']) == (0, 1)


def test_damage_counts_as_seen_whatever_its_name():
    table = cases(*(('collapsed', v, 100) for v in ('collapsed', 'under-used', 'damaged', 'undecided')))
    found = rates(table).loc[1000]
    assert (found['named'], found['damage seen'], found['undecided']) == (0.25, 0.75, 0.25)


@pytest.mark.parametrize('truth', ['silent', 'memory'])
def test_what_nobody_could_tell_counts_nowhere(truth):
    found = rates(cases(('healthy', 'healthy', 100), (truth, 'collapsed', 100))).loc[1000]
    assert (found['of (wrong)'], found['wrong']) == (1, 0)
    assert not len(errors(cases((truth, 'collapsed', 100))))


def test_classes_of_hits():
    hits = pd.Series([0, 49.9, 50, 199.9, 200, 999, 1000, 90_000])
    names = ['below 50', '50 to 200', '200 to 1,000', 'above 1,000']
    assert hit_class(hits).tolist() == [n for n in names for _ in range(2)]


def test_rates_by_hits_are_in_order_and_leave_out_empty_classes():
    table = cases(('healthy', 'healthy', 5000), ('healthy', 'collapsed', 20), ('healthy', 'undecided', 30))
    found = rates(table, 'hits')
    assert list(found.index) == ['below 50', 'above 1,000']
    assert found['wrong'].tolist() == [0.5, 0]
    lines = rates_table(table).splitlines()
    assert lines[0] == '| by expected hits | below 50 | above 1,000 |'
    assert '| healthy, and called so | 0.0 % of 2 | 100.0 % of 1 |' in lines


def test_a_case_says_how_many_hits_its_healthy_version_has():
    by_modality = {r['modality']: r['hits'] for r in judge_case('NDCG .03: dead with reference, image', 300)}
    assert all(5 < h < 40 for h in by_modality.values())


def test_the_stored_cases_are_those_of_the_settings():
    stored = pd.read_csv('data/calibration/report.csv.gz')
    assert set(stored.setting) <= set(SETTINGS)
    assert stored.hits.notna().all()
    fixed = stored[[not SETTINGS[n].measured for n in stored.setting]]
    assert all(SETTINGS[n].truth[m] == t for n, m, t in zip(fixed.setting, fixed.modality, fixed.truth))
