"""The losses on NumPy arrays: value, gradients and statistics in one call, without torch tensors.

The functions mirror those of `hexssl` and run the same core, on torch's threads, with the GIL released while computing.
"""

from __future__ import annotations

from math import inf, isnan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hexssl import array_problem, validation
from hexssl.array_problem import Array
from hexssl.core import _C
from hexssl.thresholds import WORDS

__all__ = ["Gradients", "HEXResult", "HEXStats", "RowStats", "ViewGradients", "cross_hex_loss", "cross_info_nce",
           "hex_loss", "info_nce", "similarity_stats"]

Floats = NDArray[np.float64]


class HEXStats(NamedTuple):
    """What the loss saw. Means over an empty set are NaN.

    threshold : the threshold on the cosine (its mean where there is one per anchor), inf where there is none
    hierarchical_fraction : share of the negatives that lie above the threshold
    positive_similarity, negative_similarity, hierarchical_similarity : mean cosines
    accuracy : share of the anchors with a positive whose nearest key is one; a tie with a negative does not count
    skipped_anchors : anchors left out of the loss

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> arrays.hex_loss(np.eye(4)[:2], np.eye(4)[2:], threshold=0.5).stats.positive_similarity
    0.0
    """

    threshold: float
    hierarchical_fraction: float
    positive_similarity: float
    negative_similarity: float
    hierarchical_similarity: float
    accuracy: float
    skipped_anchors: float


class ViewGradients(NamedTuple):
    """Derivatives of the loss of views (of its sum where reduction="none"), in the dtype and shape of their argument.

    views : one for every view

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> gradients = arrays.hex_loss(np.eye(4)[:2], np.eye(4)[2:]).gradients
    >>> [view.shape for view in gradients.views]
    [(2, 4), (2, 4)]
    """

    views: tuple[Array, ...]
    temperature: float


class Gradients(NamedTuple):
    """Derivatives of the loss of anchors and keys (of its sum where reduction="none"), as `ViewGradients`.

    keys : None where the keys are the anchors, whose gradient then holds both sides
    queue, paired : None where none was given

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> gradients = arrays.cross_hex_loss(np.eye(4), np.eye(4)).gradients
    >>> gradients.anchors.shape, gradients.keys.shape, gradients.queue is None
    ((4, 4), (4, 4), True)
    """

    anchors: Array
    keys: Array | None
    queue: Array | None
    paired: Array | None
    temperature: float


class HEXResult(NamedTuple):
    """What the loss functions return.

    loss : float64, a scalar or, with reduction="none", one for every anchor
    gradients : ViewGradients or Gradients; None unless wanted

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> loss, gradients, stats = arrays.info_nce(np.eye(4)[:2], np.eye(4)[2:])
    >>> round(float(loss), 4)  # log 3
    1.0986
    """

    loss: Any
    gradients: Any
    stats: HEXStats


class RowStats(NamedTuple):
    """Statistics of every anchor's cosines, (M,) float64 each; NaN where an anchor has none to count.

    The variance is the population's.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> arrays.similarity_stats(np.eye(4)).mean.tolist()
    [0.25, 0.25, 0.25, 0.25]
    """

    min: Floats
    max: Floats
    mean: Floats
    variance: Floats
    count: Floats  # type: ignore[assignment]  # hides tuple.count
    quantile: Floats


def _contrast(problem: dict[str, Any], settings: dict[str, Any], threshold: Any,
              weight: float | None) -> tuple[Any, tuple[float, ...], Any]:
    """Loss, statistics and the core's gradients of `weight` times the loss, of its anchors, keys, paired and
    temperature; None: no gradients."""
    anchors, token = problem["anchors"], 0
    if isinstance(threshold, str) and threshold in WORDS:
        of_negatives = validation.ROWS[WORDS[threshold]]
        who = {name: value for name, value in problem.items() if name != "paired"}
        _, threshold, token = _C.measure(**who, quantile=0.99, negatives_only=of_negatives, want=_C.WANT_QUANTILE,
                                         keep=True)
        threshold = inf if of_negatives and isnan(threshold) else threshold  # there are no negatives
    else:
        threshold = array_problem.checked_threshold(threshold, anchors.shape[0])
    each = settings["reduction"] == validation.REDUCTIONS["none"]
    grad = None if weight is None else np.full(anchors.shape[0] if each else (), weight)
    loss, stats, gradients = _C.contrast(**problem, **settings, threshold=threshold, grad=grad, token=token)
    return loss[()], tuple(stats.tolist()), gradients


