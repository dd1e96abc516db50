"""Evaluation: exact confusion matrices, and the scores that follow from them.

C classes, H x W an image's own size. Every image is counted once, on any number of ranks.
"""
from typing import Dict, List, NamedTuple, Optional

import torch

from dssn.batch import normalise
from dssn.data.loaders import eval_loader

IGNORE = 255


class Scores(NamedTuple):
    """Scores in percent; None for a class in neither truth nor prediction."""
    miou: float
    pixel_accuracy: float
    iou: List[Optional[float]]
    accuracy: List[Optional[float]]   # per class: share of its pixels that were found
    precision: List[Optional[float]]  # per class: share of what is predicted as it that is right
    absent: int                       # classes in neither truth nor prediction
    images: int


def predict_whole(model, images):
    """Logits of whole images, (N, 3, H, W) -> (N, C, H, W)."""
    return model(images)


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


def predictor(protocol, window):
    """The function (model, images) -> scores (N, C, H, W) of a protocol."""
    if protocol == 'sliding_window':
        return lambda model, images: predict_windows(model, images, window)
    return predict_whole


def confusion_matrix(label, prediction, nclass):
    """Counts (C, C) int64 of pixels by (truth, prediction); truth 255 is left out."""
    valid = label != IGNORE
    pairs = label[valid] * nclass + prediction[valid]
    return torch.bincount(pairs, minlength=nclass * nclass).view(nclass, nclass)


def scores(matrix, images=0, absent='skip'):
    """Scores of a confusion matrix (C, C) int64, rows truth, columns prediction.

    Args:
        absent: what a class in neither truth nor prediction is for the mean: 'skip' leaves it
            out, 'zero' counts it as 0 as published means do.
    """
    matrix = matrix.cpu().double()
    hit, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    union = truth + predicted - hit
    iou, accuracy, precision = [
        [100 * float(h / n) if n > 0 else None for h, n in zip(hit, counts)]
        for counts in (union, truth, predicted)]
    present = [value for value in iou if value is not None]
    count = len(iou) if absent == 'zero' else len(present)
    return Scores(miou=sum(present) / max(count, 1),
                  pixel_accuracy=100 * float(hit.sum() / truth.sum().clamp(min=1)),
                  iou=iou, accuracy=accuracy, precision=precision,
                  absent=len(iou) - len(present), images=images)


@torch.no_grad()
def evaluate(models: Dict[str, torch.nn.Module], cfg, samples, world, watch=None, absent='skip'):
    """Evaluate networks on a list, in one pass over the data; their modes are restored.

    Args:
        models: {name: network with (N, 3, H, W) -> (N, C, H, W) logits}, unwrapped.
        samples: the list's samples. world: this process's `distributed.World`.
        watch: called as watch(position, image (3, H, W) uint8, label (H, W),
            {name: prediction (H, W)}) for every image of this rank, on the CPU.

    Returns:
        {name: Scores}, the same on every rank.
    """
    predict = predictor(cfg.protocol, cfg.crop_size)
    training = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    try:
        matrices = {name: torch.zeros(cfg.nclass, cfg.nclass, dtype=torch.long,
                                      device=world.device) for name in models}
        for image, label, position in eval_loader(cfg, samples, world.rank, world.size):
            images = normalise(image.to(world.device).unsqueeze(0))
            truth = label.to(world.device)
            found = {}
            for name, model in models.items():
                found[name] = predict(model, images).argmax(1)[0]
                matrices[name] += confusion_matrix(truth, found[name], cfg.nclass)
            if watch:
                watch(int(position), image, label, {n: f.cpu() for n, f in found.items()})
    finally:
        for name, model in models.items():
            model.train(training[name])
    return {name: scores(world.sum(matrix), len(samples), absent)
            for name, matrix in matrices.items()}


def table(result, names):
    """Per-class IoU of one or two networks as lines of text.

    Args:
        result: {name: Scores}. names: class names.
    """
    width = max([len(name) for name in names] + [len('pixel accuracy')])
    lines = [' '.join([f'{"class":<{width}}'] + [f'{name:>9}' for name in result])]
    for i, class_name in enumerate(names):
        values = [_cell(score.iou[i]) for score in result.values()]
        lines.append(' '.join([f'{class_name:<{width}}'] + values))
    lines.append(' '.join([f'{"mIoU":<{width}}'] + [_cell(s.miou) for s in result.values()]))
    lines.append(' '.join([f'{"pixel accuracy":<{width}}']
                          + [_cell(s.pixel_accuracy) for s in result.values()]))
    absent = max(score.absent for score in result.values())
    if absent:
        lines.append(f'{absent} of {len(names)} classes are in neither truth nor prediction')
    return '\n'.join(lines)


def _cell(value):
    return f'{"-":>9}' if value is None else f'{value:9.2f}'
