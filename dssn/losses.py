"""The loss terms of the method: labeled losses, masked cross-entropy, pixel-wise contrast.

N images, C classes, H x W pixels. Every loss is a scalar on the logits' device, without a
synchronisation of host and device, and is finite with zero gradient where it has no pixel.
"""
import torch
import torch.nn.functional as F

IGNORE = 255


def cross_entropy(logits, label):
    """Mean cross-entropy over the pixels that are not 255 (method of Pascal and COCO).

    Args:
        logits: (N, C, H, W) float. label: (N, H, W) int64, 255 = ignore.

    Returns:
        Scalar; 0 with zero gradient if no pixel is labeled.
    """
    total = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction='sum')
    return total / (label != IGNORE).sum().clamp(min=1)


def ohem(logits, label, thresh=0.7, min_kept=100000):
    """Cross-entropy over hard pixels only (online hard example mining; Cityscapes).

    Kept are the labeled pixels whose true class has a probability of at most
    max(thresh, the min_kept-th smallest such probability). With fewer labeled pixels than
    min_kept, or with min_kept 0, all are kept. The count is per process.

    Args:
        logits: (N, C, H, W) float. label: (N, H, W) int64, 255 = ignore.

    Returns:
        Scalar, the mean over kept pixels; 0 with zero gradient if no pixel is labeled.
    """
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction='none')
    labeled = label != IGNORE
    kept = labeled
    if 0 < min_kept <= label.numel():
        prob = torch.exp(-loss.detach()).masked_fill(~labeled, float('inf'))
        # Infinite, so that all are kept, when fewer than min_kept pixels are labeled.
        smallest = prob.flatten().kthvalue(min_kept).values
        kept = labeled & (prob <= smallest.clamp(min=thresh))
    return (loss * kept).sum() / kept.sum().clamp(min=1)


def build_labeled_loss(criterion, parts=1):
    """The labeled loss a config names: `{name: CELoss | OHEM, kwargs: {...}}`.

    Args:
        parts: into which batches are split (`accumulate`); OHEM keeps its share in each.
    """
    if criterion['name'] == 'OHEM':
        kwargs = criterion['kwargs']
        return lambda logits, label: ohem(logits, label, kwargs['thresh'],
                                          kwargs['min_kept'] // parts)
    return cross_entropy


def labeled_pixels(x):
    """How many pixels of a `Labeled` batch have a class, a scalar on its device."""
    return (x.label != IGNORE).sum()


def masked_cross_entropy(logits, label, selected, valid):
    """Cross-entropy of pseudo-labels over selected pixels, divided by the count of valid ones.

    Dividing by valid and not by selected pixels weighs a batch by how much of it is trusted.

    Args:
        logits: (N, C, H, W) float. label: (N, H, W) int64 in 0..C-1.
        selected: (N, H, W) bool, the trusted pixels. valid: (N, H, W) bool, False on padding.

    Returns:
        Scalar; 0 with zero gradient if nothing is selected or valid.
    """
    loss = F.cross_entropy(logits, label, reduction='none')
    return (loss * (selected & valid)).sum() / valid.sum().clamp(min=1)


def standardise(logits):
    """Each pixel's logits (N, C, H, W) minus their mean over classes, over their unbiased std.

    Returns:
        The standardised logits and (N, 1, H, W) bool, False where all logits are equal (what is
        returned there is not standardised).
    """
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.pow(2).sum(1, keepdim=True) / (logits.shape[1] - 1)
    # The mean of equal numbers may differ from them by a rounding: the logits themselves tell; and
    # the square of a small spread may be 0.
    spread = (logits.amax(1, keepdim=True) > logits.amin(1, keepdim=True)) & (variance > 0)
    # The square root's gradient at 0 is infinite, and stays so behind a torch.where on its
    # result: the variance itself must be replaced first.
    return centred / torch.where(spread, variance, torch.ones_like(variance)).sqrt(), spread


def pixel_contrast(logits1, logits2):
    """Alignment of two views of the same pixels, positives only; gradient to both views.

    The mean squared difference of standardised logits over all pixels, padding and CutMix boxes
    included: 2(C-1)/C * (1 - Pearson correlation), averaged over pixels. A pixel whose logits are
    all equal in a view has no direction to align: it adds 0 and gets no gradient.

    Args:
        logits1, logits2: (N, C, H, W) float.
    """
    unit1, spread1 = standardise(logits1)
    unit2, spread2 = standardise(logits2)
    return ((unit1 - unit2).pow(2) * (spread1 & spread2)).mean()
