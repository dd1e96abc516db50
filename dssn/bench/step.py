"""`python -m dssn.bench step`: what a training step costs, by parts and beside its floor."""
import dataclasses
import resource
import statistics
import tempfile
import time
from collections import defaultdict

import torch

from dssn import config, distributed, ema, methods, precision
from dssn.batch import Batch, Labeled, Unlabeled
from dssn.bench.parts import PARTS, TimedUpdate
from dssn.bench.pictures import draw_list
from dssn.bench.timing import interleaved, ratio, write_json
from dssn.data.arguments import positive_number
from dssn.data.loaders import TrainLoader
from dssn.data.views import cutmix_box, generator
from dssn.distributed import World
from dssn.errors import UserError
from dssn.logbook import Logbook, peak_memory
from dssn.machine import machine
from dssn.models import build_model
from dssn.optim import build_optimizer
from dssn.watching import Watch

# Past the warm-up and the first epoch: the whole objective, the teacher on running statistics.
EPOCH, STEP, STEPS = 1000, 100000, 10 ** 6
DRAWN = 16  # images at most, that the loader's samples repeat


def add_arguments(parser):
    """Time a training step on random images, beside its floor.

    python -m dssn.bench step --config configs/pascal.yaml \\
        --set backbone=resnet50 crop_size=193 batch_size=2 pretrained=false --compare lean=true

The floor is the bare forward and backward passes of the same networks at the same shapes: what no
training program can go below without other passes. --compare times a second step, with further
keys, in turns with the first. Parts are timed in rounds of their own, whose batches the config's
loader makes of drawn images; on a GPU each part then waits for the one before. Everywhere else the
batch is there already. Under torchrun the step exchanges gradients, the floor does not, and the
same step of each process for itself takes turns with them: `step / alone` is what DDP costs.
    """
    parser.add_argument('--config', required=True, help='YAML file of the experiment')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--compare', nargs='+', default=[], metavar='KEY=VALUE',
                        help='time a second step that has these keys too')
    parser.add_argument('--rounds', type=positive_number, default=10,
                        help='times that the steps and the floor take turns (default: %(default)s)')
    parser.add_argument('--size', type=positive_number, nargs=2, default=[480, 360],
                        metavar=('WIDTH', 'HEIGHT'),
                        help='of the images drawn for `data wait` (default: 480 360)')
    parser.add_argument('--processor-time', action='store_true',
                        help="time the process's own work, summed over threads, not the clock: "
                             'other programs on the machine then count little (CPU only)')
    parser.add_argument('--bare', action='store_true',
                        help='time nothing but the step, so that peak memory is its alone')
    parser.add_argument('--json', metavar='FILE', help='write the result for programs')


def run(args):
    cfg = config.load(args.config, None, args.assignments)
    with distributed.start(cfg.device) as world:
        if args.processor_time and world.device.type == 'cuda':
            raise UserError('--processor-time: a GPU works on a clock of its own; leave it out')
        before = resident()
        first = Subject(cfg, world)
        ways = {'step': first.step}
        if not args.bare:
            ways['floor'] = first.floor
        if world.size > 1 and not args.bare:
            ways['alone'] = Subject(cfg, World(world.rank, world.local_rank, 1,
                                               world.device)).step
        if args.compare:
            changed = config.load(args.config, None, args.assignments + args.compare)
            second = Subject(changed, world)
            ways['compared'] = second.step
        seconds = interleaved(ways, args.rounds, world.device,
                              time.process_time if args.processor_time else None)
        parts = {} if args.bare else first.parts(args.rounds, args.size)
        peak = peak_memory(world.device)
        found = {
            'machine': machine(world.device), 'config': config.to_dict(cfg), 'seconds': seconds,
            'clock': 'processor' if args.processor_time else 'wall',
            'parts': parts, 'peak_memory_mib': peak,
            'step_memory_mib': peak if world.device.type == 'cuda' else round(peak - before, 1),
            'processes': world.size,
        }
        for other in {'floor', 'alone'} & set(ways):
            found[f'step_over_{other}'] = ratio(seconds, 'step', other)
        if args.compare:
            found.update(compared=args.compare,
                         compared_over_step=ratio(seconds, 'compared', 'step'))
        if world.is_main:
            report(cfg, found)
            write_json(args.json, found)
    return 0


def resident():
    """MiB that this process holds now, where the system tells; the program itself, for a start."""
    try:
        with open('/proc/self/statm', encoding='ascii') as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2 ** 20
    except OSError:
        return 0.0


