"""The update: what one batch does to student and teacher."""
import contextlib

import numpy as np
import torch

from dssn import ema, precision
from dssn.batch import Batch, to
from dssn.distributed import unwrap
from dssn.methods import Terms
from dssn.optim import gradient_norm, guarded_step, set_lr


class Update:
    """Makes the optimizer steps of a run, one a call; no step waits for the device.

    Args:
        cfg, world, method: of the run. student, teacher: networks on the device, the student
            in DDP where there are several processes, the teacher None where the method has none.
        optimizer: the student's. lr: the backbone's initial rate. total_steps: of the run.
    """

    def __init__(self, cfg, world, method, student, teacher, optimizer, lr, total_steps):
        self.cfg, self.world, self.method = cfg, world, method
        self.student, self.teacher, self.optimizer = student, teacher, optimizer
        self.lr, self.total_steps = lr, total_steps
        self.scaler = precision.make_scaler(cfg)
        # Whether a gradient was not finite, on the device: the steps after it are left out too,
        # so that the run stops with the weights of before. Not with `on_nonfinite: skip`, nor with
        # fp16, whose scaler meets such gradients as a matter of course.
        self.went_bad = torch.zeros((), dtype=torch.bool, device=world.device)

    def __call__(self, batch, epoch, step, watched=False):
        """Train on a batch.

        Args:
            batch: a `Batch` as the loader gives it. epoch, step: from 0. watched: whether the
                predictions will be looked at.

        Returns:
            (the batch on the device, the method's `Terms`, the loss, the rate of the backbone);
            among the shares is `gradient_norm`. Where that is not finite the student stays as it
            was; with `on_nonfinite: skip` BN's running statistics of both networks do, too.
        """
        cfg, optimizer = self.cfg, self.optimizer
        lr = set_lr(optimizer, step, self.total_steps, self.lr, cfg.lr_multi)
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
        terms = terms._replace(shares={**terms.shares, 'gradient_norm': norm})
        return batch, terms, self.method.total(terms.losses), lr

    def move(self, batch):
        return to(batch, self.world.device)

    def gradients(self, batch, step):
        """Add up the gradients of the batch's parts; returns the whole batch's `Terms`."""
        cfg, method = self.cfg, self.method
        networks = [model and precision.half(model, cfg, self.world.device)
                    for model in (self.student, self.teacher)]
        parts = split(batch, cfg.accumulate)
        whole = method.counts(*batch) if len(parts) > 1 else None
        found = []
        for number, part in enumerate(parts):
            seed_step(cfg.seed, step, self.world.rank, number)
            terms = method(*networks, *part)
            if whole:
                terms = weighed(terms, method.counts(*part), whole)
            self.backward(method.total(terms.losses), is_last=number + 1 == len(parts))
            found.append(detached(terms))
        return joined(found)

    def backward(self, loss, is_last):
        """Add a part's gradients; processes exchange them after the last one's."""
        if self.scaler:
            loss = self.scaler.scale(loss)
        with contextlib.nullcontext() if is_last else precision.unsynchronised(self.student):
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
        # A gradient beyond fp16 is no fault: the scaler leaves the step out and scales less.
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
        """Give the running statistics back where the gradient is not finite; they may not be."""
        for buffer, old in zip(self.statistics(), kept):
            buffer.copy_(torch.where(self.bad, old, buffer))

    def average(self):
        ema.update(self.teacher, unwrap(self.student), self.method.keep_rate)


def seed_step(seed, step, rank, part=0):
    """Derive the random numbers (channel dropout) of a step's part from where it stands.

    A resumed run so draws what the undisturbed one would, with no state to carry over.
    """
    where = (seed, step, rank, 1) + ((part,) if part else ())
    words = np.random.SeedSequence(where).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]) >> 1)


def split(batch, count):
    """A `Batch` as `count` of equal size."""
    if count == 1:
        return [batch]

    def pieces(part):
        if part is None:
            return [None] * count
        return [type(part)(*tensors) for tensors in zip(*[t.chunk(count) for t in part])]
    return [Batch(*parts) for parts in zip(*map(pieces, batch))]


def weighed(terms, counts, whole):
    """A part's terms as its addends to the whole batch's.

    Args:
        counts, whole: {term or share: pixels that it is a mean over}, in the part and in all.
    """
    def addends(values):
        return {name: value * (counts[name].double() / whole[name].clamp(min=1)).to(value.dtype)
                for name, value in values.items()}
    return terms._replace(losses=addends(terms.losses), shares=addends(terms.shares))


def detached(terms):
    return terms._replace(losses={name: value.detach() for name, value in terms.losses.items()})


def joined(found):
    """The `Terms` of a batch from those of its parts, whose losses and shares are addends."""
    if len(found) == 1:
        return found[0]
    first = found[0]

    def summed(parts):
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    def stacked(parts):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    labels = {branch: type(known)(*map(torch.cat, zip(*[part.labels[branch] for part in found])))
              for branch, known in first.labels.items()}
    return Terms(summed([part.losses for part in found]), summed([part.shares for part in found]),
                 labels, stacked([part.predictions for part in found]))
