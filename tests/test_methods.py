"""Methods: a whole step against a slow recomputation, and what flows where.

n labeled and B unlabeled images, C = 4 classes, H x W pixels; all in double precision.
"""
import copy
import json
import os

import pytest
import torch
import torch.nn as nn
from test_losses import (
    numeric_gradient,
    slow_contrast,
    slow_cross_entropy,
    slow_masked_cross_entropy,
    slow_ohem,
)
from test_pseudo_labels import slow_class_max, slow_class_topk, slow_fixed

from dssn import ema, methods
from dssn.batch import Labeled, Unlabeled
from dssn.errors import UserError
from dssn.keys import Config
from dssn.methods import build
from dssn.methods.dssn import DSSN, DSSNConfig
from dssn.methods.supervised import Supervised
from dssn.models import build_model

CLASSES = 4
CE = {'name': 'CELoss', 'kwargs': {'ignore_index': 255}}
OHEM = {'name': 'OHEM', 'kwargs': {'ignore_index': 255, 'thresh': 0.2, 'min_kept': 9}}

with open(os.path.join(os.path.dirname(__file__), 'data', 'vectors.json')) as file:
    VECTORS = json.load(file)


def config(**changes):
    keys = dict(nclass=CLASSES, backbone='resnet10', base_channels=4, decoder_channels=8,
                criterion=CE, gate=0.6, ratio=0.7)
    return DSSNConfig(**dict(keys, **changes))


