"""Graph recommenders at size: an epoch, a step beside plain dense code, drawn neighbours, and graphs of near items.

    python benchmarks/graph.py [--users 50000] [--items 100000] [--interactions 1000000] [--dim 64] [--layers 3]
                               [--batches 2048 8192] [--fanout 5 10] [--threads 2] [--parts epoch beside drawn near]
                               [--shops FOLDER ...] [--recbole FOLDER] [--cells FOLDER]
                               [--device cuda] [--out benchmarks/results/graph.json] [--small]

Users draw their items independently, the popular ones more often (the k-th item in proportion to one over the root
of k). VBPR reads a text of 384 and a picture of 512 numbers for each item. What is measured, each in a process of its
own, whose peak memory is told:

- `epoch`: one epoch by `fit_graph` without a look at validation, of LightGCN and VBPR, and of LightGCN where nodes ask
  at most `--fanout` drawn neighbours. On a GPU (`--device cuda`) it is the second epoch, after its kernels are
  loaded, and the most memory that tensors took there is told as well.
- `beside`: a step of training beside plain code of the kind that is published, on the same pairs: LightGCN by a sparse
  COO matrix over users and items with all nodes propagated, VBPR with the contents of all items projected, BPR-MF from
  embedding tables. One thread; rounds in turn, of which CPU seconds are added up. Both must have the same losses.
  With `--recbole`, a folder that `pip install --no-deps --target` put RecBole into, its LightGCN as well.
- `drawn`: a step of LightGCN with all and with drawn neighbours, on this graph and on one ten times as large.
- `near`: the 10 nearest of 5,000 and 20,000 items, in blocks and by a matrix of all pairs.
- `recall` (with `--shops`): what drawn neighbours cost in validation Recall@20, best of 30 epochs.

CPU seconds are those of all threads; wall seconds depend on what else the machine does, which `load` tells.
"""

import argparse
import json
import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

from common import Clock, in_own_process, interleave, machine, quiet, say, table, write

CONTENTS = {'text': 384, 'image': 512}  # numbers of each content
PARTS = 'epoch', 'beside', 'drawn', 'near', 'recall'


def purchases(users, items, interactions, seed):  # -> Split of training pairs alone
    "Drawn pairs, each once."
    import numpy as np

    from vlm2rec_lab.data import Catalogue, Rows, Split

    rng = np.random.default_rng(seed)
    keys = np.zeros(0, np.int64)
    while len(keys) < interactions:
        popular = (items * rng.random(interactions) ** 2).astype(np.int64)
        keys = np.union1d(keys, rng.integers(0, users, interactions) * items + np.minimum(popular, items - 1))
    keys = np.sort(rng.permutation(keys)[:interactions])
    offsets = np.searchsorted(keys, np.arange(users + 1) * items)
    none, names = Rows([], np.zeros((0, 1)), [], [0], []), tuple(map(str, range(items)))
    return Split(Catalogue(names, {}, {}), none, none, none, (offsets, keys % items), 'drawn purchases')


def model_of(name, split, a):
    "The model, and how long it took to make."
    import numpy as np

    from vlm2rec_lab.graph.graph import graph_of
    from vlm2rec_lab.graph.make import make_model
    from vlm2rec_lab.graph.models import LightGCN

    if name == 'LightGCN':
        with Clock() as c:
            model = LightGCN(graph_of(split), a.dim, a.layers, fanout=getattr(a, 'fanout', None))
        return model, c.wall
    rng = np.random.default_rng(a.seed)
    vectors = {m: rng.normal(size=(a.items, d)).astype(np.float32) for m, d in CONTENTS.items()}
    with Clock() as c:
        model = make_model(name, SimpleNamespace(users=a.users, items=a.items), vectors, dim=a.dim)
    return model, c.wall


def peak_gb():
    "The most memory that this process has had."
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def epoch(a):  # -> dict
    "One epoch by `fit_graph`."
    from vlm2rec_lab.graph.fit import fit_graph

    split = purchases(a.users, a.items, a.interactions, a.seed)
    model, made = model_of(a.model, split, a)
    on_gpu = a.device != 'cpu'
    row = fit_graph(model.to(a.device), split, batch=a.batch, epochs=1 + on_gpu, progress=False).frame.iloc[-1]
    found = dict(model=a.model, batch=a.batch, fanout=a.fanout, threads=a.threads, seconds=round(row.seconds, 2))
    if on_gpu:
        import torch

        found |= dict(gpu_gb=round(torch.cuda.max_memory_allocated() / 2**30, 2))
    return found | dict(cpu=round(row.cpu, 2), made=round(made, 1), peak_gb=peak_gb(), loss=round(row.loss, 4))


