"""Elementary operations on Pillow images, each a named rule with its published numbers.

Geometric ones move image and mask together, photometric ones touch the image alone. `rng` is a
numpy Generator; every draw comes from it.
"""
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import functional as F

IGNORE = 255


# Geometric: first drawn, as a window, then cut from image and mask, resizing nothing else.

class Window(NamedTuple):
    """What a view shows of an image: of the whole, resized to width x height, the square of `side`
    pixels whose left upper corner is (left, top); right and bottom of the whole is padding."""
    width: int
    height: int
    left: int
    top: int
    side: int
    mirrored: bool

    @property
    def size(self):
        """(width, height) of what is no padding."""
        return min(self.width, self.side), min(self.height, self.side)


def random_window(size, side, rng):
    """Random scale, random place, mirrored or not, for an image of (width, height) `size`."""
    width, height = random_size(size, rng)
    left, top = random_place((width, height), side, rng)
    return Window(width, height, left, top, side, random_flip(rng))


def random_size(size, rng, ratio=(0.5, 2.0)):
    """Scale (width, height): the long side to a uniform whole number in ratio * itself, ends too."""
    long, short = max(size), min(size)
    new_long = int(rng.integers(int(long * ratio[0]), int(long * ratio[1]), endpoint=True))
    new_long = max(new_long, 1)
    new_short = max(int(short * new_long / long + 0.5), 1)
    return (new_long, new_short) if size[0] >= size[1] else (new_short, new_long)


def random_place(size, side, rng):
    """(left, top) of a uniform window of `side` in (width, height), which is padded to hold one."""
    left = int(rng.integers(0, max(size[0], side) - side, endpoint=True))
    top = int(rng.integers(0, max(size[1], side) - side, endpoint=True))
    return left, top


def random_flip(rng):
    """True with probability 0.5."""
    return bool(rng.random() < 0.5)


def cut_image(image, window):
    """The window of the image, resized bilinearly; padding is black.

    The same as to resize the whole and then to crop, within 2 grey levels: Pillow looks around
    `box` for what the filter needs, and keeps the box in single precision.
    """
    wide, tall = window.size
    x, y = image.width, image.height
    box = (window.left * x / window.width, window.top * y / window.height,
           (window.left + wide) * x / window.width, (window.top + tall) * y / window.height)
    return _finish(image.resize((wide, tall), Image.Resampling.BILINEAR, box), window, 0)


def cut_mask(mask, window):
    """The window of the mask, resized to the nearest pixel; padding is 255.

    Exactly the same as to resize the whole and then to crop.
    """
    wide, tall = window.size
    columns = nearest(mask.width, window.width)[window.left:window.left + wide]
    rows = nearest(mask.height, window.height)[window.top:window.top + tall]
    index = np.asarray(mask)[rows][:, columns]
    return _finish(Image.fromarray(index), window, IGNORE)


def cut_padding(window):
    """The mask of an image without one: 0, and 255 on padding."""
    return _finish(Image.new('L', window.size, 0), window, IGNORE)


def nearest(old, new):
    """For each of `new` pixels in a row the nearest of `old`: as Pillow rounds, hence asked of it."""
    places = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    return np.asarray(places.resize((new, 1), Image.Resampling.NEAREST))[0]


def _finish(part, window, fill):
    """Pad to the window's side, then mirror left and right if it is mirrored."""
    wide, tall = part.size
    if part.size != (window.side, window.side):
        part = ImageOps.expand(part, (0, 0, window.side - wide, window.side - tall), fill=fill)
    return ImageOps.mirror(part) if window.mirrored else part


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
    turned = [(hue + shift) % 256 for hue in range(256)]
    same = list(range(256))
    return image.convert('HSV').point(turned + same + same).convert('RGB')


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
