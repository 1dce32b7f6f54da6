"""The embedder: what it encodes, keeps, saves and refuses."""

import copy
import gc
import weakref
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from vlm2rec_lab import embed
from vlm2rec_lab.base.errors import warned
from vlm2rec_lab.base.store import Store
from vlm2rec_lab.model.embedder import VLMEmbedder, item_keys
from vlm2rec_lab.model.pieces import Prompts
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio


@pytest.fixture(scope='module')
def cat():
    return make_studio('balanced', seed=0, items=40, users=60, length=6).catalogue


def load(checkpoint, **kw):
    "A random model; adapters, where it has them, are not zero."
    embedder = VLMEmbedder.from_pretrained(checkpoint, device='cpu', **kw)
    for k, (_, p) in enumerate(embedder.adapter_parameters()):
        torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(k))
    return embedder


def test_no_history_gives_no_vector(checkpoint, cat):
    found = load(checkpoint).encode_sequences(cat, np.zeros((0, 4)))
    assert {m: tuple(z.shape) for m, z in found.items()} == {'text': (0, 32), 'image': (0, 32)}


def test_histories_that_are_too_long_for_the_model_are_said(checkpoint, cat):
    embedder, history = load(checkpoint), np.zeros((3, 60), int)
    history[0, 2:] = -1
    assert not warned(lambda: embedder.encode_sequences(cat, history))
    embedder.core.config.get_text_config().max_position_embeddings = 100
    with pytest.warns(UserWarning, match='2 of 3 prompts have more than the 100 tokens that the model was made for'):
        embedder.encode_sequences(cat, history)


@pytest.mark.parametrize(
    ('asked', 'said'),
    [
        (dict(fusion='inside'), 'internal'),
        (dict(quantise='4bits'), "did you mean '4bit'"),
        (dict(adapters=('text', 'image')), 'lora=8'),
    ],
)
def test_what_cannot_be_is_said_with_the_remedy(checkpoint, asked, said):
    with pytest.raises(ValueError, match=said):
        VLMEmbedder.from_pretrained(checkpoint, device='cpu', **asked)


@pytest.mark.skipif(find_spec('bitsandbytes') is not None, reason='bitsandbytes is here')
def test_four_bits_say_what_to_install(checkpoint):
    with pytest.raises(ImportError, match='pip install bitsandbytes'):
        VLMEmbedder.from_pretrained(checkpoint, device='cpu', quantise='4bit')


def test_attention_never_builds_the_table_of_all_pairs(checkpoint):
    assert load(checkpoint).core.config.text_config._attn_implementation == 'sdpa'


def test_a_whole_checkpoint_comes_back_equal(checkpoint, cat, tmp_path):
    embedder = load(checkpoint)
    full = VLMEmbedder.from_pretrained(embedder.save_pretrained(tmp_path / 'full'), device='cpu')
    assert torch.equal(full.encode_items(cat)['text'], embedder.encode_items(cat)['text'])


def test_half_precision_points_the_same_way(checkpoint, cat):
    whole, half = load(checkpoint), load(checkpoint, dtype=torch.bfloat16)
    assert (half.encode_items(cat)['image'] * whole.encode_items(cat)['image']).sum(1).min() > 0.99


def test_a_class_made_from_the_embedder_loads_as_itself(checkpoint):
    class Mine(VLMEmbedder):
        "An embedder of one's own."

    assert type(Mine.from_pretrained(checkpoint, device='cpu')) is Mine


def sizes(folder):
    "How many vectors the stores of a folder hold."
    return [len(Store(folder / m, 32)) for m in ('text', 'image')]


def test_a_stored_catalogue_is_encoded_once(checkpoint, cat, tmp_path):
    embedder = load(checkpoint, lora=4)
    embedder.encode_items(cat, store=tmp_path)
    before = sizes(tmp_path)
    embedder.encode_items(cat, store=tmp_path)
    assert sizes(tmp_path) == before
    texts = ['another text', *cat.content['text'][1:]]
    embedder.encode_items(Catalogue(cat.ids, {**cat.content, 'text': texts}, cat.kinds), store=tmp_path)
    assert sizes(tmp_path) == [before[0] + 1, before[1]]


