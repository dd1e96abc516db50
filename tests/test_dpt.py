"""DINOv2 encoders with a DPT head: numbers of other implementations, names, keys, gradients."""
import contextlib
import inspect
import json
import math
import os
import zlib

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from dssn import config as configs
from dssn.distributed import World, unwrap
from dssn.errors import UserError
from dssn.keys import Config
from dssn.models import ENCODERS, build_model, recompute, vit
from dssn.models.vit import VisionTransformer

NAMES = os.path.join(os.path.dirname(__file__), 'data', 'encoder_names.json')


def config(backbone='dinov2_tiny', **keys):
    return Config(**{**dict(dataset='d', nclass=5, model='dpt', backbone=backbone, crop_size=28),
                     **keys})


def tiny(**keys):
    torch.manual_seed(0)
    return build_model(config(**keys))


def elements(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ---- names, shapes, initial values

# Of the specification: elements and tensors of the encoder, then of the network with 21 classes.
SIZES = {'dinov2_small': (22056576, 175, 24795637, 237),
         'dinov2_base': (86580480, 175, 97528789, 237),
         'dinov2_large': (304368640, 343, 335579157, 405)}


@pytest.mark.parametrize('name', SIZES)
def test_names_and_shapes_are_those_of_the_public_networks(name):
    old = not hasattr(torch.device, '__enter__')  # cannot build networks without contents
    if old and name != 'dinov2_small':
        pytest.skip('this PyTorch would fill the large networks with random numbers')
    with contextlib.nullcontext() if old else torch.device('meta'):
        model = build_model(config(name, nclass=21))
    with open(NAMES) as file:
        expected = {name: shape for name, shape in json.load(file)[name]}
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected
    assert SIZES[name] == (elements(model.backbone), len(model.backbone.state_dict()),
                           elements(model), len(model.state_dict()))


@torch.no_grad()
def test_initial_values_are_those_of_dinov2():
    model = tiny()
    encoder = model.backbone
    assert encoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)
    assert encoder.pos_embed.abs().max() <= 2
    assert 0 < encoder.cls_token.abs().max() < 1e-5 and not encoder.mask_token.any()
    for name, parameter in encoder.blocks.named_parameters():
        if name.endswith('gamma') or 'norm' in name and name.endswith('weight'):
            assert (parameter == 1).all(), name
        elif name.endswith('bias'):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
    bound = 1 / math.sqrt(3 * 14 * 14)  # PyTorch's default for convolutions
    assert 0.9 * bound < encoder.patch_embed.proj.weight.abs().max() <= bound


# ---- the numbers of other implementations

