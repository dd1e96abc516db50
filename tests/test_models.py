"""Networks: names and shapes, geometry, reference numerics, feature views, loading of weights."""

import json
import math
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision

from dssn.errors import UserError
from dssn.models import BACKBONES, build_model, deeplabv3plus
from dssn.models.deeplabv3plus import ImagePooling
from dssn.models.pretrained import load_backbone_weights, pretrained_file
from dssn.models.resnet import resnet18, resnet50

NAMES = os.path.join(os.path.dirname(__file__), 'data', 'state_dict_names.json')


def config(**changes):
    keys = dict(model='deeplabv3plus', nclass=21, backbone='resnet18', stem='deep',
                dilations=[6, 12, 18],
                replace_stride_with_dilation=[False, False, True],
                decoder_channels=256, base_channels=64, checkpoint_backbone=False,
                channels_last=False)
    keys.update(changes)
    return SimpleNamespace(**keys)


def small(**changes):
    """A narrow ResNet-18 DeepLabV3+ for tests that do not need the real widths."""
    torch.manual_seed(0)
    return build_model(config(**dict(dict(nclass=5, base_channels=8, decoder_channels=16),
                                     **changes)))


def stir_batch_norms(model):
    """Set statistics and affine parameters to random values, so that each has an effect."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)


@pytest.fixture(scope='module')
def published():
    """The three published networks by name, built once."""
    torch.manual_seed(0)
    return {name: build_model(config(backbone=name))
            for name in ('resnet50', 'resnet101', 'xception')}


# ---- names, shapes, counts, initial values

@pytest.mark.parametrize('name', ['resnet50', 'resnet101', 'xception'])
def test_state_dict_is_that_of_the_public_checkpoints(published, name):
    with open(NAMES) as file:
        expected = json.load(file)[name]
    model = published[name]
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert found == expected['tensors']
    assert sum(p.numel() for p in model.parameters()) == expected['parameters']


def kaiming_std(conv):
    """Of the specification: variance 2 / (k^2 out)."""
    return math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels))


@pytest.mark.parametrize('name', ['resnet50', 'xception'])
def test_initial_values_of_the_backbone(published, name):
    for key, module in published[name].backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            tolerance = 4 / math.sqrt(module.weight.numel())
            ratio = module.weight.std().item() / kaiming_std(module)
            assert abs(ratio - 1) < tolerance, key
            assert abs(module.weight.mean().item()) < tolerance * kaiming_std(module), key
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), key


def test_initial_values_of_the_decoder_are_pytorchs(published):
    model = published['resnet50']
    for conv in (model.fuse[0], model.head.b1[0], model.head.b4.gap[1], model.reduce[0]):
        fan_in = conv.weight[0].numel()
        assert conv.weight.abs().max().item() <= 1 / math.sqrt(fan_in) * 1.0001
        assert conv.weight.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.03)


def test_batch_norm_constants(published):
    xception = published['xception']
    for key, module in xception.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            momentum = 0.0003 if key.startswith('backbone.') else 0.1
            assert (module.momentum, module.eps) == (momentum, 1e-5), key


def test_head_widths_and_dilations(published):
    head = build_model(config(backbone='resnet18', base_channels=8, dilations=[1, 2, 3])).head
    assert [b[0].dilation[0] for b in (head.b0, head.b1, head.b2, head.b3)] == [1, 1, 2, 3]
    assert head.project[0].weight.shape == (8, 40, 1, 1)
    assert [b[0].dilation[0] for b in (published['xception'].head.b1,
                                       published['xception'].head.b3)] == [6, 18]


def test_decoder_channels_is_the_width_of_fuse():
    model = small(decoder_channels=24)
    assert model.fuse[0].weight.shape == (24, 48 + 8, 3, 3)
    assert model.fuse[3].weight.shape == (24, 24, 3, 3)
    assert model.classifier.weight.shape == (5, 24, 1, 1)


def test_backbones_are_listed():
    assert list(BACKBONES) == ['resnet10', 'resnet18', 'resnet50', 'resnet101', 'xception']
    with pytest.raises(UserError, match='resnet34.*its backbones: resnet10, resnet18'):
        build_model(config(backbone='resnet34'))


@pytest.mark.parametrize('changes', [
    dict(base_channels=32), dict(stem='plain'),
    dict(replace_stride_with_dilation=[False, True, True])])
def test_xception_refuses_other_forms(changes):
    with pytest.raises(UserError, match=list(changes)[0] + '.*xception'):
        build_model(config(backbone='xception', **changes))


# ---- geometry

@pytest.mark.parametrize('name, b', [
    ('resnet10', 8), ('resnet18', 8), ('resnet50', 4), ('xception', None)])
@pytest.mark.parametrize('size', [(65, 97), (33, 33), (64, 48)])
def test_strides_of_the_feature_maps(published, name, b, size):
    backbone = published[name].backbone if b is None else BACKBONES[name](base_channels=b)
    with torch.no_grad():
        c1, c4 = backbone.eval()(torch.randn(1, 3, *size))
    assert c1.shape == (1, backbone.low_channels) + tuple(-(-s // 4) for s in size)
    assert c4.shape == (1, backbone.high_channels) + tuple(-(-s // 16) for s in size)
    expansion = {'resnet10': 1, 'resnet18': 1, 'resnet50': 4}.get(name)
    if expansion:
        assert (backbone.low_channels, backbone.high_channels) == (b * expansion, 8 * b * expansion)


def dilations_and_strides(stage):
    return [(conv.dilation[0], conv.stride[0], conv.padding[0])
            for block in stage for conv in (block.conv1, block.conv2)]


def test_resnet18_dilation():
    """A dilated stage: no stride; the first block keeps the old dilation, the rest the new one."""
    last = resnet18(base_channels=2).layer4
    assert dilations_and_strides(last) == [(1, 1, 1), (1, 1, 1), (2, 1, 2), (2, 1, 2)]
    assert last[0].downsample[0].stride == (1, 1)

    both = resnet18(base_channels=2, replace_stride_with_dilation=[False, True, True])
    assert dilations_and_strides(both.layer3) == [(1, 1, 1), (1, 1, 1), (2, 1, 2), (2, 1, 2)]
    assert dilations_and_strides(both.layer4) == [(2, 1, 2), (2, 1, 2), (4, 1, 4), (4, 1, 4)]

    none = resnet18(base_channels=2, replace_stride_with_dilation=[False, False, False])
    assert dilations_and_strides(none.layer4) == [(1, 2, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)]


@pytest.mark.parametrize('size', [(65, 97), (33, 33), (1, 1), (7, 50)])
@pytest.mark.parametrize('perturb, lean, views', [
    (0, False, 2), (1, False, 2), (2, False, 1), (1, True, 2), (1, True, 1), (2, False, 3)])
def test_logits_have_the_images_size(size, perturb, lean, views):
    model = small().eval()
    with torch.no_grad():
        out = model(torch.randn(3, 3, *size), perturb=perturb, lean=lean, views=views)
    assert not perturb or len(out) == 1 + views
    for i, logits in enumerate(out if perturb else [out]):
        assert logits.shape == (3 if i == 0 else perturb, 5) + size
        assert torch.isfinite(logits).all()


# ---- reference numerics

def torchvision_features(net, x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    low = net.layer1(x)
    return low, net.layer4(net.layer3(net.layer2(low)))


@pytest.mark.parametrize('ours, theirs, replace', [
    (resnet18, torchvision.models.resnet18, [False, False, False]),
    (resnet50, torchvision.models.resnet50, [False, False, False]),
    (resnet50, torchvision.models.resnet50, [False, False, True]),
    (resnet50, torchvision.models.resnet50, [False, True, True])])
def test_plain_resnet_equals_torchvisions(ours, theirs, replace):
    torch.manual_seed(0)
    options = {} if ours is resnet18 else dict(replace_stride_with_dilation=replace)
    reference = theirs(**options).eval()
    stir_batch_norms(reference)
    backbone = ours('plain', replace).eval()
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith('fc.')}
    assert list(backbone.state_dict()) == list(state)
    backbone.load_state_dict(state)
    with torch.no_grad():
        x = torch.randn(2, 3, 65, 49)
        for found, expected in zip(backbone(x), torchvision_features(reference, x)):
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def reference_batch_norm(state, name, x):
    mean, var, weight, bias = (state[f'{name}.{part}'].view(1, -1, 1, 1) for part in
                               ('running_mean', 'running_var', 'weight', 'bias'))
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def reference_depthwise(weight, x, stride):
    """3x3, padding 1, one filter per channel: nine shifted products."""
    padded = F.pad(x, (1, 1, 1, 1))
    h, w = ((side - 1) // stride + 1 for side in x.shape[-2:])
    out = 0
    for i in range(3):
        for j in range(3):
            window = padded[:, :, i:i + x.shape[2], j:j + x.shape[3]][:, :, ::stride, ::stride]
            assert window.shape[-2:] == (h, w)
            out = out + window * weight[:, 0, i, j].view(1, -1, 1, 1)
    return out


def reference_pointwise(weight, x):
    return torch.einsum('oi,nihw->nohw', weight[:, :, 0, 0], x)


def reference_separable(state, name, x, stride=1, relu_between=False):
    x = x if relu_between else x.clamp(min=0)
    x = reference_depthwise(state[name + '.depthwise.weight'], x, stride)
    x = reference_batch_norm(state, name + '.bn1', x)
    x = x.clamp(min=0) if relu_between else x
    x = reference_pointwise(state[name + '.pointwise.weight'], x)
    x = reference_batch_norm(state, name + '.bn2', x)
    return x.clamp(min=0) if relu_between else x


def reference_block(state, name, x, stride):
    """(block output, tensor after the second separable convolution)."""
    if name + '.skip.weight' in state:
        shortcut = reference_pointwise(state[name + '.skip.weight'], x[:, :, ::stride, ::stride])
        shortcut = reference_batch_norm(state, name + '.skipbn', shortcut)
    else:
        shortcut = x.clamp(min=0)
    inner = reference_separable(state, name + '.sepconv1', x)
    inner = reference_separable(state, name + '.sepconv2', inner)
    return reference_separable(state, name + '.sepconv3', inner, stride) + shortcut, inner


def reference_xception(state, x):
    x = F.conv2d(x, state['conv1.weight'], stride=2, padding=1)
    x = reference_batch_norm(state, 'bn1', x).clamp(min=0)
    x = F.conv2d(x, state['conv2.weight'], padding=1)
    x = reference_batch_norm(state, 'bn2', x).clamp(min=0)
    for index in range(1, 21):
        x, inner = reference_block(state, f'block{index}', x, 2 if index <= 3 else 1)
        if index == 2:
            c1 = inner
    for name in ('conv3', 'conv4', 'conv5'):
        x = reference_separable(state, name, x, relu_between=True)
    return c1, x


def test_xception_equals_a_reference_written_from_the_specification(published):
    torch.manual_seed(1)
    backbone = published['xception'].backbone.eval()
    saved = {k: v.clone() for k, v in backbone.state_dict().items()}
    stir_batch_norms(backbone)
    with torch.no_grad():
        x = torch.randn(1, 3, 41, 57)
        found = backbone(x)
        expected = reference_xception(backbone.state_dict(), x)
    backbone.load_state_dict(saved)
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    assert found[0].min() < 0  # the low-level map is taken before a ReLU
    assert found[1].min() == 0


@pytest.mark.parametrize('name, stride', [('block3', 2), ('block4', 1), ('block20', 1)])
def test_xception_shortcuts(published, name, stride):
    """Projection of x itself (negative values included); relu(x), not x, without projection."""
    torch.manual_seed(2)
    block = getattr(published['xception'].backbone, name).eval()
    x = torch.randn(2, block.sepconv1.depthwise.in_channels, 9, 6)
    kept = x.clone()
    with torch.no_grad():
        out, _ = block(x)
        expected, _ = reference_block({'b.' + k: v for k, v in block.state_dict().items()},
                                      'b', x, stride)
    assert torch.equal(x, kept)  # nothing works in place on the caller's tensor
    assert (out - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_xception_trains():
    """Backward passes through every block of the real graph (no error by operations in place)."""
    torch.manual_seed(0)
    model = build_model(config(backbone='xception', nclass=3, decoder_channels=8))
    model(torch.randn(2, 3, 17, 17)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_decoder_equals_its_description():
    """Order of concatenation, corner-aligned upsampling, pooling: against separate operations."""
    model = small().eval()
    stir_batch_norms(model)
    with torch.no_grad():
        x = torch.randn(2, 3, 65, 97)
        c1, c4 = model.backbone(x)
        head = model.head
        pooled = head.b4.gap(c4).expand(-1, -1, *c4.shape[-2:])
        branches = [head.b0(c4), head.b1(c4), head.b2(c4), head.b3(c4), pooled]
        meaning = nn.UpsamplingBilinear2d(c1.shape[-2:])(head.project(torch.cat(branches, 1)))
        y = model.classifier(model.fuse(torch.cat((model.reduce(c1), meaning), 1)))
        expected = nn.UpsamplingBilinear2d(x.shape[-2:])(y)  # aligns corners by definition
        assert (model(x) - expected).abs().max() < 1e-5


# ---- feature-level views

def decoder_inputs(model, images):
    """(c1, c4) that the decoder saw in one perturbed pass, and that pass's predictions."""
    seen = {}
    handles = [model.reduce.register_forward_pre_hook(lambda _, x: seen.update(c1=x[0])),
               model.head.register_forward_pre_hook(lambda _, x: seen.update(c4=x[0]))]
    with torch.no_grad():
        out = model(images, perturb=len(images))
    for handle in handles:
        handle.remove()
    return seen['c1'], seen['c4'], out


