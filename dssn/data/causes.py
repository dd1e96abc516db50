"""What probably made a mask wrong, told from its values, colours and name, and what to do."""
import os
from typing import List, NamedTuple

import numpy as np

from dssn.data.classes import PALETTES, voc_colour

TRAIN_IDS = ('use the files *_gtFine_labelTrainIds.png, which `python -m dssn.data prepare '
             'cityscapes` makes')
MOST_LABEL_ID = 33  # of Cityscapes' 34 labelIds; 19 of them are classes
MOST_COCO_ID = 90   # of COCO's category ids; 80 of them are classes


class Values(NamedTuple):
    """What a rule sees of a mask, or of all masks of a list."""
    values: List[int]  # all that occur, ascending, without 255
    has_255: bool
    nclass: int
    name: str          # file name, '' for several masks
    file_format: str   # as Pillow names it


def cause_of_values(pixels, nclass, name='', file_format='PNG'):
    """Why some of a mask's values are no class: a sentence with the remedy, without full stop.

    Args:
        pixels: {value: pixels} of one mask or of many, ignored ones as 255; at least one value is
            neither a class nor 255. name: the mask's path. file_format: as Pillow names it.
    """
    seen = Values(sorted(value for value in pixels if value != 255), 255 in pixels, nclass,
                  os.path.basename(name), file_format)
    for rule in (named_as_other_ids, compressed, counted_from_one, one_value_more, label_ids,
                 coco_ids, gray_colours, stretched, picture):
        cause = rule(seen)
        if cause:
            return cause
    top = seen.values[-1]
    cause = f'nclass is too small (value {top} needs nclass = {top + 1})' if top < 2 * nclass else \
        'the mask numbers its classes in another way'
    return (f'{cause}, or a value stands for pixels without a class: correct the masks, nclass or '
            'ignore_index')


# Rules: each returns the cause, or None where it does not fit.

def named_as_other_ids(seen):
    """Cityscapes names its files by what they hold."""
    for word in ('labelIds', 'instanceIds'):
        if seen.name.endswith(f'_{word}.png'):
            return f"these are Cityscapes' {word}, not trainIds: {TRAIN_IDS}"


def compressed(seen):
    if seen.file_format == 'JPEG':
        return 'JPEG compression changes indices: export the masks again, as PNG'


def counted_from_one(seen):
    """Exactly 1..nclass may occur: nclass does, 0 does not."""
    if seen.values[-1] == seen.nclass and seen.values[0] > 0 and len(seen.values) > 1:
        cause = (f'the classes are shifted by one, counted 1..{seen.nclass}: subtract 1 from every '
                 'value that is a class')
        # One mask without class 0 is no proof.
        return cause + (f' (or, if {seen.nclass} is void and class 0 merely not in this mask, set '
                        f'ignore_index: {seen.nclass})' if seen.name else '')


def one_value_more(seen):
    if seen.values[-1] == seen.nclass:
        return (f'value {seen.nclass} stands for void (set ignore_index: {seen.nclass}), or nclass '
                'leaves one class out, such as the background')


def label_ids(seen):
    wrong = [value for value in seen.values if value >= seen.nclass]
    if seen.nclass == 19 and len(wrong) > 1 and wrong[-1] <= MOST_LABEL_ID:
        return f"these are Cityscapes' labelIds (0..{MOST_LABEL_ID}), not trainIds: {TRAIN_IDS}"


def coco_ids(seen):
    if seen.nclass == 81 and seen.values[-1] <= MOST_COCO_ID:
        return (f"these are COCO's category ids (1..{MOST_COCO_ID}, with gaps), not its 80 things "
                'in a row: `python -m dssn.data prepare coco` makes such masks')


