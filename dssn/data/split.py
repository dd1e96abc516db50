"""`python -m dssn.data split`: labeled, unlabeled and val lists from folders or from an id list."""
import argparse
import os
from collections import Counter
from fractions import Fraction
from math import ceil

import numpy as np
from tqdm import tqdm

from dssn.data.arguments import count_or_share, whole_number
from dssn.data.files import open_index
from dssn.data.folders import pair_files
from dssn.data.lists import read_list, write_list
from dssn.errors import UserError


def add_arguments(parser):
    """Make labeled, unlabeled and val lists from folders of images and masks, or from an id list.

    python -m dssn.data split --images data/mine/photos --masks data/mine/masks \\
        --labeled 40 --val 0.2 --out splits/mine/40
    python -m dssn.data split data/camvid/train.txt --labeled 1/8 --out splits/camvid/1_8
    python -m dssn.data split --images data/mine/val --masks data/mine/valmasks \\
        --data-root data/mine --out splits/mine/held_out     # val has folders of its own
    python -m dssn.data split --images data/mine/train --masks data/mine/trainmasks \\
        --data-root data/mine --val splits/mine/held_out/labeled.txt --out splits/mine/all

labeled.txt and unlabeled.txt go into --out, val.txt into the folder above it, where every split
of a data set finds it. Images without a mask are unlabeled. The choice depends on --seed alone,
and that of val not on --labeled.
    """
    parser.add_argument('list', nargs='?', help='id list to cut, instead of --images and --masks')
    parser.add_argument('--images', metavar='FOLDER', help="folder, searched with all below it, or "
                                                           "a quoted glob such as 'data/*/rgb/*.jpg'")
    parser.add_argument('--masks', metavar='FOLDER', help='the same for the masks, matched by stem: '
                                                          'photos/7.jpg and masks/7.png')
    parser.add_argument('--mask-suffix', nargs='+', default=[''], metavar='TEXT',
                        help="what mask stems have more than the image's, such as _mask; several "
                             'may be given')
    parser.add_argument('--image-suffix', default='', metavar='TEXT',
                        help="what image stems have more than the mask's, such as _leftImg8bit")
    parser.add_argument('--data-root', help='folder that the lists will be relative to (default: the '
                                            'closest one that holds images and masks)')
    parser.add_argument('--labeled', type=count_or_share, metavar='N | 1/K',
                        help='how many of the training samples stay labeled (default: all that have '
                             'a mask)')
    parser.add_argument('--val', metavar='N | SHARE | LIST',
                        help='how many samples with masks to hold out, or a list of those held out')
    parser.add_argument('--stratified', action='store_true',
                        help='open the masks, and see that every class is among the labeled, then '
                             'among val, where possible')
    parser.add_argument('--ignore-index', type=whole_number, default=255, metavar='VALUE',
                        help='mask value that is no class, for --stratified (default: 255)')
    parser.add_argument('--allow-outside', action='store_true',
                        help='take lists that name files outside data_root, by `..` or absolute paths')
    parser.add_argument('--seed', type=whole_number, default=0, help='of the choice (default: 0)')
    parser.add_argument('--out', required=True, metavar='FOLDER',
                        help='folder of the new lists, such as splits/mine/40')
    parser.set_defaults(parser=parser)


def run(args):
    if bool(args.list) == bool(args.images):
        args.parser.error('give an id list, or --images with --masks')
    if args.list and (args.masks or args.mask_suffix != [''] or args.image_suffix):
        args.parser.error('--masks and the suffixes belong to --images')
    if args.images and not args.masks:
        args.parser.error('--images needs --masks: some images must have masks')
    if args.list and bool(args.data_root) != args.stratified:
        args.parser.error('an id list needs --data-root for --stratified, which opens the masks, '
                          'and only then')
    samples, root = read_samples(args)
    held_out, val_is_list = [], args.val is not None and not is_amount(args.val)
    if val_is_list:
        samples, held_out = without(samples, args.val, args.allow_outside)
    classes = classes_of(samples, root, args.ignore_index) if args.stratified else {}
    val = 0 if args.val is None or val_is_list else count_or_share(args.val)
    labeled, unlabeled, val = choose(samples, args.labeled, val, args.seed, classes)
    lists = {os.path.join(args.out, 'labeled.txt'): [samples[i] for i in labeled],
             os.path.join(args.out, 'unlabeled.txt'): [samples[i]._replace(mask=None)
                                                       for i in unlabeled]}
    held_out = held_out or [samples[i] for i in val]
    if held_out:
        lists[val_file(args.out)] = held_out
    write_lists(lists, val_file(args.out))
    for path, part in lists.items():
        print(f'{path}: {len(part)} samples' if part else f'{path}: not written, none are unlabeled')
    if not args.list:
        print(f'the lists are relative to {root}: set data_root to it')
    for name in missing_classes(classes, labeled):
        print(f'no labeled image shows mask value {name}')
    return 0


