"""Opening files: the pixels of accepted files, and the errors for others."""
import io
import os

import numpy as np
import pytest
from PIL import Image

from dssn.data.files import open_image, open_mask
from dssn.data.lists import Sample
from dssn.errors import UserError

SAMPLE = Sample('image.jpg', 'mask.png', 'list.txt line 7')
SIZE = (6, 4)  # width, height
NCLASS = 5
INDICES = (np.arange(24).reshape(4, 6) % NCLASS).astype(np.uint8)


def noise(width, height, channels=3):
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels))
    return values.astype(np.uint8)


def mask_of(folder, image, **options):
    """Save `image` as the sample's mask and open it."""
    image.save(str(folder / 'mask.png'), **options)
    return np.asarray(open_mask(str(folder), SAMPLE, NCLASS, SIZE))


def error_of(call, folder):
    with pytest.raises(UserError) as caught:
        call(str(folder))
    message = str(caught.value)
    assert message.startswith('list.txt line 7: ') and '\n' not in message
    return message


def image_error(folder):
    message = error_of(lambda root: open_image(root, SAMPLE), folder)
    assert os.path.join(str(folder), 'image.jpg') in message
    return message


def mask_error(folder, size=SIZE):
    message = error_of(lambda root: open_mask(root, SAMPLE, NCLASS, size), folder)
    assert os.path.join(str(folder), 'mask.png') in message
    return message


# Images.

def as_rgb(mode):
    """An image of the given mode, and its RGB pixels computed by hand."""
    pixels = noise(*SIZE)
    if mode == 'RGB':
        return Image.fromarray(pixels), pixels
    if mode == 'L':
        return Image.fromarray(pixels[..., 0]), np.repeat(pixels[..., :1], 3, axis=2)
    if mode == '1':
        bits = pixels[..., :1] > 127
        return Image.fromarray(bits[..., 0]).convert('1'), np.repeat(bits * 255, 3, axis=2)
    if mode == 'RGBA':
        # The alpha channel is dropped, not blended.
        return Image.fromarray(noise(*SIZE, channels=4)), noise(*SIZE, channels=4)[..., :3]
    palette = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0])
    image.putpalette(palette.tobytes())
    return image, palette[pixels[..., 0]]


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', '1', 'P'])
def test_every_mode_is_opened_as_rgb(tmp_path, mode):
    image, expected = as_rgb(mode)
    assert image.mode == mode
    # Pillow recognises a format by its content. A lossless format can replace JPEG here.
    image.save(str(tmp_path / 'image.jpg'), format='PNG')
    opened = open_image(str(tmp_path), SAMPLE)
    assert opened.mode == 'RGB' and opened.size == SIZE
    np.testing.assert_array_equal(np.asarray(opened), expected)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
def test_jpeg_modes_are_opened_as_rgb(tmp_path, mode):
    # Compression keeps a uniform colour. CMYK here is pure red: no cyan, full magenta and yellow.
    colour = {'L': 90, 'RGB': (200, 60, 30), 'CMYK': (0, 255, 255, 0)}[mode]
    expected = {'L': (90,) * 3, 'RGB': (200, 60, 30), 'CMYK': (255, 0, 0)}[mode]
    Image.new(mode, (16, 8), colour).save(str(tmp_path / 'image.jpg'), format='JPEG', quality=95)
    opened = open_image(str(tmp_path), SAMPLE)
    assert opened.mode == 'RGB' and opened.size == (16, 8)
    assert np.abs(np.asarray(opened).astype(int) - expected).max() <= 3


