"""Pictures of predictions."""
import os

import numpy as np
from PIL import Image

from dssn.config import colours_of_classes
from dssn.data.classes import IGNORE_COLOUR
from dssn.errors import UserError


def colour(index, colours):
    """Class indices (H, W), 255 = ignore -> RGB uint8 (H, W, 3)."""
    table = np.full((256, 3), IGNORE_COLOUR, np.uint8)
    table[:len(colours)] = colours
    return table[np.asarray(index).astype(np.uint8)]


def side_by_side(image, label, prediction, colours, gap=4):
    """image | truth | prediction as one Pillow image.

    Args:
        image: (3, H, W) uint8 tensor. label, prediction: (H, W) class indices.
    """
    parts = [image.permute(1, 2, 0).numpy(), colour(label, colours), colour(prediction, colours)]
    space = np.full((parts[0].shape[0], gap, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([parts[0], space, parts[1], space, parts[2]], 1))


class PictureWriter:
    """Writes `<position>_<name>.png` of every evaluated image into a folder; see `evaluate`."""

    def __init__(self, folder, cfg, samples):
        self.folder, self.samples = folder, samples
        self.colours = colours_of_classes(cfg)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise UserError(f'--save-dir {folder}: cannot be written ({error.strerror})') from None

    def __call__(self, position, image, label, predictions):
        prediction, = predictions.values()
        stem = os.path.splitext(os.path.basename(self.samples[position].image))[0]
        panel = side_by_side(image, label, prediction, self.colours)
        panel.save(os.path.join(self.folder, f'{position:05d}_{stem}.png'))
