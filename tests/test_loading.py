"""Dual encoders, and folders and objects of sentence-transformers, as embedders by one call."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import small_encoders as small
import torch
import transformers
from PIL import Image

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.cli import main
from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.loading import encoders_of, kinds_read, load_embedder, makes_pair
from vlm2rec_lab.model.pair import PairEmbedder
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import train

transformers.utils.logging.disable_progress_bar()
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
library = pytest.mark.skipif(
    find_spec('sentence_transformers') is None, reason='sentence-transformers is not installed'
)
QUICK = dict(steps=5, batch=8, eval_every=0, progress=False)
BRIEF = dict(permutations=3, bootstrap=50, missing=(), progress=False)
DUAL = ('clip', 'siglip', 'siglip2')


@pytest.fixture(scope='module')
def split():
    return make_studio('balanced', seed=0, items=30, users=60, length=6).split(train=24, valid=12, test=24, history=4)


@pytest.fixture(scope='module')
def texts(split):
    "The same shop without pictures."
    cat = split.catalogue
    return replace(split, catalogue=Catalogue(cat.ids, {'text': cat.content['text']}, {'text': 'text'}, cat.table))


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "{name: folder of a dual encoder}, and one of sentence-transformers."
    home, found = tmp_path_factory.mktemp('dual'), {}
    for name in DUAL:
        model, processor = small.dual_models()[name]()
        found[name] = small.save(home / name, model, small.tokenizer(16), processor)
    return found | {'sentence': small.sentence_folder(home / 'sentence')}


def same(a, b, split):
    "Do two embedders give the same vectors of items and of histories?"
    for x, y in (
        (e.encode_items(split.catalogue, progress=False) for e in (a, b)),
        (e.encode_sequences(split.catalogue, split.test.history, progress=False) for e in (a, b)),
    ):
        assert x.keys() == y.keys()
        for m in x:
            torch.testing.assert_close(x[m], y[m], atol=1e-5, rtol=0)


def whole_way(embedder, split, folder, loss='vlm2rec', **how):
    "Train, save, load, report. Every trained part has moved."
    before = {n: p.detach().clone() for n, p in embedder.adapter_parameters()}
    said = train(embedder, split, loss, **QUICK | how).frame.loss
    assert np.isfinite(said).all() and len(said) == 5
    still = [n for n, p in embedder.adapter_parameters() if torch.equal(p, before[n])]
    assert not still, still
    again = load_embedder(embedder.save_pretrained(folder), device='cpu')
    assert isinstance(again, PairEmbedder)
    same(embedder, again, split)
    report = collapse_report(again, split, **BRIEF)
    assert set(report.modalities) == set(split.catalogue.modalities)
    return again, report


@pytest.mark.parametrize('lora', [None, 2])
@pytest.mark.parametrize('name', DUAL)
def test_a_dual_encoder_is_a_pair_of_its_sides(name, lora, folders, split, tmp_path):
    embedder = load_embedder(folders[name], lora=lora, dims=8, device='cpu')
    assert {m: e.kind for m, e in embedder.encoders.items()} == {'text': 'text', 'image': 'image'}
    assert bool(embedder.tuned) == (lora is not None)
    whole_way(embedder, split, tmp_path / 'trained')


def test_adapters_are_on_layers_that_are_called(folders):
    """The output of SigLIP's pooling is a linear layer that torch reads as a matrix, and BERT's pooler is not read at
    all: adapters there would never learn."""
    tuned = load_embedder(folders['siglip'], lora=2, dims=8, device='cpu').tuned['image'].module
    names = [n for n, _ in tuned.named_parameters() if 'lora_' in n]
    assert names and not [n for n in names if 'head.attention.out_proj' in n]
    assert [n for n in names if 'head.mlp' in n]
    names = [n for n, _ in load_embedder(folders['sentence'], lora=2, device='cpu').adapter_parameters()]
    assert [n for n in names if 'layer.1.output' in n] and not [n for n in names if 'pooler' in n]


def test_experts_fused_views_and_other_names(folders, split, tmp_path):
    "A shop with modalities of its own names, each with a head of its own; concat; experts as reference."
    cat = split.catalogue
    content = {'title': cat.content['text'], 'plot': cat.content['text'], 'cover': cat.content['image']}
    kinds = dict(title='text', plot='text', cover='image')
    other = replace(split, catalogue=Catalogue(cat.ids, content, kinds, cat.table))
    embedder = load_embedder(folders['clip'], kinds=kinds, dims=8, device='cpu')
    assert embedder.encoders['title'] is embedder.encoders['plot'] and embedder.adapters == tuple(kinds)
    assert embedder.heads['title'] is not embedder.heads['plot']
    again, _ = whole_way(embedder, other, tmp_path / 'three', 'per-modality', fuse='concat')
    assert set(again.encoders) == set(kinds)
    alone = {m: Catalogue(cat.ids, {m: content[m]}, {m: kinds[m]}, cat.table) for m in ('plot', 'cover')}
    sides = dict(items={}, sequences={})
    for m, only in alone.items():
        expert = load_embedder(folders['clip'], kinds={m: kinds[m]}, dims=8, device='cpu')
        train(expert, replace(other, catalogue=only), 'sft', **QUICK)
        sides['items'] |= expert.encode_items(only, progress=False)
        sides['sequences'] |= expert.encode_sequences(only, other.test.history, progress=False)
    report = collapse_report(again, other, reference=sides, fuse='concat', **BRIEF)
    assert set(report.modalities) == set(kinds)


@pytest.mark.parametrize('lora', [None, 2])
def test_a_sentence_folder_is_an_embedder_of_texts(lora, folders, texts, tmp_path):
    embedder = load_embedder(folders['sentence'], lora=lora, dims=8, device='cpu')
    again, _ = whole_way(embedder, texts, tmp_path / 'trained', 'sft')
    assert again.encoders['text'].name == 'sentence'


def test_what_an_encoder_does_not_read_is_said(folders, split):
    with pytest.raises(DataError, match="reads text, and not 'cover', which is of kind image: choose other columns"):
        load_embedder(folders['sentence'], kinds=dict(text='text', cover='image'))
    with pytest.raises(DataError, match="'image' is of kind 'image' and there are encoders for text"):
        load_embedder(folders['sentence'], device='cpu').encode_items(split.catalogue, progress=False)
    with pytest.raises(ValueError, match='is a pair of encoders and takes no quantise='):
        load_embedder(folders['clip'], quantise='4bit')


def test_what_is_opened_as_what(folders, checkpoint, tmp_path):
    "By the configuration alone: vision-language models stay what they were."
    assert [kinds_read(folders[n]) for n in DUAL] == [('text', 'image')] * 3
    assert kinds_read(folders['sentence']) == kinds_read(str(folders['sentence'])) == ('text',)
    assert kinds_read(checkpoint) == kinds_read('no/such') == kinds_read(tmp_path / 'no') == ()
    assert [makes_pair(x) for x in ('real', folders['clip'], checkpoint, 'no/such')] == [True, True, False, False]
    assert isinstance(load_embedder(checkpoint, lora=2, device='cpu'), VLMEmbedder)
    lora = VLMEmbedder.from_pretrained(checkpoint, lora=2, device='cpu').save_pretrained(tmp_path / 'lora')
    assert not makes_pair(lora)
    deep = tmp_path / 'deep'
    (deep / '0_Transformer').mkdir(parents=True)
    (deep / 'modules.json').write_text('[]')
    assert kinds_read(deep) == ('text',)


def bought(split, folder):
    "The shop as a folder of tables and pictures."
    cat = split.catalogue
    (folder / 'images').mkdir(parents=True)
    for i, pixels in zip(cat.ids, cat.content['image']):
        Image.fromarray(pixels).save(folder / 'images' / f'{i}.png')
    items = dict(item_id=cat.ids, title=cat.content['text'], image=[f'images/{i}.png' for i in cat.ids])
    pd.DataFrame(items).to_csv(folder / 'items.csv', index=False)
    rows = [(u, cat.ids[i], k) for u, row in enumerate(split.train.history) for k, i in enumerate(row[row >= 0])]
    names = ['user_id', 'item_id', 'timestamp']
    pd.DataFrame(rows, columns=names).to_csv(folder / 'interactions.csv', index=False)
    return folder


@pytest.mark.parametrize('name', ['clip', 'sentence'])
def test_the_command_takes_them(name, folders, split, tmp_path):
    shop, out = bought(split, tmp_path / 'shop'), tmp_path / 'run'
    columns = ['--image', 'none'] if name == 'sentence' else []
    argv = ['train', '--data', shop, *columns, '--model', folders[name], '--losses', 'sft', '--steps', 2, '--batch', 4]
    assert main([str(a) for a in [*argv, '--history', 4, '--out', out]]) in (0, None)
    assert (out / 'sft' / 'metrics.json').exists()
    assert isinstance(load_embedder(out / 'sft', device='cpu'), PairEmbedder)


# ---- objects of the library


@library
def test_a_sentence_transformer_is_taken_as_it_is(folders, texts, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folders['sentence']), device='cpu')
    for lora in (None, 2):
        embedder = load_embedder(model, lora=lora, dims=8, device='cpu')
        same(embedder, load_embedder(folders['sentence'], lora=lora, dims=8, device='cpu'), texts)
        train(embedder, texts, 'sft', **QUICK)
        folder = embedder.save_pretrained(tmp_path / f'trained {lora}')
        same(embedder, load_embedder(folder, encoders=encoders_of(model), device='cpu'), texts)
        assert set(collapse_report(embedder, texts, **BRIEF).modalities) == {'text'}
    with pytest.raises(DataError, match="this SentenceTransformer reads text, and not 'image'"):
        load_embedder(model, kinds=dict(text='text', image='image'))
    assert set(collapse_report(model, texts, **BRIEF).modalities) == {'text'}  # without a head: test_plain


@library
@pytest.mark.parametrize('lora', [None, 2])
def test_a_sentence_transformer_that_reads_pictures(lora, split, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    model, processor = small.dual_models()['clip']()
    folder = small.save(tmp_path / 'clip', model, small.tokenizer(16))
    transformers.CLIPProcessor(processor, small.tokenizer(16)).save_pretrained(folder)
    try:
        both = SentenceTransformer(modules=[Transformer(str(folder))], device='cpu')
    except Exception as e:  # the library may want torchvision for this
        pytest.skip(f'the library cannot open a picture model here: {e}')
    embedder = load_embedder(both, lora=lora, dims=8, device='cpu')
    same(embedder, load_embedder(folder, dims=8, device='cpu'), split)
    losses = train(embedder, split, 'vlm2rec', **QUICK).frame.loss
    assert np.isfinite(losses).all()
    assert set(collapse_report(embedder, split, **BRIEF).modalities) == {'text', 'image'}
