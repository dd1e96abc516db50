"""Activation checkpointing: saves memory by a second forward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).
"""
import contextlib
import inspect

import torch
import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

SUPPORTED = 'use_reentrant' in inspect.signature(checkpoint).parameters


class Backbone(nn.Module):
    """A network that runs piece by piece. With `recompute` activations are not kept in between."""

    recompute = False

    def run(self, piece, x, *modules):
        """piece(x). If `recompute` is set, it is computed again in the backward pass.

        Args:
            piece: a module, or a method of this network that uses `modules`. It must not use
                random numbers.
        """
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return piece(x)
        is_first = True

        def compute(x):
            nonlocal is_first
            first, is_first = is_first, False
            with contextlib.nullcontext() if first else frozen_statistics(modules or [piece]):
                return piece(x)
        return checkpoint(compute, x, use_reentrant=False, preserve_rng_state=False)


@contextlib.contextmanager
def frozen_statistics(modules):
    """A context in which the BN layers of some modules do not update their running statistics."""
    # By momentum 0: the recomputation must save the same tensors as the first pass, so the running
    # statistics cannot be switched off.
    norms = [norm for module in modules for norm in module.modules()
             if isinstance(norm, _BatchNorm) and norm.training]
    known = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in known:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
