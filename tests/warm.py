"""Processes of Python that begin with the slow libraries imported, each a copy of one that waits.

A command that a test runs for what it does is copied from there in milliseconds; `python -m vlm2rec_lab` takes seconds
to begin. Nothing of the package is imported ahead. Tests of what a command imports start Python themselves.
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
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

AHEAD = (
    'torch',
    'transformers.models.qwen2_5_vl.modeling_qwen2_5_vl',
    'transformers.models.qwen2_5_vl.processing_qwen2_5_vl',
    'peft',
    'pandas',
    'scipy.stats',
    'sklearn.metrics',
)
ROOM = 1 << 20  # bytes of a wish


# ---- where they wait


def at_home(streams, wish):
    "Make this process what `python` would have begun: its streams, folder, environment and arguments."
    for end, given in enumerate(streams):
        os.dup2(given, end)
    os.chdir(wish['cwd'])
    os.environ.clear()
    os.environ.update(wish['env'])
    sys.path[1:1] = [p for p in os.environ.get('PYTHONPATH', '').split(os.pathsep) if p and p not in sys.path]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = open(0, closefd=False)
    for end, name, wrong in ((1, 'stdout', 'strict'), (2, 'stderr', 'backslashreplace')):
        by_line = os.isatty(end) or name == 'stderr'
        stream = io.TextIOWrapper(open(end, 'wb', closefd=False), 'utf-8', wrong, line_buffering=by_line)
        setattr(sys, name, stream)
        setattr(sys, f'__{name}__', stream)
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
    "Start what is wished for, and say its id, then how it ended."
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if not child:
        answer.close()
        at_home(streams, wish)
        leave(ended(wish['argv']))
    for given in streams:
        os.close(given)
    answer.sendall(f'{child}\n'.encode())
    answer.sendall(f'{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n'.encode())
    os._exit(0)


def wait(door):
    "Start whatever is wished for at a socket, until its other end closes."
    for name in AHEAD:
        with contextlib.suppress(ImportError):  # tests run without torch, too
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's interrupt is for the tests
    while True:
        wish, given, _, _ = socket.recv_fds(door, ROOM, 4)
        if not wish:
            return
        if not os.fork():
            door.close()
            keep(socket.socket(fileno=given[0]), given[1:], json.loads(wish))
        for end in given:
            os.close(end)


# ---- how tests ask


@functools.cache
def house():
    "The socket of the process that waits; it ends with this one."
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, '-W', 'ignore', __file__, str(theirs.fileno())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    theirs.close()

    def close():
        ours.close()
        process.wait()

    atexit.register(close)
    return ours


class Started:
    "A process that was started: like `subprocess.Popen` with pipes of text."

    def __init__(self, argv, cwd=None, env=None, terminal=None, limits=()):
        self.args, self.returncode = [*map(str, argv)], None
        self._answer, theirs = socket.socketpair()
        nowhere = os.open(os.devnull, os.O_RDONLY)
        pipes = [os.pipe(), os.pipe()] if terminal is None else []
        streams = [nowhere, *(w for _, w in pipes)] if pipes else [terminal] * 3
        wish = dict(argv=self.args, cwd=str(cwd or os.getcwd()), env=dict(env or os.environ), limits=list(limits))
        socket.send_fds(house(), [json.dumps(wish).encode()], [theirs.fileno(), *streams])
        theirs.close()
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


if __name__ == '__main__':
    wait(socket.socket(fileno=int(sys.argv[1])))