def test_clean_prediction_is_the_plain_one_in_evaluation_mode():
    model = small().eval()
    stir_batch_norms(model)
    images = torch.randn(2, 3, 33, 49)
    with torch.no_grad():
        plain = model(images)
        clean, fp1, fp2 = model(images, perturb=len(images))
    assert (clean - plain).abs().max() < 1e-5 * max(1, plain.abs().max().item())
    for a, b in ((clean, fp1), (clean, fp2), (fp1, fp2)):
        assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize('training', [False, True])
def test_dropout_of_whole_channels_is_independent_for_every_view(training):
    model = small(base_channels=32).train(training)
    images = torch.randn(4, 3, 33, 33)
    c1, c4, _ = decoder_inputs(model, images)
    kept = []
    for features in (c1, c4):
        clean, view1, view2 = features.chunk(3)
        assert clean.shape[0] == 4 and features.shape[0] == 12
        is_alive = clean.flatten(2).abs().sum(2) > 0
        for view in (view1, view2):
            is_kept = view.flatten(2).abs().sum(2) > 0  # (4, K)
            assert torch.equal(view, clean * 2 * is_kept[:, :, None, None].to(clean))
            fraction = is_kept[is_alive].float().mean().item()
            assert abs(fraction - 0.5) < 5 * 0.5 / math.sqrt(is_alive.sum().item())
            kept.append(is_kept)
    for i, a in enumerate(kept):
        assert not torch.equal(a[0], a[1])  # images of one view
        for b in kept[i + 1:]:              # views, and c1 against c4
            assert not torch.equal(a[:, :32], b[:, :32])