def _result(problem: dict[str, Any], settings: dict[str, Any], threshold: Any, return_gradients: bool,
            symmetric: bool = False) -> tuple[Any, Any, HEXStats]:
    """Loss, gradients as `_contrast` has them, and statistics."""
    validation.arithmetic(settings["temperature"], settings["beta"], problem["anchors"].dtype)
    wanted = validation.flag("return_gradients", return_gradients)
    if not symmetric:
        loss, stats, gradients = _contrast(problem, settings, threshold, 1.0 if wanted else None)
        return loss, gradients, HEXStats(*stats)
    relation = problem.get("relation")
    back = {**problem, "anchors": problem["keys"], "keys": problem["anchors"], "labels": problem.get("key_labels"),
            "key_labels": problem.get("labels"), "relation": None if relation is None else relation.T}
    loss, stats, there = _contrast(problem, settings, threshold, 0.5 if wanted else None)
    loss_back, stats_back, here = _contrast(back, settings, threshold, 0.5 if wanted else None)
    seen = [[value for value in pair if not isnan(value)] for pair in zip(stats, stats_back, strict=True)]
    both = HEXStats(*(sum(values) / len(values) if values else float("nan") for values in seen))
    both = both._replace(skipped_anchors=HEXStats(*stats).skipped_anchors + HEXStats(*stats_back).skipped_anchors)
    gradients = None if there is None or here is None else (
        there[0] + here[1], there[1] + here[0], None, there[3] + here[3])
    return (loss + loss_back) / 2, gradients, both


def hex_loss(
    *views: ArrayLike, labels: ArrayLike | None = None, threshold: str | float | Array | None = "adaptive",
    temperature: float = 0.1, beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0,
    formulation: str = "weighted", positives: str = "sum", denominator: str = "all", normalize: bool = True,
    reduction: str = "mean", return_gradients: bool = True,
) -> HEXResult:
    """`hexssl.hex_loss` of arrays, with its gradients (HEX, WACV 2025, arXiv 2410.23200).

    Parameters
    ----------
    views : two or more (B, D) arrays of float32, float64 or float16, or one (rows, D) array with `labels`
        Any strides. Half precision is computed in float32.
    labels : (B,), or of one array (rows,), integers or bool, or None
    threshold : "adaptive", "adaptive-negatives", number, () or array of floats, one for each anchor, or None
        "adaptive": the mean over the anchors of the 0.99 quantile of their cosines, "adaptive-negatives" of those with
        their negatives.
    temperature : float > 0
    beta, tau_plus, local_weight, formulation, positives, denominator, normalize, reduction
        As in `hexssl.hex_loss`.
    return_gradients : bool
        False: only the loss and the statistics are computed.

    Returns
    -------
    HEXResult, with `ViewGradients`

    Raises
    ------
    TypeError, ValueError
        Before any work, naming the argument, what was given and what is accepted.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> first, second = np.random.default_rng(0).standard_normal((2, 8, 8))
    >>> loss, gradients, stats = arrays.hex_loss(first, second, threshold=0.5)
    >>> loss.shape, gradients.views[0].shape, stats.threshold
    ((), (8, 8), 0.5)
    """
    problem = array_problem.view_problem(views, labels, normalize)
    settings = array_problem.make_settings(temperature, beta, tau_plus, local_weight, formulation, positives,
                                           denominator, reduction)
    loss, gradients, stats = _result(problem, settings, threshold, return_gradients)
    if gradients is not None:
        gradients = ViewGradients(tuple(np.split(gradients[0], len(views))), gradients[3])
    return HEXResult(loss, gradients, stats)


def info_nce(
    *views: ArrayLike, labels: ArrayLike | None = None, temperature: float = 0.1, positives: str = "sum",
    denominator: str = "all", normalize: bool = True, reduction: str = "mean", return_gradients: bool = True,
) -> HEXResult:
    """`hexssl.info_nce` of arrays (NT-Xent, SupCon, decoupled contrastive learning): `hex_loss` without hierarchical
    negatives.

    Parameters, returns and errors are those of `hex_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> round(float(arrays.info_nce(np.eye(4)[:2], np.eye(4)[2:], temperature=1.0).loss), 4)  # log 3
    1.0986
    """
    return hex_loss(*views, labels=labels, threshold=None, temperature=temperature, positives=positives,
                    denominator=denominator, normalize=normalize, reduction=reduction,
                    return_gradients=return_gradients)


