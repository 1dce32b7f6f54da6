"""Notebooks and pages with code, as MyST-NB reads them: hidden cells gone, tests folded, names linked, figures as
data."""

import ast
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
from functools import cache
from html import unescape
from pathlib import Path

import nbformat
import numpy as np
import warm
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from run_nbs import Runner

from house import HIDDEN, ROOT, imports, read_house

PACKAGE = 'vlm2rec_lab'
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINED = (*FUNCTION, ast.ClassDef)
PLOTLY = 'application/vnd.plotly.v1+json'
WIDGET = 'application/vnd.jupyter.widget-view+json'
STATE = 'application/vnd.jupyter.widget-state+json'
COLUMNS = 80  # of a terminal: what fits into the box of a command's output where the window is narrow
WHOLE = "import pandas; pandas.set_option('display.max_colwidth', None)"  # a reader of a page cannot widen a column
COLOURS = re.compile(r'\x1b\[[0-9;]*m')
FILES = re.compile(r"Path\(os\.environ\['LAB_ROOT'\]\) / '(data|benchmarks' / 'results)'")  # a page may read them
FENCE = re.compile(r'^```(python|console)\n(.*?)^```\n?', re.M | re.S)


KEPT = 4  # executed versions of a page that a cache holds


class PageError(RuntimeError):
    "Code of a page does not run."


# ---------------------------------------------------------------- outputs

WORDS = 40  # characters of a cell of a table from which it is a sentence, and may take several lines


def mask(text):
    "No folder of the machine that built the site."
    return text.replace(str(ROOT) + os.sep, '').replace(str(Path.home()) + os.sep, '~' + os.sep)


def dark_by_theme(html):
    "Reports follow the reader's system; on this site they follow the switch of the page."
    dark = r'@media\s*\(prefers-color-scheme:\s*dark\)\s*\{\.v2r\{(.*?)\}\}'
    return re.sub(dark, r'html[data-theme="dark"] .v2r{\1}', html, flags=re.S)


def folding(html):
    "Tables of pandas marked where a cell holds a sentence; docs/_static/lab.css folds those cells, and no figure."
    if 'class="dataframe"' not in html:
        return html
    html, found = re.subn(rf'<(t[dh])>([^<]{{{WORDS},}})</\1>', r'<\1 class="lab-words">\2</\1>', html)
    return html.replace('class="dataframe"', 'class="dataframe lab-words"') if found else html


def figure_html(figure):  # plotly's dictionary
    "A place for a figure, with its data; docs/_static/figures.js draws it."
    layout = figure.get('layout') or {}
    data = json.dumps(dict(data=figure['data'], layout=layout)).replace('</', '<\\/')
    return (
        f'<div class="lab-figure" style="min-height:{int(layout.get("height") or 450)}px">'
        f'<script type="application/json">{data}</script></div>'
    )


def widget_figure(model):  # a FigureWidget's model
    "Its figure; arrays that were stored as buffers become plotly's typed arrays."
    for b in model.get('buffers') or []:
        place = model['state']
        for step in b['path'][:-1]:
            place = place[step]
        place['bdata'] = b['data']
        place['dtype'] = np.dtype(place['dtype']).str[1:]
        if isinstance(place.get('shape'), list):
            place['shape'] = ', '.join(map(str, place['shape']))
        place.pop(b['path'][-1], None)
    return dict(data=model['state']['_widget_data'], layout=model['state'].get('_widget_layout') or {})


def show_output(o, state):  # output of a cell; widget models, of which figures are taken out
    "An output as a static page can show it."
    data = o.get('data', {})
    view = data.get(WIDGET, {}).get('model_id')
    if '_widget_data' in state.get(view, {}).get('state', {}):  # a FigureWidget is a figure
        data[PLOTLY] = widget_figure(state.pop(view))
        del data[WIDGET]
    if PLOTLY in data:
        o['data'] = data = {'text/html': figure_html(data[PLOTLY])}
    for kind in ('text/html', 'text/plain'):
        if kind in data:
            data[kind] = mask(folding(dark_by_theme(data[kind])))
    if 'text' in o:
        o['text'] = mask(o['text'])
    if 'execution_count' in o:
        o['execution_count'] = None
    return o


