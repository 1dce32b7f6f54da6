"""Training on a CPU: pairs per second, and seconds to a fixed validation NDCG@10, of the plain recipe, of each
speed-up alone, and of all.

python benchmarks/train.py [--small] [--out benchmarks/results/train.json]

The model is the tiny VLM, the data are drawn shops (`make_studio`). One thread; seconds are CPU seconds of this
process unless a column says wall, so that
neighbours on the machine disturb little; timings are interleaved. What is finished is kept in
`runs/benchmarks/train` and is not run again.
"""

import argparse
import functools
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import (
    Clock,
    cell,
    in_range,
    interleave,
    interval_of_mean,
    interval_of_sums,
    machine,
    quantiles,
    quiet,
    say,
    table,
    write,
)

from vlm2rec_lab.embed import Prompts, VLMEmbedder
from vlm2rec_lab.losses import get_loss
from vlm2rec_lab.metrics import evaluate
from vlm2rec_lab.model.tiny import ITEM, LEAN_ITEM, make_tiny_vlm, tiny_vlm
from vlm2rec_lab.studio import make_studio
from vlm2rec_lab.train import batch_rows, encode_split, entire, make_batch, train, training_rows
from vlm2rec_lab.training.step import Work, plan_works, step_gradients

TAU, RANK, CONDITION = 0.07, 4, 'text-easy'
CHECKPOINT = 'two-prompts'  # taught with the usual prompt and the lean one, so that neither is strange to it
FOLDER = Path('runs/benchmarks') / CHECKPOINT
SEEDS = (101, 102, 103, 104, 105)  # shops that are reported; nothing is chosen on them
STEPS_A, EVERY_A, GRID_A = (
    160,
    16,
    (2e-3, 4e-3),
)  # plain recipe: steps, steps between validations, learning rates tried on the development shop
STEPS_C, EVERY_C, GRID_C = (
    40,
    4,
    ((8, 4e-3), (16, 4e-3)),
)  # all speed-ups: the same counted in steps of 32 rows, and (rows per step, learning rate)


@dataclass(frozen=True)
class Recipe:
    "Which speed-ups are on."

    cached: bool = False  # the vision tower runs once for the catalogue, not in every step
    distinct: bool = False  # each item of a batch once, not each pair's target
    groups: bool = False  # prompts of like length together, at most 10 % filler; else one padded pass
    every: bool = False  # every position of a sequence is a pair; else the last
    chunk: int = None  # gradient caching: prompts at a time
    # prompts that close with the separator, so that a prefix costs no token of its own; else the default ones
    lean: bool = False


LEAN = Prompts(item=LEAN_ITEM, sequence='<|im_start|>The customer bought:{};')
PLAIN, ALL = Recipe(), Recipe(True, True, True, True)
RECIPES = {
    '(a) plain': PLAIN,
    '(b) vision features stored': Recipe(cached=True),
    '(b) distinct items': Recipe(distinct=True),
    '(b) length groups': Recipe(groups=True),
    '(b) every position': Recipe(every=True),
    'gradient caching, chunks of 16': Recipe(chunk=16),
    '(c) all': ALL,
    '(c) all + caching, chunks of 16': Recipe(True, True, True, True, 16),
    '(a) plain, lean prompts': Recipe(lean=True),
    '(c) all, lean prompts': Recipe(True, True, True, True, lean=True),
}


def works(embedder, bank, batch, recipe):  # -> {view: list of Work}
    """The passes of a batch under a recipe; for PLAIN and ALL they are those of `train(plain=True)` and
    `train(positions='all')`."""
    cut = functools.partial(
        plan_works,
        embedder,
        bank,
        batch.history,
        every=recipe.every,
        waste=0.1 if recipe.groups else 1.0,
        most=recipe.chunk,
    )
    if recipe.distinct:
        return cut(batch.items)
    first = torch.zeros(len(batch.targets), dtype=torch.bool)
    first[np.unique(batch.targets, return_index=True)[1]] = True  # vectors of a repeated target are computed and left

    def once(work):
        keep = first[work.index]
        return Work('items', batch.positives[work.index[keep]], lambda: work.run()[keep])

    return {view: [w if w.side == 'sequences' else once(w) for w in ws] for view, ws in cut(batch.targets).items()}


