"""CVAT for images 1.1: one XML file for all images of a task or project."""
import functools
import os
import re
from collections import Counter
from xml.etree import ElementTree

from dssn.data.files import max_pixels
from dssn.data.regions import from_runs, in_ellipse, inside, near_line, placed
from dssn.errors import UserError
from dssn.tools.masks.shapes import (
    Annotated,
    Annotations,
    Shape,
    corners,
    explained,
    points_of,
    read_file,
)

SOURCE = 'annotations.xml, or the folder that holds it'
REMEDY = "export the task again as 'CVAT for images 1.1'"
WITHOUT_PIXELS = ('points', 'tag', 'cuboid', 'skeleton')


def read(args):
    """Read an export of CVAT, 'CVAT for images 1.1', as `Annotations`.

    Polygons, boxes, ellipses, polylines (as wide as --line-width) and masks. A higher z_order lies
    on top; within one z_order, shapes lie on top of those before them in the file. Points, tags,
    cuboids and skeletons are left out.
    """
    path = args.source
    if os.path.isdir(path):
        path = os.path.join(path, 'annotations.xml')
    root = read_xml(path)
    if root.find('track') is not None:
        raise UserError(f'{path}: holds tracks of a video; {REMEDY}')
    left_out, labels, colours = Counter(), [], {}
    with explained(path, REMEDY):
        for label in root.iterfind('.//meta//label'):
            labels.append(label.findtext('name'))
            colour = re.fullmatch('#([0-9a-fA-F]{6})', label.findtext('color') or '')
            if colour:
                colours[labels[-1]] = tuple(bytes.fromhex(colour.group(1)))
    images = [read_image(item, path, args.line_width, left_out) for item in root.iterfind('image')]
    return Annotations(images, labels, colours, left_out)


def read_xml(path):
    """The root of an XML file. Entities, which can fill the memory, are refused."""
    data = read_file(path)
    try:
        if b'<!DOCTYPE' in data or b'<!ENTITY' in data:
            raise UserError(f'{path}: declares a document type, which CVAT does not; {REMEDY}')
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise UserError(f'{path}: is not valid XML ({error}); {REMEDY}') from None


def read_image(item, path, line_width, left_out):
    """An element <image> as `Annotated`."""
    with explained(path, REMEDY):
        name, size = item.attrib['name'], (int(item.attrib['height']), int(item.attrib['width']))
    shapes = []
    for number, shape in enumerate(item, 1):
        place = f'{path} image {name} shape {number}'
        if shape.tag in WITHOUT_PIXELS:
            left_out[f'elements <{shape.tag}>'] += 1
            continue
        with explained(place, REMEDY):
            order = int(shape.attrib.get('z_order', 0))
            shapes.append((order, Shape(shape.attrib['label'], place,
                                        region_of(shape.tag, shape.attrib, line_width))))
    shapes.sort(key=lambda pair: pair[0])  # stable
    return Annotated(name.replace('\\', '/'), size, [shape for _, shape in shapes],
                     f'{path} image {name}')


def region_of(kind, values, line_width):
    """The function for a `Shape.region`."""
    def numbers(*names):
        return points_of([[values[name]] * 2 for name in names])[:, 0]
    if kind == 'polygon':
        return functools.partial(inside, points_in(values, 3))
    if kind == 'polyline':
        return functools.partial(near_line, points_in(values, 2), line_width)
    turn = float(values.get('rotation', 0))
    if kind == 'box':
        left, top, right, bottom = numbers('xtl', 'ytl', 'xbr', 'ybr')
        centre = (left + right) / 2, (top + bottom) / 2
        return functools.partial(inside, corners(left, top, right - left, bottom - top, turn,
                                                 centre))
    if kind == 'ellipse':
        x, y, *radii = numbers('cx', 'cy', 'rx', 'ry')
        return functools.partial(in_ellipse, (x, y), radii, turn)
    if kind == 'mask':
        left, top, width, height = (int(values[name]) for name in ('left', 'top', 'width',
                                                                   'height'))
        if width * height > max_pixels():
            raise ValueError(f'a mask of {width}x{height} pixels, too large')
        bitmap = from_runs([int(run) for run in values['rle'].split(',')], (height, width), True)
        return functools.partial(placed, bitmap, left, top)
    raise ValueError(f'the element <{kind}> is not known')


def points_in(values, least):
    return points_of([pair.split(',') for pair in values['points'].split(';')], least)
