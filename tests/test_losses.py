"""Losses: values and gradients, compared with loops over pixels in double precision."""
import json
import math
import os
from types import SimpleNamespace

import pytest
import torch

from dssn import losses
from dssn.losses import (
    build_labeled_loss,
    cross_entropy,
    kth_by_selection,
    kth_by_sorting,
    kth_smallest,
    masked_cross_entropy,
    ohem,
    pixel_contrast,
)

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}
DTYPES = [torch.float32, torch.float64]
SHAPES = [(2, 3, 4, 5), (1, 5, 3, 3), (1, 2, 1, 1)]

with open(os.path.join(os.path.dirname(__file__), 'data', 'vectors.json')) as file:
    VECTORS = json.load(file)


# ---- the slow references: lists of floats, one pixel at a time

def pixels(logits):
    """(N, C, H, W) -> list of the pixels' lists of C logits, in the order of labels.flatten()."""
    return logits.detach().double().permute(0, 2, 3, 1).reshape(-1, logits.shape[1]).tolist()


def softmax(z):
    powers = [math.exp(value - max(z)) for value in z]
    return [power / sum(powers) for power in powers]


def pixel_cross_entropy(z, label):
    """Cross-entropy of one pixel."""
    return max(z) + math.log(sum(math.exp(value - max(z)) for value in z)) - z[label]


def slow_cross_entropy(logits, label):
    losses = [pixel_cross_entropy(z, y)
              for z, y in zip(pixels(logits), label.flatten().tolist()) if y != 255]
    return sum(losses) / len(losses) if losses else 0.0


def slow_ohem(logits, label, thresh, min_kept):
    labeled = [(softmax(z)[y], pixel_cross_entropy(z, y))
               for z, y in zip(pixels(logits), label.flatten().tolist()) if y != 255]
    if not labeled:
        return 0.0
    limit = 1.0
    if 0 < min_kept <= len(labeled):
        limit = max(thresh, sorted(prob for prob, _ in labeled)[min_kept - 1])
    kept = [loss for prob, loss in labeled if prob <= limit]
    return sum(kept) / len(kept)


def slow_masked_cross_entropy(logits, label, selected, valid):
    total, count = 0.0, 0
    for z, y, chosen, inside in zip(pixels(logits), label.flatten().tolist(),
                                    selected.flatten().tolist(), valid.flatten().tolist()):
        count += inside
        if chosen and inside:
            total += pixel_cross_entropy(z, y)
    return total / count if count else 0.0


def slow_contrast(logits1, logits2):
    total, count = 0.0, 0
    for z1, z2 in zip(pixels(logits1), pixels(logits2)):
        n = len(z1)
        count += n
        units = []
        for z in (z1, z2):
            mean = sum(z) / n
            std = math.sqrt(sum((value - mean) ** 2 for value in z) / (n - 1))
            units.append([(value - mean) / std for value in z] if max(z) > min(z) else None)
        if None not in units:
            total += sum((a - b) ** 2 for a, b in zip(*units))
    return total / count


def numeric_gradient(function, logits, step=1e-6):
    """Central differences of a slow reference."""
    grad = torch.zeros(logits.shape, dtype=torch.float64)
    for i in range(logits.numel()):
        for sign in (1, -1):
            moved = logits.detach().double().clone()
            moved.view(-1)[i] += sign * step
            grad.view(-1)[i] += sign * function(moved) / (2 * step)
    return grad


# ---- inputs and comparison

def random_case(shape, dtype=torch.float64, ignored=0.3, seed=0):
    torch.manual_seed(seed)
    n, classes, height, width = shape
    logits = (2 * torch.randn(shape)).to(dtype).requires_grad_()
    label = torch.randint(classes, (n, height, width))
    ignore = torch.rand(label.shape) < ignored
    ignore.view(-1)[0] = False
    return logits, label, ignore


def assert_loss(loss, expected, logits, expected_grad=None):
    """The loss is a scalar with the expected value and, if given, gradient."""
    assert loss.shape == () and loss.dtype == logits.dtype
    assert abs(loss.item() - expected) <= TOLERANCE[logits.dtype] * max(1, abs(expected))
    if expected_grad is not None:
        logits.grad = None
        loss.backward(retain_graph=True)
        assert logits.grad.shape == expected_grad.shape
        # A NaN fails this comparison.
        assert (logits.grad - expected_grad).abs().max() <= max(1e-7, TOLERANCE[logits.dtype])


