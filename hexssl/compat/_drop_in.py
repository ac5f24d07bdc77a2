"""What the drop-ins share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from hexssl.functional import Settings, evaluate, evaluate_both_ways, make_problem
from hexssl.losses import _Loss
from hexssl.thresholds import warn_of_positives


@contextmanager
def named(**names: str) -> Iterator[None]:
    """Errors speak of the caller's argument: ``named(groups="labels")``."""
    try:
        yield
    except (TypeError, ValueError) as error:
        name, colon, rest = str(error).partition(":")
        if name not in names:
            raise
        raise type(error)(names[name] + colon + rest) from error


def formulation_of(threshold: Any, formulation: str) -> str:
    """Without a threshold the loss is the library's own, whichever formulation HEX would have."""
    return "weighted" if threshold is None and formulation == "released" else formulation


class DropIn(_Loss):
    """A loss with another library's interface; `positives` to `reduction` are that library's, the rest is HEX's.

    The released formulation has positives and a denominator of its own; the library's are then those of a warm-up.
    """

    def __init__(self, temperature: float | Tensor, threshold: Any, beta: float, tau_plus: float, local_weight: float,
                 formulation: str, *, positives: str = "sum", denominator: str = "all", normalize: bool = True,
                 reduction: str = "mean") -> None:
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation_of(threshold, formulation),
                         "sum", "all", normalize, reduction)
        self.formulation, self.positives, self.denominator = formulation, positives, denominator

    def _form(self) -> tuple[str, str, str]:
        formulation = formulation_of(self.threshold, self.formulation)
        return (formulation, "sum", "all") if formulation == "released" else (
            formulation, self.positives, self.denominator)

    def _settings(self, *args: Any, **kwargs: Any) -> Settings:
        settings = super()._settings(*args, **kwargs)
        if settings.formulation != "released":
            return settings
        return settings._replace(positives=self.positives, denominator=self.denominator)  # looked at in a warm-up alone

    def contrast(self, anchors: Tensor, keys: Tensor | None = None, *, paired: Tensor | None = None,
                 groups: Tensor | None = None, key_groups: Tensor | None = None, relation: Tensor | None = None,
                 self_offset: int | None = None, temperature: float | Tensor | None = None,
                 normalize: bool | None = None, normalize_keys: bool | None = None,
                 reduction: str | None = None, denominator: str | None = None) -> Tensor:
        """`hexssl.hex_loss` with this module's settings, or the ones given; what it saw goes to `stats`."""
        problem = make_problem(anchors, keys, paired, groups, key_groups, relation, self_offset)
        settings = self._settings(problem, temperature, normalize, reduction, normalize_keys)
        if denominator is not None:
            settings = settings._replace(denominator=denominator)
        warn_of_positives(self.threshold, problem)
        loss, seen = evaluate(problem, settings, self.threshold, sync=self._sync)
        self._seen = (seen,)
        return loss

    def contrast_both_ways(self, anchors: Tensor, keys: Tensor, temperature: float | Tensor) -> Tensor:
        """The mean of two losses: keys as keys and as anchors, row i of both a pair."""
        problem = make_problem(anchors, keys, None, None, None, None, None)
        warn_of_positives(self.threshold, problem)
        loss, self._seen = evaluate_both_ways(problem, self._settings(problem, temperature), self.threshold, self._sync)
        return loss

    def _shown(self) -> list[str]:
        return ["temperature", "threshold", "beta", "tau_plus", "local_weight", "formulation"]
