"""The tests that stand in the notebooks, a case per section, so that a failure names what broke."""

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from conftest import stays_with

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
from run_nbs import execute, without_root  # noqa: E402

from run_sections import directives, named_once, sections  # noqa: E402

NOTEBOOKS = {
    str(p.relative_to(ROOT / 'nbs')).removesuffix('.ipynb'): p for p in sorted((ROOT / 'nbs').rglob('*.ipynb'))
}
CASES = [(name, title) for name, path in NOTEBOOKS.items() for title in named_once(t for t, _ in sections(path))]


RUNNER = str(ROOT / 'tools' / 'run_sections.py')


@functools.cache
def outcome(name):
    "{section: None or its error} of a notebook, run once; and what the run said of itself."
    return run(NOTEBOOKS[name])[:2]


def run(path):
    "The sections of a notebook with their errors, what the run said of itself, and how it ended."
    done = warm.run([RUNNER, path], cwd=ROOT)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return {x['section']: x['error'] for x in told}, done.stderr, done.returncode


@pytest.mark.parametrize('name, section', CASES, ids=[f'{name}::{title}' for name, title in CASES])
def test_section(name, section):
    found, said = outcome(name)
    assert section in found, f'the notebook ended before this section: {said[-3000:]}'
    assert found[section] is None, found[section]


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_no_library_warns_of_what_a_notebook_does(name):
    "Warnings of the data are told on purpose; one of another kind would meet whoever steps through."
    said = outcome(name)[1].splitlines()
    wrong = [x for x in said if re.search(r'(?<!Data)(?<!User)Warning: ', x)]
    assert not wrong, wrong


def test_a_notebook_is_run_once_wherever_tests_run_side_by_side():
    here = 'tests/test_notebooks.py'
    asked = {
        stays_with(f'{here}::test_section[02_model/00_tiny::Two (of x) [a]]'),
        stays_with(f'{here}::test_section[02_model/00_tiny::the beginning]'),
        stays_with(f'{here}::test_no_library_warns_of_what_a_notebook_does[02_model/00_tiny]'),
    }
    assert asked == {'02_model/00_tiny'}
    assert stays_with(f'{here}::test_section[03_train::a]') == '03_train'
    assert stays_with(f'{here}::test_files') == 'test_files'
    assert stays_with('tests/test_docs.py::test_x[a::b]') == 'tests/test_docs.py'


def flagged(flag):
    "Names of the notebooks that have cells with a flag."
    found = set()
    for name, path in NOTEBOOKS.items():
        for cell in json.loads(path.read_text())['cells']:
            if cell['cell_type'] == 'code' and flag in directives(''.join(cell['source'])):
                found.add(name)
    return found


def test_slow_cells_are_run_by_the_demo():
    "Cells flagged slow are skipped above; all of them must be in the notebook that the demo executes."
    assert flagged('slow') == {'03_train'}


def test_no_notebook_writes_the_package():
    "Run All must not rewrite the installed modules: `make export` does."
    for name, path in NOTEBOOKS.items():
        for cell in json.loads(path.read_text())['cells']:
            assert 'nbdev_export(' not in ''.join(cell['source']), f'{name}: Run All would rewrite the package'


def pictures():
    "(notebook, place of the cell, type, what is said of it) of every picture that a notebook keeps."
    for name, path in NOTEBOOKS.items():
        for k, cell in enumerate(json.loads(path.read_text())['cells']):
            for output in cell.get('outputs', ()):
                for mime in (m for m in output.get('data', ()) if m.startswith('image/')):
                    own = re.match(r'<svg\b[^>]*aria-label="([^"]+)', ''.join(output['data'][mime]))
                    said = own[1] if own else ''
                    yield name, k, mime, output.get('metadata', {}).get(mime, {}).get('alt', said)


def test_every_picture_of_a_notebook_says_what_it_shows():
    silent = [found[:3] for found in pictures() if len(found[3].split()) < 5]
    assert not silent, silent


def test_every_svg_in_a_notebook_says_what_it_shows():
    for name, path in NOTEBOOKS.items():
        for k, cell in enumerate(json.loads(path.read_text())['cells']):
            for output in cell.get('outputs', ()):
                html = ''.join(output.get('data', {}).get('text/html', ''))
                for svg in re.findall(r'<svg\b[^>]*>.{0,200}', html, re.S):
                    said = re.search('aria-label|<title|aria-hidden|role="presentation"', svg)
                    assert said, (name, k, svg[:160])


def test_files_of_the_repository_are_shown_from_its_top():
    output = {
        'text': f'read {ROOT}/data/x and /elsewhere/data/x',
        'data': {'text/plain': f'{ROOT}/nbs', 'x': str(ROOT)},
    }
    without_root(output)
    assert output == {'text': 'read data/x and /elsewhere/data/x', 'data': {'text/plain': 'nbs', 'x': str(ROOT)}}


