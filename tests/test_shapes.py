"""The rendered data set: it is reproducible, has a long tail, and can be trained on."""
import os

import numpy as np
import pytest
from PIL import Image
from test_prepare import contents as tree

from dssn.__main__ import main
from dssn.config import load
from dssn.data.classes import CLASSES
from dssn.data.lists import check_files, read_list
from dssn.data.loaders import TrainLoader, eval_loader
from dssn.tools.data import shapes
from dssn.tools.data.shapes import render, render_dataset

SPLITS = os.path.join(os.path.dirname(__file__), '..', 'splits', 'shapes')


def test_two_renderings_are_identical(tmp_path):
    for name in 'ab':
        assert render_dataset(str(tmp_path / name), 4, 2, seed=5)
    first, second = tree(tmp_path / 'a'), tree(tmp_path / 'b')
    assert first == second
    assert sorted(first) == sorted(
        ['shapes.txt', 'train.txt', 'val.txt'] + [f'images/train_{i:04d}.jpg' for i in range(4)]
        + [f'masks/train_{i:04d}.png' for i in range(4)]
        + [f'images/val_{i:04d}.jpg' for i in range(2)]
        + [f'masks/val_{i:04d}.png' for i in range(2)])
    assert len({content for name, content in first.items() if name.startswith('images')}) == 6
    render_dataset(str(tmp_path / 'c'), 4, 2, seed=6)
    third = tree(tmp_path / 'c')
    assert all(third[name] != first[name] for name in first if name.startswith('images'))


def test_an_image_does_not_depend_on_the_number_of_images(tmp_path):
    render_dataset(str(tmp_path / 'a'), 2, 2)
    render_dataset(str(tmp_path / 'b'), 3, 1)
    small, large = tree(tmp_path / 'a'), tree(tmp_path / 'b')
    for name in ('train_0000', 'train_0001', 'val_0000'):
        assert small[f'images/{name}.jpg'] == large[f'images/{name}.jpg']
        assert small[f'masks/{name}.png'] == large[f'masks/{name}.png']


def test_a_second_call_renders_nothing_and_an_interrupted_one_is_repeated(tmp_path, monkeypatch):
    assert render_dataset(str(tmp_path), 3, 1) is True
    before = tree(tmp_path)
    calls = []
    original = shapes.render
    monkeypatch.setattr(shapes, 'render', lambda rng: calls.append(1) or original(rng))
    assert render_dataset(str(tmp_path), 3, 1) is False
    assert calls == [] and tree(tmp_path) == before
    # shapes.txt is written last. Without it, the data set is not complete.
    os.remove(str(tmp_path / 'shapes.txt'))
    os.remove(str(tmp_path / 'images' / 'train_0001.jpg'))
    assert render_dataset(str(tmp_path), 3, 1) is True
    assert len(calls) == 4 and tree(tmp_path) == before


def test_another_seed_renders_again(tmp_path):
    render_dataset(str(tmp_path), 2, 1, seed=1)
    before = tree(tmp_path)
    assert render_dataset(str(tmp_path), 2, 1, seed=2) is True
    assert tree(tmp_path)['images/train_0000.jpg'] != before['images/train_0000.jpg']


@pytest.fixture(scope='module')
def rendered():
    """(images, masks) of ninety renderings."""
    pairs = [render(np.random.default_rng((1, i))) for i in range(90)]
    assert all(60 <= quality < 95 for _, _, quality in pairs)
    return [image for image, _, _ in pairs], [np.asarray(mask) for _, mask, _ in pairs]


def test_images_and_masks_have_one_size_and_the_known_classes(rendered):
    images, masks = rendered
    for image, mask in zip(images, masks):
        assert image.mode == 'RGB' and image.size == shapes.SIZE == mask.shape[::-1]
        assert mask.dtype == np.uint8
    assert set(np.unique(masks)) == set(range(7)) == set(range(len(CLASSES['shapes'])))


