"""Catalogues in shards for the tests: what workers of other processes call, and python shard_worlds.py FOLDER LOG.

The command encodes eight shards, slowly, and writes the name of each that it begins to a log.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from vlm2rec_lab.share.shards import encode_shards

DIMS = dict(text=6, image=4, sound=3)
EIGHT = {f's{k}': (40 * k, 40 * k + 40) for k in range(8)}


def vectors(rows):
    "Vectors of the items of some rows, the same whoever asks; every fifth lacks its picture."
    rngs = [np.random.default_rng(row) for row in range(*rows)]
    made = {m: np.array([r.normal(size=d) for r in rngs], np.float32).reshape(-1, d) for m, d in DIMS.items()}
    made['image'][np.arange(*rows) % 5 == 0] = 0
    return made


def slowly(rows, log=None, seconds=0.05):
    "The same, with a note of who does it."
    if log is not None:
        with open(log, 'a') as f:
            f.write(f'{rows[0]} {os.getpid()}\n')
    time.sleep(seconds)
    return vectors(rows)


def once_deadly(rows, mark, log):
    "The same, but the first worker that gets to row 120 dies."
    if rows[0] == 120 and not Path(mark).exists():
        Path(mark).touch()
        os._exit(1)
    return slowly(rows, log)


def begun(log):
    "First rows of the shards that were begun, in the order of the log."
    return [int(line.split()[0]) for line in Path(log).read_text().splitlines()]


def pid(_):
    "Who works."
    time.sleep(0.2)
    return os.getpid()


if __name__ == '__main__':
    encode_shards(sys.argv[1], EIGHT, partial(slowly, log=sys.argv[2], seconds=0.3))
