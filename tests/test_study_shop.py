"The study of a shop of one's own: heads on frozen encoders, in several worlds."

import json
import math
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pair_encoders import Colours, HashedWords
from shell import own_shop

from vlm2rec_lab.base.cells import read_csv
from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.base.ragged import PAD
from vlm2rec_lab.cli import main
from vlm2rec_lab.commands import studies as commands
from vlm2rec_lab.model import loading
from vlm2rec_lab.ranking.baselines import baselines
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.shop.leave_one_out import leave_one_out
from vlm2rec_lab.shop.rows import Rows, warm_items
from vlm2rec_lab.studies import shops
from vlm2rec_lab.studies.shops import (
    WORLDS,
    cold_auc,
    cold_draw,
    fewer_customers,
    lacking_of,
    run_shop,
    shop_baselines,
    shop_cell,
    shop_choice,
    shop_table,
    some_customers,
    stored_shop,
    without_items,
    without_model,
    world_of,
    write_shop,
)
from vlm2rec_lab.training.batches import training_rows

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')


@pytest.fixture(scope='module')
def studio():
    return make_studio('balanced', seed=0, items=50, users=90, length=8)


@pytest.fixture(scope='module')
def encoders():
    return dict(text=HashedWords(), image=Colours())


def test_what_is_cold_is_in_no_training_row_and_the_rest_is(studio):
    split = leave_one_out(studio, history=5)
    cold = cold_draw(split, 0.3, seed=4)
    assert cold.sum() == round(0.3 * warm_items(split).sum())
    bare = without_items(split, studio, cold)
    assert not (warm_items(bare) & cold).any()
    training_rows(bare, 'all')  # every purchase that is left is a row, in turn
    inter = studio.interactions
    for user in range(0, 90, 7):
        left = [i for i in inter.sequences[user][:-2] if not cold[i]]
        mine = np.flatnonzero(bare.train.users == user)
        assert bare.train.targets[mine].tolist() == left[1:]
        for row, place in zip(mine, range(1, len(left))):
            history = bare.train.history[row]
            assert history[history != PAD].tolist() == left[max(0, place - 5) : place]
    assert np.array_equal(bare.test.history, split.test.history)
    assert without_items(split, studio, np.zeros(50, bool)).user_items[1].tolist() == split.user_items[1].tolist()


@pytest.mark.parametrize('share', [0, 1, 0.001])
def test_a_share_that_leaves_nothing_is_refused(studio, share):
    with pytest.raises(DataError, match='some must be new'):
        cold_draw(leave_one_out(studio), share)


def test_fewer_customers_teach_and_all_are_asked(studio):
    split = leave_one_out(studio, history=5)
    small = fewer_customers(split, 0.1, seed=2)
    who = np.unique(small.train.users)
    assert len(who) == 9 and len(small.test) == 90
    assert len(small.train) == np.isin(split.train.users, who).sum()


def test_time_that_is_left_goes_by_steps():
    made = [dict(kept=dict(steps=100), seconds=50.0), dict(kept=dict(steps=300), seconds=150.0)]
    assert shops._time_left(made, [100, 300, 9000, 5400]) == '; at this pace about 2.0 CPU h for the 2 left'
    assert shops._time_left(made, [100, 300, 240]) == '; at this pace about 2 CPU min for the 1 left'
    assert shops._time_left(made, [100, 300]) == ''


def test_a_study_ends_when_its_time_is_over():
    now, made = iter(range(100)), []

    def cells(minutes, jobs=2):
        "What begins where a cell of 10 steps is done every second look at a clock that goes on by a minute each."
        for cell in shops._in_time('abcdef', [10] * 6, made, minutes, jobs, clock=lambda: 60.0 * next(now)):
            yield cell
            made.append(dict(kept=dict(steps=10)))

    assert list(cells(None)) == list('abcdef')
    made.clear()
    # two begin anyway; at 1 minute two are done: a minute each, so the third is done at 2, the fourth at 3 1/3
    assert list(cells(3)) == ['a', 'b', 'c']
    made.clear()
    assert list(cells(0)) == ['a', 'b'] and len(made) == 2
    made.clear()
    assert list(shops._in_time('abc', [1, 1, 1], [], 1.5, 1, clock=lambda: 60.0 * next(now))) == ['a']  # none done yet


