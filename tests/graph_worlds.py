"A planted shop for graph recommenders: customers who buy by what each modality of an item says."

import numpy as np

from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.shares import shares


def planted(users=200, items=60, each=10, noise=None, weight=None, traits=3, dims=12, seed=0):
    """A split 8:1:1 and {modality: float32 [items, dims]}.

    An item has traits of its own in every modality, a customer a liking for each; `each` items are bought, drawn by the
    sum of the likings. A modality's vectors are a random map of its traits, with `noise` beside it, of the same size
    for 1; `weight` says how much customers care about it, 1 where it says nothing.
    """
    rng, noise, weight = np.random.default_rng(seed), noise or {'text': 0.3, 'image': 0.3}, weight or {}
    liked, vectors = rng.gumbel(size=(users, items)), {}
    for m, loud in noise.items():
        trait = rng.normal(size=(items, traits))
        liked += 2 * weight.get(m, 1.0) * rng.normal(size=(users, traits)) @ trait.T / traits**0.5
        said = trait @ rng.normal(size=(traits, dims)) / traits**0.5
        vectors[m] = (said + loud * rng.normal(size=said.shape)).astype(np.float32)
    lists = np.argsort(-liked, 1)[:, :each]
    catalogue = Catalogue([f'i{k}' for k in range(items)], {}, {})
    return shares(Dataset(catalogue, Interactions.of_sequences(lists.tolist()), f'planted, seed {seed}')), vectors