def gray_colours(seen):
    """Every value is the gray that Pillow (or OpenCV, within 1) makes of a known colour map."""
    nonzero = [value for value in seen.values if value]
    if seen.nclass > 32 or len(nonzero) < 2:
        return None  # with so many grays, or for one value, chance would do
    for owner, colours in colour_maps(seen.nclass).items():
        gray = {(red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16
                for red, green, blue in colours}
        if all(min(abs(value - g) for g in gray) <= 1 for value in nonzero):
            return (f'a mask in the colours of {owner} was converted to gray: convert each colour '
                    'to the index of its class instead; a palette PNG can be used as it is')


def stretched(seen):
    """Evenly spaced values, 255 perhaps the last: indices made visible by a factor."""
    for values in ([seen.values + [255]] if seen.has_255 else []) + [seen.values]:
        high = [value for value in values if value]
        steps = round(high[-1] / min(np.diff([0] + high)))
        factor = high[-1] / steps
        near = 1 if factor > 8 else 0  # a small factor's multiples are near to anything
        # All but 0 must be too high: a few stray values are no stretched mask.
        if high[0] >= seen.nclass > steps and all(
                abs(value - factor * round(value / factor)) <= near for value in high):
            written = ', '.join(str(value) for value in values)
            return (f'the values {written} are indices multiplied by about {factor:.0f}, to be '
                    'seen in a viewer: divide by it and round')


def picture(seen):
    if len(seen.values) > max(40, 2 * seen.nclass):
        return (f'{len(seen.values)} different values look like a photograph, or like a mask '
                'resized smoothly: see whether image and mask are exchanged on the line, and '
                'resize masks with Image.NEAREST')


def cause_of_depth(mask, name):
    """The remedy for a decoded mask of 1 bit, or of more than 8 bits, a pixel."""
    if mask.mode == '1':
        return ('it has 1 bit a pixel: save it with 8 bits, as indices 0 and 1: '
                "mask.convert('L').point(lambda value: value // 255)")
    values = np.asarray(mask)
    low, high = values.min(), values.max()
    if 0 <= low and high <= 255:
        return (f'it has more than 8 bits a pixel, but its values {low:g}..{high:g} fit into 8: '
                "save Image.fromarray(np.asarray(mask).astype('uint8'))")
    ids = named_as_other_ids(Values([], False, 0, os.path.basename(name), ''))
    return (f'it has more than 8 bits a pixel, and values {low:g}..{high:g}: '
            + (ids or 'these are ids of objects, or depths, rather than of classes'))


def cause_of_colours(mask, name):
    """The remedy for a decoded mask of several channels."""
    extra = 'it has an alpha channel; without it, ' if mask.mode[-1] in 'Aa' else ''
    if mask.mode in ('LA', 'La', 'PA'):
        return f"{extra}the first channel may hold the indices: save mask.getchannel(0)"
    mask = mask.convert('RGB')
    counted = mask.getcolors(256)
    if counted is None:
        return (f'{extra}it has so many colours that it looks like a photograph: see whether image '
                'and mask are exchanged on the line')
    colours = {colour for _, colour in counted}
    if all(red == green == blue for red, green, blue in colours):
        return f'{extra}its three channels are equal: save one, mask.getchannel(0)'
    owner = [owner for owner, known in colour_maps(256).items()
             if colours <= set(known) | {(0, 0, 0), (255, 255, 255)}]
    whose = f', those of {owner[0]}' if owner else ''
    return (f'{extra}it holds {len(colours)} colours{whose}: convert its colours to indices, each '
            'to that of its class')


def colour_maps(nclass):
    """{owner: colours} of the maps that masks are published in, and that nclass leaves possible."""
    maps = {'Pascal VOC': [voc_colour(i) for i in [*range(min(nclass, 255)), 255]]}
    for dataset, owner in (('cityscapes', 'Cityscapes'), ('camvid', 'CamVid')):
        if len(PALETTES[dataset]) <= nclass:
            maps[owner] = PALETTES[dataset]
    # The longest would claim every colour mask: the small ones first.
    return dict(sorted(maps.items(), key=lambda item: len(item[1])))
