"""What the preparations share: a plan says what becomes of which original; this carries it out."""
import os
import shutil
import sys
from collections import Counter
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple

from PIL import Image
from tqdm import tqdm

from dssn.data.lists import Sample, write_list
from dssn.data.parallel import in_processes
from dssn.data.prepare.originals import image_size
from dssn.errors import UserError

LINKS = ('hard', 'symbolic', 'copy')
PART = '.part'  # ends the name of a file that is not complete yet


class Pair(NamedTuple):
    """An image and what its mask is made from; names are relative to the new data_root."""
    image: str
    image_name: str
    mask: str
    mask_name: str
    detail: Any = None  # what `Plan.convert` needs beside the file


class Plan(NamedTuple):
    sources: List[str]  # folders of originals, into which nothing may be written
    lists: Dict[str, List[Pair]]  # 'train' becomes train.txt
    official: Dict[str, int]  # lines of the lists when the set is complete
    convert: Callable  # Pair -> uint8 (H, W): class indices, 255 = ignore


def carry_out(plan, out, link, workers):
    """Link the images, convert the masks, write the lists, and report.

    A file is written under another name and then renamed, and a mask gets the time stamp of its
    original: a mask with that stamp is complete and up to date, and is left alone. The lists come
    last.

    Raises:
        UserError: `out` would touch the originals or cannot be written, an original is missing
            or broken, or two originals would become one file.
    """
    pairs = unique(pair for listed in plan.lists.values() for pair in listed)
    refuse_originals(plan.sources, out, pairs)
    refuse_missing(pairs)
    todo = [pair for pair in pairs if not is_done(pair, out)]
    try:
        for folder in sorted({os.path.dirname(os.path.join(out, name)) for pair in todo
                              for name in (pair.image_name, pair.mask_name)}):
            os.makedirs(folder, exist_ok=True)
        work = partial(prepare_pair, out=out, link=link, convert=plan.convert)
        results = in_processes(work, todo, min(workers, len(todo)))
        bar = tqdm(results, total=len(todo), unit='image', disable=None if todo else True)
        made = Counter(name for names in bar for name in names)
        for name, listed in plan.lists.items():
            update_list(os.path.join(out, name + '.txt'), listed)
    except OSError as error:
        raise UserError(f'--out {out}: cannot be made ({error}); see to it, or choose another '
                        'folder, and run the command again') from None
    report(plan, out, made, len(pairs))


def unique(pairs):
    """The pairs without repeats; two originals for one new file are refused."""
    originals, kept = {}, {}
    for pair in pairs:
        for original, name in ((pair.image, pair.image_name), (pair.mask, pair.mask_name)):
            if '..' in name.split('/'):
                raise UserError(f'{original}: a listed name leads out of its folder; unpack the '
                                'official archive')
            other = originals.setdefault(name, original)
            if other != original:
                raise UserError(f'{original}: would become {name}, as {other} does; remove one of '
                                'the two from the lists')
        kept[pair.mask_name] = pair
    return list(kept.values())


def refuse_originals(sources, out, pairs):
    """Refuse folders of `out` that lie, links followed, in a folder of originals."""
    folders = {os.path.join(out, os.path.dirname(name)) for pair in pairs
               for name in (pair.image_name, pair.mask_name)} | {out}
    for folder in sorted(folders):
        for source in sources:
            inside, real = os.path.realpath(folder), os.path.realpath(source)
            if (inside + os.sep).startswith(os.path.join(real, '')):
                raise UserError(f'--out {out}: {folder} lies in {source}, and originals are never '
                                'written to; choose a folder outside')


def refuse_missing(pairs):
    missing = [path for pair in pairs for path in (pair.image, pair.mask)
               if not os.path.isfile(path)]
    if missing:
        others = f' (and {len(missing) - 1:,} other files)' if missing[1:] else ''
        raise UserError(f'{missing[0]}: no such file{others}, but the set names it; unpack the '
                        'whole archive, or unpack it again')


def is_done(pair, out):
    return (image_is_done(pair.image, os.path.join(out, pair.image_name))
            and mask_is_done(pair.mask, os.path.join(out, pair.mask_name)))


def image_is_done(source, target):
    """Whether `target` is the file `source`, or a copy of it as `place` makes them."""
    return os.path.exists(target) and (os.path.samefile(source, target)
                                       or same_time(source, target))


def mask_is_done(source, target):
    """Whether `target` was made from `source` as that is now; a link to it was not."""
    return (os.path.exists(target) and not os.path.samefile(source, target)
            and same_time(source, target))


def same_time(source, target):
    """Whether the time stamps agree, as exactly as the file system of `target` keeps them."""
    wanted, kept = os.stat(source).st_mtime_ns, os.stat(target).st_mtime_ns
    return any(kept == wanted // unit * unit for unit in (1, 100, 1000, 10 ** 9))


def prepare_pair(pair, out, link, convert):
    """Put one image and its mask into `out`; returns what was made, such as ['mask', 'copy']."""
    made = []
    image, mask = os.path.join(out, pair.image_name), os.path.join(out, pair.mask_name)
    if not mask_is_done(pair.mask, mask):
        index = convert(pair)
        size = image_size(pair.image)
        if index.shape != size[::-1]:
            raise UserError(f'{pair.mask}: the mask for {pair.image_name} is {index.shape[1]}x'
                            f'{index.shape[0]} but the image is {size[0]}x{size[1]}; they are not '
                            'of one release: unpack both again')
        write_mask(mask, index, pair.mask)
        made.append('mask')
    if not image_is_done(pair.image, image):
        made.append(place(pair.image, image, link))
    return made


def write_mask(path, index, original):
    """Write uint8 (H, W) as an 8-bit PNG with the time stamp of `original`."""
    Image.fromarray(index).save(path + PART, format='PNG')
    copy_time(original, path + PART)
    os.replace(path + PART, path)


def place(source, target, link):
    """Make `target` a link to `source`, or a copy where links cannot be; returns which."""
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
    time = os.stat(source).st_mtime_ns
    os.utime(target, ns=(time, time))


def update_list(path, pairs):
    """Write the id list, unless it is there already, line for line."""
    write_list(path + PART, [Sample(pair.image_name, pair.mask_name, path) for pair in pairs])
    if os.path.isfile(path):
        with open(path, 'rb') as old, open(path + PART, 'rb') as new:
            if old.read() == new.read():
                os.remove(path + PART)
                return
    os.replace(path + PART, path)


def report(plan, out, made, total):
    """Say what was made and what the lists hold; warn where the official lists are longer."""
    if made:
        words = {'hard': 'hard links', 'symbolic': 'symbolic links', 'copy': 'copies'}
        images = ', '.join(f'{made[link]:,} {words[link]}' for link in LINKS if made[link])
        print(f'{out}: {made["mask"]:,} masks converted, images: {images or "none missing"}')
    else:
        print(f'{out}: nothing to do, {total:,} images and masks are there already')
    print(f'{out}: ' + ' / '.join(f'{len(pairs):,} {name}' for name, pairs in plan.lists.items()))
    for name, pairs in plan.lists.items():
        if len(pairs) != plan.official[name]:
            print(f'{out}: warning: {name}.txt has {len(pairs):,} lines, the official set '
                  f'{plan.official[name]:,}; unpack the whole archive, unless a part is what you '
                  'want', file=sys.stderr)
