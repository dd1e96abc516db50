"""Photometric operations on Pillow images: how each is drawn, and what it does to pixels.

Drawing comes first and needs no image: a view's operations are a list of `Operation`. `apply` works
them out, to the last bit as Pillow and torchvision would one after another, but only where it
matters and by tables where Pillow computes. `rng` is a numpy Generator; every draw comes from it.
"""
import math
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps, ImageStat


class Operation(NamedTuple):
    """A name of `PIXELS` and how strongly it is done; None where there is no choice."""
    name: str
    strength: Optional[float] = None


# Draws: each gives a list of operations.

def color_jitter(rng):
    """Brightness, contrast, saturation (0.5 to 1.5) and hue (-0.25 to 0.25), in random order."""
    operations = [Operation(name, rng.uniform(0.5, 1.5))
                  for name in ('brightness', 'contrast', 'color')]
    operations.append(Operation('hue', int(rng.uniform(-0.25, 0.25) * 255)))
    return [operations[i] for i in rng.permutation(4)]


def grayscale(rng):
    return [Operation('grayscale')]


def blur(rng):
    return [Operation('blur', _sigma(rng))]


def sometimes(draw, probability, rng):
    return draw(rng) if rng.random() < probability else []


def strong_pool(rng, num_aug, random_number=True):
    """n operations of the pool drawn with replacement, n uniform in 1..num_aug (or num_aug)."""
    n = int(rng.integers(1, num_aug, endpoint=True)) if random_number else num_aug
    drawn = [STRONG_POOL[i] for i in rng.integers(0, len(STRONG_POOL), n)]
    return [Operation(name, strength(rng)) for name, strength in drawn]


def _nothing(rng):
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


# (name, how its strength is drawn).
STRONG_POOL = (
    ('identity', _nothing),
    ('autocontrast', _nothing),
    ('equalize', _nothing),
    ('blur', _sigma),
    ('contrast', _factor),
    ('brightness', _factor),
    ('color', _factor),
    ('sharpness', _factor),
    ('posterize', _bits),
    ('solarize', _threshold),
    ('hue', _shift),
)


# Pixels: image (RGB, or L once it is gray) and strength -> image.

RAMP = Image.frombytes('L', (256, 1), bytes(range(256)))  # every value: what comes of it is a table


def _looked_up(image, ramp):
    return image.point(list(ramp.tobytes()) * len(image.getbands()))


def brightness(image, factor):
    return _looked_up(image, ImageEnhance.Brightness(RAMP).enhance(factor))


def contrast(image, factor):
    """Blend with the mean luma of the whole image."""
    mean = int(ImageStat.Stat(image.convert('L')).mean[0] + 0.5)
    return _looked_up(image, Image.blend(Image.new('L', RAMP.size, mean), RAMP, factor))


def color(image, factor):
    """Saturation: blend with the grayscale image."""
    return ImageEnhance.Color(image).enhance(factor)


def shift_hue(image, shift):
    """Turn the 8-bit hue by `shift` steps, wrapping at 256; saturation and value stay.

    Pillow's conversion to HSV and back, but the way back in whole arrays. There each channel is
    v (1 - s/255 k/85), rounded, where k = 0..85 depends on the hue alone. In whole numbers that is
    v (FULL - s k) / FULL: the numerator is exact in float32, and since FULL is odd the quotient
    is at least 1 / (2 FULL) away from where rounding turns, three times a float32's error.
    """
    if image.mode == 'L':
        return image  # gray has no hue
    hsv = image.convert('HSV')
    hue, saturation, value = [hsv.tobytes('raw', band) for band in 'HSV']
    parts = [np.frombuffer(hue.translate(np.roll(k, -shift).tobytes()), np.uint8)
             for k in HUE_PARTS]
    saturation, value = np.frombuffer(saturation, np.uint8), np.frombuffer(value, np.uint8)
    channels = np.empty((3, len(value)), np.uint8)
    for start in range(0, len(value), 1 << 15):  # in pieces that stay in a core's cache
        piece = slice(start, start + (1 << 15))
        s, v = saturation[piece].astype(np.uint16), value[piece].astype(np.float32)
        for channel, k in zip(channels, parts):
            channel[piece] = np.rint((FULL - s * k[piece]) * v / np.float32(FULL))
    return Image.merge('RGB', [Image.frombuffer('L', image.size, channel.data, 'raw', 'L', 0, 1)
                               for channel in channels])


def _hue_parts():
    """k of `shift_hue` for red, green, blue at each hue: (3, 256) uint8.

    The circle has six sectors of 85 half steps. From one to the next one channel goes down or up,
    the others stay at most (k = 0) and least (k = 85).
    """
    sector, step = np.divmod(2 * np.arange(256), 85)  # 255 is where the circle closes, as 0 is
    most, down, least, up = 0 * step, step, 0 * step + 85, 85 - step
    red = most, down, least, least, up, most
    green = up, most, most, down, least, least
    blue = least, least, up, most, most, down
    return np.stack([np.choose(sector % 6, channel)
                     for channel in (red, green, blue)]).astype(np.uint8)


FULL = np.uint16(255 * 85)
HUE_PARTS = _hue_parts()


def gaussian_blur(image, sigma):
    return image.filter(ImageFilter.GaussianBlur(sigma))


WHOLE = None
# name: (function, reach). A pixel of the result depends on those up to `reach` away, or on WHOLE.
PIXELS = {
    'identity': (lambda image, _: image, 0),
    'brightness': (brightness, 0),
    'contrast': (contrast, WHOLE),
    'color': (color, 0),
    'hue': (shift_hue, 0),
    # Three equal bands from here on: one will do until the end.
    'grayscale': (lambda image, _: image.convert('L'), 0),
    # Pillow's is three box blurs, each to no more than two pixels away with sigma up to 2.
    'blur': (gaussian_blur, 6),
    'autocontrast': (lambda image, _: ImageOps.autocontrast(image), WHOLE),
    'equalize': (lambda image, _: ImageOps.equalize(image), WHOLE),
    'sharpness': (lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor), 1),
    'posterize': (ImageOps.posterize, 0),
    'solarize': (ImageOps.solarize, 0),
}


def apply(operations, image, box=None):
    """Do the operations one after another.

    Args:
        image: Pillow RGB. box: (top, left, height, width) of what is wanted of the result.

    Returns:
        RGB, of the image's size or the box's: the same pixels as of the whole, cut afterwards.
    """
    steps = [PIXELS[name] + (strength,) for name, strength in operations]
    everywhere = 1 + max((i for i, (_, reach, _) in enumerate(steps) if reach is WHOLE), default=-1)
    for function, _, strength in steps[:everywhere]:
        image = function(image, strength)
    if box is not None:
        top, left, height, width = box
        margin = sum(reach for _, reach, _ in steps[everywhere:])
        up, before = max(top - margin, 0), max(left - margin, 0)
        image = image.crop((before, up, min(left + width + margin, image.width),
                            min(top + height + margin, image.height)))
    for function, _, strength in steps[everywhere:]:
        image = function(image, strength)
    if box is not None:
        image = image.crop((left - before, top - up, left - before + width, top - up + height))
    return image if image.mode == 'RGB' else image.convert('RGB')
