"""The plan of a preparation (which file is made from which original), and running a plan."""
import os
import shutil
import sys
from collections import Counter
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from PIL import Image
from tqdm import tqdm

from dssn.data.lists import Sample, write_list
from dssn.data.parallel import in_processes
from dssn.errors import UserError
from dssn.tools.data.prepare.originals import image_sizes

LINKS = ('hard', 'symbolic', 'copy')
PART = '.part'  # ending of the name of a file that is not complete


class Pair(NamedTuple):
    """An image and the original of its mask. Names are relative to the new data_root.

    `mask` and `mask_name` are None if the image has no mask.
    """
    image: str                # path of the original
    image_name: str
    mask: Optional[str]       # path of the original
    mask_name: Optional[str]
    detail: Any = None        # further input of `Plan.convert_mask`


class Plan(NamedTuple):
    """What a preparation makes."""
    sources: List[str]            # folders of originals, which must not be changed
    lists: Dict[str, List[Pair]]  # 'train' becomes train.txt
    official: Dict[str, int]      # number of lines of each list of the complete data set
    convert_mask: Callable        # Pair -> uint8 (H, W): class indices, 255 = ignore


def run_plan(plan, out, link, workers):
    """Link the images, convert the masks, write the lists, and report.

    A file is written under a temporary name and then renamed. A mask gets the time stamp of its
    original. A mask with this time stamp is complete and up to date, and is not made again. The
    lists are written last.

    Args:
        plan: `Plan`. out: the new data_root. link: one of LINKS. workers: number of processes.

    Raises:
        UserError: `out` lies in a folder of originals or cannot be written, an original is missing
            or damaged, or two originals would become one file.
    """
    pairs = unique(pair for listed in plan.lists.values() for pair in listed)
    refuse_originals(plan.sources, out, pairs)
    refuse_missing(pairs)
    todo = [pair for pair in pairs if not is_done(pair, out)]
    try:
        for folder in sorted({os.path.dirname(os.path.join(out, name)) for pair in todo
                              for _, name in files_of(pair)}):
            os.makedirs(folder, exist_ok=True)
        work = partial(prepare_pair, out=out, link=link, convert_mask=plan.convert_mask)
        results = in_processes(work, todo, min(workers, len(todo)))
        bar = tqdm(results, total=len(todo), unit='image', disable=None if todo else True)
        made = Counter(name for names in bar for name in names)
        for name, listed in plan.lists.items():
            update_list(os.path.join(out, name + '.txt'), listed)
    except OSError as error:
        raise UserError(f'--out {out}: cannot be written ({error}); correct this, or choose '
                        'another folder, and run the command again') from None
    report(plan, out, made, len(pairs))


def files_of(pair):
    """[(original, new name)] of the image, and of the mask if there is one."""
    files = [(pair.image, pair.image_name), (pair.mask, pair.mask_name)]
    return [(original, name) for original, name in files if original]


def unique(pairs):
    """The pairs without repeats.

    Raises:
        UserError: two originals would become one file, or a name leads out of its folder.
    """
    originals, kept = {}, {}
    for pair in pairs:
        for original, name in files_of(pair):
            if '..' in name.split('/'):
                raise UserError(f'{original}: a listed name leads out of its folder; unpack the '
                                'official archive')
            other = originals.setdefault(name, original)
            if other != original:
                raise UserError(f'{original}: would become {name}, as {other} does; remove one of '
                                'the two from the lists')
        kept[pair.mask_name or pair.image_name] = pair
    return list(kept.values())


def refuse_originals(sources, out, pairs):
    """Raise a UserError if a folder of `out` (links resolved) lies in a folder of originals."""
    folders = {os.path.join(out, os.path.dirname(name)) for pair in pairs
               for _, name in files_of(pair)} | {out}
    for folder in sorted(folders):
        for source in sources:
            inside, real = os.path.realpath(folder), os.path.realpath(source)
            if (inside + os.sep).startswith(os.path.join(real, '')):
                raise UserError(f'--out {out}: {folder} lies in {source}, whose files must not be '
                                'changed; choose a folder outside')


def refuse_missing(pairs):
    """Raise a UserError if an original is missing."""
    missing = [path for pair in pairs for path, _ in files_of(pair)
               if not os.path.isfile(path)]
    if missing:
        others = f' (and {len(missing) - 1:,} other files)' if missing[1:] else ''
        raise UserError(f'{missing[0]}: no such file{others}, but the data set lists it; unpack '
                        'the whole archive, or unpack it again')


