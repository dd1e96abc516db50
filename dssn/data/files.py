"""Opening images and masks, with one clear error for whatever is wrong with a file."""
import contextlib
import functools
import os
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from dssn.data.causes import cause_of_colours, cause_of_depth, cause_of_values
from dssn.errors import UserError

# Files from elsewhere: refuse to unpack more pixels than any photograph has, unless told to.
MOST_PIXELS, MOST_PIXELS_VARIABLE = 200_000_000, 'DSSN_MAX_PIXELS'
# Pillow's first warning; `opened` raises an error there.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
# Formats that Pillow recognises and cannot decode, or gives to another program: Ghostscript runs
# what an EPS file says.
NOT_DECODED = ('BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF')
ORIENTATION = 0x0112  # EXIF: how viewers turn a photograph; 1 is "not at all"


class FileProblem(UserError):
    """What is wrong with one listed file.

    Attributes:
        kind: a key of `dssn.data.findings.KINDS`. file: the file, as its list names it.
        values: {mask value: pixels} where the values are what is wrong.
    """

    def __init__(self, message, kind=None, file=None, values=None):
        super().__init__(message)
        self.kind, self.file, self.values = kind, file, values


def open_image(data_root, sample):
    """The sample's image as RGB; what is not 8-bit is refused, since Pillow would clip it."""
    image = _checked_depth(_open(data_root, sample.image, sample), sample, data_root)
    return image if image.mode == 'RGB' else image.convert('RGB')  # to itself would copy it


def image_size(data_root, sample):
    """The image's (width, height), from its head alone; refuses what `open_image` does there."""
    image = _open(data_root, sample.image, sample, decode=False)
    return _checked_depth(image, sample, data_root).size


def _checked_depth(image, sample, data_root):
    if image.mode[0] in 'IF':
        raise FileProblem(f'{sample.place}: image {os.path.join(data_root, sample.image)} has more '
                          f'than 8 bits a channel (mode {image.mode}); convert it to 8-bit gray or '
                          'RGB', 'image_depth', sample.image)
    return image


def orientation(path):
    """The EXIF orientation, 1..8, in an image's head; 1 where it tells none."""
    try:
        with opened(path) as image:
            return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF makes Pillow raise almost anything; viewers ignore it too
        return 1


def open_mask(data_root, sample, nclass, size, ignore_index=255):
    """The sample's mask as an 8-bit image of class indices, 255 = ignore.

    Args:
        nclass: classes of the config. size: the image's (width, height), which it must share.
        ignore_index: a value that is read as 255.

    Raises:
        FileProblem: unreadable, not single-channel 8-bit (palette indices count as such), another
            size than the image's, or a value that is neither a class nor 255.
    """
    mask = open_index(data_root, sample)
    check_size(data_root, sample, mask, size)
    index = indices(mask, ignore_index)
    check_values(data_root, sample, index, nclass, ignore_index, mask.format)
    return Image.fromarray(index)


def open_index(data_root, sample):
    """The sample's mask as it lies in its file: 8 bits a pixel, single channel or palette."""
    mask = _open(data_root, sample.mask, sample)
    if mask.mode in ('L', 'P'):
        return mask
    deep = mask.mode[0] in 'IF1'
    cause = cause_of_depth(mask, sample.mask) if deep else cause_of_colours(mask, sample.mask)
    path = os.path.join(data_root, sample.mask)
    raise FileProblem(f'{sample.place}: mask {path} is a {mask.mode} image; a mask is an 8-bit PNG '
                      f'of class indices, single channel or palette: {cause}',
                      'mask_depth' if deep else 'mask_colour', sample.mask)


def indices(mask, ignore_index=255):
    """The class indices (H, W) uint8 of a mask that `open_index` gave; ignored ones are 255."""
    index = np.asarray(mask)
    return index if ignore_index == 255 else \
        np.where(index == ignore_index, np.uint8(255), index)


def check_size(data_root, sample, mask, size):
    """Raise a FileProblem where the mask is not of the image's (width, height)."""
    if mask.size == tuple(size):
        return
    advice = 'they must be of one size'
    if mask.size == tuple(size)[::-1]:
        turn = orientation(os.path.join(data_root, sample.image))
        advice += '; width and height are exchanged: is one of them turned?' if turn < 5 else (
            f': the mask fits the image as viewers turn it (EXIF orientation {turn}), training '
            'reads the stored pixels; turn these: ImageOps.exif_transpose(image), then save it')
    elif abs(mask.width * size[1] - mask.height * size[0]) < max(size):
        advice += ': resize the mask with Image.NEAREST, other filters invent values'
    path = os.path.join(data_root, sample.mask)
    raise FileProblem(f'{sample.place}: mask {path} is {mask.width}x{mask.height} but its image '
                      f'{sample.image} is {size[0]}x{size[1]}; {advice}', 'size_mismatch',
                      sample.mask)


def check_values(data_root, sample, index, nclass, ignore_index=255, file_format='PNG'):
    """Raise a FileProblem where a mask (H, W) holds a value that is neither a class nor 255.

    Args:
        ignore_index: what else is ignored, already 255 here. file_format: Pillow's name of it.
    """
    if not ((index >= nclass) & (index != 255)).any():
        return
    pixels = {value: count for value, count in enumerate(np.bincount(index.ravel()).tolist())
              if count}
    wrong = [value for value in pixels if nclass <= value < 255]
    more = f' and {len(wrong) - 1} other values' if len(wrong) > 1 else ''
    ignored = '255' if ignore_index == 255 else f'{ignore_index} or 255'
    raise FileProblem(
        f'{sample.place}: mask {os.path.join(data_root, sample.mask)} holds value {wrong[0]} on '
        f'{pixels[wrong[0]]} pixels{more}; with nclass = {nclass} a value is 0..{nclass - 1}, or '
        f'{ignored} for ignore. Pixels by value: {histogram_text(pixels)}. Likely cause: '
        f'{cause_of_values(pixels, nclass, sample.mask, file_format)}',
        'wrong_values', sample.mask, pixels)


