"""The update of student and teacher by one batch."""
import contextlib

import numpy as np
import torch

from dssn import ema, precision
from dssn.batch import Batch, to, with_partner
from dssn.distributed import unwrap
from dssn.methods import Terms
from dssn.optim import gradient_norm, guarded_step, set_lr


class Update:
    """Makes one optimizer step per call. No step waits for the device.

    Args:
        cfg, world, method: of the run. student: network on the device, in DDP if there are several
            processes. teacher: network on the device, or None. optimizer: of the student. lr:
            initial rate of the backbone. total_steps: of the run.
    """

    def __init__(self, cfg, world, method, student, teacher, optimizer, lr, total_steps):
        self.cfg, self.world, self.method = cfg, world, method
        self.student, self.teacher, self.optimizer = student, teacher, optimizer
        self.lr, self.total_steps = lr, total_steps
        self.scaler = precision.make_scaler(cfg)
        # Whether any gradient was not finite (on the device). All later steps are then left out, so
        # that the run stops with the weights before the fault. Not used with `on_nonfinite: skip`,
        # nor with fp16, whose scaler causes such gradients regularly.
        self.went_bad = torch.zeros((), dtype=torch.bool, device=world.device)

    def __call__(self, batch, epoch, step, watched=False):
        """Train on a batch.

        Args:
            batch: a `Batch` from the loader. epoch, step: from 0. watched: whether the predictions
                of this step are needed, for panels.

        Returns:
            (batch on the device, the method's `Terms`, loss, rate of the backbone). `gradient_norm`
            is added to the fractions. If it is not finite, the student does not change. With
            `on_nonfinite: skip` BN's running statistics of both networks do not change either.
        """
        cfg, optimizer = self.cfg, self.optimizer
        lr = set_lr(optimizer, step, self.total_steps, self.lr, cfg.lr_multi, cfg.lr_power)
        self.method.start_step(epoch, step, self.teacher, watched)
        batch = self.move(batch)
        optimizer.zero_grad(set_to_none=True)
        kept = self.statistics(copy=True) if cfg.on_nonfinite == 'skip' else None
        terms = self.gradients(batch, step)
        norm = self.optimize()
        if kept:
            self.restore(kept)
        if self.teacher is not None:
            self.average()
        terms = terms._replace(fractions={**terms.fractions, 'gradient_norm': norm})
        return batch, terms, self.method.total(terms.losses), lr

    def move(self, batch):
        batch = to(batch, self.world.device)
        if self.method.uses_unlabeled and self.cfg.cutmix_partner == 'batch':
            batch = with_partner(batch, self.cfg.accumulate)
        return batch

    def gradients(self, batch, step):
        """Add up the gradients of the batch's parts; returns the mean of their `Terms`.

        Parts are treated like the batches of several processes: losses are means over the part's
        own pixels, and all parts count the same.
        """
        cfg = self.cfg
        networks = [model and precision.half(model, cfg, self.world.device)
                    for model in (self.student, self.teacher)]
        parts, found = split(batch, cfg.accumulate), []
        for number, part in enumerate(parts):
            seed_step(cfg.seed, step, self.world.rank, number)
            # Includes the forward pass, where DDP decides whether the backward pass will exchange
            # gradients.
            with contextlib.nullcontext() if number + 1 == len(parts) else \
                    precision.unsynchronised(self.student):
                terms = self.method(*networks, *part)
                self.backward(self.method.total(terms.losses) / len(parts))
            found.append(detached(terms))
        return mean_of(found)

    def backward(self, loss):
        """Add a part's gradients. Under DDP the backward pass of the last part exchanges them."""
        if self.scaler:
            loss = self.scaler.scale(loss)
        loss.backward()

    def optimize(self):
        """The optimizer's step; returns the gradient's norm, a scalar on the device."""
        if self.scaler is None:
            norm = gradient_norm(self.optimizer)
            self.bad = ~torch.isfinite(norm)
            if self.cfg.on_nonfinite == 'stop':
                self.went_bad |= self.bad
                self.bad = self.went_bad
            guarded_step(self.optimizer, self.bad)
            return norm
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.optimizer)
        self.bad = ~torch.isfinite(norm)
        # A gradient beyond fp16 is no fault: the scaler skips the step and lowers its scale.
        norm = torch.nan_to_num(norm, posinf=0.0, neginf=0.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def statistics(self, copy=False):
        """BN's running statistics of both networks, or copies of them."""
        networks = [unwrap(self.student)] + ([self.teacher] if self.teacher is not None else [])
        return [buffer.clone() if copy else buffer for network in networks
                for buffer in network.buffers() if buffer.is_floating_point()]

    @torch.no_grad()
    def restore(self, kept):
        """If the gradient is not finite, reset BN's running statistics to `kept`."""
        for buffer, old in zip(self.statistics(), kept):
            buffer.copy_(torch.where(self.bad, old, buffer))

    def average(self):
        ema.update(self.teacher, unwrap(self.student), self.method.keep_rate)


def seed_step(seed, step, rank, part=0):
    """Seed the random numbers (channel dropout) of one part of a step.

    They derive from seed, step, rank and part. A resumed run therefore samples the same numbers as
    an uninterrupted one, without saved state.
    """
    where = (seed, step, rank, 1) + ((part,) if part else ())
    words = np.random.SeedSequence(where).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]) >> 1)


def split(batch, count):
    """Split a `Batch` into `count` batches of equal size."""
    if count == 1:
        return [batch]

    def pieces(part):
        if part is None:
            return [None] * count
        return [type(part)(*tensors) for tensors in zip(*[t.chunk(count) for t in part])]
    return [Batch(*parts) for parts in zip(*map(pieces, batch))]


def detached(terms):
    return terms._replace(losses={name: value.detach() for name, value in terms.losses.items()})


def mean_of(found):
    """The `Terms` of a batch from those of its parts: means of scalars, concatenated images."""
    if len(found) == 1:
        return found[0]
    first = found[0]

    def means(parts):
        return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}

    def stacked(parts):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    labels = {branch: type(known)(*map(torch.cat, zip(*[part.labels[branch] for part in found])))
              for branch, known in first.labels.items()}
    return Terms(means([part.losses for part in found]), means([part.fractions for part in found]),
                 labels, stacked([part.predictions for part in found]))
