"""Held-out users against a plain loop, on random sequences."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.ragged import PAD, Ragged
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.leave_one_out import hold_out_users
from vlm2rec_lab.shop.rows import check_split

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.base.errors.DataWarning')
CATALOGUE = Catalogue([f'dot-{i}' for i in range(6)], {'text': [None] * 6}, {'text': 'text'})
lists = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=8)


def told(rows):
    "(user, history without padding, target, seen) of each row."
    return [
        (int(u), [int(i) for i in h if i != PAD], int(t), s.tolist())
        for u, h, t, s in zip(rows.users, rows.history, rows.targets, rows.seen)
    ]


@settings(max_examples=80, deadline=None, database=None)
@given(lists, st.data())
def test_held_out_users_never_meet(seqs, data):
    n = sum(len(s) >= 2 for s in seqs)
    train = data.draw(st.integers(0, n))
    valid = data.draw(st.integers(0, n - train))
    test = data.draw(st.integers(0, n - train - valid))
    dataset = Dataset(CATALOGUE, Interactions.of_sequences(seqs), 'random')
    split = check_split(hold_out_users(dataset, train, valid, test, history=4, seed=data.draw(st.integers(0, 9))))
    who = [set(getattr(split, part).users.tolist()) for part in ('train', 'valid', 'test')]
    assert [len(w) for w in who] == [train, valid, test]
    assert len(set.union(*who)) == train + valid + test
    for u, history, target, seen in told(split.valid) + told(split.test):
        *before, last = seqs[u]
        assert (history, target, seen) == (before[-4:], last, sorted({*before} - {last}))
    assert all(len(x) == 0 for u, x in enumerate(Ragged(*split.user_items)) if u not in who[0])
