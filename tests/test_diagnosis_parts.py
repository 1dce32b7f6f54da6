"""Parts of a large shop: drawn fairly, read alone, and told by the law of drawing."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.base.ragged import Ragged
from vlm2rec_lab.diagnosis.parts import expected_among, over_draws, sampled_reports, sub_shop
from vlm2rec_lab.ranking.ranks import GAINS, Ranks, metric_at_k


class Rows:
    "A matrix that remembers which of its rows were read."

    def __init__(self, x):
        self.x, self.read = x, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        self.read += [rows]
        return self.x[rows]


@st.composite
def shops(draw):
    "Numbered vectors, targets and seen lists of a small shop."
    n, users = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    targets = np.array(draw(st.lists(st.integers(0, n - 1), min_size=users, max_size=users)))
    seen = [draw(st.lists(st.integers(0, n - 1), max_size=4, unique=True)) for _ in range(users)]
    return n, users, targets, [sorted(set(s) - {t}) for s, t in zip(seen, targets)]


@given(shops(), st.integers(1, 14), st.integers(0, 3))
def test_a_part_holds_the_same_customers_products_and_seen_lists(shop, candidates, seed):
    n, users, targets, seen = shop
    items, people = np.arange(n)[:, None] * 1.0, np.arange(users)[:, None] * 1.0
    part = sub_shop({'m': items}, {'m': people}, targets, Ragged.of(seen), candidates, seed=seed)
    kept, who = part['items']['m'][:, 0].astype(int), part['sequences']['m'][:, 0].astype(int)
    assert len(kept) == min(candidates, n)
    assert kept.tolist() == sorted(set(kept))
    assert who.tolist() == [u for u in range(users) if targets[u] in kept]
    assert kept[part['targets']].tolist() == targets[who].tolist()
    assert [kept[s].tolist() for s in Ragged(*part['seen'])] == [[i for i in seen[u] if i in kept] for u in who]


def test_only_the_drawn_rows_are_read():
    items, people = Rows(np.eye(50)), Rows(np.eye(40, 50))
    part = sub_shop({'m': items}, {'m': people}, np.arange(40), candidates=10, users=3)
    assert [len(r) for r in items.read + people.read] == [10, 3]
    assert part['targets'].shape == (3,)


@given(shops(), st.integers(1, 14))
def test_seen_comes_in_every_form(shop, candidates):
    n, users, targets, seen = shop
    wide = np.array([(s + [-1] * 4)[:4] for s in seen])
    flat = Ragged.of(seen)
    forms = (seen, wide, flat, (flat.offsets, flat.items))
    parts = [sub_shop({'m': np.eye(n)}, {'m': np.eye(users, n)}, targets, form, candidates) for form in forms]
    assert len({str([x.tolist() for x in p['seen']]) for p in parts}) == 1


@pytest.mark.parametrize('side, rows', [('items', 39), ('sequences', 41)])
def test_rows_that_do_not_fit_together_are_named(side, rows):
    shop = dict(items={'a': np.eye(50), 'b': np.eye(50)}, sequences={'a': np.eye(40, 50), 'b': np.eye(40, 50)})
    shop[side]['b'] = np.eye(rows, 50)
    with pytest.raises(DataError, match=rf"{side}\['b'\] has {rows} rows"):
        sub_shop(**shop, targets=np.arange(40))


@pytest.mark.parametrize('name', ['candidates', 'users'])
@pytest.mark.parametrize('value', [0, -1, 2.5, True, np.inf, 'a'])
def test_a_number_that_cannot_be_is_named(name, value):
    with pytest.raises(DataError, match=f'{name}={value}'):
        sub_shop({'m': np.eye(4)}, {'m': np.eye(4)}, [0, 1, 2, 3], **{name: value})


def test_too_few_customers_are_told_with_the_remedy():
    with pytest.raises(DataError, match='draw some 100 items'):
        sub_shop({'m': np.eye(100)}, {'m': np.eye(100)}, np.arange(100), candidates=10, users=100)


@pytest.mark.parametrize('metric', GAINS)
@settings(deadline=None)  # the first call imports scipy.stats
@given(st.integers(1, 7), st.integers(0, 6), st.integers(0, 6), st.integers(1, 7), st.integers(1, 5))
def test_what_is_expected_is_the_mean_over_every_draw(metric, n, above, ties, candidates, k):
    from itertools import combinations

    above, candidates = min(above, n - 1), min(candidates, n)
    ties = min(ties, n - 1 - above)
    others = [1] * above + [0] * ties + [-1] * (n - 1 - above - ties)
    drawn = [[others[i] for i in c] for c in combinations(range(n - 1), candidates - 1)]
    counts = np.array([[d.count(1), d.count(0)] for d in drawn])
    plain = metric_at_k(Ranks(counts[:, 0], counts[:, 1], np.full(len(drawn), candidates)), k, metric).mean()
    found = expected_among(Ranks(np.array([above]), np.array([ties]), np.array([n])), candidates, k, metric)
    assert found == pytest.approx([plain], abs=1e-9)


def test_many_ties_are_looked_at_in_part_and_stay_close():
    ranks = Ranks(np.array([3]), np.array([900]), np.array([20_000]))
    few = expected_among(ranks, 400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('vlm2rec_lab.diagnosis.parts.TIES', 10**6)
        every = expected_among(ranks, 400)
    assert few == pytest.approx(every, abs=0.01)


def test_more_candidates_than_there_are_is_refused():
    with pytest.raises(ValueError, match='give 1 to 5'):
        expected_among(Ranks(np.zeros(2, int), np.zeros(2, int), np.array([5, 9])), 6)


def test_draws_differ_and_begin_again_with_their_seed():
    from vlm2rec_lab.diagnosis.bench import synthetic_task

    shop = synthetic_task(300, 300, 2, 8)
    how = dict(candidates=120, draws=2, permutations=2, bootstrap=20, missing=(), progress=False)
    one, two = sampled_reports(**shop, **how)
    assert one.data != two.data
    assert two.targets.tolist() != one.targets.tolist()
    later = sampled_reports(**shop, **how, seed=1)[0]
    assert later.targets.tolist() == two.targets.tolist()


def test_the_interval_is_that_of_student_over_draws():
    from scipy.stats import ttest_1samp

    values, wide = [0.2, 0.26, 0.21, 0.3], 0.05
    seen = [dict(value=v, low=v - wide, high=v + wide) for v in values]
    verdicts = ['healthy', 'healthy', 'undecided', 'healthy']
    reports = [
        SimpleNamespace(
            modalities=['m'], data=dict(modalities=dict(m=dict(verdict=w, evidence=dict(ndcg=f, drop_mean=f))))
        )
        for f, w in zip(seen, verdicts)
    ]
    found = over_draws(reports).iloc[0]
    true = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((true.low, true.high))
    assert (found['mean'], found.own) == pytest.approx((np.mean(values), wide))
    assert found.verdicts == 'healthy 3, undecided 1'


def test_one_draw_has_no_error():
    with pytest.raises(ValueError, match='two or more'):
        over_draws([])


def test_the_figure_of_a_user_is_her_own():
    "Whatever ties others have; where the smaller shop is the whole one it is the metric itself."
    ties, n = np.array([0, 1, 2, 3, 5, 12, 63, 80]), len([0, 1, 2, 3, 5, 12, 63, 80])
    all_of_them = Ranks(np.arange(n), ties, np.full(n, 200))
    for candidates in (20, 200):
        alone = [
            expected_among(Ranks(*(np.array([x[k]]) for x in (np.arange(n), ties, np.full(n, 200)))), candidates)[0]
            for k in range(n)
        ]
        assert expected_among(all_of_them, candidates) == pytest.approx(alone, abs=1e-12)
    assert alone[:7] == pytest.approx(metric_at_k(all_of_them, 10)[:7], abs=1e-12)


def test_sizes_may_be_written_as_floats():
    found = sub_shop({'m': np.eye(6)}, {'m': np.eye(6)}, np.arange(6), None, 6.0, 2.0)
    assert len(found['targets']) == 2


def test_what_does_not_fit_is_refused():
    x, seen = np.eye(6), [[1], [2], [3], [4], [5], [0]]
    plain = sub_shop({'m': x}, {'m': x}, np.arange(6), seen, 6)['seen']
    for form in (tuple(seen), tuple(map(np.array, seen))):
        found = sub_shop({'m': x}, {'m': x}, np.arange(6), form, 6)['seen']
        assert all((a == b).all() for a, b in zip(found, plain))
    flat = np.arange(7), np.array([1, 2, 3, 4, 5, 0])
    broken = (flat[0] + 1, flat[1]), (flat[0], flat[1][:-2]), (flat[0], np.append(flat[1], 1))
    for wrong in (seen[:3], [*seen, [1]], (np.array([0, 1]), np.array([1])), *broken):
        with pytest.raises((ValueError, TypeError), match='seen'):
            sub_shop({'m': x}, {'m': x}, np.arange(6), wrong, 6)
    with pytest.raises(ValueError, match='targets: row 0 is 0.5, not a whole number'):
        sub_shop({'m': x}, {'m': x}, np.arange(6) + 0.5, None, 6)


def test_what_cannot_be_drawn_is_named():
    "Seeds, draws, modalities, and more customers than there are: what is advised exists."
    rng = np.random.default_rng(0)
    shop = dict(items=dict(m=rng.normal(size=(500, 4))), sequences=dict(m=rng.normal(size=(100, 4))))
    shop['targets'] = rng.integers(0, 500, 100)
    for how, said in (
        (dict(seed=-1), 'seed is -1: give a whole number'),
        (dict(items={}), r'items has the modalities \[\] and sequences .*: give both the same ones'),
        (dict(sequences={}), 'give both the same ones'),
        (dict(users=1000), 'users=1000: there are 100 customers; ask for fewer, or None for all'),
        (dict(users=90, candidates=100), 'draw some 450 items'),
    ):
        with pytest.raises(ValueError, match=said):
            sub_shop(**shop | how)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f'draws is {wrong}: give a whole number, 1 or more'):
            sampled_reports(**shop, draws=wrong)
