"""What a mask file stores: whether its values are class indices as they were written.

A decoder may change values: lossy compression does, and gray values of fewer than 8 bits are scaled
to 0..255. Many of the new values are classes, too, so they cannot be found by their value. The file
is therefore judged by its header.
"""
from dssn.data.causes import rewrite
from dssn.errors import UserError

FORMATS = ('PNG', 'TIFF', 'BMP', 'GIF', 'PPM')  # as Pillow names them; PPM includes PGM
# WebP and JPEG 2000 have lossless forms. Pillow reads WebP in colour only. A JPEG 2000 file may be
# cut off at some quality even if its transform is reversible, and its header does not show that.
LOSSY_FORMATS = {'JPEG': 'changes', 'MPO': 'changes', 'WEBP': 'may change', 'AVIF': 'may change',
                 'JPEG2000': 'may change'}
# Compressions of TIFF without loss, as Pillow names them. The others are JPEG, WebP and codes for
# black and white pages.
LOSSLESS_TIFF = ('raw', 'tiff_lzw', 'tiff_adobe_deflate', 'tiff_deflate', 'packbits', 'lzma',
                 'zstd')
# {Pillow's name of a layout of pixels in the file: factor by which it scales the stored values}
FACTORS = {'L': 1, 'L;4': 17, 'L;2': 85}
INVERTED = {'L;I': 1, 'L;4I': 17, 'L;2I': 85, '1;I': 255}
TIFF_SUBFILE, TIFF_SAMPLES = 254, 277  # tags: kind of a page, number of channels
REDUCED = 1                            # bit of TIFF_SUBFILE: a smaller copy of another page
OS2_HEADER = 12                        # length of the old header of BMP files


class NotIndices(UserError):
    """Why the values of a mask file are not class indices.

    Attributes:
        kind: a key of `dssn.data.check.findings.KINDS`.
    """

    def __init__(self, kind, reason):
        super().__init__(reason)
        self.kind = kind


def read_indices(image):
    """Decode a mask whose header Pillow has read; returns it with the stored values.

    The mode is not judged: an image in colour, of 1 bit or of 16 bits is decoded as it is.

    Raises:
        NotIndices: the values are not class indices as they were written.
    """
    refuse_format(image)
    refuse_pages(image)
    factor = 1
    if image.mode in ('1', 'L', 'P'):
        refuse_channels(image)
        factor = factor_of(image)
    image.load()
    return image if factor == 1 else image.point(lambda value: value // factor)


def refuse_format(image):
    """Raise NotIndices if the format may change values, or is not known to keep them."""
    name = image.format
    if name == 'TIFF' and image.info.get('compression', 'raw') not in LOSSLESS_TIFF:
        name, verb = f"TIFF ({image.info['compression']} compression)", 'changes'
    else:
        verb = LOSSY_FORMATS.get(name)
    if verb:
        swapped = '' if image.mode == 'L' else \
            ', or check whether image and mask are swapped on the line'
        raise NotIndices('mask_format', f'is a {name} file, and this format {verb} class indices, '
                         'often to those of other classes: export the masks again from their '
                         'source, as 8-bit PNG (a converted file keeps the changed values)'
                         + swapped)
    if name not in FORMATS:
        raise NotIndices('mask_format', f'is a {name} file; masks are PNG, TIFF, BMP, GIF or PGM '
                         f'files. Convert it to one: {rewrite("values")}')


def refuse_pages(image):
    """Raise NotIndices if a file holds several pages or frames. Smaller copies do not count."""
    if image.format == 'TIFF':
        count, word = tiff_pages(image), 'pages'
    else:
        count, word = getattr(image, 'n_frames', 1), 'frames'
    if count > 1:
        raise NotIndices('mask_pages', f'holds {count} {word}; a mask is one: if there is one for '
                         'each class, save np.argmax(pages, axis=0) as 8-bit PNG, otherwise save '
                         'the one that holds the class indices')


def tiff_pages(image):
    """The number of pages of a TIFF, without those that its tags mark as reduced copies."""
    count, page = 1, 0
    try:
        while True:
            page += 1
            image.seek(page)
            count += not image.tag_v2.get(TIFF_SUBFILE, 0) & REDUCED
    except EOFError:
        return count
    finally:
        image.seek(0)


def refuse_channels(image):
    """Raise NotIndices if a TIFF has several channels, of which Pillow would read the first."""
    channels = image.tag_v2.get(TIFF_SAMPLES, 1) if image.format == 'TIFF' else 1
    if channels > 1:
        raise NotIndices('mask_pages', f'has {channels} channels; a mask has one. If the first '
                         f'holds the class indices: {rewrite("values")}')


def factor_of(image):
    """The factor by which Pillow scales the stored values of a gray or palette mask.

    Raises:
        NotIndices: it changes them in another way.
    """
    if image.format == 'GIF':
        return 1
    codec, _, _, args = image.tile[0]
    layout = args[0] if isinstance(args, tuple) else args
    if codec.startswith('ppm') and layout == 'L' and args[1] != 255:
        raise NotIndices('mask_scaled', f'is a PGM with the maximum {args[1]}, so its values are '
                         'scaled when it is read: write 255 as the maximum into its header, and '
                         'keep the values')
    if layout in INVERTED:
        raise NotIndices('mask_scaled', 'is stored with 0 as white, so its values are inverted '
                         'when it is read. Save the stored ones: '
                         + rewrite(f'(255 - values) // {INVERTED[layout]}',
                                   "np.array(Image.open(path).convert('L'))"))
    if image.format == 'BMP' and image.mode != 'P' and bmp_bits(image) != (
            1 if image.mode == '1' else 8):
        # Pillow takes the number of colours for the number of bits.
        raise NotIndices('mask_scaled', 'is a BMP with a few grays as its palette, whose values '
                         'are misread: save it as 8-bit PNG with the program that made it')
    if image.mode in ('1', 'P'):  # a palette's indices are never scaled
        return 1
    if layout not in FACTORS:
        raise NotIndices('mask_scaled', f'stores its values in a way ({layout}) that may change '
                         'when it is read: save it as 8-bit PNG with the program that made it')
    return FACTORS[layout]


def bmp_bits(image):
    """The number of bits per pixel of a BMP file."""
    place = image.fp.tell()
    image.fp.seek(14)
    header = image.fp.read(16)
    image.fp.seek(place)
    start = 10 if int.from_bytes(header[:4], 'little') == OS2_HEADER else 14
    return int.from_bytes(header[start:start + 2], 'little')


def used_colours(mask):
    """{index: (red, green, blue)} of the indices that pixels of a mask have; {} if it is gray.

    Args:
        mask: Pillow image from `open_raw_mask`. A palette whose colour i is the gray i is gray.
    """
    if mask.mode != 'P':
        return {}
    palette = mask.getpalette()
    colours = {index: tuple(palette[3 * index:3 * index + 3])
               for index, pixels in enumerate(mask.histogram())
               if pixels and 3 * index + 3 <= len(palette)}
    return {} if all(colour == (i, i, i) for i, colour in colours.items()) else colours
