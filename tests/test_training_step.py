"""The step against an ordinary backward pass.

All losses, histories and prefixes, cached or not, on one process or two.
"""

import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import warm
from ports import free_port

from vlm2rec_lab.base.ragged import PAD
from vlm2rec_lab.model.compiled import compiled_layers
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.family import language_model
from vlm2rec_lab.model.passes import prefix_pairs, prefix_present
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.training.losses import LOSSES, get_loss
from vlm2rec_lab.training.step import plan_works, step_gradients

ROOT = Path(__file__).resolve().parent.parent

CASES = [(None, False), (3, False), (None, True), (3, True)]


def load(folder, **kw):
    "A random model whose adapters are not zero."
    embedder = VLMEmbedder.from_pretrained(folder, lora=4, device='cpu', **kw)
    for k, (_, p) in enumerate(embedder.adapter_parameters()):
        torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(k))
    return embedder


def make_task(checkpoint):
    "A model, and a batch of twelve sequences."
    studio = make_studio('balanced', seed=0, items=40, users=60, length=8)
    split = studio.split(train=30, valid=15, test=15, history=6)
    embedder = load(checkpoint)
    rows = split.train.take(np.arange(0, 60, 5))
    parameters = [p for _, p in embedder.adapter_parameters()]
    bank = embedder.bank(studio.catalogue, False)
    return SimpleNamespace(cat=studio.catalogue, embedder=embedder, bank=bank, rows=rows, parameters=parameters)


@pytest.fixture(scope='module')
def task(checkpoint):
    return make_task(checkpoint)


def every_prefix(rows):
    "Each prefix of the histories as a history of its own, and its next item."
    of, length = prefix_pairs(rows.history)
    whole = np.concatenate([rows.history, np.full((len(rows), 1), PAD)], 1)
    whole[np.arange(len(rows)), (rows.history != PAD).sum(1)] = rows.targets
    single = np.full((len(of), rows.history.shape[1]), PAD)
    for p in range(len(of)):
        single[p, : length[p]] = rows.history[of[p], : length[p]]
    return single, whole[of, length]


def batch_of(task, every=False):
    "(histories, items, positives, exclude) of the twelve sequences or of all their prefixes."
    history, target = every_prefix(task.rows) if every else (task.rows.history, task.rows.targets)
    items, positives = np.unique(target, return_inverse=True)
    return history, items, torch.from_numpy(positives), torch.zeros(len(target), len(items), dtype=torch.bool)


def by_works(task, objective, every=False, most=None, embedder=None, parameters=None, **kw):
    "Loss and gradients by modality of the batch, in passes."
    embedder = embedder or task.embedder
    _, items, positives, exclude = batch_of(task, every)
    works = plan_works(embedder, embedder.bank(task.cat, False), task.rows.history, items, every=every, most=most)
    sizes = {'sequences': len(positives), 'items': len(items)}
    parameters = parameters or [p for _, p in embedder.adapter_parameters()]
    return step_gradients(objective, works, sizes, positives, exclude, parameters, switch=embedder.switch, **kw)


def relative(got, want):
    "Largest difference of any parameter's gradient, in units of its largest entry."
    return max(((x - y).abs().max() / max(y.abs().max().item(), 1e-8)).item() for x, y in zip(got, want))


def summed(parts):
    return [sum(g) for g in zip(*parts.values())]


@pytest.mark.parametrize('every', [False, True], ids=['whole histories', 'prefixes'])
@pytest.mark.parametrize('name', LOSSES)
def test_equals_an_ordinary_backward_pass(task, name, every):
    draws = {'generator': 3} if 'generator' in get_loss(name).func.__code__.co_varnames else {}

    def objective():
        drawn = {k: torch.Generator().manual_seed(seed) for k, seed in draws.items()}
        return partial(get_loss(name, tau=0.1), **drawn)

    history, items, positives, exclude = batch_of(task, every)
    e = task.embedder
    whole = objective()(e.sequence_vectors(task.bank, history), e.item_vectors(task.bank, items), positives, exclude)
    want = torch.autograd.grad(whole, task.parameters, allow_unused=True)
    for most, cached in CASES:
        loss, parts = by_works(task, objective(), every, most, cached=cached)
        got = summed(parts)
        assert abs(loss.item() - whole.item()) < 1e-5, (most, cached)
        assert max((x - y).abs().max().item() for x, y in zip(got, want)) < 1e-5, (most, cached)
        assert relative(got, want) < 5e-5, (most, cached)


