"Blocks in their order: switches that are true, two ways of leaving out, averages, and a golden run."

import math

import numpy as np
import pytest
import torch
from federated_worlds import drawn_shop
from hypothesis import given
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated import continual
from vlm2rec_lab.federated.backbones import BACKBONES
from vlm2rec_lab.federated.blocks import PARTS, blocks
from vlm2rec_lab.federated.continual import METHODS, WAYS, averages, run_blocks, task_of, test_of

test_of.__test__ = False  # a question, no test
QUICK = dict(dim=8, lr=2.0, rounds=16, patience=None, cut=5, progress=False)
RATES = {'FedMF': 2.0, 'FedMLP': 0.02, 'PFedRec': 0.02}


@pytest.fixture(scope='module')
def shop():
    return blocks(drawn_shop(items=40, users=120, length=12), core=5, parts=2)


@pytest.fixture(scope='module')
def done(shop):
    return {m: run_blocks(shop, **QUICK, **how) for m, how in METHODS.items()}


def weights(run):
    return torch.cat([run.items.flatten(), *(v.flatten() for v in run.private.values())])


# ---- switches


@pytest.mark.parametrize('name', BACKBONES)
def test_a_switch_that_is_off_is_off_and_one_that_is_on_is_on(shop, name):
    how = QUICK | dict(lr=RATES[name], rounds=4)
    plain = weights(run_blocks(shop, name, **how))
    for off in (dict(memory=True, weight=0.0), dict(temporal=True, beta=0.0)):
        assert torch.equal(weights(run_blocks(shop, name, **off, **how)), plain)
    found = [weights(run_blocks(shop, name, **METHODS[m], **how)) for m in METHODS if m != 'fine-tuning']
    for k, one in enumerate(found):
        assert not torch.equal(one, plain) and not any(torch.equal(one, other) for other in found[:k])


def test_blocks_that_could_not_be_learned_are_told_before_anything_is(monkeypatch):
    few = blocks(drawn_shop(items=40, users=120, length=12), base=0.98, core=5, parts=8)
    monkeypatch.setattr(continual, 'train_rounds', None)  # nothing is learned
    with pytest.raises(DataError, match=r'block \d has no pair for valid.*ask for fewer parts'):
        run_blocks(few, **QUICK)
    shop = blocks(drawn_shop(items=40, users=120, length=12), core=5, parts=2)
    for name in ('dim', 'rounds'):
        with pytest.raises(DataError, match=f'{name} is 0: give a whole number, 1 or more'):
            run_blocks(shop, **QUICK | {name: 0})


def test_all_ways_share_the_base_block(done):
    for run in done.values():
        assert run.table().iloc[0, 0] == done['ARM'].table().iloc[0, 0]
        assert run.runs[0].frame.loss.tolist() == done['ARM'].runs[0].frame.loss.tolist()


def test_the_server_holds_what_is_known(shop, monkeypatch):
    "With all weight on old vectors the known items stay much nearer to where the base block left them."
    after, whole = [], continual._ask

    def ask(blocks, k, backbone, state, *more):
        after.append(state.items.clone())
        return whole(blocks, k, backbone, state, *more)

    monkeypatch.setattr(continual, '_ask', ask)
    moved, n = [], shop[0].items
    for temporal in (False, True):
        after.clear()
        run_blocks(shop, temporal=temporal, beta=1.0, go_on='best', **QUICK)
        moved.append((after[1][:n] - after[0][:n]).norm(dim=1).mean())
    assert moved[1] < 0.2 * moved[0]


# ---- what is learned


def test_scratch_forgets_the_weights_and_replay_keeps_them(shop):
    "At a rate near nothing, what begins anew ends at the first draw."
    begun = continual._begin(BACKBONES['FedMF'], shop, 8, 0)
    tiny = QUICK | dict(lr=1e-12, rounds=1)
    run = run_blocks(shop, replay=True, scratch=True, **tiny)
    assert torch.allclose(run.items, begun.items, atol=1e-6)
    assert len(task_of(shop, 2, replay=True).clients.rows) == sum(len(b.train) for b in shop)


@pytest.mark.parametrize('name', BACKBONES)
def test_private_parameters_begin_anew_where_the_backbone_says_so(shop, name, monkeypatch):
    seen, whole = [], continual.train_rounds

    def train(b, items, private, task, **how):
        seen.append(({k: v.clone() for k, v in private.items()}, task.clients.users, items.clone()))
        return whole(b, items, private, task, **how)

    monkeypatch.setattr(continual, 'train_rounds', train)
    begun = continual._begin(BACKBONES[name], shop, 8, 0)
    for renew in (None, True, False):
        seen.clear()
        run_blocks(shop, name, renew=renew, **QUICK | dict(lr=RATES[name], rounds=3))
        private, who, items = seen[1]
        anew = all(torch.equal(private[k][who], begun.private[k][who]) for k in private)
        assert anew == (BACKBONES[name].renews if renew is None else renew)
        assert not torch.equal(items[: shop[0].items], begun.items[: shop[0].items])
        away = np.setdiff1d(shop[0].train.users, who.numpy())
        assert len(away) and not any(torch.equal(private[k][away], begun.private[k][away]) for k in private)


