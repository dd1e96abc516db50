"""`python -m dssn weights fetch`: downloads public weights."""
import http.client
import os
import signal
import sys
import urllib.request

from tqdm import tqdm

from dssn.errors import UserError
from dssn.models import pretrained
from dssn.tools.weights.contents import is_loadable, read_weights_file, verify_sha256
from dssn.tools.weights.store import print_ready, store

TIMEOUT = 30          # seconds without a byte after which a download fails
LARGEST = 2 ** 31     # bytes; the files have 45 MB to 1.2 GB
PIECE = 2 ** 18       # bytes that are read at once


def add_arguments(parser):
    """Download public weights for a backbone into the folder pretrained/.

        python -m dssn weights fetch resnet101
        python -m dssn weights fetch resnet50 --stem plain
        python -m dssn weights fetch dinov2_small
    """
    parser.add_argument('name', metavar='BACKBONE', help=', '.join(fetchable()))
    parser.add_argument('--stem', choices=('deep', 'plain'),
                        help='of a ResNet; default: deep, or plain if no public file has a deep '
                             'stem')
    parser.add_argument('--folder', default='pretrained',
                        help='folder to write into (default: %(default)s)')


def run(args):
    # SIGTERM ends the download by an exception, so that the partial file is removed.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return fetch(args)
    finally:
        signal.signal(signal.SIGTERM, before)


def fetchable():
    """Names of the backbones with public weights."""
    return [*pretrained.PLAIN_STEM_FILES, *pretrained.DINOV2_FILES]


def fetch(args):
    stem = args.stem
    if not stem and pretrained.has_stem(args.name):
        stem = 'deep' if args.name in pretrained.DEEP_STEM_FILES else 'plain'
    name = checked_name(args.name, stem)
    path = pretrained.pretrained_file(name, args.folder)
    if os.path.exists(path):
        found = read_weights_file(path)
        if not is_loadable(found) or (found.backbone, found.stem) != (name, stem):
            form = f'{name} with a {stem} stem' if stem else name
            raise UserError(f'{path}: already exists, but is not {form} that training can load '
                            '(see `check`); move it away, or give another --folder')
        print_ready(path, found, 'already exists')
        return 0
    url = pretrained.source_url(name, stem)
    part = os.path.join(args.folder, url.rpartition('/')[2] + '.part')
    try:
        download(url, part)
        verify_sha256(part, os.path.basename(url))
        store(part, os.path.basename(url), read_weights_file(part), stem, args.folder)
    finally:
        if os.path.exists(part):
            os.remove(part)
    return 0


def checked_name(name, stem):
    """The name of a backbone that can be fetched.

    Raises:
        UserError: there are no public weights for it; the message gives the reason.
    """
    if 'v1c' in name:
        raise UserError(f'{name}: {pretrained.NARROW_STEM}; fetch resnet50 or resnet101 instead')
    if name == 'xception':
        raise UserError(f'xception: no address to fetch it from is known; take '
                        f'{pretrained.XCEPTION_SOURCE}, then `{pretrained.COMMAND} convert FILE`')
    if name == 'dinov2_tiny':
        raise UserError('dinov2_tiny: has no public weights; train it with `pretrained: false`, or '
                        f"fetch {', '.join(pretrained.DINOV2_FILES)}")
    if name not in fetchable():
        raise UserError(f"{name}: unknown; known: {', '.join(fetchable())}")
    if stem and not pretrained.has_stem(name):
        raise UserError(f'{name}: has no stem; leave --stem {stem} out')
    if pretrained.source_url(name, stem) is None:
        raise UserError(f'{name}: there are no public weights with a {stem} stem; leave --stem '
                        'out, and set `stem: plain` in the config')
    return name


def download(url, path):
    """Save a file from the web. After a failure the caller removes the partial file.

    Raises:
        UserError: the file could not be downloaded completely.
    """
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
                        raise ValueError(f'the file has more than {LARGEST} bytes')
                    file.write(piece)
                    bar.update(len(piece))
        if size and received != size:
            raise ValueError(f'the connection ended after {received} of {size} bytes')
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f'{url}: cannot be downloaded to {os.path.dirname(path)} ({error}); try '
                        'again, or get the file in another way and give it to '
                        f'`{pretrained.COMMAND} convert FILE`') from None
