"""A run's folder: created, checked, locked against a second run, cleared for a fresh start."""
import contextlib
import datetime
import os

from dssn.distributed import one_line
from dssn.errors import UserError
from dssn.models.weights import read_torch_file
from dssn.run import checkpoint
from dssn.run.lock import Lock
from dssn.run.saving import INSPECT
from dssn.run.scoring import KEPT_BEST

ASIDE = 'before_'  # prefix of the folders into which --fresh moves old runs


class Folder:
    """The folder of the current run. Rank 0 holds its lock until `leave`.

    Args:
        path: the folder; it is created if it does not exist. fresh: move the files of an earlier
            run aside.

    Attributes:
        notes: lines for the log.

    Raises:
        UserError: on every rank: the folder cannot be written, or another run uses it.
    """

    def __init__(self, path, world, fresh=False):
        self.path, self.world, self.lock = path, world, None
        self.notes = world.on_main(lambda: self._take(fresh))

    def _take(self, fresh):
        prepare_folder(self.path)
        with writing(self.path):
            self.lock = Lock(self.path)
            notes = [self.lock.note] if self.lock.note else []
            return notes + (move_aside(self.path) if fresh else [])

    def refresh(self):
        """Show other machines that the run is alive. Called between two steps."""
        if self.lock:
            self.lock.refresh()

    def leave(self):
        """Release the lock."""
        if self.lock:
            self.lock.release()

    def newest_state(self):
        """(state, its path, a warning or None), see `checkpoint.newest`; all None for a new run.

        Rank 0 chooses the file; the other ranks read the same one.
        """
        found = [None, None, None]

        def choose():
            found[:] = checkpoint.newest(self.path)
            return found[1:]
        path, warning = self.world.on_main(choose)
        if path and not self.world.is_main:
            found[0] = read_torch_file(path)
        return found[0], path, warning


def prepare_folder(path):
    """Create the folder, and check that it can be written."""
    try:
        os.makedirs(path, exist_ok=True)
        probe = os.path.join(path, '.writable')
        with open(probe, 'w', encoding='utf-8'):
            pass
        os.remove(probe)
    except OSError as error:
        raise UserError(f'save_path = {path}: cannot be written ({error.strerror}); choose another '
                        '--save-path') from None


@contextlib.contextmanager
def writing(folder):
    """Turn an OSError into a UserError, while no training can be lost."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{folder}: cannot be written: {one_line(error)}; make room, or choose '
                        'another --save-path') from None


def move_aside(folder):
    """Move an earlier run's files into a new folder inside `folder`; returns lines for the log.

    The logs of the scripts stay, because one of them is being written.
    """
    names = [name for name in sorted(os.listdir(folder))
             if name in ('best.pth', 't_best.pth', 'config.yaml', 'metrics.jsonl', 'train.log',
                         checkpoint.LATEST, checkpoint.PREVIOUS, checkpoint.DAMAGED, INSPECT)
             or name.startswith('events.out.tfevents')
             or KEPT_BEST.fullmatch(name)]
    if not names:
        return []
    target = os.path.join(folder, datetime.datetime.now().strftime(f'{ASIDE}%Y%m%d_%H%M%S'))
    os.mkdir(target)
    for name in names:
        os.replace(os.path.join(folder, name), os.path.join(target, name))
    return [f'--fresh: the earlier run was moved to {target}']
