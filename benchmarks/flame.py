"""FLAME on a file of sequences, against a plain SASRec given the same time, an ensemble of two, and mutual learning
from scratch.

python benchmarks/flame.py FILE [--seeds 0 1 2] [--cells runs/benchmarks/flame] [--out benchmarks/results/flame.json]
python benchmarks/flame.py FILE --only epoch | mutual

FILE holds a user per line, `user item item ...`, such as Beauty.txt of S3-Rec (22,363 users, 12,101 items). Leave
one out, windows of 50 items, 64 dimensions, 2 layers, the next item ranked among all that the user has not seen.
All are trained by one function and one
recipe (`FIXED`: dropout .5, Adam 1e-3, batches of 256, stopped 30 epochs after the best validation NDCG@20), which
is that of the paper; over how many epochs the contrastive share falls (`rounds`) it leaves open, and 100 was set
beforehand. Nothing is chosen on test rows. The matrix products of the full loss are in bfloat16; `--single` leaves
them in float32. Per seed: a network that is frozen afterwards, FLAME beside it, mutual learning of two networks, a
plain network until it has
used the CPU seconds of the first two (its own early stop is a row too), and the ensemble of the frozen and the
plain network, each at its early stop. Every run keeps its state after every epoch and its result when done, so that
the same command goes on where it was stopped.
"""

import argparse
import hashlib
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import cell, circles, in_range, interleave, machine, quantiles, quiet, ratio_of_sums, say, table, write
from safetensors.torch import load_file, save

from vlm2rec_lab.data import leave_one_out, write_bytes
from vlm2rec_lab.recommenders.fit import figures, fit, rank_rows
from vlm2rec_lab.recommenders.flame import RECIPE, Ensemble, flame, mutual
from vlm2rec_lab.recommenders.seqrec import ItemTable, SASRec
from vlm2rec_lab.shop.readers import sequence_file
from vlm2rec_lab.train import entire, previous, read_checkpoint

FIXED = dict(
    RECIPE,
    dropout=0.5,
    dim=64,
    layers=2,
    heads=2,
    history=50,
    modules=2,
    rounds=100,
    shares=(1.0, 1e-5),
    agree='product',
)
PAPER = dict(gain=9.70, speed=7.69)  # 'up to', of its abstract
SHOWN = ('HR@10', 'NDCG@10', 'HR@20', 'NDCG@20')
RIVALS = ('SASRec, early stop', 'SASRec, same time', 'ensemble of two', 'mutual from scratch')


def make(split, how, seed):  # -> SASRec
    return SASRec(
        ItemTable(len(split.catalogue), how['dim'], seed=seed),
        layers=how['layers'],
        heads=how['heads'],
        dropout=how['dropout'],
        length=how['history'],
        seed=seed,
    )


def early(
    valid, patience
):  # validation figures, epoch by epoch -> (epochs until the early stop, best epoch until then)
    "Where a run of more epochs would have ended."
    for n in range(1, len(valid) + 1):
        if n - 1 - int(np.argmax(valid[:n])) >= patience:
            break
    return n, int(np.argmax(valid[:n])) + 1


def outcome(records, stop, best):  # -> dict of a run until an epoch
    v, spent = (
        [r['NDCG@20'] for r in records[:stop]],
        lambda e: dict(
            epoch=e,
            cpu=round(sum(r['cpu'] for r in records[:e]), 2),
            seconds=round(sum(r['seconds'] for r in records[:e]), 2),
        ),
    )
    return dict(
        epochs=stop,
        best=best,
        valid=round(max(v), 6),
        to95=spent(next(e for e, x in enumerate(v, 1) if x >= 0.95 * max(v))),
        **{k: x for k, x in spent(stop).items() if k != 'epoch'},
        curve=[round(x, 6) for x in v],
        clock=[[round(r['cpu'], 2), round(r['seconds'], 2)] for r in records[:stop]],
    )


def tested(model, split):  # -> dict
    found = figures(model, split).loc['all']
    return {m: round(float(found[m]), 6) for m in SHOWN}


def state(folder, epoch):
    return folder / 'states' / f'{epoch}.safetensors'


