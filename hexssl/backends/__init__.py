"""Who computes: a module for each way, and the choice among them.

Every one of them has the same two functions, on valid problems:

row_statistics(problem, quantile, rows, moments, normalize, normalize_keys, keep)
    Row statistics (M, 6), the mean quantile, and a token for what is kept for the loss that follows.
loss(problem, settings, decided, token, scale, statistics)
    The loss, times `scale`, and the vector of batch statistics, empty unless wanted.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from hexssl import core
from hexssl.backends import torch_ops

if core.available():
    from hexssl.backends import cpu


def of(rows: Tensor) -> ModuleType:
    """The compiled core for tensors on the CPU, where there is one; torch's operations for all others."""
    return cpu if core.computes(rows) else torch_ops
