"""UniMatch V2: whole steps against a slow recomputation, pixel by pixel, and its dropout, counted.

n labeled and B unlabeled images, C = 4 classes, H x W pixels; all in double precision.
"""
import copy
import itertools
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from test_dpt import normal, seeded
from test_losses import slow_cross_entropy, slow_ohem, softmax
from test_methods import CE, CLASSES, OHEM, config as dssn_config, network, random_batch

from dssn import ema, methods
from dssn.batch import Batch, Labeled, Unlabeled, with_partner
from dssn.distributed import World
from dssn.methods.fixmatch import FixMatchConfig
from dssn.methods.unimatch_v2 import UniMatchV2Config, complementary_factors
from dssn.models import DPT, build_model
from dssn.models.vit import VisionTransformer
from dssn.optim import build_adamw, optimizer_of
from dssn.update import Update, seed_step, split

CHANNELS = 6


class Network(nn.Module):
    """Two maps of the same channels, which act on each pixel alone; remembers its calls."""

    def __init__(self, seed, gain=4.0):
        super().__init__()
        torch.manual_seed(seed)
        self.feature_channels, self.gain, self.calls = (CHANNELS,), gain, []
        self.backbone = nn.ModuleList([nn.Conv2d(3, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)])
        self.head = nn.Conv2d(CHANNELS, CLASSES, 1)
        self.double()

    def forward(self, images, factors=None):
        self.calls.append((images, factors, self.training, torch.is_grad_enabled()))
        first = self.backbone[0](images)
        second = self.backbone[1](first.tanh())
        factor = 1 if factors is None else factors[:, :, None, None].double()
        return self.gain * self.head(first * factor + second * factor)

    def pixel(self, pixel, factor):
        """Logits, floats, of a pixel (three floats), where the channels are times `factor`."""
        def linear(layer, values):
            weight, bias = layer.weight[:, :, 0, 0].tolist(), layer.bias.tolist()
            return [sum(w * v for w, v in zip(row, values)) + b for row, b in zip(weight, bias)]
        first = linear(self.backbone[0], pixel)
        second = linear(self.backbone[1], [math.tanh(value) for value in first])
        return [self.gain * value for value in linear(
            self.head, [(a + b) * f for a, b, f in zip(first, second, factor)])]


def config(method='unimatch_v2', **changes):
    keys = dict(nclass=CLASSES, criterion=CE, conf_thresh=0.8, method=method, batch_size=2)
    if method == 'fixmatch':
        return FixMatchConfig(**{**keys, 'label_ema': 0.996, 'cutmix_partner': 'batch',
                                 **changes})
    return UniMatchV2Config(**{**keys, **changes})


def slow_pseudo_label(teacher, image, row, column, thresh):
    prob = softmax(teacher.pixel(image[:, row, column].tolist(), [1.0] * CHANNELS))
    return prob.index(max(prob)), max(prob) >= thresh


def in_box(box, row, column):
    top, left, height, width = box
    return top <= row < top + height and left <= column < left + width


def slow_strong_loss(student, teacher, u, view, factors, thresh):
    """(L_s of a view, fraction selected): image i is pasted from image B - 1 - i of the batch."""
    strong, boxes = getattr(u, f'strong{view}'), getattr(u, f'box{view}').tolist()
    total, valid, selected = 0.0, 0, 0
    count, height, width = u.valid.shape
    for i, row, column in itertools.product(range(count), range(height), range(width)):
        source = count - 1 - i if in_box(boxes[i], row, column) else i
        if not u.valid[source, row, column]:
            continue
        valid += 1
        label, sure = slow_pseudo_label(teacher, u.weak[source], row, column, thresh)
        if sure:
            selected += 1
            logits = student.pixel(strong[source][:, row, column].tolist(), factors[i])
            total -= math.log(softmax(logits)[label])
    return total / max(valid, 1), selected / max(valid, 1)


