"""DeepLabV3+: a backbone, an ASPP head, and a decoder that can also run on perturbed features.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution" (ECCV 2018). Parameter
names are those of the public DSSN and UniMatch checkpoints.

Legend: N images, C classes, H x W pixels; c1 (N, C1, H/4, W/4) and c4 (N, C4, H/16, W/16) are the
backbone's maps.
"""

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ with feature-level strong views.

    Args:
        backbone: module that maps images to (c1, c4) and states low_channels, high_channels.
        nclass: number of classes C.
        dilations: dilations of the head's three 3x3 branches.
        decoder_channels: width of the two `fuse` convolutions.
    """

    def __init__(self, backbone, nclass, dilations=(6, 12, 18), decoder_channels=256):
        super().__init__()
        low, high = backbone.low_channels, backbone.high_channels
        self.backbone = backbone
        self.head = ASPP(high, high // 8, dilations)
        self.reduce = conv_bn_relu(low, 48, 1)
        self.fuse = nn.Sequential(
            *conv_bn_relu(48 + high // 8, decoder_channels, 3),
            *conv_bn_relu(decoder_channels, decoder_channels, 3))
        self.classifier = nn.Conv2d(decoder_channels, nclass, 1)

    def forward(self, images, perturb=0, lean=False, views=2):
        """Logits at the images' own size.

        Args:
            images (Tensor): float (N, 3, H, W), normalised.
            perturb (int): of the last so many images (U), predictions from perturbed copies of the
                features, too. As in the release the copies of all N images go with the clean
                features through the decoder as one batch, of 3N with two views, so that all share
                the decoder's batch statistics in training mode.
            lean (bool): perturb the last U images alone, one batch of N - U clean and U perturbed
                features a view, and predict from their clean features in a pass of its own and
                without gradient. The predictions are the same but for batch statistics.
            views (int): how many copies of each image, at least 1.

        Returns:
            Tensor: logits (N, C, H, W); or, with perturb, the tuple (clean, fp1, fp2, ...) of
            logits (N, C, H, W) and, for each view, (U, C, H, W). All are float32 under autocast.
        """
        c1, c4 = self.backbone(images)
        size = images.shape[-2:]
        if not perturb:
            return resize(as_float(self.decode(c1, c4)), size)
        n = len(images) - perturb
        if lean:
            with torch.no_grad():
                own = self.decode(c1[n:], c4[n:])
            labeled, *copies = self.decode(*[
                torch.cat([c[:n]] + perturbed(c[n:], views)) for c in (c1, c4)]).split(
                    [n] + views * [perturb])
            clean = torch.cat([labeled, own])
        else:
            clean, *copies = self.decode(*[
                torch.cat([c] + perturbed(c, views)) for c in (c1, c4)]).chunk(1 + views)
        logits = resize(as_float(torch.cat([clean] + [fp[-perturb:] for fp in copies])), size)
        return logits.split([len(images)] + views * [perturb])

    def decode(self, c1, c4):
        """Logits (N, C, H/4, W/4) from the backbone's two maps."""
        meaning = resize(self.head(c4), c1.shape[-2:])  # (N, C4/8, H/4, W/4)
        detail = self.reduce(c1)                        # (N, 48, H/4, W/4)
        return self.classifier(self.fuse(torch.cat((detail, meaning), dim=1)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: five branches of one width, concatenated and projected."""

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
    """The head's view of the whole image: its mean feature, projected, at every position."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1),
                                 *conv_bn_relu(in_channels, out_channels, 1))

    def forward(self, x):
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        pool, conv, norm, relu = self.gap
        pooled = relu(normalise(norm, conv(pool(x))))  # (N, out_channels, 1, 1)
        return resize(pooled, x.shape[-2:])


def normalise(norm, x):
    """norm(x) for x (N, K, 1, 1), also in training mode with N = 1."""
    if x.shape[0] > 1 or not norm.training:
        return norm(x)
    if isinstance(norm, nn.SyncBatchNorm) and world_size() > 1:
        # The processes together have several values per channel: statistics exist. PyTorch 1.8
        # counts only its own and refuses; a value given twice leaves mean and variance alone.
        is_old = torch.__version__.startswith('1.')
        return norm(x.repeat(2, 1, 1, 1))[:1] if is_old else norm(x)
    # One value per channel has no batch variance (PyTorch raises), and normalising it by its own
    # mean would erase the branch. The running statistics are the best estimate there is; a single
    # value teaches them nothing, so they stay as they are.
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias,
                        training=False, eps=norm.eps)


def world_size():
    """Number of processes that train together, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def perturbed(features, views):
    """Independent channel dropouts of features (N, K, h, w), as a list of `views`.

    Each view loses half of the channels on average and doubles the others. Dropout is a strong
    augmentation here, not a regulariser: it acts in evaluation mode as well.
    """
    return [F.dropout2d(features, p=0.5, training=True) for _ in range(views)]


def as_float(logits):
    """Logits that autocast made half as long, as float32: what follows needs the precision."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def resize(x, size):
    """Bilinear interpolation of (N, K, h, w) to `size`, corners aligned."""
    return F.interpolate(x, size=size, mode='bilinear', align_corners=True)


def conv_bn_relu(in_channels, out_channels, kernel_size, dilation=1):
    """Convolution that keeps the map's size (its bias would be BN's), BN, ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation,
                  bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True))
