"""Reads files of `torch.save` without running code that is named in the file.

From PyTorch 2.10 on this is `torch.load(weights_only=True)`. In older releases that function can be
made to run code (CVE-2025-32434, CVE-2026-24747), so an unpickler of our own is used there. It
accepts only containers, tensors and NumPy numbers. Its memory is in proportion to the size of the
file, if the file is not compressed. An untrusted file may crash such a PyTorch, but it cannot run
code.
"""
import collections
import math
import os
import pickle
import pickletools
import re
import struct
import sys
import zipfile

import numpy as np
import torch

LEGACY_MAGIC = 0x1950a86a20f9469cfc6c  # the first object in files from before PyTorch 1.6
# {storage type: (dtype, NumPy type with the same number of bytes)}
STORAGES = {
    'FloatStorage': (torch.float32, np.float32), 'DoubleStorage': (torch.float64, np.float64),
    'HalfStorage': (torch.float16, np.float16), 'BFloat16Storage': (torch.bfloat16, np.int16),
    'LongStorage': (torch.int64, np.int64), 'IntStorage': (torch.int32, np.int32),
    'ShortStorage': (torch.int16, np.int16), 'CharStorage': (torch.int8, np.int8),
    'ByteStorage': (torch.uint8, np.uint8), 'BoolStorage': (torch.bool, np.bool_),
}


class Refused(Exception):
    """The file contains objects other than containers, numbers, text and tensors."""


def torch_is_safe(version=torch.__version__):
    """Whether `weights_only` of this PyTorch is safe: from 2.10 on."""
    return tuple(int(number) for number in re.findall(r'\d+', version)[:2]) >= (2, 10)


