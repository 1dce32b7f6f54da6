"""What a federation's memory (ARM) and temporal mean (ITM) are worth: tastes turn, blocks change places, customers are
many.

    python benchmarks/federated_drift.py WORK [--data FOLDER] [--studies drift films orders clients] [--worlds 5]
                                         [--seeds 2] [--clients 300 1000 3000 10000] [--out data/study] [--small]

WORK keeps what is done, and a second call goes on. FedMF with the published settings, 32 dimensions, up to 100 rounds a
block, patience 30; LA, RA and HM by NDCG@20 with all left out that was seen by then. Its rate is chosen by the
validation of the base block alone: on films it is the lab's, for drawn shops it is the best of five on the base block
of the first one.

- `drift`: drawn shops of 1,000 customers, 300 items and 30 purchases each whose tastes turn by 0, .25, .5 and 1.
- `films` (with `--data`, MovieLens-100K): all orders of the three later blocks, `--seeds` each.
- `orders`: the same on drawn shops of drift .5, three of them.
- `clients`: drawn shops of drift .5 with few and many customers; three shops where there are more than 5,000.

Intervals are 95 %: over drawn shops by Student's t, each shop with a seed of its own; over customers by the bootstrap
on films. What a method gains over fine-tuning is paired by shop or customer. Writes federated_drift.csv.
"""

import argparse
import itertools
import warnings
from dataclasses import replace
from pathlib import Path

from common import cell, quiet, say, table

METHODS = ['fine-tuning', 'ARM', 'ITM', 'ARM+ITM', 'replay']
DRIFTS = [0.0, 0.25, 0.5, 1.0]
RATES = [0.5, 1.0, 2.0, 4.0, 8.0]  # the best of them by validation of the base block
STUDIES = 'drift', 'films', 'orders', 'clients'


def drawn_blocks(a, users, drift, seed):  # -> Blocks
    "A drawn shop in its blocks."
    from vlm2rec_lab.federated.blocks import blocks
    from vlm2rec_lab.federated.drift import drifting

    drawn = drifting(users, a.items, 3, drift=drift, purchases=a.purchases, seed=seed)
    return blocks(drawn.dataset, core=5, seed=seed)


def settings(a):  # -> dict
    "What all federations have."
    return dict(dim=a.dim, rounds=a.rounds, patience=30, cut=20, progress=False)


def drawn_rate(a):  # -> float
    "The rate whose base block has the best validation, on the first drawn shop."
    from vlm2rec_lab.federated.continual import run_blocks

    whole = drawn_blocks(a, a.users, 0.5, 0)
    base = replace(whole, blocks=whole.blocks[:1])

    def valid(lr):
        try:
            run = run_blocks(base, lr=lr, **settings(a)).runs[0]
        except FloatingPointError:  # the rate is too high
            return 0.0
        return float(run.frame[run.metric].max())

    asked = dict(cell='rate', users=a.users, items=a.items, purchases=a.purchases, rates=RATES, **settings(a))
    found = cell(a.work / 'rates', asked, lambda: {str(lr): round(valid(lr), 4) for lr in RATES})
    say(f'validation of the base block by rate: {found}')
    return float(max(found, key=found.get))


def made(a, name, blocks, seeds, lr):  # -> list of cells
    "All methods on some blocks."
    from vlm2rec_lab.federated.study import run_federated

    def said(line):
        say(f'{name}: {line}')

    return run_federated(a.work / name, blocks, ['FedMF'], METHODS, seeds, said=said, lr=lr, **settings(a))


def over_worlds(tables):  # -> list of dict
    "Means over drawn shops with intervals by Student's t, of tables of one shop each."
    import numpy as np
    from scipy.stats import t

    n, rows = len(tables), []
    for k, first in tables[0].iterrows():
        row = dict(method=first.method, average=first.average)
        for name in ('value', 'gain'):
            each = np.array([float(w[name][k]) for w in tables])
            half = t.ppf(0.975, n - 1) * each.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
            low, high = ('low', 'high') if name == 'value' else ('gain low', 'gain high')
            row |= {name: each.mean(), low: each.mean() - half, high: each.mean() + half}
        rows.append(row | dict(repeats=n, interval='drawn shops'))
    return rows


def on_worlds(a, name, cut, worlds, lr):  # -> list of dict
    "A row per method and average on the drawn shops that `cut` makes of a seed."
    from vlm2rec_lab.federated.study import federated_table

    cells = [made(a, f'{name}/{seed}', cut(seed), 1, lr) for seed in range(worlds)]
    return over_worlds([federated_table(own, draws=2) for own in cells])


