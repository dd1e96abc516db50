"""COCO 2017: masks of 81 classes, rendered from the instances files."""
import json
import os
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from dssn.data.classes import CLASSES
from dssn.data.regions import coco_region
from dssn.errors import UserError
from dssn.labels import IGNORE
from dssn.tools.data.prepare.originals import require_entries
from dssn.tools.data.prepare.plan import Pair, Plan

OUT = 'data/coco'
SOURCE = 'folder that holds train2017, val2017 and annotations'
OFFICIAL = {'train': 118287, 'val': 5000}
LAYOUT = ('expected train2017/*.jpg, val2017/*.jpg, annotations/instances_train2017.json and '
          'annotations/instances_val2017.json, as train2017.zip, val2017.zip and '
          'annotations_trainval2017.zip from https://cocodataset.org hold them')


class Instance(NamedTuple):
    """One annotation."""
    number: int        # its id
    value: int         # class index of its pixels; 255 for a crowd
    segmentation: Any  # its pixels, see `coco_region`


def add_arguments(parser):
    """COCO 2017 from train2017, val2017 and the instances files

    Background is 0. The 80 things are 1..80, in the order of their category ids. If regions
    overlap, the region with fewer pixels lies on top. Of regions of the same size, the one with the
    higher annotation id lies on top. A crowd region is 255, except where a single thing covers it.
    A pixel belongs to a polygon if its centre lies in it.
    """


def plan(args):
    """The `Plan` of the command line arguments."""
    files = {part: f'annotations/instances_{part}2017.json' for part in OFFICIAL}
    require_entries('--source', args.source, ('train2017', 'val2017', *files.values()), LAYOUT)
    lists = {part: read_instances(args.source, part, os.path.join(args.source, name))
             for part, name in files.items()}
    return Plan([args.source], lists, OFFICIAL, convert_mask)


def read_instances(source, part, path):
    """The pairs of one instances file. A pair's detail is (size (H, W), list of `Instance`)."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        values = values_of_categories(content['categories'], path)
        instances = defaultdict(list)
        for item in content['annotations']:
            value = values[item['category_id']]
            instances[item['image_id']].append(
                Instance(item['id'], IGNORE if item['iscrowd'] else value, item['segmentation']))
        pairs = []
        for image in content['images']:
            name, size = image['file_name'], (int(image['height']), int(image['width']))
            if min(size) < 1:
                raise ValueError(f'image {name} has no pixel')
            pairs.append(Pair(os.path.join(source, part + '2017', name), f'{part}2017/{name}', path,
                              f'masks/{os.path.splitext(name)[0]}.png',
                              (size, instances[image['id']])))
        return pairs
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: cannot be read as an instances file of COCO '
                        f'({type(error).__name__}: {error}); unpack annotations_trainval2017.zip '
                        'again') from None


def values_of_categories(categories, path):
    """{category id: class index}. The 80 ids have gaps, the indices 1..80 have none.

    Raises:
        UserError: the categories are not those of COCO.
    """
    names = {category['id']: category['name'] for category in categories}
    expected = CLASSES['coco'][1:]
    if [names[number] for number in sorted(names)] != expected:
        raise UserError(f'{path}: names {len(names)} categories that are not the 80 things of COCO '
                        f'({expected[0]}, {expected[1]}, ..., {expected[-1]}); take the instances '
                        'files of annotations_trainval2017.zip')
    return {number: index for index, number in enumerate(sorted(names), 1)}


def convert_mask(pair):
    """Render the mask of a pair, uint8 (H, W): crowds, then things from largest to smallest."""
    size, instances = pair.detail
    mask = np.zeros(size, np.uint8)
    regions = []
    for instance in instances:
        try:
            region = coco_region(instance.segmentation, size)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f'{pair.mask}: annotation {instance.number} of {pair.image_name} '
                            f'cannot be rendered ({type(error).__name__}: {error}); unpack '
                            'annotations_trainval2017.zip again') from None
        order = instance.value != IGNORE, -np.count_nonzero(region), instance.number
        regions.append((order, region, instance.value))
    for _, region, value in sorted(regions, key=lambda item: item[0]):
        mask[region] = value
    return mask
