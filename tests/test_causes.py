"""Likely causes of wrong masks, for values as each mistake makes them."""
import numpy as np
import pytest
from PIL import Image

from dssn.data.causes import cause_of_values
from dssn.data.classes import PALETTES, voc_colour
from dssn.data.other_masks import cause_of_colours, cause_of_depth

# Of Cityscapes' 34 labelIds, those of a common street scene.
LABEL_IDS = [0, 1, 3, 4, 7, 8, 11, 17, 20, 21, 23, 24, 26, 33]
# Category ids of COCO that a 0..80 mask cannot hold.
COCO_IDS = [0, 1, 3, 62, 84, 90]


def cause(values, nclass, name='masks/1.png'):
    return cause_of_values({value: 10 for value in values}, nclass, name)


def indexed(indices, colours):
    """A palette image of the indices (H, W)."""
    image = Image.fromarray(np.asarray(indices, np.uint8))
    image.putpalette(np.asarray(colours, np.uint8).tobytes())
    return image


@pytest.mark.parametrize('values, nclass, words', [
    (range(1, 12), 11, ['shifted by one', '1..11', 'subtract 1', 'ignore_index: 11']),
    ([3, 5], 5, ['shifted by one', '1..5']),
    ([1, 2, 255], 2, ['shifted by one']),
    (range(12), 11, ['ignore_index: 11', 'nclass: 12', 'background']),
    ([0, 11, 255], 11, ['ignore_index: 11']),
    ([11], 11, ['ignore_index: 11']),           # one value does not prove a shift
    (LABEL_IDS, 19, ['labelIds', 'trainIds', 'prepare cityscapes']),
    (COCO_IDS, 81, ['category ids', 'prepare coco']),
    ([0, 128], 2, ['0, 128', 'multiplied by 128']),
    ([0, 127, 255], 3, ['0, 127, 255', 'multiplied by 127.5']),
    ([0, 128, 255], 2, ['what do 128 and 255 mean?']),
    ([0, 64, 128, 191, 255], 5, ['multiplied by 63.75']),
    ([0, 85, 255], 4, ['multiplied by 85']),  # one class does not occur
    ([0, 170], 4, ['multiplied by 85 (or by 170 or 56.6667']),  # classes do not occur
    ([0, 254, 255], 3, ['0, 254 look', 'ignore_index: 254']),     # 254 and 255 are not one index
    ([0, 46, 92], 11, ['which class is each of 46, 92?']),       # of five factors
    ([0, 20, 40, 100], 7, ['multiplied by 20']),
    (range(0, 255, 3), 21, ['photograph', 'NEAREST']),
    ([0, 1, 2, 7], 5, ['nclass: 8', 'ignore_index: 7']),
    ([0, 1, 200], 5, ['what does value 200 mean?', 'ignore_index: 200']),
])
def test_values(values, nclass, words):
    text = cause(values, nclass)
    for word in words:
        assert word in text, text
    assert '\n' not in text and not text.endswith('.')


def test_a_shift_in_all_masks_is_certain():
    assert 'this mask does not show class 0' in cause(range(1, 12), 11)
    assert 'this mask does not show class 0' not in cause(range(1, 12), 11, name='')


@pytest.mark.parametrize('name, word', [('gtFine/train/a_gtFine_labelIds.png', 'labelIds'),
                                        ('gtFine/train/a_gtFine_instanceIds.png', 'instanceIds')])
def test_file_names_of_cityscapes(name, word):
    # A single wrong value would not be enough without the name.
    text = cause([0, 19], 19, name)
    assert "Cityscapes' " + word in text and 'labelTrainIds' in text


@pytest.mark.parametrize('map_name, nclass, colours', [
    ('Pascal VOC', 21, [voc_colour(i) for i in range(21)]),
    ('Cityscapes', 19, PALETTES['cityscapes']), ('CamVid', 11, PALETTES['camvid'])])
def test_colours_converted_to_gray(map_name, nclass, colours):
    gray = np.unique(np.asarray(indexed(np.arange(nclass)[None], colours).convert('L'))).tolist()
    assert 'colours of ' + map_name in cause(gray, nclass)
    # Some of the grays are enough. A single one is not, and no other value may occur.
    several = [value for value in gray if value > nclass][:3]
    assert 'gray' in cause([0] + several, nclass)
    assert 'gray' not in cause([0] + several[:1], nclass)
    assert 'gray' not in cause([0, 2, 3] + several, nclass)


def test_any_set_of_values_has_a_cause():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        nclass = int(rng.integers(2, 256))
        values = rng.integers(0, 256, rng.integers(1, 30)).tolist()
        if nclass < 255:
            values.append(int(rng.integers(nclass, 255)))
            assert cause(set(values), nclass)


@pytest.mark.parametrize('dtype', [np.int32, np.uint16])
def test_more_than_8_bits(dtype):
    image = Image.fromarray(np.array([[0, 3], [20, 255]], dtype))
    assert '0..255, which fit into 8' in cause_of_depth(image, 'm.png')
    image = Image.fromarray(np.arange(26001, 26025, dtype=dtype).reshape(4, 6))
    text = cause_of_depth(image, 'm.png')
    assert '26001..26024' in text and 'object ids' in text
    assert 'instanceIds' in cause_of_depth(image, 'a_gtFine_instanceIds.png')


def test_colours():
    indices = np.arange(24).reshape(4, 6) % 11
    for map_name, colours in (('CamVid', PALETTES['camvid']),
                              ('Cityscapes', PALETTES['cityscapes']),
                              ('Pascal VOC', [voc_colour(i) for i in range(21)])):
        text = cause_of_colours(indexed(indices, colours).convert('RGB'))
        assert '11 colours, those of ' + map_name in text and 'index' in text
    own = [(i, 7, 2 * i) for i in range(11)]
    text = cause_of_colours(indexed(indices, own).convert('RGBA'))
    assert 'alpha channel is empty' in text and '11 colours. Which class is each?' in text
