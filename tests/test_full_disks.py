"""Full disks, places that cannot be written and files that are damaged: what is said, and what is left."""

import json
import os
import re
import resource
import shutil
import signal
import sys
import warnings
from multiprocessing import get_context

import numpy as np
import pytest
from shell import own_shop, said

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.base.files import sole_writer, whole_file, whole_folder, write_bytes
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.ranking.vectors import write_vectors
from vlm2rec_lab.recommenders.downstream import _read
from vlm2rec_lab.studies import workers

SIDES = {'items': 20, 'sequences': 40}
pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')


def with_room_for(most, f, *args):
    "What `f(*args)` says, or how it fails, in a process that cannot write larger files: like a disk without room."
    answers, here = get_context('fork').Pipe(duplex=False)

    def life():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sys.dont_write_bytecode = True  # what is imported below would be kept by halves
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        warnings.simplefilter('ignore')
        try:
            here.send(f(*args))
        except BaseException as e:
            here.send((type(e).__name__, str(e)))
        os._exit(0)

    process = get_context('fork').Process(target=life)
    process.start()
    here.close()
    answer = answers.recv()
    process.join()
    return answer


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


@pytest.fixture(scope='module')
def vectors(tmp_path_factory):
    "A file of vectors of twenty items and forty customers."
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp('vectors') / 'vectors.npz'
    sides = {side: {m: rng.normal(size=(n, 4)) for m in ('text', 'image')} for side, n in SIDES.items()}
    write_vectors(file, dict(sides, targets=rng.integers(0, 20, 40)))
    return file


# ---- one file, one folder


def test_a_file_without_room_is_named_and_the_old_one_stays(tmp_path):
    file = tmp_path / 'report.html'
    file.write_bytes(b'old')
    kind, text = with_room_for(1000, write_bytes, file, b'x' * 5000)
    assert kind == 'OSError' and str(file) in text and 'File too large (choose a place' in text
    assert file.read_bytes() == b'old' and names(tmp_path) == ['report.html']


@pytest.mark.parametrize('write', [lambda p: write_bytes(p, b'x'), lambda p: sole_writer(p).__enter__()])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, write):
    (tmp_path / 'notes').write_bytes(b'x')
    for path in (tmp_path / 'notes' / 'a', tmp_path / 'notes' / 'a' / 'b'):
        with pytest.raises(OSError, match='notes is a file, where a folder is needed: choose another place'):
            write(path)
    assert names(tmp_path) == ['notes']


def test_a_place_that_may_not_be_written_is_named_without_the_draft(tmp_path, monkeypatch):
    def closed(dir, prefix):
        raise OSError(30, 'Read-only file system', f'{dir}/{prefix}abcd1234')

    monkeypatch.setattr('tempfile.mkstemp', closed)
    monkeypatch.setattr('tempfile.mkdtemp', closed)
    for write in (lambda p: write_bytes(p, b'x'), lambda p: whole_folder(p).__enter__()):
        with pytest.raises(OSError, match='choose a place that you may write to') as told:
            write(tmp_path / 'mine')
        assert told.value.filename == str(tmp_path / 'mine') and told.value.errno == 30


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / 'report').mkdir()
    with pytest.raises(IsADirectoryError, match='a folder has this name') as told:
        write_bytes(tmp_path / 'report', b'x')
    assert told.value.filename == str(tmp_path / 'report') and names(tmp_path) == []


def test_an_error_about_something_else_keeps_its_words(tmp_path):
    with pytest.raises(FileNotFoundError, match='weights'), whole_file(tmp_path / 'x'):
        open(tmp_path / 'weights')
    with pytest.raises(PermissionError, match='^.Errno 13. closed: .*weights'), whole_folder(tmp_path / 'y'):
        raise PermissionError(13, 'closed', str(tmp_path / 'weights'))
    assert names(tmp_path) == []


# ---- embedders


def test_an_embedder_without_room_is_one_error_with_its_name(checkpoint, tmp_path):
    "Weights are written in Rust, which has errors of its own."
    embedder = VLMEmbedder.from_pretrained(checkpoint, lora=8, device='cpu')
    there = embedder.save_pretrained(tmp_path / 'mine')
    before = {n: (tmp_path / n).read_bytes() for n in names(tmp_path)}
    largest = max(map(len, before.values()))
    for most in (100, largest - 1):
        kind, text = with_room_for(most, embedder.save_pretrained, there)
        assert kind == 'OSError' and str(there) in text and 'choose a place' in text, (kind, text)
        assert {n: (tmp_path / n).read_bytes() for n in names(tmp_path)} == before


def test_a_draft_of_a_killed_writer_does_not_stop_a_run_that_goes_on(checkpoint, tmp_path):
    embedder = VLMEmbedder.from_pretrained(checkpoint, lora=2, device='cpu')
    there = embedder.save_pretrained(tmp_path / 'sft')
    (there / 'metrics.json').write_text('{}')
    for left in ('.metrics.json-k1ll3d__', '.embedder.json-k1ll3d__'):
        (there / left).write_text('{"ha')
    embedder.save_pretrained(there, keep=('metrics.json',))
    assert 'metrics.json' in names(there) and not [n for n in names(there) if 'k1ll3d' in n]


# ---- what a run keeps


