"""The service under load: latencies, memory, and new items while it answers.

    python benchmarks/serve.py [--requests 4000] [--rate 200] [--out FILE.json]

A server of 20,000 items with two modalities of 128 dimensions, in a process of its own, and a client that sends
questions in open loop: each at its planned time, however long those before it take. A latency counts from the planned
time, so that waiting is not hidden. Six of ten questions are recommendations, a quarter neighbours, the rest reasons;
some of them with conditions, weights or diversity. Every five seconds a new item is added and looked for.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from common import machine, say  # noqa: E402

from vlm2rec_lab.share.index import build_index  # noqa: E402

ITEMS, DIMS, CONNECTIONS, EVERY = 20_000, dict(text=128, image=128), 64, 5.0
TOKEN = 'a-token-for-the-benchmark'
MIX = dict(recommend=0.60, similar=0.25, why=0.15)


def make_index(folder, seed=0):
    "An index of random items in a thousand clusters."
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 1000, ITEMS)
    vectors = {m: rng.normal(size=(1000, d))[group] + 0.7 * rng.normal(size=(ITEMS, d)) for m, d in DIMS.items()}
    vectors['image'][::20] = 0
    table = pd.DataFrame(
        dict(item_id=[f'item-{k:06d}' for k in range(ITEMS)], title=[f'thing {k}' for k in range(ITEMS)])
    )
    table['price'], table['kind'] = rng.random(ITEMS).round(2) * 100, (group % 20).astype(str)
    build_index(folder, {m: v.astype(np.float32) for m, v in vectors.items()}, table)


def message(method, path, body=None):
    "A request in bytes."
    data = b'' if body is None else json.dumps(body).encode()
    head = f'{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n'
    if body is not None:
        head += f'Content-Type: application/json\r\nContent-Length: {len(data)}\r\n'
    return f'{head}\r\n'.encode() + data


def questions(n, seed=1):
    "Yield (kind, request) at random."
    rng = np.random.default_rng(seed)
    for kind in rng.choice(list(MIX), n, p=list(MIX.values())):
        ids = [f'item-{k:06d}' for k in rng.integers(0, ITEMS, rng.integers(1, 21))]
        if kind == 'similar':
            yield kind, message('GET', f'/similar/{ids[0]}?k=10')
            continue
        body = dict(history=ids)
        if kind == 'why':
            body['item'] = f'item-{rng.integers(0, ITEMS):06d}'
        else:
            body |= [
                {},
                {},
                dict(weights=dict(text=1, image=0.5)),
                dict(where=[['price', '<', 50]]),
                dict(diversity=0.3),
            ][rng.integers(0, 5)]
        yield kind, message('POST', f'/{kind}', body)


class Client:
    "Connections to a server that stay open."

    def __init__(self, address):
        self.host, self.port = address.removeprefix('http://').split(':')
        self.free = asyncio.Queue()  # each in its turn, so that none is idle so long that the server closes it

    async def open(self):
        "All connections."
        for _ in range(CONNECTIONS):
            self.free.put_nowait(await asyncio.open_connection(self.host, int(self.port)))

    async def ask(self, request):
        "Status and body of the answer; 0 where the connection broke."
        reader, writer = await self.free.get()
        try:
            if reader.at_eof():
                reader, writer = await asyncio.open_connection(self.host, int(self.port))
            writer.write(request)
            head = await reader.readuntil(b'\r\n\r\n')
            length = int(head.lower().partition(b'content-length: ')[2].partition(b'\r\n')[0])
            return int(head[9:12]), await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(self.host, int(self.port))
            return 0, b''
        finally:
            self.free.put_nowait((reader, writer))


def memory(pid):
    "Megabytes of a process that are its own, and all that it has in memory, the mapped vectors included."
    said = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines() if ':' in line)
    return dict(own=int(said['RssAnon'].split()[0]) / 1024, all=int(said['VmRSS'].split()[0]) / 1024)


def worked(pid):
    "Seconds of processors that a process has used."
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


async def write(client, number):
    "Add an item and look for it: seconds to add it, and whether it was found."
    rng, begun = np.random.default_rng(number), time.perf_counter()
    item = dict(id=f'new-{number}', columns=dict(title=f'new thing {number}', price=1.0, kind='new'))
    item['vectors'] = {m: rng.normal(size=d).tolist() for m, d in DIMS.items()}
    status, _ = await client.ask(message('POST', '/items', dict(items=[item])))
    took = time.perf_counter() - begun
    near, found = await client.ask(message('GET', f'/similar/new-{number}?k=3'))
    return took, status == 200 and near == 200 and len(json.loads(found)['items']) == 3


async def drive(address, pid, n, rate):
    "All questions: latencies by kind, statuses, what was written, memory at the quarters."
    client, asked = Client(address), questions(n)
    await client.open()
    for _, request in questions(200, seed=2):
        await client.ask(request)
    late, statuses, writes, held, running = [], {}, [], [memory(pid)], set()
    begun, cpu, own = time.perf_counter(), worked(pid), time.process_time()

    async def one(kind, request, planned):
        status, _ = await client.ask(request)
        late.append((kind, time.perf_counter() - planned))
        statuses[status] = statuses.get(status, 0) + 1

    async def write_some():
        for number in range(int(n / rate / EVERY)):
            await asyncio.sleep(max(0, begun + (number + 0.5) * EVERY - time.perf_counter()))
            writes.append(await write(client, number))

    writer = asyncio.create_task(write_some())
    for k, (kind, request) in enumerate(asked):
        planned = begun + k / rate
        if (wait := planned - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(kind, request, planned))
        running.add(task)
        task.add_done_callback(running.discard)
        if k and k % max(1, n // 4) == 0:
            held.append(memory(pid))
            say(f'{k:,} of {n:,}')
    while running:
        await asyncio.wait(running)
    took = time.perf_counter() - begun
    await writer
    held.append(memory(pid))
    cpus = dict(server=worked(pid) - cpu, client=time.process_time() - own)
    return late, statuses, writes, held, took, cpus


def summary(late, statuses, writes, held, took, cpus):
    "The figures of a run."
    ms = {kind: 1000 * np.array([s for k, s in late if kind in (k, 'all')]) for kind in ('all', *MIX)}
    ms['all'] = 1000 * np.array([s for _, s in late])
    cuts = dict(p50=50, p95=95, p99=99, max=100)
    return dict(
        requests=len(late),
        seconds=took,
        rps=len(late) / took,
        ms={kind: {name: float(np.percentile(x, q)) for name, q in cuts.items()} for kind, x in ms.items()},
        statuses={str(s): c for s, c in sorted(statuses.items())},
        memory_mb=held,
        cpu_seconds=cpus,
        added=len(writes),
        found=sum(ok for _, ok in writes),
        add_ms=1000 * float(np.median([s for s, _ in writes])) if writes else None,
    )


def goals(found, rate):
    "Rows of the table: what is wanted, what was reached, and whether that is enough."
    bad = sum(c for s, c in found['statuses'].items() if s != '200')
    own = [h['own'] for h in found['memory_mb']]
    growth = own[-1] - own[len(own) // 2]
    p = found['ms']['all']
    return [
        ('requests a second', f'{rate:g}', f'{found["rps"]:.1f}', found['rps'] > 0.99 * rate),
        ('p50, p95, ms', '', f'{p["p50"]:.1f}, {p["p95"]:.1f}', None),
        ('p99, ms', 'below 50', f'{p["p99"]:.1f}', p['p99'] < 50),
        ('slowest, ms', '', f'{p["max"]:.1f}', None),
        ('answers other than 200', 'none', f'{bad}', bad == 0),
        (
            'own memory, MB: start, middle, end',
            'flat',
            ', '.join(f'{own[i]:.0f}' for i in (0, len(own) // 2, -1)),
            growth < 16,
        ),
        (
            'items added, and found at once',
            'all',
            f'{found["added"]}, {found["found"]}',
            found['added'] == found['found'],
        ),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--requests', type=int, default=4000)
    parser.add_argument('--rate', type=float, default=200.0, help='requests a second')
    parser.add_argument('--out', help='file to write')
    o = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as work:
        make_index(Path(work) / 'index')
        argv = [sys.executable, '-m', 'vlm2rec_lab', 'serve', f'{work}/index', '--port', '0', '--rate', '1000000']
        server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ | dict(VLM2REC_TOKEN=TOKEN))
        try:
            ready, address = server.stdout.readline().strip(), server.stdout.readline().split()[1]
            say(ready)
            found = summary(*asyncio.run(drive(address, server.pid, o.requests, o.rate)))
        finally:
            server.terminate()
            server.wait(20)
    load = dict(before=before['load'], after=[round(x, 2) for x in os.getloadavg()])
    found = dict(machine=before, load=load, items=ITEMS, dims=DIMS, mix=MIX, rate=o.rate, ready=ready) | found
    table = goals(found, o.rate)
    width = max(len(row[0]) for row in table)
    for what, goal, figure, met in table:
        print(f'{what:{width}}  {goal:9}  {figure:24}  {"" if met is None else "yes" if met else "NO"}'.rstrip())
    print(f'load of the machine: {load["before"][0]} before, {load["after"][0]} after, on {before["cores"]} cores')
    if o.out:
        Path(o.out).write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
