"""`python -m dssn experiments compare`: a method beside its baselines, on a user's own config."""
import statistics

from dssn.errors import UserError
from dssn.run.metrics import ROLES
from dssn.tools.arguments import positive_number, whole_number
from dssn.tools.experiments.grid import Experiment, add_grid_options, check_name, plan_runs
from dssn.tools.experiments.list_runs import print_runs
from dssn.tools.experiments.progress import FINISHED, progress_of
from dssn.tools.experiments.run import add_run_options, run_experiment
from dssn.tools.report import markdown_table, mean_text
from dssn.tools.run_folders import mean_and_deviation, read_run

SUPERVISED, CONTROL = 'supervised', 'supervised_strong_views'
BASELINES = {'supervised': {'method': SUPERVISED}, 'control': {'method': CONTROL}}


def add_arguments(parser):
    """Train a method and its baselines on your own config, and print what the method gains.

        python -m dssn experiments compare configs/mine.yaml --split 40 --seeds 1 2 3

    The baselines are `supervised` and `control`: the labeled images alone, under DSSN's strong
    views. All runs make the same number of optimizer steps. `supervised` has twice the labeled
    batch, unless the config sets `labeled_batch_size`. Only a gain over the better baseline can be
    due to the unlabeled images. At the end, a table has the differences between runs
    with the same seed: mean, sample standard deviation and standard error. Of each run with a
    teacher, the better of student and teacher counts, for baselines too.

    The same command again skips finished runs and continues interrupted ones. Options and exit
    status are those of `run`. The names of the runs begin with `compare`.
    """
    parser.add_argument('config', metavar='FILE', help='a config file, such as configs/mine.yaml')
    parser.add_argument('--split', nargs='+', required=True, metavar='NAME', dest='splits',
                        help='splits/<dataset>/NAME/labeled.txt and unlabeled.txt')
    parser.add_argument('--seeds', nargs='+', type=whole_number, default=[1, 2, 3], metavar='N',
                        help='a run of each variant has each seed (default: 1 2 3)')
    parser.add_argument('--methods', nargs='+', default=['DSSN'], metavar='METHOD',
                        help='the methods that are compared with the baselines (default: DSSN)')
    parser.add_argument('--processes', type=positive_number, default=1, metavar='N',
                        help='processes of each run (default: %(default)s)')
    parser.add_argument('--list', action='store_true', help='list the runs, and train nothing')
    add_grid_options(parser, kept=False)
    add_run_options(parser)


def run(args):
    experiment = comparison(args)
    args.kept = None
    runs = plan_runs(experiment, args.out, args.assignments)
    if args.list:
        print_runs(runs)
        return 0
    words = ['compare', args.config, '--split', *args.splits, '--seeds', *map(str, args.seeds),
             '--methods', *args.methods, '--processes', str(args.processes)]
    return run_experiment(experiment, args, words, lambda: print_gains(runs))


def comparison(args):
    """The `Experiment` that the command line describes."""
    for name, values in (('--split', args.splits), ('--seeds', args.seeds),
                         ('--methods', args.methods)):
        if len(set(values)) < len(values):
            raise UserError(f"{name} {' '.join(map(str, values))}: name each one once")
    for split in args.splits:
        check_name('command line', '--split', split)
    for method in args.methods:
        if method in (SUPERVISED, CONTROL):
            raise UserError(f'--methods {method}: it is a baseline, and always trained; leave it '
                            'out')
    variants = {**BASELINES, **{method: {'method': method} for method in args.methods}}
    return Experiment(
        path='compare', about='', config=args.config, exp='compare', splits=args.splits,
        seeds=args.seeds, processes=args.processes, after='', settings={}, variants=variants,
        reference='supervised', findings='', published=[], own_seeds={}, lengths={})


def print_gains(runs):
    """Print the table of gains over the baselines, and what each split shows."""
    scores = last_scores(runs)
    splits = list(dict.fromkeys(planned.split for planned in runs))
    methods = [name for name in dict.fromkeys(planned.variant for planned in runs)
               if name not in BASELINES]
    lines, conclusions = [], []
    for split in splits:
        for method in methods:
            for role in ROLES:
                own = scores.get((split, method, role))
                if own:
                    lines.append([split, method, role, mean_text(*mean_and_deviation(
                        list(own.values())))] + [
                        gain_text(differences(own, better_network(scores, split, baseline)))
                        for baseline in BASELINES])
            conclusions.append(f'split {split}, {method}: {conclusion(scores, split, method)}')
    if lines:
        print('\nmIoU at the last epoch, and its difference from the baselines with the same seed '
              '(mean ± sample standard deviation; se: standard error of the mean):\n')
        print(markdown_table(['split', 'method', 'network', 'mIoU', 'over supervised',
                              'over control'], lines) + '\n')
    print('\n'.join(f'- {line}' for line in conclusions))


def last_scores(runs):
    """{(split, variant, role): {seed: mIoU at the last epoch}} of the finished runs."""
    found = {}
    for planned in runs:
        progress = progress_of(planned)
        if progress.state not in FINISHED:
            continue
        for role, last in read_run(progress.folder).summary['last'].items():
            if last is not None:
                found.setdefault((planned.split, planned.variant, role), {})[planned.seed] = \
                    last['miou']
    return found


def better_network(scores, split, variant):
    """{seed: mIoU} of the student or of the teacher, whose mean is higher; {} without runs."""
    found = [scores[split, variant, role] for role in ROLES if (split, variant, role) in scores]
    return max(found, key=mean_of, default={})


def mean_of(scores):
    return statistics.fmean(scores.values())


def differences(own, baseline):
    """{seed: difference} over the seeds that both have."""
    return {seed: own[seed] - baseline[seed] for seed in own if seed in baseline}


def gain_text(found):
    """'+2.13 ± 0.80 (3 seeds, se 0.46)'; '' without a common seed."""
    if not found:
        return ''
    mean, deviation = mean_and_deviation(list(found.values()))
    sign = '+' if mean > 0 else ''
    if deviation is None:
        return f'{sign}{mean:.2f} (1 seed)'
    return (f'{sign}{mean_text(mean, deviation)} ({len(found)} seeds, se '
            f'{standard_error(found):.2f})')


def standard_error(found):
    return statistics.stdev(found.values()) / len(found) ** 0.5


def conclusion(scores, split, method):
    """What the runs show about a method: a gain, a loss, or neither, over the better baseline."""
    own = better_network(scores, split, method)
    baselines = {name: better_network(scores, split, name) for name in BASELINES}
    if not own or not all(baselines.values()):
        return 'not known yet, because runs are missing'
    best = max(baselines, key=lambda name: mean_of(baselines[name]))
    found = differences(own, baselines[best])
    if len(found) < 2:
        return (f"{gain_text(found) or 'no common seed'} over {best}, the better baseline; without "
                'two seeds there is no spread, so this shows neither gain nor loss')
    mean, error = mean_of(found), standard_error(found)
    shown = 'a gain' if mean > 2 * error else 'a loss' if mean < -2 * error else \
        'neither gain nor loss: the difference is within two standard errors'
    return f'{gain_text(found)} over {best}, the better baseline: {shown}'
