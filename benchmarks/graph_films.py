"""Which encoder helps which recommender on films, and which modality does each recommender listen to?

    python benchmarks/graph_films.py FOLDER WORK [--seeds 3] [--encoders plain real ...] [--out data/study]

FOLDER is MovieLens-100K with plots and posters, WORK keeps what is done, and a second call goes on. Encoders: *plain*,
words counted and pictures made small; *real*, the packaged MiniLM and EfficientNet as they come; *real, fine-tuned*,
both after plots and posters were taught to belong together (adapters of rank 8, heads of 128 dimensions that are left
out afterwards, no purchase, epochs chosen by films held out); *real, exchanged*, with contents exchanged between films,
which can tell nothing but which film it is. All are brought to the same width, models have the same sizes and budgets
and are chosen by validation Recall@20; 8:1:1 of every customer's films at random (seed 0), full ranking without
training and validation films. Writes films_graph.csv and films_graph_cases.csv.
"""

import argparse
import warnings
from pathlib import Path

from common import quiet, say, table
from lattice import packaged_vectors, plain_vectors

KNOWN = ['plain', 'real', 'real, fine-tuned']
CONTROL = 'real, exchanged'
PAIRS = [('real', 'plain'), ('real, fine-tuned', 'real'), (CONTROL, 'real')]


def tuned_vectors(catalogue, work, a):  # -> {modality: float32 [N, D]}
    "Vectors of the packaged encoders after a contrast of plots and posters."
    from vlm2rec_lab.graph.encoders import encoder_vectors
    from vlm2rec_lab.graph.tuning import tune_on_shop
    from vlm2rec_lab.model.loading import load_embedder

    encoders = load_embedder('real', kinds=catalogue.kinds, device='cpu').encoders
    how = dict(lora=8, dims=128, batch=64, most=32, lr=1e-4, epochs=a.tune, patience=2, folder=work / 'tune')
    tuned = tune_on_shop(catalogue, encoders, progress=False, callback=lambda rows: say(rows[-1]), **how)
    say(tuned)
    return encoder_vectors(catalogue, tuned.encoders, folder=work / 'vectors', progress=False)


def stored(file, make):  # -> {modality: float32 [N, D]}
    "Vectors of a file, made where there is none."
    import numpy as np

    if not file.exists():
        np.savez(file, **{f'items/{m}': v for m, v in make().items()})
    with np.load(file, allow_pickle=False) as found:
        return {name.partition('/')[2]: found[name] for name in found.files}


def vectors_of(name, catalogue, work, a):  # -> {modality: float32 [N, D]}
    "Vectors of one of KNOWN, or of the control."
    from vlm2rec_lab.graph.diagnosis import exchanged_vectors
    from vlm2rec_lab.graph.study import equal_widths

    def real():
        return packaged_vectors(catalogue, work / 'vectors')

    if name == CONTROL:
        return exchanged_vectors(vectors_of('real', catalogue, work, a), 0)
    if name == 'plain':
        return stored(work / 'plain.npz', lambda: equal_widths(plain_vectors(catalogue), a.width))
    if name == 'real':
        return stored(work / 'real.npz', real)
    return stored(work / 'tuned.npz', lambda: tuned_vectors(catalogue, work, a))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', help='of films')
    p.add_argument('work', type=Path, help='keeps what is done')
    p.add_argument('--encoders', nargs='+', choices=KNOWN, default=KNOWN)
    p.add_argument('--models', nargs='+', help='default: all')
    p.add_argument('--control', nargs='*', default=['VBPR'], help='models of the control')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--tune', type=int, default=3, help='epochs of the contrast, at most')
    p.add_argument('--epochs', type=int, default=200, help='of a recommender, at most')
    p.add_argument('--width', type=int, default=128)
    p.add_argument('--dim', type=int, default=64)
    p.add_argument('--out', type=Path, help='folder for films_graph.csv and films_graph_cases.csv')
    a = p.parse_args()
    quiet(1)
    warnings.simplefilter('ignore')
    import pandas as pd

    from vlm2rec_lab.base.cells import csv_bytes
    from vlm2rec_lab.base.files import write_bytes
    from vlm2rec_lab.commands.open import open_dataset
    from vlm2rec_lab.graph.study import graph_cases, graph_table, run_graph
    from vlm2rec_lab.shop.shares import shares

    a.work.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(a.folder, 0, None)
    split = shares(dataset, seed=0)
    encoders = {e: vectors_of(e, dataset.catalogue, a.work, a) for e in a.encoders}
    how = dict(dim=a.dim, width=a.width, batch=2048, lr=3e-3, epochs=a.epochs, patience=10, progress=False)
    cells = run_graph(a.work / 'cells', split, encoders, a.models, a.seeds, said=say, **how)
    if a.control:
        control = {CONTROL: vectors_of(CONTROL, dataset.catalogue, a.work, a)}
        cells += run_graph(a.work / 'cells', split, control, a.control, a.seeds, said=say, **how)
    worth, cases = graph_table(cells), graph_cases(cells, pairs=PAIRS)
    print(table([r for r in worth.round(4).to_dict('records') if r['left'] == 'all there']))
    print(table(cases.round(4).to_dict('records')))
    if a.out is not None:
        both = pd.concat([worth, graph_table(cells, 'NDCG')])
        write_bytes(a.out / 'films_graph.csv', csv_bytes(both.round(5)))
        write_bytes(a.out / 'films_graph_cases.csv', csv_bytes(cases.round(5)))


if __name__ == '__main__':
    main()
