"""The same chain on every device: each check runs on the processor here, and on a GPU where there is one.

What a GPU gives is compared with the plain path on the processor, in float32 without TF32 where the comparison is of
digits."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from family_checkpoints import FAST, write
from pair_encoders import encoders
from ports import free_port

from vlm2rec_lab.embed import VLMEmbedder
from vlm2rec_lab.graph.fit import fit_graph, tables_of
from vlm2rec_lab.graph.graph import graph_of
from vlm2rec_lab.graph.make import GRAPH_MODELS, make_model
from vlm2rec_lab.model.efficientnet import EfficientNetLite0
from vlm2rec_lab.model.pair import PairEmbedder
from vlm2rec_lab.model.tiny import tiny_vlm
from vlm2rec_lab.prompts.answers import best_items, make_trie, score_names
from vlm2rec_lab.prompts.model import LEARN, Asked, PromptModel, learned_parts
from vlm2rec_lab.prompts.saved import load_prompts, save_prompts
from vlm2rec_lab.prompts.scores import all_scores
from vlm2rec_lab.shop.shares import shares
from vlm2rec_lab.studio import make_studio
from vlm2rec_lab.train import train

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
NEAR = 5e-3  # between devices, after four steps of Adam, which makes much of small gradients
FIXED = dict(steps=4, batch=8, eval_every=0, progress=False)


@functools.cache
def shop():  # -> Split
    return make_studio('balanced', seed=0, items=60, users=90, length=6).split(train=40, valid=20, test=30, history=4)


@pytest.fixture
def split():
    return shop()


def load(device, **more):  # -> VLMEmbedder
    "The shipped model in float32, with adapters."
    return VLMEmbedder.from_pretrained(tiny_vlm(), **dict(lora=4, device=device, dtype=torch.float32) | more)


def losses(device, split, loss='vlm2rec', more=None, **options):  # -> [steps] of one training
    return train(load(device, **more or {}), split, loss, **FIXED | options).frame.loss.to_numpy()


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    "Convolutions in float32 proper, as matrix products are anyway."
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


@functools.cache
def plain(device):  # -> losses of the plain path on a device
    return losses(device, shop(), plain=True)


def cosines(a, b):  # -> least cosine of the rows that are not missing, over the modalities
    return min(float((torch.as_tensor(a[m]) * torch.as_tensor(b[m])).sum(1).min()) for m in a)


@pytest.mark.parametrize('device', DEVICES)
def test_float32_vectors_are_the_same(split, device):
    "Items and sequences of every modality."
    here, there = load('cpu'), load(device)
    assert cosines(*(e.encode_items(split.catalogue, progress=False) for e in (here, there))) > 1 - 1e-5
    history = split.test.history
    both = [e.encode_sequences(split.catalogue, history, progress=False) for e in (here, there)]
    assert cosines(*both) > 1 - 1e-5


@pytest.mark.parametrize('device', DEVICES)
def test_bfloat16_vectors_agree(split, device):
    exact = load('cpu').encode_items(split.catalogue, progress=False)
    rough = load(device, dtype=torch.bfloat16).encode_items(split.catalogue, progress=False)
    assert cosines(exact, rough) > 0.99


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('how', [{}, dict(chunk=4), dict(waste=1.0), dict(plain=True)], ids=str)
def test_losses_are_those_of_the_plain_path(split, device, how):
    "With gradient caching, in passes of one length, with filler, and plain."
    assert np.allclose(losses(device, split, **how), plain(device), atol=5e-4)


@pytest.mark.parametrize('device', DEVICES)
def test_the_first_loss_is_that_of_the_processor(device):
    assert abs(plain(device)[0] - plain('cpu')[0]) < 1e-3 and np.allclose(plain(device), plain('cpu'), atol=NEAR)


@pytest.mark.parametrize('device', DEVICES)
def test_recomputing_changes_nothing(split, device):
    assert np.allclose(losses(device, split, more=dict(recompute=True)), plain(device), atol=5e-4)


@pytest.mark.parametrize('device', DEVICES)
def test_autocast_stays_near(split, device):
    assert np.allclose(losses(device, split, autocast='bfloat16'), plain(device), atol=5e-2)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('how', [{}, dict(chunk=8)], ids=str)
def test_every_position_is_the_same_everywhere(split, device, how):
    here, there = (losses(d, split, positions='all', **how) for d in ('cpu', device))
    assert np.allclose(here, there, atol=NEAR)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('loss', ['sft', 'wpcl', 'cmrtr', 'per-modality', 'weak-infonce', 'modality-dropout', 'ogm-ge'])
def test_every_loss_is_the_same_everywhere(split, device, loss):
    assert np.allclose(losses('cpu', split, loss), losses(device, split, loss), atol=NEAR)


@pytest.mark.parametrize('device', DEVICES)
def test_a_run_taken_up_again_is_the_run(split, tmp_path, device):
    "Stopped after two steps and resumed, on the same device."
    whole = losses(device, split)
    file = tmp_path / 'run.safetensors'
    keep = dict(FIXED, checkpoint=file, save_every=1)
    train(load(device), split, 'vlm2rec', callback=lambda r: 'stop' if len(r) == 2 else None, **keep)
    back = train(load(device), split, 'vlm2rec', resume=True, **keep).frame.loss.to_numpy()
    assert np.allclose(whole, back, atol=1e-5)


@pytest.mark.parametrize('device', DEVICES)
def test_adapters_travel(split, tmp_path, device):
    "Trained on one device, saved, and loaded on the processor: the same vectors."
    model = load(device)
    train(model, split, 'sft', **FIXED)
    model.save_pretrained(tmp_path / 'model')
    back = VLMEmbedder.from_pretrained(tmp_path / 'model', device='cpu', dtype=torch.float32)
    both = [e.encode_items(split.catalogue, progress=False) for e in (model, back)]
    assert cosines(*both) > 1 - 1e-5


@pytest.mark.parametrize('device', DEVICES)
def test_learned_weights_and_the_estimate(split, device):
    from vlm2rec_lab.training.estimate import estimate

    here, there = (losses(d, split, 'sft', fuse='learned') for d in ('cpu', device))
    assert np.allclose(here, there, atol=NEAR)
    said = estimate(load(device), split, steps=4, batch=8)
    assert said.device.startswith(device) and said.memory > 0


@pytest.mark.parametrize('device', DEVICES)
def test_a_report_on_a_model(split, device):
    "The diagnosis of the model on its device says what it says of the model on the processor."
    from vlm2rec_lab.diagnose import collapse_report

    here, there = (collapse_report(load(d), split, bootstrap=50) for d in ('cpu', device))
    assert {m: x['verdict'] for m, x in here.modalities.items()} == {
        m: x['verdict'] for m, x in there.modalities.items()
    }


# ---------------------------------------------------------------- every family, and pairs of encoders


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
    "{family: folder of a tiny checkpoint}, made on first use."
    place, made = tmp_path_factory.mktemp('families'), {}

    def folder(name):
        if name not in made:
            made[name] = write(FAST[name], place / name)
        return made[name]

    return folder


def of_family(folder, device, **more):  # -> VLMEmbedder
    "A tiny model of a family in float32, with adapters; loading holds its fast path against its own forward."
    return VLMEmbedder.from_pretrained(folder, **dict(lora=4, device=device, dtype=torch.float32) | more)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', FAST)
def test_every_family_is_the_same_everywhere(folders, split, device, name):
    "Items, histories and the losses of four steps with every place teaching."
    here, there = (of_family(folders(name), d) for d in ('cpu', device))
    assert there.family.tree and not there.family.whole
    assert cosines(*(e.encode_items(split.catalogue, progress=False) for e in (here, there))) > 1 - 1e-5
    told = [train(e, split, 'vlm2rec', positions='all', **FIXED).frame.loss.to_numpy() for e in (here, there)]
    assert np.allclose(*told, atol=NEAR)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', FAST)
def test_every_family_keeps_its_fast_path_in_bfloat16(folders, split, device, name):
    rough = of_family(folders(name), device, dtype=torch.bfloat16)
    assert rough.family.tree and not rough.family.whole
    exact = of_family(folders(name), 'cpu')
    assert cosines(*(e.encode_items(split.catalogue, progress=False) for e in (exact, rough))) > 0.98


def pair(device, **more):  # -> PairEmbedder
    return PairEmbedder(encoders(), dims=8, device=device, **more)


PAIRS = {'frozen': {}, 'causal': dict(sequence='causal'), 'recent': dict(sequence='recent'), 'tuned': dict(lora=2)}


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('kind', PAIRS)
def test_pairs_are_the_same_everywhere(split, device, kind):
    "Heads, sequence heads and adapters of the encoders, against all items as candidates where that can be."
    more = {} if kind == 'tuned' else dict(candidates='all')
    both = [pair(d, **PAIRS[kind]) for d in ('cpu', device)]
    told = [train(e, split, 'sft', positions='all', **FIXED, **more).frame.loss.to_numpy() for e in both]
    assert np.allclose(*told, rtol=1e-3)
    assert cosines(*(e.encode_items(split.catalogue, progress=False) for e in both)) > 1 - 1e-4
    history = split.test.history
    vectors = [e.encode_sequences(split.catalogue, history, progress=False) for e in both]
    assert cosines(*vectors) > 1 - 1e-4


@pytest.mark.parametrize('device', DEVICES)
def test_batches_of_ever_new_sizes_need_no_plan(device):
    "What cuDNN needs 5 s for once per size where channels lie side by side."
    net, pictures = EfficientNetLite0().eval().to(device), torch.randn(6, 3, 224, 224)
    seen = []
    net.conv_stem.register_forward_hook(lambda layer, given, z: seen.append(z))
    with torch.no_grad():
        whole = net(pictures.to(device))
        parts = torch.cat([net(p.to(device)) for p in pictures.split((1, 2, 3))])
    assert torch.allclose(whole, parts, atol=1e-4)
    beside = [z.is_contiguous(memory_format=torch.channels_last) for z in seen]
    assert beside == [device == 'cpu'] * len(seen)


@pytest.mark.parametrize('device', DEVICES)
def test_a_pair_travels(split, tmp_path, device):
    from vlm2rec_lab.diagnose import collapse_report

    there = pair(device)
    train(there, split, 'per-modality', **FIXED)
    saved = there.save_pretrained(tmp_path / 'pair')
    back = PairEmbedder.from_pretrained(saved, encoders=encoders(), device='cpu')
    assert cosines(*(e.encode_items(split.catalogue, progress=False) for e in (there, back))) > 1 - 1e-5
    said = [collapse_report(e, split, bootstrap=50).modalities for e in (there, back)]
    assert [x['verdict'] for x in said[0].values()] == [x['verdict'] for x in said[1].values()]


def recommender(device, split, name):  # -> losses of three epochs
    "Without dropout, whose numbers are the device's own."
    from vlm2rec_lab.recommenders.fit import fit
    from vlm2rec_lab.recommenders.flame import flame
    from vlm2rec_lab.recommenders.seqrec import GRU4Rec, ItemTable, SASRec

    kind = dict(SASRec=SASRec, GRU4Rec=GRU4Rec, flame=SASRec)[name]
    vectors = load('cpu').encode_items(split.catalogue, progress=False)
    n = len(split.catalogue)

    def fresh(seed):
        return kind(ItemTable(n, 16, 'frozen', vectors), dropout=0.0, length=8, seed=seed).to(device)

    how = dict(patience=None, progress=False)
    if name == 'flame':
        return flame(fresh(0), fresh(1), split, rounds=3, **how).frame.loss.to_numpy()
    return fit(fresh(0), split, epochs=3, **how).frame.loss.to_numpy()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', ['SASRec', 'GRU4Rec', 'flame'])
def test_recommenders_learn_the_same(split, device, name):
    assert np.allclose(recommender('cpu', split, name), recommender(device, split, name), atol=5e-3)


ALONE = """
import json, os, sys
import torch
from accelerate import Accelerator
from vlm2rec_lab.embed import VLMEmbedder
from vlm2rec_lab.graph.fit import fit_graph, tables_of
from vlm2rec_lab.graph.graph import graph_of
from vlm2rec_lab.graph.make import GRAPH_MODELS, make_model
from vlm2rec_lab.model.efficientnet import EfficientNetLite0
from vlm2rec_lab.shop.shares import shares
from vlm2rec_lab.studio import make_studio
from vlm2rec_lab.train import train
from vlm2rec_lab.training.shard import load_settings, shard

