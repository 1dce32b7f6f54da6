"""`vlm2rec index` in the shell: from files to answers, and back to files."""

import json

import numpy as np
import pandas as pd
import pytest
from share_shops import shop
from shell import in_a_terminal, said

from vlm2rec_lab.base.columns import breadth
from vlm2rec_lab.ranking.vectors import read_side
from vlm2rec_lab.share.index import Index, history_vectors


@pytest.fixture
def items(tmp_path, monkeypatch):
    "A folder with a file of items, where one works."
    monkeypatch.chdir(tmp_path)
    vectors, table = shop(30, lack=0.1)
    table.assign(**{m: [r if r.any() else None for r in x] for m, x in vectors.items()}).to_parquet('items.parquet')
    status, out, err = said('index', 'build', 'shop', '--items', 'items.parquet')
    assert (status, err) == (0, ''), err
    assert out.startswith('index of 30 items in shop, version 1\n  text: 6 dimensions,'), out
    return vectors, table


def answers(*argv):
    "The column item_id of what is printed."
    status, out, err = said('index', 'query', 'shop', *argv)
    assert (status, err) == (0, ''), err
    return [line.split()[1] for line in out.splitlines()[2:-1]]


def test_answers_are_those_of_the_library(items):
    index = Index('shop')
    asked = history_vectors(index, ['i3', 'i4'])
    unseen = [['i3', 'i4']]
    for argv, how in (
        (('--repeat',), {}),
        ((), dict(seen=unseen)),
        (('--weights', 'text=0.7,image=0.3', '--k', '4'), dict(weights=dict(text=0.7, image=0.3), k=4, seen=unseen)),
        (('--unseen', '--k', '30'), dict(seen=unseen, k=30)),
        (
            ('--where', 'price<=40', 'kind in shoe,hat'),
            dict(where=[('price', '<=', 40), ('kind', 'in', ['shoe', 'hat'])], seen=unseen),
        ),
        (('--diverse',), dict(diverse=True, seen=unseen)),
        (('--diverse', 'kind', '--likeness', '.6'), dict(diverse=dict(by='kind', weight=0.6), seen=unseen)),
    ):
        expected = index.query(asked, **how)
        assert answers('--history', 'i3', 'i4', *argv) == expected.ids[0][expected.there[0]].tolist(), argv
    like = index.query(history_vectors(index, ['i3']), 3, seen=[['i3']]).ids[0].tolist()
    assert answers('--like', 'i3', '--k', '3') == like and 'i3' not in like


def test_what_a_history_is_is_said_in_the_help_and_in_the_answer(items):
    _, out, _ = said('index', 'query', 'shop', '--history', 'i1', 'i2')
    assert out.startswith('asked: the mean of the unit vectors of 2 items, by modality (no model reads the history)')
    assert 'vlm2rec index query shop --history i1 i2' in out
    text = ' '.join(in_a_terminal(['index', '--help'], 80).split())
    assert 'asked is the mean of their unit vectors, by modality, for there is no model' in text


@pytest.mark.parametrize(
    'argv, error',
    [
        (('--like', 'i33'), "there is no item 'i33' in the index; did you mean 'i3'?"),
        (('--like', 'i3', '--where', 'prize<3'), "there is no column 'prize' in the index; did you mean 'price'?"),
        (('--like', 'i3', '--where', 'price<dear'), "column 'price' holds numbers, and 'dear' is none"),
        (('--like', 'i3', '--weights', 'txt=1,image=1'), "did you mean 'text'?"),
        (('--like', 'i3', '--weights', 'text=1'), 'none for image'),
        (('--like', 'i3', '--diverse', 'knd'), "did you mean 'kind'?"),
        (('--like', 'i3', '--columns', 'knd'), "did you mean 'kind'?"),
    ],
)
def test_mistakes_about_what_is_in_the_index(items, argv, error):
    status, _, err = said('index', 'query', 'shop', *argv)
    assert status == 2 and error in err and len(err.strip().splitlines()) == 1, err