def gradients(embedder, bank, batch, recipe, autocast=None):  # -> loss, {view: list of gradients}
    "One step's loss and gradients."
    return step_gradients(
        get_loss('sft', tau=TAU),
        works(embedder, bank, batch, recipe),
        {'sequences': len(batch.targets), 'items': len(batch.items)},
        batch.positives,
        batch.exclude,
        [p for _, p in embedder.adapter_parameters()],
        cached=recipe.chunk is not None,
        autocast=autocast,
    )


def shop(seed, history, purchases, small, **sizes):
    "A split of a drawn shop: customers of `purchases` each, histories of at most `history`."
    users = (dict(train=30, valid=20, test=30) if small else dict(train=2000, valid=800, test=1000)) | sizes
    studio = make_studio(CONDITION, seed=seed, items=40 if small else 600, users=sum(users.values()), length=purchases)
    return studio.split(**users, history=history)


def for_both():  # -> Path
    "The checkpoint that was taught with both prompts, made where it is not there yet."
    if not (FOLDER / 'model.safetensors').exists():
        say(f'pre-training {FOLDER}: some ten minutes, once')
        make_tiny_vlm(FOLDER, reader='text-first', prompts=(ITEM, LEAN_ITEM))
    return FOLDER


def fresh(seed, split, recipe, weights=None):  # -> (VLMEmbedder, Bank)
    "A checkpoint, the shipped one unless told, with new adapters, and the catalogue's bank."
    prompts = LEAN if recipe.lean else Prompts()
    embedder = VLMEmbedder.from_pretrained(weights or tiny_vlm(), lora=RANK, seed=seed, device='cpu', prompts=prompts)
    return embedder, embedder.bank(split.catalogue, False, None if recipe.cached else 'live')


def rates(split, recipes, batch, rounds, seed=0):  # {name: (Recipe, rows per step)} -> list of dict
    """Pairs per second of each recipe, interleaved: whole steps, optimiser included. A ratio is that of the sums over
    all rounds, with the range of single rounds."""
    pairs, runs = {}, {}
    for name, (recipe, rows) in recipes.items():
        embedder, bank = fresh(seed, split, recipe)
        parameters, drawn = (
            [p for _, p in embedder.adapter_parameters()],
            training_rows(split, 'all' if recipe.every else 'last'),
        )
        optimiser, pairs[name] = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0), []

        def run(
            r,
            recipe=recipe,
            rows=rows,
            embedder=embedder,
            bank=bank,
            parameters=parameters,
            drawn=drawn,
            optimiser=optimiser,
            count=pairs[name],
        ):
            this = make_batch(split, drawn[batch_rows(r, len(drawn), rows, seed)], 'all' if recipe.every else 'last')
            _, parts = gradients(embedder, bank, this, recipe)
            for p, *g in zip(parameters, *parts.values()):
                p.grad = sum(g)
            optimiser.step()
            optimiser.zero_grad()
            count.append((len(this.targets), len(this.items)))

        runs[name] = run
    spent, out = interleave(runs, rounds), []
    per, whole = {}, {}  # pairs a second: of each round, and of all
    for name in recipes:
        n, cpu = np.array(pairs[name][-rounds:])[:, 0], np.array(spent[name])[:, 1]
        per[name], whole[name] = n / cpu, n.sum() / cpu.sum()
    base = next(iter(recipes))
    for name, (recipe, rows) in recipes.items():
        n, seconds = np.array(pairs[name][-rounds:]), np.array(spent[name])
        out.append(
            dict(
                recipe=name,
                rows_per_step=rows,
                pairs_per_step=round(float(n[:, 0].mean()), 1),
                items_per_step=round(float(n[:, 1].mean()), 1),
                seconds_per_step=quantiles(seconds[:, 1]),
                wall_seconds_per_step=quantiles(seconds[:, 0]),
                pairs_per_second=round(float(whole[name]), 1),
                ratio=[round(float(v), 4) for v in (whole[name] / whole[base], *quantiles(per[name] / per[base])[1:])],
                same_work=not recipe.every and recipe.lean == recipes[base][0].lean,
                switches=asdict(recipe),
            )
        )
    return out


