"""Checkpoints: plain values and tensors, written whole or not at all, read without running code."""
import hashlib
import os
import zipfile

import torch

from dssn import torch_files
from dssn.errors import UserError


def read_torch_file(path):
    """Whatever `torch.save` wrote into a file, on the CPU; no code of the file runs.

    Raises:
        UserError: no such file, not a checkpoint, damaged, or holding other objects than
            containers, numbers, text and tensors.
    """
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such checkpoint; a run keeps best.pth, t_best.pth and '
                        'latest.pth in its folder')
    try:
        content = torch_files.read(path)
        if isinstance(content, dict) and CHECKSUM in content:
            if content.pop(CHECKSUM) != checksum(content):
                raise UserError(f'{path}: damaged: its content has another checksum than it had '
                                'when it was saved; take another copy')
        return content
    except UserError:
        raise
    except torch_files.Refused as error:
        raise UserError(f'{path}: refused: {error}; a checkpoint holds containers, numbers, text '
                        'and tensors only: save it again as a plain state_dict') from None
    except Exception as error:  # a damaged file makes the readers raise almost anything
        text = ' '.join(str(error).split())[:200]
        raise UserError(f'{path}: not a readable checkpoint ({type(error).__name__}: {text}); it '
                        'may be damaged or not from torch.save: take another copy') from None


def save(path, content, keep=None):
    """Write a mapping of plain values and tensors under `path`, whole and checked, or not at all.

    Args:
        keep: path under which the file that stood at `path` is kept; it goes otherwise.

    Raises:
        OSError: no room, no right to write, or the file does not read back as written. What stood
            at `path` still does.
    """
    temporary = f'{path}.tmp'
    try:
        with open(temporary, 'wb') as file:
            target = _Target(file)
            torch.save({**content, CHECKSUM: checksum(content)}, target)
            if target.error:
                raise target.error
            file.flush()
            os.fsync(file.fileno())
        with zipfile.ZipFile(temporary) as archive:
            if archive.testzip():
                raise OSError('it reads back otherwise than it was written')
        if keep and os.path.exists(path):
            _keep(path, keep)
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path) or '.')
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        # PyTorch's writer turns whatever interrupts it (a signal of a dead loader) into the second.
        try:
            os.remove(temporary)
        except OSError:
            pass
        raise error if isinstance(error, OSError) else \
            OSError(' '.join(str(error).split())) from None


class _Target:
    """A file for torch.save that takes everything and reports the first error at the end.

    An error in the midst of PyTorch's writer may end the process: it raises again while closing.
    """

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data):
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self):
        pass


def _keep(path, kept):
    """Let `kept` name the file at `path`, which goes on to exist under both names."""
    try:
        if os.path.exists(f'{kept}.tmp'):
            os.remove(f'{kept}.tmp')
        os.link(path, f'{kept}.tmp')
        os.replace(f'{kept}.tmp', kept)
    except OSError:  # a file system without links: for a moment only `kept` is there
        os.replace(path, kept)


def _sync_folder(folder):
    """Have the new name on the disk; not every system opens folders."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


CHECKSUM = 'content_sha256'  # the key of a checkpoint that holds the `checksum` of all others


def checksum(content):
    """SHA-256 over all keys, values and tensors of a mapping, hexadecimal."""
    found = hashlib.sha256()
    _feed(found, {key: value for key, value in content.items() if key != CHECKSUM})
    return found.hexdigest()


def _feed(found, value):
    if torch.is_tensor(value):
        value = value.detach().cpu()
        found.update(f'tensor {value.dtype} {tuple(value.shape)} '.encode())
        if value.dtype == torch.bfloat16:  # NumPy has none
            value = value.view(torch.int16)
        found.update(value.numpy().tobytes())
    elif isinstance(value, dict):
        found.update(f'mapping {len(value)} '.encode())
        for key, item in value.items():
            _feed(found, key)
            _feed(found, item)
    elif isinstance(value, (list, tuple)):
        found.update(f'sequence {len(value)} '.encode())
        for item in value:
            _feed(found, item)
    else:
        found.update(f'{type(value).__name__} {value!r} '.encode())


LATEST, PREVIOUS, DAMAGED = 'latest.pth', 'previous.pth', 'damaged.pth'


def newest(folder):
    """(content, path, warning or None) of the newest state that a run left; (None, None, None).

    A damaged latest.pth is put aside as damaged.pth, and the state before it is taken.

    Raises:
        UserError: no state that is there can be read.
    """
    latest, previous = os.path.join(folder, LATEST), os.path.join(folder, PREVIOUS)
    try:
        if os.path.exists(latest):
            return read_torch_file(latest), latest, None
        if not os.path.exists(previous):
            return None, None, None
        reason = f'{latest}: is not there'
    except UserError as error:
        reason = str(error)
    try:
        content = read_torch_file(previous)
    except UserError as error:
        raise UserError(f'{reason}; nor can the state before it be read: {error}; start over with '
                        '--fresh, which moves the old files aside') from None
    if os.path.exists(latest):
        os.replace(latest, os.path.join(folder, DAMAGED))
    return content, previous, f'warning: {reason}; going on from {previous}, the state before it'


def weights(model):
    """The network's state as a plain dict of CPU tensors, without `module.`."""
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