def test_perturbed_copies_share_the_decoders_batch_statistics():
    """In training mode they reach the clean prediction: the decoder runs on one batch of 3N."""
    model = small().train()
    images = torch.randn(2, 3, 33, 33)
    model.backbone.eval()  # so that nothing but the decoder's statistics can differ
    with torch.no_grad():
        plain = model(images)
        torch.manual_seed(1)
        first = model(images, perturb=len(images))[0]
        torch.manual_seed(2)
        second = model(images, perturb=len(images))[0]
        torch.manual_seed(1)
        again = model(images, perturb=len(images))[0]
    assert torch.equal(first, again)
    assert (first - second).abs().max() > 1e-4 and (first - plain).abs().max() > 1e-4


def test_one_perturbed_pass_moves_every_statistic_once():
    model = small().train()
    model(torch.randn(2, 3, 33, 33), perturb=2)
    counts = [v.item() for k, v in model.state_dict().items() if 'num_batches' in k]
    assert counts and set(counts) == {1}


@pytest.mark.parametrize('views', [1, 2, 3])
def test_as_many_copies_as_views_and_no_more(views):
    model = small().train()
    images, seen = torch.randn(3, 3, 33, 33), []
    handle = model.head.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    model(images, perturb=2, views=views)
    model(images, perturb=2, lean=True, views=views)
    handle.remove()
    assert seen == [3 * (1 + views), 1 + 2 * views, 2]


