"""Likely causes of a wrong mask, derived from its values, colours and name, with the remedy."""
import os
from typing import List, NamedTuple

import numpy as np

from dssn.data.classes import PALETTES, voc_colour
from dssn.labels import IGNORE

TRAIN_IDS = ('use the files *_gtFine_labelTrainIds.png, which `python -m dssn prepare '
             'cityscapes` makes')
MAX_LABEL_ID = 33  # of the 34 labelIds of Cityscapes; 19 of them are classes
MAX_COCO_ID = 90   # of the category ids of COCO; 80 of them are classes


class MaskValues(NamedTuple):
    """The facts that a rule uses: of one mask, or of all masks of a list."""
    values: List[int]  # all that occur, ascending, without 255
    has_255: bool
    nclass: int
    name: str          # file name; '' for several masks


def cause_of_values(pixels, nclass, name=''):
    """Likely cause of mask values that are not classes, with the remedy.

    Args:
        pixels: {value: pixels} of one mask or of several; ignored pixels count as 255. At least
            one value is neither a class nor 255.
        name: path of the mask; '' for several masks.

    Returns:
        Text without a full stop at its end.
    """
    values = sorted(value for value in pixels if value != IGNORE)
    mask = MaskValues(values, IGNORE in pixels, nclass, os.path.basename(name))
    for rule in (cityscapes_name, counted_from_one, nclass_occurs, label_ids, coco_ids,
                 gray_colours, multiplied, photograph):
        cause = rule(mask)
        if cause:
            return cause
    top = mask.values[-1]
    cause = f'nclass is too small (value {top} needs nclass = {top + 1})' if top < 2 * nclass else \
        'the mask numbers its classes in another way'
    return (f'{cause}, or a value stands for pixels without a class: correct the masks, nclass or '
            'ignore_index')


# Rules: each returns the cause, or None if it does not apply.

def cityscapes_name(mask):
    """The file name shows which ids of Cityscapes the mask holds."""
    for ids in ('labelIds', 'instanceIds'):
        if mask.name.endswith(f'_{ids}.png'):
            return f"these are Cityscapes' {ids}, not trainIds: {TRAIN_IDS}"


def counted_from_one(mask):
    """All values lie in 1..nclass: nclass occurs and 0 does not."""
    if mask.values[-1] == mask.nclass and mask.values[0] > 0 and len(mask.values) > 1:
        cause = (f'the classes are shifted by one, counted 1..{mask.nclass}: subtract 1 from every '
                 'value that is a class')
        # A single mask may lack class 0 by chance.
        return cause + (f' (or, if {mask.nclass} is void and this mask does not show class 0, set '
                        f'ignore_index: {mask.nclass})' if mask.name else '')


def nclass_occurs(mask):
    """The largest value is nclass."""
    if mask.values[-1] == mask.nclass:
        return (f'value {mask.nclass} stands for void (set ignore_index: {mask.nclass}), or nclass '
                'does not count one of the classes, such as the background')


def label_ids(mask):
    """All values may be labelIds of Cityscapes."""
    wrong = [value for value in mask.values if value >= mask.nclass]
    if mask.nclass == 19 and len(wrong) > 1 and wrong[-1] <= MAX_LABEL_ID:
        return f"these are Cityscapes' labelIds (0..{MAX_LABEL_ID}), not trainIds: {TRAIN_IDS}"


def coco_ids(mask):
    """All values may be category ids of COCO."""
    if mask.nclass == 81 and mask.values[-1] <= MAX_COCO_ID:
        return (f"these are COCO's category ids (1..{MAX_COCO_ID}, with gaps), but the classes are "
                'its 80 things without gaps: `python -m dssn prepare coco` makes such masks')


