"Questions in batches, against one by one; and what a shop's purchases ask."

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_shops import bought_once

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.base.ragged import PAD
from vlm2rec_lab.prompts.lessons import (
    Question,
    ask,
    customer_names,
    make_wording,
    next_lessons,
    next_questions,
    question,
    shown_lessons,
    shown_questions,
    together,
)
from vlm2rec_lab.prompts.templates import TEMPLATES, Template, templates_for, tokens_of
from vlm2rec_lab.ranking.candidates import with_negatives

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10**6)
PLAIN = Template('shown', '{user} | {history} | {candidates}', '{item}')


def letters(word):
    "A token for each letter; a space has none."
    return [ord(x) for x in word if x != ' ']


@st.composite
def shops(draw):
    "A wording of a few items, who has what, and questions of words and items in any order."
    n = draw(st.integers(1, 6))
    modalities = draw(st.lists(st.sampled_from(['text', 'image', 'sound']), unique=True))
    there = {m: np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))) for m in modalities}
    there = {m: t if t.any() else ~t for m, t in there.items()}
    rng = np.random.default_rng(draw(seeds))
    vectors = {m: rng.normal(size=(n, 3)) * t[:, None] for m, t in there.items()}
    names = draw(st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=3), min_size=n, max_size=n, unique_by=tuple))
    how = dict(
        words=draw(st.integers(1, 3)), named=not modalities or draw(st.booleans()), end=draw(st.integers(10, 12))
    )
    pieces = st.lists(st.one_of(st.integers(0, n - 1), st.text('ab0 ', max_size=3)), max_size=8)
    asked = draw(st.lists(st.builds(Question, pieces, pieces), min_size=1, max_size=5))
    return make_wording(letters, names, vectors, **how), there, asked


@settings(max_examples=150, deadline=None)
@given(shops())
def test_a_batch_is_its_questions_one_by_one(drawn):
    "Tokens, kinds, whole words, items that are shown, and answers with their end."
    wording, there, asked = drawn
    assert all((wording.there[m] == t).all() for m, t in there.items())
    calls = wording.names if wording.named else [[]] * len(wording.names)
    how = dict(modalities=tuple(there), words=wording.words, there=there)
    plain = [tokens_of(q.pieces, letters, calls, **how) for q in asked]
    longest = max(len(row['tokens']) for row, _ in plain)
    batch = ask(wording, asked, most=longest)
    assert batch.tokens.shape == batch.mask.shape == batch.words.shape == batch.kinds.shape == (len(asked), longest)
    for at, (row, _) in enumerate(plain):
        size = len(row['tokens'])
        assert batch.mask[at].tolist() == [True] * size + [False] * (longest - size)
        for k in ('tokens', 'kinds', 'words'):
            assert getattr(batch, k)[at].tolist() == row[k] + [0] * (longest - size), k
    for m in there:
        assert torch.equal(batch.shown[m], wording.vectors[m][[i for _, shown in plain for i in shown[m]]])
    said = [tokens_of(q.answer, letters, wording.names)[0]['tokens'] + [wording.end] for q in asked]
    width = max(map(len, said))
    assert batch.answers.tolist() == [x + [-100] * (width - len(x)) for x in said]
    if longest:
        first = [len(row['tokens']) for row, _ in plain].index(longest)
        with pytest.raises(DataError, match=f'question {first} has {longest} tokens, and {longest - 1} are allowed'):
            ask(wording, asked, most=longest - 1)


def test_nothing_to_ask_is_told():
    with pytest.raises(DataError, match='no question'):
        ask(make_wording(letters, [[2]]), [])


def test_the_only_picture_is_shown():
    "And pictures that are all alike, which differ from their mean by nothing."
    for v in (np.array([[0, 0], [1, 2.0]]), np.ones((2, 2))):
        assert make_wording(letters, [[2], [3]], dict(image=v)).there['image'].tolist() == v.any(1).tolist()


def known_questions(split, users):
    "{(pieces, answer): row} of all training rows by all templates that are learned from."
    found = {}
    for template in templates_for('next'):
        for row, (u, h, i) in enumerate(zip(split.train.users, split.train.history, split.train.targets)):
            q = question(template, user=users[u], history=h[h != PAD].tolist(), item=[i])
            found[tuple(q.pieces), tuple(q.answer)] = row
    return found


def drawn_of(lessons, seed):
    return lessons(np.random.default_rng(seed))


@few
@given(seeds, st.integers(1, 7))
def test_lessons_are_training_rows_up_to_some_of_each_customer(seed, draws):
    "By templates that are not held out; each row at most once; nothing shows its own answer."
    split = bought_once(seed)
    users = customer_names(split)
    lessons, every = next_lessons(split, users, draws), known_questions(split, users)
    drawn = drawn_of(lessons, seed)
    rows = [every[tuple(q.pieces), tuple(q.answer)] for q in drawn]
    assert len(rows) == len(set(rows))
    count = np.bincount(split.train.users[rows], minlength=len(users))
    assert (count == np.minimum(np.bincount(split.train.users, minlength=len(users)), draws)).all()
    assert not any(q.answer[0] in q.pieces for q in drawn)
    assert drawn_of(lessons, seed) == drawn != drawn_of(lessons, seed + 1)


def test_in_time_every_row_is_asked_by_every_template():
    split = bought_once(users=4)
    users = customer_names(split)
    lessons, every, rng = next_lessons(split, users, 1), known_questions(split, users), np.random.default_rng(0)
    assert {(tuple(q.pieces), tuple(q.answer)) for _ in range(200) for q in lessons(rng)} == set(every)


