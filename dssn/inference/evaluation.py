"""Evaluation: exact confusion matrices, and scores computed from them.

N images of one size, C classes, H x W the size of an image. Every image is counted once, with any
number of processes.
"""
import contextlib
from typing import Dict, List, NamedTuple, Optional

import torch
import torch.nn.functional as F

from dssn import precision
from dssn.batch import normalise
from dssn.data.loaders import eval_loader
from dssn.inference.memory import Estimate, explained_memory
from dssn.labels import IGNORE
from dssn.pseudo_labels import classes


class Scores(NamedTuple):
    """Scores in percent. A score of a class is None if its denominator is 0."""
    miou: float
    pixel_accuracy: float
    mean_accuracy: float              # mean of recall over classes
    fwiou: float                      # IoU weighted by the frequency of the class in ground truth
    iou: List[Optional[float]]        # per class: intersection over union
    recall: List[Optional[float]]     # per class: fraction of its pixels that are predicted as it
    precision: List[Optional[float]]  # per class: fraction of its predicted pixels that are correct
    absent: int                       # classes in neither ground truth nor prediction
    images: int


# From images to class scores.

def predict_whole(model, images):
    """Logits of whole images, (N, 3, H, W) -> (N, C, H, W).

    Images for a network of patches are resized to the nearest multiples of the patch, and the
    logits back, as in UniMatch V2.
    """
    size = images.shape[2:]
    patches = [in_patches(side, patch_of(model)) for side in size]
    return _resize(model(_resize(images, patches)), size)


def predict_windows(model, images, window):
    """Sum of class probabilities of a sliding window, (N, 3, H, W) -> (N, C, H, W).

    As in the release the stride is int(2/3 window). A window starts at every multiple of the stride
    inside the image, even if the previous one already reached the border. At the border a window is
    cut off, not shifted back.

    A network of patches cannot predict a cut window. So the last one is shifted back to the border,
    as in UniMatch V2, and a side shorter than the window is resized as in `predict_whole`.
    """
    size, patch = images.shape[2:], patch_of(model)
    images = _resize(images, [side if side >= window else in_patches(side, patch) for side in size])
    rows, columns = [window_starts(side, window, patch) for side in images.shape[2:]]
    total = None
    for top in rows:
        for left in columns:
            part = images[:, :, top:top + window, left:left + window]
            prob = model(part).softmax(1)
            if total is None:
                total = prob.new_zeros((len(images), prob.shape[1], *images.shape[2:]))
            total[:, :, top:top + window, left:left + window] += prob
    return _resize(total, size)


def window_starts(side, window, patch):
    """The first rows or columns of the windows along a side."""
    stride = max(int(window * 2 / 3), 1)
    if patch == 1:
        return range(0, side, stride)
    last = max(side - window, 0)
    return [*range(0, last, stride), last]


def patch_of(model):
    """Height and width of an image must be multiples of it; 1: images of any size."""
    return getattr(model, 'patch', 1)


def in_patches(side, patch):
    """The multiple of `patch` that is nearest to a side, at least one patch."""
    return max(int(side / patch + 0.5), 1) * patch


def predict_augmented(predict, model, images, scales, flip):
    """Sum of class probabilities of scaled and mirrored copies, (N, 3, H, W) -> (N, C, H, W).

    Args:
        predict: function (model, images) -> probabilities of a copy, up to a factor for each pixel.
        scales: factors of height and width. The sides are rounded to pixels, or to the patches of
            the network. flip: whether each copy is also predicted mirrored left to right.
    """
    size, patch = images.shape[2:], patch_of(model)
    total = 0
    for scale in scales:
        copy = images if scale == 1 else _resize(images, [
            max(round(side * scale), 1) if patch == 1 else in_patches(side * scale, patch)
            for side in size])
        for mirrored in (False, True)[:1 + flip]:
            prob = predict(model, copy.flip(3)).flip(3) if mirrored else predict(model, copy)
            total = total + _resize(prob / prob.sum(1, keepdim=True), size)
    return total


def _resize(images, size):
    if list(images.shape[2:]) == list(size):
        return images
    return F.interpolate(images, size=tuple(size), mode='bilinear', align_corners=True)


def predictor(protocol, window, scales=(1.0,), flip=False):
    """The `Predictor` of a protocol.

    Args:
        protocol: `sliding_window`; others predict whole images. window: side of the window, pixels.
        scales, flip: test-time augmentation, see `predict_augmented`.

    Whole images and scaled copies have many sizes, windows and crops only a few. cuDNN compares its
    algorithms (`cudnn.benchmark`) only for the latter.
    """
    def logits(model, images):
        return predict_whole(model, images)

    def probabilities(model, images):
        return predict_whole(model, images).softmax(1)

    def windows(model, images):
        return predict_windows(model, images, window)

    def augmented(model, images):
        copy = windows if protocol == 'sliding_window' else probabilities
        return predict_augmented(copy, model, images, scales, flip)

    if tuple(scales) != (1.0,) or flip:
        scores = augmented
    else:
        scores = windows if protocol == 'sliding_window' else logits
    sizes_vary = protocol == 'original' or tuple(scales) != (1.0,)
    return Predictor(scores, scores is logits, sizes_vary)


