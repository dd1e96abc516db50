"""The keys for ablations: defaults as published, limits, and each does what its help states."""
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from test_methods import Recorder, random_batch

from dssn import config, ema, methods, optim
from dssn.data import datasets
from dssn.data.datasets import RowIndices
from dssn.data.lists import read_list
from dssn.data.views import NO_BOX, cutmix_box, strong_operations
from dssn.distributed import World
from dssn.engine import start
from dssn.errors import UserError
from dssn.methods.dssn import DSSNConfig
from dssn.models.segmentation import perturbed
from dssn.networks import Networks
from dssn.tools.experiments import oracles  # noqa: F401, registers its methods
from dssn.tools.experiments.grid import assignment_text

with open(os.path.join(os.path.dirname(__file__), 'data', 'augmentation_facts.json')) as file:
    COMMON = json.load(file)['common']

SGD = {'lr_power': 0.9, 'momentum': 0.9, 'weight_decay': 1e-4}
BASE = {'scale_range': COMMON['resize_ratio']}
STRONG = {'jitter_probability': COMMON['jitter'],
          'jitter_strength': COMMON['jitter_contrast'][1] - 1,
          'jitter_hue': COMMON['jitter_hue'][1], 'grayscale_probability': COMMON['grayscale'],
          'blur_probability': COMMON['blur'], 'blur_sigma': COMMON['blur_sigma'],
          'cutmix_probability': COMMON['cutmix'], 'cutmix_area': COMMON['cutmix_area']}
FEATURE = {'feature_dropout': 0.5}
KEYS = {'supervised': {**SGD, **BASE}, 'fixmatch': {**SGD, **BASE, **STRONG},
        'unimatch': {**SGD, **BASE, **STRONG, **FEATURE},
        'unimatch_v2': {**SGD, **BASE, **STRONG},
        'DSSN': {**SGD, **BASE, **STRONG, **FEATURE, 'contrast_weight': 0.01}}
KEYS['supervised_strong_views'] = KEYS['oracle_labels'] = KEYS['DSSN']


@pytest.mark.parametrize('method', KEYS)
def test_defaults_are_the_published_constants_and_keys_without_effect_are_refused(
        tiny_world, method):
    world = tiny_world(method=method)
    cfg = world.load()
    for name, default in KEYS['DSSN'].items():
        if name in KEYS[method]:
            assert getattr(cfg, name) == default, name
            assert name in cfg.keys('result')  # reports compare it, and a resumed run keeps it
            assert f'  {name} (' in config.help_text(methods.find(method, ''))
        else:
            with pytest.raises(UserError, match=f"'{name}' has no effect with method {method}"):
                config.load(world.config_path, None, [f'{name}={assignment_text(default)}'])


@pytest.mark.parametrize('text, words', [
    ('momentum=1', 'at least 0 and below 1'), ('momentum=-0.1', 'at least 0'),
    ('weight_decay=-1e-4', 'at least 0 and at most 1'), ('weight_decay=2', 'at most 1'),
    ('lr_power=-1', 'at least 0'), ('lr_power=.inf', 'a number'),
    ('scale_range=[0, 1]', 'at most 10 and above 0'), ('scale_range=[2, 0.5]', 'smaller value'),
    ('scale_range=[0.5, 11]', 'at most 10'), ('scale_range=0.5', 'a list of a number'),
    ('scale_range=[1]', '2 entries'), ('jitter_probability=1.1', 'at most 1'),
    ('jitter_strength=1.5', 'at most 1'), ('jitter_hue=0.6', 'at most 0.5'),
    ('grayscale_probability=-1', 'at least 0'), ('blur_probability=yes', 'a number'),
    ('blur_sigma=[2, 0.1]', 'smaller value'), ('blur_sigma=[-1, 1]', 'at least 0'),
    ('cutmix_probability=2', 'at most 1'), ('cutmix_area=[0, 0.4]', 'above 0'),
    ('cutmix_area=[0.4, 0.1]', 'smaller value'), ('cutmix_area=[0.1, 0.9]', 'at most 0.8'),
    ('cutmix_area=[0.001, 0.4]', 'below 1 pixel; set a smallest area of at least 0.0031'),
    ('feature_dropout=1', 'below 1'), ('contrast_weight=0', 'contrast: false'),
    ('contrast=false contrast_weight=1', 'contrast_weight = 1.0 has no effect with contrast = f'),
    ('image_views=1 feature_views=1 contrast_weight=1', 'no effect with fewer than two views'),
    ('feature_views=0 feature_dropout=0.1', 'feature_dropout = 0.1 has no effect with feature_v'),
])
def test_values_out_of_range_are_refused_by_name(tiny_world, text, words):
    assignments = text.replace(', ', ',').split()
    with pytest.raises(UserError) as caught:
        config.load(tiny_world().config_path, None, assignments)
    message = str(caught.value)
    assert words in message and assignments[-1].split('=')[0] in message