def outsource(state, static):  # widget models; folder of the site's scripts
    "Large modules of widgets go to a file, once, in place of every page and every widget."
    for model in state.values():
        source = model.get('state', {}).get('_esm') or ''
        if len(source) > 100_000:
            name = f'module-{hashlib.sha256(source.encode()).hexdigest()[:12]}.js'
            static.mkdir(parents=True, exist_ok=True)
            (static / name).write_text(source)
            model['state']['_esm'] = (
                f"const there = new URL(document.documentElement.dataset.content_root + '_static/{name}', "
                "document.baseURI); export default (await import(there.href)).default;"
            )


# ---------------------------------------------------------------- cells


def directives(source):  # of a cell
    "The nbdev directives at the top of a cell, and the cell without them."
    lines, found = source.splitlines(True), []
    while lines and (m := re.match(r'\s*#\s*\|\s*(.+?)\s*$', lines[0])):
        found.append(m[1])
        lines.pop(0)
    return found, ''.join(lines).strip('\n')


def is_hidden(found):  # directives
    "Is a cell with these directives left out of a page?"
    return bool({'hide', 'include: false'} & set(found)) or any(f.startswith('default_exp') for f in found)


def is_exported(found):  # directives
    "Does a cell with these directives go into the module?"
    return any(f.split(':')[0] in ('export', 'exporti', 'exports') for f in found)


def is_test(source):
    "Does a cell only check things? Then the page folds it."
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    for n in body:
        if isinstance(n, ast.Assert):
            return True
        if isinstance(n, (ast.Expr, ast.With, ast.For)) and re.search(r'\b(test_\w+|assert)\b', ast.unparse(n)):
            return True
    return False


@cache
def definitions(source):
    "Public names that are defined at the top of a source; a `@patch`ed method as `Class.method`."
    found = []
    for n in ast.parse(source).body:
        if isinstance(n, DEFINED) and not n.name.startswith('_'):
            patched = any(getattr(getattr(d, 'func', d), 'id', '') == 'patch' for d in n.decorator_list)
            found.append(f'{ast.unparse(n.args.args[0].annotation)}.{n.name}' if patched else n.name)
    return found


def anchors(source, module):  # of an exported cell -> list of cells
    "A cell that the API pages can point at, where something is defined."
    names = definitions(source)
    return [new_markdown_cell(''.join(f'<a id="{module}.{n}"></a>' for n in names))] if names else []


def words_of(output):  # -> str, '' where it says nothing
    "What the picture of an output shows: by its alt text, or by the label of the drawing itself."
    said = [more.get('alt') for k, more in output.get('metadata', {}).items() if k.startswith('image/')]
    label = re.match(r'<svg\b[^>]*aria-label="([^"]+)', ''.join(output.get('data', {}).get('image/svg+xml', '')))
    return next((words for words in [*said, label and unescape(label[1])] if words), '')


def alt_of(outputs):
    "What the first picture among outputs shows, in words; '' where none says so."
    return next((' '.join(words.split()) for words in map(words_of, outputs) if words), '')


def show_cell(cell, found, state):  # code cell; its directives; widget models
    "Outputs and tags of a code cell, in place."
    alt = alt_of(cell.outputs)
    cell.outputs = [show_output(o, state) for o in cell.outputs]
    cell.execution_count = None
    cell.metadata = dict(tags=[], **(dict(mystnb=dict(image=dict(alt=alt))) if alt else {}))
    if {'echo: false', 'hide_input'} & set(found):
        cell.metadata['tags'] = ['remove-input']
    elif not is_exported(found) and not cell.outputs and is_test(cell.source):
        prompts = {'code_prompt_show': 'Tests', 'code_prompt_hide': 'Tests'}
        cell.metadata = dict(tags=['hide-input'], mystnb=prompts)


def convert(
    nb,  # notebook
    names,  # {exported name: module} to link to
    module=None,  # that the notebook exports
    static=None,  # folder of the site's scripts, for large modules of widgets
):
    "A notebook for the site. Changes `nb` and returns it."
    state, cells = nb.metadata.get('widgets', {}).get(STATE, {}).get('state', {}), []
    for cell in nb.cells:
        if cell.cell_type == 'markdown':
            cell.source = link_names(link_pages(cell.source), names, module)
        if cell.cell_type == 'code':
            found, cell.source = directives(cell.source)
            if not cell.source or is_hidden(found):
                continue
            show_cell(cell, found, state)
            if module and is_exported(found):
                cells += anchors(cell.source, module)
        cells.append(cell)
    nb.cells = [c for c in cells if c.cell_type != 'raw']
    keep_widgets(nb, state, static)
    nb.metadata['language_info'] = {'name': 'python', 'pygments_lexer': 'python'}
    return nb


