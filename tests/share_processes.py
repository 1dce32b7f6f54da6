"""What readers and writers of the process tests do: python share_processes.py read|write|killed FOLDER [SEED ROUNDS]

Items come in threes that are added, replaced and taken out together. What a vector is follows from the id and from the
number of the three's generation, so that half a version would show.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.share import segments
from vlm2rec_lab.share.index import Index, build_index
from vlm2rec_lab.share.segments import unit_rows

THREES, DIMS = 12, {'text': 5, 'image': 3}


def three(number, generation):
    "Vectors and table of three items."
    rngs = [np.random.default_rng([number, place, generation]) for place in range(3)]
    vectors = {m: np.stack([rng.normal(size=d) for rng in rngs]) for m, d in DIMS.items()}
    ids = [f'{number}/../{place}' for place in range(3)]
    return vectors, pd.DataFrame(dict(item_id=ids, generation=[generation] * 3))


def fault(index):
    "What is wrong with a version; None for one that is whole."
    table = index.table
    if len(table) != len(index) or list(table.item_id) != list(index.ids):
        return 'table and rows differ'
    numbers = table.item_id.str.split('/').str[0].astype(int)
    for number, mine in table.groupby(numbers.to_numpy()):
        if len(mine) != 3 or mine.generation.nunique() != 1:
            return f'three {number} is not whole'
        vectors, expected = three(number, int(mine.generation.iloc[0]))
        mine = mine.sort_values('item_id')
        if list(mine.item_id) != list(expected.item_id):
            return f'three {number} has other ids'
        for m, x in vectors.items():
            if not (np.asarray(index.vectors[m][mine.index.to_numpy()]) == unit_rows(x)).all():
                return f'three {number} has other vectors'
        if index.query(vectors, 1).ids[:, 0].tolist() != list(expected.item_id):
            return f'three {number} is not found'
    return None


def change(index, rng, generation):
    "One change of one three."
    number = rng.randrange(THREES)
    there = f'{number}/../0' in Index(index.folder)._version.places
    if there and rng.random() < 0.4:
        index.remove([f'{number}/../{place}' for place in range(3)])
    else:
        index.add(*three(number, generation), replace=True)


def write(folder, seed, rounds):
    "Changes, one after the other."
    rng, index = random.Random(seed), Index(folder)
    for r in range(rounds):
        change(index, rng, seed * 1_000_000 + r)
    print(json.dumps(dict(version=index.version, segments=len(index._version.segments))))


def read(folder, until):
    "Look at every version that there is until a file appears; what was wrong and how many were seen."
    index, seen, wrong = Index(folder), set(), []
    while not Path(until).exists():
        before = index.version
        index = index if index.refresh() or random.random() < 0.5 else Index(folder)
        wrong += ['an older version'] * (index.version < before) + list(filter(None, [fault(index)]))
        seen.add(index.version)
    print(json.dumps(dict(seen=len(seen), wrong=wrong)))


def killed(folder, seed, rounds):
    "Writers that are killed at any moment; what was wrong, and how many versions there were in the end."
    rng, wrong, after = random.Random(seed), [], []
    for r in range(rounds):
        if not (pid := os.fork()):
            index, own = Index(folder), random.Random(seed * 1000 + r)
            for k in range(10**6):
                change(index, own, (r + 1) * 1_000_000 + k)
        time.sleep(rng.uniform(0.01, 0.12))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        index = Index(folder)
        wrong += filter(None, [fault(index)])
        after.append(index.version)
    print(json.dumps(dict(wrong=wrong, versions=after, rising=after == sorted(after))))


STEPS = (
    (os, 'replace'),
    (os, 'unlink'),
    (Path, 'unlink'),
    (np, 'save'),
    (segments, '_head'),
    (segments, 'write_bytes'),
)
STEPS += ((segments, 'write_table'), (segments, 'put_manifest'), (os, 'chmod'))


def step_by_step(folder):
    "A writer that is killed before, and after, each of its steps: how often it left the old version, and the new one."
    done = dict(old=0, new=0, wrong=[])
    for at in range(10_000):
        before = Index(folder).version
        if not (pid := os.fork()):
            os._exit(_die_at(folder, at))
        _, status = os.waitpid(pid, 0)
        index = Index(folder)
        done['wrong'] += filter(None, [fault(index)])
        done['new' if index.version > before else 'old'] += 1
        if os.WIFEXITED(status):  # it got to the end
            return done | dict(steps=at, status=os.WEXITSTATUS(status))


def _die_at(folder, at):
    "A change whose process is killed at a step."
    count = [0]

    def dying(f):
        def step(*args, **kw):
            for moment in range(2):
                if count[0] == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count[0] += 1
                if not moment:
                    found = f(*args, **kw)
            return found

        return step

    index = Index(folder)
    for place, name in STEPS:
        setattr(place, name, dying(getattr(place, name)))
    import vlm2rec_lab.share.index as rooms

    rooms.put_manifest = segments.put_manifest
    index.add(*three(at % THREES, at + 1), replace=True)
    index.remove([f'{at % THREES}/../{place}' for place in range(3)])
    return 0


def main(what, folder, *rest):
    "One of the parts above."
    if what == 'build':
        build_index(folder, *three(0, 0))
    elif what == 'steps':
        print(json.dumps(step_by_step(folder)))
    elif what == 'second':
        try:
            Index(folder).remove(['0/../0'])
        except DataError as e:
            print(e)
    else:
        dict(read=read, write=write, killed=killed)[what](folder, *(int(x) if x.isdecimal() else x for x in rest))


if __name__ == '__main__':
    main(*sys.argv[1:])
