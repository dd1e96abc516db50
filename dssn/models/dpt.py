"""DPT: a convolutional decoder that fuses four feature maps of a vision transformer.

Source: Ranftl et al., "Vision Transformers for Dense Prediction" (ICCV 2021), in the form of
UniMatch V2: no normalisation layer. Parameter names are those of its checkpoints.

Legend: N images of 14h x 14w pixels, C classes, D the encoder's width, F the decoder's.
"""

import torch.nn as nn

from dssn.models.segmentation import SegmentationNetwork, resize
from dssn.models.vit import PATCH


class DPT(SegmentationNetwork):
    """A vision transformer with a DPT head. Its feature maps are the encoder's four.

    Args:
        backbone: `VisionTransformer`. nclass: number of classes C. width: F. channels: of the four
            maps before they are fused.
    """

    patch = PATCH
    batch_statistics = False
    classifier_name = 'head.scratch.output_conv.2'

    def __init__(self, backbone, nclass, width, channels):
        super().__init__()
        self.backbone = backbone
        # The maps are states of one residual stream: a channel that one of them loses is still
        # present in the others.
        self.feature_channels = (backbone.width,)
        self.head = DPTHead(backbone.width, nclass, width, channels)

    def decode(self, *maps):
        """Logits (N, C, 8h, 8w) from the four maps (N, D, h, w) of the encoder."""
        return self.head(maps)


class DPTHead(nn.Module):
    """Four maps of one size become maps of strides 3.5 to 28, which are fused, the last one first.

    Args:
        in_channels: D. nclass, width, channels: see `DPT`.
    """

    def __init__(self, in_channels, nclass, width, channels):
        super().__init__()
        first, second, _, last = channels
        self.projects = nn.ModuleList([nn.Conv2d(in_channels, out, 1) for out in channels])
        self.resize_layers = nn.ModuleList([
            nn.ConvTranspose2d(first, first, 4, stride=4),    # -> 4h x 4w
            nn.ConvTranspose2d(second, second, 2, stride=2),  # -> 2h x 2w
            nn.Identity(),
            nn.Conv2d(last, last, 3, stride=2, padding=1)])   # -> ceil(h/2) x ceil(w/2)
        self.scratch = nn.ModuleDict()
        for i, out in enumerate(channels, 1):
            self.scratch[f'layer{i}_rn'] = nn.Conv2d(out, width, 3, padding=1, bias=False)
            self.scratch[f'refinenet{i}'] = Fusion(width)
        # A part of the public checkpoints that nothing uses.
        self.scratch['refinenet4'].resConfUnit1.requires_grad_(False)
        self.scratch['output_conv'] = nn.Sequential(
            conv3x3(width), nn.ReLU(inplace=True), nn.Conv2d(width, nclass, 1))

    def forward(self, maps):
        """Four (N, D, h, w) -> (N, C, 8h, 8w)."""
        maps = self.reassemble(maps)
        sizes = [m.shape[-2:] for m in maps[:-1]]
        sizes = [[2 * side for side in sizes[0]]] + sizes  # of the fused maps
        fused = None
        for i in (4, 3, 2, 1):
            fused = self.scratch[f'refinenet{i}'](fused, maps[i - 1], sizes[i - 1])
        return self.scratch['output_conv'](fused)

    def reassemble(self, maps):
        """Four (N, D, h, w) -> four maps of F channels with the sides 4h, 2h, h, ceil(h/2)."""
        return [self.scratch[f'layer{i + 1}_rn'](self.resize_layers[i](self.projects[i](c)))
                for i, c in enumerate(maps)]


class Fusion(nn.Module):
    """Adds a map to the fused ones, and resizes the sum. The names are those of checkpoints."""

    def __init__(self, width):
        super().__init__()
        self.resConfUnit1, self.resConfUnit2 = ResidualUnit(width), ResidualUnit(width)
        self.out_conv = nn.Conv2d(width, width, 1)

    def forward(self, fused, x, size):
        """(N, F, h, w) of `size`. fused: of the same shape as x, or None for the first map."""
        x = x if fused is None else fused + self.resConfUnit1(x)
        return self.out_conv(resize(self.resConfUnit2(x), size))


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, around an identity."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2, self.relu = conv3x3(width), conv3x3(width), nn.ReLU()

    def forward(self, x):
        return x + self.conv2(self.relu(self.conv1(self.relu(x))))


def conv3x3(width):
    return nn.Conv2d(width, width, 3, padding=1)
