"""Sum or concat: what validation customers say where features identify items, and where they hardly do.

python benchmarks/fusions.py FOLDER --dims 64 0 --out benchmarks/results/fusions.json

The packaged encoders' vectors of a shop, whole (0) or in their first principal dimensions. SFT with the sum stands
against a loss of each modality's own with concat; `sum_or_concat` chooses by the validation customers, and the figures
of the test customers say what the choice was worth.
"""

import argparse
import hashlib
import time

from common import machine, quiet, say, table, write

from vlm2rec_lab.data import load_folder
from vlm2rec_lab.model.loading import load_embedder
from vlm2rec_lab.studies.shops import shop_cell, shop_choice

REMEDIES = ('sft', 'per-modality, concat')


class Principal:
    "An encoder whose vectors are turned to the first principal dimensions of a catalogue."

    def __init__(self, base, contents, vectors, dims):
        import torch

        x = vectors - vectors.mean(0)
        self.rows = x @ torch.linalg.svd(x, full_matrices=False)[2][:dims].T
        self.kind, self.name, self.size, self.module = base.kind, f'{base.name}, {dims} dims', dims, base.module
        self.mark = hashlib.sha256(f'{base.mark} {dims} {self.rows.sum():.6g}'.encode()).hexdigest()
        self.places = {str(c): k for k, c in enumerate(contents)}

    def vectors(self, contents, **_):
        "Texts, or functions that open the picture at a path."
        return self.rows[[self.places[str(c.args[0] if hasattr(c, 'args') else c)] for c in contents]]


def in_dims(encoders, dataset, dims, store):  # -> {modality: encoder}
    "The encoders as they are, or in so many principal dimensions of the catalogue."
    if not dims:
        return encoders
    from vlm2rec_lab.model.pair import PairEmbedder

    bank = PairEmbedder(encoders, device='cpu').bank(dataset.catalogue, True, store)
    out = {}
    for m, encoder in encoders.items():
        there = [k for k, gone in enumerate(dataset.catalogue.missing()[m]) if not gone]
        contents = [dataset.catalogue.content[m][k] for k in there]
        out[m] = Principal(encoder, contents, bank.views[m][there], dims)
    return out


def row_of(encoders, dataset, dims, seed, store, effort):  # -> dict
    "Both trainings, what validation says, and what test users got."
    begun = time.process_time()
    cells = [shop_cell(encoders, dataset, r, 'warm', seed, store=store, draws=1, effort=effort) for r in REMEDIES]
    choice = shop_choice(cells)
    test = {c['remedy']: round(sum(c['figures']['all']['fused']) / len(c['figures']['all']['fused']), 4) for c in cells}
    valid = {c['remedy']: round(sum(c['kept']['users']) / len(c['kept']['users']), 4) for c in cells}
    said = dict(chosen=choice.fuse, difference=choice.difference.to_dict(), said=str(choice))
    return dict(
        dims=dims or 'all', seed=seed, valid=valid, test=test, **said, cpu=round(time.process_time() - begun, 1)
    )


def shown(row):  # -> dict of str
    "A row of the table."
    d = row['difference']
    parts = {f'{part}, {r}': f'{row[part][r]:.4f}' for part in ('valid', 'test') for r in REMEDIES}
    gain = f'{d["value"]:+.4f} [{d["low"]:+.4f}, {d["high"]:+.4f}]'
    return {
        'dims': str(row['dims']),
        **parts,
        'sum - concat': gain,
        'chosen': row['chosen'],
        'cpu': f'{row["cpu"]:.0f} s',
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', help='items.csv and interactions.csv of a shop')
    parser.add_argument('--dims', type=int, nargs='+', default=[64, 0], help='principal dimensions; 0: all there are')
    parser.add_argument('--vectors', default='runs/vectors', help="folder that keeps the encoders' vectors")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--effort', type=float, default=1.0, help='share of the epochs')
    parser.add_argument('--out', help='JSON file to write')
    o = parser.parse_args()
    quiet()
    data, rows = load_folder(o.folder), []
    encoders = load_embedder('real', kinds=data.catalogue.kinds, seed=o.seed).encoders
    for dims in o.dims:
        own = in_dims(encoders, data, dims, o.vectors)
        rows.append(row_of(own, data, dims, o.seed, o.vectors, o.effort))
        say(rows[-1]['said'])
    write(o.out, dict(benchmark='fusions', machine=machine(), data=data.name, rows=rows))
    print(f'{data.name}: NDCG@10 of the fused ranking, all items ranked, one seed ({o.seed})\n')
    print(table([shown(row) for row in rows]))


if __name__ == '__main__':
    main()
