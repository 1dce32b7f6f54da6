"""Links: which ones are followed, which addresses are public, what a run keeps. The hostile web is in test_images."""

import io
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from PIL import Image

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.fetch import (
    _addresses,
    _hopeless,
    _retry_after,
    _shown,
    _Ways,
    fetch_images,
    host_rules,
    is_public,
    split_link,
)
from vlm2rec_lab.shop.images import ImageFault, read_manifest, with_images

# links

RULES = host_rules(['img.shop.example', '*.cdn.example', 'shop.example:8080', 'bücher.example'])


@pytest.mark.parametrize(
    'url, parts',
    [
        ('https://img.shop.example/a b.jpg?w=1#x', ('https', 'img.shop.example', 443, '/a%20b.jpg?w=1')),
        ('http://a.b.cdn.example', ('http', 'a.b.cdn.example', 80, '/')),
        ('http://BÜCHER.example./ü.png', ('http', 'xn--bcher-kva.example', 80, '/%C3%BC.png')),
        ('http://shop.example:8080', ('http', 'shop.example', 8080, '/')),
    ],
)
def test_links_that_are_followed(url, parts):
    assert split_link(url, RULES) == parts


@pytest.mark.parametrize(
    'url',
    [
        'http://img.shop.example:81/',
        'http://cdn.example/',
        'http://shop.example/',
        'http://u:p@img.shop.example/',
        'file:///etc/passwd',
        'http://2130706433/',
        'http://xcdn.example/',
        'http://img.shop.example.evil.example/',
        'http://img.shop.example@evil.example/',
        'http://evil.example/img.shop.example',
        'http://img.shop.example:99999/',
        'http://img.shop.example\\@evil.example/',
        'http://[::1',
        'http:///x',
        '//img.shop.example/',
        'ftp://img.shop.example/',
        'data:image/png;base64,x',
        'javascript:1',
        '',
        'http://img.shop.exam\nple/',
        'http://0x7f.1/',
        'http://127.1/',
        'http://[::ffff:127.0.0.1]/',
        'http://%69mg.shop.example/',
        'http://' + 'a' * 70 + '.cdn.example/',
    ],
)
def test_links_that_are_not_followed(url):
    with pytest.raises(ImageFault, match='not allowed'):
        split_link(url, RULES)


@pytest.mark.parametrize(
    'hosts, rules',
    [
        (['127.0.0.1:8000', '[::1]:81', '::1'], (('127.0.0.1', 8000), ('::1', 81), ('::1', None))),
        ('A.example', (('a.example', None),)),
        (['bücher.example'], (('xn--bcher-kva.example', None),)),
        (['*.a.example:81'], (('*.a.example', 81),)),
    ],
)
def test_rules(hosts, rules):
    assert host_rules(hosts) == rules


@pytest.mark.parametrize(
    'text',
    [
        '*',
        '*.com',
        'http://a.example',
        '',
        'a.example/x',
        '127.1',
        '0x7f.1',
        'a.example:0',
        'a.example:99999',
        'a*.example',
    ],
)
def test_rules_that_name_no_host(text):
    with pytest.raises(DataError, match='names no host'):
        host_rules([text])


# addresses


@pytest.mark.parametrize(
    'address',
    [
        '127.0.0.1',
        '127.8.8.8',
        '0.0.0.0',
        '10.1.2.3',
        '172.16.0.1',
        '192.168.1.1',
        '192.0.2.1',
        '198.18.0.1',
        '169.254.169.254',
        '100.64.0.1',
        '224.0.0.1',
        '240.0.0.1',
        '255.255.255.255',
        '239.1.1.1',
        '::',
        '::1',
        'fc00::1',
        'fd12::1',
        'fe80::1',
        'ff02::1',
        'fec0::1',
        '::ffff:127.0.0.1',
        '::ffff:8.8.8.8',
        '::127.0.0.1',
        '64:ff9b::7f00:1',
        '2002:7f00:1::',
        '2001:0:7f00:1::',
        '2001:db8::1',
        'fe80::1%eth0',
        '2606:2800:220:1::%lo',
        'localhost',
        '127.1',
        '',
    ],
)
def test_addresses_at_home(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    'address', ['1.1.1.1', '8.8.8.8', '93.184.216.34', '2001:4860:4860::8888', '2606:2800:220:1::']
)
def test_addresses_in_the_open_internet(address):
    assert is_public(address)


