"""What only a GPU shows: its numbers beside the CPU's, waiting, half precision, memory, NCCL.

Where there is no GPU these tests are skipped. With DSSN_GPU_REHEARSE=1 they run on a CPU instead,
so that their code has run before it meets a GPU. The "device" is then the CPU without oneDNN, whose
convolutions round in another way; what needs CUDA itself is left out or replaced.
"""
import contextlib
import copy
import dataclasses
import math
import os
from typing import Any, Dict, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from test_engine import assert_same_run, interrupted
from test_methods import OHEM, config, network, random_batch
from torch.nn.modules._functions import SyncBatchNorm

from dssn import ema, optim, precision
from dssn.batch import Batch, Labeled, Unlabeled, normalise, to
from dssn.data.lists import read_list
from dssn.data.loaders import TrainLoader
from dssn.distributed import World, unwrap
from dssn.engine import start
from dssn.errors import UserError
from dssn.inference.evaluation import evaluate
from dssn.methods import (
    build,
    dssn as dssn_module,
    dssn_ablations as ablations_module,
    fixmatch as fixmatch_module,
    unimatch as unimatch_module,
    unimatch_v2 as v2_module,
)
from dssn.methods.dssn import DSSN
from dssn.methods.fixmatch import FixMatch
from dssn.methods.supervised import Supervised
from dssn.methods.unimatch import UniMatch
from dssn.methods.unimatch_v2 import UniMatchV2
from dssn.models import build_model, segmentation
from dssn.models.weights import load_weights, read_torch_file
from dssn.optim import build_adamw, build_optimizer
from dssn.run.diagnostics import Watch
from dssn.run.logbook import Logbook
from dssn.update import Update

HAS_GPU = torch.cuda.is_available()
REHEARSED = not HAS_GPU and os.environ.get('DSSN_GPU_REHEARSE') == '1'
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not (HAS_GPU or REHEARSED), reason='needs a GPU')]

if HAS_GPU:  # deterministic=true needs it before cuBLAS is first used in the process
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')

RELEASE = tuple(map(int, torch.__version__.split('.')[:2]))
DEVICE = torch.device('cuda', 0) if HAS_GPU else torch.device('cpu')
CPU = torch.device('cpu')
SIDE = 65  # of a crop: BN's statistics of the deepest map, 5 x 5, are then well conditioned
# With two, the image pooling's BN makes +1 and -1 of any two values, and a gradient that is nothing
# but rounding.
IMAGES = 4
TRANSFORMER = {'model': 'dpt', 'backbone': 'dinov2_tiny'}
# The same in a tiny world, whose file has keys of the other network. The positions are resized.
IN_WORLD = {**TRANSFORMER, 'crop_size': 28, 'base_channels': 64, 'decoder_channels': 256}
EPOCH, STEP = 1, 9  # past the warm-up: the whole objective, the teacher on running statistics


@pytest.fixture(autouse=True)
def arithmetic():
    """Every test begins in full float32, and leaves PyTorch's switches as they were."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic,
              torch.are_deterministic_algorithms_enabled())
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    yield
    if torch.are_deterministic_algorithms_enabled() != before[-1]:  # the call takes seconds
        torch.use_deterministic_algorithms(before[-1])
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = before[:-1]


# ---- one step, twice

@pytest.fixture(autouse=True)
def same_dropout(request, monkeypatch):
    """A fixed pattern of channels: the random numbers of two devices differ."""
    def perturbed(features, views, dropout):
        image = torch.arange(features.shape[0], device=features.device).view(-1, 1, 1, 1)
        channel = torch.arange(features.shape[1], device=features.device).view(1, -1, 1, 1)
        return [features * (2 * ((image + channel + view) % 2)).to(features.dtype)
                for view in range(views)]
    if 'real_dropout' not in request.fixturenames:
        monkeypatch.setattr(segmentation, 'perturbed', perturbed)
        monkeypatch.setattr(v2_module, 'complementary_factors', complementary_factors)


def complementary_factors(pairs, student, device):
    """A fixed pattern of what one view of an image loses and the other has twice."""
    found = []
    for channels in unwrap(student).feature_channels:
        first = torch.arange(pairs, device=device)[:, None] + torch.arange(channels, device=device)
        first = 2.0 * (first % 2)
        found.append(torch.cat([first, 2 - first]))
    return found[0] if len(found) == 1 else found


@pytest.fixture
def real_dropout():
    """The test trains with the program's own dropout."""


