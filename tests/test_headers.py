"""What image files state: more than 8 bits, more than 3 bands, and EXIF orientations."""
import importlib
import io
import os
import re
import struct
import types
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import eval as eval_script
from dssn import config
from dssn.__main__ import main
from dssn.data.check.inspection import inspect_quickly, inspect_sample
from dssn.data.check.quick import quick_check
from dssn.data.datasets import EvalSet, RowIndices, TrainSet, open_pair, weak_ground_truth
from dssn.data.files import FileProblem, image_header, open_image
from dssn.data.lists import Sample, read_list
from dssn.inference.predict import read_image
from dssn.models import build_model
from dssn.models.weights import network_weights

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NCLASS = 5
RNG = np.random.default_rng(0)
# Eight bands of 8 bits, and of the 11 bits of a satellite: (H, W, bands).
BANDS8 = RNG.integers(0, 256, (4, 6, 8)).astype(np.uint8)
BANDS11 = RNG.integers(0, 2048, (4, 6, 8)).astype(np.uint16)
GRAY, RGB, CMYK = 1, 2, 5  # values of TIFF's tag for colours


# Files that Pillow cannot write.

def chunk(kind, content):
    return (struct.pack('>I', len(content)) + kind + content
            + struct.pack('>I', zlib.crc32(kind + content) & 0xffffffff))


def png16(pixels):
    """A PNG of (H, W, channels) uint16."""
    height, width, channels = pixels.shape
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return (b'\x89PNG\r\n\x1a\n'
            + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, colour, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


def tiff(pixels, colour=RGB, extra=(), turn=1, deflate=False):
    """A TIFF of (H, W, bands) uint8 or uint16. `extra`: what bands beyond the colours are."""
    height, width, bands = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder('<')).tobytes()
    data = zlib.compress(data) if deflate else data
    tags = {256: [width], 257: [height], 258: [8 * pixels.dtype.itemsize] * bands,
            259: [8 if deflate else 1], 262: [colour], 273: [8], 274: [turn], 277: [bands],
            278: [height], 279: [len(data)], 284: [1], 338: list(extra)}
    tags = {tag: values for tag, values in tags.items() if values}
    place = 8 + len(data) + len(data) % 2           # of the tags, behind the pixels
    far, entries = place + 6 + 12 * len(tags), b''  # values of more than four bytes
    more = b''
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f'<{len(values)}H', *values)
        entries += struct.pack('<HHI', tag, 3, len(values))
        if len(packed) > 4:
            entries += struct.pack('<I', far + len(more))
            more += packed + b'\0' * (len(packed) % 4)
        else:
            entries += packed.ljust(4, b'\0')
    return (b'II*\0' + struct.pack('<I', place) + data.ljust(place - 8, b'\0')
            + struct.pack('<H', len(tags)) + entries + struct.pack('<I', 0) + more)


def pnm(kind, largest, pixels):
    return b'%s\n6 4\n%d\n' % (kind, largest) + pixels.astype(
        '>u2' if largest > 255 else 'u1').tobytes()


def saved(image, file_format, **options):
    content = io.BytesIO()
    image.save(content, format=file_format, **options)
    return content.getvalue()


def jpeg2000(bits, **options):
    """A JPEG 2000 image, RGB, that states other bits a channel than it has."""
    data = bytearray(saved(Image.new('RGB', (40, 40)), 'JPEG2000', **options))
    first = bytes(data).index(b'\xff\x4f\xff\x51') + 42
    data[first] = data[first + 3] = data[first + 6] = bits - 1
    return bytes(data)


def put(folder, name, data):
    with open(os.path.join(str(folder), name), 'wb') as file:
        file.write(data)
    return Sample(name, None, 'list.txt line 7')


