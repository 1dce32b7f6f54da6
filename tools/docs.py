"""The documentation as a static site: python tools/docs.py [--serve]

Three kinds of pages become one site in `_docs`, which asks for nothing outside itself:
- `docs/*.md`: every fence marked python is executed, every fence marked console runs its `$` lines in a shell; what
  they print stands below them;
- `nbs/*.ipynb`: with the outputs that they hold;
- a page per module, from the signatures, docstrings and docments in `vlm2rec_lab/`.
"""

import argparse
import ast
import base64
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tokenize
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import distribution
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault('PLOTLY_RENDERER', 'plotly_mimetype')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('OMP_NUM_THREADS', '1')

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / 'build' / 'docs'  # sources as Sphinx gets them, executed pages, vendored scripts
SITE = ROOT / '_docs'
PACKAGE = 'vlm2rec_lab'
PLOTLY = 'application/vnd.plotly.v1+json'
WIDGET = 'application/vnd.jupyter.widget-view+json'
STATE = 'application/vnd.jupyter.widget-state+json'

# Scripts for the browser: name of the package, version, integrity of its archive as npm states it, {file in the
# archive: (name on the site, sha256)}.
VENDORED = {
    'mathjax': (
        'mathjax',
        '3.2.2',
        'sha512-Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==',
        {'package/es5/tex-svg.js': 'tex-svg.js'},
    ),
    'require': (
        'requirejs',
        '2.3.8',
        'sha512-7/cTSLOdYkNBNJcDMWf+luFvMriVm7eYxp4BcFCsAX0wF421Vyce5SXP17c+Jd5otXKGNehIonFlyQXSowL6Mw==',
        {'package/require.js': 'require.js'},
    ),
    'widgets': (
        '@jupyter-widgets/html-manager',
        '1.0.15',
        'sha512-5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==',
        {'package/dist/embed-amd.js': 'embed-amd.js'},
    ),
}
# of tex-svg.js 3.2.2, the same in both registries
MATHJAX_SHA256 = 'd4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882'
MATHJAX_WHEEL = 'sphinx-mathjax-offline==0.0.2'  # where there is no npm


class NotToBeHad(RuntimeError):
    "A script that the site needs can be got from neither registry."


class PageError(RuntimeError):
    "Code of a page does not run."


# ---------------------------------------------------------------- scripts that the pages need


def fetch(
    what,  # key of VENDORED
    cache,  # folder that keeps what was fetched
):  # -> list of Path
    "The files of a pinned package, checked against its integrity. Raises NotToBeHad."
    name, version, integrity, files = VENDORED[what]
    there = [cache / f'{version}-{f}' for f in files.values()]
    if all(f.exists() for f in there):
        return there
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as d:
        said = _npm(f'{name}@{version}', d)
        if said is None:
            archive = next(Path(d).glob('*.tgz')).read_bytes()
            if 'sha512-' + base64.b64encode(hashlib.sha512(archive).digest()).decode() != integrity:
                raise NotToBeHad(f'{name}@{version} from npm is not the archive that was tested: its integrity differs')
            with tarfile.open(fileobj=io.BytesIO(archive)) as t:
                found = {to: t.extractfile(f).read() for f, to in files.items()}
        elif what == 'mathjax':
            found = {'tex-svg.js': _wheel(d, said)}
        else:
            raise NotToBeHad(f'a page shows Jupyter widgets, which need {name}@{version} from npm: {said}')
    for f, (to, data) in zip(there, found.items()):
        f.write_bytes(data)
    return there


def _npm(spec, folder):
    "Fetch an archive through npm; None, or the sentence that says why not."
    if not shutil.which('npm'):
        return 'npm is not installed'
    done = subprocess.run(['npm', 'pack', '--silent', spec], cwd=folder, capture_output=True, text=True, timeout=180)
    return (
        None
        if done.returncode == 0 and list(Path(folder).glob('*.tgz'))
        else f'npm pack {spec} failed: {" ".join(done.stderr.split())[-300:] or "no archive came"}'
    )


