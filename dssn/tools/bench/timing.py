"""Times several ways to do the same thing, in turns."""
import statistics
import time

import torch


def add_config_options(parser):
    """Add the options --config, --set and --json."""
    parser.add_argument('--config', required=True, help='YAML file of the experiment')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--json', metavar='FILE', help='write the result as JSON')


def time_in_turns(ways, rounds, device, clock=None):
    """Seconds of each way in each round, {name: [seconds]}. A first round is not counted.

    The speed of a machine changes over time. Ways that take turns are affected equally.

    Args:
        ways: {name: function without arguments}. rounds: number of counted rounds.
        device: a GPU is synchronised after each call.
        clock: function that returns seconds; None: time.perf_counter.
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
    """Median over rounds of the seconds of one way over those of another."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base]))
