"""The results of the published program, reproduced; see docs/fidelity.md.

`data/fidelity/golden.pt` holds numbers that the published program computed. It holds no inputs:
`data/fidelity/fill.py` rebuilds each input from its name. Every section compares one part of the
file. If this project departs from the published program on purpose, a docstring states it.

With `-s` a table of the largest deviations is printed. Legend: C classes, H x W pixels.
"""
import copy
import dataclasses
import inspect
import math
import operator
import os
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import PIL
import pytest
import torch
import torch.nn as nn
from PIL import Image
from torch.utils.data._utils.collate import default_collate

from dssn import config, ema, methods
from dssn.batch import MEAN, STD, Batch, Labeled, Unlabeled, normalise, to
from dssn.data import datasets, photometric as P, transforms as T, views
from dssn.data.files import FileProblem, open_mask
from dssn.data.lists import Sample, read_list
from dssn.data.loaders import Schedule, TrainLoader, eval_loader
from dssn.distributed import World
from dssn.engine import Run
from dssn.inference import evaluation
from dssn.losses import build_labeled_loss, masked_cross_entropy
from dssn.mixing import box_mask
from dssn.models import build_model
from dssn.models.weights import choose_weights, read_torch_file
from dssn.optim import build_optimizer, set_lr
from dssn.pseudo_labels import build_selection
from dssn.run.state import Progress
from dssn.update import Update
from tests.data.fidelity import fill

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


GOLDEN = read_torch_file(os.path.join(ROOT, 'tests', 'data', 'fidelity', 'golden.pt'))
MEASURED = {}  # {part: [number of values, largest deviation, tolerance]}


@pytest.fixture(scope='module', autouse=True)
def print_deviations():
    yield
    print(f'\n\n{"part":<46}{"values":>9}{"deviation":>11}{"tolerance":>11}')
    for part, (count, worst, tolerance) in MEASURED.items():
        print(f'{part:<46}{count:>9}{worst:>11.1e}{tolerance:>11.0e}')


def compare(part, found, expected, tolerance=0.0, relative=False):
    """Assert that numbers are equal within a tolerance, and record the deviation.

    Args:
        part: row of the table. found, expected: numbers, or lists or tensors of one shape.
        relative: whether deviations are fractions of the expected numbers.
    """
    found, expected = [torch.as_tensor(value, dtype=torch.float64) for value in (found, expected)]
    assert found.shape == expected.shape
    deviation = (found - expected).abs()
    if relative:
        deviation = torch.where(deviation == 0, deviation, deviation / expected.abs())
    worst = deviation.max().item()
    count, before, _ = MEASURED.get(part, (0, 0.0, 0.0))
    MEASURED[part] = [count + found.numel(), max(before, worst), tolerance]
    assert worst <= tolerance, f'{part}: {worst:.3g} off'


def settings(file, *assignments):
    """A config of this project, changed by `key=value` texts."""
    return config.load(os.path.join(ROOT, 'configs', file), assignments=assignments)


def published_settings(part):
    """The config that results from the published keys: all other keys have our defaults."""
    dataset = 'pascal' if part == 'losses_voc' else 'cityscapes'
    return config.from_dict(dict(GOLDEN[part]['config'], dataset=dataset), part)


def test_inputs():
    compare('inputs: sums', fill.recipe_checksum(), GOLDEN['recipe'], 1e-9, relative=True)


# ---- Networks

@pytest.fixture(scope='module', params=[
    pytest.param(name, marks=[pytest.mark.slow] * (name != 'resnet50'))
    for name in GOLDEN['models']])
def network(request):
    """A network of 21 classes with known weights, in float32 and float64, and its numbers."""
    single = build_model(settings('pascal.yaml', f'backbone={request.param}'))
    fill.fill_model(single)
    double = copy.deepcopy(single).double()
    start = copy.deepcopy(double.state_dict())

    def fresh(training):
        double.load_state_dict(start)
        return double.train(training)
    return SimpleNamespace(single=single, fresh=fresh, golden=GOLDEN['models'][request.param],
                           image=fill.image('models:input', 2, 97, 97))


def compare_tensor(found, expected, every=None):
    """Logits or features against their statistics and a sample, which is stored in float32."""
    assert list(found.shape) == expected['shape']
    compare('networks: means, deviations, maxima', [found.mean(), found.std(), found.abs().max()],
            [expected[name] for name in ('mean', 'std', 'absmax')], 1e-10)
    if every:
        compare('networks: logits', found[:, :, 1::every, 1::every], expected['sample'], 1e-6)
    if 'argmax' in expected:
        compare('networks: classes', found.argmax(1), expected['argmax'])


def compare_digest(part, digest, names, expected, tolerance):
    """{name: [mean, root mean square, weighted mean]} of the entries of a state_dict.

    A mean may be near 0. Deviations therefore count relative to the root mean square.
    """
    found = torch.tensor([digest[name] for name in names], dtype=torch.float64)
    size = expected[:, 1:2].clamp(min=1e-30)
    compare(part, found / size, expected / size, tolerance)


def compare_running_statistics(model, expected):
    state = model.state_dict()
    digest = fill.digest({name: state[name] for name in expected['names']})
    compare_digest('networks: running statistics', digest, expected['names'], expected['digest'],
                   2e-12)


def test_names_shapes_and_counts(network):
    single, golden = network.single, network.golden
    assert golden['names'] == [[name, list(value.shape), str(value.dtype)]
                               for name, value in sorted(single.state_dict().items())]
    backbone = len(list(single.backbone.parameters()))
    assert backbone == golden['parameters_backbone']
    assert len(list(single.parameters())) - backbone == golden['parameters_rest']
    assert sum(p.numel() for p in single.parameters()) == golden['elements']
    assert golden['bn_momentum'] == {name: module.momentum for name, module
                                     in single.named_modules() if hasattr(module, 'momentum')}


