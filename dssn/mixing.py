"""CutMix: paste rectangles of one batch into another."""
import torch

BOX_RATIO = 0.3, 1 / 0.3  # smallest and largest height / width of a box


def box_mask(boxes, size):
    """Masks of boxes: True inside the box.

    Args:
        boxes: (B, 4) int64: top, left, height, width. size: (H, W).

    Returns:
        bool (B, H, W).
    """
    height, width = size
    rows = torch.arange(height, device=boxes.device).view(1, height, 1)
    columns = torch.arange(width, device=boxes.device).view(1, 1, width)
    top, left, box_height, box_width = [side.view(-1, 1, 1) for side in boxes.unbind(1)]
    return ((rows >= top) & (rows < top + box_height)
            & (columns >= left) & (columns < left + box_width))


def paste(dst, src, inside):
    """`src` where `inside` (B, H, W) bool is True, `dst` elsewhere.

    Both are images or logits (B, C, H, W), or labels or validity (B, H, W).
    """
    if dst.dim() == 4:
        inside = inside.unsqueeze(1)
    return torch.where(inside, src, dst)
