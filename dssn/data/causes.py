"""Likely causes of wrong values in a mask, derived from the values and its name, with the remedy.

A remedy is in backquotes: a line of a config, a command, or a line of Python that writes the mask
anew. It gives the correct mask, which tests/test_remedies.py shows. If the file does not show what
its values mean, the text asks for it, and has a remedy for each answer.
"""
import os
from typing import List, NamedTuple

from dssn.data.classes import PALETTES, voc_colour
from dssn.labels import IGNORE

TRAIN_IDS = ('list the files *_gtFine_labelTrainIds.png, which `python -m dssn prepare cityscapes '
             '--source FOLDER` makes')
MAX_LABEL_ID = 33  # of the 34 labelIds of Cityscapes; 19 of them are classes
MAX_COCO_ID = 90   # of the category ids of COCO; 80 of them are classes
SHOWN = 12         # values or colours that a text lists
# Expressions for the pixels of a file: as Pillow decodes them, and as `open_raw_mask` does.
PIXELS = 'np.array(Image.open(path))'
STORED = 'np.array(dssn.data.stored.read_indices(Image.open(path)))'


def rewrite(index, values=PIXELS):
    """The line of Python that writes the mask `path` anew, as the PNG `png`.

    Args:
        index: expression for the class indices, computed from `values`, (H, W) or (H, W, channels).
        values: expression for `values`.
    """
    return f'`values = {values}; Image.fromarray(np.uint8({index})).save(png)`'


class MaskValues(NamedTuple):
    """The facts that a rule uses: of one mask, or of all masks of a list."""
    values: List[int]  # all that occur, ascending, without 255
    has_255: bool
    nclass: int
    name: str          # file name; '' for several masks
    ignore_index: int

    @property
    def wrong(self):
        """The values that are not classes, ascending."""
        return [value for value in self.values if value >= self.nclass]

    def rewrite(self, index):
        """`rewrite`; pixels of `ignore_index` become 255, so that no class takes their value."""
        if self.ignore_index == IGNORE:
            return rewrite(index, STORED)
        return (rewrite(index, f'{STORED}; values[values == {self.ignore_index}] = {IGNORE}')
                + f', with `ignore_index: {IGNORE}`')

    def ignore(self, value):
        """The remedy for pixels of a value that stands for "no class"."""
        if self.ignore_index == IGNORE:
            return f'`ignore_index: {value}`'
        return self.rewrite(f'np.where(values == {value}, {IGNORE}, values)')


def cause_of_values(pixels, nclass, name='', ignore_index=IGNORE):
    """Likely cause of mask values that are not classes, with the remedy.

    Args:
        pixels: {value: pixels} of one mask or of several; ignored pixels count as 255. At least
            one value is neither a class nor 255.
        name: path of the mask; '' for several masks.
        ignore_index: mask value that was read as 255.

    Returns:
        Text without a full stop at its end.
    """
    values = sorted(value for value in pixels if value != IGNORE)
    mask = MaskValues(values, IGNORE in pixels, nclass, os.path.basename(name), ignore_index)
    for rule in (cityscapes_name, counted_from_one, nclass_occurs, label_ids, coco_ids,
                 gray_colours, two_and_255, multiplied, photograph, one_value):
        cause = rule(mask)
        if cause:
            return cause
    return several_values(mask)


# Rules: each returns the cause, or None if it does not apply.

def cityscapes_name(mask):
    """The file name shows which ids of Cityscapes the mask holds."""
    for ids in ('labelIds', 'instanceIds'):
        if mask.name.endswith(f'_{ids}.png'):
            return f"these are Cityscapes' {ids}, not trainIds: {TRAIN_IDS}"