# More than 8 bits. {what: (file, bits, its first three bands, or the gray band three times)}
GRAY11, RGB11 = np.repeat(BANDS11[..., :1], 3, 2), BANDS11[..., :3]
DEEP = {
    'png gray': (png16(BANDS11[..., :1]), 16, GRAY11),
    'png gray, alpha': (png16(BANDS11[..., :2]), 16, GRAY11),
    'png rgb': (png16(BANDS11[..., :3]), 16, RGB11),
    'png rgb, alpha': (png16(BANDS11[..., :4]), 16, RGB11),
    'tiff gray': (tiff(BANDS11[..., :1], GRAY), 16, GRAY11),
    'tiff rgb': (tiff(RGB11), 16, RGB11),
    'tiff rgb, deflate': (tiff(RGB11, deflate=True), 16, RGB11),
    'tiff rgb, infrared': (tiff(BANDS11[..., :4], extra=[0]), 16, RGB11),
    'tiff tagged cmyk': (tiff(BANDS11[..., :4], CMYK), 16, RGB11),
    'ppm': (pnm(b'P6', 2047, RGB11), 11, RGB11),
    'ppm 65535': (pnm(b'P6', 65535, RGB11), 16, RGB11),
    'ppm in words': (b'P3 6 4 2047 ' + b' '.join(b'%d' % v for v in RGB11.ravel()), 11, RGB11),
    'pgm': (pnm(b'P5', 2047, BANDS11[..., 0]), 11, GRAY11),
    'pgm 65535': (pnm(b'P5', 65535, BANDS11[..., 0]), 16, GRAY11),
}
# Files of which only the header is looked at.
DEEP_HEADERS = {
    'sgi': (struct.pack('>hBBHHHHII492x', 474, 0, 2, 3, 6, 4, 3, 0, 65535)
            + RGB11.transpose(2, 0, 1).astype('>u2').tobytes(), 16),
    'jpeg 2000': (jpeg2000(11), 11),
    'jpeg 2000 code stream': (jpeg2000(12, no_jp2=True), 12),
    'jpeg 2000 gray': (saved(Image.new('I;16', (8, 8)), 'JPEG2000'), 16),
    'tiff of floats': (saved(Image.new('F', (4, 4)), 'TIFF'), 32),
}


@pytest.mark.parametrize('kind', [*DEEP, *DEEP_HEADERS])
def test_more_than_8_bits_are_refused_by_what_the_file_states(tmp_path, kind):
    data, bits = {**DEEP, **DEEP_HEADERS}[kind][:2]
    sample = put(tmp_path, 'image', data)
    messages = set()
    for read in (open_image, image_header, read_image):
        with pytest.raises(FileProblem) as caught:
            read(str(tmp_path), sample)
        assert caught.value.kind == 'image_depth'
        messages.add(str(caught.value))
    message, = messages
    for word in ('list.txt line 7', str(tmp_path / 'image'), f'8 bits per channel ({bits})',
                 'lowest', 'highest', '0..255', 'docs/data.md', 'More than 8 bits or 3 bands'):
        assert word in message
    with open(os.path.join(ROOT, 'docs', 'data.md'), encoding='utf-8') as file:
        assert '\n### More than 8 bits or 3 bands\n' in file.read()


class FakeRaster:
    """The part of rasterio that the documentation uses, for files whose bands are known."""

    def __init__(self, pixels):
        self.pixels = pixels

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read(self, bands):
        return np.stack([self.pixels[..., band - 1] for band in bands])


def run_lines_of_the_documentation(folder, data, pixels, monkeypatch, high, gray):
    """Run the lines on a file; with rasterio if it is installed. Returns the new image's bytes."""
    try:
        if data.startswith((b'P1', b'P2', b'P3')):  # in words: rasterio reads binary PPM alone
            raise ImportError
        rasterio = importlib.import_module('rasterio')
    except ImportError:
        rasterio = types.ModuleType('rasterio')
        rasterio.open = lambda name: FakeRaster(pixels)
    monkeypatch.setitem(__import__('sys').modules, 'rasterio', rasterio)
    monkeypatch.chdir(folder)
    put(folder, 'in.tif', data)
    with open(os.path.join(ROOT, 'docs', 'data.md'), encoding='utf-8') as file:
        code = re.search(r'```python\n(import numpy.*?)```', file.read(), re.S).group(1)
    assert 'LOW, HIGH = 0, 2047 ' in code and 'of a gray image [1, 1, 1]' in code
    code = code.replace('HIGH = 0, 2047 ', f'HIGH = 0, {high} ')
    exec(code.replace('read([1, 2, 3])', 'read([1, 1, 1])') if gray else code, {})