def test_a_training_is_no_longer_in_a_large_shop():
    remedy, most = shops.SHOP_REMEDIES['recommended'], shops.MOST_STEPS
    assert shops._sizes(2412, remedy, 1) == (16, 1812, 151)  # the films are trained as they were
    assert shops._sizes(10_000, remedy, 1) == (60, most, 167)  # larger steps, as many passes
    assert shops._sizes(67_000, remedy, 1) == (shops.MOST_BATCH, most, 524)
    assert shops._sizes(67_000, remedy, 0.25) == (shops.MOST_BATCH, most // 4, 524)


def test_many_customers_teach_and_some_are_asked(studio, encoders, monkeypatch, tmp_path):
    plain = {w: world_of(studio, w, 6, seed=s)[0] for w in WORLDS for s in (0,)}
    monkeypatch.setattr(shops, 'MOST_ASKED', 20)
    who = {}
    for w in WORLDS:
        for s in (0, 1):
            split, _ = world_of(studio, w, 6, seed=s)
            who[w, s] = split.test.users.tolist()
            assert len(split.test) == len(split.valid) == 20
        few, _ = world_of(studio, w, 6, seed=0)
        assert np.array_equal(few.train.targets, plain[w].train.targets)  # nobody's later purchases are learned
        assert set(few.test.targets) <= set(plain[w].test.targets)
    assert len({tuple(x) for x in who.values()}) == 1 and len(set(who['warm', 0])) == 20
    assert who['warm', 0] != plain['warm'].test.users[:20].tolist()  # drawn, not the first ones
    cell = shop_cell(encoders, studio, 'sft', 'warm', effort=0.1, draws=1)
    assert {len(v) for views in cell['figures'].values() for v in views.values()} == {20}
    write_shop([cell], tmp_path)
    assert '20 customers, drawn once, are asked.' in (tmp_path / 'shop.md').read_text()


def test_cells_of_a_large_shop_with_other_bounds_are_refused(studio, encoders, monkeypatch, tmp_path):
    how = dict(remedies=['sft'], worlds=['exchanged'], seeds=1, effort=0.1)
    [cell] = run_shop(tmp_path / 'small', encoders, studio, **how)
    assert 'bounds' not in cell  # 90 customers feel none: cells of before are taken
    monkeypatch.setattr(shops, 'MOST_STEPS', 60)
    with pytest.raises(DataError, match='bounds=None'):
        run_shop(tmp_path / 'small', encoders, studio, **how)
    [cell] = run_shop(tmp_path / 'large', encoders, studio, **how)
    assert cell['bounds'] == [60, shops.MOST_BATCH, shops.MOST_ASKED]
    assert run_shop(tmp_path / 'large', encoders, studio, **how) == [cell]
    monkeypatch.setattr(shops, 'MOST_ASKED', 20)
    with pytest.raises(DataError, match='bounds='):
        run_shop(tmp_path / 'large', encoders, studio, **how)


def test_baselines_are_those_of_the_customers_that_are_asked(studio, tmp_path, monkeypatch):
    split = leave_one_out(studio, history=10)
    table = shop_baselines(tmp_path, studio)
    want = baselines(split, dataset=studio, progress=False)
    assert list(table.index) == list(want) and 'popularity' in table.index
    assert table.value.tolist() == [want[b]['NDCG@10'] for b in want]
    assert table.loc['popularity', ['low', 'high']].tolist() == list(want.interval('popularity', 'NDCG@10'))
    assert f'popularity {want["popularity"]["NDCG@10"]:.4f} [' in without_model(tmp_path)
    monkeypatch.setattr(shops, 'baselines', None)  # not asked again
    pd.testing.assert_frame_equal(shop_baselines(tmp_path, studio), table)
    with pytest.raises(TypeError):
        shop_baselines(tmp_path, some_customers(studio, 50))  # those of others are not taken
    assert without_model(tmp_path / 'nowhere') == ''


def test_some_customers_keep_what_they_bought(studio):
    few = some_customers(studio, 20, seed=1)
    who = [studio.interactions.user_ids.index(u) for u in few.interactions.user_ids]
    assert len(set(who)) == 20 and who == sorted(who) and few.name == f'{studio.name}, 20 of 90 customers'
    for mine, user in enumerate(who):
        assert list(few.interactions.sequences[mine]) == list(studio.interactions.sequences[user])
    dated = replace(studio.interactions, times=np.arange(len(studio.interactions.items), dtype=float))
    times = some_customers(Dataset(studio.catalogue, dated, 'dated'), 20, seed=1).interactions.times
    assert times.tolist() == [t for u in who for t in range(8 * u, 8 * u + 8)]
    assert len(some_customers(studio, 90).interactions) == 90
    with pytest.raises(DataError, match='users=91: the shop has 90 customers'):
        some_customers(studio, 91)


def test_half_is_half_and_one_is_one(studio):
    lacking = lacking_of(studio.catalogue, draws=3, seed=1)
    assert list(lacking) == ['all', 'half of text gone', 'half of image gone', 'one of them each']
    assert lacking['all'] == [{}]
    assert [list(g) for g in lacking['half of text gone']] == [['text']] * 3
    assert all(g['text'].sum() == 25 for g in lacking['half of text gone'])
    for gone in lacking['one of them each']:
        assert (gone['text'] ^ gone['image']).all()


def test_auc_by_hand():
    items = np.array([[1.0], [0.5], [0.5], [0.2], [9.0]])
    cold = np.array([True, True, True, True, False])
    rows = Rows(
        users=np.zeros(4),
        history=np.zeros((4, 1)),
        targets=np.array([1, 0, 3, 1]),
        seen_offsets=np.array([0, 0, 0, 1, 4]),
        seen_items=np.array([0, 0, 2, 3]),
    )
    found = cold_auc(items, np.ones((4, 1)), rows, cold)
    assert found[:3].tolist() == pytest.approx([(0 + 0.5 + 1) / 3, 1, 0])
    assert math.isnan(found[3])  # nothing to tell it apart from
    assert np.array_equal(cold_auc(items, np.ones((4, 1)), rows, cold, most=8), found, equal_nan=True)  # in blocks


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('remedy', ['sft', 'recommended', 'side by side'])
def test_every_world_makes_a_cell(studio, encoders, world, remedy, tmp_path):
    cell = json.loads(json.dumps(shop_cell(encoders, studio, remedy, world, 1, effort=0.2, draws=1)))
    wanted = {'warm': list(lacking_of(studio.catalogue)), 'cold': list(shops.COLD)}.get(world, [world])
    assert list(cell['figures']) == wanted
    first = cell['figures'][wanted[0]]
    assert set(first) == {'text', 'image', 'fused', *(['together'] if remedy == 'side by side' else [])}
    assert all(0 <= g <= 1 for views in cell['figures'].values() for v in views.values() for g in v if g == g)
    if world != 'cold':
        assert len(first['fused']) == 90
    again = shop_cell(encoders, studio, remedy, world, 1, effort=0.2, draws=1)
    assert {**again, 'seconds': 0} == {**cell, 'seconds': 0}


def test_what_is_taken_is_taken_from_candidates_and_histories(studio, encoders, monkeypatch):
    "With every picture gone, the fused ranking is the one by texts alone; of a sum, too."
    gone = {'all': [{}], 'no image': [{'image': np.ones(50, bool)}]}
    monkeypatch.setattr(shops, 'lacking_of', lambda *_: gone)
    for remedy in ('sft', 'per-modality, concat', 'side by side'):
        figures = shop_cell(encoders, studio, remedy, effort=0.3)['figures']
        assert figures['no image']['fused'] == figures['all']['text']
        assert figures['all']['fused'] != figures['all']['text']


def test_exchanged_contents_are_others(studio):
    split, other = world_of(studio, 'warm')[0], world_of(studio, 'exchanged')[0]
    assert all(a != b for a, b in zip(split.catalogue.content['text'], other.catalogue.content['text']))
    assert sorted(split.catalogue.content['text']) == sorted(other.catalogue.content['text'])
    assert np.array_equal(split.train.history, other.train.history)


def test_stored_cells_are_of_these_data_and_encoders(studio, encoders, tmp_path):
    how = dict(remedies=['sft'], worlds=['small'], seeds=1, effort=0.2)
    run_shop(tmp_path, encoders, studio, **how)
    with pytest.raises(DataError, match='other data, encoders or effort'):
        run_shop(tmp_path, encoders | dict(text=HashedWords(seed=5)), studio, **how)
    with pytest.raises(DataError, match='other data, encoders or effort'):
        run_shop(tmp_path, encoders, studio, **how | dict(effort=0.1))
    inter = studio.interactions
    turned = np.concatenate([part[::-1] for part in np.split(inter.items, inter.offsets[1:-1])])
    for bought in (replace(inter, items=turned), replace(inter, user_ids=inter.user_ids[::-1])):
        with pytest.raises(DataError, match='other data, encoders or effort: bought='):
            run_shop(tmp_path, encoders, replace(studio, interactions=bought), **how)
    with pytest.raises(DataError, match="did you mean 'small'"):
        run_shop(tmp_path, encoders, studio, worlds=['smal'])


class OnlyHere(HashedWords):
    "Encodes in the process that made it, and nowhere else."

    def __init__(self):
        super().__init__()
        self.home = os.getpid()

    def vectors(self, contents, **more):
        assert os.getpid() == self.home, 'encoded a second time'
        return super().vectors(contents, **more)


@pytest.mark.processes
def test_cells_made_side_by_side_are_the_same_and_encode_nothing_twice(studio, tmp_path):
    encoders = dict(text=OnlyHere(), image=Colours())
    how = dict(remedies=['sft', 'wpcl'], worlds=['small', 'exchanged'], seeds=1, effort=0.2)
    told = []
    many = run_shop(tmp_path / 'many', encoders, studio, **how, jobs=3, said=told.append)
    one = run_shop(tmp_path / 'one', encoders, studio, **how)
    assert told[0].startswith('4 cells to make, ') and told[1] == 'text: 50 of 50 read'
    made = [t for t in told if ' CPU s' in t]
    assert len(made) == 4 and ' for the 3 left' in made[0] and ' left' not in made[-1]
    assert [{**c, 'seconds': 0} for c in many] == [{**c, 'seconds': 0} for c in one]


def test_heads_of_a_rank_are_cells_of_their_own(studio, encoders, tmp_path):
    how = dict(remedies=['sft', 'per-modality, concat'], worlds=['warm'], seeds=1, effort=0.2, ranks=(None, 2))
    cells = run_shop(tmp_path, encoders, studio, **how)
    assert [c.get('rank') for c in cells] == [None, 2, None, 2]
    assert cells[0]['figures'] != cells[1]['figures']
    assert (tmp_path / 'warm--sft+rank 2--0.json').exists() and (tmp_path / 'warm--sft--0.json').exists()
    assert [c.get('rank') for c in stored_shop(tmp_path)] == [2, None, 2, None]
    table = shop_table(cells)
    fused = table[(table.condition == 'all') & (table['view'] == 'fused')].set_index('remedy')
    assert list(fused.index) == ['sft, rank 2', 'sft', 'per-modality, concat, rank 2', 'per-modality, concat']
    for end in (', rank 2', ''):  # each is held against SFT of the same rank
        base, other = (fused.value[f'{name}{end}'] for name in how['remedies'])
        assert fused.gain[f'per-modality, concat{end}'] == pytest.approx(other / base - 1)
    both = [c for c in cells if not c.get('rank')]
    assert repr(shop_choice(cells)) == repr(shop_choice(both))


def cell_of(remedy, seed, gains, condition='all'):
    return dict(remedy=remedy, seed=seed, world='warm', data='toy', figures={condition: {'fused': gains}})


def test_encoders_that_learn_are_cells_of_their_own(studio, tmp_path):
    e = dict(text=HashedWords(), image=Colours())
    asked = dict(remedies=['sft', 'wpcl'], worlds=['warm'], seeds=1, effort=0.2)
    heads = run_shop(tmp_path, e, studio, **asked)
    tuned = run_shop(tmp_path, e, studio, **asked, lora=2)
    assert {c.get('lora') for c in heads} == {None} and {c['lora'] for c in tuned} == {2}
    assert all(a['figures'] != b['figures'] for a, b in zip(heads, tuned))
    assert run_shop(tmp_path, e, studio, **asked, lora=2) == tuned
    table = shop_table(stored_shop(tmp_path))
    assert list(dict.fromkeys(table.remedy)) == ['sft', 'sft, LoRA 2', 'wpcl', 'wpcl, LoRA 2']
    fused = table[(table['view'] == 'fused') & (table.condition == 'all')].set_index('remedy')
    base = fused.value['sft, LoRA 2']
    assert fused.gain['wpcl, LoRA 2'] == pytest.approx(fused.value['wpcl, LoRA 2'] / base - 1)  # not over frozen ones
    marks = {m: x.mark for m, x in e.items()}
    assert marks == {m: x.mark for m, x in dict(text=HashedWords(), image=Colours()).items()}  # left as they were


def test_cells_stand_in_the_order_of_what_could_learn():
    made = [cell_of('sft', 0, [0.5, 0.5]) | c for c in (dict(rank=2, lora=4), dict(lora=4), dict(rank=2), {})]
    order = ['sft, rank 2', 'sft', 'sft, rank 2, LoRA 4', 'sft, LoRA 4']
    assert list(shop_table(made).remedy) == order


def test_after_tuning_each_content_is_read_once_for_all_conditions(studio, monkeypatch):
    read = []
    whole = Colours.prepare
    monkeypatch.setattr(Colours, 'prepare', lambda self, contents: read.extend(contents) or whole(self, contents))
    shop_cell(dict(text=HashedWords(), image=Colours()), studio, 'sft', effort=0.01, lora=2, draws=3)
    known = {Colours.called(c) for c in read}
    assert len(read) <= 4 * len(known)  # frozen, at most once while it learns, validation, and at rest; ten conditions


def test_the_table_by_hand():
    cells = [cell_of('sft', s, [0.1, 0.3]) for s in (0, 1)]
    cells += [cell_of('per-modality', 0, [0.2, 0.5]), cell_of('per-modality', 1, [0.2, 0.3])]
    cells += [cell_of('recommended', 0, [0.4, 0.6])]
    table = shop_table(cells).set_index('remedy')
    assert table.value.to_dict() == pytest.approx({'sft': 0.2, 'per-modality': 0.3, 'recommended': 0.5})
    assert table.gain['per-modality'] == pytest.approx(0.5)
    assert math.isnan(table.gain['sft']) and math.isnan(table.gain['recommended'])  # no SFT with its head
    assert table['seed sd']['per-modality'] == pytest.approx(np.std([0.35, 0.25], ddof=1))
    assert table.low['per-modality'] == pytest.approx(0.2) and table.high['per-modality'] == pytest.approx(0.4)


def test_seeds_that_both_have_are_compared():
    cells = [cell_of('sft', k, [0.1 + k, 0.3 + k]) for k in (0, 1)] + [cell_of('wpcl', 1, [2.2, 2.6])]
    table = shop_table(cells).set_index('remedy')
    assert table.gain['wpcl'] == pytest.approx(2 - 1) and table.seeds['wpcl'] == 1
    cells = [cell_of('sft', 0, [0.1, 0.3]), cell_of('wpcl', 1, [2.2, 2.6])]
    assert 'gain' not in shop_table(cells) or math.isnan(shop_table(cells).set_index('remedy').gain['wpcl'])


def test_there_is_no_share_of_nothing(recwarn):
    table = shop_table([cell_of('sft', 0, [0.0, 0.0]), cell_of('wpcl', 0, [0.4, 0.1])])
    assert table.gain.isna().all() and np.isfinite(table.value).all()
    rare = shop_table([cell_of('sft', 0, [1.0, *[0.0] * 9]), cell_of('wpcl', 0, [0.5] * 10)])
    assert np.isfinite(rare[['gain', 'gain low', 'gain high']].iloc[-1].astype(float)).all()
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_names_of_columns_are_no_formulas_in_the_file(tmp_path):
    cells = [cell_of('wpcl', 0, [0.1, 0.3]) | dict(columns={'text': ['=A1', '+title']})]
    write_shop(cells, tmp_path)
    assert pd.read_csv(tmp_path / 'shop.csv')['columns'][0] == 'text: =A1, +title'  # begins with a word: as it is
    cells[0]['columns'] = {'text': {'=A1': 'title'}}
    write_shop(cells, tmp_path)
    assert pd.read_csv(tmp_path / 'shop.csv')['columns'][0] == "'=A1: title"
    assert read_csv(tmp_path / 'shop.csv')['columns'][0] == '=A1: title'


def test_cold_rows_of_all_seeds_count(studio):
    cells = [cell_of('sft', 0, [0.5, float('nan')], 'cold'), cell_of('sft', 1, [0.8, 0.8, 0.9], 'cold')]
    row = shop_table(cells).iloc[0]
    assert row.value == pytest.approx(0.75) and row.metric == 'AUC' and row.seeds == 2


def test_the_fusion_is_chosen_by_warm_validation_customers():
    def warm(remedy, seed, users, world='warm'):
        return dict(remedy=remedy, seed=seed, world=world, kept=dict(users=users))

    low, high = [0.1, 0.0, 0.2, 0.1], [0.6, 0.7, 0.6, 0.8]
    both = [warm('sft', 0, high), warm('per-modality, concat', 0, low)]
    assert shop_choice(both).fuse == 'sum' and shop_choice(both).users == 4
    assert shop_choice([warm('sft', 0, low), warm('per-modality, concat', 0, high)]).fuse == 'concat'
    more = [*both, warm('sft', 1, low), warm('per-modality, concat', 2, high), warm('wpcl', 0, high)]
    assert shop_choice(more) == shop_choice(both)  # seeds of both alone count
    mean = [*both, warm('sft', 1, low), warm('per-modality, concat', 1, high)]
    assert shop_choice(mean).difference.value == pytest.approx(0)
    assert shop_choice([warm('sft', 0, high), warm('per-modality, concat', 0, low, 'small')]) is None
    older = [dict(c, kept={}) for c in both]
    assert shop_choice(older) is None


def test_the_rows_of_validation_are_not_those_of_test(studio, encoders):
    cell = shop_cell(encoders, studio, 'sft', 'warm', effort=0.2, draws=1)
    assert len(cell['kept']['users']) == 90 and cell['kept']['users'] != cell['figures']['all']['fused']
    assert np.mean(cell['kept']['users']) == pytest.approx(cell['kept']['valid'], abs=1e-4)
    assert 'users' not in shop_cell(encoders, studio, 'sft', 'small', effort=0.2)['kept']


# ---- the command


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Forty products with pictures, and forty customers with six purchases each."
    return own_shop(tmp_path_factory.mktemp('own'), 40, 'png')


def test_the_command_runs_and_goes_on(folder, encoders, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loading, 'real_encoders', lambda kinds, device=None: {m: encoders[k] for m, k in kinds.items()})
    argv = ['study', '--part', 'shop', '--data', str(folder), '--out', str(tmp_path), '--remedies', 'sft', 'wpcl']
    argv += ['per-modality, concat']
    argv += ['--conditions', 'warm', 'small', '--seeds', '1', '--effort', '0.2']
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert 'text: 40 of 40 read' in first and 'image: 40 of 40 read' in first
    assert 'warm--sft--0' in first and 'half of image gone' in first and '\nwpcl ' in first
    assert '\nsum or concat: ' in first and 'validation users)' in first
    assert '\nWithout a model, NDCG@10, all there: ' in first and 'popularity' in first
    made = tmp_path / f'{folder.name}-shop'
    assert (made / 'shop.csv').exists() and '| wpcl |' in (made / 'shop.md').read_text()
    seen = sum(sum(e.seen.values()) for e in encoders.values())
    assert main(argv) == 0 and 'warm--sft--0' not in capsys.readouterr().out
    assert main([*argv, '--table']) == 0 and '\nwpcl ' in capsys.readouterr().out
    assert sum(sum(e.seen.values()) for e in encoders.values()) == seen  # encoded once
    table = pd.read_csv(made / 'shop.csv')
    assert set(table.remedy) == {'sft', 'wpcl', 'per-modality, concat'} and set(table.condition) >= {
        'all',
        'one of them each',
        'small',
    }


def test_a_study_of_some_customers_says_so_and_is_not_mixed_with_all(folder, encoders, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loading, 'real_encoders', lambda kinds, device=None: {m: encoders[k] for m, k in kinds.items()})
    argv = ['study', '--part', 'shop', '--data', str(folder), '--out', str(tmp_path), '--remedies', 'sft']
    argv += ['--conditions', 'exchanged', '--seeds', '1', '--effort', '0.2']
    monkeypatch.setattr(commands, 'MANY', 14)
    assert main([*argv, '--users', '15']) == 0
    out = capsys.readouterr().out
    assert ', 15 of 40 customers\n' in out and 'note: 15 customers teach, 15 are asked: --users 5000' in out
    [cell] = stored_shop(tmp_path / f'{folder.name}-shop')
    assert len(cell['figures']['exchanged']['fused']) == 15
    assert '15 of 40 customers' in (tmp_path / f'{folder.name}-shop' / 'shop.md').read_text()
    assert main(argv) == 2 and 'choose another folder' in capsys.readouterr().err
    assert main([*argv, '--users', '41']) == 2 and 'the shop has 40 customers' in capsys.readouterr().err


def test_a_study_whose_time_is_over_goes_on(folder, encoders, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loading, 'real_encoders', lambda kinds, device=None: {m: encoders[k] for m, k in kinds.items()})
    argv = ['study', '--part', 'shop', '--data', str(folder), '--out', str(tmp_path), '--conditions', 'exchanged']
    argv += ['--remedies', 'sft', 'wpcl', 'experts', '--seeds', '1', '--effort', '0.1', '--jobs', '1']
    for left in (1, 2):
        assert main([*argv, '--minutes', '0.0001']) == 0
        out = capsys.readouterr().out
        assert f'0.0001 minutes are over: {left} of 3 cells are there, the next call goes on' in out
        assert '\nsft ' in out and len(stored_shop(tmp_path / f'{folder.name}-shop')) == left
    assert main(argv) == 0 and 'are over' not in capsys.readouterr().out
    assert len(stored_shop(tmp_path / f'{folder.name}-shop')) == 3
    assert main(['study', '--minutes', '5']) == 2 and '--minutes is for --part shop' in capsys.readouterr().err


@pytest.mark.parametrize(
    'args, said',
    [
        ([], 'give --data FOLDER'),
        (['--data', '.', '--remedies', 'sftt'], "did you mean 'sft'"),
        (['--data', '.', '--conditions', 'wram'], "did you mean 'warm'"),
        (['--data', '.', '--effort', '0'], '--effort 0'),
        (['--data', '.', '--verify', '1'], '--verify is not for'),
        (['--data', '.', '--ranks', '4', 'nought'], '--ranks nought: a whole number above 0, or full'),
        (['--data', '.', '--ranks', '0'], '--ranks 0: '),
    ],
)
def test_what_the_command_refuses(args, said, capsys):
    assert main(['study', '--part', 'shop', *args]) == 2
    assert said in capsys.readouterr().err