@pytest.mark.parametrize('processes', [1, 2, 5])
@pytest.mark.parametrize('every', [False, True], ids=['whole histories', 'prefixes'])
def test_every_vector_comes_once(task, every, processes):
    _, items, positives, _ = batch_of(task, every)
    plans = [
        plan_works(task.embedder, task.bank, task.rows.history, items, every=every, most=4, share=(k, processes))
        for k in range(processes)
    ]
    for view in task.bank.views:
        for side, n in (('sequences', len(positives)), ('items', len(items))):
            places = [i for plan in plans for w in plan[view] if w.side == side for i in w.index.tolist()]
            assert sorted(places) == list(range(n))


def test_more_processes_than_prompts(task):
    _, items, *_ = batch_of(task)
    plan = plan_works(task.embedder, task.bank, task.rows.history[:1], items[:1], share=(3, 4))
    assert {view: len(works) for view, works in plan.items()} == {'text': 0, 'image': 0}


@pytest.mark.parametrize('every', [False, True], ids=['whole histories', 'prefixes'])
def test_what_is_missing_is_zero(task, every):
    "Every third item has no picture: its vector is zero, and so is that of a history of such items."
    images = [None if i % 3 == 0 else x for i, x in enumerate(task.cat.content['image'])]
    holes = Catalogue(task.cat.ids, {**task.cat.content, 'image': images}, task.cat.kinds, task.cat.table)
    bank, history = task.embedder.bank(holes, False), task.rows.history[:6]
    _, items, *_ = batch_of(task)
    there = {
        'sequences': prefix_present(bank, 'image', history) if every else bank.present('image', history).any(1),
        'items': bank.present('image', items),
    }
    assert there['items'].any() and not there['items'].all()
    for w in plan_works(task.embedder, bank, history, items, every=every)['image']:
        assert (w.run().detach().abs().sum(1) > 0).tolist() == there[w.side][w.index].tolist()


def with_dropout(embedder):
    "Its adapters drop half of what they read."
    embedder.model.train()
    for module in embedder.model.modules():
        adapter = type(module).__name__ == 'ModuleDict' and 'default' in module
        if adapter and isinstance(module['default'], torch.nn.Identity):
            module['default'] = torch.nn.Dropout(0.5)
    return embedder


def test_dropout_draws_the_same_twice(task, checkpoint):
    noisy = with_dropout(load(checkpoint))

    def one(cached):
        torch.manual_seed(5)
        return summed(by_works(task, get_loss('sft'), most=4, embedder=noisy, cached=cached)[1])

    kept, left = one(False), torch.get_rng_state()
    assert relative(one(True), kept) < 5e-5
    assert torch.equal(left, torch.get_rng_state())  # and what is drawn after the step is the same
    noisy.model.eval()
    quiet = one(False)
    noisy.model.train()
    assert relative(one(False), quiet) > 1e-3


def test_float16_keeps_small_gradients(task):
    "Those of a loss of a millionth, which float16 holds nothing of, are as near as those of a loss of one."

    def apart(scale):
        def objective(*given):
            return get_loss('sft')(*given) * scale

        fine, coarse = (summed(by_works(task, objective, autocast=kind)[1]) for kind in (None, torch.float16))
        return relative(coarse, fine)

    assert apart(1e-6) < 2 * apart(1.0) < 0.05


