"""Who is who among the pairs of two sides, in the terms of the kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from hexssl.backends.triton.blocks import ROWS, Block
from hexssl.backends.triton.kernels import tiles
from hexssl.problem import Problem


class Who(NamedTuple):
    """Of rows X with columns Y, both as they are streamed: either may be the anchors.

    kind : one of the constants of `kernels.tiles`
    ids_x, ids_y : int32, padded; something of that dtype where the kind is another
    relation : int8; with its strides along rows and columns
    itself : whether a row and a column may be the same: column i + offset is row i
    """

    kind: int
    rows: int
    columns: int
    period: int
    ids_x: Tensor
    ids_y: Tensor
    relation: Tensor
    row_stride: int
    column_stride: int
    itself: bool
    offset: int

    def swapped(self) -> Who:
        return self._replace(rows=self.columns, columns=self.rows, ids_x=self.ids_y, ids_y=self.ids_x,
                             row_stride=self.column_stride, column_stride=self.row_stride, offset=-self.offset)

    def masked_everywhere(self, block: Block) -> bool:
        """Every tile may hold positives anywhere; or they are so near to each other that blocks meet them twice."""
        if self.kind == tiles.BY_PERIOD.value:
            return self.period < block.rows + block.keys or (self.itself and self.offset % self.period != 0)
        return self.kind != tiles.NO_POSITIVES.value

    def special_steps(self, block: Block) -> int:
        """How many tiles a block of rows has at most that are special; `kernels.tiles.special_tile` lists them."""
        diagonals = int(self.itself)
        if self.kind == tiles.BY_PERIOD.value:
            diagonals = self.columns // self.period + 2
        if diagonals == 0 and self.columns % block.keys == 0:
            return 0
        return diagonals * ((block.rows - 1) // block.keys + 2) + 1

    def arguments(self) -> dict[str, object]:
        """Of a kernel, by name."""
        period = max(self.period, 1)
        lift = ((self.rows + ROWS) // period + 2) * period
        return {"IX": self.ids_x, "IY": self.ids_y, "RELATION": self.relation, "rows": self.rows,
                "columns": self.columns, "period": period, "lift": lift, "offset": self.offset,
                "row_stride": self.row_stride, "column_stride": self.column_stride, "WHO": self.kind,
                "SELF": self.itself}


def _ids(labels: Tensor, key_labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels numbered from 0, equal ones alike, as int32, padded. Sorted rather than made unique, whose number a host
    would have to wait for."""
    every = labels if key_labels is None else torch.cat([labels, key_labels])
    ascending, order = every.sort()
    steps = torch.zeros_like(ascending, dtype=torch.int32)
    steps[1:] = ascending[1:] != ascending[:-1]
    ids = torch.empty_like(steps).scatter_(0, order, steps.cumsum(0, dtype=torch.int32))

    def padded(part: Tensor) -> Tensor:
        return pad(part, (0, -part.shape[0] % ROWS))

    first = padded(ids[:labels.shape[0]])
    return first, first if key_labels is None else padded(ids[labels.shape[0]:])


def who_of(problem: Problem) -> Who:
    anchors, keys = problem.anchors, problem.keys_or_anchors
    none = anchors.new_empty(0, dtype=torch.int32)
    signs = anchors.new_empty(0, dtype=torch.int8)
    offset = problem.self_offset
    if problem.keys is None and offset < 0:
        offset = 0  # by definition of keys that are the anchors
    who = Who(tiles.NO_POSITIVES.value, anchors.shape[0], keys.shape[0], problem.period, none, none, signs, 0, 0,
              offset >= 0, max(offset, 0))
    if problem.relation is not None:
        relation = problem.relation
        return who._replace(kind=tiles.BY_RELATION.value, relation=relation, row_stride=relation.stride(0),
                            column_stride=relation.stride(1))
    if problem.labels is not None:
        ids_x, ids_y = _ids(problem.labels, None if problem.keys is None else problem.key_labels)
        return who._replace(kind=tiles.BY_IDS.value, ids_x=ids_x, ids_y=ids_y)
    return who._replace(kind=tiles.BY_PERIOD.value) if problem.period > 0 else who


class Counts(NamedTuple):
    """Of each row's positives and negatives, (rows,) int64."""

    positives: Tensor
    negatives: Tensor


def counts_of(who: Who) -> Counts:
    """Without a look at any embedding."""
    device = who.ids_x.device
    row = torch.arange(who.rows, device=device)
    itself = (row + who.offset >= 0) & (row + who.offset < who.columns) & who.itself
    column = (row + who.offset).clamp(0, who.columns - 1)  # of the row itself, where it is there
    if who.kind == tiles.BY_RELATION.value:
        relation = torch.as_strided(who.relation, (who.rows, who.columns), (who.row_stride, who.column_stride))
        own = torch.where(itself, relation.gather(1, column[:, None])[:, 0], 0)
        return Counts((relation > 0).sum(1) - (own > 0).long(), (relation < 0).sum(1) - (own < 0).long())
    same = torch.zeros_like(row)
    alike = torch.zeros_like(itself)  # itself has its label
    if who.kind == tiles.BY_IDS.value:
        ids_x, ids_y = who.ids_x[:who.rows].long(), who.ids_y[:who.columns].long()
        numbers = torch.zeros(who.rows + who.columns, dtype=torch.int64, device=device)
        same = numbers.scatter_add_(0, ids_y, torch.ones_like(ids_y))[ids_x]
        alike = ids_y[column] == ids_x
    elif who.kind == tiles.BY_PERIOD.value:
        same = (who.columns - row % who.period + who.period - 1) // who.period
        alike = alike | (who.offset % who.period == 0)
    return Counts(same - (itself & alike).long(), who.columns - same - (itself & ~alike).long())
