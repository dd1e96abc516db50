"""Masks whose stored numbers are not class indices, in files that other programs wrote.

Files that Pillow cannot write are made here byte by byte.
"""
import io
import os
import struct
import zlib

import error_cases
import numpy as np
import pytest
from PIL import Image

from dssn.data.classes import voc_colour
from dssn.data.datasets import EvalSet, RowIndices, TrainSet
from dssn.data.files import FileProblem, open_mask, open_raw_mask
from dssn.data.lists import Sample, read_list
from dssn.errors import UserError

SAMPLE = Sample('image.png', 'mask', 'list.txt line 7')
WIDTH, HEIGHT = 7, 5  # odd, so that rows of less than 8 bits end within a byte
VOC = [voc_colour(index) for index in range(256)]


def indices(count):
    """(HEIGHT, WIDTH) uint8 of 0..count-1, each of them if there is room."""
    return (np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) % count).astype(np.uint8)


def packed(index, bits):
    """The rows of an index (H, W) with some bits per pixel, each padded to whole bytes."""
    return [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits:]).tobytes()
            for row in index]


def png(index, bits, palette=None):
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack(
            '>I', zlib.crc32(kind + content) & 0xffffffff)
    head = struct.pack('>IIBBBBB', index.shape[1], index.shape[0], bits, 3 if palette else 0, 0, 0,
                       0)
    rows = b''.join(b'\0' + row for row in packed(index, bits))
    colours = chunk(b'PLTE', bytes(sum(palette, ()))) if palette else b''
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + colours
            + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


def tiff(*pages, bits=8, photometric=1, channels=1, subfile=(), next_page=None):
    """An uncompressed TIFF of gray pages (H, W) or (H, W, channels).

    `subfile`: tag 254 of each page. `next_page`: index of the page to which the last one points.
    """
    out, link, places = bytearray(b'II*\0\0\0\0\0'), 4, []
    for number, page in enumerate(pages):
        data = b''.join(packed(page.reshape(len(page), -1), bits))
        entries = [(256, page.shape[1]), (257, len(page)),
                   (258, bits if channels == 1 else bits << 16 | bits), (259, 1),
                   (262, photometric), (273, len(out)), (277, channels), (278, len(page)),
                   (279, len(data))]
        if channels > 1:
            entries.append((338, 0))
        if subfile:
            entries.insert(0, (254, subfile[number]))
        out += data + b'\0' * (len(data) % 2)
        places.append(len(out))
        struct.pack_into('<I', out, link, len(out))
        out += struct.pack('<H', len(entries))
        for tag, value in entries:
            short = tag in (258, 259, 262, 277, 338)
            out += struct.pack('<HHII', tag, 3 if short else 4,
                               channels if tag == 258 else 1, value)
        link = len(out)
        out += struct.pack('<I', 0)
    if next_page is not None:
        struct.pack_into('<I', out, link, places[next_page])
    return bytes(out)


def pgm(index, most=255, plain=False):
    head = f'{"P2" if plain else "P5"}\n# by hand\n{WIDTH} {HEIGHT}\n{most}\n'.encode()
    return head + (' '.join(map(str, index.ravel())).encode() if plain else index.tobytes())


def bmp(index, bits, palette):
    rows = [row + b'\0' * (-len(row) % 4) for row in packed(index[::-1], bits)]
    start = 54 + 4 * len(palette)
    return (b'BM' + struct.pack('<IHHI', start + len(b''.join(rows)), 0, 0, start)
            + struct.pack('<IiiHHIIiiII', 40, index.shape[1], len(index), 1, bits, 0, 0, 0, 0,
                          len(palette), 0)
            + b''.join(bytes((blue, green, red, 0)) for red, green, blue in palette)
            + b''.join(rows))


def coloured(index, palette=VOC):
    image = Image.fromarray(index)
    image.putpalette(bytes(sum(palette, ())))
    return image


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


