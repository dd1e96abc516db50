"""A data set for benchmarks: rendered images whose files are about as large as those of photos."""
import os

import numpy as np
from PIL import Image

from dssn.data.lists import Sample
from dssn.tools.data.shapes import render

NOISE = 1.0  # standard deviation in grey levels; makes PNG files as large as those of Cityscapes


def write_images(root, count, size, nclass, kind='jpg'):
    """Render images and masks into a folder; returns their samples.

    Args:
        root: the folder. count: number of images. size: (width, height). nclass: of the masks.
        kind: format of the images, 'jpg' or 'png'.
    """
    samples = []
    for i in range(count):
        rng = np.random.default_rng((0, i))
        image, mask, quality = render(rng)
        sample = Sample(f'{i}_image.{kind}', f'{i}_mask.png', 'synthetic')
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        pixels = np.clip(pixels + rng.normal(0, NOISE, pixels.shape) + 0.5, 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(os.path.join(root, sample.image),
                                                      quality=quality)
        classes = np.asarray(mask.resize(size, Image.Resampling.NEAREST)) % nclass
        Image.fromarray(classes.astype(np.uint8)).save(os.path.join(root, sample.mask))
        samples.append(sample)
    return samples
