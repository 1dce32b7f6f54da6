"Scores of all names at once: those of one name at a time, with less work."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from test_prompts import names_of_items, tiny_t5
from transformers import T5ForConditionalGeneration

from vlm2rec_lab.prompts.answers import best_items, make_trie, score_names
from vlm2rec_lab.prompts.model import Asked, PromptModel
from vlm2rec_lab.prompts.scores import all_scores

SHAPES = {
    'plain': {},
    'gated, untied': dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False),
    'gated': dict(feed_forward_proj='gated-gelu', num_decoder_layers=3),
    'few buckets': dict(relative_attention_num_buckets=4, relative_attention_max_distance=6),
}

ATTENTION = ['eager', 'sdpa'] if T5ForConditionalGeneration._supports_sdpa else ['eager']  # by version


def spoken(how, attention='eager', seed=0):
    "A model of two modalities whose adapters and biases of distance say something."
    t5 = tiny_t5(seed, **SHAPES[how], attn_implementation=attention)
    assert t5.config._attn_implementation == attention
    model = PromptModel(t5, dict(text=5, image=7), item_words=1, seed=seed).eval()
    for adapter in t5.adapters.values():
        torch.nn.init.normal_(adapter.up.weight)
    for stack in (t5.encoder, t5.decoder):
        torch.nn.init.normal_(stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    return model


def prompts(rows=3, length=8, seed=0):
    "Prompts of several lengths that show items in two ways."
    torch.manual_seed(seed)
    kinds = torch.zeros(rows, length).long()
    kinds[:, 1], kinds[0, 2] = 1, 2
    mask = torch.arange(length) < torch.randint(3, length + 1, (rows, 1))
    tokens, words = torch.randint(2, 60, (rows, length)), torch.randint(1, 5, (rows, length))
    return Asked(tokens, mask, words, kinds, dict(text=torch.randn(rows, 5), image=torch.randn(1, 7)))


@settings(max_examples=40, deadline=None)
@given(
    names_of_items,
    st.sampled_from(list(SHAPES)),
    st.sampled_from(ATTENTION),
    st.integers(1, 12),
    st.sampled_from([1, 40, 2**15]),
)
def test_all_at_once_or_one_at_a_time(names, how, attention, size, at_once):
    "The same scores, however the trie is cut, and whatever is read at a time."
    model, asked, trie = spoken(how, attention), prompts(), make_trie([list(n) for n in names])
    found = all_scores(model, asked, trie, at_once, size)
    assert torch.allclose(found, score_names(model, asked, trie), rtol=0, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(names_of_items, st.sampled_from(list(SHAPES)), st.sampled_from(ATTENTION))
def test_the_search_finds_the_best_of_all(names, how, attention):
    "Wide enough, for prompts of several lengths and modalities."
    model, asked, trie = spoken(how, attention), prompts(), make_trie([list(n) for n in names])
    items, scores = best_items(model, asked, trie, k=5, beams=200)
    every = all_scores(model, asked, trie)
    best = every.sort(descending=True).values[:, :5]
    assert torch.allclose(scores[:, : best.shape[1]], best, rtol=0, atol=1e-5)
    there = items.clamp(min=0)
    assert torch.allclose(every.gather(1, there)[items >= 0], scores[items >= 0], rtol=0, atol=1e-5)


def test_matrices_of_low_rank_act_too():
    model, asked, trie = spoken('gated, untied'), prompts(), make_trie([[5, 6], [5, 7], [8]])
    before = all_scores(model, asked, trie)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=['q', 'v', 'wo', 'lm_head']), model.t5)
    for name, p in model.t5.named_parameters():
        if 'lora_B' in name:
            torch.nn.init.normal_(p)
    found = all_scores(model.eval(), asked, trie)
    assert torch.allclose(found, score_names(model, asked, trie), rtol=0, atol=1e-5)
    assert not torch.allclose(found, before, atol=0.01)


@pytest.mark.parametrize('size', [8, 32])
def test_each_beginning_is_read_once(size):
    "Tokens that the decoder reads for each prompt: the beginnings, and a few in front of each window."
    model, asked = spoken('plain'), prompts()
    trie = make_trie([[10 + a, 20 + b, 30 + c] for a in range(5) for b in range(5) for c in range(5)])
    inner, read, heard = 1 + 5 + 25 + 125, [], []
    model.t5.decoder.final_layer_norm.register_forward_hook(lambda m, x, y: read.append(y[..., 0].numel()))
    cross = model.t5.decoder.block[0].layer[1].EncDecAttention.k
    cross.register_forward_hook(lambda m, x, y: heard.append(y[..., 0].numel()))
    all_scores(model, asked, trie, size=size)
    assert sum(read) <= 3 * (inner + size + 3 * (1 + inner // size))
    assert sum(heard) == asked.mask.numel()  # the keys of each prompt are made once


def test_half_precision_stays_near():
    "Numbers of 16 bits have two to three digits."
    model, trie = spoken('plain'), make_trie([[5, 6], [5, 7], [8]])
    whole = all_scores(model, prompts(), trie)
    asked = prompts()
    shown = {m: x.bfloat16() for m, x in asked.shown.items()}
    half = all_scores(model.bfloat16(), Asked(asked.tokens, asked.mask, asked.words, asked.kinds, shown), trie)
    assert half.dtype == torch.float32
    assert (half - whole).abs().max() < 0.05 * whole.abs().max()
