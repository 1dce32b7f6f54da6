"""Saved embedders: what a folder may lose, which base it belongs to, and adapters that somebody else wrote."""

import json
import shutil
import warnings

import pytest
import torch

from vlm2rec_lab.base.errors import DataError, DataWarning
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.tiny import build_tiny, build_tokenizer, save_tiny, studio_corpus
from vlm2rec_lab.shop.drawn import make_studio


@pytest.fixture(scope='module')
def cat():
    return make_studio('balanced', seed=0, items=12, users=6, length=3).catalogue


@pytest.fixture(scope='module')
def other(tmp_path_factory):
    "A checkpoint of the same shape as `checkpoint`, with other weights."
    path = tmp_path_factory.mktemp('bases') / 'other'
    tokenizer = build_tokenizer(studio_corpus(300))
    model = build_tiny(hidden=32, layers=1, vision=32, vision_layers=1, seed=5, tokenizer=tokenizer)
    save_tiny(path, *model, dtype=torch.float32)
    return path


def load(path, **kw):
    return VLMEmbedder.from_pretrained(path, device='cpu', **kw)


def tree(folder):
    "{name: bytes} of all that lies in a folder."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def stirred(embedder):
    "The embedder with adapters that do something."
    for _, p in embedder.adapter_parameters():
        torch.nn.init.normal_(p, std=0.05)
    return embedder


# ---- folders


def test_a_folder_with_other_things_is_refused_and_left_alone(checkpoint, tmp_path):
    embedder = load(checkpoint, lora=2)
    runs = tmp_path / 'runs'
    embedder.save_pretrained(runs / 'monday' / 'sft')
    (runs / 'notes.txt').write_text('what we learned')
    before = tree(runs)
    with pytest.raises(DataError, match=r'monday/sft/.*and \d+ more.*choose another folder'):
        embedder.save_pretrained(runs)
    with pytest.raises(DataError, match='holds files that are not replaced'):
        embedder.save_pretrained(runs / 'monday')
    assert tree(runs) == before


@pytest.mark.parametrize('name', ['notes.md', 'metrics.json', 'deep/er/x', '.hidden', 'README.md~', 'model.bin'])
def test_one_other_file_beside_an_embedder_is_enough(checkpoint, tmp_path, name):
    embedder = load(checkpoint, lora=2)
    there = embedder.save_pretrained(tmp_path / 'mine')
    (there / name).parent.mkdir(parents=True, exist_ok=True)
    (there / name).write_text('mine')
    before = tree(there)
    with pytest.raises(DataError, match=name):
        embedder.save_pretrained(there)
    assert tree(there) == before and [p.name for p in tmp_path.iterdir()] == ['mine']


def test_readme_of_a_project_is_no_model_card(checkpoint, tmp_path):
    (tmp_path / 'README.md').write_text('my project')
    with pytest.raises(DataError, match='README.md'):
        load(checkpoint, lora=2).save_pretrained(tmp_path)
    assert (tmp_path / 'README.md').read_text() == 'my project'


@pytest.mark.parametrize('how', [{}, {'lora': 2}, {'lora': 2, 'adapters': ('text', 'image')}])
def test_an_embedder_of_ours_is_replaced(checkpoint, tmp_path, cat, how):
    load(checkpoint, lora=4, adapters=('x', 'y', 'z')).save_pretrained(tmp_path / 'mine')
    new = stirred(load(checkpoint, **how)) if how else load(checkpoint)
    new.save_pretrained(tmp_path / 'mine')
    again = load(tmp_path / 'mine')
    for m, z in new.encode_items(cat, progress=False).items():
        assert torch.equal(again.encode_items(cat, progress=False)[m], z)
    assert not any(name.startswith(('x/', 'y/', 'z/')) for name in tree(tmp_path / 'mine'))
    assert [p.name for p in tmp_path.iterdir()] == ['mine']


def test_an_embedder_from_before_the_list_of_files_is_replaced(checkpoint, tmp_path):
    embedder = load(checkpoint, lora=2)
    note = embedder.save_pretrained(tmp_path / 'mine') / 'embedder.json'
    said = json.loads(note.read_text())
    note.write_text(json.dumps({k: v for k, v in said.items() if k not in ('files', 'base_mark', 'base_from_here')}))
    embedder.save_pretrained(tmp_path / 'mine')
    (tmp_path / 'mine' / 'results.csv').write_text('x')
    note.write_text(json.dumps({k: v for k, v in said.items() if k != 'files'}))
    with pytest.raises(DataError, match='results.csv'):
        embedder.save_pretrained(tmp_path / 'mine')


