"""FixMatch for segmentation: one strong view, labeled by the network itself.

Source: Sohn et al., "FixMatch" (NeurIPS 2020), as the UniMatch code base applies it to
segmentation, with CutMix. B labeled and B unlabeled images, C classes, H x W the crop.
"""
import torch

from dssn.config import StrongViewsConfig
from dssn.losses import build_labeled_loss, labeled_pixels, masked_cross_entropy
from dssn.methods import Terms
from dssn.mixing import box_mask, paste
from dssn.precision import without_ddp
from dssn.pseudo_labels import PseudoLabels, classes, fixed, share


class FixMatch:
    """L = 1/2 (L_x + L_s).

    L_s is the cross-entropy of the strong view s1 against the network's own labels of the weak
    view, where their confidence is at least `conf_thresh`, divided by the count of valid pixels.
    """
    name = 'fixmatch'
    Config = StrongViewsConfig
    uses_unlabeled = True
    uses_teacher = False

    def __init__(self, cfg):
        self.cfg = cfg
        self.labeled_loss = build_labeled_loss(cfg.criterion, cfg.accumulate)
        self.watched = False

    def start_step(self, epoch, step, teacher, watched=False):
        """The objective stays the same during training."""
        self.watched = watched

    def __call__(self, student, teacher, x, u, v):
        inside = box_mask(u.box1, u.valid.shape[1:])                           # (B, H, W)

        partner = predict_partner(student, v)                                  # (B, C, H, W)
        labeled, weak = student(torch.cat([x.weak, u.weak])).chunk(2)          # (B, C, H, W) each
        strong = student(paste(u.strong1, v.strong1, inside))                  # (B, C, H, W)

        weak = weak.detach()
        weak_label = classes(weak)                                             # (B, H, W)
        taught = PseudoLabels(paste(weak_label, classes(partner), inside),
                              fixed(paste(weak, partner, inside), self.cfg.conf_thresh),
                              paste(u.valid, v.valid, inside))                 # (B, H, W) each
        losses = {'supervised': self.labeled_loss(labeled, x.label),
                  'image1': masked_cross_entropy(strong, *taught)}
        shares = {'selected_image1': share(taught.selected, taught.valid)}
        predictions = {'weak': weak_label, 'strong1': classes(strong)} if self.watched else {}
        return Terms(losses, shares, {'image1': taught}, predictions)

    def counts(self, x, u, v):
        """{term or share: how many pixels it is a mean over}, scalars on the device."""
        mixed = paste(u.valid, v.valid, box_mask(u.box1, u.valid.shape[1:])).sum()
        return {'supervised': labeled_pixels(x), 'image1': mixed, 'selected_image1': mixed}

    def total(self, losses):
        return 0.5 * (losses['supervised'] + losses['image1'])


@torch.no_grad()
def predict_partner(student, v):
    """Logits (B, C, H, W) of the partners' weak views, in evaluation mode.

    It is normalised with running statistics, which it leaves as they are.
    """
    # Not through DDP, which takes a step's first pass for the one that gradients come from.
    network = without_ddp(student)
    was_training = network.training
    network.eval()
    logits = network(v.weak)
    network.train(was_training)
    return logits
