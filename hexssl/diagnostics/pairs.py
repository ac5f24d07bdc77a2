"""The pairs of rows, counted in C: by what they have in common, by the threshold, and by their cosine."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hexssl import validation
from hexssl.core import _C
from hexssl.diagnostics.rows import Array, Rows
from hexssl.thresholds import COUNT, QUANTILE, Threshold, named

_LISTS_BYTES = 32 << 20  # of the largest cosines of a chunk of anchors, while the quantile is measured


class PairCounts(NamedTuple):
    """Pairs are ordered: (anchor, key) and (key, anchor) are two.

    relations : what rows of each kind of pair have in common: positives first, in the end what agrees nowhere
    histogram : (relations, 2, bins) int64; the second axis: whether the cosine is above the anchor's threshold
    hierarchical : (N, relations - 1) int64, hierarchical negatives of each anchor, by relation but positives
    confusions : (C, C) int64 or None, the same by the classes of anchor and key
    potential : sum over the pairs of exp(exponent (c - 1))
    threshold : a float, inf where there is none, or (N,) float64
    """

    relations: tuple[str, ...]
    histogram: NDArray[np.int64]
    hierarchical: NDArray[np.int64]
    confusions: NDArray[np.int64] | None
    potential: float
    threshold: Any

    @property
    def edges(self) -> Array:
        return np.linspace(-1.0, 1.0, self.histogram.shape[2] + 1)


def share_of(part: Any, whole: Any) -> Any:
    """part / whole in float64, NaN where there is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(part, whole, dtype=np.float64)


def _chunk_rows(quantile: float, rows: int, element: int) -> int:
    """Anchors whose lists of candidates stay within `_LISTS_BYTES`: a list has up to 2 k + 20 and a tile's columns."""
    tail = min(quantile, 1 - quantile) * rows + 2
    return max(256, int(_LISTS_BYTES / ((2 * tail + 300) * element)))


def _row_statistics(rows: Rows, positives: Array, quantile: float | None, negatives: bool) -> Array:
    """(N, 6) statistics of `hexssl.similarity_stats`, a chunk of anchors at a time: their lists would be large."""
    want = _C.WANT_MOMENTS if quantile is None else _C.WANT_QUANTILE
    count, share = len(rows.values), 0.5 if quantile is None else quantile
    labels = positives.astype(np.int64)
    step = count if quantile is None else _chunk_rows(share, count, max(4, rows.values.itemsize))
    if step >= count:
        return _C.measure(rows.values, labels=labels, self_offset=0, quantile=share, negatives_only=negatives,
                          want=want)[0]
    parts = [_C.measure(rows.values[first : first + step], rows.values, labels[first : first + step], labels,
                        self_offset=first, quantile=share, negatives_only=negatives, want=want)[0]
             for first in range(0, count, step)]
    return np.concatenate(parts)


def _decided(threshold: Threshold, rows: Rows, positives: Array) -> Any:
    threshold.check_device(torch.device("cpu"))
    wanted = threshold.measures()
    stats = mean = None
    with torch.no_grad():  # what a threshold remembers stays as it is
        if wanted is not None:
            found = _row_statistics(rows, positives, wanted.quantile, wanted.rows == "negatives")
            stats = torch.from_numpy(found)
            mean = stats[stats[:, COUNT] > 0, QUANTILE].mean()
        decided = threshold(stats, mean, False)
    return np.inf if decided is None else decided.numpy()


def threshold_of(rows: Rows, positives: Array, threshold: Any) -> Any:
    """The threshold of these rows: a float, inf for none, or (N,) float64.

    positives : (N,), equal for rows that are positives of each other
    """
    threshold = named(threshold)
    if threshold is None:
        return np.inf
    if isinstance(threshold, Threshold):
        value = _decided(threshold, rows, positives)
    else:
        if isinstance(threshold, np.ndarray):
            threshold = torch.as_tensor(threshold)
        value = validation.threshold(threshold, len(rows.kept), torch.device("cpu"))
        if isinstance(value, Tensor):
            value = value.detach().double().numpy()
            value = value if value.ndim == 0 else value[rows.kept]
    value = np.asarray(value, np.float64)
    value = np.where(np.isnan(value), np.inf, value) if isinstance(threshold, Threshold) else value
    if np.isnan(value).any():
        validation.refuse_value("threshold", threshold, "no NaN")
    return float(value) if value.ndim == 0 else value


def _partitions(rows: Rows, supervised: bool) -> tuple[list[Array], tuple[str, ...]]:
    """Who agrees with whom, from positives to the coarsest level, and what pairs of each kind are called."""
    same = [f"same {level.name}" for level in rows.levels]
    numbers = [level.number for level in rows.levels]
    if supervised:
        if not numbers:
            raise ValueError("supervised: got True without labels; accepted: True with labels")
        return numbers, ("positives", *same[1:], "other")
    return [rows.sample, *numbers], ("positives", *same, "other")


def count_pairs(rows: Rows, threshold: Any = None, bins: int = 200, supervised: bool = False,
                class_level: int | None = None, exponent: float = 0.0) -> PairCounts:
    """All that is counted of pairs, in one pass over the cosines.

    class_level : the level of labels whose confusions are counted, or None
    """
    validation.flag("supervised", supervised)
    validation.integer("bins", bins, 1, f"an int in [1, {_C.MOST_BINS}]")
    if bins > _C.MOST_BINS:
        validation.refuse_value("bins", bins, f"an int in [1, {_C.MOST_BINS}]")
    numbers, relations = _partitions(rows, supervised)
    value = threshold_of(rows, numbers[0], threshold)
    classes, level = 0, 0
    if class_level is not None:
        classes, level = len(rows.levels[class_level].labels), class_level + (0 if supervised else 1)
    histogram, hierarchical, confusions, potential, broken = _C.count_pairs(
        rows.values, np.stack(numbers), threshold=value, bins=bins, classes=classes, class_level=level,
        exponent=exponent)
    assert broken == 0 and histogram is not None and hierarchical is not None  # rows are finite
    return PairCounts(relations, histogram, hierarchical, confusions, potential, value)