def test_files_that_are_to_stay_stay(checkpoint, tmp_path):
    embedder = load(checkpoint, lora=2)
    there = embedder.save_pretrained(tmp_path / 'sft')
    (there / 'metrics.json').write_text('{"NDCG@10": 0.5}')
    embedder.save_pretrained(there, keep=('metrics.json', 'history.json'))
    assert (there / 'metrics.json').read_text() == '{"NDCG@10": 0.5}' and not (there / 'history.json').exists()


def test_a_disk_that_is_full_leaves_the_old_embedder(checkpoint, tmp_path, monkeypatch):
    embedder = load(checkpoint, lora=2)
    there = embedder.save_pretrained(tmp_path / 'mine')
    before = tree(there)

    def full(*args, **kw):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('vlm2rec_lab.model.embedder.note_of', full)
    with pytest.raises(OSError, match='No space'):
        embedder.save_pretrained(there)
    assert tree(there) == before and [p.name for p in tmp_path.iterdir()] == ['mine']


def test_a_swap_that_fails_half_way_is_undone(checkpoint, tmp_path, monkeypatch):
    import os

    embedder = load(checkpoint, lora=2)
    there = embedder.save_pretrained(tmp_path / 'mine')
    before, calls, replace = tree(there), [], os.replace

    def second_fails(a, b):
        calls.append(a)
        if len(calls) == 2:
            raise OSError(5, 'Input/output error')
        replace(a, b)

    monkeypatch.setattr(os, 'replace', second_fails)
    with pytest.raises(OSError, match='Input/output'):
        embedder.save_pretrained(there)
    assert tree(there) == before and [p.name for p in tmp_path.iterdir()] == ['mine']


def test_a_file_and_the_place_one_works_in_are_refused(checkpoint, tmp_path, monkeypatch):
    embedder = load(checkpoint, lora=2)
    (tmp_path / 'notes').write_text('mine')
    with pytest.raises(DataError, match='is a file'):
        embedder.save_pretrained(tmp_path / 'notes')
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    for place in ('.', '..', tmp_path):
        with pytest.raises(DataError, match='is where this program works'):
            embedder.save_pretrained(place)
    assert (tmp_path / 'notes').read_text() == 'mine' and embedder.save_pretrained('inside').exists()


def test_a_link_to_a_folder_is_followed_and_stays(checkpoint, tmp_path):
    embedder = load(checkpoint, lora=2)
    embedder.save_pretrained(tmp_path / 'v1')
    (tmp_path / 'latest').symlink_to('v1')
    embedder.save_pretrained(tmp_path / 'latest')
    assert (tmp_path / 'latest').is_symlink() and (tmp_path / 'v1' / 'embedder.json').exists()


def test_a_checkpoint_is_written_beside_nothing_else(checkpoint, tmp_path):
    from vlm2rec_lab.model.tiny import load_tiny

    save_tiny(tmp_path / 'tiny', *load_tiny(checkpoint))
    save_tiny(tmp_path / 'tiny', *load_tiny(checkpoint))
    (tmp_path / 'thesis.tex').write_text('three years')
    with pytest.raises(DataError, match='thesis.tex'):
        save_tiny(tmp_path, *load_tiny(checkpoint))
    assert (tmp_path / 'thesis.tex').read_text() == 'three years'


# ---- the base


def test_other_weights_of_the_same_shape_are_said_by_name(checkpoint, other, tmp_path, cat):
    mine = stirred(load(checkpoint, lora=2)).save_pretrained(tmp_path / 'mine')
    with pytest.warns(DataWarning, match=r'mine were trained on other weights than those in .*other .*pass base='):
        wrong = load(mine, base=other)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        right = load(mine)
    gap = (
        (wrong.encode_items(cat, progress=False)['text'] - right.encode_items(cat, progress=False)['text']).abs().max()
    )
    assert gap > 0.1


def test_a_base_that_is_replaced_in_its_place_is_noticed(checkpoint, other, tmp_path):
    shutil.copytree(checkpoint, tmp_path / 'base')
    mine = load(tmp_path / 'base', lora=2).save_pretrained(tmp_path / 'mine')
    shutil.rmtree(tmp_path / 'base')
    shutil.copytree(other, tmp_path / 'base')
    with pytest.warns(DataWarning, match='were trained on other weights'):
        load(mine)


def test_another_type_of_the_same_weights_is_the_same_base(checkpoint, tmp_path):
    mine = load(checkpoint, lora=2).save_pretrained(tmp_path / 'mine')
    with warnings.catch_warnings():
        warnings.simplefilter('error', DataWarning)
        load(mine, dtype=torch.bfloat16)


