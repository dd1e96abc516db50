"""Damaged images and masks: the data sets give a valid sample, or an error that names the file.

No other error is raised, and nothing hangs. Seeds are fixed.
"""
import io
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from conftest import draw_pair
from PIL import Image

from dssn import config
from dssn.data.datasets import EvalSet, RowIndices, TrainSet
from dssn.data.lists import Sample
from dssn.errors import UserError

WIDTH, HEIGHT, NCLASS = 29, 23, 3
TIME_LIMIT = 60.0  # seconds for one sample, which takes milliseconds
pytestmark = pytest.mark.filterwarnings('ignore')  # Pillow warns of many files that it then reads


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif():
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags.tobytes()


def images():
    photo = Image.fromarray(draw_pair(np.random.default_rng(0), (WIDTH, HEIGHT), NCLASS)[0])
    return {
        'png': encoded(photo, 'PNG'),
        'png of a palette': encoded(photo.convert('P'), 'PNG'),
        'png with alpha': encoded(photo.convert('RGBA'), 'PNG'),
        'jpeg': encoded(photo, 'JPEG', quality=90),
        'progressive jpeg': encoded(photo, 'JPEG', progressive=True),
        'gray jpeg': encoded(photo.convert('L'), 'JPEG'),
        'cmyk jpeg': encoded(photo.convert('CMYK'), 'JPEG'),
        'jpeg with exif': encoded(photo, 'JPEG', exif=exif()),
    }


def masks():
    index = draw_pair(np.random.default_rng(0), (WIDTH, HEIGHT), NCLASS)[1]
    index[:3] = 255
    gray, coloured = Image.fromarray(index), Image.fromarray(index)
    coloured.putpalette(bytes(range(256)) * 3)
    return {'mask': encoded(gray, 'PNG'), 'mask of a palette': encoded(coloured, 'PNG')}


FILES = {**images(), **masks()}


def truncated(data, rng):
    """Cut at each of some 40 places, more of them in the head."""
    places = set(range(0, 40, 2)) | set(rng.integers(0, len(data), 24).tolist())
    return [data[:place] for place in sorted(places)]


def flipped(data, rng, start=0, stop=None):
    """40 copies with 1 to 4 bits flipped between start and stop."""
    copies = []
    for _ in range(40):
        copy = bytearray(data)
        for place in rng.integers(start, min(stop or len(data), len(data)), rng.integers(1, 5)):
            copy[place] ^= 1 << int(rng.integers(8))
        copies.append(bytes(copy))
    return copies


def shuffled(data, rng):
    """Copies with a part repeated, removed or overwritten, or with random bytes at the end."""
    copies = []
    for _ in range(8):
        start, stop = sorted(rng.integers(0, len(data), 2).tolist())
        part = data[start:stop]
        copies += [data[:start] + part + data[start:], data[:start] + data[stop:],
                   data[:start] + bytes([int(rng.integers(256))]) * len(part) + data[stop:],
                   data + rng.integers(0, 256, 50).astype(np.uint8).tobytes()]
    return copies


def chunks_of(data):
    """The chunks of a PNG: [(kind, content)]."""
    found, at = [], 8
    while at < len(data):
        length, = struct.unpack('>I', data[at:at + 4])
        found.append((data[at + 4:at + 8], data[at + 8:at + 8 + length]))
        at += 12 + length
    return found


def joined(chunks):
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(content)) + kind + content
        + struct.pack('>I', zlib.crc32(kind + content) & 0xffffffff) for kind, content in chunks)


def resealed(data, rng):
    """PNG files with damaged chunks and correct checksums, which are decoded further."""
    copies = []
    if data[:4] != b'\x89PNG':
        return copies
    for kind, content in ((b'zTXt', b'a\0\0' + zlib.compress(bytes(10 ** 7))),
                          (b'iCCP', b'a\0\0' + b'x' * 9), (b'eXIf', b'MM\0*' + b'\xff' * 20),
                          (b'acTL', b'\xff' * 8), (b'tRNS', b'\1' * 300), (b'PLTE', b'\1' * 7),
                          (b'gAMA', b''), (b'pHYs', b'\0')):
        chunks = chunks_of(data)
        chunks.insert(1, (kind, content))
        copies.append(joined(chunks))
    for _ in range(40):
        chunks = chunks_of(data)
        number = int(rng.integers(len(chunks)))
        kind, content = chunks[number]
        if content:
            copy = bytearray(content)
            copy[int(rng.integers(min(len(copy), 13)))] = int(rng.integers(256))
            chunks[number] = kind, bytes(copy)
        else:
            del chunks[number]
        copies.append(joined(chunks))
    return copies