GRAY, RAMP = Image.fromarray(indices(11)), [(i, i, i) for i in range(256)]
# {name: (number of values, bytes)} of masks that hold the indices 0, 1, 2, ... in this order.
ACCEPTED = {
    'PNG gray 2': (4, png(indices(4), 2)),
    'PNG gray 4': (16, png(indices(16), 4)),
    'PNG gray 8': (35, png(indices(35), 8)),
    'PNG palette 1': (2, png(indices(2), 1, VOC[:2])),
    'PNG palette 2': (4, png(indices(4), 2, VOC[:4])),
    'PNG palette 4': (16, png(indices(16), 4, VOC[:16])),
    'PNG palette 8': (21, png(indices(21), 8, VOC)),
    'TIFF gray 2': (4, tiff(indices(4), bits=2)),
    'TIFF gray 4': (16, tiff(indices(16), bits=4)),
    'TIFF gray 8': (21, tiff(indices(21))),
    'TIFF palette': (11, encoded(coloured(indices(11)), 'TIFF')),
    'TIFF with an overview': (21, tiff(indices(21), indices(2)[:2], subfile=(0, 1))),
    'TIFF that points at itself': (21, tiff(indices(21), next_page=0)),
    'PGM': (21, pgm(indices(21))),
    'plain PGM': (21, pgm(indices(21), plain=True)),
    'BMP gray 8': (21, bmp(indices(21), 8, RAMP)),
    'BMP palette 4': (11, bmp(indices(11), 4, VOC[:16])),
    'GIF': (11, encoded(GRAY, 'GIF')),
    'GIF palette': (11, encoded(coloured(indices(11)), 'GIF')),
    **{f'TIFF {name}': (11, encoded(GRAY, 'TIFF', compression=name))
       for name in ('tiff_lzw', 'tiff_adobe_deflate', 'packbits')},
}
PAGES = tiff(*[(indices(3) == i).astype(np.uint8) for i in range(3)])
# {name: (kind, words of the message, bytes)}
REFUSED = {
    'JPEG': ('mask_format', ['JPEG file', 'source, as 8-bit PNG'], encoded(GRAY, 'JPEG')),
    'JPEG in colour': ('mask_format', ['swapped'], encoded(GRAY.convert('RGB'), 'JPEG')),
    'TIFF jpeg': ('mask_format', ['TIFF (jpeg'], encoded(GRAY, 'TIFF', compression='jpeg')),
    'WebP': ('mask_format', ['WEBP file'], encoded(GRAY, 'WEBP')),
    # The wavelet is reversible, but the file is cut off at a quality.
    'JPEG 2000': ('mask_format', ['JPEG2000 file'],
                  encoded(GRAY, 'JPEG2000', irreversible=False, quality_layers=[20])),
    'TGA': ('mask_format', ['TGA file', 'Convert it to one: `values'], encoded(GRAY, 'TGA')),
    'TIFF of pages': ('mask_pages', ['holds 3 pages', 'np.argmax(pages, axis=0)'], PAGES),
    'TIFF of pages after an overview': (
        'mask_pages', ['holds 2 pages'],
        tiff(indices(3), indices(2)[:2], indices(3), subfile=(0, 1, 0))),
    'GIF of frames': ('mask_pages', ['holds 2 frames'], encoded(
        coloured(indices(11)), 'GIF', save_all=True, append_images=[coloured(indices(9))])),
    'PNG of frames': ('mask_pages', ['holds 2 frames'], encoded(
        GRAY, 'PNG', save_all=True, append_images=[Image.fromarray(indices(9))])),
    'TIFF MinIsWhite 8': ('mask_scaled', ['0 as white', '(255 - values) // 1)'],
                          tiff(indices(21), photometric=0)),
    'TIFF MinIsWhite 4': ('mask_scaled', ['(255 - values) // 17)'],
                          tiff(indices(16), bits=4, photometric=0)),
    'TIFF MinIsWhite 2': ('mask_scaled', ['(255 - values) // 85)'],
                          tiff(indices(4), bits=2, photometric=0)),
    'TIFF MinIsWhite 1': ('mask_scaled', ['(255 - values) // 255)'],
                          tiff(indices(2), bits=1, photometric=0)),
    'PBM': ('mask_scaled', ['(255 - values) // 255)'],
            f'P4 {WIDTH} {HEIGHT}\n'.encode() + b''.join(packed(indices(2), 1))),
    'PGM with a maximum': ('mask_scaled', ['maximum 20', 'write 255'], pgm(indices(21), 20)),
    # Pillow would clip the void of such a file, 255, to its maximum, the last class.
    'PGM with more': ('mask_scaled', ['maximum 2'], pgm(np.where(indices(3) == 1, 255,
                                                                 indices(3)).astype('uint8'), 2)),
    'plain PGM with a maximum': ('mask_scaled', ['maximum 20'], pgm(indices(21), 20, True)),
    'BMP of two grays': ('mask_scaled', ['few grays'],
                         bmp(indices(2), 8, [(0, 0, 0), (255, 255, 255)])),
}


def write(folder, content, name='mask'):
    with open(os.path.join(str(folder), name), 'wb') as file:
        file.write(content)


