"""When a run is saved, and what becomes of a save that fails."""
import os
import time

from dssn import checkpoint, config
from dssn.distributed import one_line
from dssn.errors import UserError

RETRY = 60  # seconds from a save that failed to the next attempt
INSPECT = 'nonfinite.pth'  # the networks at a number that was not finite


class Saver:
    """Writes a run's checkpoints, on rank 0.

    Args:
        say: takes a line for the log.
    """

    def __init__(self, cfg, say):
        self.folder, self.say = cfg.save_path, say
        self.steps, self.seconds = config.interval(cfg.save_every)
        self.next = time.monotonic() + (self.seconds or float('inf'))
        self.waiting = {}    # {file: content} to be written with the next state, best.pth for one
        self.unsaved = None  # the state that could not be written
        self.saved_step = 0

    def is_due(self, step):
        """Whether the state after `step` steps is saved for their number."""
        return self.steps > 0 and step % self.steps == 0

    def is_late(self):
        """Whether it is time for a save by the clock."""
        return time.monotonic() > self.next

    def write(self, state):
        """Write what waits, then latest.pth.

        A save that fails, on a full disk for example, is said, and due again in a minute; the
        state of before stays.
        """
        try:
            # In this order: without its best.pth an evaluation is not to count as done.
            for name in list(self.waiting):
                checkpoint.save(os.path.join(self.folder, name), self.waiting[name])
                del self.waiting[name]
            checkpoint.save(os.path.join(self.folder, checkpoint.LATEST), state,
                            keep=os.path.join(self.folder, checkpoint.PREVIOUS))
        except OSError as error:
            self.say(f'warning: step {state["step"]} could not be saved in {self.folder}: '
                     f'{one_line(error)}; it is tried again')
            for content in self.waiting.values():
                # On a CPU these are the networks' own tensors, which go on to change.
                content['model'] = {name: t.clone() for name, t in content['model'].items()}
            self.next, self.unsaved = time.monotonic() + RETRY, state
            return
        self.saved_step, self.unsaved = state['step'], None
        self.next = time.monotonic() + (self.seconds or float('inf'))

    def finish(self):
        """Have the run's last state on the disk, which may have been full.

        Raises:
            UserError: it cannot be written even now.
        """
        for pause in (1, 5, 20):
            if self.unsaved is None:
                return
            time.sleep(pause)
            self.write(self.unsaved)
        if self.unsaved is not None:
            raise UserError(f'{self.folder}: the end of the run could not be saved; make room, and '
                            f'the same command goes on from step {self.saved_step}')