def keep_states(model, folder, patience):  # -> callback that writes the state after every epoch until the early stop
    "An ensemble's figures epoch by epoch need them. What a killed run had not written yet is in its checkpoint."
    names = dict(model.named_parameters())

    def put(epoch, tensors):
        write_bytes(state(folder, epoch), save({n: t.detach().contiguous() for n, t in tensors.items()}))

    last = folder / 'fit.safetensors'
    if last.exists() or previous(last).exists():
        try:
            kept, run = read_checkpoint(last)
        except ValueError:
            kept, run = read_checkpoint(previous(last))
        if not state(folder, len(run['records'])).exists():
            put(len(run['records']), {n: kept[f'parameter/{n}'] for n in names})

    def after(records):
        if early([r['NDCG@20'] for r in records], patience)[0] == len(records):
            put(len(records), names)

    (folder / 'states').mkdir(parents=True, exist_ok=True)
    return after


def told(what, *others):  # -> callback that says each epoch, and asks others whether to stop
    def callback(records):
        r = records[-1]
        say(
            f"{what}, epoch {r['epoch']}: loss {r['loss']:.4f}, validation NDCG@20 {r['NDCG@20']:.4f}, {r['cpu']:.1f} "
            f"s CPU, {r['seconds']:.1f} s"
        )
        return 'stop' if 'stop' in [other(records) for other in others] else None

    return callback


