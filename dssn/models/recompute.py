"""Activation checkpointing: less memory for a second forward pass.

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
    """A network that runs in pieces, whose activations `recompute` lets go until they are needed."""

    recompute = False

    def run(self, piece, x):
        """piece(x), where a piece is a module or method of ours that draws no random numbers."""
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return piece(x)
        passes = []

        def once_more(x):
            passes.append(1)
            with contextlib.nullcontext() if len(passes) == 1 else statistics_at_rest(self):
                return piece(x)
        return checkpoint(once_more, x, use_reentrant=False, preserve_rng_state=False)


@contextlib.contextmanager
def statistics_at_rest(module):
    """A module's BN layers normalise as they do, and take no note of what they see."""
    # Weight 0 for what they see. (Without running statistics they would save other tensors, and a
    # recomputation must save what the first pass did.)
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training]
    known = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in known:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