class SameLabels:
    """Pseudo-labels of the first step, given to the second one: no rounding decides about them.

    Every call of a rule (the class of a pixel, whether it is selected) is answered in the second
    step as the same call was in the first.
    """

    def __init__(self, monkeypatch):
        self.kept, self.place, self.replaying = [], 0, False
        for module in (dssn_module, ablations_module, fixmatch_module, unimatch_module, v2_module):
            monkeypatch.setattr(module, 'classes', self.rule(module.classes))
        for module in (fixmatch_module, unimatch_module, v2_module):
            monkeypatch.setattr(module, 'fixed', self.rule(module.fixed))
        real = dssn_module.build_selection
        monkeypatch.setattr(dssn_module, 'build_selection', lambda cfg: self.rule(real(cfg)))

    def rule(self, real):
        def answer(logits, *args, **kwargs):
            if not self.replaying:
                self.kept.append(real(logits, *args, **kwargs).cpu())
                return self.kept[-1].to(logits.device)
            self.place += 1
            return self.kept[self.place - 1].to(logits.device)
        return answer

    def replay(self):
        """From here on the answers so far are given again."""
        self.replaying = True


class Step(NamedTuple):
    """What a step did."""
    loss: float
    losses: Dict[str, float]
    gradients: Dict[str, Any]  # {parameter: (its shape), on the CPU}
    weights: Dict[str, Any]    # the student's state after the step


def random_batches(dtype, side=SIDE):
    """Images of each kind that differ in how many pixels are labeled and valid."""
    parts = [random_batch(1, side, side, seed=seed) for seed in range(IMAGES)]
    for i, (x, u, v) in enumerate(parts):
        x.label[:, :8 * i], u.valid[:, :, :10 * i], v.valid[:, :6 * i] = 255, False, False
    joined = [type(rows[0])(*map(torch.cat, zip(*rows))) for rows in zip(*parts)]
    return Batch(*[type(part)(*[t.to(dtype) if t.is_floating_point() else t for t in part])
                   for part in joined])


def smooth(model):
    """The network with Softplus for ReLU.

    A unit whose input is within a rounding of 0 is on or off by chance in single precision, and the
    gradients of what lies before it differ by far more than a rounding. ReLU itself is compared in
    double precision.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
    return model


def transformer(seed):
    """A vision transformer with peaked predictions."""
    torch.manual_seed(seed)
    model = build_model(config(**TRANSFORMER)).double()
    with torch.no_grad():
        model.head.scratch['output_conv'][2].weight.mul_(12)
    return model


def make_step(device, cfg, method=DSSN, dtype=torch.float32, prepare=None):
    """An optimizer step from the same weights, on the same batch, on any device.

    Args:
        prepare: what turns the student, on the device, into what the update trains.
    """
    if cfg.model == 'dpt':
        student, teacher, side = transformer(1), transformer(2), 70
    else:
        student, teacher, side = network(1, channels_last=cfg.channels_last), network(2), SIDE
    student, teacher = [model.to(device=device, dtype=dtype) for model in
                        (student, ema.make_teacher(teacher))]
    if dtype == torch.float32:
        student, teacher = smooth(student), smooth(teacher)
    if cfg.compile:
        student.compile()
        teacher.compile()
    trained = prepare(student) if prepare else student
    update = Update(cfg, World(device=device), method(cfg), trained.train(),
                    teacher if method.uses_teacher else None,
                    build_optimizer(student, 0.1, 2.0), 0.1, 100)
    with other_kernels(device):
        _, terms, loss, _ = update(random_batches(dtype, side), EPOCH, STEP)
    return Step(loss.item(), {name: value.item() for name, value in terms.losses.items()},
                {name: p.grad.cpu() for name, p in student.named_parameters()
                 if p.grad is not None},
                {name: value.cpu() for name, value in student.state_dict().items()})


def other_kernels(device):
    """In a rehearsal what runs on the "device" rounds in another way than the reference."""
    if REHEARSED and device is DEVICE:
        return torch.backends.mkldnn.flags(enabled=False)
    return contextlib.nullcontext()


def distance(found, expected):
    """Euclidean, relative to the expected tensor's length."""
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def assert_close(found, expected, rel, each=None):
    """Losses, the gradient as a whole, each parameter's gradient, and the weights after the step.

    Args:
        rel: relative distance that is allowed. each: that of a single parameter's gradient, by
            default the same; small ones are differences of larger numbers, so rounding shows more.
    """
    assert found.loss == pytest.approx(expected.loss, rel=rel)
    assert found.losses == pytest.approx(expected.losses, rel=rel, abs=rel * 1e-3)
    for kind in ('gradients', 'weights'):
        known = getattr(expected, kind)
        far = {name: distance(value, known[name]) for name, value in getattr(found, kind).items()
               if known[name].is_floating_point()}
        assert set(getattr(found, kind)) == set(known)
        worst = max(far, key=far.get)
        assert far[worst] <= (each or rel), f'{kind} of {worst}: {far[worst]:.2e} apart'
        whole = distance(*[torch.cat([getattr(step, kind)[name].double().flatten()
                                      for name in far]) for step in (found, expected)])
        assert whole <= rel, f'{kind} as a whole: {whole:.2e} apart'
    assert any(bool(gradient.any()) for gradient in expected.gradients.values())


