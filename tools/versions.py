"""The library on other versions than the pinned ones: the lowest that settings.ini allows, and other Pythons.

`python tools/versions.py lowest` installs the lowest versions of all direct requirements into an environment of its
own, which is removed afterwards, and runs the fast tests there. torch alone stays at its pinned version: older builds
for processors are not to be had everywhere. `python tools/versions.py 3.12` does the same with another Python and the
pinned versions, as far as it goes without torch: data and ranking. An interpreter that is not there is said, and is no
failure.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
# tests of what needs no torch; drawn worlds are equal to the last bit with the pinned Pillow only
TORCHLESS = ('shop_[!d]*', 'baskets', 'diagnosis_[!r]*', 'show_*')
FAST = (
    *TORCHLESS,
    'odd_tables',
    'ranking',
    'ranking_evaluate',
    'model_embedder',
    'model_saved',
    'train_loop',
    'seqrec',
)
# what large drawn shops tell of the diagnosis, a minute each: it follows from the figures that the other tests check
LARGE = ('diagnosis_truth', 'diagnosis_settings', 'diagnosis_shuffles')
HEAVY = ('torch', 'transformers', 'peft', 'accelerate')  # left out where there is no torch for a Python


def requirements(*keys):
    "The requirements that settings.ini lists under some keys."
    said = dict(re.findall(r'^(\w+) = (.*)$', (ROOT / 'settings.ini').read_text(), re.M))
    return [r for k in keys for r in said[k].split()]


def pinned():
    "{name: 'name==version'} of constraints.txt."
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    return {line.partition('==')[0]: line for line in lines if '==' in line}


def uv(*args):
    "Run uv of the project's own environment; its exit status."
    return subprocess.run([ROOT / '.venv' / 'bin' / 'uv', *map(str, args)], cwd=ROOT).returncode


def interpreter(version):
    "An interpreter of a version that runs; None where there is none. What a manager of versions offers may not run."
    name = f'python{version}'
    places = [*os.environ.get('PATH', '').split(os.pathsep), *Path.home().glob(f'.pyenv/versions/{version}.*/bin')]
    found = (p for place in places if (p := shutil.which(name, path=str(place))))
    return next((p for p in found if subprocess.run([p, '--version'], capture_output=True).returncode == 0), None)


def install(python, which):
    "Install into an environment; exit status."
    from setup_env import find_links

    links = [a for f in find_links() for a in ('--find-links', f)]
    how = ['pip', 'install', '-q', '--python', python, '--only-binary', ':all:', *links]
    if which == 'lowest':
        wanted = [
            *requirements('requirements', 'lab_requirements'),
            pinned()['torch'],
            'pytest>=8',
            'pytest-xdist>=3.5',
            'hypothesis>=6.100',
        ]
        return uv(*how, '--resolution', 'lowest-direct', *wanted)
    light = [r for r in requirements('requirements') if re.match(r'[\w-]+', r)[0] not in HEAVY]
    return uv(*how, '-c', ROOT / 'constraints.txt', *light, 'pytest', 'pytest-xdist', 'hypothesis')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('which', help='lowest, or a Python such as 3.12')
    which = parser.parse_args().which
    python = sys.executable if which == 'lowest' else interpreter(which)
    if python is None:
        return print(f'there is no Python {which} here: not tested')
    start, place = time.time(), Path(tempfile.mkdtemp(prefix='vlm2rec-versions-'))
    try:
        inside = place / 'bin' / 'python'
        if uv('venv', '-q', '--clear', '--python', python, place) or install(inside, which):
            sys.exit(f'{which}: the installation failed, see above')
        print(f'{which}: installed in {time.time() - start:.0f} s:', flush=True)
        uv('pip', 'list', '-q', '--python', inside)
        names = FAST if which == 'lowest' else TORCHLESS
        tests = sorted(p for name in names for p in (ROOT / 'tests').glob(f'test_{name}.py') if p.stem[5:] not in LARGE)
        env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
        marks = 'not slow and not browser and not processes and not gpu'
        quick = ['-q', '-p', 'no:cacheprovider', '-W', 'ignore', '-m', marks, '-n', 'auto', '--maxprocesses', '4']
        status = subprocess.run([inside, '-m', 'pytest', *quick, *tests], cwd=ROOT, env=env).returncode
        print(f'{which}: {"passed" if status == 0 else "failed"} after {time.time() - start:.0f} s')
        sys.exit(status)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == '__main__':
    main()
