"""The check before training: the fast part of `python -m dssn check`."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from dssn.data.check.findings import (
    ERROR,
    KINDS,
    PixelTotals,
    absent_class_problems,
    bands_problems,
    path_problems,
    problem_at,
    unusable_mask_problems,
)
from dssn.data.check.inspection import collect_problem, inspect_quickly, inspect_sample
from dssn.data.classes import names_of_classes
from dssn.data.files import TIFF_ENDINGS, image_header
from dssn.data.lists import check_files
from dssn.data.palettes import PaletteRecord
from dssn.distributed import cores_of_a_process
from dssn.errors import UserError

MASKS_PER_LIST = 32  # masks of each list that are opened before training
TIFFS_PER_LIST = 32  # TIFF images of each list whose headers are read for a warning


def quick_check(cfg, labeled, unlabeled, val, select_on=None, with_masks=False, first=True):
    """Check the data before training: that files exist, the lists, and masks.

    All labeled images and masks are decoded before the first step, since none of them may be bad.
    Of the other lists, and when a run resumes, some masks are.

    Args:
        labeled, unlabeled, val, select_on: samples from `read_list`. unlabeled and select_on may
            be None.
        with_masks: whether training opens the masks of the unlabeled list.
        first: whether the run has made no step yet.

    Returns:
        The warnings, as lines for the log.

    Raises:
        UserError: the first error. The message is that of `python -m dssn check`.
    """
    lists = {'labeled': labeled, 'unlabeled': unlabeled or [], 'val': val,
             'select_on': select_on or []}
    try:
        for role, samples in lists.items():
            check_files(samples, cfg.data_root, masks=with_masks or role != 'unlabeled')
        problems = path_problems(lists)
        for role in ('labeled', 'val', 'select_on') + ('unlabeled',) * with_masks:
            problems += file_problems(cfg, role, lists[role], first and role == 'labeled')
        for role, samples in lists.items():
            problems += some_bands_problems(cfg.data_root, role, cfg.list_paths.get(role), samples)
        return warnings_or_error(problems)
    except UserError as error:
        end = '' if str(error).endswith('?') else '.'
        raise UserError(f'{error}{end} (`python -m dssn check --config ...` lists all problems; '
                        '--skip-check trains without a check of the data)') from None


def file_problems(cfg, role, samples, all_files):
    """The problems of a list's files.

    Args:
        all_files: decode all images and masks. Otherwise up to MASKS_PER_LIST masks are decoded,
            chosen by the config's seed; of the labeled list more, until two classes have been seen.
    """
    order = np.random.default_rng(cfg.seed).permutation(len(samples))
    problems, totals, palettes = [], PixelTotals(), PaletteRecord(cfg.palette)

    def inspect(index):
        sample = samples[index]
        if all_files:
            return inspect_sample(cfg.data_root, cfg.nclass, cfg.ignore_index, sample, True)
        return inspect_quickly(cfg.data_root, cfg.nclass, cfg.ignore_index, sample)

    def look(indices):
        for index, inspected in zip(indices, pool.map(inspect, indices)):
            problems.extend(sample_problems(cfg.data_root, role, samples[index], inspected,
                                            palettes))
            if inspected.counts is not None:
                totals.add(inspected.counts)
            bar.update()
    # Pillow decodes several files in parallel. Short lists show no bar.
    with ThreadPoolExecutor(cores_of_a_process(1)) as pool, \
            tqdm(total=len(samples), desc=f'{role} files', unit='sample', delay=3, leave=False,
                 disable=None if all_files else True) as bar:
        if all_files:
            look(range(len(samples)))
        else:
            look(np.sort(order[:MASKS_PER_LIST]))
            for index in order[MASKS_PER_LIST:]:
                if role != 'labeled' or len(totals.classes) > 1 or has_error(problems):
                    break
                look([index])
    path = cfg.list_paths.get(role)
    problems += unusable_mask_problems(role, path, totals, cfg.ignore_index)
    if role == 'labeled' and totals.masks == len(samples):
        problems += absent_class_problems(role, path, totals, names_of_classes(cfg))
    return problems


def has_error(problems):
    return any(problem.severity == ERROR for problem in problems)


def some_bands_problems(data_root, role, path, samples):
    """The `bands_problems` of the first TIFF images of a list.

    A file that cannot be read is left out. It is an error when it is opened for its pixels.
    """
    tiffs = [sample for sample in samples if sample.image.lower().endswith(TIFF_ENDINGS)]
    found = []
    for sample in tiffs[:TIFFS_PER_LIST]:
        header = collect_problem([], image_header, data_root, sample)
        if header and header.bands:
            found.append((sample.image, header.bands))
    return bands_problems(role, path, found)


def warnings_or_error(problems):
    """One line for each kind of warning. Raises a UserError for the first kind of error."""
    lines = []
    for kind, (severity, heading) in KINDS.items():
        messages = [problem.message for problem in problems if problem.kind == kind]
        more = f' ({heading}: {len(messages)} found)' if len(messages) > 1 else ''
        if messages and severity == ERROR:
            raise UserError(messages[0] + more)
        if messages:
            lines.append(f'warning: {messages[0]}{more}')
    return lines


def sample_problems(data_root, role, sample, inspected, palettes):
    """The problems of an inspected sample, as a list of `Problem`.

    Args:
        palettes: `PaletteRecord` of the samples so far, to which this one is added.
    """
    problems = list(inspected.problems)
    collect_problem(problems, palettes.check, data_root, sample, inspected.colours)
    return [problem_at(sample, problem.kind, str(problem), role, problem.file, problem.values)
            for problem in problems]
