"""What ranks send each other: a few numbers that all of them check alike, and rows, with gradient.

Every function here is a collective call of the ranks of a group. How many bytes each takes is in docs/distributed.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from hexssl import dtypes
from hexssl.groups import Group

NUMBERS = 16  # int64 that a rank tells the others of its batch
NUMBERS_IN_GRAPH = 40  # float64 that it tells in a graph of torch.compile
_ALIGNMENT = 8  # bytes: where a block of rows begins in a message, so that it can be read in place
_ALONG, _FINE = -1, 0  # how a rank is, before its numbers; from 1 on an error
_ERRORS = (ValueError, TypeError, NotImplementedError, RuntimeError)
_NO_REDUCE_SCATTER = ("mpi",)  # backends of torch.distributed that sum by an all-reduce alone


def all_gather(group: Group, everything: Tensor, own: Tensor) -> None:
    """The tensors of all ranks, of as many elements each, in the order of the ranks."""
    call = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor  # before torch 2.13
    call(everything, own, group=group.process_group)


def reduce_scatter(group: Group, own: Tensor, everything: Tensor) -> None:
    """The sum over the ranks of this rank's part of everything, (ranks * n,). gloo makes it of an all-reduce, too."""
    if distributed.get_backend(group.process_group) in _NO_REDUCE_SCATTER:
        total = everything.clone()
        distributed.all_reduce(total, group=group.process_group)
        own.copy_(total.view(group.size, -1)[group.rank])
        return
    call = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
    call(own, everything, group=group.process_group)


def sums(group: Group, numbers: Tensor) -> Tensor:
    """The sum over the ranks, in place: an all-reduce."""
    distributed.all_reduce(numbers, group=group.process_group)
    return numbers


def tell(group: Group, numbers: Sequence[int] | None) -> list[list[int] | None]:
    """What every rank has said, NUMBERS int64 at most, in the order of the ranks. The host waits for it.

    numbers : None: this rank has nothing to say, and goes along with what the others do

    Raises
    ------
    What `refuse` told, on all ranks.
    """
    heard = _tell(group, [_FINE if numbers is not None else _ALONG, 0, *(numbers or [])])
    if any(status > _FINE for status, *_ in heard):
        _raise_first(group, heard, "")
    return [said if status == _FINE else None for status, _, *said in heard]


def assert_alike(group: Group, numbers: Sequence[float], message: str, device: torch.device) -> None:
    """In a graph, in place of `tell`: when it runs, a RuntimeError on all ranks unless all have said the same numbers,
    the first of which is above 0."""
    filled = [*numbers, *[0.0] * (NUMBERS_IN_GRAPH - len(numbers))]
    assert len(filled) == NUMBERS_IN_GRAPH
    own = torch.tensor(filled, dtype=torch.float64, device=device)
    everyone = own.new_empty(group.size * NUMBERS_IN_GRAPH)
    all_gather(group, everyone, own)
    torch._assert_async((everyone.view(group.size, -1) == own).all() & (own[0] > 0), message)


def refuse(group: Group, error: Exception) -> NoReturn:
    """In place of `tell`, from a rank that cannot go on: the first such rank's error is raised on all of them."""
    text = str(error)
    _raise_first(group, _tell(group, [_kind(error), len(text.encode())]), text)


def _kind(error: Exception) -> int:
    """1 and up; the last for what is none of these."""
    return 1 + next((number for number, kind in enumerate(_ERRORS) if isinstance(error, kind)), len(_ERRORS) - 1)


def _tell(group: Group, numbers: Sequence[int]) -> list[list[int]]:
    filled = [*numbers, *[0] * (NUMBERS - len(numbers))]
    assert len(filled) == NUMBERS
    own = torch.tensor(filled, dtype=torch.int64, device=group.device())
    everyone = own.new_empty(group.size * NUMBERS)
    all_gather(group, everyone, own)
    heard: list[list[int]] = everyone.view(group.size, NUMBERS).tolist()
    return heard


def _raise_first(group: Group, heard: list[list[int]], text: str) -> NoReturn:
    """The error of the first rank that has one; its text is fetched from it."""
    first = next(number for number, said in enumerate(heard) if said[0] > _FINE)
    longest = max(said[1] for said in heard if said[0] > _FINE)
    own = torch.zeros(longest, dtype=torch.uint8, device=group.device())
    if text:
        encoded = torch.tensor(list(text.encode()), dtype=torch.uint8)
        own[: len(encoded)] = encoded
    everyone = own.new_empty(group.size * longest)
    if longest:
        all_gather(group, everyone, own)
    told = bytes(everyone.view(group.size, longest)[first, : heard[first][1]].tolist()).decode()
    raise _ERRORS[heard[first][0] - 1](f"{told} (rank {first} of {group.size})")


class Block(NamedTuple):
    """Rows that are gathered.

    rows : (n, columns), or (n,), of this rank
    counts : n of every rank
    differentiable : whether a gradient of them is wanted, on all ranks or on none
    """

    rows: Tensor
    counts: list[int]
    differentiable: bool

    def elements(self, count: int) -> int:
        """Of so many rows."""
        return count * (self.rows.shape[1] if self.rows.dim() == 2 else 1)


