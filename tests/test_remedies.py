"""Every remedy that a message about a mask or an image gives, applied to the file that it answers.

A patient is a bad file. Its message is read as a user reads it: the texts in backquotes are the
remedies. Each is run as it stands, and must give the mask that the file was made from.
"""
import os
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import dssn.data.stored
from dssn.__main__ import main
from dssn.data.check.findings import PixelTotals, unusable_mask_problems
from dssn.data.check.inspection import inspect_sample
from dssn.data.classes import PALETTES, voc_colour
from dssn.data.files import open_image, open_mask
from dssn.data.lists import Sample, check_files, parse_line, read_list
from dssn.data.palettes import PaletteRecord
from dssn.errors import UserError
from tests.test_prepare import LABELS, TRAIN_ID_OF_NAME, make_cityscapes, make_coco
from tests.test_stored import tiff

DOCS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'docs/data.md')
SHAPE = (24, 16)


def mask_of(*values):
    """A mask (H, W) uint8 in which each value occurs, in no order."""
    repeated = np.resize(np.array(values, np.uint8), SHAPE[0] * SHAPE[1])
    return np.random.default_rng(len(values)).permutation(repeated).reshape(SHAPE)


def changed(mask, **changes):
    """A mask with other values: changed(mask, _3=255) has 255 where the mask has 3."""
    table = np.arange(256, dtype=np.uint8)
    for old, new in changes.items():
        table[int(old[1:])] = new
    return table[mask]


def remedies_in(message):
    """The texts in backquotes, each with the config line that belongs to it, or ''."""
    return re.findall(r'`([^`]+)`(?:, with `(ignore_index: \d+)`)?', message)


class Clinic:
    """A folder with an image and its mask, and the config to read them with."""

    def __init__(self, folder, nclass, ignore_index=255):
        self.folder, self.config = str(folder), {'nclass': nclass, 'ignore_index': ignore_index}
        self.sample = Sample('image.png', 'mask', 'list.txt line 1')
        self.path, self.png = os.path.join(folder, 'mask'), os.path.join(folder, 'new.png')

    def store(self, content):
        """Write the mask: an array for PNG, a Pillow image, or a function of the open file."""
        with open(self.path, 'wb') as file:
            if callable(content):
                content(file)
            else:
                image = content if isinstance(content, Image.Image) else Image.fromarray(content)
                image.save(file, 'TIFF' if image.mode in 'IF' else 'PNG')

    def open(self, size=SHAPE[::-1]):
        return np.asarray(open_mask(self.folder, self.sample, self.config['nclass'], size,
                                    self.config['ignore_index']))

    def message(self, size=SHAPE[::-1]):
        with pytest.raises(UserError) as caught:
            self.open(size)
        text = str(caught.value)
        assert text.isprintable() and not text.endswith('.')
        return text

    def apply(self, remedy):
        for part in filter(None, remedy):
            setting = re.fullmatch(r'(nclass|ignore_index): (\d+)', part)
            if setting:
                self.config[setting.group(1)] = int(setting.group(2))
            else:
                exec(part, {'np': np, 'Image': Image, 'dssn': dssn,
                            'path': self.path, 'png': self.png})
                shutil.move(self.png, self.path)


def png_of_4_bits(mask):
    """A gray PNG, which Pillow scales by 17 when it reads it."""
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack(
            '>I', zlib.crc32(kind + content) & 0xffffffff)
    rows = b''.join(b'\0' + bytes((row[::2] * 16 + row[1::2]).tolist()) for row in mask)
    content = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack(
        '>IIBBBBB', *mask.shape[::-1], 4, 0, 0, 0, 0)) + chunk(
            b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
    return lambda file: file.write(content)


def saved(array):
    return lambda file: np.save(file, array)


def palette(indices, entries):
    """A palette image; Pillow stores few entries in few bits."""
    image = Image.fromarray(indices)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * entries).tolist())
    return image