def _wheel(folder, said):
    "MathJax from the Python package index."
    done = subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', folder, MATHJAX_WHEEL],
        capture_output=True,
        text=True,
    )
    wheel = next(Path(folder).glob('*.whl'), None)
    if done.returncode or not wheel:
        raise NotToBeHad(
            f'the formulas need MathJax 3.2.2. {said}; pip download {MATHJAX_WHEEL} failed: '
            f'{" ".join(done.stderr.split())[-300:]}'
        )
    with zipfile.ZipFile(wheel) as z:
        data = z.read(next(n for n in z.namelist() if n.endswith('/tex-svg.js')))
    if hashlib.sha256(data).hexdigest() != MATHJAX_SHA256:
        raise NotToBeHad(f'{MATHJAX_WHEEL} does not hold the MathJax that was tested')
    return data


def vendor(
    static,  # folder of the site's scripts
    widgets,  # does a page show Jupyter widgets?
):
    "Put the scripts in place: plotly from its Python package, the others from a registry."
    static.mkdir(parents=True, exist_ok=True)
    plotly = Path(importlib.util.find_spec('plotly').origin).parent / 'package_data' / 'plotly.min.js'
    shutil.copy(plotly, static)
    for what in ('mathjax', *(('require', 'widgets') if widgets else ())):
        for file in fetch(what, BUILD / 'vendor'):
            shutil.copy(file, static / file.name.split('-', 1)[1])
    if widgets:
        anywidget = distribution('anywidget')
        shutil.copy(
            anywidget.locate_file(
                next(f for f in anywidget.files if f.as_posix().endswith('anywidget/nbextension/index.js'))
            ),
            static / 'anywidget.js',
        )


# ---------------------------------------------------------------- notebooks and pages -> what MyST-NB reads


def directives(source):  # of a cell
    "The nbdev directives at the top of a cell, and the cell without them."
    lines, found = source.splitlines(True), []
    while lines and (m := re.match(r'\s*#\s*\|\s*(.+?)\s*$', lines[0])):
        found.append(m[1])
        lines.pop(0)
    return found, ''.join(lines).strip('\n')


def is_test(source):
    "Does a cell only check things? Then the page folds it."
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False

    def checks(n):
        return (
            isinstance(n, ast.Assert)
            or isinstance(n, (ast.Expr, ast.With, ast.For))
            and re.search(r'\b(test_\w+|assert)\b', ast.unparse(n))
        )

    return any(checks(n) for n in body)


def figure_html(figure):  # plotly's dictionary
    "A place for a figure, with its data; docs/_static/figures.js draws it."
    high = (figure.get('layout') or {}).get('height') or 450
    return f'<div class="lab-figure" style="min-height:{int(high)}px"><script type="application/json">{json.dumps(dict(data=figure["data"], layout=figure.get("layout") or {})).replace("</", "<" + chr(92) + "/")}</script></div>'


def widget_figure(model):  # a FigureWidget's model
    "Its figure; arrays that were stored as buffers become plotly's typed arrays."
    import numpy as np

    for b in model.get('buffers') or []:
        place = model['state']
        for step in b['path'][:-1]:
            place = place[step]
        place['bdata'], place['dtype'] = b['data'], np.dtype(place['dtype']).str[1:]
        if 'shape' in place:
            place['shape'] = ', '.join(map(str, place['shape'])) if isinstance(place['shape'], list) else place['shape']
        place.pop(b['path'][-1], None)
    return dict(data=model['state']['_widget_data'], layout=model['state'].get('_widget_layout') or {})


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


def dark_by_theme(html):
    "Reports follow the reader's system; on this site they follow the switch of the page."
    return re.sub(
        r'@media\s*\(prefers-color-scheme:\s*dark\)\s*\{\.v2r\{(.*?)\}\}',
        r'html[data-theme="dark"] .v2r{\1}',
        html,
        flags=re.S,
    )


