"""Rows of all ranks, with gradient: what a loss needs whose negatives come from the whole data-parallel batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from hexssl import dtypes, exchange, validation
from hexssl.groups import DEFAULT, Group, Ranks, Ring, group_of

__all__ = ["Ring", "all_gather", "all_gather_checked", "check_ranks", "rank", "world_size"]

_DIMENSIONS = 8  # most that rows of all ranks may have
_DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
_NOTHING, _TENSOR, _OTHER = range(3)  # what was given: None, a dense tensor, something else


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


def check_ranks(*differentiable: str, group: Group = DEFAULT, **given: Any) -> None:
    """Raise the same error on every rank unless all ranks were given the same kinds of tensors.

    Ranks that disagree would wait for each other, mix their numbers or abort in the collective calls that follow. So
    this comes first, before anything that one rank alone could refuse, and calls of `all_gather_checked` follow.

    Parameters
    ----------
    differentiable : names of those that are gathered with gradient
        All ranks must want their gradient or none: its sum over the ranks is a collective call, too.
    group : the ranks
    given : by the names of the arguments, tensors, None or anything else, and as many on every rank
        Their shapes and dtypes are compared, never their values.

    Raises
    ------
    ValueError
        On every rank, naming the argument and what each rank was given. Under ``torch.compile`` a RuntimeError, on
        every rank too, that names the arguments only.

    Notes
    -----
    A collective call of 12 int64 per argument, on the device of the first tensor, for which the host waits: the latency
    of one call, however many rows there are. It is made every time, since a rank cannot know from its own shapes that
    another's have changed.

    Examples
    --------
    >>> import torch
    >>> check_ranks(z=torch.zeros(3, 2))  # one rank
    """
    size = group.size
    if size == 1:
        return
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    own = torch.tensor([_description(value, name in differentiable) for name, value in given.items()], device=device)
    everyone = own.new_empty(size, *own.shape)
    exchange.all_gather(group, everyone.view(-1), own.view(-1))
    if torch.compiler.is_compiling():  # a compiled graph hands out no values to put into words
        torch._assert_async((everyone == own).all(), f"{', '.join(given)}: got different shapes or dtypes "
                            "on the ranks, or a gradient wanted on some of them; accepted: the same on every rank")
        return
    seen = everyone.tolist()
    for index, name in enumerate(given):
        kinds = [rank_saw[index] for rank_saw in seen]
        if any(kind != kinds[0] for kind in kinds):
            ranks = "; ".join(f"{_in_words(kind)} on rank {number}" for number, kind in enumerate(kinds))
            raise ValueError(f"{name}: got {ranks}; accepted: the same shape and dtype on every rank, and a gradient "
                             "wanted on all of them or on none")


def _description(value: Any, differentiable: bool) -> list[int]:
    """Kind, dtype, whether a gradient is wanted, number of dimensions, and sizes: what must be equal on all ranks."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return [_NOTHING if value is None else _OTHER] + [0] * (3 + _DIMENSIONS)
    wanted = differentiable and value.requires_grad and torch.is_grad_enabled()
    sizes = [*value.shape, *[0] * _DIMENSIONS][:_DIMENSIONS]
    return [_TENSOR, _DTYPES.index(value.dtype), int(wanted), value.dim(), *sizes]


def _in_words(description: list[int]) -> str:
    kind, dtype, wanted, dimensions, *sizes = description
    if kind != _TENSOR:
        return "None" if kind == _NOTHING else "no dense tensor"
    gradient = ", with gradient" if wanted else ""
    return f"shape {tuple(sizes[:dimensions])}, {_DTYPES[dtype]}{gradient}"


class _AllGather(torch.autograd.Function):
    """The gradient of a rank's rows is the sum over all ranks' losses, each of which saw them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return exchange.equal_rows(group, rows)

    @staticmethod
    @once_differentiable  # the sum over the ranks has no graph: a second derivative would lack the other ranks
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Half precision is summed in float32 and rounded once, not after every rank.
        total = dtypes.single(grad).contiguous()
        own = total.new_empty(total.shape[0] // ctx.group.size, *total.shape[1:])
        if total.numel():
            exchange.reduce_scatter(ctx.group, own.view(-1), total.view(-1))
        return own.to(grad.dtype), None


def all_gather_checked(rows: Tensor, differentiable: bool = True, group: Group = DEFAULT) -> Tensor:
    """`all_gather` of rows that `check_ranks` has seen: without a check of its own, which would cost another call."""
    if group.size == 1:
        return rows if differentiable else rows.detach()
    return _AllGather.apply(rows, group) if differentiable else exchange.equal_rows(group, rows)


def all_gather(rows: Tensor, differentiable: bool = True, group: Ranks = True) -> Tensor:
    """The rows of all ranks, in the order of the ranks.

    Parameters
    ----------
    rows : (n, ...) tensor of 1 to 8 dimensions, of the same shape and dtype on every rank
    differentiable : bool
        The gradient of the rows is summed over the ranks, half precision in float32. False: no gradient.
    group : True, ProcessGroup or one-dimensional DeviceMesh
        Which ranks; True is the default group.

    Returns
    -------
    (ranks * n, ...) tensor; `rows` itself (detached, if not differentiable) where there is one rank

    Raises
    ------
    ValueError
        On every rank, with the shapes of all of them, where they are not the same; and where some ranks want a
        gradient and others do not, since its sum is a collective call as well.
    TypeError
        For what is no tensor.

    Notes
    -----
    A collective call: every rank makes it equally often, and in backward too where a gradient is wanted. Shapes are
    compared before anything else (see `check_ranks` for what that costs). The row of this rank's anchor ``i`` is row
    ``rank() * n + i`` of the result, so that a loss of it needs labels and key_labels. Losses with `gather` take ranks
    with different numbers of rows, too, and need none of this.

    Examples
    --------
    >>> import torch
    >>> all_gather(torch.arange(3))  # one rank
    tensor([0, 1, 2])
    """
    validation.flag("differentiable", differentiable)
    ranks = group_of("group", group) if group is not False else None
    if ranks is None:
        raise ValueError("group: got False; accepted: True, a process group or a one-dimensional DeviceMesh")
    check_ranks(*(["rows"] if differentiable else []), group=ranks, rows=rows)
    accepted = f"a dense tensor of 1 to {_DIMENSIONS} dimensions"
    if not isinstance(rows, Tensor) or rows.layout is not torch.strided:
        raise TypeError(f"rows: got {validation.describe(rows)}; accepted: {accepted}")
    if not 1 <= rows.dim() <= _DIMENSIONS:
        raise ValueError(f"rows: got {validation.describe(rows)}; accepted: {accepted}")
    return all_gather_checked(rows, differentiable, ranks)
