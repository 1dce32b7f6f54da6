"""Items exchanged among what each user can be shown: the fast ways agree with a plain loop over users."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from fastcore.test import test_close as close

from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.diagnosis import shuffles
from vlm2rec_lab.diagnosis.evidence import Task, fused_gain, knockout_mean, knockout_permuted, shuffled_gain
from vlm2rec_lab.diagnosis.shuffles import Pieces, exchanged_gains, first_return, pieces_of, shuffled_ranks
from vlm2rec_lab.diagnosis.worlds import world
from vlm2rec_lab.ranking.candidates import seen_items
from vlm2rec_lab.ranking.ranks import metric_at_k, ranks


def unit(x):
    "Rows of length 1."
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def joined(vectors):
    "A fusion of one's own, row by row, that is no sum of parts."
    return np.concatenate([*vectors.values(), np.prod(list(vectors.values()), 0)], 1)


def shop(users=60, n_items=40, dims=6, most=8, seed=0, names=('text', 'image')):
    "Users who are means of what they had, with repeats, in float64."
    rng = np.random.default_rng(seed)
    items = {m: unit(rng.normal(size=(n_items, dims))) for m in names}
    history = rng.integers(0, n_items, (users, most))
    sequences = {m: x[history].mean(1) for m, x in items.items()}
    return dict(items=items, sequences=sequences, targets=rng.integers(0, n_items, users)), list(history)


def task_of(vectors, seen=None, fuse='sum', k=10):
    "A task, its warnings aside."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return Task.of(**vectors, seen=seen, fuse=fuse, k=k)


def own_order(order, shown):
    "The permutation of a user's candidates, by following it one item at a time."
    out = order.copy()
    for i in np.flatnonzero(shown):
        to = order[i]
        while not shown[to]:
            to = order[to]
        out[i] = to
    return out


def plainly(task, modality, n, seed=0):
    "[n, users] gains of the permuted ranking: each user on its own, each permutation on its own."
    rng, out = np.random.default_rng(seed), np.zeros((n, len(task.targets)))
    for p in range(n):
        order = rng.permutation(task.n_items)
        for u in range(len(task.targets)):
            shown = ~np.isin(np.arange(task.n_items), task.seen[1][task.seen[0][u] : task.seen[0][u + 1]])
            x = task.items[modality][own_order(order, shown)]
            out[p, u] = fused_gain(replace(task, items={**task.items, modality: x}).take(np.array([u])))[0]
    return out


def nearly_all(n_items, users):
    "Users who have seen all items but three, or everything."
    rng = np.random.default_rng(3)
    return [rng.permutation(n_items)[: n_items - 3 * (u % 2)] for u in range(users)]


FUSIONS = ['sum', 'concat', {'text': 3, 'image': 1}, {'text': 1, 'image': 0}, joined]


@pytest.mark.parametrize('fuse', FUSIONS)
@pytest.mark.parametrize('case', ['history', 'nearly all', 'target too', 'nothing'])
def test_the_permuted_knockout_is_that_of_a_plain_loop(fuse, case):
    vectors, history = shop()
    seen = {
        'history': history,
        'nearly all': nearly_all(40, 60),
        'target too': [np.append(h, y) for h, y in zip(history, vectors['targets'])],
        'nothing': None,
    }[case]
    task = task_of(vectors, seen, fuse)
    for m in task.items:
        slow = plainly(task, m, 3)
        fast, single = knockout_permuted(task, m, 3)
        close(fast, slow.mean(0), 1e-9)
        close(single, slow.mean(1), 1e-9)


@pytest.mark.parametrize('fuse', ['sum', 'concat', {'text': 1, 'image': 2, 'sound': 1}, joined])
def test_three_modalities_that_some_items_lack(fuse):
    vectors, history = shop(names=('text', 'image', 'sound'))
    vectors['items']['image'][::3] = 0
    vectors['items']['sound'][::5] = 0
    task = task_of(vectors, history, fuse)
    for m in task.items:
        close(knockout_permuted(task, m, 2)[0], plainly(task, m, 2).mean(0), 1e-9)


@pytest.mark.parametrize('fuse', ['sum', 'concat', joined])
def test_items_that_are_alike_tie(fuse):
    vectors, history = shop()
    vectors['items'] = {m: np.repeat(x[::4], 4, 0) for m, x in vectors['items'].items()}
    task = task_of(vectors, history, fuse)
    for m in task.items:
        close(knockout_permuted(task, m, 3)[0], plainly(task, m, 3).mean(0), 1e-9)


@pytest.mark.parametrize('fuse', ['sum', 'concat'])
@pytest.mark.parametrize('single', [('items', 'text'), ('items', 'image'), ('sequences', 'text')])
def test_one_matrix_in_single_precision(fuse, single):
    vectors, history = shop()
    side, m = single
    vectors[side][m] = vectors[side][m].astype(np.float32)
    task = task_of(vectors, history, fuse)
    for m in task.items:
        close(knockout_permuted(task, m, 3)[0], plainly(task, m, 3).mean(0), 1e-9)


def test_a_large_catalogue_is_looked_at_in_parts():
    "Above 1,280 items most users are decided by a part of the items."
    vectors, history = shop(users=25, n_items=1500, most=30)
    task = task_of(vectors, history, 'concat')
    close(knockout_permuted(task, 'image', 2)[0], plainly(task, 'image', 2).mean(0), 1e-9)


def test_a_catalogue_in_which_everything_ties_in_parts():
    vectors, history = shop(users=25, n_items=1500, most=30)
    vectors['items'] = {m: np.repeat(x[:1], 1500, 0) for m, x in vectors['items'].items()}
    task = task_of(vectors, history, 'concat')
    close(knockout_permuted(task, 'image', 2)[0], task.chance, 1e-12)


@pytest.mark.parametrize('seen', ['history', 'nearly all', 'nothing'])
@pytest.mark.parametrize('m', ['text', 'image'])
def test_nulls_are_those_of_a_plain_loop(seen, m):
    vectors, history = shop()
    task = task_of(vectors, {'history': history, 'nearly all': nearly_all(40, 60), 'nothing': None}[seen])
    alone = replace(task, items={m: task.items[m]}, sequences={m: task.sequences[m]})
    close(shuffled_gain(task.items[m], task.sequences[m], task, 3), plainly(alone, m, 3, seed=1).mean(1), 1e-9)


@pytest.mark.parametrize('fuse', ['sum', 'concat', {'text': 2, 'image': 1}, joined])
@pytest.mark.parametrize('users', [1000, 1])
def test_without_seen_items_nothing_changed(fuse, users):
    "One permutation for all, ranked by products, as it was done before: float32 vectors, the same seeds."
    task = task_of(world(users), None, fuse)
    for m in task.items:
        rng = np.random.default_rng(0)
        old = [fused_gain(task, {**task.items, m: task.items[m][rng.permutation(task.n_items)]}) for _ in range(4)]
        gains, single = knockout_permuted(task, m, 4)
        close(gains, np.mean(old, 0), 1e-9)
        close(single, np.mean(old, 1), 1e-9)
        rng, x = np.random.default_rng(1), task.items[m]
        old = [ranks(x[rng.permutation(len(x))], task.sequences[m], task.targets, task.seen) for _ in range(4)]
        close(shuffled_gain(x, task.sequences[m], task, 4), [metric_at_k(r).mean() for r in old], 1e-9)


def test_ranks_of_shuffled_vectors_with_ties_are_counted():
    "Two items of each kind: every target ties with its twin, wherever it goes."
    rng = np.random.default_rng(0)
    x, u, y = np.repeat(rng.normal(size=(20, 4)), 2, 0), rng.normal(size=(15, 4)), rng.integers(0, 40, 15)
    got = shuffled_ranks(x, u, y, np.stack([rng.permutation(40) for _ in range(3)]), seen_items(None, y, 40))
    assert (got.ties == 1).all()
    assert (got.greater % 2 == 0).all()


def test_a_users_own_permutation_is_one_of_the_candidates():
    rng = np.random.default_rng(0)
    hidden = rng.random((30, 25)) < 0.6
    hidden[0] = True
    hidden[0, 4] = False
    users, items = np.nonzero(~hidden)
    to, steps = first_return(rng.permutation(25), hidden, users, items)
    assert (np.sort(users * 25 + to) == users * 25 + items).all()  # each candidate once
    assert to[0] == 4 and steps[0] >= 1


def test_a_function_that_centres_sees_whole_catalogues():
    "A fusion that takes the mean off each modality is that of centred vectors, for seen items too."
    vectors, history = shop()

    def centred(side):
        return np.concatenate([x - x.mean(0) for x in side.values()], 1)

    def together(side):
        return np.concatenate(list(side.values()), 1)

    task = task_of(vectors, history, centred)
    sides = ({m: x - x.mean(0) for m, x in side.items()} for side in (task.items, task.sequences))
    before = Task(*sides, task.targets, task.seen, together, task.k)
    for m in task.items:
        close(knockout_permuted(task, m, 3)[0], knockout_permuted(before, m, 3)[0], 1e-9)


def test_no_users_and_two_permutations():
    vectors, _ = shop()
    none = task_of(vectors).take(np.arange(0))
    gains, single = knockout_permuted(none, 'text', 2)
    assert len(gains) == 0 and np.isnan(single).all()


def issue_world(seed):
    "Taste in the text, noise in the image, users who are means of what they had."
    rng = np.random.default_rng(seed)
    taste, image = rng.normal(size=(1000, 64)), rng.normal(size=(1000, 64))
    s = rng.normal(size=(1000, 64)) @ taste.T / 8 + 0.1 * rng.gumbel(size=(1000, 1000))
    top = rng.permuted(np.argsort(-s, 1)[:, :6], axis=1)
    history = top[:, 1:]
    items = dict(text=taste, image=image)
    return items, {m: unit(x)[history].mean(1) for m, x in items.items()}, top[:, 0], list(history)


def test_noise_is_not_needed_where_histories_are_left_out():
    "Leaving the image out gains .067; to exchange its noise for other noise makes no difference, +.017 before."
    items, sequences, targets, history = issue_world(0)
    found = collapse_report(
        items=items, sequences=sequences, targets=targets, seen=history, fuse='concat', progress=False
    )
    image, text = (found.modalities[m]['evidence'] for m in ('image', 'text'))
    assert -0.07 < image['drop_mean']['value'] < -0.06
    assert image['drop_permuted']['low'] < 0 < image['drop_permuted']['high']
    assert abs(image['drop_permuted']['value']) < 0.005
    assert text['drop_permuted']['low'] > 0.04


@pytest.mark.parametrize('fuse', ['concat', 'sum', joined])
def test_noise_is_never_needed_over_many_worlds(fuse):
    "Noise for other noise is nothing on average: below two standard errors over six worlds, and below .006."
    drops = []
    for seed in range(1, 7):
        items, sequences, targets, history = issue_world(seed)
        task = task_of(dict(items=items, sequences=sequences, targets=targets), history, fuse)
        drops.append(fused_gain(task).mean() - knockout_permuted(task, 'image', 4)[0].mean())
        assert fused_gain(task).mean() < knockout_mean(task, 'image').mean()
    assert np.mean(drops) < 0.006
    assert np.mean(drops) < 2 * np.std(drops, ddof=1) / 6**0.5 + 0.002


@pytest.mark.parametrize('fuse', ['sum', 'concat', {'text': 3, 'image': 1}])
@pytest.mark.parametrize('case', ['plain', 'single precision', 'lacking', 'alike', 'seen', 'far from the origin'])
def test_lists_add_up_to_what_all_scores_do(fuse, case, monkeypatch):
    "Good rankings, where few items can beat the next one: to the last digit what counting all of them gives."
    rng, n, users = np.random.default_rng(7), 900, 250
    y, base = rng.integers(0, n, users), rng.normal(size=(n, 48)) + 3 * (case == 'far from the origin')
    items = {m: base + 0.5 * rng.normal(size=base.shape) for m in ('text', 'image')}
    if case == 'lacking':
        items['image'][::7] = 0
    if case == 'alike':
        items = {m: np.repeat(x[::3], 3, 0) for m, x in items.items()}
    sequences = {m: base[y] + 1.2 * rng.normal(size=(users, 48)) for m in items}
    if case == 'single precision':
        items, sequences = ({m: x.astype(np.float32) for m, x in side.items()} for side in (items, sequences))
    seen = [rng.integers(0, n, 30) for _ in y] if case == 'seen' else None
    task = task_of(dict(items=items, sequences=sequences, targets=y), seen, fuse)
    orders, asked, plain = np.stack([rng.permutation(n) for _ in range(4)]), [], shuffles._from_lists

    def watched(c, a, lists, limits, mine, tol):
        "The same, and how many users were asked."
        asked.append(mine.sum())
        return plain(c, a, lists, limits, mine, tol)

    monkeypatch.setattr(shuffles, '_from_lists', watched)
    for m in items:
        pieces = pieces_of(task.items, task.sequences, m, fuse)
        fast = exchanged_gains(pieces, y, orders, task.seen)
        with monkeypatch.context() as patch:
            patch.setattr(shuffles, '_near', lambda c, asked, *how: np.ones((len(asked), len(c.targets)), bool))
            patch.setattr(shuffles._exchanged_gains, '__defaults__', (np.inf,))
            full = exchanged_gains(pieces, y, orders, task.seen)
        assert (fast == full).all() and 0.01 < full.mean() < 0.9999
    assert sum(asked) > 20


def test_few_items_of_a_large_scale_are_always_looked_at(monkeypatch):
    rng, n, users = np.random.default_rng(2), 900, 200
    y, base = rng.integers(3, n, users), unit(rng.normal(size=(n, 48)))
    asks = unit(base[y] + 0.1 * rng.normal(size=(users, 48)))
    few = Pieces((base, asks), (unit(rng.normal(size=(n, 48))), asks), lambda i, j: np.where(i < 3, 9.0, 1.0), 1e-12)
    orders, nothing = np.stack([rng.permutation(n) for _ in range(4)]), seen_items(None, y, n)
    fast = exchanged_gains(few, y, orders, nothing)
    monkeypatch.setattr(shuffles._exchanged_gains, '__defaults__', (np.inf,))
    assert (fast == exchanged_gains(few, y, orders, nothing)).all() and 0.1 < fast.mean() < 0.99
