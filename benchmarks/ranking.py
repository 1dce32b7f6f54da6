"""Full ranking next to the bare matrix product: seconds, ratio and peak memory.

    python benchmarks/ranking.py [--users 50000] [--items 20000] [--dims 128] [--threads 1,2] [--repeats 3]
                                 [--out FILE.json] [--small]

One child per number of threads, limited to as many cores. In it the ways take turns, and a ratio is that of the sums
of CPU seconds of all threads over all turns. The bare product is given the piece size that was fastest in a search,
and writes into the same memory again and again.
Peak memory is that of the process while a way runs, vectors and imports included.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Users x items of one product; None: all items.
PIECES = [(u, None) for u in (100, 200, 400, 1000, 2000)]
PIECES += [(u, i) for u in (512, 1024, 2048) for i in (1024, 2048, 4096)]


SAID = {
    'product': 'bare matrix product',
    'ranks': 'ranks, 8 seen items per user',
    'evaluate': 'evaluate: two modalities and fused',
    'sort': 'full sort',
}
WORK = {  # of each way, beside the bare product
    'product': 'scores, kept nowhere',
    'ranks': 'the same scores, and the places of the targets',
    'evaluate': 'not the same: three rankings, two products',
    'sort': 'the same places by sorting, from a part of the users',
}


def product(texts, tastes, users, items):
    "The scores and nothing else, piece by piece."
    import numpy as np

    users, items = min(users, len(tastes)), min(items or len(texts), len(texts))
    room = np.empty(users * items, tastes.dtype)
    for a in range(0, len(tastes), users):
        u = tastes[a : a + users]
        for b in range(0, len(texts), items):
            i = texts[b : b + items]
            np.matmul(u, i.T, out=room[: len(u) * len(i)].reshape(len(u), len(i)))


def sorted_places(texts, tastes, targets, seen, chunk=200):
    "The place of each target by sorting all scores of each user."
    import numpy as np

    from vlm2rec_lab.metrics import scores

    places = []
    for a in range(0, len(tastes), chunk):
        s = scores(texts, tastes[a : a + chunk], (seen[0][a : a + chunk + 1], seen[1]))
        places.append((np.argsort(-s, axis=1) == targets[a : a + chunk, None]).argmax(1))
    return np.concatenate(places)


def clear_peak():
    "Forget the peak of memory so far; False where the system cannot."
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return False
    return True


def peak():
    "The peak of memory in GB."
    status = Path('/proc/self/status')
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def clock(f):  # -> (what it gives, seconds, CPU seconds of all threads)
    start, cpu = time.perf_counter(), time.process_time()
    return f(), time.perf_counter() - start, time.process_time() - cpu


def child(a, threads):
    "Run all ways in turns on so many threads and print the figures as JSON."
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import numpy as np
    from common import ratio_of_sums

    from vlm2rec_lab.metrics import evaluate, normalise, ranks, seen_items

    warnings.simplefilter('ignore')
    rng, load = np.random.default_rng(a.seed), os.getloadavg()
    items, users = (
        {m: normalise(rng.normal(size=(n, a.dims)).astype(np.float32)) for m in ('text', 'image')}
        for n in (a.items, a.users)
    )
    targets, texts, tastes = rng.integers(0, a.items, a.users), items['text'], users['text']
    seen = seen_items(rng.integers(0, a.items, (a.users, 8)), targets, a.items)
    part = slice(0, max(1, a.users // 25))
    some = (tastes[part], targets[part], (seen[0][: part.stop + 1], seen[1]))
    search = {
        p: min(clock(lambda: product(texts, tastes[: max(1, a.users // 10)], *p))[2] for _ in range(3)) for p in PIECES
    }
    best = sorted(search, key=search.get)[:3]
    ways = {('product', p): lambda p=p: product(texts, tastes, *p) for p in best}
    ways |= {
        'ranks': lambda: ranks(texts, tastes, targets, seen, progress=False),
        'evaluate': lambda: evaluate(items, users, targets, seen, progress=False),
        'sort': lambda: sorted_places(texts, *some),
    }
    took, spent, memory, found, order = {w: [] for w in ways}, {w: [] for w in ways}, {}, {}, list(ways)
    for r in range(a.repeats):
        for w in order[r % len(order) :] + order[: r % len(order)]:
            alone = clear_peak()
            found[w], s, cpu = clock(ways[w])
            took[w].append(s)
            spent[w].append(cpu)
            memory[w] = max(memory.get(w, 0), peak())
    r, clear = found['ranks'], found['ranks'].ties[part] == 0
    off = np.abs(
        r.expected - found['evaluate'].ranks['text'].expected
    )  # it normalises once more: a score at the edge of a tie may cross it
    assert off.max() <= 1 and (off > 0).mean() < 0.02 and (r.greater[part] == found['sort'])[clear].all(), (
        'the ways disagree'
    )
    bare = min(best, key=lambda p: sum(spent['product', p]))

    def name(p):
        return f'{p[0]} users x {p[1] or "all"} items'

    about = np.show_config(mode='dicts')['Build Dependencies']['blas']

    def of(seconds):  # of all users, where a way saw a part of them
        scale = {w: a.users / part.stop if w == 'sort' else 1 for w in SAID}
        return {w: [s * scale[w] for s in seconds[('product', bare) if w == 'product' else w]] for w in SAID}

    took, spent = of(took), of(spent)
    print(
        json.dumps(
            dict(
                threads=threads,
                product=name(bare),
                seconds=took,
                cpu_seconds=spent,
                median={w: float(np.median(s)) for w, s in took.items()},
                cpu_ratio={w: ratio_of_sums(s, spent['product']) for w, s in spent.items()},
                peak_gb={w: memory[('product', bare) if w == 'product' else w] for w in took},
                peak_of_each=alone,
                search={name(p): s * 10 for p, s in search.items()},  # CPU seconds
                load=dict(before=load, after=os.getloadavg()),
                numpy=np.__version__,
                blas=f"{about['name']} {about['version']}",
                sorted_users=part.stop,
            )
        )
    )


def run(threads):
    "The child on so many threads."
    env = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        **{k: str(threads) for k in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')},
    }
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], '--child', str(threads)], env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def cpu():  # its name, where the system tells
    info = Path('/proc/cpuinfo')
    names = (
        [line.split(':', 1)[1].strip() for line in info.read_text().splitlines() if line.startswith('model name')]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--users', type=int, default=50_000)
    p.add_argument('--items', type=int, default=20_000)
    p.add_argument('--dims', type=int, default=128)
    p.add_argument('--threads', default='1,2', help='numbers of threads, one child each')
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--small', action='store_true', help='500 users and 1,000 items: does it run?')
    p.add_argument('--out', type=Path, help='write the figures as JSON here')
    p.add_argument('--child', type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.small:
        a.users, a.items = 500, 1000
    if a.child:
        return child(a, a.child)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    runs = [run(t) for t in map(int, a.threads.split(',')) if t <= cores]
    print(
        f"{a.users:,} users x {a.items:,} items x {a.dims} dimensions, float32; {a.repeats} rounds in turn; {cpu()}, "
        f"{cores} cores; numpy {runs[0]['numpy']}, {runs[0]['blas']}"
    )
    print(f"{'threads':>7}  {'':36}{'seconds':>9}{'CPU':>8}{'times bare':>12}{'(in turns)':>16}{'peak GB':>9}")
    for x in runs:
        for w, text in SAID.items():
            few = f", from {x['sorted_users']:,} users" if w == 'sort' else ''
            print(
                f"{x['threads']:7}  "
                f"{text + few:36}{x['median'][w]:9.2f}{sum(x['cpu_seconds'][w]) / a.repeats:8.2f}"
                "{:12.2f}{:9.2f} to{:5.2f}".format(*x['cpu_ratio'][w])
                + f"{x['peak_gb'][w]:8.2f}"
            )
        print(
            f"{'':9}evaluate per ranking: {x['cpu_ratio']['evaluate'][0] / 3:.2f} times the product; fastest piece "
            f"{x['product']}; load {x['load']['before'][0]:.1f} to {x['load']['after'][0]:.1f}"
        )
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text(
            json.dumps(
                dict(
                    users=a.users,
                    items=a.items,
                    dims=a.dims,
                    dtype='float32',
                    seed=a.seed,
                    machine=dict(cpu=cpu(), cores=cores, python=platform.python_version(), system=platform.system()),
                    runs=runs,
                ),
                indent=1,
            )
        )


if __name__ == '__main__':
    main()
