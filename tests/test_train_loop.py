"""The training loop: stopped and resumed, steered and replayed, refused, and what goes wrong in it."""

import functools
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from vlm2rec_lab.base.checkpoint import save_checkpoint
from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.families import load_model, lora_pattern
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import History, Interrupted, NotKept, previous, read_checkpoint, train
from vlm2rec_lab.training.losses import sft

QUICK = dict(batch=8, eval_every=0, progress=False)


@pytest.fixture(scope='module')
def toy():
    return make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)


@pytest.fixture
def fresh(checkpoint):
    return functools.partial(VLMEmbedder.from_pretrained, checkpoint, lora=4, device='cpu', seed=0)


def stop_after(n):
    return lambda records: 'stop' if len(records) == n else None


def interrupt_after(n):
    return lambda records: signal.raise_signal(signal.SIGINT) if len(records) == n else None


@pytest.mark.parametrize(
    'loss, settings',
    [
        ('modality-dropout', {}),
        ('ogm-ge', {'noise': 0.5}),
        ('wpcl', {'gap': 'smooth'}),
        ('sft', {'fuse': 'learned'}),
        ('sft', {'schedule': 'cosine', 'warmup': 1}),
    ],
)
def test_losses_that_draw_remember_or_learn_are_resumed(toy, fresh, tmp_path, loss, settings):
    kw = dict(steps=4, **QUICK, **settings)
    whole = train(fresh(), toy, loss, **kw)
    keep = dict(checkpoint=tmp_path / 'run.safetensors', save_every=1)
    train(fresh(), toy, loss, callback=stop_after(2), **keep, **kw)
    resumed = train(fresh(), toy, loss, resume=True, **keep, **kw)
    assert resumed.frame.loss.tolist() == whole.frame.loss.tolist()


def dropping(checkpoint, share, names=('default',)):
    "An embedder of a model that came with adapters, which drop so much."
    model, *rest = load_model(checkpoint, device='cpu')
    config = LoraConfig(r=4, target_modules=lora_pattern(model), lora_dropout=share)
    torch.manual_seed(0)
    model = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    return VLMEmbedder(model.eval(), *rest, adapters=names if len(names) > 1 else ())


@pytest.mark.parametrize('names', [('default',), ('text', 'image')])
def test_dropout_of_adapters_is_for_learning_alone(toy, checkpoint, names):
    losses = {}
    for name, share, kw in (('none', 0.0, {}), ('a', 0.5, {}), ('b', 0.5, {}), ('chunked', 0.5, dict(chunk=3))):
        embedder, state = dropping(checkpoint, share, names), torch.get_rng_state()
        assert embedder.dropout == share
        losses[name] = train(embedder, toy, 'sft', steps=3, **QUICK, **kw).frame.loss.tolist()
        assert torch.equal(state, torch.get_rng_state())  # takes nothing from anybody else's draws
        first, second = (embedder.encode_sequences(toy.catalogue, toy.test.history[:5]) for _ in range(2))
        assert all(np.array_equal(first[m], second[m]) for m in first)
    assert losses['a'] == losses['b']
    assert np.isclose(losses['a'][0], losses['none'][0], rtol=1e-6)  # adapters begin by changing nothing
    for name in ('a', 'chunked'):
        assert np.isfinite(losses[name]).all() and not np.allclose(losses[name], losses['none'], rtol=1e-5, atol=0)


def test_a_learned_fusion_moves_and_sums_to_one(toy, fresh):
    history = train(fresh(), toy, 'sft', fuse='learned', steps=4, **QUICK)
    assert abs(sum(history.fuse.values()) - 1) < 1e-6 and history.fuse['text'] != 0.5


@pytest.mark.parametrize('how', [dict(chunk=2.5), dict(chunk=0), dict(waste=2), dict(waste=-0.1)], ids=str)
def test_a_speed_that_cannot_be_is_refused_before_the_first_step(toy, fresh, how):
    (name, value), *_ = how.items()
    with pytest.raises(DataError, match=f'{name}={value}'):
        train(fresh(), toy, steps=1, **QUICK, **how)