def show_outputs(outputs, state):  # outputs of a cell; widget models, of which figures are taken out
    "Outputs as a static page can show them."
    out = []
    for o in outputs:
        data = o.get('data', {})
        view = data.get(WIDGET, {}).get('model_id')
        if '_widget_data' in state.get(view, {}).get('state', {}):  # a FigureWidget is a figure
            data[PLOTLY] = widget_figure(state.pop(view))
            del data[WIDGET]
        if PLOTLY in data:
            o['data'] = data = {'text/html': figure_html(data[PLOTLY])}
        for kind in ('text/html', 'text/plain'):
            if kind in data:
                data[kind] = mask(dark_by_theme(data[kind]))
        if 'text' in o:
            o['text'] = mask(o['text'])
        if o['output_type'] == 'stream' and o.get('name') == 'stderr':
            continue
        out.append(o)
    return out


def mask(text):
    "No folder of the machine that built the site."
    return text.replace(str(ROOT) + os.sep, '').replace(str(Path.home()) + os.sep, '~' + os.sep)


def convert(
    nb,  # notebook
    names,  # {exported name: module} to link to
    module=None,  # that the notebook exports
    static=None,  # folder of the site's scripts, for large modules of widgets
):
    """A notebook for the site: hidden cells gone, tests folded, names linked, figures as data. Changes `nb` and
    returns it."""
    from nbformat.v4 import new_markdown_cell

    state, cells = nb.metadata.get('widgets', {}).get(STATE, {}).get('state', {}), []
    for cell in nb.cells:
        if cell.cell_type == 'markdown':
            cell.source = link_names(link_pages(cell.source), names, module)
        if cell.cell_type == 'code':
            found, cell.source = directives(cell.source)
            if (
                not cell.source
                or {'hide', 'include: false'} & set(found)
                or any(f.startswith('default_exp') for f in found)
            ):
                continue
            exported = any(f.split(':')[0] in ('export', 'exporti', 'exports') for f in found)
            cell.outputs = show_outputs(cell.outputs, state)
            tags = (
                {'remove-input'}
                if {'echo: false', 'hide_input'} & set(found)
                else {'hide-input'}
                if not exported and not cell.outputs and is_test(cell.source)
                else set()
            )
            cell.metadata = dict(
                tags=sorted(tags),
                **(
                    {'mystnb': {'code_prompt_show': 'Tests', 'code_prompt_hide': 'Tests'}}
                    if 'hide-input' in tags
                    else {}
                ),
            )
            cell.execution_count = None
            for o in cell.outputs:
                if 'execution_count' in o:
                    o['execution_count'] = None
            if exported and module:
                defined = [
                    n.name
                    for n in ast.parse(cell.source).body
                    if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')
                ]
                if defined:
                    cells.append(new_markdown_cell(''.join(f'<a id="{module}.{n}"></a>' for n in defined)))
        cells.append(cell)
    nb.cells = [c for c in cells if c.cell_type != 'raw']
    shown = {o.get('data', {}).get(WIDGET, {}).get('model_id') for c in nb.cells for o in c.get('outputs', [])} - {None}
    if not shown:
        nb.metadata.pop('widgets', None)
    elif static:
        outsource(state, static)
    nb.metadata['language_info'] = {'name': 'python', 'pygments_lexer': 'python'}
    return nb


def link_pages(text):
    "Links to pages of `docs/` go to the notebooks that they become."
    text = text.replace('](../nbs/index.ipynb', '](../index.ipynb')
    return re.sub(
        r'\]\(((?:docs/)?(\w+))\.md\b',
        lambda m: f']({m[1]}.ipynb' if (ROOT / 'docs' / f'{m[2]}.md').exists() and m[2] != 'index' else m[0],
        text,
    )


