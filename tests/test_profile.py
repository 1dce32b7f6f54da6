"""The profile of a data set: any data set, in a browser, against plain loops."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm2rec_lab import data
from vlm2rec_lab.data import Catalogue, DataError, Dataset, Interactions, hold_out_users, leave_one_out
from vlm2rec_lab.shop.profile import profile
from vlm2rec_lab.shop.profile_figures import (
    fingerprints,
    id_ranks,
    log_figures,
    look,
    near_groups,
    rank_correlation,
    spread,
    time_figures,
)
from vlm2rec_lab.shop.profile_findings import LIMITS, find
from vlm2rec_lab.shop.profile_page import page_html, profile_html
from vlm2rec_lab.studio import make_studio

ROOT = Path(__file__).resolve().parent.parent
NOW = pd.Timestamp('2026-01-01', tz='UTC').timestamp()
EVIL = '<script>window.planted=1</script><img src=x onerror=window.planted=1>"\'`|'


def sequences(inter):
    return [inter.items[a:b].tolist() for a, b in zip(inter.offsets, inter.offsets[1:])]


# --- any data set ---------------------------------------------------------------------------------------------------

PICTURES = [
    np.full((8, 8, 3), 90, np.uint8),
    np.zeros((40, 200, 3), np.uint8),
    Image.new('L', (30, 30)),
    Image.new('RGBA', (1, 1)),
    'no/such/file.png',
    np.zeros((2, 2), np.uint8),
    np.zeros((0, 4, 3), np.uint8),
]
text = st.one_of(st.none(), st.text(min_size=1, max_size=30).filter(str.strip))
picture = st.one_of(st.none(), st.sampled_from(PICTURES))
modality = st.text(min_size=1, max_size=6).filter(lambda m: m != 'fused')


def exactly(values, n):
    "Lists of n values."
    return st.lists(values, min_size=n, max_size=n)


@st.composite
def catalogues(draw):
    "Up to seven items with up to three modalities."
    n = draw(st.integers(0, 7))
    ids = draw(st.lists(st.text(min_size=1, max_size=8), min_size=n, max_size=n, unique=True))
    kinds = draw(st.dictionaries(modality, st.sampled_from(['text', 'image']), max_size=3))
    content = {m: draw(exactly(text if k == 'text' else picture, n)) for m, k in kinds.items()}
    try:
        return Catalogue(ids, content, kinds)
    except DataError:  # ids alone are no catalogue yet
        return Catalogue(ids, {'text': [None] * n}, {'text': 'text'})


@st.composite
def logs(draw, n):
    "Up to five users of n items, with times of any size or without."
    users = draw(st.integers(0, 5))
    lists = draw(exactly(st.lists(st.integers(0, n - 1), max_size=9), users)) if n else [[]] * users
    inter = Interactions.of_sequences(lists, draw(exactly(st.text(max_size=6), users)))
    scale = draw(st.sampled_from([None, 1.0, 86_400.0, 1e9, 1.7e12, 1e300]))
    if scale is None:
        return inter
    times = [sorted(draw(exactly(st.integers(-2, 5), len(x)))) for x in lists]
    flat = np.array([t for x in times for t in x], float)
    return Interactions(inter.user_ids, inter.offsets, inter.items, flat * scale)


@st.composite
def datasets(draw):
    "Any data set that can be made."
    catalogue = draw(catalogues())
    inter = draw(logs(len(catalogue)))
    return Dataset(catalogue, inter, draw(st.text(max_size=9)), draw(st.lists(st.text(max_size=9), max_size=2)))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(datasets(), st.integers(0, 3), st.booleans())
def test_any_data_set_has_a_profile(ds, seed, split):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        split = leave_one_out(ds) if split and (ds.interactions.lengths >= 3).any() else None
        p = profile(ds, split, seed=seed, now=NOW, progress=False, max_images=4, max_texts=3, users=2, last=3)
    d = p.to_dict()
    assert json.loads(json.dumps(d, allow_nan=False)) == d
    assert repr(p) and '<script' not in p._repr_html_() and page_html(p.name, profile_html(d, p.pictures))
    assert profile_html(json.loads(json.dumps(d)))  # a stored one can be drawn without its pictures
    assert all(x.name and x.sentence and x.remedy and x.severity in ('serious', 'caution', 'note') for x in p.findings)
    f, plain = p.figures, sequences(ds.interactions)
    never = set(range(len(ds.catalogue))) - {i for x in plain for i in x}
    assert f['size']['users'] == len(plain)
    assert f['size']['interactions'] == sum(map(len, plain))
    assert f['size']['never'] == len(never)
    assert f['lengths']['short'] == sum(len(x) < 3 for x in plain)


@pytest.mark.parametrize('seed', range(5))
def test_the_log_against_plain_loops(seed):
    rng = np.random.default_rng(seed)
    plain = [rng.integers(0, 12, rng.integers(0, 9)).tolist() for _ in range(40)]
    when = [sorted((86_400.0 * rng.integers(13_000, 13_006, len(x))).tolist()) for x in plain]
    inter = Interactions(
        tuple(map(str, range(40))),
        np.concatenate([[0], np.cumsum([len(x) for x in plain])]),
        [i for x in plain for i in x],
        [t for x in when for t in x],
    )
    f, total = log_figures(inter, [f'i{k}' for k in range(14)]), sum(map(len, plain))
    assert f['repeats']['share'] == pytest.approx(sum(x[k] in x[:k] for x in plain for k in range(len(x))) / total)
    assert f['repeats']['at_once'] == sum(a == b for x in plain for a, b in zip(x, x[1:]))
    assert f['size']['density'] == pytest.approx(sum(len(set(x)) for x in plain) / (40 * 14))
    count = sorted((sum(x.count(i) for x in plain) for i in range(14)), reverse=True)
    largest = {'1': 1, '5': 1, '10': 2, '20': 3, '50': 7}  # of 14 items
    assert f['popularity']['top'] == pytest.approx({p: sum(count[:k]) / total for p, k in largest.items()})
    t, pairs = time_figures(inter, NOW), sum(max(len(x) - 1, 0) for x in when)
    assert t['ties'] == pytest.approx(sum(a == b for x in when for a, b in zip(x, x[1:])) / pairs)
    assert t['tied_targets'] == sum(len(x) > 1 and x[-1] == x[-2] for x in when)
    assert t['users_with_target'] == sum(len(x) > 1 for x in when)
    assert t['one_time_users'] == sum(len(x) > 1 and len(set(x)) == 1 for x in when) and t['whole_days']


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(-5, 50)),
        min_size=1,
        max_size=60,
    ),
    st.integers(2, 30),
)
def test_a_histogram_holds_every_value_once(values, bins):
    h = spread(values, bins)['histogram']
    assert sum(h['counts']) == len(values) and len(h['counts']) <= bins and (np.diff(h['edges']) > 0).all()


@given(st.lists(st.integers(0, 10**9), min_size=3, max_size=30, unique=True), st.sampled_from(['', 'item-', '№']))
def test_numbered_ids_are_in_the_order_of_their_numbers(numbers, prefix):
    assert rank_correlation(id_ranks([f'{prefix}{k}' for k in numbers]), numbers) == pytest.approx(1)


# --- pictures -------------------------------------------------------------------------------------------------------


def test_near_duplicates_survive_scaling_compression_and_crops_of_a_pixel(tmp_path):
    "Copies of one picture are found, pictures of the same studio are not."
    shop = make_studio(items=300, users=20, image_size=160).catalogue.content['image']
    copies = []
    for k in range(20):
        img, names = Image.fromarray(shop[k]), [tmp_path / f'{k}{n}' for n in ('small.jpg', 'large.png', 'cut.jpg')]
        img.resize((97, 97)).save(names[0], quality=70)
        img.resize((400, 400)).save(names[1])
        img.crop((1, 1, 159, 159)).save(names[2], quality=85)
        copies += names
    c = Catalogue(range(360), {'image': [*shop, *copies]}, {'image': 'image'})
    tiny = np.stack([look(c, 'image', i).tiny for i in range(360)])
    found = [set(g.tolist()) for g in near_groups(tiny)]
    wanted = [{k, *range(300 + 3 * k, 303 + 3 * k)} for k in range(20)]
    assert not [g for g in found if not any(g <= w for w in wanted)], 'unlike pictures are called the same'
    assert sum(len(g) for g in found) >= 0.95 * 80, 'copies are missed'


def test_many_pictures_are_not_compared_with_each_other():
    "100,000 pictures, a tenth of them blank: seconds, and planted pairs are found."
    rng = np.random.default_rng(0)
    tiny = rng.integers(0, 256, (100_000, 8, 9, 3), dtype=np.uint8)
    tiny[:10_000] = rng.integers(200, 210, (10_000, 1, 1, 1))
    tiny[50_000:50_100] = np.clip(tiny[60_000:60_100].astype(int) + 1, 0, 255)
    groups = near_groups(tiny)
    assert len(groups[0]) == 10_000
    found = {tuple(sorted(g.tolist())) for g in groups[1:]}
    assert sum((50_000 + k, 60_000 + k) in found for k in range(100)) >= 95
    assert len(np.unique(fingerprints(tiny[:10_000]))) == 1


def test_a_picture_that_is_read_when_asked_for():
    array = np.random.default_rng(0).integers(0, 255, (50, 30, 3), dtype=np.uint8)
    forms = [array, SimpleNamespace(read=lambda: array), Image.fromarray(array)]
    c = SimpleNamespace(content={'image': forms}, ids=tuple('abc'))
    a, b, d = (look(c, 'image', i) for i in range(3))
    assert a.digest == b.digest == d.digest and a.size == (30, 50) and (a.tiny == b.tiny).all()


@pytest.mark.skipif(not hasattr(data, 'LazyImage'), reason='encoded bytes are no content here')
def test_encoded_bytes_and_lazy_pictures(tmp_path):
    img = Image.fromarray(make_studio(items=20, users=1).catalogue.content['image'][0])
    img.resize((300, 200)).save(tmp_path / 'a.jpg')
    code = (tmp_path / 'a.jpg').read_bytes()
    forms = [tmp_path / 'a.jpg', code, data.LazyImage('a.zip: a.jpg', lambda: code), b'nothing']
    c = Catalogue(tuple('abcd'), {'image': forms}, {'image': 'image'})
    f = profile(Dataset(c, Interactions.of_sequences([[0, 1]]), 'x'), progress=False).figures['modalities']['image']
    assert f['same']['examples'] == [['a', 'b', 'c']]
    assert f['width']['max'] == 300 and f['unreadable'] == {'not an image': 1}


def test_broken_pictures_are_counted_and_nothing_else_is_lost(tmp_path):
    img = Image.fromarray(make_studio(items=20, users=1).catalogue.content['image'][0])
    img.save(tmp_path / 'good.jpg')
    img.save(tmp_path / 'good.png')
    for name in ('jpg', 'png'):
        (tmp_path / f'cut.{name}').write_bytes((tmp_path / f'good.{name}').read_bytes()[:900])
    (tmp_path / 'zero.png').touch()
    (tmp_path / 'text.jpg').write_text('<svg/>')
    # the last one is a folder
    names = ['good.jpg', 'good.png', 'cut.jpg', 'cut.png', 'zero.png', 'text.jpg', 'gone.png', '']
    c = Catalogue(tuple(map(str, range(8))), {'image': [tmp_path / n for n in names]}, {'image': 'image'})
    p = profile(Dataset(c, Interactions.of_sequences([list(range(8))]), 'x'), progress=False)
    f = p.figures['modalities']['image']
    bad = f['unreadable']
    assert (f['readable'], sum(bad.values()), f['unreadable_ids']) == (2, 6, list('234567')), bad
    assert (bad['not an image'], bad['no such file']) == (2, 1)
    assert p.finding('unreadable').severity == 'serious' and p._repr_html_().count('no picture') == 6


@pytest.mark.slow
def test_two_million_interactions():
    "Nothing loops over users or interactions: 200,000 users, 100,000 items."
    rng, n, users, items = np.random.default_rng(0), 2_000_000, 200_000, 100_000
    who, when = np.sort(rng.integers(0, users, n)), 1.4e9 + rng.integers(0, 10**8, n).astype(float)
    inter = Interactions(
        tuple(f'u{k}' for k in range(users)),
        np.concatenate([[0], np.cumsum(np.bincount(who, minlength=users))]),
        np.minimum(rng.zipf(1.3, n) - 1, items - 1),
        when[np.lexsort((when, who))],
    )
    texts = [f'item number {k}' for k in range(items)]
    catalogue = Catalogue(tuple(f'i{k}' for k in range(items)), {'text': texts}, {'text': 'text'})
    ds = Dataset(catalogue, inter, 'generated')
    start = time.time()
    p = profile(ds, progress=False)
    alone, start = time.time() - start, time.time()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        split = leave_one_out(ds)
    splitting, start = time.time() - start, time.time()
    profile(ds, split, progress=False)
    print(f'profile of 2,000,000 interactions in {alone:.1f} s, leave_one_out in {splitting:.1f} s, ', end='')
    print(f'profile with the split in {time.time() - start:.1f} s')
    assert p.figures['size']['interactions'] == n


# --- the value ------------------------------------------------------------------------------------------------------


def test_every_limit_is_used_and_none_is_unknown():
    source = (ROOT / 'vlm2rec_lab' / 'shop' / 'profile_findings.py').read_text()
    assert not [k for k in LIMITS if f"L['{k}']" not in source and f'L["{k}"]' not in source]
    with pytest.raises(DataError, match="did you mean 'ties'"):
        find({}, {'tie': 1})


def test_a_split_of_other_data_is_refused():
    a, b = make_studio(items=60, users=300), make_studio(items=60, users=300, seed=1)
    assert profile(a, hold_out_users(a, 200, 20, 80), progress=False).figures['split']['parts']['test']['rows'] == 80
    with pytest.raises(DataError, match='make it from this data set'):
        profile(make_studio(items=60, users=301), leave_one_out(b))


ALONE = """
import sys
from vlm2rec_lab.studio import make_studio
assert "vlm2rec_lab.profile" not in sys.modules and "profile" not in sys.modules
p = make_studio(items=60, users=40).profile(progress=False)
print(p.finding("short").severity)
import cProfile, profile
assert "vlm2rec_lab" not in profile.__file__ and callable(profile.run)
c = cProfile.Profile()
c.runcall(sum, [1])
assert c.getstats()
"""


def test_ds_profile_needs_no_import_and_hides_nobody():
    "The method needs no import of its room; the standard library's `profile` and `cProfile` stay what they are."
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', ALONE], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == 'caution\n', done.stdout + done.stderr


def full(*args):
    "A disk without room."
    raise OSError('full')


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    p = profile(make_studio(items=30, users=20), progress=False)
    p.save(tmp_path / 'a.html')
    before = (tmp_path / 'a.html').read_bytes()
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='full'):
        p.save(tmp_path / 'a.html')
    assert (tmp_path / 'a.html').read_bytes() == before
    with pytest.raises(ValueError, match="unknown suffix '.pickle'"):
        p.save(tmp_path / 'a.pickle')


# --- in a browser ---------------------------------------------------------------------------------------------------


def evil_shop():
    "Names that are no good, pictures of one colour, times that tie."
    n, rng = 60, np.random.default_rng(0)
    images = [np.full((40 + 3 * i, 60, 3), 30 + 20 * (i % 9), np.uint8) for i in range(n)]
    texts = [f'{EVIL} {"word " * (i % 90)}' for i in range(n)]
    table = pd.DataFrame({'title': [f'{EVIL}{i}' if i % 2 else 'a' * 200 for i in range(n)]})
    kinds = {'text': 'text', f'image {EVIL}': 'image'}
    c = Catalogue(tuple(f'{EVIL}{i}' for i in range(n)), dict(zip(kinds, (texts, images))), kinds, table)
    days = np.repeat(np.arange(50) * 86_400 + 1.6e9, 8)
    users = tuple(f'{EVIL}{u}' for u in range(50))
    inter = Interactions(users, np.arange(51) * 8, rng.integers(0, n, 400), days)
    return Dataset(c, inter, f'shop {EVIL}', (f'note {EVIL}',))


WIDTH = 'document.documentElement.scrollWidth'
LOADED = '[...document.images].every(i => i.complete && i.naturalWidth > 0)'
FOREIGN = "document.querySelectorAll('script, link, iframe, object').length"
DRAWN = """[...document.querySelectorAll('svg')].every(
    s => s.getAttribute('aria-label') && s.getBoundingClientRect().width > 200)"""
COLOURS = "(s => [s.backgroundColor, s.color])(getComputedStyle(document.querySelector('main')))"


def brightness(colour):
    "The mean of 'rgb(r, g, b)'."
    return sum(map(int, colour[4:-1].split(','))) / 3


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1200])
def test_the_page(page, tmp_path, scheme, width):
    "No script, no request, nothing cut off; pictures and drawings are there; light and dark differ."
    ds = evil_shop()
    ds.profile(leave_one_out(ds), limits={'placeholder': 5}, progress=False).save(tmp_path / 'p.html')
    page.set_viewport_size(dict(width=width, height=900))
    page.emulate_media(color_scheme=scheme)
    page.goto(f'file://{tmp_path}/p.html')
    assert page.outside == [] and page.errors == [] and page.evaluate('window.planted') is None
    assert page.evaluate(WIDTH) == width, 'the page is wider than the screen'
    assert page.evaluate(FOREIGN) == 0
    assert EVIL in page.title() and page.locator('h1').inner_text() == f'shop {EVIL}'
    assert page.evaluate(LOADED) and page.locator('img').count() > 20
    assert page.locator('.find.serious').count() >= 2
    assert page.locator('.find .pill').first.inner_text() == 'serious'
    assert page.locator('svg').count() >= 5 and page.evaluate(DRAWN)
    ground, ink = map(brightness, page.evaluate(COLOURS))
    assert (ground > 200 > 80 > ink) if scheme == 'light' else (ground < 60 < 200 < ink)
    page.locator('summary').click()
    assert page.locator('.limits tr').count() == len(LIMITS)
    assert page.evaluate(WIDTH) == width
