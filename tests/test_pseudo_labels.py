"""Selection rules, compared with their definitions, one pixel at a time."""
import json
import math
import os
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from dssn.pseudo_labels import build_selection, class_max, class_topk, fixed, none

SHAPES = [(2, 4, 5, 7), (1, 2, 3, 3), (3, 21, 4, 1), (1, 3, 1, 1)]

with open(os.path.join(os.path.dirname(__file__), 'data', 'vectors.json')) as file:
    VECTORS = json.load(file)


# ---- the slow references

def probabilities(logits):
    """Per image, the list of its pixels' lists of C probabilities."""
    images = []
    for image in logits.double().permute(0, 2, 3, 1).flatten(1, 2).tolist():
        powers = [[math.exp(value - max(z)) for value in z] for z in image]
        # Rounded, so that equal logits give equal probabilities in any order of summation.
        images.append([[round(power / sum(pixel), 14) for power in pixel] for pixel in powers])
    return images


def as_mask(rows, logits):
    return torch.tensor(rows).view(logits.shape[0], *logits.shape[2:])


def slow_class_max(logits, gate, ratio):
    mask = []
    for image in probabilities(logits):
        peak = [max(pixel[c] for pixel in image) for c in range(logits.shape[1])]
        mask.append([])
        for pixel in image:
            k = pixel.index(max(pixel))
            mask[-1].append(peak[k] > gate and pixel[k] > ratio * peak[k])
    return as_mask(mask, logits)


def slow_class_topk(logits, top):
    mask = []
    for image in probabilities(logits):
        label = [pixel.index(max(pixel)) for pixel in image]
        mask.append([False] * len(image))
        for c in set(label):
            ordered = sorted((max(pixel) for pixel, k in zip(image, label) if k == c), reverse=True)
            count = max(1, math.floor(Fraction(str(top)) * len(ordered)))
            for i, pixel in enumerate(image):
                if label[i] == c and max(pixel) >= ordered[count - 1]:
                    mask[-1][i] = True
    return as_mask(mask, logits)


def slow_fixed(logits, conf_thresh):
    return as_mask([[max(pixel) >= conf_thresh for pixel in image]
                    for image in probabilities(logits)], logits)


