"Which columns are the text is said at the command, kept with the run, and not mixed up."

import json

import pandas as pd
import pytest
from pair_encoders import Colours, HashedWords
from shell import own_shop, said

from vlm2rec_lab.data import load_folder
from vlm2rec_lab.model import loading
from vlm2rec_lab.studies.cell import run_cell
from vlm2rec_lab.studies.workers import cell_name

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
SIZE = ['--steps', 1, '--batch', 4, '--losses', 'sft', '--users', 8]


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "A shop whose products have a maker, a colour, a code, a link and a date beside the usual texts."
    folder = own_shop(tmp_path_factory.mktemp('own'))
    items = pd.read_csv(folder / 'items.csv')
    makers = [('Ann Oak', 'Bob Elm')[k % 2] for k in range(len(items))]
    more = dict(maker=makers, colour=[['red', 'green', 'blue'][k % 3] for k in range(len(items))])
    more |= dict(
        imdb_id=[f'tt{k:07}' for k in range(len(items))], page=[f'https://x.org/{k}' for k in range(len(items))]
    )
    more |= dict(made=[f'2020-01-{1 + k % 28:02}' for k in range(len(items))], country='Norway')
    items.assign(**more).to_csv(folder / 'items.csv', index=False)
    return folder


def test_what_is_left_out_is_noted_and_nothing_else(shop, tmp_path):
    (note,) = [n for n in load_folder(shop, progress=False).notes if 'not used' in n]
    assert 'not used as text: maker, colour; --text-columns takes them beside title, description' in note
    for text in (['title', 'maker'], {}, {'a': 'title'}):
        assert not any('not used' in n for n in load_folder(shop, text=text, progress=False).notes)
    status, text, _ = said('profile', '--data', shop, '--out', tmp_path / 'p.html')
    assert status == 0 and 'not used as text: maker, colour' in text
    assert 'not used as text: maker, colour' in (tmp_path / 'p.html').read_text()


@pytest.mark.parametrize('command', ['train', 'demo', 'study', 'profile', 'downstream', 'fetch', 'estimate'])
def test_every_command_that_reads_a_folder_takes_them(command):
    assert '--text-columns' in said(command, '--help')[1]


@pytest.mark.parametrize(
    ('words', 'text'),
    [
        (['title,maker'], {'text': 'Ann Oak'}),
        (['title', 'maker'], {'text': 'Ann Oak'}),
        (['title, ', 'maker'], {'text': 'Ann Oak'}),
        (['text=title,description', 'people=maker,colour'], {'people': 'maker: Ann Oak. colour: red'}),
    ],
)
def test_columns_become_texts(shop, words, text, tmp_path, monkeypatch):
    from vlm2rec_lab.shop.dataset import Dataset

    found, made = [], Dataset.profile
    monkeypatch.setattr(Dataset, 'profile', lambda self, *a, **kw: found.append(self) or made(self, *a, **kw))
    said('profile', '--data', shop, '--text-columns', *words, '--out', tmp_path / 'p.json')
    content = found[0].catalogue.content
    assert set(content) == {*text, 'text', 'image'}
    for m, part in text.items():
        assert part in content[m][0]


