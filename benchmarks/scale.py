"""Scale on paper: what 1 million and 100 million items cost, computed from measured figures.

python benchmarks/scale.py [--results benchmarks/results] [--out FILE]

Sizes follow from shapes. Times follow from rates in `gpu.json` and `train.json`; where a file or a figure is
missing the cell reads `not measured`, and nothing is put in its place.
More cards divide the hours of one by their number: a bound from below, as nothing was measured on several.
"""

import argparse
import json
from pathlib import Path

from common import RESULTS, table, write

ITEMS, CARDS = (1_000_000, 100_000_000), (1, 8, 64)
SHAPE = dict(
    hidden=2048, layers=36, kv=256, intermediate=11008, picture_tokens=64, text_tokens=32, rank=16
)  # Qwen2.5-VL-3B, 224-pixel pictures
MISSING = 'not measured'
TOKEN_BYTES = 8 + 3 * 8 + 8  # of `embed.Pieces`: id, three positions, row of the feature table
RECORD_BYTES = 40  # of `store.RECORD`


def read(folder=RESULTS):  # -> {name: result}
    "The results that are there."
    return {p.stem: json.loads(p.read_text()) for p in sorted(Path(folder).glob('*.json'))}


def get(results, *path):
    "A figure by its path, or None."
    for key in path:
        results = (
            results[key]
            if isinstance(results, dict) and key in results
            else next((r for r in results if r.get('recipe', r.get('world')) == key), None)
            if isinstance(results, list)
            else None
        )
        if results is None:
            return None
    return results


def size(b):  # bytes
    for unit in ('B', 'kB', 'MB', 'GB', 'TB'):
        if b < 1000 or unit == 'TB':
            return f'{b:,.0f} {unit}' if b >= 100 or unit == 'B' else f'{b:.2g} {unit}'
        b /= 1000


def duration(seconds):
    if seconds is None:
        return MISSING
    h = seconds / 3600
    return (
        f'{seconds:.0f} s'
        if h < 1 / 30
        else f'{60 * h:.0f} min'
        if h < 1
        else f'{h:,.1f} h'
        if h < 100
        else f'{h:,.0f} h ({h / 24:,.0f} days)'
    )


def storage(n, views=2, shape=SHAPE):  # -> {what: bytes}
    "Bytes of a catalogue of n items: a picture and a text each. Follows from shapes alone."
    c = shape
    widths = [
        (c['hidden'], c['hidden']),
        (c['hidden'], c['kv']),
        (c['hidden'], c['kv']),
        (c['hidden'], c['hidden']),
        (c['hidden'], c['intermediate']),
        (c['hidden'], c['intermediate']),
        (c['intermediate'], c['hidden']),
    ]
    frame = 2 + 1  # a picture's opening and closing token and the space before it
    return {
        'picture features, bf16': n * (c['picture_tokens'] * c['hidden'] * 2 + RECORD_BYTES),
        f'item vectors of {views} views, float32': n * views * (c['hidden'] * 4 + RECORD_BYTES),
        'prompts, in memory': n * (c['text_tokens'] + c['picture_tokens'] + frame) * TOKEN_BYTES,
        'one fused vector per item, float32': n * c['hidden'] * 4,
        f'adapters of rank {c["rank"]}, float32': c['layers'] * c['rank'] * sum(a + b for a, b in widths) * 4,
    }


def storage_table():  # -> list of dict
    per = storage(1)
    fixed = [k for k in per if k.startswith('adapters')]
    return [
        {
            'what': k,
            'an item': 'once' if k in fixed else size(v),
            **{f'{n:,} items': size(storage(n)[k]) for n in ITEMS},
        }
        for k, v in per.items()
    ]


def rates(results):  # -> {where: dict of rates, None where missing}
    "Items per second of encoding and pairs per second of training, where they were measured."
    every = (
        [
            r
            for r in (get(results, 'gpu', 'rates') or []) + (get(results, 'gpu', 'utilisation') or [])
            if r['recipe'].startswith('(c)') and r.get('fits')
        ]
        if not get(results, 'gpu', 'toy')
        else []
    )
    world = (get(results, 'train', 'rates') or [{}])[0]
    tiny = (
        {}
        if get(results, 'train', 'small')
        else {
            'pictures': get(results, 'train', 'encoding', 'pictures_per_second'),
            'items': get(results, 'train', 'encoding', 'items_per_second'),
            'pairs': get(world, 'rows', '(c) all', 'pairs_per_second'),
            'plain': get(world, 'rows', '(a) plain', 'pairs_per_second'),
        }
    )
    gpu = (
        {
            'pictures': get(results, 'gpu', 'encoding', 'pictures_per_second'),
            'items': get(results, 'gpu', 'encoding', 'items_per_second'),
        }
        if not get(results, 'gpu', 'toy')
        else {}
    )
    plain = (
        [r for r in get(results, 'gpu', 'rates') or [] if r['recipe'].startswith('(a)') and r.get('fits')]
        if not get(results, 'gpu', 'toy')
        else []
    )
    return {
        'gpu': gpu
        | {
            'pairs': max((r['pairs_per_second'] for r in every), default=None),
            'plain': max((r['pairs_per_second'] for r in plain), default=None),
        },
        'tiny': tiny,
    }


