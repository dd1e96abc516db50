"""Processes that load data: what they do on signals, how they pass items on, how they fail."""
import contextlib
import multiprocessing
import os
import signal

import torch
from torch.utils.data import get_worker_info

from dssn.errors import UserError

# Sent by Ctrl-C, by a cluster or `kill`, and as a warning before a job is pre-empted.
STOP_SIGNALS = ('SIGINT', 'SIGTERM', 'SIGUSR1')


def ignore_stop_signals(*_):
    """Call this in a loader process: only its parent reacts to signals, and ends it in time."""
    for name in STOP_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def kill_loaders():
    """Kill all loader processes of this process, and wait for their end.

    When an error or a signal ends a process, Python sends SIGTERM to its loaders and waits for
    them. Loaders ignore SIGTERM, so it would wait forever.
    """
    loaders = [child for child in multiprocessing.active_children() if child.daemon]
    if loaders and hasattr(signal, 'SIGCHLD'):
        # PyTorch's handler would raise an error when a loader ends.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for loader in loaders:
        loader.kill()
    for loader in loaders:
        loader.join()


class WorkerFailure(UserError):
    """A process that loads data has ended, or has no memory to pass its items on."""


def share(item):
    """In a loader process: the item (a tuple), its tensors in shared memory; else the item itself.

    PyTorch would do the same later, in a thread, where an error is printed and the item is lost:
    the training process would wait for it forever.

    Returns:
        the item, or a `WorkerFailure` if there is no room.
    """
    if get_worker_info() is None or isinstance(item, UserError):
        return item
    try:
        for part in item:
            if torch.is_tensor(part):
                part.share_memory_()
    except RuntimeError as error:
        return no_room(error)
    return item


def no_room(error):
    """The `WorkerFailure` of an error of PyTorch's shared memory."""
    return WorkerFailure(f'a loader process has no shared memory left: {error}; {remedy()}')


def remedy():
    """What helps if memory has run out, as text."""
    size = ''
    with contextlib.suppress(OSError, AttributeError):
        disk = os.statvfs('/dev/shm')
        size = f' (/dev/shm has {disk.f_blocks * disk.f_frsize >> 20} MiB)'
    return (f'if memory or shared memory{size} ran out: load in the main process (--set workers=0),'
            ' or give a container more shared memory (docker run --shm-size=8g)')


class explained_failures:
    """Raise a `WorkerFailure` for errors which mean that a loader process has ended or hangs.

    PyTorch raises a RuntimeError at any moment, in a signal handler. If the process ended while an
    item was received from it, other errors come first.

    It is a class because `contextlib.contextmanager` of Python 3.9 leaves a cycle of references
    behind: in a generator that is closed early, the loader would live on until the garbage
    collector runs.

    Args:
        fetching: whether the block only fetches items from loader processes. Then a connection that
            breaks off is such an error, too.
    """

    def __init__(self, fetching=False):
        self.fetching = fetching

    def __enter__(self):
        pass

    def __exit__(self, kind, error, traceback):
        if not isinstance(error, (RuntimeError, OSError, EOFError)):
            return
        broken = isinstance(error, (OSError, EOFError)) and self.fetching
        # An error that was raised in a worker ("Caught ...") is a fault of the program.
        if not broken and not str(error).startswith('DataLoader '):
            return
        reason = repr(error) if broken else ' '.join(str(error).split())
        raise WorkerFailure(f'a loader process has ended or hangs: {reason}; {remedy()}') from None
