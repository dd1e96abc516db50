"""`python -m dssn bench step`: times a training step, its parts and its floor."""
import dataclasses
import os
import statistics
import tempfile
import time
from collections import defaultdict

import torch

from dssn import config, distributed, methods, precision
from dssn.batch import Batch, Labeled, Unlabeled
from dssn.data.loaders import TrainLoader
from dssn.data.views import cutmix_box, generator
from dssn.distributed import World, unwrap
from dssn.errors import UserError
from dssn.labels import IGNORE
from dssn.networks import Networks
from dssn.run.diagnostics import Watch
from dssn.run.logbook import Logbook, peak_memory
from dssn.run.machine import machine
from dssn.tools.arguments import positive_number
from dssn.tools.bench.synthetic_images import write_images
from dssn.tools.bench.timed_update import PARTS, TimedUpdate
from dssn.tools.bench.timing import add_config_options, ratio, time_in_turns
from dssn.tools.output_files import write_json

# After warm-up and the first epoch: all terms of the objective, teacher with running statistics.
EPOCH, STEP, STEPS = 1000, 100000, 10 ** 6
MAX_IMAGES = 16  # different images on disk; the loader's samples repeat them


def add_arguments(parser):
    """Time a training step on random images, and compare it with its floor.

        python -m dssn bench step --config configs/pascal.yaml \\
            --set backbone=resnet50 crop_size=193 batch_size=2 pretrained=false --compare lean=true

    The floor is the time of the forward and backward passes alone, of the same networks at the same
    shapes. A training step with these passes cannot be faster. --compare times a second step with
    additional keys, in turns with the first.

    Parts are timed in separate rounds. There the config's loader makes the batches from rendered
    images, and on a GPU each part waits for the previous one. Elsewhere one batch in memory is
    used.

    Under torchrun the step exchanges gradients and the floor does not. A step of each process
    without the others takes turns with them: `step / alone` is the cost of DDP.
    """
    add_config_options(parser)
    parser.add_argument('--compare', nargs='+', default=[], metavar='KEY=VALUE',
                        help='time a second step with these additional keys')
    parser.add_argument('--rounds', type=positive_number, default=10,
                        help='number of rounds; in each the steps and the floor take a turn '
                             '(default: %(default)s)')
    parser.add_argument('--size', type=positive_number, nargs=2, default=[480, 360],
                        metavar=('WIDTH', 'HEIGHT'),
                        help='of the images that the loader reads for `data wait` '
                             '(default: 480 360)')
    parser.add_argument('--processor-time', action='store_true',
                        help='measure the processor time of all threads instead of the wall '
                             'clock, so that other programs have little effect (CPU only)')
    parser.add_argument('--bare', action='store_true',
                        help='time only the step, so that the peak memory is that of the step')
    parser.add_argument('--no-parts', action='store_true',
                        help='do not time the parts, which needs the loader')


def run(args):
    cfg = config.load(args.config, None, args.assignments)
    changed = config.load(args.config, None, args.assignments + args.compare)
    precision.prepare(cfg)
    precision.prepare(changed)
    with distributed.start(cfg.device) as world:
        if args.processor_time and world.device.type == 'cuda':
            raise UserError('--processor-time: does not measure the work of a GPU; leave it out')
        before = resident_memory()
        first = StepBench(cfg, world)
        ways = {'step': first.step}
        if not args.bare:
            ways['floor'] = first.floor
        if world.size > 1 and not args.bare:
            ways['alone'] = StepBench(cfg, World(world.rank, world.local_rank, 1,
                                                 world.device)).step
        if args.compare:
            ways['compared'] = StepBench(changed, world).step
        seconds = time_in_turns(ways, args.rounds, world.device,
                                time.process_time if args.processor_time else None)
        parts = {} if args.bare or args.no_parts else first.time_parts(args.rounds, args.size)
        found = {
            'machine': machine(world.device), 'config': config.to_dict(cfg),
            'arithmetic': first.set_arithmetic(), 'seconds': seconds,
            'clock': 'processor' if args.processor_time else 'wall',
            'parts': parts, **memory_of(first, before), 'processes': world.size,
        }
        for other in {'floor', 'alone'} & set(ways):
            found[f'step_over_{other}'] = ratio(seconds, 'step', other)
        if args.compare:
            found.update(compared=args.compare,
                         compared_over_step=ratio(seconds, 'compared', 'step'))
        if world.is_main:
            print_report(cfg, found)
            write_json(args.json, found)
    return 0


