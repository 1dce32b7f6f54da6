"""Goals of cost, with the figures that the benchmarks last measured: python benchmarks/goals.py

Figures are read from `benchmarks/results`; where a file or a figure is missing the cell reads `not measured`, and
nothing is put in its place. Ratios are those of sums.
"""

import argparse

from common import RESULTS, in_range, table
from scale import MISSING, get, read

LARGE, WORLD = 100_000_000, 'histories of up to 10, 11 purchases each'
SEEDS = 5


def step(results):  # -> (figure in words, met)
    "The training step beside its floor, as it is written and compiled."
    ratio, compiled = get(results, 'step', 'ratio'), get(results, 'step', 'compiled', 'ratio')
    if not ratio:
        return None
    said = f'{in_range(ratio)} times' + (f', with compiled layers {in_range(compiled)} times' if compiled else '')
    cpu = get(results, 'step', 'machine', 'cpu') or 'an unknown processor'
    return f'{said}, over {results["step"]["batches"]} batches ({cpu})', min(ratio, compiled or ratio)[0] <= 2.5


def pairs(results):
    "Pairs a second of all speed-ups against none, and what is learned with them."
    rows = get(results, 'train', 'rates', WORLD, 'rows')
    lean = get(results, 'train', 'quality', 'chosen', '(c) all', 'prompts') == 'lean'
    all_of_them = '(c) all, lean prompts' if lean else '(c) all'
    a, c = (get(rows, name, 'pairs_per_second') for name in ('(a) plain', all_of_them))
    if not a or not c:
        return None
    said = f'{c / a:.1f} times' + (', with lean prompts' if lean else '')
    s = get(results, 'train', 'quality', 'summary')
    if not s:
        return f'{said}; test NDCG@10 {MISSING}', False if c / a < 8 else None
    test, seeds = s['test_mean_and_deviation'], s['seeds']
    plain, every = (test[name]['fused'][0] for name in ('(a) plain', '(c) all'))
    said += f'; test NDCG@10 {every:.4f} against {plain:.4f} over {seeds} seeds'
    other = get(rows, '(a) plain, lean prompts', 'pairs_per_second')
    if lean and other:
        ndcg = test['(a) plain, lean prompts']['fused'][0]
        said += f'; against (a) with lean prompts {c / other:.1f} times, test NDCG@10 of that {ndcg:.4f}'
    return said, c / a >= 8 and every >= plain if seeds >= SEEDS else False if c / a < 8 else None


def report(results):
    "The command on 2,000 users and 2,000 items."
    cpu = get(results, 'report', 'command', 'cpu')
    size = [get(results, 'report', 'command', k) for k in ('users', 'items')]
    return (f'{cpu:.1f} s', cpu <= 3) if cpu and size == [2000, 2000] else None


def interactions(results):
    "Reading, 5-core and split of 100 million interactions, by every file that was read."
    runs = [x for x in get(results, 'interactions', 'runs') or [] if x['generated'] == LARGE and x['way'] == 'fast']
    if not runs:
        return None
    said = [f'{x["file"]}: {x["seconds"]["total"]:.0f} s, {x["peak_gb"]:.1f} GB' for x in runs]
    return '; '.join(said), all(x['seconds']['total'] <= 90 and x['peak_gb'] <= 8 for x in runs)


def catalogue(results):
    "Ranks, index and report of a catalogue that is mapped from files."
    found = get(results, 'catalogue')
    if not found or found.get('peak_gb') is None:
        return None
    own, rows = found.get('own_gb'), get(found, 'parts', 'report', 'rows') or []
    said = f'{found["items"]:,} items, {found["users"]:,} users: {found["seconds"]:.0f} s, peak '
    said += f'{found["peak_gb"]:.1f} GB with what is mapped' if own is not None else f'{found["peak_gb"]:.1f} GB'
    said += f', {own:.1f} GB of its own' if own is not None else ''
    if rows:
        said += f'; 95 % intervals by sampling of ±{max((x["high"] - x["low"]) / 2 for x in rows):.4f} at most'
    large = found['items'] >= 10_000_000 and found['users'] >= 1_000_000
    return said, large and bool(rows) and (found['peak_gb'] if own is None else own) <= 16


