"""The core's counts of pairs against the naive reference, on every tier: kinds, thresholds, bins, confusions, sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hexssl import _C

CLASSES = 5


def problem(rows: int, columns: int, dtype: Any = np.float64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings, and groups of three levels: pairs of rows, classes, superclasses."""
    draw = np.random.default_rng(seed)
    pairs = np.arange(rows) // 2
    classes = draw.integers(0, CLASSES, rows)[pairs]
    return (draw.standard_normal((rows, columns)).astype(dtype),
            np.stack([pairs, classes, classes // 2]).astype(np.int32))


def compare(z: np.ndarray, groups: np.ndarray, **asked: Any) -> tuple[Any, ...]:
    """Counts are the reference's; returns them. No cosine of these random rows is within rounding of an edge."""
    found = _C.count_pairs(z, groups, **asked)
    expected = _C.reference_count_pairs(z.astype(np.float64), groups, **asked)
    for got, wanted in zip(found[:3], expected[:3], strict=True):
        if wanted is None:
            assert got is None
        else:
            np.testing.assert_array_equal(got, wanted)
    # a term is rounded by its cosine's rounding times the exponent, some 1e-6 of it in float32, and errors cancel
    tolerance = 1e-12 if z.dtype == np.float64 else 1e-5
    assert abs(found[3] - expected[3]) <= tolerance * expected[3]
    assert found[4] == expected[4] == 0
    return found


# Around a panel (8 and 16), a block of 64 or 128, and of several blocks, the last of them not full.
@pytest.mark.parametrize("rows", [2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 129, 300, 700])
@pytest.mark.parametrize("threshold", ["none", "one", "each"])
def test_counts_are_those_of_the_reference(rows: int, threshold: str) -> None:
    z, groups = problem(rows, 6)
    value = {"none": None, "one": 0.2, "each": np.random.default_rng(1).uniform(-0.5, 0.5, rows)}[threshold]
    histogram, hierarchical, confusions, _, _ = compare(z, groups, threshold=value, bins=41, classes=CLASSES,
                                                        class_level=1, exponent=4.0)
    assert histogram.sum() == rows * (rows - 1)
    assert hierarchical.sum() == confusions.sum() == histogram[1:, 1].sum()
    assert (hierarchical.sum() > 0) == (threshold != "none" and rows > 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_other_dtypes(dtype: Any) -> None:
    z, groups = problem(150, 12, dtype, 3)
    compare(z, groups, threshold=0.3, bins=7, exponent=1.0)
    compare(np.asfortranarray(z), groups, threshold=0.3, bins=7)


@pytest.mark.parametrize("columns", [1, 7, 130])
def test_columns(columns: int) -> None:
    """With one column every cosine is 1 or -1: the last bin, and a threshold that none exceeds, or all do."""
    z, groups = problem(70, columns)
    for threshold in (1.0, -1.5, 0.0):
        histogram = compare(z, groups, threshold=threshold, bins=10)[0]
        assert (histogram[:, 1].sum() == 0) == (threshold == 1.0)
        assert (histogram[:, 0].sum() == 0) == (threshold == -1.5)


def test_one_level_and_many() -> None:
    z, groups = problem(90, 5)
    compare(z, groups[:1], threshold=0.1, bins=9)
    compare(z, np.zeros((_C.MOST_LEVELS, 90), np.int32), threshold=0.1, bins=9)
    compare(z, np.stack([np.arange(90)] * _C.MOST_LEVELS).astype(np.int32), threshold=0.1, bins=9)


def test_only_the_sum() -> None:
    z, groups = problem(70, 5)
    found = _C.count_pairs(z, groups, exponent=4.0)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    terms = np.exp(4 * (unit @ unit.T - 1))
    assert found[:3] == (None, None, None)
    assert abs(found[3] - (terms.sum() - np.trace(terms))) <= 1e-12 * found[3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_exponents(dtype: Any) -> None:
    """Opposite rows have the smallest term, which is a normal number."""
    most = 345.0 if dtype == np.float64 else 40.0
    found = _C.count_pairs(np.array([[1, 0], [-1, 0]], dtype), np.zeros((1, 2), np.int32), exponent=most)[3]
    assert abs(found / 2 - np.exp(-2 * most)) <= 1e-5 * np.exp(-2 * most)  # float32's exponential: a few units


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_threads(dtype: Any) -> None:
    """The same to the last bit: 1200 rows are 10 blocks, whose tiles several threads take."""
    z, groups = problem(1200, 40, dtype)
    before, found = torch.get_num_threads(), []
    asked: dict[str, Any] = {"bins": 64, "classes": CLASSES, "class_level": 1, "exponent": 4.0}
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            for threshold in (0.1, np.linspace(-0.2, 0.2, 1200)):
                found.append(_C.count_pairs(z, groups, threshold=threshold, **asked))
    finally:
        torch.set_num_threads(before)
    for index, one in enumerate(found):
        for got, wanted in zip(one, found[index % 2], strict=True):
            assert np.array_equal(got, wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_told(bad: float) -> None:
    z, groups = problem(20, 4)
    z[3, 1] = z[17, 0] = bad
    for count in (_C.count_pairs, _C.reference_count_pairs):
        assert count(z, groups, bins=4)[4] == 2


@pytest.mark.parametrize(("changes", "words"), [
    ({"groups": np.zeros((0, 20), np.int32)}, "levels"),
    ({"groups": np.zeros((33, 20), np.int32)}, "levels"),
    ({"groups": np.zeros((1, 19), np.int32)}, "groups: accepted: shape"),
    ({"groups": np.zeros(20, np.int32)}, "groups"),
    ({"threshold": np.zeros(3)}, "threshold"),
    ({"bins": -1}, "bins"),
    ({"bins": 2**16 + 1}, "bins"),
    ({"classes": 1, "bins": 0}, "classes"),
    ({"classes": -1}, "classes"),
    ({"classes": 2**15 + 1}, "classes"),
    ({"classes": 2, "groups": np.full((1, 20), 2, np.int32)}, "class_level"),
    ({"classes": 2, "groups": np.full((1, 20), -1, np.int32)}, "class_level"),
    ({"class_level": 1}, "class_level"),
    ({"exponent": -1.0}, "exponent"),
    ({"exponent": float("nan")}, "exponent"),
    ({"exponent": 345.1}, "exponent"),
])
def test_wrong_arguments(changes: dict[str, Any], words: str) -> None:
    asked = {"anchors": problem(20, 4)[0], "groups": np.zeros((1, 20), np.int32), "bins": 4, **changes}
    for count in (_C.count_pairs, _C.reference_count_pairs):
        with pytest.raises(ValueError, match=words):
            count(**asked)
