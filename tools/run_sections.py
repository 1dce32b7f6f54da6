"""Run a notebook's tests and say what became of each section: python tools/run_sections.py nbs/03_train.ipynb

Prints a line of JSON per section: {"section": ..., "ok": ..., "error": ...}. Sections are those of headings. After a
failure the rest is not run, and says so. Exported cells are run from the module, so that coverage sees what is tested.
"""

import json
import os
import re
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = 'vlm2rec_lab'
LEFT_OUT = ('notest', 'slow', 'gpu')
EXPORTED = re.compile(r'^# %% \S+ #(\S+)$', re.M)


def directives(source):
    "The nbdev directives of a cell."
    return [line.split('|', 1)[1].strip() for line in source.splitlines() if re.match(r'#\s*\|', line)]


def is_run(source):
    "Whether the tests run a code cell."
    marks = directives(source)
    flagged = any(m.split()[0] in LEFT_OUT for m in marks if m)
    return not flagged and 'eval: false' not in marks and 'nbdev_export(' not in source


def sections(path):
    "[(title of the heading, [(cell id, source)])] of a notebook's code cells that are run, in order."
    found = [('the beginning', [])]
    for cell in json.loads(Path(path).read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            heading = re.search(r'^##+ (.+)$', source, re.M)
            if heading:
                found.append((heading[1].strip(), []))
        elif cell['cell_type'] == 'code' and is_run(source):
            found[-1][1].append((cell['id'], source))
    return [(title, cells) for title, cells in found if cells]


def named_once(titles):
    "Titles, a number behind those that come again."
    seen = {}
    for title in titles:
        seen[title] = seen.get(title, 0) + 1
        yield title if seen[title] == 1 else f'{title} ({seen[title]})'


def exported_lines(path):
    "{cell id: (file, first line, source)} of a notebook's module."
    text = Path(path).read_text(encoding='utf-8')
    module = re.search(r'#\s*\|\s*default_exp ([\w.]+)', text)
    if not module:
        return {}
    file = ROOT / PACKAGE / f'{module[1].replace(".", "/")}.py'
    if not file.exists():
        return {}
    code, found = file.read_text(encoding='utf-8'), {}
    marks = list(EXPORTED.finditer(code))
    for mark, after in zip(marks, [*marks[1:], None]):
        source = code[mark.end() + 1 : after.start() if after else len(code)]
        found[mark[1]] = file, code.count('\n', 0, mark.end()) + 1, source
    return found


def run_exported(file, line, source, names):
    "Run lines of a module, where they stand, in the notebook's names."
    package = '.'.join(file.relative_to(ROOT).parent.parts)
    names['__package__'] = package
    exec(compile('\n' * line + source, str(file), 'exec'), names)


def run_cell(shell, cell, source, exported):
    "Run one cell; raises what it raises."
    if cell in exported:
        run_exported(*exported[cell], shell.user_ns)
        return
    shell.run_cell(source, store_history=False).raise_error()


def run(path):
    "Yield (section, error or None) for each section; a section that is not reached has an error that says so."
    from IPython.core.interactiveshell import InteractiveShell

    os.environ['IN_TEST'] = '1'
    sys.path.insert(0, str(ROOT))
    parts, exported = sections(path), exported_lines(path)
    shell, failed = InteractiveShell.instance(), None
    os.chdir(Path(path).parent)
    for title, (_, cells) in zip(named_once(t for t, _ in parts), parts):
        if failed:
            yield title, f'not run: the section {failed!r} before it failed'
            continue
        for cell, source in cells:
            try:
                run_cell(shell, cell, source, exported)
            except BaseException:
                failed = title
                yield title, f'{source[:1500]}\n\n{traceback.format_exc()[-3000:]}'
                break
        else:
            yield title, None


def tell(path, out):
    "Run a notebook and write a line for each section to out; whether all went well."
    ok = True
    with open(os.devnull, 'w') as nowhere:
        sys.stdout = nowhere
        for title, error in run(path):
            ok = ok and error is None
            print(json.dumps({'section': title, 'ok': error is None, 'error': error}), file=out, flush=True)
    sys.stdout = out
    return ok


if __name__ == '__main__':
    sys.exit(not tell(Path(sys.argv[1]).resolve(), sys.stdout))
