"""Numbers that no picture and no widget can take are refused by name, before a thread or a library meets them."""

import re

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.show.chart import smoothed
from vlm2rec_lab.show.drawing import spaces_drawing
from vlm2rec_lab.show.figures import flat_map, gradient_figure, spaces_figure, topology
from vlm2rec_lab.show.gradients import GradientWidget, Throttle
from vlm2rec_lab.show.maps import cached_map, maps_elsewhere
from vlm2rec_lab.training.history import History

RNG = np.random.default_rng(0)
ITEMS = {m: RNG.normal(size=(30, 6)).astype(np.float32) for m in ('text', 'image')}
FRAME = pd.DataFrame({'step': range(9), 'loss': 1.0, 'grad/text': 1.0, 'grad/image': 0.3})
RUN = {'sft': History(FRAME, {'loss': 'sft', 'steps': 9})}
COUNTS = [
    *((flat_map, ITEMS['text'], name) for name in ('seed', 'neighbours', 'most')),
    *((spaces_figure, ITEMS, name) for name in ('seed', 'most')),
    *((topology, ITEMS, name) for name in ('seed', 'sample')),
    *((spaces_drawing, ITEMS, name) for name in ('seed', 'k')),
    (gradient_figure, RUN, 'smooth'),
    (GradientWidget, RUN, 'smooth'),
    (smoothed, FRAME, 'smooth'),
]


@pytest.mark.parametrize('f, first, name', COUNTS)
def test_what_a_picture_counts_is_a_whole_number(f, first, name):
    for wrong in (-1, 1.5, float('nan'), float('inf'), True, '3', None, []):
        with pytest.raises(ValueError, match=f'{name} is .*: give a whole number'):
            f(first, **{name: wrong})
    f(first, **{name: np.int64(5)})


def test_a_widget_that_rests_for_no_number_of_seconds_is_refused():
    "Its thread would end at the first rest, and the picture would stand still without a word."
    for wrong in (-1, float('nan'), float('inf'), True, '0.4', None):
        with pytest.raises(ValueError, match='every is .*: give a finite number, 0 or more'):
            GradientWidget(RUN, every=wrong)
        with pytest.raises(ValueError, match='share is .*: give a finite number, 0 or more'):
            Throttle(print, share=wrong)
    with pytest.raises(TypeError, match='title=3: give a text'):
        GradientWidget(RUN, title=3)


def test_a_map_is_kept_for_seeds_of_any_whole_type(tmp_path):
    first = cached_map(ITEMS['text'], 'pca', 3, tmp_path)
    again = cached_map(ITEMS['text'], 'pca', np.int64(3), tmp_path)
    assert np.array_equal(first[0], again[0]) and len(list(tmp_path.rglob('*.npz'))) == 1
    for wrong in (None, -1, True, '3'):
        with pytest.raises(ValueError, match='seed is'):
            cached_map(ITEMS['text'], 'pca', wrong, tmp_path)
    with pytest.raises(ValueError, match="no method 'tsne'"):
        maps_elsewhere(ITEMS, 'tsne', folder=tmp_path)


@pytest.mark.parametrize(
    'call, said',
    [
        (lambda: spaces_figure(None), 'items is NoneType: give a dictionary of spaces'),
        (lambda: topology([ITEMS['text']]), 'items is list: give a dictionary of spaces'),
        (lambda: spaces_figure(ITEMS, titles=['a']), 'titles must be a list with one entry for each of 30 items'),
        (lambda: spaces_figure(ITEMS, colour='kind'), 'colour must be a list with one entry for each of 30 items'),
    ],
)
def test_what_is_shown_is_told_by_name(call, said):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        call()
