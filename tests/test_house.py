"""Rules of the house: modules in step with notebooks, imports that go one way, lines one can read, a light repository.
Rules of the house: modules in step with notebooks, imports that go one way, lines one can read, a light repository."""

import ast
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = 'vlm2rec_lab'
sys.path.insert(0, str(ROOT / 'tools'))
import house  # noqa: E402
import measure  # noqa: E402

NOTEBOOKS = sorted((ROOT / 'nbs').rglob('*.ipynb'))
HOUSE = house.read_house(ROOT / PACKAGE, ROOT / 'nbs')


def run(*command, cwd=ROOT):
    "A command of this environment: (exit status, what it printed)."
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def tracked():
    "Files of the repository."
    out = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True).stdout
    return [ROOT / f for f in out.split('\0') if f and (ROOT / f).exists()]


# ---- the guard, and what it must catch


def test_the_house_is_in_order():
    assert not list(house.faults(HOUSE))
    assert not list(house.doors(ROOT / PACKAGE))


@pytest.fixture
def copy(tmp_path):
    "A copy of the package that may be damaged; gives the guard's findings."
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns('__pycache__'))

    def damage(room, text):
        file = tmp_path / PACKAGE / f'{room.replace(".", "/")}.py'
        file.write_text(file.read_text() + '\n' + text)
        return list(house.faults(house.read_house(tmp_path / PACKAGE, ROOT / 'nbs')))

    return damage


@pytest.mark.parametrize(
    'room, text, said',
    [
        ('training.losses', 'from ..cli import main', 'training.losses imports cli, which comes later'),
        ('training.losses', 'from .. import cli', 'training.losses imports cli, which comes later'),
        ('training.losses', 'from ..train import History', 'training.losses imports train, which comes later'),
        ('base.errors', 'def late():\n    from ..shop.tables import load_folder', 'base.errors imports shop.tables'),
        ('ranking.task', 'import vlm2rec_lab.cli', 'ranking.task imports cli, which comes later'),
        ('ranking.task', 'import importlib\nimportlib.import_module("vlm2rec_lab.cli")', 'ranking.task imports cli'),
        ('ranking.task', 'from importlib import import_module\nimport_module("vlm2rec_lab.show.views")', 'show.views'),
        ('ranking.task', 'import importlib\nimportlib.import_module("..cli", __package__)', 'ranking.task imports cli'),
        ('ranking.task', 'import importlib as i\ni.import_module(".cli", package="vlm2rec_lab")', 'imports cli'),
        ('ranking.task', 'LATE = "vlm2rec_lab.cli"\n__import__(LATE)', 'ranking.task imports cli, which comes later'),
        ('ranking.task', 'name = input\n__import__("vlm2rec_lab." + name())', 'no room by its name'),
        ('ranking.task', 'from importlib import import_module as load\nload("vlm2rec_lab.cli")', 'imports cli'),
        ('ranking.task', 'import importlib\nimportlib.import_module(name="vlm2rec_lab.cli")', 'imports cli'),
        ('ranking.task', 'from vlm2rec_lab import collapse_report', 'no room by its name'),
        ('ranking.task', 'import vlm2rec_lab as lab\nlab.cli.main()', 'no room by its name'),
        ('ranking.task', 'def late():\n    from .. import show\n    return show.views', 'no room by its name'),
        ('ranking.task', 'import vlm2rec_lab.show', 'no room by its name'),
        ('diagnosis.verdict', 'def late():\n    from vlm2rec_lab.model.bank import Bank', 'diagnosis must not'),
        ('recommenders.seqrec', 'from ..show.views import spaces_view', 'recommenders must not'),
        ('show.views', 'from ..diagnose import collapse_report', 'the surface for users'),
        ('shop.rows', 'from .tables import load_folder', 'a circle: '),
        ('shop.rows', 'from ..base.errors import *', 'star import from base.errors'),
        ('shop.rows', 'def said_nothing(x):\n    return x', 'no docstring at said_nothing'),
        ('shop.rows', 'class SaidNothing:\n    pass', 'no docstring at SaidNothing'),
        ('shop.rows', 'class Says:\n    "Much."\n\n    def no(self):\n        pass', 'no docstring at Says.no'),
    ],
)
def test_the_guard_guards(copy, room, text, said):
    found = copy(room, text)
    assert any(said in f for f in found), found


def test_the_guard_has_nothing_against_a_good_room(copy):
    assert not copy(
        'train', 'def fine(x):\n    "Gives it back."\n    from .base.errors import known\n\n    return known'
    )


def test_a_package_does_not_load_its_rooms(tmp_path):
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path / PACKAGE / 'ranking' / '__init__.py').write_text('from ..cli import main\n')
    top = tmp_path / PACKAGE / '__init__.py'
    top.write_text('from .cli import main\n' + top.read_text())
    ranking, whole = sorted(house.doors(tmp_path / PACKAGE))
    assert 'ranking/__init__.py is not empty' in ranking and 'loads rooms at once' in whole


