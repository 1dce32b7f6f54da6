"""What heads on the packaged encoders reach on a shop: the evidence behind the defaults of `vlm2rec train`.

python benchmarks/pairs.py FOLDER --out benchmarks/results/pairs.json

Every row is a training from the same start with a loss of each modality's own (weight 3), fused by concat. Defaults are
chosen by its figures on the validation users; those on the test users stand beside them.
"""

import argparse
import time

from common import machine, quiet, say, table, write

from vlm2rec_lab.data import load_folder
from vlm2rec_lab.metrics import baselines, evaluate
from vlm2rec_lab.model.loading import load_embedder
from vlm2rec_lab.shop.leave_one_out import leave_one_out
from vlm2rec_lab.train import encode_split, train

LAST, ALL = dict(positions='last'), dict(positions='all')
SETTINGS = [
    dict(steps=120, batch=32, lr=2e-3) | LAST,  # usual for a vision-language model
    dict(steps=400, batch=128, lr=1e-2) | LAST,
    dict(steps=300, batch=64, lr=2e-3) | ALL,
    dict(steps=300, batch=64, lr=1e-2) | ALL,
    dict(steps=300, batch=128, lr=2e-3) | ALL,
    dict(steps=200, batch=128, lr=5e-3) | ALL,
    dict(steps=400, batch=128, lr=5e-3) | ALL,  # usual for pairs
    dict(steps=200, batch=256, lr=5e-3) | ALL,
]


def measured(embedder, split, part, seed):  # -> {view: NDCG@10}
    "NDCG@10 of every view on the users of a part."
    found = evaluate(**encode_split(embedder, split, part, progress=False), fuse='concat', bootstrap=0, seed=seed)
    return {view: round(float(found[view]['NDCG@10']), 4) for view in found if view != 'chance'}


def row_of(embedder, split, setting, seed):  # -> dict
    "One training, its figures and its seconds of the processor."
    begun = time.process_time()
    train(
        embedder, split, 'per-modality', weight=3.0, fuse='concat', seed=seed, eval_every=0, progress=False, **setting
    )
    took = time.process_time() - begun
    parts = {part: measured(embedder, split, part, seed) for part in ('valid', 'test')}
    return dict(setting, seed=seed, cpu=round(took, 1), **parts)


def shown(row):  # -> dict of str
    "A row of the table."
    what = f'{row["steps"]} x {row["batch"]}, lr {row["lr"]:g}, {row["positions"]}'
    test = {f'test, {view}': f'{x:.4f}' for view, x in row['test'].items()}
    return dict(training=what, validation=f'{row["valid"]["fused"]:.4f}', **test, cpu=f'{row["cpu"]:.0f} s')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', help='items.csv and interactions.csv of a shop')
    parser.add_argument('--vectors', default='runs/vectors', help="folder that keeps the encoders' vectors")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', help='JSON file to write')
    o = parser.parse_args()
    quiet()
    data = load_folder(o.folder)
    split = leave_one_out(data, history=10)
    embedder = load_embedder('real', kinds=split.catalogue.kinds, dims=128, seed=o.seed)
    embedder.bank(split.catalogue, True, o.vectors)
    rows = []
    for setting in SETTINGS:
        fresh = embedder.again()
        fresh.bank(split.catalogue, False, o.vectors)
        rows.append(row_of(fresh, split, setting, o.seed))
        say(str(shown(rows[-1])))
    base = baselines(split, dataset=data, progress=False)
    other = {name: round(float(base[name]["NDCG@10"]), 4) for name in base}
    write(o.out, dict(benchmark='pairs', machine=machine(), data=split.name, rows=rows, baselines=other))
    print(
        f'{split.name}: {len(split.test):,} test users, history of 10, one seed ({o.seed}); NDCG@10, all items ranked\n'
    )
    print(table([shown(row) for row in rows]), f'\nwithout a model: {other}')


if __name__ == '__main__':
    main()
