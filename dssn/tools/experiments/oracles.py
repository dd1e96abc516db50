"""Oracles and the control: DSSN's step with ground truth instead of pseudo-labels.

They show what limits a method's gain: wrong pseudo-labels, few of them, or little to gain at all.
They train on masks that a method must never read, so they are not methods: lists of methods do not
name them, and a config must ask for them by name. `masks_of` is the list whose masks they train on;
`unlabeled` and `partner` are then `UnlabeledWithMasks`. Log, results and report show their names.

B unlabeled images, C classes, H x W the crop. A pixel with mask 255 is not trained on, neither at
the feature level nor, after CutMix, at the image level. As in DSSN the losses are divided by the
number of valid pixels, whatever their mask is, and the strong views have no pseudo-label loss
during warm-up.
"""
import dataclasses
from dataclasses import dataclass

import torch

from dssn import methods
from dssn.keys import PartnerConfig
from dssn.labels import IGNORE
from dssn.methods.dssn import DSSNConfig
from dssn.methods.dssn_ablations import AblatedDSSN
from dssn.mixing import paste


class OracleLabels(AblatedDSSN):
    """DSSN whose selected pixels have their true class. The selection is DSSN's.

    With `selection: none` every pixel has its true class: an oracle of labels and selection.
    """
    name = 'oracle_labels'
    masks_of = 'unlabeled'

    def label_features(self, label, logits, unlabeled):
        return self.correct(super().label_features(label, logits, unlabeled), unlabeled.label)

    def label_with_teacher(self, teacher, unlabeled, partner, insides):
        for_features, for_images, label = super().label_with_teacher(
            teacher, unlabeled, partner, insides)
        if for_features is not None:
            for_features = self.correct(for_features, unlabeled.label)
        return for_features, [
            self.correct(pseudo, paste(unlabeled.label, partner.label, inside))
            for pseudo, inside in zip(for_images, insides)], label

    def correct(self, pseudo, mask):
        """`PseudoLabels` with the classes of a mask (B, H, W) int64; 255 is not selected."""
        known = mask != IGNORE
        return pseudo._replace(label=torch.where(known, mask, pseudo.label),
                               selected=pseudo.selected & known)


class OracleSelection(OracleLabels):
    """DSSN that selects only correct pseudo-labels, of those that it would select anyway."""
    name = 'oracle_selection'

    def correct(self, pseudo, mask):
        return pseudo._replace(selected=pseudo.selected & (pseudo.label == mask))


def dssn_key(name):
    """The config key of DSSN with this name."""
    known = DSSNConfig.__dataclass_fields__[name]
    return dataclasses.field(default=known.default, metadata=known.metadata)


@dataclass(frozen=True)
class StrongSupervisedConfig(PartnerConfig):
    """DSSN's keys, without those about pseudo-labels."""
    # Constants, not keys: every pixel is selected and has its true class.
    selection, feature_labels, watch_truth = 'none', 'student', False
    num_aug: int = dssn_key('num_aug')
    flag_use_random_num_sampling: bool = dssn_key('flag_use_random_num_sampling')
    beta: float = dssn_key('beta')
    ema_ramp: bool = dssn_key('ema_ramp')
    warm_up_epochs: int = dssn_key('warm_up_epochs')
    teacher_bn: str = dssn_key('teacher_bn')
    image_views: int = dssn_key('image_views')
    feature_views: int = dssn_key('feature_views')
    contrast: bool = dssn_key('contrast')
    contrast_weight: float = dssn_key('contrast_weight')
    feature_dropout: float = dssn_key('feature_dropout')
    feature_pair: str = dssn_key('feature_pair')
    lean: bool = dssn_key('lean')

    check, complementary = DSSNConfig.check, DSSNConfig.complementary


class StrongSupervised(OracleLabels):
    """The control: DSSN without unlabeled images. It shows what views and teacher bring alone.

    The unlabeled images and their CutMix partners are sampled from the labeled list, in a separate
    order, and every pixel has its true class. The rest is DSSN's: L_x on the weak views of the
    labeled images, strong views with CutMix between labeled images and between their masks,
    perturbed features, contrast, the EMA teacher, the weights. With `image_views: 1,
    feature_views: 0` it is the control of FixMatch: one strong view and no perturbed features. An
    epoch is one pass over the labeled list, or `epoch_steps`.
    """
    name = 'supervised_strong_views'
    Config = StrongSupervisedConfig
    masks_of = 'labeled'


ORACLES = {oracle.name: oracle for oracle in (OracleLabels, OracleSelection, StrongSupervised)}
methods.register(*ORACLES.values())
