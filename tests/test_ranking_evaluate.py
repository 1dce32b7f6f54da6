"""Evaluation: no users, negatives given or drawn, half precision, terms of a sum, and a metric from outside."""

import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import vlm2rec_lab.ranking.evaluate as evaluate_room
from vlm2rec_lab.ranking.baseline_scores import ranks_of_scores
from vlm2rec_lab.ranking.candidates import sample_negatives, seen_items, with_negatives
from vlm2rec_lab.ranking.evaluate import (
    bootstrap_interval,
    bootstrap_means,
    evaluate,
    fusion_name,
    kept_draws,
    paired_difference,
    relative_gain,
    sum_or_concat,
)
from vlm2rec_lab.ranking.fusions import score_terms
from vlm2rec_lab.ranking.ranks import GAINS, ranks
from vlm2rec_lab.ranking.sets import set_ranks
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.leave_one_out import leave_one_out


@pytest.fixture(scope='module')
def task():
    "200 users, 60 items, two modalities, five seen items each."
    rng = np.random.default_rng(0)
    latent, taste = rng.normal(size=(60, 8)), rng.normal(size=(200, 8))
    targets = (taste @ latent.T + rng.normal(size=(200, 60))).argmax(1)
    noise = {'text': 0.3, 'image': 0.8}
    items = {m: (latent + s * rng.normal(size=latent.shape)).astype(np.float32) for m, s in noise.items()}
    sequences = {m: (taste + s * rng.normal(size=taste.shape)).astype(np.float32) for m, s in noise.items()}
    seen = [rng.choice(np.delete(np.arange(60), t), 5, replace=False) for t in targets]
    return items, sequences, targets, seen


@pytest.mark.parametrize('n', [0, 1])
def test_hardly_any_users(task, n):
    items, sequences, targets, seen = task
    few = evaluate(items, {m: x[:n] for m, x in sequences.items()}, targets[:n], seen[:n], negatives=20)
    json.dumps(few.to_dict(), allow_nan=False)
    assert few.to_dict()['views']['text']['HR@10']['low'] is None
    assert 'users' in repr(few) and '<table' in few._repr_html_()


def test_the_same_draw_inside_or_outside(task):
    items, sequences, targets, seen = task
    ours = sample_negatives(seen_items(seen, targets, 60), targets, 60, 10, seed=3)
    drawn, given = (evaluate(items, sequences, targets, seen, negatives=n, seed=3) for n in (10, ours))
    for v in drawn:
        assert (drawn.ranks[v].greater == given.ranks[v].greater).all()
        assert (drawn.ranks[v].candidates == given.ranks[v].candidates).all()
    assert '10 sampled unseen items (seed 3), median 11' in drawn.protocol
    assert 'among 10 given negatives (SHA-256 ' in given.protocol


def test_negatives_of_a_split():
    rng = np.random.default_rng(1)
    lists = [rng.choice(60, 8, replace=False) for _ in range(50)]
    catalogue = Catalogue([str(i) for i in range(60)], {'text': ['x'] * 60}, {'text': 'text'})
    split = leave_one_out(Dataset(catalogue, Interactions.of_sequences(lists), 'shop'))
    asks = {'text': rng.normal(size=(50, 4))}, split.test.targets, split.test.seen
    goods = {'text': rng.normal(size=(60, 4))}
    mine = with_negatives(split, 20, seed=4).test.negatives
    inside, outside = (evaluate(goods, *asks, negatives=n, seed=4) for n in (20, mine))
    assert inside['fused'] == outside['fused']
    with pytest.raises(ValueError, match='has the target'):
        evaluate(goods, *asks, negatives=split.test.targets[:, None])


def test_half_precision(task):
    items, sequences, targets, _ = task
    half = {m: torch.tensor(x).half() for m, x in items.items()}
    brain = {m: torch.tensor(x).bfloat16() for m, x in sequences.items()}
    coarse = evaluate(half, brain, torch.tensor(targets))['fused']['NDCG@10']
    assert abs(coarse - evaluate(items, sequences, targets)['fused']['NDCG@10']) < 0.01


def test_fusions_have_names():
    def joined(vectors):
        return np.concatenate(list(vectors.values()), 1)

    assert [fusion_name(f) for f in (joined, {'text': 1})] == ['fusion by joined', "fusion by weights {'text': 1}"]


def test_terms_add_up_to_the_sum():
    rng = np.random.default_rng(0)
    items = {m: rng.normal(size=(200, 16)) for m in ('text', 'image')}
    targets = rng.integers(0, 200, 300)
    sequences = {m: x[targets] + 2.0 * rng.normal(size=(300, 16)) for m, x in items.items()}
    terms = score_terms(items, sequences, targets)
    whole = evaluate(items, sequences, targets, bootstrap=0)['fused']['NDCG@10']
    assert abs((terms.without + terms.worth).iloc[0] - whole) < 0.01


def test_a_metric_from_outside(task):
    "One entry of GAINS, and it is in every table."
    items, sequences, targets, seen = task
    GAINS['first'] = lambda place: (place < 1).astype(float)
    try:
        found = evaluate(items, sequences, targets, seen, k=1)
        assert found['text']['first@1'] == found['text']['HR@1']
        assert 'first@1' in found.to_frame() and 'first@1' in found.to_dict()['views']['fused']
    finally:
        del GAINS['first']


def test_without_draws_there_is_no_interval_and_figures_can_be_shown():
    side = {'text': np.eye(20)}
    found = evaluate(side, side, np.arange(20), bootstrap=0)
    assert '1.0000' in repr(found) and '1.0' in found._repr_html_() and found['text']['NDCG@10'] == 1
    assert all(np.isnan(bootstrap_interval(np.ones(5), 0)))


