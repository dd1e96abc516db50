"""The views of an image that training sees: base (weak), strong, and the CutMix box."""
import numpy as np

from dssn.data import photometric as P
from dssn.data import transforms as T

NO_BOX = (0, 0, 0, 0)


def generator(*where):
    """The random numbers of one view of one sample, from whole numbers that name it.

    (seed, epoch, index, view): a view's draws depend on nothing else, so they are the same for
    any number of loader workers, and a run that resumes needs to replay nothing.
    """
    return np.random.default_rng(where)


def base_view(image, mask, size, rng):
    """Random scale, pad, crop to size x size, flip.

    Args:
        image: Pillow RGB. mask: Pillow L, or None for an unlabeled image.

    Returns:
        (image, mask), size x size. The mask is 255 on padding; without a mask it is 0 elsewhere.
    """
    window = T.random_window(image.size, size, rng)
    mask = T.cut_padding(window) if mask is None else T.cut_mask(mask, window)
    return T.cut_image(image, window), mask


def strong_view(image, rng, num_aug=0, random_number=True, box=None):
    """The image after a view's `strong_operations`; of it the `box` (see `cutmix_box`) alone."""
    return P.apply(strong_operations(rng, num_aug, random_number), image, box)


def strong_operations(rng, num_aug=0, random_number=True):
    """Draw jitter, grayscale and blur, each by its chance, then the strong pool if num_aug > 0."""
    operations = P.sometimes(P.color_jitter, 0.8, rng)
    operations += P.sometimes(P.grayscale, 0.2, rng)
    operations += P.sometimes(P.blur, 0.5, rng)
    if num_aug:
        operations += P.strong_pool(rng, num_aug, random_number)
    return operations


def cutmix_box(size, rng, probability=0.5, area=(0.02, 0.4), ratio=(0.3, 1 / 0.3)):
    """Draw a CutMix box in a size x size crop: (top, left, height, width), or NO_BOX.

    The area is drawn once, uniform in `area` of the crop. Height/width (uniform in `ratio`, not
    log-uniform; sides cut to whole pixels) and position are drawn again until the box fits.
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