def batches(split, batch, seed):
    "Users, positives and negatives of one step after another, without end."
    import torch

    from vlm2rec_lab.training.course import draw_negatives, owned_keys

    owned, n, g = owned_keys(split), len(split.catalogue), torch.Generator().manual_seed(seed)
    while True:
        for at in torch.randperm(len(owned), generator=g).split(batch):
            users, items = owned[at] // n, owned[at] % n
            yield users, items, draw_negatives(users, items, 1, n, owned, g)[:, 0]


def rounds_of(optimiser, loss, pairs, steps, losses):
    "A function that trains on the next pairs and keeps the losses."

    def go(_):
        for batch in (next(pairs) for _ in range(steps)):
            value = loss(*batch)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            losses.append(float(value.detach()))

    return go


def plain_losses(users, positives, negatives, own):
    "BPR and the held norm, as everywhere."
    import torch.nn.functional as F

    bpr = -F.logsigmoid((users * positives).sum(1) - (users * negatives).sum(1)).mean()
    return bpr + 1e-4 * 0.5 * sum(x.norm(2).pow(2) for x in own) / len(users)


def one_matrix(graph):  # -> sparse COO tensor [U + N, U + N]
    "Users and items as nodes of one matrix."
    import torch

    users, items = graph.edges[0], graph.edges[1] + graph.users
    at = torch.cat([torch.stack([users, items]), torch.stack([items, users])], 1)
    n = graph.users + graph.items
    return torch.sparse_coo_tensor(at, graph.to_users.values.repeat(2), (n, n)).coalesce()


def plain_lightgcn(model):  # -> parameters, loss
    "LightGCN with a sparse matrix over users and items, all of which flow in every step."
    import torch

    matrix, U, N = one_matrix(model.graph), model.graph.users, model.graph.items
    user, item = (torch.nn.Parameter(p.detach().clone()) for p in (model.user, model.item))

    def loss(u, p, n):
        layers = [torch.cat([user, item])]
        for _ in range(model.layers):
            layers.append(torch.sparse.mm(matrix, layers[-1]))
        users, items = torch.stack(layers, 1).mean(1).split([U, N])
        return plain_losses(users[u], items[p], items[n], (user[u], item[p], item[n]))

    return [user, item], loss


def plain_vbpr(model):  # -> parameters, loss
    "VBPR that projects the contents of all items in every step."
    import torch

    user, item = (torch.nn.Parameter(p.detach().clone()) for p in (model.user, model.item))
    contents = torch.cat([model.vectors(m) for m in model.modalities], 1)
    matrix = torch.nn.Parameter(torch.cat([w.detach() for w in model.contents.matrices]))
    shift = torch.nn.Parameter(model.contents.shift.detach().clone())

    def loss(u, p, n):
        items = torch.cat([item, contents @ matrix + shift], 1)
        return plain_losses(user[u], items[p], items[n], (user[u], item[p], item[n]))

    return [user, item, matrix, shift], loss


def plain_bpr(model):  # -> parameters, loss
    "Factors in embedding tables."
    import torch

    user, item = (
        torch.nn.Embedding.from_pretrained(p.detach().clone(), freeze=False) for p in (model.user, model.item)
    )

    def loss(u, p, n):
        rows = user(u), item(p), item(n)
        return plain_losses(*rows, rows)

    return [user.weight, item.weight], loss


def recbole_lightgcn(model, folder):  # -> parameters, loss; or why there are none
    "RecBole's own LightGCN. Its matrix is ours: what builds it asks SciPy for a method that SciPy has no longer."
    import numpy as np
    import scipy.sparse
    import torch

    sys.path.append(str(folder))
    try:
        from recbole.model.general_recommender.lightgcn import LightGCN
    except ImportError as e:
        return f'not here: {e}'
    (users, items), U, N, matrix = model.graph.edges, model.graph.users, model.graph.items, one_matrix(model.graph)

    class Theirs(LightGCN):
        def get_norm_adj_mat(self):
            return matrix

    pairs = scipy.sparse.coo_matrix((np.ones(len(users)), (users.numpy(), items.numpy())), (U, N))
    data = SimpleNamespace(num=dict(u=U, i=N).get, inter_matrix=lambda form: pairs)
    data.uid_field, data.iid_field = 'u', 'i'
    asked = dict(USER_ID_FIELD='u', ITEM_ID_FIELD='i', NEG_PREFIX='neg_', device=torch.device('cpu'))
    asked |= dict(embedding_size=model.user.shape[1], n_layers=model.layers, reg_weight=1e-4, require_pow=False)
    theirs = Theirs(asked, data)
    with torch.no_grad():
        theirs.user_embedding.weight.copy_(model.user)
        theirs.item_embedding.weight.copy_(model.item)
    return list(theirs.parameters()), lambda u, p, n: theirs.calculate_loss(dict(u=u, i=p, neg_i=n))


