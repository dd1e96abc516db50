"""The order of the samples in training, and the loaders that follow it."""
import atexit
import functools
import itertools
import signal
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils.collate import default_collate

from dssn.data.datasets import EvalSet, RepairedRow, RowIndices, TrainSet
from dssn.data.views import generator
from dssn.data.workers import (
    explained_failures,
    ignore_stop_signals,
    kill_loaders,
    no_room,
    share,
)
from dssn.distributed import cores_of_a_process
from dssn.errors import UserError

# Keys of the orders for `generator`. They differ from the keys of the views in datasets.py.
LABELED_ORDER, UNLABELED_ORDER, PARTNER_SHIFT = 100, 101, 102
PREFETCH = 2  # batches, or evaluation images, that each worker prepares in advance
LONGEST_WAIT = 600  # seconds for the next item; after them the loader processes count as hanging


class Schedule:
    """The samples of each step of each epoch: a pure function of (seed, epoch, step, rank).

    Semi-supervised training: an epoch is one pass over the unlabeled list, in random order. With
    `epoch_steps` it is only the first `epoch_steps` steps of that pass. The labeled list is
    repeated endlessly. Each pass over it has a new random order, and a new epoch continues where
    the last one stopped. So a labeled list longer than the unlabeled one is used completely. The
    two orders are independent.

    Supervised training (no unlabeled list): an epoch is one pass over the labeled list. With
    `epoch_steps` it is `epoch_steps` steps, and the list is repeated as above.

    If an epoch is one pass, its incomplete last batch is dropped.

    A step takes `labeled_images` labeled and `batch_size` unlabeled images for each rank. Ranks
    take neighbouring slices of one global batch, so a step has the same samples on 1 x 4 and on
    2 x 2 (processes x batch). A repeated list may be shorter than a step's labeled images. It is
    then repeated within the step, and its images come again with other views.

    With `from_labeled` the unlabeled images and their partners come from the labeled list, too.
    Epochs are those of supervised training. The list is repeated for the unlabeled images in an
    order of its own.
    """

    def __init__(self, cfg, n_labeled, n_unlabeled, rank=0, world=1, from_labeled=False):
        self.cfg, self.rank = cfg, rank
        self.n_labeled, self.n_unlabeled = n_labeled, n_unlabeled
        self.world, self.labeled_images = world, cfg.labeled_images
        self.unlabeled_images = 0 if n_unlabeled is None else cfg.batch_size
        n_images, size, path, key = (n_unlabeled, cfg.batch_size, cfg.unlabeled_id_path,
                                     'batch_size')
        self.from_labeled = from_labeled
        one_list = from_labeled or n_unlabeled is None
        if one_list:
            n_images, size, path = n_labeled, cfg.labeled_images, cfg.labeled_id_path
            key = 'labeled_batch_size' if cfg.labeled_batch_size else 'batch_size'
        self.repeats_labeled = n_unlabeled is not None or cfg.epoch_steps > 0
        self.steps_per_epoch = n_images // (size * world)
        if one_list and cfg.epoch_steps:
            self.steps_per_epoch = cfg.epoch_steps
        if self.steps_per_epoch == 0:
            raise UserError(f'{path}: {n_images} images are fewer than a batch ({size} x {world} '
                            f'processes = {size * world}); lower {key} or use fewer processes')
        if cfg.epoch_steps > self.steps_per_epoch:
            raise UserError(f'{path}: epoch_steps = {cfg.epoch_steps} is more than one pass over '
                            f'the {n_images} unlabeled images, {self.steps_per_epoch} steps; set '
                            'at most that, and more epochs')
        self.steps_per_epoch = cfg.epoch_steps or self.steps_per_epoch
        # Epochs go forward, so a few orders are enough.
        self.order = functools.lru_cache(4)(self._order)

    def _order(self, key, pass_number, n):
        """The order of pass `pass_number` over a list of n samples: a permutation (n,)."""
        return generator(self.cfg.seed, pass_number, 0, key).permutation(n)

    def batch(self, epoch, step):
        """The rows of a step on this rank: a list of `RowIndices`.

        It is as long as the larger of `labeled_images` and `unlabeled_images`.
        """
        return self.rows(epoch, step, self.rank, self.rank + 1)

    def global_batch(self, epoch, step):
        """The rows of a step on all ranks."""
        return self.rows(epoch, step, 0, self.world)

    def rows(self, epoch, step, first, end):
        """The rows of a step on the ranks `first` to `end` - 1."""
        labeled = [self.labeled(epoch, step, row) for row in
                   range(first * self.labeled_images, end * self.labeled_images)]
        unlabeled = [self.unlabeled(epoch, step, row) for row in
                     range(first * self.unlabeled_images, end * self.unlabeled_images)]
        return [RowIndices(*(x or (None, None)), *(u or ()))
                for x, u in itertools.zip_longest(labeled, unlabeled)]

    def labeled(self, epoch, step, row):
        """(sample, pass) of the labeled image at a row of a step's global batch."""
        size = self.labeled_images * self.world
        pass_number, place = epoch, step * size + row
        if self.repeats_labeled:
            pass_number, place = divmod(epoch * self.steps_per_epoch * size + place, self.n_labeled)
        return int(self.order(LABELED_ORDER, pass_number, self.n_labeled)[place]), pass_number

    def unlabeled(self, epoch, step, row):
        """(sample, CutMix partner, pass) of the unlabeled image at a row of a global batch.

        With `cutmix_partner: batch` the partner is None: it is in the batch already.
        """
        size = self.unlabeled_images * self.world
        pass_number, place = epoch, step * size + row
        if self.from_labeled:
            pass_number, place = divmod(epoch * self.steps_per_epoch * size + place,
                                        self.n_unlabeled)
        order = self.order(UNLABELED_ORDER, pass_number, self.n_unlabeled)
        if self.cfg.cutmix_partner == 'batch':
            return int(order[place]), None, pass_number
        partner = order[(place + self.partner_shift(pass_number)) % self.n_unlabeled]
        return int(order[place]), int(partner), pass_number

    def partner_shift(self, pass_number):
        """The distance from an image to its CutMix partner in the order of a pass.

        0 means that an image is its own partner. With `cutmix_partner: other` the shift is not 0
        (unless there is only one image): every image is a partner once per pass, never its own.
        """
        if self.cfg.cutmix_partner == 'same' or self.n_unlabeled < 2:
            return 0
        rng = generator(self.cfg.seed, pass_number, 0, PARTNER_SHIFT)
        return int(rng.integers(1, self.n_unlabeled))


