"What an update tells: cases solved by hand, figures against a plain count, a server that listens and changes nothing."

import numpy as np
import pytest
import torch
from federated_worlds import begun, drawn_shop
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated.attack import (
    TOLD,
    Ear,
    alone,
    attacked,
    guesses,
    judged,
    line_of,
    listen,
    of_sum,
    oriented,
    popularity,
    truth_of,
    whole_updates,
    without,
)
from vlm2rec_lab.federated.backbones import BACKBONES, rates_of
from vlm2rec_lab.federated.blocks import blocks
from vlm2rec_lab.federated.continual import task_of
from vlm2rec_lab.federated.privacy import Protection
from vlm2rec_lab.federated.rounds import draw_steps, local_epoch, run_round, taking_part, train_rounds

LR = {'FedMF': 1.0, 'FedMLP': 0.02, 'PFedRec': 0.02}


@pytest.fixture(scope='module')
def shop():
    return blocks(drawn_shop(items=100, users=120, length=12), core=4, parts=2)


def heard(shop, name='FedMF', **how):
    return listen(BACKBONES[name], *begun(name, shop), task_of(shop, 0), lr=LR[name], **how)


def test_two_items_by_hand():
    "One was bought, two were drawn: the bought one goes where fewer go, whatever the sign of the head."
    for sign in (1.0, -1.0):
        update = torch.tensor([0.2, -0.1, 0.0, -0.1])[:, None] * torch.tensor([0.0, sign])
        assert line_of(update[None]).abs().tolist() == [[0.0, 1.0]]
        assert torch.allclose(alone(update[None]), torch.tensor([[0.2, -0.1, 0.0, -0.1]]))


def test_what_does_not_reach_the_floor_is_not_counted():
    along = torch.tensor([[5.0, 1, 1, 1, -5, -5], [0.0, 0, 0, 0, 0, 0]])
    assert oriented(along, 2.0)[0].tolist() == along[0].tolist()
    assert oriented(along)[0].tolist() == (-along[0]).tolist()
    assert oriented(along)[1].tolist() == [0.0] * 6


@pytest.mark.parametrize('name', BACKBONES)
def test_updates_written_out_are_what_clients_send(shop, name):
    "Those of some rows, in any order, of clients with more and fewer steps; all of them add up to the sum."
    clients, seen = task_of(shop, 0).clients, []
    vectors, private = begun(name, shop)
    vectors = vectors[: shop[0].items]
    mine = {k: v[clients.users] for k, v in private.items()}
    steps = draw_steps(clients, 4, 20, torch.Generator().manual_seed(1))
    rates = rates_of(BACKBONES[name], LR[name], shop[0].items)

    def sent(past):
        seen.extend(past)
        return past

    change, _ = local_epoch(BACKBONES[name], vectors, mine, steps, rates, sends=sent)
    whole = whole_updates(seen, torch.arange(len(clients)))
    assert len(steps) > 2 and torch.allclose(whole.sum(0), change, atol=1e-5)
    rows = torch.tensor([len(clients) - 1, 0, 5])
    assert torch.equal(whole_updates(seen, rows), whole[rows])


@pytest.mark.parametrize('name', BACKBONES)
def test_bare_updates_give_purchases_away(shop, name):
    ear = heard(shop, name)
    found = attacked(ear, task_of(shop, 0).clients)
    assert all(found['alone'][k].mean() > 0.95 for k in ('precision', 'recall', 'F1', 'R-precision', 'AUC'))
    for weaker in ('what sells best', 'sum, by length', 'sum, along'):
        assert found[weaker]['AUC'].mean() < 0.75


def test_who_is_heard_often_is_known_from_what_came_again(shop):
    "Drawn items change from round to round: what moved each time is what was bought, up to a few."
    clients = task_of(shop, 0).clients
    ear = heard(shop, rounds=7)
    always = ear.touched == ear.rounds[:, None]
    truth = truth_of(clients, ear.users)
    assert bool((ear.rounds == 7).all()) and bool((always & truth == truth).all())
    assert always.sum() < 1.1 * truth.sum() < 0.5 * (ear.touched > 0).sum()


def test_an_ear_changes_nothing(shop):
    "Neither a bare training nor a protected one."
    task, b = task_of(shop, 0), BACKBONES['PFedRec']
    for behind in (None, Protection(2.0, 0.5, 0.7)):
        states = []
        for listens in (False, True):
            items, private = begun('PFedRec', shop)
            ear = Ear(task.clients.users[:9], shop[0].items, 8, behind, noise=0.1) if listens else behind
            how = dict(lr=0.02, rounds=3, patience=None, progress=False, protect=ear)
            last = train_rounds(b, items, private, task, **how)[1]
            states.append(torch.cat([last['items'].flatten(), last['head'].flatten()]))
        assert torch.equal(*states)
        assert ear.share == (1.0 if behind is None else 0.7)
    assert bool((ear.rounds <= 3).all()) and 0 < int(ear.rounds.sum()) < 27


