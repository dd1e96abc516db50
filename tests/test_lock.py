"""One run a folder: who holds it is said, and a dead holder does not hold it."""
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from dssn.errors import UserError
from dssn.run import lock
from dssn.run.lock import Lock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOLDER = """
import sys, time
from dssn.run.lock import Lock
lock = Lock(sys.argv[1])
print('held', flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder."""
    process = subprocess.Popen([sys.executable, '-c', HOLDER, str(tmp_path)], cwd=ROOT,
                               stdout=subprocess.PIPE, universal_newlines=True)
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_in_use_is_refused_with_who_holds_it(tmp_path, holder):
    for _ in range(2):  # and the refusal does not free it
        with pytest.raises(UserError) as caught:
            Lock(str(tmp_path))
        for part in (str(tmp_path), f'process {holder.pid}', socket.gethostname(),
                     time.strftime('%Y-%m-%d'), '--save-path'):
            assert part in str(caught.value)


def test_a_killed_holder_frees_the_folder_and_is_named(tmp_path, holder):
    holder.kill()
    holder.wait()
    held = Lock(str(tmp_path))
    assert f'process {holder.pid}' in held.note
    held.release()


def test_a_released_folder_is_as_it_was(tmp_path):
    for _ in range(2):
        held = Lock(str(tmp_path))
        assert held.note is None
        held.release()
        held.release()
        assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('content', ['', '{', '[]', '{"host": 1}'])
def test_a_lock_without_a_name_holds_nothing_by_itself(tmp_path, content):
    (tmp_path / 'lock').write_text(content)
    held = Lock(str(tmp_path))
    assert json.loads((tmp_path / 'lock').read_text())['pid'] == os.getpid()
    held.release()


def name(tmp_path, age=0, **changes):
    path = tmp_path / 'lock'
    path.write_text(json.dumps(dict(dict(host=socket.gethostname(), pid=1, since='then'),
                                    **changes)))
    os.utime(str(path), (time.time() - age,) * 2)


@pytest.mark.parametrize('pid, age, host, held', [
    (None, 9999, None, True),           # the parent: it lives, however long ago it wrote
    (2 ** 22 + 7, 0, None, False),      # there is no such process
    (1, 60, 'elsewhere', True), (1, 660, 'elsewhere', False)])
def test_where_the_file_system_has_no_locks_process_and_age_tell(tmp_path, monkeypatch, pid, age,
                                                                 host, held):
    monkeypatch.setattr(Lock, 'take', lambda self: None)
    pid = pid or os.getppid()
    name(tmp_path, age, pid=pid, **({'host': host} if host else {}))
    if held:
        with pytest.raises(UserError, match=f'process {pid}'):
            Lock(str(tmp_path))
    else:
        Lock(str(tmp_path)).release()


def test_a_sign_of_life_comes_once_a_minute(tmp_path, monkeypatch):
    held = Lock(str(tmp_path))
    path = str(tmp_path / 'lock')
    os.utime(path, (1, 1))
    held.refresh()
    assert os.stat(path).st_mtime == 1
    held.refreshed -= lock.SIGN + 1
    held.refresh()
    assert os.stat(path).st_mtime > 1
    held.release()


def test_a_file_removed_between_opening_and_locking_is_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(Lock, 'take', lambda self: (os.remove(self.path), True)[1])
    with pytest.raises(UserError, match='in use'):
        Lock(str(tmp_path))
