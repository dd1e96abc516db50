"""`python -m dssn import`: copy the published lists from a checkout, and verify them."""
import glob
import os
import sys

from tqdm import tqdm

from dssn.data.identity import published_lists, sha256_of_ids, sha256_of_pairs
from dssn.data.lists import read_list, write_list
from dssn.errors import UserError

DATASETS = ('pascal', 'cityscapes')


def add_arguments(parser):
    """Copy the published id lists of Pascal and Cityscapes from a checkout of UniMatch or DSSN.

        git clone https://github.com/LiheYoung/UniMatch ../UniMatch
        python -m dssn import ../UniMatch

    Every list is compared with dssn/data/published.json (the order of its lines does not matter)
    and written below --out. A list that differs is refused and reported. An existing list is kept.
    DIR holds pascal/ or cityscapes/, or splits/ with these folders, or a folder that holds either.
    """
    parser.add_argument('dir', metavar='DIR', help='the checkout, or a folder of lists')
    parser.add_argument('--out', default='splits', metavar='FOLDER', help='default: %(default)s')


def run(args):
    known = {entry['name']: entry for entry in published_lists()}
    found = find_lists(args.dir)
    written, existing, refused, unknown = [], [], [], []
    for name, path in tqdm(found, unit='list', disable=None):
        if name not in known:
            unknown.append(path)
            continue
        try:
            new = write_new_list(os.path.join(args.out, name), read_verified(path, known[name]))
            (written if new else existing).append(name)
        except UserError as error:
            refused.append(str(error))
    print(f'{args.out}: {len({*written, *existing})} published lists verified, {len(written)} '
          f'written, {len(existing)} exist already')
    missing = [name for name in known if name not in dict(found)]
    for heading, names in ((f'not in {args.dir}', missing), ('unknown, skipped', unknown)):
        if names:
            print(f'{heading}: {len(names)} ({", ".join(names[:4])}{", ..." if names[4:] else ""})')
    for message in refused:
        print(f'refused: {message}', file=sys.stderr)
    return 1 if refused else 0


def find_lists(folder):
    """[(name below splits/, path)] of all lists of Pascal and Cityscapes in a checkout.

    Raises:
        UserError: there is no such folder, or it has no such lists.
    """
    if not os.path.isdir(folder):
        raise UserError(f'{folder}: no such folder; give a checkout of UniMatch or DSSN, or a '
                        'folder with pascal/ and cityscapes/')
    subfolders = sorted(glob.glob(os.path.join(glob.escape(folder), '*', '')))
    roots = [os.path.join(root, *below) for root in (folder, *subfolders)
             for below in ((), ('splits',))]
    found = {}
    for root in roots:
        for dataset in DATASETS:
            top = glob.escape(os.path.join(root, dataset))
            for pattern in ('*.txt', os.path.join('*', '*.txt')):
                for path in sorted(glob.glob(os.path.join(top, pattern))):
                    name = os.path.relpath(path, root).replace(os.sep, '/')
                    found[os.path.normpath(path)] = name
    if not found:
        raise UserError(f'{folder}: has no id lists: expected pascal/ or cityscapes/ with .txt '
                        'files in it, in its splits/, or in one of its folders')
    return [(name, path) for path, name in found.items()]


def read_verified(path, known):
    """Read a published list. Raises a UserError that describes how it differs from its entry."""
    samples = read_list(path, allow_outside=True)  # opens no listed file
    name = known['name']
    if len(samples) != known['lines']:
        difference = f"has {len(samples)} lines, but the published {name} has {known['lines']}"
    elif sha256_of_ids(samples) != known['sha256']:
        difference = (f'has other images than the published {name} (sha256 of its ids '
                      f"{sha256_of_ids(samples)[:12]}, not {known['sha256'][:12]})")
    elif sha256_of_pairs(samples) != known['sha256_with_masks']:
        difference = (f'has the images of the published {name} but other masks (sha256 '
                      f"{sha256_of_pairs(samples)[:12]}, not {known['sha256_with_masks'][:12]})")
    else:
        return samples
    raise UserError(f'{path}: {difference}; it was not written: take the file from its source '
                    'again')


def write_new_list(path, samples):
    """Write a list atomically, unless it exists already (in any order of its lines).

    Returns:
        True if it was written, False if it existed.

    Raises:
        UserError: `path` holds another list, or cannot be written.
    """
    if os.path.exists(path):
        if sha256_of_pairs(read_list(path, False, allow_outside=True)) == sha256_of_pairs(samples):
            return False
        raise UserError(f'{path}: holds another list; move it away, or give another --out')
    try:
        write_list(f'{path}.tmp', samples)
        os.replace(f'{path}.tmp', path)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); choose another '
                        '--out') from None
    return True
