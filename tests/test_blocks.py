"Gated layers in blocks of tokens give the figures of transformers and peft, there and back, whatever the shapes."

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from test_lean import adapters, close, outcome
from test_training_step import make_task
from torch import nn
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3Config, Qwen3MLP

from vlm2rec_lab.model import blocks as room
from vlm2rec_lab.model.blocks import in_blocks
from vlm2rec_lab.model.lean import lean
from vlm2rec_lab.training.losses import get_loss
from vlm2rec_lab.training.step import plan_works, step_gradients

PRODUCTS = ('gate_proj', 'up_proj', 'down_proj')
KINDS = {Qwen2MLP: Qwen2Config, Qwen3MLP: Qwen3Config, LlamaMLP: LlamaConfig}


def gated(kind=Qwen2MLP, width=6, inside=10, rank=2, targets=PRODUCTS, seed=0, back=True, **config):
    "The same gated layer by transformers and peft, and in blocks."
    torch.manual_seed(seed)
    sizes = KINDS[kind](num_attention_heads=1, head_dim=2, **config)
    sizes.hidden_size, sizes.intermediate_size = width, inside
    layer = kind(sizes)
    plain = inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=list(targets)), layer)
    for p in plain.parameters():
        nn.init.normal_(p, std=0.5)
    return plain, in_blocks(lean(copy.deepcopy(plain), back))


@pytest.fixture
def small(monkeypatch):
    "Blocks of five tokens, from the first one."
    monkeypatch.setattr(room, 'BLOCK', 5)
    monkeypatch.setattr(room, 'FROM', 1)


@pytest.fixture
def taken(monkeypatch):
    "A list that fills with the tokens that went through in blocks."
    found, real = [], room._Gated.apply
    monkeypatch.setattr(room._Gated, 'apply', lambda x, *a: found.append(len(x)) or real(x, *a))
    return found


sizes = st.integers(1, 9)


@given(st.lists(sizes, min_size=1, max_size=3), sizes, sizes, sizes, st.sampled_from(sorted(KINDS, key=str)))
@settings(max_examples=60, deadline=None)
def test_layers_of_any_shape_are_those_of_peft(shape, width, inside, rank, kind):
    with pytest.MonkeyPatch.context() as m:
        m.setattr(room, 'BLOCK', 5)
        m.setattr(room, 'FROM', 1)
        plain, quick = gated(kind, width, inside, rank)
        x, g = torch.randn(*shape, width), torch.randn(*shape, width)
        assert close(outcome(plain, x, g), outcome(quick, x, g))


def test_adapters_may_differ_in_scale(small, taken):
    plain, quick = gated()
    for m in (plain, quick):
        for k, name in enumerate(PRODUCTS):
            getattr(m, name).scaling['default'] = 0.5 + k
    x, g = torch.randn(13, 6), torch.randn(13, 6)
    assert close(outcome(plain, x, g), outcome(quick, x, g)) and taken == [13]


def test_an_input_that_needs_no_gradient(small, taken):
    plain, quick = gated()
    x, found = torch.randn(2, 7, 6), []
    for m in (plain, quick):
        found.append(torch.autograd.grad(m(x).square().sum(), adapters(m)))
    assert close(*found) and taken == [14]


@pytest.mark.parametrize('needs', (True, False))
def test_the_gradient_can_be_taken_again(small, taken, needs):
    plain, quick = gated()
    x, found = torch.randn(12, 6, requires_grad=needs), []
    for m in (plain, quick):
        leaves = adapters(m) + [x] * needs
        into = torch.autograd.grad(m(x).square().sum(), leaves, create_graph=True)
        found.append([*into, *torch.autograd.grad(sum(t.square().sum() for t in into), leaves)])
    assert close(*found, 1e-4) and taken == [12]


def test_activations_that_are_computed_again_give_the_same(small, taken):
    from torch.utils.checkpoint import checkpoint

    _, quick = gated()
    x, g, found = torch.randn(12, 6), torch.randn(12, 6), []
    for run in (quick, lambda z: checkpoint(quick, z, use_reentrant=False)):
        z = x.clone().requires_grad_()
        found.append(torch.autograd.grad(run(z), [z, *adapters(quick)], g))
    assert close(*found, 1e-7) and taken == [12, 12, 12]


def test_vectors_without_gradients_stay_to_the_last_bit(small, taken):
    plain, quick = gated()
    x = torch.randn(40, 6)
    with torch.no_grad():
        assert torch.equal(lean(copy.deepcopy(plain))(x), quick(x)) and not taken