def drift_study(a, lr):
    "Rows by drift."
    for drift in DRIFTS:
        name = f'drawn/{a.users}-{drift:g}'
        rows = on_worlds(a, name, lambda seed: drawn_blocks(a, a.users, drift, seed), a.worlds, lr)
        yield from (dict(setting=f'{drift:g}', **row) for row in rows)


def orders_study(a, lr):
    "Rows by order of the later blocks, on drawn shops."
    from vlm2rec_lab.federated.orders import reordered

    for order in itertools.permutations((1, 2, 3)):
        name = f'orders/{"".join(map(str, order))}'
        worlds = min(3, a.worlds)
        rows = on_worlds(a, name, lambda s: reordered(drawn_blocks(a, a.users, 0.5, s), order), worlds, lr)
        yield from (dict(setting=' '.join(map(str, order)), **row) for row in rows)


def clients_study(a, lr):
    "Rows by number of customers."
    for users in a.clients:
        worlds = min(3, a.worlds) if users > 5000 else a.worlds
        rows = on_worlds(a, f'drawn/{users}-0.5', lambda seed: drawn_blocks(a, users, 0.5, seed), worlds, lr)
        yield from (dict(setting=str(users), **row) for row in rows)


def films_study(a, lr):
    "Rows by order of the later blocks, on films."
    from vlm2rec_lab.commands.open import open_dataset
    from vlm2rec_lab.federated.blocks import blocks
    from vlm2rec_lab.federated.orders import reordered
    from vlm2rec_lab.federated.study import federated_table

    cut = blocks(open_dataset(a.data, 0, None))
    keys = 'method', 'average', 'value', 'low', 'high', 'gain', 'gain low', 'gain high'
    for order in itertools.permutations((1, 2, 3)):
        cells = made(a, f'films/{"".join(map(str, order))}', reordered(cut, order), a.seeds, lr)
        for row in federated_table(cells).to_dict('records'):
            own = {k: row.get(k) for k in keys} | dict(repeats=a.seeds, interval='customers')
            yield dict(setting=' '.join(map(str, order)), **own)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('work', type=Path, help='keeps what is done')
    p.add_argument('--data', help='folder of films; without it the study `films` is left out')
    p.add_argument('--studies', nargs='+', choices=STUDIES, default=STUDIES)
    p.add_argument('--worlds', type=int, default=5, help='drawn shops, from seed 0')
    p.add_argument('--seeds', type=int, default=2, help='on films')
    p.add_argument('--clients', type=int, nargs='+', default=[300, 1000, 3000, 10_000])
    p.add_argument('--users', type=int, default=1000, help='customers of the other studies')
    p.add_argument('--items', type=int, default=300)
    p.add_argument('--purchases', type=int, default=30, help='of each customer')
    p.add_argument('--dim', type=int, default=32)
    p.add_argument('--rounds', type=int, default=100, help='at most, in each block')
    p.add_argument('--small', action='store_true', help='80 customers, 4 rounds, 2 shops: does it run?')
    p.add_argument('--out', type=Path, help='folder for federated_drift.csv')
    a = p.parse_args()
    if a.data and not Path(a.data).is_dir():
        p.error(f'--data {a.data}: there is no such folder')
    if a.small:
        a.users, a.items, a.purchases, a.dim, a.rounds, a.worlds, a.clients = 80, 60, 15, 4, 4, 2, [80]
    quiet(1)
    warnings.simplefilter('ignore')
    import pandas as pd

    from vlm2rec_lab.base.cells import csv_bytes
    from vlm2rec_lab.base.files import write_bytes
    from vlm2rec_lab.federated.study import RATES as LAB

    a.work.mkdir(parents=True, exist_ok=True)
    drawn, found = drawn_rate(a), []
    for name in a.studies:
        if name == 'films' and not a.data:
            say('films are left out: --data FOLDER says where they are')
            continue
        lr = LAB['FedMF'] if name == 'films' else drawn
        study = dict(drift=drift_study, films=films_study, orders=orders_study, clients=clients_study)[name]
        found += [dict(study=name, lr=lr, **row) for row in study(a, lr)]
    frame = pd.DataFrame(found)
    print(table(frame[frame.average == 'HM'].round(4).to_dict('records')))
    if a.out is not None:
        write_bytes(a.out / 'federated_drift.csv', csv_bytes(frame.round(5)))


if __name__ == '__main__':
    main()
