"""Groups of images that belong together, such as the frames of a video, for `split`."""
import argparse
import os
import re
import shlex
from collections import Counter

import numpy as np

from dssn.errors import UserError

FOLDER = 'folder'
# Words in names for a part of a data set. Images of two parts are not two sequences.
PARTS = re.compile(r'(?<![^\W_])(train|training|val|valid|validation|test|testing|labeled|'
                   r'unlabeled)\d*(?![^\W_])', re.IGNORECASE)
MIN_FRAMES = 4   # images of a sequence: fewer do not show a step
MIN_FOLDERS = 5  # from so many on, folders may be scenes


def group_rule(text):
    """The type of --group: 'folder', or a regular expression."""
    if text == FOLDER:
        return text
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a regular expression ({error}); write "
                                         "'folder' or an expression such as '[^/]+_'") from None


def group_of(sample, rule):
    """The name of a sample's group.

    Args:
        rule: 'folder' for the folder of the image; an expression that is searched in the image's
            path without ending, and whose first group, or else whole match, is the name; None if
            every image is a group of its own.

    Raises:
        UserError: the expression does not match, or matches an empty text.
    """
    path = os.path.normpath(sample.image).replace(os.sep, '/')
    if rule is None:
        return path
    if rule == FOLDER:
        return os.path.dirname(path) or os.curdir
    found = rule.search(os.path.splitext(path)[0])
    name = found and found.group(1 if rule.groups else 0)
    if not name:
        raise UserError(f"--group '{rule.pattern}': names no group in '{os.path.splitext(path)[0]}'"
                        f' ({sample.place}); write an expression that matches every image')
    return name


def closest_groups(order, sizes, wanted, limit):
    """Groups whose sizes add up to the number closest to `wanted`, and at least to 1.

    Of two numbers that are equally close it is the smaller one. Of several sets with this sum it is
    one among the first groups of `order`.

    Args:
        order: groups. sizes: {group: number of samples, at least 1}. wanted: at least 1.
        limit: the largest sum that is allowed, at least `wanted`.

    Returns:
        List of groups, empty if every group is larger than `limit`.
    """
    sums = np.cumsum([sizes[group] for group in order]).tolist()
    if wanted in sums:  # the usual case, without the search
        return order[:sums.index(wanted) + 1]
    # No sum above 2 * wanted is closer than a sum below wanted, unless all groups are larger.
    limit = min(limit, max(2 * wanted, min(sizes[group] for group in order)))
    reached = np.zeros(limit + 1, bool)  # by sum
    reached[0] = True
    last = np.zeros(limit + 1, np.int64)  # position of the last group of the first set of this sum
    for position, group in enumerate(order):
        size = sizes[group]
        if size <= limit:
            new = np.flatnonzero(reached[:-size] & ~reached[size:]) + size
            reached[new], last[new] = True, position
        if reached[wanted]:
            break
    total = min(np.flatnonzero(reached)[1:].tolist(), key=lambda n: abs(n - wanted), default=0)
    chosen = []
    while total:
        chosen.append(order[last[total]])
        total -= sizes[chosen[-1]]
    return chosen[::-1]


def sequence_warning(samples):
    """A warning if the names of images look like sequences, else None.

    A series is the images of a folder whose names differ only in their last number. It is steady if
    it has at least 4 images, and two thirds of its steps from number to number equal the step
    before. The names look like sequences

    - if at least half of the images are in steady series, and there are several of these, or the
      step of the only one is not 1 (photos of one camera are numbered with step 1, too);
    - or if at least 5 folders hold two images or more, together at least half of the images.

    Words such as `train` and `val` in folders and names do not count.
    """
    images = [os.path.splitext(os.path.normpath(sample.image))[0].replace(os.sep, '/')
              for sample in samples]
    # In 'ulm_000001_000019_leftImg8bit' the last number is 19, and not 8.
    end = common_end([os.path.basename(image) for image in images])
    series, folders = {}, {}
    for image in images:
        folder, stem = os.path.split(PARTS.sub('', image[:len(image) - len(end)]))
        folders.setdefault(folder, []).append(image)
        found = re.fullmatch(r'(.*?)(\d+)(\D*)', stem)
        if found:
            name = folder, found.group(1), found.group(3)
            series.setdefault(name, {})[int(found.group(2))] = image
    steps = {name: steady_step(numbers) for name, numbers in series.items()}
    steady = [name for name, step in steps.items() if step]
    frames = [series[name][number] for name in steady for number in sorted(series[name])]
    if 2 * len(frames) >= len(images) and len(steady) > 1:
        rule = shlex.quote(r'(.*?)\d+\D*' + re.escape(end) + '$')
        return warning(f'{len(steady)} sequences', frames, f'--group {rule} keeps names together '
                       'that differ only in their last number')
    if 2 * len(frames) >= len(images) and steady and steps[steady[0]] != 1:
        return warning('one sequence', frames, 'hold out one end of it, by an id list: --val LIST')
    several = [found for found in folders.values() if len(found) > 1]
    grouped = [image for found in several for image in found]
    if 2 * len(grouped) >= len(images) and len(several) >= MIN_FOLDERS:
        return warning(f'sequences in {len(several)} folders', grouped,
                       f'--group {FOLDER} keeps folders whole')
    return None


def common_end(stems):
    """The text at the end of all stems, without a number at its start."""
    return os.path.commonprefix([stem[::-1] for stem in stems])[::-1].lstrip('0123456789')


def steady_step(numbers):
    """The most frequent step of a steady series of numbers, see `sequence_warning`; else None."""
    steps = np.diff(sorted(numbers))
    if len(steps) < MIN_FRAMES - 1 or 3 * (steps[1:] == steps[:-1]).sum() < 2 * (len(steps) - 1):
        return None
    return Counter(steps.tolist()).most_common(1)[0][0]


def warning(what, examples, remedy):
    return (f'warning: the images look like {what} ({examples[0]}, {examples[1]}, ...), and val is '
            'chosen at random. Neighbours of val images may be trained on, and the score would be '
            f'too high. If so, {remedy}')