def work(n, pairs_per_item=10):  # -> {what: (name of the rate, amount)}
    return {
        'vision tower over all pictures, once': ('pictures', n),
        'all items through the language model, once': ('items', n),
        f'one pass over {pairs_per_item} pairs an item, all speed-ups': ('pairs', n * pairs_per_item),
        'the same, plain recipe': ('plain', n * pairs_per_item),
    }


def times_table(results, n, pairs_per_item=10):  # -> list of dict
    r = rates(results)

    def took(where, rate, amount, cards=1):
        return duration(amount / r[where][rate] / cards if r[where].get(rate) else None)

    return [
        {
            'what': what,
            **{f'3B, {c} card{"s" * (c > 1)}': took('gpu', rate, amount, c) for c in CARDS},
            'tiny VLM, one CPU thread': took('tiny', rate, amount),
        }
        for what, (rate, amount) in work(n, pairs_per_item).items()
    ]


def bottlenecks(results, memory=80e9, host=128e9):  # bytes of a card, of a machine
    "What no longer fits, from sizes; and which hours are most, where they were measured."
    out = []
    for n in ITEMS:
        s = storage(n)
        for what, b in s.items():
            place, room = (
                ('host memory', host) if 'prompts' in what else ('a card', memory) if 'fused' in what else (None, None)
            )
            if place:
                out.append(
                    {
                        'items': f'{n:,}',
                        'what': what,
                        'size': size(b),
                        'room': f'{size(room)} of {place}',
                        'fits': 'yes' if b <= room else f'no, by a factor of {b / room:.1f}',
                    }
                )
        r = rates(results)['gpu']
        known = {what: amount / r[rate] for what, (rate, amount) in work(n).items() if r.get(rate) and rate != 'plain'}
        out.append(
            {
                'items': f'{n:,}',
                'what': 'most hours on a card',
                'size': max(known, key=known.get) if len(known) == 3 else MISSING,
                'room': '',
                'fits': '',
            }
        )
    return out


def there(results):  # -> list of dict
    "Which of the results exist."
    names = dict(
        step='a training step and its floor',
        train='training on a CPU',
        sentence_trainer='sentence-transformers',
        gpu='training on a GPU',
        interactions='interactions',
        images='images',
        ranking='full ranking',
        pictures='spaces of many products',
        screens='what people wait for',
        report='the parts of a collapse report',
        serve='the service',
        catalogue='a catalogue from memory maps',
        pairs='heads on packaged encoders',
        seqrec='sequential recommenders',
        seqrec_step='their training step',
        flame='FLAME',
    )

    def state(name):
        r = results.get(name)
        return (
            MISSING
            if r is None
            else 'toy setting: not used'
            if r.get('toy') or r.get('small')
            else f'measured on {r["machine"].get("gpu") or r["machine"].get("cpu")}'
            if isinstance(r.get('machine'), dict)
            else 'measured'
        )

    return [
        {'results': what, 'file': f'benchmarks/results/{name}.json', 'state': state(name)}
        for name, what in names.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', default=str(RESULTS), help='folder of JSON files')
    parser.add_argument('--out', help='JSON file to write')
    o = parser.parse_args()
    results = read(o.results)
    found = dict(
        benchmark='scale',
        results=there(results),
        storage={str(n): storage(n) for n in ITEMS},
        rates=rates(results),
        times={str(n): times_table(results, n) for n in ITEMS},
        bottlenecks=bottlenecks(results),
    )
    write(o.out, found)
    print(table(there(results)), '\n\n' + table(storage_table()))
    for n in ITEMS:
        print(f'\n{n:,} items\n\n' + table(times_table(results, n)))
    print('\n' + table(bottlenecks(results)))


if __name__ == '__main__':
    main()