# Where checkpoints of ours, of DSSN's and of UniMatch's release keep a network's state.
_KEYS = {'student': ('model', 'state_dict'), 'teacher': ('teacher', 'model_ema')}


def roles_held(content):
    """Which of student and teacher have a key of their own in what `read_torch_file` gave."""
    return [role for role, keys in _KEYS.items() if isinstance(content, dict)
            and any(isinstance(content.get(key), dict) for key in keys)]


def choose_weights(content, path, role=None):
    """The network's state inside a checkpoint of ours, of DSSN's or of UniMatch's release.

    Args:
        content: what `read_torch_file` gave. role: 'student', 'teacher', or None for the student
            where the file holds both, else for the one it holds.

    Returns:
        ({name: tensor} without a `module.` prefix, role). The student is found bare or under
        `model`, the teacher under `teacher` or `model_ema`. A public file with one network does
        not say whose it is: it serves as either.
    """
    content = content if isinstance(content, dict) else {}
    holds = roles_held(content)
    single = content.get('weights')
    if not isinstance(single, str) or single not in _KEYS:
        single = 'teacher' if holds == ['teacher'] else None
    if role and single and role != single:
        raise UserError(f"{path}: holds the {single}'s weights, not the {role}'s; leave --weights "
                        f'out, or take the {role}\'s file (best.pth: student, t_best.pth: teacher)')
    role = role or single or 'student'
    places = [name for name in _KEYS[role] + _KEYS['student']
              if isinstance(content.get(name), dict)]
    state = content[places[0]] if places else content
    if not state or not all(isinstance(name, str) and torch.is_tensor(value)
                            for name, value in state.items()):
        raise UserError(f'{path}: holds no network weights (found: '
                        f'{", ".join(map(str, content))[:200] or "no mapping"}); expected a state '
                        'dict, bare or under `model`')
    return {name[7:] if name.startswith('module.') else name: tensor
            for name, tensor in state.items()}, role


def load_weights(model, state, path, new_classifier=False):
    """Load a state dict into the network, all of it, or say what does not fit.

    Args:
        state: {name: tensor} from `choose_weights`. new_classifier: whether a classifier of another
            class count is left as initialised.

    Returns:
        Names that were left as initialised: empty, or the classifier's.
    """
    own = model.state_dict()
    state = {name: tensor for name, tensor in state.items()}
    left = []
    if new_classifier:
        left = [name for name in own if name.startswith('classifier.') and name in state
                and state[name].shape != own[name].shape]
        for name in left:
            state.pop(name)
    # Files from before PyTorch counted batches lack these; they decide nothing here.
    missing = [n for n in own if n not in state and n not in left
               and not n.endswith('num_batches_tracked')]
    extra = [n for n in state if n not in own]
    unlike = [f'{n} {tuple(state[n].shape)} instead of {tuple(own[n].shape)}' for n in own
              if n in state and state[n].shape != own[n].shape]
    problems = [f'{len(names)} {word} (first: {names[0]})' for names, word in
                ((missing, 'missing'), (extra, 'unknown'), (unlike, 'of another shape')) if names]
    if problems:
        raise UserError(f'{path}: weights of another architecture: {"; ".join(problems)}; build '
                        "the network as the checkpoint's config does (backbone, stem, "
                        'decoder_channels, base_channels, nclass)')
    model.load_state_dict(state, strict=False)
    return left
