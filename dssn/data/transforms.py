"""Geometric operations on an image and its mask: sample a window, then crop it from both.

Only the window itself is resized. `rng` is a numpy Generator, the only source of random numbers.
"""
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dssn.labels import IGNORE


class Window(NamedTuple):
    """The part of an image that a view shows.

    The image is resized to width x height. The view is a square of `side` pixels of it, whose upper
    left corner is (left, top). Where the square exceeds the image, at the right and at the bottom,
    it is padded. The view may then be mirrored.
    """
    width: int
    height: int
    left: int
    top: int
    side: int
    mirrored: bool

    @property
    def size(self):
        """(width, height) of the view without its padding."""
        return min(self.width, self.side), min(self.height, self.side)


def random_window(size, side, rng, ratio=(0.5, 2.0)):
    """A `Window` of random scale, place and mirroring, for an image of (width, height) `size`."""
    width, height = random_size(size, rng, ratio)
    left, top = random_place((width, height), side, rng)
    return Window(width, height, left, top, side, random_flip(rng))


def random_size(size, rng, ratio=(0.5, 2.0)):
    """A random new size (width, height) with the same aspect ratio.

    The long side is a whole number, uniform in `ratio` times its old value, both ends included.
    """
    long, short = max(size), min(size)
    new_long = int(rng.integers(int(long * ratio[0]), int(long * ratio[1]), endpoint=True))
    new_long = max(new_long, 1)
    new_short = max(int(short * new_long / long + 0.5), 1)
    return (new_long, new_short) if size[0] >= size[1] else (new_short, new_long)


def random_place(size, side, rng):
    """(left, top) of a square of `side`, uniform in an image of (width, height) `size`.

    A side of the image that is shorter than the square counts as padded to its length.
    """
    left = int(rng.integers(0, max(size[0], side) - side, endpoint=True))
    top = int(rng.integers(0, max(size[1], side) - side, endpoint=True))
    return left, top


def random_flip(rng):
    """True with probability 0.5."""
    return bool(rng.random() < 0.5)


def crop_image(image, window):
    """The window of an image, resized bilinearly. Padding is black.

    The result differs by at most 2 grey levels from resizing the whole image and then cropping.
    (Pillow's filter also reads the pixels around `box`, and Pillow keeps `box` in single
    precision.)
    """
    width, height = window.size
    box = (window.left * image.width / window.width,
           window.top * image.height / window.height,
           (window.left + width) * image.width / window.width,
           (window.top + height) * image.height / window.height)
    return _pad_and_mirror(image.resize((width, height), Image.Resampling.BILINEAR, box), window, 0)


def crop_mask(mask, window):
    """The window of a mask, resized by nearest neighbours. Padding is 255.

    The result equals resizing the whole mask and then cropping.
    """
    width, height = window.size
    columns = nearest(mask.width, window.width)[window.left:window.left + width]
    rows = nearest(mask.height, window.height)[window.top:window.top + height]
    index = np.asarray(mask)[rows].take(columns, axis=1)
    return _pad_and_mirror(Image.fromarray(index), window, IGNORE)


def padding_mask(window):
    """The mask of an image without ground truth: 255 on padding, 0 elsewhere."""
    return _pad_and_mirror(Image.new('L', window.size, 0), window, IGNORE)


def nearest(old, new):
    """The indices of `old` pixels that a row of `new` pixels takes: int32 (new,).

    Pillow computes them, so that rounding is the same as in its resize.
    """
    indices = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    return np.asarray(indices.resize((new, 1), Image.Resampling.NEAREST))[0]


def _pad_and_mirror(part, window, fill):
    """Pad to the window's side at the right and at the bottom, then mirror if `mirrored`."""
    width, height = part.size
    if part.size != (window.side, window.side):
        part = ImageOps.expand(part, (0, 0, window.side - width, window.side - height), fill=fill)
    return ImageOps.mirror(part) if window.mirrored else part
