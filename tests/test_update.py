"""The update: parts of a batch, gradients that are not finite, no waiting, half precision."""
import copy

import pytest
import torch
import torch.nn as nn
from test_methods import CE, OHEM, config, network, random_batch

from dssn import ema, precision
from dssn.batch import Batch
from dssn.distributed import World
from dssn.errors import UserError
from dssn.methods import build
from dssn.methods.dssn import DSSN
from dssn.methods.fixmatch import FixMatch
from dssn.methods.supervised import Supervised
from dssn.methods.unimatch import UniMatch
from dssn.methods.unimatch_v2 import UniMatchV2
from dssn.models import build_model, recompute, segmentation
from dssn.optim import build_adamw, build_optimizer
from dssn.update import Update, split

needs = pytest.mark.skipif
OLD = not hasattr(torch, 'autocast')


def make_update(method, cfg, student, teacher=None):
    optimizer = (build_adamw if cfg.optimizer == 'adamw' else build_optimizer)(student, 0.1, 2.0)
    return Update(cfg, World(), method, student, teacher, optimizer, 0.1, 100)


def random_batches(count, b=1, size=(33, 33)):
    """A `Batch` of `count` parts that differ in how much is labeled and valid."""
    parts = [random_batch(b, *size, seed=seed) for seed in range(count)]
    for i, (x, u, v) in enumerate(parts):
        x.label[:, :4 * i] = 255
        u.valid[:, :, :5 * i], v.valid[:, :3 * i] = False, False
    joined = []
    for rows in zip(*parts):
        joined.append(type(rows[0])(*[torch.cat(tensors) for tensors in zip(*rows)]))
    return Batch(*joined)


def unequal_batches(labeled, unlabeled):
    """The same with these numbers of images of each kind."""
    x, u, v = random_batches(max(labeled, unlabeled))
    return Batch(*[type(part)(*[tensor[:count] for tensor in part])
                   for part, count in ((x, labeled), (u, unlabeled), (v, unlabeled))])


# ---- parts of a batch

@pytest.fixture
def without_dropout(monkeypatch):
    monkeypatch.setattr(segmentation, 'perturbed',
                        lambda features, views, dropout: [features, 0.5 * features][:views])


def gradients_of(parts, batch, method, warm=False, **changes):
    cfg = config(batch_size=4, accumulate=parts, **changes)
    student, teacher = network(1).eval(), network(2).eval()  # eval: BN is frozen
    method = method(cfg)
    method.start_step(0 if warm else 1, 0 if warm else 9, teacher, watched=True)
    student.eval()
    teacher.eval()
    make = make_update(method, cfg, student, teacher if method.uses_teacher else None)
    terms = make.gradients(batch, 9)
    return terms, {name: p.grad for name, p in student.named_parameters()}


@pytest.mark.parametrize('parts, labeled', [(2, 4), (4, 4), (2, 6)])
@pytest.mark.parametrize('method, changes', [
    (DSSN, {}), (DSSN, {'warm': True}), (DSSN, {'selection': 'fixed', 'conf_thresh': 0.7}),
    (DSSN, {'lean': True}), (DSSN, {'image_views': 0}), (DSSN, {'feature_views': 0}),
    (DSSN, {'image_views': 1, 'feature_views': 1, 'feature_labels': 'teacher'}),
    (FixMatch, {'conf_thresh': 0.7}), (UniMatch, {'conf_thresh': 0.7}), (Supervised, {})], ids=str)
