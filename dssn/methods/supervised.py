"""The baseline: the labeled loss alone."""
from dataclasses import dataclass

from dssn.keys import Config
from dssn.losses import build_labeled_loss
from dssn.methods import Terms
from dssn.pseudo_labels import classes


@dataclass(frozen=True)
class SupervisedConfig(Config):
    """Supervised training has only the keys that all methods share."""
    takes_unlabeled = False


class Supervised:
    """L = L_x on the labeled list; an epoch is one pass over it, or `epoch_steps` steps."""
    name = 'supervised'
    Config = SupervisedConfig
    uses_unlabeled = False
    uses_teacher = False

    def __init__(self, cfg):
        self.labeled_loss = build_labeled_loss(cfg)
        self.watched = False

    def start_step(self, epoch, step, teacher, watched=False):
        """The objective stays the same during training."""
        self.watched = watched

    def __call__(self, student, teacher, labeled, unlabeled, partner):
        logits = student(labeled.image)                              # (B, C, H, W)
        predictions = {'labeled': classes(logits)} if self.watched else {}
        return Terms({'supervised': self.labeled_loss(logits, labeled.label)},
                     predictions=predictions)

    def total(self, losses):
        return losses['supervised']
