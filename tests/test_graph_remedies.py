"""Remedies on the margins of BPR: against plain loops over pairs, and with faulty versions that must be seen."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from graph_worlds import planted
from test_graph_diagnosis import ALL, vbpr
from test_graph_multi import BATCH, VIEWS, seeded, shaken

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.graph import remedies
from vlm2rec_lab.graph.fit import figure_of, fit_graph, rank_graph, step_loss
from vlm2rec_lab.graph.graph import graph_of
from vlm2rec_lab.graph.make import make_model
from vlm2rec_lab.graph.models import VBPR
from vlm2rec_lab.graph.remedies import (
    centred_tables,
    counterfactual_weights,
    mean_gaps,
    own_margins,
    per_modality_bpr,
    tables_in_step,
    taught_bpr,
    teachers_of,
    weakest_bpr,
)

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.base.errors.DataWarning')
every = pytest.mark.parametrize('make', ALL.values(), ids=ALL)
QUICK = dict(batch=64, lr=0.02, epochs=3, patience=None, metric='Recall@5', progress=False)


def softplus(x):
    "log(1 + e^x) of a number."
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def margins_by_loop(tables):
    "The margin of each pair, one after another."
    u, i = (t.detach().double().numpy() for t in tables)
    return [float(u[a] @ i[p] - u[a] @ i[n]) for a, p, n in zip(*(x.tolist() for x in BATCH))]


def known_by_loop(m):
    "Whether both items of a pair have a modality, pair by pair."
    return [bool(VIEWS[m][p].any() and VIEWS[m][n].any()) for p, n in zip(BATCH[1].tolist(), BATCH[2].tolist())]


def mean(values):
    "The mean of numbers; 0 of none."
    return sum(values) / len(values) if values else 0.0


# ---- a loss for every modality


def plain_per_modality(model, weights):
    "BPR of each modality by a loop over the pairs that have it."
    out = {}
    for m, tables in model.alone().items():
        cost = [softplus(-x) for x, there in zip(margins_by_loop(tables), known_by_loop(m)) if there]
        out[f'bpr of {m}'] = weights[m] * mean(cost)
    return out


def agrees(model, loss=per_modality_bpr, weight=1.5):
    "Whether a loss is that of the loop."
    found = {n: x.item() for n, x in loss(model, *BATCH, weight=weight).items()}
    return found == pytest.approx(plain_per_modality(model, dict.fromkeys(VIEWS, weight / 3)), rel=1e-4)


@every
def test_every_modality_has_its_loss(make):
    model = shaken(make())
    assert agrees(model)
    some = per_modality_bpr(model, *BATCH, weight={'image': 2.0})
    want = plain_per_modality(model, dict.fromkeys(VIEWS, 2.0))
    assert {n: x.item() for n, x in some.items()} == pytest.approx({'bpr of image': want['bpr of image']}, rel=1e-4)
    some['bpr of image'].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.path('image')[:1])


def test_pairs_without_a_modality_do_not_count(monkeypatch):
    "A mean over all pairs, those that lack the modality among them, is another loss."
    whole = remedies.own_margins

    def all_there(*a):
        return {m: (x, torch.ones_like(there)) for m, (x, there) in whole(*a).items()}

    monkeypatch.setattr(remedies, 'own_margins', all_there)
    assert not agrees(shaken(vbpr()))


# ---- a penalty for the weakest


def plain_weakest(model, alpha, gap):
    "The loss by a loop over pairs."
    own = {}
    for m, tables in model.alone().items():
        x, there = margins_by_loop(tables), known_by_loop(m)
        fill = mean([a for a, t in zip(x, there) if t])
        own[m] = [a if t else fill for a, t in zip(x, there)]
    whole, pairs = margins_by_loop(model.eval().tables()), range(len(BATCH[0]))
    means = [mean(x) for x in own.values()]
    wide = [max(means) - min(means)] * len(pairs)
    if gap == 'user':
        wide = [max(x[k] for x in own.values()) - min(x[k] for x in own.values()) for k in pairs]
    return mean([softplus(-(whole[k] - alpha * wide[k])) for k in pairs])


@every
@pytest.mark.parametrize('gap', ['batch', 'user'])
def test_the_weakest_is_penalised(make, gap):
    model = shaken(make()).eval()
    for alpha in (0.0, 0.7):
        assert weakest_bpr(model, *BATCH, alpha, gap)['bpr'].item() == pytest.approx(
            plain_weakest(model, alpha, gap), rel=1e-4
        )


@pytest.mark.parametrize('gap', ['batch', 'user'])
@pytest.mark.parametrize('kept', [('text',), ()], ids=str)
def test_a_modality_that_no_pair_has_is_not_the_weakest(monkeypatch, kept, gap):
    "With one modality left, or none, there is no gap."
    model = shaken(vbpr()).eval()

    def found(*given):
        return {m: (x, there & (m in kept)) for m, (x, there) in own_margins(*given).items()}

    monkeypatch.setattr(remedies, 'own_margins', found)
    got, plain = (weakest_bpr(model, *BATCH, alpha, gap)['bpr'].item() for alpha in (0.7, 0))
    assert got == pytest.approx(plain, rel=1e-6)


@every
def test_without_a_penalty_it_is_the_loss_of_the_model(make):
    model = shaken(make())
    own = model.losses(*BATCH, seeded())['bpr'].item()
    assert weakest_bpr(model, *BATCH, alpha=0)['bpr'].item() == pytest.approx(own, rel=1e-4)


def lifts_the_weakest_alone(weak_gap=remedies.weak_gap):
    "Whether the gap pulls at no modality but one, by the gradients of the gap at the matrices."
    model = shaken(vbpr())
    margins = {m: torch.where(there, x, x[there].mean()) for m, (x, there) in own_margins(model, *BATCH).items()}
    paths = [model.path(m)[0] for m in VIEWS]
    found = torch.autograd.grad(weak_gap(margins, 'batch').mean(), paths, allow_unused=True)
    pulled = [m for m, g in zip(VIEWS, found) if g is not None and g.any()]
    return pulled == [min(margins, key=lambda m: margins[m].mean().item())]


def test_the_strongest_is_frozen():
    def unfrozen(margins, gap):
        means = torch.stack([x.mean() for x in margins.values()])
        return means.max() - means.min()

    assert lifts_the_weakest_alone()
    assert not lifts_the_weakest_alone(unfrozen)


# ---- teachers


def plain_taught(model, teachers, counts, weight):
    "Cross-entropy with the teachers' preferences by a loop."
    out = {}
    for m, tables in model.alone().items():
        s, t, there = margins_by_loop(tables), margins_by_loop(teachers[m]), known_by_loop(m)
        sure = [1 / (1 + math.exp(-x)) for x in t]
        cost = [p * softplus(-a) + (1 - p) * softplus(a) for a, p, has in zip(s, sure, there) if has]
        out[f'taught {m}'] = weight / 3 * counts[m] * mean(cost)
    return out


def plain_counts(model, temperature, sign=-1):
    "Weights by the effect of leaving a modality out."
    model.eval()
    whole = mean([softplus(-x) for x in margins_by_loop(model.tables())])
    effect = {m: mean([softplus(-x) for x in margins_by_loop(model.without(m))]) - whole for m in VIEWS}
    raised = {m: math.exp(sign * e / temperature) for m, e in effect.items()}
    return {m: 3 * x / sum(raised.values()) for m, x in raised.items()}


@every
def test_teachers_teach_more_where_little_is_heard(make):
    model = shaken(make()).eval()
    experts = teachers_of({m: shaken(make({m: VIEWS[m]}, 3)) for m in VIEWS})
    counts = counterfactual_weights(model, *BATCH, list(VIEWS), 0.1)
    assert counts == pytest.approx(plain_counts(model, 0.1), rel=1e-3)
    assert counts != pytest.approx(plain_counts(model, 0.1, sign=1), rel=1e-3)  # the other way round
    found = taught_bpr(model, *BATCH, teachers=experts, weight=2.0)
    want = plain_taught(model, experts, counts, 2.0)
    assert {n: x.item() for n, x in found.items()} == pytest.approx(want, rel=1e-3)
    sum(found.values()).backward()
    assert not any(t.requires_grad for pair in experts.values() for t in pair)
    alike = counterfactual_weights(model, *BATCH, list(VIEWS), 1e9)
    assert alike == pytest.approx(dict.fromkeys(VIEWS, 1.0), abs=1e-5)


def test_a_student_comes_to_prefer_what_its_teacher_does():
    model, expert = shaken(vbpr()), shaken(vbpr({'text': VIEWS['text']}, 3), 1)
    teachers = teachers_of({'text': expert})
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        sum(taught_bpr(model, *BATCH, teachers=teachers).values()).backward()
        optimiser.step()
    margin, there = own_margins(model, *BATCH)['text']
    want = torch.tensor(margins_by_loop(teachers['text']))
    assert (margin.sigmoid() - want.sigmoid())[there].abs().max() < 0.02


# ---- means


def centred(model, lacking=True):
    "Items of each modality less their mean, over those that have it or, faultily, over all of them."
    found = {}
    for m, (u, i) in model.alone().items():
        has = torch.tensor(VIEWS[m].any(1)) | (not lacking)
        found[m] = u @ torch.where(has[:, None], i - i[has].mean(0), i).T
    u, i = model.views()['ids']
    return (u @ i.T + sum(found.values())).detach()


@pytest.mark.parametrize('name', ['VBPR', 'MMGCL'])
def test_means_are_taken_from_items_that_have_the_modality(name):
    model = shaken(ALL[name]())
    if name == 'VBPR':
        model.contents.content1[torch.tensor(VIEWS['image'].any(1))] += 1.0  # a corner of its own
    u, i = centred_tables(model)
    assert torch.allclose(u @ i.T, centred(model), atol=1e-5)
    assert not torch.allclose(u @ i.T, centred(model, lacking=False), atol=1e-3)
    for m, (_, x) in model.alone().items():
        x = x[torch.tensor(VIEWS[m].any(1))].detach()
        assert mean_gaps(model)[m] == pytest.approx(float(x.mean(0).norm() / x.square().sum(1).mean().sqrt()), rel=1e-4)


@pytest.fixture(scope='module')
def shop():
    return planted(users=60, items=40, each=10, seed=0)


def small(shop, name='VBPR', seed=0, given=None):
    "A small model of a name."
    split, vectors = shop
    return make_model(name, graph_of(split), given or vectors, dim=4, seed=seed)


@pytest.mark.parametrize('name', ['VBPR', 'MMGCL'])
def test_no_ranking_changes_where_every_item_has_everything(shop, name):
    model = small(shop, name)
    fit_graph(model, shop[0], **QUICK)
    ranked = [figure_of(rank_graph(model, shop[0], tables=t), 5, 'NDCG') for t in (None, centred_tables(model))]
    assert np.allclose(*ranked)


# ---- in a training


def remedies_for(shop):
    "Each remedy, ready for `fit_graph`."
    experts = {m: small(shop, given={m: v}, seed=3) for m, v in shop[1].items()}
    return {
        'per': per_modality_bpr,
        'weakest': partial(weakest_bpr, alpha=0.3),
        'taught': partial(taught_bpr, teachers=teachers_of(experts)),
    }


@pytest.mark.parametrize('remedy', ['per', 'weakest', 'taught'])
@pytest.mark.parametrize('name', ['VBPR', 'MMGCN', 'MMGCL', 'SLMRec', 'LATTICE'])
def test_every_model_trains_with_every_remedy(shop, name, remedy, tmp_path):
    "It changes the training, the same again is the same, and a run that was stopped goes on."
    f, ends = remedies_for(shop)[remedy], {}
    more = dict(weights={'bpr': 1.0}) if name == 'SLMRec' else {}
    for way in ('plain', 'whole', 'torn'):
        model, how = small(shop, name), QUICK | more | dict(remedy=None if way == 'plain' else f)
        if way == 'torn':
            fit_graph(small(shop, name), shop[0], **how, folder=tmp_path, callback=lambda r: 'stop')
            how |= dict(folder=tmp_path)
        fit_graph(model, shop[0], **how)
        ends[way] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(ends['whole'], ends['torn']) and ends['whole'].isfinite().all()
    assert not torch.allclose(ends['plain'], ends['whole'], atol=1e-4)
    with pytest.raises(DataError, match='folder= holds a run with'):
        fit_graph(small(shop, name), shop[0], **QUICK | more, folder=tmp_path)


def test_other_teachers_are_another_run(shop, tmp_path):
    for k in (0, 1):
        tables = {'text': (torch.full((60, 2), float(k)), torch.ones(40, 2))}
        how = QUICK | dict(remedy=partial(taught_bpr, teachers=tables), folder=tmp_path)
        if k:
            with pytest.raises(DataError, match='given'):
                fit_graph(small(shop), shop[0], **how)
        else:
            run = fit_graph(small(shop), shop[0], **how)
            assert run.settings['remedy'] == 'taught_bpr' and 'by bpr + norm, taught_bpr' in repr(run)


def test_a_step_chooses_no_neighbours(shop, monkeypatch):
    "LATTICE chooses them when an epoch begins, and to rank; remedies take those."
    counts = {}
    for name, f in {'none': None, **remedies_for(shop)}.items():
        model, calls = small(shop, 'LATTICE'), []
        chosen = type(model).neighbours
        monkeypatch.setattr(type(model), 'neighbours', lambda self: calls.append(1) or chosen(self))
        fit_graph(model, shop[0], **QUICK, remedy=f)
        monkeypatch.undo()
        counts[name] = len(calls)
    assert len(set(counts.values())) == 1
    one, two = tables_in_step(model.eval()), model.tables()
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_what_does_not_fit_is_told(shop):
    model, split = small(shop), shop[0]
    with pytest.raises(DataError, match="weights=.'bpr': 1.0"):
        fit_graph(small(shop, 'SLMRec'), split, **QUICK, remedy=weakest_bpr)
    with pytest.raises(DataError, match='reads no contents'):
        fit_graph(make_model('LightGCN', graph_of(split)), split, **QUICK, remedy=per_modality_bpr)
    with pytest.raises(DataError, match='teachers='):
        fit_graph(model, split, **QUICK, remedy=taught_bpr)
    for f, said in [
        (partial(per_modality_bpr, weight={'texts': 1.0}), "did you mean 'text'"),
        (partial(per_modality_bpr, weight=-1.0), 'weight'),
        (partial(weakest_bpr, alpha=math.nan), 'alpha'),
        (partial(weakest_bpr, gap='users'), "did you mean 'user'"),
    ]:
        with pytest.raises(ValueError, match=said):
            fit_graph(model, split, **QUICK, remedy=f)
    with pytest.raises(DataError, match='no sum'):
        centred_tables(small(shop, 'LATTICE'))


def test_a_loss_of_a_step_is_the_sum_of_what_it_names():
    model = shaken(vbpr())
    own = model.losses(*BATCH, None)
    found = step_loss(model, BATCH, None, model.weights, partial(per_modality_bpr, weight=2.0))
    want = own['bpr'] + 1e-4 * own['norm'] + sum(per_modality_bpr(model, *BATCH, weight=2.0).values())
    assert found.item() == pytest.approx(want.item(), rel=1e-5)
    replaced = step_loss(model, BATCH, None, {'bpr': 0.5, 'norm': 0.0}, weakest_bpr)
    assert replaced.item() == pytest.approx(0.5 * weakest_bpr(model, *BATCH)['bpr'].item(), rel=1e-5)


def test_alone_in_vbpr_takes_the_users_half_for_contents():
    "The trap of a user's first half, which is for ids, in the place of the second."

    class Crossed(VBPR):
        "Contents with the half for ids."

        def alone(self):
            "By the other half."
            return {m: (self.user[:, : self.item.shape[1]], i) for m, (_, i) in super().alone().items()}

    for cls, right in ((VBPR, True), (Crossed, False)):
        model = shaken(vbpr(cls=cls))
        u, i = model.views()['ids']
        total = u @ i.T + sum(a @ b.T for a, b in model.alone().values())
        assert torch.allclose(total, model.tables()[0] @ model.tables()[1].T, atol=1e-5) == right
