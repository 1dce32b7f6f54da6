"""What do text and picture give a federation, how do new items fare, and does each modality survive?

    python benchmarks/federated_contents.py FOLDER WORK [--seeds 5] [--vectors FILE.npz] [--out data/study]

FOLDER is MovieLens-100K with plots and posters, WORK keeps what is done, and a second call goes on. Films: the packaged
MiniLM and EfficientNet as they come (or arrays items/<modality> of FILE.npz), 32 principal components of each, found on
the films of the base block; three fifths of the pairs in the base block and three blocks after it, 10-core; settings of
`vlm2rec federated`; FedMF and PFedRec, fine-tuning and ARM+ITM. *Exchanged* gives every film the contents of another;
*alone*, items begin at one modality.
New items: drawn shops in which three items of ten come to market after the base block; text and picture are two noisy
looks at what the item is, each at one half of it; drawn anew with every seed. Balance: a federation whose items are
nothing but their contents, beside the same model whose pairs lie in one place (Adam, the same loss and negatives),
on drawn shops: *complementary*, where taste lives in what only one modality knows, and *balanced*, where both know the
category; a modality ranks by its part of the score.
Writes federated_contents.csv, federated_new.csv and federated_balance.csv.
"""

import argparse
import json
import warnings
from itertools import product
from pathlib import Path

from common import quiet, say, table

WAYS = ('random', 'begin', 'fitted', 'adapters', 'adapters alone')
CONTROLS = ('begin', 'adapters')


def film_vectors(a, catalogue):  # -> {modality: float32 [N, D]}
    "Vectors of the packaged encoders, or of a file."
    from lattice import packaged_vectors

    from vlm2rec_lab.ranking.vectors import read_items

    return read_items(a.vectors, len(catalogue)) if a.vectors else packaged_vectors(catalogue, a.work / 'vectors')


def exchanged(features, seed=0):  # -> {modality: float [N, ...]}
    "The contents of other items, the same other item in every modality."
    import torch

    n = len(next(iter(features.values())))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return {m: x[order] for m, x in features.items()}


def on_films(a):  # -> DataFrame
    "LA, RA and HM by the way items are made."
    import pandas as pd

    from vlm2rec_lab.commands.open import open_dataset
    from vlm2rec_lab.federated.blocks import blocks
    from vlm2rec_lab.federated.contents import content_features
    from vlm2rec_lab.federated.study import federated_table, run_federated

    dataset = open_dataset(a.folder, 0, None)
    cut = blocks(dataset, 0.6, 3, 10, seed=0)
    features = content_features(film_vectors(a, dataset.catalogue), cut)
    found, how = [], dict(methods=['fine-tuning', 'ARM+ITM'], seeds=a.seeds, said=say, progress=False)
    for backbone in ('FedMF', 'PFedRec'):
        cells = run_federated(a.work / 'films', cut, [backbone], items=WAYS, features=features, **how)
        other = dict(items=CONTROLS, features=exchanged(features))
        control = run_federated(a.work / 'films exchanged', cut, [backbone], **other, **how)
        cells += [c | dict(items=f'{c["items"]}, exchanged') for c in control]
        for m in features:
            one = dict(items=['begin'], features={m: features[m]})
            cells += [
                c | dict(items=f'begin, {m} alone')
                for c in run_federated(a.work / f'films {m}', cut, [backbone], **one, **how)
            ]
        found.append(cells)
    return pd.concat([federated_table(c) for c in found])


def launches(a, seed):  # -> Blocks, {modality: float [N, 12]} of its items
    "A drawn shop whose items come to market over time, and two noisy looks at them."
    import numpy as np

    from vlm2rec_lab.federated.blocks import blocks
    from vlm2rec_lab.federated.contents import content_features
    from vlm2rec_lab.federated.drift import drifting

    drawn = drifting(1000, 300, 3, drift=0.25, launches=0.3, seed=seed)
    cut, rng = blocks(drawn.dataset, 0.6, 3, 5, seed=0), np.random.default_rng([seed, 9])
    half = drawn.vectors.shape[1] // 2
    looks = dict(text=drawn.vectors[:, :half], image=drawn.vectors[:, half:])
    noisy = {m: x @ rng.normal(size=(half, 12)) + 0.3 * rng.normal(size=(len(x), 12)) for m, x in looks.items()}
    return cut, content_features(noisy, cut, components=4)


def new_items(a):  # -> DataFrame
    "How items of a new block are ranked when it begins and when it is over, a row per shop and way."
    import numpy as np
    import pandas as pd

    from vlm2rec_lab.federated.study import run_federated

    rows = []
    for seed in range(a.seeds):
        cut, features = launches(a, seed)
        how = dict(items=WAYS[:4], features=features, dim=8, said=say, progress=False)
        for method in ('fine-tuning', 'ARM+ITM'):
            folder = a.work / 'launches' / str(seed)
            for c in run_federated(folder, cut, ['FedMF'], [method], 1, **how):
                asked = {w: [f for f in c['figures'] if f['way'] == w] for w in ('arrival', 'new', 'seen')}
                mean = {w: np.mean([np.mean(f['NDCG']) for f in fs]) for w, fs in asked.items() if w != 'seen'}
                new = sum(len(f['users']) for f in asked['new'])
                rows.append(dict(shop=seed, method=method, items=c['items'], asked=new, **mean))
    return pd.DataFrame(rows)


