"""One thing of each kind is registered from outside the package, works everywhere that its kind does, and goes again.

The places are those of the list *One minute* in CONTRIBUTING.md.
"""

import functools
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.base import theme
from vlm2rec_lab.cli import main
from vlm2rec_lab.data import load_folder
from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.diagnosis.worlds import DAMAGES, hurt, world
from vlm2rec_lab.losses import sft
from vlm2rec_lab.metrics import evaluate
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.families import FAMILIES
from vlm2rec_lab.ranking.ranks import GAINS
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.shop.profile_findings import FINDINGS, Finding, finds
from vlm2rec_lab.train import train
from vlm2rec_lab.training.losses import LOSSES, register_loss

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def studio():
    return make_studio('balanced', seed=0, items=40, users=60, length=6)


@pytest.fixture
def planted():
    return world(users=80, n_items=60, seed=0)


@pytest.fixture
def restored():
    "Registers that a test may write to; they are as before when it ends. Call it with one."
    kept = []

    def keep(register):
        kept.append((register, dict(register)))
        return register

    yield keep
    for register, before in kept:
        register.clear()
        register.update(before)


def folder_of_a_shop(path, **columns):
    "Tables of a shop of ten items and twelve users; further columns of the items."
    items = [f'i{k}' for k in range(10)]
    pd.DataFrame({'item_id': items, 'title': [f'thing {k}' for k in range(10)], **columns}).to_csv(
        path / 'items.csv', index=False
    )
    rows = [(f'u{u}', items[(u + 3 * t) % 10], t) for u in range(12) for t in range(5)]
    pd.DataFrame(rows, columns=['user_id', 'item_id', 'timestamp']).to_csv(path / 'interactions.csv', index=False)
    return path


# ---------------------------------------------------------------- a loss


def halved(sequences, items, positives, exclude=None, tau=0.07, fuse='sum', half=0.5):
    "A loss of our own, with a setting of its own."
    return half * sft(sequences, items, positives, exclude, tau=tau, fuse=fuse)


def test_a_loss_trains_by_its_name(restored, studio, checkpoint):
    restored(LOSSES)
    register_loss('halved')(halved)
    split = studio.split(train=30, valid=15, test=15, history=4)
    fresh = functools.partial(VLMEmbedder.from_pretrained, checkpoint, lora=4, device='cpu', seed=0)
    how = dict(steps=2, batch=8, eval_every=0, progress=False)
    ours = train(fresh(), split, 'halved', half=1.0, **how)
    theirs = train(fresh(), split, 'sft', **how)
    assert ours.frame['loss'].tolist() == theirs.frame['loss'].tolist()
    less = train(fresh(), split, 'halved', **how)
    assert less.frame['loss'][0] == pytest.approx(theirs.frame['loss'][0] / 2)


@pytest.mark.slow
def test_a_loss_trains_from_the_command_line(restored, checkpoint, tmp_path):
    restored(LOSSES)
    register_loss('halved')(halved)
    folder = folder_of_a_shop(tmp_path)
    options = ['--losses', 'halved', '--steps', '1', '--batch', '4', '--lora', '2', '--model', str(checkpoint)]
    assert not main(['train', '--data', str(folder), *options, '--out', str(tmp_path / 'run')])
    assert 'halved' in ' '.join(p.read_text() for p in (tmp_path / 'run').rglob('*.json'))


def test_a_name_that_is_taken_is_refused(restored):
    restored(LOSSES)
    with pytest.raises(ValueError, match='already'):
        register_loss('sft')(halved)


# ---------------------------------------------------------------- a reader


def read_pairs(path, core=None, progress=False):
    "A reader of our own: lines of a user and an item."
    pairs = [line.split() for line in Path(path).read_text().splitlines()]
    ids = tuple(sorted({i for _, i in pairs}))
    frame = pd.DataFrame([(u, i, k) for k, (u, i) in enumerate(pairs)], columns=['user', 'item', 'time'])
    catalogue = Catalogue(ids, {'text': tuple(f'item {i}' for i in ids)}, {'text': 'text'})
    return Dataset(catalogue, Interactions.from_frame(frame, catalogue, 'user', 'item', 'time'), 'pairs')


