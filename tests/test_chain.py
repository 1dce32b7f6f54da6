"""From files and links to a run: what one room hands to the next."""

import dataclasses
import gzip
import io
import json
import pickle
import subprocess
import sys
import threading
from copy import copy, deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlm2rec_lab.cli import main, open_dataset
from vlm2rec_lab.data import DataError, leave_one_out, load_folder
from vlm2rec_lab.shop import fetch, images, readers, tables
from vlm2rec_lab.shop.splits import cold_items, last_day, temporal_split

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')


def picture(k):
    "A JPEG file that is unlike those of other numbers."
    pixels = np.full((40, 40 + k, 3), 40 + 9 * k % 200, np.uint8)
    pixels[5:20, 5 + k : 15 + k] = 255 - 5 * k
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, 'JPEG')
    return out.getvalue()


class Pictures(BaseHTTPRequestHandler):
    "Pictures by number; number 0 is gone."

    def do_GET(self):
        k = int(Path(self.path).stem)
        body = picture(k) if k else b''
        self.send_response(200 if k else 404)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "Amazon's files of 2014 with links to a server here: (argument of the command line, host)."
    folder, server = tmp_path_factory.mktemp('amazon'), ThreadingHTTPServer(('127.0.0.1', 0), Pictures)
    host = f'127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    reviews = [
        dict(
            reviewerID=f'A{u}',
            asin=f'B{(3 * u + k * k) % 20:03}',
            overall=5.0,
            unixReviewTime=1_400_000_000 + 9000 * u + 86_400 * k,
        )
        for u in range(30)
        for k in range(6)
    ]
    with gzip.open(folder / 'reviews_X_5.json.gz', 'wt') as f:
        f.writelines(json.dumps(r) + '\n' for r in reviews)
    with gzip.open(folder / 'meta_X.json.gz', 'wt') as f:
        for i in range(20):
            f.write(repr(dict(asin=f'B{i:03}', title=f"It's thing {i}", imUrl=f'http://{host}/{i}.jpg')) + '\n')
    yield f"{folder / 'reviews_X_5.json.gz'},{folder / 'meta_X.json.gz'}", host
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='module')
def fetched(shop, tmp_path_factory):
    "(dataset without pictures, folder with its pictures)."
    bare, folder = readers.amazon(*shop[0].split(','), progress=False), tmp_path_factory.mktemp('fetched') / 'got'
    fetch.fetch_images(bare, folder, hosts=[shop[1]], private=[shop[1]], retries=0, progress=False)
    return bare, folder


def test_links_become_pictures_that_are_trained_on(fetched, tmp_path):
    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.model.tiny import tiny_vlm
    from vlm2rec_lab.train import train

    bare, folder = fetched
    full = images.with_images(bare, images.read_manifest(folder), progress=False)
    there = [i for i, id in enumerate(full.catalogue.ids) if id != 'B000']
    assert full.catalogue.missing()['image'].nonzero()[0].tolist() == [i for i in range(20) if i not in there]
    assert any('(1 HTTP 404): B000' in n for n in full.notes)
    small = images.decode_images(full, tmp_path / 'cache', max_pixels=3136, progress=False)
    for i in there:
        assert full.catalogue.image('image', i).size == (40 + int(full.catalogue.ids[i][1:]), 40)
        assert small.catalogue.content['image'][i].dtype == np.uint8
    embedder = VLMEmbedder.from_pretrained(tiny_vlm(), lora=4, seed=0)
    assert embedder.encode_items(small.catalogue, progress=False)['image'].shape[0] == 20
    for cut in (leave_one_out, temporal_split, last_day, cold_items):
        split = cut(small, history=5)
        for positions in ('last', 'all') if cut in (temporal_split, cold_items) else ('last',):
            assert len(train(embedder, split, 'sft', steps=1, batch=4, positions=positions, progress=False).frame) == 1


