"""What an update tells of a client on films, what noise leaves of it and what it costs, and for how many it is cheap.

    python benchmarks/privacy.py FOLDER WORK [--seeds 5] [--out benchmarks/results/privacy.json]

FOLDER is a dated shop, such as that of the films of the other benchmarks; WORK keeps what is done. Everything is about
the base block (three fifths of the pairs, ten or more of a customer and of a film). Clip and rounds are chosen for each
epsilon by validation, in a run of a seed of its own; the test is looked at once. The drawn shops have one clip and one
number of rounds, which were not tuned; epsilon is for delta = clients ** -1.1, by the PRV accountant of opacus.

"""

import argparse
import math
import warnings
from pathlib import Path

from common import cell, machine, quiet, say, table, write

EPSILONS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, None)
FILMS = {  # backbone -> rate, and the clips to choose from
    'FedMF': dict(lr=1.0, clips=(1.0, 3.0, 10.0, 30.0), epsilons=EPSILONS),
    'PFedRec': dict(lr=0.1, clips=(10.0, 30.0, 100.0, 300.0), epsilons=EPSILONS[1::2] + (None,)),
}
ROUNDS = dict(sum=(20, 80), each=(10,))  # to choose from
CHOOSES = 100  # the seed of the runs that clip and rounds are chosen in
RATES = {'FedMF': 1.0, 'FedMLP': 0.1, 'PFedRec': 0.1}


def leak_rows(blocks, a):  # -> list of dict
    "Attacks on the updates of all clients as they are, of every backbone, in one round and in five."
    from vlm2rec_lab.federated.tradeoff import tradeoff_cell

    rows = []
    for name, lr in RATES.items():
        for rounds in (1, 5):
            about = dict(cell='leak', blocks=blocks.fingerprint[:16], backbone=name, rounds=rounds)
            how = dict(rounds=rounds, lr=lr, watched=10**6)
            found = cell(a.work, about | how, lambda: tradeoff_cell(blocks, name, **how))
            for attack, mean in found['leak'].items():
                rows.append(dict(backbone=name, rounds=rounds, attack=attack, clients=found['clients']) | mean)
    return rows


def films_cells(blocks, a):  # -> list of dict
    "Every backbone, epsilon and trust, with its own clip and rounds."
    from vlm2rec_lab.federated.tradeoff import TRUSTS, chosen, tradeoff_cell

    cells, about = [], dict(blocks=blocks.fingerprint[:16])
    for name, how in ((n, FILMS[n]) for n in a.backbones):
        for epsilon in how['epsilons'] if a.epsilons is None else (*a.epsilons, None):
            for trust in TRUSTS if epsilon is not None else ['sum']:
                run = dict(backbone=name, epsilon=epsilon, trust=trust)
                tried = dict(clips=how['clips'], rounds=ROUNDS[trust], seed=CHOOSES, lr=how['lr'])
                best = cell(a.work, about | run | tried | dict(cell='choice'), lambda: chosen(blocks, **run, **tried))
                say(f'{run}: {best}')
                for seed in range(a.seeds):
                    one = run | best | dict(lr=how['lr'], seed=seed, watched=100)
                    cells.append(cell(a.work, about | one | dict(cell='films'), lambda: tradeoff_cell(blocks, **one)))
    return cells


def crowd(users, length=16, items=200):  # -> Blocks
    "A drawn shop with a date for each purchase."
    import numpy as np

    from vlm2rec_lab.federated.blocks import blocks
    from vlm2rec_lab.shop.catalogue import Interactions
    from vlm2rec_lab.shop.dataset import Dataset
    from vlm2rec_lab.studio import make_studio

    studio = make_studio('balanced', seed=0, items=items, users=users, length=length)
    inter, rng = studio.interactions, np.random.default_rng(0)
    days = np.repeat(rng.uniform(0, 70, users), inter.lengths)
    days += 2.0 * (np.arange(len(inter.items)) - np.repeat(inter.offsets[:-1], inter.lengths))
    dated = Interactions(inter.user_ids, inter.offsets, inter.items, 86400.0 * days)
    return blocks(Dataset(studio.catalogue, dated, studio.name), base=0.6, parts=1, core=5)


def crowd_cells(a):  # -> list of dict
    "One setting for shops of several sizes."
    from vlm2rec_lab.federated.tradeoff import tradeoff_cell

    cells = []
    for users in a.crowds:
        shop, seeds = crowd(users), a.seeds if users < 50_000 else 1
        for epsilon in (1.0, 8.0, None):
            for seed in range(seeds):
                one = dict(epsilon=epsilon, seed=seed, clip=100.0, rounds=40, lr=0.1, dim=16, watched=0)
                about = one | dict(cell='crowd', blocks=shop.fingerprint[:16])
                cells.append(cell(a.work, about, lambda: tradeoff_cell(shop, 'PFedRec', **one)))
                say(f'{users} users, epsilon {epsilon}, seed {seed}: {cells[-1]["test"]:.4f}')
    return cells


def rows_of(found):  # DataFrame -> list of dict, ready for JSON
    "Rounded, without what is not there."
    return [
        {k: None if isinstance(v, float) and math.isnan(v) else round(v, 4) if isinstance(v, float) else v
         for k, v in row.items()}
        for row in found.to_dict('records')
    ]  # fmt: skip


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', help='a dated shop')
    p.add_argument('work', type=Path, help='keeps what is done')
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--parts', nargs='+', default=['leak', 'films', 'crowds'], choices=['leak', 'films', 'crowds'])
    p.add_argument('--backbones', nargs='+', default=list(FILMS), choices=list(FILMS), help='on films')
    p.add_argument('--epsilons', nargs='+', type=float, help='besides none')
    p.add_argument('--crowds', nargs='+', type=int, default=[1000, 10_000, 100_000], help='customers of drawn shops')
    p.add_argument('--least', type=int, default=10, help='pairs of a customer, and of an item')
    p.add_argument('--out', type=Path, help='a JSON file')
    a = p.parse_args()
    quiet(1)
    warnings.simplefilter('ignore')
    from vlm2rec_lab.commands.open import open_dataset
    from vlm2rec_lab.federated.blocks import blocks
    from vlm2rec_lab.federated.tradeoff import popular_cell, tradeoff_table

    shop = blocks(open_dataset(a.folder, None), core=a.least)
    found = dict(command=f'python benchmarks/privacy.py FOLDER WORK --seeds {a.seeds}', machine=machine())
    found |= dict(data=shop.name, popular=popular_cell(shop))
    if 'leak' in a.parts:
        found['leak'] = leak_rows(shop, a)
        print(table(found['leak']))
    if 'films' in a.parts:
        found['films'] = rows_of(tradeoff_table(films_cells(shop, a)))
        print(table(found['films']))
    if 'crowds' in a.parts:
        found['crowds'] = rows_of(tradeoff_table(crowd_cells(a)))
        print(table(found['crowds']))
    write(a.out, found)


if __name__ == '__main__':
    main()
