"""The service in a process of its own: what a socket can do to it, newer versions of the index, signals, the token, and
what it imports."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image
from share_servers import BEARER, TOKEN, bounded, server, small_index

from vlm2rec_lab.cli import main
from vlm2rec_lab.share.index import Index

pytestmark = pytest.mark.processes


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return small_index(tmp_path_factory.mktemp('shop') / 'index').folder


def ask(address, path, body=None, method=None, **headers):
    "Status and what the JSON says, by a client that sends a path as it is."
    data = None if body is None else json.dumps(body).encode()
    kind = {'Content-Type': 'application/json'} if body is not None else {}
    request = urllib.request.Request(address + path, data, kind | headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def raw(address, *parts, seconds=60.0, pause=0.0):
    "What comes back for bytes on a socket, until the other side closes; and after how many seconds it did."
    where, begun, found = urlsplit(address), time.monotonic(), b''
    with socket.create_connection((where.hostname, where.port), timeout=seconds) as s:
        try:
            for part in parts:
                s.sendall(part)
                time.sleep(pause)
        except OSError:
            pass  # it was closed meanwhile
        try:
            while piece := s.recv(65536):
                found += piece
        except ConnectionError:
            pass
    return found, time.monotonic() - begun


HEAD = b'POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'


def test_a_body_without_an_end_is_cut_off(folder):
    "Chunks come without an end; the answer is there, and the connection is closed, long before."
    with bounded(folder, 'seconds=5, body=100_000') as running:
        where, sent = urlsplit(running.address), 0
        with socket.create_connection((where.hostname, where.port), timeout=300) as s:
            s.sendall(HEAD + b'Transfer-Encoding: chunked\r\n\r\n')
            chunk = b'4000\r\n' + b'x' * 0x4000 + b'\r\n'
            with pytest.raises(OSError):
                while sent < 200_000_000:
                    s.sendall(chunk)
                    sent += len(chunk)
        assert sent < 50_000_000
        assert ask(running.address, '/health')[0] == 200
        assert 'path="/recommend",status="413"' in text_of(running.address, '/metrics')


def text_of(address, path):
    "The text of an answer."
    with urllib.request.urlopen(address + path, timeout=300) as answer:
        return answer.read().decode()


def test_what_comes_too_slowly_is_not_waited_for(folder):
    with bounded(folder, 'seconds=1') as running:
        found, took = raw(running.address, HEAD + b'Content-Length: 100\r\n\r\n', b'{"hist')
        assert b' 408 ' in found and b'did not arrive within 1 seconds' in found and took < 60
        for slow in ((), (b'GET / HT',), (b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET / H',)):
            found, took = raw(running.address, *slow)
            assert 0.5 < took < 60 and found.count(b'HTTP/1.1') == (len(slow[0]) > 10 if slow else 0)
        drip = (b'GET /health HTTP/1.1\r\nHost: localhost\r\n', *(b'X-%d: y\r\n' % k for k in range(250)))
        assert raw(running.address, *drip, pause=0.3)[1] < 60  # of the 75 that the drip would take
        assert ask(running.address, '/health')[0] == 200


@pytest.mark.parametrize(
    'sent',
    [
        b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',  # TLS on a plain port
        b'GET / HTTP/9.9\r\n\r\n',
        b'GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n',
        b'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
        b'GET / HTTP/1.1\r\n' + b'X: ' + b'y' * 200_000 + b'\r\n\r\n',
        HEAD + b'Content-Length: -5\r\n\r\n',
        HEAD + b'Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello',
        HEAD + b'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n',
        HEAD + b'Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n',
    ],
    ids=range(9),
)
def test_what_is_no_http_is_answered_in_json(running, sent):
    found, _ = raw(running.address, sent)
    head, _, body = found.partition(b'\r\n\r\n')
    assert re.match(rb'HTTP/1\.1 4\d\d ', head), found[:200]
    assert len(json.loads(body)['error']) > 10
    assert ask(running.address, '/health')[0] == 200


@pytest.fixture(scope='module')
def running(folder):
    "A server with wide limits."
    with bounded(folder, 'rate=1e9, burst=10**9, seconds=5') as found:
        yield found


def test_many_connections(folder):
    with bounded(folder, 'connections=8, seconds=20, rate=1e9') as few:
        where = urlsplit(few.address)
        held = [socket.create_connection((where.hostname, where.port)) for _ in range(8)]
        time.sleep(0.3)
        found, _ = raw(few.address)
        assert b' 503 ' in found and b'too many connections' in found
        for s in held:
            s.close()
        time.sleep(0.3)
        assert ask(few.address, '/health')[0] == 200


def test_ids_travel_as_they_are(running):
    for item in ('a/b', '../c', 'd?e=f&g', 'ü', '<i>', 'l%2Fm', '.'):
        status, found = ask(running.address, f'/similar/{quote(item, safe="")}')
        assert (status, found['item']) == (200, item)
        assert ask(running.address, f'/similar?id={quote(item, safe="")}')[1] == found


def test_tricks_with_paths(running):
    for path in (
        '/../../etc/passwd',
        '/..%2f..%2fetc/passwd',
        '//etc/passwd',
        '/serve.js/..',
        '/items/..%2f',
        '/%2e%2e/',
    ):
        status, found = ask(running.address, path)
        assert status == 404 and 'root:' not in str(found)


def test_newer_versions_are_seen(tmp_path):
    index = small_index(tmp_path / 'index')
    with server(index.folder, '--port', 0) as running:
        assert ask(running.address, '/similar?id=new')[0] == 404
        code = (
            'import sys, numpy as np, pandas as pd\n'
            'from vlm2rec_lab.share.index import Index\n'
            'table = pd.DataFrame(dict(item_id=["new"], title=["new"], price=[1.0]))\n'
            'Index(sys.argv[1]).add(dict(text=np.ones((1, 8))), table)'
        )
        subprocess.run([sys.executable, '-c', code, str(index.folder)], check=True)
        written = time.monotonic()
        while ask(running.address, '/similar?id=new')[0] != 200:
            assert time.monotonic() - written < 60  # a second, or a busy machine
            time.sleep(0.05)
        assert ask(running.address, '/health')[1]['version'] == 2


def test_a_damaged_index_is_told_and_the_old_one_serves(tmp_path):
    index = small_index(tmp_path / 'index')
    with server(index.folder, '--port', 0) as running:
        good = (index.folder / 'index.json').read_bytes()
        (index.folder / 'index.json').write_bytes(b'{')
        time.sleep(1)
        found = ask(running.address, '/health')[1]
        assert (found['ready'], found['items']) == (False, 40) and 'cannot be read' in found['trouble']
        assert ask(running.address, '/recommend', dict(history=['i9']))[0] == 200
        (index.folder / 'index.json').write_bytes(good)
        time.sleep(1)
        assert ask(running.address, '/health')[1]['ready'] is True


def test_a_restart_loses_nothing(tmp_path):
    index = small_index(tmp_path / 'index')
    item = dict(id='new', columns=dict(title='new', price=1), vectors=dict(text=[1.0] * 8))
    with server(index.folder, '--port', 0, VLM2REC_TOKEN=TOKEN) as running:
        assert ask(running.address, '/items', dict(items=[item]), **BEARER)[0] == 200
        running.kill()  # at once, not gently
    with server(index.folder, '--port', 0) as running:
        assert ask(running.address, '/items/new')[1]['title'] == 'new'
        status, found = ask(running.address, '/items', dict(items=[item]), **BEARER)
        assert status == 403 and 'start the service with a token' in found['error']
    assert 'new' in set(Index(index.folder).ids)


SLOW = """
import time
import numpy as np

