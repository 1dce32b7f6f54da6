"""A training step of the tiny VLM with every position as a pair, beside the least it could cost: the large matrix
products of its forward pass and of the way back to its inputs.

python benchmarks/step.py [--small] [--out benchmarks/results/step.json]

The step is that of `benchmarks/train.py` with all speed-ups: batch, forward, loss, backward, AdamW. The floor takes,
for each call of a large frozen matrix W in the forward pass, `x @ W.T` and `g @ W` on tensors of the same shapes, and
nothing else: no adapters, no attention, no norms, no loss. The step, the step with the decoder's layers compiled by
torch, and the floor run in turn on every batch of an epoch, on one thread; ratios are those of the sums of CPU seconds,
with the range of single batches. What is compiled is made anew, in a folder of its own; the wait for it is a figure
beside, in seconds that pass, since the C++ compiler is another program.

A second table takes single layers of several widths, there and back: an adapter as autograd walks it back, and the
lab's own way, apart and merged with the layer. A third takes the passes under autocast to bfloat16, which is for a
graphics card.
"""

import argparse
import os
import shutil
import tempfile
import time
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from common import in_range, interleave, machine, quantiles, quiet, ratio_of_sums, table, write
from train import ALL, fresh, gradients, shop

from vlm2rec_lab.model.compiled import compiled_layers
from vlm2rec_lab.model.family import language_model
from vlm2rec_lab.model.lean import _Adapted
from vlm2rec_lab.train import batch_rows, make_batch, training_rows


