"""The three steps of every loss: measure the cosines, decide a threshold, contrast."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from hexssl import backends, validation
from hexssl.core import NO_TOKEN
from hexssl.groups import Group
from hexssl.problem import Problem, Settings, other_way
from hexssl.thresholds import WORDS, Measurement, Threshold, named

_SHARED = {word: named(word) for word in WORDS}  # stateless, so that all calls of functions may share them


def shared_threshold(value: Any) -> Any:
    """The threshold object that a word stands for in a function; anything else as it is."""
    return _SHARED.get(value, value) if isinstance(value, str) else value


def own_threshold(value: Any) -> Any:
    """What a module holds: for a word a threshold object of its own, an object as it is, anything else checked."""
    value = named(value)
    return value if value is None or isinstance(value, Threshold) else validation.threshold(value)


def measure(problem: Problem, quantile: float | None, rows: str, moments: bool, normalize: bool,
            normalize_keys: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Row statistics (M, 6), the mean quantile, and a token for what is kept for the contrast that follows."""
    found: tuple[Tensor, Tensor, Tensor] = backends.of(problem).row_statistics(
        problem, quantile, rows, moments, normalize, normalize_keys, keep)
    return found


def decide(problem: Problem, settings: Settings, threshold: Any, sync: bool | Group,
           backend: ModuleType) -> tuple[Settings, float | Tensor | Measurement | None, Tensor]:
    """The settings and the threshold of this batch, or from what the backend shall take that; and a token."""
    if threshold is None:
        return settings, None, NO_TOKEN
    if not isinstance(threshold, Threshold):
        threshold = validation.threshold(threshold, problem.anchors.shape[0], problem.anchors.device)
        return settings, (threshold.detach() if isinstance(threshold, Tensor) else threshold), NO_TOKEN
    if threshold._buffers or threshold._parameters or threshold._modules:  # most hold nothing that has a device
        threshold.check_device(problem.anchors.device)
    wanted, token = threshold.measures(), NO_TOKEN
    if wanted is not None and threshold.is_mean_quantile() and not threshold.pools(sync):
        return settings, wanted, token
    stats, mean = None, None
    if wanted is not None:
        stats, mean, token = backend.row_statistics(problem, wanted.quantile, wanted.rows, wanted.quantile is None,
                                                    settings.normalize, settings.normalize_keys, True)
    decided = threshold(stats, mean, sync)
    if isinstance(decided, Tensor) and decided.dim() > 0:
        decided = validation.threshold(decided, problem.anchors.shape[0], problem.anchors.device)
    if decided is None:  # warm-up is InfoNCE, whatever comes after it
        settings = settings._replace(formulation="weighted")
    return settings, decided, token


def _ready(problem: Problem, settings: Settings, threshold: Any) -> Any:
    """The threshold that a word stands for; and what can be checked only of settings and embeddings together."""
    validation.arithmetic(settings.temperature, settings.beta, problem.anchors.dtype)
    return shared_threshold(threshold)


def evaluate(problem: Problem, settings: Settings, threshold: Any, scale: float = 1.0, statistics: bool = True,
             sync: bool | Group = False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss, times `scale`, and the vectors of batch statistics, in the order of `HEXStats`: here one, empty unless
    wanted.

    threshold : as in `hexssl.hex_loss`
    sync : whether ranks agree in training on a threshold that does not say it by itself, or which; see
        `Threshold.pools`
    """
    threshold, backend = _ready(problem, settings, threshold), backends.of(problem, settings)
    settings, decided, token = decide(problem, settings, threshold, sync, backend)
    loss, seen = backend.loss(problem, settings, decided, token, scale, statistics)
    return loss, (seen,)


def evaluate_both_ways(problem: Problem, settings: Settings, threshold: Any, statistics: bool = True,
                       sync: bool | Group = False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The mean of two losses, that of `problem` and that of its keys as anchors, and the statistics of each.

    In one pass over the cosines, unless each direction has a threshold of its own: one that is measured, or one per
    anchor. With reduction="none" there must be as many anchors as keys.
    """
    assert problem.keys is not None and problem.paired is None and problem.self_offset < 0
    assert settings.normalize == settings.normalize_keys
    threshold, backend = _ready(problem, settings, threshold), backends.of(problem, settings)
    measured = isinstance(threshold, Threshold) and threshold.measures() is not None
    form, decided, token = decide(problem, settings, threshold, sync, backend)
    shared = not measured and (not isinstance(decided, Tensor) or decided.dim() == 0)
    if shared:
        loss, seen = backend.loss(problem._replace(both_ways=True), form, decided, token, 1.0, statistics)
        if settings.reduction == "none":
            loss = loss.view(2, -1).mean(0)
        return loss, (seen[0], seen[1])
    loss, seen = backend.loss(problem, form, decided, token, 1.0, statistics)
    back = other_way(problem)
    if back.relation is not None:
        back = back._replace(relation=back.relation.contiguous())
    loss_back, seen_back = evaluate(back, settings, threshold, statistics=statistics, sync=sync)
    return (loss + loss_back) / 2, (seen, *seen_back)
