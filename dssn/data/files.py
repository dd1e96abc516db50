"""Image and mask files: open them, and report what is wrong with a file in one clear error."""
import contextlib
import functools
import os
import re
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from dssn.data import headers
from dssn.data.causes import cause_of_values
from dssn.data.other_masks import cause_of_array_file, cause_of_colours, cause_of_depth
from dssn.data.stored import NotIndices, read_indices, used_colours
from dssn.errors import UserError
from dssn.labels import IGNORE

# A small file may unpack to an image that fills the memory. Photographs are below this limit.
MAX_PIXELS, MAX_PIXELS_VARIABLE = 200_000_000, 'DSSN_MAX_PIXELS'
# Pillow warns of large images. `open_untrusted` raises an error instead.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
# Formats that Pillow recognises, but cannot decode or passes on to another program. For example,
# Ghostscript would run the program in an EPS file.
REFUSED_FORMATS = ('BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF')
TIFF_ENDINGS = ('.tif', '.tiff')


class FileProblem(UserError):
    """What is wrong with one listed file.

    Attributes:
        kind: a key of `dssn.data.check.findings.KINDS`. file: the file, as its list names it.
        values: {mask value: pixels} if the values are wrong, else None.
    """

    def __init__(self, message, kind=None, file=None, values=None):
        super().__init__(message)
        self.kind, self.file, self.values = kind, file, values


def open_image(data_root, sample):
    """The sample's image as RGB, as viewers show it.

    Raises:
        FileProblem: missing, unreadable, too large, or of more than 8 bits per channel, most of
            which Pillow would drop or clip.
    """
    return open_image_and_header(data_root, sample)[0]


def open_image_and_header(data_root, sample):
    """(what `open_image` returns, the image's `Header`). Raises like `open_image`."""
    def read(image):
        check_depth(data_root, sample, image)
        image, header = headers.decode_upright(image)
        return as_rgb(data_root, sample, image), header
    return _open(data_root, sample.image, sample, read)


def as_rgb(data_root, sample, image):
    """A decoded image as RGB. Raises a FileProblem if Pillow cannot convert it."""
    if image.mode == 'RGB':
        return image  # convert would copy it
    try:
        return image.convert('RGB')
    except ValueError:
        raise FileProblem(f'{sample.place}: {os.path.join(data_root, sample.image)} has the mode '
                          f'{image.mode}, which Pillow does not convert to RGB; write it as an '
                          f'8-bit RGB image ({headers.RECIPE})', 'unreadable',
                          sample.image) from None


def image_header(data_root, sample):
    """The `Header` of the sample's image, which is not decoded. Raises like `open_image`."""
    def read(image):
        check_depth(data_root, sample, image)
        return headers.read_header(image)
    return _open(data_root, sample.image, sample, read)


def tiff_facts(data_root, sample):
    """The `TiffFacts` of the sample's image, which is not decoded. Raises like `open_image`."""
    return _open(data_root, sample.image, sample, headers.tiff_facts)


def check_depth(data_root, sample, image):
    """Raise a FileProblem if an opened image has more than 8 bits per channel."""
    bits = headers.bits_per_channel(image)
    if bits > 8:
        raise FileProblem(
            f'{sample.place}: image {os.path.join(data_root, sample.image)} has more than 8 bits '
            f'per channel ({bits}), and there is no standard way to convert it: find the lowest '
            'and the highest value in all images, and map this range to 0..255 in every image '
            f'({headers.RECIPE})', 'image_depth', sample.image)


def open_mask(data_root, sample, nclass, size, ignore_index=IGNORE, palettes=None, turn=1):
    """The sample's mask as an 8-bit Pillow image of class indices, 255 = ignore.

    Args:
        nclass: number of classes. size: (width, height) of the image, which the mask must have.
        ignore_index: mask value that is read as 255.
        palettes: `PaletteRecord` of the masks that were opened before; None compares none.
        turn: the EXIF orientation of the image; `size` and `turn` are in its `Header`.

    Raises:
        FileProblem: missing, unreadable, not a file of class indices (see `open_raw_mask`), of
            another palette than other masks, not of the image's size, or a value is neither a
            class nor 255.
    """
    mask = open_raw_mask(data_root, sample)
    if palettes:
        palettes.check(data_root, sample, used_colours(mask))
    index = class_indices(fit_mask(data_root, sample, mask, size, turn), ignore_index)
    check_values(data_root, sample, index, nclass, ignore_index)
    return Image.fromarray(index)


