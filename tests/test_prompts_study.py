"The study of prompt models: names of items, cells, tables by hand, and the command."

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from prompt_shops import bought_once
from shell import own_shop, said

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.commands.prompts import CHOICES
from vlm2rec_lab.prompts import study
from vlm2rec_lab.prompts.answers import by_first_purchase
from vlm2rec_lab.prompts.codes import code_names, fit_codes, number_names, side_by_side, unique_codes
from vlm2rec_lab.prompts.diagnosis import CHANGES, changed
from vlm2rec_lab.prompts.fit import item_scores
from vlm2rec_lab.prompts.lessons import customer_names, next_questions
from vlm2rec_lab.prompts.model import LEARN
from vlm2rec_lab.prompts.study import (
    HELD_OUT,
    SAMPLED,
    WHOLE,
    figures_asked,
    make_prompts,
    prompt_cell,
    prompt_markdown,
    prompt_table,
    run_prompts,
    write_prompts,
)
from vlm2rec_lab.prompts.t5 import open_t5, tiny_t5, word_tokens
from vlm2rec_lab.prompts.templates import templates_for
from vlm2rec_lab.shop.catalogue import Interactions
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.shop.rows import warm_items

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
SPLIT = bought_once(users=12)
QUICK = dict(epochs=1, draws=1, negatives=3, cut=2, progress=False)


def vectors(seed=0, items=15):
    rng = np.random.default_rng(seed)
    return {'image': rng.normal(size=(items, 4)), 'text': rng.normal(size=(items, 5))}


# ---- names


def test_names_by_purchase_are_those_of_the_first_purchase():
    "Of all that was bought, customer by customer, the test's purchase last; what nobody bought comes at the end."
    (offsets, items), asked = SPLIT.user_items, (SPLIT.valid, SPLIT.test)
    rows = [items[a:b].tolist() for a, b in zip(offsets, offsets[1:])]
    for part in asked:
        for u, i in zip(part.users, part.targets):
            rows[u].append(int(i))
    order = list(dict.fromkeys(i for row in rows for i in row))
    order += [i for i in range(15) if i not in order]
    encode = word_tokens(open_t5(tiny_t5())[1])
    names = make_prompts(SPLIT, vectors(), ids='by purchase')[1].names
    assert names == number_names([order.index(i) + 1 for i in range(15)], encode)
    assert names == number_names(by_first_purchase(Interactions.of_sequences(rows), 15), encode)


def test_random_names_are_those_of_the_seed():
    a, b, c = (make_prompts(SPLIT, vectors(), seed=s)[1].names for s in (0, 0, 1))
    assert a == b != c and sorted(a) == sorted(c)


@pytest.mark.parametrize('alike', [False, True])
def test_codes_of_new_items_do_not_change_those_of_old_ones(alike):
    "Whatever new items look like, and whether old ones look alike: they are called as if the new ones were others."
    studio = make_studio('balanced', seed=0, items=30, users=60, length=6, new=0.3)
    split = studio.split(train=30, valid=10, test=20, history=4)
    old, rng, names = warm_items(split), np.random.default_rng(0), []
    first, some = np.flatnonzero(old)[0], rng.permutation(np.flatnonzero(old))[:10]
    assert len(some) < old.sum() < 30 and not old[:first].any() and not old[first : np.flatnonzero(old)[-1]].all()
    look = rng.normal(size=(30, 4))
    look = look[np.arange(30) % 15] if alike else look
    apart = []
    for new in (*rng.normal(size=(4, 30, 4)), look[some[np.arange(30) % 10]], look):
        shown = dict(image=np.where(old[:, None], look, new))
        names.append(make_prompts(split, shown, ids='codes')[1].names)
        codes = fit_codes(side_by_side(shown)[old]).of(side_by_side(shown))
        apart.append(len(np.unique(codes, axis=0)) == 30)
    assert set(apart) == ({False} if alike else {True, False})
    for others in names[1:]:
        assert [n for n, o in zip(others, old) if o] == [n for n, o in zip(names[0], old) if o]
        assert others != names[0]
    x, encode = side_by_side(shown), word_tokens(open_t5(tiny_t5())[1])
    for name, codes in zip(names[-1], fit_codes(x[old]).of(x)):
        own = [t for c in codes for t in encode(str(c))]
        assert name[: len(own)] == own and len(name) > len(own)