class Predictor:
    """Predicts images of one size by a protocol; see `predictor`.

    Args:
        scores: function (model, images (N, 3, H, W)) -> (N, C, H, W): logits, or class
            probabilities up to a factor for each pixel.
        are_logits: which of the two. sizes_vary: see `predictor`.
    """

    def __init__(self, scores, are_logits, sizes_vary):
        self._scores, self.are_logits, self.sizes_vary = scores, are_logits, sizes_vary

    def scores(self, model, images):
        """Logits, or class probabilities up to a factor: (N, 3, H, W) -> (N, C, H, W)."""
        with precision.varying_sizes() if self.sizes_vary else contextlib.nullcontext():
            return self._scores(model, images)

    def __call__(self, model, images):
        """Class indices: (N, 3, H, W) -> (N, H, W) int64."""
        return classes(self.scores(model, images))

    def probabilities(self, scores):
        """The class probabilities (N, C, H, W) of the result of `scores`; their sum is 1."""
        return scores.softmax(1) if self.are_logits else scores / scores.sum(1, keepdim=True)


def center_crop(image, size):
    """The middle size x size of (..., H, W); a shorter side is not cropped."""
    height, width = image.shape[-2:]
    top, left = max(height - size, 0) // 2, max(width - size, 0) // 2
    return image[..., top:top + size, left:left + size]


# From class indices to scores.

def confusion_matrix(label, prediction, nclass):
    """Number of pixels (C, C) int64 by (ground truth, prediction); ground truth 255 is ignored.

    Args:
        label: (...) uint8 or int64, 255 = ignore. prediction: (...) int64 in 0..nclass-1.
    """
    pairs = (label.long() * nclass + prediction).masked_fill(label == IGNORE, nclass * nclass)
    counts = torch.bincount(pairs.flatten(), minlength=nclass * nclass + 1)
    return counts[:-1].view(nclass, nclass)


def scores(matrix, images=0, absent='skip'):
    """`Scores` of a confusion matrix (C, C) int64, rows ground truth, columns prediction.

    Args:
        images: number of images. absent: rule for a class without a score in a mean over classes
            (IoU: in neither ground truth nor prediction; recall: not in ground truth). 'skip'
            leaves it out; 'zero' counts it as 0, as in published means.
    """
    matrix = matrix.cpu().double()
    hits, labeled, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    union = labeled + predicted - hits
    iou, recall, precision = [
        [100 * float(hit / count) if count > 0 else None for hit, count in zip(hits, counts)]
        for counts in (union, labeled, predicted)]

    def mean(values):
        present = [value for value in values if value is not None]
        return sum(present) / max(len(values if absent == 'zero' else present), 1)
    pixels = labeled.sum().clamp(min=1)
    return Scores(miou=mean(iou), pixel_accuracy=100 * float(hits.sum() / pixels),
                  mean_accuracy=mean(recall),
                  fwiou=100 * float((labeled * hits / union.clamp(min=1)).sum() / pixels),
                  iou=iou, recall=recall, precision=precision, absent=iou.count(None),
                  images=images)


@torch.no_grad()
def evaluate(models: Dict[str, torch.nn.Module], cfg, samples, world, on_image=None,
             absent='skip', predict=None, stop=None):
    """Evaluate networks on the samples of a list, in one pass over the data.

    The training mode of each network is restored.

    Args:
        models: {name: network with (N, 3, H, W) -> (N, C, H, W) logits}, unwrapped.
        samples: of the list. world: the `distributed.World` of this process.
        on_image: called as on_image(position, image (3, H, W) uint8, label (H, W) uint8,
            {name: prediction (H, W)}) for every image of this rank, on the CPU, in any order. With
            the protocol `center_crop`, H x W is the crop.
        absent: see `scores`. predict: from `predictor`; None: that of the config's protocol.
        stop: function that is called before every group of images. If it returns a number other
            than 0 on any rank, the evaluation is aborted on all ranks.

    Returns:
        {name: Scores}, the same on every rank; None if the evaluation was aborted.

    Raises:
        UserError: a file is bad, or memory does not suffice for an image.
    """
    predict = predict or predictor(cfg.protocol, cfg.crop_size)
    at_once = images_at_once(cfg, world.device)
    training = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    callable_as = {name: precision.half_in_evaluation(model, cfg, world.device)
                   for name, model in models.items()}
    try:
        matrices = {name: torch.zeros(cfg.nclass, cfg.nclass, dtype=torch.long,
                                      device=world.device) for name in models}
        items = eval_loader(cfg, samples, world.rank, world.size, world.device.type == 'cuda')
        if cfg.protocol == 'center_crop':
            items = ((center_crop(image, cfg.crop_size), center_crop(label, cfg.crop_size),
                      position) for image, label, position in items)
        remedies = what_saves_memory(cfg, world.device)
        estimate = world.device.type == 'cpu' and Estimate(lambda side: [
            predict(model, torch.zeros(1, 3, side, side)) for model in callable_as.values()])
        for group in group_by_size(items, at_once):
            if stop and stop():
                break
            images, labels, positions = zip(*group)
            name_of_image, size = samples[int(positions[0])].image, images[0].shape[1:]
            if estimate:
                estimate.check(name_of_image, size, remedies)
            with explained_memory(name_of_image, size, remedies):
                x = normalise(torch.stack(images).to(world.device))
                label = torch.stack(labels).to(world.device)  # uint8: 1/8 of the bytes of int64
                found = {name: predict(model, x) for name, model in callable_as.items()}
            for name in models:
                matrices[name] += confusion_matrix(label, found[name], cfg.nclass)
            if on_image:
                found = {name: index.cpu() for name, index in found.items()}
                for i, position in enumerate(positions):
                    on_image(int(position), images[i], labels[i],
                             {name: index[i] for name, index in found.items()})
    finally:
        for name, model in models.items():
            model.train(training[name])
    if stop and int(world.sum(torch.tensor(stop(), device=world.device))):
        return None
    return {name: scores(world.sum(matrix), len(samples), absent)
            for name, matrix in matrices.items()}