@pytest.mark.filterwarnings('ignore:Dataset has no geotransform')
@pytest.mark.parametrize('kind', list(DEEP))
def test_the_lines_of_the_documentation_convert_such_an_image(tmp_path, monkeypatch, kind):
    data, _, pixels = DEEP[kind]
    run_lines_of_the_documentation(tmp_path, data, pixels, monkeypatch, 2047, pixels is GRAY11)
    got = np.asarray(open_image(str(tmp_path), Sample('out.png', None, 'x'))).astype(float)
    assert got.shape == (4, 6, 3) and got.max() > 200
    assert np.abs(got - pixels * (255 / 2047)).max() <= 0.5


@pytest.mark.parametrize('kind, data, expected', [
    ('ppm 15', pnm(b'P6', 15, BANDS8[..., :3] % 16), (BANDS8[..., :3] % 16) * 17),
    ('pgm 3', pnm(b'P5', 3, BANDS8[..., 0] % 4), np.repeat(BANDS8[..., :1] % 4 * 85, 3, 2)),
    ('ppm 255', pnm(b'P6', 255, BANDS8[..., :3]), BANDS8[..., :3]),
    ('pbm', b'P1\n6 4\n' + b'1 0 0 1 1 0\n' * 4,
     np.repeat(np.array([[0, 255, 255, 0, 0, 255]] * 4)[..., None], 3, 2)),
    ('tiff', tiff(BANDS8[..., :3]), BANDS8[..., :3]),
    ('tiff gray', tiff(BANDS8[..., :1], GRAY), np.repeat(BANDS8[..., :1], 3, 2)),
    ('jpeg 2000', saved(Image.fromarray(BANDS8[..., :3]), 'JPEG2000', num_resolutions=1),
     BANDS8[..., :3])])
def test_8_bits_and_fewer_are_read(tmp_path, kind, data, expected):
    sample = put(tmp_path, 'image', data)
    np.testing.assert_array_equal(np.asarray(open_image(str(tmp_path), sample)), expected)
    assert image_header(str(tmp_path), sample) == ((6, 4), 1, None)


# More than 3 bands.

def inks(pixels):
    """RGB of ink amounts (H, W, 4), as Pillow computes it."""
    return np.asarray(Image.fromarray(pixels, 'CMYK').convert('RGB'))


WIDE = {
    '4 bands': (tiff(BANDS8[..., :4], extra=[0]), BANDS8[..., :3],
                ['4 bands', 'first three', 'rest is left out']),
    '4 bands, untagged': (tiff(BANDS8[..., :4]), BANDS8[..., :3], ['4 bands', 'first three']),
    '4 bands, alpha': (tiff(BANDS8[..., :4], extra=[2]), BANDS8[..., :3], ['4 bands']),
    '5 bands': (tiff(BANDS8[..., :5], extra=[0, 0]), BANDS8[..., :3], ['5 bands', 'first three']),
    '4 bands, premultiplied': (tiff(BANDS8[..., :4], extra=[1]), None,
                               ['4 bands', 'divided by it', 'infrared', 'docs/data.md']),
    'cmyk': (tiff(BANDS8[..., :4], CMYK), inks(BANDS8[..., :4]),
             ['4 bands', 'CMYK', 'inks', 'infrared']),
    'cmyk and one more': (tiff(BANDS8[..., :5], CMYK, [0]), inks(BANDS8[..., :4]),
                          ['5 bands', 'CMYK']),
}


@pytest.mark.parametrize('kind', list(WIDE))
def test_a_tiff_with_other_bands_is_read_with_a_text(tmp_path, kind):
    data, expected, words = WIDE[kind]
    sample = put(tmp_path, 'image.tif', data)
    image = np.asarray(open_image(str(tmp_path), sample))
    if expected is not None:
        np.testing.assert_array_equal(image, expected)
    bands = image_header(str(tmp_path), sample).bands
    for word in words:
        assert word in bands
    assert inspect_sample(str(tmp_path), NCLASS, 255, sample, False).bands == bands


def test_the_line_for_a_wrong_cmyk_tag_keeps_the_colours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = put(tmp_path, 'image.tif', WIDE['cmyk'][0])
    line = re.search(r': (Image\.fromarray.*)$', image_header(str(tmp_path), sample).bands).group(1)
    eval(line, {'Image': Image, 'np': np, 'FILE': 'image.tif', 'NEW_FILE': 'new.tif'})
    new = Sample('new.tif', None, 'x')
    np.testing.assert_array_equal(np.asarray(open_image('.', new)), BANDS8[..., :3])
    assert image_header('.', new).bands is None