@pytest.mark.parametrize('name', sorted(ACCEPTED))
def test_stored_values_are_read(tmp_path, name):
    count, content = ACCEPTED[name]
    write(tmp_path, content)
    opened = open_mask(str(tmp_path), SAMPLE, count, (WIDTH, HEIGHT))
    np.testing.assert_array_equal(np.asarray(opened), indices(count))


@pytest.mark.parametrize('name', sorted(REFUSED))
def test_other_values_are_refused(tmp_path, name):
    kind, words, content = REFUSED[name]
    write(tmp_path, content)
    with pytest.raises(FileProblem) as caught:
        # Most of the values that Pillow reads are legal.
        open_mask(str(tmp_path), SAMPLE, 255, (WIDTH, HEIGHT))
    message = str(caught.value)
    assert caught.value.kind == kind and message.startswith('list.txt line 7: mask ')
    assert all(word in message for word in words), message
    assert os.path.join(str(tmp_path), 'mask') in message and '\n' not in message


def test_two_gray_channels_are_refused(tmp_path):
    # Newer releases of Pillow read the first channel, older ones nothing.
    write(tmp_path, tiff(np.stack([indices(3), indices(2)], -1), channels=2))
    with pytest.raises(FileProblem) as caught:
        open_raw_mask(str(tmp_path), SAMPLE)
    assert caught.value.kind in ('mask_pages', 'unreadable')


def test_the_remedies_for_a_maximum_and_for_pages(tmp_path):
    write(tmp_path, pgm(indices(21), 20).replace(b'\n20\n', b'\n255\n'))
    np.testing.assert_array_equal(np.asarray(open_raw_mask(str(tmp_path), SAMPLE)), indices(21))
    pages = []
    image = Image.open(io.BytesIO(PAGES))
    for page in range(3):
        image.seek(page)
        pages.append(np.array(image))
    np.testing.assert_array_equal(np.argmax(pages, axis=0), indices(3))


# ---- palettes

def open_all(folder, palettes, rule='check', ignore_index=255):
    """Open masks of 0..4 and 255 with these palettes, by one record."""
    from dssn.data.palettes import PaletteRecord
    record = PaletteRecord(rule)
    index = indices(5)
    index[0, 0] = 255
    for number, palette in enumerate(palettes):
        image = coloured(index, palette) if palette else Image.fromarray(index)
        write(folder, encoded(image, 'PNG'), f'{number}.png')
        sample = Sample('image.png', f'{number}.png', f'list.txt line {number + 1}')
        open_mask(str(folder), sample, 21, (WIDTH, HEIGHT), ignore_index, record)


def changed(index, colour=(1, 2, 3)):
    return VOC[:index] + [colour] + VOC[index + 1:]


def test_palettes_that_agree_where_they_are_used(tmp_path):
    open_all(tmp_path, [VOC, None, changed(5), changed(77), VOC, RAMP])


@pytest.mark.parametrize('index', [0, 4, 255])
def test_palettes_that_contradict_each_other(tmp_path, index):
    with pytest.raises(FileProblem) as caught:
        open_all(tmp_path, [None, VOC, changed(9), changed(index)])
    message = str(caught.value)
    assert caught.value.kind == 'mask_palettes' and message.startswith('list.txt line 4: mask ')
    for word in (os.path.join(str(tmp_path), '3.png'), f'colour (1, 2, 3) for index {index}, but',
                 os.path.join(str(tmp_path), '1.png'), str(VOC[index]), 'palette: ignore'):
        assert word in message
    open_all(tmp_path, [VOC, changed(index)], 'ignore')
    # A value that is ignored counts, too.
    with pytest.raises(FileProblem, match='palettes differ'):
        open_all(tmp_path, [VOC, changed(index)], ignore_index=index)


def test_lists_are_compared_one_by_one_and_files_with_themselves(tmp_path):
    from dssn.data.palettes import PaletteRecord
    record = PaletteRecord('check')
    for place, name, colour in (('a.txt line 1', '1.png', VOC[1]),
                                ('b.txt line 1', '2.png', (7,) * 3),
                                ('a.txt line 1', '1.png', (9,) * 3)):
        record.check('data', Sample('i.png', name, place), {1: colour})
    with pytest.raises(FileProblem, match='2.png has colour .* data/1.png has'):
        record.check('data', Sample('i.png', '2.png', 'a.txt line 2'), {1: VOC[1]})


