"""Numbers that no index and no service can take are refused by name, before faiss or a socket sees them."""

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.share.diverse import check_diverse
from vlm2rec_lab.share.index import build_index
from vlm2rec_lab.share.limits import Limits

WRONG = -1, 0, 1.5, float('nan'), True, '3', []


@pytest.fixture(scope='module')
def index(tmp_path_factory):
    vectors = np.random.default_rng(0).normal(size=(300, 6))
    table = pd.DataFrame({'item_id': [f'i{k}' for k in range(300)]})
    return build_index(tmp_path_factory.mktemp('index') / 'i', {'text': vectors}, table)


@pytest.mark.parametrize('name', ['effort', 'links', 'sample', 'k', 'seed'])
def test_an_approximate_search_is_not_ended_by_faiss(name, index):
    "faiss ends the process for a graph of no links."
    approximate = pytest.importorskip('vlm2rec_lab.share.approximate')
    pytest.importorskip('faiss')
    for wrong in WRONG:
        if (name, wrong) != ('seed', 0):
            with pytest.raises(ValueError, match=f'{name} is .*: give a whole number'):
                approximate.Approximate(index, **{name: wrong})
    assert approximate.Approximate(index, **{name: np.int64(3)}).recall > 0.5


@pytest.mark.parametrize('name', Limits.__dataclass_fields__)
def test_limits_of_a_service_are_numbers(name):
    for wrong in WRONG:
        if not (name in ('seconds', 'rate') and wrong == 1.5):
            with pytest.raises(DataError, match=f'{name} is .*: give a '):
                Limits(**{name: wrong})
    assert type(getattr(Limits(**{name: np.int64(3)}), name)) is int


def test_weight_and_pool_of_diverse_answers():
    for wrong in (-1, 1.5, float('nan'), True, '3', None):
        with pytest.raises(DataError, match='diverse: the weight is'):
            check_diverse(dict(weight=wrong), [])
        with pytest.raises(DataError, match='diverse: the pool is'):
            check_diverse(dict(pool=wrong), [])
    assert check_diverse(dict(weight=np.float32(0.5), pool=np.int64(5)), [])['pool'] == 5


def test_what_a_query_cannot_use_is_refused_by_name(index):
    asked = {'text': np.ones((1, 6), np.float32)}
    for wrong in WRONG:
        with pytest.raises(DataError, match='block is .*: give a whole number'):
            index.query(asked, 3, block=wrong)
    for wrong in (3, [3], True, [None]):
        with pytest.raises(DataError, match='seen is, or holds, .*: give for each query a list'):
            index.query(asked, 3, seen=wrong)
    for wrong in (3, 'price<3', True, [3]):
        with pytest.raises(DataError, match=r'where holds .*: give a list of \(column, operator, value\)'):
            index.query(asked, 3, where=wrong)
    found = index.query(asked, 3, seen=['i3'], block=np.int64(7))
    assert found.rows.shape == (1, 3) and 3 not in found.rows