def test_the_smallest_legal_area_leaves_every_box_a_pixel(tiny_world):
    cfg = tiny_world(cutmix_area=[0.0031, 0.0031]).load()  # the remedy of the message above
    boxes = {cutmix_box(33, np.random.default_rng(seed), 1, cfg.cutmix_area)
             for seed in range(500)}
    assert min(min(box[2:]) for box in boxes) == 1


def test_a_list_survives_an_experiments_assignment(tiny_world):
    text = assignment_text([0.25, 1.5])
    assert config.load(tiny_world().config_path, None, [f'scale_range={text}']).scale_range == \
        [0.25, 1.5]


# ---- the optimizer

@pytest.mark.parametrize('momentum, weight_decay, power', [
    (0.9, 1e-4, 0.9), (0.0, 0.0, 0.0), (0.5, 0.01, 1.0), (0.0, 0.1, 2.0)])
def test_updates_are_those_of_sgd_by_hand(tiny_world, momentum, weight_decay, power):
    cfg = tiny_world(method='supervised', momentum=momentum, weight_decay=weight_decay,
                     lr_power=power, lr=0.1, lr_multi=3.0).load()
    networks = Networks(cfg, World())
    optimizer, network = networks.optimizer, networks.student.double()
    backbone = {id(p) for p in network.backbone.parameters()}
    parameters = list(network.parameters())
    weight = [p.detach().clone() for p in parameters]
    speed = [torch.zeros_like(p) for p in weight]
    for state in optimizer.state.values():
        state['momentum_buffer'] = state['momentum_buffer'].double()
    for step in range(4):
        torch.manual_seed(step)
        optim.set_lr(optimizer, step, 10, cfg.lr, cfg.lr_multi, cfg.lr_power)
        for i, p in enumerate(parameters):
            p.grad = torch.randn_like(p)
            speed[i] = momentum * speed[i] + p.grad + weight_decay * weight[i]
            rate = 0.1 * (1 - max(step - 1, 0) / 10) ** power
            weight[i] = weight[i] - rate * (1 if id(p) in backbone else 3) * speed[i]
        optim.guarded_step(optimizer, torch.tensor(False))
    for p, expected in zip(parameters, weight):
        assert (p - expected).abs().max() < 1e-12


def test_a_run_trains_with_the_keys_of_the_optimizer(tiny_world):
    world = tiny_world(epochs=1, momentum=0.0, weight_decay=0.2, lr_power=2.0, lr=0.1)
    run = start(world.load(), World())
    run.fit()
    group = run.networks.optimizer.param_groups[0]
    assert (group['momentum'], group['weight_decay']) == (0.0, 0.2)
    assert group['lr'] == pytest.approx(0.1 * (1 - 2 / 4) ** 2)  # of the last of 4 steps


# ---- the views

