"""Photometric operations on Pillow images: how each is sampled, and what it does to pixels.

Sampling needs no image: it returns the operations of a view as a list of `Operation`. `apply` then
applies them. The result is bit-identical to applying Pillow's and torchvision's functions one after
another. It is faster, because it computes only the part that is needed, and replaces arithmetic by
tables. `rng` is a numpy Generator, the only source of random numbers.
"""
import math
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps, ImageStat


class Operation(NamedTuple):
    """A name in `PIXELS` and its strength; None if the operation has no strength."""
    name: str
    strength: Optional[float] = None


# Sampling: each function returns a list of operations.

def color_jitter(rng, strength=0.5, hue=0.25):
    """Brightness, contrast, saturation (1 - strength to 1 + strength) and hue, in random order."""
    operations = [Operation(name, rng.uniform(1 - strength, 1 + strength))
                  for name in ('brightness', 'contrast', 'color')]
    operations.append(Operation('hue', int(rng.uniform(-hue, hue) * 255)))
    return [operations[i] for i in rng.permutation(4)]


def grayscale(rng):
    """Convert to gray."""
    return [Operation('grayscale')]


def blur(rng, sigma=(0.1, 2.0)):
    """Gaussian blur with a sigma between two values, pixels."""
    return [Operation('blur', rng.uniform(*sigma))]


def sometimes(sample, probability, rng, *arguments):
    """`sample(rng, *arguments)` with a probability, else no operation."""
    return sample(rng, *arguments) if rng.random() < probability else []


def strong_pool(rng, num_aug, random_number=True):
    """n operations of the pool, sampled with replacement.

    n is uniform in 1..num_aug, or num_aug if not random_number.
    """
    n = int(rng.integers(1, num_aug, endpoint=True)) if random_number else num_aug
    sampled = [STRONG_POOL[i] for i in rng.integers(0, len(STRONG_POOL), n)]
    return [Operation(name, strength(rng)) for name, strength in sampled]


def _no_strength(rng):
    return None


def _sigma(rng):
    return rng.uniform(0.1, 2.0)


def _factor(rng):
    return rng.uniform(0.05, 0.95)


def _bits(rng):
    return int(rng.integers(4, 7, endpoint=True))


def _threshold(rng):
    return 256 - max(1, math.ceil(255 * rng.random()))


def _shift(rng):
    sign = 1 if rng.random() < 0.5 else -1
    return int(sign * 0.5 * rng.random() * 255)


# (name, function that samples its strength)
STRONG_POOL = (
    ('identity', _no_strength),
    ('autocontrast', _no_strength),
    ('equalize', _no_strength),
    ('blur', _sigma),
    ('contrast', _factor),
    ('brightness', _factor),
    ('color', _factor),
    ('sharpness', _factor),
    ('posterize', _bits),
    ('solarize', _threshold),
    ('hue', _shift),
)


# Pixels: each function maps an image (RGB, or L after `grayscale`) and a strength to an image.

RAMP = Image.frombytes('L', (256, 1), bytes(range(256)))  # every value once


def _apply_table(image, table):
    """Replace each value by the one that `table`, a processed `RAMP`, has at its place."""
    return image.point(list(table.tobytes()) * len(image.getbands()))


def brightness(image, factor):
    """Blend with black."""
    return _apply_table(image, ImageEnhance.Brightness(RAMP).enhance(factor))


def contrast(image, factor):
    """Blend with the mean luma of the whole image."""
    mean = int(ImageStat.Stat(image.convert('L')).mean[0] + 0.5)
    return _apply_table(image, Image.blend(Image.new('L', RAMP.size, mean), RAMP, factor))


def color(image, factor):
    """Saturation: blend with the grayscale image."""
    return ImageEnhance.Color(image).enhance(factor)


