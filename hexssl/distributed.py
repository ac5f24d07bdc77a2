"""Rows of all ranks, with gradient: what a loss needs whose negatives come from the whole data-parallel batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Number of ranks; 1 where ``torch.distributed`` is not initialised.

    Examples
    --------
    >>> from hexssl.distributed import world_size
    >>> world_size()
    1
    """
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process among `world_size`, from 0.

    Examples
    --------
    >>> from hexssl.distributed import rank
    >>> rank()
    0
    """
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """The gradient of a rank's rows is the sum over all ranks' losses, each of which saw them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = rows.shape[0]
        return _gather(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total.narrow(0, rank() * ctx.rows, ctx.rows)


def _gather(rows: Tensor) -> Tensor:
    rows = rows.detach().contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    distributed.all_gather(parts, rows)
    return torch.cat(parts)


def gather(rows: Tensor, differentiable: bool = True) -> Tensor:
    """The rows of all ranks, in the order of the ranks.

    Parameters
    ----------
    rows : (n, ...) tensor, of the same shape and dtype on every rank
    differentiable : bool
        The gradient of the rows is summed over the ranks. False: no gradient.

    Returns
    -------
    (world_size * n, ...) tensor; `rows` itself (detached, if not differentiable) where there is one rank

    Notes
    -----
    A collective call: every rank makes it equally often, and in backward too where a gradient is wanted.

    Examples
    --------
    >>> import torch
    >>> gather(torch.arange(3))  # one rank
    tensor([0, 1, 2])
    """
    if world_size() == 1:
        return rows if differentiable else rows.detach()
    return _Gather.apply(rows) if differentiable else _gather(rows)
