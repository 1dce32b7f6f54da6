"The drawn shop in time: what is stated is so, what cannot be drawn is refused, and nothing needs a table of all pairs."

import importlib.util
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated.blocks import PARTS, blocks, joined
from vlm2rec_lab.federated.drift import drifting, kept_taste

DAY = 86400.0
ROOT = Path(__file__).resolve().parent.parent


@settings(max_examples=25)
@given(
    st.integers(1, 30),
    st.integers(1, 4),
    st.floats(0, 1),
    st.floats(0, 0.5),
    st.floats(0, 1),
    st.integers(1, 8),
    st.integers(0, 3),
)
def test_what_is_stated_is_so(users, parts, drift, launches, newcomers, purchases, seed):
    how = dict(drift=drift, launches=launches, newcomers=newcomers, purchases=purchases, rank=4, seed=seed)
    drawn = drifting(users, 40, parts, **how)
    inter, n = drawn.dataset.interactions, users * purchases
    who, days = np.repeat(np.arange(users), purchases), inter.times / DAY
    assert inter.lengths.tolist() == [purchases] * users
    assert len(np.unique(who * 40 + inter.items)) == n
    assert (drawn.launched[inter.items] <= days).all() and days.min() >= 0 and days.max() <= 365
    late = drawn.launched > 0
    assert late.sum() == round(40 * launches) and (drawn.launched[late] > drawn.ends[0]).all()
    assert drawn.vectors.shape == (40, 4) and drawn.tastes.shape == (parts + 1, users, 4)
    assert np.allclose(np.linalg.norm(drawn.tastes, axis=2), 1)
    assert np.allclose((drawn.tastes[1:] * drawn.tastes[:-1]).sum(2), 1 - drift)
    assert len(drawn.ends) == parts and (np.diff(drawn.ends) >= 0).all()


def test_tastes_stay_without_drift_and_nothing_is_left_with_a_drift_of_one():
    how = dict(launches=0, newcomers=0, purchases=40)
    kept = {d: kept_taste(drifting(500, 1500, 3, drift=d, **how))[1:] for d in (0, 0.5, 1)}
    assert kept[0].min() > 0.6 and np.ptp(kept[0]) < 0.06
    assert np.abs(kept[1]).max() < 0.06
    assert (np.diff(kept[0.5]) < -0.05).all() and kept[0.5].max() < 0.45


def test_taste_decides_as_much_as_it_is_told_to():
    def liked(strength):
        drawn = drifting(300, 300, 1, drift=0, launches=0, newcomers=0, purchases=10, strength=strength)
        who = np.repeat(np.arange(300), 10)
        return (drawn.tastes[0][who] * drawn.vectors[drawn.dataset.interactions.items]).sum(1).mean()

    none, some, much = map(liked, (0.0, 3.0, 8.0))
    assert abs(none) < 0.05 < some < much


def test_shops_that_differ_by_drift_have_the_same_past_and_equal_seeds_the_same_shop():
    a, b, again = (drifting(60, 100, 2, drift=d, purchases=10, seed=4).dataset.interactions for d in (0, 1, 1))
    ends = drifting(60, 100, 2, purchases=10, seed=4).ends
    past = a.times <= ends[0] * DAY
    assert (a.times == b.times).all() and (a.items[past] == b.items[past]).all()
    assert (a.items[~past] != b.items[~past]).mean() > 0.5 and (b.items == again.items).all()
    assert (b.items != drifting(60, 100, 2, drift=1, purchases=10, seed=5).dataset.interactions.items).mean() > 0.5


def test_a_block_is_a_time():
    drawn = drifting(200, 150, 3, launches=0.2, purchases=12)
    made, inter = blocks(drawn.dataset, core=0), drawn.dataset.interactions
    who = np.repeat(np.arange(200), 12)
    time = dict(zip(zip(who, inter.items), np.searchsorted(drawn.ends, inter.times / DAY)))
    found = []
    for k, block in enumerate(made):
        pairs = joined(*(getattr(block, part) for part in PARTS))
        users = [int(made.user_ids[u][1:]) for u in pairs.users]
        found += [time[u, i] == k for u, i in zip(users, made.catalogue[pairs.items])]
    assert np.mean(found) > 0.999 and len(found) == len(inter.items)
    assert made[3].items > made[0].items and made[3].users > made[0].users


