"""Data sets: from a draw (which sample, which pass) to the views of a training step."""
from typing import NamedTuple, Optional

import numpy as np
import torch
from torch.utils.data import Dataset

from dssn.batch import Batch, Labeled, Unlabeled
from dssn.data.files import image_size, open_image, open_mask
from dssn.data.views import NO_BOX, base_view, cutmix_box, generator, strong_view
from dssn.errors import UserError

# Names of a sample's views in its random numbers; see `dssn.data.views.generator`.
LABELED, UNLABELED, PARTNER = 0, 10, 20
BASE, STRONG1, STRONG2, BOX1, BOX2 = range(5)


class Draw(NamedTuple):
    """One row of a training batch: which samples, and in which pass over their lists."""
    labeled: int
    labeled_pass: int
    unlabeled: Optional[int] = None
    partner: Optional[int] = None
    unlabeled_pass: Optional[int] = None


class TrainSet(Dataset):
    """Maps a `Draw` to one row of a `Batch`: Labeled, Unlabeled and its CutMix partner.

    An item is a UserError instead where a file is bad; the loop raises it (a worker process would
    bury it in a traceback).
    """

    def __init__(self, cfg, labeled, unlabeled=None):
        self.cfg, self.labeled, self.unlabeled = cfg, labeled, unlabeled

    def __getitem__(self, draw):
        try:
            x = self.labeled_row(draw)
            if draw.unlabeled is None:
                return Batch(x, None, None)
            return Batch(x, *self.unlabeled_rows(draw))
        except UserError as error:
            return error

    def labeled_row(self, draw):
        cfg, sample = self.cfg, self.labeled[draw.labeled]
        image = open_image(cfg.data_root, sample)
        mask = open_mask(cfg.data_root, sample, cfg.nclass, image.size, cfg.ignore_index)
        rng = generator(cfg.seed, draw.labeled_pass, draw.labeled, LABELED + BASE)
        image, mask = base_view(image, mask, cfg.crop_size, rng)
        return Labeled(to_tensor(image), label_tensor(mask), torch.tensor(draw.labeled))

    def unlabeled_rows(self, draw):
        """The image's views and its partner's; one decoding where both are the same image."""
        cfg = self.cfg
        image = open_image(cfg.data_root, self.unlabeled[draw.unlabeled])
        partner = image if draw.partner == draw.unlabeled else \
            open_image(cfg.data_root, self.unlabeled[draw.partner])
        boxes = [cutmix_box(cfg.crop_size, self.rng(draw, draw.unlabeled, UNLABELED + box))
                 for box in (BOX1, BOX2)]
        return (self.views(draw, draw.unlabeled, image, UNLABELED, boxes),
                self.views(draw, draw.partner, partner, PARTNER, boxes))

    def views(self, draw, index, image, role, boxes):
        cfg = self.cfg
        image, mask = base_view(image, None, cfg.crop_size, self.rng(draw, index, role + BASE))
        weak = to_tensor(image)
        # Of a partner's strong views no more than the boxes is looked at.
        parts = boxes if role == PARTNER else (None, None)
        strong = [self.strong_view(image, weak, self.rng(draw, index, role + view), part)
                  for view, part in zip((STRONG1, STRONG2), parts)]
        return Unlabeled(weak, *strong, torch.from_numpy(np.asarray(mask) != 255),
                         *[torch.tensor(box) for box in boxes], torch.tensor(index))

    def strong_view(self, image, weak, rng, box):
        """A strong view of the image; with a box, that of it in the weak view."""
        if box == NO_BOX:
            return weak
        cfg = self.cfg
        strong = to_tensor(strong_view(image, rng, cfg.num_aug, cfg.flag_use_random_num_sampling,
                                       box))
        if box is None:
            return strong
        top, left, height, width = box
        view = weak.clone()
        view[:, top:top + height, left:left + width] = strong
        return view

    def rng(self, draw, index, view):
        return generator(self.cfg.seed, draw.unlabeled_pass, index, view)


def weak_truth(cfg, samples, index, number, role=UNLABELED):
    """The mask of an unlabeled image, cut as its weak view was. For watching, never for training.

    Args:
        samples: the unlabeled list's. index: position in it. number: the pass over the list.
        role: UNLABELED, or PARTNER for the view that the image has as a CutMix partner.

    Returns:
        (H, W) int64, 255 = no class; all of it where the list names no mask.

    Raises:
        UserError: the mask is missing or bad.
    """
    sample = samples[index]
    if sample.mask is None:
        return torch.full((cfg.crop_size, cfg.crop_size), 255, dtype=torch.long)
    size = image_size(cfg.data_root, sample)
    mask = open_mask(cfg.data_root, sample, cfg.nclass, size, cfg.ignore_index)
    # The draws depend on an image's size alone, so the mask can stand for its image.
    _, mask = base_view(mask, mask, cfg.crop_size, generator(cfg.seed, number, index, role + BASE))
    return label_tensor(mask)


class EvalSet(Dataset):
    """Whole images with truth, in list order: (uint8 (3, H, W), int64 (H, W), position)."""

    def __init__(self, cfg, samples):
        self.cfg, self.samples = cfg, samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        try:
            image = open_image(self.cfg.data_root, sample)
            mask = open_mask(self.cfg.data_root, sample, self.cfg.nclass, image.size,
                             self.cfg.ignore_index)
        except UserError as error:
            return error
        return to_tensor(image), label_tensor(mask), index


def to_tensor(image):
    """Pillow RGB -> uint8 (3, H, W)."""
    # Band by band: five times as fast as to take the interleaved pixels and move the axis.
    bands = [np.frombuffer(image.tobytes('raw', band), np.uint8) for band in 'RGB']
    return torch.from_numpy(np.stack(bands)).view(3, image.height, image.width)


def label_tensor(mask):
    """Pillow L -> int64 (H, W)."""
    return torch.from_numpy(np.array(mask)).long()
