"""The baseline: the labeled loss alone."""
from dssn.config import Config
from dssn.losses import build_labeled_loss
from dssn.methods import Terms


class Supervised:
    """L = L_x on the labeled list; an epoch is one pass over it."""
    name = 'supervised'
    Config = Config
    uses_unlabeled = False
    uses_teacher = False

    def __init__(self, cfg):
        self.labeled_loss = build_labeled_loss(cfg.criterion)

    def start_step(self, epoch, step, teacher):
        """Nothing changes during training."""

    def __call__(self, student, teacher, x, u, v):
        logits = student(x.weak)                                    # (B, C, H, W)
        return Terms({'supervised': self.labeled_loss(logits, x.label)},
                     predictions={'labeled': logits.argmax(1)})

    def total(self, losses):
        return losses['supervised']
