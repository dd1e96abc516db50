"""`python -m dssn masks`: class masks from the files of annotation tools."""
import argparse
import os

from dssn.tools.arguments import help_text, positive_amount
from dssn.tools.masks import coco, colours, cvat, label_studio, labelme
from dssn.tools.masks.classes import IGNORED, choose_classes
from dssn.tools.masks.images import find_images
from dssn.tools.masks.output import report, write_all

FORMATS = {'labelme': labelme, 'cvat': cvat, 'coco': coco, 'labelstudio': label_studio,
           'colours': colours}


def add_arguments(parser):
    """Make class masks, a list and a part of a config from the files of an annotation tool.

        python -m dssn masks labelme data/mine/images --out data/mine/labeled
        python -m dssn masks cvat annotations.xml --images data/mine/images --out data/mine/labeled
        python -m dssn masks coco instances.json --images data/mine/images \\
            --out data/mine/labeled --classes background,road,car --rest background \\
            --map lorry=car dirt=ignore

    OUT/masks/ gets a PNG of class indices for each image with a shape, named like its image.
    OUT/labeled.txt lists image and mask. OUT/classes.yaml has the lines `data_root`, `classes` and
    `colours` for a config. A table of the pixels of each class is printed.

    A pixel belongs to a shape if its centre lies in it. Where shapes overlap, the order of the
    tool decides (FORMAT --help). What lies outside the image is cut off. Shapes without a pixel in
    the image are named. Labels that are no class are an error that lists them all.
    `python -m dssn masks FORMAT --help` explains a format.
    """
    formats = parser.add_subparsers(dest='format', metavar='FORMAT')
    formats.required = True
    for name, module in FORMATS.items():
        text = help_text(module.read)
        sub = formats.add_parser(name, help=module.__doc__, description=text,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.add_argument('source', metavar='SOURCE', help=module.SOURCE)
        sub.add_argument('--out', required=True, metavar='FOLDER',
                         help='folder for masks, list and classes')
        sub.add_argument('--images', metavar='FOLDER', required=name == 'colours',
                         help='folder of the images, searched with its subfolders'
                              + ' (default: that of SOURCE)' * (name != 'colours'))
        sub.add_argument('--data-root', metavar='FOLDER',
                         help='folder that the list will be relative to (default: the closest one '
                              'that holds the images and --out)')
        sub.add_argument('--classes', metavar='A,B,C | FILE',
                         help='the classes, in the order of their indices, or a file with one on '
                              'each line (default: the labels, in the order of the tool, or else '
                              'of the alphabet)')
        sub.add_argument('--rest', default=IGNORED, metavar='ignore | CLASS',
                         help='what pixels without a shape become: ignored (255), or a class '
                              '(default: %(default)s)')
        sub.add_argument('--map', nargs='+', action='extend', default=[], metavar='OLD=NEW',
                         help='treat the label OLD as the class NEW; NEW may be `ignore`')
        sub.add_argument('--keep-empty', action='store_true',
                         help='keep images without a shape, too: their masks are --rest alone')
        if name in ('labelme', 'cvat'):
            sub.add_argument('--line-width', type=positive_amount, default=10.0, metavar='PIXELS',
                             help='width of lines and line strips, which the file does not state '
                                  '(default: %(default)g)')
        if name == 'colours':
            sub.add_argument('--table', metavar='FILE',
                             help='table of the colours, a line `label:R,G,B` for each (default: '
                                  'SOURCE/labelmap.txt)')


def run(args):
    annotations = FORMATS[args.format].read(args)
    classes = choose_classes(annotations, args)
    kept = [item for item in annotations.images if item.shapes or args.keep_empty]
    own = args.source if os.path.isdir(args.source) else os.path.dirname(args.source) or '.'
    paths = find_images(kept, args.images or own, own, args.out)
    written = write_all(args, annotations, classes, kept, paths, args.images or own)
    report(args, annotations, classes, len(annotations.images) - len(kept), written)
    return 0
