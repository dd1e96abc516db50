"""Weights in files: read without running code, chosen by role, loaded completely."""
import hashlib
import os
import re
from typing import Dict, NamedTuple, Tuple

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


# Words in a key or prefix that mark the averaged network. Everything else is a student.
TEACHER_WORDS = {'teacher', 'ema'}
# Parts of a name that PyTorch inserts, at any place, for compiled or wrapped modules.
WRAPPERS = {'_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'}
DEEPEST, LONGEST_PREFIX = 4, 8  # nested mappings that are searched; parts of a prefix


class Candidate(NamedTuple):
    """Tensors of a file that have names of the network, all with the same prefix."""
    place: Tuple[str, ...]  # keys that lead to their mapping
    prefix: str             # of their names in it, such as 'module.'
    tensors: Dict[str, torch.Tensor]  # by the names in the network

    @property
    def label(self):
        """'state_dict: module.', for messages."""
        return ': '.join((*self.place, self.prefix)).rstrip(': ')[:80] or 'the whole file'

    @property
    def role(self):
        return role_of((*self.place, self.prefix))


def role_of(words):
    """'student' or 'teacher', from the keys and the prefix of tensors."""
    found = set(re.findall('[a-z]+', ' '.join(words).lower()))
    return 'teacher' if found & TEACHER_WORDS else 'student'


def mappings_in(content, path):
    """{keys that lead to it: {name: tensor}} of each mapping in a file that holds tensors.

    Raises:
        UserError: two names differ only by `WRAPPERS`.
    """
    waiting, seen, found = [((), content)] if isinstance(content, dict) else [], set(), {}
    for place, mapping in waiting:  # `waiting` grows
        if id(mapping) in seen or len(place) > DEEPEST:
            continue
        seen.add(id(mapping))
        for name, value in mapping.items():
            if not isinstance(name, str):
                continue
            if isinstance(value, dict):
                waiting.append(((*place, name), value))
            if not torch.is_tensor(value):
                continue
            name = '.'.join(part for part in name.split('.') if part not in WRAPPERS)
            if name in found.setdefault(place, {}):
                raise UserError(f'{path}: holds {name} twice, under different prefixes; save one '
                                'network alone')
            found[place][name] = value
    return found


def candidates_in(mappings, names):
    """The `Candidate`s among tensors from `mappings_in`, for a network with these names.

    Few names may fit by chance. A candidate has at least one in 20, and at least half as many as
    the best one.
    """
    found = {}
    for place, tensors in mappings.items():
        for name, tensor in tensors.items():
            parts = name.split('.', LONGEST_PREFIX)
            for start in range(len(parts)):
                own = '.'.join(parts[start:])
                if own in names:
                    prefix = name[:len(name) - len(own)]
                    found.setdefault((place, prefix), {})[own] = tensor
                    break  # the longest such name
    least = max([len(names) / 20, *(len(tensors) / 2 for tensors in found.values())])
    return [Candidate(*key, tensors) for key, tensors in found.items() if len(tensors) >= least]


def roles_held(content, path, names):
    """The roles (student, teacher) of the networks in the content of `read_torch_file`."""
    found = {candidate.role for candidate in candidates_in(mappings_in(content, path), set(names))}
    return sorted(found)


def choose_weights(content, path, names, role=None):
    """The state of a network in a checkpoint of this or another project.

    The tensors may lie in any mapping of the file, and their names may have any prefix, such as
    `module.`: those count that have the names of the network behind it. A prefix is removed only
    from a whole mapping, so tensors that do not belong to the network are found by `load_weights`.

    Args:
        content: of the file, from `read_torch_file`. path: for errors.
        names: of the tensors of the network.
        role: 'student' or 'teacher'; None: the student if the file has both, else the one it has.

    Returns:
        ({name: tensor} without the prefix, role). A network is a teacher if its key or prefix has
        the word `teacher` or `ema`. A file with one network that is not marked is used for either.

    Raises:
        UserError: the file has no such network, or several of the role.
    """
    mappings, names = mappings_in(content, path), set(names)
    candidates = candidates_in(mappings, names)
    if not candidates:
        raise UserError(f'{path}: has no network weights {no_weights(content, mappings, names)}')
    held = {candidate.role for candidate in candidates}
    single = content.get('weights')
    if not isinstance(single, str) or single not in ('student', 'teacher'):
        single = 'teacher' if held == {'teacher'} else None
    if role and single and role != single:
        raise UserError(f'{path}: has the weights of the {single}, not of the {role}; leave '
                        f'--weights out, or take the file of the {role} (best.pth: student, '
                        't_best.pth: teacher)')
    role = role or single or 'student'
    if role == 'teacher' and role not in held and not single:
        for place, tensors in mappings.items():
            for name in tensors:
                if role_of((*place, name)) == 'teacher':
                    raise UserError(f'{path}: its teacher ({": ".join((*place, name))}, ...) does '
                                    'not fit the network; leave --weights out for the other one')
    fitting = [c for c in candidates if c.role == role] or candidates
    most = max(len(c.tensors) for c in fitting)
    fitting = [c for c in fitting if len(c.tensors) == most]
    if len(fitting) > 1:
        raise UserError(f"{path}: has {len(fitting)} networks of the {role}: "
                        f"{', '.join(c.label for c in fitting)}; save the one that you want alone, "
                        "such as torch.save({'model': state_dict}, FILE)")
    return with_other_tensors(fitting[0], candidates, mappings, names, path), role


def with_other_tensors(chosen, candidates, mappings, names, path):
    """The tensors of a candidate, and all others in its mapping that are of no candidate.

    Raises:
        UserError: some names have the prefix and others have not.
    """
    state, prefix = {}, chosen.prefix
    others = tuple(c.prefix for c in candidates if c.place == chosen.place and c is not chosen)
    inner = tuple(other for other in others if other.startswith(prefix))
    for name, tensor in mappings[chosen.place].items():
        if name.startswith(prefix) and not name.startswith(inner):
            state[name[len(prefix):]] = tensor
        elif name in names and '' not in others:
            raise UserError(f"{path}: {chosen.label}: most names have the prefix '{prefix}', but "
                            f'not {name}; save the network with one prefix for all')
        elif not name.startswith(others) and name != 'n_averaged':  # the counter of AveragedModel
            state[name] = tensor
    return state


def no_weights(content, mappings, names):
    """'(found: ...); expected ...', for a file without tensors of the network."""
    tensors = [': '.join((*place, name)) for place, found in mappings.items() for name in found]
    found = tensors[:3] or (list(content)[:20] if isinstance(content, dict) else ())
    return (f'(found: {", ".join(map(str, found))[:200] or "nothing"}); expected the names of '
            f'the network, such as {min(names)}, at any place, with or without a prefix')


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
        last = getattr(model, 'classifier_name', 'classifier') + '.'
        left = [name for name in own if name.startswith(last) and name in state
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
        alone = ', or save the network without the unknown tensors' if extra else ''
        raise UserError(f'{path}: weights of another architecture: {"; ".join(problems)}; build '
                        'the network as in the config of the checkpoint (model, backbone, '
                        f'stem, decoder_channels, base_channels, nclass){alone}')
    model.load_state_dict(state, strict=False)
    return left
