"""The losses on NumPy arrays: value, gradients and statistics in one call, without torch tensors.

The functions mirror `hexssl.hex_loss`, `hexssl.info_nce` and `hexssl.similarity_stats` and run the same core, on
torch's threads, with the GIL released while computing.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from math import inf
from numbers import Real
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hexssl import validation
from hexssl.core import _C
from hexssl.thresholds import WORDS

__all__ = ["Gradients", "HEXResult", "HEXStats", "RowStats", "hex_loss", "info_nce", "similarity_stats"]

Array = NDArray[Any]
Floats = NDArray[np.float64]

_FORMULATIONS = {"weighted": 0, "released": 1}
_POSITIVES = {"sum": 0, "mean": 1}
_DENOMINATORS = {"all": 0, "own": 1, "negatives": 2}
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_ROWS = {"all": False, "negatives": True}
_WANT_QUANTILE, _WANT_ALL = 1, 3


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
    >>> arrays.hex_loss(np.eye(4), threshold=0.5).stats.positive_similarity
    0.0
    """

    threshold: float
    hierarchical_fraction: float
    positive_similarity: float
    negative_similarity: float
    hierarchical_similarity: float
    skipped_anchors: float


class Gradients(NamedTuple):
    """Derivatives of the loss (of its sum where reduction="none"), in the dtype and shape of their argument.

    keys : None where the keys are the anchors, whose gradient then holds both sides
    paired : None where none was given

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> gradients = arrays.hex_loss(np.eye(4)).gradients
    >>> gradients.anchors.shape, gradients.keys is None
    ((4, 4), True)
    """

    anchors: Array
    keys: Array | None
    paired: Array | None
    temperature: float


class HEXResult(NamedTuple):
    """What the loss functions return.

    loss : float64, a scalar or, with reduction="none", (M,)
    gradients : None unless wanted

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> loss, gradients, stats = arrays.info_nce(np.eye(4))
    >>> round(float(loss), 4)  # log 3
    1.0986
    """

    loss: Any
    gradients: Gradients | None
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


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}, {value.dtype}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}, {value.dtype}"
    return f"{reprlib.repr(value)} of type {type(value).__name__}"


def _refuse(kind: type[Exception], name: str, value: Any, accepted: str) -> NoReturn:
    raise kind(f"{name}: got {_describe(value)}; accepted: {accepted}")


