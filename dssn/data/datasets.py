"""Data sets: from a draw (which sample, which pass) to the views of a training step."""
import os
from typing import List, NamedTuple, Optional, Tuple

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


class Replaced(NamedTuple):
    """A row of a batch in which other samples stand for bad ones."""
    row: Batch
    files: List[Tuple[str, str]]  # (path of the bad sample's image, what is wrong and what stands)


class TrainSet(Dataset):
    """Maps a `Draw` to one row of a `Batch`: Labeled, Unlabeled and its CutMix partner.

    With `max_bad_samples` the next sample of the list that can be read stands for one that cannot,
    and the item is a `Replaced`. An item is a UserError where a file is bad otherwise; the loop
    raises it (a worker process would bury it in a traceback).
    """

    def __init__(self, cfg, labeled, unlabeled=None):
        self.cfg, self.labeled, self.unlabeled = cfg, labeled, unlabeled

    def __getitem__(self, draw):
        bad = []
        try:
            x = self.labeled_row(draw, bad)
            row = Batch(x, None, None) if draw.unlabeled is None else \
                Batch(x, *self.unlabeled_rows(draw, bad))
        except UserError as error:
            return error
        return Replaced(row, bad) if bad else row

    def labeled_row(self, draw, bad):
        cfg = self.cfg

        def read(sample):
            image = open_image(cfg.data_root, sample)
            return image, open_mask(cfg.data_root, sample, cfg.nclass, image.size, cfg.ignore_index)
        index, (image, mask) = self.first_good(self.labeled, draw.labeled, read, bad)
        rng = generator(cfg.seed, draw.labeled_pass, index, LABELED + BASE)
        image, mask = base_view(image, mask, cfg.crop_size, rng)
        return Labeled(to_tensor(image), label_tensor(mask), torch.tensor(index))

    def unlabeled_rows(self, draw, bad):
        """The image's views and its partner's; one decoding where both are the same image."""
        cfg = self.cfg

        def read(sample):
            return open_image(cfg.data_root, sample)
        index, image = self.first_good(self.unlabeled, draw.unlabeled, read, bad)
        other, partner = index, image
        if draw.partner != draw.unlabeled:
            other, partner = self.first_good(self.unlabeled, draw.partner, read, bad)
        boxes = [cutmix_box(cfg.crop_size, self.rng(draw, index, UNLABELED + box))
                 for box in (BOX1, BOX2)]
        return (self.views(draw, index, image, UNLABELED, boxes),
                self.views(draw, other, partner, PARTNER, boxes))

    def first_good(self, samples, index, read, bad):
        """(index, read(sample)) of the sample, or of the first after it that can be read.

        Which one stands for it depends on the list alone, not on when or where it is read.
        """
        cfg, failure = self.cfg, None
        for place in range(index, index + len(samples)):
            place %= len(samples)
            try:
                found = read(samples[place])
            except UserError as error:
                # A folder that is away is no bad sample: the run ends, and goes on when it is back.
                if not cfg.max_bad_samples or not os.path.isdir(cfg.data_root or '.'):
                    raise
                failure = failure or error
                continue
            if place != index:
                bad.append((samples[index].image, f'warning: a bad sample was replaced by '
                            f'{samples[place].image}: {failure}'))
            return place, found
        raise failure

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
