"""DSSN with parts of it switched off or replaced, as a config can ask for.

- `image_views`, `feature_views`: 0, 1 or 2 views of a level.
- `contrast`: whether the views of a level are pulled together.
- `feature_labels`: the network that labels the feature level, student or teacher.
- `lean`: leave out work that affects only batch statistics.

With the default values its steps equal those of `DSSN`, bit for bit.
"""
import torch

from dssn.losses import masked_cross_entropy, pixel_contrast
from dssn.methods import Terms
from dssn.methods.dssn import DSSN, predict_weak
from dssn.mixing import box_mask, paste
from dssn.pseudo_labels import PseudoLabels, classes, fraction


class AblatedDSSN(DSSN):
    """DSSN where a branch that is switched off adds no term and makes no pass.

    The weights of the pseudo-label losses keep their sum. All levels have the same weight, and all
    views of a level, too.
    """
    ablates = DSSN

    def __init__(self, cfg):
        super().__init__(cfg)
        self.weights = view_weights(cfg.image_views, cfg.feature_views)

    @staticmethod
    def applies(cfg):
        """Whether a config of DSSN asks for another objective than the published one."""
        return (cfg.image_views, cfg.feature_views, cfg.contrast, cfg.feature_labels, cfg.lean) \
            != (2, 2, True, 'student', False)

    def __call__(self, student, teacher, labeled, unlabeled, partner):
        n, size = len(labeled.image), unlabeled.valid.shape[1:]
        insides = [box_mask(box, size)
                   for box in (unlabeled.box1, unlabeled.box2)][:self.cfg.image_views]

        by_teacher, for_images, teacher_label = self.label_with_teacher(
            teacher, unlabeled, partner, insides)
        clean, *fp = self.predict_features(student, labeled, unlabeled)  # (n + B or n, C, H, W)
        s = predict_strong(student, unlabeled, partner, insides)         # (B, C, H, W) each

        losses = {'supervised': self.labeled_loss(clean[:n], labeled.label)}
        labels, fractions, predictions = {}, {}, {}
        if fp:
            weak = clean[n:].detach()                                    # (B, C, H, W)
            predictions['weak'] = classes(weak)                          # (B, H, W)
            pseudo = by_teacher or self.label_features(predictions['weak'], weak, unlabeled)
            for i, view in enumerate(fp, 1):
                losses[f'feature{i}'] = masked_cross_entropy(view, *pseudo)
            labels['feature'] = pseudo
            fractions['selected_feature'] = fraction(pseudo.selected, unlabeled.valid)
        for level, views in (('image', s), ('feature', fp)):
            if self.cfg.contrast and len(views) == 2:
                losses[f'contrast_{level}'] = pixel_contrast(*views)
        for i, (view, pseudo) in enumerate(zip(s, for_images), 1):
            losses[f'image{i}'] = masked_cross_entropy(view, *pseudo)
            labels[f'image{i}'] = pseudo
            fractions[f'selected_image{i}'] = fraction(pseudo.selected, pseudo.valid)
        if fp and for_images:
            fractions['agreement'] = fraction(predictions['weak'] == teacher_label, unlabeled.valid)
        if self.watched:
            predictions.update({f'strong{i}': classes(view) for i, view in enumerate(s, 1)})
        return Terms(losses, fractions, labels, predictions if self.watched else {})

    def label_features(self, label, logits, unlabeled):
        """The student's `PseudoLabels` for the feature level.

        Args:
            label: its classes of `unlabeled.weak`, (B, H, W). logits: (B, C, H, W), for the
                selection.
        """
        return PseudoLabels(label, self.select(logits), unlabeled.valid)

    def label_with_teacher(self, teacher, unlabeled, partner, insides):
        """The teacher's pseudo-labels. Views whose labels are not needed are not predicted.

        Returns:
            `PseudoLabels` for the feature level or None, a list of them for the strong views, and
            its classes of `unlabeled.weak` (B, H, W) or None.
        """
        by_teacher, mixed = self.cfg.feature_labels == 'teacher', insides and not self.warming_up
        if not by_teacher and not mixed:
            return None, [], None
        weak, other = predict_weak(teacher, unlabeled, partner if mixed else None,  # (B, C, H, W)
                                   self.cfg.cutmix_partner == 'batch')
        label = classes(weak)                                                       # (B, H, W)
        for_features = PseudoLabels(label, self.select(weak), unlabeled.valid) \
            if by_teacher else None
        if not mixed:
            return for_features, [], label
        other_label = classes(other)                                                # (B, H, W)
        return for_features, [PseudoLabels(paste(label, other_label, inside),
                                           self.select(paste(weak, other, inside)),
                                           paste(unlabeled.valid, partner.valid, inside))
                              for inside in insides], label

    def predict_features(self, student, labeled, unlabeled):
        """The student's logits on weak views: clean, then one for each feature view."""
        if not self.cfg.feature_views:
            return [student(labeled.image)]
        return student(torch.cat([labeled.image, unlabeled.weak]), perturb=len(unlabeled.weak),
                       lean=self.cfg.lean, views=self.cfg.feature_views,
                       dropout=self.cfg.feature_dropout,
                       complementary=self.cfg.complementary)

    def total(self, losses):
        """The paper's sum; a term that is switched off, or missing while warming up, adds 0."""
        def term(name):
            return losses.get(name, 0)
        a, b = self.weights  # 1/4 each, with two views at both levels
        return (self.cfg.labeled_weight * losses['supervised']
                + 0.5 * ((a * term('image1') + a * term('image2')
                          + b * term('feature1') + b * term('feature2'))
                         + self.cfg.contrast_weight * (term('contrast_image')
                                                       + term('contrast_feature'))))


def view_weights(image_views, feature_views):
    """Weights of a view's pseudo-label loss, at the image level and at the feature level.

    Over all views they sum to 1. Each level with views has an equal part of this sum, and each of
    its views an equal part of that.
    """
    levels = bool(image_views) + bool(feature_views)
    return [1 / (levels * views) if views else 0.0 for views in (image_views, feature_views)]


def predict_strong(student, unlabeled, partner, insides):
    """The student's logits on the mixed strong views, (B, C, H, W) each, in one pass."""
    mixed = [paste(own, other, inside) for own, other, inside in
             zip((unlabeled.strong1, unlabeled.strong2), (partner.strong1, partner.strong2),
                 insides)]
    return student(torch.cat(mixed)).chunk(len(mixed)) if mixed else ()
