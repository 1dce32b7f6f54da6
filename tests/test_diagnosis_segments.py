"""Where a modality died: values by hand, deaths that must be named, health that must not be called dead."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from fastcore.test import test_close as close

from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.diagnosis.evidence import Task
from vlm2rec_lab.diagnosis.measure import measure
from vlm2rec_lab.diagnosis.segments import (
    agreement,
    cuts,
    lower_half,
    popularity,
    segment_figures,
    segment_notes,
    segments_html,
    segments_text,
    training_counts,
)
from vlm2rec_lab.diagnosis.worlds import hurt, world


def references(task):
    "Each modality of a task as the reference of itself."
    return {m: Task({m: task.items[m]}, {m: task.sequences[m]}, task.targets, task.seen) for m in task.items}


def partly_dead(kind, seed=0):
    "A world, the same with the image dead for some, and which rows."
    rng, w = np.random.default_rng(seed), world(seed=seed, popular=0.1 if kind == 'cold' else 0)
    side = 'sequences' if kind == 'users' else 'items'
    x = w[side]['image']
    dead = rng.permutation(len(x)) < 0.6 * len(x)
    if kind == 'cold':
        dead = lower_half(np.bincount(w['targets'], minlength=200))
    lost = np.where(dead[:, None], rng.normal(size=x.shape), x).astype(np.float32)
    return w, {**w, side: {**w[side], 'image': lost}}, dead


def notes_of(after, before=None, seen=None):
    "The notes on segments in a whole report."
    reference = before and {side: before[side] for side in ('items', 'sequences')}
    found = collapse_report(**after, reference=reference, seen=seen, permutations=2, progress=False)
    return segment_notes(found.data['segments']), found


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize('referred', [True, False])
@pytest.mark.parametrize('kind', ['cold', 'items', 'users'])
def test_a_partial_death_is_named(kind, referred, seed):
    w, lost, dead = partly_dead(kind, seed)
    if kind == 'cold':
        assert dead[w['targets']].mean() < 0.15
    notes, found = notes_of(lost, w if referred else None)
    assert len(notes) == 1 and notes[0] in found.data['notes']
    where = {'cold': 'of the items', 'items': 'half of the items', 'users': 'half of the users'}[kind]
    assert notes[0].startswith('image is dead' if referred else 'image hardly speaks') and where in notes[0]
    assert ('of its reference there' if referred else 'of what text gains there') in notes[0]
    assert notes[0] in str(found) and notes[0].split(':')[0] in found._repr_html_()


@pytest.mark.parametrize(
    'how',
    [
        {},
        {'noise': {'text': 0.3, 'image': 2}},
        {'rotate': True},
        {'popular': 0.5},
        {'sees': {'text': [0, 1, 2, 3], 'image': [4, 5, 6, 7]}},
        {'noise': {'text': 0.3, 'image': 0.6, 'sound': 1}},
    ],
)
def test_health_has_no_dead_segment(how):
    w = world(**how)
    assert notes_of(w)[0] == notes_of(w, w)[0] == []


@pytest.mark.parametrize('how', ['noise', 'permuted', 'constant'])
def test_a_modality_that_is_dead_everywhere_has_no_dead_segment(how):
    w = world()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert notes_of(hurt(w, 'image', how), w)[0] == []


def test_items_that_lack_a_modality_are_in_no_half_by_agreement():
    w = world()
    w['items']['image'] = w['items']['image'].copy()
    w['items']['image'][::2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        task = Task.of(**w)
    halves = [s for s in cuts(task, {}) if s.modality == 'image' and s.by == 'agreement of items']
    assert sum(s.weights for s in halves).astype(bool)[task.targets % 2 == 0].sum() == 0
    assert notes_of(w)[0] == []


def test_figures_by_hand():
    "Means over the users of a segment, and over items instead of users."
    w = world(200, 30)
    seen = [list(range(u % 5)) for u in range(200)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        task = Task.of(**w, seen=seen)
    raw = measure(task, {}, 2, progress=False)
    found = {(s['by'], s['segment']): s for s in segment_figures(task, raw, {})}
    g, often = raw['gains']['text'], np.bincount(task.targets, minlength=30)
    by_item = [g[task.targets == i].mean() for i in np.flatnonzero(often)]
    alike = found['items', 'all items, each counted alike']['figures']['text']['ndcg']
    close(alike['value'], np.mean(by_item), 1e-9)
    assert alike['low'] < alike['value'] < alike['high']
    few = np.diff(task.seen[0]) <= np.sort(np.unique(np.diff(task.seen[0])))[1]
    s = found['activity', 'the less active half of the users']
    assert s['users'] == few.sum()
    close(s['hits'], raw['hits']['fused'][few].sum(), 1e-9)
    lift = {m: (raw['gains'][m] - task.chance)[few].mean() for m in task.items}
    close(s['figures']['image']['kept']['value'], lift['image'] / lift['text'], 1e-9)
    assert s['figures']['image']['against'] == 'text'


def test_where_popularity_is_counted():
    w = world(50, 20)
    task = Task.of(**w)
    assert popularity(task)[1] == 'next items'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert popularity(Task.of(**w, seen=[[0, 1]] * 50))[1] == 'seen items'
    split = SimpleNamespace(user_items=(np.array([0, 3]), np.array([2, 2, 5])))
    counts = training_counts(split, 20)
    assert counts[2] == 2 and counts.sum() == 3 and training_counts(None, 20) is None
    assert popularity(task, counts)[1] == 'purchases in training'
    rare = next(s for s in cuts(task, {}, counts) if s.by == 'popularity')
    assert rare.source == 'purchases in training' and (rare.weights == (counts[task.targets] == 0)).all()


def test_agreement_is_a_correlation():
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.normal(size=(n, 4)) for n in (7, 7, 30, 30))
    by_hand = [np.corrcoef(x, y)[0, 1] for x, y in zip(a @ c.T, b @ d.T)]
    close(agreement((a, b), (c, d), chunk=3), by_hand, 1e-9)
    close(agreement((a, b), (c, np.zeros_like(d))), np.zeros(7))


def test_names_from_the_data_are_escaped():
    w = world()
    sides = ({'<b>|x': w[side]['text'], 'image': w[side]['image']} for side in ('items', 'sequences'))
    task = Task.of(*sides, w['targets'])
    d = {'segments': segment_figures(task, measure(task, {}, 2, progress=False), {})}
    assert '<b>' not in segments_html(d) and '<b>' not in ''.join(segments_text(d))
    rows = segments_text(d)
    assert len({r.replace('\\|', '').count('|') for r in rows if r}) == 1


def test_reports_without_segments_and_tiny_ones():
    assert segments_html({}) == '' and segments_text({}) == []
    one = Task.of(**world(1))
    assert segment_figures(one, measure(one, {}, 2, progress=False), {}) == []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        w = world(3)
        alone = Task.of({'text': w['items']['text']}, {'text': w['sequences']['text']}, w['targets'])
    found = segment_figures(alone, measure(alone, {}, 2, progress=False), {})
    assert segment_notes(found) == [] and found[0]['figures']['text']['kept'] is None


def test_no_share_is_told_of_a_modality_that_gains_nothing():
    "A ratio of what is there and nothing is any number: it stood in the table as 9900 %."
    report = collapse_report(**world(noise={'text': 0.3, 'image': 6}), bootstrap=100, permutations=2, progress=False)
    (everybody,) = [s for s in report.data['segments'] if s['segment'] == 'all users']
    kept = {m: everybody['figures'][m]['kept'] for m in ('text', 'image')}
    assert kept['text']['value'] is None and -0.1 < kept['image']['low'] <= kept['image']['high'] < 0.1
    assert 'n/a of image' in report._repr_html_() and '9900' not in report._repr_html_()
