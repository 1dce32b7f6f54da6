"Rounds of all clients at once: exact to a plain loop, seeded, safe to stop, and true to who takes part."

import numpy as np
import pytest
import torch
from federated_loop import loop_round
from federated_worlds import drawn_shop
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated.backbones import BACKBONES, get_backbone, rates_of
from vlm2rec_lab.federated.blocks import Pairs, blocks
from vlm2rec_lab.federated.contents import Contents, rows_of
from vlm2rec_lab.federated.continual import task_of
from vlm2rec_lab.federated.memory import Memory
from vlm2rec_lab.federated.rounds import clients_of, draw_others, draw_steps, run_round, train_rounds

RATES = {'FedMF': 0.5, 'FedMLP': 0.002, 'PFedRec': 0.002}


@pytest.fixture(scope='module')
def shop():
    return blocks(drawn_shop(items=40, users=120, length=12), core=5, parts=2)


def begun(name, users, items, dim=8, dtype=torch.float32, seed=0):
    b, g = get_backbone(name), torch.Generator().manual_seed(seed)
    private = {k: v.to(dtype) for k, v in b.begin(users, dim, g).items()}
    return torch.randn(items, dim, generator=g).to(dtype) * max(b.spread, 0.1), private


def some_memory(users, items, length=6, eps=0.004, seed=2):
    g = torch.Generator().manual_seed(seed)
    lists = torch.randn(users, items, generator=g).argsort(dim=1)[:, :length]
    return Memory(lists, torch.randn(users, length, generator=g), eps, 0.7)


def some_contents(items, own):
    "Two modalities of 40 items, the rows of both of length 1."
    g = torch.Generator().manual_seed(7)
    two = {m: torch.randn(items, n, generator=g) for m, n in (('text', 5), ('image', 3))}
    return Contents({m: x / x.norm(dim=1, keepdim=True) for m, x in two.items()}, own, reach=0.3)


