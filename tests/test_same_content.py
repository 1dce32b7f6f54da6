"""Items of the same content: their groups, the mask of a batch, and what a training does with them."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm2rec_lab.data import Catalogue, DataError
from vlm2rec_lab.studio import make_studio
from vlm2rec_lab.training.batches import candidates, content_groups

TEXTS, COLOURS = ('a mug', 'a bowl', 'a jug', None), ('red', 'blue', None)


def picture(colour):
    "An array of one colour."
    return None if colour is None else np.full((4, 4, 3), dict(red=(200, 0, 0), blue=(0, 0, 200))[colour], np.uint8)


@settings(max_examples=150, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(COLOURS)), min_size=1, max_size=12), st.data())
def test_groups_and_mask_are_the_plain_loop(contents, data):
    n = len(contents)
    parts = {'text': [t for t, _ in contents], 'image': [picture(c) for _, c in contents]}
    catalogue = Catalogue([str(i) for i in range(n)], parts, dict(text='text', image='image'))

    def alike(i, j, same):
        "Whether two items show the same, by the rule."
        a, b = (
            [contents[k]['all text image'.split().index(same) - 1]] if same != 'all' else [*contents[k]] for k in (i, j)
        )
        return i == j or a == b and any(x is not None for x in a)

    offsets, owned = [0], []
    for _ in range(2):
        owned += sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=3)))
        offsets.append(len(owned))
    split = SimpleNamespace(user_items=(np.array(offsets), np.array(owned, np.int64)))
    users = np.array(data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=6)))
    targets = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=len(users), max_size=len(users))))
    for same in ('all', 'text', 'image'):
        groups = content_groups(catalogue, same)
        assert [[groups[i] == groups[j] for j in range(n)] for i in range(n)] == [
            [alike(i, j, same) for j in range(n)] for i in range(n)
        ]
        items, positives, exclude = candidates(split, users, targets, groups)
        for b, (u, t) in enumerate(zip(users, targets)):
            had = owned[offsets[u] : offsets[u + 1]]
            assert exclude[b].tolist() == [i != t and (i in had or alike(i, t, same)) for i in items.tolist()]
            assert items[positives[b]] == t


def test_pictures_are_the_same_by_their_files_and_are_read_once(tmp_path, monkeypatch):
    for name, colour in (('a', 'red'), ('b', 'red'), ('c', 'blue')):
        Image.new('RGB', (8, 8), colour).save(tmp_path / f'{name}.png')
    files = [str(tmp_path / f'{n}.png') for n in 'abc']
    catalogue = Catalogue('abc', {'image': files}, {'image': 'image'})
    first = content_groups(catalogue).tolist()
    assert first[0] == first[1] != first[2]
    (tmp_path / 'a.png').unlink()
    assert content_groups(catalogue, 'image').tolist() == first
    with pytest.raises(DataError, match='a.png'):
        content_groups(replace(catalogue))


@pytest.fixture(scope='module')
def variants():
    "A drawn shop in which every second product is a variant of the one before it."
    split = make_studio('balanced', seed=0, items=40, users=60, length=6).split(30, 15, 15, history=4)
    as_before = np.arange(40) // 2 * 2
    content = {m: [values[i] for i in as_before] for m, values in split.catalogue.content.items()}
    return replace(split, catalogue=replace(split.catalogue, content=content))


def a_run(checkpoint, split, **kw):
    "A short training: its frame and its settings."
    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.train import train

    embedder = VLMEmbedder.from_pretrained(checkpoint, lora=4, device='cpu')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        run = train(embedder, split, steps=2, batch=24, eval_every=0, progress=False, **kw)
    return run.frame, run.settings


def test_training_masks_what_shows_the_same(checkpoint, variants):
    usual, said = a_run(checkpoint, variants)
    masked, told = a_run(checkpoint, variants, same_content='all')
    by_image, _ = a_run(checkpoint, variants, same_content='image')
    assert 'same_content' not in said and told['same_content'] == 'all'
    assert masked.loss[0] < usual.loss[0]
    assert by_image.loss.tolist() == masked.loss.tolist()  # here the two are the same items


def test_without_variants_nothing_changes(checkpoint):
    split = make_studio('balanced', seed=0, items=40, users=60, length=6).split(30, 15, 15, history=4)
    usual, masked = (a_run(checkpoint, split, same_content=s)[0] for s in (None, 'all'))
    assert usual.equals(masked)


def test_an_unknown_modality_is_told_before_training(checkpoint, variants):
    with pytest.raises(DataError, match="did you mean 'image'"):
        a_run(checkpoint, variants, same_content='imge')
