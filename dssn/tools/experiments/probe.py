"""A probe before short trainings: the cost of a step, how many runs fit at once, how many steps."""
import math
import os
import re
import shutil
from typing import NamedTuple

import torch

from dssn.distributed import cores_of_a_process
from dssn.errors import Stopped, UserError
from dssn.run import metrics
from dssn.tools.experiments.grid import method_of, plan_runs
from dssn.tools.experiments.pool import Pool
from dssn.tools.experiments.run_times import Cost

CORES_OF_A_RUN = 3    # one feeds the GPU, two load data
MAX_AT_ONCE = 5
CONTEXT = 1024        # MiB of a GPU that a process needs in addition to its tensors
MARGIN = 1.25         # reserved over allocated memory: the allocator reserves larger blocks
SPARE = 0.9           # fraction of the time left that is planned for


class Limits(NamedTuple):
    """Optimizer steps of an epoch of the probe; the fewest and the most steps of a run."""
    probe: int
    least: int
    most: int


GPU_LIMITS, REHEARSAL_LIMITS = Limits(24, 100, 5000), Limits(3, 4, 12)


def measure(experiment, root, assignments, limits, deadline, at_once=None, on_cpu=False):
    """Train the first run of each method, and further runs up to `at_once`, for a few steps.

    Args:
        root: parent folder of all runs. assignments: `key=value` of all runs.
        limits: `Limits`. deadline: `Deadline`.
        at_once: number of runs at the same time; None: it is chosen.

    Returns:
        ({method: Cost}, MiB that a run needs or None on a CPU, number of runs at once).

    Raises:
        UserError: a run of the probe failed; the message names the run and its folder.
        Stopped: a signal came.
    """
    wanted = at_once or initial_at_once(on_cpu)
    free = None if on_cpu else free_memory()
    while True:
        outcomes, ended_by = train_probe(experiment, f'{root}/probe', assignments, limits, deadline,
                                         wanted, on_cpu)
        failed = [outcome for outcome in outcomes if outcome.state != 'done']
        if not failed and not ended_by:
            break
        if ended_by:
            raise Stopped(ended_by)
        planned = failed[0].planned
        if wanted == 1 or at_once or not ran_out_of_memory(planned):
            raise UserError(f'the probe: {planned.name}: {failed[0].state}, {failed[0].text}; see '
                            f'the log in {planned.folder}')
        wanted = max(wanted // 2, 1)
        print(f'the probe: {planned.name} ran out of memory; trying {wanted} runs at once',
              flush=True)
    costs, memory = {}, 0
    for planned, _, _, seconds in outcomes:
        cost, peak = read_cost(planned, seconds)
        known = costs.get(planned.cfg.method, cost)
        costs[planned.cfg.method] = Cost(*map(max, zip(known, cost)))
        memory = max(memory, peak * MARGIN + CONTEXT)
    shutil.rmtree(f'{root}/probe', ignore_errors=True)
    if on_cpu:
        return costs, None, wanted
    return costs, round(memory), at_once or max(min(wanted, int(free // memory)), 1)


def free_memory():
    """Free MiB of the GPU; before PyTorch 1.11 its total MiB."""
    if hasattr(torch.cuda, 'mem_get_info'):
        return torch.cuda.mem_get_info(0)[0] / 2 ** 20
    return torch.cuda.get_device_properties(0).total_memory / 2 ** 20


def initial_at_once(on_cpu):
    """Number of runs at once before their memory is known."""
    cores = cores_of_a_process(1)
    return max(min(cores if on_cpu else cores // CORES_OF_A_RUN, MAX_AT_ONCE), 1)


def loader_workers(at_once, on_cpu):
    """Loader processes of each run."""
    return 0 if on_cpu else max(min(cores_of_a_process(at_once) - 1, 8), 1)


def train_probe(experiment, folder, assignments, limits, deadline, at_once, on_cpu):
    """(outcomes, signal or None) of the probe's runs, two epochs each."""
    shutil.rmtree(folder, ignore_errors=True)
    own = [name for name, keys in experiment.variants.items() if 'init_from' not in keys]
    first = {method_of(experiment, name).name: name for name in reversed(own)}
    others = [name for name in own if name not in first.values()]
    chosen = [name for name in own if name in first.values()]
    chosen += others[:max(at_once - len(chosen), 0)]
    small = experiment._replace(lengths={}, own_seeds={}, seeds=experiment.seeds[:1], variants={
        name: experiment.variants[name] for name in chosen})
    kept = [text for text in assignments if '.' not in text.partition('=')[0]
            or text.partition('=')[0].rpartition('.')[0] in chosen]
    epoch_steps = min(limits.probe, steps_of_a_pass(small, kept))
    runs = plan_runs(small, folder, [f'workers={loader_workers(at_once, on_cpu)}', *kept,
                                     'epochs=2', f'epoch_steps={epoch_steps}', 'eval_every=1',
                                     f'log_every={epoch_steps}', 'save_every=0'])
    print(f'the probe: {len(runs)} runs of {runs[0].steps} steps, {at_once} at once', flush=True)
    return Pool(runs, False, at_once, deadline).train()


def ran_out_of_memory(planned):
    """Whether the log of a run contains the error that memory was insufficient."""
    for name in os.listdir(planned.folder):
        if name.endswith('.log'):
            with open(os.path.join(planned.folder, name), errors='replace') as file:
                if 'out of memory' in file.read():
                    return True
    return False


def read_cost(planned, seconds):
    """(`Cost`, peak MiB) of a run of two epochs that took `seconds` in total."""
    path = os.path.join(planned.folder, 'metrics.jsonl')
    one, two = metrics.evaluations(metrics.read(path), path)
    with open(os.path.join(planned.folder, 'train.log'), encoding='utf-8') as file:
        rates = re.findall(r'images_per_second (\S+)', file.read())
    images = planned.cfg.labeled_images + planned.cfg.unlabeled_images
    step = images / float(rates[-1])
    steps = planned.cfg.epoch_steps
    evaluation = max(two['seconds'] - one['seconds'] - steps * step, 0.0)
    # The first steps are slower than the others; the additional time counts as part of the start.
    first = max(one['seconds'] - steps * step - evaluation, 0.0)
    start = max(seconds - two['seconds'], 0.0) + first
    return Cost(start, step, evaluation), two['peak_memory_mib']


def cost_text(method, cost):
    return (f'{method} {cost.start:.0f} s to start, {cost.step:.3f} s a step, '
            f'{cost.evaluation:.1f} s an evaluation')


# The length of the runs.

def choose_steps(experiment, costs, at_once, deadline, limits):
    """The largest number of steps at which all runs fit into the time left, within the limits."""
    left = deadline.left() * SPARE
    low, high = limits.least, limits.most
    while low < high:
        middle = (low + high + 1) // 2
        if seconds_of_all(experiment, costs, at_once, middle) <= left:
            low = middle
        else:
            high = middle - 1
    return low


def seconds_of_all(experiment, costs, at_once, steps):
    """Seconds that all runs take if they are started in their order, `at_once` at a time."""
    free_at = [0.0] * at_once  # the time at which each place becomes free
    for variant in experiment.variants:
        cost = costs[method_of(experiment, variant).name]
        length = experiment.lengths.get(variant, 1)
        seeds = len(experiment.own_seeds.get(variant, experiment.seeds))
        for _ in range(seeds):
            free_at.sort()
            free_at[0] += cost.start + length * (steps * cost.step + 2 * cost.evaluation)
    return max(free_at)


def steps_of_a_pass(experiment, assignments):
    """Optimizer steps of one pass over the unlabeled list."""
    planned = plan_runs(experiment, '', assignments)[0]
    return planned.steps // planned.cfg.epochs


def epoch_keys(experiment, assignments, steps):
    """Config keys {epochs, epoch_steps, eval_every} of runs of about `steps` optimizer steps.

    There are as many epochs as passes over the unlabeled list are needed. Their number is even,
    since some runs have half the length. Each run is evaluated twice, one of half the length once.
    """
    one_pass = steps_of_a_pass(experiment, assignments)
    half = max(math.ceil(steps / 2 / one_pass), 1)
    return {'epochs': 2 * half, 'epoch_steps': max(steps // (2 * half), 1), 'eval_every': half}
