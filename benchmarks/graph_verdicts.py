"""How often is the verdict of a graph report right? Drawn shops of known truth, with a reference and without.

    python benchmarks/graph_verdicts.py WORK [--models VBPR ...] [--seed 100] [--seeds 6] [--jobs 2] [--out FILE.csv]

A model is trained in every shop, and one on each modality alone, which are the reference. What is true of a modality:

- `alive`: customers buy by what its contents say. Right is *healthy*.
- `never`: its contents are noise. Right is *collapsed* or *uninformative*: nothing of it is there.
- `sales`: its contents say how an item sells, the same to everybody. Right is *collapsed* or *uninformative*.
- `forgot`: as alive, and after training what turns its contents into vectors is as it was before any. Right is
  *collapsed*.
- `unheard`: as alive, and after training the same is a twentieth of what it was. Right is *under-used*.

These truths are those of VBPR, the default: where vectors flow along purchases, contents turned by chance still rank,
and what forgot is rather not heard. *Undecided* is no error. WORK keeps a file for every shop, model and seed; what is
there is read.
"""

import argparse
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from common import RESULTS, cell, quiet, say, table

sys.path.append(str(RESULTS.parent.parent / 'tests'))  # whose shops these are

BOTH, THREE = dict(text=0.3, image=0.3), dict(text=0.3, image=0.3, audio=0.3)
ALIVE = dict(text='alive', image='alive')
WORLDS = {  # name -> (maker of tests/graph_worlds.py, its settings, {modality: what is true of it})
    'both tell': ('planted', dict(noise=BOTH), ALIVE),
    'the image is noise': (
        'planted',
        dict(noise=BOTH | dict(image=30), weight=dict(image=0)),
        ALIVE | dict(image='never'),
    ),
    'the text is noise': ('planted', dict(noise=BOTH | dict(text=30), weight=dict(text=0)), ALIVE | dict(text='never')),
    'the image was forgotten': ('planted', dict(noise=BOTH), ALIVE | dict(image='forgot')),
    'the text was forgotten': ('planted', dict(noise=BOTH), ALIVE | dict(text='forgot')),
    'the image is not heard': ('planted', dict(noise=BOTH), ALIVE | dict(image='unheard')),
    'nearly twins': ('planted', dict(noise=BOTH, shared=0.9), ALIVE),
    'three tell': ('planted', dict(noise=THREE), ALIVE | dict(audio='alive')),
    'of three, one was forgotten': ('planted', dict(noise=THREE), ALIVE | dict(audio='forgot')),
    'the image tells sales': ('selling', dict(), ALIVE | dict(image='sales')),
    'the image tells sales, which differ less': ('selling', dict(sells=1.0), ALIVE | dict(image='sales')),
    'the image tells sales, which differ more': ('selling', dict(sells=2.5), ALIVE | dict(image='sales')),
    'the image tells taste and sales': ('selling', dict(image='both'), ALIVE),
    'noise beside sales': ('selling', dict(image='noise'), ALIVE | dict(image='never')),
    'copies, and sales': ('selling', dict(image='copy'), ALIVE),
}
SIZES = dict(planted=dict(users=400, items=120, each=12), selling=dict(users=400, items=120, each=12))
DEAD = ('collapsed', 'uninformative')
RIGHT = dict(alive=('healthy',), never=DEAD, sales=DEAD, forgot=('collapsed',), unheard=('under-used',))
TRAINING = dict(batch=256, lr=0.02, epochs=25, patience=5, metric='NDCG@10', progress=False)


def trained(model, split, vectors, seed, epochs):
    "A model of a name on these contents."
    from vlm2rec_lab.graph.fit import fit_graph
    from vlm2rec_lab.graph.graph import graph_of
    from vlm2rec_lab.graph.make import make_model

    made = make_model(model, graph_of(split), vectors, dim=8, seed=seed)
    fit_graph(made, split, **TRAINING | dict(seed=seed, epochs=epochs))
    return made