def assert_zero(loss, *inputs):
    """The loss is exactly 0, and so is its gradient."""
    assert loss.item() == 0
    loss.backward()
    for logits in inputs:
        assert bool((logits.grad == 0).all())


# ---- cross-entropy of labels

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', SHAPES)
def test_cross_entropy_is_the_mean_over_labeled_pixels(shape, dtype):
    logits, label, ignore = random_case(shape, dtype)
    label[ignore] = 255
    assert_loss(cross_entropy(logits, label), slow_cross_entropy(logits, label), logits,
                numeric_gradient(lambda z: slow_cross_entropy(z, label), logits))


@pytest.mark.parametrize('loss', [cross_entropy, ohem, lambda z, y: ohem(z, y, 0.7, 2),
                                  lambda z, y: ohem(z, y, 0.7, 0)])
def test_labeled_losses_without_a_labeled_pixel_are_zero(loss):
    logits, label, _ = random_case((1, 3, 4, 5))
    assert_zero(loss(logits, torch.full_like(label, 255)), logits)


# ---- OHEM

@pytest.mark.parametrize('case', VECTORS['ohem']['cases'], ids=str)
def test_ohem_vectors(case):
    logits = torch.tensor(VECTORS['ohem']['logits'], dtype=torch.float64)
    label = torch.tensor(VECTORS['ohem']['target'])
    assert ohem(logits, label, case['thresh'], case['min_kept']).item() == \
        pytest.approx(case['loss'], abs=1e-6)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('min_kept', [0, 1, 5, 17, 39, 40, 41, 10 ** 6])
@pytest.mark.parametrize('thresh', [0.0, 0.05, 0.3, 0.7, 1.0])
def test_ohem_keeps_the_hard_pixels(thresh, min_kept, dtype):
    logits, label, _ = random_case((2, 3, 4, 5), dtype)
    assert_loss(ohem(logits, label, thresh, min_kept), slow_ohem(logits, label, thresh, min_kept),
                logits)


@pytest.mark.parametrize('min_kept', [1, 7, 11, 12, 13, 30, 40, 41])
def test_ohem_counts_labeled_pixels_only(min_kept):
    logits, label, _ = random_case((2, 3, 4, 5))
    label.view(-1)[12:] = 255
    # The ignored pixels would be the easiest of all as class 0, and the hardest as any other.
    with torch.no_grad():
        logits[1, 0] = -50
        logits[1, 0, 0] = 50
    assert_loss(ohem(logits, label, 0.1, min_kept), slow_ohem(logits, label, 0.1, min_kept), logits,
                numeric_gradient(lambda z: slow_ohem(z, label, 0.1, min_kept), logits))


def test_ohem_threshold_itself_is_kept():
    # Probabilities 1 and 1/3, exactly. The pixel with probability 1 has loss 0, but is counted.
    logits = torch.zeros(1, 3, 1, 2, dtype=torch.float64)
    logits[0, 0, 0, 0] = 1000
    label = torch.zeros(1, 1, 2, dtype=torch.long)
    assert ohem(logits, label, 1.0, 1).item() == pytest.approx(math.log(3) / 2, abs=1e-12)
    assert ohem(logits, label, 0.99, 1).item() == pytest.approx(math.log(3), abs=1e-12)


def test_ohem_keeps_every_pixel_that_ties_with_the_last():
    logits = torch.zeros(1, 2, 1, 5, dtype=torch.float64)
    logits[0, 0, 0, :3] = torch.tensor([1000., 0, 1])
    label = torch.zeros(1, 1, 5, dtype=torch.long)
    # Probabilities in order: 0.5, 0.5, 0.5, 0.73, 1. min_kept is 1, but three pixels tie.
    assert ohem(logits, label, 0.1, 1).item() == pytest.approx(math.log(2), abs=1e-12)
    easier = math.log(1 + math.exp(-1))
    assert ohem(logits, label, 0.1, 4).item() == \
        pytest.approx((3 * math.log(2) + easier) / 4, abs=1e-12)


INF = float('inf')


@pytest.mark.parametrize('find', [kth_smallest, kth_by_selection, kth_by_sorting])
@pytest.mark.parametrize('values', [
    [3.0], [2.0, 1.0], [0.5, 0.25, 0.5, 0.5, 0.125], [1.0] * 6, [INF, 0.5, INF, 0.75, 0.5, INF],
    [INF] * 4, [-INF, 0.0, INF, -0.0]], ids=str)
