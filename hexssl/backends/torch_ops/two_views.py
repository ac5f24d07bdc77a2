"""Two views of many rows: every pair of rows is computed once, for both.

The keys are the anchors, so that the cosine of rows i and j is that of j and i. A tile is a span of anchors among
themselves, and among the rows behind them; what its anchors have among the rows before them was made in the tiles of
those. A row's sums are therefore known after all tiles, and the gradients are made in a second visit, of one matrix of
coefficients for both rows of a pair. That leaves half the cosines and exponentials, and half the multiplications of
all products; but tiles are many, with operators of their own, and few rows gain nothing by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import exp
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends import row_loss
from hexssl.backends.row_loss import HardSums, PlainLosses, Weights
from hexssl.backends.torch_ops import budget, elements, products, statistics, thresholds
from hexssl.backends.torch_ops.accumulate import Gradients
from hexssl.backends.torch_ops.contrast import Found, Threshold, bytes_each, known_limit, spoiled
from hexssl.backends.torch_ops.elements import Elements, Hard
from hexssl.backends.torch_ops.job import Job, cosines
from hexssl.backends.torch_ops.members import Views
from hexssl.backends.torch_ops.rows import Rows
from hexssl.backends.torch_ops.thresholds import Limit
from hexssl.backends.torch_ops.whole import cut
from hexssl.thresholds import Measurement

# Anchors of a tile. On the CPU its elements then stay in the caches. Other devices, where this was never timed, should
# work longer on an operator than it takes to start.
TILE_ROWS = {"cpu": 128}
OTHER_TILE_ROWS = 1024
LEAST_TILES = 8  # of fewer, too large a part is pairs of anchors of one tile, which are computed twice


def _tile_rows(device: torch.device) -> int:
    return TILE_ROWS.get(device.type, OTHER_TILE_ROWS)


def serves(job: Job, threshold: Threshold) -> bool:
    """Whether a loss is computed here.

    Of other forms, and where a temperature on the device wants a shift of its own for every class, a row's sums would
    have to be moved from tile to tile. With a threshold of each anchor the pair (i, j) may be hierarchical where (j, i)
    is not. A compiler fuses what is saved here, and takes minutes for so many operators.
    """
    if torch.compiler.is_compiling() or not job.plain or not isinstance(job.members, Views) or job.members.views != 2:
        return False
    limit = threshold.limit.value if isinstance(threshold, Found) and threshold.limit is not None else threshold
    if isinstance(limit, Tensor) and limit.dim() > 0:
        return False
    rows = job.anchors.rows
    return rows.shape[0] >= LEAST_TILES * _tile_rows(rows.device)


class Tile(NamedTuple):
    """Elements of anchors [first, last).

    own : (m, m) among themselves
    rest : (m, N - last) among the rows behind them
    """

    first: int
    last: int
    own: Elements
    rest: Elements


class Totals:
    """The class sums of all rows, to which every tile adds its anchors' and those of the rows behind them."""

    def __init__(self, job: Job, hierarchical: bool) -> None:
        rows = job.anchors.rows.shape[0]
        self.pos = job.anchors.rows.new_zeros(rows, dtype=job.dtype)
        self.negatives = self.pos.new_zeros((4 if hierarchical else 1, rows)).unbind()

    def add(self, easy: Tensor, hard: HardSums | None, first: int, last: int) -> None:
        for total, part in zip(self.negatives, (easy, *(hard or ())), strict=True):
            total[first:last].add_(part)

    def hard(self) -> HardSums | None:
        return HardSums(*self.negatives[1:]) if len(self.negatives) > 1 else None