def test_gradient_reaches_everything_from_all_three_predictions():
    for index in range(3):
        model = small().train()
        model(torch.randn(2, 3, 33, 33), perturb=2)[index].square().mean().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all()
                   for p in model.parameters())


@pytest.mark.parametrize('lean', [False, True])
def test_views_of_the_last_images_alone(lean):
    """In evaluation mode images are independent, so `lean` does not affect the predictions."""
    model = small().eval()
    stir_batch_norms(model)
    images = torch.randn(3, 3, 33, 49)
    with torch.no_grad():
        plain = model(images)
        clean, fp1, fp2 = model(images, perturb=2, lean=lean)
        assert (clean - plain).abs().max() < 1e-5 * max(1, plain.abs().max().item())
        assert fp1.shape == fp2.shape == (2, 5, 33, 49)
        torch.manual_seed(0)
        if not lean:  # channels of the labeled image are sampled too, as in the release
            torch.manual_seed(1)
            _, fp1, fp2 = model(images, perturb=2)
            torch.manual_seed(1)
            _, all1, all2 = model(images, perturb=3)
            assert torch.equal(fp1, all1[1:]) and torch.equal(fp2, all2[1:])


def test_lean_makes_smaller_decoder_batches_and_no_gradient_of_clean_predictions():
    model = small().train()
    images, seen = torch.randn(5, 3, 33, 33), []
    handle = model.head.register_forward_pre_hook(
        lambda _, x: seen.append((len(x[0]), torch.is_grad_enabled())))
    model(images, perturb=2)
    clean, fp1, fp2 = model(images, perturb=2, lean=True)
    handle.remove()
    # The release's 3 x 5; and the clean features of 3 with two copies of 2 each, then those of 2.
    assert seen == [(15, True), (7, True), (2, False)]
    weight = model.classifier.weight

    def gradient(loss):
        return torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True)[0]
    assert not bool(gradient(clean[3:].square().sum()).any())
    for part in (clean[:3], fp1, fp2):
        assert bool(gradient(part.square().sum()).any())