def test_codes_without_new_items_are_as_short_as_they_can_be():
    x, encode, split = {'image': vectors()['image']}, word_tokens(open_t5(tiny_t5())[1]), bought_once(users=60)
    assert warm_items(split).all()
    codes = unique_codes(fit_codes(side_by_side(x), seed=3).of(side_by_side(x)))
    assert make_prompts(split, x, ids='codes', seed=3)[1].names == code_names(codes, encode)


def test_ways_show_and_say_what_they_promise():
    for way, (named, shows) in study.WAYS.items():
        model, wording = make_prompts(SPLIT, vectors(), way=way, shown=['text'])
        assert (wording.named, list(wording.vectors)) == (named, ['text'] if shows else [])
        assert list(model.mapping) == list(wording.vectors)
    one, other = (make_prompts(SPLIT, vectors(), ids='codes', coded=[m])[1].names for m in ('text', 'image'))
    assert one != other
    for wrong in (dict(shown=['txt']), dict(ids='codes', coded=['txt'])):
        with pytest.raises(DataError, match="did you mean 'text'"):
            make_prompts(SPLIT, vectors(), **wrong)


# ---- one cell


def by_hand(scores, rows, left, cut=2):
    "{metric: list} of the targets among the items that are left to each row."
    found = {f'HR@{cut}': [], f'NDCG@{cut}': []}
    for k, target in enumerate(rows.targets):
        place = sum(scores[k, i] > scores[k, target] for i in left[k])
        found[f'HR@{cut}'].append(float(place < cut))
        found[f'NDCG@{cut}'].append(1 / np.log2(place + 2) if place < cut else 0.0)
    return found


@pytest.mark.parametrize('way, asked_less', [('both', 0), ('contents', 1)])
def test_what_is_asked_by_hand(way, asked_less):
    "In the first sentence and in one that is held out, among drawn items, and with contents changed."
    shown = dict(shown=['image']) if asked_less else {}
    model, wording = make_prompts(SPLIT, vectors(), way=way, **shown)
    found, rows, users = figures_asked(model, wording, SPLIT, 2, 3, seed=4), SPLIT.test, customer_names(SPLIT)
    asked = [next_questions(rows, templates_for('next', held_out=h)[0], users) for h in (False, True)]
    seen = [set(rows.seen_items[a:b].tolist()) for a, b in zip(rows.seen_offsets, rows.seen_offsets[1:])]
    left = [set(range(15)) - s for s in seen]
    told = {WHOLE: item_scores(model, wording, asked[0]), HELD_OUT: item_scores(model, wording, asked[1])}
    for m in wording.vectors:
        for how in CHANGES:
            if (way, how) != ('contents', 'removed'):
                told[f'{m} {how}'] = item_scores(model, changed(wording, m, how, 4), asked[0])
    assert set(found) == {*told, SAMPLED}
    for name, scores in told.items():
        for metric, values in by_hand(scores, rows, left).items():
            assert found[name][metric] == pytest.approx(values, abs=1e-5), (name, metric)
    sampled, whole = (np.array(found[name]['HR@2']) for name in (SAMPLED, WHOLE))
    assert (sampled >= whole).all() and (sampled > whole).any()  # among fewer
    assert figures_asked(model, wording, SPLIT, 2, None).keys() == told.keys()
    valid = figures_asked(model, wording, SPLIT, 2, None, part='valid')[WHOLE]
    assert valid != found[WHOLE]


def test_drawn_items_are_so_many_that_are_not_seen(monkeypatch):
    asked, whole = [], study.ranks_of
    monkeypatch.setattr(study, 'ranks_of', lambda s, rows, *n: asked.append(n) or whole(s, rows, *n))
    figures_asked(*make_prompts(SPLIT, vectors()), SPLIT, 2, 3)
    (drawn,) = [n[0] for n in asked if n]
    for k, (items, target) in enumerate(zip(drawn, SPLIT.test.targets, strict=True)):
        seen = SPLIT.test.seen_items[SPLIT.test.seen_offsets[k] : SPLIT.test.seen_offsets[k + 1]]
        assert len(set(items.tolist())) == 3 and not set(items.tolist()) & {target, *seen.tolist()}


def test_a_cell_is_json_where_nobody_looked_and_new_items_alone_are_asked_for():
    studio = make_studio('balanced', seed=0, items=30, users=60, length=6, new=0.2)
    split = studio.split(train=30, valid=0, test=20, history=4)
    new = ~warm_items(split)[split.test.targets]
    assert 0 < new.sum() < len(new)
    split = replace(split, test=split.test.take(np.flatnonzero(new)))
    cell = prompt_cell(split, {}, **QUICK | dict(model=dict(way='names')))
    assert json.loads(json.dumps(cell, allow_nan=False)) == cell and cell['kept']['valid'] is None
    assert {r['target'] for r in cell['kept']['new items']} == {'new'}
    assert 'nan' not in study.new_markdown([cell | dict(way='names')])


