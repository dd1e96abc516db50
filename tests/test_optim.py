"""Parameter groups, SGD's constants and the learning rate's curve."""
import json
import os

import pytest
import torch
import torch.nn as nn

from dssn import optim
from dssn.optim import (
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


@pytest.mark.parametrize('bad', [{}, {0}, {2}, {0, 1, 4}])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_bad_gradient_leaves_weights_and_momentum_alone(release, bad, value):
    model = network()
    optimizer = build_optimizer(model, lr=0.1, lr_multi=10.0)
    steps = [random_gradients(model, seed) for seed in range(5)]
    expected = slow_sgd(model, [None if i in bad else step for i, step in enumerate(steps)])
    for i, step in enumerate(steps):
        for name, parameter in model.named_parameters():
            parameter.grad = step[name].clone()
        if i in bad:
            model.head.bias.grad[1] = value
        norm = gradient_norm(optimizer)
        assert bool(torch.isfinite(norm)) == (i not in bad)
        guarded_step(optimizer, ~torch.isfinite(norm))
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
