"""Views of an image: geometry (compared with all allowed results), strong views, CutMix boxes."""
import itertools
import json
import os

import numpy as np
import pytest
from PIL import Image
from test_transforms import assert_fraction, assert_uniform, photo

from dssn.batch import MEAN, STD, normalise
from dssn.data import photometric as P
from dssn.data.datasets import to_tensor
from dssn.data.views import NO_BOX, base_view, cutmix_box, generator, strong_operations, strong_view
from dssn.methods.dssn import DSSNConfig

with open(os.path.join(os.path.dirname(__file__), 'data', 'augmentation_facts.json')) as file:
    COMMON = json.load(file)['common']


def test_generators_of_different_views_differ_and_of_the_same_view_agree():
    names = list(itertools.product(range(3), range(4), range(5), (0, 10, 11, 12, 20, 21, 100)))
    first = {generator(*name).random() for name in names}
    assert len(first) == len(names)
    assert generator(1, 2, 3, 4).random(5).tolist() == generator(1, 2, 3, 4).random(5).tolist()


def every_base_view(image, mask, side):
    """All allowed results: [(long side, flip, image array, mask bytes), ...]."""
    width, height = image.size
    long, short = max(image.size), min(image.size)
    low, high = COMMON['resize_ratio']
    found = []
    for new_long in range(max(int(low * long), 1), int(high * long) + 1):
        new_short = max(int(short * new_long / long + 0.5), 1)
        size = (new_long, new_short) if width >= height else (new_short, new_long)
        full = np.zeros((max(size[1], side), max(size[0], side), 3), np.uint8)
        label = np.full(full.shape[:2], 255, np.uint8)
        full[:size[1], :size[0]] = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        label[:size[1], :size[0]] = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
        for top in range(full.shape[0] - side + 1):
            for left in range(full.shape[1] - side + 1):
                window = slice(top, top + side), slice(left, left + side)
                for flip in (1, -1):
                    found.append((new_long, flip, full[window][:, ::flip].astype(int),
                                  label[window][:, ::flip].tobytes()))
    return found


@pytest.mark.parametrize('size, side', [
    ((12, 9), 8), ((9, 12), 8), ((20, 4), 8), ((4, 20), 8), ((1, 10), 8), ((10, 1), 8),
    ((1, 1), 8), ((3, 2), 9), ((14, 14), 8)])
def test_base_view_is_a_flipped_window_of_the_scaled_padded_pair(size, side):
    image = photo(*size)
    # Classes 0..6.
    mask = Image.fromarray((np.asarray(photo(*size, number=3))[..., 0] % 7).astype(np.uint8))
    allowed = every_base_view(image, mask, side)
    arrays = np.stack([view for _, _, view, _ in allowed])
    flips, longs, rng = [], [], np.random.default_rng(5)
    for _ in range(400):
        view, label = base_view(image, mask, side, rng)
        assert view.size == label.size == (side, side)
        # Rounding may differ by 2 grey levels. Different windows of noise differ by far more.
        near = np.nonzero(np.abs(arrays - np.asarray(view)).max((1, 2, 3)) <= 2)[0]
        assert len(near)
        matches = [allowed[i] for i in near if allowed[i][3] == label.tobytes()]
        assert matches, 'image and mask are not aligned'
        if len(matches) == 1:
            longs.append(matches[0][0])
            flips.append(matches[0][1])
    if max(size) > 3:
        assert_fraction(flips.count(-1), len(flips), COMMON['flip'])
        assert len(set(longs)) >= int(1.5 * max(size)) - 2


@pytest.mark.parametrize('size', [(12, 9), (5, 30), (1, 1), (40, 40)])
def test_without_a_mask_only_padding_is_marked(size):
    # The image has no black pixel, so black pixels of the view are padding.
    image = Image.fromarray(np.maximum(np.asarray(photo(*size)), 40))
    rng, padded = np.random.default_rng(1), 0
    for _ in range(100):
        view, mask = base_view(image, None, 16, rng)
        black = (np.asarray(view) == 0).all(axis=2)
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
        np.testing.assert_array_equal(np.asarray(mask) == 255, black)
        padded += black.any()
    # Every view of a single pixel is padded. No view is if half the image is larger than the crop.
    assert padded == {(1, 1): 100, (40, 40): 0}.get(size, padded) and (padded or size == (40, 40))


def test_base_view_is_the_same_with_and_without_a_mask():
    image = photo()
    for seed in range(20):
        with_mask, _ = base_view(image, Image.new('L', image.size), 12, generator(seed))
        without, _ = base_view(image, None, 12, generator(seed))
        assert with_mask.tobytes() == without.tobytes()