@pytest.mark.filterwarnings('ignore:Dataset has no geotransform')
@pytest.mark.parametrize('bands, colour, extra', [(4, GRAY, [0, 0, 0]), (8, RGB, [0] * 5)])
def test_a_tiff_that_pillow_does_not_open(tmp_path, monkeypatch, bands, colour, extra):
    data = tiff(BANDS8[..., :bands], colour, extra)
    sample = put(tmp_path, 'image.tif', data)
    with pytest.raises(FileProblem, match=f'a TIFF of {bands} bands of 8 bits.*docs/data.md'):
        open_image(str(tmp_path), sample)
    run_lines_of_the_documentation(tmp_path, data, BANDS8, monkeypatch, 255, False)
    np.testing.assert_array_equal(
        np.asarray(open_image(str(tmp_path), Sample('out.png', None, 'x'))), BANDS8[..., :3])


def test_a_cmyk_jpeg_has_no_bands_to_warn_of(tmp_path):
    sample = put(tmp_path, 'image.jpg', saved(Image.new('CMYK', (16, 8), (0, 255, 255, 0)), 'JPEG'))
    assert image_header(str(tmp_path), sample).bands is None
    assert np.abs(np.asarray(open_image(str(tmp_path), sample)).astype(int) - (255, 0, 0)).max() < 4


@pytest.fixture
def wide_world(tiny_world):
    """A world whose labeled and val images are TIFFs of 5 bands, but one, which is CMYK."""
    world = tiny_world()
    for part in ('labeled', 'val'):
        with open(getattr(world, part)) as file:
            listed = file.read()
        for name in re.findall(r'images/\S+', listed):
            path = os.path.join(world.root, name)
            pixels = np.asarray(Image.open(path))
            wide = np.concatenate([pixels, pixels[..., :2]], 2)
            data = tiff(wide[..., :4], CMYK) if name == 'images/labeled3.jpg' else \
                tiff(wide, extra=[0, 0])
            put(world.root, name.replace('.jpg', '.tif'), data)
            os.remove(path)
        with open(getattr(world, part), 'w') as file:
            file.write(listed.replace('.jpg', '.tif'))
    return world


def test_check_and_training_warn_of_bands_once_a_list(wide_world, capsys):
    assert main(['check', '--config', wide_world.config_path]) == 0
    printed = capsys.readouterr().out
    labeled, val = wide_world.labeled, wide_world.val
    read = 'of the images read, such as images'
    for start in (f'{labeled}: 4 {read}/labeled0.tif, have 5 bands: the first three',
                  f'{labeled}: 1 {read}/labeled3.tif, have 4 bands that are tagged as CMYK',
                  f'{val}: 3 {read}/val0.tif, have 5 bands: the first three'):
        assert printed.count(start) == 1
    assert 'errors: 0, warnings: 3' in printed
    lists = [read_list(path, masks) for path, masks in
             ((labeled, True), (wide_world.unlabeled, False), (val, True))]
    line, = quick_check(wide_world.load(), *lists)
    assert line.startswith(f'warning: {labeled}: 4 of the images read, such as ')
    assert line.endswith(': 3 found)')


def test_evaluation_and_prediction_warn_of_bands(wide_world, tmp_path, capsys):
    cfg = wide_world.load()
    checkpoint = str(tmp_path / 'best.pth')
    torch.save({'model': network_weights(build_model(cfg)), 'config': config.to_dict(cfg)},
               checkpoint)
    assert eval_script.main(['--checkpoint', checkpoint]) == 0
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f'eval.py: warning: {wide_world.val}: 3 of the images read, such as ')
    arguments = ['--checkpoint', checkpoint, '--images', os.path.join(wide_world.root, 'images'),
                 '--save-dir', str(tmp_path / 'out')]
    assert eval_script.main(arguments) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if 'warning' in line]
    assert len(lines) == 2 and '--images' in lines[0]
    assert '7 of the images read, such as labeled0.tif, have 5 bands' in lines[0]
    assert '1 of the images read, such as labeled3.tif, have 4 bands that are' in lines[1]