@pytest.mark.parametrize('n, status', [(1, 0), (2, 3)])
def test_fetch_says_by_its_status_whether_all_were_had(n, status, shop, capsys, monkeypatch, tmp_path):
    rows = [
        dict(source='http://a.example/1', status='ok', reason='', detail=''),
        dict(source='http://a.example/2', status='failed', reason='HTTP 404', detail=''),
    ]
    made = images.Manifest(pd.DataFrame(rows[:n]), tmp_path)
    monkeypatch.setattr(fetch, 'fetch_images', lambda *args, **options: made)
    argv = ['fetch', '--data', f'amazon:{shop[0]}', '--hosts', 'a.example', '--out', tmp_path]
    assert main(argv) == status, capsys.readouterr().err


def test_what_was_fetched_is_used_by_the_command_line(shop, fetched, tmp_path, capsys):
    data = f'amazon:{shop[0]}'
    assert open_dataset(data, images=fetched[1]).catalogue.missing()['image'].sum() == 1

    argv = ['train', '--data', data, '--core', 2, '--images', fetched[1], '--split', 'temporal', '--losses', 'sft']
    argv += ['--steps', 1, '--batch', 4, '--history', 4, '--out', tmp_path / 'run']
    assert main(argv) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert 'image (image, 1 missing)' in out and 'last item by image' in out
    assert ' days;' in out  # the half-life of the recency

    assert main(['profile', '--data', data, '--images', fetched[1], '--out', tmp_path / 'p.html']) == 0
    assert '40 pixels' in capsys.readouterr().out


def test_links_that_were_fetched_from_another_column(fetched, tmp_path):
    bare, folder = fetched
    columns = {
        'item_id': bare.catalogue.ids,
        'title': 'x',
        'note': 'http://elsewhere.example/1.jpg',
        'photo': bare.catalogue.table['image_url'],
    }
    pd.DataFrame(columns).to_csv(tmp_path / 'items.csv', index=False)
    (tmp_path / 'log.csv').write_text('user_id,item_id,timestamp\nu,B001,3\nu,B002,4\n')
    found = open_dataset(f'log:{tmp_path / "log.csv"},{tmp_path / "items.csv"}', images=folder)
    assert found.catalogue.missing()['image'].sum() == 1  # whose link is dead


def test_links_in_a_table_are_not_taken_for_paths(tmp_path):
    (tmp_path / 'interactions.csv').write_text('user_id,item_id,timestamp\nu,1,3\nu,2,4\n')
    for column, said in (('image_url', 'with_images'), ('image', 'fetch_images')):
        (tmp_path / 'items.csv').write_text(
            f'item_id,title,{column}\n1,a,http://e.example/1.jpg\n2,b,http://e.example/2.jpg\n'
        )
        notes = ' '.join(load_folder(tmp_path, progress=False).notes)
        assert said in notes and "pass image='image_url'" not in notes and 'add the files' not in notes
    assert any(
        "2 links in column 'image' not followed: row 2, 3" in n
        for n in readers.log_file(tmp_path / 'interactions.csv', tmp_path / 'items.csv', progress=False).notes
    )


def small(tmp_path, users=12, items=6):
    pd.DataFrame({'item_id': range(items), 'title': [f't{k}' for k in range(items)]}).to_csv(
        tmp_path / 'items.csv', index=False
    )
    pd.DataFrame(
        [(f'u{u}', (u + k) % items, 1_700_000_000 + 86_400 * k + u) for u in range(users) for k in range(5)],
        columns=['user_id', 'item_id', 'timestamp'],
    ).to_csv(tmp_path / 'interactions.csv', index=False)
    return load_folder(tmp_path, progress=False)


SPLIT_IN_A_PROCESS = """
import copy, dataclasses, pickle, sys

s = pickle.loads(open(sys.argv[1], 'rb').read())
s.save(sys.argv[2])
assert 'vlm2rec_lab.shop.splits' not in sys.modules
same = (s, copy.copy(s), copy.deepcopy(s), dataclasses.replace(s))
print(*{x.fingerprint for x in same})
"""


def test_a_split_is_a_value_without_importing_splits(tmp_path):
    split = leave_one_out(small(tmp_path))
    (tmp_path / 's.pickle').write_bytes(pickle.dumps(split))
    argv = [sys.executable, '-c', SPLIT_IN_A_PROCESS, tmp_path / 's.pickle', tmp_path / 's.safetensors']
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [split.fingerprint] and (tmp_path / 's.safetensors').is_file()


