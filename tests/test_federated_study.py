"The study of continual federations: cells, tables and intervals."

import json

import numpy as np
import pytest
from federated_worlds import dated_folder, drawn_shop
from shell import own_shop, said

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated import study
from vlm2rec_lab.federated.backbones import BACKBONES
from vlm2rec_lab.federated.blocks import blocks
from vlm2rec_lab.federated.continual import METHODS, WAYS, averages
from vlm2rec_lab.federated.study import federated_markdown, federated_table, run_federated, write_federated

QUICK = dict(dim=4, rounds=3, patience=None, cut=5, progress=False)


@pytest.fixture(scope='module')
def shop():
    return blocks(drawn_shop(items=40, users=120, length=12), core=5, parts=2)


@pytest.fixture(scope='module')
def cells(shop, tmp_path_factory):
    out = tmp_path_factory.mktemp('study')
    return run_federated(out, shop, ['FedMF'], ['fine-tuning', 'ARM', 'ITM'], 2, **QUICK)


def test_cells_are_kept_and_the_base_block_is_learned_once(shop, tmp_path, monkeypatch):
    made, whole = [], study.federated_cell
    monkeypatch.setattr(study, 'federated_cell', lambda *a, **k: made.append(a[1:4]) or whole(*a, **k))
    how = dict(backbones=['FedMF'], methods=['fine-tuning', 'ARM+ITM'], **QUICK)
    cells = run_federated(tmp_path, shop, seeds=1, **how)
    assert made == [('FedMF', 'fine-tuning', 0), ('FedMF', 'ARM+ITM', 0)]
    assert run_federated(tmp_path, shop, seeds=2, **how)[:2] == cells and len(made) == 4
    folders = {p.parent.relative_to(tmp_path / 'training').as_posix() for p in tmp_path.rglob('fit.safetensors')}
    assert {f for f in folders if 'base' in f} == {'FedMF--base--0', 'FedMF--base--1'}
    assert not any(f.endswith('block 0') for f in folders) and 'FedMF--ARM+ITM--1/block 2' in folders
    for other in (dict(rounds=4), dict(lr=0.5), dict(go_on='best')):
        with pytest.raises(DataError, match=f'{next(iter(other))}='):
            run_federated(tmp_path, shop, seeds=1, **{**how, **other})


@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize('method', METHODS)
def test_every_cell_is_json(shop, backbone, method):
    cell = study.federated_cell(shop, backbone, method, lr=0.01, **QUICK | dict(rounds=1))
    assert json.loads(json.dumps(cell)) == cell and len(cell['figures']) == 2 * (1 + 2 + 3)


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('metric', ['NDCG', 'Recall'])
def test_values_are_means_over_seeds_of_what_runs_say(cells, metric, way):
    table = federated_table(cells, metric, way, draws=20).set_index(['method', 'average'])
    for method in ('fine-tuning', 'ARM', 'ITM'):
        own = [c for c in cells if c['method'] == method]
        a = np.full((len(own), 3, 3), np.nan)
        for s, c in enumerate(own):
            for f in c['figures']:
                if f['way'] == way:
                    a[s, f['after'], f['about']] = np.mean(f[metric])
        expected = averages(a.mean(0))
        for name, value in expected.items():
            row = table.loc[method, name]
            assert row.value == pytest.approx(value, abs=1e-6)
            assert row['seed sd'] == pytest.approx(np.std([averages(x)[name] for x in a], ddof=1))
            if method != 'fine-tuning':
                assert row.gain == pytest.approx(row.value - table.loc['fine-tuning', name].value)


def planted(gain, users=60, blocks=2, seed=0):
    "Cells of two methods of which one gives every customer so much more."
    rng, cells = np.random.default_rng(seed), []
    base = {(k, i): rng.uniform(0, 0.5, users) for k in range(blocks) for i in range(k + 1)}
    for method, more in (('fine-tuning', 0.0), ('ARM', gain)):
        figures = [
            dict(after=k, about=i, way=w, users=list(range(users)), NDCG=(v + more).tolist(), Recall=v.tolist())
            for (k, i), v in base.items()
            for w in WAYS
        ]
        cells.append(dict(backbone='FedMF', method=method, seed=0, cut=20, figures=figures))
    return cells


def test_nothing_is_held_against_a_method_that_was_not_run():
    "No column without an entry."
    alone = [c for c in planted(0.1) if c['method'] == 'ARM']
    head = federated_markdown(federated_table(alone, draws=20)).splitlines()[0]
    assert head == '| backbone | method | LA | RA | HM |'
    assert 'HM against fine-tuning' in federated_markdown(federated_table(planted(0.1), draws=20))


def test_gains_against_another_method():
    "What is won over one is lost by the other, interval and all."
    there = federated_table(planted(0.1), draws=200).set_index(['method', 'average']).loc[('ARM', 'HM')]
    back = federated_table(planted(0.1), draws=200, against='ARM').set_index(['method', 'average'])
    row = back.loc[('fine-tuning', 'HM')]
    assert [row.gain, row['gain low'], row['gain high']] == pytest.approx(
        [-there.gain, -there['gain high'], -there['gain low']]
    )
    assert np.isnan(back.loc[('ARM', 'HM')].gain)
    with pytest.raises(DataError, match="did you mean 'ARM'"):
        federated_table(planted(0.1), against='ARMM')


