"""Find the image files that annotations name."""
import os
from collections import defaultdict

from dssn.data.folders import IMAGE_ENDINGS, visible_files
from dssn.data.lists import leads_outside
from dssn.errors import UserError


def find_images(items, folder, own, out):
    """The paths of the images of `Annotated`s, in their order.

    The file is FOLDER/name, or else OWN/name, or else the only file with this name in the folder or
    a subfolder. A name without an ending is that of an image of any format.

    Args:
        folder: that of --images. own: that of the annotations. out: is not searched.

    Raises:
        UserError: there is no file, or there are several; or an image has two annotations.
    """
    by_name = None
    paths, missing, seen = [], [], {}
    for item in items:
        name = os.path.normpath(item.image)
        places = [os.path.join(own, name)]
        if not leads_outside(name):
            places.insert(0, os.path.join(folder, name))
        path = next(filter(os.path.isfile, places), None)
        if path is None:
            by_name = by_name or files_by_name(folder, out)
            path = only_file(item, by_name, folder)
        if path is None:
            missing.append(item)
            continue
        path = os.path.normpath(path)
        if path in seen:
            raise UserError(f'{item.place}: {path} is the image of {seen[path]}, too; remove one '
                            'of the two')
        seen[path] = item.place
        paths.append(path)
    if missing:
        more = f' (and {len(missing) - 1} other images)' if missing[1:] else ''
        raise UserError(f'{missing[0].place}: no image {missing[0].image} in {folder}{more}; name '
                        'the folder of the images with --images')
    return paths


def files_by_name(folder, out):
    """{name, and name without ending: paths} of the images in a folder and its subfolders."""
    if not os.path.isdir(folder):
        raise UserError(f'--images {folder}: no such folder; name the folder of the images')
    found = defaultdict(list)
    for path in sorted(visible_files(folder, '--images', out)):
        stem, ending = os.path.splitext(os.path.basename(path))
        if ending.lower() in IMAGE_ENDINGS:
            found[stem + ending].append(path)
            found[stem].append(path)
    return found


def only_file(item, by_name, folder):
    """The file for an image, by its name; None if there is none."""
    found = by_name.get(os.path.basename(item.image), [])
    if len(found) > 1:  # those whose folders agree, too
        end = os.path.join(os.sep, os.path.normpath(item.image))
        found = [path for path in found
                 if path.endswith(end) or os.path.splitext(path)[0].endswith(end)] or found
    if len(found) > 1:
        raise UserError(f'{item.place}: {len(found)} images have the name {item.image} '
                        f'({found[0]}, {found[1]}); name the folder of the right one with --images')
    return found[0] if found else None
