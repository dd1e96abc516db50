"""Inspection of the files of samples, one by one, in several processes."""
import functools
import hashlib
import os
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from dssn.data.causes import cause_of_0_and_255
from dssn.data.files import (
    FileProblem,
    check_size,
    check_values,
    class_indices,
    exif_orientation,
    image_size,
    open_image,
    open_raw_mask,
)
from dssn.data.parallel import in_processes
from dssn.data.stored import used_colours
from dssn.labels import IGNORE

SAMPLES_PER_PROCESS = 32  # with fewer samples, starting another process would not save time


class Inspected(NamedTuple):
    """The result of inspecting a sample's files."""
    problems: List[FileProblem]
    digest: Optional[bytes]       # of the image's pixels; None if it cannot be read
    counts: Optional[np.ndarray]  # pixels of the mask by value, (256,) int64, ignored ones as 255;
    #                               None if there is no mask, or it cannot be read
    colours: Dict[int, Tuple[int, int, int]]  # of the mask's palette, see `used_colours`


def inspect_sample(data_root, nclass, ignore_index, sample, masks):
    """Decode a sample's image, and with `masks` its mask.

    Returns:
        `Inspected`, with all problems of the files.
    """
    problems, digest, size, counts, colours = [], None, None, None, {}
    image = collect_problem(problems, open_image, data_root, sample)
    if image is not None:
        size = image.size
        # A hash of pixels, not of bytes, finds copies with other metadata or compression, too.
        digest = hashlib.blake2b(image.tobytes(), digest_size=16, salt=b'%dx%d' % size).digest()
        turn = exif_orientation(os.path.join(data_root, sample.image))
        if turn != 1:
            problems.append(orientation_problem(data_root, sample, turn, masks))
    if masks:
        counts, colours = inspect_mask(data_root, nclass, ignore_index, sample, size, problems)
    return Inspected(problems, digest, counts, colours)


def inspect_quickly(data_root, nclass, ignore_index, sample):
    """The fast part of `inspect_sample`: decode the mask, but read only the image's header."""
    problems = []
    size = collect_problem(problems, image_size, data_root, sample)
    return Inspected(problems, None, *inspect_mask(data_root, nclass, ignore_index, sample, size,
                                                   problems))


def inspect_mask(data_root, nclass, ignore_index, sample, size, problems):
    """Append the problems of a mask to `problems`.

    Args:
        size: (width, height) of the image, or None if it is not known.

    Returns:
        (the mask's pixels by value, (256,) int64, or None if it cannot be read; its
        `used_colours`).
    """
    mask = collect_problem(problems, open_raw_mask, data_root, sample)
    if mask is None:
        return None, {}
    if size is not None:
        collect_problem(problems, check_size, data_root, sample, mask, size)
    index = class_indices(mask, ignore_index)
    collect_problem(problems, check_values, data_root, sample, index, nclass, ignore_index)
    counts = np.bincount(index.ravel(), minlength=256)
    values = set(np.flatnonzero(counts).tolist())
    mask_path = os.path.join(data_root, sample.mask)
    if values == {IGNORE}:
        problems.append(FileProblem(
            f'{sample.place}: mask {mask_path} is ignored everywhere: nothing is learned from it',
            'mask_ignored', sample.mask))
    elif values == {0, IGNORE}:
        problems.append(FileProblem(
            f'{sample.place}: mask {mask_path} holds only 0 and ignored pixels ({ignore_index}); '
            f'{cause_of_0_and_255(ignore_index)}', 'mask_0_and_255', sample.mask))
    return counts, used_colours(mask)


def collect_problem(problems, function, *args):
    """The result of a function. If it raises a FileProblem: append that, and return None."""
    try:
        return function(*args)
    except FileProblem as problem:
        problems.append(problem)
        return None


def orientation_problem(data_root, sample, turn, masks):
    """The FileProblem that an image has the EXIF orientation `turn`. `masks`: it has a mask."""
    path = os.path.join(data_root, sample.image)
    remedy = 'turn the pixels (ImageOps.exif_transpose(image), then save)'
    advice = (f'; if its mask was made for the turned image, the two do not match: {remedy}, '
              'otherwise remove the tag' if masks else
              f': {remedy} if the image should be upright')
    return FileProblem(f'{sample.place}: image {path} has EXIF orientation {turn}, which viewers '
                       f'follow, but training reads the stored pixels{advice}', 'exif_turned',
                       sample.image)


def inspect_all(data_root, nclass, ignore_index, tasks, workers):
    """Yield the `Inspected` of each (sample, masks) of `tasks`, in order.

    Args:
        workers: number of processes; with 0 or 1, and for short lists, this process does the work.
    """
    work = functools.partial(inspect_task, data_root, nclass, ignore_index)
    return in_processes(work, tasks, min(workers, len(tasks) // SAMPLES_PER_PROCESS))


def inspect_task(data_root, nclass, ignore_index, task):
    """`inspect_sample` for in_processes, which passes one argument per item."""
    return inspect_sample(data_root, nclass, ignore_index, *task)
