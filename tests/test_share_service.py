"""The service: its answers, and what it says to those who send too much, too often, in another form or under another
name: a status below 500 and one sentence."""

import base64
import io
import json
import os
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from share_servers import BEARER, TOKEN, small_index

from vlm2rec_lab.base.files import sole_writer
from vlm2rec_lab.share import stock
from vlm2rec_lab.share.album import Album
from vlm2rec_lab.share.answers import recommend, shelf_of, why
from vlm2rec_lab.share.index import Index
from vlm2rec_lab.share.limits import Limits
from vlm2rec_lab.share.service import Shop, make_app
from vlm2rec_lab.shop.pictures import open_image

WIDE = dict(rate=1e9, burst=10**9)


def client_of(index, limits=None, base_url='http://localhost', **more):
    "A client of a service in this process, and what the service holds."
    shop = Shop(shelf_of(index), Limits(**(WIDE | (limits or {}))), **more)
    client = TestClient(make_app(shop), base_url=base_url, raise_server_exceptions=False)
    client.shop = shop
    return client


@pytest.fixture(scope='module')
def index(tmp_path_factory):
    return small_index(tmp_path_factory.mktemp('shop') / 'index')


@pytest.fixture(scope='module')
def client(index):
    return client_of(index)


@pytest.fixture
def own(tmp_path):
    "A client of an index that may be changed."
    return client_of(small_index(tmp_path / 'index'), token=TOKEN)


def check_error(answer, status=None):
    "An answer is an error with one plain sentence."
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    assert status is None or answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers['content-type'] == 'application/json'
    found = answer.json()
    assert set(found) == {'error'} and 10 < len(found['error']) <= 500, found
    assert not re.search(r'Traceback|File "|pydantic|line \d+, in', found['error'])
    return found['error']


# ---- answers


def test_recommendations_are_those_of_the_index(index, client):
    asked = dict(history=['a/b', 'i20', 'ü'], k=7, weights=dict(text=1, image=2), where=[['price', '<', 60]])
    found = client.post('/recommend', json=asked).json()
    expected = recommend(shelf_of(index), asked['history'], 7, asked['weights'], [('price', '<', 60)])
    assert found == json.loads(json.dumps(expected))
    assert found['by'] == 'mean' and len(found['items']) == 7
    assert not {i['id'] for i in found['items']} & set(asked['history'])
    again = client.post('/recommend', json=asked | dict(repeat=True)).json()
    assert {i['id'] for i in again['items']} & set(asked['history'])


def test_fewer_items_than_asked_for(client):
    found = client.post('/recommend', json=dict(history=['i20'], k=50, where=[['price', '<', 5]])).json()
    assert [i['id'] for i in found['items']] and len(found['items']) == 2


def test_diversity_changes_what_is_offered(client):
    plain, varied = (
        client.post('/recommend', json=dict(history=['i20'], k=8, diversity=d)).json()['items'] for d in (0, 0.9)
    )
    assert plain[0] == varied[0] and plain != varied
    assert client.post('/recommend', json=dict(history=['i20'], k=8)).json()['items'] == plain


@pytest.mark.parametrize('item', ['a/b', '../c', 'd?e=f&g', 'h i', 'ü', '<i>', "'k", 'l%2Fm', '.', 'i9'])
def test_ids_with_odd_characters(client, item):
    by_name = client.get('/similar', params=dict(id=item, k=3))
    assert by_name.status_code == 200 and by_name.json()['item'] == item
    assert client.get('/items', params=dict(find=item)).json()['total'] >= 1
    if item not in ('../c', '.', 'l%2Fm'):  # clients take dots out of a path, and this one decodes it twice
        by_path = client.get(f'/similar/{quote(item, safe="")}', params=dict(k=3))
        assert by_path.json() == by_name.json()
        assert client.get(f'/items/{quote(item, safe="")}').json()['id'] == item


def test_similar_takes_weights_and_conditions(client):
    how = dict(id='i20', weights='text=0,image=1', where=['price<60', 'price>5'], k=4)
    found = client.get('/similar', params=how).json()
    assert all(i['parts']['text'] == 0 for i in found['items'])
    for bad, said in (
        (dict(weights='text'), 'weights'),
        (dict(weights='text=1,image=1,text=2'), 'each modality once'),
        (dict(where='prise<4'), "'price'"),
        (dict(k=0), 'k:'),
    ):
        assert said in check_error(client.get('/similar', params=how | bad), 422)


