"""What all segmentation networks share: an encoder, maps that can be perturbed, a decoder.

Legend: N images, C classes, H x W pixels; K_i the channels of the encoder's feature map i.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


class SegmentationNetwork(nn.Module):
    """An encoder `backbone` and a decoder; a subclass defines `decode`.

    Attributes:
        patch: height and width of an image must be multiples of it.
        feature_channels: K_i of each feature map; a single entry if all maps have the same
            channels, in different states.
        batch_statistics: whether the predictions of an image depend on others of its batch.
        classifier_name: name of the last layer, which depends on the number of classes.
    """

    patch = 1
    batch_statistics = True
    classifier_name = 'classifier'

    def features(self, images):
        """The encoder's feature maps, a tuple of (N, K_i, h_i, w_i), which can be perturbed."""
        return self.backbone(images)

    def decode(self, *maps):
        """Logits (N, C, h, w) in the decoder's own size from the maps of `features`."""
        raise NotImplementedError

    def copies(self, maps, views, dropout, complementary):
        """For each map a list of `views` perturbed copies, see `perturbed` and `complements`.

        Each map loses channels of its own, but maps of the same channels all lose the same.
        """
        sample = complements if complementary else perturbed
        if len(self.feature_channels) == len(maps):
            return [sample(features, views, dropout) for features in maps]
        factors = sample(torch.ones_like(maps[0][:, :, :1, :1]), views, dropout)
        return [[features * factor for factor in factors] for features in maps]

    def forward(self, images, perturb=0, lean=False, views=2, dropout=0.5, complementary=False,
                factors=None):
        """Logits in the size of the images.

        Args:
            images (Tensor): float (N, 3, H, W), normalised.
            perturb (int): U, the number of images, the last ones, that are also predicted from
                perturbed copies of their features. As in the release the decoder gets the clean
                features of all N images and the copies of all N images as one batch (3N with two
                views), so that all share its batch statistics in training mode.
            lean (bool): perturb only the last U images. The decoder gets one batch of the N - U
                clean features of the others and the U perturbed ones of each view. The clean
                features of the U images go through it in a second pass without gradient. The
                predictions differ only by batch statistics. A network without batch statistics
                always does so.
            views (int): number of perturbed copies of each image, at least 1.
            dropout (float): probability that a copy loses a channel, see `perturbed`.
            complementary (bool): each channel is lost in one of the two copies, see `complements`.
            factors: the feature maps are multiplied by these factors of their channels: one tensor
                (N, K) for all maps, or a sequence with (N, K_i) for each map.

        Returns:
            Tensor: logits (N, C, H, W); or, with perturb, the tuple (clean, fp1, fp2, ...) of
            logits (N, C, H, W) and, for each view, (U, C, H, W). All are float32 under autocast.
        """
        maps = self.features(images)
        if factors is not None:
            maps = multiplied(maps, factors)
        size = images.shape[-2:]
        if not perturb:
            return resize(as_float(self.decode(*maps)), size)
        n = len(images) - perturb
        if lean or not self.batch_statistics:
            copies = self.copies([c[n:] for c in maps], views, dropout, complementary)
            labeled, *copies = self.decode(*[
                torch.cat([c[:n]] + copied) for c, copied in zip(maps, copies)]).split(
                    [n] + views * [perturb])
            # After the pass with gradient: before PyTorch 2.2 autocast caches the half-precision
            # weights of the first pass, and those of a pass without gradient transmit no gradient.
            with torch.no_grad():
                own = self.decode(*[c[n:] for c in maps])
            clean = torch.cat([labeled, own])
        else:
            copies = self.copies(maps, views, dropout, complementary)
            clean, *copies = self.decode(*[
                torch.cat([c] + copied) for c, copied in zip(maps, copies)]).chunk(1 + views)
        logits = resize(as_float(torch.cat([clean] + [fp[-perturb:] for fp in copies])), size)
        return logits.split([len(images)] + views * [perturb])


def perturbed(features, views, dropout=0.5):
    """A list of `views` copies of features (N, K, h, w) with independent channel dropout.

    Each channel of each copy is 0 with probability `dropout`; the others are divided by
    1 - dropout. Dropout is a strong augmentation here, not a regulariser, so it also acts in
    evaluation mode.
    """
    return [F.dropout2d(features, p=dropout, training=True) for _ in range(views)]


def complements(features, views=2, dropout=0.5):
    """The same with two copies, of which the second has the channels that the first one lost."""
    first, = perturbed(features, 1, dropout)
    return [first, 2 * features - first]


def multiplied(maps, factors):
    """Feature maps times the factors of their channels, see `SegmentationNetwork.forward`."""
    if torch.is_tensor(factors):
        factors = [factors] * len(maps)
    return [c * factor.to(c.dtype)[:, :, None, None] for c, factor in zip(maps, factors)]


def as_float(logits):
    """Logits as float32 if autocast made them half precision; losses need the precision."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def resize(x, size):
    """Bilinear interpolation of (N, K, h, w) to `size`, corners aligned."""
    return F.interpolate(x, size=size, mode='bilinear', align_corners=True)
