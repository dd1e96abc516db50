"""Prediction of images without ground truth, of any size and format.

Images are read as viewers show them (rotated by EXIF, the first frame of an animation).
Transparency is ignored, as in training. An image with more than 8 bits a channel is refused, since
there is no standard conversion to 8 bits.
"""
import glob
import os
from collections import Counter

import torch
from PIL import Image
from tqdm import tqdm

from dssn import precision
from dssn.batch import normalise
from dssn.data.datasets import to_tensor
from dssn.data.files import (
    TIFF_ENDINGS,
    FileProblem,
    decoded_formats,
    image_header,
    open_image,
    tiff_facts,
)
from dssn.data.folders import common_folder, visible_files
from dssn.data.lists import Sample
from dssn.data.video import Frame, VideoReader, frames_of, is_video
from dssn.data.windows import TiffWindows, rasterio_module
from dssn.errors import UserError
from dssn.inference.canvas import Canvas
from dssn.inference.evaluation import group_by_size
from dssn.inference.memory import explained_memory
from dssn.inference.pictures import KINDS, is_picture_name
from dssn.inference.tiles import DEFAULT, blended, parts_of
from dssn.pseudo_labels import classes

SMALLER = 'predict on a machine with more memory, or smaller images'


def find_images(arguments, save_dir, every=1, flag='--images'):
    """Find the images of files, folders (with their subfolders) and patterns such as '*.jpg'.

    In a folder, files are chosen by their endings, and `save_dir` is left out. A file that is
    named, or matches a pattern, is taken with any ending, unless an earlier run wrote it as a
    picture into `save_dir`. A file that is named twice is taken once. A video that is named, or
    matches a pattern, stands for its frames.

    Args:
        every: number of frames of a video from one that is predicted to the next.
        flag: the option that holds the arguments, for errors.

    Returns:
        (the folder that holds all images; `Sample`s without masks and `Frame`s, sorted by the paths
        of their files relative to it; lines on files and folders that were left out).

    Raises:
        UserError: an argument does not exist, cannot be read, is `save_dir`, or no image is found.
    """
    paths = [path for argument in arguments for path in expanded(argument, flag)]
    endings, images, others, notes, own = image_endings(), {}, Counter(), [], 0
    for path in paths:
        if not os.path.isdir(path):
            if is_own_picture(path, save_dir):
                own += 1
            else:
                images[os.path.abspath(path)] = path
        elif os.path.realpath(path) != os.path.realpath(save_dir):
            for file in visible_files(path, flag, save_dir):
                ending = os.path.splitext(file)[1].lower()
                if ending in endings:
                    images[os.path.abspath(file)] = file
                else:
                    others[ending or 'none'] += 1
        elif len(paths) == 1:
            raise UserError(f'--save-dir {save_dir}: must be another folder than {flag}, or the '
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
        raise UserError('; '.join([f'{flag} {named}: no image in it or its subfolders', *notes,
                                   'name a folder with images, or image files']))
    folders = [path if os.path.isdir(path) else os.path.dirname(path) or '.' for path in paths]
    root = folders[0] if len(set(folders)) == 1 else common_folder(folders)
    samples = []
    for name in sorted(os.path.relpath(path, root) for path in images.values()):
        samples += frames_of(root, name, flag, every) if is_video(name) else \
            [Sample(name, None, flag)]
    return root, samples, notes


def expanded(argument, flag):
    """The paths of an argument of `flag`: itself if it exists, else those of its pattern."""
    if os.path.lexists(argument):
        return [argument]
    is_pattern = any(sign in argument for sign in '*?[')
    found = sorted(glob.glob(argument, recursive=True)) if is_pattern else []
    if not found:
        problem = 'nothing matches this pattern' if is_pattern else 'no such file or folder'
        raise UserError(f'{flag} {argument}: {problem}; name a folder with images, or image '
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


def read_image(folder, sample, tiling=None):
    """The image as viewers show it, (3, H, W) uint8.

    Args:
        sample: of `find_images`. tiling: with one, a large TIFF is not read, but a `TiffWindows`
            for it is returned, if that gives the same values and rasterio is installed.

    Raises:
        FileProblem: it is unreadable.
    """
    if tiling and sample.image.lower().endswith(TIFF_ENDINGS) and rasterio_module():
        large = tiling.applies(image_header(folder, sample).size)
        if large and tiff_facts(folder, sample).plain:
            return TiffWindows(folder, sample)
    return to_tensor(open_image(folder, sample))


def predict_whole(predict, model, images, device, canvases):
    """Predict images of one size as a whole.

    Args:
        predict: from `predictor`. images: list of (3, H, W) uint8. canvases: their `Canvas`es.
    """
    scores = predict.scores(model, normalise(torch.stack(images).to(device)))
    for index, score, canvas in zip(classes(scores), scores, canvases):
        prob = predict.probabilities(score[None])[0] if canvas.needs_probabilities else None
        canvas.add(0, 0, index, prob)


def predict_tiles(predict, model, image, device, canvas, tiling, at_once=1, on_tile=None):
    """Predict a large image in tiles; the arguments are those of `predict_whole` and `blended`."""
    def probabilities(tiles):
        with precision.varying_sizes():
            return predict.probabilities(predict.scores(model, normalise(tiles.to(device))))
    for top, left, prob in blended(probabilities, image, tiling, at_once, on_tile):
        canvas.add(top, left, classes(prob[None])[0], prob)


def predict_image(predict, model, image, device, tiling=DEFAULT, canvas=None):
    """Class indices (H, W) uint8, on the CPU, of one image.

    Args:
        predict: from `predictor`. image: (3, H, W) uint8 of any size.
        canvas: gets the prediction; None: a new one.
    """
    canvas = canvas or Canvas(image.shape[1:])
    if tiling.applies(image.shape[1:]):
        predict_tiles(predict, model, image, device, canvas, tiling)
    else:
        with precision.varying_sizes():
            predict_whole(predict, model, [image], device, [canvas])
    return canvas.index


class FolderPrediction:
    """Predicts images one after the other; see `predict_folder`."""

    def __init__(self, model, folder, samples, device, on_image, predict, tiling, at_once, canvas,
                 bar):
        self.model, self.folder, self.samples, self.device = model, folder, samples, device
        self.on_image, self.predict, self.tiling, self.at_once = on_image, predict, tiling, at_once
        self.canvas, self.bar = canvas, bar
        self.video, self.problems, self.tiled = VideoReader(), [], 0

    def run(self, positions):
        for group in group_by_size(self.small_images(positions), self.at_once):
            self.predict_group(group)

    def small_images(self, positions):
        """Yield (image, position) of images to predict as a whole; predict the others at once.

        So at most one large image is in memory.
        """
        for position in positions:
            sample = self.samples[position]
            try:
                image = self.video.read(self.folder, sample) if isinstance(sample, Frame) else \
                    read_image(self.folder, sample, self.tiling)
            except FileProblem as problem:
                self.fail(problem)
                continue
            if self.tiling.applies(image.shape[1:]):
                self.predict_group([(image, position)])
            else:
                yield image, position

    def predict_group(self, group):
        """Predict [(image, position)] of one size; one by one, if memory does not suffice."""
        images, positions = zip(*group)
        size, name = images[0].shape[1:], self.samples[positions[0]].image
        canvases = [self.canvas(position, size) for position in positions]
        try:
            with explained_memory(name, size, SMALLER):
                if self.tiling.applies(size):
                    self.predict_large(images[0], canvases[0])
                else:
                    with precision.varying_sizes():
                        predict_whole(self.predict, self.model, list(images), self.device, canvases)
        except UserError as problem:
            close_all(canvases, False)
            if len(group) == 1:
                self.fail(problem)
            else:
                for item in group:
                    self.predict_group([item])
            return
        except BaseException:
            close_all(canvases, False)
            raise
        close_all(canvases)
        for (image, position), canvas in zip(group, canvases):
            found = {'prediction': canvas.index}
            if canvas.kind:
                found['confidence'] = canvas.confidence
            self.on_image(position, image, None, found)
            self.bar.update()

    def predict_large(self, image, canvas):
        rows, columns = [len(parts_of(side, self.tiling)) for side in image.shape[1:]]
        with tqdm(total=rows * columns, unit='tile', leave=False, disable=self.bar.disable) as bar:
            predict_tiles(self.predict, self.model, image, self.device, canvas, self.tiling,
                          self.at_once, bar.update)
        self.tiled += 1

    def fail(self, problem):
        self.problems.append(str(problem))
        self.bar.update()


def close_all(canvases, complete=True):
    """Close the files of canvases."""
    for canvas in canvases:
        if canvas.probabilities:
            canvas.probabilities.close(complete)


@torch.no_grad()
def predict_folder(model, folder, samples, world, on_image, predict, tiling=DEFAULT, at_once=1,
                   positions=None, canvas=lambda position, size: Canvas(size)):
    """Predict the images of this rank.

    Args:
        model: network with (N, 3, H, W) -> (N, C, H, W) logits, on the device of the world, or the
            result of `precision.half_in_evaluation` for it.
        on_image: called as on_image(position, image (3, H, W) uint8, None,
            {'prediction': (H, W) uint8}), with 'confidence' if the canvas keeps it. A large image
            may be a `TiffWindows`.
        predict: from `predictor`. tiling: `Tiling`.
        at_once: number of images of one size, and of tiles, that are predicted at once.
        positions: of the samples to predict, the same on every rank; None: all.
        canvas: function (position, (height, width)) -> `Canvas`, for what is kept of an image.

    Returns:
        One line for each image that cannot be read, or for which memory does not suffice.
    """
    model.eval()
    positions = range(len(samples)) if positions is None else positions
    own = positions[world.rank::world.size]
    with tqdm(total=len(own), unit='image', disable=None if world.is_main else True) as bar:
        work = FolderPrediction(model, folder, samples, world.device, on_image, predict, tiling,
                                at_once, canvas, bar)
        work.run(own)
    if work.tiled:
        print(f'predicted in overlapping tiles of {tiling.tile}x{tiling.tile} pixels: '
              f'{work.tiled} larger images')
    return work.problems
