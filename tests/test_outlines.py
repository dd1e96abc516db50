"""Outlines of regions: rendered again they give the mask back; neighbours share their border."""
import os

import numpy as np
import pytest
from PIL import Image

from dssn.data.lists import read_list
from dssn.data.regions import inside
from dssn.inference.outlines import components, outlines, sieve


def render(found, size):
    mask = np.full(size, 255, np.uint8)
    for outline in found:
        mask[inside(outline.polygon, size)] = outline.value
    return mask


def blobs(seed, ignored=False):
    """Cells of up to four classes, of random size, with single pixels of others."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 5))
    mask = rng.integers(0, classes, rng.integers(1, 9, 2)).astype(np.uint8)
    mask = np.kron(mask, np.ones(rng.integers(1, 6, 2), np.uint8))
    specks = rng.random(mask.shape) < 0.1
    mask[specks] = rng.integers(0, classes, specks.sum())
    if ignored:
        mask[mask == classes - 1] = 255
    return mask


def slow_components(mask):
    """The pixels that a walk over sides of one class reaches, a set for each region."""
    found, left = [], {tuple(pixel) for pixel in np.argwhere(mask >= 0).tolist()}
    while left:
        region, todo = set(), [min(left)]
        while todo:
            row, column = todo.pop()
            if (row, column) in left:
                left.remove((row, column))
                region.add((row, column))
                todo += [p for p in ((row + 1, column), (row - 1, column), (row, column + 1),
                                     (row, column - 1))
                         if p in left and mask[p] == mask[row, column]]
        found.append(region)
    return found


@pytest.mark.parametrize('seed', range(20))
def test_components(seed):
    mask = blobs(seed, seed % 2)
    parts = components(mask)
    expected = slow_components(mask)
    assert sorted(np.unique(parts)) == list(range(len(expected)))
    for region in expected:
        assert len({parts[pixel] for pixel in region}) == 1


@pytest.mark.parametrize('seed', range(40))
def test_a_small_tolerance_is_exact(seed):
    mask = blobs(seed, seed % 2)
    for tolerance in (0, 0.35):
        found = outlines(mask, tolerance)
        assert (render(found, mask.shape) == mask).all()
        # One polygon for each region, and nothing outside of the image.
        assert sorted(o.value for o in found) == sorted(
            mask[min(region)] for region in slow_components(mask) if mask[min(region)] != 255)
        for outline in found:
            assert (outline.polygon >= 0).all()
            assert (outline.polygon <= mask.shape[::-1]).all()


@pytest.mark.parametrize('tolerance', [0.7, 1.5, 4])
def test_neighbours_leave_no_gap(tolerance):
    rng = np.random.default_rng(1)
    # Wavy stripes that cross the image, so that every border has fixed ends.
    x, y = np.meshgrid(np.arange(80), np.arange(60))
    wave = y + 6 * np.sin(x / 7) + 3 * np.sin(x / 3 + rng.uniform(0, 6))
    mask = np.digitize(wave, [15, 30, 45]).astype(np.uint8)
    found = outlines(mask, tolerance)
    covered = sum(inside(outline.polygon, mask.shape).astype(int) for outline in found)
    assert (covered == 1).all()
    # Pixels change only near a border, and larger tolerances need fewer points.
    for row, column in np.argwhere(render(found, mask.shape) != mask):
        reach = int(tolerance) + 2
        near = mask[max(row - reach, 0):row + reach, max(column - reach, 0):column + reach]
        assert len(np.unique(near)) > 1
    assert sum(len(o.polygon) for o in found) < sum(len(o.polygon) for o in outlines(mask, 0.35))


def test_a_region_in_a_hole_lies_on_top_and_an_ignored_hole_is_cut_out():
    mask = np.zeros((20, 30), np.uint8)
    mask[3:17, 3:15] = 1
    mask[5:15, 5:13] = 2
    mask[7:9, 7:9] = 1
    mask[5:9, 20:24] = 255
    found = outlines(mask)
    assert [(o.value, o.depth) for o in found] == [(0, 0), (1, 1), (2, 2), (1, 3)]
    # The background is one polygon that goes round the ignored hole, and covers the other one.
    covered = inside(found[0].polygon, mask.shape)
    assert (covered == (mask != 255)).all()
    # An ignored pixel deep in a hole has all the regions around it cut.
    mask[8, 8] = 255
    assert all(not inside(o.polygon, mask.shape)[8, 8] for o in outlines(mask))


def test_small_regions_join_their_largest_neighbour():
    mask = np.zeros((12, 20), np.uint8)
    mask[:, 12:] = 1
    mask[2:4, 2:4] = 2        # an island of 4 pixels
    mask[6, 11:14] = 3        # of 3 pixels, between both; 0 is larger
    mask[9, 3] = 255          # ignored pixels stay
    mask[2:5, 14:18] = 4      # of 12 pixels with a hole of one
    mask[3, 15] = 5
    found = sieve(mask, 5)
    expected = np.where(np.arange(20) < 12, 0, 1).astype(np.uint8) * np.ones((12, 1), np.uint8)
    expected[6, 11:14] = 0
    expected[9, 3] = 255
    expected[2:5, 14:18] = 4
    assert (found == expected).all()
    assert (sieve(mask, 1) == mask).all() and (sieve(mask, 0) == mask).all()
    # Everything is small: one class is left.
    noise = np.random.default_rng(0).integers(0, 9, (7, 7)).astype(np.uint8)
    assert len(np.unique(sieve(noise, 1000))) == 1


@pytest.mark.parametrize('mask', [
    np.zeros((1, 1), np.uint8), np.full((3, 4), 255, np.uint8), np.zeros((1, 9), np.uint8),
    np.eye(6, dtype=np.uint8), np.arange(6, dtype=np.uint8).reshape(2, 3)])
def test_edges(mask):
    assert (render(outlines(mask, 0.35), mask.shape) == mask).all()


def test_a_small_region_does_not_vanish():
    mask = np.zeros((30, 30), np.uint8)
    mask[10:13, 10:13] = 1
    found = outlines(mask, 20)
    assert [o.value for o in found] == [0, 1]
    assert inside(found[1].polygon, mask.shape).any()


@pytest.mark.parametrize('variable, listed', [('DSSN_CAMVID', 'val.txt'),
                                              ('DSSN_IDD_LITE', 'lists/val.txt')])
def test_real_masks(variable, listed):
    """The IoU of the masks with themselves, exported with the defaults and rendered again."""
    root = os.environ.get(variable)
    if not root:
        pytest.skip(f'{variable} is not set')
    shared, either = np.zeros(255), np.zeros(255)
    for sample in read_list(os.path.join(root, listed))[::40]:
        with Image.open(os.path.join(root, sample.mask)) as image:
            mask = np.array(image)
        back = render(outlines(mask, 0.5, 10), mask.shape)
        for value in set(np.unique(mask).tolist()) - {255}:
            shared[value] += ((mask == value) & (back == value)).sum()
            either[value] += ((mask == value) | (back == value)).sum()
    assert (shared[either > 0] / either[either > 0]).mean() >= 0.98
