"""Id lists: one sample per line, `image/path mask/path`, relative to the data root."""
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import List, NamedTuple, Optional

from dssn.data.files import missing_file_problem
from dssn.errors import UserError

MAX_CHARACTERS = 2 ** 28  # of a list; COCO's train list has about 8 million


class Sample(NamedTuple):
    """One line of an id list. Paths are as written there, relative to the data root."""
    image: str
    mask: Optional[str]
    place: str  # 'splits/.../labeled.txt line 7', for error messages


def read_list(path, masks=True, allow_outside=False):
    """Read an id list.

    A line is split at its tab, or at its space if it has no tab. Empty lines are skipped.

    Args:
        path: the list. masks: whether every line must name a mask.
        allow_outside: whether a line may name a file outside the data root, by `..` or an absolute
            path; None: no, and the error names no way to allow it. Links inside the data root are
            always followed: their owner has set them.

    Returns:
        List of `Sample`, in the order of the file.

    Raises:
        UserError: there is no such file, it has no sample, or a line (given by its number) cannot
            be read.
    """
    return [parse_line(line, place, masks, allow_outside) for line, place in read_lines(path)]


def read_lines(path):
    """The non-empty lines of an id list, each with its place: [('a b', 'list.txt line 1'), ...]."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = read_text(file).split('\n')
    except FileNotFoundError:
        raise UserError(f'{path}: no such id list; make it with `python -m dssn split`, or '
                        'name another one') from None
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: cannot be read as an id list: {error}; save it as '
                        'UTF-8') from None
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read as an id list: {error}; name a text file with one '
                        '`image mask` pair per line') from None
    found = [(line, f'{path} line {number}')
             for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f'{path}: the list is empty; write one `image mask` pair per line')
    return found


def read_text(file):
    """The text of an open list. Raises ValueError if it is too long, as that of a device is."""
    text = file.read(MAX_CHARACTERS + 1)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f'more than {MAX_CHARACTERS} characters')
    return text


def parse_line(line, place, masks, allow_outside=False):
    """One line of an id list as a `Sample`. The arguments and errors are those of `read_list`."""
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
            raise UserError(f"{place}: '{shorter(line)}' holds a zero byte, which no file name "
                            'has; is this a text file?')
        if not allow_outside and leads_outside(name):
            more = '' if allow_outside is None else (
                ', or, if this list may read any file of this machine, set `allow_outside: true` '
                'in the config, --set allow_outside=true, or `split --allow-outside`')
            raise UserError(f'{place}: {shorter(name)} may lie outside data_root; write paths '
                            f'below data_root{more}')
    return Sample(parts[0], parts[1] if len(parts) == 2 else None, place)


def leads_outside(name):
    """Whether a relative path can lead out of its folder. Links are not considered."""
    return os.path.isabs(name) or bool(os.path.splitdrive(name)[0]) \
        or os.path.normpath(name).split(os.sep)[0] == os.pardir


def shorter(line, limit=200):
    """A line, shortened for a message."""
    line = line.strip()
    return line if len(line) <= limit else f'{line[:limit]}...'


def check_files(samples: List[Sample], data_root, masks=True):
    """Check that all listed files exist.

    Args:
        samples: samples of one list. masks: whether masks are checked, too.

    Raises:
        UserError: the first missing file, with the number of all missing files.
    """
    check_root(data_root)
    names = [(name, sample) for sample in samples
             for name in ((sample.image, sample.mask) if masks else (sample.image,))]
    # A network drive answers slowly, but it answers many requests at the same time.
    chunks = [names[i:i + 256] for i in range(0, len(names), 256)]
    with ThreadPoolExecutor(16) as pool:
        missing = [item for part in pool.map(functools.partial(_missing, data_root), chunks)
                   for item in part]
    if missing:
        more = f' (missing files: {len(missing)} found)' if len(missing) > 1 else ''
        raise UserError(f'{missing_file_problem(data_root, *missing[0])}{more}')


def check_root(data_root):
    """Raise a UserError if the data root is not a folder."""
    if not os.path.isdir(data_root):
        raise UserError(f"data_root = '{data_root}': no such folder; set it to the folder of the "
                        'data set (in the config, or --set data_root=...)')


def _missing(data_root, names):
    return [(name, sample) for name, sample in names
            if not os.path.isfile(os.path.join(data_root, name))]


def write_list(path, samples):
    """Write samples as an id list. Raises a UserError for a name that a list cannot hold."""
    lines = [format_line(sample) + '\n' for sample in samples]
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path, 'w', encoding='utf-8', newline='\n') as file:
        file.writelines(lines)


def format_line(sample):
    """A sample as a line for `parse_line`. A tab separates the paths if one has a space."""
    parts = [sample.image] + ([sample.mask] if sample.mask else [])
    spaced = any(' ' in part for part in parts)
    # A tab at the end keeps a lone image name with a space from being split.
    line = '\t'.join(parts if len(parts) == 2 else parts + ['']) if spaced else ' '.join(parts)
    for part in parts:
        # A byte order mark at the start of a file would not be read as part of the name.
        if any(sign in part for sign in '\t\r\n\0') or part != part.strip() or part[:1] == '\ufeff':
            raise UserError(f'{part!r}: an id list cannot hold a name with a tab or a line end, '
                            'nor a path with a space at its start or end; rename the file')
        if part != part.encode('utf-8', 'ignore').decode('utf-8'):
            raise UserError(f'{part!r}: the name is not valid UTF-8, the encoding of id lists; '
                            'rename the file')
    return line