def test_the_default_stream_is_that_of_the_published_constants():
    for seed in range(300):
        rng, again, expected = np.random.default_rng(seed), np.random.default_rng(seed), []
        if again.random() < 0.8:
            jitter = [(name, again.uniform(0.5, 1.5))
                      for name in ('brightness', 'contrast', 'color')]
            jitter.append(('hue', int(again.uniform(-0.25, 0.25) * 255)))
            expected += [jitter[i] for i in again.permutation(4)]
        if again.random() < 0.2:
            expected.append(('grayscale', None))
        if again.random() < 0.5:
            expected.append(('blur', again.uniform(0.1, 2.0)))
        assert strong_operations(rng, DSSNConfig()) == expected
        assert rng.random() == again.random()


@pytest.mark.parametrize('names, key', [
    (('brightness', 'contrast', 'color', 'hue'), 'jitter_probability'),
    (('grayscale',), 'grayscale_probability'), (('blur',), 'blur_probability')])
def test_probabilities_of_0_and_1_are_never_and_always(names, key):
    rng = np.random.default_rng(0)
    for probability in (0.0, 1.0):
        cfg = DSSNConfig(**{key: probability})
        for _ in range(200):
            found = [operation.name for operation in strong_operations(rng, cfg)]
            assert all((name in found) == bool(probability) for name in names)


def test_strengths_have_the_ranges_of_their_keys():
    rng = np.random.default_rng(0)
    cfg = DSSNConfig(jitter_probability=1.0, jitter_strength=0.1, jitter_hue=0.5,
                     blur_probability=1.0, blur_sigma=[3.0, 5.0])
    found = [dict(strong_operations(rng, cfg)) for _ in range(800)]
    for name, low, high, slack in (('brightness', 0.9, 1.1, 2e-3), ('contrast', 0.9, 1.1, 2e-3),
                                   ('color', 0.9, 1.1, 2e-3), ('hue', -127, 127, 3),
                                   ('blur', 3.0, 5.0, 0.02)):
        values = [one[name] for one in found]
        assert low <= min(values) < low + slack and high - slack < max(values) <= high, name
    still = DSSNConfig(jitter_probability=1.0, jitter_strength=0.0, jitter_hue=0.0,
                       grayscale_probability=0.0, blur_probability=0.0)
    assert sorted(strong_operations(rng, still)) == [
        ('brightness', 1.0), ('color', 1.0), ('contrast', 1.0), ('hue', 0)]


def train_set(world, **keys):
    cfg = world.load(**keys)
    return datasets.TrainSet(cfg, read_list(world.labeled),
                             read_list(world.unlabeled, masks=False))


@pytest.mark.parametrize('method', ['DSSN', 'fixmatch', 'unimatch', 'unimatch_v2'])
def test_without_strong_operations_and_boxes_strong_views_are_weak_ones(tiny_world, method):
    data = train_set(tiny_world(), method=method, jitter_probability=0, grayscale_probability=0,
                     blur_probability=0, cutmix_probability=0)
    for i in range(6):
        _, u, _ = data[RowIndices(0, 0, i, i, i)]
        assert tuple(u.box1.tolist()) == tuple(u.box2.tolist()) == NO_BOX
        assert torch.equal(u.weak, u.strong1) and torch.equal(u.weak, u.strong2)


def test_boxes_have_the_probability_and_area_of_their_keys(tiny_world):
    data = train_set(tiny_world(), crop_size=161, cutmix_probability=1,
                     cutmix_area=[0.25, 0.25])
    for i in range(9):
        _, u, v = data[RowIndices(0, 0, i, 8 - i, 0)]
        for box in (u.box1, u.box2, v.box1, v.box2):
            height, width = box[2:].tolist()
            # Sides are rounded down to whole pixels.
            assert height * width <= 0.25 * 161 ** 2 < (height + 1) * (width + 1)


