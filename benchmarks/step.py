"""A training step of the tiny VLM with every position as a pair, beside the least it could cost: the large matrix
products of its forward pass and of the way back to its inputs.

python benchmarks/step.py [--small] [--out benchmarks/results/step.json]

The step is that of `benchmarks/train.py` with all speed-ups: batch, forward, loss, backward, AdamW. The floor takes,
for each call of a large frozen matrix W in the forward pass, `x @ W.T` and `g @ W` on tensors of the same shapes, and
nothing else: no adapters, no attention, no norms, no loss. Step and floor run in turn on every batch of an epoch, on
one thread; the ratio is that of the sums of CPU seconds, with the range of single batches.
"""

import argparse

import numpy as np
import torch
from common import in_range, interleave, machine, quantiles, quiet, ratio_of_sums, table, write
from train import ALL, fresh, gradients, shop

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


def run(split, rows, rounds=None, seed=0):  # -> dict
    "Step and floor in turn over the batches of an epoch."
    embedder, bank = fresh(seed, split, ALL)
    drawn, parameters = training_rows(split, 'all'), [p for _, p in embedder.adapter_parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    batches = min(rounds or len(drawn), len(drawn) // rows)
    pairs = []

    def step(k):
        this = make_batch(split, drawn[batch_rows(k, len(drawn), rows, seed)], 'all')
        _, parts = gradients(embedder, bank, this, ALL)
        for p, *g in zip(parameters, *parts.values()):
            p.grad = sum(g)
        optimiser.step()
        optimiser.zero_grad()
        pairs.append(len(this.targets))

    called, hooks = large_products(embedder.model)
    shapes = []
    for k in range(batches + 1):  # one batch more, for the round of warm-up
        called.clear()
        step(k)
        shapes.append(list(called))
    for h in hooks:
        h.remove()
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

    del pairs[:]
    spent = {name: np.array(v)[:, 1] for name, v in interleave(dict(step=step, floor=floor), batches).items()}
    return dict(
        rows_per_step=rows,
        batches=batches,
        pairs_per_step=round(float(np.mean(pairs[1:])), 1),
        products_per_step=round(2 * float(np.mean([len(s) for s in shapes[1:]])), 1),
        cpu_seconds={name: round(float(v.sum()), 3) for name, v in spent.items()},
        cpu_of_a_step={name: quantiles(v) for name, v in spent.items()},
        ratio=ratio_of_sums(spent['step'], spent['floor']),
    )


def shown(r):  # -> list of dict
    "Rows of the table."
    names = dict(step='training step', floor='its large matrix products alone')
    return [
        {
            'what': names[name],
            'batches': r['batches'],
            'CPU seconds in all': f'{r["cpu_seconds"][name]:.2f}',
            'CPU seconds a step': in_range(r['cpu_of_a_step'][name], 3),
            'times the floor': in_range(r['ratio']) if name == 'step' else '1',
        }
        for name in names
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--small', action='store_true', help='a toy setting that runs in seconds; its figures mean nothing'
    )
    parser.add_argument('--rounds', type=int, help='at most so many batches of the epoch; all of them, if not said')
    parser.add_argument('--out', help='JSON file to write')
    o = parser.parse_args()
    quiet()
    start, split = machine(), shop(0, 10, 11, o.small)
    found = run(split, 8 if o.small else 32, o.rounds)
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
    print('\nmachine:', result['machine'])


if __name__ == '__main__':
    main()
