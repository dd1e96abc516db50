"""`python -m dssn experiments keep`: copies the records of finished runs into the repository."""
import os

from dssn import config
from dssn.atomic import write_atomically
from dssn.errors import UserError
from dssn.tools.experiments.grid import KEPT, add_grid_options, plan_runs, read_experiment
from dssn.tools.experiments.portable import portable, refuse_machine_paths
from dssn.tools.experiments.progress import progress_in_folder, progress_in_kept


def add_arguments(parser):
    """Keep the records of finished runs, small enough to be committed.

        python -m dssn experiments keep experiments/shapes.yaml

    config.yaml and metrics.jsonl of each finished run are copied to
    experiments/results/EXP/SPLIT/VARIANT-seedN/. Weights are not kept. From then on `list`, `run`
    and `page` treat the run as finished, even without its own folder. Paths of this machine are
    removed from config.yaml; a run that needs such a path is refused. A run that is already kept is
    not changed. `python -m dssn report experiments/results` compares kept runs.
    """
    parser.add_argument('experiment', metavar='FILE', help='an experiment, experiments/NAME.yaml')
    add_grid_options(parser, kept=False)
    parser.add_argument('--to', default=KEPT, metavar='FOLDER',
                        help='parent folder of all kept runs (default: %(default)s)')


def run(args):
    runs = plan_runs(read_experiment(args.experiment), args.out, args.assignments, args.to)
    # All runs are read before the first is written, so that an error leaves everything unchanged.
    states = [(planned, progress_in_folder(planned), progress_in_kept(planned)) for planned in runs]
    todo = [(planned, read_records(planned)) for planned, found, kept in states
            if found.state == 'done' and not kept]
    before = [(planned, found) for planned, found, kept in states if kept]
    if not todo and not before:
        raise UserError(f'{args.experiment}: none of its {len(runs)} runs is finished in '
                        f'{args.out}, and none is kept in {args.to}; train them with `python -m '
                        f'dssn experiments run {args.experiment}` first, or name their parent '
                        'folder with --out')
    for planned, records in todo:
        write_records(planned.kept, records)
        print(f'kept: {planned.name}: {planned.kept}')
    for planned, found in before:
        if found.state == 'done' and has_other_metrics(planned):
            print(f'already kept, from another training: {planned.name}: {planned.kept} is not '
                  'changed; to keep the new training instead, remove this folder first')
    for planned, found, kept in states:
        if found.state != 'done' and not kept:
            print(f'not finished, not kept: {planned.name} ({found.epoch} of {planned.cfg.epochs} '
                  'epochs)')
    print(f'{len(runs)} runs: {len(todo)} kept now, {len(before)} before, '
          f'{len(runs) - len(todo) - len(before)} not finished')
    return 0


def has_other_metrics(planned):
    """Whether metrics.jsonl in the run's folder differs from the kept one."""
    found = []
    for folder in (planned.folder, planned.kept):
        with open(os.path.join(folder, 'metrics.jsonl'), 'rb') as file:
            found.append(file.read())
    return found[0] != found[1]


def read_records(planned):
    """{file name: bytes}: the records to keep of a finished run."""
    place = os.path.join(planned.folder, 'config.yaml')
    cfg = portable(config.load(place), planned.out)
    refuse_machine_paths(cfg, place)
    with open(place, encoding='utf-8') as file:
        comments = [line for line in file if line.startswith('# ')]  # the lists, above the keys
    with open(os.path.join(planned.folder, 'metrics.jsonl'), 'rb') as file:
        metrics = file.read()
    return {'config.yaml': (''.join(comments) + config.dump(cfg)).encode(),
            'metrics.jsonl': metrics}


def write_records(folder, records):
    """Write a kept run. metrics.jsonl comes last, so an interruption leaves no kept run."""
    try:
        os.makedirs(folder, exist_ok=True)
        for name in ('config.yaml', 'metrics.jsonl'):
            write_atomically(os.path.join(folder, name), records[name])
    except OSError as error:
        raise UserError(f'--to: {folder} cannot be written ({error.strerror}); make room, or name '
                        'another folder') from None