class StepSampler:
    """Batch sampler: this rank's rows of the steps of `epoch`, from step `first` on."""

    def __init__(self, schedule):
        self.schedule, self.epoch, self.first = schedule, 0, 0

    def __iter__(self):
        for step in range(self.first, self.schedule.steps_per_epoch):
            yield self.schedule.batch(self.epoch, step)

    def __len__(self):
        return self.schedule.steps_per_epoch - self.first


class TrainLoader:
    """The batches of an epoch, from any of its steps on.

    `masks_of` is for oracles, see `methods.masks_of`. It is the list that unlabeled images and
    partners come from, with their masks: 'unlabeled' or 'labeled'. With 'labeled' there is no
    unlabeled list.

    Attributes:
        replaced: {image path of an unreadable sample: message} of all epochs so far.
    """

    def __init__(self, cfg, labeled, unlabeled, rank=0, world=1, pin=False, masks_of=None):
        from_labeled = masks_of == 'labeled'
        if from_labeled:
            unlabeled = labeled
        schedule = Schedule(cfg, len(labeled), unlabeled and len(unlabeled), rank, world,
                            from_labeled)
        self.steps_per_epoch = schedule.steps_per_epoch
        # A separate object: if the DataLoader referred to this one, its workers would live on
        # until the garbage collector runs.
        self.steps = StepSampler(schedule)
        workers = count_workers(cfg.workers, world, pin)
        self.labeled, self.unlabeled = labeled, unlabeled
        self.replaced = {}
        self.loader = DataLoader(
            TrainSet(cfg, labeled, unlabeled, bool(masks_of)), batch_sampler=self.steps,
            collate_fn=collate, pin_memory=pin, persistent_workers=workers > 0,
            **worker_arguments(workers))

    def batches(self, epoch, first=0):
        """Yield a `Batch` for each step of `epoch`, from step `first` on.

        Replaced samples are added to `self.replaced`.

        Raises:
            UserError: a file is bad and cannot be replaced.
        """
        self.steps.epoch, self.steps.first = epoch, first
        for batch, replaced in raise_errors(self.loader):
            for path, message in replaced:
                self.replaced.setdefault(path, message)
            yield batch

    def close(self):
        """End the loader processes."""
        self.loader = None

    def samples(self, epoch, step):
        """The image paths of all samples of a step of `epoch`, on all ranks, as text."""
        rows = self.steps.schedule.global_batch(epoch, step)
        parts = [('labeled', self.labeled, [row.labeled for row in rows])]
        if self.unlabeled is not None:
            role = 'labeled, for strong views' if self.unlabeled is self.labeled else 'unlabeled'
            parts.append((role, self.unlabeled, [row.unlabeled for row in rows]))
            if self.unlabeled and rows[0].partner not in (None, rows[0].unlabeled):
                parts.append(('partner', self.unlabeled, [row.partner for row in rows]))
        return '; '.join(
            f'{role}: ' + ', '.join(samples[i].image for i in indices if i is not None)
            for role, samples, indices in parts)