def with_alpha(rgb, alpha):
    return Image.fromarray(np.dstack([np.broadcast_to(rgb, (*SHAPE, 3)), alpha]).astype(np.uint8))


def in_colours(mask, colours, void=(0, 0, 0)):
    table = np.full((256, 3), void, np.uint8)
    table[:len(colours)] = colours
    return Image.fromarray(table[mask])


CLASSES11 = mask_of(*range(11))
IGNORED11 = mask_of(*range(11), 255)
FIVE = mask_of(*range(5), 255)
WIDE = FIVE.astype('int64')
VOC = mask_of(*range(21), 255)
ALPHA = mask_of(0, 1, 2)
WITH_7, WITH_200, WITH_6_8 = (mask_of(*range(5), *values) for values in ((7,), (200,), (6, 8)))

# name: (the bad mask, nclass, ignore_index, the mask that each remedy gives, in their order)
PATIENTS = {
    # Values.
    'counted from 1': (CLASSES11 + np.uint8(1), 11, 255, [
        CLASSES11, changed(CLASSES11 + np.uint8(1), _11=255)]),
    'counted from 1, 255 ignored': (np.where(IGNORED11 == 255, 255, IGNORED11 + 1).astype('uint8'),
                                    11, 255, [IGNORED11, None]),
    'counted from 1 in a palette of 4 bits, 0 ignored': (
        palette(IGNORED11 + np.uint8(1), 16), 11, 255, [None, None, IGNORED11]),
    'counted from 1 in 4 bits': (png_of_4_bits(CLASSES11 + np.uint8(1)), 11, 255, [
        CLASSES11, changed(CLASSES11 + np.uint8(1), _11=255)]),
    'counted from 1, ignore_index 0': (IGNORED11 + np.uint8(1), 11, 0, [
        IGNORED11, changed(IGNORED11 + np.uint8(1), _0=255, _11=255)]),
    'void, or a class more': (mask_of(*range(12)), 11, 255, [
        changed(mask_of(*range(12)), _11=255), mask_of(*range(12)),
        changed(mask_of(*range(12)) - np.uint8(1))]),
    '0 and 128': (mask_of(0, 128), 2, 255, [changed(mask_of(0, 128), _128=1),
                                            changed(mask_of(0, 128), _128=255)]),
    '0, 127 and 255, three classes': (mask_of(0, 127, 255), 3, 255, [
        changed(mask_of(0, 127, 255), _127=1, _255=2), changed(mask_of(0, 127, 255), _127=255)]),
    '0, 64, ... 255': (mask_of(0, 64, 128, 191, 255), 5, 255, [
        changed(mask_of(0, 64, 128, 191, 255), _64=1, _128=2, _191=3, _255=4)]),
    '0, 128 and 255, two classes': (mask_of(0, 128, 255), 2, 255, [
        changed(mask_of(0, 128, 255), _128=1), changed(mask_of(0, 128, 255), _128=255, _255=1)]),
    'multiplied, 255 ignored': (mask_of(0, 100, 200, 255), 3, 255, [
        changed(mask_of(0, 100, 200, 255), _100=1, _200=2)]),
    'multiplied, 9 ignored': (mask_of(0, 9, 100, 200), 3, 9, [
        changed(mask_of(0, 9, 100, 200), _9=255, _100=1, _200=2)]),
    'multiplied, without two of four classes': (mask_of(0, 170), 4, 255, [
        changed(mask_of(0, 170), _170=2), changed(mask_of(0, 170), _170=255)]),
    'one value more': (WITH_7, 5, 255, [changed(WITH_7, _7=255), WITH_7]),
    'one large value': (WITH_200, 5, 255, [changed(WITH_200, _200=255),
                                           changed(WITH_200, _200=1)]),
    'one large value, 4 ignored': (WITH_200, 5, 4, [changed(WITH_200, _4=255, _200=255),
                                                    changed(WITH_200, _4=255, _200=1)]),
    'two values more': (WITH_6_8, 5, 255, [WITH_6_8, changed(WITH_6_8, _6=255, _8=255)]),
    # 1 bit, and more than 8.
    '1 bit': (Image.fromarray(mask_of(0, 1) > 0), 2, 255, [mask_of(0, 1)]),
    '16 bits': (FIVE.astype('uint16'), 5, 255, [FIVE]),
    '32 bits': (FIVE.astype('int32'), 5, 255, [FIVE]),
    'float': (FIVE.astype('float32'), 5, 255, [FIVE]),
    '-1': (np.where(FIVE == 255, -1, WIDE).astype('int32'), 5, 255, [FIVE]),
    '-1, float': (np.where(FIVE == 255, -1, WIDE).astype('float32'), 5, 255, [FIVE]),
    'not a number': (np.where(FIVE == 255, np.nan, WIDE).astype('float32'), 5, 255, [FIVE]),
    '-1 in 16 bits': (np.where(FIVE == 255, 65535, WIDE).astype('uint16'), 5, 255, [FIVE]),
    '0 and 65535': (mask_of(0, 1).astype('uint16') * np.uint16(65535), 2, 255, [
        changed(mask_of(0, 1), _1=255), mask_of(0, 1)]),
    'times 257': (FIVE.astype('uint16') * np.uint16(257), 5, 255, [FIVE]),
    'times 256': (FIVE.astype('uint16') * np.uint16(256), 5, 255, [FIVE]),
    '0, 32768 and 65535': (np.array([0, 32768, 65535], 'uint16')[ALPHA], 3, 255, [ALPHA]),
    '1000 for void': (np.where(FIVE == 255, 1000, WIDE).astype('uint16'), 5, 255, [FIVE]),
    '-1 and -2': (np.array([0, -1, -2], 'int32')[ALPHA], 3, 255, [changed(ALPHA, _1=255, _2=255)]),
    # Other files.
    'TGA': (lambda file: Image.fromarray(FIVE).save(file, 'TGA'), 5, 255, [FIVE]),
    **{f'0 as white, {bits} bits': (
        lambda file, bits=bits: file.write(tiff(FIVE & (2 ** bits - 1), bits=bits, photometric=0)),
        16, 255, [FIVE & (2 ** bits - 1)]) for bits in (1, 2, 4, 8)},
    # Arrays.
    'npy': (saved(FIVE), 5, 255, [FIVE]),
    'npy of bool': (saved(mask_of(0, 1) > 0), 2, 255, [mask_of(0, 1)]),
    'npy, -1': (saved(np.where(FIVE == 255, -1, WIDE)), 5, 255, [FIVE]),
    'npy, -1 in 8 bits': (saved(np.where(FIVE == 255, -1, WIDE).astype('int8')), 5, 255, [FIVE]),
    'npy, 4294967295': (saved(np.where(FIVE == 255, 2 ** 32 - 1, WIDE).astype('uint32')), 5, 255,
                        [FIVE]),
    'npy, one channel': (saved(FIVE[..., None].astype('float64')), 5, 255, [FIVE]),
    # Channels and colours.
    'three channels': (np.dstack([FIVE] * 3), 5, 255, [FIVE]),
    'red': (np.dstack([FIVE, 0 * FIVE, 0 * FIVE]), 5, 255, [FIVE]),
    'gray and alpha': (Image.fromarray(FIVE).convert('LA'), 5, 255, [FIVE]),
    'classes in alpha': (with_alpha(0, ALPHA), 3, 255, [ALPHA]),
    'one class in alpha': (with_alpha(0, 0 * ALPHA + 2), 3, 255, [0 * ALPHA + 2]),
    'classes in alpha, gray': (Image.merge('LA', [Image.fromarray(m) for m in (0 * ALPHA, ALPHA)]),
                               3, 255, [ALPHA]),
    'classes in alpha, or in three channels': (
        with_alpha(FIVE[..., None], ALPHA), 5, 255, [ALPHA, FIVE]),
    'colours of CamVid': (in_colours(IGNORED11, PALETTES['camvid']), 11, 255, [IGNORED11]),
    'colours of Cityscapes': (in_colours(mask_of(*range(19), 255), PALETTES['cityscapes']), 19,
                              255, [mask_of(*range(19), 255)]),
    'colours of VOC': (in_colours(VOC, [voc_colour(i) for i in range(21)], (224, 224, 192)), 21,
                       255, [VOC]),
    'colours of VOC, and opaque': (
        in_colours(VOC, [voc_colour(i) for i in range(21)], (224, 224, 192)).convert('RGBA'), 21,
        255, [VOC]),
    'a colour of VOC or CamVid': (in_colours(mask_of(0, 1), [(0, 0, 0), (128, 0, 0)]), 21, 255, [
        changed(mask_of(0, 1), _0=255), mask_of(0, 1), mask_of(0, 1)]),
    'red and black': (in_colours(mask_of(0, 1), [(0, 0, 0), (255, 0, 0)]), 2, 255, [
        None, mask_of(0, 1)]),
    'own colours': (in_colours(ALPHA, [(0, 9, 0), (9, 0, 1), (200, 3, 3)]), 3, 255, [ALPHA]),
}


