"""Losses and gradients that are not finite: noticed on the device, told at the log's interval."""
import math
from typing import NamedTuple

import torch


class Fault(NamedTuple):
    """What was not finite since the last look."""
    step: int   # the first step with it, from 1
    term: str   # of the loss, a share, or gradient_norm: the one that went first
    steps: int  # with anything that was not finite


class FiniteCheck:
    """Takes note of every step's numbers without waiting for them."""

    def __init__(self):
        self.went, self.steps = {}, 0  # {names: the first bad step of each}; bad steps

    def note(self, step, values):
        """Take note of a step.

        Args:
            step: from 0. values: {name: scalar on the device}.
        """
        names = tuple(values)
        bad = ~torch.isfinite(torch.stack([value.detach().float() for value in values.values()]))
        # Where one goes others follow: note when each did.
        went = torch.full(bad.shape, math.inf, dtype=torch.double, device=bad.device) \
            .masked_fill_(bad, step + 1)
        self.went[names] = torch.min(self.went[names], went) if names in self.went else went
        self.steps = self.steps + bad.any()

    def look(self):
        """The `Fault` since the last look, or None; waits for the device."""
        first = {}
        for names, went in self.went.items():
            for name, step in zip(names, went.tolist()):
                first[name] = min(step, first.get(name, math.inf))
        steps = int(self.steps)
        self.__init__()
        name = min(first, key=first.get, default=None)
        if name is None or first[name] == math.inf:
            return None
        return Fault(int(first[name]), name, steps)
