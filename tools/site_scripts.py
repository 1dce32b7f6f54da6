"""Scripts that the pages of the documentation need, so that the site asks for nothing outside itself."""

import base64
import hashlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

# Scripts for the browser: name of the package, version, integrity of its archive as npm states it, {file in the
# archive: name on the site}.
VENDORED = {
    'mathjax': (
        'mathjax',
        '3.2.2',
        'sha512-Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==',
        {'package/es5/tex-svg.js': 'tex-svg.js'},
    ),
    'require': (
        'requirejs',
        '2.3.8',
        'sha512-7/cTSLOdYkNBNJcDMWf+luFvMriVm7eYxp4BcFCsAX0wF421Vyce5SXP17c+Jd5otXKGNehIonFlyQXSowL6Mw==',
        {'package/require.js': 'require.js'},
    ),
    'widgets': (
        '@jupyter-widgets/html-manager',
        '1.0.15',
        'sha512-5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==',
        {'package/dist/embed-amd.js': 'embed-amd.js'},
    ),
    'axe': (  # no page needs it: tests/test_access.py judges pages by it
        'axe-core',
        '4.14.1',
        'sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==',
        {'package/axe.min.js': 'axe.min.js'},
    ),
}
WIDGETS = 'a page shows Jupyter widgets, which need'
NEEDED_BY = {'require': WIDGETS, 'widgets': WIDGETS, 'axe': 'the check of accessibility needs'}
# of tex-svg.js 3.2.2, the same in both registries
MATHJAX_SHA256 = 'd4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882'
MATHJAX_WHEEL = 'sphinx-mathjax-offline==0.0.2'  # where there is no npm


class NotToBeHad(RuntimeError):
    "A script that the site needs can be got from neither registry."


def fetch(
    what,  # key of VENDORED
    cache,  # folder that keeps what was fetched
):  # -> list of Path
    "The files of a pinned package, checked against its integrity. Raises NotToBeHad."
    name, version, integrity, files = VENDORED[what]
    there = [cache / f'{version}-{f}' for f in files.values()]
    if all(f.exists() for f in there):
        return there
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as d:
        failed = npm(f'{name}@{version}', d)
        if failed is None:
            found = unpacked(next(Path(d).glob('*.tgz')).read_bytes(), integrity, files, f'{name}@{version}')
        elif what == 'mathjax':
            found = {'tex-svg.js': wheel(d, failed)}
        else:
            raise NotToBeHad(f'{NEEDED_BY[what]} {name}@{version} from npm: {failed}')
    for path, data in zip(there, found.values()):
        path.write_bytes(data)
    return there


def unpacked(archive, integrity, files, name):  # -> {name on the site: bytes}
    "The wanted files of npm's archive. Raises NotToBeHad where it is not the one that was tested."
    if 'sha512-' + base64.b64encode(hashlib.sha512(archive).digest()).decode() != integrity:
        raise NotToBeHad(f'{name} from npm is not the archive that was tested: its integrity differs')
    with tarfile.open(fileobj=io.BytesIO(archive)) as t:
        return {to: t.extractfile(f).read() for f, to in files.items()}


def npm(spec, folder):
    "Fetch an archive through npm; None, or the sentence that says why not."
    if not shutil.which('npm'):
        return 'npm is not installed'
    done = subprocess.run(['npm', 'pack', '--silent', spec], cwd=folder, capture_output=True, text=True, timeout=180)
    if done.returncode == 0 and list(Path(folder).glob('*.tgz')):
        return None
    return f'npm pack {spec} failed: {" ".join(done.stderr.split())[-300:] or "no archive came"}'


def wheel(folder, failed):  # where to; why npm did not serve
    "MathJax from the Python package index."
    command = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', folder, MATHJAX_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    found = next(Path(folder).glob('*.whl'), None)
    if done.returncode or not found:
        raise NotToBeHad(
            f'the formulas need MathJax 3.2.2. {failed}; pip download {MATHJAX_WHEEL} failed: '
            f'{" ".join(done.stderr.split())[-300:]}'
        )
    with zipfile.ZipFile(found) as z:
        data = z.read(next(n for n in z.namelist() if n.endswith('/tex-svg.js')))
    if hashlib.sha256(data).hexdigest() != MATHJAX_SHA256:
        raise NotToBeHad(f'{MATHJAX_WHEEL} does not hold the MathJax that was tested')
    return data


def vendor(
    static,  # folder of the site's scripts
    widgets,  # does a page show Jupyter widgets?
    cache,  # folder that keeps what was fetched
):
    "Put the scripts in place: those of Python packages from there, the others from a registry."
    static.mkdir(parents=True, exist_ok=True)
    plotly = Path(importlib.util.find_spec('plotly').origin).parent / 'package_data' / 'plotly.min.js'
    shutil.copy(plotly, static)
    for what in ('mathjax', 'require', 'widgets') if widgets else ('mathjax',):
        for file in fetch(what, cache):
            shutil.copy(file, static / file.name.split('-', 1)[1])
    if widgets:
        installed = distribution('anywidget')
        script = next(f for f in installed.files if f.as_posix().endswith('anywidget/nbextension/index.js'))
        shutil.copy(installed.locate_file(script), static / 'anywidget.js')
