"""Opening images and masks, with one clear error for whatever is wrong with a file."""
import os
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from dssn.errors import UserError

# Files from elsewhere: refuse to unpack more pixels than any photograph has.
Image.MAX_IMAGE_PIXELS = 200_000_000


def open_image(data_root, sample):
    """The sample's image as RGB; what is not 8-bit is refused, since Pillow would clip it."""
    path = os.path.join(data_root, sample.image)
    image = _open(path, sample)
    if image.mode[0] in 'IF':
        raise UserError(f'{sample.place}: image {path} has more than 8 bits a channel (mode '
                        f'{image.mode}); convert it to 8-bit gray or RGB')
    return image.convert('RGB')


def open_mask(data_root, sample, nclass, size):
    """The sample's mask as an 8-bit image of class indices, 255 = ignore.

    Args:
        nclass: classes of the config. size: the image's (width, height), which it must share.

    Raises:
        UserError: unreadable, not single-channel 8-bit (palette indices count as such), another
            size than the image's, or a value that is neither a class nor 255.
    """
    path = os.path.join(data_root, sample.mask)
    mask = _open(path, sample)
    if mask.mode not in ('L', 'P'):
        raise UserError(f'{sample.place}: mask {path} is a {mask.mode} image; a mask is an 8-bit '
                        'PNG of class indices, single channel or palette: convert its colours to '
                        'indices')
    if mask.size != tuple(size):
        raise UserError(f'{sample.place}: mask {path} is {mask.width}x{mask.height} but its image '
                        f'{sample.image} is {size[0]}x{size[1]}; they must be of one size')
    index = np.asarray(mask)
    wrong = (index >= nclass) & (index != 255)
    if wrong.any():
        values, counts = np.unique(index[wrong], return_counts=True)
        raise UserError(f'{sample.place}: mask {path} holds value {values[0]} on {counts[0]} pixels; '
                        f'with nclass = {nclass} a value is 0..{nclass - 1}, or 255 for ignore: '
                        'correct the masks or nclass')
    return Image.fromarray(index)


def _open(path, sample):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return image
    except FileNotFoundError:
        raise UserError(f'{sample.place}: no file {path}') from None
    except UnidentifiedImageError:
        raise UserError(f'{sample.place}: {path} is not an image that Pillow knows') from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f'{sample.place}: {path} has more than {Image.MAX_IMAGE_PIXELS} '
                        'pixels; cut it into smaller images') from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UserError(f'{sample.place}: {path} cannot be read: {type(error).__name__}: '
                        f'{error}') from None
