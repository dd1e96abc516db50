"""Timing of several ways to do one thing, side by side."""
import json
import statistics
import time

import torch

from dssn.errors import UserError


def interleaved(ways, rounds, device, clock=None):
    """Seconds of each way in each round, {name: [seconds]}; the ways take turns.

    Machines drift: what is compared must be measured in the same minutes. A round before the
    first is not counted. `clock` is time.perf_counter unless given.
    """
    clock = clock or time.perf_counter
    seconds = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds, name, base):
    """Median over rounds of one way's seconds over another's."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base]))


def write_json(path, content):
    """Write results for programs; nothing without a path."""
    if not path:
        return
    try:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=1)
    except OSError as error:
        raise UserError(f'--json {path}: cannot be written ({error.strerror})') from None


def line_through(x, y):
    """(y at 0, slope, largest relative distance) of the least-squares line through points."""
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) \
        / sum((a - mean_x) ** 2 for a in x)
    base = mean_y - slope * mean_x
    return base, slope, max(abs(base + slope * a - b) / abs(b) for a, b in zip(x, y) if b)