def encoding(split, seed=0):  # -> dict
    """Rates of what is done once per catalogue: pictures through image processing and vision tower, items through the
    language model."""
    embedder, n = VLMEmbedder.from_pretrained(tiny_vlm(), lora=RANK, seed=seed, device='cpu'), len(split.catalogue)
    with Clock() as pictures:
        embedder.bank(split.catalogue, False)
    with Clock() as items:
        embedder.encode_items(split.catalogue, progress=False)
    return dict(
        items=n,
        views=len(split.catalogue.modalities),
        pictures_per_second=round(n / pictures.cpu, 1),
        items_per_second=round(n / items.cpu, 1),
        note='an item is all its views; opening and scaling of pictures included',
    )


def scores(embedder, split, part):  # -> {view: NDCG@10}
    found = evaluate(**encode_split(embedder, split, part, progress=False), fuse='sum', bootstrap=0)
    return {v: round(float(found[v]['NDCG@10']), 5) for v in found}


def course(split, recipe, seed, rows, lr, steps, every, test=True, weights=None):  # -> dict
    "Train with the lab's own loop; validate every so many steps with the clock stopped; test at the end."
    with Clock() as start:
        # storing the features of the vision tower belongs to the cost
        embedder, bank = fresh(seed, split, recipe, weights)
    spent, valid, mark = (
        [start.cpu if recipe.cached else 0.0, start.wall if recipe.cached else 0.0],
        [],
        [time.process_time(), time.perf_counter()],
    )

    def watch(records):
        for k, now in enumerate((time.process_time(), time.perf_counter())):
            spent[k] += now - mark[k]
        if len(records) % every == 0 or len(records) == steps:
            valid.append(
                [len(records), round(spent[0], 3), round(spent[1], 3), scores(embedder, split, 'valid')['fused']]
            )
        mark[:] = time.process_time(), time.perf_counter()

    plain = replace(recipe, lean=False) == PLAIN
    how = dict(plain=True) if plain else dict(positions='all')
    entire(
        train(
            embedder,
            split,
            'sft',
            steps=steps,
            batch=rows,
            lr=lr,
            tau=TAU,
            seed=seed,
            eval_every=0,
            progress=False,
            callback=watch,
            **how,
        )
    )
    name = ('plain' if plain else 'all') + (', lean prompts' if recipe.lean else '')
    last = f'validation {valid[-1][3]:.4f} after {valid[-1][1]:.1f} s'
    say(f'seed {seed}, {name}, {rows} rows, lr {lr:g}: {last}')
    return dict(
        seed=seed,
        rows=rows,
        lr=lr,
        steps=steps,
        valid=valid,
        seconds=round(spent[0], 3),
        test=scores(embedder, split, 'test') if test else None,
    )


SIDES = '(a) plain', '(a) plain, lean prompts', '(c) all'  # what is trained to the goal


def reached(run, goal):  # -> (CPU seconds, wall seconds, steps), or None
    "When a run's validation first stood at the goal."
    return next(((cpu, wall, step) for step, cpu, wall, score in run['valid'] if score >= goal), None)


