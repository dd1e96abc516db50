"""The order in which training sees its samples, and the loaders that follow it."""
import atexit
import functools
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils.collate import default_collate

from dssn.data.datasets import Draw, EvalSet, Replaced, TrainSet
from dssn.data.views import generator
from dssn.distributed import cores_of_a_process
from dssn.errors import UserError
from dssn.stopping import end_loaders, leave_to_parent

# Names of the orders in the random numbers, beside the names of the views in datasets.py.
LABELED_ORDER, UNLABELED_ORDER, PARTNER_SHIFT = 100, 101, 102
AHEAD = 2  # batches, or evaluation images, that each worker makes ahead of their use


class Schedule:
    """Which samples each step of each epoch takes: a pure function of (seed, epoch, step, rank).

    Semi-supervised: an epoch is one pass over the unlabeled list; the labeled list is dealt out
    without end, each pass over it in a new order, going on where the last epoch left off, so that
    a list longer than the unlabeled one is used in full. The two orders are independent.
    Supervised (no unlabeled list): an epoch is one pass over the labeled list; or, with
    `epoch_steps`, so many steps, to which the list is dealt out as above. An incomplete last batch
    of an epoch that is one pass is dropped. Ranks take neighbouring slices of one global batch, so
    the same samples make up a step on 1 x 4 and on 2 x 2 (processes x batch).
    """

    def __init__(self, cfg, n_labeled, n_unlabeled, rank=0, world=1):
        self.cfg, self.rank = cfg, rank
        self.n_labeled, self.n_unlabeled = n_labeled, n_unlabeled
        self.global_batch = cfg.batch_size * world
        longest, path = (n_labeled, cfg.labeled_id_path) if n_unlabeled is None else \
            (n_unlabeled, cfg.unlabeled_id_path)
        self.dealt_out = n_unlabeled is not None or cfg.epoch_steps > 0
        self.steps_per_epoch = longest // self.global_batch
        if n_unlabeled is None and cfg.epoch_steps:
            self.steps_per_epoch = cfg.epoch_steps
        if self.steps_per_epoch == 0:
            raise UserError(f'{path}: {longest} images are fewer than a batch ({cfg.batch_size} x '
                            f'{world} processes = {self.global_batch}); lower batch_size or use '
                            'fewer processes')
        # The last few orders only: epochs go forward.
        self.order = functools.lru_cache(4)(self._order)

    def _order(self, which, number, n):
        return generator(self.cfg.seed, number, 0, which).permutation(n)

    def batch(self, epoch, step):
        """This rank's rows of a step: a list of `Draw`."""
        first = self.rank * self.cfg.batch_size
        return [self.draw(epoch, step, first + row) for row in range(self.cfg.batch_size)]

    def draw(self, epoch, step, row):
        place = step * self.global_batch + row
        labeled_pass, labeled_place = epoch, place
        if self.dealt_out:
            dealt = epoch * self.steps_per_epoch * self.global_batch + place
            labeled_pass, labeled_place = divmod(dealt, self.n_labeled)
        labeled = self.order(LABELED_ORDER, labeled_pass, self.n_labeled)[labeled_place]
        if self.n_unlabeled is None:
            return Draw(int(labeled), labeled_pass)
        order = self.order(UNLABELED_ORDER, epoch, self.n_unlabeled)
        unlabeled = order[place]
        partner = order[(place + self.shift(epoch)) % self.n_unlabeled]
        return Draw(int(labeled), labeled_pass, int(unlabeled), int(partner), epoch)

    def shift(self, epoch):
        """How far down the epoch's order an image's CutMix partner stands; 0 is the image itself.

        With `cutmix_partner: other` every image is once a partner, and never its own.
        """
        if self.cfg.cutmix_partner == 'same' or self.n_unlabeled < 2:
            return 0
        return int(generator(self.cfg.seed, epoch, 0, PARTNER_SHIFT).integers(1, self.n_unlabeled))


class Steps:
    """Batch sampler: this rank's rows of each step of `epoch`, from step `first` of it on."""

    def __init__(self, schedule):
        self.schedule, self.epoch, self.first = schedule, 0, 0

    def __iter__(self):
        for step in range(self.first, self.schedule.steps_per_epoch):
            yield self.schedule.batch(self.epoch, step)

    def __len__(self):
        return self.schedule.steps_per_epoch - self.first