def normal(tag, *shape):
    generator = torch.Generator().manual_seed(zlib.crc32(tag.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def seeded(name, shape):
    """A tensor of the seeded network, by its name."""
    values = normal('weight:' + name, *shape)
    if name.endswith(('cls_token', 'pos_embed', 'mask_token')):
        return 0.5 * values
    if name.endswith('gamma'):
        return 1 + 0.1 * values
    if name.endswith(('resize_layers.0.weight', 'resize_layers.1.weight')):
        return values * math.sqrt(1.2 / shape[0])
    if len(shape) > 1:
        return values * math.sqrt(1.2 / np.prod(shape[1:]))
    return 1 + 0.1 * values if name.endswith('weight') else 0.1 * values


def numbers(logits):
    return [logits.mean().item(), logits.std().item(), logits.abs().max().item(),
            *[logits[place].item() for place in ((0, 0, 1, 1), (0, 7, 49, 49), (1, 20, 97, 4),
                                                 (1, 13, 40, 70))]]


EXPECTED = [0.0551463756, 2.7668685766, 12.0662971519, 0.463759, -2.276756, -1.856847, -2.141472]


@pytest.fixture(scope='module')
def small():
    """(seeded dinov2_small in float64, images (2, 3, 98, 98), its logits)."""
    model = build_model(config('dinov2_small', nclass=21))
    model.load_state_dict({name: seeded(name, tuple(value.shape)).float()
                           for name, value in model.state_dict().items()})
    images = 1.5 * F.interpolate(normal('v2:square:coarse', 2, 3, 7, 7), size=(98, 98),
                                 mode='bilinear', align_corners=True) \
        + 0.5 * normal('v2:square:fine', 2, 3, 98, 98)
    with torch.no_grad():
        return model.double(), images, model(images)


def test_logits_are_the_specified_ones(small):
    assert numbers(small[2]) == pytest.approx(EXPECTED, abs=1e-6)


def resampled(**how):
    """A wrong `resampling` of the positions."""
    def matrix(count, _, like):
        rows = torch.eye(37, dtype=like.dtype).view(1, 37, 37, 1)
        sizes = how if 'size' not in how else {**how, 'size': (count, 1)}
        if 'size' not in how:
            sizes = {**how, 'scale_factor': ((count + 0.1) / 37, 1.0),
                     'recompute_scale_factor': False}
        return F.interpolate(rows, align_corners=False, **{'mode': 'bicubic', **sizes}
                             )[0, :, :, 0].t()
    return lambda model, patch: patch.setattr(vit, 'resampling', matrix)


def epsilon(model, patch):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            patch.setattr(module, 'eps', 1e-5)


class TanhGELU(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def tanh_gelu(model, patch):
    for block in model.backbone.blocks:
        patch.setitem(block.mlp._modules, 'act', TanhGELU())


def taps(*blocks):
    return lambda model, patch: patch.setattr(model.backbone, 'taps', blocks)


def no_final_norm(model, patch):
    patch.setitem(model.backbone._modules, 'norm', nn.Identity())


# Mistakes that other implementations make, and how far each moves the logits.
MISTAKES = {'eps 1e-5': (epsilon, 5e-5), 'tanh GELU': (tanh_gelu, 2e-3),
            'bilinear positions': (resampled(mode='bilinear'), 1.4),
            'positions by size': (resampled(size=None), 3.8),
            'antialiased positions': (resampled(antialias=True), 4.1),
            'taps 3, 6, 9, 11': (taps(3, 6, 9, 11), 3.2),
            'the last four blocks': (taps(8, 9, 10, 11), 6),
            'taps without norm': (no_final_norm, 32)}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_moves_the_logits(small, monkeypatch, mistake):
    model, images, right = small
    make, distance = MISTAKES[mistake]
    if 'antialiased' in mistake and 'antialias' not in inspect.signature(F.interpolate).parameters:
        pytest.skip('this PyTorch has no antialiasing')
    make(model, monkeypatch)
    with torch.no_grad():
        wrong = model(images)
    assert (wrong - right).abs().max().item() == pytest.approx(distance, rel=0.3)
    assert numbers(wrong) != pytest.approx(EXPECTED, abs=1e-6)


def test_fused_attention_is_the_plain_one(small, monkeypatch):
    model, images, right = small
    monkeypatch.setattr(vit, 'FUSED', False)
    with torch.no_grad():
        assert (model(images) - right).abs().max() < 1e-11


# ---- positions

def cubic(distance, a=-0.75):
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1
    return a * x ** 3 - 5 * a * x ** 2 + 8 * a * x - 4 * a if x < 2 else 0.0


def slow_resampling(count, added=0.1):
    """The matrix (count, 37), tap by tap."""
    rows = np.zeros((count, 37))
    for i in range(count):
        place = (i + 0.5) * 37 / (count + added) - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            rows[i, min(max(tap, 0), 36)] += cubic(place - tap)
    return rows


@pytest.mark.parametrize('added', [0, 0.1])
@pytest.mark.parametrize('count', [1, 2, 7, 23, 36, 37, 38, 57, 120])
def test_resampling_tap_by_tap(count, added):
    found = vit.resampling(count, added, torch.zeros((), dtype=torch.float64)).numpy()
    np.testing.assert_allclose(found, slow_resampling(count, added), atol=1e-12)


@pytest.mark.parametrize('h, w', [(7, 7), (5, 60), (39, 43), (36, 38)])
def test_positions_are_those_of_interpolate_with_scale_factors(h, w):
    encoder = VisionTransformer(64, depth=1).double()
    with torch.no_grad():
        found = encoder.positions(h, w)
        grid = encoder.pos_embed[:, 1:].transpose(1, 2).reshape(1, 64, 37, 37)
        expected = F.interpolate(grid, scale_factor=((h + 0.1) / 37, (w + 0.1) / 37),
                                 mode='bicubic', align_corners=False, recompute_scale_factor=False)
    assert expected.shape[2:] == (h, w) and torch.equal(found[:, 0], encoder.pos_embed[:, 0])
    assert (found[:, 1:].transpose(1, 2) - expected.flatten(2)).abs().max() < 1e-12


@pytest.mark.parametrize('patches, power, first, last', [
    (7, 1, [2.142892, 7.356538, 12.521149], [28.207855, 33.402893]),
    (57, 1, [-0.089627, 0.380269, 1.160087], [36.065887]),
    (23, 2, [0.137529, 3.469736, 12.147756], [1269.538388])])
@pytest.mark.parametrize('across', [False, True], ids=['down', 'across'])
def test_positions_of_other_sizes(patches, power, first, last, across):
    encoder = VisionTransformer(64, depth=1).double()
    row = torch.arange(37).double() ** power
    grid = row.expand(37, 37) if across else row[:, None].expand(37, 37)
    with torch.no_grad():
        encoder.pos_embed[0, 0] = -5
        encoder.pos_embed[0, 1:] = grid.reshape(-1, 1)
        sides = (3, patches) if across else (patches, 5)
        found = encoder.positions(*sides)
    assert (found[0, 0] == -5).all()  # the class token's entry is not resized
    grid = found[0, 1:].view(*sides, 64)
    grid = grid if across else grid.transpose(0, 1)
    values = grid[1, :, 9].tolist()
    assert values[:len(first)] == pytest.approx(first, abs=1e-6)
    assert values[-len(last):] == pytest.approx(last, abs=1e-6)
    np.testing.assert_allclose(grid.numpy(), np.broadcast_to(
        grid[:1, :, :1].numpy(), grid.shape), atol=1e-9)


def test_the_grid_of_518_pixels_is_used_as_it_is():
    encoder = VisionTransformer(64, depth=1)
    assert torch.equal(encoder.positions(37, 37), encoder.pos_embed)
    with torch.no_grad():  # only if both sides are its own
        assert not torch.equal(encoder.positions(37, 38)[:, 1:38], encoder.pos_embed[:, 1:38])


@pytest.mark.skipif(not hasattr(torch, 'export') or not hasattr(torch.export, 'Dim'),
                    reason='torch.export of PyTorch 2.1 and newer')
def test_an_exported_encoder_takes_all_sizes():
    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = VisionTransformer(64, depth=1, taps=(0,)).eval()

        def forward(self, images):
            return self.encoder(images)[0].sum(1)
    height, width = [14 * torch.export.Dim(name, min=3, max=60) for name in 'hw']
    program = torch.export.export(Sum(), (torch.zeros(2, 3, 42, 56),),
                                  dynamic_shapes=({2: height, 3: width},)).module()
    network = Sum()
    network.load_state_dict(program.state_dict())
    with torch.no_grad():
        for sides in (42, 42), (518, 518), (518, 84), (70, 518):
            images = torch.randn(2, 3, *sides)
            assert torch.allclose(program(images), network(images), atol=1e-5)


# ---- sizes

@pytest.mark.parametrize('height, width', [(14, 14), (14, 42), (70, 28)])
def test_logits_have_the_images_size(height, width):
    model = tiny()
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        maps = model.features(images)
        assert [m.shape for m in maps] == 4 * [(2, 192, height // 14, width // 14)]
        assert model.decode(*maps).shape == (2, 5, 8 * (height // 14), 8 * (width // 14))
        assert model(images).shape == (2, 5, height, width)


def test_sizes_within_the_head():
    """Of 5 x 3 patches: strides 3.5, 7, 14 and 28, the last one rounded up."""
    model = tiny()
    maps = [torch.zeros(1, 192, 5, 3)] * 4
    assert [tuple(m.shape) for m in model.head.reassemble(maps)] == [
        (1, 32, 20, 12), (1, 32, 10, 6), (1, 32, 5, 3), (1, 32, 3, 2)]


@pytest.mark.parametrize('size', [(28, 30), (27, 28)])
def test_other_sizes_are_an_error(size):
    with pytest.raises(UserError, match=f'{size[1]}x{size[0]} pixels.*multiples of 14'):
        tiny()(torch.zeros(1, 3, *size))


def test_images_of_a_batch_do_not_see_each_other_in_either_mode():
    model = tiny()
    images = torch.randn(3, 3, 28, 42)
    with torch.no_grad():
        together, apart = model.train()(images), [model.eval()(image[None]) for image in images]
    assert (together - torch.cat(apart)).abs().max() < 1e-5


# ---- keys

def load(tmp_path, *assignments):
    path = tmp_path / 'c.yaml'
    path.write_text('dataset: mine\nnclass: 3\nmodel: dpt\nbackbone: dinov2_tiny\ncrop_size: 28\n')
    return configs.load(str(path), None, list(assignments))


@pytest.mark.parametrize('assignments, words', [
    (['crop_size=513'], ['crop_size = 513', '504 or 518']),
    (['crop_size=801'], ['798 or 812']),
    (['crop_size=20'], ['set 28']),
    (['backbone=resnet50'], ['backbone = resnet50', 'dinov2_tiny, dinov2_small']),
    (['model=deeplabv3plus'], ['dinov2_tiny', 'resnet10, resnet18, resnet50, resnet101, xception']),
    (['stem=plain'], ['stem = plain has no effect with model = dpt']),
    (['dilations=[1,2,3]'], ['dilations', 'no effect']),
    (['replace_stride_with_dilation=[false,true,true]'], ['no effect']),
    (['decoder_channels=64'], ['decoder_channels = 64', 'no effect']),
    (['base_channels=32'], ['base_channels = 32', 'no effect']),
    (['model=deeplabv3plus', 'backbone=resnet18', 'lock_backbone=true'],
     ['lock_backbone = true has no effect with model = deeplabv3plus']),
    (['lock_backbone=true', 'checkpoint_backbone=true'], ['checkpoint_backbone', 'no effect'])])
def test_keys_that_disagree_are_an_error(tmp_path, assignments, words):
    with pytest.raises(UserError) as caught:
        load(tmp_path, *assignments)
    assert all(word in str(caught.value) for word in words), caught.value
    assert '--set' in str(caught.value)  # the origin


@pytest.mark.parametrize('assignments', [
    ['crop_size=518'], ['crop_size=14', 'crop_size=42'], ['lock_backbone=true'],
    ['dilations=[6,12,18]', 'multi_grid=false', 'replace_stride_with_dilation=[false,false,true]'],
    ['model=deeplabv3plus', 'backbone=resnet18', 'crop_size=321']])
def test_keys_that_agree(tmp_path, assignments):
    cfg = load(tmp_path, *assignments)
    assert configs.from_dict(configs.to_dict(cfg), 'again') == cfg


@pytest.mark.parametrize('model, backbone', [('dpt', 'resnet18'), ('deeplabv3plus', 'dinov2_tiny')])
def test_a_backbone_of_the_other_network_is_an_error(model, backbone):
    with pytest.raises(UserError, match=f'{backbone}.*no backbone of model: {model}'):
        build_model(config(backbone, model=model))


def test_every_backbone_is_a_choice_of_the_key():
    choices = Config.__dataclass_fields__['backbone'].metadata['choices']
    assert [name for name in choices if name.startswith('dinov2_')] == list(ENCODERS)


# ---- gradients

UNUSED = {'backbone.mask_token', *[f'head.scratch.refinenet4.resConfUnit1.conv{i}.{kind}'
                                   for i in (1, 2) for kind in ('weight', 'bias')]}


@pytest.mark.parametrize('locked', [False, True])
def test_all_parameters_that_are_trained_have_a_gradient(locked):
    model = tiny(lock_backbone=locked)
    (model(torch.randn(2, 3, 28, 28)) ** 2).mean().backward()
    without = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert without == {name for name, p in model.named_parameters() if p.grad is None}
    assert without == UNUSED | ({name for name, _ in model.named_parameters()
                                 if name.startswith('backbone.')} if locked else set())
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.skipif(not recompute.SUPPORTED, reason='checkpoint_backbone needs PyTorch 1.11')
def test_recomputed_blocks_have_the_same_gradients():
    images, found = torch.randn(2, 3, 28, 42), []
    for checkpointed in (False, True):
        model = tiny(checkpoint_backbone=checkpointed)
        calls = []
        model.backbone.blocks[3].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        (model(images) ** 2).mean().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
        assert len(calls) == 1 + checkpointed
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.skipif(not hasattr(torch, 'autocast'), reason='amp needs PyTorch 1.10')
def test_half_precision_is_near_float32_and_leaves_the_positions_alone(monkeypatch):
    model, images, seen = tiny(), torch.randn(2, 3, 28, 42), []
    real = VisionTransformer.positions
    monkeypatch.setattr(VisionTransformer, 'positions', lambda self, h, w: seen.append(
        real(self, h, w)) or seen[-1])
    with torch.no_grad():
        expected = model(images)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            found = model(images)
    assert torch.equal(*seen) and seen[0].dtype == torch.float32
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() / expected.norm() < 0.03


def test_ddp_meets_no_parameter_without_gradient(port):
    """Two steps in one process: DDP would miss a gradient in the second one."""
    dist.init_process_group('gloo', rank=0, world_size=1, init_method=f'tcp://127.0.0.1:{port}')
    try:
        student = World(size=2).prepare_student(tiny())
        images = torch.randn(2, 3, 28, 28)
        for _ in range(2):
            student.zero_grad()
            clean, fp1, fp2 = student(images, perturb=1)
            (clean.mean() + (fp1 - fp2).mean() + student(images).mean()).backward()
        assert all(p.grad is not None for p in unwrap(student).parameters() if p.requires_grad)
    finally:
        dist.destroy_process_group()


# ---- perturbed features

def test_copies_of_the_features_are_those_of_the_last_images(monkeypatch):
    """Without batch statistics `lean` makes the same predictions."""
    model, images = tiny(), torch.randn(3, 3, 28, 28)
    for lean in (False, True):
        torch.manual_seed(7)
        clean, *copies = model(images, perturb=2, lean=lean, views=2)
        assert (clean - model(images)).abs().max() < 1e-6
        assert [fp.shape for fp in copies] == [(2, 5, 28, 28)] * 2
        assert (copies[0] - copies[1]).abs().max() > 1e-4


@pytest.mark.parametrize('deeplab', [False, True], ids=['DPT', 'DeepLabV3+'])
def test_factors_multiply_the_channels_of_the_maps(deeplab):
    model = tiny(**(dict(model='deeplabv3plus', backbone='resnet18', base_channels=4,
                         decoder_channels=8) if deeplab else {})).eval()
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        maps = model.features(images)
        factors = [torch.randint(0, 3, (2, m.shape[1])).float() for m in maps]
        found = model(images, factors=factors)
        loud = [torch.stack([m[n] * f[n].view(-1, 1, 1) for n in range(2)])
                for m, f in zip(maps, factors)]
        expected = F.interpolate(model.decode(*loud), size=(28, 28), mode='bilinear',
                                 align_corners=True)
        assert (found - expected).abs().max() < 1e-5 < (found - model(images)).abs().max()
        if not deeplab:
            shared = model(images, factors=factors[0])
            assert torch.equal(shared, model(images, factors=[factors[0]] * 4))
            assert torch.equal(model(images, factors=torch.ones(2, 192)), model(images))
