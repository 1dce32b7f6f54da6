"Contents taken away, exchanged and drowned; gradients by hand; and parts of scores whose sum ranks as the model does."

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from prompt_shops import bought_once, by_letter, called, contents, tiny

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.metrics import evaluate
from vlm2rec_lab.prompts.diagnosis import CHANGES, changed, gradients_by_kind, score_parts, views_of
from vlm2rec_lab.prompts.fit import item_scores, rank_questions
from vlm2rec_lab.prompts.lessons import ask, customer_names, make_wording, next_questions
from vlm2rec_lab.prompts.model import LEARN
from vlm2rec_lab.prompts.templates import templates_for
from vlm2rec_lab.ranking.candidates import with_negatives
from vlm2rec_lab.ranking.sets import figure_at_k

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
SPLIT = bought_once()
ASKED = next_questions(SPLIT.test, templates_for('next')[0], customer_names(SPLIT))
seeds = st.integers(0, 10**6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), seeds)
def test_exchanged_contents_are_those_of_another(n, seed):
    "A permutation without a fixed point; what lacks contents goes along; the other modality stays."
    vectors = contents('image', 'text', items=n, dims=3, seed=seed) if n > 3 else dict(image=np.eye(n), text=np.eye(n))
    before = called(vectors, items=n)
    after = changed(before, 'image', 'exchanged', seed)
    alike = (after.vectors['image'][:, None] == before.vectors['image'][None]).all(2).numpy()
    assert (alike.sum(0) == 1).all() and (alike.sum(1) == 1).all() and not alike.diagonal().any()
    assert (after.there['image'] == before.there['image'][alike.argmax(1)]).all()
    assert after.there['text'] is before.there['text'] and after.vectors['text'] is before.vectors['text']
    again = changed(before, 'image', 'exchanged', seed)
    assert torch.equal(again.vectors['image'], after.vectors['image'])
    if n > 10:
        other = changed(before, 'image', 'exchanged', seed + 1)
        assert not torch.equal(other.vectors['image'], after.vectors['image'])


def test_noise_is_like_what_it_drowns():
    "Means and spreads of each number, but nothing of the items; what is not there stays away."
    rng, n = np.random.default_rng(0), 1000
    x = rng.normal([3, -2, 0, 1], [0.1, 1, 2, 0.5], (n, 4))
    x[::5] = 0
    before = make_wording(by_letter, [[2 + i] for i in range(n)], dict(image=x))
    own = torch.from_numpy(before.there['image'])[:, None] * torch.arange(1, 5)
    before = replace(before, vectors=dict(image=before.vectors['image'] + own))  # of means that are not 0
    after = changed(before, 'image', 'noise')
    there = before.there['image']
    assert (after.there['image'] == there).all() and there.sum() == 800 and not after.vectors['image'][::5].any()
    a, b = (w.vectors['image'][there].double().numpy() for w in (before, after))
    assert (np.abs(a.mean(0) - b.mean(0)) < 5 * a.std(0) / 800**0.5).all()
    assert np.allclose(b.std(0), a.std(0), rtol=0.15)
    assert all(abs(np.corrcoef(a[:, k], b[:, k])[0, 1]) < 0.2 for k in range(4))
    assert abs(np.corrcoef(b.T) - np.eye(4)).max() < 0.2
    assert not torch.equal(changed(before, 'image', 'noise', 1).vectors['image'], after.vectors['image'])


@pytest.mark.parametrize('named', [True, False])
def test_removed_contents_are_not_there(named):
    "Prompts, and scores, are those of a wording that has none of them; another modality stays."
    vectors, model = contents('image', 'text'), tiny('image', 'text').eval()
    removed = changed(called(vectors, named=named), 'image', 'removed')
    without = called({'text': vectors['text']}, named=named)
    a, b = ask(removed, ASKED), ask(without, ASKED)
    assert (
        torch.equal(a.tokens, b.tokens)
        and torch.equal(a.words, b.words)
        and torch.equal(a.shown['text'], b.shown['text'])
    )
    assert not (a.kinds == 1).any() and ((a.kinds == 2) == (b.kinds == 1)).all() and not len(a.shown['image'])
    one = vectors | dict(image=np.eye(15, 6, -14))  # nothing but the last item has a picture
    rare = called(one, named=named)
    q = [k for k, q in enumerate(ASKED) if 14 not in q.pieces]
    found = item_scores(model, removed, ASKED)
    assert np.allclose(found[q], item_scores(model, rare, [ASKED[k] for k in q]), atol=1e-5)
    assert not np.allclose(found, item_scores(model, called(vectors, named=named), ASKED), atol=1e-3)


