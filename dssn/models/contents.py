"""What a file of weights holds: which backbone, with which stem, and what it lacks."""
import hashlib
import os
import re
from typing import Dict, List, NamedTuple

import torch

from dssn import checkpoint
from dssn.errors import UserError
from dssn.models import BACKBONES, weights

WIDEST = 128  # base channels that a file may ask for; memory grows with their square


class Contents(NamedTuple):
    """A file of weights beside the backbone that it resembles most."""
    kind: str                           # what the file as a whole is, in words
    backbone: str
    stem: str                           # 'deep' or 'plain'; xception has one form, called deep
    width: int                          # base_channels
    tensors: Dict[str, torch.Tensor]    # those that fit the backbone, by its names
    total: int                          # how many it has, not counting num_batches_tracked
    unfilled: List[str]                 # 'bn1.bias: missing'
    extra: List[str]                    # names that the backbone does not have


def inspect(path):
    """Read a file of weights and compare it with the backbone that shares most names with it.

    Raises:
        UserError: not a file of weights, of no known backbone, with a 32/32/64 stem, a deeper
            network than those here, or a known public file that is damaged.
    """
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such file')
    check_name(path, os.path.basename(path))
    content = checkpoint.read_torch_file(path)
    tensors = weights.named_tensors(content, path)
    backbone, stem, width = recognise(tensors, path)
    own = build(backbone, stem, width).state_dict()
    fitting = {name: tensors[name] for name in own
               if name in tensors and tensors[name].shape == own[name].shape}
    unfilled = lacks(tensors, own)
    extra = [name for name in tensors if name not in own]
    deeper = [name for name in extra if name.startswith(('layer', 'block'))]
    if deeper and not unfilled:
        raise UserError(f'{path}: not {backbone}, but a deeper network: has also '
                        f'{weights.first_few("tensors", deeper)}; known: {", ".join(BACKBONES)}')
    total = sum(not counts_batches(name) for name in own)
    return Contents(kind_of(content), backbone, stem, width, fitting, total, unfilled, extra)


def loads(found):
    """Whether training takes the file as it is: nothing unfilled, nothing to leave out but `fc`."""
    return not found.unfilled and all(name.startswith('fc.') for name in found.extra)


def lacks(tensors, own):
    """Lines that say which of the backbone's tensors a file does not fill, and why."""
    lines = []
    for name, tensor in own.items():
        if name not in tensors:
            if not counts_batches(name):
                lines.append(f'{name}: missing')
        elif tensors[name].shape != tensor.shape:
            lines.append(f'{name}: {weights.shape_of(tensors[name])} instead of '
                         f'{weights.shape_of(tensor)}')
    return lines


def counts_batches(name):
    """Whether it is BN's num_batches_tracked, which decides nothing and may be missing."""
    return name.endswith('num_batches_tracked')


def recognise(tensors, path):
    """(backbone, stem, base_channels) of the network whose names are most like the file's."""
    if any(name.startswith('block') for name in tensors):
        return 'xception', 'deep', 64
    first = tensors.get('layer1.0.bn1.weight')
    width = first.numel() if first is not None and 2 <= first.numel() <= WIDEST else 64
    stem = weights.stem_of(tensors) or 'deep'
    if stem == 'narrow':
        # A network of 32 base channels has such a stem by right.
        if width != 32 or 'stem.0.weight' in tensors:
            raise UserError(f'{path}: {weights.NARROW_STEM}')
        stem = 'deep'
    scores = {backbone: likeness(tensors, build(backbone, stem, 2).state_dict())
              for backbone in BACKBONES if backbone != 'xception'}
    best = max(scores, key=scores.get)
    if scores[best] < 0.1:
        raise UserError(f'{path}: its tensors ({", ".join(list(tensors)[:3])}, ...) are those of '
                        f'no backbone here; known: {", ".join(BACKBONES)}')
    return best, stem, width


def likeness(tensors, own):
    """Names in both, as a share of those in either.

    Not of the backbone's alone: a ResNet-101 holds every name of a ResNet-50.
    """
    theirs, ours = [{name for name in names if not counts_batches(name)}
                    for names in (tensors, own)]
    return len(theirs & ours) / len(theirs | ours)


def build(backbone, stem, width):
    """The backbone alone, randomly initialised."""
    if backbone == 'xception':
        return BACKBONES[backbone]()
    return BACKBONES[backbone](stem, base_channels=width)


def kind_of(content):
    """'checkpoint of this project (...)', 'ImageNet weights from FILE' or 'weights'."""
    if isinstance(content.get('config'), dict) and 'model' in content:
        held = content.get('weights') or 'student and teacher'
        return (f"checkpoint of this project ({held}, {content['config'].get('dataset')}, epoch "
                f"{content.get('epoch')})")
    if isinstance(content.get('source'), str):
        return f"ImageNet weights from {content['source']}"
    return 'weights'


def check_name(path, name):
    """Public files end their name in the head of their SHA-256: refuse one that does not agree.

    Args:
        path: the file. name: what its source calls it.
    """
    if name not in [*weights.DEEP_STEM_FILES.values(), *weights.PLAIN_STEM_FILES.values()]:
        return
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for piece in iter(lambda: file.read(2 ** 20), b''):
            digest.update(piece)
    head = re.search(r'-([0-9a-f]+)\.pth$', name).group(1)
    if not digest.hexdigest().startswith(head):
        raise UserError(f'{path}: damaged: the SHA-256 of {name} begins with {head}, that of this '
                        f'file with {digest.hexdigest()[:len(head)]}; download it again')
