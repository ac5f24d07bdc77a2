"""The losses on NumPy arrays: value, gradients and statistics in one call, without torch tensors.

The functions mirror those of `hexssl` and run the same core, on torch's threads, with the GIL released while computing.
"""

from __future__ import annotations

from math import inf, isnan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hexssl import validation
from hexssl.core import _C
from hexssl.thresholds import WORDS

__all__ = ["Gradients", "HEXResult", "HEXStats", "RowStats", "ViewGradients", "cross_hex_loss", "cross_info_nce",
           "hex_loss", "info_nce", "similarity_stats"]

Array = NDArray[Any]
Floats = NDArray[np.float64]


class HEXStats(NamedTuple):
    """What the loss saw. Means over an empty set are NaN.

    threshold : the threshold on the cosine (its mean where there is one per anchor), inf where there is none
    hierarchical_fraction : share of the negatives that lie above the threshold
    positive_similarity, negative_similarity, hierarchical_similarity : mean cosines
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


def _unmasked(name: str, value: ArrayLike) -> Array:
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        validation.refuse_value(name, value, "an array without masked elements: fill them, or leave their rows out")
    return np.asarray(value)


def _embeddings(name: str, value: ArrayLike, anchors: Array | None = None) -> Array:
    accepted = "a (rows, columns) array of float32, float64 or float16, rows >= 1 and columns >= 1"
    array = _unmasked(name, value)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        validation.refuse_type(name, array, accepted)
    if array.ndim != 2 or array.size == 0:
        validation.refuse_value(name, array, accepted)
    if anchors is not None and array.shape[1] != anchors.shape[1]:
        validation.refuse_value(name, array, f"the anchors' {anchors.shape[1]} columns")
    if anchors is not None and array.dtype != anchors.dtype:
        validation.refuse_value(name, array, f"the anchors' {anchors.dtype}")
    return array


def _one_each(name: str, value: ArrayLike, anchors: Array) -> Array:
    array = _embeddings(name, value, anchors)
    if array.shape != anchors.shape:
        validation.refuse_value(name, array, f"one row per anchor, shape {anchors.shape}")
    return array


def _labels(name: str, value: ArrayLike, rows: int) -> Array:
    array = validation.label_array(name, value)
    if array.shape != (rows,):
        validation.refuse_value(name, array, f"a ({rows},) array of integers or bool")
    return array


def _relation(value: ArrayLike, shape: tuple[int, int]) -> Array:
    accepted = (f"a {shape} array of int8: +1 positive, -1 negative, 0 neither; or of bool: True positive, False "
                "negative")
    array = _unmasked("relation", value)
    if array.dtype not in (np.int8, np.bool_):
        validation.refuse_type("relation", array, accepted)
    if array.shape != shape:
        validation.refuse_value("relation", array, accepted)
    if array.dtype == np.bool_:
        return np.where(array, np.int8(1), np.int8(-1))
    if not validation.signs_are_known():
        validation.signs(int(array.min()), int(array.max()))
    return array


def _view_problem(views: tuple[ArrayLike, ...], labels: ArrayLike | None, normalize: bool) -> dict[str, Any]:
    """The core's words for views one below the other, or for one array of labelled rows."""
    accepted = "two or more views of shape (B, D), or one stacked array (rows, D) with labels=(rows,)"
    if len(views) == 0:
        raise ValueError(f"views: got none; accepted: {accepted}")
    first = _embeddings("views[0]", views[0])
    if len(views) == 1 and labels is None:
        raise ValueError(f"views: got {validation.describe(first)} alone, without labels; accepted: {accepted}. Two "
                         "views that lie one below the other are given as *np.split(z, 2)")
    each = [_embeddings(f"views[{index}]", view) for index, view in enumerate(views)]
    for index, view in enumerate(each):
        if view.shape != first.shape or view.dtype != first.dtype:
            validation.refuse_value(f"views[{index}]", view, "the shape and dtype of views[0], "
                                                             f"{validation.describe(first)}")
    rows = first.shape[0]
    problem = {"anchors": first if len(each) == 1 else np.concatenate(each), "keys": None, "self_offset": 0,
               "normalize": validation.flag("normalize", normalize), "period": rows}
    if labels is not None:
        problem |= {"period": 0, "groups": np.tile(_labels("labels", labels, rows), len(each))}
    return problem


def _problem(anchors: ArrayLike, keys: ArrayLike | None, paired: ArrayLike | None, labels: ArrayLike | None,
             key_labels: ArrayLike | None, relation: ArrayLike | None, self_offset: int | None,
             normalize: bool) -> dict[str, Any]:
    """The core's words for any problem. keys : None: the anchors, of which without labels each is alone."""
    rows = _embeddings("anchors", anchors)
    columns = rows if keys is None else _embeddings("keys", keys, rows)
    m, n = rows.shape[0], columns.shape[0]
    problem: dict[str, Any] = {
        "anchors": rows, "keys": None if keys is None else columns, "period": 0,
        "self_offset": validation.offset(self_offset, m, n, keys is None),
        "normalize": validation.flag("normalize", normalize)}
    if paired is not None:
        problem["paired"] = _one_each("paired", paired, rows)
    validation.who(keys is None, labels, key_labels, relation)
    if relation is not None:
        problem["relation"] = _relation(relation, (m, n))
    elif labels is not None:
        problem["groups"] = _labels("labels", labels, m)
        problem["key_groups"] = None if key_labels is None else _labels("key_labels", key_labels, n)
    elif paired is None:
        problem["period"] = max(m, n)
    return problem


