"""`python -m dssn split`: make labeled, unlabeled and val lists, from folders or an id list."""
import argparse
import os
import sys
from collections import Counter
from fractions import Fraction
from math import ceil

import numpy as np
from tqdm import tqdm

from dssn.data.files import open_raw_mask
from dssn.data.folders import pair_files
from dssn.data.lists import check_files, read_list, write_list
from dssn.data.palettes import PaletteRecord
from dssn.data.stored import used_colours
from dssn.errors import UserError
from dssn.labels import IGNORE
from dssn.tools.arguments import count_or_fraction, whole_number
from dssn.tools.data.add import add_to_split
from dssn.tools.data.groups import closest_groups, group_of, group_rule, sequence_warning

SHOWN = 3   # files or groups that a message names
TRIES = 20  # choices of groups for val, if the wanted number of samples is not met


def add_arguments(parser):
    """Make labeled, unlabeled and val lists from folders of images and masks, or from an id list.

        python -m dssn split --images data/mine/photos --masks data/mine/masks \\
            --labeled 40 --val 0.2 --out splits/mine/40
        python -m dssn split data/camvid/train.txt --labeled 1/8 --out splits/camvid/1_8
        python -m dssn split --images data/camvid/images --masks data/camvid/masks \\
            --val 0.2 --group '[^/]+_' --out splits/streets/all   # frames of three videos
        python -m dssn split --images data/mine/val --masks data/mine/valmasks \\
            --data-root data/mine --out splits/mine/held_out     # val images in other folders
        python -m dssn split --images data/mine/train --masks data/mine/trainmasks \\
            --data-root data/mine --val splits/mine/held_out/labeled.txt --out splits/mine/all
        python -m dssn split data/mine/round2/labeled.txt --add splits/mine/40 \\
            --out splits/mine/60                                  # more labeled images

    labeled.txt and unlabeled.txt are written into --out. val.txt is written into the folder above
    it, so that all splits of a data set use the same one. Images without a mask are unlabeled. The
    choice depends only on --seed. The choice of val does not depend on --labeled.

    A mask belongs to the image with the same stem (name without ending) in the same subfolder:
    photos/a/7.jpg and masks/a/7.png. If only one of the two folders has subfolders, the same stem
    is enough.
    """
    parser.add_argument('list', nargs='?', help='id list to split, instead of --images and --masks')
    parser.add_argument('--images', metavar='FOLDER',
                        help='folder, searched with its subfolders, or a quoted glob such as '
                             "'data/*/rgb/*.jpg'")
    parser.add_argument('--masks', metavar='FOLDER',
                        help='the same for the masks')
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
    parser.add_argument('--group', type=group_rule, metavar='folder | EXPRESSION',
                        help='images that belong together, such as the frames of a video: those of '
                             'a folder, or those with the same text for a regular expression (for '
                             'its first group, if it has one), which is searched in the path '
                             'without ending, relative to data_root; a group is in val as a whole '
                             'or not at all, and the labeled images are of as many groups as '
                             'possible')
    parser.add_argument('--stratified', action='store_true',
                        help='open the masks, and choose samples so that every class is in labeled '
                             'and then in val, if possible')
    parser.add_argument('--ignore-index', type=whole_number, default=IGNORE, metavar='VALUE',
                        help='mask value that is not a class, for --stratified (default: '
                             '%(default)s)')
    parser.add_argument('--palette', choices=('check', 'ignore'), default='check',
                        help='ignore: the masks may have different palettes, for --stratified '
                             '(default: %(default)s)')
    parser.add_argument('--add', metavar='SPLIT',
                        help='add the samples of LIST to the labeled list in the folder SPLIT, '
                             'and take them out of its unlabeled list; both new lists are '
                             'written into --out; val stays as it is')
    parser.add_argument('--allow-outside', action='store_true',
                        help='accept lists that name files outside data_root, by `..` or absolute '
                             'paths')
    parser.add_argument('--seed', type=whole_number, default=0,
                        help='seed of the choice (default: %(default)s)')
    parser.add_argument('--out', required=True, metavar='FOLDER',
                        help='folder of the new lists, such as splits/mine/40')
    parser.set_defaults(parser=parser)