def _number(name: str, value: Any, accepted: str, low: float = -inf, high: float = inf, *, open_low: bool = False,
            open_high: bool = False) -> float:
    """A plain number in the interval; NaN is in none."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        _refuse(TypeError, name, value, accepted)
    try:
        number = float(value)
    except OverflowError:
        _refuse(ValueError, name, value, accepted)
    inside = (low < number if open_low else low <= number) and (number < high if open_high else number <= high)
    if not inside:
        _refuse(ValueError, name, value, accepted)
    return number


def _choice(name: str, value: Any, options: Mapping[str, int]) -> int:
    accepted = " or ".join(repr(option) for option in options)
    if not isinstance(value, str):
        _refuse(TypeError, name, value, accepted)
    if value not in options:
        _refuse(ValueError, name, value, accepted)
    return options[value]


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        _refuse(TypeError, name, value, "True or False")
    return bool(value)


def _unmasked(name: str, value: ArrayLike) -> Array:
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        _refuse(ValueError, name, value, "an array without masked elements: fill them, or leave their rows out")
    return np.asarray(value)


def _embeddings(name: str, value: ArrayLike, anchors: Array | None = None) -> Array:
    accepted = "a (rows, columns) array of float32, float64 or float16, rows >= 1 and columns >= 1"
    array = _unmasked(name, value)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        _refuse(TypeError, name, array, accepted)
    if array.ndim != 2 or array.size == 0:
        _refuse(ValueError, name, array, accepted)
    if anchors is not None and array.shape[1] != anchors.shape[1]:
        _refuse(ValueError, name, array, f"the anchors' {anchors.shape[1]} columns")
    if anchors is not None and array.dtype != anchors.dtype:
        _refuse(ValueError, name, array, f"the anchors' {anchors.dtype}")
    return array


def _ids(name: str, value: ArrayLike, rows: int) -> Array:
    array = _unmasked(name, value)
    if array.dtype.kind not in "iu":
        _refuse(TypeError, name, array, f"a ({rows},) array of integers")
    if array.shape != (rows,):
        _refuse(ValueError, name, array, f"a ({rows},) array of integers")
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        _refuse(ValueError, name, array, "integers below 2**63")
    return array.astype(np.int64)


def _relation(value: ArrayLike, shape: tuple[int, int]) -> Array:
    accepted = (f"a {shape} array of int8: +1 positive, -1 negative, 0 neither; or of bool: True positive, False "
                "negative")
    array = _unmasked("relation", value)
    if array.dtype not in (np.int8, np.bool_):
        _refuse(TypeError, "relation", array, accepted)
    if array.shape != shape:
        _refuse(ValueError, "relation", array, accepted)
    if array.dtype == np.bool_:
        return np.where(array, np.int8(1), np.int8(-1))
    if not validation.signs_are_known():
        validation.signs(int(array.min()), int(array.max()), 5)
    return array


def _offset(value: Any, highest: int, same: bool) -> int:
    """Key ``i + offset`` is anchor i; -1: no key is an anchor."""
    if value is None:
        return 0 if same else -1
    accepted = "None or 0 where the keys are the anchors" if same else (
        f"None or an int in [0, keys - anchors = {highest}]")
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        _refuse(TypeError, "self_offset", value, accepted)
    if not 0 <= value <= highest:
        _refuse(ValueError, "self_offset", value, accepted)
    return int(value)


def _problem(anchors: ArrayLike, keys: ArrayLike | None, groups: ArrayLike | None, key_groups: ArrayLike | None,
             relation: ArrayLike | None, self_offset: int | None, normalize: bool,
             paired: ArrayLike | None = None) -> dict[str, Any]:
    """The core's words for who is compared with whom."""
    rows = _embeddings("anchors", anchors)
    columns = rows if keys is None else _embeddings("keys", keys, rows)
    problem: dict[str, Any] = {
        "anchors": rows, "keys": None if keys is None else columns, "period": 0,
        "self_offset": _offset(self_offset, columns.shape[0] - rows.shape[0], keys is None),
        "normalize": _flag("normalize", normalize)}
    if paired is not None:
        problem["paired"] = _embeddings("paired", paired, rows)
        if problem["paired"].shape != rows.shape:
            _refuse(ValueError, "paired", problem["paired"], f"one row per anchor, shape {rows.shape}")
    if relation is not None:
        if groups is not None or key_groups is not None:
            raise ValueError("relation: given beside groups or key_groups; accepted: one of the two")
        problem["relation"] = _relation(relation, (rows.shape[0], columns.shape[0]))
    elif groups is not None or key_groups is not None:
        if keys is None and key_groups is not None:
            raise ValueError("key_groups: given without keys; accepted: groups alone where the keys are the anchors")
        if keys is not None and (groups is None or key_groups is None):
            raise ValueError("groups, key_groups: one given without the other; accepted: both or neither with keys")
        assert groups is not None
        problem["groups"] = _ids("groups", groups, rows.shape[0])
        problem["key_groups"] = None if key_groups is None else _ids("key_groups", key_groups, columns.shape[0])
    elif keys is not None and paired is None:
        problem["period"] = max(rows.shape[0], columns.shape[0])
    elif paired is None:
        if rows.shape[0] % 2 != 0:
            _refuse(ValueError, "anchors", rows, "an even number of rows (two stacked views), or groups")
        problem["period"] = rows.shape[0] // 2
    return problem


def _settings(temperature: float, beta: float, tau_plus: float, local_weight: float, formulation: str,
              positives: str, denominator: str, reduction: str) -> dict[str, Any]:
    """The core's words for how the loss is formed."""
    settings = {
        "temperature": _number("temperature", temperature, "a finite number > 0", 0, open_low=True, open_high=True),
        "beta": _number("beta", beta, "a finite number >= 0", 0, open_high=True),
        "tau_plus": _number("tau_plus", tau_plus, "a number in [0, 1)", 0, 1, open_high=True),
        "local_weight": _number("local_weight", local_weight, "a finite number >= 0", 0, open_high=True),
        "formulation": _choice("formulation", formulation, _FORMULATIONS),
        "positives": _choice("positives", positives, _POSITIVES),
        "denominator": _choice("denominator", denominator, _DENOMINATORS),
        "reduction": _choice("reduction", reduction, _REDUCTIONS),
    }
    if formulation == "released":
        defaults = {"positives": (positives, "sum"), "denominator": (denominator, "all"),
                    "local_weight": (local_weight, 1.0)}
        for name, (given, default) in defaults.items():
            if given != default:
                _refuse(ValueError, name, given,
                        f"the default {default!r} with formulation='released', where it has no effect")
    elif denominator == "own" and positives == "sum":
        _refuse(ValueError, "denominator", denominator, "'own' only with positives='mean', else 'all' or 'negatives'")
    return settings