@pytest.mark.parametrize('dtype, near', [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize('remembers', [False, True], ids=['plain', 'memory'])
@pytest.mark.parametrize('own', [None, True, False], ids=['items', 'items and adapters', 'adapters'])
@pytest.mark.parametrize('name', BACKBONES)
def test_a_round_is_that_of_a_plain_loop(shop, name, own, remembers, dtype, near):
    "Three steps for who has most; half of the users have a memory; some users do not take part."
    block = shop[1]
    contents = None if own is None else some_contents(len(shop.catalogue), own)
    clients, b = clients_of(block.train, [], block.items), BACKBONES[name]
    vectors, private = begun(name, block.users, block.items + rows_of(contents), dtype=dtype)
    rates, memory = rates_of(b, RATES[name], block.items), some_memory(block.users // 2 + 20, block.items)
    g = torch.Generator().manual_seed(5)
    steps = draw_steps(clients, 4, 12, g)
    assert len(steps) > 2
    recall, known = memory.begin(clients, len(steps), g), {}
    for c, u in enumerate(clients.users.tolist()):
        if u < len(memory.lists):
            old = memory.old[u].to(dtype)
            known[c] = lambda s, c=c, u=u, old=old: (memory.lists[u], old, recall.lots[s, c], memory.eps, memory.weight)
    assert 0 < len(known) < len(clients) < block.users
    mine = {k: v[clients.users] for k, v in private.items()}
    items, kept, loss = loop_round(name, vectors, mine, steps, rates, known if remembers else None, contents)
    whole = {k: v.clone() for k, v in private.items()}
    for k, v in kept.items():
        whole[k][clients.users] = v
    start, g = vectors.clone(), torch.Generator().manual_seed(5)
    how = dict(batch=12, memory=memory if remembers else None, contents=contents)
    found = run_round(b, vectors, private, clients, rates, g, **how)
    assert abs(found - loss) < 1e-5
    assert (vectors - items).abs().max() < near and (vectors - start).abs().max() > 1e-3
    for k, v in whole.items():
        assert (private[k] - v).abs().max() < near, k


@pytest.mark.parametrize('name', BACKBONES)
def test_how_many_clients_are_held_changes_nothing(shop, name):
    block, found = shop[1], []
    clients, rates = clients_of(block.train, [], block.items), rates_of(BACKBONES[name], RATES[name], block.items)
    memory = some_memory(block.users, block.items)
    for at_once in (1, 7 * block.items, 10**7):
        vectors, private = begun(name, block.users, block.items, dtype=torch.float64)
        g = torch.Generator().manual_seed(1)
        run_round(BACKBONES[name], vectors, private, clients, rates, g, batch=12, memory=memory, at_once=at_once)
        found.append(torch.cat([vectors.flatten(), *(v.flatten() for v in private.values())]))
    assert all(torch.allclose(f, found[0], rtol=0, atol=1e-12) for f in found[1:])


def test_only_who_takes_part_and_what_is_known_is_changed(shop):
    block = shop[1]
    clients = clients_of(block.train, [], block.items)
    vectors, private = begun('FedMF', len(shop.user_ids), block.items)
    before = private['user'].clone()
    run_round(BACKBONES['FedMF'], vectors, private, clients, rates_of(BACKBONES['FedMF'], 0.5, 2), torch.Generator())
    moved = (private['user'] != before).any(1).nonzero()[:, 0]
    assert moved.tolist() == sorted(clients.users.tolist()) == np.unique(block.train.users).tolist()


def test_the_server_has_the_last_word(shop):
    block, seen = shop[0], []
    clients = clients_of(block.train, [], block.items)
    vectors, private = begun('PFedRec', block.users, block.items)

    def server(mean):
        seen.append(mean.clone())
        return mean * 0 + 3

    run_round(BACKBONES['PFedRec'], vectors, private, clients, rates_of(BACKBONES['PFedRec'], 1e-3, 9),
              torch.Generator(), server=server)  # fmt: skip
    assert len(seen) == 1 and bool((vectors == 3).all()) and not bool((seen[0] == 3).any())


OWNED = st.lists(st.sets(st.integers(0, 7), min_size=1, max_size=8), min_size=1, max_size=5)


@given(OWNED)
@settings(max_examples=40)
def test_negatives_are_exactly_what_a_client_does_not_have(owned):
    pairs = Pairs(*np.array([(u, i) for u, have in enumerate(owned) for i in sorted(have)]).T)
    clients = clients_of(pairs, [], 8)
    rows = torch.arange(len(owned)).repeat_interleave(300)
    drawn = draw_others(clients, rows, torch.Generator().manual_seed(0))
    for row, user in enumerate(clients.users.tolist()):
        free = set(range(8)) - owned[user] or set(range(8))
        assert set(drawn[rows == row].tolist()) == free


def test_earlier_training_and_validation_is_never_a_negative_and_earlier_tests_may_be(shop):
    clients = task_of(shop, 2).clients
    have, g = set(), torch.Generator().manual_seed(0)
    for _ in range(60):
        have |= set(
            (lambda s: (s.rows * shop[2].items + s.items)[s.labels == 0].tolist())(draw_steps(clients, 4, 99, g)[0])
        )
    place = {u: r for r, u in enumerate(clients.users.tolist())}

    def keys(pairs):
        return {place[u] * shop[2].items + i for u, i in zip(pairs.users.tolist(), pairs.items.tolist()) if u in place}

    for b in shop.blocks[:2]:
        assert keys(b.train) and not have & (keys(b.train) | keys(b.valid))
    earlier = keys(shop[0].test) | keys(shop[1].test)
    assert earlier and len(have & earlier) > 0.9 * len(earlier)
    assert not have & keys(shop[2].train) and have & keys(shop[2].valid) and have & keys(shop[2].test)


def trained(shop, seed=0, **how):
    vectors, private = begun('FedMF', len(shop.user_ids), len(shop.catalogue))
    how = dict(lr=1.0, rounds=6, patience=None, metric='NDCG@5', progress=False, seed=seed) | how
    return train_rounds(BACKBONES['FedMF'], vectors, private, task_of(shop, 0), **how), vectors, private


def test_the_same_seed_gives_the_same_rounds_and_another_does_not(shop):
    (a, _), *one = trained(shop)
    (b, _), *two = trained(shop)
    assert torch.equal(one[0], two[0]) and a.frame.loss.tolist() == b.frame.loss.tolist()
    assert not torch.equal(one[0], trained(shop, seed=1)[1])


def test_stopped_at_any_round_it_goes_on_as_if_it_had_not_been(shop, tmp_path):
    (whole, last), vectors, _ = trained(shop)
    for at in (1, 4):
        folder = tmp_path / str(at)
        trained(shop, folder=folder, callback=lambda records, at=at: 'stop' if len(records) == at else None)
        (again, found), other, _ = trained(shop, folder=folder)
        assert again.frame.loss.tolist() == whole.frame.loss.tolist() and torch.equal(other, vectors)
        assert all(torch.equal(found[k], last[k]) for k in last)
    with pytest.raises(DataError, match='lr=1.0'):
        trained(shop, folder=tmp_path / '1', lr=0.5)


def test_the_best_round_is_left_and_the_last_is_given_back(shop):
    (run, last), vectors, private = trained(shop, rounds=40, lr=3.0)
    assert run.best < 40 and not torch.equal(last['items'], vectors[: len(last['items'])])
    (short, _), best, _ = trained(shop, rounds=run.best, lr=3.0)
    assert torch.equal(best, vectors)
    (tired, _), *_ = trained(shop, rounds=40, lr=3.0, patience=2)
    assert len(tired.frame) == tired.best + 2 or len(tired.frame) == 40


@pytest.mark.parametrize(
    'how, said', [(dict(batch=0), 'batch is 0'), (dict(negatives=1.5), 'negatives is 1.5'), (dict(lr=-1), 'lr=-1')]
)
def test_what_cannot_be_is_refused(shop, how, said):
    with pytest.raises(DataError, match=said):
        trained(shop, **how)


def test_what_flies_away_is_said(shop):
    vectors, private = begun('FedMF', len(shop.user_ids), len(shop.catalogue))
    vectors[0, 0] = float('nan')
    with pytest.raises(FloatingPointError, match='lower lr'):
        train_rounds(BACKBONES['FedMF'], vectors, private, task_of(shop, 0), lr=1.0, rounds=1, progress=False)


def test_samples_are_shuffled_within_each_client_by_their_lots():
    block = blocks(drawn_shop(items=40, users=120, length=12), core=5)[0]
    clients = clients_of(block.train, [], block.items)
    (step,) = draw_steps(clients, 4, 10**6, torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    others = clients.rows.repeat_interleave(4)
    items = torch.cat([clients.items, draw_others(clients, others, g)])
    order = torch.argsort(torch.cat([clients.rows, others]) + torch.rand(len(items), generator=g, dtype=torch.float64))
    assert torch.equal(step.items, items[order]) and torch.equal(step.labels, (order < len(clients.rows)).float())
