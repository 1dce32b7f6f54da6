"""Drawings as inline SVG: any distribution can be drawn, and nothing from data is read as code."""

import numpy as np
import pytest

from vlm2rec_lab.base.charts import bars_svg, curve_svg, intervals_svg, number
from vlm2rec_lab.shop.profile_figures import log_figures, spread
from vlm2rec_lab.studio import make_studio


@pytest.mark.parametrize('values', [[1], [2, 2], [1.5, 9], [0, 10_000]])
def test_any_distribution_is_drawn(values):
    svg = bars_svg(spread(values)['histogram'], 'x', mark=(3, '<i>'))
    assert svg.startswith('<svg') and '<i>' not in svg


def test_bars_of_a_long_tail():
    values = np.random.default_rng(0).lognormal(2, 1, 500).round() + 1
    svg = bars_svg(spread(values)['histogram'], 'lengths <b>', mark=(20, 'budget'))
    assert '<b>' not in svg and svg.count('<rect') >= 15 and 'budget' in svg


def test_the_curve_of_a_shop():
    studio = make_studio(items=60, users=40, image_size=8)
    curve = log_figures(studio.interactions, studio.catalogue.ids)['popularity']['curve']
    assert 'polyline' in curve_svg(curve, 'popularity')
    assert curve_svg([(0, 0), (1, 1)], '<b>').count('<b>') == 0


def test_intervals_on_both_sides_of_zero():
    "Bars begin at zero, to the left for what is negative."
    rows = [('a', dict(value=-1.0, low=-2.0, high=0.0), 1), ('b', dict(value=1.0, low=None, high=None), 2)]
    svg = intervals_svg(rows, 't', lambda e: number(e['value']))
    assert 'viewBox="0 0 356 68"' in svg and svg.count('class="whisk"') == 1
    assert '<rect x="148.0" y="8" width="72.0" height="20" rx="4" class="c1"/>' in svg
    assert '<rect x="220.0" y="42" width="72.0" height="20" rx="4" class="c2"/>' in svg
    assert '<path d="M220.0 2V68" class="zero"/>' in svg


def test_a_common_scale_draws_two_charts_alike():
    "With the ends of the other chart, a bar of one half has half of the rail."
    svg = intervals_svg([('a', dict(value=0.5, low=None, high=None), 1)], 't', scale=(0, 1))
    assert 'width="108.0"' in svg


def test_the_label_of_a_line_at_the_left_end_stays_inside():
    row = [('a', dict(value=1.0, low=None, high=None), 1)]
    assert 'text-anchor="start">chance<' in intervals_svg(row, 't', mark=(0.01, 'chance'))
    assert 'text-anchor="middle">chance<' in intervals_svg(row, 't', mark=(0.5, 'chance'))