def shift_hue(image, shift):
    """Add `shift` to the 8-bit hue, modulo 256. Saturation and value stay.

    Pillow converts to HSV. The way back to RGB is computed on whole arrays, with the same result.
    There each channel is v (1 - s/255 k/85), rounded, where k in 0..85 depends only on the hue. In
    integers this is v (FULL - s k) / FULL. Float32 is exact enough: it represents the numerator
    exactly, and since FULL is odd, the quotient is at least 1 / (2 FULL) away from the nearest
    half, which is three times the error of a float32 division.
    """
    if image.mode == 'L':
        return image  # gray has no hue
    hsv = image.convert('HSV')
    hue, saturation, value = [hsv.tobytes('raw', band) for band in 'HSV']
    parts = [np.frombuffer(hue.translate(np.roll(k, -shift).tobytes()), np.uint8)
             for k in HUE_PARTS]
    saturation, value = np.frombuffer(saturation, np.uint8), np.frombuffer(value, np.uint8)
    channels = np.empty((3, len(value)), np.uint8)
    for start in range(0, len(value), 1 << 15):  # pieces that fit into the cache of a core
        piece = slice(start, start + (1 << 15))
        s, v = saturation[piece].astype(np.uint16), value[piece].astype(np.float32)
        for channel, k in zip(channels, parts):
            channel[piece] = np.rint((FULL - s * k[piece]) * v / np.float32(FULL))
    return Image.merge('RGB', [Image.frombuffer('L', image.size, channel.data, 'raw', 'L', 0, 1)
                               for channel in channels])


def _hue_parts():
    """k of `shift_hue` for red, green and blue at each hue: (3, 256) uint8.

    The hue circle has six sectors of 85 half steps. In each sector one channel falls or rises, one
    is at its maximum (k = 0) and one at its minimum (k = 85).
    """
    sector, step = np.divmod(2 * np.arange(256), 85)  # hue 255 closes the circle: it equals hue 0
    high, down, low, up = 0 * step, step, 0 * step + 85, 85 - step
    red = high, down, low, low, up, high
    green = up, high, high, down, low, low
    blue = low, low, up, high, high, down
    return np.stack([np.choose(sector % 6, channel)
                     for channel in (red, green, blue)]).astype(np.uint8)


FULL = np.uint16(255 * 85)
HUE_PARTS = _hue_parts()


def gaussian_blur(image, sigma):
    """Pillow's approximation of a Gaussian blur."""
    return image.filter(ImageFilter.GaussianBlur(sigma))


def blur_reach(sigma):
    """How far a pixel of `gaussian_blur` sees: Pillow applies three box blurs."""
    return 3 * (int((math.sqrt(4 * sigma ** 2 + 1) - 1) / 2) + 1)


WHOLE = None
# name: (function, reach). A pixel of the result depends on the pixels up to `reach` away from it,
# or on the WHOLE image. The reach may be a function of the strength.
PIXELS = {
    'identity': (lambda image, _: image, 0),
    'brightness': (brightness, 0),
    'contrast': (contrast, WHOLE),
    'color': (color, 0),
    'hue': (shift_hue, 0),
    # From here on the three bands are equal. One band is enough until `apply` returns RGB.
    'grayscale': (lambda image, _: image.convert('L'), 0),
    'blur': (gaussian_blur, blur_reach),
    'autocontrast': (lambda image, _: ImageOps.autocontrast(image), WHOLE),
    'equalize': (lambda image, _: ImageOps.equalize(image), WHOLE),
    'sharpness': (lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor), 1),
    'posterize': (ImageOps.posterize, 0),
    'solarize': (ImageOps.solarize, 0),
}


def apply(operations, image, box=None):
    """Apply the operations one after another.

    Args:
        operations: list of `Operation`. image: Pillow RGB.
        box: (top, left, height, width) of the needed part of the result; None: all of it.

    Returns:
        RGB, of the size of the image or of the box. A box holds the same pixels as the whole
        result cropped to it.
    """
    steps = []
    for name, strength in operations:
        function, reach = PIXELS[name]
        steps.append((function, reach(strength) if callable(reach) else reach, strength))
    # Up to the last operation that depends on the whole image, all pixels are needed.
    n_whole = 1 + max((i for i, (_, reach, _) in enumerate(steps) if reach is WHOLE), default=-1)
    for function, _, strength in steps[:n_whole]:
        image = function(image, strength)
    if box is not None:
        top, left, height, width = box
        margin = sum(reach for _, reach, _ in steps[n_whole:])
        crop_top, crop_left = max(top - margin, 0), max(left - margin, 0)
        image = image.crop((crop_left, crop_top, min(left + width + margin, image.width),
                            min(top + height + margin, image.height)))
    for function, _, strength in steps[n_whole:]:
        image = function(image, strength)
    if box is not None:
        top, left = top - crop_top, left - crop_left
        image = image.crop((left, top, left + width, top + height))
    return image if image.mode == 'RGB' else image.convert('RGB')