class Course:
    "The runs of one seed, each in a cell and a folder of its own."

    def __init__(self, split, how, seed, autocast, cells):
        self.split, self.how, self.seed, self.cells = split, how, seed, Path(cells)
        self.training = {k: how[k] for k in RECIPE} | dict(seed=seed, autocast=autocast, progress=False)
        self.guided = {k: how[k] for k in ('modules', 'rounds', 'shares', 'agree')}
        self.settings = dict(split=split.fingerprint, seed=seed, autocast=autocast, **how)

    def folder(self, name):
        settings = json.dumps(self.settings, sort_keys=True).encode()
        return self.cells / f'{name}-{self.seed}-{hashlib.sha256(settings).hexdigest()[:10]}'

    def cell(self, name, work):
        return cell(self.cells, dict(cell=f'{name}-{self.seed}', **self.settings), work)

    def net(self, seed):
        return make(self.split, self.how, seed)

    def read(self, name, epoch):
        model = self.net(0)
        model.load_state_dict(load_file(state(self.folder(name), epoch)))
        return model

    def finish(self, name, model, run, ended=False):  # keeps the best weights; ended: by what was to end it
        records = (run if ended else entire(run, f'{name} {self.seed}', 'the same command goes on')).frame.to_dict(
            'records'
        )
        stop, best = early(run.frame['NDCG@20'].tolist(), self.how['patience'])
        write_bytes(
            self.folder(name) / 'best.safetensors',
            save({n: p.detach().contiguous() for n, p in model.named_parameters()}),
        )
        return outcome(records, stop, best)

    def best(self, name):
        model = self.net(0)
        model.load_state_dict(load_file(self.folder(name) / 'best.safetensors'))
        return model

    def anchor(self):
        model, folder = self.net(1000 + self.seed), self.folder('anchor')
        run = fit(
            model,
            self.split,
            folder=folder,
            epochs=self.how['rounds'],
            callback=told(f'frozen network {self.seed}', keep_states(model, folder, self.how['patience'])),
            **self.training | dict(seed=1000 + self.seed),
        )
        return self.finish('anchor', model, run) | dict(test=tested(model, self.split))

    def flame(self):
        model = self.net(self.seed)
        run = flame(
            model,
            self.best('anchor'),
            self.split,
            folder=self.folder('flame'),
            callback=told(f'FLAME {self.seed}'),
            **self.guided,
            **self.training,
        )
        return self.finish('flame', model, run) | dict(test=tested(model, self.split))

    def mutual(self):
        one, two = self.net(self.seed), self.net(1000 + self.seed)
        run = mutual(
            one,
            two,
            self.split,
            folder=self.folder('mutual'),
            callback=told(f'mutual {self.seed}'),
            **self.guided,
            **self.training,
        )
        return self.finish('mutual', one, run) | dict(test=tested(one, self.split))

    def plain(self, budget):  # CPU seconds -> dict of two outcomes
        model, folder, patience = self.net(self.seed), self.folder('plain'), self.how['patience']

        def enough(records):
            return (
                'stop'
                if sum(r['cpu'] for r in records) >= budget
                and (
                    early([r['NDCG@20'] for r in records], patience)[0] < len(records)
                    or len(records) >= self.how['rounds']
                )
                else None
            )

        run = fit(
            model,
            self.split,
            folder=folder,
            epochs=10**6,
            callback=told(f'plain {self.seed}', keep_states(model, folder, patience), enough),
            **self.training | dict(patience=None),
        )
        self.finish('plain', model, run, ended=enough(run.frame.to_dict('records')) == 'stop')
        records, valid = run.frame.to_dict('records'), run.frame['NDCG@20'].tolist()
        stop, best = early(valid, patience)
        within = max(int((run.frame.cpu.cumsum() <= budget).sum()), 1)  # epochs that the time is enough for
        late = int(np.argmax(valid[:within])) + 1
        longer = (
            self.read('plain', late) if state(folder, late).exists() else model
        )  # the best of all, where it is later than the early stop
        return dict(
            early=outcome(records, stop, best) | dict(test=tested(self.read('plain', best), self.split)),
            same=outcome(records, within, late) | dict(test=tested(longer, self.split), budget=round(budget, 2)),
        )

    def ensemble(self, anchor, plain):  # outcomes of the members -> dict
        def figure(nets):
            return float(figures(Ensemble(nets), self.split, 'valid', 20, ('NDCG',)).loc['all', 'NDCG@20'])

        both = Ensemble([self.read('anchor', anchor['best']), self.read('plain', plain['best'])])
        final, curve, clock = (
            figure(list(both.nets)),
            [],
            lambda e, k: round(sum(c[k] for m in (anchor, plain) for c in m['clock'][:e]), 2),
        )
        for e in range(1, max(anchor['epochs'], plain['epochs']) + 1):
            curve.append(figure([self.read(n, min(e, m['epochs'])) for n, m in (('anchor', anchor), ('plain', plain))]))
            say(f'ensemble {self.seed}, epoch {e}: validation NDCG@20 {curve[-1]:.4f} of {final:.4f}')
            if curve[-1] >= 0.95 * final:
                break
        return dict(
            epochs=anchor['epochs'] + plain['epochs'],
            valid=round(final, 6),
            to95=dict(epoch=e, cpu=clock(e, 0), seconds=clock(e, 1)),
            cpu=round(anchor['cpu'] + plain['cpu'], 2),
            seconds=round(anchor['seconds'] + plain['seconds'], 2),
            curve=[round(x, 6) for x in curve],
            test=tested(both, self.split),
        )

    def cost(self, anchor, plain, rounds):  # -> {name: dict}
        "Vectors of 1,000 users and their ranking over all items, in turn."
        few = replace(self.split, test=self.split.test.take(np.arange(min(1000, len(self.split.test)))))
        models = {
            'SASRec': self.read('plain', plain['best']),
            'FLAME': self.best('flame'),
            'mutual from scratch': self.best('mutual'),
            'ensemble of two': Ensemble([self.read('anchor', anchor['best']), self.read('plain', plain['best'])]),
        }
        spent, out = interleave({n: lambda r, m=m: rank_rows(m, few) for n, m in models.items()}, rounds, 2), {}
        base = np.array(spent['SASRec'])[:, 1]
        for n, m in models.items():
            v = np.array(spent[n]) * 1000 / len(few.test)
            out[n] = dict(
                users=len(few.test),
                seconds=quantiles(v[:, 0]),
                cpu=quantiles(v[:, 1]),
                ratio=ratio_of_sums(np.array(spent[n])[:, 1], base),
                parameters=sum(p.numel() for p in m.parameters()),
            )
        return out

    def epoch(self, rounds):  # -> {name: dict}
        """A first epoch of each, validation included, in turn; what is frozen is a network that has not learned, which
        costs the same."""
        how, runs, other = self.training | dict(epochs=1), {}, lambda: self.net(1000 + self.seed)
        runs['SASRec'] = lambda r: fit(self.net(self.seed), self.split, **how)
        runs['FLAME'] = lambda r: flame(self.net(self.seed), other(), self.split, **self.guided, **how)
        runs['mutual from scratch'] = lambda r: mutual(self.net(self.seed), other(), self.split, **self.guided, **how)
        spent = interleave(runs, rounds, 0)
        return {
            n: dict(
                cpu=quantiles(np.array(v)[:, 1]),
                seconds=quantiles(np.array(v)[:, 0]),
                ratio=ratio_of_sums(np.array(v)[:, 1], np.array(spent['SASRec'])[:, 1]),
            )
            for n, v in spent.items()
        }

    def run(self, rounds):  # -> dict of the seed
        anchor = self.cell('anchor', self.anchor)
        guided = self.cell('flame', self.flame)
        plain = self.cell('plain', lambda: self.plain(anchor['cpu'] + guided['cpu']))
        ensemble = self.cell('ensemble', lambda: self.ensemble(anchor, plain['early']))
        peers = self.cell('mutual', self.mutual)
        cost = self.cell('cost', lambda: self.cost(anchor, plain['early'], rounds))
        for name in ('anchor', 'plain'):
            shutil.rmtree(self.folder(name) / 'states', ignore_errors=True)  # all that asks for them is done
        return dict(
            seed=self.seed,
            runs={
                'frozen network': anchor,
                'SASRec, early stop': plain['early'],
                'SASRec, same time': plain['same'],
                'ensemble of two': ensemble,
                'mutual from scratch': peers,
                'FLAME': guided,
            },
            cost=cost,
        )


