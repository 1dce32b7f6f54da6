"""The commands of `vlm2rec` from files to results: status, what is printed and what is written."""

import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from shell import said

from vlm2rec_lab.cli import cut, make_parser, open_data, open_dataset
from vlm2rec_lab.commands.fit import below_baseline
from vlm2rec_lab.commands.vectors import _task_maker
from vlm2rec_lab.diagnosis.memory import exchange
from vlm2rec_lab.model import loading
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.tiny import tiny_vlm
from vlm2rec_lab.ranking.baselines import baseline_names, baselines
from vlm2rec_lab.ranking.evaluate import Metrics
from vlm2rec_lab.ranking.vectors import read_vectors, write_vectors
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.studies.cell import run_cell
from vlm2rec_lab.training.losses import LOSSES, register_loss, sft

SIDES = ('items', 'sequences')
pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')


@pytest.fixture(scope='module', autouse=True)
def without_packaged_encoders():
    "Without --model, `train` takes the shipped tiny VLM, also where `make real` has installed encoders."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, 'has_real', lambda: False)
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Forty products of the studio with their pictures, and forty customers with six purchases each."
    shop, folder = (
        make_studio('balanced', seed=0, items=40, users=40, length=6),
        tmp_path_factory.mktemp('own') / 'shop',
    )
    (folder / 'images').mkdir(parents=True)
    for i in range(40):
        Image.fromarray(shop.catalogue.content['image'][i]).save(folder / 'images' / f'{i}.png')
    items = shop.catalogue.table[['title', 'description']]
    items = items.assign(item_id=shop.catalogue.ids, image=[f'images/{i}.png' for i in range(40)])
    items.to_csv(folder / 'items.csv', index=False)
    bought = {
        'user_id': np.repeat(np.arange(40), 6),
        'item_id': [shop.catalogue.ids[i] for i in shop.interactions.items],
        'timestamp': np.tile(np.arange(6), 40),
    }
    pd.DataFrame(bought).to_csv(folder / 'interactions.csv', index=False)
    return folder


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "A folder with vectors whose picture space has died, as one file and as two tables."
    work, rng = tmp_path_factory.mktemp('vectors'), np.random.default_rng(0)
    truth, good = rng.integers(0, 50, 300), rng.normal(size=(50, 8)).astype(np.float32)
    vectors = dict(
        items={'text': good, 'image': good * 0 + rng.normal(size=8) + 1e-3 * rng.normal(size=good.shape)},
        sequences={'text': good[truth] + 0.6 * rng.normal(size=(300, 8)), 'image': rng.normal(size=(300, 8))},
        targets=truth,
        seen=(np.arange(301), (truth + 1) % 50),
    )
    write_vectors(work / 'toy.npz', vectors, [f'product {i}' for i in range(50)])
    whole, _ = read_vectors(work / 'toy.npz')
    for side, more in (('items', {}), ('sequences', {'target': whole['targets']})):
        pd.DataFrame({m: list(x) for m, x in whole[side].items()} | more).to_parquet(work / f'{side}.parquet')
    return work


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    "(arguments of a training of one step, what it said, its folder)."
    out = tmp_path_factory.mktemp('runs') / 'cli'
    argv = ['train', '--data', folder, '--users', 12, '--steps', 1, '--batch', 4, '--losses', 'sft', '--out', out]
    return argv, said(*argv), out


# ---- training


def test_baselines_without_times_that_mean_something(folder):
    split, whole = open_data(folder, users=25, history=4)
    base = baselines(split, dataset=whole)
    assert list(base) == [n for n in baseline_names(split.catalogue) if n != 'popularity by recency']
    assert 'no times that mean the same' in base.notes[0]


def test_training_says_what_needs_no_model(trained):
    _, (status, out, err), run = trained
    assert status == 0, err
    assert '12 of 40 users' in out
    for words in ('popularity', 'co-occurrence', 'last item by text'):
        assert words in out
    assert 'note: popularity by recency left out: the dataset' in out
    assert 'Beside what needs no model' in (run / 'report.html').read_text()


