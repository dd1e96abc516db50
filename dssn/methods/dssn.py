"""DSSN: a dual-level Siamese structure network (ACM MM 2023).

n labeled and B unlabeled images, C classes, H x W the crop. Image level: the student's
predictions on two strong views s1, s2. Feature level: its predictions from two channel-dropped
copies fp1, fp2 of the weak view's features. At both levels the two views are supervised by
pseudo-labels and pulled together by a pixel-wise contrastive loss.

This file is the published objective. What a config can switch off or replace (fewer views, no
contrast, other labels at the feature level, `lean`) is in `dssn_ablations.py`.
"""
from dataclasses import dataclass

import torch

from dssn import ema
from dssn.errors import UserError
from dssn.keys import FeatureViewsConfig, TeacherConfig, ViewsConfig, key
from dssn.losses import build_labeled_loss, masked_cross_entropy, pixel_contrast
from dssn.methods import Terms
from dssn.mixing import box_mask, paste
from dssn.pseudo_labels import PseudoLabels, build_selection, classes, fraction


@dataclass(frozen=True)
class DSSNConfig(FeatureViewsConfig, TeacherConfig):
    """The keys that only DSSN has."""
    num_aug: int = key(0, 'largest number of operations sampled from the strong pool per view; 0: '
                          'no pool', low=0)
    flag_use_random_num_sampling: bool = key(
        True, 'sample the number of operations uniformly from 1..num_aug; false: always num_aug')
    selection: str = key('class_max', 'rule that selects pseudo-labels',
                         choices=('class_max', 'class_topk', 'fixed', 'none'))
    gate: float = key(0.92, 'class_max: pixels of a class are selected only if its peak '
                            'confidence is above this; 0: no gate', low=0, below=1)
    ratio: float = key(0.96, "class_max: a pixel is selected if its confidence is above this "
                             "fraction of its class's peak confidence", low=0, below=1)
    top: float = key(0.6, 'class_topk: fraction of the pixels of each predicted class to select',
                     above=0, high=1)
    ema_ramp: bool = key(False, 'keep at most 1 - 1 / (t + 1) of the teacher after step t = 0, 1, '
                                '...: a young teacher follows the student closely (the default '
                                'with model: dpt)')
    warm_up_epochs: int = key(0, 'epochs in which the teacher is a copy of the student and the '
                                 'strong views have no pseudo-label loss; 0: the first step only',
                              low=0)
    teacher_bn: str = key('batch_first_epoch', "the teacher's BN uses batch statistics in the "
                                               'first epoch (as in the release), or always '
                                               'running statistics',
                          choices=('batch_first_epoch', 'running'))
    image_views: int = key(2, 'number of strong views to train on; 0: no image level', low=0,
                           high=2)
    feature_views: int = key(2, 'number of perturbed copies of the features to train on; 0: no '
                                'feature level', low=0, high=2)
    contrast: bool = key(True, 'use the contrastive loss at each level with two views')
    contrast_weight: float = key(0.01, 'weight of the contrastive losses; contrast: false leaves '
                                       'them out', above=0)
    feature_labels: str = key('student', 'network that labels the feature level: student (as in '
                                         'the release) or teacher', choices=('student', 'teacher'))
    feature_pair: str = key('independent', 'channels that the two perturbed copies lose: sampled '
                                           'for each copy, or complementary: what one copy loses, '
                                           'the other keeps',
                            choices=('independent', 'complementary'))
    lean: bool = key(False, 'leave out work that affects only batch statistics: perturbed '
                            'copies of labeled images, and the backward pass through the clean '
                            'prediction of unlabeled ones')

    def check(self, place):
        ViewsConfig.check(self, place)
        if not self.image_views and not self.feature_views:
            raise UserError(f'{place}: image_views = 0 and feature_views = 0 leave unlabeled '
                            'images unused; set one of them to 1 or 2, or method to supervised')
        unused = []
        if not self.feature_views:
            unused = [('lean', 'feature_views = 0'), ('feature_labels', 'feature_views = 0'),
                      ('feature_dropout', 'feature_views = 0')]
        if self.feature_views < 2:
            unused.append(('feature_pair', f'feature_views = {self.feature_views}'))
        if not self.contrast:
            unused.append(('contrast_weight', 'contrast = false'))
        elif max(self.image_views, self.feature_views) < 2:
            unused.append(('contrast_weight', 'fewer than two views of a level'))
        for name, why in unused:
            value = getattr(self, name, None)
            if value not in (None, DSSNConfig.__dataclass_fields__[name].default):
                raise UserError(f'{place}: {name} = {str(value).lower()} has no effect with {why}; '
                                'leave it out')
        if self.complementary and self.feature_dropout != 0.5:
            raise UserError(f'{place}: feature_pair = complementary needs feature_dropout = 0.5, '
                            f'not {self.feature_dropout}: each copy keeps half of the channels')

    @property
    def complementary(self):
        return self.feature_pair == 'complementary'


