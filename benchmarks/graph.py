"""An epoch of LightGCN and of VBPR on drawn purchases: seconds and peak memory.

    python benchmarks/graph.py [--users 50000] [--items 100000] [--interactions 1000000] [--dim 64] [--layers 3]
                               [--batches 2048 8192] [--threads 2] [--out benchmarks/results/graph.json] [--small]

Users draw their items independently, the popular ones more often (the k-th item in proportion to one over the root
of k). VBPR reads a text of 384 and a picture of 512 numbers for each item. Each model and batch has a process of its
own, which makes the data, builds the graph and trains one epoch by `fit_graph`, without a look at validation; peak
memory is that of the whole process. CPU seconds are those of all threads; wall seconds depend on what else the machine
does, which `load` tells.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from common import Clock, machine, quiet, say, table, write

CONTENTS = {'text': 384, 'image': 512}  # numbers of each content


def purchases(users, items, interactions, seed):  # -> Split of training pairs alone
    "Drawn pairs, each once."
    import numpy as np

    from vlm2rec_lab.data import Catalogue, Rows, Split

    rng = np.random.default_rng(seed)
    keys = np.zeros(0, np.int64)
    while len(keys) < interactions:
        popular = (items * rng.random(interactions) ** 2).astype(np.int64)
        keys = np.union1d(keys, rng.integers(0, users, interactions) * items + np.minimum(popular, items - 1))
    keys = np.sort(rng.permutation(keys)[:interactions])
    offsets = np.searchsorted(keys, np.arange(users + 1) * items)
    none, names = Rows([], np.zeros((0, 1)), [], [0], []), tuple(map(str, range(items)))
    return Split(Catalogue(names, {}, {}), none, none, none, (offsets, keys % items), 'drawn purchases')


def model_of(name, split, a):
    "The model, and how long it took to make."
    import numpy as np

    from vlm2rec_lab.graph.graph import graph_of
    from vlm2rec_lab.graph.models import VBPR, LightGCN

    if name == 'LightGCN':
        with Clock() as c:
            model = LightGCN(graph_of(split), a.dim, a.layers)
        return model, c.wall
    rng = np.random.default_rng(a.seed)
    vectors = {m: rng.normal(size=(a.items, d)).astype(np.float32) for m, d in CONTENTS.items()}
    with Clock() as c:
        model = VBPR(a.users, a.items, vectors, a.dim)
    return model, c.wall


def child(a):
    "One epoch; prints its figures as JSON."
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: a.threads])
    quiet(a.threads)
    from vlm2rec_lab.graph.fit import fit_graph

    split = purchases(a.users, a.items, a.interactions, a.seed)
    model, made = model_of(a.child, split, a)
    run = fit_graph(model, split, batch=a.batches[0], epochs=1, progress=False)
    row = run.frame.iloc[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = dict(model=a.child, batch=a.batches[0], threads=a.threads, seconds=round(row.seconds, 1))
    found |= dict(cpu=round(row.cpu, 1), made=round(made, 1), peak_gb=round(peak, 2), loss=round(row.loss, 4))
    print(json.dumps(found | dict(load=[round(x, 2) for x in os.getloadavg()])))


def run(a, name, batch):  # -> dict
    "A model and a batch in a process of its own."
    args = [f'--{k}={getattr(a, k)}' for k in ('users', 'items', 'interactions', 'dim', 'layers', 'threads', 'seed')]
    threads = {k: str(a.threads) for k in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')}
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, __file__, *args, f'--child={name}', '--batches', str(batch)],
        env={**os.environ, **threads, 'PYTHONPATH': root},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    say(found)
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--users', type=int, default=50_000)
    p.add_argument('--items', type=int, default=100_000)
    p.add_argument('--interactions', type=int, default=1_000_000)
    p.add_argument('--dim', type=int, default=64)
    p.add_argument('--layers', type=int, default=3)
    p.add_argument('--batches', type=int, nargs='+', default=[2048, 8192], help='pairs per step')
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--small', action='store_true', help='200 users, 300 items, 2,000 interactions: does it run?')
    p.add_argument('--out', type=Path, help='write the figures as JSON here')
    p.add_argument('--child', choices=('LightGCN', 'VBPR'), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.small:
        a.users, a.items, a.interactions = 200, 300, 2000
    if a.child:
        return child(a)
    rows = [run(a, name, batch) for name in ('LightGCN', 'VBPR') for batch in a.batches]
    print(f'{a.interactions:,} purchases of {a.users:,} users among {a.items:,} items, {a.dim} dimensions; one epoch')
    print(table([{k: v for k, v in r.items() if k != 'load'} for r in rows]))
    size = {k: getattr(a, k) for k in ('users', 'items', 'interactions', 'dim', 'layers', 'seed')}
    write(a.out, dict(machine=machine(), size=size, contents=CONTENTS, rows=rows))


if __name__ == '__main__':
    main()
