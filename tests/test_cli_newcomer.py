"""What somebody new meets at the command: the default model, its vectors in an index, notes, and the help."""

import re

import numpy as np
import pandas as pd
import pytest
from shell import own_shop, said

from vlm2rec_lab.cli import make_parser
from vlm2rec_lab.commands.fit import above_baseline
from vlm2rec_lab.commands.parser import COMMANDS
from vlm2rec_lab.model.loading import has_real
from vlm2rec_lab.ranking.vectors import read_side, read_task, read_vectors, write_vectors
from vlm2rec_lab.share.handover import beside_vectors, read_catalogue
from vlm2rec_lab.share.index import Index

real = pytest.mark.skipif(not has_real(), reason='no packaged encoders here')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "(folder of a shop, folder of a run of the default model, what the run said)."
    if not has_real():
        pytest.skip('no packaged encoders here')
    work = tmp_path_factory.mktemp('new')
    (work / 'my_shop').mkdir()
    shop, run = own_shop(work / 'my_shop'), work / 'runs/mine'
    argv = ['train', '--data', shop, '--steps', 5, '--batch', 8, '--losses', 'sft', '--apart', '--out', run]
    return shop, run, said(*argv)


# ---- from a run of the default model to an index


def test_a_run_of_the_default_model_becomes_an_index(trained, tmp_path):
    shop, run, (status, _, err) = trained
    assert status == 0, err
    argv = ['index', 'build', tmp_path / 'index', '--items', run / 'vectors-sft.npz', '--about', shop / 'items.csv']
    status, _, err = said(*argv)
    assert status == 0 and 'the column image of the table is called image_column in the index' in err, err
    index, table = Index(tmp_path / 'index'), pd.read_csv(shop / 'items.csv').set_index('item_id')
    assert index.table.image_column.tolist() == table.image.loc[index.ids].tolist()
    vectors, _ = read_vectors(run / 'vectors-sft.npz')
    norms = np.linalg.norm(vectors['items']['text'], axis=1, keepdims=True)
    np.testing.assert_allclose(index.vectors['text'], vectors['items']['text'] / norms, atol=1e-6)
    bare = said('index', 'build', tmp_path / 'bare', '--items', run / 'vectors-sft.npz')
    assert bare[0] == 0 and bare[2] == '' and list(Index(tmp_path / 'bare').table) == ['title', 'item_id']


def test_more_items_with_a_column_of_pictures_come_to_that_index(trained, tmp_path):
    "Also where the new ones have no vectors of pictures."
    shop, run, _ = trained
    file, about = run / 'vectors-sft.npz', shop / 'items.csv'
    said('index', 'build', tmp_path / 'index', '--items', file, '--about', about)
    vectors, table = read_side(file, 'items')
    np.savez(tmp_path / 'more.npz', text=vectors['text'], item_id=np.array(table['item_id']))
    argv = ['index', 'add', tmp_path / 'index', '--items', tmp_path / 'more.npz', '--about', about, '--replace']
    status, out, err = said(*argv)
    assert status == 0 and out.startswith('40 items came, 40 of them'), err


@real
def test_pictures_of_that_index_are_served(trained, tmp_path):
    from vlm2rec_lab.commands.serve import _shop

    shop, run, _ = trained
    said('index', 'build', tmp_path / 'index', '--items', run / 'vectors-sft.npz', '--about', shop / 'items.csv')
    o = make_parser().parse_args(['serve', str(tmp_path / 'index'), '--images', str(shop)])
    served = _shop(o, None)
    named = served.shelf.index.table[served.column].iat[3]
    assert (served.column, named) == ('image_column', 'images/3.png')
    assert served.album.picture('p0003', named).type == 'image/png'


def test_export_names_the_way_of_a_pair(trained, tmp_path):
    _, run, _ = trained
    status, _, err = said('export', run / 'sft', tmp_path / 'out')
    assert status == 2 and f'`vlm2rec index build INDEX --items {run / "vectors-sft.npz"} --about ITEMS.csv`' in err


