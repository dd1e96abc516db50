"""`python -m dssn.data prepare`: what the official sources hand out becomes a data_root."""
import argparse
import os

from dssn.data.arguments import positive_number
from dssn.data.prepare import camvid, cityscapes, coco, pascal
from dssn.data.prepare.plan import LINKS, carry_out

SETS = {'pascal': pascal, 'cityscapes': cityscapes, 'coco': coco, 'camvid': camvid}


def add_arguments(parser):
    """Make a data_root with id lists from the official archives of a data set, unpacked.

    python -m dssn.data prepare pascal --source VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset
    python -m dssn.data prepare cityscapes --source cityscapes

Images are linked (hard links, or copies where those cannot be), masks are converted, and the lists
train.txt and val.txt are written beside them. The originals are only read. Run again, it does what
is missing or whose original has changed: nothing, once all is done. `prepare SET --help` says more.
    """
    sets = parser.add_subparsers(dest='set', metavar='SET')
    sets.required = True
    for name, module in SETS.items():
        text = module.add_arguments.__doc__
        sub = sets.add_parser(name, help=text.split('\n')[0], description=text,
                              formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.add_argument('--source', required=True, metavar='FOLDER', help=module.SOURCE)
        sub.add_argument('--out', default=module.OUT, metavar='FOLDER',
                         help='the new data_root (default: %(default)s)')
        sub.add_argument('--link', choices=LINKS, default='hard',
                         help='how images come into --out: hard or symbolic links, copied where '
                              'that cannot be, or copies; what changes a linked image changes the '
                              'original (default: hard)')
        sub.add_argument('--workers', type=positive_number, default=os.cpu_count() or 1,
                         metavar='N', help='processes (default: one per CPU core)')
        module.add_arguments(sub)


def run(args):
    carry_out(SETS[args.set].plan(args), args.out, args.link, args.workers)
    return 0
