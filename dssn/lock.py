"""One run a folder: a lock that says who holds it, and ends with the process that does."""
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
# How long a lock of another machine counts without a sign of life, seconds; it gives one a minute.
STALE, SIGN = 600, 60


class Lock:
    """Holds `lock` in a run's folder from its making to `release`.

    The file names host, process and start of the holder. Where the file system knows locks, they
    tell whether the holder lives, across machines too; elsewhere its process does on this host,
    and the file's age on another.

    Raises:
        UserError: another run holds the folder.
        OSError: the file cannot be written.
    """

    def __init__(self, folder):
        self.path = os.path.join(folder, NAME)
        self.note = None  # a line for the log where the last holder died
        self.file = open(self.path, 'a+', encoding='utf-8')
        holder, age = self.holder(), time.time() - os.fstat(self.file.fileno()).st_mtime
        try:
            locked = self.take()
            if not self.is_there():  # its holder ended between our opening and locking
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
                         f'{holder["host"]}, since {holder["since"]}, which ended without its last '
                         'words')
        self.write({'host': socket.gethostname(), 'pid': os.getpid(),
                    'since': datetime.datetime.now().strftime('%Y-%m-%d %H:%M:%S')})
        self.shown = time.time()

    def holder(self):
        """{'host', 'pid', 'since'} as the file has them, or None."""
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
            # Of the process, not of the open file: processes that load data do not inherit it.
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of them differs between systems
            return False
        except OSError:
            return None
        return True

    def is_there(self):
        """Whether the file that is open is still the one in the folder."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            return False

    def write(self, content):
        self.file.truncate(0)
        self.file.write(json.dumps(content))
        self.file.flush()

    def live(self):
        """Give a sign of life, once a minute at most."""
        if time.time() - self.shown > SIGN:
            self.shown = time.time()
            try:
                os.utime(self.path)
            except OSError:  # a full disk or a folder that is away: the lock itself still holds
                pass

    def release(self):
        """Leave the folder to others."""
        if self.file.closed:
            return
        try:
            os.remove(self.path)
            self.file.close()
        except OSError:  # the holder is dead to the next one in any case
            pass


def alive(holder, age):
    """Whether the holder of a lock lives, by its host and process, or the file's age in seconds."""
    if holder['host'] != socket.gethostname():
        return age < STALE
    if holder['pid'] == os.getpid():
        return False
    try:
        os.kill(holder['pid'], 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process
        pass
    return True


def refusal(folder, path, holder):
    who = 'another process'
    if holder:
        who = f'process {holder["pid"]} on {holder["host"]}, since {holder["since"]}'
    return (f'{folder}: in use by {who}; wait for its end or stop it, or choose another '
            f'--save-path ({path} says who; it frees itself when that process ends)')
