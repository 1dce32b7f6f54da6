"""Odd vectors, drawn with a seed: each is refused by name, or gives figures that are finite or said to be unknown.

A case is a function and its vectors. It may end in a named error (a ValueError, TypeError or DataError raised in the
package), or in a result whose figures are finite or stated as unknown, and whose items are all shown or counted as left
out. Anything else is a fault: an exception of numpy or sklearn, an infinite figure, an item that is gone in silence."""

import json
import math
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest

import vlm2rec_lab
from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.diagnosis.geometry import (
    agreement_test,
    effective_rank,
    linear_cka,
    mean_cosine,
    modality_gap,
    nearest,
    neighbour_agreement,
)
from vlm2rec_lab.show.drawing import spaces_drawing, topology_drawing
from vlm2rec_lab.show.figures import flat_map, spaces_figure, topology

PACKAGE = str(Path(vlm2rec_lab.__file__).parent)
SEEDS = range(24)


def plain(rng, n, d):
    "Vectors as they should be."
    return rng.normal(size=(n, d))


def some_zero(rng, n, d):
    "A third of the rows without content."
    x = plain(rng, n, d)
    x[rng.random(n) < 0.3] = 0
    return x


def almost_equal(rng, n, d):
    "One vector, but for rounding."
    return rng.normal(size=d) * (1 + 1e-7 * rng.normal(size=(n, 1)))


def with_bad(value):
    "Rows of which one holds a NaN or an infinity."

    def made(rng, n, d):
        x = plain(rng, n, d)
        x[rng.integers(n), rng.integers(d)] = value
        return x

    return made


def scaled(factor, dtype=float):
    "Vectors of another length, or of another kind of number."

    def made(rng, n, d):
        with np.errstate(over='ignore'):
            return (plain(rng, n, d) * factor).astype(dtype)

    return made


def lengths(rng, n, d):
    "Lengths from very small to very large."
    return plain(rng, n, d) * 10.0 ** rng.integers(-30, 30, (n, 1))


ODD = {
    'plain': plain,
    'some zero': some_zero,
    'all zero': lambda rng, n, d: np.zeros((n, d)),
    'all equal': lambda rng, n, d: np.ones((n, d)),
    'almost equal': almost_equal,
    'nan': with_bad(np.nan),
    'inf': with_bad(np.inf),
    'half': scaled(1, np.float16),
    'half too long': scaled(1e6, np.float16),
    'whole numbers': scaled(5, np.int64),
    'bytes': scaled(90, np.uint8),
    'yes or no': lambda rng, n, d: rng.random((n, d)) > 0.5,
    'complex': lambda rng, n, d: plain(rng, n, d) * 1j,
    'one dimension': lambda rng, n, d: plain(rng, n, 1),
    'no dimension': lambda rng, n, d: np.zeros((n, 0)),
    'flat': lambda rng, n, d: plain(rng, n, d)[:, 0],
    'three axes': lambda rng, n, d: plain(rng, n, d)[:, :, None],
    'one item': lambda rng, n, d: plain(rng, 1, d),
    'two items': lambda rng, n, d: plain(rng, 2, d),
    'no item': lambda rng, n, d: np.zeros((0, d)),
    'long': scaled(1e30),
    'very long': scaled(1e300),
    'short': scaled(1e-30),
    'very short': scaled(1e-300),
    'any length': lengths,
    'other size': lambda rng, n, d: plain(rng, n + 3, d),
    'other dimensions': lambda rng, n, d: plain(rng, n, d + 2),
    'objects': lambda rng, n, d: np.array([['a'] * d] * n, object),
    'numbers as objects': lambda rng, n, d: plain(rng, n, d).astype(object),
    'texts': lambda rng, n, d: np.full((n, d), 'x'),
    'lists': lambda rng, n, d: plain(rng, n, d).tolist(),
    'ragged': lambda rng, n, d: [[1.0] * (1 + i % 3) for i in range(n)],
    'nothing': lambda rng, n, d: None,
}
TARGETS = {
    'right': lambda rng, n, u: rng.integers(0, n, u),
    'too large': lambda rng, n, u: np.full(u, n),
    'negative': lambda rng, n, u: np.full(u, -1),
    'decimals': lambda rng, n, u: rng.random(u),
    'too few': lambda rng, n, u: rng.integers(0, n, u - 1),
    'texts': lambda rng, n, u: np.full(u, 'a'),
    'nothing': lambda rng, n, u: None,
}


