"""The federation by Flower's messages, in one process: equal to the simulation and to a plain loop, and unmoved by
clients that die, come late or send nonsense."""

import io
import shlex
import subprocess
import sys
import time
import tomllib
import zipfile
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from federated_apps import Troubled, simulated
from federated_loop import loop_round
from federated_worlds import drawn_shop
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated.backbones import BACKBONES, get_backbone
from vlm2rec_lab.federated.blocks import blocks
from vlm2rec_lab.federated.flower import (
    Request,
    answer_of,
    begin_own,
    config_of,
    customer_of,
    judged,
    plan_of,
    read_customer,
    read_rounds,
    total_of,
)
from vlm2rec_lab.federated.flower_app import LocalGrid, Waiting, client_app, kept_of, run_rounds
from vlm2rec_lab.federated.flower_folder import nodes_of, read_plan, run_here, start_commands, write_app

needs_flower = pytest.mark.skipif(find_spec('flwr') is None, reason='Flower is not installed')
RATES = {'FedMF': 1.0, 'FedMLP': 0.002, 'PFedRec': 0.002}
HOW = dict(rounds=3, dim=8, batch=12, memory=True, temporal=True, length=6, eps=0.004, weight=0.7)


@pytest.fixture(scope='module')
def shop():
    return blocks(drawn_shop(items=40, users=120, length=12), core=5, parts=1)


@pytest.fixture(scope='module')
def ten(shop):
    "Seven customers of both blocks, one of the first alone, two of the second alone."
    first, second = (np.unique(b.train.users) for b in shop.blocks)
    both, early, late = np.intersect1d(first, second), np.setdiff1d(first, second), np.setdiff1d(second, first)
    assert len(both) >= 7 and len(early) >= 1 and len(late) >= 2
    return sorted(map(int, [*both[:7], *early[:1], *late[:2]]))


def made(folder, shop, ten, **more):
    "(plan, nodes) of a folder of ten customers."
    plan = write_app(folder, shop, ten, **HOW | dict(lr=RATES[more.get('backbone', 'FedMF')]) | more)
    return plan, nodes_of(folder)


def carried_out(plan, nodes, trouble=None, app=None):
    "(items, rounds, private parameters of each user) of a run in which things go wrong."
    grid = Troubled(app or client_app(), nodes, config_of(plan))
    grid.trouble = trouble or {}
    items, rounds = run_rounds(grid, plan)
    kept = {n: kept_of(c, label_of(nodes, n), plan) for n, c in grid.contexts.items()}
    return items, rounds, {user_of(nodes, n): k for n, k in kept.items()}


def label_of(nodes, n):
    return nodes[n]['customers'].rpartition('/')[2].removesuffix('.safetensors')


def user_of(nodes, n):
    return int(label_of(nodes, n).rpartition('-')[2])


def is_that_of(found, expected, near=1e-6):
    "Whether items and private parameters of a run are those of the simulation."
    (items, _, kept), (server, private) = found, expected
    assert np.abs(items - server).max() < near
    for user, k in kept.items():
        for name, v in k.private.items():
            assert (v[0] - private[name][user]).abs().max() < near, (user, name)


def looped(name, vectors, mine, steps, rates, memory, recall):
    "A round as a plain loop, with the memory of those who have one."
    known = {}
    for c, u in enumerate([] if recall is None else recall.users.tolist()):
        if u >= 0:
            known[c] = partial(recalled_in, memory, recall, c, u)
    return loop_round(name, vectors, mine, steps, rates, known)


def recalled_in(memory, recall, c, u, step):
    return memory.lists[u], memory.old[u], recall.lots[step, c], memory.eps, memory.weight


@needs_flower
@pytest.mark.parametrize('name', BACKBONES)
def test_flower_is_the_simulation_is_a_plain_loop(shop, ten, tmp_path, name):
    "Two blocks of three rounds, with a memory and a temporal mean; ten clients, not all of them in both blocks."
    plan, nodes = made(tmp_path, shop, ten, backbone=name)
    expected, calls = [], []

    def loop(*args):
        calls.append(args[5] is not None)
        return looped(*args)

    expected = simulated(shop, ten, plan, loop=loop)
    assert calls == [False] * 3 + [True] * 3
    found = carried_out(plan, nodes)
    is_that_of(found, expected)
    assert [len(r.taken) for r in found[1]] == [8] * 3 + [9] * 3 and not any(r.left_out for r in found[1])
    start = simulated(shop, ten, plan, absent=dict.fromkeys(range(1, 7)))[0]
    forgetful = simulated(shop, ten, replace(plan, memory=False))[0]
    assert np.abs(found[0] - start).max() > 0.1 and np.abs(found[0] - forgetful).max() > 5e-4


