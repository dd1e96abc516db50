"""Cityscapes: leftImg8bit and gtFine, with label ids converted to the 19 train ids."""
import os

from dssn.labels import IGNORE
from dssn.tools.data.prepare.originals import (
    convert_values,
    find_frames,
    read_values,
    require_entries,
)
from dssn.tools.data.prepare.plan import Pair, Plan

OUT = 'data/cityscapes'
SOURCE = 'folder that holds leftImg8bit and gtFine'
OFFICIAL = {'train': 2975, 'val': 500}
LAYOUT = ('expected leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/'
          '*_gtFine_labelIds.png, as leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from '
          'https://www.cityscapes-dataset.com hold them')
# Endings of the names of images, original masks and new masks.
IMAGE, LABELS, NEW = '_leftImg8bit.png', '_gtFine_labelIds.png', '_gtFine_labelTrainIds.png'

# {label id: train id}. The label ids are 0..33. Those that are not evaluated become 255.
TRAIN_IDS = {**{label: IGNORE for label in range(34)},
             7: 0,    # road
             8: 1,    # sidewalk
             11: 2,   # building
             12: 3,   # wall
             13: 4,   # fence
             17: 5,   # pole
             19: 6,   # traffic light
             20: 7,   # traffic sign
             21: 8,   # vegetation
             22: 9,   # terrain
             23: 10,  # sky
             24: 11,  # person
             25: 12,  # rider
             26: 13,  # car
             27: 14,  # truck
             28: 15,  # bus
             31: 16,  # train
             32: 17,  # motorcycle
             33: 18}  # bicycle


def add_arguments(parser):
    """Cityscapes from leftImg8bit and gtFine as downloaded

    The masks are made from *_gtFine_labelIds.png. Files *_labelTrainIds.png in gtFine, which some
    copies have, are not used. The test part has no labels and is left out.
    """


def plan(args):
    """The `Plan` of the command line arguments."""
    require_entries('--source', args.source, ('leftImg8bit', 'gtFine'), LAYOUT)
    endings = {'leftImg8bit': IMAGE, 'gtFine': LABELS}
    lists = {part: [pair(args.source, part, frame)
                    for frame in find_frames(args.source, part, endings, LAYOUT)]
             for part in OFFICIAL}
    return Plan([args.source], lists, OFFICIAL, convert_mask)


def pair(source, part, frame):
    """The `Pair` of a frame 'CITY/CITY_SEQUENCE_FRAME'."""
    image, mask = f'leftImg8bit/{part}/{frame}{IMAGE}', f'gtFine/{part}/{frame}'
    return Pair(os.path.join(source, image), image,
                os.path.join(source, mask + LABELS), mask + NEW)


def convert_mask(pair):
    """The train ids of a pair's mask, uint8 (H, W)."""
    return convert_values(read_values(pair.mask), TRAIN_IDS, pair.mask,
                          'a label id is 0..33: is this a labelIds file? Unpack gtFine again')
