"""Layers compiled by torch: the same steps, as they were afterwards, and what cannot be compiled."""

import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_training_step import by_works, load, make_task, relative, summed

from vlm2rec_lab.model.compiled import check_compiler, compiled_layers, repeated_layers
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.family import language_model
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import train
from vlm2rec_lab.training.estimate import estimate
from vlm2rec_lab.training.losses import get_loss
from vlm2rec_lab.training.options import Speed

needs_compiler = pytest.mark.skipif(not shutil.which('c++'), reason='no C++ compiler here')


@pytest.fixture(scope='module')
def task(checkpoint):
    return make_task(checkpoint)


@pytest.fixture(scope='module')
def toy():
    return make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)


def kinds():
    "How many kinds of calls torch has compiled."
    return torch._dynamo.utils.counters['stats']['unique_graphs']


@pytest.mark.parametrize('how', [dict(recompute=True), dict(adapters=('text', 'image'))], ids=['recomputed', 'apart'])
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_steps_are_those_of_plain_layers(task, checkpoint, how):
    "Without gradients and with them, with a mask and without; what is made of the calls is tested below."
    e = load(checkpoint, **how)

    def step():
        return by_works(task, get_loss('vlm2rec'), True, 8, e, cached=True)

    loss, parts = step()
    with compiled_layers(language_model(e.core), 'eager'):
        other, found = step()
        before = kinds()
        step()
        assert kinds() == before > 0
    assert abs(loss - other) < 1e-5 and relative(summed(found), summed(parts)) < 5e-5


def trained(checkpoint, toy, **how):
    "Losses and adapters after a training."
    e = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu', seed=0)
    run = train(e, toy, 'vlm2rec', steps=5, batch=8, progress=False, positions='all', **how)
    return run.frame, torch.cat([p.detach().flatten() for _, p in e.adapter_parameters()]), e


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize('how', [{}, dict(chunk=6)], ids=['', 'chunks'])
def test_a_training_is_that_of_plain_layers(checkpoint, toy, how):
    frame, weights, _ = trained(checkpoint, toy, **how)
    quick, found, e = trained(checkpoint, toy, compile=True, **how)
    assert kinds() > 0
    for name in frame:
        assert np.allclose(frame[name].astype(float), quick[name].astype(float), atol=1e-4, equal_nan=True), name
    assert (frame.loss - quick.loss).abs().max() < 1e-5
    assert (weights - found).abs().max() < 1e-4
    assert all(layer._compiled_call_impl is None for layer in language_model(e.core).layers)
    before = kinds()
    trained(checkpoint, toy, compile=True, **how)
    assert kinds() == before  # a second training begins at once
    ask = dict(batch=8, positions='all', **how)
    assert estimate(e, toy, compile=True, **ask).graph == estimate(e, toy, **ask).graph  # memory is said as without


def test_another_size_of_batch_is_no_other_kind(task, checkpoint):
    e = load(checkpoint)
    bank, items = e.bank(task.cat, False), np.arange(30)
    with compiled_layers(language_model(e.core), 'eager'):
        e.item_vectors(bank, items[:7])
        before = kinds()
        for n in (5, 11, 30):
            e.item_vectors(bank, items[-n:])
        assert kinds() == before


def test_layers_are_as_they_were(task):
    "After an error, too; and what somebody had compiled before stays so."
    lm = language_model(task.embedder.core)
    with pytest.raises(ZeroDivisionError), compiled_layers(lm, 'eager'):
        assert all(layer._compiled_call_impl is not None for layer in lm.layers)
        raise ZeroDivisionError
    assert all(layer._compiled_call_impl is None for layer in lm.layers)
    lm.layers[0].compile(backend='eager')
    mine = lm.layers[0]._compiled_call_impl
    with compiled_layers(lm, 'eager'):
        assert lm.layers[0]._compiled_call_impl is not mine
    assert lm.layers[0]._compiled_call_impl is mine
    lm.layers[0]._compiled_call_impl = None


