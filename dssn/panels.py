"""Panels for TensorBoard: what one training step was shown, was taught and answered, as pictures.

A row is an image. Columns of unlabeled images, from left to right: the weak view; the two strong
views with CutMix pasted, its box outlined; the pseudo-labels of each strong view, all, then the
selected ones; the student's prediction of the weak view, the selected part of it (the labels of the
feature level), its predictions of the strong views; and, where truth is watched, that of the weak
view. Of labeled images: the image, the student's prediction, truth.

Pale: not selected. White: without truth. Striped: padding. Empty tile: nothing, such as
pseudo-labels while warming up, or a strong view that the method does not train on.
"""
import numpy as np
from PIL import Image, ImageDraw

from dssn.batch import denormalise
from dssn.mixing import box_mask, paste
from dssn.pictures import index_picture, side_by_side

SIDES = 128, 256         # least and most pixels of a tile's longer side
CAPTION = 14             # height of the captions, pixels
STRIPES = (150, 190)     # grays of padding
PALE = 0.8               # how far what is not selected is blended into white
EMPTY_COLOUR = (235, 235, 235)
UNLABELED_COLUMNS = ('weak', 'strong 1', 'strong 2', 'label 1', 'label 2', 'selected 1',
                     'selected 2', 'student', 'student selected', 'student 1', 'student 2')
LABELED_COLUMNS = ('image', 'student', 'truth')


def unlabeled_panel(u, v, terms, colours, truth=None, most=4):
    """The panel of a step's first unlabeled images, as RGB pixels (height, width, 3) uint8.

    Args:
        u, v: Unlabeled, normalised. terms: the method's `Terms` on them. colours: of the classes.
        truth: (B, H, W) int64 of u's weak views, 255 = none, or None. most: images.
    """
    u, v = [type(part)(*[tensor[:most].cpu() for tensor in part]) for part in (u, v)]
    boxes = [u.box1.numpy(), u.box2.numpy()]
    inside = [box_mask(box, u.valid.shape[1:]) for box in (u.box1, u.box2)]
    strong = [paste(u.strong1, v.strong1, inside[0]), paste(u.strong2, v.strong2, inside[1])]
    photos = [host(denormalise(images)) for images in (u.weak, *strong)]
    valid, mixed = host(u.valid), [host(paste(u.valid, v.valid, area)) for area in inside]
    labels = {branch: [host(part[:most]) for part in found]
              for branch, found in terms.labels.items()}
    predictions = {view: host(found[:most]) for view, found in terms.predictions.items()}
    absent = None, None, None
    own, *taught = [labels.get(branch, absent) for branch in ('feature', 'image1', 'image2')]

    def row(i):
        def classes(index, valid, selected=None):
            return None if index is None else class_tile(
                index[i], colours, valid[i], None if selected is None else selected[i])
        tiles = [photo_tile(photos[0][i])]
        tiles += [photo_tile(photo[i], box[i]) if f'strong{number}' in predictions else None
                  for number, (photo, box) in enumerate(zip(photos[1:], boxes), 1)]
        tiles += [classes(label, where) for (label, _, _), where in zip(taught, mixed)]
        tiles += [classes(label, where, selected)
                  for (label, selected, _), where in zip(taught, mixed)]
        tiles += [classes(predictions.get('weak'), valid), classes(own[0], valid, own[1])]
        tiles += [classes(predictions.get(view), where)
                  for view, where in zip(('strong1', 'strong2'), mixed)]
        return tiles + ([] if truth is None else [classes(host(truth[:most]), valid)])
    return assemble([row(i) for i in range(len(u.weak))],
                    UNLABELED_COLUMNS + (() if truth is None else ('truth',)))


def labeled_panel(x, prediction, colours, most=4):
    """The same of a step's first labeled images, with the student's `prediction` (B, H, W)."""
    photos, found, truth = [host(t[:most]) for t in (denormalise(x.weak), prediction, x.label)]
    everywhere = np.ones(truth.shape[1:], bool)
    return assemble([[photo_tile(photo), class_tile(index, colours, everywhere),
                      class_tile(label, colours, everywhere)]
                     for photo, index, label in zip(photos, found, truth)], LABELED_COLUMNS)


def host(tensor):
    return tensor.cpu().numpy()


def tile_size(height, width):
    """(width, height) of the tile that pixels are drawn in."""
    longer = max(height, width)
    scale = min(max(longer, SIDES[0]), SIDES[1]) / longer
    return max(round(width * scale), 1), max(round(height * scale), 1)


def photo_tile(pixels, box=(0, 0, 0, 0)):
    """An image (3, H, W) uint8 with a box (top, left, height, width) of its pixels outlined."""
    height, width = pixels.shape[1:]
    size = tile_size(height, width)
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    picture = picture.resize(size, Image.BILINEAR)
    top, left, tall, wide = [int(side) for side in box]
    if tall and wide:
        x, y = size[0] / width, size[1] / height
        left, right = round(left * x), round((left + wide) * x) - 1
        top, bottom = round(top * y), round((top + tall) * y) - 1
        draw = ImageDraw.Draw(picture)
        # White beside black is seen on any ground.
        for inset, colour in ((0, (255, 255, 255)), (1, (0, 0, 0))):
            if right - left >= 2 * inset and bottom - top >= 2 * inset:
                draw.rectangle((left + inset, top + inset, right - inset, bottom - inset),
                               outline=colour)
    return picture


def class_tile(index, colours, valid, selected=None):
    """Classes (H, W) in their colours; white: 255, pale: not selected, striped: not valid."""
    size = tile_size(*index.shape)
    picture = index_picture(index, colours).convert('RGB').resize(size, Image.NEAREST)
    if selected is not None:
        pale = Image.blend(picture, Image.new('RGB', size, (255, 255, 255)), PALE)
        picture = Image.composite(picture, pale, mask_picture(selected, size))
    return Image.composite(picture, stripes(size), mask_picture(valid, size))


def mask_picture(mask, size):
    """A bool mask (H, W) as one for `Image.composite`."""
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).resize(size, Image.NEAREST)


def stripes(size):
    """What padding looks like, (width, height)."""
    diagonal = np.add.outer(np.arange(size[1]), np.arange(size[0])) // 4 % 2
    return Image.fromarray(np.array(STRIPES, np.uint8)[diagonal]).convert('RGB')


def assemble(rows, captions, gap=4):
    """Rows of tiles of one size, None for an empty one, below their captions, as pixels."""
    size = rows[0][0].size
    empty = Image.new('RGB', size, EMPTY_COLOUR)
    pictures = [side_by_side([empty if tile is None else tile for tile in row], gap)
                for row in rows]
    height = CAPTION + sum(picture.height + gap for picture in pictures) - gap
    panel = Image.new('RGB', (pictures[0].width, height), (255, 255, 255))
    draw = ImageDraw.Draw(panel)
    for column, caption in enumerate(captions):
        draw.text((column * (size[0] + gap) + 2, 1), caption, fill=(0, 0, 0))
    top = CAPTION
    for picture in pictures:
        panel.paste(picture, (0, top))
        top += picture.height + gap
    return np.asarray(panel)
