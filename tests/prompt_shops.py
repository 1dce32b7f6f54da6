"Small shops and models of one layer for the tests of prompts."

import warnings

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration

from vlm2rec_lab.base.errors import DataWarning
from vlm2rec_lab.prompts.lessons import make_wording
from vlm2rec_lab.prompts.model import PromptModel
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.leave_one_out import leave_one_out

SIZES = dict(vocab_size=100, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)


def by_letter(word):
    "A token for each letter."
    return [ord(letter) % 90 + 2 for letter in word]


def bought_once(seed=0, users=20, items=15, longest=9, shortest=5, history=4):
    "A split in which nobody buys anything twice."
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(items)[:n].tolist() for n in rng.integers(shortest, longest + 1, users)]
    shop = Dataset(Catalogue([f'i{k}' for k in range(items)], {}, {}), Interactions.of_sequences(rows), 'once')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)  # of few rows
        return leave_one_out(shop, history=history)


def contents(*names, items=15, dims=6, seed=0):
    "{modality: [items, dims]}, each with an item that lacks it."
    rng, found = np.random.default_rng([seed, 5]), {}
    for k, name in enumerate(names):
        found[name] = rng.normal(size=(items, dims)).astype(np.float32)
        found[name][k + 1] = 0
    return found


def called(vectors, items=15, **how):
    "A wording in which items are called by two tokens."
    return make_wording(by_letter, [[50 + i // 10, 60 + i % 10] for i in range(items)], vectors, **how)


def tiny(*names, seed=0, dims=6, dropout=0.0, learn='everything', **how):
    "A model that shows modalities of `contents`."
    torch.manual_seed(seed)
    t5 = T5ForConditionalGeneration(T5Config(**SIZES, dropout_rate=dropout))
    return PromptModel(t5, {m: dims for m in names}, learn=learn, seed=seed, **dict(rank=2) | how)