@needs_flower
@pytest.mark.parametrize('off', [dict(memory=False), dict(temporal=False), dict(memory=False, temporal=False)])
def test_each_switch_by_itself(shop, ten, tmp_path, off):
    plan, nodes = made(tmp_path, shop, ten, **off)
    found, on = carried_out(plan, nodes), replace(plan, memory=True, temporal=True)
    is_that_of(found, simulated(shop, ten, plan))
    assert np.abs(found[0] - simulated(shop, ten, on)[0]).max() > 1e-3


BAD = {  # what goes wrong -> what is said
    'killed': 'no answer within',
    'late': 'no answer within',
    'away': 'no answer within',
    'nan': 'are not finite',
    'infinite': 'are not finite',
    'narrow': 'its shape is (40, 1), not (40, 8)',
    'scalar': 'its shape is (), not (40, 8)',
    'double': 'its numbers are float64, not float32',
    'text': 'not float32',
    'huge': 'times the median of the round, more than 100',
    'largest': 'times the median of the round, more than 100',
    'junk': 'it cannot be read',
    'zip': 'it cannot be read',
    'pickle': 'it cannot be read',
    'kind': 'it cannot be read',
    'renamed': 'it has weights, where "change" is asked for',
    'more': 'it has change, weight, where "change" is asked for',
    'several': 'it answers for 2 customers, more than 1',
    'long': 'by 999 letters, more than 100',
    'number': 'it answers round 3, not 2',
    'silent': 'it answers round None, not 2',
    'idle': 'Expecting value',
    'nothing': 'it answers round None, not 2',
}


@needs_flower
@pytest.mark.parametrize('what', BAD)
def test_a_bad_client_is_left_out_and_said(shop, ten, tmp_path, what):
    "In the second round of four; the others go on as if it had not been there, and it takes part again."
    plan, nodes = made(tmp_path, shop, ten, rounds=2)
    bad = next(n for n in nodes if user_of(nodes, n) in ten[2:7])
    found = carried_out(plan, nodes, {(bad, 2): what})
    items, rounds, kept = found
    [(who, why)] = rounds[1].left_out.items()
    assert who.endswith(f'@{bad}') and BAD[what] in why
    assert np.isfinite(items).all() and len(rounds[1].taken) == 7
    user = user_of(nodes, bad)
    away = range(2, 5) if what == 'killed' else [2]
    if what == 'killed':
        kept.pop(user)  # its state died with it
        assert [len(r.left_out) for r in rounds] == [0, 1, 1, 1]
    else:
        assert [len(r.left_out) for r in rounds] == [0, 1, 0, 0] and len(rounds[2].taken) == 9
    is_that_of(found, simulated(shop, ten, plan, {n: {user} for n in away}))


@needs_flower
@pytest.mark.parametrize('name', ['FedMF', 'PFedRec'])
def test_who_misses_the_turn_of_a_block_remembers_all_the_same(shop, ten, tmp_path, name):
    "Away or late when the second block begins: the old items are sent along when it is back."
    plan, nodes = made(tmp_path, shop, ten, backbone=name)
    bad = next(n for n in nodes if user_of(nodes, n) in ten[2:7])
    user = user_of(nodes, bad)
    found = carried_out(plan, nodes, {(bad, 4): 'away'})
    is_that_of(found, simulated(shop, ten, plan, {4: {user}}))
    found = carried_out(plan, nodes, {(bad, 3): 'late', (bad, 4): 'late'})
    is_that_of(found, simulated(shop, ten, plan, {3: {user}, 4: {user}}))
    lost = {(bad, 3): 'nan', (bad, 4): 'killed'}
    found[2].clear()
    is_that_of(
        carried_out(plan, nodes, lost)[:2] + ({},), simulated(shop, ten, plan, {n: {user} for n in (3, 4, 5, 6)})
    )


@needs_flower
def test_an_answer_counts_once(shop, ten, tmp_path):
    plan, nodes = made(tmp_path, shop, ten, rounds=1)
    found = carried_out(plan, nodes, {(1, 1): 'twice'})
    assert found[1][0].left_out == {'@1': 'it was not asked, or answered before'}
    is_that_of(found, simulated(shop, ten, plan))