class DSSN:
    """L = 1/2 [L_x + 1/4 (L_s1 + L_s2 + L_fp1 + L_fp2) + 0.01 (L_con_s + L_con_fp)].

    `labeled_weight` is the factor of L_x, 1/2 by default; `contrast_weight` is the 0.01.
    """
    name = 'DSSN'
    Config = DSSNConfig
    uses_unlabeled = True
    uses_teacher = True

    def __init__(self, cfg):
        self.cfg = cfg
        self.labeled_loss = build_labeled_loss(cfg)
        self.select = build_selection(cfg)
        self.warming_up, self.step, self.watched = True, 0, False

    def start_step(self, epoch, step, teacher, watched=False):
        """Set what depends on the time: warm-up (by epoch, or the first step) and teacher's BN."""
        self.step, self.watched = step, watched
        self.warming_up = step == 0 or epoch < self.cfg.warm_up_epochs
        # In the release the teacher leaves training mode when it is first evaluated.
        teacher.train(epoch == 0 and self.cfg.teacher_bn == 'batch_first_epoch')

    @property
    def keep_rate(self):
        """The EMA's alpha after this step; 0 makes the teacher a copy of the student."""
        if self.warming_up:
            return 0.0
        return ema.ramp(self.step, self.cfg.beta) if self.cfg.ema_ramp else self.cfg.beta

    def __call__(self, student, teacher, labeled, unlabeled, partner):
        n, size = len(labeled.image), unlabeled.valid.shape[1:]
        inside1, inside2 = box_mask(unlabeled.box1, size), box_mask(unlabeled.box2, size)

        # While warming up the strong views have no pseudo-labels. The teacher comes first: its
        # temporary memory is free again before the student's passes need most.
        pseudo1, pseudo2, teacher_label = (None, None, None) if self.warming_up else \
            self.label_strong(teacher, unlabeled, partner, inside1, inside2)

        clean, fp1, fp2 = student(torch.cat([labeled.image, unlabeled.weak]),  # (n + B, C, H, W),
                                  perturb=len(unlabeled.weak),                 # (B, C, H, W) twice
                                  dropout=self.cfg.feature_dropout,
                                  complementary=self.cfg.complementary)
        s1, s2 = student(torch.cat([                                           # (B, C, H, W) each
            paste(unlabeled.strong1, partner.strong1, inside1),
            paste(unlabeled.strong2, partner.strong2, inside2)])).chunk(2)
        weak = clean[n:].detach()                                              # (B, C, H, W)
        pseudo = PseudoLabels(classes(weak), self.select(weak), unlabeled.valid)

        losses = {'supervised': self.labeled_loss(clean[:n], labeled.label),   # L_x
                  'feature1': masked_cross_entropy(fp1, *pseudo),              # L_fp1
                  'feature2': masked_cross_entropy(fp2, *pseudo),              # L_fp2
                  'contrast_image': pixel_contrast(s1, s2),                    # L_con_s
                  'contrast_feature': pixel_contrast(fp1, fp2)}                # L_con_fp
        if not self.warming_up:
            losses['image1'] = masked_cross_entropy(s1, *pseudo1)              # L_s1
            losses['image2'] = masked_cross_entropy(s2, *pseudo2)              # L_s2
        return self.terms(losses, pseudo, pseudo1, pseudo2, teacher_label, s1, s2)

    def total(self, losses):
        """The paper's sum; L_s1 and L_s2 are 0 while warming up."""
        return (self.cfg.labeled_weight * losses['supervised']
                + 0.5 * (0.25 * (losses.get('image1', 0) + losses.get('image2', 0)
                                 + losses['feature1'] + losses['feature2'])
                         + self.cfg.contrast_weight * (losses['contrast_image']
                                                       + losses['contrast_feature'])))

    def label_strong(self, teacher, unlabeled, partner, inside1, inside2):
        """The teacher's `PseudoLabels` of the two mixed strong views, and its classes (B, H, W) of
        the unlabeled images' weak view."""
        weak, other = predict_weak(teacher, unlabeled, partner,                # (B, C, H, W) each
                                   self.cfg.cutmix_partner == 'batch')
        label, other_label = classes(weak), classes(other)                     # (B, H, W) each
        first, second = [PseudoLabels(paste(label, other_label, inside),
                                      self.select(paste(weak, other, inside)),
                                      paste(unlabeled.valid, partner.valid, inside))
                         for inside in (inside1, inside2)]
        return first, second, label

    def terms(self, losses, pseudo, pseudo1, pseudo2, teacher_label, s1, s2):
        """`Terms`: the losses, and the values that the log and the panels show."""
        labels = {'feature': pseudo}
        fractions = {'selected_feature': fraction(pseudo.selected, pseudo.valid)}
        if not self.warming_up:
            labels.update(image1=pseudo1, image2=pseudo2)
            fractions.update(
                selected_image1=fraction(pseudo1.selected, pseudo1.valid),
                selected_image2=fraction(pseudo2.selected, pseudo2.valid),
                agreement=fraction(pseudo.label == teacher_label, pseudo.valid))
        predictions = {'weak': pseudo.label, 'strong1': classes(s1), 'strong2': classes(s2)} \
            if self.watched else {}
        return Terms(losses, fractions, labels, predictions)


@torch.no_grad()
def predict_weak(teacher, unlabeled, partner, in_batch=False):
    """The teacher's logits (B, C, H, W) on the weak views of the images, and of their partners.

    Without `partner` the second is None. With batch statistics there are two passes, partner first,
    because each updates the running statistics. With running statistics one pass gives the same
    logits. `in_batch`: the partners are the images in reversed order (`cutmix_partner: batch`), so
    one pass over the images gives both.
    """
    if partner is None:
        return teacher(unlabeled.weak), None
    if in_batch:
        weak = teacher(unlabeled.weak)
        return weak, weak.flip(0)
    if teacher.training:
        other = teacher(partner.weak)
        return teacher(unlabeled.weak), other
    return teacher(torch.cat([unlabeled.weak, partner.weak])).chunk(2)