def link_names(text, names, module=None):
    "Names of ours in backticks become links to their API page. Headings, fences and existing links are left alone."

    def one(m):
        name = m[1].removesuffix('()')
        if name in stems and module:
            return f'[{name}]({name}.ipynb)'
        where = names.get((module, name)) or names.get(name)
        return f'{{py:obj}}`{m[1]} <{PACKAGE}.{where}.{name}>`' if where else m[0]

    out, fence, stems = [], False, {p.stem for p in (ROOT / 'nbs').glob('[0-9]*.ipynb')}
    for line in text.split('\n'):
        if line.lstrip().startswith('```'):
            fence = not fence
        out.append(
            line if fence or line.startswith('#') else re.sub(r'(?<![`\[}\w])`(\w+(?:\(\))?)`(?!`|\])', one, line)
        )
    return '\n'.join(out)


# ---------------------------------------------------------------- pages with code

COLOURS = re.compile(r'\x1b\[[0-9;]*m')
FENCE = re.compile(r'^```(python|console)\n(.*?)^```\n?', re.M | re.S)


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


def execute_page(path, cache=None):  # docs/*.md; folder for executed pages
    "A page as an executed notebook. Each page has a kernel and an empty folder of its own. Raises PageError."
    import nbformat
    from nbclient.exceptions import CellExecutionError
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
    from run_nbs import Runner

    cells = page_cells(path.read_text())
    nb = new_notebook(
        cells=[
            new_markdown_cell(s)
            if k == 'prose'
            else new_code_cell(
                s if k == 'python' else '%%sh\nexec 2>&1\n' + '\n'.join(commands(s)), metadata={'kind': k}
            )
            for k, s in cells
        ]
    )
    stored = cache and cache / f'{path.stem}-{fingerprint(path)}.ipynb'
    if stored and stored.exists():
        return nbformat.read(stored, 4)
    if any(k != 'prose' for k, _ in cells):
        with tempfile.TemporaryDirectory() as d:
            work, tools = Path(d) / 'work', Path(d) / 'bin'
            work.mkdir(), tools.mkdir()
            (tools / 'vlm2rec').write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore -m {PACKAGE} "$@"\n')
            (tools / 'vlm2rec').chmod(0o755)
            env = {
                **os.environ,
                'PATH': f'{tools}{os.pathsep}{os.environ["PATH"]}',
                'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]),
                'LAB_ROOT': str(ROOT),
            }
            runner = Runner(
                nb,
                timeout=300,
                kernel_name='python3',
                resources={'metadata': {'path': str(work)}},
                extra_arguments=['--log-level=40'],
            )
            try:
                runner.execute(env=env)
            except CellExecutionError as e:
                raise PageError(f'docs/{path.name}\n{COLOURS.sub("", str(e))[-2500:]}') from None
    for c in nb.cells:
        if c.cell_type == 'code':
            c.metadata.pop('execution', None)
    nb.cells = [
        c for cell in nb.cells for c in (as_console(cell) if cell.metadata.get('kind') == 'console' else [cell])
    ]
    if stored:
        cache.mkdir(parents=True, exist_ok=True)
        for old in cache.glob(f'{path.stem}-*.ipynb'):
            old.unlink()
        nbformat.write(nb, stored)
    return nb


def as_console(cell):
    "A shell block and what it printed."
    from nbformat.v4 import new_markdown_cell

    lines = cell.source.split('\n')[2:]
    printed = ''.join(o.get('text', '') for o in cell.outputs)
    return [
        new_markdown_cell(
            '```sh\n'
            + '\n'.join(lines)
            + '\n```'
            + (f'\n\n```text\n{mask(printed).rstrip()}\n```' if printed.strip() else '')
        )
    ]


