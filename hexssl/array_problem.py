"""Problems of NumPy arrays, in the words of the core: what `hexssl.problem` is for tensors. No torch tensors here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hexssl import cross_rules, validation

Array = NDArray[Any]


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


def view_problem(views: tuple[ArrayLike, ...], labels: ArrayLike | None, normalize: bool) -> dict[str, Any]:
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
        problem |= {"period": 0, "labels": np.tile(_labels("labels", labels, rows), len(each))}
    return problem


def make_problem(anchors: ArrayLike, keys: ArrayLike | None, paired: ArrayLike | None, labels: ArrayLike | None,
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
        problem["labels"] = _labels("labels", labels, m)
        problem["key_labels"] = None if key_labels is None else _labels("key_labels", key_labels, n)
    elif paired is None:
        problem["period"] = max(m, n)
    return problem


def cross_problem(anchors: ArrayLike, keys: ArrayLike, queue: ArrayLike | None, paired: ArrayLike | None,
                   labels: ArrayLike | None, key_labels: ArrayLike | None, relation: ArrayLike | None,
                   self_offset: int | None, symmetric: bool, normalize: bool, reduction: str) -> dict[str, Any]:
    """See `hexssl.problem.cross_problem`, whose rules these are."""
    cross_rules.together(validation.flag("symmetric", symmetric), queue, paired, self_offset)
    if queue is not None:
        rows = _embeddings("anchors", anchors)
        queue, keys = _embeddings("queue", queue, rows), _one_each("keys", keys, rows)
        return make_problem(rows, queue, keys, labels, key_labels, relation, self_offset, normalize)
    if keys is anchors and self_offset is not None and (key_labels is None or key_labels is labels):
        if labels is None and relation is None and paired is None:
            validation.refuse_value("self_offset", self_offset, "with labels, relation or paired only, where the keys "
                                                                "are the anchors")
        return make_problem(anchors, None, paired, labels, None, relation, self_offset, normalize)
    rows = _embeddings("anchors", anchors)
    columns = _embeddings("keys", keys, rows)
    if all(given is None for given in (labels, key_labels, relation, paired)):
        cross_rules.a_key_each(rows, columns)
    cross_rules.as_many_keys(rows, columns, symmetric, reduction)
    return make_problem(rows, columns, paired, labels, key_labels, relation, self_offset, normalize)


def make_settings(temperature: float, beta: float, tau_plus: float, local_weight: float, formulation: str,
              positives: str, denominator: str, reduction: str) -> dict[str, Any]:
    """The core's words for how the loss is formed."""
    tau = validation.number("temperature", temperature, 0.0, open_low=True, open_high=True,
                            accepted="a finite number > 0")
    beta, tau_plus, local_weight = validation.weights(beta, tau_plus, local_weight)
    validation.form(formulation, positives, denominator, reduction, True, local_weight)
    return {"temperature": tau, "beta": beta, "tau_plus": tau_plus, "local_weight": local_weight,
            "formulation": validation.FORMULATIONS[formulation], "positives": validation.POSITIVES[positives],
            "denominator": validation.DENOMINATORS[denominator], "reduction": validation.REDUCTIONS[reduction]}


def checked_threshold(value: Any, rows: int) -> Any:
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
