"""The CUDA implementation of the operators hexssl::measure, contrast and contrast_backward: what a graph of
torch.compile, a program of torch.export or a caller of torch.ops reaches. Triton is imported when one is first
called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hexssl import core, validation
from hexssl.problem import Problem, Settings
from hexssl.thresholds import Measurement

_libraries: list[torch.library.Library] = []  # what a library registered ends with it


def _words(numbers: Mapping[str, int], number: int) -> str:
    return next(word for word, known in numbers.items() if known == number)


def _present(tensor: Tensor) -> Tensor | None:
    return tensor if tensor.numel() > 0 else None


def _problem(anchors: Tensor, keys: Tensor, paired: Tensor | None, labels: Tensor, key_labels: Tensor, relation: Tensor,
             period: int, self_offset: int, both_ways: bool = False) -> Problem:
    return Problem(anchors, _present(keys), None if paired is None else _present(paired), _present(labels),
                   _present(key_labels), _present(relation), period, self_offset, both_ways)


def _refuse(problem: Problem, settings: Settings | None) -> None:
    """Whoever calls an operator has not asked before."""
    from hexssl.backends.triton.refusals import refuses

    reason = refuses(problem, settings)
    if reason:
        raise RuntimeError(f"hexssl: {reason}")


def _settings(temperature: Tensor, normalize: bool, normalize_keys: bool, beta: float, tau_plus: float,
              local_weight: float, formulation: int, positives: int, denominator: int, reduction: int) -> Settings:
    return Settings(temperature, beta, tau_plus, local_weight, _words(validation.FORMULATIONS, formulation),
                    _words(validation.POSITIVES, positives), _words(validation.DENOMINATORS, denominator), normalize,
                    normalize_keys, _words(validation.REDUCTIONS, reduction))


def _decided(threshold: Tensor, adaptive: bool, quantile: float, negatives_only: bool) -> Tensor | Measurement | None:
    if adaptive:
        return Measurement(quantile, _words(validation.ROWS, negatives_only))
    return _present(threshold)


def measure(anchors: Tensor, keys: Tensor, labels: Tensor, key_labels: Tensor, relation: Tensor, period: int,
            self_offset: int, normalize: bool, normalize_keys: bool, quantile: float, negatives_only: bool, want: int,
            keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """hexssl::measure. Nothing is kept."""
    from hexssl import operators
    from hexssl.backends.triton import adapter

    problem = _problem(anchors, keys, None, labels, key_labels, relation, period, self_offset)
    _refuse(problem, None)
    wanted = quantile if want & operators.WANT_QUANTILE else None
    stats, mean = adapter.measure(problem, wanted, negatives_only, bool(want & operators.WANT_MOMENTS), normalize,
                                  normalize_keys)
    return stats, mean, torch.zeros((), dtype=torch.int64, device=anchors.device)


def contrast(anchors: Tensor, keys: Tensor, paired: Tensor, labels: Tensor, key_labels: Tensor, relation: Tensor,
             threshold: Tensor, temperature: Tensor, token: Tensor, period: int, self_offset: int, normalize: bool,
             normalize_keys: bool, both_ways: bool, beta: float, tau_plus: float, local_weight: float,
             formulation: int, positives: int, denominator: int, reduction: int, adaptive: bool, quantile: float,
             negatives_only: bool, needed: int, at_once: bool, scale: float, statistics: bool) -> tuple[Tensor, ...]:
    """hexssl::contrast. The token is never used."""
    from hexssl import operators
    from hexssl.backends.triton import contrast as triton_contrast
    from hexssl.backends.triton import gradients

    problem = _problem(anchors, keys, paired, labels, key_labels, relation, period, self_offset, both_ways)
    settings = _settings(temperature, normalize, normalize_keys, beta, tau_plus, local_weight, formulation, positives,
                         denominator, reduction)
    _refuse(problem, settings)
    decided = _decided(threshold, adaptive, quantile, negatives_only)
    what = triton_contrast.ready(problem, settings)
    exponent = triton_contrast.exponent_of(problem, settings, True)
    outcome = triton_contrast.contrast(what, settings, decided, exponent, statistics)
    loss = (triton_contrast.reduced(what, outcome, settings.reduction) * scale).float()
    none = torch.zeros((), dtype=torch.int64, device=anchors.device)
    if not at_once:
        state = loss.new_zeros((outcome.state.shape[0], operators.ROW_STATE), dtype=torch.float64)
        state[:, :gradients.COLUMNS] = outcome.state
        absent = [each.new_empty(0) for each in (anchors, keys, paired, temperature)]
        return loss, outcome.statistics, state, none, *absent
    wanted = tuple(bool(needed & 1 << i) for i in range(4))
    grad = torch.full_like(loss, scale, dtype=torch.float64)
    found = triton_contrast.differentiate(what, settings, outcome.state, outcome.threshold, exponent, grad, wanted)
    state = loss.new_empty((0, operators.ROW_STATE), dtype=torch.float64)
    return loss, outcome.statistics, state, none, *_filled(found, anchors, keys, paired, temperature)


def contrast_backward(grad_loss: Tensor, anchors: Tensor, keys: Tensor, paired: Tensor, labels: Tensor,
                      key_labels: Tensor, relation: Tensor, temperature: Tensor, row_state: Tensor, token: Tensor,
                      period: int, self_offset: int, normalize: bool, normalize_keys: bool, both_ways: bool,
                      beta: float, tau_plus: float, local_weight: float, formulation: int, positives: int,
                      denominator: int, reduction: int, need_anchors: bool, need_keys: bool, need_paired: bool,
                      need_temperature: bool) -> tuple[Tensor, ...]:
    """hexssl::contrast_backward. Thresholds are those of the row state, one per anchor, whatever was given."""
    from hexssl.backends.triton import contrast as triton_contrast
    from hexssl.backends.triton import gradients
    from hexssl.backends.triton.sums import Threshold

    problem = _problem(anchors, keys, paired, labels, key_labels, relation, period, self_offset, both_ways)
    settings = _settings(temperature, normalize, normalize_keys, beta, tau_plus, local_weight, formulation, positives,
                         denominator, reduction)
    _refuse(problem, settings)
    what = triton_contrast.ready(problem, settings)
    exponent = triton_contrast.exponent_of(problem, settings, True)
    given = row_state[:, gradients.THRESHOLD]
    threshold = Threshold(given, given.float(), True, True)
    found = triton_contrast.differentiate(what, settings, row_state, threshold, exponent, grad_loss,
                                          (need_anchors, need_keys, need_paired, need_temperature))
    return _filled(found, anchors, keys, paired, temperature)


def _filled(found: Any, *of: Tensor) -> tuple[Tensor, ...]:
    """The gradients as an operator returns them: empty where there is none, of dtype and device of what they are of."""
    return tuple(like.new_empty(0) if gradient is None else gradient.to(like.device, like.dtype).reshape(like.shape)
                 for gradient, like in zip(found, of, strict=True))


def _on_its_device(function: Callable[..., tuple[Tensor, ...]], slot: int) -> Callable[..., tuple[Tensor, ...]]:
    """slot: of the anchors among the arguments."""
    def call(*arguments: Any) -> tuple[Tensor, ...]:
        from hexssl.backends.triton.adapter import current

        with current(arguments[slot]):
            return function(*arguments)
    return call


def register() -> None:
    """For CUDA tensors, ROCm's too, which torch calls the same. Only where there are operators: an installation without
    the core has none."""
    if _libraries or not core.available():
        return
    library = torch.library.Library("hexssl", "IMPL")
    _libraries.append(library)
    forward, backward = _on_its_device(contrast, 0), _on_its_device(contrast_backward, 1)
    library.impl("measure", _on_its_device(measure, 0), "CUDA")
    for suffix in ("", "_no_grad"):
        library.impl("contrast" + suffix, forward, "CUDA")
        library.impl("contrast_backward" + suffix, backward, "CUDA")
