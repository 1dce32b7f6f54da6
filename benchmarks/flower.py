"""A federation by Flower on this machine: seconds and bytes of a round, sums seen and hidden, and honest norms.

    python benchmarks/flower.py [--clients 10] [--each 2] [--rounds 1] [--shop FOLDER] [--out FILE.json]

Ten customers of 50 purchases each, two on a node of Flower, FedMF over 1,152 items in 32 dimensions (the size of
MovieLens 100K), by real servers on loopback and in one process. With --shop, how much larger the largest honest update
is than the median of its round, on a shop of one's own with dates.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
os.environ |= dict(FLWR_TELEMETRY_ENABLED='0', OMP_NUM_THREADS='1')

import numpy as np  # noqa: E402
from common import machine  # noqa: E402
from federated_apps import simulated  # noqa: E402
from flower_processes import federation, households  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from vlm2rec_lab.federated.backbones import BACKBONES  # noqa: E402
from vlm2rec_lab.federated.blocks import Block, Blocks, Pairs, blocks  # noqa: E402
from vlm2rec_lab.federated.flower import (  # noqa: E402
    Request,
    answer_of,
    begin_items,
    customer_of,
    next_items,
    read_rounds,
    total_of,
)
from vlm2rec_lab.federated.flower_folder import read_plan, run_here, write_app  # noqa: E402

WAYS = {'seen': {}, 'hidden': dict(secure=True)}


def made_up(users, items=1152, each=50, seed=0):
    "A shop of one block: customers with `each` purchases."
    rng, nobody = np.random.default_rng(seed), Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    bought = np.concatenate([rng.choice(items, each, replace=False) for _ in range(users)])
    block = Block(Pairs(np.repeat(np.arange(users), each), bought), nobody, nobody, users, items)
    return Blocks((block,), tuple(map(str, range(users))), np.arange(items), 'made up')


def busy(groups):
    "Seconds that the processors have worked for some commands, and for those of their processes that are over."
    total = 0.0
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rpartition(')')[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[2]) in groups:
            total += sum(map(int, fields[11:15])) / os.sysconf('SC_CLK_TCK')
    return total


def by_servers(folder, nodes):
    "A run by real servers: list of Round, items, seconds of processors."
    with federation(folder, nodes) as (run, groups):
        started = run()
        assert started.process.wait(900) == 0, started.log.read_text()[-3000:]
        worked = busy({g.process.pid for g in groups.values()})
    items = load_file(folder / 'server' / 'items.safetensors')['items']
    return read_rounds(folder / 'server' / 'rounds.jsonl'), items, worked


def summary(rounds, clients, nodes):
    "What a round costs: seconds of the quickest, bytes of one node."
    assert all(len(r.taken) == clients for r in rounds), [str(r) for r in rounds]
    seconds = min(r.seconds for r in rounds)
    return dict(seconds=round(seconds, 2), sent=rounds[-1].sent // nodes, got=rounds[-1].got // nodes)


def measure(clients, each, rounds, clip):
    "Both ways, by servers and in one process, and how far they are from the simulation."
    shop, found = made_up(clients), {}
    for name, more in WAYS.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write_app(
                folder, shop, rounds=rounds, timeout=600.0, clip=clip, per_node=each, nodes=clients // each, **more
            )
            here, said, _ = run_here(folder)
            expected, _ = simulated(shop, range(clients), read_plan(folder))
            apart = dict(here=float(np.abs(here - expected).max()))
            row, nodes = dict(here=summary(said, clients, clients)), households(folder, range(clients), each)
            said, items, worked = by_servers(folder, nodes)
            apart |= dict(servers=float(np.abs(items - expected).max()))
            row['servers'] = summary(said, clients, len(nodes)) | dict(worked=round(worked, 1))
            found[name] = row | dict(apart=apart)
            print(name, found[name], flush=True)
    return found


def honest(folder, clients=120, rounds=30):
    "How many times the median norm of a round the largest honest update is, over the rounds of the base block."
    from vlm2rec_lab.commands.open import open_dataset

    shop, found = blocks(open_dataset(folder), 0.6, 3, 10), {}
    users = np.random.default_rng(0).permutation(np.unique(shop[0].train.users))[:clients]
    for name, lr in (('FedMF', 1.0), ('FedMLP', 0.1), ('PFedRec', 0.1)):
        b, kept, ratios = BACKBONES[name], dict.fromkeys(users), []
        items = begin_items(b, shop[0].items, 32, 0)
        people = {u: customer_of(shop, int(u)) for u in users}
        for number in range(1, rounds + 1):
            answers = {}
            for u, who in people.items():
                request = Request(items, items[:0], 0, number, number - 1)
                kept[u], change = answer_of(b, who, kept[u], request, lr=lr, seed=0)
                answers[u] = change.numpy()
            norms = [float(np.linalg.norm(a)) for a in answers.values()]
            ratios.append(max(norms) / statistics.median(norms))
            items = next_items(items, total_of(answers.values()), len(answers))[0]
        found[name] = dict(largest=round(max(ratios), 1), middle=round(statistics.median(ratios), 1))
        print(name, found[name], flush=True)
    return dict(shop=shop.name, clients=len(users), rounds=rounds, times=found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--clients', type=int, default=10)
    parser.add_argument('--each', type=int, default=2, help='clients of a node')
    parser.add_argument('--rounds', type=int, default=1)
    parser.add_argument('--clip', type=float, default=20.0, help='largest norm of an update')
    parser.add_argument('--shop', help='a folder with dates, for norms of honest updates')
    parser.add_argument('--out', help='file to write')
    o = parser.parse_args()
    found = dict(machine=machine(), clients=o.clients, each=o.each, clip=o.clip, step=2 * o.clip / 2**22)
    found |= dict(rounds=o.rounds, ways=measure(o.clients, o.each, o.rounds, o.clip))
    if o.shop:
        found['norms'] = honest(o.shop)
    if o.out:
        Path(o.out).write_text(json.dumps(found, indent=1) + '\n')
    print(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
