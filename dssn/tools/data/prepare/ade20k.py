"""ADE20K, the 150 classes of the scene parsing challenge: images and annotations."""
import glob
import os

from dssn.data.classes import CLASSES
from dssn.errors import UserError
from dssn.labels import IGNORE
from dssn.tools.data.prepare.originals import convert_values, read_values, require_entries
from dssn.tools.data.prepare.plan import Pair, Plan

OUT = 'data/ade20k'
SOURCE = 'the ADEChallengeData2016 folder'
OFFICIAL = {'train': 20210, 'val': 2000}
PARTS = {'train': 'training', 'val': 'validation'}  # {list: folder}
LAYOUT = ('expected images/{training,validation}/*.jpg and annotations/{training,validation}/'
          '*.png, as ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu holds them')
COUNT = len(CLASSES['ade20k'])


def add_arguments(parser):
    """ADE20K with 150 classes from ADEChallengeData2016 as downloaded

    The official masks count from 1: 0 (other) becomes 255, and 1..150 become 0..149. To make lists
    for semi-supervised training, here with 1/64 of the images labeled:

        python -m dssn split data/ade20k/train.txt --labeled 316 --val data/ade20k/val.txt \\
            --out splits/ade20k/1_64
    """


def plan(args):
    """The `Plan` of the command line arguments."""
    require_entries('--source', args.source, ('images', 'annotations'), LAYOUT)
    lists = {name: [pair(args.source, f'{folder}/{stem}') for stem in stems(args.source, folder)]
             for name, folder in PARTS.items()}
    return Plan([args.source], lists, OFFICIAL, convert_mask)


def stems(source, folder):
    """The sorted names, without ending, of all images and masks of a part.

    Raises:
        UserError: there is none.
    """
    patterns = [os.path.join('images', folder, '*.jpg'), os.path.join('annotations', folder,
                                                                      '*.png')]
    found = {os.path.splitext(os.path.basename(path))[0] for pattern in patterns
             for path in glob.glob(os.path.join(glob.escape(source), pattern))}
    if not found:
        raise UserError(f'--source {source}: has no files in images/{folder}; {LAYOUT}')
    return sorted(found)


def pair(source, name):
    """The `Pair` of 'training/STEM' or 'validation/STEM'."""
    image, mask = f'images/{name}.jpg', f'annotations/{name}.png'
    return Pair(os.path.join(source, image), image, os.path.join(source, mask), mask)


def convert_mask(pair):
    """The class indices of a pair's mask, uint8 (H, W)."""
    values = read_values(pair.mask)
    legal = f'a mask of the official archive holds 0 for other, and 1..{COUNT}'
    if (values == IGNORE).any():
        raise UserError(f'{pair.mask}: holds value {IGNORE}, so it was converted before; {legal}')
    return convert_values(values, {0: IGNORE, **{value: value - 1
                                                 for value in range(1, COUNT + 1)}},
                          pair.mask, legal)