def _cross_problem(anchors: ArrayLike, keys: ArrayLike, queue: ArrayLike | None, paired: ArrayLike | None,
                   labels: ArrayLike | None, key_labels: ArrayLike | None, relation: ArrayLike | None,
                   self_offset: int | None, symmetric: bool, normalize: bool, reduction: str) -> dict[str, Any]:
    """See `hexssl.problem.cross_problem`, whose rules these are."""
    if validation.flag("symmetric", symmetric):
        for name, value in (("queue", queue), ("paired", paired), ("self_offset", self_offset)):
            if value is not None:
                validation.refuse_value(name, value, "None with symmetric=True, since it has no other direction")
    if queue is not None:
        if paired is not None:
            validation.refuse_value("paired", paired, "None with a queue, where the keys are the paired positives")
        rows = _embeddings("anchors", anchors)
        queue, keys = _embeddings("queue", queue, rows), _one_each("keys", keys, rows)
        return _problem(rows, queue, keys, labels, key_labels, relation, self_offset, normalize)
    if keys is anchors and self_offset is not None and (key_labels is None or key_labels is labels):
        if labels is None and relation is None and paired is None:
            validation.refuse_value("self_offset", self_offset, "with labels, relation or paired only, where the keys "
                                                                "are the anchors")
        return _problem(anchors, None, paired, labels, None, relation, self_offset, normalize)
    rows = _embeddings("anchors", anchors)
    columns = _embeddings("keys", keys, rows)
    if all(given is None for given in (labels, key_labels, relation, paired)) and len(columns) < len(rows):
        validation.refuse_value("keys", columns, f"without labels, relation or paired a row for each of the {len(rows)}"
                                                 " anchors, key i the positive of anchor i, and others behind them")
    if symmetric and reduction == "none" and len(columns) != len(rows):
        validation.refuse_value("keys", columns, "as many rows as anchors with symmetric=True and reduction='none', "
                                                 f"{len(rows)}")
    return _problem(rows, columns, paired, labels, key_labels, relation, self_offset, normalize)


def _settings(temperature: float, beta: float, tau_plus: float, local_weight: float, formulation: str,
              positives: str, denominator: str, reduction: str) -> dict[str, Any]:
    """The core's words for how the loss is formed."""
    tau = validation.number("temperature", temperature, 0.0, open_low=True, open_high=True,
                            accepted="a finite number > 0")
    beta, tau_plus, local_weight = validation.weights(beta, tau_plus, local_weight)
    validation.form(formulation, positives, denominator, reduction, True, local_weight)
    return {"temperature": tau, "beta": beta, "tau_plus": tau_plus, "local_weight": local_weight,
            "formulation": validation.FORMULATIONS[formulation], "positives": validation.POSITIVES[positives],
            "denominator": validation.DENOMINATORS[denominator], "reduction": validation.REDUCTIONS[reduction]}


def _threshold(value: Any, rows: int) -> Any:
    """None, a float or a float64 array of one value or one per anchor."""
    accepted = ("'adaptive', 'adaptive-negatives', None, a number, or an array of floats of shape () or "
                f"({rows},), without NaN")
    if value is None:
        return None
    if isinstance(value, str):
        validation.refuse_value("threshold", value, accepted)
    if not isinstance(value, np.ndarray):
        return validation.number("threshold", value, accepted=accepted)
    value = _unmasked("threshold", value)
    if value.dtype.kind != "f":
        validation.refuse_type("threshold", value, accepted)
    if value.shape not in ((), (rows,)) or np.isnan(value).any():
        validation.refuse_value("threshold", value, accepted)
    return value.astype(np.float64)


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
        threshold = _threshold(threshold, anchors.shape[0])
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
    back = {**problem, "anchors": problem["keys"], "keys": problem["anchors"], "groups": problem.get("key_groups"),
            "key_groups": problem.get("groups"), "relation": None if relation is None else relation.T}
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
    problem = _view_problem(views, labels, normalize)
    settings = _settings(temperature, beta, tau_plus, local_weight, formulation, positives, denominator, reduction)
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
    threshold, temperature, beta, tau_plus, local_weight, formulation, positives, denominator, normalize, reduction,
    return_gradients
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
    problem = _cross_problem(anchors, keys, queue, paired, labels, key_labels, relation, self_offset, symmetric,
                             normalize, reduction)
    settings = _settings(temperature, beta, tau_plus, local_weight, formulation, positives, denominator, reduction)
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
    problem = _problem(anchors, keys, None, labels, key_labels, relation, self_offset, normalize)
    if rows == "negatives" and keys is None and labels is None and relation is None:
        validation.refuse_value("anchors", problem["anchors"], "with rows='negatives' labels or a relation, which say "
                                "who is a negative: labels=np.tile(np.arange(B), 2) for two stacked views")
    stats, _, _ = _C.measure(**problem, quantile=quantile, negatives_only=validation.ROWS[rows],
                             want=_C.WANT_QUANTILE | _C.WANT_MOMENTS)
    return RowStats(*(np.ascontiguousarray(column) for column in stats.T))
