"""Verdicts where a modality is present."""

import numpy as np

from vlm2rec_lab.diagnosis.decision import present
from vlm2rec_lab.diagnosis.evidence import Task
from vlm2rec_lab.diagnosis.worlds import world


def test_where_all_is_present_what_was_seen_stays():
    w = world()
    some = Task.of(**w, seen=[[int(t) - 1] * int(t > 0) for t in w['targets']])
    assert np.array_equal(present(some, 'text').seen[1], some.seen[1])