def pooled(start, private, clients, contents, epochs, seed=0):  # -> shared, private after training
    "FedMF whose pairs lie in one place: the same loss and negatives, by autograd and Adam."
    import torch
    import torch.nn.functional as F

    from vlm2rec_lab.federated.contents import made_of
    from vlm2rec_lab.federated.rounds import draw_steps

    shared, users = start.clone().requires_grad_(), private['user'].clone().requires_grad_()
    adam, g = torch.optim.Adam([shared, users], lr=0.01), torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        steps = draw_steps(clients, 4, 10**9, g)
        order = torch.randperm(len(steps[0].rows), generator=g)
        for at in order.split(1024):
            heads, vectors = users[clients.users[steps[0].rows[at]]], made_of(shared, contents)[steps[0].items[at]]
            loss = F.binary_cross_entropy_with_logits((heads * vectors).sum(1), steps[0].labels[at])
            adam.zero_grad()
            loss.backward()
            if not contents.own:
                shared.grad[contents.rows :] = 0
            adam.step()
    return shared.detach(), dict(user=users.detach())


def balance(a):  # -> DataFrame
    "NDCG@10 of each modality alone and of all, of a federation and of the same model trained in one place."
    import pandas as pd
    import torch

    from vlm2rec_lab.federated.backbones import get_backbone
    from vlm2rec_lab.federated.blocks import blocks
    from vlm2rec_lab.federated.contents import Contents, content_features, made_of, parts_of
    from vlm2rec_lab.federated.continual import task_of, test_of
    from vlm2rec_lab.federated.rank import figures
    from vlm2rec_lab.federated.rounds import train_rounds

    rows = []
    for condition, seed in product(('complementary', 'balanced'), range(a.seeds)):
        studio, looks = studio_of(condition, seed)
        cut = blocks(studio, 0.7, 1, 5, seed=0)
        contents, task = Contents(content_features(looks, cut, 8), own=False, reach=0.1), task_of(cut, 0)
        g, b = torch.Generator().manual_seed(seed), get_backbone('FedMF')
        start = torch.cat([torch.randn(contents.rows, 16, generator=g) * 0.1, torch.zeros(cut[0].items, 16)])
        private = b.begin(len(cut.user_ids), 16, g)
        mine, theirs = start.clone(), {k: v.clone() for k, v in private.items()}
        train_rounds(b, mine, theirs, task, lr=2.0, rounds=150, metric='NDCG@10', contents=contents, progress=False)
        one = best_of(start, private, task, contents, seed)
        asked = test_of(cut, 0, 0)
        for name, (shared, users) in {'federated': (mine, theirs), 'in one place': one}.items():
            parts = parts_of(shared, contents) | dict(together=made_of(shared, contents))
            share = {m: x.std(0).norm().item() for m, x in parts.items()}
            for m, x in parts.items():
                ndcg = figures(asked, users['user'], x, 10, ('NDCG',))['NDCG'].mean()
                alone = dict(shop=condition, training=name, seed=seed, modality=m, NDCG=ndcg)
                rows.append(alone | dict(share=share[m] / (share['text'] + share['image'])))
    return pd.DataFrame(rows)


def best_of(start, private, task, contents, seed):  # -> shared, private
    "The pooled training that validation likes best, of a few lengths."
    from vlm2rec_lab.federated.contents import made_of
    from vlm2rec_lab.federated.rank import figures

    def valid(found):
        return figures(task.valid, found[1]['user'], made_of(found[0], contents), 10, ('NDCG',))['NDCG'].mean()

    return max((pooled(start, private, task.clients, contents, n, seed) for n in (2, 5, 10, 20, 40)), key=valid)


def studio_of(condition, seed):  # -> Dataset with dates, {modality: float [N, ...]} the attributes that each reveals
    "A drawn shop, its dates drawn as well."
    from dataclasses import replace

    import numpy as np

    from vlm2rec_lab.shop.catalogue import Interactions
    from vlm2rec_lab.shop.drawn import make_studio

    studio = make_studio(condition, seed=seed, items=200, users=1000, length=16)
    inter, rng = studio.interactions, np.random.default_rng(seed)
    days = (rng.uniform(0, 70, (1000, 1)) + 2 * np.arange(16)).ravel() * 86400
    looks = {
        m: np.concatenate([np.eye(9)[studio.attributes[x]] for x in studio.revealed(m)], 1) for m in ('text', 'image')
    }
    return replace(studio, interactions=Interactions(inter.user_ids, inter.offsets, inter.items, days)), looks


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', help='of films')
    p.add_argument('work', type=Path, help='keeps what is done')
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--vectors', help='.npz with arrays items/<modality>, instead of the packaged encoders')
    p.add_argument('--only', nargs='+', choices=('contents', 'new', 'balance'), default=['contents', 'new', 'balance'])
    p.add_argument('--out', type=Path, help='folder for the tables')
    a = p.parse_args()
    quiet(1)
    warnings.simplefilter('ignore')
    from vlm2rec_lab.base.cells import csv_bytes
    from vlm2rec_lab.base.files import write_bytes

    a.work.mkdir(parents=True, exist_ok=True)
    for name, make in (('contents', on_films), ('new', new_items), ('balance', balance)):
        if name in a.only:
            found = make(a).round(5)
            print(table(json.loads(found.to_json(orient='records'))))
            if a.out is not None:
                write_bytes(a.out / f'federated_{name}.csv', csv_bytes(found))


if __name__ == '__main__':
    main()
