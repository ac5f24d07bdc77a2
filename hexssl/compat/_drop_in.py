"""What the drop-ins share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hexssl import validation
from hexssl.criterion import SETTINGS, Criterion
from hexssl.problem import Problem, Settings, make_problem


@contextmanager
def named(**names: str) -> Iterator[None]:
    """Errors speak of the caller's argument: ``named(labels="indexes")``."""
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


class DropIn(Criterion):
    """A loss with another library's interface; `positives` to `reduction` are that library's, the rest is HEX's.

    The released formulation has positives and a denominator of its own; the library's are then those of a warm-up.
    """

    def __init__(self, temperature: Any, threshold: Any, beta: float, tau_plus: float, local_weight: float,
                 formulation: str, *, positives: str = "sum", denominator: str = "all", normalize: bool = True,
                 reduction: str = "mean") -> None:
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation, positives, denominator,
                         normalize, reduction)

    @property
    def gather(self) -> Any:
        """False: a drop-in gathers where its library does, by that library's argument."""
        return False

    @gather.setter
    def gather(self, value: Any) -> None:
        if value is not False:
            validation.refuse_value("gather", value, "False: a drop-in gathers where its library does, by that "
                                                     "library's argument; hexssl's own losses have gather")

    def _checked(self, values: dict[str, Any], device: torch.device | None = None) -> Settings:
        formulation = formulation_of(values["threshold"], values["formulation"])
        if formulation != "released":
            return super()._checked({**values, "formulation": formulation}, device)
        settings = super()._checked({**values, "positives": "sum", "denominator": "all"}, device)
        return settings._replace(positives=values["positives"], denominator=values["denominator"])  # of a warm-up alone

    def _settings_with(self, problem: Problem, temperature: float | Tensor | None, changes: dict[str, Any]) -> Settings:
        """This module's, but for those given."""
        device = problem.anchors.device
        if temperature is None:
            return self._settings(device)._replace(**changes)
        values = {name: getattr(self, name) for name in SETTINGS}
        return self._checked({**values, "temperature": temperature}, device)._replace(**changes)

    def _loss_among(self, anchors: Tensor, keys: Tensor | None = None, *, paired: Tensor | None = None,
                    labels: Tensor | None = None, key_labels: Tensor | None = None, relation: Tensor | None = None,
                    self_offset: int | None = None, temperature: float | Tensor | None = None,
                    **changes: Any) -> Tensor:
        """The loss of any problem, with this module's settings but for the temperature and the `changes` given; what it
        saw goes to `stats`."""
        problem = make_problem(anchors, keys, paired, labels, key_labels, relation, self_offset)
        changes = {name: value for name, value in changes.items() if value is not None}
        if "normalize" in changes:
            changes.setdefault("normalize_keys", changes["normalize"])
        return self._loss_of(problem, self._settings_with(problem, temperature, changes))

    def _loss_among_both(self, anchors: Tensor, keys: Tensor, temperature: float | Tensor) -> Tensor:
        """The mean of two losses: keys as keys and as anchors, row i of both a pair."""
        problem = make_problem(anchors, keys)
        return self._loss_both_ways(problem, self._settings_with(problem, temperature, {}))

    def _shown(self) -> list[str]:
        return ["temperature", "threshold", "beta", "tau_plus", "local_weight", "formulation"]
