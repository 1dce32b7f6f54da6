"""Batches: windows of many shapes."""

import pytest

from vlm2rec_lab.base.ragged import PAD
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.training.batches import Batch, make_batch, training_rows


@pytest.mark.parametrize('seed, length, history', [(0, 6, 4), (1, 9, 3), (2, 5, 20), (3, 12, 1)])
def test_windows_hold_every_row_once(seed, length, history):
    studio = make_studio('balanced', seed=seed, items=40, users=30, length=length)
    split = studio.split(train=20, valid=5, test=5, history=history)
    windows = training_rows(split, 'all')
    assert (split.train.history[windows] != PAD).sum() == len(split.train)
    assert isinstance(make_batch(split, windows[:3], 'all'), Batch)
