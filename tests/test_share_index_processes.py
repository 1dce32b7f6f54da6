"""An index that several processes use: one writes, others read, writers are killed; half a version is never seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import share_processes
from share_processes import fault

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.base.files import sole_writer
from vlm2rec_lab.share.index import Index, build_index
from vlm2rec_lab.share.segments import OWN

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def begin(what, folder, *rest):
    "A process of `share_processes`."
    argv = [sys.executable, share_processes.__file__, what, folder, *rest]
    return subprocess.Popen([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told(process):
    "What a process printed, after it ended well."
    out, errors = process.communicate(timeout=1000)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out)


def whole(folder):
    "The index, of which nothing is wrong, and a next writer leaves nothing in the folder that is not of its version."
    index = Index(folder)
    assert fault(index) is None
    index.add(*share_processes.three(0, 99), replace=True)
    assert fault(index) is None
    kept = {s['name'] for s in index._version.manifest['segments']}
    assert {f.name.split('.')[0] for f in Path(folder).glob('seg-*')} == kept
    assert all(OWN.fullmatch(f.name) for f in Path(folder).iterdir()) and not list(Path(folder).glob('.index.json-*'))
    return index


def test_readers_never_see_half_a_version(tmp_path):
    folder, until = tmp_path / 'i', tmp_path / 'until'
    build_index(folder, *share_processes.three(0, 0))
    readers = [begin('read', folder, until) for _ in range(2)]
    assert told(begin('write', folder, 1, 150))['version'] == 151
    until.touch()
    found = [told(r) for r in readers]
    assert [f['wrong'] for f in found] == [[], []] and min(f['seen'] for f in found) > 5, found
    whole(folder)


def test_writers_that_are_killed_leave_whole_versions(tmp_path):
    build_index(tmp_path / 'i', *share_processes.three(0, 0))
    found = told(begin('killed', tmp_path / 'i', 3, 60))
    assert found['wrong'] == [] and found['rising'] and found['versions'][-1] > 60, found
    whole(tmp_path / 'i')


def test_a_writer_that_is_killed_at_any_step_leaves_the_old_version_or_the_new(tmp_path):
    build_index(tmp_path / 'i', *share_processes.three(0, 0))
    found = told(begin('steps', tmp_path / 'i'))
    assert found['wrong'] == [] and found['status'] == 0 and found['steps'] > 20, found
    assert found['old'] > 5 and found['new'] > 1, found  # few steps follow the manifest: what is not used is deleted
    whole(tmp_path / 'i')


def test_one_writes_at_a_time(tmp_path):
    index = build_index(tmp_path / 'i', *share_processes.three(0, 0))
    with sole_writer(index.folder):
        second = begin('second', index.folder)
        out, _ = second.communicate(timeout=1000)
        assert 'is being written by another process' in out
        with pytest.raises(DataError, match='another process'):
            index.add(*share_processes.three(1, 0))
        assert fault(Index(index.folder)) is None  # one may read meanwhile
    assert Index(index.folder).version == 1


def test_writers_that_wait_all_get_their_turn(tmp_path):
    build_index(tmp_path / 'i', *share_processes.three(0, 0))
    code = (
        'import sys, share_processes as s; from vlm2rec_lab.share.index import Index\n'
        'i = Index(sys.argv[1])\n'
        'for r in range(10): i.add(*s.three(int(sys.argv[2]), r), replace=True, wait=True)'
    )
    argv = [sys.executable, '-c', code, str(tmp_path / 'i')]
    where = Path(share_processes.__file__).parent
    both = [subprocess.Popen([*argv, str(n)], cwd=where) for n in (1, 2)]
    assert [p.wait(timeout=1000) for p in both] == [0, 0]
    index = whole(tmp_path / 'i')
    assert (len(index), index.version) == (9, 22)
