"A planted shop for graph recommenders: customers who buy by what each modality of an item says."

import numpy as np

from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.shares import shares


def planted(users=200, items=60, each=10, noise=None, weight=None, shared=0.0, scenery=0.0, traits=3, dims=12, seed=0):
    """A split 8:1:1 and {modality: float32 [items, dims]}.

    An item has traits in every modality, a customer a liking for each; `each` items are bought, drawn by the sum of the
    likings. A modality's vectors are a random map of its traits, with `noise` beside it, of the same size for 1;
    `weight` says how much customers care about it, 1 where it says nothing. Of the traits of all modalities but the
    first a part, `shared`, is that of the first, and their vectors show `scenery` besides, so much louder than traits,
    which nobody cares about.
    """
    rng, noise, weight = np.random.default_rng(seed), noise or {'text': 0.3, 'image': 0.3}, weight or {}
    liked, vectors, first = rng.gumbel(size=(users, items)), {}, None
    for m, loud in noise.items():
        trait = rng.normal(size=(items, traits))
        if first is not None:
            trait = shared**0.5 * first + (1 - shared) ** 0.5 * trait
        liked += 2 * weight.get(m, 1.0) * rng.normal(size=(users, traits)) @ trait.T / traits**0.5
        said = trait @ rng.normal(size=(traits, dims)) / traits**0.5
        seen = rng.normal(size=(items, traits)) @ rng.normal(size=(traits, dims)) / traits**0.5
        said = said + (0 if first is None else scenery) * seen + loud * rng.normal(size=said.shape)
        vectors[m], first = said.astype(np.float32), trait if first is None else first
    lists = np.argsort(-liked, 1)[:, :each]
    catalogue = Catalogue([f'i{k}' for k in range(items)], {}, {})
    return shares(Dataset(catalogue, Interactions.of_sequences(lists.tolist()), f'planted, seed {seed}')), vectors


def selling(users=400, items=120, each=12, like=2.0, sells=1.5, text=0.3, image='sales', seed=0, traits=3, dims=12):
    """A split and {modality: float32 [items, dims]} of a shop where some items sell more than others.

    Customers buy by how much they like what the text says and, `sells` times, by how an item sells. The image is a
    picture of how it sells, which says nothing of who asks; noise; a copy of the text; or of both, what the text says
    and how it sells. For `text=None` the text is noise, too.
    """
    rng = np.random.default_rng(seed)
    appeal, trait = rng.normal(size=items), rng.normal(size=(items, traits))
    liked = rng.gumbel(size=(users, items)) + sells * appeal
    liked += like * rng.normal(size=(users, traits)) @ trait.T / traits**0.5
    said = trait @ rng.normal(size=(traits, dims)) / traits**0.5
    noise = {m: rng.normal(size=said.shape) for m in ('text', 'image')}
    told = noise['text'] if text is None else said + text * noise['text']
    sold = 2 * appeal[:, None] * np.eye(1, dims) + 3 * np.eye(1, dims, 1) + 0.2 * noise['image']
    shown = {'sales': sold, 'noise': noise['image'], 'copy': told, 'both': told + sold}[image]
    vectors = {'text': told, 'image': shown}
    lists = np.argsort(-liked, 1)[:, :each]
    catalogue = Catalogue([f'i{k}' for k in range(items)], {}, {})
    split = shares(Dataset(catalogue, Interactions.of_sequences(lists.tolist()), f'selling, seed {seed}'))
    return split, {m: v.astype(np.float32) for m, v in vectors.items()}