def test_where_a_layer_goes_as_it_is_written(monkeypatch, taken):
    "Few tokens, wide matrices, other types, a product without adapter, a base that is trained, autograd's way back."
    monkeypatch.setattr(room, 'FROM', 8)
    x = torch.randn(8, 6, requires_grad=True)

    def same(plain, quick, x=x):
        assert close([plain(x)], [quick(x)], 0.03 if x.dtype == torch.bfloat16 else 1e-5)

    same(*gated())
    assert taken == [8]
    same(*gated(), x=x[:7])
    same(*(m.bfloat16() for m in gated()), x=x.detach().bfloat16().requires_grad_())
    same(*(m.double() for m in gated()), x=x.detach().double().requires_grad_())
    same(*gated(targets=PRODUCTS[:2]))
    same(*gated(kind=LlamaMLP, mlp_bias=True))
    same(*(m.requires_grad_(True) for m in gated()))
    same(*gated(back=False))
    with torch.autocast('cpu', torch.bfloat16):
        assert gated()[1](x).dtype == torch.bfloat16
    monkeypatch.setattr(room, 'WIDEST', 59)
    same(*gated())
    assert taken == [8]


def test_dropout_and_other_adapters_stay_with_peft(small, taken):
    _, quick = gated()
    quick.up_proj.lora_dropout['default'] = nn.Dropout(0.5)
    quick(torch.randn(12, 6))
    plain, quick = gated()
    for m in (plain, quick):
        for name in PRODUCTS:
            getattr(m, name).enable_adapters(False)
    assert torch.equal(plain(torch.ones(12, 6)), quick(torch.ones(12, 6))) and not taken


@pytest.mark.parametrize('name', PRODUCTS)
@pytest.mark.parametrize('watch', ('register_forward_hook', 'register_forward_pre_hook', 'register_full_backward_hook'))
@pytest.mark.parametrize('below', (False, True))
def test_who_watches_a_product_sees_it(small, taken, name, watch, below):
    _, quick = gated()
    product, seen = getattr(quick, name), []
    getattr(product.base_layer if below else product, watch)(lambda *a: seen.append(1))
    quick(torch.randn(12, 6, requires_grad=True)).sum().backward()
    assert seen and not taken


def test_a_forward_that_was_replaced_is_called(small, taken):
    _, quick = gated()
    old, seen = quick.up_proj.forward, []
    quick.up_proj.forward = lambda x: seen.append(1) or old(x)
    quick(torch.randn(12, 6))
    assert seen == [1] and not taken


def test_only_gates_with_that_function_are_taken():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(2, 2) for _ in range(3))
            self.act_fn, self.norm = nn.SiLU(), nn.Identity()

    assert type(in_blocks(Gate())) is Gate, 'it does something more'
    other = Qwen2MLP(Qwen2Config(hidden_size=4, intermediate_size=4, hidden_act='gelu'))
    assert type(in_blocks(other)) is Qwen2MLP
    quick = in_blocks(Qwen2MLP(Qwen2Config(hidden_size=4, intermediate_size=4)))
    kind = type(quick)
    assert kind is not Qwen2MLP and type(in_blocks(quick)) is kind


def test_less_is_kept_for_the_way_back(small):
    "Inside the layer two numbers a token and place, where it is written out it is four."
    kept = []
    for m in gated(width=2, inside=50, rank=1):
        n = {}

        def note(t, n=n):
            n[t.data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            m(torch.randn(100, 2, requires_grad=True))
        kept.append(sum(t.numel() == 5000 for t in n.values()))
    assert kept[1] == 2 < kept[0]


def test_the_decoder_of_the_lab_goes_through_in_blocks(small, taken, checkpoint):
    "A step of an embedder has the gradients of the layers as they are written, cached and recomputed as well."
    task = make_task(checkpoint)
    embedder, rows = task.embedder, task.rows
    layers = [m for m in embedder.model.modules() if type(m).__name__.startswith('Blocks')]
    assert layers and all(type(m).__mro__[1].__name__.endswith('MLP') for m in layers)

    def step(cached):
        works = plan_works(embedder, task.bank, rows.history, rows.targets)
        sizes = dict(sequences=len(rows), items=len(rows))
        exclude = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        given = works, sizes, torch.arange(len(rows)), exclude, task.parameters
        loss, parts = step_gradients(get_loss('sft'), *given, cached=cached, switch=embedder.switch)
        return [loss, *(g for part in parts.values() for g in part)]

    found = [step(cached) for cached in (False, True)]
    assert taken
    del taken[:]
    for m in layers:
        m.__class__ = type(m).__mro__[1]
    found.append(step(False))
    assert not taken and close(found[0], found[2]) and close(found[1], found[2])
