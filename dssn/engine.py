"""The training run: build or restore it, then train and evaluate epoch by epoch."""
import os
import time

import torch

from dssn import checkpoint, config, ema, methods, precision, records
from dssn.data.check import quick_check
from dssn.data.identity import identify
from dssn.data.lists import read_list
from dssn.data.loaders import TrainLoader
from dssn.distributed import unwrap
from dssn.errors import UserError
from dssn.evaluation import evaluate
from dssn.logbook import Logbook
from dssn.models import build_model
from dssn.models.weights import load_backbone_weights, pretrained_file
from dssn.optim import build_optimizer, load_optimizer
from dssn.update import Update
from dssn.watching import Watch

# Keys that a run may be resumed with other values of: they change no number of it.
FREE_KEYS = ('workers', 'log_every', 'device', 'save_path', 'data_root', 'skip_check',
             'eval_batch_size', 'panel_every', 'panel_images', 'watch_truth',
             'checkpoint_backbone')


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


class Run:
    """Everything a run holds; `fit` trains it to the end from wherever it stands."""

    def __init__(self, cfg, world):
        """Read the lists, build networks, optimizer and loader, and restore `latest.pth`.

        Raises:
            UserError: whatever is wrong with folders, lists, files, weights or checkpoint.
        """
        self.cfg, self.world = cfg, world
        self.names = config.names_of_classes(cfg)
        method = methods.find(cfg.method, 'config')
        if world.is_main:
            prepare_folder(cfg.save_path)
        labeled, unlabeled, self.val, self.select_on = read_lists(cfg, method.uses_unlabeled)
        warnings = check_data(cfg, world, labeled, unlabeled, self.val, self.select_on)
        self.loader = TrainLoader(cfg, labeled, unlabeled, world.rank, world.size,
                                  pin=world.device.type == 'cuda')
        self.total_steps = cfg.epochs * self.loader.steps_per_epoch
        self.method = method(cfg)
        self.log = Logbook(cfg, world, self.total_steps)
        self.watch = Watch(cfg, world, self.log, unlabeled)
        self.epoch, self.seconds = 0, 0.0
        self.best = {}  # {role: the highest mIoU so far, on select_on if there is such a list}
        self._build(warnings)

    def _build(self, warnings):
        cfg, world = self.cfg, self.world
        precision.check(cfg, world.device)
        precision.set_tf32(cfg.tf32)
        latest = os.path.join(cfg.save_path, 'latest.pth')
        saved = checkpoint.read_torch_file(latest) if os.path.isfile(latest) else None
        torch.manual_seed(cfg.seed)
        student = build_model(cfg)
        notes = [] if saved is not None else load_initial_weights(student, cfg)
        teacher = ema.make_teacher(student) if self.method.uses_teacher else None
        if cfg.compile:
            for network in (student, teacher):
                if network is not None:
                    network.compile()
        self.student = world.prepare_student(student, static=cfg.accumulate == 1)
        self.teacher = teacher and world.prepare_teacher(teacher)
        lr, note = choose_lr(cfg, world.size)
        notes += note
        self.optimizer = build_optimizer(unwrap(self.student), lr, cfg.lr_multi)
        self.update = Update(cfg, world, self.method, self.student, self.teacher, self.optimizer,
                             lr, self.total_steps)
        if saved is not None:
            self._restore(saved, latest)
        self.finished = self.epoch >= cfg.epochs
        if not self.finished:
            self.log.open(config.dump(cfg), self.epoch, self.epoch * self.loader.steps_per_epoch,
                          identities(cfg, self.method.uses_unlabeled))
            notes += self.watch.notes()
        for note in warnings + notes:
            self.log.say(note)
        if saved is not None and not self.finished:
            self.log.say(f'resuming {latest}: {self.epoch} of {cfg.epochs} epochs are done')
        if world.size > 1 and world.device.type == 'cpu':
            self.log.say('BatchNorm is not synchronised between processes on a CPU: each uses its '
                         "own batch's statistics; rank 0's running ones are evaluated and saved")

    def _restore(self, saved, path):
        if not isinstance(saved, dict) or not {'optimizer', 'world', 'config'} <= set(saved):
            raise UserError(f'{path}: cannot be resumed from: not a latest.pth of this program; '
                            'move it away or choose another --save-path')
        now = {**config.to_dict(self.cfg), 'processes': self.world.size}
        # A run from before a key existed was made with what is now its default.
        then = {**config.to_dict(type(self.cfg)()), **saved['config'], 'processes': saved['world']}
        changed = [f'{name} was {then.get(name)!r}, is {now.get(name)!r}'
                   for name in sorted({**now, **then})
                   if name not in FREE_KEYS and now.get(name) != then.get(name)]
        if changed:
            raise UserError(f'{path}: this folder holds a run with other settings: '
                            f'{"; ".join(changed)}. Choose another --save-path, or move the old '
                            'folder away')
        networks = {'model': unwrap(self.student), 'teacher': self.teacher}
        for name, network in networks.items():
            if network is not None:
                checkpoint.load_weights(network, saved[name], path)
        load_optimizer(self.optimizer, saved['optimizer'])
        if self.update.scaler and saved.get('scaler'):
            self.update.scaler.load_state_dict(saved['scaler'])
        self.epoch, self.seconds, self.best = saved['epoch'], saved['seconds'], saved['best']

    def networks(self):
        """{'student': network, 'teacher': network}, unwrapped; a method may have no teacher."""
        found = {'student': unwrap(self.student)}
        if self.teacher is not None:
            found['teacher'] = self.teacher
        return found

    def fit(self):
        """Train what is left of the run; evaluate and save after each epoch."""
        cfg, log = self.cfg, self.log
        if self.finished:
            log.say(f'{cfg.save_path}: already trained, {self.epoch} of {cfg.epochs} epochs')
        try:
            self._fit()
            log.summary()
        except RuntimeError as error:
            if 'out of memory' not in str(error):
                raise
            raise UserError(memory_advice(cfg, str(error))) from None
        finally:
            log.close()

    def _fit(self):
        cfg, log = self.cfg, self.log
        while self.epoch < cfg.epochs:
            started = time.time()
            lr = self.train_epoch()
            self.check()
            self.epoch += 1
            self.watch.end_epoch(self.epoch)
            self.world.share_buffers(*self.networks().values())
            trained = time.time()
            result = selecting = {}
            if self.epoch % cfg.eval_every == 0 or self.epoch == cfg.epochs:
                result = self.evaluate(self.val)
                selecting = self.select_on and self.evaluate(self.select_on)
            self.seconds += time.time() - started
            # The record first: what is recorded but not saved is recorded again on resuming.
            if result:
                log.evaluation(self.epoch, self.epoch * self.loader.steps_per_epoch, result,
                               self.names, lr, self.seconds, selecting)
            self.save(result, selecting or result)
            log.pause(time.time() - trained)

    def evaluate(self, samples):
        """{role: Scores} of the networks on a list's samples."""
        return evaluate(self.networks(), self.cfg, samples, self.world, absent=records.ABSENT)

    def train_epoch(self):
        """One pass over the data; returns the last learning rate."""
        self.student.train()
        first = self.epoch * self.loader.steps_per_epoch
        for step, batch in enumerate(self.loader.batches(self.epoch), first):
            batch, terms, loss, lr = self.update(batch, self.epoch, step,
                                                 watched=self.watch.looks_at(step))
            self.log.step(self.epoch, step, terms, loss, lr,
                          images=len(batch.x.weak) * (2 if batch.u else 1))
            self.watch.step(self.epoch, step, terms, batch)
        return lr

    def check(self):
        """Raise a UserError before weights that are not finite can be saved."""
        self.log.check()
        for name, tensor in unwrap(self.student).state_dict().items():
            if not torch.isfinite(tensor).all():
                raise UserError(f'non-finite weights in {name} after epoch {self.epoch + 1}; the '
                                f'checkpoints in {self.cfg.save_path} are from before: lower lr')

    def save(self, result, selecting):
        """Write latest.pth, and best.pth and t_best.pth where this evaluation is the best.

        Args:
            result: {role: Scores} on val. selecting: those that decide what is best.
        """
        improved = [role for role, score in selecting.items()
                    if role not in self.best or score.miou > self.best[role]]
        for role in improved:
            self.best[role] = selecting[role].miou
        if not self.world.is_main:
            return
        common = {'config': config.to_dict(self.cfg), 'classes': self.names, 'epoch': self.epoch,
                  'step': self.epoch * self.loader.steps_per_epoch}
        networks = self.networks()
        for role in improved:
            name = {'student': 'best.pth', 'teacher': 't_best.pth'}[role]
            checkpoint.save(os.path.join(self.cfg.save_path, name),
                            {'model': checkpoint.weights(networks[role]), 'weights': role,
                             'miou': result[role].miou, **common})
        latest = {'model': checkpoint.weights(networks['student']),
                  'optimizer': self.optimizer.state_dict(), 'world': self.world.size,
                  'seconds': self.seconds, 'best': dict(self.best),
                  'miou': result['student'].miou if result else None,
                  # All randomness derives from the seed and the step: this is its whole state.
                  'random_state': {'seed': self.cfg.seed, 'step': common['step']}, **common}
        if self.update.scaler:
            latest['scaler'] = self.update.scaler.state_dict()
        if self.teacher is None:
            latest['weights'] = 'student'
        else:
            latest['teacher'] = checkpoint.weights(self.teacher)
        checkpoint.save(os.path.join(self.cfg.save_path, 'latest.pth'), latest)


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