def open_raw_mask(data_root, sample):
    """The sample's mask with the values that the file stores: a Pillow image, mode L or P.

    Raises:
        FileProblem: missing, unreadable, in colour, of 1 or of more than 8 bits, of several pages,
            or in a format in which values change.
    """
    path = os.path.join(data_root, sample.mask)
    try:
        mask = _open(data_root, sample.mask, sample, read=read_indices)
    except NotIndices as error:
        raise FileProblem(f'{sample.place}: mask {path} {error}', error.kind,
                          sample.mask) from None
    if mask.mode in ('L', 'P'):
        return mask
    wrong_depth = mask.mode[0] in 'IF1'
    cause = cause_of_depth(mask, sample.mask) if wrong_depth else cause_of_colours(mask)
    raise FileProblem(f'{sample.place}: mask {path} is a {mask.mode} image; a mask is an 8-bit PNG '
                      f'of class indices, single channel or palette: {cause}',
                      'mask_depth' if wrong_depth else 'mask_colour', sample.mask)


def class_indices(mask, ignore_index=IGNORE):
    """The class indices, (H, W) uint8, of a mask from `open_raw_mask`; ignored pixels are 255."""
    index = np.asarray(mask)
    return index if ignore_index == IGNORE else \
        np.where(index == ignore_index, np.uint8(IGNORE), index)


def fit_mask(data_root, sample, mask, size, turn=1):
    """A mask from `open_raw_mask`, turned so that it fits its image as viewers show that.

    A mask that was made for the stored pixels is turned with the image. Its size shows which of the
    two it was made for.

    Args:
        size: (width, height) of the image as viewers show it. turn: EXIF orientation of the image.

    Raises:
        FileProblem: the mask has another size, or its size shows nothing (the orientation keeps the
            size).
    """
    own = 1 if mask.format == 'TIFF' else headers.orientation(mask)  # Pillow has turned a TIFF
    fits = {t for t in (1, turn, own) if headers.turned_size(mask.size, t) == tuple(size)}
    if own == turn and own in fits:  # image and mask were stored in the same way
        return headers.turned(mask, own)
    if len(fits) == 1:
        return headers.turned(mask, fits.pop())
    if fits:
        raise orientation_problem(data_root, sample, turn, own)
    advice = 'they must be of one size'
    if mask.size == tuple(size)[::-1]:
        advice += '; width and height are swapped: is one of them turned?'
    elif abs(mask.width * size[1] - mask.height * size[0]) < max(size):
        advice += ('. Was the mask cropped? Then crop its image in the same way. Was it resized? '
                   'Then resize it back without new values: '
                   '`dssn.data.stored.read_indices(Image.open(path))'
                   f'.resize({tuple(size)}, Image.NEAREST).save(png)`')
    else:
        advice += ': was one of them cropped, or is the line wrong?'
    path = os.path.join(data_root, sample.mask)
    shown = f', as viewers show it (EXIF orientation {turn})' if turn != 1 else ''
    raise FileProblem(f'{sample.place}: mask {path} is {mask.width}x{mask.height} but its image '
                      f'{sample.image} is {size[0]}x{size[1]}{shown}; {advice}', 'size_mismatch',
                      sample.mask)


