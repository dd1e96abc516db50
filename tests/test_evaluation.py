"""Evaluation: hand-counted matrices, mIoU, sliding windows pixel by pixel, modes, ranks."""
import os

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

from dssn.data.lists import read_list
from dssn.distributed import World
from dssn.inference import evaluation
from dssn.inference.evaluation import confusion_matrix, evaluate, scores


class Painter(nn.Module):
    """Logits that depend on the pixel, its neighbours, its place and the whole input."""

    def __init__(self, nclass=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, nclass, 3, padding=1)
        self.norm = nn.BatchNorm2d(nclass)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        place = torch.linspace(0, 1, x.shape[2])[:, None] + torch.linspace(0, 2, x.shape[3])
        return self.norm(self.conv(x)) + place + x.mean((2, 3), keepdim=True)


# ---- counting and scoring

def test_confusion_matrix_counted_by_hand():
    label = torch.tensor([[0, 0, 1, 255], [1, 3, 255, 0]])
    prediction = torch.tensor([[0, 1, 1, 2], [0, 1, 3, 0]])
    assert confusion_matrix(label, prediction, 4).tolist() == [
        [2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_a_label_that_is_all_ignored_counts_nothing():
    matrix = confusion_matrix(torch.full((3, 3), 255), torch.zeros(3, 3).long(), 4)
    assert matrix.tolist() == [[0] * 4] * 4


def test_uint8_labels_give_the_same_counts():
    rng = np.random.default_rng(2)
    label, found = rng.integers(0, 250, (2, 5000))
    label[:100], expected = 255, np.zeros((250, 250), int)
    for true, guess in zip(label, found):
        if true != 255:
            expected[true, guess] += 1
    label, found = torch.from_numpy(label), torch.from_numpy(found)
    assert confusion_matrix(label.byte(), found, 250).tolist() == expected.tolist()
    assert confusion_matrix(label, found, 250).tolist() == expected.tolist()


# Ground truth: 4 pixels of class 0, 3 of class 1, one of class 2. Class 3 is predicted once, class
# 4 does not occur.
MATRIX = torch.tensor([[3, 1, 0, 0, 0], [0, 2, 0, 1, 0], [0, 0, 1, 0, 0], [0] * 5, [0] * 5])


def test_scores_computed_by_hand():
    score = scores(MATRIX, images=7)
    assert score.iou == pytest.approx([75, 50, 100, 0, None])
    assert score.recall == pytest.approx([75, 200 / 3, 100, None, None])
    assert score.precision == pytest.approx([100, 200 / 3, 100, 0, None])
    assert score.miou == pytest.approx((75 + 50 + 100 + 0) / 4)
    assert score.pixel_accuracy == pytest.approx(75)
    assert score.mean_accuracy == pytest.approx((75 + 200 / 3 + 100) / 3)
    assert score.fwiou == pytest.approx((4 * 75 + 3 * 50 + 1 * 100) / 8)
    assert (score.absent, score.images) == (1, 7)


def test_published_means_count_an_absent_class_as_zero():
    score = scores(MATRIX, absent='zero')
    assert score.miou == pytest.approx((75 + 50 + 100) / 5)
    assert score.mean_accuracy == pytest.approx((75 + 200 / 3 + 100) / 5)
    assert score.iou[4] is None and score.absent == 1


def test_a_one_pixel_class_that_is_missed_counts():
    assert scores(torch.tensor([[9, 0], [1, 0]])).iou == pytest.approx([90, 0])


def test_scores_of_no_pixel_are_finite():
    score = scores(torch.zeros(3, 3).long())
    assert (score.miou, score.pixel_accuracy, score.absent) == (0, 0, 3)
    assert (score.mean_accuracy, score.fwiou) == (0, 0)


def test_counts_beyond_float32_are_exact():
    n = 2 ** 40  # all of Cityscapes has 10^9 pixels; float32 loses single ones beyond 2^24
    assert scores(torch.tensor([[n, 1], [0, n]])).recall[0] == pytest.approx(
        100 * n / (n + 1), rel=1e-14)


# ---- sliding window

def slow_windows(model, images, window):
    """Each pixel's summed probabilities: window by window, as in the specification."""
    stride = int(2 / 3 * window) or 1
    height, width = images.shape[2:]
    total = np.zeros((len(images), 3, height, width))
    for top in range(height):
        for left in range(width):
            if top % stride or left % stride:
                continue
            bottom, right = min(top + window, height), min(left + window, width)
            logits = model(images[:, :, top:bottom, left:right]).detach().double().numpy()
            weight = np.exp(logits - logits.max(1, keepdims=True))
            total[:, :, top:bottom, left:right] += weight / weight.sum(1, keepdims=True)
    return total


@pytest.mark.parametrize('height, width, window, windows', [
    (20, 15, 9, 12),   # stride 6: rows 0 6 12 18 (12 already reaches the border), columns 0 6 12
    (13, 7, 9, 6),     # the last window of a row is one pixel thin
    (5, 4, 9, 1),      # smaller than the window
    (9, 9, 9, 4),      # exactly one window, and a second one that starts inside the image
    (17, 23, 8, 20),   # stride int(16/3) = 5
    (3, 4, 1, 12),     # stride not below 1
])
def test_sliding_window_against_the_slow_one(height, width, window, windows):
    model = Painter().eval()
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        got = evaluation.predict_windows(model, images, window)
    assert model.calls == windows
    np.testing.assert_allclose(got.numpy(), slow_windows(model, images, window), atol=1e-5)


def test_protocols_choose_the_predictor():
    model, images = Painter().eval(), torch.randn(1, 3, 12, 12)
    with torch.no_grad():
        whole = model(images).argmax(1)
        for protocol in ('original', 'center_crop'):  # the crop is made before
            assert torch.equal(evaluation.predictor(protocol, 9)(model, images), whole)
        windows = evaluation.predictor('sliding_window', 9)(model, images)
        np.testing.assert_array_equal(windows.numpy(), slow_windows(model, images, 9).argmax(1))
    assert not torch.equal(windows, whole)


# ---- test-time scales and flip

def slow_resize(image, height, width):
    """Bilinear, corners on corners, pixel by pixel: (C, H, W) -> (C, height, width)."""
    channels, tall, wide = image.shape
    out = np.zeros((channels, height, width))
    for row in range(height):
        for column in range(width):
            y = row * (tall - 1) / (height - 1) if height > 1 else 0
            x = column * (wide - 1) / (width - 1) if width > 1 else 0
            top, left = min(int(y), tall - 1), min(int(x), wide - 1)
            bottom, right = min(top + 1, tall - 1), min(left + 1, wide - 1)
            for row2, a in ((top, 1 - (y - top)), (bottom, y - top)):
                for column2, b in ((left, 1 - (x - left)), (right, x - left)):
                    out[:, row, column] += a * b * image[:, row2, column2]
    return out


def slow_augmented(model, image, scales, flip, window=None):
    """Summed probabilities (C, H, W) of the copies of one image (3, H, W)."""
    height, width = image.shape[1:]
    total = 0
    for scale in scales:
        tall, wide = round(height * scale), round(width * scale)
        for mirrored in ([False, True] if flip else [False]):
            copy = slow_resize(image.double().numpy(), tall, wide)
            copy = copy[:, :, ::-1] if mirrored else copy
            x = torch.from_numpy(copy.copy()).float()[None]
            if window:
                prob = slow_windows(model, x, window)[0]
            else:
                logits = model(x).detach().double().numpy()[0]
                prob = np.exp(logits) / np.exp(logits).sum(0)
            prob = prob / prob.sum(0)
            total = total + slow_resize(prob[:, :, ::-1] if mirrored else prob, height, width)
    return total


@pytest.mark.parametrize('protocol', ['original', 'sliding_window'])
@pytest.mark.parametrize('scales, flip', [([1.0], True), ([0.5], False), ([0.7, 1.0, 1.5], True)])
def test_scales_and_flip_against_the_slow_ones(protocol, scales, flip):
    model = Painter().eval()
    images = torch.randn(2, 3, 11, 14)
    with torch.no_grad():
        got = evaluation.predictor(protocol, 9, scales, flip)(model, images)
    for image, found in zip(images, got):
        window = 9 if protocol == 'sliding_window' else None
        expected = slow_augmented(model, image, scales, flip, window)
        np.testing.assert_array_equal(found.numpy(), expected.argmax(0))


# ---- networks of patches

class PatchPainter(Painter):
    """A network that predicts multiples of 4 pixels."""
    patch = 4

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        assert x.shape[2] % 4 == x.shape[3] % 4 == 0
        self.seen.append(tuple(x.shape[2:]))
        return super().forward(x)


def softmax(logits):
    weight = np.exp(logits - logits.max(0))
    return weight / weight.sum(0)


def logits_of(model, image):
    return model(torch.from_numpy(image.copy()).float()[None])[0].detach().double().numpy()


@pytest.mark.parametrize('height, width, tall, wide', [
    (12, 20, 12, 20), (13, 14, 12, 16), (10, 11, 12, 12), (1, 5, 4, 4), (2, 22, 4, 24)])
def test_whole_images_are_resized_to_the_nearest_patches_and_back(height, width, tall, wide):
    model, images = PatchPainter().eval(), torch.randn(2, 3, height, width)
    with torch.no_grad():
        found = evaluation.predict_whole(model, images)
        predicted = evaluation.predictor('original', 8)(model, images)
    assert model.seen == [(tall, wide)] * 2
    for image, got, index in zip(images, found, predicted):
        small = slow_resize(image.double().numpy(), tall, wide)
        expected = slow_resize(logits_of(model, small), height, width)
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
        np.testing.assert_array_equal(index.numpy(), expected.argmax(0))


def test_int_of_side_over_patch_plus_a_half():
    """The sides of the release: 14 pixels a patch."""
    assert [evaluation.in_patches(side, 14) for side in (500, 375, 333, 7, 6, 1, 518, 21, 20)] == [
        504, 378, 336, 14, 14, 14, 518, 28, 14]


def slow_patch_windows(model, image, window):
    """Summed probabilities (C, H, W) of one image; the last window ends at the border."""
    height, width = image.shape[1:]
    tall, wide = [side if side >= window else max(int(side / 4 + 0.5), 1) * 4
                  for side in (height, width)]
    image = slow_resize(image.double().numpy(), tall, wide)
    total = np.zeros((3, tall, wide))
    starts = []
    for side in (tall, wide):
        starts.append([0])
        while starts[-1][-1] + window < side:
            starts[-1].append(min(starts[-1][-1] + int(2 / 3 * window), side - window))
    for top in starts[0]:
        for left in starts[1]:
            part = np.s_[:, top:top + window, left:left + window]
            total[part] += softmax(logits_of(model, image[part]))
    return slow_resize(total, height, width)


@pytest.mark.parametrize('height, width, windows', [
    (20, 15, 12),  # stride 5: rows 0 5 10 12, columns 0 5 7
    (8, 8, 1), (8, 9, 2), (13, 18, 6),
    (7, 30, 6),    # 7 rows become 8
    (3, 5, 1)])    # smaller than the window: one window of 4 x 4
def test_windows_of_patches_end_at_the_border(height, width, windows):
    model, images = PatchPainter().eval(), torch.randn(1, 3, height, width)
    with torch.no_grad():
        found = evaluation.predict_windows(model, images, 8)[0]
    assert len(model.seen) == windows
    np.testing.assert_allclose(found.numpy(), slow_patch_windows(model, images[0], 8), atol=1e-5)


def test_windows_of_cityscapes():
    assert evaluation.window_starts(1024, 798, 14) == [0, 226]
    assert evaluation.window_starts(2048, 798, 14) == [0, 532, 1064, 1250]


@pytest.mark.parametrize('protocol', ['original', 'sliding_window'])
def test_scaled_copies_have_whole_patches(protocol):
    model, images = PatchPainter().eval(), torch.randn(1, 3, 21, 30)
    with torch.no_grad():
        found = evaluation.predictor(protocol, 12, [0.7, 1.0, 1.5], True)(model, images)[0]
    total, image = 0, images[0].double().numpy()
    # 0.7: 14.7 and 21 pixels; 1.5: 31.5 and 45. A copy of the image's own size is the image.
    for tall, wide in ((16, 20), (21, 30), (32, 44)):
        for mirrored in (False, True):
            copy = slow_resize(image, tall, wide)[:, :, ::-1 if mirrored else 1]
            if protocol == 'original':
                near = [int(side / 4 + 0.5) * 4 for side in (tall, wide)]
                prob = softmax(slow_resize(logits_of(model, slow_resize(copy, *near)), tall, wide))
            else:
                prob = slow_patch_windows(model, torch.from_numpy(copy.copy()), 12)
            prob = slow_resize(prob / prob.sum(0), 21, 30)
            total = total + prob[:, :, ::-1 if mirrored else 1]
    np.testing.assert_array_equal(found.numpy(), total.argmax(0))


def test_no_augmentation_is_the_plain_prediction():
    model, images = Painter().eval(), torch.randn(1, 3, 10, 8)
    with torch.no_grad():
        got = evaluation.predictor('original', 9, [1.0], False)(model, images)
        assert torch.equal(got, model(images).argmax(1)) and model.calls == 2


# ---- groups and crops

@pytest.mark.parametrize('height, width, size, expected', [
    (5, 4, 2, (slice(1, 3), slice(1, 3))), (6, 7, 3, (slice(1, 4), slice(2, 5))),
    (3, 9, 5, (slice(0, 3), slice(2, 7))), (4, 4, 4, (slice(0, 4), slice(0, 4))),
])
def test_the_center_is_cropped(height, width, size, expected):
    image = torch.arange(2 * height * width).view(2, height, width)
    assert torch.equal(evaluation.center_crop(image, size), image[(slice(None), *expected)])


@pytest.mark.parametrize('count', [1, 2, 3, 7])
def test_groups_have_one_size_and_contain_all_items(count):
    rng = np.random.default_rng(0)
    items = [(torch.zeros(3, 4 + int(rng.integers(3)), 5), i) for i in range(50)]
    groups = list(evaluation.group_by_size(iter(items), count))
    assert sorted(i for group in groups for _, i in group) == list(range(50))
    for group in groups:
        assert len(group) <= count and len({image.shape for image, _ in group}) == 1
    assert sum(len(group) < count for group in groups) <= 3  # the remainders of three sizes
    if count == 1:
        assert [i for (_, i), in groups] == list(range(50))


def test_the_number_of_waiting_images_is_bounded():
    taken = []

    def items():
        for i in range(100):  # all different
            taken.append(i)
            yield torch.zeros(3, 1 + i, 2), i
    given = 0
    for group in evaluation.group_by_size(items(), 4):
        given += len(group)
        assert len(taken) - given < 8 * 4
    assert given == 100


# ---- whole evaluations

def slow_matrix(model, cfg, samples):
    """Confusion matrix of whole images, opened by Pillow and counted pixel by pixel."""
    matrix = np.zeros((cfg.nclass, cfg.nclass), int)
    for sample in samples:
        image = np.array(Image.open(os.path.join(cfg.data_root, sample.image)).convert('RGB'))
        mask = np.array(Image.open(os.path.join(cfg.data_root, sample.mask)))
        x = (image / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        x = torch.from_numpy(x.transpose(2, 0, 1)[None]).float()
        with torch.no_grad():
            found = model(x).argmax(1)[0].numpy()
        for true, guess in zip(mask.ravel(), found.ravel()):
            if true != 255:
                matrix[true, guess] += 1
    return torch.from_numpy(matrix)


def ignore_a_corner(cfg, samples):
    for sample in samples:
        path = os.path.join(cfg.data_root, sample.mask)
        mask = np.array(Image.open(path))
        mask[:7, :9] = 255
        Image.fromarray(mask).save(path)


def test_two_networks_in_one_pass_against_the_slow_count(tiny_world):
    cfg = tiny_world().load()
    samples = read_list(cfg.val_id_path)
    ignore_a_corner(cfg, samples)
    networks = {'student': Painter(seed=0).eval(), 'teacher': Painter(seed=1).eval()}
    seen = []
    result = evaluate(networks, cfg, samples, World(), lambda *args: seen.append(args))
    assert [network.calls for network in networks.values()] == [len(samples)] * 2
    for name, network in networks.items():
        assert result[name] == scores(slow_matrix(network, cfg, samples), len(samples))
    assert result['student'] != result['teacher']
    assert [position for position, *_ in seen] == list(range(len(samples)))
    for _, image, label, predictions in seen:
        assert image.dtype == torch.uint8 and image.shape[1:] == label.shape
        assert {name: p.shape for name, p in predictions.items()} == {
            name: label.shape for name in networks}


def test_images_and_labels_are_moved_as_bytes(tiny_world, monkeypatch):
    cfg, moved, real = tiny_world().load(), [], torch.Tensor.to

    def to(tensor, *args, **kwargs):
        if any(isinstance(arg, torch.device) for arg in args):
            moved.append(tensor.dtype)
        return real(tensor, *args, **kwargs)
    monkeypatch.setattr(torch.Tensor, 'to', to)
    evaluate({'s': Painter()}, cfg, read_list(cfg.val_id_path), World())
    assert moved == [torch.uint8] * 6  # image and label of three samples


def test_absent_is_passed_on(tiny_world):
    cfg = tiny_world().load(nclass=5)
    samples = read_list(cfg.val_id_path)
    model = Painter().eval()
    skip = evaluate({'s': model}, cfg, samples, World())['s']
    zero = evaluate({'s': model}, cfg, samples, World(), absent='zero')['s']
    assert skip.absent == 2 and zero.miou == pytest.approx(skip.miou * 3 / 5)


@pytest.mark.parametrize('at_once', [2, 3, 10])
def test_batches_give_the_same_counts(tiny_world, monkeypatch, at_once):
    cfg = tiny_world(n_val=7).load()
    samples = read_list(cfg.val_id_path)
    model, seen = Painter().eval(), {}
    monkeypatch.setattr(evaluation, 'images_at_once', lambda *_: at_once)
    result = evaluate({'s': model}, cfg, samples, World(),
                      lambda position, *rest: seen.update({position: rest}))
    groups = sum(-(-count // at_once) for count in (4, 3))  # 4 landscapes, 3 portraits
    assert model.calls == groups
    assert result['s'] == scores(slow_matrix(model, cfg, samples), 7)
    assert sorted(seen) == list(range(7))
    for position, (image, label, predictions) in seen.items():
        mask = np.array(Image.open(os.path.join(cfg.data_root, samples[position].mask)))
        assert np.array_equal(label.numpy(), mask) and image.shape[1:] == mask.shape
        assert predictions['s'].shape == mask.shape


def test_a_cpu_predicts_one_by_one_and_a_gpu_batches(tiny_world):
    cfg = tiny_world().load(eval_batch_size=6)
    assert evaluation.images_at_once(cfg, torch.device('cpu')) == 1
    assert evaluation.images_at_once(cfg, torch.device('cuda', 1)) == 6


def test_center_crop_counts_the_middle_alone(tiny_world):
    cfg = tiny_world().load(protocol='center_crop', crop_size=32)
    samples = read_list(cfg.val_id_path)
    model, seen = Painter().eval(), []
    result = evaluate({'s': model}, cfg, samples, World(), lambda *args: seen.append(args))
    count = np.zeros((3, 3), int)
    for sample in samples:
        image = Image.open(os.path.join(cfg.data_root, sample.image)).convert('RGB')
        mask = Image.open(os.path.join(cfg.data_root, sample.mask))
        wide, tall = image.size  # 40 x 30 or 30 x 40: the short side is left whole
        box = (4, 0, 36, 30) if wide == 40 else (0, 4, 30, 36)
        image, mask = np.array(image.crop(box)) / 255.0, np.array(mask.crop(box))
        x = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            found = model(torch.from_numpy(x.transpose(2, 0, 1)[None]).float()).argmax(1)[0]
        for true, guess in zip(mask.ravel(), found.numpy().ravel()):
            count[true, guess] += 1
    assert result['s'] == scores(torch.from_numpy(count), len(samples))
    assert {tuple(label.shape) for _, _, label, _ in seen} == {(30, 32), (32, 30)}


def test_the_protocol_of_the_config_is_used(tiny_world):
    cfg = tiny_world().load(protocol='sliding_window', crop_size=18)
    model = Painter()
    evaluate({'s': model}, cfg, read_list(cfg.val_id_path), World())
    assert model.calls == 3 * 4 * 3  # 40 x 30 by windows of 18, stride 12


@pytest.mark.parametrize('fails', [False, True])
def test_modes_are_restored(tiny_world, fails):
    cfg = tiny_world().load()
    networks = {'student': Painter().train(), 'teacher': Painter().eval()}
    statistics = networks['student'].norm.running_mean.clone()

    def watch(*_):
        assert not any(module.training for n in networks.values() for module in n.modules())
        if fails:
            raise KeyboardInterrupt
    try:
        evaluate(networks, cfg, read_list(cfg.val_id_path), World(), watch)
        assert not fails
    except KeyboardInterrupt:
        assert fails
    assert all(module.training for module in networks['student'].modules())
    assert not any(module.training for module in networks['teacher'].modules())
    assert torch.equal(networks['student'].norm.running_mean, statistics)


def test_no_gradient_is_recorded(tiny_world):
    cfg = tiny_world().load()

    class Checked(Painter):
        def forward(self, x):
            assert not torch.is_grad_enabled()
            return super().forward(x)
    evaluate({'student': Checked()}, cfg, read_list(cfg.val_id_path), World())
    assert torch.is_grad_enabled()


class Part(World):
    """One of several ranks; records the tensors that it would sum over ranks."""

    def __init__(self, rank, size):
        super().__init__(rank, rank, size)
        self.given = []

    def sum(self, tensor):
        self.given.append(tensor.clone())
        return tensor


@pytest.mark.parametrize('size', [1, 2, 3, 5])
def test_every_image_is_counted_once_on_any_number_of_ranks(tiny_world, size):
    cfg = tiny_world(n_val=4).load()
    samples = read_list(cfg.val_id_path)
    model, positions, total = Painter().eval(), [], 0
    for rank in range(size):
        world = Part(rank, size)
        evaluate({'s': model}, cfg, samples, world, lambda position, *_: positions.append(position))
        matrix, = world.given  # counts are exchanged once, not image by image
        assert not matrix.is_floating_point()
        total = total + matrix
    assert sorted(positions) == [0, 1, 2, 3]
    assert torch.equal(total, slow_matrix(model, cfg, samples))


def test_table_shows_every_class_and_network():
    text = evaluation.table({'student': scores(MATRIX), 'teacher': scores(MATRIX.t())},
                            ['sky', 'road', 'car', 'bus', 'tram'])
    lines = text.splitlines()
    assert lines[0].split() == ['class', 'student', 'teacher']
    assert lines[1].split() == ['sky', '75.00', '75.00']
    assert lines[5].split() == ['tram', '-', '-']
    assert lines[6].split() == ['mIoU', '56.25', '56.25']
    assert lines[7].split() == ['mean', 'accuracy', '80.56', '66.67']
    assert lines[8].split() == ['pixel', 'accuracy', '75.00', '75.00']
    assert lines[9].split() == ['FWIoU', '68.75', '59.38']
    assert '1 of 5 classes' in lines[-1]


@pytest.mark.parametrize('matrix, last', [
    ([[9, 0, 0], [0, 0, 0], [0, 0, 0]], 'student: mIoU is the score of a single class'),
    ([[9, 1, 0], [0, 0, 0], [0, 0, 0]], 'student: mean accuracy is the score of a single class'),
    ([[0] * 3] * 3, 'student: mIoU is over no class'),
    ([[9, 0, 0], [0, 1, 0], [0, 0, 0]], None)])
def test_a_mean_over_fewer_than_two_classes_is_marked(matrix, last):
    text = evaluation.table({'student': scores(torch.tensor(matrix))}, ['sky', 'road', 'car'])
    warnings = [line for line in text.splitlines() if 'warning' in line]
    assert len(warnings) == bool(last) and (not last or warnings[0].startswith('warning: ' + last))


def test_table_with_details():
    lines = evaluation.table({'student': scores(MATRIX)}, ['sky', 'road', 'car', 'bus', 'tram'],
                             details=True).splitlines()
    assert lines[0].split() == ['class', 'student', 'recall', 'precision']
    assert lines[2].split() == ['road', '50.00', '66.67', '66.67']
    assert lines[4].split() == ['bus', '0.00', '-', '0.00']
    assert lines[6].split() == ['mIoU', '56.25']