def test_no_table_of_all_customers_and_items():
    users, items = 4000, 3000
    tracemalloc.start()
    drifting(users, items, 2, purchases=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < users * items * 4 / 2  # half of a table of one time in float32


@pytest.mark.parametrize(
    'wrong, said',
    [
        (dict(users=0), 'users=0'),
        (dict(items=1), 'items=1'),
        (dict(parts=2.5), 'parts=2.5'),
        (dict(purchases=0), 'purchases=0'),
        (dict(drift=-0.1), 'drift=-0.1'),
        (dict(launches=1.2), 'launches=1.2'),
        (dict(newcomers=2), 'newcomers=2'),
        (dict(base=0.0), 'base=0.0'),
        (dict(strength=99), 'strength=99'),
        (dict(rank=1), 'rank=1'),
        (dict(length=0.0), 'length=0.0'),
        (dict(items=20, launches=0.5, purchases=6), 'fewer launches'),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong, said):
    with pytest.raises(DataError, match=said):
        drifting(**dict(users=10, items=100, parts=3) | wrong)


@pytest.fixture
def script(monkeypatch):
    "A benchmark as a module."
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))

    def load(name):
        spec = importlib.util.spec_from_file_location(f'benchmark_{name}', ROOT / 'benchmarks' / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize('name', ['FedMF', 'PFedRec'])
def test_the_loop_of_the_benchmark_comes_to_the_same_items(script, name):
    size = dict(backbone=name, clients=12, items=30, pairs=4, dim=4, rounds=1, seed=0)
    found = script('federated').loop(SimpleNamespace(**size))
    assert found['apart'] < 1e-5 * max(1, found['moved']) and found['moved'] > 1e-4 and found['ratio'] > 0


def test_clients_of_the_benchmark_have_different_items(script):
    pairs = script('federated').drawn_pairs(1500, 40, 6, 0)
    assert np.bincount(pairs.users).tolist() == [6] * 1500 and pairs.items.max() == 39
    assert len(np.unique(pairs.users * 40 + pairs.items)) == len(pairs)
    assert not torch.equal(*(torch.from_numpy(pairs.items[a : a + 6]) for a in (0, 6000)))


def test_intervals_over_drawn_shops_by_hand(script):
    def shop(value, gain):
        return pd.DataFrame([dict(method='ARM', average='HM', value=value, gain=gain)])

    (row,) = script('federated_drift').over_worlds([shop(0.1, 0.02), shop(0.2, 0.02), shop(0.3, 0.02)])
    half = 4.302652729911275 * 0.1 / np.sqrt(3)  # t of two degrees of freedom
    assert np.allclose([row['value'], row['low'], row['high']], [0.2, 0.2 - half, 0.2 + half])
    assert np.allclose([row['gain'], row['gain low'], row['gain high']], 0.02) and row['repeats'] == 3


@pytest.mark.slow
def test_both_benchmarks_run(tmp_path):
    def run(name, *more):
        how = dict(cwd=tmp_path, capture_output=True, text=True, timeout=1000)
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
        asked = [sys.executable, str(ROOT / 'benchmarks' / name), *more, '--small', '--out', str(tmp_path / 'out')]
        done = subprocess.run(asked, env=env, **how)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    assert 'films are left out' in run('federated.py', '--backbones', 'FedMF')
    found = json.loads((tmp_path / 'out').read_text())
    assert len(found['rows']) == 2 and len(found['loop']) == 1 and not found['films']
    (tmp_path / 'out').unlink()
    assert 'films are left out' in run('federated_drift.py', str(tmp_path / 'work'), '--studies', 'drift', 'films')
    table = pd.read_csv(tmp_path / 'out' / 'federated_drift.csv')
    assert len(table) == 4 * 5 * 3 and set(table.method) == {'fine-tuning', 'ARM', 'ITM', 'ARM+ITM', 'replay'}
    assert (table.value > 0).all() and table.gain.notna().sum() == 4 * 4 * 3
