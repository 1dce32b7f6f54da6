"""Runs of `vlm2rec train` that must not mix, be lost or end as if nothing had happened."""

import json
import resource
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import warm
from PIL import Image
from test_cli_commands import said

from vlm2rec_lab.commands.fit import fused_otherwise
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.shop.drawn import make_studio

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
ROOT = Path(__file__).resolve().parent.parent
SIZE = ['--steps', '3', '--batch', '4']


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder of a small shop with pictures."
    shop, folder = make_studio('balanced', seed=0, items=30, users=30, length=6), tmp_path_factory.mktemp('s') / 'shop'
    (folder / 'images').mkdir(parents=True)
    for i in range(30):
        Image.fromarray(shop.catalogue.content['image'][i]).save(folder / 'images' / f'{i}.png')
    items = shop.catalogue.table[['title', 'description']]
    items = items.assign(item_id=shop.catalogue.ids, image=[f'images/{i}.png' for i in range(30)])
    items.to_csv(folder / 'items.csv', index=False)
    bought = {
        'user_id': np.repeat(np.arange(30), 6),
        'item_id': [shop.catalogue.ids[i] for i in shop.interactions.items],
        'timestamp': np.tile(np.arange(6), 30),
    }
    pd.DataFrame(bought).to_csv(folder / 'interactions.csv', index=False)
    return folder


@pytest.fixture
def shop(made, tmp_path):
    "A copy that a test may change."
    return Path(shutil.copytree(made, tmp_path / 'shop'))


def run(shop, out, *more, model):
    "`vlm2rec train` with one loss."
    return said('train', '--data', shop, '--model', model, '--losses', 'sft', *SIZE, '--out', out, *more)


def tree(folder):
    "{name: bytes} of a folder, without locks."
    files = (p for p in sorted(Path(folder).rglob('*')) if p.is_file() and not p.name.endswith('.lock'))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def retitled(shop):
    items = pd.read_csv(shop / 'items.csv')
    items.loc[0, 'title'] = 'Another title'
    items.to_csv(shop / 'items.csv', index=False)


def repainted(shop):
    Image.new('RGB', (32, 32), 'red').save(shop / 'images' / '3.png')


def another_choice(shop):
    table = pd.read_csv(shop / 'interactions.csv')
    table.loc[5, 'item_id'] = table.loc[0, 'item_id']
    table.to_csv(shop / 'interactions.csv', index=False)


@pytest.mark.parametrize(
    ('edit', 'name'), [(retitled, 'content/text='), (repainted, 'content/image='), (another_choice, 'rows=')]
)
def test_a_shop_that_changed_is_not_gone_on_with(shop, tmp_path, checkpoint, edit, name):
    "The refusal names what differs, and nothing of the run is touched."
    assert run(shop, tmp_path / 'out', model=checkpoint)[0] == 0
    before = tree(tmp_path / 'out')
    edit(shop)
    status, _, err = run(shop, tmp_path / 'out', '--resume', model=checkpoint)
    assert status == 2 and name in err and 'Traceback' not in err, err
    assert tree(tmp_path / 'out') == before


def test_prompts_and_base_that_changed_are_not_gone_on_with(shop, tmp_path, checkpoint):
    base, prompts = Path(shutil.copytree(checkpoint, tmp_path / 'base')), tmp_path / 'prompts.json'
    parts = {'item': 'Thing: {}', 'sequence': 'Seen: {}', 'separator': ';', 'missing': 'none'}
    prompts.write_text(json.dumps(parts))
    how = ('--prompts', prompts)
    assert run(shop, tmp_path / 'out', *how, model=base)[0] == 0
    prompts.write_text(json.dumps({**parts, 'item': 'Product: {}'}))
    status, _, err = run(shop, tmp_path / 'out', '--resume', *how, model=base)
    assert status == 2 and "item='Thing: {}' (now 'Product: {}')" in err
    prompts.write_text(json.dumps(parts))
    from safetensors.torch import load_file, save_file

    weights = load_file(base / 'model.safetensors')
    weights[max(weights)] += 1
    save_file(weights, base / 'model.safetensors', {'format': 'pt'})
    status, _, err = run(shop, tmp_path / 'out', '--resume', *how, model=base)
    assert status == 2 and 'base weights=' in err
    shutil.copy(checkpoint / 'model.safetensors', base)
    assert run(shop, tmp_path / 'out', '--resume', *how, model=base)[0] == 0


def command(shop, out, checkpoint, *more):
    "The same as a process of its own."
    argv = ['train', '--data', shop, '--model', checkpoint, '--losses', 'sft', 'vlm2rec', '--out', out, *more]
    return warm.Started(['-m', 'vlm2rec_lab', *argv], cwd=ROOT)


@pytest.mark.processes
def test_two_trainings_of_one_folder(shop, tmp_path, checkpoint):
    "Started together: one of them trains, the other is told at once, and the run that is kept is whole."
    both = [command(shop, tmp_path / 'out', checkpoint, *SIZE) for _ in range(2)]
    ends = sorted((p.communicate(timeout=1000)[1], p.returncode) for p in both)
    codes = sorted(code for _, code in ends)
    assert codes == [0, 2], ends
    told = next(err for err, code in ends if code == 2)
    assert "'out' is being written by another process" in told or 'holds a run already' in told
    assert {'sft', 'vlm2rec', 'report.html', 'run.json'} <= {p.name for p in (tmp_path / 'out').iterdir()}


