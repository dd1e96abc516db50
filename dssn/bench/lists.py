"""`python -m dssn.bench lists`: what id lists cost before the first step, by their length."""
import os
import tempfile
import time

import torch

from dssn import config
from dssn.bench.pictures import draw_list
from dssn.bench.step import resident
from dssn.bench.timing import line_through, write_json
from dssn.data.arguments import positive_number
from dssn.data.check import quick_check
from dssn.data.identity import identify
from dssn.data.lists import Sample, read_list, write_list
from dssn.data.loaders import TrainLoader
from dssn.errors import UserError
from dssn.machine import machine

LABELED = 64  # images, beside the unlabeled ones


def add_arguments(parser):
    """Time what training does with its id lists before the first step, by unlabeled images.

    python -m dssn.bench lists --config configs/pascal.yaml --lines 1000 10000 100000

    `read`: the lists are parsed and compared with the published ones; `check`: what training looks
    for in lists and files unless skip_check; `order`: the first epoch's order is drawn. The files
    are names of two drawn images (links), so the times are those of a local disk whose directories are
    in memory; they are the processor's, other programs count little. An epoch is (unlabeled images / global batch) steps, see `bench step`.
    """
    parser.add_argument('--config', required=True, help='YAML file of the experiment')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--lines', nargs='+', type=positive_number, default=[1000, 10000, 100000],
                        metavar='N', help='unlabeled images (default: 1000 10000 100000)')
    parser.add_argument('--json', metavar='FILE', help='write the result for programs')


def run(args):
    counts = sorted(set(args.lines))
    if len(counts) < 2:
        raise UserError(f'--lines: {counts[0]} alone shows no growth; give at least two numbers')
    found = []
    print(f'{machine(torch.device("cpu"))}\n\n| unlabeled images | read, s | check, s | order, s | '
          'memory, MiB |\n|---|---|---|---|---|')
    for count in counts:
        with tempfile.TemporaryDirectory() as root:
            found.append({'images': count, **measure(args, root, count)})
        print('| {images} | {read:.3f} | {check:.3f} | {order:.3f} | {memory_mib:.0f} |'.format(
            **found[-1]), flush=True)
    slope = line_through(counts, [sum(line[part] for part in ('read', 'check', 'order'))
                                  for line in found])[1]
    print(f'\n{1e6 * slope:.3g} microseconds for each unlabeled image')
    write_json(args.json, {'lines': found, 'seconds_per_image': slope})
    return 0


def measure(args, root, count):
    """Seconds of each part, and the memory that lists and loader keep."""
    paths = {role: os.path.join(root, f'{role}.txt') for role in ('labeled', 'unlabeled', 'val')}
    cfg = config.load(args.config, {
        'data_root': root, 'workers': 0, 'skip_check': False,
        **{f'{role}_id_path': path for role, path in paths.items()}}, args.assignments)
    image, other = draw_list(root, 2, (160, 120), cfg.nclass)
    for name in ('images', 'masks'):
        os.mkdir(os.path.join(root, name))
    write_list(paths['labeled'], linked(root, 'l', image, min(LABELED, count)))
    write_list(paths['unlabeled'], linked(root, 'u', image, count))
    write_list(paths['val'], linked(root, 'v', other, LABELED))
    before, clock = resident(), [time.process_time()]
    labeled, unlabeled, val = [read_list(paths[role], role != 'unlabeled') for role in paths]
    for path in paths.values():
        identify(path)
    clock.append(time.process_time())
    quick_check(cfg, labeled, unlabeled, val)
    clock.append(time.process_time())
    loader = TrainLoader(cfg, labeled, unlabeled)
    loader.steps.schedule.batch(0, 0)
    clock.append(time.process_time())
    seconds = [b - a for a, b in zip(clock, clock[1:])]
    return {**dict(zip(('read', 'check', 'order'), seconds)),
            'memory_mib': round(resident() - before, 1)}


def linked(root, letter, sample, count):
    """`count` samples of their own names whose files are those of one."""
    samples = [Sample(f'images/{letter}{i:06}.jpg', f'masks/{letter}{i:06}.png', '')
               for i in range(count)]
    for made in samples:
        os.symlink(os.path.join(root, sample.image), os.path.join(root, made.image))
        os.symlink(os.path.join(root, sample.mask), os.path.join(root, made.mask))
    return samples
