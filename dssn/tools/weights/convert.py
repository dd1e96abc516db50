"""`python -m dssn weights convert`: copies the weights of a backbone from a file."""
import os

from dssn.errors import UserError
from dssn.models import BACKBONES, ENCODERS
from dssn.tools.weights.contents import read_weights_file
from dssn.tools.weights.store import backbone_text, store


def add_arguments(parser):
    """Copy the weights of a backbone from a file that you have into the folder pretrained/.

        python -m dssn weights convert resnet50-0676ba61.pth
    """
    parser.add_argument('file', metavar='FILE')
    parser.add_argument('--backbone', choices=[*BACKBONES, *ENCODERS],
                        help='backbone that the file must contain (default: any)')
    parser.add_argument('--stem', choices=('deep', 'plain'),
                        help='stem that the file must have (default: any)')
    parser.add_argument('--folder', default='pretrained',
                        help='folder to write into (default: %(default)s)')


def run(args):
    found = read_weights_file(args.file)
    if args.backbone and found.backbone != args.backbone:
        raise UserError(f'{args.file}: contains {backbone_text(found)}, not {args.backbone}; give '
                        'another file or leave --backbone out')
    store(args.file, os.path.basename(args.file), found, args.stem, args.folder)
    return 0