def _arithmetic(temperature: float, beta: float, dtype: np.dtype[Any]) -> None:
    """Half precision is computed in float32."""
    limits = np.finfo(np.float64 if dtype.itemsize == 8 else np.float32)
    least, most = float(limits.tiny), float(limits.max)  # not compared in the narrow dtype
    if temperature < least:
        _refuse(ValueError, "temperature", temperature,
                f"a finite number >= {least}, the smallest normal number of {limits.dtype}, in which {dtype} is "
                "computed")
    if beta > most:
        _refuse(ValueError, "beta", beta,
                f"a number in [0, {most}], the largest of {limits.dtype}, in which {dtype} is computed")


def _threshold(value: Any, rows: int) -> Any:
    """None, a float or a float64 array of one value or one per anchor."""
    accepted = ("'adaptive', 'adaptive-negatives', None, a number, or an array of floats of shape () or "
                f"({rows},), without NaN")
    if value is None:
        return None
    if isinstance(value, str):
        _refuse(ValueError, "threshold", value, accepted)
    if not isinstance(value, np.ndarray):
        return _number("threshold", value, accepted)
    value = _unmasked("threshold", value)
    if value.dtype.kind != "f":
        _refuse(TypeError, "threshold", value, accepted)
    if value.shape not in ((), (rows,)) or np.isnan(value).any():
        _refuse(ValueError, "threshold", value, accepted)
    return value.astype(np.float64)


def hex_loss(
    anchors: ArrayLike, keys: ArrayLike | None = None, *, paired: ArrayLike | None = None,
    groups: ArrayLike | None = None, key_groups: ArrayLike | None = None, relation: ArrayLike | None = None,
    self_offset: int | None = None, threshold: str | float | Array | None = "adaptive", temperature: float = 0.1,
    beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted",
    positives: str = "sum", denominator: str = "all", normalize: bool = True, reduction: str = "mean",
    return_gradients: bool = True, labels: None = None,
) -> HEXResult:
    """The HEX loss of a batch of embeddings (HEX, WACV 2025, arXiv 2410.23200), with its gradients.

    Parameters
    ----------
    anchors : (M, D) array of float32, float64 or float16
        Embeddings, any strides. Half precision is computed in float32.
    keys : (N, D) array of the anchors' dtype, or None
        What the anchors are compared with. None: the anchors themselves, an anchor never with itself. Given, without
        `paired` or group ids: key i is the positive of anchor i, all others are its negatives.
    paired : (M, D) array or None
        One more positive per anchor that is nobody's negative; without group ids every key is then a negative.
    groups, key_groups : (M,) and (N,) integer arrays or None
        Rows with equal ids are positives, others negatives; `key_groups` only with `keys`. Default where the keys are
        the anchors: two stacked views, row i and row i + M/2.
    relation : (M, N) int8 or bool array or None
        In place of group ids: +1 positive, -1 negative, 0 neither; or True positive, False negative.
    self_offset : int in [0, N - M] or None
        Key ``i + self_offset`` is anchor i itself. None: 0 where the keys are the anchors, else none is.
    threshold : "adaptive", "adaptive-negatives", number, () or (M,) array of floats, or None
        On the cosine; negatives strictly above it are hierarchical: none where it is >= 1, all where it is < -1.
        "adaptive": the mean over the anchors of the 0.99 quantile of their cosines; "adaptive-negatives": of those with
        their negatives. None: no hierarchical negatives, which with formulation="weighted" is InfoNCE.
    temperature : float > 0
        Finite, and no less than the smallest normal number of the dtype of computation (1.2e-38; 2.3e-308 for float64).
    beta : float >= 0
        Concentration of the hardness weights (Robinson et al., ICLR 2021).
    tau_plus : float in [0, 1)
        Class prior of the debiasing (Chuang et al., NeurIPS 2020).
    local_weight : float >= 0
        Weight of the hierarchical negatives' term.
    formulation : "weighted" or "released"
        The paper's decomposition, or what the authors' published code computes.
    positives : "sum" or "mean"
    denominator : "all", "own" (needs positives="mean") or "negatives"
    normalize : bool
        Divide rows by ``max(norm, 1e-12)``; False: use them as they are.
    reduction : "mean", "sum" or "none"
    return_gradients : bool
        False: only the loss and the statistics are computed.
    labels : None
        Refused: labels are given as `groups`.

    Returns
    -------
    HEXResult

    Raises
    ------
    TypeError, ValueError
        Before any work, naming the argument, what was given and what is accepted.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> views = np.random.default_rng(0).standard_normal((16, 8))
    >>> loss, gradients, stats = arrays.hex_loss(views, threshold=0.5)
    >>> loss.shape, gradients.anchors.shape, gradients.keys, stats.threshold
    ((), (16, 8), None, 0.5)
    """
    validation.mistaken(labels, None)
    problem = _problem(anchors, keys, groups, key_groups, relation, self_offset, normalize, paired)
    settings = _settings(temperature, beta, tau_plus, local_weight, formulation, positives, denominator, reduction)
    _arithmetic(settings["temperature"], settings["beta"], problem["anchors"].dtype)
    _flag("return_gradients", return_gradients)
    rows, token = problem["anchors"].shape[0], 0
    if isinstance(threshold, str) and threshold in WORDS:
        who = {name: value for name, value in problem.items() if name != "paired"}
        negatives_only = _ROWS[WORDS[threshold]]
        _, threshold, token = _C.measure(**who, quantile=0.99, negatives_only=negatives_only, want=_WANT_QUANTILE,
                                         keep=True)
        if negatives_only and np.isnan(threshold):  # there are none
            threshold = inf
    else:
        threshold = _threshold(threshold, rows)
    grad = np.ones(rows if reduction == "none" else ()) if return_gradients else None
    loss, stats, gradients = _C.contrast(**problem, **settings, threshold=threshold, grad=grad, token=token)
    return HEXResult(loss[()], None if gradients is None else Gradients(*gradients), HEXStats(*stats.tolist()))


