"""`python -m dssn.experiments run`: train what is not done yet, and print the table."""
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys

from dssn.errors import UserError
from dssn.experiments.grid import command, key_names, method_of, plan, read
from dssn.experiments.standing import standing
from dssn.report import markdown, notes
from dssn.runs import make_rows, read_run


def add_arguments(parser):
    """Run an experiment: one run after the other, each by scripts/train.sh.

    python -m dssn.experiments run experiments/shapes.yaml
    python -m dssn.experiments run experiments/camvid.yaml --slurm gpu --gres=gpu:1 --time=8:00:00

    The same command again skips the runs that are done and continues one that was broken off. It
    ends with the table of `dssn.report` over the runs of the experiment. Exit status: 0, or 1 where
    a run failed, or 128 and the signal's number where one has ended it.

    --slurm PARTITION submits the runs as an array job, a run each task; what follows it goes to
    sbatch. An experiment that it comes `after` is then to be done already, as with --task.
    """
    parser.add_argument('experiment', metavar='FILE', help='an experiment, experiments/NAME.yaml')
    parser.add_argument('--out', default='exp', help='folder above all runs (default: %(default)s)')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='config keys of all runs whose method has them, '
                        'such as data_root=/data/camvid')
    parser.add_argument('--task', nargs='+', type=int, metavar='N',
                        help='these runs alone, by the numbers of `list`')
    parser.add_argument('--keep-going', action='store_true',
                        help='go on with the next run where one fails')
    parser.add_argument('--slurm', nargs='...', metavar='PARTITION',
                        help='submit to this partition; further arguments are for sbatch')


def run(args):
    experiment = read(args.experiment)
    runs = plan(experiment, args.out, args.assignments)
    before = plan_before(experiment, args.out, args.assignments)
    for planned in before + runs:
        standing(planned)  # that a folder holds another run is said before any is started
    if not os.path.exists('scripts/train.sh'):
        raise UserError('scripts/train.sh: not here; run this from the root of the repository')
    chosen = before + runs if args.task is None else [pick(runs, number) for number in args.task]
    if args.slurm is not None or args.task is not None:
        refuse_early(experiment, before)
    if args.slurm is not None:
        return submit(args, len(runs))
    failed, status = train_all(chosen, args.keep_going)
    print_table(runs)
    for planned, code in failed:
        print(f'not done: {planned.name}: exit status {code}; see the log in {planned.folder}',
              file=sys.stderr)
    return status


def plan_before(experiment, out, assignments):
    """The runs of the experiment that this one comes after, by what of `assignments` it has."""
    if not experiment.after:
        return []
    first = read(experiment.after)
    names = {name for variant in first.variants for name in key_names(method_of(first, variant))}
    return plan(first, out, [text for text in assignments if text.partition('=')[0] in names])


def refuse_early(experiment, before):
    missing = [planned for planned in before if standing(planned).state != 'done']
    if missing:
        raise UserError(f'{experiment.path}: comes after {experiment.after}, of which '
                        f'{len(missing)} runs are not done ({missing[0].name}): run that first')


def pick(runs, number):
    if not 0 <= number < len(runs):
        raise UserError(f'--task {number}: the runs are numbered from 0 to {len(runs) - 1}')
    return runs[number]


def train_all(runs, keep_going):
    """([(run, exit status)] of what failed, the exit status of all)."""
    failed = []
    for number, planned in enumerate(runs, 1):
        if standing(planned).state == 'done':
            print(f'done already: {planned.name}', flush=True)
            continue
        print(f'run {number} of {len(runs)}: {planned.name}', flush=True)
        code, ended_by = train(planned)
        if code == 0 and standing(planned).state != 'done':
            code = 'of 0, but the run is not finished'
        if code:
            failed.append((planned, code))
        if ended_by:
            return failed, 128 + ended_by
        if code and not keep_going:
            break
    return failed, int(bool(failed))


def train(planned):
    """Train a run to its end: (its exit status, the number of a signal that came meanwhile).

    After a signal it is for the training to end.
    """
    arguments, variables = command(planned, free_port())
    signals, real = [], {}
    child = subprocess.Popen(arguments, env={**os.environ, **variables})

    def note(number, _):
        signals.append(number)
        if number != signal.SIGINT:  # Ctrl-C: the terminal has told the training, too
            child.send_signal(number)
    for number in (signal.SIGINT, signal.SIGTERM):
        real[number] = signal.signal(number, note)
    try:
        code = child.wait()
    finally:
        for number, handler in real.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code, signals[0] if signals else None


def free_port():
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(('', 0))
        return probe.getsockname()[1]


def print_table(runs):
    """The table of `dssn.report` over the runs that have been evaluated."""
    found = [read_run(planned.folder) for planned in runs if standing(planned).last]
    if found:
        rows = make_rows(found)
        print(markdown(rows))
        print('\n'.join(f'- {note}' for note in notes(rows, [])))


def submit(args, count):
    """Submit the runs as an array job; returns sbatch's exit status."""
    if not args.slurm:
        raise UserError('--slurm: name the partition')
    if not shutil.which('sbatch'):
        raise UserError('no sbatch on the PATH: --slurm needs Slurm; without it runs follow one '
                        'another')
    partition, *options = args.slurm
    again = [sys.executable, '-m', 'dssn.experiments', 'run', args.experiment, '--out', args.out]
    if args.assignments:
        again += ['--set'] + args.assignments
    tasks = ','.join(map(str, args.task)) if args.task else f'0-{count - 1}'
    text = ' '.join(map(shlex.quote, again)) + ' --task "$SLURM_ARRAY_TASK_ID"'
    name = os.path.splitext(os.path.basename(args.experiment))[0]
    return subprocess.call(['sbatch', f'--partition={partition}', f'--array={tasks}', '--requeue',
                            f'--job-name={name}', f'--chdir={os.getcwd()}', *options,
                            f'--wrap={text}'])
