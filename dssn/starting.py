"""What a run begins with: its folder, lists, data, learning rate and first weights."""
import contextlib
import datetime
import os

from dssn import checkpoint, config
from dssn.data.check import quick_check
from dssn.data.identity import identify
from dssn.data.lists import read_list
from dssn.distributed import one_line
from dssn.errors import UserError
from dssn.models.weights import load_backbone_weights, pretrained_file
from dssn.saving import INSPECT

ASIDE = 'before_'  # how the folders begin that --fresh moves old runs into


def prepare_folder(path):
    """Make the run's folder and see that it can be written."""
    try:
        os.makedirs(path, exist_ok=True)
        probe = os.path.join(path, '.writable')
        with open(probe, 'w', encoding='utf-8'):
            pass
        os.remove(probe)
    except OSError as error:
        raise UserError(f'save_path = {path}: cannot be written ({error.strerror}); choose another '
                        '--save-path') from None


@contextlib.contextmanager
def writing(folder):
    """A disk that fails before there is anything to lose is the user's to see to."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{folder}: cannot be written: {one_line(error)}; make room, or choose '
                        'another --save-path') from None


def move_aside(folder):
    """Move an earlier run's files into a folder of their own inside; returns lines for the log.

    The logs of the scripts stay: one of them is being written.
    """
    names = [name for name in sorted(os.listdir(folder))
             if name in ('best.pth', 't_best.pth', 'config.yaml', 'metrics.jsonl', 'train.log',
                         checkpoint.LATEST, checkpoint.PREVIOUS, checkpoint.DAMAGED, INSPECT)
             or name.startswith('events.out.tfevents')]
    if not names:
        return []
    target = os.path.join(folder, datetime.datetime.now().strftime(f'{ASIDE}%Y%m%d_%H%M%S'))
    os.mkdir(target)
    for name in names:
        os.replace(os.path.join(folder, name), os.path.join(target, name))
    return [f'--fresh: the run that was here is now in {target}']


def choose_lr(cfg, processes):
    """(initial rate of the backbone, lines for the log): lr, or scaled to the global batch."""
    batch = cfg.batch_size * processes
    if not cfg.reference_batch or batch == cfg.reference_batch:
        return cfg.lr, []
    scaled = cfg.lr * batch / cfg.reference_batch
    known = (f'the global batch is {batch} ({cfg.batch_size} x {processes} processes), lr = '
             f'{cfg.lr:g} is meant for {cfg.reference_batch}')
    if cfg.scale_lr:
        return scaled, [f'{known}: scaled to {scaled:g}']
    return cfg.lr, [f'{known}: scale_lr=true would make it {scaled:g}']


def read_lists(cfg, uses_unlabeled):
    """The samples of labeled, unlabeled (or None), val, and select_on (None without one)."""
    def listed(key, masks):
        path = getattr(cfg, key)
        if not path:
            raise UserError(f"no id list given: set {key} (--{key.replace('_', '-')})")
        return read_list(path, masks, cfg.allow_outside)
    return (listed('labeled_id_path', True),
            listed('unlabeled_id_path', False) if uses_unlabeled else None,
            listed('val_id_path', True),
            read_list(cfg.select_on, True, cfg.allow_outside) if cfg.select_on else None)


def check_data(cfg, world, labeled, unlabeled, val, select_on=None):
    """`quick_check` on rank 0, unless `skip_check`; returns its warnings, lines for the log.

    Raises:
        UserError: on every rank, so that none waits for another that has ended.
    """
    if cfg.skip_check:
        return []
    return world.on_main(lambda: quick_check(cfg, labeled, unlabeled, val, select_on))


def identities(cfg, uses_unlabeled):
    """{'labeled': Identity, 'unlabeled': ..., 'val': ...} of the lists that the run reads."""
    return {role: identify(path) for role, path in config.list_paths(cfg).items()
            if role != 'unlabeled' or uses_unlabeled}


def load_initial_weights(student, cfg):
    """Load `init_from` or the pretrained backbone, if asked; returns lines for the log."""
    if cfg.init_from:
        state, _ = checkpoint.choose_weights(
            checkpoint.read_torch_file(cfg.init_from), cfg.init_from)
        left = checkpoint.load_weights(student, state, cfg.init_from, new_classifier=True)
        note = f'; new, because of another class count: {", ".join(left)}' if left else ''
        return [f'weights from {cfg.init_from}{note}']
    if cfg.pretrained:
        path = pretrained_file(cfg.backbone)
        load_backbone_weights(student, cfg.backbone, cfg.stem, path)
        return [f'backbone from {path}']
    return []
