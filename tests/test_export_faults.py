"""Exports that once went wrong without a word: the base lost, one view for all, odd adapters, characters cut in two."""

import json
import warnings

import exported
import numpy as np
import pytest
import torch
from family_checkpoints import FAST, OTHERS, write

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.embed import VLMEmbedder
from vlm2rec_lab.model.chats import ChatEmbedder
from vlm2rec_lab.model.messages import BREAK
from vlm2rec_lab.model.pieces import Prompts
from vlm2rec_lab.model.plain import plain_embedder
from vlm2rec_lab.shop.catalogue import Catalogue

pytestmark = [
    pytest.mark.filterwarnings('ignore:.*items have no'),
    pytest.mark.filterwarnings("ignore:.*items' text is cut"),
]
CLOSE = 1e-5


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return write(FAST['llava'], tmp_path_factory.mktemp('llava') / 'base')


@pytest.fixture(scope='module')
def catalogue():
    return exported.items()


def opened(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device='cpu')


def gaps(embedder, folder, catalogue, history=exported.HISTORY):
    "How far an exported folder is from the embedder: items and histories elsewhere, items read here again."
    chats = ChatEmbedder(opened(folder))
    again = VLMEmbedder.from_pretrained(folder, device='cpu', dtype=torch.float32)
    items, sequences = embedder.encode_items(catalogue), embedder.encode_sequences(catalogue, history)
    found = exported.apart(items, chats.encode_items(catalogue, batch=3))
    said = exported.apart(sequences, chats.encode_sequences(catalogue, history, batch=3))
    return max(found, said, exported.apart(items, again.encode_items(catalogue)))


@pytest.mark.parametrize('way', ['merged', 'adapters', 'saved'])
def test_the_base_of_adapters_is_never_replaced(base, tmp_path, way):
    out = exported.taught(base).export(tmp_path / 'out')
    further = exported.taught(out)
    before = {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}
    put = dict(
        merged=further.export, adapters=lambda place: further.export(place, merge=False), saved=further.save_pretrained
    )[way]
    with pytest.raises(DataError, match='base of these adapters'):
        put(tmp_path / 'x' / '..' / 'out')
    assert {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()} == before
    put(tmp_path / 'other')


def test_an_export_of_one_view_judges_that_view_alone(base, catalogue, tmp_path):
    embedder = exported.taught(base, adapters=('text', 'image'))
    out = embedder.export(tmp_path / 'out', view='image')
    (tmp_path / 'out' / 'embedder.json').rename(tmp_path / 'kept')
    with pytest.warns(UserWarning, match='exported for image alone: text is not judged'):
        chats = plain_embedder(opened(out), catalogue.kinds)
    found = chats.encode_items(catalogue)
    assert list(found) == list(chats.encode_sequences(catalogue, exported.HISTORY)) == ['image']
    assert float((found['image'] - embedder.encode_items(catalogue)['image']).abs().max()) < CLOSE
    with pytest.raises(DataError, match='exported for it alone'):
        chats.encode_items(Catalogue(('a',), dict(text=['a mug']), dict(text='text')))
    for _ in range(2):  # by the chat template, then by the note
        again = VLMEmbedder.from_pretrained(out, device='cpu')
        with pytest.warns(UserWarning, match='exported for image alone: its vectors of text are not'):
            again.encode_items(catalogue)
        if (tmp_path / 'kept').exists():
            (tmp_path / 'kept').rename(tmp_path / 'out' / 'embedder.json')
    twice = VLMEmbedder.from_pretrained(again.export(tmp_path / 'twice'), device='cpu')
    assert twice.view == 'image'


def foreign(base, place, **how):
    "Adapters that peft made with its own settings, trained a little."
    import transformers
    from peft import LoraConfig, get_peft_model

    core = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(core, LoraConfig(r=4, target_modules=r'.*language_model.*\.(q|v)_proj', **how))
    torch.manual_seed(0)
    with torch.no_grad():
        for _, p in model.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(place)
    return place


