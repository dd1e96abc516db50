"""Pascal VOC 2012, with the augmented masks as PNG files or as .mat files of SBD."""
import os

import numpy as np

from dssn.data.classes import voc_colour
from dssn.errors import UserError
from dssn.tools.data.prepare.originals import (
    convert_values,
    read_lines,
    read_values,
    require_entries,
)
from dssn.tools.data.prepare.plan import Pair, Plan

OUT = 'data/VOC2012'
SOURCE = 'the VOCdevkit/VOC2012 folder'
OFFICIAL = {'train_aug': 10582, 'train': 1464, 'val': 1449}
LAYOUT = ('expected JPEGImages, SegmentationClass and ImageSets/Segmentation, as '
          'VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012 holds '
          'them in VOCdevkit/VOC2012')
SBD_LAYOUT = ('expected cls/*.mat, train.txt and val.txt, as benchmark.tgz of the Semantic '
              'Boundaries Dataset (SBD) holds them in benchmark_RELEASE/dataset')
LISTS = os.path.join('ImageSets', 'Segmentation')
CLASSES = {value: value for value in range(21)}
LEGAL = 'a mask of Pascal VOC holds 0..20, or 255 for the boundary'
COLOURS = {voc_colour(value): value for value in (*range(21), 255)}


def add_arguments(parser):
    """Pascal VOC 2012 with the augmented masks

    The official lists become train.txt (1,464) and val.txt (1,449). With augmented masks,
    train_aug.txt (10,582) holds their images and those of train.txt, without those of val.txt. If
    an image has an official mask (SegmentationClass), the official mask is used instead of the
    augmented one. PNG files in colours become class indices. The boundary stays 255.
    """
    masks = parser.add_mutually_exclusive_group()
    masks.add_argument('--masks', metavar='FOLDER',
                       help='augmented masks as PNG files: a path, or a name in --source (default: '
                            'SegmentationClassAug, if it exists)')
    masks.add_argument('--sbd', metavar='FOLDER',
                       help='augmented masks as .mat files: the benchmark_RELEASE/dataset folder '
                            'of SBD; needs scipy')


def plan(args):
    """The `Plan` of the command line arguments."""
    source = args.source
    require_entries('--source', source, ('JPEGImages', LISTS), LAYOUT)
    train, val = [read_lines(os.path.join(source, LISTS, part + '.txt'))
                  for part in ('train', 'val')]
    augmented = sbd_masks(args.sbd) if args.sbd else png_masks(source, args.masks)
    names = {}
    if augmented:
        names['train_aug'] = sorted({*augmented, *train} - {*val})
    names.update(train=train, val=val)
    lists = {part: [pair(source, name, augmented) for name in listed]
             for part, listed in names.items()}
    # Folders of masks outside the source hold originals, too.
    folders = {source, args.sbd or source} | {os.path.dirname(path) for path in augmented.values()}
    return Plan(sorted(folders), lists, OFFICIAL, convert_mask)


def png_masks(source, folder):
    """{image name: path} of the augmented masks; {} if no folder is given and none exists."""
    in_source = os.path.join(source, folder or 'SegmentationClassAug')
    chosen = in_source if os.path.isdir(in_source) else folder
    if chosen is None:
        return {}
    if not os.path.isdir(chosen):
        raise UserError(f'--masks {folder}: no such folder, nor {in_source}; name the folder of '
                        'the augmented PNG masks')
    masks = {os.path.splitext(name)[0]: os.path.join(chosen, name)
             for name in os.listdir(chosen) if name.endswith('.png')}
    if not masks:
        raise UserError(f'--masks {chosen}: holds no .png file; name the folder of the augmented '
                        'PNG masks')
    return masks


def sbd_masks(folder):
    """{image name: path} of the masks of SBD's two lists."""
    require_entries('--sbd', folder, ('cls', 'train.txt', 'val.txt'), SBD_LAYOUT)
    import_loadmat()  # if scipy is missing, report it before the work begins
    names = [name for part in ('train.txt', 'val.txt')
             for name in read_lines(os.path.join(folder, part))]
    return {name: os.path.join(folder, 'cls', name + '.mat') for name in names}


def pair(source, name, augmented):
    """The `Pair` of an image: with its official mask, or else its augmented one."""
    mask = os.path.join(source, 'SegmentationClass', name + '.png')
    if name in augmented and not os.path.isfile(mask):
        mask = augmented[name]
    image = f'JPEGImages/{name}.jpg'
    return Pair(os.path.join(source, image), image, mask, f'SegmentationClass/{name}.png')


def convert_mask(pair):
    """The class indices of a pair's mask, uint8 (H, W)."""
    values = read_mat(pair.mask) if pair.mask.endswith('.mat') \
        else read_values(pair.mask, ('L', 'P', 'RGB'))
    if values.ndim == 3:
        return from_colours(values, pair.mask)
    return convert_values(values, CLASSES, pair.mask, LEGAL)


def from_colours(rgb, path):
    """Convert a mask in Pascal VOC's colours, uint8 (H, W, 3), to class indices, uint8 (H, W)."""
    codes = rgb.astype(np.int32) @ (1 << 16, 1 << 8, 1)
    known = {(r << 16) + (g << 8) + b: value for (r, g, b), value in COLOURS.items()}
    index, wrong = np.zeros(codes.shape, np.uint8), []
    for code in np.unique(codes):
        if code in known:
            index[codes == code] = known[code]
        else:
            wrong.append(code)
    if wrong:
        red, green, blue = wrong[0] >> 16, wrong[0] >> 8 & 255, wrong[0] & 255
        raise UserError(f'{path}: holds colour ({red}, {green}, {blue}), which is not a class '
                        "of Pascal VOC's colour map; take the mask from the official archive, and "
                        'do not resize it or save it as JPEG')
    return index


def import_loadmat():
    """scipy's loadmat. Raises a UserError if scipy is not installed."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError('--sbd: reading .mat files needs scipy, which is not installed: '
                        'pip install scipy') from None
    return loadmat


def read_mat(path):
    """The class segmentation in a .mat file of SBD, uint8 (H, W)."""
    loadmat = import_loadmat()
    try:
        index = np.asarray(loadmat(path)['GTcls'][0, 0]['Segmentation'])
    except Exception as error:  # a damaged file makes scipy raise almost any error
        raise UserError(f'{path}: cannot be read as a class segmentation of SBD '
                        f'({type(error).__name__}: {error}); unpack benchmark.tgz again') from None
    if index.dtype != np.uint8 or index.ndim != 2:
        raise UserError(f'{path}: GTcls.Segmentation is {index.dtype} {index.shape}, not 8-bit (H, '
                        'W); unpack benchmark.tgz again')
    return index
