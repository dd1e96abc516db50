"""The views of an image in training: weak, strong, and the CutMix box."""
import numpy as np

from dssn.data import photometric as P, transforms as T
from dssn.mixing import BOX_RATIO

NO_BOX = (0, 0, 0, 0)


def generator(*key):
    """The random generator of one view of one sample.

    Args:
        key: whole numbers that name the view: (seed, epoch, index, view).

    The random numbers of a view depend on nothing else. They are therefore the same for any number
    of loader workers, and a resumed run need not replay earlier samples.
    """
    return np.random.default_rng(key)


def base_view(image, mask, size, rng, scale_range=(0.5, 2.0)):
    """Random scale, padding, crop to size x size, flip. The weak view of an unlabeled image.

    Args:
        image: Pillow RGB. mask: Pillow L, or None for an unlabeled image.
        scale_range: smallest and largest factor of the image's sides.

    Returns:
        (image, mask), size x size. The mask is 255 on padding. Without a given mask it is 0
        elsewhere.
    """
    window = T.random_window(image.size, size, rng, scale_range)
    mask = T.padding_mask(window) if mask is None else T.crop_mask(mask, window)
    return T.crop_image(image, window), mask


def strong_view(image, rng, cfg, box=None):
    """The image after random `strong_operations`, or only the part of it in `box`.

    Args:
        image: Pillow RGB. box: (top, left, height, width), see `cutmix_box`; None: the whole image.
    """
    return P.apply(strong_operations(rng, cfg), image, box)


def strong_operations(rng, cfg):
    """Sample the operations of a strong view, in their order.

    Colour jitter, grayscale and blur occur with the probabilities of the config. If
    `cfg.num_aug` > 0, operations of the strong pool follow (see `photometric.strong_pool`).

    Args:
        cfg: a config with the keys of `ViewsConfig`.
    """
    operations = P.sometimes(P.color_jitter, cfg.jitter_probability, rng, cfg.jitter_strength,
                             cfg.jitter_hue)
    operations += P.sometimes(P.grayscale, cfg.grayscale_probability, rng)
    operations += P.sometimes(P.blur, cfg.blur_probability, rng, cfg.blur_sigma)
    if cfg.num_aug:
        operations += P.strong_pool(rng, cfg.num_aug, cfg.flag_use_random_num_sampling)
    return operations


def cutmix_box(size, rng, probability=0.5, area=(0.02, 0.4), ratio=BOX_RATIO):
    """Sample a CutMix box in a size x size crop: (top, left, height, width), or NO_BOX.

    The area is sampled once, uniform in `area` (fractions of the crop). Height/width and position
    are sampled until the box lies in the crop. Height/width is uniform in `ratio` (not
    log-uniform). Sides are rounded down to whole pixels.
    """
    if rng.random() >= probability:
        return NO_BOX
    pixels = rng.uniform(*area) * size * size
    while True:
        aspect = rng.uniform(*ratio)
        height, width = int(np.sqrt(pixels * aspect)), int(np.sqrt(pixels / aspect))
        top, left = (int(side) for side in rng.integers(0, size, 2))
        if top + height <= size and left + width <= size:
            return top, left, height, width
