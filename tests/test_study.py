"""The study in several processes: kept cells, stopping, resuming, errors that name the cell."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(steps=3, batch=8, rank=2, world=dict(items=60, users=90), split=dict(train=40, valid=0, test=50))
RUN = """
import json, sys
from vlm2rec_lab.studies.study import run_study

out, cells, jobs = sys.argv[1:]
print(len(run_study(out, json.loads(cells), jobs=int(jobs), progress=False)))
"""


def start(out, cells, jobs=2):
    return subprocess.Popen(
        [sys.executable, '-c', RUN, str(out), json.dumps(cells), str(jobs)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {'HF_HUB_OFFLINE': '1'},
        start_new_session=True,
    )


@pytest.mark.slow
def test_stopped_and_resumed(tmp_path):
    from vlm2rec_lab.studies.study import run_cell

    cells = [dict(condition='text-easy', remedy=r, seed=s, **SMALL) for s in range(3) for r in ('before', 'sft')]
    first = start(tmp_path, cells, jobs=1)
    while not list(tmp_path.glob('*.json')) and first.poll() is None:
        time.sleep(0.1)
    time.sleep(0.3)  # the worker is at the next cell
    os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to all processes of the group
    _, told = first.communicate(timeout=120)
    assert 'KeyboardInterrupt' in told and 'the worker died' not in told, told[-2000:]
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob('*.json')}
    assert 2 <= len(kept) < len(cells), 'it was to be stopped half way, and the cell in the making kept'
    out, err = start(tmp_path, cells).communicate(timeout=300)
    assert out.strip() == str(len(cells)), err[-2000:]
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items()), 'a cell that was there was made again'
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain = json.loads(json.dumps(run_cell(**cells[3])))
    finally:
        torch.set_num_threads(threads)
    stored = json.loads((tmp_path / 'text-easy--sft--steps=3--batch=8--rank=2--1.json').read_text())
    assert {**stored, 'seconds': 0} == {**plain, 'seconds': 0}, 'another process, other digits'


def test_half_a_training_is_no_cell(monkeypatch):
    from vlm2rec_lab import study

    train = study.train
    monkeypatch.setattr(
        study,
        'train',
        lambda *args, **how: train(*args, callback=lambda records: 'stop' if len(records) == 2 else None, **how),
    )
    with pytest.raises(KeyboardInterrupt, match='stopped after 2 of 3 steps'):
        study.run_cell('text-easy', 'sft', 0, **SMALL)


@pytest.mark.slow
def test_errors_name_the_cell(tmp_path):
    from vlm2rec_lab.studies.study import run_study

    with pytest.raises(RuntimeError, match='(?s)text-easy--sft.*items >= 2'):
        run_study(
            tmp_path,
            [dict(condition='text-easy', remedy='sft', seed=9, **{**SMALL, 'world': dict(items=4)})],
            progress=False,
        )
    cell = dict(condition='text-easy', remedy='before', seed=0, **SMALL)
    run_study(tmp_path, [cell], progress=False)
    file = next(tmp_path.glob('*.json'))
    file.write_text(json.dumps({**json.loads(file.read_text()), 'training': {}}))
    with pytest.raises(ValueError, match='was made with'):
        run_study(tmp_path, [cell], progress=False)
