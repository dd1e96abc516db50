"""DSSN: a dual-level Siamese structure network (ACM MM 2023).

B labeled and B unlabeled images, C classes, H x W the crop. Image level: the student's
predictions on two strong views s1, s2. Feature level: its predictions from two channel-dropped
copies fp1, fp2 of the weak view's features. At both levels the two views are supervised by
pseudo-labels and pulled together by a pixel-wise contrastive loss.
"""
from dataclasses import dataclass

import torch

from dssn.config import StrongViewsConfig, key
from dssn.losses import (build_labeled_loss, labeled_pixels, masked_cross_entropy,
                         pixel_contrast)
from dssn.methods import Terms
from dssn.mixing import box_mask, paste
from dssn.pseudo_labels import PseudoLabels, build_selection, classes


@dataclass(frozen=True)
class DSSNConfig(StrongViewsConfig):
    """The keys that only DSSN has."""
    selection: str = key('class_max', 'which pseudo-labels are trusted',
                         choices=('class_max', 'class_topk', 'fixed', 'none'))
    gate: float = key(0.92, "class_max: a class's peak confidence must be above this",
                      low=0, below=1)
    ratio: float = key(0.96, "class_max: a pixel must be above this share of its class's peak",
                       low=0, below=1)
    top: float = key(0.6, 'class_topk: share of each predicted class to select', above=0, high=1)
    conf_thresh: float = key(0.95, 'fixed: least confidence', low=0, high=1)
    beta: float = key(0.996, "share of itself the teacher keeps at each step (EMA's alpha)",
                      low=0, below=1)
    warm_up_epochs: int = key(0, 'epochs in which the teacher is the student and the strong views '
                                 'have no pseudo-label loss; 0: the first step only', low=0)
    teacher_bn: str = key('batch_first_epoch', "the teacher's BN: batch statistics in the first "
                                               'epoch as in the release, or running ones always',
                          choices=('batch_first_epoch', 'running'))
    lean: bool = key(False, 'leave out work whose only effect is on batch statistics: perturbed '
                            'copies of labeled images, and the backward pass through the clean '
                            'prediction of unlabeled ones')


class DSSN:
    """L = 1/2 [L_x + 1/4 (L_s1 + L_s2 + L_fp1 + L_fp2) + 0.01 (L_con_s + L_con_fp)]."""
    name = 'DSSN'
    Config = DSSNConfig
    uses_unlabeled = True
    uses_teacher = True

    def __init__(self, cfg):
        self.cfg = cfg
        self.labeled_loss = build_labeled_loss(cfg.criterion, cfg.accumulate)
        self.select = build_selection(cfg)
        self.warming_up, self.watched = True, False

    def start_step(self, epoch, step, teacher, watched=False):
        """Set what depends on the time: warm-up (by epoch, or the first step) and teacher's BN."""
        self.watched = watched
        self.warming_up = step == 0 or epoch < self.cfg.warm_up_epochs
        # In the release the teacher leaves training mode when it is first evaluated.
        teacher.train(epoch == 0 and self.cfg.teacher_bn == 'batch_first_epoch')

    @property
    def keep_rate(self):
        """The EMA's alpha after this step; 0 makes the teacher a copy of the student."""
        return 0.0 if self.warming_up else self.cfg.beta

    def __call__(self, student, teacher, x, u, v):
        n = len(x.weak)
        insides = [box_mask(box, u.valid.shape[1:]) for box in (u.box1, u.box2)]
        # The teacher first: what it needs in passing is gone when the student's passes fill memory.
        taught, weak_label = ([], None) if self.warming_up else self.teach(teacher, u, v, insides)

        clean, fp1, fp2 = student(torch.cat([x.weak, u.weak]),                 # (2B, C, H, W) and
                                  perturb=len(u.weak), lean=self.cfg.lean)     # (B, C, H, W) each
        s1, s2 = student(torch.cat([paste(u.strong1, v.strong1, insides[0]),
                                    paste(u.strong2, v.strong2, insides[1])])).chunk(2)

        logits = clean[n:].detach()                                            # (B, C, H, W)
        own = PseudoLabels(classes(logits), self.select(logits), u.valid)      # (B, H, W) each
        losses = {
            'supervised': self.labeled_loss(clean[:n], x.label),
            'feature1': masked_cross_entropy(fp1, *own),
            'feature2': masked_cross_entropy(fp2, *own),
            'contrast_image': pixel_contrast(s1, s2),
            'contrast_feature': pixel_contrast(fp1, fp2),
        }
        labels = {'feature': own}
        shares = {'selected_feature': share(own.selected, u.valid)}
        for i, strong, pseudo in zip((1, 2), (s1, s2), taught):
            losses[f'image{i}'] = masked_cross_entropy(strong, *pseudo)
            labels[f'image{i}'] = pseudo
            shares[f'selected_image{i}'] = share(pseudo.selected, pseudo.valid)
        if taught:
            shares['agreement'] = share(own.label == weak_label, u.valid)
        predictions = {'weak': own.label, 'strong1': classes(s1), 'strong2': classes(s2)} \
            if self.watched else {}
        return Terms(losses, shares, labels, predictions)

    def teach(self, teacher, u, v, insides):
        """The teacher's `PseudoLabels` for s1 and s2, a list, and its classes of `u.weak`."""
        weak, partner = predict_weak(teacher, u, v)                            # (B, C, H, W) each
        weak_label, partner_label = classes(weak), classes(partner)            # (B, H, W) each
        return [PseudoLabels(paste(weak_label, partner_label, inside),
                             self.select(paste(weak, partner, inside)),
                             paste(u.valid, v.valid, inside)) for inside in insides], weak_label

    def counts(self, x, u, v):
        """{term or share: how many pixels it is a mean over}, scalars on the device."""
        valid = u.valid.sum()
        every = torch.full_like(valid, u.valid.numel())
        counts = {'supervised': labeled_pixels(x), 'feature1': valid, 'feature2': valid,
                  'selected_feature': valid, 'agreement': valid,
                  'contrast_image': every, 'contrast_feature': every}
        for i, box in ((1, u.box1), (2, u.box2)):
            counts[f'image{i}'] = counts[f'selected_image{i}'] = paste(
                u.valid, v.valid, box_mask(box, u.valid.shape[1:])).sum()
        return counts

    def total(self, losses):
        """The paper's sum; while warming up there are no image1 and image2."""
        image1, image2 = losses.get('image1', 0), losses.get('image2', 0)
        return 0.5 * (losses['supervised']
                      + 0.25 * (image1 + image2 + losses['feature1'] + losses['feature2'])
                      + 0.01 * (losses['contrast_image'] + losses['contrast_feature']))


@torch.no_grad()
def predict_weak(teacher, u, v):
    """The teacher's logits on the weak views of `u` and of the partners `v`, (B, C, H, W) each.

    On batch statistics the two are separate passes, partner first, because each moves the running
    statistics; on running statistics one pass gives the same numbers.
    """
    if teacher.training:
        partner = teacher(v.weak)
        return teacher(u.weak), partner
    return teacher(torch.cat([u.weak, v.weak])).chunk(2)


def share(selected, valid):
    """Share of the valid pixels (B, H, W) that are selected; 0 if none is valid."""
    return (selected & valid).sum() / valid.sum().clamp(min=1).float()
