"""Small shops for the tests of the data rooms: one that a finger can follow, and a generated film club."""

import warnings

import numpy as np
import pandas as pd

from vlm2rec_lab.base.errors import DataWarning
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.dataset import Dataset

DAY = 86400.0
LOG = {  # customer: (film, day), oldest first
    'ann': [(0, 1), (1, 2), (2, 5), (1, 8)],
    'bob': [(3, 1), (4, 3), (0, 6), (5, 6), (6, 9)],
    'cid': [(2, 7), (0, 8), (7, 9)],
    'dot': [(4, 2)],
}
COLUMNS = ['user_id', 'item_id', 'timestamp']


def texts(prefix, n):
    "A catalogue of `n` films with a text each."
    return Catalogue([f'{prefix}{i}' for i in range(n)], {'text': [f'film {i}' for i in range(n)]}, {'text': 'text'})


def from_log(rows, catalogue, name):
    "A dataset from (user, item, time)."
    table = pd.DataFrame(rows, columns=COLUMNS)
    return Dataset(catalogue, Interactions.from_frame(table, catalogue), name)


def make_club(n=6000, users=400, items=150, seed=0):
    "The log of a film club, in four sittings a day since 2024-01-01."
    rng = np.random.default_rng(seed)
    when = np.sort(rng.uniform(0, 120, n))
    premieres = np.sort(rng.uniform(-80, 118, items))
    who = ((when / 120 * 0.6 + rng.random(n) * 0.4) * users).astype(int)
    what = (rng.beta(2, 1.2, n) * np.searchsorted(premieres, when)).astype(int)
    columns = {
        'user_id': np.char.add('u', who.astype(str)),
        'item_id': np.char.add('m', what.astype(str)),
        'timestamp': 1704067200 + (when * 4).astype(int) * 21600,
    }
    return pd.DataFrame(columns).drop_duplicates()


FILMS = texts('f', 8)
CLUB_FILMS = texts('m', 150)
HAND = from_log([(u, f'f{i}', d * DAY) for u, events in LOG.items() for i, d in events], FILMS, 'hand')
UNTIMED = Dataset(FILMS, Interactions.of_sequences([[0, 1, 2], [2, 3, 4]]), 'untimed')
RANKED = Dataset(FILMS, Interactions(('a', 'b'), [0, 3, 6], [0, 1, 2, 2, 3, 4], [1, 2, 3, 1, 2, 3]), 'ranked')
with warnings.catch_warnings():
    warnings.simplefilter('ignore', DataWarning)
    CLUB = from_log(make_club(), CLUB_FILMS, 'film club')
    SHUFFLED = from_log(make_club().sample(frac=1, random_state=1), CLUB_FILMS, 'film club')
