"""From row indices to the rows of a batch: opened files, views, alignment, padding, partners."""
import itertools
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image

from dssn.data import datasets, views
from dssn.data.datasets import (
    PARTNER,
    UNLABELED,
    EvalSet,
    RowIndices,
    TrainSet,
    weak_ground_truth,
)
from dssn.data.lists import Sample, check_files, read_list
from dssn.errors import UserError


def train_set(world, **overrides):
    cfg = world.load(**overrides)
    labeled, unlabeled = read_list(world.labeled), read_list(world.unlabeled, masks=False)
    return TrainSet(cfg, labeled, unlabeled)


def same(a, b):
    """Whether two parts of a batch hold the same numbers."""
    return all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.fixture
def opened(monkeypatch):
    """The list of every file that the data set opens, in order."""
    names = []

    def recorded(function):
        def call(root, sample, *rest):
            names.append(sample.mask if rest else sample.image)
            return function(root, sample, *rest)
        return call
    for name in ('open_image', 'open_image_and_header', 'open_mask'):
        monkeypatch.setattr(datasets, name, recorded(getattr(datasets, name)))
    return names


def test_types_shapes_and_positions(tiny_world):
    x, u, v = train_set(tiny_world())[RowIndices(3, 0, 7, 2, 0)]
    assert x.image.shape == (3, 33, 33) and x.image.dtype == torch.uint8
    assert x.label.shape == (33, 33) and x.label.dtype == torch.uint8
    assert int(x.index) == 3 and int(u.index) == 7 and int(v.index) == 2
    for part in (u, v):
        for view in (part.weak, part.strong1, part.strong2):
            assert view.shape == (3, 33, 33) and view.dtype == torch.uint8
        assert part.valid.shape == (33, 33) and part.valid.dtype == torch.bool
        assert part.box1.shape == part.box2.shape == (4,)
        assert part.box1.dtype == part.box2.dtype == torch.int64


def test_supervised_rows_open_no_unlabeled_image(tiny_world, opened):
    world = tiny_world(method='supervised')
    batch = TrainSet(world.load(), read_list(world.labeled))[RowIndices(1, 4)]
    assert batch.unlabeled is None and batch.partner is None and int(batch.labeled.index) == 1
    assert opened == ['images/labeled1.jpg', 'masks/labeled1.png']


@pytest.mark.parametrize('partner, images', [(5, ['unlabeled5.jpg']),
                                             (2, ['unlabeled5.jpg', 'unlabeled2.jpg']),
                                             (None, ['unlabeled5.jpg'])])
def test_each_image_is_decoded_once(tiny_world, opened, partner, images):
    train_set(tiny_world())[RowIndices(0, 0, 5, partner, 0)]
    assert opened == ['images/labeled0.jpg', 'masks/labeled0.png'] + ['images/' + i for i in images]


def test_a_row_without_a_partner_of_its_own_is_otherwise_the_same(tiny_world):
    data = train_set(tiny_world())
    row, other = [data[RowIndices(0, 0, 5, partner, 0)] for partner in (None, 2)]
    assert row.partner is None
    assert all(torch.equal(a, b) for a, b in zip(row.unlabeled, other.unlabeled))


