"""Fused vectors, what is handed over, and what an approximate search says about itself."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from share_shops import part, shop

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.share.handover import export_items, fused_items, fused_queries, read_catalogue
from vlm2rec_lab.share.index import build_index

faiss = pytest.importorskip('faiss')
from vlm2rec_lab.share.approximate import Approximate  # noqa: E402


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "An index of several segments, and queries that have every modality."
    vectors, table = shop(400, (('text', 16), ('image', 8), ('sound', 5)))
    index = build_index(tmp_path_factory.mktemp('handover') / 'i', *part(vectors, table, slice(300)))
    index.add(*part(vectors, table, slice(300, 400)))
    index.remove(['i3', 'i350'])
    rng = np.random.default_rng(1)
    return index, {m: rng.normal(size=(20, d)) for m, d in index.modalities.items()}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*[st.floats(0.05, 5)] * 3))
def test_an_inner_product_of_fused_vectors_is_the_score(made, weights):
    index, queries = made
    weights = dict(zip(index.modalities, weights))
    scores = fused_queries(queries, weights) @ fused_items(index, weights).T
    found = index.query(queries, len(index), weights)
    assert np.abs(np.take_along_axis(scores, np.maximum(found.rows, 0), 1) - found.scores)[found.there].max() < 2e-6


def test_the_order_of_the_modalities_is_of_no_matter(made):
    index, queries = made
    weights = dict(text=0.5, image=0.2, sound=0.3)
    for names in (['sound', 'image', 'text'], ['image', 'text', 'sound']):
        asked = fused_queries({m: queries[m] for m in names}, {m: weights[m] for m in names[::-1]})
        assert (asked == fused_queries(queries, weights)).all()
        assert (asked @ fused_items(index, weights).T).argmax(1).tolist() == index.query(queries, 1, weights).rows[
            :, 0
        ].tolist()


def test_a_column_called_as_the_fused_vectors_is_handed_over_beside_them(tmp_path):
    vectors, table = shop(20, (('text', 4), ('image', 3)))
    table['fused'] = [f'colour {k}' for k in range(20)]
    index = build_index(tmp_path / 'i', vectors, table)
    with pytest.warns(UserWarning, match='is called fused_column in the file'):
        export_items(index, tmp_path / 'both.parquet')
    frame = pd.read_parquet(tmp_path / 'both.parquet')
    assert frame.fused_column.tolist() == index.table.fused.tolist()
    assert np.allclose(np.stack(frame.fused), fused_items(index))
    export_items(index, tmp_path / 'alone.parquet', fused=False)
    assert read_catalogue(tmp_path / 'alone.parquet')[1].fused.tolist() == index.table.fused.tolist()
    index = build_index(tmp_path / 'j', vectors, table.assign(fused_column=1))
    with pytest.raises(DataError, match='give one another name, or pass fused=False'):
        export_items(index, tmp_path / 'none.parquet')
    assert not (tmp_path / 'none.parquet').exists()


def test_who_has_nothing_that_counts_has_no_fused_vector(made, tmp_path):
    "A score of 0 would stand before all that are unlike the query; the index does not answer with such an item."
    index, queries = made
    weights = dict(text=0, image=1, sound=0)
    export_items(index, tmp_path / 'i.parquet', weights)
    frame = pd.read_parquet(tmp_path / 'i.parquet')
    assert frame.image.isna().any() and frame.fused.isna().equals(frame.image.isna())
    found = index.query(queries, len(index), weights)
    assert found.there.sum(1).tolist() == [frame.fused.notna().sum()] * len(found)


def test_what_is_handed_over_is_the_index(made, tmp_path):
    index, _ = made
    assert export_items(index, tmp_path / 'deep' / 'i.parquet') == len(index)
    frame = pd.read_parquet(tmp_path / 'deep' / 'i.parquet')
    assert frame.columns.tolist() == ['item_id', 'kind', 'price', 'text', 'image', 'sound', 'fused']
    assert frame.item_id.tolist() == index.ids.tolist()
    lacks = [row for row in range(len(index)) if not index.vectors['image'][row].any()]
    assert lacks and frame.image.isna().to_numpy().nonzero()[0].tolist() == lacks
    vectors, table = read_catalogue(tmp_path / 'deep' / 'i.parquet')
    for m, x in vectors.items():
        assert (x == np.asarray(index.vectors[m])).all()
    pd.testing.assert_frame_equal(table, index.table)
    assert [p.name for p in (tmp_path / 'deep').iterdir()] == ['i.parquet']


def test_a_column_of_lists_of_numbers_comes_back_as_a_column(tmp_path):
    "Unless a file says which columns are vectors, all lists of numbers are."
    table = pd.DataFrame(dict(item_id=['a', 'b'], shelves=[[1, 2], [3, 4]]))
    index = build_index(tmp_path / 'i', dict(text=np.eye(2)), table)
    export_items(index, tmp_path / 'i.parquet')
    vectors, back = read_catalogue(tmp_path / 'i.parquet')
    assert list(vectors) == ['text'] and [list(x) for x in back.shelves] == [[1, 2], [3, 4]]
    pd.read_parquet(tmp_path / 'i.parquet').to_parquet(tmp_path / 'plain.parquet')
    assert list(read_catalogue(tmp_path / 'plain.parquet')[0]) == ['shelves', 'text']


def test_a_hand_over_that_fails_leaves_the_file_that_was_there(made, tmp_path, monkeypatch):
    index, _ = made
    file = tmp_path / 'i.parquet'
    file.write_bytes(b'before')
    monkeypatch.setattr('vlm2rec_lab.share.handover._fused', lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_items(index, file)
    assert file.read_bytes() == b'before' and [p.name for p in tmp_path.iterdir()] == ['i.parquet']


@pytest.mark.parametrize(
    'columns, said',
    [
        (dict(item_id=['a', 'b'], price=[1, 2]), 'only item_id, price: give it vectors'),
        (dict(item_id=['a', 'b'], text=[[1.0, 2], [1.0]]), "column 'text' row"),
        (dict(item_id=['a', 'b'], text=[[], []]), 'only item_id, text: give it vectors'),
    ],
)
def test_files_that_hold_no_items(tmp_path, columns, said):
    pd.DataFrame(columns).to_parquet(tmp_path / 'x.parquet')
    with pytest.raises(ValueError, match=said):
        read_catalogue(tmp_path / 'x.parquet')


def test_files_that_are_none(tmp_path):
    (tmp_path / 'x.parquet').write_bytes(b'no')
    with pytest.raises(DataError, match='cannot be read as .parquet'):
        read_catalogue(tmp_path / 'x.parquet')
    with pytest.raises(FileNotFoundError, match='there is no file'):
        read_catalogue(tmp_path / 'none.parquet')


# ---- approximate search


@pytest.mark.parametrize('kind', ['hnsw', 'ivf'])
def test_scores_are_true_and_the_recall_is_said(made, kind):
    index, queries = made
    graph = Approximate(index, dict(text=2, image=1, sound=1), kind)
    found, true = graph.query(queries, 10), index.query(queries, 10, dict(text=2, image=1, sound=1))
    for u in range(len(found)):
        known = dict(zip(true.rows[u], true.scores[u]))
        assert all(known.get(row, score) == score for row, score in zip(found.rows[u], found.scores[u]))
        assert (np.diff(found.scores[u][found.there[u]]) <= 0).all()
    both = sum(len(set(a) & set(b)) for a, b in zip(found.rows, true.rows)) / true.rows.size
    assert graph.measured(queries, 10) == both
    assert found.recall == graph.recall and f'recall {graph.recall:.3f} of the first 10' in repr(found)
    assert 'approximate' in repr(found) and 'exact' in repr(true).splitlines()[0]


def test_noise_is_recalled_badly(tmp_path):
    "A known weakness of graphs of neighbours: vectors without structure."
    rng = np.random.default_rng(0)
    table = pd.DataFrame(dict(item_id=[f'{i}' for i in range(8000)]))
    noise = build_index(tmp_path / 'noise', dict(text=rng.normal(size=(8000, 96))), table)
    centres = rng.normal(size=(400, 96))
    near = centres[rng.integers(0, 400, 8000)] + 0.4 * rng.normal(size=(8000, 96))
    shop = build_index(tmp_path / 'shop', dict(text=near), table)
    how = dict(effort=40, links=16)
    assert Approximate(noise, **how).recall < 0.85 < 0.95 < Approximate(shop, **how).recall


def test_seen_items_are_never_proposed(made):
    index, queries = made
    graph = Approximate(index)
    first = graph.query(queries, 5)
    seen = [row[:4].tolist() for row in first.ids]
    again = graph.query(queries, 5, seen=seen)
    assert again.there.all() and not any(set(a) & set(s) for a, s in zip(again.ids, seen))
    assert (again.rows[:, 0] == first.rows[:, 4]).mean() > 0.9


def test_all_cells_are_all_items(made):
    index, queries = made
    assert Approximate(index, kind='ivf', effort=10_000).measured(queries, 10) == 1


def test_an_approximate_search_that_cannot_be(made, tmp_path, monkeypatch):
    index, queries = made
    with pytest.raises(DataError, match="did you mean 'hnsw'"):
        Approximate(index, kind='hsnw')
    empty = build_index(tmp_path / 'e', *part(*shop(3), slice(0)))
    with pytest.raises(DataError, match='no items'):
        Approximate(empty)
    moving = build_index(tmp_path / 'm', *shop(50))
    graph = Approximate(moving)
    moving.remove(['i0'])
    with pytest.raises(DataError, match='another version by now'):
        graph.measured({m: x[:1] for m, x in shop(50)[0].items()})
    assert graph.query(shop(50)[0], 1).version == 1  # it answers as before
    monkeypatch.setattr('vlm2rec_lab.share.approximate.find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "vlm2rec_lab\[faiss\]"'):
        Approximate(index)