def test_a_reader_reads_for_the_command_line(restored, tmp_path, capsys):
    from vlm2rec_lab.shop.readers import READERS, reader

    restored(READERS)
    reader('pairs')(read_pairs)
    (tmp_path / 'log.txt').write_text('\n'.join(f'u{k % 9} i{k * 7 % 11}' for k in range(90)))
    assert not main(['profile', '--data', f'pairs:{tmp_path / "log.txt"}', '--out', str(tmp_path / 'profile.html')])
    said = capsys.readouterr().out
    assert 'pairs' in said and re.search(r'\b11\b', said) and re.search(r'\b90\b', said)


# ---------------------------------------------------------------- a line of evidence


def test_evidence_stands_in_the_report(restored, planted):
    from vlm2rec_lab.diagnosis.measure import EVIDENCE, Line

    def halves(task, raw, modality):
        return raw['gains'][modality] / 2

    restored(EVIDENCE)['half'] = Line('half of NDCG@{k}', halves)
    report = collapse_report(**planted, progress=False, permutations=3, bootstrap=50)
    found = report.to_dict()['modalities']
    for m in ('text', 'image'):
        assert found[m]['evidence']['half']['value'] == pytest.approx(found[m]['evidence']['ndcg']['value'] / 2)
    assert 'half of NDCG@10' in report._repr_html_()


# ---------------------------------------------------------------- a metric, a damage, a finding


def test_a_metric_is_computed_everywhere(restored, planted):
    restored(GAINS)['Half'] = lambda places: np.full(len(places), 0.5)
    found = evaluate(**planted, k=(5, 10), progress=False)
    frame = found.frame() if callable(getattr(found, 'frame', None)) else found
    for k in (5, 10):
        half = found.per_user['fused'][f'Half@{k}'].mean()
        assert half == pytest.approx(found.per_user['fused'][f'HR@{k}'].mean() / 2)
    assert 'Half@10' in str(frame)


def test_a_damage_is_done_and_seen(restored, planted):
    restored(DAMAGES)['turned'] = (('items',), lambda x, degree, rng: x[::-1] * degree + x * (1 - degree))
    turned = hurt(planted, 'image', 'turned')
    assert np.array_equal(turned['items']['image'], np.asarray(planted['items']['image'])[::-1])
    before, after = (evaluate(**w, progress=False).per_user['image']['NDCG@10'].mean() for w in (planted, turned))
    assert after < before / 2


def few_titles(f, limits):
    "A finding of our own."
    return [Finding('few', 'note', 'There are fewer than a hundred items.', 'Get more.', {'items': 10})]


def test_a_finding_stands_in_the_profile(restored, tmp_path, capsys):
    restored(FINDINGS['log'])
    finds('log')(few_titles)
    folder = folder_of_a_shop(tmp_path)
    assert any(f.name == 'few' for f in load_folder(folder, progress=False).profile(progress=False).findings)
    assert not main(['profile', '--data', str(folder), '--out', str(tmp_path / 'profile.html')])
    assert 'fewer than a hundred items' in capsys.readouterr().out


# ---------------------------------------------------------------- a colour


def test_a_colour_reaches_pages(monkeypatch, planted):
    monkeypatch.setattr(theme, 'PALETTE', ('#123456', *theme.PALETTE[1:]))
    assert theme.series_colour(0) == '#123456' and '--c1:#123456' in theme.css_variables()
    monkeypatch.setitem(theme.LIGHT, 'good', '#0a0b0c')
    assert '--good:#0a0b0c' in theme.themed('v2r')
    monkeypatch.undo()
    report = collapse_report(**planted, progress=False, permutations=3, bootstrap=50)
    assert theme.css_variables() in report._repr_html_() and theme.css_variables(dark=True) in report._repr_html_()


# ---------------------------------------------------------------- a command