class Coloured:
    """Images whose colour is their class, in lossless files, with a list that names some masks."""

    def __init__(self, root, sizes, masked):
        self.colours = np.array([(0, 60, 250), (255, 0, 10), (90, 240, 0)], np.uint8)
        self.samples, rng = [], np.random.default_rng(3)
        for i, (width, height) in enumerate(sizes):
            mask = np.kron(rng.integers(0, 3, (3, 4)), np.ones((height // 3 + 1, width // 4 + 1)))
            mask = mask[:height, :width].astype(np.uint8)
            Image.fromarray(self.colours[mask]).save(str(root / f'i{i}.png'))
            Image.fromarray(mask).save(str(root / f'm{i}.png'))
            name = f'm{i}.png' if masked[i] else None
            self.samples.append(Sample(f'i{i}.png', name, f'list line {i + 1}'))


@pytest.mark.parametrize('crop', [33, 65])
def test_ground_truth_is_cropped_like_the_weak_view(tiny_world, tmp_path, crop):
    world = Coloured(tmp_path, [(60, 44), (31, 80), (50, 50)], [True, True, True])
    cfg = tiny_world().load(data_root=str(tmp_path), crop_size=crop)
    data = TrainSet(cfg, world.samples, world.samples)
    clear, flipped = 0, set()
    for number, (index, partner) in itertools.product(range(6), [(0, 1), (1, 2), (2, 2)]):
        _, u, v = data[RowIndices(0, 0, index, partner, number)]
        for view, position, role in ((u, index, UNLABELED), (v, partner, PARTNER)):
            label = weak_ground_truth(cfg, world.samples, position, number, role)
            assert label.shape == (crop, crop) and label.dtype == torch.uint8
            # Every pixel of the image has a class, so a pixel without one is padding.
            assert torch.equal(label == 255, ~view.valid)
            pixels = view.weak.permute(1, 2, 0).numpy()
            for c, colour in enumerate(world.colours):
                pure = torch.from_numpy((pixels == colour).all(2)) & view.valid
                assert bool((label[pure] == c).all())
                clear += int(pure.sum()) / int(view.valid.sum())
        flipped.add(torch.equal(weak_ground_truth(cfg, world.samples, index, number),
                                weak_ground_truth(cfg, world.samples, index, number, PARTNER)))
    assert clear > 0.6 * 36 and False in flipped  # most pixels were compared


def test_ground_truth_if_the_list_names_no_mask(tiny_world, tmp_path):
    world = Coloured(tmp_path, [(60, 44)], [False])
    cfg = tiny_world().load(data_root=str(tmp_path))
    label = weak_ground_truth(cfg, world.samples, 0, 0)
    assert label.shape == (33, 33) and bool((label == 255).all())


@pytest.mark.parametrize('bad, message', [
    (np.zeros((44, 59), np.uint8), '59x44'), (np.full((44, 60), 9, np.uint8), 'value 9'),
    (None, 'no file m0.png')])
def test_ground_truth_of_a_bad_mask_is_an_error(tiny_world, tmp_path, bad, message):
    world = Coloured(tmp_path, [(60, 44)], [True])
    os.remove(str(tmp_path / 'm0.png'))
    if bad is not None:
        Image.fromarray(bad).save(str(tmp_path / 'm0.png'))
    with pytest.raises(UserError, match='list line 1.*' + message):
        weak_ground_truth(tiny_world().load(data_root=str(tmp_path)), world.samples, 0, 0)


def test_ground_truth_has_255_at_the_ignore_index(tiny_world, tmp_path):
    world = Coloured(tmp_path, [(60, 44)], [True])
    Image.fromarray(np.full((44, 60), 77, np.uint8)).save(str(tmp_path / 'm0.png'))
    cfg = tiny_world().load(data_root=str(tmp_path), ignore_index=77)
    assert bool((weak_ground_truth(cfg, world.samples, 0, 0) == 255).all())


def test_masks_that_an_unlabeled_list_names_are_never_opened(tiny_world, opened):
    world = tiny_world()
    with open(world.unlabeled) as file:
        lines = [line.strip() + ' masks/not_there.png\n' for line in file]
    with open(world.unlabeled, 'w') as file:
        file.writelines(lines)
    data = train_set(world)
    check_files(data.unlabeled, world.root, masks=False)
    assert data.unlabeled[0].mask == 'masks/not_there.png'
    assert not isinstance(data[RowIndices(0, 0, 5, 2, 0)], UserError)
    assert 'masks/not_there.png' not in opened


def test_a_view_depends_only_on_its_sample_and_its_pass(tiny_world):
    data = train_set(tiny_world())
    x, u, v = data[RowIndices(1, 0, 4, 6, 0)]
    assert same(x, data[RowIndices(1, 0, 3, 3, 5)].labeled)      # with any other unlabeled image
    assert not torch.equal(x.image, data[RowIndices(1, 1, 4, 6, 0)].labeled.image)
    assert same(u, data[RowIndices(2, 7, 4, 1, 0)].unlabeled)
    assert torch.equal(v.weak, data[RowIndices(2, 7, 3, 6, 0)].partner.weak)
    other_pass = data[RowIndices(1, 0, 4, 6, 1)]
    assert same(x, other_pass.labeled)
    assert not torch.equal(u.weak, other_pass.unlabeled.weak)
    assert not torch.equal(v.weak, other_pass.partner.weak)


def test_views_depend_on_the_seed(tiny_world):
    world = tiny_world()
    indices = RowIndices(1, 0, 4, 6, 0)
    first, again, other = (train_set(world, seed=seed)[indices] for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other):
        assert same(a, b) and not torch.equal(a[0], c[0])  # image or weak view


def test_views_do_not_use_the_global_random_generators(tiny_world):
    data = train_set(tiny_world(), num_aug=3)
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        states.append([part for batch in [data[RowIndices(1, 0, i, i, 0)] for i in range(5)]
                       for part in batch])
        # Their states have not changed. Otherwise workers would change the dropout.
        after = torch.rand(1), np.random.rand(), random.random()
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        assert after == (torch.rand(1), np.random.rand(), random.random())
    assert all(same(a, b) for a, b in zip(*states))


def test_every_view_has_its_own_random_generator(tiny_world, monkeypatch):
    keys = []
    monkeypatch.setattr(datasets, 'generator', lambda *key: keys.append(key) or (
        np.random.default_rng(key)))
    data = train_set(tiny_world())
    for indices in (RowIndices(4, 3, 4, 4, 3), RowIndices(2, 3, 2, 2, 3)):
        data[indices]
    # The base view of the labeled image; the base view, two strong views and two boxes of the
    # unlabeled image; the base view of the partner.
    assert len(keys) >= 2 * 7 and len(set(keys)) == len(keys)


def test_both_strong_views_come_from_the_weak_view(tiny_world, monkeypatch):
    # With strong operations that do nothing, the strong views are the weak view.
    monkeypatch.setattr(views, 'strong_operations', lambda *_: [])
    data = train_set(tiny_world())
    for i in range(5):
        _, u, v = data[RowIndices(0, 0, i, 8 - i, 0)]
        for part in (u, v):
            assert torch.equal(part.weak, part.strong1) and torch.equal(part.weak, part.strong2)


def test_strong_views_are_sampled_independently(tiny_world):
    data = train_set(tiny_world(), num_aug=3)
    equal = 0
    for i in range(9):
        u = data[RowIndices(0, 0, i, i, 0)].unlabeled
        equal += torch.equal(u.strong1, u.strong2)
        assert not (torch.equal(u.strong1, u.weak) and torch.equal(u.strong2, u.weak))
    # Both views may have no operation (probability 0.2 * 0.8 * 0.5 each), or one without effect.
    assert equal <= 2


@pytest.mark.parametrize('num_aug, random_number', [(0, True), (3, True), (2, False)])
def test_the_strong_pool_follows_the_config(tiny_world, monkeypatch, num_aug, random_number):
    calls = []
    monkeypatch.setattr(views, 'strong_operations', lambda rng, cfg: (
        calls.append((cfg.num_aug, cfg.flag_use_random_num_sampling)) or []))
    train_set(tiny_world(), num_aug=num_aug, flag_use_random_num_sampling=random_number)[
        RowIndices(0, 0, 1, 1, 0)]
    assert len(calls) >= 2 and set(calls) == {(num_aug, random_number)}


def test_the_partner_has_the_same_boxes_and_the_two_boxes_are_independent(tiny_world):
    data = train_set(tiny_world(n_unlabeled=2, size=(12, 12)), crop_size=17)
    kinds = []
    for epoch in range(160):
        _, u, v = data[RowIndices(0, 0, 0, 1, epoch)]
        assert torch.equal(u.box1, v.box1) and torch.equal(u.box2, v.box2)
        kinds.append((bool(u.box1.any()), bool(u.box2.any())))
        for top, left, height, width in (u.box1.tolist(), u.box2.tolist()):
            assert top + height <= 17 and left + width <= 17
        if u.box1.any():
            assert not torch.equal(u.box1, u.box2)
    # Each view has a box with probability 0.5: each combination has probability 0.25.
    for kind in itertools.product((True, False), repeat=2):
        assert abs(kinds.count(kind) - 40) < 5 * 5.5


@pytest.mark.parametrize('num_aug', [0, 3])
def test_a_partner_is_strong_only_in_its_boxes(tiny_world, monkeypatch, num_aug):
    calls = []
    original = datasets.strong_view
    monkeypatch.setattr(datasets, 'strong_view', lambda image, rng, *rest: (
        calls.append(1) or original(image, rng, *rest)))
    data, seen = train_set(tiny_world(n_unlabeled=2), num_aug=num_aug), set()
    for epoch in range(24):
        indices = RowIndices(0, 0, 0, 1, epoch)
        del calls[:]
        _, u, v = data[indices]
        boxes = [tuple(box.tolist()) for box in (u.box1, u.box2)]
        assert len(calls) == 2 + sum(map(any, boxes))
        weak = Image.fromarray(v.weak.permute(1, 2, 0).numpy())
        for view, (top, left, height, width), strong in zip(
                (datasets.STRONG1, datasets.STRONG2), boxes, (v.strong1, v.strong2)):
            whole = original(weak, data.rng(indices, 1, PARTNER + view), data.cfg)
            expected = v.weak.clone()
            inside = np.s_[top:top + height, left:left + width]
            expected[(slice(None),) + inside] = torch.from_numpy(
                np.array(whole)[inside]).permute(2, 0, 1)
            assert torch.equal(strong, expected)
        seen.add(tuple(map(any, boxes)))
    assert len(seen) == 4


def test_partner_same_is_another_view_of_the_same_image(tiny_world):
    data = train_set(tiny_world(n_unlabeled=12), cutmix_partner='same')
    differ = 0
    for i in range(12):
        _, u, v = data[RowIndices(0, 0, i, i, 0)]
        assert int(u.index) == int(v.index) == i
        differ += not torch.equal(u.weak, v.weak)
    assert differ == 12


# Alignment and padding.

CLASS_COLOURS = np.array([(250, 10, 10), (10, 250, 10), (10, 10, 250)], np.uint8)


def lossless_world(tiny_world, size):
    """A world of lossless images: the colour of a pixel shows its class. No colour is dark."""
    world = tiny_world(n_labeled=2, n_unlabeled=2, n_val=1, size=size)
    for name in ('labeled0', 'labeled1', 'val0'):
        mask = np.asarray(Image.open(os.path.join(world.root, 'masks', name + '.png')))
        Image.fromarray(CLASS_COLOURS[mask]).save(
            os.path.join(world.root, 'images', name + '.jpg'), format='PNG')
    for i in range(2):
        Image.new('RGB', size, (90, 100, 110)).save(
            os.path.join(world.root, 'images', f'unlabeled{i}.jpg'), format='PNG')
    return world


@pytest.mark.parametrize('size', [(40, 30), (1, 50), (50, 1), (1, 1), (90, 70), (10, 8), (33, 33)])
def test_labels_move_with_their_pixels_and_padding_is_ignored(tiny_world, size):
    data = train_set(lossless_world(tiny_world, size))
    clear = 0
    for labeled, number in itertools.product((0, 1), range(15)):
        x, u, _ = data[RowIndices(labeled, number, labeled, labeled, number)]
        image = x.image.permute(1, 2, 0).numpy().astype(int)
        label = x.label.numpy()
        np.testing.assert_array_equal(label == 255, (image == 0).all(axis=2))
        assert set(np.unique(label)) <= {0, 1, 2, 255}
        for index, colour in enumerate(CLASS_COLOURS):
            # Only pixels away from the borders: there bilinear filtering mixes colours.
            pure = np.abs(image - colour).max(axis=2) < 60
            assert (label[pure] == index).all()
            clear += pure.sum()
        padding = (u.weak == 0).all(dim=0)
        assert torch.equal(u.valid, ~padding)
    assert clear > 0


def test_a_mirrored_image_is_mirrored_with_its_padding(tiny_world):
    # Padding is at the right and at the bottom before the flip, so at the left after it.
    data = train_set(lossless_world(tiny_world, (10, 8)))
    sides = set()
    for number in range(20):
        valid = data[RowIndices(0, 0, 0, 0, number)].unlabeled.valid
        assert valid[0].any() and not valid[-1].any()
        assert bool(valid[0, 0]) != bool(valid[0, -1])
        sides.add(bool(valid[0, 0]))
    assert sides == {True, False}


def test_pixels_arrive_as_red_green_blue(tiny_world):
    data = train_set(lossless_world(tiny_world, (40, 30)))
    weak = data[RowIndices(0, 0, 0, 0, 0)].unlabeled.weak
    valid = data[RowIndices(0, 0, 0, 0, 0)].unlabeled.valid
    assert [int(channel[valid].max()) for channel in weak] == [90, 100, 110]


# Errors, and evaluation.

def test_the_item_of_a_bad_file_is_an_error_with_its_line(tiny_world):
    world = tiny_world(max_bad_samples=0)
    data = train_set(world)
    with open(os.path.join(world.root, 'images', 'unlabeled4.jpg'), 'wb') as file:
        file.write(b'no image')
    for indices in (RowIndices(0, 0, 4, 2, 0), RowIndices(0, 0, 2, 4, 0)):
        item = data[indices]
        assert isinstance(item, UserError)
        assert str(item).startswith(world.unlabeled + ' line 5: ')
    assert not isinstance(data[RowIndices(0, 0, 2, 3, 0)], UserError)


def test_the_next_readable_sample_replaces_a_bad_one(tiny_world):
    world = tiny_world(cutmix_partner='other')
    data = train_set(world)
    for name in ('unlabeled4', 'unlabeled5', 'unlabeled8'):
        with open(os.path.join(world.root, 'images', name + '.jpg'), 'wb') as file:
            file.write(b'no image')
    for indices, replaced, paths in (
            (RowIndices(0, 0, 4, 2, 0), RowIndices(0, 0, 6, 2, 0), ['unlabeled4']),
            (RowIndices(0, 0, 2, 5, 0), RowIndices(0, 0, 2, 6, 0), ['unlabeled5']),
            (RowIndices(0, 3, 8, 8, 1), RowIndices(0, 3, 0, 0, 1), ['unlabeled8'])):
        found, expected = data[indices], data[replaced]
        assert [path for path, _ in found.files] == [f'images/{p}.jpg' for p in paths]
        for path, text in found.files:
            assert path in text and 'replaced by' in text and ' line ' in text
        for part, same in zip(found.row, expected):
            assert all(torch.equal(a, b) for a, b in zip(part, same))


@pytest.mark.parametrize('file', ['images/labeled0.jpg', 'masks/labeled0.png'])
def test_a_labeled_sample_is_not_replaced(tiny_world, file):
    world = tiny_world()
    Image.new('L', (41, 30), 9).save(os.path.join(world.root, file))
    item = train_set(world)[RowIndices(0, 0, 1, 1, 0)]
    assert isinstance(item, UserError) and 'labeled0.' in str(item)


def test_no_sample_is_replaced_if_all_are_bad_or_the_data_root_is_missing(tiny_world):
    world = tiny_world()
    data = train_set(world)
    for i in range(9):
        os.remove(os.path.join(world.root, 'images', f'unlabeled{i}.jpg'))
    assert isinstance(data[RowIndices(1, 0, 1, 1, 0)], UserError)
    world = tiny_world()
    data = train_set(world)
    os.rename(world.root, world.root + '.away')
    assert 'images/labeled1.jpg' in str(data[RowIndices(1, 0, 1, 1, 0)])


def test_evaluation_has_whole_images_in_list_order(tiny_world):
    world = lossless_world(tiny_world, (40, 30))
    cfg = world.load()
    data = EvalSet(cfg, read_list(world.val) + read_list(world.labeled))
    assert len(data) == 3
    for i, (width, height) in enumerate([(40, 30), (40, 30), (30, 40)]):
        image, label, position = data[i]
        assert position == i and image.dtype == torch.uint8 and label.dtype == torch.uint8
        assert tuple(label.shape) == (height, width) and tuple(image.shape) == (3, height, width)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), CLASS_COLOURS[label.numpy()])


def test_evaluation_reports_a_bad_mask(tiny_world):
    world = tiny_world()
    Image.new('L', (40, 30), 77).save(os.path.join(world.root, 'masks', 'val0.png'))
    item = EvalSet(world.load(), read_list(world.val))[0]
    assert isinstance(item, UserError)
    assert 'val.txt line 1' in str(item) and 'value 77' in str(item)