def memory_advice(cfg, error):
    """What to do where a GPU's memory does not suffice, with the allocator's first sentence."""
    options = [(not cfg.checkpoint_backbone, 'checkpoint_backbone=true'),
               (cfg.accumulate < cfg.batch_size, f'accumulate={cfg.batch_size}'),
               (getattr(cfg, 'feature_views', 0) and not cfg.lean, 'lean=true'),
               (cfg.amp == 'off', 'amp=bf16'), (True, 'a smaller crop_size')]
    left = ', '.join(text for use, text in options if use)
    return (f'{error.split(". ")[0]}: batch_size {cfg.batch_size} at crop_size {cfg.crop_size} '
            f'with {cfg.backbone} does not fit; what saves memory, from what changes least to '
            f'what changes most (--set): {left}')


def read_lists(cfg, uses_unlabeled):
    """The samples of labeled, unlabeled (or None), val, and select_on (None without one)."""
    def listed(key, masks):
        path = getattr(cfg, key)
        if not path:
            raise UserError(f"no id list given: set {key} (--{key.replace('_', '-')})")
        return read_list(path, masks)
    return (listed('labeled_id_path', True),
            listed('unlabeled_id_path', False) if uses_unlabeled else None,
            listed('val_id_path', True),
            read_list(cfg.select_on) if cfg.select_on else None)


def check_data(cfg, world, labeled, unlabeled, val, select_on=None):
    """`quick_check` on rank 0, unless `skip_check`; returns its warnings, lines for the log.

    Raises:
        UserError: on every rank, so that none waits for another that has ended.
    """
    if cfg.skip_check:
        return []
    warnings, failure = [], None
    if world.is_main:
        try:
            warnings = quick_check(cfg, labeled, unlabeled, val, select_on)
        except UserError as error:
            failure = error
    failed = world.sum(torch.tensor(float(failure is not None), device=world.device))
    if failed:
        raise failure or UserError('the check of the data failed; process 0 says why')
    return warnings


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