def test_vectors_with_ids_and_without(tmp_path):
    rng = np.random.default_rng(0)
    task = {side: {'text': rng.normal(size=(n, 4))} for side, n in (('items', 5), ('sequences', 3))}
    task |= dict(targets=np.array([0, 1, 2]), seen=None)
    ids = ['007', 'b', 'c', 'd', 'NA']
    write_vectors(tmp_path / 'with.npz', task, list('vwxyz'), ids)
    write_vectors(tmp_path / 'older.npz', task, list('vwxyz'))
    for name in ('with', 'older'):
        back, titles = read_vectors(tmp_path / f'{name}.npz')
        assert back['targets'].tolist() == [0, 1, 2] and titles.tolist() == list('vwxyz')
    _, table = read_catalogue(tmp_path / 'with.npz')
    assert table.item_id.tolist() == ids and table.title.tolist() == list('vwxyz')
    assert 'item_id' not in read_catalogue(tmp_path / 'older.npz')[1]
    users = pd.DataFrame(dict(text=list(task['sequences']['text']), target=['c', '007', 'NA']))
    assert read_task(tmp_path / 'with.npz', users)[0]['targets'].tolist() == [2, 0, 4]


def test_a_column_is_renamed_where_there_is_room():
    table = pd.DataFrame(dict(item_id=['a'], image=['a.png'], image_column=['b.png']))
    assert list(beside_vectors(table, ['image'])) == list(table)


@pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
def test_a_column_of_the_items_file_itself_is_renamed(tmp_path):
    "Not only one of --about."
    rng = np.random.default_rng(0)
    np.savez(tmp_path / 'items.npz', image=rng.normal(size=(3, 4)), item_id=np.array(['a', 'b', 'c']))
    pd.DataFrame(dict(item_id=['a', 'b', 'c'], image=['1', '2', '3'])).to_csv(tmp_path / 'about.csv', index=False)
    assert list(read_catalogue(tmp_path / 'items.npz', tmp_path / 'about.csv')[1]) == ['item_id', 'image_column']


# ---- a history is no answer


@pytest.fixture
def index(tmp_path):
    "The folder of an index of six items."
    rng = np.random.default_rng(0)
    np.savez(tmp_path / 'items.npz', text=rng.normal(size=(6, 4)), item_id=np.array(list('abcdef')))
    assert said('index', 'build', tmp_path / 'index', '--items', tmp_path / 'items.npz')[0] == 0
    return tmp_path / 'index'


def answers(*argv):
    "The ids that a query prints."
    status, out, err = said('index', 'query', *argv)
    assert status == 0, err
    return [line.split()[1] for line in out.splitlines()[2:-1]]


def test_a_history_is_no_answer(index):
    asked = [index, '--history', 'b', 'e']
    assert sorted(answers(*asked)) == list('acdf') == sorted(answers(*asked, '--unseen'))
    assert sorted(answers(*asked, '--repeat')) == list('abcdef')
    assert '--repeat' in said('index', '--help')[1]
    status, _, err = said('index', 'query', *asked, '--repeat', '--unseen')
    assert status == 2 and 'leave one of them out' in err


# ---- estimate


@real
@pytest.mark.parametrize('model', ['real', 'smollm2', None])
def test_encoders_need_no_estimate(model, tmp_path):
    (tmp_path / 'shop').mkdir()
    own_shop(tmp_path / 'shop') if model is None else None
    argv = ['--model', model] if model else ['--data', tmp_path / 'shop']
    status, _, err = said('estimate', *argv)
    if model == 'smollm2' and 'pip install' in err:
        pytest.skip('the package is not installed')
    assert status == 2 and 'a pair of encoders needs no estimate' in err and '--model Qwen/' in err, err
    assert 'hf download' not in err


def test_the_help_of_estimate_promises_no_encoders():
    text = ' '.join(said('estimate', '--help')[1].split())
    assert 'need no estimate' in text and 'default: real' not in text


# ---- notes and the last line of a training


def test_a_note_is_said_once_and_names_its_run(trained):
    _, _, (_, out, err) = trained
    assert (out + err).count('a hit rate near one half is known to') == 1
    assert 'without interactions' in err and '  note :' not in out
    for line in (line for line in err.splitlines() if ' users have ' in line or ' vector: ' in line):
        assert re.search(r'note: (before|sft): ', line), line
    assert len(set(err.splitlines())) == len(err.splitlines())


def test_warnings_of_a_measurement_name_the_run():
    import warnings

    from vlm2rec_lab.commands.fit import _notes_of

    with pytest.warns(UserWarning, match='^sft: 4 of 60 users'), _notes_of('sft'):
        warnings.warn('4 of 60 users have the vectors of an earlier one', UserWarning, stacklevel=1)


def test_apart_says_that_it_changes_nothing(trained):
    assert 'note: --apart changes nothing here: a pair of encoders has heads of its own' in trained[2][1]


