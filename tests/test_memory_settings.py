"Settings whose content and memory are known: what is true of them, what is said, and what the stored cases hold."

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.diagnosis.calibrate import run_memory
from vlm2rec_lab.diagnosis.memory import LIMITS
from vlm2rec_lab.diagnosis.memory_settings import (
    ASKED,
    MEMORIES,
    MemorySetting,
    judge_memory,
    learned,
    memory_half,
    memory_rates,
    said_kinds,
    tasks_of,
    taught,
    true_kind,
    true_shares,
)

STORED = Path(__file__).resolve().parent.parent / 'data' / 'calibration'


def test_noise_behind_a_head_is_memory_and_a_control_reaches_as_much():
    t = taught(MemorySetting(dict(text=0, image=1), contents=1024, ridge=0.01))
    shares = true_shares(t, 1500, 2)
    assert abs(shares['text']['other']) < 0.1 and abs(shares['text']['exchanged']) < 0.3
    assert shares['image']['other'] > 0.9 and shares['image']['exchanged'] > 0.9


@pytest.mark.parametrize('control', ['exchanged', 'spectrum'])
def test_a_control_cuts_the_tie_and_keeps_the_purchases(control):
    t = taught(MemorySetting(dict(text=1, image=0), control=control))
    own, other = tasks_of(t, 300)
    assert np.array_equal(own.targets, other.targets) and np.array_equal(own.seen[1], other.seen[1])
    assert not np.allclose(own.items['text'], other.items['text'], atol=0.1)
    assert t.bought[own.seen[1]].all() and (~t.bought)[own.targets].any()


def test_a_head_is_fitted_to_what_was_bought_alone():
    t = taught(MemorySetting(dict(text=0.5, image=0.5)))
    items = learned(t, t.contents)['text']
    other = {m: np.concatenate([x[: len(t.wanted)], -x[len(t.wanted) :]]) for m, x in t.contents.items()}
    again = learned(t, other)['text']
    assert np.allclose(items[t.bought.nonzero()[0]], again[t.bought.nonzero()[0]], atol=1e-5)
    assert np.allclose(items[len(t.wanted) :], -again[len(t.wanted) :], atol=1e-4)


def test_halves_hold_every_kind_and_truths_are_of_their_words():
    halves = {half: [n for n in MEMORIES if memory_half(n) == half] for half in ('set', 'report')}
    assert min(map(len, halves.values())) >= 20
    for names in halves.values():
        alive = [a for n in names for a in MEMORIES[n].alive.values()]
        assert 0 in alive and any(0 < a < 0.3 for a in alive) and any(a >= 0.5 for a in alive)
        assert {MEMORIES[n].control for n in names} == {'exchanged', 'spectrum'}
        assert any(MEMORIES[n].ridge is None for n in names)
    assert true_kind(dict(other=0.04, exchanged=0.7), 0.2) == 'memory/both/content'


def test_figures_that_are_not_there_say_nothing_and_thresholds_decide():
    row = {f'{n} {e}': math.nan for n in ('content', 'cold') for e in ('value', 'low', 'high')}
    assert set(said_kinds(row).values()) == {'unclear'}
    row |= {'cold value': 0.7, 'cold low': 0.65, 'cold high': 0.75}
    assert said_kinds(row)['new items'] == 'both' and said_kinds(row)['control'] == 'unclear'
    assert said_kinds(row, LIMITS | dict(whole=0.6))['new items'] == 'content'


def test_a_run_is_in_order_and_repeats():
    names = ['three: one dead', 'few items: text dead, image alive']
    table = run_memory(names, (300,), (3,), jobs=1, progress=False)
    order = list(dict.fromkeys(table.setting))
    assert order == sorted(names, key=list(MEMORIES).index) and len(table) == 5
    again = pd.DataFrame(judge_memory(names[0], (300,), 3)).sort_values('modality', ignore_index=True)
    mine = table[table.setting == names[0]].reset_index(drop=True)
    assert mine['content value'].equals(again['content value'])
    with pytest.raises(DataError, match='did you mean'):
        run_memory(['three: one ded'], progress=False)


def test_the_stored_cases_keep_what_is_claimed():
    table = pd.read_csv(STORED / 'memory.csv.gz')
    assert set(table.half) == {'report'} and set(table.setting) == {n for n in MEMORIES if memory_half(n) == 'report'}
    enough = table[table.users >= 1000].assign(all=0)
    for asked in ASKED:
        r = memory_rates(enough, asked, 'all').loc[0]
        assert r['content taken for memory'] <= 0.01 and r['memory taken for content'] <= 0.02, (asked, r)
    assert memory_rates(enough, 'both', 'all').loc[0, 'wrong in any way'] <= 0.05


def test_the_limits_in_use_are_those_that_the_first_half_chose():
    limits = pd.read_csv(STORED / 'limits.csv')
    chosen = limits[limits.chosen].set_index('limit').value.to_dict()
    assert chosen == {k: LIMITS[k] for k in chosen} and set(chosen) == {'content', 'some', 'cold', 'whole'}
