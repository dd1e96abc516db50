"""What Windows and macOS lack is hidden: training, evaluation and checks still run.

This only simulates those systems. Files, paths and processes behave as on this one.
"""
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HIDE = """
import multiprocessing, os, select, signal, sys
for module in ('fcntl', 'resource', 'termios', 'pwd', 'grp'):
    sys.modules[module] = None
hidden = {'windows': (
    (signal, ('SIGUSR1', 'SIGUSR2', 'SIGCHLD', 'SIGHUP', 'pthread_sigmask', 'SIG_BLOCK')),
    (select, ('poll', 'epoll')),
    (os, ('sched_getaffinity', 'fork', 'forkpty', 'killpg', 'setsid', 'getpgid', 'geteuid',
          'getuid', 'statvfs', 'sysconf', 'uname', 'register_at_fork'))),
    'macos': ((os, ('sched_getaffinity',)),)}[sys.argv[1]]
multiprocessing.set_start_method('spawn')
opened = open
def without_proc(path, *args, **kwargs):
    if str(path).startswith(('/proc', '/sys', '/dev/shm')):
        raise FileNotFoundError(path)
    return opened(path, *args, **kwargs)
def hide():
    import builtins
    builtins.open = without_proc
    for module, names in hidden:
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
"""
PROGRAM = HIDE + """
if __name__ == '__main__':
    import runpy, torch
    import torch.utils.tensorboard, torch._dynamo  # they are not what is tested
    import multiprocessing.popen_spawn_posix, multiprocessing.resource_tracker, tqdm
    tqdm.tqdm.get_lock()
    hide()
    sys.argv = sys.argv[2:]
    sys.path.insert(0, os.getcwd())
    if sys.argv[0] == '-m':
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name='__main__')
"""


def run(tmp_path, system, *words, status=0):
    program = tmp_path / 'hidden.py'
    program.write_text(PROGRAM)
    found = subprocess.run(
        [sys.executable, str(program), system, *words], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, universal_newlines=True,
        env=dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore'))
    assert found.returncode == status and 'Traceback' not in found.stdout, found.stdout
    return found.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name != 'posix', reason='hides what POSIX has')
@pytest.mark.parametrize('system, workers', [('windows', 0), ('macos', 1)])
def test_training_and_evaluation(tiny_world, tmp_path, system, workers):
    world = tiny_world()
    train = ['train.py', '--config', world.config_path, '--set', f'workers={workers}']
    out = run(tmp_path, system, *train, 'epochs=1')
    assert 'finished: 1 epochs' in out
    out = run(tmp_path, system, 'eval.py', '--checkpoint',
              os.path.join(world.save_path, 'latest.pth'), '--set', f'workers={workers}')
    assert 'mIoU' in out
    out = run(tmp_path, system, 'train.py', '--config', world.config_path, '--save-path',
              str(tmp_path / 'other'), '--set', 'nclass=2', status=1)
    assert 'error: ' in out
    out = run(tmp_path, system, '-m', 'dssn', 'check', '--config', world.config_path)
    assert 'errors: 0' in out
