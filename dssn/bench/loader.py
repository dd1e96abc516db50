"""`python -m dssn.bench loader`: our loader beside the plain order of operations, on one core."""
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
from dssn.bench.pictures import draw_list
from dssn.bench.timing import interleaved, ratio, write_json
from dssn.data import transforms as T
from dssn.data.arguments import positive_number
from dssn.data.datasets import (BASE, BOX1, BOX2, LABELED, PARTNER, STRONG1, STRONG2, UNLABELED)
from dssn.data.loaders import TrainLoader, collate
from dssn.data.photometric import PIXELS
from dssn.data.views import cutmix_box, generator, strong_operations
from dssn.machine import machine

CPU = torch.device('cpu')
LEVELS = 2  # grey levels by which a weak view may differ from the plain one


def add_arguments(parser):
    """Time the loading of training batches on one core, beside the plain order of operations.

    python -m dssn.bench loader --config configs/camvid.yaml
    python -m dssn.bench loader --config configs/cityscapes.yaml --size 2048 1024 --format png

The plain order, usual in the field: decode image and mask, resize the whole of both, pad, crop,
flip, copy the image for each view, do the photometric operations on it one by one as Pillow and
torchvision have them, and turn each view into normalised floats; an unlabeled sample is loaded so
twice, as target and as CutMix partner, its mask in vain. Both ways draw the same operations from
the same random numbers, read the same files, drawn for the occasion, and must give the same labels,
and the same weak views within 2 grey levels. Ours gives 8-bit pixels, which the device normalises:
that is not in its time. A sample is one row of a batch: a labeled image, an unlabeled one and its
partner. Seconds are the core's (processor time); with --workers, those of the clock.
    """
    parser.add_argument('--config', required=True, help='YAML file of the experiment')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--size', type=positive_number, nargs=2, default=[480, 360],
                        metavar=('WIDTH', 'HEIGHT'), help='of the images (default: 480 360)')
    parser.add_argument('--format', choices=('jpg', 'png'), default='jpg',
                        help='of the image files (default: %(default)s)')
    parser.add_argument('--samples', type=positive_number, default=24,
                        help='images, and rows of a round (default: %(default)s)')
    parser.add_argument('--rounds', type=positive_number, default=7,
                        help='times that the ways take turns (default: %(default)s)')
    parser.add_argument('--workers', type=positive_number, metavar='N',
                        help='time our loader with N worker processes too, by the clock')
    parser.add_argument('--json', metavar='FILE', help='write the result for programs')


def run(args):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as root:
            overrides = {'data_root': root, 'labeled_id_path': 'drawn', 'unlabeled_id_path': 'drawn'}
            cfg = config.load(args.config, overrides, args.assignments + ['workers=0'])
            samples = draw_list(root, args.samples, args.size, cfg.nclass, args.format)
            ways = {'ours': loader_of(cfg, samples), 'plain': PlainLoader(cfg, samples)}
            worst = difference(*[way.batches(0) for way in ways.values()])
            # A core's time, not the clock's: other programs on the machine do not count.
            seconds = interleaved({name: epochs_of(way) for name, way in ways.items()},
                                  args.rounds, CPU, time.process_time)
            if args.workers:
                again = config.load(args.config, overrides,
                                    args.assignments + [f'workers={args.workers}'])
                seconds.update(interleaved(
                    {f'{args.workers} workers': epochs_of(loader_of(again, samples))},
                    args.rounds, CPU))
            rows = ways['ours'].steps_per_epoch * cfg.batch_size
            where = f'{machine(CPU)}, Pillow {PIL.__version__}'
    finally:
        torch.set_num_threads(threads)
    report(args, cfg, seconds, rows, worst, where)
    return 0 if worst <= LEVELS else 1


def loader_of(cfg, samples):
    uses_unlabeled = methods.find(cfg.method, 'config').uses_unlabeled
    return TrainLoader(cfg, samples, samples if uses_unlabeled else None)


def epochs_of(loader):
    """A function that loads another epoch each time: every round draws anew, all ways alike."""
    numbers = itertools.count()

    def epoch():
        for _ in loader.batches(next(numbers)):
            pass
    return epoch