def own_palettes(world, part):
    """Save the masks of a list as an editor does: each with the colours in order of frequency."""
    for number, sample in enumerate(read_list(getattr(world, part))):
        path = os.path.join(world.root, sample.mask)
        index = np.array(Image.open(path))
        order = np.roll(np.arange(3), number % 2).astype(np.uint8)
        image = coloured(order[index], [VOC[i] for i in np.argsort(order)])
        image.save(path)
        truth = np.array(VOC, np.uint8)[index]
        np.testing.assert_array_equal(np.array(image.convert('RGB')), truth)


def test_loaders_do_not_replace_a_contradiction(tiny_world):
    world = tiny_world()
    own_palettes(world, 'labeled')
    own_palettes(world, 'val')
    samples, val = read_list(world.labeled), read_list(world.val)
    for rule, fails in (('check', True), ('ignore', False)):
        cfg = world.load(palette=rule, max_bad_samples=10)
        train, score = TrainSet(cfg, samples), EvalSet(cfg, val)
        for items in ([train[RowIndices(i, 0)] for i in range(2)], [score[i] for i in range(2)]):
            assert not isinstance(items[0], UserError)
            assert isinstance(items[1], UserError) == fails
            if fails:
                assert 'line 2: mask' in str(items[1]) and 'palettes differ' in str(items[1])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A world of `error_cases` in the current folder."""
    monkeypatch.chdir(tmp_path)
    error_cases.make_world()
    error_cases.checkpoint()


def rotate_palettes(part):
    for number, sample in enumerate(read_list(f'{part}.txt')):
        path = os.path.join('data', sample.mask)
        coloured(np.array(Image.open(path)), VOC[number:] + VOC[:number]).save(path)


def test_every_program_reports_palettes(here):
    rotate_palettes('val')
    words = 'val.txt line 2: mask data/masks/val1.png has colour'
    for program in (error_cases.evaluate, error_cases.train,
                    lambda *rest: error_cases.train('--skip-check', *rest)):
        assert words in program()[2]
    from dssn.__main__ import main
    assert main(['check', '--config', 'config.yaml']) == 1
    rotate_palettes('labeled')
    words = 'labeled.txt line 2: mask data/masks/labeled1.png has colour'
    assert words in error_cases.data('shrink', 'labeled.txt', '--data-root', 'data', '--by', '2',
                                     '--out', 'small', '--workers', '1')[2]
    assert words in error_cases.data('split', 'labeled.txt', '--data-root', 'data', '--stratified',
                                     '--labeled', '1', '--out', 'splits/a')[2]
    assert main(['split', 'labeled.txt', '--data-root', 'data', '--stratified', '--labeled', '1',
                 '--out', 'splits/a', '--palette', 'ignore']) == 0
    assert main(['shrink', 'labeled.txt', '--data-root', 'data', '--by', '2', '--out', 'small2',
                 '--workers', '1', '--palette', 'ignore']) == 0
    assert main(['check', '--config', 'config.yaml', '--set', 'palette=ignore']) == 0


def test_every_program_reports_a_lossy_mask(here):
    image = Image.open('data/masks/val0.png')
    image.load()
    image.save('data/masks/val0.png', 'JPEG')
    words = 'val.txt line 1: mask data/masks/val0.png is a JPEG file'
    assert words in error_cases.evaluate()[2] and words in error_cases.train()[2]
    assert words in error_cases.data('shrink', 'val.txt', '--data-root', 'data', '--by', '2',
                                     '--out', 'small', '--workers', '1')[2]
    assert words in error_cases.data('split', 'val.txt', '--data-root', 'data', '--stratified',
                                     '--labeled', '1', '--out', 'splits/a')[2]


def test_originals_of_a_data_set_are_judged_too(tmp_path):
    from dssn.tools.data.prepare.originals import read_values
    names = 'gray.png', 'first.png', 'second.png', 'jpeg.png'
    gray, first, second, jpeg = [str(tmp_path / name) for name in names]
    write(tmp_path, png(indices(16), 4), gray)
    write(tmp_path, png(indices(4), 8, VOC), first)
    write(tmp_path, png(indices(4), 8, changed(2)), second)
    write(tmp_path, encoded(GRAY, 'JPEG'), jpeg)
    np.testing.assert_array_equal(read_values(gray), indices(16))
    np.testing.assert_array_equal(read_values(first), indices(4))
    with pytest.raises(UserError, match=r'second.png: has colour \(1, 2, 3\) for index 2, but '):
        read_values(second)
    with pytest.raises(UserError, match=r'jpeg.png: is a JPEG file'):
        read_values(jpeg)
