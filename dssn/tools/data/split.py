"""`python -m dssn split`: make labeled, unlabeled and val lists, from folders or an id list."""
import argparse
import os
from collections import Counter
from fractions import Fraction
from math import ceil

import numpy as np
from tqdm import tqdm

from dssn.data.files import open_raw_mask
from dssn.data.folders import pair_files
from dssn.data.lists import read_list, write_list
from dssn.data.palettes import PaletteRecord
from dssn.data.stored import used_colours
from dssn.errors import UserError
from dssn.labels import IGNORE
from dssn.tools.arguments import count_or_fraction, whole_number


def add_arguments(parser):
    """Make labeled, unlabeled and val lists from folders of images and masks, or from an id list.

        python -m dssn split --images data/mine/photos --masks data/mine/masks \\
            --labeled 40 --val 0.2 --out splits/mine/40
        python -m dssn split data/camvid/train.txt --labeled 1/8 --out splits/camvid/1_8
        python -m dssn split --images data/mine/val --masks data/mine/valmasks \\
            --data-root data/mine --out splits/mine/held_out     # val images in other folders
        python -m dssn split --images data/mine/train --masks data/mine/trainmasks \\
            --data-root data/mine --val splits/mine/held_out/labeled.txt --out splits/mine/all

    labeled.txt and unlabeled.txt are written into --out. val.txt is written into the folder above
    it, so that all splits of a data set use the same one. Images without a mask are unlabeled. The
    choice depends only on --seed. The choice of val does not depend on --labeled.
    """
    parser.add_argument('list', nargs='?', help='id list to split, instead of --images and --masks')
    parser.add_argument('--images', metavar='FOLDER',
                        help='folder, searched with its subfolders, or a quoted glob such as '
                             "'data/*/rgb/*.jpg'")
    parser.add_argument('--masks', metavar='FOLDER',
                        help='the same for the masks, which are matched by stem: photos/7.jpg and '
                             'masks/7.png')
    parser.add_argument('--mask-suffix', nargs='+', default=[''], metavar='TEXT',
                        help='text at the end of mask stems only, such as _mask; several are '
                             'possible')
    parser.add_argument('--image-suffix', default='', metavar='TEXT',
                        help='text at the end of image stems only, such as _leftImg8bit')
    parser.add_argument('--data-root',
                        help='folder that the lists will be relative to (default: the closest one '
                             'that holds images and masks)')
    parser.add_argument('--labeled', type=count_or_fraction, metavar='N | 1/K',
                        help='number or fraction of the training samples that are labeled '
                             '(default: all that have a mask)')
    parser.add_argument('--val', metavar='N | FRACTION | LIST',
                        help='number or fraction of the samples with masks to hold out, or an id '
                             'list of the held-out samples')
    parser.add_argument('--stratified', action='store_true',
                        help='open the masks, and choose samples so that every class is in labeled '
                             'and then in val, if possible')
    parser.add_argument('--ignore-index', type=whole_number, default=IGNORE, metavar='VALUE',
                        help='mask value that is not a class, for --stratified (default: '
                             '%(default)s)')
    parser.add_argument('--palette', choices=('check', 'ignore'), default='check',
                        help='ignore: the masks may have different palettes, for --stratified '
                             '(default: %(default)s)')
    parser.add_argument('--allow-outside', action='store_true',
                        help='accept lists that name files outside data_root, by `..` or absolute '
                             'paths')
    parser.add_argument('--seed', type=whole_number, default=0,
                        help='seed of the choice (default: %(default)s)')
    parser.add_argument('--out', required=True, metavar='FOLDER',
                        help='folder of the new lists, such as splits/mine/40')
    parser.set_defaults(parser=parser)


def run(args):
    if bool(args.list) == bool(args.images):
        args.parser.error('give an id list, or --images with --masks')
    if args.list and (args.masks or args.mask_suffix != [''] or args.image_suffix):
        args.parser.error('--masks and the suffixes are only for --images')
    if args.images and not args.masks:
        args.parser.error('--images needs --masks: some images must have masks')
    if args.list and bool(args.data_root) != args.stratified:
        args.parser.error('with an id list, give --data-root and --stratified together: '
                          '--stratified opens the masks, nothing else needs --data-root')
    samples, root = read_samples(args)
    held_out = []
    val_is_list = args.val is not None and not is_count_or_fraction(args.val)
    if val_is_list:
        samples, held_out = hold_out_list(samples, args.val, args.allow_outside)
    classes = read_classes(samples, root, args.ignore_index, args.palette) \
        if args.stratified else {}
    val = 0 if args.val is None or val_is_list else count_or_fraction(args.val)
    labeled, unlabeled, val = choose(samples, args.labeled, val, args.seed, classes)
    lists = {os.path.join(args.out, 'labeled.txt'): [samples[i] for i in labeled],
             os.path.join(args.out, 'unlabeled.txt'): [samples[i]._replace(mask=None)
                                                       for i in unlabeled]}
    held_out = held_out or [samples[i] for i in val]
    if held_out:
        lists[val_file(args.out)] = held_out
    write_lists(lists, val_file(args.out))
    for path, part in lists.items():
        print(f'{path}: {len(part)} samples' if part else
              f'{path}: not written, because no sample is unlabeled')
    if not args.list:
        print(f'the lists are relative to {root}: set data_root to it')
    for name in missing_classes(classes, labeled):
        print(f'no labeled image has mask value {name}')
    return 0


