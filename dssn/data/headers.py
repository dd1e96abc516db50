"""What an image file states beside its pixels: bits per channel, bands, and its EXIF orientation.

Pillow decodes many files to something else: of 16 bits it keeps the high 8, of five bands three.
So files are judged by what they state, not by the mode of the decoded image.
"""
import struct
from typing import NamedTuple, Optional, Tuple

from PIL import Image, TiffImagePlugin

ORIENTATION = 0x0112  # EXIF tag: how viewers turn a photograph; 1 means "not at all"
# EXIF orientation: how the stored pixels become the image that viewers show.
TURNS = {2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE',
         6: 'ROTATE_270', 7: 'TRANSVERSE', 8: 'ROTATE_90'}
EXIF_KEYS = ('exif', 'xmp', 'XML:com.adobe.xmp', 'Raw profile type exif')
# Tags of TIFF.
WIDTH, HEIGHT, BITS, PHOTOMETRIC, BANDS, EXTRA = 256, 257, 258, 262, 277, 338
GEO = 33550, 33922, 34264  # tags of GeoTIFF: size of a pixel, tie points, transformation
GRAY, RGB, PALETTE, SEPARATED = (0, 1), 2, 3, 5  # values of PHOTOMETRIC
PREMULTIPLIED = 1                        # value of EXTRA
SIZ = b'\xff\x4f\xff\x51'  # first markers of a JPEG 2000 code stream
RECIPE = 'docs/data.md has the lines, "More than 8 bits or 3 bands"'


class Header(NamedTuple):
    """The facts of an image."""
    size: Tuple[int, int]  # (width, height) as viewers show it
    turn: int              # EXIF orientation, 1..8
    bands: Optional[str]   # text on what is read of a TIFF's bands, if that may be a surprise


class TiffFacts(NamedTuple):
    """Whether other readers of TIFF can be used for an image."""
    plain: bool    # 8-bit gray or RGB that is shown as it is stored, so any reader gives the same
    located: bool  # with coordinates (GeoTIFF)


def read_header(image):
    """The `Header` of an image that `open_untrusted` has opened, before it is decoded."""
    if image.format == 'TIFF':
        # The first releases of Pillow 9 and 10 turn the size only when they decode.
        size = image.tag_v2[WIDTH], image.tag_v2[HEIGHT]
    else:
        size = image.size
        if image.format == 'PNG' and _chunks_follow_pixels(image):
            image.load()  # one of these chunks may be EXIF
    turn = orientation(image)
    return Header(turned_size(size, turn), turn, bands_text(image))


def decode_upright(image):
    """(the decoded image as viewers show it, its `Header`) of an opened image."""
    if image.format == 'PNG':
        image.load()  # EXIF may follow the pixels
    header = read_header(image)
    image.load()
    # Pillow turns a TIFF while it decodes it.
    return (image if image.format == 'TIFF' else turned(image, header.turn)), header


# Orientation.

def orientation(image):
    """The EXIF orientation, 1..8, of an opened image; 1 if it has none.

    Pillow forgets that of a TIFF when it decodes it, and then has turned the pixels.
    """
    try:
        # Not PngImageFile.getexif, which would decode the image.
        value = Image.Image.getexif(image).get(ORIENTATION, 1)
        return value if value in TURNS else 1
    except Exception:  # damaged EXIF makes Pillow raise almost any error; viewers ignore it, too
        return 1


def turned(image, turn):
    """The image that viewers show for stored pixels of the EXIF orientation `turn`."""
    if turn == 1:
        return image
    image = image.transpose(getattr(Image, TURNS[turn]))
    for key in EXIF_KEYS:  # or saving the image would save the orientation again
        image.info.pop(key, None)
    return image


def turned_size(size, turn):
    """(width, height) after `turned`."""
    return size[::-1] if turn >= 5 else tuple(size)


