"""UniMatch: two strong views and one perturbed copy of the features, labeled by the network itself.

Source: Yang et al., "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic
Segmentation" (CVPR 2023). n labeled and B unlabeled images, C classes, H x W the crop.
"""
import torch

from dssn.keys import FeatureViewsConfig
from dssn.losses import build_labeled_loss, masked_cross_entropy
from dssn.methods import Terms
from dssn.methods.fixmatch import predict_partner
from dssn.mixing import box_mask, paste
from dssn.pseudo_labels import PseudoLabels, classes, fixed, fraction


class UniMatch:
    """L = 1/2 [L_x + 1/4 (L_s1 + L_s2) + 1/2 L_fp].

    `labeled_weight` is the factor of L_x, 1/2 by default. L_s1 and L_s2 are the cross-entropy of
    two strong views, L_fp that of a channel-dropped copy of the weak view's features. The targets
    are the network's own labels of the weak view. Each is summed over the pixels with a confidence
    of at least `conf_thresh`, and divided by the number of valid pixels.
    """
    name = 'unimatch'
    Config = FeatureViewsConfig
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
        n, size, thresh = len(labeled.image), unlabeled.valid.shape[1:], self.cfg.conf_thresh
        inside1, inside2 = box_mask(unlabeled.box1, size), box_mask(unlabeled.box2, size)

        other = predict_partner(student, partner)                              # (B, C, H, W)
        clean, fp = student(torch.cat([labeled.image, unlabeled.weak]),        # (n + B, C, H, W),
                            perturb=len(unlabeled.weak), views=1,              # (B, C, H, W)
                            dropout=self.cfg.feature_dropout)
        s1, s2 = student(torch.cat([                                           # (B, C, H, W) each
            paste(unlabeled.strong1, partner.strong1, inside1),
            paste(unlabeled.strong2, partner.strong2, inside2)])).chunk(2)

        weak = clean[n:].detach()                                              # (B, C, H, W)
        weak_label, other_label = classes(weak), classes(other)                # (B, H, W) each
        pseudo = PseudoLabels(weak_label, fixed(weak, thresh), unlabeled.valid)
        pseudo1, pseudo2 = [PseudoLabels(paste(weak_label, other_label, inside),
                                         fixed(paste(weak, other, inside), thresh),
                                         paste(unlabeled.valid, partner.valid, inside))
                            for inside in (inside1, inside2)]
        losses = {'supervised': self.labeled_loss(clean[:n], labeled.label),   # L_x
                  'feature': masked_cross_entropy(fp, *pseudo),                # L_fp
                  'image1': masked_cross_entropy(s1, *pseudo1),                # L_s1
                  'image2': masked_cross_entropy(s2, *pseudo2)}                # L_s2
        labels = {'feature': pseudo, 'image1': pseudo1, 'image2': pseudo2}
        fractions = {f'selected_{branch}': fraction(known.selected, known.valid)
                     for branch, known in labels.items()}
        predictions = {'weak': weak_label, 'strong1': classes(s1), 'strong2': classes(s2)} \
            if self.watched else {}
        return Terms(losses, fractions, labels, predictions)

    def total(self, losses):
        return (self.cfg.labeled_weight * losses['supervised']
                + 0.5 * (0.25 * (losses['image1'] + losses['image2']) + 0.5 * losses['feature']))
