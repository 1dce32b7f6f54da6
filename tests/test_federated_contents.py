"Items that are made of contents: shared rows, where items begin, what a run keeps, and what a report is told."

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from federated_worlds import drawn_shop, revealed_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.federated import continual, study
from vlm2rec_lab.federated.backbones import BACKBONES
from vlm2rec_lab.federated.blocks import blocks
from vlm2rec_lab.federated.contents import (
    ITEMS,
    Contents,
    content_features,
    fitted_vectors,
    items_as,
    made_of,
    moves_of,
    parts_of,
    start_vectors,
)
from vlm2rec_lab.federated.continual import newcomers_of, run_blocks
from vlm2rec_lab.federated.diagnosis import views_of
from vlm2rec_lab.federated.rounds import draw_steps
from vlm2rec_lab.federated.study import federated_markdown, federated_table, run_federated
from vlm2rec_lab.metrics import evaluate
from vlm2rec_lab.shop.catalogue import Interactions

QUICK = dict(dim=8, lr=0.5, rounds=4, patience=None, cut=5, progress=False)


def launched(studio, share=0.6):
    "The shop without early purchases of every fourth item: it comes to market later."
    inter = studio.interactions
    kept = (inter.items % 4 > 0) | (inter.times > np.quantile(inter.times, share))
    who = np.repeat(np.arange(len(inter)), inter.lengths)[kept]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(who, minlength=len(inter)))])
    return replace(studio, interactions=Interactions(inter.user_ids, offsets, inter.items[kept], inter.times[kept]))


@pytest.fixture(scope='module')
def studio():
    return launched(drawn_shop('complementary', items=80, users=200, length=12))


@pytest.fixture(scope='module')
def shop(studio):
    return blocks(studio, core=5, parts=2)


@pytest.fixture(scope='module')
def features(studio, shop):
    return content_features(revealed_vectors(studio), shop, components=8)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 4), st.booleans(), st.integers(0, 2**31 - 1))
def test_shared_rows_move_items_as_they_say(clients, items, dim, own, seed):
    "What a step does to the shared rows does to the made vectors what `moves_of` says; for some of the items, too."
    g = torch.Generator().manual_seed(seed)
    table = {m: torch.randn(items + 2, n, generator=g, dtype=torch.float64) for m, n in (('a', 3), ('b', 1), ('c', 2))}
    contents = Contents(table, own, reach=0.7)
    shared = torch.randn(contents.rows + items, dim, generator=g, dtype=torch.float64)
    pushes = torch.randn(clients, items, generator=g, dtype=torch.float64)
    heads = torch.randn(clients, dim, generator=g, dtype=torch.float64)
    rows, moved = moves_of(pushes.clone(), contents)
    after = made_of(shared + rows.T @ heads, contents)
    assert torch.allclose(after, made_of(shared, contents) + moved.T @ heads, atol=1e-12)
    parts = parts_of(shared, contents)
    assert list(parts) == ['a', 'b', 'c', *(['own'] if own else [])]
    left = 0 if own else shared[contents.rows :]
    assert torch.allclose(sum(parts.values()) + left, made_of(shared, contents), atol=1e-12)


def test_nothing_of_later_items_is_used(studio, shop, features):
    "Components, and where items of the base block begin, do not move when later items do."
    vectors, base = revealed_vectors(studio), shop[0].items
    later = shop.catalogue[base:]
    assert len(later) > 3
    for m in vectors:
        vectors[m][later] = 5 * np.random.default_rng(0).normal(size=vectors[m][later].shape)
    other = content_features(vectors, shop, components=8)
    for m in features:
        assert torch.equal(other[m][:base], features[m][:base]) and not torch.equal(other[m], features[m])
    assert torch.equal(start_vectors(other, 8, base, 0.1)[:base], start_vectors(features, 8, base, 0.1)[:base])


def test_fitted_vectors_look_at_known_items_alone(features):
    known = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    found = fitted_vectors(features, known, 70)
    assert found.shape == (10, 8) and found.dtype == known.dtype
    changed = {m: torch.cat([x[:70], x[70:] + 1]) for m, x in features.items()}
    assert torch.equal(fitted_vectors(changed, known, 70), found)
    assert fitted_vectors(features, known, 60).shape == (0, 8)
    true = {m: x[:, :4] for m, x in features.items()}
    map_ = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    made = torch.cat(list(true.values()), 1) @ map_
    assert (fitted_vectors(true, made[:60], 70) - made[60:70]).abs().max() < 0.05 * made.std()


