"""Ports of this machine that nobody uses, for servers and for processes that work together."""

import socket


def free_port():
    "A free port of the loopback address, as text."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])
