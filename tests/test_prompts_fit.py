"Training of prompt models: resumed runs, what is frozen, the rate, and rankings by hand."

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_shops import bought_once, called, contents, tiny

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.prompts import fit as fit_module
from vlm2rec_lab.prompts.answers import make_trie, score_names
from vlm2rec_lab.prompts.fit import fit_prompts, item_scores, rank_questions, ranks_of, rate_at
from vlm2rec_lab.prompts.lessons import ask, customer_names, next_lessons, next_questions
from vlm2rec_lab.prompts.model import LEARN
from vlm2rec_lab.prompts.templates import templates_for
from vlm2rec_lab.ranking.candidates import with_negatives
from vlm2rec_lab.ranking.sets import figure_at_k
from vlm2rec_lab.training.history import Interrupted

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
SPLIT = bought_once()
USERS = customer_names(SPLIT)
VECTORS = contents('image')
WORDING = called(VECTORS)
ASKED = {part: next_questions(getattr(SPLIT, part), templates_for('next')[0], USERS) for part in ('valid', 'test')}
LOOK = SPLIT.valid, ASKED['valid']
LESSONS = next_lessons(SPLIT, USERS, 2)
QUICK = dict(batch=16, lr=0.01, epochs=3, progress=False)


def values(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(a, b):
    return all(torch.equal(x, b[n]) for n, x in a.items())


# ---- runs that go on


class Once:
    "Lessons that do something when they are drawn for the second time, in the middle of a run."

    def __init__(self, event):
        self.event, self.drawn = event, 0

    def __call__(self, rng):
        self.drawn += 1
        if self.drawn == 2:
            self.event()
        return LESSONS(rng)


def killed():
    raise KeyboardInterrupt('at once')


@pytest.mark.parametrize('learn', LEARN)
def test_a_run_that_was_cut_off_ends_as_a_whole_one(learn, tmp_path):
    "With dropout on; politely, after the epoch, or at once, in the middle of it."
    make = dict(learn=learn, dropout=0.2)
    whole = tiny('image', **make)
    run = fit_prompts(whole, WORDING, LESSONS, LOOK, **QUICK)
    still = tiny('image', learn=learn)
    assert fit_prompts(still, WORDING, LESSONS, LOOK, **QUICK).frame.loss.tolist() != run.frame.loss.tolist()
    for name, event in dict(polite=lambda: signal.raise_signal(signal.SIGINT), rude=killed).items():
        how = QUICK | dict(folder=tmp_path / name)
        with pytest.raises(KeyboardInterrupt) as e:
            fit_prompts(tiny('image', **make), WORDING, Once(event), LOOK, **how)
        if name == 'polite':
            assert isinstance(e.value, Interrupted) and len(e.value.run.frame) == 2 and not e.value.run.finished
        resumed = tiny('image', **make)
        rest, torch_state = Once(lambda: None), torch.get_rng_state()
        again = fit_prompts(resumed, WORDING, rest, LOOK, **how)
        assert torch.equal(torch.get_rng_state(), torch_state)  # what else draws numbers is not moved
        assert rest.drawn == (1 if name == 'polite' else 2)
        assert again.frame.loss.tolist() == run.frame.loss.tolist() and again.finished
        assert again.frame['NDCG@10'].tolist() == run.frame['NDCG@10'].tolist()
        assert same(values(resumed), values(whole)), name


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    "What a run was begun with, in a folder."
    how = QUICK | dict(folder=tmp_path_factory.mktemp('begun'), about='lessons')
    fit_prompts(tiny('image'), WORDING, LESSONS, LOOK, callback=lambda r: 'stop', **how)
    return how


@pytest.mark.parametrize(
    'name, other',
    [
        ('seed', dict(seed=1)),
        ('vectors', dict(wording=called(contents('image', seed=1)))),
        ('named', dict(wording=called(VECTORS, named=False))),
        ('words', dict(wording=called(VECTORS, words=1))),
        ('about', dict(about='other lessons')),
        ('start', dict(model=dict(seed=1))),
        ('start', dict(model=dict(dropout=0.2))),
        ('epochs', dict(epochs=4)),
        ('batch', dict(batch=8)),
        ('warm', dict(warm=0.5)),
        ('clip', dict(clip=1.0)),
        ('decay', dict(decay=0.5)),
        ('every', dict(every=2)),
        ('metric', dict(metric='HR@10')),
        ('autocast', dict(autocast='bfloat16')),
    ],
)
def test_another_run_is_refused_by_the_name_of_what_differs(name, other, begun):
    other = dict(other)
    wording, model = other.pop('wording', WORDING), other.pop('model', {})
    with pytest.raises(DataError, match=f'folder= holds a run with {name}=.*give it another folder'):
        fit_prompts(tiny('image', **model), wording, lambda rng: 1 / 0, LOOK, **begun | other)


# ---- what is taught


@pytest.mark.parametrize('learn', LEARN)
def test_what_is_frozen_never_moves(learn):
    model = tiny('image', learn=learn)
    before = values(model)
    fit_prompts(model, WORDING, LESSONS, **QUICK | dict(epochs=2))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad} and not moved & {'words.weight'}


