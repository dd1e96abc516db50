"""Prediction of a folder of images without ground truth, of any size and format.

Images are read as viewers show them (rotated by EXIF, the first frame of an animation).
Transparency is ignored, as in training. An image with more than 8 bits a channel is refused, since
there is no standard conversion to 8 bits.
"""
import math
import os
from collections import Counter

import torch
from PIL import Image
from tqdm import tqdm

from dssn import precision
from dssn.batch import normalise
from dssn.data.datasets import to_tensor
from dssn.data.files import FileProblem, decoded_formats, open_image
from dssn.data.folders import visible_files
from dssn.data.lists import Sample
from dssn.errors import UserError

# An image with more than TILE x TILE pixels is predicted in tiles of at most that size. Predictions
# in the margin of a tile are dropped. A tile needs about 3 GiB on a CPU with ResNet-101.
TILE, MARGIN = 2048, 256


def find_images(folder, save_dir):
    """Find the images in a folder and its subfolders, by their endings; not those in `save_dir`.

    Returns:
        (`Sample`s without masks, sorted by their paths relative to `folder`; a list with one line
        on files with other endings, or an empty list).

    Raises:
        UserError: the folder does not exist, cannot be read, has no image, or is `save_dir`.
    """
    if not os.path.isdir(folder):
        raise UserError(f'--images {folder}: no such folder; name one with images')
    if os.path.realpath(folder) == os.path.realpath(save_dir):
        raise UserError(f'--save-dir {save_dir}: must be another folder than --images, or the '
                        'pictures would be predicted next time')
    endings, images, others = image_endings(), [], Counter()
    for path in visible_files(folder, '--images', save_dir):
        ending = os.path.splitext(path)[1].lower()
        if ending in endings:
            images.append(os.path.relpath(path, folder))
        else:
            others[ending or 'none'] += 1
    kinds = ', '.join(f'{ending}: {count}' for ending, count in sorted(others.items()))
    notes = [f'files skipped because of their ending: {kinds}'] if others else []
    if not images:
        raise UserError('; '.join([f'--images {folder}: no image in it or its subfolders'] + notes
                                  + ['name a folder with images']))
    return [Sample(name, None, '--images') for name in sorted(images)], notes


def image_endings():
    """File endings of the formats that Pillow decodes, such as '.jpg'."""
    return {ending for ending, name in Image.registered_extensions().items()
            if name in decoded_formats()}


def read_image(folder, sample):
    """The image as viewers show it, (3, H, W) uint8; raises a FileProblem if it is unreadable."""
    return to_tensor(open_image(folder, sample))


def tiles(side):
    """Tiles of a side: [(start, stop, first, last)]; predictions in first..last are kept."""
    count = 1 if side <= TILE else math.ceil(side / (TILE - 2 * MARGIN))
    edges = [round(i * side / count) for i in range(count + 1)]
    return [(max(first - MARGIN, 0), min(last + MARGIN, side), first, last)
            for first, last in zip(edges, edges[1:])]


def predict_image(predict, model, image, device):
    """Class indices (H, W) uint8, on the CPU, of one image.

    Args:
        predict: function from `predictor`. image: (3, H, W) uint8 of any size.
    """
    height, width = image.shape[1:]
    whole = height * width <= TILE * TILE
    rows = [(0, height, 0, height)] if whole else tiles(height)
    columns = [(0, width, 0, width)] if whole else tiles(width)
    found = torch.empty((height, width), dtype=torch.uint8)
    for top, bottom, first_row, last_row in rows:
        for left, right, first, last in columns:
            part = normalise(image[None, :, top:bottom, left:right].to(device))
            with precision.varying_sizes():
                index = predict(model, part)[0].to(torch.uint8).cpu()
            found[first_row:last_row, first:last] = index[
                first_row - top:last_row - top, first - left:last - left]
    return found


@torch.no_grad()
def predict_folder(model, folder, samples, world, on_image, predict):
    """Predict the images of this rank.

    Args:
        model: network with (N, 3, H, W) -> (N, C, H, W) logits, on the device of the world, or the
            result of `precision.half_in_evaluation` for it.
        on_image: called as on_image(position, image (3, H, W) uint8, None,
            {'prediction': (H, W)}).
        predict: function from `predictor`.

    Returns:
        One line for each image that cannot be read.
    """
    model.eval()
    problems = []
    positions = range(world.rank, len(samples), world.size)
    for position in tqdm(positions, unit='image', disable=None if world.is_main else True):
        try:
            image = read_image(folder, samples[position])
        except FileProblem as problem:
            problems.append(str(problem))
            continue
        found = predict_image(predict, model, image, world.device)
        on_image(position, image, None, {'prediction': found})
    return problems
