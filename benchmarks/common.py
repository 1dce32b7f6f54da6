"What the benchmarks share: the machine in words, clocks, interleaved timing, tables, results written whole or not."

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the lab beside this folder
os.environ.setdefault('HF_HUB_OFFLINE', '1')
RESULTS = Path(__file__).resolve().parent / 'results'


def machine():  # -> dict, for JSON
    "The machine a figure comes from, with the load that others put on it."
    import torch
    import transformers

    model = (
        next(
            (
                line.split(':', 1)[1].strip()
                for line in Path('/proc/cpuinfo').read_text().splitlines()
                if line.startswith('model name')
            ),
            platform.processor(),
        )
        if Path('/proc/cpuinfo').exists()
        else platform.processor()
    )
    out = dict(
        cpu=model,
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        load=[round(x, 2) for x in os.getloadavg()],
        system=platform.system(),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        out |= dict(gpu=gpu.name, gpu_memory_gb=round(gpu.total_memory / 1e9, 1), cuda=torch.version.cuda)
    return out


def quiet(threads=1):  # of torch
    "One thread unless told otherwise, and no bars of loading."
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(threads)


def say(text):
    "Progress, to stderr."
    print(text, file=sys.stderr, flush=True)


class Clock:
    "Seconds of the wall and of this process's CPU while it runs."

    def __init__(self):
        self.wall = self.cpu = 0.0

    def __enter__(self):
        self._at = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        self.wall += time.perf_counter() - self._at[0]
        self.cpu += time.process_time() - self._at[1]


def interleave(
    runs,  # {name: function of the round's number}
    rounds,  # each runs everything once, in an order that turns
    warm=1,  # rounds before, not counted
):  # -> {name: list of (wall, cpu) per round}
    "Time functions in turn, so that whatever slows the machine slows all of them."
    names, out = list(runs), {name: [] for name in runs}
    for r in range(-warm, rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            with Clock() as c:
                runs[name](r + warm)
            if r >= 0:
                out[name].append((c.wall, c.cpu))
        say(f'round {r + 1} of {rounds}' if r >= 0 else 'warm')
    return out


def memory(key):
    "A figure of this process from /proc in GB, such as RssAnon, its own, or VmHWM, its peak; None where there is none."
    status = Path('/proc/self/status')
    if not status.exists():
        return None
    return round(int(next(x for x in status.read_text().splitlines() if x.startswith(key)).split()[1]) / 1e6, 3)


def quantiles(values):  # -> (middle, lowest, highest)
    "Median and range, rounded for JSON."
    import numpy as np

    return [round(float(f(values)), 4) for f in (np.median, np.min, np.max)]


def ratio_of_sums(above, below):  # one value per round each -> (ratio of the sums, lowest, highest of a round)
    "How many times one side takes of the other, over all rounds: a long round counts as long as it is."
    import numpy as np

    above, below = np.asarray(above, float), np.asarray(below, float)
    each = above / below
    return [round(float(v), 4) for v in (above.sum() / below.sum(), each.min(), each.max())]


def interval_of_sums(above, below, level=0.95):  # one value per seed each -> (ratio of the sums, low, high)
    """The ratio of two sums with an interval over seeds: its logarithm by the delete-one jackknife, with Student's
    quantile."""
    import numpy as np
    from scipy.stats import t

    above, below = np.asarray(above, float), np.asarray(below, float)
    whole, n = above.sum() / below.sum(), len(above)
    if n < 2:
        return [round(float(whole), 2), None, None]
    without = np.log((above.sum() - above) / (below.sum() - below))
    wide = t.ppf((1 + level) / 2, n - 1) * np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return [round(float(v), 2) for v in (whole, whole * np.exp(-wide), whole * np.exp(wide))]


def interval_of_mean(values, level=0.95):  # one value per seed -> (mean, low, high)
    "The mean with Student's interval over seeds."
    import numpy as np
    from scipy.stats import t

    values = np.asarray(values, float)
    wide = (
        t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    )
    middle = float(values.mean())
    return [
        round(v, 4) if v is not None else None
        for v in (middle, *((middle - wide, middle + wide) if wide is not None else (None, None)))
    ]


def in_range(v, digits=2):  # (value, lowest, highest), or with None where there is no range
    "A value with its range in brackets."
    said = f'{v[0]:.{digits}f}'
    return said if v[1] is None else f'{said} ({v[1]:.{digits}f} to {v[2]:.{digits}f})'


def write(path, result):  # file or None; dict
    "Write JSON, atomically."
    if path is None:
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'.{path.name}.{os.getpid()}')
    draft.write_text(json.dumps(result, indent=1) + '\n')
    os.replace(draft, path)


def cell(
    folder,  # of finished parts, or None
    settings,  # dict that names the part
    work,  # function of nothing -> dict
):  # -> dict
    "A part of a benchmark: read if it was finished with these settings before, worked out and kept if not."
    file = (
        folder
        and Path(folder)
        / f'{settings["cell"]}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]}.json'
    )
    if file and file.exists():
        say(f'{file.name}: there already')
        return json.loads(file.read_text())
    found = work()
    write(file, found)
    return found


def in_own_process(script, cells, part, threads=1, **how):  # -> dict
    "A part of a benchmark in a process of its own (`--child`); read where it was finished before."
    asked = dict(part=part, threads=threads, **how)
    env = {k: str(threads) for k in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')}
    root = Path(__file__).resolve().parent.parent

    def work():
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', script, '--child', json.dumps(asked)],
            env={**os.environ, **env, 'PYTHONPATH': str(root)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return json.loads(done.stdout.strip().splitlines()[-1])

    found = cell(cells, asked | dict(cell=part), work)
    say(found)
    return found


def table(rows):  # list of dict with the same keys
    "Rows as a Markdown table."
    if not rows:
        return ''

    def line(cells):
        return '| ' + ' | '.join(str(c) for c in cells) + ' |'

    return '\n'.join([line(rows[0]), line(['---'] * len(rows[0])), *(line(r.values()) for r in rows)])


def circles(longest, items=30, users=80):  # -> Dataset
    "Customers who walk in circles: 4 purchases or more each, fewer than `longest`."
    import numpy as np

    from vlm2rec_lab.data import Catalogue, Dataset, Interactions

    rng = np.random.default_rng(0)
    walk = (rng.integers(0, items, (users, 1)) + np.arange(longest)) % items
    return Dataset(
        Catalogue([f'i{k}' for k in range(items)], {}, {}),
        Interactions.of_sequences([r[:n] for r, n in zip(walk, rng.integers(4, longest, users))]),
        'circles',
    )
