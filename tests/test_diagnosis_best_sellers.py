"""Where a few items make most of the sales: luck that users share, and a reference in the right order."""

import warnings

import numpy as np
import pytest

from vlm2rec_lab.diagnosis import calibrate
from vlm2rec_lab.diagnosis.evidence import Task, fused_gain, shuffled_gain
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.diagnosis.verdict import RULES, _above, by_target, lifts
from vlm2rec_lab.diagnosis.worlds import world
from vlm2rec_lab.ranking.evaluate import bootstrap_means

ASTRAY = 'probably those of other'


def best_sellers(seed, known=(), users=1000, n=400, d=32, noise=0.3):
    "A shop of best sellers (Zipf 1.5): histories are means, seen items are left out; `known` modalities see the taste."
    rng = np.random.default_rng(seed)
    share, order = (1 + np.arange(n)) ** -1.5, rng.permutation(n)
    z, user = rng.normal(size=(n, d)), rng.normal(size=(users, d))
    liked = user @ z.T / d**0.5 + np.log(share[order]) + rng.gumbel(size=(users, n))
    bought = rng.permuted(np.argsort(-liked, 1)[:, :6], axis=1)
    items = {
        m: noise * rng.normal(size=(n, d)) + z if m in known else rng.normal(size=(n, d)) for m in ('text', 'image')
    }
    unit = {m: x / np.linalg.norm(x, axis=1, keepdims=True) for m, x in items.items()}
    histories = {m: x[bought[:, 1:]].mean(1) for m, x in unit.items()}
    return dict(items=items, sequences=histories, targets=bought[:, 0], seen=list(bought[:, 1:]), fuse='concat')


def judged(w, reference=None):
    "A report whose warnings are expected."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return collapse_report(**w, reference=reference, permutations=10, bootstrap=300, missing=(), progress=False)


def test_draws_of_items_by_hand():
    values, targets = np.array([[1.0], [1.0], [4.0]]), np.array([7, 7, 2])
    means = {1.0, 4.0, 2.0}  # twice the item of two, twice the other, one of each
    assert set(by_target(values, targets, 200)[:, 0].round(9)) == means


def test_where_targets_differ_items_and_users_are_one():
    values = np.random.default_rng(0).random((400, 2))
    assert np.allclose(by_target(values, np.arange(400), 50, seed=1), bootstrap_means(values, 50, 6))
    assert by_target(np.zeros((0, 2)), np.zeros(0, int), 5).shape == (5, 2)


def lucky():
    "The first seeds and modalities without any knowledge that draws of users alone take for better than chance."
    for seed in (11, *range(60)):
        w = best_sellers(seed)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            t = Task.of(**w)
        for m in t.items:
            gain, null = fused_gain(t, modalities=[m]), shuffled_gain(t.items[m], t.sequences[m], t)
            if _above(gain, bootstrap_means(gain - t.chance), null, RULES):
                yield w, t, m, gain, null
                return


def test_luck_with_a_best_seller_is_no_knowledge():
    w, t, m, gain, null = next(lucky())
    assert not lifts({m: gain}, t, {m: null})[m].above
    assert {x['verdict'] for x in judged(w).modalities.values()} == {'undecided'}


def test_other_thresholds_are_judged_over_items_too(monkeypatch):
    "A threshold varied to its own value gives the verdict itself, where luck that users share would change it."
    _, t, *_ = next(lucky())
    case = t, None, dict.fromkeys(t.items, 'uninformative'), dict.fromkeys(t.items, 0.0)
    monkeypatch.setattr(calibrate, 'judged_case', lambda *_: case)
    rows = calibrate.judge_case('healthy: pair', varied={'gate': (RULES['gate'],)}, permutations=5)
    assert [row['other'] for row in rows] == [{f'gate={RULES["gate"]:g}': row['verdict']} for row in rows]


def test_what_is_known_of_many_items_stays_better_than_chance():
    t = Task.of(**world(300))
    gains = {m: fused_gain(t, modalities=[m]) for m in t.items}
    found = lifts(gains, t, {m: shuffled_gain(t.items[m], t.sequences[m], t) for m in t.items})
    assert all(x.above for x in found.values())
    for m, x in found.items():
        assert np.std(x.wide) == pytest.approx(np.std(x.draws), rel=0.35), m


def test_a_reference_in_the_right_order_is_not_doubted_where_users_share_a_ranking():
    w = best_sellers(7, ('text', 'image'))
    r = judged(w, {side: w[side] for side in ('items', 'sequences')})
    assert not [n for n in r.data['notes'] if ASTRAY in n]
    assert 'collapsed' not in {x['verdict'] for x in r.modalities.values()}


def test_a_reference_in_another_order_still_is():
    w = world(500)
    other = np.random.default_rng(1).permutation(500)
    r = judged(w, dict(items=w['items'], sequences={m: x[other] for m, x in w['sequences'].items()}))
    assert [n for n in r.data['notes'] if ASTRAY in n]