def test_a_cell_is_what_a_taught_model_is_asked(monkeypatch):
    "Ready for JSON, the same again, with figures of the model at the end; new items have rows of their own."
    studio = make_studio('balanced', seed=0, items=30, users=60, length=6, new=0.2)
    split = studio.split(train=30, valid=10, test=20, history=4)
    taught, whole = [], study.fit_prompts
    monkeypatch.setattr(study, 'fit_prompts', lambda *a, **k: taught.append((a, k)) or whole(*a, **k))
    how = QUICK | dict(candidates=3, model=dict(ids='codes'))
    cell = prompt_cell(split, vectors(items=30), **how)
    assert json.loads(json.dumps(cell)) == cell
    (model, wording, lessons, look), told = taught[0]
    assert cell['figures'] == figures_asked(model, wording, split, 2, 3, 0, candidates=3)
    assert study.CHOSEN in cell['figures']
    assert look[0] is split.valid and told['metric'] == 'NDCG@2' and told['seed'] == 0
    assert len(lessons(np.random.default_rng(0))) == 2 * 30  # which comes next, and which of three
    assert cell['kept']['best'] == cell['kept']['epochs'] == 1 and cell['kept']['learned'] < cell['kept']['whole']
    new = {(r['target'], r['among']): r['rows'] for r in cell['kept']['new items']}
    fresh = int((~warm_items(split))[split.test.targets].sum())
    assert new == {('new', 'all items'): fresh, ('new', 'new items'): fresh, ('known', 'all items'): 20 - fresh}
    assert 0 < fresh < 20
    plain = prompt_cell(SPLIT, vectors(), **QUICK)
    assert len(taught[1][0][2](np.random.default_rng(0))) == 12 and plain['kept']['new items'] == []
    again = prompt_cell(SPLIT, vectors(), **QUICK)
    assert plain['figures'] == again['figures'] != prompt_cell(SPLIT, vectors(), seed=1, **QUICK)['figures']


def test_sets_are_refused():
    rows = replace(SPLIT.test, set_offsets=np.arange(len(SPLIT.test) + 1), set_items=SPLIT.test.targets)
    with pytest.raises(DataError, match='a prompt asks for one'):
        prompt_cell(replace(SPLIT, test=rows), vectors(), **QUICK)


# ---- cells that are kept


@pytest.fixture
def made(monkeypatch):
    "Cells that cost nothing; (seed, settings) of all that were made."
    found = []

    def cheap(split, vectors, base=None, seed=0, *, device='cpu', folder=None, model=None, **how):
        found.append((seed, model))
        training = {k: v for k, v in how.items() if k not in study.CELL}
        fixed = {k: how[k] for k in study.CELL}
        kept = {'epochs': 1, 'learned': 1, 'whole': 2, 'folder': str(folder), 'new items': []}
        asked = study._asked(split, vectors, base, **fixed, model=model, training=training)
        return dict(seed=seed, cut=how['cut'], asked=asked, kept=kept, seconds=1.0)

    monkeypatch.setattr(study, 'prompt_cell', cheap)
    monkeypatch.setattr(study, '_base_key', str)
    return found


def test_a_cell_is_made_once(made, tmp_path):
    "Seed by seed; device and progress do not matter."
    ways, lines = {'a': dict(way='names'), 'b/c, d': dict(ids='codes')}, []
    cells = run_prompts(tmp_path, SPLIT, vectors(), ways, 2, said=lines.append, **QUICK)
    assert made == [(0, ways['a']), (0, ways['b/c, d']), (1, ways['a']), (1, ways['b/c, d'])] and len(lines) == 4
    assert [(c['way'], c['seed']) for c in cells] == [('a', 0), ('b/c, d', 0), ('a', 1), ('b/c, d', 1)]
    assert [x.partition(':')[0] for x in lines] == ['a--0', 'b/c, d--0', 'a--1', 'b/c, d--1']
    assert len({c['kept']['folder'] for c in cells}) == 4
    other = QUICK | dict(device='cuda', progress=True)
    assert run_prompts(tmp_path, SPLIT, vectors(), ways, 3, said=lines.append, **other)[:4] == cells
    assert len(made) == len(lines) == 6 and {s for s, _ in made[4:]} == {2}


