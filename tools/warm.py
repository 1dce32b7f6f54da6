"""Processes of Python that begin with the slow libraries imported, each a copy of one that waits.

A command that a test runs for what it does, or the kernel of a page, is copied from there in milliseconds; where
Python begins anew, it takes seconds. Nothing of the package is imported ahead. Tests of what a command imports start
Python themselves.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor

AHEAD = (
    'torch',
    'transformers.models.qwen2_5_vl.modeling_qwen2_5_vl',
    'transformers.models.qwen2_5_vl.processing_qwen2_5_vl',
    'peft',
    'pandas',
    'scipy.stats',
    'sklearn.metrics',
    'jsonschema',  # a grammar that it builds when it is imported takes two seconds
    'ipykernel.ipkernel',  # not its kernelapp, which looks for its parent when it is imported
)
ROOM = 1 << 16  # bytes of a wish that are read at a time


# ---- where they wait


def at_home(streams, wish):
    "Make this process what `python` would have begun: its streams, folder, environment and arguments."
    for end, given in enumerate(streams):
        os.dup2(given, end)
    os.chdir(wish['cwd'])
    os.environ.clear()
    os.environ.update(wish['env'])
    if 'JPY_PARENT_PID' in os.environ:  # whom a kernel must not outlive
        os.environ['JPY_PARENT_PID'] = str(os.getppid())
    sys.path[1:1] = [p for p in os.environ.get('PYTHONPATH', '').split(os.pathsep) if p and p not in sys.path[1:]]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = open(0, closefd=False)
    for end, name, wrong in ((1, 'stdout', 'strict'), (2, 'stderr', 'backslashreplace')):
        by_line = os.isatty(end) or name == 'stderr'
        stream = io.TextIOWrapper(open(end, 'wb', closefd=False), 'utf-8', wrong, line_buffering=by_line)
        setattr(sys, name, stream)
        setattr(sys, f'__{name}__', stream)
    if os.environ.get('PYTHONWARNINGS') == 'ignore':  # the one setting that is asked for
        warnings.simplefilter('ignore')
    sys.dont_write_bytecode = bool(wish['limits'])  # else files of bytecode were the first without room
    for kind, most in wish['limits']:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(kind, (most, most))


def go(argv):
    "What `python *argv` does, where it names a script or `-m` and a module."
    if argv[0] == '-m':
        sys.argv, sys.path[0] = argv[1:], os.getcwd()
        runpy.run_module(argv[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv, sys.path[0] = argv, os.path.dirname(os.path.abspath(argv[0]))
        runpy.run_path(argv[0], run_name='__main__')


def ended(argv):
    "Run it to its end, and give the exit status: an error is told as Python tells it."
    try:
        go(argv)
    except SystemExit as e:
        if isinstance(e.code, int | None):
            return e.code or 0
        print(e.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(status):
    "End this process as Python ends one, but do not take apart every library first, which takes seconds."
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def keep(answer, streams, wish):
    "Start what is wished for, and say its id, then how it ended; it is killed where nobody waits for it any more."
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if not child:
        answer.close()
        at_home(streams, wish)
        leave(ended(wish['argv']))
    for given in streams:
        os.close(given)
    say(answer, child)
    pid, status = os.waitpid(child, os.WNOHANG)
    while not pid:
        if select.select([answer], [], [], 0.02)[0]:
            os.kill(child, signal.SIGKILL)
        pid, status = os.waitpid(child, os.WNOHANG)
    say(answer, os.waitstatus_to_exitcode(status))
    os._exit(0)


def say(answer, number):
    "A number for who asked, where somebody is there."
    with contextlib.suppress(OSError):
        answer.sendall(f'{number}\n'.encode())


def wait(door):
    "Start whatever is wished for at a socket of that path, until standard input closes."
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(door)
    listener.listen(64)  # who asks early waits for the libraries
    for name in AHEAD:
        with contextlib.suppress(ImportError):  # tests run without torch, too
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # copies need not look through all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's interrupt is for who asks
    while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
        answer, _ = listener.accept()
        if not os.fork():
            listener.close()
            keep(answer, *wished(answer))
        answer.close()


def wished(answer):
    "Three streams and a wish, from who asks."
    size, given, _, _ = socket.recv_fds(answer, 8, 3)
    wish = b''
    while len(wish) < int.from_bytes(size):
        wish += answer.recv(ROOM)
    return given, json.loads(wish)


# ---- how one asks


@functools.cache
def door():
    "Where the process that waits is asked; it ends with this one."
    folder = tempfile.TemporaryDirectory(prefix='warm-')
    path = os.path.join(folder.name, 'door')
    pipes = dict(stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)  # what libraries say when they are imported
    process = subprocess.Popen([sys.executable, __file__, 'wait', path], **pipes)
    while not os.path.exists(path):
        time.sleep(0.01)

    def close():
        process.communicate()
        folder.cleanup()

    atexit.register(close)
    return path


def ask(path, argv, streams, cwd=None, env=None, limits=()):
    "Have a process started with these streams: the socket that says its id, and then its exit status."
    wish = dict(argv=argv, cwd=str(cwd or os.getcwd()), env=dict(env or os.environ), limits=list(limits))
    wish = json.dumps(wish).encode()
    answer = socket.socket(socket.AF_UNIX)
    answer.connect(path)
    socket.send_fds(answer, [len(wish).to_bytes(8)], streams)
    answer.sendall(wish)
    return answer


class Started:
    "A process that was started: like `subprocess.Popen` with pipes of text."

    def __init__(self, argv, terminal=None, **how):
        self.args, self.returncode = [*map(str, argv)], None
        nowhere = os.open(os.devnull, os.O_RDONLY)
        pipes = [os.pipe(), os.pipe()] if terminal is None else []
        streams = [nowhere, *(w for _, w in pipes)] if pipes else [terminal] * 3
        self._answer = ask(door(), self.args, streams, **how)
        for end in (nowhere, *(w for _, w in pipes)):
            os.close(end)
        self._said = self._answer.makefile()
        self.pid = int(self._said.readline())
        self._pipes = [open(r, 'rb') for r, _ in pipes]

    def send_signal(self, number):
        "Send it a signal; it may have ended."
        if self.returncode is None:
            os.kill(self.pid, number)

    def wait(self):
        "Its exit status, once it has ended; -9 of one that was killed."
        if self.returncode is None:
            self.returncode = int(self._said.readline())
            self._answer.close()
        return self.returncode

    def poll(self):
        "Its exit status, or None while it runs."
        return self.wait() if self.returncode is not None or select.select([self._answer], [], [], 0)[0] else None

    def communicate(self, timeout=None):
        "What it wrote to its output and to its error stream, once it has ended; it is killed after so many seconds."
        end = threading.Timer(timeout, self.send_signal, [signal.SIGKILL]) if timeout else None
        if end:
            end.start()
        with ThreadPoolExecutor(2) as both:
            said = [b.decode() for b in both.map(lambda pipe: pipe.read(), self._pipes)]
        self.wait()
        if end:
            end.cancel()
        for pipe in self._pipes:
            pipe.close()
        return said


def run(argv, timeout=None, **how):
    "What `subprocess.run([sys.executable, *argv], capture_output=True, text=True)` gives: a `CompletedProcess`."
    started = Started(argv, **how)
    out, err = started.communicate(timeout)
    return subprocess.CompletedProcess(started.args, started.returncode, out, err)


def command(argv, **how):
    "The same of `vlm2rec`."
    return run(['-m', 'vlm2rec_lab', *argv], **how)


def asking(*argv):
    "A command line that asks for a process, hands signals on to it, and ends as it does."
    return [sys.executable, __file__, 'ask', door(), *argv]


# ---- kernels


@functools.cache
def kernel():
    """The name of a Jupyter kernel that begins there, for this process.

    What Jupyter starts and stops is a small process that asks for it.
    """
    folder = tempfile.TemporaryDirectory(prefix='warm-')
    atexit.register(folder.cleanup)
    argv = asking('-m', 'ipykernel_launcher', '-f', '{connection_file}')
    os.makedirs(os.path.join(folder.name, 'kernels', 'warm'))
    with open(os.path.join(folder.name, 'kernels', 'warm', 'kernel.json'), 'w') as f:
        json.dump(dict(argv=argv, display_name='Python 3', language='python'), f)
    os.environ['JUPYTER_PATH'] = os.pathsep.join([folder.name, *filter(None, [os.environ.get('JUPYTER_PATH')])])
    return 'warm'


def stand_for(path, argv):
    "Have a process started with the streams of this one, be its end for signals, and end as it does."
    said = ask(path, argv, [0, 1, 2]).makefile()
    pid = int(said.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: os.kill(pid, received))
    status = int(said.readline())
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == '__main__':
    what, path, *argv = sys.argv[1:]
    wait(path) if what == 'wait' else stand_for(path, argv)
