"""`python -m dssn split LIST --add FOLDER`: add samples to the labeled list of a split."""
import os

from dssn.data.lists import read_list
from dssn.errors import UserError
from dssn.tools.data.groups import group_of


def add_to_split(path, split, val_path, allow_outside):
    """The lists of a split to whose labeled list the samples of another list are added.

    Added images leave the unlabeled list. The mask of an image that is labeled already is replaced.

    Args:
        path: list of the new samples. split: folder with labeled.txt, and unlabeled.txt if any
            image is unlabeled. val_path: the val list; may not exist.

    Returns:
        (labeled, unlabeled: lists of `Sample`; a line on what changed).

    Raises:
        UserError: an image is in val, or twice in the new list, or none is in the split.
    """
    def read(file, masks):
        samples = read_list(file, masks, allow_outside)
        return {group_of(sample, None): sample for sample in samples}
    labeled = read(os.path.join(split, 'labeled.txt'), True)
    unlabeled_path = os.path.join(split, 'unlabeled.txt')
    unlabeled = read(unlabeled_path, False) if os.path.exists(unlabeled_path) else {}
    val = read(val_path, True) if os.path.exists(val_path) else {}
    new = {}
    for sample in read_list(path, True, allow_outside):
        name = group_of(sample, None)
        if name in new:
            raise UserError(f'{sample.place}: {name} is also on {new[name].place}; leave one of '
                            'the two lines')
        if name in val:
            raise UserError(f'{sample.place}: {name} is in val ({val[name].place}), and what is '
                            'trained on must not be; take the line out')
        new[name] = sample
    replaced = sum(name in labeled and labeled[name].mask != sample.mask
                   for name, sample in new.items())
    known = sum(name in labeled for name in new)
    left = sum(name in unlabeled for name in new)
    if not known and not left:
        raise UserError(f'{path}: none of its {len(new)} images is in {split}; both must be '
                        'relative to the same folder: `python -m dssn masks` and `split` have '
                        '--data-root for it')
    line = (f'{len(new)} samples: {left} were unlabeled, {known} were labeled ({replaced} with '
            f'another mask), {len(new) - left - known} were in neither list')
    return (list({**labeled, **new}.values()),
            [sample for name, sample in unlabeled.items() if name not in new], line)
