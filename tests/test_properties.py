"""Properties that hold for any input. Hypothesis samples the same examples every time."""
import itertools
import os
import tempfile

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from dssn import config
from dssn.batch import Unlabeled
from dssn.data import transforms
from dssn.data.lists import Sample, format_line, parse_line, read_list, write_list
from dssn.data.views import NO_BOX, base_view, cutmix_box, strong_view
from dssn.errors import UserError
from dssn.keys import Config
from dssn.methods import build
from dssn.methods.dssn import DSSNConfig
from dssn.mixing import box_mask, paste
from dssn.pseudo_labels import class_max, class_topk, classes, fixed, none

COMMON = dict(derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))


def examples(count):
    return settings(max_examples=count, **COMMON)


# ---- config

KEYS = [field for field in Config.__dataclass_fields__] + list(
    DSSNConfig.__dataclass_fields__) + [
        'unknown', 'LR', '']
words = st.sampled_from([
    '', 'auto', 'DSSN', 'supervised', 'pascal', 'mine', 'CELoss', 'OHEM', 'cpu', 'resnet50', '1e-3',
    '.inf', 'yes', 'null', 'names.txt', '../x', 'a b', 'x\0y'])
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 600), st.integers(), st.floats(), words,
    st.text(max_size=8), st.integers(10 ** 300, 10 ** 310), st.binary(max_size=3), st.dates())
values = st.recursive(scalars, lambda inner: st.one_of(
    st.lists(inner, max_size=5), st.dictionaries(scalars, inner, max_size=3)), max_leaves=8)
criteria = st.fixed_dictionaries({'name': st.sampled_from(['CELoss', 'OHEM', 'other'])}, optional={
    'kwargs': st.dictionaries(st.sampled_from(['thresh', 'min_kept', 'ignore_index', 'x']),
                              st.one_of(st.floats(), st.integers(-1, 300), st.booleans()))})
# Mostly legal values, so that some mappings are accepted.
LEGAL = {
    'dataset': st.sampled_from(['pascal', 'cityscapes', 'coco', 'shapes', 'mine', 'my-data.2']),
    'nclass': st.integers(2, 255), 'seed': st.integers(0, 2 ** 40),
    'crop_size': st.integers(17, 900),
    'lr': st.one_of(st.floats(1e-9, 10), st.integers(1, 3)), 'criterion': criteria,
    'classes': st.lists(st.text(max_size=6), max_size=4), 'save_path': st.text(max_size=10),
    'data_root': st.text(max_size=10), 'workers': st.sampled_from(['auto', 0, 4]),
    'dilations': st.lists(st.integers(1, 40), min_size=3, max_size=3),
    'method': st.sampled_from(['DSSN', 'supervised']), 'epochs': st.integers(1, 500),
    'colours': st.lists(st.lists(st.integers(0, 255), min_size=3, max_size=3), max_size=2),
}
mappings = st.builds(
    lambda legal, others: {**legal, **others},
    st.fixed_dictionaries({'dataset': LEGAL['dataset'], 'nclass': LEGAL['nclass']}, optional={
        name: value for name, value in LEGAL.items() if name not in ('dataset', 'nclass')}),
    st.one_of(st.just({}), st.dictionaries(st.sampled_from(KEYS), values, max_size=3)))


def check_message(error, *words):
    text = str(error)
    assert text.isprintable() and len(text) < 4000
    for word in words:
        assert word in text


@examples(300)
@given(mappings)
def test_any_mapping_is_a_config_or_an_error(mapping):
    try:
        cfg = config.from_dict(mapping, 'some.yaml')
    except UserError as error:
        check_message(error, 'some.yaml')
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'config.yaml')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(config.dump(cfg))
        again = config.load(path)
    assert again == cfg and type(again) is type(cfg)


def test_the_sampled_mappings_are_legal_and_illegal():
    seen = {True: 0, False: 0}

    @examples(150)
    @given(mappings)
    def count(mapping):
        try:
            config.from_dict(mapping, 'some.yaml')
            seen[True] += 1
        except UserError:
            seen[False] += 1
    count()
    assert seen[True] >= 20 and seen[False] >= 20