def run(args):
    if args.add:
        return run_add(args)
    if bool(args.list) == bool(args.images):
        args.parser.error('give an id list, or --images with --masks')
    if args.list and (args.masks or args.mask_suffix != [''] or args.image_suffix):
        args.parser.error('--masks and the suffixes are only for --images')
    if args.images and not args.masks:
        args.parser.error('--images needs --masks: some images must have masks')
    if args.list and bool(args.data_root) != args.stratified:
        args.parser.error('with an id list, give --data-root and --stratified together: '
                          '--stratified opens the masks, nothing else needs --data-root')
    val_is_list = args.val is not None and not is_count_or_fraction(args.val)
    if args.group and args.val is None and args.labeled is None:
        args.parser.error('--group needs --val or --labeled: without them nothing is chosen')
    everything, root = read_samples(args)
    samples, held_out = everything, []
    if val_is_list:
        samples, held_out = hold_out_list(everything, args.val, args.group, args.allow_outside)
        if root:
            check_files(held_out, root)
        if not samples:
            raise UserError(f'--val {args.val}: all {len(everything)} images are held out, or in a '
                            'group with a held-out image; hold out fewer'
                            + ', or write a --group of smaller groups' * bool(args.group))
    classes = read_classes(samples, root, args.ignore_index, args.palette) \
        if args.stratified else {}
    val = 0 if args.val is None or val_is_list else count_or_fraction(args.val)
    groups = [group_of(sample, args.group) for sample in samples]
    labeled, unlabeled, val = choose(samples, args.labeled, val, args.seed, classes, groups)
    lists = {os.path.join(args.out, 'labeled.txt'): [samples[i] for i in labeled],
             os.path.join(args.out, 'unlabeled.txt'): [samples[i]._replace(mask=None)
                                                       for i in unlabeled]}
    held_out = held_out or [samples[i] for i in val]
    if held_out:
        lists[val_file(args.out)] = held_out
    write_lists(lists, val_file(args.out))
    report_lists(lists, args.group)
    if val_is_list:
        images = {group_of(sample, None) for sample in held_out}
        count = sum(group_of(sample, None) in images for sample in everything)
        print(f'{args.val}: names {count} of the {len(everything)} images to split')
    if args.group and held_out:
        report_groups(everything, lists, held_out, args.group)
    if args.group and val:
        masked = sum(bool(sample.mask) for sample in samples)
        print(f'--val {args.val}: {len(val)} of {masked} samples with masks '
              f'({len(val) / masked:.1%})')
    if not args.list:
        print(f'the lists are relative to {root}: set data_root to it')
    for part, indices in (('labeled', labeled), ('val', val)):
        for name in missing_classes(classes, indices) if indices else ():
            print(f'no {part} image has mask value {name}')
    text = val and not args.group and sequence_warning(samples)
    if text:
        print(text, file=sys.stderr)
    return 0


def run_add(args):
    """Write the lists of --add; returns the exit status."""
    given = {name for name, value in vars(args).items() if value != args.parser.get_default(name)}
    others = given - {'list', 'add', 'out', 'allow_outside', 'command', 'run', 'program', 'parser'}
    if not args.list or others:
        args.parser.error('--add takes a list and --out, and no option that chooses samples')
    labeled, unlabeled, line = add_to_split(args.list, args.add, val_file(args.add),
                                            args.allow_outside)
    lists = {os.path.join(args.out, 'labeled.txt'): labeled,
             os.path.join(args.out, 'unlabeled.txt'): unlabeled}
    if os.path.abspath(val_file(args.out)) != os.path.abspath(val_file(args.add)) \
            and os.path.exists(val_file(args.add)):
        lists[val_file(args.out)] = read_list(val_file(args.add), True, args.allow_outside)
    write_lists(lists, val_file(args.out))
    print(f'{args.list}: {line}')
    report_lists(lists, None)
    return 0


