"""The training run: build or restore it, then train and evaluate epoch by epoch.

A run can be stopped anywhere and goes on, by the same command, as if it had not been: all that is
random derives from the seed and the place, and the rest is in `latest.pth`.
"""
import contextlib
import os
import signal
import time

import torch

from dssn import checkpoint, config, ema, methods, precision, records
from dssn.data.loaders import TrainLoader
from dssn.distributed import one_line, unwrap
from dssn.errors import Stopped, UserError
from dssn.evaluation import evaluate
from dssn.lock import Lock
from dssn.logbook import Logbook
from dssn.models import build_model
from dssn.optim import build_optimizer, load_optimizer
from dssn.saving import INSPECT, Saver
from dssn.starting import (check_data, choose_lr, identities, load_initial_weights, move_aside,
                           prepare_folder, read_lists, writing)
from dssn.stopping import Agreement, Signals
from dssn.update import Update
from dssn.watching import Watch

# Keys that a run may be resumed with other values of: they change no number of it.
FREE_KEYS = ('workers', 'log_every', 'device', 'save_path', 'data_root', 'skip_check',
             'eval_batch_size', 'panel_every', 'panel_images', 'watch_truth',
             'checkpoint_backbone', 'save_every', 'on_nonfinite', 'max_skips', 'max_bad_samples',
             'allow_outside')