@pytest.mark.parametrize(
    'new, said',
    [
        (dict(steps=4), r'steps=3 \(now 4\)'),
        (dict(schedule='cosine'), 'schedule'),
        (dict(positions='all'), 'positions'),
        (dict(warmup=1), 'warmup'),
        (dict(autocast='bfloat16'), 'autocast'),
        (dict(fuse='concat'), 'fuse'),
        (dict(tau=0.1), 'tau'),
        (dict(batch=4), 'batch'),
        (dict(seed=1), 'seed'),
        (dict(lr=1e-4), 'lr'),
    ],
)
def test_another_run_is_not_resumed(toy, fresh, tmp_path, new, said):
    kw = dict(steps=3, **QUICK, checkpoint=tmp_path / 'run.safetensors', schedule='linear')
    train(fresh(), toy, **kw)
    with pytest.raises(ValueError, match=said):
        train(fresh(), toy, resume=True, **{**kw, **new})


def test_other_data_of_the_same_name_are_not_resumed(toy, fresh, tmp_path):
    kw = dict(steps=3, **QUICK, checkpoint=tmp_path / 'run.safetensors')
    train(fresh(), toy, **kw)
    fewer = replace(toy, train=toy.train.take(np.arange(len(toy.train) - 1)))
    assert fewer.name == toy.name
    with pytest.raises(ValueError, match='rows'):
        train(fresh(), fewer, resume=True, **kw)


@pytest.mark.parametrize('new', [dict(chunk=3), dict(waste=1.0), dict(plain=True)], ids=str)
def test_a_run_may_go_on_faster_or_slower(toy, fresh, tmp_path, new):
    kw = dict(steps=3, **QUICK, checkpoint=tmp_path / 'run.safetensors', schedule='linear')
    train(fresh(), toy, **kw)
    assert len(train(fresh(), toy, resume=True, **{**kw, **new}).frame) == 3


def test_a_plain_run_and_a_fast_one_keep_banks_of_their_own(toy, fresh):
    once = fresh()
    train(once, toy, steps=1, plain=True, **QUICK)
    train(once, toy, steps=1, **QUICK)
    assert sorted(once._banks[toy.catalogue]) == ['live', 'memory']


def test_experts_train_every_modality(toy, fresh):
    apart = fresh(adapters=('text', 'image'))
    history = train(apart, toy, 'experts', steps=3, **QUICK)
    assert history.frame[['grad/text', 'grad/image']].gt(0).all(axis=None)


@pytest.mark.parametrize(
    'kw, said',
    [
        (dict(loss=sft, fuse={'text': 1.0, 'image': 2.0}), 'functools.partial'),
        (dict(loss='stf'), "did you mean 'sft'"),
        (dict(plain=True, accelerator=SimpleNamespace(num_processes=2, is_main_process=True)), 'several processes'),
        (dict(batch=0), 'batch=0'),
        (
            dict(
                accelerator=SimpleNamespace(distributed_type=SimpleNamespace(value='DEEPSPEED'), is_main_process=True)
            ),
            'MULTI_GPU',
        ),
    ],
    ids=['own loss', 'loss', 'plain', 'batch', 'deepspeed'],
)
def test_what_is_refused(toy, fresh, kw, said):
    with pytest.raises(ValueError, match=said):
        train(fresh(), toy, **{**dict(steps=1, progress=False), **kw})


def test_settings_of_no_loss_are_refused(toy, fresh):
    with pytest.raises(TypeError, match='alpha'):
        train(fresh(), toy, 'sft', alpha=1)
    with pytest.raises(TypeError, match='alpah'):
        train(fresh(), toy, 'sft', controls={'alpah': 1.0}, steps=1, **QUICK)


def test_numpy_numbers_and_a_loss_of_ones_own(toy, fresh, tmp_path):
    file = tmp_path / 'run.safetensors'
    numbers = dict(steps=np.int64(4), batch=np.int64(8), lr=np.float32(2e-3), seed=np.int64(0))
    kw = dict(**numbers, eval_every=0, progress=False)
    keep = dict(save_every=0, checkpoint=file)

    def own():
        return functools.partial(sft, fuse='concat')

    train(fresh(), toy, own(), callback=stop_after(2), **keep, **kw)
    assert read_checkpoint(file)[1]['settings']['loss'] == "sft(fuse='concat')"
    assert not previous(file).exists()
    resumed = train(fresh(), toy, own(), resume=True, **keep, **kw)
    assert resumed.frame.loss.tolist() == train(fresh(), toy, own(), **kw).frame.loss.tolist()


