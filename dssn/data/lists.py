"""Id lists: one sample a line, `image/path mask/path` relative to the data root."""
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import List, NamedTuple, Optional

from dssn.data.files import missing_file
from dssn.errors import UserError

LARGEST = 2 ** 28  # characters of a list; COCO's train list has some 8 million


class Sample(NamedTuple):
    """One line of an id list; paths as written, relative to the data root."""
    image: str
    mask: Optional[str]
    place: str  # 'splits/.../labeled.txt line 7', for errors


def read_list(path, masks=True, allow_outside=False):
    """Read an id list.

    A line is split at its tab if it has one, else at its space; empty lines are skipped.

    Args:
        path: the list. masks: whether every line must name a mask.
        allow_outside: whether a line may leave the data root, by `..` or an absolute path. A link
            in the data root may lead anywhere: who made the link wanted that.

    Returns:
        List of `Sample`, in the order of the file.

    Raises:
        UserError: no such file, no sample in it, or a line that cannot be read, by its number.
    """
    return [parse_line(line, place, masks, allow_outside) for line, place in read_lines(path)]


def read_lines(path):
    """The lines of an id list that are not empty, each with its place: [('a b', 'list line 1')]."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = read_text(file).split('\n')
    except FileNotFoundError:
        raise UserError(f'{path}: no such id list; make it with `python -m dssn.data split`, or '
                        'name another one') from None
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: cannot be read as an id list: {error}; save it as UTF-8') from None
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read as an id list: {error}; name a text file with one '
                        '`image mask` pair a line') from None
    found = [(line, f'{path} line {number}')
             for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f'{path}: the list is empty; write one `image mask` pair a line')
    return found


def read_text(file):
    """All of an open list; a ValueError where it is longer than any list, as a device is."""
    text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f'more than {LARGEST} characters')
    return text


def parse_line(line, place, masks, allow_outside=False):
    """One line of an id list as a `Sample`."""
    parts = [part.strip() for part in line.split('\t')] if '\t' in line \
        else line.strip().split(' ')
    parts = [part for part in parts if part]
    if len(parts) > 2:
        raise UserError(f"{place}: '{shorter(line)}' has {len(parts)} parts; write `image mask`, "
                        'with a tab between the two if a path has spaces')
    if masks and len(parts) < 2:
        raise UserError(f"{place}: '{shorter(line)}' names no mask; write `image mask`")
    for name in parts:
        if '\0' in name:
            raise UserError(f"{place}: '{shorter(line)}' holds a zero byte, which no file name does; "
                            'is this a text file?')
        if not allow_outside and leaves(name):
            raise UserError(f'{place}: {shorter(name)} may lie outside data_root; write paths below '
                            'data_root, or trust the list with all files of this '
                            'machine: allow_outside: true in the config, --set allow_outside=true, '
                            'or `split --allow-outside`')
    return Sample(parts[0], parts[1] if len(parts) == 2 else None, place)


def leaves(name):
    """Whether a path can lead out of the folder that it is relative to, but for links."""
    return os.path.isabs(name) or bool(os.path.splitdrive(name)[0]) \
        or os.path.normpath(name).split(os.sep)[0] == os.pardir


def shorter(line, most=200):
    """A line for a message."""
    line = line.strip()
    return line if len(line) <= most else f'{line[:most]}...'


def check_files(samples: List[Sample], data_root, masks=True):
    """Raise a UserError for the first listed file that does not exist.

    Args:
        samples: lines of one list. masks: whether masks will be opened; unlabeled ones never are.
    """
    check_root(data_root)
    names = [(name, sample) for sample in samples
             for name in ((sample.image, sample.mask) if masks else (sample.image,))]
    # A network drive answers slowly, but many questions at once.
    chunks = [names[i:i + 256] for i in range(0, len(names), 256)]
    with ThreadPoolExecutor(16) as pool:
        absent = [item for part in pool.map(functools.partial(_absent, data_root), chunks)
                  for item in part]
    if absent:
        more = f' (missing files: {len(absent)} found)' if len(absent) > 1 else ''
        raise UserError(f'{missing_file(data_root, *absent[0])}{more}')


def check_root(data_root):
    """Raise a UserError where the data root is no folder."""
    if not os.path.isdir(data_root):
        raise UserError(f"data_root = '{data_root}': no such folder; set it to where the data set "
                        'lies (in the config, or --set data_root=...)')


def _absent(data_root, names):
    return [(name, sample) for name, sample in names
            if not os.path.isfile(os.path.join(data_root, name))]


def write_list(path, samples):
    """Write samples as an id list; raises a UserError for a name that no line can hold."""
    lines = [line_of(sample) + '\n' for sample in samples]
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path, 'w', encoding='utf-8', newline='\n') as file:
        file.writelines(lines)


def line_of(sample):
    """A sample as `parse_line` reads it; a tab separates where a path has a space."""
    parts = [sample.image] + ([sample.mask] if sample.mask else [])
    spaced = any(' ' in part for part in parts)
    # An image alone whose name has a space ends in a tab, so that it is not split there.
    line = '\t'.join(parts if len(parts) == 2 else parts + ['']) if spaced else ' '.join(parts)
    for part in parts:
        # A byte order mark at the start of a file is not read as part of a name.
        if any(sign in part for sign in '\t\r\n\0') or part != part.strip() or part[:1] == '\ufeff':
            raise UserError(f'{part!r}: an id list cannot hold a name with a tab or a line end, nor '
                            'a path with a space at its start or end; rename the file')
        if part != part.encode('utf-8', 'ignore').decode('utf-8'):
            raise UserError(f'{part!r}: not UTF-8, in which id lists are written; rename the file')
    return line