def _pickled(value):
    "The value after a way through bytes."
    return pickle.loads(pickle.dumps(value))


def test_copies_of_a_split_with_other_rows_have_another_fingerprint(tmp_path):
    split = leave_one_out(small(tmp_path))
    before = split.fingerprint
    fewer = dataclasses.replace(split, test=split.test.take(np.arange(3)))
    assert fewer.fingerprint != before
    assert {same(split).fingerprint for same in (copy, deepcopy, _pickled)} == {before}


def test_an_item_bought_alone_in_training_is_new(tmp_path):
    "It is in no training row: no next item was asked after it, nor it after another."
    (tmp_path / 'items.csv').write_text('item_id,title\n' + ''.join(f'{k},t{k}\n' for k in range(6)))
    rows = [('a', 0, 1), ('a', 1, 2), ('a', 2, 9), ('b', 5, 3), ('b', 1, 8), ('c', 1, 2), ('c', 0, 3), ('c', 5, 9)]
    pd.DataFrame(rows, columns=['user_id', 'item_id', 'timestamp']).to_csv(tmp_path / 'interactions.csv', index=False)
    shop = load_folder(tmp_path, progress=False)
    split = temporal_split(shop, valid=None, test=5, new_items='drop')
    assert [shop.catalogue.ids[i] for i in split.test.targets] == ['1']  # 2 was never seen, 5 by b alone
    assert '2 for new items' in ' '.join(temporal_split(shop, valid=None, test=5).notes)


@pytest.mark.parametrize(
    'line',
    ['{"item_id": "1", "title": ' + '[' * n + ']' * n + '}' for n in (900, 20_000)]
    + ['{"item_id": "1", "title": "' + 'a' * 5000 + '"}'],
)
def test_lines_that_are_too_much(line, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, 'LONGEST', 50_000 if '[' in line else 4000)
    (tmp_path / 'items.jsonl').write_text('{"item_id": "0", "title": "fine"}\n' + line + '\n')
    (tmp_path / 'interactions.jsonl').write_text('{"user_id": "u", "item_id": "0", "timestamp": 3}\n')
    with pytest.raises(DataError, match='items.jsonl: line 2 is'):
        load_folder(tmp_path, progress=False)


def test_the_second_column_of_a_name_is_not_lost(tmp_path):
    small(tmp_path)
    (tmp_path / 'items.csv').write_text('item_id,title,title\n' + ''.join(f'{k},a,b\n' for k in range(6)))
    with pytest.raises(DataError, match='two columns of the same name: title'):
        load_folder(tmp_path, progress=False)
    (tmp_path / 'items.csv').write_text('item_id;title\n0;a\n')
    with pytest.raises(DataError, match="between ';'"):
        load_folder(tmp_path, progress=False)


def test_a_sequence_file_with_commas_says_what_to_do(tmp_path):
    (tmp_path / 's.txt').write_text('1,5,6\n2,5\n')
    with pytest.raises(DataError, match='s.txt has no interactions: write spaces'):
        readers.sequence_file(tmp_path / 's.txt')


def test_a_folder_of_ones_own_with_a_core(tmp_path):
    "As the docs say it: the two tables of a folder through `log_file`, pictures included."
    small(tmp_path)
    (tmp_path / 'p').mkdir()
    (tmp_path / 'p' / '1.jpg').write_bytes(picture(1))
    items = pd.read_csv(tmp_path / 'items.csv').assign(image=[f'p/{k}.jpg' if k == 1 else None for k in range(6)])
    items.to_csv(tmp_path / 'items.csv', index=False)
    with open(tmp_path / 'interactions.csv', 'a') as f:
        f.write('once,0,1700000000\n')
    whole = load_folder(tmp_path, progress=False)
    cored = readers.log_file(tmp_path / 'interactions.csv', tmp_path / 'items.csv', core=5, progress=False)
    assert set(whole.interactions.user_ids) - set(cored.interactions.user_ids) == {'once'}
    assert any('1 of 13 users' in n for n in cored.notes)
    assert cored.catalogue.missing()['image'].sum() == 5
    assert cored.catalogue.image('image', cored.catalogue.ids.index('1')).size == (41, 40)
