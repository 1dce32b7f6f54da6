"Content or memory: worlds of known truth, at the surface of the report, and the exchange itself."

import json

import numpy as np
import pytest

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.commands.open import load_split
from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.diagnosis.evidence import Task
from vlm2rec_lab.diagnosis.memory import (
    among,
    auc,
    cold_evidence,
    equal_spectrum,
    exchange,
    exchanged,
    items_bought,
    memory_evidence,
)
from vlm2rec_lab.diagnosis.worlds import world
from vlm2rec_lab.ranking.task import normalise


def fitted(contents, bought, wanted):
    "Vectors of all items from a linear head, fitted to what is wanted of the items that were bought."
    x, y = contents[bought] - contents[bought].mean(0), wanted[bought] - wanted[bought].mean(0)
    gram = x @ x.T
    weight = np.linalg.solve(gram + 0.02 * np.trace(gram) / len(x) * np.eye(len(x)), y)
    return (contents - contents[bought].mean(0)) @ (x.T @ weight)


class Shop:
    "1,682 items of 1,280 dimensions per modality: a text that tells, and a picture that is noise."

    def __init__(self, users=1500, n=1682, dims=1280, seed=0):
        rng = np.random.default_rng(seed)
        z, taste = rng.normal(size=(n, 8)), rng.normal(size=(users, 8))
        score = 2 * taste @ z.T + 0.5 * rng.normal(size=n) + rng.gumbel(size=(users, n))
        self.bought = np.arange(n) < 0.8 * n
        self.past = np.argsort(np.where(self.bought, -score, np.inf), 1)[:, :8]
        rows = np.arange(users)[:, None]
        score[rows, self.past] = -np.inf
        self.targets = score.argmax(1)
        self.contents = dict(text=0.3 * z @ rng.normal(size=(8, dims)), image=0)
        self.contents = {m: x + rng.normal(size=(n, dims)) for m, x in self.contents.items()}
        pairs = np.zeros((users, n))
        pairs[rows, self.past] = 1
        values, vectors = np.linalg.eigh(pairs @ pairs.T)  # the strongest directions of the purchases
        self.wanted = pairs.T @ vectors[:, -24:]

    def vectors(self, contents=None):
        "What the training makes of contents."
        items = {m: normalise(fitted(x, self.bought, self.wanted)) for m, x in (contents or self.contents).items()}
        return dict(items=items, sequences={m: x[self.past].mean(1) for m, x in items.items()})

    def control(self, seed=5):
        "The same training with contents exchanged between items."
        order = exchange(len(self.bought), seed)
        return self.vectors({m: x[order] for m, x in self.contents.items()})

    def rest(self):
        "What belongs to all vectors alike."
        how = dict(fuse='concat', permutations=2, bootstrap=300, progress=False, missing=())
        return dict(targets=self.targets, seen=self.past, **how)


@pytest.fixture(scope='module')
def shop():
    "One shop and its vectors."
    out = Shop()
    out.found, out.other = out.vectors(), out.control()
    return out


def test_a_head_that_knows_its_items_by_heart_is_named(shop):
    plain = collapse_report(**shop.found, **shop.rest())
    assert plain.modalities['image']['verdict'] == 'healthy' and 'memory' not in plain.data
    report = collapse_report(**shop.found, **shop.rest(), control=shop.other, bought=shop.bought)
    image, memory = report.modalities['image'], report.data['memory']
    assert memory['image']['kind'] == 'memory' and image['reason'] == 'memory'
    assert image['verdict'] == 'collapsed' and 'memory, not content' in image['sentence']
    assert memory['image']['content']['high'] < 0.5
    assert memory['image']['cold_auc']['low'] < 0.5 < memory['image']['cold_auc']['high'] < 0.55
    assert memory['image']['warm_auc']['low'] > 0.7


def test_contents_that_tell_are_cleared(shop):
    report = collapse_report(**shop.found, **shop.rest(), control=shop.other, bought=shop.bought)
    text = report.data['memory']['text']
    assert text['kind'] in ('content', 'both') and text['cold_auc']['low'] > 0.6
    plain = collapse_report(**shop.found, **shop.rest())
    assert report.modalities['text']['verdict'] == plain.modalities['text']['verdict']


def test_either_evidence_is_enough(shop):
    by_control = collapse_report(**shop.found, **shop.rest(), control=shop.other)
    assert by_control.modalities['image']['reason'] == 'memory, cold unknown'
    assert by_control.modalities['image']['verdict'] == 'undecided'
    by_cold = collapse_report(**shop.found, **shop.rest(), bought=np.flatnonzero(shop.bought))
    assert by_cold.modalities['image']['reason'] == 'memory'
    # alive, and no control tells how much of the score that is
    assert by_cold.data['memory']['text']['kind'] in ('both', 'unclear')
    drawn = {m: equal_spectrum(x, 3) for m, x in shop.contents.items()}
    by_spectrum = collapse_report(**shop.found, **shop.rest(), control=shop.vectors(drawn))
    assert by_spectrum.data['memory']['image']['kind'] == 'memory'


