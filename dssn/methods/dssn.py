"""DSSN: a dual-level Siamese structure network (ACM MM 2023).

B labeled and B unlabeled images, C classes, H x W the crop. Image level: the student's
predictions on two strong views s1, s2. Feature level: its predictions from two channel-dropped
copies fp1, fp2 of the weak view's features. At both levels the two views are supervised by
pseudo-labels and pulled together by a pixel-wise contrastive loss.
"""
from dataclasses import dataclass

import torch

from dssn.config import StrongViewsConfig, key
from dssn.errors import UserError
from dssn.losses import (build_labeled_loss, labeled_pixels, masked_cross_entropy,
                         pixel_contrast)
from dssn.methods import Terms
from dssn.mixing import box_mask, paste
from dssn.pseudo_labels import PseudoLabels, build_selection, classes, share


@dataclass(frozen=True)
class DSSNConfig(StrongViewsConfig):
    """The keys that only DSSN has."""
    num_aug: int = key(0, 'most operations drawn from the strong pool per view; 0: no pool', low=0)
    flag_use_random_num_sampling: bool = key(
        True, 'draw the number of pool operations uniformly in 1..num_aug; false: always num_aug')
    selection: str = key('class_max', 'which pseudo-labels are trusted',
                         choices=('class_max', 'class_topk', 'fixed', 'none'))
    gate: float = key(0.92, "class_max: a class's peak confidence must be above this; 0: no gate",
                      low=0, below=1)
    ratio: float = key(0.96, "class_max: a pixel must be above this share of its class's peak",
                       low=0, below=1)
    top: float = key(0.6, 'class_topk: share of each predicted class to select', above=0, high=1)
    beta: float = key(0.996, "share of itself the teacher keeps at each step (EMA's alpha)",
                      low=0, below=1)
    warm_up_epochs: int = key(0, 'epochs in which the teacher is the student and the strong views '
                                 'have no pseudo-label loss; 0: the first step only', low=0)
    teacher_bn: str = key('batch_first_epoch', "the teacher's BN: batch statistics in the first "
                                               'epoch as in the release, or running ones always',
                          choices=('batch_first_epoch', 'running'))
    image_views: int = key(2, 'strong views that are trained on; 0: no image level', low=0, high=2)
    feature_views: int = key(2, 'perturbed copies of the features that are trained on; 0: no '
                                'feature level', low=0, high=2)
    contrast: bool = key(True, 'the contrastive loss, at each level that has two views')
    feature_labels: str = key('student', 'who labels the feature level: the student as in the '
                                         'release, or the teacher', choices=('student', 'teacher'))
    lean: bool = key(False, 'leave out work whose only effect is on batch statistics: perturbed '
                            'copies of labeled images, and the backward pass through the clean '
                            'prediction of unlabeled ones')

    def check(self, place):
        if not self.image_views and not self.feature_views:
            raise UserError(f'{place}: image_views = 0 and feature_views = 0 leave nothing to do '
                            'with unlabeled images; set one to 1 or 2, or method to supervised')
        if not self.feature_views and (self.lean or self.feature_labels == 'teacher'):
            name = 'lean = true' if self.lean else 'feature_labels = teacher'
            raise UserError(f'{place}: {name} has no effect with feature_views = 0; leave it out')


