"""Geometric operations, compared with the published numbers and slow references.

Each test has a fixed random stream, so its result does not depend on chance. The bounds hold for
a correct program with almost every stream.
"""
import json
import math
import os

import numpy as np
import pytest
from PIL import Image

from dssn.data import transforms as T

with open(os.path.join(os.path.dirname(__file__), 'data', 'augmentation_facts.json')) as file:
    COMMON = json.load(file)['common']


def stream(number=0):
    return np.random.default_rng((20230,) + (number if isinstance(number, tuple) else (number,)))


def photo(width=16, height=12, number=0):
    rng = stream((number, width, height))
    values = rng.integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def pixels(image):
    return np.asarray(image)


def assert_equal_chances(values, expected, bound=5.0):
    """Exactly the expected values occur, and all about equally often."""
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
    # The values reach both ends, and leave no gap in between (Kolmogorov-Smirnov).
    assert values[0] < 12 / n and values[-1] > 1 - 12 / n
    assert np.abs(values - (np.arange(n) + 0.5) / n).max() < 2 / math.sqrt(n)


def assert_fraction(count, n, probability, bound=5.0):
    assert abs(count - n * probability) < bound * math.sqrt(n * probability * (1 - probability))


@pytest.mark.parametrize('size', [(9, 4), (4, 9), (8, 8), (7, 1), (1, 7), (1, 1), (2, 1)])
def test_the_scaled_long_side_is_a_whole_number(size):
    long, short = max(size), min(size)
    low, high = COMMON['resize_ratio']
    allowed = range(int(low * long), int(high * long) + 1)
    rng, longs = stream(), []
    for _ in range(40 * len(allowed)):
        scaled = T.random_size(size, rng)
        wide, tall = scaled if size[0] >= size[1] else scaled[::-1]
        # A side has at least one pixel.
        assert tall == max(int(short * wide / long + 0.5), 1)
        longs.append(wide)
    if long > 1:
        assert_equal_chances(longs, allowed)
    else:
        # 0.5 of one pixel would be 0 pixels. It is raised to 1.
        assert set(longs) == {1, 2}


def test_the_scale_of_a_photograph_reaches_both_ends():
    rng = stream()
    sizes = {T.random_size((50, 33), rng) for _ in range(2000)}
    widths = sorted(width for width, _ in sizes)
    assert (widths[0], widths[-1]) == (25, 100)
    # 33 * 25 / 50 = 16.5 and 33 * 99 / 50 = 65.34: rounded to the nearest, halves up.
    assert (25, 17) in sizes and (99, 65) in sizes and (100, 66) in sizes


@pytest.mark.parametrize('size', [(11, 9), (9, 11), (3, 11), (11, 2), (1, 1), (6, 6), (1, 30)])
def test_place_is_uniform_in_the_padded_image(size):
    side, rng = 6, stream()
    allowed = [(left, top) for left in range(max(size[0] - side, 0) + 1)
               for top in range(max(size[1] - side, 0) + 1)]
    places = [T.random_place(size, side, rng) for _ in range(60 * len(allowed))]
    assert_equal_chances([left * 1000 + top for left, top in places],
                         [left * 1000 + top for left, top in allowed])


def test_half_of_the_views_are_mirrored():
    rng, n = stream(), 4000
    assert_fraction(sum(T.random_flip(rng) for _ in range(n)), n, COMMON['flip'])


def test_a_window_samples_scale_place_and_flip_in_this_order():
    for number in range(50):
        rng, again = stream(number), stream(number)
        window = T.random_window((40, 30), 24, rng)
        size = T.random_size((40, 30), again)
        assert window[:2] == size and window.side == 24
        assert (window.left, window.top) == T.random_place(size, 24, again)
        assert window.mirrored == T.random_flip(again) and rng.random() == again.random()


def resized_then_cropped(image, window, resample, fill):
    """The window by its definition: resize the whole image, pad, crop, mirror; as an array."""
    whole = pixels(image.resize((window.width, window.height), resample))
    padded = np.full((max(window.height, window.side), max(window.width, window.side))
                     + whole.shape[2:], fill, np.uint8)
    padded[:window.height, :window.width] = whole
    cut = padded[window.top:window.top + window.side, window.left:window.left + window.side]
    return cut[:, ::-1] if window.mirrored else cut


def assert_windows_equal_resize_then_crop(size, side, rng, black_and_white):
    values = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    if black_and_white:  # the worst case for rounding
        values[..., :3] = np.where(values[..., :3] > 127, 255, 0)
    image, mask = Image.fromarray(values[..., :3].copy()), Image.fromarray(values[..., 3].copy())
    window = T.random_window(size, side, rng)
    expected = resized_then_cropped(image, window, Image.Resampling.BILINEAR, 0)
    found = T.crop_image(image, window)
    assert found.mode == 'RGB' and found.size == (side, side)
    assert np.abs(pixels(found).astype(int) - expected).max() <= 2, (size, window)
    cropped = T.crop_mask(mask, window)
    assert cropped.mode == 'L'
    expected = resized_then_cropped(mask, window, Image.Resampling.NEAREST, 255)
    np.testing.assert_array_equal(pixels(cropped), expected, str((size, window)))
    padding = resized_then_cropped(Image.new('L', size), window, Image.Resampling.NEAREST, 255)
    np.testing.assert_array_equal(pixels(T.padding_mask(window)), padding)


def test_windows_are_those_of_the_resized_image_for_any_size():
    # Sizes are odd and even, one pixel wide, smaller and larger than the crop.
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
    # If a centre lies on the border of two pixels, either is correct.
    centres = (np.arange(new) + 0.5) * old / new
    places = T.nearest(old, new)
    assert ((places == np.floor(centres - 1e-6)) | (places == np.floor(centres + 1e-6))).all()
