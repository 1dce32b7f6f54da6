"Servers and nodes of Flower as processes of this machine, which are stopped whatever happens."

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from ports import free_port

from vlm2rec_lab.federated.flower_folder import start_commands

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent


def environment(folder):
    """Flower without telemetry, with a home of its own, and unmeasured: a measuring tool that begins while Flower loads
    an app in another thread forgets the modules that it loads."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(('COVERAGE_', 'COV_CORE_'))}
    return plain | dict(
        FLWR_TELEMETRY_ENABLED='0',
        FLWR_DISABLE_UPDATE_CHECK='1',
        FLWR_HOME=str(folder / 'flower'),
        PATH=os.pathsep.join([str(BIN), os.environ.get('PATH', '')]),
        PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
        OMP_NUM_THREADS='1',
    )


class Group:
    "A command and the processes that it starts."

    def __init__(self, folder, name, command):
        self.log = folder / f'{name}.log'
        with open(self.log, 'w') as out:
            how = dict(stdout=out, stderr=subprocess.STDOUT, env=environment(folder), start_new_session=True)
            self.process = subprocess.Popen([str(BIN / command[0]), *command[1:]], cwd=folder, **how)

    def signal(self, number):
        "To all of them; False where none is left."
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def stop(self, seconds=10):
        "Ask them to end, and then make them."
        end = time.time() + seconds
        self.signal(signal.SIGTERM)
        while self.process.poll() is None and time.time() < end:
            time.sleep(0.05)
        self.signal(signal.SIGKILL)
        self.process.wait()
        while self.signal(0) and time.time() < end + 5:
            time.sleep(0.05)


def households(folder, users, each):
    "Nodes of several customers of an app: {number: what it is started with}."
    nodes = {}
    for n in range(0, len(users), each):
        home = folder / f'home {n // each}'
        home.mkdir()
        for user in users[n : n + each]:
            (folder / 'customers' / f'customer-{user}.safetensors').rename(home / f'customer-{user}.safetensors')
        nodes[n // each] = dict(customers=str(home), keep=str(folder / 'kept'))
    return nodes


@contextmanager
def federation(folder, nodes):
    """A server and its nodes on loopback: (function that starts a run, {number of a node: Group}).

    `nodes` is {number: what a node is started with}.
    """
    port, groups = free_port(), {}
    start_commands(folder, int(port))
    address = f'127.0.0.1:{port}'
    link = ['--insecure', '--host', '127.0.0.1', '--port', port, '--disable-runtime-dependency-installation']
    node = ['--insecure', '--superlink', address, '--host', '127.0.0.1']
    try:
        groups['link'] = Group(folder, 'link', ['flower-superlink', *link])
        wait_for(lambda: healthy(address), groups['link'])
        for n, started in nodes.items():
            said = ' '.join(f'{k}="{v}"' if isinstance(v, str) else f'{k}={v}' for k, v in started.items())
            command = ['flower-supernode', *node, '--port', free_port(), '--node-config', said]
            groups[n] = Group(folder, f'node {n}', command)

        def run():
            "The run, which ends when all rounds are over."
            groups['run'] = Group(folder, 'run', ['flwr', 'run', str(folder / 'app'), 'here', '--stream'])
            return groups['run']

        yield run, groups
    finally:
        for group in groups.values():
            group.signal(signal.SIGTERM)
        for group in groups.values():
            group.stop()
        for pid in left(folder):  # of another group
            os.kill(pid, signal.SIGKILL)


def left(folder):
    "Processes that were started for a federation and live: Flower's home in their environment says so."
    found, home = [], f'FLWR_HOME={folder / "flower"}'.encode()
    for path in Path('/proc').glob('[0-9]*/environ'):
        try:
            said = path.read_bytes().split(b'\0')
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
        found += [int(path.parent.name)] if home in said else []
    return found


def healthy(address):
    "Whether a server answers."
    try:
        return urllib.request.urlopen(f'http://{address}/health', timeout=1).status == 200
    except OSError:
        return False


def wait_for(done, group, seconds=600):
    "Wait until something is so, while a process lives."
    end = time.time() + seconds
    while not done():
        assert group.process.poll() is None and time.time() < end, group.log.read_text()[-3000:]
        time.sleep(0.1)