@pytest.mark.parametrize(
    'name, other',
    [
        ('draws', dict(draws=2)),
        ('candidates', dict(candidates=4)),
        ('cut', dict(cut=3)),
        ('negatives', dict(negatives=None)),
        ('lr', dict(lr=0.5)),
        ('epochs', dict(epochs=2)),
        ('base', dict(base='t5-small')),
        ('model', dict(ways={'a': dict(reduction=4)})),
        ('vectors', dict(vectors=vectors(1))),
        ('split', dict(split=bought_once(seed=1, users=12))),
    ],
)
def test_a_changed_setting_is_refused_by_its_name(name, other, made, tmp_path):
    first = dict(split=SPLIT, vectors=vectors(), ways={'a': {}}, seeds=1, **QUICK | dict(lr=0.1))
    run_prompts(tmp_path, **first)
    with pytest.raises(DataError, match=f'{name}='):
        run_prompts(tmp_path, **first | other)
    assert len(made) == 1


def test_a_true_cell_is_found_by_what_it_was_asked(tmp_path):
    "With defaults, and without them."
    ways = {'names': dict(way='names')}
    cells = run_prompts(tmp_path, SPLIT, {}, ways, 1, epochs=1, progress=False)
    again = run_prompts(tmp_path, SPLIT, {}, ways, 1, epochs=1, draws=5, negatives=99, said=lambda line: 1 / 0)
    assert again == cells and (tmp_path / 'training/names--0/fit.safetensors').exists()


# ---- tables


def cell_of(way, seed, **figures):
    each = {k: {'NDCG@2': v, 'HR@2': [2 * x for x in v]} for k, v in figures.items()}
    return dict(way=way, seed=seed, cut=2, figures=each, kept={'learned': 3, 'whole': 9, 'new items': []})


CELLS = [
    cell_of('a', 0, **{WHOLE: [0.1, 0.3], SAMPLED: [0.4, 0.4], 'image removed': [0.1, 0.0]}),
    cell_of('a', 1, **{WHOLE: [0.3, 0.5], SAMPLED: [0.4, 0.6], 'image removed': [0.1, 0.2]}),
    cell_of('b', 0, **{WHOLE: [0.0, 0.0], HELD_OUT: [0.1, 0.0]}),
]


def test_the_table_by_hand():
    table = prompt_table(CELLS).set_index(['way', 'asked'])
    assert list(table.index) == [
        ('a', WHOLE),
        ('a', SAMPLED),
        ('a', 'image removed'),
        ('b', WHOLE),
        ('b', HELD_OUT),
    ]
    assert table.value.tolist() == pytest.approx([0.3, 0.45, 0.1, 0, 0.05])
    assert table['seed sd'].tolist()[:3] == pytest.approx([0.2 / 2**0.5, 0.1 / 2**0.5, 0.1 / 2**0.5])
    assert table['seed sd'].isna().tolist() == [False] * 3 + [True] * 2 and table.seeds.tolist() == [2, 2, 2, 1, 1]
    assert (table.low['a', WHOLE], table.high['a', WHOLE]) == pytest.approx((0.2, 0.4))  # of two rows
    assert table.change['a', 'image removed'] == pytest.approx(0.1 / 0.3 - 1)
    assert table.change.notna().sum() == 1  # none for all there, for drawn items, and against nothing
    assert set(table.learned) == {3} and set(table.whole) == {9} and set(table.metric) == {'NDCG@2'}
    other = prompt_table(CELLS, 'HR')
    assert other.value.tolist() == pytest.approx([0.6, 0.9, 0.2, 0, 0.1]) and set(other.metric) == {'HR@2'}


def test_the_page_has_five_cells_a_line_whatever_things_are_called(tmp_path):
    "Names of modalities come from files of others."
    odd = '=<b>a|b</b>\nc'
    cells = [cell_of(odd, 0, **{WHOLE: [0.2, 0.4], f'{odd} removed': [0.1, 0.1]})]
    table = write_prompts(cells, tmp_path, 'toy', 'as typed')
    head, *lines = prompt_markdown(table).splitlines()
    assert head == '| model reads | asked with | NDCG@2 | against all there | seeds |' and len(lines) == 3
    for line in lines:
        assert line.replace('\\|', '').count('|') == 6 and '<b>' not in line
    assert '| 0.3000 [0.200, 0.400] |  | 1 |' in lines[1]
    assert '| 0.1000 [0.100, 0.100] | -67 % [-75, -50] | 1 |' in lines[2]
    page = (tmp_path / 'prompts.md').read_text()
    assert page.startswith('toy. Full ranking') and 'as typed' in page and page.endswith(prompt_markdown(table) + '\n')
    assert '\n"\'=<b>' in (tmp_path / 'prompts.csv').read_text()  # a spreadsheet would compute it
    assert pd.read_csv(tmp_path / 'prompts.csv').value.tolist() == [0.3, 0.1, 0.6, 0.2]