def test_mask_borders_hold_no_other_classes(monkeypatch):
    # Only crosses, class 6. A mask that is reduced smoothly would hold classes 1 to 5, too.
    monkeypatch.setattr(shapes, 'CLASS_FREQUENCIES', (0, 0, 0, 0, 0, 1))
    for i in range(5):
        assert set(np.unique(render(np.random.default_rng(i))[1])) == {0, 6}


def test_classes_have_a_long_tail(rendered):
    assert list(shapes.CLASS_FREQUENCIES) == sorted(shapes.CLASS_FREQUENCIES, reverse=True)
    assert len(shapes.CLASS_FREQUENCIES) == 6 and abs(sum(shapes.CLASS_FREQUENCIES) - 1) < 1e-9
    assert shapes.CLASS_FREQUENCIES[0] > 2 * shapes.CLASS_FREQUENCIES[-1]
    present = [sum((mask == index).any() for mask in rendered[1]) for index in range(7)]
    assert present[0] >= 85
    assert present[1] > 1.4 * present[6] and sum(present[1:3]) > 1.4 * sum(present[5:])
    assert min(present) > 5


def test_objects_overlap(monkeypatch):
    monkeypatch.setattr(shapes, 'CLASS_FREQUENCIES', (1, 0, 0, 0, 0, 0))
    areas, original = [], shapes._fill

    def spy(*args):
        outline = original(*args)
        areas.append((np.asarray(outline) > 0).mean())
        return outline
    monkeypatch.setattr(shapes, '_fill', spy)
    covered = [(np.asarray(render(np.random.default_rng(i))[1]) > 0).mean() for i in range(20)]
    assert sum(areas) > 1.15 * sum(covered)


def test_objects_are_turned():
    angles = []
    for i in range(20):
        place = shapes._placement(np.random.default_rng(i), 96, 96)
        (x, y), (right, below) = place([(0, 0), (1, 0)])
        angles.append(np.arctan2(below - y, right - x))
    assert len({round(angle) for angle in angles}) > 4


def colours(images, masks, kind):
    """The mean hue of a class in each image, as a complex number; 0 means no colour."""
    found = []
    for image, mask in zip(images, masks):
        hue, saturation, _ = [channel[mask == kind] / 255.0
                              for channel in np.asarray(image.convert('HSV')).transpose(2, 0, 1)]
        if len(hue) > 50:
            found.append((saturation * np.exp(2j * np.pi * hue)).mean())
    return np.array(found)


def test_colour_does_not_depend_on_the_class(rendered):
    for kind in range(1, 7):
        found = colours(*rendered, kind)
        assert (abs(found) > 0.1).sum() > 10           # there is colour
        assert abs(found.mean()) < 0.15                # of all hues
    gray = [np.ptp(np.asarray(image), axis=2).max() == 0 for image in rendered[0]]
    assert 0.05 < np.mean(gray) < 0.4


def only(kind, number, monkeypatch):
    """Yield (gray levels, mask) of images whose objects are all of one class."""
    monkeypatch.setattr(shapes, 'CLASS_FREQUENCIES', tuple(float(i == kind) for i in range(1, 7)))
    for i in range(number):
        image, mask, _ = render(np.random.default_rng((2, i)))
        yield np.asarray(image.convert('L')).astype(float), np.asarray(mask) == kind


@pytest.mark.parametrize('name, sign', [('disk', 1), ('ring', -1)])
def test_disks_are_brighter_than_the_background_and_rings_darker(name, sign, monkeypatch):
    for gray, inside in only(CLASSES['shapes'].index(name), 15, monkeypatch):
        assert sign * (gray[inside].mean() - gray[~inside].mean()) > 10


def test_the_other_classes_have_a_pattern_of_dark_and_bright(monkeypatch):
    def spread(name):
        kind = CLASSES['shapes'].index(name)
        return np.mean([gray[inside].std() / gray[inside].mean()
                        for gray, inside in only(kind, 15, monkeypatch)])
    plain = max(spread('disk'), spread('ring') / 2)
    for name in ('square', 'triangle', 'star', 'cross'):
        assert spread(name) > 1.5 * plain, name


