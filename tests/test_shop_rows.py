"""Rows and splits as values: many rows at once, fingerprints, and files that are not what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from shop_worlds import CLUB, CLUB_FILMS, HAND, SHUFFLED

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.base.ragged import PAD
from vlm2rec_lab.shop import rows as room
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.rows import HEADER, Rows, Windows, read_split, rows_at, split_difference
from vlm2rec_lab.shop.splits import cold_items, temporal_split

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.base.errors.DataWarning')
NEW = cold_items(CLUB, share=0.15, history=5)
WITH_NEGATIVES = replace(NEW, test=replace(NEW.test, negatives=np.tile([[1, 2]], (len(NEW.test), 1))))


def test_more_rows_than_one_block_are_the_plain_loop():
    many = [np.random.default_rng(u).integers(0, 50, u % 7 + 1).tolist() for u in range(90_000)]
    inter = Interactions.of_sequences(many)
    got = rows_at(inter, np.arange(len(inter.items)), history=3, seen=False)
    plain = [(xs[max(0, k - 3) : k] + [PAD] * 3)[:3] for xs in many for k in range(len(xs))]
    assert len(plain) > 1 << 18
    assert got.history.tolist() == plain
    assert got.history.dtype == np.int64


SHOPS = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8)


@given(SHOPS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_windows_answer_as_if_they_were_written_out(sequences, history, random):
    inter = Interactions.of_sequences(sequences)
    n = len(inter.items)
    late = rows_at(inter, np.arange(n), history)
    plain = np.array(
        [(xs[max(0, k - history) : k] + [PAD] * history)[:history] for xs in sequences for k in range(len(xs))]
    )
    plain = plain.reshape(n, history)
    index = np.array([random.randrange(n) for _ in range(5 * (n > 0))], np.int64)
    assert np.array_equal(np.concatenate([np.zeros((0, history), int), *late.histories()]), plain)
    assert np.array_equal(late.take(index).take(np.arange(len(index))[::-1]).history, plain[index][::-1])
    early = Rows(late.users, plain, late.targets, late.seen_offsets, late.seen_items, late.places)
    assert (late.width, late.sizes.tolist()) == (early.width, early.sizes.tolist())
    assert late.newest.tolist() == early.newest.tolist()
    assert 'history' not in vars(late)
    assert np.array_equal(late.history, plain)
    assert late.history is late.history


@given(SHOPS, st.integers(1, 12))
def test_what_was_had_is_the_same_in_blocks_of_any_size(sequences, size):
    inter = Interactions.of_sequences(sequences)
    at = np.arange(len(inter.items))
    start = np.repeat(inter.offsets[:-1], inter.lengths)
    for without in (None, inter.items):
        whole = room._distinct(*room._spans(inter.items, start, at - start), without)
        blocks = room._even_blocks(at - start, size)
        assert [k for b in blocks for k in range(len(at))[b]] == at.tolist()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(room, '_even_blocks', lambda lengths: blocks)
            patch.setattr(room, '_MANY', 2)  # in threads
            found = room._had(inter.items, start, at - start, without)
        assert [x.tolist() for x in found] == [x.tolist() for x in whole]


def test_windows_are_not_written_out_by_what_a_training_asks_first():
    pytest.importorskip('torch')
    from vlm2rec_lab.shop.leave_one_out import leave_one_out
    from vlm2rec_lab.shop.rows import warm_items
    from vlm2rec_lab.training.batches import make_batch, training_rows

    split = leave_one_out(CLUB, history=5)
    for positions in ('last', 'all'):
        make_batch(split, training_rows(split, positions)[:4], positions)
    repr(split), warm_items(split), split.fingerprint, split.train.take([0, 1])
    assert isinstance(split.train._windows, Windows)
    assert all('history' not in vars(getattr(split, part)) for part in room.PARTS)
    written = replace(split, train=replace(split.train), valid=replace(split.valid), test=replace(split.test))
    assert 'history' in vars(written.train)
    assert written.fingerprint == split.fingerprint


def test_equal_splits_have_equal_fingerprints():
    again = cold_items(CLUB, share=0.15, history=5)
    assert (again.fingerprint, split_difference(NEW, again)) == (NEW.fingerprint, '')
    assert replace(NEW, name='x', notes=(), about={}).fingerprint == NEW.fingerprint


def moved():
    targets = np.where(np.arange(len(NEW.test)) == 3, (NEW.test.targets + 1) % 150, NEW.test.targets)
    return replace(NEW, test=replace(NEW.test, targets=targets))


CHANGED = {  # name: (function that makes the other split, words of the difference)
    'a target moved': (moved, 'test/targets differs in 1 of'),
    'fewer test rows': (lambda: replace(NEW, test=NEW.test.take(np.arange(9))), 'test/users has shape'),
    'negatives': (lambda: WITH_NEGATIVES, 'only the second has test/negatives'),
    'an item renamed': (
        lambda: replace(NEW, catalogue=replace(CLUB_FILMS, ids=CLUB_FILMS.ids[:-1] + ('zz',))),
        "item 149 is 'm149' in the first and 'zz' in the second",
    ),
    'a user less': (
        lambda: replace(NEW, user_ids=NEW.user_ids[:-1]),
        f"is '{NEW.user_ids[-1]}' in the first and not in the second, which has",
    ),
}


@pytest.mark.parametrize('name', CHANGED)
def test_a_difference_is_found_and_said(name):
    make, why = CHANGED[name]
    other = make()
    assert other.fingerprint != NEW.fingerprint
    assert why in split_difference(NEW, other)


@pytest.fixture
def saved(tmp_path):
    file = tmp_path / 'cold.safetensors'
    NEW.save(file)
    return file


def test_a_saved_split_comes_back_byte_for_byte(saved):
    again, first = read_split(saved, CLUB), saved.read_bytes()
    assert (again.fingerprint, split_difference(again, NEW)) == (NEW.fingerprint, '')
    assert (again.name, again.notes, again.about, again.user_ids) == (NEW.name, NEW.notes, NEW.about, NEW.user_ids)
    assert (again.test.places == NEW.test.places).all()
    read_split(saved, CLUB_FILMS).save(saved)
    assert saved.read_bytes() == first
    assert [p.name for p in saved.parent.iterdir()] == ['cold.safetensors']


def test_negatives_and_arguments_are_saved(tmp_path):
    WITH_NEGATIVES.save(tmp_path / 'n')
    assert read_split(tmp_path / 'n', CLUB).test.negatives[0].tolist() == [1, 2]
    by_time = temporal_split(CLUB, test='2024-04-16', history=5)
    by_time.save(tmp_path / 'a' / 't')
    assert read_split(tmp_path / 'a' / 't', CLUB).about == by_time.about
    replace(NEW, about={'seed': np.int64(3)}, user_ids=()).save(tmp_path / 'u')
    back = read_split(tmp_path / 'u', CLUB)
    assert (back.about, back.user_ids) == ({'seed': 3}, ())


def test_other_data_are_refused(saved):
    nine = Catalogue(CLUB_FILMS.ids[:9], {'text': [None] * 9}, {'text': 'text'})
    for within, why in (
        (HAND, "another catalogue: item 0 is 'm0' in the file and 'f0' in yours"),
        (SHUFFLED, 'another dataset: user 0'),
        (nine, "'m9' in the file and not in yours, which has 9 items"),
    ):
        with pytest.raises(DataError) as e:
            read_split(saved, within)
        assert why in str(e.value)
    with pytest.raises(FileNotFoundError):
        read_split(saved.with_name('none'), CLUB)


FORGED = {  # name: (change of the arrays, change of the words, words of the error)
    'other numbers': (
        lambda a: {**a, 'test/targets': a['test/targets'][::-1].copy()},
        {},
        'changed after it was saved',
    ),
    'an array less': (lambda a: {k: v for k, v in a.items() if k != 'train/users'}, {}, 'damaged'),
    'decimals': (lambda a: {**a, 'test/targets': a['test/targets'] * 0.5}, {}, 'no integers'),
    'a later format': (dict, {'format': 3}, 'has format 3, this version reads 1 and 2'),
    'another fingerprint': (dict, {'fingerprint': '0'}, 'fingerprint'),
    'an array more': (lambda a: {**a, 'test/evil': a['test/users']}, {}, 'damaged'),
    'items that are a number': (dict, {'items': 3}, 'is no saved split'),
    'arguments that are a number': (dict, {'about': 5}, 'damaged'),
}


@pytest.mark.parametrize('name', FORGED)
def test_a_forged_file_is_refused(name, saved):
    change, words, why = FORGED[name]
    with safe_open(saved, 'numpy') as f:
        said = json.loads(f.metadata()[HEADER])
    bad = saved.with_name('bad')
    save_file(change(load_file(saved)), bad, {HEADER: json.dumps(said | words)})
    with pytest.raises(DataError) as e:
        read_split(bad, CLUB)
    assert why in str(e.value)


def test_other_files_are_no_splits(saved):
    first, raw = saved.read_bytes(), saved.with_name('raw')
    for content in (b'', b'PK', first[: len(first) // 2], b'\xff' * 64):
        raw.write_bytes(content)
        with pytest.raises(DataError, match='no saved split'):
            read_split(raw, CLUB)
    save_file(load_file(saved), raw)
    with pytest.raises(DataError, match='no saved split'):
        read_split(raw, CLUB)