def resident_memory():
    """MiB of memory that this process uses now; 0 where the system does not report it."""
    try:
        with open('/proc/self/statm', encoding='ascii') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2 ** 20
    except OSError:
        return 0.0


def memory_of(bench, before):
    """{name: MiB}: `peak_memory_mib` in total, `step_memory_mib` without the program itself.

    On a GPU both are the peak that PyTorch allocated in one more step, so the memory of cuDNN's
    search for algorithms, of the floor and of the parts is not included. There are also
    `reserved_memory_mib`, the peak that PyTorch reserved on the GPU, and `card_memory_mib`, all
    memory of the GPU in use now, including the CUDA context and other programs.

    Args:
        before: MiB of the process before the networks were built; used on a CPU only.
    """
    device = bench.world.device
    if device.type != 'cuda':
        peak = peak_memory(device)
        return {'peak_memory_mib': peak,
                'step_memory_mib': None if peak is None else round(peak - before, 1)}
    reserved = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    bench.step()
    torch.cuda.synchronize(device)
    peak = peak_memory(device)
    found = {'peak_memory_mib': peak, 'step_memory_mib': peak,
             'reserved_memory_mib': round(reserved / 2 ** 20, 1)}
    if hasattr(torch.cuda, 'mem_get_info'):  # not in PyTorch 1.8
        free, total = torch.cuda.mem_get_info(device)
        found['card_memory_mib'] = round((total - free) / 2 ** 20, 1)
    return found


class StepBench:
    """The training step of a config on a random batch."""

    update_class = TimedUpdate

    def __init__(self, cfg, world):
        self.cfg, self.world = cfg, world
        precision.check(cfg, world.device)
        # Compiled later: recording the calls would otherwise compile the networks in vain.
        networks = Networks(dataclasses.replace(cfg, compile=False), world, initial=False)
        self.student, self.teacher = unwrap(networks.student), networks.teacher
        method = methods.build(cfg)
        self.batch = random_batch(cfg, method.uses_unlabeled)
        self.update = self.update_class(cfg, world, method, networks.student, self.teacher,
                                        networks.optimizer, networks.lr, STEPS)
        self.log = Logbook(cfg, world, STEPS)
        self.watch = Watch(cfg, world, self.log, [] if method.uses_unlabeled else None)
        self.student.train()
        self.calls = self.record_calls()
        if cfg.compile:
            networks.compile()

    def set_arithmetic(self):
        """Call `precision.set_arithmetic`; before each turn, since it affects the whole process."""
        return precision.set_arithmetic(self.cfg, self.world.device)

    def step(self, batch=None):
        self.set_arithmetic()
        batch, terms, loss, lr = self.update(batch or self.batch, EPOCH, STEP)
        with self.update.clock('logging'):
            self.log.step(EPOCH, STEP, terms, loss, lr, len(batch.labeled.image))
            self.watch.step(EPOCH, STEP, terms, batch)

    def record_calls(self):
        """The calls of the networks in a step: [(network, args, kwargs, with gradient)]."""
        calls, real = [], {}
        for network in filter(None, (self.student, self.teacher)):
            real[network] = network.forward

            def forward(*args, network=network, **kwargs):
                calls.append((network, args, kwargs, torch.is_grad_enabled()))
                return real[network](*args, **kwargs)
            network.forward = forward
        self.step()
        for network in real:
            del network.forward
        return calls

    def floor(self):
        """Make the forward and backward passes of a step and nothing else."""
        self.set_arithmetic()
        total = 0
        for network, args, kwargs, with_gradient in self.calls:
            network = precision.half(network, self.cfg, self.world.device)
            with torch.set_grad_enabled(with_gradient):
                out = network(*args, **kwargs)
            if with_gradient:
                total = total + sum(o.mean() for o in (out if isinstance(out, tuple) else [out]))
        total.backward()
        for parameter in self.student.parameters():
            parameter.grad = None

    def time_parts(self, rounds, size):
        """{part: median seconds} over some steps.

        Args:
            rounds: number of steps. size: (width, height) of the images that the loader reads.
        """
        networks = {'student': self.student, 'teacher': self.teacher}
        handles = [handle for name, network in networks.items() if network is not None
                   for handle in self.update.time_forward(name, network)]
        found = defaultdict(list)
        with tempfile.TemporaryDirectory() as root:
            batches = self.load_batches(root, rounds + 1, size)
            self.step(next(batches))  # while the loader starts
            for _ in range(rounds):
                seconds = self.update.seconds = defaultdict(float)
                with self.update.clock('data wait'):
                    batch = next(batches)
                self.step(batch)
                seconds['losses'] = seconds.pop('gradients') - sum(
                    seconds[part] for part in ('student forward', 'teacher forward', 'backward'))
                for part in PARTS:
                    found[part].append(seconds[part])
                self.update.seconds = None
        for handle in handles:
            handle.remove()
        return {part: statistics.median(values) for part, values in found.items()}

    def load_batches(self, root, steps, size):
        """An iterator over `steps` batches of the config's loader, with images in `root`."""
        rows = steps * max(self.cfg.labeled_images, self.cfg.batch_size) * self.world.size
        images = write_images(root, min(rows, MAX_IMAGES), size, self.cfg.nclass)
        samples = [images[i % len(images)] for i in range(rows)]
        cfg = dataclasses.replace(self.cfg, data_root=root)
        loader = TrainLoader(cfg, samples, samples if self.batch.unlabeled is not None else None,
                             self.world.rank, self.world.size, self.world.device.type == 'cuda')
        return loader.batches(0)


