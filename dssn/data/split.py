"""Cutting an id list into a labeled and an unlabeled part."""
import os
from fractions import Fraction
from math import ceil

import numpy as np

from dssn.data.lists import read_list, write_list
from dssn.errors import UserError


def parse_share(text):
    """'40' -> 40 samples; '1/8' -> that share, as a Fraction.

    Raises:
        UserError: neither a whole number above 0 nor a fraction between 0 and 1.
    """
    try:
        value = Fraction(text) if '/' in text else int(text)
    except (ValueError, ZeroDivisionError):
        value = 0
    if value <= 0 or (isinstance(value, Fraction) and value > 1):
        raise UserError(f"--labeled {text}: write a number of samples such as 40, or a share such "
                        'as 1/8')
    return value


def split(path, share, seed, out):
    """Choose the labeled samples of a list at random; both parts keep the list's order.

    Args:
        path: id list with masks. share: a count, or a Fraction (rounded up, as the
            published lists are).
        seed: of the choice. out: folder for labeled.txt and unlabeled.txt; the unlabeled lines
            name the image alone.

    Returns:
        (number labeled, number unlabeled).

    Raises:
        UserError: a bad list, or more labeled samples than the list has.
    """
    samples = read_list(path)
    count = ceil(len(samples) * share) if isinstance(share, Fraction) else share
    if count > len(samples):
        raise UserError(f'--labeled {count}: {path} has only {len(samples)} samples')
    order = np.random.default_rng(seed).permutation(len(samples))
    chosen = set(order[:count].tolist())
    labeled = [s for i, s in enumerate(samples) if i in chosen]
    unlabeled = [s._replace(mask=None) for i, s in enumerate(samples) if i not in chosen]
    try:
        write_list(os.path.join(out, 'labeled.txt'), labeled)
        write_list(os.path.join(out, 'unlabeled.txt'), unlabeled)
    except OSError as error:
        raise UserError(f'--out {out}: cannot be written ({error.strerror})') from None
    return len(labeled), len(unlabeled)
