"""Hostile links, seeded: none gets through to an address that was not allowed, and each has a line in the manifest.

All servers are on the loopback address. Connections are counted where they are opened.
"""

import io
import ipaddress
import socket
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

import vlm2rec_lab.shop.fetch as fetching
from vlm2rec_lab.base.errors import DataWarning
from vlm2rec_lab.shop.fetch import fetch_images, is_public
from vlm2rec_lab.shop.images import read_manifest

SHOP, OTHER = 'img.shop.example', 'cdn.shop.example'


def picture():
    "The bytes of a small picture."
    out = io.BytesIO()
    Image.new('RGB', (40, 30), 'red').save(out, 'PNG')
    return out.getvalue()


GOOD = picture()


class Shop(BaseHTTPRequestHandler):
    "Answers by the first part of the path; `/go/<link>` leads there."

    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def answer(self, data, status=200, **more):
        "One whole answer."
        self.send_response(status)
        for name, value in ({'Content-Length': str(len(data))} | more).items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.server.asked.append((self.headers.get('Host'), self.path))
        kind, _, rest = self.path[1:].partition('/')
        self.close_connection = True
        try:
            getattr(self, 'do_' + kind.replace('-', '_'), self.do_ok)(rest)
        except OSError:
            pass  # the reader hung up

    def do_ok(self, rest):
        self.answer(GOOD)

    def do_go(self, rest):
        link = bytes.fromhex(rest).decode('utf-8', 'surrogateescape').encode('latin-1', 'replace').decode('latin-1')
        self.answer(b'', 302, Location=''.join(ch for ch in link if ch not in '\r\n') or '/')

    def do_page(self, rest):
        self.answer(b'<html>file not found</html>', Content_Type='image/png')

    def do_typed(self, rest):
        self.answer(GOOD, Content_Type='text/html')

    def do_packed(self, rest):
        self.answer(GOOD, Content_Encoding='gzip')

    def do_boast(self, rest):
        self.answer(GOOD, Content_Length='900000000000')

    def do_huge(self, rest):
        self.send_response(200)
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(bytes(65536))

    def do_slow(self, rest):
        self.send_response(200)
        self.send_header('Content-Length', '900')
        self.end_headers()
        for _ in range(900):
            self.wfile.write(b'x')
            time.sleep(0.05)

    def do_short(self, rest):
        self.answer(GOOD[:40], Content_Length='4000')

    def do_noise(self, rest):
        self.wfile.write(b'\x00\xff' * 200)

    def do_status(self, rest):
        self.answer(GOOD, int(rest))


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # a link that waits in the queue would time out


@pytest.fixture(scope='module')
def shop():
    with Server(('127.0.0.1', 0), Shop) as server:
        server.daemon_threads, server.asked = True, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


# the loopback and private addresses in all the ways in which people have written them
NOWHERE = (
    '127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0x7f.0.0.1 0177.0.0.1 017700000001 0 0.0.0.0 localhost LOCALHOST. '
    '[::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [0:0:0:0:0:0:0:1] [64:ff9b::7f00:1] [2002:7f00:1::] [fe80::1%25lo] '
    '10.0.0.1 192.168.0.1 172.16.5.5 169.254.169.254 100.64.0.1 [fd00::1] [fe80::1] metadata.google.internal '
    '127.0.0.1.nip.io localtest.me ①②⑦.⓪.⓪.① 127。0。0。1 1２7.0.0.1 127.0.0.1. 224.0.0.1 255.255.255.255'
).split()
SCHEMES = (
    'http',
    'https',
    'HTTP',
    'file',
    'ftp',
    'gopher',
    'data',
    'javascript',
    'jar:http',
    'dict',
    'unix',
    '',
    'view-source',
)
PORTS = ('', ':80', ':22', ':0', ':65536', ':-1', ':8080', ':٨٠', ':80:80', ':')
USERS = ('', 'u@', 'u:p@', f'{SHOP}@', f'{SHOP}:80@', '@', f'{SHOP}%40', f'{SHOP}\\@', f'{SHOP}#@', f'{SHOP}?@')
PATHS = (
    '',
    '/',
    '/ok/1.png',
    '//evil.example/',
    '/../../etc/passwd',
    '/%2e%2e/',
    '?x=http://127.0.0.1',
    '#f',
    '/a\tb',
    '/\r\nHost: x',
)
BARE = (
    'file:///etc/passwd',
    'file://localhost/etc/passwd',
    '/etc/passwd',
    '//127.0.0.1/',
    'http:127.0.0.1',
    'http:/127.0.0.1/',
)


def hostile(rng, port):
    "A link that must lead nowhere."
    if rng.random() < 0.1:
        return str(rng.choice(BARE))
    where = str(rng.choice([*NOWHERE, 'evil.example', f'{SHOP}.evil.example', f'evil-{SHOP}', '']))
    ports = [*PORTS, f':{port}']
    parts = str(rng.choice(SCHEMES)), str(rng.choice(USERS)), where, str(rng.choice(ports)), str(rng.choice(PATHS))
    link = '{}://{}{}{}{}'.format(*parts)
    if rng.random() < 0.15:
        at = int(rng.integers(0, len(link)))
        link = (
            link[:at]
            + str(rng.choice(['\x00', '\n', '\t', '\u202e', '\\', ' ', '%00', '\ud800', '\u200b']))
            + link[at:]
        )
    return link


