"""Likely causes of a wrong mask, derived from its values, colours and name, with the remedy.

A remedy is in backquotes: a line of a config, a command, or a line of Python that writes the mask
anew. It gives the correct mask, which tests/test_remedies.py shows. If the file does not show what
its values mean, the text asks for it, and has a remedy for each answer.
"""
import os
from typing import List, NamedTuple

import numpy as np

from dssn.data.classes import PALETTES, voc_colour
from dssn.labels import IGNORE

TRAIN_IDS = ('list the files *_gtFine_labelTrainIds.png, which `python -m dssn prepare cityscapes '
             '--source FOLDER` makes')
MAX_LABEL_ID = 33  # of the 34 labelIds of Cityscapes; 19 of them are classes
MAX_COCO_ID = 90   # of the category ids of COCO; 80 of them are classes
SHOWN = 12         # values or colours that a text lists
DATASETS = {'Pascal VOC': 'pascal', 'Cityscapes': 'cityscapes', 'CamVid': 'camvid'}
PIXELS = 'np.array(Image.open(path))'


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
    file_format: str   # as Pillow names it
    ignore_index: int

    @property
    def wrong(self):
        """The values that are not classes, ascending."""
        return [value for value in self.values if value >= self.nclass]

    def rewrite(self, index):
        """`rewrite`; pixels of `ignore_index` become 255, so that no class takes their value."""
        if self.ignore_index == IGNORE:
            return rewrite(index)
        return (rewrite(index, f'{PIXELS}; values[values == {self.ignore_index}] = {IGNORE}')
                + f', with `ignore_index: {IGNORE}`')

    def ignore(self, value):
        """The remedy for pixels of a value that stands for "no class"."""
        if self.ignore_index == IGNORE:
            return f'`ignore_index: {value}`'
        return self.rewrite(f'np.where(values == {value}, {IGNORE}, values)')


def cause_of_values(pixels, nclass, name='', file_format='PNG', ignore_index=IGNORE):
    """Likely cause of mask values that are not classes, with the remedy.

    Args:
        pixels: {value: pixels} of one mask or of several; ignored pixels count as 255. At least
            one value is neither a class nor 255.
        name: path of the mask; '' for several masks. file_format: as Pillow names it.
        ignore_index: mask value that was read as 255.

    Returns:
        Text without a full stop at its end.
    """
    values = sorted(value for value in pixels if value != IGNORE)
    mask = MaskValues(values, IGNORE in pixels, nclass, os.path.basename(name), file_format,
                      ignore_index)
    for rule in (cityscapes_name, jpeg, counted_from_one, nclass_occurs, label_ids, coco_ids,
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


def jpeg(mask):
    """The file is a JPEG."""
    if mask.file_format == 'JPEG':
        return 'JPEG compression changes indices: export the masks again, as PNG'


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
                f'for pixels without a class: {rewrite(f"np.where(values == {value}, 1, values)")}'
                f'; if {IGNORE} is class 1, and {value} stands for pixels without a class: '
                + rewrite(f'np.where(values == {value}, {IGNORE}, values // {IGNORE})'))


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
        if all(abs(value - factor * max(round(value / factor), 1)) <= tolerance
               for value in nonzero):
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
        return f'if 255 means class 1: divide by 255: {rewrite("values // 255")}'
    return (f'is {ignore_index}, the value of ignore_index, a class? Then: '
            f'`ignore_index: {IGNORE}`')


def cause_of_depth(mask, name):
    """Cause and remedy for a decoded mask of 1 bit, or of more than 8 bits, per pixel."""
    if mask.mode == '1':
        return f'it has 1 bit per pixel: write it with 8: {rewrite("values")}'
    return 'it has more than 8 bits per pixel, and ' + cause_of_array(np.asarray(mask), name)


def cause_of_array_file(path):
    """Cause and remedy for a mask in a file of NumPy, or None if it cannot be read."""
    try:
        values = np.load(path, mmap_mode='r', allow_pickle=False)
        kind, shape = values.dtype.kind, values.shape
    except Exception:  # a damaged file makes NumPy raise almost any error
        return None
    load = 'np.load(path)'
    if values.ndim == 3 and 1 in (shape[0], shape[2]):
        values, load = values.squeeze(), 'np.load(path).squeeze()'
    if kind not in 'biuf' or values.ndim != 2 or not values.size:
        return (f'it is a NumPy array of {values.dtype} {shape}, not of numbers (height, width): '
                'which part of it holds the class indices? Save that as an 8-bit PNG')
    return (f'it is a NumPy array; name a PNG on the line; '
            f'{cause_of_array(values, os.path.basename(path), load)}')