def test_a_checkpoint_is_written_after_the_callback_of_its_step(toy, fresh, tmp_path):
    file, held = tmp_path / 'run.safetensors', []

    def look(records):
        held.append(len(read_checkpoint(file)[1]['records']) if file.exists() else 0)

    kw = dict(batch=4, eval_every=0, progress=False)
    train(fresh(), toy, steps=5, save_every=2, checkpoint=file, callback=look, **kw)
    assert held == [0, 0, 2, 2, 4]
    assert len(read_checkpoint(file)[1]['records']) == 5


def test_no_steps(toy, fresh):
    assert repr(train(fresh(), toy, steps=0, progress=False)) == 'History of 0 steps of sft'


def test_a_loss_that_is_not_finite_stops(toy, fresh):
    def broken(sequences, items, positives, exclude):
        return sft(sequences, items, positives, exclude) * float('nan')

    with pytest.raises(FloatingPointError, match='step 0'):
        train(fresh(), toy, broken, steps=5, batch=8, progress=False)


def test_the_first_step_of_adamw_is_as_long_as_the_rate(toy, fresh):
    warm = fresh()
    start = [p.detach().clone() for _, p in warm.adapter_parameters()]
    train(warm, toy, steps=1, warmup=4, lr=0.04, **QUICK)
    moved = max((p - q).abs().max().item() for q, (_, p) in zip(start, warm.adapter_parameters()))
    assert abs(moved - 0.01) < 1e-4


def half_way(controls):
    "A callback that turns alpha up after three steps."
    return lambda records: controls.update(alpha=2.0, tau=0.1 + 0.2) if len(records) == 3 else None


@pytest.fixture
def steered(toy, fresh):
    knobs = {'alpha': 0.5, 'lam': 0.1}
    return train(fresh(), toy, 'vlm2rec', controls=knobs, callback=half_way(knobs), steps=6, **QUICK)


def test_controls_that_say_what_the_settings_say_change_nothing(toy, fresh):
    plain = train(fresh(), toy, 'vlm2rec', steps=6, **QUICK)
    said = train(fresh(), toy, 'vlm2rec', controls={'alpha': 0.5, 'tau': 0.07}, steps=6, **QUICK)
    assert said.frame.loss.tolist() == plain.frame.loss.tolist()
    assert 'controls' not in plain.settings


def test_a_steered_run_is_replayed_from_disk(toy, fresh, steered, tmp_path):
    steered.save(tmp_path / 'run.json')
    recorded = History.load(tmp_path / 'run.json')
    assert recorded.controls == steered.controls
    again = train(fresh(), toy, 'vlm2rec', controls=recorded.controls, steps=6, **QUICK)
    assert again.to_dict() == steered.to_dict()


@pytest.mark.parametrize('way', ['stopped', 'interrupted'])
def test_a_steered_run_is_resumed(toy, fresh, steered, tmp_path, way):
    kw = dict(steps=6, **QUICK, controls=steered.controls, checkpoint=tmp_path / 'run.safetensors')
    if way == 'stopped':
        part = train(fresh(), toy, 'vlm2rec', callback=stop_after(4), **kw)
    else:
        with pytest.raises(Interrupted, match='stopped after 4 of 6 steps, .*run.safetensors keeps it') as stop:
            train(fresh(), toy, 'vlm2rec', callback=interrupt_after(4), **kw)
        part = stop.value.run
    assert len(part.frame) == 4
    resumed = train(fresh(), toy, 'vlm2rec', resume=True, **kw)
    assert resumed.frame.loss.tolist() == steered.frame.loss.tolist()
    with pytest.raises(ValueError, match='controls=True'):
        train(fresh(), toy, 'vlm2rec', resume=True, **{**kw, 'controls': None})


