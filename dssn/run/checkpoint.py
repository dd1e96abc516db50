"""Checkpoints of a run: write one completely or not at all; find the newest readable one."""
import os
import zipfile

import torch

from dssn.errors import UserError
from dssn.models.weights import CHECKSUM, checksum, read_torch_file

LATEST, PREVIOUS, DAMAGED = 'latest.pth', 'previous.pth', 'damaged.pth'


def save(path, content, keep=None):
    """Write a mapping of plain values and tensors to `path`: completely and checked, or not at all.

    Args:
        keep: path to which the previous file at `path` is moved. None: it is replaced.

    Raises:
        OSError: no room, no permission, or the file does not read back as written. The previous
            file at `path` is then unchanged.
    """
    temporary = f'{path}.tmp'
    try:
        with open(temporary, 'wb') as file:
            target = _Target(file)
            torch.save({**content, CHECKSUM: checksum(content)}, target)
            if target.error:
                raise target.error
            file.flush()
            os.fsync(file.fileno())
        with zipfile.ZipFile(temporary) as archive:
            if archive.testzip():
                raise OSError('the file does not read back as it was written')
        if keep and os.path.exists(path):
            _keep(path, keep)
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path) or '.')
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        # PyTorch's writer raises a RuntimeError for any interruption, such as a loader that died.
        try:
            os.remove(temporary)
        except OSError:
            pass
        raise error if isinstance(error, OSError) else \
            OSError(' '.join(str(error).split())) from None


class _Target:
    """A file for torch.save that keeps the first error for later instead of raising it.

    If an error is raised inside PyTorch's writer, closing the writer raises a second one, which may
    end the process.
    """

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data):
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self):
        pass


def _keep(path, kept):
    """Give the file at `path` the second name `kept`."""
    try:
        if os.path.exists(f'{kept}.tmp'):
            os.remove(f'{kept}.tmp')
        os.link(path, f'{kept}.tmp')
        os.replace(f'{kept}.tmp', kept)
    except OSError:  # no links on this file system: until the next rename only `kept` exists
        os.replace(path, kept)


def _sync_folder(folder):
    """Make sure that a new name is on the disk. Some systems cannot open folders."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def newest(folder):
    """(content, path, warning or None) of a run's newest state; three times None without one.

    If latest.pth is damaged, it is renamed damaged.pth, and previous.pth is used.

    Raises:
        UserError: there are states, but none can be read.
    """
    latest, previous = os.path.join(folder, LATEST), os.path.join(folder, PREVIOUS)
    try:
        if os.path.exists(latest):
            return read_torch_file(latest), latest, None
        if not os.path.exists(previous):
            return None, None, None
        reason = f'{latest}: no such file'
    except UserError as error:
        reason = str(error)
    try:
        content = read_torch_file(previous)
    except UserError as error:
        raise UserError(f'{reason}; the state before it cannot be read either: {error}; start over '
                        'with --fresh, which moves the old files aside') from None
    if os.path.exists(latest):
        os.replace(latest, os.path.join(folder, DAMAGED))
    return content, previous, f'warning: {reason}; resuming from {previous}, the state before it'
