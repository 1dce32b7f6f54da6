"""Worlds of known truth: what is made follows from the seed, and a damage does what its name says."""

import numpy as np
import pytest
from fastcore.test import test_close as close

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.diagnosis.worlds import DAMAGES, hurt, mean_histories, memorised, nested, shop, world
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
    assert left > 0.85 if how == 'cone' else left < (0.5 if how == 'sales alone' else 0.2)


def test_sales_alone_rank_by_sales():
    w = world(zipf=1)
    h = hurt(w, 'image', 'sales alone', sold=np.arange(200))
    length = h['items']['image'] @ h['sequences']['image'][0]
    assert np.corrcoef(np.argsort(np.argsort(length)), np.arange(200))[0, 1] > 0.85
    assert lift(hurt(w, 'image', 'sales alone'), 'image') > 2 * lift(w, 'image')
    others = w | dict(sequences={m: x[::-1] for m, x in w['sequences'].items()})
    left = [lift(hurt(x, 'image', 'sales alone'), 'image') for x in (w, others)]
    assert left[0] == pytest.approx(left[1], rel=0.05)


def test_the_seed_decides_the_damage(healthy):
    assert (hurt(healthy, 'image')['items']['image'] == hurt(healthy, 'image')['items']['image']).all()
    assert (hurt(healthy, 'image', seed=1)['items']['image'] != hurt(healthy, 'image')['items']['image']).any()


def test_a_degree_is_a_share_of_the_items(healthy):
    moved = hurt(healthy, 'image', 'permuted', 0.5)['items']['image'] != healthy['items']['image']
    assert moved.any(1).sum() == 100


def test_an_unknown_damage_names_the_nearest(healthy):
    with pytest.raises(DataError, match='noise'):
        hurt(healthy, 'image', 'noize')


def alone(w, m):
    "NDCG@10 of a modality, and of the fusion by concatenation."
    return evaluate(**w, bootstrap=0, fuse='concat')[m]['NDCG@10']


def test_a_variant_is_weak_alone_and_needed():
    w = nested()
    assert alone(w, 'image') < 0.2 * alone(w, 'text')
    assert alone(w, 'fused') > 0.98


def test_a_popular_place_is_worth_the_more_the_steeper_it_falls():
    most = [np.bincount(world(zipf=z)['targets']).max() for z in (0, 0.3, 0.6)]
    assert most == sorted(most) and most[2] > 3 * most[0]


def test_directions_of_falling_strength_have_a_heavy_tail():
    spectra = [np.linalg.svd(world(decay=d, latent=16)['items']['text'], compute_uv=False) for d in (0, 1)]
    flat, steep = (s[0] / s[7] for s in spectra)
    assert steep > 3 * flat


def test_guided_users_care_for_what_their_modality_sees():
    sees = dict(text=range(6), image=range(6, 8))
    few, many = (alone(world(sees=sees, guided=dict(text=1 - s, image=s)), 'image') for s in (0.1, 0.5))
    assert CHANCE < few < many


def test_luck_makes_hits_rare():
    assert alone(world(luck=2), 'text') < 0.4 * alone(world(), 'text')


def test_histories_are_left_out_and_users_are_their_means():
    w = shop(100)
    past = np.array(w['seen'])
    assert past.shape == (100, 5) and not (past == w['targets'][:, None]).any()
    close(w['sequences']['image'], mean_histories(w['items'], past)['image'])


def test_what_was_learned_by_heart_ranks_users_that_it_never_saw():
    w, other = memorised(300), memorised(300, exchanged=True)
    assert alone(w, 'image') > 8 * CHANCE and alone(other, 'image') > 8 * CHANCE
    close(w['items']['text'], other['items']['text'])
    assert (w['targets'] == other['targets']).all()


@pytest.mark.parametrize('make', [nested, shop, memorised, world])
def test_the_seed_decides_every_make(make):
    first, again, other = (make(50, seed=s) for s in (1, 1, 2))
    for side in ('items', 'sequences'):
        assert (first[side]['image'] == again[side]['image']).all()
        assert (first[side]['image'] != other[side]['image']).any()
        assert first[side]['image'].dtype == np.float32


def test_cold_items_are_those_that_sell_least(healthy):
    sold = np.bincount(healthy['targets'], minlength=200)
    moved = hurt(healthy, 'image', 'cold items', 0.25)['items']['image']
    unit = healthy['items']['image'] / np.linalg.norm(healthy['items']['image'], axis=1, keepdims=True)
    hit = np.abs(moved - unit).max(1) > 0.01
    assert hit.sum() == 50 and sold[hit].max() <= sold[~hit].min()
    given = hurt(healthy, 'image', 'cold items', 0.25, sold=np.arange(200))['items']['image']
    assert (np.abs(given - unit).max(1) > 0.01)[:50].all()


def test_turned_items_are_found_by_a_linear_map(healthy):
    moved = hurt(healthy, 'image', 'turned', 1)['items']['image'].astype(float)
    x = healthy['items']['image'] / np.linalg.norm(healthy['items']['image'], axis=1, keepdims=True)
    there = np.linalg.lstsq(moved, x, rcond=None)[0]
    close(moved @ there, x, 1e-3)
