"""Tables of every command fit 80 and 100 columns of a terminal, and colours go where a terminal has them."""

import re

import numpy as np
import pandas as pd
import pytest
import warm
from federated_worlds import dated_folder
from shell import in_a_terminal, own_shop

from vlm2rec_lab.base.columns import breadth
from vlm2rec_lab.base.screen import COLOURS, painted
from vlm2rec_lab.commands.parser import COMMANDS
from vlm2rec_lab.diagnosis.compare import side_by_side
from vlm2rec_lab.diagnosis.headline import by_command
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.ranking.vectors import write_vectors
from vlm2rec_lab.share.index import build_index
from vlm2rec_lab.studies.cell import run_cell

SMALL = ['--data', 'studio:three', '--users', '40', '--steps', '2', '--batch', '4']
FEDERATED = (
    '--backbones',
    'PFedRec',
    '--methods',
    'fine-tuning',
    'ARM+ITM',
    '--seeds',
    '1',
    '--rounds',
    '1',
    '--least',
    '5',
    '--k',
    '5',
    '--dim',
    '4',
    '--parts',
    '1',
)
GRAPH = ('--seeds', '1', '--epochs', '2', '--batch', '64', '--k', '5', '--dim', '4')
PROMPTS = ('--seeds', '1', '--epochs', '1', '--draws', '1', '--k', '5', '--negatives', '9')
TABLES = {  # what prints a table: the command, and words of its table; what is kept in a folder is not run twice
    'train': ([*SMALL, '--losses', 'sft', 'wpcl', 'per-modality', '--out', 'run-{columns}'], 'last item by'),
    'demo': (['--users', '40', '--steps', '2'], 'per-modality'),
    'estimate': (['--data', 'studio:three', '--gpu-gb', '24'], 'largest batch'),
    'study': (['--table', '--out', 'study'], 'seeds'),
    'calibrate': (['--settings', 'healthy: pair', '--users', '100', '--seeds', '1', '--jobs', '1'], 'expected hits'),
    'profile': (['--data', 'shop'], 'length of a user'),
    'evaluate': (['three.npz'], 'MRR@20'),
    'report': (['three.npz', '--reference', 'three.npz', '--control', 'other.npz'], 'content or memory'),
    'downstream': (
        ['--data', 'studio:three', '--sources', 'raw', '--seeds', '0', '1', '--epochs', '1', '--out', 'downstream'],
        'random ids',
    ),
    'graph': (
        [
            '--data',
            'shop',
            '--encoders',
            'ours.npz',
            '--models',
            'LightGCN',
            'VBPR',
            *GRAPH,
            '--out',
            'graph',
        ],
        'without the picture',
    ),
    'federated': (['--data', 'dated', *FEDERATED, '--out', 'federated'], 'against fine-tuning'),
    'prompts': (
        ['--data', 'shop', '--encoder', 'ours.npz', '--ids', 'codes', *PROMPTS, '--out', 'prompts'],
        'against all there',
    ),
    'index': (['query', 'index', '--history', 'item 1', 'item 2', '--diverse', 'the kind of the item'], 'sound'),
    'bench': (['--items', '300', '--users', '300'], 'whole report'),
}
CODES = re.compile('\x1b\\[[0-9;]*[A-Za-z]')


def vectors(seed=0):
    "Vectors of three modalities for sixty users and forty items; those of the users are near their next items."
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 40, 60)
    items = {m: rng.normal(size=(40, 8)).astype('float32') for m in ('title and plot', 'poster of the film', 'sound')}
    sequences = {m: x[targets] + rng.normal(size=(60, 8)).astype('float32') for m, x in items.items()}
    return dict(items=items, sequences=sequences, targets=targets)


@pytest.fixture(scope='module')
def where(tmp_path_factory):
    "A folder with files of vectors, a shop and a study of one cell."
    import json

    folder = tmp_path_factory.mktemp('columns')
    (folder / 'shop').mkdir()
    own_shop(folder / 'shop')
    dated_folder(folder / 'dated')
    one = vectors()
    write_vectors(folder / 'three.npz', one)
    np.savez(
        folder / 'ours.npz',
        **{f'items/{m}': one['items'][m] for m in list(one['items'])[:1]},
        **{'items/the picture': one['items']['sound']},
    )
    about = pd.DataFrame({'item_id': [f'item {k}' for k in range(40)], 'the kind of the item': ['shoe', 'hat'] * 20})
    build_index(folder / 'index', one['items'], about)
    other = {m: np.roll(x, 1, 0) for m, x in one['sequences'].items()}
    write_vectors(folder / 'other.npz', {**one, 'sequences': other})
    cell = run_cell('text-easy', 'before', 1, world=dict(items=60, users=90), split=dict(train=40, valid=0, test=50))
    (folder / 'study/main').mkdir(parents=True)
    (folder / 'study/main/text-easy--before--1.json').write_text(json.dumps(cell))
    return folder


def test_every_command_is_here():
    "`fetch` says how many pictures came, `export` and `push` which files, `serve` its address: no tables."
    assert set(TABLES) | {'fetch', 'export', 'push', 'serve'} == set(COMMANDS)


LONG = ('train', 'demo', 'downstream')  # that take many seconds: their narrow terminal belongs to the slow tests


