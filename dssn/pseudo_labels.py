"""Selection of pseudo-labels: each rule maps logits (N, C, H, W) to a bool mask (N, H, W)."""
from typing import NamedTuple

import torch


class PseudoLabels(NamedTuple):
    """The pseudo-labels of a branch: classes, and the pixels on which they count."""
    label: torch.Tensor     # (N, H, W) int64 in 0..C-1
    selected: torch.Tensor  # (N, H, W) bool, the pixels that the rule selects
    valid: torch.Tensor     # (N, H, W) bool, False on padding


def classes(logits):
    """The class of the largest logit, (N, C, H, W) -> (N, H, W) int64."""
    return logits.max(1).indices  # on a CPU several times faster than argmax


@torch.no_grad()
def class_max(logits, gate=0.92, ratio=0.96):
    """The class-aware rule of the published code: pixels close to their class's peak confidence.

    Per image, m_c is the largest probability of class c over all pixels. A pixel predicted as k
    is selected if m_k > gate and p_k > ratio * m_k (both strict). A class whose peak is not
    above the gate selects nothing. If the gate is at least 0.5, the peak of a selected class lies
    on a pixel of that class, so the class selects at least this pixel.
    """
    prob = logits.softmax(1)
    peak = prob.amax((2, 3))                                # (N, C)
    confidence, label = prob.max(1)                         # (N, H, W) both
    peak_of_label = peak.gather(1, label.flatten(1)).view_as(confidence)
    return (peak_of_label > gate) & (confidence > ratio * peak_of_label)


@torch.no_grad()
def class_topk(logits, top=0.6):
    """The class-aware rule of the paper's abstract: the most confident fraction of every class.

    Per image and predicted class with n pixels, the max(1, floor(top * n)) most confident pixels
    are selected. Pixels that tie with the last of them are selected, too.
    """
    n_images, n_classes = logits.shape[:2]
    confidence, label = logits.softmax(1).max(1)
    shape = label.shape
    confidence, label = confidence.flatten(1), label.flatten(1)          # (N, P)
    # One sort by class and, inside a class, by falling confidence. Float64 keeps different float32
    # values apart after the class has been added.
    order = (2.0 * label.double() - confidence.double()).argsort(1)
    size = torch.zeros(n_images, n_classes, dtype=torch.long, device=logits.device)
    size.scatter_add_(1, label, torch.ones_like(label))                  # (N, C) pixels per class
    first = size.cumsum(1) - size                                        # start of each class
    # 0.7 * 10 is 6.999.. in binary. The small term makes its floor 7.
    count = (size.double() * top + 1e-9).floor().long().clamp(min=1)
    last = (first + count - 1).clamp(max=label.shape[1] - 1)
    threshold = confidence.gather(1, order.gather(1, last))              # (N, C)
    return (confidence >= threshold.gather(1, label)).view(shape)


@torch.no_grad()
def fixed(logits, conf_thresh=0.95):
    """Confidence of at least `conf_thresh` (FixMatch, UniMatch). 0 selects every pixel."""
    return logits.softmax(1).max(1).values >= conf_thresh


@torch.no_grad()
def none(logits):
    """No selection: every pixel."""
    return torch.ones_like(logits[:, 0], dtype=torch.bool)


def build_selection(cfg):
    """The rule that `cfg.selection` names, with its parameters from the config."""
    rules = {
        'class_max': lambda logits: class_max(logits, cfg.gate, cfg.ratio),
        'class_topk': lambda logits: class_topk(logits, cfg.top),
        'fixed': lambda logits: fixed(logits, cfg.conf_thresh),
        'none': none,
    }
    return rules[cfg.selection]


def fraction(selected, valid):
    """Fraction of the valid pixels that are selected: both (N, H, W) bool; 0 if none is valid."""
    return (selected & valid).sum() / valid.sum().clamp(min=1).float()
