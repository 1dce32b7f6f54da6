"What went wrong once in prompt models, and must not again."

from dataclasses import replace

import numpy as np
import pytest
import torch
from prompt_shops import bought_once, called, contents, tiny

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.metrics import with_negatives
from vlm2rec_lab.prompts.answers import best_items, make_trie
from vlm2rec_lab.prompts.fit import fit_prompts, item_scores
from vlm2rec_lab.prompts.lessons import Question, ask, customer_names, next_lessons, next_questions, shown_lessons
from vlm2rec_lab.prompts.study import WHOLE, _base_key, figures_asked
from vlm2rec_lab.prompts.t5 import build_t5, build_t5_tokenizer, save_t5
from vlm2rec_lab.prompts.templates import templates_for

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
SPLIT = bought_once()
TEMPLATE = templates_for('next')[0]


def asked_of(split=SPLIT):
    return next_questions(split.test, TEMPLATE, customer_names(split))


@pytest.mark.parametrize('question', [Question(['a', 15], [1]), Question(['a', 1], [15]), Question([-1], [1])])
def test_an_item_that_does_not_exist_is_no_word(question):
    with pytest.raises(DataError, match='give 0 to 14'):
        ask(called(contents('image')), [question, Question(['b', 'c'], ['d'])])


def test_pictures_land_on_no_other_item():
    "Modalities in another order than the model's, and such as it does not read."
    model, both = tiny('image', 'text'), contents('image', 'text')
    turned = called(dict(text=both['text'], image=both['image']))
    for wording in (turned, called(contents('image', 'text', 'sound'))):
        with pytest.raises(DataError, match='what it reads, in its order'):
            model(ask(wording, asked_of()))
    assert model(ask(called(both), asked_of())).isfinite().all()


def test_a_prompt_of_too_many_whole_words_is_told():
    model = tiny(whole_words=12)
    with pytest.raises(DataError, match='11 apart: shorten'):
        model(ask(called({}), [Question(['a'] * 12, [1])]))
    assert model(ask(called({}), [Question(['a'] * 11, [1])])).isfinite().all()


def test_nothing_is_dropped_in_an_answer():
    "Neither in a new model, nor after it was ranked with, nor after it was taught."
    model, wording = tiny('image', dropout=0.5), called(contents('image'))
    asked, trie = ask(wording, asked_of()), make_trie(wording.names)

    def answers():
        found = [best_items(model, asked, trie, 3)[1] for _ in range(2)]
        return torch.equal(*found)

    assert answers()
    item_scores(model, wording, asked_of())
    assert answers() and not any(part.training for part in model.modules())
    fit_prompts(model, wording, next_lessons(SPLIT, customer_names(SPLIT), 1), epochs=1, progress=False)
    assert answers()
    model.train()
    item_scores(model, wording, asked_of())
    assert all(part.training for part in model.modules())


def test_a_run_goes_on_under_its_own_names_alone(tmp_path):
    wording, lessons = called(contents('image')), next_lessons(SPLIT, customer_names(SPLIT), 1)
    how = dict(epochs=2, progress=False, folder=tmp_path)
    fit_prompts(tiny('image'), wording, lessons, **how, callback=lambda records: 'stop')
    with pytest.raises(DataError, match='names'):
        fit_prompts(tiny('image'), replace(wording, names=wording.names[::-1]), lessons, **how)
    assert fit_prompts(tiny('image'), wording, lessons, **how).finished


def test_bases_of_one_name_are_told_apart(tmp_path):
    tokenizer, keys = build_t5_tokenizer(['a word or two'] * 20), []
    for k in range(2):
        torch.manual_seed(k)
        t5 = build_t5(tokenizer, seed=k)
        save_t5(tmp_path / str(k) / 't5', t5, tokenizer)
        keys.append(_base_key(str(tmp_path / str(k) / 't5')))
    assert keys[0] != keys[1]


def test_so_many_candidates_are_listed_as_were_asked_for():
    "Five, the answer and four that its customer does not have, behind the history; every template lists them last."
    users, (offsets, items) = customer_names(SPLIT), SPLIT.user_items
    for question in shown_lessons(SPLIT, users, 5, 9)(np.random.default_rng(0)):
        named = [p for p in question.pieces if isinstance(p, int)]
        user = users.index(f'user {question.pieces[question.pieces.index("user") + 1]}')
        have = set(items[offsets[user] : offsets[user + 1]].tolist())
        assert set(named[:-5]) <= have and len(set(named)) == len(named)
        assert set(named[-5:]) - have == set(named[-5:]) - set(question.answer) and question.answer[0] in named[-5:]


def test_a_full_ranking_is_full_whatever_the_rows_bring():
    model, wording = tiny('image'), called(contents('image'))
    plain, few = (figures_asked(model, wording, s, 2, 3) for s in (SPLIT, with_negatives(SPLIT, 2)))
    assert plain[WHOLE] == few[WHOLE]