def histogram_text(pixels, most=12):
    """'0: 812, 1: 40, 17: 3', the `most` frequent of {value: pixels} in order of value."""
    shown = sorted(sorted(pixels, key=lambda value: -pixels[value])[:most])
    rest = f', and {len(pixels) - most} other values' if len(pixels) > most else ''
    return ', '.join(f'{value}: {pixels[value]}' for value in shown) + rest


@contextlib.contextmanager
def opened(path):
    """Open a stranger's image with Pillow: its head alone is read.

    Raises:
        Image.DecompressionBombError: too many pixels. UnidentifiedImageError: no image, or of a
            format in `NOT_DECODED`. Almost any other: the file is damaged.
    """
    limit = Image.MAX_IMAGE_PIXELS = most_pixels()
    with Image.open(path, formats=decoded_formats()) as image:
        if image.width * image.height > limit:
            raise Image.DecompressionBombError
        yield image


def most_pixels():
    """How many pixels an image may have: the environment may say another number."""
    text = os.environ.get(MOST_PIXELS_VARIABLE) or str(MOST_PIXELS)
    if not text.isdecimal() or not 0 < int(text[:19]) < 10 ** 18:
        raise UserError(f"{MOST_PIXELS_VARIABLE} = '{text}' in the environment: must be a whole "
                        f'number of pixels, such as {MOST_PIXELS} (the default): set it so, or '
                        'unset it')
    return int(text)


@functools.lru_cache(maxsize=1)
def decoded_formats():
    """Pillow's names of the formats that are read, the usual ones first."""
    Image.init()
    return sorted((name for name in Image.ID if name not in NOT_DECODED),
                  key=lambda name: name not in ('JPEG', 'PNG'))


def _open(data_root, name, sample, decode=True):
    # Where `..` follows a link, the system would go to the parent of what it leads to.
    path = os.path.join(data_root, os.path.normpath(name) if os.pardir in name else name)
    if not os.path.isfile(path):  # not a pipe either, which would never end
        raise missing_file(data_root, name, sample)
    try:
        with opened(path) as image:
            if decode:
                image.load()
            return image
    except UserError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise missing_file(data_root, name, sample) from None
    except UnidentifiedImageError:
        raise FileProblem(f'{sample.place}: {path} is not an image that Pillow knows: '
                          f'{_what_it_is(path)}', 'unreadable', name) from None
    except Image.DecompressionBombError:
        raise FileProblem(f'{sample.place}: {path} has more than {most_pixels()} pixels, the limit '
                          'against files that unpack until the memory is full; cut it into smaller '
                          'images, or, if it is to be trusted, set a higher limit in the '
                          f'environment: {MOST_PIXELS_VARIABLE}=1000000000', 'too_large',
                          name) from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        kind = 'truncated' if 'truncated' in str(error).lower() else 'unreadable'
        raise FileProblem(f'{sample.place}: {path} cannot be read: {type(error).__name__}: '
                          f'{error}; copy or download it again', kind, name) from None


def _what_it_is(path):
    with open(path, 'rb') as file:
        head = file.read(64)
    if not head:
        return 'the file is empty; copy or download it again'
    if head.startswith((b'%!PS', b'\xc5\xd0\xd3\xc6')):
        return 'it is a PostScript program, and programs are not run; convert it to PNG'
    if head.startswith(b'version https://git-lfs'):
        return 'it only points to a file in Git LFS; run `git lfs pull`'
    if head.lstrip().startswith(b'<'):
        return 'it begins like a web page; download it again'
    return 'convert it to JPEG or PNG'


def missing_file(data_root, name, sample):
    """The FileProblem of a listed file that does not exist, with what may be meant."""
    folder, base = os.path.split(os.path.join(data_root, name))
    similar = _names_by_stem(folder).get(os.path.splitext(base)[0].lower())
    if os.path.isdir(os.path.join(data_root, name)):
        advice = 'that is a folder: name a file in it'
    elif os.path.exists(os.path.join(data_root, name)):
        advice = 'that is a pipe or a device: name a file'
    # In a folder of both, an image's mask is no hint to the image.
    elif similar and os.path.join(folder, similar) not in [
            os.path.join(data_root, n) for n in (sample.image, sample.mask) if n]:
        advice = f'the folder has {similar}: correct the line or rename the file'
    elif os.path.isabs(name):
        advice = 'paths are relative to data_root: take away what stands before'
    elif '\\' in name:
        advice = 'write / between folders'
    else:
        advice = 'correct the line or data_root'
    return FileProblem(f'{sample.place}: no file {name} (data_root={data_root}, so '
                       f'{os.path.join(data_root, name)}); {advice}', 'missing', name)


# Thousands of missing files tend to be of few folders.
@functools.lru_cache(maxsize=8)
def _names_by_stem(folder):
    try:
        return {os.path.splitext(name)[0].lower(): name for name in sorted(os.listdir(folder))}
    except (OSError, ValueError):
        return {}