IDS = ['a/b', '../c', 'ü', '<i>', *(f'i{k}' for k in range(9, 40))]
WEIGHTS = st.just(0.0) | st.floats(1e-20, 10)


@settings(max_examples=60, deadline=None)
@given(
    history=st.lists(st.sampled_from(IDS), min_size=1, max_size=12),
    item=st.sampled_from(IDS),
    text=WEIGHTS,
    image=WEIGHTS,
)
def test_the_reason_adds_up_to_the_score(index, history, item, text, image):
    weights = dict(text=text, image=image + 1e-3)
    shelf = shelf_of(index)
    reason = why(shelf, item, history, weights)
    by_item = sum(x for h in reason['history'] for x in h['parts'].values())
    found = recommend(shelf, history, 40, weights, repeat=True)['items']
    scores = {i['id']: i for i in found}
    assert abs(by_item - reason['score']) < 1e-6
    assert abs(sum(reason['parts'].values()) - reason['score']) < 1e-6
    if item in scores:
        assert abs(scores[item]['score'] - reason['score']) < 1e-6
        assert all(abs(scores[item]['parts'][m] - p) < 1e-6 for m, p in reason['parts'].items())
    else:
        assert reason['score'] == 0  # nothing to compare


# ---- new items


def new_item(**more):
    return dict(id='n/1', columns=dict(title='new', price=3), vectors=dict(text=[1.0] * 8, image=[1.0] * 5)) | more


def test_items_come_and_go(own):
    near = own.get('/similar', params=dict(id='i9', k=1)).json()['items']
    copy = {m: own.shop.shelf.index.vectors[m][9].tolist() for m in ('text', 'image')}
    added = own.post('/items', json=dict(items=[new_item(vectors=copy)]), headers=BEARER).json()
    assert added == dict(added=['n/1'], version=2, items=41)
    assert own.get('/similar', params=dict(id='i9', k=1)).json()['items'][0]['id'] == 'n/1'
    assert set(Index(own.shop.shelf.index.folder).ids) >= {'n/1'}  # a restart loses nothing
    assert own.get('/health').json()['items'] == 41
    assert "has 'n/1' already" in check_error(own.post('/items', json=dict(items=[new_item()]), headers=BEARER), 422)
    again = own.post('/items', json=dict(items=[new_item()], replace=True), headers=BEARER)
    assert again.json()['items'] == 41
    gone = own.delete('/items/n%2F1', headers=BEARER)
    assert gone.json() == dict(removed=['n/1'], version=4, items=40)
    assert own.get('/similar', params=dict(id='i9', k=1)).json()['items'] == near
    check_error(own.delete('/items', params=dict(id='n/1'), headers=BEARER), 404)


@pytest.mark.parametrize(
    'item, said',
    [
        (new_item(vectors=None), 'either vectors or contents'),
        (new_item(contents=dict(text='x')), 'either vectors or contents'),
        (new_item(vectors=None, contents=dict(text='x')), 'no model reads them'),
        (new_item(vectors=dict(text=[1.0])), 'text has 1 numbers, and the index has 8'),
        (new_item(vectors=dict(txt=[1.0] * 8)), "did you mean 'text'"),
        (new_item(vectors=dict(text=[1e300] * 8)), 'too large'),
        (new_item(columns=dict(titel='x')), "did you mean 'title'"),
        (new_item(columns=dict(price='dear')), 'the table cannot be kept'),
        (new_item(id=''), 'items.0.id is empty'),
        (new_item(more=1), 'items.0.more'),
    ],
)
def test_items_that_do_not_fit(own, item, said):
    assert said in check_error(own.post('/items', json=dict(items=[item]), headers=BEARER), 422)
    assert len(Index(own.shop.shelf.index.folder)) == 40


def test_two_items_of_one_id(own):
    check_error(own.post('/items', json=dict(items=[new_item(), new_item()]), headers=BEARER), 422)