# EXIF orientation. Each function turns stored pixels into what viewers show.

SHOWN = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1],
         4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
         7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: np.rot90}
MASK = (np.arange(24).reshape(4, 6) % NCLASS).astype(np.uint8)


def tagged(pixels, turn, ending):
    """A file of (H, W) or (H, W, 3) uint8 with an EXIF orientation."""
    if ending == 'tif':
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        return tiff(pixels, GRAY if pixels.shape[2] == 1 else RGB, turn=turn)
    if ending == 'deflate.tif':
        return tiff(pixels, turn=turn, deflate=True)
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(Image.fromarray(pixels), 'PNG', exif=exif.tobytes())
    if ending != 'late.png':
        return data
    place = data.index(b'eXIf') - 4  # EXIF behind the pixels
    length = struct.unpack('>I', data[place:place + 4])[0] + 12
    return data[:place] + data[place + length:-12] + data[place:place + length] + data[-12:]


def pair(folder, turn, ending='png', mask=MASK, own=1, pixels=BANDS8[..., :3]):
    """Write an image and a mask (H, W) with EXIF orientations; returns their sample."""
    put(folder, f'image.{ending}', tagged(pixels, turn, ending))
    put(folder, 'mask.png', tagged(mask, own, 'png') if own != 1 else
        saved(Image.fromarray(mask), 'PNG'))
    return Sample(f'image.{ending}', 'mask.png', 'list.txt line 7')


def settings(folder):
    return config.from_dict({'dataset': 'tiny', 'nclass': NCLASS, 'data_root': str(folder)}, 'test')


def assert_read_as(folder, sample, image, mask):
    """Check that all programs read a sample as image (H, W, 3) and mask (H, W)."""
    found = open_pair(settings(folder), sample)
    np.testing.assert_array_equal(np.asarray(found[0]), image)
    np.testing.assert_array_equal(np.asarray(found[1]), mask)
    evaluated = EvalSet(settings(folder), [sample])[0]
    np.testing.assert_array_equal(evaluated[0].permute(1, 2, 0).numpy(), image)
    np.testing.assert_array_equal(evaluated[1].numpy(), mask)
    np.testing.assert_array_equal(read_image(str(folder), sample).permute(1, 2, 0).numpy(), image)
    assert image_header(str(folder), sample).size == image.shape[1::-1]
    for inspected in (inspect_sample(str(folder), NCLASS, 255, sample, True),
                      inspect_quickly(str(folder), NCLASS, 255, sample)):
        assert inspected.problems == []


@pytest.mark.parametrize('ending', ['png', 'late.png', 'tif', 'deflate.tif'])
@pytest.mark.parametrize('turn', [1, 5, 6, 7, 8])
def test_the_size_of_a_mask_shows_what_it_was_made_for(tmp_path, turn, ending):
    shown, stored_mask = SHOWN[turn](BANDS8[..., :3]), MASK
    shown_mask = SHOWN[turn](MASK)
    for mask in (stored_mask, shown_mask):
        assert_read_as(tmp_path, pair(tmp_path, turn, ending, mask), shown, shown_mask)


@pytest.mark.parametrize('ending', ['png', 'late.png', 'tif', 'deflate.tif'])
@pytest.mark.parametrize('turn', range(1, 9))
def test_an_image_without_a_mask_is_turned_as_viewers_do(tmp_path, turn, ending):
    sample = pair(tmp_path, turn, ending)._replace(mask=None)
    expected = SHOWN[turn](BANDS8[..., :3])
    np.testing.assert_array_equal(np.asarray(open_image(str(tmp_path), sample)), expected)
    assert image_header(str(tmp_path), sample) == (expected.shape[1::-1], turn, None)


