"""UniMatch V2: two strong views, labeled by a teacher, with complementary channel dropout.

Source: Yang, Zhao and Zhao, "UniMatch V2: Pushing the Limit of Semi-Supervised Semantic
Segmentation" (TPAMI 2025), in the form of its public program. n labeled and B unlabeled images, C
classes, H x W the crop.
"""
from dataclasses import dataclass

import torch

from dssn import ema
from dssn.keys import PseudoLabelsConfig, TeacherConfig
from dssn.losses import build_labeled_loss, masked_cross_entropy
from dssn.methods import Terms
from dssn.methods.dssn import predict_weak
from dssn.methods.fixmatch import FixMatch
from dssn.mixing import box_mask, paste
from dssn.precision import without_ddp
from dssn.pseudo_labels import PseudoLabels, classes, fixed, fraction


@dataclass(frozen=True)
class UniMatchV2Config(PseudoLabelsConfig, TeacherConfig):
    """UniMatch V2 has no keys of its own. CutMix pastes from the same batch: `with_partner`."""


class UniMatchV2:
    """L = 1/2 [L_x + 1/2 (L_s1 + L_s2)].

    `labeled_weight` is the factor of L_x, 1/2 by default. L_s1 and L_s2 are the cross-entropy of
    two strong views against the teacher's labels of the weak view. Each is summed over the pixels
    with a confidence of at least `conf_thresh`, and divided by the number of valid pixels. Hard
    labels and confidences are mixed by CutMix, not logits.
    """
    name = 'unimatch_v2'
    Config = UniMatchV2Config
    uses_unlabeled = True
    uses_teacher = True
    views, dropout = 2, True

    def __init__(self, cfg):
        self.cfg = cfg
        self.labeled_loss = build_labeled_loss(cfg)
        self.step, self.watched = 0, False

    def start_step(self, epoch, step, teacher, watched=False):
        """Set the place on the teacher's ramp. The teacher has running statistics, if any."""
        self.step, self.watched = step, watched
        teacher.eval()

    @property
    def keep_rate(self):
        """The EMA's alpha after this step."""
        return ema.ramp(self.step, self.cfg.beta)

    def __call__(self, student, teacher, labeled, unlabeled, partner):
        insides = [box_mask(box, unlabeled.valid.shape[1:])                    # (B, H, W) each
                   for box in (unlabeled.box1, unlabeled.box2)][:self.views]

        weak, other = predict_weak(teacher, unlabeled, partner,                # (B, C, H, W) each
                                   self.cfg.cutmix_partner == 'batch')
        label, other_label = classes(weak), classes(other)                     # (B, H, W) each
        sure, other_sure = [fixed(logits, self.cfg.conf_thresh) for logits in (weak, other)]
        pseudo = [PseudoLabels(paste(label, other_label, inside),              # (B, H, W) each
                               paste(sure, other_sure, inside),
                               paste(unlabeled.valid, partner.valid, inside))
                  for inside in insides]

        clean = student(labeled.image)                                         # (n, C, H, W)
        strong = self.predict_strong(student, unlabeled, partner, insides)     # (B, C, H, W) each

        losses = {'supervised': self.labeled_loss(clean, labeled.label)}       # L_x
        fractions, labels = {}, {}
        for i, (logits, known) in enumerate(zip(strong, pseudo), 1):
            losses[f'image{i}'] = masked_cross_entropy(logits, *known)         # L_s1, L_s2
            fractions[f'selected_image{i}'] = fraction(known.selected, known.valid)
            labels[f'image{i}'] = known
        predictions = {f'strong{i}': classes(logits) for i, logits in enumerate(strong, 1)} \
            if self.watched else {}
        return Terms(losses, fractions, labels, predictions)

    def predict_strong(self, student, unlabeled, partner, insides):
        """The student's logits (B, C, H, W) on each mixed strong view, in one pass."""
        mixed = [paste(own, other, inside) for own, other, inside in
                 zip((unlabeled.strong1, unlabeled.strong2), (partner.strong1, partner.strong2),
                     insides)]
        factors = complementary_factors(len(unlabeled.weak), student, unlabeled.weak.device) \
            if self.dropout else None
        return student(torch.cat(mixed), factors=factors).chunk(len(mixed))

    def total(self, losses):
        strong = [losses[f'image{i + 1}'] for i in range(self.views)]
        return self.cfg.labeled_weight * losses['supervised'] + 0.5 * sum(strong) / self.views


class FixMatchWithTeacher(UniMatchV2):
    """FixMatch of UniMatch V2's program: L = 1/2 (L_x + L_s1), without dropout."""
    ablates = FixMatch
    views, dropout = 1, False

    @staticmethod
    def applies(cfg):
        return cfg.label_ema > 0

    @property
    def keep_rate(self):
        return ema.ramp(self.step, self.cfg.label_ema)


def complementary_factors(pairs, student, device):
    """Factors of the channels of two views of each image: what one view loses, the other has twice.

    The two views of a pair get 2b and 2(1 - b), where b in {0, 1} is a fair coin for each channel.
    For floor(pairs / 2) of the pairs, chosen at random, all factors are 1. If the network has
    feature maps of several kinds of channels, each kind has its own coins, and the pairs without
    dropout are the same.

    Args:
        pairs: B, the number of images.

    Returns:
        (2B, K) float32, first those of all first views; a list of them for several kinds.
    """
    spared = torch.rand(pairs, device=device).argsort().argsort() < pairs // 2
    factors = []
    for channels in without_ddp(student).feature_channels:
        first = 2.0 * torch.randint(2, (pairs, channels), device=device)
        first = torch.where(spared[:, None], torch.ones_like(first), first)
        factors.append(torch.cat([first, 2 - first]))
    return factors[0] if len(factors) == 1 else factors