def counted_from_one(mask):
    """All values lie in 1..nclass: nclass occurs and 0 does not."""
    if mask.values[-1] == mask.nclass and mask.values[0] > 0 and len(mask.values) > 1:
        cause = (f'the classes are shifted by one, counted 1..{mask.nclass}: subtract 1 in such '
                 f'masks: {subtract_one(mask)}')
        # A single mask may lack class 0 by chance.
        return cause + (f' (or, if {mask.nclass} stands for pixels without a class, and this mask '
                        f'does not show class 0: {mask.ignore(mask.nclass)})' if mask.name else '')


def nclass_occurs(mask):
    """The largest value is nclass."""
    top = mask.values[-1]
    if top == mask.nclass:
        return (f'what does value {top} mean? If it stands for pixels without a class: '
                f'{mask.ignore(top)}; if nclass does not count one of the classes, such as the '
                f'background: `nclass: {top + 1}`; if the classes are counted 1..{top}, and 0 '
                f'stands for pixels without a class: {subtract_one(mask)}')


def subtract_one(mask):
    """The remedy for classes that are counted from 1. Pixels of 0 become 255."""
    return mask.rewrite(f'np.where(values % {IGNORE} == 0, {IGNORE}, values - 1)')


def label_ids(mask):
    """All values may be labelIds of Cityscapes."""
    if mask.nclass == 19 and len(mask.wrong) > 1 and mask.values[-1] <= MAX_LABEL_ID:
        return f"these are Cityscapes' labelIds (0..{MAX_LABEL_ID}), not trainIds: {TRAIN_IDS}"


def coco_ids(mask):
    """All values may be category ids of COCO."""
    if mask.nclass == 81 and mask.values[-1] <= MAX_COCO_ID:
        return (f"these are COCO's category ids (1..{MAX_COCO_ID}, with gaps), but the classes are "
                'its 80 things without gaps: `python -m dssn prepare coco --source FOLDER` makes '
                'such masks')


