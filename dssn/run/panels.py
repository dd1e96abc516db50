"""Panels for TensorBoard: the images, pseudo-labels and predictions of one training step.

Each row is an image. The columns of unlabeled images are, from left to right:

- the weak view; the two strong views after CutMix, with the box outlined;
- the pseudo-labels of the strong views: all, then only the selected ones;
- the student's prediction of the weak view; the pseudo-labels of the feature level;
- the student's predictions of the strong views;
- with `watch_truth`, the ground truth of the weak view.

The columns of labeled images are the image, the student's prediction and the ground truth.

Pale pixels are not selected, white pixels have no ground truth, striped pixels are padding. A tile
is empty if there is nothing to show: pseudo-labels while warming up, or a strong view that the
method does not use.
"""
import numpy as np
from PIL import Image, ImageDraw

from dssn.batch import denormalise
from dssn.inference.pictures import index_picture, side_by_side
from dssn.mixing import box_mask, paste

SIDES = 128, 256         # smallest and largest longer side of a tile, pixels
CAPTION = 14             # height of the captions, pixels
STRIPES = (150, 190)     # gray values of padding
PALE = 0.8               # fraction of white in pixels that are not selected
EMPTY_COLOUR = (235, 235, 235)
UNLABELED_COLUMNS = ('weak', 'strong 1', 'strong 2', 'label 1', 'label 2', 'selected 1',
                     'selected 2', 'student', 'student selected', 'student 1', 'student 2')
LABELED_COLUMNS = ('image', 'student', 'ground truth')


def unlabeled_panel(unlabeled, partner, terms, colours, ground_truth=None, most=4):
    """The panel of a step's first unlabeled images, as RGB pixels (height, width, 3) uint8.

    Args:
        unlabeled, partner: Unlabeled, normalised. terms: the method's `Terms` on them. colours: of
            the classes. ground_truth: of the weak views, (B, H, W) int64, 255 = none; or None.
        most: largest number of images.
    """
    unlabeled, partner = [type(part)(*[tensor[:most].cpu() for tensor in part])
                          for part in (unlabeled, partner)]
    boxes = [unlabeled.box1.numpy(), unlabeled.box2.numpy()]
    insides = [box_mask(box, unlabeled.valid.shape[1:])
               for box in (unlabeled.box1, unlabeled.box2)]
    strong = [paste(unlabeled.strong1, partner.strong1, insides[0]),
              paste(unlabeled.strong2, partner.strong2, insides[1])]
    photos = [host(denormalise(images)) for images in (unlabeled.weak, *strong)]
    valid = host(unlabeled.valid)
    mixed_valid = [host(paste(unlabeled.valid, partner.valid, inside)) for inside in insides]
    pseudo = {branch: [host(part[:most]) for part in found]
              for branch, found in terms.labels.items()}
    predictions = {view: host(found[:most]) for view, found in terms.predictions.items()}
    absent = None, None, None
    pseudo_weak, *pseudo_strong = [pseudo.get(branch, absent)
                                   for branch in ('feature', 'image1', 'image2')]

    def row(i):
        def classes(index, valid, selected=None):
            return None if index is None else class_tile(
                index[i], colours, valid[i], None if selected is None else selected[i])
        tiles = [photo_tile(photos[0][i])]
        tiles += [photo_tile(photo[i], box[i]) if f'strong{number}' in predictions else None
                  for number, (photo, box) in enumerate(zip(photos[1:], boxes), 1)]
        tiles += [classes(label, area) for (label, _, _), area in zip(pseudo_strong, mixed_valid)]
        tiles += [classes(label, area, selected)
                  for (label, selected, _), area in zip(pseudo_strong, mixed_valid)]
        tiles += [classes(predictions.get('weak'), valid),
                  classes(pseudo_weak[0], valid, pseudo_weak[1])]
        tiles += [classes(predictions.get(view), area)
                  for view, area in zip(('strong1', 'strong2'), mixed_valid)]
        return tiles + ([] if ground_truth is None
                        else [classes(host(ground_truth[:most]), valid)])
    return assemble([row(i) for i in range(len(unlabeled.weak))],
                    UNLABELED_COLUMNS + (() if ground_truth is None else ('ground truth',)))


def labeled_panel(labeled, prediction, colours, most=4):
    """The panel of a step's first labeled images; `prediction`: (B, H, W) of the student."""
    images = denormalise(labeled.image)
    photos, predicted, labels = [host(t[:most]) for t in (images, prediction, labeled.label)]
    everywhere = np.ones(labels.shape[1:], bool)
    return assemble([[photo_tile(photo), class_tile(index, colours, everywhere),
                      class_tile(label, colours, everywhere)]
                     for photo, index, label in zip(photos, predicted, labels)], LABELED_COLUMNS)


def host(tensor):
    return tensor.cpu().numpy()


def tile_size(height, width):
    """(width, height) of the tile for an image of height x width pixels."""
    longer = max(height, width)
    scale = min(max(longer, SIDES[0]), SIDES[1]) / longer
    return max(round(width * scale), 1), max(round(height * scale), 1)


def photo_tile(pixels, box=(0, 0, 0, 0)):
    """A tile of an image (3, H, W) uint8, with a box (top, left, height, width) outlined."""
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
        # A white and a black line: one of them is visible on any image.
        for inset, colour in ((0, (255, 255, 255)), (1, (0, 0, 0))):
            if right - left >= 2 * inset and bottom - top >= 2 * inset:
                draw.rectangle((left + inset, top + inset, right - inset, bottom - inset),
                               outline=colour)
    return picture


def class_tile(index, colours, valid, selected=None):
    """A tile of classes (H, W) in colour. White: 255. Pale: not selected. Striped: not valid."""
    size = tile_size(*index.shape)
    picture = index_picture(index, colours).convert('RGB').resize(size, Image.NEAREST)
    if selected is not None:
        pale = Image.blend(picture, Image.new('RGB', size, (255, 255, 255)), PALE)
        picture = Image.composite(picture, pale, mask_picture(selected, size))
    return Image.composite(picture, stripes(size), mask_picture(valid, size))


def mask_picture(mask, size):
    """A bool mask (H, W) as a mask for `Image.composite`."""
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).resize(size, Image.NEAREST)


def stripes(size):
    """The picture of padding; `size` is (width, height)."""
    diagonal = np.add.outer(np.arange(size[1]), np.arange(size[0])) // 4 % 2
    return Image.fromarray(np.array(STRIPES, np.uint8)[diagonal]).convert('RGB')


def assemble(rows, captions, gap=4):
    """RGB pixels of rows of tiles below captions. Tiles have equal sizes; None is an empty tile."""
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
