"""Questions to a ranking task: values by hand, edges, and worlds whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
from fastcore.test import test_close as close

from vlm2rec_lab.diagnosis import evidence
from vlm2rec_lab.diagnosis.evidence import (
    Task,
    better_weights,
    can_share,
    fused_gain,
    knockout_mean,
    knockout_permuted,
    probe_gain,
    rank_moves,
    score_variance,
    shapley_values,
    shuffled_gain,
)
from vlm2rec_lab.diagnosis.together import together
from vlm2rec_lab.diagnosis.worlds import hurt, world
from vlm2rec_lab.ranking.fusions import fuse_vectors
from vlm2rec_lab.ranking.ranks import metric_at_k, ranks


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


def inverted(task, modality, folds=5, shrink=0.1):
    "The probe as it is written down: inverses of covariances, fitted anew for every fold, on whitened items."

    def inverse(c, rows):
        d = len(c)
        return np.linalg.inv(c + shrink * (1 + d / max(rows, 1)) * max(np.trace(c) / d, 1e-12) * np.eye(d))

    items, users = (np.asarray(side[modality], float) for side in (task.items, task.sequences))
    centred = items - items.mean(0)
    white = (centred @ inverse(centred.T @ centred / len(items), len(items))).astype(np.float32)
    fold = (np.random.default_rng(0).permutation(len(items)) % folds)[task.targets]
    out = task.chance.copy()
    for f in range(folds):
        fit, judged = fold != f, np.flatnonzero(fold == f)
        if len(judged) and fit.sum() > 1:
            s = users[fit] - users[fit].mean(0)
            c = s.T @ centred[task.targets[fit]] / len(s)
            asked = (users[judged] - users[fit].mean(0)) @ (inverse(s.T @ s / len(s), len(s)) @ c)
            part = task.take(judged)
            out[judged] = metric_at_k(ranks(white, asked.astype(np.float32), part.targets, part.seen), task.k)
    return out


@pytest.mark.parametrize(
    'how',
    [{}, {'users': 40}, {'dims': 96, 'users': 60}, {'gap': {'image': 5}}, {'n_items': 2000}, {'n_items': 12}],
)
def test_the_probe_is_the_one_with_inverses(how):
    "Few users for many dimensions, a narrow cone, a catalogue that is looked at in parts, folds that are empty."
    t = Task.of(**world(**how))
    for m in t.items:
        close(probe_gain(t, m), inverted(t, m), 1e-6)


@pytest.mark.parametrize('how', ['constant', 'noise', 'absent'])
@pytest.mark.filterwarnings('ignore')
def test_the_probe_of_damaged_vectors_is_the_one_with_inverses(healthy, how):
    t = Task.of(**hurt(healthy, 'image', how), seen=[[int(i) for i in range(u % 40)] for u in range(1000)])
    close(probe_gain(t, 'image'), inverted(t, 'image'), 1e-6)


@pytest.mark.parametrize('fuse', ['sum', 'concat', joined])
@pytest.mark.parametrize('damage', [None, 'noise', 'constant'])
@pytest.mark.parametrize('metric', ['NDCG', 'HR', 'MRR'])
@pytest.mark.filterwarnings('ignore')
def test_a_look_at_a_part_of_a_large_catalogue_changes_nothing(fuse, damage, metric):
    w = world(300, 2000)
    w['items'] = {m: np.repeat(x[::2], 2, 0) for m, x in w['items'].items()}  # ties
    w = hurt(w, 'image', damage) if damage else w
    t = Task.of(**w, seen=[np.arange(7 * (u % 90)) for u in range(300)], fuse=fuse)
    i, s = fuse_vectors(t.items, t.sequences, fuse)
    close(fused_gain(t, metric=metric), metric_at_k(ranks(i, s, t.targets, t.seen), t.k, metric), 1e-12)


def test_users_of_a_weak_ranking_drop_out_before_the_end():
    t = Task.of(**world(300, 2000, noise={'text': 2, 'image': 2}))
    i, s = fuse_vectors(t.items, t.sequences)
    whole, short = (ranks(i, s, t.targets, t.seen, enough=e, large=0) for e in (None, t.k))
    out = short.greater < whole.greater
    assert out.mean() > 0.1 and short.greater[out].min() >= t.k
    close(metric_at_k(short, t.k), metric_at_k(whole, t.k), 1e-12)


@pytest.mark.parametrize('fuse', ['sum', 'concat', {'text': 1, 'image': 3}, {'text': 1, 'image': 0}])
@pytest.mark.parametrize('dims', [8, (8, 5)])
@pytest.mark.filterwarnings('ignore')
def test_shared_products_change_no_evidence(fuse, dims, monkeypatch):
    if fuse == 'sum' and dims != 8:
        return
    w = world(400, 1500)
    w['items']['image'][:700] = w['items']['image'][700:1400]  # ties
    if dims != 8:
        w['items']['image'], w['sequences']['image'] = (w[side]['image'][:, :5] for side in ('items', 'sequences'))
    t = Task.of(**w, seen=[np.arange(7 * (u % 90)) for u in range(400)], fuse=fuse)
    found = {v: metric_at_k(r, t.k) for v, r in together(t, 0).items()}
    assert set(found) >= {'text', 'image'}
    close(found.get('fused', fused_gain(t)), fused_gain(t), 1e-12)
    for m in t.items:
        close(found[m], fused_gain(t, modalities=[m]) if fuse in ('sum', 'concat') else found[m], 1e-12)
        if ('without', m) in found:
            close(found['without', m], knockout_mean(t, m), 1e-12)
    for v in found:
        if v[0] == 'other':
            close(found[v], fused_gain(replace(t, fuse=v[1])), 1e-12)
    assert can_share(t, 0) and not can_share(t)
    plain = rank_moves(t), better_weights(t)
    monkeypatch.setattr(evidence, 'can_share', lambda task: can_share(task, 0))
    shared = rank_moves(t), better_weights(t)
    assert shared[1][0] == plain[1][0]
    close(shared[1][1], plain[1][1], 1e-12)
    for pair, moved in plain[0].items():
        close(shared[0][pair], moved, 1e-9)


def test_an_item_that_lacks_a_modality_is_ranked_apart():
    w = world(100, 300)
    w['items']['image'][5] = 0
    with pytest.warns(UserWarning):
        assert together(Task.of(**w, fuse='concat'), 0) == {}


def test_weights_without_users_are_equal(task):
    assert better_weights(task.take(np.arange(0)))[0] == {'text': 1, 'image': 1}


@pytest.mark.parametrize('fuse', ['sum', 'concat', {'text': 1, 'image': 3}])
def test_the_score_is_divided_for_some_users_at_a_time(healthy, fuse):
    task = Task.of(**healthy, fuse=fuse)
    whole, parts = score_variance(task), score_variance(task, most=1000)
    assert list(whole) == list(parts)
    for k, x in whole.items():
        assert x.shape == parts[k].shape == (len(task.targets),)
        close(x, parts[k], 1e-12)
