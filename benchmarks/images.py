"""Pictures a second: a plain Pillow loop, decode_images, and the cache: python benchmarks/images.py [--images 2000]
[--size 640x480] [--out FILE.json]

Pictures a second are those of the clock; a ratio is one of sums of CPU seconds, all threads and processes counted."""

import io
import json
import multiprocessing
import os
import platform
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from fastcore.script import call_parse
from PIL import Image
from PIL import __version__ as pillow

from vlm2rec_lab.data import Catalogue, write_bytes
from vlm2rec_lab.shop.images import decode_images, model_size

WAYS = {
    'plain': 'plain loop: open, RGB, bicubic, one picture after the other',
    'processes': 'the same loop in as many processes as there are threads: what the cores give',
    'exact': 'decode_images, exact, to an empty cache',
    'draft': 'decode_images, exact=False, to an empty cache',
    'again': 'decode_images, all in the cache (reads and hashes the files)',
    'read': 'reading the decoded pixels from the cache',
}


WORK = {  # beside the plain loop
    'plain': 'decoded and scaled',
    'processes': 'the same pixels',
    'exact': 'the same pixels, written to a cache',
    'draft': 'not the same: other pixels, written to a cache',
    'again': 'not the same: nothing is decoded',
    'read': 'not the same: nothing is decoded',
}


def cpu_seconds():
    "CPU seconds so far of all threads of this process, and of its children that have ended."
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def photograph(seed, size):
    "A JPEG with detail at several scales, as bytes."
    rng, (w, h) = np.random.default_rng(seed), size
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (max(1, h // s), max(1, w // s), 3), dtype=np.uint8)).resize(
                size, Image.Resampling.BICUBIC
            ),
            np.float32,
        )
        for s in (160, 40, 10, 3)
    ]
    out = io.BytesIO()
    Image.fromarray((np.tensordot([0.5, 0.25, 0.17, 0.08], layers, 1)).astype(np.uint8)).save(out, 'JPEG', quality=88)
    return out.getvalue()


def plain(files):
    "What one would write by hand."
    out = []
    for f in files:
        img = Image.open(f).convert('RGB')
        h, w = model_size(img.height, img.width)
        out.append(np.asarray(img.resize((w, h), Image.Resampling.BICUBIC)))
    return out


def in_processes(files, n):
    "The loop in `n` processes, which keep what they decode to themselves."
    run = [multiprocessing.get_context('fork').Process(target=plain, args=(files[k::n],)) for k in range(n)]
    for p in run:
        p.start()
    for p in run:
        p.join()


@call_parse
def main(
    images: int = 2000,  # how many
    size: str = '640x480',  # width x height of each
    rounds: int = 4,  # the pictures are cut into so many parts, and the ways take turns on each
    workers: int = 2,  # threads of decode_images; the process is kept to as many cores
    out: str = '',  # also write the figures here, as JSON
):
    "Print pictures a second of each way, measured in turns in one run."
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    place, wh = Path(tempfile.mkdtemp()), tuple(map(int, size.split('x')))
    try:
        for i in range(images):
            (place / f'{i:06}.jpg').write_bytes(photograph(i, wh))
        files, seconds, spent = sorted(place.glob('*.jpg')), dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0.0)
        for part, some in enumerate(np.array_split(np.array(files, object), rounds)):
            some, result = list(some), {}
            c = Catalogue([p.stem for p in some], {'image': some}, {'image': 'image'})

            def into(name, data=c):
                return decode_images(
                    data, place / f'cache-{name}-{part}', exact=name != 'draft', workers=workers, progress=False
                ).content['image']

            turns = [
                ('plain', lambda: plain(some)),
                ('processes', lambda: in_processes(some, workers)),
                ('exact', lambda: into('exact')),
                ('draft', lambda: into('draft')),
            ]
            for name, work in (
                turns[part % 4 :]
                + turns[: part % 4]
                + [('again', lambda: into('exact')), ('read', lambda: [int(p.sum()) and p for p in result['again']])]
            ):
                start, cpu = time.perf_counter(), cpu_seconds()
                result[name] = work()
                seconds[name] += time.perf_counter() - start
                spent[name] += cpu_seconds() - cpu
            assert all(
                np.array_equal(a, b) and np.array_equal(a, c)
                for a, b, c in zip(result['plain'], result['exact'], result['again'])
            ), 'the cache differs from the plain loop'
        bytes_each = sum(p.stat().st_size for p in files) / images
    finally:
        shutil.rmtree(place)
    rate = {name: images / s for name, s in seconds.items()}
    print(
        f'{images:,} JPEG files of {size}, {bytes_each / 1e3:.0f} kB each; {workers} threads on {workers} cores; '
        f'Pillow {pillow}, Python {platform.python_version()}'
    )
    print(f"{'':82}{'pictures/s':>12}{'CPU s':>8}{'times plain, CPU':>18}")
    for name, text in WAYS.items():
        print(f"{text:82}{rate[name]:>12,.0f}{spent[name]:>8.2f}{spent['plain'] / spent[name]:>18.2f}")
    if out:
        from common import machine

        write_bytes(
            out,
            json.dumps(
                dict(
                    machine=machine(),
                    images=images,
                    size=size,
                    rounds=rounds,
                    workers=workers,
                    bytes_each=bytes_each,
                    pillow=pillow,
                    python=platform.python_version(),
                    seconds=seconds,
                    cpu_seconds=spent,
                    pictures_per_second=rate,
                    cpu_times_plain={n: spent['plain'] / s for n, s in spent.items()},
                ),
                indent=1,
            ).encode(),
        )
