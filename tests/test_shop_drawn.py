"""The studio: equal worlds to the last bit for every condition, and what cannot be made."""

import hashlib

import numpy as np
import pytest
from PIL import ImageChops, ImageFilter

from vlm2rec_lab.shop import drawn
from vlm2rec_lab.studio import (
    ATTRIBUTES,
    CONDITIONS,
    Condition,
    draw_product,
    fingerprint,
    get_condition,
    make_customers,
    make_products,
    make_studio,
)

GOLDEN = {  # (condition, seed) -> fingerprint of the world, digest of the tastes
    ('text-easy', 0): ('e3c861704f93867d', '56110582d7124012'),
    ('text-easy', 1): ('51fc2b0188f4b09e', '1d55b311a10780b3'),
    ('text-easy', 7): ('ef83b073eac5e72a', 'b6be0598feaf119a'),
    ('even-reader', 0): ('e3c861704f93867d', '56110582d7124012'),
    ('even-reader', 1): ('51fc2b0188f4b09e', '1d55b311a10780b3'),
    ('even-reader', 7): ('ef83b073eac5e72a', 'b6be0598feaf119a'),
    ('image-easy', 0): ('b99e507e77979a77', '56110582d7124012'),
    ('image-easy', 1): ('8d613f9b14afa146', '1d55b311a10780b3'),
    ('image-easy', 7): ('bb3c003d6ba5230b', 'b6be0598feaf119a'),
    ('balanced', 0): ('65f32dd6b9e5e502', '56110582d7124012'),
    ('balanced', 1): ('d0b0a526396df403', '1d55b311a10780b3'),
    ('balanced', 7): ('9508d849c9af5876', 'b6be0598feaf119a'),
    ('redundant', 0): ('c57be35e8bb38dab', '56110582d7124012'),
    ('redundant', 1): ('e645ff575448b346', '1d55b311a10780b3'),
    ('redundant', 7): ('1ec5a12b7556472d', 'b6be0598feaf119a'),
    ('complementary', 0): ('a79e130d301cd639', '56110582d7124012'),
    ('complementary', 1): ('6bd270a8af212479', '1d55b311a10780b3'),
    ('complementary', 7): ('ec5d994b13f6a05c', 'b6be0598feaf119a'),
    ('wrong-picture', 0): ('21d8db9752180115', '56110582d7124012'),
    ('wrong-picture', 1): ('f4f828a6f372bc6c', '1d55b311a10780b3'),
    ('wrong-picture', 7): ('48b4c53f2bfee685', 'b6be0598feaf119a'),
    ('memorable', 0): ('626ab2bb248f16ed', '56110582d7124012'),
    ('memorable', 1): ('727864defe4ad1c9', '1d55b311a10780b3'),
    ('memorable', 7): ('9e202b768ea71760', 'b6be0598feaf119a'),
    ('three', 0): ('c0de297307962b5c', '56110582d7124012'),
    ('three', 1): ('6d5079f99e2ecea0', '1d55b311a10780b3'),
    ('three', 7): ('58f5b06d0d15b3ce', 'b6be0598feaf119a'),
}


@pytest.mark.parametrize('name, seed', GOLDEN)
def test_worlds_are_equal_to_the_last_bit(name, seed):
    "Pictures, texts, purchases and the tastes behind them, with the pinned Pillow and numpy."
    studio = make_studio(name, seed=seed, items=60, users=120, image_size=40)
    tastes = hashlib.sha256(studio.tastes.tobytes()).hexdigest()
    assert (fingerprint(studio)[:16], tastes[:16]) == GOLDEN[name, seed]


def test_every_condition_has_its_golden_world():
    assert {name for name, _ in GOLDEN} == set(CONDITIONS)


@pytest.mark.parametrize('category', ATTRIBUTES['category'])
def test_every_pattern_and_colour_can_be_drawn(category):
    "Two colours or two patterns never give the same picture."
    looks = [dict(category=category, colour=c, pattern=p) for c in ATTRIBUTES['colour'] for p in ATTRIBUTES['pattern']]
    pictures = {draw_product(look, np.random.default_rng(0), 32).tobytes() for look in looks}
    assert len(pictures) == len(looks)


def test_a_condition_of_ones_own():
    own = Condition('mine', rho={'colour': 0.5})
    assert get_condition(own) is own
    assert make_studio(own, items=30, users=5, image_size=8).name == 'studio custom, seed 0'


def test_more_products_than_article_numbers():
    with pytest.raises(ValueError, match='take at most 9000 products'):
        make_products(9001, 'memorable', np.random.default_rng(0), image_size=8)


def test_new_products_are_bought_last_or_not_at_all():
    attributes = {a: np.random.default_rng(0).integers(0, len(v), 40) for a, v in ATTRIBUTES.items()}
    new = np.arange(40) < 8
    bought, _ = make_customers(attributes, 'balanced', 200, 6, 0.03, np.random.default_rng(1), new)
    assert not new[bought[:, :-1]].any() and new[bought[:, -1]].any()


def test_an_unknown_condition_is_answered_with_all():
    with pytest.raises(ValueError, match='There is: text-easy, .*, three$'):
        make_studio('nothing like it')


@pytest.mark.parametrize('category', ATTRIBUTES['category'])
def test_the_edge_of_a_shape_is_what_pillow_finds(category):
    mask = drawn._outline(category, 224, np.array([100.0, 118.0]), 90.0)
    wide = drawn._outline(category, 224, np.array([20.0, 210.0]), 90.0)  # runs over two borders
    for m in (mask, wide):
        plain = ImageChops.difference(m, m.filter(ImageFilter.MinFilter(5)))
        assert np.array_equal(np.asarray(drawn._edge(m)), np.asarray(plain))
        assert np.asarray(plain).any()