def test_nobody_writes_without_the_token(own, client):
    body = dict(items=[new_item()])
    assert 'start the service with a token' in check_error(client.post('/items', json=body, headers=BEARER), 403)
    for headers in ({}, {'Authorization': 'Bearer x'}, {'Authorization': TOKEN}, {'Authorization': 'Bearer '}):
        check_error(own.post('/items', json=body, headers=headers), 401)
        answer = own.delete('/items', params=dict(id='i9'), headers=headers)
        check_error(answer, 401)
        assert answer.headers['www-authenticate'] == 'Bearer' and TOKEN not in answer.text
    assert len(Index(own.shop.shelf.index.folder)) == 40


def test_a_network_is_asked_for_the_token(index):
    far = client_of(index, token=TOKEN, locked=True, names=None, base_url='http://shop.example')
    assert [far.get(p).status_code for p in ('/', '/serve.js', '/serve.css')] == [200] * 3
    assert far.get('/health').json() == dict(live=True, ready=True, locked=True)
    for path in ('/items', '/similar?id=i9', '/metrics', '/pictures?id=i9', '/openapi.json', '/nil'):
        check_error(far.get(path), 401)
    assert far.get('/items', headers=BEARER).status_code == 200
    check_error(far.get('/health', headers={'Authorization': 'Bearer x'}), 401)


def test_questions_while_items_come_and_go(own):
    "Every answer is of one version: an id, its title and its score belong together."
    folder, wrong, done = own.shop.shelf.index.folder, [], threading.Event()

    def ask():
        while not done.is_set():
            answer = own.post('/recommend', json=dict(history=['i9'], k=40))
            found = answer.json().get('items', [])
            ids = [i['id'] for i in found]
            odd = [i for i in found if i['id'].startswith('n') and i['title'] != f'new {i["id"]}']
            if answer.status_code != 200 or len(set(ids)) < len(ids) or odd:
                wrong.append(answer.text)

    for method in (own.get, own.post, own.delete):
        method('/items', headers=BEARER)  # routes are made at the first question, and not for several threads at once
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(ask) for _ in range(2)]
        try:
            for k in range(12):
                item = new_item(id=f'n{k}', columns=dict(title=f'new n{k}'))
                added = own.post('/items', json=dict(items=[item]), headers=BEARER)
                assert added.status_code == 200, added.text
                if k % 3 == 2:
                    Index(folder).remove([f'n{k - 1}'])
                    own.shop.refresh()
        finally:  # where something fails here, nobody goes on asking
            done.set()
        [j.result() for j in jobs]
    assert not wrong, wrong[:2]
    assert len(own.shop.shelf.index) == 40 + 12 - 4


# ---- what is refused

POSTS = ('/recommend', '/why', '/items')
BODIES = {
    b'': 400,
    b'{': 400,
    b'\xff\xfe': 400,
    b'null': 422,
    b'[]': 422,
    b'"x"': 422,
    b'{}': 422,
    b'[' * 50_000: 400,
    b'{"history":' * 20_000: 400,
    b'{"history": ["i9"], "k": NaN}': 422,
    b'{"history": ["i9"], "k": 1e999}': 422,
    b'{"history": ["i9"], "k": 3.5}': 422,
    b'{"history": ["i9"], "k": "3"}': 422,
    b'{"history": ["i9"], "k": true}': 422,
    b'{"history": ["i9"], "k": 0}': 422,
    b'{"history": ["i9"], "k": -1}': 422,
    b'{"history": ["i9"], "k": 101}': 422,
    b'{"history": ["i9"], "k": 1' + b'0' * 5000 + b'}': 400,
    b'{"history": []}': 422,
    b'{"history": "i9"}': 422,
    b'{"history": [["i9"]]}': 422,
    b'{"history": [null]}': 422,
    b'{"history": ["nil"]}': 422,
    b'{"history": ["\\ud800"]}': None,
    b'{"history": ["\\u0000"]}': 422,
    b'{"history": ["i9"], "weights": {"text": -1, "image": 1}}': 422,
    b'{"history": ["i9"], "weights": {"text": 0, "image": 0}}': 422,
    b'{"history": ["i9"], "weights": {"text": Infinity, "image": 1}}': 422,
    b'{"history": ["i9"], "weights": {"txt": 1}}': 422,
    b'{"history": ["i9"], "weights": [1, 2]}': 422,
    b'{"history": ["i9"], "where": [["prise", "<", 3]]}': 422,
    b'{"history": ["i9"], "where": [["price", "~", 3]]}': 422,
    b'{"history": ["i9"], "where": [["price", "<", {"a": 1}]]}': 422,
    b'{"history": ["i9"], "where": [["price", "<", "dear"]]}': 422,
    b'{"history": ["i9"], "where": [["title", "in", "a"]]}': 422,
    b'{"history": ["i9"], "where": [["price", "<", 1' + b'0' * 400 + b']]}': None,
    b'{"history": ["i9"], "where": "price<3"}': 422,
    b'{"history": ["i9"], "diversity": 2}': 422,
    b'{"history": ["i9"], "repeat": 1}': 422,
    b'{"history": ["i9"], "hostory": 1}': 422,
    b'{"history": ["i9"], "history": ["i10"]}': 422,
    b'{"history": ["i9"], "k": 1, "\\u006b": 2}': 422,
    b'{"history": ["i9"], "weights": {"text": 1, "image": 1, "text": 0}}': 422,
    b'{"history": [' + b'"i9",' * 200 + b'"i9"]}': 422,
    b'{"history": ["' + b'x' * 2000 + b'"]}': 422,
}