def test_other_weights_or_another_prompt_find_nothing_in_a_store(checkpoint, cat):
    plain, other = load(checkpoint), load(checkpoint, prompts=Prompts(item='{}!'))
    adapted = load(checkpoint, lora=4)
    keys, others, more = (set(item_keys(e, e.bank(cat), cat, 'text')) for e in (plain, other, adapted))
    assert not keys & others and not keys & more
    marks = '<|im_start|>{}<|im_end|>', '<|im_start|><|im_end|>{}'
    a, b = (load(checkpoint, prompts=Prompts(item=item)) for item in marks)
    assert not set(item_keys(a, a.bank(cat), cat, 'text')) & set(item_keys(b, b.bank(cat), cat, 'text'))


def test_adapters_of_each_modality_are_saved_and_loaded(checkpoint, cat, tmp_path):
    apart = load(checkpoint, lora=4, adapters=('text', 'image'))
    again = VLMEmbedder.from_pretrained(apart.save_pretrained(tmp_path / 'apart'), device='cpu')
    assert again.adapters == ('text', 'image')
    for m, z in again.encode_items(cat).items():
        assert torch.equal(z, apart.encode_items(cat)[m]), m


def test_recomputing_has_the_adapters_of_each_view(checkpoint, cat):
    "A way back through vectors of one view, after another view was encoded; also of a copy."

    def gradients(embedder):
        for _, p in embedder.adapter_parameters():
            p.grad = None
        vectors = embedder.item_vectors(embedder.bank(cat, False), np.arange(len(cat)))
        vectors[cat.modalities[0]][:, :3].sum().backward()
        return {n: p.grad for n, p in embedder.adapter_parameters() if p.grad is not None}

    found = []
    for recompute in (False, True):
        embedder = load(checkpoint, lora=2, adapters=cat.modalities, seed=0, recompute=recompute)
        for n, p in embedder.model.named_parameters():
            if 'lora_B' in n:
                torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
        found.append(gradients(embedder))
    copied = copy.deepcopy(embedder)
    embedder.switch(cat.modalities[1])
    found.append(gradients(copied))
    for other in found[1:]:
        assert found[0].keys() == other.keys() and all(torch.equal(found[0][n], other[n]) for n in other)
    assert any(g.abs().max() > 0 for g in found[0].values())
    alive = weakref.ref(embedder.model)
    gc.disable()
    del embedder
    gc.enable()
    assert alive() is None, 'a model that holds itself keeps its memory'


def test_a_modality_without_adapters_is_named(checkpoint, cat):
    with pytest.raises(ValueError, match="no adapters for 'image'"):
        load(checkpoint, lora=4, adapters=('text',)).encode_items(cat)


@pytest.mark.filterwarnings('ignore:.*items have no')
def test_one_prompt_holds_three_modalities_with_gaps(checkpoint, cat):
    pictures = cat.content['image']
    content = {
        'text': ['a mug <|im_end|>', None, '<|image_pad|>'],
        'image': [pictures[0], pictures[1], None],
        'detail': list(pictures[:3]),
    }
    kinds = {'text': 'text', 'image': 'image', 'detail': 'image'}
    three = Catalogue(('a', 'b', 'c'), content, kinds, cat.table[:3])
    found = load(checkpoint, fusion='internal').encode_sequences(three, [[0, 1, 2]])
    assert all(torch.isfinite(z).all() for z in found.values())


def test_the_surface_answers_to_the_old_names():
    assert embed.load_checkpoint is embed.load_model
    assert embed.FUSIONS == embed.READINGS == ('external', 'internal')
    for name in ('bank', 'item_vectors', 'sequence_vectors', 'encode_items', 'encode_sequences'):
        assert getattr(embed, name) is getattr(VLMEmbedder, name)
    assert set(embed.__all__) >= {'load_checkpoint', 'FUSIONS', 'bank'}
