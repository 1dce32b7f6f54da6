"The prompt wing: adapters, item words, and answers that exist."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Config, T5ForConditionalGeneration

from vlm2rec_lab.prompts.adapters import add_adapters
from vlm2rec_lab.prompts.answers import best_items, make_trie, score_names
from vlm2rec_lab.prompts.model import LEARN, Asked, PromptModel, learned_parts

SIZES = dict(vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)


def tiny_t5(seed=0, **how):
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(T5Config(**SIZES | how)).eval()


def plain(tokens, answers=None):
    "Prompts of text alone, every token a word of its own."
    words = torch.arange(1, tokens.shape[1] + 1).expand_as(tokens)
    return Asked(tokens, torch.ones_like(tokens).bool(), words, torch.zeros_like(tokens), {}, answers)


names_of_items = st.lists(
    st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple), min_size=1, max_size=25, unique=True
)


@settings(max_examples=60, deadline=None)
@given(names_of_items)
def test_a_trie_has_every_name_once(names):
    trie, walked = make_trie([list(n) for n in names]), {}

    def walk(node, name):
        children = [(t, c) for t, c in zip(trie.tokens[node].tolist(), trie.children[node].tolist()) if c >= 0]
        below = trie.order[trie.low[node] : trie.high[node]].tolist()
        assert sorted(below) == [i for i, n in enumerate(names) if (*n, 1)[: len(name)] == name]
        for token, child in children:
            walk(child, (*name, token))
        if not children:
            walked[name] = below

    walk(0, ())
    assert walked == {(*n, 1): [i] for i, n in enumerate(names)}


@settings(max_examples=25, deadline=None)
@given(names_of_items, st.integers(1, 8), st.data())
def test_an_answer_is_always_an_item_that_may_be_answered(names, k, data):
    "Distinct, of the catalogue, not left out, best first, as many as there can be; however narrow the search."
    model, trie = PromptModel(tiny_t5(), {}).eval(), make_trie([list(n) for n in names])
    asked = plain(torch.tensor([[3, 4], [9, 2]]))
    left_out = [data.draw(st.sets(st.integers(0, len(names) - 1))) for _ in range(2)]
    items, scores = best_items(model, asked, trie, k, left_out, beams=data.draw(st.sampled_from([1, 30])))
    every = score_names(model, asked, trie)
    for row in range(2):
        found = [i for i in items[row].tolist() if i >= 0]
        assert len(found) == len(set(found)) == min(k, len(names) - len(left_out[row]))
        assert not set(found) & left_out[row] and set(found) <= set(range(len(names)))
        assert torch.allclose(scores[row, : len(found)], every[row, found], atol=1e-4)
        assert scores[row, : len(found)].tolist() == sorted(scores[row, : len(found)].tolist(), reverse=True)


def test_scores_are_those_of_t5_itself():
    "The log probability of a name, token by token, as T5's own loss has it."
    model, names = PromptModel(tiny_t5(), {}).eval(), [[5], [6, 7], [8, 9, 10]]
    asked = plain(torch.randint(2, 60, (2, 5)))
    found = score_names(model, asked, make_trie(names), at_once=2)
    for item, name in enumerate(names):
        for row in range(2):
            labels = torch.tensor([[*name, 1]])
            x = model.embed(asked)[row : row + 1]
            loss = model.t5(inputs_embeds=x, labels=labels).loss
            assert abs(found[row, item] + loss * labels.shape[1]) < 1e-4


def test_a_long_answer_counts_no_more_than_a_short_one():
    "The loss of each answer is T5's own for that answer alone, whatever stands beside it."
    model = PromptModel(tiny_t5(), {}).eval()
    answers = torch.tensor([[5, 6, 7, 1], [8, 1, -100, -100]])
    asked = plain(torch.randint(2, 60, (2, 5)), answers)
    found, x = model(asked), model.embed(asked)
    for row, length in ((0, 4), (1, 2)):
        one = model.t5(inputs_embeds=x[row : row + 1], labels=answers[row : row + 1, :length]).loss
        assert abs(found[row] - one) < 1e-5


