"A T5 that reads prompts: what is opened, what is refused, and how words of a shop become tokens."

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.prompts.t5 import (
    MARKS,
    build_t5,
    build_t5_tokenizer,
    corrupted,
    corruption_loss,
    open_t5,
    pretrain_t5,
    save_t5,
    t5_corpus,
    tiny_t5,
    word_tokens,
)


@pytest.fixture(scope='module')
def shipped():
    return open_t5(tiny_t5())


def pieces_tokenizer():
    "A tokenizer as T5 has it: pieces that begin with a mark of the space, the end among the ordinary pieces."
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = sorted(set('abcdefghijklmnopqrstuvwxyz</>_0123456789'))
    known = ['<pad>', '</s>', '<unk>', '▁', *letters, '▁red', '▁mug', 's']
    pieces = [(p, 0.0 if k < 3 else -float(k)) for k, p in enumerate(dict.fromkeys(known))]
    core = Tokenizer(models.Unigram(pieces, unk_id=2))
    core.normalizer, core.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.add_special_tokens([AddedToken(t, special=True) for t in ('<pad>', '</s>', '<unk>', '<extra_id_0>')])
    marks = dict(pad_token='<pad>', eos_token='</s>', unk_token='<unk>', extra_special_tokens=['<extra_id_0>'])
    return PreTrainedTokenizerFast(tokenizer_object=core, **marks)


@pytest.fixture(scope='module')
def tokenizers(shipped):
    return dict(ours=shipped[1], pieces=pieces_tokenizer())


words = st.text(min_size=1, max_size=12) | st.lists(
    st.sampled_from(['</s>', '<extra_id_0>', '<pad>', '<', '>', '/s', 'red', '＜/s＞', '<unk>', '7']), max_size=5
).map(''.join)


@pytest.mark.parametrize('kind', ['ours', 'pieces'])
@settings(max_examples=150, deadline=None)
@given(word=words)
def test_no_word_becomes_a_special_token(tokenizers, kind, word):
    tokenizer = tokenizers[kind]
    found = word_tokens(tokenizer)(word)
    assert not set(found) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})


def test_an_end_among_the_pieces_is_found_without_the_guard():
    "The other way round: the plain tokenizers do say the end, so that the test above can fail."
    for tokenizer in (pieces_tokenizer(), open_t5(tiny_t5())[1]):
        assert tokenizer('</s>', add_special_tokens=False)['input_ids'][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize('kind', ['ours', 'pieces'])
def test_the_signs_of_a_special_token_are_kept(tokenizers, kind):
    found = tokenizers[kind].decode(word_tokens(tokenizers[kind])('a</s>b'))
    assert found.replace(' ', '') == 'a</s>b'


def test_wide_signs_that_become_an_end_are_left_out(tokenizers):
    tokenizer, word = tokenizers['pieces'], 'red＜/s＞'
    assert tokenizer.eos_token_id in tokenizer(word, add_special_tokens=False)['input_ids']
    assert tokenizer.eos_token_id not in word_tokens(tokenizer)(word)


@pytest.mark.parametrize('kind', ['ours', 'pieces'])
def test_words_are_written_as_behind_a_space(tokenizers, kind):
    tokenizer, text = tokenizers[kind], 'red mug s 12'
    tokens = word_tokens(tokenizer)
    whole = tokenizer(f'x {text}', add_special_tokens=False)['input_ids']
    assert [t for word in text.split() for t in tokens(word)] == whole[-sum(len(tokens(w)) for w in text.split()) :]
    assert tokenizer.decode([t for word in text.split() for t in tokens(word)]).strip() == text


def test_what_a_word_gave_may_be_changed(tokenizers):
    tokens = word_tokens(tokenizers['ours'])
    tokens('mug').append(1)
    assert 1 not in tokens('mug')


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**12))
def test_a_number_is_its_digits(tokenizers, number):
    found = word_tokens(tokenizers['ours'])(str(number))
    said = [tokenizers['ours'].decode([t]).strip() for t in found]
    assert [d for d in said if d] == list(str(number))


def test_a_tokenizer_of_other_texts_keeps_digits_apart_too():
    tokenizer = build_t5_tokenizer(['year 1999 1999 1999 1999'] * 50)
    assert len([t for t in word_tokens(tokenizer)('1999') if tokenizer.decode([t]).strip()]) == 4


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 120), st.floats(0.01, 0.99), st.integers(1, 9), st.integers(0, 99))
def test_what_is_cut_out_fits_into_the_gaps(n, share, mean, seed):
    sentence = list(range(100, 100 + n))
    read, said = corrupted(sentence, np.random.default_rng(seed), share, mean)
    assert said[-1] == 1
    gaps, at = {}, None
    for t in said[:-1]:
        at, new = (t, []) if t < 100 else (at, [t])
        gaps[at] = gaps.get(at, []) + new
    assert list(gaps) == [t for t in read if t < 100] == list(range(2, 2 + len(gaps)))
    assert [x for t in read for x in (gaps[t] if t < 100 else [t])] == sentence
    assert all(gaps.values()) and sum(map(len, gaps.values())) == min(max(1, round(n * share)), n - 1)


