"""DeepLabV3+: a backbone, an ASPP head and a decoder.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution" (ECCV 2018). Parameter
names are those of the public DSSN and UniMatch checkpoints.

Legend: N images, C classes, H x W pixels; c1 (N, C1, H/4, W/4) and c4 (N, C4, H/16, W/16) are the
backbone's feature maps.
"""

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from dssn.models.segmentation import SegmentationNetwork, resize


class DeepLabV3Plus(SegmentationNetwork):
    """DeepLabV3+. Its feature maps are (c1, c4).

    Args:
        backbone: module that maps images to (c1, c4), with attributes low_channels and
            high_channels.
        nclass: number of classes C.
        dilations: dilations of the head's three 3x3 branches.
        decoder_channels: output channels of the two `fuse` convolutions.
    """

    def __init__(self, backbone, nclass, dilations=(6, 12, 18), decoder_channels=256):
        super().__init__()
        low, high = backbone.low_channels, backbone.high_channels
        self.backbone = backbone
        self.feature_channels = low, high
        self.head = ASPP(high, high // 8, dilations)
        self.reduce = conv_bn_relu(low, 48, 1)
        self.fuse = nn.Sequential(
            *conv_bn_relu(48 + high // 8, decoder_channels, 3),
            *conv_bn_relu(decoder_channels, decoder_channels, 3))
        self.classifier = nn.Conv2d(decoder_channels, nclass, 1)

    def decode(self, c1, c4):
        """Logits (N, C, H/4, W/4) from the two feature maps of the backbone."""
        high = resize(self.head(c4), c1.shape[-2:])  # (N, C4/8, H/4, W/4)
        low = self.reduce(c1)                        # (N, 48, H/4, W/4)
        return self.classifier(self.fuse(torch.cat((low, high), dim=1)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: five branches, concatenated and projected."""

    def __init__(self, in_channels, out_channels, dilations):
        super().__init__()
        self.b0 = conv_bn_relu(in_channels, out_channels, 1)
        self.b1 = conv_bn_relu(in_channels, out_channels, 3, dilations[0])
        self.b2 = conv_bn_relu(in_channels, out_channels, 3, dilations[1])
        self.b3 = conv_bn_relu(in_channels, out_channels, 3, dilations[2])
        self.b4 = ImagePooling(in_channels, out_channels)
        self.project = conv_bn_relu(5 * out_channels, out_channels, 1)

    def forward(self, x):
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        branches = [branch(x) for branch in (self.b0, self.b1, self.b2, self.b3, self.b4)]
        return self.project(torch.cat(branches, dim=1))


class ImagePooling(nn.Module):
    """The head's branch of the whole image: its mean feature, projected, at every position."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1),
                                 *conv_bn_relu(in_channels, out_channels, 1))

    def forward(self, x):
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        pool, conv, norm, relu = self.gap
        pooled = relu(normalise_pooled(norm, conv(pool(x))))  # (N, out_channels, 1, 1)
        return pooled.expand(-1, -1, *x.shape[-2:])    # the same as interpolating one value


def normalise_pooled(norm, x):
    """norm(x) for x (N, K, 1, 1), also in training mode with N = 1."""
    if x.shape[0] > 1 or not norm.training:
        return norm(x)
    if isinstance(norm, nn.SyncBatchNorm) and world_size() > 1:
        # All processes together have several values per channel, so batch statistics exist.
        # PyTorch 1.8 counts only the values of this process and raises. Repeating the value does
        # not change mean and variance.
        is_old = torch.__version__.startswith('1.')
        return norm(x.repeat(2, 1, 1, 1))[:1] if is_old else norm(x)
    # A single value per channel has no batch variance (PyTorch raises), and subtracting its own
    # mean would give zero. So the running statistics are used, and they are not updated.
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias,
                        training=False, eps=norm.eps)


def world_size():
    """Number of training processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def conv_bn_relu(in_channels, out_channels, kernel_size, dilation=1):
    """Convolution that keeps height and width, BN, ReLU. BN replaces the bias."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation,
                  bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True))
