"""Writes the weights of a backbone into the folder where training looks for them."""
import os

import torch

from dssn.errors import UserError
from dssn.models import pretrained
from dssn.run import checkpoint
from dssn.tools.weights.contents import is_loadable, read_weights_file


def store(path, source, found, stem, folder):
    """Write the tensors of a backbone into a folder, completely or not at all.

    Args:
        path: the file that was read. source: its name, which is recorded.
        found: its `WeightsFile`. stem: the stem that it must have; None: any.

    Raises:
        UserError: tensors are missing, the stem is another one, other weights of this backbone
            already exist, or the file cannot be written.
    """
    if found.unfilled:
        raise UserError(f'{path}: does not fill {backbone_text(found)}: '
                        f'{pretrained.first_few("tensors", found.unfilled)}')
    if stem not in (None, found.stem):
        raise UserError(f'{path}: contains {backbone_text(found)}; leave --stem {stem} out')
    target = pretrained.pretrained_file(found.backbone, folder)
    tensors = {name: single_precision(tensor) for name, tensor in found.tensors.items()}
    if os.path.exists(target):
        old = read_weights_file(target)
        if not is_loadable(old) or set(old.tensors) != set(tensors) or not all(
                torch.equal(single_precision(old.tensors[name]), tensors[name])
                for name in tensors):
            raise UserError(f'{target}: already exists, with other tensors; move it away, or give '
                            'another --folder')
    else:
        write_file(target, {'state_dict': tensors, 'source': source})
    print_ready(target, found, f'from {source}')
    print_extra(found)


def single_precision(tensor):
    """A copy of a tensor, float32 if it is float16 or bfloat16."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.detach().clone().float() if half else tensor.detach().clone()


def write_file(path, content):
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        checkpoint.save(path, content)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); give another --folder'
                        ) from None
    finally:
        if os.path.exists(f'{path}.tmp'):  # after an interruption
            os.remove(f'{path}.tmp')


def backbone_text(found):
    """'resnet50, deep stem', 'xception'."""
    return f'{found.backbone}, {found.stem} stem' if found.stem else found.backbone


def print_ready(path, found, words):
    print(f'{path}: {backbone_text(found)}, all {found.total} tensors, {words}')
    if found.stem == 'plain':
        print('  the config needs `stem: plain`')


def print_extra(found):
    if found.extra:
        print(f'  not used: {pretrained.first_few("tensors", found.extra)}')
