"""`python -m dssn experiments evidence`: short trainings of all methods on one GPU."""
import os
import shutil

import torch

from dssn import methods
from dssn.errors import Stopped, UserError
from dssn.models import ENCODERS, pretrained
from dssn.run.machine import machine
from dssn.tools.arguments import positive_amount, positive_number
from dssn.tools.data.shapes import render_dataset
from dssn.tools.experiments import probe
from dssn.tools.experiments.evidence_files import EvidenceFiles
from dssn.tools.experiments.grid import (
    NAME,
    assignment_text,
    method_of,
    plan_runs,
    read_experiment,
)
from dssn.tools.experiments.pool import Deadline, Pool
from dssn.tools.experiments.progress import progress_of
from dssn.tools.experiments.run import exit_status_of, print_not_done
from dssn.tools.experiments.run_times import RunTimes
from dssn.tools.weights.contents import read_weights_file
from dssn.tools.weights.store import store

EXPERIMENT = 'experiments/gpu_evidence.yaml'
LIST_OPTIONS = ('labeled', 'unlabeled', 'unlabeled_with_masks', 'val', 'all_labeled')
REQUIRED = ('config', 'labeled', 'unlabeled', 'val')  # options that own images need, all of them
LENGTH_KEYS = ('epochs', 'epoch_steps', 'eval_every')  # config keys that the number of steps sets
# As in experiments/shapes.yaml: after so few steps from scratch the confidence is still low.
SHAPES_KEYS = [f'{method}.conf_thresh=0.8' for method in ('fixmatch', 'unimatch', 'unimatch_v2')]
SHAPES_SUPERVISED_LR = 0.025
GPU_KEYS = ['amp=bf16', 'channels_last=true']
# With weights of DINOv2: its network, with the optimizer and the rates of UniMatch V2.
DINOV2_KEYS = {'model': 'dpt', 'optimizer': 'adamw', 'lr': 0.000005, 'lr_multi': 40}
DINOV2_CROP, DINOV2_CROP_ON_SHAPES = 518, 70
REHEARSAL_KEYS = ['device=cpu', 'batch_size=2']
SMALL_SIZES, SMALL_DINOV2_SIZES = ['crop_size=33', 'decoder_channels=8'], ['crop_size=42']
SMALL_NETWORK = ['backbone=resnet18', 'base_channels=4', 'pretrained=false']


def add_arguments(parser):
    """Train all methods for some minutes with equal numbers of steps, most decisive runs first.

        sh scripts/gpu_evidence.sh results --config configs/mine.yaml --data-root data/mine \\
            --labeled few.txt --unlabeled rest.txt --val val.txt --all-labeled all.txt \\
            --weights resnet50.pth

    Without lists of your own the data set `shapes` is used, and rendered if needed. The runs are
    those of experiments/gpu_evidence.yaml. On your own images the labeled loss has weight 1 in all
    methods. With --unlabeled-with-masks instead of --unlabeled the oracles are trained too. They
    train on these masks; methods do not read them.

    A probe of a few steps of each method chooses the number of steps and how many runs share the
    GPU. Results are written to OUT after each run: evidence.md (a table), evidence.json, and
    runs.tar.gz (config, metrics and log of each run). Checkpoints stay in --runs. With --steps, the
    same command continues with the unfinished runs. Paths are relative to the root of the
    repository. Exit status: the same as for `run`.
    """
    parser.add_argument('out', nargs='?', default='exp/gpu_evidence', metavar='OUT',
                        help='folder for the results (default: %(default)s)')
    parser.add_argument('--minutes', type=positive_amount, metavar='N',
                        help='time for everything, data and probe included; runs that do not fit '
                        'are left out and named (default: 6; with --rehearse 3.5)')
    parser.add_argument('--rehearse', action='store_true',
                        help='run on a CPU in small sizes, only to show that everything works')
    parser.add_argument('--steps', type=positive_number, metavar='T',
                        help='optimizer steps of a run, rounded down to whole epochs of equal '
                        'length (default: chosen by the probe)')
    parser.add_argument('--at-once', type=positive_number, metavar='K',
                        help='runs at the same time (default: as many as cores and memory of the '
                        'GPU allow, at most 5)')
    parser.add_argument('--config', metavar='C', help='config of your images: dataset, classes, '
                        'backbone, crop_size, lr, ...')
    parser.add_argument('--data-root', metavar='D', help='folder that the lists are relative to '
                        '(default: data_root of the config)')
    parser.add_argument('--labeled', metavar='L', help='id list of labeled images')
    parser.add_argument('--unlabeled', metavar='U', help='id list of unlabeled images')
    parser.add_argument('--unlabeled-with-masks', metavar='M', help='instead of --unlabeled: its '
                        'lines name masks, and the oracles are trained too')
    parser.add_argument('--val', metavar='V', help='id list to evaluate on')
    parser.add_argument('--all-labeled', metavar='A', help='id list of all images that have a '
                        'mask; without it the run on all of them is left out')
    parser.add_argument('--weights', metavar='W', help='file of pretrained weights, float16 is '
                        'possible; it decides model, backbone and stem; with DINOv2 also crop_size '
                        '518 and the optimizer with its rates, if --set gives no others')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='config keys, as for `run`')
    parser.add_argument('--runs', metavar='FOLDER', help='folder of the runs and their checkpoints '
                        '(default: exp/gpu_evidence_runs; with --rehearse exp/rehearsed_runs)')


