"""Maps of another process, which is kept; and what is said of items without vectors, of equal vectors and of codes."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.data import Catalogue, DataError
from vlm2rec_lab.show import maps
from vlm2rec_lab.show.drawing import colour_column, spaces_drawing, topology_drawing
from vlm2rec_lab.show.figures import flat_map, spaces_figure, topology, topology_figure
from vlm2rec_lab.show.maps import _Worker, _worker, maps_elsewhere


@pytest.fixture
def z():
    "A new space for each test, so that no map is kept already."
    return {'text': np.random.default_rng(time.time_ns()).normal(size=(40, 6))}


# --- the worker -----------------------------------------------------------------------------------------------------


def test_the_second_map_comes_from_the_same_process(z, tmp_path):
    maps_elsewhere(z, 'pca', folder=tmp_path / 'a')
    first = _worker().process.pid
    again = maps_elsewhere(z, 'pca', folder=tmp_path / 'b')
    assert _worker().process.pid == first != os.getpid()
    assert np.allclose(again['text'][0], flat_map(z['text'])[0], atol=1e-4)


def test_a_worker_that_was_killed_is_replaced(z, tmp_path):
    maps_elsewhere(z, 'pca', folder=tmp_path / 'a')
    old = _worker().process
    old.kill()
    assert maps_elsewhere(z, 'pca', folder=tmp_path / 'b')['text'][0].shape == (40, 2)
    assert _worker().process.pid != old.pid and old.poll() is not None


def test_a_worker_that_dies_of_its_job_is_an_error_and_the_next_one_works(z, tmp_path, monkeypatch):
    worker = _Worker()
    start, started = worker.start, []

    def mortal():
        started.append(1)
        start()
        worker.process.kill()

    monkeypatch.setattr(maps, '_worker', lambda: worker)
    monkeypatch.setattr(worker, 'start', mortal)
    with pytest.raises(RuntimeError, match='the process was stopped'):
        maps_elsewhere(z, 'pca', folder=tmp_path)
    assert started == [1] and not worker.alive()
    monkeypatch.setattr(worker, 'start', start)
    assert maps_elsewhere(z, 'pca', folder=tmp_path)['text'][0].shape == (40, 2)
    worker.end()
    assert worker.ask(tmp_path, 'pca', 0) == 'the process was stopped' and worker.process is None


def test_an_error_is_told_and_does_not_end_the_worker(z, tmp_path):
    maps_elsewhere(z, 'pca', folder=tmp_path)
    pid = _worker().process.pid
    with pytest.raises(RuntimeError, match='at least 3'):
        maps_elsewhere({'a': np.eye(2)}, 'pca', folder=tmp_path)
    assert _worker().alive() and _worker().process.pid == pid


def test_a_late_answer_is_not_that_of_the_next_job(z, tmp_path, monkeypatch):
    "Whoever is interrupted while waiting leaves no answer behind."
    maps_elsewhere(z, 'pca', folder=tmp_path / 'a')
    worker, old = _worker(), _worker().process

    class Interrupted:
        def readline(self):
            raise KeyboardInterrupt

        def close(self):
            pass

    monkeypatch.setattr(old, 'stdout', Interrupted())
    with pytest.raises(KeyboardInterrupt):
        maps_elsewhere(z, 'pca', folder=tmp_path / 'b')
    assert old.poll() is not None and worker.process is None
    assert maps_elsewhere(z, 'pca', folder=tmp_path / 'b')['text'][0].shape == (40, 2)


def test_several_threads_get_their_own_maps(z, tmp_path):
    spaces = [{'s': z['text'] * [1, k, 1, 1, 1, 1]} for k in (1, 30, 900)]
    found = [None] * 3

    def work(k):
        found[k] = maps_elsewhere(spaces[k], 'pca', folder=tmp_path)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for space, got in zip(spaces, found):
        assert np.allclose(got['s'][0], flat_map(space['s'])[0], atol=1e-2)


ENDS = """
import numpy as np
from vlm2rec_lab.show.maps import _worker, maps_elsewhere
maps_elsewhere({'a': np.random.default_rng(3).normal(size=(9, 4))}, 'pca', folder='FOLDER')
print(_worker().process.pid, flush=True)
BYE
"""


@pytest.mark.parametrize('bye', ['', 'import os; os.kill(os.getpid(), 9)'])
def test_the_worker_ends_with_its_process(tmp_path, bye):
    code = ENDS.replace('FOLDER', str(tmp_path)).replace('BYE', bye)
    pid = int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
            with open(f'/proc/{pid}/stat') as f:
                if f.read().rsplit(')', 1)[1].split()[0] == 'Z':
                    return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.1)
    raise AssertionError('the worker is still there')


# --- items without a vector -----------------------------------------------------------------------------------------


@pytest.fixture
def gaps():
    "Sixty items of two spaces that agree; every third has no image."
    rng = np.random.default_rng(0)
    text = rng.normal(size=(60, 8))
    image = text + 0.3 * rng.normal(size=(60, 8))
    image[::3] = 0
    return {'text': text, 'image': image}


def shop(n, **columns):
    "A catalogue of n items with these columns."
    return Catalogue(tuple(f'p{i}' for i in range(n)), {}, {}, pd.DataFrame(dict(columns)))


def test_items_without_a_vector_are_left_out_of_a_topology(gaps):
    there = np.arange(60) % 3 > 0
    t, alone = topology(gaps, 60), topology({m: x[there] for m, x in gaps.items()}, 60)
    assert sorted(t.rows) == np.flatnonzero(there).tolist() and t.r == alone.r > 0.8
    assert all(r % 3 for pair in t.disputed() for r in t.rows[pair])
    assert t.said.endswith('of 40 items, one order for all; 20 of 60 items are left out: 20 have no image vector')
    assert '20 have no image vector' in topology_figure(gaps).layout.title.text
    drawing = topology_drawing(gaps)
    assert '20 of 60 items are left out' in drawing.meta['note'] and '40 products' in drawing.meta['note']


def test_a_sample_is_drawn_from_those_with_vectors(gaps):
    t = topology(gaps, 10)
    assert len(t.rows) == 10 and (t.rows % 3 > 0).all() and '10 items sampled from 40' in t.said


def test_items_without_a_vector_are_left_out_of_maps(gaps):
    d = spaces_drawing(gaps, shop(60, kind=[f'k{i % 4}' for i in range(60)]), colour='kind')
    assert d.meta['n'] == 40 and d.ids[:3] == ('p1', 'p2', 'p4') and len(d.vectors['text']) == 40
    assert '20 of 60 items are left out: 20 have no image vector.' in d.meta['note']
    assert len(d.blobs['column0']) == 40 and len(d.positions['pca']['xy']) == 3 * 40 * 2 * 4
    f = spaces_figure(gaps)
    assert len(f.data[0].x) == 40 and '20 have no image vector' in f.layout.title.text


def test_too_few_with_a_vector_is_an_error_that_says_why(gaps):
    none = dict(gaps, image=np.zeros((60, 8)))
    for f in (topology, spaces_drawing, spaces_figure, topology_drawing):
        with pytest.raises(ValueError, match='it takes at least 3'):
            f(none)
    with pytest.raises(ValueError, match='60 of 60 items are left out: 60 have no image vector'):
        topology(none)


# --- vectors that are equal, and those of one dimension -------------------------------------------------------------


def test_equal_vectors_are_said_to_be_equal(gaps):
    "Also where rounding makes them differ by a hair: no correlation of noise is shown."
    for image in (np.ones((60, 7)), np.random.default_rng(0).normal(size=7) * np.linspace(1, 9, 60)[:, None]):
        t = topology({'text': gaps['text'], 'image': image})
        assert t.r is None and t.flat == ('image',) and 'r unknown' in repr(t) and 'nan' not in repr(t)
        assert 'in image all items are equally alike' in t.said and len(t.disputed()) == 0
        d = topology_drawing({'text': gaps['text'], 'image': image})
        assert 'Nothing can be compared with image' in d.meta['note'] and 'NaN' not in d.fragment()
        assert d.meta['r'] is None and d.png()[:4] == b'\x89PNG'
    d = spaces_drawing({'text': gaps['text'], 'image': np.ones((60, 7))}, fuse=None)
    assert d.positions['pca']['trust'][1] is None and 'image unknown' in repr(d) and 'NaN' not in d.fragment()
    assert 'image (all vectors are equal)' in spaces_figure({'image': np.ones((60, 7))}).to_json()


def test_one_dimension_has_a_map_and_a_topology(gaps):
    one = {'text': gaps['text'][:, :1], 'other': gaps['text'][:, 1:2]}
    assert -1 <= topology(one).r <= 1
    assert np.frombuffer(spaces_drawing(one).positions['pca']['xy'], np.float32).shape == (3 * 60 * 2,)
    assert flat_map(np.arange(5.0)[:, None])[0][:, 1].tolist() == [0] * 5
    with pytest.raises(ValueError, match="method='pca' takes less"):
        flat_map(np.arange(9.0)[:, None], 'umap')
    with pytest.raises(ValueError, match=r"items\['text'\] has shape \(9,\): pass \[rows, dims\]"):
        topology({'text': np.arange(9.0)})


# --- colours --------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
CODES = dict(
    department_no=RNG.integers(1, 60, 200),
    categoryId=RNG.integers(10, 90, 200),
    kind=RNG.choice([1001, 1005, 1012, 1020, 1043, 2010, 2011, 3090, 4001, 5005], 200),
    article=RNG.permutation(900_000)[:200] + 100_000,
    gap=np.where(np.arange(200) % 9, RNG.choice([1001, 1205, 2310, 3420, 4001, 5100, 6100, 7300, 8080], 200), np.nan),
)
AMOUNTS = dict(
    year=RNG.integers(1950, 2000, 200),
    price=RNG.integers(3, 4000, 200),
    weight=RNG.normal(50, 9, 200),
    stock=RNG.integers(0, 30, 200),
    worth=RNG.choice([9.5, 19.5, 29.5, 39.5, 49.5, 59.5, 69.5, 79.5, 89.5], 200),
)


@pytest.mark.parametrize('name', [*CODES, *AMOUNTS])
def test_codes_have_colours_and_amounts_a_ramp(name):
    values = pd.Series((CODES | AMOUNTS)[name], name=name)
    assert colour_column(values)[0]['kind'] == ('words' if name in CODES else 'number')
    assert colour_column(values, kind='words')[0]['kind'] == 'words'
    assert colour_column(values, kind='number')[0]['kind'] == 'number'


def test_codes_are_written_as_they_are():
    column = colour_column(pd.Series(CODES['gap'], name='gap'))[0]
    assert '1001' in column['labels'] + ['1001'] and not any('.' in x for x in column['labels'])


def test_an_argument_forces_the_colours(gaps):
    cat = shop(60, year=RNG.integers(1950, 2000, 60), kind=['a', 'b'] * 30)
    kinds = [spaces_drawing(gaps, cat, colour='year', colour_as=k).meta['columns'][0]['kind'] for k in (None, 'words')]
    assert kinds == ['number', 'words']
    with pytest.raises(DataError, match="column 'kind' holds no numbers"):
        spaces_drawing(gaps, cat, colour='kind', colour_as='number')
    with pytest.raises(DataError, match="name it with colour="):
        spaces_drawing(gaps, cat, colour_as='words')
    with pytest.raises(DataError, match="did you mean 'words'"):
        spaces_drawing(gaps, cat, colour='year', colour_as='word')
