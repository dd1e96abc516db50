"""The pixels of shapes: polygons, ellipses, lines, bitmaps, and run lengths.

Coordinates are x, y in pixels. (0, 0) is the upper left corner of the image, so the centre of its
first pixel is (0.5, 0.5). A pixel belongs to a shape if its centre lies in it.
"""
import math

import numpy as np


def inside(polygon, size):
    """The pixels whose centre lies in a polygon, by the even-odd rule.

    Polygons that share an edge never share a pixel, and leave none out between them.

    Args:
        polygon: x0, y0, x1, y1, ..., or (n, 2). size: (H, W).

    Returns:
        bool (H, W).
    """
    height, width = size
    # After subtracting half a pixel, the centre of a pixel lies at (column, row).
    x, y = np.asarray(polygon, np.float64).reshape(-1, 2).T - 0.5
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    # Every edge from its upper to its lower end, so that rounding is the same in both directions.
    up = next_y < y
    x, next_x = np.where(up, (next_x, x), (x, next_x))
    y, next_y = np.where(up, (next_y, y), (y, next_y))
    # The rows that an edge crosses: from its upper end (included) to its lower end (excluded).
    first = np.clip(np.ceil(y), 0, height).astype(int)
    count = np.clip(np.ceil(next_y), 0, height).astype(int) - first
    edge = np.repeat(np.arange(len(x)), count)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    slope = (next_x - x)[edge] / (next_y - y)[edge]
    column = np.clip(np.ceil(x[edge] + (row - y[edge]) * slope), 0, width).astype(int)
    region = np.zeros(size, bool)
    if len(row):
        # Count the crossings to the left of each pixel: odd is inside. 8 bits keep odd and even.
        top, bottom, left, right = row.min(), row.max() + 1, column.min(), column.max()
        crossings = np.zeros((bottom - top, right - left + 1), np.uint8)
        np.add.at(crossings, (row - top, column - left), 1)
        region[top:bottom, left:right] = np.cumsum(crossings[:, :-1], axis=1, dtype=np.uint8) % 2
    return region


def union(polygons, size):
    """The pixels, bool (H, W), that lie in at least one of the polygons."""
    region = np.zeros(size, bool)
    for polygon in polygons:
        region |= inside(polygon, size)
    return region


def in_ellipse(centre, radii, turn, size):
    """The pixels, bool (H, W), whose centre lies in an ellipse or on its edge.

    Args:
        centre: (x, y). radii: along its own two axes. turn: clockwise, in degrees.
    """
    x, y = np.arange(size[1]) + 0.5 - centre[0], np.arange(size[0])[:, None] + 0.5 - centre[1]
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    with np.errstate(divide='ignore', invalid='ignore'):  # a radius may be 0
        return ((x * cos + y * sin) / radii[0]) ** 2 + ((y * cos - x * sin) / radii[1]) ** 2 <= 1


def near_line(points, width, size):
    """The pixels, bool (H, W), whose centre is at most half of `width` away from a line strip.

    Args:
        points: (n, 2), at least two. width: of the line, in pixels.
    """
    points = np.asarray(points, np.float64).reshape(-1, 2)
    region = np.zeros(size, bool)
    for start, end in zip(points, points[1:]):
        low = np.floor(np.minimum(start, end) - width / 2).clip(0).astype(int)
        high = np.ceil(np.maximum(start, end) + width / 2).clip(0).astype(int)
        x = np.arange(low[0], min(high[0], size[1])) + 0.5 - start[0]
        y = np.arange(low[1], min(high[1], size[0]))[:, None] + 0.5 - start[1]
        along = end - start
        part = ((x * along[0] + y * along[1]) / (along @ along or 1)).clip(0, 1)
        near = (x - part * along[0]) ** 2 + (y - part * along[1]) ** 2 <= (width / 2) ** 2
        region[low[1]:low[1] + len(y), low[0]:low[0] + len(x)] |= near
    return region


def placed(bitmap, left, top, size):
    """A bitmap (h, w) bool at a place of an image, bool (H, W). What lies outside is cut off."""
    region = np.zeros(size, bool)
    part = bitmap[max(-top, 0):max(size[0] - top, 0), max(-left, 0):max(size[1] - left, 0)]
    top, left = max(top, 0), max(left, 0)
    region[top:top + part.shape[0], left:left + part.shape[1]] = part
    return region


def coco_region(segmentation, size):
    """The pixels of a segmentation of COCO, bool (H, W).

    Args:
        segmentation: list of polygons, or {'size': [H, W], 'counts': run lengths}, in which the run
            lengths are numbers or packed text. size: (H, W) of the image.

    Raises:
        ValueError, KeyError, TypeError: it is not a segmentation, or not one of this size.
    """
    if isinstance(segmentation, list):
        return union(segmentation, size)
    if tuple(segmentation['size']) != tuple(size):
        raise ValueError(f'its size is {segmentation["size"]}, the image is {list(size)}')
    runs = segmentation['counts']
    return from_runs(unpack_runs(runs) if isinstance(runs, str) else runs, size)


def from_runs(runs, size, by_rows=False):
    """Run lengths -> bool (H, W). Runs alternate between outside and inside.

    Args:
        by_rows: the runs go row by row, as those of CVAT; otherwise column by column, as those of
            COCO.

    Raises:
        ValueError: they do not cover `size`, or one is negative.
    """
    height, width = size
    if min(runs, default=0) < 0:
        raise ValueError('a run length is negative')
    if sum(runs) != height * width:
        raise ValueError(f'its runs cover {sum(runs)} pixels, the image has {height * width}')
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pixels.reshape(height, width) if by_rows else pixels.reshape(width, height).T


def unpack_runs(text):
    """The run lengths in COCO's packed text.

    A character minus 48 holds five bits of a number, the lowest bits first. Its sixth bit is set if
    the number has more characters. The fifth bit of the last character is the sign. From the fourth
    number on, the text holds the difference from the number two places before.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    return runs