def test_truncated_jpeg(tmp_path):
    content = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(content, format='JPEG')
    (tmp_path / 'image.jpg').write_bytes(content.getvalue()[:len(content.getvalue()) // 2])
    assert 'cannot be read' in image_error(tmp_path)


@pytest.mark.parametrize('content', [b'this is text, not a photograph\n', b''])
def test_a_file_that_is_not_an_image(tmp_path, content):
    (tmp_path / 'image.jpg').write_bytes(content)
    assert 'not an image' in image_error(tmp_path)
    (tmp_path / 'mask.png').write_bytes(content)
    assert 'not an image' in mask_error(tmp_path)


def test_missing_file_and_folder(tmp_path):
    assert 'no file' in image_error(tmp_path)
    assert 'no file' in mask_error(tmp_path)
    (tmp_path / 'image.jpg').mkdir()
    assert 'that is a folder' in image_error(tmp_path)


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.fromarray(noise(20, 20)).save(str(tmp_path / 'image.jpg'))
    # Pillow warns above its limit and raises an error above twice the limit. Here both are errors.
    for limit in (399, 300, 100):
        monkeypatch.setenv('DSSN_MAX_PIXELS', str(limit))
        message = image_error(tmp_path)
        assert f'more than {limit} pixels' in message and 'DSSN_MAX_PIXELS=' in message
    monkeypatch.setenv('DSSN_MAX_PIXELS', '400')
    assert open_image(str(tmp_path), SAMPLE).size == (20, 20)


@pytest.mark.parametrize('value', ['many', '-1', '0', '1e9', '9' * 5000])
def test_a_limit_that_is_not_a_number(tmp_path, monkeypatch, value):
    Image.fromarray(noise(20, 20)).save(str(tmp_path / 'image.jpg'))
    monkeypatch.setenv('DSSN_MAX_PIXELS', value)
    with pytest.raises(UserError, match='DSSN_MAX_PIXELS.*whole number of pixels'):
        open_image(str(tmp_path), SAMPLE)


# Masks.

def test_a_gray_mask_is_unchanged(tmp_path):
    indices = INDICES.copy()
    indices[1, 2:4] = 255
    np.testing.assert_array_equal(mask_of(tmp_path, Image.fromarray(indices)), indices)


@pytest.mark.parametrize('bits', [8, 4])
def test_a_palette_mask_is_opened_as_its_indices(tmp_path, bits):
    image = Image.fromarray(INDICES)
    # The colours differ from the indices, and two indices have the same colour.
    image.putpalette([200, 10, 10, 0, 0, 0, 0, 0, 0, 255, 255, 255, 3, 3, 3])
    np.testing.assert_array_equal(mask_of(tmp_path, image, bits=bits), INDICES)
    opened = open_mask(str(tmp_path), SAMPLE, NCLASS, SIZE)
    # Later, a palette image would be padded with palette entries.
    assert opened.mode == 'L'


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA', '1', 'I;16'])
def test_mask_of_another_mode_is_refused(tmp_path, mode):
    image = {'RGB': Image.fromarray(np.repeat(INDICES[..., None], 3, 2)),
             'RGBA': Image.fromarray(INDICES).convert('RGBA'),
             'LA': Image.fromarray(INDICES).convert('LA'),
             '1': Image.fromarray(INDICES > 2).convert('1'),
             'I;16': Image.fromarray(INDICES.astype(np.uint16))}[mode]
    image.save(str(tmp_path / 'mask.png'))
    message = mask_error(tmp_path)
    # The name of 16 bits depends on the release of Pillow.
    assert (f'mask.png is a {mode[0]}') in message
    assert '8-bit' in message and 'single channel or palette' in message


@pytest.mark.parametrize('value, count', [(NCLASS, 1), (NCLASS + 40, 3), (254, 2)])
def test_a_value_that_is_not_a_class_is_refused(tmp_path, value, count):
    indices = INDICES.copy()
    indices.flat[:count] = value
    Image.fromarray(indices).save(str(tmp_path / 'mask.png'))
    message = mask_error(tmp_path)
    for word in (f'value {value} on {count} pixels', 'nclass = 5', '0..4', '255'):
        assert word in message
    # With more classes the same mask is correct.
    opened = open_mask(str(tmp_path), SAMPLE, value + 1, SIZE)
    np.testing.assert_array_equal(np.asarray(opened), indices)


@pytest.mark.parametrize('size', [(4, 6), (6, 5), (5, 4), (12, 8)])
def test_mask_of_another_size_is_refused(tmp_path, size):
    Image.fromarray(INDICES).save(str(tmp_path / 'mask.png'))
    message = mask_error(tmp_path, size)
    for word in ('6x4', f'{size[0]}x{size[1]}', 'image.jpg'):
        assert word in message


def test_truncated_mask(tmp_path):
    content = io.BytesIO()
    Image.fromarray(noise(64, 64)[..., 0]).save(content, format='PNG')
    (tmp_path / 'mask.png').write_bytes(content.getvalue()[:-2000])
    assert 'cannot be read' in mask_error(tmp_path, (64, 64))


@pytest.mark.parametrize('mode', ['I;16', 'I', 'F'])
def test_an_image_of_more_than_8_bits_is_refused(tmp_path, mode):
    # Pillow's conversion to RGB would clip it to black and white without a warning.
    name = 'deep.tif'
    Image.new(mode, (4, 3), 1).save(str(tmp_path / name))
    with pytest.raises(UserError) as caught:
        open_image(str(tmp_path), Sample(name, None, 'list.txt line 1'))
    assert 'list.txt line 1' in str(caught.value) and '8 bits' in str(caught.value)


def test_ignore_index_and_255_are_both_ignored(tmp_path):
    indices = INDICES.copy()
    indices[0, :3], indices[1, 2:4] = 77, 255
    mask_of(tmp_path, Image.fromarray(INDICES))
    Image.fromarray(indices).save(str(tmp_path / 'mask.png'))
    opened = np.asarray(open_mask(str(tmp_path), SAMPLE, NCLASS, SIZE, ignore_index=77))
    expected = indices.copy()
    expected[0, :3] = 255
    np.testing.assert_array_equal(opened, expected)
    # ignore_index may be a class: its pixels are then ignored.
    opened = np.asarray(open_mask(str(tmp_path), SAMPLE, 78, SIZE, ignore_index=0))
    np.testing.assert_array_equal(opened == 255, (indices == 0) | (indices == 255))
    with pytest.raises(UserError, match='value 77 on 3 pixels.*or 9 or 255 for ignore'):
        open_mask(str(tmp_path), SAMPLE, NCLASS, SIZE, ignore_index=9)