@pytest.mark.parametrize('name', PATIENTS)
def test_each_remedy_gives_the_mask(tmp_path, name):
    bad, nclass, ignore_index, expected = PATIENTS[name]
    clinic = Clinic(tmp_path, nclass, ignore_index)
    clinic.store(bad)
    message = clinic.message()
    found = remedies_in(message)
    # `colours = ...` is for the remedy before it.
    found = [(re.sub('colours = .*?;', f'{part[0]};', found[0][0]), '')
             if part[0].startswith('colours') else part for part in found]
    assert len(found) == len(expected), message
    for remedy, mask in zip(found, expected):
        if mask is None:
            continue  # the file was made with another meaning
        clinic = Clinic(tmp_path, nclass, ignore_index)
        clinic.store(bad)
        clinic.apply(remedy)
        np.testing.assert_array_equal(clinic.open(), mask, f'{message}\n{remedy}')


def floats(*values):
    return np.array(values, 'float32')[ALPHA % len(values)]


@pytest.mark.parametrize('bad, words', [
    (floats(0, 0.5, 0.9), ['it holds 0.5', 'What does 0.5 mean?', 'Export']),
    (np.arange(384, dtype='int32').reshape(SHAPE) * 77, ['object ids or depths?', 'Export']),
    (np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype('uint8'),
     ['photograph', 'swapped on the line?']),
    (np.arange(384, dtype='uint8').reshape(SHAPE) % 200, ['swapped on the line?', 'NEAREST']),
    (saved(np.zeros((3, 5, 8))), ['NumPy array of float64 (3, 5, 8)', 'which part']),
    (saved(np.array([[{}]])), ['export it as PNG']),
    (lambda file: np.savez(file, FIVE), ['export it as PNG']),
    (lambda file: file.write(b'\x93NUMPY\x01\0'), ['export it as PNG'])])
