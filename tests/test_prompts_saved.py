"What has learned of a prompt model comes back from its folder, and on no other base."

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_prompts import pictured, plain, tiny_t5
from transformers import T5ForConditionalGeneration

from vlm2rec_lab.base import files
from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.prompts.answers import best_items, make_trie
from vlm2rec_lab.prompts.model import LEARN, PromptModel, learned_parts, learned_share
from vlm2rec_lab.prompts.saved import NOTE, WEIGHTS, base_key, load_prompts, save_prompts

TRIE = make_trie([[5], [6, 7], [6, 8], [9, 3, 4]])


@pytest.fixture
def base(tmp_path):
    "A T5 in a folder."
    tiny_t5().save_pretrained(tmp_path / 'base')
    return tmp_path / 'base'


def opened(folder, dtype=torch.float32):
    return T5ForConditionalGeneration.from_pretrained(folder, dtype=dtype)


def trained(t5, learn, steps=2, **how):
    "A model that has learned a little, at whatever learns."
    model = PromptModel(t5, dict(image=6), learn=learn, rank=3, **how)
    torch.manual_seed(1)
    asked, step = pictured(), torch.optim.AdamW(learned_parts(model), lr=0.02)
    for _ in range(steps):
        step.zero_grad()
        model(asked).mean().backward()
        step.step()
    return model.eval()


def same(model, other):
    "The same answers with the same log probabilities, and the same losses, to the last bit."
    torch.manual_seed(2)
    asked = pictured()
    pairs = zip(best_items(model, asked, TRIE, k=3), best_items(other, asked, TRIE, k=3))
    return all(torch.equal(a, b) for a, b in [*pairs, (model(asked), other(asked))])


@pytest.mark.parametrize('learn', LEARN)
def test_answers_are_those_of_before(base, tmp_path, learn):
    how = dict(behind=('cross', 'self'), reduction=4, item_words=2, whole_words=9, kinds=3, seed=3)
    model = trained(opened(base), learn, **how)
    fresh = PromptModel(opened(base), dict(image=6), learn=learn, rank=3, **how).eval()
    state = torch.random.get_rng_state()
    saved = save_prompts(model, tmp_path / 'saved', dict(names=[[5], [6, 7]], shop='films'))
    again, about = load_prompts(saved)
    assert torch.equal(torch.random.get_rng_state(), state), 'nothing is drawn from the common numbers'
    assert same(again, model) and not same(again, fresh) and not again.training
    assert about == dict(names=[[5], [6, 7]], shop='films')
    assert again.learn == learn and again.settings == model.settings and learned_share(again) == learned_share(model)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize('learn', LEARN)
def test_what_came_back_learns_on(base, tmp_path, learn):
    "As the one that stayed, and saved again it is the same file."
    model = trained(opened(base), learn)
    again, _ = load_prompts(save_prompts(model, tmp_path / 'saved'))
    twice = save_prompts(again, tmp_path / 'twice')
    assert (twice / WEIGHTS).read_bytes() == (tmp_path / 'saved' / WEIGHTS).read_bytes()
    asked = pictured()
    for m in (model, again):
        step = torch.optim.SGD(learned_parts(m), lr=0.1)
        step.zero_grad()
        m(asked).mean().backward()
        step.step()
    assert same(model, again)
    assert not same(model, load_prompts(twice)[0])


def test_only_what_has_learned_is_kept(base, tmp_path):
    model = trained(opened(base), 'lora')
    state = load_file(save_prompts(model, tmp_path / 'saved') / WEIGHTS)
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(state) == learned | {'words.weight', 'kinds.weight'}
    assert not any('base_layer' in n or 'shared' in n for n in state)


def test_a_model_kept_as_a_whole_needs_no_base(base, tmp_path):
    for how in ({}, dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False)):
        model = trained(tiny_t5(**how), 'everything')
        again, _ = load_prompts(save_prompts(model, tmp_path / 'saved'))
        assert same(again, model)
        assert again.t5.lm_head.weight is again.t5.shared.weight or how
    shutil.rmtree(base)
    assert same(load_prompts(tmp_path / 'saved')[0], model)


def test_types_come_back(base, tmp_path):
    "A base in bfloat16, with adapters in it and mappings beside it in float32."
    model = trained(opened(base, torch.bfloat16), 'adapters', steps=0)
    again, _ = load_prompts(save_prompts(model, tmp_path / 'saved'))
    assert [p.dtype for p in again.parameters()] == [p.dtype for p in model.parameters()]
    assert same(again, model) and again.t5.dtype == torch.bfloat16
    half = trained(opened(base), 'lora').to(torch.bfloat16)
    again, _ = load_prompts(save_prompts(half, tmp_path / 'saved'))
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), half.parameters()))
    with pytest.raises(DataError, match='in bfloat16'):
        load_prompts(tmp_path / 'saved', t5=opened(base))


