"""The kinds of problems of a data set, and the checks that compare samples or sum up masks."""
import os
from collections import Counter
from typing import Dict, NamedTuple, Optional

import numpy as np

from dssn.data.causes import cause_of_0_and_255
from dssn.labels import IGNORE

ERROR, WARNING = 'error', 'warning'
# kind: (severity, heading), in the order of a report.
KINDS = {
    'bad_line': (ERROR, 'lines that cannot be read'),
    'missing': (ERROR, 'missing files'),
    'unreadable': (ERROR, 'files that cannot be read as images'),
    'truncated': (ERROR, 'truncated files'),
    'too_large': (ERROR, 'images too large to decode'),
    'image_depth': (ERROR, 'images of more than 8 bits per channel'),
    'mask_colour': (ERROR, 'masks in colour or with an alpha channel'),
    'mask_depth': (ERROR, 'masks of 1 bit, or of more than 8 bits, per pixel'),
    'mask_format': (ERROR, 'masks in a format that may change class indices'),
    'mask_pages': (ERROR, 'masks of several pages, frames or channels'),
    'mask_scaled': (ERROR, 'masks whose values change when they are read'),
    'mask_palettes': (ERROR, 'masks whose palette contradicts that of another mask'),
    'size_mismatch': (ERROR, 'masks of another size than their image'),
    'orientation': (ERROR, 'EXIF orientations that image and mask may follow or not'),
    'wrong_values': (ERROR, 'masks with values that are not classes'),
    'list_0_and_255': (ERROR, 'lists whose masks hold only 0 and 255'),
    'list_ignored': (ERROR, 'lists whose masks are ignored everywhere'),
    'one_class': (ERROR, 'labeled lists whose masks hold one class'),
    'two_masks': (ERROR, 'images with two masks'),
    'repeated_in_val': (ERROR, 'images repeated in val or select_on'),
    'train_and_val': (ERROR, 'images both trained on and in val'),
    'same_pixels_as_val': (ERROR, 'images trained on whose pixels are in val, under another name'),
    'in_select_on': (ERROR, 'images of select_on that are in another list'),
    'mask_0_and_255': (WARNING, 'masks that hold only 0 and 255'),
    'mask_ignored': (WARNING, 'masks that are ignored everywhere'),
    'shared_mask': (WARNING, 'masks of two images'),
    'bands': (WARNING, 'lists with TIFF images of other bands than red, green and blue'),
    'repeated': (WARNING, 'images repeated in a list'),
    'same_pixels': (WARNING, 'images with the same pixels, under different names'),
    'labeled_and_unlabeled': (WARNING, 'images both labeled and unlabeled'),
    'absent_class': (WARNING, 'classes without a pixel'),
}

EVALUATED = ('val', 'select_on')
TRAINED_AND_SCORED = ('the score would include an image that was trained on; remove it from one of '
                      'the lists')


class Problem(NamedTuple):
    """One problem. `line` and `file` are None if it concerns a whole list."""
    kind: str
    message: str
    role: str  # the list: 'labeled', 'unlabeled', 'val' or 'select_on'
    line: Optional[int] = None
    file: Optional[str] = None
    values: Optional[Dict[int, int]] = None  # {mask value: pixels}, of wrong_values

    @property
    def severity(self):
        return KINDS[self.kind][0]


def problem_at(sample, kind, message, role, file, values=None):
    """The Problem of a file on the line of a sample. The message begins with the sample's place."""
    return Problem(kind, message, role, int(sample.place.rsplit(' ', 1)[1]), file, values)


# Compare samples.

def path_problems(lists):
    """The problems that follow from the paths in the lists. No file is opened.

    Args:
        lists: {role: samples}: first the lists that are trained on, then val, then select_on.

    Returns:
        List of `Problem`: images that are repeated, in two lists, or with two masks; masks of two
        images.
    """
    problems, images = [], {}
    for role, samples in lists.items():
        others = dict(images)
        own, masks = images.setdefault(role, {}), {}
        for sample in samples:
            name = os.path.normpath(sample.image)
            if name in own:
                problems.append(repeated_problem(role, sample, own[name]))
                continue
            own[name] = sample
            problems += [two_lists_problem(role, sample, other, found[name])
                         for other, found in others.items() if name in found]
            if sample.mask and role != 'unlabeled':
                first = masks.setdefault(os.path.normpath(sample.mask), sample)
                if first is not sample:
                    problems.append(shared_mask_problem(role, sample, first))
    return problems


def repeated_problem(role, sample, first):
    """The Problem that a list names an image twice."""
    text = f'{sample.place}: image {sample.image} is on {first.place} too'
    if role != 'unlabeled' and os.path.normpath(sample.mask) != os.path.normpath(first.mask):
        kind = 'two_masks'
        text += f', with another mask, {first.mask}: keep the correct line'
    elif role in EVALUATED:
        kind = 'repeated_in_val'
        text += ' and would count twice in the score: remove one of the two'
    else:
        kind = 'repeated'
        text += ' and is trained on twice as often: remove one of the two, unless this is intended'
    return problem_at(sample, kind, text, role, sample.image)


