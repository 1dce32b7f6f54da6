"""Figures without any spread, for tests of verdicts."""

import numpy as np

from vlm2rec_lab.diagnosis.verdict import Lift
from vlm2rec_lab.ranking.evaluate import Estimate


def sure(x, above=True):
    "A Lift without any spread."
    return Lift(x, np.full(100, x), np.full(100, x), above)


def exactly(x):
    "An Estimate without any spread."
    return Estimate(x, x, x)