def test_a_folder_that_moves_with_its_base_finds_it(checkpoint, tmp_path, monkeypatch, cat):
    shutil.copytree(checkpoint, tmp_path / 'work' / 'base')
    monkeypatch.chdir(tmp_path / 'work')
    mine = stirred(load('base', lora=2))
    mine.save_pretrained('mine')
    want = mine.encode_items(cat, progress=False)['text']
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load('work/mine').encode_items(cat, progress=False)['text'], want)
    shutil.move('work', 'archive')
    assert torch.equal(load('archive/mine').encode_items(cat, progress=False)['text'], want)
    shutil.move('archive/base', 'elsewhere')
    with pytest.raises(
        FileNotFoundError, match='archive/mine holds adapters of .*base, which is not there: pass base='
    ):
        load('archive/mine')
    assert torch.equal(load('archive/mine', base='elsewhere').encode_items(cat, progress=False)['text'], want)


def test_a_note_with_a_relative_base_of_old(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / 'base-of-old')
    note = load(checkpoint, lora=2).save_pretrained(tmp_path / 'mine') / 'embedder.json'
    said = json.loads(note.read_text())
    old = {k: v for k, v in said.items() if k not in ('files', 'base_mark', 'base_from_here')}
    note.write_text(json.dumps({**old, 'base': '../base-of-old'}))
    load(tmp_path / 'mine')
    note.write_text(json.dumps({**old, 'base': './models/base'}))
    with pytest.raises(FileNotFoundError, match='pass base='):
        load(tmp_path / 'mine')


# ---- adapters of peft


def test_a_folder_that_peft_wrote(checkpoint, tmp_path, cat):
    embedder = stirred(load(checkpoint, lora=2))
    embedder.model.peft_config['default'].base_model_name_or_path = str(checkpoint)
    embedder.model.save_pretrained(tmp_path / 'theirs')
    again = load(tmp_path / 'theirs')
    for m, z in embedder.encode_items(cat, progress=False).items():
        assert torch.equal(again.encode_items(cat, progress=False)[m], z)
    with pytest.raises(ValueError, match='has adapters already: leave lora= out'):
        load(tmp_path / 'theirs', lora=2)


def test_a_folder_of_peft_that_names_no_base(checkpoint, tmp_path):
    embedder = load(checkpoint, lora=2)
    embedder.model.save_pretrained(tmp_path / 'theirs')
    file = tmp_path / 'theirs' / 'adapter_config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'base_model_name_or_path': None}))
    with pytest.raises(ValueError, match='does not say of which model: pass base='):
        load(tmp_path / 'theirs')
    assert load(tmp_path / 'theirs', base=checkpoint).adapter_parameters()


def test_a_base_that_nobody_has_is_named_with_the_remedy(checkpoint, tmp_path):
    theirs = load(checkpoint, lora=2).model
    theirs.save_pretrained(tmp_path / 'theirs')
    file = tmp_path / 'theirs' / 'adapter_config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'base_model_name_or_path': 'nosuch'}))
    with pytest.raises(FileNotFoundError, match='theirs holds adapters of nosuch, which is not to be had: pass base='):
        load(tmp_path / 'theirs')


def test_a_folder_in_the_place_of_the_base_is_no_base(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / 'base')
    load(tmp_path / 'base', lora=2).save_pretrained(tmp_path / 'mine')
    shutil.rmtree(tmp_path / 'base')
    (tmp_path / 'base').mkdir()
    with pytest.raises(FileNotFoundError, match='mine holds adapters of .*base, which is not there: pass base='):
        load(tmp_path / 'mine')


def test_adapters_that_do_not_fit_are_no_adapters(checkpoint, tmp_path):
    "Names of another model: peft leaves fresh adapters in their place, which would be no training at all."
    from safetensors.torch import load_file, save_file

    theirs = load(checkpoint, lora=2).save_pretrained(tmp_path / 'theirs')
    file = theirs / 'adapter_model.safetensors'
    save_file({k.replace('language_model', 'text_model'): v for k, v in load_file(file).items()}, file)
    (theirs / 'embedder.json').unlink()
    with pytest.raises(ValueError, match='do not fit this model: nothing in them for 14 of its 14 matrices'):
        load(theirs, base=checkpoint)


@pytest.mark.parametrize('wrong', ['[]', '{', '3', '{"adapters": [".."]}', '{"prompts": []}', '{"max_pixels": "big"}'])
def test_a_note_that_is_none(checkpoint, tmp_path, wrong):
    mine = load(checkpoint, lora=2).save_pretrained(tmp_path / 'mine')
    (mine / 'embedder.json').write_text(wrong)
    with pytest.raises(DataError, match='embedder.json'):
        load(mine)
