"""The optimizer and its schedule."""
import torch


def build_optimizer(model, lr, lr_multi):
    """SGD, momentum 0.9, weight decay 1e-4 on everything; two groups: backbone, everything else.

    Args:
        model: a network with a `backbone` attribute. lr: the backbone's rate; the other
            parameters' is lr * lr_multi.
    """
    backbone = list(model.backbone.parameters())
    in_backbone = {id(parameter) for parameter in backbone}
    rest = [p for p in model.parameters() if id(p) not in in_backbone]
    groups = [{'params': backbone, 'lr': lr}, {'params': rest, 'lr': lr * lr_multi}]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-4)


def polynomial_lr(step, total_steps, base):
    """Rate used at `step` (from 0): base * (1 - max(step - 1, 0) / total_steps) ** 0.9.

    The release sets the rate after the step, so each step uses the one before's; kept.
    """
    return base * (1 - max(step - 1, 0) / total_steps) ** 0.9


def set_lr(optimizer, step, total_steps, lr, lr_multi):
    """Set both groups' rates for `step`; returns the backbone's."""
    rate = polynomial_lr(step, total_steps, lr)
    optimizer.param_groups[0]['lr'] = rate
    optimizer.param_groups[1]['lr'] = rate * lr_multi
    return rate
