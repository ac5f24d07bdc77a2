"""The hierarchy of the classes: a dendrogram of their means, against the labels' own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hexssl import validation
from hexssl.diagnostics import drawing
from hexssl.diagnostics.rows import Array, Level, Levels, Rows, block_rows, rows_of, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

LINKAGES = ("average", "complete", "single", "weighted")
MOST_CLASSES = 2048  # of whose pairs a few arrays are held, 16 MiB each


def _scipy() -> Any:
    try:
        from scipy.cluster import hierarchy
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "scipy":
            raise
        raise ImportError("class_hierarchy needs SciPy, which is not installed: pip install 'hexssl[inspect]'"
                          ) from error
    return hierarchy


class ClassHierarchy(NamedTuple):
    """A dendrogram of the classes' means.

    labels : (C,) int64, ascending, the classes of the finest level
    parents : (C, levels - 1) int64, their labels at the coarser levels
    means : (C, D) float64, of the rows of length 1
    distances : (C (C - 1) / 2,) float64, 1 - cosine of the means, as `scipy.spatial.distance.pdist` orders them
    linkage : (C - 1, 4) float64, as `scipy.cluster.hierarchy.linkage` returns it
    fidelity : cophenetic correlation of the dendrogram with the distances it was made from
    correlation : cophenetic correlation of the dendrogram with the labels' hierarchy, in which two classes are as far
        apart as there are levels at which they differ. NaN with one level, or where all classes are equally far apart
    left_out : rows that are not finite
    """

    labels: NDArray[np.int64]
    parents: NDArray[np.int64]
    means: Floats
    distances: Floats
    linkage: Floats
    fidelity: float
    correlation: float
    left_out: int

    def plot(self, ax: Axes | None = None, class_names: Mapping[int, str] | None = None) -> Axes:
        """The dendrogram, with the names of the leaves coloured by their labels one level up."""
        ax = drawing.axes(ax, figsize=(6.4, 4.0))
        words = [str((class_names or {}).get(int(label), int(label))) for label in self.labels]
        drawn = _scipy().dendrogram(self.linkage, labels=words, ax=ax, color_threshold=0.0,
                                    above_threshold_color=drawing.DARK, leaf_rotation=90)
        if self.parents.shape[1]:
            number = np.unique(self.parents[:, 0], return_inverse=True)[1]
            for text, leaf in zip(ax.get_xticklabels(), drawn["leaves"], strict=True):
                text.set_color(drawing.PALETTE[number[leaf] % len(drawing.PALETTE)])
        known = "" if np.isnan(self.correlation) else f", cophenetic correlation {self.correlation:.2f}"
        ax.set(ylabel="1 - cosine", title=f"means of {len(words)} classes{known}")
        return ax


class HierarchyTrace(NamedTuple):
    """The same over several checkpoints.

    steps : one name or number for each
    hierarchies : one `ClassHierarchy` for each
    """

    steps: tuple[Any, ...]
    hierarchies: tuple[ClassHierarchy, ...]

    @property
    def correlations(self) -> Floats:
        """(checkpoints,) cophenetic correlations with the labels' hierarchy."""
        return np.array([each.correlation for each in self.hierarchies])

    def plot(self, ax: Axes | None = None) -> Axes:
        """The correlation over the checkpoints."""
        ax = drawing.axes(ax, figsize=(6.4, 3.2))
        numbers = all(isinstance(step, int | float) for step in self.steps)
        ax.plot(self.steps if numbers else [str(step) for step in self.steps], self.correlations, marker="o",
                color=drawing.PALETTE[1])
        ax.set(xlabel="checkpoint", ylabel="cophenetic correlation")
        return ax


def _means(rows: Rows, level: Level) -> Floats:
    """Of rows of length 1, (C, D)."""
    values, number, classes = rows.values, level.number, len(level.labels)
    order, sizes = np.argsort(number, kind="stable"), np.bincount(number)
    sums = np.zeros((classes, values.shape[1]))
    step = block_rows(values.shape[1])
    for first in range(0, len(order), step):
        chosen = order[first : first + step]
        starts = np.flatnonzero(np.diff(number[chosen], prepend=-1))  # rows of a class lie together
        sums[number[chosen[starts]]] += np.add.reduceat(unit(values[chosen]), starts)
    return sums / sizes[:, None]


