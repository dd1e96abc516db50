"""The memory of a training step by arithmetic: the tensors of real shapes, without their contents.

PyTorch's `meta` tensors have a shape and no memory. A step made of them shows what tensors live at
the same time, also for cards and batches that the machine at hand could not hold.
"""
import weakref

import torch

from dssn.bench.parts import TimedUpdate
from dssn.bench.step import Subject
from dssn.distributed import World
from dssn.errors import UserError

try:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten
except ImportError:  # PyTorch 1
    TorchDispatchMode = object

BLOCK = 512  # bytes: the GPU allocator rounds up to these


def computed_peak(cfg):
    """MiB of tensors alive at most in a step of `cfg`: weights, teacher, momenta, batch and all.

    What a GPU holds beside them is not in it: its context, workspaces of convolutions, and gaps
    between tensors.

    Raises:
        UserError: this PyTorch cannot tell, or the config asks for half precision.
    """
    # PyTorch 2.0 has no meta kernel for cross-entropy.
    if tuple(map(int, torch.__version__.split('.')[:2])) < (2, 2):
        raise UserError(f'--computed needs PyTorch 2.2 or newer, this is {torch.__version__}; use '
                        'requirements.txt, or measure')
    if cfg.amp != 'off' or cfg.compile:
        raise UserError(f'--computed: amp = {cfg.amp}, compile = {str(cfg.compile).lower()}: what '
                        'these save cannot be computed; leave both off, or measure on a GPU')
    with Living() as living:
        subject = MetaSubject(cfg, World(device='meta'))
        living.peak = 0
        subject.step()
    return living.peak / 2 ** 20


class MetaUpdate(TimedUpdate):
    """An update whose optimizer does nothing: fused SGD holds no more than gradient and momentum."""

    def optimize(self):
        return torch.zeros((), device=self.world.device)


class MetaSubject(Subject):
    """What `bench step` times, without contents."""
    update_class = MetaUpdate


class Living(TorchDispatchMode):
    """While active, the bytes of the tensors that operations have made and that still live."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = {}  # {a storage's address: weak reference to it}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage):
        address = storage._cdata
        if address in self.known:  # a view, or written in place
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK

        def gone(_):
            del self.known[address]
            self.now -= size
        self.known[address] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