def test_scale_range_is_that_of_labeled_and_unlabeled_views_and_of_masks(tiny_world):
    world = tiny_world(size=(40, 40), scale_range=[1.0, 1.0])
    data = train_set(world, crop_size=40)
    for i in range(4):
        x, u, v = data[RowIndices(i, 0, i, i + 1, 0)]
        for view, path in ((x.image, f'labeled{i}'), (u.weak, f'unlabeled{i}'),
                           (v.weak, f'unlabeled{i + 1}')):
            pixels = np.array(Image.open(os.path.join(world.root, f'images/{path}.jpg')))
            view = view.permute(1, 2, 0).numpy()
            assert (view == pixels).all() or (view == pixels[:, ::-1]).all()
        mask = np.array(Image.open(os.path.join(world.root, f'masks/labeled{i}.png')))
        assert (x.label.numpy() == mask).all() or (x.label.numpy() == mask[:, ::-1]).all()
    # At half the size, three quarters of the view are padding.
    small = train_set(world, crop_size=40, scale_range=[0.5, 0.5])
    assert small[RowIndices(0, 0, 0, 1, 0)].unlabeled.valid.float().mean() == 0.25


def test_views_with_other_keys_depend_on_nothing_but_seed_pass_and_sample(tiny_world):
    keys = dict(jitter_strength=0.9, jitter_hue=0.1, blur_sigma=[1.0, 6.0], cutmix_area=[0.1, 0.7],
                cutmix_probability=0.9, scale_range=[0.3, 3.0], num_aug=2)
    world = tiny_world()
    one, two = train_set(world, **keys), train_set(world, **keys)
    two[RowIndices(2, 0, 3, 4, 0)]  # what was read before does not matter
    for a, b in zip(one[RowIndices(1, 2, 5, 6, 3)], two[RowIndices(1, 2, 5, 6, 3)]):
        assert all(torch.equal(x, y) for x, y in zip(a, b))


# ---- the features and the contrast

@pytest.mark.parametrize('dropout', [0.0, 0.25, 0.9])
def test_channels_are_dropped_with_the_probability_of_the_key(dropout):
    torch.manual_seed(0)
    features = torch.rand(20, 200, 2, 2) + 1
    for copy in perturbed(features, 2, dropout):
        kept = copy.flatten(2).abs().sum(2) > 0
        assert abs(float(kept.float().mean()) - (1 - dropout)) < 0.04
        expected = features * kept[:, :, None, None] / (1 - dropout)
        assert (copy - expected).abs().max() < 1e-4


@pytest.mark.parametrize('keys', [
    dict(method='DSSN'), dict(method='DSSN', lean=True), dict(method='DSSN', image_views=0),
    dict(method='unimatch')], ids=str)
def test_methods_perturb_with_the_key(tiny_world, keys):
    cfg = tiny_world(nclass=4, feature_dropout=0.125, **keys).load()
    seen = []

    class Student(Recorder):
        def forward(self, images, perturb=0, dropout=None, **rest):
            seen.extend([dropout] * bool(perturb))
            return super().forward(images, perturb, **rest)
    student = Student(1)
    method = methods.build(cfg)
    teacher = ema.make_teacher(student)
    method.start_step(1, 5, teacher)
    method(student, teacher if method.uses_teacher else None, *random_batch(2, 7, 9))
    assert seen == [0.125]


@pytest.mark.parametrize('keys', [{}, {'feature_labels': 'teacher'}], ids=str)
def test_contrast_weight_is_the_factor_of_both_contrasts(tiny_world, keys):
    method = methods.build(tiny_world(contrast_weight=0.3, **keys).load())
    for name in ('contrast_image', 'contrast_feature'):
        losses = {key: torch.tensor(float(key == name)) for key in (
            'supervised', 'image1', 'image2', 'feature1', 'feature2', 'contrast_image',
            'contrast_feature')}
        assert float(method.total(losses)) == pytest.approx(0.5 * 0.3)
