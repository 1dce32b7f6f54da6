"""Questions to a ranking task: values by hand, edges, and worlds whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
from fastcore.test import test_close as close

from vlm2rec_lab.diagnosis.evidence import (
    Task,
    better_weights,
    fused_gain,
    knockout_permuted,
    probe_gain,
    rank_moves,
    score_variance,
    shapley_values,
    shuffled_gain,
)
from vlm2rec_lab.diagnosis.worlds import hurt, world
from vlm2rec_lab.ranking.fusions import fuse_vectors
from vlm2rec_lab.ranking.ranks import ranks


@pytest.fixture(scope='module')
def healthy():
    return world()


@pytest.fixture(scope='module')
def task(healthy):
    return Task.of(**healthy)


def joined(vectors):
    "Concatenation as a function of one's own."
    return np.concatenate(list(vectors.values()), 1) / len(vectors) ** 0.5


def test_a_modality_without_weight_is_at_chance(task):
    close(fused_gain(replace(task, fuse={'text': 1, 'image': 0}), modalities=['image']), task.chance)


def test_seen_items_go_with_their_users(healthy):
    some = Task.of(**healthy, seen=[[int(t) - 1] * int(t > 0) for t in healthy['targets']])
    rows = np.array([5, 2, 900])
    close(fused_gain(some.take(rows)), fused_gain(some)[rows])
    assert len(some.take(rows[:0]).targets) == 0
    assert isinstance(some, Task)


def test_mean_is_another_word_for_sum(healthy):
    assert Task.of(**healthy, fuse='mean').fuse == 'sum'


@pytest.mark.parametrize('names', [(), ('text',), ('text', 'image')])
def test_in_a_fusion_of_ones_own_a_mean_says_nothing(task, names):
    own, by_name = (fused_gain(replace(task, fuse=f), modalities=names) for f in (joined, 'concat'))
    close(own, by_name)


def test_permutations_follow_from_the_seed(task):
    close(knockout_permuted(task, 'text', 3)[0], knockout_permuted(task, 'text', 3)[0])


def test_shuffled_gain_without_users_is_nan(task):
    none = task.take(np.arange(0))
    assert np.isnan(shuffled_gain(task.items['text'], task.sequences['text'][:0], none, 2)).all()


def test_nine_modalities_are_too_many_for_shapley(healthy):
    sides = ({str(i): healthy[side]['text'] for i in range(9)} for side in ('items', 'sequences'))
    nine = Task.of(*sides, healthy['targets'])
    with pytest.raises(ValueError, match='9 modalities mean 511 rankings'):
        shapley_values(nine)


@pytest.mark.parametrize('fuse', ['sum', 'concat', {'text': 3, 'image': 1}])
def test_terms_add_up_to_the_variance_of_the_scores(task, fuse):
    t = replace(task, fuse=fuse)
    v = score_variance(t)
    i, u = fuse_vectors(t.items, t.sequences, fuse)
    close(v['total'], (u @ i.T).var(1), 1e-5)
    close(sum(x for k, x in v.items() if k != 'total'), v['total'], 1e-6)


def test_a_term_of_the_sum_by_hand(task):
    centred = task.items['text'] - task.items['text'].mean(0)
    item = centred / np.linalg.norm(sum(task.items.values()), axis=1)[:, None]
    user = np.linalg.norm(sum(task.sequences.values()), axis=1)[:, None]
    by_hand = (task.sequences['text'] @ item.T) / user
    i, u = fuse_vectors(task.items, task.sequences)
    s = u @ i.T
    covariance = ((by_hand - by_hand.mean(1, keepdims=True)) * (s - s.mean(1, keepdims=True))).mean(1)
    close(score_variance(task)['text', 'text'], covariance, 1e-5)


def test_without_its_only_term_the_target_is_in_the_middle(task):
    i, u = fuse_vectors(task.items, task.sequences)
    places = ranks(i, u, task.targets, task.seen).expected
    fused = Task.of({'x': i}, {'x': u}, task.targets)
    close(rank_moves(fused)['x', 'x'], np.abs(np.log2(places + 1) - np.log2(100.5)), 1e-6)


@pytest.mark.parametrize('how', ['noise', 'noise in items', 'noise in sequences'])
def test_a_probe_finds_nothing_in_noise(healthy, how):
    "At chance or below it, for items of the fit are preferred."
    lost = Task.of(**hurt(healthy, 'image', how))
    g = probe_gain(lost, 'image') - lost.chance
    assert g.mean() < 4 * g.std() / 1000**0.5


def test_a_probe_of_few_users_is_chance(task):
    close(probe_gain(task.take(np.arange(9)), 'text'), task.chance[:9])


def test_a_probe_follows_from_its_seed(task):
    assert (probe_gain(task, 'text') == probe_gain(task, 'text')).all()


def test_weights_without_users_are_equal(task):
    assert better_weights(task.take(np.arange(0)))[0] == {'text': 1, 'image': 1}
