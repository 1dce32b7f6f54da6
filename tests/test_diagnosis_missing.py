"What missing contents cost: against a plain loop, at the surface, and beside a reference."

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.diagnosis.evidence import Task, fused_gain
from vlm2rec_lab.diagnosis.missing import (
    _plan,
    _rows_of,
    _variants_of,
    chosen_gain,
    missing_curve,
    missing_said,
    one_left,
    taken_out,
    users_are_means,
)
from vlm2rec_lab.diagnosis.missing_shown import missing_html, missing_note
from vlm2rec_lab.diagnosis.worlds import hurt, world
from vlm2rec_lab.ranking.evaluate import paired_difference
from vlm2rec_lab.ranking.fusions import beside, together_weights


def tanh(sides):
    "A fusion of one's own."
    return np.tanh(sum(sides.values()))


def some_task(fuse='sum', modalities=2, seen=False, coarse=False, absent=False):
    "A small world in one of many shapes."
    noise = dict(list({'text': 0.3, 'image': 0.6, 'specs': 1.0}.items())[:modalities])
    w = world(150, 67, noise=noise)
    rng = np.random.default_rng(3)
    if coarse:  # scores that tie
        w |= {side: {m: np.round(x) for m, x in w[side].items()} for side in ('items', 'sequences')}
    if absent:
        w = hurt(w, 'text', 'absent', 0.3)
    left_out = [rng.permutation(67)[:5] for _ in range(150)] if seen else None
    return Task.of(**w, seen=left_out, fuse=fuse)


SHAPES = {
    'sum': {},
    'concat': dict(fuse='concat'),
    'weights': dict(fuse={'text': 1, 'image': 3}),
    'a weight of zero': dict(fuse={'text': 1, 'image': 0}),
    'own': dict(fuse=tanh),
    'one': dict(modalities=1),
    'three': dict(modalities=3, seen=True),
    'three by concat': dict(modalities=3, fuse='concat', absent=True),
    'ties': dict(coarse=True, seen=True),
    'ties by concat': dict(coarse=True, fuse='concat', absent=True),
    'absent': dict(absent=True, seen=True),
}


def plain_curve(task, shares, draws, seed):
    "Modality -> [shares] and the score of one modality per item: vectors taken away, ranked again, one at a time."
    there = {m: x.any(1) for m, x in task.items.items()}
    lost, left = _plan(there, shares, draws, seed)

    def score(gone):
        items = {m: x * ~gone[m][:, None] if m in gone else x for m, x in task.items.items()}
        return fused_gain(task, items).mean()

    curve = {m: [np.mean([score({m: lost[m][d, s]}) for d in range(draws)]) for s in range(len(shares))] for m in lost}
    single = [score({m: row != j for j, m in enumerate(lost)}) for row in left]
    return curve, np.mean(single)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('shape', SHAPES)
def test_a_curve_is_what_a_plain_loop_finds(shape):
    task, shares = some_task(**SHAPES[shape]), [0.0, 0.3, 0.5, 1.0]
    found = missing_curve(task, shares=shares, draws=2, seed=5)
    curve, single = plain_curve(task, shares, 2, 5)
    assert found['shares'] == shares and found['sides'] == 'candidates'
    for m, values in curve.items():
        np.testing.assert_allclose([x['ndcg']['value'] for x in found['curve'][m]], values, atol=1e-12)
    if len(task.items) == 1:
        assert found['one_each'] is None
    else:
        assert found['one_each']['ndcg']['value'] == pytest.approx(single, abs=1e-12)


@pytest.mark.filterwarnings('ignore')
def test_blocks_of_users_change_nothing():
    task = some_task(modalities=3, seen=True)
    lost, left = _plan({m: x.any(1) for m, x in task.items.items()}, (0, 0.5, 1), 2, 0)
    rows, variants = _rows_of(lost, left, list(task.items)), _variants_of(task)
    whole = chosen_gain(task, variants, rows)
    assert np.array_equal(whole, chosen_gain(task, variants, rows, block=1000))
    assert whole.shape == (3 * 2 * 3 + 2, 150)


