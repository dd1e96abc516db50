"""The moving average: parameters, buffers, and the copy."""
import json
import os

import pytest
import torch
import torch.nn as nn

from dssn import ema

with open(os.path.join(os.path.dirname(__file__), 'data', 'vectors.json')) as file:
    VECTORS = json.load(file)


def network(seed):
    """A small network whose statistics have moved and whose counters differ from seed to seed."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double()
    model.register_buffer('flag', torch.tensor([seed % 2 == 0]))
    for _ in range(seed):
        model(torch.randn(2, 2, 3, 3).double())
    return model


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_update_vector():
    facts = VECTORS['ema']
    models = []
    for role in ('student', 'teacher'):
        model = nn.BatchNorm1d(1).double()
        nn.init.constant_(model.weight, facts[role]['weight'])
        model.running_mean.fill_(facts[role]['running_mean'])
        models.append(model)
    student, teacher = models
    ema.update(teacher, student, facts['keep_rate'])
    assert teacher.weight.item() == pytest.approx(facts['after']['weight'], abs=1e-12)
    assert teacher.running_mean.item() == pytest.approx(facts['after']['running_mean'], abs=1e-12)


@pytest.mark.parametrize('keep_rate', [0.0, 0.5, 0.996])
def test_update_averages_floats_and_copies_integers(keep_rate):
    student, teacher = network(5), network(2)
    old, new = values(teacher), values(student)
    ema.update(teacher, student, keep_rate)
    assert set(old) == {'0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean',
                        '1.running_var', '1.num_batches_tracked', 'flag'}
    for name, tensor in teacher.state_dict().items():
        if name in ('1.num_batches_tracked', 'flag'):
            assert torch.equal(tensor, new[name]) and tensor.dtype == new[name].dtype
        else:
            expected = keep_rate * old[name] + (1 - keep_rate) * new[name]
            assert (tensor - expected).abs().max() <= 1e-12
    assert all(torch.equal(tensor, new[name]) for name, tensor in student.state_dict().items())


def test_update_many_times_is_the_closed_form():
    student, teacher = nn.Linear(1, 1).double(), nn.Linear(1, 1).double()
    start, goal = teacher.weight.item(), student.weight.item()
    for _ in range(100):
        ema.update(teacher, student, 0.9)
    assert teacher.weight.item() == pytest.approx(goal + 0.9 ** 100 * (start - goal), abs=1e-12)


def test_keep_rate_zero_is_a_copy_to_the_last_bit():
    student, teacher = network(3), network(2)
    with torch.no_grad():
        teacher[0].weight.fill_(float('nan'))  # 0 * NaN is NaN: a product would not forget it
    ema.update(teacher, student, 0.0)
    for name, tensor in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], tensor)


def test_teacher_is_a_copy_of_its_own():
    student = network(3)
    teacher = ema.make_teacher(student)
    before = values(student)
    assert set(before) == set(teacher.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    with torch.no_grad():
        for tensor in student.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_no_gradient_reaches_the_teacher():
    student = network(3)
    teacher = ema.make_teacher(student)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    ema.update(teacher, student, 0.5)
    assert all(p.grad is None and p.grad_fn is None and p.is_leaf for p in teacher.parameters())
    assert not teacher(torch.randn(2, 2, 3, 3).double()).requires_grad
