"""Work in several processes: order, errors, interruptions."""
import os
import signal
import subprocess
import sys
import time

import pytest

from dssn.data.parallel import in_processes
from dssn.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INTERRUPTED = """
import signal, sys, time
from dssn.data.parallel import in_processes
from dssn.errors import exit_status

def run():
    for done in in_processes(time.sleep, [0.05] * 4000, 2):
        print('done', flush=True)

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print('started', flush=True)
    sys.exit(exit_status('test', run))
"""


def double(value):
    return 2 * value


def refuse(value):
    if value == 30:
        raise UserError('not 30')
    return value


@pytest.mark.parametrize('workers', [0, 1, 2])
@pytest.mark.parametrize('count', [0, 1, 100])
def test_results_come_in_order(workers, count):
    assert list(in_processes(double, list(range(count)), workers)) == [
        2 * i for i in range(count)]


@pytest.mark.parametrize('workers', [1, 2])
def test_errors_of_the_work_are_raised(workers):
    with pytest.raises(UserError, match='not 30'):
        list(in_processes(refuse, list(range(1000)), workers))


@pytest.mark.parametrize('moment', ['started', 'done'])
def test_ctrl_c_ends_all_processes_without_output(tmp_path, moment):
    (tmp_path / 'program.py').write_text(INTERRUPTED)
    # In a process group of its own: a terminal interrupts all processes of a group.
    process = subprocess.Popen([sys.executable, str(tmp_path / 'program.py')], cwd=ROOT,
                               env=dict(os.environ, PYTHONPATH=ROOT), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, universal_newlines=True,
                               start_new_session=True)
    try:
        while process.stdout.readline().strip() != moment:
            assert process.poll() is None
        time.sleep(0.15 if moment == 'started' else 0)  # by then the other processes are starting
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 130 and errors == ''
        with pytest.raises(ProcessLookupError):
            for _ in range(50):
                os.killpg(process.pid, 0)
                time.sleep(0.1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
