"""Numbers that change from epoch to epoch, or from step to step, for the thresholds that take one."""

from __future__ import annotations

from math import cos, pi

from hexssl import validation


class Schedule:
    """Base of the schedules here: a number for every epoch, or for every step, counted from 0.

    What it is asked for, the threshold decides that holds it (its `per`). A threshold takes any other callable of
    an int as well, such as a function.

    Examples
    --------
    >>> from hexssl.thresholds import FixedThreshold, Schedule
    >>> class Alternating(Schedule):
    ...     def __call__(self, at):
    ...         return 0.5 if at % 2 else 0.7
    ...     def __repr__(self):
    ...         return "Alternating()"
    >>> FixedThreshold(Alternating())
    FixedThreshold(value=Alternating())
    """

    def __call__(self, at: int) -> float:
        """The number at an epoch or a step, counted from 0."""
        raise NotImplementedError


class _Falling(Schedule):
    """From `start` down to `minimum`."""

    def __init__(self, start: float, minimum: float) -> None:
        self.start = validation.number("start", start, open_high=True)
        self.minimum = validation.number("minimum", minimum, high=self.start, open_low=True,
                                         accepted=f"a number <= start = {start}")


class StepSchedule(_Falling):
    """Falls by `step` every `every` epochs, not below `minimum`.

    Parameters
    ----------
    start, minimum : float, minimum <= start
    step : float >= 0
    every : int >= 1
        Epochs between two falls; steps in a threshold with ``per="step"``.

    Examples
    --------
    >>> from hexssl.thresholds import StepSchedule
    >>> schedule = StepSchedule(start=0.9, minimum=0.3, step=0.1, every=100)
    >>> [round(schedule(epoch), 2) for epoch in (0, 99, 100, 399, 10_000)]
    [0.9, 0.9, 0.8, 0.6, 0.3]
    """

    def __init__(self, start: float, minimum: float, step: float, every: int) -> None:
        super().__init__(start, minimum)
        self.step = validation.number("step", step, 0.0, open_high=True, accepted="a finite number >= 0")
        self.every = validation.integer("every", every, 1, "an int >= 1")

    def __call__(self, at: int) -> float:
        return max(self.minimum, self.start - self.step * (at // self.every))

    def __repr__(self) -> str:
        return f"StepSchedule(start={self.start}, minimum={self.minimum}, step={self.step}, every={self.every})"


class CosineSchedule(_Falling):
    """Falls from `start` at epoch 0 to `minimum` at epoch `epochs` along half a cosine, and stays there.

    Parameters
    ----------
    start, minimum : float, minimum <= start
    epochs : int >= 1
        Steps in a threshold with ``per="step"``.

    Examples
    --------
    >>> from hexssl.thresholds import CosineSchedule
    >>> schedule = CosineSchedule(start=0.9, minimum=0.3, epochs=100)
    >>> [round(schedule(epoch), 2) for epoch in (0, 50, 100, 101)]
    [0.9, 0.6, 0.3, 0.3]
    """

    def __init__(self, start: float, minimum: float, epochs: int) -> None:
        super().__init__(start, minimum)
        self.epochs = validation.integer("epochs", epochs, 1, "an int >= 1")

    def __call__(self, at: int) -> float:
        share = min(at / self.epochs, 1.0)
        return self.minimum + (self.start - self.minimum) * (1.0 + cos(pi * share)) / 2.0

    def __repr__(self) -> str:
        return f"CosineSchedule(start={self.start}, minimum={self.minimum}, epochs={self.epochs})"


class LinearSchedule(Schedule):
    """Goes from `start` at epoch 0 to `end` at epoch `epochs` in a straight line, up or down, and stays there.

    Parameters
    ----------
    start, end : float
    epochs : int >= 1
        Steps in a threshold with ``per="step"``.

    Examples
    --------
    >>> from hexssl.thresholds import LinearSchedule
    >>> schedule = LinearSchedule(start=0.9, end=0.3, epochs=100)
    >>> [round(schedule(epoch), 2) for epoch in (0, 25, 100, 101)]
    [0.9, 0.75, 0.3, 0.3]
    """

    def __init__(self, start: float, end: float, epochs: int) -> None:
        self.start = validation.number("start", start, open_low=True, open_high=True, accepted="a finite number")
        self.end = validation.number("end", end, open_low=True, open_high=True, accepted="a finite number")
        self.epochs = validation.integer("epochs", epochs, 1, "an int >= 1")

    def __call__(self, at: int) -> float:
        share = min(at / self.epochs, 1.0)
        return (1.0 - share) * self.start + share * self.end

    def __repr__(self) -> str:
        return f"LinearSchedule(start={self.start}, end={self.end}, epochs={self.epochs})"
