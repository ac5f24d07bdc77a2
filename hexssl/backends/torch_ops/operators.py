"""The chunks behind the operators: what `hexssl.backends.registered` calls, with its arguments read."""

from __future__ import annotations

import torch
from torch import Tensor

from hexssl.backends.registered import Forward
from hexssl.backends.torch_ops import function, rows
from hexssl.backends.torch_ops.accumulate import Wanted
from hexssl.backends.torch_ops.contrast import Found
from hexssl.backends.torch_ops.function import Call
from hexssl.backends.torch_ops.job import filled
from hexssl.backends.torch_ops.measure import row_statistics
from hexssl.backends.torch_ops.thresholds import Limit
from hexssl.problem import Problem, Settings
from hexssl.thresholds import Measurement


def measure(problem: Problem, quantile: float | None, negatives_only: bool, moments: bool, normalize: bool,
            normalize_keys: bool) -> tuple[Tensor, Tensor]:
    """Row statistics and the mean quantile."""
    stats, mean, _ = row_statistics(problem, quantile, "negatives" if negatives_only else "all", moments, normalize,
                                    normalize_keys, keep=False)
    return stats, mean


def forward(problem: Problem, settings: Settings, decided: float | Tensor | Measurement | None,
            wanted: tuple[bool, ...] | None, scale: float, statistics: bool) -> Forward:
    """The loss, and its gradients at once where some are `wanted`, else what `backward` needs: the limits of the
    anchors, on the scale of the elements, and whether that is the logits'."""
    call = Call(problem, settings, decided, scale, statistics)
    job, found = function.evaluate(call, None, None if wanted is None else Wanted(*wanted))
    loss, seen, number = function.reduced(call, job, found)
    if wanted is not None:
        assert found.gradients is not None
        gradients = function.given_gradients(job, found.gradients, scale, number)
        return Forward(loss, seen, None, tuple(gradients))
    limit = torch.inf if found.limit is None else found.limit.value
    limits = filled(limit, loss, job.wide).expand(found.losses.shape[0])
    return Forward(loss, seen, limits[:, None], (None,) * 4)


def backward(problem: Problem, settings: Settings, state: Tensor, grad: Tensor,
             wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients, from what `forward` left."""
    limits = state[:, 0].to(rows.computed_in(problem.anchors.dtype))
    limit = limits[0] if problem.both_ways else limits
    before = Found(limits, None, Limit(limit, limit), False, None, None)
    call = Call(problem, settings, before, 1.0, False)
    weights = grad if settings.reduction == "none" else None
    job, found = function.evaluate(call, weights, Wanted(*wanted))
    _, _, number = function.reduced(call, job, found)
    assert found.gradients is not None
    gradients = function.given_gradients(job, found.gradients, 1.0, number)
    if weights is not None:
        return tuple(gradients)
    return tuple(None if gradient is None else gradient * grad for gradient in gradients)