def test_a_host_with_one_private_address():
    "It is closed, unless it was permitted with its port."

    def both(host, port):
        return ['93.184.216.34', '10.0.0.1']

    ways = _Ways(RULES, host_rules(['shop.example:8080']), both, 5, 5, 100, 3)
    assert _addresses('http', 'shop.example', 8080, ways) == both('', 0)
    for host in ('img.shop.example', 'shop.example'):
        with pytest.raises(ImageFault, match='private address'):
            _addresses('http', host, 80, ways)


# small things


@pytest.mark.parametrize('text, seconds', [('7', 7), ('soon', None), (None, None), ('', None), ('-3', None)])
def test_retry_after(text, seconds):
    assert _retry_after(text) == seconds


def test_what_is_hopeless():
    reasons = ('HTTP 404', 'HTTP 410', 'not an image', 'HTTP 429', 'HTTP 500', 'HTTP 4', 'timeout')
    assert [r for r in reasons if _hopeless(dict(reason=r))] == ['HTTP 404', 'HTTP 410', 'not an image']


def test_passwords_are_not_shown():
    assert _shown('http://user:secret@a.example/x@y') == 'http://***@a.example/x@y'
    assert _shown('http://a.example/x@y') == 'http://a.example/x@y'


# a small shop


class Shop(BaseHTTPRequestHandler):
    "Four pictures, one that has moved, a page of text, and a picture that is gone."

    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        name = self.path.strip('/')
        self.send_response({'old.jpg': 301, 'p5.jpg': 404}.get(name, 200))
        if name == 'old.jpg':
            self.send_header('Location', '/p3.jpg')
        body = b'<html>sold out</html>'
        if name in ('p0.jpg', 'p1.jpg', 'p2.jpg', 'p3.jpg'):
            out = io.BytesIO()
            Image.new('RGB', (60, 50), (50 * int(name[1]), 0, 0)).save(out, 'BMP')  # all of one size
            body = out.getvalue()
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server():
    with ThreadingHTTPServer(('127.0.0.1', 0), Shop) as s:
        s.daemon_threads, s.asked = True, []
        threading.Thread(target=s.serve_forever, daemon=True).start()
        s.here = f'127.0.0.1:{s.server_port}'
        yield s
        s.shutdown()


@pytest.fixture
def shop(server):
    links = [f'http://{server.here}/{n}.jpg' for n in ('p0', 'p1', 'p2', 'old', 'p4', 'p5')]
    ids = [f'p{i}' for i in range(8)]
    table = pd.DataFrame({'image_url': links + ['http://169.254.169.254/secret', None]})
    return Catalogue(ids, {'text': ids}, {'text': 'text'}, table)


def fetch(server, shop, folder, **how):
    "The manifest, without warnings."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return fetch_images(shop, folder, **(dict(hosts=[server.here], private=[server.here]) | how))


def test_a_second_run_asks_for_what_is_missing(server, shop, tmp_path):
    first = fetch(server, shop, tmp_path)
    assert first.counts() == {'ok': 4, 'not an image': 1, 'HTTP 404': 1, 'not allowed': 1}
    server.asked.clear()
    assert fetch(server, shop, tmp_path).counts() == first.counts() == read_manifest(tmp_path).counts()
    assert server.asked == []
    (tmp_path / first.rows.file[0]).write_bytes(b'damaged')
    fetch(server, shop, tmp_path)
    assert server.asked == ['/p0.jpg']
    server.asked.clear()
    fetch(server, shop, tmp_path, again=True)
    assert sorted(server.asked) == ['/p4.jpg', '/p5.jpg']


def test_a_limit_on_all_that_is_kept(server, shop, tmp_path):
    size = fetch(server, shop, tmp_path / 'all').rows.bytes[0]
    counts = fetch(server, shop, tmp_path / 'some', workers=1, max_total=2 * size + 9).counts()
    assert counts['ok'] == 2
    assert counts['total limit'] >= 2


def test_links_of_the_manifest_are_matched_to_items(server, shop, tmp_path):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        got = with_images(shop, fetch(server, shop, tmp_path))
    assert got.missing()['image'].tolist() == [False] * 4 + [True] * 4
    said = str(heard[0].message)
    assert '1 not an image' in said and '1 no link' in said and '1 HTTP 404' in said
