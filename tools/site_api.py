"""The API pages. Sphinx's autodoc reads signatures and docstrings; what is ours are the comments behind parameters
(docments), Markdown in docstrings, links to where a thing is made, and tables for rooms that hand on others' names."""

import ast
import importlib
import inspect
import io
import re
import textwrap
import tokenize
from functools import cache

from fastcore.docments import docments

from house import PURPOSE, ROOT, notebooks
from site_cells import DEFINED, FUNCTION, PACKAGE, definitions

LONGEST = 4000  # characters of a constant that is shown as it is written


# ---------------------------------------------------------------- what there is


def place_of(room):
    "Where a room's page lies below api/; a room called index must not take the place of its package's own."
    place = room.replace('.', '/')
    return f'{place}-room' if place.rpartition('/')[2] == 'index' else place


@cache
def rooms():
    "{room: path of its notebook under nbs/, without suffix}, in the notebooks' order."
    return notebooks(ROOT / 'nbs')


def source(room):
    "The text of a module."
    return (ROOT / PACKAGE / f'{room.replace(".", "/")}.py').read_text()


@cache
def parsed(room):
    "The tree of a module."
    return ast.parse(source(room))


def assigned(node):
    "Names that a statement of a module assigns."
    targets = getattr(node, 'targets', [getattr(node, 'target', None)])
    return [n.id for t in targets for n in getattr(t, 'elts', [t]) if isinstance(n, ast.Name)]


@cache
def exported(room):
    "Names in `__all__` of a module."
    for node in parsed(room).body:
        if isinstance(node, ast.Assign) and assigned(node) == ['__all__']:
            return ast.literal_eval(node.value)
    return []


def own(room):
    "Exported names that are made in the module itself, in the order of its lines."
    made = []
    for node in parsed(room).body:
        made += [node.name] if isinstance(node, DEFINED) else assigned(node)
    return [n for n in dict.fromkeys(made) if n in exported(room)]


def handed_on(room):
    "{exported name: room that makes it} of names that a module imports from another."
    found = {}
    for node in parsed(room).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module.removeprefix(f'{PACKAGE}.') if not node.level else node.module
            if node.level and '.' in room:
                inside = '.'.join([*room.split('.')[: -node.level], inside])
            names = [a.name for a in node.names if a.name in exported(room)]
            found |= {n: inside for n in names if inside in rooms()}
    return {n: to for n, to in found.items() if n not in own(room)}


def late(room):
    "Exported names that a module's `__getattr__` makes when they are asked for."
    if not any(isinstance(n, ast.FunctionDef) and n.name == '__getattr__' for n in parsed(room).body):
        return []
    return [n for n in exported(room) if n not in own(room) and n not in handed_on(room)]


@cache
def linked_names():
    """{exported name: room}; {(room, name): room} for the notebook of that room. A name that two rooms make links to
    neither from elsewhere; the rooms of the command line name commands."""
    out, twice = {}, set()
    for room in rooms():
        out |= {(room, name): to for name, to in handed_on(room).items()}
        for name in set(own(room)) & set(definitions(source(room))):
            out[room, name] = room
            if room.split('.')[0] in ('cli', 'commands'):
                continue
            if name in out:
                twice.add(name)
            out[name] = room
    return {k: v for k, v in out.items() if k not in twice}


# ---------------------------------------------------------------- Markdown of docstrings -> reStructuredText


def rst(text):
    "A docstring or a comment: names of ours become links, other backticks code, and everything else is literal."

    def code(m):
        name = m[1].removesuffix('()')
        room = linked_names().get(name)
        return f':py:obj:`{m[1]} <{PACKAGE}.{room}.{name}>`' if room else f'``{m[1].strip()}``'

    out = []
    for part in re.split(r'(`[^`]+`)', text):
        if re.fullmatch(r'`[^`]+`', part):
            out.append(f'\\ {code(re.fullmatch("`(.*)`", part, re.S))}\\ ')
        else:
            out.append(re.sub(r'([\\*_|`])', r'\\\1', part))
    return re.sub(r'^(\s*)\\ |\\ (\s|$)', r'\1\2', ''.join(out).replace(' \\ ', ' '))


@cache
def comments(room):
    "{line: comment} of a module."
    tokens = tokenize.generate_tokens(io.StringIO(source(room)).readline)
    return {t.start[0]: t.string.lstrip('# ').strip() for t in tokens if t.type == tokenize.COMMENT}


