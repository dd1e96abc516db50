"""A data set for benchmarks: drawn pictures of any size, about as large in files as photographs."""
import os

import numpy as np
from PIL import Image

from dssn.data.lists import Sample
from dssn.data.shapes import draw

GRAIN = 1.0  # deviation of the noise in grey levels: PNG files become as large as Cityscapes'


def draw_list(root, count, size, nclass, kind='jpg'):
    """Draw `count` images (`kind`: jpg or png) and masks of one size into a folder; their samples."""
    samples = []
    for i in range(count):
        rng = np.random.default_rng((0, i))
        image, mask, quality = draw(rng)
        sample = Sample(f'{i}_image.{kind}', f'{i}_mask.png', 'drawn')
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        pixels = np.clip(pixels + rng.normal(0, GRAIN, pixels.shape) + 0.5, 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(os.path.join(root, sample.image),
                                                      quality=quality)
        classes = np.asarray(mask.resize(size, Image.Resampling.NEAREST)) % nclass
        Image.fromarray(classes.astype(np.uint8)).save(os.path.join(root, sample.mask))
        samples.append(sample)
    return samples
