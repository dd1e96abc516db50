"""Photometric operations: sampling, compared with the published numbers; pixels, with Pillow's.

Each test has a fixed random stream, so its result does not depend on chance. The bounds hold for
a correct program with almost every stream.
"""
import itertools
import json
import math
import os

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from test_transforms import (
    assert_equal_chances,
    assert_fraction,
    assert_uniform,
    photo,
    pixels,
    stream,
)
from torchvision.transforms import functional as F

from dssn.data import photometric as P
from dssn.data.photometric import Operation

with open(os.path.join(os.path.dirname(__file__), 'data', 'augmentation_facts.json')) as file:
    FACTS = json.load(file)
COMMON, POOL = FACTS['common'], FACTS['strong_pool']
PUBLISHED_POOL = sorted(set(POOL) - {'sampled'})


class Chosen:
    """A random generator that has only `random()`, which returns chosen numbers."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


# Sampling.

JITTER = ('brightness', 'contrast', 'color', 'hue')


def test_jitter_has_all_four_strengths_and_all_orders_evenly():
    rng, n = stream(), 4800
    sampled = [P.color_jitter(rng) for _ in range(n)]
    orders = [' '.join(name for name, _ in operations) for operations in sampled]
    assert set(orders) == {' '.join(order) for order in itertools.permutations(JITTER)}
    assert_equal_chances(orders, set(orders))
    for name, published in zip(JITTER[:3], ('brightness', 'contrast', 'saturation')):
        assert_uniform([dict(operations)[name] for operations in sampled],
                       *COMMON['jitter_' + published])
    # Hue shifts are truncated to whole 8-bit steps, so 0 is twice as likely as the others.
    shifts = np.array([dict(operations)['hue'] for operations in sampled])
    low, high = (int(255 * end) for end in COMMON['jitter_hue'])
    assert (low, high) == (-63, 63)
    assert shifts.min() == low and shifts.max() == high
    assert_equal_chances(shifts[(shifts != 0) & (abs(shifts) < 63)],
                         [s for s in range(-62, 63) if s != 0])
    assert_fraction((shifts == 0).sum(), n, 2 / 127.5)
    # The strengths are not correlated.
    strengths = np.array([[dict(operations)[name] for name in JITTER] for operations in sampled])
    assert np.abs(np.corrcoef(strengths.T) - np.eye(4)).max() < 0.08


def test_grayscale_has_no_strength():
    assert P.grayscale(stream()) == [Operation('grayscale')]


def test_blur_has_a_uniform_sigma():
    rng = stream()
    sampled = [P.blur(rng) for _ in range(3000)]
    assert {len(operations) for operations in sampled} == {1}
    assert {operation.name for operation, in sampled} == {'blur'}
    assert_uniform([operation.strength for operation, in sampled], *COMMON['blur_sigma'])


@pytest.mark.parametrize('probability', [0.0, 0.2, 0.8, 1.0])
def test_sometimes(probability):
    rng, calls = stream(), []

    def sample(given_rng):
        assert given_rng is rng
        calls.append(1)
        return ['operation']
    results = [P.sometimes(sample, probability, rng) for _ in range(3000)]
    assert results.count(['operation']) == len(calls)
    assert all(result in (['operation'], []) for result in results)
    if probability in (0.0, 1.0):
        assert len(calls) == 3000 * probability
    else:
        assert_fraction(len(calls), 3000, probability)


def test_the_pool_has_the_eleven_published_operations():
    assert sorted(name for name, _ in P.STRONG_POOL) == PUBLISHED_POOL
    assert len(P.STRONG_POOL) == 11


def strength(name, rng):
    return dict(P.STRONG_POOL)[name](rng)


@pytest.mark.parametrize('name', ['identity', 'autocontrast', 'equalize'])
def test_pool_operations_without_strength(name):
    assert strength(name, Chosen()) is None


@pytest.mark.parametrize('name, fact', [
    ('contrast', 'factor'), ('brightness', 'factor'), ('color', 'factor'),
    ('sharpness', 'factor'), ('blur', 'sigma')])
def test_pool_strengths_are_uniform(name, fact):
    rng = stream()
    assert_uniform([strength(name, rng) for _ in range(3000)], *POOL[name][fact])


def test_pool_posterizes_to_four_to_seven_bits_with_equal_chances():
    rng = stream()
    assert_equal_chances([strength('posterize', rng) for _ in range(2000)],
                         POOL['posterize']['bits, equal chance'])


@pytest.mark.parametrize('u', [0.0, 1e-9, 1 / 255, 1 / 255 + 1e-9, 0.25, 0.5, 0.77, 0.9999999])
def test_solarize_threshold_by_formula(u):
    assert strength('solarize', Chosen(u)) == 256 - max(1, math.ceil(255 * u))


def test_solarize_thresholds_are_1_to_255_with_equal_chances():
    rng = stream()
    low, high = POOL['solarize']['threshold']
    assert_equal_chances([strength('solarize', rng) for _ in range(8000)], range(low, high + 1))


@pytest.mark.parametrize('u', [0.0, 1e-9, 0.0078, 0.0079, 0.3, 0.5, 0.77, 0.996, 0.9999999])
def test_pool_hue_shift_by_formula(u):
    assert {strength('hue', Chosen(coin, u)) for coin in (0.2, 0.7)} == {
        math.trunc(sign * 0.5 * u * 255) for sign in (1, -1)}


def test_pool_hue_shifts_fill_half_the_circle_either_way():
    rng, n = stream(), 20000
    shifts = np.array([strength('hue', rng) for _ in range(n)])
    low, high = POOL['hue']['shift of the 8-bit hue, wrapping']
    assert (shifts.min(), shifts.max()) == (low, high)
    assert_equal_chances(shifts[(shifts != 0) & (abs(shifts) < high)],
                         [s for s in range(low + 1, high) if s != 0])
    # |shift| is the whole part of 127.5 u: 127 has half a step, 0 one step for both signs.
    assert_fraction((abs(shifts) == high).sum(), n, 0.5 / 127.5)
    assert_fraction((shifts == 0).sum(), n, 1 / 127.5)
    assert_fraction((shifts > 0).sum(), n, 0.5 * 126.5 / 127.5)


@pytest.mark.parametrize('num_aug', [1, 2, 3, 5])
def test_number_of_pool_operations_is_uniform(num_aug):
    rng = stream()
    sampled = [P.strong_pool(rng, num_aug) for _ in range(3000)]
    if num_aug == 1:
        assert {len(operations) for operations in sampled} == {1}
    else:
        assert_equal_chances([len(operations) for operations in sampled], range(1, num_aug + 1))
    if num_aug == 3:
        assert COMMON['strong_operations'] == [1, 2, 3]
    fixed = [P.strong_pool(rng, num_aug, False) for _ in range(300)]
    assert {len(operations) for operations in fixed} == {num_aug}


def test_pool_operations_are_sampled_with_replacement_and_equal_chances():
    rng = stream()
    sampled = [P.strong_pool(rng, 2, False) for _ in range(8000)]
    names = [name for name, _ in P.STRONG_POOL]
    # All 121 ordered pairs are equally likely: the second does not depend on the first.
    assert_equal_chances([f'{a.name} {b.name}' for a, b in sampled],
                         [f'{a} {b}' for a in names for b in names])


def test_each_pool_operation_samples_its_own_strength():
    rng, seen = stream(), {}
    for _ in range(2000):
        for name, value in P.strong_pool(rng, 3, False):
            seen.setdefault(name, []).append(value)
    for name, values in seen.items():
        if name in ('identity', 'autocontrast', 'equalize'):
            assert set(values) == {None}
        elif name in ('posterize', 'solarize', 'hue'):
            assert {type(value) for value in values} == {int}
        else:
            assert_uniform(values, *list(POOL[name].values())[0])


# Pixels.

def hue_reference(image, shift):
    """Add to the hue byte of every pixel, modulo 256. Saturation and value stay."""
    data = image.convert('HSV').tobytes()
    turned = bytes((byte + shift) % 256 if i % 3 == 0 else byte for i, byte in enumerate(data))
    return Image.frombytes('HSV', image.size, turned).convert('RGB')


# The definition of each operation, on the whole RGB image.
REFERENCE = {
    'identity': lambda image, _: image,
    'brightness': F.adjust_brightness,
    'contrast': F.adjust_contrast,
    'color': F.adjust_saturation,
    'hue': hue_reference,
    'grayscale': lambda image, _: image.convert('L').convert('RGB'),
    'blur': lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)),
    'autocontrast': lambda image, _: ImageOps.autocontrast(image),
    'equalize': lambda image, _: ImageOps.equalize(image),
    'sharpness': lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    'posterize': ImageOps.posterize,
    'solarize': ImageOps.solarize,
}
STRENGTHS = {
    'brightness': [0.05, 0.5, 0.731, 1.0, 1.27, 1.5],
    'contrast': [0.05, 0.5, 0.731, 1.0, 1.27, 1.5],
    'color': [0.05, 0.5, 1.0, 1.5], 'hue': [-127, -63, -1, 0, 1, 40, 127],
    'blur': [0.1, 0.7, 1.3, 2.0], 'sharpness': [0.05, 0.95], 'posterize': [4, 5, 6, 7],
    'solarize': [1, 100, 255]}
EVERY = [Operation(name, value) for name in REFERENCE for value in STRENGTHS.get(name, [None])]


def reference(operations, image):
    for name, value in operations:
        image = REFERENCE[name](image, value)
    return image


def dull(image):
    """Reduce the values to 60..187, so that autocontrast and equalize have an effect."""
    return Image.fromarray((60 + pixels(image) // 2).astype(np.uint8))


def test_every_operation_has_a_reference():
    assert set(P.PIXELS) == set(REFERENCE)
    assert set(P.PIXELS) == set(PUBLISHED_POOL) | set(JITTER) | {'grayscale'}


@pytest.mark.parametrize('operation', EVERY, ids=lambda o: '{} {}'.format(*o))
@pytest.mark.parametrize('size', [(16, 12), (1, 1), (1, 9), (9, 1)])
def test_pixels_are_pillows(operation, size):
    for image in (photo(*size), dull(photo(*size)), Image.new('RGB', size)):
        before = image.tobytes()
        result = P.apply([operation], image)
        assert result.mode == 'RGB' and result.size == size
        assert result.tobytes() == reference([operation], image).tobytes()
        assert image.tobytes() == before


def test_operations_change_an_image_except_where_they_should_not():
    image = dull(photo(64, 48))
    same = {str(operation) for operation in EVERY
            if P.apply([operation], image).tobytes() == image.tobytes()}
    # A blur this weak is lost in rounding. No value reaches 255, so solarize has no effect there.
    assert same == {str(Operation(*what)) for what in [
        ('identity', None), ('brightness', 1.0), ('contrast', 1.0), ('color', 1.0),
        ('blur', 0.1), ('solarize', 255)]}


def test_hue_shift_matches_the_reference_for_every_shift():
    image = photo(12, 12)
    for shift in range(-127, 128):
        assert P.shift_hue(image, shift).tobytes() == hue_reference(image, shift).tobytes()


@pytest.mark.parametrize('shift', [0, 29, -101])
def test_hue_shift_is_pillows_for_every_colour(shift):
    turned = [(hue + shift) % 256 for hue in range(256)]
    green, blue = np.mgrid[:256, :256].astype(np.uint8)
    for red in range(0, 256, 16):
        reds = np.repeat(np.arange(red, red + 16, dtype=np.uint8), 256)[:, None]
        colours = np.stack([np.broadcast_to(reds, (16 * 256, 256)), np.tile(green, (16, 1)),
                            np.tile(blue, (16, 1))], axis=2)
        image = Image.fromarray(colours)
        expected = image.convert('HSV').point(turned + 2 * list(range(256))).convert('RGB')
        assert P.shift_hue(image, shift).tobytes() == expected.tobytes()


def test_hue_shift_turns_red_to_green_and_blue():
    red = Image.new('RGB', (2, 2), (255, 0, 0))
    assert P.shift_hue(red, 85).getpixel((0, 0)) == (0, 255, 0)
    near_blue = P.shift_hue(red, -85).getpixel((1, 1))
    assert near_blue[2] == 255 and near_blue[0] < 10 and near_blue[1] < 10


@pytest.mark.parametrize('factor', [0.0, 0.003, 0.004, 0.1, 0.2, 0.25])
def test_hue_shift_is_torchvisions(factor):
    # Only positive factors: how torchvision casts a negative one depends on NumPy's release.
    image = photo()
    expected = F.adjust_hue(image, factor)
    assert P.shift_hue(image, int(factor * 255)).tobytes() == expected.tobytes()


def test_grayscale_is_luma_in_three_equal_channels():
    image = photo()
    luma = pixels(image) @ np.array([299, 587, 114]) / 1000
    gray = P.apply([Operation('grayscale')], image)
    assert np.abs(pixels(gray) - luma[..., None]).max() <= 1
    assert (pixels(gray) == pixels(gray)[..., :1]).all()


@pytest.mark.parametrize('operation', EVERY, ids=lambda o: '{} {}'.format(*o))
def test_operations_on_gray_are_those_on_three_equal_channels(operation):
    for image in (photo(21, 14), dull(photo(21, 14))):
        operations = [Operation('grayscale'), operation]
        assert P.apply(operations, image).tobytes() == reference(operations, image).tobytes()


def test_operations_are_applied_in_their_order():
    rng, image = stream(), photo(23, 17)
    for _ in range(200):
        operations = P.color_jitter(rng) + P.sometimes(P.grayscale, 0.3, rng) \
            + P.sometimes(P.blur, 0.5, rng) + P.strong_pool(rng, 3)
        assert P.apply(operations, image).tobytes() == reference(operations, image).tobytes()


# A part of the result.

def crop(image, box):
    top, left, height, width = box
    return pixels(image)[top:top + height, left:left + width]


def random_box(size, rng):
    """A box in an image of (width, height) `size`: any box, one pixel, or one at a border."""
    left, top = (int(rng.integers(0, side)) for side in size)
    width = int(rng.integers(1, size[0] - left + 1))
    height = int(rng.integers(1, size[1] - top + 1))
    kind = rng.integers(4)
    return [(top, left, height, width), (top, left, 1, 1), (0, left, height, width),
            (top, left, size[1] - top, size[0] - left)][kind]


@pytest.mark.parametrize('operation', EVERY, ids=lambda o: '{} {}'.format(*o))
def test_a_box_is_the_whole_result_cropped(operation):
    rng, size = stream(), (61, 47)
    for image in (photo(*size), dull(photo(*size))):
        for _ in range(12):
            box = random_box(size, rng)
            result = P.apply([operation], image, box)
            assert result.mode == 'RGB' and result.size == (box[3], box[2])
            np.testing.assert_array_equal(pixels(result), crop(P.apply([operation], image), box))


@pytest.mark.parametrize('sigma', [0.0, 0.1, 0.5, 1.0, 1.3, 1.5, 1.999, 2.0, 2.5, 3.4, 5.0, 100.0])
def test_a_box_near_a_blurred_point_is_exact(sigma):
    # Black except for one white pixel. A margin that is too small would lose a part of its blur.
    image = Image.new('RGB', (40, 1))
    image.putpixel((20, 0), (255, 255, 255))
    whole = P.apply([Operation('blur', sigma)], image)
    for left, width in itertools.product(range(40), (1, 2, 5)):
        box = (0, left, 1, min(width, 40 - left))
        np.testing.assert_array_equal(pixels(P.apply([Operation('blur', sigma)], image, box)),
                                      crop(whole, box))


@pytest.mark.parametrize('num_aug', [0, 3])
def test_a_box_of_several_operations_is_the_whole_result_cropped(num_aug):
    rng, size = stream(num_aug), (57, 44)
    for number in range(250):
        operations = P.sometimes(P.color_jitter, 0.8, rng) + P.sometimes(P.grayscale, 0.2, rng) \
            + P.sometimes(P.blur, 0.7, rng) + (P.strong_pool(rng, num_aug) if num_aug else [])
        image, box = photo(*size, number=number % 5), random_box(size, rng)
        np.testing.assert_array_equal(pixels(P.apply(operations, image, box)),
                                      crop(reference(operations, image), box), str(operations))


def test_only_pixels_near_the_box_are_computed(monkeypatch):
    sizes = []
    for name, (function, reach) in list(P.PIXELS.items()):
        def recorded(image, value, function=function):
            sizes.append(image.size)
            return function(image, value)
        monkeypatch.setitem(P.PIXELS, name, (recorded, reach))
    image, box = photo(100, 80), (30, 40, 10, 20)
    P.apply([Operation('hue', 9), Operation('blur', 1.0), Operation('sharpness', 0.5)], image, box)
    assert sizes == [(20 + 8, 10 + 8)] * 3
    # Contrast depends on the whole image, so the operations before it need the whole image.
    del sizes[:]
    P.apply([Operation('hue', 9), Operation('contrast', 0.6), Operation('hue', 9)], image, box)
    assert sizes == [(100, 80), (100, 80), (20, 10)]