def load_text(data):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'config.yaml')
        with open(path, 'wb') as file:
            file.write(data)
        try:
            return config.load(path)
        except UserError as error:
            check_message(error, 'config.yaml')


tokens = st.sampled_from([
    'lr', 'dataset', 'nclass', 'classes', ': ', ':', '- ', '\n', '\n  ', ' ', '{', '}', '[', ']',
    ',', '&a ', '*a', '<<', '!!', '!!int ', '!!python/name:os.system ', '!!set ', '"', "'", '|',
    '>', '%', '#', '?', '---', '...', '1', '1e-3', '.nan', '0x', '1:30', '2001-01-01', '~', '\t',
    '\0', 'é', '\ud7ff'])


@examples(300)
@given(st.one_of(st.binary(max_size=60), st.lists(tokens, max_size=16).map(
    lambda parts: ''.join(parts).encode())))
def test_any_bytes_are_a_config_or_an_error(data):
    load_text(data)


@examples(200)
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=5), st.booleans())
def test_any_yaml_mapping_is_a_config_or_an_error(mapping, flow):
    try:
        text = yaml.dump(mapping, default_flow_style=flow, allow_unicode=flow)
        load_text(text.encode('utf-8', 'surrogatepass'))
    except ValueError:  # PyYAML cannot write a number of so many digits
        pass


@examples(200)
@given(st.one_of(st.text(max_size=20), st.builds('{}={}'.format, st.sampled_from(KEYS),
                                                 st.text(max_size=12))))
def test_any_assignment_is_a_value_or_an_error(text):
    try:
        config.from_dict({'dataset': 'mine', 'nclass': 3}, 'some.yaml', assignments=[text])
    except UserError as error:
        check_message(error, '--set')


# ---- id lists

pieces = st.sampled_from([b'a.jpg', b' ', b'\t', b'\n', b'\r\n', b'b.png', b'../', b'/etc/x', b'\0',
                          b'\xff', b'\xc3\xa9', b'\xef\xbb\xbf', b'\x1b[2J', b'a b', b'\\', b'..'])


@examples(300)
@given(st.one_of(st.binary(max_size=60), st.lists(pieces, max_size=12).map(b''.join)),
       st.booleans(), st.booleans())
def test_any_bytes_are_samples_or_an_error_with_the_line(data, masks, allow_outside):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'list.txt')
        with open(path, 'wb') as file:
            file.write(data)
        try:
            samples = read_list(path, masks, allow_outside)
        except UserError as error:
            check_message(error, path)
            assert 'line ' in str(error) or 'empty' in str(error) or 'UTF-8' in str(error)
            return
    assert samples
    lines = data.decode('utf-8-sig').replace('\r\n', '\n').replace('\r', '\n').split('\n')
    for sample in samples:
        number = int(sample.place.rsplit(' ', 1)[1])
        assert sample.place == f'{path} line {number}'
        assert sample.image and sample.image in lines[number - 1]
        assert sample.mask is None or sample.mask in lines[number - 1]
        assert sample.mask or not masks
        for name in sample[:2]:
            if name and not allow_outside:
                assert os.path.abspath(os.path.join('/root', name)).startswith('/root')


# Characters of file names, and those with a meaning in id lists.
names = st.text(st.one_of(st.characters(blacklist_categories=('Cs',), blacklist_characters='\0'),
                          st.sampled_from(' \t\n\r/\\\ufeff')), min_size=1, max_size=12)


@examples(300)
@given(st.lists(st.tuples(names, st.one_of(st.none(), names)), min_size=1, max_size=4))
def test_a_list_is_written_and_read_back_or_refused(pairs):
    samples = [Sample(image, mask, 'x') for image, mask in pairs]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'list.txt')
        try:
            write_list(path, samples)
        except UserError as error:
            check_message(error)
            return
        again = read_list(path, False, allow_outside=True)
    assert [sample[:2] for sample in again] == [sample[:2] for sample in samples]


@examples(200)
@given(names, st.one_of(st.none(), names))
def test_parse_line_inverts_format_line(image, mask):
    try:
        line = format_line(Sample(image, mask, 'x'))
    except UserError:
        return
    assert '\n' not in line
    assert parse_line(line, 'place', False, allow_outside=True) == (image, mask, 'place')


