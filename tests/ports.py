"""Ports of this machine that nobody uses, for servers and for processes that work together."""

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

CLAIMS = []  # open files: each holds a port for this process, until it ends


def lowest_given():
    "The first port that the system gives to those who ask for any."
    try:
        return int(Path('/proc/sys/net/ipv4/ip_local_port_range').read_text().split()[0])
    except OSError:
        return 32_768


def claim(port):
    "Whether this process is the one of all test processes that may use a port."
    folder = Path(tempfile.gettempdir(), f'ports-{os.getuid()}')
    folder.mkdir(exist_ok=True)
    file = open(folder / str(port), 'w')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    CLAIMS.append(file)
    return True


def free_port():
    """A free port of the loopback address, as text.

    It is for somebody who binds it later. A port that the system gives is free only until somebody else asks for any,
    so it is taken from below those, and no other process of the tests is told the same one.
    """
    places = list(range(10_000, max(lowest_given(), 12_000)))
    random.SystemRandom().shuffle(places)
    for port in places:
        with socket.socket() as s:
            try:
                s.bind(('127.0.0.1', port))
            except OSError:
                continue
        if claim(port):
            return str(port)
    raise OSError('no port of the loopback address is free')
