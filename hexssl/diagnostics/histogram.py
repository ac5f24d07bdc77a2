"""Cosines of pairs as histograms, by what the rows have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hexssl import validation
from hexssl.diagnostics import drawing
from hexssl.diagnostics.pairs import PairCounts, count_pairs
from hexssl.diagnostics.rows import Levels, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CosineHistogram(NamedTuple):
    """How many pairs have which cosine. Pairs are ordered: (anchor, key) and (key, anchor) are two.

    edges : (bins + 1,) float64 from -1 to 1; a bin holds its lower edge, and the last one 1 as well
    relations : what the rows of a pair have in common: "positives", then with labels "same class", "same superclass"
        and so on, of pairs that are no positives and have nothing finer in common, and "other" in the end
    counts : (relations, bins) int64
    hierarchical, global_ : (bins,) int64, the negatives above their anchor's threshold and the others
    threshold : a float, inf where there is none, or float64 of one for each row
    left_out : rows that are not finite
    """

    edges: NDArray[np.float64]
    relations: tuple[str, ...]
    counts: NDArray[np.int64]
    hierarchical: NDArray[np.int64]
    global_: NDArray[np.int64]
    threshold: Any
    left_out: int

    @property
    def positives(self) -> NDArray[np.int64]:
        """(bins,) int64: the first of the relations."""
        return self.counts[0]

    def plot(self, ax: Axes | None = None, by: str = "relation") -> Axes:
        """Densities, each of area 1, and the threshold.

        by : "relation": what rows have in common; "role": positives, hierarchical and global negatives, whose areas
            are their shares of the negatives
        """
        validation.choice("by", by, ("relation", "role"))
        ax = drawing.axes(ax, figsize=(6.4, 3.6))
        width, roles = np.diff(self.edges), by == "role"
        names = ("positives", "hierarchical negatives", "global negatives") if roles else self.relations
        counts = np.stack([self.positives, self.hierarchical, self.global_]) if roles else self.counts
        totals = counts.sum(1)
        if roles:
            totals[1:] = totals[1:].sum()
        for name, colour, row, total in zip(names, drawing.colours(len(names)), counts, totals, strict=True):
            if row.sum() > 0:
                drawing.steps(ax, self.edges, row / (total * width), colour, name)
        drawing.mark_threshold(ax, self.threshold)
        ax.set(xlabel="cosine", ylabel="density", xlim=(-1, 1))
        ax.legend()
        return ax


def histogram_of(counts: PairCounts, left_out: int) -> CosineHistogram:
    """What `cosine_histogram` returns, of pairs that are counted."""
    below, above = counts.histogram[1:].sum(0)
    return CosineHistogram(counts.edges, counts.relations, counts.histogram.sum(1), above, below, counts.threshold,
                           left_out)


def cosine_histogram(*views: Any, labels: Levels | None = None, threshold: Any = "adaptive", bins: int = 100,
                     supervised: bool = False, names: Sequence[str] | None = None) -> CosineHistogram:
    """Histograms of the cosines of all pairs: positives, hierarchical and global negatives, and by labels.

    Parameters
    ----------
    views : one or more (B, D) arrays or CPU tensors of float32, float64, float16 or (tensors) bfloat16
        Row i of each is a view of sample i, as in `hexssl.hex_loss`: views of one sample are positives, all other rows
        negatives. With one view there are no positives. Rows are normalised. Those that are not finite are left out,
        and counted in `left_out`. Tensors on other devices are refused.
    labels : None; (B,) integers or bool; a sequence of such arrays, from the finest level to the coarsest; or (B, L)
        Ground truth that the pairs are sorted by. Levels are a hierarchy: whoever shares a class shares its
        superclass. Without `supervised` they do not change who is a positive.
    threshold : as in `hexssl.hex_loss`
        Words and objects of `hexssl.thresholds` decide from all rows as from one batch, without changing their state.
        An array or tensor of one for each anchor is (views * B,).
    bins : int in [1, 65536]
    supervised : bool
        True: rows with equal labels of the finest level are positives, as `hexssl.hex_loss` has them given `labels`.
    names : words for the levels; None: "class", "superclass", "level 3", ...

    Returns
    -------
    CosineHistogram

    Raises
    ------
    TypeError, ValueError
        Before any work, naming the argument, what was given and what is accepted: also with less than two finite rows.
    RuntimeError
        Without the compiled core (``HEXSSL_EXTENSION=0``).

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import diagnostics
    >>> found = diagnostics.cosine_histogram(np.eye(4)[:2], np.eye(4)[:2], labels=[0, 1], threshold=0.5, bins=4)
    >>> found.relations
    ('positives', 'same class', 'other')
    >>> found.counts.tolist()  # two pairs of equal rows, four of orthogonal ones, either row as the anchor
    [[0, 0, 0, 4], [0, 0, 0, 0], [0, 0, 8, 0]]
    """
    rows = rows_of(views, labels, names)
    return histogram_of(count_pairs(rows, threshold, bins, supervised), rows.left_out)
