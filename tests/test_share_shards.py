"""A catalogue in shards gives the bits of the whole: encoded, ranked and searched by one process or by several."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shard_worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_worlds import EIGHT, begun, once_deadly, pid, slowly, vectors
from threadpoolctl import threadpool_limits

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.base.files import sole_writer
from vlm2rec_lab.ranking.candidates import seen_items
from vlm2rec_lab.ranking.evaluate import evaluate
from vlm2rec_lab.ranking.fusions import fuse_vectors
from vlm2rec_lab.ranking.ranks import metric_at_k, ranks
from vlm2rec_lab.share import shards as room
from vlm2rec_lab.share.index import build_index
from vlm2rec_lab.share.segments import unit_rows
from vlm2rec_lab.share.shards import (
    MANIFEST,
    Shards,
    dask_map,
    encode_shards,
    exact_parts,
    exact_product,
    rank_shards,
    search_shards,
)

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')  # of items without a picture, and the like

FUSIONS = ('concat', dict(text=3, image=1, sound=2), dict(text=1, image=0, sound=0))
WHOLE = vectors((0, 320))


def table(n):
    return pd.DataFrame(dict(item_id=[f'item-{i}' for i in range(n)]))


def cut_at(places, n):
    "{name: (first row, row behind the last)} of a catalogue that is cut at some places."
    edges = [0, *sorted(places), n]
    return {f's{k}': cut for k, cut in enumerate(zip(edges, edges[1:]))}


def in_shards(folder, whole, places):
    "Vectors in shards."
    n = len(next(iter(whole.values())))
    return encode_shards(folder, cut_at(places, n), lambda rows: {m: x[rows[0] : rows[1]] for m, x in whole.items()})


def same_ranks(found, true):
    return all((getattr(found, f) == getattr(true, f)).all() for f in ('greater', 'ties', 'candidates'))


def asked(n_items=320, n=150, seed=1):
    "Users, their targets and what they have seen."
    rng = np.random.default_rng(seed)
    users = {m: rng.normal(size=(n, d)).astype(np.float32) for m, d in shard_worlds.DIMS.items()}
    targets = rng.integers(0, n_items, n)
    lists = [rng.choice(n_items, rng.integers(0, 30), replace=False) for _ in targets]
    return users, targets, [s[s != t] for s, t in zip(lists, targets)]


# ---- the same as whole

NOTCHES = st.sampled_from((-1, 0, 1))


@st.composite
def tied_worlds(draw):
    "Items of very few vectors, so that most stand there several times and score the same, in any cut."
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n, users = draw(st.integers(1, 60)), draw(st.integers(1, 20))

    def rows(count):
        kinds = np.concatenate([np.eye(4), -np.eye(4), [[1, 1, 1, 1], [1, -1, 1, -1], [0, 0, 0, 0]]])  # lengths 1, 2, 0
        return kinds[rng.integers(0, draw(st.integers(1, len(kinds))), count)].astype(np.float32)

    items, theirs = ({m: rows(k) for m in ('text', 'image')} for k in (n, users))
    targets = rng.integers(0, n, users)
    lists = [rng.choice(n, rng.integers(0, n), replace=False) for _ in targets]
    places = draw(st.lists(st.integers(0, n), max_size=6))
    return items, theirs, targets, [s[s != t] for s, t in zip(lists, targets)], places


@settings(max_examples=120, deadline=None)
@given(tied_worlds(), st.sampled_from(('sum', 'concat', dict(text=3, image=1))))
def test_ties_and_copies_are_counted_as_whole(tmp_path_factory, world, fuse):
    items, users, targets, seen, places = world
    made = in_shards(tmp_path_factory.mktemp('s'), items, places)
    found = rank_shards(made, users, targets, seen, fuse)
    units = [{m: unit_rows(x) for m, x in side.items()} for side in (items, users)]
    whole = *fuse_vectors(*units, fuse), targets, seen_items(seen, targets, len(made))
    for large in (0, np.inf):
        assert same_ranks(found, ranks(*whole, large=large))


@settings(max_examples=80, deadline=None)
@given(tied_worlds(), st.integers(1, 70), st.booleans())
def test_ties_and_copies_are_found_as_by_an_index(tmp_path_factory, world, k, some):
    items, users, _, seen, places = world
    folder = tmp_path_factory.mktemp('s')
    index = build_index(folder / 'index', items, table(len(items['text'])))
    made, left = in_shards(folder / 'shards', items, places), [s.tolist() for s in seen] if some else None
    true = index.query(users, k, seen=left)
    rows, scores = search_shards(made, users, k, seen=left)
    assert (rows == true.rows).all() and (scores == true.scores).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 320), max_size=7), st.sampled_from(FUSIONS), st.integers(0, 99))
def test_any_cut_gives_the_figures_of_the_whole(tmp_path_factory, places, fuse, seed):
    users, targets, seen = asked(seed=seed)
    made = in_shards(tmp_path_factory.mktemp('s'), WHOLE, places)
    true = evaluate(WHOLE, users, targets, seen, fuse=fuse).ranks['fused']
    assert same_ranks(rank_shards(made, users, targets, seen, fuse), true)


def test_a_large_table_is_counted_as_by_blocks(tmp_path):
    "For all users of whom no score lies within two digits of the border of what is a tie: there any order may decide."
    rng, eps = np.random.default_rng(3), np.finfo(np.float32).eps
    items, users = (rng.normal(size=(n, 40)).astype(np.float32) for n in (9000, 700))
    items[6000:] = items[:3000]
    targets = rng.integers(0, 9000, 700)
    found = rank_shards(in_shards(tmp_path, dict(text=items), [1, 5000, 8999]), dict(text=users), targets)
    units = unit_rows(items), unit_rows(users)
    true = ranks(*units, targets, large=0)
    s = units[1].astype(float) @ units[0].T.astype(float)
    far = np.abs(s - s[np.arange(700), targets][:, None])
    sure = ~((far > 6 * eps) & (far < 10 * eps)).any(1)
    assert sure.mean() > 0.9 and (true.ties[sure] > 0).sum() > 300
    assert (found.greater == true.greater)[sure].all() and (found.ties == true.ties)[sure].all()


@pytest.mark.parametrize('d', [48, 1025])  # from about a thousand dimensions on, two threads add up in another order
def test_a_pair_scores_the_same_in_every_cut(tmp_path, d):
    "Items that differ from the target's by some of the last digits, on both sides of what is still a tie."
    rng = np.random.default_rng(0)
    kinds = unit_rows(rng.normal(size=(40, d)))
    items = kinds[rng.integers(0, 40, 3000)] + rng.normal(size=(3000, d)) * 7e-6 / d**0.5
    users, targets = dict(text=kinds[rng.integers(0, 40, 300)]), rng.integers(0, 3000, 300)
    found = []
    for k, places in enumerate(([], [1], [1500], [7, 8, 1024, 1025, 2999], range(0, 3000, 100))):
        made = in_shards(tmp_path / str(k), dict(text=items.astype(np.float32)), places)
        with threadpool_limits(1 + k % 2, 'blas'):
            found.append(rank_shards(made, users, targets))
    assert found[0].ties.sum() > 1000 and len(set(found[0].greater.tolist())) > 100
    assert all(same_ranks(f, found[0]) for f in found[1:])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 128), st.integers(1, 1024), st.sampled_from(('float32', 'float64')), st.integers(0, 10**6))
def test_a_product_is_the_same_wherever_it_stands(n, m, dtype, seed):
    rng = np.random.default_rng(seed)
    d, parts = int(rng.integers(1, 400)), 1 + (dtype == 'float64')
    users, items = ((rng.normal(size=(k, d)) * 10.0 ** rng.integers(-9, 9, (k, 1))).astype(dtype) for k in (128, 1024))
    users[rng.integers(0, 128, 5)] = items[rng.integers(0, 1024, 5)] = 0
    rows, columns, kept = rng.permutation(128)[:n], rng.permutation(1024)[:m], rng.permutation(d)
    whole = exact_product(exact_parts(users, parts), exact_parts(items, parts))
    with threadpool_limits(1 + seed % 2, 'blas'):
        some = exact_product(
            exact_parts(users[rows][:, kept], parts), exact_parts(np.asfortranarray(items[columns][:, kept]), parts)
        )
    assert (some == whole[rows][:, columns]).all()
    longest = np.linalg.norm(users.astype(float), axis=1)[:, None] * np.linalg.norm(items.astype(float), axis=1)
    error = np.abs(whole - users.astype(float) @ items.astype(float).T)
    assert (error <= longest * (8 * d**0.5 * 2.0**-27 if parts == 1 else d * 2.0**-50)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.sampled_from((1, 2)), st.integers(0, 10**6))
def test_parts_multiply_without_rounding(d, parts, seed):
    "By fractions of whole numbers, which know no rounding."
    rng = np.random.default_rng(seed)
    u, i = (rng.normal(size=(1, d)) * 10.0 ** rng.integers(-9, 9, (1, d)) for _ in range(2))
    for x in exact_parts(u, parts):
        for y in exact_parts(i, parts):
            true = sum(Fraction(a) * Fraction(b) for a, b in zip(x[0].tolist(), y[0].tolist()))
            assert Fraction(float((x @ y.T)[0, 0])) == true
    assert parts == 1 or np.allclose(sum(exact_parts(u, parts)), u, rtol=0, atol=2.0**-50 * np.linalg.norm(u))


KERNELS = """
import sys
import numpy as np
from vlm2rec_lab.share.shards import encode_shards, rank_shards
rng = np.random.default_rng(0)
kinds = rng.normal(size=(40, 200))
items = (kinds[rng.integers(0, 40, 3000)] + rng.normal(size=(3000, 200)) * 7e-6).astype('float32')
made = encode_shards(sys.argv[1], {'a': (0, 7), 'b': (7, 3000)}, lambda rows: dict(text=items[slice(*rows)]))
found = rank_shards(made, dict(text=kinds[rng.integers(0, 40, 300)]), rng.integers(0, 3000, 300))
print(found.ties.sum(), found.greater.tolist(), found.ties.tolist())
"""


def test_processors_of_other_kinds_count_alike(tmp_path):
    "The matrix library takes its ways through a product by the processor; those of others can be asked for."
    env = dict(os.environ, PYTHONPATH=str(Path(room.__file__).parents[2]))
    kinds = (None, 'Haswell', 'Sandybridge', 'Prescott')
    told = [
        subprocess.run(
            [sys.executable, '-c', KERNELS, tmp_path / str(k)],
            env=dict(env, **({'OPENBLAS_CORETYPE': k} if k else {})),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for k in kinds
    ]
    assert int(told[0].split()[0]) > 1000 and len(set(told)) == 1


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('size', [1e3, 1e5, 1e8, 1e12])
def test_a_long_part_of_a_vector_hides_no_short_one(tmp_path, dtype, size):
    "Parts that add nothing to any score, on both sides, and weights of modalities that items lack."
    users, targets, seen = asked()
    items, users = WHOLE | dict(mark=np.eye(2)[[0] * 320]), users | dict(mark=np.eye(2)[[1] * len(targets)])
    items, users = ({m: x.astype(np.float32) for m, x in side.items()} for side in (items, users))
    made = in_shards(tmp_path / dtype, items, [100, 101, 300])

    def long(sides):
        return np.concatenate([x * (size if m == 'mark' else 1) for m, x in sides.items()], 1).astype(dtype)

    for fuse in (long, dict(text=1, image=1 / size, sound=1, mark=0)):
        true = evaluate(items, users, targets, seen, fuse=fuse).ranks['fused']
        assert (rank_shards(made, users, targets, seen, fuse).expected != true.expected).mean() < 0.02


def by_length(sides):
    "The texts, as long as their first number says."
    return sides['text'] * 10 ** (3 * sides['text'][:, :1])


@pytest.mark.parametrize('fuse', [dict(text=1, image=9), by_length], ids=['weights', 'own'])
@pytest.mark.parametrize('places', [[], [400], [1, 30, 700, 2100], [2099]])
def test_ties_are_measured_by_the_whole_catalogue(tmp_path, fuse, places):
    "Scores lie a few of the last digits apart; the items of some shards are ten times as long as the others."
    rng = np.random.default_rng(0)
    whole = {m: rng.normal(size=(2200, d)) for m, d in (('text', 6), ('image', 4))}
    whole['image'][700:] = 0
    whole['text'][::2] = whole['text'][0] + 3e-6 * rng.normal(size=(1100, 6))
    whole = {m: x.astype(np.float32) for m, x in whole.items()}
    users = {m: rng.normal(size=(20, d)).astype(np.float32) for m, d in (('text', 6), ('image', 4))}
    targets = 2 * rng.integers(0, 1100, 20)
    found = rank_shards(in_shards(tmp_path / 'cut', whole, places), users, targets, fuse=fuse)
    assert same_ranks(found, rank_shards(in_shards(tmp_path / 'whole', whole, []), users, targets, fuse=fuse))
    true = evaluate(whole, users, targets, fuse=fuse).ranks['fused']
    assert abs(found.ties - true.ties).mean() < 0.2 * true.ties.mean()  # in float32 some of them fall otherwise


def test_a_target_that_was_seen_stays_a_candidate(tmp_path):
    made = in_shards(tmp_path, WHOLE, [100])
    users, targets, seen = asked()
    with pytest.warns(UserWarning, match='list their own target'):
        found = rank_shards(made, users, targets, [np.append(s, t) for s, t in zip(seen, targets)], 'concat')
    assert same_ranks(found, rank_shards(made, users, targets, seen, 'concat'))


def test_one_modality_and_metrics(tmp_path):
    made = in_shards(tmp_path, dict(text=WHOLE['text']), [10, 200])
    users, targets, seen = asked()
    true = evaluate(dict(text=WHOLE['text']), dict(text=users['text']), targets, seen)
    found = rank_shards(made, dict(text=users['text']), targets, seen)
    assert (metric_at_k(found, 10) == metric_at_k(true.ranks['text'], 10)).all()


def test_vectors_in_another_order_of_memory(tmp_path):
    turned = {m: np.asfortranarray(x) for m, x in WHOLE.items()}
    made, users = in_shards(tmp_path / 's', turned, [7, 100]), asked()[0]
    assert (made.parts(*[np.zeros(0, int)] * 2)[1].vectors()['text'] == unit_rows(turned['text'][7:100])).all()
    true = build_index(tmp_path / 'index', turned, table(320)).query(users, 9)
    rows, scores = search_shards(made, users, 9)
    assert (rows == true.rows).all() and (scores == true.scores).all()


def test_a_job_opens_its_own_shard_only(tmp_path, monkeypatch):
    made, opened = in_shards(tmp_path, WHOLE, [100, 200]), []

    def run(f, jobs):
        for job in jobs:
            opened.clear()
            yield f(job)
            assert opened == [job.name]

    true = room.map_matrices
    monkeypatch.setattr(room, 'map_matrices', lambda path: opened.append(Path(path).stem) or true(path))
    users, targets, seen = asked()
    rank_shards(made, users, targets, seen, 'concat', run)
    search_shards(made, users, 5, run=run)


def test_only_shards_that_have_a_target_are_asked_for_its_score(tmp_path):
    made, told = in_shards(tmp_path, WHOLE, [100, 200]), []

    def run(f, jobs):
        told.append([job.name for job in jobs])
        return map(f, jobs)

    users, targets, _ = asked()
    rank_shards(made, users, targets % 100 + 100, fuse='concat', run=run)
    assert told == [['s1'], *[['s0', 's1', 's2']] * 2]  # the others are about the whole catalogue


# ---- a run that stops


def test_what_stands_is_not_encoded_again(tmp_path):
    log = tmp_path / 'log'
    made = encode_shards(tmp_path / 's', EIGHT, partial(slowly, log=log, seconds=0))
    before = {f.name: f.read_bytes() for f in made.folder.glob('*.safetensors')}
    (made.folder / 's3.safetensors').unlink()
    (made.folder / 's5.safetensors').write_bytes(before['s5.safetensors'][:-4])
    again = encode_shards(tmp_path / 's', EIGHT, partial(slowly, log=log, seconds=0))
    assert begun(log) == [*range(0, 320, 40), 120, 200] and len(again) == 320
    assert {f.name: f.read_bytes() for f in made.folder.glob('*.safetensors')} == before


@pytest.mark.processes
@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(tmp_path):
    folder, log = tmp_path / 's', tmp_path / 'log'
    process = subprocess.Popen([sys.executable, shard_worlds.__file__, str(folder), str(log)])
    while not log.exists() or len(begun(log)) < 4:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (folder / '.s3.safetensors-half').write_bytes(b'half of a shard')  # as a writer leaves it that dies while it writes
    with pytest.raises(FileNotFoundError, match='there are no shards'):
        Shards(folder)
    stood, n = {f.stem for f in folder.glob('s*.safetensors')}, len(begun(log))
    made = encode_shards(folder, EIGHT, partial(slowly, log=log, seconds=0))
    assert len(stood) >= 3 and begun(log)[n:] == [a for name, (a, _) in EIGHT.items() if name not in stood]
    assert not list(folder.glob('.*-half'))
    assert (
        np.concatenate([p.vectors()['text'] for p in made.parts(*[np.zeros(0, int)] * 2)]) == unit_rows(WHOLE['text'])
    ).all()


def test_shards_made_by_something_else_are_refused(tmp_path):
    encode_shards(tmp_path, EIGHT, vectors, made_by='one')
    with pytest.raises(DataError, match=r"shard 's0' was made with made_by='one' \(now 'two'\): choose another folder"):
        encode_shards(tmp_path, EIGHT, vectors, made_by='two')
    with pytest.raises(DataError, match="shard 's0' was made with source="):
        encode_shards(tmp_path, dict(s0=(0, 41)), vectors, made_by='one')


def test_one_run_at_a_time(tmp_path):
    with sole_writer(tmp_path), pytest.raises(DataError, match='another process'):
        encode_shards(tmp_path, EIGHT, vectors)


# ---- what cannot be


def test_a_shard_of_another_width(tmp_path):
    def encode(rows):
        return dict(text=np.ones((rows[1] - rows[0], 5 if rows[0] == 40 else 4)))

    with pytest.raises(DataError, match=r"shard 's1' has {'text': 5} dimensions and shard 's0' has {'text': 4}"):
        encode_shards(tmp_path, EIGHT, encode)
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize('what', ['rank', 'search'])
@pytest.mark.parametrize(
    'damage, said',
    [
        (lambda f: f.unlink(), "shard 's2' is lacking, there is no .*: call encode_shards again"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), "shard 's2' is damaged"),
        (
            lambda f: f.write_bytes(f.with_name('s7.safetensors').read_bytes()),
            "shard 's2' is .*: remove .*s2.safetensors",
        ),
    ],
)
def test_a_shard_that_cannot_be_read(tmp_path, what, damage, said):
    users, targets, _ = asked()
    made = encode_shards(tmp_path, EIGHT | dict(s7=(280, 319)), vectors)
    damage(tmp_path / 's2.safetensors')
    with pytest.raises(DataError, match=said):
        rank_shards(made, users, np.minimum(targets, 300), fuse='concat') if what == 'rank' else search_shards(
            made, users
        )


@pytest.mark.parametrize('target', [-1, 320])
def test_a_target_outside(tmp_path, target):
    made = encode_shards(tmp_path, EIGHT, vectors)
    users, targets, _ = asked()
    targets[7] = target
    said = f"target of user 7 is item {target}, and the shards from 's0' to 's7' have the rows 0 to 319: give"
    with pytest.raises(DataError, match=said):
        rank_shards(made, users, targets, fuse='concat')


def test_questions_that_do_not_fit(tmp_path):
    made = encode_shards(tmp_path, EIGHT, vectors)
    users, targets, _ = asked()
    with pytest.raises(DataError, match='targets is float64'):
        rank_shards(made, users, targets.astype(float), fuse='concat')
    with pytest.raises(ValueError, match='lists item 320'):
        rank_shards(made, users, targets, [[320]] * 150, 'concat')
    with pytest.raises(ValueError, match='needs equal dims'):
        rank_shards(made, users, targets)
    with pytest.raises(DataError, match='seen holds what is neither'):
        search_shards(made, users, seen=[[320]] * 150)


@pytest.mark.parametrize('text', ['', '{}', '{"modalities": {"text": 1}, "shards": 3}', '[]'])
def test_a_damaged_list_of_shards(tmp_path, text):
    encode_shards(tmp_path, EIGHT, vectors)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match='is damaged .*: call encode_shards again, which keeps what stands'):
        Shards(tmp_path)
    assert len(encode_shards(tmp_path, EIGHT, lambda rows: 1 / 0)) == 320


LISTED = {  # shards of a manifest: why it is damaged
    '[["s0", -40]]': "shard 's0' has -40 rows",
    '[["s0", 40.5]]': "shard 's0' has 40.5 rows",
    '[["s0", true]]': "shard 's0' has True rows",
    '[["../x", 40]]': "'../x' is no name of a shard",
    '[[3, 40]]': '3 is no name of a shard',
    '[["s0", 40], ["s0", 40]]': 'a shard stands there twice',
}


@pytest.mark.parametrize('shards', LISTED)
def test_a_list_of_shards_that_cannot_be(tmp_path, shards):
    encode_shards(tmp_path, EIGHT, vectors)
    (tmp_path / MANIFEST).write_text(f'{{"modalities": {{"text": 1}}, "shards": {shards}}}')
    with pytest.raises(DataError, match='is damaged .*call encode_shards again') as e:
        Shards(tmp_path)
    assert LISTED[shards] in str(e.value)


@pytest.mark.parametrize('source', [float('nan'), [1, float('nan')], dict(a=[float('nan')])])
def test_a_source_that_is_never_itself_is_refused_at_once(tmp_path, source):
    with pytest.raises(DataError, match="shard 'a' is made of NaN, which equals nothing"):
        encode_shards(tmp_path, dict(a=source), lambda s: 1 / 0)
    for _ in range(2):
        assert len(encode_shards(tmp_path, dict(a=[float('inf'), 'NaN']), lambda s: vectors((0, 40)))) == 40


def test_a_folder_of_other_files(tmp_path):
    from safetensors.numpy import save_file

    save_file(dict(weight=np.ones(3)), tmp_path / 's0.safetensors')
    with pytest.raises(DataError, match="shard 's0' was made with name=None .*: choose another folder, or remove"):
        encode_shards(tmp_path, EIGHT, vectors)


# ---- several processes


@pytest.mark.processes
@pytest.mark.slow
def test_a_pool_of_processes_is_an_engine(tmp_path):
    users, targets, seen = asked()
    one = encode_shards(tmp_path / 'one', EIGHT, vectors)
    with ProcessPoolExecutor(2, get_context('spawn')) as pool:
        two = encode_shards(tmp_path / 'two', EIGHT, vectors, run=pool.map)
        found = rank_shards(two, users, targets, seen, 'concat', pool.map)
    assert same_ranks(found, rank_shards(one, users, targets, seen, 'concat'))


@pytest.fixture(scope='module')
def client(tmp_path_factory):
    "Two workers of Dask on loopback, a process each."
    distributed = pytest.importorskip('distributed')
    about = dict(n_workers=2, threads_per_worker=1, dashboard_address=None, host='127.0.0.1')
    where = str(tmp_path_factory.mktemp('dask'))
    with distributed.LocalCluster(**about, local_directory=where) as cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(2, timeout=600)
        yield client


both = [pytest.mark.processes, pytest.mark.slow]


class TestDask:
    pytestmark = both

    def test_two_workers_give_the_bits_of_one_process(self, client, tmp_path):
        run = dask_map(client)
        assert len(set(run(pid, range(6))) - {os.getpid()}) == 2
        one, two = (encode_shards(tmp_path / w, EIGHT, vectors, run=r) for w, r in (('one', map), ('two', run)))
        for f in one.folder.glob('s*'):
            assert f.read_bytes() == (two.folder / f.name).read_bytes()
        users, targets, seen = asked()
        for fuse in FUSIONS:
            true = evaluate(WHOLE, users, targets, seen, fuse=fuse).ranks['fused']
            for made, engine in ((one, map), (one, run), (two, run)):
                assert same_ranks(rank_shards(made, users, targets, seen, fuse, engine), true)
        true = build_index(tmp_path / 'index', WHOLE, table(320)).query(users, 9, seen=seen)
        rows, scores = search_shards(two, users, 9, seen=seen, run=run)
        assert (rows == true.rows).all() and (scores == true.scores).all()

    def test_both_workers_encode_and_what_stands_is_not_encoded_again(self, client, tmp_path):
        log, run = tmp_path / 'log', dask_map(client)
        encode_shards(tmp_path / 's', EIGHT, partial(slowly, log=log, seconds=0.3), run=run)
        assert sorted(begun(log)) == list(range(0, 320, 40))
        assert len({line.split()[1] for line in log.read_text().splitlines()}) == 2
        (tmp_path / 's' / 's6.safetensors').unlink()
        encode_shards(tmp_path / 's', EIGHT, partial(slowly, log=log, seconds=0), run=run)
        assert begun(log)[8:] == [240]

    def test_a_worker_that_dies_is_replaced(self, client, tmp_path):
        log = tmp_path / 'log'
        made = encode_shards(
            tmp_path / 's', EIGHT, partial(once_deadly, mark=tmp_path / 'mark', log=log), run=dask_map(client)
        )
        assert (tmp_path / 'mark').exists() and len(made) == 320
        client.wait_for_workers(2, timeout=600)
        users, targets, seen = asked()
        one = encode_shards(tmp_path / 'one', EIGHT, vectors)
        found = rank_shards(made, users, targets, seen, 'concat', dask_map(client))
        assert same_ranks(found, rank_shards(one, users, targets, seen, 'concat'))

    def test_an_error_of_a_worker_arrives_as_it_was_said(self, client, tmp_path):
        users, targets, _ = asked()
        made = encode_shards(tmp_path, EIGHT, vectors)
        (tmp_path / 's4.safetensors').unlink()
        with pytest.raises(DataError, match="shard 's4' is lacking"):
            rank_shards(made, users, targets, fuse='concat', run=dask_map(client))
        assert list(dask_map(client)(abs, [-1, 2])) == [1, 2]  # the workers go on


def test_nothing_of_dask_is_loaded():
    code = (
        'import sys, vlm2rec_lab.share.shards; print([m for m in ("dask", "distributed", "torch") if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


def test_the_list_of_shards_is_plain_json(tmp_path):
    encode_shards(tmp_path, EIGHT, vectors)
    about = json.loads((tmp_path / MANIFEST).read_text())
    assert about == dict(modalities=shard_worlds.DIMS, shards=[[name, 40] for name in EIGHT])


def test_users_without_a_modality_are_ranked_by_none(tmp_path):
    "As `evaluate` refuses them; a search takes them."
    rng = np.random.default_rng(0)
    whole = {m: rng.normal(size=(90, d)).astype(np.float32) for m, d in shard_worlds.DIMS.items()}
    users, targets, _ = asked(90, 20)
    made = in_shards(tmp_path, whole, [30, 60])
    first, *others = users
    with pytest.raises(DataError, match=f"users lack the modality '{others[0]}'"):
        rank_shards(made, {first: users[first]}, targets)