def test_a_folder_that_is_being_written_is_told_before_anything_is_read(shop, tmp_path, checkpoint, monkeypatch):
    from vlm2rec_lab.base.files import sole_writer
    from vlm2rec_lab.commands import train

    monkeypatch.setattr(train, '_split_of', lambda o: pytest.fail('the data are read'))
    with sole_writer(tmp_path / 'out'):
        status, _, err = run(shop, tmp_path / 'out', model=checkpoint)
    assert status == 2 and "'out' is being written by another process" in err


@pytest.mark.processes
def test_an_interrupt_trains_no_further_loss(shop, tmp_path, checkpoint):
    p = command(shop, tmp_path / 'out', checkpoint, '--steps', '100000', '--batch', '4')
    file, end = tmp_path / 'out' / 'checkpoint-sft.safetensors', time.monotonic() + 1000
    while not file.exists() and time.monotonic() < end and p.poll() is None:
        time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=1000)
    assert p.returncode == 130 and 'interrupted; go on with --resume' in err and 'Traceback' not in err, err
    assert file.exists() and not (tmp_path / 'out' / 'checkpoint-vlm2rec.safetensors').exists()
    assert not (tmp_path / 'out' / 'sft').exists()


def no_files_above(most):
    "Limits of a process that cannot write larger files: what a disk that is nearly full does to checkpoints."
    return [(resource.RLIMIT_FSIZE, most)]


@pytest.mark.processes
def test_a_full_disk_is_no_success(shop, tmp_path, checkpoint):
    argv = ['train', '--data', shop, '--model', checkpoint, '--losses', 'sft', *SIZE, '--lora', 64]
    argv += ['--out', tmp_path / 'out']
    done = warm.command(argv, cwd=ROOT, limits=no_files_above(300_000))
    assert done.returncode == 2, done.stderr
    assert 'checkpoint-sft.safetensors cannot be written' in done.stderr and 'there is none before it' in done.stderr
    assert 'the checkpoint before it stays' not in done.stderr
    # what was learned and measured had room, and is there
    assert VLMEmbedder.from_pretrained(tmp_path / 'out' / 'sft', device='cpu').model.peft_config['default'].r == 64
    assert (tmp_path / 'out' / 'sft' / 'metrics.json').exists()


@pytest.mark.processes
def test_a_disk_without_any_room_names_the_file(shop, tmp_path, checkpoint):
    argv = ['train', '--data', shop, '--model', checkpoint, '--losses', 'sft', *SIZE, '--out', tmp_path / 'out']
    done = warm.command(argv, cwd=ROOT, limits=no_files_above(6_000))
    assert done.returncode == 2 and 'File too large' in done.stderr and str(tmp_path / 'out') in done.stderr


# ---- models with adapters


def test_trained_adapters_are_trained_on(shop, tmp_path, checkpoint):
    assert run(shop, tmp_path / 'first', '--lora', 2, model=checkpoint)[0] == 0
    trained = tmp_path / 'first' / 'sft'
    status, out, err = run(shop, tmp_path / 'second', model=trained)
    assert status == 0, err
    first, second = (VLMEmbedder.from_pretrained(f, device='cpu') for f in (trained, tmp_path / 'second' / 'sft'))
    assert second.model.peft_config['default'].r == 2
    then, now = (dict(e.adapter_parameters()) for e in (first, second))
    assert any((then[n] != now[n]).any() for n in then)
    assert json.loads((tmp_path / 'second' / 'run.json').read_text())['lora'] is None
    # before this training it is what the first one has learned
    metrics = [json.loads((tmp_path / f / 'metrics.json').read_text()) for f in ('first/sft', 'second/before')]
    assert metrics[0]['views'] == metrics[1]['views'] if 'views' in metrics[0] else metrics[0] != {}
    assert run(shop, tmp_path / 'second', '--resume', model=trained)[0] == 0


@pytest.mark.parametrize('flag', [('--lora', 4), ('--apart',), ('--ceiling',), ('--control',), ('--together',)])
def test_fresh_adapters_on_top_are_refused_by_flag(shop, tmp_path, checkpoint, flag):
    trained = VLMEmbedder.from_pretrained(checkpoint, lora=2, device='cpu').save_pretrained(tmp_path / 'mine')
    status, _, err = run(shop, tmp_path / 'out', *flag, model=trained)
    assert status == 2 and f'{flag[0]}: ' in err and 'has adapters already' in err and not (tmp_path / 'out').exists()


# ---- baskets and variants


def test_last_baskets_and_same_content(shop, tmp_path, checkpoint):
    table = pd.read_csv(shop / 'interactions.csv')
    table['timestamp'] = table['timestamp'] // 2 * 86400
    table.to_csv(shop / 'interactions.csv', index=False)
    status, out, err = run(shop, tmp_path / 'out', '--split', 'last-basket', '--same-content', 'all', model=checkpoint)
    assert status == 0, err
    assert 'targets in sets' in out and 'Recall@10' in (tmp_path / 'out' / 'sft' / 'metrics.json').read_text()


def test_a_table_says_which_rows_were_fused_otherwise():
    metrics = SimpleNamespace(protocol='1,000 users, fusion sum (one vector)')
    found = dict(before=dict(metrics=metrics), sft=dict(metrics=metrics), repaired=dict(metrics=metrics, fuse='concat'))
    (said,) = fused_otherwise(found)
    assert said.startswith('repaired was trained and ranked with fusion concat')
    metrics.protocol = f'1,000 users, {said.split("with ")[1]}'
    assert fused_otherwise(found) == []