def test_add_and_remove(items):
    vectors, table = items
    some = table[:3].assign(price=1.0, **{m: list(x[5:8]) for m, x in vectors.items()})
    some.assign(item_id=['i0', 'new', "o'dd \x1b[31m"]).to_parquet('more.parquet')
    status, _, err = said('index', 'add', 'shop', '--items', 'more.parquet')
    assert status == 2 and "has 'i0' already: leave it out, or replace it with --replace" in err, err
    status, out, err = said('index', 'add', 'shop', '--items', 'more.parquet', '--replace')
    assert status == 0 and out.startswith('3 items came, 1 of them for one of the same id'), err
    status, out, _ = said('index', 'show', 'shop')
    assert status == 0 and 'index of 32 items in shop, version 2' in out
    status, _, err = said('index', 'remove', 'shop', '--ids', 'nw')
    assert status == 2 and "did you mean 'new'?" in err
    status, out, _ = said('index', 'remove', 'shop', '--ids', 'new', 'i1')
    assert status == 0 and 'index of 30 items' in out
    assert '\x1b' not in in_a_terminal(['index', 'query', 'shop', '--like', 'i7'], 80, '.', TERM='dumb')


def test_what_is_handed_over_comes_back(items):
    status, out, _ = said('index', 'export', 'shop', '--to', 'out.parquet', '--weights', 'text=2,image=1')
    assert (status, out) == (0, '30 items with text, image and fused: out.parquet\n')
    status, _, err = said('index', 'build', 'again', '--items', 'out.parquet')
    assert (status, err) == (0, '')
    first, second = Index('shop'), Index('again')
    assert first.ids.tolist() == second.ids.tolist() and list(second.modalities) == ['text', 'image']
    assert np.abs(np.asarray(first.vectors['image']) - second.vectors['image']).max() < 1e-7
    pd.testing.assert_frame_equal(first.table, second.table)


def test_vectors_without_ids_take_them_from_a_table(items):
    vectors, table = items
    np.savez('bare.npz', **vectors)
    status, _, err = said('index', 'build', 'bare', '--items', 'bare.npz')
    assert status == 2 and 'bare.npz names no items: give it a column item_id, or a table that has one, --about' in err
    table.to_csv('about.csv', index=False)
    assert said('index', 'build', 'bare', '--items', 'bare.npz', '--about', 'about.csv')[0] == 0
    assert Index('bare').ids.tolist() == table.item_id.tolist()
    table[1:].to_csv('about.csv', index=False)
    status, _, err = said('index', 'build', 'bare', '--items', 'bare.npz', '--about', 'about.csv')
    assert status == 2 and 'about.csv has 29 rows and the items 30' in err


def test_ids_that_look_like_numbers_or_options_stay_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = ['007', '7', '-k', '1e3', 'NA', 'a b']
    pd.DataFrame(dict(item_id=ids, text=list(np.eye(6)))).to_parquet('items.parquet')
    pd.DataFrame(dict(item_id=ids, kind='x')).to_csv('about.csv', index=False)
    assert said('index', 'build', 'shop', '--items', 'items.parquet', '--about', 'about.csv')[0] == 0
    index = Index('shop')
    assert index.ids.tolist() == ids and index.table.kind.tolist() == ['x'] * 6
    status, out, err = said('index', 'query', 'shop', '--like=-k', '--k', '2')
    assert (status, err) == (0, '') and out.startswith('items like -k')


@pytest.mark.parametrize('columns', [60, 80, 100])
def test_answers_fit_the_terminal(items, columns, tmp_path):
    out = in_a_terminal(['index', 'query', 'shop', '--history', 'i1', 'i2', '--k', '3'], columns, tmp_path)
    assert max(map(breadth, out.splitlines())) <= columns and 'Traceback' not in out, out