def a_notebook(tmp_path, *cells):
    "A notebook of code cells and, for strings that begin with #, headings."
    made = []
    for k, source in enumerate(cells):
        kind = 'markdown' if source.startswith('## ') else 'code'
        made.append(dict(cell_type=kind, id=f'c{k}', metadata={}, source=source, outputs=[], execution_count=None))
    path = tmp_path / 'nb.ipynb'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dict(cells=made, metadata={}, nbformat=4, nbformat_minor=5)))
    return path


def test_a_failure_names_its_section(tmp_path):
    cells = (
        '## Good',
        'x = 1',
        '## Bad',
        'x += 1',
        'assert x == 1, "two"',
        '## After',
        'y = x',
        '## Left out',
        '#| slow\n1 / 0',
    )
    path = a_notebook(tmp_path, *cells)
    done = subprocess.run([sys.executable, RUNNER, str(path)], cwd=ROOT, capture_output=True, text=True)
    found = {x['section']: x for x in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1
    assert [(name, x['ok']) for name, x in found.items()] == [('Good', True), ('Bad', False), ('After', False)]
    assert 'assert x == 1' in found['Bad']['error'] and "section 'Bad' before it failed" in found['After']['error']


def test_notebooks_that_begin_in_one_process_do_not_meet(tmp_path):
    "One that fails, one that dies, one that reads and one that is not there: those behind them are run as if alone."
    cells = {
        'leaves': ('import builtins; builtins.left = 1; import sys; sys.modules["json.tool"] = None',),
        'fails': ('## Bad', 'print("{\\"section\\": 1}"); assert 1 == 2, "one"'),
        'dies': ('## Last', 'import os; os._exit(7)'),
        'reads': ('import sys; assert sys.stdin.read() == ""',),
        'good': ('import builtins, json.tool; assert not hasattr(builtins, "left")', '## End', 'x = 1'),
    }
    paths = [a_notebook(tmp_path / name, *text) for name, text in cells.items()]
    paths.insert(3, tmp_path / 'nowhere.ipynb')
    found = [run(p) for p in paths]
    assert [status for *_, status in found] == [0, 1, 7, 1, 0, 0]
    assert [[e is None for e in errors.values()] for errors, *_ in found] == [
        [True],
        [False],
        [],
        [],
        [True],
        [True, True],
    ]
    assert 'assert 1 == 2' in found[1][0]['Bad'] and 'nowhere.ipynb' in found[3][1]


def test_a_table_of_a_notebook_that_is_run_is_whole(tmp_path):
    path = a_notebook(tmp_path, "import pandas\npandas.DataFrame({'said': ['a long sentence, ' * 12]})")
    (shown,) = execute(path).cells[0].outputs
    assert 'a long sentence, ' * 11 in shown.data['text/html'].replace('\n', '')


def imported(source):
    "The modules that some lines of Python import, wherever they do."
    for node in ast.walk(ast.parse(source)):
        yield from [a.name for a in node.names] if isinstance(node, ast.Import) else ()
        yield from [node.module] if isinstance(node, ast.ImportFrom) and not node.level else ()


def missing(source, places):
    "Modules of tests and tools that some lines need, and that are in none of these places."
    ours, found, ahead = {p.stem for d in ('tests', 'tools') for p in (ROOT / d).glob('*.py')}, set(), [source]
    while ahead:
        for name in {*imported(ahead.pop())} & ours - found:
            found.add(name)
            ahead += [(d / f'{name}.py').read_text() for d in places if (d / f'{name}.py').exists()]
    return {name for name in found if not any((d / f'{name}.py').exists() for d in places)}


def test_what_notebooks_borrow_from_tests_is_found_in_a_fresh_kernel():
    "Which looks nowhere but where the notebook says; here a test runner has added places."
    asked = 0
    for name, path in NOTEBOOKS.items():
        cells = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
        places = {path.parent / d for c in cells for d in re.findall(r"'(\.\./\.\./(?:tests|tools))'", c)}
        lines = [c for c in cells if places and 'import' in c and not c.lstrip().startswith(('%', '!'))]
        asked += bool(places)
        assert not missing('\n'.join(lines), places), f'{name}: say where {missing(chr(10).join(lines), places)} is'
    assert asked > 9


def test_what_notebooks_borrow_from_tests_leaves_their_commands_to_them():
    "A command that a helper enters again is the installed one: the notebook would no longer run its own cells."
    code = 'import shell; from vlm2rec_lab.commands.parser import COMMANDS; print(sorted(COMMANDS))'
    code = f'import sys; sys.path[:0] = ["tests", "tools"]; {code}'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == '[]\n', done.stdout + done.stderr[-2000:]


def test_no_notebook_has_a_shell_of_its_own():
    "Commands are typed by `shell.typed_in`, so that all are run alike."
    found = [name for name, path in NOTEBOOKS.items() if 'def vlm2rec(*argv' in path.read_text()]
    assert not found, found
