"""What a small language model's vectors are worth on a shop, from the runs that the page docs/real.md shows.

python benchmarks/decoders.py HEADS SHORT TUNED --out data/study/films_decoder.csv

The folders of three runs of `vlm2rec train --model smollm2 --image none --losses sft`: heads on the usual texts; heads
on titles and genres; the same with `--lora 8`. Every figure is read from their `metrics.json`.
"""

import argparse
import json
from pathlib import Path

from common import table

USUAL, SHORT = 'title, genres, plot (the usual)', 'title, genres'
RAW = 'nothing: the last token as it is'
BASELINES = {'popularity': 'popularity', 'co-occurrence': 'what is bought together'}


def figure(found):  # dict of a metric, as runs keep it -> dict
    "NDCG@10 with its interval."
    return {k: f'{found[k]:.5f}' for k in ('value', 'low', 'high')}


def row(texts, trained, steps, file):  # -> dict of str
    "A model's row, of its `metrics.json`."
    views = json.loads(file.read_text())['views']
    return dict(texts=texts, trained=trained, steps=steps) | figure(views['text']['NDCG@10'])


def steps_of(run):  # folder -> str, such as '400 of 128'
    "Steps and their size, as the run was made."
    said = json.loads((run / 'sft' / 'history.json').read_text())['settings']
    return f'{said["steps"]} of {said["batch"]}'


def rows(heads, short, tuned):  # folders of runs -> [dict of str]
    "The table."
    out = [
        row(USUAL, RAW, '', heads / 'before' / 'metrics.json'),
        row(USUAL, 'heads', steps_of(heads), heads / 'sft' / 'metrics.json'),
        row(SHORT, RAW, '', tuned / 'before' / 'metrics.json'),
        row(SHORT, 'heads', steps_of(short), short / 'sft' / 'metrics.json'),
        row(SHORT, 'heads and LoRA of rank 8', steps_of(tuned), tuned / 'sft' / 'metrics.json'),
    ]
    beside = json.loads((heads / 'sft' / 'metrics.json').read_text())['baselines']['views']
    return out + [
        dict(texts='none', trained=said, steps='') | figure(beside[name]['NDCG@10']) for name, said in BASELINES.items()
    ]


def main():
    import pandas as pd

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('heads', 'short', 'tuned'):
        p.add_argument(name, type=Path, help='folder of a run')
    p.add_argument('--out', type=Path)
    args = p.parse_args()
    found = rows(args.heads, args.short, args.tuned)
    print(table(found))
    if args.out:
        pd.DataFrame(found).to_csv(args.out, index=False)


if __name__ == '__main__':
    main()
