"""Elementary operations on Pillow images, each a named rule with its published numbers.

Geometric ones move (image, mask) pairs together, photometric ones touch the image alone. `rng` is
a numpy Generator; every draw comes from it.
"""
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import functional as F

IGNORE = 255


# Geometric.

def random_scale(image, mask, rng, ratio=(0.5, 2.0)):
    """Resize so that the long side is a uniform whole number in ratio * itself, ends included."""
    width, height = image.size
    long, short = max(width, height), min(width, height)
    new_long = int(rng.integers(int(long * ratio[0]), int(long * ratio[1]), endpoint=True))
    new_long = max(new_long, 1)
    new_short = max(int(short * new_long / long + 0.5), 1)
    size = (new_long, new_short) if width >= height else (new_short, new_long)
    return image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)


def random_crop(image, mask, size, rng):
    """Pad right and bottom to `size` (image black, mask 255), then cut a random window."""
    wide, tall = max(size - image.width, 0), max(size - image.height, 0)
    if wide or tall:
        image = ImageOps.expand(image, (0, 0, wide, tall), fill=0)
        mask = ImageOps.expand(mask, (0, 0, wide, tall), fill=IGNORE)
    left = int(rng.integers(0, image.width - size, endpoint=True))
    top = int(rng.integers(0, image.height - size, endpoint=True))
    window = (left, top, left + size, top + size)
    return image.crop(window), mask.crop(window)


def random_flip(image, mask, rng):
    """Mirror left and right with probability 0.5."""
    if rng.random() < 0.5:
        return ImageOps.mirror(image), ImageOps.mirror(mask)
    return image, mask


# Photometric.

def color_jitter(image, rng):
    """Brightness, contrast, saturation (0.5 to 1.5) and hue (-0.25 to 0.25), in random order."""
    factor = [rng.uniform(0.5, 1.5) for _ in range(3)]
    hue = rng.uniform(-0.25, 0.25)
    operations = [lambda im: F.adjust_brightness(im, factor[0]),
                  lambda im: F.adjust_contrast(im, factor[1]),
                  lambda im: F.adjust_saturation(im, factor[2]),
                  lambda im: shift_hue(im, int(hue * 255))]
    for i in rng.permutation(4):
        image = operations[i](image)
    return image


def shift_hue(image, shift):
    """Turn the 8-bit hue by `shift` steps, wrapping at 256.

    Ours and not torchvision's: its releases cast a negative number to uint8, which newer NumPy
    refuses and which other processors saturate to 0.
    """
    hue, saturation, value = image.convert('HSV').split()
    turned = (np.asarray(hue).astype(np.int16) + shift) % 256
    hue = Image.fromarray(turned.astype(np.uint8))
    return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


def grayscale(image, rng=None):
    return image.convert('L').convert('RGB')


def blur(image, rng):
    """Gaussian blur, sigma uniform in [0.1, 2.0] pixels."""
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))


def sometimes(operation, probability, image, rng):
    return operation(image, rng) if rng.random() < probability else image


# The strong pool: (name, operation). Each draws its own strength.

def _enhance(kind):
    return lambda image, rng: kind(image).enhance(rng.uniform(0.05, 0.95))


def _posterize(image, rng):
    return ImageOps.posterize(image, int(rng.integers(4, 7, endpoint=True)))


def _solarize(image, rng):
    return ImageOps.solarize(image, 256 - max(1, math.ceil(255 * rng.random())))


def _hue(image, rng):
    sign = 1 if rng.random() < 0.5 else -1
    return shift_hue(image, int(sign * 0.5 * rng.random() * 255))


STRONG_POOL = (
    ('identity', lambda image, rng: image),
    ('autocontrast', lambda image, rng: ImageOps.autocontrast(image)),
    ('equalize', lambda image, rng: ImageOps.equalize(image)),
    ('blur', blur),
    ('contrast', _enhance(ImageEnhance.Contrast)),
    ('brightness', _enhance(ImageEnhance.Brightness)),
    ('color', _enhance(ImageEnhance.Color)),
    ('sharpness', _enhance(ImageEnhance.Sharpness)),
    ('posterize', _posterize),
    ('solarize', _solarize),
    ('hue', _hue),
)


def strong_pool(image, rng, num_aug, random_number=True):
    """n operations of the pool drawn with replacement, n uniform in 1..num_aug (or num_aug)."""
    n = int(rng.integers(1, num_aug, endpoint=True)) if random_number else num_aug
    for i in rng.integers(0, len(STRONG_POOL), n):
        image = STRONG_POOL[i][1](image, rng)
    return image
