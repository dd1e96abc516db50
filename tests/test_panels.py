"""Panels: every tile in its column, its pixels against loops, and the edges."""
import numpy as np
import pytest
import torch
from PIL import Image

from dssn.batch import Labeled, Unlabeled, normalise
from dssn.methods import Terms
from dssn.pseudo_labels import PseudoLabels
from dssn.run.panels import (
    CAPTION,
    EMPTY_COLOUR,
    LABELED_COLUMNS,
    PALE,
    STRIPES,
    UNLABELED_COLUMNS,
    class_tile,
    labeled_panel,
    photo_tile,
    tile_size,
    unlabeled_panel,
)

COLOURS = [(10, 20, 30), (250, 0, 0), (0, 200, 50)]
SIDE, GAP = 128, 4  # a tile of a 64 pixel crop is twice as large


def draw(b=3, size=64, seed=0):
    """u, v and terms with everything in them."""
    torch.manual_seed(seed)

    def part():
        images = [torch.randint(256, (b, 3, size, size), dtype=torch.uint8) for _ in range(3)]
        box1 = torch.tensor([[10, 20, 30, 16], [0, 0, 0, 0], [0, 0, size, size]])[:b]
        return Unlabeled(*map(normalise, images), torch.rand(b, size, size) < 0.7, box1,
                         box1.flip(0), torch.arange(b))

    def classes():
        return torch.randint(3, (b, size, size))
    u, v = part(), part()
    boxes = {'image1': u.box1, 'image2': u.box2}
    labels = {branch: PseudoLabels(classes(), torch.rand(b, size, size) < 0.5,
                                   pasted(u.valid, v.valid, boxes[branch]) if branch in boxes
                                   else u.valid)
              for branch in ('feature', 'image1', 'image2')}
    terms = Terms({}, {}, labels, {view: classes() for view in ('weak', 'strong1', 'strong2')})
    return u, v, terms


def pasted(dst, src, boxes):
    out = dst.clone()
    for b, (top, left, height, width) in enumerate(boxes.tolist()):
        area = (b, ..., slice(top, top + height), slice(left, left + width))
        out[area] = src[area]
    return out


def tiles(panel, columns):
    """[row][column] -> pixels of a tile; what lies between the tiles is white."""
    rows = (len(panel) - CAPTION + GAP) // (SIDE + GAP)
    assert panel.shape == (CAPTION + rows * (SIDE + GAP) - GAP, columns * (SIDE + GAP) - GAP, 3)
    assert panel.dtype == np.uint8
    seen = np.zeros(panel.shape[:2], bool)
    found = []
    for row in range(rows):
        top = CAPTION + row * (SIDE + GAP)
        lefts = [column * (SIDE + GAP) for column in range(columns)]
        found.append([panel[top:top + SIDE, left:left + SIDE] for left in lefts])
        for left in lefts:
            seen[top:top + SIDE, left:left + SIDE] = True
    seen[:CAPTION] = True
    assert (panel[~seen] == 255).all() and (panel[:CAPTION] < 100).any()
    return found


def assert_classes(tile, index, valid, selected=None):
    """Every pixel of the crop, twice as large, has the colour that the legend says."""
    for row in range(0, 64, 3):
        for column in range(0, 64, 3):
            got = tile[2 * row:2 * row + 2, 2 * column:2 * column + 2].reshape(4, 3)
            value = int(index[row, column])
            colour = np.array((255,) * 3 if value == 255 else COLOURS[value])
            if not valid[row, column]:
                assert all(tuple(pixel) in [(gray,) * 3 for gray in STRIPES] for pixel in got)
            elif selected is None or selected[row, column]:
                assert (got == colour).all()
            else:
                pale = colour + PALE * (255 - colour)
                assert np.abs(got - pale).max() <= 1 and (got.mean() > 200).all()


def assert_photo(tile, image, box=(0, 0, 0, 0)):
    expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (SIDE, SIDE), Image.BILINEAR)).copy()
    top, left, height, width = [2 * int(side) for side in box]
    if height and width:
        for inset, gray in ((0, 255), (1, 0)):
            frame = np.zeros((SIDE, SIDE), bool)
            frame[top + inset:top + height - inset, left + inset:left + width - inset] = True
            inner = np.zeros((SIDE, SIDE), bool)
            inner[top + inset + 1:top + height - inset - 1,
                  left + inset + 1:left + width - inset - 1] = True
            expected[frame & ~inner] = gray
    assert (tile == expected).all()


def pixels_of(images):
    from dssn.batch import denormalise
    return denormalise(images)