def test_the_tables_show_the_intervals_that_they_promise(trained):
    _, (_, out, _), run = trained
    shown = re.findall(r'^sft +(\d\.\d{4} \[\d\.\d{3}, \d\.\d{3}\])', out, re.M)
    assert len(shown) == 2, 'NDCG and the hit rate'
    ndcg = json.loads((run / 'sft/metrics.json').read_text())['views']['text']['NDCG@10']
    assert shown[0] == f'{ndcg["value"]:.4f} [{ndcg["low"]:.3f}, {ndcg["high"]:.3f}]'
    assert f'>{shown[0]}<' in (run / 'report.html').read_text()


def test_training_ends_with_what_a_model_failed_to_learn(trained):
    last = trained[1][1].strip().splitlines()[-1]
    assert re.match(r'sft \(\d\.\d{4}, -\d\.\d{4} \[-', last) and ' lies below ' in last
    assert 'the shipped tiny model knows the products of the studio only' in last and '--model' in last


def figures(**ndcg):
    "Metrics of a hundred users, all alike."
    per_user = {view: {'NDCG@10': np.full(100, x)} for view, x in ndcg.items()}
    return Metrics(per_user, {v: None for v in ndcg}, {'NDCG@10': 0.01}, 'protocol')


@pytest.mark.parametrize(
    'fused, said',
    [
        (0.03, 'sft (0.0300, -0.0208 [-0.0208, -0.0208]) lies below the words of the last item, 0.0508: a word list, '
         'without any training, ranks better than it.'),
        (0.06, ''),
    ],
)  # fmt: skip
def test_a_model_below_the_words_of_the_last_item(fused, said):
    base = figures(**{'popularity': 0.01, 'last item by text': 0.0508})
    found = {'before': dict(metrics=figures(fused=0.001), history=None)}
    found['sft'] = dict(metrics=figures(fused=fused), history=1)
    assert below_baseline(found, base, {'text': 'text'}) == said


def test_training_advises_in_flags_and_never_what_it_has_just_done(trained):
    assert not re.search(r"(loss|fuse|reference)=", trained[1][1].split('collapse')[-1])


def test_training_keeps_the_baselines_with_the_metrics(trained, folder):
    views = json.loads((trained[2] / 'sft/metrics.json').read_text())['baselines']['views']
    split, whole = open_data(folder, 12)
    assert list(views) == list(baselines(split, dataset=whole))


def test_run_json_holds_what_must_stay_the_same(trained, folder):
    note = json.loads((trained[2] / 'run.json').read_text())
    usual = dict(data=str(folder), model='tiny_vlm', lora=8, users=12, history=None, seed=0, fuse='sum', apart=False)
    assert note == usual and list(note) == list(usual)


def test_a_run_goes_on_with_resume_alone(trained):
    argv, _, run = trained
    status, _, err = said(*argv)
    assert status == 2 and '--resume' in err
    status, _, err = said(*argv, '--resume', '--lora', 4)
    assert status == 2 and '--lora 8 (now 4)' in err
    assert said(*argv, '--resume', '--steps', 2)[0] == 0
    assert len(json.loads((run / 'sft/history.json').read_text())['steps']) == 2


def test_adapters_apart_and_experts_as_a_ceiling(trained, tmp_path):
    argv = ['per-modality' if w == 'sft' else w for w in trained[0][:-1]] + [tmp_path]
    status, out, err = said(*argv, '--fuse', 'concat', '--weight', 3, '--apart', '--ceiling')
    assert status == 0, err
    assert 'fusion concat' in out and 'ceiling: experts' in out
    assert 'baselines' in json.loads((tmp_path / 'ceiling/experts/metrics.json').read_text())
    assert (tmp_path / 'per-modality/embedder.json').exists()
    assert len(VLMEmbedder.from_pretrained(tmp_path / 'per-modality').adapters) == 2


def test_a_control_is_trained_on_exchanged_contents(trained, folder, tmp_path):
    status, out, err = said(*trained[0][:-1], tmp_path, '--control')
    assert status == 0, err
    assert 'control of sft: contents exchanged between items, NDCG@10: text ' in out
    kept = json.loads((tmp_path / 'control/sft/metrics.json').read_text())
    assert kept['data'].endswith('contents exchanged (seed 0)') and (tmp_path / 'control/vectors-sft.npz').exists()
    own, other, before = (
        read_vectors(tmp_path / f)[0] for f in ('vectors-before.npz', 'control/vectors-before.npz', 'vectors-sft.npz')
    )
    order = exchange(len(open_data(folder, 12)[0].catalogue), 0)
    # the same start: the untrained model gives each item the vector of the item whose contents it got
    for m, x in own['items'].items():
        np.testing.assert_allclose(other['items'][m], x[order], atol=1e-5)
        assert not np.allclose(before['items'][m], x, atol=1e-5)


