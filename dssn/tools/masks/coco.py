"""COCO: one JSON file of instances, as Roboflow, Label Studio and CVAT export it."""
import functools
from collections import defaultdict

from dssn.data.regions import coco_region
from dssn.errors import UserError
from dssn.tools.masks.shapes import Annotated, Annotations, Shape, explained, points_of, read_json

SOURCE = 'the JSON file'
REMEDY = 'export the data set again as COCO segmentation'


def read(args):
    """Read an instances file of COCO, as Roboflow, Label Studio and CVAT export it.

    Polygons and run lengths, plain or packed. The format has no order: the shape with fewer pixels
    lies on top, and of shapes of the same size the later one in the file. A crowd region is of its
    class, as other regions are.
    """
    path = args.source
    content = read_json(path, REMEDY)
    with explained(path, REMEDY):
        names = {item['id']: str(item['name']) for item in content['categories']}
        shapes = defaultdict(list)
        for item in content['annotations']:
            shapes[item['image_id']].append(item)
        unknown = set(shapes) - {image['id'] for image in content['images']}
        if unknown:
            raise UserError(f'{path}: annotation {shapes[min(unknown)][0].get("id")} is for image '
                            f'{min(unknown)}, which the file does not list; {REMEDY}')
        images = [Annotated(image['file_name'].replace('\\', '/'),
                            (int(image['height']), int(image['width'])),
                            [read_shape(item, path, names) for item in shapes[image['id']]],
                            f'{path} image {image["file_name"]}', smallest_on_top=True)
                  for image in content['images']]
        # Roboflow writes the name of the project as a category that no shape has.
        used = {shape.label for image in images for shape in image.shapes}
        labels = [name for _, name in sorted(names.items()) if name in used]
    return Annotations(images, labels, {}, {})


def read_shape(item, path, names):
    """An annotation as `Shape`."""
    place = f'{path} annotation {item.get("id")}'
    with explained(place, REMEDY):
        segmentation = item.get('segmentation')
        if not segmentation:
            raise UserError(f'{place}: is only a box; draw it as a polygon, or export in a format '
                            'of the tool itself, such as CVAT for images 1.1')
        if isinstance(segmentation, list):
            segmentation = [ring_of(numbers) for numbers in segmentation]
        if item['category_id'] not in names:
            raise UserError(f'{place}: is of category {item["category_id"]}, which the file does '
                            f'not list; {REMEDY}')
        return Shape(names[item['category_id']], place,
                     functools.partial(coco_region, segmentation))


def ring_of(numbers):
    """The numbers x0, y0, x1, y1, ... of a polygon as points (n, 2)."""
    if len(numbers) % 2:
        raise ValueError(f'a polygon of {len(numbers)} numbers, which are no pairs')
    return points_of(zip(numbers[::2], numbers[1::2]), 3)