def test_objects_are_visible(rendered):
    # The image changes more at the borders of the mask than elsewhere, so the two are aligned.
    inside, border = [], []
    for image, mask in zip(*rendered):
        gray = np.asarray(image.convert('L')).astype(float)
        step = np.abs(np.diff(gray, axis=1))
        edge = np.diff(mask.astype(int), axis=1) != 0
        inside.append(step[~edge].mean())
        border.append(step[edge].mean())
    assert np.mean(border) > 2 * np.mean(inside)


def test_loaders_read_the_rendered_data_set(tmp_path):
    root = str(tmp_path / 'shapes')
    main(['shapes', '--root', root, '--train', '6', '--val', '2', '--seed', '3'])
    main(['split', root + '/train.txt', '--labeled', '2', '--out', str(tmp_path / 'split')])
    labeled = read_list(str(tmp_path / 'split' / 'labeled.txt'))
    unlabeled = read_list(str(tmp_path / 'split' / 'unlabeled.txt'), masks=False)
    val = read_list(root + '/val.txt')
    assert (len(labeled), len(unlabeled), len(val)) == (2, 4, 2)
    for samples, masks in ((labeled, True), (unlabeled, False), (val, True)):
        check_files(samples, root, masks)
    path = str(tmp_path / 'config.yaml')
    with open(path, 'w') as file:
        file.write('dataset: shapes\nnclass: 7\ncrop_size: 64\nbatch_size: 2\nworkers: 0\n'
                   f'data_root: {root}\n')
    cfg = load(path)
    batches = list(TrainLoader(cfg, labeled, unlabeled).batches(0))
    assert len(batches) == 2
    assert all(set(np.unique(b.labeled.label.numpy())) <= set(range(7)) | {255} for b in batches)
    images = list(eval_loader(cfg, val))
    assert [tuple(image.shape) for image, _, _ in images] == [(3, 96, 96)] * 2


@pytest.fixture
def full_lists(tmp_path, monkeypatch):
    """The folder of the whole data set. Its images are single pixels: only the lists are used."""
    dot = Image.new('RGB', (1, 1)), Image.new('L', (1, 1)), 60
    monkeypatch.setattr(shapes, 'render', lambda rng: dot)
    main(['shapes', '--root', str(tmp_path / 'shapes')])
    return tmp_path / 'shapes'


def test_every_class_is_in_several_of_the_labeled_images():
    samples = read_list(os.path.join(SPLITS, '20', 'labeled.txt'))
    numbers = [int(os.path.splitext(sample.image)[0][-4:]) for sample in samples]
    masks = [render(np.random.default_rng((shapes.SEED, number)))[1] for number in numbers]
    present = [sum((np.asarray(mask) == kind).any() for mask in masks) for kind in range(7)]
    assert min(present) >= 4, present


def test_committed_lists_are_those_of_the_commands(full_lists, tmp_path):
    # The fully supervised list.
    assert tree(full_lists)['train.txt'] == tree(SPLITS)['full/labeled.txt']
    main(['split', str(full_lists / 'train.txt'), '--labeled', '20', '--seed', '0',
          '--out', str(tmp_path / '20')])
    made, committed = tree(tmp_path / '20'), tree(os.path.join(SPLITS, '20'))
    # Line ends are not compared: a checkout on Windows may have other ones.
    assert {name: text.split() for name, text in made.items()} == {
        name: text.split() for name, text in committed.items()}
    assert tree(full_lists)['val.txt'].split() == tree(SPLITS)['val.txt'].split()
    assert (len(read_list(os.path.join(SPLITS, '20', 'labeled.txt'))),
            len(read_list(os.path.join(SPLITS, '20', 'unlabeled.txt'), masks=False)),
            len(read_list(os.path.join(SPLITS, 'val.txt')))) == (20, 400, 120)
