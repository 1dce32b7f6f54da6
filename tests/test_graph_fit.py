"""Training and ranking of graph recommenders: golden lists, nothing stale, resumed runs, and what must be refused."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.data import Catalogue, Dataset, Interactions, shares
from vlm2rec_lab.graph.fit import evaluate_graph, fit_graph, rank_graph, tables_of
from vlm2rec_lab.graph.graph import dense, drop_edges, graph_of
from vlm2rec_lab.graph.models import BPRMF, VBPR, LightGCN, pair_losses
from vlm2rec_lab.training.history import Interrupted

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.base.errors.DataWarning')
QUICK = dict(batch=64, lr=0.02, epochs=6, patience=None, metric='Recall@5', progress=False)
MODELS = ('BPRMF', 'LightGCN', 'VBPR')


def two_tastes(users=60, items=40, each=12, unsold=0, seed=0):
    "Customers who keep to one half of the shelf; at its end items that nobody has."
    rng, half = np.random.default_rng(seed), items // 2
    lists = [(rng.permutation(half)[:each] + half * (u % 2)).tolist() for u in range(users)]
    ids = [f'i{k}' for k in range(items + unsold)]
    return Dataset(Catalogue(ids, {}, {}), Interactions.of_sequences(lists), 'two tastes')


@pytest.fixture(scope='module')
def split():
    return shares(two_tastes())


def views(items=40):
    rng = np.random.default_rng(1)
    taste = np.repeat(np.eye(2), items // 2, 0)
    return {
        'text': taste @ rng.normal(size=(2, 6)) + rng.normal(0, 0.1, (items, 6)),
        'image': rng.normal(size=(items, 5)),
    }


def make(name, split, seed=0):
    "A small model."
    users, items = len(split.user_items[0]) - 1, len(split.catalogue)
    if name == 'LightGCN':
        return LightGCN(graph_of(split), 8, 2, seed=seed)
    return BPRMF(users, items, 8, seed=seed) if name == 'BPRMF' else VBPR(users, items, views(items), 4, seed=seed)


def numbers(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def top(model, split, users=(0, 1, 2), k=5):
    "The first items of some users, those of training left out."
    u, v = tables_of(model)
    s = u @ v.T
    for a in users:
        s[a, split.user_items[1][split.user_items[0][a] : split.user_items[0][a + 1]]] = -np.inf
    return [np.argsort(-s[a], kind='stable')[:k].tolist() for a in users]


GOLDEN = {
    'BPRMF': [[12, 17, 18, 1, 5], [22, 34, 33, 32, 25], [15, 13, 3, 1, 6]],
    'LightGCN': [[1, 9, 14, 8, 12], [34, 32, 25, 33, 39], [1, 13, 6, 2, 14]],
    'VBPR': [[18, 14, 12, 7, 9], [32, 34, 22, 20, 35], [13, 14, 2, 3, 0]],
}


@pytest.mark.parametrize('name', MODELS)
def test_golden_lists(name, split):
    "What a short seeded training recommends to three users; a neutral change reproduces it."
    model = make(name, split)
    fit_graph(model, split, **QUICK)
    assert top(model, split) == GOLDEN[name]


@pytest.mark.parametrize('name', MODELS)
def test_learns_the_two_tastes(name, split):
    model = make(name, split)
    before = evaluate_graph(model, split, k=8).loc['all', 'Recall@8']
    fit_graph(model, split, **QUICK | dict(epochs=10))
    after = evaluate_graph(model, split, k=8).loc['all', 'Recall@8']
    assert after > 0.7 > before  # of 29 candidates 8 are of the own half


def test_the_rate_falls_from_epoch_to_epoch(split):
    one, still, on = (make('BPRMF', split) for _ in range(3))
    fit_graph(one, split, **QUICK | dict(epochs=1))
    fit_graph(still, split, **QUICK | dict(epochs=3), fall=1e-30)
    fit_graph(on, split, **QUICK | dict(epochs=3))
    assert torch.equal(numbers(one), numbers(still)) and not torch.equal(numbers(one), numbers(on))


# ---- nothing is stale


def fresh(model):
    "Scores from the parameters alone, without the model's `tables`."
    if isinstance(model, LightGCN):
        U = model.graph.users
        A = torch.zeros(U + model.graph.items, U + model.graph.items)
        A[:U, U:] = dense(model.graph.to_users)
        A = A + A.T
        x = torch.cat([model.user, model.item])
        x = sum(torch.linalg.matrix_power(A, k) @ x for k in range(model.layers + 1)) / (model.layers + 1)
        return x[:U] @ x[U:].T
    if isinstance(model, VBPR):
        c, half = model.contents, model.item.shape[1]
        said = sum(c.vectors(m) @ w for m, w in zip(c.modalities, c.matrices)) + c.shift
        return model.user[:, :half] @ model.item.T + model.user[:, half:] @ said.T
    return model.user @ model.item.T


def stale_by(model, split):
    "How far what is ranked lies from the parameters after a step of training, for the largest score."
    model.train()
    batch = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]), torch.tensor([30, 31, 9])
    before = fresh(model).detach().clone()
    optimiser = torch.optim.SGD(model.parameters(), 20.0)
    model.losses(*batch, torch.Generator().manual_seed(0))['bpr'].backward()
    optimiser.step()
    assert (fresh(model) - before).abs().max() > 1e-3
    users, items = tables_of(model)
    scores = fresh(model).detach().numpy()
    return np.abs(users @ items.T - scores).max() / np.abs(scores).max()


class Cached(LightGCN):
    "The trap: what is ranked is left over from the last batch."

    def tables(self):
        return self.kept if hasattr(self, 'kept') else super().tables()

    def losses(self, users, positives, negatives, generator):
        found = super().tables()
        self.kept = tuple(t.detach() for t in found)
        return pair_losses(found, (self.user, self.item), users, positives, negatives)


@pytest.mark.parametrize('name', MODELS)
def test_tables_are_never_stale(name, split):
    assert stale_by(make(name, split), split) < 1e-6


def test_a_cached_table_is_caught(split):
    assert stale_by(Cached(graph_of(split), 8, 2), split) > 1e-3


def test_ranking_follows_the_parameters(split):
    model = make('LightGCN', split)
    a = rank_graph(model, split)
    with torch.no_grad():
        model.item.mul_(-1)
    b = rank_graph(model, split)
    assert (a.greater != b.greater).any()
    assert (rank_graph(model, split, tables=model.tables()).greater == b.greater).all()


# ---- seeds, and runs that were stopped


@pytest.mark.parametrize('name', MODELS)
def test_a_stopped_run_goes_on_bit_for_bit(name, split, tmp_path):
    how = QUICK | dict(epochs=5, fall=0.9, every=2)
    whole = make(name, split)
    a = fit_graph(whole, split, **how)
    for stop in (1, 2, 4):
        fit_graph(
            make(name, split), split, **how, folder=tmp_path, callback=lambda r: 'stop' if len(r) == stop else None
        )
    torn = make(name, split)
    b = fit_graph(torn, split, **how, folder=tmp_path)
    columns = ['loss', 'Recall@5']
    assert np.array_equal(a.frame[columns], b.frame[columns], equal_nan=True) and b.finished
    assert torch.equal(numbers(whole), numbers(torn))
    again = make(name, split)
    fit_graph(again, split, **how, folder=tmp_path)  # finished: read, not run
    assert torch.equal(numbers(again), numbers(torn))


def test_the_seed_is_all_that_counts(split):
    runs = []
    for outside, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(outside)
        model = make('LightGCN', split)
        runs.append(fit_graph(model, split, **QUICK | dict(epochs=2), seed=seed).frame.loss.tolist())
    assert runs[0] == runs[1] != runs[2]


def test_an_interrupt_ends_after_the_epoch(split, tmp_path):
    import signal

    def stop(records):
        if len(records) == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match='the same call goes on') as e:
        fit_graph(make('BPRMF', split), split, **QUICK, folder=tmp_path, callback=stop)
    assert len(e.value.run.frame) == 3 or len(e.value.run.frame) == 2
    run = fit_graph(make('BPRMF', split), split, **QUICK, folder=tmp_path)
    assert len(run.frame) == QUICK['epochs']


def test_the_best_state_on_validation_is_put_back(split):
    model = make('BPRMF', split)
    run = fit_graph(model, split, **QUICK | dict(epochs=40, patience=3, lr=0.1))
    assert len(run.frame) == run.best + 3 < 40
    assert evaluate_graph(model, split, 'valid', 5).loc['all', 'Recall@5'] == pytest.approx(run.frame['Recall@5'].max())


def test_another_run_is_refused(split, tmp_path):
    how = QUICK | dict(epochs=1)
    fit_graph(make('LightGCN', split), split, **how, folder=tmp_path)
    for change, said in ((dict(lr=0.1), 'lr='), (dict(weights={'norm': 1.0}), 'weights='), (dict(seed=1), 'seed=')):
        with pytest.raises(DataError, match=said):
            fit_graph(make('LightGCN', split), split, **how | change, folder=tmp_path)
    with pytest.raises(DataError, match='start='):  # one layer more is another model, though its numbers are the same
        fit_graph(LightGCN(graph_of(split), 8, 3), split, **how, folder=tmp_path)
    with pytest.raises(DataError, match=r"item='\d+ x 8' \(now '\d+ x 6'\)"):
        fit_graph(LightGCN(graph_of(split), 6), split, **how, folder=tmp_path)
    other = shares(two_tastes(seed=5))
    with pytest.raises(DataError, match=r'split=other than now \(rows or contents of the split\)'):
        fit_graph(make('LightGCN', other), other, **how, folder=tmp_path)


# ---- odd data


def test_a_user_without_validation_items():
    data = two_tastes()
    lists = [list(s) for s in data.interactions.sequences]
    lists[3] = lists[3][:2]  # a test item, no validation
    lists[4] = lists[4][:1]  # trained on only
    odd = shares(Dataset(data.catalogue, Interactions.of_sequences(lists), 'odd'))
    assert 3 not in odd.valid.users and 3 in odd.test.users and 4 not in odd.test.users
    for name in MODELS:
        run = fit_graph(make(name, odd), odd, **QUICK)
        assert run.frame['Recall@5'].notna().all()
    assert len(rank_graph(make('BPRMF', odd), odd)) == 59


def test_no_validation_at_all():
    split = shares(two_tastes(), valid=0)
    run = fit_graph(make('BPRMF', split), split, **QUICK | dict(epochs=2))
    assert run.frame['Recall@5'].isna().all() and run.best == 2 and len(split.valid) == 0
    assert run.top is None and 'nan' not in repr(run) and 'nobody looked at validation Recall@5' in repr(run)


def test_items_that_nobody_has_are_negatives_too():
    "And only those that the user lacks: who has an item of training is never set against it."
    split, met = shares(two_tastes(unsold=5)), []

    class Watched(BPRMF):
        def losses(self, users, positives, negatives, generator):
            met.append(torch.stack([users, positives, negatives]))
            return super().losses(users, positives, negatives, generator)

    fit_graph(Watched(60, 45, 4), split, **QUICK)
    users, positives, negatives = torch.cat(met, 1)
    assert set(range(40, 45)) <= set(negatives.tolist())
    offsets, have = split.user_items
    pairs = [(u, i) for u, (a, b) in enumerate(itertools.pairwise(offsets)) for i in have[a:b].tolist()]
    assert sorted(zip(users.tolist(), positives.tolist())) == sorted(pairs * QUICK['epochs'])
    assert not {*zip(users.tolist(), negatives.tolist())} & {*pairs}


# ---- the contract


class Two(BPRMF):
    "A model with a loss more, and something to do before an epoch."

    def __init__(self, *a, **k):
        super().__init__(*a, **k)
        self.weights, self.begun = {**self.weights, 'spread': 0.5}, []

    def begin_epoch(self, epoch, generator):
        self.begun.append(epoch)

    def losses(self, users, positives, negatives, generator):
        noise = torch.rand(len(users), 1, generator=generator)
        return {**super().losses(users, positives, negatives, generator), 'spread': (noise * self.user[users]).mean()}


def test_losses_are_weighted_and_epochs_begun(split):
    model = Two(60, 40, 8)
    run = fit_graph(model, split, **QUICK | dict(epochs=3))
    assert model.begun == [1, 2, 3] and run.settings['weights'] == {'bpr': 1.0, 'norm': 1e-4, 'spread': 0.5}
    off, plain = Two(60, 40, 8), BPRMF(60, 40, 8)
    a = fit_graph(off, split, **QUICK | dict(epochs=1), weights={'spread': 0.0})
    assert a.settings['weights']['spread'] == 0
    b = fit_graph(plain, split, **QUICK | dict(epochs=1))
    assert a.frame.loss[0] == pytest.approx(b.frame.loss[0], rel=0.02)  # the noise was drawn, and counts nothing


def test_mistakes_are_told(split):
    class Bare(BPRMF):
        def losses(self, *batch):
            return {'norm': self.user.sum()}

    class More(BPRMF):
        def losses(self, *batch):
            return {**super().losses(*batch), 'nrom': self.user.sum()}

    for model, said in ((Bare(60, 40), "need 'bpr'"), (More(60, 40), "no weight 'nrom'; did you mean 'norm'")):
        with pytest.raises(DataError, match=said):
            fit_graph(model, split, **QUICK)
    with pytest.raises(DataError, match='60 users and 41 items, the split 60 and 40'):
        fit_graph(BPRMF(60, 41), split, **QUICK)
    with pytest.raises(DataError, match='other edges'):  # such as those that validation asks for
        fit_graph(LightGCN(drop_edges(graph_of(split), 0.2), 8), split, **QUICK)
    with pytest.raises(DataError, match="did you mean 'Recall'"):
        fit_graph(make('BPRMF', split), split, **QUICK | dict(metric='Recal@5'))
    with pytest.raises(DataError, match='nothing to train'):
        fit_graph(make('VBPR', split).requires_grad_(False), split, **QUICK)
    with pytest.raises(FloatingPointError, match='lower lr'):
        fit_graph(make('BPRMF', split), split, **QUICK | dict(lr=1e30, epochs=3))


def test_dropout_does_not_rank(split):
    "Tables are asked for in the mode of evaluation, and the mode is put back."

    class Noisy(BPRMF):
        def __init__(self):
            super().__init__(60, 40, 8)
            self.drop = nn.Dropout(0.5)

        def tables(self):
            return self.drop(self.user), self.item

    model = Noisy().train()
    assert np.array_equal(tables_of(model)[0], model.user.detach().numpy()) and model.training