# -> (goal, {recipe of SIDES: run}, list of runs)
def develop(cells, small, seed, rates_a, rates_c, plan, quick, weights=None):
    """Fix the goal and the recipes on a development shop: the learning rate of (a), with either prompts, by its last
    validation; learning rate, rows per step and prompts of (c) by the seconds to the goal among those that end no
    lower than (a) with the usual ones."""
    split = shop(seed, 10, 11, small)

    def one(name, recipe, rows, lr, steps, every):
        prompts = 'lean' if recipe.lean else 'usual'
        asked = dict(small=small, seed=seed, rows=rows, lr=lr, steps=steps, every=every, prompts=prompts)
        run = cell(
            cells,
            dict(cell=f'dev-{name}', **asked, checkpoint='shipped' if weights is None else CHECKPOINT),
            lambda: course(split, recipe, seed, rows, lr, steps, every, False, weights),
        )
        return dict(recipe=name, prompts=prompts, **run)

    a = [
        [one('plain', replace(PLAIN, lean=lean), plan['rows'], lr, plan['steps'], plan['every']) for lr in rates_a]
        for lean in (False, True)
    ]
    best, lean_best = (max(runs, key=lambda run: run['valid'][-1][3]) for runs in a)
    goal = round(plan['share'] * best['valid'][-1][3], 5)
    c = [
        one('all', replace(ALL, lean=lean), rows, lr, quick['steps'] * 32 // rows, quick['every'] * 32 // rows)
        for lean in (False, True)
        for rows, lr in rates_c
    ]
    fit = (
        [run for run in c if reached(run, goal) and run['valid'][-1][3] >= best['valid'][-1][3]]
        or [run for run in c if reached(run, goal)]
        or c
    )
    quickest = min(fit, key=lambda run: (reached(run, goal) or [np.inf])[0])
    return goal, dict(zip(SIDES, (best, lean_best, quickest))), sum(a, []) + c


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--small', action='store_true', help='a toy setting that runs in seconds; its figures mean nothing'
    )
    parser.add_argument('--out', help='JSON file to write')
    parser.add_argument(
        '--cells', default='runs/benchmarks/train', help='folder that keeps finished parts; "" for none'
    )
    parser.add_argument('--rounds', type=int, help='interleaved rounds of the rates')
    parser.add_argument('--only', choices=('rates', 'quality'), help='one half of it')
    o = parser.parse_args()
    quiet()
    start, cells, rounds = machine(), o.cells or None, o.rounds or (1 if o.small else 16)
    rows = 8 if o.small else 32
    plan, quick = (
        (dict(rows=8, steps=4, every=2, share=0.5), dict(steps=2, every=1))
        if o.small
        else (dict(rows=32, steps=STEPS_A, every=EVERY_A, share=0.95), dict(steps=STEPS_C, every=EVERY_C))
    )
    result = dict(
        benchmark='train',
        machine=start,
        small=o.small,
        model=f'tiny VLM text-first, float32, LoRA rank {RANK}',
        data=f'studio {CONDITION}',
        loss=f'sft, tau {TAU}',
        rows_per_step=rows,
        clock='CPU seconds of one thread',
    )
    if o.only != 'quality':
        worlds = {
            'histories of up to 10, 11 purchases each': (10, 11, RECIPES),
            'histories of up to 6, 7 purchases each': (6, 7, {'(a) plain': PLAIN, '(c) all': ALL}),
            'histories of up to 10, 21 purchases each': (10, 21, {'(a) plain': PLAIN, '(c) all': ALL}),
        }
        worlds, result['rates'] = dict(list(worlds.items())[:1]) if o.small else worlds, []
        for world, (history, purchases, recipes) in worlds.items():
            say(world)

            def work():
                return dict(
                    world=world,
                    seed=0,
                    rounds=rounds,
                    load=machine()['load'],
                    rows=rates(
                        shop(0, history, purchases, o.small),
                        {name: (r, rows) for name, r in recipes.items()},
                        rows,
                        rounds,
                    ),
                )

            result['rates'].append(
                cell(cells, dict(cell='rates', world=world, small=o.small, rounds=rounds, rows=rows), work)
            )
            write(o.out, result)
        result['encoding'] = cell(
            cells, dict(cell='encoding', small=o.small), lambda: encoding(shop(0, 10, 11, o.small))
        )
    if o.only != 'rates':
        grid_a, grid_c = ((1e-3,), ((4, 1e-3), (8, 1e-3))) if o.small else (GRID_A, GRID_C)
        weights = None if o.small else for_both()
        goal, chosen, tried = develop(cells, o.small, 100, grid_a, grid_c, plan, quick, weights)
        quality = result['quality'] = dict(
            model='tiny VLM text-first' + ('' if o.small else ', taught with both prompts'),
            goal=goal,
            goal_is=f'{plan["share"]:.0%} of the last validation NDCG@10 of (a) on the development shop',
            development_seed=100,
            tried=tried,
            chosen={side: {k: run[k] for k in ('rows', 'lr', 'prompts')} for side, run in chosen.items()},
            runs=[],
        )
        for seed in (101,) if o.small else SEEDS:
            for name, pick in chosen.items():
                plain = name != '(c) all'
                recipe = replace(PLAIN if plain else ALL, lean=pick['prompts'] == 'lean')
                every = plan['every'] if plain else quick['every'] * 32 // pick['rows']

                def work(recipe=recipe, pick=pick, every=every):
                    split = shop(seed, 10, 11, o.small)
                    how = dict(rows=pick['rows'], lr=pick['lr'], steps=pick['steps'], every=every)
                    return course(split, recipe, seed, **how, weights=weights)

                run = cell(
                    cells,
                    dict(
                        cell=f'run-{name[1]}',
                        small=o.small,
                        seed=seed,
                        rows=pick['rows'],
                        lr=pick['lr'],
                        steps=pick['steps'],
                        every=every,
                        prompts=pick['prompts'],
                        checkpoint='shipped' if weights is None else CHECKPOINT,
                    ),
                    work,
                )
                at = reached(run, goal)
                quality['runs'].append(
                    dict(recipe=name, **run, to_goal=at and dict(seconds=at[0], wall_seconds=at[1], steps=at[2]))
                )
            write(o.out, result)
        quality['summary'] = summary(quality['runs'])
    result['machine']['load_at_end'] = machine()['load']
    write(o.out, result)
    show(result)