def at_goal(run, goal):  # -> CPU seconds, or None
    "When a run's validation first stood at a figure that was not its own."
    e = next((e for e, x in enumerate(run['curve'], 1) if x >= goal), None)
    return None if e is None or 'clock' not in run else round(sum(c[0] for c in run['clock'][:e]), 2)


def rows(seeds):  # -> list of dict, one per recommender: mean and deviation over seeds
    def spread(v):
        return (
            None
            if any(x is None for x in v)
            else [round(float(np.mean(v)), 6), round(float(np.std(v, ddof=1)), 6) if len(v) > 1 else None]
        )

    out = []
    for name in (*RIVALS, 'FLAME'):
        runs, before = (
            [s['runs'][name] for s in seeds],
            [s['runs']['frozen network'] if name == 'FLAME' else dict(cpu=0.0, seconds=0.0) for s in seeds],
        )
        goals = [0.95 * s['runs']['ensemble of two']['valid'] for s in seeds]
        common = [r['to95']['cpu'] if name == 'ensemble of two' else at_goal(r, g) for r, g in zip(runs, goals)]
        out.append(
            dict(
                recommender=name,
                seeds=len(runs),
                test={m: spread([r['test'][m] for r in runs]) for m in SHOWN},
                valid=spread([r['valid'] for r in runs]),
                epochs=spread([r['epochs'] for r in runs]),
                epochs_to95=spread([r['to95']['epoch'] for r in runs]),
                cpu_to95=spread([r['to95']['cpu'] for r in runs]),
                seconds_to95=spread([r['to95']['seconds'] for r in runs]),
                cpu_to95_with_pretraining=spread([r['to95']['cpu'] + b['cpu'] for r, b in zip(runs, before)]),
                seconds_to95_with_pretraining=spread(
                    [r['to95']['seconds'] + b['seconds'] for r, b in zip(runs, before)]
                ),
                cpu=spread([r['cpu'] + b['cpu'] for r, b in zip(runs, before)]),
                cpu_to_common_goal=spread(common),
            )
        )
    return out


def in_plain_epochs(result):  # -> {recommender: (without, with pre-training)}, mean over seeds
    """What 95 % of the own end costs, in epochs of a plain SASRec: epochs, times what one costs where they run in
    turn. Free of what else the machine did."""
    each = {'ensemble of two': 2.0} | {n: e['ratio'][0] for n, e in result['epoch'].items()}
    before = float(np.mean([s['runs']['frozen network']['epochs'] for s in result['seeds']]))
    spent = {r['recommender']: r['epochs_to95'][0] * each.get(r['recommender'], 1.0) for r in result['rows']}
    return {n: (e, e + before * (n == 'FLAME')) for n, e in spent.items()}