def keep_widgets(nb, state, static):
    "Widget models stay with a notebook that still shows one."
    outputs = [o for c in nb.cells for o in c.get('outputs', [])]
    if not any(WIDGET in o.get('data', {}) for o in outputs):
        nb.metadata.pop('widgets', None)
    elif static:
        outsource(state, static)


# ---------------------------------------------------------------- links


def link_pages(text):
    "Links to pages of `docs/` go to the notebooks that they become."

    def one(m):
        return f']({m[1]}.ipynb' if (ROOT / 'docs' / f'{m[2]}.md').exists() and m[2] != 'index' else m[0]

    text = re.sub(r'\]\(((?:\.\./)*nbs/\d\d\w*)/?\)', r'](\1/index.md)', text)
    text = re.sub(r'\]\(((?:\.\./)*)nbs/index\.ipynb', r'](\1index.ipynb', text)
    return re.sub(r'\]\(((?:\.\./)*(?:docs/)?(\w+))\.md\b', one, text)


def link_names(text, names, module=None):
    "Names of ours in backticks become links to their API page. Headings, fences and existing links are left alone."

    def one(m):
        name = m[1].removesuffix('()')
        where = names.get((module, name)) or names.get(name)
        return f'{{py:obj}}`{m[1]} <{PACKAGE}.{where}.{name}>`' if where else m[0]

    out, fence = [], False
    for line in text.split('\n'):
        if line.lstrip().startswith('```'):
            fence = not fence
        as_it_is = fence or line.startswith('#')
        out.append(line if as_it_is else re.sub(r'(?<![`\[}\w])`(\w+(?:\(\))?)`(?!`|\])', one, line))
    return '\n'.join(out)


# ---------------------------------------------------------------- pages with code


def page_cells(text):  # of docs/*.md
    "Prose, code and commands of a page: list of (kind, source)."
    out, end = [], 0
    for m in FENCE.finditer(text):
        out += [('prose', text[end : m.start()]), (m[1], m[2].rstrip('\n'))]
        end = m.end()
    return [(k, s) for k, s in out + [('prose', text[end:])] if s.strip()]


def commands(block):  # source of a console fence
    "Its command lines, without the prompt."
    return [line[2:] for line in block.splitlines() if line.startswith('$ ')]


def page_notebook(text):  # of docs/*.md
    "A page as a notebook that has not run."
    cells = []
    for kind, source in page_cells(text):
        if kind == 'prose':
            cells.append(new_markdown_cell(source))
        elif kind == 'python':
            cells.append(new_code_cell(source))
        else:
            cells.append(new_code_cell('%%script terminal\n' + '\n'.join(commands(source)), metadata={'kind': kind}))
    return new_notebook(cells=cells)


def run_page(nb, name):
    "Run a page in a kernel and an empty folder of its own, in place. Raises PageError."
    with tempfile.TemporaryDirectory() as d:
        work, tools = Path(d) / 'work', Path(d) / 'bin'
        work.mkdir()
        tools.mkdir()
        command = shlex.join(warm.asking('-m', PACKAGE))
        terminal = shlex.join([sys.executable, str(ROOT / 'tools' / 'site_terminal.py')])
        programs = {'vlm2rec': f'PYTHONWARNINGS=ignore exec {command} "$@"', 'terminal': f'exec {terminal}'}
        for program, line in programs.items():
            (tools / program).write_text(f'#!/bin/sh\n{line}\n')
            (tools / program).chmod(0o755)
        env = {
            **os.environ,
            'PATH': f'{tools}{os.pathsep}{os.environ["PATH"]}',
            'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]),
            'LAB_ROOT': str(ROOT),
            'COLUMNS': str(COLUMNS),
        }
        where = {'metadata': {'path': str(work)}}
        how = ['--log-level=40', f'--IPKernelApp.exec_lines={WHOLE}']
        runner = Runner(nb, timeout=900, kernel_name=warm.kernel(), resources=where, extra_arguments=how)
        try:
            runner.execute(env=env)
        except CellExecutionError as e:
            raise PageError(f'docs/{name}\n{COLOURS.sub("", str(e))[-2500:]}') from None


def as_console(cell):
    "A shell block and what it printed."
    lines = '\n'.join(cell.source.split('\n')[1:])
    printed = COLOURS.sub('', mask(''.join(o.get('text', '') for o in cell.outputs))).rstrip()
    return new_markdown_cell(f'```sh\n{lines}\n```' + (f'\n\n```text\n{printed}\n```' if printed.strip() else ''))


