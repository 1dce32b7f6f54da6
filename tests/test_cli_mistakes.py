"""Mistakes at the command: refused before anything heavy is imported, in the words of the shell, safe to print."""

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import warm
from shell import in_a_terminal, said

from vlm2rec_lab import __version__
from vlm2rec_lab.base.errors import warned
from vlm2rec_lab.commands.names import loss_arguments
from vlm2rec_lab.commands.open import check_place
from vlm2rec_lab.commands.parser import COMMANDS
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.encoders import load_encoder
from vlm2rec_lab.model.families import load_model
from vlm2rec_lab.ranking.vectors import write_vectors
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import train
from vlm2rec_lab.training.losses import LOSSES, get_loss
from vlm2rec_lab.training.options import LOSS_NUMBERS, LOSS_WORDS, Schedule, Speed, check_loss_setting
from vlm2rec_lab.training.sizes import read_config

STUDIO = ['train', '--data', 'studio:text-easy']
HEAVY = ('torch', 'numpy', 'pandas', 'transformers', 'plotly', 'PIL')

MISTAKES = [  # what is typed, how the one line begins after the command's name, and what it goes on to say
    ([*STUDIO, '--lr', '-1'], '--lr -1.0: give a finite number, above 0'),
    ([*STUDIO, '--lr', 'nan'], '--lr nan: give a finite number'),
    ([*STUDIO, '--lr', '0'], '--lr 0.0: give a finite number, above 0'),
    ([*STUDIO, '--schedule', 'cosin'], "--schedule cosin is unknown; did you mean 'cosine'?"),
    ([*STUDIO, '--tau', '0'], '--tau 0.0: give a finite number, above 0'),
    ([*STUDIO, '--positions', 'lsat'], "--positions lsat is unknown; did you mean 'last'?"),
    ([*STUDIO, '--autocast', 'bf16'], "--autocast bf16 is unknown; did you mean 'bfloat16'?"),
    ([*STUDIO, '--quantise', '8bit'], "--quantise 8bit is unknown; did you mean '4bit'?"),
    ([*STUDIO, '--warmup', '-3'], '--warmup -3: give a whole number, 0 or more'),
    ([*STUDIO, '--alpha', '-1'], '--alpha -1.0: give a finite number, 0 or more'),
    ([*STUDIO, '--lam', 'inf'], '--lam inf: give a finite number'),
    ([*STUDIO, '--losses', 'modality-dropout', '--set', 'p=1.5'], '--set p=1.5: a chance in [0, 1)'),
    ([*STUDIO, '--set', 'gap=usr'], "--set gap='usr' is unknown; did you mean 'user'?"),
    ([*STUDIO, '--losses', 'vlmrec'], "--losses vlmrec: there is no loss 'vlmrec'; did you mean 'vlm2rec'?"),
    ([*STUDIO, '--fuse', 'text=-1,image=2'], "argument --fuse: 'text=-1,image=2': write weights as"),
    ([*STUDIO, '--seed', '-1'], "argument --seed: '-1' is no whole number from 0 to 4,294,967,295"),
    ([*STUDIO, '--seed', '99999999999999'], "argument --seed: '99999999999999' is no whole number from 0 to"),
    (
        ['downstream', '--data', 'studio:text-easy', '--seeds', '4294967296'],
        "argument --seeds: '4294967296' is no whole",
    ),
    (
        [*STUDIO, '--log-with', 'tensorbord'],
        "there is no tracker 'tensorbord', --log-with; did you mean 'tensorboard'?",
    ),
    ([*STUDIO, '--log-dir', 'logs'], '--log-dir: nothing is logged; name a tracker by --log-with'),
    ([*STUDIO, '--split', 'temporal'], 'the studio has a split and pictures of its own'),
    ([*STUDIO, '--model', './nowhere'], 'there is no model folder ./nowhere'),
    ([*STUDIO, '--model', 'empty'], '--model empty: the folder holds no model'),
    ([*STUDIO, '--model', 'some/model'], '--model some/model: HF_HUB_OFFLINE forbids the hub'),
    ([*STUDIO, '--prompts', 'prompts.json'], 'prompts.json is no JSON'),
    ([*STUDIO, '--out', 'used'], 'used holds a run already: go on with --resume'),
    ([*STUDIO, '--out', 'damaged', '--resume'], 'damaged/run.json is damaged'),
    (['train', '--data', 'studio:text-esy'], "there is no condition 'text-esy'; did you mean 'text-easy'?"),
    (['train', '--data', 'movilens:x'], "--data movilens:x: there is no reader 'movilens'"),
    (['train', '--data', 'log:nowhere.csv'], '--data log:nowhere.csv: there is no nowhere.csv'),
    (['train', '--data', 'nowhere'], "--data: there is no folder 'nowhere'"),
    (['train', '--data', 'prompts.json'], 'it is a file, give the folder around it'),
    (['train', '--data', 'empty', '--split', 'temporl'], "there is no split 'temporl'; did you mean 'temporal'?"),
    (['train', '--data', 'empty', '--images', 'none'], '--images none: there is no such folder'),
    (['demo', '--condition', 'text-esy'], "did you mean 'text-easy'?"),
    (['push', 'nowhere', 'anna/my-shop'], 'there is no folder nowhere'),
    (['push', 'empty', 'anna/my-shop'], 'empty holds no model: give a folder of save_pretrained'),
    (['push', 'empty', 'my-shop'], 'my-shop: give OWNER/NAME'),
    (['push', 'empty', 'anna/my-shop', '--message', ' '], '--message is empty'),
    (['push', 'empty', 'anna/my-shop', '--pubic'], "there is no option '--pubic'; did you mean '--public'?"),
    (['study', '--part', 'mian'], "--part: there is no part of the study 'mian'; did you mean 'main'?"),
    (['study', '--conditions', 'text-esy'], "did you mean 'text-easy'?"),
    (['study', '--remedies', 'vlm2rek'], "did you mean 'vlm2rec'?"),
    (['study', '--data', 'nowhere'], 'there is no folder'),
    (
        ['graph', '--data', 'empty', '--models', 'VBRP'],
        "there is no graph model 'VBRP', --models; did you mean 'VBPR'?",
    ),
    (['graph', '--data', 'empty', '--exclude', 'all'], "there is no word 'all'"),
    (['graph', '--data', 'empty', '--encoders', 'nil.npz'], '--encoders nil.npz: there is no such file'),
    (['graph', '--data', 'empty', '--encoders', './nowhere'], 'there is no model folder ./nowhere'),
    (['graph', '--data', 'empty', '--lr', '0'], "argument --lr: '0' is no finite number above 0"),
    (['graph', '--data', 'empty', '--device', 'gpu'], "argument --device: 'gpu' is no device: write cpu, cuda"),
    (['study', '--part', 'shop', '--data', '.', '--device', 'cuda:x'], "argument --device: 'cuda:x' is no device"),
    (['prompts', '--data', 'empty', '--ways', 'bth'], "there is no way 'bth', --ways; did you mean 'both'?"),
    (
        ['prompts', '--data', 'empty', '--ids', 'codes', 'radnom'],
        "there is no kind of ids 'radnom', --ids; did you mean 'random'?",
    ),
    (
        ['prompts', '--data', 'empty', '--learn', 'adapters', 'lroa'],
        "there is no way of learning 'lroa', --learn; did you mean 'lora'?",
    ),
    (['prompts', '--data', 'empty', '--ways', 'names', '--shown', 'text'], '--shown: prompts that say names alone'),
    (['prompts', '--data', 'empty', '--autocast', 'bf16'], "there is no type 'bf16', --autocast"),
    (['prompts', '--data', 'empty', '--encoder', 'nil.npz'], '--encoder nil.npz: there is no such file'),
    (['prompts', '--data', 'empty', '--candidates', '0'], "argument --candidates: '0'"),
    (['prompts', '--data', 'nowhere'], "--data: there is no folder 'nowhere'"),
    (['prompts', '--data', 'empty', '--coded', 'text'], '--coded: no id is made of contents'),
    (['prompts', '--data', 'empty', '--base', './nowhere'], '--base ./nowhere: there is no such folder'),
    (['prompts', '--data', 'empty', '--ways', 'names', '--encoder', 'real'], '--encoder: nothing reads contents'),
    (['graph', '--data', 'nowhere'], "--data: there is no folder 'nowhere'"),
    (
        ['federated', '--data', 'empty', '--backbones', 'FedMlp'],
        "there is no backbone 'FedMlp', --backbones; did you mean 'FedMLP'?",
    ),
    (
        ['federated', '--data', 'empty', '--methods', 'ARM-ITM'],
        "there is no federated method 'ARM-ITM', --methods; did you mean 'ARM+ITM'?",
    ),
    (['federated', '--data', 'empty', '--base', '1'], '--base 1.0: give the share of the base block'),
    (['federated', '--data', 'empty', '--beta', '1.5'], '--beta 1.5: give a weight from 0 to 1'),
    (['federated', '--data', 'empty', '--eps', '-1'], "argument --eps: '-1' is no finite number of at least 0"),
    (
        ['federated', '--data', 'empty', '--items', 'begn'],
        "there is no way of items 'begn', --items; did you mean 'begin'?",
    ),
    (['federated', '--data', 'empty', '--epsilon', '4'], '--epsilon: noise is measured in lengths of an update'),
    (['federated', '--data', 'empty', '--encoder', 'real'], '--encoder: items that begin at random have no contents'),
    (
        ['federated', '--data', 'empty', '--items', 'begin', '--encoder', 'no.npz'],
        '--encoder no.npz: there is no such file',
    ),
    (['federated', '--data', 'nowhere'], "--data: there is no folder 'nowhere'"),
    (['study', '--seed', '5'], '--seed says which cells --verify runs again; --seeds N makes'),
    (['study', '--part', 'shop', '--data', '.', '--seed', '5'], '--seed says which cells --verify runs again'),
    (['study', '--effort', '0.5'], '--effort is for --part shop'),
    (['study', '--lora', '8'], '--lora is for --part shop'),
    (['study', '--device', 'cuda'], '--device is for --part shop'),
    (['study', '--users', '50'], '--users is for --part shop'),
    (['study', '--ranks', '4'], '--ranks is for --part shop'),
    (['downstream', '--data', 'studio:text-easy', '--seed', '3'], "did you mean '--seeds'?"),
    (['index', 'build', 'x', '--items', 'none.npz', '--seed', '3'], "there is no option '--seed'"),
    (
        ['fetch', '--data', '.', '--hosts', 'a.b', '--out', 'x', '--split', 'temporal'],
        "there is no option '--split'",
    ),
    (['calibrate', '--half', 'reprt'], "--half: there is no half 'reprt'; did you mean 'report'?"),
    (['report', 'none.npz', '--fail-on', 'colapsed'], "did you mean 'collapsed'?"),
    (['report', 'none.npz', '--fail-on', 'damagd'], "did you mean 'damaged'?"),
    (['report', 'none.npz', '--fail-on-drift'], '--fail-on-drift: there is nothing to compare with; give --against'),
    (['report', 'none.npz', '--anotations', 'github'], "did you mean '--annotations'?"),
    (['report', 'none.npz'], 'there is no file none.npz'),
    (['evaluate', '--items', 'none.npz'], 'give --sequences too'),
    (['evaluate', 'x.npz', '--fuse', 'sm'], "did you mean 'sum'?"),
    (['downstream', '--data', 'studio:text-easy', '--sources', 'stf'], "did you mean 'sft'?"),
    (['downstream', '--data', 'studio:text-easy', '--how', 'frosen'], "did you mean 'frozen'?"),
    (['downstream', '--data', 'studio:text-easy', '--seeds', '-2'], "argument --seeds: '-2'"),
    (['fetch', '--data', 'nowhere', '--hosts', 'h', '--out', 'o'], 'there is no folder'),
    (
        ['fetch', '--data', 'empty', '--hosts', 'h', '--out', 'o', '--max-total', '-1'],
        "'-1' is no finite number above 0",
    ),
    (['profile', '--data', 'empty', '--model', './none'], 'there is no model folder ./none'),
    (['index', 'qury', 'x'], "there is no action 'qury'; did you mean 'query'?"),
    (['index', 'build', 'x'], 'build needs --items'),
    (['index', 'build', 'x', '--items', 'none.npz'], '--items: there is no file none.npz'),
    (['index', 'build', 'x', '--items', 'prompts.json'], '--items prompts.json: name a file that ends in .parquet or'),
    (['index', 'query', 'x', '--k', '3'], 'query needs --history ID [ID ...], or --like ID'),
    (['index', 'query', 'x', '--like', 'a', '--unseen'], '--unseen: it is about a history'),
    (['index', 'query', 'x', '--like', 'a', '--repeat'], '--repeat: it is about a history'),
    (['index', 'query', 'x', '--history', 'a', '--repeat', '--unseen'], 'leave one of them out'),
    (['index', 'query', 'x', '--like', 'a', '--likeness', '.5'], '--likeness: it weighs how alike answers are'),
    (['index', 'query', 'x', '--like', 'a', '--likeness', '5'], "argument --likeness: '5' is no number from 0 to 1"),
    (['index', 'query', 'x', '--like', 'a', '--where', 'price'], "argument --where: 'price' is no condition"),
    (['index', 'query', 'x', '--like', 'a', '--weights', 'text'], "argument --weights: 'text': write weights as"),
    (['index', 'query', 'x', '--like', 'a', '--weights', 'text=1,text=2'], 'each modality once'),
    (['index', 'query', 'x', '--like', 'a', '--k', '0'], "argument --k: '0'"),
    (['index', 'query', 'empty', '--like', 'a'], 'there is no index in empty: make one with `vlm2rec index build`'),
    (['index', 'show', 'x', '--replace'], '--replace: show has no use for it, it belongs to add'),
    (['report', 'v.npz', '--out', 'd.html'], '--out d.html is a folder: name a file that ends in .html, .json or .md'),
    (['index', 'export', 'x', '--to', 'x.csv'], '--to x.csv: name a file that ends in .parquet'),
    (['index', 'remove', 'x'], 'remove needs --ids'),
]