def test_what_is_missing_grows_within_a_draw():
    has = np.arange(100) % 3 > 0
    out = taken_out(has, (0, 0.25, 0.5, 1), draws=4, seed=1)
    assert (out[:, :-1] <= out[:, 1:]).all() and not out[:, :, ~has].any()
    assert out.sum(-1).tolist() == [[0, 16, 33, 66]] * 4
    assert len({row.tobytes() for row in out[:, 2]}) == 4


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_draws_in_turn_ask_the_same_of_every_item(seed, items, draws, modalities):
    rng = np.random.default_rng(seed)
    there = rng.random((modalities, items)) < 0.7
    shares = np.linspace(0, 1, draws + 1)
    lost, left = _plan(dict(enumerate(there)), shares, draws, seed)
    for m, out in lost.items():
        assert out.shape == (draws, len(shares), items) and not out[:, :, ~there[m]].any()
        assert (out[:, :-1] <= out[:, 1:]).all()
        assert (out.sum(2) == np.round(shares * there[m].sum())).all()
        asked, n = out.sum(0)[:, there[m]], max(there[m].sum(), 1)
        assert (abs(asked - np.round(shares * n)[:, None] * draws / n) <= 1).all()
        if n % draws == 0:
            assert (asked == np.round(shares * draws)[:, None]).all()
    kept = np.stack([(left == j).sum(0) for j in range(modalities)])
    several = there.sum(0)
    assert (abs(kept - draws / np.maximum(several, 1))[there] < 1).all()
    assert not kept[:, several > 0][~there[:, several > 0]].any()


def test_other_draws_are_each_for_itself():
    "Those of the study, whose cells are kept: what they are must not change."
    rng = np.random.default_rng([3, 0])
    plain = [rng.permutation(7) < 4 for _ in range(3)]
    assert (taken_out(np.ones(7, bool), [4 / 7], 3, [3, 0])[:, 0] == plain).all()
    rng = np.random.default_rng([3, 2])
    plain = [rng.random((2, 7)).argmax(0) for _ in range(3)]
    assert (one_left(np.ones((2, 7), bool), 3, [3, 2]) == plain).all()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('fuse', ['sum', 'concat'])
def test_intervals_hold_where_a_few_items_make_most_of_the_sales(fuse):
    "Whichever items are drawn, the interval has what many draws find; chance in the items is small beside it."
    rng = np.random.default_rng(0)
    sold = 1 / np.arange(1, 301) ** 1.5
    kind, targets = rng.normal(size=(300, 16)), rng.choice(300, 600, p=sold / sold.sum())
    items = {m: kind + rng.normal(size=kind.shape) for m in ('text', 'image')}
    users = {m: kind[targets] + 1.5 * rng.normal(size=(600, 16)) for m in items}
    task = Task.of(items, users, targets, fuse=fuse)
    runs = [missing_curve(task, shares=(0, 0.25, 0.5), bootstrap=200, seed=s) for s in range(12)]
    for found in (
        [r['curve']['text'][1]['part'] for r in runs],
        [r['curve']['text'][2]['part'] for r in runs],
        [r['one_each']['part'] for r in runs],
    ):
        values = [x['value'] for x in found]
        assert all(x['low'] <= np.mean(values) <= x['high'] for x in found)
        assert np.std(values) < 0.25 * np.median([x['high'] - x['low'] for x in found])


def test_a_note_says_where_chance_in_the_items_is_left_out():
    about = dict(k=10, sides='candidates', users=9, seed=0)
    left_out = 'not of which items are drawn'
    assert left_out not in missing_note(about | dict(draws=4, shares=[0, 0.25, 0.5, 0.75, 1]))
    for draws, shares in ((1, [0, 0.5]), (4, [0, 0.3]), (2, [0, 0.25])):
        assert left_out in missing_note(about | dict(draws=draws, shares=shares))


def test_a_loss_is_paired_and_a_part_of_the_whole():
    task = some_task()
    found = missing_curve(task, shares=(0, 1), draws=1)
    x = found['curve']['text'][1]
    without = fused_gain(task, {**task.items, 'text': np.zeros_like(task.items['text'])})
    want = paired_difference(fused_gain(task), without)
    assert x['lost']['value'] == pytest.approx(want.value)
    assert x['lost']['low'] == pytest.approx(want.low) and x['lost']['high'] == pytest.approx(want.high)
    assert x['part']['value'] == pytest.approx(want.value / fused_gain(task).mean())