def read_samples(args):
    """The samples of the id list or of the folders; returns (samples, data root or None)."""
    if args.list:
        return read_list(args.list, False, args.allow_outside), args.data_root
    samples, root, unpaired = pair_files(args.images, args.masks, args.mask_suffix,
                                         args.image_suffix, args.data_root)
    if unpaired:
        print(f'{len(unpaired)} masks have no image, such as {unpaired[0]}')
    return samples, root


def is_count_or_fraction(text):
    """Whether a text is a count or a fraction, and not the name of a list."""
    try:
        return bool(count_or_fraction(text))
    except argparse.ArgumentTypeError:
        return False


def hold_out_list(samples, path, allow_outside=False):
    """Hold out the samples of an id list; returns (the other samples, the list's samples)."""
    held_out = read_list(path, True, allow_outside)
    images = {sample.image for sample in held_out}
    return [sample for sample in samples if sample.image not in images], held_out


def read_classes(samples, data_root, ignore_index=IGNORE, palette='check'):
    """{index: set of mask values} of the samples with masks, without the ignored values.

    `palette` is like the config key. Raises FileProblems.
    """
    classes, palettes = {}, PaletteRecord(palette)
    for i, sample in enumerate(tqdm(samples, 'masks', disable=None)):
        if sample.mask:
            mask = open_raw_mask(data_root, sample)
            palettes.check(data_root, sample, used_colours(mask))
            classes[i] = set(np.unique(np.asarray(mask)).tolist()) - {ignore_index, IGNORE}
    return classes


def choose(samples, labeled, val, seed, classes):
    """Choose labeled and val samples at random. The others are unlabeled.

    Args:
        samples: `Sample`s. Those without a mask are always unlabeled.
        labeled: a count, a Fraction of the training samples (rounded up, as in the published
            lists), or None for all that have a mask.
        val: a count, or a Fraction of the samples with masks (rounded up); 0 for none.
        seed: seed of the choice. val does not depend on `labeled`.
        classes: {index: classes in its mask}, for a choice in which every class is in labeled and,
            if other samples have it, in val. {}: choose without regard to classes.

    Returns:
        (labeled, unlabeled, val): ascending indices.

    Raises:
        UserError: not enough samples have masks.
    """
    masked = [i for i, sample in enumerate(samples) if sample.mask]
    order = [masked[i] for i in np.random.default_rng(seed).permutation(len(masked))]
    # One image of each class is kept for training. Otherwise a rare class could be only in val.
    core = cover_classes(order, classes)
    others = exclude(order, core)
    n_val = to_count(val, len(masked))
    if n_val > len(others):
        raise UserError(f'--val {val}: only {len(others)} samples have masks'
                        + (' beyond those kept for the labeled list' if core else '')
                        + '; hold out fewer')
    held_out = put_first(cover_classes(others, classes), others)[:n_val]
    pool = put_first(core, exclude(order, held_out))
    count = len(pool) if labeled is None else to_count(labeled, len(samples) - n_val)
    if not 0 < count <= len(pool):
        wanted = 'no labeled samples' if labeled is None else f'--labeled {labeled}'
        raise UserError(f'{wanted}: only {len(pool)} samples have masks and are not in val; '
                        'ask for fewer, or hold out fewer')
    chosen = set(pool[:count])
    rest = set(range(len(samples))) - chosen - set(held_out)
    return sorted(chosen), sorted(rest), sorted(held_out)


def to_count(count_or_part, total):
    """A count as it is, or for a Fraction the count of that part of `total`, rounded up."""
    if isinstance(count_or_part, Fraction):
        return ceil(total * count_or_part)
    return count_or_part


def cover_classes(order, classes):
    """Indices whose images hold all classes.

    For each class, from the rarest on, that no chosen image has: the first image that has it.
    """
    counts = Counter(c for i in order for c in classes.get(i, ()))
    chosen, seen = [], set()
    for wanted in sorted(counts, key=lambda c: (counts[c], c)):
        if wanted not in seen:
            chosen.append(next(i for i in order if wanted in classes[i]))
            seen |= classes[chosen[-1]]
    return chosen


def put_first(first, order):
    """The indices of `first`, then the others of `order`."""
    return first + exclude(order, first)


def exclude(order, taken):
    """The indices of `order` that are not in `taken`."""
    taken = set(taken)  # both may hold thousands
    return [i for i in order if i not in taken]


def missing_classes(classes, labeled):
    """The mask values that no labeled sample has, but another sample has."""
    everywhere = set().union(*classes.values())
    return sorted(everywhere - set().union(*(classes.get(i, set()) for i in labeled)))


def val_file(out):
    """The path of val.txt: in the folder above that of a split, for all splits of a data set."""
    return os.path.join(os.path.dirname(os.path.normpath(out)), 'val.txt')


def write_lists(lists, val_path):
    """Write the non-empty lists of {path: samples}, and remove an old file of an empty one.

    Raises:
        UserError: the val list exists with other samples, or a list cannot be written.
    """
    new = lists.get(val_path)
    if new and os.path.exists(val_path) and (
            [s[:2] for s in read_list(val_path, True, allow_outside=True)] != [s[:2] for s in new]):
        raise UserError(f'{val_path} exists and holds other samples; keep it with --val '
                        f'{val_path}, or choose another --out')
    try:
        for path, samples in lists.items():
            if samples:
                write_list(path, samples)
            elif os.path.exists(path):  # of an earlier split; an empty list would be an error
                os.remove(path)
    except OSError as error:
        raise UserError(f'{error.filename or val_path}: cannot be written ({error.strerror}); '
                        'choose another --out') from None
