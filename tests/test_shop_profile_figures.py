"""What a profile counts: odd values, odd times, odd pictures, and the leak of a split."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFilter
from scipy.sparse.csgraph import connected_components

from vlm2rec_lab.data import Catalogue, DataError, Dataset, Interactions, leave_one_out
from vlm2rec_lab.shop import pictures
from vlm2rec_lab.shop.profile_figures import (
    _why,
    count_tokens,
    fingerprints,
    groups_of,
    id_ranks,
    image_figures,
    log_figures,
    look,
    near_groups,
    near_labels,
    split_figures,
    spread,
    time_figures,
)
from vlm2rec_lab.shop.splits import time_leak
from vlm2rec_lab.studio import make_studio

NOW = pd.Timestamp('2026-01-01', tz='UTC').timestamp()
DAY = 86_400.0


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'values',
    [
        [5],
        [5, 5],
        [1, 2, 3],
        [0.5, 0.25],
        [-3, 4, 400],
        list(range(1000)),
        [1] * 50 + [10_000],
        [1e300, -1e300],
        [1e300],
        [2e16, 2e16 + 4],
        np.random.default_rng(0).lognormal(0, 3, 500),
    ],
    ids=str,
)
@pytest.mark.filterwarnings('ignore::RuntimeWarning')
def test_any_values_have_a_histogram(values):
    h = spread(values)['histogram']
    assert sum(h['counts']) == len(values)
    assert len(h['edges']) == len(h['counts']) + 1
    assert len(h['counts']) <= 24 and (np.diff(h['edges']) > 0).all()


def test_an_empty_log_has_no_gini():
    assert log_figures(Interactions.of_sequences([]), [])['popularity']['gini'] is None


def test_ids_are_numbers_of_any_length():
    assert id_ranks(['7', '07', '1' + '0' * 400]).tolist() == [1.5, 1.5, 3]
    assert len(id_ranks([])) == 0


# --- times ----------------------------------------------------------------------------------------------------------


def figures_of(*times):
    "The figures of one user with these times."
    return time_figures(Interactions(('a',), [0, len(times)], [0] * len(times), sorted(times)), NOW)


@pytest.mark.parametrize(
    'time, unit',
    [
        (0.0, 'number'),
        (5e7, 'number'),
        (8.7e8, 's'),
        (1.7e12, 'ms'),
        (1.7e15, 'us'),
        (1.7e18, 'ns'),
        (-1e9, 'number'),
    ],
)
def test_the_size_of_a_time_tells_its_unit(time, unit):
    assert figures_of(time)['unit'] == unit


def test_one_odd_time_does_not_change_the_unit():
    assert figures_of(0.0, 1.7e9, 1.7e9)['unit'] == 's'
    assert figures_of(1.7e9, 1.7e9, 1.7e12)['unit'] == 's'


def test_whole_days():
    times = 1.7e9 + DAY * np.random.default_rng(0).uniform(0, 90, 40)
    assert figures_of(*np.floor(times / DAY) * DAY)['whole_days']
    assert not figures_of(*times)['whole_days']


# --- texts ----------------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_loses_a_text_is_refused():
    with pytest.raises(DataError, match='1 lists for 2 texts'):
        count_tokens(['a', 'b'], lambda t, add_special_tokens: {'input_ids': [[1]]})


def test_no_texts_have_no_tokens():
    assert count_tokens([], lambda t, add_special_tokens: {'input_ids': t})[0].tolist() == []


# --- pictures -------------------------------------------------------------------------------------------------------


def plain_groups(tiny, bits=7, colour=5):
    "All pairs: what hangs together by pairs with a band in common is dealt out, the one with most others first."
    p, flat = fingerprints(tiny), tiny.reshape(len(tiny), -1).astype(int)
    differ = p[:, None] ^ p
    close = (np.bitwise_count(differ) <= bits) & (np.abs(flat[:, None] - flat).mean(2) <= colour)
    bands = [(differ >> np.uint64(k)) & np.uint64(0xFFFF) == 0 for k in (0, 16, 32, 48)]
    found = close & np.logical_or.reduce(bands)
    part, label = connected_components(found)[1], np.full(len(tiny), -1)
    for c in np.argsort(-found.sum(1), kind='stable'):
        if label[c] < 0:
            label[(label < 0) & close[c] & (part == part[c])] = c
    return groups_of(label), found.sum(1) > 1


def as_sets(groups):
    "Groups without their order."
    return sorted(sorted(g.tolist()) for g in groups)


@pytest.mark.parametrize('noise', [0, 2, 3, 4])
@pytest.mark.parametrize('seed', range(4))
def test_near_duplicates_are_those_of_all_pairs(seed, noise):
    r = np.random.default_rng(seed)
    base = r.integers(0, 256, (30, 8, 9, 3))[r.integers(0, 30, 150)]
    planted = np.clip(base + r.normal(0, noise, base.shape), 0, 255).astype(np.uint8)
    assert near_groups(planted)
    distinct = np.unique(planted, axis=0)
    groups, near = plain_groups(distinct)
    assert as_sets(near_groups(distinct)) == as_sets(groups)
    assert near_labels(distinct)[1].tolist() == near.tolist()


@pytest.mark.parametrize('seed', range(4))
def test_pictures_of_nearly_one_colour_that_are_unlike(seed):
    r = np.random.default_rng(seed)
    faint = np.unique(r.integers(124, 132, (150, 8, 9, 1)).repeat(3, -1).astype(np.uint8), axis=0)
    assert as_sets(near_groups(faint)) == as_sets(plain_groups(faint)[0])


@pytest.mark.parametrize('step, noise', [(1, 0), (2, 1), (4, 2), (0, 3)])
def test_all_of_a_group_are_near_its_first_picture(step, noise):
    "Chains of pictures, some of them twice: each group lies within the limits of one, and nobody is in two."
    r = np.random.default_rng(step)
    chain = r.integers(60, 120, (1, 8, 9, 3)) + step * np.arange(40)[:, None, None, None]
    tiny = np.clip(chain + r.normal(0, noise, (40, 8, 9, 3)), 0, 255).astype(np.uint8)[r.integers(0, 40, 90)]
    groups, prints = near_groups(tiny), fingerprints(tiny)
    flat = np.concatenate(groups)
    assert len(np.unique(flat)) == len(flat)
    for g in groups:
        assert (np.abs(tiny[g].astype(int) - tiny[g[0]]).mean((1, 2, 3)) <= 5).all()
        assert (np.bitwise_count(prints[g] ^ prints[g[0]]) <= 7).all()
    if step:
        assert max(map(len, groups)) < 90


def shirts(n, seed=0):
    "White T-shirts on white: one outline, each cut and placed a little differently, some with a print."
    r, out = np.random.default_rng(seed), []
    for _ in range(n):
        img = Image.new('RGB', (192, 256), 'white')
        draw, grey = ImageDraw.Draw(img), int(r.integers(225, 250))
        x, top, half, long, sleeve = 96 + r.normal(0, 2), 45 + r.normal(0, 3), 47 + r.normal(0, 3), 150, r.normal(35, 5)
        body = [(x - half, top), (x + half, top), (x + half + 25, top + sleeve + 20), (x + half - 5, top + 30)]
        body += [(x + half - 5, top + long), (x - half + 5, top + long), (x - half + 5, top + 30)]
        draw.polygon([*body, (x - half - 25, top + sleeve + 20)], fill=(grey,) * 3, outline=(grey - 40,) * 3)
        if r.random() < 0.5:
            side, tone = int(r.integers(5, 20)), int(r.integers(150, 215))
            draw.rectangle([x - side, top + 50, x + side, top + 50 + side], fill=(tone,) * 3)
        out.append(np.asarray(img.filter(ImageFilter.GaussianBlur(1))))
    return out


def test_white_shirts_look_alike_and_are_no_copies():
    "Two hundred T-shirts lie round a few of them; as copies they count only where a no-picture icon is planted."
    images = shirts(200)
    icon = Image.new('RGB', (240, 320), (238, 238, 238))
    ImageDraw.Draw(icon).rectangle([70, 110, 170, 180], outline=(150, 150, 150), width=8)
    sizes = np.random.default_rng(1).integers(80, 320, (60, 2)).tolist()
    several = [np.asarray(icon.resize((w, w * 4 // 3), Image.Resampling.LANCZOS)) for w, _ in sizes]
    names = [f'shirt {k}' for k in range(200)] + [f'product {k}' for k in range(60)]
    content = {'text': names, 'image': images + several}
    c = Catalogue(tuple(map(str, range(260))), content, {'text': 'text', 'image': 'image'})
    f = image_figures(c, 'image', progress=False)[0]
    assert f['near']['items'] > 200 and f['near']['largest'] > 60
    assert (
        50 < f['copies']['unlike']['items'] <= 60 and f['copies']['unlike']['texts'] == f['copies']['unlike']['items']
    )
    assert int(f['copies']['unlike']['ids'][0]) >= 200
    alone = replace(c, ids=c.ids[:200], table=None, content={m: v[:200] for m, v in content.items()})
    assert image_figures(alone, 'image', progress=False)[0]['copies']['largest'] < 30


def test_no_picture_is_decoded_twice(tmp_path, monkeypatch):
    "Not for the page, and not for a second split; a file that was written again is looked at again."
    opened = []
    monkeypatch.setattr('vlm2rec_lab.shop.pictures._decode', count_calls(pictures._decode, opened))
    studio = make_studio(items=20, users=60)
    for i in range(20):
        Image.fromarray(studio.catalogue.content['image'][i]).save(tmp_path / f'{i}.png')
    files = [tmp_path / f'{i}.png' for i in range(20)]
    ds = replace(studio, catalogue=replace(studio.catalogue, content=dict(studio.catalogue.content, image=files)))
    first = ds.profile(leave_one_out(ds), progress=False)
    assert len(opened) == 20 and first._repr_html_().count('<img') > 20
    assert ds.profile(progress=False).figures['modalities'] == first.figures['modalities'] and len(opened) == 20
    Image.new('RGB', (50, 50), 'red').save(files[3])
    ds.profile(progress=False)
    assert len(opened) == 21


def count_calls(function, calls):
    "The function; what it is called with is kept."

    def counted(*args):
        calls.append(args)
        return function(*args)

    return counted


def test_one_picture_is_no_group():
    assert near_groups(look(make_studio(items=20, users=1).catalogue, 'image', 0).tiny[None]) == []


@pytest.mark.parametrize(
    'error, reason',
    [
        (OSError('image file is truncated (3 bytes)'), 'truncated'),
        (ValueError('9 x 9 pixels, more than 5'), 'too many pixels'),
        (KeyError('x'), 'KeyError'),
    ],
)
def test_the_reason_of_a_bad_picture(error, reason):
    assert _why(error) == reason


def test_a_sample_of_pictures_is_the_same_each_time():
    images = [np.full((30 + i, 40, 3), i, np.uint8) for i in range(8)]
    c = Catalogue(tuple('abcdefgh'), {'image': images}, {'image': 'image'})
    f = image_figures(c, 'image', max_images=3)[0]
    assert f['looked'] == 3
    assert image_figures(c, 'image', max_images=3)[0] == f


def test_a_bad_picture_in_a_sample_is_counted_the_same_each_time(tmp_path):
    (tmp_path / 'text.png').write_text('no picture')
    images = [tmp_path / 'text.png', tmp_path / 'gone.png', None, Image.new('RGB', (9, 9)), np.zeros((3, 3), np.uint8)]
    c = Catalogue(tuple('abcde'), {'image': images}, {'image': 'image'})
    assert image_figures(c, 'image', max_images=3)[0] == image_figures(c, 'image', max_images=3)[0]


def test_no_picture_at_all():
    f = image_figures(Catalogue(('a',), {'image': [None]}, {'image': 'image'}), 'image')[0]
    assert (f['looked'], f['width'], f['near']['items']) == (0, {'n': 0}, 0)


# --- the split ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def few():
    "Three users one after the other, with 4, 4 and 3 interactions."
    rng = np.random.default_rng(0)
    times = np.concatenate([np.sort(rng.integers(0, 20, k)) for k in (4, 4, 3)]).astype(float)
    times += np.repeat([0, 30, 60], [4, 4, 3])
    log = Interactions(tuple('abc'), [0, 4, 8, 11], rng.integers(0, 6, 11), times)
    return Dataset(Catalogue(tuple('abcdef'), {'text': list('abcdef')}, {'text': 'text'}), log, 'few')


def test_the_leak_is_the_figure_of_the_splits(few):
    loo = leave_one_out(few)
    leak = time_leak(loo, few)
    assert split_figures(loo, few)['leak'] == dict(later=leak.later, rows=leak.rows)
    assert 0 < leak.later < leak.rows


def test_nothing_is_said_of_the_leak_where_nobody_knows(few):
    "Rows that do not say where their targets stand, a log without times, and positions, which are no moments."
    loo = leave_one_out(few)
    nowhere = replace(loo, train=replace(loo.train, places=None), test=replace(loo.test, places=None))
    assert split_figures(nowhere, few)['leak'] is None
    studio = make_studio(items=200, users=400, image_size=8)
    assert split_figures(studio.split(valid=50, test=50, train=300), studio)['leak'] is None
    ranks = replace(few, interactions=replace(few.interactions, times=[0.0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]))
    assert split_figures(leave_one_out(ranks), ranks)['leak'] is None


def test_a_repeat_is_seen_beyond_a_short_history(few):
    repeats = replace(few, interactions=Interactions.of_sequences([[0, 1, 0], [2, 3, 4, 2]]))
    assert split_figures(leave_one_out(repeats, history=1), repeats)['parts']['test']['again'] == 1.0


def test_a_split_of_another_order_of_items_is_refused(few):
    other = replace(few, interactions=replace(few.interactions, items=few.interactions.items * 0))
    with pytest.raises(DataError, match='do not stand where'):
        split_figures(leave_one_out(few), other)
