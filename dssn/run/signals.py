"""Signals that stop a run, and the agreement of its processes between two steps."""
import contextlib
import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist

from dssn.data.workers import STOP_SIGNALS

# Seconds in which further signals count as the first one: a launcher may pass on a signal that the
# terminal has already sent to all processes.
ONE_SIGNAL = 1.0


class BrokenOff(BaseException):
    """A signal breaks off an evaluation."""


class Signals:
    """A context that handles stop signals: the first asks to stop, the second ends the process.

    Signals that are already ignored (as under nohup) stay ignored. Outside the main thread, where
    Python cannot handle signals, the context does nothing.

    Attributes:
        number: of the first signal; 0 before it.
    """

    def __init__(self):
        self.number, self.since, self.before = 0, 0.0, {}
        self.breaking = False

    def __enter__(self):
        in_main = threading.current_thread() is threading.main_thread()
        for name in STOP_SIGNALS:
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            if number is not None and in_main and signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def break_off(self, allowed=True):
        """A context for an evaluation: if `allowed`, the first signal breaks it off at once.

        Elsewhere a signal waits for the end of a step. An evaluation loses nothing, and it may be
        waiting for loader processes that hang.
        """
        self.breaking = allowed
        try:
            yield
        except BrokenOff:
            pass
        finally:
            self.breaking = False

    def handle(self, number, _):
        name = signal.Signals(number).name
        if not self.number:
            self.number, self.since = int(number), time.monotonic()
            what = 'breaking off the evaluation' if self.breaking else \
                'stopping after this step is saved'
            write_to_terminal(f'{name}: {what}; a second signal stops at once, without saving\n')
            if self.breaking:
                raise BrokenOff
        elif time.monotonic() - self.since > ONE_SIGNAL:
            write_to_terminal(f'{name} again: stopped without saving\n')
            os._exit(128 + number)


def write_to_terminal(text):
    """Print from a signal handler. `print` cannot be used there: the signal may interrupt it."""
    try:
        os.write(sys.__stderr__.fileno(), text.encode())
    except (OSError, ValueError, AttributeError):
        pass  # the terminal is closed


class Agreement:
    """The maxima of some whole numbers over all ranks, known to all ranks at the same step.

    With one process a call returns its own numbers. With several it returns the maxima of the call
    before. They are exchanged during the step in between, through CPU memory, so that no step
    waits.

    Args:
        size: how many numbers.
    """

    def __init__(self, world, size):
        self.world, self.pending = world, None
        self.nothing = [0] * size
        # All ranks create the group together. The default group may be NCCL, for GPU tensors only.
        self.group = world.host_group() if world.size > 1 else None

    def __call__(self, numbers):
        """Submit this rank's numbers; returns maxima over all ranks as a list."""
        if self.world.size == 1:
            return list(numbers)
        known = self.finish()
        values = torch.tensor(numbers, dtype=torch.long)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self.pending = values, work
        return known

    def finish(self):
        """The maxima of the last call. Called before processes end, so that no process waits."""
        if self.pending is None:
            return self.nothing
        values, work = self.pending
        work.wait()
        self.pending = None
        return values.tolist()
