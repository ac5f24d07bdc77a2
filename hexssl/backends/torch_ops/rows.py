"""Rows to compute with, and the way of a gradient back to the rows that were given."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends.torch_ops import products
from hexssl.devices import widest_dtype

LENGTH = 128.0  # of rows in half precision, to twice that
LEAST = 1e-12  # what a row is divided by at least, as in torch.nn.functional.normalize


class Rows(NamedTuple):
    """rows : (n, D) what is multiplied: in the dtype to compute in, or in half precision, see `products`
    divisor : (n, 1) what they were divided by; None where they were not
    shrink : (n, 1) what they were multiplied by before, a power of two; None: 1
    factor : (n, 1) float32, what of the division still has to follow a product of half-precision rows; None: 1
    """

    rows: Tensor
    divisor: Tensor | None
    shrink: Tensor | None = None
    factor: Tensor | None = None


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64; float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ready(given: Tensor, normalize: bool, multiplied: bool = True) -> Rows:
    """The rows, of length 1 if asked for: divided by ``max(norm, 1e-12)``.

    Norms are taken in float64 where the device has it. Where it has not, or the rows are float64 themselves, the
    squares of large rows would overflow: those are multiplied by a power of two before.

    multiplied : whether matrix products are made of them, which may be those of half precision
    """
    dtype, wide = computed_in(given.dtype), widest_dtype(given.device)
    half = multiplied and products.on_tensor_cores(given)
    if not normalize:
        return Rows(given if half else given.to(dtype), None)
    if half:
        return _half(given, wide)
    if wide != dtype:
        divisor = torch.linalg.vector_norm(given, dim=1, keepdim=True, dtype=wide).clamp_min_(LEAST)
        return Rows(torch.div(given, divisor, out=torch.empty_like(given, dtype=dtype)), divisor)
    large, scale = (2.0**500, 2.0**-520) if dtype == torch.float64 else (2.0**50, 2.0**-80)
    rows = given.to(dtype)
    shortened = rows.abs().amax(1, keepdim=True) > large
    rows = torch.where(shortened, rows * scale, rows)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(LEAST)
    return Rows(rows / length, length, torch.where(shortened, torch.full_like(length, scale), 1))


def _half(given: Tensor, wide: torch.dtype) -> Rows:
    """Rows as they came, but for a power of two that makes their lengths `LENGTH` to twice that: products then stay
    within float32, and what is 2^-21 of a row's length is still a normal number of float16."""
    divisor = torch.linalg.vector_norm(given, dim=1, keepdim=True, dtype=wide).clamp_min_(LEAST)
    mantissa = 2 * LENGTH * torch.frexp(divisor).mantissa
    power = divisor / mantissa
    return Rows(torch.div(given, power, out=torch.empty_like(given)), divisor, None, (1 / mantissa).float())


def units(of: Rows, first: int = 0, last: int | None = None) -> Tensor:
    """Rows [first, last) in the dtype to compute in, divided."""
    found = of.rows[first:last]
    return found.to(computed_in(found.dtype)) if of.factor is None else found * of.factor[first:last]


def lengths(rows: Rows) -> Tensor:
    """(n,) lengths of the rows, in the widest dtype of the device."""
    wide = widest_dtype(rows.rows.device)
    large, scale = (2.0**500, 2.0**-520) if wide == torch.float64 else (2.0**60, 2.0**-70)
    found = units(rows).to(wide)
    shortened = found.abs().amax(1, keepdim=True) > large
    length = torch.linalg.vector_norm(torch.where(shortened, found * scale, found), dim=1)
    return torch.where(shortened[:, 0], length / scale, length)


def gradient(rows: Rows, of_rows: Tensor) -> Tensor:
    """The gradient of what `ready` was given, from that of its rows, which is overwritten.

    ``(I - u u^T) g / divisor``; a row shorter than 1e-12 was multiplied by a constant, so that nothing is projected.
    """
    if rows.divisor is None:
        return of_rows
    unit = units(rows)
    along = torch.bmm(unit[:, None], of_rows[:, :, None])[:, 0].mul_(rows.divisor > LEAST)
    found = torch.div(of_rows.addcmul_(unit, along, value=-1), rows.divisor, out=of_rows)
    return found if rows.shrink is None else found.mul_(rows.shrink)


def _largest(of: Tensor) -> Tensor:
    """0-d, 0 of none."""
    return of.max() if of.numel() > 0 else of.new_zeros(())


def are_unit(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """0-d bool: whether no product of rows of these lengths is above 1 but for rounding in their dtype. What is not
    finite is not looked at."""
    slack = (16 if dtype in (torch.float32, torch.float64) else 2) * torch.finfo(dtype).eps
    longest, other = (torch.where(each.isfinite(), each, 0) for each in (a, b))
    return _largest(longest) * _largest(other) <= 1 + slack


def unit_bound(a: Rows, b: Rows, dtype: torch.dtype) -> Tensor:
    """0-d: 1 where rows that were not divided are of length 1 all the same, but for rounding in their dtype, so that
    cosines are within +-1; else inf."""
    of_a = lengths(a)
    return torch.where(are_unit(of_a, lengths(b), dtype), 1.0, inf).to(of_a.dtype)


def may_overflow(a: Rows, b: Rows, each: bool) -> Tensor:
    """(n,) bool: whether the product of a row of `a` with one of `b`, or with the one of its own number (`each`), or a
    part of its sum, may leave the number format."""
    other = lengths(b)
    return lengths(a) * (other if each else _largest(other)) > 0.9 * torch.finfo(computed_in(a.rows.dtype)).max