def fingerprint(path):
    "Of everything that a page's outputs follow from."
    files = [
        path,
        Path(__file__),
        ROOT / 'constraints.txt',
        *sorted((ROOT / PACKAGE).glob('*.py')),
        *sorted((ROOT / 'data').rglob('*.csv')),
        *sorted((ROOT / 'benchmarks').rglob('*.json')),
        ROOT / 'benchmarks' / 'scale.py',
        ROOT / 'benchmarks' / 'common.py',
    ]
    return hashlib.sha256(b'\0'.join(f.read_bytes() for f in files) + sys.version.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- API pages


def comments(source):
    "{line: comment} of a Python source."
    return {
        t.start[0]: t.string.lstrip('# ').strip()
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type == tokenize.COMMENT
    }


def short(node, most=48):  # an ast expression
    "Its source, cut where it is long."
    text = ast.unparse(node)
    return text if len(text) <= most else '...'


def parameters(f, said):  # ast.FunctionDef; `comments` of the module
    "Signature, rows (names, default, meaning) and the meaning of what comes back."
    a, rows = f.args, []
    plain = [*a.posonlyargs, *a.args]
    default = dict(zip(plain[::-1], a.defaults[::-1])) | {
        k: d for k, d in zip(a.kwonlyargs, a.kw_defaults) if d is not None
    }
    parts = (
        [short_arg(p, default.get(p)) for p in plain]
        + ([f'*{a.vararg.arg}'] if a.vararg else ['*'] if a.kwonlyargs else [])
        + [short_arg(p, default.get(p)) for p in a.kwonlyargs]
        + ([f'**{a.kwarg.arg}'] if a.kwarg else [])
    )
    lines = {}
    for p in [*plain, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]:
        last = default[p].end_lineno if p in default else p.end_lineno
        lines.setdefault(last, []).append(p)
    back = ''
    for line, here in lines.items():
        text = said.get(line, '')
        text, _, then = (' ' + text).partition(' -> ')
        if then:
            back = then.strip()
        here = [p for p in here if p.arg not in ('self', 'cls')]
        if here and text.strip():
            rows.append(
                (
                    ', '.join(('*' if p is a.vararg else '**' if p is a.kwarg else '') + p.arg for p in here),
                    ', '.join(short(default[p]) for p in here if p in default),
                    text.strip(),
                )
            )
    for line in range(max(lines, default=f.lineno), f.body[0].lineno):
        if line not in lines and said.get(line):
            back = said[line].removeprefix('->').strip()
    return f'({", ".join(parts)})', rows, back


def short_arg(p, default):
    "One parameter of a signature."
    kind = f': {short(p.annotation)}' if p.annotation else ''
    return p.arg + kind + ('' if default is None else f'{" = " if kind else "="}{short(default)}')


def cell_text(text):
    "Markdown that is safe in a table's cell: outside backticks everything is literal."
    parts = re.split(r'(`[^`]*`)', text)
    return ''.join(
        p.replace('|', '\\|') if p.startswith('`') else re.sub(r'([\\|*_$\[\]{}<])', r'\\\1', p) for p in parts
    )


def table(rows):  # (names, default, meaning)
    "Parameters as a Markdown table."
    if not rows:
        return ''

    def code(s):
        return f'`{s}`'.replace('|', '\\|') if s else ''

    return '\n| | default | |\n|---|---|---|\n' + ''.join(
        f'| {code(n)} | {code(d)} | {cell_text(t)} |\n' for n, d, t in rows
    )


def prose(text):
    "A docstring as Markdown: angle brackets and dollars are literal."
    return ''.join(
        p if p.startswith('`') else re.sub(r'([*_$\[\]{}<])', r'\\\1', p) for p in re.split(r'(`[^`]*`)', text or '')
    )


def added(tree):
    """{class: [(name, function)]} that a module gives its classes after they are made: by `@patch`, or as `Class.name
    = function`."""
    functions, out = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}, {}
    for n in tree.body:
        if isinstance(n, ast.FunctionDef) and any(
            getattr(getattr(d, 'func', d), 'id', '') == 'patch' for d in n.decorator_list
        ):
            out.setdefault(getattr(n.args.args[0].annotation, 'id', ''), []).append((n.name, n))
        if isinstance(n, ast.Assign):
            for to, what in zip(getattr(n.targets[0], 'elts', n.targets), getattr(n.value, 'elts', [n.value])):
                what = (
                    what.args[0]
                    if isinstance(what, ast.Call) and getattr(what.func, 'id', '') in ('classmethod', 'staticmethod')
                    else what
                )
                if (
                    isinstance(to, ast.Attribute)
                    and isinstance(to.value, ast.Name)
                    and getattr(what, 'id', '') in functions
                ):
                    out.setdefault(to.value.id, []).append((to.attr, functions[what.id]))
    return out


