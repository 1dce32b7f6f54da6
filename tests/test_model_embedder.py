"""The embedder's stores: picture features and item vectors on disk are those in memory, and nothing stale is found."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vlm2rec_lab.base.ragged import PAD
from vlm2rec_lab.base.store import Store, content_key
from vlm2rec_lab.model.bank import LiveFeatures, make_bank, stored_features, vision_key
from vlm2rec_lab.model.embedder import VLMEmbedder, item_keys
from vlm2rec_lab.model.encode import forward
from vlm2rec_lab.model.pieces import Prompts
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio

WIDTH = 32


@pytest.fixture(scope='module')
def cat():
    return make_studio('balanced', seed=0, items=40, users=60, length=6).catalogue


@pytest.fixture(scope='module')
def embedder(checkpoint):
    e = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu')
    for k, (_, p) in enumerate(e.adapter_parameters()):
        torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(k))
    return e


def load(checkpoint, **how):
    return VLMEmbedder.from_pretrained(checkpoint, device='cpu', **how)


@pytest.fixture
def plan(embedder, cat):
    return embedder.bank(cat, False).sequence_plan([[3, 1, PAD], [7, 7, 2], [0, PAD, PAD]])


def image_vectors(embedder, bank, view, plan):
    with torch.no_grad():
        return forward(embedder, bank, view, plan)


@pytest.mark.parametrize('where', ['folder', 'live'])
def test_wherever_features_are_kept_vectors_are_the_same(embedder, cat, plan, tmp_path, where):
    bank = make_bank(embedder, cat, False, vision=tmp_path if where == 'folder' else 'live')
    want = image_vectors(embedder, embedder.bank(cat, False), 'image', plan)
    assert torch.allclose(image_vectors(embedder, bank, 'image', plan), want, atol=1e-5)
    if where == 'live':
        assert isinstance(bank.features, LiveFeatures) and len(bank.features) == len(embedder.bank(cat).features)


def test_a_folder_serves_every_catalogue_of_a_tower(embedder, cat, plan, tmp_path):
    "A second catalogue that shares pictures computes only what is new."
    make_bank(embedder, cat, False, vision=tmp_path)
    store = Store(next(tmp_path.iterdir()), WIDTH)
    assert len(store) == len({content_key(x) for x in cat.content['image']})
    new = np.zeros((56, 56, 3), np.uint8)
    more = Catalogue(cat.ids[:5], {'image': [*cat.content['image'][:4], new]}, {'image': 'image'})
    features, _, first = stored_features(embedder, more, 'image', np.arange(5), tmp_path, False)
    assert len(Store(store.folder, WIDTH)) == len(store) + 1
    size = len(embedder.bank(cat).features) // len(cat)
    assert torch.equal(features[first[0] : first[0] + size], embedder.bank(cat).features[:size])
    kinds = dict.fromkeys(('front', 'back'), 'image')
    pair = Catalogue(cat.ids, {'front': cat.content['image'], 'back': cat.content['image'][::-1]}, kinds)
    stored, memory = make_bank(embedder, pair, False, vision=tmp_path), make_bank(embedder, pair, False)
    for m in pair.modalities:  # two image modalities, one store
        a, b = (image_vectors(embedder, bank, m, plan) for bank in (stored, memory))
        assert torch.allclose(a, b, atol=1e-5)
    assert len(Store(store.folder, WIDTH)) == len(store) + 1
    assert len(list(tmp_path.iterdir())) == 1


def test_another_tower_finds_nothing(checkpoint, embedder):
    same, smaller = load(checkpoint), load(checkpoint, max_pixels=784)
    assert vision_key(same) == vision_key(embedder) != vision_key(smaller)
    with torch.no_grad():
        next(same.core.model.visual.parameters()).add_(1.0)
    assert vision_key(same) != vision_key(embedder)


def test_live_only_where_it_is_asked_for(checkpoint, cat, tmp_path):
    one, other = load(checkpoint), load(checkpoint)
    assert one.bank(cat, False, vision=tmp_path) is one.bank(cat) is not one.bank(cat, False, vision='live')
    assert other.bank(cat, False, vision='live') is other.bank(cat)
    memory = other.bank(cat, False, vision='memory')
    assert memory is other.bank(cat) is not other.bank(cat, vision='live')


def sizes(folder):
    return tuple(len(Store(Path(folder) / view, WIDTH)) for view in ('text', 'image'))


def test_an_interrupted_catalogue_goes_on(embedder, cat, tmp_path):
    half = Catalogue(cat.ids[:25], {m: x[:25] for m, x in cat.content.items()}, cat.kinds)
    embedder.encode_items(half, progress=False, store=tmp_path)  # as far as it came
    stored, want = (embedder.encode_items(cat, progress=False, store=s) for s in (tmp_path, None))
    for m, z in stored.items():
        assert torch.allclose(z, want[m], atol=1e-6)
    before = sizes(tmp_path)
    assert before[0] == len(set(cat.content['text']))
    embedder.encode_items(cat, progress=False, store=tmp_path)
    assert sizes(tmp_path) == before
    changed = Catalogue(cat.ids, {**cat.content, 'text': ['another text', *cat.content['text'][1:]]}, cat.kinds)
    embedder.encode_items(changed, progress=False, store=tmp_path)
    assert sizes(tmp_path) == (before[0] + 1, before[1])


def test_other_weights_and_other_prompts_find_nothing(checkpoint, embedder, cat):
    plain, shouting = load(checkpoint), load(checkpoint, prompts=Prompts(item='{}!'))
    keys = [set(item_keys(e, e.bank(cat, False), cat, 'text')) for e in (plain, shouting, embedder)]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