def random_batch(b, height, width, seed=0, labeled=None):
    """x, u, v with padding at the right and the bottom, and one image without a box.

    Args:
        b: unlabeled images, at most 4. labeled: labeled ones; None: b.
    """
    torch.manual_seed(seed)
    n = labeled or b

    def images(count=b):
        return torch.randn(count, 3, height, width).double()

    def boxes():
        drawn = torch.tensor([[1, 2, height // 2, width // 2], [height // 3, 1, 3, width - 2],
                              [0, 0, 0, 0], [2, 3, height // 3, width // 3]])
        return drawn[torch.randperm(max(b, 3))[:b] if b > 1 else torch.tensor([0])]

    def unlabeled(rows, columns):
        valid = torch.ones(b, height, width, dtype=torch.bool)
        valid[:, height - rows:], valid[-1, :, width - columns:] = False, False
        return Unlabeled(images(), images(), images(), valid, boxes(), boxes(), torch.arange(b))

    label = torch.randint(CLASSES, (n, height, width))
    label[torch.rand(label.shape) < 0.3] = 255
    return (Labeled(images(n), label, torch.arange(n)),
            unlabeled(height // 3, width // 4), unlabeled(height // 4, width // 3))


# ---- the slow step

def slow_paste(dst, src, boxes):
    out = dst.clone()
    for b, (top, left, height, width) in enumerate(boxes.tolist()):
        area = (b, ..., slice(top, top + height), slice(left, left + width))
        out[area] = src[area]
    return out


def slow_select(logits, cfg):
    return {'class_max': lambda: slow_class_max(logits, cfg.gate, cfg.ratio),
            'class_topk': lambda: slow_class_topk(logits, cfg.top),
            'fixed': lambda: slow_fixed(logits, cfg.conf_thresh),
            'none': lambda: torch.ones(logits[:, 0].shape, dtype=torch.bool)}[cfg.selection]()


def slow_labels(logits, cfg):
    """Per-pixel labels and mask, of logits whose classes do not tie."""
    return logits.argmax(1), slow_select(logits.detach(), cfg)


def slow_labeled_loss(logits, label, cfg):
    if cfg.criterion['name'] == 'CELoss':
        return slow_cross_entropy(logits, label)
    return slow_ohem(logits, label, cfg.criterion['kwargs']['thresh'],
                     cfg.criterion['kwargs']['min_kept'])


def slow_share(selected, valid):
    return (selected & valid).sum().item() / max(1, valid.sum().item())


def slow_terms(own, outputs, taught, x, u, v, cfg):
    """The seven terms (five without the teacher) and the shares, as floats.

    Args:
        own: the student's clean logits that pseudo-labels come from. outputs: clean, fp1, fp2, s1,
            s2. taught: the teacher's logits on u's and v's weak views, or None in warm-up.
    """
    b = len(x.image)
    clean, fp1, fp2, s1, s2 = outputs
    label, selected = slow_labels(own[b:], cfg)
    losses = {
        'supervised': slow_labeled_loss(clean[:b], x.label, cfg),
        'feature1': slow_masked_cross_entropy(fp1[b:], label, selected, u.valid),
        'feature2': slow_masked_cross_entropy(fp2[b:], label, selected, u.valid),
        'contrast_image': slow_contrast(s1, s2),
        'contrast_feature': slow_contrast(fp1[b:], fp2[b:])}
    shares = {'selected_feature': slow_share(selected, u.valid)}
    if taught is not None:
        for i, strong, boxes in ((1, s1, u.box1), (2, s2, u.box2)):
            label, selected = slow_labels(slow_paste(taught[0], taught[1], boxes), cfg)
            valid = slow_paste(u.valid, v.valid, boxes)
            losses[f'image{i}'] = slow_masked_cross_entropy(strong, label, selected, valid)
            shares[f'selected_image{i}'] = slow_share(selected, valid)
        agree = own[b:].argmax(1) == taught[0].argmax(1)
        shares['agreement'] = slow_share(agree, u.valid)
    return losses, shares


def slow_total(t):
    image = t.get('image1', 0.0) + t.get('image2', 0.0)
    return (t['supervised'] + (image + t['feature1'] + t['feature2']) / 4
            + (t['contrast_image'] + t['contrast_feature']) / 100) / 2


def slow_student(student, x, u, v):
    """The student's outputs: labeled and unlabeled as one batch, then s1 and s2 as one."""
    clean, fp1, fp2 = student(torch.cat([x.image, u.weak]), perturb=len(u.weak))
    # The release predicts from perturbed labeled images too, and uses them nowhere.
    blank = torch.zeros_like(clean[:len(x.image)])
    fp1, fp2 = torch.cat([blank, fp1]), torch.cat([blank, fp2])
    strong = student(torch.cat([slow_paste(u.strong1, v.strong1, u.box1),
                                slow_paste(u.strong2, v.strong2, u.box2)]))
    return clean, fp1, fp2, strong[:len(u.weak)], strong[len(u.weak):]


def slow_teacher(teacher, u, v):
    """On batch statistics the partner's pass comes first, then the weak view's, apart."""
    with torch.no_grad():
        partner = teacher(v.weak)
        return teacher(u.weak), partner


def network(seed, **changes):
    """A narrow network with peaked predictions, also on its running statistics."""
    torch.manual_seed(seed)
    model = build_model(config(**changes)).double()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for momentum in (0.9, 0.1):
        for norm in norms:
            norm.momentum = momentum
        model(torch.randn(4, 3, 33, 33).double())
    with torch.no_grad():
        model.classifier.weight.mul_(12)
    return model


def close(found, expected, rel=1e-9):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == ()
        assert found[name].item() == pytest.approx(value, rel=rel, abs=1e-12), name


STEPS = {
    'pascal, first step': (dict(), 0, 0, 2, (33, 33)),
    'pascal, first epoch': (dict(), 0, 1, 2, (33, 41)),
    'pascal, first epoch, running statistics': (dict(teacher_bn='running'), 0, 1, 2, (33, 33)),
    'pascal, later': (dict(), 1, 40, 2, (33, 33)),
    'cityscapes, warm-up': (
        dict(criterion=OHEM, selection='fixed', conf_thresh=0.0, warm_up_epochs=5), 4, 40, 1,
        (33, 33)),
    'cityscapes, later': (
        dict(criterion=OHEM, selection='fixed', conf_thresh=0.0, warm_up_epochs=5), 5, 50, 1,
        (33, 33)),
    'class_topk': (dict(selection='class_topk', top=0.3), 2, 9, 1, (35, 33)),
    'fixed': (dict(selection='fixed', conf_thresh=0.8), 2, 9, 1, (33, 33)),
    'none': (dict(selection='none'), 2, 9, 1, (33, 33)),
    # (labeled, unlabeled) images where they differ.
    'three labeled, two unlabeled': (dict(), 1, 40, (3, 2), (33, 33)),
    'three labeled, two unlabeled, first epoch': (dict(), 0, 1, (3, 2), (33, 33)),
    'one labeled, four unlabeled': (dict(), 1, 40, (1, 4), (33, 33)),
    'one labeled, four unlabeled, OHEM': (dict(criterion=OHEM), 0, 1, (1, 4), (33, 33)),
}


@pytest.mark.parametrize('case', STEPS)
def test_a_whole_step(case):
    changes, epoch, step, b, size = STEPS[case]
    cfg = config(**changes)
    student, teacher = network(1), ema.make_teacher(network(2))
    n, b = b if isinstance(b, tuple) else (b, b)
    x, u, v = random_batch(b, *size, labeled=n)
    slow = copy.deepcopy(student), copy.deepcopy(teacher)
    method = build(cfg)
    method.start_step(epoch, step, teacher)
    torch.manual_seed(7)
    terms = method(student, teacher, x, u, v)

    warm_up = step == 0 or epoch < cfg.warm_up_epochs
    slow[1].train(epoch == 0 and cfg.teacher_bn == 'batch_first_epoch')
    torch.manual_seed(7)  # the same channels dropped
    outputs = slow_student(slow[0], x, u, v)
    taught = None if warm_up else slow_teacher(slow[1], u, v)
    losses, shares = slow_terms(outputs[0], outputs, taught, x, u, v, cfg)
    close(terms.losses, losses)
    close(terms.fractions, shares, rel=1e-6)  # float32: they are for the log only
    assert method.total(terms.losses).item() == pytest.approx(slow_total(losses), rel=1e-9)
    if cfg.selection not in ('none', 'fixed'):  # a test in which all or none is selected is blind
        assert all(0.02 < value < 0.98 for value in shares.values()), shares

    # Running statistics moved as they should: both passes of the student, in this order, and the
    # teacher's two. In warm-up the teacher is about to be overwritten, so its own do not matter.
    pairs = [(student, slow[0])] + ([] if warm_up else [(teacher, slow[1])])
    for model, expected in pairs:
        for (name, one), two in zip(model.state_dict().items(), expected.state_dict().values()):
            assert one.dtype == two.dtype
            assert (one - two).abs().max() <= 1e-9, name


def test_running_statistics_move_twice_a_step():
    student = network(1)
    norm = student.backbone.bn1
    x, u, v = random_batch(1, 33, 33)
    method = build(config())
    teacher = ema.make_teacher(student)
    before = norm.num_batches_tracked.item()
    for step, passes in ((0, 2), (1, 4)):
        method.start_step(0, step, teacher)
        method(student, teacher, x, u, v)
        assert norm.num_batches_tracked.item() == before + passes


# ---- what is called with what: networks that act on each pixel alone

class Recorder(nn.Module):
    """1x1 convolutions for the clean and the two perturbed predictions; remembers its calls."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.views = nn.ModuleList(nn.Conv2d(3, CLASSES, 1) for _ in range(3)).double()
        self.calls = []

    def forward(self, images, perturb=0, lean=False, views=2, dropout=0.5,
                complementary=False):
        self.calls.append((images.clone(), perturb, self.training, torch.is_grad_enabled()))
        clean, *copies = [3 * view(images) for view in self.views[:1 + views]]
        return (clean, *[fp[-perturb:] for fp in copies]) if perturb else clean


def recorded_step(epoch, step, b=2, labeled=None, **changes):
    student, teacher = Recorder(1), ema.make_teacher(Recorder(2))
    method = build(config(**changes))
    method.start_step(epoch, step, teacher)
    x, u, v = random_batch(b, 7, 9, labeled=labeled)
    return method, student, teacher, (x, u, v), method(student, teacher, x, u, v)


@pytest.mark.parametrize('labeled, b', [(2, 2), (3, 2), (1, 4)])
def test_student_sees_two_batches(labeled, b):
    _, student, _, (x, u, v), _ = recorded_step(1, 9, b, labeled)
    first, second = student.calls
    assert torch.equal(first[0], torch.cat([x.image, u.weak])) and first[1] == len(u.weak)
    assert torch.equal(second[0], torch.cat([slow_paste(u.strong1, v.strong1, u.box1),
                                             slow_paste(u.strong2, v.strong2, u.box2)]))
    assert not second[1]
    assert all(training and grad for _, _, training, grad in student.calls)


@pytest.mark.parametrize('epoch, teacher_bn, batch_statistics', [
    (0, 'batch_first_epoch', True), (1, 'batch_first_epoch', False), (0, 'running', False),
    (3, 'running', False)])
def test_teacher_sees_weak_views(epoch, teacher_bn, batch_statistics):
    _, _, teacher, (_, u, v), _ = recorded_step(epoch, 9, teacher_bn=teacher_bn)
    if batch_statistics:
        expected = [v.weak, u.weak]
    else:
        expected = [torch.cat([u.weak, v.weak])]
    assert len(teacher.calls) == len(expected)
    for (images, perturb, training, grad), right in zip(teacher.calls, expected):
        assert torch.equal(images, right)
        assert training == batch_statistics and not perturb and not grad


@pytest.mark.parametrize('epoch', [0, 1])
def test_teacher_is_done_before_the_student_begins(epoch):
    # What its passes hold must not come on top of what the student's keep for the backward pass.
    student, teacher, order = Recorder(1), ema.make_teacher(Recorder(2)), []
    for name, model in (('student', student), ('teacher', teacher)):
        model.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    method = build(config())
    method.start_step(epoch, 9, teacher)
    method(student, teacher, *random_batch(2, 7, 9))
    assert order == ['teacher'] * (2 if epoch == 0 else 1) + ['student'] * 2


def test_selection_follows_the_mixing():
    # class_max takes a class's peak over the mixed image: not that of each image, pasted after.
    student, teacher, cfg = Recorder(1), ema.make_teacher(Recorder(2)), config()
    x, u, v = random_batch(2, 7, 9)
    # Partners of which the teacher is surer: inside the box they raise the peak for the rest.
    u, v = u._replace(weak=0.5 * u.weak), v._replace(weak=3 * v.weak)
    method = build(cfg)
    method.start_step(1, 9, teacher)
    terms = method(student, teacher, x, u, v)
    weak, partner = [teacher(part.weak) for part in (u, v)]
    for i, boxes in ((1, u.box1), (2, u.box2)):
        valid = slow_paste(u.valid, v.valid, boxes)
        after = slow_select(slow_paste(weak, partner, boxes), cfg)
        before = slow_paste(slow_select(weak, cfg), slow_select(partner, cfg), boxes)
        found = terms.fractions[f'selected_image{i}'].item()
        assert found == pytest.approx(slow_share(after, valid), abs=1e-6)
        assert found != pytest.approx(slow_share(before, valid), abs=1e-3)


@pytest.mark.parametrize('watched', [True, False])
@pytest.mark.parametrize('epoch', [0, 1])
def test_what_there_is_to_watch(epoch, watched):
    student, teacher, cfg = Recorder(1), ema.make_teacher(Recorder(2)), config(warm_up_epochs=1)
    x, u, v = random_batch(2, 7, 9)
    method = build(cfg)
    method.start_step(epoch, 9, teacher, watched)
    terms = method(student, teacher, x, u, v)
    outputs = slow_student(copy.deepcopy(student), x, u, v)
    weak = outputs[0][2:].detach()
    expected = {'feature': slow_labels(weak, cfg) + (u.valid,)}
    if epoch == 1:
        taught = teacher(u.weak), teacher(v.weak)
        for i, boxes in ((1, u.box1), (2, u.box2)):
            expected[f'image{i}'] = slow_labels(slow_paste(*taught, boxes), cfg) + (
                slow_paste(u.valid, v.valid, boxes),)
    assert set(terms.labels) == set(expected)
    for branch, parts in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(terms.labels[branch], parts)), branch
    views = {'weak': weak, 'strong1': outputs[3], 'strong2': outputs[4]} if watched else {}
    assert set(terms.predictions) == set(views)
    for name, logits in views.items():
        assert torch.equal(terms.predictions[name], logits.argmax(1)), name
    # What is watched holds on to no graph.
    assert not any(t.requires_grad for t in terms.predictions.values())


def test_step_without_partners_boxes_mixes_nothing():
    student, teacher = Recorder(1), ema.make_teacher(Recorder(2))
    x, u, v = random_batch(2, 7, 9)
    u = u._replace(box1=torch.zeros_like(u.box1), box2=torch.zeros_like(u.box2))
    method = build(config())
    method.start_step(1, 9, teacher)
    terms = method(student, teacher, x, u, v)
    outputs = slow_student(copy.deepcopy(student), x, u, v)
    assert torch.equal(student.calls[1][0], torch.cat([u.strong1, u.strong2]))
    close(terms.losses,
          slow_terms(outputs[0], outputs, (teacher(u.weak), teacher(v.weak)), x, u, v,
                     config())[0])


# ---- gradients: a student whose logits are the parameters

class Scripted(nn.Module):
    """Gives clean, fp1, fp2 and then the strong views' logits, all of them leaves."""

    def __init__(self, b, height, width):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.ParameterList([
            nn.Parameter(2 * torch.randn(2 * b, CLASSES, height, width).double())
            for _ in range(3)])
        self.strong = nn.Parameter(2 * torch.randn(2 * b, CLASSES, height, width).double())

    def forward(self, images, perturb=0, lean=False, views=2, dropout=0.5,
                complementary=False):
        clean, fp1, fp2 = self.first
        return (clean, fp1[-perturb:], fp2[-perturb:]) if perturb else self.strong

    def outputs(self):
        return [p.detach() for p in self.first] + list(self.strong.detach().chunk(2))


@pytest.mark.parametrize('criterion', [CE, OHEM], ids=['CE', 'OHEM'])
@pytest.mark.parametrize('step', [0, 1])
def test_gradient_of_the_total(step, criterion):
    cfg = config(criterion=criterion)
    b, height, width = 1, 3, 4
    student, teacher = Scripted(b, height, width), ema.make_teacher(Recorder(2))
    x, u, v = random_batch(b, height, width)
    method = build(cfg)
    method.start_step(2, step, teacher)
    method.total(method(student, teacher, x, u, v).losses).backward()

    outputs = student.outputs()
    taught = None if step == 0 else (teacher(u.weak), teacher(v.weak))
    for i, found in enumerate([p.grad for p in student.first] + list(student.strong.grad.chunk(2))):
        def total(moved, i=i):
            # Labels come from outputs[0], which stays: pseudo-labels pass no gradient on.
            changed = outputs[:i] + [moved] + outputs[i + 1:]
            return slow_total(slow_terms(outputs[0], changed, taught, x, u, v, cfg)[0])
        assert (found - numeric_gradient(total, outputs[i])).abs().max() <= 1e-8
    # The labeled loss alone trains the clean prediction; perturbed labeled images train nothing.
    clean, fp1, fp2 = [parameter.grad for parameter in student.first]
    assert bool((clean[b:] == 0).all()) and bool((clean[:b] != 0).any())
    for grad in (fp1, fp2):
        assert bool((grad[:b] == 0).all()) and bool((grad[b:] != 0).any())


def test_contrast_pulls_both_views():
    student, teacher = Scripted(1, 4, 5), ema.make_teacher(Recorder(2))
    method = build(config())
    method.start_step(2, 9, teacher)
    losses = method(student, teacher, *random_batch(1, 4, 5)).losses
    (losses['contrast_image'] + losses['contrast_feature']).backward()
    for grad in list(student.strong.grad) + [p.grad[1:] for p in student.first[1:]]:
        assert grad.abs().max() > 1e-4
    assert student.first[0].grad is None or bool((student.first[0].grad == 0).all())


def test_no_gradient_reaches_the_teacher():
    # Although its parameters would take one.
    student, teacher = Recorder(1), Recorder(2)
    for epoch in (0, 1):
        method = build(config())
        method.start_step(epoch, 9, teacher)
        terms = method(student, teacher, *random_batch(2, 7, 9))
        method.total(terms.losses).backward()
        assert not any(value.requires_grad for value in terms.fractions.values())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


# ---- the weighted sum and the schedule

def test_total_vector():
    facts = VECTORS['total']
    terms = {name: torch.tensor(value, dtype=torch.float64)
             for name, value in facts['terms'].items()}
    method = build(config())
    assert method.total(terms).item() == pytest.approx(facts['after'], abs=1e-12)
    warm = {name: value for name, value in terms.items() if not name.startswith('image')}
    assert method.total(warm).item() == pytest.approx(facts['warm_up'], abs=1e-12)


@pytest.mark.parametrize('name, weight', [
    ('supervised', 1 / 2), ('image1', 1 / 8), ('image2', 1 / 8), ('feature1', 1 / 8),
    ('feature2', 1 / 8), ('contrast_image', 0.005), ('contrast_feature', 0.005)])
def test_weight_of_each_term(name, weight):
    terms = {key: torch.tensor(float(key == name), dtype=torch.float64)
             for key in VECTORS['total']['terms']}
    assert build(config()).total(terms).item() == pytest.approx(weight, abs=1e-15)


@pytest.mark.parametrize('epochs, epoch, step, warm_up', [
    (0, 0, 0, True), (0, 0, 1, False), (0, 1, 50, False),
    (5, 0, 0, True), (5, 0, 1, True), (5, 4, 499, True), (5, 5, 500, False)])
def test_warm_up(epochs, epoch, step, warm_up):
    method, _, _, _, terms = recorded_step(epoch, step, warm_up_epochs=epochs, beta=0.9)
    assert method.keep_rate == (0 if warm_up else 0.9)
    assert ('image1' in terms.losses, 'image2' in terms.losses) == (not warm_up, not warm_up)


def test_keep_rate_default_is_the_papers():
    method = recorded_step(1, 9)[0]
    assert method.keep_rate == 0.996


def test_first_step_leaves_a_copy_of_the_student():
    # The teacher's own statistics may have moved: the copy is the student's, buffers included.
    student, teacher = network(1), ema.make_teacher(network(2))
    method = build(config())
    method.start_step(0, 0, teacher)
    method(student, teacher, *random_batch(1, 33, 33))
    ema.update(teacher, student, method.keep_rate)
    for name, tensor in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], tensor), name


@pytest.mark.parametrize('teacher_bn, modes', [
    ('batch_first_epoch', [True, True, False, False]), ('running', [False] * 4)])
def test_mode_of_the_teachers_batch_norm(teacher_bn, modes):
    method, teacher = build(config(teacher_bn=teacher_bn)), network(1)
    for was in (True, False):  # whatever an evaluation or a resumed run left
        for (epoch, step), mode in zip([(0, 0), (0, 9), (1, 10), (7, 70)], modes):
            teacher.train(was)
            method.start_step(epoch, step, teacher)
            assert all(module.training == mode for module in teacher.modules())


# ---- batches with nothing to learn from

def finite(student, losses):
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    build(config()).total(losses).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in student.parameters()
               if p.grad is not None)


@pytest.mark.parametrize('criterion', [CE, OHEM], ids=['CE', 'OHEM'])
def test_step_without_a_labeled_pixel(criterion):
    student, teacher = network(1), ema.make_teacher(network(1))
    x, u, v = random_batch(1, 33, 33)
    method = build(config(criterion=criterion))
    method.start_step(0, 9, teacher)
    terms = method(student, teacher, x._replace(label=torch.full_like(x.label, 255)), u, v)
    assert terms.losses['supervised'].item() == 0
    finite(student, terms.losses)


@pytest.mark.parametrize('changes, all_padding', [
    (dict(), True), (dict(selection='fixed', conf_thresh=1.0), False), (dict(gate=1.0), False)])
def test_step_that_selects_nothing(changes, all_padding):
    student, teacher = network(1), ema.make_teacher(network(1))
    x, u, v = random_batch(1, 33, 33)
    if all_padding:
        u, v = [part._replace(valid=torch.zeros_like(part.valid)) for part in (u, v)]
    method = build(config(**changes))
    method.start_step(1, 9, teacher)
    terms = method(student, teacher, x, u, v)
    for name in ('image1', 'image2', 'feature1', 'feature2'):
        assert terms.losses[name].item() == 0
    assert all(value.item() == 0 for name, value in terms.fractions.items() if name != 'agreement')
    assert not any((labels.selected & labels.valid).any() for labels in terms.labels.values())
    # The contrast needs neither labels nor validity.
    assert terms.losses['contrast_image'].item() > 0 < terms.losses['contrast_feature'].item()
    finite(student, terms.losses)


# ---- the supervised baseline

@pytest.mark.parametrize('criterion', [CE, OHEM], ids=['CE', 'OHEM'])
def test_supervised_is_the_labeled_loss_alone(criterion):
    cfg = Supervised.Config(nclass=CLASSES, criterion=criterion)
    student, (x, _, _) = Recorder(1), random_batch(2, 7, 9)
    method = Supervised(cfg)
    method.start_step(0, 0, None)
    terms = method(student, None, x, None, None)
    expected = slow_labeled_loss(Recorder(1)(x.image), x.label, cfg)
    close(terms.losses, {'supervised': expected})
    assert method.total(terms.losses).item() == pytest.approx(expected, rel=1e-9)
    assert len(student.calls) == 1 and torch.equal(student.calls[0][0], x.image)
    assert not Supervised.uses_unlabeled and not Supervised.uses_teacher
    assert terms[1:] == ({}, {}, {})
    method.start_step(0, 1, None, True)
    found = method(student, None, x, None, None).predictions
    assert list(found) == ['labeled']
    assert torch.equal(found['labeled'], Recorder(1)(x.image).argmax(1))


# ---- the folder of methods

METHOD = """
from dssn.methods import Terms
from dssn.methods.dssn import DSSN, DSSNConfig


class Doubled(DSSN):
    name = 'DoubledDSSN'

    def total(self, losses):
        return 2 * super().total(losses)
"""


def test_methods_of_the_folder():
    found = methods.all_methods()
    assert found['DSSN'] is DSSN and found['supervised'] is Supervised
    for name, method in found.items():
        assert method.name == name
        assert isinstance(method.uses_unlabeled, bool) and isinstance(method.uses_teacher, bool)
        assert issubclass(method.Config, Config)
        assert methods.find(name, 'here') is method


def test_a_file_in_the_folder_is_a_method(tmp_path, monkeypatch):
    known = set(methods.all_methods())
    (tmp_path / 'doubled_for_a_test.py').write_text(METHOD)
    monkeypatch.setattr(methods, '__path__', list(methods.__path__) + [str(tmp_path)])
    # What a file imports is not its own: DSSN is found once, by its own file.
    assert set(methods.all_methods()) == known | {'DoubledDSSN'}
    method = methods.find('DoubledDSSN', 'here')(config())
    terms = {name: torch.tensor(value) for name, value in VECTORS['total']['terms'].items()}
    assert method.total(terms).item() == pytest.approx(2 * VECTORS['total']['after'], rel=1e-6)
    assert methods.find('DSSN', 'here') is DSSN


@pytest.mark.parametrize('name, suggestion', [
    ('dssn', 'DSSN'), ('DSNN', 'DSSN'), ('Supervized', 'supervised')])
def test_unknown_method_is_an_error_that_suggests(name, suggestion):
    with pytest.raises(UserError) as error:
        methods.find(name, 'configs/mine.yaml')
    text = str(error.value)
    assert text.startswith('configs/mine.yaml: ') and f"'{name}'" in text
    assert f"did you mean '{suggestion}'?" in text
    for known in methods.all_methods():
        assert known in text
    assert '\n' not in text


# YAML reads `method: 3`, `method:`, `method: [DSSN]` and `method: {DSSN: 1}` as these.
@pytest.mark.parametrize('name', ['zzz', 3, None, ['DSSN'], {'DSSN': 1}], ids=str)
def test_a_name_that_is_no_method_is_an_error(name):
    with pytest.raises(UserError) as error:
        methods.find(name, 'configs/mine.yaml')
    text = str(error.value)
    assert text.startswith('configs/mine.yaml: ') and str(name) in text
    assert 'allowed: ' + ', '.join(sorted(methods.all_methods())) in text
    assert isinstance(name, (list, dict)) or 'did you mean' not in text