# ---- transforms

sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))


def test_image_and_mask_stay_aligned():
    compared = []

    @examples(120)
    @given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.integers(1, 64),
           st.integers(0, 2 ** 32))
    def aligned(size, side, seed):
        compared.append(check_alignment(size, side, seed))
    aligned()
    assert sum(compared) > 8000


def check_alignment(size, side, seed):
    """An image with 50 x class in its red channel. Returns the number of compared pixels."""
    width, height = size
    rng = np.random.default_rng(seed)
    # Blocks at least as wide as the filter. Otherwise bilinear resizing would mix all of them.
    block = 8
    cells = rng.integers(0, 5, (height // block + 1, width // block + 1))
    index = cells.repeat(block, 0).repeat(block, 1)[:height, :width].astype(np.uint8)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 50 * index, 255
    image, mask = base_view(Image.fromarray(pixels), Image.fromarray(index), side,
                            np.random.default_rng(seed))
    image, mask = np.asarray(image).astype(int), np.asarray(mask)
    assert image.shape == (side, side, 3) and mask.shape == (side, side)
    padding = mask == 255
    # Exactly the padding is black: the image has 255 in its green channel.
    assert (image[padding] == 0).all() and (image[..., 1][~padding] == 255).all()
    # If all neighbours of a pixel have its class, it must have the colour of this class: resizing
    # mixes only neighbours.
    inner = ~padding
    reach = 3
    padded = np.pad(mask, reach, mode='constant', constant_values=254)
    for y, x in itertools.product(range(2 * reach + 1), repeat=2):
        inner &= padded[y:y + side, x:x + side] == mask
    assert (np.abs(image[..., 0] - 50 * mask.astype(int))[inner] <= 2).all()
    # The unlabeled view with the same random numbers has the same crop and the same padding.
    other, valid = base_view(Image.fromarray(pixels), None, side, np.random.default_rng(seed))
    assert (np.asarray(other) == image).all() and ((np.asarray(valid) == 255) == padding).all()
    return int(inner.sum())


@examples(150)
@given(sizes, st.integers(1, 48), st.integers(0, 2 ** 32))
def test_a_mask_window_equals_resizing_the_whole_and_cropping(size, side, seed):
    window = transforms.random_window(size, side, np.random.default_rng(seed))
    index = np.random.default_rng(seed).integers(0, 200, size[::-1]).astype(np.uint8)
    whole = np.full((max(window.height, side), max(window.width, side)), 255, np.uint8)
    whole[:window.height, :window.width] = Image.fromarray(index).resize(
        (window.width, window.height), Image.NEAREST)
    expected = whole[window.top:window.top + side, window.left:window.left + side]
    if window.mirrored:
        expected = expected[:, ::-1]
    cropped = np.asarray(transforms.crop_mask(Image.fromarray(index), window))
    np.testing.assert_array_equal(cropped, expected)


@examples(60)
@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.integers(0, 2 ** 32),
       st.integers(0, 5), st.booleans())
def test_strong_views_move_no_pixel(size, seed, num_aug, random_number):
    pixels = np.random.default_rng(seed).integers(0, 256, size + (3,))
    image = Image.fromarray(pixels.astype(np.uint8))
    before = np.array(image)
    cfg = DSSNConfig(num_aug=num_aug, flag_use_random_num_sampling=random_number)
    views = [strong_view(image, np.random.default_rng(seed), cfg) for _ in range(2)]
    assert views[0].size == image.size and views[0].mode == 'RGB'
    assert (np.array(views[0]) == np.array(views[1])).all() and (np.array(image) == before).all()


@examples(200)
@given(st.integers(17, 900), st.integers(0, 2 ** 32), st.sampled_from([0.0, 0.5, 1.0]))
def test_boxes_lie_in_the_crop(size, seed, probability):
    box = cutmix_box(size, np.random.default_rng(seed), probability)
    if box == NO_BOX:
        assert probability < 1
        return
    top, left, height, width = box
    assert probability > 0 and min(top, left) >= 0 and top + height <= size and left + width <= size
    # Sides are rounded down, so a small box may lose a row and a column.
    assert (height + 1) * (width + 1) > 0.02 * size * size and height * width <= 0.4 * size * size


# ---- selection

@st.composite
def logits(draw):
    """(N, C, H, W) of many kinds: all equal, with ties, certain, one class."""
    shape = tuple(draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6),
                                 st.integers(1, 6))))
    kind = draw(st.sampled_from(['normal', 'large', 'tied', 'zero', 'one class', 'two values']))
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32)))
    value = rng.normal(0, 1, shape)
    value = {'normal': value, 'large': 30 * value, 'tied': np.round(value), 'zero': 0 * value,
             'two values': np.where(value > 0.5, 4.0, 0.0), 'one class': value}[kind]
    if kind == 'one class':
        value[:, 0] += 50
    return torch.from_numpy(value).float()