RUN = """
import contextlib, io, json, sys
from vlm2rec_lab.cli import main
from vlm2rec_lab.commands.names import loss_arguments
for argv in json.load(sys.stdin):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as e:
            status = e.code
    print(json.dumps([status, err.getvalue(), [m for m in %r if m in sys.modules]]))
""" % (HEAVY,)


@pytest.fixture(scope='module')
def answers(tmp_path_factory):
    "{what is typed: (status, error stream, heavy libraries so far)}, all in one process that has imported nothing."
    work = tmp_path_factory.mktemp('mistakes')
    (work / 'empty').mkdir()
    (work / 'used/sft').mkdir(parents=True)
    (work / 'used/sft/embedder.json').write_text('{}')
    (work / 'damaged').mkdir()
    (work / 'd.html').mkdir()
    (work / 'damaged/run.json').write_text('[')
    (work / 'prompts.json').write_text('{')
    done = subprocess.run(
        [sys.executable, '-c', RUN],
        input=json.dumps([argv for argv, _ in MISTAKES]),
        capture_output=True,
        text=True,
        cwd=work,
        env={**os.environ, 'PYTHONPATH': ':'.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {tuple(argv): answer for (argv, _), answer in zip(MISTAKES, found, strict=True)}


@pytest.mark.parametrize('argv, said', MISTAKES, ids=[' '.join(a) for a, _ in MISTAKES])
def test_a_mistake_is_one_line_in_the_words_of_the_shell_and_nothing_heavy_is_imported(argv, said, answers):
    status, err, heavy = answers[tuple(argv)]
    assert (status, err.count('\n')) == (2, 1), err
    assert err.startswith(f'vlm2rec {argv[0]}: ') and said in err, err
    assert heavy == []


def test_a_mistake_takes_less_than_two_seconds():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, '-m', 'vlm2rec_lab', *STUDIO, '--lr', '-1'], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_bitsandbytes_that_is_missing_is_a_line(monkeypatch):
    monkeypatch.setattr('vlm2rec_lab.model.quantise.find_spec', lambda name: None)
    status, _, err = said(*STUDIO, '--quantise', '4bit')
    assert status == 2
    assert err == 'vlm2rec train: --quantise 4bit needs bitsandbytes: pip install bitsandbytes, or leave it out\n'


@pytest.mark.parametrize(
    'error', [MemoryError('no room'), torch.OutOfMemoryError('CUDA out of memory. Tried')], ids=str
)
def test_memory_that_runs_out_is_a_line_with_what_to_take_away(error, monkeypatch):
    def train(o):
        raise error

    monkeypatch.setitem(COMMANDS, 'train', replace(COMMANDS['train'], run=train))
    status, _, err = said(*STUDIO)
    assert status == 2 and f'out of memory ({error})' in err and '--chunk 8' in err and 'vlm2rec estimate' in err
    assert len(err.strip().splitlines()) == 1


def test_another_failure_of_a_library_keeps_its_traceback(monkeypatch):
    def train(o):
        raise RuntimeError('a shape that does not fit')

    monkeypatch.setitem(COMMANDS, 'train', replace(COMMANDS['train'], run=train))
    with pytest.raises(RuntimeError, match='a shape'):
        said(*STUDIO)


@pytest.mark.parametrize('name', ['HF_HUB_CACHE', 'HF_HOME', 'XDG_CACHE_HOME'])
def test_a_model_in_the_cache_is_not_refused(name, monkeypatch, tmp_path):
    below = dict(HF_HUB_CACHE='', HF_HOME='hub', XDG_CACHE_HOME='huggingface/hub')[name]
    for other in ('HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'HF_HOME', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(FileNotFoundError, match='hf download some/model'):
        check_place('some/model')
    (tmp_path / below / 'models--some--model').mkdir(parents=True)
    check_place('some/model')
    monkeypatch.setenv('HF_HUB_OFFLINE', '0')
    check_place('another/model')  # the hub may have it


@pytest.mark.parametrize(
    'open_it',
    [load_model, read_config, lambda name: load_encoder(name, 'text')],
    ids=['load_model', 'read_config', 'load_encoder'],
)
def test_a_hub_id_that_cannot_be_had_names_the_remedy(open_it):
    with pytest.raises(FileNotFoundError, match='some/model: no folder, and no model.*hf download some/model'):
        open_it('some/model')


@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize(
    'argv', [['--help'], ['--version'], ['train', '--help'], ['bench', '--items', '50', '--users', '50']]
)
def test_a_reader_that_has_left_is_no_mistake(argv, unbuffered):
    "As in `vlm2rec train --help | head -1`."
    gone, pipe = os.pipe()
    os.close(gone)
    env = os.environ | dict(PYTHONUNBUFFERED=unbuffered)
    done = subprocess.run(
        [sys.executable, '-m', 'vlm2rec_lab', *argv], stdout=pipe, stderr=subprocess.PIPE, text=True, env=env
    )
    os.close(pipe)
    assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.parametrize(('argv', 'status'), [(['--version'], 0), (['trian'], 2), (['evaluate', 'nowhere.npz'], 2)])
def test_no_output_at_all_is_no_mistake(argv, status):
    "As in `vlm2rec --version >&-`: Python has no stdout then."
    command = ['sh', '-c', 'exec "$@" >&-', 'sh', sys.executable, '-m', 'vlm2rec_lab', *argv]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == status and 'Traceback' not in done.stderr


def test_the_version():
    assert said('--version') == (0, f'vlm2rec {__version__}\n', '')


# ---- the same checks in Python


@pytest.fixture(scope='module')
def toy():
    return make_studio('balanced', seed=0, items=20, users=30, length=5).split(train=15, valid=5, test=10, history=3)


@pytest.mark.parametrize(
    'settings, said',
    [
        (dict(lr=-1), 'lr=-1: give'),
        (dict(tau=0), 'tau=0: give'),
        (dict(schedule='cosin'), "schedule='cosin'"),
        (dict(warmup=-3), 'warmup=-3'),
        (dict(warmup=1.5), 'warmup=1.5'),
        (dict(lr='3'), "lr='3'"),
        (dict(tau=True), 'tau=True'),
        (dict(steps=1.5), 'steps=1.5'),
        (dict(steps='3'), "steps='3'"),
        (dict(eval_every=1.5), 'eval_every=1.5'),
        (dict(batch='3'), "batch='3'"),
        (dict(lr=[]), 'lr='),
        (dict(batch=True), 'batch=True'),
        (dict(candidates=[]), r'candidates=\[\]'),
        (dict(chunk=True), 'chunk=True'),
        (dict(save_every=1.5), 'save_every=1.5'),
        (dict(positions='lsat'), "positions='lsat'"),
        (dict(batch=0), 'batch=0'),
        (dict(chunk=0), 'chunk=0'),
        (dict(save_every=-1), 'save_every=-1'),
        (dict(loss='vlm2rec', lam=-1), 'lam=-1: give'),
    ],
)
def test_a_wrong_setting_is_refused_in_python_before_the_model_is_looked_at(settings, said, toy):
    with pytest.raises(ValueError, match=said.replace('=', '=')):
        train(None, toy, **settings)


@pytest.mark.parametrize('name', LOSS_NUMBERS)
def test_numbers_of_losses_have_one_range(name):
    takers = [loss for loss in LOSSES if name in loss_arguments(loss)]
    assert takers
    for loss in takers:
        with pytest.raises(ValueError, match=f'{name}=-1'):
            get_loss(loss, **{name: -1})


def test_words_of_losses_and_losses_of_ones_own():
    for name in LOSS_WORDS:
        with pytest.raises(ValueError, match=f"{name}='x' is unknown"):
            check_loss_setting(name, 'x')
    get_loss(lambda sequences, items, positives, exclude=None, weight=0: 0, weight=-1)


@pytest.mark.parametrize('value, wrong', [(Schedule, dict(lr=float('inf'))), (Speed, dict(waste=-0.1))])
def test_values_of_options(value, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        value(**wrong)


# ---- a batch of one


@pytest.mark.parametrize('positions', ['last', 'all'])
@pytest.mark.parametrize('loss', list(LOSSES))
def test_a_batch_of_one_learns_nothing_and_warns(loss, positions, toy, checkpoint):
    embedder = VLMEmbedder.from_pretrained(checkpoint, lora=2, device='cpu')
    found = []
    how = dict(steps=2, batch=1, eval_every=0, progress=False, positions=positions)
    messages = warned(lambda: found.append(train(embedder, toy, loss, **how)))
    assert [m for m in messages if m.startswith('batch=1: ')] == messages[:1] and 'nothing is learned' in messages[0]
    steps = found[0].frame
    assert np.abs(steps[['loss', *(c for c in steps if c.startswith('grad/'))]].to_numpy()).max() == 0


def test_a_batch_of_one_is_a_note_of_the_command(tmp_path):
    argv = [
        *STUDIO,
        '--batch',
        '1',
        '--users',
        '6',
        '--steps',
        '1',
        '--losses',
        'sft',
        'experts',
        '--out',
        tmp_path / 'r',
    ]
    status, _, err = said(*argv)
    assert status == 0, err
    assert err.count('vlm2rec: note: --batch 1: ') == 1


# ---- what reaches the terminal

HOSTILE = 'mug\x1b[2J\x07 \u202egnorw\u202c \x9b31m \u2066x'


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    "A folder whose ids and titles hold escape sequences and marks of direction, and vectors with such titles."
    folder = tmp_path_factory.mktemp('hostile')
    ids = [f'{i}{HOSTILE}' for i in range(12)]
    titles = [f'title {i} {HOSTILE}' if i else '' for i in range(12)]
    pd.DataFrame(dict(item_id=ids, title=titles)).to_csv(folder / 'items.csv', index=False)
    rows = [(u, ids[(u + k) % 12], k) for u in range(20) for k in range(5)]
    pd.DataFrame(rows, columns=['user_id', 'item_id', 'timestamp']).to_csv(folder / 'interactions.csv', index=False)
    rng = np.random.default_rng(0)
    sides = {s: {f'text{HOSTILE}': rng.normal(size=(n, 4)), 'image': rng.normal(size=(n, 4))} for s, n in SIDES.items()}
    vectors = dict(**sides, targets=np.arange(30) % 12, seen=(np.zeros(31, int), np.zeros(0, int)))
    write_vectors(folder / 'vectors.npz', vectors, titles)
    return folder


SIDES = {'items': 12, 'sequences': 30}
BAD = ('\x1b', '\x07', '\x9b', '\u202e', '\u202c', '\u2066')


@pytest.mark.parametrize(
    'argv, status',
    [
        ('profile --data FOLDER --out OUT/p.html', 0),
        ('train --data FOLDER --steps 1 --batch 4 --losses sft --history 3 --out OUT/run', 0),
        ('evaluate FOLDER/vectors.npz', 0),
        ('report FOLDER/vectors.npz --out OUT/r.json', 0),
        ('evaluate FOLDER/vectors.npz --fuse x=1', 2),
        (f'train --data nowhere{HOSTILE.replace(" ", "")}', 2),
        (f'tr{HOSTILE.replace(" ", "")}', 2),
        (f'train --data FOLDER --losses {HOSTILE.replace(" ", "")}', 2),
    ],
)
def test_nothing_that_a_terminal_obeys_gets_through(argv, status, hostile, tmp_path):
    words = [w.replace('FOLDER', str(hostile)).replace('OUT', str(tmp_path)) for w in argv.split(' ')]
    found, out, err = said(*words)
    assert found == status, err
    assert not [c for c in BAD if c in out + err]
    assert '\\x1b' in out + err or argv.startswith('report')


def test_no_bars_in_pipes(tmp_path):
    argv = [*STUDIO, '--users', '8', '--steps', '2', '--batch', '4', '--losses', 'sft', '--out', str(tmp_path / 'run')]
    done = subprocess.run([sys.executable, '-m', 'vlm2rec_lab', *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '\r' not in done.stdout + done.stderr and '%|' not in done.stderr and 'it/s' not in done.stderr
    assert all(line.startswith('vlm2rec: note: ') for line in done.stderr.splitlines()), done.stderr


def test_other_libraries_draw_no_bars_in_pipes(tmp_path):
    argv = ['downstream', '--data', 'studio:balanced', '--sources', 'raw', '--seeds', '0', '--epochs', '1']
    argv = [sys.executable, '-m', 'vlm2rec_lab', *argv, '--out', str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True)  # whether they draw is settled at their import
    assert done.returncode == 0, done.stderr
    assert '\r' not in done.stderr and 'it/s' not in done.stderr, done.stderr


def test_lines_are_wrapped_in_a_terminal_and_not_in_a_pipe(hostile, tmp_path):
    argv = ['profile', '--data', str(hostile), '--out', str(tmp_path / 'p.md')]
    seen = [line for line in in_a_terminal(argv, 60).split('\r')[-1].splitlines()]
    words = [w for line in seen for w in line.split()]
    assert len(seen) > 5 and all(len(line) <= 60 or ' ' not in line.strip() for line in seen), seen
    done = warm.command(argv)
    assert max(map(len, done.stdout.splitlines())) > 60
    clock = re.compile(r'\d\d:\d\d')  # the minute in which a profile was made
    said = {w for w in done.stdout.split() if not clock.fullmatch(w)}
    assert said - set(words) == set()


def test_a_mistake_is_wrapped_in_a_terminal():
    lines = in_a_terminal([*STUDIO, '--schedule', 'cosin'], 40).splitlines()
    assert len(lines) > 1 and max(map(len, lines)) <= 40
    assert ' '.join(' '.join(lines).split()).startswith(
        "vlm2rec train: --schedule cosin is unknown; did you mean 'cosine'?"
    )
