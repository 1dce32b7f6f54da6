"""The estimate held against what then happened."""

import time

import pytest

from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import train
from vlm2rec_lab.training.estimate import estimate, step_tokens, token_cost


@pytest.mark.parametrize('how', [{}, dict(chunk=16), dict(positions='all')], ids=str)
def test_near_what_happens(checkpoint, how):
    "The time of the run, and the bytes that autograd held in a step of the full batch."
    studio = make_studio('balanced', seed=0, items=80, users=150, length=8)
    split = studio.split(train=120, valid=15, test=15, history=6)
    e = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu')
    expected = estimate(e, split, steps=8, batch=48, validations=0, **how)
    start = time.perf_counter()
    train(e, split, steps=8, batch=48, eval_every=0, progress=False, **how)
    took = time.perf_counter() - start
    kept = token_cost(e, split, batch=48, **how)
    seen = step_tokens(e, split, batch=48, steps=1, **how)
    held = kept['bytes'] * seen['pass_tokens' if 'chunk' in how else 'batch_tokens']
    assert 0.5 < expected.graph / held < 2
    assert 0.2 < expected.time / took < 5
