"""README.md from nbs/index.ipynb. With --check: fail if it is not in step."""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def readme():
    "The README's text."
    nb = nbformat.read(ROOT / 'nbs' / 'index.ipynb', 4)
    nb.cells = [c for c in nb.cells if not re.search(r'^#\s*\|\s*hide\b', c.source, re.M)]
    nb.metadata.language_info = {'name': 'python'}  # fences say ```python
    body, _ = MarkdownExporter().from_notebook_node(nb)
    body = body.replace('](images/', '](nbs/images/').replace('](../', '](')
    body = re.sub(r'\]\((\d\d\w*)', r'](nbs/\1', body)  # notebooks, and folders of them
    body = re.sub(r'\n{3,}', '\n\n', body).strip()
    return f'<!-- made from nbs/index.ipynb by `make readme`: edit the notebook -->\n\n{body}\n'


if __name__ == '__main__':
    if '--check' in sys.argv:
        sys.exit((ROOT / 'README.md').read_text() != readme())
    (ROOT / 'README.md').write_text(readme())