def _chunks_follow_pixels(image):
    """Whether an opened PNG that is not decoded has chunks between its pixels and its end."""
    if not image.tile:
        return False  # decoded
    file, place = image.fp, image.fp.tell()
    try:
        file.seek(8)
        pixels = False
        while True:
            head = file.read(8)
            if len(head) < 8 or head[4:] == b'IEND':
                return False
            if pixels and head[4:] != b'IDAT':
                return True
            pixels = head[4:] == b'IDAT'
            file.seek(struct.unpack('>I', head[:4])[0] + 4, 1)
    finally:
        file.seek(place)


# Bits and bands.

def bits_per_channel(image):
    """The bits per channel that an opened image file states, before it is decoded.

    AVIF counts as 8. Its 10 or 12 bits are those of a screen, and are decoded as screens show them.
    """
    deep = {'I': 32, 'F': 32, 'I;16': 16}.get(image.mode[:4], 8)
    if image.format == 'TIFF':
        return max(image.tag_v2.get(BITS, (1,)))
    if image.format == 'PPM':
        codec, _, _, options = image.tile[0]
        if codec.startswith('ppm') and isinstance(options, tuple):
            return (options[1] or 1).bit_length()  # (mode, largest value; none for black and white)
        return 16 if '16' in str(options) else deep
    if image.format == 'PNG':
        head = _head(image, 4096)
        return head[head.index(b'IHDR') + 12]
    if image.format == 'SGI':
        return 8 * _head(image, 4)[3]
    if image.format == 'JPEG2000':
        data = _head(image, -1)
        first = data.index(SIZ) + 42
        channels, = struct.unpack('>H', data[first - 2:first])
        return max((bits & 127) + 1 for bits in data[first:first + 3 * channels:3])
    return deep


def _head(image, count):
    """The first bytes of the file of an opened image; all with -1."""
    file, place = image.fp, image.fp.tell()
    try:
        file.seek(0)
        return file.read(count)
    finally:
        file.seek(place)


def bands_text(image):
    """What is read of the bands of an opened TIFF: text, or None if it has only those it shows.

    The text follows 'have'. Other formats have no bands but colours and transparency.
    """
    if image.format != 'TIFF':
        return None
    count, photometric = image.tag_v2.get(BANDS, 1), image.tag_v2.get(PHOTOMETRIC, 0)
    if photometric == SEPARATED:
        return (f'{count} bands that are tagged as CMYK, so they are read as inks, which changes '
                'every value. If they are red, green, blue and infrared, save the first three: '
                'Image.fromarray(np.asarray(Image.open(FILE))[..., :3]).save(NEW_FILE)')
    used, shown = 3, 'the first three are read as red, green and blue'
    if photometric in GRAY + (PALETTE,):
        used, shown = 1, 'the first is read as gray'
    if count <= used:
        return None
    text = f'{count} bands: {shown}, and the rest is left out'
    if PREMULTIPLIED in image.tag_v2.get(EXTRA, ())[:1]:
        text += (f'. Band {used + 1} is tagged as premultiplied transparency, so the colours are '
                 'divided by it. If it is something else, such as infrared, write the bands before '
                 f'it as an image of their own ({RECIPE})')
    return text


def tiff_facts(image):
    """The `TiffFacts` of an opened image; other formats have neither."""
    if image.format != 'TIFF':
        return TiffFacts(False, False)
    tags = image.tag_v2
    count, photometric = tags.get(BANDS, 1), tags.get(PHOTOMETRIC, 0)
    # Of the combinations of gray with more bands Pillow knows few.
    plain = set(tags.get(BITS, (1,))) == {8} and orientation(image) == 1 \
        and (photometric == RGB and count >= 3 or photometric == GRAY[1] and count == 1) \
        and PREMULTIPLIED not in tags.get(EXTRA, ())
    return TiffFacts(plain, any(tag in tags for tag in GEO))


def tiff_text(path):
    """'a TIFF of 5 bands of 16 bits', of a file that Pillow does not open; None: it is no TIFF."""
    try:
        with open(path, 'rb') as file:
            head = file.read(8)
            if head[:4] not in (b'II*\0', b'MM\0*'):
                return None
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            return f'a TIFF of {tags.get(BANDS, 1)} bands of {max(tags.get(BITS, (1,)))} bits'
    except Exception:  # a damaged file makes Pillow raise almost any error
        return None