class PlainLoader:
    """Batches of the same draws as a TrainLoader's, made the plain way."""

    def __init__(self, cfg, samples):
        ours = loader_of(cfg, samples)
        self.steps = ours.steps
        self.loader = DataLoader(PlainSet(cfg, samples), batch_sampler=self.steps,
                                 collate_fn=collate)

    def batches(self, epoch):
        self.steps.epoch = epoch
        return (batch for batch, _ in self.loader)


class PlainSet(Dataset):
    """Maps a `Draw` to a row of a `Batch`, its images normalised, the plain way."""

    def __init__(self, cfg, samples):
        self.cfg, self.samples = cfg, samples

    def __getitem__(self, draw):
        if draw.unlabeled is None:
            return Batch(self.labeled_row(draw), None, None)
        return Batch(self.labeled_row(draw),
                     self.unlabeled_row(draw.unlabeled_pass, draw.unlabeled, UNLABELED, draw),
                     self.unlabeled_row(draw.unlabeled_pass, draw.partner, PARTNER, draw))

    def open_image(self, sample):
        return Image.open(os.path.join(self.cfg.data_root, sample.image)).convert('RGB')

    def open_mask(self, sample):
        mask = Image.open(os.path.join(self.cfg.data_root, sample.mask))
        return Image.fromarray(np.array(mask))

    def labeled_row(self, draw):
        sample = self.samples[draw.labeled]
        image = self.open_image(sample)
        mask = self.open_mask(sample)
        rng = generator(self.cfg.seed, draw.labeled_pass, draw.labeled, LABELED + BASE)
        image, mask = plain_view(image, mask, self.cfg.crop_size, rng)
        return Labeled(to_floats(image), torch.from_numpy(np.array(mask)).long(),
                       torch.tensor(draw.labeled))

    def unlabeled_row(self, epoch, index, role, draw):
        cfg = self.cfg
        image = self.open_image(self.samples[index])
        # The usual scripts open the mask of an unlabeled image too; this one shows its padding.
        self.open_mask(self.samples[index])
        mask = Image.new('L', image.size, 0)
        weak, mask = plain_view(image, mask, cfg.crop_size,
                                generator(cfg.seed, epoch, index, role + BASE))
        weak, *copies = [copy.deepcopy(weak) for _ in range(3)]
        strong = [plain_strong_view(image, generator(cfg.seed, epoch, index, role + view),
                                    cfg.num_aug, cfg.flag_use_random_num_sampling)
                  for view, image in zip((STRONG1, STRONG2), copies)]
        boxes = [cutmix_box(cfg.crop_size, generator(cfg.seed, epoch, draw.unlabeled,
                                                     UNLABELED + box)) for box in (BOX1, BOX2)]
        valid = torch.from_numpy(np.array(mask)).long() != T.IGNORE
        return Unlabeled(*[to_floats(view) for view in (weak, *strong)], valid,
                         *[torch.tensor(box) for box in boxes], torch.tensor(index))


def plain_view(image, mask, side, rng):
    """The base view the plain way: the whole image and mask resized, padded, cropped, flipped."""
    size = T.random_size(image.size, rng)
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


def plain_strong_view(image, rng, num_aug, random_number):
    """The same operations, each on the whole view and as Pillow and torchvision have it."""
    for name, strength in strong_operations(rng, num_aug, random_number):
        function = PLAIN_PIXELS[name] if name in PLAIN_PIXELS else PIXELS[name][0]
        image = function(image, strength)
    return image


def to_floats(image):
    return F.normalize(F.to_tensor(image), MEAN, STD)


def difference(ours, plain):
    """The most grey levels between the weak views of two ways; infinity where truth differs."""
    worst = 0.0
    for a, b in zip(ours, plain):
        if not torch.equal(a.x.label, b.x.label):
            return float('inf')
        for mine, other in zip(a, b):
            if mine is not None:
                levels = (normalise(mine.weak) - other.weak).abs() \
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
    print(f'{where}\n{width}x{height} {args.format}, crop {cfg.crop_size}{partner}; {rows} samples '
          f'a round, medians of {args.rounds} rounds')
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f'{name:<10} {median:8.3f} s {rows / median:8.2f} samples a second')
    print(f'plain / ours: {faster:.2f}; weak views differ by {worst:g} grey levels at most')
    write_json(args.json, {'machine': where, 'config': config.to_dict(cfg), 'samples': rows,
                           'size': args.size, 'format': args.format, 'seconds': seconds,
                           'plain_over_ours': faster, 'levels': worst})