def per_pixel(z):
    """[(image, row, column, class, confidence)] and the probabilities, by loops over pixels."""
    prob = z.softmax(1)
    found = []
    for n, y, x in itertools.product(range(z.shape[0]), range(z.shape[2]), range(z.shape[3])):
        column = [float(p) for p in prob[n, :, y, x]]
        best = max(column)
        found.append((n, y, x, column.index(best), best))
    return found, prob


def as_mask(z, pixels):
    mask = torch.zeros(z.shape[0], *z.shape[2:], dtype=torch.bool)
    for n, y, x in pixels:
        mask[n, y, x] = True
    return mask


@examples(120)
@given(logits(), st.sampled_from([0.0, 0.3, 0.5, 0.92]), st.sampled_from([0.0, 0.5, 0.96, 0.999]))
def test_class_max_against_loops(z, gate, ratio):
    pixels, prob = per_pixel(z)
    peak = {(n, c): max(float(p) for p in prob[n, c].flatten())
            for n, c in itertools.product(range(z.shape[0]), range(z.shape[1]))}
    chosen = []
    for n, y, x, c, confidence in pixels:
        # In float32, as the rule is computed: a product may fall on the border.
        bound = float(np.float32(ratio) * np.float32(peak[n, c]))
        if peak[n, c] > gate and confidence > bound:
            chosen.append((n, y, x))
    got = class_max(z, gate, ratio)
    tied = {(n, y, x) for n, y, x, c, confidence in pixels
            if abs(confidence - ratio * peak[n, c]) < 1e-6 or abs(peak[n, c] - gate) < 1e-6}
    for n, y, x in zip(*torch.nonzero(got != as_mask(z, chosen), as_tuple=True)):
        assert (int(n), int(y), int(x)) in tied


@examples(120)
@given(logits(), st.sampled_from([0.05, 0.3, 0.5, 0.6, 0.7, 1.0]))
def test_class_topk_against_loops(z, top):
    pixels, _ = per_pixel(z)
    chosen = []
    for key in {(n, c) for n, _, _, c, _ in pixels}:
        own = sorted((p for p in pixels if (p[0], p[3]) == key), key=lambda p: -p[4])
        count = max(1, int(np.floor(round(top * len(own), 6))))
        chosen += [p[:3] for p in own if p[4] >= own[count - 1][4]]
    assert torch.equal(class_topk(z, top), as_mask(z, chosen))


@examples(60)
@given(logits(), st.sampled_from([0.0, 0.2, 0.5, 0.95, 1.0]))
def test_fixed_and_none_against_loops(z, threshold):
    pixels, _ = per_pixel(z)
    chosen = [p[:3] for p in pixels if np.float32(p[4]) >= np.float32(threshold)]
    assert torch.equal(fixed(z, threshold), as_mask(z, chosen))
    assert none(z).all() and none(z).shape == classes(z).shape
    labels = classes(z)
    for n, y, x, _, confidence in pixels:
        assert float(z.softmax(1)[n, labels[n, y, x], y, x]) == pytest.approx(confidence, abs=1e-6)


# ---- mixing

@st.composite
def boxes(draw, height, width):
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return draw(st.sampled_from([NO_BOX, (top, left, draw(st.integers(0, height - top)),
                                          draw(st.integers(0, width - left)))]))


