"""Does LATTICE fall where it inherits the item graph of another encoder?

    python benchmarks/lattice.py FOLDER [--seeds 3] [--epochs 60] [--out benchmarks/results/lattice.json]

A public code of LATTICE reads the graph of near items from a file whose name does not say of which encoder it is, and
gives it nine tenths of the weight. Here two pairs of encoders, the packaged ones and plain ones (words by TF-IDF and
small pictures, each brought to the same number of principal components), train LATTICE on a shop: each with the graph
of its own vectors, and each with that of the other. 8:1:1 of every customer's items at random, full ranking without
training and validation items, chosen by validation Recall@20; each customer is the mean over the seeds, and gains have
95 % intervals, bootstrapped over customers.
"""

import argparse
import itertools
from pathlib import Path

from common import machine, quiet, say, table, write


def plain_vectors(catalogue):  # -> {modality: float32 [N, D]}
    "Words counted, pictures made small."
    import numpy as np

    from vlm2rec_lab.ranking.baseline_scores import text_matrix, thumbnail_matrix

    found = {}
    for m, content in catalogue.content.items():
        made = text_matrix(content) if catalogue.kinds[m] == 'text' else thumbnail_matrix(content, progress=False)[0]
        z = np.asarray(made.todense() if hasattr(made, 'todense') else made, np.float32)
        found[m] = z * ~catalogue.missing()[m][:, None]
    return found


def packaged_vectors(catalogue, folder):  # -> {modality: float32 [N, D]}
    "Vectors of the encoders as they come."
    from vlm2rec_lab.graph.encoders import encoder_vectors
    from vlm2rec_lab.model.loading import load_embedder

    encoders = load_embedder('real', kinds=catalogue.kinds, device='cpu').encoders
    return encoder_vectors(catalogue, encoders, folder=folder, progress=False)


def trained(split, vectors, graphs, seed, a):  # -> [rows] Recall@20 of the test, epochs
    "LATTICE on some vectors, with the graphs of near items that it is handed."
    import numpy as np
    import torch

    from vlm2rec_lab.graph.fit import figure_of, fit_graph, rank_graph
    from vlm2rec_lab.graph.graph import graph_of
    from vlm2rec_lab.graph.make import make_model

    model = make_model('LATTICE', graph_of(split), vectors, dim=a.dim, seed=seed)
    model.graphs = dict(graphs)  # what the public code does without knowing
    how = dict(batch=2048, lr=a.lr, epochs=a.epochs, patience=a.patience, seed=seed, progress=False)
    run = fit_graph(model, split, metric='Recall@20', **how)
    with torch.no_grad():
        found = rank_graph(model.eval(), split, 'test', model.tables())
    return np.asarray(figure_of(found, 20, 'Recall'), float), len(run.frame)


def compared(figures, draws=2000):  # -> list of rows
    "Each encoder with the other's graph against its own, and the encoders against each other."
    from vlm2rec_lab.ranking.evaluate import relative_gain

    rows, names = [], sorted({v for v, _ in figures})
    for v, g in itertools.product(names, names):
        mean = sum(figures[v, g]) / len(figures[v, g])
        row = dict(vectors=v, graph=g, recall=round(float(mean.mean()), 4), gain='', low='', high='')
        if g != v:
            own = sum(figures[v, v]) / len(figures[v, v])
            row |= {k: round(float(x), 4) for k, x in zip(('gain', 'low', 'high'), relative_gain(mean, own, draws))}
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', help='of a shop')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=60)
    parser.add_argument('--patience', type=int, default=8)
    parser.add_argument('--lr', type=float, default=3e-3)
    parser.add_argument('--dim', type=int, default=64)
    parser.add_argument('--width', type=int, default=128)
    parser.add_argument('--store', help='folder that keeps the vectors of encoders')
    parser.add_argument('--out', type=Path, help='write the rows as JSON here')
    a = parser.parse_args()
    quiet()

    from vlm2rec_lab.graph.lattice import item_graphs
    from vlm2rec_lab.graph.study import equal_widths
    from vlm2rec_lab.shop.shares import shares
    from vlm2rec_lab.shop.tables import load_folder

    whole = load_folder(a.folder, progress=False)
    split = shares(whole)
    made = dict(packaged=packaged_vectors(whole.catalogue, a.store), plain=plain_vectors(whole.catalogue))
    vectors = {name: equal_widths(v, a.width) for name, v in made.items()}
    graphs = {name: item_graphs(v) for name, v in vectors.items()}
    figures = {}
    for seed, v, g in itertools.product(range(a.seeds), vectors, graphs):
        recall, epochs = trained(split, vectors[v], graphs[g], seed, a)
        figures.setdefault((v, g), []).append(recall)
        say(f'seed {seed}, vectors {v}, graph {g}: Recall@20 {recall.mean():.4f} after {epochs} epochs')
    rows = compared(figures)
    say(table(rows))
    asked = {k: getattr(a, k) for k in ('seeds', 'epochs', 'patience', 'lr', 'dim', 'width')}
    write(a.out, dict(benchmark='lattice', machine=machine(), data=whole.name, asked=asked, rows=rows))


if __name__ == '__main__':
    main()
