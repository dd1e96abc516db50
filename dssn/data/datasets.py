"""Data sets: from the indices of a row to its views."""
import os
from typing import List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch.utils.data import Dataset

from dssn.batch import Batch, Labeled, Unlabeled, UnlabeledWithMasks
from dssn.data.files import image_header, open_image, open_image_and_header, open_mask
from dssn.data.palettes import PaletteRecord
from dssn.data.views import NO_BOX, base_view, cutmix_box, generator, strong_view
from dssn.errors import UserError
from dssn.labels import IGNORE

# The views of a sample are numbered role + view. The number is part of the key of their random
# generator, see `dssn.data.views.generator`.
LABELED, UNLABELED, PARTNER = 0, 10, 20
BASE, STRONG1, STRONG2, BOX1, BOX2 = range(5)


class RowIndices(NamedTuple):
    """The samples of one row of a training batch, as indices into their lists.

    A pass is the number of an ordered pass over a list, from 0. If a batch has more samples of one
    kind (labeled or unlabeled), its last rows lack the other kind.
    """
    labeled: Optional[int] = None
    labeled_pass: Optional[int] = None
    unlabeled: Optional[int] = None
    partner: Optional[int] = None
    unlabeled_pass: Optional[int] = None


class RepairedRow(NamedTuple):
    """A row of a batch in which other samples replace unreadable ones."""
    row: Batch
    files: List[Tuple[str, str]]  # (image path of the unreadable sample, message for the log)


class TrainSet(Dataset):
    """Maps `RowIndices` to one row of a `Batch`: Labeled, Unlabeled and its CutMix partner.

    If an index is None, its part of the row is None.

    If `max_bad_samples` > 0, an unreadable unlabeled sample is replaced by the next readable one.
    The item is then a `RepairedRow`. Any other bad file makes the item a UserError, which the
    training loop raises. (A UserError that is raised in a worker process would reach the user as a
    traceback.)

    `with_masks` is for oracles: it makes the unlabeled parts `UnlabeledWithMasks`.
    """

    def __init__(self, cfg, labeled, unlabeled=None, with_masks=False):
        self.cfg, self.labeled, self.unlabeled = cfg, labeled, unlabeled
        self.with_masks = with_masks
        self.palettes = PaletteRecord(cfg.palette)

    def __getitem__(self, indices):
        replaced = []
        try:
            labeled = None if indices.labeled is None else self.labeled_row(indices)
            row = Batch(labeled, None, None) if indices.unlabeled is None else \
                Batch(labeled, *self.unlabeled_rows(indices, replaced))
        except UserError as error:
            return error
        return RepairedRow(row, replaced) if replaced else row

    def labeled_row(self, indices):
        """The labeled sample as `Labeled`. None is replaced: few are left, and all are checked."""
        cfg, index = self.cfg, indices.labeled
        image, mask = self.read(self.labeled[index])
        rng = generator(cfg.seed, indices.labeled_pass, index, LABELED + BASE)
        image, mask = base_view(image, mask, cfg.crop_size, rng, cfg.scale_range)
        return Labeled(to_tensor(image), label_tensor(mask), torch.tensor(index))

    def unlabeled_rows(self, indices, replaced):
        """The unlabeled sample and its partner, or None if it has none of its own.

        If both are one image, it is decoded once.
        """
        cfg = self.cfg

        def read(sample):
            if self.with_masks:
                return self.read(sample)
            return open_image(cfg.data_root, sample), None
        index, files = self.read_or_replace(self.unlabeled, indices.unlabeled, read, replaced)
        partner, partner_files = index, files
        if indices.partner not in (None, indices.unlabeled):
            partner, partner_files = self.read_or_replace(self.unlabeled, indices.partner, read,
                                                          replaced)
        boxes = [cutmix_box(cfg.crop_size, self.rng(indices, index, UNLABELED + box),
                            cfg.cutmix_probability, cfg.cutmix_area)
                 for box in (BOX1, BOX2)]
        return (self.views(indices, index, *files, UNLABELED, boxes),
                None if indices.partner is None else
                self.views(indices, partner, *partner_files, PARTNER, boxes))

    def read(self, sample):
        """(image, mask) of a sample, as Pillow RGB and L."""
        return open_pair(self.cfg, sample, self.palettes)

    def read_or_replace(self, samples, index, read, replaced):
        """(index, read(sample)) of the sample at `index`, or of the next readable one.

        The replacement depends only on the list, not on when or by which process it is read.
        """
        cfg, first_error = self.cfg, None
        for candidate in range(index, index + len(samples)):
            candidate %= len(samples)
            try:
                files = read(samples[candidate])
            except UserError as error:
                # A missing data root is not a bad sample. The run ends, and can be resumed when
                # the folder is back.
                if not cfg.max_bad_samples or not os.path.isdir(cfg.data_root or '.'):
                    raise
                # Nor is one of two palettes that contradict each other: which one comes first
                # depends on the process.
                if getattr(error, 'kind', None) == 'mask_palettes':
                    raise
                first_error = first_error or error
                continue
            if candidate != index:
                replaced.append((samples[index].image, f'warning: a bad sample was replaced by '
                                 f'{samples[candidate].image}: {first_error}'))
            return candidate, files
        raise first_error

    def views(self, indices, index, image, mask, role, boxes):
        """The views of an unlabeled image: `Unlabeled`, with a mask `UnlabeledWithMasks`."""
        cfg, pass_number = self.cfg, indices.unlabeled_pass
        label = mask and crop_to_weak_view(cfg, mask, index, pass_number, role)
        image, padding = base_view(image, None, cfg.crop_size,
                                   self.rng(indices, index, role + BASE), cfg.scale_range)
        weak = to_tensor(image)
        # Only the boxes of a partner's strong views are used.
        parts = boxes if role == PARTNER else (None, None)
        strong = [self.strong_view(image, weak, self.rng(indices, index, role + view), part)
                  for view, part in zip((STRONG1, STRONG2), parts)]
        row = Unlabeled(weak, *strong, torch.from_numpy(np.asarray(padding) != IGNORE),
                        *[torch.tensor(box) for box in boxes], torch.tensor(index))
        return row if label is None else UnlabeledWithMasks(*row, label)

    def strong_view(self, image, weak, rng, box):
        """A strong view, uint8 (3, H, W). With a box, it is strong only in the box."""
        if box == NO_BOX:
            return weak
        strong = to_tensor(strong_view(image, rng, self.cfg, box))
        if box is None:
            return strong
        top, left, height, width = box
        view = weak.clone()
        view[:, top:top + height, left:left + width] = strong
        return view

    def rng(self, indices, index, view):
        """The random generator of a view of an unlabeled sample."""
        return generator(self.cfg.seed, indices.unlabeled_pass, index, view)