def service(results):
    "Latency of the service under load."
    found = get(results, 'serve') or {}
    ms = get(found, 'ms', 'all', 'p99')
    if ms is None:
        return None
    said = f'{ms:.1f} ms at {found["rate"]:.0f} requests a second, {found["items"]:,} items'
    return said, ms <= 50 if found['rate'] >= 200 and found['items'] >= 20_000 else None


def on_card(g):
    "Which card, and which code."
    return f'{g["machine"]["gpu"]}, commit {g.get("commit", "unknown")}'


def busy(results):
    "The largest share of a card's arithmetic that a step of the 3B shape used."
    g = get(results, 'gpu') or {}
    rows = [r for part in ('rates', 'layers', 'utilisation') for r in g.get(part, []) if 'utilisation' in r]
    if not rows:
        return None
    best = max(rows, key=lambda r: r['utilisation'])
    said = f'{best["utilisation"]:.1%} ({best["recipe"]}, {best["rows_per_step"]} rows; {on_card(g)})'
    return said, best['utilisation'] >= 0.45


def caching(results):
    "A batch that no card holds by gradient caching, beside one that fits."
    plain, cached = (get(results, 'gpu', 'caching', way) for way in ('without caching', 'caching'))
    if not plain or not cached or 'sequences_per_second' not in plain:
        return None
    times = plain['sequences_per_second'] / cached['sequences_per_second']
    most = get(results, 'gpu', 'largest_with', 'largest') or 0
    said = f'{times:.2f} times a sequence, {plain["rows_per_step"]} rows; {most} rows fit with it'
    return f'{said} ({on_card(results["gpu"])})', times <= 2 and most >= 192


def together(results):
    "Pairs a second of all speed-ups on a card against the plain recipe."
    ratio = get(results, 'gpu', 'rates', '(c) all, recomputing', 'ratio')
    return ratio and (f'{in_range(ratio)} times ({on_card(results["gpu"])})', ratio[0] >= 5)


CARD = 'on a card, at the shape of Qwen2.5-VL-3B in bfloat16'
GOALS = (
    ('training step of the tiny VLM, every position, against its large matrix products', 'at most 2.5 times', step),
    ('pairs a second of (c) against (a)', f'8 times, at equal or better test NDCG over {SEEDS} seeds', pairs),
    ('`vlm2rec report` on 2,000 users and items, CPU seconds', 'at most 3', report),
    ('100 million interactions: read, 5-core, split', '90 s and 8 GB', interactions),
    (
        '10 million items of 128 dimensions, 1 million users: ranks, index, report by sampling',
        '16 GB, from memory maps, with the error of sampling',
        catalogue,
    ),
    ('service: 200 requests a second at 20,000 items, p99', 'at most 50 ms', service),
    (f'arithmetic of the language model {CARD}', 'at least 45 % of what a matrix product reaches', busy),
    (f'gradient caching {CARD}', 'at most 2.0 times a batch that fits, 192 rows of three views on 80 GB', caching),
    (f'pairs a second of (c) against (a) {CARD}', '5 times', together),
)


def goals(results):  # {name: result} -> list of dict
    "A row for every goal."
    rows = []
    for work, goal, figure in GOALS:
        said, met = figure(results) or (MISSING, None)
        verdict = MISSING if met is None else 'reached' if met else 'not reached'
        rows.append({'work': work, 'goal': goal, 'now': said, '': verdict})
    return rows


def usable(results):  # {name: result} -> the same without toy settings
    return {name: r for name, r in results.items() if not (isinstance(r, dict) and (r.get('small') or r.get('toy')))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', default=str(RESULTS), help='folder of JSON files')
    o = parser.parse_args()
    print(table(goals(usable(read(o.results)))))


if __name__ == '__main__':
    main()