@pytest.mark.parametrize('body', BODIES, ids=[b[:40].decode('latin-1') for b in BODIES])
def test_bodies_that_are_no_question(client, body):
    answer = client.post('/recommend', content=body, headers={'content-type': 'application/json'})
    if BODIES[body] is None and answer.status_code == 200:
        return
    check_error(answer, BODIES[body])


def test_what_is_too_long(client):
    long = b'{"history": ["' + b'x' * 300_000 + b'"]}'
    headers = {'content-type': 'application/json'}
    assert '262,144 bytes' in check_error(client.post('/recommend', content=long, headers=headers), 413)
    parts = (b'x' * 1000 for _ in range(400))  # without a length
    answer = client.post('/recommend', content=parts, headers=headers)
    check_error(answer, 413)
    assert answer.headers['connection'] == 'close'
    check_error(client.get('/items', params=dict(find='x' * 9000)), 414)
    check_error(client.get('/items', params=dict(find='x' * 300)), 422)


def test_many_items_at_once(tmp_path):
    few = client_of(small_index(tmp_path / 'index'), dict(items=2, upload=2000), token=TOKEN)
    items = [new_item(id=f'n{k}') for k in range(3)]
    assert 'items is 3' in check_error(few.post('/items', json=dict(items=items), headers=BEARER), 422)
    check_error(few.post('/items', json=dict(items=items * 9), headers=BEARER), 413)
    check_error(few.delete('/items', params=[('id', 'i9')] * 3, headers=BEARER), 422)


@pytest.mark.parametrize(
    'method, path, status',
    [
        ('GET', '/recommend', 405),
        ('PUT', '/recommend', 405),
        ('DELETE', '/recommend', 405),
        ('POST', '/similar/i9', 405),
        ('POST', '/health', 405),
        ('BREW', '/items', 405),
        ('GET', '/nil', 404),
        ('GET', '/docs', 404),
        ('GET', '/similar', 422),
        ('GET', '/similar/', 404),
        ('GET', '/similar/nil', 404),
        ('GET', '/items/nil', 404),
        ('GET', '/similar/i9?k=x', 422),
        ('GET', '/similar/i9?k=101', 422),
        ('GET', '/similar/i9?diversity=nan', 422),
        ('GET', '/items?start=-1', 422),
        ('GET', '/items?start=99999999999999999999', 422),
        ('GET', '/items?count=1000', 422),
        ('GET', '/pictures/i9', 404),
        ('GET', '/pictures/i9?side=100', 422),
        ('GET', '/../../etc/passwd', 404),
        ('GET', '/serve.js/../serve.py', 404),
        ('GET', '/%00', 404),
    ],
)
def test_addresses_and_methods(client, method, path, status):
    check_error(client.request(method, path), status)


def test_other_kinds_of_bodies(client):
    body = json.dumps(dict(history=['i9']))
    for kind in ('', 'text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data'):
        check_error(client.post('/recommend', content=body, headers={'content-type': kind}), 415)
    kind = {'content-type': 'Application/JSON; charset=utf-8'}
    assert client.post('/recommend', content=body, headers=kind).status_code == 200


