"""Reading what `torch.save` wrote, without `torch.load`: the file's pickle may name the few things
listed here and nothing else, and no size that a file states is believed.

Older releases of `torch.load` do believe it: where the pickle states more numbers than a record
holds, 1.8.1 and 2.0.0 hand out memory behind the record.
"""
import collections
import io
import os
import pickle
import pickletools
import re
import struct
import sys
import tarfile
import zipfile

import numpy as np
import torch

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950a86a20f9469cfc6c, 1001  # how files before PyTorch 1.6 begin
MOST_DIMENSIONS = 32
DEEPEST = 100  # tuples in one another
# Storage types: (dtype, NumPy's dtype of the same bytes).
_STORAGES = {
    'FloatStorage': (torch.float32, np.float32), 'DoubleStorage': (torch.float64, np.float64),
    'HalfStorage': (torch.float16, np.float16), 'BFloat16Storage': (torch.bfloat16, np.int16),
    'LongStorage': (torch.int64, np.int64), 'IntStorage': (torch.int32, np.int32),
    'ShortStorage': (torch.int16, np.int16), 'CharStorage': (torch.int8, np.int8),
    'ByteStorage': (torch.uint8, np.uint8), 'BoolStorage': (torch.bool, np.uint8),
}


class Refused(Exception):
    """What a file holds is not admitted, or it states what is not so."""


def read(path):
    """The object in a file of `torch.save`, tensors on the CPU.

    Raises:
        Refused: it holds something else than containers, numbers, text and tensors, or lies about
            sizes. Exception: almost any other, where the file is damaged or of another kind.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _read_zip(archive, os.path.getsize(path))
    if _is_tar(path):
        raise Refused('a tar archive, as PyTorch wrote before 0.2')
    with open(path, 'rb') as file:
        return _read_legacy(file, os.path.getsize(path))


def _is_tar(path):
    try:
        tarfile.open(path, 'r:').close()
        return True
    except tarfile.TarError:
        return False


# PyTorch 1.6 and newer: a zip archive of a pickle and one record for each storage.

def _read_zip(archive, size):
    records = {}
    for info in archive.infolist():
        # The raw names: the others can be made to differ from those that PyTorch reads.
        name = info.orig_filename.partition('/')[2]
        if name in records:
            raise Refused(f'two records are called {name}')
        if name == 'constants.pkl':
            raise Refused('a TorchScript program, and programs are not run')
        records[name] = info
    if 'data.pkl' not in records:
        raise ValueError('a zip archive without data.pkl')
    if sum(info.file_size for info in records.values()) > size:
        raise Refused('its records would unpack to more bytes than the file has')

    def content(name):
        return archive.read(records[name])  # compares the checksum
    if 'byteorder' in records:
        _check_order(content('byteorder') == b'little')
    flat = {}

    def storage(key, kind, count):
        if (key, kind) not in flat:
            flat[key, kind] = _numbers(content(f'data/{key}'), kind, count)
        return flat[key, kind]
    for name in records:  # those too that no tensor is of, such as `version`
        if not name.startswith('data/'):
            content(name)
    return _Unpickler(content('data.pkl'), storage).load()


# Before 1.6: five pickles, then the bytes of all storages.

def _read_legacy(file, size):
    magic, protocol = _next_pickle(file), _next_pickle(file)
    if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise ValueError('it does not begin as a file of torch.save does')
    _check_order(_next_pickle(file)['little_endian'])
    flat, left = {}, [size]

    def storage(key, kind, count):
        if key not in flat:
            left[0] -= count * torch.zeros((), dtype=_STORAGES[kind][0]).element_size()
            if left[0] < 0:
                raise Refused(f'storage {key} is stated to be larger than the file')
            flat[key] = kind, torch.zeros(count, dtype=_STORAGES[kind][0])
        if flat[key][0] != kind:
            raise Refused(f'storage {key} has two types')
        return flat[key][1]
    content = _next_pickle(file, storage)
    keys = _next_pickle(file)
    if sorted(keys) != sorted(flat):
        raise ValueError('other storages follow than it names')
    for key in keys:
        kind, numbers = flat[key]
        count, = struct.unpack('<q', file.read(8))
        data = file.read(numbers.numel() * numbers.element_size())
        if count != numbers.numel():
            raise Refused(f'storage {key} has {count} numbers, not {numbers.numel()}')
        numbers.copy_(_numbers(data, kind, count))
    return content


def _next_pickle(file, storage=None):
    start = file.tell()
    for _ in pickletools.genops(file):
        pass
    end = file.tell()
    file.seek(start)
    return _Unpickler(file.read(end - start), storage).load()


# Both.

def _check_order(little):
    if little != (sys.byteorder == 'little'):
        raise ValueError('it was written on a machine of another byte order')


def _numbers(data, kind, count):
    """The bytes of a storage as a flat tensor of its `count` numbers."""
    dtype, like = _STORAGES[kind]
    if len(data) != count * np.dtype(like).itemsize:
        raise Refused(f'a storage is stated to have {count} numbers, but has {len(data)} bytes')
    if not data:
        return torch.zeros(0, dtype=dtype)
    flat = torch.from_numpy(np.frombuffer(bytearray(data), like))
    if dtype is torch.bool:
        return flat != 0
    return flat if flat.dtype is dtype else flat.view(dtype)


def _check_operations(data):
    """Refuse a pickle that makes Python fall over: by its operations alone, doing none of them."""
    stack, marks, remembered = [], [], {}  # depths: tuples inside one another
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ('PUT', 'BINPUT', 'LONG_BINPUT'):
            # Python makes room for as many remembered objects as such a number says.
            if argument > len(data):
                raise Refused('it numbers more objects than it has')
            remembered[argument] = stack[-1]
        elif operation.name == 'MEMOIZE':
            remembered[len(remembered)] = stack[-1]
        elif operation.name in ('GET', 'BINGET', 'LONG_BINGET'):
            stack.append(remembered[argument])
        elif operation.name == 'MARK':
            marks.append(len(stack))
        else:
            takes = operation.stack_before
            start = len(stack) - len(takes)
            if pickletools.markobject in takes:
                start = marks.pop() - takes.index(pickletools.markobject)
            # A key is hashed: of a tuple by recursion, without a limit.
            depth = max(stack[max(start, 0):], default=0) + ('TUPLE' in operation.name)
            if depth > DEEPEST:
                raise Refused(f'it holds more than {DEEPEST} tuples in one another')
            stack[max(start, 0):] = [depth] * len(operation.stack_after)


class _Unpickler(pickle.Unpickler):
    """Of a file's pickle. `storage(key, kind, count)` gives the flat tensor of a storage."""

    def __init__(self, data, storage=None):
        _check_operations(data)
        super().__init__(io.BytesIO(data), encoding='utf-8')  # of files from Python 2
        self.storage = storage

    def find_class(self, module, name):
        if module in ('torch', 'torch.storage') and name in _STORAGES:
            return name
        if (module, name) not in _ADMITTED:
            raise Refused(f'{module}.{name} is not admitted in a checkpoint')
        return _ADMITTED[module, name]

    def persistent_load(self, identity):
        """The storage that ('storage', type, key, device, count, part) stands for."""
        if self.storage is None or not isinstance(identity, tuple) or len(identity) not in (5, 6) \
                or identity[0] != 'storage':
            raise Refused('it holds a module or another object of a class')
        _, kind, key, _, count = identity[:5]
        if kind not in _STORAGES or not isinstance(key, str) or not _whole(count):
            raise Refused('it holds a storage of no known type')
        flat = self.storage(key, kind, count)
        if len(identity) == 6 and identity[5] is not None:
            _, start, length = identity[5]
            return flat[start:start + length]
        return flat


