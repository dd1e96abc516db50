"""Label Studio: one JSON file of tasks, with polygons, rectangles, ellipses and brushes."""
import functools
import os
import re
from collections import Counter
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from dssn.data.regions import in_ellipse, inside
from dssn.errors import UserError
from dssn.tools.masks.shapes import (
    Annotated,
    Annotations,
    Shape,
    corners,
    explained,
    points_of,
    read_json,
)

SOURCE = "the JSON file (export format 'JSON')"
REMEDY = "export the project again in the format 'JSON'"
WITHOUT_PIXELS = ('choices', 'datetime', 'keypoint', 'keypointlabels', 'labels', 'number', 'ranker',
                  'rating', 'relation', 'taxonomy', 'textarea', 'vector', 'vectorlabels')
UPLOADED = re.compile('^[0-9a-f]{8}-')  # Label Studio puts this before the names of uploads


def read(args):
    """Read an export of Label Studio, format 'JSON', as `Annotations`.

    Polygons, rectangles, ellipses and brushes. Shapes lie on top of those before them. Results
    without pixels, such as choices and key points, are left out. A task that nobody has finished
    is an image without shapes.
    """
    path = args.source
    tasks = read_json(path, REMEDY)
    left_out = Counter()
    with explained(path, REMEDY):
        if not isinstance(tasks, list) or not all('annotations' in task for task in tasks):
            raise UserError(f'{path}: is not a list of tasks with annotations, such as JSON-MIN; '
                            f'{REMEDY}')
        images = [read_task(task, path, left_out) for task in tasks]
    return Annotations(images, [], {}, left_out)


def read_task(task, path, left_out):
    """A task as `Annotated`."""
    place = f'{path} task {task.get("id")}'
    with explained(place, REMEDY):
        done = [item for item in task['annotations'] if not item.get('was_cancelled')]
        if len(done) > 1:
            raise UserError(f'{place}: has {len(done)} annotations, and only one can become the '
                            'mask; delete the others in Label Studio, and export again')
        results = done[0]['result'] if done else []
        shapes, sizes = [], set()
        for number, item in enumerate(results, 1):
            if item.get('type') in WITHOUT_PIXELS:
                left_out[f'results of type {item["type"]}'] += 1
                continue
            with explained(f'{place} result {number}', REMEDY):
                size = int(item['original_height']), int(item['original_width'])
                if item.get('image_rotation'):
                    raise UserError(f'{place} result {number}: the image is turned by '
                                    f'{item["image_rotation"]} degrees in Label Studio; turn the '
                                    'file instead, and annotate it again')
                sizes.add(size)
                shapes.append(Shape(label_of(item, results), f'{place} result {number}',
                                    region_of(item, size)))
        if len(sizes) > 1:
            raise UserError(f'{place}: its results are for images of {len(sizes)} sizes; {REMEDY}')
        return Annotated(image_name(task['data']), sizes.pop() if sizes else None, shapes, place)


def image_name(data):
    """The file of a task, without the parts that Label Studio has added.

    Its address is '/data/upload/1/0a1b2c3d-a.jpg', '/data/local-files/?d=photos/a.jpg', or one on
    the web.
    """
    texts = [data.get('image'), *data.values()]  # the project may have another name for it
    addresses = [text for text in texts if isinstance(text, str) and '.' in text]
    if not addresses:
        raise ValueError('no image in its data')
    parts = urlsplit(addresses[0])
    local = parse_qs(parts.query).get('d')
    if local:
        return local[0].replace('\\', '/').lstrip('/')
    name = os.path.basename(unquote(parts.path))
    return UPLOADED.sub('', name) if '/upload/' in parts.path else name


def label_of(item, results):
    """The label of a result: its own, or that of another result with the same id."""
    for other in [item] + [other for other in results if other.get('id') == item.get('id')]:
        for name, labels in other.get('value', {}).items():
            if name.endswith('labels') and labels:
                if len(labels) > 1:
                    raise ValueError(f'{len(labels)} labels: {", ".join(labels)}')
                return str(labels[0])
    raise ValueError('no label')


def region_of(item, size):
    """The function for a `Shape.region`. Coordinates are percent of the image's sides."""
    height, width = size
    value = item['value']
    if not any(name in value for name in ('points', 'rle', 'radiusX', 'width')):
        raise ValueError(f"type '{item.get('type')}' is not known")
    scale = np.array([width, height]) / 100
    if 'rle' in value:
        return functools.partial(brushed, value['rle'])
    if 'points' in value:
        return functools.partial(inside, points_of(value['points'], 3) * scale)
    (x, y), = points_of([(value['x'], value['y'])]) * scale
    turn = float(value.get('rotation', 0))
    if 'radiusX' in value:
        radii, = points_of([(value['radiusX'], value['radiusY'])]) * scale
        return functools.partial(in_ellipse, (x, y), radii, turn)
    sides, = points_of([(value['width'], value['height'])]) * scale
    return functools.partial(inside, corners(x, y, *sides, turn))


def brushed(data, size):
    """The pixels of a brush: those whose alpha is not 0 in an RGBA image (H, W, 4)."""
    return unpack_brush(data, size[0] * size[1] * 4).reshape(*size, 4)[..., 3] > 0


def unpack_brush(data, count):
    """The values, (count,) uint8, of Label Studio's packed brush, a list of bytes.

    Its bits are: 32 for the number of values; 5 for the bits of a value, less 1; four times 4 for
    the bits of a length, less 1. Then come blocks: 1 bit, whether the block repeats one value;
    2 bits, which of the four lengths it has; its length, less 1; its value, or its values.
    """
    bits = np.unpackbits(np.array(data, np.uint8))
    place = 0

    def number(count):
        nonlocal place
        part = bits[place:place + count]
        if len(part) < count:
            raise ValueError('its brush ends early')
        place += count
        return int(''.join(map(str, part)), 2)
    total, width = number(32), number(5) + 1
    lengths = [number(4) + 1 for _ in range(4)]
    if width > 8:
        raise ValueError(f'its brush has values of {width} bits')
    if total != count:
        raise ValueError(f'its brush has {total} values, the image {count}')
    values, at = np.zeros(total, np.uint8), 0
    while at < total:
        repeats = number(1)
        end = at + number(lengths[number(2)]) + 1
        if repeats:
            values[at:end] = number(width)
        else:
            for i in range(at, min(end, total)):
                values[i] = number(width)
        at = end
    return values