@pytest.mark.parametrize(
    'headers, status',
    [
        ({'host': 'evil.example'}, 400),
        ({'host': 'evil.example:8000'}, 400),
        ({'host': 'localhost.evil.example'}, 400),
        ({'host': '127.0.0.1.evil.example'}, 400),
        ({'host': ''}, 400),
        ({'origin': 'http://evil.example'}, 403),
        ({'origin': 'null'}, 403),
        ({'origin': 'http://localhost:9999'}, 403),
        ({'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'no-cors'}, 403),
        ({'sec-fetch-site': 'same-site', 'sec-fetch-mode': 'cors'}, 403),
    ],
)
def test_pages_of_others_reach_nothing(client, headers, status):
    for path in ('/items', '/health', '/metrics'):
        check_error(client.get(path, headers=headers), status)
    check_error(client.post('/recommend', json=dict(history=['i9']), headers=headers), status)


def test_names_of_this_machine(client):
    for name in ('localhost', 'LOCALHOST:80', '127.0.0.1:8000', '[::1]:8000'):
        assert client.get('/health', headers={'host': name}).status_code == 200


def test_rates(index):
    slow = client_of(index, dict(rate=0.5, burst=3))
    answers = [slow.get('/health') for _ in range(5)]
    assert [a.status_code for a in answers] == [200] * 3 + [429] * 2
    check_error(answers[-1], 429)
    assert answers[-1].headers['retry-after'] == '2'


def test_too_much_to_do(index):
    class Slow:
        def history(self, index, ids):
            time.sleep(0.4)
            return {m: np.ones((1, d)) for m, d in index.modalities.items()}

    busy = client_of(index, dict(waiting=2), encoder=Slow())
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(busy.post, '/recommend', json=dict(history=['i9'])) for _ in range(6)]
        answers = [a.result() for a in asked]
    assert sorted(a.status_code for a in answers) == [200] * 2 + [503] * 4
    late = next(a for a in answers if a.status_code == 503)
    assert late.headers['retry-after'] == '1' and 'too many histories' in late.json()['error']
    assert next(a for a in answers if a.status_code == 200).json()['by'] == 'encoder'
    assert busy.post('/why', json=dict(history=['i9'], item='i10')).json()['history'][0]['parts'] is None


def test_a_fault_of_ours_shows_nothing(index, monkeypatch, caplog):
    def broken(*args, **kw):
        raise KeyError('a secret of the inside')

    monkeypatch.setattr(stock, 'recommend_all', broken)
    answer = client_of(index).get('/similar/i9')
    assert answer.status_code == 500 and answer.json() == dict(
        error='The service has made a mistake; its log says more.'
    )
    assert 'a secret of the inside' in caplog.text


def test_headers_of_every_answer(client):
    for answer in (client.get('/'), client.get('/nil'), client.get('/serve.js'), client.get('/health')):
        assert "default-src 'none'" in answer.headers['content-security-policy']
        assert answer.headers['x-content-type-options'] == 'nosniff'
        assert 'access-control-allow-origin' not in answer.headers


def test_counts_have_no_text_of_clients(index):
    counted = client_of(index)
    for path in ('/similar/i9', '/similar/secret-words', '/secret-words', '/items?find=secret-words'):
        counted.get(path)
    counted.request('SECRETWORDS', '/items')
    counted.get('/health', headers={'host': 'secret-words'})
    text = counted.get('/metrics').text
    assert 'secret' not in text.lower()
    assert 'vlm2rec_requests_total{path="/similar/{id:path}",status="404"} 1.0' in text
    assert 'vlm2rec_requests_total{path="other",status="404"} 1.0' in text
    assert 'vlm2rec_index_items 40.0' in text and 'vlm2rec_index_version 1.0' in text
    assert 'vlm2rec_request_seconds_bucket{le="0.05",path="/items"}' in text


def test_the_description_is_whole(client):
    found = client.get('/openapi.json').json()
    assert {'/recommend', '/why', '/items', '/similar/{id}'} <= set(found['paths'])
    item = found['paths']['/items']['post']['requestBody']['content']['application/json']['schema']
    assert 'vectors' in item['properties']['items']['items']['properties']


# ---- whatever hypothesis thinks of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(IDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        'history': st.lists(st.sampled_from(IDS) | st.text(), max_size=5) | JSON,
        'k': st.integers(-3, 120) | JSON,
        'weights': st.dictionaries(st.sampled_from(['text', 'image', 'x']), st.floats()) | JSON,
        'where': st.lists(
            st.tuples(st.sampled_from(['price', 'title', 'x']), st.sampled_from(['<', '=', 'in', 'x']), JSON),
            max_size=3,
        )
        | JSON,
        'diversity': st.floats() | JSON,
        'repeat': st.booleans() | JSON,
        'item': st.sampled_from(IDS) | JSON,
        'items': JSON,
    },
)
SEARCH = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope='module')
def writable(tmp_path_factory):
    return client_of(small_index(tmp_path_factory.mktemp('fuzz') / 'index'), token=TOKEN)


