"""Reads a file of weights: its backbone, its stem, and which tensors are missing."""
import functools
import hashlib
import os
import re
from typing import Dict, List, NamedTuple, Optional

import torch

from dssn.errors import UserError
from dssn.models import BACKBONES, ENCODERS, pretrained
from dssn.models.vit import VisionTransformer
from dssn.models.weights import choose_weights, mappings_in, read_torch_file

WIDEST = 128  # base channels that a file may ask for; memory grows with their square


class WeightsFile(NamedTuple):
    """A file of weights, compared with the backbone that has the most names in common."""
    kind: str                           # the kind of file, in words
    backbone: str
    stem: Optional[str]                 # 'deep' or 'plain'; None if the backbone has no stem
    width: int                          # base_channels
    tensors: Dict[str, torch.Tensor]    # that fit the backbone, by its names
    total: int                          # tensors of the backbone, without num_batches_tracked
    unfilled: List[str]                 # 'bn1.bias: missing'
    extra: List[str]                    # names that the backbone does not have


def read_weights_file(path):
    """The `WeightsFile` at a path.

    Raises:
        UserError: it is not a file of weights, not of a known backbone, has a 32/32/64 stem, is of
            a deeper network than those here, or is a damaged copy of a known public file.
    """
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such file')
    verify_sha256(path, os.path.basename(path))
    content = read_torch_file(path)
    tensors, _ = choose_weights(content, path, known_names(is_transformer(content, path)))
    backbone, stem, width = recognise(tensors, path)
    own = build_backbone(backbone, stem, width).state_dict()
    fitting = {name: tensors[name] for name in own
               if name in tensors and tensors[name].shape == own[name].shape}
    unfilled = unfilled_tensors(tensors, own)
    extra = [name for name in tensors if name not in own]
    deeper = [name for name in extra if name.startswith(('layer', 'block'))]
    if deeper and not unfilled:
        raise UserError(f'{path}: not {backbone}, but a deeper network: it also has '
                        f'{pretrained.first_few("tensors", deeper)}; known: {known_backbones()}')
    total = sum(not is_batch_count(name) for name in own)
    return WeightsFile(file_kind(content), backbone, stem, width, fitting, total, unfilled, extra)


def is_loadable(found):
    """Whether training can load the file: all tensors filled, none extra except those of `fc`."""
    return not found.unfilled and all(name.startswith('fc.') for name in found.extra)


def unfilled_tensors(tensors, own):
    """Lines on the tensors of the backbone that a file does not fill, with the reason."""
    lines = []
    for name, tensor in own.items():
        if name not in tensors:
            if not is_batch_count(name):
                lines.append(f'{name}: missing')
        elif tensors[name].shape != tensor.shape:
            lines.append(f'{name}: {pretrained.shape_of(tensors[name])} instead of '
                         f'{pretrained.shape_of(tensor)}')
    return lines


def is_batch_count(name):
    """Whether a tensor is BN's num_batches_tracked, which has no effect and may be missing."""
    return name.endswith('num_batches_tracked')


def is_transformer(content, path):
    """Whether a file has tensors of a vision transformer's first block."""
    return any(re.search(r'(^|\.)blocks\.0\.', name)
               for tensors in mappings_in(content, path).values() for name in tensors)


@functools.lru_cache(maxsize=2)
def known_names(transformers=False):
    """The names of the tensors of all backbones, or of all vision transformers, a set."""
    if transformers:
        return set(VisionTransformer(64, depth=24).state_dict())
    kinds = [(backbone, 'deep') for backbone in BACKBONES]
    kinds += [(backbone, 'plain') for backbone in BACKBONES if backbone != 'xception']
    return {name for backbone, stem in kinds
            for name in build_backbone(backbone, stem, 2).state_dict()}


def known_backbones():
    return ', '.join([*BACKBONES, *ENCODERS])


def recognise(tensors, path):
    """(backbone, stem or None, base_channels) of the network with the most names in common."""
    if any(name.startswith('blocks.') for name in tensors):
        pretrained.check_registers(tensors, path)
        return recognise_dinov2(tensors, path), None, 64
    if any(name.startswith('block') for name in tensors):
        return 'xception', None, 64
    first = tensors.get('layer1.0.bn1.weight')
    width = first.numel() if first is not None and 2 <= first.numel() <= WIDEST else 64
    stem = pretrained.stem_of(tensors) or 'deep'
    if stem == 'narrow':
        # A network with 32 base channels has such a stem too.
        if width != 32 or 'stem.0.weight' in tensors:
            raise UserError(f'{path}: {pretrained.NARROW_STEM}')
        stem = 'deep'
    scores = {backbone: name_overlap(tensors, build_backbone(backbone, stem, 2).state_dict())
              for backbone in BACKBONES if backbone != 'xception'}
    best = max(scores, key=scores.get)
    if scores[best] < 0.1:
        raise UserError(f'{path}: its tensors ({", ".join(list(tensors)[:3])}, ...) belong to '
                        f'no backbone here; known: {known_backbones()}')
    return best, stem, width


def recognise_dinov2(tensors, path):
    """The name of a vision transformer, from its width."""
    token = tensors.get('cls_token')
    width = token.shape[-1] if token is not None and token.dim() else None
    widths = {encoder['width']: name for name, (encoder, *_) in ENCODERS.items()}
    if width not in widths:
        raise UserError(f'{path}: a vision transformer of width {width}; known: '
                        f"{', '.join(f'{name} ({known})' for known, name in widths.items())}")
    return widths[width]


def name_overlap(tensors, own):
    """The number of names in both, as a fraction of the names in either.

    A fraction of the backbone's names is not enough: a ResNet-101 has all names of a ResNet-50.
    """
    theirs, ours = [{name for name in names if not is_batch_count(name)}
                    for names in (tensors, own)]
    return len(theirs & ours) / len(theirs | ours)


def build_backbone(backbone, stem, width):
    """A backbone with random weights, without the rest of the network."""
    if backbone in ENCODERS:
        return VisionTransformer(**ENCODERS[backbone][0])
    if backbone == 'xception':
        return BACKBONES[backbone]()
    return BACKBONES[backbone](stem, base_channels=width)


def file_kind(content):
    """'checkpoint of this project (...)', 'weights from FILE' or 'weights'."""
    if isinstance(content.get('config'), dict) and 'model' in content:
        held = content.get('weights') or 'student and teacher'
        return (f"checkpoint of this project ({held}, {content['config'].get('dataset')}, epoch "
                f"{content.get('epoch')})")
    if isinstance(content.get('source'), str):
        return f"weights from {content['source']}"
    return 'weights'


def verify_sha256(path, name):
    """Raise a UserError for a damaged copy of a public file.

    Args:
        path: the file. name: its public name; other names are not checked.
    """
    head = known_sha256(name)
    if head is None:
        return
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for piece in iter(lambda: file.read(2 ** 20), b''):
            digest.update(piece)
    if not digest.hexdigest().startswith(head):
        raise UserError(f'{path}: damaged: the SHA-256 of {name} begins with {head}, that of this '
                        f'file with {digest.hexdigest()[:len(head)]}; download it again')


def known_sha256(name):
    """The SHA-256 of a public file by its name, or the first digits of it; None if unknown."""
    for public, digits in pretrained.DINOV2_FILES.values():
        if name == public.rpartition('/')[2]:
            return digits
    if name in [*pretrained.DEEP_STEM_FILES.values(), *pretrained.PLAIN_STEM_FILES.values()]:
        return re.search(r'-([0-9a-f]+)\.pth$', name).group(1)  # the names end in them
    return None
