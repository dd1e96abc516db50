"""ImageNet weights for a backbone: path, required content, and loading of the file.

The command `python -m dssn weights` is in `dssn.tools.weights`.
"""
import os

from dssn.errors import UserError
from dssn.models.weights import choose_weights, read_torch_file

GLUON_FOLDER = ('https://github.com/rwightman/pytorch-pretrained-gluonresnet'
                '/releases/download/v0.1/')
TORCHVISION_FOLDER = 'https://download.pytorch.org/models/'
DEEP_STEM_FILES = {
    'resnet50': 'gluon_resnet50_v1s-1762acc0.pth',
    'resnet101': 'gluon_resnet101_v1s-60fe0cc1.pth',
}
PLAIN_STEM_FILES = {
    'resnet18': 'resnet18-f37072fd.pth',
    'resnet50': 'resnet50-0676ba61.pth',
    'resnet101': 'resnet101-63fe2227.pth',
}
XCEPTION_SOURCE = ('the ImageNet file of Xception-65 that the README of '
                   'https://github.com/LiheYoung/UniMatch links')
NARROW_STEM = ("has a deep stem of 32/32/64 channels (as OpenMMLab's v1c); ours has 64/64/128 "
               "(v1s), so these weights cannot be used")
COMMAND = 'python -m dssn weights'
SHOWN_KEYS = 3  # names of tensors in a message


def pretrained_file(backbone, folder='pretrained'):
    """Path (str) at which the ImageNet weights of `backbone` are expected."""
    return os.path.join(folder, backbone + '.pth')


def load_backbone_weights(model, backbone, stem, path):
    """Fill every tensor of `model.backbone` from a file of ImageNet weights, in place.

    The file must have the stem of the model: deep, or torchvision's plain one. Its tensors may be
    at any place in the file, with any prefix, see `choose_weights`. The
    classifier `fc` is ignored, and BN's num_batches_tracked may be missing. After an error the
    model is unchanged.

    Args:
        model (DeepLabV3Plus): the model to fill.
        backbone (str): name of its backbone, a key of `BACKBONES`.
        stem (str): its stem, 'deep' or 'plain' (no effect for xception).
        path (str): the file.

    Raises:
        UserError: the file does not exist, is not a file of tensors, or is of another network.
    """
    if not os.path.isfile(path):
        raise UserError(missing_file_message(backbone, stem, path))
    own = model.backbone.state_dict()
    tensors, _ = choose_weights(read_torch_file(path), path, own)
    tensors = {name: value for name, value in tensors.items() if not name.startswith('fc.')}
    if backbone != 'xception':
        check_stem(tensors, own, stem, path)
    check_fit(tensors, own, backbone, stem, path)
    # Not strict, since num_batches_tracked may be missing; check_fit has checked the rest.
    model.backbone.load_state_dict(tensors, strict=False)


def check_stem(tensors, own, stem, path):
    """Raise a UserError, with both stems, if the file has another stem than the model."""
    found, wanted = stem_of(tensors), stem_of(own)
    if found == 'narrow' and wanted != 'narrow':
        raise UserError(f'{path}: {NARROW_STEM}')
    if 'plain' in (found, wanted) and found not in (None, wanted):
        raise UserError(f'{path}: has a {found} stem, but the config has stem: {stem}; set '
                        f'`stem: {found}` or use another file')


def stem_of(tensors):
    """'plain', 'deep', 'narrow' (deep, with 32 channels at first), or None if unknown."""
    if 'stem.0.weight' in tensors:  # OpenMMLab's name
        return 'narrow'
    if 'conv1.0.weight' in tensors:
        return 'narrow' if tensors['conv1.0.weight'].shape[0] == 32 else 'deep'
    if 'conv1.weight' in tensors and tuple(tensors['conv1.weight'].shape[2:]) == (7, 7):
        return 'plain'
    return None


def check_fit(tensors, own, backbone, stem, path):
    """Raise a UserError with the first names in which the file and the backbone differ."""
    missing = [name for name in own
               if name not in tensors and not name.endswith('num_batches_tracked')]
    unexpected = [name for name in tensors if name not in own]
    mismatching = [f'{name} {shape_of(tensors[name])} instead of {shape_of(own[name])}'
                   for name in own if name in tensors and tensors[name].shape != own[name].shape]
    found = [first_few(kind, names) for kind, names in (
        ('missing', missing), ('unexpected', unexpected), ('of another shape', mismatching))
        if names]
    if found:
        form = backbone if backbone == 'xception' else f'{backbone} with stem: {stem}'
        note = width_note(own) if mismatching else ''
        if not missing and not mismatching:
            note = f'; `{COMMAND} convert` removes tensors that the network does not have'
        raise UserError(f"{path}: does not fit {form}: {'; '.join(found)}{note}")


def width_note(own):
    """A note for a shape error of a model with other base_channels than public weights."""
    width = len(own['layer1.0.bn1.weight']) if 'layer1.0.bn1.weight' in own else 64
    if width == 64:
        return ''
    return (f'; the model has base_channels: {width}, but ImageNet weights exist only for '
            'base_channels: 64 (set that, or `pretrained: false`)')


def first_few(kind, names):
    """'5 missing (a, b, c, ...)'."""
    more = ', ...' if len(names) > SHOWN_KEYS else ''
    return f"{len(names)} {kind} ({', '.join(names[:SHOWN_KEYS])}{more})"


def shape_of(tensor):
    return 'x'.join(str(side) for side in tensor.shape) or 'scalar'


def missing_file_message(backbone, stem, path):
    """The error for a missing file: its expected content, and the commands to get it."""
    ways = []
    if stem == 'deep' and backbone in DEEP_STEM_FILES:
        ways.append(f'`{COMMAND} fetch {backbone}` ({source_url(backbone, stem)}, deep stem, '
                    '64/64/128)')
    if backbone in PLAIN_STEM_FILES:
        note = '' if stem == 'plain' else ', together with `stem: plain` in the config'
        ways.append(f'`{COMMAND} fetch {backbone} --stem plain` '
                    f"({source_url(backbone, 'plain')}, plain stem){note}")
    source = 'a file that you have' if backbone != 'xception' else XCEPTION_SOURCE
    ways.append(f'`{COMMAND} convert FILE` with {source}')
    return (f'{path}: no such file; it should hold the ImageNet weights of {backbone}. Get it with '
            f"{'; or '.join(ways)}; or set `pretrained: false` to train from scratch")


def source_url(backbone, stem):
    """URL of the public ImageNet weights with this stem, or None if there are none."""
    folder, files = ((GLUON_FOLDER, DEEP_STEM_FILES) if stem == 'deep' else
                     (TORCHVISION_FOLDER, PLAIN_STEM_FILES))
    return folder + files[backbone] if backbone in files else None