class Run:
    """Everything a run holds; `fit` trains it to the end from wherever it stands."""

    def __init__(self, cfg, world, fresh=False):
        """Read the lists, build networks, optimizer and loader, and restore the newest state.

        Args:
            fresh: move what an earlier run left in the folder aside, and start over.

        Raises:
            UserError: whatever is wrong with folders, lists, files, weights or checkpoint.
        """
        self.cfg, self.world = cfg, world
        self.names = config.names_of_classes(cfg)
        method = methods.find(cfg.method, 'config')
        self.lock = None
        notes = world.on_main(lambda: self._take_folder(fresh))
        try:
            labeled, unlabeled, self.val, self.select_on = read_lists(cfg, method.uses_unlabeled)
            notes += check_data(cfg, world, labeled, unlabeled, self.val, self.select_on)
            self.loader = TrainLoader(cfg, labeled, unlabeled, world.rank, world.size,
                                      pin=world.device.type == 'cuda')
            self.total_steps = cfg.epochs * self.loader.steps_per_epoch
            self.method = method(cfg)
            self.log = Logbook(cfg, world, self.total_steps, self.on_check)
            self.watch = Watch(cfg, world, self.log, unlabeled)
            self.signals, self.agreement = Signals(), Agreement(world, 2)
            # Epochs that are trained and evaluated, steps that are trained, times of both.
            self.epoch, self.step, self.seconds = 0, 0, 0.0
            self.best = {}  # {role: the highest mIoU, on select_on if there is such a list}
            self.miou = None  # the student's on val, as last evaluated
            self.skips = 0  # steps left out since they were not finite
            self.saver = Saver(cfg, self.log.say)
            self._build(notes)
        except BaseException:
            self.leave_folder()
            raise

    def _take_folder(self, fresh):
        """Lock the run's folder, on rank 0; returns lines for the log."""
        folder = self.cfg.save_path
        prepare_folder(folder)
        with writing(folder):
            self.lock = Lock(folder)
            notes = [self.lock.note] if self.lock.note else []
            return notes + (move_aside(folder) if fresh else [])

    def leave_folder(self):
        if self.lock:
            self.lock.release()

    def _build(self, notes):
        cfg, world = self.cfg, self.world
        precision.check(cfg, world.device)
        precision.set_tf32(cfg.tf32)
        saved, path, warning = self._read_newest()
        self.resumed = saved is not None
        torch.manual_seed(cfg.seed)
        student = build_model(cfg)
        if not self.resumed:
            notes += load_initial_weights(student, cfg)
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
        self.lists = identities(cfg, self.method.uses_unlabeled)
        changes = self._restore(saved, path) if self.resumed else []
        self.finished = self.epoch >= cfg.epochs
        if not self.finished:
            with writing(cfg.save_path):
                self.log.open(config.dump(cfg), self.epoch, self.step, self.lists,
                              saved and saved.get('log'))
            notes += self.watch.notes()
        if world.size > 1 and world.device.type == 'cpu':
            notes.append('BatchNorm is not synchronised between processes on a CPU: each uses its '
                         "own batch's statistics; rank 0's running ones are evaluated and saved")
        for note in notes:
            self.log.say(note, keep=not self.resumed)
        if warning:
            self.log.say(warning)
        if self.resumed and not self.finished:
            self.log.say('; '.join([f'resuming {path}: {self.step} of {self.total_steps} steps, '
                                    f'{self.epoch} of {cfg.epochs} epochs are done'] + changes))

    def _read_newest(self):
        """(content, path, warning): rank 0 chooses a file that is whole, and the others read it."""
        found = [None, None, None]

        def choose():
            found[:] = checkpoint.newest(self.cfg.save_path)
            return found[1:]
        path, warning = self.world.on_main(choose)
        if path and not self.world.is_main:
            found[0] = checkpoint.read_torch_file(path)
        return found[0], path, warning

    def _restore(self, saved, path):
        """Take over a saved state; returns what has changed since, lines for the log."""
        if not isinstance(saved, dict) or not {'optimizer', 'world', 'config'} <= set(saved):
            raise UserError(f'{path}: cannot be resumed from: not a latest.pth of this program; '
                            'move it away or choose another --save-path')
        now = {**config.to_dict(self.cfg), 'processes': self.world.size}
        # A run from before a key existed was made with what is now its default.
        then = {**config.to_dict(type(self.cfg)()), **saved['config'], 'processes': saved['world']}
        for role, known in self.lists.items():
            now[f'{role} list'] = f'sha256 {known.sha256[:12]}, {known.lines} lines'
            then[f'{role} list'] = saved.get('lists', {}).get(role, now[f'{role} list'])
        changed = [name for name in sorted({**now, **then}) if now.get(name) != then.get(name)]
        texts = {name: f'{name} was {then.get(name)!r}, is {now.get(name)!r}' for name in changed}
        unlike = [texts[name] for name in changed if name not in FREE_KEYS]
        if unlike:
            raise UserError(f'{path}: this folder holds a run with other settings: '
                            f'{"; ".join(unlike)}. Choose another --save-path, or start over with '
                            '--fresh, which moves the old run aside')
        networks = {'model': unwrap(self.student), 'teacher': self.teacher}
        for name, network in networks.items():
            if network is not None:
                checkpoint.load_weights(network, saved[name], path)
                rows = saved.get('statistics', {}).get(name)
                if rows is not None:
                    set_statistics(network, rows[self.world.rank])
        load_optimizer(self.optimizer, saved['optimizer'])
        if self.update.scaler and saved.get('scaler'):
            self.update.scaler.load_state_dict(saved['scaler'])
        self.epoch, self.seconds, self.best = saved['epoch'], saved['seconds'], saved['best']
        self.step = self.saver.saved_step = saved['step']
        self.miou, self.skips = saved['miou'], saved.get('skips', 0)
        if 'watch' in saved:
            self.watch.restore(saved['watch'])
        self.loader.replaced.update(saved.get('replaced', {}))
        changes = [texts[name] for name in changed if name in FREE_KEYS]
        if saved.get('torch', torch.__version__) != torch.__version__:
            changes.append(f'saved by PyTorch {saved["torch"]}, this is {torch.__version__}: the '
                           'last digits may differ')
        return changes

    def networks(self):
        """{'student': network, 'teacher': network}, unwrapped; a method may have no teacher."""
        found = {'student': unwrap(self.student)}
        if self.teacher is not None:
            found['teacher'] = self.teacher
        return found

    def fit(self):
        """Train what is left of the run; evaluate after each epoch, and save as it goes.

        Raises:
            Stopped: a signal asked for it; what was done is saved.
            UserError: what training met that it cannot go on with.
        """
        cfg, log = self.cfg, self.log
        if self.finished:
            log.say(f'{cfg.save_path}: already trained, {self.epoch} of {cfg.epochs} epochs')
        try:
            with self.signals:
                self._fit()
            log.summary()
        except RuntimeError as error:
            if 'out of memory' in str(error):
                raise UserError(memory_advice(cfg, str(error))) from None
            if 'DataLoader worker' in str(error):  # comes at any moment, within a step too
                raise UserError(f'{one_line(error)}; if its memory did not suffice use fewer '
                                'workers; the same command goes on from step '
                                f'{self.saver.saved_step}') from None
            raise
        finally:
            self.loader.close()  # not when the garbage collector comes by
            log.close()
            self.leave_folder()

    def _fit(self):
        cfg, log, per_epoch = self.cfg, self.log, self.loader.steps_per_epoch
        while self.epoch < cfg.epochs:
            self.started = time.time()
            end = (self.epoch + 1) * per_epoch
            if self.step < end:
                self.train_epoch()
                self.watch.end_epoch(self.epoch + 1)
                self.world.share_buffers(*self.networks().values())
                self.between_steps()
            trained = time.time()
            due = (self.epoch + 1) % cfg.eval_every == 0 or self.epoch + 1 == cfg.epochs
            result = selecting = {}
            if due:
                self.save()  # evaluating may take long, and may be interrupted
                result = self.evaluate(self.val)
                selecting = self.select_on and self.evaluate(self.select_on)
            self.epoch += 1
            self.take_time()
            # The record first: what is recorded but not saved is recorded again on resuming.
            if result:
                log.evaluation(self.epoch, self.step, result, self.names,
                               self.optimizer.param_groups[0]['lr'], self.seconds, selecting)
                self.keep_best(result, selecting or result)
            self.save()
            log.revive(self.step)
            log.pause(time.time() - trained)
        self.agreement.finish()
        self.world.on_main(self.saver.finish)

    def take_time(self):
        """Add the time since the last look to the run's."""
        now = time.time()
        self.seconds += now - self.started
        self.started = now

    def evaluate(self, samples):
        """{role: Scores} of the networks on a list's samples.

        Raises:
            Stopped: a signal asked for it.
        """
        result = evaluate(self.networks(), self.cfg, samples, self.world, absent=records.ABSENT,
                          stop=lambda: self.signals.number)
        if result is None:
            number = int(self.world.highest(self.signals.number))
            self.stop(number, f'while evaluating epoch {self.epoch + 1}')
        return result

    def train_epoch(self):
        """What is left of a pass over the data."""
        self.student.train()
        first = self.step - self.epoch * self.loader.steps_per_epoch
        with contextlib.closing(self.loader.batches(self.epoch, first)) as batches:
            end = (self.epoch + 1) * self.loader.steps_per_epoch
            while self.step < end:
                batch = self.next_batch(batches)
                batch, terms, loss, lr = self.update(batch, self.epoch, self.step,
                                                     watched=self.watch.looks_at(self.step))
                self.log.step(self.epoch, self.step, terms, loss, lr,
                              images=len(batch.x.weak) * (2 if batch.u else 1))
                self.watch.step(self.epoch, self.step, terms, batch)
                self.step += 1
                if self.step < end:
                    self.between_steps()
            next(batches, None)  # leaves the loader in order
        self.check()

    def next_batch(self, batches):
        """The next batch; says which files were replaced in it, and by what.

        Raises:
            UserError: a file is bad, after a save where this process trains alone.
        """
        replaced = self.loader.replaced
        known, most = len(replaced), self.cfg.max_bad_samples
        try:
            batch = next(batches)
            for message in list(replaced.values())[known:]:
                if self.world.is_main:
                    self.log.say(message)
                else:
                    print(f'rank {self.world.rank}: {message}', flush=True)
            if len(replaced) > most:
                raise UserError(f'{len(replaced)} files are bad and were replaced (max_bad_samples '
                                f'= {most}): {", ".join(list(replaced)[:5])} ...; repair or unlist '
                                'them, or raise max_bad_samples')
        except UserError:
            if self.world.size == 1:  # the others are in the midst of a step
                self.check()
                self.save()
            raise
        return batch

    def between_steps(self):
        """Save where it is due, and stop where any process was asked to."""
        if self.lock:
            self.lock.live()
        late = self.world.is_main and self.saver.is_late()
        number, save = self.agreement([self.signals.number, int(late)])
        if number:
            self.check()
            self.save()
            self.stop(number, f'after step {self.step}')
        if save or self.saver.is_due(self.step):
            self.check()
            self.save()

    def stop(self, number, where):
        """Say where the run stops for a signal, and raise Stopped."""
        self.agreement.finish()
        self.log.say(f'stopped by {signal.Signals(number).name} {where}; ' + (
            'the same command goes on there' if self.saver.saved_step == self.step else
            f'it could not be saved, the same command goes on from step {self.saver.saved_step}'))
        raise Stopped(number)

    def on_check(self, fault):
        """Act on numbers that were not finite: stop, or note the steps that were left out.

        Raises:
            UserError: on every rank.
        """
        world, cfg = self.world, self.cfg
        steps = int(world.highest(fault.steps if fault else 0))
        if not steps:
            return
        # Another process may have been the first: each prints what it saw, rank 0 what it can.
        text = 'in another process'
        if fault:
            epoch, step = divmod(fault.step - 1, self.loader.steps_per_epoch)
            text = (f'at step {fault.step} in term {fault.term}; its samples: '
                    f'{self.loader.samples(epoch, step)}')
        self.skips += steps
        if cfg.on_nonfinite == 'skip' and self.skips <= cfg.max_skips:
            self.log.say(f'warning: {steps} steps were not finite and left out ({self.skips} of '
                         f'max_skips = {cfg.max_skips}), the first {text}')
            return
        where = world.on_main(lambda: self.save_for_inspection(fault))
        limit = f' ({self.skips} skipped steps, max_skips = {cfg.max_skips})' \
            if cfg.on_nonfinite == 'skip' else ''
        raise UserError(f'non-finite loss{limit} {text}; {where}; the checkpoints in '
                        f'{cfg.save_path} are from before: lower lr, look at these samples, or '
                        'leave such steps out with on_nonfinite=skip')

    def save_for_inspection(self, fault):
        """Write the networks as they were left; returns where, for the message."""
        content = {'model': checkpoint.weights(unwrap(self.student)), 'weights': 'student',
                   'config': config.to_dict(self.cfg), 'classes': self.names, 'epoch': self.epoch,
                   'step': self.step}
        if self.teacher is not None:
            content['teacher'] = checkpoint.weights(self.teacher)
            content.pop('weights')
        if fault:
            epoch, step = divmod(fault.step - 1, self.loader.steps_per_epoch)
            content.update(fault={'step': fault.step, 'term': fault.term, 'steps': fault.steps,
                                  'samples': self.loader.samples(epoch, step)})
        path = os.path.join(self.cfg.save_path, INSPECT)
        try:
            checkpoint.save(path, content)
        except OSError as error:
            return f'the networks could not be saved for inspection ({one_line(error)})'
        return f'{path} holds the networks' + (
            ', the student as before that step' if self.update.scaler is None else '')

    def check(self):
        """Raise a UserError before weights that are not finite can be saved."""
        self.log.check()
        for name, tensor in unwrap(self.student).state_dict().items():
            if not torch.isfinite(tensor).all():
                raise UserError(f'non-finite weights in {name} after step {self.step}; the '
                                f'checkpoints in {self.cfg.save_path} are from before: lower lr')

    def keep_best(self, result, selecting):
        """Have best.pth and t_best.pth written by the next save, where this is the best so far.

        Args:
            result: {role: Scores} on val. selecting: those that decide what is best.
        """
        self.miou = result['student'].miou
        networks = self.networks()
        for role, score in selecting.items():
            if role in self.best and score.miou <= self.best[role]:
                continue
            self.best[role] = score.miou
            if not self.world.is_main:
                continue
            name = {'student': 'best.pth', 'teacher': 't_best.pth'}[role]
            self.saver.waiting[name] = {'model': checkpoint.weights(networks[role]), 'weights': role,
                                       'miou': result[role].miou, **self.place()}

    def place(self):
        """What every checkpoint says of the run, and of where it stands."""
        return {'config': config.to_dict(self.cfg), 'classes': self.names, 'epoch': self.epoch,
                'step': self.step}

    def save(self):
        """Write latest.pth, after best.pth and t_best.pth if they are due; on every rank."""
        state = self.state()
        if self.world.is_main:
            self.saver.write(state)

    def state(self):
        """All that a run goes on from, on rank 0; some of it is gathered from the others."""
        statistics = {}
        if self.world.has_plain_bn and self.step % self.loader.steps_per_epoch:
            for name, network in (('model', unwrap(self.student)), ('teacher', self.teacher)):
                if network is not None:
                    statistics[name] = self.world.rows(get_statistics(network))
        watch = self.watch.state()
        if not self.world.is_main:
            return None
        self.take_time()
        networks = self.networks()
        latest = {'model': checkpoint.weights(networks['student']),
                  'optimizer': self.optimizer.state_dict(), 'world': self.world.size,
                  'seconds': self.seconds, 'best': dict(self.best), 'miou': self.miou,
                  'skips': self.skips, 'log': self.log.state(), 'watch': watch,
                  'replaced': dict(self.loader.replaced),
                  'lists': {role: f'sha256 {known.sha256[:12]}, {known.lines} lines'
                            for role, known in self.lists.items()},
                  'torch': str(torch.__version__),
                  # All randomness derives from the seed and the step: this is its whole state.
                  'random_state': {'seed': self.cfg.seed, 'step': self.step}, **self.place()}
        if statistics:
            latest['statistics'] = statistics
        if self.update.scaler:
            latest['scaler'] = self.update.scaler.state_dict()
        if self.teacher is None:
            latest['weights'] = 'student'
        else:
            latest['teacher'] = checkpoint.weights(self.teacher)
        return latest


def get_statistics(network):
    """All floating-point buffers of a network (BN's running statistics) as one vector."""
    return torch.cat([buffer.flatten() for buffer in network.buffers()
                      if buffer.is_floating_point()])


def set_statistics(network, vector):
    """The reverse of `get_statistics`."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    for buffer, values in zip(buffers, vector.split([buffer.numel() for buffer in buffers])):
        buffer.copy_(values.view_as(buffer))


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
