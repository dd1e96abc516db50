"""Reading original files, with one clear error for whatever is wrong with one."""
import contextlib
import glob
import os

import numpy as np

from dssn.data.files import opened
from dssn.errors import UserError


def require(option, folder, names, layout):
    """Raise a UserError unless `folder` holds all `names`; `layout` says what it should be."""
    if not os.path.isdir(folder):
        raise UserError(f'{option} {folder}: no such folder; {layout}')
    for name in names:
        if not os.path.exists(os.path.join(folder, name)):
            raise UserError(f'{option} {folder}: has no {name}{_hint(folder, names)}; {layout}')


def _hint(folder, names):
    """The usual mistake is to name a folder above."""
    for below in ('*', os.path.join('*', '*')):
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), below, names[0]))):
            found = os.path.dirname(path)
            if all(os.path.exists(os.path.join(found, name)) for name in names):
                return f' (did you mean {found}?)'
    return ''


def read_lines(path):
    """The lines of a text file that are not empty, stripped."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: cannot be read as a list of names ({error}); unpack its archive '
                        'again') from None


def image_size(path):
    """(width, height), without decoding the image."""
    with _opened(path) as image:
        return image.size


def read_values(path, modes=('L', 'P')):
    """The pixels of an 8-bit image of one of Pillow's modes: uint8 (H, W), or (H, W, 3) for RGB."""
    with _opened(path) as image:
        if image.mode not in modes:
            raise UserError(f'{path}: is a {image.mode} image, but a mask of this set is one of '
                            f'{", ".join(modes)} (8 bits; P is a palette); unpack the official '
                            'archive')
        image.load()  # NumPy's older releases would hide what is wrong with it
        return np.array(image)


@contextlib.contextmanager
def _opened(path):
    try:
        with opened(path) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UserError(f'{path}: cannot be read as an image ({type(error).__name__}: {error}); '
                        'unpack its archive again') from None


def translate(index, classes, path, legal):
    """Values to class indices; 255 stays 255 (ignore).

    Args:
        index: uint8 (H, W). classes: {value: class index or 255}.
        path, legal: where the values are from and what they may be, for the error.

    Returns:
        uint8 (H, W).

    Raises:
        UserError: a value that is neither in `classes` nor 255.
    """
    table = np.full(256, -1, np.int16)
    table[255] = 255
    table[list(classes)] = list(classes.values())
    translated = table[index]
    wrong = translated < 0
    if wrong.any():
        values, counts = np.unique(index[wrong], return_counts=True)
        raise UserError(f'{path}: holds value {values[0]} on {counts[0]} pixels; {legal}')
    return translated.astype(np.uint8)