@torch.no_grad()
def test_evaluation_mode(network):
    golden, double = network.golden['eval'], network.fresh(training=False)
    compare_tensor(double(network.image), golden, every=3)
    for feature, name in zip(double.backbone(network.image), ('shallow', 'deep')):
        compare_tensor(feature, golden[name])
    # Only in a wide image the dilations 12 and 18 reach more than padding.
    compare_tensor(double(fill.image('models:wide', 1, 305, 321)), golden['wide'], every=8)


@torch.no_grad()
def test_training_mode(network):
    golden, double = network.golden['train'], network.fresh(training=True)
    compare_tensor(double(network.image), golden['plain'], every=3)
    compare_running_statistics(double, golden['after_plain'])


@torch.no_grad()
def test_perturbed_features(network):
    golden, double = network.golden['train'], network.fresh(training=True)
    with fill.fixed_channel_dropout() as calls:
        outputs = double(network.image, perturb=2)
    assert {str(channels): count for channels, count in calls.items()} == golden['dropout_calls']
    for logits, name in zip(outputs, ('plain', 'first', 'second')):
        compare_tensor(logits, golden['dropped'][name], every=12)
    compare_running_statistics(double, golden['after_dropped'])
    # Features are perturbed in evaluation mode, too.
    with fill.fixed_channel_dropout() as calls:
        double.eval()(network.image[:1, :, :33, :33], perturb=1)
    assert golden['dropout_calls_eval'] == {str(channels): n for channels, n in calls.items()}


@torch.no_grad()
@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_float32(network, mode):
    """Deviations are multiples of the published program's own error in float32."""
    golden = network.golden['eval'] if mode == 'eval' else network.golden['train']['plain']
    logits = copy.deepcopy(network.single).train(mode == 'train')(network.image.float())
    deviation = (logits[:, :, 1::3, 1::3] - golden['sample']) / golden['float32_error']
    compare('networks: logits in float32, multiples', deviation, 0 * deviation, 5)


# ---- Selection of pseudo-labels

@pytest.mark.parametrize('name', GOLDEN['mask'])
def test_selection(name):
    golden, logits = GOLDEN['mask'][name], fill.mask_cases()[name]
    compare('inputs: sums', logits.double().sum(), golden['input_sum'], 1e-9, relative=True)
    cfg = published_settings('losses_voc')
    selected = build_selection(cfg)(logits)
    compare('selection: pixels', selected, golden['mask'])
    compare('selection: fractions', selected.float().mean(), golden['ratio'], 1e-6)
    # A class selects pixels if its largest probability is above the gate.
    for label, chosen, peak, count in zip(logits.argmax(1), selected, golden['peak'],
                                          golden['classes_above_gate']):
        classes = label[chosen].unique()
        assert len(classes) == count
        assert torch.equal(classes, (peak > cfg.gate).nonzero()[:, 0])


# ---- Losses of steps whose logits are given

LOSSES = ('losses_voc', 'losses_city', 'losses_city_0.9')
TERMS = {'supervised': 'loss_x', 'image1': 'loss_u_s1', 'image2': 'loss_u_s2',
         'feature1': 'loss_u_w_fp', 'feature2': 'loss_u_w_Fp', 'contrast_image': 'loss_u_s_mse',
         'contrast_feature': 'loss_u_fp_mse'}


def boxes(name):
    """CutMix boxes of the recipe (top, bottom, left, right) in our form, (N, 4)."""
    sides = [box or (0, 0, 0, 0) for box in fill.BOXES[name]]
    return torch.tensor([(top, left, bottom - top, right - left)
                         for top, bottom, left, right in sides])


def as_batch(step):
    """A step of the recipe as a `Batch`."""
    index, both = torch.arange(fill.BATCH), (boxes('cutmix_box1'), boxes('cutmix_box2'))
    return Batch(Labeled(step['img_x'], step['mask_x'], index),
                 *[Unlabeled(step['img_u_w' + end], step['img_u_s1' + end], step['img_u_s2' + end],
                             step['ignore_mask' + end] != 255, *both, index)
                   for end in ('', '_mix')])


class Scripted(nn.Module):
    """Student and teacher in one: returns the logits that belong to the images it is given.

    `fed` gets the names of the inputs, as the published program's numbers have them.
    """

    def __init__(self, step):
        super().__init__()
        self.step, self.fed = step, []

    def forward(self, images, perturb=0, dropout=0.5, complementary=False):
        assert dropout == 0.5
        step = self.step
        if perturb:
            self.fed.append('student_plain_and_dropped')
            assert torch.equal(images, torch.cat([step['img_x'], step['img_u_w']]))
            return (torch.cat([step['pred_x'], step['pred_u_w']]),
                    *[torch.cat([step[f'drop{i}_x'], step[f'drop{i}_u']])[-perturb:]
                      for i in (1, 2)])
        strong = [fill.paste(step[f'img_u_s{i}'], step[f'img_u_s{i}_mix'], step[f'cutmix_box{i}'])
                  for i in (1, 2)]
        known = {'tea_u_w': step['img_u_w'], 'tea_mix': step['img_u_w_mix'],
                 'pred_s1': strong[0], 'pred_s2': strong[1]}
        found = [name for part in images.split(fill.BATCH) for name, image in known.items()
                 if torch.equal(part, image)]
        assert len(found) * fill.BATCH == len(images)
        self.fed += ['student_strong'] if found == ['pred_s1', 'pred_s2'] else found
        return torch.cat([step[name] for name in found])


def strong_labels(method, teacher, batch):
    """The teacher's labels of the strong views, for steps in which the method does not use them."""
    inside = [box_mask(box, (fill.SIZE, fill.SIZE)) for box in batch.unlabeled[4:6]]
    return dict(zip(('image1', 'image2'),
                    method.label_strong(teacher, batch.unlabeled, batch.partner, *inside)))


@pytest.mark.parametrize('part, name', [(part, name) for part in LOSSES
                                        for name in GOLDEN[part]['steps']])