def gray_colours(mask):
    """Every value is the gray that Pillow (or OpenCV, within 1) makes of a known colour map."""
    nonzero = [value for value in mask.values if value]
    if mask.nclass > 32 or len(nonzero) < 2:
        return None  # many grays, or a single value, would match by chance
    for map_name, colours in colour_maps(mask.nclass).items():
        gray = {(red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16
                for red, green, blue in colours}
        if all(min(abs(value - g) for g in gray) <= 1 for value in nonzero):
            return (f'a mask in the colours of {map_name} was converted to gray: convert each '
                    'colour to the index of its class instead; a palette PNG can be used as it is')


def multiplied(mask):
    """The values are evenly spaced: indices that were multiplied to make them visible."""
    for values in ([mask.values + [IGNORE]] if mask.has_255 else []) + [mask.values]:
        nonzero = [value for value in values if value]
        steps = round(nonzero[-1] / min(np.diff([0] + nonzero)))
        factor = nonzero[-1] / steps
        tolerance = 1 if factor > 8 else 0  # any value is close to a multiple of a small factor
        # All values but 0 must be too large. Otherwise a few wrong values could match.
        if nonzero[0] >= mask.nclass > steps and all(
                abs(value - factor * round(value / factor)) <= tolerance for value in nonzero):
            listed = ', '.join(str(value) for value in values)
            return (f'the values {listed} are indices multiplied by about {factor:.0f} to make '
                    'them visible: divide by it and round')


def photograph(mask):
    """There are far more values than classes."""
    if len(mask.values) > max(40, 2 * mask.nclass):
        return (f'{len(mask.values)} different values look like a photograph, or like a mask '
                'resized smoothly: check whether image and mask are swapped on the line, and '
                'resize masks with Image.NEAREST')


def cause_of_depth(mask, name):
    """Cause and remedy for a decoded mask of 1 bit, or of more than 8 bits, per pixel."""
    if mask.mode == '1':
        return ('it has 1 bit per pixel: save it with 8 bits, as indices 0 and 1: '
                "mask.convert('L').point(lambda value: value // 255)")
    values = np.asarray(mask)
    low, high = values.min(), values.max()
    if 0 <= low and high <= 255:
        return (f'it has more than 8 bits per pixel, but its values {low:g}..{high:g} fit into 8: '
                "save Image.fromarray(np.asarray(mask).astype('uint8'))")
    ids = cityscapes_name(MaskValues([], False, 0, os.path.basename(name)))
    return (f'it has more than 8 bits per pixel, and values {low:g}..{high:g}: '
            + (ids or 'these are object ids or depths, not classes'))


def cause_of_colours(mask, name):
    """Cause and remedy for a decoded mask of several channels."""
    alpha = 'it has an alpha channel; without it, ' if mask.mode[-1] in 'Aa' else ''
    if mask.mode in ('LA', 'La', 'PA'):
        return f'{alpha}the first channel may hold the indices: save mask.getchannel(0)'
    mask = mask.convert('RGB')
    counted = mask.getcolors(256)
    if counted is None:
        return (f'{alpha}it has so many colours that it looks like a photograph: check whether '
                'image and mask are swapped on the line')
    colours = {colour for _, colour in counted}
    if all(red == green == blue for red, green, blue in colours):
        return f'{alpha}its three channels are equal: save one, mask.getchannel(0)'
    map_names = [map_name for map_name, known in colour_maps(256).items()
                 if colours <= set(known) | {(0, 0, 0), (255, 255, 255)}]
    known_map = f', those of {map_names[0]}' if map_names else ''
    return (f'{alpha}it holds {len(colours)} colours{known_map}: convert each colour to the index '
            'of its class')


def colour_maps(nclass):
    """{name: colours} of the published colour maps that have at most nclass classes."""
    maps = {'Pascal VOC': [voc_colour(i) for i in [*range(min(nclass, 255)), 255]]}
    for dataset, map_name in (('cityscapes', 'Cityscapes'), ('camvid', 'CamVid')):
        if len(PALETTES[dataset]) <= nclass:
            maps[map_name] = PALETTES[dataset]
    # The longest map would match every mask in colours, so the short ones come first.
    return dict(sorted(maps.items(), key=lambda item: len(item[1])))
