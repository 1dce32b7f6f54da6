"""What is known is not ranked again, and says the same."""

from dataclasses import replace

import numpy as np
import pytest
from fastcore.test import test_close as close

from vlm2rec_lab.diagnosis.evidence import Task, shapley_values
from vlm2rec_lab.diagnosis.measure import measure, shared_evidence
from vlm2rec_lab.diagnosis.worlds import world


@pytest.fixture(scope='module')
def task():
    return Task.of(**world())


def joined(vectors):
    "Concatenation as a function of one's own."
    return np.concatenate(list(vectors.values()), 1) / len(vectors) ** 0.5


@pytest.mark.parametrize('fuse', ['sum', 'concat', {'text': 1, 'image': 0}, joined])
def test_shapley_values_are_those_of_the_plain_call(task, fuse):
    t = replace(task, fuse=fuse)
    got = measure(t, {}, 2)['shapley']
    for m, x in shapley_values(t).items():
        close(got[m], x, 1e-6)


def test_a_sample_of_items_is_noted():
    large = Task.of(**world(100, 1200))
    notes = shared_evidence(large, measure(large, {}, 2), 'text')[1]
    assert notes == ['Neighbours of text and image were compared on 1,000 of 1,200 items (seed 0).']
