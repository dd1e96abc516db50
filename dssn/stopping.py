"""Signals that ask a run to stop, and what its processes agree on between two steps."""
import multiprocessing
import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist

# Ctrl-C, what a cluster or `kill` sends, and the warning before a job is pre-empted.
NAMES = ('SIGINT', 'SIGTERM', 'SIGUSR1')
# Launchers pass on a signal that the terminal has already sent to all: that is not a second one.
ONE_SIGNAL = 1.0  # seconds


class Signals:
    """Takes the signals while it is entered; the first is a request, the second ends the process.

    A signal that is ignored, as nohup does, stays so. Outside the main thread, where Python takes
    no signals, nothing changes.
    """

    def __init__(self):
        self.number, self.since, self.before = 0, 0.0, {}

    def __enter__(self):
        in_main = threading.current_thread() is threading.main_thread()
        for name in NAMES:
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            if number is not None and in_main and signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.take)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def take(self, number, _):
        name = signal.Signals(number).name
        if not self.number:
            self.number, self.since = int(number), time.monotonic()
            tell(f'{name}: stopping once the step is done and saved; again: at once\n')
        elif time.monotonic() - self.since > ONE_SIGNAL:
            tell(f'{name} again: ended without saving\n')
            os._exit(128 + number)


def tell(text):
    """Write to the terminal from a handler, where print may not be entered a second time."""
    try:
        os.write(sys.__stderr__.fileno(), text.encode())
    except (OSError, ValueError, AttributeError):
        pass  # nobody listens any more


def leave_to_parent(*_):
    """For a process that loads data: the signals are its parent's, which ends it in good time."""
    for name in NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def end_loaders():
    """Kill what still loads data. When an error or a signal ends a process, Python sends SIGTERM
    to its loaders and waits for them; they ignore it, and it would wait for ever."""
    loaders = [child for child in multiprocessing.active_children() if child.daemon]
    if loaders and hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's makes an error of their end
    for loader in loaders:
        loader.kill()


class Agreement:
    """Numbers that any rank may raise, and all ranks learn at the same place of the run.

    On one process at once. On several the maximum travels beside the next step, over the hosts'
    network: no device is waited for, and a request is answered one call later.
    """

    def __init__(self, world, size):
        self.world, self.pending = world, None
        self.nothing = [0] * size
        # Groups are made by all ranks together. The network's own may be NCCL, of device tensors.
        self.group = dist.new_group(backend='gloo', timeout=world.timeout) if world.size > 1 \
            else None

    def __call__(self, numbers):
        """Hand in this rank's whole numbers; returns the largest of all ranks'."""
        if self.world.size == 1:
            return list(numbers)
        known = self.finish()
        values = torch.tensor(numbers, dtype=torch.long)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self.pending = values, work
        return known

    def finish(self):
        """What was handed in last; before processes part, so that none waits for an answer."""
        if self.pending is None:
            return self.nothing
        values, work = self.pending
        work.wait()
        self.pending = None
        return values.tolist()
