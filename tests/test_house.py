"""Rules of the house: modules in step with notebooks, imports that go one way, nothing heavy or foreign in the repository."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = 'vlm2rec_lab'
NOTEBOOKS = sorted((ROOT / 'nbs').glob('*.ipynb'))
MODULES = sorted(p.stem for p in (ROOT / PACKAGE).glob('*.py') if not p.stem.startswith('_'))


def sources(path, kind='code'):
    return [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == kind]


def exported():
    "{module: notebook} in the notebooks' order."
    found = {p: re.search(r'^#\s*\|\s*default_exp\s+(\S+)', '\n'.join(sources(p)), re.M) for p in NOTEBOOKS}
    return {m[1]: p for p, m in found.items() if m}


def tracked():
    out = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True).stdout
    return [ROOT / f for f in out.split('\0') if f and (ROOT / f).exists()]


def test_every_module_has_its_notebook():
    assert set(MODULES) == set(exported())


def test_export_is_in_step(tmp_path):
    for name in ('nbs', PACKAGE):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
        )
    shutil.copy(ROOT / 'settings.ini', tmp_path)
    for p in (tmp_path / PACKAGE).glob('[a-z]*.py'):
        p.unlink()
    done = subprocess.run([Path(sys.executable).parent / 'nbdev_export'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for p in sorted((tmp_path / PACKAGE).glob('*.py')):
        assert p.read_text() == (ROOT / PACKAGE / p.name).read_text(), (
            f'{p.name} is not what its notebook exports: run `make export`'
        )


@pytest.mark.parametrize('module', MODULES)
def test_imports_go_one_way(module):
    "A room imports only rooms whose notebooks come before its own, and no star imports."
    order = list(exported())
    for node in ast.walk(ast.parse((ROOT / PACKAGE / f'{module}.py').read_text())):
        names = (
            [node.module or '']
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        for name in names:
            if name.startswith(PACKAGE + '.'):
                assert order.index(name.split('.')[1]) < order.index(module), (
                    f'{module} imports {name}, which comes later'
                )
        assert not (isinstance(node, ast.ImportFrom) and any(a.name == '*' for a in node.names)), (
            f'{module}: star import'
        )


ALONE = """
import os, sys, traceback
import numpy, pandas, torch, tqdm.auto     # what takes seconds and is not ours; each room is then imported in a fork of its own
for module in sys.argv[1:]:
    if os.fork() == 0:
        try: __import__(f'vlm2rec_lab.{module}')
        except BaseException:
            print(module, traceback.format_exc(), flush=True)
            os._exit(1)
        os._exit(0)
    os.wait()
"""


def test_imports_alone():
    "Each room can be imported by itself, in a process that has seen no other."
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', ALONE, *MODULES], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def test_no_pyflakes_errors():
    done = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--select', 'F,E9', PACKAGE, 'tools', 'tests', 'setup.py'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_readme_is_in_step():
    import readme

    assert (ROOT / 'README.md').read_text() == readme.readme(), 'run `make readme`'


def test_the_repository_is_light():
    for p in tracked():
        assert p.stat().st_size <= 5 * 2**20, f'{p.name} is over 5 MB'
    assert sum(p.stat().st_size for p in (ROOT / 'data').rglob('*') if p.is_file()) <= 5 * 2**20


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean(path):
    nb = json.loads(path.read_text())
    text = path.read_text()
    assert 'widgets' not in nb['metadata'] and 'plotly.js v' not in text, 'widget state or an embedded script library'
    assert len(text) < 500_000
    for c in nb['cells']:
        assert c['cell_type'] != 'code' or c['execution_count'] is None or 'outputs' in c
        for o in c.get('outputs', []):
            assert o['output_type'] != 'error' and o.get('name') != 'stderr'


def test_no_paths_of_a_machine():
    pattern = re.compile(r'(?<![\w.])/(?:work|root|home/\w+)/')
    for p in tracked():
        if p.suffix in ('.ipynb', '.py', '.md', '.txt', '.ini', '.json', '') and p.name != 'test_house.py':
            assert not pattern.search(p.read_text(errors='ignore')), f'{p.name} names a folder of somebody\'s machine'


def test_console_script_is_quick_to_help():
    import time

    best = 9.0
    for _ in range(3):
        start = time.time()
        done = subprocess.run([sys.executable, '-m', PACKAGE, '--help'], cwd=ROOT, capture_output=True, text=True)
        best = min(best, time.time() - start)
    assert done.returncode == 0 and all(w in done.stdout for w in ('demo', 'train', 'evaluate', 'report'))
    print(f'--help in {best:.2f} s')
    heavy = subprocess.run(
        [
            sys.executable,
            '-c',
            f'import sys, {PACKAGE}.cli; print([m for m in ("torch", "pandas", "transformers", "plotly") if m in sys.modules])',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert heavy.stdout.strip() == '[]', heavy.stdout


def test_readme_links_lead_somewhere():
    links = [l for l in re.findall(r'\]\(([^)]+)\)', (ROOT / 'README.md').read_text()) if '://' not in l]
    assert len(links) > 10 and not [l for l in links if not (ROOT / l).exists()], 'a link of the README leads nowhere'
