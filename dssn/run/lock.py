"""One run per folder: a lock that names its holder, and that ends with the holder's process."""
import datetime
import json
import os
import socket
import time

from dssn.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = 'lock'
# Seconds. The holder refreshes the file's time every SIGN. On file systems without locks, the lock
# of another machine is ignored if its file is older than STALE.
STALE, SIGN = 600, 60


class Lock:
    """Holds the file `lock` in a run's folder, from construction to `release`.

    The file names host, process and start of the holder. On a file system with locks, these show
    whether the holder lives, also across machines. Without them, the holder lives if its process
    does (on this host), or if the file is recent (on another host).

    Raises:
        UserError: another run uses the folder.
        OSError: the file cannot be written.
    """

    def __init__(self, folder):
        self.path = os.path.join(folder, NAME)
        self.note = None  # a line for the log, if the last holder died
        self.file = open(self.path, 'a+', encoding='utf-8')
        holder, age = self.holder(), time.time() - os.fstat(self.file.fileno()).st_mtime
        try:
            locked = self.take()
            if not self.is_there():  # the holder removed it after we opened it
                locked = False
            if locked is None and holder and alive(holder, age):
                locked = False
            if locked is False:
                raise UserError(refusal(folder, self.path, holder))
        except UserError:
            self.file.close()
            raise
        if holder:
            self.note = (f'{self.path}: left behind by process {holder["pid"]} on '
                         f'{holder["host"]}, since {holder["since"]}, which ended without removing '
                         'it')
        self.write({'host': socket.gethostname(), 'pid': os.getpid(),
                    'since': datetime.datetime.now().strftime('%Y-%m-%d %H:%M:%S')})
        self.refreshed = time.time()

    def holder(self):
        """{'host', 'pid', 'since'} from the file, or None."""
        self.file.seek(0)
        try:
            found = json.loads(self.file.read())
            return {'host': str(found['host']), 'pid': int(found['pid']),
                    'since': str(found['since'])}
        except (ValueError, TypeError, KeyError):  # empty, or cut off
            return None

    def take(self):
        """True: ours; False: another process's; None: this file system has no locks."""
        if fcntl is None:
            return None
        try:
            # This lock belongs to the process, so loader processes do not inherit it.
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # systems differ in which one they raise
            return False
        except OSError:
            return None
        return True

    def is_there(self):
        """Whether the open file is still the one in the folder."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            return False

    def write(self, content):
        self.file.truncate(0)
        self.file.write(json.dumps(content))
        self.file.flush()

    def refresh(self):
        """Update the file's time, at most once every SIGN seconds."""
        if time.time() - self.refreshed > SIGN:
            self.refreshed = time.time()
            try:
                os.utime(self.path)
            except OSError:  # the folder is not reachable, for example; the lock itself still holds
                pass

    def release(self):
        """Remove the lock."""
        if self.file.closed:
            return
        if fcntl is None:  # Windows does not remove open files
            self.file.close()
        try:
            os.remove(self.path)
            self.file.close()
        except OSError:  # the next run will find that the holder has ended
            pass


def alive(holder, age):
    """Whether a lock's holder lives, by host and process, or by the age of the file in seconds."""
    # Windows has no signal that only asks.
    if holder['host'] != socket.gethostname() or os.name == 'nt':
        return age < STALE
    if holder['pid'] == os.getpid():
        return False
    try:
        os.kill(holder['pid'], 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        pass
    return True


def refusal(folder, path, holder):
    user = 'another process'
    if holder:
        user = f'process {holder["pid"]} on {holder["host"]}, since {holder["since"]}'
    return (f'{folder}: in use by {user}; wait until that process ends or stop it, or choose '
            f'another --save-path ({path} names the process; the lock ends with it)')
