"""How the code reads, in figures: python tools/measure.py [PACKAGE [NOTEBOOKS]], for this project or any other.
Standard library only."""

import ast
import json
import re
import statistics
import sys
from pathlib import Path

CHECK = re.compile(r'^(test_\w+|raises|expect_fail)$')
EXPORT = re.compile(r'^#\s*\|\s*exporti?s?\b', re.M)
DIRECTIVE = re.compile(r'^\s*#\s*\|')


def parsed(source):
    "The tree of a cell or module; None where it is no plain Python."
    plain = '\n'.join('pass' if line.lstrip().startswith(('%', '!')) else line for line in source.splitlines())
    try:
        return ast.parse(plain)
    except SyntaxError:
        return None


def semicolons(tree):
    "Lines that hold more than one statement, `a; b` and `if a: b` alike."
    shared = set()
    for node in ast.walk(tree):
        for body in (getattr(node, name, None) for name in ('body', 'orelse', 'finalbody')):
            if not isinstance(body, list):
                continue
            for before, after in zip(body, body[1:]):
                if before.end_lineno == after.lineno:
                    shared.add(after.lineno)
    return len(shared)


def lambdas(tree):
    "Lambdas that are given a name."
    return sum(isinstance(n, ast.Assign) and isinstance(n.value, ast.Lambda) for n in ast.walk(tree))


def checks(tree):
    "Asserts and calls such as test_eq(...)."
    asserts = sum(isinstance(n, ast.Assert) for n in ast.walk(tree))
    called = (n.func for n in ast.walk(tree) if isinstance(n, ast.Call))
    names = (f.id if isinstance(f, ast.Name) else getattr(f, 'attr', '') for f in called)
    return asserts + sum(bool(CHECK.match(name)) for name in names)


def signatures(tree):
    "(arguments, lines from def to the first statement, name) of every function."
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            a = node.args
            n = len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs) + bool(a.vararg) + bool(a.kwarg)
            yield n, node.body[0].lineno - node.lineno, node.name


def lengths(lines):
    "What can be said of the lengths of lines, in words."
    long = sum(len(line) > 120 for line in lines)
    share = 100 * long / max(len(lines), 1)
    most = max(map(len, lines), default=0)
    return f'{share:.2f} % ({long}); over 160: {sum(len(x) > 160 for x in lines)}, longest {most}'


def cells_of(folder):
    "(notebook, kind, source) of every cell; kind is 'export', 'test', 'shown' or 'prose'."
    for path in sorted(folder.rglob('*.ipynb')):
        if '.ipynb_checkpoints' in path.parts or '_proc' in path.parts:
            continue
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            source = ''.join(cell['source'])
            if cell['cell_type'] != 'code':
                yield path, 'prose', source
                continue
            tree = parsed(source)
            test = tree is not None and checks(tree) > 0
            yield path, 'export' if EXPORT.search(source) else 'test' if test else 'shown', source


def two_statements(trees):
    "Lines with two statements, and lambdas that are given a name."
    return f'{sum(map(semicolons, trees))} / {sum(map(lambdas, trees))}'


def sizes(numbers):
    "How many there are, the median, and the largest."
    return f'{len(numbers)}, {statistics.median(numbers):g}, {max(numbers)}' if numbers else '0'


def measure(package, notebooks):
    "{what is measured: figure in words}."
    sources = [p.read_text(encoding='utf-8') for p in sorted(package.rglob('*.py')) if p.stem != '_modidx']
    trees = [t for t in map(parsed, sources) if t is not None]
    lines = [line for source in sources for line in source.splitlines()]
    widest = max((s for t in trees for s in signatures(t)), default=(0, 0, ''))
    rows = {
        'package lines': f'{len(lines):,} in {len(sources)} modules',
        'package lines over 120': lengths(lines),
        'lines with two statements / named lambdas, package': two_statements(trees),
        'longest signature': f'{widest[0]} arguments of {widest[2]}',
    }
    if not notebooks.is_dir():
        return rows
    cells = list(cells_of(notebooks))
    export = [
        [x for x in s.splitlines() if x.strip() and not DIRECTIVE.match(x)] for _, kind, s in cells if kind == 'export'
    ]
    other = [s for _, kind, s in cells if kind in ('test', 'shown')]
    others = [t for t in map(parsed, other) if t is not None]
    counts = [(checks(parsed(s)), p.name) for p, kind, s in cells if kind == 'test']
    many = sorted((x for x in counts if x[0] > 8), reverse=True)
    per_line = [len(x) for c in export for x in c]
    rows |= {
        'test and shown cells, lines over 120': lengths([x for s in other for x in s.splitlines()]),
        'test and shown cells, lines with two statements / named lambdas': two_statements(others),
        'export cells: number, median lines, most': sizes(list(map(len, export))),
        'export cells: median characters a line': f'{statistics.median(per_line):g}' if export else '',
        'checks in a test cell: median, most': f'{statistics.median(n for n, _ in counts):g}, {max(counts)[0]}'
        if counts
        else '',
        'test cells of more than 8 checks': f'{len(many)} {", ".join(f"{name} {n}" for n, name in many[:12])}',
    }
    return rows


def main():
    package = Path(sys.argv[1] if len(sys.argv) > 1 else 'vlm2rec_lab')
    notebooks = Path(sys.argv[2] if len(sys.argv) > 2 else 'nbs')
    if not package.is_dir():
        sys.exit(f'there is no folder {package}: python tools/measure.py [PACKAGE [NOTEBOOKS]]')
    for what, figure in measure(package, notebooks).items():
        print(f'{what:66} {figure}')


if __name__ == '__main__':
    main()
