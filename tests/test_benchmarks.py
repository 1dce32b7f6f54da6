"""Every benchmark runs, in a toy setting, and writes what the pages read; its plain and its fast recipe are those of
`train`. No figure of these runs means anything."""

import contextlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pair_encoders
import pandas as pd
import pytest
import warm

from vlm2rec_lab.commands.plan import PAIRS
from vlm2rec_lab.model.families import FAMILIES
from vlm2rec_lab.model.pair import PairEmbedder
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.shop.leave_one_out import leave_one_out

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / 'benchmarks'


def run(script, *args, **env):  # -> (result, what it printed)
    "Run a script as a user does; its JSON."
    out = Path(args[-1])
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': paths, **env}
    done = warm.run([BENCH / script, *args[:-1], '--out', out], cwd=out.parent, env=env, timeout=1000)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads(out.read_text()), done.stdout


@pytest.fixture(scope='module')
def scripts():
    "The scripts as modules, under names of their own."
    sys.path.insert(0, str(BENCH))
    import common  # noqa: E401
    import decoders
    import encoders
    import flame
    import fusions
    import goals
    import gpu
    import graph_films
    import graph_remedies
    import graph_verdicts
    import lattice
    import pairs
    import published
    import scale
    import shapes
    import size
    import step
    import train

    found = (common, decoders, encoders, flame, fusions, gpu, graph_films, graph_remedies, lattice, pairs, published)
    found += (goals, graph_verdicts, scale, shapes, size, step, train)
    yield {m.__name__: m for m in found}
    sys.path.remove(str(BENCH))


@pytest.mark.slow
def test_train(tmp_path):
    found, printed = run('train.py', '--small', '--cells', str(tmp_path / 'cells'), tmp_path / 'train.json')
    assert {'machine', 'rates', 'quality', 'encoding', 'loss', 'data', 'clock'} <= set(found) and {
        'cpu',
        'cores',
        'threads',
        'torch',
        'load',
    } <= set(found['machine'])
    rows = {r['recipe']: r for r in found['rates'][0]['rows']}
    assert (
        len(rows) == 10
        and {x['prompts'] for x in found['quality']['tried']} == {'usual', 'lean'}
        and found['quality']['chosen']['(a) plain, lean prompts']['prompts'] == 'lean'
        and rows['(a) plain']['ratio'] == [1, 1, 1]
        and rows['(c) all']['pairs_per_step'] > 5 * rows['(a) plain']['pairs_per_step']
    )
    assert (
        all(
            r['pairs_per_second'] > 0 and len(r['seconds_per_step']) == 3
            for part in found['rates']
            for r in part['rows']
        )
        and '(c) all' in printed
    )
    q = found['quality']
    assert {'goal', 'chosen', 'tried', 'runs', 'summary'} <= set(q) and {r['recipe'] for r in q['runs']} == {
        '(a) plain',
        '(a) plain, lean prompts',
        '(c) all',
    }
    assert q['development_seed'] not in {r['seed'] for r in q['runs']}, (
        'nothing is chosen on the shops that are reported'
    )
    assert all(0 <= r['test']['fused'] <= 1 and r['valid'][-1][0] == r['steps'] for r in q['runs'])
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / 'cells').glob('*.json')}
    again, _ = run('train.py', '--small', '--cells', str(tmp_path / 'cells'), tmp_path / 'again.json')
    assert (
        again['rates'] == found['rates']
        and again['quality'] == found['quality']
        and files == {p: p.stat().st_mtime_ns for p in files}
    ), 'finished parts are not run again'


def test_recipes_are_those_of_train(scripts):
    """Plain and all-on are the paths of `train`; every recipe of whole histories has the same loss and gradient, so do
    those of all positions."""
    import torch

    from vlm2rec_lab.embed import make_bank
    from vlm2rec_lab.train import batch_rows, make_batch, training_rows, works_of

    t = scripts['train']
    split = t.shop(1, 5, 6, True)
    embedder, live = t.fresh(0, split, t.PLAIN)
    stored, found = make_bank(embedder, split.catalogue, False), {}
    twice = {}
    with torch.no_grad():
        for _, p in embedder.adapter_parameters():
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    for name, recipe in t.RECIPES.items():
        drawn = training_rows(split, 'all' if recipe.every else 'last')
        batch = make_batch(split, drawn[batch_rows(0, len(drawn), 10, 0)], 'all' if recipe.every else 'last')
        twice[recipe.every] = len(set(batch.targets)) < len(batch.targets)
        loss, parts = t.gradients(embedder, stored if recipe.cached else live, batch, recipe)
        found.setdefault(recipe.every, {})[name] = loss, [sum(g) for g in zip(*parts.values())]
        if recipe in (t.PLAIN, t.ALL):

            def sizes(works):
                return {v: sorted((w.side, len(w.index)) for w in ws) for v, ws in works.items()}

            assert sizes(t.works(embedder, live, batch, recipe)) == sizes(
                works_of(embedder, live, batch, 'all' if recipe.every else 'last', plain=recipe == t.PLAIN)
            )
    assert all(twice.values()), 'no target comes twice: the batch tests nothing'
    for group in found.values():
        first, *others = group.values()
        for loss, g in others:
            assert torch.allclose(loss, first[0], atol=1e-5) and all(
                torch.allclose(a, b, atol=1e-5) for a, b in zip(g, first[1])
            )


def test_interleaving_turns_and_counts(scripts):
    order = []
    out = scripts['common'].interleave({n: lambda r, n=n: order.append((r, n)) for n in 'ab'}, 3, warm=1)
    assert (
        [len(v) for v in out.values()] == [3, 3]
        and sorted(order) == [(r, n) for r in range(4) for n in 'ab']
        and {n for r, n in order[::2]} == {'a', 'b'}
    )


def test_cells_are_kept_by_their_settings(scripts, tmp_path):
    c = scripts['common'].cell
    assert [c(tmp_path, dict(cell='x', lr=lr), lambda: dict(v=k)) for k, lr in enumerate((1, 1, 2))] == [
        dict(v=0),
        dict(v=0),
        dict(v=2),
    ]


def test_ratios_are_those_of_sums(scripts):
    "A median would hide the long batch; an interval over seeds stands around the ratio of their sums."
    c = scripts['common']
    theirs, ours = [1.0] * 9, [0.1] * 8 + [8.2]
    assert np.median(np.divide(theirs, ours)) == pytest.approx(10)
    assert c.ratio_of_sums(theirs, ours) == [1.0, round(1 / 8.2, 4), 10.0]
    whole, low, high = c.interval_of_sums([50, 52, 54, 40, 60], [10, 11, 7, 8, 12])
    assert whole == round(256 / 48, 2) and low < whole < high and c.interval_of_sums([6], [2]) == [3.0, None, None]
    assert c.interval_of_sums([4, 4, 4], [2, 2, 2]) == [2.0, 2.0, 2.0]
    mean, low, high = c.interval_of_mean([1, 2, 3])
    assert mean == 2 and (low, high) == (pytest.approx(-0.4841, abs=1e-4), pytest.approx(4.4841, abs=1e-4))
    assert c.in_range([3.0, None, None]) == '3.00' and c.in_range([3.0, 2.0, 4.0], 1) == '3.0 (2.0 to 4.0)'


def test_seconds_to_the_goal_are_summed_over_seeds(scripts):
    "A seed where one side did not reach the goal is left out of the ratio, and counted."

    def run(recipe, seed, seconds, test):
        return dict(recipe=recipe, seed=seed, to_goal=seconds and dict(seconds=seconds), test=dict(fused=test))

    runs = [run('(a) plain', s, t, 0.2) for s, t in enumerate((50.0, 40.0, None))]
    runs += [run('(a) plain, lean prompts', s, t, 0.22) for s, t in enumerate((20.0, 10.0, 7.0))]
    runs += [run('(c) all', s, t, 0.21) for s, t in enumerate((10.0, 5.0, 7.0))]
    found = scripts['train'].summary(runs)
    assert found['seeds'] == 3 and list(found['not_reached'].values()) == [1, 0, 0]
    plain, lean = found['c_beside'].values()
    assert plain['seconds_ratio'] == [5.0, 8.0] and plain['seconds_ratio_of_sums'][0] == 6.0
    assert lean['seconds_ratio'] == [2.0, 2.0, 1.0] and lean['seconds_ratio_of_sums'][0] == round(37 / 22, 2)
    assert (plain['test_difference'][0], lean['test_difference'][0]) == (0.01, -0.01)


