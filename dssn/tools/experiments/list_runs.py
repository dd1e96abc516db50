"""`python -m dssn experiments list`: the runs of an experiment and their progress."""
import shlex

from dssn.tools.experiments.grid import (
    add_grid_options,
    plan_runs,
    read_experiment,
    start_command,
)
from dssn.tools.experiments.progress import progress_of

PORT = 29500  # in the commands that are shown


def add_arguments(parser):
    """List the runs of an experiment: number, state, last scores, folder.

        python -m dssn experiments list experiments/shapes.yaml
    """
    parser.add_argument('experiment', metavar='FILE', help='an experiment, experiments/NAME.yaml')
    add_grid_options(parser)
    parser.add_argument('--commands', action='store_true',
                        help='show the command that starts each run')


def run(args):
    print_runs(plan_runs(read_experiment(args.experiment), args.out, args.assignments, args.kept),
               args.commands)
    return 0


def print_runs(runs, commands=False):
    """Print a line for each planned run, with its command if asked for, and the counts."""
    states = [progress_of(planned) for planned in runs]
    for number, (planned, found) in enumerate(zip(runs, states)):
        print(run_line(number, planned, found))
        if commands:
            print(f'      {command_text(planned)}')
    counts = [f'{sum(found.state == state for found in states)} {state}'
              for state in ('done', 'kept', 'started', 'to do')
              if state != 'kept' or any(found.state == state for found in states)]
    print(f"{len(runs)} runs: {', '.join(counts)}")


def run_line(number, planned, found):
    scores = ''.join(f', {role} {found.last[role]:.2f}' for role in ('student', 'teacher')
                     if found.last.get(role) is not None)
    progress = f' ({found.epoch} of {planned.cfg.epochs} epochs{scores})' if found.last else ''
    return (f'{number:>4}  {found.state:<8}{planned.name}, {planned.steps} steps: '
            f'{found.folder}{progress}')


def command_text(planned):
    """The shell command that starts a run."""
    arguments, variables = start_command(planned, PORT)
    words = [f'{name}={shlex.quote(value)}' for name, value in variables.items()
             if (name, value) != ('exp_root', 'exp')]
    return ' '.join(words + [shlex.quote(argument) for argument in arguments])