def test_a_room_without_a_notebook_is_seen(tmp_path):
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path / PACKAGE / 'shop' / 'alone.py').write_text('"By itself."\n')
    found = list(house.faults(house.read_house(tmp_path / PACKAGE, ROOT / 'nbs')))
    assert 'shop.alone has no notebook' in found


def test_the_command_of_the_guard(tmp_path):
    status, said = run(sys.executable, 'tools/house.py')
    assert status == 0 and '| `shop` |' in said.replace('1 `', '`').replace('2 `', '`')
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / 'alone.py').write_text('"By itself."\n')
    status, said = run(sys.executable, ROOT / 'tools' / 'house.py', tmp_path / PACKAGE, ROOT / 'nbs')
    assert status == 1 and 'alone has no notebook' in said


# ---- modules and notebooks


def test_export_is_in_step(tmp_path):
    left_out = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', PACKAGE):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left_out)
    shutil.copy(ROOT / 'settings.ini', tmp_path)
    for name in HOUSE:
        (tmp_path / PACKAGE / f'{name.replace(".", "/")}.py').unlink()
    status, said = run(Path(sys.executable).parent / 'nbdev_export', cwd=tmp_path)
    assert status == 0, said
    for p in sorted((tmp_path / PACKAGE).rglob('*.py')):
        here = ROOT / PACKAGE / p.relative_to(tmp_path / PACKAGE)
        assert p.read_text() == here.read_text(), f'{p.name} is not what its notebook exports: run `make export`'


ALONE = """
import gc, os, sys, traceback
# What takes seconds and is not ours; each room is then imported in a fork.
import numpy, pandas, scipy.ndimage, sklearn.cluster, torch, tqdm.auto, transformers.models.t5.modeling_t5
gc.freeze()
for module in sys.argv[1:]:
    if os.fork() == 0:
        try:
            __import__(f'vlm2rec_lab.{module}')
        except BaseException:
            print(module, traceback.format_exc(), flush=True)
            os._exit(1)
        os._exit(0)
    os.wait()
"""


def test_imports_alone():
    "Each room can be imported by itself, in a process that has seen no other."
    status, said = run(sys.executable, '-W', 'ignore', '-c', ALONE, *HOUSE)
    assert status == 0 and not said, said


SURFACES = {
    'data': 'load_folder Catalogue Interactions Dataset Split leave_one_out hold_out_users amazon temporal_split '
    'with_images',
    'studio': 'make_studio CONDITIONS get_condition ranking_ndcg',
    'embed': 'VLMEmbedder Prompts fuse_sum',
    'losses': 'LOSSES get_loss register_loss sft wpcl cmrtr vlm2rec per_modality experts info_nce margins',
    'train': 'train encode_split History Schedule Speed Saving modality_gradients batch_rows save_checkpoint lr_at',
    'metrics': 'evaluate Metrics ranks fuse_vectors score_terms bootstrap_means paired_difference',
    'diagnose': 'collapse_report compare side_by_side Report RULES VERDICTS',
    'widgets': 'gradient_figure spaces_view topology_view GradientWidget Bench recommend PALETTE colours',
    'cli': 'main',
}


@pytest.mark.parametrize('surface', SURFACES)
def test_the_surface_has_what_users_import(surface):
    module = __import__(f'{PACKAGE}.{surface}', fromlist=['*'])
    missing = [n for n in SURFACES[surface].split() if not hasattr(module, n)]
    assert not missing, f'vlm2rec_lab.{surface} lacks {", ".join(missing)}'


def test_the_package_offers_the_main_things_lazily():
    code = (
        'import sys, vlm2rec_lab as lab\n'
        'heavy = [m for m in ("torch", "pandas", "transformers", "plotly") if m in sys.modules]\n'
        'names = [n for n in lab.__all__ if callable(getattr(lab, n))]\n'
        'print(heavy, *names)'
    )
    status, said = run(sys.executable, '-W', 'ignore', '-c', code)
    assert said.split() == ['[]', 'collapse_report', 'train', 'evaluate', 'VLMEmbedder', 'load_folder'], said
    status, said = run(sys.executable, '-c', 'import vlm2rec_lab; vlm2rec_lab.collapse_reprot')
    assert status == 1 and "did you mean 'collapse_report'" in said.lower()


# ---- lines one can read


def test_ruff_finds_nothing():
    status, said = run(sys.executable, '-m', 'ruff', 'check', '-q', '.')
    assert status == 0, said
    status, said = run(sys.executable, '-m', 'ruff', 'format', '--check', '-q', '.')
    assert status == 0, said


