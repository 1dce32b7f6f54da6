"""Metrics of sets of targets: against all orders of all ties, against one target, and through every door."""

import itertools
import json
import warnings
from fractions import Fraction
from math import factorial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.ragged import Ragged
from vlm2rec_lab.data import Catalogue, Dataset, Interactions, last_basket, leave_one_out
from vlm2rec_lab.metrics import (
    GAINS,
    SetRanks,
    baselines,
    chance_of,
    evaluate,
    figure_at_k,
    metric_at_k,
    metric_names,
    ranks,
    sample_negatives,
    seen_items,
    set_ranks,
    target_sets,
    with_negatives,
)
from vlm2rec_lab.ranking.baseline_scores import past_choices, ranks_of_order, ranks_of_scores
from vlm2rec_lab.ranking.vectors import read_vectors, write_vectors

quiet = pytest.mark.filterwarnings('ignore')
many = settings(max_examples=150, deadline=None, database=None)
DAY = 86400.0


def plain(order, asked, k):
    "All metrics of one order, by their definitions."
    hits = [r for r, i in enumerate(order[:k]) if i in asked]
    ideal = sum(1 / np.log2(r + 2) for r in range(min(k, len(asked))))
    return dict(
        HR=float(bool(hits)),
        Recall=len(hits) / len(asked),
        Precision=len(hits) / k,
        NDCG=sum(1 / np.log2(r + 2) for r in hits) / ideal,
        MRR=1 / (hits[0] + 1) if hits else 0.0,
    )


def averaged(values, candidates, asked, k):
    "The mean over every order of every tie of some candidates."
    levels = sorted({values[i] for i in candidates}, reverse=True)
    groups = [[i for i in candidates if values[i] == level] for level in levels]
    every = [
        plain(list(itertools.chain(*parts)), asked, k)
        for parts in itertools.product(*(list(itertools.permutations(g)) for g in groups))
    ]
    return {m: float(np.mean([x[m] for x in every])) for m in every[0]}


@st.composite
def tasks(draw):
    "Scores with ties [users, items], sets, seen items and a cut-off."
    items, users = draw(st.integers(2, 7)), draw(st.integers(1, 3))
    scores = draw(st.lists(st.lists(st.integers(0, 2), min_size=items, max_size=items), min_size=users, max_size=users))
    sets = draw(
        st.lists(
            st.lists(st.integers(0, items - 1), min_size=1, max_size=4, unique=True), min_size=users, max_size=users
        )
    )
    seen = draw(st.lists(st.lists(st.integers(0, items - 1), max_size=2), min_size=users, max_size=users))
    seen = [[i for i in x if i not in s] for x, s in zip(seen, sets)]
    return np.array(scores, float), sets, seen, draw(st.integers(1, 8))


def prepared(task):
    "Ragged sets and seen items, and the targets that stand for the sets."
    scores, sets, seen, _ = task
    targets, n = np.array([s[0] for s in sets]), scores.shape[1]
    asked = target_sets(sets, targets, n)
    return targets, asked, seen_items(seen, targets, n, asked)


def ways(scores, targets, asked, out, negatives=None):
    "The ranks of a task by each function that makes them."
    n = scores.shape[1]
    yield set_ranks(np.eye(n), scores, asked, out, negatives, chunk=2)
    yield ranks_of_scores(lambda rows: scores[rows], targets, n, out, negatives, 2, False, 'x', asked)
    if len(scores) == 1:
        yield ranks_of_order(scores[0], targets, out, negatives, asked)


@quiet
@many
@given(tasks())
def test_every_metric_is_the_mean_over_all_orders(task):
    scores, sets, seen, k = task
    targets, asked, out = prepared(task)
    for r in ways(scores, targets, asked, out):
        for u, s in enumerate(sets):
            candidates = [i for i in range(scores.shape[1]) if i not in seen[u]]
            want = averaged(scores[u], candidates, s, k)
            assert {m: figure_at_k(r, k, m)[u] for m in metric_names(r)} == pytest.approx(want, abs=1e-12)
            assert r.candidates[u] == len(candidates)


