"""The teacher: an exponential moving average of the student."""
import copy
import itertools

import torch


def make_teacher(student):
    """A copy of the student whose parameters need no gradient."""
    teacher = copy.deepcopy(student)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


def ramp(step, keep_rate):
    """The keep rate after `step` = 0, 1, ... of a ramp: min(1 - 1 / (step + 1), keep_rate).

    While it rises, the teacher is the mean of all students so far. Source: UniMatch V2's program.
    """
    return min(1 - 1 / (step + 1), keep_rate)


@torch.no_grad()
def update(teacher, student, keep_rate):
    """teacher <- keep_rate * teacher + (1 - keep_rate) * student.

    Over parameters and floating-point buffers (BN's running statistics); integer buffers are
    copied. A keep rate of 0 makes an exact copy. A frozen parameter is a copy from the start, and
    averaging would only round it.
    """
    averaged, sources = [], []
    for tensor, source in zip(_tensors(teacher), _tensors(student)):
        if isinstance(source, torch.nn.Parameter) and not source.requires_grad:
            continue
        if keep_rate == 0 or not tensor.is_floating_point():
            tensor.copy_(source)
        else:
            averaged.append(tensor)
            sources.append(source)
    if averaged:
        torch._foreach_mul_(averaged, keep_rate)
        torch._foreach_add_(averaged, sources, alpha=1 - keep_rate)


def _tensors(model):
    return itertools.chain(model.parameters(), model.buffers())
