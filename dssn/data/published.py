"""`python -m dssn.data import`: the published lists, verified, from a checkout of the user's."""
import glob
import os
import sys

from tqdm import tqdm

from dssn.data.identity import published_lists, sha256_of_ids, sha256_of_pairs
from dssn.data.lists import read_list, write_list
from dssn.errors import UserError

DATASETS = ('pascal', 'cityscapes')


def add_arguments(parser):
    """Take the published id lists of Pascal and Cityscapes from a checkout of UniMatch or DSSN.

    git clone https://github.com/LiheYoung/UniMatch ../UniMatch
    python -m dssn.data import ../UniMatch

Every list is compared with splits/published.json, in any order of its lines, and written below
--out. A list that differs is refused by name, and one that is there already stays. DIR holds
pascal/ or cityscapes/, or splits/ with these in it, or a folder that holds either.
    """
    parser.add_argument('dir', metavar='DIR', help='the checkout, or a folder of lists')
    parser.add_argument('--out', default='splits', metavar='FOLDER', help='default: %(default)s')


def run(args):
    known = {entry['name']: entry for entry in published_lists()}
    found = find_lists(args.dir)
    written, there, refused, unknown = [], [], [], []
    for name, path in tqdm(found, unit='list', disable=None):
        if name not in known:
            unknown.append(path)
            continue
        try:
            new = place_list(os.path.join(args.out, name), verified(path, known[name]))
            (written if new else there).append(name)
        except UserError as error:
            refused.append(str(error))
    print(f'{args.out}: {len({*written, *there})} published lists verified, {len(written)} '
          f'written, {len(there)} there already')
    missing = [name for name in known if name not in dict(found)]
    for word, names in ((f'not in {args.dir}', missing), ('unknown, skipped', unknown)):
        if names:
            print(f'{word}: {len(names)} ({", ".join(names[:4])}{", ..." if names[4:] else ""})')
    for message in refused:
        print(f'refused: {message}', file=sys.stderr)
    return 1 if refused else 0


def find_lists(folder):
    """(name below splits/, path) of every list of Pascal and Cityscapes in a checkout.

    Raises:
        UserError: no such folder, or none of its places has pascal/ or cityscapes/.
    """
    if not os.path.isdir(folder):
        raise UserError(f'{folder}: no such folder; give a checkout of UniMatch or DSSN, or a '
                        'folder with pascal/ and cityscapes/')
    inner = sorted(glob.glob(os.path.join(glob.escape(folder), '*', '')))
    places = [os.path.join(place, *below) for place in (folder, *inner)
              for below in ((), ('splits',))]
    found = {}
    for place in places:
        for dataset in DATASETS:
            top = glob.escape(os.path.join(place, dataset))
            for pattern in ('*.txt', os.path.join('*', '*.txt')):
                for path in sorted(glob.glob(os.path.join(top, pattern))):
                    name = os.path.relpath(path, place).replace(os.sep, '/')
                    found[os.path.normpath(path)] = name
    if not found:
        raise UserError(f'{folder}: has no id lists: neither pascal/ nor cityscapes/ with .txt '
                        'files lies in it, in its splits/, or in a folder of it')
    return [(name, path) for path, name in found.items()]


def verified(path, known):
    """The samples of a list that is the published one, or a UserError that says what differs."""
    samples = read_list(path, allow_outside=True)  # no file is opened
    name = known['name']
    if len(samples) != known['lines']:
        what = f"has {len(samples)} lines, but the published {name} has {known['lines']}"
    elif sha256_of_ids(samples) != known['sha256']:
        what = (f'has other images than the published {name} (sha256 of its ids '
                f"{sha256_of_ids(samples)[:12]}, not {known['sha256'][:12]})")
    elif sha256_of_pairs(samples) != known['sha256_with_masks']:
        what = (f'has the images of the published {name} but other masks (sha256 '
                f"{sha256_of_pairs(samples)[:12]}, not {known['sha256_with_masks'][:12]})")
    else:
        return samples
    raise UserError(f'{path}: {what}; nothing of it was written: take the file from its source '
                    'again')


def place_list(path, samples):
    """Write a list whole or not at all; False where it is there already, in any order.

    Raises:
        UserError: another list is there, or it cannot be written.
    """
    if os.path.exists(path):
        if sha256_of_pairs(read_list(path, False, allow_outside=True)) == sha256_of_pairs(samples):
            return False
        raise UserError(f'{path}: another list is there; move it away, or give another --out')
    try:
        write_list(f'{path}.tmp', samples)
        os.replace(f'{path}.tmp', path)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); choose another '
                        '--out') from None
    return True
