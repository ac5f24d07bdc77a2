"""Who the hierarchical negatives are: how many share a class with their anchor, and which classes they confuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hexssl import validation
from hexssl.diagnostics import drawing
from hexssl.diagnostics.pairs import PairCounts, count_pairs, share_of
from hexssl.diagnostics.rows import Array, Levels, Rows, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

MOST_CLASSES = 2048  # whose confusions are counted: 32 MiB


class LevelNegatives(NamedTuple):
    """The hierarchical negatives against the labels of one level. Shares of nothing are NaN.

    name : what a class of this level is called
    precision : share of the hierarchical negatives that have their anchor's label
    recall : share of the negatives with their anchor's label that are hierarchical
    chance : share of all negatives that have their anchor's label: the precision of a random choice
    labels : (C,) int64, ascending
    shares : (C,) float64, share of the negatives of a class's rows that are hierarchical
    precisions, recalls : (C,) float64, of the class's rows
    """

    name: str
    precision: float
    recall: float
    chance: float
    labels: NDArray[np.int64]
    shares: Floats
    precisions: Floats
    recalls: Floats


class ConfusedClasses(NamedTuple):
    """Two classes whose rows are hierarchical negatives of each other.

    first, second : labels, first < second
    pairs : int, hierarchical negatives with an anchor in one of them and the key in the other
    share : of all negatives between the two
    """

    first: int
    second: int
    pairs: int
    share: float


class HierarchicalNegatives(NamedTuple):
    """Who the hierarchical negatives are. Pairs are ordered, (anchor, key).

    threshold : a float, inf where there is none, or float64 of one for each row
    pairs, negatives : int, hierarchical negatives, and all
    share : pairs / negatives
    levels : one `LevelNegatives` for each level of labels
    confused : up to `most` `ConfusedClasses`, most pairs first
    confusions : (C, C) int64, hierarchical negatives by the classes of anchor and key; None if not wanted
    left_out : rows that are not finite
    """

    threshold: Any
    pairs: int
    negatives: int
    share: float
    levels: tuple[LevelNegatives, ...]
    confused: tuple[ConfusedClasses, ...]
    confusions: NDArray[np.int64] | None
    left_out: int

    def plot(self, ax: Axes | None = None) -> Axes:
        """Precision, recall and the precision of a random choice as bars, level by level."""
        ax = drawing.axes(ax, figsize=(4.8, 3.6))
        at = np.arange(len(self.levels))
        for offset, (name, colour) in enumerate((("precision", drawing.PALETTE[1]), ("recall", drawing.PALETTE[2]),
                                                 ("chance", drawing.GREY))):
            ax.bar(at + 0.27 * (offset - 1), [getattr(level, name) for level in self.levels], 0.25, color=colour,
                   label=name)
        ax.set(xticks=at, xticklabels=[f"same {level.name}" for level in self.levels], ylim=(0, 1), ylabel="share")
        ax.legend()
        return ax

    def plot_confused(self, ax: Axes | None = None, class_names: Mapping[int, str] | None = None) -> Axes:
        """The most confused pairs of classes as horizontal bars.

        class_names : what labels mean; those without a name are shown as they are
        """
        ax = drawing.axes(ax, figsize=(4.8, 3.6))
        known = class_names or {}
        names = [" and ".join(known.get(label, str(label)) for label in (pair.first, pair.second))
                 for pair in self.confused]
        ax.barh(names, [pair.pairs for pair in self.confused], color=drawing.PALETTE[5])
        ax.invert_yaxis()
        ax.set(xlabel="hierarchical negatives between the two")
        return ax


def _level(rows: Rows, index: int, hierarchical: Array, positives: Array) -> LevelNegatives:
    """hierarchical : (N, kinds), of each anchor; positives : (N,) group of each anchor."""
    level = rows.levels[index]
    classes = len(level.labels)
    own = np.bincount(positives)[positives]  # rows in the anchor's group, itself among them
    alike = np.bincount(level.number)[level.number] - own  # negatives with its label
    others = len(positives) - own
    agreeing = hierarchical[:, : index + (0 if positives is rows.levels[0].number else 1)].sum(1)
    found = hierarchical.sum(1)
    by_class = [np.bincount(level.number, weights=each, minlength=classes) for each in (found, agreeing, alike, others)]
    return LevelNegatives(level.name, float(share_of(agreeing.sum(), found.sum())),
                          float(share_of(agreeing.sum(), alike.sum())), float(share_of(alike.sum(), others.sum())),
                          level.labels, share_of(by_class[0], by_class[3]), share_of(by_class[1], by_class[0]),
                          share_of(by_class[1], by_class[2]))


def _confused(confusions: Array, rows: Rows, level: int, most: int) -> tuple[ConfusedClasses, ...]:
    numbers, labels = rows.levels[level].number, rows.levels[level].labels
    sizes = np.bincount(numbers)
    both = np.triu(confusions + confusions.T, 1)
    first, second = np.nonzero(both)
    count = both[first, second]
    order = np.lexsort((second, first, -count))[:most]
    return tuple(ConfusedClasses(int(labels[a]), int(labels[b]), int(n), float(n / (2 * sizes[a] * sizes[b])))
                 for a, b, n in zip(first[order], second[order], count[order], strict=True))


def negatives_of(rows: Rows, counts: PairCounts, supervised: bool, most: int, level: int | None
                 ) -> HierarchicalNegatives:
    """What `hierarchical_negatives` returns, of pairs that are counted."""
    positives = rows.levels[0].number if supervised else rows.sample
    pairs, negatives = int(counts.hierarchical.sum()), int(counts.histogram[1:].sum())
    levels = tuple(_level(rows, index, counts.hierarchical, positives) for index in range(len(rows.levels)))
    confused = () if counts.confusions is None or level is None else _confused(counts.confusions, rows, level, most)
    return HierarchicalNegatives(counts.threshold, pairs, negatives, float(share_of(pairs, negatives)), levels,
                                 confused, counts.confusions, rows.left_out)


def countable_level(rows: Rows, level: Any) -> int | None:
    """The level whose confusions are counted, checked."""
    if level is None:
        return None
    accepted = f"None, or one of the {len(rows.levels)} levels with at most {MOST_CLASSES} classes"
    level = validation.integer("confused_level", level, 0, accepted)
    if level >= len(rows.levels):
        validation.refuse_value("confused_level", level, accepted)
    if len(rows.levels[level].labels) > MOST_CLASSES:
        raise ValueError(f"confused_level: got {level}, which has {len(rows.levels[level].labels)} classes; accepted: "
                         f"{accepted}")
    return level


def hierarchical_negatives(*views: Any, labels: Levels, threshold: Any = "adaptive", supervised: bool = False,
                           confused_level: int | None = 0, most: int = 10, names: Sequence[str] | None = None
                           ) -> HierarchicalNegatives:
    """The hierarchical negatives of `hexssl.hex_loss` against labels: precision, recall, shares and confusions.

    A negative is hierarchical where its cosine is above its anchor's threshold. Without labels the loss cannot know
    who they are; labels tell.

    Parameters
    ----------
    views, threshold, supervised, names : as in `cosine_histogram`
    labels : as in `cosine_histogram`, not None
    confused_level : the level, 0 for the finest, between whose classes hierarchical negatives are counted; at most
        2,048 classes; None: between none
    most : int >= 0, confused pairs of classes in `confused`

    Returns
    -------
    HierarchicalNegatives

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `cosine_histogram`.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import diagnostics
    >>> z = np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    >>> found = diagnostics.hierarchical_negatives(z, labels=[0, 0, 1, 1], threshold=0.9)
    >>> found.share, found.levels[0].precision, found.levels[0].recall  # 3 of the 6 pairs, one of them in a class
    (0.5, 0.3333333333333333, 0.5)
    >>> found.confused[0].pairs
    4
    """
    rows = rows_of(views, labels, names)
    if not rows.levels:
        raise ValueError("labels: got None; accepted: labels, as of cosine_histogram")
    most = validation.integer("most", most, 0, "an int >= 0")
    level = countable_level(rows, confused_level)
    counts = count_pairs(rows, threshold, 1, supervised, level)
    return negatives_of(rows, counts, supervised, most, level)