def step_of(cfg, step, b=2, labeled=None, size=(7, 9), batch=None):
    """(method, student, teacher, (x, u, v), terms) of one step; v is the reversed batch."""
    student, teacher = Network(1), ema.make_teacher(Network(2))
    x, u, _ = batch or random_batch(b, *size, labeled=labeled)
    v = with_partner(Batch(x, u, None)).partner
    method = methods.build(cfg)
    method.start_step(0, step, teacher)
    torch.manual_seed(7)
    return method, student, teacher, (x, u, v), method(student, teacher, x, u, v)


@pytest.mark.parametrize('method, criterion, b, labeled', [
    ('unimatch_v2', CE, 2, 2), ('unimatch_v2', CE, 3, 1), ('unimatch_v2', CE, 1, 1),
    ('unimatch_v2', OHEM, 4, 3), ('fixmatch', CE, 3, 2), ('fixmatch', OHEM, 1, 1)])
def test_a_whole_step(method, criterion, b, labeled):
    """The partner of an odd batch's middle image, and of a batch of one, is the image itself."""
    cfg = config(method, criterion=criterion)
    made, student, teacher, (x, u, _), terms = step_of(cfg, 40, b, labeled)
    views = 2 if method == 'unimatch_v2' else 1
    (images, factors, *_), = student.calls[1:]
    factors = torch.ones(b * views, CHANNELS) if factors is None else factors
    # The labeled loss has a slow reference of its own.
    logits = Network(1)(x.image)
    arguments = (logits, x.label) if criterion is CE else (logits, x.label, 0.2, 9)
    expected = {'supervised': (slow_cross_entropy if criterion is CE else slow_ohem)(*arguments)}
    for view in range(1, views + 1):
        mine = factors[(view - 1) * b:view * b].tolist()
        expected[f'image{view}'], share = slow_strong_loss(student, teacher, u, view, mine, 0.8)
        assert terms.fractions[f'selected_image{view}'].item() == pytest.approx(share, abs=1e-6)
        assert 0.02 < share < 0.98
    assert set(terms.losses) == set(expected)
    for name, value in expected.items():
        assert terms.losses[name].item() == pytest.approx(value, rel=1e-9), name
    strong = sum(value for name, value in expected.items() if name != 'supervised') / views
    assert made.total(terms.losses).item() == pytest.approx(
        (expected['supervised'] + strong) / 2, rel=1e-9)


def test_who_sees_what():
    """The teacher one pass over the weak views; the student the labeled ones, then the strong."""
    _, student, teacher, (x, u, _), _ = step_of(config(), 0)
    (weak, none, training, grad), = teacher.calls
    assert torch.equal(weak, u.weak) and none is None and not training and not grad
    (first, plain, *_), (second, factors, *_) = student.calls
    assert torch.equal(first, x.image) and plain is None
    assert len(second) == 4 and factors.shape == (4, CHANNELS)
    assert all(training and grad for _, _, training, grad in student.calls)


@pytest.mark.parametrize('method', ['unimatch_v2', 'fixmatch'])
@pytest.mark.parametrize('edge', ['no label', 'all padding', 'nothing selected'])
def test_steps_with_nothing_to_learn_from(method, edge):
    cfg = config(method, conf_thresh=1.0 if edge == 'nothing selected' else 0.5)
    x, u, v = random_batch(2, 5, 6)
    if edge == 'no label':
        x = x._replace(label=torch.full_like(x.label, 255))
    if edge == 'all padding':
        u = u._replace(valid=torch.zeros_like(u.valid))
    made, student, _, _, terms = step_of(cfg, 3, batch=(x, u, v))
    for name, value in terms.losses.items():
        assert (value.item() == 0) == ((name == 'supervised') == (edge == 'no label')), name
    made.total(terms.losses).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in student.parameters())


def test_labels_pass_no_gradient_on_and_the_encoder_gets_one_through_the_dropout():
    made, student, teacher, _, terms = step_of(config(conf_thresh=0.5), 3)
    (terms.losses['image1'] + terms.losses['image2']).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad.norm() > 0 for p in student.parameters())