def strike(model, truths, fresh):
    "Have a trained model forget, or hardly hear, what is said to be so; `fresh` is the same before training."
    import torch

    with torch.no_grad():
        for m, truth in truths.items():
            for own, before in zip(model.path(m), fresh.path(m)):
                if truth == 'forgot':
                    own.copy_(before)
                elif truth == 'unheard':
                    own.mul_(0.05)


def judged(world, model, seed, epochs=25, report=None):  # -> list of rows
    "What a report says of every modality, with a reference and without."
    import graph_worlds

    from vlm2rec_lab.graph.diagnosis import graph_report
    from vlm2rec_lab.graph.graph import graph_of
    from vlm2rec_lab.graph.make import make_model

    quiet(1)
    warnings.simplefilter('ignore')
    maker, settings, truths = WORLDS[world]
    split, vectors = getattr(graph_worlds, maker)(**SIZES[maker], **settings, seed=seed)
    net = trained(model, split, vectors, seed, epochs)
    strike(net, truths, make_model(model, graph_of(split), vectors, dim=8, seed=seed + 1000))
    alone, rows = {m: trained(model, split, {m: v}, seed, epochs) for m, v in vectors.items()}, []
    for before in (None, alone):
        found = graph_report(net, split, before, k=10, seed=seed, **report or {}).data['modalities']
        for m, truth in truths.items():
            case = dict(world=world, model=model, seed=seed, reference=before is not None, modality=m, truth=truth)
            rows.append(case | dict(verdict=found[m]['verdict'], reason=found[m]['reason']))
    return rows


def kept(world, model, seed, work, epochs):
    "The rows of one case, read where they are there."
    settings = dict(cell='graph_verdicts', world=world, model=model, seed=seed, epochs=epochs, shop=repr(WORLDS[world]))
    return cell(work, settings, lambda: dict(rows=judged(world, model, seed, epochs)))['rows']


def rates(rows):  # DataFrame, of the rows -> list of dict
    "By model, reference and truth: how often right, wrong and undecided, and the wrong words."
    out = []
    for (model, reference, truth), g in rows.groupby(['model', 'reference', 'truth'], sort=False):
        right = [v in RIGHT[truth] for v in g.verdict]
        wrong = [f'{v} ({r})' for v, r, ok in zip(g.verdict, g.reason, right) if not ok and v != 'undecided']
        row = dict(model=model, reference='with' if reference else 'without', truth=truth, verdicts=len(g))
        row |= {'right': sum(right), 'undecided': int((g.verdict == 'undecided').sum()), 'wrong': len(wrong)}
        out.append(row | {'wrong words': ', '.join(sorted(set(wrong)))})
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('work', type=Path, help='keeps what is done')
    p.add_argument('--models', nargs='+', default=['VBPR'])
    p.add_argument('--worlds', nargs='+', default=list(WORLDS), choices=list(WORLDS))
    p.add_argument('--seed', type=int, default=100, help='the first')
    p.add_argument('--seeds', type=int, default=6)
    p.add_argument('--epochs', type=int, default=25)
    p.add_argument('--jobs', type=int, default=2)
    p.add_argument('--out', type=Path, help='a CSV file')
    a = p.parse_args()
    import pandas as pd

    from vlm2rec_lab.base.cells import csv_bytes
    from vlm2rec_lab.base.files import write_bytes

    asked, rows = [(w, m, s) for s in range(a.seed, a.seed + a.seeds) for m in a.models for w in a.worlds], []
    with ProcessPoolExecutor(a.jobs, get_context('spawn')) as pool:
        begun = [pool.submit(kept, *case, a.work, a.epochs) for case in asked]
        for case, b in zip(asked, begun):
            rows += b.result()
            say(', '.join(map(str, case)))
    rows = pd.DataFrame(rows)
    print(table(rates(rows)))
    if a.out is not None:
        write_bytes(a.out, csv_bytes(rows))


if __name__ == '__main__':
    main()