def gray_colours(mask):
    """Every value is the gray that Pillow (or OpenCV, within 1) makes of a known colour map."""
    nonzero = [value for value in mask.values if value]
    if mask.nclass > 32 or len(nonzero) < 2:
        return None  # many grays, or a single value, would match by chance
    for map_name, colours in colour_maps(mask.nclass).items():
        gray = {(red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16
                for red, green, blue in colours}
        if all(min(abs(value - g) for g in gray) <= 1 for value in nonzero):
            return (f'a mask in the colours of {map_name} was converted to gray: use the mask in '
                    'colour. A palette PNG is read as it is; for an RGB one, the error has the '
                    'line that converts it')


def two_and_255(mask):
    """Two classes, 255, and one other value: 255 may be a class, and the other value none."""
    if mask.nclass == 2 and mask.has_255 and len(mask.wrong) == 1 and mask.ignore_index == IGNORE:
        value, = mask.wrong
        return (f'what do {value} and {IGNORE} mean? If {value} is class 1, and {IGNORE} stands '
                'for pixels without a class: '
                + mask.rewrite(f'np.where(values == {value}, 1, values)')
                + f'; if {IGNORE} is class 1, and {value} stands for pixels without a class: '
                + mask.rewrite(f'np.where(values == {value}, {IGNORE}, values // {IGNORE})'))


def multiplied(mask):
    """The values are evenly spaced: indices that were multiplied to make them visible."""
    if any(0 < value < mask.nclass for value in mask.values):
        return None  # otherwise a few wrong values could match
    stretched = mask.values + [IGNORE] * (mask.has_255 and mask.ignore_index == IGNORE)
    for values in (stretched, mask.values):
        factors = factors_of([value for value in values if value], mask.nclass)
        # A mask may lack classes. Then several factors are possible.
        if 0 < len(factors) < 4:
            break
    else:
        return None
    factor = min(factors, key=lambda factor: abs(factor - IGNORE / (mask.nclass - 1)))
    index = f'np.round(values / {factor:.6g})'
    if values[-1] != IGNORE and mask.has_255:
        index = f'np.where(values == {IGNORE}, {IGNORE}, {index})'
    question = '' if len(factors) == 1 else (
        f' (or by {" or ".join(f"{f:.6g}" for f in factors if f != factor)}: a mask that shows all '
        'classes decides)')
    listed = ', '.join(str(value) for value in values)
    cause = (f'the values {listed} look like indices multiplied by {factor:.6g}{question} to make '
             f'them visible. If so, divide by it: {mask.rewrite(index)}')
    if len(mask.wrong) > 1:
        return cause
    return (f'{cause}; if {mask.wrong[0]} stands for pixels without a class: '
            f'{mask.ignore(mask.wrong[0])}')


def factors_of(nonzero, nclass):
    """The factors that may have made ascending values other than 0 from the indices 1..nclass-1."""
    top, found = nonzero[-1], []
    for steps in range(1, nclass):
        factor = top / steps
        tolerance = 1 if factor > 8 else 0  # any value is close to a multiple of a small factor
        indices = [max(round(value / factor), 1) for value in nonzero]
        if len(set(indices)) == len(indices) and all(
                abs(value - factor * index) <= tolerance
                for value, index in zip(nonzero, indices)):
            found.append(factor)
    return found


def photograph(mask):
    """There are far more values than classes."""
    if len(mask.values) > max(40, 2 * mask.nclass):
        return (f'{len(mask.values)} different values look like a photograph, or like a mask '
                'resized smoothly. Are image and mask swapped on the line? Or was the mask '
                'resized? Then resize the original mask again, with Image.NEAREST')


def one_value(mask):
    """A single value is not a class."""
    if len(mask.wrong) == 1:
        value, = mask.wrong
        known = f'`nclass: {value + 1}`' if value < 2 * mask.nclass else (
            'give it the index of its class, here 1: '
            + mask.rewrite(f'np.where(values == {value}, 1, values)'))
        return (f'what does value {value} mean? If it stands for pixels without a class: '
                f'{mask.ignore(value)}; if it is a class: {known}')


def several_values(mask):
    """The cause if no rule applies."""
    wrong = mask.wrong
    if len(wrong) > SHOWN:
        return (f'the mask numbers its classes in another way than 0..{mask.nclass - 1}: which '
                f'class is each of its {len(mask.values)} values?')
    top = wrong[-1]
    more = f'nclass may be too small: if all of 0..{top} are classes: `nclass: {top + 1}`; else ' \
        if top < 2 * mask.nclass else ''
    return more + give_each(wrong, mask.rewrite)


def give_each(wrong, written):
    """The question for the class of each wrong value. `written`: `rewrite`, or one like it."""
    tests = ', '.join(f'values == {value}' for value in wrong)
    return (f'which class is each of {", ".join(map(str, wrong))}? Give each its index, or '
            f'{IGNORE} for pixels without a class, as here: '
            + written(f'np.select([{tests}], {[IGNORE] * len(wrong)}, values.astype(int))'))


def cause_of_0_and_255(ignore_index=IGNORE):
    """Remedy for masks of only 0 and ignored pixels, in which the ignored ones may be a class."""
    if ignore_index == IGNORE:
        return f'if 255 means class 1: divide by 255: {rewrite("values // 255", STORED)}'
    return (f'is {ignore_index}, the value of ignore_index, a class? Then: '
            f'`ignore_index: {IGNORE}`')


def colour_maps(nclass):
    """{name: colours} of the published colour maps that have at most nclass classes."""
    maps = {'Pascal VOC': [voc_colour(i) for i in [*range(min(nclass, 255)), 255]]}
    for dataset, map_name in (('cityscapes', 'Cityscapes'), ('camvid', 'CamVid')):
        if len(PALETTES[dataset]) <= nclass:
            maps[map_name] = PALETTES[dataset]
    # The longest map would match every mask in colours, so the short ones come first.
    return dict(sorted(maps.items(), key=lambda item: len(item[1])))
