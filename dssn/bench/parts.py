"""The parts of a training step, and an update that can tell how long each takes."""
import time

import torch

from dssn.update import Update

PARTS = ('data wait', 'move', 'teacher forward', 'student forward', 'losses', 'backward',
         'optimizer', 'EMA', 'logging')


class TimedUpdate(Update):
    """An update that can tell where its time goes."""

    spent = None  # {part: seconds} while parts are timed

    def clock(self, part):
        return Clock(self, part)

    def move(self, batch):
        with self.clock('move'):
            return super().move(batch)

    def gradients(self, batch, step):
        with self.clock('gradients'):
            return super().gradients(batch, step)

    def backward(self, loss, is_last):
        with self.clock('backward'):
            super().backward(loss, is_last)

    def optimize(self):
        with self.clock('optimizer'):
            return super().optimize()

    def average(self):
        with self.clock('EMA'):
            super().average()

    def watch(self, name, network):
        """Hooks that time a network's passes; with `checkpoint_backbone` the first ones alone."""
        clock = self.clock(f'{name} forward')
        return [network.register_forward_pre_hook(lambda *_: clock.__enter__() and None),
                network.register_forward_hook(lambda *_: clock.__exit__())]


class Clock:
    """Adds the seconds between its ends to a part, if parts are timed."""

    def __init__(self, update, part):
        self.update, self.part = update, part

    def now(self):
        if self.update.world.device.type == 'cuda':
            torch.cuda.synchronize(self.update.world.device)
        return time.perf_counter()

    def __enter__(self):
        if self.update.spent is not None:
            self.start = self.now()

    def __exit__(self, *_):
        if self.update.spent is not None:
            self.update.spent[self.part] += self.now() - self.start