@pytest.mark.parametrize(
    'argv',
    [('profile',), ('demo', '--steps', 1), ('train', '--steps', 1), ('study', '--part', 'shop'), ('study',)],
    ids=lambda words: '-'.join(map(str, words)),
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(shop, argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = said(*argv, '--data', shop, '--text-columns', 'title,makr')
    assert status == 2 and "'makr'" in err and "did you mean 'maker'? There is: title, description" in err, err


def test_the_studio_has_columns_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in (['demo'], ['study'], ['train', '--data', 'studio:balanced']):
        status, _, err = said(*argv, '--text-columns', 'title')
        assert status == 2 and 'columns of its own' in err, err


def test_a_run_keeps_its_columns_and_goes_on_with_them(shop, tmp_path, checkpoint):
    out, text = tmp_path / 'run', ['--text-columns', 'text=title', 'people=maker,colour']
    argv = ['train', '--data', shop, '--model', checkpoint, *SIZE, '--out', out]
    status, _, err = said(*argv, *text)
    assert status == 0, err
    note = json.loads((out / 'run.json').read_text())
    assert note['text'] == {'text': ['title'], 'people': ['maker', 'colour']}
    status, words, err = said(*argv, '--resume')
    assert status == 0, err
    assert f'columns as in {out / "run.json"}: --text-columns text=title people=maker,colour' in words
    assert json.loads((out / 'run.json').read_text()) == note
    status, _, err = said(*argv, '--resume', '--text-columns', 'title')
    assert status == 2 and f'{out} was started with' in err and "'people'" in err
    marks = json.loads((out / 'inputs.json').read_text())
    assert any('people' in k for k in marks)


def test_a_run_on_texts_without_html_goes_on_without_html(shop, tmp_path, checkpoint):
    out = tmp_path / 'run'
    argv = ['train', '--data', shop, '--model', checkpoint, *SIZE, '--out', out]
    status, _, err = said(*argv, '--clean', '--text', 'none', '--image', 'image')
    assert status == 0, err
    status, words, err = said(*argv, '--resume')
    assert status == 0, err
    assert f'columns as in {out / "run.json"}: --text-columns none --image image --clean' in words


def test_a_trained_model_reads_what_it_was_trained_on(shop, tmp_path, checkpoint):
    out = tmp_path / 'run'
    first = ['train', '--data', shop, '--model', checkpoint, *SIZE, '--out', out]
    assert said(*first, '--text-columns', 'title,maker')[0] == 0
    again = ['train', '--data', shop, '--model', out / 'sft', *SIZE]
    status, words, err = said(*again, '--out', tmp_path / 'more')
    assert status == 0, err
    assert '--text-columns title,maker' in words and 'note: ' not in words.split('leave one out')[0]
    assert json.loads((tmp_path / 'more/run.json').read_text())['text'] == ['title', 'maker']
    status, words, _ = said(*again, '--out', tmp_path / 'other', '--text-columns', 'title')
    assert status == 0 and 'was trained on --text-columns title,maker' in words
    assert json.loads((tmp_path / 'other/run.json').read_text())['text'] == ['title']
    plain = tmp_path / 'plain'
    assert said(*first[:-1], plain)[0] == 0
    status, words, _ = said(*again[:4], plain / 'sft', *SIZE, '--out', tmp_path / 'third', '--text-columns', 'title')
    assert status == 0 and 'was trained on the usual columns' in words


def test_a_model_of_other_data_has_no_say(shop, tmp_path, checkpoint):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/run.json').write_text(json.dumps(dict(data='elsewhere', text=['plot'])))
    checkpoint_there = tmp_path / 'run' / 'sft'
    checkpoint_there.symlink_to(checkpoint, target_is_directory=True)
    argv = ['train', '--data', shop, '--model', checkpoint_there, *SIZE, '--out', tmp_path / 'out']
    status, words, err = said(*argv)
    assert status == 0 and 'columns as in' not in words, err


def test_cells_of_the_study_of_a_shop_keep_to_one_text(shop, tmp_path, monkeypatch):
    made = dict(encoders=dict(text=HashedWords(), people=HashedWords(seed=2), image=Colours()))
    monkeypatch.setattr(loading, 'load_embedder', lambda *_, **__: type('Pair', (), made)())
    argv = ['study', '--part', 'shop', '--data', shop, '--conditions', 'small', '--remedies', 'sft', '--seeds', 1]
    argv += ['--effort', 0.2, '--out', tmp_path]
    assert said(*argv)[0] == 0
    status, _, err = said(*argv, '--text-columns', 'title,maker')
    assert status == 2 and 'of other data, encoders or effort' in err and 'columns=' in err
    text = ['--text-columns', 'text=title', 'people=maker']
    assert said(*argv[:-1], tmp_path / 'b', *text)[0] == 0
    cell = json.loads(next((tmp_path / 'b').rglob('small--sft--0.json')).read_text())
    assert cell['columns'] == {'text': {'text': ['title'], 'people': ['maker']}}
    assert set(cell['figures']['small']) == {'text', 'people', 'image', 'fused'}
    items = (shop / 'items.csv').read_text()
    try:
        (shop / 'items.csv').write_text(items.replace('Ann Oak', 'Ann Ash', 1))
        status, _, err = said(*argv[:-1], tmp_path / 'b', *text)
        assert status == 2 and 'contents=' in err
    finally:
        (shop / 'items.csv').write_text(items)
    assert said(*argv[:-1], tmp_path / 'b', *text)[0] == 0


def test_cells_of_the_study_keep_to_one_text(shop, tmp_path, checkpoint):
    from vlm2rec_lab.studies.workers import run_study

    cell = dict(condition='own', remedy='before', seed=1, data=str(shop), columns=dict(text=['title', 'maker']))
    cell['model'] = str(checkpoint)
    found = run_cell(**cell)
    assert found['columns'] == dict(text=['title', 'maker'])
    assert found['inputs'] != run_cell(**cell | dict(columns=None))['inputs']
    (tmp_path / cell_name(**cell)).write_text(json.dumps(found))
    assert run_study(tmp_path, [cell], progress=False) == [json.loads(json.dumps(found))]
    with pytest.raises(ValueError, match='was made with.*columns'):
        run_study(tmp_path, [cell | dict(columns=dict(text=['title']))], progress=False)


def test_no_bar_of_pictures_in_a_pipe(shop, tmp_path, monkeypatch):
    "However long the pictures take: every bar of a reader is off where nobody looks."
    from vlm2rec_lab.shop import tables

    seen, bar = [], tables.tqdm
    monkeypatch.setattr(tables, 'tqdm', lambda *a, **kw: seen.append(kw['disable']) or bar(*a, **kw))
    for data in (shop, f'log:{shop / "interactions.csv"},{shop / "items.csv"}'):
        assert said('profile', '--data', data, '--out', tmp_path / 'p.json')[0] == 0
    assert seen and all(seen)
