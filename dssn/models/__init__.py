"""Segmentation networks: `build_model` builds a DeepLabV3+ or a DPT from a config."""

import torch

from dssn.errors import UserError
from dssn.models.deeplabv3plus import DeepLabV3Plus
from dssn.models.dpt import DPT
from dssn.models.resnet import resnet10, resnet18, resnet50, resnet101
from dssn.models.vit import VisionTransformer
from dssn.models.xception import Xception

__all__ = ['BACKBONES', 'DPT', 'ENCODERS', 'DeepLabV3Plus', 'build_model']

BACKBONES = {
    'resnet10': resnet10,  # our own, without public weights
    'resnet18': resnet18,
    'resnet50': resnet50,
    'resnet101': resnet101,
    'xception': Xception,
}


# Of DPT: arguments of `VisionTransformer`, and F and the four channels of the head.
ENCODERS = {
    'dinov2_tiny': (dict(width=192), 32, (24, 48, 96, 192)),  # our own, without public weights
    'dinov2_small': (dict(width=384), 64, (48, 96, 192, 384)),
    'dinov2_base': (dict(width=768), 128, (96, 192, 384, 768)),
    'dinov2_large': (dict(width=1024, depth=24, taps=(4, 11, 17, 23)), 256,
                     (256, 512, 1024, 1024)),
}


def build_model(cfg):
    """The network of a config, with random weights (public ones: `dssn.models.pretrained`).

    Args:
        cfg: an object with the attributes model, backbone, nclass, checkpoint_backbone and
            channels_last. With `model: deeplabv3plus` also stem, replace_stride_with_dilation
            (three booleans, for layer2 to layer4), dilations (three integers), decoder_channels
            and base_channels; with `model: dpt` also lock_backbone.

    Returns:
        SegmentationNetwork: float32, on the CPU, in training mode.

    Raises:
        UserError: the backbone is not one of the model, or a key has a value that it does not
            support.
    """
    known = ENCODERS if cfg.model == 'dpt' else BACKBONES
    if cfg.backbone not in known:
        raise UserError(f"backbone: {cfg.backbone!r} is no backbone of model: {cfg.model}; its "
                        f"backbones: {', '.join(known)}")
    model = build_dpt(cfg) if cfg.model == 'dpt' else build_deeplab(cfg)
    model.backbone.recompute = cfg.checkpoint_backbone
    return model.to(memory_format=torch.channels_last) if cfg.channels_last else model


def build_dpt(cfg):
    encoder, width, channels = ENCODERS[cfg.backbone]
    model = DPT(VisionTransformer(**encoder), cfg.nclass, width, channels)
    if cfg.lock_backbone:
        model.backbone.requires_grad_(False)
    return model


def build_deeplab(cfg):
    if cfg.backbone == 'xception':
        check_xception_keys(cfg)
        backbone = Xception()
    else:
        backbone = BACKBONES[cfg.backbone](
            cfg.stem, cfg.replace_stride_with_dilation, cfg.base_channels)
    return DeepLabV3Plus(backbone, cfg.nclass, cfg.dilations, cfg.decoder_channels)


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
