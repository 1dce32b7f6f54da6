"""Worlds of known truth: what is made follows from the seed, and a damage does what its name says."""

import numpy as np
import pytest
from fastcore.test import test_close as close

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.diagnosis.worlds import DAMAGES, hurt, world
from vlm2rec_lab.ranking.evaluate import evaluate

CHANCE = sum(1 / np.log2(np.arange(10) + 2)) / 200


@pytest.fixture(scope='module')
def healthy():
    return world()


@pytest.fixture(scope='module')
def big():
    return world(5000)


def lift(w, m):
    "NDCG@10 of a modality above chance."
    return evaluate(**w, bootstrap=0)[m]['NDCG@10'] - CHANCE


def test_vectors_are_single_precision(healthy):
    assert healthy['items']['text'].dtype == np.float32


def test_a_world_without_users_has_no_targets():
    assert len(world(0)['targets']) == 0


def test_popular_worlds_have_best_sellers(healthy):
    assert np.bincount(world(popular=0.5)['targets']).max() > 2 * np.bincount(healthy['targets']).max()


def test_a_gap_moves_only_its_modality(healthy):
    close(world(gap={'image': 1})['items']['text'], healthy['items']['text'])


@pytest.mark.parametrize('how', DAMAGES)
def test_a_damage_keeps_form_and_leaves_the_others(healthy, how):
    x = hurt(healthy, 'image', how)
    assert set(x) == set(healthy)
    assert x['items']['image'].dtype == np.float32
    assert x['items']['text'] is healthy['items']['text']
    assert np.isfinite(x['items']['image']).all()
    close(lift(hurt(healthy, 'image', how, 0), 'image') / lift(healthy, 'image'), 1, 0.01)


@pytest.mark.parametrize('how', DAMAGES)
def test_what_is_left_at_the_end(big, how):
    left = lift(hurt(big, 'image', how, 1), 'image') / lift(big, 'image')
    assert left > 0.85 if how == 'cone' else left < 0.2


def test_the_seed_decides_the_damage(healthy):
    assert (hurt(healthy, 'image')['items']['image'] == hurt(healthy, 'image')['items']['image']).all()
    assert (hurt(healthy, 'image', seed=1)['items']['image'] != hurt(healthy, 'image')['items']['image']).any()


def test_a_degree_is_a_share_of_the_items(healthy):
    moved = hurt(healthy, 'image', 'permuted', 0.5)['items']['image'] != healthy['items']['image']
    assert moved.any(1).sum() == 100


def test_an_unknown_damage_names_the_nearest(healthy):
    with pytest.raises(DataError, match='noise'):
        hurt(healthy, 'image', 'noize')
