"""The running statistics of batch norm, and how they travel.

A running variance travels as second moment (variance + mean^2, float64): the weighted
mean of moments over parties is the moment of the parties' distributions together, while
a mean of variances would leave out how far the parties' means lie apart. `serve` turns
it back in the same way on every node and for an opened model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
# Instance norm keeps the same, where it keeps any.
BatchNorm = _NormBase

# What a batch norm keeps beside its parameters, under PyTorch's names.
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def batch_norms(module: nn.Module) -> dict[str, BatchNorm]:
    """Returns the batch norms that keep running statistics, by name, each once."""
    return {
        name: norm
        for name, norm in module.named_modules()
        if isinstance(norm, BatchNorm) and norm.running_mean is not None
    }


def moments(mean: Floats, variance: Floats) -> tuple[Doubles, Doubles]:
    """Returns mean and second moment, the form in which statistics travel."""
    wide = mean.astype(np.float64)
    return wide, variance + wide * wide


def serve(mean: Doubles, second_moment: Doubles) -> tuple[Floats, Floats]:
    """Returns the mean and variance a module computes with.

    A model that is exported and loaded again must give the same bits, so the variance
    keeps only what survives ``moments``: ``serve(*moments(*serve(m, s)))`` is
    ``serve(m, s)`` exactly. What it drops is below the rounding of the second moment.
    """
    served = mean.astype(np.float32)
    variance = np.maximum(second_moment - mean * mean, 0.0).astype(np.float32)
    square = served.astype(np.float64) ** 2
    return served, ((variance + square) - square).astype(np.float32)
