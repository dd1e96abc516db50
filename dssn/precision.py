"""Arithmetic: half precision, TF32, cuDNN's algorithms, deterministic algorithms."""
import contextlib
import os

import torch

from dssn.distributed import unwrap
from dssn.errors import UserError

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}

# `tf32: auto`: PyTorch's defaults, or the user's choice by an environment variable.
TF32_DEFAULTS = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

# The first release known to have a deterministic CUDA algorithm for each operation of a step.
# PyTorch 2.0 has none for the backward pass of bilinear interpolation. For several later releases
# it is not known whether scatter_add_ over two dimensions is deterministic.
DETERMINISTIC_SINCE = 2, 14
# cuBLAS reads this variable at the first use of a GPU. It is deterministic only with these values.
CUBLAS, WORKSPACES = 'CUBLAS_WORKSPACE_CONFIG', (':4096:8', ':16:8')


# Checks of what this PyTorch and this device support.

def check(cfg, device):
    """Raise a UserError if this PyTorch or device does not support the config."""
    _check_half('amp', cfg.amp, device)
    if cfg.compile:
        _need('compile', hasattr(torch.nn.Module, 'compile'), '2.2')
    if cfg.checkpoint_backbone:
        from dssn.models.recompute import SUPPORTED
        _need('checkpoint_backbone', SUPPORTED, '1.11')
    check_evaluation(cfg, device)


def check_evaluation(cfg, device):
    """The same for the keys that evaluation and prediction use."""
    _check_half('eval_amp', cfg.eval_amp, device)
    release = tuple(map(int, torch.__version__.split('.')[:2]))
    if cfg.deterministic and release < DETERMINISTIC_SINCE:
        since = '.'.join(map(str, DETERMINISTIC_SINCE))
        raise UserError(
            f'deterministic = true needs PyTorch {since} or newer, this is {torch.__version__}: '
            'older releases lack deterministic GPU algorithms for some operations of a step, or it '
            'is not known whether they have them; set deterministic=false')


def _check_half(key, kind, device):
    if kind == 'off':
        return
    _need(f'{key} = {kind}', hasattr(torch, 'autocast'), '1.10')
    if kind == 'fp16' and device.type != 'cuda':
        raise UserError(f'{key} = fp16 needs a GPU; use bf16 or off')
    if kind == 'bf16' and device.type == 'cuda' and not torch.cuda.is_bf16_supported():
        raise UserError(f'{key} = bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use '
                        'fp16 or off')


def _need(key, present, since):
    if not present:
        raise UserError(f'{key} needs PyTorch {since} or newer, this is {torch.__version__}; '
                        f'leave the key out')


# Settings of the whole process.

def prepare(cfg):
    """Settings needed before the first use of a GPU; call it before `distributed.start`."""
    if cfg.deterministic and not torch.cuda.is_initialized():
        os.environ.setdefault(CUBLAS, WORKSPACES[0])


def set_arithmetic(cfg, device):
    """Set TF32, cuDNN's search for the fastest algorithm, and deterministic algorithms.

    Training, evaluation, prediction and benchmarks all call it, so that they compute in the same
    way. cuDNN's search (`cudnn.benchmark`) is on unless `deterministic` is set; see
    `varying_sizes`.

    Returns:
        A line for the log with the settings; None on a CPU that computes in float32.

    Raises:
        UserError: `deterministic` is set on a GPU, but cuBLAS's environment variable is not.
    """
    if cfg.deterministic and device.type == 'cuda':
        prepare(cfg)
        if os.environ.get(CUBLAS) not in WORKSPACES:
            raise UserError(
                f'deterministic = true: the environment variable {CUBLAS} is '
                f'{os.environ.get(CUBLAS, "not set")}; it must be {" or ".join(WORKSPACES)} before '
                f'this process first uses a GPU: export {CUBLAS}={WORKSPACES[0]}, or set '
                'deterministic=false')
    convolutions, products = TF32_DEFAULTS if cfg.tf32 == 'auto' else (cfg.tf32, cfg.tf32)
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.benchmark = not cfg.deterministic
    torch.backends.cudnn.deterministic = cfg.deterministic
    if torch.are_deterministic_algorithms_enabled() != cfg.deterministic:  # this call is slow
        torch.use_deterministic_algorithms(cfg.deterministic)
    return _arithmetic_text(cfg, device)


def _arithmetic_text(cfg, device):
    training, evaluation = [{'off': 'float32'}.get(kind, kind) for kind in (cfg.amp, cfg.eval_amp)]
    parts = [f'{training} in training, {evaluation} in evaluation']
    if device.type == 'cuda':
        on = {True: 'on', False: 'off'}
        parts += [f'TF32 in convolutions {on[torch.backends.cudnn.allow_tf32]}, in matrix products '
                  f'{on[torch.backends.cuda.matmul.allow_tf32]}',
                  f'cudnn.benchmark {on[torch.backends.cudnn.benchmark]}'
                  + ' where sizes are fixed' * torch.backends.cudnn.benchmark]
    elif training == evaluation == 'float32' and not cfg.deterministic:
        return None
    return 'arithmetic: ' + '; '.join(parts + ['deterministic algorithms only'] * cfg.deterministic)


@contextlib.contextmanager
def varying_sizes():
    """A context for inputs of many sizes: without cuDNN's search, which would repeat for each."""
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


# How a network is called.

def half(model, cfg, device):
    """The network for training: under autocast if `amp` is set, else unchanged."""
    if cfg.amp == 'off':
        return model
    return Half(model, device.type, DTYPES[cfg.amp])


def half_in_evaluation(model, cfg, device):
    """The network for evaluation and prediction: under autocast if `eval_amp` is set.

    Its logits (N, C, H, W) are float32, for softmax and argmax.
    """
    if cfg.eval_amp == 'off':
        return model
    return HalfInEvaluation(model, device.type, DTYPES[cfg.eval_amp])


class Half:
    """A network that is called under autocast. Its attributes are unchanged."""

    def __init__(self, model, device_type, dtype):
        self.model, self.device_type, self.dtype = model, device_type, dtype

    def __call__(self, *args, **kwargs):
        with torch.autocast(self.device_type, dtype=self.dtype):
            return self.model(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.model, name)


class HalfInEvaluation(Half):
    """The same, with float32 logits."""

    def __call__(self, images):
        return super().__call__(images).float()


def without_ddp(model):
    """The network without DDP; the result of `half` keeps its autocast."""
    if isinstance(model, Half):
        return Half(unwrap(model.model), model.device_type, model.dtype)
    return unwrap(model)


def make_scaler(cfg):
    """The loss scaler for fp16; None for other precisions."""
    if cfg.amp != 'fp16':
        return None
    return torch.amp.GradScaler('cuda') if hasattr(torch.amp, 'GradScaler') \
        else torch.cuda.amp.GradScaler()


def unsynchronised(model):
    """A context in which DDP's backward passes do not exchange gradients."""
    return model.no_sync() if hasattr(model, 'no_sync') else contextlib.nullcontext()
