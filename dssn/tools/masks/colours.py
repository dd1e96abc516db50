"""PNGs in which a colour stands for a label, with a table of the colours."""
import functools
import os

import numpy as np

from dssn.data.folders import visible_files
from dssn.errors import UserError
from dssn.tools.masks.shapes import Annotated, Annotations, Shape, opened

SOURCE = "the folder of the PNGs, or that of an export of CVAT ('Segmentation mask 1.1')"
REMEDY = 'export it again as PNG'
TABLE = ('a line is `label:R,G,B`, such as `road:128,64,128`; what follows a second colon, and '
         'lines that begin with #, are left out')


def read(args):
    """Read PNGs in which a colour stands for a label, as `Annotations`.

    CVAT's folder SegmentationClass and its labelmap.txt are found by themselves.
    """
    folder, table = args.source, args.table or os.path.join(args.source, 'labelmap.txt')
    if os.path.isdir(os.path.join(folder, 'SegmentationClass')):
        folder = os.path.join(folder, 'SegmentationClass')
    colours = read_table(table)
    paths = sorted(path for path in visible_files(folder, 'SOURCE')
                   if path.lower().endswith('.png'))
    if not paths:
        raise UserError(f'SOURCE {folder}: has no .png file; name the folder of the masks')
    images = []
    for path in paths:
        with opened(path, REMEDY) as image:
            size = image.height, image.width
        shapes = [Shape(label, None, functools.partial(label_region, path, tuple(colours.items()),
                                                       label)) for label in colours]
        name = os.path.splitext(os.path.relpath(path, folder))[0].replace(os.sep, '/')
        images.append(Annotated(name, size, shapes, path))
    return Annotations(images, list(colours), colours, {})


def read_table(path):
    """{label: (R, G, B)} of a table of colours, in its order."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = file.read().split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: cannot be read as a table of colours ({error}); name one with '
                        f'--table: {TABLE}') from None
    colours = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith('#'):
            continue
        label, *rest = line.split(':')
        values = rest[0].split(',') if rest else []
        if len(values) != 3 or not all(v.strip().isdecimal() and int(v) < 256 for v in values):
            raise UserError(f"{path} line {number}: '{line.strip()[:80]}' is not a label with its "
                            f'colour; {TABLE}')
        colour = tuple(int(value) for value in values)
        if label in colours or colour in colours.values():
            raise UserError(f'{path} line {number}: the label or the colour of '
                            f"'{line.strip()[:80]}' stands on an earlier line, too; a label has "
                            'one colour, and a colour one label')
        colours[label] = colour
    if not colours:
        raise UserError(f'{path}: has no line; {TABLE}')
    return colours


def label_region(path, colours, label, size):
    """The pixels of a label in the PNG `path`."""
    return labels_of(path, colours) == [name for name, _ in colours].index(label)


@functools.lru_cache(maxsize=1)  # its labels follow one another
def labels_of(path, colours):
    """The number of the label of each pixel, (H, W); `colours`: ((label, (R, G, B)), ...)."""
    with opened(path, REMEDY) as image:
        pixels = np.asarray(image.convert('RGB')).astype(np.int32)
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    found, index, counts = np.unique(codes, return_inverse=True, return_counts=True)
    numbers = {red << 16 | green << 8 | blue: number
               for number, (_, (red, green, blue)) in enumerate(colours)}
    unknown = [(count, code) for code, count in zip(found.tolist(), counts.tolist())
               if code not in numbers]
    if unknown:
        shown = ', '.join(f'{code >> 16},{code >> 8 & 255},{code & 255} ({count} pixels)'
                          for count, code in sorted(unknown, reverse=True)[:5])
        raise UserError(f'{path}: holds {len(unknown)} colours that the table does not have: '
                        f'{shown}; add them to the table, or, if they are many, export PNGs '
                        'without smoothing')
    return np.array([numbers[code] for code in found.tolist()])[index].reshape(codes.shape)

