"""Cityscapes: leftImg8bit and gtFine, label ids to the 19 train ids."""
import glob
import os

from dssn.data.prepare.originals import read_values, require, translate
from dssn.data.prepare.plan import Pair, Plan
from dssn.errors import UserError

OUT = 'data/cityscapes'
SOURCE = 'folder that holds leftImg8bit and gtFine'
OFFICIAL = {'train': 2975, 'val': 500}
LAYOUT = ('expected leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/'
          '*_gtFine_labelIds.png, as leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from '
          'https://www.cityscapes-dataset.com hold them')
IMAGE, LABELS, NEW = '_leftImg8bit.png', '_gtFine_labelIds.png', '_gtFine_labelTrainIds.png'

# Label ids 0..33 of the data set; those that are not evaluated become 255.
TRAIN_IDS = {**{label: 255 for label in range(34)},
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

The masks are made from *_gtFine_labelIds.png; *_labelTrainIds.png files in gtFine, which not every
copy has, are not used. The test part has no labels and is left out.
    """


def plan(args):
    require('--source', args.source, ('leftImg8bit', 'gtFine'), LAYOUT)
    lists = {part: [pair(args.source, part, frame) for frame in frames(args.source, part)]
             for part in OFFICIAL}
    return Plan([args.source], lists, OFFICIAL, convert)


def frames(source, part):
    """'CITY/CITY_SEQUENCE_FRAME' of every frame that has an image or a mask, sorted."""
    found = set()
    for folder, end in (('leftImg8bit', IMAGE), ('gtFine', LABELS)):
        top = os.path.join(source, folder, part)
        for path in glob.glob(os.path.join(glob.escape(top), '*', '*' + end)):
            found.add(os.path.relpath(path, top).replace(os.sep, '/')[:-len(end)])
    if not found:
        raise UserError(f'--source {source}: has no frames in leftImg8bit/{part}; {LAYOUT}')
    return sorted(found)


def pair(source, part, frame):
    image, mask = f'leftImg8bit/{part}/{frame}{IMAGE}', f'gtFine/{part}/{frame}'
    return Pair(os.path.join(source, image), image,
                os.path.join(source, mask + LABELS), mask + NEW)


def convert(pair):
    return translate(read_values(pair.mask), TRAIN_IDS, pair.mask,
                     'a label id is 0..33: is this a labelIds file? Unpack gtFine again')
