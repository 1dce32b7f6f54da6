"Distillation on the server: no step makes the loss worse, and what is new is left alone."

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated.distil import distilled, made_up


def loss(items, old, users):
    "What the server is taught, item by item."
    return F.binary_cross_entropy_with_logits(items @ users.T, (old @ users.T).sigmoid(), reduction='none').mean(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 4), st.integers(1, 6), st.integers(1, 9), st.floats(0.01, 30), st.floats(0, 1))
def test_steps_never_make_it_worse(known, new, dim, users, scale, strength):
    g = torch.Generator().manual_seed(known * 100 + users)
    old, now = (scale * torch.randn(known + new, dim, generator=g, dtype=torch.float64) for _ in range(2))
    made = scale * torch.randn(users, dim, generator=g, dtype=torch.float64)
    before = loss(now[:known], old[:known], made)
    for steps in (1, 4):
        found = distilled(now, old[:known], made, strength, steps)
        assert torch.equal(found[known:], now[known:])
        after = loss(found[:known], old[:known], made)
        assert (after <= before + 1e-12).all()
        before = after if steps == 1 else before


def test_a_step_is_that_of_the_gradient():
    g = torch.Generator().manual_seed(0)
    old, users = torch.randn(5, 3, generator=g), torch.randn(4, 3, generator=g)
    now = torch.randn(5, 3, generator=g).requires_grad_()
    loss(now, old, users).sum().backward()
    rate = 4 * 0.5 / users.square().sum(1).mean()
    found = distilled(now.detach(), old, users, strength=0.5, steps=1)
    assert torch.allclose(found, now.detach() - rate * now.grad, atol=1e-6)


def test_made_up_users_are_items_each_once():
    items = torch.arange(20.0)[:, None]
    assert sorted(made_up(items, 20)[:, 0].tolist()) == items[:, 0].tolist()
    assert len(set(made_up(items, 7, seed=1)[:, 0].tolist())) == 7
    assert made_up(items, 7, seed=1).tolist() != made_up(items, 7, seed=2).tolist()


@pytest.mark.parametrize('bad', [dict(strength=-0.1), dict(strength=1.1), dict(steps=0), dict(steps=1.5)])
def test_what_is_no_distillation_is_told(bad):
    with pytest.raises(DataError, match=next(iter(bad))):
        distilled(torch.ones(2, 2), torch.ones(2, 2), torch.ones(1, 2), **bad)
