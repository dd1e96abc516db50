"""`python -m dssn shrink`: copy a data set at a fraction of its size."""
import functools
import os

from PIL import Image
from tqdm import tqdm

from dssn.data.files import fit_mask, open_image_and_header, open_raw_mask
from dssn.data.lists import check_files, read_list, write_list
from dssn.data.palettes import PaletteRecord
from dssn.data.parallel import in_processes
from dssn.data.stored import used_colours
from dssn.errors import UserError
from dssn.tools.arguments import positive_number

# {ending of an image's name: (Pillow's format, options)}. Masks are PNG.
FORMATS = {'.jpg': ('JPEG', {'quality': 95, 'subsampling': 0}), '.png': ('PNG', {})}
FORMATS['.jpeg'] = FORMATS['.jpg']


def add_arguments(parser):
    """Copy images, masks and their lists, with images and masks at 1/N of their width and height.

        python -m dssn shrink data/camvid/train.txt data/camvid/val.txt \\
            --data-root data/camvid --by 4 --out data/camvid_4

    Use it for photographs far larger than a crop, and for trials on a CPU. A pixel of a new image
    is the mean of the pixels that it covers. A pixel of a new mask is one of them. Names do not
    change, so id lists of the data set (see `split`) are valid for the small one, too. Existing
    files are kept, so an interrupted command can be run again.
    """
    parser.add_argument('lists', nargs='+', metavar='LIST', help='id lists, with or without masks')
    parser.add_argument('--data-root', required=True, help='folder that the lists are relative to')
    parser.add_argument('--by', required=True, type=positive_number, metavar='N',
                        help='whole number by which width and height are divided')
    parser.add_argument('--out', required=True, metavar='FOLDER',
                        help='folder to write: the new data_root, with the lists in it')
    parser.add_argument('--palette', choices=('check', 'ignore'), default='check',
                        help='ignore: the masks may have different palettes (default: '
                             '%(default)s)')
    parser.add_argument('--workers', type=positive_number, default=os.cpu_count() or 1,
                        help='processes (default: %(default)s)')


def run(args):
    lists = {path: read_list(path, masks=False, allow_outside=None) for path in args.lists}
    names = [os.path.basename(path) for path in lists]
    if len(set(names)) < len(names):
        raise UserError(f"lists: two of them have the same name ({', '.join(lists)}), and would be "
                        'one file in --out; shrink them one by one, into different folders')
    if os.path.realpath(args.out) == os.path.realpath(args.data_root):
        raise UserError(f'--out {args.out}: is --data-root, which is only read; choose another '
                        'folder')
    if not os.path.isdir(args.data_root):
        raise UserError(f'--data-root {args.data_root}: no such folder; name the folder that the '
                        'lists are relative to')
    samples = [sample for listed in lists.values() for sample in listed]
    for sample in samples:
        check_names(sample)
    for listed in lists.values():
        check_files(listed, args.data_root, masks=False)
        check_files([sample for sample in listed if sample.mask], args.data_root)
    work = functools.partial(shrink, data_root=args.data_root, by=args.by, out=args.out)
    written, palettes = 0, PaletteRecord(args.palette)
    try:
        results = in_processes(work, samples, min(args.workers, len(samples)))
        for (count, colours), sample in zip(tqdm(results, total=len(samples), unit='image',
                                                 disable=None), samples):
            written += count
            palettes.check(args.data_root, sample, colours)
        for path, listed in lists.items():
            write_list(os.path.join(args.out, os.path.basename(path)), listed)
    except OSError as error:
        raise UserError(f'--out {args.out}: cannot be written ({error}); correct this, or choose '
                        'another folder, and run the command again') from None
    print(f'{args.out}: {written} images and masks written, at 1/{args.by}; '
          f"lists: {', '.join(names)}")
    return 0


def check_names(sample):
    """Raise a UserError if the ending of a name stands for a format that is not written here."""
    for kind, name, known in (('image', sample.image, FORMATS), ('mask', sample.mask, ['.png'])):
        if name and os.path.splitext(name)[1].lower() not in known:
            remedy = 'export the masks again as PNG' if kind == 'mask' else \
                'convert it, or shrink it with another program'
            raise UserError(f"{sample.place}: {kind} {name}: only {', '.join(known)} are written; "
                            f'{remedy}')


def shrink(sample, data_root, by, out):
    """Write those files of a sample that do not exist yet.

    Returns:
        (the number of written files, `used_colours` of the mask if it is one of them).

    Raises:
        FileProblem: the image or the mask is bad.
    """
    todo = [name for name in (sample.image, sample.mask)
            if name and not os.path.exists(os.path.join(out, name))]
    if not todo:
        return 0, {}
    image, header = open_image_and_header(data_root, sample)
    size = max(image.width // by, 1), max(image.height // by, 1)
    if sample.image in todo:
        file_format, options = FORMATS[os.path.splitext(sample.image)[1].lower()]
        write(os.path.join(out, sample.image), image.resize(size, Image.BOX), file_format, options)
    colours = {}
    if sample.mask in todo:
        mask = fit_mask(data_root, sample, open_raw_mask(data_root, sample), header.size,
                        header.turn)
        write(os.path.join(out, sample.mask), mask.resize(size, Image.NEAREST), 'PNG', {})
        colours = used_colours(mask)
    return len(todo), colours


def write(path, image, file_format, options):
    """Write an image atomically. The file name is that of this process until it is complete."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f'{path}.{os.getpid()}.part'
    image.save(part, format=file_format, **options)
    os.replace(part, path)
