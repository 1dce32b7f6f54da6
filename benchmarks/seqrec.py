"""SASRec on a file of sequences: how well it ranks with the full loss and with one sampled negative, and how long its
training step takes beside RecTools'.

python benchmarks/seqrec.py FILE [--losses ce bce] [--seeds 0 1 2] [--cells runs/benchmarks/seqrec] [--out
benchmarks/results/seqrec.json]
python benchmarks/seqrec.py FILE --steps [--out benchmarks/results/seqrec_step.json]

FILE holds a user per line, `user item item ...`, such as Beauty.txt of S3-Rec (22,363 users, 12,101 items). Leave
one out, windows of 50 items, 64 dimensions, 2 layers, the next item ranked among all that the user
has not seen. Every run keeps its state after every epoch and its result when done, so that the same command goes on
where it was stopped. Both losses are trained by one recipe (`PUBLISHED`: dropout, batch and rate of the papers
compared with), and the epoch is chosen on validation rows. The matrix products of the full loss are in bfloat16;
`--single` leaves them in float32.

`--steps` wants RecTools in the same Python. It is no dependency of the lab: `python -m venv rec`, `rec/bin/pip
install "rectools[torch]" transformers fastcore safetensors pillow "pyarrow<21" urllib3`, then
`PYTHONPATH=. rec/bin/python benchmarks/seqrec.py FILE --steps`. Both sides take a step (forward, loss, backward,
Adam) on the same sequences in turn; theirs are made by its own data preparator, before the clock runs.
Each ratio is one of sums of CPU seconds: a median would hide the few long batches of an epoch that is sorted in pools.
"""

import argparse
import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import cell, circles, in_range, interleave, machine, quantiles, quiet, ratio_of_sums, say, table, write

from vlm2rec_lab.data import PAD, leave_one_out
from vlm2rec_lab.recommenders.fit import figures, fit
from vlm2rec_lab.recommenders.seqrec import ItemTable, SASRec, ce, lessons
from vlm2rec_lab.shop.readers import sequence_file
from vlm2rec_lab.train import entire
from vlm2rec_lab.training.lengths import pooled_batches

HISTORY, DIM, LAYERS, HEADS = 50, 64, 2, 2
LONG = 12  # steps on sequences that are all as long as the window
# Dropout, batch and rate of the papers that the figures are compared with. The patience is ours; nothing was tried out.
PUBLISHED = dict(dropout=0.5, batch=256, lr=1e-3, epochs=600, patience=20)
RECIPE = {'ce': PUBLISHED | dict(autocast='bfloat16'), 'bce': PUBLISHED | dict(negatives=1)}
SHOWN = ('HR@10', 'NDCG@10', 'HR@20', 'NDCG@20')


def course(split, loss, seed, recipe, folder):  # -> dict
    "Train to the early stop and rank the test rows."
    how = dict(recipe)
    model = SASRec(
        ItemTable(len(split.catalogue), DIM, seed=seed),
        layers=LAYERS,
        heads=HEADS,
        dropout=how.pop('dropout'),
        length=HISTORY,
        seed=seed,
    )

    def told(r):
        return say(
            f"{loss}, seed {seed}, epoch {r[-1]['epoch']}: loss {r[-1]['loss']:.4f}, validation NDCG@10 "
            f"{r[-1]['NDCG@10']:.4f}, {r[-1]['cpu']:.1f} s CPU"
        )

    run = entire(
        fit(model, split, loss, seed=seed, folder=folder, progress=False, callback=told, **how),
        f'{loss}, seed {seed}',
        'the same command goes on',
    )
    t, test = run.frame, figures(model, split).loc['all']
    return dict(
        loss=loss,
        seed=seed,
        epochs=len(t),
        best=run.best,
        finished=run.finished,
        valid_ndcg=round(float(t['NDCG@10'].max()), 5),
        test={m: round(float(test[m]), 5) for m in SHOWN},
        cpu_seconds=round(float(t.cpu.sum()), 1),
        wall_seconds=round(float(t.seconds.sum()), 1),
        valid=t['NDCG@10'].round(5).tolist(),
    )