WAYS = (
    'page',
    'packed',
    'boast',
    'huge',
    'slow',
    'short',
    'noise',
    'status/404',
    'status/500',
    'status/206',
    'status/999',
)
PRIVATE = ('10.0.0.1', '169.254.169.254', '::1', '::ffff:127.0.0.1', '0.0.0.0', 'fd00::1', '127.0.0.2')


class Watch:
    "Counts where sockets are opened to; a resolver of names that lies as a hostile name server would."

    def __init__(self, port, monkeypatch):
        self.port, self.opened, real = port, [], socket.socket.connect

        def connect(sock, address):
            self.opened.append(address[:2])
            return real(sock, address)

        def addresses_only(host, *args, known=socket.getaddrinfo, **kw):
            ipaddress.ip_address(host)  # the name service of the system is never asked
            return known(host, *args, **kw)

        monkeypatch.setattr(socket.socket, 'connect', connect)
        monkeypatch.setattr(fetching.socket, 'getaddrinfo', addresses_only)

    def resolve(self, host, port):
        "The shop is here; a host `p<k>` of the other name leads to a private address; an address is itself."
        if host == SHOP:
            return ['127.0.0.1']
        if host.endswith(OTHER):
            return ['8.8.8.8', PRIVATE[int(host[1])]] if host[0] == 'p' else [PRIVATE[int(host[1])]]
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            raise OSError('no such host') from None


def test_links(shop, tmp_path, monkeypatch):
    rng, port, end = np.random.default_rng(0), shop.server_port, time.monotonic() + 22
    watch, here = Watch(port, monkeypatch), f'http://{SHOP}:{port}'
    hosts = [f'{SHOP}:{port}', f'*.{OTHER}', f'*.{OTHER}:{port}', '127.0.0.1', f'127.0.0.1:{port}', '10.0.0.1', '::1']
    how = dict(private=[f'{SHOP}:{port}'], retries=0, timeout=2, patience=6, max_bytes=100_000, progress=False)
    cases = good = refused = lost = through = rounds = 0
    while time.monotonic() < end and cases < 3000:
        expected = {}
        for k in range(150):
            kind = rng.integers(0, 6)
            link = f'{here}/ok/{rounds}-{k}.png'
            if kind == 1:
                link = f'{here}/go/{hostile(rng, port).encode("utf-8", "surrogatepass").hex()}'
            elif kind == 2 and rng.random() < 0.3:
                link = f'{here}/{rng.choice(WAYS)}' + (f'?{k}' if rng.random() < 0.5 else '')
            elif kind == 3:
                sub = f'{rng.choice(["p", "q"])}{rng.integers(0, len(PRIVATE))}.{OTHER}'
                link = f'http://{sub}{rng.choice(["", f":{port}"])}/ok/{k}.png'
            elif kind in (4, 5):
                link = hostile(rng, port)
            expected[link] = kind in (0,) or link.startswith(f'{here}/ok/')
        links = [u for u in expected if u.strip()]
        folder, before = tmp_path / f'got-{rounds}', len(watch.opened)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter('always')
            manifest = fetch_images(links, folder, hosts, workers=16, resolve=watch.resolve, **how)
        assert all(w.category is DataWarning for w in heard), [str(w.message) for w in heard]
        rows = manifest.rows
        # each link has its line, in the table and on the disk; what failed says why, and is counted
        wanted = list(dict.fromkeys(u.strip() for u in links))
        lost += len(wanted) - len(rows) + int((rows.reason[rows.status != 'ok'] == '').sum())
        assert len(read_manifest(folder).rows) == rows.source.nunique()
        assert f'{(rows.status != "ok").sum():,} picture' in str(heard[0].message)
        for link, (_, row) in zip(wanted, rows.iterrows()):
            fine = expected[link] if link in expected else False
            redirected = link.startswith(f'{here}/go/')
            if row.status == 'ok':
                good += 1
                assert (folder / row.file).read_bytes() == GOOD
                # a redirect may end on the shop itself, nowhere else
                through += not (fine or redirected or link.startswith(f'{here}/'))
            else:
                refused += 1
                assert not fine, (link, row.reason, row.detail)
        # sockets were opened to the shop alone
        through += sum(where != ('127.0.0.1', port) for where in watch.opened[before:])
        cases, rounds = cases + len(wanted), rounds + 1
    through += sum(host != f'{SHOP}:{port}' for host, _ in shop.asked)
    print(f'links: {cases} cases, {good} fetched, {refused} refused, {through} got through, {lost} lost in silence')
    assert (through, lost, good + refused) == (0, 0, cases) and min(good, refused) > cases / 10
    assert not list(tmp_path.rglob('passwd'))


def test_the_watch_sees_what_gets_through(shop, tmp_path, monkeypatch):
    "With the check of addresses off, sockets open to other places: the test above could fail."
    watch = Watch(shop.server_port, monkeypatch)
    monkeypatch.setattr(fetching, 'is_public', lambda address: True)
    link = f'http://q6.{OTHER}:{shop.server_port}/ok/1.png'
    how = dict(retries=0, timeout=0.5, patience=1, progress=False, resolve=watch.resolve)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        fetch_images([link], tmp_path, [f'*.{OTHER}:{shop.server_port}'], **how)
    assert [where for where in watch.opened if where[0] == '127.0.0.2']
    assert not is_public('127.0.0.2')
