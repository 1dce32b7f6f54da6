"""The family matrix: tiny random checkpoints of real classes, each measured against its own model, with pictures."""

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import FAST, TOKENIZER, write

from vlm2rec_lab.base.ragged import PAD
from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.model.bank import make_bank, vision_key
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.encode import forward
from vlm2rec_lab.model.families import FAMILIES
from vlm2rec_lab.model.family import own_forward
from vlm2rec_lab.model.passes import prefix_pairs, prefix_vectors
from vlm2rec_lab.model.pieces import assemble
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import train

ALL = tuple(FAST)
quiet = pytest.mark.filterwarnings('ignore::UserWarning')


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
    "{family: folder of a checkpoint}, made on first use."
    transformers.utils.logging.disable_progress_bar()
    place, made = tmp_path_factory.mktemp('families'), {}

    def folder(name):
        if name not in made:
            made[name] = write(FAST[name], place / name)
        return made[name]

    return folder


@pytest.fixture(scope='module')
def studio():
    return make_studio('balanced', seed=0, items=24, users=40, length=6)


@pytest.fixture(scope='module')
def history(studio):
    "Three histories, of 4, 2 and 3 items."
    rows = studio.split(train=20, valid=10, test=10, history=4).test.history[:3].copy()
    rows[1, 2:], rows[2, 3:] = PAD, PAD
    return rows


@pytest.fixture(scope='module')
def embedders(folders):
    "One embedder for each family and fusion, with adapters that do something."
    made = {}

    def embedder(name, fusion='internal'):
        if (name, fusion) not in made:
            e = VLMEmbedder.from_pretrained(folders(name), lora=4, fusion=fusion, device='cpu')
            for k, (_, p) in enumerate(e.adapter_parameters()):
                torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(k))
            made[name, fusion] = e
        return made[name, fusion]

    return embedder


def plain(embedder, catalogue, bank, plan, shown):
    "Vectors of planned prompts by the model's own forward, row by row, from pixels."
    ids, _, feature, last = assemble(bank.views['joint'], plan)
    family, processor, out = embedder.family, embedder.image_processor, []
    for r, items in enumerate(shown):
        pictures = [catalogue.image('image', int(i)) for i in items]
        inputs = family.prepared(processor, pictures, family.settings(processor, embedder.max_pixels))
        row = slice(r, r + 1), slice(0, int(last[r]) + 1)
        out.append(own_forward(embedder.core, inputs, ids[row], feature[row] >= 0)[0, -1])
    return torch.stack(out)


def slopes(embedder, z):
    "Gradient of a fixed weighted sum of vectors, by every adapter matrix."
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((z * weights).sum(), [p for _, p in embedder.adapter_parameters()])


def apart(x, y):
    "Largest difference, as a share of the largest value."
    return ((x - y).abs().max() / x.abs().max().clamp(min=1e-12)).item()


def gaps(embedder, slow, fast):
    "How far two ways to the same vectors are apart, in value and in gradient."
    return apart(slow, fast), max(map(apart, slopes(embedder, slow), slopes(embedder, fast)))


@quiet
def own_and_fast(embedder, studio, history):
    "The vectors of histories of texts and pictures, by the model's own forward and by the fast path."
    bank = embedder.bank(studio.catalogue, progress=False)
    plan = bank.sequence_plan(history, 'joint')
    shown = [[i for i in row if i != PAD] for row in history]
    return plain(embedder, studio.catalogue, bank, plan, shown), forward(embedder, bank, 'joint', plan)


@pytest.mark.parametrize('name', ALL)
def test_the_fast_path_is_the_plain_model(name, embedders, studio, history):
    e = embedders(name)
    assert e.family is FAMILIES[name] and e.family.tree
    value, gradient = gaps(e, *own_and_fast(e, studio, history))
    assert value < 1e-5 and gradient < 1e-4, (value, gradient)


@pytest.mark.parametrize('name', ALL)
def test_a_tree_of_prefixes_is_separate_passes(name, embedders, studio, history):
    e = embedders(name)
    bank = e.bank(studio.catalogue, progress=False)
    rows, lengths = prefix_pairs(history)
    alone = np.where(np.arange(history.shape[1]) < lengths[:, None], history[rows], PAD)
    one, many = e.sequence_vectors(bank, alone)['joint'], prefix_vectors(e, bank, history)['joint']
    value, gradient = gaps(e, one, many)
    assert value < 1e-5 and gradient < 1e-4, (value, gradient)


@quiet
@pytest.mark.parametrize('name', ALL)
def test_training_saving_and_the_report(name, folders, studio, tmp_path):
    e = VLMEmbedder.from_pretrained(folders(name), lora=4, device='cpu')
    split = studio.split(train=20, valid=10, test=10, history=3)
    before = [p.detach().clone() for _, p in e.adapter_parameters()]
    told = train(e, split, 'sft', steps=5, batch=6, progress=False, positions='all')
    assert np.isfinite(told.frame['loss']).all() and len(told.frame) >= 5
    assert sum(not torch.equal(a, p) for a, (_, p) in zip(before, e.adapter_parameters())) > len(before) / 2
    assert all('lora_' in n for n, _ in e.adapter_parameters())
    again = VLMEmbedder.from_pretrained(e.save_pretrained(tmp_path / 'mine'), device='cpu')
    one, two = (x.encode_items(studio.catalogue, progress=False) for x in (e, again))
    assert all(torch.equal(one[m], two[m]) for m in ('text', 'image'))
    report = collapse_report(again, split)
    assert set(report.to_dict()['modalities']) == {'text', 'image'}


@pytest.mark.parametrize('name', ['qwen3_vl', 'gemma3', 'smolvlm'])
def test_rows_are_the_same_in_memory_on_disk_and_live(name, embedders, studio, history, tmp_path):
    e = embedders(name)
    plan = e.bank(studio.catalogue, progress=False).sequence_plan(history, 'joint')
    banks = [make_bank(e, studio.catalogue, False, vision) for vision in (None, tmp_path, 'live')]
    assert tuple(banks[0].features.shape[1:]) == (e.family.width(e.core),)
    one, *others = (forward(e, bank, 'joint', plan).detach() for bank in banks)
    for z in others:
        assert apart(one, z) < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == [vision_key(e)[:16]]


# ---------------------------------------------------------------- mutations: each must show


def mutated(embedder, monkeypatch, cls, method, to):
    monkeypatch.setattr(cls, method, to)
    embedder._banks.clear()
    return embedder


WRONG = {  # family -> (method, what is done in its place): the plainest family's way
    'qwen3_vl': ('deeper', lambda self, seen, rows, hidden: {}),
    'gemma3': ('masks', lambda self, config, mask, position, seen: None),
    **dict.fromkeys(
        ('qwen2_vl', 'qwen2_5_vl'),
        ('positions', lambda self, position, mask: torch.arange(position.shape[2]).expand(3, 1, -1)),
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_family_that_is_read_in_another_way_is_noticed(name, embedders, studio, history, monkeypatch):
    e = embedders(name)
    method, to = WRONG[name]
    monkeypatch.setattr(type(e.family), method, to)
    slow, fast = own_and_fast(e, studio, history)
    assert apart(slow, fast) > 1e-2


def test_all_marks_are_tokens():
    for family in FAMILIES.values():
        marks = family.marks(TOKENIZER, FAST[family.name]()[0].config)
        assert len(marks.opening) + len(marks.closing) < 10 and marks.place is not None
