"""Segmentation networks: `build_model` builds a DeepLabV3+ from a config."""

import torch

from dssn.errors import UserError
from dssn.models.deeplabv3plus import DeepLabV3Plus
from dssn.models.resnet import resnet18, resnet50, resnet101
from dssn.models.xception import Xception

__all__ = ['BACKBONES', 'DeepLabV3Plus', 'build_model']

BACKBONES = {
    'resnet18': resnet18,
    'resnet50': resnet50,
    'resnet101': resnet101,
    'xception': Xception,
}


def build_model(cfg):
    """DeepLabV3+ as configured, with random weights (for ImageNet see `dssn.models.pretrained`).

    Args:
        cfg: an object with the attributes nclass, backbone, stem, replace_stride_with_dilation
            (three booleans, for layer2 to layer4), dilations (three integers), decoder_channels,
            base_channels, checkpoint_backbone and channels_last.

    Returns:
        DeepLabV3Plus: float32, on the CPU, in training mode.

    Raises:
        UserError: the backbone is unknown, or a key has a value that Xception does not support.
    """
    if cfg.backbone not in BACKBONES:
        raise UserError(f"backbone: {cfg.backbone!r} is unknown; known backbones: "
                        f"{', '.join(BACKBONES)}")
    if cfg.backbone == 'xception':
        check_xception_keys(cfg)
        backbone = Xception()
    else:
        backbone = BACKBONES[cfg.backbone](
            cfg.stem, cfg.replace_stride_with_dilation, cfg.base_channels)
    backbone.recompute = cfg.checkpoint_backbone
    model = DeepLabV3Plus(backbone, cfg.nclass, cfg.dilations, cfg.decoder_channels)
    return model.to(memory_format=torch.channels_last) if cfg.channels_last else model


def check_xception_keys(cfg):
    """Raise a UserError for a key with another value than that of Xception, which has one form."""
    fixed = {'stem': 'deep', 'replace_stride_with_dilation': [False, False, True],
             'base_channels': 64}
    for key, only in fixed.items():
        value = getattr(cfg, key)
        value = list(value) if isinstance(value, tuple) else value
        if value != only:
            raise UserError(f'{key}: {value!r} is not possible with backbone: xception, which has '
                            f'one form; leave the key out ({only!r}) or choose a ResNet')
