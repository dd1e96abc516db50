"""DINOv2's vision transformer as an encoder: the states of four blocks as feature maps.

Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision" (2023), in the
form of its public weights: patches of 14 x 14 pixels, no registers. Training and evaluation mode
are the same function.

Legend: N images of 14h x 14w pixels, D the width, T = 1 + hw tokens.
"""

from collections import OrderedDict

import torch
import torch.nn as nn
import torch.nn.functional as F

from dssn.errors import UserError
from dssn.models.recompute import Backbone

PATCH = 14  # side of a patch, pixels
GRID = 37   # side of the grid of positions: images of 518 x 518 pixels
HEAD = 64   # channels of an attention head
# A fused kernel, which does not keep the T x T weights.
FUSED = hasattr(F, 'scaled_dot_product_attention')


class VisionTransformer(Backbone):
    """DINOv2's encoder.

    Args:
        width: D, a multiple of 64. depth: number of blocks. taps: the blocks, from 0, whose states
            are feature maps.
    """

    def __init__(self, width, depth=12, taps=(2, 5, 8, 11)):
        super().__init__()
        self.width, self.taps = width, taps
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID * GRID, width))
        # A part of the public weights that nothing uses.
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)
        self.patch_embed = nn.Sequential(OrderedDict(
            proj=nn.Conv2d(3, width, PATCH, stride=PATCH)))
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm = layer_norm(width)
        initialise(self)

    def forward(self, images):
        """The four feature maps of normalised images.

        Args:
            images (Tensor): float (N, 3, 14h, 14w).

        Returns:
            tuple of Tensor: (N, D, h, w) each, after the final norm, without the class token.

        Raises:
            UserError: height or width is no multiple of 14.
        """
        n, _, height, width = images.shape
        if height % PATCH or width % PATCH:
            raise UserError(f'images of {width}x{height} pixels: both sides must be multiples of '
                            f'{PATCH}')
        h, w = height // PATCH, width // PATCH
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)  # (N, hw, D)
        x = torch.cat([self.cls_token.expand(n, -1, -1), patches], dim=1) + self.positions(h, w)
        maps = []
        for index, block in enumerate(self.blocks):
            x = self.run(block, x)                                     # (N, T, D)
            if index in self.taps:
                maps.append(self.norm(x)[:, 1:].transpose(1, 2).reshape(n, -1, h, w))
        return tuple(maps)

    def positions(self, h, w):
        """The position embedding (1, T, D) of h x w patches; that of 37 x 37 is the parameter."""
        # Not `interpolate`: its backward pass in bicubic mode is not deterministic on GPUs, and
        # PyTorch 1.8 treats some sizes differently. Autocast and TF32 leave float64 alone.
        grid = self.pos_embed[0, 1:].view(GRID, GRID, -1).double()
        # Without a branch, so that an exported program has free sizes.
        sides = [grid.new_ones(side).sum() for side in (h, w)]
        is_native = (sides[0] == GRID) & (sides[1] == GRID)
        added = torch.where(is_native, grid.new_zeros(()), grid.new_full((), 0.1))
        down, across = resampling(h, added, grid), resampling(w, added, grid)
        grid = torch.einsum('hr,rcd,wc->hwd', down, grid, across).flatten(0, 1)[None]
        return torch.cat([self.pos_embed[:, :1], grid.to(self.pos_embed.dtype)], dim=1)


def resampling(count, added, like):
    """The matrix (count, 37) that resizes a side of the grid of positions.

    As in DINOv2: bicubic, by a scale factor, not by a size; rows outside the grid are its first or
    last one. With count 37 and nothing added it is the identity.

    Args:
        added: to `count` in the scale factor; 0.1 in DINOv2. like: a tensor with the dtype and
            device of the matrix.
    """
    options = {'dtype': like.dtype, 'device': like.device}
    place = (torch.arange(count, **options) + 0.5) * GRID / (count + added) - 0.5
    row = place.floor()[:, None] + torch.arange(-1, 3, **options)  # (count, 4)
    weight = cubic((place[:, None] - row).abs())
    is_row = row.clamp(0, GRID - 1)[..., None] == torch.arange(GRID, **options)
    return (weight[..., None] * is_row).sum(1)


def cubic(x, a=-0.75):
    """The kernel of PyTorch's bicubic interpolation, for distances x of 0 to 2."""
    near = (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1
    return torch.where(x <= 1, near, a * x ** 3 - 5 * a * x ** 2 + 8 * a * x - 4 * a)


class Block(nn.Module):
    """Attention and MLP around the residual stream, (N, T, D) -> (N, T, D)."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = layer_norm(width), layer_norm(width)
        self.attn = Attention(width)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)
        self.mlp = nn.Sequential(OrderedDict(
            fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width)))

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Self-attention with heads of 64 channels."""

    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, -1, HEAD).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


def attention(q, k, v):
    """softmax(q k^T / 8) v for q, k, v of (N, heads, T, 64)."""
    if FUSED:
        return F.scaled_dot_product_attention(q, k, v)
    return (q * HEAD ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v


class LayerScale(nn.Module):
    """One factor for each channel."""

    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


def layer_norm(width):
    return nn.LayerNorm(width, eps=1e-6)


def initialise(encoder):
    """DINOv2's initial weights; PyTorch's defaults are those of the other layers."""
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    nn.init.normal_(encoder.cls_token, std=1e-6)
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
