"""A stand-in for the Hub on loopback: it speaks what huggingface_hub asks in a push, and keeps all that came."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    "What came, and how the Hub is to answer."

    def __init__(self):
        self.repos = {}  # OWNER/NAME -> {'private': bool, 'files': {name: bytes}}
        self.asked = []  # (method, path)
        self.tokens = set()  # headers of authorisation
        self.blobs = {}  # digest -> bytes of a large file
        self.created = []  # bodies of requests for a new repository
        self.messages = []  # of commits
        self.answers = {}  # part of a path -> status, or 'drop', in place of the usual answer


class Handler(BaseHTTPRequestHandler):
    "One request."

    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        "Nothing on the screen."

    def body(self):
        "What was sent, in one piece or in chunks."
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        parts = []
        while size := int(self.rfile.readline().split(b';')[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(parts)

    def say(self, found, status=200):
        "An answer in JSON."
        raw = json.dumps(found).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def answer(self):
        "Note the request and answer it."
        hub, raw = self.server.hub, self.body()
        hub.asked.append((self.command, self.path))
        hub.tokens.add(self.headers.get('Authorization'))
        for part, status in hub.answers.items():
            if part in self.path:
                return self.fail(status)
        for pattern, reply in ROUTES:
            if found := re.fullmatch(pattern, f'{self.command} {self.path.partition("?")[0]}'):
                return reply(self, hub, raw, *found.groups())
        self.say({'error': f'no such place: {self.path}'}, 404)

    def fail(self, status):
        "A refusal, or a line that breaks."
        if status == 'drop':
            self.close_connection = True
            self.connection.close()
            return
        self.say({'error': f'refused with {status}'}, status)

    do_GET = do_POST = do_PUT = do_HEAD = answer


def create(handler, hub, raw):
    "A new repository; 409 for one that is there."
    asked = json.loads(raw)
    name = f'{asked["organization"]}/{asked["name"]}'
    hub.created.append(asked)
    if name in hub.repos:
        return handler.say({'error': 'You already created this model repo'}, 409)
    hub.repos[name] = dict(private=asked.get('visibility') == 'private', files={})
    handler.say({'url': f'{handler.server.address}/{name}', 'name': name})


def info(handler, hub, raw, name):
    "What a repository is."
    if name not in hub.repos:
        return handler.say({'error': 'Repository not found'}, 404)
    repo = hub.repos[name]
    siblings = [{'rfilename': f} for f in repo['files']]
    handler.say(
        {'id': name, 'modelId': name, 'private': repo['private'], 'sha': 'a' * 40, 'siblings': siblings, 'tags': []}
    )


def preupload(handler, hub, raw, name):
    "Which files go as large ones."
    files = json.loads(raw)['files']
    modes = [dict(path=f['path'], uploadMode='lfs' if f['path'].endswith('.safetensors') else 'regular') for f in files]
    handler.say({'files': [m | dict(shouldIgnore=False, oid=None) for m in modes]})


def batch(handler, hub, raw, name):
    "Where large files go."
    wanted = json.loads(raw)['objects']
    there = [o | dict(actions={'upload': {'href': f'{handler.server.address}/lfs/{o["oid"]}'}}) for o in wanted]
    handler.say({'transfer': 'basic', 'objects': there})


def put(handler, hub, raw, digest):
    "A large file."
    assert hashlib.sha256(raw).hexdigest() == digest
    hub.blobs[digest] = raw
    handler.say({})


def commit(handler, hub, raw, name):
    "The files of a commit."
    for line in map(json.loads, raw.splitlines()):
        value = line['value']
        if line['key'] == 'header':
            hub.messages.append(value['summary'])
        elif line['key'] == 'file':
            hub.repos[name]['files'][value['path']] = base64.b64decode(value['content'])
        else:
            hub.repos[name]['files'][value['path']] = hub.blobs[value['oid']]
    url = f'{handler.server.address}/{name}/commit/{"a" * 40}'
    handler.say({'success': True, 'commitUrl': url, 'commitOid': 'a' * 40, 'hookOutput': ''})


ROUTES = [
    (r'POST /api/repos/create', create),
    (r'POST /api/validate-yaml', lambda handler, hub, raw: handler.say({'errors': [], 'warnings': []})),
    (r'GET /api/models/([\w.-]+/[\w.-]+)', info),
    (r'POST /api/models/([\w.-]+/[\w.-]+)/preupload/main', preupload),
    (r'POST /([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch', batch),
    (r'PUT /lfs/(\w+)', put),
    (r'POST /api/models/([\w.-]+/[\w.-]+)/commit/main', commit),
]


@contextmanager
def stand_in():
    "A Hub on loopback: (its address, what it keeps)."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.hub, server.daemon_threads = Hub(), True
    server.address = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.address, server.hub
    finally:
        server.shutdown()
        server.server_close()