def test_a_mask_without_a_sure_remedy_asks(tmp_path, bad, words):
    clinic = Clinic(tmp_path, 5)
    clinic.store(bad)
    message = clinic.message()
    assert '`' not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize('quality', [75, 100])  # of the values 0 and 1, and 0 to 2
def test_a_jpeg_mask_must_be_exported_again(tmp_path, quality):
    clinic = Clinic(tmp_path, 2)
    clinic.store(lambda file: Image.fromarray(mask_of(0, 1)).save(file, 'JPEG', quality=quality))
    message = clinic.message()
    assert re.search('export the masks again .*PNG', message) and '`' not in message
    clinic.store(mask_of(0, 1))
    np.testing.assert_array_equal(clinic.open(), mask_of(0, 1))


def test_gray_colours_lead_to_the_mask_in_colour(tmp_path):
    clinic = Clinic(tmp_path, 11)
    coloured = in_colours(IGNORED11, PALETTES['camvid'])
    clinic.store(coloured.convert('L'))
    message = clinic.message()
    assert 'use the mask in colour' in message and '`' not in message
    clinic.store(coloured)
    clinic.apply(*remedies_in(clinic.message()))
    np.testing.assert_array_equal(clinic.open(), IGNORED11)
    clinic.store(palette(IGNORED11, 256))
    np.testing.assert_array_equal(clinic.open(), IGNORED11)