def beside(a, c):  # runs of the same seeds -> dict
    """Seconds of (a) over those of (c), a ratio of sums over the seeds where both reached the goal, and by how much the
    test NDCG@10 of (c) is above; intervals over seeds."""
    both = [(x['to_goal']['seconds'], y['to_goal']['seconds']) for x, y in zip(a, c) if x['to_goal'] and y['to_goal']]
    return dict(
        seconds_ratio=[round(x / y, 2) for x, y in both],
        seconds_ratio_of_sums=interval_of_sums(*zip(*both)) if both else None,
        test_difference=interval_of_mean([y['test']['fused'] - x['test']['fused'] for x, y in zip(a, c)]),
    )


def summary(runs):  # -> dict
    "Test NDCG@10 of every recipe with its spread, how often the goal was not reached, and (c) beside each (a)."
    by = {name: [r for r in runs if r['recipe'] == name] for name in SIDES}
    test = {name: {v: [r['test'][v] for r in rs] for v in rs[0]['test']} for name, rs in by.items()}
    mean = {
        name: {
            v: [round(float(np.mean(x)), 4), round(float(np.std(x, ddof=1)), 4) if len(x) > 1 else None]
            for v, x in t.items()
        }
        for name, t in test.items()
    }
    return dict(
        seeds=len(by['(c) all']),
        not_reached={name: sum(r['to_goal'] is None for r in rs) for name, rs in by.items()},
        test_mean_and_deviation=mean,
        c_beside={name: beside(by[name], by['(c) all']) for name in SIDES[:-1]},
    )


def show(result):
    "Print the result as tables."
    for part in result.get('rates', []):
        print(f'\n{part["world"]}: pairs per second, {part["rounds"]} interleaved rounds\n')
        print(
            table(
                [
                    {
                        'recipe': r['recipe'],
                        'pairs per step': r['pairs_per_step'],
                        's per step': r['seconds_per_step'][0],
                        'pairs per s': r['pairs_per_second'],
                        'ratio to (a)': in_range(r['ratio']),
                        'the same work': 'yes' if r['same_work'] else 'no',
                    }
                    for r in part['rows']
                ]
            )
        )
    if q := result.get('quality'):
        print(
            f'\nSeconds to validation NDCG@10 {q["goal"]:.4f} ({q["goal_is"]}); chosen on seed '
            f'{q["development_seed"]}: {q["chosen"]}\n'
        )
        print(
            table(
                [
                    {
                        'recipe': r['recipe'],
                        'seed': r['seed'],
                        's to goal': round(r['to_goal']['seconds'], 1) if r['to_goal'] else 'not reached',
                        'steps to goal': r['to_goal']['steps'] if r['to_goal'] else '',
                        'steps in all': r['steps'],
                        's in all': round(r['seconds'], 1),
                        'test NDCG@10': round(r['test']['fused'], 4),
                    }
                    for r in q['runs']
                ]
            )
        )
        print('\n', q['summary'])
    if 'encoding' in result:
        print('\nencoding:', result['encoding'])
    print('\nmachine:', result['machine'])


if __name__ == '__main__':
    main()
