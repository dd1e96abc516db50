"""Half precision, TF32, compilation and memory format: what newer PyTorch and GPUs offer."""
import contextlib

import torch

from dssn.distributed import unwrap
from dssn.errors import UserError


def check(cfg, device):
    """Raise a UserError where this PyTorch or device cannot do what the config asks for."""
    def release(key, present, since):
        if not present:
            raise UserError(f'{key} needs PyTorch {since} or newer, this is {torch.__version__}; '
                            f'leave the key out')
    if cfg.amp != 'off':
        release(f'amp = {cfg.amp}', hasattr(torch, 'autocast'), '1.10')
    if cfg.amp == 'fp16' and device.type != 'cuda':
        raise UserError('amp = fp16 needs a GPU; use bf16 or off')
    if cfg.amp == 'bf16' and device.type == 'cuda' and not torch.cuda.is_bf16_supported():
        raise UserError(f'amp = bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use '
                        'fp16 or off')
    if cfg.compile:
        release('compile', hasattr(torch.nn.Module, 'compile'), '2.2')
    if cfg.checkpoint_backbone:
        from dssn.models.recompute import SUPPORTED
        release('checkpoint_backbone', SUPPORTED, '1.11')


def set_tf32(allowed):
    """Let convolutions and matrix products on a GPU round their float32 factors, or not."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def half(model, cfg, device):
    """The network as training calls it: under autocast with `amp`, else itself."""
    if cfg.amp == 'off':
        return model
    return Half(model, device.type, {'bf16': torch.bfloat16, 'fp16': torch.float16}[cfg.amp])


class Half:
    """Calls a network under autocast; the rest of it is as it was."""

    def __init__(self, model, device_type, dtype):
        self.model, self.device_type, self.dtype = model, device_type, dtype

    def __call__(self, *args, **kwargs):
        with torch.autocast(self.device_type, dtype=self.dtype):
            return self.model(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.model, name)


def without_ddp(model):
    """The network that DDP wraps, as `half` gave it."""
    if isinstance(model, Half):
        return Half(unwrap(model.model), model.device_type, model.dtype)
    return unwrap(model)


def make_scaler(cfg):
    """The loss scaler that fp16 needs; None otherwise."""
    if cfg.amp != 'fp16':
        return None
    return torch.amp.GradScaler('cuda') if hasattr(torch.amp, 'GradScaler') \
        else torch.cuda.amp.GradScaler()


def unsynchronised(model):
    """A context in which backward passes leave gradients on their process, under DDP."""
    return model.no_sync() if hasattr(model, 'no_sync') else contextlib.nullcontext()