def parts_of(q):
    "Name, history and candidates of a question by PLAIN."
    first, second = (k for k, p in enumerate(q.pieces) if p == '|')
    return ' '.join(q.pieces[:first]), q.pieces[first + 1 : second], q.pieces[second + 1 :]


@few
@given(seeds, st.integers(2, 6), st.integers(1, 3))
def test_candidates_are_the_answer_and_what_is_not_owned(seed, candidates, draws):
    split = bought_once(seed, items=40)
    users = customer_names(split)
    offsets, have = split.user_items
    lessons = shown_lessons(split, users, candidates, draws, [*TEMPLATES, PLAIN])
    every, count = drawn_of(lessons, seed), np.zeros(len(users), int)
    assert every == drawn_of(lessons, seed)
    assert 'room' in templates_for('shown', held_out=True)[0].ask and not any('room' in q.pieces for q in every)
    for q in drawn_of(shown_lessons(split, users, candidates, draws, [PLAIN]), seed):
        name, history, among = parts_of(q)
        u = users.index(name)
        own = have[offsets[u] : offsets[u + 1]].tolist()
        count[u] += 1
        assert q.answer[0] in among and q.answer[0] in own and q.answer[0] not in history and set(history) <= set(own)
        assert not (set(among) - set(q.answer)) & set(own)
        assert 2 <= len(among) == len(set(among)) <= candidates
    assert (count == np.minimum(np.bincount(split.train.users, minlength=len(users)), draws)).all()


def test_the_answer_stands_anywhere_among_the_candidates():
    split = bought_once(items=40)
    drawn = drawn_of(shown_lessons(split, customer_names(split), 4, 5, [PLAIN]), 0)
    places = {parts_of(q)[2].index(q.answer[0]) for q in drawn}
    assert places == {0, 1, 2, 3}


def test_rows_with_negatives_ask_among_them():
    "In their order, each once, PAD left out; the order of candidates is that of the seed."
    split = with_negatives(bought_once(items=12, longest=9, shortest=5), 6)
    rows, users = split.test, customer_names(split)
    assert (rows.negatives == PAD).any()
    asked = shown_questions(rows, PLAIN, users)
    for q, u, h, i, n in zip(asked, rows.users, rows.history, rows.targets, rows.negatives, strict=True):
        name, history, among = parts_of(q)
        assert (name, history, q.answer) == (users[u], h[h != PAD].tolist(), [i])
        assert sorted(among) == sorted([i, *n[n != PAD]])
    assert asked == shown_questions(rows, PLAIN, users) != shown_questions(rows, PLAIN, users, seed=1)
    with pytest.raises(DataError, match='no negatives'):
        shown_questions(bought_once().test, PLAIN, users)


def test_rows_are_asked_in_their_order():
    split = bought_once()
    users, rows = customer_names(split), split.test
    template = templates_for('next', held_out=True)[0]
    asked = next_questions(rows, template, users)
    for q, u, h, i in zip(asked, rows.users, rows.history, rows.targets, strict=True):
        assert q == question(template, user=users[u], history=h[h != PAD].tolist(), item=[i])
    two = rows.take([0, 1])
    mixed = next_questions(two, [template, TEMPLATES[0]], users)
    assert mixed == [next_questions(two, t, users)[k] for k, t in enumerate((template, TEMPLATES[0]))]


def test_an_empty_history_is_asked_too():
    split = bought_once()
    rows = replace(split.test, history=np.full_like(split.test.history, PAD))
    wording = make_wording(letters, [[2, 3 + i] for i in range(15)], dict(image=np.eye(15)))
    asked = ask(wording, next_questions(rows, TEMPLATES[0], customer_names(split)))
    assert len(asked.shown['image']) == 0 and not asked.kinds.any() and asked.mask.any(1).all()


def test_customers_have_names_of_their_own_where_most_that_are_asked_were_taught():
    split = bought_once()
    users = customer_names(split)
    assert sorted(users, key=lambda u: int(u[5:])) == [f'user {n}' for n in range(1, 21)] != users
    assert users == customer_names(split) != customer_names(split, seed=1)
    offsets, items = split.user_items
    for untaught in (0, 7, 9, 11, 20):  # customers without training purchases
        less = np.diff(offsets).copy()
        less[:untaught] = 0
        bought = np.concatenate([[0], np.cumsum(less)]), items[: less.sum()]
        found = customer_names(replace(split, user_items=bought))
        assert found == ([''] * 20 if untaught > 10 else [''] * untaught + users[untaught:])


def test_lessons_together_are_one_behind_the_other():
    split = bought_once()
    a, b = (next_lessons(split, customer_names(split), n) for n in (1, 3))
    rng = np.random.default_rng(4)
    assert drawn_of(together(a, b), 4) == [*a(rng), *b(rng)]


def test_mistakes_are_told():
    split = bought_once()
    users, none = customer_names(split), replace(split, train=split.train.take([]))
    for make in (next_lessons, lambda s, u: shown_lessons(s, u, 3)):
        with pytest.raises(DataError, match='no training rows'):
            make(none, users)
    for candidates in (1, 16):
        with pytest.raises(DataError, match=f'candidates={candidates}: give 2 to 15'):
            shown_lessons(split, users, candidates)
    assert len(drawn_of(shown_lessons(split, users, 15), 0))  # the whole catalogue may be asked for