def gather(group: Group, blocks: Sequence[Block]) -> list[Tensor]:
    """The rows of all ranks of every block, in the order of the ranks: one all-gather for all blocks.

    The gradient of a rank's rows is the sum over all ranks' losses: one reduce-scatter for all blocks, of half
    precision in float32.
    """
    if not blocks:
        return []
    gathered: tuple[Tensor, ...] = _Gather.apply(group, blocks, *(block.rows for block in blocks))
    return list(gathered)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, blocks: Sequence[Block], *rows: Tensor) -> tuple[Tensor, ...]:
        # what backward needs of the blocks, without their rows: those would be kept alive
        ctx.group, ctx.counts = group, [block.counts for block in blocks]
        ctx.widths = [block.elements(1) for block in blocks]
        ctx.shapes, ctx.dtypes = [block.rows.shape for block in blocks], [block.rows.dtype for block in blocks]
        found = _gather(group, blocks)
        ctx.mark_non_differentiable(*(x for x, block in zip(found, blocks, strict=True) if not block.differentiable))
        return tuple(found)

    @staticmethod
    @once_differentiable  # the sum over the ranks has no graph: a second derivative would lack the other ranks
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        wanted = [number for number, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        parts = [dtypes.single(gradients[number]) for number in wanted]
        counts, widths = [ctx.counts[number] for number in wanted], [ctx.widths[number] for number in wanted]
        own = iter(_scatter_sums(ctx.group, parts, counts, widths))
        found: list[Tensor | None] = [None] * len(gradients)
        for number in wanted:
            found[number] = next(own).view(ctx.shapes[number]).to(ctx.dtypes[number])
        return None, None, *found


def _gather(group: Group, blocks: Sequence[Block]) -> list[Tensor]:
    """As bytes: backends refuse some dtypes (gloo int16, for one), and labels go with the rows."""
    ranks, sizes = range(group.size), [block.rows.element_size() for block in blocks]
    first = blocks[0].rows
    if len(blocks) == 1 and min(blocks[0].counts) == max(blocks[0].counts):  # nothing to cut: it is the message
        return [equal_rows(group, first)]
    # begins[rank][block]: where a block begins in a rank's message, and in the end its length
    begins = [list(accumulate((_aligned(block.elements(block.counts[rank]) * size)
                               for block, size in zip(blocks, sizes, strict=True)), initial=0)) for rank in ranks]
    longest = max(begin[-1] for begin in begins)
    message = torch.zeros(longest, dtype=torch.uint8, device=first.device)
    for block, begin in zip(blocks, begins[group.rank], strict=False):
        if block.rows.shape[0] > 0:  # of none the strides may be any
            as_bytes = block.rows.detach().contiguous().view(-1).view(torch.uint8)
            message[begin : begin + as_bytes.numel()] = as_bytes
    everything = message.new_empty(group.size * longest)
    if longest:
        all_gather(group, everything, message)
    found = []
    for number, (block, size) in enumerate(zip(blocks, sizes, strict=True)):
        starts = [rank * longest + begins[rank][number] for rank in ranks]
        lengths = [block.elements(block.counts[rank]) * size for rank in ranks]
        pieces = [everything[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        found.append(torch.cat(pieces).view(block.rows.dtype).view(-1, *block.rows.shape[1:]))
    return found


def equal_rows(group: Group, rows: Tensor) -> Tensor:
    """The rows of all ranks, of one shape and dtype, without gradient: an all-gather."""
    own = rows.detach().contiguous()
    everything = own.new_empty(group.size * own.shape[0], *own.shape[1:])
    if own.numel():
        all_gather(group, everything.view(-1).view(torch.uint8), own.view(-1).view(torch.uint8))
    return everything


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _scatter_sums(group: Group, parts: list[Tensor], counts: list[list[int]], widths: list[int]) -> list[Tensor]:
    """Of gradients of the gathered rows, this rank's parts, (elements,) each, summed over the ranks."""
    lengths = [[count * width for count in of_part] for of_part, width in zip(counts, widths, strict=True)]
    totals = [sum(of_part[rank] for of_part in lengths) for rank in range(group.size)]
    longest = max(totals)
    if len(parts) == 1 and min(totals) == longest:
        everything = parts[0].contiguous().view(-1)
    else:
        everything = parts[0].new_zeros(group.size * longest)
        filled = [rank * longest for rank in range(group.size)]
        for part, of_part in zip(parts, lengths, strict=True):
            for rank, piece in enumerate(part.reshape(-1).split(of_part)):
                everything[filled[rank] : filled[rank] + piece.numel()] = piece
                filled[rank] += piece.numel()
    own = everything.new_empty(longest)
    if longest:
        reduce_scatter(group, own, everything)
    return list(own[: totals[group.rank]].split([of_part[group.rank] for of_part in lengths]))