def random_logits(shape, scale, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return (scale * torch.randn(shape)).to(dtype)


def row(*pixels):
    """Logits of one image, one pixel high."""
    return torch.tensor(pixels, dtype=torch.float64).t()[None, :, None]


# ---- class_max

@pytest.mark.parametrize('case', range(len(VECTORS['class_max']['cases'])))
def test_class_max_vectors(case):
    facts = VECTORS['class_max']
    logits = torch.tensor(facts['cases'][case]['logits'], dtype=torch.float64)
    expected = torch.tensor(facts['cases'][case]['mask'])
    assert torch.equal(class_max(logits, facts['gate'], facts['ratio']), expected)
    assert torch.equal(class_max(logits), expected)


# With a gate below 1/2 the peak of a class may lie on a pixel of another class. It still counts.
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('gate, ratio', [(0.92, 0.96), (0.6, 0.5), (0.3, 0.9), (0.0, 0.7)])
@pytest.mark.parametrize('scale', [1, 4])
@pytest.mark.parametrize('shape', SHAPES)
def test_class_max_matches_its_definition(shape, scale, gate, ratio, dtype):
    for seed in range(4):
        logits = random_logits(shape, scale, seed, dtype)
        assert torch.equal(class_max(logits, gate, ratio), slow_class_max(logits, gate, ratio))


def test_class_max_takes_the_peak_over_all_pixels():
    # The peak of class 0 is 0.45, on the first pixel, which is predicted as class 1. The second
    # pixel is predicted as class 0 with 0.40: the most confident of its class, but < 0.96 * 0.45.
    logits = row((0.45, 0.46, 0.09), (0.40, 0.25, 0.35)).log()
    assert class_max(logits, 0.3, 0.96).flatten().tolist() == [True, False]
    assert class_max(logits, 0.3, 0.88).flatten().tolist() == [True, True]


def test_class_max_gate_is_strict():
    logits = torch.zeros(1, 2, 1, 1)                       # the peak is 1/2, exactly
    assert not class_max(logits, 0.5, 0.9).any()
    assert class_max(logits, 0.499, 0.9).all()


def test_class_max_ratio_is_strict():
    # Both classes have peak 1 and the last pixel 1/2, exactly.
    logits = row((1000, 0), (0, 1000), (0, 0))
    assert class_max(logits, 0.9, 0.5).flatten().tolist() == [True, True, False]
    assert class_max(logits, 0.9, 0.499).flatten().tolist() == [True, True, True]


def test_class_max_defaults_are_those_of_pascal():
    # 0.96 * 0.95 is 0.912. A peak of 0.919 is not above the gate.
    for peak, other, expected in ((0.919, 0.91, [False, False]), (0.921, 0.90, [True, True]),
                                  (0.95, 0.911, [True, False]), (0.95, 0.913, [True, True])):
        logits = row((peak, 1 - peak), (other, 1 - other)).log()
        assert class_max(logits).flatten().tolist() == expected


def test_class_max_treats_each_image_separately():
    high, low = row((9, 0), (0, 9)), row((3, 0), (0, 3))
    mask = class_max(torch.cat([high, low]))
    assert mask.flatten(1).tolist() == [[True, True], [True, True]]
    # In one image the less confident pixels are compared with the peaks of the others.
    assert class_max(torch.cat([high, low], 3)).flatten().tolist() == [True, True, False, False]


# ---- class_topk

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('top', [1e-6, 0.1, 0.3, 0.6, 0.7, 1.0])
@pytest.mark.parametrize('shape', SHAPES)
def test_class_topk_matches_its_definition(shape, top, dtype):
    for seed in range(4):
        logits = random_logits(shape, 2, seed, dtype)
        assert torch.equal(class_topk(logits, top), slow_class_topk(logits, top))


@pytest.mark.parametrize('top', [0.1, 0.3, 0.6, 0.9])
def test_class_topk_takes_all_of_a_tie(top):
    for seed in range(8):
        torch.manual_seed(seed)
        # Three levels of confidence per class, so that most thresholds lie in a tie.
        label = torch.randint(3, (2, 4, 5))
        level = torch.randint(1, 4, (2, 1, 4, 5)).double()
        logits = torch.zeros(2, 3, 4, 5, dtype=torch.float64).scatter_(1, label[:, None], level)
        assert torch.equal(class_topk(logits, top), slow_class_topk(logits, top))


@pytest.mark.parametrize('top, n, count', [(0.6, 10, 6), (0.7, 10, 7), (0.29, 100, 29),
                                           (0.57, 100, 57), (0.6, 4, 2), (0.6, 1, 1),
                                           (0.01, 50, 1), (1.0, 13, 13)])
def test_class_topk_of_a_single_class(top, n, count):
    # One class, with falling confidence: exactly the first `count` pixels are selected.
    logits = row(*[(5 - 0.01 * i, 0.0, 0.0) for i in range(n)])
    assert class_topk(logits, top).flatten().tolist() == [True] * count + [False] * (n - count)


def test_class_topk_default_fraction():
    logits = random_logits((2, 3, 6, 6), 2)
    assert torch.equal(class_topk(logits), slow_class_topk(logits, 0.6))


def test_class_topk_selects_at_least_one_pixel_per_class():
    logits = random_logits((2, 5, 6, 7), 1)
    mask, label = class_topk(logits, 1e-6), logits.argmax(1)
    for image in range(2):
        chosen = label[image][mask[image]].tolist()
        assert sorted(chosen) == sorted(set(label[image].flatten().tolist()))


# ---- fixed, none, and the rule that a config names

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('conf_thresh', [0.0, 0.5, 0.8, 0.95, 1.0])
def test_fixed_matches_its_definition(conf_thresh, dtype):
    logits = random_logits((2, 3, 4, 5), 3, dtype=dtype)
    assert torch.equal(fixed(logits, conf_thresh), slow_fixed(logits, conf_thresh))


def test_fixed_threshold_itself_is_selected():
    logits = torch.zeros(1, 4, 1, 1)                       # confidence 1/4, exactly
    assert fixed(logits, 0.25).all()
    assert not fixed(logits, 0.26).any()
    assert fixed(torch.tensor([1000., 0]).view(1, 2, 1, 1), 1.0).all()


def test_none_selects_every_pixel():
    assert torch.equal(none(random_logits((2, 3, 4, 5), 1)), torch.ones(2, 4, 5).bool())


@pytest.mark.parametrize('selection, expected', [
    ('class_max', lambda z: slow_class_max(z, 0.4, 0.7)),
    ('class_topk', lambda z: slow_class_topk(z, 0.2)),
    ('fixed', lambda z: slow_fixed(z, 0.55)),
    ('none', lambda z: torch.ones_like(z[:, 0]).bool())])
def test_build_selection_returns_the_rule_of_the_config(selection, expected):
    cfg = SimpleNamespace(selection=selection, gate=0.4, ratio=0.7, top=0.2, conf_thresh=0.55)
    logits = random_logits((2, 3, 5, 6), 1).requires_grad_()
    mask = build_selection(cfg)(logits)
    assert mask.dtype == torch.bool and not mask.requires_grad
    assert torch.equal(mask, expected(logits.detach()))
    assert 0 < mask.sum() and (selection == 'none' or not mask.all())
