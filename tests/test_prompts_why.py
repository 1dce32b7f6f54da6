"Why a customer likes an item: the truth, what a text names, what a model says, and the words it shares with others."

import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError, DataWarning
from vlm2rec_lab.prompts.lessons import ask, make_wording
from vlm2rec_lab.prompts.model import PromptModel
from vlm2rec_lab.prompts.t5 import build_t5, build_t5_tokenizer, t5_corpus, word_tokens
from vlm2rec_lab.prompts.templates import Template, templates_for
from vlm2rec_lab.prompts.why import (
    GROUPS,
    NOTHING,
    OPENINGS,
    VALUES,
    check_reasons,
    common_values,
    explain,
    liked_values,
    most_frequent,
    named_values,
    overlap,
    read_reasons,
    reasons_of,
    studio_reasons,
    values_of,
    why_lessons,
    why_questions,
    write_reason,
    write_values,
    written_reasons,
)
from vlm2rec_lab.shop.drawn import ATTRIBUTES, make_studio
from vlm2rec_lab.shop.leave_one_out import leave_one_out


@pytest.fixture(scope='module')
def studio():
    return make_studio('complementary', seed=3, items=60, users=80, length=6, drift=0.3, image_size=16)


@pytest.fixture(scope='module')
def split(studio):
    with pytest.warns(DataWarning, match='fewer than 100'):
        return studio.split(train=40, valid=20, test=20)


words = [v for _, v in VALUES]
some_text = st.lists(
    st.sampled_from([*words, *(f'{w}s' for w in words), 'MUG', 'Red', 'smug', 'redish', 'in', ',', 'glassy', 'vases.'])
    | st.text(max_size=4),
    max_size=8,
).map(' '.join)


# ---- the truth


def test_reasons_are_what_each_customer_preferred_then(studio):
    sold, rng = studio.interactions, np.random.default_rng(0)
    places = rng.permutation(len(sold.items))[:100]
    users = np.searchsorted(sold.offsets, places, side='right') - 1
    found, values = reasons_of(studio, users, places), liked_values(studio, users, places)
    for k, (u, p) in enumerate(zip(users, places)):
        named = set()
        for j, a in enumerate(ATTRIBUTES):
            value = studio.attributes[a][sold.items[p]]
            same = value == studio.tastes[u, p - sold.offsets[u], j]
            assert found[k, j] == same
            named |= {(a, ATTRIBUTES[a][value])} if same else set()
        assert {VALUES[v] for v in np.flatnonzero(values[k])} == named


def test_what_an_item_has_stands_in_its_table(studio):
    found = values_of(studio, np.arange(60))
    for item, row in enumerate(found):
        assert {VALUES[v] for v in np.flatnonzero(row)} == {(a, studio.catalogue.table[a][item]) for a in ATTRIBUTES}


def test_purchases_that_are_none_are_refused(studio):
    for users, places in (([0], [6]), ([1], [0]), ([80], [0]), ([-1], [479]), ([0], [-1])):
        with pytest.raises(DataError, match='is no purchase of customer'):
            reasons_of(studio, users, places)
    with pytest.raises(DataError, match='one of each'):
        reasons_of(studio, [0, 1], [0])
    with pytest.raises(DataError, match='does not know why'):
        reasons_of(replace(studio, tastes=None), [0], [0])


# ---- words


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(list(ATTRIBUTES)), st.integers(0, 5)), st.integers(0, 99))
def test_a_reason_names_what_is_liked_and_nothing_else(liked, seed):
    values = {a: ATTRIBUTES[a][k] for a, k in liked.items()}
    (row,) = named_values([write_reason(values, np.random.default_rng(seed))])
    assert {VALUES[v] for v in np.flatnonzero(row)} == set(values.items())


def test_reasons_are_worded_in_many_ways():
    rng = np.random.default_rng(0)
    said = {write_reason(dict(colour='red', maker='Alba'), rng) for _ in range(200)}
    assert len(said) == 2 * len(OPENINGS)
    assert {write_reason({}, rng) for _ in range(100)} == set(NOTHING)


@settings(max_examples=60, deadline=None)
@given(st.lists(some_text, min_size=1, max_size=5))
def test_named_values_are_whole_words_in_singular_or_plural(texts):
    found = named_values(texts)
    assert found.shape == (len(texts), len(VALUES))
    for text, row in zip(texts, found):
        for (_, value), named in zip(VALUES, row):
            forms = {value.lower() + end for end in ('', 's', 'es')}
            assert named == bool(forms & set(re.split(r'\W', text.lower())))