class Layer(torch.nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if float(y.sum()) > 0 else -y  # a number that only running tells


def deck(n=2):
    "A decoder whose layers hang on their figures."
    lm = torch.nn.Module()
    lm.blocks = torch.nn.ModuleList(Layer(3, 3) for _ in range(n))
    return lm


def test_what_cannot_be_compiled_whole_is_an_error():
    "torch would run it as it is written, without a word."
    lm = deck()
    with pytest.raises(ValueError, match='compile=True: torch cannot compile this here .*leave compile= out'):
        with compiled_layers(lm, 'eager'):
            lm.blocks[0](torch.ones(1, 3))
    assert lm.blocks[0](torch.ones(1, 3)).shape == (1, 3)


def hook(*_):
    "Does nothing; that it is there is enough."


@pytest.mark.parametrize('where', ['', 'self_attn.q_proj', 'mlp', 'self_attn.q_proj.base_layer', 'forward', 'global'])
def test_what_the_compiler_does_not_see_is_refused(task, where):
    lm = language_model(task.embedder.core)
    module = lm.layers[0].get_submodule('mlp' if where in ('forward', 'global') else where)
    if where == 'forward':
        module.forward = type(module).forward.__get__(module)
    else:
        put = (
            torch.nn.modules.module.register_module_forward_hook if where == 'global' else module.register_forward_hook
        )
        handle = put(hook)
    try:
        with pytest.raises(ValueError, match='layer 0.* has hooks or a forward of its own'):
            with compiled_layers(lm, 'eager'):
                pass
    finally:
        if where == 'forward':
            del module.forward
        else:
            handle.remove()
    with compiled_layers(lm, 'eager'):
        pass


def test_a_hook_that_comes_later_is_heard(task):
    lm, items = language_model(task.embedder.core), np.arange(5)
    with torch.no_grad(), compiled_layers(lm, 'eager'):
        before = task.embedder.item_vectors(task.bank, items)['text']
        handle = lm.layers[0].self_attn.q_proj.base_layer.register_forward_hook(lambda m, i, out: out * 1.5)
        try:
            after = task.embedder.item_vectors(task.bank, items)['text']
        finally:
            handle.remove()
        again = task.embedder.item_vectors(task.bank, items)['text']
    assert (after - before).abs().max() > 1e-4 and torch.equal(before, again)


class Double(torch.nn.Linear):
    def forward(self, x):
        return 2 * x


def test_too_many_kinds_are_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr('vlm2rec_lab.model.compiled.GRAPHS', 2)
    lm = torch.nn.Module()
    lm.layers = torch.nn.ModuleList([Double(4, 1)])
    with pytest.raises(ValueError, match='compile=True: .*leave compile= out'), compiled_layers(lm, 'eager'):
        for kind in (torch.float32, torch.float64, torch.float16, torch.int64):
            lm.layers[0](torch.ones(2, 4, dtype=kind))


def test_a_machine_without_a_compiler_says_so_at_once(task):
    torch._dynamo.reset()  # the line may have been compiled before
    with torch._inductor.config.patch({'cpp.cxx': ('no-such-compiler',), 'force_disable_caches': True}):
        with pytest.raises(ValueError, match=r'needs a C\+\+ compiler such as g\+\+'):
            check_compiler(torch.device('cpu'))
        with pytest.raises(ValueError, match='torch cannot compile this here'):
            with compiled_layers(language_model(task.embedder.core)):
                raise AssertionError('nobody said so')


def test_layers_are_found():
    lm = deck(3)
    assert repeated_layers(lm) == list(lm.blocks)
    lm.layers = torch.nn.ModuleList([torch.nn.Linear(1, 1)])
    assert repeated_layers(lm) == list(lm.layers)
    for empty in (torch.nn.Linear(1, 1), torch.nn.ModuleList()):
        with pytest.raises(ValueError, match='no list of layers'):
            repeated_layers(empty)


class Heads:
    "An embedder without a decoder, as a pair of encoders is one."

    encode_items, encode_sequences, sharded = None, None, False


def test_what_a_training_refuses(checkpoint, toy):
    def refused(embedder, match, **how):
        with pytest.raises(ValueError, match=match):
            train(embedder, toy, steps=1, batch=4, progress=False, compile=True, **how)

    refused(VLMEmbedder.from_pretrained(checkpoint, lora=4), 'plain=True is the path without .*compile=', plain=True)
    apart = dict(lora=4, recompute=True, adapters=('text', 'image'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        both = VLMEmbedder.from_pretrained(checkpoint, **apart)
    refused(both, 'computed again with adapters of each modality')
    refused(Heads(), 'a Heads has none')
    split = VLMEmbedder.from_pretrained(checkpoint, lora=4)
    split.sharded = True
    refused(split, r'in parts \(FSDP\)')
    with pytest.raises(ValueError, match='in parts'):
        estimate(split, toy, batch=4, compile=True)


def test_it_is_no_part_of_what_a_run_is_known_by():
    from vlm2rec_lab.train import _settings

    def said(**how):
        ask = SimpleNamespace(name='toy', fingerprint='0' * 64), 'sft', 5, 8, 0.07, 'sum', 0, 'last'
        from vlm2rec_lab.training.options import Schedule

        return _settings(*ask, Schedule(), Speed(**how), None, {})

    assert said(compile=True) == said() != said(autocast='bfloat16')
