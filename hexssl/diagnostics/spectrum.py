"""Collapse: how many dimensions embeddings use, as a whole and class by class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hexssl import validation
from hexssl.diagnostics import drawing
from hexssl.diagnostics.rows import Array, Level, Levels, block_rows, rows_of, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

RANKME = 1e-7  # added to every share of the sum of the singular values, as in RankMe


def effective_rank(singular_values: ArrayLike) -> float:
    """RankMe (Garrido et al., ICML 2023, equation 3): e to the entropy of the singular values' shares of their sum.

    Between 1, where one direction holds all, and their number, where all are equal; 0 if all are 0. To each share
    1e-7 is added, as in the paper, so that the bounds hold to that precision.

    Parameters
    ----------
    singular_values : (K,) numbers >= 0

    Examples
    --------
    >>> from hexssl.diagnostics import effective_rank
    >>> round(effective_rank([1.0, 1.0, 1.0, 0.0]), 3), round(effective_rank([1.0, 0.0]), 3)
    (3.0, 1.0)
    """
    values = np.asarray(singular_values, np.float64)
    if values.ndim != 1 or values.size == 0 or not (values >= 0).all() or not np.isfinite(values).all():
        validation.refuse_value("singular_values", singular_values, "a (K,) array of finite numbers >= 0, K >= 1")
    total = values.sum()
    if total == 0:
        return 0.0
    share = values / total + RANKME
    return float(np.exp(-(share * np.log(share)).sum()))


def participation_ratio(singular_values: ArrayLike) -> float:
    """(sum of s^2)^2 / sum of s^4: in how many directions the squared length lies; 0 if there is none.

    Parameters
    ----------
    singular_values : (K,) numbers >= 0

    Examples
    --------
    >>> from hexssl.diagnostics import participation_ratio
    >>> participation_ratio([2.0, 2.0, 0.0])
    2.0
    """
    values = np.asarray(singular_values, np.float64)
    if values.ndim != 1 or values.size == 0 or not (values >= 0).all() or not np.isfinite(values).all():
        validation.refuse_value("singular_values", singular_values, "a (K,) array of finite numbers >= 0, K >= 1")
    top = values.max()
    if top == 0:
        return 0.0
    squares = (values / top) ** 2  # of the largest: nothing overflows
    return float(squares.sum() ** 2 / (squares**2).sum())


class LocalCollapse(NamedTuple):
    """The classes of one level, (C,) each.

    name : what a class of this level is called
    labels : int64, ascending
    sizes : int64, rows of each
    singular_values : (C, D) float64, descending, 0 past the number of rows and where rounding alone is left
    effective_rank, participation_ratio : float64
    baseline : float64, the effective rank of as many rows drawn from all: what the number of rows alone makes of it
    """

    name: str
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]
    singular_values: Floats
    effective_rank: Floats
    participation_ratio: Floats
    baseline: Floats

    @property
    def ratio(self) -> float:
        """Mean over the classes of effective rank / baseline: 1 where classes use as many dimensions as any rows."""
        known = self.baseline > 0
        return float((self.effective_rank[known] / self.baseline[known]).mean()) if known.any() else float("nan")


class Collapse(NamedTuple):
    """The spectrum of the embeddings.

    singular_values : (D,) float64, descending, of all rows; 0 past the number of rows
    effective_rank, participation_ratio : of these
    levels : one `LocalCollapse` for each level of labels, in their order
    left_out : rows that are not finite
    """

    singular_values: Floats
    effective_rank: float
    participation_ratio: float
    levels: tuple[LocalCollapse, ...]
    left_out: int

    def plot(self, ax: Axes | None = None, level: int = 0) -> Axes:
        """Singular values as shares of the largest, on a logarithmic scale: all rows, and every class of a level."""
        ax = drawing.axes(ax, figsize=(6.4, 3.6))
        index = np.arange(1, len(self.singular_values) + 1)
        if self.levels:
            local = self.levels[level]
            shares = [_shares(values) for values, size in zip(local.singular_values, local.sizes, strict=True)
                      if size > 1]
            for number, share in enumerate(shares):
                ax.plot(index, share, color=drawing.PALETTE[0], alpha=max(0.05, min(0.5, 5 / len(shares))),
                        linewidth=1, label=f"each {local.name}" if number == 0 else None)
        ax.plot(index, _shares(self.singular_values), color=drawing.DARK, linewidth=1.8,
                label=f"all rows, effective rank {self.effective_rank:.1f}")
        ax.set(xlabel="singular value, by size", ylabel="share of the largest", yscale="log",
               xlim=(1, max(2, len(index))))
        ax.legend()
        return ax


def _shares(values: Floats) -> Floats:
    """Of the largest; NaN, which is not drawn, where a value is nothing but rounding."""
    top = values[0]
    return np.where(values > 1e-12 * top, values / top if top > 0 else values, np.nan)


def _one_thread() -> AbstractContextManager[Any]:
    """Factors of hundreds of small matrices: BLAS's threads wait for each other in every one of them, and where other
    work runs beside this they take 50 times as long. Without threadpoolctl they are left as they are."""
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError as error:
        if error.name != "threadpoolctl":
            raise
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpool_limits(1, "blas")
    return limits


def _blocks(values: Array, chosen: Array, normalize: bool) -> Iterator[Floats]:
    """The chosen rows in float64, so many at once that a triangular factor is no larger."""
    step = block_rows(values.shape[1], least=values.shape[1])
    for first in range(0, len(chosen), step):
        rows = values[chosen[first : first + step]]
        yield unit(rows) if normalize else rows.astype(np.float64)


def _singular_values(values: Array, chosen: Array, normalize: bool, center: bool) -> Floats:
    """Of the chosen rows, (D,): by triangular factors of blocks of rows, so that nothing is squared."""
    rows, columns = len(chosen), values.shape[1]
    mean, largest = np.zeros(columns), 0.0
    if center:
        for block in _blocks(values, chosen, normalize):
            mean += block.sum(0) / rows
    factor: Any = None
    for block in _blocks(values, chosen, normalize):
        largest = max(largest, float(np.abs(block).max()))
        block -= mean
        whole = factor is None and len(block) == rows
        factor = block if whole else np.linalg.qr(block if factor is None else np.concatenate([factor, block]), "r")
    found = np.zeros(columns)
    singular = np.linalg.svd(factor, compute_uv=False)
    found[: len(singular)] = singular
    found[found <= max(rows, columns) * np.finfo(np.float64).eps * largest] = 0  # what rounding alone has left
    return found


def _local(values: Array, level: Level, normalize: bool, center: bool, seed: int) -> LocalCollapse:
    order, sizes = np.argsort(level.number, kind="stable"), np.bincount(level.number)
    members = np.split(order, np.cumsum(sizes)[:-1])
    draw = np.random.default_rng(seed)
    spectra = np.stack([_singular_values(values, rows, normalize, center) for rows in members])
    drawn = {int(size): np.sort(draw.choice(len(values), size, replace=False)) for size in np.unique(sizes)}
    baseline = {size: effective_rank(_singular_values(values, rows, normalize, center))
                for size, rows in drawn.items()}
    return LocalCollapse(level.name, level.labels, sizes, spectra, np.array([*map(effective_rank, spectra)]),
                         np.array([*map(participation_ratio, spectra)]), np.array([baseline[int(n)] for n in sizes]))


def collapse(*views: Any, labels: Levels | None = None, normalize: bool = False, center: bool = False, seed: int = 0,
             names: Sequence[str] | None = None) -> Collapse:
    """Singular values and effective ranks, of all rows and of every class.

    A representation collapses where it uses few dimensions. HEX (WACV 2025, arXiv 2410.23200) observes that it does so
    locally, within a class, before it does as a whole. With few rows any class has few dimensions: compare the
    effective rank of a class with its `baseline`, that of as many rows drawn from all.

    Parameters
    ----------
    views, labels, names : as in `cosine_histogram`; all views count as rows
    normalize : bool
        True: rows are divided by their length first. RankMe takes them as they are.
    center : bool
        True: the mean of all rows, or of the class, is subtracted first: the spectrum of the covariance (Jing et al.,
        ICLR 2022). RankMe does not.
    seed : int, of the rows drawn for the baseline

    Returns
    -------
    Collapse

    Raises
    ------
    TypeError, ValueError
        As `cosine_histogram`; one finite row is enough.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import diagnostics
    >>> found = diagnostics.collapse(np.eye(4), labels=[0, 0, 1, 1])
    >>> round(found.effective_rank, 3), found.levels[0].effective_rank.round(3).tolist()
    (4.0, [2.0, 2.0])
    """
    rows = rows_of(views, labels, names, least=1)
    normalize, center = validation.flag("normalize", normalize), validation.flag("center", center)
    seed = validation.integer("seed", seed, 0, "an int >= 0")
    every = np.arange(len(rows.values))
    with _one_thread():
        spectrum = _singular_values(rows.values, every, normalize, center)
        levels = tuple(_local(rows.values, level, normalize, center, seed) for level in rows.levels)
    return Collapse(spectrum, effective_rank(spectrum), participation_ratio(spectrum), levels, rows.left_out)