def test_a_mask_that_was_resized_smoothly_is_resized_again(tmp_path):
    original = np.array([[0, 200], [40, 90]], np.uint8).repeat(12, 0).repeat(8, 1)
    clinic = Clinic(tmp_path, 30)
    clinic.store(Image.fromarray(original).resize((96, 64), Image.BICUBIC))
    message = clinic.message((96, 64))
    new_filter, = re.findall(r'Image\.(\w+)', message)
    clinic.store(Image.fromarray(original).resize((96, 64), getattr(Image, new_filter)))
    clinic.config['nclass'] = 201
    assert set(np.unique(clinic.open((96, 64)))) == {0, 40, 90, 200}


def test_image_and_mask_swapped(tmp_path):
    clinic = Clinic(tmp_path, 5)
    photo = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype('uint8')
    clinic.store(photo)
    Image.fromarray(FIVE).save(str(tmp_path / 'image.png'))
    assert 'swapped on the line?' in clinic.message()
    clinic.sample = Sample('mask', 'image.png', 'list.txt line 1')
    np.testing.assert_array_equal(clinic.open(), FIVE)
    np.testing.assert_array_equal(np.asarray(open_image(clinic.folder, clinic.sample)), photo)


def test_a_mask_is_resized_without_new_values(tmp_path):
    clinic = Clinic(tmp_path, 5)
    clinic.store(palette(FIVE.repeat(2, 0).repeat(2, 1), 256))
    clinic.apply(*remedies_in(clinic.message()))
    np.testing.assert_array_equal(clinic.open(), FIVE)


def test_a_gray_mask_of_4_bits_is_resized_with_its_values(tmp_path):
    clinic = Clinic(tmp_path, 11)
    clinic.store(png_of_4_bits(CLASSES11.repeat(2, 0).repeat(2, 1)))
    clinic.apply(*remedies_in(clinic.message()))
    np.testing.assert_array_equal(clinic.open(), CLASSES11)


def test_masks_with_palettes_of_their_own(tmp_path):
    colours = [(0, 0, 0), (9, 0, 0), (9, 9, 9), (0, 9, 0), (0, 0, 9)]
    truth = [mask_of(*range(5)), mask_of(*range(5))[::-1]]
    orders = np.arange(5), np.array([3, 1, 4, 0, 2])  # order[i] is the class of index i
    record = PaletteRecord('check')
    clinics = [Clinic(tmp_path / str(i), 5) for i in range(2)]
    for clinic, mask, order in zip(clinics, truth, orders):
        os.makedirs(clinic.folder)
        image = Image.fromarray(np.argsort(order).astype(np.uint8)[mask])
        image.putpalette([value for index in order for value in colours[index]])
        clinic.store(image)
    open_mask(clinics[0].folder, clinics[0].sample, 5, SHAPE[::-1], 255, record)
    with pytest.raises(UserError) as caught:
        open_mask(clinics[1].folder, clinics[1].sample, 5, SHAPE[::-1], 255, record)
    remedy, ignore = remedies_in(str(caught.value))
    assert ignore[0] == 'palette: ignore'
    for clinic, mask in zip(clinics, truth):
        clinic.apply(remedy)
        np.testing.assert_array_equal(clinic.open(), mask)


