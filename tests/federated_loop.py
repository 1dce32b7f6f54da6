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


def loop_round(name, vectors, private, steps, rates, memories=None):
    """(mean of the clients' items, private parameters, the mean loss of samples) after a round.

    `memories` is {client: function of the number of a step -> memory, as `recalled` has it}.
    """
    sent, kept, losses = [], {k: v.clone() for k, v in private.items()}, []
    for c in range(len(next(iter(private.values())))):
        own = vectors.clone().requires_grad_()
        mine = {k: v[c].clone().requires_grad_() for k, v in private.items()}
        for number, step in enumerate(steps):
            at = step.rows == c
            if not at.any():
                continue

            def loss():
                scores = score(name, mine, own)
                asked, labels = scores[step.items[at]], step.labels[at].to(scores.dtype)
                losses.append((F.binary_cross_entropy_with_logits(asked, labels).item(), len(asked)))
                more = recalled(scores, memories[c](number)) if memories and c in memories else 0.0
                return F.binary_cross_entropy_with_logits(asked, labels) + more

            heads = torch.optim.SGD([dict(params=[v], lr=rates[k]) for k, v in mine.items()])
            items = torch.optim.SGD([own], lr=rates['items'])
            both = torch.autograd.grad(loss(), [*mine.values(), own])
            for v, grad in zip((*mine.values(), own), both):
                v.grad = grad
            heads.step()
            if name == 'PFedRec':  # another look at the batch before the items move
                own.grad = torch.autograd.grad(loss(), [own])[0]
                losses.pop()
            items.step()
        sent.append(own.detach())
        for k, v in mine.items():
            kept[k][c] = v.detach()
    whole = sum(n for _, n in losses)
    return torch.stack(sent).mean(0), kept, sum(v * n for v, n in losses) / whole
