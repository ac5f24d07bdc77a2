"""Sides of a problem with their rows made ready, and in which arithmetic products are."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from hexssl.backends.triton import blocks
from hexssl.backends.triton.kernels import rows as kernels

INTERPRET: bool = triton.knobs.runtime.interpret
ROW_BLOCK = blocks.ROWS if INTERPRET else 16  # of kernels that take a row at a time; interpreted, a block costs as much


class Arithmetic(NamedTuple):
    """name : the table's; parts : of a row; scaled : factors of rows follow the product; precision : triton's word"""

    name: str
    parts: int
    scaled: bool
    precision: str


_HALF = Arithmetic(blocks.HALF, 1, True, "ieee")
_TF32 = Arithmetic(blocks.TF32, 1, False, "tf32")
_BF16X6 = Arithmetic(blocks.BF16X6, 3, False, "ieee")


def arithmetic(dtype: torch.dtype) -> Arithmetic:
    return {blocks.HALF: _HALF, blocks.TF32: _TF32, blocks.BF16X6: _BF16X6}[blocks.arithmetic_name(dtype)]


class Side(NamedTuple):
    """Anchors or keys.

    given : (rows, D), as they came
    data : (padded, parts, columns), what products take
    factor : (padded,) float32, of each row in products
    inverse : (padded,) float32, 1 / max(norm, 1e-12), or 1
    bad : (padded,) int8, 1 where a row is not finite
    """

    given: Tensor
    rows: int
    padded: int
    columns: int
    normalize: bool
    data: Tensor
    factor: Tensor
    inverse: Tensor
    bad: Tensor

    def unit(self) -> Tensor:
        """(rows, D) float32, as the loss takes them."""
        return self.given.detach().float() * self.inverse[:self.rows, None]


def prepare(given: Tensor, normalize: bool, how: Arithmetic) -> Side:
    given = given.detach()
    count, columns = given.shape[0], blocks.padded_columns(given.shape[1])
    padded = triton.cdiv(count, blocks.ROWS) * blocks.ROWS
    data = given.new_empty((padded, how.parts, columns), dtype=torch.bfloat16 if how.parts == 3 else given.dtype)
    factor, inverse = given.new_empty((2, padded), dtype=torch.float32)
    bad = given.new_empty(padded, dtype=torch.int8)
    kernels.prepare_rows[(padded // ROW_BLOCK,)](
        given, data, factor, inverse, bad, count, given.shape[1], given.stride(0), given.stride(1), NORMALIZE=normalize,
        PARTS=how.parts, TF32=how.precision == "tf32", INTERPRET=INTERPRET, BR=ROW_BLOCK, BD=columns)
    return Side(given, count, padded, columns, normalize, data, factor, inverse, bad)


def finish(side: Side, parts: Tensor, scale: Tensor) -> Tensor:
    """The gradient of the rows as they came.

    parts : (n, padded, columns) float32, which add up to the gradient with respect to unit rows
    """
    out = torch.empty_like(side.given, memory_format=torch.contiguous_format)
    kernels.finish_gradient[(triton.cdiv(side.rows, ROW_BLOCK),)](
        parts, side.given, side.inverse, scale, out, side.rows, side.given.shape[1], side.padded, parts.shape[0],
        side.given.stride(0), side.given.stride(1), NORMALIZE=side.normalize, INTERPRET=INTERPRET, BR=ROW_BLOCK,
        BD=side.columns)
    return out