def describe(
    node, said, prefix='', name=None, more=()
):  # ast node; comments; name of the class around it; what it is called, if otherwise; further methods
    "A function or class in MyST's Python domain."
    doc, full = prose(ast.get_docstring(node)), prefix + (name or node.name)
    if isinstance(node, ast.FunctionDef):
        kinds = {d.id if isinstance(d, ast.Name) else getattr(d, 'attr', '') for d in node.decorator_list}
        signature, rows, back = parameters(node, said)
        signature = re.sub(r'^\((self|cls)(: \w+)?(, )?', '(', signature) if prefix else signature
        kind = (
            'py:property'
            if 'property' in kinds or 'cached_property' in kinds
            else 'py:method'
            if prefix
            else 'py:function'
        )
        options = '\n:classmethod:' if 'classmethod' in kinds else '\n:staticmethod:' if 'staticmethod' in kinds else ''
        return (
            f'````{{{kind}}} {full}{"" if kind == "py:property" else signature}{options}\n\n{doc}\n{table(rows)}'
            + (f'\nReturns {cell_text(back)}.\n' if back else '')
            + '````\n\n'
        )
    fields = [
        (n.target.id, short(n.value) if n.value is not None else '', said.get(n.end_lineno, ''))
        for n in node.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and not n.target.id.startswith('_')
    ]
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    init = next((m for m in methods if m.name == '__init__'), None)
    signature, rows, _ = parameters(init, said) if init else ('', [], '')
    if fields:
        signature = f'({", ".join(n + (f"={d}" if d else "") for n, d, _ in fields)})'
    bases = [short(b) for b in node.bases]
    body = doc + (f'\n\nA kind of `{bases[0]}`.' if bases else '') + '\n' + table(fields or rows)
    public = [
        m
        for m in methods
        if not m.name.startswith('_')
        and not any(isinstance(d, ast.Attribute) and d.attr == 'setter' for d in m.decorator_list)
    ]
    return (
        f'`````{{py:class}} {full}{re.sub(r"^.(self)(, )?", "(", signature)}\n\n{body}\n'
        + ''.join(describe(m, said, full + '.') for m in public)
        + ''.join(describe(m, said, full + '.', n) for n, m in more if not n.startswith('_'))
        + '`````\n\n'
    )


def exported(source):
    "Names in `__all__`, and the module's docstring."
    tree = ast.parse(source)
    listed = next(
        (
            ast.literal_eval(n.value)
            for n in tree.body
            if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'
        ),
        [],
    )
    return tree, listed


def api_page(
    path,  # module
    notebook,  # its notebook's stem
):  # -> Markdown
    "The API page of a module."
    source = path.read_text()
    (tree, listed), said = exported(source), comments(source)
    methods = added(tree)
    out = [
        f'# {path.stem}\n\n```{{py:module}} {PACKAGE}.{path.stem}\n```\n\n{prose(ast.get_docstring(tree))} Made, '
        f'explained and tested in the notebook [{notebook}](../nbs/{notebook}.ipynb).\n'
    ]
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in listed:
            out.append(
                f'<div class="lab-made"><a href="../nbs/{notebook}.html#{path.stem}.{node.name}">where it is '
                f'made</a></div>\n\n{describe(node, said, more=methods.get(node.name, ()))}'
            )
        elif isinstance(node, ast.Assign) and (
            given := [
                n.id
                for n in getattr(node.targets[0], 'elts', node.targets)
                if isinstance(n, ast.Name) and n.id in listed
            ]
        ):
            meaning = said.get(node.lineno, said.get(node.end_lineno, ''))
            shown = ast.get_source_segment(source, node)
            out += [f'````{{py:data}} {name}\n````\n' for name in given[:-1]]
            out.append(
                f'````{{py:data}} {given[-1]}\n\n{prose(meaning)}\n'
                + (f'\n```python\n{shown}\n```\n' if len(shown) < 4000 else '')
                + '````\n'
            )
    return '\n'.join(out)


