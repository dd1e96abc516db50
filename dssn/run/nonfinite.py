"""Losses and gradients that are not finite: detected on the device, read once per log line."""
import math
from typing import NamedTuple

import torch


class Fault(NamedTuple):
    """The values that were not finite since the last call of `fault`."""
    step: int   # the first such step, from 1
    term: str   # the first such value in it: a loss term, a fraction, or gradient_norm
    steps: int  # number of such steps


class FiniteCheck:
    """Records which values of the steps are not finite, without waiting for the device."""

    def __init__(self):
        self.first_bad, self.steps = {}, 0  # {names: first bad step of each}; number of bad steps

    def record(self, step, values):
        """Record a step.

        Args:
            step: from 0. values: {name: scalar on the device}.
        """
        names = tuple(values)
        bad = ~torch.isfinite(torch.stack([value.detach().float() for value in values.values()]))
        # One bad value soon makes others bad, so keep the first bad step of each.
        first = torch.full(bad.shape, math.inf, dtype=torch.double, device=bad.device) \
            .masked_fill_(bad, step + 1)
        if names in self.first_bad:
            first = torch.min(self.first_bad[names], first)
        self.first_bad[names] = first
        self.steps = self.steps + bad.any()

    def fault(self):
        """The `Fault` since the last call, or None. It waits for the device."""
        first = {}
        for names, steps in self.first_bad.items():
            for name, step in zip(names, steps.tolist()):
                first[name] = min(step, first.get(name, math.inf))
        steps = int(self.steps)
        self.__init__()
        name = min(first, key=first.get, default=None)
        if name is None or first[name] == math.inf:
            return None
        return Fault(int(first[name]), name, steps)
