"""Folders and objects of sentence-transformers: against the library where it is installed, by hand otherwise."""

import json
import sys
from importlib.util import find_spec

import pytest
import small_encoders as small
import torch
import transformers

from vlm2rec_lab.base.errors import DataError, warned
from vlm2rec_lab.model.encoders import load_encoder

transformers.utils.logging.disable_progress_bar()
library = pytest.mark.skipif(
    find_spec('sentence_transformers') is None, reason='sentence-transformers is not installed'
)
MODES = ('cls', 'mean', 'max', 'lasttoken', 'weightedmean', 'mean_sqrt_len_tokens')
TEXTS = [
    'a mug',
    'the red lamp and the blue chair of oak',
    'tea',
    'a small light for the large red chair',
    'a mug of tea',
]
TANH, IDENTITY = 'torch.nn.modules.activation.Tanh', 'torch.nn.modules.linear.Identity'


def by_hand(encoder, text):
    "Hidden states of one text without padding [tokens, 32]."
    tower, reader = encoder.module, encoder.reader
    tokens = reader.tokenizer(reader.prompt + text, truncation=True, max_length=reader.limit, return_tensors='pt')
    with torch.no_grad():
        return tower.model(**tokens).last_hidden_state[0]


HAND = dict(
    cls=lambda h: h[0],
    mean=lambda h: h.mean(0),
    max=lambda h: h.max(0).values,
    lasttoken=lambda h: h[-1],
    weightedmean=lambda h: (h * torch.arange(1, len(h) + 1)[:, None]).sum(0) / (len(h) * (len(h) + 1) / 2),
    mean_sqrt_len_tokens=lambda h: h.sum(0) / len(h) ** 0.5,
)


@pytest.mark.parametrize('mode', MODES)
def test_every_way_to_pool_by_hand(tmp_path, mode):
    folder = small.sentence_folder(tmp_path / 'm', pooling=dict(pooling_mode=mode), unit=False)
    encoder = load_encoder(folder, 'text', device='cpu')
    want = torch.stack([HAND[mode](by_hand(encoder, t)) for t in TEXTS])
    torch.testing.assert_close(encoder.vectors(TEXTS), want, atol=1e-5, rtol=0)


def test_old_switches_stand_side_by_side(tmp_path):
    said = dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=True, pooling_mode_max_tokens=False)
    encoder = load_encoder(small.sentence_folder(tmp_path / 'm', pooling=said, unit=False), 'text', device='cpu')
    want = torch.stack([torch.cat([h[0], h.mean(0)]) for h in (by_hand(encoder, t) for t in TEXTS)])
    assert encoder.size == 64
    torch.testing.assert_close(encoder.vectors(TEXTS), want, atol=1e-5, rtol=0)


def test_the_limit_of_the_folder_counts(tmp_path):
    folder = small.sentence_folder(tmp_path / 'm', limit=6)
    encoder = load_encoder(folder, 'text', device='cpu')
    (said,) = warned(lambda: encoder.vectors(TEXTS))
    assert '2 of 5 texts are cut to 6 tokens' in said and 'text 1, 11 tokens' in said


def test_letters_become_small_where_the_folder_says_so(tmp_path):
    for name, lower in (('a', False), ('b', True)):
        folder = small.sentence_folder(tmp_path / name, do_lower_case=lower)
        z = load_encoder(folder, 'text', device='cpu').vectors(['A Mug', 'a mug'])
        assert torch.allclose(z[0], z[1]) == lower


# ---- against the library

PROMPTS = dict(prompts=dict(query='find ', document='a photo of '), default_prompt_name='document')
FOLDERS = {
    'plain': dict(),
    'mpnet': dict(kind='mpnet'),
    'decoder': dict(kind='qwen3', pooling=dict(pooling_mode='lasttoken')),
    'dense': dict(dense=dict(out_features=16, bias=True, activation_function=TANH)),
    'bridge': dict(dense=dict(out_features=16, activation_function=IDENTITY, use_residual=True), unit=False),
    'prompts': dict(prompts=PROMPTS),
    'prompt left out': dict(prompts=PROMPTS, pooling=dict(pooling_mode='mean', include_prompt=False)),
    'weighted, prompt left out': dict(prompts=PROMPTS, pooling=dict(pooling_mode='weightedmean', include_prompt=False)),
    'cut': dict(prompts=dict(truncate_dim=7)),
    'short': dict(limit=5),
    'lower': dict(do_lower_case=True),
    **{mode: dict(pooling=dict(pooling_mode=mode), unit=False) for mode in MODES},
}


