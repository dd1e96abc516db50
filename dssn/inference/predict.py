"""Prediction of images without ground truth, of any size and format.

Images are read as viewers show them (rotated by EXIF, the first frame of an animation).
Transparency is ignored, as in training. An image with more than 8 bits a channel is refused, since
there is no standard conversion to 8 bits.
"""
import glob
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
from dssn.data.folders import common_folder, visible_files
from dssn.data.lists import Sample
from dssn.errors import UserError
from dssn.inference.memory import explained_memory
from dssn.inference.pictures import KINDS, is_picture_name

# An image with more than TILE x TILE pixels is predicted in tiles of at most that size. Predictions
# in the margin of a tile are dropped. A tile needs about 3 GiB on a CPU with ResNet-101.
TILE, MARGIN = 2048, 256
SMALLER = 'predict on a machine with more memory, or smaller images'


def find_images(arguments, save_dir):
    """Find the images of files, folders (with their subfolders) and patterns such as '*.jpg'.

    In a folder, files are chosen by their endings, and `save_dir` is left out. A file that is
    named, or matches a pattern, is taken with any ending, unless an earlier run wrote it as a
    picture into `save_dir`. A file that is named twice is taken once.

    Returns:
        (the folder that holds all images; `Sample`s without masks, sorted by their paths relative
        to it; lines on files and folders that were left out).

    Raises:
        UserError: an argument does not exist, cannot be read, is `save_dir`, or no image is found.
    """
    paths = [path for argument in arguments for path in expanded(argument)]
    endings, images, others, notes, own = image_endings(), {}, Counter(), [], 0
    for path in paths:
        if not os.path.isdir(path):
            if is_own_picture(path, save_dir):
                own += 1
            else:
                images[os.path.abspath(path)] = path
        elif os.path.realpath(path) != os.path.realpath(save_dir):
            for file in visible_files(path, '--images', save_dir):
                ending = os.path.splitext(file)[1].lower()
                if ending in endings:
                    images[os.path.abspath(file)] = file
                else:
                    others[ending or 'none'] += 1
        elif len(paths) == 1:
            raise UserError(f'--save-dir {save_dir}: must be another folder than --images, or the '
                            'pictures would be predicted next time')
        else:
            notes.append(f'folder skipped because it is --save-dir: {path}')
    if own:
        notes.append(f'files skipped because they are pictures in --save-dir: {own}')
    if others:
        kinds = ', '.join(f'{ending}: {count}' for ending, count in sorted(others.items()))
        notes.append(f'files skipped because of their ending: {kinds}')
    if not images:
        named = ' '.join(arguments[:3]) + ' ...' * (len(arguments) > 3)
        raise UserError('; '.join([f'--images {named}: no image in it or its subfolders', *notes,
                                   'name a folder with images, or image files']))
    folders = [path if os.path.isdir(path) else os.path.dirname(path) or '.' for path in paths]
    root = folders[0] if len(set(folders)) == 1 else common_folder(folders)
    return root, [Sample(name, None, '--images') for name in sorted(
        os.path.relpath(path, root) for path in images.values())], notes


def expanded(argument):
    """The paths of an argument of --images: itself if it exists, else those of its pattern."""
    if os.path.lexists(argument):
        return [argument]
    is_pattern = any(sign in argument for sign in '*?[')
    found = sorted(glob.glob(argument, recursive=True)) if is_pattern else []
    if not found:
        problem = 'nothing matches this pattern' if is_pattern else 'no such file or folder'
        raise UserError(f'--images {argument}: {problem}; name a folder with images, or image '
                        'files')
    return found


def is_own_picture(path, save_dir):
    """Whether a `PictureWriter` for `save_dir` may have written the file, by folder and name."""
    folder, name = os.path.split(os.path.realpath(path))
    return os.path.dirname(folder) == os.path.realpath(save_dir) and is_picture_name(name) \
        and os.path.basename(folder) in KINDS


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
        One line for each image that cannot be read, or for which memory does not suffice.
    """
    model.eval()
    problems, tiled = [], 0
    positions = range(world.rank, len(samples), world.size)
    for position in tqdm(positions, unit='image', disable=None if world.is_main else True):
        try:
            image = read_image(folder, samples[position])
        except FileProblem as problem:
            problems.append(str(problem))
            continue
        size = image.shape[1:]
        try:
            with explained_memory(samples[position].image, size, SMALLER):
                found = predict_image(predict, model, image, world.device)
        except UserError as problem:
            problems.append(str(problem))
            continue
        tiled += size[0] * size[1] > TILE * TILE
        on_image(position, image, None, {'prediction': found})
    if tiled:
        print(f'predicted in overlapping tiles of at most {TILE}x{TILE} pixels: {tiled} larger '
              'images')
    return problems
