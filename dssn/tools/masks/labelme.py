"""LabelMe: one JSON file for each image."""
import base64
import functools
import io
import math
import os
from collections import Counter

import numpy as np

from dssn.data.files import open_untrusted
from dssn.data.folders import visible_files
from dssn.data.regions import in_ellipse, inside, near_line, placed
from dssn.errors import UserError
from dssn.inference.annotations import checksum
from dssn.tools.masks.shapes import (
    Annotated,
    Annotations,
    Shape,
    corners,
    explained,
    points_of,
    read_json,
)

SOURCE = 'folder of JSON files, searched with its subfolders, or one file'
REMEDY = 'save the file again with LabelMe, or take it out of the folder'
WITHOUT_PIXELS = ('point', 'points')


def read(args):
    """Read the files of LabelMe, a JSON file for each image, as `Annotations`.

    Polygons, rectangles, turned rectangles, circles, lines, line strips (as wide as --line-width)
    and masks. Shapes lie on top of those before them in the file. Points are left out.
    """
    source = args.source
    paths = [source] if os.path.isfile(source) else sorted(
        path for path in visible_files(source, 'SOURCE') if path.lower().endswith('.json'))
    if not paths:
        raise UserError(f'SOURCE {source}: has no .json file; name the folder in which LabelMe '
                        'saves')
    left_out, unchanged = Counter(), []
    images = [read_file(path, source, args.line_width, left_out, unchanged) for path in paths]
    warnings = [f'{len(unchanged)} files are predictions as they were exported, without a change, '
                f'such as {unchanged[0]}'] if unchanged else []
    return Annotations(images, [], {}, left_out, warnings)


def read_file(path, source, line_width, left_out, unchanged):
    """One file as `Annotated`. Its image is relative to the folder `source`."""
    content = read_json(path, REMEDY)
    with explained(path, REMEDY):
        if content.get('unchanged') == checksum(content['shapes']):
            unchanged.append(path)
        shapes = []
        for number, item in enumerate(content['shapes'], 1):
            kind = item.get('shape_type') or 'polygon'
            if kind in WITHOUT_PIXELS:
                left_out[f'shapes of type {kind}'] += 1
                continue
            with explained(f'{path} shape {number}', REMEDY):
                shapes.append(Shape(str(item['label']), f'{path} shape {number}',
                                    region_of(kind, item, line_width)))
        size = None
        if content.get('imageHeight') and content.get('imageWidth'):
            size = int(content['imageHeight']), int(content['imageWidth'])
        name = content['imagePath'].replace('\\', '/')  # of a Windows machine
        folder = os.path.dirname(path)
        base = source if os.path.isdir(source) else folder
        return Annotated(os.path.relpath(os.path.join(folder, name), base).replace(os.sep, '/'),
                         size, shapes, path)


def region_of(kind, item, line_width):
    """The function for a `Shape.region`."""
    least = {'polygon': 3, 'oriented_rectangle': 4}.get(kind, 2)
    points = points_of(item['points'], least)
    if kind in ('polygon', 'oriented_rectangle'):
        return functools.partial(inside, points)
    if kind == 'rectangle':
        low, high = points.min(0), points.max(0)
        return functools.partial(inside, corners(*low, *(high - low)))
    if kind == 'circle':
        radius = math.dist(points[0], points[1])
        return functools.partial(in_ellipse, points[0], (radius, radius), 0)
    if kind in ('line', 'linestrip'):
        return functools.partial(near_line, points, line_width)
    if kind == 'mask':
        low, high = points.min(0).astype(int), points.max(0).astype(int)
        return functools.partial(embedded, item['mask'], *low.tolist(), *(high - low + 1).tolist())
    raise ValueError(f"shape_type '{kind}' is not known")


def embedded(text, left, top, width, height, size):
    """The pixels of a mask shape: a PNG in base64 for the box of its two points, both included."""
    try:
        with open_untrusted(io.BytesIO(base64.b64decode(text))) as image:
            bitmap = np.asarray(image.convert('L')) > 0
    except Exception as error:  # a damaged file makes Pillow raise almost any error
        raise ValueError(f'its mask is not a PNG in base64: {error}') from None
    if bitmap.shape != (height, width):
        raise ValueError(f'its mask is {bitmap.shape[1]}x{bitmap.shape[0]}, its box '
                         f'{width}x{height}')
    return placed(bitmap, left, top, size)
