"""A PostgreSQL of its own with pgvector, in a temporary folder and on loopback, where this machine has both."""

import os
import secrets
import subprocess
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ports import free_port


def binaries():
    "The folder with initdb, postgres and psql of an installation that has pgvector; None where there is none."
    places = [os.environ.get('VLM2REC_PGVECTOR', '')]
    if (spec := find_spec('pgserver')) is not None:  # a package that brings both
        places.append(str(Path(spec.origin).parent / 'pginstall' / 'bin'))
    places += sorted(map(str, Path('/usr/lib/postgresql').glob('*/bin')), reverse=True)
    for place in filter(None, places):
        config = Path(place) / 'pg_config'
        if (Path(place) / 'initdb').exists() and config.exists():
            shared = subprocess.run([config, '--sharedir'], capture_output=True, text=True).stdout.strip()
            if (Path(shared) / 'extension' / 'vector.control').exists():
                return Path(place)
    return None


def _owner():
    "PostgreSQL does not run as root: who owns the cluster there; {} for anybody else."
    return dict(user='nobody', group='nogroup', extra_groups=[]) if os.geteuid() == 0 else {}


@contextmanager
def cluster(bins):
    "A function that runs SQL by psql, and gives what it printed."
    with tempfile.TemporaryDirectory() as folder:
        place, who, port = Path(folder), _owner(), free_port()
        password = secrets.token_hex(16)
        (place / 'password').write_text(password)
        if who:
            for path in (place, place / 'password'):
                os.chown(path, 65534, 65534)
        plain = {k: v for k, v in os.environ.items() if not k.startswith('PG')} | dict(HOME=folder, LC_ALL='C')
        how = dict(check=True, cwd=folder, env=plain, capture_output=True, text=True, **who)
        data = place / 'data'
        subprocess.run(
            [bins / 'initdb', '-D', data, '-U', 'shop', '-A', 'scram-sha-256', '--pwfile', 'password'], **how
        )
        options = f'-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off'
        ctl = [bins / 'pg_ctl', '-D', data, '-w', '-l', place / 'log']
        subprocess.run([*ctl, '-o', options, 'start'], **how | dict(capture_output=False))
        try:
            yield lambda sql, **values: _psql(bins, port, password, sql, values)
        finally:
            subprocess.run([*ctl, '-m', 'immediate', 'stop'], **how | dict(capture_output=False))


def _psql(bins, port, password, sql, values):
    "What psql prints, without headings."
    argv = [bins / 'psql', '-h', '127.0.0.1', '-p', str(port), '-U', 'shop', '-d', 'postgres', '-XAtq']
    argv += ['-v', 'ON_ERROR_STOP=1', *(f'--set={k}={v}' for k, v in values.items())]
    env = {k: v for k, v in os.environ.items() if not k.startswith('PG')} | dict(PGPASSWORD=password)
    done = subprocess.run(argv, input=sql, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout
