"""Evaluation: exact confusion matrices, and the scores that follow from them.

N images of one size, C classes, H x W an image's own size. Every image is counted once, on any
number of ranks.
"""
from typing import Dict, List, NamedTuple, Optional

import torch
import torch.nn.functional as F

from dssn.batch import normalise
from dssn.data.loaders import eval_loader
from dssn.pseudo_labels import classes

IGNORE = 255


class Scores(NamedTuple):
    """Scores in percent; None for a class without the pixels that a score is a share of."""
    miou: float
    pixel_accuracy: float
    mean_accuracy: float              # mean of recall over classes
    fwiou: float                      # mean of IoU weighted by the classes' share of the truth
    iou: List[Optional[float]]        # per class: hits among the pixels of truth or prediction
    recall: List[Optional[float]]     # per class: share of its pixels that were found
    precision: List[Optional[float]]  # per class: share of what is predicted as it that is right
    absent: int                       # classes in neither truth nor prediction
    images: int


# From images to class scores.

def predict_windows(model, images, window):
    """Summed class probabilities of windows slid over the images, (N, 3, H, W) -> (N, C, H, W).

    The release's geometry: the stride is int(2/3 window); a window starts at every multiple of it
    below the side, even where the one before already reached the border, and is cut off at the
    border, not shifted back.
    """
    stride = max(int(window * 2 / 3), 1)
    height, width = images.shape[2:]
    total = None
    for top in range(0, height, stride):
        for left in range(0, width, stride):
            part = images[:, :, top:top + window, left:left + window]
            prob = model(part).softmax(1)
            if total is None:
                total = prob.new_zeros((len(images), prob.shape[1], height, width))
            total[:, :, top:top + window, left:left + window] += prob
    return total


def predict_augmented(predict, model, images, scales, flip):
    """Class probabilities summed over scaled and mirrored copies, (N, 3, H, W) -> (N, C, H, W).

    Args:
        predict: what predicts a copy, (model, images) -> probabilities up to a factor a pixel.
        scales: factors of both sides. flip: whether each copy is predicted mirrored left and
            right, too.
    """
    size = images.shape[2:]
    total = 0
    for scale in scales:
        copy = _resize(images, [max(round(side * scale), 1) for side in size])
        for mirrored in (False, True)[:1 + flip]:
            prob = predict(model, copy.flip(3)).flip(3) if mirrored else predict(model, copy)
            total = total + _resize(prob / prob.sum(1, keepdim=True), size)
    return total


def _resize(images, size):
    if list(images.shape[2:]) == list(size):
        return images
    return F.interpolate(images, size=tuple(size), mode='bilinear', align_corners=True)


def predictor(protocol, window, scales=(1.0,), flip=False):
    """The function (model, images (N, 3, H, W)) -> class indices (N, H, W) int64 of a protocol.

    Args:
        protocol: `sliding_window`, else whole images. window: side of the sliding window.
        scales, flip: test-time augmentation, see `predict_augmented`.
    """
    def logits(model, images):
        return model(images)

    def probabilities(model, images):
        return model(images).softmax(1)

    def windows(model, images):
        return predict_windows(model, images, window)

    def augmented(model, images):
        copy = windows if protocol == 'sliding_window' else probabilities
        return predict_augmented(copy, model, images, scales, flip)

    if tuple(scales) != (1.0,) or flip:
        predict = augmented
    else:
        predict = windows if protocol == 'sliding_window' else logits
    return lambda model, images: classes(predict(model, images))


def centre(image, size):
    """The middle size x size of (..., H, W), or all of a side that is shorter."""
    height, width = image.shape[-2:]
    top, left = max(height - size, 0) // 2, max(width - size, 0) // 2
    return image[..., top:top + size, left:left + size]


# From class indices to scores.

def confusion_matrix(label, prediction, nclass):
    """Counts (C, C) int64 of pixels by (truth, prediction); truth 255 is left out."""
    pairs = (label * nclass + prediction).masked_fill(label == IGNORE, nclass * nclass)
    counts = torch.bincount(pairs.flatten(), minlength=nclass * nclass + 1)
    return counts[:-1].view(nclass, nclass)


