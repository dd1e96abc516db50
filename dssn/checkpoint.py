"""Checkpoints: plain values and tensors, written whole or not at all, read without running code."""
import os

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
        return torch_files.read(path)
    except torch_files.Refused as error:
        raise UserError(f'{path}: refused: {error}; a checkpoint holds containers, numbers, text '
                        'and tensors only: save it again as a plain state_dict') from None
    except Exception as error:  # a damaged file makes the readers raise almost anything
        text = ' '.join(str(error).split())[:200]
        raise UserError(f'{path}: not a readable checkpoint ({type(error).__name__}: {text}); it '
                        'may be damaged or not from torch.save: take another copy') from None


def save(path, content):
    """Write `content` to a temporary file, then rename it: `path` is never half-written."""
    temporary = f'{path}.tmp'
    with open(temporary, 'wb') as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
