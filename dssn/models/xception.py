"""Aligned Xception-65 as a backbone, with output stride 16 and no dilation.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution" (ECCV 2018), in the form
of the public PyTorch weights. Legend: N images, H x W pixels.
"""

import math

import torch.nn as nn
import torch.nn.functional as F

from dssn.models.recompute import Backbone


class SeparableConv(nn.Module):
    """Depthwise 3x3, BN, pointwise 1x1, BN.

    With relu_first (inside blocks) there is one ReLU before them. Without it (the last three
    convolutions of the network) there is a ReLU after each BN instead.
    """

    def __init__(self, in_channels, out_channels, stride=1, relu_first=True):
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = batch_norm(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = batch_norm(out_channels)
        self.relu_first = relu_first

    def forward(self, x):
        if self.relu_first:
            return self.bn2(self.pointwise(self.bn1(self.depthwise(F.relu(x)))))
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))


class Block(nn.Module):
    """Three separable convolutions and a shortcut.

    The shortcut is a strided 1x1 projection of x if the shape changes, else relu(x): the program
    that trained the public weights applied its first ReLU in place, to the tensor that it added
    later. The third convolution has the stride. With `widens_first` the first convolution goes
    from in_channels to out_channels, otherwise the second.
    """

    def __init__(self, in_channels, out_channels, stride=1, widens_first=True):
        super().__init__()
        middle = out_channels if widens_first else in_channels
        self.sepconv1 = SeparableConv(in_channels, middle)
        self.sepconv2 = SeparableConv(middle, out_channels)
        self.sepconv3 = SeparableConv(out_channels, out_channels, stride)
        self.skip = None
        if stride != 1 or in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.skipbn = batch_norm(out_channels)

    def forward(self, x):
        """(output, tensor after the second convolution), (N, out_channels, h, w) each."""
        shortcut = F.relu(x) if self.skip is None else self.skipbn(self.skip(x))
        inner = self.sepconv2(self.sepconv1(x))
        return self.sepconv3(inner) + shortcut, inner


class Xception(Backbone):
    """Aligned Xception-65 without its classifier."""

    low_channels = 256
    high_channels = 2048

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = batch_norm(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn2 = batch_norm(64)

        self.block1 = Block(64, 128, stride=2)
        self.block2 = Block(128, 256, stride=2)
        self.block3 = Block(256, 728, stride=2)
        for index in range(4, 20):
            setattr(self, f'block{index}', Block(728, 728))
        self.block20 = Block(728, 1024, widens_first=False)

        self.conv3 = SeparableConv(1024, 1536, relu_first=False)
        self.conv4 = SeparableConv(1536, 1536, relu_first=False)
        self.conv5 = SeparableConv(1536, 2048, relu_first=False)
        initialise(self)

    def forward(self, x):
        """The two feature maps of normalised images.

        Args:
            x (Tensor): float (N, 3, H, W).

        Returns:
            tuple of Tensor: c1 (N, 256, ceil(H/4), ceil(W/4)) from inside block2, before a ReLU,
            and c4 (N, 2048, ceil(H/16), ceil(W/16)).
        """
        x = self.run(self.run_stem, x, self.bn1, self.bn2)  # (N, 64, H/2, W/2)
        x, _ = self.run(self.block1, x)                     # (N, 128, H/4, W/4)
        x, c1 = self.run(self.block2, x)                    # (N, 256, H/8, W/8), (N, 256, H/4, W/4)
        for index in range(3, 21):
            x, _ = self.run(getattr(self, f'block{index}'), x)
        for last in (self.conv3, self.conv4, self.conv5):
            x = self.run(last, x)
        return c1, x

    def run_stem(self, x):
        """(N, 3, H, W) -> (N, 64, H/2, W/2)."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def batch_norm(channels):
    """BN with the small momentum that the public weights were trained with."""
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.0003)


def initialise(backbone):
    """Convolutions normal with variance 2 / (k^2 out); PyTorch already sets BN to 1 and 0."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan))
