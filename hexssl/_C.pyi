"""The extension: the core on NumPy arrays. Enums are the ints of csrc/hex.h; None is an absent argument."""

from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROW_STATS: int  # these of csrc/hex.h
BATCH_STATS: int
ROW_STATE: int
PART_ROW: int
PART_BATCH: int
WANT_QUANTILE: int
WANT_MOMENTS: int
DEFAULT_BUDGET: int
REST_SECONDS: int
MOST_LEVELS: int
MOST_BINS: int

class _Tier(TypedDict):
    name: str
    compiled: bool
    supported: bool
    chosen: bool

class _Report(TypedDict):
    tiers: list[_Tier]
    chosen: str
    reason: str
    features: str
    threads: int
    torch_abi: tuple[int, int, int]

_Floats = NDArray[np.float64]
_Counts = NDArray[np.int64]
_Gradients = tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None, float]

def measure(
    anchors: ArrayLike, keys: ArrayLike | None = None, labels: ArrayLike | None = None,
    key_labels: ArrayLike | None = None, relation: ArrayLike | None = None, period: int = 0, self_offset: int = -1,
    normalize: bool = True, quantile: float = 0.99, negatives_only: bool = False, want: int = 3, keep: bool = False,
) -> tuple[_Floats, float, int]: ...
def reference_measure(
    anchors: ArrayLike, keys: ArrayLike | None = None, labels: ArrayLike | None = None,
    key_labels: ArrayLike | None = None, relation: ArrayLike | None = None, period: int = 0, self_offset: int = -1,
    normalize: bool = True, quantile: float = 0.99, negatives_only: bool = False, want: int = 3, keep: bool = False,
) -> tuple[_Floats, float, int]: ...
def contrast(
    anchors: ArrayLike, keys: ArrayLike | None = None, paired: ArrayLike | None = None,
    labels: ArrayLike | None = None, key_labels: ArrayLike | None = None, relation: ArrayLike | None = None,
    threshold: ArrayLike | None = None, temperature: float = 0.1, period: int = 0, self_offset: int = -1,
    normalize: bool = True, beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0,
    formulation: int = 0, positives: int = 0, denominator: int = 0, reduction: int = 1,
    grad: ArrayLike | None = None, token: int = 0,
) -> tuple[_Floats, _Floats, _Gradients | None]: ...
def reference_contrast(
    anchors: ArrayLike, keys: ArrayLike | None = None, paired: ArrayLike | None = None,
    labels: ArrayLike | None = None, key_labels: ArrayLike | None = None, relation: ArrayLike | None = None,
    threshold: ArrayLike | None = None, temperature: float = 0.1, period: int = 0, self_offset: int = -1,
    normalize: bool = True, beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0,
    formulation: int = 0, positives: int = 0, denominator: int = 0, reduction: int = 1,
    grad: ArrayLike | None = None, token: int = 0,
) -> tuple[_Floats, _Floats, _Gradients | None]: ...
def count_pairs(
    anchors: ArrayLike, groups: ArrayLike, threshold: ArrayLike | None = None, bins: int = 0, classes: int = 0,
    class_level: int = 0, exponent: float = 0.0,
) -> tuple[_Counts | None, _Counts | None, _Counts | None, float, int]: ...
def reference_count_pairs(
    anchors: ArrayLike, groups: ArrayLike, threshold: ArrayLike | None = None, bins: int = 0, classes: int = 0,
    class_level: int = 0, exponent: float = 0.0,
) -> tuple[_Counts | None, _Counts | None, _Counts | None, float, int]: ...
def raise_interrupt() -> None: ...
def cpu_report() -> _Report: ...
def set_workspace_budget(bytes: int | None, /) -> None: ...
def set_default_budget(bytes: int, /) -> None: ...
def workspace_budget() -> int: ...
def release_workspace() -> None: ...
def profile(on: bool, /) -> None: ...
def profile_lines() -> list[tuple[str, float, float, int]]: ...
def plan(anchors: int, keys: int, columns: int, dtype: int, adaptive: bool,
         /) -> tuple[int, int, int, int, int, int, bool, int]: ...