def test_a_command_is_known_to_the_parser(restored, capsys):
    from vlm2rec_lab.commands.parser import COMMANDS, command

    restored(COMMANDS)

    def twice(o):
        print(f'{2 * o.number} with seed {o.seed}')

    def options(add):
        add('--number', type=int, default=21, metavar='N', help='what is doubled')

    command('double a number', options)(twice)
    assert not main(['twice', '--number', '4', '--seed', '3'])
    assert capsys.readouterr().out == '8 with seed 3\n'
    with pytest.raises(SystemExit):
        main(['--help'])
    assert 'double a number' in capsys.readouterr().out


# ---------------------------------------------------------------- a modality, a family, a wing


def test_a_modality_is_a_column(tmp_path):
    folder = folder_of_a_shop(tmp_path, review=[f'a word on {k}' for k in range(10)])
    shop = load_folder(folder, text={'text': 'title', 'review': 'review'}, image={}, progress=False)
    assert set(shop.catalogue.content) == {'text', 'review'}
    rng = np.random.default_rng(0)
    names = tuple(shop.catalogue.content)
    targets = rng.integers(0, 10, 40)
    items = {m: rng.normal(size=(10, 8)) for m in names}
    sequences = {m: items[m][targets] for m in names}
    found = evaluate(items, sequences, targets, progress=False)
    assert set(found.per_user) == {'fused', *names}
    report = collapse_report(
        items=items, sequences=sequences, targets=targets, progress=False, permutations=3, bootstrap=50
    )
    assert set(report.to_dict()['modalities']) == set(names)


def test_families_are_told_apart_in_one_room(checkpoint, tmp_path):
    from vlm2rec_lab.model.families import load_model

    config = json.loads((checkpoint / 'config.json').read_text())
    assert config['model_type'] in FAMILIES
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'model_type': 'bert'}))
    with pytest.raises(ValueError, match="a 'bert', which does not read pictures"):
        load_model(tmp_path)
    named = [p for p in (ROOT / 'vlm2rec_lab').rglob('*.py') if 'qwen2_5_vl' in p.read_text()]
    assert {p.stem for p in named} <= {'families', 'tiny', '_modidx'}, named


def test_a_wing_stands_beside_the_house(tmp_path, monkeypatch):
    import house

    (tmp_path / 'lab' / 'base').mkdir(parents=True)
    (tmp_path / 'lab' / 'graphs').mkdir()
    (tmp_path / 'lab' / 'base' / 'errors.py').write_text('"""Errors."""\n')
    (tmp_path / 'lab' / 'graphs' / 'walks.py').write_text('"""Walks on a graph."""\nfrom ..base.errors import x\n')
    for path, room in (('00_base/00_errors', 'base.errors'), ('07_graphs/00_walks', 'graphs.walks')):
        nb = tmp_path / 'nbs' / f'{path}.ipynb'
        nb.parent.mkdir(parents=True)
        nb.write_text(json.dumps({'cells': [{'cell_type': 'code', 'source': [f'#| default_exp {room}']}]}))
    monkeypatch.setitem(house.PURPOSE, 'graphs', 'what graphs say')
    found = house.read_house(tmp_path / 'lab', tmp_path / 'nbs')
    assert not list(house.faults(found)) and 'what graphs say' in house.table_of_floors(found)
    (tmp_path / 'lab' / 'base' / 'errors.py').write_text('"""Errors."""\nfrom ..graphs.walks import x\n')
    said = ' '.join(house.faults(house.read_house(tmp_path / 'lab', tmp_path / 'nbs')))
    assert 'base.errors imports graphs.walks' in said


# ---------------------------------------------------------------- the list itself


def test_places_that_contributing_names_are_there():
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    table = text[text.index('## One minute') :]
    for room in re.findall(r'\| `([a-z_.]+)` \|$', table, re.M):
        importlib.import_module(f'vlm2rec_lab.{room}')
    for row in re.findall(r'^\|.*\| `[a-z_.]+` \|$', table, re.M):
        room = row.split('`')[-2]
        modules = [m for n, m in sys.modules.items() if f'{n}.'.startswith(f'vlm2rec_lab.{room}.')]
        for name in re.findall(r'`@(\w+)|`([A-Z]+)`', row):
            assert any(hasattr(m, ''.join(name)) for m in modules), f'{room} has no {name}'