@library
@pytest.mark.parametrize('name', FOLDERS)
@pytest.mark.filterwarnings('ignore')
def test_a_folder_gives_what_the_library_gives(tmp_path, name):
    from sentence_transformers import SentenceTransformer

    folder = small.sentence_folder(
        tmp_path / 'm', **{k: dict(v) if k == 'dense' else v for k, v in FOLDERS[name].items()}
    )
    model = SentenceTransformer(str(folder), device='cpu')
    want = torch.from_numpy(model.encode([*TEXTS, 'A Mug']))
    ours = load_encoder(folder, 'text', device='cpu')
    torch.testing.assert_close(ours.vectors([*TEXTS, 'A Mug']), want, atol=1e-5, rtol=0)
    taken = load_encoder(model, 'text')
    torch.testing.assert_close(taken.vectors([*TEXTS, 'A Mug']), want, atol=1e-5, rtol=0)
    torch.testing.assert_close(taken.forward(taken.prepare([*TEXTS, 'A Mug'])), want, atol=1e-5, rtol=0)
    assert (taken.size, ours.size) == (want.shape[1],) * 2
    if name == 'prompts':
        want = torch.from_numpy(model.encode(TEXTS, prompt_name='query'))
        torch.testing.assert_close(
            load_encoder(folder, 'text', prompt_name='query').vectors(TEXTS), want, atol=1e-5, rtol=0
        )
        assert (want - ours.vectors(TEXTS)).abs().max() > 1e-3


@library
def test_a_folder_that_the_library_saved(tmp_path):
    "Its newer versions write other notes."
    from sentence_transformers import SentenceTransformer

    old = small.sentence_folder(tmp_path / 'old', dense=dict(out_features=16, activation_function=TANH))
    model = SentenceTransformer(str(old), device='cpu')
    model.save(str(tmp_path / 'new'))
    z = load_encoder(tmp_path / 'new', 'text', device='cpu').vectors(TEXTS)
    torch.testing.assert_close(z, torch.from_numpy(model.encode(TEXTS)), atol=1e-5, rtol=0)


@library
def test_an_object_counts_what_it_cuts_and_learns(tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(small.sentence_folder(tmp_path / 'm', limit=6)), device='cpu')
    encoder = load_encoder(model, 'text')
    (said,) = warned(lambda: encoder.vectors(TEXTS))
    assert '2 of 5 texts are cut to 6 tokens' in said
    before = encoder.mark
    encoder.forward(encoder.prepare(TEXTS)).square().sum().backward()
    grads = [p.grad for n, p in model.named_parameters() if 'layer.0' in n and p.grad is not None]
    assert grads and sum(g.abs().sum() for g in grads) > 0
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert encoder.mark != before
    with pytest.raises(DataError, match='reads text, and no image'):
        load_encoder(model, 'image')


@library
def test_an_object_that_reads_pictures(tmp_path):
    "A dual encoder behind the library, both kinds."
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    model, processor = small.dual_models()['clip']()
    folder = small.save(tmp_path / 'clip', model, small.tokenizer(16))
    transformers.CLIPProcessor(processor, small.tokenizer(16)).save_pretrained(folder)
    try:
        both = SentenceTransformer(modules=[Transformer(str(folder))], device='cpu')
    except Exception as e:  # the library may want torchvision for this
        pytest.skip(f'the library cannot open a picture model here: {e}')
    from test_encoders import picture

    for kind, contents in (('text', TEXTS), ('image', [picture(k) for k in range(5)])):
        encoder = load_encoder(both, kind)
        want = torch.from_numpy(both.encode(contents))
        torch.testing.assert_close(encoder.vectors(contents, batch=2), want, atol=1e-5, rtol=0)
        torch.testing.assert_close(encoder.forward(encoder.prepare(contents)), want, atol=1e-5, rtol=0)
        ours = load_encoder(folder, kind, device='cpu')
        torch.testing.assert_close(ours.vectors(contents), want, atol=1e-5, rtol=0)


