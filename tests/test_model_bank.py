"""The bank: texts and pictures as pieces, and features that are the same wherever they are kept."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm2rec_lab.base.store import Store, content_key
from vlm2rec_lab.model.bank import item_pieces, make_bank, picture_features, stored_features, vision_key
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.encode import forward
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio


@pytest.fixture(scope='module')
def cat():
    return make_studio('balanced', seed=0, items=40, users=60, length=6).catalogue


@pytest.fixture
def embedder(checkpoint):
    return VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu')


def with_a_black_square(cat):
    "Five items, of which the last one has a picture of its own."
    pictures = [*cat.content['image'][:4], np.zeros((56, 56, 3), np.uint8)]
    return Catalogue(cat.ids[:5], {'image': pictures}, {'image': 'image'})


def test_a_bank_is_what_an_embedder_builds(embedder, cat):
    assert torch.equal(make_bank(embedder, cat).features, embedder.bank(cat).features)


def test_a_picture_alone_has_the_features_that_it_has_among_others(embedder, cat):
    features = embedder.bank(cat).features
    together = picture_features(embedder, [cat.image('image', i) for i in range(40)], progress=False)[0]
    assert torch.equal(together, features)
    # Alone it is another matrix product, which some processors round otherwise in the last bit.
    alone = picture_features(embedder, [cat.image('image', 0)], progress=False)[0]
    assert torch.allclose(alone, features[:4], rtol=0, atol=1e-6)


def test_texts_become_one_piece_an_item_and_their_tokens_are_counted(embedder, cat):
    pieces, tokens = item_pieces(embedder, cat, 'text', {})
    assert len(pieces) == 40
    assert tokens.tolist() == embedder.bank(cat).text_tokens['text'].tolist()
    assert tokens.min() > 3


def test_warnings_point_at_the_line_that_asked_for_the_bank(embedder, cat):
    pictures = [None, *cat.content['image'][1:]]
    holes = Catalogue(cat.ids, {**cat.content, 'image': pictures}, cat.kinds, cat.table)
    embedder.max_text_tokens = 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        embedder.bank(holes)
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name] * 2
    assert 'have no image' in str(caught[0].message) and 'is cut to' in str(caught[1].message)


def test_a_folder_holds_each_picture_once(embedder, cat, tmp_path):
    make_bank(embedder, cat, vision=tmp_path)
    (folder,) = tmp_path.iterdir()
    width = embedder.core.config.text_config.hidden_size
    store = Store(folder, width)
    assert len(store) == len({content_key(x) for x in cat.content['image']})
    features, _, first = stored_features(embedder, with_a_black_square(cat), 'image', np.arange(5), tmp_path)
    assert len(Store(folder, width)) == len(store) + 1
    assert torch.equal(features[first[0] : first[0] + 4], embedder.bank(cat).features[:4])  # as they were stored
    assert len(list(tmp_path.iterdir())) == 1


def test_two_image_modalities_share_one_store(embedder, cat, tmp_path):
    kinds = dict.fromkeys(('front', 'back'), 'image')
    pair = Catalogue(cat.ids, {'front': cat.content['image'], 'back': cat.content['image'][::-1]}, kinds)
    stored, kept = make_bank(embedder, pair, vision=tmp_path), make_bank(embedder, pair)
    plan = kept.sequence_plan([[0, 1, 2], [5, 3, -1]])
    for m in pair.modalities:
        assert torch.allclose(forward(embedder, stored, m, plan), forward(embedder, kept, m, plan), atol=1e-5)
    (folder,) = tmp_path.iterdir()
    width = embedder.core.config.text_config.hidden_size
    assert len(Store(folder, width)) == len({content_key(x) for x in cat.content['image']})


def test_the_key_of_features_is_of_the_tower_and_of_the_sizes(embedder, checkpoint):
    same = VLMEmbedder.from_pretrained(checkpoint, device='cpu')
    smaller = VLMEmbedder.from_pretrained(checkpoint, device='cpu', max_pixels=784)
    assert vision_key(same) == vision_key(embedder)
    assert vision_key(smaller) != vision_key(embedder)
    with torch.no_grad():
        next(same.core.model.visual.parameters()).add_(1.0)
    assert vision_key(same) != vision_key(embedder)


def test_live_features_serve_only_where_they_are_asked_for(embedder, cat, tmp_path):
    more = with_a_black_square(cat)
    assert embedder.bank(more, vision=tmp_path) is embedder.bank(more) is not embedder.bank(more, vision='live')
    other = with_a_black_square(cat)
    live = embedder.bank(other, vision='live')
    assert live is embedder.bank(other)
    assert embedder.bank(other, vision='memory') is embedder.bank(other) is not live


def test_a_catalogue_of_texts_has_no_features(embedder, cat, tmp_path):
    texts = Catalogue(cat.ids, {'text': cat.content['text']}, {'text': 'text'})
    for vision in (None, tmp_path, 'live'):
        assert make_bank(embedder, texts, vision=vision).features.shape[0] == 0
    assert not list(tmp_path.iterdir())


def test_a_saved_embedder_says_what_it_reads_by(embedder, tmp_path):
    note = json.loads((embedder.save_pretrained(tmp_path / 'mine') / 'embedder.json').read_text())
    assert note['fusion'] == 'external' and note['max_pixels'] == 50176 and note['prompts']['separator'] == ';'
