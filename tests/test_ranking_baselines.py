"""Baselines by brute force: random small shops with items that lack a text or a picture, users of any length, with and
without sampled negatives, against plain loops over users and items."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.ragged import PAD, Ragged
from vlm2rec_lab.ranking.baseline_scores import past_choices, ranks_of_order, ranks_of_scores
from vlm2rec_lab.ranking.baselines import BASELINES, baseline, baseline_names, baselines
from vlm2rec_lab.ranking.candidates import sample_negatives, seen_items
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.leave_one_out import leave_one_out
from vlm2rec_lab.shop.rows import Rows


def slow_rank(scores, target, out=(), among=None, tol=1e-9):
    "(greater, ties, candidates) of one user's target, by loops."
    among = range(len(scores)) if among is None else [target, *among]
    among = [i for i in among if i == target or (i != PAD and i not in out)]
    greater = sum(scores[i] > scores[target] + tol for i in among)
    ties = sum(abs(scores[i] - scores[target]) <= tol for i in among) - 1
    return int(greater), int(ties), len(among)


def assert_ranks(ranks, scores, rows, negatives=None):
    "The ranks are those of loops over [rows, items] scores."
    found = np.stack([ranks.greater, ranks.ties, ranks.candidates], 1).tolist()
    among = [None] * len(rows) if negatives is None else negatives
    slow = [slow_rank(s, t, seen, a) for s, t, seen, a in zip(scores, rows.targets, rows.seen, among)]
    assert found == [list(x) for x in slow]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(2, 7),
    st.one_of(st.none(), st.integers(1, 6)),
    st.integers(1, 7),
)
def test_ranks_are_those_of_loops(seed, users, items, negatives, chunk):
    rng = np.random.default_rng(seed)
    scores, targets = rng.integers(-2, 3, (users, items)) * 0.1, rng.integers(0, items, users)
    seen = Ragged.of(
        [sorted(rng.permutation(np.delete(np.arange(items), t))[: rng.integers(0, items)]) for t in targets]
    )
    rows = Rows(np.arange(users), targets[:, None], targets, seen.offsets, seen.items)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        out = seen_items((rows.seen_offsets, rows.seen_items), targets, items)
        drawn = None if negatives is None else sample_negatives(out, targets, items, negatives, seed)
    assert_ranks(ranks_of_scores(lambda at: scores[at], targets, items, out, drawn, chunk), scores, rows, drawn)
    assert_ranks(ranks_of_order(scores[0], targets, out, drawn), np.tile(scores[0], (users, 1)), rows, drawn)


def small_shop(seed, items, users):
    "A Dataset with times; some items lack a text or a picture."
    rng = np.random.default_rng(seed)
    text, image = [], []
    for _ in range(items):
        text.append(None if rng.random() < 0.2 else ' '.join(rng.choice(list('xyzw'), rng.integers(1, 4))))
    for _ in range(items):
        colour = None if rng.random() < 0.2 else rng.choice([0, 128, 255], 3)
        image.append(None if colour is None else np.full((16, 16, 3), colour, np.uint8))
    chosen = [rng.permutation(items)[: rng.integers(3, items)] for _ in range(users)]
    times = np.concatenate([np.sort(rng.integers(0, 50, len(c))) for c in chosen]) * 1.5
    catalogue = Catalogue(
        tuple(map(str, range(items))), {'text': text, 'image': image}, {'text': 'text', 'image': 'image'}
    )
    return Dataset(catalogue, replace(Interactions.of_sequences(chosen), times=times), 'small')


def slow_cosines(texts):
    "TF-IDF cosines in plain Python."
    bags = [(t or '').lower().split() for t in texts]
    idf = {w: math.log((1 + len(bags)) / (1 + sum(w in b for b in bags))) + 1 for b in bags for w in b}
    v = [{w: b.count(w) * idf[w] for w in set(b)} for b in bags]
    size = [math.sqrt(sum(x * x for x in a.values())) or 1 for a in v]
    return np.array([[sum(a[w] * b.get(w, 0) for w in a) / p / q for b, q in zip(v, size)] for a, p in zip(v, size)])


def slow_pictures(images):
    "Cosines of centred pictures in plain Python."
    x = [None if i is None else np.asarray(i, float).ravel() / 255 for i in images]
    mean = np.mean([v for v in x if v is not None], 0)
    x = [np.zeros_like(mean) if v is None else v - mean for v in x]
    size = [np.linalg.norm(v) for v in x]
    return np.array([[a @ b / p / q if min(p, q) > 1e-3 else 0.0 for b, q in zip(x, size)] for a, p in zip(x, size)])


def slow_together(split, over):
    "Co-occurrence in plain Python."
    trained, n = Ragged(*split.user_items), len(split.catalogue)
    sets = [{u for u in range(len(trained)) if i in trained[u]} for i in range(n)]

    def alike(i, j):
        if not sets[i] or not sets[j]:
            return 0.0
        return len(sets[i] & sets[j]) / math.sqrt(len(sets[i]) * len(sets[j]))

    windows = [[h for h in r if h != PAD] for r in split.test.history]
    windows = [w[-1:] for w in windows] if over == 'last' else windows
    return np.array([[sum(alike(h, j) for h in window) for j in range(n)] for window in windows])


def slow_counts(inter, n, half_life):
    "(popularity, popularity by recency) of every item, the last choice of each user left out."
    past = []
    for u, chosen in enumerate(inter.sequences):
        past += [(i, float(inter.times[inter.offsets[u] + p])) for p, i in enumerate(chosen[:-1])]
    count, recent, latest = np.zeros(n), np.zeros(n), max(t for _, t in past)
    for i, t in past:
        count[i] += 1
        recent[i] += 2 ** (-(latest - t) / half_life)
    return count, recent


def slow_scores(split, dataset, half_life, over):
    "{name: [rows, items]} for the test."
    n, rows = len(split.catalogue), split.test
    count, recent = slow_counts(dataset.interactions, n, half_life)
    last, content = [[h for h in r if h != PAD][-1] for r in rows.history], split.catalogue.content
    return {
        'random': np.zeros((len(rows), n)),
        'popularity': np.tile(count, (len(rows), 1)),
        'popularity by recency': np.tile(recent, (len(rows), 1)),
        'co-occurrence': slow_together(split, over),
        'last item by text': slow_cosines(content['text'])[last],
        'last item by image': slow_pictures(content['image'])[last].round(5),
    }


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(4, 8),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(1, 5)),
    st.sampled_from(['history', 'last']),
    st.one_of(st.none(), st.integers(1, 3)),
)
def test_baselines_are_those_of_loops(seed, items, users, negatives, over, chunk):
    data = small_shop(seed, items, users)
    if all(v is None for v in data.catalogue.content['image']):
        return
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        split = leave_one_out(data, history=3)
        how = dict(dataset=data, half_life=20.0, over=over, negatives=negatives, seed=seed, chunk=chunk, bootstrap=10)
        found = baselines(split, **how)
        rows = split.test
        out = seen_items((rows.seen_offsets, rows.seen_items), rows.targets, items)
        drawn = None if negatives is None else sample_negatives(out, rows.targets, items, negatives, seed)
    for name, scores in slow_scores(split, data, 20.0, over).items():
        assert_ranks(found.ranks[name], scores, rows, drawn)


def test_popularity_of_training_alone():
    data = small_shop(3, 8, 6)
    split = leave_one_out(data, history=3)
    counts = np.bincount(past_choices(split, counted='train')[1], minlength=8)
    found = baselines(split, counted='train', which='popularity')
    assert_ranks(found.ranks['popularity'], np.tile(counts, (len(split.test), 1)), split.test)


# ---- a baseline of one's own


@pytest.fixture
def by_letters():
    "A baseline by modality, registered for as long as a test runs."

    @baseline('length of ', 'length: the longest first', by_modality=True)
    def longest(task, modality):
        "By the length of what an item has."
        return task.by_order([len(str(v or '')) for v in task.split.catalogue.content[modality]])

    yield longest
    del BASELINES['length of ']


def test_a_baseline_by_modality_stands_in_the_table(by_letters):
    data = small_shop(3, 8, 6)
    split = leave_one_out(data, history=3)
    assert baseline_names(split.catalogue)[-2:] == ('length of text', 'length of image')
    found = baselines(split, which=['length of text', 'random'], dataset=data)
    assert list(found) == ['length of text', 'random']
    assert 'length: the longest first' in found.protocol
    lengths = [len(t or '') for t in split.catalogue.content['text']]
    assert_ranks(found.ranks['length of text'], np.tile(lengths, (len(split.test), 1)), split.test)


def test_a_name_belongs_to_one_baseline(by_letters):
    def another(task, modality):
        "Another one."

    with pytest.raises(ValueError, match="there is a baseline 'length of ' already"):
        baseline('length of ', 'another')(another)
    assert BASELINES['length of '].rank is by_letters


def test_baselines_of_the_lab():
    names = ['random', 'popularity', 'popularity by recency', 'co-occurrence', 'last item by ']
    assert list(BASELINES) == names
