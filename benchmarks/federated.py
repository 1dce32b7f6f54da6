"""Federations at size: a round with few and with many clients, beside a plain loop over clients, and a study of films.

    python benchmarks/federated.py [--clients 1000 3000 10000 30000 100000] [--items 2000] [--pairs 20] [--dim 32]
                                   [--backbones FedMF PFedRec] [--rounds 3] [--parts round loop films]
                                   [--data FOLDER] [--seeds 5] [--threads 1] [--cells FOLDER]
                                   [--out benchmarks/results/federated.json] [--small]

Each client has `--pairs` items, drawn evenly, and four negatives for each. What is measured, each in a process of its
own, whose peak memory is told:

- `round`: a round of all clients, plain and with memory and temporal mean (ARM+ITM), as in a block after the base block
  in which every client is known. One round before is not counted.
- `loop`: the same round, plain, of the fewest clients as a loop over clients, each with its own copy of the items and
  PyTorch's autograd and SGD; both must come to the same items.
- `films` (with `--data`, MovieLens-100K): FedMF with ARM+ITM through four blocks of 100 rounds, validation looked at
  after each, all tests asked.

CPU seconds are those of all threads; wall seconds depend on what else the machine does, which `load` tells.
"""

import argparse
import json
import os
import resource
from pathlib import Path
from types import SimpleNamespace

from common import Clock, in_own_process, machine, quantiles, quiet, table, write

PARTS = 'round', 'loop', 'films'
WAYS = 'plain', 'ARM+ITM'
LR = {'FedMF': 1.0, 'PFedRec': 0.1, 'FedMLP': 0.1}
GOAL = 600  # seconds for five seeds on films


def megabytes():
    "The most memory that this process has had."
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def drawn_pairs(clients, items, pairs, seed):  # -> Pairs
    "Different items for each client, a thousand clients at a time."
    import numpy as np

    from vlm2rec_lab.federated.blocks import Pairs

    rng = np.random.default_rng(seed)
    parts = [
        rng.random((min(1000, clients - a), items), dtype=np.float32).argpartition(pairs, 1)[:, :pairs].copy()
        for a in range(0, clients, 1000)
    ]
    return Pairs(np.repeat(np.arange(clients), pairs), np.concatenate(parts).ravel())


def federation(a):  # -> backbone, items [N, d], private, Clients, rates
    "A federation before its first round."
    import torch

    from vlm2rec_lab.federated.backbones import get_backbone, rates_of
    from vlm2rec_lab.federated.rounds import clients_of

    backbone, g = get_backbone(a.backbone), torch.Generator().manual_seed(a.seed)
    clients = clients_of(drawn_pairs(a.clients, a.items, a.pairs, a.seed), [], a.items)
    vectors = torch.randn(a.items, a.dim, generator=g) * backbone.spread
    return backbone, vectors, backbone.begin(a.clients, a.dim, g), clients, rates_of(backbone, LR[a.backbone], a.items)


def round_(a):  # -> dict
    "Rounds of all clients."
    import torch

    from vlm2rec_lab.federated.memory import remembered
    from vlm2rec_lab.federated.rounds import run_round
    from vlm2rec_lab.federated.temporal import holding

    begun = megabytes()
    backbone, vectors, private, clients, rates = federation(a)
    g, how, took = torch.Generator().manual_seed(a.seed), {}, []
    run_round(backbone, vectors, private, clients, rates, g)
    if a.way == 'ARM+ITM':
        memory = remembered(*backbone.head(private), vectors, torch.arange(a.clients))
        how = dict(memory=memory, server=holding(vectors))
    for _ in range(a.rounds):
        with Clock() as c:
            loss = run_round(backbone, vectors, private, clients, rates, g, **how)
        took.append((c.cpu, c.wall))
    found = dict(backbone=a.backbone, way=a.way, clients=a.clients)
    for name, values in zip(('cpu', 'wall'), zip(*took)):
        found |= dict(zip((name, f'{name}_low', f'{name}_high'), quantiles(values)))
    peak = megabytes()
    return found | dict(rounds=a.rounds, peak_mb=peak, over_mb=peak - begun, loss=round(loss, 4), threads=a.threads)


def plain_scores(name, mine, vectors):
    "Scores of some items by a client's private parameters."
    return vectors @ mine['user'] if name == 'FedMF' else vectors @ mine['head'] + mine['bias']


def loop_over_clients(name, vectors, private, steps, rates):  # -> mean of the clients' items [N, d]
    "A round as a loop over clients, by autograd and SGD; private parameters are changed in place."
    import torch
    import torch.nn.functional as F

    total = torch.zeros_like(vectors)
    ends = [torch.bincount(s.rows, minlength=len(next(iter(private.values())))).cumsum(0).tolist() for s in steps]
    for c in range(len(next(iter(private.values())))):
        own = vectors.clone().requires_grad_()
        mine = {k: v[c].clone().requires_grad_() for k, v in private.items()}
        heads = torch.optim.SGD([dict(params=[v], lr=rates[k]) for k, v in mine.items()])
        items = torch.optim.SGD([own], lr=rates['items'])
        for step, end in zip(steps, ends):
            a, b = end[c - 1] if c else 0, end[c]
            if a == b:
                continue

            def pull():
                heads.zero_grad()
                items.zero_grad()
                asked = plain_scores(name, mine, own[step.items[a:b]])
                F.binary_cross_entropy_with_logits(asked, step.labels[a:b]).backward()

            pull()
            heads.step()
            if name == 'PFedRec':  # another look at the batch before the items move
                pull()
            items.step()
        total += own.detach()
        for k, v in mine.items():
            private[k][c] = v.detach()
    return total / len(next(iter(private.values())))


