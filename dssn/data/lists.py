"""Id lists: one sample a line, `image/path mask/path` relative to the data root."""
import os
from typing import List, NamedTuple, Optional

from dssn.errors import UserError


class Sample(NamedTuple):
    """One line of an id list; paths as written, relative to the data root."""
    image: str
    mask: Optional[str]
    place: str  # 'splits/.../labeled.txt line 7', for errors


def read_list(path, masks=True):
    """Read an id list.

    A line is split at its tab if it has one, else at its space; empty lines are skipped.

    Args:
        path: the list. masks: whether every line must name a mask.

    Returns:
        List of `Sample`, in the order of the file.

    Raises:
        UserError: no such file, no sample in it, or a line that cannot be read, by its number.
    """
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = file.read().split('\n')
    except FileNotFoundError:
        raise UserError(f'{path}: no such id list; make it with `python -m dssn.data split`, or '
                        'name another one') from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: cannot be read as an id list: {error}') from None
    samples = [parse_line(line, f'{path} line {number}', masks)
               for number, line in enumerate(lines, 1) if line.strip()]
    if not samples:
        raise UserError(f'{path}: the list is empty; write one `image mask` pair a line')
    return samples


def parse_line(line, place, masks):
    """One line of an id list as a `Sample`."""
    parts = [part.strip() for part in line.split('\t')] if '\t' in line \
        else line.strip().split(' ')
    parts = [part for part in parts if part]
    if len(parts) > 2:
        raise UserError(f"{place}: '{line.strip()}' has {len(parts)} parts; write `image mask`, "
                        'with a tab between the two if a path has spaces')
    if masks and len(parts) < 2:
        raise UserError(f"{place}: '{line.strip()}' names no mask; a labeled line is `image mask`")
    return Sample(parts[0], parts[1] if len(parts) == 2 else None, place)


def check_files(samples: List[Sample], data_root, masks=True):
    """Raise a UserError for the first listed file that does not exist.

    Args:
        samples: lines of one list. masks: whether masks will be opened; unlabeled ones never are.
    """
    if not os.path.isdir(data_root):
        raise UserError(f"data_root = '{data_root}': no such folder; set it to where the data set "
                        'lies (in the config, or --set data_root=...)')
    for sample in samples:
        for name in (sample.image, sample.mask) if masks else (sample.image,):
            if not os.path.isfile(os.path.join(data_root, name)):
                raise UserError(f'{sample.place}: no file {name} (data_root={data_root}); correct '
                                'the line or data_root')


def write_list(path, samples):
    """Write samples as an id list; a tab separates where a path has a space."""
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    lines = []
    for sample in samples:
        parts = [sample.image] + ([sample.mask] if sample.mask else [])
        spaced = any(' ' in part for part in parts)
        # An image alone whose name has a space ends in a tab, so that it is not split there.
        text = '\t'.join(parts if len(parts) == 2 else parts + ['']) if spaced else ' '.join(parts)
        lines.append(text + '\n')
    with open(path, 'w', encoding='utf-8', newline='\n') as file:
        file.writelines(lines)
