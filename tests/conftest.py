import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
from ports import free_port

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('PLOTLY_RENDERER', 'plotly_mimetype')
sys.path.insert(0, str(ROOT / 'tools'))


# Several tests run at a time: threads that wait for each other by spinning are no help.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# A shell starts its background jobs deaf to interrupts: a test of an interrupt would wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The same commit tries the same cases: pytest --hypothesis-profile=search looks for new ones. None fails by the clock.
hypothesis.settings.register_profile('same', derandomize=True, print_blob=True, deadline=None)
hypothesis.settings.register_profile('search', print_blob=True, deadline=None)
hypothesis.settings.load_profile('same')


def stays_with(nodeid):
    "What a test shares with others, which one process does: its file, or the notebook that it asks about."
    file, _, case = nodeid.partition('::')
    if Path(file).stem != 'test_notebooks':
        return file
    test, _, notebook = case.removesuffix(']').partition('[')
    return notebook.partition('::')[0] or test


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Where several processes test, the tests of a file stay together and share what they set up.

    All that is asked of a notebook does the same, and each notebook goes to whoever is free: it is run once.
    """
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # in the order of `pytest_collection_modifyitems`

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return stays_with(nodeid)

    return ByFile(config, log)


FIRST = (
    'docs',
    'demo',
    'lab',
    'widgets',
    'saved',
    'house',
    'training',
    'cli_columns',
    'benchmarks',
)  # minutes each: nobody waits for them


def pytest_collection_modifyitems(items):
    "The longest files come first. GPU tests are skipped, and counted, where there is none."
    place = {f'test_{name}': k for k, name in enumerate(FIRST)}
    items.sort(key=lambda i: place.get(i.path.stem, len(FIRST)))
    wanted = [i for i in items if i.get_closest_marker('gpu')]
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        for i in wanted:
            i.add_marker(pytest.mark.skip(reason='no GPU here'))


@pytest.fixture(scope='session')
def demo(tmp_path_factory):
    "The demo, run once: (folder of its results, what it printed, seconds)."
    out, start = tmp_path_factory.mktemp('demo'), time.time()
    done = subprocess.run(
        [sys.executable, 'tools/demo.py'],
        cwd=ROOT,
        env={**os.environ, 'VLM2REC_OUT': str(out)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return out, done.stdout, time.time() - start


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    "A small random checkpoint of the genuine classes: the folder of a model that trains in milliseconds."
    import torch
    import transformers

    from vlm2rec_lab.model.tiny import build_tiny, build_tokenizer, save_tiny, studio_corpus

    transformers.utils.logging.disable_progress_bar()
    path = tmp_path_factory.mktemp('model') / 'tiny-random'
    tokenizer = build_tokenizer(studio_corpus(300))
    model = build_tiny(tokenizer=tokenizer, hidden=32, layers=1, vision=32, vision_layers=1)
    save_tiny(path, *model, dtype=torch.float32)
    return path


def pytest_terminal_summary(terminalreporter):
    "Flagged notebook cells: how many the inline tests left out, and who runs them."
    import json
    import re

    cells = [
        ''.join(c['source'])
        for p in (ROOT / 'nbs').rglob('*.ipynb')
        for c in json.loads(p.read_text())['cells']
        if c['cell_type'] == 'code'
    ]
    for flag, who in (('slow', 'run by the demo'), ('gpu', 'skipped without a GPU')):
        n = sum(bool(re.search(rf'^#\s*\|\s*{flag}\s*$', c, re.M)) for c in cells)
        terminalreporter.write_line(f'notebook cells flagged {flag}: {n}, left out of the inline tests, {who}')


ARGS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-background-networking',
    '--no-first-run',
    '--disable-component-update',
    '--disable-sync',
]


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=os.environ.get('CHROME', '/usr/bin/chromium'), args=ARGS)
        yield b
        b.close()


PATIENCE = 600_000  # milliseconds that a page may take for what it must show: a busy machine is no fault
OWN = ('file:', 'data:', 'blob:', 'http://127.0.0.1', 'ws://127.0.0.1')


@contextmanager
def opener(browser):
    "Opens pages that note requests to the outside (`outside`) and errors in the console (`errors`)."
    contexts = []

    def opened(width=1200, height=1100, dark=False):
        scheme = 'dark' if dark else 'light'
        context = browser.new_context(viewport={'width': width, 'height': height}, color_scheme=scheme)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        p = context.new_page()
        p.outside, p.errors = [], []
        p.on('request', lambda r: None if r.url.startswith(OWN) else p.outside.append(r.url))
        p.on('console', lambda m: p.errors.append(m.text) if m.type == 'error' else None)
        p.on('pageerror', lambda e: p.errors.append(str(e)))
        return p

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def open_page(browser):
    "Such pages, closed after the test."
    with opener(browser) as opened:
        yield opened


@pytest.fixture(scope='module')
def open_lasting_page(browser):
    "Such pages, closed after the tests of a file."
    with opener(browser) as opened:
        yield opened


@pytest.fixture
def page(open_page):
    "One such page."
    return open_page()


@pytest.fixture(scope='session')
def axe():
    "The script of axe-core, fetched once through npm at a pinned digest. Where npm is missing, skipped, and said."
    import shutil

    import site_scripts

    cache = ROOT / 'build' / 'axe'
    if not shutil.which('npm') and not list(cache.glob('*-axe.min.js')):
        pytest.skip('npm is not installed, and axe-core comes from there')
    return site_scripts.fetch('axe', cache)[0].read_text()


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "JupyterLab with settings of its own: (address, folder)."
    home, root = tmp_path_factory.mktemp('home'), tmp_path_factory.mktemp('lab')
    port = free_port()
    for name, text in {
        '@jupyterlab/notebook-extension/tracker': '{"autoStartDefaultKernel": true}',
        '@jupyterlab/apputils-extension/notification': '{"fetchNews": "false", "checkForUpdates": false}',
    }.items():
        f = home / 'settings' / f'{name}.jupyterlab-settings'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(text)
    env = dict(
        os.environ,
        JUPYTER_CONFIG_DIR=f'{home}/config',
        JUPYTER_DATA_DIR=f'{home}/data',
        JUPYTER_RUNTIME_DIR=f'{home}/run',
        JUPYTERLAB_SETTINGS_DIR=f'{home}/settings',
        JUPYTERLAB_WORKSPACES_DIR=f'{home}/spaces',
        VLM2REC_CACHE=f'{home}/cache',
        PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    )
    server = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'jupyter',
            'lab',
            '--no-browser',
            '--allow-root',
            '--ServerApp.ip=127.0.0.1',
            f'--ServerApp.port={port}',
            '--ServerApp.port_retries=0',
            '--IdentityProvider.token=t',
            '--LabApp.news_url=',
            '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
            '--LabApp.extension_manager=readonly',
            '--LabApp.expose_app_in_browser=True',
            f'--ServerApp.root_dir={root}',
        ],
        env=env,
        stdout=open(home / 'lab.log', 'w'),
        stderr=subprocess.STDOUT,
    )
    url, start = f'http://127.0.0.1:{port}', time.time()
    while True:
        try:
            urllib.request.urlopen(f'{url}/api/status?token=t', timeout=1)
        except OSError:
            assert server.poll() is None and time.time() - start < 600, (home / 'lab.log').read_text()
            time.sleep(0.2)
        else:
            break
    yield url, root
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