def orientation_problem(data_root, sample, turn, own):
    """The FileProblem that a mask may fit the stored image or the one that viewers show.

    Args:
        turn, own: EXIF orientations of the image and of the mask.
    """
    kind, name, value = ('image', sample.image, turn) if own == 1 else ('mask', sample.mask, own)
    turned = 'ImageOps.exif_transpose(Image.open(FILE)).save(FILE, quality=95)'
    stored = "Image.open(FILE).save(FILE, exif=b'', quality=95)"
    if name.lower().endswith(TIFF_ENDINGS):  # Pillow turns a TIFF when it decodes it
        undo = headers.TURNS[{6: 8, 8: 6}.get(value, value)]
        turned = "Image.open(FILE).save(FILE, exif=b'')"
        stored = f'Image.open(FILE).transpose(Image.{undo}).save(FILE)'
    return FileProblem(
        f'{sample.place}: {kind} {os.path.join(data_root, name)} has EXIF orientation {value}, '
        'which viewers follow, but the sizes do not show whether image and mask match with it or '
        'without it: look at both. If they match as viewers show them, save the turned pixels: '
        f'{turned}. If they match as stored, save the {kind} without its orientation: {stored}',
        'orientation', name)


def check_values(data_root, sample, index, nclass, ignore_index=IGNORE):
    """Raise a FileProblem if a mask (H, W) uint8 holds a value that is neither a class nor 255.

    Args:
        index: the mask, in which pixels of `ignore_index` are 255 already.
    """
    if not ((index >= nclass) & (index != IGNORE)).any():
        return
    pixels = {value: count for value, count in enumerate(np.bincount(index.ravel()).tolist())
              if count}
    wrong = [value for value in pixels if nclass <= value < IGNORE]
    more = f' and {len(wrong) - 1} other values' if len(wrong) > 1 else ''
    ignored = '255' if ignore_index == IGNORE else f'{ignore_index} or 255'
    raise FileProblem(
        f'{sample.place}: mask {os.path.join(data_root, sample.mask)} holds value {wrong[0]} on '
        f'{pixels[wrong[0]]} pixels{more}; with nclass = {nclass} a value is 0..{nclass - 1}, or '
        f'{ignored} for ignore. Pixels by value: {histogram_text(pixels)}. Likely cause: '
        f'{cause_of_values(pixels, nclass, sample.mask, ignore_index)}',
        'wrong_values', sample.mask, pixels)


def histogram_text(pixels, limit=12):
    """'0: 812, 1: 40, 17: 3': the `limit` most frequent of {value: pixels}, in order of value."""
    shown = sorted(sorted(pixels, key=lambda value: -pixels[value])[:limit])
    rest = f', and {len(pixels) - limit} other values' if len(pixels) > limit else ''
    return ', '.join(f'{value}: {pixels[value]}' for value in shown) + rest


@contextlib.contextmanager
def open_untrusted(path):
    """Open an untrusted image with Pillow. Only its header is read.

    Raises:
        Image.DecompressionBombError: too many pixels. UnidentifiedImageError: not an image, or of
            one of `REFUSED_FORMATS`. Almost any other error: the file is damaged.
    """
    limit = Image.MAX_IMAGE_PIXELS = max_pixels()
    with Image.open(path, formats=decoded_formats()) as image:
        if image.width * image.height > limit:
            raise Image.DecompressionBombError(f'{image.width * image.height} pixels')
        yield image


def max_pixels():
    """The largest number of pixels of an image. An environment variable may set it."""
    text = os.environ.get(MAX_PIXELS_VARIABLE) or str(MAX_PIXELS)
    if not text.isdecimal() or not 0 < int(text[:19]) < 10 ** 18:
        raise UserError(f"{MAX_PIXELS_VARIABLE} = '{text}' in the environment: must be a whole "
                        f'number of pixels, such as {MAX_PIXELS} (the default): set it so, or '
                        'unset it')
    return int(text)


@functools.lru_cache(maxsize=1)
def decoded_formats():
    """Pillow's names of the formats that are read, the usual ones first."""
    Image.init()
    return sorted((name for name in Image.ID if name not in REFUSED_FORMATS),
                  key=lambda name: name not in ('JPEG', 'PNG'))