def large_products(model):  # -> (list that fills with (rows, outputs, inputs), hooks to remove)
    "Watch every call of a frozen linear layer, with an adapter or without."
    called, hooks = [], []
    for name, m in model.named_modules():
        adapted = isinstance(getattr(m, 'base_layer', None), torch.nn.Linear)
        if adapted or (type(m) is torch.nn.Linear and 'lora_' not in name and not name.endswith('base_layer')):
            shape = (m.base_layer if adapted else m).weight.shape

            def note(m, given, out, shape=shape):
                called.append((given[0].numel() // given[0].shape[-1], *shape))

            hooks.append(m.register_forward_hook(note))
    return called, hooks


WIDTHS = ((96, 96), (96, 256), (256, 96), (576, 576), (1024, 1024), (2048, 2048))  # inputs, outputs
TOKENS, RANK = (32, 512, 2048), 8


def written(x, w, a, b, scale):
    "A layer and its adapter in three calls; autograd finds the way back."
    return F.linear(x, w).addmm_(F.linear(x, a), b.t(), alpha=scale)


class Merged(torch.autograd.Function):
    "A layer that is merged with its adapter, there and back."

    @staticmethod
    def forward(ctx, x, w, a, b, scale):
        ctx.save_for_backward(x, w, a, b)
        ctx.scale = scale
        return F.linear(x, torch.addmm(w, b, a, alpha=scale))

    @staticmethod
    def backward(ctx, g):
        x, w, a, b = ctx.saved_tensors
        back = (b.t() @ g.t()) * ctx.scale
        return g @ torch.addmm(w, b, a, alpha=ctx.scale), None, back @ x, ((a @ x.t()) @ g).t() * ctx.scale, None


def error(way, leaves, back):  # -> float
    "The largest error of a gradient in parts of its largest number, against float64."
    true = [t.detach().double().requires_grad_() for t in leaves]
    exact = torch.autograd.grad(way(*true), true, back.double())
    return max(
        float((f - e).abs().max() / e.abs().max())
        for f, e in zip(torch.autograd.grad(way(*leaves), leaves, back), exact)
    )


def layers(widths=WIDTHS, tokens=TOKENS, rounds=5, work=2e9, seed=0):  # -> list of dict
    "One layer there and back, by autograd and by the lab: ratios of the sums over all rounds, taken in turn."
    g, out = torch.Generator().manual_seed(seed), []
    for inputs, outputs in widths:
        for n in tokens:
            x, w, a, b, back = (
                torch.randn(s, generator=g)
                for s in ((n, inputs), (outputs, inputs), (RANK, inputs), (outputs, RANK), (n, outputs))
            )
            leaves = [t.requires_grad_() for t in (x, a, b)]
            ways = dict(
                autograd=lambda x, a, b, w=w: written(x, w.to(x.dtype), a, b, 2.0),
                apart=lambda x, a, b, w=w: _Adapted.apply(x, w.to(x.dtype), None, a, b, 2.0),
                merged=lambda x, a, b, w=w: Merged.apply(x, w.to(x.dtype), a, b, 2.0),
            )
            times = max(1, min(200, int(work / (6 * n * inputs * outputs))))

            def repeat(_, way, times=times, leaves=leaves, back=back):
                for _ in range(times):
                    torch.autograd.grad(way(*leaves), leaves, back)

            spent = interleave({k: lambda r, way=way: repeat(r, way) for k, way in ways.items()}, rounds)
            cpu = {k: np.array(v)[:, 1] for k, v in spent.items()}
            out.append(
                dict(
                    inputs=inputs,
                    outputs=outputs,
                    tokens=n,
                    errors={k: error(way, leaves, back) for k, way in ways.items()},
                    autograd_over_apart=ratio_of_sums(cpu['autograd'], cpu['apart']),
                    apart_over_merged=ratio_of_sums(cpu['apart'], cpu['merged']),
                )
            )
    return out


def stepper(split, rows, seed=0, autocast=None):  # -> VLMEmbedder, function of a number -> pairs
    "A fresh embedder, and a training step of it."
    embedder, bank = fresh(seed, split, ALL)
    drawn, parameters = training_rows(split, 'all'), [p for _, p in embedder.adapter_parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)

    def step(k):
        this = make_batch(split, drawn[batch_rows(k, len(drawn), rows, seed)], 'all')
        _, parts = gradients(embedder, bank, this, ALL, autocast)
        for p, *g in zip(parameters, *parts.values()):
            p.grad = sum(g)
        optimiser.step()
        optimiser.zero_grad()
        return len(this.targets)

    return embedder, step


def shapes_of(embedder, step, batches):  # -> list, for each batch, of (rows, outputs, inputs); pairs of each batch
    "The large products of some steps."
    called, hooks = large_products(embedder.model)
    shapes, taken = [], []
    for k in range(batches):
        called.clear()
        taken.append(step(k))
        shapes.append(list(called))
    for h in hooks:
        h.remove()
    return shapes, taken


def floor_of(shapes, seed):  # -> function of a batch's number
    "The large products of a batch and nothing else."
    g = torch.Generator().manual_seed(seed)
    made = {
        (n, out, into): [torch.randn(s, generator=g) for s in ((n, into), (n, out), (out, into))]
        for n, out, into in {s for batch in shapes for s in batch}
    }

    def floor(k):
        for s in shapes[k]:
            x, back, w = made[s]
            torch.mm(x, w.t())
            torch.mm(back, w)

    return floor


def in_turn(ways, split, rows, batches, seed, autocast, backend):  # -> {way: CPU seconds of each batch}, wait
    "The ways of a batch one after the other, with that of compiled layers where a backend is said."
    if not backend:
        return interleave(ways, batches), None
    embedder, step = stepper(split, rows, seed, autocast)
    with compiled_layers(language_model(embedder.core), backend):
        start = time.perf_counter()
        step(0)
        waited = time.perf_counter() - start
        found = interleave(dict(step=ways['step'], compiled=step, floor=ways['floor']), batches)
    return found, round(waited, 1)


def run(
    split,
    rows,
    rounds=None,
    seed=0,
    backend=None,  # of `torch.compile`, for the step with compiled layers; None: without it
    autocast=None,
):  # -> dict
    "Step, compiled step and floor in turn over the batches of an epoch."
    embedder, step = stepper(split, rows, seed, autocast)
    batches = len(training_rows(split, 'all'))
    batches = min(rounds or batches, batches // rows)
    shapes, taken = shapes_of(embedder, step, batches + 1)  # one batch more, for the round of warm-up
    ways = dict(step=step, floor=floor_of(shapes, seed))
    found, waited = in_turn(ways, split, rows, batches, seed, autocast, backend)
    spent = {name: np.array(v)[:, 1] for name, v in found.items()}
    return dict(
        rows_per_step=rows,
        batches=batches,
        pairs_per_step=round(float(np.mean(taken[1:])), 1),
        products_per_step=round(2 * float(np.mean([len(s) for s in shapes[1:]])), 1),
        cpu_seconds={name: round(float(v.sum()), 3) for name, v in spent.items()},
        cpu_of_a_step={name: quantiles(v) for name, v in spent.items()},
        ratio=ratio_of_sums(spent['step'], spent['floor']),
        compiled=backend
        and dict(
            ratio=ratio_of_sums(spent['compiled'], spent['floor']),
            gain=ratio_of_sums(spent['step'], spent['compiled']),
            waited=waited,
        ),
    )


NAMES = dict(
    step='training step',
    compiled='the same, with compiled layers',
    floor='its large matrix products alone',
)


def shown(r):  # -> list of dict
    "Rows of the table."
    ratios = dict(step=r['ratio'], compiled=r['compiled'] and r['compiled']['ratio'])
    return [
        {
            'what': NAMES[name],
            'batches': r['batches'],
            'CPU seconds in all': f'{seconds:.2f}',
            'CPU seconds a step': in_range(r['cpu_of_a_step'][name], 3),
            'times the floor': '1' if name == 'floor' else in_range(ratios[name]),
        }
        for name, seconds in r['cpu_seconds'].items()
    ]


def wait_said(r):  # -> str
    "What compiling gains, and when it has paid."
    c, step = r['compiled'], r['cpu_seconds']
    saved = (step['step'] - step['compiled']) / r['batches']
    enough = f'made up for after {c["waited"] / saved:,.0f} steps' if saved > 0 else 'never made up for'
    return (
        f'Compiled, a step is {in_range(c["gain"])} times as fast. The first one waited {c["waited"]:.0f} s for the '
        f'compiler, with nothing kept from before: {enough} of this size.'
    )


def layers_shown(rows):  # -> list of dict
    "Rows of the table of single layers."
    return [
        {
            'layer': f'{r["inputs"]:,} to {r["outputs"]:,}',
            'tokens': f'{r["tokens"]:,}',
            'autograd takes, of the own way apart': in_range(r['autograd_over_apart']),
            'apart takes, of merged': in_range(r['apart_over_merged']),
            'error of a gradient, apart': f'{r["errors"]["apart"]:.1e}',
            'merged': f'{r["errors"]["merged"]:.1e}',
        }
        for r in rows
    ]


def others_shown(found):  # -> list of dict
    "Rows of the table of other ways."
    return [
        {'step': name, 'batches': r['batches'], 'times the floor in float32': in_range(r['ratio'])}
        for name, r in found.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--small', action='store_true', help='a toy setting that runs in seconds; its figures mean nothing'
    )
    parser.add_argument('--rounds', type=int, help='at most so many batches of the epoch; all of them, if not said')
    parser.add_argument('--others', type=int, default=12, help='batches of the step under autocast')
    parser.add_argument('--out', help='JSON file to write')
    o = parser.parse_args()
    quiet()
    start, split = machine(), shop(0, 10, 11, o.small)
    rows = 8 if o.small else 32
    backend = 'eager' if o.small else 'inductor' if shutil.which('c++') else None
    with tempfile.TemporaryDirectory() if backend == 'inductor' else nullcontext() as place:
        if place:
            os.environ['TORCHINDUCTOR_CACHE_DIR'] = place
        found = run(split, rows, o.rounds, backend=backend)
    found['layers'] = layers(*([((6, 5),), (3,), 1, 1] if o.small else []))
    found['others'] = {
        'under autocast to bfloat16': run(split, rows, 1 if o.small else o.others, autocast=torch.bfloat16),
    }
    result = dict(
        benchmark='step',
        small=o.small,
        machine=start | dict(load_at_end=machine()['load']),
        model='tiny VLM text-first, float32, LoRA rank 4',
        data=split.name,
        clock='CPU seconds of one thread',
        **found,
    )
    write(o.out, result)
    print(f'\nA training step with every position as a pair, over {found["batches"]} batches of an epoch\n')
    print(table(shown(found)))
    print('\n' + wait_said(found) if found['compiled'] else '\nno C++ compiler here: compiled layers are not measured')
    print('\nOne layer with an adapter, there and back: CPU seconds as ratios of sums, with the range of rounds\n')
    print(table(layers_shown(found['layers'])))
    print('\nThe same step in other ways\n')
    print(table(others_shown(found['others'])))
    print('\nmachine:', result['machine'])


if __name__ == '__main__':
    main()