def test_colour_and_class_stay_together():
    # The colour of a pixel shows its class.
    colours = np.array([(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)], np.uint8)
    rows, columns = np.mgrid[:61, :83]
    classes = ((rows // 11) * 3 + columns // 17) % 4
    image = Image.fromarray(colours[classes])
    mask = Image.fromarray(classes.astype(np.uint8))
    for seed in range(30):
        view, label = (np.asarray(part) for part in base_view(image, mask, 64, generator(seed)))
        for index, colour in enumerate(colours):
            # Bilinear filtering mixes colours at the borders. A pure colour belongs to its class.
            pure = (np.abs(view.astype(int) - colour).max(axis=2) < 60)
            assert (label[pure] == index).all()
        assert (view[label == 255] == 0).all()


# Strong views.

JITTER = ('brightness', 'contrast', 'color', 'hue')


def test_strong_view_has_each_operation_with_its_probability_in_order():
    rng, n = np.random.default_rng(0), 20000
    sampled = [[name for name, _ in strong_operations(rng, DSSNConfig())] for _ in range(n)]
    # The four operations of the jitter occur together, in any order, or not at all.
    for names in sampled:
        if len(names) >= 4:
            assert set(names[:4]) == set(JITTER)
            names[:4] = ['jitter']
    order = ('jitter', 'grayscale', 'blur')
    chances = dict(zip(order, (COMMON['jitter'], COMMON['grayscale'], COMMON['blur'])))
    assert list(chances.values()) == [0.8, 0.2, 0.5]
    left = n
    for subset in itertools.product((False, True), repeat=3):
        names = [name for name, used in zip(order, subset) if used]
        chance = np.prod([chances[name] if used else 1 - chances[name]
                          for name, used in zip(order, subset)])
        assert_fraction(sampled.count(names), n, chance)
        left -= sampled.count(names)
    # There is no other order and no other operation. Without num_aug there is no pool.
    assert left == 0


@pytest.mark.parametrize('num_aug, random_number', [(1, True), (3, True), (3, False)])
def test_the_pool_comes_last_and_is_always_used(num_aug, random_number):
    counts = set()
    for seed in range(60):
        rng, again = generator(seed), generator(seed)
        operations = strong_operations(rng, DSSNConfig(
            num_aug=num_aug, flag_use_random_num_sampling=random_number))
        first = strong_operations(again, DSSNConfig())
        pool = P.strong_pool(again, num_aug, random_number)
        assert operations == first + pool and rng.random() == again.random()
        counts.add(len(pool))
    assert counts == (set(range(1, num_aug + 1)) if random_number else {num_aug})


def test_strong_view_applies_the_sampled_operations():
    image, cfg = photo(30, 20), DSSNConfig(num_aug=3)
    for seed in range(30):
        operations = strong_operations(generator(seed), cfg)
        expected = P.apply(operations, image)
        assert strong_view(image, generator(seed), cfg).tobytes() == expected.tobytes()
        # A box is (top, left, height, width).
        part = strong_view(image, generator(seed), cfg, box=(4, 7, 9, 11))
        assert part.tobytes() == expected.crop((7, 4, 18, 13)).tobytes()


def test_strong_view_keeps_size_and_positions():
    # A white square on black. Photometric operations blur it, but do not move it.
    values = np.zeros((40, 40, 3), np.uint8)
    values[10:30, 10:30] = 255
    for seed in range(40):
        view = strong_view(Image.fromarray(values), generator(seed), DSSNConfig())
        assert view.mode == 'RGB' and view.size == (40, 40)
        luma = np.asarray(view.convert('L')).astype(int)
        assert luma[15:25, 15:25].min() > luma[:3].max() and luma[:3].max() == luma[-3:].max()


def test_strong_operations_change_padding_too():
    # Much of the view is padding. Contrast must sometimes make its black brighter.
    lifted = 0
    for seed in range(30):
        view, mask = base_view(Image.new('RGB', (9, 9), (255, 255, 255)), None, 16, generator(seed))
        strong = np.asarray(strong_view(view, generator(seed, 1), DSSNConfig(num_aug=3)))
        padding = np.asarray(mask) == 255
        lifted += bool(padding.any() and strong[padding].max() > 0)
    assert lifted > 5


# CutMix boxes.

def test_half_of_the_views_have_a_box_inside_the_crop():
    rng, n, size = np.random.default_rng(0), 4000, 321
    boxes = [cutmix_box(size, rng) for _ in range(n)]
    assert NO_BOX == (0, 0, 0, 0)
    real = [box for box in boxes if box != NO_BOX]
    assert_fraction(len(real), n, COMMON['cutmix'])
    for top, left, height, width in real:
        assert height > 0 and width > 0 and top >= 0 and left >= 0
        assert top + height <= size and left + width <= size
    # The last row and column are reached.
    assert max(top + height for top, _, height, _ in real) == size
    assert max(left + width for _, left, _, width in real) == size


def test_box_probability_is_an_argument():
    rng = np.random.default_rng(0)
    assert {cutmix_box(50, rng, probability=0.0) for _ in range(50)} == {NO_BOX}
    assert NO_BOX not in {cutmix_box(50, rng, probability=1.0) for _ in range(50)}


def test_box_areas_and_ratios_are_those_published():
    # In a huge crop, rounding to whole pixels has little effect.
    rng, size = np.random.default_rng(0), 20000
    boxes = np.array([cutmix_box(size, rng, probability=1.0) for _ in range(6000)], float)
    area = boxes[:, 2] * boxes[:, 3] / size ** 2
    # The area is uniform although large boxes rarely fit, because it is sampled only once. Rounding
    # to whole pixels reduces it by at most 2 parts in 1500.
    low, high = COMMON['cutmix_area']
    assert area.min() > low * 0.998 and area.max() <= high
    assert_uniform(np.maximum(area, low), low, high)
    # Small boxes almost always fit, so their ratio is uniform.
    ratio = boxes[:, 2] / boxes[:, 3]
    least, most = COMMON['cutmix_ratio']
    assert ratio.min() > 0.995 * least and ratio.max() < 1.005 * most
    tiny = np.array([cutmix_box(size, rng, 1.0, area=(1e-4, 1e-4)) for _ in range(6000)], float)
    ratio = np.clip(tiny[:, 2] / tiny[:, 3], least, most)
    assert abs(np.median(ratio) - (least + most) / 2) < 0.06   # if log-uniform, it would be 1
    kept = np.sort((ratio - least) / (most - least))
    assert np.abs(kept - (np.arange(6000) + 0.5) / 6000).max() < 0.035
    # Their positions are uniform over all places where the box fits.
    assert_uniform(tiny[:, 0] / (size - tiny[:, 2]), 0, 1, bound=5)
    assert_uniform(tiny[:, 1] / (size - tiny[:, 3]), 0, 1, bound=5)


class Scripted:
    """A random generator that returns chosen numbers. The expected box is computed by hand."""

    def __init__(self, uniforms, places):
        self.uniforms, self.places = list(uniforms), list(places)
        self.ranges = []

    def random(self):
        return 0.1

    def uniform(self, low, high):
        self.ranges.append((low, high))
        return self.uniforms.pop(0)

    def integers(self, low, high, n):
        assert (low, high, n) == (0, 100, 2)
        return np.array(self.places.pop(0))


def test_ratio_and_place_are_sampled_until_the_box_fits():
    # An area of 0.2 of 100 x 100 is 2000 pixels. Ratio 2 is 63 x 31 (63.2 and 31.6, rounded down),
    # ratio 0.5 is 31 x 63.
    rng = Scripted([0.2, 2.0, 2.0, 0.5, 0.5], [(38, 0), (0, 70), (69, 38), (69, 37)])
    assert cutmix_box(100, rng) == (69, 37, 31, 63)
    # The area is sampled once, the ratio each time.
    assert rng.ranges == [(0.02, 0.4)] + [(0.3, 1 / 0.3)] * 4
    assert not rng.uniforms and not rng.places


def test_smallest_crop_has_boxes_too():
    rng = np.random.default_rng(0)
    for _ in range(300):
        top, left, height, width = cutmix_box(8, rng)
        assert top + height <= 8 and left + width <= 8


# Colours and normalisation.

def test_channels_are_red_green_blue_and_black_padding_is_minus_mean_over_deviation():
    image = Image.new('RGB', (2, 3))
    image.putpixel((1, 2), (255, 51, 102))
    tensor = to_tensor(image)
    assert tuple(tensor.shape) == (3, 3, 2) and tensor.dtype.is_floating_point is False
    assert tensor[:, 2, 1].tolist() == [255, 51, 102]
    assert list(MEAN) == COMMON['mean'] and list(STD) == COMMON['std']
    expected = (np.array([1, 0.2, 0.4]) - COMMON['mean']) / COMMON['std']
    normal = normalise(tensor[None])[0]
    np.testing.assert_allclose(normal[:, 2, 1].numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(normal[:, 0, 0].numpy(),
                               -np.array(COMMON['mean']) / COMMON['std'], rtol=1e-5)
