"""Thresholds with a parameter that is a number or a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hexssl import validation
from hexssl.thresholds.base import MAX, MIN, Measurement, Threshold, check_per, needs_time
from hexssl.thresholds.buffers import scalar


class _Scheduled(Threshold):
    """A threshold with one parameter that is a number or a schedule: a callable of the epoch or of the step.

    The parameter lives in a buffer of its own, outside the state: it follows from the number or the time.
    """

    current: Tensor

    def __init__(self, name: str, value: Any, finite: bool, per: str) -> None:
        super().__init__()
        self.per = check_per(per)
        self._name, self._finite = name, finite
        self._schedule: Callable[[int], float] | None = None
        self._known = True
        if callable(value) and not isinstance(value, type | nn.Module):
            self._schedule, self._known = value, False
            self._value = float("nan")  # until the time is known
        else:
            self._value = self._checked(name, value, " or a schedule (a callable of the epoch, or of the step)")
        self.register_buffer("current", scalar(self._value), persistent=False)

    def _checked(self, name: str, value: Any, otherwise: str) -> float:
        kind = "a finite number" if self._finite else "a number"
        return validation.number(name, value, open_low=self._finite, open_high=self._finite, accepted=kind + otherwise)

    def _follow_time(self) -> None:
        if self._schedule is None:
            return
        time = self._time()
        self._known = False
        if time is not None:
            value = self._checked(f"{self._name} at {self.per} {time}", self._schedule(time), f" from {self._schedule}")
            # A new tensor: the last one may be saved for a backward to come.
            self.current = torch.full_like(self.current, value)
            self._value, self._known = value, True

    def _start_anew(self) -> None:
        if self._schedule is None:
            self.current.fill_(self._value)
        else:
            self._follow_time()

    def _require_time(self) -> None:
        if not self._known:
            raise needs_time(self, f"{self._name}={self._schedule}")

    def alike(self) -> tuple[float | str | bool | None, ...]:
        return None if self._schedule is not None and torch.compiler.is_compiling() else self._value, self.per

    def extra_repr(self) -> str:
        value = self._value if self._schedule is None else self._schedule
        return f"{self._name}={value}" if self.per == "epoch" else f"{self._name}={value}, per={self.per!r}"


class FixedThreshold(_Scheduled):
    """A constant on the cosine, or a schedule.

    Parameters
    ----------
    value : number, or a schedule: a `Schedule` or any other callable of an int that returns a number
        1 or more: no hierarchical negatives; below -1: every negative is one.
    per : "epoch" or "step"
        What a schedule is called with: the epoch, which `set_epoch` must say, or the step, which `set_step` must say.
        Steps suit runs of few epochs.

    Examples
    --------
    >>> from hexssl.thresholds import FixedThreshold, StepSchedule
    >>> threshold = FixedThreshold(StepSchedule(0.9, 0.3, step=0.1, every=25))
    >>> threshold.set_epoch(50)
    >>> round(threshold.decide(None, None).item(), 2)
    0.7
    >>> threshold = FixedThreshold(lambda step: 0.9 - step / 10_000, per="step")
    >>> threshold.set_step(1_000)
    >>> round(threshold.decide(None, None).item(), 2)
    0.8
    """

    def __init__(self, value: float | Callable[[int], float], per: str = "epoch") -> None:
        super().__init__("value", value, finite=False, per=per)

    def measures(self) -> Measurement | None:
        self._require_time()
        return None

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        self._require_time()
        return self.current


class RowRangeThreshold(_Scheduled):
    """The authors' "fixed" threshold: a fraction of the way from each row's smallest to its largest cosine.

    ``min + fraction * (max - min)`` over all keys, the anchor itself and its positives included; one threshold per
    anchor.

    Parameters
    ----------
    fraction : number, or a schedule, as in `FixedThreshold`
        The authors' published schedule is ``StepSchedule(0.9, 0.3, step=0.1, every=100)`` over 400 epochs.
    per : "epoch" or "step"
        What a schedule follows, as in `FixedThreshold`.

    Examples
    --------
    >>> import torch
    >>> from hexssl.thresholds import RowRangeThreshold
    >>> stats = torch.tensor([[-1.0, 1.0, 0.0, 0.0, 4.0, 0.0], [0.0, 0.5, 0.0, 0.0, 4.0, 0.0]])
    >>> RowRangeThreshold(0.5).decide(stats.double(), None)
    tensor([0.0000, 0.2500], dtype=torch.float64)
    """

    def __init__(self, fraction: float | Callable[[int], float], per: str = "epoch") -> None:
        super().__init__("fraction", fraction, finite=True, per=per)

    def measures(self) -> Measurement | None:
        self._require_time()
        return Measurement(None, "all")

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        self._require_time()
        assert row_stats is not None
        low = row_stats[:, MIN]
        return low + self.current * (row_stats[:, MAX] - low)
