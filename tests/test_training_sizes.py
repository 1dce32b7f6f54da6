"""What a configuration says of a model in training, held against models that are loaded and against sums by hand."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, BertConfig, CLIPConfig, Qwen3VLConfig

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.encode import forward
from vlm2rec_lab.model.families import empty_model, lora_targets
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.training.estimate import estimate
from vlm2rec_lab.training.kept import Kept
from vlm2rec_lab.training.sizes import (
    LIBRARIES,
    MOST,
    ModelSizes,
    Run,
    decoder_layers,
    estimate_model,
    fits,
    largest_batch,
    model_sizes,
    picture_tokens,
    step_memory,
    step_prompts,
    token_bytes,
)

FAMILIES = {  # family -> tokens of a picture in its default configuration
    'qwen2_vl': 64,
    'qwen2_5_vl': 64,
    'qwen3_vl': 49,
    'smolvlm': 12,
    'idefics3': 12,
    'llava': 576,
    'gemma3': 256,
    'internvl': 256,
    'paligemma': 256,
    'mistral3': 64,
    'qwen3_5': 49,
}
BY_HAND = ModelSizes('hand', 1000, 600, 7, 4, 50, 2, 8, 100.0, 10, 3, torch.bfloat16, torch.bfloat16)


@pytest.fixture(scope='module')
def split():
    studio = make_studio('balanced', seed=0, items=80, users=150, length=8)
    return studio.split(train=100, valid=25, test=25, history=6)


@pytest.mark.parametrize('family', FAMILIES)
def test_families_by_their_default_configuration(family):
    "Each is built without memory; adapters are on layers of the decoder alone, and a token has its price."
    config = AutoConfig.for_model(family)
    model = empty_model(config)
    assert all(p.is_meta for p in model.parameters())
    targets, inside = lora_targets(model), decoder_layers(model)
    assert set(targets) <= set(inside) and not any('vision' in n or 'visual' in n for n in targets)
    text = config.get_text_config()
    least = text.num_hidden_layers * (text.hidden_size + text.intermediate_size) * 2
    assert least < token_bytes(model, 8, torch.bfloat16) < 20 * least
    assert picture_tokens(config) == FAMILIES[family]


def test_nothing_is_allocated_for_a_model_of_tens_of_gigabytes(tmp_path):
    "The memory of the process hardly grows: ten billion weights would be 20 GB in bfloat16."
    code = """
import resource, sys
from transformers import AutoConfig, Qwen2_5_VLConfig
from vlm2rec_lab.training.sizes import estimate_model
size = lambda **k: Qwen2_5_VLConfig(text_config=dict(vocab_size=1000, num_attention_heads=16, num_key_value_heads=2,
    rope_parameters=dict(rope_type='default', rope_theta=1e6, mrope_section=[16, 24, 24]), **k),
    vision_config=dict(depth=1, hidden_size=64, num_heads=2, intermediate_size=64, out_hidden_size=k['hidden_size']))
