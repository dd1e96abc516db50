"""`python -m dssn.bench step`: what a training step costs, by parts and beside its floor."""
import resource
import statistics
import time
from collections import defaultdict

import torch

from dssn import config, distributed, ema, methods, precision
from dssn.batch import Batch, Labeled, Unlabeled
from dssn.bench.timing import interleaved, ratio, write_json
from dssn.data.arguments import positive_number
from dssn.data.views import cutmix_box, generator
from dssn.logbook import Logbook, peak_memory
from dssn.machine import machine
from dssn.models import build_model
from dssn.optim import build_optimizer
from dssn.update import Update
from dssn.watching import Watch

# Past the warm-up and the first epoch: the whole objective, the teacher on running statistics.
EPOCH, STEP, STEPS = 1000, 100000, 10 ** 6
PARTS = ('move', 'teacher forward', 'student forward', 'losses', 'backward', 'optimizer', 'EMA',
         'logging')


def add_arguments(parser):
    """Time a training step on random images, beside its floor.

    python -m dssn.bench step --config configs/pascal.yaml \\
        --set backbone=resnet50 crop_size=193 batch_size=2 pretrained=false --compare lean=true

The floor is the bare forward and backward passes of the same networks at the same shapes: what no
training program can go below without other passes. --compare times a second step, with further
keys, in turns with the first. Parts are timed in rounds of their own; on a GPU each then waits for
the one before. Loading is left out: see `bench loader`. Under torchrun the step exchanges
gradients, the floor does not.
    """
    parser.add_argument('--config', required=True, help='YAML file of the experiment')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--compare', nargs='+', default=[], metavar='KEY=VALUE',
                        help='time a second step that has these keys too')
    parser.add_argument('--rounds', type=positive_number, default=10,
                        help='times that the steps and the floor take turns (default: %(default)s)')
    parser.add_argument('--bare', action='store_true',
                        help='time nothing but the step, so that peak memory is its alone')
    parser.add_argument('--json', metavar='FILE', help='write the result for programs')


def run(args):
    cfg = config.load(args.config, None, args.assignments)
    with distributed.start(cfg.device) as world:
        before = resident()
        first = Subject(cfg, world)
        ways = {'step': first.step}
        if not args.bare:
            ways['floor'] = first.floor
        if args.compare:
            changed = config.load(args.config, None, args.assignments + args.compare)
            second = Subject(changed, world)
            ways['compared'] = second.step
        seconds = interleaved(ways, args.rounds, world.device)
        parts = {} if args.bare else first.parts(args.rounds)
        peak = peak_memory(world.device)
        found = {
            'machine': machine(world.device), 'config': config.to_dict(cfg), 'seconds': seconds,
            'parts': parts, 'peak_memory_mib': peak,
            'step_memory_mib': peak if world.device.type == 'cuda' else round(peak - before, 1),
            'processes': world.size,
        }
        if not args.bare:
            found['step_over_floor'] = ratio(seconds, 'step', 'floor')
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
        self.update = TimedUpdate(cfg, world, method(cfg), wrapped, self.teacher,
                                  build_optimizer(self.student, cfg.lr, cfg.lr_multi), cfg.lr,
                                  STEPS)
        self.log = Logbook(cfg, world, STEPS)
        self.watch = Watch(cfg, world, self.log, [] if method.uses_unlabeled else None)
        self.student.train()
        self.calls = self.record()

    def step(self):
        batch, terms, loss, lr = self.update(self.batch, EPOCH, STEP)
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

    def parts(self, rounds):
        """{part: median seconds} over some steps."""
        handles = [handle for name, network in (('student', self.student), ('teacher', self.teacher))
                   if network is not None for handle in self.update.watch(name, network)]
        found = defaultdict(list)
        for _ in range(rounds):
            self.update.spent = defaultdict(float)
            self.step()
            spent = self.update.spent
            spent['losses'] = spent.pop('gradients') - sum(
                spent[part] for part in ('student forward', 'teacher forward', 'backward'))
            for part in PARTS:
                found[part].append(spent[part])
        for handle in handles:
            handle.remove()
        self.update.spent = None
        return {part: statistics.median(values) for part, values in found.items()}


class TimedUpdate(Update):
    """An update that can tell where its time goes."""

    spent = None  # {part: seconds} while parts are timed

    def clock(self, part):
        return Clock(self, part)

    def move(self, batch):
        with self.clock('move'):
            return super().move(batch)

    def gradients(self, batch, step):
        with self.clock('gradients'):
            return super().gradients(batch, step)

    def backward(self, loss, is_last):
        with self.clock('backward'):
            super().backward(loss, is_last)

    def optimize(self):
        with self.clock('optimizer'):
            return super().optimize()

    def average(self):
        with self.clock('EMA'):
            super().average()

    def watch(self, name, network):
        """Hooks that time a network's passes; with `checkpoint_backbone` the first ones alone."""
        clock = self.clock(f'{name} forward')
        return [network.register_forward_pre_hook(lambda *_: clock.__enter__() and None),
                network.register_forward_hook(lambda *_: clock.__exit__())]


class Clock:
    """Adds the seconds between its ends to a part, if parts are timed."""

    def __init__(self, update, part):
        self.update, self.part = update, part

    def now(self):
        if self.update.world.device.type == 'cuda':
            torch.cuda.synchronize(self.update.world.device)
        return time.perf_counter()

    def __enter__(self):
        if self.update.spent is not None:
            self.start = self.now()

    def __exit__(self, *_):
        if self.update.spent is not None:
            self.update.spent[self.part] += self.now() - self.start


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
          f'{cfg.batch_size} and {cfg.batch_size}, processes: {found["processes"]}; medians of {len(found["seconds"]["step"])} rounds')
    for name, values in found['seconds'].items():
        extra = f' with {" ".join(found["compared"])}' if name == 'compared' else ''
        print(f'{name:<16} {statistics.median(values):8.3f} s{extra}')
    if 'step_over_floor' in found:
        print(f"step / floor: {found['step_over_floor']:.3f}")
    if 'compared' in found:
        print(f"compared / step: {found['compared_over_step']:.3f}")
    images = cfg.batch_size / statistics.median(found['seconds']['step'])
    print(f'images a second: {images:.2f} of each kind')
    for part, value in found['parts'].items():
        print(f'  {part:<16} {value:8.4f} s')
    print(f"peak memory: {found['peak_memory_mib']:.0f} MiB, beyond the program "
          f"{found['step_memory_mib']:.0f} MiB", flush=True)