CASES = {
    'DSSN': (DSSN, {}),
    'DSSN_warming_up': (DSSN, {'warm_up_epochs': 5}),
    'DSSN_class_topk': (DSSN, {'selection': 'class_topk'}),
    'DSSN_fixed': (DSSN, {'selection': 'fixed', 'conf_thresh': 0.7}),
    'DSSN_none': (DSSN, {'selection': 'none'}),
    'DSSN_lean': (DSSN, {'lean': True}),
    'DSSN_teacher_labels': (DSSN, {'feature_labels': 'teacher'}),
    'DSSN_OHEM': (DSSN, {'criterion': OHEM}),
    'fixmatch': (FixMatch, {'conf_thresh': 0.7}),
    'unimatch': (UniMatch, {'conf_thresh': 0.7}),
    'unimatch_v2': (UniMatchV2, {'conf_thresh': 0.7}),
    'supervised': (Supervised, {}),
    'supervised_OHEM': (Supervised, {'criterion': OHEM}),
    'DSSN_transformer': (DSSN, TRANSFORMER),
    'unimatch_v2_transformer': (UniMatchV2, {'conf_thresh': 0.7, **TRANSFORMER}),
}
cases = pytest.mark.parametrize('method, keys', CASES.values(), ids=CASES.keys())


@cases
def test_a_step_in_double_precision_equals_the_cpus(method, keys):
    cfg = config(batch_size=IMAGES, **keys)
    expected = make_step(CPU, cfg, method, torch.float64)
    assert_close(make_step(DEVICE, cfg, method, torch.float64), expected, 1e-9)


@cases
def test_a_step_in_single_precision_equals_the_cpus(monkeypatch, method, keys):
    same, cfg = SameLabels(monkeypatch), config(batch_size=IMAGES, **keys)
    expected = make_step(CPU, cfg, method)
    same.replay()
    assert_close(make_step(DEVICE, cfg, method), expected, 1e-4, each=1e-3)
    assert same.place == len(same.kept)


@cases
def test_the_losses_in_bf16_are_near_those_in_float32(monkeypatch, method, keys):
    same = SameLabels(monkeypatch)
    expected = make_step(CPU, config(batch_size=IMAGES, **keys), method)
    same.replay()
    found = make_step(DEVICE, config(batch_size=IMAGES, amp='bf16', **keys), method)
    assert found.loss == pytest.approx(expected.loss, rel=2e-2) and found.loss != expected.loss
    assert found.losses == pytest.approx(expected.losses, rel=2e-2, abs=2e-2)
    assert all(torch.isfinite(gradient).all() for gradient in found.gradients.values())
    assert all(value.dtype == torch.float32 for value in found.weights.values()
               if value.is_floating_point())