def cause_of_array(values, name, source=PIXELS):
    """Cause and remedy for an array (height, width) of numbers that are not 8-bit.

    Args:
        name: path of the mask. source: expression for the array, for the remedy.
    """
    def written(index):
        return rewrite(index, source)
    values = np.unique(values)
    known = (values >= 0) & (values <= IGNORE) & (values == np.floor(values))
    others = [number_text(value) for value in values[~known]]
    span = f'its values are {number_text(values[0])}..{number_text(values[-1])}'
    if not others:
        return f'{span}, which fit into 8: {written("values")}'
    ids = cityscapes_name(MaskValues([], False, 0, os.path.basename(name), '', IGNORE))
    if ids:
        return f'{span}: {ids}'
    for text in others:
        if not text.lstrip('-').isdecimal() and text != 'nan':
            return (f'it holds {text}, which is no class index. What does {text} mean? Export the '
                    'masks again, as class indices')
    factor = factor_of_16_bits(values)
    if factor:
        return (f'{span}: they look like indices multiplied by {factor:.6g}. If so, divide by it: '
                + written(f'np.round(values / {factor:.6g})'))
    if len(others) == 1:
        test = 'np.isnan(values)' if others == ['nan'] else f'values == {others[0]}'
        second = f'; if it is class 1: {written(test)}' \
            if values[known].tolist() == [0] and others[0].isdecimal() else ''
        return (f'{others[0]} is no class index. If it stands for pixels without a class: '
                + written(f'np.where({test}, {IGNORE}, values)') + second)
    if len(others) <= SHOWN and 'nan' not in others:
        return give_each(others, written)
    return f'{span}. Are they object ids or depths? Export the masks again, as class indices'


def number_text(value):
    """A NumPy number, without decimals if it is whole."""
    return str(int(value)) if np.isfinite(value) and value == np.floor(value) else f'{value:g}'


def factor_of_16_bits(values):
    """The factor that stretched 8-bit indices to 16 bits, or None.

    Args:
        values: all that occur, ascending.
    """
    top = 65535
    if values[0] < 0 or not values[-1] <= top or values.tolist() == [0, top]:
        return None  # 0 and 65535 alone may be two classes, or a class and -1
    for factor in (257, 256):
        if not (values % factor).any():
            return factor
    factors = factors_of(values[values > 0].tolist(), IGNORE) if values[-1] == top else []
    return factors[0] if factors else None


def cause_of_colours(mask):
    """Cause and remedy for a decoded mask of several channels."""
    values, text = np.asarray(mask), ''
    if mask.mode[-1] in 'Aa':
        last, values = values[..., -1], values[..., :-1]
        remedy = rewrite(f'values[..., {values.shape[-1]}]')
        if (last != IGNORE).any():
            if (values == values[0, 0]).all():
                return f'only its alpha channel varies. Write this channel: {remedy}'
            text = f'if its alpha channel holds the class indices: {remedy}; if not: '
        else:
            text = 'its alpha channel is empty; '
    if values.shape[-1] == 1:
        return f'{text}write the first channel: {rewrite("values[..., 0]")}'
    varying = []
    if mask.mode.startswith('RGB'):
        if (values[..., :3] == values[..., :1]).all():
            return f'{text}its three channels are equal. Write one: {rewrite("values[..., 0]")}'
        varying = [i for i in range(3) if (values[..., i] != values[0, 0, i]).any()]
    counted = mask.convert('RGB').getcolors(256)
    if counted is None:
        return (f'{text}it has so many colours that it looks like a photograph. Are image and mask '
                'swapped on the line?')
    colours = sorted(colour for _, colour in counted)
    maps = {name: f"dssn.data.classes.default_colours('{DATASETS[name]}', {min(len(known), 255)})"
            for name, known in colour_maps(256).items()
            if set(colours) <= set(known) | {(0, 0, 0), (255, 255, 255)}}
    if len(varying) == 1 and not maps:
        return (f'{text}only channel {varying[0]} varies. Write this channel: '
                + rewrite(f'values[..., {varying[0]}]'))
    own = f'[{", ".join(map(str, colours[:SHOWN]))}{", ..." if len(colours) > SHOWN else ""}]'
    first, *more = maps.values() or [own]
    question = f', those of {" or ".join(maps)}. Convert them:' if maps else \
        '. Which class is each? List the colours in the order of the classes, as here:'
    remedy = rewrite('np.select([(values == c).all(2) for c in colours], range(len(colours)), '
                     f'{IGNORE})', f"np.array(Image.open(path).convert('RGB')); colours = {first}")
    others = ''.join(f', or with `colours = {other}`' for other in more)
    return f'{text}it holds {len(colours)} colours{question} {remedy}{others}'


def colour_maps(nclass):
    """{name: colours} of the published colour maps that have at most nclass classes."""
    maps = {'Pascal VOC': [voc_colour(i) for i in [*range(min(nclass, 255)), 255]]}
    for dataset, map_name in (('cityscapes', 'Cityscapes'), ('camvid', 'CamVid')):
        if len(PALETTES[dataset]) <= nclass:
            maps[map_name] = PALETTES[dataset]
    # The longest map would match every mask in colours, so the short ones come first.
    return dict(sorted(maps.items(), key=lambda item: len(item[1])))
