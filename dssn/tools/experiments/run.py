"""`python -m dssn experiments run`: trains the runs that are not done, and prints the table."""
import os
import shlex
import shutil
import subprocess
import sys

from dssn.errors import UserError
from dssn.tools.arguments import positive_amount, positive_number
from dssn.tools.experiments.grid import (
    KEPT,
    add_grid_options,
    key_names,
    method_of,
    plan_runs,
    read_experiment,
)
from dssn.tools.experiments.pool import Deadline, Pool
from dssn.tools.experiments.progress import progress_in_folder, progress_of
from dssn.tools.report import notes, runs_table
from dssn.tools.run_folders import make_rows, read_run


def add_arguments(parser):
    """Train the runs of an experiment, one at a time or several at once, by scripts/train.sh.

        python -m dssn experiments run experiments/shapes.yaml
        python -m dssn experiments run experiments/camvid.yaml --slurm gpu --gres=gpu:1 \\
            --time=8:00:00

    The same command again skips the runs that are done and continues an interrupted run. A run with
    kept records (see `keep`) counts as done; with --kept none it is trained anyway. At the end the
    table of `python -m dssn report` is printed over the runs of the experiment. Exit status: 0; 1
    if a run failed; 128 plus the number of the signal if a signal ended the command.

    --at-once K trains up to K runs at the same time on the same device. The output of each run is
    written only to the log in its folder. Choose `workers` so that there are cores for the loaders
    of all runs (--set workers=2). --minutes N ends all runs within this time. A run that will not
    fit, by the times of earlier runs, is left out and named. An unfinished run is saved and
    stopped. Neither is a failure, and the same command continues later.

    --slurm PARTITION submits the runs as an array job, one run a task; the arguments after it are
    passed to sbatch. The runs of the experiment named by `after` must be done before; the same
    holds for --task.
    """
    parser.add_argument('experiment', metavar='FILE', help='an experiment, experiments/NAME.yaml')
    add_grid_options(parser)
    add_run_options(parser)


def add_run_options(parser):
    """The options that say how runs are trained."""
    parser.add_argument('--task', nargs='+', type=int, metavar='N',
                        help='only these runs, by their numbers in `list`')
    parser.add_argument('--keep-going', action='store_true',
                        help='after a failed run, continue with the next one')
    parser.add_argument('--at-once', type=positive_number, default=1, metavar='K',
                        help='train up to K runs at the same time (default: %(default)s)')
    parser.add_argument('--minutes', type=positive_amount, metavar='N',
                        help='end within this time; runs that do not fit are left out')
    parser.add_argument('--slurm', nargs='...', metavar='PARTITION',
                        help='submit to this partition; further arguments are passed to sbatch')


def run(args):
    words = ['run', args.experiment] + (
        ['--kept', args.kept or 'none'] if args.kept != KEPT else [])
    return run_experiment(read_experiment(args.experiment), args, words)


def run_experiment(experiment, args, words, at_end=None):
    """Train the runs of an experiment that are not done; returns the exit status.

    Args:
        args: with the options of `add_grid_options` and `add_run_options`. words: the arguments
            after `experiments` that name this experiment, for the tasks of an array job. at_end:
            called after the table is printed.
    """
    deadline = Deadline(args.minutes)
    runs = plan_runs(experiment, args.out, args.assignments, args.kept)
    before = plan_runs_before(experiment, args)
    for planned in before + runs:
        progress_of(planned)  # reports folders with other settings before any run is started
    if not os.path.exists('scripts/train.sh'):
        raise UserError('scripts/train.sh: not here; run this from the root of the repository')
    chosen = before + runs if args.task is None else [
        run_of_task(runs, number) for number in args.task]
    if args.slurm is not None or args.task is not None:
        require_done(experiment, before)
    if args.slurm is not None:
        if args.at_once > 1 or args.minutes:
            raise UserError('--slurm: each run is a task of its own; --at-once and --minutes are '
                            'for runs without Slurm (with it: %N in --array, --time)')
        return submit(args, len(runs), experiment.name, words)
    outcomes, ended_by = Pool(chosen, args.keep_going, args.at_once, deadline).train()
    print_table(runs)
    if at_end:
        at_end()
    print_not_done(outcomes)
    return exit_status_of(outcomes, ended_by)


def print_not_done(outcomes):
    for planned, state, text, _ in outcomes:
        if state == 'failed':
            print(f'not done: {planned.name}: {text}; see the log in {planned.folder}',
                  file=sys.stderr)
        elif state != 'done':
            print(f'not done: {planned.name}: {state}: {text}', file=sys.stderr)


def exit_status_of(outcomes, ended_by):
    """128 plus the number of a signal, or 1 if a run failed, or 0."""
    if ended_by:
        return 128 + ended_by
    return int(any(outcome.state == 'failed' for outcome in outcomes))


def plan_runs_before(experiment, args):
    """The runs of the experiment named by `after`, with the assignments that it has keys for."""
    if not experiment.after:
        return []
    first = read_experiment(experiment.after)
    names = {name for variant in first.variants for name in key_names(method_of(first, variant))}
    return plan_runs(first, args.out, [text for text in args.assignments
                                       if text.partition('=')[0] in names], args.kept)


def require_done(experiment, before):
    """Raise a UserError if a run of the experiment named by `after` is not done."""
    # Kept records are not enough: weights are needed.
    missing = [planned for planned in before if progress_in_folder(planned).state != 'done']
    if missing:
        raise UserError(f'{experiment.path}: needs the runs of {experiment.after}; not done: '
                        f'{len(missing)}, such as {missing[0].name}; train them first with '
                        f'`python -m dssn experiments run {experiment.after}`, and with --kept '
                        'none if their records are kept')


def run_of_task(runs, number):
    if not 0 <= number < len(runs):
        raise UserError(f'--task {number}: the runs are numbered from 0 to {len(runs) - 1}')
    return runs[number]


def print_table(runs):
    """Print the table of `python -m dssn report` over the runs that have been evaluated."""
    states = [progress_of(planned) for planned in runs]
    found = [read_run(state.folder) for state in states if state.last]
    if found:
        rows = make_rows(found)
        print(runs_table(rows))
        print('\n'.join(f'- {note}' for note in notes(rows, [])))


def submit(args, count, name, words):
    """Submit the runs as an array job; returns the exit status of sbatch. `words`: see above."""
    if not args.slurm:
        raise UserError('--slurm: name the partition')
    if not shutil.which('sbatch'):
        raise UserError('no sbatch on the PATH: --slurm needs Slurm; without --slurm the runs are '
                        'trained here, one after the other')
    partition, *options = args.slurm
    again = [sys.executable, '-m', 'dssn', 'experiments', *words, '--out', args.out]
    if args.assignments:
        again += ['--set'] + args.assignments
    tasks = ','.join(map(str, args.task)) if args.task else f'0-{count - 1}'
    text = ' '.join(map(shlex.quote, again)) + ' --task "$SLURM_ARRAY_TASK_ID"'
    return subprocess.call(['sbatch', f'--partition={partition}', f'--array={tasks}', '--requeue',
                            f'--job-name={name}', f'--chdir={os.getcwd()}', *options,
                            f'--wrap={text}'])
