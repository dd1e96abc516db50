"""CutMix, compared with loops over pixels."""
import pytest
import torch

from dssn.mixing import box_mask, paste

# top, left, height, width of: no box, a box inside, at a corner, everything, one pixel, one row.
BOXES = [(0, 0, 0, 0), (1, 2, 3, 4), (3, 5, 2, 2), (0, 0, 5, 7), (4, 6, 1, 1), (2, 0, 1, 7)]


def slow_mask(boxes, height, width):
    inside = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for b, (top, left, box_height, box_width) in enumerate(boxes):
        for i in range(top, top + box_height):
            for j in range(left, left + box_width):
                inside[b, i, j] = True
    return inside


def test_box_mask_is_true_inside_the_box():
    inside = box_mask(torch.tensor(BOXES), (5, 7))
    assert inside.dtype == torch.bool
    assert torch.equal(inside, slow_mask(BOXES, 5, 7))
    assert inside.flatten(1).sum(1).tolist() == [0, 12, 4, 35, 1, 7]


def test_box_mask_takes_a_torch_size():
    assert box_mask(torch.tensor(BOXES[:2]), torch.zeros(2, 5, 7).shape[1:]).shape == (2, 5, 7)


@pytest.mark.parametrize('channels', [None, 1, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.int64, torch.bool])
def test_paste_takes_the_source_inside_and_the_destination_outside(channels, dtype):
    torch.manual_seed(0)
    shape = (len(BOXES), 5, 7) if channels is None else (len(BOXES), channels, 5, 7)
    dst, src = (torch.randint(2, shape).to(dtype) if dtype == torch.bool
                else (100 * torch.randn(shape)).to(dtype) for _ in range(2))
    before = dst.clone(), src.clone()
    expected = dst.clone()
    for b, (top, left, height, width) in enumerate(BOXES):
        area = (b, ..., slice(top, top + height), slice(left, left + width))
        expected[area] = src[area]
    pasted = paste(dst, src, slow_mask(BOXES, 5, 7))
    assert pasted.dtype == dtype and torch.equal(pasted, expected)
    assert torch.equal(dst, before[0]) and torch.equal(src, before[1])


def test_paste_into_as_many_images_as_channels():
    # The first axis of the mask is the image, even if there are as many channels as images.
    dst, src = torch.zeros(3, 3, 5, 7), torch.ones(3, 3, 5, 7)
    pasted = paste(dst, src, slow_mask(BOXES[:3], 5, 7))
    assert pasted.flatten(1).sum(1).tolist() == [0, 36, 12]