@pytest.mark.parametrize('ending', ['png', 'tif'])
@pytest.mark.parametrize('turn, square', [(2, False), (3, False), (4, False), (6, True)])
def test_equal_sizes_are_refused_and_each_line_of_the_error_helps(
        tmp_path, monkeypatch, turn, square, ending):
    monkeypatch.chdir(tmp_path)
    pixels = BANDS8[:, :4 if square else 6, :3]
    for match_as_shown in (True, False):
        mask = MASK[:, :pixels.shape[1]]
        sample = pair('.', turn, ending, SHOWN[turn](mask) if match_as_shown else mask,
                      pixels=pixels)
        messages = {str(EvalSet(settings('.'), [sample])[0])}
        for inspected in (inspect_sample('.', NCLASS, 255, sample, True),
                          inspect_quickly('.', NCLASS, 255, sample)):
            problem, = inspected.problems
            assert problem.kind == 'orientation' and problem.file == sample.image
            messages.add(str(problem))
        message, = messages
        assert f'list.txt line 7: image ./{sample.image} has EXIF orientation {turn}' in message
        lines = re.search(r'turned pixels: (.*?)\. If they .* orientation: (.*)$', message).groups()
        names = {'Image': Image, 'ImageOps': ImageOps, 'FILE': sample.image}
        eval(lines[0 if match_as_shown else 1], names)
        if match_as_shown:
            assert_read_as('.', sample, SHOWN[turn](pixels), SHOWN[turn](mask))
        else:
            assert_read_as('.', sample, pixels, mask)


@pytest.mark.parametrize('turn, own, size', [(3, 3, 'stored'), (6, 6, 'stored'), (6, 6, 'shown'),
                                             (1, 6, 'stored'), (1, 6, 'own'), (6, 3, 'shown')])
def test_an_orientation_of_the_mask(tmp_path, turn, own, size):
    shown_mask = SHOWN[turn](MASK)
    # What the file stores, so that the mask of the image as viewers show it is `shown_mask`.
    undo = {6: 8}.get(own, own)
    mask = {'stored': MASK, 'shown': shown_mask, 'own': SHOWN[undo](shown_mask)}[size]
    if (turn, own, size) == (6, 3, 'shown'):  # the mask as it is or turned by half: not known
        with pytest.raises(FileProblem, match='mask .*mask.png has EXIF orientation 3') as caught:
            open_pair(settings(tmp_path), pair(tmp_path, turn, mask=mask, own=own))
        assert caught.value.kind == 'orientation' and caught.value.file == 'mask.png'
        return
    assert_read_as(tmp_path, pair(tmp_path, turn, mask=mask, own=own),
                   SHOWN[turn](BANDS8[..., :3]), shown_mask)


def test_a_mask_of_another_size_than_a_turned_image(tmp_path):
    with pytest.raises(FileProblem, match='6x3 but its image image.png is 4x6, as viewers show it '
                                          r'\(EXIF orientation 6\); they must be of one size'):
        open_pair(settings(tmp_path), pair(tmp_path, 6, mask=MASK[:3]))


def test_a_small_copy_is_upright(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs('data')
    pair('data', 6, own=6)
    (tmp_path / 'all.txt').write_text('image.png mask.png\n')
    assert main(['shrink', 'all.txt', '--data-root', 'data', '--by', '1', '--out', 'small']) == 0
    assert_read_as('small', Sample('image.png', 'mask.png', 'list.txt line 7'),
                   SHOWN[6](BANDS8[..., :3]), SHOWN[6](MASK))
    assert image_header('small', Sample('image.png', None, 'x')).turn == 1


def test_training_reads_a_turned_pair_like_the_upright_one(tiny_world):
    cfg = tiny_world().load(crop_size=17)
    stored, mask = RNG.integers(0, 256, (30, 20, 3)).astype(np.uint8), np.zeros((30, 20), np.uint8)
    mask[3:9, 2:15] = 1
    upright, upright_mask = SHOWN[6](stored), SHOWN[6](mask)
    rows, truths = [], []
    for pixels, turn, stored_mask in ((upright, 1, upright_mask), (stored, 6, upright_mask),
                                      (stored, 6, mask)):
        samples = [pair(cfg.data_root, turn, 'png', stored_mask, pixels=pixels)]
        data = TrainSet(cfg, samples, samples, with_masks=True)
        rows.append(data[RowIndices(0, 0, 0, 0, 0)])
        truths.append(weak_ground_truth(cfg, samples, 0, 0))
    for row, truth in zip(rows[1:], truths[1:]):
        for part, expected in zip(row, rows[0]):
            assert all(torch.equal(x, y) for x, y in zip(part, expected))
        assert torch.equal(truth, truths[0]) and torch.equal(truth, row.unlabeled.label)
