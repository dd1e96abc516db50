"""The outlines of the regions of a class mask, as polygons for an annotation tool.

H x W is the size of a mask. A region is a set of pixels of one class that touch at their sides. The
coordinates are those of `dssn.data.regions`: the upper left pixel reaches from (0, 0) to (1, 1).

Two neighbours share their border. It is simplified once, so the polygons leave no gap and do not
overlap.
"""
from typing import NamedTuple

import numpy as np

from dssn.data.regions import inside
from dssn.labels import IGNORE

STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # x, y of a step: right, down, left, up


class Outline(NamedTuple):
    """The polygon of a region."""
    value: int           # its class
    polygon: np.ndarray  # (n, 2) x, y in steps of half a pixel
    depth: int           # it lies on top of the outlines of lower depth that hold it


def outlines(mask, tolerance=0.0, min_area=0):
    """The `Outline`s of all regions of a mask, those of lower depth first.

    Rendered in this order by `regions.inside`, they give the mask back: exactly with a tolerance of
    at most 0.35 and min_area=0. A hole without an ignored pixel is not cut out: the regions in it
    lie on top. Any other hole is cut out by a slit, and the polygon goes round it.

    Args:
        mask: class indices (H, W) uint8; 255 belongs to no region.
        tolerance: largest distance of a border from its simplified form, in pixels.
        min_area: regions of fewer pixels are added to their largest neighbour, as `sieve` does.
    """
    mask = sieve(np.asarray(mask), min_area)
    parts = components(mask)
    border = Border(parts)
    rings = [ring for ring in border.rings() if mask[ring.pixel] != IGNORE]
    depth, holes, polygons = np.zeros(parts.max() + 1, int), {}, {}
    ignored = bool((mask == IGNORE).any())
    for ring in rings:
        if ring.area > 0:
            polygons[ring.part] = ring
            continue
        left, top = ring.corners.min(0)
        right, bottom = ring.corners.max(0)
        box = np.s_[top:bottom, left:right]
        hole = inside(ring.corners - (left, top), (bottom - top, right - left))
        if ignored and (mask[box][hole] == IGNORE).any():
            holes.setdefault(ring.part, []).append(ring)
        else:
            depth[np.unique(parts[box][hole])] += 1
    found = []
    for part, ring in polygons.items():
        polygon = border.simplified(ring, tolerance)
        for hole in holes.get(part, ()):
            polygon = cut_out(polygon, border.simplified(hole, tolerance))
        if len(polygon) >= 3:
            found.append(Outline(int(mask[ring.pixel]), polygon, int(depth[part])))
    return sorted(found, key=lambda outline: outline.depth)


def components(mask):
    """The number of the region of each pixel, int32 (H, W), counted from 0."""
    starts = np.ones(mask.shape, bool)  # of a run of one class in a row
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    run = np.cumsum(starts, dtype=np.int32).reshape(mask.shape) - 1
    touch = (mask[1:] == mask[:-1]) & (starts[1:] | starts[:-1])
    first, second = run[:-1][touch], run[1:][touch]
    root = np.arange(run[-1, -1] + 1)
    while len(first):
        # Every root takes the smallest number that it touches; then all runs follow to the end.
        low, high = np.minimum(root[first], root[second]), np.maximum(root[first], root[second])
        np.minimum.at(root, high, low)
        root = followed(root)
        apart = root[first] != root[second]
        first, second = first[apart], second[apart]
    return np.unique(root, return_inverse=True)[1].astype(np.int32)[run]


def followed(target):
    """The ends of chains: what target[target[...[i]]] becomes for each i."""
    while (target[target] != target).any():
        target = target[target]
    return target


def sieve(mask, min_area):
    """A mask (H, W) without small regions: each takes the class of its largest neighbour.

    Ignored regions keep their pixels, whatever their size.
    """
    while min_area > 1:
        parts = components(mask)
        area = np.bincount(parts.ravel())
        value = np.zeros(len(area), mask.dtype)
        value[parts] = mask
        small = (area < min_area) & (value != IGNORE)
        pairs = []
        for one, other in ((parts[:, :-1], parts[:, 1:]), (parts[:-1], parts[1:])):
            differ = one != other
            pairs.append(np.stack([one[differ], other[differ]], 1))
        pairs = np.concatenate(pairs)
        pairs = np.concatenate([pairs, pairs[:, ::-1]])
        # By area, so that the last one written is the largest; no two can take each other.
        rank = np.empty(len(area), int)
        rank[np.argsort(area, kind='stable')] = np.arange(len(area))
        pairs = pairs[small[pairs[:, 0]] & (rank[pairs[:, 0]] < rank[pairs[:, 1]])]
        if not len(pairs):
            break
        target = np.arange(len(area))
        pairs = pairs[np.argsort(rank[pairs[:, 1]], kind='stable')]
        target[pairs[:, 0]] = pairs[:, 1]
        mask = value[followed(target)[parts]]
    return mask


class Ring(NamedTuple):
    """A closed border of a region: its outer one, or that of a hole."""
    part: int            # number of the region
    pixel: tuple         # (row, column) of a pixel of it
    corners: np.ndarray  # (n, 2) x, y: a step of one pixel between neighbours
    area: float          # above 0 for an outer border