@pytest.mark.parametrize('how', [dict(use_dora=True), dict(use_rslora=True)])
def test_adapters_of_other_kinds_are_merged_as_they_act(base, catalogue, tmp_path, how):
    place = foreign(base, tmp_path / 'foreign', **how)
    embedder = VLMEmbedder.from_pretrained(place, base=str(base), device='cpu', dtype=torch.float32)
    plain = VLMEmbedder.from_pretrained(base, device='cpu', dtype=torch.float32)
    assert exported.apart(embedder.encode_items(catalogue), plain.encode_items(catalogue)) > 100 * CLOSE
    assert gaps(embedder, embedder.export(tmp_path / 'out'), catalogue) < CLOSE


@pytest.mark.parametrize('how', [dict(modules_to_save=['norm']), dict(lora_bias=True)])
def test_what_cannot_be_merged_is_told(base, tmp_path, how):
    place = foreign(base, tmp_path / 'foreign', **how)
    embedder = VLMEmbedder.from_pretrained(place, base=str(base), device='cpu', dtype=torch.float32)
    with pytest.raises(ValueError, match='merge=False'):
        embedder.export(tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.filterwarnings('ignore:.*general path')
def test_a_model_of_no_listed_family_is_read_elsewhere_as_here(catalogue, tmp_path):
    embedder = exported.taught(write(OTHERS['llava_next'], tmp_path / 'base'))
    assert gaps(embedder, embedder.export(tmp_path / 'out'), catalogue) < CLOSE


@pytest.mark.filterwarnings('ignore:.*general path')
def test_a_processor_that_writes_pictures_otherwise_is_told(tmp_path):
    "That of Idefics2 puts a space behind a picture."
    embedder = exported.taught(write(OTHERS['idefics2'], tmp_path / 'base'))
    with pytest.raises(DataError, match="'idefics2' cannot be exported: in a chat, its processor writes other tokens"):
        embedder.export(tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_adapters_name_their_base_from_everywhere(base, tmp_path, monkeypatch):
    monkeypatch.chdir(base.parent)
    out = exported.taught(base.name).export(tmp_path / 'out', merge=False)
    assert json.loads((out / 'adapter_config.json').read_text())['base_model_name_or_path'] == str(base.resolve())
    monkeypatch.chdir(tmp_path)
    assert opened(out).encode(['a']).shape[0] == 1


def test_a_base_that_moved_is_named_where_it_lies_now(base, tmp_path):
    first = tmp_path / 'first'
    base.rename(first)
    out = exported.taught(first).export(tmp_path / 'out', merge=False)
    first.rename(base)
    again = VLMEmbedder.from_pretrained(out, base=str(base), device='cpu').export(tmp_path / 'again', merge=False)
    assert json.loads((again / 'adapter_config.json').read_text())['base_model_name_or_path'] == str(base.resolve())


LONG = ['\U0001f600' * 80, 'a' * 400, 'é€' * 200, ' ' * 200 + 'x', "it's don't " * 30 + '\U0001f600' * 9, '日本語' * 50]


@pytest.mark.parametrize('limit', [7, 8, 9, 10, 33, 64])
def test_no_character_is_cut_in_two(base, tmp_path, limit):
    shop = Catalogue(tuple(map(str, range(len(LONG)))), dict(text=LONG), dict(text='text'))
    embedder = exported.taught(base, max_text_tokens=limit)
    history = np.array([[0, 2], [4, 5]])
    assert gaps(embedder, embedder.export(tmp_path / 'out'), shop, history) < CLOSE


@pytest.mark.parametrize('fusion', ['external', 'internal'])
def test_three_modalities_with_gaps(base, tmp_path, fusion):
    from vlm2rec_lab.model.check import made_up_picture

    pictures = [made_up_picture(56, 56, k) for k in range(4)] + [None, None]
    contents = dict(title=['a', 'b', None, 'd', None, None], plot=['x 1', None, 'z', None, 'y', None], image=pictures)
    shop = Catalogue(tuple('abcdef'), contents, dict(title='text', plot='text', image='image'))
    embedder = exported.taught(base, fusion=fusion)
    history = np.array([[0, 1, 2, 3], [4, -1, -1, -1], [5, 4, 3, -1], [5, 5, -1, -1]])
    assert gaps(embedder, embedder.export(tmp_path / 'out'), shop, history) < CLOSE


@pytest.mark.parametrize(
    'prompts',
    [
        Prompts('A {{x}} % %s {}" \' \n', '%}{% set x=1 %} {} #} {# \U0001f600', ' }} ; {{ ', 'none', ''),
        Prompts('a{}', 'b __MARKS__{}__WORDS__ __BREAK__', ';'),
        Prompts('a{} <|im_end|>', 'b{}<|im_end|>', '<|im_end|>'),
        Prompts('a\\n{}\\u0041\\', 'b{}\r\n\t\x0b\u2028', ';\x85'),
        Prompts('{}', '{}', '', ' unknown', '"\'\\'),
    ],
)
@pytest.mark.parametrize('pool', ['last', 'eos'])
def test_prompts_of_ones_own(base, catalogue, tmp_path, prompts, pool):
    embedder = exported.taught(base, prompts=prompts, pool=pool)
    assert gaps(embedder, embedder.export(tmp_path / 'out'), catalogue) < CLOSE


def test_a_prompt_with_the_mark_of_a_break_is_refused(base, tmp_path):
    with pytest.raises(DataError, match='reads otherwise'):
        exported.taught(base, prompts=Prompts(f'a{BREAK}b{{}}', 'b{}')).export(tmp_path / 'out')


def test_exported_again_and_again(base, catalogue, tmp_path):
    first = exported.taught(base)
    one = VLMEmbedder.from_pretrained(first.export(tmp_path / '1'), device='cpu', dtype=torch.float32)
    assert gaps(first, one.export(tmp_path / '2'), catalogue) < CLOSE
    further = exported.taught(tmp_path / '2')
    for merge in (True, False):
        out = further.export(tmp_path / f'3{merge}', merge=merge)
        assert gaps(further, out, catalogue) < CLOSE
    (tmp_path / '3True' / 'embedder.json').unlink()
    assert gaps(further, tmp_path / '3True', catalogue) < CLOSE


@pytest.mark.parametrize(
    'said',
    [
        '{"fusion": "external"}',
        '{"fusion": 3, "prompts": {}, "max_pixels": 1, "max_text_tokens": 1}',
        '{"fusion": "external", "prompts": {"item": "{}", "lead": 3}, "max_pixels": 1, "max_text_tokens": 1}',
        '{"fusion": "external", "prompts": {"item": "{}", "bad": 3}, "max_pixels": 1, "max_text_tokens": 1}',
        '{"a":' * 3000 + '1' + '}' * 3000,
        '{"max_pixels": 1' + '0' * 5000 + '}',
    ],
)
def test_a_damaged_template_of_a_sentence_transformer_is_told(base, catalogue, tmp_path, said):
    model = opened(exported.taught(base).export(tmp_path / 'out'))
    rest = model.tokenizer.chat_template.split('\n', 1)[1]
    model.tokenizer.chat_template = model[0].processor.chat_template = f'{{#- vlm2rec {said} -#}}\n{rest}'
    with pytest.raises(DataError, match='template'):
        plain_embedder(model, catalogue.kinds)


def test_a_full_disk_leaves_what_was_there(base, tmp_path, monkeypatch):
    from vlm2rec_lab.model import export

    embedder = exported.taught(base)
    out = embedder.export(tmp_path / 'out')
    before = {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}
    put = export._put_weights

    def full(*args):
        put(*args)
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(export, '_put_weights', full)
    with warnings.catch_warnings(), pytest.raises(OSError, match='No space'):
        embedder.export(out)
    assert {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()} == before
    assert [f.name for f in tmp_path.iterdir()] == ['out']


def test_leads_that_differ_within_one_prompt_are_told(tmp_path):
    base = write(FAST['llava'], tmp_path / 'base')
    prompts = {view: Prompts('A:{}', 'B:{}', lead=lead) for view, lead in (('joint', ' '), ('text', ' in words: '))}
    embedder = VLMEmbedder.from_pretrained(base, device='cpu', fusion='internal', prompts=prompts)
    with pytest.raises(ValueError, match='one lead for all contents'):
        embedder.export(tmp_path / 'out', view='joint')
    assert not (tmp_path / 'out').exists()
