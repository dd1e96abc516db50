"""Looking at the files of samples, one by one, on several processes."""
import functools
import hashlib
import os
from typing import List, NamedTuple, Optional

import numpy as np

from dssn.data.files import (FileProblem, check_size, check_values, image_size, indices, open_image,
                             open_index, orientation)
from dssn.data.parallel import in_processes

WORTH = 32  # samples that are worth the start of a process


class Inspected(NamedTuple):
    """What a sample's files hold."""
    problems: List[FileProblem]
    digest: Optional[bytes]       # of the image's pixels; None where it cannot be read
    counts: Optional[np.ndarray]  # mask pixels by value, (256,) int64, ignored ones at 255; or None


def inspect(data_root, nclass, ignore_index, sample, masks):
    """Decode a sample's image, and its mask if `masks`, and tell all that is wrong with them."""
    problems, digest, size, counts = [], None, None, None
    image = attempt(problems, open_image, data_root, sample)
    if image is not None:
        size = image.size
        # Of pixels, not of bytes: a copy with other metadata, or losslessly packed anew, is a copy.
        digest = hashlib.blake2b(image.tobytes(), digest_size=16, salt=b'%dx%d' % size).digest()
        turn = orientation(os.path.join(data_root, sample.image))
        if turn != 1:
            problems.append(turned(data_root, sample, turn, masks))
    if masks:
        counts = inspect_mask(data_root, nclass, ignore_index, sample, size, problems)
    return Inspected(problems, digest, counts)


def glance(data_root, nclass, ignore_index, sample):
    """The cheap part of `inspect`: the mask, and the image's head."""
    problems = []
    size = attempt(problems, image_size, data_root, sample)
    counts = inspect_mask(data_root, nclass, ignore_index, sample, size, problems)
    return Inspected(problems, None, counts)


def inspect_mask(data_root, nclass, ignore_index, sample, size, problems):
    """Append what is wrong with a mask to `problems`; returns its pixels by value, or None.

    Args:
        size: the image's (width, height), or None where it is not known.
    """
    mask = attempt(problems, open_index, data_root, sample)
    if mask is None:
        return None
    if size is not None:
        attempt(problems, check_size, data_root, sample, mask, size)
    index = indices(mask, ignore_index)
    attempt(problems, check_values, data_root, sample, index, nclass, ignore_index, mask.format)
    counts = np.bincount(index.ravel(), minlength=256)
    held = set(np.flatnonzero(counts).tolist())
    mask_path = os.path.join(data_root, sample.mask)
    if held == {255}:
        problems.append(FileProblem(
            f'{sample.place}: mask {mask_path} is ignored everywhere: nothing is learned from it',
            'mask_ignored', sample.mask))
    elif held == {0, 255}:
        problems.append(FileProblem(
            f'{sample.place}: mask {mask_path} holds only 0 and ignored pixels (255); if 255 means '
            'class 1 here, divide the mask by 255', 'mask_0_and_255', sample.mask))
    return counts


def attempt(problems, function, *args):
    """The function's result; None where it raises a FileProblem, which is appended."""
    try:
        return function(*args)
    except FileProblem as problem:
        problems.append(problem)
        return None


def turned(data_root, sample, turn, masks):
    path = os.path.join(data_root, sample.image)
    advice = ('; if its mask was drawn on the turned view, the two do not match: turn the pixels '
              '(ImageOps.exif_transpose(image), then save), otherwise remove the tag' if masks else
              ': turn the pixels (ImageOps.exif_transpose(image), then save) if up is to be up')
    return FileProblem(f'{sample.place}: image {path} has EXIF orientation {turn}, which viewers '
                       f'follow, but training reads the stored pixels{advice}', 'exif_turned',
                       sample.image)


def inspect_all(data_root, nclass, ignore_index, tasks, workers):
    """`inspect` each (sample, masks) of `tasks`; yields `Inspected`s in that order.

    Args:
        workers: processes; 0 or 1: work in this one, as is done for short lists.
    """
    work = functools.partial(inspect_task, data_root, nclass, ignore_index)
    return in_processes(work, tasks, min(workers, len(tasks) // WORTH))


def inspect_task(data_root, nclass, ignore_index, task):
    return inspect(data_root, nclass, ignore_index, *task)
