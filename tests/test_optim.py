"""Parameter groups, SGD's constants and the learning rate's curve."""
import copy
import json
import math
import os

import pytest
import torch
import torch.nn as nn

from dssn import optim
from dssn.optim import (
    build_adamw,
    build_optimizer,
    gradient_norm,
    guarded_step,
    load_optimizer,
    polynomial_lr,
    set_lr,
)

with open(os.path.join(os.path.dirname(__file__), 'data', 'vectors.json')) as file:
    VECTORS = json.load(file)


def network():
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.head = nn.BatchNorm2d(4)
    model.classifier = nn.Conv2d(4, 2, 1)
    return model.double()


def rates(optimizer, model):
    """{parameter's name: its rate}; every parameter stands in one group exactly."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(p)], group['lr']) for group in optimizer.param_groups
             for p in group['params']]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


def check_rates(optimizer, model, backbone, rest):
    for name, rate in rates(optimizer, model).items():
        expected = backbone if name.startswith('backbone.') else rest
        assert rate == pytest.approx(expected, rel=1e-12)


def test_backbone_has_its_own_rate():
    model = network()
    check_rates(build_optimizer(model, 0.002, 10.0), model, 0.002, 0.02)


def test_sgd_constants_hold_for_every_parameter():
    optimizer = build_optimizer(network(), 0.1, 5.0)
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group['momentum'], group['weight_decay'], group['nesterov'], group['dampening']) \
            == (0.9, 1e-4, False, 0)


def test_three_steps_are_plain_sgd_with_momentum():
    model = network()
    optimizer = build_optimizer(model, 0.1, 5.0)
    value = {name: p.detach().clone() for name, p in model.named_parameters()}
    speed = {name: torch.zeros_like(p) for name, p in value.items()}
    for _ in range(3):
        for name, parameter in model.named_parameters():
            # Gradients about as small as the decay, so that a lost decay shows.
            parameter.grad = 1e-4 * torch.randn_like(parameter)
            speed[name] = 0.9 * speed[name] + parameter.grad + 1e-4 * value[name]
            value[name] = value[name] - (0.1 if name.startswith('backbone.') else 0.5) * speed[name]
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert (parameter - value[name]).abs().max() <= 1e-12


@pytest.mark.parametrize('step', [int(step) for step in VECTORS['lr']['used_at']])
def test_rate_vectors(step):
    facts, model = VECTORS['lr'], network()
    optimizer = build_optimizer(model, facts['base'], facts['lr_multi'])
    returned = set_lr(optimizer, step, facts['total_steps'], facts['base'], facts['lr_multi'])
    backbone, rest = facts['used_at'][str(step)]
    assert returned == pytest.approx(backbone, rel=1e-12)
    check_rates(optimizer, model, backbone, rest)


def test_rate_lags_one_step_behind():
    base, total = 0.01, 30
    curve = [base * (1 - done / total) ** 0.9 for done in range(total)]
    used = [polynomial_lr(step, total, base) for step in range(total)]
    assert used[0] == base
    assert used[1:] == pytest.approx(curve[:-1], rel=1e-12)


def test_rate_is_a_function_of_the_step_alone():
    model = network()
    optimizer = build_optimizer(model, 0.01, 2.0)
    for step in (20, 3, 3):
        set_lr(optimizer, step, 30, 0.01, 2.0)
    check_rates(optimizer, model, 0.01 * (28 / 30) ** 0.9, 0.02 * (28 / 30) ** 0.9)


def test_one_step_in_all_uses_the_base_rate():
    assert polynomial_lr(0, 1, 0.01) == 0.01


# ---- guarded steps

def slow_sgd(model, steps, lr=0.1, lr_multi=10.0):
    """Momentum 0.9, decay 1e-4, on plain numbers; a step of None is left out."""
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    momenta = {}
    for gradients in steps:
        if gradients is None:
            continue
        for name, gradient in gradients.items():
            change = gradient + 1e-4 * values[name]
            momenta[name] = 0.9 * momenta[name] + change if name in momenta else change
            rate = lr if name.startswith('backbone.') else lr * lr_multi
            values[name] = values[name] - rate * momenta[name]
    return values


def random_gradients(model, seed):
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=rng, dtype=p.dtype)
            for name, p in model.named_parameters()}


@pytest.fixture(params=['this release', 'without a fused step'])
def release(request, monkeypatch):
    if request.param != 'this release':
        monkeypatch.setattr(optim, 'FUSED', False)


def slow_adamw(model, steps, lr=0.1, lr_multi=10.0, betas=(0.9, 0.999), eps=1e-8, decay=0.01):
    """AdamW (Loshchilov & Hutter, algorithm 2) on plain numbers; a step of None is left out."""
    values = {name: p.detach().flatten().tolist() for name, p in model.named_parameters()}
    means = {name: [0.0] * len(numbers) for name, numbers in values.items()}
    squares = copy.deepcopy(means)
    for count, gradients in enumerate([step for step in steps if step is not None], 1):
        for name, gradient in gradients.items():
            rate = lr if name.startswith('backbone.') else lr * lr_multi
            for i, g in enumerate(gradient.flatten().tolist()):
                means[name][i] = betas[0] * means[name][i] + (1 - betas[0]) * g
                squares[name][i] = betas[1] * squares[name][i] + (1 - betas[1]) * g * g
                mean = means[name][i] / (1 - betas[0] ** count)
                square = squares[name][i] / (1 - betas[1] ** count)
                values[name][i] -= rate * (mean / (math.sqrt(square) + eps)
                                           + decay * values[name][i])
    return {name: torch.tensor(values[name], dtype=torch.double).view_as(p)
            for name, p in model.named_parameters()}


KINDS = {'sgd': (build_optimizer, slow_sgd), 'adamw': (build_adamw, slow_adamw)}


@pytest.mark.parametrize('bad', [{}, {0}, {2}, {0, 1, 4}])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('kind', KINDS)
def test_a_bad_gradient_leaves_weights_and_state_alone(release, kind, bad, value):
    build, slow = KINDS[kind]
    model = network()
    optimizer = build(model, lr=0.1, lr_multi=10.0)
    steps = [random_gradients(model, seed) for seed in range(5)]
    expected = slow(model, [None if i in bad else step for i, step in enumerate(steps)])
    for i, step in enumerate(steps):
        before = copy.deepcopy(optimizer.state_dict()['state'])
        for name, parameter in model.named_parameters():
            parameter.grad = step[name].clone()
        if i in bad:
            model.head.bias.grad[1] = value
        norm = gradient_norm(optimizer)
        assert bool(torch.isfinite(norm)) == (i not in bad)
        guarded_step(optimizer, ~torch.isfinite(norm))
        after = optimizer.state_dict()['state']
        for number, state in before.items():
            for name, old in state.items():
                assert torch.equal(old, after[number][name]) == (i in bad), name
    for name, parameter in model.named_parameters():
        assert (parameter - expected[name]).abs().max() <= 1e-12
    if kind == 'adamw':
        assert {state['step'].item() for state in optimizer.state.values()} == {5 - len(bad)}


def test_adamws_constants_are_those_of_the_release():
    optimizer = build_adamw(network(), 5e-6, 40.0)
    for group, rate in zip(optimizer.param_groups, (5e-6, 2e-4)):
        assert (group['betas'], group['eps'], group['weight_decay'], group['amsgrad']) \
            == ((0.9, 0.999), 1e-8, 0.01, False)
        assert group['lr'] == pytest.approx(rate, rel=1e-12)


def test_adamw_in_float32_is_that_of_pytorch(release):
    """Many steps, so that the counters' precision shows."""
    model, plain = network().float(), network().float()
    ours = build_adamw(model, lr=1e-3, lr_multi=10.0)
    groups = [dict(params=list(plain.backbone.parameters()), lr=1e-3),
              dict(params=[*plain.head.parameters(), *plain.classifier.parameters()], lr=1e-2)]
    theirs = torch.optim.AdamW(groups, weight_decay=0.01)
    for seed in range(100):
        for one in (model, plain):
            for name, gradient in random_gradients(one, seed).items():
                dict(one.named_parameters())[name].grad = gradient
        guarded_step(ours, torch.tensor(False))
        theirs.step()
    for one, other in zip(model.parameters(), plain.parameters()):
        assert (one - other).abs().max() <= 2e-6


