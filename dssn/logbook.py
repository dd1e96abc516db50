"""A run's records: text log, metrics.jsonl, TensorBoard, progress bar. Only rank 0 writes."""
import datetime
import json
import os
import resource
import sys
import time

import torch
from tqdm import tqdm

from dssn import records
from dssn.distributed import one_line
from dssn.errors import UserError
from dssn.evaluation import table
from dssn.finite import FiniteCheck
from dssn.lines import Lines
from dssn.machine import machine


class Logbook:
    """Writes into a run's folder; on other ranks than 0 only the numbers are checked.

    A disk that is full or away for a while ends nothing: lines wait, and TensorBoard goes without.

    Args:
        on_check: called with a `Fault` or None wherever the numbers since are looked at, on every
            rank at the same places; by default a fault is raised.
    """

    def __init__(self, cfg, world, total_steps, on_check=None):
        self.cfg, self.world, self.total_steps = cfg, world, total_steps
        self.on_check = on_check or self._refuse
        self.finite = FiniteCheck()
        self.bar = self.text = self.board = None
        self.metrics = os.path.join(cfg.save_path, 'metrics.jsonl')
        self.lists, self.knows_peak = {}, False
        self.history = []  # the records so far, of earlier starts too
        self._restart()

    def open(self, config_text, epoch, step, lists=None, state=None):
        """Open the files; lines of evaluations that will be made again (after `epoch` of them) go.

        Args:
            lists: {role: Identity} of the id lists, for config.yaml, metrics.jsonl and the log.
            state: what `state` gave for the checkpoint that is resumed from.
        """
        if not self.world.is_main:
            return
        folder = self.cfg.save_path
        self.lists = lists or {}
        with open(os.path.join(folder, 'config.yaml'), 'w', encoding='utf-8') as file:
            # As comments: the file stays a config, and may be used with other lists.
            file.writelines(f'# {role} list: {known.text}; {known.lines} lines, '
                            f'sha256 {known.sha256}\n' for role, known in self.lists.items())
            file.write(config_text)
        self._open_text()
        if state or not step:  # not after a state from before it was noted
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
            self.say(f'{role} list: {known.text}', keep=not step)

    def state(self):
        """What a checkpoint holds, so that the log goes on as if it had not been interrupted."""
        return {'bytes': self.text.size if self.text else 0, 'images': self.images,
                'sums': {name: [total.cpu(), count.cpu()]
                         for name, (total, count) in self.sums.items()}}

    def is_due(self, step, every):
        """Whether something that comes every so many steps, and after the last, follows `step`."""
        return bool(every) and ((step + 1) % every == 0 or step + 1 == self.total_steps)

    def scalars(self, values, step):
        """{tag: number} for TensorBoard alone."""
        for tag, value in values.items():
            self._show('add_scalar', tag, value, step + 1)

    def picture(self, tag, pixels, step):
        """RGB pixels (H, W, 3) uint8 for TensorBoard."""
        self._show('add_image', tag, pixels, step + 1, dataformats='HWC')

    def _open_board(self, step):
        from torch.utils.tensorboard import SummaryWriter
        earlier = any('tfevents' in name for name in os.listdir(self.cfg.save_path))
        self.board = SummaryWriter(self.cfg.save_path, purge_step=step + 1 if earlier else None)

    def _show(self, what, *args, **kwargs):
        """Call the writer of TensorBoard's files, until it fails."""
        if self.board is None:
            return
        try:
            getattr(self.board, what)(*args, **kwargs)
        except OSError as error:
            self.board = None
            self.say(f'warning: TensorBoard goes without what follows: {one_line(error)}')

    def revive(self, step):
        """TensorBoard once more, where the disk has room again."""
        if self.text and self.board is None:
            try:
                self._open_board(step)
            except OSError:
                self.board = None

    def _open_text(self):
        self.text = Lines(os.path.join(self.cfg.save_path, 'train.log'))
        self.scores = Lines(self.metrics)

    def _forget_from(self, epoch):
        """Drop the evaluations after `epoch`, a summary and a last line that was cut off."""
        if not os.path.exists(self.metrics):
            return
        kept = [record for record in records.read(self.metrics)
                if record['epoch'] <= epoch and record['kind'] != 'summary']
        self.history = kept
        with open(f'{self.metrics}.tmp', 'w', encoding='utf-8') as file:
            file.writelines(json.dumps(record) + '\n' for record in kept)
        os.replace(f'{self.metrics}.tmp', self.metrics)
        self.scores = Lines(self.metrics)

    def _record(self, record):
        self.history.append(record)
        error = self.scores.write(json.dumps(record) + '\n')
        if error:
            self.say(f'warning: {self.metrics}: {one_line(error)}; written as soon as it can be')

    def say(self, message, keep=True):
        """A line for the terminal and, to `keep`, the text log."""
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
        """Take note of a step; every `log_every` steps, `check` and write the means since.

        Sums stay on the device in between, so that no step waits for it.

        Args:
            images: how many images this process trained on in the step.
        """
        numbers = {**terms.losses, **terms.shares, 'loss': loss}
        self.finite.note(step, numbers)
        for name, value in numbers.items():
            value = value.detach()
            finite = torch.isfinite(value)
            total, count = self.sums.get(name, (0, 0))
            self.sums[name] = total + value.masked_fill(~finite, 0), count + finite.long()
        self.images += images
        if self.bar:
            self.bar.update()
        if self.text and not self.knows_peak:
            self.knows_peak = True
            self.say('peak memory after the first step: '
                     f'{peak_memory(self.world.device):.0f} MiB')
        if self.is_due(step, self.cfg.log_every):
            self._write(epoch, step, lr)

    def check(self):
        """Hand what was not finite since the last look to `on_check`, by default an error."""
        self.on_check(self.finite.look())

    def _refuse(self, fault):
        if fault:
            raise UserError(f'non-finite loss at step {fault.step} in term {fault.term}')

    def _write(self, epoch, step, lr):
        self.check()
        means = {name: float(total) / max(int(count), 1)
                 for name, (total, count) in self.sums.items()}
        seconds = max(time.time() - self.since, 1e-9)
        means['images_per_second'] = self.images * self.world.size / seconds
        if self.text:
            self.scalars({f'train/{name}': value for name, value in {**means, 'lr': lr}.items()},
                         step)
            shown = ' '.join(f'{name} {value:.4g}' for name, value in means.items())
            self.say(f'epoch {epoch + 1}/{self.cfg.epochs} step {step + 1}/{self.total_steps} '
                     f'{shown} lr {lr:.3g}')
        self._restart()

    def _restart(self):
        self.sums, self.images, self.since = {}, 0, time.time()

    def pause(self, seconds):
        """Leave out time that was not training from images per second."""
        self.since += seconds

    def evaluation(self, epoch, step, result, names, lr, seconds, selecting=None):
        """Write an evaluation: table, metrics.jsonl, TensorBoard.

        Args:
            epoch: epochs done. step: steps done. seconds: of training and evaluating so far,
                earlier starts of the run included.
            result: {'student': Scores, 'teacher': Scores} on val; a method may have no teacher.
            selecting: the same on select_on, where the run has such a list.
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
        line.update(protocol=self.cfg.protocol, absent=records.ABSENT, processes=self.world.size)
        line['lists'] = {role: {'text': known.text, 'lines': known.lines, 'sha256': known.sha256}
                         for role, known in self.lists.items()}
        line.update(lr=lr, seconds=round(seconds, 2), peak_memory_mib=peak_memory(self.world.device))
        line['machine'] = machine(self.world.device)
        self._record(line)
        for role, score in result.items():
            self._show('add_scalar', f'eval/{role}/mIoU', score.miou, step)
            for name, value in zip(names, score.iou):
                if value is not None:
                    self._show('add_scalar', f'eval/{role}/IoU/{name}', value, step)
        for role, score in (selecting or {}).items():
            self._show('add_scalar', f'select_on/{role}/mIoU', score.miou, step)
        self._show('flush')
        self.say(table(result, names))
        if selecting:
            self.say('mIoU on select_on: ' + ', '.join(
                f'{role} {score.miou:.2f}' for role, score in selecting.items()))
        for role in result:
            warning = records.fall_text(self.history, role)
            if warning:
                self.say(warning)

    def summary(self):
        """Say best and last scores; the text log and metrics.jsonl end with them, once."""
        if not self.world.is_main or not os.path.exists(self.metrics):
            return
        known = records.read(self.metrics)
        if known and known[-1]['kind'] == 'summary':
            self.say(records.text(known[-1]))
            return
        evaluations = records.evaluations(known, self.metrics)
        if not evaluations:
            return
        summary = records.summarise(evaluations, self.cfg.protocol)
        if not self.text:  # the run was killed just before
            self._open_text()
            self._forget_from(summary['epoch'])
        self.say(records.text(summary))
        self._record(summary)

    def close(self):
        if self.bar:
            self.bar.close()
        self._show('close')
        if self.text:
            self.text.flush()
            self.scores.flush()


def peak_memory(device):
    """MiB: the most the process has allocated on a GPU, or held resident on a CPU."""
    if device.type == 'cuda':
        return round(torch.cuda.max_memory_allocated(device) / 2 ** 20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2 ** 20 if sys.platform == 'darwin' else 2 ** 10), 1)
