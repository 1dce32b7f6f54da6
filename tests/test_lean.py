"Lean layers give the figures of peft and of transformers, there and back, whatever the shapes."

import copy
import pickle
from itertools import product

import torch
from accelerate import cpu_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from vlm2rec_lab.model import lean as room
from vlm2rec_lab.model.family import on
from vlm2rec_lab.model.lean import fused_norms, lean_adapters


def layers(inputs=6, outputs=5, rank=2, bias=True, seed=0, kind=torch.float32):
    "The same linear layer with an adapter, by peft and lean."
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=['0'])
    plain = get_peft_model(nn.Sequential(nn.Linear(inputs, outputs, bias=bias)), config)
    for p in plain.parameters():
        nn.init.normal_(p)
    plain.to(kind)
    return plain, lean_adapters(copy.deepcopy(plain))


def adapters(model):
    return [p for n, p in model.named_parameters() if 'lora_' in n]


def close(a, b, tolerance=1e-5):
    "Equal to so many parts of the largest number."
    pairs = [(x.detach(), y.detach()) for x, y in zip(a, b, strict=True)]
    return all(float((x - y).abs().max()) <= tolerance * (1 + float(x.abs().max())) for x, y in pairs)


def outcome(model, x, g):
    "Output of a model, and the gradients of its adapters and of its input."
    z = x.clone().requires_grad_()
    y = model(z)
    return y, *torch.autograd.grad(y, [z, *adapters(model)], g)


sizes = st.integers(1, 9)


@given(st.lists(sizes, min_size=1, max_size=3), sizes, sizes, sizes, st.booleans())
@settings(max_examples=60, deadline=None)
def test_layers_of_any_shape_are_those_of_peft(shape, inputs, outputs, rank, bias):
    plain, quick = layers(inputs, outputs, rank, bias)
    x, g = torch.randn(*shape, inputs), torch.randn(*shape, outputs)
    assert close(outcome(plain, x, g), outcome(quick, x, g))


def ways(monkeypatch):
    "A list that fills with whether the way back of the lab was taken."
    taken, real = [], room._Adapted.apply
    monkeypatch.setattr(room._Adapted, 'apply', lambda *a: taken.append(1) or real(*a))
    return taken


def test_the_way_back_is_ours_in_training_alone(monkeypatch):
    plain, quick = layers()
    x, taken = torch.randn(3, 6), ways(monkeypatch)
    with torch.no_grad():
        assert torch.equal(plain(x), quick(x)) and not taken
    quick(x)
    assert taken == [1]
    for p in adapters(quick):
        p.requires_grad_(False)
    quick(x)
    assert taken == [1]


def test_a_base_that_is_trained_gets_its_gradient(monkeypatch):
    plain, quick = layers()
    x, taken = torch.randn(3, 6), ways(monkeypatch)
    for m in (plain, quick):
        m.requires_grad_(True)
        m(x).square().sum().backward()
    assert not taken and close([p.grad for p in plain.parameters()], [p.grad for p in quick.parameters()])


def test_weights_that_are_moved_in_when_asked_for_are_asked_for(monkeypatch):
    "A hook on the layer below runs, as it does for peft."
    _, quick = layers()
    base, seen, taken = quick.base_model.model[0].base_layer, [], ways(monkeypatch)
    base.register_forward_pre_hook(lambda m, x: seen.append(1))
    quick(torch.randn(3, 6))
    assert seen == [1] and not taken
    _, quick = layers()
    base = quick.base_model.model[0].base_layer
    base.forward = lambda x, old=base.forward: seen.append(2) or old(x)
    quick(torch.randn(3, 6))
    assert seen == [1, 2] and not taken


def test_whoever_watches_an_adapter_is_called():
    "Hooks on its two products and its dropout, those of all modules, a product that was exchanged, pruned weights."
    x, counts = torch.randn(3, 6), []
    for part in ('lora_A', 'lora_B', 'lora_dropout'):
        for kind in ('register_forward_hook', 'register_forward_pre_hook', 'register_full_backward_hook'):
            for m in layers():
                seen = []
                inner = getattr(m.base_model.model[0], part)['default']
                getattr(inner, kind)(lambda *a, seen=seen: seen.append(1))
                m(x.clone().requires_grad_()).sum().backward()
                counts.append(len(seen))
    assert counts == [1] * 18
    plain, quick = layers()
    for m in (plain, quick):
        m.base_model.model[0].lora_A['default'].register_forward_hook(lambda m, given, out: out + 1)
    assert torch.equal(plain(x), quick(x))
    plain, quick = layers()
    for m in (plain, quick):
        prune.l1_unstructured(m.base_model.model[0].lora_A['default'], 'weight', 0.5)
        for _ in range(2):
            m(x).sum().backward()
    assert close([p.grad for p in adapters(plain)], [p.grad for p in adapters(quick)])


