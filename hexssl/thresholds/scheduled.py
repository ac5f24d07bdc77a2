"""Thresholds with a parameter that is a number or a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hexssl import validation
from hexssl.thresholds.base import MAX, MIN, Measurement, Threshold, needs_epoch
from hexssl.thresholds.buffers import scalar
from hexssl.thresholds.schedules import CosineSchedule, StepSchedule


class _Scheduled(Threshold):
    """A threshold with one parameter that is a number or a schedule of the epoch.

    The parameter lives in a buffer of its own, outside the state: it follows from the number or the epoch.
    """

    current: Tensor

    def __init__(self, name: str, value: Any, finite: bool) -> None:
        super().__init__()
        self._name = name
        self._schedule: Callable[[int], float] | None = None
        self._known = True
        if isinstance(value, (StepSchedule, CosineSchedule)):
            self._schedule, self._known = value, False
            start = value.start
        else:
            start = validation.number(
                name, value, open_low=finite, open_high=finite,
                accepted=f"a {'finite ' if finite else ''}number, a StepSchedule or a CosineSchedule")
            self._value = start
        self.register_buffer("current", scalar(start), persistent=False)

    def _follow_epoch(self) -> None:
        if self._schedule is not None:
            self._known = self.epoch is not None
            if self.epoch is not None:
                # A new tensor: the last one may be saved for a backward to come.
                self.current = torch.full_like(self.current, self._schedule(self.epoch))

    def _start_anew(self) -> None:
        if self._schedule is None:
            self.current.fill_(self._value)
        else:
            self._follow_epoch()

    def _require_epoch(self) -> None:
        if not self._known:
            raise needs_epoch(self, f"{self._name}={self._schedule}")

    def extra_repr(self) -> str:
        return f"{self._name}={self._value if self._schedule is None else self._schedule}"


class FixedThreshold(_Scheduled):
    """A constant on the cosine, or a schedule.

    Parameters
    ----------
    value : number, `StepSchedule` or `CosineSchedule`
        1 or more: no hierarchical negatives; below -1: every negative is one.

    Examples
    --------
    >>> threshold = FixedThreshold(StepSchedule(0.9, 0.3, step=0.1, every=25))
    >>> threshold.set_epoch(50)
    >>> round(threshold.decide(None, None).item(), 2)
    0.7
    """

    def __init__(self, value: float | StepSchedule | CosineSchedule) -> None:
        super().__init__("value", value, finite=False)

    def measures(self) -> Measurement | None:
        self._require_epoch()
        return None

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        self._require_epoch()
        return self.current


class RowRangeThreshold(_Scheduled):
    """The authors' "fixed" threshold: a fraction of the way from each row's smallest to its largest cosine.

    ``min + fraction * (max - min)`` over all keys, the anchor itself and its positives included; one threshold per
    anchor.

    Parameters
    ----------
    fraction : number, `StepSchedule` or `CosineSchedule`
        The authors' published schedule is ``StepSchedule(0.9, 0.3, step=0.1, every=100)`` over 400 epochs.

    Examples
    --------
    >>> import torch
    >>> stats = torch.tensor([[-1.0, 1.0, 0.0, 0.0, 4.0, 0.0], [0.0, 0.5, 0.0, 0.0, 4.0, 0.0]])
    >>> RowRangeThreshold(0.5).decide(stats.double(), None)
    tensor([0.0000, 0.2500], dtype=torch.float64)
    """

    def __init__(self, fraction: float | StepSchedule | CosineSchedule) -> None:
        super().__init__("fraction", fraction, finite=True)

    def measures(self) -> Measurement | None:
        self._require_epoch()
        return Measurement(None, "all")

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        self._require_epoch()
        assert row_stats is not None
        low = row_stats[:, MIN]
        return low + self.current * (row_stats[:, MAX] - low)
