"""The data set that the package draws: the same anywhere, a long tail, and fit for training."""
import os

import numpy as np
import pytest
from PIL import Image

from dssn.config import load
from dssn.data import shapes
from dssn.data.classes import CLASSES
from dssn.data.__main__ import main
from dssn.data.lists import check_files, read_list
from dssn.data.loaders import TrainLoader, eval_loader
from dssn.data.shapes import draw, draw_set
from test_prepare import contents as tree

SPLITS = os.path.join(os.path.dirname(__file__), '..', 'splits', 'shapes')


def test_two_drawings_are_the_same_to_the_byte(tmp_path):
    for name in 'ab':
        assert draw_set(str(tmp_path / name), 4, 2, seed=5)
    first, second = tree(tmp_path / 'a'), tree(tmp_path / 'b')
    assert first == second
    assert sorted(first) == sorted(
        ['shapes.txt', 'train.txt', 'val.txt'] + ['images/train_%04d.jpg' % i for i in range(4)]
        + ['masks/train_%04d.png' % i for i in range(4)]
        + ['images/val_%04d.jpg' % i for i in range(2)]
        + ['masks/val_%04d.png' % i for i in range(2)])
    assert len({content for name, content in first.items() if name.startswith('images')}) == 6
    draw_set(str(tmp_path / 'c'), 4, 2, seed=6)
    third = tree(tmp_path / 'c')
    assert all(third[name] != first[name] for name in first if name.startswith('images'))


def test_an_image_does_not_depend_on_how_many_are_drawn(tmp_path):
    draw_set(str(tmp_path / 'a'), 2, 2)
    draw_set(str(tmp_path / 'b'), 3, 1)
    small, large = tree(tmp_path / 'a'), tree(tmp_path / 'b')
    for name in ('train_0000', 'train_0001', 'val_0000'):
        assert small['images/%s.jpg' % name] == large['images/%s.jpg' % name]
        assert small['masks/%s.png' % name] == large['masks/%s.png' % name]


def test_a_second_call_draws_nothing_and_a_broken_off_one_is_finished(tmp_path, monkeypatch):
    assert draw_set(str(tmp_path), 3, 1) is True
    before = tree(tmp_path)
    calls = []
    original = shapes.draw
    monkeypatch.setattr(shapes, 'draw', lambda rng: calls.append(1) or original(rng))
    assert draw_set(str(tmp_path), 3, 1) is False
    assert calls == [] and tree(tmp_path) == before
    # The note is written last: without it, drawing was broken off.
    os.remove(str(tmp_path / 'shapes.txt'))
    os.remove(str(tmp_path / 'images' / 'train_0001.jpg'))
    assert draw_set(str(tmp_path), 3, 1) is True
    assert len(calls) == 4 and tree(tmp_path) == before


def test_another_seed_draws_again(tmp_path):
    draw_set(str(tmp_path), 2, 1, seed=1)
    before = tree(tmp_path)
    assert draw_set(str(tmp_path), 2, 1, seed=2) is True
    assert tree(tmp_path)['images/train_0000.jpg'] != before['images/train_0000.jpg']


@pytest.fixture(scope='module')
def drawn():
    """(images, masks) of ninety drawings."""
    pairs = [draw(np.random.default_rng((1, i))) for i in range(90)]
    assert all(60 <= quality < 95 for _, _, quality in pairs)
    return [image for image, _, _ in pairs], [np.asarray(mask) for _, mask, _ in pairs]


def test_drawings_are_aligned_pairs_of_known_classes(drawn):
    images, masks = drawn
    for image, mask in zip(images, masks):
        assert image.mode == 'RGB' and image.size == shapes.SIZE == mask.shape[::-1]
        assert mask.dtype == np.uint8
    assert set(np.unique(masks)) == set(range(7)) == set(range(len(CLASSES['shapes'])))


def test_borders_hold_no_classes_in_between(monkeypatch):
    # Only crosses, class 6: a mask that was shrunk smoothly would hold classes 1 to 5 as well.
    monkeypatch.setattr(shapes, 'TAIL', (0, 0, 0, 0, 0, 1))
    for i in range(5):
        assert set(np.unique(draw(np.random.default_rng(i))[1])) == {0, 6}


def test_classes_have_a_long_tail(drawn):
    assert list(shapes.TAIL) == sorted(shapes.TAIL, reverse=True)
    assert len(shapes.TAIL) == 6 and abs(sum(shapes.TAIL) - 1) < 1e-9
    assert shapes.TAIL[0] > 2 * shapes.TAIL[-1]
    present = [sum((mask == index).any() for mask in drawn[1]) for index in range(7)]
    assert present[0] >= 85
    assert present[1] > 1.4 * present[6] and sum(present[1:3]) > 1.4 * sum(present[5:])
    assert min(present) > 5


def test_objects_overlap(monkeypatch):
    monkeypatch.setattr(shapes, 'TAIL', (1, 0, 0, 0, 0, 0))
    areas, original = [], shapes._fill

    def spy(*args):
        outline = original(*args)
        areas.append((np.asarray(outline) > 0).mean())
        return outline
    monkeypatch.setattr(shapes, '_fill', spy)
    covered = [(np.asarray(draw(np.random.default_rng(i))[1]) > 0).mean() for i in range(20)]
    assert sum(areas) > 1.15 * sum(covered)


def test_objects_are_turned():
    angles = []
    for i in range(20):
        place = shapes._placement(np.random.default_rng(i), 96, 96)
        (x, y), (right, below) = place([(0, 0), (1, 0)])
        angles.append(np.arctan2(below - y, right - x))
    assert len({round(angle) for angle in angles}) > 4


