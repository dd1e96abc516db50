"""`python -m dssn prepare`: make a data_root from the official files of a data set."""
import argparse
import os

from dssn.tools.arguments import help_text, positive_number
from dssn.tools.data.prepare import ade20k, camvid, cityscapes, coco, idd_lite, pascal
from dssn.tools.data.prepare.plan import LINKS, run_plan

SETS = {'pascal': pascal, 'cityscapes': cityscapes, 'coco': coco, 'ade20k': ade20k,
        'camvid': camvid, 'idd_lite': idd_lite}


def add_arguments(parser):
    """Make a data_root with id lists from the unpacked official archives of a data set.

        python -m dssn prepare pascal --source VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset
        python -m dssn prepare cityscapes --source cityscapes

    Images are linked (by hard links, or copied if links are not possible), masks are converted, and
    the lists train.txt and val.txt are written beside them. The originals are only read. If the
    command is run again, it makes only files that are missing or whose original has changed.
    `prepare SET --help` explains a data set.
    """
    sets = parser.add_subparsers(dest='set', metavar='SET')
    sets.required = True
    for name, module in SETS.items():
        text = help_text(module.add_arguments)
        sub = sets.add_parser(name, help=text.split('\n')[0], description=text,
                              formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.add_argument('--source', required=True, metavar='FOLDER', help=module.SOURCE)
        sub.add_argument('--out', default=module.OUT, metavar='FOLDER',
                         help='the new data_root (default: %(default)s)')
        sub.add_argument('--link', choices=LINKS, default='hard',
                         help='how images are put into --out: by hard or symbolic links, or as '
                              'copies; if links are not possible, images are copied; changing a '
                              'linked image changes the original (default: hard)')
        sub.add_argument('--workers', type=positive_number, default=os.cpu_count() or 1,
                         metavar='N', help='processes (default: one per CPU core)')
        module.add_arguments(sub)


def run(args):
    run_plan(SETS[args.set].plan(args), args.out, args.link, args.workers)
    return 0
