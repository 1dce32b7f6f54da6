"""A catalogue that is read from memory maps: python benchmarks/catalogue.py [--items 10000000] [--out FILE.json]

Ten million items of two modalities of 128 dimensions and a million customers, drawn here and written to files that are
mapped. Each part runs in a process of its own whose own memory is limited to --limit GB; what is mapped from files
is not its own, and is told beside it. Parts: full ranks of some customers among all items, by each modality and by
their sum; reports on smaller shops by draws, held against what the full ranks say of such shops; an index that is
built and asked. Seconds are CPU seconds of one process.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

from common import Clock, in_own_process, machine, memory, say, table, write

MODALITIES, NOISE = {'text': 0.6, 'image': 0.9}, 0.35  # how far a customer's vector is from the next item's, per shop
PARTS = ('ranks', 'report', 'index')


def make(folder, items, users, dims, seed=0, block=250_000):
    "Vectors around centres, as those of a shop lie; a customer's lies near the next item's, farther in pictures."
    import numpy as np

    rng = np.random.default_rng(seed)
    centre = rng.integers(0, max(items // 500, 1), items)
    targets = rng.integers(0, items, users)
    np.save(folder / 'targets.npy', targets)
    for m, far in MODALITIES.items():
        centres = rng.standard_normal((centre.max() + 1, dims), np.float32)
        x = np.lib.format.open_memmap(folder / f'items-{m}.npy', 'w+', np.float32, (items, dims))
        for a in range(0, items, block):
            x[a : a + block] = centres[centre[a : a + block]]
            x[a : a + block] += rng.standard_normal(x[a : a + block].shape, np.float32)
            x[a : a + block] /= np.linalg.norm(x[a : a + block], axis=1, keepdims=True)
        u = np.lib.format.open_memmap(folder / f'sequences-{m}.npy', 'w+', np.float32, (users, dims))
        for a in range(0, users, block):
            u[a : a + block] = x[targets[a : a + block]]
            u[a : a + block] += far * NOISE * rng.standard_normal(u[a : a + block].shape, np.float32)
            u[a : a + block] /= np.linalg.norm(u[a : a + block], axis=1, keepdims=True)
        x.flush()
        u.flush()


def mapped(folder):  # -> items, sequences, targets
    "The shop, left in its files."
    import numpy as np

    sides = ({m: np.load(folder / f'{s}-{m}.npy', mmap_mode='r') for m in MODALITIES} for s in ('items', 'sequences'))
    return (*sides, np.load(folder / 'targets.npy'))


def full_ranks(items, sequences, targets, users, seed):  # -> {way: Ranks}
    "Places of some customers' next items among all, by each modality and by the sum of both."
    import numpy as np

    from vlm2rec_lab.ranking.ranks import Mix, mixed_ranks

    who = np.sort(np.random.default_rng(seed).choice(len(targets), users, replace=False))
    products = [(items[m], np.ascontiguousarray(sequences[m][who])) for m in MODALITIES]
    mixes = [Mix((1, 0)), Mix((0, 1)), Mix((1, 1))]
    return dict(zip((*MODALITIES, 'fused'), mixed_ranks(products, mixes, targets[who], progress=False)))


def mean_and_error(values):
    "A mean over customers and the half-width of its 95 % interval."
    import numpy as np

    return [round(float(np.mean(values)), 5), round(1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5, 5)]


def part_ranks(folder, o):
    "Figures of the full ranks, and what they say of smaller shops."
    from vlm2rec_lab.diagnosis.parts import expected_among
    from vlm2rec_lab.ranking.ranks import metric_at_k

    found = full_ranks(*mapped(folder), o['asked'], o['seed'])
    return dict(
        users=o['asked'],
        ndcg={m: mean_and_error(metric_at_k(r)) for m, r in found.items()},
        ndcg_among={m: mean_and_error(expected_among(r, o['candidates'])) for m, r in found.items()},
    )


def part_report(folder, o):
    "Reports on smaller shops."
    from vlm2rec_lab.diagnosis.parts import over_draws, sampled_reports

    how = dict(candidates=o['candidates'], draws=o['draws'], seed=o['seed'], fuse='concat', missing=(), progress=False)
    reports = sampled_reports(*mapped(folder), **how)
    return dict(
        customers=[int(len(r.targets)) for r in reports],
        rows=[
            {k: v if isinstance(v, str) else round(v, 5) for k, v in x.items()}
            for x in over_draws(reports).to_dict('records')
        ],
    )


def part_index(folder, o):
    "An index of all items: seconds to build, and of a query."
    import numpy as np
    import pandas as pd

    from vlm2rec_lab.share.index import build_index

    items, sequences, _ = mapped(folder)
    n = len(items['text'])
    with Clock() as built:
        index = build_index(folder / 'index', items, pd.DataFrame({'item_id': np.char.mod('%d', np.arange(n))}))
    asked = {m: np.ascontiguousarray(x[:4]) for m, x in sequences.items()}
    index.query({m: x[:1] for m, x in asked.items()}, k=10)
    with Clock() as c:
        for r in range(3):
            index.query({m: x[r + 1 : r + 2] for m, x in asked.items()}, k=10)
    return dict(build_cpu=round(built.cpu, 1), query_cpu=round(c.cpu / 3, 3))


class Watch:
    "The most memory of its own that this process held, asked four times a second."

    def __enter__(self):
        import threading

        self.most, self.stop = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self):
        while not self.stop.wait(0.25):
            self.most = max(self.most, memory('RssAnon') or 0.0)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def child(o):
    "One part, as JSON."
    limit = int(o['limit'] * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with Watch() as w, Clock() as c:
        found = globals()[f'part_{o["part"]}'](Path(o['folder']), o)
    found |= dict(cpu=round(c.cpu, 1), wall=round(c.wall, 1), own_gb=round(w.most, 2), peak_gb=memory('VmHWM'))
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = dict(items=10_000_000, users=1_000_000, dims=128, asked=500, candidates=20_000, draws=5, seed=0, threads=2)
    for name, default in sizes.items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--limit', type=float, default=16, help='GB of memory that a part may have of its own')
    parser.add_argument('--folder', type=Path, help='where to write the vectors; default: a temporary one')
    parser.add_argument('--out', type=Path, help='write the figures as JSON here')
    parser.add_argument('--child', help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.child:
        return child(json.loads(o.child))
    folder, start = Path(tempfile.mkdtemp(dir=o.folder)), time.perf_counter()
    try:
        make(folder, o.items, o.users, o.dims, o.seed)
        say(f'written in {time.perf_counter() - start:.0f} s')
        how = {k: v for k, v in vars(o).items() if k not in ('out', 'child', 'threads')} | dict(folder=str(folder))
        found = {part: in_own_process(__file__, None, part, o.threads, **how) for part in PARTS}
    finally:
        shutil.rmtree(folder)
    settings = {k: v for k, v in vars(o).items() if k not in ('out', 'child', 'folder')}
    total = dict(
        peak_gb=max(x['peak_gb'] or 0 for x in found.values()),
        own_gb=max(x['own_gb'] for x in found.values()),
        seconds=round(sum(x['wall'] for x in found.values()), 1),
    )
    write(o.out, dict(benchmark='catalogue', machine=machine(), **settings, **total, parts=found))
    costs = [{'part': p, **{k: x[k] for k in ('cpu', 'wall', 'own_gb', 'peak_gb')}} for p, x in found.items()]
    print(table(costs))
    print(table([dict(by=m, full=v, among=found['ranks']['ndcg_among'][m]) for m, v in found['ranks']['ndcg'].items()]))
    print(table(found['report']['rows']))


if __name__ == '__main__':
    main()