class DSSN:
    """L = 1/2 [L_x + 1/4 (L_s1 + L_s2 + L_fp1 + L_fp2) + 0.01 (L_con_s + L_con_fp)].

    A branch that is switched off adds no term and makes no pass. The pseudo-label losses then keep
    their sum of weights: levels weigh alike, and so do the views of a level.
    """
    name = 'DSSN'
    Config = DSSNConfig
    uses_unlabeled = True
    uses_teacher = True

    def __init__(self, cfg):
        self.cfg = cfg
        self.labeled_loss = build_labeled_loss(cfg.criterion, cfg.accumulate)
        self.select = build_selection(cfg)
        self.weights = view_weights(cfg.image_views, cfg.feature_views)
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
        n, size = len(x.weak), u.valid.shape[1:]
        insides = [box_mask(box, size) for box in (u.box1, u.box2)][:self.cfg.image_views]

        # The teacher first: what it needs in passing is gone when the student's passes fill memory.
        for_features, for_images, weak_label = self.teach(teacher, u, v, insides)
        clean, *fp = self.predict_features(student, x, u)                      # (2B or B, C, H, W),
        s = predict_strong(student, u, v, insides)                             # (B, C, H, W) each

        losses = {'supervised': self.labeled_loss(clean[:n], x.label)}
        labels, shares, predictions = {}, {}, {}
        if fp:
            own = clean[n:].detach()                                           # (B, C, H, W)
            predictions['weak'] = classes(own)                                 # (B, H, W)
            taught = for_features or PseudoLabels(predictions['weak'], self.select(own), u.valid)
            for i, view in enumerate(fp, 1):
                losses[f'feature{i}'] = masked_cross_entropy(view, *taught)
            labels['feature'] = taught
            shares['selected_feature'] = share(taught.selected, u.valid)
        for level, views in (('image', s), ('feature', fp)):
            if self.cfg.contrast and len(views) == 2:
                losses[f'contrast_{level}'] = pixel_contrast(*views)
        for i, (view, taught) in enumerate(zip(s, for_images), 1):
            losses[f'image{i}'] = masked_cross_entropy(view, *taught)
            labels[f'image{i}'] = taught
            shares[f'selected_image{i}'] = share(taught.selected, taught.valid)
        if fp and for_images:
            shares['agreement'] = share(predictions['weak'] == weak_label, u.valid)
        if self.watched:
            predictions.update({f'strong{i}': classes(view) for i, view in enumerate(s, 1)})
        return Terms(losses, shares, labels, predictions if self.watched else {})

    def teach(self, teacher, u, v, insides):
        """The teacher's labels: (`PseudoLabels` for the feature level or None, a list of them for
        the strong views, its classes of `u.weak` (B, H, W) or None); what is not needed is not
        predicted."""
        by_teacher, mixed = self.cfg.feature_labels == 'teacher', insides and not self.warming_up
        if not by_teacher and not mixed:
            return None, [], None
        weak, partner = predict_weak(teacher, u, v if mixed else None)         # (B, C, H, W) each
        weak_label = classes(weak)                                             # (B, H, W)
        for_features = PseudoLabels(weak_label, self.select(weak), u.valid) if by_teacher else None
        if not mixed:
            return for_features, [], weak_label
        partner_label = classes(partner)                                       # (B, H, W)
        return for_features, [PseudoLabels(paste(weak_label, partner_label, inside),
                                           self.select(paste(weak, partner, inside)),
                                           paste(u.valid, v.valid, inside))
                              for inside in insides], weak_label

    def predict_features(self, student, x, u):
        """The student on weak views: (clean, fp1, fp2), as far as there is a feature level."""
        if not self.cfg.feature_views:
            return [student(x.weak)]
        return student(torch.cat([x.weak, u.weak]), perturb=len(u.weak), lean=self.cfg.lean,
                       views=self.cfg.feature_views)

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
        """The paper's sum; what is switched off, or not there while warming up, adds nothing."""
        def term(name):
            return losses.get(name, 0)
        a, b = self.weights  # 1/4 each, with two views at both levels
        return 0.5 * (losses['supervised']
                      + (a * term('image1') + a * term('image2')
                         + b * term('feature1') + b * term('feature2'))
                      + 0.01 * (term('contrast_image') + term('contrast_feature')))


def view_weights(image_views, feature_views):
    """Weights of a view's pseudo-label loss, at the image level and at the feature level.

    Together they are 1: an equal part for each level that is there, and in it for each view.
    """
    levels = bool(image_views) + bool(feature_views)
    return [1 / (levels * views) if views else 0.0 for views in (image_views, feature_views)]


def predict_strong(student, u, v, insides):
    """The student's logits on the mixed strong views, (B, C, H, W) each; one batch of all."""
    mixed = [paste(own, partner, inside) for own, partner, inside in
             zip((u.strong1, u.strong2), (v.strong1, v.strong2), insides)]
    return student(torch.cat(mixed)).chunk(len(mixed)) if mixed else ()


@torch.no_grad()
def predict_weak(teacher, u, v):
    """The teacher's logits on the weak views of `u` and of the partners `v`, (B, C, H, W) each.

    Without `v` the second is None. On batch statistics the two are separate passes, partner first,
    because each moves the running statistics; on running statistics one pass gives the same
    numbers.
    """
    if v is None:
        return teacher(u.weak), None
    if teacher.training:
        partner = teacher(v.weak)
        return teacher(u.weak), partner
    return teacher(torch.cat([u.weak, v.weak])).chunk(2)
