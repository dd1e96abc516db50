"""The optimizer, its schedule, and a step that ignores gradients that are not finite."""
import inspect

import torch

# Newer PyTorch releases have a fused kernel for all parameters. It leaves out the whole update if a
# flag on the device is set.
FUSED = 'fused' in inspect.signature(torch.optim.SGD).parameters


def build_optimizer(model, lr, lr_multi, momentum=0.9, weight_decay=1e-4):
    """SGD with momentum and weight decay on all parameters.

    The parameters are in two groups: the backbone, and all others.

    Args:
        model: a network with a `backbone` attribute. lr: the rate of the backbone. lr_multi: the
            other parameters have the rate lr * lr_multi.
    """
    backbone = list(model.backbone.parameters())
    in_backbone = {id(parameter) for parameter in backbone}
    rest = [p for p in model.parameters() if id(p) not in in_backbone]
    groups = [{'params': backbone, 'lr': lr}, {'params': rest, 'lr': lr * lr_multi}]
    options = {'fused': True} if FUSED else {}
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay,
                                **options)
    # PyTorch makes the momenta in the first step, but that step may be left out.
    for parameter in backbone + rest:
        optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)
    return optimizer


def load_optimizer(optimizer, state):
    """Load momenta and rates from a saved state, but keep this release's kernels (`fused`)."""
    how = [{key: group[key] for key in ('foreach', 'fused') if key in group}
           for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, how):
        group.update(own)


@torch.no_grad()
def gradient_norm(optimizer):
    """Euclidean norm of all gradients, a float32 scalar on the device; may be inf or NaN."""
    gradients = [p.grad for group in optimizer.param_groups for p in group['params']
                 if p.grad is not None]
    if hasattr(torch, '_foreach_norm'):
        norms = torch._foreach_norm(gradients)
    else:
        norms = [gradient.norm() for gradient in gradients]
    return torch.stack(norms).norm()


def guarded_step(optimizer, bad):
    """The optimizer's step. If `bad`, weights and momenta keep their values.

    `bad` is a bool scalar on the device. The host does not wait for it.
    """
    if FUSED:
        optimizer.grad_scale, optimizer.found_inf = None, bad.float()
        optimizer.step()
    else:
        for group in optimizer.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    _guarded_update(parameter, optimizer.state[parameter], group, bad)


@torch.no_grad()
def _guarded_update(parameter, state, group, bad):
    """torch.optim.SGD's arithmetic for one parameter; no change if `bad`."""
    step = parameter.grad.add(parameter, alpha=group['weight_decay'])
    old = state['momentum_buffer']
    step = (old * group['momentum']).add_(step)
    state['momentum_buffer'] = torch.where(bad, old, step)
    parameter.copy_(torch.where(bad, parameter, parameter.add(step, alpha=-group['lr'])))


def polynomial_lr(step, total_steps, base, power=0.9):
    """Rate used at `step` (from 0): base * (1 - max(step - 1, 0) / total_steps) ** power.

    As in the release, which sets the rate after the step, so that each step uses the rate of the
    step before.
    """
    return base * (1 - max(step - 1, 0) / total_steps) ** power


def set_lr(optimizer, step, total_steps, lr, lr_multi, power=0.9):
    """Set both groups' rates for `step`; returns the backbone's."""
    rate = polynomial_lr(step, total_steps, lr, power)
    optimizer.param_groups[0]['lr'] = rate
    optimizer.param_groups[1]['lr'] = rate * lr_multi
    return rate