def test_no_line_is_hard_to_read():
    lines = [(p, x) for p in (ROOT / PACKAGE).rglob('*.py') if p.stem != '_modidx' for x in p.read_text().splitlines()]
    long = [(p.name, x) for p, x in lines if len(x) > 120 and not x.startswith('__all__')]
    assert len(long) < 0.01 * len(lines) and not [x for x in long if len(x[1]) > 160], long[:5]
    trees = [ast.parse(p.read_text()) for p in (ROOT / PACKAGE).rglob('*.py')]
    assert sum(map(measure.semicolons, trees)) <= 3 and sum(map(measure.lambdas, trees)) <= 3


def test_cells_are_small():
    cells = list(measure.cells_of(ROOT / 'nbs'))
    export = [
        [x for x in s.splitlines() if x.strip() and not measure.DIRECTIVE.match(x)]
        for _, k, s in cells
        if k == 'export'
    ]
    assert sorted(map(len, export))[len(export) // 2] <= 12
    many = [(p.name, measure.checks(measure.parsed(s))) for p, kind, s in cells if kind == 'test']
    assert not [x for x in many if x[1] > 8]


# ---- the repository


def test_readme_is_in_step():
    import readme

    assert (ROOT / 'README.md').read_text() == readme.readme(), 'run `make readme`'


def test_readme_links_lead_somewhere():
    links = [x for x in re.findall(r'\]\(([^)]+)\)', (ROOT / 'README.md').read_text()) if '://' not in x]
    assert len(links) > 10
    pages = {x: ROOT / (x.split('#')[0] or 'README.md') for x in links}
    assert not [x for x, page in pages.items() if not page.exists()], 'a link of the README leads nowhere'
    lost = [x for x, page in pages.items() if '#' in x and x.split('#')[1] not in headings(page)]
    assert not lost, 'a link of the README leads to a heading that is not there'


def headings(path):  # -> set of the marks that headings of a page are linked by
    "As GitHub makes them: small letters, hyphens for spaces, no other signs."
    titles = re.findall(r'^#+ (.+)$', path.read_text(), re.M)
    return {re.sub(r'[^\w -]', '', t.lower()).replace(' ', '-') for t in titles}


def test_links_between_notebooks_lead_somewhere():
    for path in NOTEBOOKS:
        prose = '\n'.join(
            ''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown'
        )
        links = [
            x.split('#')[0] for x in re.findall(r'\]\(([^)\s]+)\)', prose) if '://' not in x and not x.startswith('#')
        ]
        lost = [x for x in links if not (path.parent / x).exists()]
        assert not lost, f'{path.name}: {lost}'


def test_the_repository_is_light():
    for p in tracked():
        assert p.stat().st_size <= 5 * 2**20, f'{p.name} is over 5 MB'
    assert sum(p.stat().st_size for p in (ROOT / 'data').rglob('*') if p.is_file()) <= 5 * 2**20


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / 'nbs')))
def test_notebooks_are_clean(path):
    text = path.read_text()
    nb = json.loads(text)
    assert 'widgets' not in nb['metadata'] and 'plotly.js v' not in text, 'widget state or an embedded script library'
    assert len(text) < 500_000
    for c in nb['cells']:
        assert c['cell_type'] != 'code' or c['execution_count'] is None or 'outputs' in c
        for o in c.get('outputs', []):
            kept = ''.join(o.get('data', {}).get('text/html', ''))
            assert 'class="v2r-saved"' not in kept, 'the linked view of a widget: run it by tools/run_nbs.py'
            assert o['output_type'] != 'error' and o.get('name') != 'stderr'


def test_no_paths_of_a_machine():
    pattern = re.compile(r'(?<![\w.])/(?:work|root|home/\w+)/')
    for p in tracked():
        text = (
            p.suffix in ('.ipynb', '.py', '.md', '.txt', '.ini', '.json', '.js', '.css', '')
            and p.name != 'test_house.py'
        )
        assert not text or not pattern.search(p.read_text(errors='ignore')), (
            f"{p.name} names a folder of somebody's machine"
        )
        shown = p.suffix == '.ipynb' and re.search(r'"/[^" ]*/data/tiny_vlm', p.read_text())
        assert not shown, f'{p.name} shows a file of the repository with the folder that somebody has it in'


def test_console_script_is_quick_to_help():
    best = 9.0
    for _ in range(3):
        start = time.time()
        status, said = run(sys.executable, '-m', PACKAGE, '--help')
        best = min(best, time.time() - start)
    assert status == 0 and all(w in said for w in ('demo', 'train', 'evaluate', 'report'))
    print(f'--help in {best:.2f} s')
    heavy = (
        f'import sys, {PACKAGE}.cli; '
        'print([m for m in ("torch", "pandas", "transformers", "plotly") if m in sys.modules])'
    )
    assert run(sys.executable, '-c', heavy)[1].strip() == '[]'