def check_any(answer):
    "Either an answer or an error as it should be."
    if answer.status_code not in (200, 204):
        check_error(answer)


@SEARCH
@given(path=st.sampled_from(POSTS), body=FIELDS | JSON)
def test_any_json(writable, path, body):
    check_any(writable.post(path, content=json.dumps(body), headers={'content-type': 'application/json'} | BEARER))


@SEARCH
@given(path=st.sampled_from(POSTS), body=st.binary(max_size=200))
def test_any_bytes(writable, path, body):
    check_any(writable.post(path, content=body, headers={'content-type': 'application/json'} | BEARER))


NEW = st.fixed_dictionaries(
    {'id': st.text(max_size=6) | JSON},
    optional={
        'columns': st.dictionaries(st.sampled_from(['title', 'price', 'x']), JSON),
        'vectors': st.dictionaries(
            st.sampled_from(['text', 'image', 'x']), st.lists(st.floats(), min_size=5, max_size=8) | JSON
        ),
        'contents': st.dictionaries(st.sampled_from(['text', 'image']), JSON),
    },
)


@SEARCH
@given(items=st.lists(NEW, max_size=3))
def test_any_new_items(writable, items):
    body = json.dumps(dict(items=items, replace=True))
    check_any(writable.post('/items', content=body, headers={'content-type': 'application/json'} | BEARER))
    assert writable.get('/health').json()['ready'] is True


@pytest.mark.parametrize(
    'method, path, said',
    [
        ('GET', '/similar?id=i9&k=3&k=5', 'k stands twice'),
        ('GET', '/similar?id=i9&wieght=text=1', "no parameter 'wieght'; did you mean 'weights'?"),
        ('GET', '/similar/i9?id=i10', "no parameter 'id'"),
        ('GET', '/items?fnd=mug', "did you mean 'find'?"),
        ('GET', '/items/i9?side=96', "no parameter 'side'"),
        ('GET', '/pictures?id=i9&sidde=96', "did you mean 'side'?"),
        ('DELETE', '/items?item=i9', "no parameter 'item'"),
    ],
)
def test_parameters_that_nobody_reads(client, method, path, said):
    assert said in check_error(client.request(method, path), 422)


@SEARCH
@given(
    method=st.sampled_from(['GET', 'POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS']),
    start=st.sampled_from(['/', '/similar/', '/items/', '/pictures/', '/items', '/metrics', '/similar']),
    rest=st.text(max_size=30),
    query=st.dictionaries(
        st.sampled_from(['id', 'k', 'weights', 'where', 'diversity', 'find', 'start', 'count', 'side']),
        st.text(max_size=20) | st.integers().map(str) | st.sampled_from(['i9', 'price<3', 'text=1,image=0']),
        max_size=4,
    ),
)
def test_any_address(client, method, start, rest, query):
    try:
        path = start + quote(rest, safe='')
    except UnicodeEncodeError:
        return
    answer = client.request(method, path, params={k: v.encode('utf-8', 'replace') for k, v in query.items()})
    if method == 'HEAD':
        assert answer.status_code < 500
    else:
        check_any(answer)


# ---- pictures


