"""The study: every remedy makes a cell, cells of one's own shop, and many cells in several processes: kept, stopped,
gone on with, verified, and named where they fail."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.studies import cell as cells_room
from vlm2rec_lab.studies import workers
from vlm2rec_lab.studies.cell import TRAINING, VIEWS_FUSED, run_cell
from vlm2rec_lab.studies.remedies import REMEDIES, Remedy
from vlm2rec_lab.studies.study import study_cells
from vlm2rec_lab.studies.table import readable, study_table
from vlm2rec_lab.studies.workers import cell_name, run_study, verify_cells

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(steps=3, batch=8, rank=2, world=dict(items=60, users=90), split=dict(train=40, valid=0, test=50))
RUN = """
import json, sys
from vlm2rec_lab.studies.workers import run_study

out, cells, jobs = sys.argv[1:]
print(len(run_study(out, json.loads(cells), jobs=int(jobs), progress=False)))
"""


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A random checkpoint far smaller than the shipped ones."
    from vlm2rec_lab.model.tiny import build_tiny, build_tokenizer, save_tiny, studio_corpus

    folder = tmp_path_factory.mktemp('model') / 'tiny-random'
    tokenizer = build_tokenizer(studio_corpus(300))
    save_tiny(folder, *build_tiny(tokenizer=tokenizer, hidden=32, layers=1, vision=32, vision_layers=1))
    return folder


# ---- one cell


@pytest.mark.parametrize('remedy', REMEDIES)
def test_every_remedy_makes_a_cell(remedy, tiny):
    found = run_cell('text-easy', remedy, 0, **{**SMALL, 'steps': 1}, model=tiny)
    assert set(found['ranks']) == {'text', 'image', *VIEWS_FUSED}


def test_a_new_remedy_is_one_entry(monkeypatch, tiny):
    "It makes a cell, is in the plan of the study, and gives its file a name."
    monkeypatch.setitem(REMEDIES, 'sft, cold', Remedy('a lower temperature of the weak modality', settings={}))
    found = run_cell('text-easy', 'sft, cold', 0, **{**SMALL, 'steps': 1}, model=tiny)
    assert found['remedy'] == 'sft, cold' and len(found['cold']) == 50
    planned = [c for c in study_cells() if c['remedy'] == 'sft, cold']
    assert {c['condition'] for c in planned} == {'text-easy'} and len(planned) == 5
    assert cell_name(**planned[0]) == 'text-easy--sft+cold--1.json'


def test_a_shop_of_ones_own(tmp_path, tiny):
    shop = tmp_path / 'shop'
    shop.mkdir()
    titles = [f'{w} mug' for w in ('red', 'blue', 'green') * 4]
    pd.DataFrame({'item_id': [f'i{k}' for k in range(12)], 'title': titles}).to_csv(shop / 'items.csv', index=False)
    choices = [(f'u{u}', f'i{(u + k) % 12}', 100 * k) for u in range(8) for k in range(5)]
    log = pd.DataFrame(choices, columns=['user_id', 'item_id', 'timestamp'])
    log.to_csv(shop / 'interactions.csv', index=False)
    own = run_cell('shop', 'sft', 0, **{**SMALL, 'world': None, 'split': None}, model=tiny, data=shop)
    assert (own['condition'], len(own['cold'])) == ('shop', 8)
    assert str(tmp_path) not in json.dumps(own)
    training = {k: SMALL[k] for k in ('steps', 'batch', 'rank')}
    asked = [dict(condition='shop', remedy='sft', seed=0, data=str(shop), model=str(tiny), **training)]
    (tmp_path / 'cells').mkdir()
    name = cell_name(**asked[0])
    (tmp_path / 'cells' / name).write_text(json.dumps(own))
    assert run_study(tmp_path / 'cells', asked, 1, progress=False)[0]['inputs'] == own['inputs']
    pd.DataFrame({'item_id': [f'i{k}' for k in range(12)], 'title': [*titles[1:], 'a cup']}).to_csv(
        shop / 'items.csv', index=False
    )
    with pytest.raises(ValueError, match="was made with {'content/text'.*choose another folder"):
        run_study(tmp_path / 'cells', asked, 1, progress=False)


def test_half_a_training_is_no_cell(monkeypatch):
    train = cells_room.train

    def stopped(*args, **how):
        return train(*args, callback=lambda records: 'stop' if len(records) == 2 else None, **how)

    monkeypatch.setattr(cells_room, 'train', stopped)
    with pytest.raises(KeyboardInterrupt, match='stopped after 2 of 3 steps'):
        run_cell('text-easy', 'sft', 0, **SMALL)


# ---- stored cells


def stored(folder, **figures):
    "A stored cell without ranks, in its file."
    asked = dict(condition='text-easy', remedy='sft', seed=1, missing={}, settings={}, training=TRAINING)
    cell = {**asked, 'ranks': {'fused': [[0], [0], [9]]}, 'seconds': 3.0, **figures}
    (folder / cell_name('text-easy', 'sft', 1)).write_text(json.dumps(cell))
    return cell


@pytest.mark.parametrize('other', [dict(world=dict(items=60)), dict(split=dict(train=40))])
def test_a_cell_of_another_studio_or_split_is_not_taken(tmp_path, other):
    "The name of the file does not tell them apart."
    asked = dict(condition='text-easy', remedy='sft', seed=1)
    cell = stored(tmp_path)
    assert run_study(tmp_path, [asked], progress=False) == [cell]
    with pytest.raises(ValueError, match='was made with'):
        run_study(tmp_path, [asked | other], progress=False)
    cell = stored(tmp_path, **other)
    assert run_study(tmp_path, [asked | other], progress=False) == [cell]
    with pytest.raises(ValueError, match='was made with'):
        run_study(tmp_path, [asked], progress=False)


def test_a_cell_of_another_model_is_not_taken(tmp_path, tiny):
    "Neither for a shipped one nor the other way round; the model is known by its files, wherever it lies."
    other, there = tmp_path / 'other', tmp_path / 'there'
    for folder in (other, there):
        shutil.copytree(tiny, folder)
    config = json.loads((other / 'config.json').read_text())
    (other / 'config.json').write_text(json.dumps(config | {'note': 'another'}))
    asked = dict(condition='text-easy', remedy='before', seed=1, **SMALL, model=str(tiny))
    cell = run_cell(**asked)
    assert str(tiny) not in json.dumps(cell)
    (tmp_path / cell_name(**asked)).write_text(json.dumps(cell))
    assert run_study(tmp_path, [asked | {'model': str(there)}], progress=False) == [cell]
    for model in (None, str(other), 'some/model'):
        with pytest.raises(ValueError, match="was made with {'model': "):
            run_study(tmp_path, [asked | {'model': model}], progress=False)
    with pytest.raises(ValueError, match='pass the model'):
        verify_cells(tmp_path)


def test_a_cell_is_run_again_with_all_that_it_was_made_with(tmp_path, monkeypatch):
    cell = run_cell('text-easy', 'before', 0, **SMALL)
    (tmp_path / cell_name('text-easy', 'before', 0)).write_text(json.dumps(cell))
    assert {k: cell[k] for k in ('world', 'split')} == {k: SMALL[k] for k in ('world', 'split')}
    asked = []
    monkeypatch.setattr(workers, 'run_study', lambda out, cells, *how, **more: asked.extend(cells) or [cell])
    assert verify_cells(tmp_path) == [] and asked[0].items() >= SMALL.items()


def test_a_touched_cell_is_found_out(tmp_path, monkeypatch):
    cell = stored(tmp_path)
    asked = []

    def again(out, cells, jobs, progress):
        asked.extend(cells)
        return [cell | {'seconds': 9.0}]

    monkeypatch.setattr(workers, 'run_study', again)
    assert verify_cells(tmp_path) == []
    assert asked == [dict(condition='text-easy', remedy='sft', seed=1, missing={}, settings={}, **TRAINING)]
    stored(tmp_path, ranks={'fused': [[1], [0], [9]]})
    assert verify_cells(tmp_path) == ['text-easy, sft, seed 1']
    assert verify_cells(tmp_path, data=tmp_path) and asked[-1]['data'] == str(tmp_path)


# ---- several processes


def start(out, cells, jobs=2):
    "`run_study` in a process of its own."
    return subprocess.Popen(
        [sys.executable, '-c', RUN, str(out), json.dumps(cells), str(jobs)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {'HF_HUB_OFFLINE': '1'},
        start_new_session=True,
    )


def on_one_thread(cell):
    "A cell computed here, as a worker computes it."
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return json.loads(json.dumps(run_cell(**cell)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_stopped_and_resumed(tmp_path):
    cells = [dict(condition='text-easy', remedy=r, seed=s, **SMALL) for s in range(3) for r in ('before', 'sft')]
    first = start(tmp_path, cells, jobs=1)
    while not list(tmp_path.glob('*.json')) and first.poll() is None:
        time.sleep(0.1)
    time.sleep(0.3)  # the worker is at the next cell
    os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to all processes of the group
    _, told = first.communicate(timeout=1000)
    assert 'KeyboardInterrupt' in told and 'the worker died' not in told, told[-2000:]
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob('*.json')}
    assert 2 <= len(kept) < len(cells), 'it was to be stopped half way, and the cell in the making kept'
    out, err = start(tmp_path, cells).communicate(timeout=1000)
    assert out.strip() == str(len(cells)), err[-2000:]
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items()), 'a cell that was there was made again'
    plain = on_one_thread(cells[3])
    made = json.loads((tmp_path / 'text-easy--sft--steps=3--batch=8--rank=2--1.json').read_text())
    assert {**made, 'seconds': 0} == {**plain, 'seconds': 0}, 'another process, other digits'


@pytest.mark.slow
def test_errors_name_the_cell(tmp_path):
    broken = dict(condition='text-easy', remedy='sft', seed=9, **{**SMALL, 'world': dict(items=4)})
    with pytest.raises(RuntimeError, match='(?s)text-easy--sft.*items >= 2'):
        run_study(tmp_path, [broken], progress=False)
    cell = dict(condition='text-easy', remedy='before', seed=0, **SMALL)
    run_study(tmp_path, [cell], progress=False)
    file = next(tmp_path.glob('*.json'))
    file.write_text(json.dumps({**json.loads(file.read_text()), 'training': {}}))
    with pytest.raises(ValueError, match='was made with'):
        run_study(tmp_path, [cell], progress=False)


def drawn_cell(remedy, seed, hits, **more):
    "A cell as `run_cell` returns it: a share of customers whose item stands first by the view, of 101."
    rng = np.random.default_rng([seed, len(more)])
    ranks = {
        v: [np.where(rng.random(4000) < share, 0, 100), np.zeros(4000, int), np.full(4000, 101)] for v, share in hits
    }
    asked = dict(condition='text-easy', remedy=remedy, seed=seed, missing={}, settings={}, training=TRAINING)
    return asked | dict(ranks=ranks, cold=[False, True] * 2000, terms={}, agreement={}) | more


def test_a_row_says_how_much_is_content():
    own, other = [[(v, x) for v, x in zip(('text', 'image', 'fused', 'sum', 'concat'), shares)] for shares in SHARES]
    cells = [drawn_cell('sft', 1, own), drawn_cell('sft', 1, other, control=1), drawn_cell('experts', 1, own)]
    table = study_table(cells, draws=300).set_index('remedy')
    row = table.loc['sft']
    assert len(table) == 2 and row.text == pytest.approx(0.5, abs=0.03), 'a control is no row and moves no figure'
    assert 0.8 < row['text content low'] < row['text content'] < row['text content high'] < 1.05
    assert row['image content low'] < 0 < row['image content high'] and abs(row['image content']) < 0.2
    assert math.isnan(table.loc['experts', 'text content'])
    shown = readable(table.reset_index())
    assert shown['text content, %'][0].startswith(f'{100 * row["text content"]:.0f} [')
    assert shown['image content, %'][1] == '' and not [c for c in shown if c.endswith(' content')]


SHARES = (0.5, 0.3, 0.5, 0.5, 0.5), (0.06, 0.3, 0.1, 0.1, 0.1)  # of customers, as it is and with contents exchanged


# ---- ended


SLOW = """
import os, sys, time
from vlm2rec_lab.diagnosis import calibrate
from vlm2rec_lab.studies import shops

class Slow:
    @property
    def interactions(self):
        os.write(1, b'here\\n')
        time.sleep(600)

def slow():
    os.write(1, b'here\\n')
    time.sleep(600)

calibrate.slow = slow
if __name__ == '__main__':
    todo = [dict(encoders={}, dataset=Slow())] * 2
    either = dict(
        shop=lambda: list(shops._made(iter(todo), 2)),
        calibrate=lambda: list(calibrate._spread_out(slow, [()] * 2, 2, None)),
    )
    either[sys.argv[1]]()
"""


@pytest.mark.processes
@pytest.mark.parametrize('study', ['shop', 'calibrate'])
def test_processes_of_a_study_end_with_it(tmp_path, study):
    "However it was ended: what they make would be taken by nobody, and they hold what a pipe waits for."
    (tmp_path / 'slow.py').write_text(SLOW)
    how = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with subprocess.Popen([sys.executable, tmp_path / 'slow.py', study], **how) as process:
        assert [process.stdout.readline() for _ in range(2)] == [b'here\n'] * 2
        process.kill()
        assert process.stdout.read() == b''  # comes when the last of them has gone