def _whole(number):
    return type(number) is int and number >= 0


class _Sealed:
    """A function that a pickle may call, but not change: a pickle can set attributes."""

    __slots__ = 'function',

    def __init__(self, function):
        object.__setattr__(self, 'function', function)

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __setattr__(self, name, value):
        raise Refused(f'it changes {self.function.__name__}')


def _tensor(flat, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    """The view of a storage that a pickle describes, where it lies inside."""
    size, stride = tuple(size), tuple(stride)
    if not torch.is_tensor(flat) or flat.dim() != 1 or len(size) != len(stride) \
            or len(size) > MOST_DIMENSIONS or not all(map(_whole, (offset, *size, *stride))):
        raise Refused('a tensor is described wrongly')
    count = 1
    for side in size:
        count *= side
    last = offset + sum((side - 1) * step for side, step in zip(size, stride))
    # Not one number repeated without end either: a copy of it would fill the memory.
    if count > flat.numel() or (count and last >= flat.numel()):
        raise Refused('a tensor is stated to be larger than its storage')
    # An empty one may lie anywhere.
    view = flat.as_strided(size, stride, offset) if count else flat.new_zeros(size)
    return view.requires_grad_() if requires_grad is True else view


def _parameter(data, requires_grad=True, hooks=None):
    return torch.nn.Parameter(data, requires_grad is True)


class _NumberType:
    """What stands for a `numpy.dtype`, of which only the plain name is believed."""

    def __init__(self, name, *_):
        if not isinstance(name, str) or not re.fullmatch('[biufc][0-9]{1,2}', name):
            raise Refused('a NumPy scalar that is not a number')
        self.name, self.order = name, '='

    def __setstate__(self, state):
        if state[1] in ('<', '>'):
            self.order = state[1]


def _numpy_scalar(number_type, data=b''):
    """NumPy's scalar from its bytes; numbers only, since others hold pickles or addresses."""
    if type(number_type) is not _NumberType or not isinstance(data, bytes):
        raise Refused('a NumPy scalar that is not a number')
    dtype = np.dtype(number_type.name).newbyteorder(number_type.order)
    if len(data) != dtype.itemsize:
        raise Refused('a NumPy scalar of another length than its type')
    return np.frombuffer(data, dtype, 1)[0]


def _encode(text, encoding):
    """How pickles of protocol 2 hold bytes."""
    if not isinstance(text, str) or encoding != 'latin1':
        raise Refused('it calls a codec')
    return text.encode('latin1')


def _size(sides=()):
    if not all(type(side) is int for side in sides):
        raise Refused('a size is no list of numbers')
    return torch.Size(sides)


def _device(*names):
    return torch.device(*names)


# All that a pickle may name, beside the storages: containers, how tensors are rebuilt, and the
# NumPy scalars that public checkpoints hold.
_ADMITTED = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('torch._utils', '_rebuild_tensor'): _Sealed(_tensor),
    ('torch._utils', '_rebuild_tensor_v2'): _Sealed(_tensor),
    ('torch._utils', '_rebuild_parameter'): _Sealed(_parameter),
    ('torch.nn.parameter', 'Parameter'): _Sealed(_parameter),
    ('torch', 'Size'): _Sealed(_size),
    ('torch', 'device'): _Sealed(_device),
    ('numpy', 'dtype'): _Sealed(lambda *arguments: _NumberType(*arguments)),
    ('numpy.core.multiarray', 'scalar'): _Sealed(_numpy_scalar),
    ('numpy._core.multiarray', 'scalar'): _Sealed(_numpy_scalar),
    ('_codecs', 'encode'): _Sealed(_encode),
}