@pytest.fixture(scope='module')
def pair():
    "Reports of a world whose image died, beside what it was: the same vectors, healthy."
    w = world(1000, 300, noise={'text': 0.4, 'image': 0.4}, rotate=True)
    before = {side: w[side] for side in ('items', 'sequences')}
    return {
        name: collapse_report(**v, reference=before, fuse='concat', permutations=2, bootstrap=300, progress=False)
        for name, v in dict(dead=hurt(w, 'image'), healthy=w).items()
    }


def test_a_collapse_costs_when_the_other_modality_is_missing(pair):
    found = pair['dead'].data['missing']
    half = found['curve']['text'][found['shares'].index(0.5)]
    assert half['part']['low'] > half['reference_part']['high'] and half['more']['low'] > 0.1
    image = found['curve']['image'][-1]['part']
    assert image['low'] < 0.02, 'nothing is lost with what is dead'


def test_the_report_says_it_in_one_sentence(pair):
    found = pair['dead'].data['missing']
    x = found['curve']['text'][2]

    def said(e):
        return f'{100 * e["value"]:.0f} % [{100 * e["low"]:.0f}, {100 * e["high"]:.0f}]'

    want = (
        f'If half of the items had no text, this model would lose {said(x["part"])} of its NDCG@10, '
        f'its reference {said(x["reference_part"])} (surely less).'
    )
    report = pair['dead']
    assert missing_said(found).startswith(want) and want in repr(report) and want in missing_html(report.data)
    assert 'the difference is not sure' in missing_said(pair['healthy'].data['missing'])


def test_the_report_stays_plain_and_can_leave_it_out(pair, tmp_path):
    report = pair['dead']
    assert json.loads(json.dumps(report.data, allow_nan=False)) == report.to_dict()
    markdown = report.save(tmp_path / 'x.md').read_text()
    assert '| text, reference | ' in markdown and 'NDCG@10 when a share of the items lacks a modality' in markdown
    html = report.save(tmp_path / 'x.html').read_text()
    assert 'When contents are missing' in html and 'stroke-dasharray:5 4' in html
    bare = collapse_report(**world(60, 30), permutations=2, bootstrap=50, missing=(), progress=False)
    assert 'missing' not in bare.data and 'When contents are missing' not in bare._repr_html_()


def test_nothing_is_said_of_a_ranking_by_chance():
    rng = np.random.default_rng(0)
    items, users = ({m: rng.normal(size=(n, 8)) for m in ('text', 'image')} for n in (100, 400))
    found = missing_curve(Task.of(items, users, rng.integers(0, 100, 400)))
    assert missing_said(found) == ''
    assert missing_curve(Task.of(items, users, rng.integers(0, 100, 400)).take(np.arange(1))) == {}


def test_histories_lack_it_too_where_users_are_means():
    rng = np.random.default_rng(0)
    w = world(400, 120, noise={'text': 0.3, 'image': 0.3}, rotate=True)
    order = np.argsort(-(w['sequences']['text'] @ w['items']['text'].T), 1)[:, :6]
    past = [row[row != t][:5] for row, t in zip(order, w['targets'])]
    unit = {m: x / np.linalg.norm(x, axis=1, keepdims=True) for m, x in w['items'].items()}
    means = {m: np.stack([x[p].mean(0) for p in past]) for m, x in unit.items()}
    task = Task.of(w['items'], means, w['targets'], past, 'concat')
    found = missing_curve(task, shares=(0, 0.5), draws=1, seed=2)
    assert found['sides'] == 'both' and users_are_means(task, task.seen)
    gone = _plan({m: np.ones(120, bool) for m in unit}, (0, 0.5), 1, 2)[0]['text'][0, 1]
    items = dict(unit, text=unit['text'] * ~gone[:, None])
    users = dict(means, text=np.stack([items['text'][p].mean(0) for p in past]))
    want = fused_gain(Task.of({m: x for m, x in items.items()}, users, w['targets'], past, 'concat')).mean()
    assert found['curve']['text'][1]['ndcg']['value'] == pytest.approx(want, abs=1e-3)
    moved = {m: x + 0.3 * rng.normal(size=x.shape) for m, x in means.items()}
    assert missing_curve(Task.of(w['items'], moved, w['targets'], past))['sides'] == 'candidates'


