"Servers of an index in processes of their own, on loopback, and a small index for them."

import contextlib
import os
import subprocess
import sys

import numpy as np
import pandas as pd

from vlm2rec_lab.share.index import build_index

TOKEN = '0123456789abcdef-secret'
BEARER = {'Authorization': f'Bearer {TOKEN}'}


def small_index(folder, n=40, seed=0, **columns):  # -> Index
    "An index of a few items with two modalities, some without a picture; ids and titles hold odd characters."
    rng = np.random.default_rng(seed)
    vectors = {'text': rng.normal(size=(n, 8)), 'image': rng.normal(size=(n, 5))}
    vectors['image'][::7] = 0
    ids = ['a/b', '../c', 'd?e=f&g', 'h i', 'ü', '<i>', "'k", 'l%2Fm', '.'] + [f'i{k}' for k in range(9, n)]
    titles = [f'thing {k}' for k in range(n)]
    titles[5] = '<img src=x onerror="document.title=1">'
    table = pd.DataFrame(dict(item_id=ids, title=titles, price=np.arange(n) * 2.5) | columns)
    return build_index(folder, vectors, table)


@contextlib.contextmanager
def server(*argv, script=None, **env):
    "A running server: its process, with `address` and the `lines` that it said."
    start = ['-c', script] if script else ['-m', 'vlm2rec_lab', 'serve']
    asked = {k: v for k, v in os.environ.items() if k != 'VLM2REC_TOKEN'} | env
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=asked)
    process = subprocess.Popen([sys.executable, *start, *map(str, argv)], **how)
    try:
        process.lines = []
        while not process.lines or 'serving' not in process.lines[-1]:
            line = process.stdout.readline()
            assert line, process.stderr.read()[-3000:]
            process.lines.append(line)
        process.address = process.lines[-1].split()[1]
        yield process
    finally:
        process.kill()
        process.communicate()


SCRIPT = """
import sys
from vlm2rec_lab.share.answers import shelf_of
from vlm2rec_lab.share.index import Index
from vlm2rec_lab.share.limits import Limits
from vlm2rec_lab.share.service import Shop, listen, serve

shop = Shop(shelf_of(Index(sys.argv[1])), Limits({limits}))
{more}
serve(shop, listen('127.0.0.1', 0), lambda address: print('serving', address, flush=True))
"""


def bounded(folder, limits, more=''):
    "A server with limits of its own, written as arguments."
    return server(folder, script=SCRIPT.format(limits=limits, more=more))