# ---- a batch of one

@pytest.mark.parametrize('perturb', [0, 1])
def test_batch_of_one_trains(perturb):
    model = small().train()
    out = model(torch.randn(1, 3, 33, 33), perturb=perturb)
    sum(logits.square().mean() for logits in (out if perturb else [out])).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    # With the views there are three values per channel and statistics as usual.
    assert model.head.b4.gap[2].num_batches_tracked.item() == perturb


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (5, 4)])
def test_pooling_is_the_interpolation_of_one_value(size):
    """The same numbers and gradients as enlarging the pooled map by bilinear interpolation."""
    torch.manual_seed(0)
    pooling = ImagePooling(6, 4).double().eval()
    stir_batch_norms(pooling)
    found, gradients = [], []
    for enlarge in (pooling, lambda x: F.interpolate(
            pooling.gap(x), size=x.shape[2:], mode='bilinear', align_corners=True)):
        torch.manual_seed(1)
        x = torch.randn(2, 6, *size).double().requires_grad_()
        out = enlarge(x)
        weights = torch.randn(out.shape).double()
        found.append(out.detach())
        gradients.append(torch.autograd.grad(
            (out * weights).sum(), [x] + list(pooling.parameters())))
    assert torch.equal(*found)
    for one, two in zip(*gradients):
        assert (one - two).abs().max() <= 1e-12 * (1 + two.abs().max())


@pytest.mark.parametrize('convert', [False, True])
def test_pooling_of_one_image_uses_and_keeps_running_statistics(convert):
    torch.manual_seed(0)
    pooling = ImagePooling(6, 4)
    stir_batch_norms(pooling)
    x = torch.randn(1, 6, 3, 5)
    expected = pooling.eval()(x)  # before converting: SyncBatchNorm may refuse the CPU
    if convert:
        pooling = nn.SyncBatchNorm.convert_sync_batchnorm(pooling)
        assert isinstance(pooling.gap[2], nn.SyncBatchNorm)
    before = {k: v.clone() for k, v in pooling.state_dict().items()}
    trained = pooling.train()(x)
    assert all(torch.equal(v, before[k]) for k, v in pooling.state_dict().items())
    assert torch.allclose(trained, expected, atol=1e-6)
    assert trained.shape == (1, 4, 3, 5) and trained.std() > 0


def test_pooling_of_two_images_uses_batch_statistics():
    torch.manual_seed(0)
    pooling = ImagePooling(6, 4).train()
    x = torch.randn(2, 6, 3, 5)
    values = F.conv2d(x.mean((2, 3), keepdim=True), pooling.gap[1].weight)
    mean, var = values.mean(0), values.var(0, unbiased=False)
    expected = ((values - mean) / torch.sqrt(var + 1e-5)).clamp(min=0).expand(-1, -1, 3, 5)
    assert torch.allclose(pooling(x), expected, atol=1e-5)
    assert pooling.gap[2].num_batches_tracked.item() == 1