def report_lists(lists, rule):
    """Print the number of samples, and with --group of groups, of each of {path: samples}."""
    for path, part in lists.items():
        count = len({group_of(sample, rule) for sample in part})
        groups = f' of {count} group' + 's' * (count > 1) if rule else ''
        print(f'{path}: {len(part)} samples{groups}' if part else
              f'{path}: not written, because no sample is unlabeled')


def report_groups(everything, lists, held_out, rule):
    """Print the groups in val, and the samples of these groups that are in no list."""
    print(f'groups in val: {first_of(sorted({group_of(sample, rule) for sample in held_out}))}')
    listed = {group_of(sample, None) for part in lists.values() for sample in part}
    left = [sample.image for sample in everything if group_of(sample, None) not in listed]
    if left:
        print(f'{len(left)} images of groups in val are in no list: {first_of(left)}')


def first_of(names):
    """The first of some names as text."""
    return ', '.join(names[:SHOWN]) + (', ...' if names[SHOWN:] else '')


def read_samples(args):
    """The samples of the id list or of the folders; returns (samples, data root or None)."""
    if args.list:
        samples, root = read_list(args.list, False, args.allow_outside), args.data_root
        unpaired = []
    else:
        samples, root, unpaired = pair_files(args.images, args.masks, args.mask_suffix,
                                             args.image_suffix, args.data_root)
    if unpaired:
        print(f'warning: {len(unpaired)} masks have no image of their stem and subfolder, and are '
              f'not used: {first_of(unpaired)}', file=sys.stderr)
    unmasked = [sample.image for sample in samples if not sample.mask]
    if unmasked:
        print(f'{len(unmasked)} of {len(samples)} images have no mask: {first_of(unmasked)}')
    return samples, root


def is_count_or_fraction(text):
    """Whether a text is a count or a fraction, and not the name of a list."""
    try:
        return bool(count_or_fraction(text))
    except argparse.ArgumentTypeError:
        return False


def hold_out_list(samples, path, rule=None, allow_outside=False):
    """Hold out the samples of an id list, with all others of their groups (see `group_of`).

    Returns:
        (the samples of the other groups, the list's samples).
    """
    held_out = read_list(path, True, allow_outside)
    groups = {group_of(sample, rule) for sample in held_out}
    return [sample for sample in samples if group_of(sample, rule) not in groups], held_out


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


def choose(samples, labeled, val, seed, classes, groups=None):
    """Choose labeled and val samples at random. The others are unlabeled.

    Args:
        samples: `Sample`s. Those without a mask are always unlabeled.
        labeled: a count, a Fraction of the training samples (rounded up, as in the published
            lists), or None for all that have a mask. They are taken from the groups in turn.
        val: a count, or a Fraction of the samples with masks (rounded up); 0 for none. Val gets
            whole groups with the closest number of masks that is possible.
        seed: seed of the choice. val does not depend on `labeled`.
        classes: {index: classes in its mask}, for a choice in which every class is in labeled and,
            if other samples have it, in val. {}: choose without regard to classes.
        groups: the group of each sample. None: each sample is a group.

    Returns:
        (labeled, unlabeled, val): ascending indices. Samples without a mask in groups of val are in
        none of them.

    Raises:
        UserError: not enough samples have masks, or only one group has.
    """
    groups = groups or range(len(samples))
    masked = [i for i, sample in enumerate(samples) if sample.mask]
    rng = np.random.default_rng(seed)
    names = list(dict.fromkeys(groups[i] for i in masked))
    names = [names[k] for k in rng.permutation(len(names))]
    members = {name: [] for name in names}  # the samples with masks
    for k in rng.permutation(len(masked)):
        members[groups[masked[k]]].append(masked[k])
    order = take_turns([i for name in names for i in members[name]], groups)
    wanted = to_count(val, len(order))
    in_val = choose_val(names, members, wanted, val, classes) if wanted else set()
    held_out = [i for i in order if groups[i] in in_val]
    core = cover_classes(exclude(order, held_out), classes, rarest_first(order, classes))
    pool = core + take_turns(exclude(order, held_out + core), groups, core)
    train = [i for i in range(len(samples)) if groups[i] not in in_val]
    count = len(pool) if labeled is None else to_count(labeled, len(train))
    if not 0 < count <= len(pool):
        asked = 'no labeled samples' if labeled is None else f'--labeled {labeled}'
        raise UserError(f'{asked}: only {len(pool)} samples have masks and are not in val; '
                        'ask for fewer, or hold out fewer')
    return sorted(pool[:count]), exclude(train, pool[:count]), sorted(held_out)


