"""Elementary operations against the published numbers and slow references.

Draws come from one fixed stream per test, so nothing here is left to chance; the bounds are those
that a right program passes for nearly every stream.
"""
import json
import math
import os

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import functional as torchvision_functional

from dssn.data import transforms as T

with open(os.path.join(os.path.dirname(__file__), 'data', 'augmentation_facts.json')) as file:
    FACTS = json.load(file)
COMMON, POOL = FACTS['common'], FACTS['strong_pool']
PUBLISHED_POOL = sorted(set(POOL) - {'drawn'})


def stream(number=0):
    return np.random.default_rng((20230,) + (number if isinstance(number, tuple) else (number,)))


def photo(width=16, height=12, number=0):
    rng = stream((number, width, height))
    values = rng.integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def pixels(image):
    return np.asarray(image)


def assert_equal_chances(values, expected, bound=5.0):
    """Every expected value occurs, no other does, and each about as often as the rest."""
    found, counts = np.unique(np.asarray(values), return_counts=True)
    assert list(found) == sorted(expected)
    mean = len(values) / len(expected)
    chi2 = ((counts - mean) ** 2 / mean).sum()
    degrees = len(expected) - 1
    # Mean and deviation of the chi-square distribution.
    assert chi2 <= degrees + bound * math.sqrt(2 * degrees)


def assert_uniform(values, low, high, bound=5.0):
    """The values fill [low, high] evenly."""
    values = (np.sort(np.asarray(values, float)) - low) / (high - low)
    n = len(values)
    assert values[0] >= 0 and values[-1] <= 1
    # Nothing of the range is left out at its ends, nor anywhere between (Kolmogorov-Smirnov).
    assert values[0] < 12 / n and values[-1] > 1 - 12 / n
    assert np.abs(values - (np.arange(n) + 0.5) / n).max() < 2 / math.sqrt(n)


def assert_share(count, n, probability, bound=5.0):
    assert abs(count - n * probability) < bound * math.sqrt(n * probability * (1 - probability))