def quality(split, losses, seeds, cells, recipes):  # -> (list of runs, summary)
    runs = []
    for loss in losses:
        for seed in seeds:
            settings = dict(
                cell=f'{loss}-{seed}',
                split=split.fingerprint,
                history=HISTORY,
                dim=DIM,
                layers=LAYERS,
                heads=HEADS,
                seed=seed,
                **recipes[loss],
            )
            runs.append(
                cell(
                    cells,
                    settings,
                    lambda: course(split, loss, seed, recipes[loss], cells and Path(cells) / f'{loss}-{seed}'),
                )
            )
            say(
                f"{loss}, seed {seed}: test {runs[-1]['test']}, {runs[-1]['epochs']} epochs, "
                f"{runs[-1]['cpu_seconds']:.0f} s CPU"
            )

    def spread(v):
        return [round(float(np.mean(v)), 5), round(float(np.std(v, ddof=1)), 5) if len(v) > 1 else None]

    def of(loss):
        return [r for r in runs if r['loss'] == loss]

    return runs, [
        dict(
            loss=loss,
            seeds=len(of(loss)),
            **{m: spread([r['test'][m] for r in of(loss)]) for m in SHOWN},
            epochs=spread([r['epochs'] for r in of(loss)]),
            cpu_seconds=spread([r['cpu_seconds'] for r in of(loss)]),
            wall_seconds=spread([r['wall_seconds'] for r in of(loss)]),
        )
        for loss in losses
    ]


def theirs(
    whole,  # int [S, L + 1] sequences with the last item, PAD at the left
    of,  # those of which batches are made
    batch,  # rows of a step
):  # -> (function of row numbers -> batch, step of a batch)
    "RecTools' SASRec: its own batches, padded to the window, its own loss and optimiser."
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    who, where = np.nonzero(whole != PAD)
    frame = pd.DataFrame(
        {
            Columns.User: who,
            Columns.Item: whole[who, where],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp('2026-01-01') + pd.to_timedelta(where, unit='min'),
        }
    )
    model = SASRecModel(
        n_blocks=LAYERS,
        n_heads=HEADS,
        n_factors=DIM,
        dropout_rate=0.5,
        session_max_len=HISTORY,
        batch_size=batch,
        loss='softmax',
        lr=1e-3,
        train_min_user_interactions=2,
    )
    model._build_model_from_dataset(Dataset.construct(frame))
    net, prepared = model.lightning_model, model.data_preparator
    net.on_train_start()
    net.train()
    net.log = lambda *args, **kwargs: None  # of a Trainer that is not there
    optimiser, collate = net.configure_optimizers(), prepared.get_dataloader_train().collate_fn

    def made(at):
        sessions = [prepared.item_id_map.convert_to_internal(row[row != PAD]).tolist() for row in of[at]]
        return collate([(s, [1.0] * len(s), {}) for s in sessions])

    def step(given):
        loss = net.training_step(given, 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return made, step


def ours(x, y, n, autocast):  # -> step of a list of row numbers
    model = SASRec(
        ItemTable(n, DIM), layers=LAYERS, heads=HEADS, length=HISTORY, wide=1
    ).train()  # wide=1: their two linear layers are as wide as the vectors
    optimiser, lengths = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True), (x != PAD).sum(1)

    def step(at):
        crop = x.shape[1] - int(lengths[at].max())
        inputs, asked = x[at, crop:], y[at, crop:]
        there, items = asked != PAD, model.items()
        loss = ce(model(inputs, items)[there], items, asked[there], autocast=autocast)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return step


WORK = {  # of each side, beside RecTools' row
    'RecTools': 'theirs: padded to the window',
    'lab': 'the same sequences and loss, cut to the longest of the batch',
    'lab, bfloat16': 'not the same: products of the loss are coarser',
}


