"""Command line of the ImageNet weights: fetch public files, convert others, say what a file is."""
import argparse
import http.client
import os
import urllib.request

import torch
from tqdm import tqdm

from dssn import checkpoint
from dssn.errors import UserError, exit_status
from dssn.models import BACKBONES, weights
from dssn.models.contents import check_name, inspect, loads

TIMEOUT = 30          # seconds without a byte after which a download fails
LARGEST = 2 ** 30     # bytes; the files are of 45 to 180 MB
PIECE = 2 ** 18


def main(argv=None):
    args = parse_arguments(argv)
    return exit_status(weights.COMMAND, args.run, args)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(prog=weights.COMMAND, description=__doc__)
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    commands.required = True
    fetch = commands.add_parser('fetch', help='download public ImageNet weights for a backbone')
    fetch.add_argument('name', metavar='BACKBONE', help=', '.join(weights.PLAIN_STEM_FILES))
    convert = commands.add_parser('convert', help='take the weights of a file that you have')
    convert.add_argument('file', metavar='FILE')
    convert.add_argument('--backbone', choices=list(BACKBONES),
                         help='what the file must hold (default: what it holds)')
    check = commands.add_parser('check', help='say what a file is, and what it lacks')
    check.add_argument('file', metavar='FILE')
    for command, default in ((fetch, 'deep where there is one'), (convert, "the file's")):
        command.add_argument('--stem', choices=('deep', 'plain'), help=f'default: {default}')
        command.add_argument('--folder', default='pretrained', help='default: %(default)s')
    for command, run in ((fetch, run_fetch), (convert, run_convert), (check, run_check)):
        command.set_defaults(run=run)
    return parser.parse_args(argv)


def run_check(args):
    found = inspect(args.file)
    width = '' if found.width == 64 else f', base_channels: {found.width}'
    filled = found.total - len(found.unfilled)
    print(f'{args.file}: {found.kind}: {form(found)}{width}; {filled} of {found.total} backbone '
          'tensors filled')
    for text in found.unfilled:
        print(f'  not filled: {text}')
    say_extra(found)
    if not found.unfilled and not loads(found):
        print(f'  training takes it once `{weights.COMMAND} convert` has left these out')
    return 1 if found.unfilled else 0


def run_convert(args):
    found = inspect(args.file)
    if args.backbone and found.backbone != args.backbone:
        raise UserError(f'{args.file}: holds {form(found)}, not {args.backbone}; give another file '
                        'or leave --backbone out')
    store(args.file, os.path.basename(args.file), found, args.stem, args.folder)
    return 0


def run_fetch(args):
    stem = args.stem or ('deep' if args.name in weights.DEEP_STEM_FILES else 'plain')
    name = checked_name(args.name, stem)
    path = weights.pretrained_file(name, args.folder)
    if os.path.exists(path):
        found = inspect(path)
        if not loads(found) or (found.backbone, found.stem) != (name, stem):
            raise UserError(f'{path}: is there already, and is not {name} with a {stem} stem that '
                            'training takes (see `check`); move it away, or give another --folder')
        say_ready(path, found, 'is there already')
        return 0
    url = weights.source_url(name, stem)
    part = os.path.join(args.folder, url.rpartition('/')[2] + '.part')
    try:
        download(url, part)
        check_name(part, os.path.basename(url))
        store(part, os.path.basename(url), inspect(part), stem, args.folder)
    finally:
        if os.path.exists(part):
            os.remove(part)
    return 0


def checked_name(name, stem):
    """The backbone to fetch, or a UserError that says why there is none of this name."""
    if 'v1c' in name:
        raise UserError(f"{name}: {weights.NARROW_STEM}; fetch resnet50 or resnet101 instead")
    if name == 'xception':
        raise UserError(f'xception: no address is known that can be fetched from; take '
                        f'{weights.XCEPTION_SOURCE}, then `{weights.COMMAND} convert FILE`')
    if name not in weights.PLAIN_STEM_FILES:
        raise UserError(f"{name}: unknown; known: {', '.join(weights.PLAIN_STEM_FILES)}")
    if weights.source_url(name, stem) is None:
        raise UserError(f'{name}: there are no public weights with a {stem} stem; leave --stem '
                        'out, and set `stem: plain` in the config')
    return name


def download(url, path):
    """Save a file from the web; what a failure leaves at `path` is the caller's to remove."""
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        request = urllib.request.Request(url, headers={'User-Agent': 'dssn'})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response, open(path, 'wb') as file:
            size = int(response.headers.get('Content-Length') or 0)
            with tqdm(total=size or None, unit='B', unit_scale=True, disable=None) as bar:
                received = 0
                for piece in iter(lambda: response.read(PIECE), b''):
                    received += len(piece)
                    if received > LARGEST:
                        raise ValueError(f'more than {LARGEST} bytes come')
                    file.write(piece)
                    bar.update(len(piece))
        if size and received != size:
            raise ValueError(f'broken off after {received} of {size} bytes')
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f'{url}: cannot be downloaded to {os.path.dirname(path)} ({error}); try '
                        'again, or get the file in another way and give it to '
                        f'`{weights.COMMAND} convert FILE`') from None


def store(path, source, found, stem, folder):
    """Write the backbone's tensors to where training looks for them, whole or not at all.

    Args:
        path: the file that `found` is of. source: its name, to be recorded.
        stem: the stem that it must have, or None for any.
    """
    if found.unfilled:
        raise UserError(f'{path}: does not fill {form(found)}: '
                        f'{weights.first_few("tensors", found.unfilled)}')
    if stem not in (None, found.stem):
        raise UserError(f'{path}: holds {form(found)}; leave --stem {stem} out')
    target = weights.pretrained_file(found.backbone, folder)
    tensors = {name: tensor.detach().clone() for name, tensor in found.tensors.items()}
    if os.path.exists(target):
        there = inspect(target)
        if not loads(there) or set(there.tensors) != set(tensors) or not all(
                torch.equal(there.tensors[name], tensors[name]) for name in tensors):
            raise UserError(f'{target}: is there already, with other tensors; move it away, or '
                            'give another --folder')
    else:
        write(target, {'state_dict': tensors, 'source': source})
    say_ready(target, found, f'from {source}')
    say_extra(found)


def write(path, content):
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        checkpoint.save(path, content)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); give another --folder'
                        ) from None
    finally:
        if os.path.exists(f'{path}.tmp'):  # an interruption's
            os.remove(f'{path}.tmp')


def form(found):
    """'resnet50, deep stem'."""
    return 'xception' if found.backbone == 'xception' else f'{found.backbone}, {found.stem} stem'


def say_ready(path, found, words):
    print(f'{path}: {form(found)}, all {found.total} tensors, {words}')
    if found.stem == 'plain':
        print('  the config needs `stem: plain`')


def say_extra(found):
    if found.extra:
        print(f'  not used: {weights.first_few("tensors", found.extra)}')