def test_losses_of_a_step(part, name):
    """Departure: in warm-up L_s1 and L_s2 are not computed. Here they are computed for the test."""
    golden, cfg = GOLDEN[part]['steps'][name], published_settings(part)
    step = fill.loss_step(f'{GOLDEN[part]["tag"]}:{name}', cfg.nclass)
    for branch in golden['gradient_norm']:
        step[branch].requires_grad_()
    batch, method, networks = as_batch(step), methods.build(cfg), Scripted(step)
    epoch, number = map(int, name.split(':'))
    method.start_step(epoch, 8 * epoch + number, networks)
    terms = method(networks, networks, *batch)
    loss = method.total(terms.losses)
    loss.backward()
    assert (method.keep_rate, networks.training) == (golden['keep_rate'],
                                                     golden['teacher_training'])

    losses, labels = dict(terms.losses), dict(terms.labels)
    if method.warming_up:
        assert not {'image1', 'image2', 'tea_u_w', 'tea_mix'} & {*losses, *labels, *networks.fed}
        labels.update(strong_labels(method, networks, batch))
        for i in (1, 2):
            losses[f'image{i}'] = masked_cross_entropy(step[f'pred_s{i}'], *labels[f'image{i}'])
    assert sorted(networks.fed) == sorted(golden['fed'])
    if networks.training:  # each pass moves the running statistics
        teacher = [[name for name in fed if 'tea' in name] for fed in (networks.fed, golden['fed'])]
        assert teacher[0] == teacher[1]
    compare('losses: terms and total', [*[losses[ours].item() for ours in TERMS], loss.item()],
            [golden[name] for name in (*TERMS.values(), 'loss')], 3e-6, relative=True)
    compare('losses: selected fractions', terms.fractions['selected_feature'],
            golden['mask_ratio'], 1e-6)

    labels['weak'] = labels.pop('feature')
    for branch, ours in (('1', 'image1'), ('2', 'image2'), ('weak', 'weak')):
        pseudo = labels[ours]
        if f'pseudo_label_{branch}' in golden:
            compare('losses: pseudo-labels', pseudo.label, golden[f'pseudo_label_{branch}'])
            assert (~pseudo.valid).sum() == golden[f'ignored_{branch}']
        if f'selected_{branch}' in golden:
            compare('losses: selected pixels', pseudo.selected, golden[f'selected_{branch}'])
    norms = {branch: 0.0 if step[branch].grad is None else step[branch].grad.double().norm().item()
             for branch in golden['gradient_norm']}
    compare('losses: gradient norms', list(norms.values()),
            list(golden['gradient_norm'].values()), 3e-7, relative=True)
    assert golden['requires_grad'] == {
        'pred_u_w': norms['pred_u_w'] > 0, 'pred_u_w_fp': norms['drop1_u'] > 0,
        'pred_u_s1': norms['pred_s1'] > 0, 'mask_u_w': labels['weak'].selected.requires_grad}

    if name == '0:0':  # the line that the published program printed after its first step
        line, = GOLDEN[part]['printed']
        means = [losses['supervised'], (losses['image1'] + losses['image2']) / 2,
                 (losses['feature1'] + losses['feature2']) / 2]
        printed = [loss, *means, terms.fractions['selected_feature']]
        assert re.findall(r'\d\.\d+', line) == [f'{value.item():.3f}' for value in printed]


# ---- 16 optimizer steps

STEPS, STEPS_PER_EPOCH = 16, 8
FILES = {'student': '', 'teacher': 't_'}  # how names of the published program's files begin


def train():
    """The recorded training run with our `Update` and `evaluate`, in float64.

    Two ResNet-50s; 2 epochs of 8 steps of 2 + 2 images; both are evaluated after each epoch.

    Returns:
        (the numbers of each step, [{role: digest}] and [{role: mIoU}] of each epoch).
    """
    golden, steps, digests, miou, outputs = GOLDEN['training'], [], [], [], []
    cfg = settings('pascal.yaml', 'backbone=resnet50', f'lr={golden["lr"]}')
    student = build_model(cfg).double()
    teacher = ema.make_teacher(student)
    networks = {'student': student, 'teacher': teacher}
    for role, model in networks.items():
        fill.fill_model(model, role + ':', golden['classifier_gain'])
    optimizer = build_optimizer(student, cfg.lr, cfg.lr_multi, cfg.momentum, cfg.weight_decay)
    method = methods.build(cfg)
    update = Update(cfg, World(), method, student, teacher, optimizer, cfg.lr, STEPS)
    student.register_forward_hook(lambda *args: outputs.append(args[-1]))
    for step in range(STEPS):
        epoch, number = divmod(step, STEPS_PER_EPOCH)
        batch = as_batch(fill.train_step(f'training:{epoch}:{number}', 21))
        labels = strong_labels(method, copy.deepcopy(teacher), batch) if step == 0 else {}
        _, terms, loss, _ = update(batch, epoch, step)
        # The first step has no L_s1 and L_s2: they are computed from the student's last output.
        losses = {branch: masked_cross_entropy(logits, *labels[branch])
                  for branch, logits in zip(labels, outputs[-1].chunk(2))}
        outputs.clear()
        losses.update(terms.losses)
        steps.append({
            **{theirs: losses[ours].item() for ours, theirs in TERMS.items()}, 'loss': loss.item(),
            'mask_ratio': terms.fractions['selected_feature'].item(),
            'keep_rate': method.keep_rate, 'teacher_training': teacher.training,
            'teacher_requires_grad': any(p.requires_grad for p in teacher.parameters()),
            'lr': [group['lr'] for group in optimizer.param_groups]})
        if number == STEPS_PER_EPOCH - 1:
            digests.append({role: fill.digest(model.state_dict())
                            for role, model in networks.items()})
            scores, _ = evaluate_items(networks, cfg, fill.validation('training', 21,
                                                                      torch.float64))
            miou.append({role: score.miou for role, score in scores.items()})
    return steps, digests, miou


