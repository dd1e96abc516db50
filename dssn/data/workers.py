"""Processes that load data: they ignore stop signals, and their parent process ends them."""
import multiprocessing
import signal

# Sent by Ctrl-C, by a cluster or `kill`, and as a warning before a job is pre-empted.
STOP_SIGNALS = ('SIGINT', 'SIGTERM', 'SIGUSR1')


def ignore_stop_signals(*_):
    """Call this in a loader process: only its parent reacts to signals, and ends it in time."""
    for name in STOP_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def kill_loaders():
    """Kill all loader processes of this process.

    When an error or a signal ends a process, Python sends SIGTERM to its loaders and waits for
    them. Loaders ignore SIGTERM, so it would wait forever.
    """
    loaders = [child for child in multiprocessing.active_children() if child.daemon]
    if loaders and hasattr(signal, 'SIGCHLD'):
        # PyTorch's handler would raise an error when a loader ends.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for loader in loaders:
        loader.kill()
