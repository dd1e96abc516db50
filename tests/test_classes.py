"""Names and colours of classes."""
import itertools

import pytest

from dssn.data.classes import CLASSES, IGNORE_COLOUR, default_colours, default_names, voc_colour

COUNTS = {'pascal': 21, 'cityscapes': 19, 'coco': 81, 'ade20k': 150, 'camvid': 11, 'shapes': 7,
          'idd_lite': 7}


@pytest.mark.parametrize('dataset, count', sorted(COUNTS.items()))
def test_known_data_sets(dataset, count):
    names = default_names(dataset, count)
    assert len(names) == len(set(names)) == count
    assert all(name and name == name.strip() for name in names)
    colours = default_colours(dataset, count)
    assert len(colours) == len(set(colours)) == count
    assert set(CLASSES) == set(COUNTS)


@pytest.mark.parametrize('dataset, index, name', [
    ('pascal', 0, 'background'), ('pascal', 1, 'aeroplane'), ('pascal', 8, 'cat'),
    ('pascal', 15, 'person'), ('pascal', 20, 'tvmonitor'), ('cityscapes', 0, 'road'),
    ('cityscapes', 10, 'sky'), ('cityscapes', 13, 'car'), ('cityscapes', 18, 'bicycle'),
    ('coco', 0, 'background'), ('coco', 1, 'person'), ('coco', 12, 'stop sign'),
    ('coco', 80, 'toothbrush'), ('ade20k', 0, 'wall'), ('ade20k', 12, 'person'),
    ('ade20k', 75, 'swivel chair'), ('ade20k', 127, 'bicycle'), ('ade20k', 136, 'traffic light'),
    ('ade20k', 149, 'flag'), ('shapes', 6, 'cross'), ('idd_lite', 0, 'drivable'),
    ('idd_lite', 2, 'living things'), ('idd_lite', 3, 'vehicles'), ('idd_lite', 6, 'sky')])
def test_names_are_in_index_order(dataset, index, name):
    assert default_names(dataset, COUNTS[dataset])[index] == name


@pytest.mark.parametrize('dataset, nclass', [('mine', 3), ('pascal', 20), ('cityscapes', 2)])
def test_another_data_set_has_numbered_classes(dataset, nclass):
    assert default_names(dataset, nclass) == [f'class {i}' for i in range(nclass)]


def test_the_returned_lists_are_copies():
    names, colours = default_names('shapes', 7), default_colours('cityscapes', 19)
    names[0], colours[0] = 'changed', (1, 2, 3)
    assert default_names('shapes', 7)[0] == 'background'
    assert tuple(default_colours('cityscapes', 19)[0]) == (128, 64, 128)


@pytest.mark.parametrize('index, colour', [
    (0, (0, 0, 0)), (1, (128, 0, 0)), (2, (0, 128, 0)), (3, (128, 128, 0)), (4, (0, 0, 128)),
    (5, (128, 0, 128)), (7, (128, 128, 128)), (8, (64, 0, 0)), (15, (192, 128, 128)),
    (20, (0, 64, 128)), (255, (224, 224, 192))])
def test_pascal_colours_are_voc_s(index, colour):
    assert voc_colour(index) == colour
    if index < 21:
        assert tuple(default_colours('pascal', 21)[index]) == colour


@pytest.mark.parametrize('index, colour', [
    (0, (128, 64, 128)), (8, (107, 142, 35)), (10, (70, 130, 180)), (11, (220, 20, 60)),
    (13, (0, 0, 142)), (18, (119, 11, 32))])
def test_cityscapes_colours(index, colour):
    assert tuple(default_colours('cityscapes', 19)[index]) == colour


@pytest.mark.parametrize('dataset', ['mine', 'pascal', 'cityscapes', 'coco', 'camvid', 'shapes',
                                     'idd_lite'])
@pytest.mark.parametrize('nclass', [2, 3, 19, 40, 81, 255])
def test_any_number_of_classes_has_distinct_colours(dataset, nclass):
    colours = [tuple(colour) for colour in default_colours(dataset, nclass)]
    assert len(colours) == len(set(colours)) == nclass
    # No class has the colour of ignored pixels.
    assert IGNORE_COLOUR not in colours
    assert all(len(c) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in c)
               for c in colours)


@pytest.mark.parametrize('nclass', [7, 11, 19])
@pytest.mark.parametrize('dataset', ['mine', 'idd_lite'])
def test_colours_are_far_apart(dataset, nclass):
    colours = default_colours(dataset, nclass)
    assert min(sum(abs(a - b) for a, b in zip(one, other))
               for one, other in itertools.combinations(colours, 2)) > 45
