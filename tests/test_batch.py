"""Batches: normalisation, and the move to the device."""
import torch

from dssn.batch import Batch, Labeled, Unlabeled, denormalise, normalise, to

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(seed, n=2):
    torch.manual_seed(seed)
    return torch.randint(256, (n, 3, 4, 5), dtype=torch.uint8)


def batch(with_unlabeled=True):
    x = Labeled(images(0), torch.randint(256, (2, 4, 5), dtype=torch.uint8), torch.tensor([3, 1]))
    if not with_unlabeled:
        return Batch(x, None, None)
    parts = [Unlabeled(images(s), images(s + 1), images(s + 2), torch.rand(2, 4, 5) < 0.5,
                       torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]]),
                       torch.tensor([[1, 0, 1, 1], [2, 2, 2, 3]]), torch.tensor([5, 7]))
             for s in (1, 4)]
    return Batch(x, *parts)


def slow_normalise(pixels):
    out = torch.zeros(pixels.shape, dtype=torch.float64)
    for c in range(3):
        out[:, c] = (pixels[:, c].double() / 255 - MEAN[c]) / STD[c]
    return out


def test_normalise_by_the_statistics_of_imagenet():
    pixels = images(0)
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 255
    before = pixels.clone()
    out = normalise(pixels)
    assert out.dtype == torch.float32 and torch.equal(pixels, before)
    assert (out - slow_normalise(pixels)).abs().max() <= 1e-6


def test_denormalise_inverts_normalise():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    assert torch.equal(denormalise(normalise(pixels)), pixels)


def test_to_normalises_images_and_keeps_the_rest():
    before = batch()
    after = to(before, torch.device('cpu'))
    assert isinstance(after, Batch) and isinstance(after.labeled, Labeled)
    assert isinstance(after.unlabeled, Unlabeled) and isinstance(after.partner, Unlabeled)
    for old, new in zip(before, after):
        for name in old._fields:
            was, now = getattr(old, name), getattr(new, name)
            if name in ('image', 'weak', 'strong1', 'strong2'):
                assert was.dtype == torch.uint8 and now.dtype == torch.float32
                assert (now - slow_normalise(was)).abs().max() <= 1e-6
            elif name == 'label':
                assert was.dtype == torch.uint8 and now.dtype == torch.int64
                assert torch.equal(now, was.long())
            else:
                assert now.dtype == was.dtype and torch.equal(now, was)


def test_to_without_unlabeled_images():
    x, u, v = to(batch(with_unlabeled=False), torch.device('cpu'))
    assert u is None and v is None and x.image.dtype == torch.float32


def test_to_twice_normalises_once():
    once = to(batch(), torch.device('cpu'))
    before = once.labeled.image.clone(), once.unlabeled.strong2.clone()
    twice = to(once, torch.device('cpu'))
    assert torch.equal(twice.labeled.image, before[0])
    assert torch.equal(twice.unlabeled.strong2, before[1])