class Subject:
    """Networks, random batch and update of a config."""

    update_class = TimedUpdate

    def __init__(self, cfg, world):
        self.cfg, self.world = cfg, world
        precision.check(cfg, world.device)
        precision.set_tf32(cfg.tf32)
        torch.manual_seed(cfg.seed)
        method = methods.find(cfg.method, 'config')
        self.student = build_model(cfg)
        self.teacher = ema.make_teacher(self.student) if method.uses_teacher else None
        for network in filter(None, (self.student, self.teacher)):
            if cfg.compile:
                network.compile()
            network.to(world.device)
        wrapped = world.prepare_student(self.student, static=cfg.accumulate == 1)
        self.batch = random_batch(cfg, method.uses_unlabeled)
        self.update = self.update_class(cfg, world, method(cfg), wrapped, self.teacher,
                                        build_optimizer(self.student, cfg.lr, cfg.lr_multi),
                                        cfg.lr, STEPS)
        self.log = Logbook(cfg, world, STEPS)
        self.watch = Watch(cfg, world, self.log, [] if method.uses_unlabeled else None)
        self.student.train()
        self.calls = self.record()

    def step(self, batch=None):
        batch, terms, loss, lr = self.update(batch or self.batch, EPOCH, STEP)
        with self.update.clock('logging'):
            self.log.step(EPOCH, STEP, terms, loss, lr, len(batch.x.weak))
            self.watch.step(EPOCH, STEP, terms, batch)

    def record(self):
        """The networks' calls in a step: [(network, positional, named, with gradient)]."""
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
        """The passes of a step and nothing else."""
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

    def parts(self, rounds, size):
        """{part: median seconds} over some steps, on batches of drawn images of a size."""
        handles = [handle for name, network in (('student', self.student), ('teacher', self.teacher))
                   if network is not None for handle in self.update.watch(name, network)]
        found = defaultdict(list)
        with tempfile.TemporaryDirectory() as root:
            batches = self.load(root, rounds + 1, size)
            self.step(next(batches))  # while the loader starts
            for _ in range(rounds):
                self.update.spent = defaultdict(float)
                with self.update.clock('data wait'):
                    batch = next(batches)
                self.step(batch)
                spent = self.update.spent
                spent['losses'] = spent.pop('gradients') - sum(
                    spent[part] for part in ('student forward', 'teacher forward', 'backward'))
                for part in PARTS:
                    found[part].append(spent[part])
                self.update.spent = None
        for handle in handles:
            handle.remove()
        return {part: statistics.median(values) for part, values in found.items()}

    def load(self, root, steps, size):
        """An iterator over `steps` batches of the config's loader, from images drawn into `root`."""
        rows = steps * self.cfg.batch_size * self.world.size
        drawn = draw_list(root, min(rows, DRAWN), size, self.cfg.nclass)
        samples = [drawn[i % len(drawn)] for i in range(rows)]
        cfg = dataclasses.replace(self.cfg, data_root=root)
        loader = TrainLoader(cfg, samples, samples if self.batch.u is not None else None,
                             self.world.rank, self.world.size, self.world.device.type == 'cuda')
        return loader.batches(0)


def random_batch(cfg, with_unlabeled):
    """A `Batch` of noise as the loader gives it: uint8 on the CPU, a tenth of it padding."""
    generate = torch.Generator().manual_seed(cfg.seed)
    b, size = cfg.batch_size, cfg.crop_size
    edge = size - max(size // 10, 1)

    def image():
        return torch.randint(256, (b, 3, size, size), dtype=torch.uint8, generator=generate)
    label = torch.randint(cfg.nclass, (b, size, size), generator=generate)
    label[:, edge:] = 255
    x = Labeled(image(), label, torch.arange(b))
    if not with_unlabeled:
        return Batch(x, None, None)
    valid = torch.ones(b, size, size, dtype=torch.bool)
    valid[:, edge:] = False
    boxes = [torch.tensor([cutmix_box(size, generator(cfg.seed, i, view), probability=1)
                           for i in range(b)]) for view in (1, 2)]
    u, v = [Unlabeled(image(), image(), image(), valid, *boxes, torch.arange(b)) for _ in range(2)]
    return Batch(x, u, v)


def report(cfg, found):
    print(found['machine'])
    print(f'{cfg.method}, {cfg.backbone}, crop {cfg.crop_size}, {cfg.nclass} classes, batch '
          f'{cfg.batch_size} and {cfg.batch_size}, processes: {found["processes"]}; medians of '
          f'{len(found["seconds"]["step"])} rounds, {found["clock"]} time')
    for name, values in found['seconds'].items():
        extra = f' with {" ".join(found["compared"])}' if name == 'compared' else ''
        print(f'{name:<16} {statistics.median(values):8.3f} s{extra}')
    for other in ('floor', 'alone'):
        if f'step_over_{other}' in found:
            print(f"step / {other}: {found[f'step_over_{other}']:.3f}")
    if 'compared' in found:
        print(f"compared / step: {found['compared_over_step']:.3f}")
    images = cfg.batch_size / statistics.median(found['seconds']['step'])
    print(f'images a second: {images:.2f} of each kind')
    for part, value in found['parts'].items():
        print(f'  {part:<16} {value:8.4f} s')
    print(f"peak memory: {found['peak_memory_mib']:.0f} MiB, beyond the program "
          f"{found['step_memory_mib']:.0f} MiB", flush=True)
