"""Find images and masks in folders or by globs, and pair them by folder and stem."""
import glob
import os
import re

from dssn.data.lists import Sample
from dssn.errors import UserError

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm')
MASK_ENDINGS = ('.png', '.bmp', '.tif', '.tiff', '.gif', '.pgm')
SHOWN = 3  # images that an error message lists


def pair_files(images, masks, mask_suffixes=('',), image_suffix='', data_root=None):
    """Find all images, and the mask of each image that has one.

    The stem of a file is its name without the ending and without a suffix (`image_suffix`, or one
    of `mask_suffixes`). A mask belongs to the image with the same stem in the same subfolder. If
    only the images or only the masks are in subfolders, the same stem is enough, but only one image
    may have it.

    Args:
        images, masks: folders, searched with their subfolders, or globs ('**' spans folders). The
            subfolder of a file that a glob finds is the text for the wildcards of the glob's
            folders.
        mask_suffixes, image_suffix: text at the end of the names, such as '_mask'; may be ''.
        data_root: folder that the samples are relative to. Default: the closest common folder.

    Returns:
        (`Sample`s in the order of their paths, with mask None for an image without a mask;
        data_root; paths of masks without an image).

    Raises:
        UserError: nothing is found, an image has two masks, a mask fits several images, masks are
            JPEG files, or files lie outside `data_root`.
    """
    image_files, image_base = find_files(images, IMAGE_ENDINGS, '--images')
    mask_files, mask_base = find_files(masks, MASK_ENDINGS, '--masks')
    # One folder may hold images and masks. A file in it is a mask if it has a mask suffix.
    image_keys = {path: key_of(path, folder, [image_suffix])
                  for path, folder in image_files.items()}
    mask_keys = {path: key_of(path, folder, mask_suffixes) for path, folder in mask_files.items()}
    shared = set(image_files) & set(mask_files)
    if shared and '' in mask_suffixes:
        raise UserError(f'--images {images} and --masks {masks} both find {min(shared)}; give a '
                        '--mask-suffix, or globs that separate images from masks')
    image_keys = {path: key for path, key in image_keys.items()
                  if key and not (path in shared and mask_keys[path])}
    mask_keys = {path: key for path, key in mask_keys.items() if key}
    mask_of, unpaired = match(image_keys, mask_keys)
    if not mask_of:
        image_of = {stem: path for path, (stem, _) in image_keys.items()}
        for mask, (stem, _) in mask_keys.items():
            if stem in image_of:
                raise UserError(f'--masks {masks}: no mask lies in the subfolder of its image '
                                f'(image {image_of[stem]}, mask {mask}); give the folders below '
                                'which the subfolders have the same names, or quoted globs such as '
                                "--images 'data/*/rgb/*' --masks 'data/*/seg/*'")
        raise UserError(f'--masks {masks}: no mask matches an image by stem (image '
                        f'{min(image_keys or image_files)}, mask {min(mask_files)}); name masks '
                        'like their images, or give a --mask-suffix or --image-suffix')
    root = data_root or common_folder([image_base, mask_base])
    samples = [Sample(relative(path, root), mask_of.get(path) and relative(mask_of[path], root),
                      path) for path in sorted(image_keys)]
    return samples, root, unpaired


def find_files(pattern, endings, flag):
    """The files of a folder or glob, by ending.

    Returns:
        ({file with one of the endings: its subfolder, see `pair_files`}, in the order of the paths;
        the folder that holds all of them).
    """
    if os.path.isdir(pattern):
        base = pattern
        found = list(visible_files(pattern, flag))
    elif not glob.has_magic(pattern):
        raise UserError(f'{flag} {pattern}: no such folder; name one, or give a quoted glob')
    else:
        found = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        fixed = pattern.split('*')[0].split('?')[0].split('[')[0]
        base = os.path.dirname(fixed) or '.'
    files = sorted(os.path.normpath(p) for p in found if p.lower().endswith(endings))
    if not files:
        jpegs = [path for path in found if path.lower().endswith(('.jpg', '.jpeg'))]
        if jpegs:
            raise UserError(f'{flag} {pattern}: {jpegs[0]} is a JPEG, which changes class '
                            'indices; export the masks again as PNG')
        raise UserError(f'{flag} {pattern}: no file found with an ending of '
                        f"{', '.join(endings)}; name a folder, or quote a glob")
    base = os.path.normpath(base)
    if os.path.isdir(pattern):
        return {path: os.path.relpath(os.path.dirname(path), base) for path in files}, base
    return {path: text_of_wildcards(os.path.dirname(path), pattern) for path in files}, base


