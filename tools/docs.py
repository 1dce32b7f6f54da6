"""The documentation as a static site: python tools/docs.py [--serve]

Three kinds of pages become one site in `_docs`, which asks for nothing outside itself:
- `docs/*.md`: every fence marked python is executed, every fence marked console runs its `$` lines in a shell; what
  they print stands below them;
- notebooks under `nbs/`, with the outputs that they hold;
- a page per module, by Sphinx's autodoc.

An executed page is kept by the content of all that it follows from, in build/docs/pages, or in the folder that
VLM2REC_DOCS names, which several clones and a server that builds may share.

`site_cells.py` makes notebooks of the pages, `site_api.py` tells autodoc of our comments, `site_scripts.py` fetches
what browsers need, `site_sidebar.py` writes the tree of pages once, `site_access.py` names what has no name; settings
of Sphinx and MyST-NB are in `docs/conf.py`.
"""

import argparse
import filecmp
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault('PLOTLY_RENDERER', 'plotly_mimetype')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('OMP_NUM_THREADS', '1')

import nbformat
from nbformat.v4 import new_markdown_cell
from site_access import mend

from house import PURPOSE, ROOT
from site_api import cell_text, linked_names, purpose, rooms, write_api
from site_cells import PACKAGE, PageError, convert, execute_page, link_pages
from site_scripts import NotToBeHad, vendor

BUILD = ROOT / 'build' / 'docs'  # sources as Sphinx gets them, vendored scripts
PAGES = Path(os.environ.get('VLM2REC_DOCS') or BUILD / 'pages')  # executed pages, by content; clones may share them
SITE = ROOT / '_docs'
SHOWN = ('nbs/images', 'data', PACKAGE, 'CONTRIBUTING.md', 'CHANGELOG.md', 'CITATION.cff')  # pages include them


APART = ('index', 'landing')  # pages of docs/ that become parts of the front page


def front(nb, text, shown=()):  # notebook, docs/index.md, executed cells of docs/landing.md
    "The front page: nbs/index.ipynb, with what shows it behind its first cell, and then the ways on."
    for c in nb.cells:
        if c.cell_type == 'markdown':
            c.source = c.source.replace('](images/', '](nbs/images/').replace('](../', '](')
            c.source = re.sub(r'\]\((\d\d\w*(?:/\w+)?\.ipynb)', r'](nbs/\1', c.source)
            c.source = re.sub(r'\]\((\d\d\w*)/?\)', r'](nbs/\1/index.md)', c.source)
    head, quote, rest = nb.cells[0].source.partition('\n> ')
    purpose, _, more = rest.partition('\n\n')
    nb.cells[0].source = head + quote + purpose
    nb.cells[1:1] = [*shown, new_markdown_cell(more), new_markdown_cell(link_pages(text))]
    return nb


