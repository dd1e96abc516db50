"""The pixels of shapes, against a test of each pixel's centre."""
import math

import numpy as np
import pytest

from dssn.data.regions import coco_region, from_runs, in_ellipse, inside, near_line, placed
from tests.test_prepare import box, runs_of

CENTRES = [(column + 0.5, row + 0.5) for row in range(17) for column in range(23)]


def covers_centre(polygon, column, row):
    """Whether the centre of a pixel is inside: count the edges that a ray to the right crosses."""
    px, py = column + 0.5, row + 0.5
    points, crossings = list(zip(polygon[::2], polygon[1::2])), 0
    for edge in zip(points, points[1:] + points[:1]):
        (x0, y0), (x1, y1) = sorted(edge, key=lambda point: point[1])
        if (y0 <= py) != (y1 <= py) and px >= x0 + (py - y0) * (x1 - x0) / (y1 - y0):
            crossings += 1
    return crossings % 2 == 1


@pytest.mark.parametrize('seed', range(12))
def test_polygons_match_a_ray_per_pixel(seed):
    rng = np.random.default_rng(seed)
    width, height = 23, 17
    # Polygons with odd seeds exceed the image. The edges of most polygons cross.
    low, high = (-6, 30) if seed % 2 else (0, 17)
    polygon = rng.uniform(low, high, 2 * int(rng.integers(3, 12))).round(seed % 4).tolist()
    region = inside(polygon, (height, width))
    backwards = np.reshape(polygon, (-1, 2))[::-1]
    expected = [[covers_centre(polygon, column, row) for column in range(width)]
                for row in range(height)]
    assert region.dtype == bool and (region == np.array(expected)).all()
    assert (inside(backwards, (height, width)) == region).all()


def test_every_pixel_belongs_to_one_of_two_neighbouring_polygons():
    left, right = inside(box(0, 0, 5, 8), (8, 9)), inside(box(5, 0, 9, 8), (8, 9))
    assert (left ^ right).all() and left.sum() == 40
    half = [inside(box(a, 0, b, 8), (8, 9)) for a, b in ((0, 4.5), (4.5, 9))]
    assert (half[0] ^ half[1]).all()


def test_degenerate_polygons_cover_nothing():
    for polygon in ([], [3, 3], [1, 1, 9, 9], box(2, 2, 8, 2), box(-9, -9, -1, -1),
                    box(50, 2, 60, 8)):
        assert not coco_region([polygon], (12, 12)).any()


def packed(runs):
    """Run lengths as COCO's packed text."""
    text = ''
    for i, run in enumerate(runs):
        number = run - (runs[i - 2] if i > 2 else 0)
        while True:
            bits, number = number % 32, number // 32
            done = (number == 0 and bits < 16) or (number == -1 and bits >= 16)
            text += chr(48 + bits + (0 if done else 32))
            if done:
                break
    return text


@pytest.mark.parametrize('seed', range(6))
def test_run_lengths_plain_and_packed(seed):
    rng = np.random.default_rng(seed)
    region = np.kron(rng.random((5, 7)) < 0.5, np.ones((1 + 9 * seed, 3 + seed))).astype(bool)
    runs, size = runs_of(region), list(region.shape)
    for counts in (runs, packed(runs)):
        assert (coco_region({'size': size, 'counts': counts}, region.shape) == region).all()


def test_a_packed_text_of_pycocotools():
    # A disc 13 pixels across in 20 x 15, as pycocotools packs it.
    rows, columns = np.mgrid[:15, :20]
    disc = (rows - 7) ** 2 + (columns - 9) ** 2 <= 36
    text = 'd11;6L2N2O000O20N10001N2N4Jh1'
    assert (coco_region({'size': [15, 20], 'counts': text}, (15, 20)) == disc).all()


def region_by(test):
    """The pixels (17, 23) for whose centre a test(x, y) holds."""
    return np.array([test(x, y) for x, y in CENTRES]).reshape(17, 23)


def from_segment(x, y, start, end):
    """The distance of a point from a segment: the least of many points on it."""
    return min(math.hypot(x - start[0] - t * (end[0] - start[0]),
                          y - start[1] - t * (end[1] - start[1])) for t in np.linspace(0, 1, 4001))


def test_circles_and_ellipses():
    circle = region_by(lambda x, y: math.hypot(x - 9, y - 8) <= 6.5)
    assert (in_ellipse((9, 8), (6.5, 6.5), 33, (17, 23)) == circle).all()
    # Turned by 90 degrees, the first radius is the vertical one. Part of it is outside.
    upright = region_by(lambda x, y: ((x - 3) / 4) ** 2 + ((y - 8) / 7) ** 2 <= 1)
    assert (in_ellipse((3, 8), (7, 4), 90, (17, 23)) == upright).all()
    # Clockwise: turned by 45 degrees, a thin one goes down to the right.
    thin = in_ellipse((11.5, 8.5), (8, 1), 45, (17, 23))
    assert thin[12, 15] and not thin[4, 15]
    assert not in_ellipse((9, 8), (0, 5), 0, (17, 23)).any()


@pytest.mark.parametrize('points, width', [
    ([(2, 3), (15.5, 11.25)], 3), ([(4, 4), (4, 12), (18, 12.5)], 5), ([(-9, 8), (40, 9)], 2.5),
    ([(7, 7), (7, 7)], 4), ([(-30, -30), (-20, -20)], 3)])
def test_lines(points, width):
    expected = region_by(lambda x, y: any(from_segment(x, y, a, b) <= width / 2 + 1e-6
                                          for a, b in zip(points, points[1:])))
    assert (near_line(points, width, (17, 23)) == expected).all()


@pytest.mark.parametrize('left, top', [(2, 3), (-2, -1), (8, 6), (20, 3), (-20, 3), (3, 50)])
def test_a_bitmap_is_cut_at_the_border(left, top):
    bitmap = np.random.default_rng(0).random((5, 4)) < 0.6
    expected = np.zeros((9, 10), bool)
    for row in range(5):
        for column in range(4):
            if 0 <= row + top < 9 and 0 <= column + left < 10:
                expected[row + top, column + left] = bitmap[row, column]
    assert (placed(bitmap, left, top, (9, 10)) == expected).all()


def test_runs_by_rows_and_runs_that_do_not_fit():
    assert from_runs([1, 2, 3], (2, 3), by_rows=True).tolist() == [[False, True, True],
                                                                   [False, False, False]]
    for runs in ([], [5], [7, -1]):
        with pytest.raises(ValueError, match='cover|negative'):
            from_runs(runs, (2, 3))