def test_who_watches_all_modules_has_their_results():
    _, quick = layers()
    x, kept = torch.randn(3, 6), []
    with torch.no_grad():
        handle = nn.modules.module.register_module_forward_hook(lambda m, given, out: kept.append(out))
        quick(x)
        handle.remove()
        assert any(torch.equal(k, quick.base_model.model[0].base_layer(x)) for k in kept)


def test_weights_that_lie_elsewhere_are_moved_in():
    "As Accelerate moves them: all weights are on `meta` between the calls."
    plain, quick = layers()
    x = torch.randn(3, 6)
    true = plain(x).detach()
    with torch.no_grad():
        assert torch.equal(cpu_offload(quick, torch.device('cpu'))(x), true)


def test_lean_layers_are_pickled_and_made_into_other_classes():
    "By pickle, with another way back than before, and with a parametrized weight."
    _, quick = layers()
    x = torch.randn(3, 6)
    again = pickle.loads(pickle.dumps(quick))
    assert type(again.base_model.model[0]) is type(quick.base_model.model[0]) and torch.equal(again(x), quick(x))
    assert lean_adapters(again, back=False).base_model.model[0].own_way_back is False
    norm = fused_norms(nn.Sequential(Qwen2RMSNorm(6)))
    copied = pickle.loads(pickle.dumps(norm))
    assert torch.equal(copied(x), norm(x)) and type(copied[0]) is type(norm[0])
    parametrize.register_parametrization(norm[0], 'weight', nn.Identity())
    assert torch.equal(norm(x), copied(x))


def test_autocast_on_the_way_back_alone():
    norm, found = fused_norms(nn.Sequential(Qwen2RMSNorm(40)).requires_grad_(False)), []
    for inside in (False, True):
        x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = norm(x)
        with torch.autocast('cpu', torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad(y.square().sum(), x))
    assert close(*found, 1e-6)
    plain, quick = layers(kind=torch.float64)
    with torch.autocast('cpu', torch.bfloat16):
        x = torch.randn(3, 6, dtype=torch.float64)
        assert quick(x).dtype == torch.float64 and close([plain(x)], [quick(x)])


def gradient_and_its_gradient(model, x, back):
    "The gradients of a pass outside autocast, taken inside, and those of the first one, all of `adapters` and `x`."
    x = x.clone().requires_grad_()
    y, wanted = model(x).square().sum(), [x, *adapters(model)]
    with torch.autocast('cpu', torch.bfloat16, enabled=back):
        once = torch.autograd.grad(y, wanted, create_graph=True)
        return *once, *torch.autograd.grad(once[0].square().sum(), wanted)


def test_a_layer_goes_back_inside_autocast_as_outside(monkeypatch):
    plain, quick = layers()
    x, taken = torch.randn(3, 6), ways(monkeypatch)
    inside, outside, by_peft = (
        gradient_and_its_gradient(*how) for how in ((quick, x, True), (quick, x, False), (plain, x, True))
    )
    assert taken == [1, 1]
    n = len(inside) // 2
    assert all(torch.equal(a, b) for a, b in zip(inside[:n], outside[:n], strict=True))
    assert close(by_peft[:n], inside[:n], 0.05) and close(outside[n:], inside[n:], 0.05)
    half_plain, half = layers(kind=torch.bfloat16)
    found = []
    for m in (half_plain, half):
        y = m(x.bfloat16()).float().square().sum()
        with torch.autocast('cpu', torch.float16):
            found.append([g.float() for g in torch.autograd.grad(y, adapters(m))])
    assert close(*found, 0.05)


def test_who_watches_the_layer_below_sees_its_input_as_it_came():
    "Its shape and its type, in training and without, also under autocast; and what it gives for the result counts."
    for shape, autocast, learning in product([(3, 5, 6), (6,), (0, 6)], (False, True), (False, True)):
        x = torch.randn(shape)
        seen, found = [], []
        for m in layers():

            def look(layer, given, out, seen=seen):
                seen.append((given[0].shape, given[0].dtype, out.shape, out.dtype))
                return out + 1

            m.base_model.model[0].base_layer.register_forward_hook(look)
            with torch.set_grad_enabled(learning), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
                found.append([m(x).float()])
        assert seen[0] == seen[1] and seen[0][0] == shape
        assert not x.numel() or close(*found, 0.03 if autocast else 1e-5)


