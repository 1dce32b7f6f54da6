"Federations of Flower's apps for tests: what the simulation makes of the same, and a grid in which things go wrong."

import copy

import numpy as np
import torch

from vlm2rec_lab.federated.backbones import get_backbone, rates_of
from vlm2rec_lab.federated.blocks import Pairs
from vlm2rec_lab.federated.flower import begin_items, begin_own, own_draws
from vlm2rec_lab.federated.flower_app import LocalGrid, flower
from vlm2rec_lab.federated.memory import remembered
from vlm2rec_lab.federated.rounds import clients_of, run_round
from vlm2rec_lab.federated.temporal import holding


def of_users(pairs, users):
    "Pairs of some users."
    at = np.isin(pairs.users, list(users))
    return Pairs(pairs.users[at], pairs.items[at])


def simulated(shop, users, plan, absent=None, loop=None):
    """(items, private parameters of all users) of the simulation, with who is absent in a round left out of it.

    `absent` is {number of a round: users, or None for all}. `loop(name, vectors, private, steps, rates, memory,
    recall)` gives (mean, private parameters, loss) of a round, which is held against that of the simulation.
    """
    b, absent = get_backbone(plan.backbone), absent or {}
    items = begin_items(b, plan.sizes[-1], plan.dim, plan.seed)
    begun = [begin_own(b, plan.dim, plan.seed, u) for u in range(len(shop.user_ids))]
    begun = {k: torch.cat([one[k] for one in begun]) for k in begun[0]}
    private = {k: v.clone() for k, v in begun.items()}
    number, memory, old, earlier = 0, None, items[:0], []
    for k, block in enumerate(shop.blocks):
        train, vectors = of_users(block.train, users), items[: block.items]
        if k and plan.memory:
            known = {name: v[: shop[k - 1].users] for name, v in private.items()}
            took_part = torch.from_numpy(np.unique(of_users(shop[k - 1].train, users).users))
            memory = remembered(*b.head(known), old, took_part, memory, plan.length, plan.eps, plan.weight)
        if plan.renew and k:
            for name, v in private.items():
                v[np.unique(train.users)] = begun[name][np.unique(train.users)]
        server = holding(old, plan.beta) if k and plan.temporal else None
        for _ in range(plan.rounds):
            number += 1
            away = absent.get(number, set())
            if away is None:
                continue
            clients = clients_of(of_users(train, set(users) - away), earlier, block.items)
            rates = rates_of(b, plan.lr, block.items)
            draws = own_draws(clients, plan.negatives, plan.batch, plan.seed, number, memory)
            expected = None
            if loop is not None:
                mine = {name: v[clients.users] for name, v in private.items()}
                expected = loop(b.name, vectors.clone(), mine, draws[0], rates, memory, draws[1])
            how = dict(batch=plan.batch, negatives=plan.negatives, memory=memory, server=server, draws=draws)
            run_round(b, vectors, private, clients, rates, None, **how)
            if expected is not None:
                mean, kept, _ = expected
                assert (vectors - (mean if server is None else server(mean))).abs().max() < 1e-6
                assert all((private[name][clients.users] - v).abs().max() < 1e-6 for name, v in kept.items())
        old, earlier = vectors.clone(), [*earlier, block.train, block.valid]
    return items.numpy(), private


def spoil(reply, how):
    "A reply with something wrong in it."
    f, content = flower(), reply.content
    [label] = content.array_records
    record = content[label]
    change = record['change'].numpy()
    replaced = {
        'nan': change * np.float32('nan'),
        'infinite': change + np.float32('inf'),
        'narrow': change[:, :1],
        'scalar': change.sum(),
        'double': change.astype(np.float64),
        'text': np.array(['x']),
        'huge': change * np.float32(1e6),
        'largest': np.full_like(change, 3e38),
    }
    if how in replaced:
        record['change'] = f.Array(np.asarray(replaced[how]))
    elif how == 'junk':
        record['change'] = f.Array('float32', change.shape, 'numpy.ndarray', b'junk')
    elif how == 'zip':
        record['change'] = f.Array('float32', change.shape, 'numpy.ndarray', b'PK\x05\x06' + b'\0' * 18)
    elif how == 'pickle':
        record['change'] = f.Array('object', (1,), 'numpy.ndarray', pickled())
    elif how == 'kind':
        record['change'] = f.Array('float32', change.shape, 'torch.tensor', record['change'].data)
    elif how == 'renamed':
        record['weights'] = record.pop('change')
    elif how == 'more':
        record['weight'] = f.Array(np.ones(1, np.float32))
    elif how == 'several':
        content['another'] = f.ArrayRecord({'change': f.Array(change)})
    elif how == 'long':
        content['x' * 999] = content.pop(label)
    elif how == 'number':
        content['answer']['number'] = content['answer']['number'] + 1
    elif how == 'silent':
        del content['answer']
    elif how == 'idle':
        content['answer']['idle'] = 'not a list'
    elif how == 'nothing':
        content.clear()
    return reply


def pickled():
    "An array that is a pickle: to read it would run what its sender wishes."
    import io

    out = io.BytesIO()
    np.save(out, np.array([{'a': 1}], dtype=object), allow_pickle=True)
    return out.getvalue()


class Troubled(LocalGrid):
    "A grid of which {(node, number of a round): what goes wrong} is known."

    trouble, held, dead = {}, (), ()

    def send_and_receive(self, messages, *, timeout=None):
        "Late answers come with those of the next round, before them; the killed do not come back."
        replies, self.held = [*self.held], []
        for message in messages:
            node = message.metadata.dst_node_id
            what = self.trouble.get((node, int(message.metadata.group_id)))
            if node in self.dead or what == 'away':  # it never hears of the request
                continue
            if what == 'killed':
                self.dead = {*self.dead, node}
                continue
            reply = copy.deepcopy(self.answer(message))
            if what == 'late':
                self.held = [*self.held, reply]
            elif what == 'twice':
                replies += [reply, copy.deepcopy(reply)]
            else:
                replies.append(reply if what is None else spoil(reply, what))
        return replies
