"""`python -m dssn.experiments list`: the runs of an experiment, and how far each has come."""
import shlex

from dssn.experiments.grid import command, plan, read
from dssn.experiments.standing import standing


def add_arguments(parser):
    """List the runs of an experiment: number, state, last scores, folder.

    python -m dssn.experiments list experiments/shapes.yaml
    """
    parser.add_argument('experiment', metavar='FILE', help='an experiment, experiments/NAME.yaml')
    parser.add_argument('--out', default='exp', help='folder above all runs (default: %(default)s)')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='config keys of all runs whose method has them')
    parser.add_argument('--commands', action='store_true', help='show what starts each run')


def run(args):
    runs = plan(read(args.experiment), args.out, args.assignments)
    states = [standing(planned) for planned in runs]
    for number, (planned, found) in enumerate(zip(runs, states)):
        print(line(number, planned, found))
        if args.commands:
            print(f'      {command_text(planned)}')
    counts = [f'{sum(found.state == state for found in states)} {state}'
              for state in ('done', 'started', 'to do')]
    print(f"{len(runs)} runs: {', '.join(counts)}")
    return 0


def line(number, planned, found):
    scores = ''.join(f', {role} {found.last[role]:.2f}' for role in ('student', 'teacher')
                     if found.last.get(role) is not None)
    progress = f' ({found.epoch} of {planned.cfg.epochs} epochs{scores})' if found.last else ''
    return (f'{number:>4}  {found.state:<8}{planned.name}, {planned.steps} steps: '
            f'{planned.folder}{progress}')


def command_text(planned, port=29500):
    """The shell command that starts a run."""
    arguments, variables = command(planned, port)
    words = [f'{name}={shlex.quote(value)}' for name, value in variables.items()
             if (name, value) != ('exp_root', 'exp')]
    return ' '.join(words + [shlex.quote(argument) for argument in arguments])