def run(args):
    deadline = Deadline(args.minutes or (3.5 if args.rehearse else 6))
    check_arguments(args)
    limits = probe.REHEARSAL_LIMITS if args.rehearse else probe.GPU_LIMITS
    experiment, left_out = choose_variants(args)
    assignments = choose_assignments(args, experiment)
    root = args.runs or ('exp/rehearsed_runs' if args.rehearse else 'exp/gpu_evidence_runs')
    # Errors in lists and keys are reported before anything is trained.
    plan_runs_of_length(experiment, root, assignments, args.steps or limits.least)
    files = EvidenceFiles(args.out, args.rehearse)
    if not args.labeled:
        render_dataset('data/shapes')

    try:
        costs, memory, at_once = probe.measure(experiment, root, assignments, limits, deadline,
                                               args.at_once, args.rehearse)
    except Stopped as stop:
        return 128 + stop.number
    steps = args.steps or probe.choose_steps(experiment, costs, at_once, deadline, limits)
    assignments.insert(0, f'workers={probe.loader_workers(at_once, args.rehearse)}')
    steps, runs = plan_runs_of_length(experiment, root, assignments, steps, args.rehearse)
    device = torch.device('cpu' if args.rehearse else 'cuda:0')
    files.open({'machine': machine(device), 'minutes': deadline.minutes, 'steps': steps,
                'runs_at_once': at_once, 'a_run_needs_mib': memory, 'weights': args.weights,
                'settings': assignments, 'left_out': left_out,
                'probe': {method: cost._asdict() for method, cost in costs.items()}},
               runs, experiment.reference)
    print(f'T = {steps} optimizer steps, {at_once} runs at once; the probe: '
          + '; '.join(probe.cost_text(method, cost) for method, cost in costs.items()), flush=True)

    outcomes, ended_by = Pool(runs, True, at_once, deadline, RunTimes(costs), files.update).train()
    print(files.write(outcomes))
    print_not_done(outcomes)
    return exit_status_of(outcomes, ended_by)


def plan_runs_of_length(experiment, root, assignments, steps, afresh=False):
    """(optimizer steps, planned runs) with about `steps` steps, in a folder named after them.

    Args:
        root: parent folder of that folder. afresh: remove earlier runs of that length.

    Raises:
        UserError: a list or a key is wrong, or the folder holds runs with other settings.
    """
    keys = probe.epoch_keys(experiment, assignments, steps)
    steps = keys['epochs'] * keys['epoch_steps']
    folder = f'{root}/{steps}_steps'
    runs = plan_runs(experiment, folder,
                     assignments + [f'{key}={value}' for key, value in keys.items()])
    if afresh:
        shutil.rmtree(folder, ignore_errors=True)
    for planned in runs:
        progress_of(planned)
    return steps, runs