@pytest.mark.parametrize('b', [1, 3])
@pytest.mark.parametrize('with_truth', [True, False])
def test_every_column_of_unlabeled_images(b, with_truth):
    u, v, terms = draw(b)
    truth = torch.randint(3, (b, 64, 64))
    truth[:, :20] = 255
    panel = unlabeled_panel(u, v, terms, COLOURS, truth if with_truth else None, most=9)
    found = tiles(panel, len(UNLABELED_COLUMNS) + with_truth)
    assert len(found) == b
    weak, strong1, strong2 = [pixels_of(images) for images in (
        u.weak, pasted(u.strong1, v.strong1, u.box1), pasted(u.strong2, v.strong2, u.box2))]
    for i, row in enumerate(found):
        assert_photo(row[0], weak[i])
        assert_photo(row[1], strong1[i], u.box1[i])
        assert_photo(row[2], strong2[i], u.box2[i])
        one, two, own = [[part[i] for part in terms.labels[branch]]
                         for branch in ('image1', 'image2', 'feature')]
        assert_classes(row[3], one[0], one[2])
        assert_classes(row[4], two[0], two[2])
        assert_classes(row[5], one[0], one[2], one[1])
        assert_classes(row[6], two[0], two[2], two[1])
        assert_classes(row[7], terms.predictions['weak'][i], u.valid[i])
        assert_classes(row[8], own[0], u.valid[i], own[1])
        assert_classes(row[9], terms.predictions['strong1'][i], one[2])
        assert_classes(row[10], terms.predictions['strong2'][i], two[2])
        if with_truth:
            assert_classes(row[11], truth[i], u.valid[i])


def test_a_panel_holds_the_first_images():
    u, v, terms = draw(3)
    two = unlabeled_panel(u, v, terms, COLOURS, most=2)
    three = unlabeled_panel(u, v, terms, COLOURS, most=3)
    assert (three[:len(two)] == two).all() and len(three) - len(two) == SIDE + GAP


def test_while_warming_up_the_labels_columns_are_empty():
    u, v, terms = draw(1)
    terms = terms._replace(labels={'feature': terms.labels['feature']})
    row, = tiles(unlabeled_panel(u, v, terms, COLOURS), len(UNLABELED_COLUMNS))
    for column, tile in enumerate(row):
        assert (tile == np.array(EMPTY_COLOUR)).all() == (3 <= column <= 6)
    assert_classes(row[9], terms.predictions['strong1'][0], pasted(u.valid, v.valid, u.box1)[0])


def test_a_method_with_one_strong_view():
    u, v, terms = draw(1)
    terms = Terms({}, labels={'image1': terms.labels['image1']},
                  predictions={'weak': terms.predictions['weak'],
                               'strong1': terms.predictions['strong1']})
    row, = tiles(unlabeled_panel(u, v, terms, COLOURS), len(UNLABELED_COLUMNS))
    assert [column for column, tile in enumerate(row)
            if (tile == np.array(EMPTY_COLOUR)).all()] == [2, 4, 6, 8, 10]


def test_an_image_that_is_all_padding():
    u, v, terms = draw(1)
    u, v = [part._replace(valid=torch.zeros_like(part.valid)) for part in (u, v)]
    row, = tiles(unlabeled_panel(u, v, terms, COLOURS), len(UNLABELED_COLUMNS))
    for tile in row[3:]:
        assert {tuple(pixel) for pixel in tile.reshape(-1, 3)} == {(gray,) * 3 for gray in STRIPES}


def test_labeled_images():
    torch.manual_seed(1)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    label, prediction = torch.randint(3, (2, 64, 64)), torch.randint(3, (2, 64, 64))
    label[:, 40:] = 255
    x = Labeled(normalise(images), label, torch.arange(2))
    found = tiles(labeled_panel(x, prediction, COLOURS), len(LABELED_COLUMNS))
    everywhere = torch.ones(64, 64, dtype=torch.bool)
    for i, (image, student, truth) in enumerate(found):
        assert_photo(image, images[i])
        assert_classes(student, prediction[i], everywhere)
        assert_classes(truth, label[i], everywhere)
    assert len(tiles(labeled_panel(x, prediction, COLOURS, 1), 3)) == 1


@pytest.mark.parametrize('height, width, size', [
    (64, 64, (128, 128)), (128, 128, (128, 128)), (200, 200, (200, 200)), (513, 513, (256, 256)),
    (801, 801, (256, 256)), (100, 50, (64, 128)), (1, 1000, (256, 1)), (17, 17, (128, 128))])
def test_tiles_are_neither_tiny_nor_huge(height, width, size):
    assert tile_size(height, width) == size
    assert class_tile(np.zeros((height, width), int), COLOURS,
                      np.ones((height, width), bool)).size == size


@pytest.mark.parametrize('box', [(0, 0, 1, 1), (0, 0, 600, 600), (599, 599, 1, 1), (3, 4, 2, 500),
                                 (10, 10, 3, 3)])
def test_any_box_can_be_outlined(box):
    pixels = np.full((3, 600, 600), 90, np.uint8)
    tile = np.asarray(photo_tile(pixels, box))
    assert tile.shape == (256, 256, 3)
    assert set(np.unique(tile)) <= {0, 90, 255}
