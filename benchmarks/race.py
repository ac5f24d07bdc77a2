"""Interleaved timing: all contestants run in one process, round by round, so that what disturbs the machine disturbs
all of them, and ratios are taken within a round."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from cases import Case, Inputs
from torch import Tensor
from variants import COLD, VARIANTS, Step

from hexssl import _C

SAMPLE_SECONDS = 0.02  # a sample repeats its step until it takes about this long
WARM_SECONDS = 0.25    # a longer step brings its own pages and caches up within itself
# Relative. float32: a cosine at the threshold may fall on either side of it. Eager bfloat16 is too far off to compare.
AGREE = {"float32": 2e-3, "float64": 1e-6, "bfloat16": math.inf}


@dataclass(frozen=True)
class Contestant:
    variant: str
    case: Case
    threads: int

    def __str__(self) -> str:
        return f"{VARIANTS[self.variant].title}, {self.case}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass
class Result:
    """Seconds a step, one number per round."""

    seconds: list[float] = field(default_factory=list)
    first: float = 0.0  # of the warm step that set the number of repeats

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def ratio(numerator: Result, denominator: Result) -> tuple[float, float, float]:
    """Ratio of medians, and the quartiles of the ratios within rounds."""
    rounds = [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=False)]
    return numerator.median / denominator.median, *quartiles(rounds)


class _Track:
    """The course: settings that differ between contestants, and everyone's step."""

    def __init__(self, contestants: Sequence[Contestant]) -> None:
        self._inputs = {case: Inputs(case) for case in dict.fromkeys(c.case for c in contestants)}
        self._steps: dict[Contestant, Step] = {}
        self._budget = _C.workspace_budget()

    def enter(self, contestant: Contestant, usual: float) -> None:
        """Set up for a contestant whose step usually takes `usual` seconds. A short step is first run untimed, so that
        it finds its pages and caches as in a training loop."""
        torch.set_num_threads(contestant.threads)
        budget = self._budget if VARIANTS[contestant.variant].cache else 0
        changed = _C.workspace_budget() != budget
        if changed:
            _C.set_workspace_budget(budget)
        if changed or usual < WARM_SECONDS:
            self.step(contestant)

    def step(self, contestant: Contestant) -> tuple[float, Tensor | None]:
        if contestant not in self._steps:
            self._steps[contestant] = VARIANTS[contestant.variant].make(self._inputs[contestant.case])
        self._inputs[contestant.case].nudge()
        begin = time.perf_counter()
        loss = self._steps[contestant]()
        return time.perf_counter() - begin, loss

    def first_step(self, contestant: Contestant) -> tuple[float, Tensor | None]:
        """A step on the same embeddings for everyone."""
        self._inputs[contestant.case].restart()
        return self.step(contestant)

    def leave(self) -> None:
        _C.set_workspace_budget(self._budget)
        _C.release_workspace()


def _check(contestant: Contestant, loss: Tensor | None, seen: dict[tuple[str, Case], tuple[float, str]]) -> None:
    """Contestants for the same loss must have computed the same number. (Not where ties at the threshold are the rule:
    rounding decides there which of them are hierarchical.)"""
    word = VARIANTS[contestant.variant].loss
    ties = contestant.case.data == "collapsed" and word in ("weighted", "released")
    if not word or loss is None or ties:
        return
    value = loss.item()
    other, name = seen.setdefault((word, contestant.case), (value, contestant.variant))
    if not abs(value - other) <= AGREE[contestant.case.dtype] * abs(other):
        raise RuntimeError(f"{contestant}: the loss is {value}, {name} says {other}")


def race(contestants: Sequence[Contestant], rounds: int, seconds: float, longest: float) -> dict[Contestant, Result]:
    """Time everyone in `rounds` rounds, in fewer (3 at least) where that would take more than `seconds`.

    Whoever needs more than `longest` for one step is timed once. The order turns from round to round.
    """
    track, results = _Track(contestants), {contestant: Result() for contestant in contestants}
    seen: dict[tuple[str, Case], tuple[float, str]] = {}
    try:
        for contestant, result in results.items():
            track.enter(contestant, math.inf)
            result.first, loss = track.first_step(contestant)
            _check(contestant, loss, seen)
            if contestant.variant in COLD or result.first <= longest:  # compilation is not counted
                result.first, _ = track.step(contestant)
            if result.first > longest:
                result.seconds.append(result.first)
        racing = [contestant for contestant, result in results.items() if result.first <= longest]
        repeats = {c: max(1, round(SAMPLE_SECONDS / results[c].first)) for c in racing}
        one_round = sum((repeats[c] + (results[c].first < WARM_SECONDS)) * results[c].first for c in racing)
        gc.collect()
        for turn in range(max(3, min(rounds, int(seconds / max(one_round, 1e-9))))):
            for place in range(len(racing)):
                contestant = racing[(place + turn) % len(racing)]
                track.enter(contestant, results[contestant].first)
                total = sum(track.step(contestant)[0] for _ in range(repeats[contestant]))
                results[contestant].seconds.append(total / repeats[contestant])
    finally:
        track.leave()
    return results
