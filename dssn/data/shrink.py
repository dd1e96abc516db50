"""`python -m dssn.data shrink`: a data set again, at a fraction of its size."""
import functools
import os

from PIL import Image
from tqdm import tqdm

from dssn.data.arguments import positive_number
from dssn.data.files import check_size, open_image, open_index
from dssn.data.lists import check_files, read_list, write_list
from dssn.data.parallel import in_processes
from dssn.errors import UserError

# What images are written as, by their names' ends, with Pillow's options; masks are PNG.
FORMATS = {'.jpg': ('JPEG', {'quality': 95, 'subsampling': 0}), '.png': ('PNG', {})}
FORMATS['.jpeg'] = FORMATS['.jpg']


def add_arguments(parser):
    """Write images and masks again at 1/N of their width and height, and their lists.

    python -m dssn.data shrink data/camvid/train.txt data/camvid/val.txt \\
        --data-root data/camvid --by 4 --out data/camvid_4

For photographs far larger than a crop, and for trials on a CPU. A new pixel is the mean of those
that it covers, in a mask one of them. Names stay, so that lists of the data set (`split`) are lists
of the small one too. Files that are there already are left alone: an interrupted run continues.
    """
    parser.add_argument('lists', nargs='+', metavar='LIST', help='id lists; masks may be missing')
    parser.add_argument('--data-root', required=True, help='folder that the lists are relative to')
    parser.add_argument('--by', required=True, type=positive_number, metavar='N',
                        help='whole number that sides are divided by')
    parser.add_argument('--out', required=True, metavar='FOLDER',
                        help='folder to write: the new data_root, with the lists in it')
    parser.add_argument('--workers', type=positive_number, default=os.cpu_count() or 1,
                        help='processes (default: %(default)s)')


def run(args):
    lists = {path: read_list(path, masks=False) for path in args.lists}
    names = [os.path.basename(path) for path in lists]
    if len(set(names)) < len(names):
        raise UserError(f"lists: two of them are called alike ({', '.join(lists)}), and would be "
                        'one file in --out; shrink them one after the other into other folders')
    if os.path.realpath(args.out) == os.path.realpath(args.data_root):
        raise UserError(f'--out {args.out}: is --data-root, which is only read; choose '
                        'another folder')
    samples = [sample for listed in lists.values() for sample in listed]
    for sample in samples:
        check_names(sample)
    for listed in lists.values():
        check_files(listed, args.data_root, masks=False)
        check_files([sample for sample in listed if sample.mask], args.data_root)
    work = functools.partial(shrink, data_root=args.data_root, by=args.by, out=args.out)
    try:
        done = list(tqdm(in_processes(work, samples, min(args.workers, len(samples))),
                         total=len(samples), unit='image', disable=None))
        for path, listed in lists.items():
            write_list(os.path.join(args.out, os.path.basename(path)), listed)
    except OSError as error:
        raise UserError(f'--out {args.out}: cannot be made ({error}); see to it, or choose another '
                        'folder, and run the command again') from None
    print(f'{args.out}: {sum(done)} images and masks written, at 1/{args.by}; '
          f"lists: {', '.join(names)}")
    return 0


def check_names(sample):
    """Raise a UserError for a name whose end asks for a format that is not written here."""
    for kind, name, known in (('image', sample.image, FORMATS), ('mask', sample.mask, ['.png'])):
        if name and os.path.splitext(name)[1].lower() not in known:
            raise UserError(f"{sample.place}: {kind} {name}: only {', '.join(known)} are written; "
                            'convert it, or shrink it with another program')


def shrink(sample, data_root, by, out):
    """Write a sample's files that are not there yet; returns how many. Raises FileProblem."""
    todo = [name for name in (sample.image, sample.mask)
            if name and not os.path.exists(os.path.join(out, name))]
    if not todo:
        return 0
    image = open_image(data_root, sample)
    size = max(image.width // by, 1), max(image.height // by, 1)
    if sample.image in todo:
        how, options = FORMATS[os.path.splitext(sample.image)[1].lower()]
        write(os.path.join(out, sample.image), image.resize(size, Image.BOX), how, options)
    if sample.mask in todo:
        mask = open_index(data_root, sample)
        check_size(data_root, sample, mask, image.size)
        write(os.path.join(out, sample.mask), mask.resize(size, Image.NEAREST), 'PNG', {})
    return len(todo)


def write(path, image, how, options):
    """Whole or not at all: another process may want the same folder, or an interruption come."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f'{path}.{os.getpid()}.part'
    image.save(part, format=how, **options)
    os.replace(part, path)