def step_loss_of(model):  # -> loss
    "What a step of ours minimises."
    from vlm2rec_lab.graph.fit import step_loss

    return lambda *batch: step_loss(model, batch, None, model.weights)


PLAIN = {'LightGCN': plain_lightgcn, 'VBPR': plain_vbpr, 'BPR-MF': plain_bpr}


def beside(a):  # -> dict
    "Steps of a model and of plain code in turn."
    import torch

    from vlm2rec_lab.training.course import adam, trained_parts

    split = purchases(a.users, a.items, a.interactions, a.seed)
    model, _ = model_of(a.model, split, a)
    sides, told = {'dense': PLAIN[a.model](model)}, None
    if a.recbole and a.model == 'LightGCN':
        theirs = recbole_lightgcn(model, a.recbole)
        sides, told = (sides, theirs) if isinstance(theirs, str) else (sides | {'RecBole': theirs}, None)
    parts = trained_parts(model)
    ours = [p for _, p in parts], step_loss_of(model)
    runs, losses = {}, {}
    for name, (parameters, loss) in {'ours': ours, **sides}.items():
        optimiser = adam(parts, 1e-3) if name == 'ours' else torch.optim.Adam(parameters, 1e-3)
        losses[name] = []
        runs[name] = rounds_of(optimiser, loss, batches(split, a.batch, a.seed), a.steps, losses[name])
    took = {name: sum(cpu for _, cpu in t) for name, t in interleave(runs, a.rounds).items()}
    apart = max(abs(x - y) for x, y in zip(losses['ours'], losses['dense']))
    found = dict(model=a.model, batch=a.batch, steps=a.steps * a.rounds, losses_apart=float(f'{apart:.1e}'))
    found |= {f'cpu_{name}': round(t / a.steps / a.rounds, 4) for name, t in took.items()}
    found |= {f'ratio_{name}': round(took[name] / took['ours'], 2) for name in sides}
    return found | dict(peak_gb=peak_gb()) | (dict(recbole=told) if told else {})


def drawn(a):  # -> dict
    "Steps of LightGCN with all neighbours and with drawn ones."
    import torch

    from vlm2rec_lab.training.course import adam, trained_parts

    split = purchases(a.users * a.scale, a.items * a.scale, a.interactions * a.scale, a.seed)
    model, _ = model_of('LightGCN', split, SimpleNamespace(dim=a.dim, layers=a.layers))
    optimiser, pairs, g = adam(trained_parts(model), 1e-3), batches(split, a.batch, a.seed), torch.Generator()

    def loss(*batch):
        found = model.losses(*batch, g)
        return found['bpr'] + 1e-4 * found['norm']

    def with_fanout(fanout):
        go = rounds_of(optimiser, loss, pairs, a.steps, [])

        def turn(r):
            model.fanout = fanout
            go(r)

        return turn

    took = interleave({str(f): with_fanout(f) for f in (None, *a.fanout)}, a.rounds)
    mean = {f: sum(cpu for _, cpu in t) / a.rounds / a.steps for f, t in took.items()}
    rows = [dict(fanout=None if f == 'None' else int(f), cpu=round(t, 4)) for f, t in mean.items()]
    return dict(graph=repr(model.graph), batch=a.batch, scale=a.scale, steps=rows, peak_gb=peak_gb())


def near(a):  # -> dict
    "The nearest items, in blocks or by a matrix of all pairs."
    import torch
    import torch.nn.functional as F

    from vlm2rec_lab.graph.graph import nearest_items

    x = torch.randn(a.n, CONTENTS['image'], generator=torch.Generator().manual_seed(a.seed))
    with Clock() as c:
        if a.way == 'blocks':
            found = nearest_items(x, 10)[0]
        else:
            z = F.normalize(x, dim=1)
            found = (z @ z.T).fill_diagonal_(-torch.inf).topk(10, dim=1)[1]
    sums = [int(found.sum()), int((found * torch.arange(1, 11)).sum() % 1_000_003)]
    said = dict(items=a.n, way=a.way, seconds=round(c.wall, 2), cpu=round(c.cpu, 2), peak_gb=peak_gb())
    return said | dict(matrix_gb=round(a.n**2 * 4 / 2**30, 2), found=sums)


def recall(a):  # -> dict
    "The best validation Recall@20 of LightGCN on a shop."
    from vlm2rec_lab.graph.fit import fit_graph
    from vlm2rec_lab.graph.graph import graph_of
    from vlm2rec_lab.graph.models import LightGCN
    from vlm2rec_lab.shop.shares import shares
    from vlm2rec_lab.shop.tables import load_folder

    split = shares(load_folder(a.shop, progress=False))
    graph = graph_of(split)
    model = LightGCN(graph, a.dim, a.layers, seed=a.seed, fanout=a.fanout)
    run = fit_graph(model, split, lr=3e-3, epochs=a.epochs, patience=None, every=5, seed=a.seed, progress=False)
    figure = run.frame['Recall@20']
    found = dict(data=split.name, users=graph.users, items=graph.items, edges=len(graph.to_users.values))
    found |= dict(fanout=a.fanout, seed=a.seed, recall=round(float(figure.max()), 4), best=run.best, epochs=a.epochs)
    return found | dict(cpu_epoch=round(float(run.frame.cpu[figure.isna()].mean()), 2))


