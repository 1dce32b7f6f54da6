"A federated round as a plain loop over clients, by autograd and SGD of PyTorch: what the rooms are held against."

import math

import torch
import torch.nn.functional as F


def score(name, mine, vectors):
    "Scores of all vectors by a client's private parameters, as the papers have them."
    if name == 'FedMF':
        return vectors @ mine['user']
    if name == 'FedMLP':
        both = torch.cat([mine['user'].expand(len(vectors), -1), vectors], 1)
        return both @ mine['layer'] + mine['bias']
    return vectors @ mine['head'] + mine['bias']


def recalled(scores, memory):
    "The loss of Adaptive Replay Memory for one client: memory is (list, old scores there, lots, eps, weight)."
    listed, old, lots, eps, weight = memory
    order = torch.argsort(scores.detach(), descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    apart = int((place[listed] - torch.arange(len(listed))).abs().sum())
    count = math.floor(len(listed) * math.exp(-eps * apart))
    if count == 0:
        return 0.0
    kept = torch.argsort(lots)[:count]
    new, target = scores[listed[kept]].sigmoid(), old[kept].sigmoid()
    return weight * F.binary_cross_entropy(new, target)


def loop_round(name, shared, private, steps, rates, memories=None, contents=None):
    """(mean of what the clients share, private parameters, the mean loss of samples) after a round.

    `memories` is {client: function of the number of a step -> memory, as `recalled` has it}.
    """
    rows = contents.rows if contents else 0
    sent, kept, losses = [], {k: v.clone() for k, v in private.items()}, []
    for c in range(len(next(iter(private.values())))):
        adapters, own = (part.clone().requires_grad_() for part in (shared[:rows], shared[rows:]))
        mine = {k: v[c].clone().requires_grad_() for k, v in private.items()}
        for number, step in enumerate(steps):
            at = step.rows == c
            if not at.any():
                continue

            def loss():
                made = own + contents.table[: len(own)].to(own.dtype) @ adapters if contents else own
                scores = score(name, mine, made)
                asked, labels = scores[step.items[at]], step.labels[at].to(scores.dtype)
                losses.append((F.binary_cross_entropy_with_logits(asked, labels).item(), len(asked)))
                more = recalled(scores, memories[c](number)) if memories and c in memories else 0.0
                return F.binary_cross_entropy_with_logits(asked, labels) + more

            heads = torch.optim.SGD([dict(params=[v], lr=rates[k]) for k, v in mine.items()])
            groups = [dict(params=[adapters], lr=rates['items'] * contents.reach)] if contents else []
            groups += [] if contents and not contents.own else [dict(params=[own], lr=rates['items'])]
            items, table = torch.optim.SGD(groups), [v for group in groups for v in group['params']]
            for v, grad in zip((*mine.values(), *table), torch.autograd.grad(loss(), [*mine.values(), *table])):
                v.grad = grad
            heads.step()
            if name == 'PFedRec':  # another look at the batch before the items move
                for v, grad in zip(table, torch.autograd.grad(loss(), table)):
                    v.grad = grad
                losses.pop()
            items.step()
        sent.append(torch.cat([adapters, own]).detach())
        for k, v in mine.items():
            kept[k][c] = v.detach()
    whole = sum(n for _, n in losses)
    return torch.stack(sent).mean(0), kept, sum(v * n for v, n in losses) / whole
