"""Two processes train a graph recommender together: the weights are those of one, and one of them alone writes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from graph_worlds import planted
from ports import free_port

from vlm2rec_lab.graph.fit import fit_graph
from vlm2rec_lab.graph.graph import graph_of
from vlm2rec_lab.graph.models import VBPR, LightGCN

ROOT = Path(__file__).resolve().parent.parent
HOW = dict(batch=128, lr=0.02, epochs=4, patience=None, metric='Recall@10', progress=False)  # 90 steps or so

WORLD = '''
import json, sys, warnings
from pathlib import Path
import numpy as np
import torch
from accelerate import Accelerator
from test_graph_processes import HOW, made, numbers
from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.graph.fit import fit_graph
from vlm2rec_lab.training import course

warnings.simplefilter('ignore')
torch.set_num_threads(1)
accelerator, out = Accelerator(cpu=True), Path(sys.argv[1])
rank, said = accelerator.process_index, {}
if rank == 1:
    course.save_checkpoint = course.sole_writer = None  # it never writes
for name in ('exact', 'drawn', 'VBPR'):
    model, split = made(name)
    folder = out / name
    stop = lambda records: 'stop' if rank == 1 and len(records) == 2 else None  # one of them wishes it
    half = fit_graph(model, split, **HOW, accelerator=accelerator, folder=folder, callback=stop)
    model, split = made(name)
    run = fit_graph(model, split, **HOW, accelerator=accelerator, folder=folder)
    said[name] = dict(half=len(half.frame), loss=run.frame.loss.tolist(), valid=run.frame['Recall@10'].tolist())
    np.save(out / f'{name}.{rank}.npy', numbers(model))
    few, split = made(name)
    fit_graph(few, split, **HOW | dict(epochs=1, batch=359), accelerator=accelerator)  # the last batch has one pair
    np.save(out / f'{name}.few.{rank}.npy', numbers(few))
model, split = made('VBPR', seed=rank)
try:
    fit_graph(model, split, **HOW, accelerator=accelerator)
except DataError as e:
    said['told'] = str(e)
(out / f'{rank}.json').write_text(json.dumps(said))
'''


def made(name, seed=0):
    "A small model and its split."
    split, vectors = planted(users=60, items=40, each=8)
    if name == 'VBPR':
        return VBPR(60, 40, vectors, 8, seed=seed), split
    return LightGCN(graph_of(split), 8, 3, seed=seed, fanout=2 if name == 'drawn' else None), split


def numbers(model):
    """All that a model has learned. The shift of VBPR's contents adds as much to every item of a user, so that its
    gradient is rounding errors, which Adam brings to the size of any other."""
    named = [p for name, p in model.named_parameters() if name != 'contents.shift']
    return torch.cat([p.detach().flatten() for p in named]).numpy()


def processes(script, out):
    "Two processes of a script, as a launcher starts them, that talk over the loopback address."
    port, started = free_port(), []
    for rank in range(2):
        env = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, MASTER_PORT=port, OMP_NUM_THREADS=1)
        env |= dict(MASTER_ADDR='127.0.0.1', GLOO_SOCKET_IFNAME='lo', ACCELERATE_USE_CPU='true')
        env |= dict(PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / 'tests', ROOT / 'tools'))))
        env = {**os.environ, **{k: str(v) for k, v in env.items()}}
        started.append(warm.Started([script, out], env=env))
    for p in started:
        error = p.communicate(timeout=1000)[1]
        assert p.returncode == 0, error[-3000:]
    return [json.loads((out / f'{rank}.json').read_text()) for rank in range(2)]


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "What two processes said, and where they wrote."
    out = tmp_path_factory.mktemp('pair')
    (out / 'script.py').write_text(WORLD)
    return processes(out / 'script.py', out), out


@pytest.mark.processes
@pytest.mark.parametrize('name', ['exact', 'drawn', 'VBPR'])
def test_two_processes_are_one(pair, name):
    "The same global batches, negatives and drawn neighbours give the same weights, after a stop in the middle too."
    (one, two), out = pair
    model, split = made(name)
    start = numbers(model)
    run = fit_graph(model, split, **HOW)
    found = [np.load(out / f'{name}.{rank}.npy') for rank in range(2)]
    assert np.array_equal(*found), 'the processes have drifted apart'
    assert np.abs(found[0] - numbers(model)).max() < 1e-6 < np.abs(start - numbers(model)).max()
    assert one[name]['half'] == two[name]['half'] == 2
    for said in (one[name], two[name]):
        assert said['loss'] == pytest.approx(run.frame.loss.tolist(), abs=1e-6)
        assert said['valid'] == pytest.approx(run.frame['Recall@10'].tolist(), abs=1e-9)
    model, _ = made(name)
    pairs = len(split.user_items[1])
    assert pairs % 359 == 1  # so that one process has no pair of the last batch
    fit_graph(model, split, **HOW | dict(epochs=1, batch=359))
    few = [np.load(out / f'{name}.few.{rank}.npy') for rank in range(2)]
    assert np.array_equal(*few) and np.abs(few[0] - numbers(model)).max() < 1e-6


@pytest.mark.processes
def test_processes_that_begin_differently_are_told(pair):
    (one, two), _ = pair
    assert 'what training begins with is not the same' in one['told'] and one['told'] == two['told']
