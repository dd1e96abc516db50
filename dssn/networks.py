"""Student, teacher and optimizer of a run."""
import torch

from dssn import ema, methods, precision
from dssn.distributed import unwrap
from dssn.models import build_model
from dssn.models.pretrained import load_backbone_weights, pretrained_file
from dssn.models.weights import choose_weights, load_weights, read_torch_file
from dssn.optim import optimizer_of


class Networks:
    """The networks on the device, and the optimizer.

    Args:
        initial: whether to load the initial weights of the config (`init_from`, `pretrained`). A
            resumed run does not need them.

    Attributes:
        student: wrapped in DDP if there are several processes. teacher: None if the method has
            none. optimizer: of the student. lr: initial rate of the backbone. notes: lines for the
            log.

    Raises:
        UserError: this machine does not support an option, or a file of weights cannot be used.
    """

    def __init__(self, cfg, world, initial=True):
        precision.check(cfg, world.device)
        line = precision.set_arithmetic(cfg, world.device)
        self.notes = [line] if line else []
        torch.manual_seed(cfg.seed)
        student = build_model(cfg)
        if initial:
            self.notes += load_initial_weights(student, cfg)
        teacher = ema.make_teacher(student) \
            if methods.build(cfg).uses_teacher else None
        self.student = world.prepare_student(student, static=cfg.accumulate == 1)
        self.teacher = teacher and world.prepare_teacher(teacher)
        if cfg.compile:
            self.compile()
        self.lr, notes = choose_lr(cfg, world.size)
        self.notes += notes
        self.optimizer = optimizer_of(cfg, unwrap(self.student), self.lr)

    def compile(self):
        """Have the networks compiled when they are first called; the student without DDP."""
        for network in self.by_role().values():
            network.compile()

    def by_role(self):
        """{'student': network, 'teacher': network}, unwrapped; without None."""
        found = {'student': unwrap(self.student)}
        if self.teacher is not None:
            found['teacher'] = self.teacher
        return found


def choose_lr(cfg, processes):
    """(initial rate of the backbone, lines for the log).

    The rate is `lr`. With `scale_lr` it is scaled to the labeled images in the global batch.
    """
    batch = cfg.labeled_images * processes
    if not cfg.reference_batch or batch == cfg.reference_batch:
        return cfg.lr, []
    scaled = cfg.lr * batch / cfg.reference_batch
    known = (f'the global batch is {batch} ({cfg.labeled_images} x {processes} processes), lr = '
             f'{cfg.lr:g} is meant for {cfg.reference_batch}')
    if cfg.scale_lr:
        return scaled, [f'{known}: scaled to {scaled:g}']
    return cfg.lr, [f'{known}: scale_lr=true would make it {scaled:g}']


def load_initial_weights(student, cfg):
    """Load `init_from` or the pretrained backbone, if the config names one; returns log lines."""
    if cfg.init_from:
        state, _ = choose_weights(
            read_torch_file(cfg.init_from), cfg.init_from, student.state_dict())
        left = load_weights(student, state, cfg.init_from, new_classifier=True)
        note = f'; not loaded, because the number of classes differs: {", ".join(left)}' \
            if left else ''
        return [f'weights from {cfg.init_from}{note}']
    if cfg.pretrained:
        path = pretrained_file(cfg.backbone)
        load_backbone_weights(student, cfg.backbone, cfg.stem, path)
        return [f'backbone from {path}']
    return []