def sources():
    "Notebooks of the site."
    return [p for p in sorted((ROOT / 'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]


def write_notebooks(src, static):
    "Write the notebooks for Sphinx; yields each."
    made = {notebook: room for room, notebook in rooms().items()}
    for path in sources():
        nb = nbformat.read(path, 4)
        if not any(c.get('outputs') for c in nb.cells if c.cell_type == 'code'):
            print(f'{path.relative_to(ROOT)} holds no outputs: run `make notebooks`')
        here = path.relative_to(ROOT).with_suffix('')
        nb = convert(nb, linked_names(), made.get(str(here.relative_to('nbs'))), static)
        if path.stem == 'index':
            landing = convert(execute_page(ROOT / 'docs' / 'landing.md', PAGES), {}, static=static)
            nb, here = front(nb, (ROOT / 'docs' / 'index.md').read_text(), landing.cells), Path('index')
        to = src / f'{here}.ipynb'
        to.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, to)
        yield nb


def write_folders(src):
    "An index for every folder of notebooks."
    for folder in sorted({Path(n).parent for n in rooms().values() if '/' in n}):
        inside = {Path(n).name: room for room, n in rooms().items() if Path(n).parent == folder}
        package = next(iter(inside.values())).split('.')[0]
        rows = [f'| [{name}]({name}.ipynb) | {cell_text(purpose(room))} |' for name, room in inside.items()]
        text = f'# {package}\n\n{PURPOSE.get(package, "").capitalize()}.\n\n| notebook | |\n|---|---|\n'
        text += '\n'.join(rows) + '\n\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n'
        (src / 'nbs' / folder / 'index.md').write_text(text)


def write_pages(src, static):
    "Execute the pages of `docs/` and write them for Sphinx; yields each."
    (src / 'docs').mkdir()
    pages = [p for p in sorted((ROOT / 'docs').glob('*.md')) if p.stem not in APART]
    with ThreadPoolExecutor(2) as pool:  # each page has a kernel of one thread
        executed = list(pool.map(lambda p: execute_page(p, PAGES), pages))
    for path, nb in zip(pages, executed):
        nb = convert(nb, linked_names(), static=static)
        nbformat.write(nb, src / 'docs' / f'{path.stem}.ipynb')
        yield nb


def prepare(src, static):  # folders for Sphinx's sources and for scripts, to be made
    "Write the sources. Returns whether any page shows Jupyter widgets."
    (src / 'nbs').mkdir(parents=True)
    for there in SHOWN:
        (src / there).symlink_to(ROOT / there)
    shown = [*write_notebooks(src, static), *write_pages(src, static)]
    write_folders(src)
    write_api(src / 'api')
    return any('widgets' in nb.metadata for nb in shown)


def sphinx(src, site, static):  # sources, where the site goes, folder of vendored scripts
    "Run Sphinx with warnings as errors; its exit status."
    options = ['-b', 'html', '-W', '--keep-going', '-q', '-j', '2', '-d', src.parent / 'doctrees', '-c', ROOT / 'docs']
    command = [sys.executable, '-m', 'sphinx', *options, src, site]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    env = {**os.environ, 'LAB_STATIC': str(static), 'PYTHONPATH': paths}
    return subprocess.run([str(c) for c in command], env=env).returncode


def put_in_step(new, kept):  # folders
    "Make `kept` hold what `new` holds; files that are the same stay as they are, with their time. `new` is gone then."
    there = {p.relative_to(new) for p in new.rglob('*') if p.is_symlink() or p.is_file()}
    if kept.is_dir():
        for p in [p for p in kept.rglob('*') if p.is_symlink() or p.is_file()]:
            if p.relative_to(kept) not in there:
                p.unlink()
    for name in sorted(there):
        a, b = new / name, kept / name
        if a.is_symlink():
            same = b.is_symlink() and os.readlink(a) == os.readlink(b)
        else:
            same = b.is_file() and not b.is_symlink() and filecmp.cmp(a, b, shallow=False)
        if not same:
            b.parent.mkdir(parents=True, exist_ok=True)
            b.unlink(missing_ok=True)
            os.replace(a, b)
    shutil.rmtree(new)


def outline(src):  # folder of sources
    "A mark of what every page shows of the others and of how pages are made: where it differs, all are made again."
    h = hashlib.sha256(f'{sys.version} {sorted((d.name, d.version) for d in distributions())}'.encode())
    makers = [*sorted((ROOT / 'tools').glob('*.py')), *sorted((ROOT / 'docs').glob('[!.]*.py'))]
    parts = [p for name in ('_static', '_templates') for p in sorted((ROOT / 'docs' / name).rglob('*'))]
    for p in (*makers, *parts):
        h.update(p.read_bytes() if p.is_file() else b'')
    for p in sorted(p for p in src.rglob('*') if p.suffix in ('.ipynb', '.md', '.rst') and not p.is_symlink()):
        cells = nbformat.read(p, 4).cells if p.suffix == '.ipynb' else [new_markdown_cell(p.read_text())]
        text = '\n'.join(c.source for c in cells if c.cell_type == 'markdown')
        headings = [line for line in text.splitlines() if line.startswith('#') or set(line) in ({'='}, {'-'})]
        h.update(f'{p.relative_to(src)} {text.splitlines()[:1]} {headings}\n'.encode())
        h.update(text.encode() if '{toctree}' in text or '.. toctree' in text else b'')
    return h.hexdigest()


def build(site=SITE):
    """Make the site; returns dict(seconds, pages, bytes). Raises SystemExit where Sphinx finds fault, NotToBeHad for
    scripts. What Sphinx read and wrote is kept, and only pages whose sources changed are made again."""
    start, src, new, static = time.time(), BUILD / 'src', BUILD / 'src.new', BUILD / 'static'
    kept, made, mark = (BUILD / 'doctrees', BUILD / 'html'), BUILD / 'made', BUILD / 'outline'
    for d in (new, static, made):
        shutil.rmtree(d, ignore_errors=True)
    vendor(static, prepare(new, static), BUILD / 'vendor')
    now = outline(new)
    if not mark.is_file() or mark.read_text() != now or not src.is_dir():
        for d in (src, *kept):
            shutil.rmtree(d, ignore_errors=True)
    put_in_step(new, src)
    mark.unlink(missing_ok=True)  # a build that is cut off or fails is made again as a whole, with its warnings
    if status := sphinx(src, kept[1], static):
        sys.exit(status)
    mark.write_text(now)
    shutil.copytree(kept[1], made)
    mend(made)
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
    "Serves files and keeps quiet about it; the site's own page where there is none."

    def send_error(self, code, message=None, explain=None):
        own = Path(self.directory) / '404.html'
        if code != 404 or not own.is_file():
            return super().send_error(code, message, explain)
        body = own.read_bytes()
        self.send_response(404)
        self.send_header('Content-Type', 'text/html; charset=utf-8')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def server(folder, port=0):  # port 0: any free one
    "A server of a folder on loopback."
    return ThreadingHTTPServer(('127.0.0.1', port), partial(Quiet, directory=str(folder)))


def make():
    "Build the site and say how large it is; SystemExit with a sentence where it cannot be built."
    try:
        made = build()
    except NotToBeHad as e:
        sys.exit(f'the documentation cannot be built here: {e}')
    except PageError as e:
        sys.exit(f'a page fails: {e}')
    size = f'{made["pages"]} pages, {made["bytes"] / 1e6:.1f} MB, {made["seconds"]:.0f} s'
    print(f'{os.path.relpath(SITE)}/index.html: {size}')


def serve(port):
    "Show the built site on this machine only, until interrupted."
    if not (SITE / 'index.html').exists():
        sys.exit('there is no site yet: make docs')
    with server(SITE, port) as s:
        print(f'http://127.0.0.1:{s.server_port}/  (Ctrl-C stops)', flush=True)
        try:
            s.serve_forever()
        except KeyboardInterrupt:
            pass


def main():
    parser = argparse.ArgumentParser(description='Build the documentation, or show it.')
    said = 'show what was built on this machine only, until interrupted'
    parser.add_argument('--serve', action='store_true', help=said)
    parser.add_argument('--port', type=int, default=8033)
    o = parser.parse_args()
    return serve(o.port) if o.serve else make()


if __name__ == '__main__':
    main()