def test_no_two_values_are_the_same_word():
    forms = [f'{v.lower()}{end}' for _, v in VALUES for end in ('', 's', 'es')]
    assert len(set(forms)) == len(forms)


# ---- what is counted

masks = st.integers(0, 2**32 - 1)


def rows_of(draw, n, share):
    return np.random.default_rng(draw).random((n, len(VALUES))) < share


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), masks, st.sampled_from([0.0, 0.1, 0.5]))
def test_checks_count_as_a_plain_loop_does(n, seed, share):
    named, truth, own = (rows_of([seed, k], n, share) for k in range(3))
    texts = [' '.join(VALUES[v][1] for v in np.flatnonzero(row)) for row in named]
    found = check_reasons(texts, truth, own, draws=20)
    for group, attributes in GROUPS.items():
        n_named = n_liked = n_both = n_own = 0
        for p in range(n):
            for v, (a, _) in enumerate(VALUES):
                if a in attributes:
                    n_named += named[p, v]
                    n_liked += truth[p, v]
                    n_both += named[p, v] and truth[p, v]
                    n_own += named[p, v] and own[p, v]
        nan = math.nan
        precision, recall = n_both / n_named if n_named else nan, n_both / n_liked if n_liked else nan
        f1 = 2 * n_both / (n_named + n_liked) if n_named + n_liked else nan
        wanted = [precision, recall, f1, n_own / n_named if n_named else nan]
        assert np.allclose([e.value for e in found[group].values()], wanted, equal_nan=True)


def test_intervals_hold_the_figure_and_shrink_with_more_purchases():
    rng = np.random.default_rng(0)
    truth = rng.random((400, len(VALUES))) < 0.2
    texts = write_values(truth & (rng.random(truth.shape) < 0.7), rng)
    wide, narrow = (check_reasons(texts[:n], truth[:n], truth[:n])['all']['recall'] for n in (50, 400))
    assert wide.low < wide.value < wide.high and narrow.high - narrow.low < wide.high - wide.low
    assert check_reasons(texts, truth, truth)['all']['precision'].low == 1.0


def test_groups_are_what_pictures_and_texts_tell():
    assert GROUPS['only seen'] == ('colour', 'pattern') and GROUPS['told'] == ('category', 'material', 'maker')


def test_what_is_common_with_the_history(studio, split):
    found = common_values(studio, split.test, share=0.5)
    for row, history, target in zip(found, split.test.history, split.test.targets):
        past = [i for i in history.tolist() if i >= 0]
        for (a, value), named in zip(VALUES, row):
            k = ATTRIBUTES[a].index(value)
            often = sum(studio.attributes[a][i] == k for i in past) >= 0.5 * len(past)
            assert named == (often and studio.attributes[a][target] == k)


def test_the_most_frequent_reason():
    assert most_frequent(['a', None, 'b', 'b', '', '', '']) == 'b'
    with pytest.raises(DataError, match='there is none'):
        most_frequent([None, ''])


# ---- reviews


def test_reviews_are_found_by_their_pair(studio, tmp_path):
    sold, ids = studio.interactions, studio.catalogue.ids
    rng = np.random.default_rng(0)
    wanted = [None] * len(sold.items)
    lines = []
    for p in rng.permutation(len(sold.items))[:60].tolist():
        u = int(np.searchsorted(sold.offsets, p, side='right')) - 1
        wanted[p] = f'text {p}'
        lines.append(f'{sold.user_ids[u]},{ids[sold.items[p]]},text   {p} ')
    (tmp_path / 'r.csv').write_text('\n'.join(['user_id,item_id,text', *lines]))
    notes = []
    assert read_reasons(tmp_path / 'r.csv', studio, notes=notes) == wanted and not notes
    rows = leave_one_out(studio, history=3).test
    assert written_reasons(wanted)(rows, None) == [wanted[p] for p in rows.places]


def test_reviews_that_fit_nothing_are_counted_or_refused(studio, tmp_path):
    sold, ids = studio.interactions, studio.catalogue.ids
    never = next(i for i in range(60) if i not in sold.items[:6])
    good = f'0,{ids[sold.items[0]]},fine'
    odd = ['x,p0000,a', f'0,{ids[never]},a', f'0,{ids[sold.items[1]]},', good.replace('fine', 'again'), '0,y,a']
    (tmp_path / 'r.csv').write_text('\n'.join(['user_id,item_id,text', good, *odd]))
    with pytest.warns(DataWarning, match='5 rows left out: 2 of customers.*1 without.*1 of pairs.*1 with a further'):
        assert read_reasons(tmp_path / 'r.csv', studio)[:2] == ['fine', None]
    (tmp_path / 'none.csv').write_text('\n'.join(['user_id,item_id,text', odd[0]]))
    with pytest.raises(DataError, match='no row has a text and is a purchase of the data; it names x'):
        read_reasons(tmp_path / 'none.csv', studio)
    with pytest.raises(DataError, match="no column 'txt'"):
        read_reasons(tmp_path / 'r.csv', studio, text='txt')


