"""Figures for any number of runs and spaces."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.base.theme import PALETTE, series_colour
from vlm2rec_lab.show.chart import PANELS, panels_html, run_lines, still
from vlm2rec_lab.show.figures import _sample, gradient_figure, spaces_figure, topology, topology_figure
from vlm2rec_lab.show.gradients import GradientWidget


def run(modalities=('text', 'image')):
    steps = range(20)
    frame = {'step': steps, 'loss': 1.0} | {f'grad/{m}': 1.0 + k for k, m in enumerate(modalities)}
    return SimpleNamespace(modalities=modalities, settings={'loss': 'sft'}, frame=pd.DataFrame(frame))


@pytest.fixture(scope='module')
def items():
    rng = np.random.default_rng(0)
    return {m: rng.normal(size=(150, 12)) for m in ('text', 'image')}


@pytest.mark.parametrize('n', [1, 6, 12])
def test_gradients_of_any_number_of_runs(n):
    figure = gradient_figure({f'run {k}': run() for k in range(n)})
    assert len(figure.data) == 4 * n
    ratios = [t.line.color for t in figure.data if ' / ' in t.name]
    assert len(ratios) == n and set(ratios) <= set(PALETTE)
    assert len(set(ratios)) == min(n, len(PALETTE))


def test_a_modality_has_its_colour_in_whatever_order_the_runs_have_theirs():
    runs = {'a': run(('image', 'text', 'plot')), 'b': run(('text', 'image')), 'c': run(('sound', 'text'))}
    norms = {t.name.partition(': ')[::2]: t.line.color for t in gradient_figure(runs).data}
    assert {norms[r, 'text'] for r in 'abc'} == {series_colour(0)}
    assert {norms[r, 'image'] for r in 'ab'} == {series_colour(1)}
    assert len({norms['a', 'plot'], norms['c', 'sound'], series_colour(0), series_colour(1)}) == 4


def test_the_ratios_of_a_run_are_told_apart():
    ratios = [t.line.color for t in gradient_figure(run(('text', 'image', 'audio'))).data if ' / ' in t.name]
    assert ratios == [series_colour(1), series_colour(2)]


def test_runs_of_a_live_chart_share_the_colours_of_modalities():
    "Alone, `plot` and `sound` have the same colour; beside each other they do not."
    shown = GradientWidget()
    for name, modalities in {'a': ('plot', 'text'), 'b': ('image', 'sound', 'text')}.items():
        shown.add(name, run(modalities).frame.to_dict('records'))
    tints = {(r['name'], line['key']): line['tint'] for r in shown.scene()['runs'] for line in r['lines']}
    assert tints['a', 'text'] == tints['b', 'text'] == 0 and tints['b', 'image'] == 1
    assert tints['a', 'plot'] != tints['b', 'sound'] and tints['a', ''] == -1


@pytest.mark.parametrize('n', [2, 6, 12])
def test_gradients_of_any_number_of_modalities(n):
    modalities = tuple(f'm{k}' for k in range(n))
    figure = gradient_figure({'a': run(modalities), 'b': run(modalities)})
    assert len(figure.data) == 2 * (n - 1 + n + 1)


@pytest.mark.parametrize('n', [1, 6, 12])
def test_still_of_any_number_of_runs_and_modalities(n):
    frame = run(tuple(f'm{k}' for k in range(n))).frame
    scene = dict(title='many', panels=PANELS, runs=[run_lines(f'run {k}', [frame]) for k in range(n)])
    svg = still(scene)
    assert all(f'run {k}: ' in svg for k in range(n)) and '#' in svg


def test_points_of_any_number_of_labels(items):
    labels = [f'kind {k % 20}' for k in range(150)]
    assert len(spaces_figure(items, colour=labels).data) == 2 * 20


def test_a_sample_is_seeded():
    z = {'a': np.zeros((50, 2))}
    assert _sample(z, 20, 0).tolist() == _sample(z, 20, 0).tolist() != _sample(z, 20, 1).tolist()


def test_similarities_are_standardised_over_pairs_of_different_items(items):
    t = topology(items, 40)
    assert np.allclose(t.standard[0].mean(where=~np.eye(40, dtype=bool)), 0, atol=1e-4)


def test_a_topology_takes_three_items():
    with pytest.raises(ValueError, match='at least 3'):
        topology({'a': np.eye(2)})


def test_three_spaces_make_four_maps_and_equal_ones_agree(items):
    assert len(topology_figure({**items, 'sound': items['text']}, 30).data) == 4
    assert 'r = 1.00' in topology_figure({'a': items['text'], 'b': items['text']}, 30).to_json()


def test_a_drawing_of_curves_says_what_it_shows():
    line = dict(panel='grad', key='text', tint=0, steps=[1, 2], mid=[1.0, 2.0], low=[1.0, 2.0], high=[1.0, 2.0])
    scene = dict(
        title='A & B', panels={'grad': 'gradient ratio', 'loss': 'loss'}, runs=[dict(name='sft', lines=[line])]
    )
    said = re.match(r'<svg[^>]*aria-label="([^"]*)"', str(still(scene)))[1]
    assert said == 'A &amp; B: gradient ratio over steps 0 to 2 of sft'  # and no word of a panel that is not drawn
    assert 'no step has been done yet' in str(still(scene | dict(runs=[])))


def test_a_drawing_names_what_its_lines_are_and_where_a_ratio_is_one():
    steps, both = [0, 1, 119.0], [0.5, 1.0, 2.0]
    line = dict(panel='ratio', key='image', tint=1, steps=steps, mid=both, low=both, high=both)
    fused = dict(panel='eval', key='fused', tint=-1, steps=steps, mid=both)
    runs = [dict(name='experts', lines=[line]), dict(name='sft', lines=[line, fused])]
    scene = dict(title='t', panels={'ratio': 'gradient ratio', 'eval': 'validation'}, runs=runs)
    svg, html = str(still(scene)), panels_html(scene)
    assert 'step 119<' in svg and '119.0' not in svg + html and 'fused</tspan>' in svg
    assert all(ord(c) < 128 for c in re.sub('<[^>]*>', '', svg)), 'a character that a picture of it has no letter for'
    assert svg.count('stroke-dasharray="1 3"') == 1 and '>1</text>' in svg
    of = re.findall('<figcaption>(.*?)</figcaption>', html)
    assert 'experts' in of[0] and 'experts' not in of[1] and 'sft' in of[1]


def loss_scene(**losses):
    "A scene of runs of these losses."
    steps = {'step': [0, 1, 2], 'grad/a': 1.0, 'grad/b': 1.0}
    runs = [run_lines(name, [pd.DataFrame(steps | {'loss': x})], 1) for name, x in losses.items()]
    return dict(title='', panels=PANELS, runs=runs)


def test_losses_of_other_sizes_are_drawn_on_one_scale():
    scene = loss_scene(large=[160, 120, 80], small=[2, 1.5, 1.0])
    shown = re.findall(r'<path d="([^"]+)"[^>]*><title>(?:large|small): loss', still(scene))
    assert len(shown) == 2 and len(set(shown)) == 1
    assert 'loss, as a share of its first value' in still(scene)
    assert 'Loss, as a share of its first value' in panels_html(scene)


@pytest.mark.parametrize('losses', [dict(one=[160, 120, 80]), dict(one=[160, 120, 80], below=[-1, 2, 3])])
def test_a_single_loss_and_one_that_begins_below_zero_are_drawn_as_they_are(losses):
    scene = loss_scene(**losses)
    assert '>160<' in still(scene) and 'share' not in still(scene) + panels_html(scene)
