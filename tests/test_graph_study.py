"The study of encoders in graph recommenders: cells, tables and the command."

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import own_shop

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.cli import main
from vlm2rec_lab.graph import study
from vlm2rec_lab.graph.make import GRAPH_MODELS, reads_contents
from vlm2rec_lab.graph.remedies import per_modality_bpr, weakest_bpr
from vlm2rec_lab.graph.study import (
    NOTHING,
    WHOLE,
    cases_said,
    equal_widths,
    graph_cases,
    graph_cell,
    graph_markdown,
    graph_table,
    run_graph,
    write_graph,
)
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.shop.shares import shares

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
THEIRS = ('theirs', 'theirs%2C%20exchanged')  # names of files
QUICK = dict(dim=4, width=4, cut=5, batch=128, lr=0.02, epochs=2, patience=None, progress=False)


@pytest.fixture(scope='module')
def split():
    return shares(make_studio('balanced', seed=0, items=30, users=60, length=10))


def vectors(seed=0, *names, n=30):  # -> {modality: [n, D]}, of several widths, with gaps
    rng = np.random.default_rng(seed)
    found = {m: rng.normal(size=(n, 5 + k)).astype(np.float32) for k, m in enumerate(names or ('text', 'image'))}
    for k, v in enumerate(found.values()):
        v[k] = 0  # a gap
    return found


@pytest.mark.parametrize('model', GRAPH_MODELS)
def test_every_model_is_asked_without_each_of_three_modalities(split, model):
    cell = graph_cell(split, model, vectors(0, 'text', 'image', 'sound'), 'three', **QUICK)
    left = [WHOLE] if not reads_contents(model) else [WHOLE, 'without text', 'without image', 'without sound', NOTHING]
    assert list(cell['figures']) == left
    assert all(len(v) == len(split.test) for each in cell['figures'].values() for v in each.values())
    assert json.loads(json.dumps(cell)) == cell
    if reads_contents(model):
        said = [cell['figures'][name]['Recall@5'] for name in left]
        assert any(other != said[0] for other in said[1:])
    assert cell['encoder'] == ('three' if reads_contents(model) else '')


def test_a_cell_is_json_where_nobody_looked_at_validation():
    unseen = shares(make_studio('balanced', seed=0, items=30, users=60, length=10), valid=0)
    cell = graph_cell(unseen, 'VBPR', vectors(), 'theirs', **QUICK)
    assert json.loads(json.dumps(cell, allow_nan=False)) == cell and cell['kept']['valid'] is None


def test_nothing_is_held_against_lightgcn_where_it_was_not_run(split):
    "No column without an entry."
    cells = [graph_cell(split, m, vectors(), 'theirs', **QUICK) for m in ('BPR-MF', 'LightGCN')]
    key = '| model | encoder | Recall@5 | '
    assert graph_markdown(graph_table(cells[:1])).startswith(f'{key}seeds |')
    assert graph_markdown(graph_table(cells)).startswith(f'{key}against LightGCN | seeds |')


def test_a_shop_too_small_for_a_model_is_told_before_another_has_learned(tmp_path):
    few = shares(make_studio('balanced', seed=0, items=9, users=60, length=4))
    with pytest.raises(DataError, match='LATTICE asks for 10 neighbours of each item, and there are 9 items'):
        run_graph(tmp_path, few, {'theirs': vectors(n=9)}, ['VBPR', 'LATTICE'], 1, **QUICK)
    assert not list(tmp_path.glob('*.json'))
    cells = run_graph(tmp_path, few, {'theirs': vectors(n=9)}, ['VBPR'], 1, **QUICK)
    assert len(cells) == 1


class Told:
    "A model whose tables say what they are without."

    def tables(self, without=()):
        return without

    def without(self, *modalities):
        return self.tables(modalities)


def test_what_is_left_out_is_what_is_said():
    left = study._lacking(Told(), {'text': 0, 'image': 0, 'sound': 0})
    assert left.pop(WHOLE) == () and left.pop(NOTHING) == ('text', 'image', 'sound')
    assert left == {f'without {m}': (m,) for m in ('text', 'image', 'sound')}
    assert list(study._lacking(Told(), {'text': 0})) == [WHOLE, 'without text']  # which is nothing


def test_recall_at_the_cut_chooses(split, monkeypatch):
    asked, whole = [], study.fit_graph
    monkeypatch.setattr(study, 'fit_graph', lambda *a, **k: asked.append(k['metric']) or whole(*a, **k))
    cell = graph_cell(split, 'LightGCN', **QUICK | dict(cut=7))
    assert asked == ['Recall@7'] and set(cell['figures'][WHOLE]) == {'Recall@7', 'NDCG@7'}


def test_the_same_seed_gives_the_same_figures_and_another_does_not(split):
    a, b, c = (graph_cell(split, 'VBPR', vectors(), 'x', seed, **QUICK) for seed in (0, 0, 1))
    assert a['figures'] == b['figures'] != c['figures']


