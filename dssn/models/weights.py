"""ImageNet weights for a backbone: where the file is expected, what it must hold, how it loads.

The command line `python -m dssn.models.weights` is in `dssn.models.fetch`.
"""

import os

import torch

from dssn.checkpoint import read_torch_file
from dssn.errors import UserError

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
COMMAND = 'python -m dssn.models.weights'
SHOWN_KEYS = 3


def pretrained_file(backbone, folder='pretrained'):
    """Path (str) at which the ImageNet weights of `backbone` are expected."""
    return os.path.join(folder, backbone + '.pth')


def load_backbone_weights(model, backbone, stem, path):
    """Fills every tensor of `model.backbone` from a file of ImageNet weights, in place.

    The file may be in the deep-stem or in torchvision's plain-stem layout (the model's own), its
    tensors under 'state_dict' or 'model', their names behind 'module.' or 'backbone.'. The
    classifier `fc` is ignored and BN's num_batches_tracked may be missing. On an error the model
    is as it was.

    Args:
        model (DeepLabV3Plus): the model to fill.
        backbone (str): its backbone's name, a key of `BACKBONES`.
        stem (str): its stem, 'deep' or 'plain' (without meaning for xception).
        path (str): the file.

    Raises:
        UserError: no such file, not a file of tensors, or tensors of another network.
    """
    if not os.path.isfile(path):
        raise UserError(missing_file_message(backbone, stem, path))
    tensors = {name: value for name, value in named_tensors(read_torch_file(path), path).items()
               if not name.startswith('fc.')}
    own = model.backbone.state_dict()
    if backbone != 'xception':
        check_stem(tensors, own, stem, path)
    check_fit(tensors, own, backbone, stem, path)
    # Not strict: num_batches_tracked alone may be missing, check_fit has seen to the rest.
    model.backbone.load_state_dict(tensors, strict=False)


def named_tensors(content, path):
    """The tensors of a weights file by the names that the backbone gives them."""
    for key in ('state_dict', 'model'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
            isinstance(name, str) and torch.is_tensor(value) for name, value in content.items()):
        raise UserError("%s: not a file of weights (expected a dictionary of named tensors, at "
                        "its top or under 'state_dict' or 'model')" % path)
    tensors = {}
    for full_name, value in content.items():
        name = without_prefixes(full_name)
        if name in tensors:
            raise UserError("%s: holds %s twice, under different prefixes" % (path, name))
        tensors[name] = value
    return tensors


def without_prefixes(name):
    """'module.backbone.conv1.weight' -> 'conv1.weight'."""
    for prefix in ('module.', 'backbone.'):
        if name.startswith(prefix):
            return without_prefixes(name[len(prefix):])
    return name


def check_stem(tensors, own, stem, path):
    """Raises UserError where the file's ResNet has another stem than the model, saying which."""
    found, wanted = stem_of(tensors), stem_of(own)
    if found == 'narrow' and wanted != 'narrow':
        raise UserError("%s: %s" % (path, NARROW_STEM))
    if 'plain' in (found, wanted) and found not in (None, wanted):
        raise UserError("%s: has a %s stem, but the configuration says stem: %s; set `stem: %s` "
                        "or use another file" % (path, found, stem, found))


def stem_of(tensors):
    """'plain', 'deep', 'narrow' (deep, but 32 channels wide at first), or None if unknown."""
    if 'stem.0.weight' in tensors:  # OpenMMLab's name
        return 'narrow'
    if 'conv1.0.weight' in tensors:
        return 'narrow' if tensors['conv1.0.weight'].shape[0] == 32 else 'deep'
    if 'conv1.weight' in tensors and tuple(tensors['conv1.weight'].shape[2:]) == (7, 7):
        return 'plain'
    return None


def check_fit(tensors, own, backbone, stem, path):
    """Raises UserError listing the first keys in which the file and the backbone differ."""
    missing = [name for name in own
               if name not in tensors and not name.endswith('num_batches_tracked')]
    unexpected = [name for name in tensors if name not in own]
    mismatching = ['%s %s instead of %s' % (name, shape_of(tensors[name]), shape_of(own[name]))
                   for name in own if name in tensors and tensors[name].shape != own[name].shape]
    found = [first_few(kind, names) for kind, names in (
        ('missing', missing), ('unexpected', unexpected), ('of another shape', mismatching))
        if names]
    if found:
        form = backbone if backbone == 'xception' else '%s with stem: %s' % (backbone, stem)
        note = width_note(own) if mismatching else ''
        if not missing and not mismatching:
            note = "; `%s convert` leaves out what is no part of the network" % COMMAND
        raise UserError("%s: does not fit %s: %s%s" % (path, form, '; '.join(found), note))


def width_note(own):
    """What to add to a shape error where the model is no public one: its base_channels."""
    width = len(own['layer1.0.bn1.weight']) if 'layer1.0.bn1.weight' in own else 64
    if width == 64:
        return ''
    return ("; the model has base_channels: %d, but ImageNet weights exist for base_channels: 64 "
            "alone (set that, or `pretrained: false`)" % width)


def first_few(kind, names):
    """'5 missing (a, b, c, ...)'."""
    more = ', ...' if len(names) > SHOWN_KEYS else ''
    return '%d %s (%s%s)' % (len(names), kind, ', '.join(names[:SHOWN_KEYS]), more)


def shape_of(tensor):
    return 'x'.join(str(side) for side in tensor.shape) or 'scalar'


def missing_file_message(backbone, stem, path):
    """What file is expected at `path`, the command that fetches it, and how to do without."""
    ways = []
    if stem == 'deep' and backbone in DEEP_STEM_FILES:
        ways.append("`%s fetch %s` (%s, deep stem, 64/64/128)"
                    % (COMMAND, backbone, source_url(backbone, 'deep')))
    if backbone in PLAIN_STEM_FILES:
        note = "" if stem == 'plain' else ", together with `stem: plain` in the config"
        ways.append("`%s fetch %s --stem plain` (%s, plain stem)%s"
                    % (COMMAND, backbone, source_url(backbone, 'plain'), note))
    source = 'a file that you have' if backbone != 'xception' else XCEPTION_SOURCE
    ways.append("`%s convert FILE` with %s" % (COMMAND, source))
    return ("%s: no such file; it should hold the ImageNet weights of %s. Get it with %s; or set "
            "`pretrained: false` to train from scratch" % (path, backbone, '; or '.join(ways)))


def source_url(backbone, stem):
    """Where the public ImageNet weights with this stem lie, or None where there are none."""
    folder, files = ((GLUON_FOLDER, DEEP_STEM_FILES) if stem == 'deep' else
                     (TORCHVISION_FOLDER, PLAIN_STEM_FILES))
    return folder + files[backbone] if backbone in files else None


if __name__ == '__main__':
    import signal
    import sys
    from dssn.models.fetch import main
    # Ends as an interruption does, so that a download cleans up after itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