@pytest.mark.parametrize('data', [b'', b'{"asked": {"se', b'[]', b'\xff\xfe'])
def test_a_damaged_cell_of_a_study_is_named(tmp_path, data):
    cell = dict(condition='text-easy', remedy='sft', seed=0)
    file = tmp_path / workers.cell_name(**cell)
    file.write_bytes(data)
    for read in (lambda: workers.run_study(tmp_path, [cell], progress=False), lambda: workers.stored_cells(tmp_path)):
        with pytest.raises(DataError, match='is damaged .*: remove it') as told:
            read()
        assert str(file) in str(told.value)


def test_a_worker_without_room_is_one_line(tmp_path, monkeypatch):
    "A disk that is full is no fault of the program, and has no traceback."
    monkeypatch.setattr(workers, '_ask', lambda worker, cell: dict(refused="[Errno 28] No space left: 'cell.json'"))
    monkeypatch.setattr(workers, '_start_worker', lambda out: _Idle())
    argv = ['study', '--conditions', 'text-easy', '--remedies', 'sft', '--seeds', '1', '--out', tmp_path / 'study']
    status, _, err = said(*argv)
    assert status == 2 and 'No space left' in err and 'text-easy--sft' in err and 'Traceback' not in err, err


class _Idle:
    "A worker that is never asked."

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    @property
    def stdin(self):
        return self

    def close(self):
        return None


def test_a_study_has_one_writer(tmp_path):
    cell = dict(condition='text-easy', remedy='sft', seed=0)
    with sole_writer(tmp_path), pytest.raises(DataError, match='is being written by another process'):
        workers.run_study(tmp_path, [cell], progress=False)


# ---- commands


@pytest.mark.parametrize('ending', ['.html', '.json', '.md'])
def test_a_report_without_room_is_one_line(tmp_path, vectors, ending):
    out = tmp_path / f'report{ending}'
    out.write_text('old')
    answer = with_room_for(1000, said, 'report', vectors, '--out', out)
    assert len(answer) == 3, answer
    status, _, err = answer
    assert status == 2 and str(out) in err and 'choose a place' in err and 'Traceback' not in err
    assert out.read_text() == 'old' and names(tmp_path) == [out.name]


# ---- a run that goes on


@pytest.fixture(scope='module')
def trained(tmp_path_factory, checkpoint):
    "A shop and a finished run on it."
    shop = own_shop(tmp_path_factory.mktemp('shop'))
    argv = ['train', '--data', shop, '--model', checkpoint, '--losses', 'sft', '--steps', '2', '--batch', '4']
    status, _, err = said(*argv, '--out', shop / 'run')
    assert status == 0, err
    return argv, shop / 'run'


TORN = {  # file of a run: what is said where only half of it is there, '' where the run goes on
    'run.json': 'run.json is damaged .*: remove it, or choose another --out',
    'inputs.json': 'inputs.json is damaged .*: remove it',
    'split.safetensors': 'run: split.safetensors is no saved split.* or remove split.safetensors and go on',
    'checkpoint-sft.safetensors': 'there is none before it: remove it, and the run begins anew',
    'sft/embedder.json': 'sft/embedder.json is damaged, .*: remove that folder, or choose another',
    'sft/metrics.json': '',
}
MENDED = 'split.safetensors', 'sft/embedder.json'  # of which it is shown that the remedy is one


@pytest.mark.parametrize('name', TORN)
def test_a_torn_file_of_a_run_is_named_with_what_to_do(trained, tmp_path, name):
    "And after that the run goes on, to what it was."
    argv, run = trained
    out = shutil.copytree(run, tmp_path / 'run')
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole[: len(whole) // 2])
    status, _, err = said(*argv, '--out', out, '--resume')
    assert 'Traceback' not in err and status == (2 if TORN[name] else 0), err
    if TORN[name]:
        (line,) = [line for line in err.splitlines() if line.startswith('vlm2rec train: ')]
        assert re.search(TORN[name], line) and str(out) in line, line
        shutil.rmtree(out / 'sft') if name == 'sft/embedder.json' else (out / name).unlink()
    if name in MENDED:
        status, _, err = said(*argv, '--out', out, '--resume')
        assert status == 0, err
    if not TORN[name] or name in MENDED:
        assert json.loads((out / 'sft/metrics.json').read_text()) == json.loads((run / 'sft/metrics.json').read_text())


def test_a_place_that_may_not_be_written_is_told_at_once(trained, tmp_path, vectors, monkeypatch):
    "Not after an hour of work."
    monkeypatch.setattr('os.access', lambda path, how: False)
    argv, _ = trained
    for more in ([*argv, '--out', tmp_path / 'run'], ['report', vectors, '--out', tmp_path / 'report.html']):
        status, _, err = said(*more)
        assert status == 2 and f'{tmp_path} may not be written' in err, err
    assert names(tmp_path) == []
    (tmp_path / 'notes').write_text('x')
    status, _, err = said('report', vectors, '--out', tmp_path / 'notes' / 'report.html')
    assert status == 2 and 'notes is a file' in err, err


def test_damaged_vectors_of_a_source_are_named(tmp_path):
    np.savez(tmp_path / 'raw-0.npz', about=np.array('{}'), text=np.ones(400))
    data = (tmp_path / 'raw-0.npz').read_bytes()
    for half in (b'', data[:40], data[: len(data) // 2]):
        (tmp_path / 'raw-0.npz').write_bytes(half)
        with pytest.raises(DataError, match='raw-0.npz is damaged .*remove it'):
            _read(tmp_path / 'raw-0.npz', dict(inputs={}))
