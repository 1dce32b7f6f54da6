"""Checkpoints: breaks of every kind, and a writer that is killed."""

import os
import warnings

import pytest
import torch

from vlm2rec_lab.base.checkpoint import load_checkpoint, previous, read_checkpoint, save_checkpoint


def training(size=3):
    named = [('a', torch.nn.Parameter(torch.ones(2, size)))]
    optimiser = torch.optim.AdamW([p for _, p in named])
    named[0][1].grad = torch.ones(2, size)
    optimiser.step()
    return named, optimiser


@pytest.fixture
def two(tmp_path):
    "A file with two checkpoints behind it: (file, its bytes, bytes of the one before)."
    file, (named, optimiser) = tmp_path / 'c.safetensors', training()
    save_checkpoint(file, named, optimiser, [{'step': 0}], {'lr': 1})
    first = file.read_bytes()
    save_checkpoint(file, named, optimiser, [{'step': 0}, {'step': 1}], {'lr': 1})
    assert previous(file).read_bytes() == first
    return file, file.read_bytes(), first


def one_bit(data):
    changed = bytearray(data)
    changed[-7] ^= 1
    return bytes(changed)


BREAKS = {
    'broken off': lambda data: data[:-100],
    'hardly begun': lambda data: data[:20],
    'empty': lambda data: b'',
    'one bit': one_bit,
    'a record changed': lambda data: data.replace(b'\\"step\\": 1', b'\\"step\\": 7'),
    'gone': lambda data: None,
}


@pytest.mark.parametrize('how', BREAKS)
def test_the_one_before_is_used(two, how):
    file, second, first = two
    damaged, (named, optimiser) = BREAKS[how](second), training()
    assert damaged != second
    file.unlink() if damaged is None else file.write_bytes(damaged)
    with pytest.warns(UserWarning, match='after 1 steps'):
        assert load_checkpoint(file, named, optimiser, {'lr': 1}) == [{'step': 0}]


@pytest.mark.parametrize('how', [h for h in BREAKS if h != 'gone'])
def test_a_damaged_one_never_replaces_a_good_one(two, how):
    file, second, first = two
    file.write_bytes(BREAKS[how](second))
    save_checkpoint(file, *training(), [{'step': 0}, {'step': 1}], {'lr': 1})
    assert previous(file).read_bytes() == first
    assert read_checkpoint(file)[1]['records'] == [{'step': 0}, {'step': 1}]


def test_a_writer_that_was_killed_leaves_nothing(two):
    file, second, first = two
    os.link(file, file.with_name('.c.safetensors.previous'))
    file.with_name('.c.safetensors-abcdefgh').write_bytes(b'half')
    file.write_bytes(second[:-100])  # killed before the second took its place, and then damaged
    save_checkpoint(file, *training(), [{'step': 0}], {'lr': 1})
    assert previous(file).read_bytes() == first
    assert sorted(p.name for p in file.parent.iterdir()) == ['c.safetensors', 'c.safetensors.previous']


def test_both_damaged_says_what_to_do(two):
    file, second, first = two
    named, optimiser = training()
    file.unlink()
    previous(file).write_bytes(bytes(len(first)))
    with pytest.raises(ValueError, match='previous is damaged.*: remove both, and the run begins anew'):
        load_checkpoint(file, named, optimiser, {'lr': 1})
    previous(file).unlink()
    with pytest.raises(ValueError, match='remove it, and the run begins anew'):
        load_checkpoint(file, named, optimiser, {'lr': 1})


def test_other_shapes_are_refused(two):
    file, *_ = two
    named, optimiser = training(size=4)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(ValueError, match='same lora='):
            load_checkpoint(file, named, optimiser, {'lr': 1})


def test_a_falling_rate_belongs_to_its_number_of_steps(tmp_path):
    file, (named, optimiser) = tmp_path / 'c.safetensors', training()
    save_checkpoint(file, named, optimiser, [], {'steps': 3, 'schedule': 'linear'})
    with pytest.raises(ValueError, match=r'steps=3 \(now 4\)'):
        load_checkpoint(file, named, optimiser, {'steps': 4, 'schedule': 'linear'})
    save_checkpoint(file, named, optimiser, [], {'steps': 3})
    assert load_checkpoint(file, named, optimiser, {'steps': 4}) == []