estimate_model(size(hidden_size=2048, intermediate_size=128, num_hidden_layers=1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = estimate_model(size(hidden_size=2048, intermediate_size=400_000, num_hidden_layers=4))
print(found.sizes.parameters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    parameters, grown = map(int, done.stdout.split())  # ru_maxrss is in kilobytes
    assert parameters > 9e9 and grown < 100_000, (parameters, grown)


@pytest.mark.parametrize('autocast', [None, torch.bfloat16], ids=str)
def test_a_token_on_the_meta_device_keeps_what_a_real_one_keeps(checkpoint, split, autocast):
    "The same model with weights, on a processor, keeps as much by token as the one without, within a tenth."
    dtype = autocast or torch.float32
    e = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu', dtype=dtype)
    bank = e.bank(split.catalogue, progress=False)
    plan = bank.item_plan(torch.arange(16))
    kept = Kept([*e.model.parameters(), *e.model.buffers(), bank.features])
    lengths = []

    def note(module, args, kwargs):
        lengths.append(kwargs['inputs_embeds'].shape[:2].numel())

    hook = e.core.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    with kept.watch(), torch.autocast('cpu', torch.bfloat16, enabled=autocast is not None):
        forward(e, bank, 'text', plan)
    hook.remove()
    expected = token_bytes(empty_model(e.core.config, dtype), 4, autocast)
    assert 0.9 < expected / (kept.tokens.most / lengths[0]) < 1.1


def test_the_parts_are_those_of_the_loaded_model(checkpoint, split):
    "Weights and adapters to the byte; the graph near that of the fullest batch."
    e = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu')
    loaded = estimate(e, split, batch=32)
    words = int(e.bank(split.catalogue).text_tokens['text'].mean())
    shop = dict(batch=32, history=6, text_tokens=words, items=80)
    side = int(e.bank(split.catalogue).features.shape[0] / 80)
    found = estimate_model(checkpoint, rank=4, dtype='float32', **shop)
    assert found.sizes.picture_tokens == side
    assert found.parts['weights'] == loaded.weights and found.parts['adapters in training'] == loaded.adapters
    assert found.parts['picture features'] == loaded.features
    assert 0.7 < found.parts['graph'] / loaded.graph < 1.6, (found.parts['graph'], loaded.graph)


def test_the_sum_by_hand():
    "Every part of a small run, counted on paper."
    run = Run(batch=4, history=3, texts=1, pictures=1, text_tokens=5, items=20)
    # histories: 3 x (5 + 1) + 16 = 34 and 3 x (13 + 1) + 16 = 58 tokens; items: 5 + 8 = 13 and 13 + 8 = 21
    assert step_prompts(BY_HAND, run) == [(4, 34), (4, 58), (4, 13), (4, 21)]
    graph = 4 * (34 + 58 + 13 + 21) * 100 + 4 * 50 * 2
    parts = step_memory(BY_HAND, run)
    assert parts == {
        'weights': 1000 * 2,
        'adapters in training': 50 * 4 * 5,
        'picture features': 20 * 10 * 3 * 8 * 2,
        'graph': graph,
    }
    caching = step_memory(BY_HAND, replace(run, chunk=2))
    assert caching['graph'] == 2 * 58 * 100 + 50 * 2
    recomputing = step_memory(BY_HAND, replace(run, recompute=True))
    assert recomputing['graph'] == 4 * 126 * 2 * 8 * 2 + 4 * 58 * 100 // 2 + 400
    assert step_memory(BY_HAND, replace(run, quantise='4bit'))['weights'] == int(600 * 0.5625 + 400 * 2)
    assert step_memory(BY_HAND, replace(run, on_disk=True))['picture features'] == 0
    assert step_memory(BY_HAND, replace(run, sets=2))['adapters in training'] == 2 * 1000
    plain = step_memory(replace(BY_HAND, dtype=torch.float32, autocast=None), run)
    assert plain['graph'] == 4 * 126 * 100 and plain['weights'] == 4000
    copied = step_memory(replace(BY_HAND, dtype=torch.float32), run)
    assert copied['graph'] == 4 * 126 * 100 + 4 * (50 + 600) * 2


def test_every_position_has_a_candidate_of_its_own():
    "As many candidates as positions, but no more than there are items."
    run = Run(batch=4, history=3, texts=1, pictures=0, text_tokens=5, positions='all')
    assert step_prompts(BY_HAND, run) == [(4, 3 * (5 + 9) + 16), (12, 13)]
    assert step_prompts(BY_HAND, replace(run, items=7))[1] == (7, 13)


def test_the_largest_batch_is_the_last_that_fits():
    sizes = replace(BY_HAND, parameters=10**9, token_bytes=1e6)
    run = Run(history=10, text_tokens=30)
    best = largest_batch(sizes, run, 24)
    assert 1 < best < MOST
    assert fits(sizes, replace(run, batch=best), 24) and not fits(sizes, replace(run, batch=best + 1), 24)
    assert largest_batch(sizes, run, 2) == 0 and largest_batch(sizes, replace(run, chunk=1), 24) == MOST
    need = 1.05 * sum(step_memory(sizes, run).values()) + LIBRARIES
    assert fits(sizes, run, need / 1e9) and not fits(sizes, run, need / 1e9 - 1e-3)


def test_folders_and_adapters(checkpoint, tmp_path):
    "A folder of adapters has the sizes of the model below them."
    VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu').save_pretrained(tmp_path / 'one')
    apart = dict(lora=4, device='cpu', adapters=('text', 'image'))
    VLMEmbedder.from_pretrained(checkpoint, **apart).save_pretrained(tmp_path / 'two')
    whole, *others = (model_sizes(p) for p in (checkpoint, tmp_path / 'one', tmp_path / 'two'))
    assert others == [whole, whole]
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='config.json is missing'):
        model_sizes(tmp_path / 'empty')
    (tmp_path / 'empty' / 'config.json').write_text('{')
    with pytest.raises(DataError, match='config.json'):
        model_sizes(tmp_path / 'empty')


@pytest.mark.parametrize('config', [BertConfig(), CLIPConfig()], ids=['bert', 'clip'])
def test_what_is_no_model_of_pictures_and_texts(config):
    with pytest.raises(DataError, match=f"'{config.model_type}' cannot be built"):
        model_sizes(config)


def test_a_decoder_with_other_names():
    "Its linear layers get adapters whatever they are called, here as in training."
    found, core = model_sizes(AutoConfig.for_model('fuyu')), empty_model(AutoConfig.for_model('fuyu'))
    names = {n.rpartition('.')[2] for n in lora_targets(core)}
    assert found.targets == len(lora_targets(core)) == 36 * 4
    assert names == {'query_key_value', 'dense', 'dense_h_to_4h', 'dense_4h_to_h'}


@pytest.mark.parametrize(
    'how, said',
    [
        (dict(batch=0), 'batch=0'),
        (dict(history=-1), 'history=-1'),
        (dict(positions='first'), "positions='first'"),
        (dict(quantise='8bit'), "quantise='8bit'"),
        (dict(chunk=0), 'chunk=0'),
        (dict(gpu_gb=0), 'gpu_gb=0'),
        (dict(gpu_gb=float('nan')), 'gpu_gb=nan'),
        (dict(dtype='bfloat'), "dtype='bfloat' is unknown; did you mean 'bfloat16'"),
        (dict(autocast='float32x'), "autocast='float32x'"),
        (dict(text_token=3), 'text_tokens'),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_anything_is_built(how, said, monkeypatch):
    monkeypatch.setattr('vlm2rec_lab.training.sizes.empty_model', None)
    with pytest.raises(ValueError) as e:
        estimate_model(Qwen3VLConfig(), **how)
    assert said in str(e.value)


def test_a_question_is_asked_of_nobody(checkpoint):
    "The configuration that is given is as it was, and JSON can hold the answer."
    config = AutoConfig.from_pretrained(checkpoint)
    before = config.to_dict()
    found = estimate_model(config, gpu_gb=8)
    assert config.to_dict() == before
    assert json.loads(json.dumps(found.to_dict()))['sizes']['dtype'] == 'torch.bfloat16'
    assert 'fits 8 GB' in repr(found) and 'recomputing' in found.ways().index[2]
