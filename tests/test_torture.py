"""Short versions of tests/torture.py, which describes the faults."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tests.torture import torture  # noqa: E402

pytestmark = [pytest.mark.skipif(os.name != 'posix', reason='signals'),
              pytest.mark.timeout(1500)]


def test_nothing_is_lost_by_a_kill(tmp_path):
    table = torture(str(tmp_path), number=1, places=0, seed=1, kills_only=True)
    assert table.lost == 0 and list(table.rows) == ['kill -9'] and table.rows['kill -9'][0] >= 1


@pytest.mark.slow
def test_nothing_is_lost(tmp_path):
    table = torture(str(tmp_path), number=1, places=8, seed=1)
    print(table.text())
    assert table.lost == 0
    assert {'kill -9', 'SIGTERM, SIGINT, SIGUSR1', 'truncated latest.pth',
            'flipped bit in latest.pth', 'data folder away for a while',
            'killed loader processes'} <= set(table.rows)


@pytest.mark.slow
def test_nothing_is_lost_on_two_processes(tmp_path):
    table = torture(str(tmp_path), number=1, places=0, seed=2, processes=2)
    print(table.text())
    assert table.lost == 0 and table.rows['kill -9'][0] >= 1