def read(path):
    """The object in a file of `torch.save`, tensors on the CPU.

    Raises:
        Refused: the file names a function or class that is not allowed.
        Exception: almost any other, if the file is damaged or of another kind.
    """
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith('/constants.pkl') for name in archive.namelist()):
                raise Refused('it is a TorchScript program, and programs are not run')
            damaged = archive.testzip()  # PyTorch does not verify the checksums
            if damaged:
                raise ValueError(f'the checksum of the record {damaged} is wrong')
    if not torch_is_safe():
        return read_zip(path) if is_zip else read_legacy(path)
    allowed = [(_numpy_scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')]
    with torch.serialization.safe_globals(allowed + [(_NumberType, 'numpy.dtype')]):
        try:
            return torch.load(path, map_location='cpu', weights_only=True)
        except pickle.UnpicklingError as error:
            # Only the reason, without PyTorch's advice to trust the file.
            found = re.search(r'WeightsUnpickler error: (.*?)(\. Please|$)', str(error),
                              re.MULTILINE)
            raise Refused(found.group(1) if found else error) from None


def read_zip(path):
    """The object in a file of PyTorch 1.6 or newer: a pickle and a record for each storage."""
    with zipfile.ZipFile(path) as archive:
        place = next((name for name in archive.namelist() if name.endswith('/data.pkl')), None)
        if place is None:
            raise ValueError('a zip archive without data.pkl')
        folder, flat = place[:-len('data.pkl')], {}
        if f'{folder}byteorder' in archive.namelist():
            _check_byte_order(archive.read(f'{folder}byteorder') == b'little')

        def storage(kind, key, count):
            if key not in flat:
                flat[key] = _numbers(archive.read(f'{folder}data/{key}'), kind, count)
            return flat[key]
        with archive.open(place) as file:
            return _Unpickler(file, storage).load()


def read_legacy(path):
    """The object in a file from before PyTorch 1.6: five pickles, then the bytes of storages."""
    with open(path, 'rb') as file:
        size, needed = os.fstat(file.fileno()).st_size, 0
        if _Unpickler(file).load() != LEGACY_MAGIC:
            raise ValueError('it does not begin like a file of torch.save')
        _Unpickler(file).load()  # the version of the format
        _check_byte_order(_Unpickler(file).load()['little_endian'])
        flat = {}

        def storage(kind, key, count):
            nonlocal needed
            if key not in flat:
                needed += count * np.dtype(STORAGES[kind][1]).itemsize
                if needed > size:
                    raise ValueError(f'its storages have {needed} bytes, the file has {size}')
                flat[key] = kind, torch.zeros(count, dtype=STORAGES[kind][0])
            return flat[key][1]
        content = _Unpickler(file, storage).load()
        for key in _Unpickler(file).load():
            kind, numbers = flat[key]
            count, = struct.unpack('<q', file.read(8))
            data = file.read(numbers.numel() * numbers.element_size())
            numbers.copy_(_numbers(data, kind, count))
        return content


def _check_byte_order(little):
    if little != (sys.byteorder == 'little'):
        raise ValueError('it was written on a machine with another byte order')


def _numbers(data, kind, count):
    """A flat tensor of `count` numbers from the bytes of a storage."""
    dtype, like = STORAGES[kind]
    if len(data) != count * np.dtype(like).itemsize:
        raise Refused(f'a storage should have {count} numbers, but has {len(data)} bytes')
    flat = torch.from_numpy(np.frombuffer(bytearray(data), like)) if data else torch.zeros(0)
    return flat.view(dtype) if dtype is torch.bfloat16 else flat.to(dtype)


class _Unpickler(pickle.Unpickler):
    """Unpickles containers, tensors and numbers only.

    Args:
        storage: function (kind, key, count) that returns the flat tensor of a storage; None: the
            pickle must not contain storages.
    """

    def __init__(self, file, storage=None):
        super().__init__(file, encoding='utf-8')  # for files from Python 2
        self.file, self.storage = file, storage

    def load(self):
        """The object of the pickle that begins at the file's position.

        Raises:
            ValueError: an object in it has too high a number.
        """
        start = self.file.tell()
        for count, (operation, argument, _) in enumerate(pickletools.genops(self.file)):
            # The unpickler keeps numbered objects in an array, whose length is the highest number.
            # A pickle numbers its objects consecutively, so a higher number is damage; it could
            # need many gigabytes.
            if operation.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and argument > count:
                raise ValueError(f'operation {count} of a pickle numbers an object {argument}')
        self.file.seek(start)
        return super().load()

    def find_class(self, module, name):
        if module in ('torch', 'torch.storage') and name in STORAGES:
            return name
        if (module, name) not in ALLOWED:
            raise Refused(f'{module}.{name} is not allowed in a checkpoint')
        found = ALLOWED[module, name]
        # A new function each time, since a pickle can set attributes of the objects it names.
        return found if found is collections.OrderedDict else lambda *arguments: found(*arguments)

    def persistent_load(self, identity):
        """The storage with the identity ('storage', kind, key, device, count)."""
        if self.storage is None or identity[0] != 'storage' or identity[1] not in STORAGES:
            raise Refused('it contains a module or another object of a class')
        return self.storage(identity[1], str(identity[2]), identity[4])


def _tensor(flat, offset, size, stride, requires_grad=False, *_):
    """A view of a storage. It is checked here: `as_strided` of old releases overflows."""
    if not all(isinstance(n, int) and 0 <= n < 2 ** 40 for n in (offset, *size, *stride)) \
            or len(size) != len(stride) or math.prod(size) > 2 ** 40:
        raise Refused('it contains a tensor with an impossible shape')
    if all(size) and offset + sum((n - 1) * step for n, step in zip(size, stride)) >= len(flat):
        raise Refused(f'it contains a tensor larger than its storage of {len(flat)} numbers')
    view = flat.as_strided(size, stride, offset)
    return view.requires_grad_() if requires_grad else view


def _parameter(data, requires_grad=True, *_):
    return torch.nn.Parameter(data, requires_grad)


class _NumberType:
    """Replaces `numpy.dtype` in a pickle; only its name and byte order are used."""

    def __init__(self, name, *_):
        if not isinstance(name, str) or not re.fullmatch('[biufc][0-9]{1,2}', name):
            raise Refused('it contains a NumPy scalar that is not a number')
        self.name, self.order = name, '='

    def __setstate__(self, state):
        self.order = state[1] if state[1] in ('<', '>') else '='


def _numpy_scalar(number_type, data=b''):
    """A NumPy scalar from its bytes. Only numbers: others contain pickles or addresses."""
    if type(number_type) is not _NumberType or not isinstance(data, bytes):
        raise Refused('it contains a NumPy scalar that is not a number')
    return np.frombuffer(data, np.dtype(number_type.name).newbyteorder(number_type.order), 1)[0]


def _encode(text, encoding):
    """Bytes in a pickle of protocol 2."""
    if encoding != 'latin1':
        raise Refused('it calls a codec')
    return text.encode('latin1')


# The functions and classes that a pickle may name, in addition to storages.
ALLOWED = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('torch._utils', '_rebuild_tensor'): _tensor,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_parameter'): _parameter,
    ('torch.nn.parameter', 'Parameter'): _parameter,
    ('torch', 'Size'): torch.Size,
    ('torch', 'device'): torch.device,
    ('numpy', 'dtype'): _NumberType,
    ('numpy.core.multiarray', 'scalar'): _numpy_scalar,
    ('numpy._core.multiarray', 'scalar'): _numpy_scalar,
    ('_codecs', 'encode'): _encode,
}