@pytest.fixture(scope='module')
def pictured(tmp_path_factory):
    "A client of an index with pictures, some of them traps."
    work = tmp_path_factory.mktemp('pictures')
    folder = work / 'images'
    (folder / 'a').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ('i9.png', 'i10.jpg', 'a/b.png', 'ü.webp', '../secret.png'):
        Image.fromarray(rng.integers(0, 255, (300, 200, 3)).astype(np.uint8)).save(folder / name)
    (folder / 'i11.png').write_text('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>')
    (folder / 'i12.jpg').write_bytes((folder / 'i9.png').read_bytes())
    (folder / 'i13.png').write_bytes((folder / 'i9.png').read_bytes()[:400])
    os.symlink(work / 'secret.png', folder / 'i14.png')
    Image.new('L', (30_000, 30_000)).save(folder / 'i15.png')
    named = [None] * 40
    named[16:22] = ['../secret.png', str(work / 'secret.png'), 'i9.png', '\0', '', 'a']
    index = small_index(work / 'index', file=named)
    return client_of(index, album=Album(folder), column='file')


def test_a_picture_as_it_is_and_small(pictured):
    whole = pictured.get('/pictures/i9')
    assert whole.headers['content-type'] == 'image/png'
    assert Image.open(io.BytesIO(whole.content)).size == (200, 300)
    small = pictured.get('/pictures/i9', params=dict(side=96))
    assert small.headers['content-type'] == 'image/jpeg'
    assert Image.open(io.BytesIO(small.content)).size == (64, 96)
    assert pictured.get('/pictures/i12').headers['content-type'] == 'image/png'  # by what it holds, not by its name
    for item in ('a/b', 'ü'):
        assert pictured.get('/pictures', params=dict(id=item)).status_code == 200
    assert pictured.get('/pictures/i18').content == whole.content  # named by the table
    assert pictured.get('/health').json()['pictures'] is True


@pytest.mark.parametrize('side', [None, 96])
@pytest.mark.parametrize(
    'item', ['i11', 'i13', 'i14', 'i15', 'i16', 'i17', 'i19', 'i21', 'i30', '../c', 'nil', '../secret']
)
def test_pictures_that_are_none(pictured, item, side):
    asked = dict(id=item) | ({'side': side} if side else {})
    answer = pictured.get('/pictures', params=asked)
    if item == 'i13' and side is None and answer.status_code == 200:
        return  # cut short: its head is that of a picture, and a browser shows what is there
    check_error(answer, 404)


def test_small_pictures_are_kept_and_bounded(pictured):
    album = pictured.shop.album
    album.most = 6000
    for item in ('i9', 'i10', 'a/b', 'ü', 'i12'):
        pictured.get('/pictures', params=dict(id=item, side=96))
    assert 0 < album.size <= 6000
    assert album.size == sum(len(p.data) for p in album.kept.values())


# ---- with a model


@pytest.mark.slow
def test_a_model_reads_histories_and_new_contents(tmp_path):
    import pandas as pd

    from vlm2rec_lab.embed import load_embedder
    from vlm2rec_lab.model.tiny import tiny_vlm
    from vlm2rec_lab.share.desk import Encoder, text_columns
    from vlm2rec_lab.share.index import build_index
    from vlm2rec_lab.shop.drawn import make_studio

    catalogue = make_studio('balanced', seed=0, items=30, users=10).catalogue
    for item, pixels in zip(catalogue.ids, catalogue.content['image']):
        Image.fromarray(pixels).save(tmp_path / f'{item}.png')
    model = load_embedder(tiny_vlm('even'))
    table = pd.DataFrame(dict(item_id=catalogue.ids, title=catalogue.table.title, words=catalogue.content['text']))
    index = build_index(tmp_path / 'index', model.encode_items(catalogue, progress=False), table)
    encoder = Encoder(model, text_columns(index, {'text': ['words']}), tuple(index.modalities), tmp_path.resolve())
    reads = client_of(index, token=TOKEN, encoder=encoder)
    history = list(catalogue.ids[:4])
    found = reads.post('/recommend', json=dict(history=history, k=5)).json()
    vectors = model.encode_sequences(catalogue, np.array([[0, 1, 2, 3]]), progress=False)
    expected = recommend(shelf_of(index), history, 5, vectors={m: v.numpy() for m, v in vectors.items()})
    assert found['by'] == 'encoder'
    assert [i['id'] for i in found['items']] == [i['id'] for i in expected['items']]
    contents = dict(
        text=catalogue.content['text'][7],
        image=base64.b64encode((tmp_path / f'{catalogue.ids[7]}.png').read_bytes()).decode(),
    )
    item = dict(id='new', columns=dict(title='new', words=contents['text']), contents=contents)
    assert reads.post('/items', json=dict(items=[item]), headers=BEARER).status_code == 200
    near = reads.get('/similar', params=dict(id=catalogue.ids[7], k=1)).json()['items'][0]
    assert near['id'] == 'new' and near['score'] > 0.999
    assert reads.post('/recommend', json=dict(history=['new'])).json()['by'] == 'encoder'
    for contents in (dict(image='!'), dict(image='AAAA'), dict(sound='x')):
        bad = dict(items=[dict(id='x', contents=contents)])
        check_error(reads.post('/items', json=bad, headers=BEARER), 422)


