"""Numbers that fall from epoch to epoch, for the thresholds that take one; public as `hexssl.thresholds`' own."""

from __future__ import annotations

from math import cos, pi

from hexssl import validation


class StepSchedule:
    """Falls by `step` every `every` epochs, not below `minimum`.

    Parameters
    ----------
    start, minimum : float, minimum <= start
    step : float >= 0
    every : int >= 1
        Epochs between two steps.

    Examples
    --------
    >>> from hexssl.thresholds import StepSchedule
    >>> schedule = StepSchedule(start=0.9, minimum=0.3, step=0.1, every=100)
    >>> [round(schedule(epoch), 2) for epoch in (0, 99, 100, 399, 10_000)]
    [0.9, 0.9, 0.8, 0.6, 0.3]
    """

    def __init__(self, start: float, minimum: float, step: float, every: int) -> None:
        self.start = validation.number("start", start, open_high=True)
        self.minimum = validation.number("minimum", minimum, high=self.start, open_low=True,
                                         accepted=f"a number <= start = {start}")
        self.step = validation.number("step", step, 0.0, open_high=True, accepted="a finite number >= 0")
        self.every = validation.integer("every", every, 1, "an int >= 1")

    def __call__(self, epoch: int) -> float:
        return max(self.minimum, self.start - self.step * (epoch // self.every))

    def __repr__(self) -> str:
        return f"StepSchedule(start={self.start}, minimum={self.minimum}, step={self.step}, every={self.every})"


class CosineSchedule:
    """Falls from `start` at epoch 0 to `minimum` at epoch `epochs` along half a cosine, and stays there.

    Parameters
    ----------
    start, minimum : float, minimum <= start
    epochs : int >= 1

    Examples
    --------
    >>> from hexssl.thresholds import CosineSchedule
    >>> schedule = CosineSchedule(start=0.9, minimum=0.3, epochs=100)
    >>> [round(schedule(epoch), 2) for epoch in (0, 50, 100, 101)]
    [0.9, 0.6, 0.3, 0.3]
    """

    def __init__(self, start: float, minimum: float, epochs: int) -> None:
        self.start = validation.number("start", start, open_high=True)
        self.minimum = validation.number("minimum", minimum, high=self.start, open_low=True,
                                         accepted=f"a number <= start = {start}")
        self.epochs = validation.integer("epochs", epochs, 1, "an int >= 1")

    def __call__(self, epoch: int) -> float:
        share = min(epoch / self.epochs, 1.0)
        return self.minimum + (self.start - self.minimum) * (1.0 + cos(pi * share)) / 2.0

    def __repr__(self) -> str:
        return f"CosineSchedule(start={self.start}, minimum={self.minimum}, epochs={self.epochs})"