@needs_flower
def test_too_few_good_answers_move_nothing(shop, ten, tmp_path):
    "And no client keeps what it learned in such a round."
    plan, nodes = made(tmp_path, shop, ten, least=7)
    found = carried_out(plan, nodes, {(n, 2): 'nan' for n in (1, 2, 3)})
    assert found[1][1].taken == () and found[1][1].note == '5 good answers, fewer than 7: items stay as they were'
    assert 'items stay as they were' in str(found[1][1]) and 'are not finite' in str(found[1][1])
    is_that_of(found, simulated(shop, ten, plan, {2: None}))


@needs_flower
def test_an_app_that_fails_is_said(shop, ten, tmp_path):
    def failing(message, context, call_next):
        if context.node_id == 3:
            raise OSError('no room left')
        return call_next(message, context)

    plan, nodes = made(tmp_path, shop, ten, rounds=1)
    rounds = carried_out(plan, nodes, app=client_app(failing))[1]
    assert all(r.left_out == {'@3': 'its app failed: OSError: no room left'} for r in rounds)


@needs_flower
def test_a_node_of_several_customers(shop, ten, tmp_path):
    plan, nodes = made(tmp_path, shop, ten, per_node=10, nodes=1)
    grid = LocalGrid(client_app(), {1: dict(customers=str(tmp_path / 'customers'))}, config_of(plan))
    items, rounds = run_rounds(grid, plan)
    assert np.abs(items - simulated(shop, ten, plan)[0]).max() < 1e-6 and len(rounds[0].taken) == 8
    few = LocalGrid(client_app(), {1: dict(customers=str(tmp_path / 'customers'))}, config_of(plan))
    _, rounds = run_rounds(few, replace(plan, per_node=9, rounds=1))
    assert rounds[0].left_out == {'@1': 'it answers for 10 customers, more than 9'}


@needs_flower
def test_clipped_updates_have_at_most_that_norm(shop, ten, tmp_path):
    plan, nodes = made(tmp_path, shop, ten, rounds=1, clip=0.01)
    seen = []

    def look(message, context, call_next):
        reply = call_next(message, context)
        seen.extend(np.linalg.norm(r['change'].numpy()) for r in reply.content.array_records.values())
        return reply

    carried_out(plan, nodes, app=client_app(look))
    assert len(seen) == 17 and max(seen) <= 0.01 * (1 + 1e-6)


# ---- how long a round waits


class Slow:
    "A grid of messages in which nodes 1 and 2 answer at once, node 3 after some seconds, and node 4 never."

    def __init__(self, seconds):
        self.seconds = seconds

    def push_messages(self, messages):
        self.start = time.time()
        return [f'id {m.metadata.dst_node_id}' for m in messages]

    def pull_messages(self, ids):
        here = {'id 1', 'id 2'} | ({'id 3'} if time.time() - self.start > self.seconds else set())
        return [said(reply_to_message_id=i, src_node_id=77) for i in ids if i in here]


def said(**metadata):
    return SimpleNamespace(metadata=SimpleNamespace(**metadata), has_content=lambda: False)


@pytest.mark.parametrize(
    'slack, after, heard', [(0, 0.3, [1, 2, 3]), (10**9, 0.3, [1, 2, 3]), (1, 0.3, [1, 2]), (0, 9, [1, 2])]
)
def test_a_round_waits_for_the_slow_as_long_as_it_is_told(slack, after, heard):
    "And who answers is known from whom the request was sent to, not from what the answer says."
    content = SimpleNamespace(values=list)
    sent = [
        SimpleNamespace(metadata=said(dst_node_id=n).metadata, has_content=lambda: True, content=content)
        for n in (1, 2, 3, 4)
    ]
    grid = Waiting(Slow(after), slack, every=0.02)
    replies = grid.send_and_receive(sent, timeout=0.6)
    assert sorted(map(grid.sender, replies)) == heard
    assert grid.waited < 0.1 if slack == 1 else 0.6 <= grid.waited < 1.5


# ---- sums that hide who gave what