# ---- lessons


def test_lessons_ask_with_history_and_item_and_leave_out_what_has_no_reason(studio, split):
    users = [f'user {u}' for u in range(80)]
    whole = studio_reasons(studio)

    def every_third(rows, rng):
        return [r if p % 3 == 0 else None for r, p in zip(whole(rows, rng), rows.places)]

    lessons = why_lessons(split, users, every_third, draws=99)(np.random.default_rng(0))
    kept = split.train.take(split.train.places % 3 == 0)
    assert len(lessons) == len(kept) < len(split.train)
    asked = {tuple(p for p in q.pieces if isinstance(p, int)) for q in lessons}
    assert asked == {(*h[h >= 0].tolist(), t) for h, t in zip(kept.history, kept.targets)}
    assert not any('tell' in q.pieces for q in lessons)  # the sentence that is held out
    with pytest.raises(DataError, match='no training row has a reason'):
        why_lessons(split, users, lambda rows, rng: [None] * len(rows))
    with pytest.raises(DataError, match='1 reasons for 20 rows'):
        why_questions(split.test, ['x'], templates_for('why')[0], users)


def test_a_shop_of_five_items_learns_its_reasons():
    "Five items, shown by flags alone; each is liked for what it is. No special token is said."
    tokenizer = build_t5_tokenizer(t5_corpus(20))
    encode = word_tokens(tokenizer)
    wording = make_wording(encode, [encode(str(k)) for k in range(5)], dict(image=torch.eye(5)), words=1, named=False)
    model = PromptModel(build_t5(tokenizer, dims=32, layers=1), dict(image=5), item_words=1)
    template = Template('why', 'why does {user} like {item} ?')
    colours = [f'because you like {c} </s> mugs' for c in ATTRIBUTES['colour'][:5]]  # data may look like an end
    shop = make_studio('balanced', items=20, users=5, length=3, image_size=16, new=0)
    rows = leave_one_out(shop, history=2).test
    rows = replace(rows, targets=np.arange(5))
    questions = why_questions(rows, colours, template, [''] * 5)
    adam = torch.optim.AdamW(model.requires_grad_(True).parameters(), lr=0.01)
    for _ in range(120):
        adam.zero_grad()
        model(ask(wording, questions)).mean().backward()
        adam.step()
    said = explain(model.eval(), wording, questions, tokenizer, at_once=2)
    assert said == [text.replace('</s>', '< /s>') for text in colours]
    truth = np.array([[value == c for _, value in VALUES] for c in ATTRIBUTES['colour'][:5]])
    checked = check_reasons(said, truth, truth)['only seen']
    assert checked['recall'].value == checked['precision'].value == 1.0
    assert explain(model, wording, questions[:2], tokenizer, most=3) == ['because you like'] * 2


# ---- shared words


def test_overlap_by_hand():
    found = overlap(['the cat sat on the mat today'], ['the cat sat on the mat'])
    assert found['BLEU-4'] == pytest.approx(100 * (3 / 7) ** 0.25)
    assert found['ROUGE-1'] == pytest.approx(100 * 12 / 13) == found['ROUGE-L']
    assert found['ROUGE-2'] == pytest.approx(100 * 10 / 11)
    assert all(v == pytest.approx(100) for v in overlap(['a b c d'], ['a b c d']).values())


def test_overlap_counts_words_of_any_script_and_no_letters():
    assert overlap(['abcd efgh ijkl mnop'], ['abce efgi ijkm mnoq'])['BLEU-4'] == 0.0
    same = overlap(['красные кружки из глины'], ['красные кружки из глины'])
    assert all(v == pytest.approx(100) for v in same.values())
    with pytest.raises(DataError, match='1 texts and 2 references'):
        overlap(['a'], ['a', 'b'])


def test_overlap_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sacrebleu', None)
    with pytest.raises(ImportError, match=r'pip install "vlm2rec_lab\[words\]"'):
        overlap(['a'], ['a'])
