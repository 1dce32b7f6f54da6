"""Numbers that no split, profile or log can take are refused by the name of their argument."""

import json
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.base.ragged import Ragged
from vlm2rec_lab.data import Catalogue, Dataset, Interactions, leave_one_out
from vlm2rec_lab.ranking.baselines import baselines
from vlm2rec_lab.ranking.task import as_matrix
from vlm2rec_lab.shop.baskets import last_basket
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.shop.leave_one_out import hold_out_users
from vlm2rec_lab.shop.profile import profile, sample_users
from vlm2rec_lab.shop.rows import drop_content, rows_at
from vlm2rec_lab.shop.shares import shares
from vlm2rec_lab.shop.splits import cold_items, last_day, settle_repeats, temporal_split

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
ROWS = [np.random.default_rng(k).permutation(12)[:6] for k in range(20)]
TIMES = np.concatenate([np.arange(6) * 3 * 86400 + 1e9 + k for k in range(20)])
LOG = Interactions(tuple(f'u{k}' for k in range(20)), np.arange(21) * 6, np.concatenate(ROWS), TIMES)
CATALOGUE = Catalogue([f'i{k}' for k in range(12)], {'text': [f't{k}' for k in range(12)]}, {'text': 'text'})
SHOP = Dataset(CATALOGUE, LOG, 'shop')
SPLIT = leave_one_out(SHOP)
STUDIO = partial(make_studio, **dict(items=40, users=30, length=5, image_size=16))
SPLITS = {
    leave_one_out: {},
    hold_out_users: dict(train=10, valid=5, test=5),
    shares: dict(valid=0.2, test=0.2),
    temporal_split: dict(valid=0.2, test=0.2),
    last_day: {},
    cold_items: dict(share=0.2),
    last_basket: {},
}
COUNTS = [
    *((f, 'history') for f in SPLITS),
    *((hold_out_users, part) for part in ('train', 'valid', 'test')),
    *((f, 'min_length') for f in (leave_one_out, cold_items)),
    *((last_day, name) for name in ('days', 'valid_days')),
    (leave_one_out, 'users'),
]
WRONG = -1, 1.5, 3.0, float('nan'), float('inf'), True, '3', []


def refused(name, call):
    with pytest.raises(ValueError, match=rf"\b{name}(=| is |:| holds )"):
        call()


@pytest.mark.parametrize('f, name', COUNTS)
def test_what_counts_in_a_split_is_a_whole_number(f, name):
    for wrong in WRONG:
        refused(name, lambda: f(SHOP, **SPLITS[f] | {name: wrong}))
    made = f(SHOP, **SPLITS[f] | {name: np.int64(3)})
    json.dumps(made.about)  # a split is kept as JSON, which knows no numbers of numpy


@pytest.mark.parametrize('wrong', [-1, 1.5, float('nan'), True, '3', None, []])
def test_shares_of_splits_are_numbers(wrong):
    for f, names in ((shares, ('valid', 'test')), (cold_items, ('share', 'valid_share'))):
        for name in names:
            if not (name == 'valid_share' and wrong is None):
                refused(name, lambda: f(SHOP, **SPLITS[f] | {name: wrong}))
    refused('share', lambda: drop_content(SPLIT, 'text', wrong))


@pytest.mark.parametrize('wrong', [-1, 1.5, float('nan'), True, '3', None])
def test_a_profile_and_a_studio_count_in_whole_numbers(wrong):
    for name in ('users', 'last'):
        refused(name, lambda: sample_users(SHOP, **{name: wrong}))
    for name in ('users', 'last', 'budget', 'max_images', 'max_texts'):
        refused(name, lambda: profile(SHOP, **{name: wrong}, progress=False))
    for name in ('items', 'users', 'length', 'image_size'):
        refused(name, lambda: STUDIO(**{name: wrong}))
    for name in ('drift', 'new'):
        refused(name, lambda: STUDIO(**{name: wrong}))
    for name in ('valid', 'test', *(['train'] if wrong is not None else [])):
        refused(name, lambda: STUDIO().split(**dict(train=9, valid=5, test=5) | {name: wrong}))
    if wrong is not None and wrong != 1.5:
        refused('half_life', lambda: baselines(SPLIT, half_life=wrong, progress=False))


@pytest.mark.parametrize('wrong', [[0.5, 1], [float('nan'), 1], [True, False], ['0', '1'], [1j, 0], [None, 1]])
def test_row_numbers_are_not_cut_to_whole_ones(wrong):
    refused('items', lambda: Interactions(('a',), [0, 2], wrong))
    refused('positions', lambda: rows_at(LOG, wrong))
    refused('list 1', lambda: Interactions.of_sequences([[0, 1], wrong]))
    with pytest.raises(DataError, match='offsets'):
        Ragged(wrong, [0])


def test_row_numbers_of_any_whole_type():
    rows = [0, 1]
    for made in (np.array(rows, np.uint8), np.array(rows, float), np.array(rows, object), torch.tensor(rows)):
        assert Interactions.of_sequences([made, ()]).items.tolist() == rows
    assert Interactions(('a',), np.array([0, 2], np.int8), pd.Series(rows, index=[7, 3])).items.tolist() == rows


def test_places_outside_a_log_are_told():
    for wrong in ([-1], [120], [[1, 2]], 3):
        with pytest.raises(DataError, match='positions must be a list of places from 0 to 119'):
            rows_at(LOG, wrong)


def test_a_mask_is_not_dropped_in_silence():
    with pytest.raises(ValueError, match='vectors is masked in places'):
        as_matrix(np.ma.masked_array(np.eye(2), np.eye(2, dtype=bool)))
    with pytest.raises(DataError, match='items is masked in places'):
        Interactions(('a',), [0, 2], np.ma.masked_array([0, 1], [True, False]))


@pytest.mark.parametrize(
    'call, said',
    [
        (lambda: Catalogue(['a'], None, {}), 'content is None: give a dictionary'),
        (lambda: Catalogue(['a'], {}, ['text']), "kinds is ['text']: give a dictionary"),
        (lambda: Catalogue(['a'], {}, {}, table=[1]), 'table is list: give a DataFrame'),
        (lambda: Interactions(('a',), [0, 1], [0], times=['noon']), 'times has shape (1,) of <U4'),
        (lambda: Interactions(('a',), [0, 1], [0], times=3), 'times has shape ()'),
        (lambda: Interactions(('a',), [0, 1], [0], times=np.array(['2020-01-01'], 'M8[s]')), 'times has shape (1,) of'),
        (lambda: profile(SHOP, limits=3), 'limits is 3: give a dictionary'),
        (lambda: settle_repeats(SPLIT, SHOP, parts=['tests']), "no part 'tests'; did you mean 'test'"),
        (lambda: last_basket(SHOP, new='yes'), "new='yes': give True"),
    ],
)
def test_what_is_of_another_kind_is_told_by_name(call, said):
    with pytest.raises(DataError, match=re.escape(said)):
        call()


def test_what_is_right_already_is_not_copied():
    "A hundred million rows are held once."
    items, times = np.arange(6), np.arange(6.0)
    made = Interactions(['a', 'b'], [0, 4, 6], items, times)
    assert np.shares_memory(made.items, items) and np.shares_memory(made.times, times)
