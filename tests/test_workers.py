"""Loader processes that are killed, hang, or have no shared memory: the program ends soon."""
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader

import eval as eval_program
from dssn import engine
from dssn.data import loaders
from dssn.data.datasets import EvalSet
from dssn.data.lists import read_list
from dssn.data.loaders import TrainLoader, raise_errors
from dssn.data.workers import WorkerFailure, explained_failures
from dssn.distributed import World
from dssn.errors import Stopped, UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
pytestmark = pytest.mark.skipif(os.name != 'posix', reason='signals')


def processes(loader):
    return [worker.pid for worker in loader._iterator._workers]


def loader_of(world, workers=1):
    cfg = world.load(workers=workers, batch_size=1)
    return TrainLoader(cfg, read_list(cfg.labeled_id_path, True),
                       read_list(cfg.unlabeled_id_path, False))


@pytest.mark.parametrize('told', [True, False])
@pytest.mark.parametrize('workers', [1, 2])
def test_killed_while_items_are_waiting(tiny_world, monkeypatch, workers, told):
    """With and without the signal that tells it: the connection to what it has sent is broken.

    If it has sent nothing yet, and nothing tells, PyTorch looks after the longest wait.
    """
    monkeypatch.setattr(loaders, 'LONGEST_WAIT', 3)
    loader = loader_of(tiny_world(), workers)
    batches = loader.batches(0)
    next(batches)
    before = signal.getsignal(signal.SIGCHLD)  # set by PyTorch when it started them
    try:
        with pytest.raises(WorkerFailure, match='a loader process has ended.*workers=0'), \
                explained_failures():
            if not told:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in processes(loader.loader):
                os.kill(one, signal.SIGKILL)
            for _ in batches:
                pass
    finally:
        # Without the handler, later tests would wait ten minutes for a loader that is killed.
        signal.signal(signal.SIGCHLD, before)
    loader.close()


class Slow(torch.utils.data.Dataset):
    """Its second item does not come."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 1:
            time.sleep(1000)
        return torch.zeros(3)


def test_a_process_that_hangs(monkeypatch, end_loaders):
    monkeypatch.setattr(loaders, 'LONGEST_WAIT', 1)
    slow = DataLoader(Slow(), batch_size=None, **loaders.worker_arguments(1))
    with pytest.raises(WorkerFailure, match='hangs: DataLoader timed out after 1 seconds'):
        list(raise_errors(slow))
    end_loaders()
    assert not multiprocessing.active_children()


def test_a_fault_of_the_program_keeps_its_traceback():
    class Faulty(Slow):
        def __getitem__(self, index):
            raise RuntimeError('a fault')
    with pytest.raises(RuntimeError, match='(?s)Caught RuntimeError in DataLoader worker.*a fault'):
        list(raise_errors(DataLoader(Faulty(), batch_size=None, num_workers=1)))


def test_errors_of_other_code_pass():
    for error in (RuntimeError('x'), OSError('x'), EOFError()):
        with pytest.raises(type(error)), explained_failures():
            raise error
    with pytest.raises(RuntimeError), explained_failures(fetching=True):
        raise RuntimeError('x')


def at_item_1(monkeypatch, do):
    """Evaluation calls `do` in place of reading item 1."""
    read = EvalSet.__getitem__

    def read_or_do(self, index):
        if index == 1:
            do()
        return read(self, index)
    monkeypatch.setattr(EvalSet, '__getitem__', read_or_do)


def test_a_signal_ends_an_evaluation_that_waits(tiny_world, monkeypatch):
    world = tiny_world()
    main = os.getpid()

    def signal_and_hang():
        time.sleep(1)  # the program has evaluated item 0 by then, and waits for this one
        os.kill(main, signal.SIGTERM)
        time.sleep(1000)
    at_item_1(monkeypatch, signal_and_hang)
    with pytest.raises(Stopped) as stopped:
        engine.start(world.load(workers=1), World()).fit()
    assert stopped.value.number == signal.SIGTERM
    with open(os.path.join(world.save_path, 'train.log')) as file:
        assert 'stopped by SIGTERM while evaluating epoch 1; the same command' in file.read()
    monkeypatch.undo()
    again = engine.start(world.load(workers=1), World())
    assert again.resumed and again.progress.step == again.end_of_epoch
    again.fit()
    assert again.finished


@pytest.mark.parametrize('program', ['train', 'eval'])
def test_a_process_that_is_killed_in_evaluation(tiny_world, monkeypatch, program):
    """The state before the evaluation is kept, and the message tells its step."""
    world = tiny_world()
    if program == 'eval':
        engine.start(world.load(epochs=1), World()).fit()
        latest = os.path.join(world.save_path, 'latest.pth')

        def run():
            eval_program.main(['--checkpoint', latest, '--set', 'workers=1'])
    else:
        run = engine.start(world.load(workers=1), World()).fit
    at_item_1(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match='a loader process has ended') as error:
        run()
    assert ('the same command resumes from step 4' in str(error.value)) == (program == 'train')


SMALL = ['unshare', '-m', 'sh', '-c', 'mount -t tmpfs -o size=64m none /dev/shm && exec "$@"', 'sh']


def small_shm():
    """Why there can be no private /dev/shm of 64 MiB, or None."""
    try:
        found = subprocess.run(SMALL + ['true'], stderr=subprocess.PIPE, universal_newlines=True)
    except OSError as error:
        return str(error)
    return found.stderr.strip() if found.returncode else None


@pytest.mark.skipif(small_shm() is not None, reason=f'no private /dev/shm: {small_shm()}')
@pytest.mark.parametrize('program', ['train', 'evaluation of train', 'eval'])
def test_little_shared_memory(tiny_world, program):
    """64 MiB are the default of containers. The program ends, with one line."""
    large = program != 'train'
    world = tiny_world(n_val=16 if large else 3, size=(2048, 1024) if large else (40, 30),
                       n_labeled=2, n_unlabeled=2, batch_size=1, crop_size=33 if large else 1601,
                       workers=1, epochs=1)
    command = ['train.py', '--config', world.config_path]
    if program == 'eval':
        run = engine.start(world.load(val_id_path=world.labeled, skip_check=True), World())
        run.save()
        run.folder.leave()
        command = ['eval.py', '--checkpoint', os.path.join(world.save_path, 'latest.pth'),
                   '--id-path', os.path.join(os.path.dirname(world.labeled), 'val.txt')]
    # Six processes prepare two images of 8 MiB each.
    command += ['--set', 'workers=6']
    found = subprocess.run(
        SMALL + [sys.executable] + command, cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, timeout=300,
        env=dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='',
                 PYTHONWARNINGS='ignore'))
    errors = [line for line in found.stderr.splitlines() if 'error: ' in line]
    assert found.returncode == 1, found.stdout + found.stderr
    assert len(errors) == 1 and 'Traceback' not in found.stderr
    assert 'workers=0' in errors[0] and '--shm-size' in errors[0]
    assert '/dev/shm has 64 MiB' in errors[0]
