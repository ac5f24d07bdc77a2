"""Tensors of any device, by torch's own operations.

Anchors are taken in chunks, sized from a budget of bytes (`hexssl.workspace`), so that memory is O(N D) and the budget;
the gradients are formulas, made in the same visit of a chunk as the losses. Nothing waits for the device.

    job.py        the rows made ready, and which way is taken
    members.py    whose positives and negatives
    thresholds.py what hierarchical negatives exceed
    quantile.py   the quantile of a row
    elements.py   exponentials, sums and coefficients of a chunk
    score.py      its losses and dL/ds
    accumulate.py from dL/ds to gradients by the rows
    contrast.py   all chunks
    measure.py    statistics of rows
    function.py   the loss as an autograd Function
"""

from __future__ import annotations

from torch import Tensor

from hexssl.backends.torch_ops.function import Call
from hexssl.backends.torch_ops.function import loss as _loss
from hexssl.backends.torch_ops.measure import row_statistics
from hexssl.problem import Problem, Settings
from hexssl.thresholds import Measurement

__all__ = ["TAKES_MEASUREMENTS", "loss", "row_statistics"]

TAKES_MEASUREMENTS = True
BOTH_WAYS = False


def loss(problem: Problem, settings: Settings, decided: float | Tensor | Measurement | None, token: Tensor,
         scale: float, statistics: bool) -> tuple[Tensor, Tensor]:
    """As `hexssl.backends` says; `decided` is the threshold, None for none, or from what to take it."""
    if isinstance(decided, Tensor):
        decided = decided.detach().clone()  # who owns it may change it before backward
    return _loss(Call(problem, settings, decided, scale, statistics))