torch.backends.cudnn.allow_tf32 = False
accelerator = Accelerator(cpu=sys.argv[1] == 'cpu')
split = make_studio('balanced', seed=0, items=60, users=90, length=6).split(train=40, valid=20, test=30, history=4)
how = dict(load_settings(accelerator), dtype=torch.float32)
fixed = dict(steps=4, batch=8, eval_every=0, progress=False)
for folder in sys.argv[2:]:
    model = shard(VLMEmbedder.from_pretrained(folder, lora=4, **how), accelerator)
    history = train(model, split, 'vlm2rec', accelerator=accelerator, **fixed)
    said = dict(sharded=model.sharded, device=str(accelerator.device), losses=history.frame.loss.tolist())
    print(json.dumps(said))
torch.distributed.destroy_process_group()
"""


@functools.cache
def graph_losses(name, device):  # -> losses of two epochs
    split = shares(make_studio('balanced', seed=0, items=40, users=60, length=10))
    rng = np.random.default_rng(0)
    views = {'text': rng.normal(size=(40, 6)), 'image': rng.normal(size=(40, 5))}
    model = make_model(name, graph_of(split), views, dim=8, seed=0).to(device)
    run = fit_graph(model, split, epochs=2, batch=128, lr=0.01, patience=None, progress=False)
    assert all(np.isfinite(t).all() for t in tables_of(model))
    return run.frame.loss.to_numpy()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', GRAPH_MODELS)
def test_graph_recommenders_learn_the_same(name, device):
    assert np.allclose(graph_losses(name, device), graph_losses(name, 'cpu'), atol=NEAR)


def prompts_of_a_shop():  # -> Asked, Trie
    "Four prompts with a picture each, of two words, and twenty names of two tokens."
    g = torch.Generator().manual_seed(0)
    kinds = torch.tensor([[0, 0, 0, 1, 1, 0]]).repeat(4, 1)
    tokens, words = torch.randint(2, 60, (4, 6), generator=g), torch.tensor([[1, 2, 2, 3, 4, 5]]).repeat(4, 1)
    mask = torch.arange(6) < torch.tensor([6, 5, 6, 5])[:, None]
    trie = make_trie([[10 + i // 5, 20 + i % 5] for i in range(20)])
    shown = dict(image=torch.randn(4, 6, generator=g))
    return Asked(tokens, mask, words, kinds, shown, trie.names[torch.tensor([3, 7, 11, 19])]), trie


def prompt_model(device, learn):  # -> PromptModel
    "A small T5 without dropout, whose numbers are the device's own."
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = dict(vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        t5 = T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0))
    return PromptModel(t5, dict(image=6), learn=learn, rank=4).to(device)


@functools.cache
def asked_model(device, learn):  # -> PromptModel after four steps, their losses
    model, (asked, _) = prompt_model(device, learn), prompts_of_a_shop()
    asked, adam, told = asked.to(device), torch.optim.AdamW(learned_parts(model), lr=1e-2), []
    for _ in range(4):
        loss = model(asked).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        told.append(loss.item())
    return model.eval(), told


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('learn', LEARN)
def test_prompt_models_learn_the_same(learn, device):
    here, there = (asked_model(d, learn)[1] for d in ('cpu', device))
    assert np.allclose(here, there, atol=NEAR) and here[3] < here[0] - 0.1


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('learn', LEARN)
def test_prompt_models_answer_the_same(learn, device, tmp_path):
    "The same weights, carried in a folder: the same scores of all names, and the same best items by search."
    (asked, trie), (model, _) = prompts_of_a_shop(), asked_model('cpu', learn)
    saved = save_prompts(model, tmp_path / 'saved')
    bare = None if learn == 'everything' else prompt_model('cpu', 'everything').t5
    there = load_prompts(saved, t5=bare)[0].to(device)
    left_out = [[0, 1, 2], [], [19], list(range(12))]
    names = score_names(model, asked, trie), score_names(there, asked.to(device), trie).cpu()
    assert torch.allclose(*names, atol=1e-4)
    assert torch.allclose(all_scores(there, asked.to(device), trie).cpu(), names[0], atol=1e-4)
    here, found = best_items(model, asked, trie, 5, left_out), best_items(there, asked.to(device), trie, 5, left_out)
    assert torch.equal(here[0], found[0].cpu()) and torch.allclose(here[1], found[1].cpu(), atol=1e-4)
    best = names[1].clone()
    for row, out in enumerate(left_out):
        best[row, out] = -torch.inf
    assert torch.equal(best.topk(5).indices, here[0])


@pytest.mark.gpu
def test_a_prompt_model_travels_from_a_gpu(tmp_path):
    "What learned on a GPU answers here, with base and all."
    (asked, trie), (model, _) = prompts_of_a_shop(), asked_model('cuda', 'adapters')
    back = load_prompts(save_prompts(model, tmp_path / 'saved'), t5=prompt_model('cpu', 'everything').t5)[0]
    assert {p.device.type for p in back.parameters()} == {'cpu'}
    both = score_names(model, asked.to('cuda'), trie).cpu(), score_names(back, asked, trie)
    assert torch.allclose(*both, atol=1e-4)


@pytest.mark.processes
@pytest.mark.parametrize('device', DEVICES)
def test_weights_in_parts_on_one_device(folders, split, tmp_path, device):
    """FSDP over a group of one process: all its calls are made, and the losses are those of the plain path, for the
    shipped model and for every family."""
    models = [tiny_vlm(), *map(folders, FAST)]
    (tmp_path / 'alone.py').write_text(ALONE)
    env = {**os.environ, 'PYTHONPATH': PATH, 'ACCELERATE_USE_FSDP': 'true', 'FSDP_VERSION': '2'}
    env |= {'FSDP_AUTO_WRAP_POLICY': 'TRANSFORMER_BASED_WRAP', 'GLOO_SOCKET_IFNAME': 'lo', 'MASTER_ADDR': '127.0.0.1'}
    env |= {'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': '1', 'LOCAL_WORLD_SIZE': '1', 'MASTER_PORT': free_port()}
    env |= {'ACCELERATE_USE_CPU': 'true'} if device == 'cpu' else {}
    command = [sys.executable, '-W', 'ignore', str(tmp_path / 'alone.py'), device, *map(str, models)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    assert len(told) == len(models)
    for folder, said in zip(models, told):
        whole = train(of_family(folder, device), split, 'vlm2rec', plain=True, **FIXED).frame.loss.to_numpy()
        assert said['sharded'] and said['device'].startswith(device)
        assert np.allclose(said['losses'], whole, atol=5e-4), folder


@pytest.mark.parametrize('device', DEVICES)
def test_the_command_takes_the_device(checkpoint, tmp_path, device):
    "`vlm2rec train` in a process of its own: a GPU where one is to be seen."
    out = tmp_path / 'run'
    env = {**os.environ, 'PYTHONPATH': PATH, **({'CUDA_VISIBLE_DEVICES': ''} if device == 'cpu' else {})}
    wish = ['--data', 'studio:balanced', '--model', str(checkpoint), '--users', '40', '--steps', '2', '--batch', '4']
    command = [sys.executable, '-m', 'vlm2rec_lab', 'train', *wish, '--losses', 'sft', '--out', str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (out / 'sft' / 'metrics.json').exists()