@pytest.mark.parametrize('version, given', [('1.8.1', 2), ('2.0.0', 1)])
def test_pooling_of_one_image_per_process_leaves_it_to_sync_batch_norm(
        monkeypatch, version, given):
    pooling = nn.SyncBatchNorm.convert_sync_batchnorm(ImagePooling(6, 4)).train()
    seen = []
    monkeypatch.setattr(deeplabv3plus, 'world_size', lambda: 2)
    monkeypatch.setattr(deeplabv3plus.torch, '__version__', version)
    monkeypatch.setattr(pooling.gap[2], 'forward', lambda x: seen.append(x) or x.clone())
    assert pooling(torch.randn(1, 6, 3, 5)).shape == (1, 4, 3, 5)
    assert [len(x) for x in seen] == [given] and torch.equal(seen[0][0], seen[0][-1])


# ---- loading of weights

WRAPPINGS = {
    'bare': lambda tensors: tensors,
    'module': lambda tensors: {'module.' + k: v for k, v in tensors.items()},
    'both': lambda tensors: {'module.backbone.' + k: v for k, v in tensors.items()},
    'compiled': lambda tensors: {'module._orig_mod.' + k: v for k, v in tensors.items()},
    'lightning': lambda tensors: {'state_dict': {'model.backbone.' + k: v
                                                 for k, v in tensors.items()}, 'loops': {}},
    'model_state': lambda tensors: {'model_state': tensors, 'ema': {
        k: torch.zeros_like(v) for k, v in tensors.items()}},
    'state_dict': lambda tensors: {'epoch': 3, 'state_dict': tensors},
    'model': lambda tensors: {'model': {'backbone.' + k: v for k, v in tensors.items()}},
}


def saved(tmp_path, content):
    path = str(tmp_path / 'weights.pth')
    torch.save(content, path)
    return path


def other_tensors(model):
    """The backbone tensors of another model of the same form, with a classifier."""
    tensors = {k: torch.rand_like(v) if v.is_floating_point() else v + 7
               for k, v in model.backbone.state_dict().items()}
    tensors['fc.weight'], tensors['fc.bias'] = torch.zeros(10, 4), torch.zeros(10)
    return tensors


def load(model, path, backbone='resnet18', stem='deep'):
    load_backbone_weights(model, backbone, stem, path)


