"""What a training step receives: named batches, moved to the device and normalised there.

B images per process, H x W the crop. Pixels travel as uint8 and become floats on the device.
"""
from typing import NamedTuple, Optional

import torch

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for RGB in [0, 1]
STD = (0.229, 0.224, 0.225)


class Labeled(NamedTuple):
    """Images with truth."""
    weak: torch.Tensor   # (B, 3, H, W) uint8, after `to` float32 and normalised
    label: torch.Tensor  # (B, H, W) int64, 255 = ignore
    index: torch.Tensor  # (B,) int64, position in the id list


class Unlabeled(NamedTuple):
    """Three views of each image: weak, and two strong ones before CutMix.

    A CutMix partner's strong views are strong inside their boxes alone, and weak around them.
    """
    weak: torch.Tensor     # (B, 3, H, W) as above
    strong1: torch.Tensor  # (B, 3, H, W)
    strong2: torch.Tensor  # (B, 3, H, W)
    valid: torch.Tensor    # (B, H, W) bool, False on padding
    box1: torch.Tensor     # (B, 4) int64: top, left, height, width of s1's CutMix box; 0s: none
    box2: torch.Tensor     # (B, 4) int64: the same for s2
    index: torch.Tensor    # (B,) int64, position in the id list


class Batch(NamedTuple):
    """One step's input: labeled `x`, unlabeled `u` and the CutMix partners `v` of u."""
    x: Labeled
    u: Optional[Unlabeled]
    v: Optional[Unlabeled]


def normalise(images):
    """uint8 RGB (B, 3, H, W) in 0..255 -> float32 by ImageNet's mean and deviation."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)


def denormalise(images):
    """The uint8 images that `normalise` was given."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    return (images * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)


def to(batch, device):
    """The batch on `device`, its images normalised."""
    def move(part):
        if part is None:
            return None
        moved = [tensor.to(device, non_blocking=True) for tensor in part]
        return type(part)(*[normalise(t) if t.dtype == torch.uint8 else t for t in moved])
    return Batch(*[move(part) for part in batch])