def test_the_best_state_by_validation_is_put_back():
    model, kept = tiny('image'), []
    how = QUICK | dict(lr=0.03, epochs=6)
    run = fit_prompts(model, WORDING, LESSONS, LOOK, callback=lambda r: kept.append(values(model)), **how)
    figures = run.frame['NDCG@10']
    assert run.best == 1 + int(np.argmax(figures)) and same(values(model), kept[run.best - 1])
    assert not same(kept[0], kept[1])
    found = figure_at_k(rank_questions(model, WORDING, *LOOK), 10, 'NDCG').mean()
    assert found == pytest.approx(figures.max(), abs=1e-9)


def test_where_nothing_is_looked_at_the_last_state_stays():
    for look in (None, (SPLIT.valid.take([]), [])):
        model, kept = tiny('image'), []
        run = fit_prompts(model, WORDING, LESSONS, look, callback=lambda r: kept.append(values(model)), **QUICK)
        assert same(values(model), kept[-1]) and run.frame['NDCG@10'].isna().all() and run.best == len(kept) == 3


def test_every_question_is_taught_once_and_counts_alike(monkeypatch):
    "The loss of an epoch without a rate is the mean over all questions, however the last batch is filled."
    monkeypatch.setattr(fit_module, 'rate_at', lambda *a: 0.0)
    drawn = []

    def lessons(rng):
        drawn.append(LESSONS(rng)[:21])
        return drawn[-1]

    model = tiny('image')
    before = values(model)
    run = fit_prompts(model, WORDING, lessons, **QUICK | dict(batch=8))
    assert same(values(model), before)
    with torch.no_grad():
        every = [float(model.eval()(ask(WORDING, questions)).mean()) for questions in drawn]
    assert run.frame.loss.tolist() == pytest.approx(every, abs=1e-5)


def test_dropout_is_drawn_anew_each_epoch_by_the_seed(monkeypatch):
    monkeypatch.setattr(fit_module, 'rate_at', lambda *a: 0.0)
    first, again, other = (
        fit_prompts(
            tiny('image', dropout=0.3), WORDING, lambda rng: ASKED['valid'][:1], **QUICK | dict(seed=s)
        ).frame.loss
        for s in (0, 0, 1)
    )
    assert first.nunique() == 3 and first.equals(again) and not set(first) & set(other)


def test_lessons_are_drawn_anew_each_epoch_by_the_seed():
    def drawn(seed):
        found = []

        def lessons(rng):
            found.append(float(rng.random()))
            return LESSONS(rng)

        fit_prompts(tiny('image'), WORDING, lessons, **QUICK | dict(seed=seed))
        return found

    first = drawn(0)
    assert len(set(first)) == 3 and first == drawn(0) and not set(first) & set(drawn(1))