def test_the_shipped_one_is_light_and_knows_what_it_read(shipped):
    t5, tokenizer = shipped
    assert sum(f.stat().st_size for f in tiny_t5().iterdir()) < 1e6
    assert t5.dtype == torch.float32 and not t5.training
    assert tokenizer.convert_tokens_to_ids(list(MARKS[:3])) == [0, 1, 2]
    texts = t5_corpus(15, seed=4321)
    assert corruption_loss(t5, tokenizer, texts) < 0.5 * corruption_loss(build_t5(tokenizer), tokenizer, texts)


def test_the_shipped_vocabulary_is_made_by_the_corpus(shipped):
    assert shipped[1].get_vocab() == build_t5_tokenizer(t5_corpus()).get_vocab()


def test_the_same_seed_gives_the_same_weights():
    how = dict(steps=3, batch=4, products=20, progress=False, dims=16, layers=1)
    (a, _, _), (b, _, _), (c, _, _) = (pretrain_t5(**how, seed=s) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters()))


@pytest.mark.parametrize('how', [{}, dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False)])
def test_what_is_saved_is_opened_and_says_the_same(tmp_path, shipped, how):
    torch.manual_seed(0)
    sizes = dict(vocab_size=700, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    t5 = T5ForConditionalGeneration(T5Config(**sizes, **how)).eval()
    save_t5(tmp_path / 'a', t5, shipped[1], torch.float32)
    again, _ = open_t5(tmp_path / 'a')
    x, y = torch.randint(20, 600, (2, 7)), torch.randint(20, 600, (2, 3))
    assert torch.equal(again(input_ids=x, labels=y).logits, t5(input_ids=x, labels=y).logits)


def test_what_is_no_t5_is_refused(tmp_path, shipped):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=700)
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path / 'bert')
    shipped[1].save_pretrained(tmp_path / 'bert')
    with pytest.raises(DataError, match="is a 'bert', and prompts are read by a T5"):
        open_t5(tmp_path / 'bert')
    with pytest.raises(DataError, match='there is no folder'):
        open_t5(str(tmp_path / 'nowhere'))
    with pytest.raises(FileNotFoundError, match='hf download no/such-model'):
        open_t5('no/such-model')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='has no config.json'):
        open_t5(tmp_path / 'empty')


def test_pickles_are_not_read(tmp_path, shipped):
    t5, tokenizer = shipped
    folder = save_t5(tmp_path / 'a', t5, tokenizer)
    (folder / 'model.safetensors').unlink()
    torch.save(t5.state_dict(), folder / 'pytorch_model.bin')
    with pytest.raises(DataError, match='no weights in safetensors'):
        open_t5(folder)


def test_code_of_a_checkpoint_does_not_run(tmp_path, shipped):
    folder = save_t5(tmp_path / 'a', *shipped)
    config = json.loads((folder / 'config.json').read_text())
    config |= dict(model_type='mine', auto_map=dict(AutoConfig='mine.Config'))
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'mine.py').write_text('raise SystemExit("code of a checkpoint ran")')
    with pytest.raises(DataError, match='config.json cannot be read'):
        open_t5(folder)


def test_a_tokenizer_must_be_there_and_fit(tmp_path, shipped):
    t5, tokenizer = shipped
    folder = save_t5(tmp_path / 'a', t5, tokenizer)
    (folder / 'tokenizer.json').unlink()
    with pytest.raises(DataError, match='has no tokenizer'):
        open_t5(folder)
    larger = build_t5_tokenizer(t5_corpus(20), vocab=300)
    larger.add_tokens([f'<user_{k}>' for k in range(1000)])
    save_t5(tmp_path / 'b', t5, larger)
    with pytest.raises(DataError, match='the tokenizer is not that of the model'):
        open_t5(tmp_path / 'b')


def test_a_missing_checkpoint_says_what_makes_it(monkeypatch, tmp_path):
    monkeypatch.setattr('vlm2rec_lab.base.files.resources.files', lambda package: tmp_path / package)
    monkeypatch.setattr('sys.prefix', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='python -m vlm2rec_lab.prompts.t5'):
        tiny_t5()
