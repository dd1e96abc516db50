"""`python -m dssn bench loader`: times our loader and a plain one on one core."""
import copy
import itertools
import os
import statistics
import tempfile
import time

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as F

from dssn import config, methods
from dssn.batch import MEAN, STD, Batch, Labeled, Unlabeled, normalise
from dssn.data import transforms as T
from dssn.data.datasets import BASE, BOX1, BOX2, LABELED, PARTNER, STRONG1, STRONG2, UNLABELED
from dssn.data.loaders import TrainLoader, collate
from dssn.data.photometric import PIXELS
from dssn.data.views import cutmix_box, generator, strong_operations
from dssn.run.machine import machine
from dssn.tools.arguments import positive_number
from dssn.tools.bench.step import batch_text
from dssn.tools.bench.synthetic_images import write_images
from dssn.tools.bench.timing import add_config_options, ratio, time_in_turns
from dssn.tools.output_files import write_json

CPU = torch.device('cpu')
MAX_LEVELS = 2  # grey levels by which a weak view may differ from the plain one


def add_arguments(parser):
    """Time the loading of training batches on one core, and compare it with plain code.

        python -m dssn bench loader --config configs/camvid.yaml
        python -m dssn bench loader --config configs/cityscapes.yaml --size 2048 1024 --format png

    The plain code has the usual order of operations: decode image and mask, resize both as a whole,
    pad, crop, flip, copy the image for each view, apply the photometric operations of Pillow and
    torchvision one by one, and convert each view to normalised floats. An unlabeled sample is
    loaded twice, as target and as CutMix partner, and its mask is decoded although it is not used.

    Both sample the same operations from the same random numbers and read the same files, rendered
    for this command. They must give the same labels, and weak views that differ by at most 2 grey
    levels; otherwise the exit status is 1. Our loader gives 8-bit pixels. The device normalises
    them, which is not included in the time.

    A sample is one row of a batch: a labeled image, an unlabeled one and its partner. With
    labeled_batch_size some rows have no labeled image, or no unlabeled one. Seconds are processor
    time of the core, with --workers wall clock time.
    """
    add_config_options(parser)
    parser.add_argument('--size', type=positive_number, nargs=2, default=[480, 360],
                        metavar=('WIDTH', 'HEIGHT'), help='of the images (default: 480 360)')
    parser.add_argument('--format', choices=('jpg', 'png'), default='jpg',
                        help='of the image files (default: %(default)s)')
    parser.add_argument('--samples', type=positive_number, default=24,
                        help='number of images, and of rows in a round (default: %(default)s)')
    parser.add_argument('--rounds', type=positive_number, default=7,
                        help='number of rounds; in each both take a turn (default: %(default)s)')
    parser.add_argument('--workers', type=positive_number, metavar='N',
                        help='also time our loader with N worker processes (wall clock)')


def run(args):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as root:
            overrides = {'data_root': root, 'labeled_id_path': 'synthetic',
                         'unlabeled_id_path': 'synthetic'}
            cfg = config.load(args.config, overrides, args.assignments + ['workers=0'])
            samples = write_images(root, args.samples, args.size, cfg.nclass, args.format)
            ways = {'ours': loader_of(cfg, samples), 'plain': PlainLoader(cfg, samples)}
            worst = difference(*[way.batches(0) for way in ways.values()])
            # Processor time: other programs on the machine have no effect.
            seconds = time_in_turns({name: epochs_of(way) for name, way in ways.items()},
                                    args.rounds, CPU, time.process_time)
            if args.workers:
                again = config.load(args.config, overrides,
                                    args.assignments + [f'workers={args.workers}'])
                seconds.update(time_in_turns(
                    {f'{args.workers} workers': epochs_of(loader_of(again, samples))},
                    args.rounds, CPU))
            rows = ways['ours'].steps_per_epoch * max(cfg.labeled_images, cfg.unlabeled_images)
            where = f'{machine(CPU)}, Pillow {PIL.__version__}'
    finally:
        torch.set_num_threads(threads)
    report(args, cfg, seconds, rows, worst, where)
    return 0 if worst <= MAX_LEVELS else 1


def loader_of(cfg, samples):
    method = methods.find(cfg.method, 'config')
    return TrainLoader(cfg, samples, samples if method.uses_unlabeled else None)


def epochs_of(loader):
    """A function that loads the next epoch each time: every round has other random numbers."""
    numbers = itertools.count()

    def epoch():
        for _ in loader.batches(next(numbers)):
            pass
    return epoch


class PlainLoader:
    """The batches of a TrainLoader, made by plain code from the same random numbers."""

    def __init__(self, cfg, samples):
        ours = loader_of(cfg, samples)
        self.steps = ours.steps
        self.loader = DataLoader(PlainSet(cfg, samples), batch_sampler=self.steps,
                                 collate_fn=collate)

    def batches(self, epoch):
        self.steps.epoch = epoch
        return (batch for batch, _ in self.loader)