# ---- the command


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "A shop and a file of vectors."
    folder = own_shop(tmp_path_factory.mktemp('prompts'))
    rng = np.random.default_rng(0)
    np.savez(folder / 'theirs.npz', **{f'items/{m}': rng.normal(size=(40, 6)) for m in ('text', 'image')})
    return folder


def typed(work, *argv):
    with contextlib.chdir(work):
        return said('prompts', '--data', '.', '--encoder', 'theirs.npz', *argv)


def test_ways_ids_and_learning_are_combined(work, made, monkeypatch):
    "Each is named by all that it is; what is typed arrives."
    monkeypatch.setattr(study, 'write_prompts', lambda cells, *a: pd.DataFrame(dict(metric=['NDCG@10'])).iloc[:1])
    monkeypatch.setattr(study, 'prompt_markdown', lambda table: '| a |\n| --- |\n| b |')
    asked, whole = [], study.run_prompts
    monkeypatch.setattr(study, 'run_prompts', lambda *a, **k: asked.append((a, k)) or whole(*a, **k))
    argv = [
        '--ids',
        'random',
        'codes',
        '--learn',
        'adapters',
        'lora',
        '--ways',
        'names',
        'both',
        'both',
        '--coded',
        'text',
    ]
    argv += ['--shown', 'image', '--words', 3, '--reduction', 4, '--rank', 5, '--seeds', 1, '--out', 'combined']
    argv += ['--draws', 6, '--epochs', 7, '--batch', 9, '--k', 11, '--negatives', 12, '--candidates', 13, '--lr', '0.5']
    status, out, err = typed(work, *argv)
    assert status == 0, err
    (_, _, found, ways, seeds), how = asked[0]
    assert list(ways) == [
        f'{way}, {ids} ids, {learn}'
        for way in ('names', 'both')
        for ids in ('random', 'codes')
        for learn in ('adapters', 'lora')
    ]
    for name, settings in ways.items():
        way, ids, learn = name.split(', ')
        assert settings == dict(
            way=way,
            ids=ids.removesuffix(' ids'),
            learn=learn,
            coded=['text'] if ids == 'codes ids' else None,
            shown=['image'] if way != 'names' else None,
            item_words=3,
            reduction=4,
            rank=5,
        )
    assert seeds == 1 and set(found) == {'text', 'image'} and len(made) == 8 and 'b' in out
    sizes = dict(draws=6, epochs=7, batch=9, cut=11, negatives=12, candidates=13, lr=0.5, base=None, autocast=None)
    assert sizes.items() <= how.items()
    status, _, err = typed(work, '--ids', 'random', 'random', '--seeds', 1, '--out', 'plain')
    assert status == 0, err
    assert list(asked[1][0][3]) == ['names, random ids, adapters', 'both, random ids, adapters']
    status, _, err = typed(work, '--out', 'plain', '--shown', 'txt')
    assert status == 2 and "--shown; did you mean 'text'?" in err
    status, _, err = typed(work, '--out', 'plain', '--ids', 'codes', '--coded', 'imag')
    assert status == 2 and "--coded; did you mean 'image'?" in err


def test_what_needs_no_contents_reads_none(work, made, monkeypatch):
    monkeypatch.setattr(study, 'write_prompts', lambda cells, *a: pd.DataFrame(dict(metric=['NDCG@10'])))
    monkeypatch.setattr(study, 'prompt_markdown', lambda table: '| a |\n| --- |\n| b |')
    with contextlib.chdir(work):
        for out, ids, n in (('bare', 'random', 1), ('bought', 'by purchase', 2)):
            status, _, err = said('prompts', '--data', '.', '--ways', 'names', '--ids', ids, '--seeds', 1, '--out', out)
            assert status == 0 and len(made) == n, err


def test_choices_have_defaults_that_there_are():
    for option, _, _, default, _ in CHOICES:
        assert set(default) <= set(dict(ways=study.WAYS, ids=study.IDS, learn=LEARN)[option])
    if not torch.cuda.is_available():
        status, _, err = said('prompts', '--data', str(Path(__file__).parent), '--device', 'cuda')
        assert status == 2
