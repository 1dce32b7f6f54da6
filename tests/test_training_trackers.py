"Trackers: every figure read back by the library's own reader, resumed and broken runs, and that nothing is sent."

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tracker_files import of_mlflow, of_tensorboard, of_wandb, words_of_tensorboard

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.diagnosis.verdict import VERDICTS
from vlm2rec_lab.diagnosis.worlds import world
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import History, Interrupted, train
from vlm2rec_lab.training import trackers as room
from vlm2rec_lab.training.trackers import VERDICT_NUMBERS, figures_of, flat_settings, log_report, log_run

pytestmark = pytest.mark.filterwarnings('ignore')
QUICK = dict(batch=8, eval_every=2, progress=False, schedule='cosine', warmup=2)
HERE = [t for t in ('tensorboard', 'wandb', 'mlflow') if find_spec(t)]
trackio = pytest.mark.skipif(find_spec('trackio') is None, reason='trackio is not installed')


@pytest.fixture(scope='module')
def toy():
    return make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)


@pytest.fixture
def fresh(checkpoint):
    return functools.partial(VLMEmbedder.from_pretrained, checkpoint, lora=4, device='cpu', seed=0)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    "No library reaches another machine: such a connection fails, and is remembered."
    asked, connect = [], socket.socket.connect

    def local(self, address):
        host = address[0] if isinstance(address, tuple) else ''
        if host not in ('', '127.0.0.1', '::1', 'localhost'):
            asked.append(address)
            raise OSError('no network in this test')
        return connect(self, address)

    monkeypatch.setattr(socket.socket, 'connect', local)
    for name in ('WANDB_MODE', 'MLFLOW_TRACKING_URI', 'TRACKIO_DIR'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('WANDB__SERVICE_WAIT', '300')  # a busy machine starts its helper late
    yield
    assert not asked, f'something was sent to {asked}'


def wanted(run):
    "{figure: [(step, value), ...]} that a run should have left."
    out = {}
    for record in run.frame.to_dict('records'):
        step, figures = figures_of(record, run.settings)
        for k, v in figures.items():
            out.setdefault(k, []).append((step, v))
    return out


def read(tracker, folder, name='sft'):
    "What a tracker wrote of the only run of a name."
    if tracker == 'tensorboard':
        return of_tensorboard(folder / 'tensorboard' / name)
    if tracker == 'mlflow':
        (found,), _, _ = of_mlflow(folder / 'mlflow.db', name)
        return found
    (found,) = of_wandb(folder)[0].values()
    return found


def assert_same(found, run, digits=1e-12):
    "Every figure of the run once, at its step, and no other."
    asked = wanted(run)
    assert found.keys() == asked.keys()
    for k, pairs in asked.items():
        assert [s for s, _ in found[k]] == [s for s, _ in pairs], k
        assert np.allclose([v for _, v in found[k]], [v for _, v in pairs], rtol=digits, atol=0), k


def digits(tracker):
    return 1e-6 if tracker == 'tensorboard' else 1e-12  # its scalars are float32


def killed_after(n):
    "A callback that ends a training as a fault does, with no word."

    def callback(records):
        if len(records) == n:
            raise RuntimeError('killed')

    return callback


class Kept:
    "A tracker that keeps what it hears, and fails when it is told to."

    name = 'kept'

    def __init__(self, fails=(), error=OSError):
        self.heard, self.said, self.fails, self.error = [], [], fails, error

    def _say(self, what):
        self.said.append(what)
        if what in self.fails:
            raise self.error(28, 'No space left on device')

    def start(self):
        self._say('start')

    def store_init_configuration(self, values):
        self.config = values
        self._say('config')

    def log(self, values, step=None):
        self.heard.append((step, values))
        self._say(f'log {step}')

    def finish(self):
        self._say('finish')


# ---- every figure


def test_every_figure_is_in_every_tracker(toy, fresh, tmp_path):
    "All at once, beside a run without: the same weights, and the same figures read back from each."
    plain, logged = fresh(), fresh()
    before = train(plain, toy, 'vlm2rec', steps=5, controls={'alpha': 0.5}, fuse='learned', **QUICK)
    run = train(
        logged,
        toy,
        'vlm2rec',
        steps=5,
        controls={'alpha': 0.5},
        fuse='learned',
        log_with=HERE,
        log_dir=tmp_path,
        **QUICK,
    )
    assert run.to_dict() == before.to_dict()
    for (name, a), (_, b) in zip(plain.adapter_parameters(), logged.adapter_parameters()):
        assert torch.equal(a, b), name
    names = {'loss', 'lr', 'grad/text', 'grad/image', 'grad_ratio/image/text', 'valid/fused', 'weight/text'}
    assert names | {'control/alpha', 'valid/text'} <= wanted(run).keys()
    for tracker in HERE:
        assert_same(read(tracker, tmp_path, 'vlm2rec'), run, digits(tracker))
    if 'mlflow' in HERE:
        _, (params,), (status,) = of_mlflow(tmp_path / 'mlflow.db')
        assert params == {k: str(v) for k, v in flat_settings(run.settings).items()} and status == 'FINISHED'
    if 'wandb' in HERE:
        (config,) = of_wandb(tmp_path)[1].values()
        assert {k: v for k, v in config.items() if k != '_wandb'} == flat_settings(run.settings)
    assert {f.name for f in tmp_path.glob('*.json')} == {'vlm2rec.json'}


@pytest.mark.parametrize('tracker', HERE)
def test_a_killed_run_goes_on_with_no_step_twice(toy, fresh, tmp_path, tracker):
    "Killed after step 4 with a checkpoint of step 2; a run killed twice, and one that is over, too."
    how = QUICK | dict(checkpoint=tmp_path / 'run.safetensors', save_every=3, log_with=tracker, log_dir=tmp_path / 'l')
    for n in (4, 5):
        with pytest.raises(RuntimeError, match='killed'):
            train(fresh(), toy, steps=7, resume=n > 4, callback=killed_after(n), **how)
    run = train(fresh(), toy, steps=7, resume=True, **how)
    assert_same(read(tracker, tmp_path / 'l'), run, digits(tracker))
    log_run(run, tracker, tmp_path / 'l')
    assert_same(read(tracker, tmp_path / 'l'), run, digits(tracker))


def test_a_tracker_that_joins_late_is_told_what_came_before(toy, fresh, tmp_path):
    how = QUICK | dict(checkpoint=tmp_path / 'run.safetensors', save_every=1)
    with pytest.raises(RuntimeError, match='killed'):
        train(fresh(), toy, steps=4, callback=killed_after(2), **how)
    run = train(fresh(), toy, steps=4, resume=True, log_with='tensorboard', log_dir=tmp_path / 'l', **how)
    assert_same(read('tensorboard', tmp_path / 'l'), run, 1e-6)


def test_two_runs_of_a_loss_have_folders_of_their_own(toy, fresh, tmp_path):
    how = QUICK | dict(log_with='tensorboard', log_dir=tmp_path)
    runs = [train(fresh(), toy, steps=2, seed=s, **how) for s in (0, 1)]
    for name, run in zip(('sft', 'sft-2'), runs):
        assert_same(read('tensorboard', tmp_path, name), run, 1e-6)


ALONE = '''
import sys, warnings
import pandas as pd
from vlm2rec_lab.training.history import History
from vlm2rec_lab.training.trackers import log_run
warnings.simplefilter('error', UserWarning)
log_run(History(pd.DataFrame({'step': [0, 1], 'loss': [2.0, 1.5]}), {'loss': 'sft'}), *sys.argv[1:])
'''


@pytest.mark.parametrize('tracker', HERE)
def test_a_tracker_alone_in_its_process(tmp_path, tracker):
    "Nothing of another tracker, or of an Accelerator, is needed."
    subprocess.run([sys.executable, '-c', ALONE, tracker, tmp_path], check=True)
    assert read(tracker, tmp_path)['loss'] == [(0, 2.0), (1, 1.5)]


# ---- what goes wrong


def test_an_interrupt_closes_the_tracker(toy, fresh):
    kept = Kept()
    with pytest.raises(Interrupted):
        train(fresh(), toy, steps=5, log_with=kept, callback=lambda r: signal.raise_signal(signal.SIGINT), **QUICK)
    assert kept.said == ['start', 'config', 'log 0', 'finish']


def test_a_broken_loss_closes_the_tracker(toy, fresh):
    kept = Kept()
    with pytest.raises(FloatingPointError):
        train(fresh(), toy, lambda u, v, *rest: sum(x.sum() for x in u.values()) * np.nan, log_with=kept, **QUICK)
    assert kept.said[-1] == 'finish' and 'log 0' not in kept.said


@pytest.mark.parametrize('fails', ['start', 'config', 'log 0', 'log 2', 'finish'])
def test_a_tracker_that_fails_costs_one_warning(toy, fresh, fails):
    kept, sound = Kept((fails, 'finish')), Kept()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        run = train(fresh(), toy, steps=4, log_with=[kept, sound], **QUICK)
    said = [str(w.message) for w in caught if 'tracker' in str(w.message)]
    assert len(said) == 1 and said[0].startswith('the tracker kept fails') and 'No space left' in said[0]
    assert len(run.frame) == 4 and [s for s, _ in sound.heard] == [0, 1, 2, 3]
    assert kept.said[-1] == 'finish' and kept.said.count('start') == 1


def test_a_full_disk_under_tensorboard(toy, fresh, tmp_path, monkeypatch):
    "The writer finds no room in the middle of the run."
    from tensorboard.summary.writer import record_writer

    write, written = record_writer.RecordWriter.write, []

    def full(self, data):
        written.append(len(data))
        if len(written) > 10:
            raise OSError(28, 'No space left on device')
        return write(self, data)

    monkeypatch.setattr(record_writer.RecordWriter, 'write', full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        run = train(fresh(), toy, steps=4, log_with='tensorboard', log_dir=tmp_path, **QUICK)
    assert len(run.frame) == 4 and len(written) > 10
    assert len([w for w in caught if 'the tracker tensorboard fails' in str(w.message)]) == 1


def test_a_folder_that_cannot_be_made(toy, fresh, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.warns(UserWarning, match='cannot write to .*file'):
        run = train(fresh(), toy, steps=2, log_with='tensorboard', log_dir=tmp_path / 'file', **QUICK)
    assert len(run.frame) == 2


def test_what_is_wrong_is_told_before_anything_is_loaded(monkeypatch):
    for log_with, error, said in (
        ('tensorbord', DataError, "did you mean 'tensorboard'"),
        (['tensorboard', 'wanbd'], DataError, "did you mean 'wandb'"),
        (3, TypeError, 'int is no tracker'),
    ):
        with pytest.raises(error, match=said):
            train(None, None, log_with=log_with)
    monkeypatch.setattr(room, 'find_spec', lambda package: None)
    with pytest.raises(ImportError, match='pip install wandb'):
        train(None, None, log_with='wandb')


def test_only_the_first_process_logs(toy, fresh, tmp_path):
    kept = Kept()

    class Second:
        num_processes, process_index, is_main_process, device = 1, 0, False, torch.device('cpu')

        def reduce(self, x, how):
            return x

        def gather(self, x):
            return x

        def wait_for_everyone(self):
            pass

    accelerator = Second()
    accelerator.distributed_type = SimpleNamespace(value='NO')
    run = train(
        fresh(), toy, steps=2, log_with=[kept, 'tensorboard'], log_dir=tmp_path, accelerator=accelerator, **QUICK
    )
    assert len(run.frame) == 2 and not kept.said and not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['../up', 'a/b', '', '..', 'ä ö' * 60])
def test_a_name_stays_in_the_folder(tmp_path, name):
    run = History(pd.DataFrame({'step': [0], 'loss': [1.0]}), {'loss': 'sft'})
    log_run(run, 'tensorboard', tmp_path / 'logs', name=name)
    assert [f.name for f in tmp_path.iterdir()] == ['logs']
    assert len(list((tmp_path / 'logs').glob('*.json'))) == 1


def test_a_damaged_note_is_no_reason_to_stop(tmp_path):
    run = History(pd.DataFrame({'step': [0], 'loss': [1.0]}), {'loss': 'sft'})
    for damaged in ('', '[]', '{"settings": 3}', '{"settings": {"loss": "sft"}}', '\x00'):
        (tmp_path / 'sft.json').write_text(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            log_run(run, 'tensorboard', tmp_path)


def test_mlflow_is_left_as_it_was(tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow')
    run = History(pd.DataFrame({'step': [0], 'loss': [1.0]}), {'loss': 'sft'})
    log_run(run, 'mlflow', tmp_path / 'one')
    assert not mlflow.is_tracking_uri_set() and 'MLFLOW_TRACKING_URI' not in os.environ
    mlflow.set_tracking_uri(f'sqlite:///{tmp_path}/own.db')
    try:
        log_run(run, 'mlflow', tmp_path / 'two')
    finally:
        mlflow.set_tracking_uri(None)
    assert not (tmp_path / 'two/mlflow.db').exists() and of_mlflow(tmp_path / 'own.db')[0] == [{'loss': [(0, 1.0)]}]


# ---- reports, and the trainings of others


def test_a_report_in_every_tracker(tmp_path):
    report = collapse_report(**world(300, 60), bootstrap=50, permutations=2, progress=False)
    run = History(pd.DataFrame({'step': [0, 1], 'loss': [2.0, 1.0]}), {'loss': 'sft'})
    log_run(run, HERE, tmp_path)
    log_run(run, HERE, tmp_path, report=report)
    asked = {f'ndcg/{m}': x['evidence']['ndcg']['value'] for m, x in report.modalities.items()}
    asked['ndcg/fused'] = report.evidence['fused_ndcg']['value']
    for m, x in report.modalities.items():
        drop = x['evidence']['drop_mean']
        asked |= {f'contribution/{m}': drop['value']} | {f'contribution/{m}/{k}': drop[k] for k in ('low', 'high')}
    verdicts = {f'verdict/{m}': x['verdict'] for m, x in report.modalities.items()}
    numbers = {k: float(VERDICT_NUMBERS[v]) for k, v in verdicts.items()}
    for tracker in HERE:
        found = {k: v[-1] for k, v in read(tracker, tmp_path).items()}
        for k, v in asked.items():
            assert found[k][0] == 1 and np.isclose(found[k][1], v, rtol=1e-6), (tracker, k)
    if 'wandb' in HERE:
        assert {k: read('wandb', tmp_path)[k][-1][1] for k in verdicts} == verdicts
    if 'mlflow' in HERE:
        assert {k: read('mlflow', tmp_path)[k][-1][1] for k in verdicts} == numbers
    assert {k: v for k, v in words_of_tensorboard(tmp_path / 'tensorboard/sft').items() if k in verdicts} == verdicts


def test_the_code_of_the_verdicts_is_their_severity():
    assert VERDICT_NUMBERS == VERDICTS


def test_a_tracker_of_ones_own_raises_what_it_raises():
    report = SimpleNamespace(modalities={}, evidence={'fused_ndcg': {'value': 0.5}})
    kept = Kept()
    log_report(kept, report, step=7)
    assert kept.heard == [(7, {'ndcg/fused': 0.5})]
    with pytest.raises(OSError):
        log_report(Kept(['log None']), report)


def recommender():
    from test_graph_fit import QUICK, make, two_tastes

    from vlm2rec_lab.data import shares
    from vlm2rec_lab.graph.fit import fit_graph

    split = shares(two_tastes())
    return fit_graph(make('BPRMF', split), split, **QUICK | dict(epochs=3, every=2))


def sequential():
    from test_seqrec import leave_one_out, net, shop

    from vlm2rec_lab.recommenders.fit import fit

    split = leave_one_out(shop(5), history=6)
    return fit(net('SASRec', split, dropout=0.3), split, 'bce', epochs=3, patience=None, batch=16, progress=False)


def prompted():
    from test_prompts_fit import LESSONS, LOOK, QUICK, WORDING, tiny

    from vlm2rec_lab.prompts.fit import fit_prompts

    return fit_prompts(tiny('image'), WORDING, LESSONS, LOOK, **QUICK)


@pytest.mark.parametrize('trained', [recommender, sequential, prompted])
def test_the_runs_of_every_training(trained, tmp_path):
    "Epochs from 1, the metric under its name, and under one that MLflow takes."
    run = trained()
    log_run(run, HERE, tmp_path)
    (name,) = (json.loads(f.read_text()) and f.stem for f in tmp_path.glob('*.json'))
    for tracker in HERE:
        found = read(tracker, tmp_path, name)
        metric = run.metric.replace('@', ' at ') if tracker == 'mlflow' else run.metric
        looked = run.frame.dropna(subset=[run.metric])
        assert [s for s, _ in found['loss']] == run.frame.epoch.tolist()
        assert np.allclose([v for _, v in found['loss']], run.frame.loss, rtol=1e-6)
        assert [s for s, _ in found[metric]] == looked.epoch.tolist()
        assert np.allclose([v for _, v in found[metric]], looked[run.metric], rtol=1e-6)


# ---- trackio


@trackio
def test_trackio(toy, fresh, tmp_path, monkeypatch):
    "A run that is killed and goes on, read back by trackio; it keeps one folder per process."
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))
    from trackio.sqlite_storage import SQLiteStorage

    how = QUICK | dict(
        checkpoint=tmp_path / 'run.safetensors', save_every=3, log_with='trackio', log_dir=tmp_path / 'l'
    )
    with pytest.raises(RuntimeError, match='killed'):
        train(fresh(), toy, steps=7, callback=killed_after(4), **how)
    run = train(fresh(), toy, steps=7, resume=True, **how)
    rows = SQLiteStorage.get_logs('vlm2rec', 'sft')
    found = {}
    for row in rows:
        for k, v in row.items():
            if k not in ('step', 'timestamp'):
                found.setdefault(k, []).append((row['step'], v))
    assert_same(found, run)
    assert (tmp_path / 'trackio').is_dir()


# ---- the command


def test_the_command(tmp_path, checkpoint, monkeypatch):
    "Every training of a command, and what its report says."
    from shell import said as vlm2rec

    out = tmp_path / 'run'
    argv = ['train', '--data', 'studio:balanced', '--users', 20, '--history', 4, '--model', checkpoint, '--steps', 2]
    argv += ['--batch', 8, '--losses', 'sft', '--ceiling', '--control', '--out', out, '--log-with', *HERE]
    status, _, error = vlm2rec(*argv)
    assert status in (0, None), error
    logs = out / 'logs'
    for folder in ('sft', 'ceiling/experts', 'control/sft'):
        above, name = (logs / folder).parent, (logs / folder).name
        run = History.load(out / folder / 'history.json')
        found = of_tensorboard(above / 'tensorboard' / name)
        assert [s for s, _ in found['loss']] == [0, 1]
        assert np.allclose([v for _, v in found['loss']], run.frame.loss, rtol=1e-6)
    assert 'verdict/text' in words_of_tensorboard(logs / 'tensorboard/sft')
    assert 'verdict/text' in read('mlflow', logs)


class Plain:
    "A tracker that keeps what it hears; two of them are equal, so they have no hash."

    def __init__(self, name):
        self.name, self.got = name, []

    def __eq__(self, other):
        return self.name == other.name

    def start(self):
        pass

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None):
        self.got.append((step, values))

    def finish(self):
        pass


@pytest.mark.parametrize('names', [('tensorboard', 'tensorboard'), ('a', 'a'), ('a 2', 'a', 'a')])
def test_trackers_of_one_name_all_hear(tmp_path, names):
    own = [Plain(name) for name in names]
    with room.logbook([*own, 'tensorboard'], tmp_path, {}) as heard:
        heard(dict(step=0, loss=1.0))
        assert len(heard.open) == len(names) + 1
    assert all(t.got == [(0, {'loss': 1.0})] for t in own)


@pytest.mark.parametrize('odd', [None, float('nan'), float('inf'), 10**400, 'x'])
def test_figures_that_are_none_do_not_end_a_training(odd):
    assert figures_of(dict(step=3, loss=odd, x=1.0), {}) == (3, {'x': 1.0})
    assert figures_of(dict(step=odd, epoch=2, x=1.0), dict(lr=odd, steps=5)) == (2, {'x': 1.0})


@pytest.mark.parametrize(
    'note',
    ['{"settings": {}}', '{"settings": {}, "ids": [], "done": {}}', '[' * 100_000]
    + ['{"settings": {}, "ids": {}, "done": {"tensorboard": "x"}}'],
)
def test_a_damaged_note_begins_a_run_of_its_own(tmp_path, note):
    (tmp_path / 'run.json').write_text(note)
    with room.logbook('tensorboard', tmp_path, {}, goes_on=True) as heard:
        heard(dict(step=0, loss=1.0))
    assert (tmp_path / 'run.json').read_text() == note
    assert json.loads((tmp_path / 'run-2.json').read_text())['done'] == {'tensorboard': 0}
