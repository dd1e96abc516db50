"""Inputs and weights of the published program's numbers in golden.pt, rebuilt from names.

Every number comes from a torch.Generator seeded with zlib.crc32 of a text tag. It is sampled in
float64 and only then rounded, so that a tag gives the same tensor in any torch version and on any
CPU. golden.pt keeps a checksum of the recipe (`recipe`), see `recipe_checksum`.

Weights (`fill_model`). For every name of a state_dict, with n = normal('weight:' + salt + name):
    *.num_batches_tracked   0
    *.running_mean          0.1 n
    *.running_var           1 + 0.1 |n|
    two or more dimensions  n * sqrt(1.2 / fan_in), fan_in = the number of elements of weight[0]
    other *.weight          1 + 0.1 n            (batch normalisation)
    other *.bias            0.1 n
The gain of 1.2 keeps the evaluation-mode logits of all three networks between about 1 and 10.
"""
import contextlib
import math
import zlib

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

SIZE = 33                       # height and width of the seeded logits and training images
BATCH = 2                       # images in each branch of the seeded logits


def generator(tag):
    made = torch.Generator()
    made.manual_seed(zlib.crc32(tag.encode()))
    return made


def normal(tag, *shape):
    return torch.randn(shape, generator=generator(tag), dtype=torch.float64)


def uniform(tag, *shape):
    return torch.rand(shape, generator=generator(tag), dtype=torch.float64)


def integers(tag, low, high, *shape):
    """Whole numbers from low up to and without high."""
    return (low + (uniform(tag, *shape) * (high - low)).floor()).long()


def weight(name, like, salt=''):
    """The value of one state_dict entry by its name and its shape."""
    if name.endswith('num_batches_tracked'):
        return torch.zeros_like(like)
    n = normal('weight:' + salt + name, *like.shape)
    if name.endswith('running_mean'):
        return 0.1 * n
    if name.endswith('running_var'):
        return 1 + 0.1 * n.abs()
    if like.dim() > 1:
        return n * math.sqrt(1.2 / like[0].numel())
    return 1 + 0.1 * n if name.endswith('weight') else 0.1 * n


@torch.no_grad()
def fill_model(model, salt='', classifier_gain=1.0):
    """Fills a module in place. classifier_gain scales the last layer, `classifier`."""
    for name, value in model.state_dict().items():
        filled = weight(name, value, salt)
        value.copy_(filled * classifier_gain if name.startswith('classifier.') else filled)
    return model


def image(tag, n, h, w):
    """A smooth random picture with some grain, in normalised units. float64."""
    coarse = F.interpolate(normal(tag + ':coarse', n, 3, 7, 7), size=(h, w), mode='bilinear',
                           align_corners=True)
    return 1.5 * coarse + 0.5 * normal(tag + ':fine', n, 3, h, w)


def logits(tag, n, nclass, sharpness, size=SIZE):
    """Independent normal logits. float64."""
    return sharpness * normal(tag, n, nclass, size, size)


def peaked_logits(tag, n, nclass, size=SIZE):
    """Logits whose softmax has a chosen largest value, so that a gate near 0.92 matters. float64.

    Every class of every image has a ceiling between 0.86 and 0.9999. Every pixel has a random
    winner, whose confidence lies between 0.8 of its ceiling and the ceiling. So about half of the
    classes of an image exceed the gate, different ones in each image, and about a third of the
    pixels are selected.
    """
    ceiling = 0.86 + 0.1399 * uniform(tag + ':ceiling', n, nclass)
    winner = integers(tag + ':winner', 0, nclass, n, size, size)
    share = 0.8 + 0.2 * uniform(tag + ':share', n, size, size) ** 0.25
    confidence = ceiling.gather(1, winner.flatten(1)).view_as(share) * share
    others = normal(tag + ':others', n, nclass, size, size).exp().scatter(1, winner[:, None], 0.0)
    share_of_others = others / others.sum(1, keepdim=True) * (1 - confidence[:, None])
    probability = share_of_others.scatter(1, winner[:, None], confidence[:, None])
    return probability.log() + normal(tag + ':offset', n, 1, size, size)


def labels(tag, n, h, w, nclass, ignored=0.15):
    """Independent labels with that share of 255. int64."""
    made = integers(tag, 0, nclass, n, h, w)
    made[uniform(tag + ':ignored', n, h, w) < ignored] = 255
    return made


# (top, bottom, left, right) of each image
BOXES = {'cutmix_box1': [(4, 20, 6, 17), None],
         'cutmix_box2': [(0, 9, 10, 33), (15, 33, 2, 14)]}
# Ignored rows at the bottom and columns at the right of each image; 0 means none.
PADDING = {'ignore_mask': [(9, 0), (0, 0)],
           'ignore_mask_mix': [(0, 7), (0, 12)]}