def parameters(f):  # function, or class of fields
    "What the comments say: list of (name, text), and of what comes back."
    try:
        said = docments(f)
        text = textwrap.dedent(inspect.getsource(f))
        node = ast.parse(text).body[0]
    except (TypeError, OSError, SyntaxError):
        return [], ''
    rows = [(n, ' '.join((t or '').split())) for n, t in said.items() if n not in ('self', 'cls', 'return')]
    rows, back = [(n, t) for n, t in rows if t], said.get('return') or ''
    if isinstance(node, FUNCTION):
        lines = text.splitlines()
        rows += starred(node, lines)
        last = lines[node.body[0].lineno - 2].partition('#')[2].strip()  # behind the signature: `parameter -> result`
        first, _, back = (' ' + last).partition(' -> ') if '-> ' in last else ('', '', back)
        rows = [(n, first.strip() if t == last else t) for n, t in rows]
    return [(n, t) for n, t in rows if t], back


def starred(node, lines):  # a function, and the lines that it stands in
    "What the comments say of `*args` and `**kw`, which docments leaves out: list of (name, text)."
    found = []
    for p, stars in ((node.args.vararg, '*'), (node.args.kwarg, '**')):
        said = lines[p.lineno - 1].partition('# ')[2] if p else ''
        found += [(stars + p.arg, said.strip())] if said else []
    return found


def fields(f):
    "The comments of a function or class as reStructuredText's fields."
    rows, back = parameters(f)
    lines = [':param {}: {}'.format(name.replace('*', '\\*'), rst(text)) for name, text in rows]
    return ['', *lines, *([f':returns: {rst(back.strip())}'] if back else []), '']


def constant(name):  # full name of a module's constant
    "What is said beside a constant, and how it is written."
    room, _, name = name.removeprefix(f'{PACKAGE}.').rpartition('.')
    node = next((n for n in parsed(room).body if name in assigned(n)), None)
    if node is None:
        return []
    said = {line: text for line, text in comments(room).items() if not text.startswith('%%')}
    ends = {n.end_lineno for n in parsed(room).body}  # a comment there belongs to another statement
    places = [node.lineno, node.end_lineno, *({node.lineno - 1} - ends)]
    text = next((said[k] for k in places if k in said), '')
    shown = ast.get_source_segment(source(room), node)
    code = ['.. code-block:: python', '', *(f'   {line}' for line in shown.splitlines())]
    return [rst(text), '', *(code if len(shown) < LONGEST else []), '']


# ---------------------------------------------------------------- for Sphinx


def docstring(app, what, name, obj, options, lines):
    "autodoc's hook: docstrings as reStructuredText, with what the comments say."
    if what == 'data':
        lines[:] = constant(name)
        return
    lines[:] = rst('\n'.join(lines)).split('\n')
    if what == 'class' and obj.__bases__ != (object,):
        lines += ['', f'A kind of ``{obj.__bases__[0].__name__}``.']
    if what in ('class', 'function', 'method'):
        lines += fields(obj)


def skip(app, what, name, obj, skipped, options):
    "autodoc's hook: of a class only methods and properties; its fields stand with the parameters."
    if what != 'class' or skipped:
        return None
    made = inspect.isroutine(obj) or isinstance(obj, (property, classmethod, staticmethod)) or hasattr(obj, 'func')
    return None if made else True


def where_made(domain, info):
    "linkcode's hook: the place in a notebook where a thing is made."
    room, name = info['module'].removeprefix(f'{PACKAGE}.'), info['fullname']
    if domain != 'py' or room not in rooms() or name not in definitions(source(room)):
        return None
    return f'{"../" * (room.count(".") + 1)}nbs/{rooms()[room]}.html#{room}.{name}'


# ---------------------------------------------------------------- pages


def purpose(room):
    "The first line of a module's docstring."
    return (ast.get_docstring(parsed(room)) or '').split('\n')[0]


def said_of(room, name):
    "The first sentence of a definition's docstring, or all of it where that would cut through code."
    for node in parsed(room).body:
        if isinstance(node, DEFINED) and node.name == name:
            whole = ' '.join((ast.get_docstring(node) or '').split())
            first = re.split(r'(?<=[.?])\s', whole)[0]
            return whole if first.count('`') % 2 else first
    return ''