def test_a_reference_of_other_dimensions_is_fused_by_concat():
    w, other = world(200, 50), world(200, 50, dims=24)
    task = Task.of(**w)
    unlike = dict(other, items=dict(other['items'], text=w['items']['text']))
    unlike['sequences'] = dict(other['sequences'], text=w['sequences']['text'])
    reference = Task.of(**{**unlike, 'targets': w['targets']}, fuse='concat')
    found = missing_curve(task, reference)
    want = fused_gain(reference).mean()
    assert found['curve']['text'][0]['reference_ndcg']['value'] == pytest.approx(want)


def test_wrong_shares_are_named():
    task = some_task()
    for shares in ((-0.1, 0.5), (0.5, 1.5), (np.nan,)):
        with pytest.raises(DataError, match='from 0 to 1'):
            missing_curve(task, shares=shares)
    for wrong in (0, 1.5, True, 'a'):
        with pytest.raises(DataError, match=f'draws={wrong!r}: draw the items once or more'):
            missing_curve(task, draws=wrong)
    with pytest.raises(ValueError, match='bootstrap is -1'):
        missing_curve(task, bootstrap=-1)
    with pytest.raises(ValueError, match='most is 1: give a whole number, 2 or more'):
        missing_curve(task, most=1)
    with pytest.raises(DataError, match='from 0 to 1'):
        collapse_report(**world(60, 30), permutations=2, bootstrap=20, missing=(2,), progress=False)


def test_a_mean_and_a_missing_vector_that_disagree_are_explained(tmp_path):
    how = dict(permutations=2, bootstrap=300, progress=False, name='x')
    report = collapse_report(**world(800, 200, 1, gap={'image': 3}), **how)
    mean = report.data['modalities']['text']['evidence']['drop_mean']
    lost = report.data['missing']['curve']['text'][-1]['lost']
    assert mean['low'] > 0 > lost['high']
    said = 'Two figures of text point different ways'
    html, markdown = (report.save(tmp_path / f'x.{kind}').read_text() for kind in ('html', 'md'))
    for text in (repr(report), html, markdown):
        assert text.count(said) == 1 and 'a missing vector keeps neither' in text
        assert f'falls by {mean["value"]:.3f}' in text and f'rises by {-lost["value"]:.3f}' in text
    alike = collapse_report(**world(800, 200, 1), **how)
    assert 'point different ways' not in repr(alike)


def beside_task(**how):
    "A world in which the sum is one more view, with what it is made of."
    w = world(150, 67, noise={'text': 0.3, 'image': 0.6})
    if how.pop('absent', False):
        w = hurt(w, 'text', 'absent', 0.3)
    items, users = beside(w['items'], w['sequences'], (w['items'], w['sequences']))
    return w, Task.of(items, users, w['targets'], fuse=together_weights(w['items']), **how)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('absent', [False, True])
def test_what_is_said_together_goes_with_each_content(absent):
    w, task = beside_task(absent=absent)
    found = missing_curve(task, shares=(0, 0.5, 1), draws=2, seed=4)
    there = {m: x.any(1) for m, x in w['items'].items()}
    lost, left = _plan(there, (0, 0.5, 1), 2, 4)
    score = {m: task.sequences[m] @ x.T for m, x in task.items.items()}

    def gain(gone):
        has = {m: there[m] & ~gone.get(m, np.zeros(67, bool)) for m in there}
        has['together'] = np.all(list(has.values()), 0)
        weight = {m: task.fuse[m] * has[m] for m in score}
        total = np.maximum(sum(weight.values()), 1e-12)
        s = sum(weight[m] * score[m] for m in score) / total
        own = s[np.arange(150), task.targets][:, None]
        rank = (s > own + 1e-6).sum(1) + ((abs(s - own) <= 1e-6).sum(1) - 1) / 2
        return np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean()

    for m in there:
        want = [np.mean([gain({m: lost[m][d, s]}) for d in range(2)]) for s in range(3)]
        assert np.allclose([x['ndcg']['value'] for x in found['curve'][m]], want, atol=2e-3), m
    one = np.mean([gain({m: row != j for j, m in enumerate(there)}) for row in left])
    assert set(found['curve']) == set(there) and abs(found['one_each']['ndcg']['value'] - one) < 2e-3