class PlainSet(Dataset):
    """Maps `RowIndices` to a row of a `Batch` with normalised images, by plain code."""

    def __init__(self, cfg, samples):
        self.cfg, self.samples = cfg, samples

    def __getitem__(self, indices):
        labeled = None if indices.labeled is None else self.labeled_row(indices)
        if indices.unlabeled is None:
            return Batch(labeled, None, None)
        return Batch(labeled, self.unlabeled_row(indices.unlabeled, UNLABELED, indices),
                     None if indices.partner is None else
                     self.unlabeled_row(indices.partner, PARTNER, indices))

    def open_image(self, sample):
        return Image.open(os.path.join(self.cfg.data_root, sample.image)).convert('RGB')

    def open_mask(self, sample):
        mask = Image.open(os.path.join(self.cfg.data_root, sample.mask))
        return Image.fromarray(np.array(mask))

    def labeled_row(self, indices):
        sample = self.samples[indices.labeled]
        image = self.open_image(sample)
        mask = self.open_mask(sample)
        rng = generator(self.cfg.seed, indices.labeled_pass, indices.labeled, LABELED + BASE)
        image, mask = plain_view(image, mask, self.cfg, rng)
        return Labeled(to_floats(image), torch.from_numpy(np.array(mask)).long(),
                       torch.tensor(indices.labeled))

    def unlabeled_row(self, index, role, indices):
        cfg, epoch = self.cfg, indices.unlabeled_pass
        image = self.open_image(self.samples[index])
        # The usual scripts also decode the mask of an unlabeled image. A mask of zeros shows the
        # padding.
        self.open_mask(self.samples[index])
        mask = Image.new('L', image.size, 0)
        weak, mask = plain_view(image, mask, cfg, generator(cfg.seed, epoch, index, role + BASE))
        weak, *copies = [copy.deepcopy(weak) for _ in range(3)]
        strong = [plain_strong_view(image, generator(cfg.seed, epoch, index, role + view), cfg)
                  for view, image in zip((STRONG1, STRONG2), copies)]
        boxes = [cutmix_box(cfg.crop_size,
                            generator(cfg.seed, epoch, indices.unlabeled, UNLABELED + box),
                            cfg.cutmix_probability, cfg.cutmix_area) for box in (BOX1, BOX2)]
        valid = torch.from_numpy(np.array(mask)).long() != T.IGNORE
        return Unlabeled(*[to_floats(view) for view in (weak, *strong)], valid,
                         *[torch.tensor(box) for box in boxes], torch.tensor(index))


def plain_view(image, mask, cfg, rng):
    """The base view by plain code: image and mask are resized, padded, cropped and flipped."""
    side = cfg.crop_size
    size = T.random_size(image.size, rng, cfg.scale_range)
    image = image.resize(size, Image.Resampling.BILINEAR)
    mask = mask.resize(size, Image.Resampling.NEAREST)
    padding = (0, 0, max(side - size[0], 0), max(side - size[1], 0))
    image = ImageOps.expand(image, padding, fill=0)
    mask = ImageOps.expand(mask, padding, fill=T.IGNORE)
    left, top = T.random_place(size, side, rng)
    window = (left, top, left + side, top + side)
    image, mask = image.crop(window), mask.crop(window)
    if T.random_flip(rng):
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    return image, mask


def plain_hue(image, shift):
    turned = [(hue + shift) % 256 for hue in range(256)]
    same = list(range(256))
    return image.convert('HSV').point(turned + same + same).convert('RGB')


PLAIN_PIXELS = {
    'brightness': F.adjust_brightness, 'contrast': F.adjust_contrast,
    'color': F.adjust_saturation, 'hue': plain_hue,
    'grayscale': lambda image, _: image.convert('L').convert('RGB')}


def plain_strong_view(image, rng, cfg):
    """The strong view by plain code: each operation by Pillow or torchvision on the whole view."""
    for name, strength in strong_operations(rng, cfg):
        function = PLAIN_PIXELS[name] if name in PLAIN_PIXELS else PIXELS[name][0]
        image = function(image, strength)
    return image


def to_floats(image):
    return F.normalize(F.to_tensor(image), MEAN, STD)


def difference(ours, plain):
    """Largest difference of weak views in grey levels; infinity if labels or `valid` differ."""
    worst = 0.0
    for a, b in zip(ours, plain):
        if not torch.equal(a.labeled.label.long(), b.labeled.label):
            return float('inf')
        for mine, other in zip(a, b):
            if mine is not None:
                # The first field is the labeled image, or the weak view of the unlabeled one.
                levels = (normalise(mine[0]) - other[0]).abs() \
                    * (255 * torch.tensor(STD)).view(1, 3, 1, 1)
                worst = max(worst, float(levels.max()))
                if isinstance(mine, Unlabeled) and not torch.equal(mine.valid, other.valid):
                    return float('inf')
    return round(worst, 2)


def report(args, cfg, seconds, rows, worst, where):
    faster = ratio(seconds, 'plain', 'ours')
    width, height = args.size
    partner = f', partner {cfg.cutmix_partner}, num_aug {cfg.num_aug}' \
        if hasattr(cfg, 'num_aug') else ''
    print(f'{where}\n{width}x{height} {args.format}, crop {cfg.crop_size}{partner}, batch '
          f'{batch_text(cfg)}; {rows} samples a round, medians of {args.rounds} rounds')
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f'{name:<10} {median:8.3f} s {rows / median:8.2f} samples a second')
    print(f'plain / ours: {faster:.2f}; weak views differ by at most {worst:g} grey levels')
    write_json(args.json, {'machine': where, 'config': config.to_dict(cfg), 'samples': rows,
                           'size': args.size, 'format': args.format, 'seconds': seconds,
                           'plain_over_ours': faster, 'levels': worst})
