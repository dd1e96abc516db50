"""Names and colours of classes."""
import itertools

import pytest

from dssn.data.classes import CLASSES, IGNORE_COLOUR, class_names, palette, voc_colour

COUNTS = {'pascal': 21, 'cityscapes': 19, 'coco': 81, 'camvid': 11, 'shapes': 7}


@pytest.mark.parametrize('dataset, count', sorted(COUNTS.items()))
def test_known_data_sets(dataset, count):
    names = class_names(dataset, count)
    assert len(names) == len(set(names)) == count
    assert all(name and name == name.strip() for name in names)
    colours = palette(dataset, count)
    assert len(colours) == len(set(colours)) == count
    assert set(CLASSES) == set(COUNTS)


@pytest.mark.parametrize('dataset, index, name', [
    ('pascal', 0, 'background'), ('pascal', 1, 'aeroplane'), ('pascal', 8, 'cat'),
    ('pascal', 15, 'person'), ('pascal', 20, 'tvmonitor'), ('cityscapes', 0, 'road'),
    ('cityscapes', 10, 'sky'), ('cityscapes', 13, 'car'), ('cityscapes', 18, 'bicycle'),
    ('coco', 0, 'background'), ('coco', 1, 'person'), ('coco', 12, 'stop sign'),
    ('coco', 80, 'toothbrush'), ('shapes', 6, 'cross')])
def test_names_stand_at_their_index(dataset, index, name):
    assert class_names(dataset, COUNTS[dataset])[index] == name


@pytest.mark.parametrize('dataset, nclass', [('mine', 3), ('pascal', 20), ('cityscapes', 2)])
def test_any_other_data_set_has_numbered_classes(dataset, nclass):
    assert class_names(dataset, nclass) == ['class %d' % i for i in range(nclass)]


def test_the_returned_lists_are_the_callers_own():
    names, colours = class_names('shapes', 7), palette('cityscapes', 19)
    names[0], colours[0] = 'changed', (1, 2, 3)
    assert class_names('shapes', 7)[0] == 'background'
    assert tuple(palette('cityscapes', 19)[0]) == (128, 64, 128)


@pytest.mark.parametrize('index, colour', [
    (0, (0, 0, 0)), (1, (128, 0, 0)), (2, (0, 128, 0)), (3, (128, 128, 0)), (4, (0, 0, 128)),
    (5, (128, 0, 128)), (7, (128, 128, 128)), (8, (64, 0, 0)), (15, (192, 128, 128)),
    (20, (0, 64, 128)), (255, (224, 224, 192))])
def test_pascal_colours_are_voc_s(index, colour):
    assert voc_colour(index) == colour
    if index < 21:
        assert tuple(palette('pascal', 21)[index]) == colour


@pytest.mark.parametrize('index, colour', [
    (0, (128, 64, 128)), (8, (107, 142, 35)), (10, (70, 130, 180)), (11, (220, 20, 60)),
    (13, (0, 0, 142)), (18, (119, 11, 32))])
def test_cityscapes_colours(index, colour):
    assert tuple(palette('cityscapes', 19)[index]) == colour


@pytest.mark.parametrize('dataset', ['mine', 'pascal', 'cityscapes', 'coco', 'camvid', 'shapes'])
@pytest.mark.parametrize('nclass', [2, 3, 19, 40, 81, 255])
def test_any_number_of_classes_has_distinct_colours(dataset, nclass):
    colours = [tuple(colour) for colour in palette(dataset, nclass)]
    assert len(colours) == len(set(colours)) == nclass
    # Unlabeled pixels are drawn in a colour that no class has.
    assert IGNORE_COLOUR not in colours
    assert all(len(c) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in c)
               for c in colours)


@pytest.mark.parametrize('nclass', [7, 11, 19])
def test_chosen_colours_can_be_told_apart(nclass):
    colours = palette('mine', nclass)
    assert min(sum(abs(a - b) for a, b in zip(one, other))
               for one, other in itertools.combinations(colours, 2)) > 45
