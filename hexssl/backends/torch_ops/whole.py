"""What chunks leave behind, put together."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from hexssl.backends.row_loss import Sums

T = TypeVar("T")


class Whole:
    """(M, ...) put together from chunks. What all chunks leave behind is in one piece of memory: small pieces between
    the large ones of a chunk would keep these from being used again."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.tensor: Tensor | None = None

    def put(self, part: Tensor | None, first: int, last: int) -> None:
        if part is None:
            return
        if last - first == self.rows:
            self.tensor = part
            return
        if self.tensor is None:
            self.tensor = part.new_empty((self.rows, *part.shape[1:]))
        self.tensor[first:last].copy_(part)


class RowSums:
    """The class sums of anchors among all keys, to which every chunk adds anchors."""

    def __init__(self, rows: int) -> None:
        self.parts = tuple(Whole(rows) for _ in Sums._fields)

    def put(self, sums: Sums, first: int, last: int) -> None:
        for whole, part in zip(self.parts, sums, strict=True):
            whole.put(part, first, last)

    def found(self) -> Sums:
        return Sums(*(whole.tensor for whole in self.parts))  # type: ignore[arg-type]


def cut(of: T, first: int, last: int) -> T:
    """Anchors [first, last) of what has a number for each of them."""
    def part(each: Any) -> Any:
        if isinstance(each, Tensor):
            return each[first:last]
        return type(each)(*map(part, each)) if isinstance(each, tuple) else each

    found: T = part(of)
    return found
