"""Two small encoders that follow the contract of `PairEmbedder` and can be tuned."""

import zlib
from collections import Counter

import numpy as np
import torch

from vlm2rec_lab.base.store import weights_key


class Net(torch.nn.Module):
    "A table of words or a plane of colours, and a linear layer."

    def __init__(self, inputs, size, seed):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randn(inputs, size, generator=rng))
        self.linear = torch.nn.Linear(size, size)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(size) + torch.randn(size, size, generator=rng) / 10)
            self.linear.bias.copy_(torch.randn(size, generator=rng))

    def forward(self, counts):
        return self.linear(counts @ self.table)


class Encoder:
    "What the two have in common."

    def __init__(self, seed=0):
        self.module = Net(self.inputs, self.size, seed).requires_grad_(False).eval()
        self.mark = weights_key(self.module.state_dict(), self.name)
        self.seen = Counter()  # of everything that was encoded, how often

    def prepare(self, contents):
        return {'counts': torch.stack([self.look(c) for c in contents])}

    def forward(self, batch):
        return self.module(batch['counts'])

    def vectors(self, contents, *, batch=64, progress=True, names=None):
        self.seen.update(map(self.called, contents))
        with torch.no_grad():
            return self.forward(self.prepare(contents))


class HashedWords(Encoder):
    "A text as its words."

    kind, name, size, inputs = 'text', 'hashed words', 24, 64
    called = staticmethod(str)

    def look(self, text):
        counts = torch.zeros(self.inputs)
        for word in text.lower().split():
            counts[zlib.crc32(word.encode()) % self.inputs] += 1
        return counts


class Colours(Encoder):
    "A picture as the mean colours of its nine parts."

    kind, name, size, inputs = 'image', 'colours', 16, 27

    @staticmethod
    def called(opened):
        return opened().tobytes()

    def look(self, opened):
        small = np.asarray(opened().convert('RGB').resize((3, 3)), np.float32)
        return torch.from_numpy(small.reshape(-1) / 255)


def encoders(seed=0):
    "One of each."
    return {'text': HashedWords(seed), 'image': Colours(seed)}