def test_channels_last_makes_the_same_step(monkeypatch):
    same = SameLabels(monkeypatch)
    expected = make_step(DEVICE, config(batch_size=IMAGES))
    same.replay()
    found = make_step(DEVICE, config(batch_size=IMAGES, channels_last=True))
    assert_close(found, expected, 1e-4, each=1e-3)


@pytest.mark.skipif(not hasattr(nn.Module, 'compile'), reason='compile needs PyTorch 2.2')
def test_a_compiled_network_makes_the_same_step(monkeypatch):
    if REHEARSED:  # without a C++ compiler's minutes; a GPU compiles with inductor
        real = nn.Module.compile
        monkeypatch.setattr(nn.Module, 'compile', lambda self: real(self, backend='eager'))
    same = SameLabels(monkeypatch)
    expected = make_step(DEVICE, config(batch_size=IMAGES))
    same.replay()
    found = make_step(DEVICE, config(batch_size=IMAGES, compile=True))
    assert_close(found, expected, 1e-4, each=1e-3)


# ---- batches

def tiny_batch():
    generate = torch.Generator().manual_seed(0)

    def images():
        return torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8, generator=generate)
    box = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]])
    valid = torch.rand(2, 4, 5, generator=generate) < 0.5
    return Batch(Labeled(images(), torch.randint(256, (2, 4, 5), generator=generate),
                         torch.tensor([3, 1])),
                 *[Unlabeled(images(), images(), images(), valid, box, box, torch.tensor([5, 7]))
                   for _ in range(2)])


def test_to_the_device():
    there, here = to(tiny_batch(), DEVICE), to(tiny_batch(), CPU)
    for part, other in zip(there, here):
        for one, two in zip(part, other):
            assert one.device == DEVICE and one.dtype == two.dtype
            assert (one.cpu().double() - two.double()).abs().max() <= 1e-5


def test_normalise_on_the_device():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    expected = (pixels.double() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) \
        / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    assert (normalise(pixels.to(DEVICE)).cpu().double() - expected).abs().max() <= 1e-6


# ---- no waiting

WAITING = {'DSSN': {}, 'DSSN_lean': {'lean': True}, 'DSSN_class_topk': {'selection': 'class_topk'},
           'DSSN_OHEM': {'criterion': OHEM}, 'fixmatch': {'method': 'fixmatch'},
           'unimatch': {'method': 'unimatch'}, 'supervised': {'method': 'supervised'},
           'DSSN_transformer': IN_WORLD, 'unimatch_v2': {'method': 'unimatch_v2', **IN_WORLD},
           'fp16': {'amp': 'fp16'}}


class Trainer:
    """What a run's loop calls, on a tiny data set: loader, update, logbook and diagnostics."""

    def __init__(self, cfg, method):
        self.world = World(device=DEVICE)
        labeled = read_list(cfg.labeled_id_path)
        unlabeled = read_list(cfg.unlabeled_id_path, False) if method.uses_unlabeled else None
        self.loader = TrainLoader(cfg, labeled, unlabeled, pin=DEVICE.type == 'cuda')
        precision.set_arithmetic(cfg, DEVICE)
        self.student = build_model(cfg).to(DEVICE).train()
        teacher = ema.make_teacher(self.student) if method.uses_teacher else None
        self.update = Update(cfg, self.world, method(cfg), self.student, teacher,
                             build_optimizer(self.student, 0.01, 2.0), 0.01, 1000)
        self.log = Logbook(cfg, self.world, 1000)
        self.watch = Watch(cfg, self.world, self.log, unlabeled)

    def step(self, batch, step):
        batch, terms, loss, lr = self.update(batch, EPOCH, step)
        self.log.step(EPOCH, step, terms, loss, lr, images=2 * IMAGES)
        self.watch.step(EPOCH, step, terms, batch)
        return loss


@contextlib.contextmanager
def no_waiting():
    """What makes the host wait for the GPU raises; on a CPU there is nothing to wait for."""
    if DEVICE.type == 'cuda':
        torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        if DEVICE.type == 'cuda':
            torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('amp', ['off', 'bf16'])