class Ranked(dict):
    "Metrics by hand: one view, with a figure for each user."

    def __init__(self, per_user):
        super().__init__({'fused': {'NDCG@10': float(np.mean(per_user))}})
        self.per_user, self.seed = {'fused': {'NDCG@10': per_user}}, 0


class Base(dict):
    "The same of baselines."

    def __init__(self, **per_user):
        super().__init__({k.replace('_', ' '): {'NDCG@10': float(np.mean(x))} for k, x in per_user.items()})
        self.per_user = {k.replace('_', ' '): {'NDCG@10': x} for k, x in per_user.items()}


def test_beats_is_said_where_it_is_clear_of_zero():
    rng = np.random.default_rng(0)
    mine = rng.random(40) * 0.5 + 0.3
    near, far = mine - 0.001 + 0.2 * rng.permutation(np.repeat([-1, 1], 20)), mine - 0.2
    found = {'sft': dict(history=[], metrics=Ranked(mine))}
    unsure = above_baseline(found, Base(last_item_by_image=near), {'image': 'image'})
    assert ' is not surely better than the thumbnail of the last item (' in unsure and 'beats' not in unsure, unsure
    sure = above_baseline(found, Base(last_item_by_text=far), {'text': 'text'})
    assert ' beats the words of the last item (' in sure
    kinds = {'text': 'text', 'image': 'image'}
    both = above_baseline(found, Base(last_item_by_text=far, last_item_by_image=near), kinds)
    assert ' is not surely better than the thumbnail' in both and ' and beats the words' in both, both


# ---- report


def test_damaged_is_a_word_that_a_report_may_fail_on(tmp_path):
    rng = np.random.default_rng(0)
    truth, good = rng.integers(0, 50, 300), rng.normal(size=(50, 8)).astype(np.float32)
    dead = rng.normal(size=8) + 1e-3 * rng.normal(size=good.shape)
    asked = {'text': good[truth] + 0.6 * rng.normal(size=(300, 8)), 'image': rng.normal(size=(300, 8))}
    write_vectors(tmp_path / 'v.npz', dict(items={'text': good, 'image': dead}, sequences=asked, targets=truth))
    argv = ['report', tmp_path / 'v.npz', '--out', tmp_path / 'r.json', '--fail-on']
    first, second = said(*argv, 'damaged'), said(*argv, 'under-used')
    assert first[0] == second[0] and first[2] == second[2] and 'no verdict' not in first[2]
    assert 'damaged counts as under-used' in ' '.join(said('report', '--help')[1].split())


# ---- help


@pytest.mark.parametrize('name', ['push', 'serve', 'fetch', 'index', 'export', 'downstream'])
def test_no_seed_where_nothing_follows_from_it(name):
    assert '--seed N' not in said(name, '--help')[1]
    status, _, err = said(name, '--seed', '1')
    assert status == 2 and "there is no option '--seed'" in err


@pytest.mark.parametrize('name', COMMANDS)
def test_help_ends_with_an_example_that_the_parser_takes(name):
    import shlex

    shown = said(name, '--help')[1].rpartition('example: vlm2rec ')[2]
    o = make_parser().parse_args(shlex.split(shown))
    assert o.name == name


def test_a_mistake_of_serve_names_the_command():
    "It has an option --name of its own."
    status, _, err = said('serve', 'nowhere', '--name', 'shop.example')
    assert status == 2 and err.startswith('vlm2rec serve: there is no index in nowhere'), err


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('train', 'best: of the step that validated best (default: last)'),
        ('train', 'for wpcl, vlm2rec and ogm-ge (default: 0.5)'),
        ('train', 'bounds the memory of a step (default: all at once)'),
        ('train', 'refuse tables of more rows (default: any number)'),
        ('train', 'are no negatives (default: they are)'),
        ('evaluate', 'cut-off of the metrics (default: 10 20)'),
        ('evaluate', 'in place of VECTORS.npz, with --sequences:'),
        ('study', 'with --verify: which of the stored cells are run again (default: 0)'),
    ],
)
def test_the_help_says_what_is_usual(name, words):
    assert words in ' '.join(said(name, '--help')[1].split())
    assert "the loss's own" not in said(name, '--help')[1]


def test_usual_values_of_losses_that_differ(monkeypatch):
    from vlm2rec_lab.commands import train

    monkeypatch.setattr(train, 'names', lambda kind: ['a', 'b', 'c'])
    monkeypatch.setattr(train, 'loss_arguments', {'a': {'lam': 0.1}, 'b': {'lam': 2.0}, 'c': None}.get)
    assert train._usual_of('lam') == '0.1 for a, 2 for b'