@st.composite
def mixed(draw):
    """(boxes (B, 4), (H, W), seed)."""
    height, width, count = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    found = [draw(boxes(height, width)) for _ in range(count)]
    return torch.tensor(found), (height, width), draw(st.integers(0, 2 ** 32))


@examples(150)
@given(mixed())
def test_paste_takes_the_partner_exactly_inside_the_box(example):
    box, (height, width), seed = example
    rng = np.random.default_rng(seed)
    shape = (len(box), height, width)
    own, partner = [torch.from_numpy(rng.normal(size=(shape[0], 4) + shape[1:])).float()
                    for _ in range(2)]
    valid, partner_valid = [torch.from_numpy(rng.random(shape) > 0.4) for _ in range(2)]
    inside = box_mask(box, (height, width))
    mixed_logits, mixed_valid = paste(own, partner, inside), paste(valid, partner_valid, inside)
    for n, y, x in itertools.product(*map(range, shape)):
        top, left, box_height, box_width = [int(side) for side in box[n]]
        within = top <= y < top + box_height and left <= x < left + box_width
        assert bool(inside[n, y, x]) == within
        source, source_valid = (partner, partner_valid) if within else (own, valid)
        assert torch.equal(mixed_logits[n, :, y, x], source[n, :, y, x])
        assert mixed_valid[n, y, x] == source_valid[n, y, x]
        # Labels and confidence are computed after pasting.
        assert classes(mixed_logits)[n, y, x] == source[n, :, y, x].argmax()
    for threshold in (0.3, 0.6):
        pasted = paste(fixed(own, threshold), fixed(partner, threshold), inside)
        assert torch.equal(fixed(mixed_logits, threshold), pasted)


class Pointwise(torch.nn.Module):
    """A network whose logits at a pixel depend only on that pixel. It records its inputs."""

    def __init__(self, seed):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.weight = torch.nn.Parameter(torch.from_numpy(rng.normal(size=(4, 3))).float())
        self.given = []

    def forward(self, images, perturb=0, lean=False, views=2, dropout=0.5,
                complementary=False):
        self.given.append(images)
        found = torch.einsum('kc,bchw->bkhw', self.weight, images)
        return [found] + views * [found[-perturb:]] if perturb else found


@examples(40)
@given(mixed(), st.sampled_from(['same order', 'other order']))
def test_strong_views_and_pseudo_labels_follow_the_boxes(example, order):
    box1, (height, width), seed = example
    count = len(box1)
    rng = np.random.default_rng(seed)
    box2 = box1.flip(0) if order == 'other order' else box1
    cfg = config.from_dict({'dataset': 'mine', 'nclass': 4, 'selection': 'fixed',
                            'conf_thresh': 0.5}, 'some.yaml')

    def views():
        images = [torch.from_numpy(rng.normal(size=(count, 3, height, width))).float()
                  for _ in range(3)]
        valid = torch.from_numpy(rng.random((count, height, width)) > 0.3)
        return Unlabeled(*images, valid, box1, box2, torch.arange(count))
    u, v = views(), views()
    x = type('Labeled', (), {'image': u.weak, 'label': torch.zeros(count, height, width).long()})
    method, student, teacher = build(cfg), Pointwise(seed + 1), Pointwise(seed + 2)
    method.start_step(3, 7, teacher)
    labels = method(student, teacher, x, u, v).labels
    strong = student.given[1].chunk(2)
    for i, box in ((0, box1), (1, box2)):
        pseudo = labels[f'image{i + 1}']
        for n, y, c in itertools.product(range(count), range(height), range(width)):
            top, left, box_height, box_width = [int(side) for side in box[n]]
            inside = top <= y < top + box_height and left <= c < left + box_width
            source = v if inside else u
            view = (source.strong1, source.strong2)[i]
            assert torch.equal(strong[i][n, :, y, c], view[n, :, y, c])
            prob = torch.mv(teacher.weight.detach(), source.weak[n, :, y, c]).softmax(0)
            assert pseudo.label[n, y, c] == prob.argmax()
            assert pseudo.valid[n, y, c] == source.valid[n, y, c]
            if abs(float(prob.max()) - 0.5) > 1e-5:
                assert bool(pseudo.selected[n, y, c]) == (float(prob.max()) >= 0.5)
