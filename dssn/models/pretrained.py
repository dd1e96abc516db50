"""Public weights for a backbone: path, required content, and loading of the file.

ImageNet weights for those of DeepLabV3+, DINOv2's for those of DPT.

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
DINOV2_FOLDER = 'https://dl.fbaipublicfiles.com/dinov2/'
# With their SHA-256. Meta publishes none; these are stated by several public projects.
DINOV2_FILES = {
    'dinov2_small': ('dinov2_vits14/dinov2_vits14_pretrain.pth',
                     'b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9'),
    'dinov2_base': ('dinov2_vitb14/dinov2_vitb14_pretrain.pth',
                    '0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73'),
    'dinov2_large': ('dinov2_vitl14/dinov2_vitl14_pretrain.pth',
                     'd5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428'),
}
XCEPTION_SOURCE = ('the ImageNet file of Xception-65 that the README of '
                   'https://github.com/LiheYoung/UniMatch links')
NARROW_STEM = ("has a deep stem of 32/32/64 channels (as OpenMMLab's v1c); ours has 64/64/128 "
               "(v1s), so these weights cannot be used")
COMMAND = 'python -m dssn weights'
SHOWN_KEYS = 3  # names of tensors in a message


def pretrained_file(backbone, folder='pretrained'):
    """Path (str) at which the public weights of `backbone` are expected."""
    return os.path.join(folder, backbone + '.pth')


def load_backbone_weights(model, backbone, stem, path):
    """Fill every tensor of `model.backbone` from a file of public weights, in place.

    The file must have the stem of the model: deep, or torchvision's plain one. Its tensors may be
    at any place in the file, with any prefix, see `choose_weights`. The
    classifier `fc` is ignored, and BN's num_batches_tracked may be missing. After an error the
    model is unchanged.

    Args:
        model (SegmentationNetwork): the model to fill.
        backbone (str): name of its backbone, a key of `BACKBONES` or `ENCODERS`.
        stem (str): its stem, 'deep' or 'plain' (of ResNets alone).
        path (str): the file.

    Raises:
        UserError: the file does not exist, is not a file of tensors, or is of another network.
    """
    if not os.path.isfile(path):
        raise UserError(missing_file_message(backbone, stem, path))
    own = model.backbone.state_dict()
    tensors, _ = choose_weights(read_torch_file(path), path, own)
    tensors = {name: value for name, value in tensors.items() if not name.startswith('fc.')}
    check_registers(tensors, path)
    if has_stem(backbone):
        check_stem(tensors, own, stem, path)
    check_fit(tensors, own, backbone, stem, path)
    # Not strict, since num_batches_tracked may be missing; check_fit has checked the rest.
    model.backbone.load_state_dict(tensors, strict=False)


def has_stem(backbone):
    """Whether a backbone has a stem of several forms, 'deep' or 'plain'."""
    return backbone.startswith('resnet')


def check_registers(tensors, path):
    """Raise a UserError for DINOv2's networks with registers, which need them and are not here."""
    if 'register_tokens' in tensors:
        raise UserError(f'{path}: a DINOv2 with registers (its tensor register_tokens); the '
                        'networks here have none: take the file without them, such as '
                        f"{DINOV2_FILES['dinov2_base'][0].rpartition('/')[2]}")


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
        form = f'{backbone} with stem: {stem}' if has_stem(backbone) else backbone
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
    without = backbone in ('dinov2_tiny', 'resnet10')  # our own
    if without or backbone in DINOV2_FILES:
        known = (f'no such file. Get it with `{COMMAND} fetch {backbone}` '
                 f'({source_url(backbone)}); or put that file there'
                 if not without else
                 f'no such file, and there are no public weights of {backbone}')
        return f'{path}: {known}; or set `pretrained: false` to train from scratch'
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


def source_url(backbone, stem=None):
    """URL of the public weights, of ResNets with this stem, or None if there are none."""
    if backbone in DINOV2_FILES:
        return DINOV2_FOLDER + DINOV2_FILES[backbone][0]
    folder, files = ((GLUON_FOLDER, DEEP_STEM_FILES) if stem == 'deep' else
                     (TORCHVISION_FOLDER, PLAIN_STEM_FILES))
    return folder + files[backbone] if backbone in files else None

