"""The loss terms: labeled losses, masked cross-entropy, pixel-wise contrast.

Shapes: N images, C classes, H x W pixels. Every loss is a scalar on the device of the logits. No
loss makes the host wait for the device. A loss without pixels is 0 and has gradient 0.
"""
import torch
import torch.nn.functional as F

from dssn.labels import IGNORE


def cross_entropy(logits, label):
    """Mean cross-entropy over the labeled pixels (used for Pascal and COCO).

    Args:
        logits: (N, C, H, W) float. label: (N, H, W) int64, 255 = ignore.

    Returns:
        Scalar; 0 with zero gradient if no pixel is labeled.
    """
    # The sum inside cross_entropy is not deterministic on a GPU.
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction='none')
    return loss.sum() / (label != IGNORE).sum().clamp(min=1)


def ohem(logits, label, thresh=0.7, min_kept=100000):
    """Mean cross-entropy over hard pixels (online hard example mining, used for Cityscapes).

    A labeled pixel is kept if the probability of its true class is at most
    max(thresh, the min_kept-th smallest such probability). All labeled pixels are kept if there
    are fewer than min_kept, or if min_kept is 0. Each process counts its own pixels.

    Args:
        logits: (N, C, H, W) float. label: (N, H, W) int64, 255 = ignore.

    Returns:
        Scalar, the mean over the kept pixels; 0 with zero gradient if no pixel is labeled.
    """
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction='none')
    labeled = label != IGNORE
    kept = labeled
    if 0 < min_kept <= label.numel():
        prob = torch.exp(-loss.detach()).masked_fill(~labeled, float('inf'))
        # Infinite if fewer than min_kept pixels are labeled: then all are kept.
        smallest = kth_smallest(prob.flatten(), min_kept)
        kept = labeled & (prob <= smallest.clamp(min=thresh))
    return (loss * kept).sum() / kept.sum().clamp(min=1)


def kth_smallest(values, k):
    """The k-th smallest value of a vector (N,) float, k in 1..N, as a scalar of its dtype.

    Equal values are counted separately. The result is not meant for backpropagation.
    """
    return kth_by_selection(values, k) if values.device.type == 'cpu' else kth_by_sorting(values, k)


def kth_by_selection(values, k):
    """`kth_smallest` for a CPU, where sorting is slower."""
    return values.kthvalue(k).values


def kth_by_sorting(values, k):
    """`kth_smallest` for a GPU, where kthvalue is not deterministic in many PyTorch releases."""
    return values.sort().values[k - 1]


def build_labeled_loss(cfg):
    """The labeled loss that `cfg.criterion` names: `{name: CELoss | OHEM, kwargs: {...}}`.

    With gradient accumulation OHEM uses min_kept / `accumulate` for each part of the batch, but at
    least 1, because 0 would keep all pixels.
    """
    if cfg.criterion['name'] == 'CELoss':
        return cross_entropy
    thresh, min_kept = [cfg.criterion['kwargs'][name] for name in ('thresh', 'min_kept')]
    if min_kept:
        min_kept = max(min_kept // cfg.accumulate, 1)
    return lambda logits, label: ohem(logits, label, thresh, min_kept)


def masked_cross_entropy(logits, label, selected, valid):
    """Cross-entropy of pseudo-labels: summed over selected pixels, divided by the valid ones.

    A batch with few selected pixels therefore has a small weight.

    Args:
        logits: (N, C, H, W) float. label: (N, H, W) int64 in 0..C-1.
        selected: (N, H, W) bool, the pixels with a pseudo-label. valid: (N, H, W) bool, False on
            padding.

    Returns:
        Scalar; 0 with zero gradient if no pixel is selected or none is valid.
    """
    loss = F.cross_entropy(logits, label, reduction='none')
    return (loss * (selected & valid)).sum() / valid.sum().clamp(min=1)


def standardise(logits):
    """Standardise each pixel's logits (N, C, H, W) over classes: mean 0, unbiased deviation 1.

    Returns:
        (standardised logits (N, C, H, W), (N, 1, H, W) bool). The bool is False where all logits
        of a pixel are equal; the logits returned there are only centred.
    """
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.pow(2).sum(1, keepdim=True) / (logits.shape[1] - 1)
    # Equal logits are compared directly, because rounding may give their variance a small value
    # above 0. The second condition is needed because the variance of a tiny spread may be 0.
    spread = (logits.amax(1, keepdim=True) > logits.amin(1, keepdim=True)) & (variance > 0)
    # Replace the variance before the square root: its gradient at 0 is infinite, and a torch.where
    # on its result would not remove that.
    return centred / torch.where(spread, variance, torch.ones_like(variance)).sqrt(), spread


def pixel_contrast(logits1, logits2):
    """Alignment of two views of the same pixels, with positive pairs only.

    The mean squared difference of the standardised logits, over all pixels. It equals
    2(C-1)/C * (1 - Pearson correlation), averaged over pixels. Padding and CutMix boxes are
    included. Both views get a gradient. A pixel whose logits are all equal in one view adds 0 and
    gets no gradient.

    Args:
        logits1, logits2: (N, C, H, W) float.

    Returns:
        Scalar.
    """
    unit1, spread1 = standardise(logits1)
    unit2, spread2 = standardise(logits2)
    return ((unit1 - unit2).pow(2) * (spread1 & spread2)).mean()