def cell_text(text):
    "Markdown that is safe in a table's cell: outside backticks everything is literal."
    parts = re.split(r'(`[^`]*`)', text)
    safe = [p if p.startswith('`') else re.sub(r'([\\*_$\[\]{}<])', r'\\\1', p) for p in parts]
    return ''.join(safe).replace('|', '\\|')


def table_of_names(room):
    "Names that a room hands on, with links to where they are made."
    rows = []
    for name, to in handed_on(room).items():
        link = f'{{py:obj}}`{name} <{PACKAGE}.{to}.{name}>`'
        rows.append(f'| {link} | {cell_text(said_of(to, name))} | [{to}](/api/{place_of(to)}.md) |')
    return '\n'.join(['', '| name | | made in |', '|---|---|---|', *rows, '']) if rows else ''


def main_first(names, room):
    "Names of a room, the one that it is named after first, then functions and classes that users import, then others."
    handed = {n for top in rooms() if '.' not in top for n in exported(top)}
    leaf = room.rpartition('.')[2].replace('_', '')
    return sorted(names, key=lambda n: (n.lower().replace('_', '') != leaf, n not in handed, names.index(n)))


def directive(room, name):
    "What has autodoc show a function or a class, in the place where it stands."
    node = next(n for n in parsed(room).body if getattr(n, 'name', None) == name)
    if isinstance(node, ast.ClassDef):
        return f'\n\n.. autoclass:: {PACKAGE}.{room}.{name}\n   :members:'
    return f'\n\n.. autofunction:: {PACKAGE}.{room}.{name}'


def api_page(room):  # -> Markdown
    "The API page of a room: what autodoc says of its own names, and a table of those that it hands on."
    notebook = rooms()[room]
    made = definitions(source(room))
    functions = main_first([n for n in own(room) if n in made], room)
    members = ''.join(directive(room, n) for n in functions)
    members += ''.join(f'\n\n.. autodata:: {PACKAGE}.{room}.{n}' for n in own(room) if n not in made)
    asked = ', '.join(f'`{n}`' for n in late(room))
    asked = f'\nMade when they are asked for: {asked}.\n' if asked else ''
    return (
        f'# {room}\n\nMade, explained and tested in the notebook [{notebook}](/nbs/{notebook}.ipynb).\n\n'
        f'```{{eval-rst}}\n.. automodule:: {PACKAGE}.{room}{members}\n```\n{table_of_names(room)}{asked}'
    )


def table_of_rooms(found):
    "Rooms with their purposes."
    rows = [f'| [{r}](/api/{place_of(r)}.md) | {cell_text(purpose(r))} |' for r in found]
    return '\n'.join(['| module | |', '|---|---|', *rows])


def toctree(entries):
    "Pages for the table of contents."
    return '\n'.join(['', '```{toctree}', ':hidden:', *entries, '```', ''])


def write_api(folder):  # api/ among Sphinx's sources
    "Write the API pages: one per room, an index per package, and one of all."
    packages = list(dict.fromkeys(r.split('.')[0] for r in rooms() if '.' in r))
    top = [r for r in rooms() if '.' not in r]
    text = (
        '# API\n\nSignatures and what each parameter means, read from the modules at build time. What most people '
        'import stands first; the rooms behind it follow by package, each package using only those above it.\n\n'
    )
    rows = [f'| [{p}](/api/{p}/index.md) | {cell_text(PURPOSE.get(p, ""))} |' for p in packages]
    text += table_of_rooms(top) + '\n' + '\n'.join(rows) + '\n'
    folder.mkdir(parents=True)
    (folder / 'index.md').write_text(text + toctree([*top, *(f'{p}/index' for p in packages)]))
    for package in packages:
        inside = [r for r in rooms() if r.startswith(f'{package}.')]
        (folder / package).mkdir()
        text = f'# {package}\n\n{PURPOSE.get(package, "").capitalize()}.\n\n{table_of_rooms(inside)}\n'
        (folder / package / 'index.md').write_text(text + toctree(place_of(r).partition('/')[2] for r in inside))
    for room in rooms():
        (folder / f'{place_of(room)}.md').write_text(api_page(room))


def setup(app):
    "Our hooks, for docs/conf.py."
    for room in rooms():
        importlib.import_module(f'{PACKAGE}.{room}')  # before autodoc: @patch adds methods to classes made elsewhere
    app.connect('autodoc-process-docstring', docstring)
    app.connect('autodoc-skip-member', skip)