@pytest.mark.parametrize('ignore_index', [255, 1])
def test_masks_of_0_and_ignored_pixels(tmp_path, ignore_index):
    clinic = Clinic(tmp_path, 2, ignore_index)
    clinic.store(mask_of(0, ignore_index))
    Image.new('RGB', SHAPE[::-1]).save(str(tmp_path / 'image.png'))
    inspected = inspect_sample(clinic.folder, 2, ignore_index, clinic.sample, True)
    problem, = inspected.problems
    totals = PixelTotals()
    totals.add(inspected.counts)
    of_list, = unusable_mask_problems('val', 'val.txt', totals, ignore_index)
    assert remedies_in(str(problem)) == remedies_in(of_list.message)
    clinic.apply(*remedies_in(str(problem)))
    np.testing.assert_array_equal(clinic.open(), changed(mask_of(0, ignore_index), _255=1))


def test_cityscapes_gets_its_train_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = make_cityscapes(tmp_path / 'source')
    base = 'gtFine/train/ulm/ulm_000001_000019_gtFine_'
    labels = np.array(Image.open(str(source / (base + 'labelIds.png'))))
    for ids in ('labelIds', 'instanceIds'):
        with pytest.raises(UserError) as caught:
            open_mask(str(source), Sample('', f'{base}{ids}.png', 'line'), 19, labels.shape[::-1])
    command, = re.findall('`python -m dssn (.*)`', str(caught.value))
    assert main(command.replace('FOLDER', 'source').split()) == 0
    ending = re.search(r'\*_gtFine_(\S+\.png)', str(caught.value)).group(1)
    sample = Sample('', base + ending, 'line')
    mask = open_mask('data/cityscapes', sample, 19, labels.shape[::-1])
    expected = [[TRAIN_ID_OF_NAME.get(LABELS[value], 255) for value in row] for row in labels]
    assert np.asarray(mask).tolist() == expected


def test_coco_gets_masks_without_gaps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_coco(tmp_path / 'source')
    clinic = Clinic(tmp_path, 81)
    clinic.store(mask_of(0, 1, 13, 90))
    command, = re.findall('`python -m dssn (.*)`', clinic.message())
    assert main(command.replace('FOLDER', 'source').split()) == 0
    sample = Sample('', 'masks/000000000009.png', 'line')
    mask = np.asarray(open_mask('data/coco', sample, 81, (44, 36)))
    assert set(np.unique(mask)) == {0, 1, 12, 80, 255}  # the categories 1, 13, 90, and the crowd


def test_the_script_of_the_docs_applies_a_line_to_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(DOCS, encoding='utf-8') as file:
        script, = re.findall('```python\n(import glob.*?)```', file.read(), re.S)
    clinic = Clinic(tmp_path, 11)
    bad = IGNORED11 + np.uint8(1)  # 0 is ignored
    clinic.store(bad)
    remedy = remedies_in(clinic.message())[-1][0]
    os.makedirs('data/mine/masks')
    Image.fromarray(bad).save('data/mine/masks/a.b.png')
    example = re.search('^ +(values = .*)$', script, re.M).group(1)
    exec(script.replace(example, remedy), {})
    new = np.asarray(Image.open('data/mine/new_masks/a.b.png'))
    np.testing.assert_array_equal(new, IGNORED11)


# Images.

def message_of_image(folder, name='image.png'):
    with pytest.raises(UserError) as caught:
        open_image(str(folder), Sample(name, None, 'list.txt line 1'))
    return str(caught.value)


