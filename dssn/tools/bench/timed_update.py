"""An update that measures the time of each part of a training step."""
import time

import torch

from dssn.update import Update

PARTS = ('data wait', 'move', 'teacher forward', 'student forward', 'losses', 'backward',
         'optimizer', 'EMA', 'logging')


class TimedUpdate(Update):
    """An update that measures its parts while `seconds` is a mapping."""

    seconds = None  # {part: seconds}, a defaultdict(float); None: nothing is measured

    def clock(self, part):
        return Clock(self, part)

    def move(self, batch):
        with self.clock('move'):
            return super().move(batch)

    def gradients(self, batch, step):
        with self.clock('gradients'):
            return super().gradients(batch, step)

    def backward(self, loss):
        with self.clock('backward'):
            super().backward(loss)

    def optimize(self):
        with self.clock('optimizer'):
            return super().optimize()

    def average(self):
        with self.clock('EMA'):
            super().average()

    def time_forward(self, name, network):
        """Measure the forward passes of a network as part '<name> forward'; returns the hooks.

        With `checkpoint_backbone` the second passes of the backbone count as backward.
        """
        clock = self.clock(f'{name} forward')
        return [network.register_forward_pre_hook(lambda *_: clock.__enter__() and None),
                network.register_forward_hook(lambda *_: clock.__exit__())]


class Clock:
    """A context that adds its seconds to a part of an update, if the update is measured."""

    def __init__(self, update, part):
        self.update, self.part = update, part

    def now(self):
        if self.update.world.device.type == 'cuda':
            torch.cuda.synchronize(self.update.world.device)
        return time.perf_counter()

    def __enter__(self):
        if self.update.seconds is not None:
            self.start = self.now()

    def __exit__(self, *_):
        if self.update.seconds is not None:
            self.update.seconds[self.part] += self.now() - self.start
