"""The reaction to values that are not finite: stop the run, or skip steps."""
import os

import torch

from dssn.distributed import one_line, unwrap
from dssn.errors import UserError
from dssn.models.weights import network_weights
from dssn.run import checkpoint
from dssn.run.saving import INSPECT
from dssn.run.state import place


class Guard:
    """Handles the faults that the log finds, and checks weights before they are saved.

    Args:
        run: the `Run`.
    """

    def __init__(self, run):
        self.run = run

    def on_fault(self, fault):
        """Stop the run, or count the skipped steps. Called on every rank with its own fault.

        Args:
            fault: a `Fault`, or None.

        Raises:
            UserError: on every rank.
        """
        run, cfg = self.run, self.run.cfg
        steps = int(run.world.highest(fault.steps if fault else 0))
        if not steps:
            return
        # The fault may be in another process. Each process reports its own.
        text = 'in another process'
        if fault:
            text = f'at step {fault.step} in term {fault.term}; its samples: {self.samples(fault)}'
        run.progress.skips += steps
        if cfg.on_nonfinite == 'skip' and run.progress.skips <= cfg.max_skips:
            run.log.write(f'warning: {steps} steps were not finite and were skipped '
                          f'({run.progress.skips} of max_skips = {cfg.max_skips}), the first '
                          f'{text}')
            return
        where = run.world.on_main(lambda: self.save_for_inspection(fault))
        limit = f' ({run.progress.skips} skipped steps, max_skips = {cfg.max_skips})' \
            if cfg.on_nonfinite == 'skip' else ''
        raise UserError(f'non-finite loss{limit} {text}; {where}; the checkpoints in '
                        f'{cfg.save_path} were saved before it; lower lr, check these samples, or '
                        'skip such steps with on_nonfinite=skip')

    def samples(self, fault):
        """The samples of the step of a fault."""
        epoch, step = divmod(fault.step - 1, self.run.loader.steps_per_epoch)
        return self.run.loader.samples(epoch, step)

    def save_for_inspection(self, fault):
        """Save the current networks; returns a text for the message."""
        run = self.run
        content = {'model': network_weights(unwrap(run.networks.student)), 'weights': 'student',
                   **place(run.cfg, run.progress)}
        if run.networks.teacher is not None:
            content['teacher'] = network_weights(run.networks.teacher)
            content.pop('weights')
        if fault:
            content.update(fault={'step': fault.step, 'term': fault.term, 'steps': fault.steps,
                                  'samples': self.samples(fault)})
        path = os.path.join(run.cfg.save_path, INSPECT)
        try:
            checkpoint.save(path, content)
        except OSError as error:
            return f'the networks could not be saved for inspection ({one_line(error)})'
        return f'{path} holds the networks' + (
            ', the student as before that step' if run.update.scaler is None else '')

    def check(self):
        """Raise a UserError if weights are not finite. Called before each save."""
        run = self.run
        run.log.check()
        for name, tensor in unwrap(run.networks.student).state_dict().items():
            if not torch.isfinite(tensor).all():
                raise UserError(f'non-finite weights in {name} after step {run.progress.step}; the '
                                f'checkpoints in {run.cfg.save_path} were saved before it; lower '
                                'lr')