def test_step_and_its_floor(tmp_path, scripts):
    "The floor has two products for each frozen matrix; the ratio is that of the sums."
    found, printed = run('step.py', '--small', '--rounds', '2', tmp_path / 'step.json')
    assert found['batches'] == 2 and 'times the floor' in printed and found['pairs_per_step'] > found['rows_per_step']
    cpu = found['cpu_seconds']
    assert found['ratio'][0] == pytest.approx(cpu['step'] / cpu['floor'], rel=0.05) and found['ratio'][0] > 1
    assert found['compiled']['ratio'][0] == pytest.approx(cpu['compiled'] / cpu['floor'], rel=0.05)
    assert found['compiled']['waited'] > 0 and 'with compiled layers' in printed and 'for the compiler' in printed
    assert max(found['layers'][0]['errors'].values()) < 1e-5 and 'apart takes, of merged' in printed
    assert found['others']['under autocast to bfloat16']['ratio'][0] > 1
    t = scripts['train']
    embedder, _ = t.fresh(0, t.shop(1, 5, 6, True), t.ALL)
    s = scripts['step']
    called, hooks = s.large_products(embedder.model)
    layer = next(m for m in embedder.model.modules() if hasattr(m, 'base_layer'))
    out, into = layer.base_layer.weight.shape
    import torch

    layer(torch.zeros(3, 5, into))
    assert called == [(15, out, into)], 'a matrix with its adapter counts once'
    for h in hooks:
        h.remove()
    _, step = s.stepper(t.shop(1, 5, 6, True), 4)
    s.shapes_of(embedder, step, 1)
    assert not any(m._forward_hooks for m in embedder.model.modules()), 'what is compiled must not hold such hooks'


@pytest.mark.slow
def test_item_bank(tmp_path, scripts):
    "Every way ran on the same seeds; a bank that is never stale and its candidates alone give the loss of item passes."
    found, printed = run('item_bank.py', '--small', '--cells', '', tmp_path / 'item_bank.json')
    assert list(found['runs']) == [r['way'] for r in found['summary']] and 'less the first row' in printed
    assert printed.count('too few') == len(found['runs']), 'two seeds make no interval'
    assert all([r['seed'] for r in rs] == [101, 102] for rs in found['runs'].values())
    assert found['development_seed'] not in (101, 102), 'nothing is chosen on the shops that are reported'
    first, fresh = (found['runs'][w][0]['losses'][0] for w in ('item passes, as (c)', 'bank, refreshed every step'))
    assert fresh == pytest.approx(first, abs=1e-3)