def test_bfloat16_is_coarser_in_the_passes_only(task):
    loss16, parts16 = by_works(task, get_loss('sft'), autocast=torch.bfloat16)
    loss32, parts32 = by_works(task, get_loss('sft'))
    flat16, flat32 = (torch.cat([g.flatten() for g in summed(parts)]) for parts in (parts16, parts32))
    cosine = torch.cosine_similarity(flat16, flat32, 0).item()
    assert abs(loss16 - loss32) < 0.05 and loss16 != loss32 and loss16.dtype == torch.float32
    assert 0.98 < cosine < 1 - 1e-7


def test_adapters_apart_under_gradient_checkpointing(task, checkpoint):
    "A graph that is walked back later must find the adapters switched as they were."
    two = load(checkpoint, adapters=('text', 'image'))
    plain = by_works(task, get_loss('sft'), embedder=two)[1]
    two.core.gradient_checkpointing_enable({'use_reentrant': False})
    two.model.train()
    again = by_works(task, get_loss('sft'), embedder=two)[1]
    for m in plain:
        assert relative(again[m], plain[m]) < 5e-5 and any((g != 0).any() for g in plain[m])


TWO = """
import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from accelerate import Accelerator

sys.path.insert(0, sys.argv[3])
import test_training_step as t

torch.set_num_threads(1)
accelerator, task = Accelerator(cpu=True), t.make_task(sys.argv[2])
_, items, positives, exclude = t.batch_of(task)
share = (accelerator.process_index, accelerator.num_processes)
works = t.plan_works(task.embedder, task.bank, task.rows.history, items, most=4, share=share)
sizes = {'sequences': len(positives), 'items': len(items)}
found = []
for cached, quick in ((False, nullcontext()), (True, nullcontext()), (True, t.compiled(task))):
    how = dict(cached=cached, accelerator=accelerator)
    with quick:
        loss, parts = t.step_gradients(t.long, works, sizes, positives, exclude, task.parameters, **how)
    found.append([loss.item(), {m: [float(g.double().norm()) for g in gs] for m, gs in parts.items()}])
with open(sys.argv[1] + str(accelerator.process_index), 'w') as f:
    json.dump(found, f)
"""


def compiled(task):
    "The layers as torch's compiler follows them."
    return compiled_layers(language_model(task.embedder.core), 'eager')


def long(sequences, items, *rest):
    "Cosines alone would not notice vectors that are too long or too short."
    return get_loss('vlm2rec')(sequences, items, *rest) + 0.01 * (sequences['text'] @ items['text'].T).square().mean()


def start(rank, port, *arguments, env=()):
    "One of two processes that talk over loopback."
    env = {
        **os.environ,
        **dict(env),
        'OMP_NUM_THREADS': '1',
        'RANK': str(rank),
        'LOCAL_RANK': str(rank),
        'WORLD_SIZE': '2',
        'LOCAL_WORLD_SIZE': '2',
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': port,
        'ACCELERATE_USE_CPU': 'true',
        'GLOO_SOCKET_IFNAME': 'lo',
        'PYTHONPATH': os.pathsep.join(map(str, (ROOT, ROOT / 'tools'))),
    }
    return warm.Started(arguments, env=env)


@pytest.mark.processes
def test_two_processes_are_one(task, checkpoint, tmp_path):
    script, out = tmp_path / 'two.py', tmp_path / 'out'
    script.write_text(TWO)
    port = free_port()
    both = [start(rank, port, script, out, checkpoint, Path(__file__).parent) for rank in range(2)]
    said = [p.communicate(timeout=1000) for p in both]
    assert all(p.returncode == 0 for p in both), said[0][1][-3000:]
    found = [json.loads(Path(f'{out}{rank}').read_text()) for rank in range(2)]
    assert found[0] == found[1]  # to the last digit, or the processes would drift apart
    loss, parts = by_works(task, long)
    for value, norms in found[0]:
        assert abs(value - loss.item()) < 1e-5
        for m in parts:
            assert np.allclose(norms[m], [float(g.double().norm()) for g in parts[m]], rtol=1e-4, atol=1e-6)