def test_every_way_to_speed_up_with_a_split_that_leaves_items_cold(folder, tmp_path):
    (tmp_path / 'prompts.json').write_text('{"text": {"item": "A thing:{}<|im_end|>"}, "image": {"separator": " and"}}')
    argv = ['train', '--data', folder, '--losses', 'sft', '--steps', 2, '--batch', 4, '--history', 4]
    argv += ['--split', 'cold-items', '--positions', 'all', '--chunk', 3, '--negatives', 20, '--schedule', 'cosine']
    argv += ['--warmup', 1, '--prompts', tmp_path / 'prompts.json', '--recompute', '--vision', tmp_path / 'vision']
    status, out, err = said(*argv, '--out', tmp_path / 'fast')
    assert status == 0, err
    assert '20 given negatives' in out and 'expected on cpu' in out and (tmp_path / 'vision').is_dir()
    vision = tmp_path / 'vision'
    assert f'fusion sum, positions all, chunk 3, vision {vision}, schedule cosine, warmup 1; vlm2rec train' in out
    note = json.loads((tmp_path / 'fast/run.json').read_text())
    rare = dict(split='cold-items', negatives=20, prompts=str(tmp_path / 'prompts.json'))
    assert list(note.items())[8:] == list((rare | dict(positions='all', schedule='cosine', warmup=1)).items())

    again = cut(open_dataset(folder), str(tmp_path / 'fast/split.safetensors'))
    assert json.loads((tmp_path / 'fast/sft/metrics.json').read_text())['split'] == again.fingerprint
    assert 'cold' in again.name
    for page in (out, (tmp_path / 'fast/report.html').read_text()):
        assert f'split {again.fingerprint[:12]}: ' in page and 'the collapse report among all items' in page


def test_a_loss_of_ones_own_with_a_setting_of_its_own(trained, tmp_path):
    @register_loss('sharp')
    def sharp(sequences, items, positives, exclude=None, tau=0.07, fuse='sum', power=1.0):
        return sft(sequences, items, positives, exclude, tau / power, fuse)

    try:
        argv = ['sharp' if w == 'sft' else w for w in trained[0][:-1]] + [tmp_path / 'own']
        status, out, err = said(*argv, '--set', 'power=2')
        assert status == 0, err
        assert 'sharp' in said('train', '--help')[1]
        assert json.loads((tmp_path / 'own/sharp/history.json').read_text())['settings']['power'] == 2
        status, _, err = said(*argv, '--set', 'powr=2')
        assert status == 2 and "did you mean 'power'" in err
    finally:
        del LOSSES['sharp']


# ---- vectors


@pytest.mark.parametrize('flag', ['--control', '--reference'])
def test_vectors_of_other_users_are_refused(toy, flag):
    "A file whose users took other items next is about others, or in another order."
    whole = read_vectors(toy / 'toy.npz')[0]
    turned = {
        k: {m: x[::-1].copy() for m, x in whole['sequences'].items()} if k == 'sequences' else whole[k] for k in SIDES
    }
    write_vectors(toy / 'turned.npz', turned | {'targets': whole['targets'][::-1].copy()})
    status, out, err = said('report', toy / 'toy.npz', flag, toy / 'turned.npz', '--out', toy / 't.json')
    assert status == 2 and f'{flag}: user ' in err and 'the same users in the same order' in err
    short = {k: {m: x[:-1] for m, x in v.items()} if k == 'sequences' else v for k, v in turned.items()}
    write_vectors(toy / 'short.npz', short | {'targets': whole['targets'][:-1]})
    status, out, err = said('report', toy / 'toy.npz', flag, toy / 'short.npz', '--out', toy / 't.json')
    assert status == 2 and f'{flag}: ' in err and 'users, and the vectors have' in err


