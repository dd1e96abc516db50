"""Saving a run: when it is due, and trying again after a failure."""
import os
import time

from dssn import config
from dssn.distributed import one_line
from dssn.errors import UserError
from dssn.run import checkpoint
from dssn.run.scoring import KEPT_BEST, aside

RETRY = 60  # seconds between a failed save and the next attempt
INSPECT = 'nonfinite.pth'  # the networks after a value that was not finite


class Saver:
    """Writes a run's checkpoints, on rank 0.

    Args:
        log: a function that writes a line to the log.
    """

    def __init__(self, cfg, log):
        self.folder, self.log = cfg.save_path, log
        self.steps, self.seconds = config.interval(cfg.save_every)
        self.next = time.monotonic() + (self.seconds or float('inf'))
        self.waiting = {}    # {file: content} to write with the next state, such as best.pth
        self.keep_until = None  # if set, files that are replaced are kept, see `scoring.aside`
        self.unsaved = None  # the state whose save failed
        self.saved_step = 0
        self.written = None  # (epoch, step) of the last state that this process wrote

    def is_due(self, step):
        """Whether `save_every`, in steps, asks for a save after `step` steps."""
        return self.steps > 0 and step % self.steps == 0

    def is_late(self):
        """Whether a save is due by the clock: `save_every` in minutes, or a retry."""
        return time.monotonic() > self.next

    def take_back(self, epoch):
        """Undo `keep_until` of evaluations whose state was not saved; `epoch`: of the state."""
        found = filter(None, map(KEPT_BEST.fullmatch, os.listdir(self.folder)))
        # The earliest last: the later ones are of evaluations that are all made again.
        for kept in sorted(found, key=lambda kept: -int(kept.group(2))):
            if int(kept.group(2)) >= epoch:
                os.replace(os.path.join(self.folder, kept.group()),
                           os.path.join(self.folder, f'{kept.group(1)}.pth'))

    def write(self, state):
        """Write the waiting files, then latest.pth. The old latest.pth becomes previous.pth.

        If latest.pth already holds this state, nothing is written: previous.pth must stay older.

        If saving fails, for example because the disk is full, the error is logged, the previous
        checkpoint is kept, and saving is due again after RETRY seconds.
        """
        if self.written == (state['epoch'], state['step']):
            return
        try:
            # In this order: an evaluation counts as done only if its best.pth is saved.
            for name in list(self.waiting):
                keep = None if self.keep_until is None else \
                    os.path.join(self.folder, aside(name, self.keep_until))
                if keep and os.path.exists(keep):  # kept before a save that failed
                    keep = None
                checkpoint.save(os.path.join(self.folder, name), self.waiting[name], keep)
                del self.waiting[name]
            self.keep_until = None
            checkpoint.save(os.path.join(self.folder, checkpoint.LATEST), state,
                            keep=os.path.join(self.folder, checkpoint.PREVIOUS))
        except OSError as error:
            self.log(f'warning: step {state["step"]} could not be saved in {self.folder}: '
                     f'{one_line(error)}; saving is tried again')
            for content in self.waiting.values():
                # On a CPU these tensors are the networks' own, and training changes them.
                content['model'] = {name: t.clone() for name, t in content['model'].items()}
            self.next, self.unsaved = time.monotonic() + RETRY, state
            return
        self.saved_step, self.unsaved = state['step'], None
        self.written = state['epoch'], state['step']
        self.next = time.monotonic() + (self.seconds or float('inf'))

    def finish(self):
        """If the last save of the run failed, try again for some seconds.

        Raises:
            UserError: saving still fails.
        """
        for pause in (1, 5, 20):
            if self.unsaved is None:
                return
            time.sleep(pause)
            self.write(self.unsaved)
        if self.unsaved is not None:
            raise UserError(f'{self.folder}: the end of the run could not be saved; make room on '
                            f'the disk, then the same command resumes from step {self.saved_step}')