# ---------------------------------------------------------------- the whole


def modules():
    "{module: stem of its notebook}, in the notebooks' order."
    found = {
        p.stem: re.search(r'#\s*\|\s*default_exp\s+(\w+)', p.read_text())
        for p in sorted((ROOT / 'nbs').glob('*.ipynb'))
    }
    return {m[1]: stem for stem, m in found.items() if m}


def linked_names(order):
    """{exported name: module}; {(module, name): module} for the notebook of that module. A name that two modules
    export links to neither from elsewhere; `cli` names commands."""
    out, twice = {}, set()
    for module in order:
        tree, listed = exported((ROOT / PACKAGE / f'{module}.py').read_text())
        for name in [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in listed]:
            out[module, name] = module
            if module == 'cli':
                continue
            if name in out:
                twice.add(name)
            out[name] = module
    return {k: v for k, v in out.items() if k not in twice}


def front(nb, text):
    "The front page: nbs/index.ipynb, with docs/index.md behind its first cell."
    from nbformat.v4 import new_markdown_cell

    for c in nb.cells:
        if c.cell_type == 'markdown':
            c.source = re.sub(
                r'\]\((\d\d\w*\.ipynb)',
                r'](nbs/\1',
                c.source.replace('](images/', '](nbs/images/').replace('](../', ']('),
            )
    nb.cells.insert(1, new_markdown_cell(link_pages(text)))
    return nb


