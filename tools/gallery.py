"""The small pictures of the gallery, from what its notebooks show: python tools/gallery.py [NOTEBOOK ...]

Of each notebook in nbs/20_gallery the output under 'The picture', drawn by Chromium (set CHROME for another place than
/usr/bin/chromium) and kept in nbs/images, a file each and all of them side by side for the README."""

import io
import json
import os
import sys
from html import escape
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from site_cells import PLOTLY, figure_html

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / 'nbs' / '20_gallery'
IMAGES = ROOT / 'nbs' / 'images'
SIZE = 480, 300  # of a picture
STRIP = 228, 150  # of each in the strip
LARGEST = 60_000  # bytes of a file
DRAW = """async () => {
  for (const place of document.querySelectorAll('.lab-figure')) {
    const {data, layout} = JSON.parse(place.firstElementChild.textContent);
    await Plotly.newPlot(place, data, {...layout, width: 920, height: 560, font: {size: 20}}, {staticPlot: true});
  }
}"""


def pictures():
    "{name of a notebook: its picture in nbs/images}."
    return {p.stem: IMAGES / f'gallery-{p.stem[3:].replace("_", "-")}.png' for p in sorted(NOTEBOOKS.glob('*.ipynb'))}


def shown(path):  # notebook -> HTML
    "What a notebook shows under 'The picture'. Raises ValueError where it shows nothing there."
    below = False
    for cell in json.loads(path.read_text())['cells']:
        source = ''.join(cell['source'])
        below = below or '## The picture' in source or (below and not source.startswith('## '))
        for output in cell.get('outputs', []) if below else ():
            data = output.get('data', {})
            if 'image/png' in data:
                return f'<img class="still" src="data:image/png;base64,{"".join(data["image/png"]).strip()}" alt="">'
            if PLOTLY in data:
                return figure_html(data[PLOTLY])
            if 'text/html' in data:
                return ''.join(data['text/html'])
    raise ValueError(f'{path.name} shows nothing under "The picture": run it with tools/run_nbs.py')


def page(body):  # -> HTML
    "A page of one output."
    plotly = Path(find_spec('plotly').origin).parent / 'package_data' / 'plotly.min.js'
    style = 'body{margin:20px;font:20px sans-serif;background:#fff;color:#222}table{border-spacing:12px;font-size:18px}'
    style += '.still{width:920px;height:560px;object-fit:contain}'
    return f'<meta charset="utf-8"><style>{style}</style><script>{plotly.read_text()}</script><body>{body}</body>'


def small(png, size):  # bytes -> bytes
    "A picture of that size, in few colours."
    out, img = io.BytesIO(), Image.open(io.BytesIO(png)).convert('RGB').resize(size, Image.LANCZOS)
    img.quantize(64, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
    return out.getvalue()


def strip(pngs):  # list of bytes -> bytes
    "Pictures side by side."
    whole = Image.new('RGB', (len(pngs) * STRIP[0] + 8 * (len(pngs) - 1), STRIP[1]), '#fff')
    for k, png in enumerate(pngs):
        whole.paste(Image.open(io.BytesIO(png)).convert('RGB').resize(STRIP, Image.LANCZOS), (k * (STRIP[0] + 8), 0))
    whole.quantize(64, dither=Image.Dither.NONE).save(out := io.BytesIO(), 'PNG', optimize=True)
    return out.getvalue()


def write(path, png):
    "Keep a picture. Raises ValueError for one that is too heavy."
    if len(png) > LARGEST:
        raise ValueError(f'{path.name}: {len(png) / 1e3:.0f} kB, more than {LARGEST / 1e3:.0f}')
    path.write_bytes(png)
    print(f'{path.relative_to(ROOT)}: {len(png) / 1e3:.0f} kB')


def main(names):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=os.environ.get('CHROME', '/usr/bin/chromium'), args=['--no-sandbox', '--disable-gpu']
        )
        view = browser.new_page(viewport=dict(width=960, height=600))
        for name, to in pictures().items():
            if not names or name in names:
                view.set_content(page(shown(NOTEBOOKS / f'{name}.ipynb')))
                view.evaluate(DRAW)
                write(to, small(view.screenshot(), SIZE))
        browser.close()
    write(IMAGES / 'gallery.png', strip([p.read_bytes() for p in pictures().values()]))


if __name__ == '__main__':
    if unknown := set(sys.argv[1:]) - set(pictures()):
        sys.exit(
            f'no notebook {escape(", ".join(sorted(unknown)))} in nbs/20_gallery; there are {", ".join(pictures())}'
        )
    main(sys.argv[1:])
