"""Prompt models in drawn shops whose truth is known: do they look at pictures, do they find new items, is what they
explain true, and what is lost by learning less of T5?

    python benchmarks/prompt_worlds.py --cells FOLDER [--worlds seen others complementary new learn why]
                                       [--models NAME ...] [--seeds 3] [--device cuda] [--jobs 1]
                                       [--seconds S] [--out FOLDER] [--size large]

The shops have 200 products; contents are what a perfect encoder would tell of them, a 1 for each value of an attribute
that the text tells or the picture shows. Customers of the test are others than those of training; everything is asked
by full ranking of what a customer has not seen. The shipped tiny T5 is taught by 4 purchases of each of 2,000 customers
in 12 epochs (`--size large`: 8 of 3,000 in 20, for a GPU), the state with the best validation NDCG@10 is kept; seeds
are of names, models and trainings, in one shop.

- `seen`: what pictures show drives taste, and ids, drawn at random, tell nothing. Prompts say names, show pictures,
  or both.
- `others`: the same shop, every product with the picture of another: there is nothing to see.
- `complementary`: ids are codes of the texts, and taste lives in what only text or only picture knows.
- `new`: a tenth of the products come after training; ids at random, and codes of text and picture.
- `learn`: the first shop with names and pictures, learned by adapters of several widths, by LoRA, and by everything.
- `why`: reasons for a purchase, with and without pictures.

A cell is a process of its own and is kept; `--jobs` cells run at a time, and after `--seconds` no new one begins and
those that run are stopped. `--out` writes prompt_worlds.csv of the seeds that every way has, prompt_new.csv,
prompt_reports.csv, what `collapse_report` says of models of names and pictures, and prompt_why.csv.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import cell, machine, quiet, say, table, write

WHOLE = dict(learn='everything')
NAMES, CONTENTS, BOTH = (dict(way=w, shown=['image']) for w in ('names', 'contents', 'both'))
CODED = dict(ids='codes', coded=['text'])
WORLDS = {  # world -> (settings of the shop, {name: settings of the model})
    'seen': (dict(), {'names': NAMES | WHOLE, 'contents': CONTENTS | WHOLE, 'both': BOTH | WHOLE}),
    'others': (dict(others=True), {'contents': CONTENTS | WHOLE, 'both': BOTH | WHOLE}),
    'complementary': (
        dict(condition='complementary'),
        {k: v | CODED | WHOLE for k, v in dict(names=NAMES, contents=CONTENTS, both=BOTH).items()},
    ),
    'new': (
        dict(new=0.1),
        {'random ids': BOTH | WHOLE, 'codes': BOTH | WHOLE | dict(ids='codes')},
    ),
    'learn': (
        dict(),
        {f'adapters, reduction {r}': BOTH | dict(learn='adapters', reduction=r) for r in (2, 8, 32)}
        | {'lora, rank 8': BOTH | dict(learn='lora')},
    ),
}
WHY = {'with pictures': BOTH | WHOLE | dict(ids='codes'), 'without pictures': NAMES | WHOLE | CODED}
SHOP = dict(condition='balanced', users=3000, items=200, new=0.0, others=False)
TRAINING = dict(epochs=20, draws=8, batch=256, lr=5e-3)
SIZES = {  # what is less than that
    'large': ({}, {}),
    'normal': (dict(users=2000), dict(epochs=12, draws=4, batch=64)),
    'small': (dict(users=40, items=40), dict(epochs=1, draws=1, batch=32)),
}


def shop_of(condition, users, items, new, others, **_):  # -> Studio, Split, vectors
    "A drawn shop, and what a perfect encoder tells of its products."
    import warnings

    import numpy as np

    from vlm2rec_lab.diagnosis.memory import exchange
    from vlm2rec_lab.shop.drawn import ATTRIBUTES, SEEN, TOLD, make_studio

    asked = min(1000, users)  # of the test
    warnings.simplefilter('ignore')
    studio = make_studio(condition, seed=0, items=items, users=users + asked + 200, length=9, new=new, image_size=16)
    split = studio.split(train=users, valid=200, test=asked, history=6)
    each = {a: np.eye(len(v), dtype=np.float32)[studio.attributes[a]] for a, v in ATTRIBUTES.items()}
    vectors = {m: np.concatenate([each[a] for a in of], 1) for m, of in (('text', TOLD), ('image', SEEN))}
    if others:
        vectors['image'] = vectors['image'][exchange(items, 0)]
    return studio, split, vectors


def next_cell(a):  # -> dict
    "A model that is asked what comes next."
    from vlm2rec_lab.prompts.study import prompt_cell
    from vlm2rec_lab.studio import ranking_ndcg

    studio, split, vectors = shop_of(**a['shop'])
    how = dict(
        every=5,
        progress=False,
        seed=a['seed'],
        device=a['device'],
        model=a['model'],
        report=a['model']['way'] == 'both',
    )
    found = prompt_cell(split, vectors, **how, **a['training'])
    known = {m or 'all': ranking_ndcg(studio.oracle(split.test, m), split.test) for m in (None, 'text', 'image')}
    return found | dict(oracle=known)


def why_cell(a):  # -> dict: texts, references, and how true they are
    "A model that gives reasons."
    import numpy as np

    from vlm2rec_lab.prompts.diagnosis import CHANGES, changed
    from vlm2rec_lab.prompts.fit import fit_prompts
    from vlm2rec_lab.prompts.lessons import customer_names
    from vlm2rec_lab.prompts.study import make_prompts
    from vlm2rec_lab.prompts.t5 import open_t5, tiny_t5
    from vlm2rec_lab.prompts.templates import templates_for
    from vlm2rec_lab.prompts.why import (
        check_reasons,
        common_values,
        explain,
        liked_values,
        most_frequent,
        studio_reasons,
        values_of,
        why_lessons,
        why_questions,
        write_values,
    )

    studio, split, vectors = shop_of(**a['shop'])
    model, wording = make_prompts(split, vectors, seed=a['seed'], device=a['device'], **a['model'])
    users, reasons = customer_names(split), studio_reasons(studio)
    training = dict(a['training'])
    lessons = why_lessons(split, users, reasons, training.pop('draws'))
    run = fit_prompts(model, wording, lessons, progress=False, seed=a['seed'], **training)
    model.eval()
    rng = np.random.default_rng(0)
    truth = liked_values(studio, split.test.users, split.test.places)
    items, said = values_of(studio, split.test.targets), write_values(truth, rng)
    asked = why_questions(split.test, said, templates_for('why')[0], users)
    tokenizer = open_t5(tiny_t5())[1]
    texts = {'all there': explain(model, wording, asked, tokenizer)}
    for m in wording.vectors:
        texts |= {f'{m} {how}': explain(model, changed(wording, m, how), asked, tokenizer) for how in CHANGES}
    common = most_frequent(lessons(np.random.default_rng(0)) and reasons(split.train, np.random.default_rng(0)))
    texts |= {
        "all of the item's values": write_values(items, rng),
        'what history and item share': write_values(common_values(studio, split.test), rng),
        'the most frequent reason': [common] * len(said),
    }
    true = {
        name: {g: {m: list(map(float, (e.value, e.low, e.high))) for m, e in of.items()} for g, of in each.items()}
        for name, each in ((n, check_reasons(t, truth, items)) for n, t in texts.items())
    }
    return dict(seed=a['seed'], loss=float(run.frame.loss.iloc[-1]), texts=texts, references=said, true=true)


def asked_cells(a):  # -> list of (world, name, settings)
    "Seed by seed, so that what is cut off is a whole seed."
    found, (fewer, shorter) = [], SIZES[a.size]
    for seed in range(a.seeds):
        for world in a.worlds:
            shop, models = WORLDS.get(world, (dict(), WHY))
            for name, model in ((n, m) for n, m in models.items() if not a.models or n in a.models):
                asked = dict(part='why' if world == 'why' else 'next', world=world, name=name, seed=seed, model=model)
                asked |= dict(shop=SHOP | shop | fewer, training=TRAINING | shorter, device=a.device)
                found.append(asked)
    return found


def child(asked):
    "One cell; prints what it found as JSON."
    a = json.loads(asked)
    quiet(1)
    print(json.dumps({'next': next_cell, 'why': why_cell}[a['part']](a)))


def run_all(a):  # -> list of (settings, found), those that are finished; list of what failed
    "Cells side by side, until the time is over."
    until, failed = time.monotonic() + (a.seconds or 1e6), []

    def one(asked):
        settings = asked | dict(cell=f'{asked["world"]}-{asked["name"]}-{asked["seed"]}'.replace(' ', '_'))

        def work():
            left = until - time.monotonic()
            if left < 20:
                raise TimeoutError
            env = {**os.environ, 'OMP_NUM_THREADS': '1'}
            argv = [sys.executable, '-W', 'ignore', __file__, '--child', json.dumps(asked)]
            process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            try:
                out, err = process.communicate(timeout=left)
            except subprocess.TimeoutExpired as e:
                process.kill()
                raise TimeoutError from e
            if process.returncode:
                raise RuntimeError(err[-3000:])
            return json.loads(out.strip().splitlines()[-1])

        began = time.monotonic()
        try:
            found = cell(a.cells, settings, work)
        except TimeoutError:
            return asked, None
        except RuntimeError as e:
            failed.append(f'{settings["cell"]}: {e}')
            say(failed[-1])
            return asked, None
        say(f'{settings["cell"]}: {time.monotonic() - began:.0f} s')
        return asked, found

    with ThreadPoolExecutor(a.jobs) as pool:
        found = list(pool.map(one, asked_cells(a)))
    return [(asked, x) for asked, x in found if x is not None], failed


def next_rows(done):
    "A row for each world, model and way of asking; of the seeds that all models of a world have."
    import pandas as pd

    from vlm2rec_lab.prompts.study import prompt_table

    tables = []
    for world in dict.fromkeys(asked['world'] for asked, _ in done if asked['part'] == 'next'):
        own = [(x, found) for x, found in done if x['world'] == world]
        seeds = [{x['seed'] for x, _ in own if x['name'] == n} for n in {x['name'] for x, _ in own}]
        whole = set.intersection(*seeds)
        cells = [found | dict(way=x['name']) for x, found in own if x['seed'] in whole]
        if not cells:
            continue
        oracle = cells[0]['oracle']
        both = pd.concat([prompt_table(cells, m) for m in ('NDCG', 'HR')])
        tables.append(both.assign(world=world, **{f'oracle {m}': v for m, v in oracle.items()}))
    return pd.concat(tables) if tables else pd.DataFrame()


def new_rows(done):
    "Figures of new items by model, means over the seeds."
    import pandas as pd

    rows = [
        dict(world=x['world'], model=x['name'], seed=x['seed'], **row)
        for x, found in done
        for row in found.get('kept', {}).get('new items', [])
    ]
    if not rows:
        return pd.DataFrame()
    by = pd.DataFrame(rows).groupby(['world', 'model', 'target', 'among'], sort=False)
    return by.mean().drop(columns='seed').assign(seeds=by.seed.nunique()).reset_index()


def report_rows(done):
    "A row for each world, seed and modality: what the report says."
    import pandas as pd

    rows = [
        dict(world=x['world'], model=x['name'], seed=x['seed'], modality=m, **said)
        for x, found in done
        for m, said in found.get('kept', {}).get('verdicts', {}).items()
    ]
    return pd.DataFrame(rows)


def why_rows(done):
    "A row for each model and way of asking: measures of truth, and of words, means over the seeds."
    import pandas as pd

    from vlm2rec_lab.prompts.why import overlap

    rows = []
    for x, found in done:
        if x['part'] != 'why':
            continue
        for name, texts in found['texts'].items():
            true = {f'{g}: {m}': v[0] for g, of in found['true'][name].items() for m, v in of.items()}
            row = dict(model=x['name'], asked=name, seed=x['seed'], **true, **overlap(texts, found['references']))
            rows.append(row)
    if not rows:
        return pd.DataFrame()
    by = pd.DataFrame(rows).groupby(['model', 'asked'], sort=False)
    spread = by['all: F1'].std(ddof=1) if 'all: F1' in rows[0] else None
    found = by.mean().drop(columns='seed').assign(seeds=by.seed.nunique())
    return (found if spread is None else found.assign(**{'all: F1 sd': spread})).reset_index()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--cells', type=Path, help='folder that keeps finished cells, and goes on from there')
    p.add_argument('--worlds', nargs='+', choices=[*WORLDS, 'why'], default=[*WORLDS, 'why'])
    p.add_argument('--models', nargs='+', help='of those of a world (default: all)')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--device', default='cpu')
    p.add_argument('--jobs', type=int, default=1, help='cells at a time')
    p.add_argument('--seconds', type=float, help='after these no cell begins, and what runs is stopped')
    p.add_argument('--size', choices=SIZES, default='normal', help='small: 40 customers, one epoch: does it run?')
    p.add_argument('--out', type=Path, help='folder of the tables')
    p.add_argument('--child', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(a.child)
    done, failed = run_all(a)
    say(f'{len(done)} cells of {len(asked_cells(a))}')
    rows = next_rows(done)
    tables = dict(
        prompt_worlds=rows, prompt_new=new_rows(done), prompt_reports=report_rows(done), prompt_why=why_rows(done)
    )
    if len(rows):
        some = rows[(rows.asked == 'all there') & rows.metric.str.startswith('NDCG')]
        print(table(some[['world', 'way', 'value', 'low', 'high', 'seeds']].round(4).to_dict('records')))
    if a.out:
        a.out.mkdir(parents=True, exist_ok=True)
        for name, found in tables.items():
            if len(found):
                found.round(5).to_csv(a.out / f'{name}.csv', index=False)
        write(
            a.out / 'prompt_worlds.json',
            dict(
                machine=machine(),
                cells=len(done),
                size=a.size,
                shop=SHOP | SIZES[a.size][0],
                training=TRAINING | SIZES[a.size][1],
            ),
        )
    if failed:
        sys.exit(f'{len(failed)} cells failed')


if __name__ == '__main__':
    main()