def choose_val(names, members, wanted, val, classes):
    """The set of the groups that are held out.

    Args:
        names: the groups, in random order. members: {group: its samples with masks}.
        wanted: number of samples. val: the same as the user gave it, for errors.
        classes: as in `choose`.
    """
    sizes = {name: len(members[name]) for name in names}
    present = {name: set().union(*(classes.get(i, ()) for i in members[name])) for name in names}
    best, least, problem = [], wanted, None
    for start in range(min(max(len(names), 1), TRIES)):
        try:
            chosen = closest_val(names[start:] + names[:start], sizes, wanted, val, present)
        except UserError as error:  # other groups may leave more
            problem = problem or error
            continue
        distance = abs(sum(sizes[name] for name in chosen) - wanted)
        if not best or distance < least:
            best, least = chosen, distance
        if least == 0:
            break
    if not best:
        raise problem
    return set(best)


def closest_val(names, sizes, wanted, val, present):
    """Groups with a number of samples as close to `wanted` as possible.

    Groups that show all classes are left for training, because a rare class could be only in val
    otherwise. The first groups are left if there is a choice, and then the first are taken.

    Args:
        names: the groups. sizes: {group: number of samples}. present: {group: set of its classes}.

    Raises:
        UserError: not enough samples have masks, or all of them are in one group.
    """
    others = exclude(names, cover_classes(names, present))
    total, available = sum(sizes.values()), sum(sizes[name] for name in others)
    if wanted > available:
        raise UserError(f'--val {val}: only {available} samples have masks'
                        + (' beyond those kept for the labeled list' if available < total else '')
                        + '; hold out fewer')
    chosen, room = [], wanted
    for name in cover_classes(others, present):
        if sizes[name] <= room:
            chosen.append(name)
            room -= sizes[name]
    if room:
        # At least one group is left for training, unless all samples are asked for.
        limit = available if available < total or wanted == total else total - 1
        more = closest_groups(exclude(others, chosen), sizes, room, limit)
        if not chosen or sum(sizes[name] for name in more) < 2 * room:
            chosen += more
    if not chosen:
        raise UserError(f'--val {val}: all {total} samples with masks are in one group, '
                        f'{names[0]}; write a --group that divides them, or hold out an id list '
                        'with --val LIST')
    return chosen


def take_turns(order, groups, before=()):
    """The indices in such an order that each of their groups has its turn, again and again.

    `before`: indices that had their turn before.
    """
    taken, turn = Counter(groups[i] for i in before), {}
    for i in order:
        turn[i] = taken[groups[i]]
        taken[groups[i]] += 1
    return sorted(order, key=turn.get)


def to_count(count_or_part, total):
    """A count as it is, or for a Fraction the count of that part of `total`, rounded up."""
    if isinstance(count_or_part, Fraction):
        return ceil(total * count_or_part)
    return count_or_part


def rarest_first(order, classes):
    """The classes of some images or groups, the rarest first."""
    counts = Counter(c for i in order for c in classes.get(i, ()))
    return sorted(counts, key=lambda c: (counts[c], c))


def cover_classes(order, classes, wanted=None):
    """Images or groups that hold all classes.

    For each class of `wanted` (default: all, from the rarest on) that no chosen one has: the first
    one that has it.
    """
    chosen, seen = [], set()
    for name in rarest_first(order, classes) if wanted is None else wanted:
        if name not in seen:
            chosen.append(next(i for i in order if name in classes.get(i, ())))
            seen |= classes[chosen[-1]]
    return chosen


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
