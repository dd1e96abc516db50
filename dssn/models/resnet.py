"""ResNet-18/50/101 as a backbone: the feature maps of the first stage and of the last one.

Legend: N images, H x W pixels, b = base_channels (64 in the public networks).
"""

import functools

import torch.nn as nn

from dssn.models.recompute import Backbone


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity (He et al., CVPR 2016)."""

    expansion = 1

    def __init__(self, in_channels, width, stride, dilation):
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride, dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, 1, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, width * self.expansion, stride)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + identity)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 around an identity; the 3x3 has the stride, as in the public weights."""

    expansion = 4

    def __init__(self, in_channels, width, stride, dilation):
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + identity)


class ResNet(Backbone):
    """ResNet without its classifier.

    Args:
        block: BasicBlock or Bottleneck.
        depths: number of blocks in layer1 to layer4.
        stem: 'deep' (three 3x3 convolutions) or 'plain' (one 7x7, torchvision's layout).
        replace_stride_with_dilation: for layer2, layer3, layer4, whether dilation replaces its
            stride of 2, as in torchvision.
        base_channels: b; the stages have b, 2b, 4b, 8b channels times the block's expansion.
    """

    def __init__(self, block, depths, stem='deep',
                 replace_stride_with_dilation=(False, False, True), base_channels=64):
        super().__init__()
        channels = 2 * base_channels if stem == 'deep' else base_channels
        self.conv1 = STEMS[stem](base_channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        dilation = 1
        dilated_stages = [False] + list(replace_stride_with_dilation)
        for index, (depth, is_dilated) in enumerate(zip(depths, dilated_stages)):
            width, stride = base_channels * 2 ** index, 1 if index == 0 else 2
            # The input of the first block still has the stride before: it keeps the old dilation.
            first_dilation = dilation
            if is_dilated:
                dilation, stride = dilation * stride, 1
            layer = stage(block, channels, width, depth, stride, first_dilation, dilation)
            setattr(self, f'layer{index + 1}', layer)
            channels = width * block.expansion

        self.low_channels = base_channels * block.expansion
        self.high_channels = channels
        initialise(self)

    def forward(self, x):
        """The two feature maps of normalised images.

        Args:
            x (Tensor): float (N, 3, H, W).

        Returns:
            tuple of Tensor: c1 (N, low_channels, ceil(H/4), ceil(W/4)) from layer1 and
            c4 (N, high_channels, ceil(H/s), ceil(W/s)) from layer4, where s is 32, halved for
            each dilated stage.
        """
        x = self.run(self.run_stem, x, self.conv1, self.bn1)
        c1 = self.run_all(self.layer1, x)
        c4 = self.run_all(self.layer4, self.run_all(self.layer3, self.run_all(self.layer2, c1)))
        return c1, c4

    def run_stem(self, x):
        """(N, 3, H, W) -> (N, 2b or b, H/4, W/4)."""
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def run_all(self, blocks, x):
        for block in blocks:
            x = self.run(block, x)
        return x


# The other arguments are those of `ResNet`.
resnet10 = functools.partial(ResNet, BasicBlock, (1, 1, 1, 1))
resnet18 = functools.partial(ResNet, BasicBlock, (2, 2, 2, 2))
resnet50 = functools.partial(ResNet, Bottleneck, (3, 4, 6, 3))
resnet101 = functools.partial(ResNet, Bottleneck, (3, 4, 23, 3))


def stage(block, in_channels, width, depth, stride, first_dilation, dilation):
    """`depth` blocks in a row; only the first has the stride and `first_dilation`."""
    blocks = [block(in_channels, width, stride, first_dilation)]
    for _ in range(depth - 1):
        blocks.append(block(width * block.expansion, width, 1, dilation))
    return nn.Sequential(*blocks)


def deep_stem(base_channels):
    """3 -> b (stride 2) -> b -> 2b; `bn1` and `relu` of the network follow."""
    b = base_channels
    return nn.Sequential(
        conv3x3(3, b, 2), nn.BatchNorm2d(b), nn.ReLU(inplace=True),
        conv3x3(b, b), nn.BatchNorm2d(b), nn.ReLU(inplace=True),
        conv3x3(b, 2 * b))


def plain_stem(base_channels):
    """One 7x7 convolution 3 -> b with stride 2."""
    return nn.Conv2d(3, base_channels, 7, stride=2, padding=3, bias=False)


STEMS = {'deep': deep_stem, 'plain': plain_stem}


def projection(in_channels, out_channels, stride):
    """1x1 convolution and BN if a block changes the shape of its input, otherwise None."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def conv3x3(in_channels, out_channels, stride=1, dilation=1):
    return nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, bias=False)


def conv1x1(in_channels, out_channels, stride=1):
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


def initialise(backbone):
    """Kaiming normal (fan-out, ReLU) for convolutions; PyTorch already sets BN to 1 and 0."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