def _correlation(one: Array, other: Array) -> float:
    """Pearson's, NaN where one of the two is the same everywhere."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _tree_distances(parents: Array) -> Floats:
    """Of every pair of classes, the number of levels at which they differ, the classes' own among them."""
    first, second = np.triu_indices(len(parents), 1)
    return 1.0 + (parents[first] != parents[second]).sum(1)


def _hierarchy(rows: Rows, linkage: str) -> ClassHierarchy:
    scipy_hierarchy, level = _scipy(), rows.levels[0]
    from scipy.spatial.distance import pdist

    means = _means(rows, level)
    lengths = np.linalg.norm(means, axis=1)
    if not (lengths > 1e-12).all():
        raise ValueError(f"views: got rows of {level.name} {level.labels[lengths.argmin()]} whose mean is 0, which has "
                         "no direction; accepted: classes whose rows of length 1 do not add up to 0")
    distances = np.maximum(pdist(means, "cosine"), 0.0)
    tree = scipy_hierarchy.linkage(distances, linkage)
    heights = scipy_hierarchy.cophenet(tree)
    one_of_each = np.unique(level.number, return_index=True)[1]
    parents = np.stack([coarse.labels[coarse.number[one_of_each]] for coarse in rows.levels[1:]], 1) \
        if len(rows.levels) > 1 else np.empty((len(level.labels), 0), np.int64)
    return ClassHierarchy(level.labels, parents, means, distances, tree, _correlation(heights, distances),
                          _correlation(heights, _tree_distances(parents)), rows.left_out)


def class_hierarchy(*views: Any, labels: Levels, linkage: str = "average", names: Sequence[str] | None = None
                    ) -> ClassHierarchy:
    """Hierarchical clustering of the classes' means, and how far it agrees with the labels' own hierarchy.

    Parameters
    ----------
    views, names : as in `cosine_histogram`; all views count as rows
    labels : as in `cosine_histogram`, not None; two to 2,048 classes. With coarser levels the dendrogram is compared
        with them.
    linkage : "average", "complete", "single" or "weighted", as in `scipy.cluster.hierarchy.linkage`

    Returns
    -------
    ClassHierarchy

    Raises
    ------
    TypeError, ValueError
        As `cosine_histogram`; and for a class whose mean is 0.
    ImportError
        Without SciPy.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import diagnostics
    >>> z = np.array([[1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [0.0, 1.0, 0.1], [0.1, 1.0, 0.0]])
    >>> found = diagnostics.class_hierarchy(z, labels=([0, 1, 2, 3], [0, 0, 1, 1]))
    >>> round(found.correlation, 3)
    1.0
    """
    validation.choice("linkage", linkage, LINKAGES)
    rows = rows_of(views, labels, names, least=1)
    if not rows.levels:
        raise ValueError("labels: got None; accepted: labels, as of cosine_histogram")
    classes = len(rows.levels[0].labels)
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(f"labels: got {classes} classes in finite rows; accepted: 2 to {MOST_CLASSES}")
    return _hierarchy(rows, linkage)


def hierarchy_trace(checkpoints: Mapping[Any, Any] | Iterable[Any], *, labels: Levels, linkage: str = "average",
                    names: Sequence[str] | None = None) -> HierarchyTrace:
    """`class_hierarchy` of several checkpoints' embeddings of the same samples.

    Parameters
    ----------
    checkpoints : a mapping from steps to embeddings (B, D), or embeddings one after the other, of steps 0, 1, ...
        D may differ. An iterator is asked for one at a time.
    labels, linkage, names : as in `class_hierarchy`

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import diagnostics
    >>> z = np.random.default_rng(0).standard_normal((2, 8, 5))
    >>> trace = diagnostics.hierarchy_trace({10: z[0], 20: z[1]}, labels=[0, 1, 2, 3] * 2)
    >>> trace.steps, len(trace.hierarchies)
    ((10, 20), 2)
    """
    each = checkpoints.items() if isinstance(checkpoints, Mapping) else enumerate(checkpoints)
    found = [(step, class_hierarchy(rows, labels=labels, linkage=linkage, names=names)) for step, rows in each]
    if not found:
        raise ValueError("checkpoints: got none; accepted: embeddings of one checkpoint or more")
    return HierarchyTrace(tuple(step for step, _ in found), tuple(hierarchy for _, hierarchy in found))