def info_nce(
    anchors: ArrayLike, keys: ArrayLike | None = None, *, paired: ArrayLike | None = None,
    groups: ArrayLike | None = None, key_groups: ArrayLike | None = None, relation: ArrayLike | None = None,
    self_offset: int | None = None, temperature: float = 0.1, positives: str = "sum", denominator: str = "all",
    normalize: bool = True, reduction: str = "mean", return_gradients: bool = True, labels: None = None,
) -> HEXResult:
    """InfoNCE (NT-Xent, SupCon, decoupled contrastive learning): `hex_loss` without hierarchical negatives.

    Parameters, returns and errors are those of `hex_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> images, texts = np.eye(4), np.eye(4)
    >>> float(arrays.info_nce(images, texts, temperature=1.0).loss)  # -log(e / (e + 3))
    0.743668...
    """
    return hex_loss(anchors, keys, paired=paired, groups=groups, key_groups=key_groups, relation=relation,
                    self_offset=self_offset, threshold=None, temperature=temperature, positives=positives,
                    denominator=denominator, normalize=normalize, reduction=reduction,
                    return_gradients=return_gradients, labels=labels)


def similarity_stats(
    anchors: ArrayLike, keys: ArrayLike | None = None, *, groups: ArrayLike | None = None,
    key_groups: ArrayLike | None = None, relation: ArrayLike | None = None, self_offset: int | None = None,
    quantile: float = 0.99, rows: str = "all", normalize: bool = True, labels: None = None,
) -> RowStats:
    """Statistics of the cosines of every anchor with the keys.

    Parameters
    ----------
    anchors, keys, groups, key_groups, relation, self_offset, normalize
        As in `hex_loss`.
    quantile : float in [0, 1]
        "Nearest": the element at ``round_half_even(quantile * (n - 1))`` of the ascending row.
    rows : "all" or "negatives"
        Over all keys, the anchor itself and its positives included, or over its negatives.

    Returns
    -------
    RowStats

    Examples
    --------
    >>> import numpy as np
    >>> from hexssl import arrays
    >>> stats = arrays.similarity_stats(np.array([[1.0, 0.0], [0.0, 2.0]]))
    >>> stats.min.tolist(), stats.max.tolist(), stats.count.tolist()
    ([0.0, 0.0], [1.0, 1.0], [2.0, 2.0])
    """
    validation.mistaken(labels, None)
    problem = _problem(anchors, keys, groups, key_groups, relation, self_offset, normalize)
    negatives_only = bool(_choice("rows", rows, _ROWS))
    quantile = _number("quantile", quantile, "a number in [0, 1]", 0, 1)
    stats, _, _ = _C.measure(**problem, quantile=quantile, negatives_only=negatives_only, want=_WANT_ALL)
    return RowStats(*(np.ascontiguousarray(column) for column in stats.T))
