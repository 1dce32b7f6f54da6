"""Shapes of spaces: definitions by hand, and edges."""

import math

import numpy as np
import pytest
from fastcore.test import test_close as close

from vlm2rec_lab.diagnosis.evidence import Task
from vlm2rec_lab.diagnosis.geometry import agreement_test, effective_rank, linear_cka, neighbour_agreement
from vlm2rec_lab.diagnosis.worlds import world


@pytest.fixture(scope='module')
def text():
    return Task.of(**world()).items['text']


def kernel(x):
    "Inner products of the rows without row and column means."
    k = x @ x.T
    return k - k.mean(0) - k.mean(1)[:, None] + k.mean()


def test_cka_by_its_definition():
    a = np.random.default_rng(1).normal(size=(30, 4))
    b = np.tanh(a[:, :3])
    k, other = kernel(a), kernel(b)
    close(linear_cka(a, b), (k * other).sum() / np.linalg.norm(k) / np.linalg.norm(other))


def test_one_row_has_no_rank():
    assert math.isnan(effective_rank(np.eye(1)))


def test_agreement_looks_at_no_more_items_than_asked(text):
    assert neighbour_agreement(text, text, most=50)[2] == 50


def test_agreement_with_a_constant_space_has_no_correlation(text):
    assert math.isnan(agreement_test(text, np.ones_like(text))['spearman'])


def test_two_items_have_no_p_value(text):
    assert math.isnan(agreement_test(text[:2], text[:2])['p'])


def test_p_values_of_unrelated_spaces_are_spread_out():
    draws = [np.random.default_rng(s).normal(size=(2, 60, 8)) for s in range(40)]
    assert 0.25 < np.mean([agreement_test(*x, permutations=39)['p'] for x in draws]) < 0.75