IMAGES = ('img_x', 'img_u_w', 'img_u_s1', 'img_u_s2', 'img_u_w_mix', 'img_u_s1_mix', 'img_u_s2_mix')


def regions(dtype):
    """The ignore masks (int64, 0 or 255) and boxes (0 or 1) of a step, the same in every step."""
    made = {}
    for name, sides in PADDING.items():
        made[name] = torch.zeros(BATCH, SIZE, SIZE, dtype=torch.int64)
        for one, (bottom, right) in zip(made[name], sides):
            one[SIZE - bottom:] = 255
            one[:, SIZE - right:] = 255
    for name, boxes in BOXES.items():
        made[name] = torch.zeros(BATCH, SIZE, SIZE, dtype=dtype)
        for one, box in zip(made[name], boxes):
            if box:
                one[box[0]:box[1], box[2]:box[3]] = 1
    return made


def loss_step(tag, nclass):
    """Everything one training step's loss depends on, float32 (labels int64).

    pred_x, pred_u_w                     student on the labelled and the weak unlabelled view
    drop1_x, drop1_u, drop2_x, drop2_u   the two feature-dropped passes over the same batch
    pred_s1, pred_s2                     student on the two strong views
    tea_u_w, tea_mix                     teacher on the weak view and on the weak mixing view
    mask_x, ignore_mask, ignore_mask_mix, cutmix_box1, cutmix_box2 and the six images (3 x 33 x 33)
    """
    made = {}
    for branch in ('pred_x', 'drop1_x', 'drop1_u', 'drop2_x', 'drop2_u', 'pred_s1', 'pred_s2'):
        made[branch] = logits(f'{tag}:{branch}', BATCH, nclass, sharpness=2.0).float()
    for branch in ('pred_u_w', 'tea_u_w', 'tea_mix'):
        made[branch] = peaked_logits(f'{tag}:{branch}', BATCH, nclass).float()
    for branch in IMAGES:
        made[branch] = image(f'{tag}:{branch}', BATCH, SIZE, SIZE).float()
    made['mask_x'] = labels(f'{tag}:mask_x', BATCH, SIZE, SIZE, nclass)
    made.update(regions(torch.float32))
    return made


def train_step(tag, nclass):
    """The batches of one step of the recorded training run, float64 images."""
    made = {}
    for branch in IMAGES:
        made[branch] = image(f'{tag}:{branch}', BATCH, SIZE, SIZE)
    # labels the network can learn: the nearest class of a smooth field
    field = image(f'{tag}:field', BATCH, SIZE, SIZE)[:, 0]
    made['mask_x'] = ((field + 3) * nclass / 6).floor().clamp(0, nclass - 1).long()
    made['mask_x'][uniform(f'{tag}:ignored', BATCH, SIZE, SIZE) < 0.1] = 255
    made.update(regions(torch.float64))
    return made


def validation(tag, nclass, dtype):
    """Two evaluation images with labels, as a loader would serve them."""
    return [(image(f'{tag}:val{i}', 1, 40, 44).to(dtype),
             labels(f'{tag}:val{i}', 1, 40, 44, nclass), [str(i)]) for i in range(2)]


def paste(background, foreground, box):
    """foreground where the box (N, H, W) is 1, background elsewhere; (N, H, W) or (N, C, H, W)."""
    inside = box == 1 if background.dim() == 3 else (box == 1)[:, None]
    return torch.where(inside, foreground, background)


@contextlib.contextmanager
def fixed_channel_dropout():
    """Makes torch's dropout2d deterministic, whatever random state the caller is in.

    Among the calls on features with C channels, calls 1, 3, 5... use pattern 0 and calls 2, 4, 6...
    pattern 1: a channel of a sample is kept, and doubled, where
    uniform('dropout:C:pattern', N, C) >= 0.5. A model that drops the shallow and the deep features
    once for each of two perturbed branches, first branch first, therefore sees the same masks in
    every step, whichever of the features it drops first.
    """
    real, calls = F.dropout2d, {}

    def dropout2d(input, p=0.5, training=True, inplace=False):
        if not training:
            return input
        assert p == 0.5  # the masks below drop half of the channels
        n, c = input.shape[:2]
        calls[c] = calls.get(c, 0) + 1
        keep = uniform(f'dropout:{c}:{(calls[c] - 1) % 2}', n, c) >= 0.5
        return input * (keep.to(input) * 2)[:, :, None, None]

    F.dropout2d = dropout2d
    try:
        yield calls
    finally:
        F.dropout2d = real


def mask_cases():
    """Logits for the selection mask, float32."""
    made = {'peaked_' + name: peaked_logits('mask:' + name, 2, 21) for name in 'abc'}
    made.update({name: logits('mask:' + name, 2, 21, sharpness)
                 for name, sharpness in (('soft', 1.0), ('sharp', 6.0), ('very_sharp', 20.0))})
    made['one_sharp_image'] = torch.cat((made['soft'][:1], made['peaked_a'][:1]))
    return {name: value.float() for name, value in made.items()}


