"""Processes that begin with the libraries imported do what Python does where it begins anew."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import warm

SCRIPT = """
import os, sys, time
print('HF_HUB_OFFLINE' in os.environ)
print(sys.argv[1:], os.getcwd(), os.environ.get('WISH'), __name__, sys.stdin.read(), os.isatty(1))
print('aside', file=sys.stderr)
import atexit, threading
atexit.register(print, 'at the end')
other = threading.Thread(target=lambda: time.sleep(0.3) or print('a thread'))
other.start()
what = sys.argv[1]
if what == 'number':
    sys.exit(7)
if what == 'words':
    sys.exit('no such thing')
if what == 'error':
    raise ValueError('bad')
if what == 'killed':
    other.join()
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize('what', ['well', 'number', 'words', 'error', 'killed'])
def test_a_copy_does_what_python_does(what, script, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != 'HF_HUB_OFFLINE'}
    how = dict(cwd=tmp_path, env={**env, 'WISH': 'a wish'})
    ours = warm.run([script, what, 'é'], **how)
    pipes = dict(capture_output=True, text=True, stdin=subprocess.DEVNULL)
    theirs = subprocess.run([sys.executable, str(script), what, 'é'], **pipes, **how)
    assert ours.returncode == theirs.returncode
    assert sorted(ours.stdout.splitlines()) == sorted(theirs.stdout.splitlines())
    assert ours.stderr.splitlines()[-1] == theirs.stderr.splitlines()[-1]


def test_modules_and_their_folder(tmp_path):
    told = 'sys.argv[1:], "vlm2rec_lab" in sys.modules, "torch" in sys.modules'
    (tmp_path / 'here.py').write_text(f'import sys\nprint({told})')
    done = warm.run(['-m', 'here', 1], cwd=tmp_path)
    assert done.stdout == "['1'] False True\n", done


@pytest.mark.parametrize('set_to, told', [('ignore', 0), ('', 1)])
def test_warnings_are_ignored_where_the_environment_says_so(set_to, told, tmp_path):
    (tmp_path / 'warns.py').write_text('import warnings\nwarnings.warn("a word")')
    done = warm.run([tmp_path / 'warns.py'], env=os.environ | dict(PYTHONWARNINGS=set_to))
    assert done.returncode == 0 and done.stderr.count('a word"') == told, done.stderr


def test_a_copy_hears_signals_and_has_an_end(script, tmp_path):
    (tmp_path / 'long.py').write_text('import time\nprint("on", flush=True)\ntime.sleep(100)')
    started = warm.Started([tmp_path / 'long.py'])
    assert started.poll() is None
    time.sleep(0.5)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate()
    assert (out, started.wait() != 0) == ('on\n', True) and 'KeyboardInterrupt' in err
    late = warm.run([tmp_path / 'long.py'], timeout=1)
    assert late.returncode == -signal.SIGKILL


def test_a_copy_has_limits(tmp_path):
    (tmp_path / 'large.py').write_text('with open("large", "wb") as f:\n    f.write(bytes(9000))')
    done = warm.run([tmp_path / 'large.py'], cwd=tmp_path, limits=[(resource.RLIMIT_FSIZE, 5000)])
    assert done.returncode == 1 and 'File too large' in done.stderr


def test_nobody_outlives_who_asked(tmp_path):
    "A copy whose stand-in is killed is killed as well."
    (tmp_path / 'long.py').write_text('import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(100)')
    stand_in = subprocess.Popen(warm.asking(str(tmp_path / 'long.py')), stdout=subprocess.PIPE, text=True)
    pid = int(stand_in.stdout.readline())
    stand_in.kill()
    stand_in.wait()
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail('it is still there')


def test_a_kernel_begins_there_and_can_be_interrupted(tmp_path):
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name=warm.kernel(), transport='ipc', ip=f'{tmp_path}/k')
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=600)
        said = []
        asked = (
            'import os, sys',
            'from ipykernel.kernelapp import IPKernelApp as App',
            'print(App.instance().parent_handle == os.getppid(), "torch" in sys.modules, os.getcwd())',
        )
        client.execute_interactive(
            '; '.join(asked),
            output_hook=lambda m: said.append(m['content'].get('text', '')),
        )
        assert ''.join(said) == f'True True {tmp_path}\n'
        asked = client.execute('import time; time.sleep(100)')
        time.sleep(1)
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=600))['parent_header']['msg_id'] != asked:
            pass
        assert reply['content']['ename'] == 'KeyboardInterrupt'
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    assert not manager.has_kernel
