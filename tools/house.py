"""The rooms of the house and the arrows between them, read from the code: python tools/house.py [PACKAGE [NOTEBOOKS]]

Prints the drawn part of the page *How the house is built*, or what breaks a rule, with exit status 1. Imports are
followed to their true targets: relative ones, those inside functions, and `importlib.import_module`.
"""

import ast
import functools
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SURFACE = ('data', 'studio', 'metrics', 'embed', 'losses', 'diagnose', 'widgets')
WINGS = ('recommenders', 'graph', 'federated', 'prompts', 'share')
PURPOSE = {  # package -> what it is for, in the order of the floors
    'base': 'errors that name the remedy, files and checkpoints that survive, one palette',
    'shop': 'what a shop knows: pictures, catalogues, interactions, splits, readers, the drawn studio',
    'ranking': 'vectors to rankings: fusions, ranks, metrics, baselines',
    'model': 'a vision-language model as an embedder: families, prompts, passes, the tiny checkpoints',
    'training': 'what a training step is made of: losses, batches, gradients by modality',
    'diagnosis': 'which modality is alive, from anybody\'s vectors',
    'show': 'pictures and widgets, their scripts and styles',
    'recommenders': 'sequential recommenders that begin with the vectors',
    'graph': 'recommenders that let vectors flow along purchases',
    'prompts': 'one text-to-text model that is asked for items in words',
    'federated': 'recommenders that keep learning, of customers whose data stay with them',
    'share': 'models, vectors and verdicts where other tools expect them: cards, indexes, a service, mteb',
    'studies': 'the experiments behind the claims',
    'commands': 'what `vlm2rec` can do, a command with its options in one place',
}
MAY_NOT = {  # package -> what it must not import, and why
    'base': (('shop', 'ranking', 'model', 'training', 'train', 'diagnosis', 'show', *WINGS), 'everything stands on it'),
    'shop': (('ranking', 'model', 'training', 'train', 'diagnosis', 'show', *WINGS), 'data know no model'),
    'ranking': (('model', 'training', 'train', 'diagnosis', 'show', *WINGS), 'it ranks anybody\'s vectors'),
    'diagnosis': (('model', 'training', 'train', 'show', *WINGS), 'it works on anybody\'s vectors'),
    'model': (('training', 'train', 'diagnosis', 'show', *WINGS), 'a model does not know how it is trained'),
    'training': (('diagnosis', 'show', *WINGS), 'probes observe and never steer'),
    **{
        wing: (('show', *(w for w in WINGS if w != wing)), 'a wing stands by itself, without pictures')
        for wing in WINGS
    },
}


@dataclass
class Room:
    "A module, and what it takes from others."

    name: str  # such as 'shop.readers'
    notebook: str  # path under nbs/, without suffix; '' where there is none
    purpose: str  # first line of its docstring
    lines: int
    takes: dict = field(default_factory=dict)  # room -> names taken from it
    bare: list = field(default_factory=list)  # public definitions without a docstring

    @property
    def package(self):
        "Its package; '' for the rooms at the top."
        return self.name.rpartition('.')[0]


def notebooks(folder):
    "{room: path under the folder} in the order of the notebooks."
    found = {}
    for path in sorted(folder.rglob('*.ipynb')):
        if '.ipynb_checkpoints' in path.parts:
            continue
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
        if m := re.search(r'^#\s*\|\s*default_exp\s+(\S+)', text, re.M):
            found[m[1]] = str(path.relative_to(folder)).removesuffix('.ipynb')
    return found


def is_room(path):
    "Whether a file of the package is a room."
    return not path.stem.startswith('_')


def target(base, name, rooms):
    "The room that `from base import name` leads to, and the name taken from it; None outside the house."
    whole = f'{base}.{name}' if base else name
    if whole in rooms:
        return whole, None
    return (base, name) if base in rooms else None


def within(module, package):
    "The name of a module without the package before it, '' for the package itself; None for one from elsewhere."
    first, _, rest = module.partition('.')
    return rest if first == package else None


def absolute(node, room, package):
    "The module that an `import from` names, within the package; None for one from elsewhere."
    if node.level:
        here = room.split('.')
        return '.'.join([*here[: len(here) - node.level], *([node.module] if node.module else [])])
    return within(node.module, package)


HIDDEN = 'no room by its name'
BY_NAME = 'import_module', '__import__', 'find_spec'
LEADS = ast.ImportFrom, ast.Import, ast.Call