def cross_hex_loss(
    anchors: ArrayLike, keys: ArrayLike, queue: ArrayLike | None = None, *, paired: ArrayLike | None = None,
    labels: ArrayLike | None = None, key_labels: ArrayLike | None = None, relation: ArrayLike | None = None,
    self_offset: int | None = None, symmetric: bool = False, threshold: str | float | Array | None = "adaptive",
    temperature: float = 0.1, beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0,
    formulation: str = "weighted", positives: str = "sum", denominator: str = "all", normalize: bool = True,
    reduction: str = "mean", return_gradients: bool = True,
) -> HEXResult:
    """`hexssl.cross_hex_loss` of arrays, with its gradients.

    Parameters
    ----------
    anchors, keys, queue, paired : (M, D), (N, D), (Q, D) and (M, D) arrays of one floating dtype
    labels, key_labels, relation, self_offset, symmetric
        As in `hexssl.cross_hex_loss`.
    threshold, temperature, beta, tau_plus, local_weight, formulation, positives, denominator
        As in `hex_loss`.
    normalize, reduction, return_gradients
        As in `hex_loss`.

    Returns
    -------
    HEXResult, with `Gradients`

    Raises
    ------
    TypeError, ValueError
        As `hex_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> loss, gradients, stats = arrays.cross_hex_loss(np.eye(4), np.eye(4), np.ones((6, 4)), temperature=0.2)
    >>> gradients.queue.shape, stats.skipped_anchors
    ((6, 4), 0.0)
    """
    problem = array_problem.cross_problem(anchors, keys, queue, paired, labels, key_labels, relation, self_offset,
                                          symmetric, normalize, reduction)
    settings = array_problem.make_settings(temperature, beta, tau_plus, local_weight, formulation, positives,
                                           denominator, reduction)
    loss, gradients, stats = _result(problem, settings, threshold, return_gradients, symmetric)
    if gradients is not None:
        of_anchors, of_keys, of_paired, of_temperature = gradients
        gradients = (Gradients(of_anchors, of_keys, None, of_paired, of_temperature) if queue is None else
                     Gradients(of_anchors, of_paired, of_keys, None, of_temperature))
    return HEXResult(loss, gradients, stats)


def cross_info_nce(
    anchors: ArrayLike, keys: ArrayLike, queue: ArrayLike | None = None, *, paired: ArrayLike | None = None,
    labels: ArrayLike | None = None, key_labels: ArrayLike | None = None, relation: ArrayLike | None = None,
    self_offset: int | None = None, symmetric: bool = False, temperature: float = 0.1, positives: str = "sum",
    denominator: str = "all", normalize: bool = True, reduction: str = "mean", return_gradients: bool = True,
) -> HEXResult:
    """`hexssl.cross_info_nce` of arrays: `cross_hex_loss` without hierarchical negatives.

    Parameters, returns and errors are those of `cross_hex_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> images, texts = np.eye(4), np.eye(4)
    >>> float(arrays.cross_info_nce(images, texts, temperature=1.0).loss)  # -log(e / (e + 3))
    0.743668...
    """
    return cross_hex_loss(anchors, keys, queue, paired=paired, labels=labels, key_labels=key_labels, relation=relation,
                          self_offset=self_offset, symmetric=symmetric, threshold=None, temperature=temperature,
                          positives=positives, denominator=denominator, normalize=normalize, reduction=reduction,
                          return_gradients=return_gradients)


def similarity_stats(
    anchors: ArrayLike, keys: ArrayLike | None = None, *, labels: ArrayLike | None = None,
    key_labels: ArrayLike | None = None, relation: ArrayLike | None = None, self_offset: int | None = None,
    quantile: float = 0.99, rows: str = "all", normalize: bool = True,
) -> RowStats:
    """`hexssl.similarity_stats` of arrays: statistics of the cosines of every anchor with the keys.

    Parameters
    ----------
    anchors, keys, labels, key_labels, relation, self_offset, quantile, rows, normalize
        As in `hexssl.similarity_stats`.

    Returns
    -------
    RowStats

    Raises
    ------
    TypeError, ValueError
        As `hex_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> stats = arrays.similarity_stats(np.array([[1.0, 0.0], [0.0, 2.0]]))
    >>> stats.min.tolist(), stats.max.tolist(), stats.count.tolist()
    ([0.0, 0.0], [1.0, 1.0], [2.0, 2.0])
    """
    quantile = validation.statistic(quantile, rows)
    problem = array_problem.make_problem(anchors, keys, None, labels, key_labels, relation, self_offset, normalize)
    if rows == "negatives" and keys is None and labels is None and relation is None:
        validation.refuse_value("anchors", problem["anchors"], "with rows='negatives' labels or a relation, which say "
                                "who is a negative: labels=np.tile(np.arange(B), 2) for two stacked views")
    stats, _, _ = _C.measure(**problem, quantile=quantile, negatives_only=validation.ROWS[rows],
                             want=_C.WANT_QUANTILE | _C.WANT_MOMENTS)
    return RowStats(*(np.ascontiguousarray(column) for column in stats.T))