# ---- complementary dropout

@pytest.mark.parametrize('pairs', [1, 2, 3, 4, 5])
def test_each_channel_reaches_one_view_twice_as_strong_and_half_of_the_pairs_are_spared(pairs):
    student, rounds = Network(1), 400
    student.feature_channels = (5, 8)
    torch.manual_seed(pairs)
    kept, spared, agree = 0, torch.zeros(pairs), 0
    for _ in range(rounds):
        found = complementary_factors(pairs, student, 'cpu')
        assert [tuple(f.shape) for f in found] == [(2 * pairs, 5), (2 * pairs, 8)]
        whole = [(f == 1).all(1) for f in found]
        assert torch.equal(*whole), 'the spared pairs are the same for all maps'
        first, second = whole[0].chunk(2)
        assert torch.equal(first, second) and int(first.sum()) == pairs // 2
        spared += first
        for f in found:
            one, two = [half[~first] for half in f.chunk(2)]
            assert bool(((one == 0) | (one == 2)).all()) and bool((one + two == 2).all())
        dropped = [f.chunk(2)[0][~first] for f in found]
        kept += sum(float(f.mean()) for f in dropped) / 4  # a fair coin: 0 or 2
        agree += float((dropped[0] == dropped[1][:, :5]).float().mean())
    deviation = 0.5 / math.sqrt(rounds * (pairs - pairs // 2) * 13)
    assert abs(kept / rounds - 0.5) < 5 * deviation
    assert abs(agree / rounds - 0.5) < 0.1  # the coins of the two kinds are independent
    share = (pairs // 2) / pairs            # each pair is as likely to be spared as any other
    assert (spared / rounds - share).abs().max() < 5 * math.sqrt(max(share, 0.01) / rounds)


def test_masks_are_a_function_of_seed_step_rank_and_part():
    student = Network(1)

    def drawn(*where):
        seed_step(*where)
        return complementary_factors(4, student, 'cpu')
    assert torch.equal(drawn(3, 5, 0), drawn(3, 5, 0))
    for other in ((4, 5, 0), (3, 6, 0), (3, 5, 1), (3, 5, 0, 1)):
        assert not torch.equal(drawn(3, 5, 0), drawn(*other))


# ---- the reversed batch, and the update

@pytest.mark.parametrize('count, parts, order', [
    (1, 1, [0]), (2, 1, [1, 0]), (3, 1, [2, 1, 0]), (4, 1, [3, 2, 1, 0]),
    (4, 2, [1, 0, 3, 2]), (4, 4, [0, 1, 2, 3]), (6, 2, [2, 1, 0, 5, 4, 3])])
def test_the_reversed_batch_is_that_of_each_part(count, parts, order):
    x, u, _ = random_batch(4, 5, 6)
    u = type(u)(*[torch.cat([t, t])[:count] for t in u])
    u = u._replace(index=torch.arange(10, 10 + count))
    batch = with_partner(Batch(x, u, None), parts)
    for own, partner in zip(u, batch.partner):
        assert torch.equal(partner, own[order])
    for part in split(batch._replace(labeled=u), parts):
        assert torch.equal(part.partner.index, part.unlabeled.index.flip(0))


@pytest.mark.parametrize('method', ['unimatch_v2', 'fixmatch'])
@pytest.mark.parametrize('parts', [2, 4])
def test_a_split_batch_is_the_mean_of_its_parts(method, parts):
    x, u, _ = random_batch(4, 5, 6)
    u.valid[1] = False

    def gradients(batch, accumulate, numbers):
        cfg = config(method, batch_size=4, accumulate=accumulate, conf_thresh=0.5)
        student, teacher = Network(1), ema.make_teacher(Network(2))
        made = methods.build(cfg)
        made.start_step(1, 9, teacher)
        update = Update(cfg, World(), made, student, teacher, build_adamw(student, 0.1, 2.0), 0.1,
                        100)
        with pytest.MonkeyPatch.context() as patch:  # a part's numbers are its own
            patch.setattr('dssn.update.seed_step', lambda *where: seed_step(
                *where[:3], numbers[where[3] if len(where) > 3 else 0]))
            terms = update.gradients(update.move(batch), 9)
        return terms, {name: p.grad for name, p in student.named_parameters()}
    terms, found = gradients(Batch(x, u, None), parts, list(range(parts)))
    rows = [gradients(Batch(*part, None), 1, [number]) for number, part in
            enumerate(zip(*[[type(kind)(*piece) for piece in zip(*[t.chunk(parts) for t in kind])]
                            for kind in (x, u)]))]
    for name, gradient in found.items():
        expected = sum(gradients[name] for _, gradients in rows) / parts
        assert (gradient - expected).abs().max() <= 1e-12, name
    for name, value in terms.losses.items():
        mean = sum(part.losses[name].item() for part, _ in rows) / parts
        assert value.item() == pytest.approx(mean, abs=1e-12)


def test_the_teacher_follows_on_a_ramp():
    made = methods.build(config(beta=0.9))
    rates = []
    for step in range(12):
        made.start_step(0, step, nn.Module())
        rates.append(made.keep_rate)
    assert rates == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4, 4 / 5, 5 / 6, 6 / 7, 7 / 8, 8 / 9]
                                  + 3 * [0.9])
    published = methods.build(config())
    for step, rate in ((0, 0), (1, 0.5), (248, 1 - 1 / 249), (249, 0.996), (5000, 0.996)):
        published.start_step(0, step, nn.Module())
        assert published.keep_rate == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize('ramp, rates', [(True, [0, 0, 0, 0, 4 / 5, 5 / 6, 0.85]),
                                         (False, [0, 0, 0, 0, 0.85, 0.85, 0.85])])
def test_dssns_teacher_may_follow_on_the_ramp_after_the_warm_up(ramp, rates):
    made = methods.build(dssn_config(beta=0.85, ema_ramp=ramp, warm_up_epochs=1))
    found = []
    for step in range(7):
        made.start_step(step // 4, step, nn.Module())
        found.append(made.keep_rate)
    assert found == pytest.approx(rates)


@pytest.mark.parametrize('keys', [{}, {'feature_labels': 'teacher'}, {'feature_views': 0}], ids=str)
def test_partners_of_the_same_batch_need_no_second_pass_of_the_teacher(keys):
    """DSSN with the partner's logits taken from the images', and predicted anew."""
    x, u, _ = random_batch(3, 33, 33)
    v = with_partner(Batch(x, u, None)).partner
    found = []
    for partner in ('batch', 'other'):
        student, teacher, images = network(1), ema.make_teacher(network(2)), []
        teacher.register_forward_pre_hook(lambda _, args, seen=images: seen.append(len(args[0])))
        made = methods.build(dssn_config(cutmix_partner=partner, **keys))
        made.start_step(1, 9, teacher)
        torch.manual_seed(7)
        found.append((made(student, teacher, x, u, v).losses, images))
    (losses, images), (expected, others) = found
    assert images == [3] and others == [6] and 'image2' in losses
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-12), name


def test_a_frozen_encoder_stays_the_teachers():
    """Averaging equal numbers would round them."""
    student = Network(1).float()
    student.backbone.requires_grad_(False)
    teacher = ema.make_teacher(student)
    before = copy.deepcopy(teacher.state_dict())
    for _ in range(20):
        with torch.no_grad():
            student.head.weight.add_(0.1)
        ema.update(teacher, student, 0.996)
    for name, value in teacher.state_dict().items():
        if name.startswith('backbone.'):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(teacher.head.weight, before['head.weight'])


# ---- real networks

def built(**keys):
    torch.manual_seed(0)
    return build_model(config(**{**dict(model='dpt', backbone='dinov2_tiny'), **keys})).eval()


DEEPLAB = dict(model='deeplabv3plus', backbone='resnet10', base_channels=4, decoder_channels=8)


@pytest.mark.parametrize('keys', [{}, DEEPLAB], ids=['DPT', 'DeepLabV3+'])
def test_dropout_of_the_encoders_maps(monkeypatch, keys):
    """All maps of DPT lose the same channels at all places; DeepLabV3+'s two lose their own."""
    model, images, seen = built(**keys), torch.randn(4, 3, 28, 28), []
    real = type(model).decode
    monkeypatch.setattr(type(model), 'decode',
                        lambda self, *maps: seen.append(maps) or real(self, *maps))
    torch.manual_seed(2)
    factors = complementary_factors(2, model, 'cpu')
    with torch.no_grad():
        model(images)
        model(images, factors=factors)
    clean, dropped = seen
    assert len(clean) == (2 if keys else 4)
    each = factors if keys else [factors] * 4
    for before, after, factor in zip(clean, dropped, each):
        assert after.shape[-2:] == before.shape[-2:] and factor.shape == before.shape[:2]
        assert torch.equal(after, before * factor[:, :, None, None])
    spared = [i for i in range(2) if bool((each[0][i] == 1).all())]
    assert len(spared) == 1


@pytest.mark.parametrize('complementary', [False, True])
@pytest.mark.parametrize('keys', [{}, DEEPLAB], ids=['DPT', 'DeepLabV3+'])
def test_perturbed_copies_of_dssn(keys, complementary):
    model = built(**keys)
    maps = [torch.rand(3, count, 2, 3) + 1 for count in model.feature_channels]
    maps = maps if keys else maps * 4
    torch.manual_seed(1)
    kept = []
    for features, copies in zip(maps, model.copies(maps, 2, 0.5, complementary)):
        factors = [copy / features for copy in copies]
        for factor in factors:
            assert torch.equal(factor, factor[:, :, :1, :1].expand_as(factor))
            assert bool(((factor == 0) | (factor == 2)).all())
        assert bool((factors[0] + factors[1] == 2).all()) == complementary
        kept.append([factor[:, :, 0, 0] for factor in factors])
    for other in kept[1:]:
        # Of DPT's maps, states of the same channels, all lose the same.
        assert not keys and all(map(torch.equal, kept[0], other)) or \
            keys and kept[0][0].shape != other[0].shape
    if not complementary:
        assert not torch.equal(*kept[0])


# Of 16 steps of a narrow DPT: loss and gradient norm of steps 0, 1, 7 and 15; the fractions
# selected in the last step; the sum of absolute differences to the first weights, of student and
# teacher. A change of the method, of its random numbers or of the optimizer changes them.
SIXTEEN = {
    'loss': [0.9080942406517, 0.8904416725686, 0.6886412711769, 0.7849395232790],
    'norm': [3.0785185683722, 3.7340406524076, 3.1415711001095, 3.6041541954481],
    'selected': [0.5126879811287, 0.5075187683105], 'moved': [422.57889394063, 389.97691853073]}
LR, LR_MULTI, BETA = 2e-4, 10.0, 0.8


def images_of(tag):
    """Three smooth images of 28 x 28 pixels, the same on every PyTorch."""
    return 2 * F.interpolate(normal(tag, 3, 3, 3, 3), size=(28, 28), mode='bilinear',
                             align_corners=True)


def batch_of(step):
    parts = [images_of(f'v2:{step}:{name}') for name in ('x', 'weak', 'strong1', 'strong2')]
    boxes = torch.tensor([[2, 3, 12, 9], [0, 0, 0, 0], [10, 4, 9, 20]]).roll(step, 0)
    valid = torch.ones(3, 28, 28, dtype=torch.bool)
    valid[step % 3, 20:] = False
    label = parts[0].argmax(1)
    label[:, :3] = 255
    return Batch(Labeled(parts[0], label, torch.arange(3)),
                 Unlabeled(*parts[1:], valid, boxes, boxes.roll(1, 0), torch.arange(3)), None)


def plain_step(student, teacher, optimizer, batch, factors, step):
    """The step of a plain program; returns its loss."""
    (images, label, _), u, _ = batch
    with torch.no_grad():
        confidence, pseudo = teacher(u.weak).softmax(1).max(1)
    mixed, losses = [], []
    for strong, boxes in ((u.strong1, u.box1), (u.strong2, u.box2)):
        known = [strong, pseudo, confidence, u.valid]
        cut = [tensor.clone() for tensor in known]
        for i, (top, left, height, width) in enumerate(boxes.tolist()):
            area = (..., slice(top, top + height), slice(left, left + width))
            for tensor, source in zip(cut, known):
                tensor[i][area] = source[2 - i][area]
        mixed.append(cut)
    supervised = F.cross_entropy(student(images), label, ignore_index=255)
    predictions = student(torch.cat([cut[0] for cut in mixed]), factors=factors)
    for prediction, (_, pseudo, confidence, valid) in zip(predictions.chunk(2), mixed):
        each = F.cross_entropy(prediction, pseudo, reduction='none')
        losses.append(each[(confidence >= 0.6) & valid].sum() / valid.sum())
    loss = (supervised + (losses[0] + losses[1]) / 2) / 2
    optimizer.zero_grad()
    loss.backward()
    for group, multi in zip(optimizer.param_groups, (1, LR_MULTI)):
        group['lr'] = LR * multi * (1 - max(step - 1, 0) / 16) ** 0.9
    optimizer.step()
    alpha = min(1 - 1 / (step + 1), BETA)
    with torch.no_grad():
        for old, new in zip(teacher.parameters(), student.parameters()):
            old.copy_(alpha * old + (1 - alpha) * new)
    return loss.item()


def test_sixteen_steps_are_those_of_a_plain_program_and_of_before(monkeypatch):
    cfg = config(batch_size=3, conf_thresh=0.6, beta=BETA, lr=LR, lr_multi=LR_MULTI,
                 optimizer='adamw', weight_decay=0.01)
    student = DPT(VisionTransformer(64, depth=4, taps=(0, 1, 2, 3)), CLASSES, 16, (8, 16, 24, 32))
    student.double()
    first = {name: seeded(name, tuple(value.shape)).float().double()
             for name, value in student.state_dict().items()}
    student.load_state_dict(first)
    teacher = ema.make_teacher(student)
    plain = [copy.deepcopy(student), copy.deepcopy(teacher)]
    head = [p for name, p in plain[0].named_parameters() if not name.startswith('backbone.')]
    optimizer = torch.optim.AdamW([{'params': list(plain[0].backbone.parameters())},
                                   {'params': head}], weight_decay=0.01)
    update = Update(cfg, World(), methods.build(cfg), student, teacher,
                    optimizer_of(cfg, student, LR), LR, 16)
    drawn = []
    monkeypatch.setattr('dssn.methods.unimatch_v2.complementary_factors', lambda *args:
                        drawn.append(complementary_factors(*args)) or drawn[-1])
    found = {'loss': [], 'norm': []}
    for step in range(16):
        _, terms, loss, _ = update(batch_of(step), 0, step)
        expected = plain_step(*plain, optimizer, batch_of(step), drawn[-1], step)
        assert loss.item() == pytest.approx(expected, rel=1e-9), step
        if step in (0, 1, 7, 15):
            found['loss'].append(loss.item())
            found['norm'].append(terms.fractions['gradient_norm'].item())
    for one, other in zip((student, teacher), plain):
        for name, value in one.state_dict().items():
            assert (value - other.state_dict()[name]).abs().max() < 1e-8, name
    found['selected'] = [terms.fractions[f'selected_image{i}'].item() for i in (1, 2)]
    found['moved'] = [sum((value - first[name]).abs().sum().item()
                          for name, value in model.state_dict().items())
                      for model in (student, teacher)]
    for name, values in SIXTEEN.items():
        assert found[name] == pytest.approx(values, rel=1e-9 if name != 'selected' else 1e-6), name