def loop(a):  # -> dict
    "A round of ours and the loop over clients, in turn, from the same beginning."
    import torch

    from vlm2rec_lab.federated.rounds import draw_steps, run_round

    backbone, vectors, private, clients, rates = federation(a)
    took = {'ours': [], 'loop': []}
    for turn in range(a.rounds + 1):
        g = torch.Generator().manual_seed(turn)
        mine, own = vectors.clone(), {k: v.clone() for k, v in private.items()}
        with Clock() as ours:
            run_round(backbone, mine, own, clients, rates, g)
        steps = draw_steps(clients, 4, 512, torch.Generator().manual_seed(turn))
        theirs = {k: v[clients.users] for k, v in private.items()}
        with Clock() as plain:
            mean = loop_over_clients(backbone.name, vectors, theirs, steps, rates)
        apart = max((mine - mean).abs().max(), *((own[k][clients.users] - v).abs().max() for k, v in theirs.items()))
        moved = (mine - vectors).abs().max()
        if turn:  # the first one is warm-up
            took['ours'].append(ours.cpu)
            took['loop'].append(plain.cpu)
    found = dict(backbone=backbone.name, clients=a.clients, rounds=a.rounds)
    found |= {f'cpu_{name}': quantiles(values)[0] for name, values in took.items()}
    ratio = sum(took['loop']) / sum(took['ours'])
    return found | dict(ratio=round(ratio, 1), apart=float(f'{apart:.1e}'), moved=float(f'{moved:.1e}'))


def films(a):  # -> dict
    "A seed of FedMF with ARM+ITM through all blocks."
    import warnings

    from vlm2rec_lab.commands.open import open_dataset
    from vlm2rec_lab.federated.blocks import blocks
    from vlm2rec_lab.federated.study import federated_cell

    warnings.simplefilter('ignore')
    cut = blocks(open_dataset(a.data, 0, None))
    with Clock() as c:
        done = federated_cell(cut, 'FedMF', 'ARM+ITM', a.seed, rounds=a.rounds, patience=None, progress=False)
    found = dict(seed=a.seed, blocks=len(cut), customers=len(cut.user_ids), items=len(cut.catalogue))
    rounds = sum(r['rounds'] for r in done['rounds'])
    return found | dict(rounds=rounds, cpu=round(c.cpu, 1), wall=round(c.wall, 1), threads=a.threads)


def child(asked):
    "One part with its settings; prints what it found as JSON."
    a = SimpleNamespace(**json.loads(asked))
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: a.threads])
    quiet(a.threads)
    found = dict(round=round_, loop=loop, films=films)[a.part](a)
    print(json.dumps(found | dict(load=[round(x, 2) for x in os.getloadavg()])))


def asked_parts(a):  # -> {part: list of settings}
    "What is to be run."
    size = {k: getattr(a, k) for k in ('items', 'pairs', 'dim', 'rounds', 'threads')} | dict(seed=0)
    film = dict(data=a.data, rounds=4 if a.small else 100, threads=a.threads)
    found = {
        'round': [size | dict(backbone=b, way=w, clients=n) for b in a.backbones for w in WAYS for n in a.clients],
        'loop': [size | dict(backbone=b, clients=min(a.clients)) for b in a.backbones],
        'films': [film | dict(seed=seed) for seed in range(a.seeds)] if a.data else [],
    }
    return {part: found[part] for part in PARTS if part in a.parts}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--clients', type=int, nargs='+', default=[1000, 3000, 10_000, 30_000, 100_000])
    p.add_argument('--items', type=int, default=2000)
    p.add_argument('--pairs', type=int, default=20, help='of each client')
    p.add_argument('--dim', type=int, default=32)
    p.add_argument('--backbones', nargs='+', choices=['FedMF', 'PFedRec'], default=['FedMF', 'PFedRec'])
    p.add_argument('--rounds', type=int, default=3, help='that are measured')
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS, help='what to measure')
    p.add_argument('--data', help='folder of films; without it they are left out')
    p.add_argument('--seeds', type=int, default=5, help='on films')
    p.add_argument('--cells', type=Path, help='folder that keeps finished parts, and goes on from there')
    p.add_argument('--small', action='store_true', help='30 clients, 50 items: does it run?')
    p.add_argument('--out', type=Path, help='write the figures as JSON here')
    p.add_argument('--child', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(a.child)
    if a.data and not Path(a.data).is_dir():
        p.error(f'--data {a.data}: there is no such folder')
    if a.small:
        a.clients, a.items, a.pairs, a.dim, a.rounds, a.seeds = [30], 50, 5, 4, 1, 1
    if a.pairs >= a.items:
        p.error(f'--pairs {a.pairs}: give fewer than --items {a.items}')
    found = {
        part: [in_own_process(__file__, a.cells, part, **how) for how in asked]
        for part, asked in asked_parts(a).items()
    }
    print(f'{a.items:,} items, {a.pairs} pairs and {4 * a.pairs} negatives of each client, {a.dim} dimensions')
    for part, rows in found.items():
        if rows:
            print(f'\n{part}\n' + table([{k: v for k, v in r.items() if k != 'load'} for r in rows]))
    if 'films' in found and not found['films']:
        print('\nfilms are left out: --data FOLDER says where they are')
    elif rows := found.get('films'):
        cpu, wall = (sum(r[k] for r in rows) / len(rows) for k in ('cpu', 'wall'))
        print(
            f'\nfilms: {cpu:.1f} CPU seconds and {wall:.1f} of the wall for a seed, {5 * wall:.0f} for five of {GOAL}'
        )
    size = {k: getattr(a, k) for k in ('items', 'pairs', 'dim', 'rounds')}
    found = dict(rows=found.pop('round', []), **found)
    write(a.out, dict(machine=machine(), size=size, goal=GOAL, **found))


if __name__ == '__main__':
    main()