def constants(tree):
    "{name: text} of the strings at the top of a module."
    pairs = [(t, n.value) for n in tree.body if isinstance(n, ast.Assign) for t in n.targets]
    return {t.id: v.value for t, v in pairs if isinstance(t, ast.Name) and isinstance(v, ast.Constant)}


def other_names(nodes):
    "{name: what it is in its own module} of functions that import by a string and have another name here."
    taken = [n for n in nodes if isinstance(n, ast.ImportFrom)]
    return {a.asname: a.name for n in taken for a in n.names if a.asname and a.name in BY_NAME}


def by_string(node, room, package, known):
    "What an `import_module('package.room')` or `__import__(...)` leads to: a module, HIDDEN, or None for elsewhere."
    given = dict(zip(('name', 'package'), node.args)) | {k.arg: k.value for k in node.keywords}
    called = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    if known.get(called, called) not in BY_NAME or 'name' not in given:
        return None
    first = given['name']
    text = known.get(first.id) if isinstance(first, ast.Name) else getattr(first, 'value', None)
    if not isinstance(text, str):
        return HIDDEN
    dots = len(text) - len(text.lstrip('.'))
    if not dots:
        return within(text, package)
    anchor = getattr(given.get('package'), 'value', None)
    here = anchor.split('.')[1:] if isinstance(anchor, str) else room.split('.')[:-1]
    return '.'.join([*here[: len(here) - dots + 1], text[dots:]])


def imports(tree, room, package, rooms):
    "Yield (room, name or None) for every import of a module, wherever it stands."
    nodes = [n for n in ast.walk(tree) if isinstance(n, LEADS)]
    known = constants(tree) | other_names(nodes)
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            base = absolute(node, room, package)
            for a in node.names if base is not None else ():
                found = target(base, a.name, rooms) or (HIDDEN, None)
                yield found if a.name != '*' else (found[0], '*')
        elif isinstance(node, ast.Import):
            for found in [within(a.name, package) for a in node.names]:
                if found is not None:
                    yield found if found in rooms else HIDDEN, None
        elif isinstance(node, ast.Call):
            found = by_string(node, room, package, known)
            if found is not None:
                yield found if found in rooms else HIDDEN, None


def without_docstring(tree):
    "Public functions, classes and methods of a module that say nothing of themselves."
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    public = [('', n) for n in tree.body if isinstance(n, kinds) and not n.name.startswith('_')]
    for _, c in [p for p in public if isinstance(p[1], ast.ClassDef)]:
        public += [(f'{c.name}.', n) for n in c.body if isinstance(n, kinds) and not n.name.startswith('_')]
    return [inside + n.name for inside, n in public if not ast.get_docstring(n)]


@functools.lru_cache(maxsize=2000)
def told(text, name, package, rooms):
    "What the text of a room says: (its purpose, [(room, name or None)] that it takes, what has no docstring)."
    tree = ast.parse(text)
    takes = [(to, taken) for to, taken in imports(tree, name, package, rooms) if to != name]
    return (ast.get_docstring(tree) or '').split('\n')[0], takes, without_docstring(tree)


def read_house(package, nbs):
    "{name: Room}, in the order of the notebooks."
    made_in = notebooks(nbs)
    files = {'.'.join(p.relative_to(package).with_suffix('').parts): p for p in package.rglob('*.py') if is_room(p)}
    order = [r for r in made_in if r in files] + sorted(set(files) - set(made_in))
    house, rooms = {}, frozenset(files)
    for name in order:
        text = files[name].read_text(encoding='utf-8')
        purpose, takes, bare = told(text, name, package.name, rooms)
        room = Room(name, made_in.get(name, ''), purpose, text.count('\n'), bare=[*bare])
        for to, taken in takes:
            room.takes.setdefault(to, []).append(taken)
        house[name] = room
    return house


def doors(package):
    "What is wrong with the packages' own files, a sentence each: whoever imports one must not get its rooms with it."
    for path in sorted(package.rglob('__init__.py')):
        body = ast.parse(path.read_text(encoding='utf-8')).body
        loaded = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
        if path.parent != package and body:
            yield f'{path.parent.name}/__init__.py is not empty: name the room, not its package'
        elif any(getattr(n, 'level', 0) or within(getattr(n, 'module', None) or '', package.name) for n in loaded):
            yield f'{path.parent.name}/__init__.py loads rooms at once: find them when they are asked for'