def test_adapters_are_the_identity_at_the_beginning_on_every_t5():
    for how in ({}, dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False)):
        t5 = tiny_t5(**how)
        x, y = torch.randint(2, 60, (2, 5)), torch.randint(2, 60, (2, 3))
        before = t5(input_ids=x, labels=y).logits
        adapters = add_adapters(t5)
        assert torch.equal(t5(input_ids=x, labels=y).logits, before)
        for a in adapters.values():
            torch.nn.init.ones_(a.up.bias)
        assert not torch.allclose(t5(input_ids=x, labels=y).logits, before)


def pictured(answers=3):
    "Four prompts of six tokens with a picture each, of two words."
    asked = plain(torch.randint(2, 60, (4, 6)), torch.randint(2, 60, (4, answers)))
    asked.kinds[:, 1:3] = 1
    asked.shown['image'] = torch.randn(4, 6)
    return asked


@pytest.mark.parametrize('learn', LEARN)
def test_what_is_frozen_stays(learn):
    "And all that learns moves, whichever way."
    model = PromptModel(tiny_t5(), dict(image=6), learn=learn, rank=2)
    before = {n: p.clone() for n, p in model.named_parameters()}
    asked, step = pictured(), torch.optim.SGD(learned_parts(model), lr=0.1)
    for _ in range(2):  # what lies before an adapter moves once the adapter has
        step.zero_grad()
        model(asked).mean().backward()
        step.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in before if n.startswith(('words', 'kinds'))} == {'words.weight', 'kinds.weight'} - moved
    assert ('t5.shared.weight' in moved) == (learn == 'everything')
    assert all(('lora_' in n) == (learn == 'lora') for n in moved if '.q.' in n and learn != 'everything')


@pytest.mark.parametrize('how', [{}, dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False)], ids=str)
def test_all_ways_start_alike(how):
    "With the same mappings and the answers of the T5 that was given; the seed alone decides the rest."
    asked, t5 = pictured(), tiny_t5(**how)
    models = {learn: PromptModel(tiny_t5(**how), dict(image=6), learn=learn).eval() for learn in LEARN}
    for learn, model in models.items():
        x = model.embed(asked)
        assert torch.equal(x, models['adapters'].embed(asked)), learn
        assert torch.allclose(model(asked).mean(), t5(inputs_embeds=x, labels=asked.answers).loss, atol=1e-5), learn
        again = PromptModel(tiny_t5(**how), dict(image=6), learn=learn)
        other = PromptModel(tiny_t5(**how), dict(image=6), learn=learn, seed=1)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))
        assert not torch.equal(model.mapping.image.inner.weight, other.mapping.image.inner.weight)


def test_lora_is_a_change_of_queries_and_values():
    "Matrices beside the weights answer as weights that have them added; no other layer has any."
    model = PromptModel(tiny_t5(), dict(image=6), learn='lora', rank=3).eval()
    asked, layers = pictured(), {n: m for n, m in model.t5.named_modules() if hasattr(m, 'lora_A')}

    assert {n.rsplit('.', 1)[1] for n in layers} == {'q', 'v'} and len(layers) == 2 * (2 + 2 * 2)
    for m in layers.values():
        torch.nn.init.normal_(m.lora_B['default'].weight, std=0.1)
    told = model(asked).detach()
    with torch.no_grad():
        for m in layers.values():
            m.base_layer.weight += 2 * m.lora_B['default'].weight @ m.lora_A['default'].weight
            m.lora_B['default'].weight.zero_()
    assert torch.allclose(model(asked), told, atol=1e-5)


def test_a_shop_of_five_items_is_learned():
    "After each item comes the next one; the last is left out of nothing: HR@1 is 1."
    torch.manual_seed(0)
    model, trie = PromptModel(tiny_t5(), dict(image=5), item_words=1), make_trie([[10 + i, 20 + i] for i in range(5)])
    last = torch.arange(5)
    tokens = torch.stack([10 + last, 20 + last, torch.full((5,), 2)], 1)
    kinds, shown = torch.tensor([[0, 0, 1]] * 5), dict(image=torch.eye(5))
    words = torch.tensor([[1, 1, 1]] * 5)
    asked = Asked(tokens, torch.ones(5, 3).bool(), words, kinds, shown, trie.names[(last + 1) % 5])
    adam = torch.optim.Adam(learned_parts(model), lr=0.01)
    for _ in range(150):
        adam.zero_grad()
        model(asked).mean().backward()
        adam.step()
    found, _ = best_items(model.eval(), asked, trie, k=1)
    assert found[:, 0].tolist() == [1, 2, 3, 4, 0]
