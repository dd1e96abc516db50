"""Write masks, list and classes, and report them."""
import io
import os
import sys
from typing import List, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from dssn import yaml_text
from dssn.atomic import write_atomically
from dssn.data.folders import common_folder, relative
from dssn.data.headers import ORIENTATION, read_header, turned, turned_size
from dssn.data.lists import Sample, format_line
from dssn.errors import UserError
from dssn.labels import IGNORE
from dssn.tools.masks.shapes import opened, rendered

INVERSE = {6: 8, 8: 6}  # EXIF orientations whose inverse is another one
SHOWN = 5               # shapes that a message names


class Written(NamedTuple):
    """What was written."""
    pixels: np.ndarray  # (256,) of each mask value
    masks: np.ndarray   # (256,) masks with each value
    empty: List[str]    # shapes that cover no pixel
    count: int          # masks


def write_all(args, annotations, classes, items, paths, base):
    """Write the masks, and then labeled.txt and classes.yaml.

    Args:
        items: `Annotated`s. paths: their images. base: the folder of the images.

    Raises:
        UserError: an image cannot be read or has another size, two masks would be one file, or a
            file cannot be written.
    """
    root = args.data_root or common_folder([base, args.out, *map(os.path.dirname, paths)])
    names = mask_names(items, paths, base)
    lines = ''.join(format_line(Sample(relative(path, root), relative(os.path.join(args.out, name),
                                                                      root), path)) + '\n'
                    for path, name in zip(paths, names))
    pixels, masks, empty = np.zeros(256, int), np.zeros(256, int), []
    try:
        for item, path, name in zip(tqdm(items, unit='mask', disable=None), paths, names):
            mask, data, without = make_mask(item, path, classes)
            target = os.path.join(args.out, name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            write_atomically(target, data)
            counts = np.bincount(mask.ravel(), minlength=256)
            pixels, masks, empty = pixels + counts, masks + (counts > 0), empty + without
        write_atomically(os.path.join(args.out, 'labeled.txt'), lines)
        write_atomically(os.path.join(args.out, 'classes.yaml'), yaml_text.dump({
            'data_root': root, 'classes': classes.names,
            'colours': [list(map(int, colour)) for colour in classes.colours]}))
    except OSError as error:
        raise UserError(f'--out {args.out}: cannot be written ({error}); choose another '
                        'folder') from None
    return Written(pixels, masks, empty, len(items))


def mask_names(items, paths, base):
    """The masks' files, relative to --out: named like the images, and in the same subfolders."""
    names, owner = [], {}
    for item, path in zip(items, paths):
        place = os.path.relpath(os.path.abspath(path), os.path.abspath(base))
        if place.split(os.sep)[0] == os.pardir:  # LabelMe's files may lie elsewhere
            place = os.path.basename(place)
        name = os.path.join('masks', os.path.splitext(place)[0] + '.png')
        if name in owner:
            raise UserError(f'{item.place}: the masks of {path} and {owner[name]} would both be '
                            f'{name}; rename one of the images')
        owner[name] = path
        names.append(name)
    return names


def make_mask(item, path, classes):
    """The mask of an image.

    Returns:
        (uint8 (H, W); its PNG file, bytes; the places of shapes without a pixel).
    """
    with opened(path, f'replace the image of {item.place}') as image:
        header = read_header(image)
    sizes = [header.size, turned_size(header.size, header.turn)]  # as viewers show it, as stored
    size = sizes[0] if item.size is None else item.size[::-1]
    if size not in sizes:
        raise UserError(f'{item.place}: is for an image of {size[0]}x{size[1]}, but {path} is '
                        f'{sizes[0][0]}x{sizes[0][1]}; take the image that was annotated')
    found, empty = rendered(item, size[::-1], classes.values)
    mask = np.where(found < 0, classes.rest, found).astype(np.uint8)
    picture, options = Image.fromarray(mask), {}
    if header.turn != 1 and sizes[0] == sizes[1]:
        # The size does not show which way round the mask is. With the orientation of its image it
        # is read as the image is.
        picture = turned(picture, INVERSE.get(header.turn, header.turn))
        exif = Image.Exif()
        exif[ORIENTATION] = header.turn
        options['exif'] = exif
    file = io.BytesIO()
    picture.save(file, 'PNG', **options)
    return mask, file.getvalue(), empty


def report(args, annotations, classes, without, written):
    """Print the table of pixels, and what was left out.

    Args:
        without: number of images that were left out because they have no shape.
    """
    total = max(int(written.pixels.sum()), 1)
    print(f'{"class":24} {"pixels":>13} {"%":>7} {"masks":>7}')
    rows = list(enumerate(classes.names)) + [(IGNORE, 'ignored')]
    for value, name in rows:
        label = f'{value:3} {name}'
        print(f'{label:24} {written.pixels[value]:13,} {100 * written.pixels[value] / total:7.2f} '
              f'{written.masks[value]:7,}')
    print(f'{args.out}: {written.count} masks, labeled.txt, classes.yaml')
    if without:
        print(f'{without} images have no shape and are left out; --keep-empty keeps them')
    for text, count in sorted(annotations.left_out.items()):
        print(f'left out, because they have no pixels: {count} {text}')
    for text in annotations.warnings:
        print(f'warning: {text}', file=sys.stderr)
    if written.empty:
        more = ', ...' if written.empty[SHOWN:] else ''
        print(f'warning: {len(written.empty)} shapes cover no pixel of their image: '
              f'{", ".join(written.empty[:SHOWN])}{more}', file=sys.stderr)
