"""UniMatch: two strong views and one perturbed copy of the features, labeled by the network itself.

Source: Yang et al., "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic
Segmentation" (CVPR 2023). B labeled and B unlabeled images, C classes, H x W the crop.
"""
import torch

from dssn.config import StrongViewsConfig
from dssn.losses import build_labeled_loss, labeled_pixels, masked_cross_entropy
from dssn.methods import Terms
from dssn.methods.fixmatch import predict_partner
from dssn.mixing import box_mask, paste
from dssn.pseudo_labels import PseudoLabels, classes, fixed, share


class UniMatch:
    """L = 1/2 [L_x + 1/4 (L_s1 + L_s2) + 1/2 L_fp].

    L_s1, L_s2 and L_fp are the cross-entropy of two strong views and of a channel-dropped copy of
    the weak view's features against the network's own labels of the weak view, where their
    confidence is at least `conf_thresh`, divided by the count of valid pixels.
    """
    name = 'unimatch'
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
        n, thresh = len(x.weak), self.cfg.conf_thresh
        inside1, inside2 = [box_mask(box, u.valid.shape[1:]) for box in (u.box1, u.box2)]

        partner = predict_partner(student, v)                                  # (B, C, H, W)
        clean, fp = student(torch.cat([x.weak, u.weak]),                       # (2B, C, H, W) and
                            perturb=len(u.weak), views=1)                      # (B, C, H, W)
        s1, s2 = student(torch.cat([paste(u.strong1, v.strong1, inside1),
                                    paste(u.strong2, v.strong2, inside2)])).chunk(2)

        weak = clean[n:].detach()                                              # (B, C, H, W)
        weak_label, partner_label = classes(weak), classes(partner)            # (B, H, W) each
        own = PseudoLabels(weak_label, fixed(weak, thresh), u.valid)           # (B, H, W) each
        losses = {'supervised': self.labeled_loss(clean[:n], x.label),
                  'feature': masked_cross_entropy(fp, *own)}
        labels = {'feature': own}
        shares = {'selected_feature': share(own.selected, u.valid)}
        for i, strong, inside in ((1, s1, inside1), (2, s2, inside2)):
            taught = PseudoLabels(paste(weak_label, partner_label, inside),
                                  fixed(paste(weak, partner, inside), thresh),
                                  paste(u.valid, v.valid, inside))
            losses[f'image{i}'] = masked_cross_entropy(strong, *taught)
            labels[f'image{i}'] = taught
            shares[f'selected_image{i}'] = share(taught.selected, taught.valid)
        predictions = {'weak': weak_label, 'strong1': classes(s1), 'strong2': classes(s2)} \
            if self.watched else {}
        return Terms(losses, shares, labels, predictions)

    def counts(self, x, u, v):
        """{term or share: how many pixels it is a mean over}, scalars on the device."""
        valid = u.valid.sum()
        counts = {'supervised': labeled_pixels(x), 'feature': valid, 'selected_feature': valid}
        for i, box in ((1, u.box1), (2, u.box2)):
            counts[f'image{i}'] = counts[f'selected_image{i}'] = paste(
                u.valid, v.valid, box_mask(box, u.valid.shape[1:])).sum()
        return counts

    def total(self, losses):
        return 0.5 * (losses['supervised'] + 0.25 * (losses['image1'] + losses['image2'])
                      + 0.5 * losses['feature'])
