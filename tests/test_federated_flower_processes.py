"""The federation by real servers of Flower on loopback: equal to the simulation, through a node that comes late and one
that is killed in the middle of a round."""

import signal
import time
from importlib.util import find_spec

import numpy as np
import pytest
from federated_apps import simulated
from federated_worlds import drawn_shop
from flower_processes import federation, households, left, wait_for
from safetensors.numpy import load_file

from vlm2rec_lab.federated.blocks import blocks
from vlm2rec_lab.federated.flower import read_rounds
from vlm2rec_lab.federated.flower_folder import write_app

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec('flwr') is None, reason='Flower is not installed'),
]
LATE, KILLED = 1, 2  # nodes
CLIENT = '''
import time
from pathlib import Path

from vlm2rec_lab.federated.flower_app import client_app


def slow(message, context, call_next):
    "Waits in the round that its node names: until there is a line of its own in the server's records, or for ever."
    node, number = context.node_config, int(message.metadata.group_id)
    if number == node.get('slow_in'):
        Path(node['mark']).touch()
        while Path(node['until']).read_text().count(chr(10)) < number:
            time.sleep(0.1)
    return call_next(message, context)


app = client_app(slow)
'''


@pytest.fixture(scope='module')
def shop():
    return blocks(drawn_shop(items=40, users=120, length=12), core=5, parts=1)


def test_servers_a_late_node_and_a_killed_one(shop, tmp_path):
    "Two blocks of two rounds, with a memory and a temporal mean: late in the third round, killed in the fourth."
    ten = list(map(int, np.intersect1d(*(b.train.users for b in shop.blocks))[:10]))
    how = dict(rounds=2, dim=8, batch=12, lr=1.0, memory=True, temporal=True, length=6, per_node=3, nodes=4)
    plan = write_app(tmp_path, shop, ten, timeout=200.0, slack=2.0, **how)
    (tmp_path / 'app' / 'client_app.py').write_text(CLIENT)
    nodes = households(tmp_path, ten, 3)
    records = dict(until=str(tmp_path / 'server' / 'rounds.jsonl'))
    nodes[LATE] |= dict(slow_in=3, mark=str(tmp_path / 'slow'), **records)
    nodes[KILLED] |= dict(slow_in=4, mark=str(tmp_path / 'struck'), **records)
    with federation(tmp_path, nodes) as (run, groups):
        started = run()
        wait_for((tmp_path / 'struck').exists, started, 300)
        groups[KILLED].process.send_signal(signal.SIGKILL)
        killed = time.time()
        started.process.wait(600)
        print(f'the run went on for {time.time() - killed:.0f} s after a node was killed')
        said = started.log.read_text()
    assert not any(g.signal(0) for g in groups.values()) and not left(tmp_path), 'a process is left'
    rounds = read_rounds(tmp_path / 'server' / 'rounds.jsonl')
    print(*rounds, [round(r.seconds, 1) for r in rounds], sep='\n')
    assert len(rounds) == 4 and 'no answer within' in said
    taken = [{int(who.partition('@')[0].rpartition('-')[2]) for who in r.taken} for r in rounds]
    late, struck = (set(ten[3 * n : 3 * n + 3]) for n in (LATE, KILLED))
    assert not late & taken[2] and not struck & taken[3] and all(len(t) >= 2 for t in taken)
    expected, private = simulated(shop, ten, plan, {k + 1: set(ten) - t for k, t in enumerate(taken)})
    items = load_file(tmp_path / 'server' / 'items.safetensors')['items']
    print(f'items differ from those of the simulation by {np.abs(items - expected).max():.1e}')
    assert np.abs(items - expected).max() < 1e-6
    for user in taken[3]:
        mine = load_file(tmp_path / 'kept' / f'customer-{user}.safetensors')['user']
        assert np.abs(mine[0] - private['user'][user].numpy()).max() < 1e-6
