"""The quantile of every row, exactly, without sorting rows: "nearest", as in spec/hex.md, section 4."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.devices import widest_dtype


class Rank(NamedTuple):
    """Where the element lies: the `k`-th largest, or the `k`-th smallest."""

    k: int
    largest: bool


def rank(quantile: float, count: int) -> Rank:
    """Of `count` elements, from the end that is nearer. Python rounds half to even, as the definition does."""
    index = round(quantile * (count - 1))
    return Rank(count - index, True) if count - index <= index + 1 else Rank(index + 1, False)


def of_equal_rows(c: Tensor, quantile: float, count: int) -> Tensor:
    """(m,) of rows that have `count` elements each; the rest of a row is -inf."""
    k, largest = rank(quantile, count)
    if not largest and count < c.shape[1]:
        k, largest = count - round(quantile * (count - 1)), True
    found = c.topk(k, dim=1, largest=largest, sorted=False).values
    return found.amin(1) if largest else found.amax(1)


def of_rows(c: Tensor, quantile: float, members: Tensor) -> Tensor:
    """(m,) of the members of every row, which may be any number; NaN for none.

    The rank from either end does not fall as a row has more elements, so that the rank of a full row bounds all.
    """
    n = c.shape[1]
    k, largest = rank(quantile, n)
    found = torch.where(members, c, -inf if largest else inf).topk(k, dim=1, largest=largest, sorted=True).values
    count = members.sum(1)
    index = torch.round(quantile * (count - 1).clamp(min=0).to(widest_dtype(c.device))).long()
    place = (count - 1 - index if largest else index).clamp(min=0)
    return torch.where(count > 0, found.gather(1, place[:, None])[:, 0], torch.nan)
