"""The kernels behind the operators: what `hexssl.backends.registered` calls, with its arguments read."""

from __future__ import annotations

import torch
from torch import Tensor

from hexssl.backends.registered import Forward
from hexssl.backends.triton.adapter import measure
from hexssl.problem import Problem, Settings
from hexssl.thresholds import Measurement

__all__ = ["backward", "forward", "measure"]


def forward(problem: Problem, settings: Settings, decided: float | Tensor | Measurement | None,
            wanted: tuple[bool, ...] | None, scale: float, statistics: bool) -> Forward:
    """The loss, and its gradients at once where some are `wanted`, else the state of rows for `backward`."""
    from hexssl.backends.triton import contrast, gradients

    what = contrast.ready(problem, settings)
    exponent = contrast.exponent_of(problem, settings, True)
    outcome = contrast.contrast(what, settings, decided, exponent, statistics)
    loss = (contrast.reduced(what, outcome, settings.reduction) * scale).float()
    if wanted is None:
        return Forward(loss, outcome.statistics, outcome.state[:, :gradients.COLUMNS], (None,) * 4)
    grad = torch.full_like(loss, scale, dtype=torch.float64)
    found = contrast.differentiate(what, settings, outcome.state, outcome.threshold, exponent, grad, wanted)
    return Forward(loss, outcome.statistics, None, tuple(found))


def backward(problem: Problem, settings: Settings, state: Tensor, grad: Tensor,
             wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients, from what `forward` left."""
    from hexssl.backends.triton import contrast, gradients
    from hexssl.backends.triton.sums import Threshold

    what = contrast.ready(problem, settings)
    exponent = contrast.exponent_of(problem, settings, True)
    given = state[:, gradients.THRESHOLD]
    threshold = Threshold(given, given.float(), True, True)
    return tuple(contrast.differentiate(what, settings, state, threshold, exponent, grad, wanted))
