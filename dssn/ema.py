"""The teacher: an exponential moving average of the student."""
import copy

import torch


def make_teacher(student):
    """A copy of the student that no gradient reaches."""
    teacher = copy.deepcopy(student)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


@torch.no_grad()
def update(teacher, student, keep_rate):
    """teacher <- keep_rate * teacher + (1 - keep_rate) * student.

    Over parameters and floating-point buffers (BN's running statistics); integer buffers are
    copied. A keep rate of 0 makes an exact copy.
    """
    source = student.state_dict()
    for name, tensor in teacher.state_dict().items():
        if keep_rate == 0 or not tensor.is_floating_point():
            tensor.copy_(source[name])
        else:
            tensor.mul_(keep_rate).add_(source[name], alpha=1 - keep_rate)