def test_goals(scripts, tmp_path):
    "What is missing is not measured; a figure that meets its goal says so; ratios are those of sums, not medians."
    g = scripts['goals']
    empty = g.goals({})
    assert [r['now'] for r in empty] == [r[''] for r in empty] == ['not measured'] * 9
    (tmp_path / 'step.json').write_text(json.dumps(dict(small=True, ratio=[2, 1, 3], batches=1)))
    done = [sys.executable, str(BENCH / 'goals.py'), '--results', str(tmp_path)]
    printed = subprocess.run(done, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert printed.returncode == 0 and printed.stdout.count('not measured | not measured') == 9, printed.stderr[-2000:]

    def recipe(name, rate):
        return dict(recipe=name, pairs_per_second=rate, ratio=[99.0, 98.0, 100.0])

    def trained(rate, test, seeds):
        sides = (('(a) plain', 0.2), ('(a) plain, lean prompts', 0.23), ('(c) all', test))
        mean = {n: dict(fused=[x, 0.01]) for n, x in sides}
        rows = [recipe('(a) plain', 10.0), recipe('(c) all', rate)]
        summary = dict(seeds=seeds, test_mean_and_deviation=mean)
        return dict(rates=[dict(world=g.WORLD, rows=rows)], quality=dict(summary=summary))

    def on_card(busy, cached, ratio, most):
        rates = dict(recipe='(c) all, recomputing', utilisation=busy, rows_per_step=16, ratio=[ratio, 1.0, 9.0])
        ways = (('without caching', 20.0), ('caching', cached))
        return dict(
            machine=dict(gpu='a card'),
            commit='123abc',
            rates=[dict(recipe='(a) plain, recomputing', utilisation=0.1, rows_per_step=16), rates],
            caching=[dict(recipe=way, sequences_per_second=rate, rows_per_step=4) for way, rate in ways],
            largest_with=dict(largest=most),
        )

    log = [
        dict(generated=n, way='fast', file='log.csv', seconds=dict(total=s), peak_gb=6.0)
        for n, s in ((1_000_000, 1.0), (100_000_000, 80.0))
    ]
    rows = [dict(low=0.01, high=0.03), dict(low=0.0, high=0.01)]
    large = dict(items=10_000_000, users=1_000_000, seconds=900, peak_gb=20.0, own_gb=4.0)
    good = dict(
        step=dict(ratio=[2.4, 2.0, 3.0], batches=62),
        train=trained(85.0, 0.2, 5),
        report=dict(command=dict(users=2000, items=2000, cpu=2.5)),
        interactions=dict(runs=log),
        catalogue=large | dict(parts=dict(report=dict(rows=rows))),
        serve=dict(ms=dict(all=dict(p99=49.0)), rate=200.0, items=20_000),
        gpu=on_card(0.46, 10.0, 5.5, 192),
    )
    assert [r[''] for r in g.goals(good)] == ['reached'] * 9 and '8.5 times' in g.goals(good)[1]['now']
    assert '±0.0100' in g.goals(good)[4]['now']
    bad = good | dict(
        step=dict(ratio=[2.6, 2.0, 3.0], batches=62),
        train=trained(85.0, 0.19, 5),
        report=dict(command=dict(users=2000, items=2000, cpu=3.5)),
        interactions=dict(runs=[log[1] | dict(peak_gb=9.0)]),
        catalogue=good['catalogue'] | dict(own_gb=17.0),
        serve=dict(ms=dict(all=dict(p99=51.0)), rate=200.0, items=20_000),
        gpu=on_card(0.44, 9.0, 4.9, 192),
    )
    assert [r[''] for r in g.goals(bad)] == ['not reached'] * 9
    card = [r['now'] for r in g.goals(bad)][6:]
    assert card[0].startswith('44.0% ((c) all, recomputing, 16 rows; a card, commit 123abc)')
    assert card[1].startswith('2.22 times a sequence, 4 rows; 192 rows fit') and card[2].startswith('4.90 (')
    assert g.goals(good | dict(gpu=on_card(0.46, 10.0, 5.5, 128)))[7][''] == 'not reached'
    lean = trained(70.0, 0.2, 5)
    lean['quality']['chosen'] = {'(c) all': dict(prompts='lean')}
    lean['rates'][0]['rows'] += [recipe('(c) all, lean prompts', 95.0), recipe('(a) plain, lean prompts', 12.5)]
    found = g.goals(good | dict(train=lean))[1]
    assert found['now'].startswith('9.5 times, with lean prompts') and found[''] == 'reached'
    assert found['now'].endswith('against (a) with lean prompts 7.6 times, test NDCG@10 of that 0.2300')
    few = good | dict(
        train=trained(85.0, 0.3, 3), report=dict(command=dict(users=200, items=2000, cpu=0.1)), serve=None
    )
    assert [r[''] for r in g.goals(few)][1:3] == ['not measured'] * 2, 'three seeds are not five'
    assert g.goals(few)[5]['now'] == 'not measured' and 'over 3 seeds' in g.goals(few)[1]['now']


def test_ranking_and_pictures_tell_cpu_seconds(tmp_path):
    "All threads and processes are counted, a row that is other work says so, and ratios are those of sums."
    found, printed = run('ranking.py', '--small', '--threads', '1', tmp_path / 'ranking.json')
    x = found['runs'][0]
    for way, cpu in x['cpu_seconds'].items():
        assert len(cpu) == 3
        assert x['cpu_ratio'][way][0] == pytest.approx(sum(cpu) / sum(x['cpu_seconds']['product']), rel=1e-3)
    assert 'times bare' in printed
    found, printed = run('images.py', '--images', '8', '--size', '160x120', '--rounds', '2', tmp_path / 'images.json')
    cpu = found['cpu_seconds']
    assert set(cpu) == set(found['seconds']) and cpu['processes'] > 0, 'child processes count'
    assert found['cpu_times_plain']['exact'] == pytest.approx(cpu['plain'] / cpu['exact'])


@pytest.mark.slow
def test_interactions_tell_cpu_seconds(tmp_path):
    found, printed = run('interactions.py', '--rows', '5000', '--plain', '2000', tmp_path / 'interactions.json')
    assert all(x['cpu_seconds'] > 0 for x in found['runs']) and 'times the CPU seconds' in printed


@pytest.mark.slow
def test_catalogue(tmp_path):
    "Each part ran; reports on smaller shops and the law that full ranks follow there agree."
    size = [
        '--items',
        '4000',
        '--users',
        '6000',
        '--dims',
        '16',
        '--asked',
        '400',
        '--candidates',
        '800',
        '--draws',
        '3',
    ]
    found, printed = run('catalogue.py', *size, tmp_path / 'catalogue.json')
    assert set(found['parts']) == {'ranks', 'report', 'index'}
    assert all(x['cpu'] > 0 and 0 < x['own_gb'] < found['limit'] for x in found['parts'].values())
    rows = {r['modality']: r for r in found['parts']['report']['rows'] if r['figure'] == 'alone'}
    for m, (told, wide) in found['parts']['ranks']['ndcg_among'].items():
        if m in rows:
            half = (rows[m]['high'] - rows[m]['low']) / 2
            assert abs(rows[m]['mean'] - told) < 2 * (wide + half), m
    assert 'own_gb' in printed


@pytest.mark.slow
def test_report(tmp_path):
    "Both ways give the same answers, every part has its ratio, and whole reports say what they cost."
    size = ['--items', '300', '--users', '200', '--dims', '16', '--permutations', '3', '--rounds', '1']
    size += ['--whole', '300,200,8', '200,300,16', '--command', '200,300,8']
    found, printed = run('report.py', *size, tmp_path / 'report.json')
    assert [r['part'] for r in found['rows']] == ['permuted knockout', 'nulls', 'probe']
    assert all(r['apart'] < 1e-6 and r['ratio'][0] > 0 for r in found['rows']) and 'ratio' in printed
    assert [(x['users'], x['items'], x['dims']) for x in found['whole']] == [(300, 200, 8), (200, 300, 16)]
    assert all(x['cpu'] > 0 and x['wall'] > 0 and x['peak_mb'] > 30 for x in found['whole']) and 'peak_mb' in printed
    assert found['command']['cpu'] > 0 and found['command']['users'] == 200


@pytest.mark.slow
def test_pictures(tmp_path):
    "A row for each size, with what its page weighs."
    found, printed = run('pictures.py', '--items', '200,400', '--dims', '8', tmp_path / 'pictures.json')
    small, large = found['pictures']
    assert (small['items'], large['items']) == (200, 400) and 0 < small['page_mb'] < large['page_mb']
    assert small['first_cpu'] > 0 and 'not measured' in printed and 'first picture' in printed


@pytest.mark.slow
@pytest.mark.browser
def test_screens(tmp_path):
    "What people wait for, in a toy setting: a notebook of one widget and two small shops."
    cell = dict(cell_type='code', id='a1', metadata={}, outputs=[], execution_count=None)
    source = "from ipywidgets import Label\nLabel('here')"
    notebook = dict(cells=[cell | dict(source=source)], metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path / 'toy.ipynb').write_text(json.dumps(notebook))
    options = '--items', '200,400', '--rounds', '1', '--notebook', str(tmp_path / 'toy.ipynb')
    found, printed = run('screens.py', *options, tmp_path / 'screens.json')
    assert found['first_widget']['notebook'] == 'toy.ipynb' and found['first_widget']['seconds'] > 0
    small, large = found['sizes']
    assert small['page_mb'] < large['page_mb'] and small['selected'] < large['selected'] <= 400
    assert all(r['drawn_s'] > 0 and r['lasso_s'] > 0 and r['hover_ms'][0] <= r['hover_ms'][1] for r in found['sizes'])
    assert set(found['pages_mb']) == {'report', 'spaces', 'before and after'}
    assert {'load', 'load_before'} <= set(found['machine'])
    for words in ('first widget of toy.ipynb after Run All', 'lasso of', 'name beside the pointer, 400 products'):
        assert words in printed


def test_heads_on_encoders(scripts):
    "A row says what was trained, what it took and what came out; the default of `vlm2rec train` is among the rows."
    pairs, shop = scripts['pairs'], make_studio('balanced', seed=0, items=40, users=40, length=6)
    assert PAIRS in pairs.SETTINGS
    split = leave_one_out(shop, history=5)
    embedder = PairEmbedder(pair_encoders.encoders(), dims=8)
    row = pairs.row_of(embedder, split, dict(steps=2, batch=8, lr=0.01, positions='last'), 0)
    assert not embedder.fresh and set(row['valid']) == set(row['test']) == {'text', 'image', 'fused'}
    assert pairs.shown(row)['training'] == '2 x 8, lr 0.01, last'
    assert float(pairs.shown(row)['test, text']) == row['test']['text']


def test_gpu_on_the_cpu(tmp_path):
    found, printed = run('gpu.py', '--toy', tmp_path / 'gpu.json')
    assert (
        found['toy']
        and not found['left_out']
        and found['done']
        == [
            'matrix_peak_tflops',
            'parameters',
            'encoding',
            'rates',
            'layers',
            'largest_without',
            'caching',
            'utilisation',
            'largest_recomputing',
            'largest_with',
        ]
    )
    for part in ('rates', 'caching', 'utilisation'):
        for r in found[part]:
            assert (
                r['fits']
                and r['pairs_per_second'] > 0
                and 0 < r['utilisation'] < 1
                and r['ratio'][1] <= r['ratio'][0] <= r['ratio'][2]
            )
    assert [r['recipe'] for r in found['layers']] == ['as written', 'lean adapters', 'lean']
    assert all(r['ratio'] > 0 and r['fits'] for r in found['layers'])
    assert (
        found['rates'][1]['pairs_per_step'] == 4 * found['rates'][0]['pairs_per_step']
        and found['largest_with']['largest'] == 8
        and 'encoding' in printed
    )


def test_gpu_shape_is_that_of_3b(scripts):
    """Counted without memory: 3.09 billion weights of the language model, 0.67 of the vision tower; pictures of 64
    tokens; arithmetic of a step."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from vlm2rec_lab.model.tiny import build_tokenizer, studio_corpus

    g = scripts['gpu']
    with torch.device('meta'):
        model = Qwen2_5_VLForConditionalGeneration(g.shape_of('qwen2_5_vl', build_tokenizer(studio_corpus(50))))

    def count(m):
        return sum(p.numel() for p in m.parameters())

    assert (
        count(model.model.language_model) == 3_085_938_688
        and count(model.model.visual) == 668_684_288
        and model.lm_head.weight.shape == (151936, 2048)
    )
    toy = g.random_embedder(True, 'cpu', words=8)
    c, lm = toy.core.config.text_config, toy.core.model.language_model
    linear = [m for m in lm.layers.modules() if isinstance(m, torch.nn.Linear)]
    frozen, trained = (sum(m.weight.numel() for m in linear if m.weight.requires_grad == t) for t in (False, True))
    assert (
        g.model_flops(toy, dict(text=np.array([10])))
        == (4 * frozen + 6 * trained) * 10 + 6 * 100 * c.hidden_size * c.num_hidden_layers
    )
    grid = g.processor_of('qwen2_5_vl')(images=[np.zeros((224, 224, 3), np.uint8)], return_tensors='pt')[
        'image_grid_thw'
    ][0]
    assert int(grid.prod()) // 4 == 64
    assert toy.adapter_parameters() and all('language_model' in n for n, _ in toy.adapter_parameters())


@pytest.mark.parametrize(
    'family, parameters, targets, adapters',
    [
        ('qwen2_5_vl', 3_754_622_976, 252, 29_933_568),
        ('qwen2_vl', 2_208_985_600, 196, 18_464_768),
        ('qwen3_vl', 2_127_532_032, 196, 17_432_576),
        ('smolvlm', 2_246_272_880, 168, 18_087_936),
        ('idefics3', 8_462_086_384, 224, 41_943_040),
        ('llava', 7_063_427_072, 224, 39_976_960),
        ('gemma3', 4_300_079_472, 238, 29_802_496),
    ],
)
def test_gpu_shapes_of_families(scripts, family, parameters, targets, adapters):
    "Each shape is that of the published model, counted without memory."
    from vlm2rec_lab.model.tiny import build_tokenizer, studio_corpus
    from vlm2rec_lab.training.sizes import model_sizes

    found = model_sizes(scripts['shapes'].shape_of(family, build_tokenizer(studio_corpus(50))), rank=16)
    assert (found.parameters, found.targets, found.adapters) == (parameters, targets, adapters)


@pytest.mark.parametrize('family', [f for f in FAMILIES if f != 'qwen2_5_vl'])
def test_gpu_takes_a_step_of_every_family(scripts, family):
    "The toy of a family goes through the same functions: a bank with pictures, a step, its arithmetic."
    import torch

    g = scripts['gpu']
    embedder = g.random_embedder(True, 'cpu', words=8, family=family)
    split = g.random_shop(20, 16, 4, g.SHAPES[family].toy_pixels, 8)
    step = g.stepper(embedder, split, g.ALL, 3)(0)
    assert np.isfinite(step['loss']) and step['loss'] > 0 and step['pairs'] == 12 and step['flops'] > 0
    assert embedder.core.config.model_type == family and embedder.family is FAMILIES[family]
    bank = embedder.bank(split.catalogue, False)
    assert torch.is_tensor(bank.features) and len(bank.features) >= 20
    adapted = {n.rpartition('.lora')[0].rpartition('.')[2] for n, _ in embedder.adapter_parameters()}
    assert adapted == {'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'}


def test_gpu_finds_what_fits(scripts, monkeypatch):
    "Out of memory ends the search and is said; so does the end of the time."
    import torch

    g = scripts['gpu']

    def stepper(embedder, split, recipe, rows, autocast=None):
        def step(k):
            if rows > 5:
                raise torch.OutOfMemoryError('full')

        return step

    monkeypatch.setattr(g, 'stepper', stepper)
    monkeypatch.setattr(g, 'recomputing', lambda e, on: e)
    found = g.largest(None, None, None, False, (2, 4, 8, 16), 'cpu', lambda: 1e9)
    assert found['largest'] == 4 and found['bounded'] and [t['fits'] for t in found['tries']] == [True, True, False]
    short = g.largest(None, None, None, False, (2, 4), 'cpu', lambda: -1.0)
    assert short['largest'] == 2 and not short['bounded'] and short['tries'][-1]['fits'] is None


@pytest.mark.gpu
def test_gpu_script(tmp_path):
    "The real one, on a GPU."
    found, _ = run('gpu.py', '--seconds', '280', tmp_path / 'gpu.json')
    assert found['rates'] and found['machine']['gpu'] and found['matrix_peak_tflops'] > 10


@pytest.mark.slow
def test_sentence_trainer(tmp_path):
    if importlib.util.find_spec('sentence_transformers') is None:
        done = subprocess.run(
            [sys.executable, str(BENCH / 'sentence_trainer.py'), '--small'],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )
        assert done.returncode == 3 and 'pip install' in done.stderr
        pytest.skip('sentence-transformers is not here; the script says how to get it')
    args = '--small', '--seeds', '0', '1', '--cells', str(tmp_path / 'cells')
    found, printed = run('sentence_trainer.py', *args, tmp_path / 'st.json')
    assert found['largest_difference_at_start'] < 1e-4 and found['version'] in printed and len(found['steps']) == 2
    assert found['sampler'] == 'BatchSamplers.NO_DUPLICATES' and all(len(r['test_ndcg']) == 2 for r in found['rows'])
    assert (
        [r['side'] for r in found['rows']][0] == 'sentence-transformers'
        and len(found['rows']) == 4
        and all(r['pairs_per_second'] > 0 for r in found['rows'])
    )


@pytest.mark.slow
def test_graph(tmp_path):
    asked = ['--small', '--batches', '64', '--fanout', '4', '--threads', '1', '--parts', 'epoch']
    found, printed = run('graph.py', *asked, tmp_path / 'graph.json')
    assert [(r['model'], r['fanout']) for r in found['rows']] == [('LightGCN', None), ('LightGCN', 4), ('VBPR', None)]
    assert all(r['cpu'] > 0 and r['peak_gb'] > 0 and np.isfinite(r['loss']) for r in found['rows'])
    assert 'LightGCN' in printed and 'VBPR' in printed


@pytest.fixture
def graph_benchmark(scripts):
    "The script as a module, and a small size."
    import graph

    size = dict(users=200, items=300, interactions=2000, dim=16, layers=2, seed=0, batch=64, rounds=2, steps=2)
    return graph, lambda **more: SimpleNamespace(**size | more)


@pytest.mark.parametrize('model', ['LightGCN', 'VBPR', 'BPR-MF'])
def test_plain_graph_code_is_the_same_model(graph_benchmark, tmp_path, model):
    "It has the losses of ours, step after step, so that its time can be set beside ours."
    bench, size = graph_benchmark
    found = bench.beside(size(model=model, recbole=str(tmp_path)))
    assert found['steps'] == 4 and found['losses_apart'] < 1e-5
    assert model != 'LightGCN' or 'ratio_RecBole' in found or found['recbole'].startswith('not here')
    split = bench.purchases(200, 300, 2000, 0)
    ours, _ = bench.model_of(model, split, size())
    batch = next(bench.batches(split, 64, 0))
    loss, other = bench.PLAIN[model](ours)[1], bench.step_loss_of(ours)
    value, same, exchanged = (
        f(*b).item() for f, b in ((loss, batch), (other, batch), (other, (batch[0], *batch[:0:-1])))
    )
    assert abs(value - same) < 1e-6 and abs(value - exchanged) > 1e-5


def test_drawn_steps_and_near_items_by_both_ways(graph_benchmark):
    bench, size = graph_benchmark
    steps = bench.drawn(size(scale=1, fanout=[4]))['steps']
    assert [s['fanout'] for s in steps] == [None, 4] and all(s['cpu'] > 0 for s in steps)
    blocks, pairs = (bench.near(size(n=150, way=w)) for w in ('blocks', 'all pairs'))
    assert blocks['found'] == pairs['found'] != [0, 0]


@pytest.mark.slow
def test_index(tmp_path):
    cells = tmp_path / 'cells'
    found, printed = run('index.py', '--small', '--cells', str(cells), tmp_path / 'index.json')
    assert list(found['parts']) == ['20k', '20k noise'] and found['small'] and '| 20k noise |' in printed
    for part in found['parts'].values():
        assert all(0 < part[k][1] <= part[k][0] <= part[k][2] for k in ('single', 'filtered', 'diverse', 'batched'))
        assert 0.9 < part['faiss']['recall'] <= 1 and part['files_gb'] > 0
    again, _ = run('index.py', '--small', '--cells', str(cells), tmp_path / 'again.json')
    assert again['parts'] == found['parts']


@pytest.mark.slow
def test_seqrec(tmp_path):
    cells = tmp_path / 'cells'
    found, printed = run('seqrec.py', '--small', '--seeds', '0', '1', '--cells', str(cells), tmp_path / 'seqrec.json')
    assert [(r['loss'], r['seed']) for r in found['runs']] == [('ce', 0), ('ce', 1), ('bce', 0), ('bce', 1)] and all(
        r['epochs'] == len(r['valid']) == 3 and r['test']['HR@10'] <= 1 for r in found['runs']
    )
    assert (
        found['summary'][0]['NDCG@10'][0]
        == pytest.approx(sum(r['test']['NDCG@10'] for r in found['runs'][:2]) / 2, abs=1e-5)
        and '| ce |' in printed
    )
    files = {p: p.stat().st_mtime_ns for p in cells.glob('*.json')}
    again, _ = run('seqrec.py', '--small', '--seeds', '0', '1', '--cells', str(cells), tmp_path / 'again.json')
    assert again['runs'] == found['runs'] and len(files) == 4 and files == {p: p.stat().st_mtime_ns for p in files}, (
        'finished parts are not run again'
    )
    bare = subprocess.run(
        [sys.executable, str(BENCH / 'seqrec.py')],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert bare.returncode == 2 and 'Beauty.txt' in bare.stderr
    if importlib.util.find_spec('rectools') is None:
        done = subprocess.run(
            [sys.executable, str(BENCH / 'seqrec.py'), '--small', '--steps'],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )
        assert done.returncode == 3 and 'pip install' in done.stderr
        pytest.skip('rectools is not here; the script says how to get it')
    found, printed = run('seqrec.py', '--small', '--steps', '--cells', '', tmp_path / 'step.json')
    assert len(found['rows']) == 9 and all(r['cpu_seconds'] > 0 for r in found['rows']) and found['version'] in printed


def test_an_epoch_has_every_full_batch(scripts):
    "Sorted in pools an epoch takes each sequence once, long batches too; the first batch is warm-up."
    import seqrec

    lengths = np.random.default_rng(0).integers(1, 50, 400)
    kinds = seqrec.epochs(lengths, 16)
    pools = kinds['an epoch, sorted in pools'][1:]
    assert len(pools) == 25 and sorted(np.concatenate(pools)) == list(range(400))
    assert len(kinds['a quarter of an epoch, shuffled'][1:]) == 7
    assert {len(b) for batches in kinds.values() for b in batches} == {16}
    assert all(lengths[b].min() == lengths.max() for b in kinds[f'all of {lengths.max()} items'])


def test_scale(tmp_path, scripts):
    s = scripts['scale']
    found, printed = run('scale.py', '--results', str(tmp_path), tmp_path / 'scale.out')
    assert {r['state'] for r in found['results']} == {'not measured'} and all(
        v == 'not measured' for rows in found['times'].values() for r in rows for k, v in r.items() if k != 'what'
    )
    assert (
        found['storage']['1000000']['picture features, bf16'] == 1_000_000 * (64 * 2048 * 2 + 40)
        and '262 GB' in printed
    )
    toy = dict(
        gpu=dict(
            toy=True,
            encoding=dict(pictures_per_second=5.0, items_per_second=5.0),
            rates=[dict(recipe='(c) all', fits=True, pairs_per_second=9.0)],
        )
    )
    assert not any(s.rates(toy)['gpu'].values()), 'a toy setting is not a figure'
    real = dict(gpu=toy['gpu'] | dict(toy=False))
    rows = {r['what']: r for r in s.times_table(real, 1_000_000)}
    assert (
        rows['vision tower over all pictures, once']['3B, 8 cards'] == s.duration(1e6 / 5 / 8)
        and rows['the same, plain recipe']['3B, 1 card'] == 'not measured'
    )
    assert s.rates(real)['gpu']['pairs'] == 9.0 and s.duration(7200) == '2.0 h' and s.size(819.2e9) == '819 GB'


def test_flame(tmp_path):
    """Every rival's row, every claim with its verdict; a run that was killed goes on to the same figures; what is
    finished is not run again."""
    args = 'flame.py', '--small', '--seeds', '0', '--cells'
    found, printed = run(*args, str(tmp_path / 'cells'), tmp_path / 'flame.json')
    assert [r['recommender'] for r in found['rows']] == [
        'SASRec, early stop',
        'SASRec, same time',
        'ensemble of two',
        'mutual from scratch',
        'FLAME',
    ] and 'FLAME' in printed
    seed = found['seeds'][0]
    runs, cost = seed['runs'], seed['cost']
    for r in runs.values():
        assert (
            set(r['test']) == {'HR@10', 'NDCG@10', 'HR@20', 'NDCG@20'}
            and 0 <= r['valid'] <= 1
            and 0 < r['to95']['cpu'] <= r['cpu'] + 1e-6
            and r['to95']['epoch'] <= r['epochs']
        )
    before = runs['frozen network']['cpu']
    row = {r['recommender']: r for r in found['rows']}
    assert (
        abs(row['FLAME']['cpu_to95_with_pretraining'][0] - runs['FLAME']['to95']['cpu'] - before) < 0.011
        and row['ensemble of two']['cpu_to95_with_pretraining'] == row['ensemble of two']['cpu_to95']
    )
    assert (
        abs(runs['SASRec, same time']['budget'] - before - runs['FLAME']['cpu']) < 0.011
        and runs['SASRec, same time']['cpu'] <= runs['SASRec, same time']['budget'] + 0.011
    )
    assert cost['FLAME']['parameters'] == cost['SASRec']['parameters'] == cost['ensemble of two'][
        'parameters'
    ] / 2 and cost['SASRec']['ratio'] == [1, 1, 1]
    assert len(found['claims']) == 13 and all(
        ('holds here' in c['sentence'], 'does not hold here' in c['sentence']) == (c['holds'], not c['holds'])
        and c['sentence'] in printed
        for c in found['claims']
    )
    assert not list((tmp_path / 'cells').glob('*/states'))
    assert found['epoch']['SASRec']['ratio'] == [1, 1, 1] and set(found['epoch']) == {
        'SASRec',
        'FLAME',
        'mutual from scratch',
    }


def test_flame_goes_on(scripts, tmp_path, monkeypatch, capsys):
    "Killed in the middle of a run, it ends with the same figures; what is finished is not run again."
    f, said = scripts['flame'], []

    class Killed(BaseException):
        pass

    def once(cells, *deadly, only=(), politely=False):
        def say(text):
            said.append(text)
            if not text.startswith(tuple(deadly)):
                return
            if not politely:
                raise Killed
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(f, 'say', say)
        monkeypatch.setattr(
            sys,
            'argv',
            ['flame.py', '--small', '--seeds', '0', '--cells', str(cells), '--out', str(tmp_path / 'out.json'), *only],
        )
        f.main()
        return None if only else json.loads((tmp_path / 'out.json').read_text())['seeds'][0]

    whole = once(tmp_path / 'whole')
    said.clear()
    assert once(tmp_path / 'whole') == whole and not said
    once(tmp_path / 'torn', only=('--only', 'mutual'))  # in a process of its own, beside the others
    assert {s.split()[0] for s in said} == {'mutual'} and not (tmp_path / 'out.json').unlink()
    for line in ('frozen network 0, epoch 3', 'FLAME 0, epoch 3', 'plain 0, epoch 3'):
        with pytest.raises(
            KeyboardInterrupt, match='after 2 epochs, which is no result; the same c(ommand|all) goes on'
        ):
            once(tmp_path / 'torn', line.replace('3', '1'), politely=True)  # heeded after the epoch that follows
        with pytest.raises(Killed):
            once(tmp_path / 'torn', line)
    said.clear()
    torn = once(tmp_path / 'torn')
    assert not [s for s in said if s.startswith('mutual')]
    for name in ('frozen network', 'FLAME', 'mutual from scratch'):
        for k in ('test', 'curve', 'epochs', 'best'):
            assert torn['runs'][name][k] == whole['runs'][name][k], f'{name}: {k}'
    both = (
        r['runs']['SASRec, same time']['curve'] for r in (torn, whole)
    )  # ended by its time, which is never the same
    assert all(a == b for a, b in zip(*both))


def test_interrupted_course_tells_nothing(scripts, tmp_path, monkeypatch):
    "An interrupt ends a run early, but no cell of the table is written from half of it."
    import seqrec
    from common import circles

    from vlm2rec_lab.data import leave_one_out

    split, recipes = leave_one_out(circles(20), history=50), {'ce': dict(dropout=0.2, batch=16, epochs=3)}
    monkeypatch.setattr(seqrec, 'say', lambda text: 'epoch 1:' in text and signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match='after 2 epochs'):
        seqrec.quality(split, ['ce'], [0], tmp_path, recipes)
    assert not list(tmp_path.glob('*.json'))
    runs, _ = seqrec.quality(split, ['ce'], [0], tmp_path, recipes)
    assert runs[0]['epochs'] == 3 and runs[0]['finished'] and len(list(tmp_path.glob('*.json'))) == 1


def test_interrupted_training_tells_nothing(scripts, monkeypatch):
    t = scripts['train']
    monkeypatch.setattr(
        t, 'scores', lambda *_: signal.raise_signal(signal.SIGINT) or {'fused': 0.0}
    )  # asked for in the first step; heeded after it
    with pytest.raises(KeyboardInterrupt, match='stopped after 1 of 3 steps'):
        t.course(t.shop(1, 5, 6, True), t.PLAIN, 0, 4, 1e-3, 3, 1, test=False)


def test_flame_arithmetic(scripts, tmp_path):
    "Early stops, verdicts, and the states that an ensemble is read from."
    import torch

    f = scripts['flame']
    assert (
        f.early([0.1, 0.3, 0.2, 0.2, 0.5], 2) == (4, 2)
        and f.early([0.1, 0.3, 0.2, 0.4], 2) == (4, 4)
        and f.early([0.5], 3) == (1, 1)
    )
    records = [dict(epoch=e, cpu=2.0, seconds=3.0, **{'NDCG@20': v}) for e, v in enumerate((0.1, 0.39, 0.4, 0.3), 1)]
    out = f.outcome(records, 3, 3)
    assert (
        out['to95'] == dict(epoch=2, cpu=4.0, seconds=6.0)
        and (out['valid'], out['cpu'], out['epochs']) == (0.4, 6.0, 3)
        and f.at_goal(out, 0.38) == 4.0
        and f.at_goal(out, 0.41) is None
    )

    def made(valid, test, cpu):
        return dict(
            valid=valid,
            test={m: test for m in f.SHOWN},
            cpu=3 * cpu,
            seconds=3 * cpu,
            to95=dict(epoch=1, cpu=cpu, seconds=cpu),
        )

    cost = {
        n: dict(ratio=[r, r, r], parameters=p)
        for n, r, p in (('SASRec', 1.0, 5), ('FLAME', 1.02, 5), ('ensemble of two', 2.0, 10))
    }
    seed = dict(
        seed=0,
        runs={n: made(0.2, 0.1, 30.0) for n in (*f.RIVALS, 'frozen network')} | {'FLAME': made(0.2, 0.11, 10.0)},
        cost=cost,
    )
    told = f.claims([seed])
    assert (
        [c['holds'] for c in told] == [True] * 4 + [True, False] * 4 + [True]
        and '+10.00 %' in told[0]['sentence']
        and '3.00 times' in told[4]['sentence']
        and '0.30 times' in told[5]['sentence']
    )
    poor = dict(seed, runs=seed['runs'] | {'FLAME': made(0.1, 0.05, 10.0)})
    assert not any(c['holds'] for c in f.claims([seed, poor])[:-1]), (
        'quick to a lower end is not faster; one seed is not all'
    )
    rows = f.verdicts(told)
    assert [r['FLAME against'] for r in rows] == list(f.RIVALS) and [list(r.values())[1:] for r in rows] == [
        ['+10.00 (+10.00): holds', '3.00 (3.00): holds', '0.30 (0.30): does not hold']
    ] * 4
    result = dict(
        epoch={
            'SASRec': dict(ratio=[1, 1, 1]),
            'FLAME': dict(ratio=[1.5, 1, 2]),
            'mutual from scratch': dict(ratio=[3, 2, 4]),
        },
        seeds=[dict(runs={'frozen network': dict(epochs=e)}) for e in (10, 30)],
        rows=[dict(recommender=n, epochs_to95=[8.0, None]) for n in (*f.RIVALS, 'FLAME')],
    )
    assert list(f.in_plain_epochs(result).values()) == [(8, 8), (8, 8), (16, 16), (24, 24), (12, 32)]
    net = torch.nn.Linear(2, 2)
    keep = f.keep_states(net, tmp_path, 2)
    for n in range(1, 6):
        keep([{'NDCG@20': v} for v in (0.1, 0.3, 0.2, 0.2, 0.5)[:n]])
    assert sorted(p.stem for p in (tmp_path / 'states').iterdir()) == ['1', '2', '3', '4'], (
        'after the early stop no states are kept'
    )


@pytest.mark.parametrize('path', sorted((BENCH / 'results').glob('*.json')), ids=lambda p: p.stem)
def test_kept_results(path):
    "What the pages show was measured at full size, and names its machine."
    found = json.loads(path.read_text())
    assert not found.get('small') and not found.get('toy') and found['machine']


def test_sum_or_concat_in_principal_dimensions(scripts, tmp_path):
    "The vectors are the catalogue's in fewer dimensions, and a row says what validation chose."
    import torch
    from pair_encoders import encoders
    from shell import own_shop

    from vlm2rec_lab.data import load_folder
    from vlm2rec_lab.model.pair import PairEmbedder

    fusions, base = scripts['fusions'], encoders()
    data = load_folder(own_shop(tmp_path), progress=False)
    few = fusions.in_dims(base, data, 3, None)
    assert {m: e.size for m, e in few.items()} == {'text': 3, 'image': 3}
    whole = PairEmbedder(base, device='cpu').bank(data.catalogue, False).views['text']
    x = whole - whole.mean(0)
    kept = few['text'].vectors(data.catalogue.content['text'])
    assert torch.allclose(kept.var(0).sum(), torch.linalg.svdvals(x)[:3].square().sum() / (len(x) - 1), rtol=1e-4)
    row = fusions.row_of(few, data, 3, 0, None, 0.2)
    assert row['chosen'] in ('sum', 'concat') and (row['chosen'] == 'concat' or row['difference']['low'] > 0)
    assert row['valid']['sft'] - row['valid']['per-modality, concat'] == pytest.approx(
        row['difference']['value'], abs=2e-4
    )
    assert fusions.shown(row)['dims'] == '3' and fusions.in_dims(base, data, 0, None) is base


def test_decoders_reads_every_figure_from_the_runs(scripts, tmp_path):
    "Made-up runs: each figure stands in one place only."
    value = iter(range(1, 100))

    def metric():
        return {'NDCG@10': dict(zip(('value', 'low', 'high'), (next(value) / 1000 for _ in range(3))))}

    for name, steps in (('heads', 400), ('short', 40), ('tuned', 40)):
        for part in ('before', 'sft'):
            (tmp_path / name / part).mkdir(parents=True)
            beside = dict(views={n: metric() for n in ('popularity', 'co-occurrence')})
            said = dict(views=dict(text=metric()), baselines=beside)
            (tmp_path / name / part / 'metrics.json').write_text(json.dumps(said))
        (tmp_path / name / 'sft' / 'history.json').write_text(json.dumps(dict(settings=dict(steps=steps, batch=4))))
    found = scripts['decoders'].rows(*(tmp_path / n for n in ('heads', 'short', 'tuned')))
    assert [r['trained'][:5] for r in found] == ['nothi', 'heads', 'nothi', 'heads', 'heads', 'popul', 'what ']
    assert [r['steps'] for r in found] == ['', '400 of 4', '', '40 of 4', '40 of 4', '', '']
    assert len({r['value'] for r in found}) == 7


def test_the_large_shop_is_a_folder_that_opens(scripts, tmp_path):
    import warnings

    from vlm2rec_lab.shop.tables import load_folder

    made = [scripts['size'].make_shop(tmp_path / name, 30, 60, seed=1, side=48) for name in ('one', 'two')]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of rows that come twice
        one, two = (load_folder(folder, progress=False) for folder in made)
    assert len(one.catalogue) == 30 and len(one.interactions) == 60
    assert one.interactions.lengths.max() <= 100 and one.interactions.lengths.min() >= 2
    assert one.catalogue.image('image', 29).size == (48, 48)
    assert (one.interactions.items == two.interactions.items).all()
    assert one.catalogue.content['text'] == two.catalogue.content['text']


def test_a_graph_of_near_items_is_handed_over(scripts):
    "With the other's graph a model is that of the other but for a tenth; its own is what it makes itself."
    from types import SimpleNamespace

    from vlm2rec_lab.graph.lattice import item_graphs
    from vlm2rec_lab.shop.drawn import make_studio
    from vlm2rec_lab.shop.shares import shares

    s, studio = scripts['lattice'], make_studio('balanced', seed=0, items=40, users=80, length=10)
    split, rng = shares(studio), np.random.default_rng(0)
    plain = s.plain_vectors(studio.catalogue)
    assert {m: len(z) for m, z in plain.items()} == {'text': 40, 'image': 40}
    other = {m: rng.normal(size=(40, 6)).astype(np.float32) for m in plain}
    graphs = {name: item_graphs(v) for name, v in (('plain', plain), ('other', other))}
    a = SimpleNamespace(dim=8, lr=0.02, epochs=3, patience=3)
    own = s.trained(split, plain, graphs['plain'], 0, a)
    foreign = s.trained(split, plain, graphs['other'], 0, a)
    assert own[1] == foreign[1] == 3 and len(own[0]) == len(split.test) and (own[0] != foreign[0]).any()
    again = s.trained(split, plain, item_graphs(plain), 0, a)
    assert (again[0] == own[0]).all()
    rows = s.compared(
        {('a', 'a'): [np.array([0.2, 0.4])], ('a', 'b'): [np.array([0.1, 0.2])]}
        | {('b', k): [np.array([0.3, 0.3])] for k in 'ab'}
    )
    assert [(r['vectors'], r['graph'], r['recall'], r['gain']) for r in rows] == [
        ('a', 'a', 0.3, ''),
        ('a', 'b', 0.15, -0.5),
        ('b', 'a', 0.3, 0.0),
        ('b', 'b', 0.3, ''),
    ]


def test_others_claims_are_held_against_small_encoders(tmp_path):
    more = ['--small', '--seeds', '1', '--models', 'VBPR', '--worlds', 'balanced']
    found, printed = run('encoders.py', str(tmp_path / 'work'), *more, tmp_path / 'encoders.json')
    assert [(r['cases'], r['theirs']) for r in found['claims']] == [(2, 0.9), (4, 0.7), (2, 0.83), (2, 0.8)]
    assert {r['encoder'] for r in found['worth']} == {
        'separate',
        'separate, fine-tuned',
        'joint',
        'joint, fine-tuned',
        'joint, end-to-end',
        'one tower',
    }
    assert len(found['cases']) == sum(r['cases'] for r in found['claims']) and 'one tower beats two' in printed


def test_two_views_of_a_content_differ_and_belong_together(scripts):
    from vlm2rec_lab.shop.drawn import make_studio

    shop = make_studio('redundant', seed=0, items=40, users=60, length=8).catalogue
    texts = scripts['encoders'].twice(shop, 'text', 0)
    for given, other in zip(texts.content['text'], texts.content['other']):
        assert other and set(other.split()) <= set(given.split())
    assert texts.content['text'] != texts.content['other'] and texts.kinds == {'text': 'text', 'other': 'text'}
    pictures = scripts['encoders'].twice(shop, 'image', 0)
    for given, other in zip(pictures.content['image'], pictures.content['other']):
        assert other.shape == given.shape and other.dtype == given.dtype and (other != given).any()


def test_a_published_run_is_repeated_on_other_ratings(scripts):
    from types import SimpleNamespace

    from vlm2rec_lab.shop.drawn import make_studio

    s, studio = scripts['published'], make_studio('balanced', seed=0, items=40, users=80, length=12)
    short, longer = (s.trained(studio, 0, SimpleNamespace(dim=8, epochs=e)) for e in (1, 30))
    assert set(longer) == set(s.PUBLISHED) and short != longer
    assert longer == s.trained(studio, 0, SimpleNamespace(dim=8, epochs=30))


def test_remedies_are_held_against_plain_training(scripts):
    from types import SimpleNamespace

    from vlm2rec_lab.shop.drawn import make_studio
    from vlm2rec_lab.shop.shares import shares

    s, studio = scripts['graph_remedies'], make_studio('balanced', seed=0, items=40, users=80, length=12)
    rng = np.random.default_rng(0)
    vectors = {m: rng.normal(size=(40, 6)).astype(np.float32) for m in ('text', 'image')}
    cell = s.seed_cell(shares(studio), vectors, 0, SimpleNamespace(model='VBPR', epochs=2))
    ways = {'whole', 'without text', 'without image', 'text alone', 'image alone'}
    assert {n: set(f) for n, f in cell.items() if n != 'means taken away'} == {
        n: ways for n in (s.PLAIN, 'a loss for each modality', 'negatives louder by the gap', 'unimodal teachers')
    }
    assert cell['a loss for each modality']['whole'] != cell[s.PLAIN]['whole']
    rows = s.compared([cell])
    assert [r['gain'] for r in rows if r['remedy'] == s.PLAIN] == [''] * 5
    mean = np.mean(cell['unimodal teachers']['text alone'])
    assert [r['recall'] for r in rows if (r['remedy'], r['left']) == ('unimodal teachers', 'text alone')] == [
        round(float(mean), 5)
    ]


def test_verdicts_of_graph_reports_are_held_against_the_truth(scripts, tmp_path, monkeypatch):
    s = scripts['graph_verdicts']
    monkeypatch.setitem(s.SIZES, 'planted', dict(users=150, items=40, each=10))
    assert {t for _, _, truths in s.WORLDS.values() for t in truths.values()} == set(s.RIGHT)
    rows = s.kept('the image was forgotten', 'VBPR', 0, tmp_path, 8)
    assert [(r['reference'], r['modality'], r['truth']) for r in rows] == [
        (known, m, truth) for known in (False, True) for m, truth in (('text', 'alive'), ('image', 'forgot'))
    ]
    assert rows[3]['verdict'] == 'collapsed' and rows[3]['reason'] == 'lost'
    monkeypatch.setattr(s, 'judged', lambda *_: pytest.fail('it was judged before'))
    assert s.kept('the image was forgotten', 'VBPR', 0, tmp_path, 8) == rows
    said = [dict(rows[3], verdict=v, reason=v) for v in ('collapsed', 'undecided', 'healthy', 'healthy')]
    (row,) = s.rates(pd.DataFrame(said))
    counts = [row[k] for k in ('verdicts', 'right', 'undecided', 'wrong', 'wrong words')]
    assert counts == [4, 1, 1, 2, 'healthy (healthy)']


def test_what_was_learned_is_forgotten_or_made_quiet(scripts):
    import torch

    s = scripts['graph_verdicts']
    now, before = (SimpleNamespace(path=lambda m, p=torch.full((2, 2), x): [p]) for x in (2.0, 5.0))
    for truth, left in (('alive', 2.0), ('unheard', 0.1), ('forgot', 5.0)):
        s.strike(now, {'image': truth}, before)
        assert now.path('image')[0].tolist() == [[pytest.approx(left)] * 2] * 2
        now.path('image')[0].fill_(2.0)


def test_vectors_of_films_are_made_once(scripts, tmp_path):
    made = []

    def make():
        made.append(1)
        return {'text': np.ones((3, 2), np.float32), 'image': np.zeros((3, 4), np.float32)}

    first, again = (scripts['graph_films'].stored(tmp_path / 'x.npz', make) for _ in range(2))
    assert len(made) == 1 and set(first) == set(again) == {'text', 'image'}
    assert all((first[m] == again[m]).all() for m in first)


@pytest.mark.slow
def test_privacy(tmp_path):
    "Attacks, costs and crowds, each with its rows; what is done is not done again."
    from federated_worlds import dated_folder

    folder, work = dated_folder(tmp_path / 'shop'), tmp_path / 'work'
    how = [str(folder), str(work), '--seeds', '1', '--epsilons', '8', '--crowds', '150', '--least', '4']
    found, printed = run('privacy.py', *how, tmp_path / 'privacy.json')
    leak = {(r['backbone'], r['rounds']): r['AUC'] for r in found['leak'] if r['attack'] == 'alone'}
    assert len(leak) == 6 and min(leak.values()) > 0.9
    assert [(r['backbone'], r['trust'], r['epsilon']) for r in found['films']] == [
        (b, *of) for b in ('FedMF', 'PFedRec') for of in (('sum', 8.0), ('each', 8.0), ('sum', None))
    ]
    assert [r['epsilon'] for r in found['crowds']] == [1.0, 8.0, None] and 'what sells best' in printed
    files = {p: p.stat().st_mtime_ns for p in work.glob('*.json')}
    again, _ = run('privacy.py', *how, tmp_path / 'again.json')
    assert [again[k] for k in ('leak', 'films', 'crowds')] == [found[k] for k in ('leak', 'films', 'crowds')]
    assert files == {p: p.stat().st_mtime_ns for p in work.glob('*.json')}


def test_prompts(scripts, tmp_path, monkeypatch, capsys):
    import prompts

    monkeypatch.setattr(sys, 'argv', ['prompts.py', '--toy', '--out', str(tmp_path / 'prompts.json')])
    prompts.main()
    found, printed = json.loads((tmp_path / 'prompts.json').read_text()), capsys.readouterr().out
    rows = {r['case']: r for r in found['learning']}
    assert len(rows) == len(found['learning']) == 11 and found['clock'] == 'cpu'
    widths = [rows[f'adapters, reduction {r}'] for r in (2, 4, 8, 16, 32)]
    words = [rows['adapters, reduction 8' + (f', words {n}' if n != 2 else '')] for n in range(1, 6)]
    assert [r['tokens'] for r in words] == [15, 16, 17, 18, 19] and {r['tokens'] for r in widths} == {16}
    for fewer in (widths[::-1], words, [rows['lora, rank 8'], rows['everything']]):
        for key in ('learned', 'share', 'states', 'saved'):
            assert [r[key] for r in fewer] == sorted({r[key] for r in fewer}), key
    assert all(r['cpu'][0] > 0 and r['peak'] is None and np.isfinite(r['loss']) for r in rows.values())
    # a number that learns is held four times: itself, its gradient, and two means of AdamW
    assert all(r['states'] == 4 * (r['whole'] + 3 * r['learned']) for r in rows.values())
    ways = {r['way']: r for r in found['ranking']}
    assert {'score_names', 'best_items'} <= set(ways) and ways['best_items']['same_best'] == 1
    assert all(r['apart'] < 1e-4 for r in ways.values() if r['apart'] is not None)
    assert 'lora, rank 8' in printed and 'score_names' in printed


class Inside:
    "A cell that would be a process of its own, in this one."

    returncode = 0

    def __init__(self, argv, **how):
        self.argv = argv

    def communicate(self, timeout):
        import prompt_worlds

        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            prompt_worlds.child(self.argv[-1])
        return out.getvalue(), ''


def test_worlds_of_prompts(scripts, tmp_path, monkeypatch, capsys):
    "Where new items come; what is there is not made again, and no seed is told that a model lacks."
    import prompt_worlds

    made, size = [], prompt_worlds.SIZES['small']
    inside = SimpleNamespace(Popen=lambda *a, **k: made.append(a) or Inside(*a, **k), PIPE=subprocess.PIPE)
    monkeypatch.setattr(prompt_worlds, 'subprocess', inside)
    monkeypatch.setattr(prompt_worlds, 'quiet', lambda threads: None)
    monkeypatch.setitem(prompt_worlds.SIZES, 'small', (size[0] | dict(users=20), size[1]))
    argv = [
        'prompt_worlds.py',
        '--size',
        'small',
        '--worlds',
        'new',
        '--seeds',
        '1',
        '--cells',
        str(tmp_path / 'cells'),
    ]
    for out in ('first', 'again'):
        monkeypatch.setattr(sys, 'argv', [*argv, '--out', str(tmp_path / out)])
        prompt_worlds.main()
    assert len(made) == 2 and '| new | random ids |' in capsys.readouterr().out
    rows, new = (pd.read_csv(tmp_path / 'first' / f'{name}.csv') for name in ('prompt_worlds', 'prompt_new'))
    assert rows.equals(pd.read_csv(tmp_path / 'again/prompt_worlds.csv'))
    assert set(rows.way) == set(new.model) == {'random ids', 'codes'} and set(rows.metric) == {'NDCG@10', 'HR@10'}
    assert {'all there', 'among drawn items', 'image removed', 'image noise'} <= set(rows.asked)
    assert (rows['oracle all'] > rows['oracle text']).all() and rows['oracle all'].nunique() == 1
    assert list(zip(new.target, new.among)) == 2 * [('new', 'all items'), ('new', 'new items'), ('known', 'all items')]
    assert new.rows.tolist() == 2 * new.rows.tolist()[:3] and new.rows[0] + new.rows[2] == 20
    told = json.loads((tmp_path / 'first/prompt_worlds.json').read_text())
    assert told['cells'] == 2 and told['size'] == 'small' and told['shop']['users'] == 20

    whole = dict(way='x', cut=10, figures={}, kept={})
    done = [(dict(part='next', world='w', name=n, seed=s), whole) for n, s in (('a', 0), ('b', 1))]
    assert not len(prompt_worlds.next_rows(done)) and not len(prompt_worlds.why_rows(done))


def test_mistakes_of_prompts_are_told_at_once(tmp_path):
    "Before torch is loaded."
    for wrong, said in (
        (['--rounds', '0'], '--rounds 0'),
        (['--length', '2'], '--length 2'),
        (['--parts', 'x'], 'learning'),
    ):
        done = subprocess.run(
            [sys.executable, '-X', 'importtime', str(BENCH / 'prompts.py'), *wrong],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 2 and said in done.stderr and ' torch\n' not in done.stderr


def test_prompts_have_as_many_items_however_many_words_they_have(scripts):
    import prompts

    for words in (1, 2, 5):
        asked = prompts.random_asked(3, 64, words, False, 'cpu')
        assert asked.shown['image'].shape == (12, 512) and (asked.kinds == 1).sum() == 12 * words
        assert asked.tokens.shape == asked.words.shape == (3, 64 - 8 + 4 * words)
        assert (asked.kinds == 0).sum() == 3 * 56
    names = prompts.catalogue(1000, False).names
    assert names.shape == (1000, 2 + 1) and len(set(map(tuple, names.tolist()))) == 1000
