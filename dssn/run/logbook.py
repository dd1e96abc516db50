"""The log of a run: train.log, metrics.jsonl, TensorBoard, progress bar. Only rank 0 writes."""
import datetime
import json
import os
import sys
import time

import torch
from tqdm import tqdm

from dssn.distributed import one_line
from dssn.errors import UserError
from dssn.inference.evaluation import few_classes_lines, table
from dssn.run import metrics
from dssn.run.append_log import AppendLog
from dssn.run.machine import machine
from dssn.run.nonfinite import FiniteCheck
from dssn.run.scoring import BEST_FILES, aside


class Logbook:
    """Writes into a run's folder on rank 0. Other ranks only check for values that are not finite.

    If the disk is full or not reachable for a while, the run continues: lines are written later,
    and TensorBoard misses some.

    Args:
        on_check: called with a `Fault` or None at each check, on every rank at the same steps. By
            default a fault raises a UserError.
    """

    def __init__(self, cfg, world, total_steps, on_check=None):
        self.cfg, self.world, self.total_steps = cfg, world, total_steps
        self.on_check = on_check or self._raise
        self.finite = FiniteCheck()
        self.bar = self.text = self.board = None
        self.metrics = os.path.join(cfg.save_path, 'metrics.jsonl')
        self.lists, self.knows_peak = {}, False
        self.history = []  # all records of metrics.jsonl so far
        self._restart()

    def open(self, config_text, epoch, step, lists=None, state=None):
        """Open the files. Records of evaluations after `epoch`, which are made again, are removed.

        Args:
            epoch, step: numbers of epochs and steps done. lists: {role: Identity} of the id lists,
                for config.yaml, metrics.jsonl and the log. state: from `state`, when the checkpoint
                was saved.
        """
        if not self.world.is_main:
            return
        folder = self.cfg.save_path
        self.lists = lists or {}
        with open(os.path.join(folder, 'config.yaml'), 'w', encoding='utf-8') as file:
            # Comments, so that the file is still a config and can be used with other lists.
            file.writelines(f'# {role} list: {known.text}; {known.lines} lines, '
                            f'sha256 {known.sha256}\n' for role, known in self.lists.items())
            file.write(config_text)
        self._open_text()
        if state or not step:  # old checkpoints have no state of the log
            self.text.undo(state['bytes'] if state else 0)
        if state:
            self.sums = {name: (total.to(self.world.device), count.to(self.world.device))
                         for name, (total, count) in state['sums'].items()}
            self.images = state['images']
        self._forget_from(epoch)
        self._open_board(step)
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.total_steps, initial=step, unit='step', dynamic_ncols=True)
        for role, known in self.lists.items():
            self.write(f'{role} list: {known.text}', keep=not step)

    def state(self):
        """The state for a checkpoint, with which a resumed run continues the log without a gap."""
        return {'bytes': self.text.size if self.text else 0, 'images': self.images,
                'sums': {name: [total.cpu(), count.cpu()]
                         for name, (total, count) in self.sums.items()}}

    def is_due(self, step, every):
        """Whether an action due every `every` steps, and after the last, is due after `step`."""
        return bool(every) and ((step + 1) % every == 0 or step + 1 == self.total_steps)

    def scalars(self, values, step):
        """Write {tag: number} to TensorBoard only."""
        for tag, value in values.items():
            self._board_call('add_scalar', tag, value, step + 1)

    def picture(self, tag, pixels, step):
        """Write RGB pixels (H, W, 3) uint8 to TensorBoard."""
        self._board_call('add_image', tag, pixels, step + 1, dataformats='HWC')

    def _open_board(self, step):
        from torch.utils.tensorboard import SummaryWriter
        earlier = any('tfevents' in name for name in os.listdir(self.cfg.save_path))
        self.board = SummaryWriter(self.cfg.save_path, purge_step=step + 1 if earlier else None)

    def _board_call(self, name, *args, **kwargs):
        """Call a method of TensorBoard's writer. After a failure the writer is not used."""
        if self.board is None:
            return
        try:
            getattr(self.board, name)(*args, **kwargs)
        except OSError as error:
            self.board = None
            self.write('warning: nothing more is written to TensorBoard in this epoch: '
                       f'{one_line(error)}')

    def reopen_board(self, step):
        """Open TensorBoard's writer again after a failure, if the disk allows it."""
        if self.text and self.board is None:
            try:
                self._open_board(step)
            except OSError:
                self.board = None

    def _open_text(self):
        self.text = AppendLog(os.path.join(self.cfg.save_path, 'train.log'))
        self.scores = AppendLog(self.metrics)

    def _forget_from(self, epoch):
        """Remove the evaluations after `epoch`, a summary, and a last line that was cut off."""
        if not os.path.exists(self.metrics):
            return
        kept = [record for record in metrics.read(self.metrics)
                if record['epoch'] <= epoch and record['kind'] != 'summary']
        self.history = kept
        with open(f'{self.metrics}.tmp', 'w', encoding='utf-8') as file:
            file.writelines(json.dumps(record) + '\n' for record in kept)
        os.replace(f'{self.metrics}.tmp', self.metrics)
        self.scores = AppendLog(self.metrics)

    def _record(self, record):
        self.history.append(record)
        error = self.scores.write(json.dumps(record) + '\n')
        if error:
            self.write(f'warning: {self.metrics}: {one_line(error)}; the record will be written '
                       'later')

    def write(self, message, keep=True):
        """Write a line to the terminal and, with `keep`, to train.log."""
        if not self.world.is_main:
            return
        if self.bar:
            tqdm.write(message, file=sys.stdout)
        else:
            print(message, flush=True)
        if self.text and keep:
            stamp = datetime.datetime.now().strftime('%Y-%m-%d %H:%M:%S')
            self.text.write(f'{stamp} {message}\n')

    def step(self, epoch, step, terms, loss, lr, images):
        """Record a step. Every `log_every` steps, `check` and write the means of the steps since.

        In between, sums stay on the device, so that no step waits for it.

        Args:
            epoch, step: from 0. terms: the method's `Terms`. loss: scalar on the device. lr: rate
                of the backbone. images: number of images of the step on this process.
        """
        values = {**terms.losses, **terms.fractions, 'loss': loss}
        self.finite.record(step, values)
        for name, value in values.items():
            value = value.detach()
            finite = torch.isfinite(value)
            total, count = self.sums.get(name, (0, 0))
            self.sums[name] = total + value.masked_fill(~finite, 0), count + finite.long()
        self.images += images
        if self.bar:
            self.bar.update()
        if self.text and not self.knows_peak:
            self.knows_peak = True
            peak = peak_memory(self.world.device)
            if peak is not None:
                self.write(f'peak memory after the first step: {peak:.0f} MiB')
        if self.is_due(step, self.cfg.log_every):
            self._write_means(epoch, step, lr)

    def check(self):
        """Call `on_check` with the `Fault` since the last check, or None."""
        self.on_check(self.finite.fault())

    def _raise(self, fault):
        if fault:
            raise UserError(f'non-finite loss at step {fault.step} in term {fault.term}')

    def _write_means(self, epoch, step, lr):
        self.check()
        means = {name: float(total) / max(int(count), 1)
                 for name, (total, count) in self.sums.items()}
        seconds = max(time.time() - self.since, 1e-9)
        means['images_per_second'] = self.images * self.world.size / seconds
        if self.text:
            self.scalars({f'train/{name}': value for name, value in {**means, 'lr': lr}.items()},
                         step)
            shown = ' '.join(f'{name} {value:.4g}' for name, value in means.items())
            self.write(f'epoch {epoch + 1}/{self.cfg.epochs} step {step + 1}/{self.total_steps} '
                       f'{shown} lr {lr:.3g}')
        self._restart()

    def _restart(self):
        self.sums, self.images, self.since = {}, 0, time.time()

    def exclude(self, seconds):
        """Exclude time that was not training from images per second."""
        self.since += seconds

    def evaluation(self, epoch, step, result, names, lr, seconds, selecting=None,
                   anew=''):
        """Write an evaluation: table, metrics.jsonl, TensorBoard.

        Args:
            epoch: epochs done. step: steps done. result: {'student': Scores, 'teacher': Scores} on
                val, without 'teacher' if there is none. names: of the classes. lr: rate of the
                backbone. seconds: of training and evaluation so far, over all starts of the run.
            selecting: {role: Scores} on select_on, if the run has this list.
            anew: why scores are not comparable with those before; '' if they are.
        """
        if not self.world.is_main:
            return
        line = {'kind': 'evaluation', 'epoch': epoch, 'iteration': step}
        for role in ('student', 'teacher'):
            score = result.get(role)
            line[role] = score and score.miou
            line[f'{role}_iou'] = score and dict(zip(names, score.iou))
        if selecting:
            line['select_on'] = {role: score.miou for role, score in selecting.items()}
        if anew:
            line['anew'] = anew
        line.update(protocol=self.cfg.protocol, eval_amp=self.cfg.eval_amp, absent=metrics.ABSENT,
                    processes=self.world.size)
        line['lists'] = {role: {'text': known.text, 'lines': known.lines, 'sha256': known.sha256}
                         for role, known in self.lists.items()}
        line.update(lr=lr, seconds=round(seconds, 2),
                    peak_memory_mib=peak_memory(self.world.device))
        line['machine'] = machine(self.world.device)
        self._record(line)
        for role, score in result.items():
            self._board_call('add_scalar', f'eval/{role}/mIoU', score.miou, step)
            for name, value in zip(names, score.iou):
                if value is not None:
                    self._board_call('add_scalar', f'eval/{role}/IoU/{name}', value, step)
        for role, score in (selecting or {}).items():
            self._board_call('add_scalar', f'select_on/{role}/mIoU', score.miou, step)
        self._board_call('flush')
        self.write(table(result, names))
        if anew:
            kept = ' and '.join(aside(BEST_FILES[role], epoch - 1) for role in result)
            self.write(f'scores are not comparable with those before ({anew}): the best is '
                       f'selected anew from this evaluation on; that before is kept as {kept}')
        if selecting:
            self.write('mIoU on select_on: ' + ', '.join(
                f'{role} {score.miou:.2f}' for role, score in selecting.items()))
            for line in few_classes_lines(selecting, ' on select_on'):
                self.write(line)
        for role in result:
            warning = metrics.fall_text(self.history, role)
            if warning:
                self.write(warning)

    def summary(self):
        """Write best and last scores at the end of train.log and metrics.jsonl, once."""
        if not self.world.is_main or not os.path.exists(self.metrics):
            return
        known = metrics.read(self.metrics)
        if known and known[-1]['kind'] == 'summary':
            self.write(metrics.text(known[-1]))
            return
        evaluations = metrics.evaluations(known, self.metrics)
        if not evaluations:
            return
        summary = metrics.summarise(evaluations, self.cfg.protocol)
        if not self.text:  # the run was killed just before its summary
            self._open_text()
            self._forget_from(summary['epoch'])
        self.write(metrics.text(summary))
        self._record(summary)

    def close(self):
        if self.bar:
            self.bar.close()
        self._board_call('close')
        if self.text:
            self.text.flush()
            self.scores.flush()


def peak_memory(device):
    """Peak memory of this process in MiB: allocated on a GPU, or resident on a CPU.

    None where the system does not tell (Windows).
    """
    if device.type == 'cuda':
        return round(torch.cuda.max_memory_allocated(device) / 2 ** 20, 1)
    try:
        with open('/proc/self/status', encoding='ascii') as file:
            return round(next(int(line.split()[1]) for line in file if line.startswith('VmHWM'))
                         / 2 ** 10, 1)
    except (OSError, StopIteration):
        pass  # not Linux. On Linux getrusage may return the peak of the parent process.
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2 ** 20 if sys.platform == 'darwin' else 2 ** 10), 1)