def test_another_base_is_refused(base, tmp_path):
    "One weight is enough, wherever it is; norms are kept and may be others. What was given is left as it was."
    saved = save_prompts(trained(opened(base), 'adapters'), tmp_path / 'saved')
    bare, back = opened(base), load_prompts(saved)[0]
    key = base_key(bare)
    for name, _ in bare.named_parameters():
        other = copy.deepcopy(bare)
        with torch.no_grad():
            dict(other.named_parameters())[name].view(-1)[-1] += 1
        if 'norm' in name:
            assert base_key(other) == key and same(load_prompts(saved, t5=other)[0], back)
            continue
        with pytest.raises(DataError, match='pass t5= with the one of then'):
            load_prompts(saved, t5=other)
        assert not hasattr(other, 'adapters')
    other = tiny_t5(seed=5)
    other.save_pretrained(base)
    with pytest.raises(DataError, match='other weights'):
        load_prompts(saved)
    with pytest.raises(DataError, match='does not fit the T5'):
        load_prompts(save_prompts(trained(tiny_t5(), 'everything'), tmp_path / 'all'), t5=tiny_t5(d_ff=32))
    with pytest.raises(DataError, match='load it anew'):
        load_prompts(saved, t5=trained(tiny_t5(), 'adapters').t5)


def test_a_base_is_found_where_it_lies(base, tmp_path):
    "In its place; as seen from the folder, where both have moved; given, where it was never in a folder."
    model = trained(opened(base), 'lora')
    save_prompts(model, tmp_path / 'saved')
    shutil.copytree(tmp_path, tmp_path / 'away' / 'there')
    shutil.rmtree(base)
    assert same(load_prompts(tmp_path / 'away' / 'there' / 'saved')[0], model)
    with pytest.raises(DataError, match=r'not to be had.*pass t5='):
        load_prompts(tmp_path / 'saved')
    assert same(load_prompts(tmp_path / 'saved', t5=tiny_t5())[0], model)
    save_prompts(trained(tiny_t5(), 'adapters'), tmp_path / 'saved')
    with pytest.raises(DataError, match='does not say where its T5 lies: pass t5='):
        load_prompts(tmp_path / 'saved')


def test_a_base_of_the_hub_is_named_by_its_id(base, tmp_path):
    t5 = opened(base)
    t5.config._name_or_path = t5.name_or_path = 'somebody/no-such-t5'
    saved = save_prompts(trained(t5, 'lora'), tmp_path / 'saved')
    note = json.loads((saved / NOTE).read_text())
    assert note['base'] == 'somebody/no-such-t5' and 'base_from_here' not in note
    with pytest.raises(DataError, match='somebody/no-such-t5, which is not to be had'):
        load_prompts(saved)


def test_damage_is_told(base, tmp_path):
    model = trained(opened(base), 'adapters')
    saved = save_prompts(model, tmp_path / 'saved')
    whole, note = (saved / WEIGHTS).read_bytes(), json.loads((saved / NOTE).read_text())
    for spoilt in (whole[:-1], b'', whole[: len(whole) // 2]):
        (saved / WEIGHTS).write_bytes(spoilt)
        with pytest.raises(DataError, match=WEIGHTS):
            load_prompts(saved)
    state = load_file(save_prompts(model, tmp_path / 'other') / WEIGHTS)
    state['words.weight'][3, 4] += 1
    save_file(state, saved / WEIGHTS)
    with pytest.raises(DataError, match='copy the folder again'):
        load_prompts(saved)
    (saved / WEIGHTS).write_bytes(whole)
    for key in ('settings', 'dtype', 'base', 'base_key', 'weights_key', 'about'):
        for odd in (None, 3):
            (saved / NOTE).write_text(json.dumps(note | {key: odd}))
            with pytest.raises(DataError, match=f'{NOTE}.*{key}'):
                load_prompts(saved)
    for settings in (dict(learn='lora'), dict(learn='nothing'), dict(features=3), dict(depth=2)):
        (saved / NOTE).write_text(json.dumps(note | dict(settings=note['settings'] | settings)))
        with pytest.raises(DataError):
            load_prompts(saved)
    for text in ('', '[]', '{"settings"'):
        (saved / NOTE).write_text(text)
        with pytest.raises(DataError, match=NOTE):
            load_prompts(saved)
    with pytest.raises(DataError, match='holds no saved prompt model'):
        load_prompts(tmp_path / 'nowhere')
    (saved / NOTE).write_text(json.dumps(note | dict(dtype='Tensor')))
    with pytest.raises(DataError, match="dtype is 'Tensor'"):
        load_prompts(saved)


def test_a_folder_is_whole_or_as_it_was(base, tmp_path, monkeypatch):
    model = trained(opened(base), 'adapters')
    saved = save_prompts(model, tmp_path / 'saved', dict(run=1))
    before = {f.name: f.read_bytes() for f in saved.iterdir()}

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files, '_take_place', full)
    with pytest.raises(OSError):
        save_prompts(trained(opened(base), 'lora'), saved, dict(run=2))
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['base', 'saved']
    save_prompts(model, saved, dict(run=3))
    assert load_prompts(saved)[1] == dict(run=3)
    (saved / 'mine.txt').write_text('keep')
    with pytest.raises(DataError, match='mine.txt'):
        save_prompts(model, saved)
    with pytest.raises(DataError, match='about='):
        save_prompts(model, tmp_path / 'new', dict(trie=TRIE))
    assert not (tmp_path / 'new').exists()


def test_text_alone_is_kept_too(base, tmp_path):
    "A model that is shown nothing has no mapping."
    model = PromptModel(opened(base), {}, learn='lora').eval()
    again, about = load_prompts(save_prompts(model, tmp_path / 'saved'))
    asked = plain(torch.randint(2, 60, (2, 5)), torch.randint(2, 60, (2, 3)))
    assert about == {} and torch.equal(again(asked), model(asked))
