"""What remedies do to a recommender on films: its ranking, what it loses without a modality, what each says alone.

    python benchmarks/graph_remedies.py FOLDER WORK [--model VBPR] [--seeds 5] [--out data/study/films_remedies.csv]

FOLDER and the packaged encoders are those of graph_films.py, WORK too, so that vectors are found. Every run is trained
with the same sizes, budget and seeds, chosen by validation Recall@20 of the whole ranking, and the test is ranked with
everything there, without a modality, and by one modality alone. The settings of all remedies are their defaults: none
was tuned. Gains are over plain BPR, 95 % intervals over customers, each the mean over the seeds.

"""

import argparse
import json
import warnings
from functools import partial
from pathlib import Path

from common import quiet, say, table
from graph_films import vectors_of

PLAIN = 'plain BPR'


def remedies(split, net, how):  # -> {name: remedy of fit_graph, or None}
    "Every remedy with its defaults; teachers are trained on one modality each."
    from vlm2rec_lab.graph.fit import fit_graph
    from vlm2rec_lab.graph.remedies import per_modality_bpr, taught_bpr, teachers_of, weakest_bpr

    found = {PLAIN: None, 'a loss for each modality': per_modality_bpr, 'negatives louder by the gap': weakest_bpr}
    teachers = {m: net([m]) for m in net(None).modalities}
    for t in teachers.values():
        fit_graph(t, split, **how)
    return found | {'unimodal teachers': partial(taught_bpr, teachers=teachers_of(teachers))}


def ranked(model, split, tables=None):  # -> [rows]
    "Recall@20 of each test row."
    import numpy as np
    import torch

    from vlm2rec_lab.graph.fit import figure_of, rank_graph

    with torch.no_grad():
        tables = model.tables() if tables is None else tables
        return np.asarray(figure_of(rank_graph(model, split, 'test', tables), 20, 'Recall'), float).round(6).tolist()


def figures(model, split):  # -> {what is ranked by: [rows]}
    "The whole, without each modality, each alone."
    found = {'whole': ranked(model, split)}
    for m in model.modalities:
        found[f'without {m}'] = ranked(model, split, model.without(m))
        found[f'{m} alone'] = ranked(model, split, model.alone()[m])
    return found


def seed_cell(split, vectors, seed, a):  # -> {remedy: figures}
    "All remedies from one seed."
    from vlm2rec_lab.graph.fit import fit_graph
    from vlm2rec_lab.graph.graph import graph_of
    from vlm2rec_lab.graph.make import make_model
    from vlm2rec_lab.graph.remedies import centred_tables

    how = dict(batch=2048, lr=3e-3, epochs=a.epochs, patience=10, seed=seed, progress=False)

    def net(only):
        given = {m: v for m, v in vectors.items() if only is None or m in only}
        return make_model(a.model, graph_of(split), given, dim=64, seed=seed)

    found = {}
    for name, remedy in remedies(split, net, how).items():
        model = net(None)
        fit_graph(model, split, remedy=remedy, **how)
        found[name] = figures(model.eval(), split)
        if remedy is None and hasattr(model, 'views'):
            found['means taken away'] = {'whole': ranked(model, split, centred_tables(model))}
    return found


def compared(cells):  # -> list of rows
    "Each remedy beside plain BPR."
    import numpy as np

    from vlm2rec_lab.ranking.evaluate import relative_gain

    rows = []
    for name in cells[0]:
        for left in cells[0][name]:
            own, base = (np.mean([c[n][left] for c in cells], 0) for n in (name, PLAIN))
            row = dict(remedy=name, left=left, recall=own.mean(), gain='', low='', high='')
            if name != PLAIN:
                row |= dict(zip(('gain', 'low', 'high'), relative_gain(own, base, 2000)))
            rows.append({k: round(float(v), 5) if isinstance(v, float) else v for k, v in row.items()})
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', help='of films')
    p.add_argument('work', type=Path, help='keeps what is done')
    p.add_argument('--model', default='VBPR')
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--epochs', type=int, default=200)
    p.add_argument('--width', type=int, default=128)
    p.add_argument('--out', type=Path, help='a CSV file')
    a = p.parse_args()
    quiet(1)
    warnings.simplefilter('ignore')
    import pandas as pd

    from vlm2rec_lab.base.cells import csv_bytes
    from vlm2rec_lab.base.files import write_bytes
    from vlm2rec_lab.commands.open import open_dataset
    from vlm2rec_lab.graph.study import equal_widths
    from vlm2rec_lab.shop.shares import shares

    dataset, cells = open_dataset(a.folder, 0, None), []
    split = shares(dataset, seed=0)
    vectors = equal_widths(vectors_of('real', dataset.catalogue, a.work, a), a.width)
    for seed in range(a.seeds):
        file = a.work / 'remedies' / f'{a.model}--{seed}.json'
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, json.dumps(seed_cell(split, vectors, seed, a)).encode())
        cells.append(json.loads(file.read_text()))
        say(f'seed {seed}')
    rows = [dict(model=a.model, seeds=a.seeds) | r for r in compared(cells)]
    print(table(rows))
    if a.out is not None:
        write_bytes(a.out, csv_bytes(pd.DataFrame(rows)))


if __name__ == '__main__':
    main()