def colours(images, masks, kind):
    """Mean hue of a class, as a complex number (0: no colour), for each picture that shows it."""
    found = []
    for image, mask in zip(images, masks):
        hue, saturation, _ = [channel[mask == kind] / 255.0
                              for channel in np.asarray(image.convert('HSV')).transpose(2, 0, 1)]
        if len(hue) > 50:
            found.append((saturation * np.exp(2j * np.pi * hue)).mean())
    return np.array(found)


def test_colour_says_nothing_of_the_class(drawn):
    for kind in range(1, 7):
        found = colours(*drawn, kind)
        assert (abs(found) > 0.1).sum() > 10           # there is colour,
        assert abs(found.mean()) < 0.15                # and it points everywhere
    gray = [np.ptp(np.asarray(image), axis=2).max() == 0 for image in drawn[0]]
    assert 0.05 < np.mean(gray) < 0.4


def only(kind, number, monkeypatch):
    """(gray levels, mask) of pictures whose objects are all of one class."""
    monkeypatch.setattr(shapes, 'TAIL', tuple(float(i == kind) for i in range(1, 7)))
    for i in range(number):
        image, mask, _ = draw(np.random.default_rng((2, i)))
        yield np.asarray(image.convert('L')).astype(float), np.asarray(mask) == kind


@pytest.mark.parametrize('name, sign', [('disk', 1), ('ring', -1)])
def test_disks_are_brighter_than_the_ground_and_rings_darker(name, sign, monkeypatch):
    for gray, inside in only(CLASSES['shapes'].index(name), 15, monkeypatch):
        assert sign * (gray[inside].mean() - gray[~inside].mean()) > 10


def test_the_other_classes_show_a_pattern_of_dark_and_bright(monkeypatch):
    def spread(name):
        kind = CLASSES['shapes'].index(name)
        return np.mean([gray[inside].std() / gray[inside].mean()
                        for gray, inside in only(kind, 15, monkeypatch)])
    plain = max(spread('disk'), spread('ring') / 2)
    for name in ('square', 'triangle', 'star', 'cross'):
        assert spread(name) > 1.5 * plain, name


def test_objects_can_be_seen(drawn):
    # The image changes at the borders of the mask more than elsewhere: the two are aligned.
    inside, border = [], []
    for image, mask in zip(*drawn):
        gray = np.asarray(image.convert('L')).astype(float)
        step = np.abs(np.diff(gray, axis=1))
        edge = np.diff(mask.astype(int), axis=1) != 0
        inside.append(step[~edge].mean())
        border.append(step[edge].mean())
    assert np.mean(border) > 2 * np.mean(inside)


def test_drawn_files_go_through_the_real_pipeline(tmp_path):
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
                   'data_root: %s\n' % root)
    cfg = load(path)
    batches = list(TrainLoader(cfg, labeled, unlabeled).batches(0))
    assert len(batches) == 2
    assert all(set(np.unique(b.x.label.numpy())) <= set(range(7)) | {255} for b in batches)
    images = list(eval_loader(cfg, val))
    assert [tuple(image.shape) for image, _, _ in images] == [(3, 96, 96)] * 2


def test_the_command_says_what_it_did(tmp_path, capsys):
    arguments = ['shapes', '--root', str(tmp_path / 'new'), '--train', '1', '--val', '1']
    main(arguments)
    assert 'drawn' in capsys.readouterr().out
    main(arguments)
    assert 'already' in capsys.readouterr().out


@pytest.fixture
def full_lists(tmp_path, monkeypatch):
    """The folder of the whole data set, its pictures replaced by dots: only lists matter here."""
    dot = Image.new('RGB', (1, 1)), Image.new('L', (1, 1)), 60
    monkeypatch.setattr(shapes, 'draw', lambda rng: dot)
    main(['shapes', '--root', str(tmp_path / 'shapes')])
    return tmp_path / 'shapes'


def test_every_class_is_in_several_of_the_labeled_images():
    samples = read_list(os.path.join(SPLITS, '20', 'labeled.txt'))
    numbers = [int(os.path.splitext(sample.image)[0][-4:]) for sample in samples]
    masks = [draw(np.random.default_rng((shapes.SEED, number)))[1] for number in numbers]
    present = [sum((np.asarray(mask) == kind).any() for mask in masks) for kind in range(7)]
    assert min(present) >= 4, present


def test_committed_lists_are_those_that_the_commands_give(full_lists, tmp_path):
    # The ceiling of the README: everything labeled.
    assert tree(full_lists)['train.txt'] == tree(SPLITS)['full/labeled.txt']
    main(['split', str(full_lists / 'train.txt'), '--labeled', '20', '--seed', '0',
          '--out', str(tmp_path / '20')])
    made, committed = tree(tmp_path / '20'), tree(os.path.join(SPLITS, '20'))
    # A checkout on Windows may have other line ends.
    assert {name: text.split() for name, text in made.items()} == {
        name: text.split() for name, text in committed.items()}
    assert tree(full_lists)['val.txt'].split() == tree(SPLITS)['val.txt'].split()
    assert (len(read_list(os.path.join(SPLITS, '20', 'labeled.txt'))),
            len(read_list(os.path.join(SPLITS, '20', 'unlabeled.txt'), masks=False)),
            len(read_list(os.path.join(SPLITS, 'val.txt')))) == (20, 400, 120)
