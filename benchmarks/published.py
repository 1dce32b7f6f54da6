"""LightGCN of this package against a figure that others published for a public file: MovieLens-100K, 3:1 at random.

    python benchmarks/published.py FOLDER [--seeds 5] [--out benchmarks/results/published.json]

The folder holds the 100,000 ratings of MovieLens-100K as interactions.csv, with items.csv. The published run is the
LightGCN page of the public collection `recommenders` (recommenders-team/recommenders,
examples/02_model_collaborative_filtering/lightgcn_deep_dive.ipynb): a quarter of every user's ratings for the test, all
ratings count alike, 64 dimensions, 3 layers, steps of 1,024, Adam at .005, a norm of 1e-4, 50 epochs, training items
left out, the first 10 shown; nothing chosen by validation. Its split cannot be had, so that it is drawn again, with
another seed for each run. What differs: there a step draws users evenly and one of
their items, here it draws purchases.
"""

import argparse
from pathlib import Path

from common import machine, quiet, say, table, write

PUBLISHED = {'Recall@10': 0.213203, 'NDCG@10': 0.453004, 'Precision@10': 0.399258}  # as that page prints them


def trained(dataset, seed, a):  # -> {metric: value}
    "One split, one training, the figures of its test."
    from vlm2rec_lab.graph.fit import evaluate_graph, fit_graph
    from vlm2rec_lab.graph.graph import graph_of
    from vlm2rec_lab.graph.models import LightGCN
    from vlm2rec_lab.shop.shares import shares

    split = shares(dataset, valid=0, test=0.25, seed=seed)
    model = LightGCN(graph_of(split), a.dim, 3, seed=seed)
    fit_graph(model, split, batch=1024, lr=0.005, epochs=a.epochs, patience=None, seed=seed, progress=False)
    found = evaluate_graph(model, split, k=10, metrics=('Recall', 'NDCG', 'Precision'))
    return {m: float(found.loc['all', m]) for m in PUBLISHED}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', help='of MovieLens-100K')
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--epochs', type=int, default=50)
    p.add_argument('--dim', type=int, default=64)
    p.add_argument('--out', type=Path, help='write the figures as JSON here')
    a = p.parse_args()
    quiet(1)
    import numpy as np

    from vlm2rec_lab.commands.open import open_dataset

    dataset, runs = open_dataset(a.folder, 0, None), []
    for seed in range(a.seeds):
        runs.append(trained(dataset, seed, a))
        say(dict(seed=seed, **{m: round(v, 4) for m, v in runs[-1].items()}))
    rows = []
    for m, told in PUBLISHED.items():
        each = np.array([r[m] for r in runs])
        rows.append(
            dict(metric=m, published=told, here=round(float(each.mean()), 6), change=float(each.mean() / told - 1))
        )
        rows[-1]['seed sd'] = round(float(each.std(ddof=1)), 6) if a.seeds > 1 else None
    print(table(rows))
    asked = dict(
        seeds=a.seeds, epochs=a.epochs, dim=a.dim, data=dataset.name, interactions=len(dataset.interactions.items)
    )
    write(a.out, dict(machine=machine(), asked=asked, rows=rows))


if __name__ == '__main__':
    main()
