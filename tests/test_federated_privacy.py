"Clipping by hand and against a plain loop, noise of the stated size, the accountant against what is known exactly."

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from federated_worlds import begun, drawn_shop
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated.backbones import BACKBONES, rates_of
from vlm2rec_lab.federated.blocks import Pairs, blocks
from vlm2rec_lab.federated.contents import Contents
from vlm2rec_lab.federated.continual import run_blocks, task_of
from vlm2rec_lab.federated.privacy import (
    INSTALL,
    Protection,
    change_lengths,
    delta_of,
    epsilon_of,
    from_each,
    protection_for,
    sigma_for,
)
from vlm2rec_lab.federated.rounds import draw_steps, local_epoch, run_round, train_rounds
from vlm2rec_lab.federated.tradeoff import TRUSTS, chosen, popular_cell, tradeoff_cell, tradeoff_figure, tradeoff_table

LR = {'FedMF': 1.0, 'FedMLP': 0.02, 'PFedRec': 0.02}


@pytest.fixture(scope='module')
def shop():
    return blocks(drawn_shop(items=60, users=120, length=12), core=4, parts=2)


def a_round(shop, name, protect, at_once=10**7, batch=16):
    "Items and private parameters after a round."
    items, private = begun(name, shop)
    vectors, clients = items[: shop[0].items], task_of(shop, 0).clients
    g, noise = (torch.Generator().manual_seed(s) for s in (3, 4))
    rates = rates_of(BACKBONES[name], LR[name], shop[0].items)
    how = dict(batch=batch, protect=protect, noise=noise, at_once=at_once)
    run_round(BACKBONES[name], vectors, private, clients, rates, g, **how)
    return vectors, private


@st.composite
def changes(draw):
    "Steps of clients, fewer and fewer of them."
    counts = sorted(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)), reverse=True)
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return [(torch.randn(c, 5, generator=g), torch.randn(c, 3, generator=g)) for c in counts]


@given(changes(), st.floats(0.01, 20))
@settings(max_examples=50)
def test_lengths_and_clips_are_those_of_whole_updates(past, clip):
    "Against a loop over clients that writes their updates out."
    cut = Protection(clip, 0.0).sent(past)
    for c in range(len(past[0][0])):
        whole, left = (sum(torch.outer(m[c], h[c]) for m, h in p if c < len(m)) for p in (past, cut))
        length = float(whole.norm())
        assert abs(float(change_lengths(past)[c]) - length) < 1e-4 * max(1, length)
        assert torch.allclose(left, whole * min(1.0, clip / length), atol=1e-4)
        assert float(left.norm()) <= clip * (1 + 1e-4)


def test_a_clip_by_hand():
    "Lengths 5 and 2, a clip of 2.5: the first is halved, the second is left as it is."
    past = [(torch.tensor([[3.0, 4], [0, 2]]), torch.tensor([[1.0], [1]]))]
    assert change_lengths(past).tolist() == [5, 2]
    moved = Protection(2.5, 0.0).sent(past)[0][0]
    assert torch.allclose(moved, torch.tensor([[1.5, 2], [0, 2]]))
    nothing = [(torch.zeros(1, 2), torch.ones(1, 1))]
    assert Protection(1.0, 0.0).sent(nothing)[0][0].tolist() == [[0, 0]]


@pytest.mark.parametrize('name', BACKBONES)
def test_a_wide_clip_without_noise_is_no_protection(shop, name):
    bare, wide = a_round(shop, name, None), a_round(shop, name, Protection(1e9, 0.0))
    assert (bare[0] - wide[0]).abs().max() < 1e-6 < 1e-4 < (bare[0] - begun(name, shop)[0][: shop[0].items]).abs().max()
    assert all(torch.equal(bare[1][k], wide[1][k]) for k in bare[1])