def test_what_would_say_nothing_is_told():
    nameless = called(contents('image'), named=False)
    with pytest.raises(DataError, match='nothing of its items'):
        changed(nameless, 'image')
    assert all(changed(nameless, 'image', how) is not nameless for how in CHANGES if how != 'removed')
    with pytest.raises(DataError, match="did you mean 'noise'"):
        changed(nameless, 'image', 'nois')
    with pytest.raises(DataError, match='named=True'):
        score_parts(tiny('image'), nameless, ASKED)


@pytest.mark.parametrize('learn', LEARN)
def test_gradients_are_those_by_hand(learn):
    "Of the mean over answers, each the mean of its tokens; without dropout; nothing is kept."
    model = tiny('image', 'text', learn=learn, dropout=0.3).train()
    asked = ask(called(contents('image', 'text')), ASKED[:7])
    found = gradients_by_kind(model, asked)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert found == gradients_by_kind(model.eval(), asked) and not model.training
    read = model.embed(asked)
    x = read.detach().requires_grad_()
    states = model.t5.encoder(inputs_embeds=x, attention_mask=asked.mask.long()).last_hidden_state
    said = model.answer(states, asked.mask, asked.answers)
    each = [F.cross_entropy(s, a) for s, a in zip(said, asked.answers)]  # leaves -100 out
    sum(each).div(len(each)).backward()
    for name, kind in dict(words=0, image=1, text=2).items():
        square = 0.0
        for row in range(7):
            for place in range(asked.tokens.shape[1]):
                if asked.mask[row, place] and asked.kinds[row, place] == kind:
                    square += float(x.grad[row, place].double() @ x.grad[row, place].double())
        assert found[name]['tokens'] == pytest.approx(square**0.5, rel=1e-4) and square > 0
    assert found['words']['mapping'] is None
    read.backward(x.grad)
    for m, mapping in model.mapping.items():
        flat = torch.cat([p.grad.flatten() for p in mapping.parameters()]).double()
        assert found[m]['mapping'] == pytest.approx(float(flat.norm()), rel=1e-4) and flat.any()
    removed = ask(changed(called(contents('image', 'text')), 'image'), ASKED[:7])
    assert gradients_by_kind(model, removed)['image'] == dict(tokens=0.0, mapping=0.0)


@settings(max_examples=8, deadline=None)
@given(seeds, st.sampled_from([('image',), ('image', 'text')]))
def test_the_fused_ranking_of_the_views_is_that_of_the_model(seed, names):
    "And every part is what one modality more changes, from names alone to everything."
    model, vectors = tiny(*names, seed=seed).eval(), contents(*names, seed=seed)
    with torch.no_grad():
        model.kinds.weight.mul_(3)  # so that contents are heard
    wording = called(vectors)
    parts, whole = score_parts(model, wording, ASKED), item_scores(model, wording, ASKED)
    assert list(parts) == ['names', *names]
    assert np.allclose(sum(parts.values()), whole, atol=1e-4)
    bare = called({})
    alone = wording
    for m in names:
        alone = changed(alone, m)
    assert np.array_equal(parts['names'], item_scores(model, alone, ASKED))
    assert (ask(alone, ASKED).tokens == ask(bare, ASKED).tokens).all()
    if len(names) == 2:
        first = item_scores(model, changed(wording, 'text'), ASKED)
        assert np.allclose(parts['image'], first - parts['names'], atol=1e-5)
    apart = np.abs(whole - whole[np.arange(len(whole)), SPLIT.test.targets][:, None])
    assume(np.sort(apart, 1)[:, 1].min() > 1e-4)  # nothing is nearly tied with a target
    views = views_of(model, wording, SPLIT.test, ASKED)
    ours = rank_questions(model, wording, SPLIT.test, ASKED)
    theirs = evaluate(**views, k=(1, 3, 10), bootstrap=2)['fused']
    for k in (1, 3, 10):
        for metric in ('HR', 'NDCG'):
            assert theirs[f'{metric}@{k}'] == pytest.approx(figure_at_k(ours, k, metric).mean(), abs=1e-6)


def test_catalogues_that_are_too_large_and_rows_with_negatives_are_told():
    model, wording = tiny('image'), called(contents('image'))
    assert set(views_of(model, wording, SPLIT.test, ASKED, most=15)['items']) == {'names', 'image'}
    with pytest.raises(DataError, match='14 are allowed'):
        views_of(model, wording, SPLIT.test, ASKED, most=14)
    with pytest.raises(DataError, match='negatives of their own'):
        views_of(model, wording, with_negatives(SPLIT, 3).test, ASKED)
