"""How long is it from Run All to the first widget of nbs/03_train.ipynb? With the story at its top, and without it.

python benchmarks/first_widget.py [--rounds 3]: seconds on the clock, and seconds of the kernel's processor, of which
the second hardly depend on what else runs. Without the story, the first widget is the one of the demo's trainings."""

import argparse
import statistics
import sys
import time
from pathlib import Path

import nbformat
import psutil
from common import RESULTS

sys.path.append(str(RESULTS.parent.parent / 'tools'))

from run_nbs import Runner  # noqa: E402

NOTEBOOK = RESULTS.parent.parent / 'nbs' / '03_train.ipynb'
WIDGET = 'application/vnd.jupyter.widget-view+json'


def without_story(nb):
    "The notebook as it was before it had a story."
    starts = [k for k, c in enumerate(nb.cells) if c.cell_type == 'markdown' and c.source.startswith('## ')]
    story = next(k for k in starts if nb.cells[k].source.startswith('## In five minutes'))
    nb.cells = nb.cells[:story] + nb.cells[starts[starts.index(story) + 1] + 1 :]
    return nb


def first_widget(
    nb,  # notebook
    path=NOTEBOOK,  # where it lies
):
    "Seconds from a fresh kernel to the first cell that shows a widget: on the clock, and of its processor."
    where = {'metadata': {'path': str(Path(path).parent)}}
    client = Runner(nb, timeout=1200, kernel_name='python3', resources=where)
    start = time.perf_counter()
    with client.setup_kernel():
        kernel = psutil.Process(client.km.provisioner.pid)
        for k, cell in enumerate(nb.cells):
            if cell.cell_type == 'code':
                client.execute_cell(cell, k)
                if any(WIDGET in o.get('data', {}) for o in cell.outputs):
                    used = kernel.cpu_times()
                    return time.perf_counter() - start, used.user + used.system
    raise RuntimeError(f'{Path(path).name} shows no widget')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=1, help='times that each is measured, in turn')
    rounds, found = parser.parse_args().rounds, {'without the story': [], 'with the story': []}
    for _ in range(rounds):
        for name, took in found.items():
            nb = nbformat.read(NOTEBOOK, 4)
            took.append(first_widget(without_story(nb) if name.startswith('without') else nb))
    middle = {name: [statistics.median(x) for x in zip(*took)] for name, took in found.items()}
    for name, (clock, cpu) in middle.items():
        print(f'{name:18} first widget after {clock:6.1f} s, {cpu:6.1f} s of the processor (median of {rounds})')
    before, after = middle.values()
    print(f'ratio              {before[0] / after[0]:6.1f} times sooner, {before[1] / after[1]:.1f} by the processor')


if __name__ == '__main__':
    main()