def random_batch(cfg, with_unlabeled):
    """A `Batch` of noise with the shapes and dtypes of the loader's, a tenth of it padding."""
    generate = torch.Generator().manual_seed(cfg.seed)
    n, b, size = cfg.labeled_images, cfg.batch_size, cfg.crop_size
    edge = size - max(size // 10, 1)

    def images(count):
        return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generate)
    label = torch.randint(cfg.nclass, (n, size, size), dtype=torch.uint8, generator=generate)
    label[:, edge:] = IGNORE
    labeled = Labeled(images(n), label, torch.arange(n))
    if not with_unlabeled:
        return Batch(labeled, None, None)
    valid = torch.ones(b, size, size, dtype=torch.bool)
    valid[:, edge:] = False
    boxes = [torch.tensor([cutmix_box(size, generator(cfg.seed, i, view), 1, cfg.cutmix_area)
                           for i in range(b)]) for view in (1, 2)]
    unlabeled, partner = [
        Unlabeled(images(b), images(b), images(b), valid, *boxes, torch.arange(b))
        for _ in range(2)]
    return Batch(labeled, unlabeled, None if cfg.cutmix_partner == 'batch' else partner)


def batch_text(cfg):
    """'8 and 4': labeled and unlabeled images of a step per process; '8' without unlabeled ones."""
    return ' and '.join(str(n) for n in (cfg.labeled_images, cfg.unlabeled_images) if n)


def print_report(cfg, found):
    print(found['machine'])
    if found['arithmetic']:
        print(found['arithmetic'])
    print(f'{cfg.method}, {cfg.backbone}, crop {cfg.crop_size}, {cfg.nclass} classes, batch '
          f'{batch_text(cfg)}, processes: {found["processes"]}; medians of '
          f'{len(found["seconds"]["step"])} rounds, {found["clock"]} time')
    for name, values in found['seconds'].items():
        extra = f' with {" ".join(found["compared"])}' if name == 'compared' else ''
        print(f'{name:<16} {statistics.median(values):8.3f} s{extra}')
    for other in ('floor', 'alone'):
        if f'step_over_{other}' in found:
            print(f"step / {other}: {found[f'step_over_{other}']:.3f}")
    if 'compared' in found:
        print(f"compared / step: {found['compared_over_step']:.3f}")
    seconds = statistics.median(found['seconds']['step'])
    rates = [f'{cfg.labeled_images / seconds:.2f} labeled']
    if cfg.unlabeled_images:
        rates.append(f'{cfg.unlabeled_images / seconds:.2f} unlabeled')
    print(f'images a second: {", ".join(rates)}')
    for part, value in found['parts'].items():
        print(f'  {part:<16} {value:8.4f} s')
    if found['peak_memory_mib'] is not None:
        print(f"peak memory: {found['peak_memory_mib']:.0f} MiB, without the program "
              f"{found['step_memory_mib']:.0f} MiB", flush=True)