def test_the_rate_is_asked_for_each_batch(monkeypatch):
    asked = []
    monkeypatch.setattr(fit_module, 'rate_at', lambda *a: asked.append(a) or 0.5)
    fit_prompts(tiny('image'), WORDING, LESSONS, **QUICK | dict(epochs=2, warm=0.3))
    steps = -(-len(LESSONS(np.random.default_rng(0))) // QUICK['batch'])
    assert asked == [(pytest.approx((k + 1) / steps), 2, 0.3) for k in range(2 * steps)]


@settings(deadline=None)
@given(st.integers(1, 60), st.just(0) | st.floats(0.001, 0.99))
def test_the_rate_rises_and_then_falls(epochs, warm):
    "From 0, or 1 where nothing is warmed up, to 1 where that ends, to nothing at the end; in straight lines."
    top = warm * epochs
    up, down = np.linspace(0, top, 9), np.linspace(top, epochs, 9)
    if warm:
        assert np.allclose([rate_at(e, epochs, warm) for e in up], np.linspace(0, 1, 9))
    assert np.allclose([rate_at(e, epochs, warm) for e in down], np.linspace(1, 0, 9), atol=1e-9)
    rates = [rate_at(e, epochs, warm) for e in np.linspace(0, epochs, 50)]
    assert all(-1e-9 <= r <= 1 + 1e-9 for r in rates)


def test_mistakes_are_told():
    how = dict(model=tiny('image'), wording=WORDING, lessons=LESSONS, progress=False)
    for name, value in [('batch', 0), ('epochs', 0), ('every', 0), ('patience', 0), ('clip', -1.0), ('clip', 0)]:
        with pytest.raises(DataError, match=f'{name}(=| is ){value}: give'):
            fit_prompts(**how, **{name: value})
    for warm in (-0.1, 1, 1.5):
        with pytest.raises(DataError, match=f'warm={warm}: give'):
            fit_prompts(**how, warm=warm)
    with pytest.raises(ValueError, match='say the cut-off'):
        fit_prompts(**how, metric='NDCG')
    with pytest.raises(FloatingPointError, match='a lower lr'):
        fit_prompts(**how | dict(model=tiny('image', dropout=0.0)), lr=1e30, epochs=3, clip=1e30, batch=8)


# ---- rankings


@pytest.fixture(scope='module')
def taught():
    model = tiny('image', dropout=0.3)
    fit_prompts(model, WORDING, LESSONS, **QUICK | dict(epochs=1))
    return model


def test_scores_are_those_of_one_at_a_time_and_the_model_goes_on_as_it_was(taught):
    "Without dropout, in whatever batches."
    trie = make_trie(WORDING.names, WORDING.end)
    for training in (True, False):
        taught.train(training)
        found = item_scores(taught, WORDING, ASKED['test'], batch=3)
        assert taught.training == training
        assert found.dtype == np.float32
        assert np.allclose(found, item_scores(taught, WORDING, ASKED['test'], trie), atol=1e-5)
    each = [score_names(taught, ask(WORDING, [q]), trie)[0].tolist() for q in ASKED['test']]
    assert np.allclose(found, each, atol=1e-4)
    assert item_scores(taught, WORDING, []).shape == (0, 15)


def seen_of(rows, k):
    return set(rows.seen_items[rows.seen_offsets[k] : rows.seen_offsets[k + 1]].tolist())


def test_ranks_are_those_counted_by_hand(taught):
    "Among all that is not seen, and among negatives: the rows' own, or others."
    rows = SPLIT.test
    scores = item_scores(taught, WORDING, ASKED['test'])
    own = with_negatives(SPLIT, 4).test
    others = with_negatives(SPLIT, 3, seed=1).test.negatives
    for asked, given_, among in ((rows, None, None), (own, None, own.negatives), (own, others, others)):
        ranks = ranks_of(scores, asked, given_)
        for k, target in enumerate(rows.targets):
            left = set(range(15)) - seen_of(rows, k) if among is None else {*among[k][among[k] >= 0].tolist(), target}
            assert ranks.candidates[k] == len(left)
            assert ranks.greater[k] == sum(scores[k, i] > scores[k, target] for i in left)
    for asked in (rows, own):
        for batch in (3, 64):
            ranked, plain = rank_questions(taught, WORDING, asked, ASKED['test'], batch=batch), ranks_of(scores, asked)
            for part in ('greater', 'ties', 'candidates'):
                assert (getattr(ranked, part) == getattr(plain, part)).all()


def test_sets_are_ranked_too(taught):
    "Where each item of a set stands among all that is not seen, the others of its set left out."
    rows, rng, sets = SPLIT.test, np.random.default_rng(0), []
    for k, target in enumerate(rows.targets):
        free = sorted(set(range(15)) - seen_of(rows, k) - {target})
        sets.append(sorted([target, *rng.choice(free, 2, replace=False)]))
    flat = np.concatenate(sets)
    rows = replace(rows, set_offsets=np.arange(len(rows) + 1) * 3, set_items=flat)
    scores = item_scores(taught, WORDING, ASKED['test'])
    plain, ranked = ranks_of(scores, rows), rank_questions(taught, WORDING, rows, ASKED['test'], batch=7)
    for part in ('offsets', 'greater', 'ties', 'mates', 'candidates'):
        assert (getattr(ranked, part) == getattr(plain, part)).all(), part
    hits = []
    for k, own in enumerate(sets):
        order = sorted(set(range(15)) - seen_of(rows, k), key=lambda i: -scores[k, i])
        hits.append(len(set(order[:3]) & set(own)) / 3)
    assert np.allclose(figure_at_k(ranked, 3, 'Recall'), hits)
