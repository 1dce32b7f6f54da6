"`vlm2rec graph` with encoders that learn, as a shell would call it."

import numpy as np
import pandas as pd
import pytest
import torch
from shell import own_shop, typed_in
from small_encoders import dual_models, save, tokenizer, unified_model

from vlm2rec_lab.commands.graph import _pairs
from vlm2rec_lab.graph.encoders import dual_encoders
from vlm2rec_lab.model.pair import PairEmbedder

QUICK = ['--epochs', '2', '--seeds', '1', '--batch', '64', '--k', '5', '--dim', '8', '--width', '8', '--lr', '0.01']


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "A shop with pictures, a CLIP, a FLAVA and a file of vectors."
    folder = tmp_path_factory.mktemp('graph')
    own_shop(folder)
    torch.manual_seed(0)
    save(folder / 'clip', *dual_models()['clip'](), tokenizer())
    save(folder / 'flava', *unified_model(), tokenizer())
    np.savez(folder / 'theirs.npz', **{'items/text': np.random.default_rng(0).normal(size=(40, 6))})
    return folder


def test_each_paradigm_is_an_encoder_of_its_own(work, capsys):
    ask = ['graph', '--data', '.', '--models', 'LightGCN', 'VBPR', '--encoders', 'clip', 'flava', *QUICK]
    ask += ['--paradigms', 'pre-trained', 'fine-tuned', 'end-to-end', '--out', 'all']
    typed_in(work)(*ask)
    said = capsys.readouterr().out
    table = pd.read_csv(work / 'all' / 'graph.csv').fillna('')
    each = {f'{e}{how}' for e in ('clip', 'flava') for how in ('', ', fine-tuned', ', end-to-end')}
    assert set(table.encoder) == {'', *each}
    assert set(table[table.encoder == 'flava'].left) >= {'all there', 'without joint', 'without image', 'no content'}
    cases = pd.read_csv(work / 'all' / 'cases.csv')
    pairs = set(zip(cases.encoder, cases.against))
    assert {('clip, fine-tuned', 'clip'), ('flava, end-to-end', 'flava'), ('flava', 'clip')} <= pairs
    assert 'clip: Tuned: MRR' in said and 'VBPR with its encoders, seed 0' in said
    typed_in(work)(*ask)  # finds everything
    assert pd.read_csv(work / 'all' / 'graph.csv').fillna('').equals(table)


def test_only_what_is_asked_is_made(work):
    ask = ['graph', '--data', '.', '--models', 'VBPR', '--encoders', 'clip', *QUICK, '--out', 'one']
    typed_in(work)(*ask, '--paradigms', 'end-to-end', '--lora', '2')
    assert set(pd.read_csv(work / 'one' / 'graph.csv').encoder) == {'clip, end-to-end'}


def test_what_cannot_learn_is_told(work):
    ask = ['graph', '--data', '.', '--models', 'VBPR', *QUICK, '--paradigms', 'fine-tuned', '--out', 'none']
    with pytest.raises(ValueError, match='theirs.npz: a file of vectors has no encoder that could learn'):
        typed_in(work)(*ask, '--encoders', 'theirs.npz')
    from vlm2rec_lab.model.tiny import tiny_vlm

    with pytest.raises(ValueError, match='learns by vlm2rec train'):
        typed_in(work)(*ask, '--encoders', str(tiny_vlm('even')))


def test_mistakes_are_told_before_anything_learns(work):
    ask = ['graph', '--data', '.', '--models', 'VBPR', *QUICK, '--out', 'none']
    with pytest.raises(ValueError, match='called alike: clip, clip'):
        typed_in(work)(*ask, '--encoders', 'clip', './clip')
    with pytest.raises(ValueError, match='--lora: no encoder learns'):
        typed_in(work)(*ask, '--encoders', 'clip', '--lora', '2')
    with pytest.raises(ValueError, match='--control exchanges vectors'):
        typed_in(work)(*ask, '--encoders', 'clip', '--paradigms', 'end-to-end', '--control')
    PairEmbedder(dual_encoders(work / 'clip', device='cpu')).save_pretrained(work / 'trained')
    with pytest.raises(ValueError, match='a trained pair has learned already'):
        typed_in(work)(*ask, '--encoders', 'clip', 'trained', '--paradigms', 'fine-tuned')
    assert not (work / 'none').exists()


def test_one_that_learned_is_held_against_itself():
    assert _pairs(['a', 'a, fine-tuned', 'b', 'b, end-to-end']) == [
        ('a, fine-tuned', 'a'),
        ('b', 'a'),
        ('b, end-to-end', 'a'),
        ('b, end-to-end', 'b'),
    ]
