"""Causes and remedies for masks that are not 8-bit indices: other depths, arrays, colours."""
import os

import numpy as np

from dssn.data.causes import (
    PIXELS,
    SHOWN,
    MaskValues,
    cityscapes_name,
    colour_maps,
    factors_of,
    give_each,
    rewrite,
)
from dssn.labels import IGNORE

DATASETS = {'Pascal VOC': 'pascal', 'Cityscapes': 'cityscapes', 'CamVid': 'camvid'}


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
    if values.dtype.kind == 'f':
        values = values.astype(float)  # 16 bits would overflow
    known = (values >= 0) & (values <= IGNORE) & (values == np.floor(values))
    others = [number_text(value) for value in values[~known]]
    span = f'its values are {number_text(values[0])}..{number_text(values[-1])}'
    if not others:
        return f'{span}, which fit into 8: {written("values")}'
    ids = cityscapes_name(MaskValues([], False, 0, os.path.basename(name), IGNORE))
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
                return f'only its alpha channel holds values. Write this channel: {remedy}'
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
    return f'{text}it holds {len(colours)} colours{colours_remedy(colours, varying)}'


def colours_remedy(colours, varying):
    """Text on the classes of (R, G, B) `colours`, after 'it holds N colours'.

    Args:
        varying: those of the three channels that are not uniform.
    """
    maps = {name: f"dssn.data.classes.default_colours('{DATASETS[name]}', {min(len(known), 255)})"
            for name, known in colour_maps(256).items()
            if set(colours) <= set(known) | {(0, 0, 0), (255, 255, 255)}}
    if len(varying) == 1 and not maps:
        return (f', and only channel {varying[0]} varies. Write this channel: '
                + rewrite(f'values[..., {varying[0]}]'))
    if not maps:
        return f'. Which class is each? {in_order(colours)}'
    first, *more = maps.values()
    others = ''.join(f', or with `colours = {other}`' for other in more)
    if len(colours) < 4:  # few colours are in a map by chance
        others += f', or, if the colours are your own, with `colours = {colours}`'
    return (f', those of {" or ".join(maps)}. Convert each to the index of its class: '
            f'{convert_colours(first)}{others}')


def in_order(colours):
    """The remedy for a mask in colours (R, G, B) of the user's own."""
    shown = ', '.join(map(str, colours[:SHOWN])) + (', ...' if len(colours) > SHOWN else '')
    return ('List the colours in the order of the classes (others become 255), as here: '
            + convert_colours(f'[{shown}]'))


def convert_colours(colours):
    """The line that converts a mask in colours, given by an expression. Others become 255."""
    return rewrite(
        f'np.select([(values == c).all(2) for c in colours], range(len(colours)), {IGNORE})',
        f"np.array(Image.open(path).convert('RGB')); colours = {colours}")
