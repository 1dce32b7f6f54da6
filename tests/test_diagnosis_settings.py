"""Settings with known truth: what is right was measured, degrees go to both halves, and what was done is done."""

import numpy as np
import pytest

from vlm2rec_lab.diagnosis.settings import (
    LINES,
    NEEDED,
    PARTLY,
    REACH,
    SETTINGS,
    SHAPES,
    UNHEARD,
    control_case,
    half_of,
    healthy_hits,
    judged_case,
    kept,
    make_case,
    whole_case,
)

KNOWN = {'healthy', 'under-used', 'collapsed', 'uninformative', 'undecided', 'silent', 'memory'}
DEGREES = [n for n in SETTINGS if n.startswith('partly dead: some') or ': worn with reference' in n]
GONE = [n for n in SETTINGS if ': dead with' in n or n.startswith('needed and dead')]


def test_every_truth_is_made_of_words_that_a_report_could_say():
    assert {w for s in SETTINGS.values() for t in s.truth.values() for w in t.split('/')} == KNOWN


@pytest.mark.parametrize('name', DEGREES)
def test_what_a_damage_left_is_what_the_truth_says(name):
    ((m, left),) = kept(name, 3000, range(3)).items()
    low, high = REACH[SETTINGS[name].truth[m]]
    assert low <= left <= high


@pytest.mark.parametrize('name', GONE)
def test_what_is_dead_keeps_nothing(name):
    assert max(kept(name, 2000, range(2)).values()) < 0.2


@pytest.mark.parametrize(
    'kind', ['needed', 'partly dead', 'reference turned', 'reference in another order', 'NDCG', 'h']
)
def test_every_kind_is_in_both_halves(kind):
    assert {half_of(n) for n in SETTINGS if n.startswith(kind)} == {'set', 'report'}


@pytest.mark.parametrize('what', ['without reference', 'and dead with reference', 'and worn'])
def test_what_is_done_to_a_needed_modality_is_in_both_halves(what):
    assert {half_of(n) for n in SETTINGS if n.startswith(f'needed {what}')} == {'set', 'report'}


@pytest.mark.parametrize('what', ['healthy with', 'dead without', 'dead with ', 'worn', 'mute with '])
def test_what_is_done_to_a_shape_is_in_both_halves(what):
    assert {half_of(n) for n in SETTINGS if f': {what}' in n and n.split(': ')[0] in SHAPES} == {'set', 'report'}


def test_a_weak_image_is_needed():
    from vlm2rec_lab.diagnosis.evidence import fused_gain

    task, _ = make_case('needed without reference: variants of 50 groups')
    alone = [fused_gain(task, modalities=[m]).mean() for m in ('text', 'image')]
    assert fused_gain(task).mean() > 0.99
    assert alone[1] < 0.25 * alone[0] < alone[0] < 0.6


def test_a_turned_reference_ranks_by_chance_and_knows():
    from vlm2rec_lab.diagnosis.evidence import fused_gain, probe_gain

    _, ceilings = make_case('reference turned, pair, concat: healthy')
    image = ceilings['image']
    assert fused_gain(image).mean() < 3 * image.chance.mean()
    assert probe_gain(image, 'image').mean() > 10 * image.chance.mean()


def test_a_reference_in_another_order_knows_nothing():
    from vlm2rec_lab.diagnosis.evidence import probe_gain

    _, ceilings = make_case('reference in another order, pair, concat: healthy')
    assert probe_gain(ceilings['image'], 'image').mean() < 2 * ceilings['image'].chance.mean()


def test_users_are_means_of_damaged_items_where_histories_are_left_out():
    task, before, _ = whole_case('histories left out, sum: dead with reference, image', 50)
    past = task.seen[1].reshape(50, -1)
    mean = task.items['image'][past].mean(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(task.sequences['image'], mean, atol=1e-5)
    np.testing.assert_array_equal(task.seen[1], before.seen[1])


def test_the_cold_half_hardly_sells():
    name = 'partly dead: cold half, popularity 0.3, image'
    task, _, well = whole_case(name)
    moved = np.linalg.norm(task.items['image'] - well.items['image'], axis=1) > 0.01
    assert moved.sum() == 150
    assert moved[task.targets].mean() < 0.15


def test_hits_are_those_of_the_healthy_version():
    name = 'NDCG .08: dead with reference, image'
    hits = healthy_hits(name, whole_case(name)[2])
    assert 100 < hits['image'] < hits['text'] < 250
    mute = 'NDCG .08: mute with reference'
    hits = healthy_hits(mute, whole_case(mute)[2])
    assert hits['image'] == hits['text']


def test_the_names_of_the_kinds_are_what_the_settings_say():
    assert len(NEEDED) * 5 == sum(n.startswith('needed') for n in SETTINGS)
    assert 2 * len(PARTLY) + 6 == sum(n.startswith('partly dead') for n in SETTINGS)


def test_a_measured_truth_is_that_of_the_case():
    name = 'partly dead: some items 0.6, image'
    truths = {judged_case(name, 300, seed)[2]['image'] for seed in range(8)}
    assert len(truths) > 1 and truths <= set(LINES.values())
    task, before, truth, hits = judged_case(name, 300)
    assert len(task.targets) == len(before.targets) == 300
    assert truth['text'] == 'healthy' and set(hits) == {'text', 'image'}


def test_what_is_not_measured_is_as_the_setting_says():
    name = 'partly dead: some users 0.65, image'
    assert judged_case(name, 100)[2] == SETTINGS[name].truth


@pytest.mark.parametrize('dims', [128, 256, 512])
def test_a_control_reaches_what_was_learned_by_heart_and_no_more(dims):
    from vlm2rec_lab.diagnosis.evidence import fused_gain

    dead = f'learned by heart: {dims} dimensions'
    own, control = (fused_gain(t, modalities=['image']) for t in (make_case(dead)[0], control_case(dead)))
    assert own.mean() > 4 * make_case(dead)[0].chance.mean()
    assert 0.75 < own.mean() / control.mean() < 1.33
    np.testing.assert_array_equal(make_case(dead)[0].targets, control_case(dead).targets)


def test_a_small_head_on_living_contents_is_better_than_its_control():
    from vlm2rec_lab.diagnosis.evidence import fused_gain

    name = 'learned by heart, half alive: 128 dimensions'
    own, control = (fused_gain(t, modalities=['image']).mean() for t in (make_case(name)[0], control_case(name)))
    assert own > 1.5 * control


def test_what_was_not_learned_has_no_control():
    with pytest.raises(ValueError, match='no control'):
        control_case('healthy: pair')


@pytest.mark.parametrize('name', NEEDED)
def test_a_needed_image_is_heard_or_the_truth_says_that_it_is_not(name):
    from vlm2rec_lab.diagnosis.evidence import fused_gain

    task, _ = make_case(f'needed without reference: {name}', 3000)
    gained = fused_gain(task).mean() - fused_gain(task, modalities=['text']).mean()
    assert (gained < 0.01) == (name in UNHEARD)