OHEM_CASES = [
    dict(thresh=0.7, min_kept=256), dict(thresh=0.7, min_kept=0), dict(thresh=0.3, min_kept=0),
    dict(thresh=0.3, min_kept=100), dict(thresh=0.3, min_kept=1500), dict(thresh=0.01, min_kept=1),
    dict(thresh=0.9, min_kept=50), dict(thresh=0.7, min_kept=100000),
    dict(thresh=0.7, min_kept=256, use_weight=True), dict(thresh=0.3, min_kept=1500, ignored=0.5),
    dict(thresh=0.7, min_kept=256, ignored=0.95), dict(thresh=0.7, min_kept=256, ignored=1.1),
    dict(thresh=0.7, min_kept=0, ignored=1.1), dict(thresh=0.3, min_kept=200, images=1),
    dict(thresh=1.0, min_kept=10), dict()]


def ohem_case(case):
    """Settings, logits and target. Half of the pixels are labelled as predicted. float32."""
    settings = dict(case)
    ignored, images = settings.pop('ignored', 0.15), settings.pop('images', 2)
    scores = logits('ohem', images, 19, 2.0).float()
    target = labels('ohem:target', images, SIZE, SIZE, 19, ignored)
    agree = (uniform('ohem:agree', images, SIZE, SIZE) < 0.5) & (target != 255)
    return settings, scores, torch.where(agree, scores.argmax(1), target)


def tiny(salt, tracked):
    """A small module with every kind of state, for the moving average."""
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    model = fill_model(nn.Sequential(*layers), salt=salt)
    model[1].num_batches_tracked.fill_(tracked)
    return model


# Labels below this number, and 255
MIOU_CASES = {'usual': 21, 'label_21': 22, 'labels_to_30': 31}


def miou_case(name):
    """Predictions (0 to 20) and labels of three images; 60% of the labelled pixels agree."""
    predicted = integers('miou:predicted', 0, 21, 3, 40, 50)
    target = labels('miou:' + name, 3, 40, 50, MIOU_CASES[name])
    agree = (uniform('miou:agree', 3, 40, 50) < 0.6) & (target < 21)
    return predicted, torch.where(agree, predicted, target)


def evaluation_items():
    """Three items whose image is the logits of 21 classes, of which 19 and 20 never occur."""
    made = []
    for i in range(3):
        scores = logits(f'evaluate:{i}', 1, 21, 1.0, size=30).float()
        scores[:, 19:] -= 100
        agree = uniform(f'evaluate:agree{i}', 1, 30, 30) < 0.7
        target = labels(f'evaluate:{i}', 1, 30, 30, 19)
        made.append((scores, torch.where(agree, scores.argmax(1), target), [str(i)]))
    return made


def sliding_item():
    """An image (float64) and labels of 19 classes for the sliding window of 97."""
    return image('sliding:image', 1, 120, 200), labels('sliding:mask', 1, 120, 200, 19)


def picture(w=16, h=16, tag='picture'):
    """A colourful RGB picture: a gradient with noise, values 20 to 220 so that stretching shows."""
    rows = torch.arange(h).double()[:, None, None] / max(1, h - 1)
    columns = torch.arange(w).double()[None, :, None] / max(1, w - 1)
    tint = torch.tensor([0.0, 0.1, -0.1], dtype=torch.float64)
    base = 0.5 * rows + 0.3 * columns + 0.2 * uniform(tag, h, w, 3) + tint
    return Image.fromarray((20 + 200 * base.clamp(0, 1)).round().to(torch.uint8).numpy())


def digest(state):
    """name -> [mean, root mean square, weighted mean] in float64, to compare whole state_dicts."""
    made = {}
    for name, value in state.items():
        flat = value.detach().double().flatten()
        made[name] = [flat.mean().item(), flat.pow(2).mean().sqrt().item(),
                      (flat * normal('digest', flat.numel())).mean().item()]
    return made


def recipe_checksum():
    """Sums that change when one of the recipes above changes."""
    step, train = loss_step('checksum', 21), train_step('checksum', 21)
    made = [normal('checksum', 1000), integers('checksum', 0, 1000, 1000), *step.values(),
            *train.values(), *mask_cases().values(), *ohem_case(OHEM_CASES[0])[1:],
            *miou_case('usual'), *evaluation_items()[0][:2], *sliding_item(),
            *tiny('checksum', 5).state_dict().values(),
            *validation('checksum', 21, torch.float32)[0][:2],
            torch.tensor(list(picture().tobytes()))]
    return [value.double().sum().item() for value in made]