def test_kth_smallest_is_the_kth_of_the_sorted_list(find, values):
    for dtype in DTYPES:
        given = torch.tensor(values, dtype=dtype)
        for k, expected in enumerate(sorted(values), 1):
            found = find(given, k)
            assert (found.item(), found.dtype, found.shape) == (expected, dtype, ())
        assert given.tolist() == values


def test_kth_by_sorting_and_by_selection_agree():
    values = torch.rand(20000, generator=torch.Generator().manual_seed(1)).mul(500).round().div(500)
    values[::7] = INF
    for k in (1, 2, 4999, 12345, 17142, 17143, 20000):
        assert torch.equal(kth_by_sorting(values, k), kth_by_selection(values, k))


@pytest.mark.parametrize('min_kept', [1, 5, 17, 40])
def test_ohem_is_the_same_by_sorting(monkeypatch, min_kept):
    logits, label, ignore = random_case((2, 3, 4, 5))
    label[ignore] = 255
    expected = ohem(logits, label, 0.1, min_kept)
    monkeypatch.setattr(losses, 'kth_smallest', kth_by_sorting)
    assert torch.equal(ohem(logits, label, 0.1, min_kept), expected)


def pixel_row(prob):
    """Logits (1, 2, 1, P) and labels of pixels whose true class, 0, has the given probabilities."""
    return torch.stack([prob, 1 - prob]).log()[None, :, None], torch.zeros(1, 1, len(prob)).long()


@pytest.mark.parametrize('hard, threshold', [(99999, 0.72), (100000, 0.7), (100001, 0.7)])
def test_ohem_defaults_are_those_of_cityscapes(hard, threshold):
    # If one of 100000 pixels is missing below the threshold, the next hardest one is kept, too.
    prob = torch.full((hard + 4,), 0.5, dtype=torch.float64)
    prob[-4:] = torch.tensor([0.72, 0.76, 0.8, 0.9])
    if hard >= 100000:
        prob[0] = 0.69
    kept = prob[prob < threshold + 0.001]
    assert ohem(*pixel_row(prob)).item() == pytest.approx(-kept.log().mean().item(), rel=1e-10)


def labeled_loss(name, accumulate=1, **kwargs):
    return build_labeled_loss(SimpleNamespace(
        accumulate=accumulate, criterion={'name': name, 'kwargs': dict(kwargs, ignore_index=255)}))


def test_build_labeled_loss_returns_the_loss_of_the_config():
    logits, label, ignore = random_case((2, 3, 4, 5))
    label[ignore] = 255
    assert_loss(labeled_loss('CELoss')(logits, label), slow_cross_entropy(logits, label), logits)
    hard = labeled_loss('OHEM', thresh=0.25, min_kept=3)
    assert_loss(hard(logits, label), slow_ohem(logits, label, 0.25, 3), logits)


@pytest.mark.parametrize('min_kept, accumulate, expected', [
    (12, 1, 12), (12, 4, 3), (13, 4, 3), (3, 4, 1), (0, 4, 0)])
def test_ohem_divides_min_kept_by_accumulate(min_kept, accumulate, expected):
    """The result is rounded down, but it is at least 1, because 0 would keep all pixels."""
    logits, label, _ = random_case((2, 3, 4, 5))
    found = labeled_loss('OHEM', accumulate, thresh=0.0, min_kept=min_kept)(logits, label)
    assert_loss(found, slow_ohem(logits, label, 0.0, expected), logits)


# ---- masked cross-entropy of pseudo-labels

def test_masked_cross_entropy_vector():
    case = VECTORS['masked_cross_entropy']
    loss = masked_cross_entropy(
        torch.tensor(case['logits'], dtype=torch.float64), torch.tensor(case['labels']),
        torch.tensor(case['selected']), torch.tensor(case['valid']))
    assert loss.item() == pytest.approx(case['loss'], abs=1e-6)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', SHAPES)
def test_masked_cross_entropy_divides_by_the_valid_pixels(shape, dtype):
    logits, label, ignore = random_case(shape, dtype)
    selected = torch.rand(label.shape) < 0.5
    selected.view(-1)[0] = True
    assert_loss(masked_cross_entropy(logits, label, selected, ~ignore),
                slow_masked_cross_entropy(logits, label, selected, ~ignore), logits,
                numeric_gradient(lambda z: slow_masked_cross_entropy(z, label, selected, ~ignore),
                                 logits))