def test_the_share_is_own_less_control_over_own_less_chance(shop):
    task = Task.of(**shop.found, targets=shop.targets, seen=shop.past, fuse='concat')
    control = Task.of(**shop.other, targets=shop.targets, seen=shop.past, fuse='concat')
    x = memory_evidence(task, control)['text']
    own, other = x['ndcg']['value'], x['control_ndcg']['value']
    assert x['content']['value'] == pytest.approx((own - other) / (own - task.chance.mean()))
    assert x['content']['low'] < x['content']['value'] < x['content']['high']
    assert memory_evidence(task, task)['text']['content'] == dict(value=0, low=0, high=0)
    whole = memory_evidence(task, control)['fused']
    assert whole['ndcg']['value'] > 0 and whole['control_ndcg']['value'] > 0


def test_the_report_shows_it_everywhere(shop, tmp_path):
    report = collapse_report(**shop.found, **shop.rest(), control=shop.other, bought=shop.bought, name='x')
    assert json.loads(json.dumps(report.data, allow_nan=False)) == report.to_dict()
    said = 'so this score is memory, and hardly any of it content.'
    html, markdown = (report.save(tmp_path / f'x.{kind}').read_text() for kind in ('html', 'md'))
    for text in (repr(report), html, markdown):
        assert said in text and 'share that is content' in text and 'AUC, new items' in text
        assert 'is not in the intervals' in text


def test_auc_is_a_count_among_the_same_kind():
    w = world(300, 60)
    seen = [[(t + 1) % 60, (t + 2) % 60] for t in w['targets']]
    task, keep = Task.of(**w, seen=seen), np.arange(60) % 3 > 0
    part = among(task, keep)
    got, rows = auc(part, 'text'), np.flatnonzero(keep[w['targets']])
    score = task.sequences['text'] @ task.items['text'].T
    for g, u in zip(got, rows):
        others = [i for i in np.flatnonzero(keep) if i != w['targets'][u] and i not in seen[u]]
        assert g == pytest.approx((score[u, others] < score[u, w['targets'][u]]).mean())
    assert len(got) == len(rows) > 100


def test_ties_count_half():
    w = world(50, 20)
    task = Task.of({'text': np.ones((20, 4))}, {'text': np.ones((50, 4))}, w['targets'])
    assert auc(task, 'text') == pytest.approx(0.5)


def test_too_few_cold_items_say_nothing():
    task = Task.of(**world(300, 60))
    assert cold_evidence(task, 'text', np.ones(60, bool)) == {}
    few = np.isin(np.arange(60), task.targets[:1], invert=True)
    assert (task.targets == task.targets[0]).sum() < 30 and cold_evidence(task, 'text', few) == {}
    assert memory_evidence(task, bought=np.ones(60, bool)) == {}


def test_a_ranking_by_chance_is_not_divided():
    rng = np.random.default_rng(0)
    items, users = ({m: rng.normal(size=(n, 8)) for m in ('text', 'image')} for n in (100, 600))
    task = Task.of(items, users, rng.integers(0, 100, 600))
    assert memory_evidence(task, task, np.arange(100) < 50) == {}


def test_exchanged_contents_belong_together_and_to_nobody_else():
    split = load_split('studio:memorable', users=40)
    other = exchanged(split, 3)
    cat, was = other.catalogue, split.catalogue
    order = exchange(len(was), 3)
    assert sorted(order) == list(range(len(was))) and (order != np.arange(len(was))).all()
    assert cat.ids == was.ids and cat.table.equals(was.table)
    for m in was.modalities:
        assert all(np.array_equal(cat.content[m][i], was.content[m][order[i]]) for i in range(len(was)))
    assert other.train is split.train and other.test is split.test
    assert 'contents exchanged (seed 3)' in other.name and other.name.startswith(split.name)
    one = exchanged(split, 3, ['image']).catalogue
    assert one.content['text'] == was.content['text']
    assert np.array_equal(np.stack(one.content['image']), np.stack(cat.content['image']))
    with pytest.raises(DataError, match="no modality 'picture'"):
        exchanged(split, 0, ['picture'])
    with pytest.raises(DataError, match='1 items'):
        exchange(1)


def test_what_was_bought_is_told_by_a_split():
    split = load_split('studio:memorable', users=40)
    known = items_bought(None, split, len(split.catalogue))
    assert known[split.train.targets].all() and not known.all()
    for wrong in ([-1], [400], [0.5], np.ones(3, bool)):
        with pytest.raises(DataError, match='bought: pass'):
            items_bought(wrong, None, 400)


def test_a_wrong_control_is_named():
    w = world(100, 40)
    short = dict(items={m: x[:-1] for m, x in w['items'].items()}, sequences=w['sequences'])
    with pytest.raises(ValueError, match=r"control\['items'\]\['text'\] has 39 rows"):
        collapse_report(**w, control=short, progress=False)
    with pytest.raises(ValueError, match='control must be a dictionary'):
        collapse_report(**w, control=[1], progress=False)


def test_what_is_ranked_already_is_not_ranked_again(monkeypatch):
    "Gains that are handed in are taken, of modalities and of the fusion."
    from vlm2rec_lab.diagnosis import memory
    from vlm2rec_lab.diagnosis.evidence import Task, fused_gain
    from vlm2rec_lab.diagnosis.worlds import world

    task, asked = Task.of(**world(users=60)), []
    gains = {m: fused_gain(task, modalities=[m]) for m in task.items} | {'fused': fused_gain(task)}
    monkeypatch.setattr(memory, 'fused_gain', lambda t, **kw: asked.append(t) or fused_gain(t, **kw))
    found = memory.views_of(task, task, gains)
    assert len(asked) == len(task.items) + 1 and not any(t is task for t in asked[:-1])  # the control's own
    assert all(found.own[v] is gains[v] for v in gains)