def verdicts(
    claims,
):  # -> list of dict, a row per rival; figures of each seed, since a claim holds under every one or not at all
    head = {
        ('better', None): f"test NDCG@20, % (paper: up to +{PAPER['gain']:.2f})",
        ('faster', False): f"times as fast (up to {PAPER['speed']:.2f}), pre-training not counted",
        ('faster', True): 'times as fast, pre-training counted',
    }

    def told(c):
        form = '+.2f' if c['claim'] == 'better' else '.2f'
        each = ', '.join(format(v, form) for v in c['values'])
        return f'{np.mean(c["values"]):{form}} ({each}): {"holds" if c["holds"] else "does not hold"}'

    cells = {(c['claim'], c.get('pretraining'), c['against']): told(c) for c in claims}
    return [{'FLAME against': rival, **{h: cells[(*kind, rival)] for kind, h in head.items()}} for rival in RIVALS]


def claims(seeds):  # -> list of dict(claim, against, values, holds, sentence)
    """What the paper says, and whether it is so here. Better: under every seed. Faster: under every seed, and to a
    figure that is not below 95 % of the rival's. Cost: within 10 %."""
    out, verdict = [], lambda ok: 'holds here' if ok else 'does not hold here'

    def many(v, f):
        return ', '.join(f.format(x) for x in v)

    for rival in RIVALS:
        v = [
            100 * (s['runs']['FLAME']['test']['NDCG@20'] / max(s['runs'][rival]['test']['NDCG@20'], 1e-12) - 1)
            for s in seeds
        ]
        out.append(
            dict(
                claim='better',
                against=rival,
                values=v,
                holds=min(v) > 0,
                sentence=f"Better NDCG@20 (paper: up to {PAPER['gain']:.2f} %) {verdict(min(v) > 0)} against {rival}: "
                f"{np.mean(v):+.2f} % on test, per seed {many(v, '{:+.2f}')}.",
            )
        )
    for rival in RIVALS:
        for counted in (False, True):
            v = [
                s['runs'][rival]['to95']['cpu']
                / max(s['runs']['FLAME']['to95']['cpu'] + counted * s['runs']['frozen network']['cpu'], 1e-9)
                for s in seeds
            ]
            ends = [s['runs']['FLAME']['valid'] / s['runs'][rival]['valid'] for s in seeds]
            ok = min(v) > 1 and min(ends) >= 0.95
            out.append(
                dict(
                    claim='faster',
                    against=rival,
                    pretraining=counted,
                    values=v,
                    final=ends,
                    holds=ok,
                    sentence=f"Faster convergence (paper: up to {PAPER['speed']:.2f} times) {verdict(ok)} against "
                    f"{rival}, pre-training {'counted' if counted else 'not counted'}: {np.mean(v):.2f} times "
                    "as fast in CPU seconds to 95 % of the own final validation NDCG@20, per seed "
                    f"{many(v, '{:.2f}')}; "
                    f"that final figure is {np.mean(ends):.2f} of the rival's.",
                )
            )
    v, sizes = (
        [s['cost']['FLAME']['ratio'][0] for s in seeds],
        [s['cost']['FLAME']['parameters'] == s['cost']['SASRec']['parameters'] for s in seeds],
    )
    ok = all(sizes) and max(abs(x - 1) for x in v) < 0.1
    out.append(
        dict(
            claim='cost',
            against='SASRec',
            values=v,
            holds=ok,
            sentence=f"The inference cost of one network {verdict(ok)}: {np.mean(v):.2f} of SASRec's CPU seconds, "
            f"{'as many' if all(sizes) else 'other'} parameters; the ensemble takes "
            f"{np.mean([s['cost']['ensemble of two']['ratio'][0] for s in seeds]):.2f}.",
        )
    )
    return out


def show_epoch(epoch):
    print('\nAn epoch of training with its validation, in turn\n')
    print(
        table(
            [
                {
                    'recommender': n,
                    's CPU': e['cpu'][0],
                    's wall': e['seconds'][0],
                    'ratio': in_range(e['ratio']),
                }
                for n, e in epoch.items()
            ]
        )
    )


