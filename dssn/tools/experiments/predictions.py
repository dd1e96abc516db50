"""Renders an image of predictions: val images, their ground truth, and the predictions of runs."""
import os

import torch
from PIL import Image, ImageDraw

from dssn.data.classes import colours_of_classes
from dssn.data.datasets import EvalSet
from dssn.data.lists import read_list
from dssn.errors import UserError
from dssn.inference.evaluation import predictor
from dssn.inference.pictures import index_picture, side_by_side
from dssn.inference.predict import predict_image
from dssn.models import build_model
from dssn.models.weights import choose_weights, load_weights, read_torch_file
from dssn.run.panels import tile_size

CAPTION, GAP = 14, 4  # pixels


def render_predictions(path, runs, count):
    """Write the image: one row a val image, at even distances in their list.

    Args:
        path: file to write. runs: [(caption, PlannedRun)], finished, with the same val list.
        count: number of val images.

    Raises:
        UserError: an image or a checkpoint cannot be read.
    """
    cfg = runs[0][1].cfg
    listed = read_list(cfg.val_id_path)
    count = min(count, len(listed))
    samples = EvalSet(cfg, [listed[place * len(listed) // count] for place in range(count)])
    rows, colours = [], colours_of_classes(cfg)
    for position in range(len(samples)):
        item = samples[position]
        if isinstance(item, UserError):
            raise item
        photo = Image.fromarray(item[0].permute(1, 2, 0).numpy())
        rows.append((item[0], [photo, index_picture(item[1], colours)]))
    for _, planned in runs:
        for (_, tiles), found in zip(rows, predict_images(planned, [image for image, _ in rows])):
            tiles.append(index_picture(found, colours))
    captions = ['image', 'ground truth'] + [caption for caption, _ in runs]
    assemble([[resized(tile) for tile in tiles] for _, tiles in rows], captions).save(path)


@torch.no_grad()
def predict_images(planned, images):
    """Class indices (H, W) uint8 of images (3, H, W) uint8, by the student of the last epoch."""
    path = os.path.join(planned.folder, 'latest.pth')
    cfg = planned.cfg
    model = build_model(cfg)
    state, _ = choose_weights(read_torch_file(path), path, model.state_dict(), 'student')
    load_weights(model, state, path)
    model.eval()
    predict_indices = predictor(cfg.protocol, cfg.crop_size)
    return [predict_image(predict_indices, model, image, torch.device('cpu')) for image in images]


def resized(picture):
    """A photo, or class indices in their colours, as RGB in the size of a tile."""
    method = Image.BILINEAR if picture.mode == 'RGB' else Image.NEAREST
    return picture.convert('RGB').resize(tile_size(picture.height, picture.width), method)


def assemble(rows, captions):
    """Rows of Pillow tiles below their captions; rows may have different sizes."""
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
