"""The commands of a page in a terminal, as a reader runs them: python tools/site_terminal.py < commands

A terminal has a width, which tables keep to, and a pipe has none. Errors go by a pipe all the same: bars that move are
for who watches. What both say comes out in the order in which it is said.
"""

import os
import pty
import select
import subprocess
import sys

MOST = 1 << 16  # bytes that are read at a time
LATE = 0.3  # seconds: what a terminal was given comes later than what a pipe was given after it


def said(end):  # file descriptor
    "What has come; b'' where nothing comes any more."
    try:
        return os.read(end, MOST)
    except OSError:  # a terminal that the last program has left
        return b''


def copy(ends, out):  # file descriptors; binary stream
    "Write what comes from each, until nothing comes any more; of two that have something, the first comes first."
    ends = list(ends)
    while ends:
        found = select.select(ends, [], [])[0]
        if ends[0] not in found:
            found += select.select(ends[:1], [], [], LATE)[0]
        end = min(found, key=ends.index)
        text = said(end)
        if not text:
            ends.remove(end)
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
