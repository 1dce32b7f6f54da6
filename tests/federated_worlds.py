"Small shops with dates for the federated wing: customers come one after another and stay for a while."

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vlm2rec_lab.base.errors import DataWarning
from vlm2rec_lab.federated.backbones import BACKBONES
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.drawn import make_studio

DAY = 86400.0


def dated(dataset, days=100, stay=30, seed=0):
    "A dataset whose interactions have dates: a first day each, and gaps of days between purchases."
    inter, rng = dataset.interactions, np.random.default_rng(seed)
    gaps = rng.exponential(stay / max(inter.lengths.mean(), 1), len(inter.items))
    gaps[inter.offsets[:-1][inter.lengths > 0]] = rng.uniform(0, days - stay, int((inter.lengths > 0).sum()))
    total = np.cumsum(gaps)
    before = np.repeat((total - gaps)[np.minimum(inter.offsets[:-1], len(gaps) - 1)], inter.lengths)
    return replace(
        dataset, interactions=Interactions(inter.user_ids, inter.offsets, inter.items, DAY * (total - before))
    )


def drawn_shop(condition='balanced', items=60, users=150, length=14, seed=0):
    "The drawn studio, with dates."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)  # of few rows
        return dated(make_studio(condition, seed=seed, items=items, users=users, length=length), seed=seed)


def begun(name, shop, dim=8):
    "Items and private parameters of all who will ever come, before anything is learned."
    b, g = BACKBONES[name], torch.Generator().manual_seed(0)
    return torch.randn(len(shop.catalogue), dim, generator=g) * b.spread, b.begin(len(shop.user_ids), dim, g)


def revealed_vectors(studio):
    "{modality: float [N, ...]} the attributes that each modality reveals, a column for each of their values."
    return {
        m: np.concatenate(
            [np.eye(int(studio.attributes[a].max()) + 1)[studio.attributes[a]] for a in studio.revealed(m)], 1
        )
        for m in studio.catalogue.content
    }


def shop_of(log):
    "A dataset from {customer: [(item, day)]}, oldest first."
    pairs = [p for events in log.values() for p in events]
    catalogue = Catalogue([f'i{k}' for k in range(1 + max(i for i, _ in pairs))], {}, {})
    offsets = np.concatenate([[0], np.cumsum([len(e) for e in log.values()])])
    items, times = np.array(pairs, float).T
    return Dataset(catalogue, Interactions(tuple(log), offsets, items.astype(int), times * DAY), 'by hand')


def dated_folder(folder, dataset=None):  # -> the folder
    "A dated shop as a folder of one's own: two tables."
    dataset, folder = dataset or drawn_shop(items=40, users=120, length=12), Path(folder)
    folder.mkdir(exist_ok=True)
    inter, items = dataset.interactions, dataset.catalogue
    bought = dict(user_id=np.repeat(inter.user_ids, inter.lengths), item_id=np.array(items.ids)[inter.items])
    pd.DataFrame(bought | dict(timestamp=inter.times.round())).to_csv(folder / 'interactions.csv', index=False)
    pd.DataFrame(dict(item_id=items.ids, text=items.content['text'])).to_csv(folder / 'items.csv', index=False)
    return folder