class Slow:
    def history(self, index, ids):
        time.sleep(1.5)
        return {m: np.ones((1, d)) for m, d in index.modalities.items()}

shop.encoder = Slow()
"""


@pytest.mark.parametrize('sign', [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_answered_before_the_end(folder, sign):
    with bounded(folder, '', SLOW) as running:
        found = []
        thread = threading.Thread(target=lambda: found.append(ask(running.address, '/recommend', dict(history=['i9']))))
        thread.start()
        time.sleep(0.7)
        running.send_signal(sign)
        thread.join(300)
        assert found[0][0] == 200 and found[0][1]['by'] == 'encoder'
        assert running.wait(300) == 0
        with pytest.raises(OSError):
            ask(running.address, '/health')
        assert running.stderr.read() == ''


def test_the_command_ends_gently(folder):
    with server(folder, '--port', 0) as running:
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=300)
        assert (running.returncode, out, err) == (0, 'stopped\n', '')


def test_without_a_model_no_torch_is_loaded(folder):
    with server(folder, '--port', 0) as running:
        ask(running.address, '/recommend', dict(history=['i9'], where=[['price', '<', 60]], diversity=0.3))
        ask(running.address, '/why', dict(history=['i9'], item='i10'))
        maps = Path(f'/proc/{running.pid}/maps')
        if not maps.exists():
            pytest.skip('the system does not say what a process has loaded')
        assert 'libtorch' not in maps.read_text()
        assert re.search(r'ready after \d+\.\d s', running.lines[0])


def test_the_token_is_nowhere_to_be_seen(folder, tmp_path):
    (tmp_path / 'token').write_text(TOKEN + '\n')
    with server(folder, '--port', 0, '--host', '0.0.0.0', '--token-file', tmp_path / 'token') as running:
        address = running.address.replace('0.0.0.0', '127.0.0.1')
        assert ask(address, '/items')[0] == 401
        assert ask(address, '/items', **BEARER)[0] == 200
        assert ask(address, '/items', Authorization=f'Bearer {TOKEN[:-1]}x')[0] == 401
        assert TOKEN not in Path(f'/proc/{running.pid}/cmdline').read_text()
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=300)
        assert TOKEN not in ''.join(running.lines) + out + err


def test_clients_behind_a_proxy(folder):
    "Whom a proxy names is believed where it is the proxy that was named, and nowhere else."
    for proxy, expected in ((['--proxy', '127.0.0.1'], [200] * 6), ([], [200] * 4 + [429] * 2)):
        with server(folder, '--port', 0, '--rate', 2, *proxy) as running:
            found = [ask(running.address, '/health', **{'X-Forwarded-For': f'10.0.0.{k}'})[0] for k in range(6)]
            assert found == expected


def test_names_behind_a_proxy(folder):
    with server(folder, '--port', 0, '--name', 'shop.example') as running:
        assert ask(running.address, '/health', Host='shop.example')[0] == 200
        assert ask(running.address, '/health', Host='evil.example')[0] == 400


def test_a_port_that_is_taken(folder):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        argv = [sys.executable, '-m', 'vlm2rec_lab', 'serve', str(folder), '--port', str(port)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'choose another --port' in done.stderr


@pytest.mark.parametrize(
    'argv, said',
    [
        (['nil'], 'there is no index in nil: make one with `vlm2rec index build`'),
        (['.', '--port', '70000'], "'70000' is no port"),
        (['INDEX', '--host', '0.0.0.0'], 'give a token, by --token-file or in VLM2REC_TOKEN'),
        (['INDEX', '--token-file', 'nil'], 'there is no file nil'),
        (['INDEX', '--model', './nil'], 'there is no model folder'),
        (['INDEX', '--images', 'nil'], 'there is no folder nil'),
        (['INDEX', '--text', 'text'], 'write text=title,description'),
        (['INDEX', '--tokn-file', 'x'], "did you mean '--token-file'"),
        (['INDEX', '--token', 'x'], "did you mean '--token-file'"),
    ],
)
def test_mistakes_are_told_before_anything_heavy_is_imported(folder, argv, said):
    argv = ['serve', *(str(folder) if a == 'INDEX' else a for a in argv)]
    code = (
        'import sys\nfrom vlm2rec_lab.cli import main\n'
        f'try:\n    status = main({argv!r})\nexcept SystemExit as e:\n    status = e.code\n'
        'heavy = [m for m in ("torch", "transformers", "pandas", "fastapi", "uvicorn") if m in sys.modules]\n'
        'print(status, heavy)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=600)
    assert done.stdout == '2 []\n' and said in done.stderr and done.stderr.count('\n') == 1, done


def test_a_folder_without_a_picture_of_any_item_is_refused_with_the_names_that_were_looked_for(
    folder, tmp_path, capsys
):
    (tmp_path / 'x.png').write_bytes(b'')
    assert main(['serve', str(folder), '--port', '0', '--images', str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert 'has a picture there, called by ids, such as' in said and '--image' in said and said.count('\n') == 1


@pytest.mark.parametrize('proxy', ['*', 'nginx', '127.0.0.1,*'])
def test_a_proxy_is_an_address(folder, proxy, capsys):
    with pytest.raises(SystemExit):
        main(['serve', str(folder), '--proxy', proxy])
    assert 'is no address' in capsys.readouterr().err


def test_who_reads_no_answer_is_not_kept(folder, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), dtype='uint8')).save(tmp_path / 'i9.png')
    more = f'from vlm2rec_lab.share.album import Album\nshop.album = Album({str(tmp_path)!r})'
    with bounded(folder, 'seconds=0.5', more) as s, contextlib.ExitStack() as held:
        host, port = s.address.split('//')[1].split(':')
        there = len(os.listdir(f'/proc/{s.pid}/fd'))
        for _ in range(5):
            c = held.enter_context(socket.socket())
            c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            c.connect((host, int(port)))
            c.sendall(f'GET /pictures/i9 HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n'.encode())
        end = time.monotonic() + 60
        while len(os.listdir(f'/proc/{s.pid}/fd')) > there + 1 and time.monotonic() < end:
            time.sleep(0.1)
        assert time.monotonic() < end
        slow = held.enter_context(socket.create_connection((host, int(port))))
        slow.sendall(f'GET /pictures/i9 HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n'.encode())
        size = 0
        while part := slow.recv(200_000):
            size += len(part)
            time.sleep(0.02)
        assert size > (tmp_path / 'i9.png').stat().st_size