def test_an_ear_hears_the_same_however_many_clients_are_held(shop):
    clients, b, ears = task_of(shop, 0).clients, BACKBONES['FedMF'], []
    for at_once in (1, 7 * shop[0].items, 10**7):
        items, private = begun('FedMF', shop)
        vectors = items[: shop[0].items]
        ears.append(Ear(clients.users[[20, 3, 50]], shop[0].items, 8))
        g, rates = torch.Generator().manual_seed(1), rates_of(b, 1.0, shop[0].items)
        run_round(b, vectors, private, clients, rates, g, batch=20, protect=ears[-1], at_once=at_once)
    assert all(torch.allclose(e.heard, ears[0].heard, atol=1e-6) and e.rounds.tolist() == [1, 1, 1] for e in ears)
    assert torch.equal(ears[0].touched > 0, (ears[0].heard != 0).any(2))


def test_noise_of_clients_is_of_the_stated_size_and_drowns_the_attack(shop):
    quiet, loud = heard(shop, rounds=2), heard(shop, rounds=2, noise=5.0)
    assert torch.equal(loud.users, quiet.users) and torch.allclose(loud.true, quiet.heard, atol=1e-6)
    apart = loud.heard - loud.true
    assert abs(float(apart.std()) / (5.0 * 2**0.5) - 1) < 0.01 and abs(float(apart.mean())) < 0.05
    found = attacked(loud, task_of(shop, 0).clients)
    control = found['what sells best']['AUC'].mean()
    assert all(abs(found[name]['AUC'].mean() - control) < 0.05 for name in ('alone', 'by what is popular', TOLD))


def test_with_little_noise_the_attack_is_nearly_the_bare_one(shop):
    clients = task_of(shop, 0).clients
    length = heard(shop).heard.flatten(1).norm(dim=1).median()
    ear = heard(shop, noise=float(length) * 1e-3)
    found = attacked(ear, clients)
    assert found['alone']['AUC'].mean() > 0.95 and found[TOLD]['R-precision'].mean() > 0.95
    popular = popularity(clients, ear.users)
    assert all(bool((named == (scores > 0)).all()) for scores, named in guesses(ear, popular, 50).values())


SCORES = st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=4)


@given(SCORES, st.lists(st.booleans(), min_size=6, max_size=6).filter(lambda t: 0 < sum(t) < 6))
@settings(max_examples=40)
def test_auc_is_that_of_others_and_the_set_is_counted(scores, truth):
    found = judged(torch.tensor(scores).float(), torch.tensor([truth] * len(scores)), torch.tensor(scores) > 2)
    for row, own in enumerate(scores):
        assert abs(found['AUC'][row].item() - roc_auc_score(truth, own)) < 1e-6
        named = {i for i, s in enumerate(own) if s > 2}
        true = {i for i, t in enumerate(truth) if t}
        assert abs(found['F1'][row].item() - 2 * len(named & true) / (len(named) + len(true))) < 1e-6
        order = sorted(range(6), key=lambda i: (-own[i], i))[: len(true)]
        assert abs(found['R-precision'][row].item() - len(true & set(order)) / len(true)) < 1e-6


def test_the_control_does_not_know_the_client(shop):
    clients = task_of(shop, 0).clients
    users = clients.users[[4, 1]]
    truth, popular = truth_of(clients, users), popularity(clients, users)
    pairs = shop[0].train
    for row, user in enumerate(users.tolist()):
        assert set(truth[row].nonzero()[:, 0].tolist()) == set(pairs.items[pairs.users == user].tolist())
        others = np.bincount(pairs.items[pairs.users != user], minlength=shop[0].items)
        assert popular[row].tolist() == others.tolist()


def test_the_sum_is_one_ranking_for_all():
    total = torch.tensor([[0.0, 3], [0, -1], [0, -2], [0, 0]])
    found = of_sum(total)
    assert found['by length'].tolist() == [3, 1, 2, 0]
    assert torch.allclose(found['along'], torch.tensor([3.0, -1, -2, 0]), atol=1e-6)


def test_clients_without_one_are_the_others(shop):
    clients = task_of(shop, 0).clients
    user = int(clients.users[3])
    rest = without(clients, user)
    assert rest.users.tolist() == [u for u in clients.users.tolist() if u != user]
    names, kept = rest.users[rest.rows], clients.users[clients.rows]
    assert names.tolist() == kept[kept != user].tolist() and len(rest.items) == len(names)
    n = clients.n_items
    owned = {(int(clients.users[k // n]), int(k % n)) for k in clients.owned}
    assert {(int(rest.users[k // n]), int(k % n)) for k in rest.owned} == {(u, i) for u, i in owned if u != user}
    assert bool((rest.owned.diff() > 0).all()) and bool((rest.rows.diff() >= 0).all())
    assert len(taking_part(clients, torch.zeros(len(clients)).bool())) == 0
    with pytest.raises(DataError, match='does not take part'):
        without(rest, user)


def test_nobody_to_listen_to_is_an_error():
    with pytest.raises(DataError, match='users: give a client'):
        Ear(torch.zeros(0).long(), 3, 2)
