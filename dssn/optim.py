"""The optimizer, its schedule, and a step that ignores gradients that are not finite."""
import inspect

import torch

# Newer PyTorch releases have a fused kernel for all parameters. It leaves out the whole update if a
# flag on the device is set.
FUSED = 'fused' in inspect.signature(torch.optim.SGD).parameters


def build_optimizer(model, lr, lr_multi, momentum=0.9, weight_decay=1e-4):
    """SGD with momentum and weight decay on all parameters that need a gradient.

    The parameters are in two groups: the backbone (empty with `lock_backbone`), and all others.

    Args:
        model: a network with a `backbone` attribute. lr: the rate of the backbone. lr_multi: the
            other parameters have the rate lr * lr_multi.
    """
    return _build(torch.optim.SGD, ('momentum_buffer',), model, lr, lr_multi, momentum=momentum,
                  weight_decay=weight_decay)


def build_adamw(model, lr, lr_multi, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    """AdamW (Loshchilov & Hutter, ICLR 2019) on the same two groups; other arguments as above."""
    return _build(torch.optim.AdamW, ('exp_avg', 'exp_avg_sq'), model, lr, lr_multi,
                  betas=tuple(betas), eps=eps, weight_decay=weight_decay)


def optimizer_of(cfg, model, lr):
    """The optimizer that a config asks for; `lr` is the initial rate of the backbone."""
    if cfg.optimizer == 'adamw':
        return build_adamw(model, lr, cfg.lr_multi, cfg.betas, cfg.eps, cfg.weight_decay)
    return build_optimizer(model, lr, cfg.lr_multi, cfg.momentum, cfg.weight_decay)


def _build(kind, averages, model, lr, lr_multi, **options):
    """An optimizer of class `kind`, whose state has the tensors `averages` for each parameter."""
    trained = [p for p in model.parameters() if p.requires_grad]
    in_backbone = {id(parameter) for parameter in model.backbone.parameters()}
    groups = [{'params': [p for p in trained if id(p) in in_backbone], 'lr': lr},
              {'params': [p for p in trained if id(p) not in in_backbone], 'lr': lr * lr_multi}]
    optimizer = kind(groups, lr=lr, **options, **({'fused': True} if FUSED else {}))
    # PyTorch makes the state in the first step, but that step may be left out.
    for parameter in trained:
        state = optimizer.state[parameter]
        if kind is torch.optim.AdamW:
            state['step'] = torch.zeros((), device=parameter.device)
        for name in averages:
            state[name] = torch.zeros_like(parameter)
    return optimizer


def load_optimizer(optimizer, state):
    """Load averages, counters and rates from a saved state, but keep this release's kernels."""
    how = [{key: group[key] for key in ('foreach', 'fused') if key in group}
           for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, how):
        group.update(own)
    # A state without `fused` (an older release's) leaves AdamW's counters on the CPU.
    for parameter, known in optimizer.state.items():
        if 'step' in known:
            known['step'] = known['step'].to(parameter.device, torch.float32)


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
    """The optimizer's step. If `bad`, weights and the optimizer's state keep their values.

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
    """One parameter's step, as the classes of torch.optim make it; no change if `bad`."""
    value, found = (_adamw if 'betas' in group else _sgd)(parameter, state, group)
    parameter.copy_(torch.where(bad, parameter, value))
    for name, tensor in found.items():
        state[name] = torch.where(bad, state[name], tensor)


def _sgd(parameter, state, group):
    """SGD: (new value, {name: new state}) of a parameter."""
    step = parameter.grad.add(parameter, alpha=group['weight_decay'])
    step = (state['momentum_buffer'] * group['momentum']).add_(step)
    return parameter.add(step, alpha=-group['lr']), {'momentum_buffer': step}


def _adamw(parameter, state, group):
    """AdamW: (new value, {name: new state}) of a parameter."""
    gradient, (beta1, beta2), lr = parameter.grad, group['betas'], group['lr']
    step = state['step'] + 1
    mean = (state['exp_avg'] * beta1).add_(gradient, alpha=1 - beta1)
    square = (state['exp_avg_sq'] * beta2).addcmul_(gradient, gradient, value=1 - beta2)
    count = step.double()  # 1 - 0.999 has few digits in float32
    spread = (square / (1 - torch.pow(beta2, count))).sqrt_().add_(group['eps'])
    rate = lr / (1 - torch.pow(beta1, count))
    value = (parameter * (1 - lr * group['weight_decay'])).sub_(mean / spread * rate)
    return value, {'step': step, 'exp_avg': mean, 'exp_avg_sq': square}


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
