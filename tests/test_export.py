"""Exported embedders: the same vectors in sentence-transformers, transformers and here again."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import exported
import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import FAST, OTHERS, write
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.embed import VLMEmbedder
from vlm2rec_lab.model.bank import encode_text
from vlm2rec_lab.model.messages import BREAK, chat_template
from vlm2rec_lab.model.pieces import Prompts

pytestmark = pytest.mark.filterwarnings('ignore:.*items have no image')
CLOSE = 1e-5
HERE = Path(__file__).parent


@pytest.mark.parametrize('name', ['llava', 'gemma3', 'idefics3'])
def test_vectors_by_sentence_transformers(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found, scaled = exported.family_gaps(name, tmp_path)
    assert {case: gap for case, gap in (found | scaled).items() if not gap < CLOSE} == {}
    assert len(found) == 22


def install(place, *wheels):
    "Packages alone in a folder; skips where they cannot be had."
    how = ['-q', '--disable-pip-version-check', '--no-deps', '--target', str(place)]
    done = subprocess.run([sys.executable, '-m', 'pip', 'install', *how, *wheels], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'not to be had here: {", ".join(wheels)}')
    return str(place)


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    "torchvision, which the processors of some families want for films, and what SmolVLM's wants beside it."
    minor = int(torch.__version__.split('.')[1]) + 15
    return install(tmp_path_factory.mktemp('films'), f'torchvision==0.{minor}.0', 'num2words', 'docopt')


@pytest.fixture(scope='module')
def before(tmp_path_factory):
    "The version of sentence-transformers before the present one."
    return install(tmp_path_factory.mktemp('before'), 'sentence-transformers==6.1.0')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'version'),
    [('qwen2_5_vl', '6.2'), ('qwen2_5_vl', '6.1'), ('qwen2_vl', '6.1'), ('qwen3_vl', '6.2'), ('smolvlm', '6.1')],
)
def test_vectors_where_films_are_read(name, version, tmp_path, films, before):
    extra = [films] + ([before] if version == '6.1' else [])
    path = os.pathsep.join((str(HERE.parent), str(HERE)))
    command = [sys.executable, str(HERE / 'exported.py'), name, str(tmp_path), *extra]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=path))
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said['version'].startswith(version if version == '6.1' else '6.')
    every = said['found'] | said['scaled']
    assert {case: gap for case, gap in every.items() if not gap < CLOSE} == {}
    assert len(every) == 23


@pytest.fixture(scope='module')
def llava(tmp_path_factory):
    return write(FAST['llava'], tmp_path_factory.mktemp('llava') / 'base')


@pytest.fixture(scope='module')
def folder(llava):
    return exported.taught(llava).export(llava.parent / 'out')


@pytest.fixture(scope='module')
def tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


SPECIAL = ('<|im_start|>', '<|im_end|>', '<image>', '<|image_pad|>', BREAK, '{{', '{%', '#}', '<|')


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(SPECIAL) | st.text(max_size=8), max_size=5).map(''.join), min_size=1, max_size=4)
)
def test_any_text_is_read_as_it_is_here_and_never_ends_the_prompt(folder, tokenizer, texts):
    own = transformers.AutoTokenizer.from_pretrained(folder.parent / 'base')
    plain = [t.replace(BREAK, '') for t in texts]
    prompts = json.loads((folder / 'embedder.json').read_text())['prompts']
    before, after = (encode_text(own, t, True) for t in prompts['sequence'].split('{}'))
    between = encode_text(own, prompts['separator'], True)
    wanted = [x for k, t in enumerate(plain) for x in (*(between if k else ()), *encode_text(own, prompts['lead'] + t))]
    chat = [dict(role='system', content='sequence'), *(dict(role='user', content=t) for t in texts)]
    found = encode_text(tokenizer, tokenizer.apply_chat_template(chat, tokenize=False), True)
    assert found == [*before, *wanted, *after]


def test_adapters_apart_are_loaded_by_peft(llava):
    "A plain folder of peft, on the class that has a head."
    from peft import PeftModel

    embedder, catalogue = exported.taught(llava), exported.items()
    place = embedder.export(llava.parent / 'peft', merge=False)
    core = transformers.AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.float32)
    model = PeftModel.from_pretrained(core, place).eval()
    processor = transformers.AutoProcessor.from_pretrained(place)
    from vlm2rec_lab.model.messages import sequence_messages

    for view in ('text', 'image'):
        chats = sequence_messages(embedder, catalogue, exported.HISTORY[:2], view)
        batch = processor.apply_chat_template(
            chats, tokenize=True, return_dict=True, return_tensors='pt', processor_kwargs=dict(padding=True)
        )
        with torch.inference_mode():
            hidden = model(**batch, output_hidden_states=True).hidden_states[-1]
        last = batch['attention_mask'].sum(1) - 1
        z = torch.nn.functional.normalize(hidden[torch.arange(2), last], dim=-1)
        ours = embedder.encode_sequences(catalogue, exported.HISTORY[:2])[view]
        assert float((z - ours).abs().max()) < CLOSE


def test_an_export_changes_nothing_in_the_embedder(llava, tmp_path):
    embedder = exported.taught(llava)
    before = {k: v.clone() for k, v in embedder.model.state_dict().items()}
    embedder.export(tmp_path / 'out')
    after = embedder.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_an_export_replaces_an_export_and_keeps_its_card(llava, tmp_path):
    embedder = exported.taught(llava)
    out = embedder.export(tmp_path / 'out')
    (out / 'README.md').write_text('# Mine')
    embedder.export(out, merge=False)
    assert (out / 'README.md').read_text() == '# Mine'
    assert not (out / 'model.safetensors').exists()
    (out / 'customers.csv').write_text('anna')
    with pytest.raises(DataError, match=r'customers\.csv'):
        embedder.export(out)
    assert (out / 'adapter_model.safetensors').exists()


def test_weights_in_bfloat16_stay_so(llava, tmp_path):
    embedder = VLMEmbedder.from_pretrained(llava, lora=4, device='cpu', dtype=torch.bfloat16)
    out = embedder.export(tmp_path / 'out')
    from safetensors import safe_open

    with safe_open(out / 'model.safetensors', 'pt') as f:
        assert {f.get_tensor(k).dtype for k in f.keys()} == {torch.bfloat16}


def test_no_code_and_no_pickle_goes_along(folder):
    files = [p for p in folder.rglob('*') if p.is_file()]
    assert {p.suffix for p in files} == {'.json', '.safetensors', '.jinja'}
    assert not [p for p in files if p.suffix == '.json' and 'auto_map' in p.read_text()]
    kinds = [line['type'] for line in json.loads((folder / 'modules.json').read_text())]
    assert all(kind.startswith('sentence_transformers.models.') for kind in kinds)


def test_prompts_of_several_kinds_have_to_be_named(llava, tmp_path):
    prompts = dict(text=Prompts('Words:{}', 'Read:{}'), image=Prompts('Picture:{}', 'Seen:{}'))
    embedder = exported.taught(llava, prompts=prompts)
    with pytest.raises(ValueError, match="one folder each, view='text'"):
        embedder.export(tmp_path / 'out')
    out = embedder.export(tmp_path / 'out', view='image')
    again = VLMEmbedder.from_pretrained(out, device='cpu')
    assert again.prompts == prompts['image']
    catalogue = exported.items()
    gap = (again.encode_items(catalogue)['image'] - embedder.encode_items(catalogue)['image']).abs().max()
    assert float(gap) < CLOSE


def test_an_unknown_view_is_told(llava, tmp_path):
    embedder = exported.taught(llava, adapters=('text', 'image'))
    with pytest.raises(ValueError, match="no adapters for 'txt'"):
        embedder.export(tmp_path / 'out', view='txt')
    assert not (tmp_path / 'out').exists()


def test_wrong_chats_are_told(folder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device='cpu')
    two = [dict(role='user', content=[dict(type='text', text=t)]) for t in ('a', 'b')]
    with pytest.raises(Exception, match='an item is one message'):
        model.encode([two])
    with pytest.raises(Exception, match="'item' or 'sequence', not 'Represent this'"):
        model.encode(['a'], prompt='Represent this')
    assert model.encode_query([two]).shape == (1, model.get_embedding_dimension())
    assert np.allclose(model.encode_document(['a']), model.encode(['a']))


@pytest.mark.parametrize(
    'line', ['{#- vlm2rec {] -#}\n', '{#- vlm2rec {"pool": 3} -#}\n', '{#- vlm2rec {"max_pixels": -1} -#}\n']
)
def test_a_damaged_first_line_of_the_template_is_told(folder, tmp_path, line):
    import shutil

    shutil.copytree(folder, tmp_path / 'x')
    (tmp_path / 'x' / 'embedder.json').unlink()
    (tmp_path / 'x' / 'chat_template.jinja').write_text(line)
    if line.startswith('{#- vlm2rec {]'):
        assert VLMEmbedder.from_pretrained(tmp_path / 'x', device='cpu')  # no note of ours: the model's own templates
        return
    with pytest.raises(DataError, match=r'chat_template\.jinja'):
        VLMEmbedder.from_pretrained(tmp_path / 'x', device='cpu')


def test_a_family_without_a_processor_is_told(tmp_path):
    embedder = VLMEmbedder.from_pretrained(write(OTHERS['internvl'], tmp_path / 'base'), device='cpu')
    try:
        embedder.export(tmp_path / 'out')
    except (ValueError, DataError) as e:
        assert 'cannot be exported' in str(e)
        assert not (tmp_path / 'out').exists()
    else:
        assert (tmp_path / 'out' / 'processor_config.json').exists()


def test_a_tokenizer_that_reads_otherwise_is_refused(llava, tmp_path, monkeypatch):
    from vlm2rec_lab.model import export

    monkeypatch.setattr(export, 'with_breaks', lambda folder: None)
    with pytest.raises(DataError, match='cannot be exported: as a chat, it reads otherwise'):
        exported.taught(llava).export(tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_old_bounds_of_pixels_do_not_win(tmp_path):
    base = write(FAST['qwen2_5_vl'], tmp_path / 'base')
    file = base / 'preprocessor_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(min_pixels=56 * 56, max_pixels=999 * 784)))
    out = VLMEmbedder.from_pretrained(base, device='cpu', max_pixels=3136).export(tmp_path / 'out')
    said = json.loads((out / 'preprocessor_config.json').read_text())
    assert said['size']['longest_edge'] == 3136
    assert 'max_pixels' not in said
    again = VLMEmbedder.from_pretrained(out, device='cpu')
    assert again.image_processor.size['longest_edge'] == 3136


def test_a_template_is_plain_data(llava):
    text = chat_template(VLMEmbedder.from_pretrained(llava, device='cpu'))
    assert text.startswith('{#- vlm2rec {')
    assert text.count('#}') == 1
