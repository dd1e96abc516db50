"""The baseline: the labeled loss alone."""
from dataclasses import dataclass

from dssn.config import Config, key
from dssn.losses import build_labeled_loss, labeled_pixels
from dssn.methods import Terms
from dssn.pseudo_labels import classes


@dataclass(frozen=True)
class SupervisedConfig(Config):
    """The keys that only supervised training has."""
    epoch_steps: int = key(0, 'optimizer steps of an epoch, to which the labeled list is dealt out '
                              'again and again; 0: one pass over it', low=0)


class Supervised:
    """L = L_x on the labeled list; an epoch is one pass over it, or `epoch_steps` steps."""
    name = 'supervised'
    Config = SupervisedConfig
    uses_unlabeled = False
    uses_teacher = False

    def __init__(self, cfg):
        self.labeled_loss = build_labeled_loss(cfg.criterion, cfg.accumulate)
        self.watched = False

    def start_step(self, epoch, step, teacher, watched=False):
        """The objective stays the same during training."""
        self.watched = watched

    def __call__(self, student, teacher, x, u, v):
        logits = student(x.weak)                                    # (B, C, H, W)
        predictions = {'labeled': classes(logits)} if self.watched else {}
        return Terms({'supervised': self.labeled_loss(logits, x.label)}, predictions=predictions)

    def counts(self, x, u, v):
        return {'supervised': labeled_pixels(x)}

    def total(self, losses):
        return losses['supervised']