def check_arguments(args):
    """Raise a UserError for options that contradict each other, missing files, or no GPU.

    The list of --unlabeled-with-masks is then also that of --unlabeled.
    """
    if args.unlabeled_with_masks and args.unlabeled:
        raise UserError('--unlabeled-with-masks: all methods use this list, so that oracles and '
                        'methods have the same images; leave out --unlabeled')
    args.unlabeled = args.unlabeled or args.unlabeled_with_masks
    given = [name for name in REQUIRED + ('data_root', 'all_labeled') if getattr(args, name)]
    missing = [option(name) for name in REQUIRED if not getattr(args, name)]
    if given and missing:
        raise UserError(f'{option(given[0])}: own images need {", ".join(map(option, REQUIRED))}; '
                        f'missing: {", ".join(missing)}. Without all of them `shapes` is used')
    for name in ('config', 'weights') + LIST_OPTIONS:
        path = getattr(args, name)
        if path and not os.path.isfile(path):
            raise UserError(f'{option(name)} {path}: no such file; give its path relative to the '
                            'root of the repository')
    if args.data_root and not os.path.isdir(args.data_root):
        raise UserError(f'--data-root {args.data_root}: no such folder; name the one that the '
                        'lists are relative to')
    for text in args.assignments:
        if text.partition('=')[0].rpartition('.')[2] in LENGTH_KEYS:
            raise UserError(f'--set {text}: epochs and their length are chosen here; give --steps')
    if not args.rehearse and not torch.cuda.is_available():
        raise UserError('no CUDA GPU is available here (PyTorch '
                        f'{torch.__version__}); --rehearse runs the same on a CPU in small sizes')


def option(name):
    return '--' + name.replace('_', '-')


def choose_variants(args):
    """(the `Experiment` without the variants that lack a list, {left out variant: reason})."""
    experiment, left_out = read_experiment(EXPERIMENT), {}
    if not args.unlabeled_with_masks:
        for variant in list(experiment.variants):
            if methods.masks_of(method_of(experiment, variant)) == 'unlabeled':
                left_out[variant] = 'no --unlabeled-with-masks was given'
                experiment.variants.pop(variant)
    if not args.labeled:
        return experiment, left_out
    # The split is part of the folder names of the runs.
    split = os.path.basename(os.path.dirname(os.path.abspath(args.labeled)))
    experiment = experiment._replace(config=args.config,
                                     splits=[split if NAME.fullmatch(split) else 'own'])
    if not args.all_labeled:
        left_out['all_labeled'] = 'no --all-labeled was given'
        experiment.variants.pop('all_labeled')
    return experiment, left_out


def choose_assignments(args, experiment):
    """Assignments `key=value` for all runs."""
    found = {}
    if args.labeled:
        found = {'labeled_id_path': args.labeled, 'unlabeled_id_path': args.unlabeled,
                 'val_id_path': args.val, 'labeled_weight': 1}
    if args.data_root:
        found['data_root'] = args.data_root
    if args.all_labeled:
        found['all_labeled.labeled_id_path'] = args.all_labeled
    if args.weights:
        found.update(pretrained=True, **install_weights(args.weights))
    on_dinov2 = 'model' in found
    if on_dinov2:
        found['crop_size'] = DINOV2_CROP if args.labeled else DINOV2_CROP_ON_SHAPES
    assignments = [f'{key}={assignment_text(value)}' for key, value in found.items()]
    if not args.labeled:
        assignments += SHAPES_KEYS + [
            f'{variant}.lr={SHAPES_SUPERVISED_LR}' for variant in experiment.variants
            if not on_dinov2 and not method_of(experiment, variant).uses_unlabeled]
    if args.rehearse:
        assignments += REHEARSAL_KEYS + (SMALL_DINOV2_SIZES if on_dinov2 else SMALL_SIZES) \
            + ([] if args.weights else SMALL_NETWORK)
    else:
        assignments += GPU_KEYS
    return assignments + args.assignments


def install_weights(path):
    """Copy a file of weights to where training looks for it; {config key: value} that it needs."""
    found = read_weights_file(path)
    folder = os.path.dirname(pretrained.pretrained_file(found.backbone))
    store(path, os.path.basename(path), found, None, folder)
    if found.backbone in ENCODERS:
        return {'backbone': found.backbone, **DINOV2_KEYS}
    return {'backbone': found.backbone, 'stem': found.stem or 'deep', 'base_channels': found.width}