def test_widths_are_equal_and_gaps_stay(split):
    wide = vectors()
    narrow = equal_widths(wide, 4)
    assert {v.shape for v in narrow.values()} == {(30, 4)}
    for m in wide:
        assert (np.abs(narrow[m]).max(1) > 1e-6).tolist() == wide[m].any(1).tolist()
    assert equal_widths(wide, None)['image'].shape == (30, 6)
    wide['text'][3, 0] = np.nan
    with pytest.raises(DataError, match='item 3 has a vector that is not finite'):
        equal_widths(wide)


def test_cells_are_kept_and_floors_are_trained_once(split, tmp_path, monkeypatch):
    made = []
    whole = study.graph_cell
    monkeypatch.setattr(study, 'graph_cell', lambda *a, **k: made.append(a[1]) or whole(*a, **k))
    encoders = {'one': vectors(0), 'a/b two': vectors(1)}
    how = dict(models=['LightGCN', 'VBPR'], **QUICK)
    cells = run_graph(tmp_path, split, encoders, seeds=2, **how)
    assert made == ['LightGCN', 'VBPR', 'VBPR'] * 2
    assert [(c['model'], c['encoder'], c['seed']) for c in cells[:3]] == [
        ('LightGCN', '', 0),
        ('VBPR', 'one', 0),
        ('VBPR', 'a/b two', 0),
    ]
    assert run_graph(tmp_path, split, encoders, seeds=2, **how) == cells and len(made) == 6
    assert run_graph(tmp_path, split, encoders, seeds=2, **how | dict(models=['LightGCN', 'VBPR', 'VBPR'])) == cells
    with pytest.raises(DataError, match='vectors='):
        run_graph(tmp_path, split, {'one': vectors(2)}, seeds=1, **how)
    other = shares(make_studio('balanced', seed=0, items=30, users=60, length=10), seed=1)
    with pytest.raises(DataError, match='split='):
        run_graph(tmp_path, other, encoders, seeds=1, **how)
    with pytest.raises(DataError, match='lr='):
        run_graph(tmp_path, split, encoders, seeds=1, **how | dict(lr=0.1))
    with pytest.raises(DataError, match="did you mean 'VBPR'"):
        run_graph(tmp_path, split, encoders, models=['VBRP'])


def test_cells_of_a_remedy_are_known_by_it(split, tmp_path):
    how = dict(models=['VBPR'], seeds=1, **QUICK)
    loud = partial(weakest_bpr, alpha=2.0)
    cells = run_graph(tmp_path, split, {'one': vectors(0)}, remedy=loud, **how)
    assert cells[0]['asked']['remedy'] == 'weakest_bpr'
    assert run_graph(tmp_path, split, {'one': vectors(0)}, remedy=loud, **how) == cells
    for other, said in ((None, 'remedy'), (per_modality_bpr, 'remedy'), (partial(weakest_bpr, alpha=1.0), 'given')):
        with pytest.raises(DataError, match=said):
            run_graph(tmp_path, split, {'one': vectors(0)}, remedy=other, **how)


def cell_of(model, encoder, seed, **figures):
    each = {left: {'Recall@5': v, 'NDCG@5': v} for left, v in figures.items()}
    return dict(model=model, encoder=encoder, seed=seed, cut=5, figures=each)


def test_the_table_by_hand(tmp_path):
    cells = [
        cell_of('LightGCN', '', 0, **{WHOLE: [0.2, 0.2]}),
        cell_of('LightGCN', '', 1, **{WHOLE: [0.4, 0.4]}),
        cell_of('VBPR', '=x', 0, **{WHOLE: [0.3, 0.3], 'without text': [0.15, 0.15], NOTHING: [0, 0]}),
        cell_of('VBPR', '=x', 1, **{WHOLE: [0.9, 0.9], 'without text': [0.15, 0.15], NOTHING: [0, 0]}),
    ]
    table = write_graph(cells, tmp_path, 'toy').set_index(['model', 'left'])
    assert table.value['LightGCN', WHOLE] == pytest.approx(0.3) and table['seed sd']['LightGCN', WHOLE] > 0.14
    assert table.gain['VBPR', WHOLE] == pytest.approx(1.0)
    assert table.change['VBPR', 'without text'] == pytest.approx(-0.75)
    assert np.isnan(table.gain['LightGCN', WHOLE]) and np.isnan(table.change['VBPR', WHOLE])
    assert '+100 % [+100, +100]' in (tmp_path / 'graph.md').read_text()
    assert "'=x" in (tmp_path / 'graph.csv').read_text()  # text that a spreadsheet would compute is guarded
    flat = [cell_of('LightGCN', '', 0, **{WHOLE: [0.0, 0.0]}), cell_of('VBPR', 'x', 0, **{WHOLE: [0.3, 0.1]})]
    assert graph_table(flat).gain.isna().all()  # no share of nothing


