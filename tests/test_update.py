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
from dssn.methods.dssn import DSSN
from dssn.methods.fixmatch import FixMatch
from dssn.methods.supervised import Supervised
from dssn.methods.unimatch import UniMatch
from dssn.models import build_model, deeplabv3plus, recompute
from dssn.optim import build_optimizer
from dssn.update import Update

needs = pytest.mark.skipif
OLD = not hasattr(torch, 'autocast')


def make_update(method, cfg, student, teacher=None):
    optimizer = build_optimizer(student, 0.1, 2.0)
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


# ---- parts of a batch

@pytest.fixture
def without_dropout(monkeypatch):
    monkeypatch.setattr(deeplabv3plus, 'perturbed',
                        lambda features, views: [features, 0.5 * features][:views])


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


@pytest.mark.parametrize('parts', [2, 4])
@pytest.mark.parametrize('method, changes', [
    (DSSN, {}), (DSSN, {'warm': True}), (DSSN, {'selection': 'fixed', 'conf_thresh': 0.7}),
    (DSSN, {'lean': True}), (DSSN, {'image_views': 0}), (DSSN, {'feature_views': 0}),
    (DSSN, {'image_views': 1, 'feature_views': 1, 'feature_labels': 'teacher'}),
    (FixMatch, {'conf_thresh': 0.7}), (UniMatch, {'conf_thresh': 0.7}), (Supervised, {})], ids=str)
def test_parts_of_a_batch_are_worth_the_whole(without_dropout, parts, method, changes):
    batch = random_batches(4)
    batch.x.label[2] = 255       # nothing labeled
    batch.u.valid[1] = False     # nothing but padding
    whole, expected = gradients_of(1, batch, method, **changes)
    terms, found = gradients_of(parts, batch, method, **changes)
    assert any(bool(gradient.any()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-10 * (1 + gradient.abs().max()), name
    for kind in ('losses', 'shares'):
        assert set(getattr(terms, kind)) == set(getattr(whole, kind))
        for name, value in getattr(whole, kind).items():
            assert getattr(terms, kind)[name].item() == pytest.approx(value.item(), abs=1e-6), name
            assert not getattr(terms, kind)[name].requires_grad
    for branch, known in whole.labels.items():
        assert all(torch.equal(*pair) for pair in zip(terms.labels[branch], known))
    for view, known in whole.predictions.items():
        assert torch.equal(terms.predictions[view], known)


def test_a_part_that_weighs_more_counts_more(without_dropout):
    """Not the mean of the parts' losses: what has four times the pixels weighs four times."""
    batch = random_batches(4)
    batch.x.label[1:] = 255
    whole, _ = gradients_of(1, batch, Supervised)
    terms, _ = gradients_of(4, batch, Supervised)
    first, _ = gradients_of(1, Batch(type(batch.x)(*[t[:1] for t in batch.x]), None, None),
                            Supervised)
    assert terms.losses['supervised'].item() == pytest.approx(first.losses['supervised'].item())
    assert whole.losses['supervised'].item() == pytest.approx(first.losses['supervised'].item())


def test_ohem_keeps_its_share_in_every_part(without_dropout):
    criterion = {'name': 'OHEM', 'kwargs': dict(OHEM['kwargs'], min_kept=12, thresh=0.0)}
    batch = random_batches(2)
    terms, _ = gradients_of(2, batch, Supervised, criterion=criterion)
    expected, counts = 0, [(label != 255).sum().item() for label in batch.x.label]
    for i in range(2):
        logits = network(1).eval()(batch.x.weak[i:i + 1])
        loss = nn.functional.cross_entropy(logits, batch.x.label[i:i + 1], ignore_index=255,
                                           reduction='none').flatten()
        hardest = loss.sort(descending=True).values[:6]  # 12 / 2: the least probable
        expected += hardest.mean().item() * counts[i] / sum(counts)
    assert terms.losses['supervised'].item() == pytest.approx(expected)


def test_parts_draw_other_channels():
    cfg = config(batch_size=2, accumulate=2)
    batch, seen = random_batches(1, b=1), []
    batch = Batch(*[type(part)(*[torch.cat([t, t]) for t in part]) for part in batch])

    class Watched(nn.Module):
        def forward(self, images, perturb=0, lean=False, views=2):
            if perturb:
                seen.append(torch.rand(3))
            logits = images[:, :1].repeat(1, 4, 1, 1).clone().requires_grad_()
            return (logits, logits[-1:], logits[-1:]) if perturb else logits
    method = DSSN(cfg)
    method.start_step(1, 9, nn.Module())
    student = network(1)
    make = make_update(method, cfg, student, network(2))
    make.student = make.teacher = Watched()
    make.gradients(batch, 9)
    assert len(seen) == 2 and not torch.equal(*seen)


# ---- no waiting, and gradients that are not finite

READS = ('item', 'cpu', 'tolist', 'numpy', '__bool__', '__float__', '__int__', '__index__')


@pytest.mark.parametrize('method, epoch, changes', [
    (DSSN, 0, {}), (DSSN, 1, {}), (DSSN, 1, {'accumulate': 2}), (DSSN, 1, {'lean': True}),
    (DSSN, 1, {'selection': 'class_topk'}), (DSSN, 1, {'selection': 'fixed'}),
    (DSSN, 1, {'criterion': OHEM}), (DSSN, 1, {'feature_labels': 'teacher', 'image_views': 0}),
    (FixMatch, 1, {}), (UniMatch, 1, {}), (Supervised, 1, {'criterion': CE})], ids=str)
def test_the_host_never_waits_for_the_device_in_a_step(monkeypatch, tmp_path, method, epoch,
                                                       changes):
    from dssn.logbook import Logbook
    from dssn.watching import Watch
    cfg = config(batch_size=2, dataset='x', save_path=str(tmp_path), log_every=50, **changes)
    student = network(1)
    teacher = ema.make_teacher(network(2)) if method.uses_teacher else None
    make = make_update(method(cfg), cfg, student, teacher)
    log = Logbook(cfg, World(), 100)
    watch = Watch(cfg, World(), log, [])
    batch = random_batches(2)
    reads = []
    for name in READS:
        def read(tensor, *args, name=name, **kwargs):
            reads.append(name)
            return getattr(nn.Parameter, 'kept_' + name)(tensor, *args, **kwargs)
        monkeypatch.setattr(nn.Parameter, 'kept_' + name, getattr(torch.Tensor, name),
                            raising=False)
        monkeypatch.setattr(torch.Tensor, name, read)
    for step in (1, 2):
        done, terms, loss, lr = make(batch, epoch, step)
        log.step(epoch, step, terms, loss, lr, images=4)
        watch.step(epoch, step, terms, done)
    assert reads == []
    log.check()
    assert reads  # that the patches see what reads


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('on_nonfinite', ['stop', 'skip'])
def test_a_gradient_that_is_not_finite_changes_no_weight(value, on_nonfinite):
    cfg = config(batch_size=2, on_nonfinite=on_nonfinite)
    student = network(1)
    before = copy.deepcopy(student.state_dict())
    make = make_update(Supervised(cfg), cfg, student)
    handle = student.classifier.weight.register_hook(lambda gradient: gradient * value)
    _, terms, _, _ = make(random_batches(2), 0, 0)
    assert not bool(torch.isfinite(terms.shares['gradient_norm']))
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before[name])
    handle.remove()
    _, terms, _, _ = make(random_batches(2), 0, 1)
    assert bool(torch.isfinite(terms.shares['gradient_norm']))
    # A run that stops is left as it was before the step; one that skips goes on.
    stays = torch.equal(student.classifier.weight, before['classifier.weight'])
    assert stays == (on_nonfinite == 'stop')


def test_a_skipped_step_leaves_running_statistics_as_they_were():
    cfg = config(batch_size=2, on_nonfinite='skip')
    student = network(1)
    teacher = ema.make_teacher(network(2))
    make = make_update(DSSN(cfg), cfg, student, teacher)
    batch = random_batches(2)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    batch.x.weak[0, 0, 0, 0] = float('nan')
    batch.u.weak[0, 0, 0, 0] = float('nan')
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
                lambda t: total.append(t.numel()) or t, lambda t: t):
            model(torch.randn(1, 3, 65, 65))
        kept.append(sum(total))
    assert kept[1] < 0.7 * kept[0]


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