@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('keys', WAITING.values(), ids=WAITING.keys())
def test_no_step_waits_for_the_device(tiny_world, real_dropout, keys, accumulate, amp):
    if 'amp' in keys and (amp != 'off' or not HAS_GPU or not optim.FUSED):
        pytest.skip('fp16 is tried once, on a GPU; before PyTorch 2.3 its scaler waits')
    cfg = tiny_world(n_labeled=16, n_unlabeled=16, batch_size=IMAGES, accumulate=accumulate,
                     log_every=500, panel_every=0, **{'amp': amp, **keys}).load()
    methods = (DSSN, FixMatch, UniMatch, UniMatchV2, Supervised)
    method = {cls.name: cls for cls in methods}[cfg.method]
    trainer = Trainer(cfg, method)
    batches = list(trainer.loader.batches(0))
    assert len(batches) == 4
    if HAS_GPU:
        assert all(t.is_pinned() for batch in batches for part in batch if part for t in part)
    for step, batch in enumerate(batches[:2]):  # libraries start, the allocator gets its memory
        trainer.step(batch, step)
    with no_waiting():
        for step, batch in enumerate(batches[2:], 2):
            loss = trainer.step(batch, step)
        if HAS_GPU:  # that the guard sees what waits
            with pytest.raises(RuntimeError, match='synchroniz'):
                loss.item()
    trainer.log.check()
    assert loss.item() > 0


# ---- fp16

@pytest.mark.skipif(REHEARSED and not hasattr(torch.amp, 'GradScaler'),
                    reason='this PyTorch has no scaler for a CPU')
@pytest.mark.parametrize('optimizer', [build_optimizer, build_adamw])
def test_fp16_leaves_out_a_step_that_overflows_and_trains_on(monkeypatch, real_dropout, optimizer):
    if REHEARSED:
        monkeypatch.setattr(precision, 'make_scaler', lambda cfg: torch.amp.GradScaler('cpu'))
    cfg = config(batch_size=IMAGES, amp='fp16')
    torch.manual_seed(4)
    student = build_model(cfg).to(DEVICE).train()
    update = Update(cfg, World(device=DEVICE), build(cfg), student, ema.make_teacher(student),
                    optimizer(student, 0.001, 2.0), 0.001, 100)
    batch = random_batches(torch.float32)
    update(batch, EPOCH, 0)
    before, scale = copy.deepcopy(student.state_dict()), update.scaler.get_scale()
    known = [copy.deepcopy(state) for state in update.optimizer.state.values()]
    handle = student.classifier.weight.register_hook(lambda gradient: gradient * float('inf'))
    _, terms, _, _ = update(batch, EPOCH, 1)
    handle.remove()
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before[name]), name
    for old, state in zip(known, update.optimizer.state.values()):
        for name, value in old.items():
            assert torch.equal(value, state[name]), name
    assert update.scaler.get_scale() == scale / 2
    assert terms.fractions['gradient_norm'].item() == 0
    # A CPU is slow at fp16.
    losses = [update(batch, EPOCH, step)[2].item() for step in range(2, 6 if REHEARSED else 20)]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert not torch.equal(student.classifier.weight, before['classifier.weight'])


# ---- runs

def train(cfg):
    run = start(cfg, World(device=DEVICE))
    run.fit()
    return run


@pytest.mark.parametrize('keys', [{}, {'selection': 'class_topk', 'criterion': OHEM},
                                  {'amp': 'bf16', 'lean': True}, IN_WORLD],
                         ids=['plain', 'topk', 'bf16', 'transformer'])
def test_deterministic_runs_are_the_same_bit_for_bit(tiny_world, monkeypatch, real_dropout, keys):
    if RELEASE < (2, 2):
        pytest.skip('the backward pass of an interpolation is not deterministic before PyTorch 2.2')
    # Releases that training refuses because nobody has tried them are tried here.
    monkeypatch.setattr(precision, 'DETERMINISTIC_SINCE', (2, 2))
    world = tiny_world(deterministic=True, **keys)
    folders = [world.save_path + name for name in ('first', 'second', 'stopped')]
    for folder in folders[:2]:
        train(world.load(save_path=folder))
    interrupted_on(DEVICE, monkeypatch, world.load(save_path=folders[2]))
    assert read_torch_file(os.path.join(folders[2], 'latest.pth'))['epoch'] == 1
    train(world.load(save_path=folders[2]))
    for folder in folders[1:]:
        assert_same_run(folders[0], folder)


