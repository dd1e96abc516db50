"""Weights in files: read without running code, chosen by role, loaded completely."""
import hashlib
import os

import torch

from dssn.errors import UserError
from dssn.models import torch_file

CHECKSUM = 'content_sha256'  # key of a checkpoint with the `checksum` of all other keys


def checksum(content):
    """SHA-256 of all keys, values and tensors of a mapping, hexadecimal."""
    digest = hashlib.sha256()
    _update(digest, {key: value for key, value in content.items() if key != CHECKSUM})
    return digest.hexdigest()


def _update(digest, value):
    if torch.is_tensor(value):
        value = value.detach().cpu()
        digest.update(f'tensor {value.dtype} {tuple(value.shape)} '.encode())
        if value.dtype == torch.bfloat16:  # NumPy has no such type
            value = value.view(torch.int16)
        digest.update(value.numpy().tobytes())
    elif isinstance(value, dict):
        digest.update(f'mapping {len(value)} '.encode())
        for key, item in value.items():
            _update(digest, key)
            _update(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.update(f'sequence {len(value)} '.encode())
        for item in value:
            _update(digest, item)
    else:
        digest.update(f'{type(value).__name__} {value!r} '.encode())


def read_torch_file(path):
    """The object that `torch.save` wrote into a file, on the CPU. No code of the file is run.

    Raises:
        UserError: the file does not exist, is not a checkpoint, is damaged, or contains other
            objects than containers, numbers, text and tensors.
    """
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such checkpoint; a run keeps best.pth, t_best.pth and '
                        'latest.pth in its folder')
    try:
        content = torch_file.read(path)
        if isinstance(content, dict) and CHECKSUM in content:
            if content.pop(CHECKSUM) != checksum(content):
                raise UserError(f'{path}: damaged: its content has another checksum than when '
                                'it was saved; take another copy')
        return content
    except UserError:
        raise
    except torch_file.Refused as error:
        raise UserError(f'{path}: refused: {error}; a checkpoint contains only containers, '
                        'numbers, text and tensors: save it again as a plain state_dict') from None
    except Exception as error:  # the readers raise almost any exception for a damaged file
        text = ' '.join(str(error).split())[:200]
        raise UserError(f'{path}: not a readable checkpoint ({type(error).__name__}: {text}); it '
                        'may be damaged or not from torch.save: take another copy') from None


def network_weights(model):
    """The state of an unwrapped network as a plain dict of CPU tensors."""
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


# Keys of the networks in our checkpoints and in those of the DSSN and UniMatch releases.
_KEYS = {'student': ('model', 'state_dict'), 'teacher': ('teacher', 'model_ema')}


def roles_held(content):
    """The roles (student, teacher) that have a key in the content of `read_torch_file`."""
    return [role for role, keys in _KEYS.items() if isinstance(content, dict)
            and any(isinstance(content.get(key), dict) for key in keys)]


def choose_weights(content, path, role=None):
    """The state of a network in a checkpoint of ours or of the DSSN or UniMatch release.

    Args:
        content: of the file, from `read_torch_file`. path: for errors.
        role: 'student' or 'teacher'; None: the student if the file has both, else the one it has.

    Returns:
        ({name: tensor} without the prefix `module.`, role). The student may be the whole content or
        under `model`, the teacher under `teacher` or `model_ema`. A public file with one network
        has no role and is used for either.

    Raises:
        UserError: the file does not contain the weights of this role.
    """
    content = content if isinstance(content, dict) else {}
    holds = roles_held(content)
    single = content.get('weights')
    if not isinstance(single, str) or single not in _KEYS:
        single = 'teacher' if holds == ['teacher'] else None
    if role and single and role != single:
        raise UserError(f'{path}: has the weights of the {single}, not of the {role}; leave '
                        f'--weights out, or take the file of the {role} (best.pth: student, '
                        't_best.pth: teacher)')
    role = role or single or 'student'
    places = [name for name in _KEYS[role] + _KEYS['student']
              if isinstance(content.get(name), dict)]
    state = content[places[0]] if places else content
    if not state or not all(isinstance(name, str) and torch.is_tensor(value)
                            for name, value in state.items()):
        raise UserError(f'{path}: has no network weights (found: '
                        f'{", ".join(map(str, content))[:200] or "no mapping"}); expected a state '
                        'dict, as the whole content or under `model`')
    return {name[7:] if name.startswith('module.') else name: tensor
            for name, tensor in state.items()}, role


def load_weights(model, state, path, new_classifier=False):
    """Load a complete state dict into a network.

    Args:
        state: {name: tensor} from `choose_weights`. path: of its file, for errors.
        new_classifier: whether a classifier with another number of classes is not loaded.

    Returns:
        Names of tensors that were not loaded: those of the classifier, or none.

    Raises:
        UserError: tensors are missing, unknown or have another shape.
    """
    own = model.state_dict()
    state = dict(state)
    left = []
    if new_classifier:
        left = [name for name in own if name.startswith('classifier.') and name in state
                and state[name].shape != own[name].shape]
        for name in left:
            state.pop(name)
    # Files of old PyTorch releases have no num_batches_tracked; it has no effect here.
    missing = [n for n in own if n not in state and n not in left
               and not n.endswith('num_batches_tracked')]
    extra = [n for n in state if n not in own]
    misshapen = [f'{n} {tuple(state[n].shape)} instead of {tuple(own[n].shape)}' for n in own
                 if n in state and state[n].shape != own[n].shape]
    problems = [f'{len(names)} {word} (first: {names[0]})' for names, word in
                ((missing, 'missing'), (extra, 'unknown'), (misshapen, 'of another shape'))
                if names]
    if problems:
        raise UserError(f'{path}: weights of another architecture: {"; ".join(problems)}; build '
                        'the network as in the config of the checkpoint (backbone, stem, '
                        'decoder_channels, base_channels, nclass)')
    model.load_state_dict(state, strict=False)
    return left
