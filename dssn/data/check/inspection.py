"""Inspection of the files of samples, one by one, in several processes."""
import functools
import hashlib
import os
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from dssn.data.causes import cause_of_0_and_255
from dssn.data.files import (
    FileProblem,
    check_values,
    class_indices,
    fit_mask,
    image_header,
    open_image_and_header,
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
    bands: Optional[str]          # of the image, see `Header`; None if it cannot be read
    colours: Dict[int, Tuple[int, int, int]]  # of the mask's palette, see `used_colours`


def inspect_sample(data_root, nclass, ignore_index, sample, masks):
    """Decode a sample's image, and with `masks` its mask.

    Returns:
        `Inspected`, with all problems of the files.
    """
    problems, digest, header, counts, colours = [], None, None, None, {}
    opened = collect_problem(problems, open_image_and_header, data_root, sample)
    if opened is not None:
        image, header = opened
        # A hash of pixels, not of bytes, finds copies with other metadata or compression, too.
        digest = hashlib.blake2b(image.tobytes(), digest_size=16,
                                 salt=b'%dx%d' % image.size).digest()
    if masks:
        counts, colours = inspect_mask(data_root, nclass, ignore_index, sample, header, problems)
    return Inspected(problems, digest, counts, header and header.bands, colours)


def inspect_quickly(data_root, nclass, ignore_index, sample):
    """The fast part of `inspect_sample`: decode the mask, but read only the image's header."""
    problems = []
    header = collect_problem(problems, image_header, data_root, sample)
    counts, colours = inspect_mask(data_root, nclass, ignore_index, sample, header, problems)
    return Inspected(problems, None, counts, header and header.bands, colours)


def inspect_mask(data_root, nclass, ignore_index, sample, header, problems):
    """Append the problems of a mask to `problems`.

    Args:
        header: `Header` of the image, or None if it is not known.

    Returns:
        (the mask's pixels by value, (256,) int64, or None if it cannot be read; its
        `used_colours`).
    """
    mask = collect_problem(problems, open_raw_mask, data_root, sample)
    if mask is None:
        return None, {}
    if header is not None:
        collect_problem(problems, fit_mask, data_root, sample, mask, header.size, header.turn)
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
