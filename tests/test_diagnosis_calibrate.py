"""Cases with known truth: their vectors, and how they are judged in other processes."""

import pytest

from vlm2rec_lab.diagnosis.calibrate import run_calibration
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
