"""`python -m dssn weights check`: reports what a file of weights contains."""
from dssn.models import pretrained
from dssn.tools.weights.contents import is_loadable, read_weights_file
from dssn.tools.weights.store import backbone_text, print_extra


def add_arguments(parser):
    """Report what a file of weights contains. Exit status 1 if tensors are missing.

        python -m dssn weights check pretrained/resnet101.pth
    """
    parser.add_argument('file', metavar='FILE')


def run(args):
    found = read_weights_file(args.file)
    width = '' if found.width == 64 else f', base_channels: {found.width}'
    filled = found.total - len(found.unfilled)
    print(f'{args.file}: {found.kind}: {backbone_text(found)}{width}; {filled} of {found.total} '
          'backbone tensors filled')
    for text in found.unfilled:
        print(f'  not filled: {text}')
    print_extra(found)
    if not found.unfilled and not is_loadable(found):
        print(f'  run `{pretrained.COMMAND} convert`: training needs a file without these tensors')
    return 1 if found.unfilled else 0
