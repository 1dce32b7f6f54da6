"""Scripts and styles of the lab: files of their own that a browser can read, with the colours of the one theme."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vlm2rec_lab.base.theme import DARK_PALETTE, PALETTE, css_variables

ROOT = Path(__file__).resolve().parent.parent
SHOW = ROOT / 'vlm2rec_lab' / 'show'
SCRIPTS = sorted((ROOT / 'vlm2rec_lab').rglob('*.js'))
STYLES = sorted((ROOT / 'vlm2rec_lab').rglob('*.css'))
SITE = sorted(p for p in (ROOT / 'docs' / '_static').iterdir() if p.suffix in ('.js', '.css'))
COLOUR = re.compile(r'(?<![&\w])#(?:[0-9a-fA-F]{8}|[0-9a-fA-F]{6}|[0-9a-fA-F]{3,4})\b')
RAMPS = {'views.js': 10}  # colours of a ramp that a canvas draws: five in the light, five in the dark
MARKUP = re.compile(r'document\.|addEventListener|querySelector|=>\s*\{|\w+\s*\{[^{}]*:[^{}]*;[^{}]*:[^{}]*;')


def named(paths):
    return pytest.mark.parametrize('path', paths, ids=lambda p: p.name)


def without_comments(text):
    return re.sub(r'/\*.*?\*/|^\s*//.*?$|\s//\s.*?$', '', text, flags=re.S | re.M)


def strings(tree):
    "The strings of a module that are no docstrings."
    docs = {
        id(n.body[0].value)
        for n in ast.walk(tree)
        if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and n.body
        and isinstance(n.body[0], ast.Expr)
    }
    return [
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs
    ]


def test_they_are_there():
    assert {
        'chart.js',
        'shelf.js',
        'live.js',
        'page.js',
        'spaces.js',
        'frames.js',
        'find.js',
        'topology.js',
        'views.js',
    } <= {p.name for p in SCRIPTS}
    assert {'live.css', 'views.css', 'page.css'} <= {p.name for p in STYLES}


@named(SCRIPTS)
@pytest.mark.skipif(not shutil.which('node'), reason='node is not installed')
def test_node_reads_it_as_a_module(path, tmp_path):
    shutil.copy(path, tmp_path / 'script.mjs')
    done = subprocess.run(['node', '--check', tmp_path / 'script.mjs'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which('node'), reason='node is not installed')
@pytest.mark.parametrize('kind', ['views', 'chart', 'shelf'])
def test_node_reads_what_a_widget_gets(kind, tmp_path):
    "Scripts that stand one after the other share their names."
    from vlm2rec_lab.show.chart import SCRIPTS as LIVE
    from vlm2rec_lab.show.drawing import script

    code = script() if kind == 'views' else LIVE[kind]
    assert len(re.findall(r'^export default', code, re.M)) == 1 and not re.search(r'^import ', code, re.M)
    (tmp_path / 'script.mjs').write_text(code)
    done = subprocess.run(['node', '--check', tmp_path / 'script.mjs'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@named(SCRIPTS + STYLES)
def test_it_can_stand_in_a_page(path):
    text = path.read_text()
    assert '</' not in text and 'innerHTML' not in text and '@import' not in text and 'url(' not in text
    assert not re.search(r'https?://(?!www\.w3\.org/2000/svg)', text)


@named(SCRIPTS + STYLES + SITE)
def test_lines_are_short(path):
    assert not [line for line in path.read_text().splitlines() if len(line) > 120]


@named(STYLES)
def test_braces_balance(path):
    depth = 0
    for line in without_comments(path.read_text()).splitlines():
        depth += line.count('{') - line.count('}')
        assert depth >= 0, line
    assert depth == 0


@named(STYLES + [p for p in SITE if p.suffix == '.css'])
def test_a_declaration_takes_a_line(path):
    for line in without_comments(path.read_text()).splitlines():
        assert line.count('{') <= 1 and line.count(';') <= 1, line


@named([p for p in SCRIPTS + STYLES if p.parent == SHOW])
def test_no_colour_of_its_own(path):
    found = COLOUR.findall(without_comments(path.read_text()))
    assert len(found) == RAMPS.get(path.name, 0), found


@named([p for p in STYLES if p.parent == SHOW])
def test_styles_use_variables_of_the_theme(path):
    text = path.read_text()
    known = set(re.findall(r'(--[\w-]+):', css_variables())) | {'--jp-layout-color0', '--jp-ui-font-color0'}
    assert set(re.findall(r'var\((--[\w-]+)', text)) <= known


@named([p for p in SCRIPTS if p.parent == SHOW])
def test_scripts_use_variables_of_the_theme(path):
    text = path.read_text()
    known = set(re.findall(r'(--[\w-]+):', css_variables()))
    assert set(re.findall(r"(?:var\(|')(--[a-z]\w*)(?![\w$])", text)) <= known


@named(sorted(SHOW.glob('*.py')))
def test_python_holds_no_colours_scripts_or_styles(path):
    for text in strings(ast.parse(path.read_text())):
        assert not COLOUR.search(text), text
        assert len(text) < 300 or not MARKUP.search(text), text[:200]


@named(sorted(p for p in (ROOT / 'nbs' / '05_show').glob('*.ipynb')))
def test_notebooks_hold_no_scripts_or_styles(path):
    for cell in json.loads(path.read_text())['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and re.search(r'^#\s*\|\s*export', source, re.M):
            assert not COLOUR.search(source), source[:200]
            assert not re.search(r"('''|\"\"\")\n[^'\"]*(?:function |=>|\{[^}]*;)", source), source[:200]


def test_every_series_has_a_variable():
    for dark, palette in ((False, PALETTE), (True, DARK_PALETTE)):
        css = css_variables(dark)
        assert all(f'--c{k}:{c};' in css for k, c in enumerate(palette, 1))


def test_they_are_shipped():
    setup = (ROOT / 'setup.py').read_text()
    assert "'*/*.js'" in setup and "'*/*.css'" in setup
