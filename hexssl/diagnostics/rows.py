"""What every diagnostic is asked about: rows of embeddings, which sample each is a view of, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hexssl import validation
from hexssl.problem import Labels

Array: TypeAlias = NDArray[Any]
Levels: TypeAlias = Labels | Sequence[Labels]

_ACCEPTED = "an array or a CPU tensor of floating-point numbers, (rows, columns), rows >= 1 and columns >= 1"
_ACCEPTED_LABELS = ("None, one label per sample as integers or bool, a sequence of such arrays from the finest level "
                    "to the coarsest, or an array (samples, levels) of these as columns")
_BLOCK_BYTES = 4 << 20  # of rows, as float64, that are worked on at once


class Level(NamedTuple):
    """One level of labels.

    name : what a group of this level is called: "class"
    number : (N,) int32, 0 to len(labels) - 1, of every row
    labels : (C,) int64, ascending, what the numbers stand for
    """

    name: str
    number: Array
    labels: Array


class Rows(NamedTuple):
    """Rows that are finite, one view below the other.

    values : (N, D) float16, float32 or float64
    sample : (N,) int32, equal for the views of a sample
    levels : from the finest to the coarsest
    kept : (rows given,) bool, which of them these are
    """

    values: Array
    sample: Array
    levels: tuple[Level, ...]
    kept: Array

    @property
    def left_out(self) -> int:
        return int(self.kept.size - self.kept.sum())


def _embeddings(name: str, value: Any) -> Array:
    if isinstance(value, Tensor):
        validation.embeddings(name, value)
        if not value.is_cpu:
            validation.refuse_value(name, value, f"{_ACCEPTED}; .cpu() brings it there")
        value = value.detach()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        validation.refuse_value(name, value, "an array without masked elements: fill them, or leave their rows out")
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths
        validation.refuse_type(name, value, _ACCEPTED)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        validation.refuse_type(name, value, _ACCEPTED)
    if array.ndim != 2 or array.size == 0:
        validation.refuse_value(name, value, _ACCEPTED)
    return array


def _stacked(views: tuple[Any, ...]) -> Array:
    if not views:
        raise ValueError(f"views: got none; accepted: one or more, each {_ACCEPTED}")
    each = [_embeddings(f"views[{index}]", view) for index, view in enumerate(views)]
    for index, view in enumerate(each):
        if view.shape != each[0].shape or view.dtype != each[0].dtype:
            validation.refuse_value(f"views[{index}]", views[index],
                                    f"the shape and dtype of views[0], {validation.describe(views[0])}")
    return each[0] if len(each) == 1 else np.concatenate(each)


def _label_array(name: str, value: Any) -> Array:
    return validation.label_array(name, value.detach().cpu().numpy() if isinstance(value, Tensor) else value)


def label_columns(labels: Any, samples: int) -> list[Array]:
    """Labels as they may be given, as one (samples,) int64 array per level."""
    if labels is None:
        return []
    if isinstance(labels, list | tuple) and labels and not isinstance(labels[0], int | np.integer | np.bool_):
        each = [_label_array(f"labels[{index}]", level) for index, level in enumerate(labels)]
        names = [f"labels[{index}]" for index in range(len(each))]
    else:
        array = _label_array("labels", labels)
        each = [array] if array.ndim == 1 else list(array.T) if array.ndim == 2 else []
        names = ["labels"] * len(each)
    for name, level in zip(names, each, strict=True):
        if level.shape != (samples,):
            validation.refuse_value(name, labels, f"{_ACCEPTED_LABELS}; there are {samples} samples")
    if not each:
        validation.refuse_value("labels", labels, _ACCEPTED_LABELS)
    return each


def _check_nested(levels: tuple[Level, ...]) -> None:
    for fine, coarse in zip(levels, levels[1:], strict=False):
        of_class = np.zeros(len(fine.labels), np.int32)
        of_class[fine.number] = coarse.number
        wrong = of_class[fine.number] != coarse.number
        if wrong.any():
            label = fine.labels[fine.number[wrong.argmax()]]
            raise ValueError(f"labels: got {fine.name} {label} in more than one {coarse.name}; accepted: levels from "
                             "the finest to the coarsest, each group within one of the next. Numbers that begin anew "
                             f"in every {coarse.name} become unique as {coarse.name} * {len(fine.labels)} + "
                             f"{fine.name}")


def level_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """What groups of each level are called."""
    if names is None:
        return (*("class", "superclass")[:count], *(f"level {level + 1}" for level in range(2, count)))
    given = tuple(names) if not isinstance(names, str) else (names,)
    if len(given) != count or not all(isinstance(name, str) for name in given):
        validation.refuse_value("names", names, f"{count} words, one for each level of labels")
    return given


def block_rows(columns: int, least: int = 1) -> int:
    """Rows of a block that is worked on in float64, so that no copy of all rows is made."""
    return max(least, _BLOCK_BYTES // (8 * columns))


def unit(rows: Array) -> Array:
    """In float64, of length 1."""
    wide = rows.astype(np.float64)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return wide


def _finite(values: Array) -> Array:
    kept = np.empty(len(values), bool)
    step = block_rows(values.shape[1])
    for first in range(0, len(values), step):
        kept[first : first + step] = np.isfinite(values[first : first + step]).all(1)
    return kept


def rows_of(views: tuple[Any, ...], labels: Any = None, names: Sequence[str] | None = None, least: int = 2) -> Rows:
    """Validate. Rows that are not finite are left out.

    least : how many finite rows there must be
    """
    values = _stacked(views)
    samples, kept = len(values) // len(views), _finite(values)
    columns = label_columns(labels, samples)
    sample = np.tile(np.arange(samples, dtype=np.int32), len(views))
    if kept.sum() < least:
        raise ValueError(f"views: got {int(kept.sum())} finite rows of {len(values)}; accepted: {least} or more")
    if not kept.all():
        values, sample = values[kept], sample[kept]
    levels = []
    for name, column in zip(level_names(names, len(columns)), columns, strict=True):
        found, number = np.unique(np.tile(column, len(views))[kept], return_inverse=True)
        levels.append(Level(name, number.astype(np.int32), found))
    _check_nested(tuple(levels))
    return Rows(values, sample, tuple(levels), kept)
