"""Signals that stop a run, and the agreement of processes."""
import os
import signal
import subprocess
import sys
import time

import pytest

from dssn.distributed import World
from dssn.run.signals import Agreement, Signals

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = """
import time
from dssn.run.signals import Signals
with Signals() as signals:
    print('ready', flush=True)
    while not signals.number:
        time.sleep(0.01)
    print(signals.number, flush=True)
    time.sleep(30)
"""


def start():
    process = subprocess.Popen([sys.executable, '-c', PROGRAM], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, universal_newlines=True,
                               # Tests in the background ignore Ctrl-C, and it would inherit that.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout.readline() == 'ready\n'
    return process


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_asks_and_the_second_ends_at_once(number):
    process = start()
    process.send_signal(number)
    assert process.stdout.readline() == f'{int(number)}\n'
    process.send_signal(number)  # a launcher that passes on what the terminal has sent to all
    time.sleep(0.3)
    assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.startswith(number.name + ': stopping after this step is saved')
    assert 'SIGTERM again: stopped without saving' in errors


def test_handlers_are_given_back_and_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signals.number == 0
            assert signal.getsignal(signal.SIGTERM) == signals.handle
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_loaders_ignore_stop_signals():
    code = ('import os, signal; from dssn.data.workers import ignore_stop_signals; '
            'ignore_stop_signals(); '
            '[os.kill(os.getpid(), n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]; '
            'print("lives")')
    found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE)
    assert found.stdout == b'lives\n'


def test_one_process_agrees_with_itself_at_once():
    agreement = Agreement(World(), 2)
    assert agreement([15, 0]) == [15, 0]
    assert agreement.finish() == [0, 0]


AGREE = """
import os, sys, torch
sys.path.insert(0, {root!r})
from dssn import distributed
from dssn.run.signals import Agreement
with distributed.start('cpu') as world:
    agreement = Agreement(world, 2)
    found = [agreement([world.rank * (step == 3) * 15, (1 - world.rank) * (step == 1)])
             for step in range(6)]
    found.append(agreement.finish())
    print(world.rank, found, flush=True)
    text = world.on_main(lambda: ['only once', world.rank])
    assert text == ['only once', 0] and world.highest(world.rank) == 1
    rows = world.rows(torch.tensor([1.0 + world.rank, 2.0]))
    assert rows is None if world.rank else rows.tolist() == [[1.0, 2.0], [2.0, 2.0]]
distributed.exit()
"""


def test_processes_learn_a_request_at_the_same_place(tmp_path, port):
    program = tmp_path / 'program.py'
    program.write_text(AGREE.format(root=ROOT))
    processes = [subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, universal_newlines=True,
        env=dict(os.environ, RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank),
                 MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1'))
        for rank in (0, 1)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    expected = [[0, 0], [0, 0], [0, 1], [0, 0], [15, 0], [0, 0], [0, 0]]  # one call later
    assert outputs == [f'{rank} {expected}\n' for rank in (0, 1)]