class Chosen:
    """A random generator whose `random()` returns chosen numbers and which draws nothing else."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


# Geometric.

@pytest.mark.parametrize('size', [(9, 4), (4, 9), (8, 8), (7, 1), (1, 7), (1, 1), (2, 1)])
def test_scale_draws_the_long_side_as_a_whole_number(size):
    long, short = max(size), min(size)
    low, high = COMMON['resize_ratio']
    allowed = range(int(low * long), int(high * long) + 1)
    rng, longs = stream(), []
    for _ in range(40 * len(allowed)):
        scaled = T.random_size(size, rng)
        wide, tall = scaled if size[0] >= size[1] else scaled[::-1]
        # A side of no pixels is no image: one pixel is the least.
        assert tall == max(int(short * wide / long + 0.5), 1)
        longs.append(wide)
    if long > 1:
        assert_equal_chances(longs, allowed)
    else:
        # 0.5 of one pixel is none: that draw gives one.
        assert set(longs) == {1, 2}


def test_scale_of_a_photograph_stays_in_range_with_both_ends():
    rng = stream()
    sizes = {T.random_size((50, 33), rng) for _ in range(2000)}
    widths = sorted(width for width, _ in sizes)
    assert (widths[0], widths[-1]) == (25, 100)
    # 33 * 25 / 50 = 16.5 and 33 * 99 / 50 = 65.34: halves go up, the rest to the nearest.
    assert (25, 17) in sizes and (99, 65) in sizes and (100, 66) in sizes


@pytest.mark.parametrize('size', [(11, 9), (9, 11), (3, 11), (11, 2), (1, 1), (6, 6), (1, 30)])
def test_place_is_anywhere_in_the_padded_image(size):
    side, rng = 6, stream()
    allowed = [(left, top) for left in range(max(size[0] - side, 0) + 1)
               for top in range(max(size[1] - side, 0) + 1)]
    drawn = [T.random_place(size, side, rng) for _ in range(60 * len(allowed))]
    assert_equal_chances([left * 1000 + top for left, top in drawn],
                         [left * 1000 + top for left, top in allowed])


def test_every_other_view_is_mirrored():
    rng, n = stream(), 4000
    assert_share(sum(T.random_flip(rng) for _ in range(n)), n, COMMON['flip'])


def test_a_window_draws_scale_place_and_flip_in_this_order():
    for number in range(50):
        rng, again = stream(number), stream(number)
        window = T.random_window((40, 30), 24, rng)
        size = T.random_size((40, 30), again)
        assert window[:2] == size and window.side == 24
        assert (window.left, window.top) == T.random_place(size, 24, again)
        assert window.mirrored == T.random_flip(again) and rng.random() == again.random()


def resized_then_cropped(image, window, resample, fill):
    """The window by its definition: the whole resized, padded, cropped, mirrored, as an array."""
    whole = pixels(image.resize((window.width, window.height), resample))
    padded = np.full((max(window.height, window.side), max(window.width, window.side))
                     + whole.shape[2:], fill, np.uint8)
    padded[:window.height, :window.width] = whole
    cut = padded[window.top:window.top + window.side, window.left:window.left + window.side]
    return cut[:, ::-1] if window.mirrored else cut


def assert_windows_equal_resize_then_crop(size, side, rng, black_and_white):
    values = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    if black_and_white:  # the worst there is for rounding
        values[..., :3] = np.where(values[..., :3] > 127, 255, 0)
    image, mask = Image.fromarray(values[..., :3].copy()), Image.fromarray(values[..., 3].copy())
    window = T.random_window(size, side, rng)
    expected = resized_then_cropped(image, window, Image.Resampling.BILINEAR, 0)
    found = T.cut_image(image, window)
    assert found.mode == 'RGB' and found.size == (side, side)
    assert np.abs(pixels(found).astype(int) - expected).max() <= 2, (size, window)
    truth = T.cut_mask(mask, window)
    assert truth.mode == 'L'
    expected = resized_then_cropped(mask, window, Image.Resampling.NEAREST, 255)
    np.testing.assert_array_equal(pixels(truth), expected, str((size, window)))
    nothing = resized_then_cropped(Image.new('L', size), window, Image.Resampling.NEAREST, 255)
    np.testing.assert_array_equal(pixels(T.cut_padding(window)), nothing)


def test_windows_are_those_of_the_resized_image_for_any_size():
    # Odd and even, a pixel wide, smaller and larger than the crop.
    rng = stream()
    for number in range(400):
        size = [int(rng.integers(1, (2, 9, 60, 300)[rng.integers(4)])) for _ in range(2)]
        assert_windows_equal_resize_then_crop(size, int(rng.integers(1, 130)), rng, number % 2)


@pytest.mark.parametrize('size, side', [((480, 360), 321), ((500, 375), 513), ((2048, 1024), 801)])
def test_windows_are_those_of_the_resized_image_at_real_sizes(size, side):
    rng = stream()
    for number in range(6):
        assert_windows_equal_resize_then_crop(size, side, rng, number % 2)


@pytest.mark.parametrize('old, new', [(16, 8), (16, 33), (1, 2), (2, 1), (301, 300), (7, 1000)])
def test_nearest_is_the_pixel_under_the_centre(old, new):
    # A centre on the border of two pixels may give either.
    centres = (np.arange(new) + 0.5) * old / new
    places = T.nearest(old, new)
    assert ((places == np.floor(centres - 1e-6)) | (places == np.floor(centres + 1e-6))).all()


# Photometric.

def hue_reference(image, shift):
    """Every pixel by itself: hue byte moved on a circle of 256, saturation and value kept."""
    data = image.convert('HSV').tobytes()
    turned = bytes((byte + shift) % 256 if i % 3 == 0 else byte for i, byte in enumerate(data))
    return Image.frombytes('HSV', image.size, turned).convert('RGB')


def test_hue_shift_matches_the_reference_for_every_shift():
    image = photo(12, 12)
    for shift in range(-127, 128):
        assert T.shift_hue(image, shift).tobytes() == hue_reference(image, shift).tobytes()


def test_hue_shift_turns_red_to_green_and_blue():
    red = Image.new('RGB', (2, 2), (255, 0, 0))
    assert T.shift_hue(red, 85).getpixel((0, 0)) == (0, 255, 0)
    near_blue = T.shift_hue(red, -85).getpixel((1, 1))
    assert near_blue[2] == 255 and near_blue[0] < 10 and near_blue[1] < 10


@pytest.mark.parametrize('factor', [0.0, 0.003, 0.004, 0.1, 0.2, 0.25])
def test_hue_shift_is_torchvisions(factor):
    # Positive factors only: torchvision's cast of a negative one depends on NumPy's release.
    image = photo()
    expected = torchvision_functional.adjust_hue(image, factor)
    assert T.shift_hue(image, int(factor * 255)).tobytes() == expected.tobytes()


JITTER = ('brightness', 'contrast', 'saturation', 'hue')


@pytest.fixture
def jitter_log(monkeypatch):
    """A list of (operation, strength) that color_jitter applies, in its order."""
    log = []

    def recorded(name, operation):
        def call(image, strength):
            log.append((name, strength))
            return operation(image, strength)
        return call
    for name in JITTER[:3]:
        function = 'adjust_' + name
        monkeypatch.setattr(T.F, function, recorded(name, getattr(T.F, function)))
    monkeypatch.setattr(T, 'shift_hue', recorded('hue', T.shift_hue))
    return log


def test_jitter_is_torchvisions_on_pillow_images_in_the_order_drawn(jitter_log):
    image, rng = photo(), stream()
    originals = {'brightness': ImageEnhance.Brightness, 'contrast': ImageEnhance.Contrast,
                 'saturation': ImageEnhance.Color}
    for _ in range(30):
        del jitter_log[:]
        result = T.color_jitter(image, rng)
        expected = image
        for name, strength in jitter_log:
            if name == 'hue':
                expected = hue_reference(expected, strength)
            else:
                expected = originals[name](expected).enhance(strength)
        assert result.tobytes() == expected.tobytes()
        assert result.tobytes() != image.tobytes()


def test_jitter_draws_all_four_strengths_and_all_orders_evenly(jitter_log):
    image, rng, n = Image.new('RGB', (1, 1)), stream(), 4800
    for _ in range(n):
        T.color_jitter(image, rng)
    calls = [jitter_log[i:i + 4] for i in range(0, 4 * n, 4)]
    orders = [''.join(name[0] for name, _ in call) for call in calls]
    assert len(set(orders)) == 24 and all(len(set(order)) == 4 for order in orders)
    assert_equal_chances(orders, set(orders))
    for name in JITTER[:3]:
        assert_uniform([dict(call)[name] for call in calls], *COMMON['jitter_' + name])
    # Hue comes in whole steps of the 8-bit circle, truncated: 0 is twice as wide as the others.
    shifts = np.array([dict(call)['hue'] for call in calls])
    low, high = (int(255 * end) for end in COMMON['jitter_hue'])
    assert (low, high) == (-63, 63)
    assert shifts.min() == low and shifts.max() == high
    assert_equal_chances(shifts[(shifts != 0) & (abs(shifts) < 63)],
                         [s for s in range(-62, 63) if s != 0])
    assert_share((shifts == 0).sum(), n, 2 / 127.5)
    # The strengths have nothing to do with each other.
    strengths = np.array([[dict(call)[name] for name in JITTER] for call in calls], float)
    assert np.abs(np.corrcoef(strengths.T) - np.eye(4)).max() < 0.08


def test_grayscale_is_luma_in_three_equal_channels():
    image = photo()
    luma = pixels(image) @ np.array([299, 587, 114]) / 1000
    gray = T.grayscale(image, stream())
    assert gray.mode == 'RGB'
    assert np.abs(pixels(gray) - luma[..., None]).max() <= 1
    assert (pixels(gray) == pixels(gray)[..., :1]).all()


@pytest.fixture
def sigmas(monkeypatch):
    """A list of the sigmas that images are blurred with."""
    found = []

    class Recorded(ImageFilter.GaussianBlur):
        def __init__(self, radius):
            found.append(radius)
            super().__init__(radius)
    monkeypatch.setattr(ImageFilter, 'GaussianBlur', Recorded)
    return found


@pytest.mark.parametrize('operation, facts', [
    (T.blur, COMMON['blur_sigma']), (dict(T.STRONG_POOL)['blur'], POOL['blur']['sigma'])])
def test_blur_is_gaussian_with_uniform_sigma(sigmas, operation, facts):
    rng, image = stream(), Image.new('RGB', (1, 1))
    for _ in range(3000):
        operation(image, rng)
    assert len(sigmas) == 3000
    assert_uniform(sigmas, *facts)
    del sigmas[:]
    blurred = operation(photo(), stream(1))
    expected = photo().filter(ImageFilter.GaussianBlur(sigmas[0]))
    assert blurred.tobytes() == expected.tobytes()


@pytest.mark.parametrize('probability', [0.0, 0.2, 0.8, 1.0])
def test_sometimes(probability):
    rng, image, calls = stream(), photo(), []

    def operation(given, given_rng):
        assert given is image and given_rng is rng
        calls.append(1)
        return 'changed'
    results = [T.sometimes(operation, probability, image, rng) for _ in range(3000)]
    assert results.count('changed') == len(calls)
    assert all(result in ('changed', image) for result in results)
    if probability in (0.0, 1.0):
        assert len(calls) == 3000 * probability
    else:
        assert_share(len(calls), 3000, probability)


# The strong pool.

def test_the_pool_has_the_eleven_published_operations():
    assert sorted(name for name, _ in T.STRONG_POOL) == PUBLISHED_POOL
    assert len(T.STRONG_POOL) == 11


def strong(name, image, rng):
    return dict(T.STRONG_POOL)[name](image, rng)


@pytest.mark.parametrize('name, reference', [
    ('identity', lambda image: image), ('autocontrast', ImageOps.autocontrast),
    ('equalize', ImageOps.equalize)])
def test_pool_operations_without_strength(name, reference):
    # Values from 60 to 187 only, so that autocontrast has something to stretch.
    image = Image.fromarray((60 + pixels(photo()) // 2).astype(np.uint8))
    assert strong(name, image, stream()).tobytes() == reference(image).tobytes()
    if name == 'autocontrast':
        assert pixels(strong(name, image, stream())).max() == 255


@pytest.mark.parametrize('name, kind', [
    ('contrast', 'Contrast'), ('brightness', 'Brightness'), ('color', 'Color'),
    ('sharpness', 'Sharpness')])
def test_pool_enhancements_and_their_factors(monkeypatch, name, kind):
    # Pixels first: which factor gives this image? At most one of a fine grid's neighbours may.
    image, rng = photo(), stream()
    factors = []
    original = ImageEnhance._Enhance.enhance

    def recorded(self, factor):
        factors.append((type(self).__name__, factor))
        return original(self, factor)
    monkeypatch.setattr(ImageEnhance._Enhance, 'enhance', recorded)
    for _ in range(20):
        del factors[:]
        result = strong(name, image, rng)
        (used, factor), = factors
        assert used == kind
        expected = original(getattr(ImageEnhance, kind)(image), factor)
        assert result.tobytes() == expected.tobytes() != image.tobytes()
    del factors[:]
    small = Image.new('RGB', (1, 1))
    for _ in range(3000):
        strong(name, small, rng)
    assert_uniform([factor for _, factor in factors], *POOL[name]['factor'])


RAMP = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))


def test_posterize_keeps_four_to_seven_bits_with_equal_chances():
    values, rng, drawn = np.arange(256), stream(), []
    expected = {(values & (0xFF << (8 - bits)) & 0xFF).astype(np.uint8).tobytes(): bits
                for bits in range(1, 9)}
    for _ in range(2000):
        drawn.append(expected[pixels(strong('posterize', RAMP, rng))[0, :, 1].tobytes()])
    assert_equal_chances(drawn, POOL['posterize']['bits, equal chance'])


def solarize_threshold(rng):
    """The first value that is inverted; checks that all from it on are, and none below."""
    result = pixels(strong('solarize', RAMP, rng))[0, :, 0].astype(int)
    values = np.arange(256)
    threshold = int(np.argmax(result != values))
    np.testing.assert_array_equal(result, np.where(values < threshold, values, 255 - values))
    return threshold


@pytest.mark.parametrize('u', [0.0, 1e-9, 1 / 255, 1 / 255 + 1e-9, 0.25, 0.5, 0.77, 0.9999999])
def test_solarize_threshold_by_formula(u):
    assert solarize_threshold(Chosen(u)) == 256 - max(1, math.ceil(255 * u))


def test_solarize_thresholds_are_1_to_255_with_equal_chances():
    rng = stream()
    assert_equal_chances([solarize_threshold(rng) for _ in range(8000)],
                         range(POOL['solarize']['threshold'][0],
                               POOL['solarize']['threshold'][1] + 1))


@pytest.mark.parametrize('u', [0.0, 1e-9, 0.0078, 0.0079, 0.3, 0.5, 0.77, 0.996, 0.9999999])
def test_pool_hue_shift_by_formula(u):
    image = photo(8, 8)
    results = {strong('hue', image, Chosen(coin, u)).tobytes() for coin in (0.2, 0.7)}
    assert results == {hue_reference(image, math.trunc(sign * 0.5 * u * 255)).tobytes()
                       for sign in (1, -1)}


def test_pool_hue_shifts_fill_half_the_circle_either_way(monkeypatch):
    shifts = []
    monkeypatch.setattr(T, 'shift_hue', lambda image, shift: shifts.append(shift))
    rng, n = stream(), 20000
    for _ in range(n):
        strong('hue', None, rng)
    shifts = np.array(shifts)
    low, high = POOL['hue']['shift of the 8-bit hue, wrapping']
    assert (shifts.min(), shifts.max()) == (low, high)
    assert_equal_chances(shifts[(shifts != 0) & (abs(shifts) < high)],
                         [s for s in range(low + 1, high) if s != 0])
    # |shift| is the whole part of 127.5 u: 127 has half a step, 0 one step for both signs.
    assert_share((abs(shifts) == high).sum(), n, 0.5 / 127.5)
    assert_share((shifts == 0).sum(), n, 1 / 127.5)
    assert_share((shifts > 0).sum(), n, 0.5 * 126.5 / 127.5)


@pytest.fixture
def pool_log(monkeypatch):
    """A list of the pool operations drawn; each adds itself to the 'image', a tuple of names."""
    def recorded(name):
        return name, lambda image, rng: image + (name,)
    monkeypatch.setattr(T, 'STRONG_POOL', tuple(recorded(name) for name, _ in T.STRONG_POOL))


@pytest.mark.parametrize('num_aug', [1, 2, 3, 5])
def test_number_of_pool_operations_is_uniform(pool_log, num_aug):
    rng = stream()
    drawn = [T.strong_pool((), rng, num_aug) for _ in range(3000)]
    if num_aug == 1:
        assert {len(names) for names in drawn} == {1}
    else:
        assert_equal_chances([len(names) for names in drawn], range(1, num_aug + 1))
    if num_aug == 3:
        assert COMMON['strong_operations'] == [1, 2, 3]
    fixed = [T.strong_pool((), rng, num_aug, False) for _ in range(300)]
    assert {len(names) for names in fixed} == {num_aug}


def test_pool_operations_are_drawn_with_replacement_and_equal_chances(pool_log):
    rng = stream()
    drawn = [T.strong_pool((), rng, 2, False) for _ in range(8000)]
    names = [name for name, _ in T.STRONG_POOL]
    # All 121 ordered pairs alike: with replacement, the second independent of the first.
    assert_equal_chances(['%s %s' % pair for pair in drawn],
                         ['%s %s' % (a, b) for a in names for b in names])


def test_the_pool_chains_its_operations():
    # With the true table: the result is a chain, each operation on the last one's result.
    image, rng, log = photo(), stream(), []
    table = dict(T.STRONG_POOL)

    def recorded(name):
        def call(given, given_rng):
            result = table[name](given, given_rng)
            log.append((given, result))
            return result
        return call
    pool, T.STRONG_POOL = T.STRONG_POOL, tuple((name, recorded(name)) for name in table)
    try:
        for _ in range(20):
            del log[:]
            result = T.strong_pool(image, rng, 3, False)
            assert log[0][0] is image and log[-1][1] is result
            assert all(a[1] is b[0] for a, b in zip(log, log[1:])) and len(log) == 3
    finally:
        T.STRONG_POOL = pool


@pytest.mark.parametrize('name', PUBLISHED_POOL)
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1)])
def test_pool_operations_take_the_smallest_images(name, size):
    result = strong(name, photo(*size), stream())
    assert result.mode == 'RGB' and result.size == size