def is_done(pair, out):
    """Whether the image and the mask of a pair are in `out` and up to date."""
    return (image_is_done(pair.image, os.path.join(out, pair.image_name))
            and (pair.mask is None or mask_is_done(pair.mask, os.path.join(out, pair.mask_name))))


def image_is_done(source, target):
    """Whether `target` is the file `source`, or a copy that `link_or_copy` has made."""
    return os.path.exists(target) and (os.path.samefile(source, target)
                                       or same_time(source, target))


def mask_is_done(source, target):
    """Whether `target` was made from the current `source`. A link to `source` was not."""
    return (os.path.exists(target) and not os.path.samefile(source, target)
            and same_time(source, target))


def same_time(source, target):
    """Whether the time stamps agree, within the precision of the file system of `target`."""
    wanted, kept = os.stat(source).st_mtime_ns, os.stat(target).st_mtime_ns
    return any(kept == wanted // unit * unit for unit in (1, 100, 1000, 10 ** 9))


def prepare_pair(pair, out, link, convert_mask):
    """Put one image and its mask into `out`, unless they are up to date.

    Returns:
        List of what was made: 'mask', and the link or 'copy' of the image (one of LINKS).
    """
    made = []
    image = os.path.join(out, pair.image_name)
    if pair.mask is not None and not mask_is_done(pair.mask, os.path.join(out, pair.mask_name)):
        index = convert_mask(pair)
        sizes = image_sizes(pair.image)
        if index.shape[::-1] not in sizes:
            width, height = sizes[0]
            raise UserError(f'{pair.mask}: the mask for {pair.image_name} is {index.shape[1]}x'
                            f'{index.shape[0]} but the image is {width}x{height}; they are not '
                            'from the same release: unpack both again')
        write_mask(os.path.join(out, pair.mask_name), index, pair.mask)
        made.append('mask')
    if not image_is_done(pair.image, image):
        made.append(link_or_copy(pair.image, image, link))
    return made


def write_mask(path, index, original):
    """Write uint8 (H, W) as an 8-bit PNG with the time stamp of `original`."""
    Image.fromarray(index).save(path + PART, format='PNG')
    copy_time(original, path + PART)
    os.replace(path + PART, path)


def link_or_copy(source, target, link):
    """Make `target` a link to `source`, or a copy if links are not possible; returns which."""
    if os.path.lexists(target + PART):
        os.remove(target + PART)
    make = {'hard': os.link, 'symbolic': os.symlink, 'copy': None}[link]
    try:
        if make:
            make(os.path.realpath(source), target + PART)
    except (OSError, NotImplementedError):  # another file system, or one without links
        link = 'copy'
    if link == 'copy':
        shutil.copyfile(source, target + PART)
        copy_time(source, target + PART)
    os.replace(target + PART, target)
    return link


def copy_time(source, target):
    """Give `target` the time stamp of `source`."""
    time = os.stat(source).st_mtime_ns
    os.utime(target, ns=(time, time))


def update_list(path, pairs):
    """Write the id list, unless the file holds the same lines already."""
    write_list(path + PART, [Sample(pair.image_name, pair.mask_name, path) for pair in pairs])
    if os.path.isfile(path):
        with open(path, 'rb') as old, open(path + PART, 'rb') as new:
            if old.read() == new.read():
                os.remove(path + PART)
                return
    os.replace(path + PART, path)


def report(plan, out, made, total):
    """Print what was made and the lengths of the lists. Warn if a list is not the official one."""
    if made:
        text = {'hard': 'hard links', 'symbolic': 'symbolic links', 'copy': 'copies'}
        images = ', '.join(f'{made[link]:,} {text[link]}' for link in LINKS if made[link])
        print(f'{out}: {made["mask"]:,} masks converted, images: {images or "none missing"}')
    else:
        print(f'{out}: nothing to do, {total:,} images and masks exist already')
    print(f'{out}: ' + ' / '.join(f'{len(pairs):,} {name}' for name, pairs in plan.lists.items()))
    for name, pairs in plan.lists.items():
        if len(pairs) != plan.official[name]:
            print(f'{out}: warning: {name}.txt has {len(pairs):,} lines, the official set '
                  f'{plan.official[name]:,}; unpack the whole archive, unless you want only a '
                  'part of it', file=sys.stderr)
