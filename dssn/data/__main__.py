"""Command line of the data tools: `python -m dssn.data shapes`, `python -m dssn.data split`."""
import argparse
import sys

from dssn.data.shapes import N_TRAIN, N_VAL, SEED, draw_set
from dssn.data.split import parse_share, split
from dssn.errors import UserError


def whole_number(text):
    """argparse type: a whole number, at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{text} must be at least 0')
    return value


def positive_number(text):
    """argparse type: a whole number, at least 1."""
    if whole_number(text) == 0:
        raise argparse.ArgumentTypeError(f'{text} must be at least 1')
    return int(text)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(prog='python -m dssn.data', description=__doc__)
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    commands.required = True
    shapes = commands.add_parser('shapes', help='draw the shapes data set')
    shapes.add_argument('--root', default='data/shapes', help='folder (default: %(default)s)')
    shapes.add_argument('--train', type=positive_number, default=N_TRAIN, help='images (default: %(default)s)')
    shapes.add_argument('--val', type=positive_number, default=N_VAL, help='images (default: %(default)s)')
    shapes.add_argument('--seed', type=whole_number, default=SEED, help='default: %(default)s')
    cut = commands.add_parser('split', help='cut an id list into a labeled and an unlabeled one')
    cut.add_argument('list', help='id list of images with masks')
    cut.add_argument('--labeled', required=True, metavar='N | 1/K',
                     help='how many samples, or which share, stay labeled')
    cut.add_argument('--seed', type=whole_number, default=0, help='of the random choice (default: 0)')
    cut.add_argument('--out', required=True,
                     help='folder for labeled.txt and unlabeled.txt, such as splits/camvid/1_8')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    if args.command == 'shapes':
        drawn = draw_set(args.root, args.train, args.val, args.seed)
        print(f'{args.root}: {args.train} train and {args.val} val images '
              + ('drawn' if drawn else 'are there already'))
    else:
        labeled, unlabeled = split(args.list, parse_share(args.labeled), args.seed, args.out)
        print(f'{args.out}: {labeled} labeled, {unlabeled} unlabeled of {args.list}, '
              f'seed {args.seed}')


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        sys.exit(f'python -m dssn.data: error: {error}')
