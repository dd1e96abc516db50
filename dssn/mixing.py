"""CutMix: rectangles of one batch pasted into another."""
import torch


def box_mask(boxes, size):
    """Boxes (B, 4) int64 (top, left, height, width) -> bool (B, H, W), True inside the box."""
    height, width = size
    rows = torch.arange(height, device=boxes.device).view(1, height, 1)
    columns = torch.arange(width, device=boxes.device).view(1, 1, width)
    top, left, tall, wide = [side.view(-1, 1, 1) for side in boxes.unbind(1)]
    return ((rows >= top) & (rows < top + tall)) & ((columns >= left) & (columns < left + wide))


def paste(dst, src, inside):
    """`src` where `inside` (B, H, W) bool is True, `dst` elsewhere.

    Serves images and logits (B, C, H, W) and validity or labels (B, H, W) alike.
    """
    if dst.dim() == 4:
        inside = inside.unsqueeze(1)
    return torch.where(inside, src, dst)
