"""FixMatch for segmentation: one strong view, labeled by the network itself.

Source: Sohn et al., "FixMatch" (NeurIPS 2020), as the UniMatch code base applies it to
segmentation, with CutMix. n labeled and B unlabeled images, C classes, H x W the crop.
"""
from dataclasses import dataclass

import torch

from dssn.keys import StrongViewsConfig, key
from dssn.losses import build_labeled_loss, masked_cross_entropy
from dssn.methods import Terms
from dssn.mixing import box_mask, paste
from dssn.precision import without_ddp
from dssn.pseudo_labels import PseudoLabels, classes, fixed, fraction


@dataclass(frozen=True)
class FixMatchConfig(StrongViewsConfig):
    """The keys that only FixMatch has."""
    label_ema: float = key(0.0, "EMA's alpha of the teacher that labels the weak views; 0: no "
                                "teacher, the student labels them itself, as in UniMatch's "
                                "program; UniMatch V2's has 0.996 (the default with model: dpt)",
                           low=0, below=1)


class FixMatch:
    """L = 1/2 (L_x + L_s). `labeled_weight` is the factor of L_x, 1/2 by default.

    L_s is the cross-entropy of the strong view s1 against the network's own labels of the weak
    view. It is summed over the pixels with a confidence of at least `conf_thresh`, and divided by
    the number of valid pixels. With `label_ema` see `unimatch_v2.py`.
    """
    name = 'fixmatch'
    Config = FixMatchConfig
    uses_unlabeled = True
    uses_teacher = False

    def __init__(self, cfg):
        self.cfg = cfg
        self.labeled_loss = build_labeled_loss(cfg)
        self.watched = False

    def start_step(self, epoch, step, teacher, watched=False):
        """The objective stays the same during training."""
        self.watched = watched

    def __call__(self, student, teacher, labeled, unlabeled, partner):
        n = len(labeled.image)
        inside = box_mask(unlabeled.box1, unlabeled.valid.shape[1:])           # (B, H, W)

        other = predict_partner(student, partner)                              # (B, C, H, W)
        logits = student(torch.cat([labeled.image, unlabeled.weak]))           # (n + B, C, H, W)
        strong = student(paste(unlabeled.strong1, partner.strong1, inside))    # (B, C, H, W)

        weak = logits[n:].detach()                                             # (B, C, H, W)
        weak_label = classes(weak)                                             # (B, H, W)
        pseudo = PseudoLabels(paste(weak_label, classes(other), inside),
                              fixed(paste(weak, other, inside), self.cfg.conf_thresh),
                              paste(unlabeled.valid, partner.valid, inside))   # (B, H, W) each
        losses = {'supervised': self.labeled_loss(logits[:n], labeled.label),  # L_x
                  'image1': masked_cross_entropy(strong, *pseudo)}             # L_s
        fractions = {'selected_image1': fraction(pseudo.selected, pseudo.valid)}
        predictions = {'weak': weak_label, 'strong1': classes(strong)} if self.watched else {}
        return Terms(losses, fractions, {'image1': pseudo}, predictions)

    def total(self, losses):
        return self.cfg.labeled_weight * losses['supervised'] + 0.5 * losses['image1']


@torch.no_grad()
def predict_partner(student, partner):
    """Logits (B, C, H, W) of the partners' weak views, in evaluation mode.

    BN uses its running statistics and does not update them.
    """
    # Not through DDP: it expects the gradients of a step from the step's first pass.
    network = without_ddp(student)
    was_training = network.training
    network.eval()
    logits = network(partner.weak)
    network.train(was_training)
    return logits
