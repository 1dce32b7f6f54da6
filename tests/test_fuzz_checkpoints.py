"""Damaged checkpoints: every one is refused by name, or the one before it serves with a warning; none is taken."""

import shutil
import time
import warnings

import numpy as np
import pytest
import torch

from vlm2rec_lab.base.checkpoint import load_checkpoint, previous, save_checkpoint

SECONDS = 20  # for all damages of a seed


def made(path, steps):
    "A checkpoint of some steps with one before it: its parameters and optimiser."
    p = torch.nn.Parameter(torch.arange(24.0).reshape(4, 6))
    optimiser = torch.optim.AdamW([p], lr=0.1)
    records = []
    for step in range(steps):
        p.grad = torch.full_like(p, float(step + 1))
        optimiser.step()
        records.append(dict(step=step, loss=1.0 / (step + 1)))
        save_checkpoint(path, [('p', p)], optimiser, records, dict(steps=steps), {'seen': 0.5})
    return p.detach().clone()


def flip(data, rng):
    "One bit turned."
    at = rng.integers(len(data))
    data[at] ^= 1 << rng.integers(8)
    return data


def cut(data, rng):
    "Broken off somewhere."
    return data[: rng.integers(len(data))]


def zeros(data, rng):
    "A stretch of zeros, as a file system leaves after a crash."
    at = rng.integers(len(data))
    data[at : at + 1 + rng.integers(64)] = bytes(len(data[at : at + 1 + rng.integers(64)]))
    return data


def longer(data, rng):
    "Bytes at the end that nobody wrote."
    return data + rng.bytes(1 + rng.integers(100))


def swapped(data, rng):
    "Two stretches of bytes in each other's place."
    a, b = sorted(rng.integers(0, len(data) - 16, 2))
    data[a : a + 8], data[b : b + 8] = data[b : b + 8], data[a : a + 8]
    return data


def other_size(data, rng):
    "A header that says another length."
    data[:8] = int(rng.integers(2**63)).to_bytes(8, 'little')
    return data


DAMAGES = (flip, cut, zeros, longer, swapped, other_size)


def load(path, dirty):
    "(steps, parameter, what was said) of a checkpoint; parameter and memory begin `dirty`."
    p = torch.nn.Parameter(dirty.clone())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        records = load_checkpoint(path, [('p', p)], torch.optim.AdamW([p]), dict(steps=3), {})
    return len(records), p.detach(), [str(w.message) for w in said]


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('alone', [True, False], ids=['alone', 'with one before it'])
def test_damaged_checkpoints(tmp_path, seed, alone):
    whole = tmp_path / 'whole.safetensors'
    values, before = made(whole, 3), torch.full((4, 6), 7.0)
    assert load(whole, before)[0] == 3 and torch.equal(load(whole, before)[1], values)
    rng, count, end = np.random.default_rng(seed), dict(cases=0, refused=0, before=0, same=0, silent=0), None
    end = time.monotonic() + SECONDS
    for k in range(300):
        if time.monotonic() > end:
            break
        damage, path = DAMAGES[k % len(DAMAGES)], tmp_path / f'{k}.safetensors'
        path.write_bytes(data := bytes(damage(bytearray(whole.read_bytes()), rng)))
        if not alone:
            shutil.copy(previous(whole), previous(path))
        count['cases'] += 1
        try:
            steps, p, said = load(path, before)
        except ValueError as e:
            assert alone and path.name in str(e) and 'remove it, and the run begins anew' in str(e), e
            count['refused'] += 1
            continue
        if data == whole.read_bytes():
            count['same'] += 1
        elif steps == 2 and any('going on from the checkpoint before it, after 2 steps' in s for s in said):
            count['before'] += 1
        else:
            count['silent'] += 1
    print(f'seed {seed}, {"alone" if alone else "with one before it"}: {count}')
    assert count['silent'] == 0 and count['cases'] >= 60
    assert count['refused' if alone else 'before'] + count['same'] == count['cases']