@quiet
@many
@given(tasks(), st.integers(1, 4), st.integers(0, 9))
def test_the_same_beside_sampled_negatives(task, n, seed):
    scores, sets, seen, k = task
    targets, asked, out = prepared(task)
    drawn = sample_negatives(out, targets, scores.shape[1], n, seed, asked)
    for r in ways(scores, targets, asked, out, drawn):
        for u, s in enumerate(sets):
            others = [i for i in drawn[u].tolist() if i >= 0]
            assert not {*others} & ({*s} | {*seen[u]})
            want = averaged(scores[u], sorted({*s, *others}), s, k)
            assert {m: figure_at_k(r, k, m)[u] for m in metric_names(r)} == pytest.approx(want, abs=1e-12)
            assert r.candidates[u] == len({*s, *others})


@quiet
@many
@given(tasks(), st.randoms(use_true_random=False))
def test_no_order_has_a_say(task, random):
    "Users, items and the items of a set in another order: the same figures."
    scores, sets, seen, k = task
    users, items = (
        random.sample(range(len(scores)), len(scores)),
        random.sample(range(scores.shape[1]), scores.shape[1]),
    )
    back = np.argsort(items)
    turned = scores[users][:, items], [back[random.sample(sets[u], len(sets[u]))].tolist() for u in users]
    turned += ([back[seen[u]].tolist() if seen[u] else [] for u in users], k)
    a, b = (next(ways(t[0], *prepared(t))) for t in (task, turned))
    for m in metric_names(a):
        assert figure_at_k(b, k, m) == pytest.approx(figure_at_k(a, k, m)[users], abs=1e-12)


def exact_hit(n, m, shown):
    "Chance that one of m targets is among the first places of n, in whole numbers."

    def choose(a, b):
        return factorial(a) // factorial(b) // factorial(a - b) if 0 <= b <= a else 0

    return float(1 - Fraction(choose(n - m, shown), choose(n, shown)))


@pytest.mark.parametrize('n, m, k', [(20_000, 3, 10), (1000, 50, 20), (60, 59, 5), (7, 7, 3), (500, 2, 499)])
def test_chance_of_large_catalogues(n, m, k):
    zeros = np.zeros(m, np.int64)
    r = SetRanks(np.array([0, m]), zeros, zeros, zeros, np.array([n]))
    assert chance_of(r, k, 'HR')[0] == pytest.approx(exact_hit(n, m, k), abs=1e-12)
    assert chance_of(r, k, 'Recall')[0] == pytest.approx(k / n, abs=1e-12)
    assert chance_of(r, k, 'Precision')[0] == pytest.approx(m / n, abs=1e-12)


# ---- one target: the digits of before


@quiet
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('negatives', [None, 7])
def test_one_target_is_as_before_to_the_last_digit(dtype, negatives):
    rng = np.random.default_rng(0)
    items, users = (rng.normal(size=(n, 6)).round(1).astype(dtype) for n in (50, 300))
    items[25:] = items[:25]  # ties
    targets = rng.integers(0, 50, 300)
    seen = [np.setdiff1d(rng.integers(0, 50, 6), [t]) for t in targets]
    how = dict(items=dict(a=items, b=items[:, ::-1]), sequences=dict(a=users, b=users), targets=targets, seen=seen)
    before = evaluate(**how, negatives=negatives)
    now = evaluate(**how, negatives=negatives, sets=[[t] for t in targets])
    for view in before:
        for name, values in before.per_user[view].items():
            assert np.array_equal(now.per_user[view][name], values), (view, name)
            assert before.interval(view, name) == now.interval(view, name)
    assert {n: now.chance[n] for n in before.chance} == before.chance
    assert list(before['fused']) == [f'{m}@{k}' for k in (10, 20) for m in GAINS]


