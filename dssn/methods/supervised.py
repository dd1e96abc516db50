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
        self.watched = False

    def start_step(self, epoch, step, teacher, watched=False):
        """The objective stays the same during training."""
        self.watched = watched

    def __call__(self, student, teacher, x, u, v):
        logits = student(x.weak)                                    # (B, C, H, W)
        predictions = {'labeled': logits.argmax(1)} if self.watched else {}
        return Terms({'supervised': self.labeled_loss(logits, x.label)}, predictions=predictions)

    def total(self, losses):
        return losses['supervised']
