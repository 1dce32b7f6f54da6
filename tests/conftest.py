import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('PLOTLY_RENDERER', 'plotly_mimetype')
sys.path.insert(0, str(ROOT / 'tools'))


def pytest_collection_modifyitems(items):
    "GPU tests are skipped, and counted, where there is none."
    wanted = [i for i in items if i.get_closest_marker('gpu')]
    if not wanted: return
    import torch
    if not torch.cuda.is_available():
        for i in wanted: i.add_marker(pytest.mark.skip(reason='no GPU here'))


@pytest.fixture(scope='session')
def demo(tmp_path_factory):
    "The demo, run once: (folder of its results, what it printed, seconds)."
    import time
    out, start = tmp_path_factory.mktemp('demo'), time.time()
    done = subprocess.run([sys.executable, 'tools/demo.py'], cwd=ROOT, env={**os.environ, 'VLM2REC_OUT': str(out)}, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return out, done.stdout, time.time() - start


def pytest_terminal_summary(terminalreporter):
    "Flagged notebook cells: how many the inline tests left out, and who runs them."
    import json
    import re
    cells = [''.join(c['source']) for p in (ROOT / 'nbs').glob('*.ipynb') for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code']
    for flag, who in (('slow', 'run by the demo'), ('gpu', 'skipped without a GPU')):
        n = sum(bool(re.search(rf'^#\s*\|\s*{flag}\s*$', c, re.M)) for c in cells)
        terminalreporter.write_line(f'notebook cells flagged {flag}: {n}, left out of the inline tests, {who}')