@pytest.mark.parametrize('way', ITEMS[1:])
@pytest.mark.parametrize('backbone', BACKBONES)
def test_a_run_that_was_stopped_goes_on(shop, features, tmp_path, way, backbone):
    how = QUICK | items_as(way, features, 8, shop[0].items, 0.01) | dict(lr=0.02)
    whole = run_blocks(shop, backbone, memory=True, temporal=True, **how)
    calls = []

    def callback(records):
        calls.append(0)
        return 'stop' if len(calls) == 6 else None

    with pytest.raises(continual.Interrupted):
        run_blocks(shop, backbone, memory=True, temporal=True, folder=tmp_path, callback=callback, **how)
    again = run_blocks(shop, backbone, memory=True, temporal=True, folder=tmp_path, **how)
    assert torch.equal(again.items, whole.items) and again.table().equals(whole.table())
    assert not torch.equal(whole.items[: shop[0].items], run_blocks(shop, backbone, **QUICK | dict(lr=0.02)).items)


def test_items_alone_stay_at_nothing(shop, features):
    contents = Contents(features, own=False, reach=0.05)
    done = run_blocks(shop, contents=contents, temporal=True, distil=True, **QUICK)
    assert done.items[: contents.rows].any() and not done.items[contents.rows :].any()


@pytest.mark.parametrize('temporal, distil', [(True, False), (False, True), (True, True)])
def test_the_server_sees_every_shared_row(shop, features, monkeypatch, temporal, distil):
    "Adapters are held as items are: what looks back has the rows of both."
    found, whole = [], continual._server
    monkeypatch.setattr(continual, '_server', lambda old, *a: found.append(old) or whole(old, *a))
    contents = Contents(features, reach=0.05)
    run_blocks(shop, contents=contents, temporal=temporal, distil=distil, **QUICK)
    assert [len(old) for old in found] == [contents.rows + shop[k].items for k in (0, 1)]


def test_a_server_distils_where_items_are_nothing_but_contents(shop, features):
    how = QUICK | dict(contents=Contents(features, own=False, reach=0.05))
    plain, taught = (run_blocks(shop, distil=on, **how) for on in (False, True))
    assert not torch.equal(plain.items, taught.items)


def test_what_begins_anew_has_nothing_to_fit_from(shop, features, tmp_path):
    with pytest.raises(DataError, match='no known items to fit newcomers from'):
        run_blocks(shop, replay=True, scratch=True, newcomers=features, **QUICK)
    with pytest.raises(DataError, match='leave out scratch, or fitted'):
        run_federated(tmp_path, shop, ['FedMF'], ['scratch'], 1, ['fitted'], features=features, **QUICK)


def test_new_items_are_asked_apart(shop, features):
    done = run_blocks(shop, newcomers=features, **QUICK)
    asked = {(f.way, f.after): f for f in done.asked if f.way in ('arrival', 'new')}
    for k in (1, 2):
        there = newcomers_of(shop, k)
        assert (there is None) == (('new', k) not in asked)
        if there is not None:
            assert there.items == shop[k].items - shop[k - 1].items > there.sets[1].max()
            assert (asked['arrival', k].users == there.users).all() and (asked['new', k].users == there.users).all()
    assert asked


def test_new_items_are_ranked_among_new_items_alone(shop, features):
    "Figures when all is over are those of the last state, worked out by hand for each user."
    done = run_blocks(shop, newcomers=features, **QUICK)
    last, first, cut = shop[2], shop[1].items, 5
    found = next(f for f in done.asked if (f.way, f.after) == ('new', 2))
    assert len(found.users) > 3
    for user, value in zip(found.users, found.values['Recall']):
        test = {i for u, i in zip(last.test.users, last.test.items) if u == user and i >= first}
        had = {i for b in shop for p in (b.train, b.valid, b.test) for u, i in zip(p.users, p.items) if u == user}
        items = [i for i in range(first, last.items) if i in test or i not in had]
        best = sorted(items, key=lambda i: -float(done.items[i] @ done.private['user'][user]))[:cut]
        assert value == pytest.approx(len(test & set(best)) / len(test), abs=1e-6)


