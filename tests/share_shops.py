"Items for the tests of the index, and the plain search that it is held against."

import numpy as np
import pandas as pd

from vlm2rec_lab.share.segments import unit_rows


def shop(n=60, dims=(('text', 6), ('image', 4)), seed=0, lack=0.2):
    "Vectors of some items, a share of which lacks each modality, and their table."
    rng = np.random.default_rng(seed)
    vectors = {m: rng.normal(size=(n, d)).astype('float32') for m, d in dims}
    for x in vectors.values():
        x[rng.random(n) < lack] = 0
    kinds = np.array(['shoe', 'hat', 'bag', None], object)[rng.integers(0, 4, n)]
    price = np.where(rng.random(n) < 0.2, np.nan, rng.integers(1, 90, n))
    return vectors, pd.DataFrame(dict(item_id=[f'i{k}' for k in range(n)], kind=kinds, price=price))


def part(vectors, table, rows):
    "Some items of a shop."
    return {m: x[rows] for m, x in vectors.items()}, table.iloc[rows].reset_index(drop=True)


def plain_parts(vectors, queries, weights):
    "{modality: float32 [q, n]} parts of the scores of all pairs, by the definition; -inf where nothing is shared."
    x, y = ({m: unit_rows(a).astype(float) for m, a in side.items()} for side in (vectors, queries))
    both = {m: weights[m] * (y[m].any(1)[:, None] & x[m].any(1)) for m in x}
    total = sum(both.values())
    cosines = {m: np.array([[(a * b).sum() for b in x[m]] for a in y[m]]).reshape(total.shape) for m in x}
    scale = np.where(total > 0, total, 1)
    return {m: np.where(total > 0, both[m] * cosines[m] / scale, -np.inf).astype('float32') for m in x}


def plain_order(scores, k):
    "int [q, k] by a full sort: falling scores, rows in their order; -1 where the score is -inf."
    rows = np.argsort(-scores, 1, kind='stable')[:, :k]
    return np.where(np.isinf(np.take_along_axis(scores, rows, 1)), -1, rows)
