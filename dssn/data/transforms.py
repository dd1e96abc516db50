"""Geometric operations, which move image and mask together: first drawn, as a window, then cut
from both, resizing nothing else. `rng` is a numpy Generator; every draw comes from it.
"""
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

IGNORE = 255


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
    index = np.asarray(mask)[rows].take(columns, axis=1)
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