def what_saves_memory(cfg, device):
    """Settings with which evaluation needs less memory, as text."""
    options = [
        (images_at_once(cfg, device) > 1, '--set eval_batch_size=1'),
        (device.type == 'cuda' and cfg.eval_amp == 'off', '--set eval_amp=bf16'),
        (cfg.protocol == 'original', f'--set protocol=sliding_window (windows of crop_size = '
                                     f'{cfg.crop_size} pixels; the scores differ from those of '
                                     'whole images)'),
        (True, 'smaller images (python -m dssn shrink)')]
    return 'these need less: ' + ', '.join(text for use, text in options if use)


def images_at_once(cfg, device):
    """Number of images that are predicted at once: `eval_batch_size` on a GPU, one on a CPU.

    On a CPU batches are not faster, and the rounding of a convolution depends on the other images
    of the batch. With one image at a time the scores are exactly the same for any `eval_batch_size`
    and any number of processes.
    """
    return cfg.eval_batch_size if device.type == 'cuda' else 1


def group_by_size(items, count):
    """Yield lists of at most `count` items (image, ...) whose images have the same size.

    A group is yielded when it has `count` items. When 8 `count` items are waiting, the largest
    group is yielded as it is, so that memory is bounded for any sizes and any order.
    """
    waiting = {}
    for item in items:
        group = waiting.setdefault(item[0].shape, [])
        group.append(item)
        if len(group) < count and sum(map(len, waiting.values())) >= 8 * count:
            group = max(waiting.values(), key=len)
        elif len(group) < count:
            continue
        del waiting[group[0][0].shape]
        yield group
    yield from waiting.values()


# Scores as text.

MEANS = {'mIoU': 'miou', 'mean accuracy': 'mean_accuracy', 'pixel accuracy': 'pixel_accuracy',
         'FWIoU': 'fwiou'}


def table(result, names, details=False):
    """IoU per class and the means of one or more networks, as lines of text.

    Args:
        result: {name: Scores}. names: of the classes. details: show recall and precision too.
    """
    width = max(map(len, [*names, *MEANS]))

    def line(title, cells):
        return f'{title:<{width}}' + ''.join(f' {cell:>9}' for cell in cells)

    def columns(score, i):
        return [score.iou[i]] + ([score.recall[i], score.precision[i]] if details else [])
    extra = ['recall', 'precision'] if details else []
    lines = [line('class', [heading for role in result for heading in [role] + extra])]
    for i, name in enumerate(names):
        lines.append(line(name, [_cell(value) for score in result.values()
                                 for value in columns(score, i)]))
    for title, field in MEANS.items():
        lines.append(line(title, [cell for score in result.values() for cell in
                                  [_cell(getattr(score, field))] + [''] * len(extra)]).rstrip())
    absent = max(score.absent for score in result.values())
    if absent:
        lines.append(f'{absent} of {len(names)} classes are in neither ground truth nor '
                     'prediction')
    lines += few_classes_lines(result)
    return '\n'.join(lines)


def few_classes_lines(result, where=''):
    """Warnings, for {name: Scores}, of means that are over fewer than two classes.

    `where`: text after the network's name, such as ' on select_on'.
    """
    lines = []
    for name, score in result.items():
        lines += few_classes(name + where, 'mIoU', scored_classes(score.iou))
        if scored_classes(score.iou) > 1:
            lines += few_classes(name + where, 'mean accuracy', scored_classes(score.recall))
    return lines


def few_classes(name, mean, count):
    """[a warning that a mean over classes is over fewer than two], or [].

    Args:
        name: of the network. mean: name of the mean. count: number of classes with a score.
    """
    if count > 1:
        return []
    if count == 0:
        return [f'warning: {name}: {mean} is over no class: all pixels are ignored']
    return [f'warning: {name}: {mean} is the score of a single class, not a mean over classes: the '
            'masks hold no other']


def scored_classes(values):
    """The number of classes with a score, of a list with None for the others."""
    return sum(value is not None for value in values)


def _cell(value):
    return '-' if value is None else f'{value:.2f}'
