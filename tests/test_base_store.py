"""The store on disk: keys by content, one writer, and appends that survive a kill and a reader in their middle."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from vlm2rec_lab.base.store import INDEX, VALUES, KeyedRows, RowWriter, Store, content_key, weights_key, writing

ROOT = Path(__file__).resolve().parent.parent


def key(text):
    return hashlib.sha256(text.encode()).digest()


def row(store, name):
    "The first row under a key."
    return store.values[store.find([key(name)])[0][0]].tolist()


# keys


def test_the_look_of_a_picture_belongs_to_its_key():
    "One index, two colours; and modes, transparent colours and sides that are up."
    spots = [Image.new('P', (2, 2)) for _ in range(2)]
    spots[0].putpalette([255, 0, 0])
    spots[1].putpalette([0, 0, 255])
    assert len({content_key(s) for s in spots}) == 2
    red = Image.new('RGB', (4, 2), 'red')
    clear = red.convert('P')
    clear.info['transparency'] = 0
    turned = red.copy()
    turned.getexif()[274] = 6
    assert len({content_key(s) for s in (red, turned, red.convert('P'), clear)}) == 4


def test_an_open_file_is_its_bytes(tmp_path):
    (tmp_path / 'a').write_bytes(b'some bytes')
    with open(tmp_path / 'a', 'rb') as f:
        assert content_key(f) == content_key(b'some bytes')


WEIGHTS = {'a': torch.zeros(2), 'b': torch.ones(1)}


def test_everything_of_weights_belongs_to_their_key():
    cases = (
        (WEIGHTS, [5]),
        (WEIGHTS, [6]),
        (WEIGHTS, []),
        ({**WEIGHTS, 'a': torch.zeros(1, 2)}, [5]),
        ({**WEIGHTS, 'a': torch.zeros(2).double()}, [5]),
        ({**WEIGHTS, 'a': torch.zeros(2, dtype=torch.int32)}, [5]),
        ({**WEIGHTS, 'b': torch.tensor([2.0])}, [5]),
    )
    assert len({weights_key(tensors, *words) for tensors, words in cases}) == 7


def test_weights_of_any_type_and_size_have_a_key():
    assert len(weights_key({'h': torch.zeros(3, dtype=torch.bfloat16), 'e': torch.zeros(0)})) == 64


def test_weights_in_parts_have_the_key_of_the_whole():
    class Part:
        "One process's part of `a`."

        def full_tensor(self):
            return WEIGHTS['a']

    assert weights_key({**WEIGHTS, 'a': Part()}, 5) == weights_key(WEIGHTS, 5)


def test_the_room_does_without_torch():
    "Rooms that only keep pictures import it, and torch takes seconds."
    code = 'import sys, vlm2rec_lab.base.store; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


# the writer


def test_a_lock_ends_with_its_process(tmp_path):
    "A process that holds the lock is killed: the next writer comes in at once, with nothing to clear away."
    code = (
        'import sys; from vlm2rec_lab.base.store import writing\n'
        'with writing(sys.argv[1]): print("held", flush=True); sys.stdin.read()'
    )
    command = [sys.executable, '-c', code, tmp_path]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b'held\n'
        with pytest.raises(ValueError, match='is being written by another process'):
            writing(tmp_path).__enter__()
    finally:
        child.kill()
        child.communicate()
    with writing(tmp_path):
        pass


def test_leavings_of_another_writer_are_cut_off(tmp_path):
    "Before anything new is written, also where this store does not know yet what the other one has written."
    Store(tmp_path, 3).append([key('c')], [[1, 1]], torch.full((1, 3), 9.0))
    for name in (VALUES, INDEX):
        late = Store(tmp_path, 3)
        Store(tmp_path, 3).append([key('by another ' + name)], [[1, 1]], torch.full((1, 3), 5.0))
        with open(tmp_path / name, 'ab') as f:
            f.write(b'half a row')
        late.append([key(name)], [[1, 1]], torch.full((1, 3), 7.0))
        again = Store(tmp_path, 3)
        for k, v in ((name, 7.0), ('by another ' + name, 5.0), ('c', 9.0)):
            assert row(again, k) == [v] * 3
            assert key(k) in late


def test_an_interrupted_call_leaves_no_part_of_its_values(tmp_path):
    "A picture of which a part was written, and no more: what comes after it stands in its right place."
    rows = KeyedRows(tmp_path, 2)
    writer = RowWriter(rows)
    writer.add([key('a')], [[1, 2]], b'a1a2')
    writer.file.write(b'b1b')
    writer.add([key('c')], [[1, 1]], b'c1')
    writer.close()
    assert (tmp_path / VALUES).read_bytes() == b'a1a2c1'
    assert KeyedRows(tmp_path, 2).find([key('c')])[0].tolist() == [2]


def test_types_are_kept(tmp_path):
    half = Store(tmp_path, 2, torch.bfloat16)
    half.append([key('a')], [[1, 1]], torch.tensor([[1.5, -2.0]]))
    assert Store(tmp_path, 2, 'bfloat16').values.tolist() == [[1.5, -2.0]]
    with pytest.raises(ValueError, match='another folder'):
        Store(tmp_path, 2, torch.float16)


def test_a_note_that_is_damaged(tmp_path):
    Store(tmp_path, 2)
    (tmp_path / 'store.json').write_text('{')
    with pytest.raises(ValueError, match='damaged'):
        Store(tmp_path, 2)


def test_nothing_may_be_appended(tmp_path):
    empty = Store(tmp_path, 2)
    empty.append([], np.zeros((0, 2)), torch.zeros(0, 2))
    assert (len(empty), tuple(empty.values.shape)) == (0, (0, 2))


# killed writers and readers beside them

WRITER = '''
import hashlib, sys, torch
from vlm2rec_lab.base.store import Store
s = Store(sys.argv[1], 64)
for i in range(len(s), 100_000):
    s.append([hashlib.sha256(str(i).encode()).digest()], [[1, 1 + i % 3]], torch.full((1 + i % 3, 64), float(i)))
    print(i, flush=True)
'''


def whole(store, least):
    "How many keys a store has: at least so many, and each with its right values."
    first, grid = store.find([key(str(i)) for i in range(len(store))])
    rows = torch.from_numpy(np.repeat(np.arange(len(store)), grid.prod(1)))
    assert len(store) >= least
    assert (grid[:, 1] == 1 + np.arange(len(store)) % 3).all()
    assert (store.values == rows[:, None]).all()
    return len(store)


@pytest.mark.processes
def test_a_killed_writer_loses_nothing(tmp_path):
    """A process that writes as fast as it can is read all the while, and killed, again and again.

    Whatever has a record has the right values, before its death and after, and the next writer goes on.
    """
    have, looks, reader = 0, 0, Store(tmp_path, 64)
    for stop in (3, 11, 30):
        command, env = [sys.executable, '-c', WRITER, tmp_path], {**os.environ, 'OMP_NUM_THREADS': '1'}
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=env)
        for k in range(stop):
            process.stdout.readline()
            for _ in range(2):
                reader.read()
                looks += 1
                whole(reader, have + k + 1)  # the other goes on writing meanwhile
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        have = whole(Store(tmp_path, 64), have + stop)
    assert looks == 88


@pytest.fixture
def grown(tmp_path):
    "A store of two keys, and how large its files were after each."
    store, ends = Store(tmp_path, 2), []
    for i in range(2):
        store.append([key(str(i))], [[1, 2]], torch.full((2, 2), float(i)))
        ends.append({n: (tmp_path / n).stat().st_size for n in (VALUES, INDEX)})
    return store, ends


def test_a_reader_in_the_middle_of_an_append(tmp_path, grown):
    "Byte by byte: it sees what was there before, until the last byte has come."
    _, (before, after) = grown
    data = {n: (tmp_path / n).read_bytes() for n in after}
    states = [(v, before[INDEX]) for v in range(before[VALUES], after[VALUES])]
    states += [(after[VALUES], i) for i in range(before[INDEX], after[INDEX] + 1)]
    for values, index in states:
        (tmp_path / VALUES).write_bytes(data[VALUES][:values])
        (tmp_path / INDEX).write_bytes(data[INDEX][:index])
        seen = Store(tmp_path, 2)
        assert len(seen) == (2 if index == after[INDEX] else 1)
        assert seen.values.flatten().tolist() == [0.0] * 4 + [1.0] * 4 * (len(seen) - 1)


def test_values_are_on_the_disk_before_their_record(tmp_path, grown):
    "Leavings of a writer that was killed are not taken for what the next one writes."
    store, seen, sync = grown[0], [], os.fsync
    with open(tmp_path / VALUES, 'ab') as f:
        f.write(bytes(99))

    def look(f):
        sync(f)
        seen.append(Store(tmp_path, 2).values[:, 0].tolist())

    with patch('os.fsync', look):
        store.append([key('2')], [[1, 2]], torch.full((2, 2), 2.0))
    assert seen == [[0.0, 0, 1, 1], [0.0, 0, 1, 1, 2, 2]]
