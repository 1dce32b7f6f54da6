"""What whole collapse reports cost, and their shuffles and probes beside the plain way of doing the same.

python benchmarks/report.py --items 20000 --users 2500 --dims 128 --out benchmarks/results/report.json
OMP_NUM_THREADS says with how many threads.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import Clock, in_range, interleave, machine, quantiles, quiet, ratio_of_sums, table, write

from vlm2rec_lab.diagnosis.bench import peak_memory, synthetic_task
from vlm2rec_lab.diagnosis.evidence import Task, fused_gain, knockout_permuted, probe_gain, shuffled_gain
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.ranking.ranks import metric_at_k, ranks

SIZES = ('2000,2000,128', '10000,20000,128', '50000,20000,128', '13114,1000,1280')


def plain_knockout(task, modality, n, seed=0):  # -> [users]
    "The permuted knockout by one fusion and one product per permutation; without seen items."
    rng, total = np.random.default_rng(seed), 0
    for _ in range(n):
        x = task.items[modality][rng.permutation(task.n_items)]
        total = total + fused_gain(task, {**task.items, modality: x})
    return total / n


def plain_nulls(items, sequences, task, n, seed=0):  # -> [n]
    "Nulls by one product per permutation; without seen items."
    rng, out = np.random.default_rng(seed + 1), []
    for _ in range(n):
        x = items[rng.permutation(len(items))]
        out.append(metric_at_k(ranks(x, sequences, task.targets, task.seen, progress=False), task.k).mean())
    return np.array(out)


def plain_probe(task, modality, folds=5, shrink=0.1):  # -> [users]
    "The probe by inverses of covariances, fitted anew for every fold, on whitened items."

    def inverse(c, rows):
        d = len(c)
        return np.linalg.inv(c + shrink * (1 + d / rows) * max(np.trace(c) / d, 1e-12) * np.eye(d))

    items, users = (np.asarray(side[modality], float) for side in (task.items, task.sequences))
    items, out = items - items.mean(0), task.chance.copy()
    white = (items @ inverse(items.T @ items / len(items), len(items))).astype(np.float32)
    fold = (np.random.default_rng(0).permutation(len(items)) % folds)[task.targets]
    for f in range(folds):
        fit, judged = fold != f, np.flatnonzero(fold == f)
        s, part = users[fit] - users[fit].mean(0), task.take(judged)
        w = inverse(s.T @ s / len(s), len(s)) @ (s.T @ items[task.targets[fit]] / len(s))
        asked = ((users[judged] - users[fit].mean(0)) @ w).astype(np.float32)
        out[judged] = metric_at_k(ranks(white, asked, part.targets, part.seen, progress=False), task.k)
    return out


def ways(task, m, n):  # -> part -> (plain, fast), functions of nothing
    "Every part in both ways."
    x, u = task.items[m], task.sequences[m]
    return {
        'permuted knockout': (lambda: plain_knockout(task, m, n), lambda: knockout_permuted(task, m, n)[0]),
        'nulls': (lambda: plain_nulls(x, u, task, n), lambda: shuffled_gain(x, u, task, n)),
        'probe': (lambda: plain_probe(task, m), lambda: probe_gain(task, m)),
    }


def measured(part, plain, fast, rounds):  # -> dict
    "Both ways timed in turn, the ratio of their sums of CPU seconds, and how far their answers are apart."
    took = interleave({'plain': lambda r: plain(), 'fast': lambda r: fast()}, rounds)
    spent = {name: [c for _, c in t] for name, t in took.items()}
    cpu = {name: quantiles(c) for name, c in spent.items()}
    wall = {name: quantiles([w for w, _ in t]) for name, t in took.items()}
    apart = float(np.abs(np.mean(plain(), axis=-1) - np.mean(fast(), axis=-1)).max())
    sums = {name: round(sum(c), 4) for name, c in spent.items()}
    ratio = ratio_of_sums(spent['plain'], spent['fast'])
    return dict(part=part, rounds=rounds, wall=wall, cpu=cpu, cpu_sums=sums, ratio=ratio, apart=apart)


def whole(users, items, dims):  # -> dict
    "A whole report of two modalities: seconds, and the most memory that this process held, its vectors among it."
    task = synthetic_task(items, users, 2, dims)
    with Clock() as c:
        collapse_report(**task, progress=False)
    size = dict(users=users, items=items, dims=dims)
    return size | dict(cpu=round(c.cpu, 2), wall=round(c.wall, 2), peak_mb=round(peak_memory() / 2**20))


def wholes(sizes):  # texts users,items,dims -> list of dict
    "Every whole report in a process of its own."
    run = [sys.executable, __file__, '--one']
    return [json.loads(subprocess.run([*run, x], check=True, stdout=subprocess.PIPE).stdout) for x in sizes]


def command(users, items, dims):  # -> dict
    "`vlm2rec report` on a file of vectors, from its start to the page it writes: CPU seconds of that process."
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        task = synthetic_task(items, users, 2, dims)
        arrays = {f'{side}/{m}': x for side in ('items', 'sequences') for m, x in task[side].items()}
        np.savez(Path(folder) / 'vectors.npz', targets=task['targets'], **arrays)
        asked = ['report', str(Path(folder) / 'vectors.npz'), '--out', str(Path(folder) / 'report.html')]
        paths = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with Clock() as c:
            run = [sys.executable, '-m', 'vlm2rec_lab', *asked]
            subprocess.run(run, check=True, stdout=subprocess.DEVNULL, env={**os.environ, 'PYTHONPATH': paths})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return dict(users=users, items=items, dims=dims, cpu=round(cpu, 2), wall=round(c.wall, 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(items=20_000, users=2500, dims=128, permutations=20, rounds=3).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--whole', nargs='*', default=SIZES, metavar='USERS,ITEMS,DIMS', help='whole reports')
    parser.add_argument('--command', default=SIZES[0], metavar='USERS,ITEMS,DIMS', help='a report by command line')
    parser.add_argument('--one', metavar='USERS,ITEMS,DIMS', help='one of them, as JSON to the standard output')
    parser.add_argument('--out', help='JSON file to write')
    o = parser.parse_args()
    if o.one:
        print(json.dumps(whole(*map(int, o.one.split(',')))))
        return
    reports = wholes(o.whole)  # first: a process begins with the peak of the one that starts it
    told = command(*map(int, o.command.split(',')))
    quiet(int(os.environ.get('OMP_NUM_THREADS') or 1))
    task = Task.of(**synthetic_task(o.items, o.users, 2, o.dims))
    rows = [measured(part, *both, o.rounds) for part, both in ways(task, 'm1', o.permutations).items()]
    settings = {k: v for k, v in vars(o).items() if k != 'out'}
    write(o.out, dict(benchmark='report', machine=machine(), settings=settings, rows=rows, whole=reports, command=told))
    shown = [
        dict(part=r['part'], rounds=r['rounds'], plain=f'{r["cpu_sums"]["plain"]:.2f} s')
        | dict(fast=f'{r["cpu_sums"]["fast"]:.2f} s', ratio=in_range(r['ratio']))
        | dict(apart=f'{r["apart"]:.0e}')
        for r in rows
    ]
    print(f'{o.items:,} items, {o.users:,} users, {o.dims} dimensions; seconds of the processor, sums\n')
    print(table(shown))
    print(table(reports))
    print('vlm2rec report:', told)


if __name__ == '__main__':
    main()
