"""The exact quantile of each row of cosines, and their mean, without the matrix of all.

A sample of a row gives a bound that the answer is above, all but surely; what exceeds the bound is collected; the
answer is selected there. Where a list overflows, the k-th largest of what it holds is a better bound, and the row is
collected again; where that does not help, or the bound was too high, the row is counted through, bit after bit. Every
one of these launches is made always, and returns at once where nothing is left to do: the host reads nothing.
"""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from hexssl.backends.triton.blocks import ROWS, Block, Blocks
from hexssl.backends.triton.kernels import select as kernels
from hexssl.backends.triton.rows import INTERPRET, Arithmetic, Side
from hexssl.backends.triton.sums import common, splits_of
from hexssl.backends.triton.who import Who, counts_of

DENSE_KEYS = 4096  # so few are written whole, without a bound
FEW = 0.05  # of a row, that a list is worth while for
SAMPLE = 2048
ROOM = 4  # of a list, in multiples of what is looked for
BUFFER_BYTES = 64 * 2**20  # of lists, for as many rows as that suffices for
SELECT_ROWS, SELECT_COLUMNS = (128 if INTERPRET else 4), 1024
FLOOR = -(2.0**127)  # below every cosine of rows that are not enormous


class Quantiles(NamedTuple):
    """each : (rows,) float64, NaN where nothing counts; mean : 0-d, over the others; counts : (rows,) int64"""

    each: Tensor
    mean: Tensor
    counts: Tensor


class _Chunk(NamedTuple):
    """Rows [first, last), and the arguments that all launches of them have.

    lean : whether every column counts; else a tile takes more registers
    """

    anchors: Side
    keys: Side
    first: int
    last: int
    who: dict[str, Any]
    table: Blocks
    how: Arithmetic
    lean: bool
    negate: bool

    def rows(self) -> int:
        return self.last - self.first

    def grid(self, block: Block) -> int:
        return int(triton.cdiv(self.rows(), block.rows))

    def shared(self, block: Block) -> dict[str, Any]:
        return {**self.who, **common(self.how, block, self.anchors), "ALL": self.lean, "NEGATE": self.negate}

    def tensors(self) -> tuple[Tensor, ...]:
        return self.anchors.data, self.keys.data, self.anchors.factor, self.keys.factor

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.anchors.factor.new_empty(shape, dtype=dtype)


def _cosines(chunk: _Chunk, width: int, step: int) -> Tensor:
    out, block = chunk.new(chunk.rows(), width), chunk.table.forward_general
    kernels.write_cosines[(chunk.grid(block), triton.cdiv(width, block.keys))](
        *chunk.tensors(), OUT=out, first_row=chunk.first, last_row=chunk.last, width=width, step=step,
        **chunk.shared(block))
    return out


def _kth(values: Tensor, counts: Tensor, k: Tensor) -> Tensor:
    out = torch.empty_like(k, dtype=torch.float32)
    kernels.kth_largest[(triton.cdiv(k.shape[0], SELECT_ROWS),)](
        values, counts, k, out, k.shape[0], values.shape[1], BR=SELECT_ROWS, B=SELECT_COLUMNS, num_warps=4)
    return out


def _collect(chunk: _Chunk, bound: Tensor, room: int) -> tuple[Tensor, Tensor]:
    out, counts = chunk.new(chunk.rows(), room), torch.zeros_like(bound, dtype=torch.int32)
    block = chunk.table.forward if chunk.lean else chunk.table.forward_general
    tiles = triton.cdiv(chunk.keys.rows, block.keys)
    splits, each = splits_of(chunk.rows(), block.rows, tiles)
    kernels.collect_above[(chunk.grid(block), splits)](
        *chunk.tensors(), bound, OUT=out, COUNT=counts, first_row=chunk.first, last_row=chunk.last, room=room,
        tiles=tiles, per_split=each, PTX=bound.is_cuda and not torch.version.hip and not INTERPRET,
        **chunk.shared(block))
    return out, counts


def _count_through(chunk: _Chunk, wanted: Tensor, k: Tensor, out: Tensor) -> None:
    block = chunk.table.forward_general
    kernels.kth_largest_by_counting[(chunk.grid(block),)](
        *chunk.tensors(), wanted.to(torch.int32), k, OUT=out, first_row=chunk.first, last_row=chunk.last,
        tiles=triton.cdiv(chunk.keys.rows, block.keys), **chunk.shared(block))


def _step(columns: int) -> int:
    """Near 0.618 of them, without a divisor in common with their number."""
    step = max(1, round(0.6180339887 * columns))
    while gcd(step, columns) > 1:
        step += 1
    return step


def _from_sample(chunk: _Chunk, k: Tensor, room: int) -> Tensor:
    """The k-th largest of each row."""
    size = min(SAMPLE, max(chunk.keys.rows // 8, 1))
    sample = _cosines(chunk, size, _step(chunk.keys.rows))
    expected = k.double() * (size / chunk.keys.rows)
    rank = torch.ceil(expected + 5 * expected.sqrt() + 1).clamp(max=size).to(torch.int32)
    bound = _kth(sample, torch.full_like(k, size), rank)
    # tiles of other rows may round otherwise; and where the sample has too few that count, all may
    bound = torch.where(bound > FLOOR, bound - bound.abs() * 1e-6, FLOOR)
    bound = torch.where(k > 0, bound, torch.inf)
    values, counts = _collect(chunk, bound, room)
    found = _kth(values, counts, k)
    crowded = counts > room
    again = torch.where(crowded, found, torch.inf)
    values, more = _collect(chunk, again, room)
    found = torch.where(crowded & (more >= k), _kth(values, more, k), found)  # else no k exceed what k are not below
    _count_through(chunk, (k > 0) & ((counts < k) | (crowded & (more > room))), k, found)
    return found


def _dense(chunk: _Chunk, k: Tensor) -> Tensor:
    values = _cosines(chunk, chunk.keys.rows, 1)
    return _kth(values, torch.full_like(k, chunk.keys.rows), k)


def row_quantiles(anchors: Side, keys: Side, who: Who, quantile: float, negatives_only: bool, how: Arithmetic,
                  table: Blocks) -> Quantiles:
    """quantile: the element at round_half_even(quantile * (n - 1)) of the n ascending cosines that count."""
    n, device = keys.rows, anchors.factor.device
    everything = torch.full((anchors.rows,), n, dtype=torch.int64, device=device)
    counts = counts_of(who).negatives if negatives_only else everything
    index = torch.round(quantile * (counts - 1).double()).long()
    negate = quantile < 0.5
    k = torch.where(counts > 0, index + 1 if negate else counts - index, 0).to(torch.int32)
    most = round(quantile * (n - 1)) + 1 if negate else n - round(quantile * (n - 1))
    dense = n <= DENSE_KEYS or most > FEW * n
    room = min(n, ROOM * most + 64)
    width = n if dense else max(room, SAMPLE)
    step = max(ROWS, BUFFER_BYTES // (4 * width) // ROWS * ROWS)
    parts = []
    for first in range(0, anchors.rows, step):
        last = min(first + step, anchors.rows)
        chunk = _Chunk(anchors, keys, first, last, who.arguments(), table, how, not negatives_only, negate)
        ranks = k[first:last].contiguous()
        parts.append(_dense(chunk, ranks) if dense else _from_sample(chunk, ranks, room))
    each = torch.cat(parts).double()
    each = torch.where(counts > 0, -each if negate else each, torch.nan)
    if anchors.normalize and keys.normalize:
        each = each.clamp(-1, 1)
    present = counts > 0
    return Quantiles(each, torch.where(present, each, 0).sum() / present.sum(), counts)
