"""Propagation by hand and against dense loops; LightGCN and VBPR against their definitions, one pair after another."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.graph import graph as room
from vlm2rec_lab.graph.graph import (
    Graph,
    dense,
    drawn_rows,
    drop_edges,
    edge_weights,
    graph_of,
    item_graph,
    nearest_items,
    propagate,
    propagate_drawn,
    propagate_rows,
    sparse,
)
from vlm2rec_lab.graph.lattice import from_neighbours, link_weights
from vlm2rec_lab.graph.models import BPRMF, VBPR, LightGCN
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.rows import Rows, Split
from vlm2rec_lab.training.contents import item_vectors

many = settings(max_examples=40, deadline=None, database=None)


def split_of(lists, items):
    "Training items alone."
    none = Rows([], np.zeros((0, 1)), [], [0], [])
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])])
    have = np.array([i for x in lists for i in sorted(x)], np.int64)
    return Split(Catalogue([f'i{k}' for k in range(items)], {}, {}), none, none, none, (offsets, have), 'lists')


def drawn(users=7, items=9, seed=0):
    "A graph in which the last user and the last item have no edge."
    rng = np.random.default_rng(seed)
    lists = [set(rng.permutation(items - 1)[: rng.integers(1, 5)].tolist()) for _ in range(users - 1)]
    return lists + [set()], graph_of(split_of(lists + [set()], items))


def plain_tables(lists, user, item, layers):
    "LightGCN from its definition: lists of lists of numbers, edge after edge."
    degree = [sum(i in x for x in lists) for i in range(len(item))]
    sums = [[list(v) for v in t] for t in (user, item)]
    for _ in range(layers):
        new = [[[0.0] * len(user[0]) for _ in t] for t in (user, item)]
        for u, mine in enumerate(lists):
            for i in mine:
                w = 1 / math.sqrt(len(mine) * degree[i])
                for c in range(len(user[0])):
                    new[0][u][c] = new[0][u][c] + w * item[i][c]
                    new[1][i][c] = new[1][i][c] + w * user[u][c]
        user, item = new
        for s, t in zip(sums, new):
            for row, add in zip(s, t):
                for c, x in enumerate(add):
                    row[c] = row[c] + x
    return [[[x / (layers + 1) for x in row] for row in s] for s in sums]


def plain_bpr(scores):
    "The loss of (own score, other score), pair after pair."
    return sum(torch.log1p(torch.exp(-(p - n))) for p, n in scores) / len(scores)


# ---- the graph


def test_the_graph_of_five_nodes():
    graph, r = graph_of(split_of([{0, 1}, {1, 2}], 3)), 0.5**0.5
    assert torch.allclose(dense(graph.to_users), torch.tensor([[r, 0.5, 0], [0, 0.5, r]]))
    start = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [0.0], [1.0]])
    users, items = propagate(graph, *start, 2)
    assert users.flatten().tolist() == pytest.approx([1.75 / 3, (r + 0.25) / 3], abs=1e-6)
    assert items.flatten().tolist() == pytest.approx([r / 3, (0.5 + r / 2) / 3, 0.5], abs=1e-6)


@many
@given(st.integers(0, 10**6), st.integers(0, 4))
def test_propagation_is_the_dense_one_with_its_gradient(seed, layers):
    lists, graph = drawn(seed=seed)
    graph, g = Graph(graph.to_users), torch.Generator().manual_seed(seed)
    A = torch.zeros(16, 16)
    A[:7, 7:] = dense(graph.to_users)
    A = A + A.T
    x = torch.randn(16, 3, generator=g)
    a, b = x[:7].clone().requires_grad_(), x[7:].clone().requires_grad_()
    want = sum(torch.linalg.matrix_power(A, k) for k in range(layers + 1)) / (layers + 1)
    found, back = torch.cat(propagate(graph, a, b, layers)), torch.randn(16, 3, generator=g)
    assert torch.allclose(found, want @ x, atol=1e-6)
    found.backward(back)
    assert torch.allclose(torch.cat([a.grad, b.grad]), want @ back, atol=1e-6)
    some, other = torch.randint(0, 7, (5,), generator=g), torch.randint(0, 9, (4,), generator=g)  # rows may repeat
    for few in (True, False):  # both ways to take rows
        with mock.patch.object(room, '_few', lambda *_: few):
            rows_are_those(graph, a, b, some, other, layers, found, want, x, back)


def rows_are_those(graph, a, b, some, other, layers, found, want, x, back):
    "Rows of what has flowed, and the gradient through them, are those of the dense matrix."
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    (flowed, own), at = propagate_rows(graph, a, b, some, other, layers), torch.cat([some, 7 + other])
    rows, own = torch.cat(flowed), torch.cat(own)
    assert torch.allclose(rows, found.detach()[at], atol=1e-6) and torch.equal(own, x[at])
    rows.backward(back[:9], retain_graph=True)
    assert torch.allclose(torch.cat([a.grad, b.grad]), want[:, at] @ back[:9], atol=1e-6)
    own.backward(back[7:])  # what holds them small adds up with it
    both = want[:, at] @ back[:9] + torch.eye(16)[:, at] @ back[7:]
    assert torch.allclose(torch.cat([a.grad, b.grad]), both, atol=1e-6)


def test_one_side_alone_has_a_gradient():
    _, graph = drawn()
    a, b = torch.randn(7, 2, requires_grad=True), torch.randn(9, 2)
    propagate(graph, a, b, 2)[1].sum().backward()
    A = dense(graph.to_users)
    assert torch.allclose(a.grad, (A @ torch.ones(9, 2)) / 3, atol=1e-6)
    c = torch.randn(9, 2, requires_grad=True)
    (graph.to_users @ c).sum().backward()
    assert torch.allclose(c.grad, A.T @ torch.ones(7, 2), atol=1e-6)


def test_a_pair_that_is_there_twice_is_one_edge():
    split = split_of([{0, 1}, {1}], 2)
    twice = Split(*(getattr(split, n) for n in ('catalogue', 'train', 'valid', 'test')), ([0, 3, 4], [0, 1, 1, 1]), 'x')
    assert torch.equal(dense(graph_of(twice).to_users), dense(graph_of(split).to_users))


def test_dropped_edges_are_right_on_average():
    _, graph = drawn()
    g, before = torch.Generator().manual_seed(0), dense(graph.to_users).clone()
    mean = torch.stack([dense(drop_edges(graph, 0.3, g).to_users) for _ in range(4000)]).mean(0)
    assert (mean - before).abs().max() < 4 * before.max() * (0.3 / 0.7 / 4000) ** 0.5  # four standard errors
    assert torch.equal(dense(graph.to_users), before)
    unscaled = 0.7 * mean  # what it would be without the division
    assert (unscaled - before).abs().max() > 0.1
    some = drop_edges(graph, 0.3, torch.Generator().manual_seed(1))
    assert torch.equal(dense(some.to_items), dense(some.to_users).T)
    renewed = drop_edges(graph, 0.3, torch.Generator().manual_seed(1), renew=True)
    assert torch.equal(renewed.edges[1], some.edges[1])
    assert torch.allclose(renewed.to_users.values, edge_weights(*some.edges, (7, 9)))


@many
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 40), st.booleans())
def test_neighbours_are_those_of_all_pairs(seed, k, block, itself):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(25, 6))
    x[rng.permutation(25)[:3]] = 0
    z = torch.from_numpy(x)
    near, cosine = nearest_items(z, k, itself, block)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
    s = unit @ unit.T
    s[:, ~x.any(1)] = -np.inf
    if not itself:
        np.fill_diagonal(s, -np.inf)
    for i in np.flatnonzero(x.any(1)):
        assert near[i].tolist() == np.argsort(-s[i], kind='stable')[:k].tolist()
        assert np.allclose(cosine[i], s[i, near[i]])
    whole = np.zeros((25, 25))
    for i in np.flatnonzero(x.any(1)):
        whole[i, near[i]] = np.where(np.maximum(s[i, near[i]], 0) > 0, s[i, near[i]], 0)
    degree = whole.sum(1)
    scale = 1 / np.sqrt(np.where(degree > 0, degree, 1))
    found = dense(item_graph(z, k, itself, block).matrix).numpy()
    assert np.allclose(found, scale[:, None] * whole * scale, atol=1e-6)


@many
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_an_item_is_no_neighbour_of_its_own_where_few_have_a_content(seed, having):
    "The learned graph of a modality that k items or fewer have is the original one, when nothing is learned yet."
    rng = np.random.default_rng(seed)
    x = torch.zeros(40, 6)
    x[rng.permutation(40)[:having]] = torch.from_numpy(rng.normal(size=(having, 6)).astype(np.float32))
    near = nearest_items(x, 10)[0]
    learned = from_neighbours(near, link_weights(x, near), torch.eye(40))
    assert torch.allclose(learned, dense(item_graph(x, 10).matrix), atol=1e-6)


def test_a_graph_of_items_is_keyed_by_its_vectors():
    "The graph of one encoder cannot pass for that of another."
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(20, 4)), rng.normal(size=(20, 4))
    assert item_graph(one, 3).key == item_graph(one.copy(), 3).key
    keys = {item_graph(one, 3).key, item_graph(other, 3).key, item_graph(one, 4).key, item_graph(one, 3, True).key}
    assert len(keys) == 4


def test_errors_of_the_graph():
    with pytest.raises(DataError, match=r'columns must lie in 0\.\.2'):
        sparse(torch.tensor([0]), torch.tensor([3]), torch.ones(1), (2, 3))
    with pytest.raises(DataError, match='no edge'):
        graph_of(split_of([set()], 3))
    with pytest.raises(DataError, match='share=-0.1'):
        drop_edges(drawn()[1], -0.1)
    with pytest.raises(DataError, match='k=20: choose 1 to 19'):
        item_graph(np.ones((20, 2)), 20)
    with pytest.raises(DataError, match='layers is 1.5'):
        propagate(drawn()[1], torch.zeros(7, 1), torch.zeros(9, 1), 1.5)


# ---- models against their definitions

PAIRS = torch.tensor([0, 1, 2, 3, 3, 5]), torch.tensor([1, 2, 0, 4, 5, 8]), torch.tensor([3, 3, 7, 8, 2, 1])


def gradients(model):
    "All of them, by name."
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize('layers', [0, 1, 3])
def test_lightgcn_is_the_plain_loop(layers):
    lists, graph = drawn()
    model = LightGCN(graph, dim=3, layers=layers, seed=1).double()
    user, item = ([[x.detach().clone().requires_grad_() for x in row] for row in t] for t in (model.user, model.item))
    u, i = plain_tables(lists, user, item, layers)

    def score(a, b):
        return sum(x * y for x, y in zip(u[a], i[b]))

    want = torch.tensor([[score(a, b).item() for b in range(9)] for a in range(7)], dtype=torch.double)
    users, items = model.tables()
    assert (users @ items.T - want).abs().max() < 1e-6
    triples = list(zip(*(t.tolist() for t in PAIRS)))
    loss = plain_bpr([(score(a, p), score(a, n)) for a, p, n in triples])
    loss.backward()
    found = model.losses(*PAIRS, None)
    assert abs(float(found['bpr'].detach() - loss.detach())) < 1e-6
    found['bpr'].backward()
    for rows, p in ((user, model.user), (item, model.item)):
        plain = torch.tensor([[0.0 if x.grad is None else float(x.grad) for x in row] for row in rows])
        assert (plain - p.grad).abs().max() < 1e-6
    held = sum(float((t[a].detach() ** 2).sum()) for x in triples for t, a in zip((model.user, *[model.item] * 2), x))
    assert float(found['norm'].detach()) == pytest.approx(held / 2 / len(triples), abs=1e-9)


def contents(items=9):
    "Two modalities, some items without one or both."
    rng = np.random.default_rng(5)
    out = {'text': rng.normal(1, 1, (items, 6)), 'image': rng.normal(size=(items, 4))}
    out['image'][[2, 5]] = 0
    out['text'][5] = 0
    return out


def test_vbpr_is_the_plain_loop():
    views = contents()
    model = VBPR(7, 9, views, dim=3, seed=1).double()
    with torch.no_grad():
        model.contents.shift += 0.3
    ready = {m: item_vectors(views, m).float().double() / v.shape[1] ** 0.5 for m, v in views.items()}
    leaves = [model.user, model.item, *model.contents.matrices, model.contents.shift]
    user, item, *w, shift = (p.detach().clone().requires_grad_() for p in leaves)

    def score(a, b):
        total = sum(user[a, c] * item[b, c] for c in range(3))
        for c in range(3):
            said = shift[c]
            for v, matrix in zip(ready.values(), w):
                said = said + sum(v[b, j] * matrix[j, c] for j in range(v.shape[1]))
            total = total + user[a, 3 + c] * said
        return total

    users, items = model.tables()
    want = torch.tensor([[score(a, b).item() for b in range(9)] for a in range(7)], dtype=torch.double)
    assert (users @ items.T - want).abs().max() < 1e-6
    loss = plain_bpr([(score(a, p), score(a, n)) for a, p, n in zip(*(t.tolist() for t in PAIRS))])
    loss.backward()
    found = model.losses(*PAIRS, None)['bpr']
    assert abs(float(found.detach() - loss.detach())) < 1e-6
    found.backward()
    for mine, plain in zip(leaves, (user, item, *w, shift)):
        assert (mine.grad - plain.grad).abs().max() < 1e-6


def test_contents_can_be_taken_apart():
    views = contents()
    model = VBPR(7, 9, views, dim=3)
    users, items = model.tables()
    parts = {m: users @ (items - model.without(m)[1]).T for m in views}
    for m, modality in enumerate(views):
        want = users[:, 3:] @ (model.contents.vectors(modality) @ model.contents.matrices[m]).T
        assert torch.allclose(parts[modality], want, atol=1e-6)
    assert not parts['image'][:, [2, 5]].abs().max() > 1e-7 and not parts['text'][:, 5].abs().max() > 1e-7
    rest = users @ model.without(*views)[1].T
    assert torch.allclose(rest + sum(parts.values()), users @ items.T, atol=1e-6)
    assert torch.equal(model.without()[1], items)


def test_modalities_are_no_fixed_pair():
    rng = np.random.default_rng(0)
    views = {'front.view': rng.normal(size=(9, 4)), 'sound': rng.normal(size=(9, 3)), 'price': rng.normal(size=(9, 1))}
    model = VBPR(7, 9, views, dim=3)
    assert model.contents.modalities == tuple(views)
    assert 'contents.content0' in model.state_dict()  # another encoder's vectors are another start
    with pytest.raises(DataError, match="did you mean 'sound'"):
        model.without('sond')


def test_a_bias_is_a_column():
    model = BPRMF(7, 9, dim=3, bias=True)
    with torch.no_grad():
        model.bias.copy_(torch.arange(9.0))
    users, items = model.tables()
    assert torch.allclose(users @ items.T, model.user @ model.item.T + torch.arange(9.0), atol=1e-6)
    model.losses(*PAIRS, None)['bpr'].backward()
    assert model.bias.grad.abs().sum() > 0


def test_a_small_part_of_the_edges_is_picked_out():
    _, graph = drawn()
    assert room._few(graph.to_users, torch.tensor([6])) and not room._few(graph.to_users, torch.arange(7))
    assert not room._few(graph.to_users, torch.tensor([0] * 30))  # a row that is named often is taken often


# ---- neighbours that are drawn


@many
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans())
def test_all_neighbours_drawn_are_all(seed, layers, bare):
    "With a fanout that no degree exceeds, values and gradients are the exact ones; nodes without neighbours too."
    _, graph = drawn(seed=seed)
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, 3, generator=g, requires_grad=True) for n in (7, 9))
    a, b = torch.randint(0, 7, (5,), generator=g), torch.randint(0, 9, (4,), generator=g)
    if bare:
        a, b = torch.tensor([6, 6]), torch.tensor([8])
    ways = []
    for f in (propagate_rows, lambda *how: propagate_drawn(*how, 8, g)):
        flowed, own = f(graph, x, y, a, b, layers)
        value = sum((t.cumsum(0) ** 2).sum() for t in (*flowed, *own))
        ways.append([torch.cat(flowed), torch.cat(own), *torch.autograd.grad(value, (x, y))])
    for exact, some in zip(*ways):
        assert (exact - some).abs().max() < 1e-5 * max(1, exact.abs().max())


def test_a_node_asks_no_neighbour_twice_and_each_with_the_same_chance():
    graph, n = graph_of(split_of([set(range(7)), {2, 5}, set()], 7)), 6000
    g, every = torch.Generator().manual_seed(0), torch.tensor([2, 0, 1])
    times = torch.zeros(3, 7)
    for _ in range(n):
        some = drawn_rows(graph.to_users, every, 3, torch.rand(3, generator=g))
        assert some.starts.tolist() == [0, 0, 3, 5]
        columns, row = some.columns.long(), torch.tensor([1, 1, 1, 2, 2])
        assert len({*columns[:3].tolist()}) == 3 and columns[3:].tolist() == [2, 5]
        times.index_put_((row, columns), torch.ones(5), accumulate=True)
        enlarged = some.values / dense(graph.to_users)[every[row], columns]
        assert torch.allclose(enlarged, torch.tensor([7 / 3] * 3 + [1.0] * 2))
    assert (times[1] / n - 3 / 7).abs().max() < 4 * (3 / 7 * 4 / 7 / n) ** 0.5


def average(flow, n=2000):
    "The mean of n draws of a matrix, and its standard error."
    draws = torch.stack([flow() for _ in range(n)]).double()
    return draws.mean(0), draws.std(0) / n**0.5


def test_drawn_neighbours_are_right_on_average():
    "Vectors that have flowed are unbiased, because each layer draws anew; one draw for all layers is not."
    _, graph = drawn(seed=3)
    g, eye, every = torch.Generator().manual_seed(0), torch.eye(16), (torch.arange(7), torch.arange(9))
    exact = torch.cat(propagate(graph, eye[:7], eye[7:], 3)).double()
    mean, error = average(lambda: torch.cat(propagate_drawn(graph, eye[:7], eye[7:], *every, 3, 1, g)[0]))
    assert error.max() > 1e-3  # something was drawn
    assert ((mean - exact).abs() <= 5 * error + 1e-6).all()

    def once():
        matrices = (graph.to_users, every[0]), (graph.to_items, every[1])
        A = torch.zeros(16, 16)
        A[:7, 7:], A[7:, :7] = (dense(drawn_rows(m, at, 1, torch.rand(len(at), generator=g))) for m, at in matrices)
        return sum(torch.linalg.matrix_power(A, k) for k in range(4)) / 4

    mean, error = average(once)
    assert ((mean - exact).abs() > 8 * error + 1e-3).any()


def test_shares_of_a_batch_ask_what_the_whole_would():
    _, graph = drawn(seed=3)
    x, y, a, b = torch.randn(7, 3), torch.randn(9, 3), torch.tensor([3, 0, 4, 3]), torch.tensor([1, 8, 0, 2])

    def flow(at_users, at_items):
        return torch.stack(propagate_drawn(graph, x, y, at_users, at_items, 3, 1, torch.Generator().manual_seed(5))[0])

    whole = flow(a, b)
    assert torch.allclose(torch.cat([flow(a[:2], b[:2]), flow(a[2:], b[2:])], 1), whole, atol=1e-6)
    assert torch.equal(whole[0][0], whole[0][3])
    assert not torch.allclose(whole[0], propagate_rows(graph, x, y, a, b, 3)[0][0], atol=1e-3)


def test_a_model_that_draws_ranks_exactly():
    _, graph = drawn(seed=3)
    exact, some, every = (LightGCN(graph, 4, 3, seed=1, fanout=f) for f in (None, 1, 9))
    assert torch.equal(torch.cat(exact.tables()), torch.cat(some.tables()))
    g = torch.Generator().manual_seed(0)
    found = [float(m.losses(*PAIRS, g)['bpr'].detach()) for m in (exact, some, every)]
    assert found[2] == pytest.approx(found[0], abs=1e-6) and abs(found[1] - found[0]) > 1e-5
    assert repr(some) != repr(exact) and 'drawn' not in repr(exact)
    for bad in (0, 10.0, float('nan')):
        with pytest.raises(DataError, match=f'fanout={bad}'):
            LightGCN(graph, 4, fanout=bad)
    with pytest.raises(DataError, match='layers is -1'):
        propagate_rows(graph, exact.user.detach(), exact.item.detach(), torch.tensor([0]), torch.tensor([0]), -1)
