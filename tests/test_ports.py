"""Nothing of the tests waits at a port that somebody else may be given meanwhile."""

import gc
import subprocess
import sys
from pathlib import Path

import nbformat
from ports import claim, free_port, lowest_given
from run_nbs import Runner

ASK = 'from ports import free_port; print(free_port()); input()'


def test_every_process_is_told_another_port():
    how = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    others = [subprocess.Popen([sys.executable, '-c', ASK], **how) for _ in range(2)]
    try:
        told = [o.stdout.readline().strip() for o in others]
        told += [free_port() for _ in range(30)]
        assert len(set(told)) == len(told)
        assert all(10_000 <= int(t) < max(lowest_given(), 12_000) for t in told)
        assert not claim(int(told[0])) and not claim(int(told[-1]))
    finally:
        for o in others:
            o.communicate('\n')
    assert claim(int(told[0]))  # its process has ended


class Watched(Runner):
    "A runner that notes how its kernel is spoken to."

    async def async_execute_cell(self, cell, cell_index, **kw):
        self.resources['folder'] = folder = Path(self.km.ip).parent
        self.resources['told'] = self.km.get_connection_info()['transport'], len(list(folder.iterdir()))
        return await super().async_execute_cell(cell, cell_index, **kw)


def test_kernels_are_spoken_to_by_files():
    nb, seen = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1 + 1')]), {}
    Watched(nb, kernel_name='python3', resources=seen).execute()
    assert nb.cells[0].outputs[0].data['text/plain'] == '2'
    gc.collect()
    assert seen['told'] == ('ipc', 5) and not seen['folder'].exists()
