"""What is told of the cosines of a batch: statistics of rows, from which thresholds are decided, and of the loss."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from hexssl.backends.triton import quantile
from hexssl.backends.triton.blocks import Block, Blocks
from hexssl.backends.triton.gradients import Paired
from hexssl.backends.triton.kernels import describe as kernels
from hexssl.backends.triton.rows import Arithmetic, Side
from hexssl.backends.triton.sums import Threshold, common, splits_of
from hexssl.backends.triton.who import Counts, Who, counts_of


def _describe(anchors: Side, keys: Side, who: Who, everything: bool, threshold: Tensor, centre: Tensor, how: Arithmetic,
              block: Block) -> tuple[Tensor, ...]:
    """Least, most, sum, squares, sum above the threshold, the most and the sum of the positives: (rows,) float64
    each."""
    tiles = triton.cdiv(keys.rows, block.keys)
    splits, each = splits_of(anchors.rows, block.rows, tiles)
    parts = anchors.factor.new_empty((splits, 7, anchors.padded), dtype=torch.float64)
    kernels.describe_rows[(triton.cdiv(anchors.rows, block.rows), splits)](
        anchors.data, keys.data, anchors.factor, keys.factor, threshold, centre, OUT=parts, padded=anchors.padded,
        tiles=tiles, per_split=each, ALL=everything, ROW_EPS=threshold.dim() > 0, **who.arguments(),
        **common(how, block, anchors))
    parts = parts[:, :, :anchors.rows]
    total, squares, hard = parts[:, 2:5].sum(0)
    nearest, positives = parts[:, 5].amax(0), parts[:, 6].sum(0)
    return parts[:, 0].amin(0), parts[:, 1].amax(0), total, squares, hard, nearest, positives


def _within(cosines: Tensor, unit: Tensor) -> Tensor:
    """What rounding has put beyond +-1 put back."""
    return torch.where(unit, cosines.clamp(-1, 1), cosines)


def row_statistics(anchors: Side, keys: Side, who: Who, wanted_quantile: float | None, negatives_only: bool,
                   moments: bool, unit: Tensor, broken: Tensor, how: Arithmetic,
                   table: Blocks) -> tuple[Tensor, Tensor]:
    """Row statistics (M, 6) in the order of csrc/hex.h, NaN where they are not wanted, and the mean quantile."""
    nothing = torch.full((anchors.rows,), torch.nan, dtype=torch.float64, device=unit.device)
    block, negatives = table.forward_general, counts_of(who).negatives
    counts = negatives if negatives_only else torch.full_like(negatives, keys.rows)
    empty, present = (counts == 0) | broken, counts > 0
    least = most = mean = variance = each = nothing
    if moments:
        infinite = torch.full((), torch.inf, dtype=torch.float32, device=unit.device)
        centre = torch.zeros_like(anchors.factor)
        least, most, total, *_ = _describe(anchors, keys, who, not negatives_only, infinite, centre, how, block)
        mean = total / counts
        centre[:anchors.rows] = mean.float()  # a second pass, since squares of cosines near 1 keep no digits of theirs
        _, _, total, squares, *_ = _describe(anchors, keys, who, not negatives_only, infinite, centre, how, block)
        away = mean - centre[:anchors.rows].double()
        variance = (squares / counts - away * away).clamp(min=0)
    if wanted_quantile is not None:
        each = quantile.row_quantiles(anchors, keys, who, wanted_quantile, negatives_only, how, table).each
    columns = [torch.where(empty, torch.nan, _within(x, unit)) for x in (least, most, mean)]
    columns += [torch.where(empty, torch.nan, variance), counts.double(), torch.where(empty, torch.nan,
                                                                                      _within(each, unit))]
    stats = torch.stack(columns, 1)
    return stats, torch.where(present, stats[:, 5], 0).sum() / present.sum()


def batch_statistics(anchors: Side, keys: Side, who: Who, threshold: Threshold, counts: Counts,
                     hard: Tensor, paired: Paired | None, unit: Tensor, broken: Tensor, valid: Tensor, how: Arithmetic,
                     block: Block) -> Tensor:
    """(7,) in the order of csrc/hex.h, from the tiles multiplied once more. hard: (rows,), numbers of hierarchical
    negatives."""
    centre = torch.zeros_like(anchors.factor)
    _, nearest_negative, total, _, sum_hard, nearest, positives = _describe(
        anchors, keys, who, False, threshold.values, centre, how, block)
    if paired is not None:
        nearest, positives = torch.maximum(nearest, paired.cosine), positives + paired.cosine
    finite = torch.where(broken.any(), torch.nan, 1.0).double()
    n_negatives, n_hard = counts.negatives.sum(), hard.sum()
    n_positives = counts.positives.sum() + (0 if paired is None else anchors.rows)
    positive = nearest > -torch.inf
    means = torch.stack([positives.sum() / n_positives, total.sum() / n_negatives, sum_hard.sum() / n_hard])
    accuracy = (positive & (nearest > nearest_negative)).sum() / positive.sum()
    told = torch.stack([n_hard / n_negatives, *_within(means, unit), accuracy.double()]) * finite
    return torch.cat([threshold.given.double().mean()[None], told, (~valid).sum().double()[None]])