def figures(x):
    "All numbers in a result, wherever they stand."
    if isinstance(x, dict):
        return [v for y in x.values() for v in figures(y)]
    if isinstance(x, (list, tuple)):
        return [v for y in x for v in figures(y)]
    if isinstance(x, np.ndarray):
        return x.ravel().tolist() if x.dtype.kind == 'f' else []
    return [float(x)] if isinstance(x, (float, np.floating)) else []


def infinite(x):
    "Figures that are neither finite nor NaN, which is said to be unknown."
    return [v for v in figures(x) if math.isinf(v)]


def rows_of(x):
    "How many items a space has, and which of them have no content."
    x = np.asarray(x, float)
    return len(x), ~x.any(1)


def dims_of(x):
    "How many dimensions the sequences of a space need; 4 where nobody can tell."
    try:
        return np.shape(np.asarray(x, float))[1]
    except (ValueError, TypeError, IndexError):
        return 4


def check_shown(shown, said, spaces):
    "Items that are not shown are counted in words."
    n, gone = rows_of(next(iter(spaces.values())))[0], np.zeros(1, bool)
    gone = np.logical_or.reduce([rows_of(x)[1] for x in spaces.values()])
    assert shown == n - gone.sum(), f'{shown} of {n} are shown, {gone.sum()} have no content'
    assert not gone.any() or f'{gone.sum():,} of {n:,} items are left out' in said, f'not counted: {said}'


def topologies(spaces):
    "A topology: finite, counted, and no correlation where there is none."
    t = topology(spaces, 10**6)
    check_shown(len(t.rows), t.said, spaces)
    assert np.isfinite(t.cosine).all() and np.isfinite(t.standard).all()
    assert t.r is None or np.isfinite(t.r)
    assert 'nan' not in repr(t) and (t.r is not None or not t.between or t.flat)
    assert not t.between or np.isfinite(t.agreement).all() and np.isfinite(t.consistency).all()


def page_of_topology(spaces):
    "The page of a topology is JSON that every browser reads."
    d = topology_drawing(spaces)
    check_shown(d.meta['n'], d.meta['note'], spaces)
    json.loads(json.dumps(d.meta, allow_nan=False))
    assert d.png()[:4] == b'\x89PNG'


def page_of_spaces(spaces):
    "The page of the spaces, likewise, with a place for every item shown."
    d = spaces_drawing(spaces, fuse=None)
    check_shown(d.meta['n'], d.meta['note'], spaces)
    json.loads(json.dumps([d.meta, [p['trust'] for p in d.positions.values()]], allow_nan=False))
    assert np.isfinite(np.frombuffer(d.positions['pca']['xy'], np.float32)).all() and d.png()[:4] == b'\x89PNG'