def show(result):
    show_epoch(result['epoch'])

    def pm(v, d, f=1.0):
        return 'not reached' if v is None else f'{v[0] * f:.{d}f}' + ('' if v[1] is None else f' ± {v[1] * f:.{d}f}')

    print(
        f"\n{result['data']}; test figures and seconds, mean ± standard deviation over seeds "
        f"{', '.join(str(s['seed']) for s in result['seeds'])}\n"
    )
    print(
        table(
            [
                {
                    'recommender': r['recommender'],
                    **{m: pm(r['test'][m], 4) for m in SHOWN},
                    'validation NDCG@20': pm(r['valid'], 4),
                    'epochs': pm(r['epochs'], 0),
                    's CPU in all': pm(r['cpu'], 0),
                }
                for r in result['rows']
            ]
        )
    )
    print(
        '\nUntil 95 % of the own final validation NDCG@20; the last column until 95 % of the ensemble\'s, without '
        'pre-training\n'
    )
    print(
        table(
            [
                {
                    'recommender': r['recommender'],
                    'epochs': pm(r['epochs_to95'], 0),
                    's CPU': pm(r['cpu_to95'], 0),
                    's wall': pm(r['seconds_to95'], 0),
                    's CPU, pre-training counted': pm(r['cpu_to95_with_pretraining'], 0),
                    's wall, pre-training counted': pm(r['seconds_to95_with_pretraining'], 0),
                    's CPU to the ensemble\'s': pm(r['cpu_to_common_goal'], 0),
                }
                for r in result['rows']
            ]
        )
    )
    print('\nInference, the first seed: 1,000 users, vectors and full ranking\n')
    print(
        table(
            [
                {
                    'recommender': n,
                    'parameters': f"{c['parameters']:,}",
                    's wall': c['seconds'][0],
                    's CPU': c['cpu'][0],
                    'ratio': in_range(c['ratio']),
                }
                for n, c in result['seeds'][0]['cost'].items()
            ]
        )
    )
    print('\n' + '\n'.join(c['sentence'] for c in result['claims']))
    print('\nmachine:', result['machine'])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', nargs='?', help='file of sequences, `user item item ...`')
    parser.add_argument(
        '--small', action='store_true', help='a toy setting that runs in seconds; its figures mean nothing'
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--rounds', type=int, default=FIXED['rounds'], help='planned epochs, at most so many are run')
    parser.add_argument('--modules', type=int, default=FIXED['modules'], help='that networks are cut into')
    parser.add_argument('--agree', default=FIXED['agree'], help='what pairs are weighted by')
    parser.add_argument('--single', action='store_true', help='float32 everywhere')
    parser.add_argument('--cells', default='runs/benchmarks/flame', help='folder that keeps runs, finished or not')
    parser.add_argument(
        '--only',
        choices=('epoch', 'mutual'),
        help='what an epoch costs, or mutual learning, and nothing else: in a process of its own, beside the others',
    )
    parser.add_argument('--out', help='JSON file to write')
    o = parser.parse_args()
    if not o.file and not o.small:
        parser.exit(2, 'say which file of sequences: python benchmarks/flame.py Beauty.txt\n')
    quiet()
    warnings.simplefilter('ignore')
    autocast, start, how = (
        None if o.single else 'bfloat16',
        machine(),
        FIXED | dict(rounds=o.rounds, modules=o.modules, agree=o.agree),
    )
    if o.small:
        how |= dict(dim=16, batch=16, lr=1e-2, patience=2, rounds=4, dropout=0.2)
    split = leave_one_out(circles(20) if o.small else sequence_file(o.file), history=how['history'])
    courses = [Course(split, how, seed, autocast, o.cells) for seed in o.seeds]
    if o.only == 'mutual':
        for course in courses:
            course.cell('mutual', course.mutual)
        return
    epoch = courses[0].cell('epoch', lambda: courses[0].epoch(1 if o.small else 3))
    if o.only:
        show_epoch(epoch)
        write(
            o.out,
            dict(
                benchmark='flame_epoch',
                small=o.small,
                machine=start | dict(load_at_end=machine()['load']),
                data=split.name,
                autocast=autocast,
                recipe=how,
                epoch=epoch,
            ),
        )
        return
    seeds = [course.run(2 if o.small else 12) for course in courses]
    result = dict(
        benchmark='flame',
        small=o.small,
        machine=start | dict(load_at_end=machine()['load']),
        data=split.name,
        items=len(split.catalogue),
        autocast=autocast,
        recipe=how,
        protocol='leave one out, all items ranked, seen items excluded, chosen and stopped on validation NDCG@20',
        epoch=epoch,
        rows=rows(seeds),
        claims=claims(seeds),
        seeds=seeds,
    )
    show(result)
    write(o.out, result)


if __name__ == '__main__':
    main()
