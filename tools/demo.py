"""The main job in a terminal: executes nbs/03_train.ipynb from top to bottom, showing what its cells print as they
print it."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(__file__).resolve().parent.parent
OUT = Path(os.environ.setdefault('VLM2REC_OUT', str(ROOT))).resolve()
os.environ['VLM2REC_OUT'] = str(OUT)
os.chdir(ROOT)

import nbformat
from run_nbs import execute, marks

# bars of text, for a terminal
BARS = 'import tqdm.auto, tqdm.std; tqdm.auto.tqdm, tqdm.auto.trange = tqdm.std.tqdm, tqdm.std.trange'
said = ['']


def hear(cell, msg):
    "Show the demo's cells; the others are the loop being built and tested, and only their errors matter here."
    if 'slow' not in marks(cell.source):
        return
    kind, content = msg['msg_type'], msg['content']
    if kind == 'stream':
        (sys.stderr if content['name'] == 'stderr' else sys.stdout).write(content['text'])
        said[0] = content['text']
    elif kind in ('execute_result', 'display_data') and 'application/vnd.plotly.v1+json' not in content['data']:
        text = content['data'].get('text/plain', '')
        if text.strip() != said[0].strip():
            print(text)
    sys.stderr.flush()
    sys.stdout.flush()


def main():
    start = time.time()
    print(
        'nbs/03_train.ipynb: building and testing the training loop (some ten seconds), then the demo ...', flush=True
    )
    nb = execute(ROOT / 'nbs' / '03_train.ipynb', flags=['slow'], heard=hear, before=BARS)
    (OUT / 'out').mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, OUT / 'out' / '03_train.ipynb')
    print(
        f'\nreport: {os.path.relpath(OUT / "report.html")}   executed notebook: '
        f'{os.path.relpath(OUT / "out" / "03_train.ipynb")}   {time.time() - start:.0f} s in all'
    )


if __name__ == '__main__':
    main()