def epochs(lengths, batch, rounds=None, seed=0):  # -> {kind: list of row numbers per step}
    """The full batches of an epoch that is sorted in pools; a quarter of those of a shuffled one, which are all alike;
    and some of sequences as long as the window, which are no epoch. A batch of warm-up stands before each."""
    rng, n = np.random.default_rng(seed), len(lengths) // batch // 4 + 1
    full, mixed = np.flatnonzero(lengths == lengths.max()), rng.permutation(len(lengths))
    pools = [b for b in pooled_batches(lengths, batch, seed=seed, even='sequences') if len(b) == batch]
    kinds = {
        'an epoch, sorted in pools': pools[:rounds],
        'a quarter of an epoch, shuffled': [mixed[k * batch : (k + 1) * batch] for k in range(n)][:rounds],
        f'all of {lengths.max()} items': [
            rng.choice(full, batch, replace=len(full) < batch) for _ in range(min(rounds or LONG, LONG))
        ],
    }
    return {kind: [batches[-1], *batches] for kind, batches in kinds.items()}


def kind_rows(kind, batches, whole, of, x, y, n, batch):  # -> list of dict
    "Steps of every side in turn on the batches of one kind; the first is warm-up. Ratios are those of sums."
    lengths, (made, step) = (x != PAD).sum(1).numpy(), theirs(whole, of, batch)
    given, single, half = [made(b) for b in batches], ours(x, y, n, None), ours(x, y, n, 'bfloat16')
    spent = interleave(
        {
            'RecTools': lambda r: step(given[r]),
            'lab': lambda r: single(batches[r]),
            'lab, bfloat16': lambda r: half(batches[r]),
        },
        len(batches) - 1,
    )
    base = np.array(spent['RecTools'])[:, 1]
    return [
        dict(
            batches=kind,
            side=name,
            work=WORK[name],
            sequences=batch,
            steps=len(v),
            items=n,
            places=round(float(np.mean([lengths[b].sum() for b in batches[1:]])), 1),
            cpu_seconds=round(float(np.sum(v, 0)[1]), 3),
            wall_seconds=round(float(np.sum(v, 0)[0]), 3),
            cpu_of_a_step=quantiles(np.array(v)[:, 1]),
            times_theirs=ratio_of_sums(base, np.array(v)[:, 1]),
        )
        for name, v in spent.items()
    ]


