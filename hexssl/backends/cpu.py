"""Tensors on the CPU: the compiled core, by its operators."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hexssl import autograd, dtypes, operators, validation
from hexssl.problem import Problem, Settings
from hexssl.thresholds import Measurement


def row_statistics(problem: Problem, quantile: float | None, rows: str, moments: bool, normalize: bool,
                   normalize_keys: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `hexssl.backends` says."""
    want = operators.WANT_MOMENTS if moments else 0
    if quantile is not None:
        want |= operators.WANT_QUANTILE
    return autograd.run_measure(
        problem.anchors, problem.keys, problem.labels, problem.key_labels, problem.relation, problem.period,
        problem.self_offset, normalize, normalize_keys, 0.0 if quantile is None else quantile, validation.ROWS[rows],
        want, keep)


@lru_cache(maxsize=256)
def _cached_constant(value: float) -> Tensor:
    with torch.inference_mode(False):  # a cached inference tensor could not be saved for backward later
        return torch.tensor(value, dtype=torch.float64, device="cpu")


def _constant(value: float, anchors: Tensor, watched: bool) -> Tensor:
    """A 0-d tensor: one of the anchors' kind that is recorded with them, or the one of earlier calls."""
    if not watched:
        return _cached_constant(value)
    if torch.compiler.is_compiling():
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    return anchors.new_full((), value, dtype=torch.float64)


def coded(problem: Problem, settings: Settings) -> operators.ContrastSettings:
    """In the numbers of the operators."""
    return operators.ContrastSettings(
        problem.period, problem.self_offset, settings.normalize, settings.normalize_keys, problem.both_ways,
        settings.beta, settings.tau_plus, settings.local_weight, validation.FORMULATIONS[settings.formulation],
        validation.POSITIVES[settings.positives], validation.DENOMINATORS[settings.denominator],
        validation.REDUCTIONS[settings.reduction])


def loss(problem: Problem, settings: Settings, decided: float | Tensor | Measurement | None, token: Tensor,
         scale: float, statistics: bool) -> tuple[Tensor, Tensor]:
    """As `hexssl.backends` says; `decided` is the threshold, None for none, or from what the core takes it."""
    watched = autograd.watched(problem.anchors)
    temperature = settings.temperature
    temperature = (dtypes.single(temperature) if isinstance(temperature, Tensor)
                   else _constant(temperature, problem.anchors, watched))
    adaptive = operators.NOT_ADAPTIVE
    if isinstance(decided, Tensor):
        # a copy: who owns it may change it before backward
        decided = decided.detach().to(torch.float64, copy=True).contiguous()
    elif isinstance(decided, Measurement):
        assert decided.quantile is not None
        adaptive, decided = operators.Adaptive(True, decided.quantile, validation.ROWS[decided.rows]), None
    elif decided is not None:
        decided = _constant(decided, problem.anchors, watched)
    return autograd.run_contrast(problem.anchors, problem.keys, problem.paired, problem.labels, problem.key_labels,
                                 problem.relation, decided, temperature, token, coded(problem, settings), adaptive,
                                 scale, statistics, watched)
