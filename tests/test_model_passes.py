"""Trees of prefixes: their inputs, and that they are `assemble` where there is no branch."""

import numpy as np
import pytest
import torch

from vlm2rec_lab.base.ragged import PAD
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.passes import (
    assemble_tree,
    forward_tree,
    plan_sizes,
    prefix_pairs,
    prefix_vectors,
)
from vlm2rec_lab.model.pieces import Prompts, assemble, stack_pieces, text_piece
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio


@pytest.fixture(scope='module')
def studio():
    return make_studio('balanced', seed=0, items=40, users=60, length=8)


@pytest.fixture(scope='module')
def history(studio):
    "Six histories; two of them are short."
    history = studio.split(train=30, valid=15, test=15, history=6).test.history[:6].copy()
    history[0, 2:], history[1, 4:] = PAD, PAD
    return history


@pytest.fixture(scope='module')
def embedder(checkpoint):
    embedder = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu')
    for k, (_, p) in enumerate(embedder.adapter_parameters()):
        torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(k))
    return embedder


def test_the_mask_of_a_small_tree_by_hand():
    two_items_and_closing = stack_pieces([text_piece([7, 8]), text_piece([9]), text_piece([1, 2])])
    branch = torch.tensor([False, True, False, True])
    mask = assemble_tree(two_items_and_closing, torch.tensor([[0, 2, 1, 2]]), branch)[3]
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 1],
    ]
    assert mask.any(-1).all()  # no token reads nothing


def test_a_tree_without_branches_is_assemble(embedder, studio, history):
    bank = embedder.bank(studio.catalogue)
    plan = bank.sequence_plan(history[:5], 'image')
    tree = assemble_tree(bank.views['image'], plan, torch.zeros(plan.shape[1], dtype=torch.bool))
    for a, b in zip(tree[:3], assemble(bank.views['image'], plan)[:3]):
        assert torch.equal(a, b)
    assert tree[3] is None


def test_tokens_of_a_plan_are_those_that_are_put_together(embedder, studio, history):
    bank = embedder.bank(studio.catalogue)
    plan = bank.sequence_plan(history, 'text')
    sizes = plan_sizes(bank.views['text'], plan)
    assert sizes.shape == (6,)
    assert sizes.tolist() == (assemble(bank.views['text'], plan)[3] + 1).tolist()


def test_prefixes_come_row_by_row_oldest_first(history):
    rows, lengths = prefix_pairs(history)
    assert rows[:4].tolist() == [0, 0, 1, 1]
    assert lengths[:6].tolist() == [1, 2, 1, 2, 3, 4]


@pytest.mark.filterwarnings('ignore:.*items have no')
def test_a_prefix_without_content_is_zero(embedder, studio):
    cat = studio.catalogue
    pictures = [None if i % 3 == 0 else x for i, x in enumerate(cat.content['image'])]
    holes = Catalogue(cat.ids, {**cat.content, 'image': pictures}, cat.kinds, cat.table)
    z = prefix_vectors(embedder, embedder.bank(holes), [[3, 6, 4]])['image']
    assert z[:2].abs().sum().item() == 0.0 and z[2].abs().sum() > 0


def test_one_pass_and_passes_in_groups_agree(embedder, studio, history):
    bank = embedder.bank(studio.catalogue)
    one, groups = forward_tree(embedder, bank, 'text', history), prefix_vectors(embedder, bank, history)['text']
    assert torch.allclose(one, groups, atol=1e-5)


def test_a_history_of_nothing_has_no_prefix(embedder, studio):
    nothing = np.full((2, 3), PAD)
    found = prefix_vectors(embedder, embedder.bank(studio.catalogue), nothing)
    assert [z.shape[0] for z in found.values()] == [0, 0]


@pytest.mark.parametrize('how', ['bfloat16 weights', 'autocast'])
def test_a_tree_in_sixteen_bits_comes_near_to_that_in_thirty_two(embedder, checkpoint, studio, history, how):
    "A mask as numbers is for float32 alone."
    weights = torch.bfloat16 if how == 'bfloat16 weights' else torch.float32
    other = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu', dtype=weights)
    for (_, p), (_, q) in zip(other.adapter_parameters(), embedder.adapter_parameters(), strict=True):
        p.data.copy_(q.data)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=how == 'autocast'):
        near = prefix_vectors(other, other.bank(studio.catalogue, progress=False), history)
    with torch.no_grad():
        exact = prefix_vectors(embedder, embedder.bank(studio.catalogue, progress=False), history)
    for view, z in exact.items():
        told = z.norm(dim=1) > 0
        assert (torch.cosine_similarity(z, near[view].float())[told] > 0.98).all()


@pytest.mark.parametrize('pool', ['last', 'mean', 'eos'])
@pytest.mark.parametrize('sequence', ['{}', '{};', '{} bought'])
def test_prompts_that_begin_with_their_gap_may_be_empty(checkpoint, studio, history, sequence, pool):
    "A history of nothing that the view knows has no token; its vector is zero, one by one and as a prefix."
    cat = studio.catalogue
    texts = [None if i in history[:, :2] else t for i, t in enumerate(cat.content['text'])]
    bare = Catalogue(cat.ids, dict(cat.content, text=texts), cat.kinds)
    e = VLMEmbedder.from_pretrained(
        checkpoint, lora=4, device='cpu', prompts=Prompts(item='{}', sequence=sequence), pool=pool
    )
    bank = e.bank(bare, progress=False)
    rows, lengths = prefix_pairs(history)
    alone = np.where(np.arange(history.shape[1]) < lengths[:, None], history[rows], PAD)
    one, many = e.sequence_vectors(bank, alone)['text'], prefix_vectors(e, bank, history)['text']
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-4)
    empty = ~(bank.present('text', alone).any(1)).numpy()
    assert empty.any() and not empty.all() and not many[empty].any() and many[~empty].any(1).all()
    only = e.sequence_vectors(bank, alone[empty])['text']
    assert only.shape == (empty.sum(), many.shape[1]) and not only.any()
    missing = [i for i, t in enumerate(texts) if t is None]
    assert not e.item_vectors(bank, np.array(missing))['text'].any()
