"""Computes memory and operations of a training step from tensors with shapes but no contents.

PyTorch's `meta` tensors have a shape and no memory. A step with such tensors shows which tensors
exist at the same time, also for GPUs and batches that do not fit into this machine.
"""
import contextlib
import weakref

import torch

from dssn.distributed import World
from dssn.errors import UserError
from dssn.models import vit
from dssn.tools.bench.step import StepBench
from dssn.tools.bench.timed_update import TimedUpdate

try:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten
    from torch.utils.flop_counter import flop_registry
except ImportError:  # PyTorch 1
    TorchDispatchMode = object

BLOCK = 512  # bytes: the GPU allocator rounds up to multiples of this


def computed_step(cfg):
    """(peak MiB, TFLOP) of a step of `cfg`.

    The peak is that of all tensors: weights, teacher, momenta, batch, activations. A GPU needs
    memory for other things too: its context, workspaces of convolutions, and gaps between tensors.
    They are not included. A multiplication and an addition are two operations; those of
    convolutions, matrix products and attention are counted.

    Raises:
        UserError: this PyTorch cannot compute it, or the config has half precision or `compile`.
    """
    # PyTorch 2.0 has no meta kernel for cross-entropy.
    if tuple(map(int, torch.__version__.split('.')[:2])) < (2, 2):
        raise UserError(f'--computed needs PyTorch 2.2 or newer, this is {torch.__version__}; use '
                        'requirements.txt, or measure')
    if cfg.amp != 'off' or cfg.compile:
        raise UserError(f'--computed: amp = {cfg.amp}, compile = {str(cfg.compile).lower()}: their '
                        'savings cannot be computed; turn both off, or measure on a GPU')
    with fused_attention(), LiveBytes() as live:
        bench = MetaStepBench(cfg, World(device='meta'))
        live.peak = live.operations = 0
        bench.step()
    return live.peak / 2 ** 20, live.operations / 1e12


@contextlib.contextmanager
def fused_attention():
    """A context in which attention makes the tensors that it makes on a GPU.

    For `meta` tensors PyTorch chooses the plain kernel, which keeps the weights of all pairs of
    tokens. On a GPU it has a fused one for every precision.
    """
    known = vit.attention
    vit.attention = lambda q, k, v: torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True)[0]
    try:
        yield
    finally:
        vit.attention = known


class MetaUpdate(TimedUpdate):
    """An update without the optimizer's step: fused SGD needs only gradient and momentum."""

    def optimize(self):
        return torch.zeros((), device=self.world.device)


class MetaStepBench(StepBench):
    """The step of `bench step` without contents."""
    update_class = MetaUpdate


class LiveBytes(TorchDispatchMode):
    """While active, counts the bytes of tensors that operations have made and that still exist.

    Attributes:
        now, peak: bytes at this moment, and their maximum so far.
        operations: floating-point operations so far, as PyTorch counts them.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.operations = 0
        self.known = {}  # {address of a storage: weak reference to it}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        count = flop_registry.get(operation.overloadpacket)
        if count:
            self.operations += count(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage):
        address = storage._cdata
        if address in self.known:  # a view, or the result of an operation in place
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK

        def release(_):
            del self.known[address]
            self.now -= size
        self.known[address] = weakref.ref(storage, release)
        self.now += size
        self.peak = max(self.peak, self.now)