class Border:
    """The sides of pixels at which regions meet.

    A step goes along the side of a pixel from corner to corner, with the region to its right.
    """

    def __init__(self, parts):
        """`parts`: the number of the region of each pixel, int (H, W)."""
        self.height, self.width = parts.shape
        around = np.pad(parts, 1, constant_values=-1)
        # The pixels around each corner (H+1, W+1): upper left, upper right, lower left and right.
        ul, ur, ll, lr = around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]
        # {direction: (region to the right of the step, region to its left)}
        sides = [(lr, ur), (ll, lr), (ul, ll), (ur, ul)]
        self.steps = np.stack([(right != left) & (right >= 0) for right, left in sides])
        self.parts = [right for right, _ in sides]
        around = (ul, ur), (ur, lr), (lr, ll), (ll, ul)
        degree = sum((one != other).astype(np.uint8) for one, other in around)
        self.fixed = degree > 2  # corners that keep their place
        self.fixed[::self.height, ::self.width] = True

    def rings(self):
        """Yield the `Ring`s of all regions."""
        stride = self.width + 1
        count = self.fixed.size
        ids = np.flatnonzero(self.steps)
        direction, corner = ids // count, ids % count
        end = corner + STEPS[direction] @ (1, stride)
        # At its end a border turns right if it can, so that pixels that touch at a corner only
        # are not connected.
        flat = self.steps.reshape(4, -1)
        right, left = (direction + 1) % 4, (direction + 3) % 4
        onward = np.where(flat[right, end], right, np.where(flat[direction, end], direction, left))
        following = np.searchsorted(ids, onward * count + end).tolist()
        seen = bytearray(len(ids))
        for start in range(len(ids)):
            chain = []
            while not seen[start]:
                seen[start] = 1
                chain.append(start)
                start = following[start]
            if chain:
                yield self.ring(direction[chain], corner[chain])

    def ring(self, direction, corner):
        """The `Ring` of steps, given by their directions and first corners."""
        y, x = np.divmod(corner, self.width + 1)
        corners = np.stack([x, y], 1)
        after = np.roll(corners, -1, 0)
        area = (x * after[:, 1] - after[:, 0] * y).sum() / 2
        first = direction[0]
        row, column = y[0] - (first > 1), x[0] - (first in (1, 2))
        return Ring(int(self.parts[first][y[0], x[0]]), (row, column), corners, area)

    def simplified(self, ring, tolerance):
        """The polygon (n, 2) of a ring: through fixed corners and the middles of its steps."""
        corners = ring.corners
        fixed = np.flatnonzero(self.fixed[corners[:, 1], corners[:, 0]])
        middles = corners + np.roll(corners, -1, 0)  # of the steps, in half pixels
        if not len(fixed):
            return simplified_loop(middles, 2 * tolerance) / 2
        parts = []
        for start, end in zip(fixed, np.append(fixed[1:], fixed[0] + len(corners))):
            steps = np.arange(start, end) % len(corners)
            line = np.concatenate([2 * corners[[start]], middles[steps],
                                   2 * corners[[end % len(corners)]]])
            parts.append(simplified_line(line, 2 * tolerance)[:-1])
        return np.concatenate(parts) / 2


def simplified_line(line, tolerance):
    """A line (n, 2) with fewer points, which is the same for both directions of it."""
    forward, backward = (tuple(ends[[0, 1]].ravel()) for ends in (line, line[::-1]))
    if backward < forward:
        return reduced(line[::-1], tolerance)[::-1]
    return reduced(line, tolerance)


def simplified_loop(loop, tolerance):
    """A closed line (n, 2) with fewer points, which is the same for both directions of it.

    At least four points are left, so that a small region does not vanish.
    """
    start = np.lexsort(loop.T)[0]
    loop = np.roll(loop, -start, 0)
    turned = tuple(loop[-1]) < tuple(loop[1])
    if turned:
        loop = np.roll(loop[::-1], 1, 0)
    far = np.argmax(((loop - loop[0]) ** 2).sum(1))
    while True:
        halves = reduced(loop[:far + 1], tolerance), reduced(
            np.concatenate([loop[far:], loop[:1]]), tolerance)
        found = np.concatenate([half[:-1] for half in halves])
        if len(found) > 3 or tolerance < 0.5:
            return found[::-1] if turned else found
        tolerance /= 2


def reduced(line, tolerance):
    """The points of a line (n, 2) that Douglas and Peucker's method keeps.

    Between two kept points no point is farther from their segment than the tolerance.
    """
    kept = np.zeros(len(line), bool)
    kept[[0, -1]] = True
    todo = [(0, len(line) - 1)]
    while todo:
        first, last = todo.pop()
        if last - first < 2:
            continue
        along, points = line[last] - line[first], line[first + 1:last] - line[first]
        part = (points @ along / max(along @ along, 1)).clip(0, 1)
        distance = ((points - part[:, None] * along) ** 2).sum(1)
        worst = int(np.argmax(distance))
        if distance[worst] > tolerance ** 2 + 1e-9:
            middle = first + 1 + worst
            kept[middle] = True
            todo += [(first, middle), (middle, last)]
    return line[kept]


def cut_out(polygon, hole):
    """A polygon (n, 2) that goes to a hole and round it, by a slit between the closest points."""
    distance = ((polygon[:, None] - hole[None]) ** 2).sum(2)
    at, to = np.unravel_index(np.argmin(distance), distance.shape)
    round_hole = np.concatenate([hole[to:], hole[:to + 1]])
    return np.concatenate([polygon[:at + 1], round_hole, polygon[at:]])