def read_samples(args):
    """(samples, data root or None) of the id list or the folders."""
    if args.list:
        return read_list(args.list, False, args.allow_outside), args.data_root
    samples, root, alone = pair_files(args.images, args.masks, args.mask_suffix,
                                      args.image_suffix, args.data_root)
    if alone:
        print(f'{len(alone)} masks have no image, such as {alone[0]}')
    return samples, root


def is_amount(text):
    """Whether a text is a count or a share, and not the name of a list."""
    try:
        return bool(count_or_share(text))
    except argparse.ArgumentTypeError:
        return False


def without(samples, path, allow_outside=False):
    """(the samples whose image the list does not name, the list's own samples)."""
    held_out = read_list(path, True, allow_outside)
    images = {sample.image for sample in held_out}
    return [sample for sample in samples if sample.image not in images], held_out


def classes_of(samples, data_root, ignore_index=255):
    """{index: set of mask values} of the samples with masks; ignored values are left out."""
    ignored = {ignore_index, 255}
    return {i: set(np.unique(np.asarray(open_index(data_root, sample))).tolist()) - ignored
            for i, sample in enumerate(tqdm(samples, 'masks', disable=None)) if sample.mask}


def choose(samples, labeled, val, seed, classes):
    """Choose labeled and val samples at random; the rest is unlabeled.

    Args:
        samples: `Sample`s; those without a mask are always unlabeled.
        labeled: a count, a Fraction of the training samples (rounded up, as in the published
            lists), or None for all that have a mask.
        val: a count, or a Fraction of the samples with masks (rounded up); 0 for none.
        seed: of the choice; val does not depend on `labeled`.
        classes: {index: classes in its mask} where every class shall be among the labeled and,
            with what is left, among val; {} for a plain choice.

    Returns:
        (labeled, unlabeled, val): ascending indices.

    Raises:
        UserError: more are wanted than have masks.
    """
    masked = [i for i, sample in enumerate(samples) if sample.mask]
    order = [masked[i] for i in np.random.default_rng(seed).permutation(len(masked))]
    # One image of each class is kept for training, or a rare class could end up in val alone.
    core = cover(order, classes)
    others = without_indices(order, core)
    n_val = amount(val, len(masked))
    if n_val > len(others):
        raise UserError(f'--val {val}: only {len(others)} samples have masks'
                        + (' beyond those kept for the labeled list' if core else '')
                        + '; hold out fewer')
    held_out = put_first(cover(others, classes), others)[:n_val]
    pool = put_first(core, without_indices(order, held_out))
    count = len(pool) if labeled is None else amount(labeled, len(samples) - n_val)
    if not 0 < count <= len(pool):
        wanted = 'no labeled samples' if labeled is None else f'--labeled {labeled}'
        raise UserError(f'{wanted}: only {len(pool)} samples have masks and are not in val; '
                        'ask for fewer, or hold out fewer')
    chosen = set(pool[:count])
    rest = set(range(len(samples))) - chosen - set(held_out)
    return sorted(chosen), sorted(rest), sorted(held_out)


def amount(wanted, total):
    """A count as it is, a Fraction as that share of `total`, rounded up."""
    return ceil(total * wanted) if isinstance(wanted, Fraction) else wanted


def cover(order, classes):
    """Indices that show every class: for each class, rarest first, the first image that has it."""
    counts = Counter(c for i in order for c in classes.get(i, ()))
    chosen, seen = [], set()
    for wanted in sorted(counts, key=lambda c: (counts[c], c)):
        if wanted not in seen:
            chosen.append(next(i for i in order if wanted in classes[i]))
            seen |= classes[chosen[-1]]
    return chosen


def put_first(first, order):
    """The indices of `order`, those of `first` before the others."""
    return first + without_indices(order, first)


def without_indices(order, taken):
    """The indices of `order` that are not in `taken`, in a set since both may be of thousands."""
    taken = set(taken)
    return [i for i in order if i not in taken]


def missing_classes(classes, labeled):
    """Mask values that occur, but in no labeled sample."""
    everywhere = set().union(*classes.values()) if classes else set()
    return sorted(everywhere - set().union(set(), *(classes.get(i, set()) for i in labeled)))


def val_file(out):
    """val.txt in the folder above a split's: one for all splits of a data set."""
    return os.path.join(os.path.dirname(os.path.normpath(out)), 'val.txt')


def write_lists(lists, val_path):
    """Write {path: samples}, where there are any; a val list of other samples is not replaced.

    Raises:
        UserError: so, or the folder cannot be written.
    """
    new = lists.get(val_path)
    if new and os.path.exists(val_path) and (
            [s[:2] for s in read_list(val_path, True, allow_outside=True)] != [s[:2] for s in new]):
        raise UserError(f'{val_path} is there and holds other samples; keep it with --val '
                        f'{val_path}, or choose another --out')
    try:
        for path, samples in lists.items():
            if samples:
                write_list(path, samples)
            elif os.path.exists(path):  # another draw's; an empty list is none
                os.remove(path)
    except OSError as error:
        raise UserError(f'{error.filename or val_path}: cannot be written ({error.strerror}); choose '
                        'another --out') from None