def test_the_way_back_of_tensors_without_numbers():
    "Shapes alone, as tools count them: no autocast is known there."
    quick = layers()[1].to('meta')
    norm = fused_norms(nn.Sequential(Qwen2RMSNorm(6)).requires_grad_(False)).to('meta')
    x = torch.randn(3, 6, device='meta', requires_grad=True)
    for m in (quick, norm):
        assert torch.autograd.grad(m(x).sum(), x)[0].shape == (3, 6)


def test_autocast_computes_in_its_own_type(monkeypatch):
    plain, quick = layers()
    x, taken = torch.randn(3, 6), ways(monkeypatch)
    with torch.autocast('cpu', torch.bfloat16):
        a, b = plain(x), quick(x)
    assert b.dtype == torch.bfloat16 and not taken and torch.allclose(a.float(), b.float(), rtol=0.02, atol=0.1)


def test_sixteen_bits_come_near_to_peft(monkeypatch):
    plain, quick = layers(8, 8, kind=torch.bfloat16)
    x, g, taken = torch.randn(40, 8).bfloat16(), torch.randn(40, 8).bfloat16(), ways(monkeypatch)
    assert close(outcome(plain, x, g), outcome(quick, x, g), 0.03) and taken == [1]


def test_the_gradient_can_be_taken_again():
    "A gradient of a gradient, as penalties on gradients want it."
    plain, quick = layers()
    x, found = torch.randn(4, 6, requires_grad=True), []
    for m in (plain, quick):
        into = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)[0]
        found.append(torch.autograd.grad(into.square().sum(), [x, *adapters(m)]))
    assert close(*found, 1e-4)


def test_activations_that_are_computed_again_give_the_same():
    from torch.utils.checkpoint import checkpoint

    _, quick = layers()
    x, g, found = torch.randn(4, 6), torch.randn(4, 5), []
    for run in (quick, lambda z: checkpoint(quick, z, use_reentrant=False)):
        z = x.clone().requires_grad_()
        found.append(torch.autograd.grad(run(z), [z, *adapters(quick)], g))
    assert close(*found, 1e-7)


def norms(width=6, eps=1e-6):
    "The same norm as it is written and lean, with weights of its own."
    written = Qwen2RMSNorm(width, eps).requires_grad_(False)
    nn.init.normal_(written.weight)
    return written, fused_norms(nn.Sequential(copy.deepcopy(written)))[0]


@given(st.lists(sizes, min_size=1, max_size=3), sizes, st.sampled_from((1e-6, 1e-2)), st.sampled_from((0, 1e-4, 1, 30)))
@settings(max_examples=60, deadline=None)
def test_norms_of_any_shape_are_as_they_are_written(shape, width, eps, scale):
    written, quick = norms(width, eps)
    x, g, found = torch.randn(*shape, width) * scale, torch.randn(*shape, width), []
    for m in (written, quick):
        z = x.clone().requires_grad_()
        y = m(z)
        found.append((y, *torch.autograd.grad(y, z, g)))
    assert torch.equal(found[0][0], found[1][0]) and close(*found)


def test_the_gradient_of_a_norm_can_be_taken_again():
    x, found = torch.randn(3, 4, 6, requires_grad=True), []
    for m in norms():
        (into,) = torch.autograd.grad(m(x).pow(3).sum(), x, create_graph=True)
        found.append([into, *torch.autograd.grad(into.square().sum(), x)])
    assert close(*found, 1e-4)


def test_norms_that_are_trained_or_in_other_types_stay_as_they_are_written():
    for change in (lambda m: m.requires_grad_(True), lambda m: m.bfloat16()):
        _, quick = norms()
        x = torch.randn(3, 6, dtype=change(quick).weight.dtype, requires_grad=True)
        y = quick(x)
        assert '_Norm' not in type(y.grad_fn).__name__
        y.sum().backward()
        assert x.grad is not None and (quick.weight.grad is not None) == quick.weight.requires_grad
    assert norms()[1](torch.randn(3, 6)).grad_fn is None


def test_a_mask_as_numbers_is_the_mask():
    "Attention gives the same bits with it; masks by kind of layer stay apart; none stays none."
    torch.manual_seed(0)
    mask = (torch.rand(3, 1, 7, 7) < 0.5).tril() | torch.eye(7, dtype=torch.bool)
    q, k, v = torch.randn(3, 3, 2, 7, 4).unbind()
    numbers = on(dict(a=mask), torch.device('cpu'), True)['a']
    assert numbers.dtype == torch.float32 and torch.equal(numbers == 0, mask)
    a, b = (torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=m) for m in (mask, numbers))
    assert torch.equal(a, b)
    assert on(mask, torch.device('cpu')).dtype == torch.bool and on(None, torch.device('cpu'), True) is None
