"""What a query of the index costs: python benchmarks/index.py [--small] [--out benchmarks/results/index.json]

Catalogues of 20,000, 200,000 and a million items of two modalities of 128 dimensions, each in a process of its own with
one thread: milliseconds of the CPU for a query by itself and in a batch, beside the bare matrix product of the same
vectors, and the memory of the process beside what it maps. The items lie around centres, as those of a shop do; 20,000
items without any structure are asked too, for what faiss recalls depends on it, and 20,000 of one modality of 256
dimensions.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import in_own_process, machine, memory, quiet, say, table, write

PARTS = {  # name -> items, {modality: dimensions}, of what kind, rounds of single queries, queries of a batch
    '20k x 256': (20_000, {'text': 256}, 'shop', 60, 256),
    '20k': (20_000, {'text': 128, 'image': 128}, 'shop', 60, 256),
    '20k noise': (20_000, {'text': 128, 'image': 128}, 'noise', 60, 256),
    '200k': (200_000, {'text': 128, 'image': 128}, 'shop', 20, 256),
    '1M': (1_000_000, {'text': 128, 'image': 128}, 'shop', 8, 128),
}
GRAPH = 200_000  # items up to which faiss is asked: a graph of a million takes longer than all the rest


def gb():
    "The most memory that this process held so far, in GB."
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform != 'darwin' else 1e9), 3)


def drawn(n, dims, kind, seed):
    "Vectors of some items, and of queries near some of them."
    import numpy as np

    rng, queries, items = np.random.default_rng(seed), {}, {}
    where, asked = rng.integers(0, max(n // 50, 1), n), rng.integers(0, n, 256)
    for m, d in dims.items():
        x = rng.standard_normal((n, d), np.float32)
        if kind == 'shop':
            x *= 0.5
            x += rng.standard_normal((where.max() + 1, d), np.float32)[where]
        items[m] = x
        queries[m] = x[asked] + 0.5 * rng.standard_normal((256, d), np.float32)
    return items, queries


def clocked(f, rounds):
    "CPU milliseconds of a call: median, least and most of some rounds, after one that is not counted."
    f(0)
    took = []
    for r in range(rounds):
        at = time.process_time()
        f(r + 1)
        took.append(1e3 * (time.process_time() - at))
    return [round(x, 3) for x in (statistics.median(took), min(took), max(took))]


def one(asked):
    "The figures of one part."
    import numpy as np
    import pandas as pd
    from threadpoolctl import threadpool_limits

    from vlm2rec_lab.share.index import Index, build_index

    n, dims, kind, rounds, batch, seed = (asked[k] for k in ('n', 'dims', 'kind', 'rounds', 'batch', 'seed'))
    items, queries = drawn(n, dims, kind, seed)
    frame = pd.DataFrame(dict(item_id=np.char.add('i', np.arange(n).astype(str)), price=np.arange(n) % 97 * 1.0))
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        at = time.perf_counter()
        build_index(Path(folder) / 'i', items, frame)
        built = time.perf_counter() - at
        del items
        at, before = time.perf_counter(), memory('RssAnon')
        index = Index(Path(folder) / 'i')
        opened = 1e3 * (time.perf_counter() - at)
        one_query = [{m: x[r : r + 1] for m, x in queries.items()} for r in range(256)]
        many = {m: x[:batch] for m, x in queries.items()}
        x, y = (next(iter(v.values())) for v in (index.vectors, queries))
        out = dict(
            single=clocked(lambda r: index.query(one_query[r % 256]), rounds),
            filtered=clocked(lambda r: index.query(one_query[r % 256], where=[('price', '<', 5)]), rounds),
            diverse=clocked(lambda r: index.query(one_query[r % 256], diverse=True), rounds),
            bare=[round(len(dims) * v, 3) for v in clocked(lambda r: y[r : r + 1] @ x.T, rounds)],
            batched=[round(v / batch, 3) for v in clocked(lambda r: index.query(many), 3)],
            build_s=round(built, 2),
            open_ms=round(opened, 2),
            files_gb=round(sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file()) / 1e9, 3),
        )
        out |= dict(own_gb=None if before is None else round(memory('RssAnon') - before, 3), peak_gb=gb())
        if n <= GRAPH:
            out['faiss'] = graph(index, queries, one_query, rounds)
    return out


def graph(index, queries, one_query, rounds):
    "What faiss costs, and what it finds of the exact answers to the queries."
    import faiss

    from vlm2rec_lab.share.approximate import Approximate

    faiss.omp_set_num_threads(1)
    at = time.process_time()
    made = Approximate(index, queries=queries)
    built = time.process_time() - at
    took = clocked(lambda r: made.query(one_query[r % 256]), rounds)
    return dict(single=took, recall=round(made.recall, 4), build_s=round(built, 1), sampled=round(_own(made), 4))


def _own(made):
    "The recall on items with noise, which is what is measured unless queries are given."
    return made.measured(made.sampled())


def row(name, x):
    "A part in words."
    near = x.get('faiss')
    return {
        'items': name,
        'one query, ms': '{:.2f}'.format(x['single'][0]),
        'bare product': '{:.2f}'.format(x['bare'][0]),
        'in a batch': '{:.2f}'.format(x['batched'][0]),
        'price < 5': '{:.2f}'.format(x['filtered'][0]),
        'diverse': '{:.2f}'.format(x['diverse'][0]),
        'build, s': x['build_s'],
        'files, GB': x['files_gb'],
        'own memory, GB': x['own_gb'],
        'faiss, ms': '{:.2f}'.format(near['single'][0]) if near else '',
        'recall@10': '{:.3f}'.format(near['recall']) if near else '',
        'graph, s': near['build_s'] if near else '',
    }


def main():
    "All parts, each in a process of its own."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--small', action='store_true', help='1,000 items: does it run?')
    p.add_argument('--cells', type=Path, help='folder of finished parts')
    p.add_argument('--out', type=Path, help='write the figures as JSON here')
    p.add_argument('--child', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        quiet()
        return print(json.dumps(one(json.loads(a.child))))
    found, at = {}, time.perf_counter()
    for name, (n, dims, kind, rounds, batch) in PARTS.items():
        if a.small and name not in ('20k', '20k noise'):
            continue
        how = dict(n=1000 if a.small else n, dims=dims, kind=kind, rounds=3 if a.small else rounds, batch=batch)
        found[name] = in_own_process(__file__, a.cells, name, seed=a.seed, **how)
    took = time.perf_counter() - at
    print(table([row(name, x) for name, x in found.items()]))
    say(f'{took:.0f} s')
    small = dict(small=True) if a.small else {}
    write(a.out, dict(machine=machine(), seed=a.seed, k=10, seconds=round(took), **small, parts=found))


if __name__ == '__main__':
    main()