@pytest.fixture(scope='module')
def trained():
    with fill.fixed_channel_dropout():
        return train()


def compare_steps(part, found, expected, tolerance):
    names = [*TERMS.values(), 'loss']
    compare(part, [[step[name] for name in names] for step in found],
            [[step[name] for name in names] for step in expected], tolerance, relative=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # with the 16 steps: 80 s on a free core
def test_training_steps(trained):
    steps, golden = trained[0], GOLDEN['training']['steps']
    compare_steps('training: terms of 16 steps', steps, golden, 1e-11)
    for ours, theirs in zip(steps, golden):
        assert set(ours) == set(theirs)
        for name in ('teacher_training', 'teacher_requires_grad', 'keep_rate'):
            assert ours[name] == theirs[name]
        # Ours is float32, as all fractions of the log.
        compare('training: selected fractions', ours['mask_ratio'], theirs['mask_ratio'], 1e-6)
        compare('learning rates', ours['lr'], theirs['lr'], 1e-14, relative=True)
    # The published program's steps from a student scaled by 1 + 1e-10: rounding does not grow.
    nudged = GOLDEN['training_nudged']['steps']
    compare_steps('training: the same, student scaled by 1+1e-10', steps, nudged, 5e-9)
    assert [step['lr'] for step in nudged] == [step['lr'] for step in golden]


@pytest.mark.slow
@pytest.mark.parametrize('epoch', [0, 1])
@pytest.mark.parametrize('role', FILES)
def test_trained_networks(trained, role, epoch):
    """Every parameter and statistic after an epoch, and the mIoU.

    Departure: the teacher's `num_batches_tracked` are copies of the student's. The published
    program averages them and cuts the result to a whole number. Nothing uses them.
    """
    golden, found = GOLDEN['training'], trained[1][epoch][role]
    names, expected = golden['names'], golden['digests'][f'{role}_after_epoch_{epoch}']
    assert names == sorted(found)
    counter = torch.tensor([name.endswith('num_batches_tracked') for name in names])
    compare_digest('training: weights and statistics', found,
                   [name for name in names if not name.endswith('num_batches_tracked')],
                   expected[~counter], 1e-12)
    passes = golden['num_batches_tracked'][f'latest.pth:{epoch}']
    assert {found[name][0] for name in names if name.endswith('num_batches_tracked')} == {passes}
    published = golden['num_batches_tracked'][f'{FILES[role]}latest.pth:{epoch}']
    assert (expected[counter][:, 0] == published).all()
    assert published == passes or (role, epoch) == ('teacher', 1)
    saved = {(name, at): miou for name, at, miou in golden['saved']}
    for name in ('latest.pth', 'best.pth'):
        compare('training: mIoU', trained[2][epoch][role], saved[FILES[role] + name, epoch], 5e-12,
                relative=True)
    assert golden['miou_student'][epoch] == saved['latest.pth', epoch]


@pytest.mark.parametrize('part', ['training', *LOSSES])
def test_best_checkpoints(part):
    """Weights become the best ones only with a higher mIoU than before, not with the same."""
    saved, progress, best = GOLDEN[part]['saved'], Progress(), []
    networks = SimpleNamespace(by_role=lambda: {role: nn.Identity() for role in FILES})
    run = SimpleNamespace(cfg=settings('pascal.yaml'), progress=progress, networks=networks,
                          world=World(), saver=SimpleNamespace(waiting={}))
    for epoch in (0, 1):
        scores = {role: SimpleNamespace(miou=miou) for role, start in FILES.items()
                  for name, at, miou in saved if (name, at) == (start + 'latest.pth', epoch)}
        Run.keep_best(run, scores, scores)
        best += [[name, epoch, file['miou']] for name, file in run.saver.waiting.items()]
        run.saver.waiting.clear()
    assert best == [entry for entry in saved if 'best' in entry[0]]


@pytest.mark.parametrize('part', LOSSES)
def test_format_of_checkpoints(part):
    golden = GOLDEN[part]
    content = dict.fromkeys(golden['checkpoint_keys'], 1)
    content['model'] = {golden['checkpoint_prefix'] + '.weight': torch.ones(1)}
    assert choose_weights(content, 'best.pth', ['weight']) == ({'weight': torch.ones(1)}, 'student')


# ---- OHEM, teacher, rates

@pytest.mark.parametrize('golden', GOLDEN['ohem'], ids=lambda golden: str(golden['case']))
def test_ohem(golden):
    """Departures: min_kept is 100000 by default, not 256. If no pixel is labeled, the loss is 0,
    not NaN. There is no `use_weight`, which no published config sets."""
    keys, logits, target = fill.ohem_case(golden['case'])
    if keys.pop('use_weight', False):
        pytest.skip('use_weight has no counterpart here')
    cfg = config.from_dict({'dataset': 'cityscapes', 'nclass': 19, 'criterion': {
        'name': 'OHEM', 'kwargs': {'min_kept': 256, **keys}}}, 'test')
    loss = build_labeled_loss(cfg)(logits.requires_grad_(), target)
    loss.backward()
    assert (target != 255).sum() == golden['valid'] and target.numel() == golden['pixels']
    if golden['valid'] == 0:
        assert math.isnan(golden['value']) and loss == 0
    else:
        compare('OHEM: losses', loss.item(), golden['value'], 2e-6, relative=True)
    compare('OHEM: gradient norms', logits.grad.double().norm(), golden['gradient_norm'], 1e-6,
            relative=True)
    compare('OHEM: pixels with gradient', (logits.grad != 0).any(1).sum(),
            golden['pixels_with_gradient'])


@pytest.mark.parametrize('golden', GOLDEN['teacher']['updates'], ids=lambda golden: (
    f'{golden["keep_rate"]} x {golden["rounds"]}'))
def test_teacher(golden):
    student, teacher = fill.tiny('ema:student:', 7), fill.tiny('ema:teacher:', 3)
    for _ in range(golden['rounds']):
        ema.update(teacher, student, golden['keep_rate'])
    found = teacher.state_dict()
    assert set(found) == set(golden['teacher'])
    for name, value in golden['teacher'].items():
        if value.is_floating_point():
            compare('teacher: weights and statistics', found[name], value, 1e-7)


def test_counters_of_the_teacher():
    """Departure: `num_batches_tracked` is copied; the published program does so at rate 0 only."""
    for rate, old, new, after in GOLDEN['teacher']['num_batches_tracked']:
        student, teacher = fill.tiny('ema:student:', new), fill.tiny('ema:teacher:', old)
        ema.update(teacher, student, rate)
        assert teacher[1].num_batches_tracked == new
        assert rate or after == new


@pytest.mark.parametrize('part, file', [('voc', 'pascal.yaml'), ('city', 'cityscapes.yaml')])
def test_rates(part, file):
    golden, cfg = GOLDEN['lr_' + part], settings(file)
    assert (cfg.lr, cfg.lr_multi) == (golden['lr'], golden['lr_multi'])
    model = nn.ModuleDict({'backbone': nn.Conv2d(3, 2, 1), 'head': nn.Conv2d(2, 2, 1)})
    optimizer = build_optimizer(model, cfg.lr, cfg.lr_multi, cfg.momentum, cfg.weight_decay)
    used = []
    for step in range(golden['total']):
        set_lr(optimizer, step, golden['total'], cfg.lr, cfg.lr_multi, cfg.lr_power)
        used.append([group['lr'] for group in optimizer.param_groups])
    compare('learning rates', used, golden['used'], 1e-14, relative=True)
    for step, rates in golden['at'].items():
        compare('learning rates', used[int(step)], rates, 1e-14, relative=True)
    assert golden['printed_lr'] == [f'{rate:.5f}' for rate, _ in used[::10]]
    for place in [name for name in GOLDEN if name.startswith(('lr_' + part, 'losses_' + part))]:
        for group, expected in zip(optimizer.param_groups, GOLDEN[place]['optimizer']):
            assert {name: group[name] for name in expected} == expected


# ---- Evaluation

def evaluate_items(networks, cfg, items):
    """`evaluate` on (image, label, name) items in place of files; images are normalised already.

    Returns:
        ({role: Scores}, [{role: prediction (H, W)} of each item]).
    """
    loaded, predictions = [(image[0], label[0], i) for i, (image, label, _) in enumerate(items)], []
    samples = [Sample(str(i), str(i), 'item') for i in range(len(items))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, 'eval_loader', lambda *_: loaded)
        patch.setattr(evaluation, 'normalise', lambda images: images)
        found = evaluation.evaluate(networks, cfg, samples, World(), absent='zero',
                                    on_image=lambda *seen: predictions.append(seen[3]))
    return found, predictions


@pytest.mark.parametrize('golden', GOLDEN['evaluation']['counts'], ids=lambda case: case['name'])
def test_counts(golden, tmp_path):
    """Departure: a mask with labels that are neither a class nor 255 is refused. The published
    program counts label 21 as class 20, and counts predictions at higher labels."""
    predicted, target = fill.miou_case(golden['name'])
    if golden['name'] != 'usual':
        Image.fromarray(target[0].byte().numpy()).save(str(tmp_path / 'mask.png'))
        with pytest.raises(FileProblem, match='21'):
            open_mask(str(tmp_path), Sample('image.jpg', 'mask.png', 'a list'), 21, (50, 40))
        return
    matrix = sum(evaluation.confusion_matrix(*pair, 21) for pair in zip(target, predicted))
    for name, counts in (('intersection', matrix.diag()), ('target', matrix.sum(1)),
                         ('union', matrix.sum(0) + matrix.sum(1) - matrix.diag())):
        compare('evaluation: pixel counts', counts, golden[name])
    score = evaluation.scores(matrix, absent='zero')
    compare('evaluation: IoU and mIoU', [*score.iou, score.miou],
            [*golden['iou'], golden['miou']], 5e-11, relative=True)


@pytest.mark.parametrize('protocol', ['original', 'center_crop'])
def test_whole_images_and_centre_crops(protocol):
    """Departure: the IoU of a class that never occurs (19 and 20) is None; it is 0 in the mean."""
    golden = GOLDEN['evaluation']['evaluate_' + protocol]
    cfg = settings('pascal.yaml', 'crop_size=17', f'protocol={protocol}')
    # The images are logits.
    scores, _ = evaluate_items({'student': nn.Identity()}, cfg, fill.evaluation_items())
    iou, miou = scores['student'].iou, scores['student'].miou
    assert iou[19:] == [None, None]
    compare('evaluation: IoU and mIoU', [*iou[:19], 0, 0, miou], [*golden['iou'], golden['miou']],
            5e-11, relative=True)


def test_sliding_window():
    golden = GOLDEN['evaluation']['sliding']
    cfg = settings('cityscapes.yaml', 'backbone=resnet50', 'crop_size=97')
    model = fill.fill_model(build_model(cfg)).double()
    image, label = fill.sliding_item()
    windows = []

    def predict(cfg, image):
        scores, (prediction,) = evaluate_items({'student': model}, cfg, [(image, label, '0')])
        return scores['student'].miou, prediction['student']
    hook = model.register_forward_pre_hook(
        lambda _, inputs: windows.append(list(inputs[0].shape[2:])))
    miou, prediction = predict(cfg, image)
    hook.remove()
    assert windows == golden['windows']
    compare('evaluation: pixels, sliding window', prediction, golden['argmax'])
    assert prediction.unique().tolist() == golden['classes']
    compare('evaluation: IoU and mIoU', miou, golden['miou'], 5e-11, relative=True)
    _, whole = predict(dataclasses.replace(cfg, protocol='original'), image)
    compare('evaluation: pixels, whole image', (whole != prediction).sum(),
            golden['whole_image_differs_at'])
    model.float()
    _, single = predict(cfg, image.float())
    # Rounding may change a few pixels.
    compare('evaluation: pixels, float32', (single != prediction).sum(),
            golden['float32_differs_at'], 3)


# ---- Augmentation: sizes, places, padding, boxes

GEOMETRY, DECLARED, STRONG = [GOLDEN['augmentation_voc'][name]
                              for name in ('geometry', 'declared', 'strong')]
exact_pixels = pytest.mark.skipif(
    PIL.__version__.split('.')[0] != GOLDEN['made_with']['pillow'].split('.')[0],
    reason=f'the pixels are those of Pillow 13, this is Pillow {PIL.__version__}')


class Random:
    """A random generator that records the bounds it is given.

    Args:
        fractions: if given, `random` returns them one after another, and `integers` returns the
            number at the first fraction of the way between its bounds.
    """

    def __init__(self, *fractions):
        self.fractions, self.asked, self.rng = list(fractions), [], np.random.default_rng(0)

    def __getattr__(self, name):
        return getattr(self.rng, name)

    def random(self):
        return self.fractions.pop(0) if self.fractions else self.rng.random()

    def uniform(self, low, high):
        self.asked.append([low, high])
        return self.rng.uniform(low, high)

    def integers(self, low, high, *size, endpoint=False):
        if not self.fractions:
            return self.rng.integers(low, high, *size, endpoint=endpoint)
        self.asked.append([low, high if endpoint else high - 1])
        return low + int(self.fractions[0] * (self.asked[-1][1] - low))


def compare_draws(found, expected, extremes=True):
    """Mean, deviation and extremes of random numbers, as fractions of their range."""
    found = np.array(found, float)
    numbers = {'mean': found.mean(), 'std': found.std(ddof=1)}
    if extremes:
        numbers.update(min=found.min(), max=found.max())
    size = (expected['max'] - expected['min']) or 1.0
    compare('augmentation: random numbers', [number / size for number in numbers.values()],
            [expected[name] / size for name in numbers], 0.04)


def compare_frequencies(found, expected):
    """{case: number of times} against the published frequencies."""
    assert set(found) <= set(expected)
    compare('augmentation: frequencies', [found.get(case, 0) / sum(found.values())
                                          for case in expected], list(expected.values()), 0.04)


def compare_frequency(found, expected):
    """List of bool against the published frequency of True."""
    compare('augmentation: frequencies', np.mean(found), expected, 0.04)


def as_array(image):
    return torch.from_numpy(np.array(image))


def test_programs_have_the_same_views():
    """The published programs for Pascal and Cityscapes differ only in the strong pool."""
    city = GOLDEN['augmentation_city']
    assert city['declared'] == DECLARED
    for name, value in GEOMETRY.items():
        same = torch.equal if torch.is_tensor(value) else operator.eq
        assert same(city['geometry'][name], value)


def test_sizes():
    for case in GEOMETRY['resize']:
        rng = Random(case['share'])
        compare('augmentation: sizes', T.random_size(case['from'], rng), case['to'])
        assert rng.asked == [case['long_side_range']] and case['mask_to'] == case['to']


def test_places_and_padding():
    """Departure: padding of unlabeled images is 255 and becomes `valid`, not 254."""
    for case in GEOMETRY['crop']:
        (width, height), side, rng = case['from'], case['size'], Random(0.0)
        left, top = T.random_place((width, height), side, rng)
        assert rng.asked == case['asked']
        window = T.Window(width, height, left, top, side, mirrored=False)
        image = as_array(T.crop_image(Image.new('RGB', (width, height), (9, 9, 9)), window))
        mask = as_array(T.crop_mask(Image.new('L', (width, height), 1), window))
        padding = torch.ones(side, side, dtype=torch.bool)
        padding[:case['filled_rows'], :case['filled_columns']] = False
        assert (image[~padding] == 9).all() and (mask[~padding] == 1).all()
        assert image[padding].unique().tolist() == case['padding_image']
        assert case['padding_label'] == case['ignore']
        for found in (mask, as_array(T.padding_mask(window))):
            compare('augmentation: padding', found == 255, padding)


@exact_pixels
def test_resized_image_and_mask():
    window = T.Window(45, 35, 0, 0, 45, mirrored=False)
    image = as_array(T.crop_image(fill.picture(31, 24), window))
    mask = as_array(T.crop_mask(fill.picture(31, 24, 'labels').convert('L'), window))
    compare('augmentation: pixels', image[:35], GEOMETRY['resized_picture'])
    compare('augmentation: pixels', mask[:35], GEOMETRY['resized_labels'])


def test_normalisation():
    pixels = torch.tensor([[0, 255, 128], [0, 255, 64], [0, 255, 32]], dtype=torch.uint8)
    compare('augmentation: normalised pixels', normalise(pixels.view(1, 3, 1, 3))[0],
            GEOMETRY['normalized'], 5e-7)


def test_flips_and_boxes():
    golden, rng = GEOMETRY['cutmix'], np.random.default_rng(0)
    compare_frequency([T.random_flip(rng) for _ in range(2000)], GEOMETRY['flip'])
    size = golden['size']
    boxes = [views.cutmix_box(size, rng) for _ in range(4000)]
    compare_frequency([box == views.NO_BOX for box in boxes], golden['empty'])
    top, left, height, width = np.array([box for box in boxes if box != views.NO_BOX]).T
    compare_frequency(left == 0, golden['touches_left_edge'])
    for name, values in (('area_share', height * width / size ** 2), ('height', height),
                         ('height_over_width', height / width), ('width', width), ('top', top),
                         ('left', left)):
        compare_draws(values, golden[name], extremes=name == 'area_share')


# ---- Augmentation: strong views

def test_bounds_of_random_numbers(monkeypatch):
    jitter, blur, scale, chances = Random(), Random(), Random(0.0), {}
    cfg = settings('pascal.yaml')
    P.color_jitter(jitter, cfg.jitter_strength, cfg.jitter_hue)
    P.blur(blur, cfg.blur_sigma)
    assert blur.asked == [DECLARED['blur_sigma']]
    assert jitter.asked == [DECLARED['jitter_' + name]
                            for name in ('brightness', 'contrast', 'saturation', 'hue')]
    T.random_size((1000, 500), scale, cfg.scale_range)
    assert scale.asked == [[1000 * ratio for ratio in DECLARED['resize_ratio']]]
    assert [T.random_flip(Random(DECLARED['flip'] + x)) for x in (-1e-9, 1e-9)] == [True, False]
    ratio = inspect.signature(views.cutmix_box).parameters['ratio'].default
    assert [cfg.cutmix_probability, cfg.cutmix_area, ratio] == [
        DECLARED['cutmix'], DECLARED['cutmix_area'], pytest.approx(DECLARED['cutmix_ratio'])]
    assert [*MEAN, *STD] == DECLARED['mean'] + DECLARED['std']
    monkeypatch.setattr(P, 'sometimes', lambda draw, chance, *rest: chances.update(
        {draw.__name__: chance}) or [])
    views.strong_operations(None, dataclasses.replace(cfg, num_aug=0))
    assert chances == {'color_jitter': DECLARED['jitter'], 'grayscale': DECLARED['grayscale'],
                       'blur': DECLARED['blur']}


POOL = dict(P.STRONG_POOL)


def test_operations_of_the_pool():
    golden, rng = STRONG['chain'], np.random.default_rng(0)
    assert {*POOL, 'chain', 'invert_in_list'} == set(STRONG) and not STRONG['invert_in_list']
    chains = [[name for name, _ in P.strong_pool(rng, 3)] for _ in range(2000)]
    assert {len(chain) for chain in chains} == set(DECLARED['strong_operations'])
    compare_frequencies(Counter(str(len(chain)) for chain in chains), golden['count_frequency'])
    compare_frequencies(Counter(sum(chains, [])), golden['operation_share'])
    compare_frequency([len(set(chain)) < len(chain) for chain in chains],
                      golden['with_a_repeated_operation'])


@exact_pixels
@pytest.mark.parametrize('name', POOL)
def test_pixels_of_an_operation(name):
    for case in STRONG[name]['outputs']:
        found = P.apply([P.Operation(name, case['value'])], fill.picture())
        compare('augmentation: pixels', as_array(found), case['output'])


@pytest.mark.parametrize('name', POOL)
def test_strengths(name):
    """Departure: factors are 0.05 + 0.9 u, not 0.95 - 0.9 u, with u uniform in [0, 1)."""
    golden, rng, strength = STRONG[name], Random(), POOL[name]
    if 'drawn' not in golden:
        assert strength(rng) is golden['scale'] is None
        return
    drawn = [strength(rng) for _ in range(golden['drawn']['count'])]
    compare_draws(drawn, golden['drawn'])
    if golden.get('whole_numbers'):
        assert {type(number) for number in drawn} == {int}
        # All values are possible; a few may not occur.
        assert golden['distinct'] - 3 <= len(set(drawn)) <= golden['distinct']
    else:
        assert rng.asked == [golden['scale']] * len(drawn)
    if 'frequency' in golden:
        compare_frequencies(Counter(map(str, drawn)), golden['frequency'])
    if name in ('solarize', 'hue'):  # from the same uniform number
        for case in golden['outputs']:
            sign = [float(case['negative'])] if name == 'hue' else []
            compare('augmentation: strengths', strength(Random(*sign, case['uniform'])),
                    case['value'])


# ---- Augmentation: whole items

STAGES = {'color_jitter': 'jitter', 'grayscale': 'grayscale', 'blur': 'blur',
          'strong_pool': 'strong'}
JITTER = {'brightness': 'jitter_brightness', 'contrast': 'jitter_contrast',
          'color': 'jitter_saturation', 'hue': 'jitter_hue'}


def make_items(cfg, count, patch):
    """Items of a data set of one image of 40 x 30 pixels, and what was sampled for them.

    Strong operations are sampled but not applied.

    Returns:
        ([Batch], [Window], [{stage: operations} of a strong view], the same for partners).
    """
    fill.picture(40, 30).save(os.path.join(cfg.data_root, 'image.png'))
    Image.new('L', (40, 30), 3).save(os.path.join(cfg.data_root, 'mask.png'))
    windows, strong, partners, stages, random_window = [], [], [], {}, T.random_window

    def recorded(name, draw):
        def operations(*args):
            stages[name] = draw(*args)
            return list(stages[name])
        return operations

    def window(*args):
        windows.append(random_window(*args))
        return windows[-1]

    def apply(operations, image, box):
        assert operations == sum(stages.values(), [])
        (partners if box else strong).append(dict(stages))
        stages.clear()
        top, left, height, width = box or (0, 0, image.height, image.width)
        return image.crop((left, top, left + width, top + height))
    for name in STAGES:
        patch.setattr(P, name, recorded(name, getattr(P, name)))
    patch.setattr(T, 'random_window', window)
    patch.setattr(P, 'apply', apply)
    samples = [Sample('image.png', 'mask.png', 'a list')]
    train_set = datasets.TrainSet(cfg, samples, samples)
    items = [train_set[datasets.RowIndices(0, i, 0, 0, i)] for i in range(count)]
    return items, windows, strong, partners


@pytest.mark.parametrize('part, file', [('voc', 'pascal.yaml'), ('city', 'cityscapes.yaml')])
def test_items(part, file, tmp_path, monkeypatch):
    """Departures: images are bytes and are normalised on the device; padding is `valid`."""
    golden = GOLDEN['augmentation_' + part]['items']
    cfg = settings(file, f'crop_size={golden["crop"]}', f'data_root={tmp_path}')
    items, windows, strong, partners = make_items(cfg, golden['items'], monkeypatch)
    # Labeled image, unlabeled image, partner; two strong views; the partner's only in the boxes.
    assert len(windows) == 3 * golden['items'] and len(strong) == golden['views']
    boxes = torch.stack([box for item in items for box in item.unlabeled[4:6]])
    assert len(partners) == (boxes != 0).any(1).sum()
    crop, probability = golden['cutmix_call']
    compare_frequency((boxes == 0).all(1).tolist(), 1 - probability)
    assert (boxes[:, :2] + boxes[:, 2:]).max() in range(crop - 3, crop + 1)
    compare_frequency([window.mirrored for window in windows], golden['flip'])
    compare_draws([max(window[:2]) for window in windows], golden['long_side'])
    weak = torch.stack([item.unlabeled.weak for item in items])
    assert weak.shape[2:] == items[0].unlabeled.strong1.shape[1:] == (crop, crop)
    compare('augmentation: normalised pixels', normalise(weak).min(), golden['weak_minimum'], 5e-7)
    labels = torch.stack([item.labeled.label for item in items])
    assert labels.unique().tolist() == golden['labelled_values']
    valid = torch.stack([item.unlabeled.valid for item in items])
    assert torch.where(valid, 0, 255).unique().tolist() == golden['ignore_values']
    images = to(default_collate(items[:2]), torch.device('cpu')).unlabeled[:3]
    assert [str(image.dtype) for image in images] == golden['dtypes'][:3]

    # What is sampled for a strong view.
    for stage in ('color_jitter', 'grayscale', 'blur'):
        compare_frequency([stage in view for view in strong], golden[STAGES[stage]])
    jitters = [view['color_jitter'] for view in strong if 'color_jitter' in view]
    compare_frequency(['color_jitter' in first and 'color_jitter' in second for first, second
                       in zip(strong[::2], strong[1::2])], golden['jitter_in_both_views'])
    assert {len(jitter) for jitter in jitters} == set(golden['jitter_operations'])
    compare_frequencies(Counter(JITTER[jitter[0].name] for jitter in jitters),
                        golden['jitter_first'])
    for ours, theirs in JITTER.items():
        strengths = np.array([dict(jitter)[ours] for jitter in jitters])
        # Hue is in whole steps of the 8-bit circle.
        compare_draws(strengths / 255 if ours == 'hue' else strengths, golden[theirs])
    compare_draws([view['blur'][0].strength for view in strong if 'blur' in view],
                  golden['blur_sigma'])
    compare_draws([len(view.get('strong_pool', [])) for view in strong],
                  golden['strong_operations_per_view'])
    # Stages come in the order of the longest view. Other views leave some out.
    longest = list(max(strong, key=len))
    assert golden['order'] == [' '.join(STAGES[name] for name in longest)]
    assert all(list(view) == [name for name in longest if name in view] for view in strong)


# ---- Order of images

def labeled_partners(orders):
    """The largest number of labeled images that an unlabeled image meets."""
    met = {}
    for labeled, unlabeled in zip(sum(orders['labelled'], []), sum(orders['unlabelled'], [])):
        met.setdefault(unlabeled, set()).add(labeled)
    return max(map(len, met.values()))


def test_order_of_images(tiny_world):
    """Departure: labeled and unlabeled images have independent orders.

    In the published program both lists have one order, so an unlabeled image meets the same labeled
    image in every epoch. Its random generator is another one, so the orders themselves cannot be
    equal. The test compares their properties.
    """
    golden = GOLDEN['order']
    cfg = tiny_world(n_labeled=golden['labelled_images'], n_unlabeled=golden['unlabelled_images'],
                     batch_size=golden['batch'], cutmix_partner='same').load()
    loader = TrainLoader(cfg, read_list(cfg.labeled_id_path),
                         read_list(cfg.unlabeled_id_path, masks=False))
    steps = golden['steps_per_epoch']
    assert loader.steps_per_epoch == steps
    batches = [batch for epoch in range(3) for batch in loader.batches(epoch)]
    found = {'labelled': [batch.labeled.index.tolist() for batch in batches],
             'unlabelled': [batch.unlabeled.index.tolist() for batch in batches]}
    for role, images in (('labelled', range(5)), ('unlabelled', range(20))):
        for order in (found[role], golden[role]):
            epochs = [sum(order[start:start + steps], []) for start in range(0, 3 * steps, steps)]
            assert len(order) == 3 * steps and len(set(map(str, epochs))) == 3
            # Unlabeled images come once in an epoch, labeled ones four times.
            assert all(Counter(epoch) == dict.fromkeys(images, 20 // len(images))
                       for epoch in epochs)
    assert golden['labelled_partner_never_changes'] == (labeled_partners(golden) == 1)
    assert labeled_partners(found) > 1
    pairs = [(batch.unlabeled, batch.partner) for batch in batches]
    assert golden['mixing_is_same_images'] == all(torch.equal(u.index, v.index) for u, v in pairs)
    assert golden['mixing_is_same_view'] == sum(torch.equal(u.weak, v.weak) for u, v in pairs)
    # A labeled list is repeated to the length of the unlabeled one.
    assert Schedule(dataclasses.replace(cfg, batch_size=1), 3, 7).steps_per_epoch == \
        GOLDEN['augmentation_voc']['items']['labelled_ids_for_nsample_7']


def test_evaluation_images_of_processes(tiny_world):
    """Departure: each image is evaluated once. The published program repeats images if their
    number is not a multiple of the number of processes."""
    golden = GOLDEN['order']['validation_of_10_on_4']
    cfg = tiny_world(n_val=10).load()
    samples = read_list(cfg.val_id_path)
    parts = [[int(position) for _, _, position in eval_loader(cfg, samples, rank, 4)]
             for rank in range(4)]
    assert sorted(sum(parts, [])) == list(range(10))
    assert set(sum(golden, [])) == set(range(10)) and sum(map(len, golden)) == 12