def interrupted_on(device, monkeypatch, cfg):
    """Train up to the second step of the second epoch, as a killed run stops."""
    import test_engine
    with monkeypatch.context() as patch:
        patch.setattr(test_engine, 'World', lambda: World(device=device))
        interrupted(cfg, test_engine.STEPS + 1)


def test_weights_trained_on_the_device_predict_the_same_on_a_cpu(tiny_world, real_dropout):
    world = tiny_world(n_val=10, epochs=3, lr=0.02)
    cfg = train(world.load()).cfg
    content = read_torch_file(os.path.join(cfg.save_path, 'latest.pth'))
    samples, found = read_list(cfg.val_id_path), []
    for device in (CPU, DEVICE):
        student = build_model(cfg)
        load_weights(student, content['model'], 'latest.pth')
        seen = {}

        def keep(position, image, label, predictions, seen=seen):
            seen[position] = predictions['student']
        # In full float32: TF32 rounds more than a few pixels' classes away.
        precision.set_arithmetic(dataclasses.replace(cfg, tf32=False), device)
        with other_kernels(device):
            evaluate({'student': student.to(device)}, cfg, samples, World(device=device), keep)
        found.append(torch.cat([seen[i].flatten() for i in range(len(samples))]))
    assert len(found[0].unique()) > 1
    assert (found[0] == found[1]).float().mean() >= 0.999


def test_too_little_memory_is_one_error_with_advice(tiny_world, monkeypatch, real_dropout):
    run = start(tiny_world(crop_size=129, base_channels=16).load(), World(device=DEVICE))
    if HAS_GPU:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-6)
    else:
        def gradients(*_):
            raise RuntimeError('CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...')
        monkeypatch.setattr(Update, 'gradients', gradients)
    try:
        with pytest.raises(UserError, match='out of memory.*batch_size 2 at crop_size 129 with '
                                            'resnet10 does not fit.*checkpoint_backbone=true'):
            run.fit()
    finally:
        if HAS_GPU:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()


# ---- one process that exchanges gradients with itself

def exchanging(norm, x):
    """What SyncBatchNorm does in a group of several, in a group of one as well.

    PyTorch takes the plain kernels there. With this the gathering over NCCL and the kernels of the
    synchronised statistics run, forward and backward; what is not tried is that the statistics of
    several processes are joined.
    """
    assert norm.training
    norm.num_batches_tracked.add_(1)
    return SyncBatchNorm.apply(x, norm.weight, norm.bias, norm.running_mean, norm.running_var,
                               norm.eps, norm.momentum, dist.group.WORLD, 1)


@contextlib.contextmanager
def group_of_one(port, monkeypatch):
    monkeypatch.setenv('NCCL_SOCKET_IFNAME', os.environ.get('NCCL_SOCKET_IFNAME', 'lo'))
    dist.init_process_group('nccl' if HAS_GPU else 'gloo', rank=0, world_size=1,
                            init_method=f'tcp://127.0.0.1:{port}')
    try:
        yield
    finally:
        if HAS_GPU:
            torch.cuda.synchronize()
        dist.destroy_process_group()


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_step_through_ddp_and_synchronised_bn_is_the_plain_one(port, monkeypatch, accumulate):
    cfg = config(batch_size=IMAGES, accumulate=accumulate)
    expected = make_step(DEVICE, cfg, dtype=torch.float64)
    world = World(size=2, device=DEVICE)  # as in a world of several, whose calls are tried

    def prepare(student):
        if HAS_GPU:
            monkeypatch.setattr(nn.SyncBatchNorm, 'forward', exchanging)
        return world.prepare_student(student, static=accumulate == 1)
    with group_of_one(port, monkeypatch):
        found = make_step(DEVICE, cfg, dtype=torch.float64, prepare=prepare)
    assert_close(found, expected, 1e-9)