def a_shop(users=150, items=40, seed=0, size=3):
    "Baskets by day, of one to `size` items, of a favourite half of the shop."
    rng = np.random.default_rng(seed)
    who, what, when = [], [], []
    for u in range(users):
        for b in range(4):
            n = rng.integers(1, size + 1)
            what += (rng.choice(items // 2, n, replace=False) + (u % 2) * (items // 2)).tolist()
            who += [u] * n
            when += [20_000 + b + u % 3] * n
    catalogue = Catalogue(
        [f'i{k}' for k in range(items)],
        {'text': [f'half {2 * k // items} no {k}' for k in range(items)]},
        {'text': 'text'},
    )
    offsets = np.searchsorted(who, np.arange(users + 1))
    inter = Interactions([f'u{u}' for u in range(users)], offsets, what, np.array(when) * DAY)
    return Dataset(catalogue, inter, 'halves')


@quiet
def test_baselines_of_baskets_of_one_are_those_of_leave_one_out():
    data = a_shop(size=1)
    one, basket = leave_one_out(data), last_basket(data)
    assert np.array_equal(one.test.targets, basket.test.targets)
    for negatives in (None, 9):
        a, b = (baselines(s, dataset=data, negatives=negatives) for s in (one, basket))
        for view in a:
            for name, values in a.per_user[view].items():
                assert np.array_equal(b.per_user[view][name], values), (view, name)
        assert {n: b.chance[n] for n in a.chance} == a.chance


# ---- every door


@quiet
@pytest.mark.parametrize('negatives', [None, 9])
def test_baselines_rank_sets(negatives):
    data = a_shop()
    split = last_basket(data)
    found = baselines(split, dataset=data, negatives=negatives, k=5)
    assert set(found['random']) == {f'{m}@5' for m in ('HR', 'NDCG', 'MRR', 'Recall', 'Precision')}
    assert found['random'] == pytest.approx(found.chance)
    assert found['co-occurrence']['Recall@5'] > found.chance['Recall@5']
    assert found['co-occurrence']['HR@5'] >= found['co-occurrence']['Recall@5']
    assert 'sets of 1 to 3 next items' in found.protocol
    json.dumps(found.to_dict())
    counts = np.bincount(past_choices(split)[1], minlength=40)
    asked = (split.test.set_offsets, split.test.set_items)
    scores = np.tile(counts.astype(float), (len(split.test), 1))
    out = seen_items((split.test.seen_offsets, split.test.seen_items), split.test.targets, 40, asked)
    drawn = None if negatives is None else sample_negatives(out, split.test.targets, 40, negatives, 0, asked)
    by_vectors = set_ranks(np.eye(40), scores, asked, out, drawn)
    for m in metric_names(by_vectors):
        want = figure_at_k(by_vectors, 5, m)
        assert found.per_user['popularity'][f'{m}@5'] == pytest.approx(want, abs=1e-12)


@quiet
def test_all_of_the_validation_basket_is_past():
    split = last_basket(a_shop())
    pairs = {*zip(*map(list, past_choices(split)))}
    assert {(u, i) for u, s in zip(split.valid.users, split.valid.sets) for i in s} <= pairs
    assert len(split.valid.set_items) > len(split.valid)


@quiet
def test_negatives_of_a_split_of_sets():
    split = last_basket(a_shop())
    for by in ('uniform', 'popularity'):
        more = with_negatives(split, 12, by=by)
        for row, (asked, seen) in enumerate(zip(more.test.sets, more.test.seen)):
            assert not {*more.test.negatives[row].tolist()} & {*asked.tolist(), *seen.tolist()}
    rng = np.random.default_rng(0)
    how = dict(items={'a': rng.normal(size=(40, 4))}, sequences={'a': rng.normal(size=(len(split.test), 4))})
    found = evaluate(
        **how,
        targets=split.test.targets,
        seen=(split.test.seen_offsets, split.test.seen_items),
        sets=split.test.sets,
        negatives=more.test.negatives,
    )
    assert '12 given negatives' in found.protocol
    bad = more.test.negatives.copy()
    row = int((split.test.sets.lengths > 1).argmax())
    bad[row, 0] = [i for i in split.test.sets[row] if i != split.test.targets[row]][0]
    with pytest.raises(ValueError, match='an item of its own set'):
        evaluate(**how, targets=split.test.targets, sets=split.test.sets, negatives=bad)


@quiet
def test_sets_go_through_a_file(tmp_path):
    split = last_basket(a_shop())
    rng = np.random.default_rng(0)
    task = dict(
        items={'text': rng.normal(size=(40, 4))},
        sequences={'text': rng.normal(size=(len(split.test), 4))},
        targets=split.test.targets,
        seen=(split.test.seen_offsets, split.test.seen_items),
        sets=split.test.sets,
    )
    write_vectors(tmp_path / 'v.npz', task)
    back, _ = read_vectors(tmp_path / 'v.npz')
    assert evaluate(**back)['fused'] == evaluate(**task)['fused']
    del task['sets']
    write_vectors(tmp_path / 'w.npz', task)
    assert 'sets' not in read_vectors(tmp_path / 'w.npz')[0]


@quiet
def test_a_report_looks_at_one_item_and_leaves_out_the_others():
    from vlm2rec_lab.diagnose import collapse_report

    split = last_basket(a_shop())
    rng = np.random.default_rng(0)
    task = dict(
        items={m: rng.normal(size=(40, 4)) for m in ('text', 'image')},
        sequences={m: rng.normal(size=(len(split.test), 4)) for m in ('text', 'image')},
        targets=split.test.targets,
        seen=(split.test.seen_offsets, split.test.seen_items),
    )
    others = [{*x.tolist(), *s.tolist()} - {t} for x, s, t in zip(split.test.seen, split.test.sets, task['targets'])]
    small = dict(permutations=2, bootstrap=20, progress=False)
    by_sets = collapse_report(**task, sets=split.test.sets, **small)
    by_hand = collapse_report(**task | dict(seen=[sorted(x) for x in others]), **small)
    assert by_sets.to_dict()['modalities'] == by_hand.to_dict()['modalities']
    assert any('one item of it' in n for n in by_sets.to_dict()['notes'])


@quiet
def test_recommenders_rank_sets():
    from vlm2rec_lab.recommenders.fit import figures, fit, rank_rows
    from vlm2rec_lab.recommenders.seqrec import ItemTable, SASRec

    split = last_basket(a_shop())
    model = SASRec(ItemTable(40, 8), length=10, layers=1, heads=1)
    run = fit(model, split, epochs=2, progress=False)
    found = rank_rows(model, split, 'valid')
    assert isinstance(found, SetRanks)
    assert figure_at_k(found, 10).mean() == pytest.approx(run.frame['NDCG@10'].max())
    assert figures(model, split, k=5).loc['all', 'rows'] == len(split.test)


@pytest.mark.parametrize(
    'sets, why',
    [
        ([[1], [2]], 'the target of user 0 is not in its set'),
        ([[0]], 'sets has 1 rows but targets has 2'),
        ([[0, 9], [1]], 'user 0 asks for item 9, outside 0..3'),
        ([[0], [-1, 1]], 'user 1 asks for item -1'),
        ('ab', 'sets is str'),
    ],
)
def test_sets_that_do_not_fit(sets, why):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises((ValueError, TypeError), match=why):
            evaluate({'a': np.eye(4)}, {'a': np.eye(4)[:2]}, [0, 1], sets=sets)


def test_one_target_keeps_its_own_functions():
    r = ranks(np.eye(3), np.eye(3), np.array([0, 1, 2]))
    for m in GAINS:
        assert np.array_equal(figure_at_k(r, 2, m), metric_at_k(r, 2, m))
    with pytest.raises(ValueError, match='unknown'):
        figure_at_k(r, 2, 'Recall')


FOUR = np.arange(4)


@pytest.mark.parametrize(
    ('sets', 'why'),
    [
        ([[0, 1.5], [1], [2], [3]], 'user 0 lists 1.5'),
        ([['0'], ['1'], ['2'], ['3']], 'not ids'),
        ([[0], None, [2], [3]], 'user 1 has None'),
        ([[0, None], [1], [2], [3]], 'user 0 has .0, None'),
        ([[0], [1]], 'sets has 2 rows but targets has 4'),
        (7, 'sets is int'),
    ],
)
def test_what_is_no_row_number_is_never_made_one(sets, why):
    with pytest.raises((TypeError, ValueError), match=why):
        target_sets(sets, FOUR, 6)
    if sets != 7 and len(sets) == 4:
        with pytest.raises((TypeError, ValueError), match=why):
            seen_items(sets, FOUR + 1, 6)


def test_all_forms_of_lists_are_one():
    lists = [[0, 5], [1, 4], [2, 5], [3, 4]]
    forms = [lists, [set(x) for x in lists], np.array(lists), pd.DataFrame(lists), pd.Series(lists), Ragged.of(lists)]
    for f in (lambda x: target_sets(x, FOUR, 6), lambda x: seen_items(x, np.array([5, 5, 4, 5]), 7)):
        for form in forms:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                assert [x.tolist() for x in f(form)] == [x.tolist() for x in f(lists)], type(form)
