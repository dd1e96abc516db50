"""The training run: train, evaluate and save, epoch by epoch.

A run can be stopped anywhere. The same command resumes it with the same result: random numbers
derive from the seed and the step, and all other state is in `latest.pth`.
"""
import contextlib
import signal
import time

from dssn import config
from dssn.data.workers import WorkerFailure, explained_failures
from dssn.distributed import unwrap
from dssn.errors import Stopped, UserError
from dssn.inference.evaluation import evaluate
from dssn.methods import build
from dssn.models.weights import network_weights
from dssn.networks import Networks
from dssn.run import metrics
from dssn.run.diagnostics import Watch
from dssn.run.folder import Folder, writing
from dssn.run.guard import Guard
from dssn.run.logbook import Logbook
from dssn.run.saving import Saver
from dssn.run.scoring import BEST_FILES, changes_of, scoring
from dssn.run.setup import Data
from dssn.run.signals import Agreement, Signals
from dssn.run.state import Progress, place, restore, state_of
from dssn.update import Update


def start(cfg, world, fresh=False):
    """Set up a run, and restore its newest state.

    Args:
        fresh: move the files of an earlier run in the folder aside, and start over.

    Returns:
        A `Run`, ready to `fit`. It holds the lock of its folder.

    Raises:
        UserError: folder, lists, files, weights or checkpoint cannot be used.
    """
    folder = Folder(cfg.save_path, world, fresh)
    try:
        saved, path, warning = folder.newest_state()
        data = Data(cfg, world, first=saved is None)
        networks = Networks(cfg, world, initial=saved is None)
        run = Run(cfg, world, folder, data, networks)
        changes = restore(run, saved, path) if saved is not None else []
        run.open(saved, path, changes, warning)
        return run
    except BaseException:
        folder.leave()
        raise