def test_a_part_counts_as_much_as_any_other(without_dropout, parts, labeled, method, changes):
    """As with so many processes: the mean of the parts' own steps, however much each has
    labeled."""
    batch = unequal_batches(labeled, 4)
    batch.labeled.label[2] = 255       # nothing labeled
    batch.unlabeled.valid[1] = False     # nothing but padding
    terms, found = gradients_of(parts, batch, method, **changes)
    rows = split(batch, parts)
    assert [(len(part.labeled.image), len(part.unlabeled.weak)) for part in rows] == \
        parts * [(labeled // parts, 4 // parts)]
    own = [gradients_of(1, part, method, **changes) for part in rows]
    assert any(bool(gradient.any()) for gradient in found.values())
    for name, gradient in found.items():
        expected = sum(gradients[name] for _, gradients in own) / parts
        assert (gradient - expected).abs().max() <= 1e-10 * (1 + expected.abs().max()), name
    for kind in ('losses', 'fractions'):
        values = [getattr(part, kind) for part, _ in own]
        assert set(getattr(terms, kind)) == set(values[0])
        for name, value in getattr(terms, kind).items():
            mean = sum(part[name].item() for part in values) / parts
            assert value.item() == pytest.approx(mean, abs=1e-6), name
            assert not value.requires_grad
    for branch, known in terms.labels.items():
        rows = zip(known, zip(*[part.labels[branch] for part, _ in own]))
        assert all(torch.equal(joined, torch.cat(separate)) for joined, separate in rows)
    for view, known in terms.predictions.items():
        assert torch.equal(known, torch.cat([part.predictions[view] for part, _ in own]))


def test_parts_draw_other_channels():
    cfg = config(batch_size=2, accumulate=2)
    batch, seen = random_batches(1, b=1), []
    batch = Batch(*[type(part)(*[torch.cat([t, t]) for t in part]) for part in batch])

    class Watched(nn.Module):
        def forward(self, images, perturb=0, lean=False, views=2, dropout=0.5,
                    complementary=False):
            if perturb:
                seen.append(torch.rand(3))
            logits = images[:, :1].repeat(1, 4, 1, 1).clone().requires_grad_()
            return (logits, logits[-1:], logits[-1:]) if perturb else logits
    method = build(cfg)
    method.start_step(1, 9, nn.Module())
    student = network(1)
    make = make_update(method, cfg, student, network(2))
    make.student = make.teacher = Watched()
    make.gradients(batch, 9)
    assert len(seen) == 2 and not torch.equal(*seen)


# ---- no waiting, and gradients that are not finite

READS = ('item', 'cpu', 'tolist', 'numpy', '__bool__', '__float__', '__int__', '__index__')
# What makes a tensor of the host's values: to bring it to a GPU the host waits for the copy.
COPIES = ('tensor', 'as_tensor', 'from_numpy', 'scalar_tensor')
# Operations for whose result's size, or for whose value, the host waits.
WAITING = ('_local_scalar_dense', 'is_nonzero', 'nonzero', 'masked_select', 'unique', '_unique2',
           'bincount', 'lift_fresh', 'equal')
try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:  # PyTorch 1
    TorchDispatchMode = None


class Guard:
    """While entered, records what would make the host wait for a GPU; `found` names it."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.found = monkeypatch, []

    def __enter__(self):
        self.context = self.monkeypatch.context()
        patch = self.context.__enter__()
        for place, names in ((torch.Tensor, READS + ('new_tensor',)), (torch, COPIES)):
            for name in names:
                self.spy(patch, place, name)
        self.mode = TorchDispatchMode and watching_mode(self.found)
        if self.mode:
            self.mode.__enter__()
        return self

    def spy(self, patch, place, name):
        real = getattr(place, name)

        def seen(*args, **kwargs):
            self.found.append(name)
            return real(*args, **kwargs)
        patch.setattr(place, name, seen)

    def __exit__(self, *error):
        if self.mode:
            self.mode.__exit__(*error)
        self.context.__exit__(*error)


def watching_mode(found):
    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            name = operation.overloadpacket.__name__
            by_mask = name in ('index', 'index_put_') and any(
                index is not None and index.dtype == torch.bool for index in args[1])
            if name in WAITING or by_mask:
                found.append(name)
            return operation(*args, **(kwargs or {}))
    return Watching()


@pytest.mark.parametrize('wait', [
    lambda t: t.sum().item(), lambda t: bool(t[0] > 0), lambda t: float(t[0]), lambda t: t.cpu(),
    lambda t: t + torch.tensor(2.0), lambda t: torch.as_tensor([1.0]), lambda t: t.new_tensor(3.0),
    pytest.param(lambda t: t[t > 0], marks=needs(TorchDispatchMode is None, reason='PyTorch 1')),
    pytest.param(lambda t: t.long().bincount(),
                 marks=needs(TorchDispatchMode is None, reason='PyTorch 1'))])
def test_the_guard_sees_what_waits(monkeypatch, wait):
    values = torch.ones(3)
    with Guard(monkeypatch) as guard:
        wait(values)
    assert guard.found
    with Guard(monkeypatch) as guard:
        torch.where(values > 0, values, values.new_zeros(())).masked_fill_(values > 2, 1.0).sum()
    assert not guard.found


def as_loaded(batch):
    """A batch with images and labels as the loader gives them, uint8."""
    def loaded(name, tensor):
        if name == 'label':
            return tensor.to(torch.uint8)
        return (tensor * 40 + 128).clamp(0, 255).to(torch.uint8) \
            if tensor.is_floating_point() else tensor
    return Batch(*[type(part)(*[loaded(*item) for item in part._asdict().items()])
                   for part in batch])


@pytest.mark.parametrize('method, epoch, changes', [
    (DSSN, 0, {}), (DSSN, 1, {}), (DSSN, 1, {'accumulate': 2}), (DSSN, 1, {'lean': True}),
    (DSSN, 1, {'selection': 'class_topk'}), (DSSN, 1, {'selection': 'fixed'}),
    (DSSN, 1, {'on_nonfinite': 'skip'}),
    pytest.param(DSSN, 1, {'amp': 'bf16'}, marks=needs(OLD, reason='no torch.autocast')),
    (DSSN, 1, {'criterion': OHEM}), (DSSN, 1, {'feature_labels': 'teacher', 'image_views': 0}),
    (FixMatch, 1, {}), (UniMatch, 1, {}), (Supervised, 1, {'criterion': CE}),
    (UniMatchV2, 1, {'cutmix_partner': 'batch', 'optimizer': 'adamw', 'accumulate': 2})], ids=str)
def test_the_host_never_waits_for_the_device_in_a_step(monkeypatch, tmp_path, method, epoch,
                                                       changes):
    from dssn.run.diagnostics import Watch
    from dssn.run.logbook import Logbook
    cfg = config(batch_size=2, dataset='x', save_path=str(tmp_path), log_every=50, **changes)
    student = network(1).float()
    teacher = ema.make_teacher(network(2).float()) if method.uses_teacher else None
    make = make_update(method(cfg), cfg, student, teacher)
    log = Logbook(cfg, World(), 100)
    watch = Watch(cfg, World(), log, [])
    batch = as_loaded(random_batches(2))

    def step(number):
        done, terms, loss, lr = make(batch, epoch, number)
        log.step(epoch, number, terms, loss, lr, images=4)
        watch.step(epoch, number, terms, done)
    step(1)  # makes what is made once
    with Guard(monkeypatch) as guard:
        step(2)
    assert guard.found == []
    with Guard(monkeypatch) as guard:
        log.check()
    assert guard.found


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('on_nonfinite', ['stop', 'skip'])
def test_a_gradient_that_is_not_finite_changes_no_weight(value, on_nonfinite):
    cfg = config(batch_size=2, on_nonfinite=on_nonfinite)
    student = network(1)
    before = copy.deepcopy(student.state_dict())
    make = make_update(Supervised(cfg), cfg, student)
    handle = student.classifier.weight.register_hook(lambda gradient: gradient * value)
    _, terms, _, _ = make(random_batches(2), 0, 0)
    assert not bool(torch.isfinite(terms.fractions['gradient_norm']))
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before[name])
    handle.remove()
    _, terms, _, _ = make(random_batches(2), 0, 1)
    assert bool(torch.isfinite(terms.fractions['gradient_norm']))
    # A run that stops is left as it was before the step; one that skips goes on.
    stays = torch.equal(student.classifier.weight, before['classifier.weight'])
    assert stays == (on_nonfinite == 'stop')


def test_a_skipped_step_leaves_running_statistics_as_they_were():
    cfg = config(batch_size=2, on_nonfinite='skip')
    student = network(1)
    teacher = ema.make_teacher(network(2))
    make = make_update(build(cfg), cfg, student, teacher)
    batch = random_batches(2)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    batch.labeled.image[0, 0, 0, 0] = float('nan')
    batch.unlabeled.weak[0, 0, 0, 0] = float('nan')
    make(batch, 0, 1)
    for name, value in student.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, before[name]), name
    for value in teacher.state_dict().values():
        assert torch.isfinite(value).all()
    make(random_batches(2), 0, 2)
    assert all(torch.isfinite(value).all() for value in student.state_dict().values())
    assert not torch.equal(student.classifier.weight, before['classifier.weight'])


# ---- precision, memory, compilation: the same step

def one_step(cfg, method=DSSN, steps=1):
    torch.manual_seed(4)
    student = build_model(cfg)
    if cfg.compile:
        student.compile()
    teacher = ema.make_teacher(student)
    make = make_update(method(cfg), cfg, student, teacher if method.uses_teacher else None)
    batch = Batch(*[type(part)(*[t.float() if t.dtype == torch.float64 else t for t in part])
                    for part in random_batches(2)])
    for step in range(steps):
        # Step 9 of epoch 1: the whole objective, on running statistics.
        _, terms, loss, _ = make(batch, 1, 9 + step)
    return loss.item(), terms, student.state_dict(), teacher.state_dict()


@needs(OLD, reason='this PyTorch has no torch.autocast')
@pytest.mark.parametrize('method', [DSSN, FixMatch, UniMatch])
def test_bf16_agrees_with_float32(method):
    # A threshold that no rounding of a confidence crosses.
    keys = dict(batch_size=2, conf_thresh=0)
    expected, full, *_ = one_step(config(**keys), method)
    found, half, state, _ = one_step(config(amp='bf16', **keys), method)
    assert found == pytest.approx(expected, rel=2e-2)
    assert found != expected
    for name, value in full.losses.items():
        assert half.losses[name].dtype == torch.float32
        assert half.losses[name].item() == pytest.approx(value.item(), rel=2e-2, abs=2e-2), name
    assert all(t.dtype == torch.float32 for t in state.values() if t.is_floating_point())


@needs(not recompute.SUPPORTED, reason='this PyTorch checkpoints in the reentrant way only')
@pytest.mark.parametrize('changes', [{}, {'accumulate': 2, 'lean': True}, {'stem': 'plain'},
                                     {'backbone': 'resnet50'}], ids=str)
def test_recomputing_the_backbone_changes_nothing(changes):
    expected = one_step(config(batch_size=2, **changes), steps=2)
    found = one_step(config(batch_size=2, checkpoint_backbone=True, **changes), steps=2)
    assert found[0] == expected[0]
    for old, new in zip(expected[2:], found[2:]):
        assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())


@needs(not recompute.SUPPORTED, reason='this PyTorch checkpoints in the reentrant way only')
@pytest.mark.parametrize('backbone', ['resnet18', 'xception'])
def test_recomputing_keeps_less_for_the_backward_pass(backbone):
    kept = []
    for again in (False, True):
        keys = {} if backbone == 'xception' else dict(base_channels=4)
        cfg = config(checkpoint_backbone=again, **dict(
            dict(backbone=backbone, base_channels=64), **keys))
        model, total = build_model(cfg).train(), []
        with torch.autograd.graph.saved_tensors_hooks(
                lambda t, total=total: total.append(t.numel()) or t, lambda t: t):
            model(torch.randn(1, 3, 65, 65))
        kept.append(sum(total))
    assert kept[1] < 0.7 * kept[0]


@needs(not recompute.SUPPORTED, reason='this PyTorch checkpoints in the reentrant way only')
@pytest.mark.parametrize('keys', [{'stem': 'deep'}, {'stem': 'plain'}, {'backbone': 'resnet50'},
                                  {'backbone': 'xception', 'base_channels': 64}], ids=str)
def test_recomputing_a_piece_touches_its_own_bn_alone(monkeypatch, keys):
    """One look at each BN layer of the backbone in a backward pass, and all of them kept at
    rest."""
    model = build_model(config(checkpoint_backbone=True, **keys)).train()
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    loss = model(torch.randn(2, 3, 33, 33)).square().mean()
    before, copies = copy.deepcopy(model.state_dict()), []
    real = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, 'copy_', lambda *args: copies.append(1) or real(*args))
    loss.backward()
    assert len(copies) == len(norms)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@needs(not hasattr(nn.Module, 'compile'), reason='this PyTorch compiles no modules in place')
def test_a_compiled_network_makes_the_same_step(monkeypatch):
    real, called = nn.Module.compile, []

    def compile_eagerly(module):
        called.append(module)
        return real(module, backend='eager')
    monkeypatch.setattr(nn.Module, 'compile', compile_eagerly)
    expected = one_step(config(batch_size=2))
    found = one_step(config(batch_size=2, compile=True))
    assert len(called) == 1 and found[0] == pytest.approx(expected[0], rel=1e-5)
    assert set(found[2]) == set(expected[2])


def test_channels_last_makes_the_same_step():
    expected = one_step(config(batch_size=2))
    found = one_step(config(batch_size=2, channels_last=True))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    weight = build_model(config(channels_last=True)).fuse[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('keys, missing, words', [
    ({'amp': 'bf16'}, (torch, 'autocast'), 'amp = bf16 needs PyTorch 1.10'),
    ({'compile': True}, (nn.Module, 'compile'), 'compile needs PyTorch 2.2'),
    ({'checkpoint_backbone': True}, (recompute, 'SUPPORTED'), 'checkpoint_backbone needs.* 1.11'),
])
def test_what_an_old_pytorch_cannot_do_is_said(monkeypatch, keys, missing, words):
    place, name = missing
    if name == 'SUPPORTED':
        monkeypatch.setattr(place, name, False)
    else:
        monkeypatch.delattr(place, name, raising=False)
    with pytest.raises(UserError, match=words):
        precision.check(config(**keys), torch.device('cpu'))
    precision.check(config(), torch.device('cpu'))


@needs(OLD, reason='this PyTorch has no torch.autocast')
def test_fp16_needs_a_gpu():
    with pytest.raises(UserError, match='fp16 needs a GPU'):
        precision.check(config(amp='fp16'), torch.device('cpu'))
