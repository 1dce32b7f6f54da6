"Codes of items: likes share beginnings, nobody moves, names are told apart."

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.prompts.answers import make_trie
from vlm2rec_lab.prompts.codes import (
    code_names,
    fit_codes,
    label_agreement,
    number_names,
    residual_codes,
    side_by_side,
    unique_codes,
)

any_codes = st.integers(1, 4).flatmap(
    lambda levels: arrays(np.int64, st.tuples(st.integers(1, 30), st.just(levels)), elements=st.integers(0, 120))
)


def digits(word):
    return [10 + int(c) for c in word]


def clouds(seed, clouds=6, each=20, dims=8, noise=0.2):
    "Items around a few centres: vectors [N, D], and whose each is."
    rng = np.random.default_rng(seed)
    whose = np.repeat(np.arange(clouds), each)
    return rng.normal(size=(clouds, dims))[whose] + noise * rng.normal(size=(len(whose), dims)), whose


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_items_that_are_near_share_beginnings(seed):
    "Neighbours more than any two, for the first code and for the first two."
    vectors, whose = clouds(seed)
    codes = residual_codes(vectors, levels=2, codes=6, seed=seed % 7)
    share, chance = label_agreement(whose, codes[:, 0])
    assert share > chance + 0.3
    both = np.unique(codes, axis=0, return_inverse=True)[1]
    share, chance = label_agreement(whose, both)
    assert share > 2 * chance
    mixed = np.random.default_rng(seed).permutation(codes[:, 0])
    assert abs(np.subtract(*label_agreement(whose, mixed))) < 0.15


vectors_of_any_kind = arrays(
    np.float32, st.tuples(st.integers(1, 25), st.integers(1, 5)), elements=st.integers(-3, 3).map(float)
)


@settings(max_examples=60, deadline=None)
@given(vectors_of_any_kind, st.integers(1, 4), st.integers(1, 12), st.integers(0, 5))
def test_any_vectors_get_codes(vectors, levels, codes, seed):
    "Fewer items than codes, likes, zeros, more levels than needed: always codes, the same again, the same for likes."
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        made = fit_codes(vectors, levels, codes, seed)
    zeros = (~vectors.any(1)).sum()
    assert [str(w.message).split(' ')[0] for w in told] == ([str(zeros)] if zeros else [])
    found = made.of(vectors)
    assert found.shape == (len(vectors), levels) and 0 <= found.min() and found.max() < codes
    order = np.random.default_rng(seed).permutation(len(vectors))
    assert (made.of(vectors[order]) == found[order]).all()
    like = np.unique(vectors, axis=0, return_inverse=True)[1].ravel()
    for group in range(like.max() + 1):
        assert (found[like == group] == found[like == group][0]).all()
    left = made.left(vectors)
    assert (np.diff([1 + 1e-6, *left]) <= 1e-6).all()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert (residual_codes(vectors, levels, codes, seed) == found).all()


def test_as_many_codes_as_items_leave_nothing():
    vectors = np.random.default_rng(0).normal(size=(7, 4))
    made = fit_codes(vectors, levels=3, codes=9)
    assert made.left(vectors).max() < 1e-6
    assert len(np.unique(made.of(vectors)[:, 0])) == 7 and not made.of(vectors)[:, 1:].any()


def test_the_codes_are_the_nearest_centres_by_hand():
    vectors, _ = clouds(0)
    made, rest = fit_codes(vectors, levels=3, codes=4), vectors.copy()
    for level, centres in enumerate(made.centres):
        far = ((rest[:, None] - centres[None]) ** 2).sum(2)
        assert (far.argmin(1) == made.of(vectors)[:, level]).all()
        rest = rest - centres[far.argmin(1)]
        assert abs(made.left(vectors)[level] - (rest**2).sum() / (vectors**2).sum()) < 1e-5


def test_items_without_contents_are_not_learned_from():
    vectors, _ = clouds(1)
    with pytest.warns(UserWarning, match='40 of 160 items have no contents'):
        made = fit_codes(np.concatenate([vectors, np.zeros((40, 8))]))
    for a, b in zip(made.centres, fit_codes(vectors).centres):
        assert (a == b).all()
    with pytest.warns(UserWarning, match='5 of 5'):
        assert not residual_codes(np.zeros((5, 2))).any()


@settings(max_examples=80, deadline=None)
@given(any_codes, st.booleans())
def test_unique_codes_and_their_names(codes, always):
    "Each once, rising in a group by item; what comes later leaves what was there; the trie takes the names."
    told = unique_codes(codes, always)
    assert len(np.unique(told, axis=0)) == len(codes) and (told[:, : codes.shape[1]] == codes).all()
    if told.shape[1] > codes.shape[1]:
        for i, row in enumerate(codes):
            assert told[i, -1] == (codes[:i] == row).all(1).sum()
    else:
        assert not always and len(np.unique(codes, axis=0)) == len(codes)
    more = unique_codes(np.concatenate([codes, codes[:3]]), always=True)
    assert (more[: len(codes)] == unique_codes(codes, always=True)).all()
    names = code_names(told, digits)
    assert len(make_trie(names)) == len(codes)
    alike = [(i, j) for i in range(len(codes)) for j in range(i) if codes[i, 0] == codes[j, 0]]
    width = len(str(told[:, 0].max()))
    assert all(names[i][:width] == names[j][:width] for i, j in alike)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.data())
def test_agreement_is_that_of_pairs_counted_one_by_one(codes, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(codes), max_size=len(codes))))
    codes = np.array(codes)
    pairs = [(i, j) for i in range(len(codes)) for j in range(i)]
    alike = [(i, j) for i, j in pairs if codes[i] == codes[j]]
    share, chance = label_agreement(codes, labels)
    assert np.isclose(chance, np.mean([labels[i] == labels[j] for i, j in pairs]))
    one = np.mean([labels[i] == labels[j] for i, j in alike]) if alike else np.nan
    assert np.isclose(share, one, equal_nan=True)


def test_numbers_as_names():
    names = number_names(np.array([3, 12, 120]), digits)
    assert names == [[13], [11, 12], [11, 12, 10]]
    with pytest.raises(DataError, match='one token or more'):
        number_names([3], lambda word: [])
    with pytest.raises(DataError, match='the name of another item'):
        number_names([7, 12], lambda word: [5])


def test_modalities_have_the_same_say():
    vectors = dict(text=np.array([[100.0, 0], [0, 0]]), image=np.array([[0, 0.01, 0], [1, 0, 0]]))
    assert np.allclose(side_by_side(vectors), [[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]])
