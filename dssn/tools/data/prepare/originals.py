"""Reading the original files of a data set, with one clear error for a bad file."""
import contextlib
import glob
import os

import numpy as np

from dssn.data.files import open_untrusted
from dssn.data.palettes import PaletteRecord
from dssn.data.stored import NotIndices, read_indices, used_colours
from dssn.errors import UserError
from dssn.labels import IGNORE

# Of the masks that this process reads. Masks in different folders may have different palettes.
PALETTES = PaletteRecord('check')


def require_entries(option, folder, names, layout):
    """Raise a UserError unless `folder` holds all files and folders `names`.

    `option` is the option that named the folder. `layout` describes the expected layout. Both are
    for the error.
    """
    if not os.path.isdir(folder):
        raise UserError(f'{option} {folder}: no such folder; {layout}')
    for name in names:
        if not os.path.exists(os.path.join(folder, name)):
            raise UserError(f'{option} {folder}: has no {name}{_hint(folder, names)}; {layout}')


def _hint(folder, names):
    """A hint for the usual mistake: the right folder lies one or two levels below."""
    for below in ('*', os.path.join('*', '*')):
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), below, names[0]))):
            found = os.path.dirname(path)
            if all(os.path.exists(os.path.join(found, name)) for name in names):
                return f' (did you mean {found}?)'
    return ''


def find_frames(source, part, endings, layout, excluded=None):
    """The frames of a part of a data set in Cityscapes' layout, FOLDER/PART/GROUP/FRAME_ENDING.

    Args:
        endings: {folder: ending of the file names in it}. layout: text on the expected layout, for
            the error. excluded: ending of further files, which are not used.

    Returns:
        Sorted 'GROUP/FRAME' of the frames with a file in at least one of the folders.

    Raises:
        UserError: there is none.
    """
    frames = set()
    for folder, ending in endings.items():
        top = os.path.join(source, folder, part)
        for path in glob.glob(os.path.join(glob.escape(top), '*', '*' + ending)):
            if not (excluded and path.endswith(excluded)):
                frames.add(os.path.relpath(path, top).replace(os.sep, '/')[:-len(ending)])
    if not frames:
        raise UserError(f'--source {source}: has no frames in leftImg8bit/{part}; {layout}')
    return sorted(frames)


def read_lines(path):
    """The non-empty lines of a text file, stripped."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: cannot be read as a list of names ({error}); unpack its archive '
                        'again') from None


def image_size(path):
    """The (width, height) of an image, from its header."""
    with _opened(path) as image:
        return image.size


def read_values(path, modes=('L', 'P')):
    """The pixels of an 8-bit image: uint8 (H, W), or (H, W, 3) if its mode is RGB.

    Raises:
        UserError: it cannot be read, its mode is not one of Pillow's `modes`, its values are not
            class indices as they were written, or its palette contradicts that of another mask.
    """
    with _opened(path) as image:
        if image.mode not in modes:
            raise UserError(f'{path}: is a {image.mode} image, but a mask of this set is one of '
                            f'{", ".join(modes)} (8 bits; P is a palette); unpack the official '
                            'archive')
        # Decoding raises an error for a damaged file, which older NumPy releases would hide.
        mask = read_indices(image)
    conflict = PALETTES.conflict(os.path.dirname(path), path, used_colours(mask))
    if conflict:
        raise UserError(f'{path}: {conflict}')
    return np.array(mask)


@contextlib.contextmanager
def _opened(path):
    try:
        with open_untrusted(path) as image:
            yield image
    except NotIndices as error:
        raise UserError(f'{path}: {error}') from None
    except UserError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost any error
        raise UserError(f'{path}: cannot be read as an image ({type(error).__name__}: {error}); '
                        'unpack its archive again') from None


def convert_values(values, classes, path, legal):
    """Convert mask values to class indices. 255 stays 255 (ignore).

    Args:
        values: uint8 (H, W). classes: {value: class index or 255}.
        path: file of the values. legal: text that describes the legal values. Both are for the
            error.

    Returns:
        uint8 (H, W).

    Raises:
        UserError: a value that is neither in `classes` nor 255.
    """
    table = np.full(256, -1, np.int16)
    table[IGNORE] = IGNORE
    table[list(classes)] = list(classes.values())
    index = table[values]
    wrong = index < 0
    if wrong.any():
        wrong_values, counts = np.unique(values[wrong], return_counts=True)
        raise UserError(f'{path}: holds value {wrong_values[0]} on {counts[0]} pixels; {legal}')
    return index.astype(np.uint8)