def test_the_next_block_goes_on_from_the_last_or_the_best_round(shop):
    how = QUICK | dict(lr=3.0, rounds=40)
    usual, last, best = (run_blocks(shop, go_on=g, **how) for g in (None, 'last', 'best'))
    assert usual.runs[0].best < 40
    assert torch.equal(usual.items, last.items) and not torch.equal(last.items, best.items)
    assert BACKBONES['FedMF'].goes_on == 'last' != BACKBONES['PFedRec'].goes_on


# ---- asking


def by_loop(shop, run, name, k, i, way, cut):
    "NDCG and Recall of one question, user by user, by sorting."
    heads, items, n = BACKBONES[name].head(run.private)[0].double(), run.items.double(), shop[k].items
    had = [getattr(b, p) for b in shop.blocks[: k + 1] for p in PARTS]
    out = had if way == 'seen' else [shop[k].train, shop[k].valid]
    asked, rows = shop[i].test, []
    for u in np.unique(asked.users):
        wanted = set(asked.items[asked.users == u].tolist())
        left = set(range(n)) - {j for p in out for j in p.items[p.users == u].tolist()} | wanted
        shown = sorted(left, key=lambda j: -float(heads[u] @ items[j]))[:cut]
        hits = [j in wanted for j in shown]
        ideal = sum(1 / math.log2(r + 2) for r in range(min(len(wanted), cut)))
        rows.append((sum(h / math.log2(r + 2) for r, h in enumerate(hits)) / ideal, sum(hits) / len(wanted)))
    return np.mean(rows, 0)


@pytest.mark.parametrize('way', WAYS)
def test_figures_are_those_of_a_loop(shop, done, way):
    for i in range(3):
        ndcg, recall = by_loop(shop, done['ARM+ITM'], 'FedMF', 2, i, way, 5)
        assert done['ARM+ITM'].table('NDCG', way).loc[2, i] == pytest.approx(ndcg, abs=1e-6)
        assert done['ARM+ITM'].table('Recall', way).loc[2, i] == pytest.approx(recall, abs=1e-6)


def test_the_published_way_leaves_more_candidates(shop):
    for i in range(2):
        seen, latest = (np.diff(test_of(shop, 2, i, way).seen[0]) for way in WAYS)
        assert (seen >= latest).all() and (seen > latest).any()


SHARES = st.floats(0, 1)


@given(st.lists(st.lists(SHARES, min_size=3, max_size=3), min_size=3, max_size=3))
def test_averages(a):
    found = averages(a)
    assert found['LA'] == pytest.approx((a[0][0] + a[1][1] + a[2][2]) / 3)
    assert found['RA'] == pytest.approx(sum(a[2]) / 3)
    assert min(found['LA'], found['RA']) - 1e-9 <= found['HM'] <= max(found['LA'], found['RA']) + 1e-9


# ---- golden

GOLDEN = {  # backbone -> last loss of each block, NDCG@5 by block after block
    'FedMF': (
        [0.4856, 0.53376, 0.50547],
        [0.0796, 0.0909, 0.0885, 0.1127, 0.0956, 0.0337],
    ),
    'FedMLP': (
        [0.48193, 0.47212, 0.48206],
        [0.0812, 0.1159, 0.0694, 0.1043, 0.0714, 0.0349],
    ),
    'PFedRec': (
        [0.47637, 0.50458, 0.51093],
        [0.0843, 0.1018, 0.0868, 0.0855, 0.1062, 0.0427],
    ),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_golden(shop, name):
    "A neutral change gives these figures again."
    run = run_blocks(shop, name, memory=True, temporal=True, **QUICK | dict(lr=RATES[name]))
    losses, table = [r.frame.loss.iloc[-1] for r in run.runs], run.table().to_numpy()[np.tril_indices(3)]
    assert losses == pytest.approx(GOLDEN[name][0], abs=2e-4), losses
    assert table.tolist() == pytest.approx(GOLDEN[name][1], abs=0.01), table.round(4).tolist()


# ---- mistakes


@pytest.mark.parametrize(
    'how, said',
    [
        (dict(scratch=True, temporal=True), 'nothing to look back on'),
        (dict(go_on='first'), "'first'"),
        (dict(backbone='FedMFF'), "did you mean 'FedMF'"),
        (dict(memory=True, length=0), 'length=0'),
        (dict(temporal=True, beta=2.0), 'beta=2.0'),
        (dict(lr=0), 'lr=0'),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_trained(shop, how, said, monkeypatch):
    monkeypatch.setattr(continual, 'train_rounds', lambda *a, **k: pytest.fail('trained'))
    with pytest.raises(DataError, match=said):
        run_blocks(shop, **{**QUICK, **how})
