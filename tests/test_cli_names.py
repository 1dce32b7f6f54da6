"""The names in the help are those of the registries, and the help is quick."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from vlm2rec_lab import cli, data
from vlm2rec_lab.commands import names
from vlm2rec_lab.commands.train import read_prompts
from vlm2rec_lab.diagnosis.settings import HALVES
from vlm2rec_lab.diagnosis.verdict import VERDICTS
from vlm2rec_lab.federated.backbones import BACKBONES
from vlm2rec_lab.federated.contents import ITEMS as WAYS_OF_ITEMS
from vlm2rec_lab.federated.continual import METHODS
from vlm2rec_lab.graph.make import GRAPH_MODELS
from vlm2rec_lab.graph.paradigms import PARADIGMS
from vlm2rec_lab.model.heads import SEQUENCES
from vlm2rec_lab.model.pieces import Prompts
from vlm2rec_lab.prompts.model import LEARN
from vlm2rec_lab.prompts.study import IDS, WAYS
from vlm2rec_lab.ranking.fusions import FUSIONS
from vlm2rec_lab.ranking.vectors import write_vectors
from vlm2rec_lab.recommenders.seqrec import ITEMS
from vlm2rec_lab.shop import readers
from vlm2rec_lab.shop.drawn import CONDITIONS
from vlm2rec_lab.studies.shops import SHOP_REMEDIES, WORLDS
from vlm2rec_lab.studies.study import PARTS
from vlm2rec_lab.training.losses import LOSSES, loss_settings_of, register_loss
from vlm2rec_lab.training.trackers import TRACKERS

REGISTERED = {
    'losses': LOSSES,
    'conditions': CONDITIONS,
    'readers': readers.READERS,
    'verdicts': VERDICTS,
    'fusions': FUSIONS,
    'parts': PARTS,
    'worlds': WORLDS,
    'shop remedies': SHOP_REMEDIES,
    'halves': HALVES,
    'graph models': GRAPH_MODELS,
    'paradigms': PARADIGMS,
    'backbones': BACKBONES,
    'federated methods': METHODS,
    'ways of items': WAYS_OF_ITEMS,
    'ways of prompts': WAYS,
    'kinds of ids': IDS,
    'ways of learning': LEARN,
    'starts': ITEMS,
    'sequence heads': SEQUENCES,
    'trackers': TRACKERS,
}


def test_every_kind_has_a_registry():
    assert set(REGISTERED) == set(names.REGISTRIES)


@pytest.mark.parametrize('kind', REGISTERED)
def test_names_read_from_the_file_are_those_of_the_registry(kind):
    assert list(names.written(kind)) == list(REGISTERED[kind]) == names.names(kind)


@pytest.mark.parametrize('loss', LOSSES)
def test_settings_read_from_the_file_are_those_of_the_function(loss):
    from_text = names.settings_in(names._text_of('training.losses'), loss, 'register_loss')
    assert {k: v for k, v in from_text.items() if k != 'exclude'} == names.loss_arguments(loss)
    assert list(names.loss_arguments(loss)) == loss_settings_of(loss)


@pytest.mark.parametrize(
    'command, kinds',
    [
        ('demo', ['conditions']),
        ('train', ['losses']),
        ('study', ['conditions', 'worlds']),
        ('report', ['verdicts']),
        ('downstream', ['losses']),
        ('graph', ['graph models', 'paradigms']),
        ('federated', ['backbones', 'federated methods', 'ways of items']),
        ('prompts', ['ways of prompts', 'kinds of ids', 'ways of learning']),
    ],
)
def test_help_lists_the_registry(command, kinds):
    "Also where its room is not imported, as in a process that only prints the help."
    env = {'COLUMNS': '10000', 'PYTHONPATH': ':'.join(p for p in sys.path if p)}
    argv = [sys.executable, '-m', 'vlm2rec_lab', command, '--help']
    text = subprocess.run(argv, capture_output=True, text=True, env=env, check=True).stdout
    for kind in kinds:
        assert ', '.join(REGISTERED[kind]) in text


def test_the_names_of_old_still_read():
    expected = {kind: ', '.join(registry) for kind, registry in REGISTERED.items()}
    assert cli.NAMES == expected | {'splits': ', '.join(cli.SCHEMES)}


def test_readers_and_splits_are_functions_of_their_rooms():
    assert all(callable(reader) for reader in cli.READERS.values())
    rooms = {name: getattr(data, name) for name in cli.SCHEMES.values()}
    assert all(function.__name__ == name for name, function in rooms.items())


def test_a_loss_that_is_registered_later_is_in_the_help():
    @register_loss('later')
    def later(sequences, items, positives, exclude=None, tau=0.07, fuse='sum'): ...

    try:
        assert 'later' in names.listed('losses').split(', ')
    finally:
        del LOSSES['later']


def test_the_rooms_of_the_commands_are_light():
    code = (
        'import sys, vlm2rec_lab.cli as cli\n'
        'cli.make_parser().format_help()\n'
        'heavy = ("torch", "numpy", "pandas", "transformers", "plotly")\n'
        'print([m for m in heavy if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


def test_a_report_of_arrays_loads_nothing_heavy(tmp_path):
    rng = np.random.default_rng(0)
    sides = {side: {m: rng.normal(size=(40, 4)) for m in 'ab'} for side in ('items', 'sequences')}
    file = tmp_path / 'v.npz'
    write_vectors(file, dict(**sides, targets=np.arange(40), seen=None))
    code = (
        'import sys, vlm2rec_lab.cli as cli\n'
        f'cli.main(["report", {str(file)!r}, "--out", {str(tmp_path / "r.html")!r}])\n'
        'heavy = ("torch", "pandas", "pyarrow", "scipy", "matplotlib", "transformers", "plotly")\n'
        'print([m for m in heavy if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == '[]', done.stdout + done.stderr
    assert (tmp_path / 'r.html').stat().st_size > 10_000


@pytest.mark.parametrize('name', cli.__all__)
def test_public_names_stay(name):
    assert getattr(cli, name) is not None


def test_a_module_without_names_has_none():
    assert names.names_in('x = 1', 'LOSSES', 'register_loss') == []


def test_a_file_of_prompts_has_every_part(tmp_path):
    "Whatever a prompt is made of can be said in a file."
    prompts = Prompts(item='A thing:{}', sequence='Bought:{}', separator=' and', missing=' nothing', lead='')
    (tmp_path / 'p.json').write_text(json.dumps(asdict(prompts)))
    assert read_prompts(tmp_path / 'p.json') == prompts
    (tmp_path / 'p.json').write_bytes(b'\xef\xbb\xbf' + (tmp_path / 'p.json').read_bytes())  # as some editors save it
    assert read_prompts(tmp_path / 'p.json') == prompts