def weak_ground_truth(cfg, samples, index, pass_number, role=UNLABELED, palettes=None):
    """The ground truth of the weak view of an unlabeled image. For diagnostics, not for training.

    Args:
        samples: the unlabeled list. index: the sample's index in it.
        pass_number: the number of the pass over the list.
        role: UNLABELED, or PARTNER for the weak view that the image has as a CutMix partner.
        palettes: see `open_mask`.

    Returns:
        (H, W) uint8, 255 = no class. All pixels are 255 if the list names no mask for the image.

    Raises:
        UserError: the mask is missing or bad.
    """
    sample = samples[index]
    if sample.mask is None:
        return torch.full((cfg.crop_size, cfg.crop_size), IGNORE, dtype=torch.uint8)
    header = image_header(cfg.data_root, sample)
    mask = open_mask(cfg.data_root, sample, cfg.nclass, header.size, cfg.ignore_index, palettes,
                     header.turn)
    return crop_to_weak_view(cfg, mask, index, pass_number, role)


def crop_to_weak_view(cfg, mask, index, pass_number, role):
    """A whole mask (Pillow L), cropped like the image's weak view: (H, W) uint8, padding 255.

    The arguments are those of `weak_ground_truth`.
    """
    # The random numbers of the view depend only on the size, so the mask can replace the image.
    rng = generator(cfg.seed, pass_number, index, role + BASE)
    _, mask = base_view(mask, mask, cfg.crop_size, rng, cfg.scale_range)
    return label_tensor(mask)


class EvalSet(Dataset):
    """Whole images with ground truth, in list order.

    An item is (image uint8 (3, H, W), label uint8 (H, W), index), or a UserError if a file is bad.
    """

    def __init__(self, cfg, samples):
        self.cfg, self.samples = cfg, samples
        self.palettes = PaletteRecord(cfg.palette)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        try:
            image, mask = open_pair(self.cfg, sample, self.palettes)
        except UserError as error:
            return error
        return to_tensor(image), label_tensor(mask), index


def open_pair(cfg, sample, palettes=None):
    """(image, mask) of a sample, as Pillow RGB and L; raises a FileProblem if one is bad.

    `palettes` is that of `open_mask`.
    """
    image, header = open_image_and_header(cfg.data_root, sample)
    return image, open_mask(cfg.data_root, sample, cfg.nclass, header.size, cfg.ignore_index,
                            palettes, header.turn)


def to_tensor(image):
    """Pillow RGB -> uint8 (3, H, W)."""
    # Reading the bands one by one is five times faster than moving the axis of the whole array.
    pixels = np.empty((3, image.height * image.width), np.uint8)
    for i, band in enumerate('RGB'):
        pixels[i] = np.frombuffer(image.tobytes('raw', band), np.uint8)
    return torch.from_numpy(pixels).view(3, image.height, image.width)


def label_tensor(mask):
    """Pillow L -> uint8 (H, W)."""
    return torch.from_numpy(np.array(mask))