def eval_loader(cfg, samples, rank=0, world=1, gpu=False):
    """The items of an `EvalSet` on this rank. Each image is on exactly one rank.

    The next images are read while one is predicted: by `workers` processes, or by a thread if
    there are none. Memory is not pinned, because the images are stacked afterwards, into other
    memory.

    Args:
        gpu: whether a GPU predicts the images.

    Raises:
        UserError: a file is bad.
    """
    part = torch.utils.data.Subset(EvalSet(cfg, samples), range(rank, len(samples), world))
    workers = count_workers(cfg.workers, world, gpu)
    if workers == 0:
        return raise_errors(read_ahead(part))
    return raise_errors(DataLoader(part, batch_size=None, collate_fn=share,
                                   **worker_arguments(workers)))


def count_workers(workers, world, gpu):
    """The number of loader processes of one training process.

    Args:
        workers: the config's `workers`, a number or 'auto'. world: number of training processes.
        gpu: whether they train on GPUs.
    """
    if workers != 'auto':
        return workers
    cores = cores_of_a_process(world)
    if not gpu:
        # The network needs the cores, and takes far longer than loading. One worker is enough.
        return 1 if cores > 1 else 0
    # One core is left for the training process. More than eight workers would be idle, and each
    # needs memory.
    return min(max(cores - 1, 1), 8)


def worker_arguments(workers):
    """The arguments of a DataLoader with `workers` worker processes."""
    if workers == 0:
        return {}
    # The function registered last runs first: before Python waits for the workers.
    atexit.unregister(kill_loaders)
    atexit.register(kill_loaders)
    # Where no signal tells that a process has ended, PyTorch looks itself if there is no timeout.
    timeout = LONGEST_WAIT if hasattr(signal, 'SIGCHLD') else 0
    return {'num_workers': workers, 'prefetch_factor': PREFETCH, 'worker_init_fn': prepare_worker,
            'timeout': timeout}


def read_ahead(items, count=2):
    """Yield items[0], items[1], ...; a thread reads up to `count` items in advance."""
    with ThreadPoolExecutor(1) as reader:
        coming = deque()
        for i in range(len(items)):
            coming.append(reader.submit(items.__getitem__, i))
            if len(coming) > count:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def raise_errors(loader):
    """Yield the items of a loader, but raise an item that is a UserError.

    Raises:
        WorkerFailure: a loader process has ended.
    """
    with explained_failures(fetching=getattr(loader, 'num_workers', 0) > 0):
        for item in loader:
            if isinstance(item, UserError):
                raise item
            yield item


def collate(rows):
    """Collate items of a `TrainSet`.

    Returns:
        (`Batch`, [(image path, message)] of the replaced samples), or the first UserError among
        the items, or a `WorkerFailure`.
    """
    errors = [row for row in rows if isinstance(row, UserError)]
    if errors:
        return errors[0]
    replaced = [pair for row in rows if isinstance(row, RepairedRow) for pair in row.files]
    rows = [row.row if isinstance(row, RepairedRow) else row for row in rows]
    try:
        return _collate(rows), replaced  # in a loader process: in shared memory
    except RuntimeError as error:
        if 'shared memory' not in str(error):
            raise
        return no_room(error)


def _collate(rows):
    """Stack named tuples of tensors. None is left out; the result is None if all are None."""
    rows = [row for row in rows if row is not None]
    if not rows:
        return None
    first = rows[0]
    if isinstance(first, tuple):
        return type(first)(*[_collate(column) for column in zip(*rows)])
    return default_collate(list(rows))


def prepare_worker(worker):
    """Set up a worker: one thread, because workers would compete for the cores."""
    torch.set_num_threads(1)
    ignore_stop_signals()
