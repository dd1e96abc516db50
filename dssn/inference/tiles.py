"""Prediction of a large image in overlapping tiles that are blended, within a bounded memory.

C classes, H x W the size of the image. Tiles are squares. Every pixel gets the mean of the class
probabilities of the tiles that see it, weighted so that the weight of a tile falls to 0 towards its
border. A network sees zeros beyond the border of its input, so its predictions are worst there.
"""
import math
from typing import NamedTuple

import torch

# An image with more than TILE x TILE pixels is predicted in tiles. With ResNet-101 a tile of this
# size needs about 3 GiB on a CPU.
TILE = 2048


class Tiling(NamedTuple):
    """How large images are cut into tiles."""
    tile: int = TILE           # side of a tile, pixels
    overlap: int = TILE // 4   # pixels that neighbours share at least, at most half a tile

    def applies(self, size):
        """Whether an image of (height, width) `size` is predicted in tiles."""
        return size[0] * size[1] > self.tile * self.tile


DEFAULT = Tiling()


class Part(NamedTuple):
    """The part of a side of the image that one tile sees and contributes to, in pixels."""
    start: int   # the tile sees start..stop
    stop: int
    first: int   # its weight is above 0 in first..last
    last: int
    before: int  # at this many of the first pixels its weight rises; the tile before falls there
    after: int   # at this many of the last pixels its weight falls

    def weight(self):
        """The tile's weight at first..last, float32; neighbours' weights add up to 1."""
        weight = torch.ones(self.last - self.first)
        weight[:self.before] = ramp(self.before)
        weight[len(weight) - self.after:] = 1 - ramp(self.after)
        return weight


def ramp(length):
    """Values that rise from 0 to 1, (length,) float32."""
    return (torch.arange(length) + 0.5) / max(length, 1)


def parts_of(side, tiling):
    """The `Part`s of a side of `side` pixels, from first to last.

    All tiles have the same length, at even distances. Two neighbours share a zone of half the
    `overlap`, in the middle of the pixels that both see. There the weight goes from one to the
    other. So a tile does not contribute at a quarter of the overlap or less from its border, except
    at the border of the image.
    """
    tile, overlap = tiling
    if side <= tile:
        return [Part(0, side, 0, side, 0, 0)]
    count = math.ceil((side - overlap) / (tile - overlap))
    starts = [round(i * (side - tile) / (count - 1)) for i in range(count)]
    middles = [(a + tile + b) // 2 for a, b in zip(starts, starts[1:])]
    # Not all sides are a multiple of the distance: zones must not reach into each other.
    zone = min([overlap // 2] + [b - a for a, b in zip(middles, middles[1:])])
    edges = [middle - zone // 2 for middle in middles]
    return [Part(start, start + tile, first, last, zone * (i > 0), zone * (i < count - 1))
            for i, (start, first, last) in enumerate(zip(
                starts, [0] + edges, [edge + zone for edge in edges] + [side]))]


def blended(probabilities, image, tiling, at_once=1, on_tile=None):
    """Yield the blended class probabilities of an image, block by block.

    A block is final when the tiles that see it have passed. Only what the next tile and the next
    row of tiles share is kept: C x overlap/2 x W values, never C x H x W.

    Args:
        probabilities: function (N, 3, h, w) uint8 -> (N, C, h, w), N tiles of one size.
        image: (3, H, W) uint8; a tensor, or what gives parts of it in the same way, `image[:, a:b,
            c:d]`. tiling: `Tiling`. at_once: number of tiles that are predicted at once.
        on_tile: called after every tile.

    Yields:
        (top, left, probabilities (C, h, w)) of blocks that together hold every pixel once. Rows of
        blocks come from top to bottom; those of a row have one height, and come from left to right.
    """
    rows, columns = [parts_of(side, tiling) for side in image.shape[1:]]
    below = None  # (C, zone, W): what the next row of tiles completes
    for row in rows:
        beside = None  # (C, h, zone): what the next tile completes
        for column, prob in row_of_tiles(probabilities, image, row, columns, at_once):
            width = column.last - column.first - column.after
            height = row.last - row.first - row.after
            if column.before:
                prob[:, :, :column.before] += beside
            prob, beside = prob[:, :, :width], prob[:, :, width:].clone()
            here = slice(column.first, column.first + width)
            if row.before:
                prob[:, :row.before] += below[:, :, here]
            if row.after:
                if below is None:
                    below = prob.new_empty((len(prob), row.after, image.shape[2]))
                below[:, :, here] = prob[:, height:]
            yield row.first, column.first, prob[:, :height]
            if on_tile:
                on_tile()


def row_of_tiles(probabilities, image, row, columns, at_once):
    """Yield (column, weighted probabilities (C, h, w) at first..last) of each tile of a row."""
    for start in range(0, len(columns), at_once):
        group = columns[start:start + at_once]
        found = probabilities(torch.stack([
            torch.as_tensor(image[:, row.start:row.stop, column.start:column.stop])
            for column in group]))
        for column, prob in zip(group, found):
            prob = prob[:, row.first - row.start:row.last - row.start,
                        column.first - column.start:column.last - column.start]
            yield column, (prob * row.weight().to(prob.device)[:, None]
                           * column.weight().to(prob.device))