def test_the_library_is_not_imported_for_a_folder(tmp_path):
    before = 'sentence_transformers' in sys.modules
    load_encoder(small.sentence_folder(tmp_path / 'm'), 'text', device='cpu').vectors(TEXTS)
    assert ('sentence_transformers' in sys.modules) == before


# ---- what is not understood


def changed(folder, name, **more):
    "Change a note of a folder."
    found = json.loads((folder / name).read_text())
    small.note(folder, name, found | more)
    return folder


@pytest.mark.parametrize(
    'kind', ['CNN', 'LSTM', 'WeightedLayerPooling', 'StaticEmbedding', 'CLIPModel', 'Router', 'BoW']
)
def test_unknown_modules_are_named(tmp_path, kind):
    folder = small.sentence_folder(tmp_path / 'm')
    lines = json.loads((folder / 'modules.json').read_text())
    lines[2]['type'] = f'sentence_transformers.models.{kind}'
    small.note(folder, 'modules.json', lines)
    with pytest.raises(DataError, match=f'{kind}.* is not understood; there is Transformer, Pooling, Dense, Normalize'):
        load_encoder(folder, 'text')


@pytest.mark.parametrize(
    'file, more, said',
    [
        ('sentence_bert_config.json', dict(transformer_task='text-generation'), 'transformer_task is not understood'),
        ('sentence_bert_config.json', dict(modality_config={'image': {}}), 'modality_config is not understood'),
        ('sentence_bert_config.json', dict(model_args=dict(gguf_file='x')), 'model_args.gguf_file is not understood'),
        ('1_Pooling/config.json', dict(pooling_mode='attention'), "no pooling 'attention'"),
        ('1_Pooling/config.json', dict(pooling_mode_attention=True), 'pooling_mode_attention is not understood'),
        ('config_sentence_transformers.json', dict(model_type='SparseEncoder'), 'a SparseEncoder gives no vector'),
        ('config_sentence_transformers.json', dict(default_prompt_name='query'), "no prompt 'query'"),
        ('2_Dense/config.json', dict(activation_function='os.system'), "'os.system' is not one of torch.nn"),
        ('2_Dense/config.json', dict(module_input_name='token_embeddings'), "a layer on 'token_embeddings'"),
        ('2_Dense/config.json', dict(out_features=5), 'the layer cannot be read'),
    ],
)
def test_notes_that_are_not_understood_are_named(tmp_path, file, more, said):
    folder = small.sentence_folder(tmp_path / 'm', dense=dict(out_features=16, activation_function=TANH))
    with pytest.raises(DataError, match=said):
        load_encoder(changed(folder, file, **more), 'text')


def test_pickled_layers_and_ways_out_are_refused(tmp_path):
    folder = small.sentence_folder(tmp_path / 'm', dense=dict(out_features=16, activation_function=TANH))
    (folder / '2_Dense' / 'model.safetensors').rename(folder / '2_Dense' / 'pytorch_model.bin')
    with pytest.raises(DataError, match='only safetensors are read'):
        load_encoder(folder, 'text')
    lines = json.loads((folder / 'modules.json').read_text())
    lines[1]['path'] = '../1_Pooling'
    small.note(folder, 'modules.json', lines)
    with pytest.raises(DataError, match='must lie in the same folder'):
        load_encoder(folder, 'text')


def test_arguments_for_a_folder(tmp_path):
    folder = small.sentence_folder(tmp_path / 'm', prompts=PROMPTS)
    with pytest.raises(DataError, match="pooling='cls' has no effect"):
        load_encoder(folder, 'text', pooling='cls')
    with pytest.raises(DataError, match="did you mean 'query'"):
        load_encoder(folder, 'text', prompt_name='querry')
    with pytest.raises(DataError, match='pass the object'):
        load_encoder(folder, 'image')
    assert load_encoder(folder, 'text', prompt='the ', device='cpu').reader.prompt == 'the '
