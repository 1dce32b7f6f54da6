"""Groups of like length, whatever the lengths; forward passes of planned prompts."""

import numpy as np
import pytest
import torch

from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.encode import encode_plan, length_groups
from vlm2rec_lab.shop.drawn import make_studio


@pytest.mark.parametrize('most', [None, 1, 5])
def test_every_row_is_in_one_group_and_the_bounds_hold(most):
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = rng.integers(1, rng.integers(2, 200), rng.integers(0, 60))
        waste = rng.random()
        groups = length_groups(sizes, waste, most)
        assert sorted(np.concatenate([*groups, []]).astype(int)) == list(range(len(sizes)))
        for g in groups:
            room = len(g) * sizes[g].max()
            assert len(g) and (most is None or len(g) <= most)
            assert room - sizes[g].sum() <= waste * room


def test_groups_do_not_change_when_rows_of_one_length_change_places():
    assert [g.tolist() for g in length_groups([5, 5, 9, 5], 0.0)] == [[2], [0, 1, 3]]


def test_one_planned_prompt_has_the_vector_that_it_has_in_a_catalogue(checkpoint):
    cat = make_studio('balanced', seed=0, items=12, users=20, length=4).catalogue
    embedder = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu')
    bank = embedder.bank(cat)
    plans = dict.fromkeys(cat.modalities, bank.item_plan([5]))
    one = encode_plan(embedder, bank, plans, dict.fromkeys(cat.modalities, torch.tensor([True])))
    for view, z in embedder.encode_items(cat).items():
        assert torch.allclose(one[view][0], z[5], atol=1e-6)
