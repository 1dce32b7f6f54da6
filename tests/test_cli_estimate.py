"""`vlm2rec estimate`: the counts of real configurations, a catalogue's share in them, and mistakes."""

import json
import re
import subprocess
import sys

import pytest
from shell import said
from transformers import LlavaConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.tiny import tiny_vlm

ROPE = dict(rope_type='default', rope_theta=5e6, mrope_interleaved=True, mrope_section=[24, 20, 20])
EYE_3 = dict(depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16, patch_size=16)
EYE_3 |= dict(num_position_embeddings=2304, deepstack_visual_indexes=[5, 11, 17])
TEXT_25 = dict(vocab_size=151936, hidden_size=2048, intermediate_size=11008, num_hidden_layers=36)
TEXT_25 |= dict(num_attention_heads=16, num_key_value_heads=2)
TEXT_25 |= dict(rope_parameters=dict(rope_type='default', rope_theta=1e6, mrope_section=[16, 24, 24]))
EYE_25 = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, patch_size=14, out_hidden_size=2048)
EYE_25 |= dict(spatial_merge_size=2, window_size=112, fullatt_block_indexes=[7, 15, 23, 31])


def qwen3(hidden, intermediate, layers, heads):
    "The configuration of a Qwen3-VL."
    text = dict(vocab_size=151936, num_key_value_heads=8, head_dim=128, rope_parameters=ROPE, hidden_size=hidden)
    text |= dict(intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads)
    eye = EYE_3 | dict(out_hidden_size=hidden)
    return Qwen3VLConfig(text_config=text, vision_config=eye, tie_word_embeddings=True)


REAL = {  # configuration, parameters, layers with adapters, parameters of adapters of rank 16, tokens a picture
    'qwen2_5_vl_3b': (
        Qwen2_5_VLConfig(text_config=TEXT_25, vision_config=EYE_25, tie_word_embeddings=True),
        (3_754_622_976, 252, 29_933_568, 64),
    ),
    'qwen3_vl_2b': (qwen3(2048, 6144, 28, 16), (2_127_532_032, 196, 17_432_576, 49)),
    'qwen3_vl_4b': (qwen3(2560, 9728, 36, 32), (4_437_815_808, 252, 33_030_144, 49)),
    'llava_7b': (
        LlavaConfig(text_config=dict(model_type='llama', vocab_size=32064)),
        (7_063_427_072, 224, 39_976_960, 576),
    ),
}


@pytest.mark.parametrize('name', REAL)
def test_the_counts_of_true_configurations(name, tmp_path):
    "A folder with nothing but config.json is enough."
    config, (parameters, layers, adapters, tokens) = REAL[name]
    config.save_pretrained(tmp_path / name)
    status, out, _ = said('estimate', '--model', tmp_path / name, '--rank', 16, '--autocast', 'bfloat16')
    assert status == 0
    assert f'{parameters:,} parameters in bfloat16' in out and f'rank 16 on {layers} layers, {adapters:,}' in out
    assert f'\n{tokens} tokens a picture' in out


def test_a_card_and_a_file(tmp_path):
    "What fits is said, and written where a file is named."
    REAL['qwen3_vl_2b'][0].save_pretrained(tmp_path / 'model')
    file = tmp_path / 'e.json'
    how = ['--model', tmp_path / 'model', '--items', 5000, '--gpu-gb', 24, '--out', file, '--chunk', 16]
    status, out, _ = said('estimate', *how)
    assert status == 0 and re.search(r'as asked +[\d.]+ +(yes|no)', out) and 'fits 24 GB' in out
    assert 'in chunks of 16, recomputing' in out and 'with --autocast bfloat16: ' in out
    found = json.loads(file.read_text())
    assert found['run']['chunk'] == 16 and found['run']['items'] == 5000
    assert found['parts']['picture features'] == 5000 * 49 * 4 * 2048 * 2  # three deeper layers beside the first
    assert found['memory'] == sum(found['parts'].values()) and found['command'].startswith('vlm2rec estimate')


def test_a_catalogue_tells_its_sizes(tmp_path):
    "Items, modalities, history and tokens come from the data; an option goes before them."
    file = tmp_path / 'e.json'
    how = ['estimate', '--data', 'studio:text-easy', '--out', file]
    status, out, _ = said(*how)
    run = json.loads(file.read_text())['run']
    assert status == 0 and 'by the tokenizer of the model' in out
    assert (run['items'], run['history'], run['texts'], run['pictures']) == (600, 6, 1, 1)
    assert 5 < run['text_tokens'] < 30 and json.loads(file.read_text())['sizes']['picture_tokens'] == 4
    said(*how, '--items', 9, '--text-tokens', 40, '--history', 3, '--apart', '--vision', 'somewhere')
    run = json.loads(file.read_text())['run']
    assert (run['items'], run['text_tokens'], run['history'], run['sets']) == (9, 40, 3, 2) and run['on_disk']


def test_a_model_without_a_tokenizer(tmp_path):
    "Words are counted then, and it is said."
    REAL['qwen3_vl_2b'][0].save_pretrained(tmp_path / 'model')
    status, out, _ = said('estimate', '--model', tmp_path / 'model', '--data', 'studio:text-easy')
    assert status == 0 and 'four tokens for three words' in out


def test_a_folder_of_adapters(tmp_path):
    "It is the model below them that counts."
    VLMEmbedder.from_pretrained(tiny_vlm(), lora=4, device='cpu').save_pretrained(tmp_path / 'mine')
    status, out, _ = said('estimate', '--model', tmp_path / 'mine')
    whole = said('estimate')[1]
    assert status == 0 and out.splitlines()[1:3] == whole.splitlines()[1:3]


@pytest.mark.parametrize(
    'argv, hint',
    [
        (['--positions', 'al'], "--positions al is unknown; did you mean 'all'"),
        (['--quantise', '8bit'], "--quantise 8bit"),
        (['--dtype', 'bf16'], "--dtype bf16"),
        (['--autocast', 'bfloat'], "did you mean 'bfloat16'"),
        (['--gpu-gb', '-1'], "'-1' is no finite number above 0"),
        (['--out', 'e.txt'], 'ends in .json'),
        (['--data', 'nowhere'], "no folder 'nowhere'"),
        (['--model', './nowhere'], 'no model folder ./nowhere'),
        (['--histry', '3'], "did you mean '--history'"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_nothing_heavy_is_imported(argv, hint, tmp_path):
    code = (
        'import sys\nfrom vlm2rec_lab.cli import main\n'
        'try:\n    status = main(sys.argv[1:])\nexcept SystemExit as e:\n    status = e.code\n'
        'print("torch" in sys.modules)\nsys.exit(status)'
    )
    command = [sys.executable, '-c', code, 'estimate', *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    *lines, heavy = (done.stderr + done.stdout).strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and hint in lines[0] and heavy == 'False', done


def test_a_model_that_is_nowhere():
    status, _, err = said('estimate', '--model', 'no/such-model')
    assert status == 2 and 'hf download no/such-model' in err