def prepare(src, static):  # folders for Sphinx's sources and for scripts, to be made
    "Write the sources. Returns whether any page shows Jupyter widgets."
    import nbformat

    order = modules()
    names, widgets = linked_names(order), False
    placed = re.findall(r'^nbs/(\w+)$', (ROOT / 'docs' / 'index.md').read_text(), re.M)
    notebooks = '\n'.join(
        f'nbs/{p.stem}' for p in sorted((ROOT / 'nbs').glob('*.ipynb')) if p.stem not in ('index', *placed)
    )
    for d in ('nbs', 'api', 'docs'):
        (src / d).mkdir(parents=True)
    shutil.copytree(ROOT / 'nbs' / 'images', src / 'nbs' / 'images')
    for f in (ROOT / 'data').rglob('*.csv'):
        (to := src / f.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    (src / PACKAGE).mkdir()
    for f in (ROOT / PACKAGE).glob('*.py'):
        shutil.copy(f, src / PACKAGE)
    for path in sorted((ROOT / 'nbs').glob('*.ipynb')):
        nb = nbformat.read(path, 4)
        if not any(c.get('outputs') for c in nb.cells if c.cell_type == 'code'):
            print(f'{path.name} holds no outputs: run `make notebooks`')
        nb = convert(nb, names, next((m for m, stem in order.items() if stem == path.stem), None), static)
        if path.stem == 'index':
            nb = front(nb, (ROOT / 'docs' / 'index.md').read_text().replace('NOTEBOOKS', notebooks))
        widgets |= 'widgets' in nb.metadata
        nbformat.write(nb, src / ('index.ipynb' if path.stem == 'index' else f'nbs/{path.name}'))
    pages = [p for p in sorted((ROOT / 'docs').glob('*.md')) if p.stem != 'index']
    with ThreadPoolExecutor(2) as pool:
        executed = list(pool.map(lambda p: execute_page(p, BUILD / 'pages'), pages))  # each has a kernel of one thread
    for path, nb in zip(pages, executed):
        nb = convert(nb, names, static=static)
        widgets |= 'widgets' in nb.metadata
        nbformat.write(nb, src / 'docs' / f'{path.stem}.ipynb')
    for module, stem in order.items():
        (src / 'api' / f'{module}.md').write_text(api_page(ROOT / PACKAGE / f'{module}.py', stem))
    (src / 'api' / 'index.md').write_text(
        '# API\n\nSignatures and what each parameter means, taken from the modules at build time. The order is that of '
        'the notebooks: a module uses only those above it.\n\n| module | |\n|---|---|\n'
        + ''.join(
            f'| [{m}]({m}.md) | '
            f'{cell_text(ast.get_docstring(ast.parse((ROOT / PACKAGE / f"{m}.py").read_text())) or "")} |\n'
            for m in order
        )
        + '\n```{toctree}\n:hidden:\n'
        + '\n'.join(order)
        + '\n```\n'
    )
    shutil.copy(ROOT / 'CONTRIBUTING.md', src)  # included by docs/contribute.md
    return widgets


def sphinx(src, site, static):  # sources, where the site goes, folder of vendored scripts
    "Run Sphinx with warnings as errors; its exit status."
    command = [
        sys.executable,
        '-m',
        'sphinx',
        '-b',
        'html',
        '-W',
        '--keep-going',
        '-q',
        '-j',
        '2',
        '-d',
        str(src.parent / 'doctrees'),
        '-c',
        str(ROOT / 'docs'),
        str(src),
        str(site),
    ]
    return subprocess.run(command, env={**os.environ, 'LAB_STATIC': str(static)}).returncode


def build(site=SITE):
    """Make the site; returns dict(seconds, pages, bytes). Raises SystemExit where Sphinx finds fault, NotToBeHad for
    scripts."""
    start, src, static, made = time.time(), BUILD / 'src', BUILD / 'static', BUILD / 'html'
    for d in (src, static, made, BUILD / 'doctrees'):
        shutil.rmtree(d, ignore_errors=True)
    vendor(static, prepare(src, static))
    if status := sphinx(src, made, static):
        sys.exit(status)
    for f in (made / '.buildinfo', *made.rglob('*.map')):
        f.unlink(missing_ok=True)
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(made, site)  # a build that fails leaves the site of before
    files = [f for f in site.rglob('*') if f.is_file()]
    return dict(
        seconds=time.time() - start,
        pages=sum(f.suffix == '.html' for f in files),
        bytes=sum(f.stat().st_size for f in files),
    )


class Quiet(SimpleHTTPRequestHandler):
    "Serves files and keeps quiet about it."

    def log_message(self, *args):
        pass


def server(folder, port=0):  # port 0: any free one
    "A server of a folder on loopback."
    return ThreadingHTTPServer(('127.0.0.1', port), partial(Quiet, directory=str(folder)))


def main():
    parser = argparse.ArgumentParser(description='Build the documentation, or show it.')
    parser.add_argument(
        '--serve', action='store_true', help='show what was built on this machine only, until interrupted'
    )
    parser.add_argument('--port', type=int, default=8033)
    o = parser.parse_args()
    if not o.serve:
        try:
            made = build()
        except NotToBeHad as e:
            sys.exit(f'the documentation cannot be built here: {e}')
        except PageError as e:
            sys.exit(f'a page fails: {e}')
        return print(
            f'{os.path.relpath(SITE)}/index.html: {made["pages"]} pages, {made["bytes"] / 1e6:.1f} MB, '
            f'{made["seconds"]:.0f} s'
        )
    if not (SITE / 'index.html').exists():
        sys.exit('there is no site yet: make docs')
    with server(SITE, o.port) as s:
        print(f'http://127.0.0.1:{s.server_port}/  (Ctrl-C stops)', flush=True)
        try:
            s.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == '__main__':
    main()