class Run:
    """The parts of a run. `fit` trains from the current step to the end."""

    def __init__(self, cfg, world, folder, data, networks):
        self.cfg, self.world, self.folder, self.data = cfg, world, folder, data
        self.networks, self.loader = networks, data.loader
        self.total_steps = cfg.epochs * self.loader.steps_per_epoch
        self.method = build(cfg)
        self.update = Update(cfg, world, self.method, networks.student, networks.teacher,
                             networks.optimizer, networks.lr, self.total_steps)
        self.progress = Progress()
        self.scoring = scoring(cfg, data.val, data.select_on)
        self.guard = Guard(self)
        self.log = Logbook(cfg, world, self.total_steps, self.guard.on_fault)
        self.watch = Watch(cfg, world, self.log, data.unlabeled)
        self.signals, self.agreement = Signals(), Agreement(world, 2)
        self.saver = Saver(cfg, self.log.write)
        self.last_save = 0  # step of the last attempt to save, on every rank
        self.resumed = False

    @property
    def finished(self):
        return self.progress.epoch >= self.cfg.epochs

    def open(self, saved, path, changes, warning):
        """Open the log, and write how the run starts or resumes."""
        cfg, progress = self.cfg, self.progress
        self.resumed = saved is not None
        notes = [*cfg.notes, *self.folder.notes, *self.data.notes, *self.networks.notes]
        if not self.finished:
            with writing(cfg.save_path):
                if self.resumed and self.world.is_main:
                    self.saver.take_back(progress.epoch)
                self.log.open(config.dump(cfg), progress.epoch, progress.step,
                              self.data.identities, saved and saved.get('log'))
            notes += self.watch.notes()
        if self.world.has_plain_bn and unwrap(self.networks.student).batch_statistics:
            notes.append('BatchNorm is not synchronised between CPU processes: each process uses '
                         'the statistics of its own batch; the running statistics of rank 0 are '
                         'evaluated and saved')
        for note in notes:
            self.log.write(note, keep=not self.resumed)
        if warning:
            self.log.write(warning)
        if self.resumed and not self.finished:
            self.log.write('; '.join([
                f'resuming {path}: {progress.step} of {self.total_steps} steps, '
                f'{progress.epoch} of {cfg.epochs} epochs are done'] + changes))
        elif self.resumed and changes:
            self.log.write('; '.join(changes))

    def fit(self):
        """Train the rest of the run. Evaluate and save after each epoch.

        Raises:
            Stopped: a signal stopped the run; its state is saved.
            UserError: training cannot continue, for example because files cannot be read.
        """
        if self.finished:
            self.log.write(f'{self.cfg.save_path}: already trained, {self.progress.epoch} of '
                         f'{self.cfg.epochs} epochs')
        try:
            with self.signals, explained_failures():
                while not self.finished:
                    self.epoch()
                self.agreement.finish()
                self.world.on_main(self.saver.finish)
            self.log.summary()
        except (RuntimeError, WorkerFailure) as error:
            raise explained(error, self.cfg, self.saver.saved_step) from None
        finally:
            self.loader.close()  # now, not whenever it is garbage-collected
            self.log.close()
            self.folder.leave()

    def epoch(self):
        """Train the rest of an epoch, evaluate if it is due, record and save."""
        cfg, progress = self.cfg, self.progress
        progress.start_clock()
        if progress.step < self.end_of_epoch:
            self.train_epoch()
            self.watch.end_epoch(progress.epoch + 1)
            self.world.share_buffers(*self.networks.by_role().values())
            self.between_steps()
        trained = time.time()
        due = (progress.epoch + 1) % cfg.eval_every == 0 or progress.epoch + 1 == cfg.epochs
        result = selecting = {}
        if due:
            self.save()  # evaluation may take long, and may be interrupted
            result = self.evaluate(self.data.val)
            selecting = self.data.select_on and self.evaluate(self.data.select_on)
        progress.epoch += 1
        progress.stop_clock()
        # Record, then save: a record whose state was not saved is dropped and written again when
        # the run resumes.
        if result:
            anew = self.start_anew()
            self.log.evaluation(progress.epoch, progress.step, result, self.watch.names,
                                self.networks.optimizer.param_groups[0]['lr'], progress.seconds,
                                selecting, anew)
            self.keep_best(result, selecting or result)
        self.save()
        self.log.reopen_board(progress.step)
        self.log.exclude(time.time() - trained)

    @property
    def end_of_epoch(self):
        """The number of steps after which the current epoch ends."""
        return (self.progress.epoch + 1) * self.loader.steps_per_epoch

    def train_epoch(self):
        """Make the remaining steps of the epoch."""
        epoch, progress = self.progress.epoch, self.progress
        first = progress.step - epoch * self.loader.steps_per_epoch
        self.networks.student.train()
        with contextlib.closing(self.loader.batches(epoch, first)) as batches:
            while progress.step < self.end_of_epoch:
                batch = self.next_batch(batches)
                batch, terms, loss, lr = self.update(batch, epoch, progress.step,
                                                     watched=self.watch.has_panels(progress.step))
                self.log.step(epoch, progress.step, terms, loss, lr, images=batch.images)
                self.watch.step(epoch, progress.step, terms, batch)
                progress.step += 1
                if progress.step < self.end_of_epoch:
                    self.between_steps()
            next(batches, None)  # let the loader finish the epoch
        self.guard.check()

    def next_batch(self, batches):
        """The next batch. Unreadable files in it, and their replacements, are logged.

        Raises:
            UserError: too many files cannot be read. A single process saves its state before.
        """
        replaced = self.loader.replaced
        known, most = len(replaced), self.cfg.max_bad_samples
        try:
            batch = next(batches)
            for message in list(replaced.values())[known:]:
                if self.world.is_main:
                    self.log.write(message)
                else:
                    print(f'rank {self.world.rank}: {message}', flush=True)
            if len(replaced) > most:
                raise UserError(f'{len(replaced)} files are bad and were replaced (max_bad_samples '
                                f'= {most}): {", ".join(list(replaced)[:5])} ...; repair or unlist '
                                'them, or raise max_bad_samples')
        except UserError:
            if self.world.size == 1:  # otherwise the other processes are within a step
                self.guard.check()
                self.save()
            raise
        return batch

    def between_steps(self):
        """Save if it is due, and stop if any process has received a signal."""
        self.folder.refresh()
        step = self.progress.step
        # A request to save by the clock is the number of its step. With several processes it
        # arrives one call later. A save for another reason may have been made in between.
        late = self.world.is_main and self.saver.is_late()
        number, wanted = self.agreement([self.signals.number, step if late else 0])
        if number:
            self.guard.check()
            self.save()
            self.stop(number, f'after step {step}')
        if wanted > self.last_save or self.saver.is_due(step):
            self.guard.check()
            self.save()

    def evaluate(self, samples):
        """{role: Scores} of the networks on a list's samples.

        Raises:
            Stopped: a signal stopped the run.
            UserError: a file is bad, or memory does not suffice.
        """
        result = None
        # With several processes all have to stop between the same two images.
        with self.signals.break_off(self.world.size == 1):
            try:
                result = evaluate(self.networks.by_role(), self.cfg, samples, self.world,
                                  absent=metrics.ABSENT, stop=lambda: self.signals.number)
            except UserError as error:
                if isinstance(error, WorkerFailure):
                    raise
                raise UserError(f'{error} (training up to step {self.saver.saved_step} is saved; '
                                'the same command resumes there, also with other settings of '
                                'evaluation)') from None
        if result is None:
            number = int(self.world.highest(self.signals.number))
            self.stop(number, f'while evaluating epoch {self.progress.epoch + 1}')
        return result

    def start_anew(self):
        """If scores are not comparable with those before, let the best be selected anew.

        Returns:
            The reason as text; empty if they are comparable.
        """
        progress = self.progress
        changes = changes_of(progress.scored, self.scoring)
        progress.scored = self.scoring
        if changes:
            progress.best = {}
            self.saver.keep_until = progress.epoch - 1
        return changes

    def keep_best(self, result, selecting):
        """If scores are the best so far, let the next save write best.pth or t_best.pth.

        Args:
            result: {role: Scores} on val. selecting: {role: Scores} that are compared.
        """
        progress, networks = self.progress, self.networks.by_role()
        progress.miou = result['student'].miou
        for role, score in selecting.items():
            if role in progress.best and score.miou <= progress.best[role]:
                continue
            progress.best[role] = score.miou
            if not self.world.is_main:
                continue
            self.saver.waiting[BEST_FILES[role]] = {
                'model': network_weights(networks[role]), 'weights': role,
                'miou': result[role].miou, **place(self.cfg, progress)}

    def save(self):
        """Write best.pth and t_best.pth if they are due, then latest.pth. Called on every rank."""
        self.last_save = self.progress.step
        state = state_of(self)
        if self.world.is_main:
            self.saver.write(state)

    def stop(self, number, where):
        """Log that a signal stops the run, and raise Stopped."""
        self.agreement.finish()
        self.log.write(f'stopped by {signal.Signals(number).name} {where}; ' + (
            'the same command resumes there' if self.saver.saved_step == self.progress.step else
            f'saving failed, so the same command resumes from step {self.saver.saved_step}'))
        raise Stopped(number)


