"""Tensors of any device, by torch's own operations.

Anchors are taken in chunks, sized from a budget of bytes (`hexssl.workspace`), so that memory is O(N D) and the budget;
the gradients are formulas, made in the same visit of a chunk as the losses. Nothing waits for the device.

    job.py        the rows made ready, and which way is taken
    members.py    whose positives and negatives
    thresholds.py what hierarchical negatives exceed
    quantile.py   the quantile of a row
    products.py   products of half precision, on tensor cores
    elements.py   exponentials, sums and coefficients of a chunk
    score.py      its losses and dL/ds
    accumulate.py from dL/ds to gradients by the rows
    whole.py      what chunks leave behind
    contrast.py   all chunks
    two_views.py  the same of two views of many rows, whose pairs are computed once
    direction.py  the sums, losses and weights of one direction of a symmetric loss
    both_ways.py  all chunks of both directions
    measure.py    statistics of rows
    function.py   the loss as an autograd Function
    blocks.py     a loss whose keys come block by block (hexssl/ring.py)
    partial.py    its steps
    merge.py      one state of an anchor from those of two blocks
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from hexssl import core
from hexssl.backends.torch_ops.function import Call
from hexssl.backends.torch_ops.function import loss as _loss
from hexssl.backends.torch_ops.measure import row_statistics
from hexssl.problem import Problem, Settings
from hexssl.thresholds import Measurement

if core.available():
    from hexssl.backends import cpu
    from hexssl.backends.torch_ops import operators

__all__ = ["loss", "operators", "row_statistics"]


def loss(problem: Problem, settings: Settings, decided: float | Tensor | Measurement | None, token: Tensor,
         scale: float, statistics: bool) -> tuple[Tensor, Tensor]:
    """As `hexssl.backends` says; `decided` is the threshold, None for none, or from what to take it."""
    if recorded():
        if not core.available():
            raise NotImplementedError("hexssl's losses cannot be exported or traced without the compiled core, whose "
                                      f"operators have a derivative of their own. {core.missing_because}")
        return cpu.loss(problem, settings, decided, token, scale, statistics)
    if isinstance(decided, Tensor):
        decided = decided.detach().clone()  # who owns it may change it before backward
    return _loss(Call(problem, settings, decided, scale, statistics))


def recorded() -> bool:
    """Whether a program is recorded that others will run (torch.export, torch.jit.trace, make_fx), or mapped by
    torch.func.vmap. It must hold the operators, which have a derivative and refuse what they have not, where what an
    autograd Function does would be recorded without its gradient. (torch.compile follows the Function.)"""
    return (torch.compiler.is_exporting() or torch.jit.is_tracing()
            or (not torch.compiler.is_compiling()
                and (get_proxy_mode() is not None or torch._C._are_functorch_transforms_active())))