def visible_files(folder, flag, excluded=None):
    """Yield the paths of all files in a folder and its subfolders.

    Hidden files and folders are left out, and so is the folder `excluded`. Links to folders are
    followed, but no folder is entered twice. `flag` is the option that named the folder, for the
    error.

    Raises:
        UserError: a folder cannot be read.
    """
    def refuse(error):
        raise UserError(f'{flag} {folder}: {error.filename} cannot be read ({error.strerror})')
    entered = {excluded and os.path.realpath(excluded)}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(place) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        yield from (os.path.join(place, name) for name in names if not name.startswith('.'))


def text_of_wildcards(folder, pattern):
    """The text for the wildcards of a glob's folders: 's1' for 'd/s1/rgb' and 'd/*/rgb/*.jpg'."""
    folders, name = os.path.split(os.path.normpath(pattern))
    if name == '**':
        folders = os.path.join(folders, name)
    expression = ''
    for token in re.split(r'(\*\*/|\*+|\?|\[[^]]+\])', os.path.join(folders, '')):
        if token == '**/':
            expression += '((?:.*/)?)'
        elif token[:1] in ('*', '?'):
            expression += '([^/]*)' if token[:1] == '*' else '([^/])'
        elif token[:1] == '[' and token[1:]:
            expression += '(.)'  # glob has seen which character it is
        else:
            expression += re.escape(token)
    found = re.fullmatch(expression, os.path.join(folder, ''))
    return '/'.join(text.rstrip('/') for text in found.groups() if text) or '.'


def key_of(path, folder, suffixes):
    """(stem without its suffix, subfolder), or None if the stem has none of the suffixes."""
    stem = os.path.splitext(os.path.basename(path))[0]
    for suffix in sorted(suffixes, key=len, reverse=True):
        if stem.endswith(suffix) and len(stem) > len(suffix):
            return stem[:len(stem) - len(suffix)], folder
    return None


def match(image_keys, mask_keys):
    """Pair images and masks by their keys; returns ({image: mask}, masks without an image)."""
    by_stem = {}
    for path, (stem, folder) in sorted(image_keys.items()):
        by_stem.setdefault(stem, {}).setdefault(folder, []).append(path)
    nested = all(any(folder != os.curdir for _, folder in keys.values())
                 for keys in (image_keys, mask_keys))
    mask_of, unpaired = {}, []
    for mask, (stem, folder) in sorted(mask_keys.items()):
        folders = by_stem.get(stem, {})
        candidates = folders.get(folder, [])
        if not candidates and not nested:
            candidates = sorted(path for paths in folders.values() for path in paths)
        if len(candidates) > 1:
            raise UserError(f"mask {mask}: {len(candidates)} images have its stem '{stem}' "
                            f"({', '.join(candidates[:SHOWN])}); give the images different names, "
                            'or put the masks into the same folders as the images')
        if not candidates:
            unpaired.append(mask)
            continue
        image, = candidates
        if image in mask_of:
            raise UserError(f'image {image}: two masks match it, {mask_of[image]} and {mask}; '
                            'remove one, or narrow --masks or --mask-suffix')
        mask_of[image] = mask
    return mask_of, unpaired


def common_folder(folders):
    """The closest folder that holds all the folders: relative, unless all of them are absolute."""
    common = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    return common if all(os.path.isabs(folder) for folder in folders) else os.path.relpath(common)


def relative(path, root):
    """`path` relative to the data root, with forward slashes. Raises UserError if it is outside."""
    inside = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    if inside.split(os.sep)[0] == os.pardir:
        raise UserError(f'{path}: outside --data-root {root}; name a folder that holds images and '
                        'masks')
    return inside.replace(os.sep, '/')