def two_lists_problem(role, sample, other_role, other):
    """The Problem that two lists name the same image."""
    text = f'{sample.place}: image {sample.image} is {other_role} too ({other.place}): '
    if role == 'val':
        return problem_at(sample, 'train_and_val', text + TRAINED_AND_SCORED, role, sample.image)
    if role == 'select_on':
        return select_on_problem(role, sample, other_role, text)
    text += ('it is trained on with its mask and without it; remove it from the unlabeled list, '
             'unless this is intended')
    return problem_at(sample, 'labeled_and_unlabeled', text, role, sample.image)


def select_on_problem(role, sample, other_role, text):
    """The Problem that an image of select_on is in another list. `text` begins its message."""
    use = 'reported' if other_role == 'val' else 'trained on'
    text += f'images that select weights must not be {use}; remove it from one of the lists'
    return problem_at(sample, 'in_select_on', text, role, sample.image)


def shared_mask_problem(role, sample, first):
    """The Problem that two images of a list have the same mask."""
    text = (f'{sample.place}: mask {sample.mask} is the mask of another image too, {first.image} '
            f'({first.place}): correct the wrong line')
    return problem_at(sample, 'shared_mask', text, role, sample.mask)


class DuplicateFinder:
    """Finds images with the same pixels but different names."""

    def __init__(self):
        self.first = {}  # {role: {digest: the first sample with it}}

    def add(self, role, sample, digest):
        """Record a sample; returns the problems of it and earlier samples.

        Args:
            digest: hash of the image's pixels. The lists must come in the order of
                `path_problems`.

        Returns:
            List of `Problem`.
        """
        problems = []
        for other_role, found in self.first.items():
            other = found.get(digest)
            if other and os.path.normpath(other.image) != os.path.normpath(sample.image):
                problems.append(self.problem(role, sample, other_role, other))
        self.first.setdefault(role, {}).setdefault(digest, sample)
        return problems

    @staticmethod
    def problem(role, sample, other_role, other):
        text = (f'{sample.place}: image {sample.image} has the same pixels as {other.image} '
                f'({other_role}, {other.place}): ')
        if role == 'val' and other_role != 'val':
            return problem_at(sample, 'same_pixels_as_val', text + TRAINED_AND_SCORED, role,
                              sample.image)
        if role == 'select_on' and other_role != 'select_on':
            return select_on_problem(role, sample, other_role, text)
        text += 'remove one of the two, unless this is intended'
        return problem_at(sample, 'same_pixels', text, role, sample.image)


# Sum up images.

def bands_problems(role, path, read):
    """One Problem for each way in which the bands of a list's TIFF images are read.

    Args:
        path: of the list. read: [(image, its `Header.bands`)], without those that are None.
    """
    first, count = {}, Counter()
    for name, text in read:
        first.setdefault(text, name)
        count[text] += 1
    return [Problem('bands', f'{path}: {count[text]} of the images read, such as {name}, have '
                    f'{text}', role) for text, name in first.items()]


# Sum up masks.

class PixelTotals:
    """Pixels by value over the masks of one list. Ignored pixels count as 255."""

    def __init__(self):
        self.masks = 0
        self.pixels = np.zeros(256, np.int64)      # by value
        self.masks_with = np.zeros(256, np.int64)  # masks that hold the value

    def add(self, counts):
        """Add the pixels by value, (256,) int64, of a mask."""
        self.masks += 1
        self.pixels += counts
        self.masks_with += counts > 0

    def histogram(self):
        """{value: pixels} of the values that occur."""
        return {value: count for value, count in enumerate(self.pixels.tolist()) if count}

    @property
    def classes(self):
        """The values that occur, without 255."""
        return set(self.histogram()) - {IGNORE}


def unusable_mask_problems(role, path, totals, ignore_index=IGNORE):
    """[the Problem that all masks of a list hold nothing to learn or to score], or []."""
    values = set(totals.histogram())
    if values == {0, IGNORE}:
        return [Problem('list_0_and_255', f'{path}: all {totals.masks} masks read hold only 0 and '
                        f'ignored pixels ({ignore_index}); {cause_of_0_and_255(ignore_index)}',
                        role)]
    if values == {IGNORE}:
        return [Problem('list_ignored', f'{path}: all {totals.masks} masks read hold only ignored '
                        'pixels; correct the masks or ignore_index', role)]
    return one_class_problems(role, path, totals.masks, totals.classes)


def one_class_problems(role, path, masks, classes):
    """[the Problem that the labeled masks hold a single class], or [].

    Training on one class predicts that class everywhere. Of such masks that scores 100.

    Args:
        path: of the list. masks: number of its masks that were read. classes: set of the mask
            values that they hold, without 255.
    """
    if role != 'labeled' or len(classes) != 1:
        return []
    return [Problem('one_class', f'{path}: all {masks} masks read hold only class '
                    f'{min(classes)}: a network cannot learn to tell classes apart from them; '
                    'export the masks again, or label images of other classes, too', role)]


def absent_class_problems(role, path, totals, names):
    """[the Problem that some classes have no pixel in the masks of a list], or []."""
    absent = [name for name, pixels in zip(names, totals.pixels) if not pixels]
    if not absent or not totals.masks:
        return []
    advice = 'their IoU is undefined' if role in EVALUATED else (
        'they cannot be learned: choose other samples (`python -m dssn split --stratified`) or '
        'correct nclass')
    return [Problem('absent_class', f'{path}: {len(absent)} of {len(names)} classes have no pixel: '
                    f"{', '.join(absent)}; {advice}", role)]