@pytest.mark.parametrize(
    ('command', 'columns'),
    [pytest.param(c, w, marks=pytest.mark.slow if c in LONG and w == 80 else ()) for c in TABLES for w in (80, 100)],
)
def test_no_line_is_wider_than_the_terminal(command, columns, where):
    args, words = TABLES[command]
    out = in_a_terminal([command, *(a.format(columns=columns) for a in args)], columns, where)
    lines = [line.split('\r')[-1] for line in out.split('\n')]
    assert words in out and 'Traceback' not in out, out
    assert [line for line in lines if breadth(line) > columns] == []
    assert '\x1b' not in out


def test_a_wide_terminal_gets_tables_of_a_hundred_columns_and_a_pipe_the_same(where):
    wide = in_a_terminal(['evaluate', 'three.npz'], 300, where)
    done = warm.command(['evaluate', 'three.npz'], cwd=where)
    table = done.stdout.split('60 users, the next item')[0]
    assert wide.startswith(table) and wide.split() == done.stdout.split()
    assert max(map(len, table.splitlines())) <= 100 and len(table.splitlines()) == 21  # ten lines, in two parts


def test_no_cell_is_lost_in_a_narrow_terminal(where):
    "Whatever the width, a table has all figures of the wide one."

    def figures(columns):
        return sorted(re.findall(r'\d\.\d{3,}', in_a_terminal(['evaluate', 'three.npz'], columns, where)))

    assert figures(40) == figures(100)


def run_plain(where, **env):
    "The report of a pipe, with some environment."
    import os

    asked = {k: v for k, v in os.environ.items() if k not in ('NO_COLOR', 'FORCE_COLOR')}
    return warm.command(['report', 'three.npz', '--out', 'r.md'], cwd=where, env={**asked, **env})


def test_colours_go_where_a_terminal_has_them(where):
    argv = ['report', 'three.npz', '--out', 'r.md']
    coloured = in_a_terminal(argv, 100, where, TERM='xterm')
    assert CODES.search(coloured)
    plain = in_a_terminal(argv, 100, where, TERM='dumb')
    assert '\x1b' not in plain and CODES.sub('', coloured) == plain  # nothing but colour is lost
    assert '\x1b' not in in_a_terminal(argv, 100, where, TERM='xterm', NO_COLOR='1')
    assert '\x1b' not in in_a_terminal(argv, 100, where, TERM='xterm', NO_COLOR='1', FORCE_COLOR='1')
    assert CODES.search(in_a_terminal(argv, 100, where, TERM='dumb', FORCE_COLOR='1'))
    assert '\x1b' not in run_plain(where, TERM='xterm').stdout
    forced = run_plain(where, FORCE_COLOR='1').stdout
    assert CODES.search(forced) and CODES.sub('', forced) == run_plain(where).stdout
    assert '\x1b' not in run_plain(where, FORCE_COLOR='0').stdout
    assert '\x1b' not in (where / 'r.md').read_text()


def test_an_error_is_red_in_a_terminal_and_plain_in_a_pipe(where):
    said = in_a_terminal(['report', 'none.npz'], 100, where, TERM='xterm')
    assert said.startswith('\x1b[31mvlm2rec report: \x1b[0m'), said
    done = warm.command(['report', 'none.npz'], cwd=where)
    assert done.returncode == 2 and '\x1b' not in done.stderr


@pytest.mark.parametrize('word', COLOURS)
def test_words_in_sentences_stay_plain(word):
    line = f'A sentence about what is {word} here, and a title: so it goes'
    assert painted(line) == line


def test_colours_from_data_do_not_reach_the_terminal(where):
    name = 'a\x1b[31mred'
    one = vectors()
    both = {k: {name: v['sound']} for k, v in one.items() if k != 'targets'}
    write_vectors(where / 'red.npz', {'targets': one['targets'], **both})
    out = in_a_terminal(['evaluate', 'red.npz'], 80, where, TERM='xterm')
    assert '\x1b[31m' not in out and 'red' in out


def test_many_reports_side_by_side_stand_below_each_other():
    one = vectors()
    reports = {f'training number {k}': collapse_report(**one, seed=0) for k in range(4)}
    lines = repr(side_by_side(reports)).splitlines()
    table = lines[next(k for k, line in enumerate(lines) if line.startswith('   ')) : -1]
    assert max(map(len, table)) <= 100
    assert [line.split() for line in table].count([]) >= 1  # parts are an empty line apart
    assert all(sum(line.count(name) for line in table) == 1 for name in reports)


def test_advice_is_what_one_types(where):
    one = vectors()
    own = {k: {m: v[m] for m in ('sound',)} for k, v in one.items() if k != 'targets'}
    worse = {'items': own['items'], 'sequences': {'sound': own['sequences']['sound'] + 4}}
    first, second = (collapse_report(**x, targets=one['targets'], seed=0) for x in (worse, own))
    for called, typed in (('train', '(--losses wpcl)'), ('demo', '(vlm2rec train --losses wpcl)')):
        pair = side_by_side({'sft': by_command(first, called), 'wpcl': by_command(second, called)})
        assert f'=> Go on with wpcl {typed}, and settle it' in repr(pair)
    assert 'losses' not in repr(side_by_side({'sft': first, 'wpcl': second}))
    out = in_a_terminal(['evaluate', 'three.npz', '--k', '5'], 100, where)
    assert '-> which modality it rests on: vlm2rec report three.npz' in out
    assert 'recomputing: --recompute' in in_a_terminal(['estimate', '--data', 'studio:three'], 100, where)


def test_names_with_hyphens_stay_whole_in_the_help():
    out = in_a_terminal(['train', '--help'], 80)
    words = out.split()
    assert {'hugging-face,', 'modality-dropout,', 'cold-items,'} <= set(words)
    assert not [w for w in words if w.endswith('-') and len(w) > 1]