@pytest.mark.parametrize('kind', KINDS)
def test_frozen_parameters_are_in_no_group_and_one_without_gradient_stays(release, kind):
    model = network()
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer = KINDS[kind][0](model, lr=0.1, lr_multi=10.0)
    assert [len(group['params']) for group in optimizer.param_groups] == [0, 4]
    for _ in range(2):
        optimizer.zero_grad()
        model.classifier(torch.ones(1, 4, 1, 1).double()).sum().backward()  # `head` has none
        guarded_step(optimizer, ~torch.isfinite(gradient_norm(optimizer)))
        set_lr(optimizer, 1, 10, 0.1, 10.0)
    moved = {name for name, value in model.state_dict().items()
             if not torch.equal(value, before[name])}
    assert moved == {'classifier.weight', 'classifier.bias'}
    load_optimizer(optimizer, optimizer.state_dict())


@pytest.mark.parametrize('saver, loader', [(True, False), (False, True)])
def test_a_state_of_one_kind_of_step_goes_on_in_the_other(monkeypatch, saver, loader):
    """As between PyTorch releases; the result is that of one that never changed."""
    if not optim.FUSED:
        pytest.skip('this release has one kind of step')
    model = network()
    steps = [random_gradients(model, seed) for seed in range(6)]
    expected = slow_adamw(model, steps)
    state = None
    for fused, part in ((saver, steps[:3]), (loader, steps[3:])):
        monkeypatch.setattr(optim, 'FUSED', fused)
        optimizer = build_adamw(model, lr=0.1, lr_multi=10.0)
        if state:
            for group in state['param_groups']:
                group.pop('fused')  # an older release's
            load_optimizer(optimizer, state)
        for step in part:
            for name, parameter in model.named_parameters():
                parameter.grad = step[name].clone()
            guarded_step(optimizer, torch.tensor(False))
        state = copy.deepcopy(optimizer.state_dict())
    for name, parameter in model.named_parameters():
        assert (parameter - expected[name]).abs().max() <= 1e-12


def test_the_norm_is_that_of_all_gradients():
    model = network()
    optimizer = build_optimizer(model, lr=0.1, lr_multi=10.0)
    model.classifier(torch.ones(1, 4, 1, 1).double()).sum().backward()  # the others have none
    total = sum(float((p.grad ** 2).sum()) for p in model.classifier.parameters())
    assert gradient_norm(optimizer).item() == pytest.approx(total ** 0.5)


def test_a_saved_state_does_not_choose_the_kind_of_step():
    model = network()
    first, second = [build_optimizer(model, lr=0.1, lr_multi=10.0) for _ in range(2)]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    guarded_step(first, torch.tensor(False))
    state = first.state_dict()
    own = [group.get('fused') for group in second.param_groups]
    for group in state['param_groups']:
        group.update(fused=None, foreach=None)  # another release
    load_optimizer(second, state)
    assert [group.get('fused') for group in second.param_groups] == own
    for parameter in model.parameters():
        assert torch.equal(second.state[parameter]['momentum_buffer'],
                           first.state[parameter]['momentum_buffer'])