@pytest.mark.parametrize('selected, valid', [(False, True), (True, False), (False, False)])
def test_masked_cross_entropy_without_a_pixel_is_zero(selected, valid):
    logits, label, _ = random_case((2, 3, 4, 5))
    assert_zero(masked_cross_entropy(logits, label, torch.full(label.shape, selected),
                                    torch.full(label.shape, valid)), logits)


# ---- pixel-wise contrast

def two_views(shape, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return [(2 * torch.randn(shape) + 1).to(dtype).requires_grad_() for _ in range(2)]


def test_contrast_vector():
    case = VECTORS['contrastive']
    views = [torch.tensor(case[key], dtype=torch.float64) for key in ('view1', 'view2')]
    assert pixel_contrast(*views).item() == pytest.approx(case['loss'], abs=1e-6)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', SHAPES)
def test_contrast_with_gradient_to_both_views(shape, dtype):
    first, second = two_views(shape, dtype)
    loss = pixel_contrast(first, second)
    expected = slow_contrast(first, second)
    assert_loss(loss, expected, first, numeric_gradient(lambda z: slow_contrast(z, second), first))
    assert_loss(loss, expected, second, numeric_gradient(lambda z: slow_contrast(first, z), second))


@pytest.mark.parametrize('classes', [2, 5, 21])
def test_contrast_is_one_minus_the_correlation(classes):
    first, second = two_views((2, classes, 3, 4))
    a, b = (view.detach() - view.detach().mean(1, keepdim=True) for view in (first, second))
    correlation = (a * b).sum(1) / (a.pow(2).sum(1) * b.pow(2).sum(1)).sqrt()
    expected = 2 * (classes - 1) / classes * (1 - correlation).mean().item()
    assert pixel_contrast(first, second).item() == pytest.approx(expected, abs=1e-9)


def test_contrast_ignores_each_pixels_shift_and_scale():
    first, second = two_views((1, 4, 3, 3))
    assert pixel_contrast(first, 0.001 * first + 7).item() == pytest.approx(0, abs=1e-12)
    assert pixel_contrast(first, -3 * first).item() == pytest.approx(4 * 3 / 4, abs=1e-9)
    # There is no epsilon: logits that hardly differ are standardised like all others.
    assert pixel_contrast(first, 1e-6 * second).item() == \
        pytest.approx(slow_contrast(first, second), abs=1e-9)


# The floating-point mean of equal numbers may differ from them (0.1, 1.7). This rounding error must
# not be standardised.
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('value', [0.0, 0.1, 1.7, -0.3, 123.456])
@pytest.mark.parametrize('classes', [2, 3, 5, 19, 21])
def test_contrast_of_a_pixel_with_equal_logits_is_zero(classes, value, dtype):
    for both in (False, True):
        first, second = two_views((1, classes, 2, 2), dtype)
        with torch.no_grad():
            first[0, :, 0, 1] = value
            if both:
                second[0, :, 0, 1] = value
        loss = pixel_contrast(first, second)
        assert_loss(loss, slow_contrast(first, second), first)
        loss.backward()
        for view in (first, second):
            assert bool((view.grad[0, :, 0, 1] == 0).all())
            assert bool(torch.isfinite(view.grad).all())
            # Two standardised logits are constant. With more classes, other pixels have a gradient.
            assert classes == 2 or view.grad[0, :, 1, 1].abs().max() > 1e-3


@pytest.mark.parametrize('value', [0.0, 0.1])
def test_contrast_of_equal_logits_everywhere_is_zero(value):
    first = torch.full((1, 3, 2, 3), value, requires_grad=True)
    second = torch.zeros(1, 3, 2, 3, requires_grad=True)
    assert_zero(pixel_contrast(first, second), first, second)


def test_contrast_of_logits_whose_variance_underflows():
    # The square of 1e-30 is 0 in float32, although the logits are not equal.
    first, second = two_views((1, 3, 2, 2), torch.float32)
    with torch.no_grad():
        first[0, :, 0, 0] = torch.tensor([0, 1e-30, 2e-30])
    loss = pixel_contrast(first, second)
    loss.backward()
    for value in (loss, first.grad, second.grad):
        assert bool(torch.isfinite(value).all())
