"""A folder as large as a fashion shop, to see what the commands take of time and memory there.

python benchmarks/size.py FOLDER [--products 15000] [--customers 67000] [--seed 0]
                          [--demo] [--out benchmarks/results/size.json]

Products are drawn and their texts written, so no quality of a model can be read off it: only its cost. Few
products make most of the sales; a customer has tastes, buys some things again, some with others, and five to a
hundred in all, known by day. A folder that is there is taken as it is.

`--demo` then runs `vlm2rec demo --data FOLDER --model real` from the beginning, on one thread, in a folder of its own
that is removed afterwards, and keeps what it took and the last lines that it printed. Wall seconds depend on what else
the machine does, which `load` tells.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import machine, say, write
from PIL import Image

from vlm2rec_lab.shop.drawn import ATTRIBUTES, SEEN, draw_product

PEOPLE = ('ladies', 'men', 'girls', 'boys', 'baby', 'sport', 'home', 'party')
LINES = ('basics', 'denim', 'knitwear', 'trend', 'office', 'outdoor', 'night', 'heritage')
FITS = ('relaxed', 'slim', 'loose', 'short', 'long', 'wide')
DETAILS = ('a pocket', 'a zip', 'buttons', 'a drawstring', 'a print in front', 'a hood', 'lace', 'no lining')
VALUES = {**ATTRIBUTES, 'department': [f'{p} {x}' for p in PEOPLE for x in LINES], 'fit': FITS, 'detail': DETAILS}
PATH = os.environ.get('PYTHONPATH')
SEGMENTS = 300  # groups of customers with a taste
TASTE = dict(category=1.5, colour=1.0, pattern=0.7, department=2.5, material=0.5, fit=0.5)  # log weight of a wish


def make_attributes(products, rng):  # -> {name: int [products]}
    "What each product is: departments are of very different sizes."
    out = {a: rng.integers(0, len(v), products) for a, v in VALUES.items()}
    share = rng.dirichlet(np.full(len(VALUES['department']), 0.7))
    return out | dict(department=rng.choice(len(share), products, p=share))


def write_items(folder, attributes, rng):
    "items.csv: a name, a few short columns, and one or two sentences."
    said = {a: np.array(VALUES[a], object)[k] for a, k in attributes.items()}
    n, rows = len(attributes['category']), []
    for i in range(n):
        a = {k: v[i] for k, v in said.items()}
        name = f'{a["maker"]} {a["category"]}' + (f' {a["fit"]}' if rng.random() < 0.5 else '')
        about = f'{a["fit"].capitalize()} {a["category"]} in {a["material"]} with {a["detail"]}.'
        if rng.random() < 0.6:
            about += f' {a["pattern"].capitalize()}, for {a["department"]}.'
        short = dict(type=a['category'], colour=a['colour'], department=a['department'])
        rows.append(dict(item_id=f'{10**8 + 37 * i}', title=name, **short, description=about, image=f'images/{i}.jpg'))
    pd.DataFrame(rows).to_csv(folder / 'items.csv', index=False)
    return [r['item_id'] for r in rows]


def draw_items(folder, attributes, rng, side):
    "images/*.jpg, drawn small and enlarged: the work of a decoder is that of a picture of `side` pixels."
    (folder / 'images').mkdir(exist_ok=True)
    for i in range(len(attributes['category'])):
        seen = {a: VALUES[a][attributes[a][i]] for a in SEEN}
        picture = Image.fromarray(draw_product(seen, rng, size=64)).resize((side, side))
        picture.save(folder / 'images' / f'{i}.jpg', quality=85)
        if (i + 1) % 2500 == 0:
            say(f'{i + 1:,} pictures')


def lengths_of(customers, rng):  # -> int [customers]
    "Purchases of each customer, from 5 to 100: half have fewer than ten."
    return np.clip(5 + rng.lognormal(1.5, 1.1, customers), 5, 100).astype(int)


def tastes_of(attributes, rng):  # -> float [SEGMENTS, products], cumulated chances
    "What a group buys: best sellers, and what has the values it wishes for."
    n = len(attributes['category'])
    weight = np.tile(1.1 * rng.standard_normal(n), (SEGMENTS, 1))
    for a, w in TASTE.items():
        wish = rng.integers(0, len(VALUES[a]), SEGMENTS)
        weight += w * (attributes[a] == wish[:, None])
    chance = np.exp(weight)
    return np.cumsum(chance / chance.sum(1, keepdims=True), 1)


def walk(attributes, customers, rng):  # -> customer, product, day: int [purchases]
    "Purchases, step by step for all customers at once."
    n, cumulated, lengths = len(attributes['category']), tastes_of(attributes, rng), lengths_of(customers, rng)
    taste = rng.integers(0, SEGMENTS, (customers, 2))
    partner = rng.integers(0, n, (n, 2))  # what is bought together with each product
    bought = np.full((customers, lengths.max()), -1)
    day, at, parts = rng.integers(0, 400, customers), np.arange(customers), []
    for t in range(lengths.max()):
        at = at[lengths[at] > t]
        mine = taste[at, (rng.random(len(at)) < 0.3).astype(int)]
        new, place = np.empty(len(at), int), rng.random(len(at))
        order = np.argsort(mine, kind='stable')
        for g, rows in zip(*_groups(mine[order], order)):
            new[rows] = np.minimum(np.searchsorted(cumulated[g], place[rows]), n - 1)
        if t:
            how = rng.random(len(at))
            before = bought[at, t - 1]
            again = bought[at, rng.integers(0, t, len(at))]
            new = np.where(how < 0.08, again, np.where(how < 0.25, partner[before, rng.integers(0, 2, len(at))], new))
        bought[at, t] = new
        day[at] += np.where(rng.random(len(at)) < 0.45, 0, rng.geometric(0.05, len(at)))  # a basket is of one day
        parts.append((at, new, day[at].copy()))
    return (np.concatenate(x) for x in zip(*parts))


def _groups(values, order):
    "Values that occur in a sorted array, and the rows of each."
    names, starts = np.unique(values, return_index=True)
    return names, np.split(order, starts[1:])


def make_shop(folder, products, customers, seed=0, side=256):  # -> the folder
    "Write items.csv, images and interactions.csv."
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, products])
    attributes = make_attributes(products, rng)
    ids = np.array(write_items(folder, attributes, rng))
    draw_items(folder, attributes, rng, side)
    customer, product, day = walk(attributes, customers, rng)
    dates = (np.datetime64('2018-09-01') + day).astype(str)
    sold = pd.DataFrame(dict(user_id=customer, item_id=ids[product], timestamp=dates))
    sold.sort_values(['timestamp', 'user_id'], kind='stable').to_csv(folder / 'interactions.csv', index=False)
    top = np.sort(np.bincount(product, minlength=products))[::-1]
    share = top[: products // 10].sum() / top.sum()
    about = dict(products=products, customers=customers, purchases=len(sold), seed=seed, pixels=side)
    about |= dict(share_of_the_first_tenth=round(float(share), 3))
    (folder / 'about.json').write_text(json.dumps(about))
    say(f'{folder}: {about}')
    return folder


def run_demo(folder):  # -> dict: CPU seconds, wall seconds and memory of the demo, and its last lines
    "The demo as a user runs it, with nothing kept from before."
    argv = [sys.executable, '-m', 'vlm2rec_lab', 'demo', '--data', str(Path(folder).resolve()), '--model', 'real']
    root = str(Path(__file__).resolve().parents[1])
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(filter(None, [root, PATH]))}
    begun, lines = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as work:
        child = subprocess.Popen(argv, cwd=work, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in child.stdout:
            lines.append(line.rstrip())
            say(lines[-1])
        code = child.wait()
    took = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = dict(code=code, seconds=round(time.perf_counter() - begun), cpu=round(took.ru_utime + took.ru_stime))
    return found | dict(peak_mb=round(took.ru_maxrss * 1024 / 1e6), said=[x for x in lines if x][-2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', help='where to write it')
    parser.add_argument('--products', type=int, default=15_000)
    parser.add_argument('--customers', type=int, default=67_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--side', type=int, default=256, help='pixels of a picture')
    parser.add_argument('--demo', action='store_true', help='run the demo on it')
    parser.add_argument('--out', type=Path, help='write what the demo took as JSON here')
    o = parser.parse_args()
    if not (Path(o.folder) / 'about.json').exists():
        make_shop(o.folder, o.products, o.customers, o.seed, o.side)
    if not o.demo:
        return
    about = json.loads((Path(o.folder) / 'about.json').read_text())
    found = dict(benchmark='size', machine=machine(), shop=about, demo=run_demo(o.folder))
    say(json.dumps(found['demo']))
    write(o.out, found)
    sys.exit(found['demo']['code'])


if __name__ == '__main__':
    main()
