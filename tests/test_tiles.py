"""Tiles: a large image is cut, predicted in parts and blended, within a bounded memory."""
import os

import numpy as np
import pytest
import torch

from dssn.inference import tiles
from dssn.inference.canvas import Canvas
from dssn.inference.evaluation import predictor
from dssn.inference.memory import peak_growth
from dssn.inference.predict import predict_image, predict_tiles
from dssn.inference.tiles import Tiling, blended, parts_of


@pytest.mark.parametrize('tile', [8, 20, 33])
@pytest.mark.parametrize('part', [0, 1 / 3, 1 / 2])
def test_weights_of_a_side_add_up_to_one(tile, part):
    tiling = Tiling(tile, int(tile * part))
    for side in list(range(1, 150)) + [1000, 1001]:
        total, tiles_seen = np.zeros(side), np.zeros(side)
        for tile_part in parts_of(side, tiling):
            start, stop, first, last, _, _ = tile_part
            weight = tile_part.weight().numpy()
            assert 0 <= start <= first < last <= stop <= side and stop - start == min(side, tile)
            # Near its border a tile does not count, except at the border of the image.
            assert start == 0 or first - start >= tiling.overlap // 4
            assert stop == side or stop - last >= tiling.overlap // 4
            assert (weight > 0).all() and (weight <= 1).all()
            total[first:last] += weight
            tiles_seen[first:last] += 1
        assert np.abs(total - 1).max() < 1e-6 and tiles_seen.max() <= 2


def test_no_more_tiles_than_needed():
    for side in range(1, 200):
        needed = 1
        while 40 + (needed - 1) * 30 < side:  # each further tile sees 30 new pixels at most
            needed += 1
        assert len(parts_of(side, Tiling(40, 10))) == needed


class Blur(torch.nn.Module):
    """Logits that depend on the pixels up to `radius` away; records the sizes of its inputs."""

    def __init__(self, radius=2):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 2 * radius + 1, padding=radius)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape))
        return self.conv(x)


def tiled(model, image, tiling, at_once=1, **kept):
    canvas = Canvas(image.shape[1:], **kept)
    with torch.no_grad():
        predict_tiles(predictor('original', 0), model, image, 'cpu', canvas, tiling, at_once)
    return canvas


SIZES = [(20, 21), (90, 33), (7, 300), (41, 40), (1, 500)]


@pytest.mark.parametrize('height, width', SIZES)
@pytest.mark.parametrize('at_once', [1, 3])
def test_a_network_that_sees_little_predicts_the_same_in_tiles(height, width, at_once):
    """Its radius is at most a quarter of the overlap, so no pixel depends on a tile's border."""
    model, tiling = Blur(), Tiling(20, 8)
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    with torch.no_grad():
        expected = predict_image(predictor('original', 0), model, image, 'cpu')
    assert model.sizes == [(1, 3, height, width)]
    found = tiled(model, image, tiling, at_once)
    assert found.index.dtype == torch.uint8 and torch.equal(found.index, expected)
    assert len(found.index.unique()) > 1
    assert {size[2:] for size in model.sizes[1:]} == {(min(height, 20), min(width, 20))}
    assert max(size[0] for size in model.sizes[1:]) <= at_once


@pytest.mark.parametrize('height, width', SIZES)
def test_blending_against_a_slow_one(height, width):
    """Sums of weighted tiles over the whole image; tiles disagree, since the network sees all."""
    def probabilities(images):
        return (images.float() + images.float().mean((2, 3), keepdim=True)).softmax(1)
    torch.manual_seed(0)
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    tiling = Tiling(20, 7)
    expected = np.zeros((3, height, width))
    for row in parts_of(height, tiling):
        for column in parts_of(width, tiling):
            part = image[:, row.start:row.stop, column.start:column.stop]
            weight = np.outer(row.weight(), column.weight())
            expected[:, row.first:row.last, column.first:column.last] += weight * probabilities(
                part[None])[0, :, row.first - row.start:row.last - row.start,
                            column.first - column.start:column.last - column.start].numpy()
    found, count = np.full((3, height, width), np.nan), 0
    for top, left, prob in blended(probabilities, image, tiling):
        block = found[:, top:top + prob.shape[1], left:left + prob.shape[2]]
        assert np.isnan(block).all()
        block[:] = prob
        count += prob[0].numel()
    assert count == height * width
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found.sum(0) - 1).max() < 1e-6


def test_an_image_that_fits_one_tile_is_predicted_as_a_whole():
    """Bit for bit, though the network sees the whole image; a larger one is cut."""
    model = Blur(6)
    image = torch.randint(256, (3, 30, 40), dtype=torch.uint8)
    with torch.no_grad():
        whole = predict_image(predictor('original', 0), model, image, 'cpu')
        one = predict_image(predictor('original', 0), model, image, 'cpu', Tiling(35, 8))
        assert torch.equal(one, whole) and len(model.sizes) == 2  # 30 x 40 < 35 x 35
        predict_image(predictor('original', 0), model, image, 'cpu', Tiling(34, 8))
        assert len(model.sizes) > 3
    assert torch.equal(tiled(model, image, Tiling(40, 8)).index, whole)  # a single tile


@pytest.mark.skipif(not os.path.exists('/proc/self/clear_refs'), reason='needs /proc')
def test_memory_does_not_grow_with_classes_times_pixels():
    """The probabilities of this image are 475 MB; its prediction and its confidence are 12 MB."""
    def network(images):
        return images[:, :1].expand(-1, 19, -1, -1)
    image = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, 2500, 2500)
    growth = peak_growth(lambda: tiled(network, image, Tiling(256, 64), confidence='uint8'))
    assert growth is None or growth < 120 * 2 ** 20


def test_the_default_tiling():
    assert tiles.DEFAULT == (2048, 512)
    assert not tiles.DEFAULT.applies((2048, 2048)) and tiles.DEFAULT.applies((2048, 2049))