@pytest.mark.parametrize('made', [False, True], ids=['items', 'contents'])
@pytest.mark.parametrize('name', BACKBONES)
def test_no_client_moves_the_sum_by_more_than_the_clip(shop, name, made):
    "The same round with and without one client, at the same lots: that is what the noise is measured by."
    clients, clip = task_of(shop, 0).clients, 0.5
    items, private = begun(name, shop)
    shared, rates = items[: shop[0].items], rates_of(BACKBONES[name], LR[name], shop[0].items)
    steps, g = draw_steps(clients, 4, 16, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    contents = Contents({'image': torch.randn(len(items), 4, generator=g)}, True, 0.1) if made else None
    if made:
        shared = torch.cat([torch.randn(4, 8, generator=g), shared])

    def total(left_out):
        mine = {k: v[clients.users].clone() for k, v in private.items()}

        def sent(past):
            past = Protection(clip, 0.0).sent(past)
            for moved, _ in past:
                moved[left_out : left_out + 1] = 0
            return past

        return local_epoch(BACKBONES[name], shared, mine, steps, rates, contents=contents, sends=sent)[0]

    whole, apart = total(len(clients)), []
    assert len(whole) == len(shared)
    for one in (0, 5, len(clients) - 1):
        apart.append(float((whole - total(one)).norm()))
    assert 0 < max(apart) <= clip * (1 + 1e-4)


def test_how_many_clients_are_held_changes_nothing(shop):
    p = Protection(0.5, 0.3, 0.6)
    found = [a_round(shop, 'FedMF', p, at_once)[0] for at_once in (1, 7 * shop[0].items, 10**7)]
    assert all(torch.allclose(f, found[0], atol=1e-6) for f in found[1:])


def test_noise_is_of_the_stated_size_and_of_its_own_seed(shop):
    still, noised = (a_round(shop, 'FedMF', Protection(3.0, s))[0] for s in (0.0, 2.0))
    each = (noised - still) * len(task_of(shop, 0).clients)
    assert abs(float(each.std()) / 6.0 - 1) < 0.1 and abs(float(each.mean())) < 6 * 4 / each.numel() ** 0.5
    lots = [Protection(3.0, 2.0).noised(torch.zeros(300, 300), torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(lots[0], lots[1]) and abs(float(lots[0].std()) / 6 - 1) < 0.01
    assert abs(float((lots[0] * lots[2]).mean())) < 36 * 0.02


def test_no_two_runs_share_their_noise(shop):
    "With one customer less, or another rate, the noise is another: no difference of two releases lays anybody bare."
    how = dict(dim=8, rounds=2, cut=5, progress=False, protect=Protection(1.0, 5.0))
    train = shop[0].train
    fewer = Pairs(*(a[train.users > 0] for a in (train.users, train.items)))
    without = replace(shop, blocks=(replace(shop[0], train=fewer),))
    one = replace(shop, blocks=shop.blocks[:1])
    a, again, b, c = (
        run_blocks(x, lr=lr, **how).items[: shop[0].items]
        for x, lr in ((one, 0.5), (one, 0.5), (without, 0.5), (one, 0.51))
    )
    assert torch.equal(a, again)
    n = len(np.unique(train.users))
    for other in (b, c):
        apart = ((a - other) * n).std()  # of two independent noises, over two rounds
        assert 0.8 * 5 * 2 < apart < 1.3 * 5 * 2


def test_a_promise_is_for_the_rounds_it_was_made_for(shop):
    protect = protection_for(8.0, clip=1.0, rounds=2, users=120, blocks=2, accountant='rdp')
    how = dict(dim=8, lr=0.5, cut=5, protect=protect, progress=False)
    with pytest.raises(DataError, match='rounds=100: the noise keeps its epsilon for 2 at most'):
        run_blocks(shop, **how)
    with pytest.raises(DataError, match='blocks=3: the noise keeps its epsilon for 2 at most'):
        run_blocks(shop, rounds=2, **how)


def test_steps_that_nearly_undo_each_other_are_clipped_all_the_same():
    g = torch.Generator().manual_seed(0)
    moved, along = torch.randn(50, 30, generator=g) * 1e4, torch.randn(50, 6, generator=g)
    past = [(moved, along), (-moved * (1 + 1e-6), along)]
    sent = Protection(1e-3, 0.0).sent(past)
    whole = sum(torch.einsum('cn,cd->cnd', m.double(), a.double()) for m, a in sent)
    assert whole.flatten(1).norm(dim=1).max() < 1e-3 * 1.05


def test_noise_falls_on_what_is_shared_alone(shop):
    "Items that are nothing but their contents have no rows that anybody sends, and get no noise."
    g = torch.Generator().manual_seed(0)
    features = dict(text=torch.randn(len(shop.catalogue), 4, generator=g))
    for own in (True, False):
        contents = Contents(features, own=own, reach=0.01)
        how = dict(dim=8, lr=0.5, rounds=2, cut=5, contents=contents, protect=Protection(1.0, 5.0), progress=False)
        done = run_blocks(shop, **how)
        assert done.items[:4].std() > 0.1
        assert bool((done.items[4:] == 0).all()) != own


def test_noise_is_drawn_anew_in_every_round(shop):
    "The difference of two runs is not the same in both rounds."
    task, after = task_of(shop, 0), {}
    for sigma in (0.0, 1.0):
        items, private = begun('FedMF', shop)
        seen = after.setdefault(sigma, [items.clone()])

        def keep(records, seen=seen, items=items):
            seen.append(items.clone())

        how = dict(lr=1e-6, rounds=2, patience=None, progress=False, callback=keep)
        train_rounds(BACKBONES['FedMF'], items, private, task, protect=Protection(1.0, sigma), **how)
    n = len(task.clients)
    first, second = ((after[1.0][r] - after[1.0][r - 1])[: shop[0].items] * n for r in (1, 2))
    assert abs(float(first.std()) - 1) < 0.1 and abs(float(second.std()) - 1) < 0.1
    assert abs(float((first * second).mean())) < 0.2


def test_clients_are_drawn_each_by_its_own_lot(shop):
    clients, g = task_of(shop, 0).clients, torch.Generator().manual_seed(0)
    drawn = [Protection(1.0, 0.0, 0.25).drawn(clients, g) for _ in range(400)]
    often = torch.zeros(len(shop.user_ids))
    for d in drawn:
        often[d.users] += 1
    counts, n = np.array([len(d) for d in drawn]), len(clients)
    assert (often[clients.users] / 400 - 0.25).abs().max() < 0.11
    assert abs(counts.mean() / n - 0.25) < 0.01 and abs(counts.std() / (n * 0.25 * 0.75) ** 0.5 - 1) < 0.15
    assert Protection(1.0, 0.0).drawn(clients, g) is clients


def test_the_mean_is_over_how_many_are_expected(shop):
    "With a share of a quarter, whoever came counts four times; who did not come keeps what it had."
    clients, p = task_of(shop, 0).clients, Protection(1e9, 0.0, 0.25)
    vectors, private = a_round(shop, 'FedMF', p)
    items, before = begun('FedMF', shop)
    came = p.drawn(clients, torch.Generator().manual_seed(4))
    assert 0 < len(came) < len(clients)
    moved = (private['user'] != before['user']).any(1).nonzero()[:, 0]
    assert sorted(came.users.tolist()) == moved.tolist()
    own, start = items[: shop[0].items].clone(), items[: shop[0].items].clone()
    rates, g = rates_of(BACKBONES['FedMF'], 1.0, shop[0].items), torch.Generator().manual_seed(3)
    run_round(BACKBONES['FedMF'], own, before, came, rates, g, batch=16)
    assert torch.allclose((vectors - start) * 0.25 * len(clients), (own - start) * len(came), atol=1e-4)


def test_a_round_of_nobody_is_noise(shop):
    vectors, private = a_round(shop, 'PFedRec', Protection(1.0, 0.5, 1e-9))
    items, before = begun('PFedRec', shop)
    assert all(torch.equal(private[k], before[k]) for k in before) and bool((vectors != items[: len(vectors)]).all())


def test_a_protected_training_goes_all_rounds_and_leaves_the_last(shop, tmp_path):
    task = task_of(shop, 0)

    def learned(protect=Protection(2.0, 0.3), rounds=6, patience=None, **how):
        items, private = begun('PFedRec', shop)
        how = dict(lr=0.1, rounds=rounds, patience=patience, progress=False, protect=protect) | how
        return *train_rounds(BACKBONES['PFedRec'], items, private, task, **how), items

    assert len(learned(protect=None, patience=1, rounds=40)[0].frame) < 40
    run, last, items = learned(patience=1, rounds=40)
    assert (len(run.frame), run.best) == (40, 40) and run.frame['NDCG@20'].isna().all()
    assert torch.equal(items[: shop[0].items], last['items'])
    run, last, items = learned()
    learned(folder=tmp_path, callback=lambda records: 'stop' if len(records) == 2 else None)
    again, _, resumed = learned(folder=tmp_path)
    assert torch.equal(resumed, items) and again.settings['protect'] == dict(clip=2.0, sigma=0.3, share=1.0)
    assert torch.equal(learned(folder=tmp_path)[2], items)
    with pytest.raises(DataError, match='protect'):
        learned(Protection(2.0, 0.4), folder=tmp_path)


def test_all_blocks_are_protected_and_none_is_none(shop):
    how = dict(dim=8, lr=0.05, rounds=3, patience=None, cut=5, progress=False)
    none = run_blocks(shop, 'FedMF', protect=None, **how)
    assert torch.equal(none.items, run_blocks(shop, 'FedMF', **how).items)
    noised = run_blocks(shop, 'FedMF', memory=True, temporal=True, protect=Protection(1.0, 0.1), **how)
    assert [len(r.frame) for r in noised.runs] == [3] * len(shop)
    assert all('protect' in r.settings for r in noised.runs) and not torch.equal(noised.items, none.items)


@pytest.mark.parametrize('bad', [dict(clip=0.0), dict(clip=math.nan), dict(sigma=-1.0), dict(sigma=math.inf),
                                 dict(share=0.0), dict(share=1.1)])  # fmt: skip
def test_what_is_no_protection_is_told(bad):
    with pytest.raises(DataError, match=f'{next(iter(bad))}='):
        Protection(**dict(clip=1.0, sigma=1.0) | bad)


def exact_delta(epsilon, sigma, rounds):
    "Of the Gaussian mechanism, whose rounds add up exactly (Balle and Wang 2018)."
    normal, mu = torch.distributions.Normal(0.0, 1.0), rounds**0.5 / sigma
    low, high = torch.tensor([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu], dtype=torch.float64)
    return float(normal.cdf(low) - math.exp(epsilon) * normal.cdf(high))


@pytest.mark.parametrize('epsilon', [0.5, 2.0, 16.0])
@pytest.mark.parametrize('accountant', ['rdp', 'prv'])
def test_the_noise_keeps_epsilon_and_little_more(epsilon, accountant):
    delta, rounds = 1e-4, 30
    sigma = sigma_for(epsilon, rounds, delta, accountant=accountant)
    assert 0.98 * epsilon < epsilon_of(sigma, rounds, delta, accountant=accountant) <= epsilon
    kept = exact_delta(epsilon, sigma, rounds)
    assert kept <= delta and (kept > 0.5 * delta or accountant == 'rdp')
    assert exact_delta(epsilon, 0.75 * sigma, rounds) > delta


def test_a_large_epsilon_is_found_on_a_coarser_grid():
    "Its noise still keeps it, by an accountant that looks closely."
    sigma = sigma_for(120.0, 20, 1e-3)
    assert 0.98 * 120 < epsilon_of(sigma, 20, 1e-3) <= 120


def test_epsilon_is_what_opacus_says():
    from opacus.accountants import RDPAccountant

    book = RDPAccountant()
    for _ in range(7):
        book.step(noise_multiplier=1.3, sample_rate=0.2)
    assert abs(book.get_epsilon(delta=1e-3) - epsilon_of(1.3, 7, 1e-3, 0.2, 'rdp')) < 1e-9
    assert epsilon_of(0.0, 7, 1e-3) == math.inf


def test_more_rounds_and_all_clients_need_more_noise():
    few, many = (sigma_for(4.0, r, 1e-3, accountant='rdp') for r in (10, 40))
    assert abs(many / few - 2) < 0.05
    assert sigma_for(4.0, 40, 1e-3, 0.1, 'rdp') < 0.5 * many
    whole = protection_for(4.0, clip=2.0, rounds=10, users=500, blocks=4, accountant='rdp')
    assert whole == Protection(2.0, sigma_for(4.0, 40, delta_of(500), accountant='rdp'), rounds=10, blocks=4)
    assert from_each(whole, 400) == Protection(2.0, 20 * whole.sigma, rounds=10, blocks=4)
    assert protection_for(None, clip=2.0, rounds=1, users=2) == Protection(2.0, 0.0)


@pytest.mark.parametrize(
    'bad', [*({'epsilon': x} for x in (0.0, math.nan, 1000.0)), *({'rounds': x} for x in (0, 1.5)),
            *({'delta': x} for x in (0.0, 1.0)), {'share': 2.0}]
)  # fmt: skip
def test_what_cannot_be_accounted_is_told(bad):
    with pytest.raises(DataError, match=f'{next(iter(bad))}='):
        sigma_for(**dict(epsilon=1.0, rounds=2, delta=1e-3) | bad)
    with pytest.raises(DataError, match="'prv'"):
        sigma_for(1.0, 2, 1e-3, accountant='prw')


def test_without_opacus_the_rest_works(monkeypatch):
    monkeypatch.setitem(sys.modules, 'opacus', None)
    assert Protection(1.0, 1.0).said == dict(clip=1.0, sigma=1.0, share=1.0)
    assert epsilon_of(0.0, 2, 1e-3) == math.inf and protection_for(None, clip=1.0, rounds=2, users=9).sigma == 0
    with pytest.raises(ImportError, match='opacus, which is an extra') as told:
        epsilon_of(1.0, 2, 1e-3)
    assert INSTALL in str(told.value)


def test_the_privacy_extra_is_what_is_told():
    from configparser import ConfigParser
    from pathlib import Path

    root, config = Path(__file__).resolve().parent.parent, ConfigParser(delimiters=['='])
    config.read(root / 'settings.ini', encoding='utf-8')
    assert 'opacus' in config['DEFAULT']['privacy_requirements'] and 'opacus' in config['DEFAULT']['dev_requirements']
    assert "'privacy': needs('privacy_requirements')" in (root / 'setup.py').read_text() and '[privacy]' in INSTALL


QUICK = dict(lr=0.05, dim=8, cut=10, accountant='rdp', watched=30)


def test_a_cell_says_what_it_is_and_a_table_gathers(shop):
    cells = [
        tradeoff_cell(shop, 'PFedRec', e, clip=10.0, rounds=4, trust=t, seed=s, **QUICK)
        for e, t in ((4.0, 'sum'), (4.0, 'each'), (None, 'sum'))
        for s in (0, 1)
    ]
    n = len(task_of(shop, 0).clients)
    assert cells[0]['sigma'] == cells[2]['sigma'] == sigma_for(4.0, 4, delta_of(n), accountant='rdp')
    assert cells[0]['clients'] == n and cells[4]['sigma'] is None
    table = tradeoff_table(cells)
    assert table[['trust', 'seeds']].values.tolist() == [['sum', 2], ['each', 2], ['sum', 2]]
    assert np.allclose(table.test, [np.mean([a['test'], b['test']]) for a, b in zip(cells[::2], cells[1::2])])
    bare = table.iloc[2]
    assert bare['attack AUC'] > 0.95 and bare['told AUC'] > 0.95 > table.iloc[0]['attack AUC']
    figure = tradeoff_figure(table, popular_cell(shop, 10)['test'])
    assert {t.name for t in figure.data} >= {*TRUSTS.values(), 'popularity alone'}
    assert list(figure.data[0].x) == ['4', 'none'] and not any('nan' in str(t.customdata) for t in figure.data)


def test_clip_and_rounds_are_those_of_the_best_validation(shop):
    how = dict(seed=9, **{k: v for k, v in QUICK.items() if k != 'watched'})
    best = chosen(shop, 'PFedRec', 8.0, [3.0, 30.0], [2, 5], **how)
    found = {
        (c, r): tradeoff_cell(shop, 'PFedRec', 8.0, clip=c, rounds=r, watched=0, **how)['valid']
        for c in (3.0, 30.0)
        for r in (2, 5)
    }
    assert found[best['clip'], best['rounds']] == max(found.values())
