"""Adapters that peft makes and the lab does not: layers trained whole beside them, and adapters on what sees."""

import warnings

import numpy as np
import pytest
import torch
from family_checkpoints import FAST, OTHERS, write
from peft import LoraConfig, get_peft_model

from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.families import load_model
from vlm2rec_lab.model.family import is_added, sight
from vlm2rec_lab.model.saved import base_mark
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import train
from vlm2rec_lab.training.estimate import estimate

pytestmark = pytest.mark.filterwarnings('ignore:.*fewer than 100', 'ignore:.*general path')
LAYERS = r'.*language_model.*\.(q_proj|v_proj)'


@pytest.fixture(scope='module')
def split():
    studio = make_studio('balanced', seed=0, items=30, users=60, length=6)
    return studio.split(train=30, valid=10, test=10, history=3)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return write(FAST['qwen2_vl'], tmp_path_factory.mktemp('foreign') / 'base')


def adapted(base, sets, **how):
    "A model with adapters of peft's making, a set for each name, and what it reads by."
    model, *more = load_model(base, device='cpu')
    config = LoraConfig(**dict(r=2, target_modules=LAYERS) | how)
    model = get_peft_model(model, config, adapter_name=sets[0])
    for name in sets[1:]:
        model.add_adapter(name, config)
    return model, *more


def moved(model, before):
    "Names of the parameters that are no longer what they were."
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


def kept(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    'whole', [dict(modules_to_save=['norm']), dict(trainable_token_indices=[*range(200)])], ids=list
)
def test_layers_trained_whole_are_trained_for_every_modality(base, split, tmp_path, whole):
    embedder = VLMEmbedder(*adapted(base, ('text', 'image'), **whole), base=base, adapters=('text', 'image'))
    _, before = embedder.mark, kept(embedder.model)
    train(embedder, split, steps=2, batch=8, eval_every=0, progress=False)
    beside = {n for n in moved(embedder.model, before) if 'lora_' not in n}
    assert all(any(m in n.split('.') for n in beside) for m in ('text', 'image'))
    assert moved(embedder.model, before) <= {n for n in before if is_added(n)}
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'the adapters in')
        again = VLMEmbedder.from_pretrained(embedder.save_pretrained(tmp_path / 'out'), device='cpu')
    for m, z in embedder.encode_items(split.catalogue, progress=False).items():
        assert torch.equal(z, again.encode_items(split.catalogue, progress=False)[m])


@pytest.mark.parametrize(
    'how',
    [{}, dict(modules_to_save=['norm']), dict(modules_to_save=['embed_tokens']), dict(trainable_token_indices=[5])],
)
def test_a_base_is_known_again_below_whatever_was_added(base, how):
    plain, *_ = load_model(base, device='cpu')
    model = adapted(base, ('default',), **how)[0]
    with torch.no_grad():
        for n, p in model.named_parameters():
            if is_added(n):
                p.add_(1)
    assert base_mark(model) == base_mark(model.get_base_model()) == base_mark(plain)


def gradients(embedder, catalogue, view):
    vectors = embedder.item_vectors(embedder.bank(catalogue, False), np.arange(len(catalogue)))
    vectors[view][:, :3].sum().backward()
    return {n: p.grad for n, p in embedder.model.named_parameters() if p.grad is not None}


def test_recomputing_has_the_whole_layers_of_each_view(base, split, tmp_path):
    made = VLMEmbedder(
        *adapted(base, ('text', 'image'), modules_to_save=['norm']), base=base, adapters=('text', 'image')
    )
    with torch.no_grad():
        for k, (_, p) in enumerate(made.adapter_parameters()):
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(k))
    folder, found = made.save_pretrained(tmp_path / 'out'), []
    for recompute in (False, True):
        embedder = VLMEmbedder.from_pretrained(folder, device='cpu', recompute=recompute)
        found.append(gradients(embedder, split.catalogue, 'text'))
    plain, again = found
    assert plain.keys() == again.keys() and any('modules_to_save' in n for n in plain)
    assert all(torch.allclose(plain[n], again[n], atol=1e-5) for n in plain)


def test_adapters_on_what_sees_stay_as_they_are_and_that_is_said(base, split):
    model, *more = adapted(base, ('default',), target_modules='all-linear')
    embedder, before = VLMEmbedder(model, *more, base=base), kept(model)
    eyes = {id(p) for m in sight(embedder.core).values() for p in m.parameters()}
    assert not eyes & {id(p) for _, p in embedder.adapter_parameters()}
    with pytest.warns(UserWarning, match='no gradient comes there; choose target_modules in the language model'):
        train(embedder, split, steps=2, batch=8, eval_every=0, progress=False)
    assert {n for n, p in embedder.adapter_parameters()} == moved(model, before)


@pytest.mark.parametrize('name', sorted({*FAST, *OTHERS} - {'florence2'}))
def test_adapters_of_the_lab_all_learn(name, tmp_path):
    embedder = VLMEmbedder.from_pretrained(write({**FAST, **OTHERS}[name], tmp_path / 'base'), lora=2, device='cpu')
    assert embedder.adapter_parameters() and not embedder.untaught()


def test_layers_trained_whole_are_counted_once(base, split):
    model, *more = adapted(base, ('default',), modules_to_save=['embed_tokens'])
    told = estimate(VLMEmbedder(model, *more, base=base), split, steps=2, batch=4, validations=0)
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    assert told.weights == frozen