def _open(data_root, name, sample, read):
    # If `..` follows a link, the system would go to the parent folder of the link's target.
    path = os.path.join(data_root, os.path.normpath(name) if os.pardir in name else name)
    if not os.path.isfile(path):  # refuses a pipe, too: reading it might never end
        raise missing_file_problem(data_root, name, sample)
    try:
        with open_untrusted(path) as image:
            return read(image)
    except UserError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise missing_file_problem(data_root, name, sample) from None
    except UnidentifiedImageError:
        raise FileProblem(f'{sample.place}: {path} is not an image that Pillow knows: '
                          f'{_format_advice(path, name == sample.mask)}', 'unreadable',
                          name) from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r'\d+', str(error)).group()  # the first number of Pillow's message
        raise FileProblem(f'{sample.place}: {path} has more than {max_pixels()} pixels. The limit '
                          'protects the memory from files that unpack to huge images; cut the '
                          'image into smaller ones, or, if you trust it, set a higher limit in the '
                          f'environment: `{MAX_PIXELS_VARIABLE}={pixels}`', 'too_large',
                          name) from None
    except Exception as error:  # a damaged file makes Pillow raise almost any error
        kind = 'truncated' if 'truncated' in str(error).lower() else 'unreadable'
        raise FileProblem(f'{sample.place}: {path} cannot be read: {type(error).__name__}: '
                          f'{error}; copy or download it again', kind, name) from None


def _format_advice(path, is_mask):
    """What a file probably is that is not an image, and what to do."""
    with open(path, 'rb') as file:
        head = file.read(64)
    if not head:
        return 'the file is empty; copy or download it again'
    if head.startswith((b'%!PS', b'\xc5\xd0\xd3\xc6')):
        return 'it is a PostScript program, and programs are not run; export it as PNG'
    if head.startswith(b'version https://git-lfs'):
        return 'it is a pointer to a file in Git LFS; run `git lfs pull`'
    if head.lstrip().startswith(b'<'):
        return 'it begins like a web page; download it again'
    if is_mask:
        return cause_of_array_file(path) or 'export it as PNG, which keeps class indices'
    if head.startswith(b'\x93NUMPY'):
        return ('it is a NumPy array; if it is uint8 (height, width, 3), name a PNG on the line: '
                '`Image.fromarray(np.load(path)).save(png)`')
    tiff = headers.tiff_text(path)
    if tiff:
        return (f'it is {tiff}, which Pillow does not decode; write the bands to use as an 8-bit '
                f'RGB image ({headers.RECIPE})')
    return 'convert it to PNG'


def missing_file_problem(data_root, name, sample):
    """The FileProblem of a listed file that does not exist, with advice."""
    folder, base = os.path.split(os.path.join(data_root, name))
    similar = _names_by_stem(folder).get(os.path.splitext(base)[0].lower())
    if os.path.isdir(os.path.join(data_root, name)):
        advice = 'that is a folder: name a file in it'
    elif os.path.exists(os.path.join(data_root, name)):
        advice = 'that is a pipe or a device: name a file'
    # If one folder holds images and masks, the sample's own mask is not a hint for its image.
    elif similar and os.path.join(folder, similar) not in [
            os.path.join(data_root, n) for n in (sample.image, sample.mask) if n]:
        advice = f'the folder has {similar}: correct the line or rename the file'
    elif os.path.isabs(name):
        advice = 'paths are relative to data_root: remove the part before it'
    elif '\\' in name:
        advice = 'write / between folders'
    else:
        advice = 'correct the line or data_root'
    return FileProblem(f'{sample.place}: no file {name} (data_root={data_root}, so '
                       f'{os.path.join(data_root, name)}); {advice}', 'missing', name)


# Cached, because thousands of missing files usually lie in a few folders.
@functools.lru_cache(maxsize=8)
def _names_by_stem(folder):
    try:
        return {os.path.splitext(name)[0].lower(): name for name in sorted(os.listdir(folder))
                if os.path.splitext(name)[1].lower() in Image.registered_extensions()}
    except (OSError, ValueError):
        return {}