def test_a_report_takes_a_control(toy):
    found, _ = read_vectors(toy / 'toy.npz')
    order = exchange(len(found['items']['text']), 1)
    other = dict(found, items={m: x[order] for m, x in found['items'].items()})
    write_vectors(toy / 'control.npz', other)
    status, out, err = said('report', toy / 'toy.npz', '--control', toy / 'control.npz', '--out', toy / 'c.json')
    assert status == 0, err
    memory = json.loads((toy / 'c.json').read_text())['memory']
    assert memory['text']['kind'] == 'content' and 'so this is content' in out
    assert said('report', toy / 'toy.npz', '--control', toy / 'no.npz', '--out', toy / 'd.json')[0] == 2
    assert not (toy / 'd.json').exists()


def test_reports_of_two_tables_with_and_without_a_reference(toy):
    pair = ['--items', toy / 'items.parquet', '--sequences', toy / 'sequences.parquet']
    before = ['--reference-items', toy / 'items.parquet', '--reference-sequences', toy / 'sequences.parquet']
    for extra in ([], before):
        assert said('report', *pair, *extra, '--out', toy / 'r.json')[0] == 0
    assert json.loads((toy / 'r.json').read_text())['ceiling'] == 'reference'
    status, out, _ = said('report', toy / 'toy.npz', '--out', toy / 'r.md')
    assert '--reference BEFORE.npz with vectors' in out and 'reference={' not in out + (toy / 'r.md').read_text()
    assert said('report', toy / 'toy.npz', '--reference', toy / 'toy.npz', '--out', toy / 'r.md')[0] == 0


@pytest.mark.parametrize(
    'argv, why',
    [
        (['toy.npz', '--items', 'items.parquet', '--sequences', 'sequences.parquet'], 'give either'),
        ([], 'give either'),
        (['--items', 'items.parquet'], 'give --sequences too'),
        (
            '--items items.parquet --sequences sequences.parquet --reference-items items.parquet'.split(),
            'give --reference-sequences too',
        ),
    ],
)
def test_half_of_the_vectors_or_too_many(argv, why, toy, monkeypatch):
    monkeypatch.chdir(toy)
    status, _, err = said('report', *argv, '--out', 'r.md')
    assert status == 2 and why in err, err


def test_the_line_that_makes_a_bench_again(tmp_path):
    status, out, err = said('bench', '--items', 300, '--users', 200, '--dims', 16, '--out', tmp_path / 'cost.json')
    assert (status, err) == (0, '')
    assert 'whole report' in out and out.splitlines()[-1].startswith('vlm2rec bench --items 300')


def test_downstream_draws_a_studio_once_for_a_seed():
    tasks = _task_maker(make_parser().parse_args(['downstream', '--data', 'studio:text-easy', '--history', '9']))
    long, short = tasks(0, 50), tasks(0, 6)
    assert long.catalogue is short.catalogue
    assert [s.test.history.shape[1] for s in (long, short)] == [9, 6]


def test_downstream_writes_its_results_once(folder, tmp_path):
    argv = ['downstream', '--data', folder, '--sources', 'raw', '--how', 'frozen', '--seeds', 0, '--epochs', 2]
    argv += ['--out', tmp_path / 'down']
    with warnings.catch_warnings():
        warnings.simplefilter('default')  # as in a process of its own
        status, out, err = said(*argv)
    assert (status, err.count('without interactions')) == (0, 1)
    written = ['downstream.html', 'frozen', 'ids', 'runs.csv', 'table.csv', 'vectors']
    assert sorted(p.name for p in (tmp_path / 'down').iterdir()) == written
    assert said(*argv)[1] == out  # nothing is left to do
    status, _, err = said(*argv[:3], '--sources', 'stf', '--out', tmp_path / 'down2')
    assert status == 2 and "did you mean 'sft'" in err, err


# ---- studies and data