# ---- what goes on below a service


def test_a_folder_that_is_gone_is_told_and_answers_go_on(own, tmp_path):
    shutil.rmtree(tmp_path / 'index')
    new = dict(id='new', columns=dict(title='x', price=1.0), vectors=dict(text=[1.0] * 8))
    check_unwritten(own.post('/items', json=dict(items=[new]), headers=BEARER))
    check_unwritten(own.delete('/items/i9', headers=BEARER))
    assert own.post('/recommend', json=dict(history=['i9'])).status_code == 200


def check_unwritten(answer):
    "An answer says that the index cannot be written now, and when to come back."
    assert answer.status_code == 503 and int(answer.headers['retry-after']) > 0, answer.text
    assert set(answer.json()) == {'error'}


def test_a_full_disk_is_told(own, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('vlm2rec_lab.share.index.put_manifest', full)
    check_unwritten(own.delete('/items/i9', headers=BEARER))


def test_another_writer_is_not_waited_for_without_end(tmp_path):
    client = client_of(small_index(tmp_path / 'index'), dict(seconds=0.2), token=TOKEN)
    with sole_writer(tmp_path / 'index'):
        check_unwritten(client.delete('/items/i9', headers=BEARER))
    assert client.delete('/items/i9', headers=BEARER).status_code == 200


def test_whatever_hinders_a_newer_version_is_told(own, monkeypatch):
    def broken(self):
        raise RecursionError('too deep')

    monkeypatch.setattr(Index, 'refresh', broken)
    own.shop.refresh()
    assert not own.get('/health').json()['ready']
    monkeypatch.undo()
    own.shop.refresh()
    assert own.get('/health').json()['ready']


def test_an_index_without_the_column_of_pictures(tmp_path):
    small_index(tmp_path / 'index', picture=['x.png'] * 40)
    Image.new('RGB', (8, 8)).save(tmp_path / 'i9.png')
    client = client_of(Index(tmp_path / 'index'), album=Album(tmp_path), column='picture')
    check_error(client.get('/pictures/i9'), 404)
    small_index(tmp_path / 'index')
    client.shop.refresh()
    assert client.get('/pictures/i9').status_code == 200


def test_a_damaged_picture_is_none(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype='uint8')).save(file, 'PNG')
    data = bytearray(file.getvalue())
    at = data.index(b'IEND')
    data[at : at + 4] = b'\x14\x1e\xd5z'
    (tmp_path / 'x.png').write_bytes(data)
    at = data.index(b'IDAT')
    data[at - 1] = 9  # a shorter piece, so that the next one begins in the midst of it
    (tmp_path / 'y.png').write_bytes(data)
    with pytest.raises((ValueError, OSError)):
        open_image(tmp_path / 'y.png')
    assert Album(tmp_path).picture('y', 'y.png', 96) is None


def test_long_conditions_hold_up_nobody(client):
    begun = time.process_time()
    check_error(client.get('/similar/i9', params=dict(where='x' + ' ' * 7000 + 'y')), 422)
    check_error(client.get('/similar/i9', params=dict(where='title in a\rb')), 422)
    assert time.process_time() - begun < 2


def test_columns_of_lists_are_shown(tmp_path):
    client = client_of(small_index(tmp_path / 'index', tags=[['a', 'b']] * 40))
    assert client.get('/items/i9').json()['columns']['tags'] == 'a, b'
