"""Which threshold would pick what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hexssl.diagnostics import drawing
from hexssl.diagnostics.pairs import PairCounts, count_pairs, share_of
from hexssl.diagnostics.rows import Levels, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]


class ThresholdSweep(NamedTuple):
    """What a threshold of each value would pick. Shares of nothing are NaN.

    thresholds : (bins + 1,) float64 from -1 to 1
    share : (bins + 1,) share of the negatives whose cosine is at or above the threshold
    names : what classes are called, level by level
    precision, recall : (levels, bins + 1) as in `hierarchical_negatives`
    """

    thresholds: Floats
    share: Floats
    names: tuple[str, ...]
    precision: Floats
    recall: Floats

    def at_share(self, share: float) -> int:
        """The index of the lowest threshold that picks at most this share of the negatives."""
        return int(np.argmax(self.share <= share))

    def plot(self, ax: Axes | None = None) -> Axes:
        """The share, and precision and recall level by level, over the thresholds."""
        ax = drawing.axes(ax, figsize=(6.4, 3.6))
        ax.plot(self.thresholds, self.share, color=drawing.DARK, label="share of the negatives")
        for name, precision, recall, colour in zip(self.names, self.precision, self.recall,
                                                   drawing.colours(len(self.names) + 1), strict=False):
            ax.plot(self.thresholds, precision, color=colour, label=f"same {name}: precision")
            ax.plot(self.thresholds, recall, color=colour, linestyle="--", label=f"same {name}: recall")
        ax.set(xlabel="threshold on the cosine", ylabel="share", xlim=(-1, 1), ylim=(0, 1))
        ax.legend()
        return ax


def sweep_of(counts: PairCounts, names: tuple[str, ...], supervised: bool) -> ThresholdSweep:
    """What `threshold_sweep` returns, of pairs that are counted."""
    kinds = counts.histogram[1:].sum(1)  # negatives alone
    above = np.concatenate([kinds[:, ::-1].cumsum(1)[:, ::-1], np.zeros((len(kinds), 1), np.int64)], 1)
    picked, total = above.sum(0), above[:, 0].sum()
    agreeing = above.cumsum(0)[:-1]  # from the finest level on: whoever shares a class shares what is coarser
    if supervised:
        agreeing = np.concatenate([np.zeros_like(above[:1]), agreeing])
    return ThresholdSweep(counts.edges, share_of(picked, total), names, share_of(agreeing, picked),
                          share_of(agreeing, agreeing[:, :1]))


def threshold_sweep(*views: Any, labels: Levels | None = None, bins: int = 200, supervised: bool = False,
                    names: Sequence[str] | None = None) -> ThresholdSweep:
    """Share, precision and recall of the hierarchical negatives at every threshold, in one pass over the cosines.

    Parameters
    ----------
    views, labels, supervised, names : as in `cosine_histogram`
    bins : int in [1, 65536]; thresholds are 2 / bins apart

    Returns
    -------
    ThresholdSweep

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `cosine_histogram`.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import diagnostics
    >>> z = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> found = diagnostics.threshold_sweep(z, labels=[0, 0, 1, 1], bins=4)
    >>> found.thresholds[3], found.share[3].round(3), found.precision[0, 3], found.recall[0, 3]
    (np.float64(0.5), np.float64(0.333), np.float64(1.0), np.float64(1.0))
    """
    rows = rows_of(views, labels, names)
    counts = count_pairs(rows, None, bins, supervised)
    return sweep_of(counts, tuple(level.name for level in rows.levels), supervised)