def test_a_study_of_one_stored_cell(tmp_path):
    cell = run_cell('text-easy', 'before', 1, world=dict(items=60, users=90), split=dict(train=40, valid=0, test=50))
    del cell['world'], cell['split']  # a small one that passes for the study's own
    (tmp_path / 'main').mkdir()
    (tmp_path / 'main/text-easy--before--1.json').write_text(json.dumps(cell))
    one = ['--conditions', 'text-easy', '--remedies', 'before', '--seeds', 1]
    status, out, err = said('study', *one, '--out', tmp_path)
    assert (status, err) == (0, '')
    assert (tmp_path / 'main/study.html').exists() and 'before' in out
    status, out, err = said('study', '--table', '--out', tmp_path)
    assert (status, err) == (0, '') and 'before' in out
    status, _, err = said('study', '--verify', 1, '--out', tmp_path / 'nil')
    assert status == 2 and 'no cells' in err


def test_a_calibration_of_one_setting(tmp_path):
    argv = ['calibrate', '--settings', 'healthy: pair', '--users', 100, '--seeds', 2, '--jobs', 1, '--out', tmp_path]
    status, out, err = said(*argv)
    assert status == 0, err
    assert '| healthy, and called so | 100.0 % of 4 |' in (tmp_path / 'report.md').read_text()
    assert re.search('healthy, and called so +100.0 % of 4\n', out) and (tmp_path / 'report.csv.gz').exists()
    assert re.search('expected hits, without a reference +below 50 +50 to 200', out)
    status, _, err = said(*argv[:2], 'helthy: pair', *argv[3:])
    assert status == 2 and "did you mean 'healthy: pair'" in err


def test_a_calibration_trains_what_it_lacks(tmp_path, monkeypatch):
    asked = []

    def make(name, seed, out):
        asked.append((name, seed))
        raise ValueError('made')

    monkeypatch.setattr('vlm2rec_lab.studies.trained.trained_vectors', make)
    argv = ['calibrate', '--settings', 'trained: three, experts', '--users', 100, '--seeds', 1, '--jobs', 1]
    status, _, err = said(*argv, '--out', tmp_path)
    assert (status, asked) == (2, [('three: experts', 0)]) and 'made' in err


def test_a_profile_of_a_folder(folder, tmp_path):
    status, out, err = said('profile', '--data', folder, '--out', tmp_path / 'profile.html')
    assert status == 0, err
    assert (tmp_path / 'profile.html').read_text().startswith('<!')


# ---- mistakes


@pytest.mark.parametrize(
    'argv, hint',
    [
        ('trian', "'train'"),
        ('train --dta FOLDER', "'--data'"),
        ('demo --condition text-esy', "'text-easy'"),
        ('train --data FOLDER --losses vlmrec', "'vlm2rec'"),
        ('train --data FOLDER --losses sft --alpha 1', '--alpha'),
        ('train --data FOLDER --losses vlm2rec --set gapp=user', "'gap'"),
        ('train --data FOLDER --losses vlm2rec --set tau=1', 'give --tau'),
        ('train --data FOLDER --losses vlm2rec --set alpha=much', 'give a number'),
        ('train --data FOLDER --losses vlm2rec --set gap', 'NAME=VALUE'),
        ('train --data FOLDER --losses sft --schedule liner', "'linear'"),
        ('train --data FOLDER --losses sft --autocast bfloat', "'bfloat16'"),
        ('train --data FOLDER --losses sft --users 12 --positions al', "did you mean 'all'"),
        ('train --data nowhere', 'no folder'),
        ('train --data FOLDER --model ./nowhere', 'no model'),
        ('train --data FOLDER --steps 0', 'at least 1'),
        ('train --data FOLDER --chunk 0', 'at least 1'),
        ('evaluate nil.npz', 'no file'),
        ('evaluate TOY --fuse text=1,imag=1', "'image'"),
        ('report TOY --fail-on colapsed', "'collapsed'"),
        ('demo --out x.txt', '.html'),
        ('bench --out x.csv', '.json'),
        ('bench --modalities 9 --items 20 --users 40', 'exact only up to 8'),
        ('fetch --data FOLDER --hosts images.example.com --out got', 'image_url'),
    ],
)
def test_a_mistake_is_one_line_with_status_2(argv, hint, folder, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {'FOLDER': str(folder), 'TOY': str(toy / 'toy.npz')}
    status, _, err = said(*(words.get(w, w) for w in argv.split()))
    lines = [line for line in err.splitlines() if 'note:' not in line]
    assert (status, len(lines)) == (2, 1), err
    assert hint in err


def test_the_shipped_model_is_one_folder():
    assert tiny_vlm().is_dir()