@pytest.mark.parametrize(
    'gain, fuse',
    [(0.06, 'sum'), (0.02, 'concat'), (0.0005, 'concat'), (0.0, 'concat'), (-0.05, 'concat')],
    ids=lambda x: str(x),
)
def test_the_sum_is_kept_where_it_is_surely_better_only(gain, fuse):
    "Of 400 validation users each better by about `gain`; clear of zero is not enough, clear of a tenth (.03) is."
    rng = np.random.default_rng(0)
    apart = rng.uniform(0, 0.6, 400)
    summed = apart + gain + rng.normal(0, 0.1, 400)
    choice = sum_or_concat(summed, apart, seed=1)
    assert choice.fuse == fuse and choice.users == 400
    assert choice.difference.value == pytest.approx((summed - apart).mean())
    assert ('features hardly identify items here' in repr(choice)) == (fuse == 'sum')
    assert f'{choice.difference.value:+.4f} [' in repr(choice)
    if gain == 0.02:
        assert choice.difference.low > 0
        assert sum_or_concat(summed, apart, margin=0).fuse == 'sum'


def test_a_choice_needs_the_same_users():
    with pytest.raises(ValueError, match='same users'):
        sum_or_concat([0.1, 0.2], [0.1])


@pytest.mark.parametrize('users', [2, 3, 255, 999])
def test_draws_that_are_kept_are_those_that_are_made_anew(users):
    "Also where another number of users, of draws or another seed came in between."
    v = np.random.default_rng(1).normal(size=(users, 3))
    for n, seed in ((7, 0), (7, 5), (30, 0), (7, 0)):
        rng = np.random.default_rng(seed)
        plain = np.stack([np.bincount(rng.integers(0, users, users), minlength=users) @ v / users for _ in range(n)])
        for how in (kept_draws, nullcontext):
            with how():
                for _ in range(2):
                    np.testing.assert_allclose(bootstrap_means(v, n, seed), plain, atol=1e-12)
    with_nothing = bootstrap_means(v, 5, None), bootstrap_means(v, 5, None)
    assert users == 2 or (with_nothing[0] != with_nothing[1]).any()


def test_draws_are_kept_only_where_it_is_asked_for(monkeypatch):
    made, draw = [], evaluate_room._times_drawn
    monkeypatch.setattr(evaluate_room, '_times_drawn', lambda *a: made.append(a[:2]) or draw(*a))
    for _ in range(2):
        bootstrap_means(np.ones(9), 5)
    assert len(made) == 2
    with pytest.raises(KeyError), kept_draws():
        for n in (5, 5, 6, 6):
            bootstrap_means(np.ones(9), n)
        raise KeyError
    assert made[2:] == [(9, 5), (9, 6)]
    bootstrap_means(np.ones(9), 6)
    assert len(made) == 5


WRONG_NUMBERS = {  # argument: what is no number for it
    'k': [10.0, True, 0, -1, 'a', None, (10, True), (10, 2.5)],
    'chunk': [-1, 0, 1.5, True, 'a'],
    'bootstrap': [-1, 1.5, True, None],
    'negatives': [1.5, True, 0, -3, 'a'],
}


@pytest.mark.parametrize('name', WRONG_NUMBERS)
def test_a_number_that_cannot_be_is_named_with_its_argument(task, name):
    for wrong in WRONG_NUMBERS[name]:
        worst = wrong[1] if isinstance(wrong, tuple) else wrong
        with pytest.raises(ValueError, match=re.escape(f'{name} is {worst!r}: give a whole number, ')):
            evaluate(*task, **{name: wrong}, progress=False)


def test_no_cut_off_at_all_is_refused(task):
    for none in ((), [], np.array([])):
        with pytest.raises(ValueError, match='give at least one whole number, such as 10'):
            evaluate(*task, k=none, progress=False)


def test_whole_numbers_of_any_type_are_numbers(task):
    plain = evaluate(*task, k=(3, 5), chunk=7, bootstrap=9, negatives=11, progress=False)
    how = dict(chunk=np.int16(7), bootstrap=np.uint8(9), negatives=np.int64(11), progress=False)
    for k in (np.array([3, 5]), range(3, 6, 2), [np.int32(3), 5]):
        assert repr(evaluate(*task, k=k, **how)) == repr(plain)


def test_draws_and_chunks_beside_evaluate():
    "The same of the functions below it."
    values, none = np.arange(5.0), (np.zeros(6, np.int64), np.zeros(0, np.int64))
    items, users = (np.eye(5, 3) for _ in range(2))
    for wrong in (-1, 1.5, True):
        for f in (bootstrap_means, bootstrap_interval, lambda v, n: paired_difference(v, v, n)):
            with pytest.raises(ValueError, match=f'n is {wrong}: give a whole number, 0 or more'):
                f(values, wrong)
        with pytest.raises(ValueError, match=f'draws is {wrong}'):
            relative_gain(values, values, wrong)
        for large in (0, 100):
            with pytest.raises(ValueError, match=f'chunk is {wrong}: give a whole number, 1 or more, or None'):
                ranks(items, users, np.arange(5), chunk=wrong, large=large)
        with pytest.raises(ValueError, match=f'chunk is {wrong}'):
            set_ranks(items, users, (np.arange(6), np.arange(5)), chunk=wrong)
        with pytest.raises(ValueError, match=f'chunk is {wrong}'):
            ranks_of_scores(lambda rows: users[rows] @ items.T, np.arange(5), 5, none, chunk=wrong)