def child(asked):
    "One part with its settings; prints what it found as JSON."
    a = SimpleNamespace(**json.loads(asked))
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: a.threads])
    quiet(a.threads)
    found = {f.__name__: f for f in (epoch, beside, drawn, near, recall)}[a.part](a)
    print(json.dumps(found | dict(load=[round(x, 2) for x in os.getloadavg()])))


def asked_parts(a):  # -> {part: list of settings}
    "What is to be run."
    size = {k: getattr(a, k) for k in ('users', 'items', 'interactions', 'dim', 'layers', 'seed')}
    first = a.batches[0]
    epochs = [dict(model=m, batch=b, fanout=None) for m in ('LightGCN', 'VBPR') for b in a.batches]
    epochs[1:1] = [dict(model='LightGCN', batch=first, fanout=f) for f in a.fanout]
    rounds = dict(batch=first, steps=1 if a.small else 4, rounds=2 if a.small else 3)
    ways = [(n, w) for n in ((200,) if a.small else (5000, 20_000)) for w in ('blocks', 'all pairs')]
    shops = [(s, f, seed) for s in a.shops for f in (None, *a.fanout) for seed in range(a.seeds)]
    shop = dict(dim=a.dim, layers=a.layers, epochs=30)
    found = {
        'epoch': [size | e | dict(threads=a.threads, device=a.device) for e in epochs],
        'beside': [size | rounds | dict(model=m, recbole=a.recbole) for m in PLAIN],
        'drawn': [size | rounds | dict(scale=s, fanout=a.fanout) for s in ((1,) if a.small else (1, 10))],
        'near': [dict(n=n, way=w, seed=a.seed) for n, w in ways],
        'recall': [shop | dict(shop=s, fanout=f, seed=seed) for s, f, seed in shops],
    }
    return {part: found[part] for part in PARTS if part in a.parts}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--users', type=int, default=50_000)
    p.add_argument('--items', type=int, default=100_000)
    p.add_argument('--interactions', type=int, default=1_000_000)
    p.add_argument('--dim', type=int, default=64)
    p.add_argument('--layers', type=int, default=3)
    p.add_argument('--batches', type=int, nargs='+', default=[2048, 8192], help='pairs per step')
    p.add_argument('--fanout', type=int, nargs='*', default=[5, 10], help='neighbours that a node asks at most')
    p.add_argument('--threads', type=int, default=2, help='of the epochs')
    p.add_argument('--device', default='cpu', help='of the epochs')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS, help='what to measure')
    p.add_argument('--shops', nargs='*', default=[], help='folders of shops that drawn neighbours are tried on')
    p.add_argument('--seeds', type=int, default=2, help='runs on each shop')
    p.add_argument('--recbole', help='folder that holds RecBole, which is no dependency')
    p.add_argument('--cells', type=Path, help='folder that keeps finished parts, and goes on from there')
    p.add_argument('--small', action='store_true', help='200 users, 300 items, 2,000 interactions: does it run?')
    p.add_argument('--out', type=Path, help='write the figures as JSON here')
    p.add_argument('--child', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(a.child)
    if bad := [f for f in a.fanout if f < 1]:
        p.error(f'--fanout {bad[0]}: let a node ask one neighbour or more')
    if gone := [s for s in a.shops if not Path(s).is_dir()]:
        p.error(f'--shops {gone[0]}: there is no such folder')
    if a.small:
        a.users, a.items, a.interactions = 200, 300, 2000
    found = {
        part: [in_own_process(__file__, a.cells, part, **how) for how in asked]
        for part, asked in asked_parts(a).items()
    }
    print(f'{a.interactions:,} purchases of {a.users:,} users among {a.items:,} items, {a.dim} dimensions')
    for part, rows in found.items():
        for r in rows:
            say(f'{part}: {r}')
        if rows and part != 'drawn':
            print(f'\n{part}\n' + table([{k: v for k, v in r.items() if k not in ('load', 'found')} for r in rows]))
    size = {k: getattr(a, k) for k in ('users', 'items', 'interactions', 'dim', 'layers', 'seed')}
    write(a.out, dict(machine=machine(), size=size, contents=CONTENTS, rows=found.pop('epoch', []), **found))


if __name__ == '__main__':
    main()
