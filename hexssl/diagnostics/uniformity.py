"""Alignment and uniformity on the sphere (Wang & Isola, ICML 2020, arXiv 2005.10242)."""

from __future__ import annotations

from math import inf, log
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hexssl import validation
from hexssl.core import _C
from hexssl.diagnostics import drawing
from hexssl.diagnostics.rows import Rows, block_rows, rows_of, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class AlignmentUniformity(NamedTuple):
    """Both are lower where embeddings are better.

    alignment : mean over positive pairs of ``|x - y|^alpha``, NaN where there is none
    uniformity : log of the mean over pairs of different rows of ``exp(-t |x - y|^2)``
    alpha, t : as they were given
    left_out : rows that are not finite
    """

    alignment: float
    uniformity: float
    alpha: float
    t: float
    left_out: int

    def plot(self, ax: Axes | None = None, label: str | None = None) -> Axes:
        """A point in the plane of the two, as in the paper's figures; several go onto the same axes, as ``ax``."""
        ax = drawing.axes(ax, figsize=(4.4, 3.6))
        ax.scatter([self.uniformity], [self.alignment], label=label)
        ax.set(xlabel="uniformity", ylabel="alignment")
        if label is not None:
            ax.legend()
        return ax


def alignment_of(rows: Rows, alpha: float) -> float:
    """Mean over the pairs of views of a sample of |x - y|^alpha; NaN where there is none."""
    values, sample = rows.values, rows.sample
    order = np.argsort(sample, kind="stable")
    total, count, offset = 0.0, 0, 1
    step = block_rows(values.shape[1])
    while True:  # pairs of views that are `offset` apart within a sample
        first = order[:-offset][sample[order[:-offset]] == sample[order[offset:]]]
        second = order[offset:][sample[order[:-offset]] == sample[order[offset:]]]
        if len(first) == 0:
            return total / count if count else float("nan")
        for at in range(0, len(first), step):
            apart = unit(values[first[at : at + step]]) - unit(values[second[at : at + step]])
            total += float((np.linalg.norm(apart, axis=1) ** alpha).sum())
        count, offset = count + len(first), offset + 1
        if offset >= len(values):
            return total / count


def uniformity_of(potential: float, rows: int, t: float) -> float:
    """From the sum over ordered pairs of exp(2 t (c - 1))."""
    return log(potential / (rows * (rows - 1))) if potential > 0 else -inf


def alignment_uniformity(*views: Any, alpha: float = 2.0, t: float = 2.0) -> AlignmentUniformity:
    """Alignment and uniformity (Wang & Isola 2020, sections 4.1.1 and 4.1.2).

    Parameters
    ----------
    views : as in `cosine_histogram`
        Views of a sample are the positive pairs of the alignment. The uniformity is over all pairs of rows, of all
        views, each pair once. It is streamed in the core, in the dtype of the embeddings.
    alpha : float > 0
    t : float in (0, 20], for float64 (0, 172]

    Returns
    -------
    AlignmentUniformity

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `cosine_histogram`.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import diagnostics
    >>> found = diagnostics.alignment_uniformity(np.eye(4)[:2], np.eye(4)[:2])
    >>> found.alignment, round(found.uniformity, 4)  # log((2 + 4 exp(-4)) / 6)
    (0.0, -1.0626)
    """
    rows = rows_of(views)
    alpha = validation.number("alpha", alpha, 0.0, inf, open_low=True, open_high=True, accepted="a finite number > 0")
    most = 172.0 if rows.values.dtype == np.float64 else 20.0
    t = validation.number("t", t, 0.0, most, open_low=True, accepted=f"a number in (0, {most:g}] for these embeddings")
    *_, potential, broken = _C.count_pairs(rows.values, np.zeros((1, len(rows.values)), np.int32), exponent=2 * t)
    assert broken == 0  # rows are finite
    return AlignmentUniformity(alignment_of(rows, alpha), uniformity_of(potential, len(rows.values), t), alpha, t,
                               rows.left_out)