def test_gains_are_paired_by_customer():
    "A gain that all customers have alike is known exactly, whatever customers are drawn."
    table = federated_table(planted(0.1), draws=200).set_index(['method', 'average']).loc['ARM']
    for name in ('LA', 'RA'):
        row = table.loc[name]
        assert [row.gain, row['gain low'], row['gain high']] == pytest.approx([0.1] * 3, abs=1e-9)
        assert row.high - row.low > 0.02


def test_the_files(cells, shop, tmp_path):
    table = write_federated(cells, tmp_path, shop.name, 'vlm2rec federated')
    text = (tmp_path / 'federated.md').read_text()
    assert text.startswith(shop.name) and 'vlm2rec federated' in text and federated_markdown(table) in text
    assert text.count('| FedMF | ITM |') == 4
    assert len((tmp_path / 'federated.csv').read_text().splitlines()) == 1 + 4 * 9
    assert set(table.left_out) == {'seen'} and set(table.metric) == {'NDCG@5'}


def test_unknown_names(shop, tmp_path, cells):
    for how, hint in (
        (dict(backbones=['FedMfF']), "did you mean 'FedMF'"),
        (dict(methods=['ARM-ITM']), "did you mean 'ARM.ITM'"),
    ):
        with pytest.raises(DataError, match=hint):
            run_federated(tmp_path, shop, **how)
    with pytest.raises(DataError, match="did you mean 'latest'"):
        federated_table(cells, way='latets')


# ---- the command

ASKED = ('--least', 5, '--rounds', 2, '--seeds', 1, '--dim', 4, '--k', 5, '--backbones', 'PFedRec')


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dated_folder('shop')
    argv = ('federated', '--data', 'shop', *ASKED, '--methods', 'ARM', 'fine-tuning')
    status, out, err = said(*argv, '--parts', 2)
    assert status == 0, err
    assert 'PFedRec--ARM--0: [2, 2, 2] rounds' in out and 'NDCG@5, all that a customer has had' in out
    text = (tmp_path / 'runs/federated/federated.md').read_text()
    assert 'vlm2rec federated --data shop' in text and text.count('| PFedRec | ARM |') == 4
    again = said(*argv, '--parts', 2)
    assert again[0] == 0 and 'CPU s' not in again[1] and again[1].split('HM')[1:] == out.split('HM')[1:]
    status, _, err = said(*argv, '--parts', 3)
    assert status == 2 and 'blocks=' in err


def test_the_command_makes_items_of_contents(tmp_path, monkeypatch):
    "Vectors of a file; what is off (a beta of 0) can be asked for."
    monkeypatch.chdir(tmp_path)
    dated_folder('shop')
    rng = np.random.default_rng(0)
    np.savez('ours.npz', **{f'items/{m}': rng.normal(size=(40, 6)) for m in ('text', 'image')})
    argv = ('federated', '--data', 'shop', *ASKED, '--parts', 2, '--methods', 'fine-tuning', 'ITM', '--beta', 0)
    flags = ('--items', 'random', 'begin', '--encoder', 'ours.npz')
    status, out, err = said(*argv, *flags, '--components', 4)
    assert status == 0, err
    text = (tmp_path / 'runs/federated/federated.md').read_text()
    rows = [line.split('|')[2:6] for line in text.splitlines() if line.startswith('| PFedRec |')]
    assert [[c.strip() for c in r[:2]] for r in rows[:4]] == [
        [m, w] for w in ('random', 'begin') for m in ('fine-tuning', 'ITM')
    ]
    assert rows[0][2] == rows[1][2] and rows[2][2] == rows[3][2] and rows[0][2] != rows[2][2]
    status, _, err = said(*argv, *flags, '--components', 7)
    assert status == 2 and "--components 7: 'text' allows 1 to 6" in err


def test_the_command_keeps_epsilon(tmp_path, monkeypatch):
    "The noise that the accountant asks for, all rounds, and cells that say what they were protected by."
    pytest.importorskip('opacus')
    monkeypatch.chdir(tmp_path)
    dated_folder('shop')
    argv = ('federated', '--data', 'shop', *ASKED, '--parts', 1, '--methods', 'fine-tuning', '--patience', 1)
    status, out, err = said(*argv, '--epsilon', 8, '--clip', 0.5)
    assert status == 0, err
    assert 'in each run every customer has epsilon 8' in out and 'over 2 rounds of 2 blocks' in out
    cell = json.loads((tmp_path / 'runs/federated/PFedRec--fine-tuning--0.json').read_text())
    kept = cell['asked']['protect']
    assert kept['clip'] == 0.5 and f'noise of {kept["sigma"]:.3g} clips' in out
    assert [(r['rounds'], r['valid']) for r in cell['rounds']] == [(2, None)] * 2
    status, _, err = said(*argv)
    assert status == 2 and 'protect=' in err


def test_a_shop_without_dates_is_refused_in_a_line(tmp_path):
    (tmp_path / 'shop').mkdir()
    own_shop(tmp_path / 'shop')
    status, _, err = said('federated', '--data', tmp_path / 'shop', *ASKED, '--out', tmp_path / 'out')
    assert status == 2 and 'no times that mean the same for all users' in err and not (tmp_path / 'out').exists()