class TrainLoader:
    """Batches of an epoch, from any of its steps on."""

    def __init__(self, cfg, labeled, unlabeled, rank=0, world=1, pin=False):
        schedule = Schedule(cfg, len(labeled), unlabeled and len(unlabeled), rank, world)
        self.steps_per_epoch = schedule.steps_per_epoch
        # An object of its own: the loader may not refer back to us, or its workers would outlive
        # us until the garbage collector comes by.
        self.steps = Steps(schedule)
        workers = count_workers(cfg.workers, world, pin)
        self.labeled, self.unlabeled = labeled, unlabeled
        self.replaced = {}  # {path of a bad file: message}
        self.loader = DataLoader(
            TrainSet(cfg, labeled, unlabeled), batch_sampler=self.steps, collate_fn=collate,
            pin_memory=pin, persistent_workers=workers > 0, **processes(workers))

    def batches(self, epoch, first=0):
        """Yield a `Batch` per step of `epoch`, from step `first` of it.

        What was replaced on the way adds to `self.replaced`, {path: message}.

        Raises:
            UserError: a file is bad, and there is no replacement, or were too many before.
        """
        self.steps.epoch, self.steps.first = epoch, first
        for batch, replaced in checked(self.loader):
            for path, message in replaced:
                self.replaced.setdefault(path, message)
            yield batch

    def close(self):
        """End the processes that load."""
        self.loader = None

    def samples(self, epoch, step):
        """The places in the lists of all samples of a step of `epoch`, on all ranks, as text."""
        schedule = self.steps.schedule
        draws = [schedule.draw(epoch, step, row) for row in range(schedule.global_batch)]
        parts = [('labeled', self.labeled, [draw.labeled for draw in draws])]
        if self.unlabeled is not None:
            parts.append(('unlabeled', self.unlabeled, [draw.unlabeled for draw in draws]))
            if self.unlabeled and draws[0].partner != draws[0].unlabeled:
                parts.append(('partner', self.unlabeled, [draw.partner for draw in draws]))
        return '; '.join(f'{role}: ' + ', '.join(samples[index].image for index in indices)
                         for role, samples, indices in parts)


def eval_loader(cfg, samples, rank=0, world=1, pin=False):
    """This rank's share of the evaluation images, each image on exactly one rank.

    While one is predicted the next are read: by `workers` processes, or a thread without them.
    """
    part = torch.utils.data.Subset(EvalSet(cfg, samples), range(rank, len(samples), world))
    workers = count_workers(cfg.workers, world, pin)
    if workers == 0:
        return checked(read_ahead(part))
    return checked(DataLoader(part, batch_size=None, pin_memory=pin, **processes(workers)))


def count_workers(workers, world, gpu):
    """Loader processes of one training process, from the config's `workers`.

    Args:
        workers: a number, or 'auto'. world: training processes. gpu: whether they train on GPUs.
    """
    if workers != 'auto':
        return workers
    cores = cores_of_a_process(world)
    if not gpu:
        # The network takes the cores, and far longer than its images: one reads ahead.
        return 1 if cores > 1 else 0
    # One core feeds the GPU. More than eight were idle, and each takes memory.
    return min(max(cores - 1, 1), 8)


def processes(workers):
    """The arguments of a DataLoader with so many worker processes."""
    if workers == 0:
        return {}
    atexit.unregister(end_loaders)
    atexit.register(end_loaders)  # what is registered last runs first: before Python waits
    return {'num_workers': workers, 'prefetch_factor': AHEAD, 'worker_init_fn': prepare_worker}


def read_ahead(items, count=2):
    """Yield items[0], items[1], ..., read by a thread up to `count` ahead of their use."""
    with ThreadPoolExecutor(1) as reader:
        coming = deque()
        for i in range(len(items)):
            coming.append(reader.submit(items.__getitem__, i))
            if len(coming) > count:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def checked(loader):
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def collate(rows):
    """Rows of a `TrainSet` -> (Batch, [(path, message)] of all that were replaced), or an error."""
    bad = [row for row in rows if isinstance(row, UserError)]
    if bad:
        return bad[0]
    replaced = [pair for row in rows if isinstance(row, Replaced) for pair in row.files]
    return _collate([row.row if isinstance(row, Replaced) else row for row in rows]), replaced


def _collate(rows):
    """Rows of named tuples -> one, tensors stacked; None stays None."""
    first = rows[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        return type(first)(*[_collate(column) for column in zip(*rows)])
    return default_collate(list(rows))


def prepare_worker(worker):
    """Workers are many: each keeps to one thread, so that they do not fight for the cores."""
    torch.set_num_threads(1)
    leave_to_parent()