def test_a_file_for_the_report_is_a_file_for_the_index(tmp_path, monkeypatch):
    "What `vlm2rec report --items` reads: arrays of an .npz file, and safetensors."
    from safetensors.numpy import save_file

    monkeypatch.chdir(tmp_path)
    vectors, table = shop(8)
    np.savez('items.npz', item_id=table.item_id.to_numpy(str), title=table.item_id.to_numpy(str), **vectors)
    save_file({f'items/{m}': x for m, x in vectors.items()}, 'items.safetensors')
    assert set(read_side('items.npz', 'items')[0]) == set(read_side('items.safetensors', 'items')[0]) == set(vectors)
    table.to_parquet('about.parquet')
    for file, more in (('items.npz', ()), ('items.safetensors', ('--about', 'about.parquet'))):
        assert said('index', 'build', 'i', '--items', file, *more)[0] == 0
        assert Index('i').ids.tolist() == table.item_id.tolist()
    assert json.loads((tmp_path / 'i/index.json').read_text())['version'] == 2


@pytest.mark.parametrize(
    'about, why',
    [
        (b'item_id,kind\na,\xe9\n', 'about.csv is not UTF-8'),
        (b'item_id,kind\na,"x\n', 'about.csv cannot be read: row 2 opens a quotation mark'),
        (b'item_id,kind\n0,a,x\n1,b,y\n', 'about.csv: row 2 has more cells than the header'),
        (b'', 'about.csv is empty'),
        (b'item_id,kind\n1,x\n2,y\n', "has no row for 2 of 2 items ('01', '02'); of 2 unknown ids 2 would be known"),
        (b'item_id,kind\nc,x\n', "has no row for 2 of 2 items ('01', '02'): both tables need"),
        (b'item_id,kind\n,x\n01,y\n', 'about.csv: 1 row without item_id: row 2'),
    ],
)
def test_a_second_table_that_cannot_be_used(tmp_path, monkeypatch, about, why):
    monkeypatch.chdir(tmp_path)
    np.savez('items.npz', text=np.eye(2), item_id=['01', '02'])
    (tmp_path / 'about.csv').write_bytes(about)
    status, _, err = said('index', 'build', 'shop', '--items', 'items.npz', '--about', 'about.csv')
    assert status == 2 and why in ' '.join(err.split())


def test_items_that_a_second_table_lacks_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez('items.npz', text=np.eye(2), item_id=['01', '02'])
    (tmp_path / 'about.csv').write_text('item_id,kind\n02,x\n03,y\n')
    status, out, err = said('index', 'build', 'shop', '--items', 'items.npz', '--about', 'about.csv')
    assert status == 0 and "has no row for 1 of 2 items ('01'), whose columns are empty" in ' '.join(
        (out + err).split()
    )
    assert Index('shop').table.kind.fillna('').tolist() == ['', 'x']


@pytest.mark.parametrize('form', ['npz', 'parquet'])
def test_ids_that_are_numbers_have_no_point_and_none_is_no_id(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)

    def written(ids):
        if form == 'npz':
            np.savez('items.npz', text=np.eye(3), item_id=ids)
        else:
            pd.DataFrame(dict(item_id=ids, text=list(np.eye(3)))).to_parquet('items.parquet')

    written(np.array([1, 2.5, 3]))
    assert said('index', 'build', 'shop', '--items', f'items.{form}')[0] == 0
    assert Index('shop').ids.tolist() == ['1', '2.5', '3']
    written(np.array([1, np.nan, 3]))
    status, _, err = said('index', 'build', 'shop', '--items', f'items.{form}')
    assert status == 2 and '1 row without item_id: row 1' in ' '.join(err.split())


def test_dates_are_shown_without_a_word_of_the_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame(dict(item_id=['a', 'b'], text=list(np.eye(2)), when=pd.to_datetime(['2024-01-01'] * 2)))
    table.to_parquet('items.parquet')
    assert said('index', 'build', 'shop', '--items', 'items.parquet')[0] == 0
    status, out, err = said('index', 'query', 'shop', '--like', 'a')
    assert status == 0 and '2024-01-01' in out and 'round' not in out + err