@pytest.mark.parametrize('wrapping', sorted(WRAPPINGS))
@pytest.mark.parametrize('stem', ['deep', 'plain'])
def test_weights_fill_the_backbone_and_nothing_else(tmp_path, wrapping, stem):
    model = small(stem=stem)
    tensors = other_tensors(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load(model, saved(tmp_path, WRAPPINGS[wrapping](tensors)), stem=stem)
    for key, value in model.state_dict().items():
        is_backbone = key.startswith('backbone.')
        assert torch.equal(value, tensors[key[9:]] if is_backbone else before[key]), key


def test_num_batches_tracked_may_be_missing(tmp_path):
    model = small()
    tensors = {k: v for k, v in other_tensors(model).items() if 'num_batches' not in k}
    load(model, saved(tmp_path, tensors))
    assert torch.equal(model.backbone.bn1.running_var, tensors['bn1.running_var'])
    assert model.backbone.bn1.num_batches_tracked.item() == 0


def test_torchvisions_own_file_loads(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    model = small(stem='plain', base_channels=64)
    load(model, saved(tmp_path, state), stem='plain')
    assert torch.equal(model.backbone.layer4[1].conv2.weight, state['layer4.1.conv2.weight'])


def refused(model, path, pattern, **options):
    """The load raises a UserError that matches, names the file and leaves the model as it was."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=pattern) as error:
        load(model, path, **options)
    assert str(path) in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    model = small()
    tensors = other_tensors(model)
    for key in ('bn1.bias', 'bn1.weight', 'layer1.0.conv1.weight', 'layer1.0.conv2.weight'):
        del tensors[key]
    refused(model, saved(tmp_path, tensors),
            r'4 missing \(bn1.weight, bn1.bias, layer1.0.conv1.weight, \.\.\.\)')
    tensors = dict(other_tensors(model), **{'layer5.weight': torch.zeros(1)})
    refused(model, saved(tmp_path, tensors), r'1 unexpected \(layer5.weight\)')
    tensors = dict(other_tensors(model), **{'bn1.bias': torch.zeros(3)})
    refused(model, saved(tmp_path, tensors), r'1 of another shape \(bn1.bias 3 instead of 16\)')


def test_weights_of_another_depth_are_refused(tmp_path):
    tensors = other_tensors(small(backbone='resnet50'))
    refused(small(), saved(tmp_path, tensors), 'does not fit resnet18 with stem: deep')


@pytest.mark.parametrize('stem, other', [('deep', 'plain'), ('plain', 'deep')])
def test_the_other_stem_is_named(tmp_path, stem, other):
    tensors = other_tensors(small(stem=other))
    refused(small(stem=stem), saved(tmp_path, tensors), f'set `stem: {other}`', stem=stem)


def test_openmmlabs_narrow_stem_is_refused_as_such(tmp_path):
    model = small(base_channels=64)
    ours = {k: v for k, v in model.backbone.state_dict().items()
            if not k.startswith(('conv1', 'bn1'))}
    for name in ('conv1.0.weight', 'stem.0.weight'):
        tensors = dict(ours, **{name: torch.zeros(32, 3, 3, 3)})
        refused(model, saved(tmp_path, tensors), '32/32/64')
    refused(small(stem='plain'), saved(tmp_path, tensors), '32/32/64', stem='plain')


def test_other_base_channels_explain_a_shape_error(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    refused(small(stem='plain'), saved(tmp_path, state), 'base_channels: 8.*base_channels: 64',
            stem='plain')


@pytest.mark.parametrize('content', [[1, 2], {'state_dict': 4}, {'conv1.weight': 'text'},
                                     {3: torch.zeros(1)}])
def test_files_of_something_else_are_refused(tmp_path, content):
    refused(small(), saved(tmp_path, content), 'has no network weights')


def test_empty_files_of_weights_are_refused(tmp_path):
    refused(small(), saved(tmp_path, {}), 'has no network weights .found: nothing')


def test_damaged_file_is_refused(tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'not a checkpoint at all')
    refused(small(), str(path), 'weights.pth')


def test_a_name_given_twice_is_refused(tmp_path):
    tensors = other_tensors(small())
    tensors['module.bn1.bias'] = torch.zeros(16)
    refused(small(), saved(tmp_path, tensors), r'1 unexpected \(module.bn1.bias\)')


def test_xception_weights(tmp_path, published):
    model = published['xception']
    key = 'block20.skipbn.running_var'
    tensors = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    tensors[key].fill_(3.0)
    load(model, saved(tmp_path, dict(tensors, **{'fc.bias': torch.zeros(7)})), 'xception')
    assert (model.backbone.state_dict()[key] == 3).all()
    with pytest.raises(UserError, match='such as block1.sepconv1.bn1.bias'):
        load(model, saved(tmp_path, other_tensors(small(stem='plain'))), 'xception')


@pytest.mark.parametrize('backbone, stem, words', [
    ('resnet18', 'deep', ['resnet18-f37072fd.pth', 'fetch resnet18 --stem plain`',
                          '`stem: plain`']),
    ('resnet50', 'deep', ['gluon_resnet50_v1s-1762acc0.pth', 'rwightman', 'v0.1', '64/64/128',
                          'fetch resnet50`', 'resnet50-0676ba61.pth',
                          'fetch resnet50 --stem plain`', '`stem: plain`']),
    ('resnet101', 'deep', ['gluon_resnet101_v1s-60fe0cc1.pth', 'resnet101-63fe2227.pth']),
    ('resnet101', 'plain', ['resnet101-63fe2227.pth']),
    ('xception', 'deep', ['Xception', 'UniMatch'])])
def test_a_missing_file_names_its_sources_and_commands(tmp_path, backbone, stem, words):
    path = pretrained_file(backbone, str(tmp_path))
    with pytest.raises(UserError) as error:
        load(None, path, backbone, stem)
    for word in words + [path, 'convert FILE', '`pretrained: false`']:
        assert word in str(error.value)
    assert ('gluon' in str(error.value)) == any('gluon' in word for word in words)


@pytest.mark.parametrize('backbone', ['resnet10', 'dinov2_tiny'])
def test_a_missing_file_of_a_backbone_without_public_weights(tmp_path, backbone):
    with pytest.raises(UserError, match=f'no public weights of {backbone}; or set `pretrained: f'):
        load(None, pretrained_file(backbone, str(tmp_path)), backbone, 'deep')
