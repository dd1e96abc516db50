"""The input of a training step: named batches, moved to the device and normalised there.

Shapes: B images of one kind per process, H x W the crop. The number of labeled images may differ
from the number of unlabeled ones. Pixels and labels are uint8 until `to` has moved them to the
device, where pixels become float32 and labels int64. A copy of uint8 moves fewer bytes.
"""
import functools
from typing import NamedTuple, Optional

import torch

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, for RGB in [0, 1]
STD = (0.229, 0.224, 0.225)


class Labeled(NamedTuple):
    """Images with ground truth."""
    image: torch.Tensor  # (B, 3, H, W) uint8; after `to` float32 and normalised
    label: torch.Tensor  # (B, H, W) uint8; after `to` int64; 255 = ignore
    index: torch.Tensor  # (B,) int64, position in the id list


class Unlabeled(NamedTuple):
    """Three views of each image: one weak and two strong ones, before CutMix.

    The strong views of a CutMix partner are strong only inside their boxes. Outside they equal the
    weak view.
    """
    weak: torch.Tensor     # (B, 3, H, W) uint8; after `to` float32 and normalised
    strong1: torch.Tensor  # (B, 3, H, W), likewise
    strong2: torch.Tensor  # (B, 3, H, W), likewise
    valid: torch.Tensor    # (B, H, W) bool, False on padding
    box1: torch.Tensor     # (B, 4) int64: top, left, height, width of strong1's box; 0s: no box
    box2: torch.Tensor     # (B, 4) int64: the same for strong2
    index: torch.Tensor    # (B,) int64, position in the id list


class UnlabeledWithMasks(NamedTuple):
    """`Unlabeled` plus the ground truth of its weak view. Only oracles and the control use it."""
    weak: torch.Tensor     # (B, 3, H, W), as in `Unlabeled`
    strong1: torch.Tensor  # (B, 3, H, W)
    strong2: torch.Tensor  # (B, 3, H, W)
    valid: torch.Tensor    # (B, H, W) bool, False on padding
    box1: torch.Tensor     # (B, 4) int64
    box2: torch.Tensor     # (B, 4) int64
    index: torch.Tensor    # (B,) int64, position in the id list
    label: torch.Tensor    # (B, H, W) uint8; after `to` int64; 255 = ignore or padding


class Batch(NamedTuple):
    """The input of one step.

    `partner` holds the images that CutMix pastes into `unlabeled`, one for each. The loader leaves
    it None with `cutmix_partner: batch`, see `with_partner`. In supervised training `unlabeled` and
    `partner` are None.
    """
    labeled: Labeled
    unlabeled: Optional[Unlabeled]
    partner: Optional[Unlabeled]

    @property
    def images(self):
        """How many images the step trains on, partners not counted."""
        return len(self.labeled.image) + (len(self.unlabeled.weak) if self.unlabeled else 0)


@functools.lru_cache(maxsize=None)
def statistics(device):
    """ImageNet's mean and standard deviation, each (1, 3, 1, 1) float32 on `device`.

    They are cached because copying them to the device makes the host wait.
    """
    return [torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD)]


def normalise(images):
    """uint8 RGB (B, 3, H, W) in 0..255 -> float32, minus ImageNet's mean, over its deviation."""
    mean, std = statistics(images.device)
    return images.float().div_(255).sub_(mean).div_(std)


def denormalise(images):
    """The inverse of `normalise`: float32 (B, 3, H, W) -> uint8 RGB in 0..255."""
    mean, std = statistics(images.device)
    return (images * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)


def to(batch, device):
    """Move a `Batch` to `device`, normalise its images and make its labels int64.

    Copies from pinned memory do not make the host wait.
    """
    def convert(name, tensor):
        tensor = tensor.to(device, non_blocking=True)
        if tensor.dtype != torch.uint8:
            return tensor
        return tensor.long() if name == 'label' else normalise(tensor)

    def move(part):
        return part and type(part)(*[convert(*item) for item in part._asdict().items()])
    return Batch(*[move(part) for part in batch])


def with_partner(batch, parts=1):
    """The batch with its own unlabeled images in reversed order as partners: image B - 1 - i for i.

    The middle image of an odd batch, and a single image, is its own partner. With `accumulate` the
    order is reversed within each of the `parts` that the batch will be split into.
    """
    unlabeled = batch.unlabeled
    places = torch.arange(len(unlabeled.index), device=unlabeled.index.device)
    order = torch.cat([part.flip(0) for part in places.chunk(parts)])
    return batch._replace(partner=type(unlabeled)(*[tensor[order] for tensor in unlabeled]))
