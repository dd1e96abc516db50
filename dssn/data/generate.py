"""`python -m dssn.data generate`: lists of the published sizes, drawn by seed."""
import hashlib
import os

from dssn.data.arguments import whole_number
from dssn.data.identity import identify, note_generated, published_lists
from dssn.data.lists import read_list
from dssn.data.published import DATASETS, place_list
from dssn.errors import UserError

OFFICIAL_FIRST = ('original', 'U2PL-type')  # provenances whose labels come from the official list


def add_arguments(parser):
    """Draw lists of the sizes of the published ones, for those who do not have these.

    python -m dssn.data generate cityscapes --from data/cityscapes/train.txt
    python -m dssn.data generate pascal --from data/VOC2012/train_aug.txt \\
        --official data/VOC2012/train.txt --split 92 183 1_8 --seed 0

A split 92 of seed 0 becomes <out>/92_seed0/, and training says that it is generated: results on it
are not comparable with published numbers. The choice depends on seed and ids alone, not on the
order of lines; of one seed, a smaller split's labels are among a larger one's of its kind.
    """
    parser.add_argument('dataset', choices=DATASETS)
    parser.add_argument('--from', required=True, metavar='LIST', dest='source',
                        help='id list of all train images (pascal: the augmented 10,582)')
    parser.add_argument('--official', metavar='LIST',
                        help="the 1,464 official train images, as an id list or VOC's own "
                             'train.txt: the original and U2PL-type splits of pascal take their '
                             'labels from it')
    parser.add_argument('--split', nargs='+', metavar='NAME',
                        help='such as 92 or 1_16 (default: all of the data set)')
    parser.add_argument('--seed', type=whole_number, default=0, help='default: %(default)s')
    parser.add_argument('--out', metavar='FOLDER', help='default: splits/<dataset>')
    parser.set_defaults(parser=parser)


def run(args):
    sizes = published_sizes(args.dataset)
    splits = args.split or list(sizes)
    needing = check_splits(args, splits, sizes)
    samples = read_source(args.source, sum(sizes[splits[0]]['lines']))
    official = read_official(args.official, samples) if needing else set()
    for split in splits:
        folder = os.path.join(args.out or os.path.join('splits', args.dataset),
                              f'{split}_seed{args.seed}')
        first = official if split in needing else set()
        labeled, unlabeled = draw(samples, first, sizes[split]['lines'][0], args.seed)
        place_list(os.path.join(folder, 'labeled.txt'), labeled)
        place_list(os.path.join(folder, 'unlabeled.txt'), unlabeled)
        note_generated(folder, args.seed, args.source)
        # The draw of 1464 is no draw: it is the published list, and is called so.
        print(f'{folder}: {len(labeled)} labeled, {len(unlabeled)} unlabeled; '
              + identify(os.path.join(folder, 'labeled.txt')).text)
    return 0


def check_splits(args, splits, sizes):
    """Those of the splits that need the official list; a wrong command line ends the program."""
    for split in splits:
        if split not in sizes:
            args.parser.error(f"--split {split}: {args.dataset} has {', '.join(sizes)}")
    needing = [split for split in splits if sizes[split]['provenance'] in OFFICIAL_FIRST]
    if needing and not args.official:
        args.parser.error(f"--split {' '.join(needing)}: labels come from the official train list; "
                          'give --official LIST, or only splits of the blended kind')
    if args.official and not needing:
        args.parser.error('--official has no effect on these splits; leave it out')
    return needing


def published_sizes(dataset):
    """{split: {'lines': (labeled, unlabeled), 'provenance': ...}} of the published lists."""
    lists = {entry['name']: entry for entry in published_lists()}
    sizes = {}
    for name, entry in lists.items():
        place, _, file = name.rpartition('/')
        if name.startswith(f'{dataset}/') and file == 'labeled.txt':
            lines = entry['lines'], lists[f'{place}/unlabeled.txt']['lines']
            sizes[place.split('/')[1]] = {'lines': lines, 'provenance': entry['provenance']}
    return sizes


def read_source(path, count):
    """The samples of the list of all train images, `count` of them, no image twice."""
    samples = read_list(path, allow_outside=True)  # no file is opened
    if len({stem(sample) for sample in samples}) != len(samples):
        raise UserError(f'{path}: names an image twice; remove the second line')
    if len(samples) != count:
        raise UserError(f'{path}: has {len(samples)} lines, but the published lists divide {count} '
                        'images; give the list of all of them, or cut your own with `split`')
    return samples


def read_official(path, samples):
    """Stems of the official train images, all of them among `samples`."""
    official = {stem(sample) for sample in read_list(path, False, allow_outside=True)}
    count = published_sizes('pascal')['1464']['lines'][0]
    if len(official) != count:
        raise UserError(f'{path}: names {len(official)} images, the official train list {count}')
    lacking = sorted(official - {stem(sample) for sample in samples})
    if lacking:
        raise UserError(f'{path}: {len(lacking)} of its images are not in the list of --from '
                        f'(first: {lacking[0]}); give lists of one data set')
    return official


def stem(sample):
    """'JPEGImages/2007_000032.jpg' or '2007_000032' -> '2007_000032'."""
    return os.path.splitext(os.path.basename(sample.image))[0]


def draw(samples, first, count, seed):
    """Choose `count` labeled samples by seed; those whose stem is in `first` go before others.

    Hashes decide, not a random generator: no release of any package can change the lists.

    Returns:
        (labeled, unlabeled), both in the order of their ids.
    """
    def rank(sample):
        lot = hashlib.sha256(f'{seed} {sample.image}'.encode('utf-8')).hexdigest()
        return stem(sample) not in first, lot
    order = sorted(samples, key=rank)
    return sorted(order[:count]), sorted(order[count:])