def scores(matrix, images=0, absent='skip'):
    """Scores of a confusion matrix (C, C) int64, rows truth, columns prediction.

    Args:
        absent: what a class is for a mean over classes where it has no pixels to take a share of
            (IoU: in neither truth nor prediction; recall: not in truth): 'skip' leaves it out,
            'zero' counts it as 0 as published means do.
    """
    matrix = matrix.cpu().double()
    hit, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    union = truth + predicted - hit
    iou, recall, precision = [
        [100 * float(h / n) if n > 0 else None for h, n in zip(hit, counts)]
        for counts in (union, truth, predicted)]

    def mean(values):
        present = [value for value in values if value is not None]
        return sum(present) / max(len(values if absent == 'zero' else present), 1)
    pixels = truth.sum().clamp(min=1)
    return Scores(miou=mean(iou), pixel_accuracy=100 * float(hit.sum() / pixels),
                  mean_accuracy=mean(recall),
                  fwiou=100 * float((truth * hit / union.clamp(min=1)).sum() / pixels),
                  iou=iou, recall=recall, precision=precision, absent=iou.count(None),
                  images=images)


@torch.no_grad()
def evaluate(models: Dict[str, torch.nn.Module], cfg, samples, world, watch=None, absent='skip',
             predict=None, stop=None):
    """Evaluate networks on a list, in one pass over the data; their modes are restored.

    Args:
        models: {name: network with (N, 3, H, W) -> (N, C, H, W) logits}, unwrapped.
        samples: the list's samples. world: this process's `distributed.World`.
        watch: called as watch(position, image (3, H, W) uint8, label (H, W),
            {name: prediction (H, W)}) for every image of this rank, on the CPU, in any order;
            H x W is what is evaluated (`center_crop`: the crop). absent: see `scores`.
        predict: from `predictor`, by default of the config's protocol.
        stop: asked before every group of images; what is not 0 on any rank gives it up on all.

    Returns:
        {name: Scores}, the same on every rank; None where it was given up.
    """
    predict = predict or predictor(cfg.protocol, cfg.crop_size)
    at_once = images_at_once(cfg, world.device)
    training = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    try:
        matrices = {name: torch.zeros(cfg.nclass, cfg.nclass, dtype=torch.long,
                                      device=world.device) for name in models}
        items = eval_loader(cfg, samples, world.rank, world.size, world.device.type == 'cuda')
        if cfg.protocol == 'center_crop':
            items = ((centre(image, cfg.crop_size), centre(label, cfg.crop_size), position)
                     for image, label, position in items)
        for group in of_one_size(items, at_once):
            if stop and stop():
                break
            images, label, positions = zip(*group)
            x = normalise(torch.stack(images).to(world.device, non_blocking=True))
            truth = torch.stack(label).to(world.device, non_blocking=True)
            found = {name: predict(model, x) for name, model in models.items()}
            for name in models:
                matrices[name] += confusion_matrix(truth, found[name], cfg.nclass)
            if watch:
                found = {name: index.cpu() for name, index in found.items()}
                for i, position in enumerate(positions):
                    watch(int(position), images[i], label[i],
                          {name: index[i] for name, index in found.items()})
    finally:
        for name, model in models.items():
            model.train(training[name])
    if stop and int(world.sum(torch.tensor(stop(), device=world.device))):
        return None
    return {name: scores(world.sum(matrix), len(samples), absent)
            for name, matrix in matrices.items()}


def images_at_once(cfg, device):
    """How many images are predicted at once: one on a CPU.

    There the rounding of a convolution depends on what else is in its batch, and batches gain
    nothing: one by one, scores are the same to the last digit for any `eval_batch_size` and any
    number of processes.
    """
    return cfg.eval_batch_size if device.type == 'cuda' else 1


def of_one_size(items, count):
    """Group (image, ...) items: lists of at most `count` whose images have one size.

    An item waits until its size is complete, or until 8 `count` items wait: then the largest
    group goes as it is. So memory is bounded, whatever the sizes and their order.
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


# Scores for people.

MEANS = {'mIoU': 'miou', 'mean accuracy': 'mean_accuracy', 'pixel accuracy': 'pixel_accuracy',
         'FWIoU': 'fwiou'}


def table(result, names, details=False):
    """IoU per class and the means of one or more networks as lines of text.

    Args:
        result: {name: Scores}. names: class names. details: whether to show recall and precision.
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
        lines.append(f'{absent} of {len(names)} classes are in neither truth nor prediction')
    return '\n'.join(lines)


def _cell(value):
    return '-' if value is None else f'{value:.2f}'
