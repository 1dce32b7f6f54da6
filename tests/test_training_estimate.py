"""The estimate held against what then happened."""

import time

import numpy as np
import pytest
import torch

from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.tiny import build_tiny, build_tokenizer, save_tiny, studio_corpus
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import train
from vlm2rec_lab.training.estimate import estimate, step_tokens, token_cost
from vlm2rec_lab.training.kept import Kept


@pytest.fixture(scope='module')
def split():
    studio = make_studio('balanced', seed=0, items=80, users=150, length=8)
    return studio.split(train=120, valid=15, test=15, history=6)


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    "A random model whose weights are many beside the activations of a few rows."
    folder = tmp_path_factory.mktemp('wide') / 'model'
    tokenizer = build_tokenizer(studio_corpus(200))
    sizes = dict(hidden=256, layers=2, vision=32, vision_layers=1)
    save_tiny(folder, *build_tiny(tokenizer=tokenizer, **sizes), dtype=torch.float32)
    return folder


@pytest.mark.parametrize('how', [{}, dict(chunk=16), dict(positions='all')], ids=str)
def test_near_what_happens(checkpoint, split, how):
    "The time of the run, and the bytes that autograd held in a step of the full batch."
    e = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu')
    expected = estimate(e, split, steps=8, batch=48, validations=0, **how)
    start = time.perf_counter()
    train(e, split, steps=8, batch=48, eval_every=0, progress=False, **how)
    took = time.perf_counter() - start
    kept = token_cost(e, split, batch=48, **how)
    seen = step_tokens(e, split, batch=48, steps=1, **how)
    held = kept['bytes'] * seen['pass_tokens' if 'chunk' in how else 'batch_tokens']
    assert 0.5 < expected.graph / held < 2
    assert 0.2 < expected.time / took < 5


@pytest.mark.parametrize('autocast', [None, torch.bfloat16], ids=str)
def test_a_token_costs_the_same_in_every_batch(wide, split, autocast):
    "Weights are no activations: 2, 8 and 24 rows cost a like amount by token, though the weights are the larger part."
    e = VLMEmbedder.from_pretrained(wide, lora=4, device='cpu')
    costs = [token_cost(e, split, batch=rows, autocast=autocast)['bytes'] for rows in (2, 8, 24)]
    assert max(costs) / min(costs) < 1.1, costs
    weights = sum(p.numel() * p.element_size() for p in e.model.parameters())
    tokens = step_tokens(e, split, batch=2, steps=1)['tokens']
    assert weights / tokens > 0.2 * costs[0], 'the weights of this model are too few to be noticed'


def test_a_pass_keeps_copies_of_weights_under_autocast_alone(wide, split):
    "Without autocast nothing is copied; with it each pass keeps bfloat16 copies, at most of everything in the layers."
    e = VLMEmbedder.from_pretrained(wide, lora=4, device='cpu')
    assert token_cost(e, split)['pass_bytes'] == 0
    few, many = (token_cost(e, split, batch=b, autocast=torch.bfloat16)['pass_bytes'] for b in (4, 24))
    layers = sum(p.numel() for p in e.core.model.language_model.layers.parameters())
    assert 0.8 * 2 * layers < few < 1.1 * 2 * layers and 0.9 < few / many < 1.1


def test_the_count_by_hand_of_a_layer_of_the_decoder():
    """Frozen q in front of SwiGLU, float32, with a gradient at the input. Kept for the way back: what SiLU and the
    product read, and nothing that lies in memory anyway."""
    d, f, rows = 8, 32, 5
    gate, up, down = torch.nn.Linear(d, f, False), torch.nn.Linear(d, f, False), torch.nn.Linear(f, d, False)
    frozen = torch.nn.ModuleList([gate, up, down]).requires_grad_(False)
    table = torch.randn(100, d)
    for k in (rows, 10 * rows):
        x = torch.randn(k, d, requires_grad=True)
        kept = Kept([*frozen.parameters(), table])
        with kept.watch():
            y = down(torch.nn.functional.silu(gate(x)) * up(x)) * table[:k]
        # outputs of gate, SiLU and up: the weights, their transposes and the view of the table are free
        assert kept.tokens.most == 3 * k * f * 4
        y.sum().backward()
        del y
        assert kept.tokens.now == 0


def test_a_storage_counts_once():
    "Two views of one activation are one."
    x = torch.randn(6, 4, requires_grad=True) * 1
    kept = Kept()
    with kept.watch():
        y = (x[:3] * x[3:]).exp()
    assert kept.tokens.most == x.numel() * 4 + y.numel() * 4


def test_a_copy_that_was_let_go_of_is_no_copy_any_more():
    "Memory that a copy of a weight once had is counted when an activation comes to lie there."
    w = torch.nn.Parameter(torch.randn(64, 64))
    kept = Kept([w])
    with kept.watch():
        for _ in range(20):
            w.detach().to(torch.bfloat16)
            x = torch.ones(64, 64, dtype=torch.bfloat16, requires_grad=True)
            y = x.exp()
            assert kept.tokens.now == 64 * 64 * 2 and kept.copies.now == 0
            del x, y


def test_the_kept_bytes_are_the_memory_that_a_step_takes(wide, split):
    "What torch's own profiler saw allocated on the way there, and not freed before the way back, is near the count."
    from torch.profiler import ProfilerActivity, profile

    from vlm2rec_lab.model.encode import forward

    e = VLMEmbedder.from_pretrained(wide, lora=4, device='cpu')
    bank = e.bank(split.catalogue, progress=False)
    view = next(iter(bank.views))
    plan = bank.item_plan(np.arange(24))
    forward(e, bank, view, plan)
    kept = Kept([*e.model.parameters(), *e.model.buffers(), bank.features])
    with kept.watch():
        z = forward(e, bank, view, plan)
    count = kept.tokens.most
    del z
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        z = forward(e, bank, view, plan)
    held = sum(x.self_cpu_memory_usage for x in seen.key_averages())
    assert z.requires_grad and 0.85 < count / held < 1.05, (count, held)
