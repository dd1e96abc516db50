"""`python -m dssn generate`: sample lists of the published sizes by seed."""
import hashlib
import os

from dssn.data.identity import identify, published_lists, record_generated
from dssn.data.lists import read_list
from dssn.errors import UserError
from dssn.tools.arguments import whole_number
from dssn.tools.data.published import DATASETS, write_new_list

# Provenances of published lists whose labeled images come from the official train list first.
OFFICIAL_FIRST = ('original', 'U2PL-type')


def add_arguments(parser):
    """Sample lists of the published sizes, for users who do not have the published lists.

        python -m dssn generate cityscapes --from data/cityscapes/train.txt
        python -m dssn generate pascal --from data/VOC2012/train_aug.txt \\
            --official data/VOC2012/train.txt --split 92 183 1_8 --seed 0

    Split 92 with seed 0 is written to <out>/92_seed0/. The log of a training reports that the lists
    are generated: results are not comparable with published numbers. The choice depends only on the
    seed and the ids, not on the order of the lines. With the same seed, the labeled images of a
    smaller split are among those of a larger split of the same kind.
    """
    parser.add_argument('dataset', choices=DATASETS)
    parser.add_argument('--from', required=True, metavar='LIST', dest='source',
                        help='id list of all train images (pascal: the augmented 10,582)')
    parser.add_argument('--official', metavar='LIST',
                        help="the 1,464 official train images, as an id list or VOC's own "
                             'train.txt: the original and U2PL-type splits of pascal take their '
                             'labeled images from it')
    parser.add_argument('--split', nargs='+', metavar='NAME',
                        help='such as 92 or 1_16 (default: all of the data set)')
    parser.add_argument('--seed', type=whole_number, default=0, help='default: %(default)s')
    parser.add_argument('--out', metavar='FOLDER', help='default: splits/<dataset>')
    parser.set_defaults(parser=parser)


def run(args):
    sizes = published_sizes(args.dataset)
    splits = args.split or list(sizes)
    official_first = check_splits(args, splits, sizes)
    samples = read_source(args.source, sum(sizes[splits[0]]['lines']))
    official = read_official(args.official, samples) if official_first else set()
    for split in splits:
        folder = os.path.join(args.out or os.path.join('splits', args.dataset),
                              f'{split}_seed{args.seed}')
        first = official if split in official_first else set()
        labeled, unlabeled = choose_labeled(samples, first, sizes[split]['lines'][0], args.seed)
        write_new_list(os.path.join(folder, 'labeled.txt'), labeled)
        write_new_list(os.path.join(folder, 'unlabeled.txt'), unlabeled)
        record_generated(folder, args.seed, args.source)
        # Split 1464 takes all official images: it equals the published list, and is reported so.
        print(f'{folder}: {len(labeled)} labeled, {len(unlabeled)} unlabeled; '
              + identify(os.path.join(folder, 'labeled.txt')).text)
    return 0


def check_splits(args, splits, sizes):
    """Check the command line, and exit if it is wrong.

    Returns:
        The splits that need the official list.
    """
    for split in splits:
        if split not in sizes:
            args.parser.error(f"--split {split}: {args.dataset} has {', '.join(sizes)}")
    official_first = [split for split in splits if sizes[split]['provenance'] in OFFICIAL_FIRST]
    if official_first and not args.official:
        args.parser.error(f"--split {' '.join(official_first)}: the labeled images come from the "
                          'official train list; give --official LIST, or only splits of the '
                          'blended kind')
    if args.official and not official_first:
        args.parser.error('--official has no effect on these splits; leave it out')
    return official_first


def published_sizes(dataset):
    """{split: {'lines': (labeled, unlabeled), 'provenance': ...}} of the published lists."""
    lists = {entry['name']: entry for entry in published_lists()}
    sizes = {}
    for name, entry in lists.items():
        folder, _, file = name.rpartition('/')
        if name.startswith(f'{dataset}/') and file == 'labeled.txt':
            lines = entry['lines'], lists[f'{folder}/unlabeled.txt']['lines']
            sizes[folder.split('/')[1]] = {'lines': lines, 'provenance': entry['provenance']}
    return sizes


def read_source(path, count):
    """The samples of the list of all train images.

    Raises:
        UserError: an image is listed twice, or the list does not have `count` lines.
    """
    samples = read_list(path, allow_outside=True)  # opens no listed file
    if len({stem(sample) for sample in samples}) != len(samples):
        raise UserError(f'{path}: names an image twice; remove the second line')
    if len(samples) != count:
        raise UserError(f'{path}: has {len(samples)} lines, but the published lists divide {count} '
                        'images; give the list of all of them, or make your own lists with `split`')
    return samples


def read_official(path, samples):
    """Stems of the official train images.

    Raises:
        UserError: their number is wrong, or an image is not among `samples`.
    """
    official = {stem(sample) for sample in read_list(path, False, allow_outside=True)}
    count = published_sizes('pascal')['1464']['lines'][0]
    if len(official) != count:
        raise UserError(f'{path}: names {len(official)} images, but the official train list has '
                        f'{count}; take the official list')
    missing = sorted(official - {stem(sample) for sample in samples})
    if missing:
        raise UserError(f'{path}: {len(missing)} of its images are not in the list of --from '
                        f'(first: {missing[0]}); give lists of one data set')
    return official


def stem(sample):
    """'JPEGImages/2007_000032.jpg' or '2007_000032' -> '2007_000032'."""
    return os.path.splitext(os.path.basename(sample.image))[0]


def choose_labeled(samples, first, count, seed):
    """Choose `count` labeled samples by seed; samples whose stem is in `first` come first.

    The order is that of hashes. A random generator could change with the release of a package.

    Returns:
        (labeled, unlabeled), both in the order of their ids.
    """
    def rank(sample):
        digest = hashlib.sha256(f'{seed} {sample.image}'.encode('utf-8')).hexdigest()
        return stem(sample) not in first, digest
    order = sorted(samples, key=rank)
    return sorted(order[:count]), sorted(order[count:])
