"""The commands of a page in a terminal, as a reader runs them: python tools/site_terminal.py < commands

A terminal has a width, which tables keep to, and a pipe has none. Errors go by a pipe all the same: bars that move are
for who watches. What both say comes out in the order in which it is said.
"""

import os
import pty
import selectors
import subprocess
import sys

MOST = 1 << 16  # bytes that are read at a time


def said(end):  # file descriptor
    "What has come; b'' where nothing comes any more."
    try:
        return os.read(end, MOST)
    except OSError:  # a terminal that the last program has left
        return b''


def copy(ends, out):  # file descriptors; binary stream
    "Write what comes from each, until nothing comes any more."
    with selectors.DefaultSelector() as waits:
        for end in ends:
            waits.register(end, selectors.EVENT_READ)
        while waits.get_map():
            for key, _ in sorted(waits.select(), key=lambda found: ends.index(found[0].fd)):
                text = said(key.fd)
                if not text:
                    waits.unregister(key.fd)
                out.write(text.replace(b'\r\n', b'\n'))
                out.flush()


def main():
    "Run the shell that reads the commands; its exit status."
    shown, terminal = pty.openpty()
    told, errors = os.pipe()
    with subprocess.Popen(['sh'], stdout=terminal, stderr=errors) as shell:
        os.close(terminal)
        os.close(errors)
        copy([shown, told], sys.stdout.buffer)
    return shell.returncode


if __name__ == '__main__':
    sys.exit(main())
