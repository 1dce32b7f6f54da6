"""The tests that stand in the notebooks, one case per notebook, each in a process of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / 'nbs').rglob('*.ipynb'))
RUN = """
import sys
from pathlib import Path
from nbdev.test import test_nb
ok, _ = test_nb(Path(sys.argv[1]), skip_flags=['notest', 'slow', 'gpu'], basepath=Path(sys.argv[2]))
sys.exit(not ok)
"""


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    done = subprocess.run([sys.executable, '-c', RUN, str(path), str(ROOT)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def flagged(flag):
    cells = [(p, c) for p in NOTEBOOKS for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code']
    return [
        pytest.param(p, n, id=f'{p.stem}-{n}')
        for n, (p, c) in enumerate(cells)
        if re.search(rf'^#\s*\|\s*{flag}\s*$', ''.join(c['source']), re.M)
    ]


def test_slow_cells_are_run_by_the_demo():
    "Cells flagged slow are skipped above; all of them must be in the notebook that the demo executes."
    assert {p.values[0].name for p in flagged('slow')} == {'03_train.ipynb'}
