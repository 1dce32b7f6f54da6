"""The schemes: mistakes in their arguments, units and moments at the edge, and what a leak counts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from shop_worlds import CLUB, DAY, FILMS, HAND, RANKED, UNTIMED, from_log

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.shop.leave_one_out import hold_out_users, leave_one_out
from vlm2rec_lab.shop.splits import (
    TimeLeak,
    _date,
    _moment,
    break_ties,
    cold_items,
    last_day,
    temporal_split,
    time_leak,
    time_unit,
)

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.base.errors.DataWarning')


def refused(f, why):
    "`f()` is a `DataError` with these words."
    with pytest.raises(DataError) as e:
        f()
    assert why in str(e.value)


def cut(**kw):
    "`HAND` with validation from day 5 and the test from day 8."
    return temporal_split(HAND, valid=5 * DAY, test=8 * DAY, **kw)


@pytest.mark.parametrize(
    'kw, why',
    [
        (dict(ask='frist'), "did you mean 'first'"),
        (dict(new_users='no'), 'choice of new_users'),
        (dict(new_items='x'), 'choice of new_items'),
        (dict(repeats='x'), 'choice of repeats'),
        (dict(history=0), 'at least 1'),
        (dict(unit='d'), 'unit of time'),
    ],
)
def test_choices_of_a_split_by_time(kw, why):
    refused(lambda: cut(**kw), why)


@pytest.mark.parametrize(
    'valid, test, why',
    [
        (9 * DAY, 2 * DAY, 'give valid an earlier moment'),
        (-5, 99 * DAY, 'no interaction in training'),
        (5 * DAY, '2024-01-01', 'no interaction in the test'),
        (2 * DAY, 5 * DAY, 'no user has 2 interactions in training'),
        ('soon', 0.1, "valid='soon'"),
    ],
)
def test_cuts_that_leave_a_part_empty(valid, test, why):
    refused(lambda: temporal_split(HAND, valid, test), why)


def test_positions_are_no_times():
    refused(lambda: temporal_split(RANKED), 'positions')
    refused(lambda: temporal_split(UNTIMED), 'use leave_one_out')


def test_without_validation():
    split = temporal_split(HAND, valid=None, test=5 * DAY)
    assert (split.test.users[0], split.test.history[0, :2].tolist(), split.test.targets[0]) == (0, [0, 1], 2)
    assert len(split.valid) == 0


@pytest.mark.parametrize('kw', [dict(days=0), dict(days=1.5), dict(valid_days=-1)], ids=str)
def test_days_are_whole(kw):
    refused(lambda: last_day(HAND, **kw), 'whole number of days')


@pytest.mark.parametrize(
    'kw, why',
    [
        (dict(share=0), 'at least one'),
        (dict(share=0.6), 'left to train on'),
        (dict(share=0.01, valid_share=0.001), 'at least one'),
        (dict(min_length=2), 'make 3'),
        (dict(min_length=99), 'no user has 99'),
        (dict(repeats='x'), 'choice of repeats'),
    ],
)
def test_arguments_of_cold_items(kw, why):
    refused(lambda: cold_items(CLUB, **kw), why)


def test_users_are_ordered_by_their_ids_where_ties_are_broken():
    log = [('b', 'f5', 7.0), ('b', 'f2', 7.0), ('a', 'f1', 9.0)]
    inter = break_ties(from_log(log, FILMS, 'x'), 'item').interactions
    assert (inter.user_ids, inter.items.tolist()) == (('a', 'b'), [1, 2, 5])


def test_units_and_moments():
    when = CLUB.interactions.times
    assert time_unit([]) == 's'
    for cut in ('2024-03-01', pd.Timestamp('2024-03-01'), np.datetime64('2024-03-01'), '2024-03-01T02:00+02:00'):
        assert _moment(cut, when, 'ms', 'test') == 1709251200000.0
    for cut in ('2500-01-01', pd.Timestamp('2500-01-01'), np.datetime64('2500-01-01')):  # more than nanoseconds reach
        assert _moment(cut, when, 's', 'test') == 16725225600.0
    assert _moment(np.float32(2), when, 's', 'test') == 2.0
    assert _date(1.7e9, 's') == '2023-11-14 22:13:20'


def test_a_leak_counts_what_was_trained_on():
    held = hold_out_users(CLUB, 100, 20, 50)
    own = CLUB.interactions.lengths[np.unique(held.train.users)].sum()
    assert time_leak(held, CLUB).trained == own
    once = temporal_split(CLUB, repeats='first_only')
    assert time_leak(once, CLUB).trained == once.about['interactions']['trained on']
    assert TimeLeak(0, 0, 0, 0, 1, 2).tested == 1


def test_a_leak_needs_times_and_rows_of_this_dataset():
    loo = leave_one_out(CLUB, history=5)
    refused(lambda: time_leak(leave_one_out(UNTIMED), UNTIMED), 'no times')
    refused(lambda: time_leak(loo, HAND), 'give the dataset that the split was made from')
    refused(lambda: time_leak(loo, CLUB, 'train'), 'part')
    refused(lambda: time_leak(leave_one_out(RANKED), RANKED), 'positions')
    refused(lambda: time_leak(replace(loo, test=loo.test.take([])), CLUB), 'no test rows')
