"""Training that is killed, runs out of disk, meets a figure that is none, or runs in several processes."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import warm
from ports import free_port

ROOT = Path(__file__).resolve().parent.parent
STEPS = 12


def job(path, **kw):
    "Load, train and return the History."
    import torch

    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.studio import make_studio
    from vlm2rec_lab.train import train

    torch.set_num_threads(1)
    split = make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)
    embedder = VLMEmbedder.from_pretrained(path, lora=4, device='cpu')
    return train(
        embedder,
        split,
        'ogm-ge',
        noise=0.5,
        steps=STEPS,
        batch=8,
        eval_every=0,
        progress=False,
        schedule='cosine',
        warmup=2,
        **kw,
    )


def child(path, file, said):
    "One life of a run: go on from the checkpoint and write the losses when done."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        history = job(path, checkpoint=file, resume=True, save_every=1, callback=lambda r: time.sleep(0.02))
    Path(said).write_text(json.dumps(history.frame.loss.tolist()))


def test_killed_ten_times(checkpoint, tmp_path):
    "SIGKILL at random moments, resumed each time: the losses of an uninterrupted run, bit for bit."
    want = job(checkpoint).frame.loss.tolist()
    fork, rng, kills, lives = multiprocessing.get_context('fork'), random.Random(0), 0, 0
    file, said = tmp_path / 'run.safetensors', tmp_path / 'losses.json'
    while not said.exists():
        assert (lives := lives + 1) < 60, 'the run does not get on'
        process = fork.Process(target=child, args=(checkpoint, file, said))
        process.start()
        seen = file.stat().st_mtime_ns if file.exists() else 0
        while (
            kills < 10 and process.is_alive()
        ):  # let it write at least one checkpoint, so that ten deaths fit into the run
            if file.exists() and file.stat().st_mtime_ns != seen:
                time.sleep(rng.random() * 0.05)
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.001)
        process.join(600)
    assert kills == 10 and json.loads(said.read_text()) == want


def die_at(event, folder):
    "From now on this process dies at the `event`-th call of the file system that would change something in a folder."
    left, changes = [event], ('os.link', 'os.rename', 'os.remove', 'os.chmod', 'os.truncate')

    def hook(name, args):
        if name == 'open':
            touches = (
                isinstance(args[0], (str, os.PathLike))
                and str(folder) in str(args[0])
                and bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR) or set(args[1] or '') & set('wax+'))
            )
        else:
            touches = name in changes and str(folder) in str(args[0])
        if touches:
            left[0] -= 1
            if left[0] == 0:
                os._exit(137)

    sys.addaudithook(hook)


@pytest.mark.parametrize('links', [True, False], ids=['links', 'no links'])
def test_death_at_every_step_of_a_checkpoint(checkpoint, tmp_path, monkeypatch, links):
    """Whichever call the writer of a checkpoint dies at, with whatever it was writing cut in half: the run goes on to
    the same losses, and nothing of the dead is left."""
    if not links:
        monkeypatch.setattr(os, 'link', lambda *a, **k: (_ for _ in ()).throw(PermissionError('no links here')))
    want, base, fork = job(checkpoint).frame.loss.tolist(), tmp_path / 'base', multiprocessing.get_context('fork')
    kw = dict(save_every=1, resume=True)
    base.mkdir()
    job(
        checkpoint,
        checkpoint=base / 'run.safetensors',
        callback=lambda r: 'stop' if len(r) == STEPS - 3 else None,
        **kw,
    )
    names = sorted(p.name for p in base.iterdir())
    assert names == ['.run.safetensors.lock', 'run.safetensors', 'run.safetensors.previous']
    deaths = 0
    while True:
        folder = tmp_path / f'death-{deaths + 1}'
        shutil.copytree(base, folder)

        def life():
            job(
                checkpoint,
                checkpoint=folder / 'run.safetensors',
                callback=lambda r: die_at(deaths + 1, folder) or 'stop',
                **kw,
            )

        process = fork.Process(target=life)
        process.start()
        process.join(600)
        if process.exitcode == 0:
            break
        assert process.exitcode == 137
        deaths += 1
        for draft in folder.iterdir():  # as if it had died in the middle of writing it
            if draft.name not in names and draft.stat().st_nlink == 1:
                draft.write_bytes(draft.read_bytes()[: draft.stat().st_size // 2])
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # the last checkpoint is whole at all times: nothing to say
            warnings.filterwarnings('ignore', '.*test rows, fewer than 100')
            assert job(checkpoint, checkpoint=folder / 'run.safetensors', **kw).frame.loss.tolist() == want, deaths
        assert sorted(p.name for p in folder.iterdir()) == names, deaths
    assert deaths >= 5


def test_disk_full(checkpoint, tmp_path):
    "No room for a checkpoint: a warning, the run goes on, and the last good checkpoint stays."
    import resource

    from vlm2rec_lab.train import NotKept

    fork, file = multiprocessing.get_context('fork'), tmp_path / 'run.safetensors'

    def life():
        def narrow(records):
            if len(records) == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            try:
                history = job(checkpoint, checkpoint=file, save_every=2, callback=narrow)
            except NotKept as e:  # the last one has no room either
                history = e.run
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (tmp_path / 'said.json').write_text(
            json.dumps([len(history.frame), [str(w.message) for w in said if 'checkpoint' in str(w.message)]])
        )

    process = fork.Process(target=life)
    process.start()
    process.join(600)
    steps, said = json.loads((tmp_path / 'said.json').read_text())
    assert steps == STEPS and len(said) == 5 and all('stays; the run goes on' in s for s in said)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.run.safetensors-')], 'a draft was left behind'
    with warnings.catch_warnings(record=True):
        assert job(checkpoint, checkpoint=file, resume=True).frame.loss.tolist() == job(checkpoint).frame.loss.tolist()


def test_disk_full_in_a_store(tmp_path):
    """No room in the middle of the values, or of the index: the store says so, keeps what it has, gives back the room
    of what it could not finish, and takes it once there is room."""
    import resource

    fork, folder, said = multiprocessing.get_context('fork'), tmp_path / 'pictures', tmp_path / 'said.json'

    def life(limit):
        import torch

        from vlm2rec_lab.base.store import Store

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        rows, key = lambda i: torch.full((1, 8), float(i)), lambda i: bytes([i]) * 32
        store, told = Store(folder, 8), []
        store.append(
            [key(i) for i in range(60)], [[1, 1]] * 60, torch.cat([rows(i) for i in range(60)])
        )  # 1,920 bytes of values, 2,400 of index

        def small():
            return {p.name: p.stat().st_size for p in folder.iterdir()}

        before = small()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for n in (2, 60):  # a small write fails late, a large one half way
            try:
                store.append(
                    [key(100 + i) for i in range(n)], [[1, 1]] * n, torch.cat([rows(100 + i) for i in range(n)])
                )
            except OSError as e:
                told.append(str(e))
            told.append(
                [
                    small() == before,
                    len(store),
                    len(Store(folder, 8)),
                    bool((store.values == Store(folder, 8).values).all()),
                ]
            )
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        store.append([key(100), key(101)], [[1, 1]] * 2, torch.cat([rows(100), rows(101)]))
        again = Store(folder, 8)
        first, _ = again.find([key(i) for i in (0, 59, 100, 101)])
        said.write_text(
            json.dumps([told, len(again), again.values[torch.from_numpy(first)][:, 0].tolist(), again.values.shape[0]])
        )

    for limit in (1930, 2410):  # values do not fit, or only their records do not
        process = fork.Process(target=life, args=(limit,))
        process.start()
        process.join(600)
        shutil.rmtree(folder)
        (first, kept, second, kept2), keys, values, rows = json.loads(said.read_text())
        assert all(
            "'pictures' keeps the 60 keys that it has" in s and 'make room' in s for s in (first, second)
        ) and kept == kept2 == [True, 60, 60, True]
        assert (keys, values, rows) == (62, [0.0, 59.0, 100.0, 101.0], 62)


def test_not_finite(checkpoint, tmp_path):
    "An infinite gradient stops the run before the adapters move, and batch and weights are saved."
    import torch
    from safetensors import safe_open

    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.losses import sft
    from vlm2rec_lab.studio import make_studio
    from vlm2rec_lab.train import batch_rows, train

    split = make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)
    embedder, calls = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu'), []

    def steep(sequences, items, positives, exclude):  # finite itself; its gradient is not
        calls.append(1)
        z = sft(sequences, items, positives, exclude)
        return z if len(calls) < 3 else z + torch.sqrt((sequences['text'][:1] * 0).sum())

    with pytest.raises(FloatingPointError, match='step 2') as e:
        train(
            embedder,
            split,
            steep,
            steps=5,
            batch=8,
            eval_every=0,
            progress=False,
            checkpoint=tmp_path / 'run.safetensors',
            callback=lambda r: (
                before.update({n: p.detach().clone() for n, p in embedder.adapter_parameters()})
                if len(r) == 2
                else None
            ),
        ) if (before := {}) == {} else None
    with safe_open(tmp_path / 'run.stopped.safetensors', 'pt') as f:
        rows = f.get_tensor('rows').numpy()
        kept = {k.removeprefix('parameter/'): f.get_tensor(k) for k in f.keys() if k.startswith('parameter/')}
        assert f.get_tensor('history').shape == (8, 4) and 'step' in json.loads(f.metadata()['record'])
    assert rows.tolist() == batch_rows(2, len(split.train), 8, 0).tolist() == e.value.batch.rows.tolist()
    for n, p in embedder.adapter_parameters():
        assert torch.equal(p, before[n]) and torch.equal(p, kept[n])


@pytest.mark.parametrize('apart', [False, True], ids=['one set', 'adapters apart'])
@pytest.mark.parametrize('positions', ['last', 'all'])
def test_recompute(checkpoint, apart, positions):
    """Recomputing, alone and with gradient caching, gives the plain path's loss and the gradient of every parameter,
    also where each modality has adapters of its own; and it does recompute."""
    import torch

    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.losses import get_loss
    from vlm2rec_lab.studio import make_studio
    from vlm2rec_lab.train import make_batch, training_rows, works_of
    from vlm2rec_lab.training.step import step_gradients

    split, start = (
        make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4),
        {},
    )
    this = make_batch(split, training_rows(split, positions)[:8], positions)

    def run(chunk, **kw):
        embedder, kept = (
            VLMEmbedder.from_pretrained(
                checkpoint, lora=4, device='cpu', adapters=split.catalogue.modalities if apart else None, **kw
            ),
            [],
        )
        for n, p in embedder.adapter_parameters():  # B of A B is 0 at first, and would hide half of the gradients
            with torch.no_grad():
                p.copy_(
                    start.setdefault(
                        n, torch.randn(p.shape, generator=torch.Generator().manual_seed(len(start))) * 0.05
                    )
                )
        parameters, bank = [p for _, p in embedder.adapter_parameters()], embedder.bank(split.catalogue, False)
        works = works_of(embedder, bank, this, positions, chunk=chunk, plain=not kw and positions == 'last')
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            loss, parts = step_gradients(
                get_loss('wpcl', tau=0.07),
                works,
                *this.asks('cpu'),
                parameters,
                cached=chunk is not None,
                switch=embedder.switch,
            )
        return float(loss), parts, sum(kept)

    loss, parts, most = run(None)
    for chunk in (None, 1, 3):
        again, others, kept = run(chunk, recompute=True)
        assert abs(again - loss) < 1e-5 and kept < most / 2
        for m in parts:
            assert max(g.abs().max() for g in parts[m]) > 0.01
            for g, h in zip(parts[m], others[m]):
                assert torch.allclose(g, h, rtol=0, atol=1e-5), (chunk, m)


@pytest.mark.parametrize('every', [False, True], ids=['whole', 'prefixes'])
def test_passes_are_as_narrow_as_asked(checkpoint, every):
    """No pass holds more filler than `waste` allows or more prompts than `most`, on either side, and together the
    passes are the batch, once."""
    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.model.passes import plan_sizes, prefix_pairs, prefix_plan
    from vlm2rec_lab.studio import make_studio
    from vlm2rec_lab.training.step import plan_works

    split = make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)
    embedder, history, items = (
        VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu'),
        split.train.history[:24],
        np.arange(30),
    )
    bank = embedder.bank(split.catalogue, False)
    plans = {
        v: {
            'sequences': prefix_plan(bank, history, v)[0] if every else bank.sequence_plan(history, v),
            'items': bank.item_plan(items),
        }
        for v in bank.views
    }
    real = {v: {side: plan_sizes(bank.views[v], plan) for side, plan in sides.items()} for v, sides in plans.items()}
    n = {'sequences': len(prefix_pairs(history)[0]) if every else len(history), 'items': len(items)}
    for waste, most in ((1.0, None), (0.1, None), (0.0, None), (1.0, 5), (0.1, 5)):
        for view, works in plan_works(embedder, bank, history, items, every=every, waste=waste, most=most).items():
            for side, sizes in real[view].items():
                own = [w for w in works if w.side == side]
                assert sorted(np.concatenate([w.index.numpy() for w in own]).tolist()) == list(range(n[side]))
                assert sizes.sum() <= sum(w.tokens for w in own) <= sizes.sum() / max(1 - waste, 1e-9)
                assert most is not None or waste < 1 or len(own) == 1
                assert (
                    most is None
                    or max(w.tokens for w in own) <= most * sizes.max()
                    and len(own) >= -(-len(sizes) // most)
                )


SCRIPT = '''
import json, sys, warnings
import torch
from accelerate import Accelerator, notebook_launcher
from vlm2rec_lab.embed import VLMEmbedder
from vlm2rec_lab.studio import make_studio
from vlm2rec_lab.train import train

warnings.simplefilter('ignore')


def main(path, out, batch):
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    split = make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)
    found = {}
    for name, kw in (
        ('plain', {}),
        ('cached, all positions', dict(chunk=3, positions='all')),
        ('learned', dict(fuse='learned')),
    ):
        embedder = VLMEmbedder.from_pretrained(path, lora=4, device='cpu')
        file = f'{out}-{name}.safetensors'
        train(
            embedder,
            split,
            'wpcl',
            gap='smooth',
            steps=3,
            batch=batch,
            eval_every=2,
            progress=False,
            checkpoint=file,
            accelerator=accelerator,
            **kw,
        )
        accelerator.wait_for_everyone()
        embedder = VLMEmbedder.from_pretrained(path, lora=4, device='cpu')
        history = train(
            embedder,
            split,
            'wpcl',
            gap='smooth',
            steps=6,
            batch=batch,
            eval_every=2,
            progress=False,
            checkpoint=file,
            resume=True,
            accelerator=accelerator,
            **kw,
        )
        items = embedder.encode_items(
            split.catalogue, progress=False, accelerator=accelerator, store=f'{out}-items' if name == 'plain' else None
        )
        if accelerator.is_main_process:
            embedder.save_pretrained(f'{out}-{name}')  # adapters, by one process alone
        accelerator.wait_for_everyone()
        again = VLMEmbedder.from_pretrained(f'{out}-{name}', device='cpu').encode_items(split.catalogue, progress=False)
        assert all(torch.allclose(again[m], z, atol=1e-5) for m, z in items.items())
        frozen = [p for n, p in embedder.core.model.language_model.named_parameters() if 'lora_' not in n]
        found[name] = dict(
            held=[sum(getattr(p, 'to_local', lambda: p)().numel() for p in frozen), sum(p.numel() for p in frozen)],
            processes=accelerator.num_processes,
            loss=history.frame.loss.tolist(),
            grads=history.frame.filter(like='grad/').to_dict('list'),
            valid=history.frame['valid/fused'].dropna().tolist(),
            items={m: z.flatten().tolist() for m, z in items.items()},
        )
    with open(f'{out}.{accelerator.process_index}', 'w') as f:
        json.dump(found, f)


if __name__ == '__main__':
    if sys.argv[1] == 'notebook':
        notebook_launcher(main, (sys.argv[2], sys.argv[3], 8), num_processes=2, use_port=sys.argv[4])
    else:
        main(sys.argv[2], sys.argv[3], 8)
'''


def launcher(config=None):
    "The beginning of a command that runs a script in two processes: whole weights, or what a file of settings says."
    plain = '--multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no'.split()
    how = ['--config_file', config] if config else plain
    launch = [sys.executable, '-m', 'accelerate.commands.launch', *how]
    return [*launch, '--num_processes', 2, '--main_process_port', free_port()]


@pytest.fixture(scope='module')
def alone(checkpoint, tmp_path_factory):
    "The script in one process."
    folder = tmp_path_factory.mktemp('alone')
    (folder / 'script.py').write_text(SCRIPT)
    here(folder / 'script.py', 'launch', checkpoint, folder / 'out')
    return json.loads((folder / 'out.0').read_text())


LOOPBACK = {
    'OMP_NUM_THREADS': '1',
    'ACCELERATE_USE_CPU': 'true',
    'PYTHONPATH': str(ROOT),
    'GLOO_SOCKET_IFNAME': 'lo',
}


def run(command):
    "What a command prints."
    env = os.environ | LOOPBACK
    done = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def here(*argv):
    "What Python prints for a script or a module."
    done = warm.run(argv, env=os.environ | LOOPBACK)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize('way', ['accelerate launch', 'notebook_launcher', 'docs/fsdp.yaml'])
def test_two_processes(checkpoint, alone, tmp_path, way):
    """Two processes with half of each batch give the losses, validation scores and item vectors of one with all of it,
    in the same order; so they do with half of the frozen weights each."""
    (tmp_path / 'script.py').write_text(SCRIPT)
    if way == 'accelerate launch':
        run(
            [
                *launcher(),
                tmp_path / 'script.py',
                'launch',
                checkpoint,
                tmp_path / 'out',
            ]
        )
    elif way == 'docs/fsdp.yaml':
        run(
            [
                *launcher(ROOT / way),
                tmp_path / 'script.py',
                'launch',
                checkpoint,
                tmp_path / 'out',
            ]
        )
    else:
        here(tmp_path / 'script.py', 'notebook', checkpoint, tmp_path / 'out', free_port())
    found = [json.loads((tmp_path / f'out.{rank}').read_text()) for rank in range(2)]
    for name, one in alone.items():
        (a, whole), (b, _) = (f[name].pop('held') for f in found)
        assert whole == one['held'][0] == one['held'][1] and (
            a == b == whole if way != 'docs/fsdp.yaml' else a + b == whole and max(a, b) < 0.52 * whole
        )
    assert found[0] == found[1], 'the processes have drifted apart'
    for name, one in alone.items():
        two = found[0][name]
        assert (one['processes'], two['processes']) == (1, 2) and len(two['loss']) == 6
        assert np.abs(np.subtract(one['loss'], two['loss'])).max() < 1e-5, name
        for m, g in one['grads'].items():
            assert np.allclose(g, two['grads'][m], rtol=1e-4, atol=1e-6), (
                name,
                m,
            )  # Adam hides a factor, the norms do not
        assert np.allclose(one['valid'], two['valid'], atol=1e-6)
        for m, z in one['items'].items():
            assert np.allclose(z, two['items'][m], atol=1e-5)


FSDP = {
    'ACCELERATE_USE_FSDP': 'true',
    'FSDP_VERSION': '2',
    'FSDP_AUTO_WRAP_POLICY': 'TRANSFORMER_BASED_WRAP',
    'FSDP_TRANSFORMER_CLS_TO_WRAP': 'Qwen2_5_VLDecoderLayer',
}


def pair(rank, port, *command, **more):
    "One of two processes, started as a launcher does."
    env = {
        **os.environ,
        **more,
        **LOOPBACK,
        'RANK': str(rank),
        'LOCAL_RANK': str(rank),
        'WORLD_SIZE': '2',
        'LOCAL_WORLD_SIZE': '2',
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': port,
    }
    return warm.Started(command, env=env)


def test_command_in_two_processes(checkpoint, tmp_path):
    """`accelerate launch -m vlm2rec_lab train`: the first process prints and writes, pictures are computed once, and
    the figures are those of one process; so are those of a run that goes on with weights in parts."""
    ask = [
        '-m',
        'vlm2rec_lab',
        'train',
        '--data',
        'studio:balanced',
        '--model',
        checkpoint,
        '--users',
        40,
        '--batch',
        8,
        '--losses',
        'sft',
        '--lora',
        4,
    ]
    here(*ask, '--steps', 4, '--out', tmp_path / 'one')
    said = run([*launcher(), *ask, '--steps', 2, '--out', tmp_path / 'two', '--vision', tmp_path / 'pictures'])
    assert said.count('report.html') == 1 and said.count('test of studio') == 1
    said = run(
        [
            *launcher(ROOT / 'docs' / 'fsdp.yaml'),
            *ask,
            '--steps',
            4,
            '--out',
            tmp_path / 'two',
            '--vision',
            tmp_path / 'pictures',
            '--resume',
        ]
    )
    assert said.count('report.html') == 1 and said.count('test of studio') == 1
    one, two = (json.loads((tmp_path / out / 'sft' / 'history.json').read_text())['steps'] for out in ('one', 'two'))
    assert len(one) == len(two) == 4
    for a, b in zip(one, two):
        assert all(abs(a[k] - b[k]) < 1e-4 * max(abs(a[k]), 1) for k in ('loss', 'grad/text', 'grad/image'))
    from vlm2rec_lab.base.store import RECORD

    keys = np.fromfile(next((tmp_path / 'pictures').glob('*/index.bin')), RECORD)['key']
    assert len(keys) == len(set(k.tobytes() for k in keys)), 'both processes have computed the pictures'


LIFE = '''
import json, signal, sys, warnings
import torch
from accelerate import Accelerator
from vlm2rec_lab.embed import VLMEmbedder
from vlm2rec_lab.losses import sft
from vlm2rec_lab.studio import make_studio
from vlm2rec_lab.train import train
from vlm2rec_lab.training.history import Interrupted

torch.set_num_threads(1)
accelerator, (path, file) = Accelerator(cpu=True), sys.argv[1:]
split = make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)
# fewer prompts than processes
kw, said = dict(steps=5, batch=1, eval_every=0, progress=False, accelerator=accelerator), {}


def load():
    return VLMEmbedder.from_pretrained(path, lora=4, device='cpu')


def interrupt_second(records):
    if len(records) == 3 and not accelerator.is_main_process:
        signal.raise_signal(signal.SIGINT)


try:
    train(load(), split, checkpoint=file, save_every=1, callback=interrupt_second, **kw)
except Interrupted as e:
    said['interrupted'] = len(e.run.frame)
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    open(file, 'ab').truncate(100)  # the last one is lost; the one before it belongs to step 2
accelerator.wait_for_everyone()
with warnings.catch_warnings(record=True) as w:
    warnings.simplefilter('always')
    history = train(load(), split, checkpoint=file, resume=True, **kw)
    said['back'] = [str(x.message).split(': ')[-1] for x in w if 'before it' in str(x.message)]
said['losses'] = history.frame.loss.tolist()
said['alone'] = train(load(), split, **{**kw, 'accelerator': None}).frame.loss.tolist()


def ill(u, v, *rest):
    return sft(u, v, *rest) * (float('nan') if not accelerator.is_main_process else 1)  # in one process alone


try:
    train(load(), split, ill, **kw)
except FloatingPointError as e:
    said['ill'] = str(e)[:6]
try:
    train(load(), split, checkpoint=file if accelerator.is_main_process else file + '.elsewhere', resume=True, **kw)
except ValueError as e:
    said['elsewhere'] = 'all of them see' in str(e)
print(json.dumps(said))
'''


@pytest.mark.parametrize('weights', [{}, FSDP], ids=['whole', 'in parts'])
def test_one_process_in_trouble(checkpoint, tmp_path, weights):
    """What happens to one process happens to all: an interrupt, a checkpoint that is damaged, a figure that is none, a
    disk that the others do not see."""
    (tmp_path / 'life.py').write_text(LIFE)
    port = free_port()
    processes = [
        pair(rank, port, tmp_path / 'life.py', checkpoint, tmp_path / 'run.safetensors', **weights) for rank in range(2)
    ]
    out = [p.communicate(timeout=1000) for p in processes]
    assert all(p.returncode == 0 for p in processes), out[0][1][-2000:] + out[1][1][-2000:]
    first, second = (json.loads(o[0]) for o in out)
    assert (
        first['interrupted'] == second['interrupted'] == 3
        and first['ill'] == second['ill'] == 'step 0'
        and first['elsewhere']
        and second['elsewhere']
    )
    assert first['losses'] == second['losses'] and np.allclose(first['losses'], first['alone'], atol=1e-5)