class Tiles:
    """Every tile, twice. What the first visit makes is kept for the second as far as the budget has room for it.

    limit, scaled : as in `contrast.Found`
    """

    def __init__(self, job: Job, limit: Limit | None, scaled: bool) -> None:
        self.job, self.limit, self.scaled = job, limit, scaled
        rows, device = job.anchors.rows.shape[0], job.anchors.rows.device
        assert isinstance(job.members, Views)
        self.period = job.members.step
        of_row, most = bytes_each(job, limit) * rows, budget.budget(device)
        length = min(_tile_rows(device), max(budget.LEAST_ROWS, most // of_row), self.period)
        self.spans = [(first, min(first + length, rows)) for first in range(0, rows, length)]
        self.room = most - length * of_row
        self.totals = Totals(job, limit is not None)
        self.kept: dict[int, Tile] = {}

    def first(self, seen: statistics.OnceEach | None, again: bool) -> None:
        """Fills `totals`. again : whether there is a second visit"""
        for first, last in self.spans:
            tile = self._tile(first, last, seen, counted=True)
            if again and self._bytes(tile) <= self.room:
                self.room -= self._bytes(tile)
                self.kept[first] = tile

    def again(self) -> Iterator[Tile]:
        """Tiles whose elements may be overwritten."""
        for first, last in self.spans:
            tile = self.kept.pop(first, None)
            yield self._tile(first, last, None, counted=False) if tile is None else tile

    def _bytes(self, tile: Tile) -> int:
        arrays = 1 if self.limit is None else 2 if self.job.form.beta == 1 else 3
        length = tile.last - tile.first
        return length * (length + tile.rest.easy.shape[1]) * arrays * self.job.dtype.itemsize

    def _tile(self, first: int, last: int, seen: statistics.OnceEach | None, counted: bool) -> Tile:
        """counted : whether it is new to the totals"""
        job, length, rows = self.job, last - first, self.job.anchors.rows.shape[0]
        c = cosines(job, first, last, self.scaled, since=first)
        c.diagonal().fill_(-torch.inf)
        positives = self.of_pairs(c, first, first).clone()
        self.of_pairs(c, first, first).fill_(-torch.inf)
        hard = None if self.limit is None else thresholds.above(c, self.limit, first, last)
        if not self.scaled:
            c, positives = c.mul_(job.inverse), positives * job.inverse
        if seen is not None:
            seen.add(job, c, positives, hard, first, last, self.period)
        of = elements.shared(c, positives, hard, job.form.beta)
        tile = Tile(first, last, _columns(of, 0, length), _columns(of, length, c.shape[1]))
        if counted:
            for each in (first, first + self.period):
                self.totals.pos[each:each + len(positives)] = of.positives
            self.totals.add(of.easy.sum(1), None if of.hard is None else of.hard.sums, first, last)
            back = elements.turned(tile.rest, of.positives, None if hard is None else hard[:, length:], job.form.beta)
            self.totals.add(back.easy.sum(1), None if back.hard is None else back.hard.sums, last, rows)
        return tile

    def of_pairs(self, c: Tensor, first: int, since: int) -> Tensor:
        """A view of the positives' places, among anchors from `first` and keys from `since` on."""
        return c.diagonal(self.period + first - since)


def _columns(of: Elements, begin: int, end: int) -> Elements:
    """Those of some keys. Sums remain those of all."""
    hard = of.hard
    if hard is not None:
        hard = Hard(hard.e[:, begin:end], hard.weight[:, begin:end], hard.sums)
    return Elements(of.positives, of.easy[:, begin:end], hard)


def contrast(job: Job, threshold: Threshold, weights: Tensor | None, wanted: bool, see: bool, factor: float) -> Found:
    """The arguments are those of `contrast.contrast`, of a job that this file `serves`; wanted : whether the gradients
    by the rows are."""
    rows = job.anchors.rows
    scaled = threshold.scaled if isinstance(threshold, Found) else not isinstance(threshold, Tensor)
    chunks = budget.chunk_rows(rows.shape[0], rows.shape[0], bytes_each(job, threshold), job.members.step, rows.device)
    limit = known_limit(job, threshold, chunks, scaled)
    if limit is not None and not isinstance(threshold, Measurement):  # as in `contrast.contrast`
        job = spoiled(job, limit)
    tiles, seen = Tiles(job, limit, scaled), statistics.OnceEach(job) if see else None
    tiles.first(seen, wanted)
    assert isinstance(job.inverse, float)
    totals = tiles.totals
    found = row_loss.plain_losses(job.form, 1, totals.pos, totals.negatives[0], totals.hard(), exp(-job.inverse))
    losses, share = found.losses, 1.0 if weights is None else weights
    if job.poison is not None:
        losses, share = losses * job.poison, share * job.poison
    gradients = None
    if wanted:
        narrow = row_loss.plain_weights(found, totals.pos, share)
        gradients = Gradients(_gradient(tiles, found, narrow, factor), None, None, None)
    return Found(losses, None, limit, scaled, None if seen is None else seen.found(), gradients)


def _gradient(tiles: Tiles, found: PlainLosses, weights: Weights, factor: float) -> Tensor:
    """By the rows, as `contrast.Found` says.

    Of a tile's pairs of anchors dL/ds is made for the anchor alone and multiplied both ways round, since their other
    halves are in the tile as well; of all others it is the sum for both rows.
    """
    rows, period = tiles.job.anchors, tiles.period
    assert weights.pb is not None
    of_positives = (weights.pb * tiles.totals.pos).view(2, period).sum(0)
    gradient = torch.zeros_like(rows.rows, dtype=tiles.job.dtype)
    for first, last, own, rest in tiles.again():
        anchors, keys, each = _span(rows, first, last), _span(rows, last, None), weights.gg[first:last, None]
        of_anchors, of_keys = gradient[first:last], gradient[last:]
        coefficients = elements.plain_coefficients(own, cut(found, first, last))  # without the factor `each`
        of_anchors.addcmul_(_product(coefficients, anchors), each, value=factor)
        _add(of_anchors, coefficients.t(), _times(anchors, each), factor)
        if last == 2 * period:
            break
        coefficients = elements.shared_coefficients(rest, cut(weights, first, last), cut(weights, last, 2 * period))
        tiles.of_pairs(coefficients, first, last).add_(of_positives[first:last])
        _add(of_anchors, coefficients, keys, factor)
        _add(of_keys, coefficients.t(), anchors, factor)
    return gradient


def _span(rows: Rows, first: int, last: int | None) -> Rows:
    """Rows [first, last), with what a product needs of them."""
    return Rows(rows.rows[first:last], None, factor=None if rows.factor is None else rows.factor[first:last])


def _times(rows: Rows, each: Tensor) -> Rows:
    """Rows times (n, 1) numbers; in half precision these are still to follow."""
    if rows.rows.dtype in products.HALVES:
        return rows._replace(factor=each if rows.factor is None else rows.factor * each)
    return rows._replace(rows=rows.rows * each)


def _add(into: Tensor, coefficients: Tensor, rows: Rows, factor: float) -> None:
    """Adds coefficients times rows times the factor."""
    if rows.rows.dtype in products.HALVES:
        into.add_(_product(coefficients, rows), alpha=factor)
    else:
        into.addmm_(coefficients, rows.rows, alpha=factor)


def _product(coefficients: Tensor, rows: Rows) -> Tensor:
    """Coefficients times rows. In half precision they are rounded with the rows' factors, and of float16 with what
    brings those of every sum to its range."""
    given, dtype = rows.rows, rows.rows.dtype
    by_row = None if rows.factor is None else rows.factor.t()
    if dtype != torch.float16:
        return products.product(products.rounded(coefficients, by_row, dtype), given)
    if by_row is not None:
        coefficients = coefficients * by_row
    scale = products.float16_scale(torch.linalg.vector_norm(coefficients, torch.inf, dim=1), products.LARGEST)[:, None]
    return products.product(products.rounded(coefficients, scale, dtype), given).div_(scale)
