"""IDD Lite, the small form of the Indian Driving Dataset: leftImg8bit and gtFine, 7 classes."""
import os

from dssn.data.classes import CLASSES
from dssn.tools.data.prepare.originals import (
    convert_values,
    find_frames,
    read_values,
    require_entries,
)
from dssn.tools.data.prepare.plan import Pair, Plan

OUT = 'data/idd_lite'
SOURCE = 'folder that holds leftImg8bit and gtFine, idd20k_lite in the archive'
OFFICIAL = {'train': 1403, 'val': 204, 'unlabeled': 404}
LAYOUT = ('expected leftImg8bit/{train,val,test}/DRIVE/*_image.jpg and gtFine/{train,val}/DRIVE/'
          '*_label.png, as the IDD Lite archive from https://idd.insaan.iiit.ac.in holds them')
# Endings of the names of images, masks and instance masks.
IMAGE, LABEL, INSTANCES = '_image.jpg', '_label.png', '_inst_label.png'
COUNT = len(CLASSES['idd_lite'])


def add_arguments(parser):
    """IDD Lite (Indian Driving Dataset, small form) from leftImg8bit and gtFine as downloaded

    Masks hold 0..6 for the classes and 255 for pixels without a class. They are checked and written
    again. The *_inst_label.png files are not used. The test part has no masks, so its images are
    listed in unlabeled.txt. To make lists for semi-supervised training, here with 88 labeled
    images:

        cat data/idd_lite/train.txt data/idd_lite/unlabeled.txt > data/idd_lite/all.txt
        python -m dssn split data/idd_lite/all.txt --labeled 88 --val data/idd_lite/val.txt \\
            --out splits/idd_lite/88
    """


def plan(args):
    """The `Plan` of the command line arguments."""
    require_entries('--source', args.source, ('leftImg8bit', 'gtFine'), LAYOUT)
    lists = {}
    for name, part, masks in (('train', 'train', True), ('val', 'val', True),
                              ('unlabeled', 'test', False)):
        endings = {'leftImg8bit': IMAGE, 'gtFine': LABEL} if masks else {'leftImg8bit': IMAGE}
        lists[name] = [pair(args.source, part, frame, masks) for frame in
                       find_frames(args.source, part, endings, LAYOUT, excluded=INSTANCES)]
    return Plan([args.source], lists, OFFICIAL, convert_mask)


def pair(source, part, frame, masks):
    """The `Pair` of a frame 'DRIVE/FRAME'."""
    image, mask = f'leftImg8bit/{part}/{frame}{IMAGE}', f'gtFine/{part}/{frame}{LABEL}'
    return Pair(os.path.join(source, image), image,
                *((os.path.join(source, mask), mask) if masks else (None, None)))


def convert_mask(pair):
    """The class indices of a pair's mask, uint8 (H, W)."""
    classes = {value: value for value in range(COUNT)}
    return convert_values(read_values(pair.mask), classes, pair.mask,
                          f'a mask of IDD Lite holds 0..{COUNT - 1}, and 255 for no class; the '
                          'full Indian Driving Dataset has more classes: unpack the Lite archive')