def steps(split, batch, rounds, cells=None, users=None, seed=0):  # -> list of dict
    """The training steps of an epoch sorted in pools, of a part of a shuffled one, and of sequences that are all as
    long as the window. Of so many users, if said; the items are those of all."""
    _, x, y = lessons(split)
    whole = np.concatenate([x, y[:, -1:]], 1)
    found = np.unique(whole[whole != PAD])  # both sides know the items that occur
    number = np.full(found.max() + 2, PAD)
    number[found] = np.arange(len(found))
    x, y, n = torch.from_numpy(number[x]), torch.from_numpy(number[y]), len(found)
    if users and users < len(x):
        who = np.sort(np.random.default_rng(seed).choice(len(x), users, replace=False))
        whole_of, x, y = whole[who], x[who], y[who]
    else:
        whole_of = whole
    out = []
    for kind, batches in epochs((x != PAD).sum(1).numpy(), batch, rounds, seed).items():
        settings = dict(
            cell=f'steps-{kind}', split=split.fingerprint, batch=batch, rounds=rounds, users=users, seed=seed
        )
        done = cell(cells, settings, lambda: dict(rows=kind_rows(kind, batches, whole, whole_of, x, y, n, batch)))
        out += done['rows']
        for r in done['rows']:
            say(f'{kind}, {r["side"]}: {r["cpu_seconds"]} s CPU')
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', nargs='?', help='file of sequences, `user item item ...`')
    parser.add_argument(
        '--small', action='store_true', help='a toy setting that runs in seconds; its figures mean nothing'
    )
    parser.add_argument('--steps', action='store_true', help="the training step beside RecTools'")
    parser.add_argument('--losses', nargs='+', default=['ce', 'bce'], choices=list(RECIPE))
    parser.add_argument('--single', action='store_true', help='float32 everywhere')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--cells', default='runs/benchmarks/seqrec', help='folder that keeps runs, finished or not; "" for none'
    )
    parser.add_argument('--rounds', type=int, help='at most so many steps of an epoch; all of them, if not said')
    parser.add_argument('--users', type=int, help='an epoch of so many users for the steps; of all, if not said')
    parser.add_argument('--out', help='JSON file to write')
    o = parser.parse_args()
    if not o.file and not o.small:
        parser.exit(2, 'say which file of sequences: python benchmarks/seqrec.py Beauty.txt\n')
    if o.steps and importlib.util.find_spec('rectools') is None:
        parser.exit(
            3,
            'rectools is not here: python -m venv rec, rec/bin/pip install "rectools[torch]" transformers fastcore '
            'safetensors pillow "pyarrow<21" urllib3, then PYTHONPATH=. rec/bin/python benchmarks/seqrec.py FILE '
            '--steps\n',
        )
    quiet()
    warnings.simplefilter('ignore')
    start = machine()
    split = leave_one_out(circles(60) if o.small else sequence_file(o.file), history=HISTORY)
    result = dict(
        benchmark='seqrec_step' if o.steps else 'seqrec',
        small=o.small,
        machine=start,
        data=split.name,
        items=len(split.catalogue),
        history=HISTORY,
        dim=DIM,
        layers=LAYERS,
        heads=HEADS,
    )
    if o.steps:
        import rectools

        result |= dict(
            version=rectools.__version__,
            users=o.users,
            rows=steps(split, 16 if o.small else 128, o.rounds, o.cells or None, o.users),
        )
        print(
            f"\nA training step of SASRec, full cross-entropy over {result['rows'][0]['items']:,} items, {DIM} "
            f"dimensions, {LAYERS} layers, {HEADS} heads, windows of {HISTORY}: RecTools {rectools.__version__} and "
            "the lab in turn\n"
        )
        print(
            table(
                [
                    {
                        'batches': r['batches'],
                        'side': r['side'],
                        'sequences': r['sequences'],
                        'items in them': r['places'],
                        'steps': r['steps'],
                        's CPU in all': r['cpu_seconds'],
                        's CPU a step': in_range(r['cpu_of_a_step'], 3),
                        'times as fast, of sums': in_range(r['times_theirs']),
                        'the same work': r['work'],
                    }
                    for r in result['rows']
                ]
            )
        )
    else:
        recipes = {
            loss: how | (dict(batch=16, epochs=3) if o.small else {}) | (dict(autocast=None) if o.single else {})
            for loss, how in RECIPE.items()
        }
        runs, summary = quality(split, o.losses, o.seeds, o.cells or None, recipes)
        result |= dict(
            protocol='leave one out, all items ranked, seen items excluded, chosen and stopped on validation NDCG@10',
            recipe={loss: recipes[loss] for loss in o.losses},
            runs=runs,
            summary=summary,
        )

        def show(v, digits):
            return f'{v[0]:.{digits}f}' + ('' if v[1] is None else f' ± {v[1]:.{digits}f}')

        print(f'\nSASRec on {split.name}; test, mean ± standard deviation over seeds\n')
        print(
            table(
                [
                    {
                        'loss': r['loss'],
                        'seeds': r['seeds'],
                        **{m: show(r[m], 4) for m in SHOWN},
                        'epochs': show(r['epochs'], 0),
                        's CPU': show(r['cpu_seconds'], 0),
                        's wall': show(r['wall_seconds'], 0),
                    }
                    for r in summary
                ]
            )
        )
    result['machine'] |= dict(load_at_end=machine()['load'])
    write(o.out, result)
    print('\nmachine:', result['machine'])


if __name__ == '__main__':
    main()
