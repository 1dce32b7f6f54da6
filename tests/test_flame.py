"""FLAME: its paths against a loop over paths and places for networks of every shape and cut, what a path may know, its
loss against one that is written out, resuming after any epoch."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec_lab.data import PAD, Catalogue, DataError, Dataset, Interactions, leave_one_out
from vlm2rec_lab.recommenders.fit import fit, represent
from vlm2rec_lab.recommenders.flame import (
    RECIPE,
    Ensemble,
    Guided,
    Peers,
    falling,
    flame,
    freeze,
    guided,
    modular,
    mutual,
    pair_losses,
    pair_weights,
    path_names,
    read_ends,
    side_by_side,
    split_points,
)
from vlm2rec_lab.recommenders.seqrec import ItemTable, SASRec


def network(seed, layers=2, heads=2, n=30, dim=8, length=7, dropout=0.0):
    return SASRec(ItemTable(n, dim, seed=seed), layers=layers, heads=heads, dropout=dropout, length=length, seed=seed)


def histories(rng, B, L, n=30):  # fillers at the left, at least one item
    x = torch.from_numpy(rng.integers(0, n, (B, L)))
    return x.masked_fill(torch.arange(L) < L - torch.from_numpy(rng.integers(1, L + 1, (B, 1))), PAD)


def slow_mask(sequence, halves):
    L = len(sequence)
    return torch.tensor(
        [[q == k or sequence[k % L] != PAD and k % L <= q % L for k in range(halves * L)] for q in range(halves * L)]
    )[None, None]


def slow_paths(nets, sequence, cuts):  # one history [L] -> {name: [d]}
    "Module by module and path by path, with whole blocks and all places."
    layers, L = len(nets['L'].encoder.blocks), len(sequence)
    paths = {k: net.embedding(sequence[None], net.items()) for k, net in nets.items()}
    for m, (begin, end) in enumerate(zip((0, *cuts), (*cuts, layers))):
        found = {}
        for k, net in nets.items():
            names = sorted(paths, key=list(paths).index) if m else [k]
            x = torch.cat([paths[p] for p in names], 1)
            for b in range(begin, end):
                x = net.encoder.blocks[b](x, slow_mask(sequence.tolist(), len(names)))
            if end == layers:
                x = net.encoder.norm(x)
            for j, p in enumerate(names):
                found[p + k if m else k] = x[:, j * L : (j + 1) * L]
        paths = found
    return {p: v[0, -1] for p, v in paths.items()}


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(0, 10**6),
)
def test_paths_are_those_of_a_loop(data, layers, heads, B, L, seed):
    "Any number of blocks, cut anywhere."
    cuts = tuple(sorted(data.draw(st.sets(st.integers(0, layers - 1), max_size=3))))
    nets = {k: network(seed + s, layers, heads).eval() for k, s in (('L', 0), ('F', 1))}
    x = histories(np.random.default_rng(seed), B, L)
    with torch.no_grad():
        z = modular(tuple(nets.values()), x, [n.items() for n in nets.values()], cuts)
        assert z.shape == (2 ** (len(cuts) + 1), B, 8)
        for b in range(B):
            slow = slow_paths(nets, x[b], cuts)
            assert list(slow) == path_names(len(cuts) + 1)
            assert torch.allclose(z[:, b], torch.stack(list(slow.values())), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 4), st.integers(0, 10**6))
def test_mask_and_ends(B, L, halves, seed):
    "The mask is that of a loop, also with fillers between items; the last block at the ends is the last block."
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(np.where(rng.random((B, L)) < 0.3, PAD, rng.integers(0, 30, (B, L))))
    mask = side_by_side(x, halves)
    assert torch.equal(mask, torch.cat([slow_mask(s, halves) for s in x.tolist()]))
    block, inputs = (
        network(seed).eval().encoder.blocks[0],
        torch.randn(B, halves * L, 8, generator=torch.Generator().manual_seed(seed)),
    )
    assert torch.allclose(read_ends(block, inputs, mask, L), block(inputs, mask)[:, L - 1 :: L], atol=1e-5)


def test_what_a_path_knows():
    """A path knows the history of both halves and no other row; its weights all get a gradient, those of the frozen
    network none."""
    one, two = network(0), freeze(network(1))
    x = histories(np.random.default_rng(0), 6, 7)

    def tables():
        return (one.items(), two.items())

    z = modular((one, two), x, tables())
    for p, part in zip(range(4), path_names()):
        grads = dict(
            zip(
                [n for n, _ in one.named_parameters()],
                torch.autograd.grad(
                    z[p].square().sum() + z[p].sum(), list(one.parameters()), retain_graph=True, allow_unused=True
                ),
            )
        )
        touched = {n.split('.')[0] for n, g in grads.items() if g is not None and bool(g.any())}
        assert touched == ({'items', 'embedding', 'encoder'} if part[1] == 'L' else {'items', 'embedding'}), (
            'also the path of frozen modules reads the learnable embedding'
        )
    other = x.clone()
    other[3, -1] = (other[3, -1] + 1) % 30
    moved = (modular((one, two), other, tables()) - z).abs().amax(-1) > 1e-6
    assert moved[:, 3].all() and not moved[:, [0, 1, 2, 4, 5]].any()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 8),
    st.integers(1, 9),
    st.integers(1, 6),
    st.sampled_from(['product', 'cosine']),
    st.integers(0, 10**6),
)
def test_guided_loss_written_out(R, B, d, agree, seed):
    z = torch.randn(R, B, d, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    losses, agreement = pair_losses(z, agree)
    for k, (u, v) in enumerate(itertools.combinations(z, 2)):
        s, to = u @ v.T, torch.arange(B)
        assert math.isclose(losses[k], (F.cross_entropy(s, to) + F.cross_entropy(s.T, to)) / 2, abs_tol=1e-9)
        assert math.isclose(
            agreement[k],
            (u * v).sum(1).mean() if agree == 'product' else F.cosine_similarity(u, v).mean(),
            abs_tol=1e-9,
        )
    w = pair_weights(agreement)
    assert (
        math.isclose(w.sum(), 1, abs_tol=1e-9)
        and torch.equal(w.argsort(), (-agreement).argsort())
        and math.isclose(guided(z, agree), (w * losses).sum(), abs_tol=1e-9)
    )
    assert torch.allclose(
        pair_losses(z[torch.randperm(R)], agree)[0].sort().values, losses.sort().values
    )  # no representation comes first


@given(st.integers(1, 300), st.floats(1e-3, 10), st.floats(1e-9, 1e-3))
def test_share_falls_exponentially(rounds, first, last):
    shares = [falling(e, rounds, (first, last)) for e in range(1, rounds + 1)]
    assert (
        math.isclose(shares[0], first)
        and (rounds == 1 or math.isclose(shares[-1], last))
        and falling(rounds + 7, rounds, (first, last)) == shares[-1]
    )
    assert all(
        math.isclose(b / a, (last / first) ** (1 / (rounds - 1)), rel_tol=1e-6) for a, b in zip(shares, shares[1:])
    )


@pytest.fixture(scope='module')
def split():
    rng = np.random.default_rng(0)
    rows = (rng.integers(0, 30, (90, 1)) + np.cumsum(np.where(rng.random((90, 9)) < 0.1, 7, 1), 1)) % 30
    return leave_one_out(
        Dataset(
            Catalogue([f'i{k}' for k in range(30)], {}, {}),
            Interactions.of_sequences([r[:n] for r, n in zip(rows, itertools.cycle((9, 5, 6, 7)))]),
            'circles',
        ),
        history=7,
    )


QUICK = dict(batch=20, lr=5e-3, patience=None, progress=False)


def trained(kind, split, **how):  # -> (weights, figures)
    a, b = network(0, dropout=0.3), network(1, dropout=0.3)
    run = (flame if kind == 'flame' else mutual)(a, b, split, **QUICK | how)
    return torch.cat([p.detach().flatten() for net in (a, b) for p in net.parameters()]), run.frame[
        ['loss', 'NDCG@20']
    ].values.tolist()


@pytest.mark.parametrize('kind', ['flame', 'mutual'])
def test_goes_on_after_any_epoch(kind, split, tmp_path):
    whole = trained(kind, split, rounds=4)
    for stop in (1, 3):
        for _ in range(2):
            torn = trained(
                kind,
                split,
                rounds=4,
                folder=tmp_path / str(stop),
                callback=(lambda r: 'stop' if len(r) == stop else None)
                if not (tmp_path / str(stop)).exists()
                else None,
            )
        assert torch.equal(torn[0], whole[0]) and torn[1] == whole[1]


@pytest.mark.parametrize(
    'other',
    [
        dict(agree='cosine'),
        dict(modules=3),
        dict(cuts=(1,)),
        dict(rounds=9),
        dict(shares=(1.0, 1e-4)),
        dict(autocast='bfloat16'),
    ],
    ids=str,
)
def test_another_run_is_refused(other, split, tmp_path):
    trained('flame', split, **dict(rounds=1, folder=tmp_path))
    with pytest.raises(DataError, match='give it another folder'):
        trained('flame', split, **dict(rounds=1, folder=tmp_path) | other)


def test_frozen_is_frozen(split):
    """No dropout whatever the model does, no gradient, no change; what it was made of goes on as before. The weights
    of pairs pass no gradient."""
    net, origin = network(0, dropout=0.5), network(1, dropout=0.9).train()
    before = [p.detach().clone() for p in origin.parameters()]
    flame(net, origin, split, rounds=1, **QUICK)
    assert origin.training and all(
        p.requires_grad and p.grad is None and torch.equal(p, q) for p, q in zip(origin.parameters(), before)
    )
    anchor, x = freeze(origin), histories(np.random.default_rng(0), 6, 7)
    net.train()
    assert not anchor.training and torch.equal(anchor(x), anchor(x)) and not torch.equal(net(x), net(x))
    z = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = pair_weights(pair_losses(z)[1])
    assert not weights.requires_grad and torch.allclose(
        torch.autograd.grad(guided(z), z)[0], torch.autograd.grad((weights * pair_losses(z)[0]).sum(), z)[0]
    )


def test_paths_draw_apart(monkeypatch):
    "What the paths drop is not what the next batch will drop on its plain path."
    import vlm2rec_lab.recommenders.flame as module

    drawn, true = [], module.modular
    monkeypatch.setattr(module, 'modular', lambda *a: (drawn.append(torch.rand(3)), true(*a))[1])
    x = histories(np.random.default_rng(0), 6, 7)
    loss = Guided(freeze(network(1)))
    for _ in range(2):
        loss(network(0, dropout=0.5).train(), x, x, 1)
    after = torch.rand(3)
    assert not torch.equal(drawn[1], after) and not torch.equal(*drawn)


def test_share_of_nothing_is_sasrec(split):
    """Digit by digit: dropout, order of batches, validation; for FLAME, for mutual learning, for every number of
    modules and an anchor with any dropout."""
    alone = network(0, dropout=0.3)
    run = fit(alone, split, **RECIPE | QUICK, epochs=3)
    for modules, dropout in ((2, 0.3), (3, 0.9), (1, 0.0)):
        net, anchor = network(0, dropout=0.3), network(1, dropout=dropout)
        same = flame(net, anchor, split, modules=modules, rounds=3, shares=(0.0, 0.0), **QUICK)
        assert same.frame[['loss', 'NDCG@20']].equals(run.frame[['loss', 'NDCG@20']]) and all(
            torch.equal(p, q) for p, q in zip(net.parameters(), alone.parameters())
        )
    pair = network(0, dropout=0.3), network(1, dropout=0.3)
    both = mutual(*pair, split, rounds=3, shares=(0.0, 0.0), **QUICK)
    assert both.frame['NDCG@20'].equals(run.frame['NDCG@20']) and all(
        torch.equal(p, q) for p, q in zip(pair[0].parameters(), alone.parameters())
    )
    assert (both.frame['loss'] > run.frame['loss']).all(), 'the second network learns the next item too'
    other = flame(network(0, dropout=0.3), network(1), split, rounds=3, **QUICK)
    assert (other.frame['loss'] != run.frame['loss']).all()


def test_second_peer_learns_as_alone(split):
    "Without a share of agreement the second network's own loss is what teaches it."
    pair = network(0), network(1)
    model = Peers(*pair)
    before = [p.detach().clone() for p in pair[1].parameters()]
    fit(model, split, Guided(None, shares=(0.0, 0.0)), **RECIPE | QUICK, epochs=1)
    alone = network(1)
    fit(alone, split, **RECIPE | QUICK, epochs=1)
    assert not any(torch.equal(p, q) for p, q in zip(pair[1].parameters(), before))
    assert all(
        torch.allclose(p, q, atol=1e-6) for p, q in zip(pair[1].parameters(), alone.parameters())
    )  # no dropout: nothing to differ by


def test_ensemble_of_any_number(split):
    nets = [network(s, dim=d) for s, d in ((0, 8), (1, 4), (2, 12))]
    u, v = represent(Ensemble(nets), split)
    assert (
        np.allclose(u @ v.T, sum(a @ b.T for a, b in (represent(n, split) for n in nets)), atol=1e-5)
        and u.shape[1] == 24
    )


@pytest.mark.parametrize('layers', [1, 2, 3, 6])
def test_split_points(layers):
    assert (
        split_points(layers, 1) == ()
        and split_points(layers) == (0,)
        and split_points(layers, layers + 1) == tuple(range(layers))
    )