def test_controls_of_fewer_steps_are_refused(toy, fresh, steered):
    with pytest.raises(ValueError, match='steps=6'):
        train(fresh(), toy, 'vlm2rec', controls=steered.controls, steps=9, **QUICK)


@pytest.mark.parametrize('fresh_loss', ['sft', 'vlm2rec', 'per-modality'])
def test_chunks_do_not_change_what_is_learned(toy, fresh, fresh_loss):
    whole, cut = (train(fresh(), toy, fresh_loss, steps=3, **QUICK, **kw).frame for kw in ({}, {'chunk': 3}))
    assert np.allclose(whole.loss, cut.loss, atol=1e-5)
    assert torch.allclose(torch.tensor(whole['grad/image']), torch.tensor(cut['grad/image']), rtol=1e-3)


# ---- interrupts, and a disk that is full


def test_an_interrupt_ends_the_cell_that_trains_in_a_loop(toy, fresh):
    "The next training is not begun, and what was learned is at hand."
    embedders, begun = {'sft': fresh(), 'vlm2rec': fresh()}, []
    start = {n: p.detach().clone() for n, p in embedders['sft'].adapter_parameters()}
    with pytest.raises(KeyboardInterrupt) as stop:
        for name, embedder in embedders.items():
            begun.append(name)
            train(embedder, toy, name, steps=6, callback=interrupt_after(2), **QUICK)
    assert begun == ['sft'] and len(stop.value.run.frame) == 2
    assert str(stop.value).startswith('sft: stopped after 2 of 6 steps, which is no result')
    assert any(not torch.equal(p, start[n]) for n, p in embedders['sft'].adapter_parameters())


def test_an_interrupt_in_the_last_step_ends_the_cell_too(toy, fresh):
    with pytest.raises(Interrupted) as stop:
        train(fresh(), toy, steps=2, callback=interrupt_after(2), **QUICK)
    assert stop.value.run.finished


def test_a_wish_of_the_callback_is_no_interrupt(toy, fresh):
    assert len(train(fresh(), toy, steps=4, callback=stop_after(2), **QUICK).frame) == 2


def full(after):
    "`save_checkpoint` on a disk that is full after some checkpoints."
    written = []

    def save(path, *args):
        if len(written) == after:
            raise OSError(28, 'No space left on device')
        written.append(path)
        save_checkpoint(path, *args)

    return save


@pytest.mark.parametrize(('after', 'said'), [(0, 'there is none before it'), (1, 'the checkpoint before it stays')])
def test_a_full_disk_ends_with_an_error(toy, fresh, tmp_path, monkeypatch, after, said):
    "The run goes on, for there may be room later; if there is none at the end, what was asked for is not there."
    monkeypatch.setattr('vlm2rec_lab.train.save_checkpoint', full(after))
    kw = dict(steps=3, checkpoint=tmp_path / 'run.safetensors', save_every=1, **QUICK)
    with pytest.warns(UserWarning, match=f'cannot be written .*{said}'), pytest.raises(NotKept, match=said) as lost:
        train(fresh(), toy, **kw)
    assert lost.value.run.finished and (tmp_path / 'run.safetensors').exists() == bool(after)


def test_a_disk_that_was_full_for_a_while_costs_a_warning(toy, fresh, tmp_path, monkeypatch):
    room = full(0)

    def save(path, named, optimiser, records, *rest):
        (room if len(records) == 1 else save_checkpoint)(path, named, optimiser, records, *rest)

    monkeypatch.setattr('vlm2rec_lab.train.save_checkpoint', save)
    with pytest.warns(UserWarning, match='there is none before it; the run goes on'):
        run = train(fresh(), toy, steps=2, checkpoint=tmp_path / 'run.safetensors', save_every=1, **QUICK)
    assert run.finished and len(read_checkpoint(tmp_path / 'run.safetensors')[1]['records']) == 2


def test_a_disk_without_room_for_one_checkpoint_is_refused_before_the_first_step(toy, fresh, tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda folder: SimpleNamespace(free=20_000))
    begun = []
    with pytest.raises(OSError, match='takes 0.03 MB and the disk has 0.02 MB left: make room'):
        train(fresh(), toy, checkpoint=tmp_path / 'run.safetensors', callback=begun.append, **QUICK)
    assert not begun