def test_an_image_that_is_an_array(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    path, png = str(tmp_path / 'a.npy'), str(tmp_path / 'image.png')
    np.save(path, pixels)
    (remedy, _), = remedies_in(message_of_image(tmp_path, 'a.npy'))
    exec(remedy, {'np': np, 'Image': Image, 'path': path, 'png': png})
    assert (np.asarray(open_image(str(tmp_path), Sample('image.png', None, ''))) == pixels).all()


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('limit', [200, 400])  # Pillow refuses above twice the limit itself
def test_a_large_image_is_read_with_the_limit_that_is_named(tmp_path, monkeypatch, limit):
    Image.new('RGB', (30, 20)).save(str(tmp_path / 'image.png'))
    monkeypatch.setenv('DSSN_MAX_PIXELS', str(limit))
    (remedy, _), = remedies_in(message_of_image(tmp_path))
    monkeypatch.setenv(*remedy.split('='))
    assert open_image(str(tmp_path), Sample('image.png', None, '')).size == (30, 20)


# Lists.

def test_the_lines_that_errors_ask_for(tmp_path):
    (tmp_path / 'b.JPG').touch()
    with pytest.raises(UserError) as caught:
        check_files([Sample('b.jpg', None, 'line 1')], str(tmp_path), masks=False)
    name = re.search(r'the folder has (\S+):', str(caught.value)).group(1)
    check_files([Sample(name, None, 'line 1')], str(tmp_path), masks=False)
    (tmp_path / 'c.json').touch()  # not an image
    with pytest.raises(UserError, match='correct the line or data_root'):
        check_files([Sample('c.jpg', None, 'line 1')], str(tmp_path), masks=False)
    with pytest.raises(UserError, match='write / between folders'):
        check_files([Sample('d\\b.JPG', None, 'line 1')], str(tmp_path), masks=False)
    (tmp_path / 'list.txt').write_text('b.JPG m.png\n', encoding='utf-16')
    with pytest.raises(UserError, match='save it as UTF-8'):
        read_list(str(tmp_path / 'list.txt'))
    (tmp_path / 'list.txt').write_text('b.JPG m.png\n', encoding='utf-8-sig')
    assert read_list(str(tmp_path / 'list.txt'))[0][:2] == ('b.JPG', 'm.png')
    with pytest.raises(UserError, match='with a tab between the two'):
        parse_line('my images/1.png masks/1.png', 'line 1', True)
    assert parse_line('my images/1.png\tmasks/1.png', 'line 1', True).mask == 'masks/1.png'
    with pytest.raises(UserError, match='set `allow_outside: true`'):
        parse_line('/a/1.png masks/1.png', 'line 1', True)
    assert parse_line('/a/1.png masks/1.png', 'line 1', True, allow_outside=True)
    with pytest.raises(UserError, match='write paths below data_root$'):
        parse_line('/a/1.png masks/1.png', 'line 1', True, allow_outside=None)


# Any file.

def any_mask(rng):
    """A mask file with some values: gray, deep, an array, or of several channels."""
    values = rng.choice([0, 1, 2, 7, 128, 200, 255, 256, 514, 65535, -1], rng.integers(1, 5), False)
    index = rng.choice(values, SHAPE)
    kind = rng.integers(4)
    if kind == 0:
        return np.clip(index, 0, 255).astype('uint8')
    if kind == 1:
        return index.astype(rng.choice(['int32', 'float32']))
    if kind == 2:
        return saved(index.astype(rng.choice(['int32', 'int64', 'float32', 'float64', 'uint16'])))
    mode = rng.choice(['LA', 'RGB', 'RGBA', 'CMYK'])
    bands = [Image.fromarray(rng.choice(np.clip(values, 0, 255), SHAPE).astype('uint8'))
             for _ in mode]
    image = Image.merge(str(mode), bands)
    return lambda file: image.save(file, 'TIFF')


def test_every_remedy_runs(tmp_path):
    rng = np.random.default_rng(0)
    count = 0
    for _ in range(300):
        clinic = Clinic(tmp_path, int(rng.integers(2, 9)), int(rng.choice([255, 0, 1])))
        clinic.store(any_mask(rng))
        try:
            clinic.open()
            continue
        except UserError as error:
            found = remedies_in(str(error))
        shutil.copy(clinic.path, str(tmp_path / 'bad'))
        for remedy in found:
            if not remedy[0].startswith('colours ='):
                shutil.copy(str(tmp_path / 'bad'), clinic.path)
                clinic.apply(remedy)
                count += 1
                if remedy[0].startswith('values'):
                    with Image.open(clinic.path) as image:
                        assert image.mode == 'L'
    assert count > 200