def test_cells_of_several_shops_are_not_averaged():
    here, there = (
        cell_of('VBPR', 'a', 0, **{WHOLE: v}) | dict(world=w) for w, v in (('x', [0.1, 0.3]), ('y', [0.9, 0.5]))
    )
    assert graph_table([here]).value.tolist() == [0.2]
    with pytest.raises(DataError, match='two cells of VBPR on the vectors of a, seed 0: make a table for each shop'):
        graph_table([here, there])
    assert len(graph_cases([here, there])) == 0


def test_cases_by_hand():
    def cell(model, encoder, seed, values):
        figures = {WHOLE: {'Recall@5': values, 'NDCG@5': [v / 2 for v in values]}}
        return dict(model=model, encoder=encoder, seed=seed, cut=5, figures=figures)

    cells = [
        cell('LightGCN', '', 0, [9, 9, 9]),
        cell('VBPR', 'a', 0, [0.2, 0.4, 0.2]),
        cell('VBPR', 'a', 1, [0.4, 0.4, 0.6]),
        cell('VBPR', 'b', 1, [0.8, 0.6, 0.8]),
        cell('VBPR', 'b', 2, [0, 0, 0]),
        cell('VBPR', 'c', 1, [0.2, 0.2, 0.3]),
        cell('MMGCN', 'a', 0, [0.4, 0.2, 0.0]),
        cell('MMGCN', 'b', 0, [0.3, 0.3, 0.1]),
        cell('MMGCN', 'c', 7, [0.3, 0.3, 0.1]),
    ]
    table = graph_cases(cells)
    assert set(table.against) == {'a'} and list(table.metric) == ['Recall@5', 'NDCG@5'] * 3
    first = table.iloc[0]  # of VBPR the seed that both have: .7333 against .4667
    assert (first.model, first.encoder, first.seeds) == ('VBPR', 'b', 1)
    assert first.gain == pytest.approx((0.8 + 0.6 + 0.8) / 1.4 - 1) and first['gain low'] > 0
    assert table[table.encoder == 'c'].gain.tolist() == pytest.approx([-0.5, -0.5])  # MMGCN has no seed of both
    once = graph_cases(cells, pairs=(p for p in [('b', 'a'), ('d', 'a')]))  # asked once, of two models; none has d
    assert once.model.tolist() == ['VBPR', 'VBPR', 'MMGCN', 'MMGCN'] and set(once.encoder) == {'b'}
    said = cases_said(table)
    assert said[0].startswith('b against a: better in 4 of 4 cases (100 %), surely in 2, surely worse in 0;')
    assert said[1].startswith('c against a: better in 0 of 2 cases (0 %), surely in 0, surely worse in 2;')


def test_the_command_takes_vectors_of_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(own_shop(tmp_path))
    np.savez('theirs.npz', **{f'items/{m}': v for m, v in vectors(0, n=40).items()})
    np.savez('other.npz', sequences=np.zeros((40, 3)))
    ask = ['graph', '--data', '.', '--models', 'LightGCN', 'MMGCL', '--seeds', '1', '--epochs', '2', '--k', '5']
    assert main([*ask, '--encoders', 'theirs.npz']) == 0
    said = capsys.readouterr().out
    assert 'without image' in said and 'against LightGCN' in said and 'MMGCL--theirs--0' in said
    assert main([*ask, '--encoders', 'theirs.npz']) == 0
    assert 'CPU s' not in capsys.readouterr().out
    assert main([*ask, '--encoders', 'theirs.npz', '--control']) == 0
    said = capsys.readouterr().out
    assert 'MMGCL--theirs, exchanged--0' in said and 'LightGCN--' not in said
    assert 'theirs, exchanged against theirs: better in ' in said and ' of 2 cases' in said
    kept = [json.loads((Path('runs/graph') / f'MMGCL--{name}--0.json').read_text()) for name in THEIRS]
    assert kept[0]['asked']['vectors'] != kept[1]['asked']['vectors'] and kept[0]['figures'] != kept[1]['figures']
    if not torch.cuda.is_available():
        assert main([*ask, '--encoders', 'theirs.npz', '--device', 'cuda']) == 2
        assert '--device cuda: torch sees 0 such devices here' in capsys.readouterr().err
    assert main([*ask, '--encoders', 'other.npz']) == 2
    assert 'has no array items/<modality>' in capsys.readouterr().err
    broken = vectors(0, n=40)
    broken['image'][7, 1] = np.inf
    np.savez('broken.npz', **{f'items/{m}': v for m, v in broken.items()})
    assert main([*ask, '--encoders', 'broken.npz']) == 2
    assert "broken.npz: the array 'items/image' is not finite in row 7" in capsys.readouterr().err
    Path('text.npz').write_text('x')
    assert main([*ask, '--encoders', 'text.npz']) == 2
    assert 'text.npz is no .npz file' in capsys.readouterr().err
    assert main([*ask, '--encoders', 'theirs.npz', './theirs.npz']) == 2
    assert 'called alike' in capsys.readouterr().err
