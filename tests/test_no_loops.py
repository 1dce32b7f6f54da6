"""No Python loop over users, rows or items: a table four times as long is handled by as many lines of Python."""

import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import vlm2rec_lab
from vlm2rec_lab.data import Catalogue, Dataset, Interactions, hold_out_users, last_basket, leave_one_out
from vlm2rec_lab.ranking.baselines import baselines
from vlm2rec_lab.ranking.evaluate import evaluate
from vlm2rec_lab.shop.log_files import read_log
from vlm2rec_lab.shop.profile import profile
from vlm2rec_lab.shop.shares import shares

PACKAGE = str(Path(vlm2rec_lab.__file__).parent)


def lines_of(f):
    "How often each line of the package was reached while `f()` ran, in this thread."
    found = Counter()

    def heard(frame, event, arg):
        if event == 'line':
            found[frame.f_code.co_filename, frame.f_lineno] += 1
        return heard

    def called(frame, event, arg):
        return heard if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(called)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            f()
    finally:
        sys.settrace(before)
    return found


def log(users, seed=0):
    "A drawn shop: so many users, with five to nine purchases each, of 300 items."
    rng = np.random.default_rng(seed)
    offsets = np.append(0, np.cumsum(rng.integers(5, 10, users)))
    n = offsets[-1]
    times = np.concatenate([np.sort(rng.integers(0, 400, k)) for k in np.diff(offsets)]) * 86_400.0
    catalogue = Catalogue([f'i{k}' for k in range(300)], {'text': [f'thing {k}' for k in range(300)]}, {'text': 'text'})
    inter = Interactions([f'u{k}' for k in range(users)], offsets, rng.integers(0, 300, n), times)
    return Dataset(catalogue, inter, 'drawn')


def csv(folder, users):
    "The same as a file."
    inter = log(users).interactions
    who = np.repeat(inter.user_ids, np.diff(inter.offsets))
    table = pd.DataFrame(dict(user_id=who, item_id=inter.items, timestamp=inter.times))
    table.to_csv(folder / f'{users}.csv', index=False)
    table.to_parquet(folder / f'{users}.parquet')


def ranked(users):
    "An evaluation with lists of seen items."
    rng, data = np.random.default_rng(0), log(users).interactions
    items, sides = {'a': rng.normal(size=(300, 4))}, {'a': rng.normal(size=(users, 4))}
    return lambda: evaluate(items, sides, rng.integers(0, 300, users), (data.offsets, data.items), bootstrap=20)


WORK = {
    'leave one out': lambda n: partial(leave_one_out, log(n)),
    'last baskets': lambda n: partial(last_basket, log(n), new=True),
    'baskets of a day': lambda n: partial(last_basket, log(n), within='day', unit='s'),
    'shares': lambda n: partial(shares, log(n)),
    'held-out users': lambda n: partial(hold_out_users, log(n), 300, 100, 100),
    'profile': lambda n: partial(profile, log(n), progress=False),
    'evaluation': ranked,
}


def assert_no_loop(few, many, size):
    "As many lines, but for those that stand in a loop over blocks."
    worst = {at: (few[at], k) for at, k in many.items() if k > few[at] + size // 20}
    assert not worst, {f'{Path(file).relative_to(PACKAGE)}:{line}': k for (file, line), k in worst.items()}


@pytest.mark.parametrize('name', WORK)
def test_lines_do_not_grow_with_the_users(name):
    few, many = (lines_of(WORK[name](n)) for n in (500, 2000))
    assert few
    assert_no_loop(few, many, 2000)


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_lines_do_not_grow_with_the_rows_of_a_file(tmp_path, kind):
    for n in (500, 2000):
        csv(tmp_path, n)
    few, many = (lines_of(partial(read_log, tmp_path / f'{n}.{kind}', progress=False)) for n in (500, 2000))
    assert_no_loop(few, many, 2000)


def test_baselines_do_not_loop_over_the_users():
    made = [leave_one_out(log(n)) for n in (500, 2000)]
    few, many = (lines_of(partial(baselines, split, progress=False)) for split in made)
    assert_no_loop(few, many, 2000)


def test_a_loop_is_seen():
    "A check that cannot fail would be none."
    source = 'def loop(n):\n    return [k + 1\n        for k in range(n)]\n'
    names = {}
    exec(compile(source, f'{PACKAGE}/made_up.py', 'exec'), names)
    few, many = (lines_of(partial(names['loop'], n)) for n in (500, 2000))
    with pytest.raises(AssertionError, match='made_up.py:3'):
        assert_no_loop(few, many, 2000)
