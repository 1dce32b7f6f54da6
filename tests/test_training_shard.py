"""Frozen weights in parts over two processes: what each holds.

The steps are those of one process with whole weights.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.passes import prefix_pairs
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.training.losses import get_loss
from vlm2rec_lab.training.shard import even_works, shard
from vlm2rec_lab.training.step import plan_works, step_gradients

FSDP = {
    'ACCELERATE_USE_FSDP': 'true',
    'FSDP_VERSION': '2',
    'FSDP_AUTO_WRAP_POLICY': 'TRANSFORMER_BASED_WRAP',
    'FSDP_TRANSFORMER_CLS_TO_WRAP': 'Qwen2_5_VLDecoderLayer',
}
TASKS = {  # name -> (all prefixes, prompts at a time)
    'whole histories': (False, None),
    'whole histories, 3 at a time': (False, 3),
    'all prefixes': (True, None),
    'all prefixes, 3 at a time': (True, 3),
}
WAYS = {'': 'true', ', recomputed': 'true', ', whole in between': 'false'}  # name -> FSDP_RESHARD_AFTER_FORWARD


def load(folder, catalogue, recompute):
    "A model whose adapters are not zero, its bank and its parameters."
    e = VLMEmbedder.from_pretrained(folder, lora=4, device='cpu', recompute=recompute)
    for k, (_, p) in enumerate(e.adapter_parameters()):
        torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(k))
    return e, e.bank(catalogue, progress=False), [p for _, p in e.adapter_parameters()]


def frozen(embedder):
    return [p for n, p in embedder.core.model.language_model.named_parameters() if 'lora_' not in n]


def step(task, embedder, bank, parameters, rows, accelerator, share):
    "Works of this process, passes that it ran, and the step."
    tree, most = TASKS[task]
    n, items = len(prefix_pairs(rows.history)[0]) if tree else len(rows), np.arange(13)
    works = plan_works(embedder, bank, rows.history, items, every=tree, most=most, share=share)
    even = even_works(embedder, bank, works, accelerator)
    ask = dict(sequences=n, items=13), torch.arange(n) % 13, torch.zeros(n, 13, dtype=torch.bool)
    how = dict(cached=most is not None, switch=embedder.switch, accelerator=accelerator)
    loss, parts = step_gradients(get_loss('vlm2rec'), even, *ask, parameters, **how)
    return sum(map(len, works.values())), sum(map(len, even.values())), loss, parts


def furthest(grads, parts):
    "Largest difference of a gradient, in units of its largest entry."
    pairs = [(a, b) for m in parts for a, b in zip(grads[m], parts[m])]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-8)).item() for a, b in pairs)


def encode(embedder, catalogue, history, n, accelerator):
    "Vectors of all items and of n sequences."
    items = embedder.encode_items(catalogue, batch=16, progress=False, accelerator=accelerator)
    many = np.tile(history[:1], (n, 1))
    sequences = embedder.encode_sequences(catalogue, many, batch=8, progress=False, accelerator=accelerator)
    return items | {f'{m} {n}': z for m, z in sequences.items()}


def one_of_two(folder, out):
    "What each of the two processes does; its findings go to a file."
    import os

    from accelerate import Accelerator

    torch.set_num_threads(1)
    accelerator, found = Accelerator(cpu=True), {}
    studio = make_studio('balanced', seed=0, items=40, users=60, length=8)
    split = studio.split(train=30, valid=15, test=15, history=6)
    rows = split.train.take(np.arange(0, 55, 5))
    for way, again in WAYS.items():
        os.environ['FSDP_RESHARD_AFTER_FORWARD'] = again
        one, two = (load(folder, split.catalogue, way == ', recomputed') for _ in range(2))
        core = two[0].core
        if way:  # an output layer with weights of its own, as in larger models
            core.lm_head.weight = torch.nn.Parameter(core.lm_head.weight.clone(), requires_grad=False)
        every = sum(p.numel() for p in frozen(two[0]))
        shard(two[0], accelerator)
        if not way:
            found['held'] = [sum(p.to_local().numel() for p in frozen(two[0])), every]
        assert hasattr(core.lm_head.weight, 'to_local')
        assert way or core.lm_head.weight is core.model.language_model.embed_tokens.weight
        for task in list(TASKS)[-1:] if way else TASKS:
            *_, loss, parts = step(task, *one, rows, None, (0, 1))
            mine, ran, value, grads = step(task, *two, rows, accelerator, (accelerator.process_index, 2))
            found[task + way] = [mine, ran, abs(loss - value).item(), furthest(grads, parts)]
        for n in (1, 17):  # one more pass for one process
            whole = encode(one[0], split.catalogue, rows.history, n, None)
            parted = encode(two[0], split.catalogue, rows.history, n, accelerator)
            apart = max((whole[m] - parted[m]).abs().max().item() for m in whole)
            found['items'] = max(found.get('items', 0), apart)
        found['parts again' + way] = all(hasattr(p, 'to_local') for p in frozen(two[0]))
    Path(f'{out}{accelerator.process_index}').write_text(json.dumps(found))


@pytest.fixture(scope='module')
def found(checkpoint, tmp_path_factory):
    "The findings of both processes."
    from ports import free_port
    from test_training_step import start

    out = tmp_path_factory.mktemp('shard') / 'out'
    port = free_port()
    both = [start(rank, port, __file__, checkpoint, out, env=FSDP) for rank in range(2)]
    said = [p.communicate(timeout=1000) for p in both]
    assert all(p.returncode == 0 for p in both), said[0][1][-3000:] + said[1][1][-3000:]
    return [json.loads(Path(f'{out}{rank}').read_text()) for rank in range(2)]


@pytest.mark.processes
def test_each_holds_half(found):
    first, second = found
    assert first['held'][0] + second['held'][0] == first['held'][1]
    assert max(f['held'][0] for f in found) < 0.52 * first['held'][1]


@pytest.mark.processes
@pytest.mark.parametrize(
    'task', [*TASKS, 'all prefixes, 3 at a time, recomputed', 'all prefixes, 3 at a time, whole in between']
)
def test_a_step_is_that_of_one_process(found, task):
    first, second = (f[task] for f in found)
    assert first[1] == second[1] >= max(first[0], second[0])  # as many passes in each
    for _, _, value, gradient in (first, second):
        assert value < 1e-5 and gradient < 5e-5


@pytest.mark.processes
def test_shares_are_uneven_somewhere(found):
    "Or the passes that go nowhere would not have been tried."
    assert any(found[0][task][0] != found[1][task][0] for task in TASKS)


@pytest.mark.processes
def test_vectors_are_those_of_one_process_and_weights_stay_in_parts(found):
    for f in found:
        assert f['items'] < 1e-5
        assert f['parts again'] and f['parts again, recomputed'] and not f['parts again, whole in between']


if __name__ == '__main__':
    one_of_two(*sys.argv[1:3])