def test_tf32_is_off_unless_wanted(monkeypatch):
    for module in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(module, 'allow_tf32', False)
    for wanted in (True, False):
        precision.set_tf32(wanted)
        assert torch.backends.cuda.matmul.allow_tf32 is wanted
        assert torch.backends.cudnn.allow_tf32 is wanted


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


@pytest.mark.gpu
@needs(not torch.cuda.is_available(), reason='no GPU')
def test_no_synchronisation_on_a_gpu():
    cfg = config(batch_size=2)
    student = network(1).cuda()
    make = Update(cfg, World(device='cuda:0'), DSSN(cfg), student, ema.make_teacher(student),
                  build_optimizer(student, 0.1, 2.0), 0.1, 100)
    batch = random_batches(2)
    make(batch, 1, 8)
    torch.cuda.set_sync_debug_mode('error')
    try:
        make(Batch(*[type(part)(*[t.pin_memory() for t in part]) for part in batch]), 1, 9)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.gpu
@needs(not torch.cuda.is_available(), reason='no GPU')
def test_fp16_trains_and_its_scaler_leaves_out_what_overflows():
    cfg = config(batch_size=2, amp='fp16')
    student = build_model(cfg).cuda()
    make = Update(cfg, World(device='cuda:0'), DSSN(cfg), student, ema.make_teacher(student),
                  build_optimizer(student, 0.01, 2.0), 0.01, 100)
    batch = Batch(*[type(part)(*[t.float() if t.dtype == torch.float64 else t for t in part])
                    for part in random_batches(2)])
    losses = [make(batch, 1, step)[2].item() for step in range(20)]
    assert all(map(torch.isfinite, map(torch.tensor, losses))) and losses[-1] < losses[0]