def explained(error, cfg, saved_step):
    """A UserError for an error whose remedy is known, else the error itself."""
    if 'out of memory' in str(error):
        return UserError(memory_advice(cfg, str(error)))
    if isinstance(error, WorkerFailure):
        return UserError(f'{error}; the same command resumes from step {saved_step}')
    return error


def memory_advice(cfg, error):
    """The error's first sentence, and settings that need less GPU memory."""
    size = f'batch_size {cfg.batch_size}'
    if cfg.labeled_batch_size:
        size = f'labeled_batch_size {cfg.labeled_batch_size}' + (
            f', {size}' if cfg.unlabeled_images else '')
    options = [(not cfg.checkpoint_backbone and not cfg.lock_backbone, 'checkpoint_backbone=true'),
               (cfg.model != 'dpt' and getattr(cfg, 'feature_views', 0) and not cfg.lean,
                'lean=true'),
               (cfg.accumulate < cfg.most_parts, f'accumulate={cfg.most_parts}'
                + ' (BatchNorm then normalises each part by its own pixels)' * (
                    cfg.model != 'dpt')),
               (cfg.amp == 'off', 'amp=bf16'), (True, 'a smaller crop_size')]
    left = ', '.join(text for use, text in options if use)
    return (f'{error.split(". ")[0]}: {size} at crop_size {cfg.crop_size} '
            f'with {cfg.backbone} does not fit; settings that save memory (--set), those that '
            f'change the result least first: {left}')