@needs_flower
@pytest.mark.parametrize('gone', [(), (1,), (1, 2, 3)])
def test_a_hidden_sum_is_that_of_a_seen_one(shop, ten, tmp_path, gone):
    "Of those who are there when the sum is made: up to a third may go after the keys are shared."
    plan, nodes = made(tmp_path, shop, ten, rounds=2, lr=0.5, secure=True, clip=4.0)
    stage = {}

    class Leaving(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            stage['n'] = stage.get('n', 0) + 1
            out = gone if stage['n'] == 7 else ()  # the third stage of the second round: masked sums
            return [r for r in replies if r.metadata.src_node_id not in out]

    grid = Leaving(client_app(), nodes, config_of(plan))
    items, rounds = run_rounds(grid, plan)
    users = {user_of(nodes, n) for n in gone}
    expected, private = simulated(shop, ten, plan, {2: users} if gone else {})
    step = 2 * plan.clip / 2**22
    assert 0 < np.abs(items - expected).max() < 10 * step
    assert rounds[1].left_out == {f'@{n}': 'it is not in the sum' for n in gone}
    for n in nodes:
        mine = kept_of(grid.contexts[n], label_of(nodes, n), plan).private['user'][0]
        assert (mine - private['user'][user_of(nodes, n)]).abs().max() < 1e-3


@needs_flower
@pytest.mark.parametrize('stage', [1, 2, 3, 4])  # keys, shares of keys, masked sums, shares of who is there
def test_a_hidden_sum_goes_on_without_who_is_killed(shop, ten, tmp_path, stage):
    "Whenever it is, and in the rounds after it: until the network notices, a dead node is still asked."
    plan, nodes = made(tmp_path, shop, ten, rounds=2, lr=0.5, secure=True, clip=4.0)
    gone, calls = (2, 5), []

    class Leaving(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            calls.append(1)
            sent = [m for m in messages if m.metadata.dst_node_id not in gone or len(calls) < stage]
            return super().send_and_receive(sent, timeout=timeout)

    items, rounds = run_rounds(Leaving(client_app(), nodes, config_of(plan)), plan)
    users = {user_of(nodes, n) for n in gone}
    away = {number: users for number in range(1 if stage < 4 else 2, len(rounds) + 1)}
    step = 2 * plan.clip / 2**22
    assert np.abs(items - simulated(shop, ten, plan, away)[0]).max() < 10 * step
    assert rounds[1].left_out == {f'@{n}': 'it is not in the sum' for n in gone}
    assert all(r.taken and not r.note for r in rounds)


@needs_flower
@pytest.mark.parametrize('bad', [(4,), (4, 5)])
def test_a_change_that_is_not_finite_is_in_no_hidden_sum(shop, ten, tmp_path, monkeypatch, bad):
    "Two of them would cancel in the whole numbers, and leave a wrong mean that looks right."
    plan, nodes = made(tmp_path, shop, ten, rounds=1, lr=0.5, secure=True, clip=4.0)
    users = {user_of(nodes, n) for n in bad}

    def spoiled(backbone, customer, *request, **how):
        kept, change = answer_of(backbone, customer, *request, **how)
        if customer.user in users and change is not None:
            change[0, 0] = float('nan')
        return kept, change

    monkeypatch.setattr('vlm2rec_lab.federated.flower.answer_of', spoiled)
    items, rounds = run_rounds(LocalGrid(client_app(), nodes, config_of(plan)), plan)
    expected = simulated(shop, ten, plan, {1: users, 2: users})[0]
    assert np.abs(items - expected).max() < 10 * 2 * plan.clip / 2**22
    assert rounds[0].left_out == {f'@{n}': 'it is not in the sum' for n in bad}


@needs_flower
def test_a_hidden_sum_of_nobody_blames_nobody(shop, ten, tmp_path):
    "Two who bought in the second block alone: in the first one they have nothing to learn."
    late = [u for u in ten if u not in shop[0].train.users][:2]
    plan, nodes = made(tmp_path, shop, late, rounds=1, secure=True, clip=4.0)
    _, rounds = run_rounds(LocalGrid(client_app(), nodes, config_of(plan)), plan)
    assert [len(r.taken) for r in rounds] == [0, 2]
    assert len(rounds[0].idle) == 2 and not rounds[0].left_out and '0 good answers' in rounds[0].note


@needs_flower
def test_a_hidden_sum_is_of_no_more_nodes_than_whole_numbers_can_hold(shop, ten, tmp_path, monkeypatch):
    plan, nodes = made(tmp_path, shop, ten, rounds=1, lr=0.5, secure=True, clip=4.0)
    monkeypatch.setattr('vlm2rec_lab.federated.flower.MOST_HIDDEN', 7)
    items, rounds = run_rounds(
        LocalGrid(client_app(), nodes, config_of(replace(plan, nodes=7))), replace(plan, nodes=7)
    )
    out = [*nodes][7:]
    users = {user_of(nodes, n) for n in out}
    assert np.abs(items - simulated(shop, ten, plan, {1: users, 2: users})[0]).max() < 10 * 2 * plan.clip / 2**22
    assert rounds[0].left_out == {f'@{n}': 'it is not in the sum' for n in out}


@pytest.mark.parametrize('nodes', [1, 1024, 5000])
def test_a_hidden_sum_of_too_few_or_too_many_nodes_is_not_begun(nodes):
    config = dict(sizes='6 9', nodes=nodes, clip=1.0)
    plan_of(config)
    with pytest.raises(DataError, match=f'nodes={nodes}: secure=True adds up 2 to 1,023 nodes'):
        plan_of(config | dict(secure=True))


@needs_flower
def test_where_too_few_are_left_a_hidden_sum_is_not_made(shop, ten, tmp_path):
    plan, nodes = made(tmp_path, shop, ten, rounds=1, secure=True, clip=4.0)

    class Leaving(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return [r for r in super().send_and_receive(messages, timeout=timeout) if r.metadata.src_node_id > 5]

    items, rounds = run_rounds(Leaving(client_app(), nodes, config_of(plan)), plan)
    assert np.array_equal(items, simulated(shop, ten, plan, {1: None, 2: None})[0])
    assert rounds[0].note == '0 good answers, fewer than 1: items stay as they were' and len(rounds[0].left_out) == 10


@needs_flower
def test_a_hidden_sum_that_cannot_be_is_refused(shop, ten, tmp_path):
    "A client that goes beyond the bound cannot be seen; that the sum does can."
    plan, nodes = made(tmp_path, shop, ten, rounds=1, secure=True, clip=0.5)

    def huge(message, context, call_next):
        reply = call_next(message, context)
        for record in reply.content.config_records.values():
            if context.node_id == 4 and 'masked_params' in record:
                vectors = [np.load(io.BytesIO(b)) for b in record['masked_params']]
                vectors[1] = (vectors[1] + 2**28) % 2**32
                record['masked_params'] = [dumped(v) for v in vectors]
        return reply

    items, rounds = run_rounds(LocalGrid(client_app(huge), nodes, config_of(plan)), plan)
    assert 'bounded updates have none above' in rounds[0].left_out['everybody']
    assert np.array_equal(items, simulated(shop, ten, plan, {1: None, 2: None})[0])


def dumped(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


# ---- folders, and what is not there


def test_a_folder_and_its_commands(shop, ten, tmp_path):
    plan = write_app(tmp_path, shop, ten, **HOW)
    assert read_plan(tmp_path) == plan and plan.sizes == tuple(b.items for b in shop.blocks) and plan.nodes == 10
    one = read_customer(tmp_path / 'customers' / f'customer-{ten[0]}.safetensors')
    assert [a.tolist() for a in one.learn] == [b.train.items[b.train.users == ten[0]].tolist() for b in shop.blocks]
    assert str(tmp_path / 'app') in start_commands(tmp_path).splitlines()[-1]
    for settings_, said in (
        (dict(secure=True), 'needs clip'),
        (dict(backbone='FedMk'), "did you mean 'FedMF'"),
        (dict(beta=2.0), 'beta=2.0'),
        (dict(lr=-1.0), 'lr=-1.0'),
        (dict(length=0), 'length=0'),
        (dict(timeout=0.0), 'timeout'),
    ):
        with pytest.raises(DataError, match=said):
            write_app(tmp_path, shop, ten, **settings_)


def test_commands_survive_any_folder(shop, ten, tmp_path):
    "Spaces, quotes, dollars: what a shell makes of the commands is what was meant, and TOML reads what nodes get."
    folder = tmp_path / "my shop's $HOME \u00fc \U0001f30d"
    plan = write_app(folder, shop, ten[:2], **HOW)
    assert read_plan(folder) == plan
    lines = [shlex.split(line) for line in start_commands(folder).splitlines()]
    assert lines[0][-1] == f'FLWR_HOME={folder / "flower"}' and lines[-1][2] == str(folder / 'app')
    told = [tomllib.loads(node[node.index('--node-config') + 1].replace('" ', '"\n')) for node in lines[2:4]]
    assert [Path(t['customers']).parent for t in told] == [folder / 'customers'] * 2
    assert len({t['secret'] for t in told}) == 2
    assert 'secret' not in start_commands(folder, secret=False)


def test_a_folder_is_written_once_and_customers_are_named_once(shop, ten, tmp_path):
    with pytest.raises(DataError, match='named twice'):
        write_app(tmp_path, shop, [ten[0], ten[0]], **HOW)
    write_app(tmp_path, shop, ten[:2], **HOW)
    with pytest.raises(DataError, match='has customers already'):
        write_app(tmp_path, shop, ten[2:4], **HOW)


def test_what_a_client_draws_by_its_secret_the_seed_of_the_run_does_not_tell(shop, ten):
    "Another start and other negatives; what all begin with alike stays alike."
    customer, backbone = customer_of(shop, ten[0]), get_backbone('FedMF')
    request = Request(torch.ones(shop[0].items, 8), torch.ones(0, 8), 0, 1, 0)
    how = dict(lr=0.5, seed=0)
    known, hidden, again = (answer_of(backbone, customer, None, request, **how, secret=x)[1] for x in (None, 5, 5))
    assert torch.equal(hidden, again)
    assert (known != 0).any(1).tolist() != (hidden != 0).any(1).tolist()
    own, other = (begin_own(get_backbone('PFedRec'), 8, 0, ten[0], x) for x in (None, 5))
    assert all(torch.equal(own[k], other[k]) for k in own)


@needs_flower
def test_what_is_sent_to_all_nodes_holds_nobodys_purchases(shop, ten, tmp_path):
    from flwr.cli.build import build_fab_from_disk

    write_app(tmp_path, shop, ten, **HOW)
    names = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(tmp_path / 'app'))).namelist()
    assert sorted(names) == ['.info/CONTENT', 'client_app.py', 'pyproject.toml', 'server_app.py']


@needs_flower
def test_a_run_here_leaves_its_records(shop, ten, tmp_path):
    write_app(tmp_path, shop, ten, **HOW | dict(rounds=1))
    items, rounds, kept = run_here(tmp_path)
    assert read_rounds(tmp_path / 'server' / 'rounds.jsonl') == rounds and len(kept) == 10
    from safetensors.numpy import load_file

    assert np.array_equal(load_file(tmp_path / 'server' / 'items.safetensors')['items'], items)
    mine = load_file(tmp_path / 'kept' / f'customer-{ten[0]}.safetensors')
    assert np.array_equal(mine['user'], kept[1].private['user'].numpy()) and mine['items'].shape == items.shape


def test_without_flower_all_but_the_apps_is_there(tmp_path):
    code = (
        'import sys\n'
        'sys.modules["flwr"] = None\n'
        'from vlm2rec_lab.federated import flower, flower_folder\n'
        'from vlm2rec_lab.federated.flower_app import client_app\n'
        'client_app()'
    )
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert 'ImportError: a federation on machines of their own needs Flower' in done.stderr
    assert 'pip install "vlm2rec_lab[flower]"' in done.stderr


def test_a_client_is_light():
    "A message that asks for keys alone waits for neither torch nor pandas, and no message for pandas."
    code = (
        'import sys\n'
        'import vlm2rec_lab.federated.flower_app\n'
        'print("torch" in sys.modules, "flwr" in sys.modules)\n'
        'import vlm2rec_lab.federated.flower\n'
        'print("pandas" in sys.modules, "sklearn" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == ['False'] * 4, done.stdout + done.stderr


SENT = st.dictionaries(
    st.sampled_from(['change', 'weights']),
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int32, np.bool_]),
        st.sampled_from([(3, 2), (2, 3), (3,), (), (0, 2)]),
    ),
    max_size=2,
)


@given(st.dictionaries(st.text(max_size=3), SENT, max_size=5), st.sampled_from([None, 3.0]))
@settings(max_examples=80)
def test_whatever_is_sent_only_good_answers_are_taken(answers, factor):
    good, bad = judged(answers, (3, 2), factor)
    assert good.keys() | bad.keys() == answers.keys() and not good.keys() & bad.keys() and all(bad.values())
    assert all(a.dtype == np.float32 and a.shape == (3, 2) and np.isfinite(a).all() for a in good.values())
    assert not good or bool(torch.isfinite(total_of(good.values())).all())


@given(st.integers(2, 99), st.integers(2, 9), st.floats(0.01, 9), st.booleans(), st.sampled_from([*BACKBONES]))
@settings(max_examples=30)
def test_a_plan_comes_back_from_its_table(items, nodes, lr, secure, name):
    config = dict(sizes=f'{items} {items}', nodes=nodes, lr=lr, secure=secure, clip=1, backbone=name)
    assert plan_of(config_of(plan_of(config))) == plan_of(config)
