"""A picture of predictions: val images, their truth, and what each of some runs sees in them."""
import os

import torch
from PIL import Image, ImageDraw

from dssn import checkpoint
from dssn.config import colours_of_classes
from dssn.data.datasets import EvalSet
from dssn.data.lists import read_list
from dssn.errors import UserError
from dssn.evaluation import predictor
from dssn.models import build_model
from dssn.panels import tile_size
from dssn.pictures import index_picture, side_by_side
from dssn.predict import predict_image

CAPTION, GAP = 14, 4  # pixels


def draw_samples(path, runs, count):
    """Write the picture: a row for each of some val images, spread evenly over their list.

    Args:
        path: file to write. runs: [(caption, Planned)], finished, of one val list. count: images.

    Raises:
        UserError: an image, or a checkpoint, cannot be read.
    """
    cfg = runs[0][1].cfg
    listed = read_list(cfg.val_id_path)
    count = min(count, len(listed))
    images = EvalSet(cfg, [listed[place * len(listed) // count] for place in range(count)])
    rows, colours = [], colours_of_classes(cfg)
    for position in range(len(images)):
        item = images[position]
        if isinstance(item, UserError):
            raise item
        photo = Image.fromarray(item[0].permute(1, 2, 0).numpy())
        rows.append((item[0], [photo, index_picture(item[1], colours)]))
    for _, planned in runs:
        for image, tiles in rows:
            tiles.append(None)
        for (image, tiles), found in zip(rows, predict(planned, [image for image, _ in rows])):
            tiles[-1] = index_picture(found, colours)
    captions = ['image', 'truth'] + [caption for caption, _ in runs]
    assemble([[resized(tile) for tile in tiles] for _, tiles in rows], captions).save(path)


@torch.no_grad()
def predict(planned, images):
    """Class indices (H, W) of each image (3, H, W) uint8, by the student of the last epoch."""
    path = os.path.join(planned.folder, 'latest.pth')
    state, _ = checkpoint.choose_weights(checkpoint.read_torch_file(path), path, 'student')
    cfg = planned.cfg
    model = build_model(cfg)
    checkpoint.load_weights(model, state, path)
    model.eval()
    how = predictor(cfg.protocol, cfg.crop_size)
    return [predict_image(how, model, image, torch.device('cpu')) for image in images]


def resized(picture):
    """A photo, or class indices in their colours, as RGB in the size of a tile."""
    how = Image.BILINEAR if picture.mode == 'RGB' else Image.NEAREST
    return picture.convert('RGB').resize(tile_size(picture.height, picture.width), how)


def assemble(rows, captions):
    """Rows of Pillow tiles, which may differ in size from row to row, below their captions."""
    strips = [side_by_side(row, GAP) for row in rows]
    size = max(strip.width for strip in strips), CAPTION + sum(
        strip.height + GAP for strip in strips) - GAP
    sheet = Image.new('RGB', size, (255, 255, 255))
    draw, left = ImageDraw.Draw(sheet), 0
    for caption, tile in zip(captions, rows[0]):
        draw.text((left + 2, 1), caption, fill=(0, 0, 0))
        left += tile.width + GAP
    top = CAPTION
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + GAP
    return sheet