def circles(house):
    "Rooms that lead back to themselves: lists of names, each circle once."
    found, state, path = [], {}, []

    def walk(name):
        state[name] = 'open'
        path.append(name)
        for to in house[name].takes:
            if state.get(to) == 'open':
                found.append([*path[path.index(to) :], to])
            elif to in house and to not in state:
                walk(to)
        path.pop()
        state[name] = 'done'

    for name in house:
        if name not in state:
            walk(name)
    return found


def top(name):
    "The package of a room, or the room itself where it stands at the top."
    return name.split('.')[0]


def faults(house):
    "What breaks a rule of the house, a sentence each."
    place = {name: k for k, name in enumerate(house)}
    for name, room in house.items():
        if not room.notebook:
            yield f'{name} has no notebook'
        if room.bare:
            yield f'{name}: no docstring at {", ".join(room.bare)}'
        not_these, why = MAY_NOT.get(room.package, ((), ''))
        for to, names in room.takes.items():
            if to == HIDDEN:
                yield f'{name} imports {HIDDEN}: write out the room that makes what it needs'
                continue
            if '*' in names:
                yield f'{name}: star import from {to}'
            if place[to] > place[name]:
                yield f'{name} imports {to}, which comes later'
            if top(to) in not_these:
                yield f'{name} imports {to}: {room.package} must not, since {why}'
            if room.package and to in SURFACE:
                yield f'{name} imports {to}, which is the surface for users: name the room behind it'
    for circle in circles(house):
        yield f'a circle: {" -> ".join(circle)}'


def floors(house):
    "{package or room at the top: set of packages and rooms that it takes from}."
    found = {}
    for name, room in house.items():
        found.setdefault(top(name), set()).update(top(to) for to in room.takes if to != HIDDEN and top(to) != top(name))
    return found


def table_of_floors(house):
    "Markdown: a row per package and room at the top, with its arrows."
    rooms = {}
    for name in house:
        rooms.setdefault(top(name), []).append(name)
    rows = ['| floor | rooms | what it is for | takes from |', '|---|---|---|---|']
    for k, (name, takes) in enumerate(floors(house).items(), 1):
        inside = [r.split('.')[1] for r in rooms[name] if '.' in r]
        purpose = PURPOSE.get(name) or (house[name].purpose if name in house else '')
        rows.append(
            f'| {k} `{name}` | {", ".join(inside) or "one"} | {purpose} | {", ".join(sorted(takes)) or "nothing"} |'
        )
    return '\n'.join(rows)


def table_of_rooms(house):
    "Markdown: a row per room."
    rows = ['| room | lines | what it is for | made in |', '|---|---|---|---|']
    for name, room in house.items():
        rows.append(f'| `{name}` | {room.lines:,} | {room.purpose} | {room.notebook or "-"} |')
    return '\n'.join(rows)


def table_of_rules():
    "Markdown: a row per package that must not import everything below it."
    rows = ['| package | must not import | since |', '|---|---|---|']
    for name, (not_these, why) in MAY_NOT.items():
        rows.append(f'| `{name}` | {", ".join(f"`{n}`" for n in not_these)} | {why} |')
    return '\n'.join(rows)


def page(package=ROOT / 'vlm2rec_lab', nbs=ROOT / 'nbs'):
    "The drawn part of the docs page: floors, rooms, and the number of arrows."
    house = read_house(Path(package), Path(nbs))
    arrows = sum(len(room.takes) for room in house.values())
    between = sum(len(takes) for takes in floors(house).values())
    said = (
        f'{len(house)} rooms on {len(floors(house))} floors: {arrows} arrows between rooms, {between} between floors, '
        f'{len(circles(house))} circles.'
    )
    return f'{said}\n\n{table_of_floors(house)}\n\n### Every room\n\n{table_of_rooms(house)}'


def main():
    package = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / 'vlm2rec_lab'
    nbs = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / 'nbs'
    if not package.is_dir() or not nbs.is_dir():
        sys.exit('python tools/house.py [PACKAGE FOLDER [NOTEBOOKS]]: there is no such folder')
    wrong = [*faults(read_house(package, nbs)), *doors(package)]
    if wrong:
        sys.exit('\n'.join(wrong))
    print(page(package, nbs))


if __name__ == '__main__':
    main()