def execute_page(path, cache=None):  # docs/*.md; folder for executed pages
    "A page as an executed notebook, from the cache where nothing changed. Raises PageError."
    stored = cache and cache / f'{path.stem}-{fingerprint(path)}.ipynb'
    if stored and stored.exists():
        return nbformat.read(stored, 4)
    nb = page_notebook(path.read_text())
    if any(c.cell_type == 'code' for c in nb.cells):
        run_page(nb, path.name)
    for c in nb.cells:
        c.metadata.pop('execution', None)
    nb.cells = [as_console(c) if c.metadata.get('kind') == 'console' else c for c in nb.cells]
    if stored:
        keep_page(stored, nb, path.stem)
    return nb


def keep_page(stored, nb, name):
    "Keep an executed page, whole or not at all, without folders of this machine, beside the last few of its kind."
    stored.parent.mkdir(parents=True, exist_ok=True)
    draft = stored.with_name(f'.{stored.name}.{os.getpid()}')
    draft.write_text(mask(nbformat.writes(nb)), encoding='utf-8')
    os.replace(draft, stored)
    others = [p for p in stored.parent.glob(f'{name}-*.ipynb') if re.fullmatch(rf'{name}-[0-9a-f]{{16}}', p.stem)]
    for old in sorted(others, key=lambda p: p.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)


@cache
def house():
    "{room: Room} of the package."
    return read_house(ROOT / PACKAGE, ROOT / 'nbs')


def named_by_code(source):  # of a python fence -> set of rooms, None where it may be any
    "The rooms that code imports."
    if re.search(r'LAB_ROOT|__file__|subprocess|os\.system|^\s*[%!]', FILES.sub('', source), re.M):
        return None
    try:
        found = {room for room, _ in imports(ast.parse(source), '', PACKAGE, house())}
    except SyntaxError:  # the page says so when it runs
        return None
    return None if HIDDEN in found else found


@cache
def command_rooms():
    "{command: the room that makes it}."
    found = {}
    for room in (r for r in house() if r.startswith('commands.')):
        body = ast.parse((ROOT / PACKAGE / f'{room.replace(".", "/")}.py').read_text()).body
        made = [n for n in body if isinstance(n, ast.FunctionDef)]
        found |= {n.name: room for n in made if any(ast.unparse(d).startswith('command(') for d in n.decorator_list)}
    return found


def named_by_commands(source):  # of a console fence -> set of rooms, None where it may be any
    "The rooms of the commands that a shell is given."
    found = {'cli'}
    for words, line in [(line.split(), line) for line in commands(source) if line.strip()]:
        if words[0] == 'vlm2rec' and words[1:2] and words[1] in command_rooms():
            found.add(command_rooms()[words[1]])
        elif words[0] not in ('ls', 'cat', 'head', 'echo', 'mkdir') or re.search(r'LAB_ROOT|[;&|]', line):
            return None
    return found


def rooms_behind(path):  # docs/*.md -> sorted rooms
    "The rooms that a page's outputs can follow from: what it imports or calls, and what those import."
    found = set()
    for kind, source in page_cells(path.read_text()):
        named = {'python': named_by_code, 'console': named_by_commands}.get(kind, lambda _: set())(source)
        if named is None:
            return sorted(house())
        found |= named
    todo = list(found)
    while todo:
        room = todo.pop()
        taken = {r for r in house()[room].takes if room != 'cli' or not r.startswith('commands.')} & set(house())
        todo += taken - found
        found |= taken
    return sorted(found)


def fingerprint(path):
    "Of everything that a page's outputs follow from."
    package = ROOT / PACKAGE
    files = [
        path,
        *(ROOT / 'tools' / f for f in ('site_cells.py', 'site_terminal.py', 'run_nbs.py', 'house.py')),
        ROOT / 'constraints.txt',
        *sorted(f for f in package.rglob('*') if f.suffix in ('.js', '.css') or f.stem in ('__init__', '__main__')),
        *(package / f'{room.replace(".", "/")}.py' for room in rooms_behind(path)),
        *sorted(f for f in (ROOT / 'data').rglob('*') if f.suffix in ('.csv', '.gz', '.npz', '.json')),
        *sorted((ROOT / 'benchmarks').rglob('*.json')),
        *sorted((ROOT / 'benchmarks').glob('*.py')),
    ]
    return hashlib.sha256(b'\0'.join(f.read_bytes() for f in files) + sys.version.encode()).hexdigest()[:16]
