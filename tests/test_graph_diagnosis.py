"""A graph recommender asked which modality it listens to: against models whose answer is known, and against faulty
ways to ask."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_worlds import planted, selling
from test_graph_multi import BATCH, GRAPH, MAKERS, VIEWS, seeded, shaken

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.data import leave_one_out, shares
from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.graph import diagnosis
from vlm2rec_lab.graph.diagnosis import (
    GradientWatch,
    alone_gains,
    exchanged_vectors,
    gradient_norms,
    graph_report,
    left_gains,
    moved_by,
    views_of,
)
from vlm2rec_lab.graph.fit import evaluate_graph, figure_of, fit_graph, rank_graph, tables_of
from vlm2rec_lab.graph.graph import graph_of
from vlm2rec_lab.graph.make import GRAPH_MODELS, make_model, reads_contents
from vlm2rec_lab.graph.models import VBPR, LightGCN
from vlm2rec_lab.metrics import evaluate
from vlm2rec_lab.shop.rows import Rows

pytestmark = [
    pytest.mark.filterwarnings('ignore::vlm2rec_lab.base.errors.DataWarning'),
    pytest.mark.filterwarnings('ignore::UserWarning'),
]
QUICK = dict(batch=256, lr=0.02, epochs=25, patience=5, metric='NDCG@10', progress=False)
FEW = dict(k=10, permutations=5, bootstrap=200)
READERS = [name for name in GRAPH_MODELS if reads_contents(name)]


def vbpr(views=VIEWS, seed=1, cls=VBPR, **kw):
    "A small VBPR, or a faulty one."
    return cls(GRAPH.users, GRAPH.items, views, **dict(dim=4, seed=seed) | kw)


ALL = {'VBPR': vbpr, **MAKERS}
every = pytest.mark.parametrize('make', ALL.values(), ids=ALL)


# ---- what a modality says by itself


def others_in(make, m, cls=None):
    "Whether ids of items or the contents of other modalities change what one says by itself."
    kw = {} if cls is None else dict(cls=cls)
    one = shaken(make(**kw))
    rng = np.random.default_rng(9)
    other = make({n: v if n == m else rng.permutation(v) for n, v in VIEWS.items()}, **kw)
    other.load_state_dict(
        {a: v for a, v in one.state_dict().items() if not a.split('.')[-1].startswith('content')}, strict=False
    )
    if not hasattr(one, 'layer'):  # LATTICE lets the ids of neighbours speak
        with torch.no_grad():
            other.item += 1.0
    return not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one.alone()[m], other.alone()[m]))


class Leaky(VBPR):
    "A modality by itself that has ids in it."

    def alone(self):
        "All that is left without the others."
        return {m: self.without(*(n for n in self.modalities if n != m)) for m in self.modalities}


@every
def test_alone_is_alone(make):
    assert not any(others_in(make, m) for m in VIEWS)
    model = shaken(make())
    assert list(model.alone()) == list(VIEWS)
    for m, (u, i) in model.alone().items():
        assert len(u) == GRAPH.users and len(i) == GRAPH.items and u.shape[1] == i.shape[1]
        assert len(model.path(m)) > 0
    with pytest.raises(DataError, match="did you mean 'text'"):
        model.path('texts')


def test_ids_that_are_left_in_are_seen():
    assert others_in(vbpr, 'text', Leaky)


@every
def test_alone_hears_its_own_contents(make):
    one = make()
    other = make({n: v[::-1].copy() if n == 'text' else v for n, v in VIEWS.items()})
    said, turned = one.alone(), other.alone()
    assert not torch.allclose(said['text'][1], turned['text'][1])
    assert torch.allclose(said['image'][1], turned['image'][1], atol=1e-6)


@every
def test_paths_serve_one_modality(make):
    "Contents of zero give a matrix no gradient; a path of one modality is in no other's."
    model = shaken(make())
    paths = {m: {id(p) for p in model.path(m)} for m in VIEWS}
    assert not paths['text'] & paths['image'] and not paths['text'] & paths['front.sound']
    assert all(ids <= {id(p) for p in model.parameters()} for ids in paths.values())
    norms = gradient_norms(model, BATCH)
    model.zero_grad()
    losses = model.losses(*BATCH, seeded())
    sum(model.weights[name] * value for name, value in losses.items()).backward()
    for m in VIEWS:
        squares = sum(p.grad.square().sum() for p in model.path(m) if p.grad is not None)
        assert norms[m] == pytest.approx(float(squares) ** 0.5, rel=1e-4)
    assert all(x > 0 for x in norms.values())


def test_summed_vectors_are_no_place_to_look():
    "At vectors that are added all modalities have one gradient, whatever they say; at their paths they do not."
    model = shaken(vbpr())
    said = {m: x.detach().requires_grad_() for m, (_, x) in model.alone().items()}
    u, p, n = BATCH
    items = torch.cat([model.item, sum(said.values())], 1)
    (-F.logsigmoid((model.user[u] * (items[p] - items[n])).sum(1))).mean().backward()
    assert len({round(float(x.grad.norm()), 6) for x in said.values()}) == 1
    assert len({round(x, 6) for x in gradient_norms(model, BATCH).values()}) == 3


# ---- a small planted shop


@pytest.fixture(scope='module')
def shop():
    split, vectors = planted(users=200, items=80, each=10, noise={'text': 0.2, 'image': 0.4}, seed=0)
    return split, vectors


def trained(shop, name='VBPR', given=None, **how):
    "A model of a name."
    split, vectors = shop
    model = make_model(name, graph_of(split), given or vectors, dim=8, seed=0)
    fit_graph(model, split, **QUICK | how)
    return model


@pytest.fixture(scope='module')
def model(shop):
    return trained(shop)


@pytest.mark.parametrize('name', READERS)
def test_watching_changes_nothing(shop, name):
    split, vectors = shop
    ends = []
    for watched in (True, False):
        net = make_model(name, graph_of(split), vectors, dim=4, seed=0)
        watch = GradientWatch(net, split, 64) if watched else None
        fit_graph(net, split, **QUICK | dict(epochs=2), callback=watch)
        ends.append([p.detach() for p in net.parameters()])
        if watched:
            assert watch.frame.columns.tolist() == ['epoch', 'grad/text', 'grad/image']
            assert watch.frame.epoch.tolist() == [1, 2] and (watch.frame.iloc[:, 1:] > 0).all().all()
    assert all(torch.equal(a, b) for a, b in zip(*ends))


# ---- views that add up


@pytest.mark.parametrize('name', ['VBPR', 'MMGCL'])
@pytest.mark.parametrize('part', ['valid', 'test'])
def test_views_add_up_to_the_score(shop, name, part):
    net = trained(shop, name, epochs=3)
    split, v = shop[0], views_of(net, shop[0], part)
    rows = getattr(split, part)
    u, i = tables_of(net)
    total = sum(v['sequences'][m] @ v['items'][m].T for m in v['items'])
    assert list(v['items']) == ['ids', 'text', 'image']
    assert np.abs(total - u[rows.users] @ i.T).max() < 1e-5
    found = evaluate(**v, k=10, progress=False)
    assert found.per_user['fused']['NDCG@10'] == pytest.approx(figure_of(rank_graph(net, split, part), 10, 'NDCG'))
    for m, gain in alone_gains(net, rows, 10).items():
        assert found.per_user[m]['NDCG@10'] == pytest.approx(gain)


def test_views_without_equal_lengths_rank_otherwise(shop, model, monkeypatch):
    "Cosines of the plain parts are another ranking than the model's."
    whole = figure_of(rank_graph(model, shop[0]), 10, 'NDCG')
    monkeypatch.setattr(diagnosis, 'equally_long', lambda u, i: (u, i, 1.0))
    other = evaluate(**views_of(model, shop[0]), k=10, progress=False).per_user['fused']['NDCG@10']
    assert np.abs(other - whole).max() > 0.1


def test_views_that_there_are_not(shop, model):
    split, vectors = shop
    for name in ('MMGCN', 'SLMRec', 'LATTICE'):
        with pytest.raises(DataError, match='no sum of what single modalities score'):
            views_of(make_model(name, graph_of(split), vectors, dim=4), split)
    with pytest.raises(DataError, match="did you mean 'test'"):
        views_of(model, split, 'tests')
    named = make_model('VBPR', graph_of(split), {'ids': vectors['text']}, dim=4)
    with pytest.raises(DataError, match="'ids'"):
        views_of(named, split)


def test_collapse_report_takes_views(shop, model):
    found = collapse_report(**views_of(model, shop[0]), k=10, permutations=2, bootstrap=100, missing=(), progress=False)
    assert list(found.modalities) == ['ids', 'text', 'image']
    assert found.per_user['fused'] == pytest.approx(figure_of(rank_graph(model, shop[0]), 10, 'NDCG'))


# ---- verdicts where the truth is known


def changed(model, **factors):
    "The model with a modality's matrix multiplied."
    other = copy.deepcopy(model)
    with torch.no_grad():
        for m, by in factors.items():
            other.path(m)[0].mul_(by)
    return other


def verdicts(report):
    return {m: (x['verdict'], x['reason']) for m, x in report.data['modalities'].items()}


def test_both_are_heard(shop, model):
    assert verdicts(graph_report(model, shop[0], **FEW)) == dict.fromkeys(('text', 'image'), ('healthy', 'used'))


def test_a_modality_that_is_hushed_is_under_used(shop, model):
    "A thousandth of an image ranks alone as the whole does, and nobody hears it."
    quiet = changed(model, image=1e-3)
    report = graph_report(quiet, shop[0], **FEW)
    assert verdicts(report)['image'] == ('under-used', 'ignored')
    assert verdicts(report)['text'][0] == 'healthy'
    assert 'remedy=per_modality_bpr' in report.data['modalities']['image']['advice']
    loud = graph_report(model, shop[0], **FEW)
    assert report.per_row['image'].mean() == pytest.approx(loud.per_row['image'].mean(), abs=1e-3)


def test_a_modality_that_is_lost_is_collapsed(shop, model):
    gone = changed(model, image=0.0)
    with_reference = graph_report(gone, shop[0], model, **FEW)
    assert verdicts(with_reference)['image'] == ('collapsed', 'lost')
    assert with_reference.data['verdict'] == 'collapsed'
    assert 'does not surely listen to image (+0 % [+0, +0])' in with_reference.data['headline']
    only_text = graph_report(gone, shop[0], {'text': model}, **FEW)
    assert 'reference' not in only_text.data['modalities']['image']['evidence']


def test_noise_was_never_anything(shop):
    split, vectors = shop
    given = vectors | {'sound': np.random.default_rng(5).normal(size=(80, 4)).astype(np.float32)}
    report = graph_report(
        trained(shop, given=given), split, {'sound': trained(shop, given={'sound': given['sound']})}, **FEW
    )
    assert verdicts(report)['sound'][0] in ('uninformative', 'undecided')
    assert verdicts(report)['text'][0] == 'healthy'


def test_a_reference_along_purchases_is_noted(shop, model):
    "Purchases reach what never told anything, too: what is called lost may be theirs."
    flows, said = trained(shop, 'MMGCL'), 'Vectors of a reference flow as well'
    assert any(said in x for x in graph_report(flows, shop[0], flows, **FEW).data['notes'])
    for report in (graph_report(flows, shop[0], **FEW), graph_report(model, shop[0], model, **FEW)):
        assert not any(said in x for x in report.data['notes'])


def test_memory_is_not_called_content():
    """Vectors that name every item let a model learn by heart: without a control they look alive, with one they do
    not. What a control did not exchange is not judged by it."""
    shop = split, vectors = planted(users=400, items=80, each=12, noise={'text': 0.2, 'image': 0.4}, seed=2)
    names, how = {'text': vectors['text'], 'name': np.eye(80, dtype=np.float32)}, dict(epochs=30, patience=None)
    net = trained(shop, given=names, **how)
    assert verdicts(graph_report(net, split, **FEW))['name'] == ('healthy', 'used')
    found = {}
    for m in names:
        control = trained(shop, given=exchanged_vectors(names, modalities=[m]), **how)
        report = graph_report(net, split, control=control, **FEW)
        kinds = {n: x.get('kind') for n, x in report.data['modalities'].items()}
        assert kinds.pop('name' if m == 'text' else 'text') is None
        found[m] = kinds[m], verdicts(report)[m], f'contents exchanged ({m})' in report.data['ranking_said']
    assert found['name'] == ('memory', ('undecided', 'memory, cold unknown'), True)
    assert found['text'][0] in ('content', 'both') and found['text'][1:] == (('healthy', 'used'), True)


def test_few_rows_say_nothing(shop, model):
    split = dataclasses.replace(shop[0], test=shop[0].test.take(np.arange(12)))
    assert {v for v, _ in verdicts(graph_report(model, split, **FEW)).values()} == {'undecided'}
    empty = dataclasses.replace(shop[0], test=shop[0].test.take(np.arange(0)))
    with pytest.raises(DataError, match='test has no rows'):
        graph_report(model, empty, **FEW)


def test_a_model_that_knows_nothing(shop):
    split, vectors = shop
    report = graph_report(make_model('VBPR', graph_of(split), vectors, dim=4), split, **FEW)
    assert {v for v, _ in verdicts(report).values()} <= {'undecided', 'collapsed'}


# ---- who asks, and what sells


def sold(name='VBPR', report=None, alone=False, **kw):
    "What is said of a model of a shop where some items sell more than others."
    split, vectors = selling(**kw)
    shop = split, vectors
    before = {m: trained(shop, name, {m: v}) for m, v in vectors.items()} if alone else None
    return graph_report(trained(shop, name), split, before, **FEW | (report or {}))


@pytest.mark.parametrize('seed', [1, 2])
@pytest.mark.parametrize('alone', [False, True])
def test_what_sells_is_not_who_asks(seed, alone):
    report = sold(seed=seed, alone=alone)
    assert verdicts(report) == {'text': ('healthy', 'used'), 'image': ('collapsed', 'popular')}
    x = report.data['modalities']['image']
    assert 'the same to every user' in x['sentence'] and 'than what sells' in x['advice']
    assert x['evidence']['personal']['high'] < 0.25 < report.data['modalities']['text']['evidence']['personal']['low']
    assert 'listens to' in report.data['headline'] and 'image' in report.data['headline']


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_who_knows_users_is_not_dead_beside_what_sells(seed):
    found = verdicts(sold(sells=4, like=1, seed=seed))
    assert found['text'][0] in ('healthy', 'undecided')
    assert found['image'] in [('collapsed', 'popular'), ('undecided', 'popular unclear')]
    known = verdicts(sold(sells=4, like=1, seed=seed, alone=True))
    assert known['text'][0] in ('healthy', 'undecided') and known['image'][0] != 'healthy'


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_where_nobody_tells_users_apart_nobody_is_healthy(seed):
    for image in ('sales', 'noise'):
        found = verdicts(sold(sells=2, like=0, text=None, image=image, seed=seed))
        assert {v for v, _ in found.values()} <= {'collapsed', 'undecided'}, image


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_two_that_say_the_same_are_both_heard(seed):
    found = verdicts(sold(sells=0, image='copy', seed=seed))
    assert {v for v, _ in found.values()} == {'healthy'}


def test_contents_that_tell_what_sells_are_not_called_content():
    shop = split, vectors = selling(seed=1)
    control = trained(shop, given=exchanged_vectors(vectors))
    said = graph_report(trained(shop), split, control=control, **FEW).data['modalities']
    assert said['image']['reason'] == 'popular' and said['image']['memory'].endswith('it knows what sells.')
    assert said['text']['memory'].endswith('so this is content.')


def test_one_that_another_drowns_is_not_heard(shop, model):
    assert verdicts(graph_report(changed(model, image=1e3), shop[0], **FEW))['text'] == ('under-used', 'ignored')


def test_one_that_is_needed_is_not_called_weak_for_want_of_rows():
    split, vectors = planted(users=60, items=120, each=12, noise={'text': 0.3, 'image': 0.3}, seed=2)
    for x in graph_report(trained((split, vectors)), split, **FEW).data['modalities'].values():
        assert x['reason'] != 'unique' or x['evidence']['ratio']['value'] < 0.5


class Table:
    "A model whose scores are written out, by modality."

    weights = {'bpr': 1.0}

    def __init__(self, parts):
        self.parts, self.modalities, self.training = parts, tuple(parts), False

    def eval(self):
        "As it is."

    def train(self, mode):
        "As it is."

    def vectors(self, modality):
        "Its scores."
        return self.parts[modality]

    def alone(self):
        "Each by itself."
        return {m: (x, torch.eye(x.shape[1])) for m, x in self.parts.items()}

    def without(self, *left):
        "The sum of the others."
        parts = [0 * x if m in left else x for m, x in self.parts.items()]
        return sum(parts), torch.eye(parts[0].shape[1])

    def tables(self):
        "The sum of all."
        return self.without()


@pytest.mark.parametrize('many, said', [(100, ('under-used', 'ignored')), (140, ('undecided', 'popular unclear'))])
def test_what_is_not_better_than_chance_measures_nobody(shop, many, said):
    """Many customers want one item, which the image finds for them, and nothing else: nobody knows whether by chance.
    The text finds all a little, and the image is louder."""
    rng = np.random.default_rng(0)
    wish = np.where(np.arange(200) < many, 0, rng.integers(1, 80, 200))
    none = dict(history=np.zeros((200, 0), int), seen_offsets=np.zeros(201, int), seen_items=[])
    split = dataclasses.replace(shop[0], test=Rows(users=np.arange(200), targets=wish, **none))
    wanted, noise = np.eye(80)[wish], rng.normal(size=(2, 200, 80))
    parts = {'text': 0.6 * wanted + noise[0], 'image': 90 * wanted * (wish == 0)[:, None] + 10 * noise[1]}
    model = Table({m: torch.tensor(x).float() for m, x in parts.items()})
    assert verdicts(graph_report(model, split, **FEW)) == {'text': said, 'image': ('undecided', 'at chance')}


# ---- figures


@pytest.mark.parametrize('name', READERS)
def test_figures_are_those_of_the_ranking(shop, name):
    net, (split, _) = trained(shop, name, epochs=2), shop
    report = graph_report(net, split, **FEW)
    whole, bare = (
        evaluate_graph(net, split, k=10, tables=t).loc['all', 'NDCG@10'] for t in (None, net.without('text'))
    )
    e = report.data['modalities']['text']['evidence']
    assert report.per_row['fused'].mean() == pytest.approx(whole)
    assert e['without']['value'] == pytest.approx(bare)
    assert e['drop']['value'] == pytest.approx(whole - bare)
    assert e['change']['value'] == pytest.approx(bare / whole - 1)
    assert e['alone']['value'] == pytest.approx(
        evaluate_graph(net, split, k=10, tables=net.eval().alone()['text']).loc['all', 'NDCG@10']
    )
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert report.to_frame().loc['text', 'alone'] == e['alone']['value']


def test_intervals_are_paired(shop, model):
    "Losing the same at every customer is sure, however customers differ."
    e = graph_report(model, shop[0], **FEW).data['modalities']['text']['evidence']
    whole = figure_of(rank_graph(model, shop[0]), 10, 'NDCG')
    lost = whole - left_gains(model, shop[0].test, 10)['text']
    width = 3.92 * lost.std() / len(lost) ** 0.5
    assert e['drop']['high'] - e['drop']['low'] == pytest.approx(width, rel=0.25)


def test_moves_are_shares_of_variance(model):
    users = np.arange(40)
    plain = moved_by(model, users)
    for block in (80, 90, 1000):
        assert all(np.allclose(plain[m], x, atol=1e-9) for m, x in moved_by(model, users, block).items())
    assert moved_by(changed(model, image=0.0), users)['image'].max() < 1e-6
    loud = moved_by(changed(model, image=1e4), users)
    assert loud['image'].mean() > 0.9 > 0.1 > loud['text'].mean()


def test_other_splits(shop, model):
    "Rows that ask for one item, and rows that ask for sets of several."
    rng = np.random.default_rng(0)
    from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
    from vlm2rec_lab.shop.dataset import Dataset

    lists = [rng.permutation(40)[:14].tolist() for _ in range(60)]
    data = Dataset(Catalogue([f'i{k}' for k in range(40)], {}, {}), Interactions.of_sequences(lists), 'any')
    views = {'text': rng.normal(size=(40, 4)), 'image': rng.normal(size=(40, 5))}
    for split in (leave_one_out(data), shares(data, 0.2, 0.3)):
        net = make_model('MMGCL', graph_of(split), views, dim=4)
        report = graph_report(net, split, part='valid', **FEW)
        assert report.data['rows'] == len(split.valid) and 'valid:' in report.data['protocol']
        v = views_of(net, split, 'valid')
        assert (v['sets'] is None) == (split.valid.sets is None)
        whole = evaluate(**v, k=10, progress=False).per_user['fused']['NDCG@10']
        assert whole == pytest.approx(report.per_row['fused'])


def test_markdown_and_html_are_safe(shop):
    split, vectors = shop
    net = make_model('VBPR', graph_of(split), {'a|b <i>': vectors['text']}, dim=4)
    report = graph_report(net, split, name='<b>mine</b>', **FEW)
    assert '<b>mine' not in report.to_markdown() and '<i>' not in report._repr_html_()
    assert 'a\\|b' in report.to_markdown()
    assert repr(report).startswith('<b>mine</b>\n')


def test_what_does_not_fit_is_told(shop, model):
    split, vectors = shop
    small = VBPR(3, 80, vectors, dim=4)
    for kw, said in [
        (dict(before=small), 'before has 3 users and 80 items'),
        (dict(control=small), 'control has 3 users'),
        (dict(before={'text': LightGCN(graph_of(split))}), 'reads no contents'),
        (dict(k=0), 'k=0'),
        (dict(bootstrap=1), 'bootstrap=1'),
    ]:
        with pytest.raises(DataError, match=said):
            graph_report(model, split, **FEW | kw)
    with pytest.raises(DataError, match='model has 3 users'):
        graph_report(small, split, **FEW)
