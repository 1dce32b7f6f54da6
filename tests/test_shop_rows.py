"""Rows and splits as values: many rows at once, fingerprints, and files that are not what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from shop_worlds import CLUB, CLUB_FILMS, HAND, SHUFFLED

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.base.ragged import PAD
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.rows import HEADER, read_split, rows_at, split_difference
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
