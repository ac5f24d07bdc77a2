"""What chunks leave behind, put together."""

from __future__ import annotations

from torch import Tensor


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