def figure_of_spaces(spaces):
    "The plotly figure has a point for every item that is not counted as left out."
    f = spaces_figure(spaces)
    check_shown(sum(len(t.x) for t in f.data) // len(spaces), f.layout.title.text, spaces)
    assert all(np.isfinite(np.asarray(t.x, float)).all() and np.isfinite(np.asarray(t.y, float)).all() for t in f.data)


def one_map(spaces):
    "A place for every item; trustworthiness NaN only where all vectors are equal."
    xy, trust = flat_map(spaces['a'])
    x = np.asarray(spaces['a'], np.float32)
    assert xy.shape == (len(x), 2) and np.isfinite(xy).all()
    assert np.isfinite(trust) or (x == x[0]).all()


def geometry(spaces):
    "All figures of one and of two spaces."
    a, b = spaces.values()
    two = [
        modality_gap(a, b),
        linear_cka(a, b),
        neighbour_agreement(a, b),
        agreement_test(a, b, permutations=5, pairs=200),
    ]
    one = [effective_rank(a), mean_cosine(a)]
    assert not infinite([one, two]), (one, two)
    both = ~(rows_of(a)[1] | rows_of(b)[1])
    assert two[2][2] == two[3]['items'] == both.sum(), 'items without a vector are compared'


def neighbours(spaces):
    "Three neighbours of each, none of them itself."
    near = nearest(spaces['a'], 3)
    n = len(spaces['a'])
    assert near.shape == (n, 3) and (near != np.arange(n)[:, None]).all()


def report(spaces, rng, targets):
    "A report: its dictionary is JSON, its text says no nan, and lacking vectors are counted."
    n, users = 30, 8
    sequences = {m: plain(rng, users, dims_of(x)) for m, x in spaces.items()}
    sizes = dict(permutations=2, bootstrap=10, progress=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        r = collapse_report(items=spaces, sequences=sequences, targets=TARGETS[targets](rng, n, users), **sizes)
    told = r.to_dict()
    json.dumps(told, allow_nan=False)
    assert not infinite(told)
    said = ' '.join([*told['notes'], *(str(w.message) for w in caught)])
    for m, x in spaces.items():
        zero = int(rows_of(x)[1].sum())
        assert not zero or f'{zero:,} of' in said, f'{zero} vectors of {m} are zero and nobody says so'


def is_named(error):
    "Whether an error is one of ours: raised in the package, of a class for bad input, in words."
    last = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, (ValueError, TypeError)) and last.filename.startswith(PACKAGE) and len(str(error)) > 20


def outcome(function, *args):
    "'report', 'error', or 'fault: ...'."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            function(*args)
        except AssertionError as e:
            return f'loss: {e}'
        except Exception as e:
            if is_named(e):
                return 'error'
            return f'fault: {type(e).__name__}: {e} ({traceback.extract_tb(e.__traceback__)[-1].filename})'
    return 'report'


SHOWN = (topologies, page_of_topology, page_of_spaces, figure_of_spaces, one_map, geometry, neighbours)


def cases(seed):
    "Functions with their odd vectors, one after the other."
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(list(ODD))
    for kind in kinds[:11]:
        other = rng.choice(['plain', 'plain', *ODD])
        spaces = {'a': ODD[kind](rng, 12, 4), 'b': ODD[other](rng, 12, 4)}
        for function in SHOWN:
            if function in (topologies, geometry) or rng.random() < 0.3:
                yield f'{function.__name__} of {kind} and {other}', function, (spaces,)
    for kind in kinds[11:15]:
        targets = rng.choice(['right', 'right', 'right', *TARGETS])
        spaces = {'a': ODD[kind](rng, 30, 4), 'b': plain(rng, 30, 4)}
        yield f'report of {kind} with {targets} targets', report, (spaces, rng, targets)


def test_odd_vectors_are_refused_by_name_or_told_in_full(capsys):
    start, found = time.time(), {}
    for seed in SEEDS:
        for name, function, args in cases(seed):
            found[seed, name] = outcome(function, *args)
            if time.time() - start > 60:
                break
    bad = {k: v for k, v in found.items() if v not in ('report', 'error')}
    count = {v: sum(x == v for x in found.values()) for v in ('error', 'report')}
    losses = sum(v.startswith('loss') for v in bad.values())
    with capsys.disabled():
        print(f'\n{len(found)} cases in {time.time() - start:.0f} s: {count["error"]} named errors, ', end='')
        print(f'{count["report"]} reports, {len(bad) - losses} raw exceptions, {losses} silent losses')
    assert not bad, '\n'.join(f'{k}: {v}' for k, v in bad.items())
    assert min(count.values()) > 100


@pytest.mark.parametrize(
    'kind', ['nan', 'inf', 'objects', 'texts', 'ragged', 'flat', 'no dimension', 'complex', 'nothing']
)
@pytest.mark.parametrize('function', [topology, spaces_drawing, spaces_figure, topology_drawing])
def test_what_is_no_matrix_of_numbers_is_named(kind, function):
    bad = {'text': plain(np.random.default_rng(0), 12, 4), 'image': ODD[kind](np.random.default_rng(1), 12, 4)}
    with pytest.raises((ValueError, TypeError), match='image') as e:
        function(bad)
    assert is_named(e.value)
