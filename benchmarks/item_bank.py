"""A bank of item vectors in place of item passes: what it saves and what it costs, in quality per second.

python benchmarks/item_bank.py [--small] [--out benchmarks/results/item_bank.json]

A step with every position as a pair spends much of its time on the batch's items. A bank holds the vectors of all
items as they were at its last refresh; the loss takes them from there, and no gradient flows through an item. Tried
are refreshes every so many steps, the batch's items or all warm ones as candidates, and steps with item passes in
between. Data, checkpoint, goal and clocks are those of `benchmarks/train.py`, whose recipe (c) is run beside them.
Learning rates are chosen on its development shop; refreshes count as time of training.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from common import cell, in_range, interval_of_mean, interval_of_sums, machine, quiet, say, table, write
from train import ALL, CHECKPOINT, CONDITION, RANK, TAU, for_both, fresh, reached, scores, shop

from vlm2rec_lab.losses import get_loss
from vlm2rec_lab.shop.rows import warm_items
from vlm2rec_lab.train import batch_rows, drawn_items, encode_batch, make_batch, modality_gradients, training_rows
from vlm2rec_lab.training.step import plan_works

SEEDS, DEVELOPMENT, RATES = (101, 102, 103, 104, 105), 100, (2e-3, 4e-3)
ROWS, SHARE = 8, 0.95  # rows a step; the goal, of the last validation of item passes on the development shop


@dataclass(frozen=True)
class Way:
    "How a step comes by its item vectors."

    every: int = None  # steps between refreshes of the bank; None: no bank
    among: str = 'batch'  # candidates: the batch's items, or 'all' that are warm
    passes: int = None  # a step in so many reads its items itself, with gradient; None: none does


WAYS = {
    'item passes, as (c)': Way(),
    'bank, refreshed every step': Way(1),
    'bank, every 4 steps': Way(4),
    'bank, every 16 steps': Way(16),
    'bank, every 4 steps, all items as candidates': Way(4, 'all'),
    'bank, every 4 steps, and item passes in every 4th': Way(4, 'batch', 4),
}


def refreshed(embedder, split):  # -> {view: float32 [items, hidden]}
    "Vectors of all items as the weights stand."
    return embedder.encode_items(split.catalogue, progress=False)


def step(embedder, bank, split, drawn, warm, stored, way, k, rows, seed):  # -> loss, list of gradients
    "Loss of a step and its gradient, of items that are passed through the model or taken from a bank."
    own = way.every is None or (way.passes and k % way.passes == 0)
    among = None if own else drawn_items(warm, way.among, seed, k)
    batch = make_batch(split, drawn[batch_rows(k, len(drawn), rows, seed)], 'all', None, among)
    works = plan_works(embedder, bank, batch.history, batch.items if own else batch.items[:0], every=True)
    sizes = dict(batch.sizes) if own else dict(batch.sizes, items=0)
    encoded = encode_batch(works, sizes, embedder.device)
    items = encoded.items if own else {v: z[torch.from_numpy(batch.items)] for v, z in stored.items()}
    loss = get_loss('sft', tau=TAU)(encoded.sequences, items, batch.positives, batch.exclude)
    loss.backward()
    parameters = [p for _, p in embedder.adapter_parameters()]
    parts = modality_gradients(encoded, parameters, switch=embedder.switch)
    return float(loss.detach()), [sum(g) for g in zip(*parts.values())]


def course(split, way, seed, rows, lr, steps, every, test=True, weights=None):  # -> dict
    "Train; validate every so many steps with the clock stopped; test at the end."
    begun = time.process_time()
    embedder, bank = fresh(seed, split, ALL, weights)
    parameters, warm = [p for _, p in embedder.adapter_parameters()], warm_items(split)
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    drawn, stored, valid, losses = training_rows(split, 'all'), None, [], []
    spent = time.process_time() - begun
    for k in range(steps):
        begun = time.process_time()
        if way.every and k % way.every == 0:
            stored = refreshed(embedder, split)
        loss, gradients = step(embedder, bank, split, drawn, warm, stored, way, k, rows, seed)
        for p, g in zip(parameters, gradients):
            p.grad = g
        optimiser.step()
        optimiser.zero_grad()
        spent += time.process_time() - begun
        losses.append(round(loss, 4))
        if (k + 1) % every == 0 or k + 1 == steps:
            valid.append([k + 1, round(spent, 3), None, scores(embedder, split, 'valid')['fused']])
    say(f'seed {seed}, {way}, lr {lr:g}: validation {valid[-1][3]:.4f} after {spent:.1f} s')
    found = dict(seed=seed, rows=rows, lr=lr, steps=steps, valid=valid, seconds=round(spent, 3), losses=losses)
    return found | dict(test=scores(embedder, split, 'test') if test else None)


def summary(runs, goal):  # {way: list of runs, a seed each} -> list of dict
    "Each way beside the first: seconds to the goal, and test NDCG@10 with an interval of the difference over seeds."
    first = next(iter(runs.values()))
    out = []
    for name, mine in runs.items():
        at = [(reached(a, goal), reached(b, goal)) for a, b in zip(first, mine)]
        both = [(a[0], b[0]) for a, b in at if a and b]
        test = np.array([r['test']['fused'] for r in mine])
        out.append(
            dict(
                way=name,
                seeds=len(mine),
                lr=mine[0]['lr'],
                seconds_a_step=round(sum(r['seconds'] for r in mine) / sum(r['steps'] for r in mine), 3),
                reached=sum(b is not None for _, b in at),
                first_over_this=interval_of_sums(*zip(*both)) if both else None,
                test=[round(float(test.mean()), 4), round(float(test.std(ddof=1)), 4) if len(test) > 1 else None],
                difference=interval_of_mean(test - [r['test']['fused'] for r in first]),
            )
        )
    return out


def shown(result):  # -> list of dict
    "Rows of the table."
    return [
        {
            'items come from': r['way'],
            'learning rate': f'{r["lr"]:g}',
            'CPU seconds a step': f'{r["seconds_a_step"]:.3f}',
            'goal reached': f'{r["reached"]} of {r["seeds"]}',
            'seconds of the first row over these': in_range(r['first_over_this'], 1)
            if r['first_over_this'] and r['reached'] > 2
            else 'too few',
            'test NDCG@10': f'{r["test"][0]:.4f}' + (f' ± {r["test"][1]:.4f}' if r['test'][1] is not None else ''),
            'less the first row': in_range(r['difference'], 4),
        }
        for r in result['summary']
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--small', action='store_true', help='a toy setting that runs in seconds; its figures mean nothing'
    )
    parser.add_argument('--out', help='JSON file to write')
    parser.add_argument('--cells', default='runs/benchmarks/item_bank', help='folder of finished parts; "" for none')
    o = parser.parse_args()
    quiet()
    start, cells = machine(), o.cells or None
    rows, weights = (4, None) if o.small else (ROWS, for_both())
    steps, every = (2, 1) if o.small else (1280 // rows, 128 // rows)
    rates, seeds = ((1e-3,), (101, 102)) if o.small else (RATES, SEEDS)

    def one(name, way, seed, lr, test):
        asked = dict(way=name, seed=seed, rows=rows, lr=lr, steps=steps, every=every, small=o.small)
        split = shop(seed, 10, 11, o.small)
        return cell(
            cells,
            dict(cell='bank', checkpoint=CHECKPOINT, test=test, **asked),
            lambda: course(split, way, seed, rows, lr, steps, every, test, weights),
        )

    tried, runs, goal = {}, {}, None
    for name, way in WAYS.items():
        tried[name] = [one(name, way, DEVELOPMENT, lr, False) for lr in rates]
        best = max(tried[name], key=lambda run: run['valid'][-1][3])
        goal = goal or round(SHARE * best['valid'][-1][3], 5)
        runs[name] = [one(name, way, seed, best['lr'], True) for seed in seeds]
        result = dict(
            benchmark='item_bank',
            small=o.small,
            machine=start | dict(load_at_end=machine()['load']),
            model=f'tiny VLM text-first, taught with both prompts; float32, LoRA rank {RANK}, usual prompts',
            data=f'studio {CONDITION}, 2,000 customers taught, histories of up to 10',
            loss=f'sft, tau {TAU}',
            clock='CPU seconds of one thread',
            rows_per_step=rows,
            goal=goal,
            goal_is=f'{SHARE:.0%} of the last validation NDCG@10 of item passes on the development shop',
            development_seed=DEVELOPMENT,
            tried=tried,
            runs=runs,
            summary=summary(runs, goal),
        )
        write(o.out, result)
    print('\nWhere item vectors come from: seconds to the goal and quality\n')
    print(table(shown(result)))
    print('\nmachine:', result['machine'])


if __name__ == '__main__':
    main()