def resized(data, rng):
    """Headers with another size: no pixels, one row, or more pixels than the file has."""
    sizes = [(0, 0), (1, 1), (WIDTH, 0), (0, HEIGHT), (WIDTH + 1, HEIGHT), (WIDTH, HEIGHT * 9),
             (2 ** 31 - 1, 2 ** 31 - 1), (2 ** 32 - 1, 1), (65535, 65535), (900, 1000)]
    if data[:4] == b'\x89PNG':
        rest = chunks_of(data)
        return [joined([(rest[0][0], struct.pack('>II', *size) + rest[0][1][8:])] + rest[1:])
                for size in sizes]
    marker = next(at for at in range(2, len(data))
                  if data[at] == 255 and data[at + 1] in (192, 194))
    return [data[:marker + 5] + struct.pack('>HH', height % 65536, width % 65536)
            + data[marker + 9:] for width, height in sizes]


DAMAGES = {function.__name__: function
           for function in (truncated, flipped, shuffled, resealed, resized)}
DAMAGES['flipped heads'] = lambda data, rng: flipped(data, rng, 0, 60)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """(folder, EvalSet, TrainSet) of one image and one mask, which a test overwrites."""
    monkeypatch.setenv('DSSN_MAX_PIXELS', '1000000')
    files = {'image.jpg': FILES['jpeg'], 'mask.png': FILES['mask']}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / 'config.yaml'
    path.write_text(f'dataset: tiny\nnclass: {NCLASS}\ncrop_size: 33\ndata_root: {tmp_path}\n')
    cfg = config.load(str(path))
    samples = [Sample('image.jpg', 'mask.png', 'list line 1')]
    return tmp_path, EvalSet(cfg, samples), TrainSet(cfg, samples, samples)


def check_item(item, name):
    """Check an item; returns whether it is an error, which must name the file."""
    if isinstance(item, UserError):
        assert name in str(item) and 'list line 1' in str(item) and '\n' not in str(item)
        assert len(str(item)) < 2000
        return True
    tensors = [t for part in item for t in (part if isinstance(part, tuple) else [part])
               if torch.is_tensor(t)]
    for tensor in tensors:
        if tensor.dim() == 3:
            assert tensor.dtype == torch.uint8 and tensor.shape[0] == 3
        elif tensor.dim() == 2:
            assert tensor.dtype == torch.bool or bool(((tensor < NCLASS) | (tensor == 255)).all())
            assert min(tensor.shape) > 0
    return False


@pytest.mark.parametrize('damage', sorted(DAMAGES))
@pytest.mark.parametrize('kind', sorted(FILES))
def test_a_damaged_file_gives_a_sample_or_an_error(world, kind, damage):
    folder, eval_set, train_set = world
    name = 'mask.png' if kind.startswith('mask') else 'image.jpg'
    rng = np.random.default_rng([sorted(FILES).index(kind), sorted(DAMAGES).index(damage)])
    copies = DAMAGES[damage](FILES[kind], rng)
    refused = 0
    for copy in copies:
        (folder / name).write_bytes(copy)
        started = time.time()
        item = eval_set[0]
        bad = check_item(item, name)
        if not bad:
            assert item[0].shape[1:] == item[1].shape
        refused += bad
        assert check_item(train_set[RowIndices(0, 0, 0, 0, 0)], name) == bad
        assert time.time() - started < TIME_LIMIT
    if damage in ('truncated', 'resized'):
        assert refused >= len(copies) // 2
    elif copies:
        assert refused


@pytest.mark.parametrize('kind', sorted(FILES))
def test_an_undamaged_file_gives_a_sample(world, kind):
    folder, eval_set, train_set = world
    name = 'mask.png' if kind.startswith('mask') else 'image.jpg'
    (folder / name).write_bytes(FILES[kind])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        image, label, _ = eval_set[0]
    size = (WIDTH, HEIGHT) if kind == 'jpeg with exif' else (HEIGHT, WIDTH)  # turned, and its mask
    assert image.shape == (3, *size) and label.shape == size
    assert not isinstance(train_set[RowIndices(0, 0, 0, 0, 0)], UserError)
