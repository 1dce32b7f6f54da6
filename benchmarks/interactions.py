"""Reading, 5-core and split of many interactions: seconds per stage and peak memory, on two threads.

    python benchmarks/interactions.py [--rows 20000000 100000000] [--plain 1000000] [--out FILE.json]

The log is made here: ids as text, items and users by power laws, times in seconds. Each way runs in a process of
its own that is limited to two threads; its memory is the peak of that process. The plain way is pandas, and runs on
fewer rows.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ('read', '5-core', 'dataset', 'split')


def generate(folder, rows, seed=0, block=2_000_000):
    "The same log as CSV and as Parquet, written block by block."
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv, parquet

    rng, users, items = np.random.default_rng(seed), max(rows // 8, 10), max(rows // 40, 10)
    names = [pa.array([f'{c}{k:010d}' for k in range(n)]) for c, n in (('U', users), ('B', items))]
    schema = pa.schema({'user_id': pa.string(), 'item_id': pa.string(), 'timestamp': pa.int64()})
    with csv.CSVWriter(folder / 'log.csv', schema) as c, parquet.ParquetWriter(folder / 'log.parquet', schema) as p:
        for a in range(0, rows, block):
            n = min(block, rows - a)
            picks = [
                np.minimum((size * rng.random(n) ** power).astype(np.int64), size - 1)
                for size, power in ((users, 2.2), (items, 3))
            ]  # density falls with a power of the rank
            t = pa.table(
                [
                    names[0].take(pa.array(picks[0])),
                    names[1].take(pa.array(picks[1])),
                    pa.array(rng.integers(1_300_000_000, 1_600_000_000, n)),
                ],
                schema=schema,
            )
            c.write_table(t)
            p.write_table(t)


def fast(path):
    "The readers: seconds per stage, and what came out."
    from vlm2rec_lab.data import leave_one_out
    from vlm2rec_lab.shop.items import join
    from vlm2rec_lab.shop.log_files import read_log
    from vlm2rec_lab.shop.logs import filtered

    clock, notes = [time.perf_counter()], []
    log = read_log(path, notes=notes, progress=False)
    clock.append(time.perf_counter())
    log = filtered(log, 5, None, notes)
    clock.append(time.perf_counter())
    data = join(log, None, 'log', notes)
    clock.append(time.perf_counter())
    del log
    split = leave_one_out(data, history=10)
    clock.append(time.perf_counter())
    return clock, dict(
        users=len(data.interactions),
        items=len(data.catalogue),
        interactions=len(data.interactions.items),
        rows=len(split.train),
        checksum=checksum(split),
    )


def plain(path):
    "The same with pandas, one stage after the other, as one writes it at first."
    import numpy as np
    import pandas as pd

    from vlm2rec_lab.data import Catalogue, Dataset, Interactions, leave_one_out

    clock = [time.perf_counter()]
    df = pd.read_csv(path, dtype={'user_id': str, 'item_id': str}) if path.suffix == '.csv' else pd.read_parquet(path)
    df = df.drop_duplicates(['user_id', 'item_id', 'timestamp'])
    clock.append(time.perf_counter())
    while True:
        ok = df.groupby('user_id')['item_id'].transform('size').ge(5) & df.groupby('item_id')['user_id'].transform(
            'size'
        ).ge(5)
        if ok.all():
            break
        df = df[ok]
    clock.append(time.perf_counter())
    df = df.reset_index(drop=True)
    catalogue = Catalogue(tuple(df['item_id'].unique()), {}, {})
    data = Dataset(catalogue, Interactions.from_frame(df, catalogue), 'log')
    clock.append(time.perf_counter())
    split = leave_one_out(data, history=10)
    clock.append(time.perf_counter())
    return clock, dict(
        users=len(data.interactions),
        items=len(np.unique(data.interactions.items)),
        interactions=len(df),
        rows=len(split.train),
        checksum=checksum(split),
    )


def checksum(split):
    "A number that differs where users' sequences differ, whatever order users and items are numbered in."
    import zlib

    import numpy as np

    item = np.fromiter((zlib.crc32(i.encode()) for i in split.catalogue.ids), np.int64, len(split.catalogue))
    user = np.fromiter((zlib.crc32(u.encode()) for u in split.user_ids), np.int64, len(split.user_ids))
    if len(split.train) > 5_000_000:
        return None  # not at the size whose memory is measured
    total = 0
    for part in (split.train, split.valid, split.test):
        h = part.history[:, 0] * 1
        total += int(((user[part.users] * 31 + item[part.targets] * 7 + item[h]) % 1_000_003).sum())
    return total


def child(way, path):
    "Run one way and print its figures as JSON."
    import pyarrow as pa

    pa.set_cpu_count(2)
    pa.set_io_thread_count(2)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu = time.process_time()
    clock, found = {'fast': fast, 'plain': plain}[way](Path(path))
    cpu = time.process_time() - cpu  # of all threads
    took = {s: b - a for s, a, b in zip(STAGES, clock, clock[1:])}
    print(
        json.dumps(
            dict(
                way=way,
                file=Path(path).name,
                seconds={**took, 'total': clock[-1] - clock[0]},
                cpu_seconds=cpu,
                peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                imports_gb=start,
                **found,
            )
        )
    )


def run(way, path):
    "One way in a process of its own, on two threads."
    env = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        **{k: '2' for k in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'ARROW_NUM_THREADS')},
    }
    done = subprocess.run(
        [sys.executable, __file__, '--child', way, str(path)], env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        '--rows', type=int, nargs='+', default=[20_000_000, 100_000_000], help='interactions for the readers'
    )
    p.add_argument('--plain', type=int, default=1_000_000, help='interactions on which both ways are compared')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', type=Path, help='write the figures as JSON here')
    p.add_argument('--child', nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(*a.child)
    found = []
    for rows, ways in ((a.plain, ('fast', 'plain')), *((n, ('fast',)) for n in a.rows)):
        with tempfile.TemporaryDirectory() as d:
            generate(Path(d), rows, a.seed)
            for file in ('log.csv', 'log.parquet'):
                for way in ways:
                    found.append(
                        dict(
                            generated=rows,
                            megabytes=round((Path(d) / file).stat().st_size / 2**20),
                            **run(way, Path(d) / file),
                        )
                    )
                    print(
                        line(found[-1])
                        if len(found) > 1
                        else f"{'generated':>12} {'file':12} {'way':6}"
                        + ''.join(f'{s:>9}' for s in (*STAGES, 'total'))
                        + f"{'peak GB':>9}  5-core\n"
                        + line(found[-1]),
                        flush=True,
                    )
    for file in ('log.csv', 'log.parquet'):
        f, q = (
            [x for x in found if x['file'] == file and x['way'] == way and x['generated'] == a.plain][0]
            for way in ('fast', 'plain')
        )
        assert all(f[k] == q[k] for k in ('users', 'items', 'interactions', 'rows', 'checksum')), (
            'the two ways disagree'
        )
        print(
            f"{file}: the same split from both; pandas takes {q['cpu_seconds'] / f['cpu_seconds']:.1f} times "
            f"the CPU seconds and {q['peak_gb'] / f['peak_gb']:.1f} times the memory at {a.plain:,} interactions"
        )
    if a.out:
        from common import machine

        a.out.write_text(json.dumps(dict(machine=machine(), threads=2, seed=a.seed, runs=found), indent=1))


def line(x):
    return (
        f"{x['generated']:12,} {x['file']:12} {x['way']:6}"
        + ''.join(f"{x['seconds'][s]:9.2f}" for s in (*STAGES, 'total'))
        + f"{x['peak_gb']:9.2f}  {x['users']:,} users, {x['items']:,} items, {x['interactions']:,} interactions"
    )


if __name__ == '__main__':
    main()
