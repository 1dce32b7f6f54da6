"Shares of each user at random: against a plain loop, and what must not change them."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.data import Catalogue, DataError, Dataset, Interactions, check_split, leave_one_out, read_split, shares
from vlm2rec_lab.graph.fit import evaluate_graph, rank_graph
from vlm2rec_lab.graph.models import BPRMF
from vlm2rec_lab.ranking.sets import SetRanks

ITEMS = 30
CATALOGUE = Catalogue([f'i{k}' for k in range(ITEMS)], {}, {})
quiet = pytest.mark.filterwarnings('ignore::vlm2rec_lab.base.errors.DataWarning')
many = settings(max_examples=80, deadline=None, database=None)
shops = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=40), min_size=1, max_size=6)


def dataset(lists, ids=None):
    "A dataset from lists of items."
    return Dataset(
        CATALOGUE, Interactions.of_sequences(lists, ids or [f'u{k}' for k in range(len(lists))]), 'generated'
    )


def parts_of(split, user):
    "Training, validation and test items of a user."
    offsets, items = split.user_items
    out = [items[offsets[user] : offsets[user + 1]].tolist()]
    for rows in (split.valid, split.test):
        at = np.flatnonzero(rows.users == user)
        out.append(rows.sets[at[0]].tolist() if len(at) else [])
    return out


@quiet
@many
@given(shops, st.integers(0, 3), st.sampled_from([(0.1, 0.1), (0.2, 0.3), (0, 0.5), (0.05, 0.9)]))
def test_every_user_is_cut_by_the_rule(lists, seed, how):
    data = dataset(lists)
    if not any(len({*x}) > 1 for x in lists):
        with pytest.raises(DataError, match='no user has two different items'):
            shares(data, *how, seed=seed)
        return
    split = check_split(shares(data, *how, seed=seed))
    for u, mine in enumerate(lists):
        train, valid, test = parts_of(split, u)
        n = len({*mine})
        assert sorted(train + valid + test) == sorted({*mine})  # every pair in one part, and once
        want = [max(int(n * share + 1e-9), int(share > 0)) for share in how]
        want[1] = min(want[1], max(n - 1, 0))
        want[0] = min(want[0], max(n - 1 - want[1], 0))
        assert [len(valid), len(test)] == want
        assert len(train) >= min(n, 1)
    for rows, exclude in ((split.valid, 0), (split.test, 1)):
        for r, u in enumerate(rows.users):
            train, valid, _ = parts_of(split, u)
            first = list(dict.fromkeys(lists[u]))
            assert rows.seen[r].tolist() == sorted(train + valid * exclude)
            assert rows.history[r][rows.history[r] >= 0].tolist() == [i for i in first if i in train][-10:]


@quiet
@many
@given(shops, st.randoms(use_true_random=False))
def test_no_order_and_no_neighbour_has_a_say(lists, random):
    lists = [[0, 1, 2, 3, 4, 5, 6], *lists]
    split = shares(dataset(lists))
    order = list(range(len(lists)))
    random.shuffle(order)
    mixed = [random.sample(lists[u], len(lists[u])) for u in order]
    other = shares(dataset(mixed, [f'u{u}' for u in order]))
    for k, u in enumerate(order):
        assert parts_of(other, k) == parts_of(split, u)
    assert parts_of(shares(dataset(lists[:1])), 0) == parts_of(split, 0)


@quiet
def test_items_are_drawn_evenly():
    split = shares(dataset([list(range(10))] * 3000))
    drawn = np.bincount(split.test.set_items, minlength=10)
    assert drawn.sum() == 3000 and np.abs(drawn - 300).max() < 5 * 300**0.5


@quiet
def test_what_is_excluded_and_kept(tmp_path):
    data = dataset([list(range(k, k + 12)) for k in range(5)])
    both, train = shares(data), shares(data, exclude='train')
    assert (both.test.seen.lengths, train.test.seen.lengths) == (pytest.approx([11] * 5), pytest.approx([10] * 5))
    assert both.about['exclude'] == 'both' and 'validation items stay candidates' in ' '.join(train.notes)
    both.save(tmp_path / 'split.safetensors')
    assert read_split(tmp_path / 'split.safetensors', data).fingerprint == both.fingerprint != train.fingerprint
    model = BPRMF(5, ITEMS)
    assert rank_graph(model, both).candidates.tolist() == [19] * 5
    assert rank_graph(model, train).candidates.tolist() == [20] * 5


@quiet
def test_other_splits_are_ranked_too():
    "One item asked for: Recall is the hit rate; a row without training is cold."
    split = leave_one_out(dataset([list(range(k, k + 6)) for k in range(8)]))
    model = BPRMF(8, ITEMS)
    assert not isinstance(rank_graph(model, split), SetRanks)
    found = evaluate_graph(model, split, k=5, metrics=('Recall', 'HR', 'NDCG'))
    assert found['Recall@5'].equals(found['HR@5'])
    warm = np.isin(split.test.targets, split.user_items[1])
    assert found.loc['cold', 'rows'] == (~warm).sum() > 0