def test_a_report_is_told_the_ranking_of_the_federation(shop, features):
    contents = Contents(features, reach=0.05)
    done = run_blocks(shop, 'PFedRec', contents=contents, **QUICK | dict(lr=0.02))
    for block in range(3):
        found = evaluate(**views_of(done, shop, contents, 'PFedRec', block), k=5, progress=False).to_frame()
        assert found.loc['fused', 'NDCG@5'] == pytest.approx(done.table().iloc[2, block], abs=1e-6)


def test_a_study_by_the_way_items_are_made(shop, features, tmp_path, monkeypatch):
    how = dict(backbones=['FedMF'], methods=['fine-tuning'], seeds=1, items=['random', 'begin'], **QUICK)
    cells = run_federated(tmp_path, shop, features=features, **how)
    assert [c['items'] for c in cells] == ['random', 'begin']
    table = federated_table(cells, draws=50)
    assert table.set_index(['items', 'average']).loc['random'].gain.isna().all()
    assert '| FedMF | fine-tuning | begin |' in federated_markdown(table)
    other = {m: x.flip(0) for m, x in features.items()}
    with pytest.raises(DataError, match='features='):
        run_federated(tmp_path, shop, features=other, **how)
    monkeypatch.setitem(study.REACH, 'FedMF', 0.02)
    with pytest.raises(DataError, match='reach=0.1 .now 0.02.'):
        run_federated(tmp_path, shop, features=features, **how)


@pytest.mark.parametrize(
    'how, hint',
    [
        (dict(start=torch.zeros(3, 8)), 'start: .3, 8. numbers; give'),
        (dict(contents=Contents(dict(text=torch.ones(3, 2)))), "contents: 'text' has 3 rows"),
        (dict(newcomers=dict(text=torch.ones(3, 2))), "newcomers: 'text' has 3 rows"),
    ],
)
def test_contents_of_other_items_are_told_first(shop, how, hint):
    with pytest.raises(DataError, match=hint):
        run_blocks(shop, **QUICK, **how)


@pytest.mark.parametrize('rows', [np.zeros((80, 3)), np.ones((80, 3))], ids=['missing', 'all alike'])
def test_contents_that_tell_nothing(shop, rows):
    with pytest.raises(DataError, match="'text' is the same for all items of the base block, or missing"):
        content_features(dict(text=rows), shop, 2)


def test_a_modality_is_not_called_as_own_vectors_are(features):
    with pytest.raises(DataError, match="called 'own'"):
        Contents(dict(own=features['text']))


@pytest.mark.parametrize('odd', [np.nan, np.inf])
def test_vectors_that_are_no_numbers(studio, shop, odd):
    vectors = revealed_vectors(studio)
    vectors['image'][4, 0] = odd
    with pytest.raises(DataError, match="vectors of 'image'"):
        content_features(vectors, shop, 4)


# ---- the script of the study


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / 'benchmarks'))
    return importlib.import_module('federated_contents')


def test_the_control_exchanges_whole_items(script, features):
    other = script.exchanged(features, seed=1)
    rows = torch.cat(list(features.values()), 1)
    found = torch.cat(list(other.values()), 1)
    assert not torch.equal(rows, found)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, found.tolist()))


def test_training_in_one_place_is_of_the_same_model(script, shop, features):
    "It learns what the federation learns: adapters and users; items that are nothing but contents stay so."
    contents, task = Contents(features, own=False), continual.task_of(shop, 0)
    g = torch.Generator().manual_seed(0)
    start = torch.cat([torch.randn(contents.rows, 8, generator=g) * 0.1, torch.zeros(shop[0].items, 8)])
    private = BACKBONES['FedMF'].begin(len(shop.user_ids), 8, g)
    shared, users = script.pooled(start, private, task.clients, contents, 60)
    assert not torch.equal(shared[: contents.rows], start[: contents.rows]) and not shared[contents.rows :].any()
    steps = draw_steps(task.clients, 4, 10**9, torch.Generator().manual_seed(9))[0]

    def loss(rows, heads):
        scores = (heads[task.clients.users[steps.rows]] * made_of(rows, contents)[steps.items]).sum(1)
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, steps.labels)

    assert loss(shared, users['user']) < 0.9 * loss(start, private['user'])


def test_shops_whose_items_come_later_are_drawn_with_contents(script):
    cut, found = script.launches(SimpleNamespace(), 0)
    assert set(found) == {'text', 'image'} and all(len(x) == len(cut.catalogue) for x in found.values())
    assert cut[3].items - cut[0].items > 50
